/* Training: schedules and AdamW, single steps, whole runs in their directories, and resuming them. */
#include "support_train.h"

extern "C" {
#include "engine/options.h"
#include "optim/decay.h"
}

#include <cfloat>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

namespace {

using namespace support;

/* -------------------------------------------------------------------------------------------------------- schedules */

void expect_schedule(loom_schedule schedule, const std::vector<std::pair<int64_t, double>> &expected) {
    for (const auto &[step, rate] : expected)
        EXPECT_NEAR(loom_schedule_at(&schedule, step), rate, FLT_EPSILON * rate) << "step " << step;
}

/* 4 steps of warm-up, then 10 from 1 to 0.1: at step 4 + i, i/9 of the way. */
TEST(Schedule, CosineFallsAlongHalfAPeriod) {
    expect_schedule({LOOM_SCHEDULE_COSINE, 1.0f, 0.1f, 4, 14}, {{0, 0.25},
                                                                {1, 0.5},
                                                                {3, 1},
                                                                {4, 1},
                                                                {7, 0.1f + 0.9 * 0.75},  /* cos 60 degrees is 1/2 */
                                                                {10, 0.1f + 0.9 * 0.25}, /* cos 120 degrees is -1/2 */
                                                                {13, 0.1f}});
}

TEST(Schedule, LinearFallsAlongALine) {
    expect_schedule({LOOM_SCHEDULE_LINEAR, 1.0f, 0.25f, 4, 14},
                    {{0, 0.25}, {3, 1}, {4, 1}, {7, 0.75}, {10, 0.5}, {13, 0.25}});
}

TEST(Schedule, WsdStaysUntilTheLastFifth) {
    expect_schedule({LOOM_SCHEDULE_WSD, 2.0f, 1.0f, 0, 101},
                    {{0, 2}, {1, 2}, {80, 2}, {85, 1.75}, {90, 1.5}, {99, 1.05}, {100, 1}});
}

TEST(Schedule, ConstantStays) {
    expect_schedule({LOOM_SCHEDULE_CONSTANT, 0.5f, 0.1f, 2, 10}, {{0, 0.25}, {1, 0.5}, {2, 0.5}, {9, 0.5}, {100, 0.5}});
}

TEST(Schedule, BeyondItsEndTheLastRateStays) {
    for (const loom_schedule_kind kind : {LOOM_SCHEDULE_COSINE, LOOM_SCHEDULE_LINEAR, LOOM_SCHEDULE_WSD})
        expect_schedule({kind, 1.0f, 0.25f, 3, 20}, {{19, 0.25}, {20, 0.25}, {1000, 0.25}});
}

TEST(Schedule, ASingleStepHasTheFullRate) {
    for (const loom_schedule_kind kind : {LOOM_SCHEDULE_COSINE, LOOM_SCHEDULE_LINEAR, LOOM_SCHEDULE_WSD})
        expect_schedule({kind, 1.0f, 0.25f, 2, 3}, {{2, 1}});
}

/* The schedule never rises after its warm-up and stays between its two rates. */
TEST(Schedule, FallsSteadily) {
    for (const loom_schedule_kind kind :
         {LOOM_SCHEDULE_COSINE, LOOM_SCHEDULE_LINEAR, LOOM_SCHEDULE_WSD, LOOM_SCHEDULE_CONSTANT}) {
        const loom_schedule schedule = {kind, 3e-4f, 3e-5f, 7, 1000};
        for (int64_t step = 7; step < 1000; step++) {
            EXPECT_LE(loom_schedule_at(&schedule, step), loom_schedule_at(&schedule, step - 1)) << kind << " " << step;
            EXPECT_GE(loom_schedule_at(&schedule, step), 3e-5f) << kind << " " << step;
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- optimizer */

const loom_gpt_config small_shape = gpt_shape(1, 2, 16, 16, 40);

ModelOptions on(const std::string &device, int threads = 1) {
    ModelOptions options;
    options.device = device;
    options.threads = threads;
    return options;
}

loom_scalars_in adamw_inputs() {
    loom_scalars_in in = {};
    in.learning_rate = 3e-3f;
    in.beta1 = 0.9f;
    in.beta2 = 0.95f;
    in.epsilon = 1e-8f;
    in.weight_decay = 0.1f;
    in.clip_norm = 1;
    in.loss_gradient = 0.25f;
    return in;
}

/* Values in the tensors and zeros in the gaps, as gradients are. */
std::vector<double> random_in_layout(const loom_layout &layout, double deviation, uint32_t seed) {
    std::vector<double> all((size_t)layout.elements, 0.0);
    for (int i = 0; i < layout.n_parameters; i++) {
        const loom_parameter &p = layout.parameter[i];
        std::vector<float> values((size_t)(p.rows * p.columns));
        loom_random_normal(values.data(), (int64_t)values.size(), seed, LOOM_RANDOM_TEST, (uint32_t)i, 0);
        for (size_t k = 0; k < values.size(); k++)
            all[(size_t)p.offset + k] = (double)(float)(deviation * (double)values[k]);
    }
    return all;
}

void set_step_losses(Model &model, const std::vector<double> &losses) {
    model.write(model.optimizer.losses, model.device()->statistics, 0, losses);
}

bool is_matrix(const std::string &name) {
    return name.find("ln_") == std::string::npos && name.find(".weight") != std::string::npos;
}

double norm_of(const std::vector<double> &values) {
    double squares = 0;
    for (const double x : values) squares += x * x;
    return std::sqrt(squares);
}

class OnDevice : public testing::TestWithParam<const char *> {};

std::string device_name(const testing::TestParamInfo<const char *> &device) {
    return device.param;
}

INSTANTIATE_TEST_SUITE_P(Devices, OnDevice, testing::Values("cpu", "oracle"), device_name);

/* Of a bucket of any number of tensors, whole or cut into shards that cut tensors: the ops that update it follow one
 * another, and each is told of all decayed elements among its own. */
TEST(Decay, IsOfTheMatricesOfABucketHoweverItIsCut) {
    for (const int matrices : {0, 1, (int)LOOM_MOST_RANGES, LOOM_MOST_RANGES + 1, 30}) {
        loom_layout layout = {};
        std::vector<loom_parameter> parameters(2); /* a matrix of the bucket before, and a vector */
        parameters[0].padded_rows = 8, parameters[0].columns = 32, parameters[0].decay = true;
        parameters[1].padded_rows = 1, parameters[1].columns = 100, parameters[1].bucket = 1;
        parameters[1].offset = 256;
        int64_t next = 384;
        for (int i = 0; i < matrices; i++) {
            loom_parameter p = {};
            p.padded_rows = 1 + i % 5, p.columns = 90 + i, p.decay = true, p.bucket = 1, p.offset = next;
            parameters.push_back(p);
            next = (next + p.padded_rows * p.columns + 127) / 128 * 128;
        }
        loom_bucket buckets[2] = {{0, 256, 1}, {256, (next - 256 + 1023) / 1024 * 1024, 1}};
        layout.parameter = parameters.data(), layout.n_parameters = (int)parameters.size();
        layout.bucket = buckets, layout.n_buckets = 2;
        std::vector<bool> expected((size_t)buckets[1].elements);
        for (const loom_parameter &p : parameters)
            for (int64_t k = 0; p.bucket == 1 && p.decay && k < p.padded_rows * p.columns; k++)
                expected[(size_t)(p.offset - 256 + k)] = true;
        for (const int64_t shards : {1, 2, 8}) {
            const int64_t share = buckets[1].elements / shards;
            std::vector<bool> found(expected.size());
            for (int64_t s = 0; s < shards; s++)
                for (int64_t first = s * share, last; first < (s + 1) * share; first = last) {
                    loom_ranges decayed;
                    last = loom_decayed_ranges(&layout, 1, {first, (s + 1) * share}, &decayed);
                    ASSERT_TRUE(last > first && last <= (s + 1) * share);
                    ASSERT_TRUE(last == (s + 1) * share || decayed.n == LOOM_MOST_RANGES);
                    for (int k = 0; k < decayed.n; k++)
                        std::fill(found.begin() + first + decayed.at[k].first,
                                  found.begin() + first + decayed.at[k].last, true);
                }
            EXPECT_EQ(found, expected) << matrices << " matrices in " << shards << " shards";
        }
    }
}

/* AdamW as its paper writes it, in double, beside the optimizer over several steps: rates that change, norms above and
 * below the clip. The factor, corrections and rates are fp32 numbers of the step's scalars; those are checked too.
 *
 * With u the rounding unit, the first moment is a sum of terms that each were rounded at most 3 times per step and once
 * when the gradient was scaled: it errs by (3t + 1) u of their absolute sum A; the second moment has positive terms and
 * errs by (3t + 3) u of itself. The update divides them (half of the second's error, for the root) and adds 6 roundings
 * of its own, so it errs by (5t + 10) u lr A / bc1 / (sqrt(v / bc2) + eps); decay and subtraction add 3 u |p|. */
TEST_P(OnDevice, AdamWAgreesWithItsPaper) {
    Model model(small_shape, 2, 16, on(GetParam()));
    model.scatter_parameters(1);
    const double u = model.unit();
    std::vector<double> p = model.parameters(), m(p.size(), 0.0), v = m, A = m, allowed = m;
    loom_scalars_in in = adamw_inputs();
    bool clipped = false, unclipped = false;
    for (int t = 1; t <= 6; t++) {
        const std::vector<double> g = random_in_layout(model.layout(), t % 2 ? 0.1 : 0.001, 10 + (uint32_t)t);
        in.learning_rate = 3e-3f / (float)t;
        model.set_inputs(in);
        model.set_gradients(g);
        set_step_losses(model, {3.5, 4.25});
        loom_optimizer_update(&model.optimizer);

        const loom_scalars scalars = model.scalars();
        const loom_scalars_out &out = scalars.out;
        const double norm = norm_of(g), factor = norm > 1 ? 1 / norm : 1;
        (norm > 1 ? clipped : unclipped) = true;
        EXPECT_NEAR(out.loss, (3.5 + 4.25) * 0.25, FLT_EPSILON * 2);
        /* A block's chunks of 2048 squares are added one after the other at worst. */
        EXPECT_NEAR(out.gradient_norm, norm, norm * (FLT_EPSILON + std::sqrt(2048.0) * u));
        EXPECT_NEAR(out.gradient_factor, factor, factor * (FLT_EPSILON + std::sqrt(2048.0) * u));
        EXPECT_NEAR(out.bias_correction1, 1 - std::pow((double)0.9f, t), FLT_EPSILON);
        EXPECT_NEAR(out.bias_correction2, 1 - std::pow((double)0.95f, t), FLT_EPSILON);
        EXPECT_EQ(out.skip, 0);
        EXPECT_EQ(scalars.state.updates, t);

        const double lr = (double)in.learning_rate, b1 = (double)in.beta1, b2 = (double)in.beta2;
        for (int i = 0; i < model.layout().n_parameters; i++) {
            const loom_parameter &row = model.layout().parameter[i];
            const double decay = is_matrix(row.name) ? (double)in.weight_decay : 0;
            for (size_t k = (size_t)row.offset; k < (size_t)(row.offset + row.padded_rows * row.columns); k++) {
                const double scaled = g[k] * (double)out.gradient_factor;
                m[k] = b1 * m[k] + (1 - b1) * scaled;
                v[k] = b2 * v[k] + (1 - b2) * scaled * scaled;
                A[k] = b1 * A[k] + (1 - b1) * std::fabs(scaled);
                const double m_hat = m[k] / (double)out.bias_correction1, v_hat = v[k] / (double)out.bias_correction2;
                const double denominator = std::sqrt(v_hat) + (double)in.epsilon;
                p[k] -= lr * (m_hat / denominator + decay * p[k]);
                allowed[k] += u * (3 * std::fabs(p[k]) +
                                   (5 * t + 10) * lr * A[k] / (double)out.bias_correction1 / denominator);
            }
        }
        const std::vector<double> found = model.parameters(), m_found = model.moments(1), v_found = model.moments(2);
        for (size_t k = 0; k < p.size(); k++) {
            ASSERT_NEAR(found[k], p[k], allowed[k]) << "step " << t << ", element " << k;
            ASSERT_NEAR(m_found[k], m[k], (3 * t + 1) * u * A[k]) << "step " << t << ", element " << k;
            ASSERT_NEAR(v_found[k], v[k], (3 * t + 3) * u * v[k]) << "step " << t << ", element " << k;
        }
    }
    EXPECT_TRUE(clipped && unclipped);
}

/* Decay alone: without gradients matrices shrink by lr * decay of themselves, biases and layernorms keep every bit. */
TEST_P(OnDevice, OnlyMatricesDecay) {
    Model model(small_shape, 2, 16, on(GetParam()));
    model.scatter_parameters(1);
    const std::vector<double> before = model.parameters();
    loom_scalars_in in = adamw_inputs();
    in.learning_rate = 0.5f;
    in.weight_decay = 0.5f;
    model.set_inputs(in);
    model.set_gradients(std::vector<double>(before.size(), 0.0));
    set_step_losses(model, {1, 1});
    loom_optimizer_update(&model.optimizer);
    const std::vector<double> after = model.parameters();
    int matrices = 0;
    for (int i = 0; i < model.layout().n_parameters; i++) {
        const loom_parameter &p = model.layout().parameter[i];
        std::vector<double> expected = tensor(before, p);
        for (double &x : expected) x *= is_matrix(p.name) ? 0.75 : 1;
        matrices += is_matrix(p.name);
        EXPECT_LE(relative_error(tensor(after, p), expected), is_matrix(p.name) ? model.unit() : 0) << p.name;
    }
    EXPECT_EQ(matrices, 2 + 4);
}

TEST_P(OnDevice, ClippingChangesLengthNotDirection) {
    const std::vector<std::pair<float, double>> rows = {{0, 1}, {0.5f, 0.125}, {3.9f, 0.975}, {4, 1}, {5, 1}};
    for (const auto &[clip, factor] : rows) {
        Model model(small_shape, 2, 16, on(GetParam()));
        std::vector<double> gradients((size_t)model.layout().elements, 0.0);
        for (int i = 0; i < 16; i++) gradients[(size_t)i] = i % 2 ? 1 : -1; /* of norm 4 */
        loom_scalars_in in = adamw_inputs();
        in.clip_norm = clip;
        model.set_inputs(in);
        model.set_gradients(gradients);
        set_step_losses(model, {1, 1});
        loom_optimizer_update(&model.optimizer);
        EXPECT_EQ(model.scalars().out.gradient_norm, 4);
        EXPECT_NEAR(model.scalars().out.gradient_factor, factor, FLT_EPSILON * factor) << "clip " << clip;
        EXPECT_EQ(model.gradients(), gradients) << "the factor is applied where gradients are used";
    }
}

/* Steps of a training that goes on calmly: losses about 3, norms about 1. */
class Calm {
  public:
    explicit Calm(const char *device, float spike_z) : model(small_shape, 2, 16, on(device)) {
        loom_scalars_in in = adamw_inputs();
        in.loss_gradient = 0.5f;
        in.spike_z = spike_z;
        model.scatter_parameters(1);
        model.set_inputs(in);
        gradients = random_in_layout(model.layout(), 1, 2);
        const double norm = norm_of(gradients);
        for (double &g : gradients) g /= norm;
    }

    /* One step with this loss and gradients of this norm; whether it was skipped. */
    bool step(double loss, double norm) {
        std::vector<double> g = gradients;
        for (double &x : g) x *= norm;
        model.set_gradients(g);
        set_step_losses(model, {loss, loss});
        loom_optimizer_update(&model.optimizer);
        return model.scalars().out.skip != 0;
    }
    bool calm_step() {
        n++;
        return step(3 + 0.1 * std::sin((double)n), 1 + 0.05 * std::cos((double)n));
    }
    std::vector<std::vector<double>> state() const {
        return {model.parameters(), model.moments(1), model.moments(2)};
    }

    Model model;
    std::vector<double> gradients;
    int n = 0;
};

TEST_P(OnDevice, ASpikeIsSkippedAndLeavesNoTrace) {
    for (const bool in_loss : {true, false}) {
        Calm run(GetParam(), 5);
        for (int i = 0; i < 40; i++) ASSERT_FALSE(run.calm_step()) << "step " << i;
        const auto before = run.state();
        EXPECT_TRUE(in_loss ? run.step(4.5, 1) : run.step(3, 1.8)) << "some 15 deviations above the mean";
        EXPECT_EQ(run.state(), before);
        loom_scalars_state state = run.model.scalars().state;
        EXPECT_EQ(state.updates, 40);
        EXPECT_EQ(state.skipped, 1);
        EXPECT_EQ(state.observed, 41) << "a spike counts among what is usual: a lasting change passes";

        EXPECT_FALSE(in_loss ? run.step(2, 1) : run.step(3, 0.3)) << "far below is no spike";
        EXPECT_NE(run.state(), before);
        state = run.model.scalars().state;
        EXPECT_EQ(state.updates, 41);
        EXPECT_NEAR(run.model.scalars().out.bias_correction1, 1 - std::pow((double)0.9f, 41), FLT_EPSILON);
    }
}

TEST_P(OnDevice, SpikesAreJudgedOnceEnoughWasSeenAndOnlyIfAskedFor) {
    Calm early(GetParam(), 5), never(GetParam(), 0);
    for (int i = 0; i < 31; i++) ASSERT_FALSE(early.calm_step());
    EXPECT_FALSE(early.step(100, 100)) << "32 steps must have been seen";
    for (int i = 0; i < 40; i++) ASSERT_FALSE(never.calm_step());
    EXPECT_FALSE(never.step(100, 100)) << "nobody asked for it";
}

/* The running statistics: plain means at first, exponential ones of the last 128 steps or so later. */
TEST_P(OnDevice, StatisticsAreOfTheLastSteps) {
    Calm run(GetParam(), 0);
    double mean = 0, square = 0;
    for (int i = 1; i <= 150; i++) {
        const double loss = i % 3 + 0.5; /* exact in fp32 */
        run.step(loss, 1);
        mean += (loss - mean) / std::min(i, 128);
        square += (loss * loss - square) / std::min(i, 128);
    }
    const loom_scalars_state state = run.model.scalars().state;
    EXPECT_EQ(state.observed, 150);
    EXPECT_NEAR(state.loss_mean, mean, 1e-12);
    EXPECT_NEAR(state.loss_square, square, 1e-12);
    EXPECT_NEAR(state.norm_mean, 1, 1e-6);
}

TEST_P(OnDevice, WhatIsNotFiniteIsAlwaysSkipped) {
    Calm run(GetParam(), 0);
    for (int i = 0; i < 3; i++) run.calm_step();
    const auto before = run.state();
    const loom_scalars_state seen = run.model.scalars().state;
    for (const double bad : {(double)NAN, (double)INFINITY, -(double)INFINITY}) {
        EXPECT_TRUE(run.step(bad, 1)) << "a loss of " << bad;
        EXPECT_TRUE(run.step(3, bad)) << "gradients of " << bad;
    }
    EXPECT_EQ(run.state(), before);
    loom_scalars_state expected = seen;
    expected.skipped += 6;
    const loom_scalars_state state = run.model.scalars().state;
    EXPECT_EQ(memcmp(&state, &expected, sizeof state), 0) << "skips are counted, nothing else moves";
    EXPECT_FALSE(run.calm_step());
    EXPECT_NE(run.state(), before);
}

/* The whole of it in one: a small model learns a batch by heart. */
TEST(Training, OneBatchIsLearntByHeart) {
    const int64_t B = 4, T = 16;
    Model model(gpt_shape(2, 2, 32, 16, 64), B, T, on("cpu"));
    ASSERT_TRUE(works([&](loom_error *error) { return loom_gpt_initialise(model.gpt(), 1, error); }));
    std::vector<int32_t> tokens = random_ids(B * T, 64, 1);
    const std::vector<int32_t> targets = random_ids(B * T, 64, 2);
    for (int64_t b = 0; b < B; b++) tokens[(size_t)(b * T)] = (int32_t)b; /* first tokens tell sequences apart */
    loom_scalars_in in = adamw_inputs();
    in.learning_rate = 1e-2f;
    in.weight_decay = 0;
    model.set_inputs(in);
    float first = 0, last = 0;
    for (int step = 0; step < 200; step++) {
        model.run(tokens, targets, 1.0 / (double)(B * T));
        loom_optimizer_take_losses(&model.optimizer, 0, B);
        loom_optimizer_update(&model.optimizer);
        last = model.scalars().out.loss;
        if (step == 0) first = last;
    }
    EXPECT_NEAR(first, std::log(64.0), 0.1) << "a uniform guess";
    EXPECT_LT(last, 0.01f);
}

/* A place with a text, and the options of a small run over it. */
class Train : public testing::Test {
  protected:
    void SetUp() override {
        write_file(directory.at("text"), some_text(4000, 1));
    }

    std::string at(const std::string &name) const {
        return directory.at(name);
    }

    Options::Pairs small() const {
        return {{"data", at("text")}, {"n-layer", "1"},  {"n-head", "2"},        {"n-embd", "16"},
                {"block-size", "16"}, {"batch", "4"},    {"micro-batch", "2"},   {"steps", "40"},
                {"lr", "1e-2"},       {"threads", "1"},  {"warmup", "4"},        {"val-every", "10"},
                {"val-tokens", "96"}, {"device", "cpu"}, {"sample-every", "20"}, {"sample-tokens", "20"},
                {"seed", "7"},        {"keep", "0"},     {"weight-decay", "0.1"}};
    }
    Options::Pairs run(const std::string &out, const Options::Pairs &changes = {}) const {
        return small() + Options::Pairs{{"out", at(out)}, {"checkpoint-every", "10"}} + changes;
    }

    static testing::AssertionResult trains(const Options::Pairs &pairs, const loom_train_observer *observer = NULL) {
        const Options options(pairs);
        return works([&](loom_error *error) { return loom_train(options.get(), NULL, observer, error); });
    }
    static std::string refused(const Options::Pairs &pairs, std::initializer_list<std::string> words) {
        const Options options(pairs);
        return refusal([&](loom_error *error) { return loom_train(options.get(), NULL, NULL, error); }, words);
    }

    TemporaryDirectory directory;
};

/* ------------------------------------------------------------------------------------------------------ the trainer */

TEST_F(Train, TheSameSeedGivesTheSameBitsWithAnyNumberOfThreads) {
    const auto bits = [&](const Options::Pairs &changes) {
        const Options options(small() + changes);
        return bits_of_steps(open_trainer(options), 6);
    };
    const std::string first = bits({});
    EXPECT_TRUE(bits({}) == first) << "the same again";
    EXPECT_TRUE(bits({{"threads", "2"}}) == first);
    EXPECT_TRUE(bits({{"threads", "3"}}) == first);
    EXPECT_FALSE(bits({{"seed", "8"}}) == first);
    EXPECT_FALSE(bits({{"lr", "1.1e-2"}}) == first);
}

TEST_F(Train, ValidatingAndSamplingBetweenStepsChangesNothing) {
    const Options options(small());
    const std::string plain = bits_of_steps(open_trainer(options), 6);
    const Trainer trainer = open_trainer(options);
    std::string losses, last;
    for (int i = 0; i < 6; i++) {
        last = bits_of_steps(trainer, 1);
        losses += last.substr(0, 2 * sizeof(float));
        loom_validation result;
        const auto drop = [](void *, int32_t) { return true; };
        require([&](loom_error *error) {
            return loom_trainer_validate(trainer.get(), 0, &result, error) &&
                   loom_trainer_sample(trainer.get(), 30, drop, NULL, NULL, error);
        });
    }
    EXPECT_TRUE(losses + last.substr(2 * sizeof(float)) == plain);
}

/* How a batch is cut into micro-batches changes the order of additions only. On the oracle what is left is the rounding
 * of the reported loss to fp32. In fp32 gradients differ by d = 2 u sqrt(S) of their norm, and with an epsilon as large
 * as the learning rate AdamW moves no parameter by more than its gradient: after k steps of clipped gradients (norm 1)
 * the parameters are k d apart and the losses, whose slope is some norm below 8, k 8 d. */
TEST_F(Train, TheLossCurveDoesNotDependOnTheMicroBatch) {
    for (const char *device : {"oracle", "cpu"}) {
        const bool exact = std::string(device) == "oracle";
        std::vector<float> reference;
        for (const char *micro : {"4", "2", "1"}) {
            const Options options(
                small() + Options::Pairs{{"device", device}, {"micro-batch", micro}, {"eps", "1e-2"}, {"warmup", "0"}});
            const Trainer trainer = open_trainer(options);
            const double path = whole_path(*loom_gpt_get_config(trainer->gpt), 4, 16);
            std::vector<float> losses;
            for (int i = 0; i < 10; i++) {
                const loom_step_report report = step(trainer);
                EXPECT_LT(report.grad_norm, 8);
                losses.push_back(report.loss);
            }
            if (reference.empty()) reference = losses;
            for (size_t k = 0; k < losses.size(); k++) {
                const double rounding = exact ? FLT_EPSILON : 2 * 0x1p-24 * std::sqrt(path);
                const double allowed = (double)reference[k] * rounding + (exact ? 0 : 8 * (double)k * rounding);
                EXPECT_NEAR(losses[k], reference[k], allowed) << device << ", micro-batch " << micro << ", step " << k;
            }
        }
        EXPECT_LT(reference.back(), reference.front() - 0.5f) << "it learns";
    }
}

TEST_F(Train, StepsReportWhatTheyDid) {
    const Options options(small() + Options::Pairs{{"lr", "1e-3"}, {"min-lr", "5e-4"}, {"schedule", "linear"}});
    const Trainer trainer = open_trainer(options);
    EXPECT_EQ(loom_trainer_steps_planned(trainer.get()), 40);
    for (int64_t i = 1; i <= 6; i++) {
        EXPECT_EQ(loom_trainer_steps_done(trainer.get()), i - 1);
        const loom_step_report report = step(trainer);
        EXPECT_EQ(report.step, i);
        EXPECT_EQ(report.tokens, i * 4 * 16);
        const loom_schedule schedule = {LOOM_SCHEDULE_LINEAR, 1e-3f, 5e-4f, 4, 40};
        EXPECT_EQ(report.lr, loom_schedule_at(&schedule, i - 1));
        EXPECT_GT(report.loss, 0);
        EXPECT_GT(report.grad_norm, 0);
        EXPECT_FALSE(report.skipped);
        EXPECT_GT(report.ms, 0);
        EXPECT_NEAR(report.tokens_per_s, 64 / (1e-3 * report.ms), 1e-6 * report.tokens_per_s);
    }
}

/* A step's mean is over its targets: the last window of an epoch has fewer. 120 bytes and the end-of-text give 120
 * pairs, 7 windows of 16 and one of 8; every batch of 4 that has it counts 56. */
TEST_F(Train, TokensCountTargetsNotPlaces) {
    write_file(at("short"), some_text(120, 3));
    const Options options(
        small() + Options::Pairs{{"data", at("short")}, {"val-fraction", "0"}, {"device", "oracle"}, {"lr", "0"}});
    const Trainer trainer = open_trainer(options);
    int64_t before = 0;
    std::multiset<int64_t> counts;
    for (int i = 0; i < 4; i++) {
        const loom_step_report report = step(trainer);
        counts.insert(report.tokens - before);
        before = report.tokens;
        EXPECT_NEAR(report.loss, std::log(257.0), 0.1) << "not scaled by places without a target";
    }
    EXPECT_EQ(counts, (std::multiset<int64_t>{56, 56, 64, 64})) << "two epochs of 120 pairs";
}

TEST_F(Train, AStepThatIsNotFiniteIsSkippedAndTheNextGoesOn) {
    const Options options(small());
    const Trainer trainer = open_trainer(options);
    bits_of_steps(trainer, 3);
    const std::string before = bits_of_steps(trainer, 0);
    float *weight = (float *)loom_gpt_get_parameters(trainer->gpt) +
                    loom_gpt_get_layout(trainer->gpt)->bucket[1].offset;
    const float kept = *weight;
    *weight = NAN;
    const loom_step_report report = step(trainer);
    EXPECT_TRUE(report.skipped);
    EXPECT_TRUE(std::isnan(report.loss));
    EXPECT_EQ(report.step, 4);
    *weight = kept;
    EXPECT_TRUE(bits_of_steps(trainer, 0) == before) << "parameters and moments are as they were";
    EXPECT_EQ(trainer->state.scalars.updates, 3);
    EXPECT_EQ(trainer->state.scalars.skipped, 1);
    EXPECT_FALSE(step(trainer).skipped);
    EXPECT_FALSE(bits_of_steps(trainer, 0) == before);
}

/* Every pair of the validation split once, beside the same sum by a model of its own, window by window; and five of its
 * windows, evenly spaced. They do not fill the last micro-batch, nor the split's pairs the last window. The bits are
 * the same for every micro-batch. */
TEST_F(Train, ValidationIsOfTokensWhateverTheMicroBatch) {
    std::string bits[2];
    for (const char *micro : {"4", "1"}) {
        const Options options(small() +
                              Options::Pairs{{"device", "oracle"}, {"micro-batch", micro}, {"val-fraction", "0.09"}});
        const Trainer trainer = open_trainer(options);
        for (int i = 0; i < 3; i++) step(trainer);
        ASSERT_TRUE(loom_trainer_has_validation(trainer.get()));

        const int64_t T = 16, tokens = loom_dataset_tokens(loom_trainer_data(trainer.get()));
        ASSERT_EQ(tokens, 4001);
        const int64_t held_out = 360, first = tokens - held_out; /* 0.09 of them, rounded */
        const int64_t windows = (held_out - 1 + T - 1) / T;
        ASSERT_NE(windows % 4, 0);
        ASSERT_NE((held_out - 1) % T, 0);
        std::vector<int32_t> ids((size_t)held_out);
        require([&](loom_error *error) {
            return loom_dataset_read(loom_trainer_data(trainer.get()), first, held_out, 257, ids.data(), error);
        });
        Model model(*loom_gpt_get_config(trainer->gpt), 1, T, on("oracle"));
        const double *parameters = (const double *)loom_gpt_get_parameters(trainer->gpt);
        model.set_parameters({parameters, parameters + model.layout().elements});
        std::vector<double> losses;
        int64_t pairs = 0;
        for (int64_t w = 0; w < windows; w++) {
            std::vector<int32_t> inputs((size_t)T, 0), targets((size_t)T, -1);
            for (int64_t t = 0; t < T && w * T + t + 1 < held_out; t++) {
                inputs[(size_t)t] = ids[(size_t)(w * T + t)];
                targets[(size_t)t] = ids[(size_t)(w * T + t + 1)];
                pairs++;
            }
            loom_gpt_set_batch(model.gpt(), inputs.data(), targets.data(), LOOM_HOST_TO_DEVICE);
            loom_gpt_evaluate(model.gpt());
            const std::vector<double> rows = model.losses();
            losses.push_back(std::accumulate(rows.begin(), rows.end(), 0.0));
        }
        EXPECT_EQ(pairs, held_out - 1);
        const double all = std::accumulate(losses.begin(), losses.end(), 0.0) / (double)pairs;
        double five = 0;
        for (int64_t i = 0; i < 5; i++) five += losses[(size_t)(i * windows / 5)] / (5.0 * T);
        for (const auto &[asked, loss, taken] : {std::tuple{int64_t{0}, all, pairs},
                                                 {pairs, all, pairs},
                                                 {1000000, all, pairs},
                                                 {4 * T + 1, five, 5 * T}}) {
            loom_validation result = {};
            ASSERT_TRUE(works(
                [&, n = asked](loom_error *error) { return loom_trainer_validate(trainer.get(), n, &result, error); }));
            EXPECT_NEAR(result.loss, loss, 1e-12) << asked;
            EXPECT_EQ(result.tokens, taken) << asked;
            EXPECT_EQ(loom_trainer_validation_tokens(trainer.get(), asked), taken) << asked;
            EXPECT_FALSE(result.interrupted);
            bits[*micro == '1'].append((const char *)&result.loss, sizeof result.loss);
        }
    }
    /* Not optimised, one row's loop and that of several have their multiplications and additions fused differently. */
    EXPECT_TRUE(sanitized || bits[0] == bits[1]) << "the micro-batch shows";
}

TEST_F(Train, ValidationTextOfItsOwnLeavesAllOfTheDataForTraining) {
    write_file(at("validation"), some_text(100, 9));
    const Options options(small() + Options::Pairs{{"val-data", at("validation")}});
    const Trainer trainer = open_trainer(options);
    EXPECT_EQ(trainer->training.tokens, 4001);
    EXPECT_EQ(trainer->validation.tokens, 101);
    const Options none(small() + Options::Pairs{{"val-fraction", "0"}});
    EXPECT_FALSE(loom_trainer_has_validation(open_trainer(none).get()));
}

TEST_F(Train, EpochsBecomeSteps) {
    Options::Pairs pairs = small() + Options::Pairs{{"epochs", "2.5"}, {"val-fraction", "0"}};
    pairs.erase("steps");
    pairs.erase("warmup");
    const Options options(pairs);
    const Trainer trainer = open_trainer(options);
    /* 4000 pairs are 250 windows of 16; 2.5 times that in batches of 4 */
    EXPECT_EQ(loom_trainer_steps_planned(trainer.get()), 157);
    EXPECT_EQ(loom_trainer_options(trainer.get())->warmup, loom_train_default_warmup(157));
    EXPECT_EQ(loom_train_default_warmup(157), 7);
    EXPECT_EQ(loom_train_default_warmup(1), 0);
    EXPECT_EQ(loom_train_default_warmup(1000000), 2000);
}

/* 0.07 * 100 is 7.000000000000001 to a double, and is 7. */
TEST_F(Train, EpochsAreTheDecimalsThatAreWritten) {
    write_file(at("hundred"), std::string(1600, 'a')); /* 100 windows of 16 */
    const struct {
        const char *epochs, *batch;
        int64_t steps;
    } rows[] = {{"0.07", "1", 7},     {"0.55", "1", 55},      {"1.1", "1", 110}, {"2.2", "1", 220},
                {"0.071", "1", 8},    {"0.0701", "1", 8},     {"1", "3", 34},    {"0.01", "1", 1},
                {"1e-6", "1", 1},     {"1.000001", "1", 101}, {"3", "100", 3},   {"0.3333333333333333", "1", 34},
                {"1000", "1", 100000}};
    for (const auto &row : rows) {
        Options::Pairs pairs = small() + Options::Pairs{{"data", at("hundred")}, {"epochs", row.epochs},
                                                        {"batch", row.batch},    {"micro-batch", "1"},
                                                        {"val-fraction", "0"},   {"warmup", "0"}};
        pairs.erase("steps");
        const Options options(pairs);
        EXPECT_EQ(loom_trainer_steps_planned(open_trainer(options).get()), row.steps) << row.epochs;
    }
}

/* With the library's own threads products may be summed in other orders, and that is all. */
TEST_F(Train, WithoutDeterminismOnlyRoundingDiffers) {
    const Options fixed(small()), loose(small() + Options::Pairs{{"deterministic", "false"}, {"threads", "2"}});
    const Trainer a = open_trainer(fixed), b = open_trainer(loose);
    const double path = forward_path(*loom_gpt_get_config(a->gpt), 16);
    const float loss = step(a).loss;
    EXPECT_NEAR(step(b).loss, loss, 2 * 0x1p-24 * std::sqrt(path) * (double)loss);
}

/* ----------------------------------------------------------------------------------------------------------- shards */

/* llm.c's token shards: a header of 256 int32, then uint16 ids. */
void write_shard(const std::string &path, const std::vector<int32_t> &ids) {
    std::vector<int32_t> header(256, 0);
    header[0] = 20240520;
    header[1] = 1;
    header[2] = (int32_t)ids.size();
    const std::vector<uint16_t> narrow(ids.begin(), ids.end());
    write_file(path, std::string((const char *)header.data(), 1024) +
                         std::string((const char *)narrow.data(), 2 * narrow.size()));
}

/* A training in double precision by PyTorch, from the weights of the seed, on the batches of the seed: 20 lines of
 * loss, norm and rate that dev/torch/train_parity.py made. Of a larger model the losses in fp32 stayed within 4e-7 of
 * PyTorch's and the norms within 3e-5; bf16 has 2^-9 of each value for its unit. */
TEST_F(Train, FollowsPyTorch) {
    std::vector<int32_t> ids(2000);
    for (int i = 0; i < 2000; i++) ids[(size_t)i] = (i * i + 7 * (i / 3)) % 251;
    write_shard(at("ids.bin"), ids);
    const Options::Pairs pairs = {
        {"data", at("ids.bin")}, {"vocab-size", "257"}, {"n-layer", "2"}, {"n-head", "2"},       {"n-embd", "32"},
        {"block-size", "16"},    {"seq-len", "16"},     {"batch", "4"},   {"val-fraction", "0"}, {"steps", "20"},
        {"lr", "1e-2"},          {"min-lr", "1e-3"},    {"warmup", "1"},  {"beta1", "0.9"},      {"beta2", "0.95"},
        {"weight-decay", "0.1"}, {"clip", "1"},         {"seed", "1"},    {"threads", "2"}};
    const struct {
        const char *device, *dtype, *micro_batch;
        double loss, norm;
    } rows[] = {{"cpu", "fp32", "4", 1e-6, 1e-5},
                {"cpu", "fp32", "2", 1e-6, 1e-5},
                {"definition", "fp32", "4", 1e-6, 1e-5},
                {"cpu", "bf16", "4", 2e-3, 5e-2}};
    for (const auto &row : rows) {
        SCOPED_TRACE(std::string(row.device) + " in " + row.dtype + ", micro-batches of " + row.micro_batch);
        const Options options(
            pairs + Options::Pairs{{"device", row.device}, {"dtype", row.dtype}, {"micro-batch", row.micro_batch}});
        const Trainer trainer = open_trainer(options);
        const std::string here = __FILE__;
        std::istringstream golden(read_file(here.substr(0, here.rfind('/') + 1) + "data/training.txt"));
        std::string heading;
        std::getline(golden, heading);
        int steps = 0;
        for (double loss, norm, rate; golden >> loss >> norm >> rate; steps++) {
            const loom_step_report report = step(trainer);
            EXPECT_NEAR(report.loss, loss, row.loss * loss) << "step " << report.step;
            EXPECT_NEAR(report.grad_norm, norm, row.norm * norm) << "step " << report.step;
            EXPECT_NEAR(report.lr, rate, 2 * FLT_EPSILON * rate) << "step " << report.step;
        }
        EXPECT_EQ(steps, 20);
    }
}

TEST_F(Train, TokenShardsTrainAsTextDoes) {
    write_shard(at("ids.bin"), random_ids(2000, 60, 1));
    const Options::Pairs shard = {
        {"data", at("ids.bin")}, {"vocab-size", "60"}, {"steps", "6"}, {"warmup", "0"}, {"sample-every", "6"}};
    ASSERT_TRUE(trains(run("run", shard)));
    std::istringstream sample(read_file(at("run/samples.txt")));
    std::string heading;
    std::getline(sample, heading);
    EXPECT_EQ(heading, "--- step 6");
    int n = 0;
    for (int id; sample >> id; n++) EXPECT_TRUE(id >= 0 && id < 60) << id;
    EXPECT_EQ(n, 20) << "ids as numbers";
    EXPECT_FALSE(fs::exists(at("run/checkpoints/latest/tokenizer.json"))) << "its tokenizer is not known";
    refused(run("other", shard + Options::Pairs{{"vocab-size", "59"}}), {at("ids.bin"), "59"});
    refused(run("other", shard + Options::Pairs{{"val-data", at("text")}}), {"--val-data", at("text")});
    EXPECT_FALSE(fs::exists(at("other")));
}

/* ----------------------------------------------------------------------------------------------------------- memory */

/* The largest part of the batch that fits is taken where nobody says. */
TEST_F(Train, TheMicroBatchIsWhatFits) {
    const loom_gpt_config shape = gpt_shape(1, 2, 64, 16, 257);
    const Device device = open_device("cpu");
    const auto need = [&](int64_t B) {
        loom_plan plan;
        require(
            [&](loom_error *error) { return loom_plan_make(&plan, &shape, setup_of(B, 16), device.get(), 60, error); });
        return plan.arena.used;
    };
    for (const auto &[memory, expected] :
         std::map<size_t, int64_t>{{need(60), 60}, {need(60) - 1, 30}, {need(13), 12}, {need(2) - 1, 1}}) {
        Options::Pairs pairs = small() +
                               Options::Pairs{{"batch", "60"}, {"n-embd", "64"}, {"memory", std::to_string(memory)}};
        pairs.erase("micro-batch");
        const Options options(pairs);
        const Trainer trainer = open_trainer(options);
        EXPECT_EQ(loom_trainer_options(trainer.get())->micro_batch, expected) << memory;
        EXPECT_EQ(loom_trainer_plan(trainer.get())->arena.used, need(expected));
    }
    Options::Pairs pairs = small() +
                           Options::Pairs{{"batch", "60"}, {"n-embd", "64"}, {"memory", std::to_string(need(1) - 1)}};
    refused(pairs + Options::Pairs{{"out", at("run")}}, {"--memory", "MiB are needed", "parameters"});
    EXPECT_FALSE(fs::exists(at("run")));
}

/* GPT-2 needs gibibytes: said with the sizes, before any of it is asked for. */
TEST_F(Train, TooLittleMemoryIsToldOfBeforeAnythingIsAllocated) {
    rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    Options::Pairs pairs = {{"data", at("text")}, {"out", at("run")},   {"model", "gpt2-medium"}, {"batch", "2"},
                            {"seq-len", "64"},    {"memory", "512MiB"}, {"device", "definition"}};
    refused(pairs, {"--memory", "512 MiB are there", "parameters", "gradients", "moments"});
    getrusage(RUSAGE_SELF, &after);
    EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 * 1024) << "KiB";
    EXPECT_FALSE(fs::exists(at("run")));
}

/* ------------------------------------------------------------------------------------------------------------- runs */

const char *const checkpoint_files[] = {"model.safetensors", "optimizer.safetensors", "training_state.json",
                                        "config.json"};

void expect_same_checkpoint(const std::string &a, const std::string &b) {
    for (const char *name : checkpoint_files)
        EXPECT_TRUE(read_file(a + "/" + name) == read_file(b + "/" + name))
            << a << " and " << b << " differ in " << name;
}

std::vector<std::string> lines_of(const std::string &path) {
    std::vector<std::string> lines;
    std::istringstream text(read_file(path));
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    return lines;
}

/* Metrics without what the clock says: two fields in the middle of each line. */
std::vector<std::string> metrics_of(const std::string &run) {
    std::vector<std::string> lines = lines_of(run + "/metrics.jsonl");
    for (std::string &line : lines) {
        const size_t first = line.find(", \"ms\": "), second = line.find(", \"tokens_per_s\": ");
        if (first == std::string::npos || second == std::string::npos || first > second) {
            ADD_FAILURE() << "no times in " << line;
            continue;
        }
        line.erase(first, line.find_first_of(",}", second + 1) - first);
    }
    return lines;
}

TEST_F(Train, ARunLeavesItsDirectory) {
    ASSERT_TRUE(trains(run("run")));
    const std::vector<std::string> metrics = metrics_of(at("run"));
    ASSERT_EQ(metrics.size(), 40u);
    for (int i = 1; i <= 40; i++) {
        const std::string &line = metrics[(size_t)i - 1];
        int done, tokens, end = 0;
        double loss, lr, norm;
        sscanf(line.c_str(), "{\"step\": %d, \"tokens\": %d, \"loss\": %lf, \"lr\": %lf, \"grad_norm\": %lf%n", &done,
               &tokens, &loss, &lr, &norm, &end);
        ASSERT_GT(end, 0) << line;
        EXPECT_EQ(done, i);
        EXPECT_EQ(tokens, 64 * i);
        EXPECT_TRUE(loss > 0 && loss < 6 && lr > 0 && lr <= 0.0101 && norm > 0) << line;
        const std::string rest = line.substr((size_t)end);
        EXPECT_EQ(rest.rfind(i % 10 ? "}" : ", \"val_loss\": ", 0), 0u) << line;
        EXPECT_EQ(rest.find('}'), rest.size() - 1) << line;
    }
    for (const char *name : {"step-00000010", "step-00000020", "step-00000030", "step-00000040"})
        EXPECT_TRUE(fs::is_directory(at(std::string("run/checkpoints/") + name))) << name;
    EXPECT_EQ(fs::read_symlink(at("run/checkpoints/latest")), "step-00000040");
    const std::string samples = read_file(at("run/samples.txt"));
    EXPECT_EQ(samples.rfind("--- step 20\n", 0), 0u);
    EXPECT_NE(samples.find("\n--- step 40\n"), std::string::npos);

    /* The configuration is the whole of it, resolved: training from it gives the same run. */
    loom_train_options read = loom_train_options_defaults();
    ASSERT_TRUE(works([&](loom_error *error) {
        return loom_train_options_read(&read, at("run/config.ini").c_str(), error) &&
               loom_train_options_set(&read, "out", at("again").c_str(), error) && loom_train(&read, NULL, NULL, error);
    }));
    EXPECT_EQ(read.n_layer, 1);
    EXPECT_EQ(read.vocab_size, 257);
    EXPECT_EQ(read.seq_len, 16);
    loom_train_options_free(&read);
    expect_same_checkpoint(at("run/checkpoints/step-00000040"), at("again/checkpoints/step-00000040"));
    EXPECT_EQ(metrics_of(at("again")), metrics);
}

TEST_F(Train, ARunInTwoSessionsIsTheRunInOne) {
    ASSERT_TRUE(trains(run("whole")));
    ASSERT_TRUE(trains(run("parts", {{"stop-after", "23"}})));
    EXPECT_EQ(fs::read_symlink(at("parts/checkpoints/latest")), "step-00000023");
    EXPECT_EQ(metrics_of(at("parts")).size(), 23u);
    ASSERT_TRUE(trains(run("parts", {{"resume", "true"}})));
    expect_same_checkpoint(at("whole/checkpoints/step-00000030"), at("parts/checkpoints/step-00000030"));
    expect_same_checkpoint(at("whole/checkpoints/step-00000040"), at("parts/checkpoints/step-00000040"));
    EXPECT_EQ(metrics_of(at("parts")), metrics_of(at("whole")));
    EXPECT_EQ(read_file(at("parts/samples.txt")), read_file(at("whole/samples.txt")));
}

TEST_F(Train, SessionsOfAFewStepsAddUp) {
    ASSERT_TRUE(trains(run("whole", {{"threads", "2"}})));
    ASSERT_TRUE(trains(run("parts", {{"stop-after", "9"}})));
    for (const char *threads : {"2", "1", "3", "1"}) /* and no number of threads matters */
        ASSERT_TRUE(trains(run("parts", {{"resume", "true"}, {"stop-after", "9"}, {"threads", threads}})));
    EXPECT_EQ(fs::read_symlink(at("parts/checkpoints/latest")), "step-00000040");
    expect_same_checkpoint(at("whole/checkpoints/latest"), at("parts/checkpoints/latest"));
    EXPECT_EQ(metrics_of(at("parts")), metrics_of(at("whole")));
}

/* With a constant rate a finished run of 20 steps is the beginning of one of 40. */
TEST_F(Train, AFinishedRunGoesOnForMoreSteps) {
    const Options::Pairs constant = {{"schedule", "constant"}, {"skip-spikes", "6"}};
    ASSERT_TRUE(trains(run("whole", constant)));
    ASSERT_TRUE(trains(run("parts", constant + Options::Pairs{{"steps", "20"}})));
    ASSERT_TRUE(trains(run("parts", constant + Options::Pairs{{"steps", "40"}, {"resume", "true"}})));
    expect_same_checkpoint(at("whole/checkpoints/latest"), at("parts/checkpoints/latest"));
    EXPECT_EQ(metrics_of(at("parts")), metrics_of(at("whole")));
}

/* What a kill leaves on disk at step 27, copied there and then: metrics beyond the last checkpoint, and here half a
 * line of the next. The resumed run has each step once. */
TEST_F(Train, AKilledRunGoesOnFromItsLastCheckpoint) {
    struct Killed {
        std::string run, copy;
    } killed = {at("run"), at("killed")};
    loom_train_observer observer = {};
    observer.user = &killed;
    observer.stepped = [](void *user, const loom_step_report *report) {
        const Killed *k = (const Killed *)user;
        if (report->step == 27)
            fs::copy(k->run, k->copy, fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    };
    ASSERT_TRUE(trains(run("run"), &observer));
    ASSERT_EQ(metrics_of(at("killed")).size(), 26u);
    std::ofstream(at("killed/metrics.jsonl"), std::ios::app) << "{\"step\": 27, \"tok";
    ASSERT_EQ(fs::read_symlink(at("killed/checkpoints/latest")), "step-00000020");
    ASSERT_TRUE(trains(run("killed", {{"resume", "true"}})));
    EXPECT_EQ(metrics_of(at("killed")), metrics_of(at("run")));
    expect_same_checkpoint(at("killed/checkpoints/latest"), at("run/checkpoints/latest"));
}

/* After a power cut metrics may end before the checkpoint does, in half a line. What is lost stays lost, but every
 * line is whole. */
TEST_F(Train, ALineOfMetricsThatWasTornGoes) {
    ASSERT_TRUE(trains(run("run", {{"stop-after", "20"}})));
    const std::string text = read_file(at("run/metrics.jsonl"));
    write_file(at("run/metrics.jsonl"), text.substr(0, text.find("{\"step\": 16") + 20));
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}})));
    const std::vector<std::string> lines = metrics_of(at("run"));
    ASSERT_EQ(lines.size(), 35u);
    for (size_t i = 0; i < lines.size(); i++)
        EXPECT_EQ(lines[i].rfind("{\"step\": " + std::to_string(i < 15 ? i + 1 : i + 6) + ",", 0), 0u) << lines[i];
}

