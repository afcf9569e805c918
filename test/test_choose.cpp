/* `--recompute auto`: of the named policies and of sets of kept values the fastest that fits. Held to what all sets
 * there are come to, each planned, for up to four layers; and to the named policies for more. */
#include "support.h"

extern "C" {
#include "model/schedule.h"
#include "plan/sample.h"
}

#include <algorithm>
#include <cmath>

namespace {

using namespace support;

std::string name_of(const loom_recompute &recompute) {
    char name[LOOM_RECOMPUTE_NAME];
    loom_recompute_name(&recompute, name);
    return name;
}

/* A training with costs of an H100, which for so small a model are those of launches too. */
struct Training {
    enum { SEQUENCES = 8, B = 4, T = 128 };
    Device device{nullptr, loom_device_close};
    loom_gpt_config config;
    loom_gpt_setup setup;
    loom_cost cost;

    explicit Training(int64_t layers, loom_gpt_architecture architecture = LOOM_GPT_2) {
        loom_device *opened = nullptr;
        config = gpt_shape(layers, 4, 256, T, 500);
        config.architecture = architecture;
        setup = setup_of(B, T);
        require([&](loom_error *error) {
            return loom_device_open_shapes(&opened, SIZE_MAX / 2, 0, error) &&
                   loom_cost_predict(&cost, &config, &setup, opened, loom_gpu_by_name("h100", error), false, error);
        });
        device = Device(opened, loom_device_close);
    }
    loom_plan plan(const loom_recompute &recompute) const {
        loom_plan made;
        loom_gpt_setup with = setup;
        with.recompute = recompute;
        require(
            [&](loom_error *error) { return loom_plan_make(&made, &config, &with, device.get(), SEQUENCES, error); });
        return made;
    }
    double seconds(const loom_plan &plan) const {
        double amount;
        require([&](loom_error *error) {
            return loom_cost_step(&cost, &config, &plan.recompute, SEQUENCES / B, plan.elements, &amount, error);
        });
        return amount;
    }
    loom_plan choose(size_t available) const {
        loom_plan chosen;
        require([&](loom_error *error) {
            return loom_plan_choose(&chosen, &config, &setup, device.get(), SEQUENCES, available, &cost, error);
        });
        EXPECT_LE(chosen.arena.used, available);
        return chosen;
    }
    std::vector<loom_recompute> named() const {
        loom_recompute list[LOOM_MOST_POLICIES];
        const int n = loom_recompute_policies(config.n_layer, list);
        return {list, list + n};
    }
    uint32_t all_values() const {
        loom_tape tape;
        loom_value values[LOOM_SET_MOST_VALUES];
        require([&](loom_error *error) { return loom_tape_create(&tape, &config, error); });
        const int n = loom_tape_saved_values(&tape, 0, values);
        loom_tape_destroy(&tape);
        return (1u << n) - 1;
    }
};

/* The last layer computes nothing again. */
loom_recompute sets_of(const std::vector<uint32_t> &values) {
    loom_recompute recompute = {LOOM_RECOMPUTE_SETS};
    for (const uint32_t v : values) recompute.set[recompute.n_sets++] = {v, 1};
    recompute.set[recompute.n_sets++] = {0, 1};
    return recompute;
}

struct Outcome {
    size_t bytes, kept;
    double seconds;
};

/* Sizes of memory from the least to the most that plans take. */
std::vector<size_t> sizes_between(const std::vector<Outcome> &plans, size_t n) {
    size_t least = SIZE_MAX, most = 0;
    for (const Outcome &o : plans) least = std::min(least, o.bytes), most = std::max(most, o.bytes);
    std::vector<size_t> sizes;
    for (size_t i = 0; i <= n; i++) sizes.push_back(least + (most - least) * i / n);
    return sizes;
}

void expect_the_best_of(const Training &training, const std::vector<Outcome> &plans, size_t sizes) {
    for (const size_t available : sizes_between(plans, sizes)) {
        double best = INFINITY;
        for (const Outcome &o : plans)
            if (o.bytes <= available) best = std::min(best, o.seconds);
        const loom_plan chosen = training.choose(available);
        EXPECT_LE(training.seconds(chosen), best * (1 + 1e-9))
            << name_of(chosen.recompute) << " of " << training.config.n_layer << " layers in " << available;
    }
}

std::vector<Outcome> plans_of_named(const Training &training) {
    std::vector<Outcome> plans;
    for (const loom_recompute &recompute : training.named()) {
        const loom_plan plan = training.plan(recompute);
        plans.push_back({plan.arena.used, 0, training.seconds(plan)});
    }
    return plans;
}

void add_plan(std::vector<Outcome> *plans, const Training &training, const std::vector<uint32_t> &values) {
    const loom_plan plan = training.plan(sets_of(values));
    plans->push_back({plan.arena.used, bytes_of_row(plan.arena, "activations"), training.seconds(plan)});
}

/* Of two layers, every set of the first one, planned. */
const std::vector<Outcome> &plans_of_all_sets(loom_gpt_architecture architecture) {
    static std::vector<Outcome> plans[LOOM_GPT_ARCHITECTURES];
    std::vector<Outcome> &all = plans[architecture];
    const Training training(2, architecture);
    for (uint32_t values = 0; all.size() <= training.all_values(); values++) add_plan(&all, training, {values});
    return all;
}

TEST(Choice, OfTwoLayersIsTheBestOfAllSets) {
    for (int a = 0; a < LOOM_GPT_ARCHITECTURES; a++) {
        const Training training(2, (loom_gpt_architecture)a);
        std::vector<Outcome> plans = plans_of_named(training);
        const std::vector<Outcome> &sets = plans_of_all_sets((loom_gpt_architecture)a);
        plans.insert(plans.end(), sets.begin(), sets.end());
        expect_the_best_of(training, plans, 60);
    }
}

/* The sets of one layer of which no other is faster and keeps no more: all others lose in any mixture. */
std::vector<uint32_t> worthwhile(loom_gpt_architecture architecture) {
    const std::vector<Outcome> &sets = plans_of_all_sets(architecture);
    std::vector<uint32_t> kept;
    for (size_t values = 0; values < sets.size(); values++) {
        const Outcome &x = sets[values];
        const bool loses = std::any_of(sets.begin(), sets.end(), [&](const Outcome &y) {
            return y.kept <= x.kept && y.seconds <= x.seconds && (y.kept < x.kept || y.seconds < x.seconds);
        });
        if (!loses) kept.push_back((uint32_t)values);
    }
    return kept;
}

TEST(Choice, OfThreeAndFourLayersIsTheBestOfAllMixtures) {
    for (int a = 0; a < LOOM_GPT_ARCHITECTURES; a++) {
        const std::vector<uint32_t> sets = worthwhile((loom_gpt_architecture)a);
        ASSERT_GT(sets.size(), 5u);
        const Training three(3, (loom_gpt_architecture)a), four(4, (loom_gpt_architecture)a);
        std::vector<Outcome> of_three = plans_of_named(three), of_four = plans_of_named(four);
        for (size_t i = 0; i < sets.size(); i++)
            for (size_t j = 0; j < sets.size(); j++) {
                add_plan(&of_three, three, {sets[i], sets[j]});
                for (size_t k = j; k < sets.size() && i <= j && full(); k++)
                    add_plan(&of_four, four, {sets[i], sets[j], sets[k]});
            }
        expect_the_best_of(three, of_three, 60);
        if (full()) expect_the_best_of(four, of_four, 100);
    }
}

/* Between two named policies the memory that the slower one leaves is of use. */
TEST(Choice, OfManyLayersIsNotSlowerThanAnyNamedPolicyThatFits) {
    for (const int64_t layers : {1, 5, 12, 48}) {
        const Training training(layers);
        const std::vector<Outcome> plans = plans_of_named(training);
        expect_the_best_of(training, plans, 12);
        if (layers < 5) continue;
        const Outcome &norm = plans[LOOM_RECOMPUTE_NORM], &act = plans[LOOM_RECOMPUTE_ACT];
        ASSERT_LT(norm.bytes, act.bytes);
        EXPECT_LT(training.seconds(training.choose((norm.bytes + act.bytes) / 2)), norm.seconds) << layers;
    }
}

TEST(Choice, KeepsTheNameOfAPolicyThatNoSetBeats) {
    for (const int64_t layers : {1, 2, 9}) {
        const Training training(layers);
        const size_t all = training.plan({LOOM_RECOMPUTE_NONE}).arena.used;
        EXPECT_EQ(name_of(training.choose(all).recompute), "none");
        EXPECT_EQ(name_of(training.choose(2 * all).recompute), "none");
    }
}

/* Where a policy is faster than one that keeps more, it is taken though more would fit. */
TEST(Choice, GoesByTimeAlone) {
    Training training(9);
    for (int i = 0; i < training.cost.n; i++) {
        const int64_t *key = training.cost.work[i].key;
        const bool reads_inputs = key[LOOM_COST_KEY - 1] != 0;
        if (std::string((const char *)key, sizeof *key) == "layernor" && key[LOOM_COST_KEY - 2] == LOOM_STEP_FORWARD &&
            !reads_inputs)
            training.cost.work[i].amount = -1;
    }
    const loom_plan none = training.plan({LOOM_RECOMPUTE_NONE}), norm = training.plan({LOOM_RECOMPUTE_NORM});
    ASSERT_LT(training.seconds(norm), training.seconds(none));
    EXPECT_LE(training.seconds(training.choose(none.arena.used)), training.seconds(norm));
}

TEST(Choice, SaysWhatWouldFitWhereNothingDoes) {
    const Training training(9);
    size_t least = SIZE_MAX;
    for (const Outcome &o : plans_of_named(training)) least = std::min(least, o.bytes);
    loom_plan plan;
    refusal(
        [&](loom_error *error) {
            return loom_plan_choose(&plan, &training.config, &training.setup, training.device.get(), 8, least - 1,
                                    &training.cost, error);
        },
        {"--memory", "MiB are needed", "would fit: "});
}

/* ------------------------------------------------------------------------------------------------------- what sets are */

TEST(Sets, AreForTheLayersAndTheValuesThatThereAre) {
    const Training training(3);
    const auto create = [&](const char *name) {
        return [&training, name](loom_error *error) {
            loom_plan plan;
            loom_gpt_setup with = training.setup;
            return loom_recompute_parse(name, &with.recompute, error) &&
                   loom_plan_make(&plan, &training.config, &with, training.device.get(), 8, error);
        };
    };
    require(create("sets:1f*2,0*1"));
    refusal(create("sets:1f*2"), {"--recompute", "sets:1f*2 is for 2 blocks", "this model has 3"});
    refusal(create("sets:1f*2,0*2"), {"is for 4 blocks"});
    refusal(create("sets:fffff*3"), {"--recompute", "backward reads 12 values", "at most fff"});
}

/* A set has the memory and the operations of the policy that keeps the same. */
TEST(Sets, ComeToThePoliciesThatKeepTheSame) {
    const Training training(4);
    loom_tape tape;
    loom_value saved[LOOM_SET_MOST_VALUES];
    require([&](loom_error *error) { return loom_tape_create(&tape, &training.config, error); });
    const int n = loom_tape_saved_values(&tape, 0, saved);
    std::vector<loom_keep> keep((size_t)tape.n_values);
    for (const loom_recompute &recompute : training.named()) {
        if (recompute.kind >= LOOM_RECOMPUTE_EVERY) continue;
        loom_tape_keep(&tape, &recompute, keep.data());
        loom_recompute sets = {LOOM_RECOMPUTE_SETS};
        sets.n_sets = 1;
        sets.set[0].blocks = 4;
        for (int i = 0; i < n; i++) sets.set[0].values |= (uint32_t)(keep[(size_t)saved[i]] == LOOM_KEEP_ALWAYS) << i;
        std::vector<loom_keep> by_set((size_t)tape.n_values);
        loom_tape_keep(&tape, &sets, by_set.data());
        EXPECT_TRUE(keep == by_set) << name_of(recompute) << " is " << name_of(sets);
        EXPECT_EQ(training.plan(sets).arena.used, training.plan(recompute).arena.used) << name_of(recompute);
        EXPECT_EQ(training.seconds(training.plan(sets)), training.seconds(training.plan(recompute)));
    }
    loom_tape_destroy(&tape);
}

} // namespace
