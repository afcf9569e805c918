/* Training on the CUDA device, emulated: the same loop, model and flags as on the CPU, and nearly the same losses. */
#include "support_train.h"

#include "emulation.h"

#include <cmath>
#include <cstdlib>

namespace {

using namespace support;

/* ------------------------------------------------------------------------------------------------------------- runs */

class CudaTrain : public testing::Test {
  protected:
    void SetUp() override {
        write_file(directory.at("text"), some_text(8000, 1));
        emulation_set_schedule("order");
    }
    void TearDown() override {
        emulation_set_schedule("order");
    }

    /* 2 layers, C = 64, T = 64, 4 sequences. */
    Options::Pairs shape(const std::string &device, const Options::Pairs &changes = {}) const {
        return Options::Pairs{{"data", directory.at("text")},
                              {"n-layer", "2"},
                              {"n-head", "4"},
                              {"n-embd", "64"},
                              {"block-size", "64"},
                              {"batch", "4"},
                              {"micro-batch", "4"},
                              {"steps", "40"},
                              {"lr", "1e-3"},
                              {"threads", "2"},
                              {"warmup", "4"},
                              {"seed", "7"},
                              {"weight-decay", "0.1"},
                              {"device", device}} +
               changes;
    }
    /* Small enough to run many times. */
    Options::Pairs small(const Options::Pairs &changes = {}) const {
        return shape("cuda", {{"n-layer", "1"},
                              {"n-head", "2"},
                              {"n-embd", "32"},
                              {"block-size", "32"},
                              {"micro-batch", "2"},
                              {"val-every", "0"}}) +
               changes;
    }

    static std::vector<double> losses(const Options::Pairs &pairs, int steps) {
        const Options options(pairs);
        const Trainer trainer = open_trainer(options);
        std::vector<double> all;
        for (int i = 0; i < steps; i++) all.push_back((double)step(trainer).loss);
        return all;
    }
    /* Which algorithms are the fastest is measured, and may come out otherwise the next time: runs whose bits are
     * compared have the first one's tuning cache, for each dtype. */
    std::string bits(const Options::Pairs &pairs, int steps) {
        const auto dtype = pairs.find("dtype");
        const std::string file = directory.at("tuning-" + (dtype == pairs.end() ? "fp32" : dtype->second));
        const bool tuned = fs::exists(file);
        const Options options(tuned ? pairs + Options::Pairs{{"tuning", file}} : pairs);
        const Trainer trainer = open_trainer(options);
        if (!tuned) {
            char *text = nullptr;
            require([&](loom_error *error) { return trainer->device->tuning_get(trainer->device, &text, error); });
            write_file(file, text);
            free(text);
        }
        return bits_of_steps(trainer, steps);
    }