/* Only what will be done again goes: lines that are no metrics stay, wherever they are, and what is behind them. */
TEST_F(Train, LinesThatAreNoMetricsStayWhenARunGoesOn) {
    ASSERT_TRUE(trains(run("run", {{"stop-after", "20"}})));
    const std::vector<std::string> before = metrics_of(at("run"));
    std::string text;
    for (size_t i = 0; i < before.size(); i++) {
        if (i == 4) text += "#";
        text += before[i] + "\n";
        if (i == 9) text += "\n// restarted by hand\n";
    }
    write_file(at("run/metrics.jsonl"), text + "{\"step\": 21, \"loss\": 1}\nthe end");
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}, {"stop-after", "1"}})));
    std::string after = read_file(at("run/metrics.jsonl"));
    EXPECT_EQ(after.rfind(text + "the end\n{\"step\": 21, \"tokens\"", 0), 0u) << after;
    write_file(at("run/metrics.jsonl"), "");
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}, {"stop-after", "1"}})));
    EXPECT_EQ(metrics_of(at("run")).size(), 1u);
}

TEST_F(Train, AKilledRunsCheckpointInTheMakingDoesNotCount) {
    ASSERT_TRUE(trains(run("run", {{"stop-after", "20"}})));
    ASSERT_TRUE(trains(run("whole")));
    fs::create_directory(at("run/checkpoints/.tmp-step-00000030"));
    write_file(at("run/checkpoints/.tmp-step-00000030/model.safetensors"), "half of it");
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}})));
    expect_same_checkpoint(at("run/checkpoints/latest"), at("whole/checkpoints/latest"));
    EXPECT_FALSE(fs::exists(at("run/checkpoints/.tmp-step-00000030")));
}

