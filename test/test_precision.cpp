/* Runs in bf16 and fp16: the formats themselves, what a model stores in them, master weights and their copy, loss
 * scaling, and whole runs beside those in fp32. */
#include "support_train.h"

extern "C" {
#include "model/gpt.h"
}

#include "checkpoint/documents.h"
#include "checkpoint/safetensors.h"

#include <array>
#include <set>

namespace {

using namespace support;

/* ---------------------------------------------------------------------------------------------------------- formats */

struct Format {
    const char *name;
    int exponent_bits, significand_bits; /* as stored */
    float (*widen)(uint16_t);
    uint16_t (*narrow)(float);
};

const Format formats[] = {{"bf16", 8, 7, bf16_to_float, float_to_bf16}, {"fp16", 5, 10, fp16_to_float, float_to_fp16}};

/* A positive pattern's value as IEEE 754 defines it; the pattern behind the largest finite one would be a power of two.
 * */
double value_of(const Format &f, int bits) {
    const int bias = (1 << (f.exponent_bits - 1)) - 1, one = 1 << f.significand_bits;
    const int exponent = bits / one, significand = bits % one;
    return exponent == 0 ? std::ldexp(significand, 1 - bias - f.significand_bits)
                         : std::ldexp(one + significand, exponent - bias - f.significand_bits);
}

TEST(Half, EveryNumberWidensToItsValueAndBack) {
    for (const Format &f : formats) {
        const int infinity = ((1 << f.exponent_bits) - 1) << f.significand_bits;
        for (int bits = 0; bits <= infinity; bits++) {
            const double value = bits == infinity ? (double)INFINITY : value_of(f, bits);
            for (const int sign : {0, 0x8000}) {
                const float wide = f.widen((uint16_t)(bits | sign));
                ASSERT_EQ((double)wide, sign ? -value : value) << f.name << " " << bits;
                ASSERT_EQ(std::signbit(wide), sign != 0) << f.name << " " << bits;
                ASSERT_EQ(f.narrow(wide), bits | sign) << f.name << " " << bits;
            }
        }
        for (int bits = infinity + 1; bits < 0x8000; bits++) {
            EXPECT_TRUE(std::isnan(f.widen((uint16_t)bits)));
            EXPECT_TRUE(std::isnan(f.widen(f.narrow(f.widen((uint16_t)bits)))));
        }
    }
}

/* Between neighbours: the nearer one; the middle goes to the even one. Beyond the largest finite number the next power
 * of two stands for infinity. */
TEST(Half, RoundsToNearestEven) {
    for (const Format &f : formats) {
        const int infinity = ((1 << f.exponent_bits) - 1) << f.significand_bits;
        for (int bits = 0; bits < infinity; bits++) {
            const double low = value_of(f, bits), high = value_of(f, bits + 1);
            const float middle = (float)((low + high) / 2); /* exact */
            ASSERT_EQ(f.narrow(middle), bits + (bits & 1)) << f.name << " " << bits;
            ASSERT_EQ(f.narrow(-middle), (bits + (bits & 1)) | 0x8000) << f.name << " " << bits;
            ASSERT_EQ(f.narrow(std::nextafterf(middle, 0)), bits) << f.name << " " << bits;
            ASSERT_EQ(f.narrow(std::nextafterf(middle, INFINITY)), bits + 1) << f.name << " " << bits;
        }
        EXPECT_EQ(f.narrow(INFINITY), infinity);
        EXPECT_EQ(f.narrow(3.4e38f), infinity) << f.name;
    }
}

/* -------------------------------------------------------------------------------------------------------- precision */

testing::AssertionResult allows(const loom_precision_flags &flags) {
    return works([&](loom_error *error) { return loom_precision_check(&flags, error); });
}

void refuses(const loom_precision_flags &flags, std::initializer_list<std::string> words) {
    refusal([&](loom_error *error) { return loom_precision_check(&flags, error); }, words);
}

TEST(Precision, OnlyBf16GoesWithoutMasterWeights) {
    for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16, LOOM_F16}) EXPECT_TRUE(allows({dtype, true}));
    EXPECT_TRUE(allows({LOOM_BF16, false}));
    refuses({LOOM_F16, false}, {"--master-weights", "bf16", "fp16", "lost"});
    refuses({LOOM_F32, false}, {"--master-weights", "bf16", "fp32"});
    for (const loom_dtype dtype : {LOOM_F64, LOOM_I32}) refuses({dtype, true}, {"--dtype", "fp16"});
}

TEST(Precision, MomentsOfBf16GoWithEveryDtypeGradientsWithBf16) {
    for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16, LOOM_F16}) EXPECT_TRUE(allows({dtype, true, LOOM_BF16}));
    for (const bool master : {true, false})
        for (const loom_dtype optimizer : {LOOM_F32, LOOM_BF16})
            EXPECT_TRUE(allows({LOOM_BF16, master, optimizer, LOOM_BF16}));
    refuses({LOOM_F32, true, LOOM_F32, LOOM_BF16}, {"--grad-dtype", "--dtype bf16", "fp32"});
    refuses({LOOM_F16, true, LOOM_F32, LOOM_BF16}, {"--grad-dtype", "--dtype bf16", "fp16"});
    for (const loom_dtype dtype : {LOOM_F16, LOOM_F64, LOOM_I32}) {
        refuses({LOOM_BF16, true, dtype}, {"--optimizer-dtype", "fp32 or bf16", loom_dtype_name(dtype)});
        refuses({LOOM_BF16, true, LOOM_F32, dtype}, {"--grad-dtype", "fp32 or bf16", loom_dtype_name(dtype)});
    }
}

