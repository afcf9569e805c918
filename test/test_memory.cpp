/* A run's memory: what a process takes beside its plan, and the policy that --recompute auto finds. */
#include "support_train.h"

#include <cjson/cJSON.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <thread>

namespace {

using namespace support;

class RunMemory : public testing::Test {
  protected:
    void SetUp() override {
        write_file(directory.at("text"), some_text(20000, 1));
    }
    Options::Pairs shape(const Options::Pairs &changes = {}) const {
        return Options::Pairs{{"data", directory.at("text")},
                              {"n-layer", "6"},
                              {"n-head", "2"},
                              {"n-embd", "32"},
                              {"block-size", "32"},
                              {"batch", "4"},
                              {"micro-batch", "4"},
                              {"steps", "20"},
                              {"threads", "1"},
                              {"seed", "7"},
                              {"val-every", "0"},
                              {"sample-every", "0"},
                              {"device", "cpu"}} +
               changes;
    }
    size_t need(const std::string &policy, const Options::Pairs &changes = {}) const {
        const Options options(shape(changes) + Options::Pairs{{"recompute", policy}});
        return loom_trainer_plan(open_trainer(options).get())->arena.used;
    }
    static std::string policy_of(const Trainer &trainer) {
        return loom_trainer_options(trainer.get())->recompute;
    }

    TemporaryDirectory directory;
};

/* ----------------------------------------------------------------------------------------------- the process's memory */

size_t anonymous_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;)
        if (word == "RssAnon:") {
            size_t kibibytes = 0;
            status >> kibibytes;
            return kibibytes * 1024;
        }
    return 0;
}

/* Runs in a process of its own, whose heap is fresh and whose directory goes with it: says how much more than planned a
 * run's beginning and two steps took at most. */