/* -------------------------------------------------------------------------------------------------------- full disk */

/* The checkpoint at step 20 does not fit on the disk: the run ends with one line, the checkpoint of step 10 is
 * whole, and with room again the run goes on as if nothing had been. */
TEST_F(Train, AFullDiskLeavesThePreviousCheckpoint) {
    ASSERT_TRUE(trains(run("whole")));
    for (const char *too_large : {"model.safetensors", "optimizer.safetensors"}) {
        fs::remove_all(at("run"));
        struct Filling {
            rlim_t room;
            std::unique_ptr<FullDisk> disk;
        } filling = {fs::file_size(at(std::string("whole/checkpoints/step-00000010/") + too_large)) - 1, nullptr};
        loom_train_observer observer = {};
        observer.user = &filling;
        observer.stepped = [](void *user, const loom_step_report *report) {
            Filling *f = (Filling *)user;
            if (report->step == 15) f->disk = std::make_unique<FullDisk>(f->room);
        };
        const Options options(run("run"));
        loom_error error = {""};
        const bool ok = loom_train(options.get(), NULL, &observer, &error);
        filling.disk.reset();
        ASSERT_FALSE(ok);
        EXPECT_NE(std::string(error.message).find(too_large), std::string::npos) << error.message;
        EXPECT_EQ(fs::read_symlink(at("run/checkpoints/latest")), "step-00000010");
        std::set<std::string> names;
        for (const auto &entry : fs::directory_iterator(at("run/checkpoints"))) names.insert(entry.path().filename());
        EXPECT_EQ(names, (std::set<std::string>{"latest", "step-00000010"}));
        expect_same_checkpoint(at("run/checkpoints/latest"), at("whole/checkpoints/step-00000010"));

        ASSERT_TRUE(trains(run("run", {{"resume", "true"}})));
        expect_same_checkpoint(at("run/checkpoints/latest"), at("whole/checkpoints/latest"));
        EXPECT_EQ(metrics_of(at("run")), metrics_of(at("whole")));
    }
}