TEST(Precision, IsTheDevicesAndTheFlags) {
    struct Row {
        const char *device;
        loom_precision_flags flags;
        loom_precision is;
    };
    const loom_dtype f32 = LOOM_F32, b16 = LOOM_BF16, f16 = LOOM_F16, f64 = LOOM_F64;
    for (const Row &row :
         {Row{"cpu", {f32, true}, {f32, f32, f32, f32}}, Row{"cpu", {b16, true}, {b16, f32, f32, f32}},
          Row{"cpu", {b16, false}, {b16, b16, f32, f32}}, Row{"cpu", {f32, true, b16}, {f32, f32, f32, b16}},
          Row{"cpu", {b16, true, f32, b16}, {b16, f32, b16, f32}},
          Row{"cpu", {b16, false, b16, b16}, {b16, b16, b16, b16}},
          Row{"definition", {f16, true}, {f16, f32, f32, f32}},
          Row{"definition", {f16, true, b16}, {f16, f32, f32, b16}}, Row{"oracle", {f16, true}, {f64, f64, f64, f64}},
          Row{"oracle", {b16, false, b16, b16}, {f64, f64, f64, f64}}}) {
        const Device device = open_device(row.device);
        loom_precision precision = {};
        require([&](loom_error *error) { return loom_precision_of(device.get(), &row.flags, &precision, error); });
        EXPECT_EQ(precision.storage, row.is.storage) << row.device;
        EXPECT_EQ(precision.master, row.is.master) << row.device;
        EXPECT_EQ(precision.gradient, row.is.gradient) << row.device;
        EXPECT_EQ(precision.moment, row.is.moment) << row.device;
        EXPECT_EQ(loom_loss_scale_at_first(&precision), precision.storage == LOOM_F16 ? 65536 : 1);
        EXPECT_EQ(loom_loss_scale_interval(&precision), precision.storage == LOOM_F16 ? 2000 : 0);
    }
}

/* Odd sizes: heads of 16 channels, a vocabulary with padding. */
const loom_gpt_config odd_shape = gpt_shape(2, 3, 48, 40, 70);

struct Numbers {
    const char *name;
    loom_dtype dtype;
    bool master;
    loom_dtype optimizer, gradient;
};

const Numbers runs[] = {{"fp32", LOOM_F32, true},
                        {"bf16", LOOM_BF16, true},
                        {"bf16_alone", LOOM_BF16, false},
                        {"fp16", LOOM_F16, true},
                        {"fp32_with_bf16_moments", LOOM_F32, true, LOOM_BF16},
                        {"bf16_with_bf16_gradients", LOOM_BF16, true, LOOM_F32, LOOM_BF16},
                        {"all_in_bf16", LOOM_BF16, false, LOOM_BF16, LOOM_BF16}};

/* What a run is, as options and as flags. */
ModelOptions in(const Numbers &run) {
    ModelOptions options;
    options.dtype = run.dtype;
    options.master = run.master;
    options.optimizer = run.optimizer;
    options.gradient = run.gradient;
    return options;
}

Options::Pairs flags_of(const Numbers &run) {
    return {{"dtype", loom_dtype_name(run.dtype)},
            {"master-weights", run.master ? "on" : "off"},
            {"optimizer-dtype", loom_dtype_name(run.optimizer)},
            {"grad-dtype", loom_dtype_name(run.gradient)}};
}

class InPrecision : public testing::TestWithParam<Numbers> {};
INSTANTIATE_TEST_SUITE_P(Runs, InPrecision, testing::ValuesIn(runs),
                         [](const testing::TestParamInfo<Numbers> &run) { return run.param.name; });

/* The plan is the arena's use to the byte, in every precision; and what is stored narrower takes less. */
TEST_P(InPrecision, ThePlanIsTheArenasUse) {
    const Numbers &run = GetParam();
    for (const loom_gpt_purpose purpose : {LOOM_GPT_TRAIN, LOOM_GPT_INFER}) {
        ModelOptions options = in(run);
        options.purpose = purpose;
        const Model model(odd_shape, 2, 40, options);
        loom_plan plan;
        require([&](loom_error *error) {
            return loom_plan_make(&plan, &odd_shape, setup_of(2, 40, purpose, &model.precision()), model.device(), 2,
                                  error);
        });
        EXPECT_EQ(memcmp(&plan.precision, &model.precision(), sizeof plan.precision), 0);
        const char *rows[] = {"parameters",  "master weights", "gradients", "moments",
                              "activations", "logits",         "workspace"};
        for (const char *row : rows) EXPECT_EQ(bytes_of_row(plan.arena, row), bytes_of_row(model.arena, row)) << row;

        const size_t elements = (size_t)model.layout().elements, gap = LOOM_ARENA_ALIGNMENT;
        const size_t size = run.dtype == LOOM_F32 ? 4 : 2;
        const bool beside = purpose == LOOM_GPT_TRAIN && run.dtype != LOOM_F32 && run.master;
        EXPECT_EQ(bytes_of_row(plan.arena, "parameters"), elements * size + gap);
        EXPECT_EQ(bytes_of_row(plan.arena, "master weights"), beside ? elements * 4 + gap : 0);
        const size_t gradient = run.gradient == LOOM_F32 ? 4 : 2, moment = run.optimizer == LOOM_F32 ? 4 : 2;
        const bool trains = purpose == LOOM_GPT_TRAIN;
        EXPECT_EQ(bytes_of_row(plan.arena, "gradients"), trains ? elements * gradient + gap : 0);
        EXPECT_EQ(bytes_of_row(plan.arena, "moments"), trains ? 2 * (elements * moment + gap) : 0);
    }
}

