/* Recomputing activations: every policy gives the bits of keeping everything, and keeps what it says. */
#include "model/architectures.h"
#include "support.h"

#include <string>
#include <tuple>

namespace {

using namespace support;

loom_recompute policy(const std::string &name) {
    loom_recompute recompute;
    require([&](loom_error *error) { return loom_recompute_parse(name.c_str(), &recompute, error); });
    return recompute;
}

const char *const policies[] = {"act",
                                "norm",
                                "block-attn",
                                "block",
                                "every:1",
                                "every:2",
                                "every:3",
                                "every:4",
                                "every:5",
                                "every:9",
                                "sqrt",
                                "sets:a5*2,331*1,0*1,7e*1",
                                "sets:100*1,44*3,fff*1"};

/* The tuning cache of a model's device, to be given to the next one. */
std::string tuning_of(const Model &model) {
    char *text = nullptr;
    require([&](loom_error *error) { return model.device()->tuning_get(model.device(), &text, error); });
    const std::string tuning = text ? text : "";
    free(text);
    return tuning;
}

void give_tuning(loom_gpt *gpt, const std::string &tuning) {
    loom_device *device = loom_gpt_get_device(gpt);
    if (tuning.empty()) return;
    require([&](loom_error *error) { return device->tuning_set(device, tuning.c_str(), error); });
}

/* ------------------------------------------------------------------------------------------------------------- the bits */

const int64_t B = 2, T = 12;

struct Place {
    const char *device;
    loom_dtype dtype;
    loom_gpt_activation activation;
    loom_gpt_architecture architecture;
};

void PrintTo(const Place &place, std::ostream *out) {
    *out << place.device << " " << loom_dtype_name(place.dtype) << " "
         << loom_activation_name(loom_activation_of(place.activation)) << " "
         << loom_gpt_names_of(place.architecture)->name;
}

class Policies : public testing::TestWithParam<Place> {};

/* Losses and gradients of two micro-batches, the second added to the first. */
struct Outcome {
    std::string losses, gradients;
};

Outcome outcome(const loom_gpt_config &shape, const ModelOptions &options, std::string *tuning) {
    Model model(shape, B, T, options);
    model.scatter_parameters(3);
    Outcome result;
    for (int i = 0; i < 2; i++) {
        model.run(random_ids(B * T, shape.vocab_size, 2 * (uint64_t)i + 1),
                  random_ids(B * T, shape.vocab_size, 2 * (uint64_t)i + 2), 1.0 / (double)(B * T), i > 0);
        const std::vector<double> losses = model.losses();
        result.losses.append((const char *)losses.data(), losses.size() * sizeof(double));
    }
    const std::vector<double> gradients = model.gradients();
    EXPECT_NE(gradients, std::vector<double>(gradients.size(), 0.0));
    result.gradients.assign((const char *)gradients.data(), gradients.size() * sizeof(double));
    *tuning = tuning_of(model);
    return result;
}

/* All with the algorithms that the first model measured to be the fastest. */
TEST_P(Policies, GiveTheBitsOfKeepingEverything) {
    loom_gpt_config shape = gpt_shape(5, 2, 16, T, 61, GetParam().activation);
    shape.architecture = GetParam().architecture;
    std::string tuning;
    ModelOptions options;
    options.device = GetParam().device;
    options.dtype = GetParam().dtype;
    options.threads = 1;
    const Outcome kept = outcome(shape, options, &tuning);
    options.before_lay_out = [&tuning](loom_gpt *gpt) { give_tuning(gpt, tuning); };
    for (const char *name : policies) {
        options.recompute = policy(name);
        const Outcome recomputed = outcome(shape, options, &tuning);
        EXPECT_TRUE(kept.losses == recomputed.losses) << name;
        EXPECT_TRUE(kept.gradients == recomputed.gradients) << name;
    }
}

std::vector<Place> places() {
    std::vector<Place> all;
    for (const char *device : {"cpu", "definition", "oracle", "cuda"})
        for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16, LOOM_F16})
            for (const loom_gpt_activation activation : {LOOM_GPT_GELU, LOOM_GPT_RELU, LOOM_GPT_RELU2}) {
                if (std::string(device) == "oracle" && dtype != LOOM_F32) continue;
                if (std::string(device) == "cuda" && activation != LOOM_GPT_GELU && !full()) continue;
                all.push_back({device, dtype, activation, LOOM_GPT_2});
                if (activation == LOOM_GPT_GELU && (dtype == LOOM_F32 || full()))
                    all.push_back({device, dtype, activation, LOOM_GPT_1});
            }
    return all;
}