TEST_F(Train, AFullDiskForMetricsEndsTheRunWithTheirName) {
    ASSERT_TRUE(trains(run("whole")));
    loom_error error = {""};
    bool ok;
    {
        const Options options(run("run", {{"checkpoint-every", "0"}, {"val-every", "0"}, {"sample-every", "0"}}));
        const FullDisk full(2000);
        ok = loom_train(options.get(), NULL, NULL, &error);
    }
    EXPECT_FALSE(ok);
    EXPECT_NE(std::string(error.message).find(at("run/metrics.jsonl") + ": cannot be written"), std::string::npos)
        << error.message;
}

/* --------------------------------------------------------------------------------------------------------- refusals */

TEST_F(Train, AnotherRunsDirectoryIsRefusedAndUntouched) {
    ASSERT_TRUE(trains(run("run", {{"steps", "10"}})));
    const std::string before = fingerprint(at("run"));
    refused(run("run", {{"steps", "10"}}), {"--out", at("run"), "--resume"});
    refused(run("run", {{"steps", "10"}, {"seed", "9"}}), {"--out"});
    EXPECT_TRUE(fingerprint(at("run")) == before);
    refused(run("text"), {"--out", "not a directory"});
    Options::Pairs nowhere = run("x");
    nowhere.erase("out");
    refused(nowhere, {"--out"});
}