/* Every element, those in gaps and padding too. */
void expect_copy(const Model &model, const std::string &when) {
    std::vector<double> rounded = model.master();
    for (double &x : rounded) {
        if (model.precision().storage == LOOM_BF16) x = (double)bf16_to_float(float_to_bf16((float)x));
        if (model.precision().storage == LOOM_F16) x = (double)fp16_to_float(float_to_fp16((float)x));
    }
    EXPECT_TRUE(model.parameters() == rounded) << when;
}

loom_scalars_in inputs(double targets) {
    loom_scalars_in in = {};
    in.learning_rate = 1e-2f;
    in.beta1 = 0.9f;
    in.beta2 = 0.95f;
    in.epsilon = 1e-8f;
    in.weight_decay = 0.1f;
    in.clip_norm = 1;
    in.loss_gradient = (float)(1 / targets);
    return in;
}

void train(Model &model, uint64_t seed) {
    const int64_t N = model.B * model.T, V = model.config().vocab_size;
    model.set_inputs(inputs((double)N));
    model.run(random_ids(N, V, seed), random_ids(N, V, seed + 1), 1 / (double)N);
    loom_optimizer_take_losses(&model.optimizer, 0, model.B);
    loom_optimizer_update(&model.optimizer);
}

/* The initialisation is fp32's, rounded; after each step the model reads the rounded master, and the master moved by
 * less than the copy can tell. */
TEST_P(InPrecision, TheModelReadsTheRoundedMaster) {
    Model wide(odd_shape, 2, 40), model(odd_shape, 2, 40, in(GetParam()));
    for (Model *each : {&wide, &model})
        require([&](loom_error *error) { return loom_gpt_initialise(each->gpt(), 3, error); });
    if (GetParam().master) {
        EXPECT_TRUE(model.master() == wide.master());
    }
    expect_copy(model, "at first");
    wide.write(loom_gpt_get_parameters(wide.gpt()), model.precision().storage, 0, wide.parameters());
    EXPECT_TRUE(model.parameters() ==
                wide.read(loom_gpt_get_parameters(wide.gpt()), model.precision().storage, 0, wide.layout().elements));
    for (uint64_t step = 0; step < 3; step++) {
        const std::vector<double> before = model.master();
        train(model, 10 + step);
        expect_copy(model, "after step " + std::to_string(step + 1));
        EXPECT_FALSE(model.master() == before);
    }
    EXPECT_EQ(model.scalars().state.updates, 3);
}

/* Nothing is read that was not written: steps, validation and inference give the same whatever memory held. */
TEST_P(InPrecision, WhatMemoryHeldDoesNotMatter) {
    std::vector<std::vector<double>> reference;
    for (const int fill : {0x00, 0xFF, 0x5A}) {
        ModelOptions options = in(GetParam());
        options.fill = fill;
        options.threads = fill ? 2 : 1;
        Model model(odd_shape, 2, 40, options);
        require([&](loom_error *error) { return loom_gpt_initialise(model.gpt(), 3, error); });
        train(model, 1);
        train(model, 2);
        loom_gpt_evaluate(model.gpt());
        const std::vector<double> losses = model.losses();
        std::vector<float> logits((size_t)odd_shape.vocab_size);
        const std::vector<int32_t> prompt = random_ids(21, odd_shape.vocab_size, 9);
        require([&](loom_error *error) {
            return loom_gpt_next_logits(model.gpt(), prompt.data(), 21, 0, logits.data(), error);
        });
        const std::vector<std::vector<double>> found = {model.master(),
                                                        model.parameters(),
                                                        model.gradients(),
                                                        model.moments(1),
                                                        model.moments(2),
                                                        losses,
                                                        {logits.begin(), logits.end()}};
        for (const auto &values : found)
            EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); }));
        if (reference.empty()) reference = found;
        EXPECT_TRUE(found == reference) << "memory of bytes " << fill;
    }
}

double unit_of(loom_dtype dtype) {
    return dtype == LOOM_BF16 ? 0x1p-8 : dtype == LOOM_F16 ? 0x1p-11 : 0x1p-24;
}

/* Gradients and logits beside the oracle's, of the same rounded parameters. Rounding what is stored is what errs: each
 * tensor of the way forward (10 in a block, 5 around them) and back (8 in a block, 4) once, independently of the
 * others, by less than u. Gradients of weights in bf16 are rounded too, the token embedding's twice. Weights of order
 * one let a rounding grow little; 4 covers that. A gradient is as much larger as the loss scale says. */
TEST_P(InPrecision, GradientsAndLogitsAreNearTheOracles) {
    const Numbers &run = GetParam();
    const int64_t B = 2, T = 40, N = B * T;
    const float scale = run.dtype == LOOM_F16 ? 1024 : 1;
    ModelOptions exact;
    exact.device = "oracle";
    Model oracle(odd_shape, B, T, exact), model(odd_shape, B, T, in(run));
    model.scatter_parameters(4);
    oracle.set_parameters(model.parameters());
    model.set_loss_scale(scale);
    const std::vector<int32_t> tokens = random_ids(N, 70, 1), targets = random_ids(N, 70, 2);
    for (Model *each : {&oracle, &model}) each->run(tokens, targets, 1 / (double)N);
    std::vector<double> gradients = model.gradients();
    for (double &g : gradients) g /= (double)scale;
    const double layers = (double)odd_shape.n_layer, arithmetic = 0x1p-24 * std::sqrt(whole_path(odd_shape, B, T));
    const double forward = 4 * (unit_of(run.dtype) * std::sqrt(10 * layers + 5) + arithmetic);
    const double own = run.gradient == LOOM_BF16 ? 2 : 0;
    const double whole = 4 * (unit_of(run.dtype) * std::sqrt(18 * layers + 9 + own) + arithmetic);
    expect_tensors_near(model.layout(), gradients, oracle.gradients(), whole, run.name);
    EXPECT_LE(relative_error(model.losses(), oracle.losses()), forward);

    std::vector<float> found(70), expected(70);
    for (auto [each, logits] : {std::pair{&oracle, &expected}, std::pair{&model, &found}})
        require([&, m = each, l = logits](loom_error *error) {
            return loom_gpt_next_logits(m->gpt(), tokens.data(), 37, 0, l->data(), error);
        });
    EXPECT_LE(relative_error({found.begin(), found.end()}, {expected.begin(), expected.end()}), forward);
    const std::vector<double> stored = model.read(loom_run_logits(model.gpt(), 1).data, model.precision().storage, 0,
                                                  70);
    EXPECT_TRUE(std::vector<double>(found.begin(), found.end()) == stored) << "the host reads what is stored, widened";
}