    TemporaryDirectory directory;
};

/* What a sanitizer can see it sees in few steps. */
constexpr int STEPS = sanitized ? 4 : 20;

/* How far two runs' losses may be apart after `step` steps, when each step's gradient is off by `relative`. Before the
 * first update only the forward's rounding counts. An update of AdamW moves an element by at most about the learning
 * rate, and by another lr * relative where the gradient is off; where elements' gradients are no larger than their
 * error the sign itself is open, which holds for a share `relative` of them: so after k steps the parameters are at
 * most 2 k lr sqrt(relative^2 + relative) apart, root mean square, in directions that have nothing to do with the
 * gradient; the loss feels a move of root mean square d by |gradient| sqrt(n) d / sqrt(n), for random directions, which
 * is d times the gradient's norm. */
double loss_tolerance(int step, double forward, double relative, double gradient_norm, double lr) {
    const double drift = 2 * step * lr * std::sqrt(relative * relative + relative);
    return forward + drift * gradient_norm;
}

void expect_following(const std::vector<double> &losses, const std::vector<double> &expected, double forward,
                      double relative) {
    double largest_norm = 3;
    for (size_t i = 0; i < losses.size(); i++) {
        const double tolerance = loss_tolerance((int)i, forward * expected[i], relative, largest_norm, 1e-3);
        EXPECT_NEAR(losses[i], expected[i], tolerance) << "step " << i + 1;
    }
    EXPECT_LT(losses.back(), losses.front() - (STEPS < 20 ? 0 : 1)) << "something is learnt";
}

TEST_F(CudaTrain, FollowsTheCpuInFp32) {
    const loom_gpt_config c = gpt_shape(2, 4, 64, 64, 257);
    const double u = 0x1p-24;
    expect_following(losses(shape("cuda"), STEPS), losses(shape("cpu"), STEPS), 2 * u * std::sqrt(forward_path(c, 64)),
                     2 * u * std::sqrt(whole_path(c, 4, 64)));
}

/* In 16 bits every stored activation rounds by `unit` of its size: 13 a block on the way to the loss and 3 around them,
 * and as many on the way back. Their squares add up; the mean over rows errs no more than a row does. */
void expect_following_in_half(const std::vector<double> &losses, const std::vector<double> &expected, double unit) {
    const double roundings = 2 * 13 + 3;
    expect_following(losses, expected, unit * std::sqrt(roundings), unit * std::sqrt(2 * roundings));
}

TEST_F(CudaTrain, FollowsTheDefinitionInBf16) {
    expect_following_in_half(losses(shape("cuda", {{"dtype", "bf16"}}), STEPS),
                             losses(shape("definition", {{"dtype", "bf16"}}), STEPS), 0x1p-9);
}

TEST_F(CudaTrain, FollowsTheCpuInBf16) {
    if (!full()) GTEST_SKIP() << "make test-full runs it: the definition is followed in bf16";
    expect_following_in_half(losses(shape("cuda", {{"dtype", "bf16"}}), STEPS), losses(shape("cpu"), STEPS), 0x1p-9);
}

TEST_F(CudaTrain, FollowsTheCpuInFp16) {
    if (!full()) GTEST_SKIP() << "make test-full runs it: fp32 and bf16 are followed";
    expect_following_in_half(losses(shape("cuda", {{"dtype", "fp16"}}), STEPS), losses(shape("cpu"), STEPS), 0x1p-12);
}

/* ------------------------------------------------------------------------------------------ moments and gradients in bf16
 * Compared with the same run in fp32 moments and gradients, on the CPU and here. */

/* The emulation takes its time: make test compares on the CPU, make test-full on both. */
std::vector<const char *> where_types_are_compared() {
    return full() ? std::vector<const char *>{"cpu", "cuda"} : std::vector<const char *>{"cpu"};
}

/* Random rounding of a moment is off by at most half an epsilon, 2^-8, root mean square. What steps have added and not
 * yet forgotten comes to 2^-8 / sqrt(1 - beta^2) of the moment: 2.3 times for beta1 = 0.9, 3.2 times for beta2 = 0.95,
 * of which the root in the update's denominator feels half. So an update is off by sqrt(2.3^2 + 1.6^2) 2^-8 of itself,
 * as it would be by a gradient off by as much. */
TEST_F(CudaTrain, MomentsInBf16FollowThoseInFp32) {
    const double relative = std::sqrt(2.3 * 2.3 + 1.6 * 1.6) * 0x1p-8;
    const loom_gpt_config c = gpt_shape(2, 4, 64, 64, 257);
    for (const char *device : where_types_are_compared()) {
        SCOPED_TRACE(device);
        const std::vector<double> wide = losses(shape(device), STEPS);
        const std::vector<double> narrow = losses(shape(device, {{"optimizer-dtype", "bf16"}}), STEPS);
        expect_following(narrow, wide, 2 * 0x1p-24 * std::sqrt(forward_path(c, 64)), relative);
    }
}

/* A step's weights are made of moments that are not rounded yet: the first loss that random bits can touch is the
 * third, and as they are few the fourth may be the first where they show. */
TEST_F(CudaTrain, MomentsInBf16ActFromTheNextUpdateOn) {
    const std::vector<double> wide = losses(shape("cpu"), 4);
    const std::vector<double> narrow = losses(shape("cpu", {{"optimizer-dtype", "bf16"}}), 4);
    EXPECT_EQ(narrow[0], wide[0]);
    EXPECT_EQ(narrow[1], wide[1]);
    EXPECT_NE(narrow, wide);
}

/* Each of the four micro-batches rounds the sum to nearest, by 2^-9 of it, root mean square; the token embedding's is
 * rounded twice, as it has two parts. */
TEST_F(CudaTrain, GradientsInBf16FollowThoseInFp32) {
    for (const char *device : where_types_are_compared()) {
        SCOPED_TRACE(device);
        const Options::Pairs run = shape(device, {{"dtype", "bf16"}, {"micro-batch", "1"}});
        const std::vector<double> wide = losses(run, STEPS);
        const std::vector<double> narrow = losses(run + Options::Pairs{{"grad-dtype", "bf16"}}, STEPS);
        EXPECT_NE(narrow, wide);
        expect_following(narrow, wide, 0x1p-9 * std::sqrt(2 * 13 + 3), 0x1p-9 * std::sqrt(2 * 4));
    }
}

/* -------------------------------------------------------------------------------------------------------- graphs */

/* The graph reads the step's scalars and batch from memory: a captured copy of either would train on the second step's
 * rate or tokens for ever. */
TEST_F(CudaTrain, TheCapturedStepGivesTheSameBits) {
    for (const char *dtype : {"fp32", "bf16", "fp16"})
        EXPECT_EQ(bits(small({{"dtype", dtype}, {"cuda-graph", "on"}}), 6),
                  bits(small({{"dtype", dtype}, {"cuda-graph", "off"}}), 6))
            << dtype;
}

TEST_F(CudaTrain, TheStepIsCaptured) {
    const Options captured(small({{"cuda-graph", "on"}})), plain(small({{"cuda-graph", "off"}}));
    const Trainer a = open_trainer(captured), b = open_trainer(plain);
    for (int i = 0; i < 3; i++) step(a), step(b);
    for (int piece = 0; piece < LOOM_PIECES; piece++) {
        EXPECT_NE(a->graph[piece], nullptr) << piece;
        EXPECT_EQ(b->graph[piece], nullptr) << piece;
    }
}

/* Streams run as their queues and waits allow, in any other order too; so do threads and blocks. */
TEST_F(CudaTrain, TheOrderOfTheScheduleDoesNotMatter) {
    const std::string in_order = bits(small({{"dtype", "bf16"}}), 4);
    for (const char *schedule : {"reverse", "random:1", "random:2"}) {
        ASSERT_TRUE(emulation_set_schedule(schedule));
        EXPECT_EQ(bits(small({{"dtype", "bf16"}}), 4), in_order) << schedule;
    }
}

/* ------------------------------------------------------------------------------------------------------ checkpoints */

class CudaRun : public CudaTrain {
  protected:
    Options::Pairs run(const std::string &out, const Options::Pairs &changes) const {
        return small({{"out", directory.at(out)}, {"steps", "8"}, {"sample-every", "0"}}) + changes;
    }
    static testing::AssertionResult trains(const Options::Pairs &pairs) {
        const Options options(pairs);
        return works([&](loom_error *error) { return loom_train(options.get(), NULL, NULL, error); });
    }
    std::string weights(const std::string &out) const {
        return read_file(directory.path() / out / "checkpoints/latest/model.safetensors");
    }
    std::string moments(const std::string &out) const {
        return read_file(directory.path() / out / "checkpoints/latest/optimizer.safetensors");
    }
    /* As if it had been ended before its first checkpoint. */
    void delete_checkpoints(const std::string &out) const {
        fs::remove(directory.at(out + "/saved"));
        for (const auto &entry : fs::directory_iterator(directory.at(out + "/checkpoints")))
            fs::remove_all(entry.path());
    }
    /* As earlier versions left it: they called the tuning cache choices.txt, in the checkpoints' manifests too. */
    void make_it_earlier(const std::string &out) const {
        std::vector<fs::path> folders = {directory.at(out)};
        for (const auto &entry : fs::directory_iterator(directory.at(out + "/checkpoints")))
            if (!entry.is_symlink()) folders.push_back(entry.path());
        for (const fs::path &folder : folders) {
            const std::string name = "tuning.txt", manifest = (folder / "manifest.json").string();
            fs::rename(folder / name, folder / "choices.txt");
            if (!fs::exists(manifest)) continue;
            std::string text = read_file(manifest);
            ASSERT_NE(text.find(name), std::string::npos);
            write_file(manifest, text.replace(text.find(name), name.size(), "choices.txt"));
        }
    }
    /* A tuning cache whose products all have another algorithm of the emulation than measuring has found. */
    std::string make_other_tuning() const {
        EXPECT_TRUE(trains(run("measured", {{"stop-after", "1"}})));
        std::string text = read_file(directory.at("measured/tuning.txt"));
        int products = 0;
        for (size_t at = 0; (at = text.find("\nmatmul ", at)) != std::string::npos; at++, products++) {
            char &digit = text[text.find(' ', at + 8) + 1 + 17];
            digit = digit == '0' ? '1' : '0';
        }
        EXPECT_GT(products, 10);
        return text;
    }
    static std::string of_other_hardware(std::string text) {
        return text.replace(text.find("emulated"), 8, "imagined");
    }
};

TEST_F(CudaRun, ResumesToTheSameBits) {
    int number = 0;
    for (const Options::Pairs &precision : std::vector<Options::Pairs>{
             {{"dtype", "fp32"}},
             {{"dtype", "bf16"}},
             {{"dtype", "fp16"}},
             {{"dtype", "fp16"}, {"optimizer-dtype", "bf16"}},
             {{"dtype", "bf16"}, {"master-weights", "off"}, {"optimizer-dtype", "bf16"}, {"grad-dtype", "bf16"}}}) {
        const std::string whole = "whole-" + std::to_string(++number), parts = "parts-" + std::to_string(number);
        ASSERT_TRUE(trains(run(whole, precision)));
        const std::string tuning = directory.at(whole + "/tuning.txt");
        ASSERT_TRUE(trains(run(parts, precision + Options::Pairs{{"stop-after", "3"}, {"tuning", tuning}})));
        ASSERT_TRUE(trains(run(parts, precision + Options::Pairs{{"resume", "true"}})));
        EXPECT_EQ(weights(whole), weights(parts)) << number;
        EXPECT_EQ(moments(whole), moments(parts)) << number;
    }
}

/* What runs between the captured pieces shares their memory and leaves it as the next one needs it. */
TEST_F(CudaRun, ValidatingAndSamplingBetweenCapturedStepsChangesNoBit) {
    const Options::Pairs often = {
        {"dtype", "bf16"}, {"val-every", "2"}, {"val-tokens", "16"}, {"sample-every", "3"}, {"sample-tokens", "5"}};
    ASSERT_TRUE(trains(run("graph", often)));
    const std::string tuning = directory.at("graph/tuning.txt");
    ASSERT_TRUE(trains(run("plain", often + Options::Pairs{{"cuda-graph", "off"}, {"tuning", tuning}})));
    ASSERT_TRUE(trains(run("alone", {{"dtype", "bf16"}, {"tuning", tuning}})));
    EXPECT_EQ(weights("graph"), weights("plain"));
    EXPECT_EQ(weights("graph"), weights("alone"));
}

/* Without a run's tuning cache the algorithms are measured again; with it nothing is, and they are the run's own. */
TEST_F(CudaRun, TakesTheTuningCacheOfAnotherRun) {
    ASSERT_TRUE(trains(run("a", {{"stop-after", "1"}})));
    ASSERT_TRUE(trains(run("b", {{"stop-after", "1"}, {"tuning", directory.at("a/tuning.txt")}})));
    EXPECT_EQ(read_file(directory.at("a/tuning.txt")), read_file(directory.at("b/tuning.txt")));
    write_file(directory.at("other"), of_other_hardware(read_file(directory.at("a/tuning.txt"))));
    const Options options(run("c", {{"tuning", directory.at("other")}}));
    refusal([&](loom_error *error) { return loom_train(options.get(), NULL, NULL, error); }, {"--tuning", "imagined"});
}

TEST_F(CudaRun, ARunOfAnEarlierVersionGoesOnWithItsTuningCache) {
    const std::string other = make_other_tuning(), given = directory.at("given");
    write_file(given, other);
    ASSERT_TRUE(trains(run("whole", {{"tuning", given}})));
    ASSERT_TRUE(trains(run("parts", {{"stop-after", "3"}, {"tuning", given}})));
    ASSERT_NO_FATAL_FAILURE(make_it_earlier("parts"));
    ASSERT_TRUE(trains(run("next", {{"init", directory.at("parts")}, {"stop-after", "1"}})));
    ASSERT_TRUE(trains(run("parts", {{"resume", "true"}})));
    EXPECT_EQ(weights("whole"), weights("parts"));
    EXPECT_EQ(moments("whole"), moments("parts"));
    for (const char *place : {"parts", "parts/checkpoints/latest"})
        EXPECT_EQ(read_file(directory.at(std::string(place) + "/tuning.txt")), other) << place;
    EXPECT_FALSE(fs::exists(directory.at("parts/checkpoints/latest/choices.txt")));

    /* Of other hardware it is as refused as ever. */
    ASSERT_TRUE(trains(run("refused", {{"stop-after", "3"}, {"tuning", given}})));
    ASSERT_NO_FATAL_FAILURE(make_it_earlier("refused"));
    const fs::path checkpoint = directory.at("refused/checkpoints/step-00000003");
    write_file((checkpoint / "choices.txt").string(), of_other_hardware(other));
    fs::remove(checkpoint / "manifest.json");
    const Options options(run("refused", {{"resume", "true"}}));
    refusal([&](loom_error *error) { return loom_train(options.get(), NULL, NULL, error); },
            {"choices.txt", "imagined", "--retune"});
    ASSERT_TRUE(trains(run("refused", {{"resume", "true"}, {"retune", "true"}})));
}

TEST_F(CudaRun, ARunOfAnEarlierVersionBeginsAnewWithItsTuningCache) {
    const std::string other = make_other_tuning(), given = directory.at("given"), own = directory.at("a/tuning.txt"),
                      earlier = directory.at("a/choices.txt");
    write_file(given, other);
    ASSERT_TRUE(trains(run("a", {{"stop-after", "1"}, {"tuning", given}})));
    delete_checkpoints("a");
    ASSERT_NO_FATAL_FAILURE(make_it_earlier("a"));
    ASSERT_TRUE(trains(run("a", {{"stop-after", "1"}, {"resume", "true"}})));
    EXPECT_EQ(read_file(own), other);

    /* From here on the earlier file counts for nothing. */
    write_file(earlier, of_other_hardware(other));
    delete_checkpoints("a");
    ASSERT_TRUE(trains(run("a", {{"stop-after", "1"}, {"resume", "true"}})));
    EXPECT_EQ(read_file(own), other);

    /* On a CPU, which tunes nothing, both go: what would be left is of another machine. */
    ASSERT_TRUE(trains(run("a", {{"stop-after", "1"}, {"resume", "true"}, {"device", "cpu"}})));
    EXPECT_FALSE(fs::exists(own));
    EXPECT_FALSE(fs::exists(earlier));
}

/* A run that was ended before its first checkpoint begins anew with the tuning cache that it has, not with another. */
TEST_F(CudaRun, ARunThatBeginsAnewTakesItsOwnTuningCache) {
    ASSERT_TRUE(trains(run("a", {{"stop-after", "1"}})));
    delete_checkpoints("a");
    const std::string own = read_file(directory.at("a/tuning.txt"));
    ASSERT_TRUE(trains(run("a", {{"stop-after", "1"}, {"resume", "true"}})));
    EXPECT_EQ(read_file(directory.at("a/tuning.txt")), own);

    delete_checkpoints("a");
    write_file(directory.at("a/tuning.txt"), of_other_hardware(own));
    const Options options(run("a", {{"resume", "true"}}));
    refusal([&](loom_error *error) { return loom_train(options.get(), NULL, NULL, error); }, {"--retune"});
}

TEST_F(CudaRun, ContinuesWhatTheCpuBegan) {
    ASSERT_TRUE(trains(run("a", {{"device", "cpu"}, {"stop-after", "3"}})));
    ASSERT_TRUE(trains(run("a", {{"resume", "true"}})));
}

/* On resuming; test_precision has what every device notes. */
TEST_F(CudaRun, NotesTheFlagsThatChangeItsBits) {
    ASSERT_TRUE(trains(run("a", {{"stop-after", "1"}})));
    const std::string changed = ": changed, so from here on the bits are not those of an uninterrupted run";
    const auto note = [&](const Options::Pairs &changes) {
        const Options options(run("a", Options::Pairs{{"resume", "true"}} + changes));
        return std::string(loom_trainer_note(open_trainer(options).get()));
    };
    EXPECT_EQ(note({{"cuda-graph", "off"}}), "");
    EXPECT_EQ(note({{"tf32", "true"}}), "--tf32" + changed);
    EXPECT_EQ(note({{"tf32", "true"}, {"dtype", "bf16"}}), "--dtype" + changed);
    EXPECT_EQ(note({{"retune", "true"}}), "--retune" + changed);
    EXPECT_EQ(note({{"device", "cpu"}}), "--device" + changed);
}

TEST_F(CudaRun, ValidatesAndSamples) {
    const std::string out = directory.at("v");
    ASSERT_TRUE(trains(run(
        "v",
        {{"dtype", "bf16"}, {"val-every", "4"}, {"val-tokens", "32"}, {"sample-every", "8"}, {"sample-tokens", "6"}})));
    EXPECT_NE(read_file(out + "/metrics.jsonl").find("val_loss"), std::string::npos);
    EXPECT_GT(read_file(out + "/samples.txt").size(), 10u);
}

/* --------------------------------------------------------------------------------------------------------- overflow */

/* A scale far too large overflows fp16: updates are skipped and the scale halves until they are not. */
TEST_F(CudaTrain, AnOverflowHalvesTheLossScale) {
    const Options options(small({{"dtype", "fp16"}}));
    const Trainer trainer = open_trainer(options);
    loom_scalars_state state = trainer->state.scalars;
    ASSERT_EQ(state.loss_scale, 65536);
    state.loss_scale = 0x1p24f;
    trainer->device->copy(trainer->device, NULL, &loom_gpt_get_scalars(trainer->gpt)->state, &state, sizeof state,
                          LOOM_HOST_TO_DEVICE);
    require([&](loom_error *error) { return trainer->device->synchronize(trainer->device, NULL, error); });
    float scale = state.loss_scale;
    int skipped = 0;
    for (int i = 0; i < 16; i++) {
        const bool skip = step(trainer).skipped;
        EXPECT_EQ(trainer->state.scalars.loss_scale, skip ? scale / 2 : scale);
        scale = trainer->state.scalars.loss_scale;
        skipped += skip;
    }
    EXPECT_GT(skipped, 0);
    EXPECT_LT(skipped, 16);
    EXPECT_EQ(trainer->state.scalars.skipped, skipped);
}

} // namespace