TEST_F(Train, WhateverIsLeftOfARunIsARun) {
    for (const char *part : {"config.ini", "metrics.jsonl", "samples.txt", "checkpoints", "saved"}) {
        const std::string place = std::string("only-") + part;
        fs::create_directories(at(place));
        write_file(at(place + "/" + part), "");
        const std::string before = fingerprint(at(place));
        refused(run(place), {"--out", at(place)});
        EXPECT_TRUE(fingerprint(at(place)) == before) << part;
    }
}

TEST_F(Train, ARunThatEndedBeforeItsFirstCheckpointBeginsAnew) {
    ASSERT_TRUE(trains(run("whole")));
    ASSERT_TRUE(trains(run("parts", {{"stop-after", "3"}})));
    for (const char *name : {"checkpoints/latest", "checkpoints/step-00000003", "saved"})
        fs::remove_all(at(std::string("parts/") + name));
    ASSERT_TRUE(trains(run("parts", {{"resume", "true"}})));
    expect_same_checkpoint(at("whole/checkpoints/latest"), at("parts/checkpoints/latest"));
    EXPECT_EQ(metrics_of(at("parts")), metrics_of(at("whole")));
}

/* Checkpoints that are gone are no reason to begin anew over what was trained. */
TEST_F(Train, ARunWhoseCheckpointsAreGoneIsRefusedAndUntouched) {
    ASSERT_TRUE(trains(run("run", {{"stop-after", "12"}})));
    fs::rename(at("run/checkpoints"), at("elsewhere"));
    const std::string before = fingerprint(at("run"));
    refused(run("run", {{"resume", "true"}}), {"--resume: " + at("run/checkpoints") + " is not there", "has saved"});
    fs::create_directory(at("run/checkpoints"));
    refused(run("run", {{"resume", "true"}}), {at("run/checkpoints") + " holds no checkpoint", "has saved"});
    fs::remove(at("run/checkpoints"));
    EXPECT_TRUE(fingerprint(at("run")) == before);
    fs::rename(at("elsewhere"), at("run/checkpoints"));
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}})));
}

/* With validation, and with data that were too short for it. */
TEST_F(Train, ARunThatIsDoneNeedsNoDataToSaySo) {
    int64_t done = 0;
    loom_train_observer observer = {};
    observer.user = &done;
    observer.already_done = [](void *user, int64_t step) { *(int64_t *)user = step; };
    write_file(at("short"), some_text(100, 3));
    for (const char *data : {"text", "short"}) {
        const Options::Pairs of = run(std::string("of-") + data, {{"data", at(data)}, {"steps", "7"}});
        ASSERT_TRUE(trains(of, &observer));
        fs::remove(at(data));
        done = 0;
        EXPECT_TRUE(trains(of + Options::Pairs{{"resume", "true"}}, &observer));
        EXPECT_EQ(done, 7);
        refused(of + Options::Pairs{{"resume", "true"}, {"steps", "8"}}, {"--data: " + at(data)});
    }
}

/* However few steps it had, and though the folder is there; nor was there one that could be put back after --no-save.
 * */
TEST_F(Train, ARunWhoseOnlyCheckpointIsGoneIsRefusedAndUntouched) {
    const Options::Pairs few = {{"steps", "5"}, {"warmup", "0"}, {"checkpoint-every", "1000"}};
    const Options::Pairs more = {{"resume", "true"}, {"steps", "7"}};
    ASSERT_TRUE(trains(run("run", few)));
    for (const auto &entry : fs::directory_iterator(at("run/checkpoints"))) fs::remove_all(entry);
    const std::string before = fingerprint(at("run"));
    refused(run("run", few + more), {"--resume: " + at("run/checkpoints") + " holds no checkpoint", "has saved some"});
    EXPECT_TRUE(fingerprint(at("run")) == before);
    ASSERT_TRUE(trains(run("unsaved", few + Options::Pairs{{"save", "false"}})));
    const std::string message = refused(run("unsaved", few + more), {"5 steps", "--no-save leaves none"});
    EXPECT_EQ(message.find("saved some"), std::string::npos) << message;
}

/* One that began with another's weights does so again. */
TEST_F(Train, ARunThatBeginsAnewBeginsWithTheWeightsThatItWasGiven) {
    ASSERT_TRUE(trains(run("first", {{"steps", "10"}})));
    ASSERT_TRUE(trains(run("whole", {{"init", at("first")}})));
    ASSERT_TRUE(trains(run("parts", {{"init", at("first")}, {"stop-after", "3"}})));
    for (const char *name : {"checkpoints/latest", "checkpoints/step-00000003", "saved"})
        fs::remove_all(at(std::string("parts/") + name));
    ASSERT_TRUE(trains(run("parts", {{"resume", "true"}})));
    expect_same_checkpoint(at("whole/checkpoints/latest"), at("parts/checkpoints/latest"));
}

/* It deletes the checkpoint that was found before that is loaded. */
TEST_F(Train, BeginningBesideARunThatPrunes) {
    ASSERT_TRUE(trains(run("first", {{"stop-after", "20"}})));
    ASSERT_TRUE(trains(run("other", {{"init", at("first/checkpoints/step-00000010")}, {"stop-after", "1"}})));
    std::string newest = at("first/checkpoints/step-00000020");
    const loom_train_observer observer = {
        .user = &newest, .planned = [](void *user, const loom_plan *) { fs::remove_all(*(std::string *)user); }};
    ASSERT_TRUE(trains(run("run", {{"init", at("first")}, {"stop-after", "1"}}), &observer));
    EXPECT_EQ(read_file(at("run/checkpoints/latest/model.safetensors")),
              read_file(at("other/checkpoints/latest/model.safetensors")));
}

/* What is after the checkpoint that a run goes on from is another run: it is not found as the newest any more. */
TEST_F(Train, GoingOnFromAnOlderCheckpointSetsTheNewerOnesAside) {
    const auto checkpoints = [&] {
        std::set<std::string> names;
        for (const auto &entry : fs::directory_iterator(at("run/checkpoints"))) names.insert(entry.path().filename());
        return names;
    };
    ASSERT_TRUE(trains(run("run", {{"stop-after", "35"}})));
    std::string note;
    const loom_train_observer observer = {.user = &note, .started = [](void *user, loom_trainer *trainer) {
                                              *(std::string *)user = loom_trainer_note(trainer);
                                          }};
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}, {"resume-from", "20"}, {"lr", "1e-3"}, {"stop-after", "5"}}),
                       &observer));
    EXPECT_EQ(checkpoints(), (std::set<std::string>{"abandoned-step-00000030", "abandoned-step-00000035", "latest",
                                                    "step-00000010", "step-00000020", "step-00000025"}));
    EXPECT_NE(note.find("step 20: the newer checkpoints, of steps 30 and 35, are now called abandoned-step-N"),
              std::string::npos)
        << note;
    EXPECT_EQ(loom_checkpoint_newest(at("run").c_str()), 25);
    EXPECT_EQ(metrics_of(at("run")).size(), 25u);

    /* By hand, as it was done before there was a flag; and with `latest` gone, before the first save after that. */
    fs::remove(at("run/checkpoints/latest"));
    fs::create_symlink("step-00000010", at("run/checkpoints/latest"));
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}, {"stop-after", "10"}})));
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}, {"resume-from", "10"}, {"stop-after", "10"}})));
    EXPECT_EQ(checkpoints(),
              (std::set<std::string>{"abandoned-step-00000020", "abandoned-step-00000020.2", "abandoned-step-00000025",
                                     "abandoned-step-00000030", "abandoned-step-00000035", "latest", "step-00000010",
                                     "step-00000020"}));
    refused(run("other", {{"resume-from", "10"}}), {"--resume-from", "--resume"});
}

/* It stays what it was, as bits depend on it, even where more would fit now; where it does not fit any more, it is
 * less. */
TEST_F(Train, AMicroBatchThatNobodyGaveIsKeptWhereItCanBe) {
    const auto session = [&](const Options::Pairs &changes, size_t *bytes = NULL) {
        /* So wide that a byte less than it takes is still more than the least that --memory takes. */
        Options::Pairs pairs = run("run", {{"stop-after", "1"}, {"memory", "1GiB"}, {"n-embd", "96"}});
        pairs.erase("micro-batch");
        const Options options(pairs + changes);
        struct {
            int64_t B;
            size_t bytes;
            std::string note;
        } seen = {};
        loom_train_observer observer = {};
        observer.user = &seen;
        observer.started = [](void *user, loom_trainer *trainer) {
            auto *to = (decltype(seen) *)user;
            to->B = loom_trainer_options(trainer)->micro_batch;
            to->bytes = loom_trainer_plan(trainer)->arena.used;
            to->note = loom_trainer_note(trainer);
        };
        require([&](loom_error *error) { return loom_train(options.get(), NULL, &observer, error); });
        if (bytes) *bytes = seen.bytes;
        return std::to_string(seen.B) + "; " + seen.note;
    };
    const Options::Pairs resumed = {{"resume", "true"}};
    size_t four = 0;
    EXPECT_EQ(session({}, &four), "4; ");
    EXPECT_EQ(session(resumed), "4; ");
    const std::string changed =
        "2; --micro-batch: changed, so from here on the bits are not those of an uninterrupted run";
    EXPECT_EQ(session(resumed + Options::Pairs{{"memory", std::to_string(four - 1)}}), changed);
    EXPECT_EQ(session(resumed), "2; ");
}

/* The advice after a loss that runs away, and more steps, whatever followed from the rate and the steps before. */
TEST_F(Train, WhatFollowsFromAnOptionFollowsAgainAndIsTold) {
    Options::Pairs pairs = run("run", {{"lr", "1e-2"}, {"steps", "100"}, {"stop-after", "10"}});
    pairs.erase("warmup");
    ASSERT_TRUE(trains(pairs));
    const auto resumed = [&](const Options::Pairs &changes) {
        loom_train_options read = loom_train_options_defaults();
        require([&](loom_error *error) { return loom_train_options_read(&read, at("run/config.ini").c_str(), error); });
        read.resume = true;
        for (const auto &[key, value] : changes)
            require([&, k = key, v = value](loom_error *error) {
                return loom_train_options_set(&read, k.c_str(), v.c_str(), error);
            });
        loom_trainer *trainer = nullptr;
        require([&](loom_error *error) { return loom_trainer_open(&trainer, &read, NULL, NULL, error); });
        const std::string note = loom_trainer_note(trainer);
        loom_trainer_close(trainer);
        loom_train_options_free(&read);
        return note;
    };
    EXPECT_EQ(resumed({}), "");
    EXPECT_EQ(resumed({{"lr", "5e-4"}}), "--lr 0.01 -> 0.0005, --min-lr 0.001 -> 5e-05\n"
                                         "the learning rate jumps from 0.00994 to 0.000497, at step 11");
    EXPECT_EQ(resumed({{"steps", "4000"}}), "--steps 100 -> 4000"); /* the warm-up is over and stays 5 */
    EXPECT_EQ(resumed({{"steps", "20"}, {"schedule", "constant"}}), "--schedule cosine -> constant, --steps 100 -> 20");
    EXPECT_EQ(resumed({{"weight-decay", "0.5"}, {"clip", "9"}, {"skip-spikes", "4"}, {"val-every", "7"}}),
              "--weight-decay 0.1 -> 0.5, --clip 1 -> 9, --skip-spikes 0 -> 4, --val-every 10 -> 7");
}

TEST_F(Train, DataTooShortToHoldOutWhatNobodyAskedForAreAllTrainedOn) {
    write_file(at("short"), some_text(100, 3));
    const Options options(small() + Options::Pairs{{"data", at("short")}});
    const Trainer trainer = open_trainer(options);
    EXPECT_FALSE(loom_trainer_has_validation(trainer.get()));
    EXPECT_EQ(trainer->training.tokens, 101);
    EXPECT_NE(std::string(loom_trainer_note(trainer.get())).find("too short to hold out 10%"), std::string::npos);
    refused(run("asked", {{"data", at("short")}, {"val-fraction", "0.1"}}), {"--val-fraction"});
    ASSERT_TRUE(trains(run("run", {{"data", at("short")}, {"stop-after", "2"}})));
    ASSERT_TRUE(trains(run("run", {{"data", at("short")}, {"resume", "true"}})));
}