std::string name_of_place(const testing::TestParamInfo<Place> &row) {
    return std::string(row.param.device) + "_" + loom_dtype_name(row.param.dtype) + "_" +
           loom_activation_name(loom_activation_of(row.param.activation)) + "_" +
           loom_gpt_names_of(row.param.architecture)->name;
}

INSTANTIATE_TEST_SUITE_P(Everywhere, Policies, testing::ValuesIn(places()), name_of_place);

/* ----------------------------------------------------------------------------------------------------- the memory */

loom_plan plan(const loom_gpt_config &shape, const std::string &recompute, bool generates = false) {
    const Device device = open_device("cpu");
    loom_plan made;
    Setup setup = setup_of(B, T);
    setup.recompute = policy(recompute);
    setup.generates = generates;
    require([&](loom_error *error) { return loom_plan_make(&made, &shape, setup, device.get(), 2 * B, error); });
    return made;
}

/* (B,T,C) in fp32, and the 256 bytes that follow each tensor. */
size_t stream_bytes(int64_t C) {
    return ((size_t)(B * T * C) * sizeof(float) + 255) / 256 * 256 + 256;
}

TEST(Memory, BlockKeepsEachBlocksInputAndOneBlocksScratch) {
    const int64_t C = 64;
    for (const int64_t L : {1, 12, 24, 48}) {
        const loom_plan block = plan(gpt_shape(L, 2, C, T, 61), "block");
        EXPECT_EQ(bytes_of_row(block.arena, "activations"), (size_t)L * stream_bytes(C));
        EXPECT_EQ(bytes_of_row(block.arena, "scratch"),
                  bytes_of_row(plan(gpt_shape(1, 2, C, T, 61), "block").arena, "scratch"));
    }
}

TEST(Memory, SqrtKeepsTwoRootsOfInputsAndTheSameScratch) {
    const int64_t C = 64;
    for (const auto &[L, root] : {std::pair<int64_t, size_t>{1, 1}, {2, 2}, {12, 4}, {24, 5}, {25, 5}, {48, 7}}) {
        const loom_gpt_config shape = gpt_shape(L, 2, C, T, 61);
        const loom_plan root_plan = plan(shape, "sqrt");
        EXPECT_LE(bytes_of_row(root_plan.arena, "activations"), root * stream_bytes(C)) << L;
        EXPECT_LE(bytes_of_row(root_plan.arena, "scratch"),
                  bytes_of_row(plan(shape, "block").arena, "scratch") + (root - 1) * stream_bytes(C))
            << L;
    }
}

/* The input of every segment's first layer, and while backward is there, of the segment's other layers. */
TEST(Memory, EveryKeepsTheInputsOfSegmentsAndOfOneSegmentsBlocks) {
    const int64_t C = 64;
    const size_t scratch = bytes_of_row(plan(gpt_shape(7, 2, C, T, 61), "block").arena, "scratch");
    for (const auto &[K, segments] : {std::pair<size_t, size_t>{1, 7}, {2, 4}, {3, 3}, {6, 2}, {7, 1}}) {
        const loom_plan made = plan(gpt_shape(7, 2, C, T, 61), "every:" + std::to_string(K));
        EXPECT_EQ(bytes_of_row(made.arena, "activations"), segments * stream_bytes(C)) << K;
        EXPECT_LE(bytes_of_row(made.arena, "scratch"), scratch + (K - 1) * stream_bytes(C)) << K;
    }
}

TEST(Memory, APolicyThatRecomputesMoreKeepsLess) {
    size_t before = SIZE_MAX;
    for (const char *name : {"none", "act", "norm", "block-attn", "block", "sqrt"}) {
        const size_t kept = bytes_of_row(plan(gpt_shape(12, 2, 64, T, 61), name).arena, "activations");
        EXPECT_LT(kept, before) << name;
        before = kept;
    }
}

/* Generation runs where training does not at the same time: it adds nothing where its keys and values, of one sequence,
 * and what it computes with find room in that. */