[[noreturn]] void take_two_steps(const Options::Pairs &pairs, const fs::path &directory) {
    const size_t before = anonymous_bytes();
    std::atomic<bool> done(false);
    size_t largest = 0;
    std::thread watch([&] {
        while (!done) {
            largest = std::max(largest, anonymous_bytes());
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    });
    const Options options(pairs);
    const Trainer trainer = open_trainer(options);
    step(trainer);
    step(trainer);
    done = true;
    watch.join();
    const double planned = (double)loom_trainer_plan(trainer.get())->arena.used;
    const double grown = (double)(largest - before);
    const bool whole = grown > 0.9 * planned, fits = grown <= 1.02 * planned + 32 * 0x1p20;
    fprintf(stderr, "planned %.1f MiB, grew by %.1f MiB: %s\n", planned / 0x1p20, grown / 0x1p20,
            !whole ? "the plan is not used"
            : fits ? "as planned"
                   : "too much");
    fs::remove_all(directory);
    exit(whole && fits ? 0 : 1);
}

/* What no plan knows: code of libraries, threads' stacks, the heap. */
TEST_F(RunMemory, TheProcessTakesNoMoreThanItsPlanAndALittle) {
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP() << "a sanitizer takes memory of its own";
#endif
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    for (const char *dtype : {"fp32", "bf16"})
        for (const char *policy : {"none", "block"}) {
            const Options::Pairs pairs = shape(
                {{"n-embd", "256"}, {"block-size", "128"}, {"threads", "2"}, {"dtype", dtype}, {"recompute", policy}});
            EXPECT_EXIT(take_two_steps(pairs, directory.path()), testing::ExitedWithCode(0), "as planned")
                << dtype << " " << policy;
        }
}

/* --------------------------------------------------------------------------------------------------------------- auto */

TEST_F(RunMemory, AutoRecomputesNothingWhereEverythingFits) {
    const Options options(shape({{"recompute", "auto"}}));
    const Trainer trainer = open_trainer(options);
    EXPECT_EQ(policy_of(trainer), "none");
    EXPECT_GT(loom_trainer_predicted_seconds(trainer.get()), 0);
}

TEST_F(RunMemory, AutoTakesWhatFits) {
    for (const char *most : {"act", "norm", "block-attn", "block", "sqrt"}) {
        const size_t memory = need(most);
        const Options options(shape({{"recompute", "auto"}, {"memory", std::to_string(memory)}}));
        const Trainer trainer = open_trainer(options);
        EXPECT_NE(policy_of(trainer), "none") << most;
        EXPECT_LE(loom_trainer_plan(trainer.get())->arena.used, memory) << most;
    }
    const std::string least = std::to_string(need("sqrt") - 1);
    const Options options(shape({{"recompute", "auto"}, {"memory", least}}));
    refusal(
        [&](loom_error *error) {
            loom_trainer *trainer = nullptr;
            return loom_trainer_open(&trainer, options.get(), NULL, NULL, error);
        },
        {"--memory", "MiB are needed"});
}

/* Of several micro-batches too, one that fits is found. */
TEST_F(RunMemory, AutoFindsTheMicroBatchToo) {
    Options::Pairs pairs = shape({{"recompute", "auto"}, {"memory", std::to_string(need("sqrt"))}});
    pairs.erase("micro-batch");
    const Options options(pairs);
    const Trainer trainer = open_trainer(options);
    const loom_plan *plan = loom_trainer_plan(trainer.get());
    EXPECT_LE(plan->arena.used, plan->available);
    EXPECT_EQ(4 % plan->B, 0);
    EXPECT_EQ(loom_trainer_options(trainer.get())->micro_batch, plan->B);
}

double number_in(const std::string &text, const char *key) {
    cJSON *json = cJSON_Parse(text.c_str());
    const double number = cJSON_GetNumberValue(cJSON_GetObjectItem(json, key));
    cJSON_Delete(json);
    return number;
}

/* The choice is the run's: a resume neither measures nor chooses again. And it is only a choice of time. */
TEST_F(RunMemory, TheChoiceIsKeptWithTheRun) {
    const std::string run = directory.at("run");
    const Options::Pairs automatic = shape(
        {{"recompute", "auto"}, {"memory", std::to_string(need("block"))}, {"out", run}, {"stop-after", "3"}});
    {
        const Options options(automatic);
        require([&](loom_error *error) { return loom_train(options.get(), NULL, NULL, error); });
    }
    cJSON *plan = cJSON_Parse(read_file(run + "/plan.json").c_str());
    ASSERT_NE(plan, nullptr);
    const std::string policy = cJSON_GetStringValue(cJSON_GetObjectItem(plan, "recompute"));
    const std::string description = cJSON_GetStringValue(cJSON_GetObjectItem(plan, "description"));
    EXPECT_NE(description.find(" thread"), std::string::npos) << description;
    EXPECT_NE(policy, "none");
    EXPECT_NE(policy, "auto");
    EXPECT_GT(cJSON_GetNumberValue(cJSON_GetObjectItem(plan, "predicted_step_seconds")), 0);
    const cJSON *parts = cJSON_GetObjectItem(plan, "measured_seconds");
    for (const char *part : {"ends", "forward_block", "backward_block", "update_element"})
        EXPECT_GT(cJSON_GetNumberValue(cJSON_GetObjectItem(parts, part)), 0) << part;
    EXPECT_EQ(cJSON_GetNumberValue(cJSON_GetObjectItem(cJSON_GetObjectItem(plan, "bytes"), "all")),
              (double)need(policy));
    cJSON_Delete(plan);

    loom_train_options saved = loom_train_options_defaults();
    require([&](loom_error *error) {
        return loom_train_options_read(&saved, (run + "/config.ini").c_str(), error) &&
               loom_train_options_set(&saved, "resume", "true", error) &&
               loom_train_options_set(&saved, "out", run.c_str(), error);
    });
    EXPECT_EQ(saved.recompute, policy);
    loom_trainer *opened = nullptr;
    require([&](loom_error *error) { return loom_trainer_open(&opened, &saved, NULL, NULL, error); });
    const Trainer resumed(opened, loom_trainer_close);
    EXPECT_EQ(loom_trainer_predicted_seconds(resumed.get()), 0) << "nothing was measured again";
    EXPECT_EQ(policy_of(resumed), policy);
    const std::string before = read_file(run + "/plan.json");
    require([&](loom_error *error) { return loom_trainer_write_plan(opened, (run + "/plan.json").c_str(), error); });
    EXPECT_EQ(number_in(before, "predicted_step_seconds"),
              number_in(read_file(run + "/plan.json"), "predicted_step_seconds"));

    const Options everything(shape());
    const Trainer kept = open_trainer(everything);
    for (int i = 0; i < 3; i++) step(kept);
    EXPECT_TRUE(bits_of_steps(kept, 2) == bits_of_steps(resumed, 2));
    loom_train_options_free(&saved);
}

/* ------------------------------------------------------------------------------------------------------------ refusals */

/* The observer sees the table of a run that does not start. */
TEST_F(RunMemory, ThePlanOfARunThatDoesNotFitIsShown) {
    struct Seen {
        int planned = 0, started = 0;
        bool fits = true;
    } seen;
    loom_train_observer observer = {};
    observer.user = &seen;
    observer.planned = [](void *user, const loom_plan *plan) {
        ((Seen *)user)->planned++;
        ((Seen *)user)->fits = loom_plan_fits(plan);
    };
    observer.started = [](void *user, loom_trainer *) { ((Seen *)user)->started++; };
    const Options options(shape({{"memory", std::to_string(need("none") - 1)}, {"out", directory.at("run")}}));
    refusal([&](loom_error *error) { return loom_train(options.get(), NULL, &observer, error); },
            {"--memory", "--recompute"});
    EXPECT_EQ(seen.planned, 1);
    EXPECT_FALSE(seen.fits);
    EXPECT_EQ(seen.started, 0);
}

TEST_F(RunMemory, WhatIsNoPolicyIsRefused) {
    const Options options(shape({{"recompute", "blocks"}}));
    refusal(
        [&](loom_error *error) {
            loom_trainer *trainer = nullptr;
            return loom_trainer_open(&trainer, options.get(), NULL, NULL, error);
        },
        {"--recompute", "blocks"});
}

} // namespace