TEST_F(Train, WhatCannotBeResumedIsRefusedAndUntouched) {
    ASSERT_TRUE(trains(run("run", {{"stop-after", "10"}})));
    const std::string before = fingerprint(at("run"));
    const auto resumed = [&](const Options::Pairs &changes) {
        return run("run", Options::Pairs{{"resume", "true"}} + changes);
    };
    refused(resumed({{"seed", "8"}}), {"--seed", "7"});
    write_file(at("other"), some_text(4000, 2));
    refused(resumed({{"data", at("other")}}), {"--data: " + at("other"), "which was " + at("text")});
    refused(resumed({{"steps", "9"}}), {"--steps", "10", "9"});
    refused(resumed({{"resume-from", "9"}}), {"step 9", "those of steps 10"});
    refused(resumed({{"n-embd", "32"}}), {"--n-embd", "32", "16"});
    refused(resumed({{"block-size", "32"}}), {"--block-size"});
    refused(resumed({{"activation", "relu"}}), {"--activation"});
    refused(resumed({{"architecture", "gpt1"}}), {"--architecture", "gpt2"});
    refused(resumed({{"batch", "8"}}), {"--batch: 8 is asked for", "has 4"});
    refused(resumed({{"batch", "1"}}), {"--batch"}); /* not: 2, the old --micro-batch, does not divide it */
    refused(resumed({{"seq-len", "8"}}), {"--seq-len"});
    refused(resumed({{"val-fraction", "0.2"}}), {"--val-fraction"});
    refused(resumed({{"init", at("run")}}), {"--init", "--resume"});
    EXPECT_TRUE(fingerprint(at("run")) == before);

    refused(run("none", {{"resume", "true"}}), {at("none")});
    EXPECT_FALSE(fs::exists(at("none")));
    fs::create_directory(at("empty"));
    refused(run("empty", {{"resume", "true"}}), {at("empty")});
    EXPECT_TRUE(fs::is_empty(at("empty")));
    fs::remove(at("run/checkpoints/step-00000010/optimizer.safetensors"));
    refused(resumed({}), {"optimizer.safetensors"});
}

TEST_F(Train, WhatDoesNotGoTogetherIsRefusedBeforeAnythingIsWritten) {
    refused(run("run", {{"warmup", "40"}}), {"--warmup", "40"});
    refused(run("run", {{"epochs", "2"}}), {"--epochs", "--steps"});
    refused(run("run", {{"micro-batch", "3"}}), {"--micro-batch", "3", "--batch", "4"});
    refused(run("run", {{"n-head", "3"}}), {"--n-embd", "--n-head"});
    refused(run("run", {{"seq-len", "17"}}), {"--seq-len", "17", "16"});
    refused(run("run", {{"vocab-size", "256"}}), {"--vocab-size", "257", "256"});
    refused(run("run", {{"min-lr", "1"}}), {"--min-lr"});
    refused(run("run", {{"data", at("missing")}}), {at("missing")});
    write_file(at("tiny"), "too short");
    refused(run("run", {{"data", at("tiny")}}), {at("tiny"), "--seq-len"});
    refused(run("run", {{"init", at("missing")}}), {at("missing")});
    EXPECT_FALSE(fs::exists(at("run")));
}

/* A file too large to be kept in memory; its zeros take no room on the disk. */
void write_large_file(const std::string &path) {
    write_file(path, "");
    fs::resize_file(path, 65 << 20);
}

/* What shrinks while it is read ends the run with an error, and what was done is saved: once the data are back the run
 * goes on as if nothing had been. */
TEST_F(Train, DataThatShrinkEndTheRunAndLoseNothing) {
    const Options::Pairs large = {
        {"data", at("large")}, {"any-bytes", "true"}, {"val-fraction", "0"}, {"val-every", "0"}};
    write_large_file(at("large"));
    ASSERT_TRUE(trains(run("whole", large)));
    loom_train_observer observer = {};
    const std::string path = at("large");
    observer.user = (void *)&path;
    observer.stepped = [](void *user, const loom_step_report *report) {
        if (report->step == 13) fs::resize_file(*(const std::string *)user, 100);
    };
    const Options options(run("parts", large));
    loom_error error = {""};
    EXPECT_FALSE(loom_train(options.get(), NULL, &observer, &error));
    for (const char *words : {"large: has become shorter", "is saved", "--resume"})
        EXPECT_NE(std::string(error.message).find(words), std::string::npos) << error.message;
    const size_t done = metrics_of(at("parts")).size();
    EXPECT_GE(done, 13u);
    EXPECT_EQ(fs::read_symlink(at("parts/checkpoints/latest")).string(), "step-000000" + std::to_string(done));

    refused(run("parts", large + Options::Pairs{{"resume", "true"}}),
            {"--data", at("large"), "has changed since", "it has 100 bytes, and had 68157440"});
    fs::resize_file(at("large"), 65 << 20);
    ASSERT_TRUE(trains(run("parts", large + Options::Pairs{{"resume", "true"}})));
    expect_same_checkpoint(at("whole/checkpoints/latest"), at("parts/checkpoints/latest"));
    EXPECT_EQ(metrics_of(at("parts")), metrics_of(at("whole")));
}

TEST_F(Train, ValidationDataThatShrinkEndTheRunAndLoseNothing) {
    write_large_file(at("large"));
    const Options::Pairs changes = {
        {"val-data", at("large")}, {"any-bytes", "true"}, {"val-every", "5"}, {"val-tokens", "64"}};
    loom_train_observer observer = {};
    const std::string path = at("large");
    observer.user = (void *)&path;
    observer.stepped = [](void *user, const loom_step_report *report) {
        if (report->step == 8) fs::resize_file(*(const std::string *)user, 0);
    };
    const Options options(run("run", changes));
    loom_error error = {""};
    EXPECT_FALSE(loom_train(options.get(), NULL, &observer, &error));
    EXPECT_NE(std::string(error.message).find("step 10 is saved"), std::string::npos) << error.message;
    EXPECT_EQ(metrics_of(at("run")).size(), 10u);
    EXPECT_EQ(fs::read_symlink(at("run/checkpoints/latest")), "step-00000010");
}

/* A resumed run goes on with the data that it began with, byte for byte; when they were written and where they lie is
 * no matter. */
TEST_F(Train, ChangedDataAreNotGoneOnWith) {
    const std::string text = some_text(400000, 3);
    const auto changed_at = [&](const char *name, int hours) {
        fs::last_write_time(at(name), fs::file_time_type::clock::now() - std::chrono::hours(hours));
    };
    fs::create_directory(at("d"));
    write_file(at("d/b"), text);
    write_file(at("d/c"), some_text(1000, 4));
    const auto resumed = [&](const Options::Pairs &changes = {}) {
        return run("run", Options::Pairs{{"data", at("d")}, {"resume", "true"}, {"stop-after", "1"}} + changes);
    };
    ASSERT_TRUE(trains(run("run", {{"data", at("d")}, {"stop-after", "3"}})));
    const std::string record = read_file(at("run/data.json"));
    EXPECT_NE(record.find("\"path\":\t\"" + at("d/b")), std::string::npos) << record;
    ASSERT_TRUE(trains(resumed()));

    std::string other = text;
    other[200000] ^= 1;
    const auto written = fs::last_write_time(at("d/b"));
    write_file(at("d/b"), other);
    fs::last_write_time(at("d/b"), written); /* back, as touch -d sets it */
    refused(resumed(), {"--data", at("d/b"), at("run"), "has changed since", "bring that back"});
    changed_at("d/b", 1);
    refused(resumed(), {"--data", at("d/b"), at("run"), "has changed since", "bring that back"});
    write_file(at("d/b"), text + "more");
    refused(resumed(), {"--data", at("d/b"), "it has 400004 bytes, and had 400000"});
    write_file(at("d/b"), text);
    changed_at("d/b", 2);
    ASSERT_TRUE(trains(resumed()));

    write_file(at("d/a"), "new");
    refused(resumed(), {"--data", at("run"), at("d/a"), "3 files, not 2", "take it away"});
    fs::remove(at("d/a"));
    fs::rename(at("d/c"), at("c"));
    refused(resumed(), {"--data", at("run"), at("d/c"), "1 files, not 2", "bring it back"});
    fs::rename(at("c"), at("d/c"));
    EXPECT_EQ(read_file(at("run/data.json")), record);

    fs::rename(at("d"), at("moved"));
    changed_at("moved/b", 3);
    ASSERT_TRUE(trains(resumed({{"data", at("moved")}})));
    write_file(at("moved/b"), other);
    refused(resumed({{"data", at("moved")}}), {at("moved/b"), "which was " + at("d/b")});
    changed_at("moved/b", 4);
    fs::remove(at("run/data.json")); /* as runs had none: both ends of the data are all that is known */
    ASSERT_TRUE(trains(resumed({{"data", at("moved")}})));
    EXPECT_TRUE(fs::exists(at("run/data.json")));
    write_file(at("run/data.json"), "{}");
    refused(resumed({{"data", at("moved")}}), {at("run/data.json"), "format_version"});
}

/* What is too large to be kept in memory is compared where it may have been written to; of more than 1 GiB only pieces,
 * which is told. */
TEST_F(Train, LargeDataAreComparedAsFarAsTheirHashGoes) {
    std::string note;
    const loom_train_observer observer = {.user = &note, .started = [](void *user, loom_trainer *trainer) {
                                              *(std::string *)user = loom_trainer_note(trainer);
                                          }};
    const auto session = [&](const char *name, const Options::Pairs &changes = {}) {
        return run(name, Options::Pairs{{"data", at("d")}, {"stop-after", "1"}, {"val-tokens", "100"}} + changes);
    };
    const auto resumed = [&](const char *name) { return session(name, {{"resume", "true"}}); };
    const auto overwrite = [&](uint64_t offset) {
        const auto written = fs::last_write_time(at("d"));
        std::fstream file(at("d"), std::ios::binary | std::ios::in | std::ios::out);
        file.seekp((std::streamoff)offset);
        file.put('x');
        file.close();
        fs::last_write_time(at("d"), written);
    };
    write_file(at("d"), some_text(100000, 3));
    fs::resize_file(at("d"), (64 << 20) + 100000); /* the rest is a hole */
    ASSERT_TRUE(trains(session("run")));
    overwrite(32 << 20);
    refused(resumed("run"), {"--data", at("d"), "has changed since"});

    write_file(at("d"), some_text(100000, 3));
    fs::resize_file(at("d"), (1 << 30) + (1 << 20));
    ASSERT_TRUE(trains(session("larger")));
    ASSERT_TRUE(trains(resumed("larger"), &observer));
    EXPECT_EQ(note, "");
    overwrite((32 << 20) - 1000); /* between two pieces */
    ASSERT_TRUE(trains(resumed("larger"), &observer));
    EXPECT_NE(note.find("--data: " + at("d") +
                        " may have been written to since the run began: of 1074790400 bytes only "
                        "the 8519680 that data.json has a hash of were compared"),
              std::string::npos)
        << note;
    overwrite(32 << 20);
    refused(resumed("larger"), {"--data", at("d"), "has changed since"});
}

/* As earlier versions left it, without what tells that nobody has written to a file. */
TEST_F(Train, ARecordOfDataOfAnEarlierVersionIsRead) {
    ASSERT_TRUE(trains(run("run", {{"stop-after", "1"}})));
    std::string record = read_file(at("run/data.json"));
    for (const char *key : {"\"status_changed\"", "\"inode\""}) {
        const size_t begin = record.find(key);
        ASSERT_NE(begin, std::string::npos) << record;
        record.erase(begin, record.find(',', begin) + 1 - begin);
    }
    write_file(at("run/data.json"), record);
    ASSERT_TRUE(trains(run("run", {{"stop-after", "1"}, {"resume", "true"}})));
}

TEST_F(Train, ValidationDataMayBeOthersButNotChangeTheirBytes) {
    write_file(at("v"), some_text(2000, 5));
    write_file(at("w"), some_text(3000, 6));
    const auto resumed = [&](const char *validation) {
        return run("run", {{"val-data", at(validation)}, {"resume", "true"}, {"stop-after", "1"}});
    };
    ASSERT_TRUE(trains(run("run", {{"val-data", at("v")}, {"stop-after", "3"}})));
    write_file(at("v"), some_text(2000, 7));
    fs::last_write_time(at("v"), fs::file_time_type::clock::now() - std::chrono::hours(1));
    refused(resumed("v"), {"--val-data", at("v"), "has changed since"});
    ASSERT_TRUE(trains(resumed("w")));
    write_file(at("w"), "another length");
    refused(resumed("w"), {"--val-data", at("w")});
}

/* Tokens of one vocabulary are no tokens of another. */
TEST_F(Train, AModelIsTrainedOnItsOwnVocabulary) {
    std::string shard(1024, 0);
    for (int i = 0; i < 2000; i++) shard += {(char)(i % 100), 0};
    const uint32_t header[] = {20240520, 1, 2000};
    memcpy(shard.data(), header, sizeof header);
    write_file(at("t.bin"), shard);
    const Options::Pairs tokens = {{"data", at("t.bin")}, {"vocab-size", "300"}}, short_run = {{"stop-after", "1"}};
    ASSERT_TRUE(trains(run("of-tokens", tokens + short_run)));
    ASSERT_TRUE(trains(run("of-bytes", short_run)));
    ASSERT_TRUE(trains(run("wide", short_run + Options::Pairs{{"vocab-size", "300"}})));
    refused(run("a", {{"init", at("of-tokens")}}),
            {"--init", at("of-tokens"), "300 tokens that are not bytes", ".bin"});
    refused(run("a", {{"init", at("of-bytes")}, {"data", at("t.bin")}}),
            {"--init", at("of-bytes"), at("t.bin"), "give text"});
    refused(run("a", {{"init", at("wide")}, {"data", at("t.bin")}}), {"--init", at("wide"), "give text"});
    refused(run("of-tokens", {{"resume", "true"}}), {"--resume", "not bytes"});
    refused(run("of-bytes", {{"resume", "true"}, {"data", at("t.bin")}}), {"--resume", "give text"});
    EXPECT_FALSE(fs::exists(at("a")));
    ASSERT_TRUE(trains(run("b", short_run + Options::Pairs{{"init", at("wide")}})));
    ASSERT_TRUE(trains(run("c", short_run + tokens + Options::Pairs{{"init", at("of-tokens")}})));
}