TEST(Memory, SamplesTakeTheMemoryOfTraining) {
    const loom_gpt_config shape = gpt_shape(3, 2, 64, T, 61), deep = gpt_shape(40, 2, 64, T, 61);
    EXPECT_EQ(plan(shape, "norm", true).arena.used, plan(shape, "norm", false).arena.used);
    EXPECT_EQ(plan(shape, "block", true).arena.used, plan(shape, "block", false).arena.used);
    const size_t cached = 40 * ((size_t)(T * 3 * 64) * sizeof(float) + 256);
    const loom_plan samples = plan(deep, "sqrt", true), none = plan(deep, "sqrt", false);
    const auto values = [](const loom_plan &p) {
        return bytes_of_row(p.arena, "activations") + bytes_of_row(p.arena, "scratch");
    };
    ASSERT_LT(values(none), cached);
    EXPECT_GE(values(samples), cached);
    EXPECT_LT(values(samples), cached + values(none));
}

TEST(Memory, ThePlanIsTheArenasUse) {
    struct Numbers {
        loom_dtype dtype;
        bool master;
        loom_dtype optimizer, gradient;
    };
    for (const char *device : {"cpu", "cuda"})
        for (const loom_gpt_config &shape : {gpt_shape(5, 2, 16, T, 61), gpt_shape(3, 3, 24, 2 * T, 300)})
            for (const Numbers &n : {Numbers{LOOM_F32, true, LOOM_F32, LOOM_F32},
                                     {LOOM_BF16, true, LOOM_F32, LOOM_F32},
                                     {LOOM_BF16, false, LOOM_BF16, LOOM_BF16},
                                     {LOOM_F16, true, LOOM_BF16, LOOM_F32}})
                for (const char *name : {"none", "act", "norm", "block-attn", "block", "every:2", "sqrt"}) {
                    ModelOptions options;
                    options.device = device;
                    options.dtype = n.dtype;
                    options.master = n.master;
                    options.optimizer = n.optimizer;
                    options.gradient = n.gradient;
                    options.recompute = policy(name);
                    options.sequences = 2 * B;
                    const Model model(shape, B, T, options);
                    auto setup = setup_of(B, T, LOOM_GPT_TRAIN, &model.precision());
                    setup.recompute = policy(name);
                    loom_plan made;
                    require([&](loom_error *error) {
                        return loom_plan_make(&made, &shape, setup, model.device(), 2 * B, error);
                    });
                    EXPECT_EQ(made.arena.used, model.arena.used) << device << " " << name;
                    ASSERT_EQ(made.arena.n_rows, model.arena.n_rows);
                    for (int i = 0; i < made.arena.n_rows; i++)
                        EXPECT_EQ(made.arena.row[i].bytes, bytes_of_row(model.arena, made.arena.row[i].name));
                }
}

/* -------------------------------------------------------------------------------------------------------- samples */

/* Training leaves nothing in the memory of samples, nor samples in training's. */
TEST(Samples, AreTheSameUnderEveryPolicy) {
    const loom_gpt_config shape = gpt_shape(5, 2, 16, T, 61);
    const std::vector<int32_t> tokens = random_ids(B * T, 61, 1), targets = random_ids(B * T, 61, 2);
    const auto logits_and_gradients = [&](const char *name) {
        ModelOptions options;
        options.recompute = policy(name);
        Model model(shape, B, T, options);
        model.scatter_parameters(3);
        model.run(tokens, targets, 1);
        std::vector<float> logits(61), probabilities(61);
        require([&](loom_error *error) {
            return loom_gpt_next_logits(model.gpt(), tokens.data(), 5, 0, logits.data(), error) &&
                   loom_gpt_next_probabilities(model.gpt(), tokens.data() + 5, T - 5, 5, 0.8f, logits.data(),
                                               probabilities.data(), error);
        });
        model.run(tokens, targets, 1);
        return std::make_tuple(logits, probabilities, model.gradients());
    };
    const auto kept = logits_and_gradients("none");
    for (const char *name : policies) EXPECT_TRUE(kept == logits_and_gradients(name)) << name;
}

/* --------------------------------------------------------------------------------------------------- rows of logits */