/* Without a master, and of moments, the random rounding hangs on the seed, the step and the place of the element, on
 * nothing else. */
TEST(Precision, RandomRoundingIsOfTheSeed) {
    const auto after = [](uint64_t seed, int threads) {
        ModelOptions options = in({"", LOOM_BF16, false, LOOM_BF16});
        options.threads = threads;
        Model model(odd_shape, 2, 40, options);
        require([&](loom_error *error) { return loom_gpt_initialise(model.gpt(), 3, error); });
        model.optimizer.seed = seed;
        train(model, 1);
        return std::vector<std::vector<double>>{model.parameters(), model.moments(1), model.moments(2)};
    };
    const std::vector<std::vector<double>> first = after(7, 1), other = after(8, 1);
    EXPECT_TRUE(first == after(7, 2));
    for (size_t i = 0; i < first.size(); i++) EXPECT_FALSE(first[i] == other[i]) << i;
}

/* An element's rounding is that of its bucket and its place there, the bucket's number 2^40 places apart: the update of
 * all tensors, one after the other, is that of whole buckets. */
TEST_P(InPrecision, AnElementsUpdateIsOfItsPlace) {
    Model model(odd_shape, 2, 40, in(GetParam()));
    model.scatter_parameters(4);
    model.optimizer.seed = 11;
    train(model, 1);
    const std::vector<double> before = model.master(), m = model.moments(1), v = model.moments(2);
    loom_scalars_in without_decay = inputs(80);
    without_decay.weight_decay = 0;
    model.set_inputs(without_decay);
    loom_optimizer_update(&model.optimizer);
    const std::vector<double> updated = model.master(), copied = model.parameters();
    const std::vector<double> updated_m = model.moments(1), updated_v = model.moments(2);
    EXPECT_FALSE(updated == before);

    model.set_parameters(before);
    const loom_precision &precision = model.precision();
    model.write(model.optimizer.moment1, precision.moment, 0, m);
    model.write(model.optimizer.moment2, precision.moment, 0, v);
    loom_context *ctx = loom_gpt_get_context(model.gpt());
    for (int b = 0; b < model.layout().n_buckets; b++) {
        const loom_bucket &bucket = model.layout().bucket[b];
        const auto part = [&](void *data, loom_dtype dtype) {
            return loom_view_1d((char *)data + (size_t)bucket.offset * loom_dtype_size(dtype), dtype, bucket.elements);
        };
        struct loom_adamw whole = {};
        whole.parameter = part(loom_gpt_get_master(model.gpt()), precision.master);
        if (precision.master != precision.storage)
            whole.copy = part(loom_gpt_get_parameters(model.gpt()), precision.storage);
        whole.gradient = part(loom_gpt_get_gradients(model.gpt()), precision.gradient);
        whole.moment1 = part(model.optimizer.moment1, precision.moment);
        whole.moment2 = part(model.optimizer.moment2, precision.moment);
        whole.scalars = loom_gpt_get_scalars(model.gpt());
        whole.seed = 11;
        whole.first = (int64_t)b << 40;
        ctx->ops->adamw(ctx, &whole);
    }
    EXPECT_TRUE(model.master() == updated);
    EXPECT_TRUE(model.parameters() == copied);
    EXPECT_TRUE(model.moments(1) == updated_m);
    EXPECT_TRUE(model.moments(2) == updated_v);
}

/* Gaps between tensors, and the rows that pad the vocabulary: zero in every precision, random rounding or not. */
TEST_P(InPrecision, PaddingStaysZero) {
    Model model(odd_shape, 2, 40, in(GetParam()));
    require([&](loom_error *error) { return loom_gpt_initialise(model.gpt(), 3, error); });
    for (uint64_t step = 0; step < 2; step++) train(model, step);
    for (std::vector<double> all : {model.gradients(), model.parameters(), model.moments(1), model.moments(2)}) {
        for (int i = 0; i < model.layout().n_parameters; i++) {
            const loom_parameter &p = model.layout().parameter[i];
            std::fill_n(all.begin() + p.offset, p.rows * p.columns, 0.0);
        }
        EXPECT_TRUE(std::all_of(all.begin(), all.end(), [](double x) { return x == 0; }));
    }
}

/* ----------------------------------------------------------------------------------------------------- loss scaling */

/* A scale under which fp16 gradients overflow: nothing moves, and the scale halves until they fit; then steps count up
 * to the interval, and the scale doubles. */