TEST_F(Train, ARunAmongItsDataIsNotTrainedOn) {
    fs::create_directory(at("d"));
    write_file(at("d/text"), some_text(4000, 1));
    const Options::Pairs data = {{"data", at("d")}};
    ASSERT_TRUE(trains(run("d/run", data + Options::Pairs{{"stop-after", "5"}})));
    ASSERT_TRUE(trains(run("d/run", data + Options::Pairs{{"resume", "true"}, {"stop-after", "5"}})));
    const Options options(small() + data + Options::Pairs{{"out", at("d/other")}});
    const Trainer trainer = open_trainer(options);
    EXPECT_EQ(loom_dataset_tokens(loom_trainer_data(trainer.get())), 4001);
    EXPECT_NE(std::string(loom_dataset_note(loom_trainer_data(trainer.get()))).find(at("d/run")), std::string::npos);
    refused(run("d", data), {at("d"), "--out"});
}

TEST_F(Train, ARunInsideItsDatasDirectoryGoesOn) {
    fs::create_directory(at("data"));
    fs::rename(at("text"), at("data/text"));
    const Options::Pairs inside = {{"data", at("data")}, {"steps", "20"}, {"out", at("data/run")}};
    ASSERT_TRUE(trains(run("run", inside + Options::Pairs{{"stop-after", "10"}})));
    ASSERT_TRUE(trains(run("run", inside + Options::Pairs{{"resume", "true"}})));
    ASSERT_TRUE(trains(run("run", inside + Options::Pairs{{"out", at("other")}})));
    expect_same_checkpoint(at("other/checkpoints/latest"), at("data/run/checkpoints/latest"));
}

/* Every number at both ends of what is allowed: the run begins, or one line says why not. */
TEST_F(Train, NumbersAtTheirLimitsBeginARunOrAreRefused) {
    int n, begun = 0;
    const loom_flag *table = loom_train_option_table(&n);
    for (int f = 0; f < 2 * n; f++) {
        const loom_flag &flag = table[f / 2];
        const double value = f % 2 ? flag.max : flag.min;
        if (flag.type != LOOM_FLAG_INT && flag.type != LOOM_FLAG_DOUBLE && flag.type != LOOM_FLAG_SIZE) continue;
        char text[64];
        snprintf(text, sizeof text, flag.type == LOOM_FLAG_DOUBLE ? "%.17g" : "%.0f", value);
        Options::Pairs pairs = run("run", {{"memory", "64MiB"}, {flag.name, text}});
        if (!strcmp(flag.name, "epochs")) pairs.erase("steps");
        if (!strcmp(flag.name, "threads") && value > 4) continue; /* for a larger machine */
        SCOPED_TRACE(std::string(flag.name) + " " + text);
        if (!strcmp(flag.name, "seed")) continue;                   /* 2^63 is no int64_t */
        if (!strcmp(flag.name, "n-layer") && value > 100) continue; /* what would fit instead takes long to find */
        loom_error error = {""};
        loom_trainer *trainer = nullptr;
        const Options options(pairs);
        if (loom_trainer_open(&trainer, options.get(), NULL, NULL, &error)) {
            loom_trainer_close(trainer);
            begun++;
        } else {
            EXPECT_NE(error.message[0], 0);
            EXPECT_EQ(std::string(error.message).find('\n'), std::string::npos);
        }
    }
    EXPECT_GT(begun, 30);
}

/* --init takes another run's weights and nothing else of it. */
TEST_F(Train, ARunBeginsWithAnothersWeights) {
    ASSERT_TRUE(trains(run("first", {{"steps", "10"}})));
    {
        const Options options(small() + Options::Pairs{{"init", at("first")}, {"seed", "9"}});
        const Trainer trainer = open_trainer(options);
        EXPECT_EQ(loom_trainer_steps_done(trainer.get()), 0);
        const loom_layout *layout = loom_gpt_get_layout(trainer->gpt);
        const float *moment = (const float *)trainer->optimizer.moment1;
        EXPECT_TRUE(std::all_of(moment, moment + layout->elements, [](float m) { return m == 0; }));
        EXPECT_EQ(trainer->state.scalars.updates, 0);
        EXPECT_EQ(trainer->state.seed, 9u);
        require([&](loom_error *error) { return loom_trainer_save(trainer.get(), at("saved").c_str(), error); });
    }
    EXPECT_TRUE(read_file(at("saved/checkpoints/latest/model.safetensors")) ==
                read_file(at("first/checkpoints/latest/model.safetensors")));

    ASSERT_TRUE(
        trains(run("second", {{"init", at("first/checkpoints/step-00000010")}, {"steps", "5"}, {"warmup", "0"}})));
    refused(run("third", {{"init", at("first")}, {"n-layer", "2"}}), {"--n-layer", "2", "1"});
    refused(run("third", {{"init", at("first")}, {"vocab-size", "300"}}), {"--vocab-size", "300", "257"});
    refused(run("third", {{"init", at("first")}, {"activation", "relu"}}), {"--activation"});
    Options::Pairs named = run("third", {{"init", at("first")}, {"model", "nano"}});
    for (const char *key : {"n-layer", "n-head", "n-embd", "block-size"}) named.erase(key);
    refused(named, {"--n-layer", "3", "1"});
    EXPECT_FALSE(fs::exists(at("third")));

    const Options::Pairs short_run = {{"steps", "1"}, {"warmup", "0"}};
    ASSERT_TRUE(trains(run("bent", short_run + Options::Pairs{{"activation", "relu"}})));
    const Options::Pairs after = short_run + Options::Pairs{{"init", at("bent")}};
    refused(run("fourth", after + Options::Pairs{{"activation", "gelu"}}), {"--activation"});
    ASSERT_TRUE(trains(run("fourth", after)));
    EXPECT_NE(read_file(at("fourth/config.ini")).find("activation = relu"), std::string::npos);

    ASSERT_TRUE(trains(run("gpt1", short_run + Options::Pairs{{"architecture", "gpt1"}})));
    const Options::Pairs from_gpt1 = short_run + Options::Pairs{{"init", at("gpt1")}};
    refused(run("fifth", from_gpt1 + Options::Pairs{{"architecture", "gpt2"}}), {"--architecture", "gpt1"});
    ASSERT_TRUE(trains(run("fifth", from_gpt1)));
    EXPECT_NE(read_file(at("fifth/config.ini")).find("architecture = gpt1"), std::string::npos);
}

/* -------------------------------------------------------------------------------------------------------- observing */

TEST_F(Train, TheObserverIsToldOfEverythingInOrder) {
    std::vector<std::string> said;
    loom_train_observer observer = {};
    observer.user = &said;
    using Said = std::vector<std::string>;
    observer.started = [](void *user, loom_trainer *trainer) {
        ((Said *)user)->push_back("started at " + std::to_string(loom_trainer_steps_done(trainer)));
    };
    observer.stepped = [](void *user, const loom_step_report *report) {
        ((Said *)user)->push_back("step " + std::to_string(report->step));
    };
    observer.validated = [](void *user, int64_t done, const loom_validation *result) {
        EXPECT_TRUE(result->loss > 0 && result->loss < 6);
        EXPECT_EQ(result->tokens, 96);
        ((Said *)user)->push_back("validated " + std::to_string(done));
    };
    observer.sampled = [](void *user, int64_t done, const char *text) {
        EXPECT_GT(strlen(text), 0u);
        ((Said *)user)->push_back("sampled " + std::to_string(done));
    };
    observer.saved = [](void *user, int64_t done, const char *saved) {
        EXPECT_TRUE(fs::exists(fs::path(saved) / "model.safetensors")) << saved;
        ((Said *)user)->push_back("saved " + std::to_string(done));
    };
    const Options::Pairs often = {
        {"steps", "7"}, {"val-every", "2"}, {"sample-every", "3"}, {"checkpoint-every", "4"}, {"warmup", "0"}};
    ASSERT_TRUE(trains(run("run", often + Options::Pairs{{"stop-after", "4"}}), &observer));
    EXPECT_EQ(said, (Said{"started at 0", "step 1", "step 2", "validated 2", "step 3", "sampled 3", "step 4",
                          "validated 4", "saved 4"}));
    said.clear();
    ASSERT_TRUE(trains(run("run", often + Options::Pairs{{"resume", "true"}}), &observer));
    EXPECT_EQ(said, (Said{"started at 4", "step 5", "step 6", "validated 6", "sampled 6", "step 7", "validated 7",
                          "sampled 7", "saved 7"}))
        << "at the end all of it is done once more";
}

TEST_F(Train, AnEveryOfZeroIsNever) {
    int calls = 0;
    loom_train_observer observer = {};
    observer.user = &calls;
    observer.validated = [](void *user, int64_t, const loom_validation *) { ++*(int *)user; };
    observer.sampled = [](void *user, int64_t, const char *) { ++*(int *)user; };
    ASSERT_TRUE(trains(
        run("run",
            {{"steps", "5"}, {"warmup", "0"}, {"val-every", "0"}, {"sample-every", "0"}, {"checkpoint-every", "0"}}),
        &observer));
    EXPECT_EQ(calls, 0);
    EXPECT_FALSE(fs::exists(at("run/samples.txt")));
    EXPECT_EQ(fs::read_symlink(at("run/checkpoints/latest")), "step-00000005") << "the end is always saved";
}

TEST_F(Train, OldCheckpointsGo) {
    ASSERT_TRUE(trains(run("run", {{"keep", "2"}})));
    std::set<std::string> names;
    for (const auto &entry : fs::directory_iterator(at("run/checkpoints"))) names.insert(entry.path().filename());
    EXPECT_EQ(names, (std::set<std::string>{"latest", "step-00000020", "step-00000030", "step-00000040"}))
        << "two that later steps have shown to be good, and the last one";
}

/* Wherever it is asked to: between micro-batches, in validation and in sampling. What was under way is done again by
 * the next session, so that nothing shows that there were two. */
TEST_F(Train, ARunThatShouldStopSavesAndEnds) {
    const Options::Pairs often = {
        {"steps", "4"}, {"warmup", "0"}, {"val-every", "3"}, {"sample-every", "3"}, {"sample-tokens", "3"}};
    ASSERT_TRUE(trains(run("whole", often)));
    const auto whole = metrics_of(at("whole"));
    struct User {
        int left;
        int64_t done;
        bool asked;
    } user;
    loom_train_observer observer = {};
    observer.user = &user;
    observer.stepped = [](void *u, const loom_step_report *report) { ((User *)u)->done = report->step; };
    observer.should_stop = [](void *u) { return (((User *)u)->asked = --((User *)u)->left == 0); };
    bool in_validation = false, in_sampling = false;
    for (int k = 1;; k++) {
        SCOPED_TRACE("asked " + std::to_string(k) + " times");
        fs::remove_all(at("run"));
        user = {k, 0, false};
        ASSERT_TRUE(trains(run("run", often), &observer));
        if (!user.asked) break;
        const auto metrics = metrics_of(at("run"));
        EXPECT_EQ((int64_t)metrics.size(), user.done);
        EXPECT_EQ(fs::exists(at("run/checkpoints/latest")), user.done > 0);
        if (user.done > 0) {
            EXPECT_EQ(fs::read_symlink(at("run/checkpoints/latest")), "step-0000000" + std::to_string(user.done));
        }
        if (user.done == 3) {
            const bool validated = metrics.back().find("val_loss") != std::string::npos;
            in_validation = in_validation || !validated;
            in_sampling = in_sampling || (validated && !fs::exists(at("run/samples.txt")));
        }
        const bool is_done = user.done == 4;
        if (!is_done) {
            ASSERT_TRUE(trains(run("run", often + Options::Pairs{{"resume", "true"}})));
        }
        expect_same_checkpoint(at("run/checkpoints/latest"), at("whole/checkpoints/latest"));
        if (is_done) continue; /* the last validation and sample may be missing: there is no next session */
        EXPECT_EQ(metrics_of(at("run")), whole);
        EXPECT_EQ(read_file(at("run/samples.txt")), read_file(at("whole/samples.txt")));
    }
    EXPECT_TRUE(in_validation && in_sampling);
}

/* The same trainer does the step that it has given up once more, to the same bits: on each of its micro-batches, with
 * gradients added up by backward and in a tree. */
TEST_F(Train, AStepThatIsGivenUpIsRepeatedToTheSameBits) {
    for (const char *tree : {"false", "true"}) {
        const Options options(small() + Options::Pairs{{"batch", "8"},
                                                       {"micro-batch", "2"},
                                                       {"dtype", "bf16"},
                                                       {"master-weights", "off"},
                                                       {"deterministic-reduce", tree}});
        const std::string plain = bits_of_steps(open_trainer(options), 5);
        int left = 0;
        loom_train_observer observer = {};
        observer.user = &left;
        observer.should_stop = [](void *user) { return --*(int *)user == 0; };
        loom_trainer *opened = nullptr;
        require([&](loom_error *error) { return loom_trainer_open(&opened, options.get(), NULL, &observer, error); });
        const Trainer trainer(opened, loom_trainer_close);
        std::string bits;
        for (int i = 1; i <= 5; i++) {
            left = i <= 4 ? i : 0; /* the step's i-th micro-batch is not begun */
            if (left > 0) {
                const loom_step_report report = step(trainer);
                EXPECT_TRUE(report.interrupted && report.stop);
                EXPECT_EQ(report.step, i - 1);
                trainer->asked = trainer->stops = false;
            }
            const std::string one = bits_of_steps(trainer, 1);
            bits = bits.substr(0, (size_t)(i - 1) * 2 * sizeof(float)) + one;
        }
        EXPECT_TRUE(bits == plain) << tree;
    }
}