/* A vocabulary so large that a group has few rows. All with the algorithms that the first model measured. */
void expect_same_rows(const char *on, loom_dtype dtype) {
    SCOPED_TRACE(std::string(on) + " " + loom_dtype_name(dtype));
    const int64_t V = 50257, length = 384, group = 640;
    const loom_gpt_config shape = gpt_shape(1, 1, 8, length, V);
    const std::vector<int32_t> tokens = random_ids(2 * length, V, 1), targets = random_ids(2 * length, V, 2);
    std::string tuning;
    const auto outcome_with = [&](int64_t asked, int64_t rows) {
        ModelOptions options;
        options.device = on;
        options.dtype = dtype;
        options.logits_rows = asked;
        options.threads = 2;
        options.before_lay_out = [&tuning](loom_gpt *gpt) { give_tuning(gpt, tuning); };
        Model model(shape, 2, length, options);
        EXPECT_EQ(loom_gpt_get_logits_rows(model.gpt()), rows);
        model.scatter_parameters(3);
        model.run(tokens, targets, 1);
        tuning = tuning_of(model);
        return std::make_pair(model.losses(), model.gradients());
    };
    const auto whole = outcome_with(2 * length, 2 * length), cut = outcome_with(1, group);
    EXPECT_TRUE(whole.first == cut.first);
    loom_layout layout;
    require([&](loom_error *error) { return loom_layout_create(&layout, &shape, 1, error); });
    for (int i = 1; i < layout.n_parameters; i++)
        EXPECT_TRUE(tensor(whole.second, layout.parameter[i]) == tensor(cut.second, layout.parameter[i]))
            << layout.parameter[i].name;
    /* Two sums of 768 terms in fp32 in other orders, each off by sqrt(768) units: see support.h. */
    const std::vector<double> a = tensor(whole.second, layout.parameter[0]),
                              b = tensor(cut.second, layout.parameter[0]);
    EXPECT_LE(relative_error(a, b), 2 * std::sqrt(2.0 * length) * 0x1p-24);
    EXPECT_FALSE(a == b) << "the second size was no other";
    loom_layout_destroy(&layout);
}

TEST(LogitsRows, ChangeNoLossAndTheClassifiersGradientInTheOrderOfItsSum) {
    expect_same_rows("cpu", LOOM_F32);
    expect_same_rows("cpu", LOOM_BF16);
}

/* Forty million logits take the emulation its time. */
TEST(LogitsRows, ChangeNoLossOnAGpu) {
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP() << "the plain build runs it";
#endif
    if (!full()) GTEST_SKIP() << "make test-full runs it";
    expect_same_rows("cuda", LOOM_F32);
    expect_same_rows("cuda", LOOM_BF16);
}

/* ------------------------------------------------------------------------------------------------------------- names */

TEST(Names, AreReadAndWritten) {
    for (const char *name : {"none", "act", "norm", "block-attn", "block", "every:7", "sqrt", "auto", "sets:0*1",
                             "sets:ffffffff*2147483647,1*1,a*12,0*1"}) {
        const loom_recompute recompute = policy(name);
        char text[LOOM_RECOMPUTE_NAME];
        loom_recompute_name(&recompute, text);
        EXPECT_STREQ(text, name);
    }
}

TEST(Names, WhatIsNoPolicyIsRefused) {
    for (const char *text : {"",
                             "every",
                             "every:",
                             "every:0",
                             "every:-1",
                             "every:2x",
                             "every:99999999999999999999",
                             "every:K",
                             "blocks",
                             "None",
                             "sets",
                             "sets:",
                             "sets:1f",
                             "sets:1f*",
                             "sets:1f*0",
                             "sets:*3",
                             "sets:1f*3,",
                             "sets:0x1f*3",
                             "sets:-1*3",
                             "sets:1f*-3",
                             "sets:1ffffffff*3",
                             "sets:1*2147483648",
                             "sets:1*1,2*1,3*1,4*1,5*1",
                             "sets:1f*3 "})
        refusal(
            [text](loom_error *error) {
                loom_recompute recompute;
                return loom_recompute_parse(text, &recompute, error);
            },
            {"--recompute"});
    refusal(
        [](loom_error *error) {
            loom_recompute recompute;
            return loom_recompute_parse("blok", &recompute, error);
        },
        {"did you mean block"});
}

} // namespace