TEST(LossScale, HalvesUntilGradientsFitAndGrowsAgain) {
    Model model(odd_shape, 2, 40, in({"", LOOM_F16, true}));
    model.scatter_parameters(4);
    model.set_loss_scale(0x1p24f);
    const auto step = [&] {
        loom_scalars_in in = inputs(80);
        in.loss_scale_interval = 5;
        model.set_inputs(in);
        model.run(random_ids(80, 70, 1), random_ids(80, 70, 2), 1 / 80.0);
        loom_optimizer_take_losses(&model.optimizer, 0, 2);
        loom_optimizer_update(&model.optimizer);
        return model.scalars();
    };
    const std::vector<double> before = model.master();
    int halved = 0;
    loom_scalars after = step();
    while (after.out.skip && halved < 24) {
        halved++;
        EXPECT_EQ(after.state.loss_scale, std::ldexp(1.0f, 24 - halved));
        EXPECT_EQ(after.state.loss_scale_age, 0);
        EXPECT_EQ(after.state.skipped, halved);
        EXPECT_TRUE(std::isfinite(after.out.loss));
        EXPECT_TRUE(model.master() == before);
        after = step();
    }
    ASSERT_TRUE(halved > 0 && halved < 24);
    EXPECT_EQ(after.state.updates, 1);
    EXPECT_FALSE(model.master() == before);
    expect_copy(model, "after the first step that fits");
    const float fits = after.state.loss_scale;
    for (int age = 1; age < 5; age++) {
        EXPECT_EQ(after.state.loss_scale, fits);
        EXPECT_EQ(after.state.loss_scale_age, age);
        after = step();
        ASSERT_FALSE(after.out.skip);
    }
    EXPECT_EQ(after.state.loss_scale, 2 * fits);
    EXPECT_EQ(after.state.loss_scale_age, 0);
}

/* The scale leaves the step as it is: a power of two changes no bit of a gradient that neither under- nor overflows. */
TEST(LossScale, ChangesNothingElse) {
    std::vector<double> reference;
    for (const float scale : {1.0f, 64.0f}) {
        Model model(odd_shape, 2, 40, in({"", LOOM_BF16, true}));
        model.scatter_parameters(4);
        model.set_loss_scale(scale);
        train(model, 1);
        EXPECT_EQ(model.scalars().state.loss_scale, scale) << "an interval of 0 leaves it";
        if (reference.empty()) reference = model.master();
        EXPECT_TRUE(model.master() == reference);
    }
}

/* ------------------------------------------------------------------------------------------------------- whole runs */

class Train : public testing::Test {
  protected:
    void SetUp() override {
        write_file(at("text"), some_text(3000, 1));
    }
    std::string at(const std::string &name) const {
        return directory.at(name);
    }

    /* One layer on bytes, some milliseconds a step. */
    Options::Pairs run(const std::string &out, const Options::Pairs &changes = {}) const {
        return Options::Pairs{{"data", at("text")},  {"out", at(out)},     {"n-layer", "1"}, {"n-head", "2"},
                              {"n-embd", "16"},      {"block-size", "16"}, {"batch", "4"},   {"micro-batch", "2"},
                              {"steps", "20"},       {"lr", "1e-2"},       {"seed", "7"},    {"threads", "1"},
                              {"val-every", "0"},    {"device", "cpu"},    {"keep", "0"},    {"sample-every", "10"},
                              {"sample-tokens", "9"}} +
               changes;
    }
    static testing::AssertionResult trains(const Options::Pairs &pairs) {
        const Options options(pairs);
        return works([&](loom_error *error) { return loom_train(options.get(), NULL, NULL, error); });
    }
    std::vector<double> losses(const std::string &out) const {
        std::ifstream file(at(out + "/metrics.jsonl"));
        std::vector<double> all;
        for (std::string line; std::getline(file, line);)
            all.push_back(std::stod(line.substr(line.find("\"loss\": ") + 8)));
        return all;
    }
    std::string file(const std::string &out, const std::string &name) const {
        return read_file(at(out + "/checkpoints/latest/" + name));
    }
    void expect_same_checkpoint(const std::string &a, const std::string &b) const {
        for (const char *name : {"model.safetensors", "optimizer.safetensors", "training_state.json", "config.json"})
            EXPECT_TRUE(file(a, name) == file(b, name)) << name;
    }
    /* The type that all tensors of a checkpoint's file are stored in. */
    std::string type_in(const std::string &out, const std::string &name) const {
        loom_safetensors weights;
        std::set<std::string> types;
        require([&](loom_error *error) {
            return loom_safetensors_open(&weights, at(out + "/checkpoints/latest/" + name).c_str(), error);
        });
        for (int i = 0; i < weights.n_tensors; i++) types.insert(weights.tensor[i].dtype);
        loom_safetensors_close(&weights);
        return types.size() == 1 ? *types.begin() : "several";
    }

    TemporaryDirectory directory;
};

class TrainInPrecision : public Train, public testing::WithParamInterface<Numbers> {};
INSTANTIATE_TEST_SUITE_P(Runs, TrainInPrecision, testing::ValuesIn(runs),
                         [](const testing::TestParamInfo<Numbers> &run) { return run.param.name; });

/* Losses follow fp32's: by the end of 20 steps rounding has gone its own way, but not far beside what was learned. */
TEST_P(TrainInPrecision, LossesFollowThoseOfFp32) {
    ASSERT_TRUE(trains(run("wide")) && trains(run("run", flags_of(GetParam()))));
    const std::vector<double> wide = losses("wide"), found = losses("run");
    ASSERT_EQ(found.size(), 20u);
    ASSERT_LT(wide.back(), wide.front() - 1) << "there is something to learn";
    EXPECT_NEAR(found[0], wide[0], 4 * unit_of(GetParam().dtype) * std::sqrt(15.0) * wide[0]);
    for (size_t i = 0; i < wide.size(); i++) EXPECT_NEAR(found[i], wide[i], 0.02 * wide[0]) << "step " << i + 1;
}