/* Parameters that are lost are not saved over good ones. */
TEST_F(Train, ALossThatStaysNoNumberEndsTheRun) {
    loom_train_observer observer = {};
    loom_trainer *trainer = nullptr;
    observer.user = &trainer;
    observer.started = [](void *user, loom_trainer *opened) { *(loom_trainer **)user = opened; };
    observer.stepped = [](void *user, const loom_step_report *report) {
        loom_trainer *t = *(loom_trainer **)user;
        if (report->step == 12)
            *((float *)loom_gpt_get_parameters(t->gpt) + loom_gpt_get_layout(t->gpt)->bucket[1].offset) = NAN;
    };
    const Options options(run("run", {{"val-every", "0"}, {"sample-every", "0"}, {"checkpoint-every", "11"}}));
    refusal([&](loom_error *error) { return loom_train(options.get(), NULL, &observer, error); },
            {"--lr", "step 22", "--resume"});
    EXPECT_EQ(fs::read_symlink(at("run/checkpoints/latest")), "step-00000011");
    const std::vector<std::string> metrics = lines_of(at("run/metrics.jsonl"));
    EXPECT_NE(metrics.at(12).find("\"loss\": null"), std::string::npos) << "JSON knows no NaN: " << metrics.at(12);
    EXPECT_NE(metrics.at(12).find("\"skipped\": true"), std::string::npos) << metrics.at(12);
}

/* -------------------------------------------------------------------------------------------------- runs that are lost */

/* Calls `then` with the trainer after each step, before anything is saved. */
class Meddler {
  public:
    explicit Meddler(std::function<void(loom_trainer *, int64_t)> then) : then_(std::move(then)) {
        observer_.user = this;
        observer_.started = [](void *user, loom_trainer *trainer) { ((Meddler *)user)->trainer_ = trainer; };
        observer_.stepped = [](void *user, const loom_step_report *report) {
            ((Meddler *)user)->then_(((Meddler *)user)->trainer_, report->step);
        };
    }
    const loom_train_observer *observer() const {
        return &observer_;
    }
    static float *weight(loom_trainer *t, const char *name) {
        return (float *)loom_gpt_get_parameters(t->gpt) + loom_layout_find(loom_gpt_get_layout(t->gpt), name)->offset;
    }

  private:
    std::function<void(loom_trainer *, int64_t)> then_;
    loom_train_observer observer_ = {};
    loom_trainer *trainer_ = nullptr;
};

class LostRun : public Train {
  protected:
    static constexpr const char *LN = "transformer.h.0.ln_1.weight";

    Options::Pairs lost(const Options::Pairs &changes = {}) const {
        return run("run",
                   Options::Pairs{{"val-every", "0"}, {"sample-every", "0"}, {"checkpoint-every", "3"}, {"keep", "2"}} +
                       changes);
    }
    std::set<std::string> checkpoints() const {
        std::set<std::string> names;
        for (const auto &entry : fs::directory_iterator(at("run/checkpoints")))
            if (!entry.is_symlink()) names.insert(entry.path().filename());
        return names;
    }
    static std::string refused(const Options::Pairs &pairs, const Meddler &meddler,
                               std::initializer_list<std::string> words) {
        const Options options(pairs);
        return refusal([&](loom_error *error) { return loom_train(options.get(), NULL, meddler.observer(), error); },
                       words);
    }
};

/* At a rate at which it is lost a run keeps its good checkpoints, and says how it goes on; which it does. */
TEST_F(LostRun, KeepsItsGoodCheckpointsAndSaysHowToGoOn) {
    ASSERT_TRUE(trains(lost({{"stop-after", "9"}, {"steps", "200"}})));
    Train::refused(lost({{"resume", "true"}, {"steps", "200"}, {"lr", "100"}, {"weight-decay", "100"}}),
                   {"--lr: ", "the last good checkpoint is of step 9: gptloom train --resume --out " + at("run") +
                                  " --lr 0.01 --weight-decay 0.1; --check-finite"});
    EXPECT_EQ(checkpoints(), (std::set<std::string>{"step-00000006", "step-00000009"}));
    EXPECT_EQ(fs::read_symlink(at("run/checkpoints/latest")), "step-00000009");
    /* Nor do samples of what is lost hide it. What the lost session was given is in config.ini, and is not offered. */
    Train::refused(lost({{"resume", "true"},
                         {"steps", "200"},
                         {"lr", "50"},
                         {"weight-decay", "100"},
                         {"sample-every", "1"},
                         {"sample-tokens", "4"}}),
                   {"--lr: ", "the last good checkpoint is of step 9: gptloom train --resume --out " + at("run") +
                                  " --lr 0.01 --weight-decay 0.1"});
    ASSERT_TRUE(trains(lost({{"resume", "true"}, {"stop-after", "4"}, {"steps", "200"}})));
    EXPECT_EQ(checkpoints(), (std::set<std::string>{"step-00000009", "step-00000012", "step-00000013"}));
}

/* The update that destroys the parameters is that of a step whose loss is good, and may be followed by a save: no good
 * checkpoint goes for it, in this session or the next, and the command that is offered goes on from the good one. */
TEST_F(LostRun, ACheckpointIsGoodOnlyOnceTheNextStepIs) {
    const Options::Pairs each = lost({{"steps", "200"}, {"checkpoint-every", "1"}, {"keep", "1"}}),
                         destroy = {{"resume", "true"}, {"lr", "100"}, {"weight-decay", "100"}};
    for (const char *sessions : {"one", "two"}) {
        fs::remove_all(at("run"));
        ASSERT_TRUE(trains(each + Options::Pairs{{"stop-after", "9"}}));
        EXPECT_EQ(checkpoints(), (std::set<std::string>{"step-00000008", "step-00000009"}));
        if (!strcmp(sessions, "two")) {
            ASSERT_TRUE(trains(each + destroy + Options::Pairs{{"stop-after", "1"}}));
        }
        Train::refused(each + destroy,
                       {"the last good checkpoint is of step 9: ", " --resume-from 9 --lr 0.01 --weight-decay 0.1"});
        EXPECT_EQ(checkpoints(), (std::set<std::string>{"step-00000009", "step-00000010"})) << sessions;
        ASSERT_TRUE(trains(each + Options::Pairs{{"resume", "true"}, {"resume-from", "9"}, {"stop-after", "2"}}));
        EXPECT_EQ(checkpoints(), (std::set<std::string>{"abandoned-step-00000010", "step-00000010", "step-00000011"}));
    }
}

/* What a session leaves after a bad step takes no good checkpoint's place; the next one goes on counting. */
TEST_F(LostRun, BadStepsAreCountedAcrossSessions) {
    float kept = 0;
    const Meddler first([&](loom_trainer *t, int64_t step) {
        float *weight = Meddler::weight(t, LN);
        if (step == 7) kept = *weight, *weight = NAN;
        if (step == 12) *weight = kept;
    });
    ASSERT_TRUE(trains(lost({{"stop-after", "12"}}), first.observer()));
    EXPECT_EQ(checkpoints(), (std::set<std::string>{"step-00000003", "step-00000006", "step-00000012"}));
    loom_training_state state;
    ASSERT_TRUE(loom_checkpoint_state(at("run/checkpoints/step-00000012").c_str(), &state));
    EXPECT_EQ(state.bad_steps, 5);
    ASSERT_TRUE(loom_checkpoint_state(at("run/checkpoints/step-00000006").c_str(), &state));
    EXPECT_EQ(state.bad_steps, 0);

    loom_trainer *trainer = nullptr;
    loom_train_observer second = {};
    second.user = &trainer;
    second.started = [](void *, loom_trainer *t) { *Meddler::weight(t, LN) = NAN; };
    const Options options(lost({{"resume", "true"}}));
    refusal([&](loom_error *error) { return loom_train(options.get(), NULL, &second, error); },
            {"no finite number: 10 steps in a row were bad, up to step 17", "; --check-finite",
             "of step 6: ", " --resume-from 6 --lr 0.001"});
    ASSERT_TRUE(trains(lost({{"resume", "true"}, {"resume-from", "6"}, {"lr", "1e-3"}, {"stop-after", "3"}})));
    EXPECT_EQ(checkpoints(),
              (std::set<std::string>{"abandoned-step-00000012", "step-00000003", "step-00000006", "step-00000009"}));
}

TEST_F(LostRun, ACheckpointThatIsDueAfterABadStepWaitsForAGoodOne) {
    float kept = 0;
    const Meddler meddler([&](loom_trainer *t, int64_t step) {
        float *weight = Meddler::weight(t, LN);
        if (step == 8) kept = *weight, *weight = NAN;
        if (step == 9) *weight = kept;
    });
    ASSERT_TRUE(trains(lost({{"steps", "11"}}), meddler.observer()));
    EXPECT_EQ(checkpoints(), (std::set<std::string>{"step-00000006", "step-00000010", "step-00000011"}));
}

/* In fp16 too, whose gradients may overflow, a good step ends a row of bad ones. */
TEST_F(LostRun, AGoodStepInFp16EndsBadOnes) {
    uint16_t kept = 0;
    const Meddler meddler([&](loom_trainer *t, int64_t step) {
        uint16_t *weight = (uint16_t *)loom_gpt_get_parameters(t->gpt) +
                           loom_layout_find(loom_gpt_get_layout(t->gpt), LN)->offset;
        if (step == 7) kept = *weight, *weight = 0x7E00; /* no number */
        if (step == 8) *weight = kept;
    });
    ASSERT_TRUE(trains(lost({{"steps", "13"}, {"dtype", "fp16"}}), meddler.observer()));
    loom_training_state state;
    ASSERT_TRUE(loom_checkpoint_state(at("run/checkpoints/latest").c_str(), &state));
    EXPECT_EQ(state.step, 13);
    EXPECT_EQ(state.bad_steps, 0);
    EXPECT_EQ(checkpoints(), (std::set<std::string>{"step-00000009", "step-00000012", "step-00000013"}));
}

TEST_F(LostRun, ParametersThatAreNotFiniteAreNeverSaved) {
    const Meddler meddler([](loom_trainer *t, int64_t step) {
        if (step == 9) Meddler::weight(t, "transformer.h.0.mlp.c_proj.bias")[15] = INFINITY;
    });
    refused(lost(), meddler,
            {"after step 9 the parameter transformer.h.0.mlp.c_proj.bias is not finite", "of step 6: ", "--lr 0.001"});
    EXPECT_EQ(checkpoints(), (std::set<std::string>{"step-00000003", "step-00000006"}));
}

/* A loss that has run away, but is a number, is no good one either, and no good end of a run. */
TEST_F(LostRun, ALossThatHasRunAwayIsNoGoodOne) {
    const Meddler meddler([](loom_trainer *t, int64_t step) {
        if (step == 7)
            for (int i = 0; i < 16; i++) Meddler::weight(t, "transformer.ln_f.weight")[i] *= 1e4f;
    });
    refused(lost({{"steps", "12"}, {"lr", "1e-9"}, {"min-lr", "0"}}), meddler,
            {"lost parameters", "the last good checkpoint is of step 6: ", "--lr 1e-10"});
    EXPECT_EQ(checkpoints(), (std::set<std::string>{"step-00000003", "step-00000006", "step-00000012"}));
    fs::remove_all(at("run"));
    const std::string message = refused(lost({{"lr", "1e-9"}, {"min-lr", "0"}}), meddler,
                                        {"the loss has run away to ",
                                         ", where a uniform guess has 5.549: 10 steps in a row were bad, up to step 17",
                                         "the last good checkpoint is of step 6: "});
    EXPECT_EQ(message.find("finite"), std::string::npos) << message;
}

TEST_F(LostRun, ARunWithoutAGoodCheckpointSaysSo) {
    const Meddler meddler([](loom_trainer *t, int64_t step) {
        if (step == 1) *Meddler::weight(t, LN) = NAN;
    });
    refused(lost(), meddler,
            {"up to step 11", "there is no good checkpoint: begin anew in another --out, with --lr 0.001"});
    EXPECT_TRUE(checkpoints().empty());
}

/* The name of the tensor that went bad first, and of what it was computed with. */
TEST_F(LostRun, CheckFiniteNamesTheFirstTensorThatIsNot) {
    const auto damage = [](const char *name, float value) {
        return Meddler([=](loom_trainer *t, int64_t step) {
            if (step == 4) *Meddler::weight(t, name) = value;
        });
    };
    const Options::Pairs look = {{"check-finite", "true"}};
    refused(lost(look), damage("transformer.h.0.mlp.c_fc.weight", NAN),
            {"in step 5 the first tensor that is not finite is what is activated of matmul_forward, at "
             "transformer.h.0.mlp.c_fc.weight",
             "of step 3: "});
    fs::remove_all(at("run"));
    refused(lost(look), damage("transformer.wpe.weight", INFINITY),
            {"is the output of embedding_forward, at transformer.wte"});
    fs::remove_all(at("run"));
    refused(lost(look), Meddler([](loom_trainer *t, int64_t step) {
                const loom_parameter *p = loom_layout_find(loom_gpt_get_layout(t->gpt),
                                                           "transformer.h.0.mlp.c_proj.weight");
                if (step == 4) ((float *)t->optimizer.moment1)[p->offset + 5] = NAN;
            }),
            {"the first tensor that is not finite is the first moment of adamw, at transformer.h.0.mlp.c_proj.weight"});
    fs::remove_all(at("run"));
    ASSERT_TRUE(trains(lost(look + Options::Pairs{{"steps", "9"}})));
    ASSERT_TRUE(trains(lost({{"steps", "9"}, {"out", at("plain")}})));
    expect_same_checkpoint(at("run/checkpoints/latest"), at("plain/checkpoints/latest"));
}

} // namespace