TEST_P(TrainInPrecision, AResumedRunHasTheSameBits) {
    const Options::Pairs flags = flags_of(GetParam());
    ASSERT_TRUE(trains(run("whole", flags)));
    ASSERT_TRUE(trains(run("parts", flags + Options::Pairs{{"stop-after", "7"}})));
    ASSERT_TRUE(trains(run("parts", flags + Options::Pairs{{"resume", "true"}})));
    expect_same_checkpoint("whole", "parts");
    EXPECT_EQ(losses("whole"), losses("parts"));
    EXPECT_EQ(read_file(at("whole/samples.txt")), read_file(at("parts/samples.txt")));
}

/* Weights are saved as the optimizer has them, and say so. */
TEST_P(TrainInPrecision, FilesHoldTheMasterWeights) {
    ASSERT_TRUE(trains(run("run", flags_of(GetParam()) + Options::Pairs{{"steps", "3"}})));
    const bool narrow = !GetParam().master;
    EXPECT_EQ(type_in("run", "model.safetensors"), narrow ? "BF16" : "F32");
    EXPECT_EQ(type_in("run", "optimizer.safetensors"), GetParam().optimizer == LOOM_BF16 ? "BF16" : "F32");
    EXPECT_NE(
        file("run", "config.json").find(narrow ? "\"torch_dtype\":\t\"bfloat16\"" : "\"torch_dtype\":\t\"float32\""),
        std::string::npos);
    EXPECT_NE(file("run", "training_state.json").find("\"dtype\":\t\"" + flags_of(GetParam())["dtype"] + "\""),
              std::string::npos);
    const std::string config = read_file(at("run/config.ini"));
    EXPECT_NE(config.find("dtype = " + flags_of(GetParam())["dtype"] + "\n"), std::string::npos);
    EXPECT_NE(config.find(narrow ? "master-weights = off\n" : "master-weights = on\n"), std::string::npos);
    for (const char *key : {"optimizer-dtype", "grad-dtype"})
        EXPECT_NE(config.find(key + (" = " + flags_of(GetParam())[key]) + "\n"), std::string::npos);
    EXPECT_EQ(read_file(at("run/metrics.jsonl")).find("loss_scale") != std::string::npos, GetParam().dtype == LOOM_F16);
}

/* From any run's weights a run of any precision can begin, and any run can go on in any other precision. */
TEST_P(TrainInPrecision, RunsBeginWithAndGoOnFromEveryOther) {
    ASSERT_TRUE(trains(run("first", flags_of(GetParam()) + Options::Pairs{{"steps", "3"}})));
    const auto weights = [](const Trainer &trainer) {
        const loom_precision *precision = loom_gpt_get_precision(trainer->gpt);
        std::vector<double> all;
        for (int64_t i = 0; i < loom_gpt_get_layout(trainer->gpt)->elements; i++) {
            const char *at = (const char *)loom_gpt_get_master(trainer->gpt) +
                             (size_t)i * loom_dtype_size(precision->master);
            all.push_back((double)(precision->master == LOOM_F32 ? *(const float *)(const void *)at
                                                                 : bf16_to_float(*(const uint16_t *)(const void *)at)));
        }
        return all;
    };
    const Options first(run("first", flags_of(GetParam()) + Options::Pairs{{"resume", "true"}, {"steps", "5"}}));
    const std::vector<double> saved = weights(open_trainer(first));
    for (const Numbers &next : runs)
        for (const char *how : {"init", "resume"}) {
            SCOPED_TRACE(std::string(how) + " in " + next.name);
            const bool resumes = !strcmp(how, "resume");
            const Options options(
                run(resumes ? "first" : "next",
                    flags_of(next) + Options::Pairs{{"steps", "5"}, {how, resumes ? "true" : at("first")}}));
            const Trainer trainer = open_trainer(options);
            EXPECT_EQ(loom_trainer_steps_done(trainer.get()), resumes ? 3 : 0);
            EXPECT_EQ(loom_trainer_loss_scale(trainer.get()), next.dtype == LOOM_F16 ? 65536 : 1);
            EXPECT_EQ(trainer->state.dtype, next.dtype);
            EXPECT_EQ(trainer->optimizer.seed, 7u);
            std::vector<double> expected = saved;
            if (!next.master)
                for (double &x : expected) x = (double)bf16_to_float(float_to_bf16((float)x));
            EXPECT_TRUE(weights(trainer) == expected);
            const double loss = (double)step(trainer).loss;
            EXPECT_TRUE(loss > 1 && loss < 6) << loss;
        }
}

/* The scale is the checkpoint's: a resumed run goes on with it, and one older than loss scaling has it as at first. */
TEST_F(Train, TheLossScaleBelongsToTheCheckpoint) {
    const Options options(run("run", {{"dtype", "fp16"}}));
    {
        const Trainer trainer = open_trainer(options);
        const loom_scalars_state huge = {0, 0, 0, 0, 0, 0, 0, 0x1p40f, 3};
        loom_gpt_get_scalars(trainer->gpt)->state = huge; /* the CPU's memory is the host's */
        for (int i = 1; i <= 4; i++) {
            EXPECT_TRUE(step(trainer).skipped);
            EXPECT_EQ(loom_trainer_loss_scale(trainer.get()), std::ldexp(1.0f, 40 - i));
        }
        require([&](loom_error *error) { return loom_trainer_save(trainer.get(), at("run").c_str(), error); });
    }
    const Options resumed(run("run", {{"dtype", "fp16"}, {"resume", "true"}}));
    EXPECT_EQ(loom_trainer_loss_scale(open_trainer(resumed).get()), 0x1p36f);
    EXPECT_EQ(loom_gpt_get_scalars(open_trainer(resumed)->gpt)->state.loss_scale, 0x1p36f);

    const std::string state = at("run/checkpoints/latest/training_state.json");
    std::string text = read_file(state);
    for (const char *key : {"\"loss_scale\"", "\"loss_scale_age\"", "\"dtype\""})
        text.replace(text.find(key), strlen(key),
                     "\"unknown" + std::string(key + 1, 4) + std::to_string(text.size()) + "\"");
    write_file(state, text);
    fs::remove(at("run/checkpoints/latest/manifest.json"));
    EXPECT_EQ(loom_trainer_loss_scale(open_trainer(resumed).get()), 65536);
    const Options wide(run("run", {{"resume", "true"}}));
    EXPECT_EQ(loom_trainer_loss_scale(open_trainer(wide).get()), 1);
}

/* Many overflows in a row are the scale's search, not a run that is lost. */
TEST_F(Train, AnOverflowOfTheScaleDoesNotEndTheRun) {
    loom_train_observer observer = {};
    observer.started = [](void *, loom_trainer *trainer) {
        loom_gpt_get_scalars(trainer->gpt)->state.loss_scale = 0x1p40f;
    };
    const Options options(run("run", {{"dtype", "fp16"}, {"steps", "40"}}));
    ASSERT_TRUE(works([&](loom_error *error) { return loom_train(options.get(), NULL, &observer, error); }));
    const std::string metrics = read_file(at("run/metrics.jsonl"));
    size_t skipped = 0;
    for (size_t at = 0; (at = metrics.find("\"skipped\": true", at)) != std::string::npos; at++) skipped++;
    EXPECT_GT(skipped, 10u);
    EXPECT_LT(skipped, 30u);
    const std::vector<double> all = losses("run");
    EXPECT_LT(all.back(), all.front());
}

/* ------------------------------------------------------------------------------------------------------ tuning cache */

/* A device's tuning cache lies in every checkpoint; CPUs have none, and a file of the machine before goes. */
TEST_F(Train, TheTuningCacheLiesInTheCheckpoint) {
    const Options options(run("run"));
    const Trainer trainer = open_trainer(options);
    const auto save = [&] {
        require([&](loom_error *error) { return loom_trainer_save(trainer.get(), at("run").c_str(), error); });
    };
    save();
    EXPECT_FALSE(fs::exists(at("run/checkpoints/latest/tuning.txt")));
    trainer->device->tuning_get = [](const loom_device *, char **text, loom_error *) {
        *text = strdup("device A\nmatmul 3\n");
        return true;
    };
    step(trainer);
    save();
    EXPECT_EQ(file("run", "tuning.txt"), "device A\nmatmul 3\n");

    loom_checkpoint_info info;
    require([&](loom_error *error) { return loom_checkpoint_open(at("run").c_str(), &info, error); });
    static std::string given;
    const Device device = open_device("cpu");
    const auto restore = [&](loom_error *error) {
        return loom_device_restore_tuning(device.get(), info.directory, error);
    };
    device->tuning_set = [](loom_device *, const char *text, loom_error *) {
        given = text;
        return true;
    };
    EXPECT_TRUE(works(restore));
    EXPECT_EQ(given, "device A\nmatmul 3\n");
    device->tuning_set = [](loom_device *, const char *, loom_error *error) {
        return loom_fail(error, "this is device B");
    };
    refusal(restore, {"this is device B"});
    write_file(at("run/checkpoints/latest/choices.txt"), "of an earlier version");
    refusal(restore, {"this is device B", "tuning.txt"});
    write_file(at("run/checkpoints/latest/tuning.txt"), "damaged");
    refusal([&](loom_error *error) { return loom_checkpoint_open(at("run").c_str(), &info, error); },
            {"tuning.txt", "damaged"});
}

TEST_F(Train, TheTuningCacheOfAnotherMachineDoesNotStay) {
    ASSERT_TRUE(trains(run("run", {{"stop-after", "2"}})));
    write_file(at("run/tuning.txt"), "device A\n");
    write_file(at("run/choices.txt"), "measured on device A\n");
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}, {"stop-after", "1"}})));
    EXPECT_FALSE(fs::exists(at("run/tuning.txt")));
    EXPECT_FALSE(fs::exists(at("run/choices.txt"))) << "of an earlier version";
    write_file(at("run/choices.txt"), "what else is called so");
    ASSERT_TRUE(trains(run("run", {{"resume", "true"}})));
    EXPECT_EQ(read_file(at("run/choices.txt")), "what else is called so");
}

/* ------------------------------------------------------------------------------------ notes on what resuming changed */

class Note : public Train {
  protected:
    void SetUp() override {
        Train::SetUp();
        EXPECT_EQ(note(run("run")), "") << "a new run changes nothing";
        ASSERT_TRUE(trains(run("run", {{"steps", "3"}, {"sample-every", "0"}})));
        saved = read_file(state);
        fs::remove(at("run/checkpoints/latest/manifest.json")); /* tests change the state */
    }
    /* The line on bits; others say what of the run's course is different. */
    static std::string note(const Options::Pairs &pairs) {
        const Options options(pairs);
        std::istringstream lines(loom_trainer_note(open_trainer(options).get()));
        for (std::string line; std::getline(lines, line);)
            if (line.find(": changed, so ") != std::string::npos) return line;
        return "";
    }
    std::string resumed(const Options::Pairs &changes = {}) const {
        return note(run("run", Options::Pairs{{"resume", "true"}} + changes));
    }
    static std::string changed(const std::string &flags) {
        return flags + ": changed, so from here on the bits are not those of an uninterrupted run";
    }
    /* The state as it was saved, with the first `old_text` in it replaced. */
    void rewrite(const std::string &old_text, const std::string &new_text) const {
        std::string text = saved;
        ASSERT_NE(text.find(old_text), std::string::npos) << old_text;
        write_file(state, text.replace(text.find(old_text), old_text.size(), new_text));
    }

    const std::string state = at("run/checkpoints/latest/training_state.json");
    std::string saved;
};

TEST_F(Note, NamesTheFlagsThatChangeTheBits) {
    EXPECT_EQ(resumed({{"micro-batch", "4"}}), changed("--micro-batch"));
    EXPECT_EQ(resumed({{"dtype", "bf16"}}), changed("--dtype"));
    EXPECT_EQ(resumed({{"dtype", "bf16"}, {"master-weights", "off"}}), changed("--dtype, --master-weights"));
    EXPECT_EQ(resumed({{"optimizer-dtype", "bf16"}}), changed("--optimizer-dtype"));
    EXPECT_EQ(resumed({{"dtype", "bf16"}, {"grad-dtype", "bf16"}}), changed("--dtype, --grad-dtype"));
    EXPECT_EQ(resumed({{"deterministic", "false"}}), changed("--deterministic"));
    EXPECT_EQ(resumed({{"device", "definition"}, {"micro-batch", "1"}}), changed("--micro-batch, --device"));
    for (const auto &[old_text, new_text, flag] : std::vector<std::array<const char *, 3>>{
             {"\"tf32\":\tfalse", "\"tf32\":\ttrue", "--tf32"},
             {"\"attention\":\t\"own\"", "\"attention\":\t\"cudnn\"", "--attention"},
             {"\"device\":\t\"cpu\"", "\"device\":\t\"cuda (emulated)\"", "--device"}}) {
        rewrite(old_text, new_text);
        EXPECT_EQ(resumed(), changed(flag));
    }
}

TEST_F(Note, IsEmptyWhereNoBitChanges) {
    EXPECT_EQ(resumed(), "");
    EXPECT_EQ(resumed({{"threads", "2"}, {"cuda-graph", "off"}, {"sample-every", "0"}, {"val-every", "5"}}), "");
    EXPECT_EQ(resumed({{"retune", "true"}}), "") << "a CPU tunes nothing";
    EXPECT_EQ(note(run("next", {{"init", at("run")}, {"dtype", "bf16"}, {"micro-batch", "4"}})), "");
}

/* What a resumed run was changed to is what the next one is compared with. */
TEST_F(Note, IsSaidOnce) {
    const Options::Pairs other = {{"resume", "true"}, {"micro-batch", "4"}, {"dtype", "bf16"}};
    ASSERT_TRUE(trains(run("run", other + Options::Pairs{{"stop-after", "1"}})));
    EXPECT_EQ(note(run("run", other)), "");
    EXPECT_EQ(resumed(), changed("--dtype, --micro-batch"));
}

/* What was written before settings were kept tells the dtype alone. */
TEST_F(Note, KnowsOnlyTheDtypeOfOlderStates) {
    rewrite("\"settings\"", "\"unknown\"");
    EXPECT_EQ(resumed(), "");
    EXPECT_EQ(resumed({{"micro-batch", "4"}, {"device", "definition"}, {"deterministic", "false"}}), "");
    EXPECT_EQ(resumed({{"dtype", "bf16"}, {"master-weights", "off"}}), changed("--dtype"));
}

/* What was written before moments and gradients had dtypes of their own had them in fp32. */
TEST_F(Note, OlderMomentsAndGradientsAreOfFp32) {
    for (const char *key : {"optimizer_dtype", "grad_dtype"}) {
        rewrite("\"" + std::string(key) + "\"", "\"unknown\"");
        EXPECT_EQ(resumed(), "");
        EXPECT_EQ(resumed({{"optimizer-dtype", "bf16"}}), changed("--optimizer-dtype"));
        EXPECT_EQ(resumed({{"dtype", "bf16"}, {"grad-dtype", "bf16"}}), changed("--dtype, --grad-dtype"));
    }
}

TEST_F(Note, SettingsAreChecked) {
    const std::vector<std::array<std::string, 2>> damages = {
        {"\"micro_batch\":\t\"2\"", "\"micro_batch\":\t\"0\""},
        {"\"micro_batch\":\t\"2\"", "\"micro_batch\":\t2"},
        {"\"tf32\":\tfalse", "\"tf32\":\t0"},
        {"\"deterministic\"", "\"undetermined\""},
        {"\"master_weights\":\ttrue", "\"master_weights\":\t\"on\""},
        {"\"optimizer_dtype\":\t\"fp32\"", "\"optimizer_dtype\":\t\"fp16\""},
        {"\"optimizer_dtype\":\t\"fp32\"", "\"optimizer_dtype\":\t32"},
        {"\"grad_dtype\":\t\"fp32\"", "\"grad_dtype\":\t\"half\""},
        {"\"attention\":\t\"own\"", "\"attention\":\t\"flash\""},
        {"\"device\":\t\"cpu\"", "\"device\":\t\"\""},
        {"\"device\":\t\"cpu\"", "\"device\":\t\"" + std::string(32, 'x') + "\""},
        {"\"settings\":\t{", "\"settings\":\t7, \"unknown\":\t{"}};
    loom_training_state read;
    for (const auto &[old_text, new_text] : damages) {
        rewrite(old_text, new_text);
        const std::string field = old_text.substr(0, old_text.find('"', 1) + 1);
        refusal([&](loom_error *error) { return loom_state_read(state.c_str(), &read, error); },
                {state.c_str(), field.c_str()});
    }
}

TEST_F(Train, WhatIsForCudaIsRefusedElsewhere) {
    for (const auto &[key, value] : Options::Pairs{{"tf32", "true"}, {"attention", "cudnn"}}) {
        const Options options(run("run", {{key, value}}));
        refusal([&](loom_error *error) { return loom_train(options.get(), NULL, NULL, error); },
                {"--" + key, "--device cuda", "cpu"});
        EXPECT_FALSE(fs::exists(at("run")));
    }
}

} // namespace
