/* Recomputing activations: every policy gives the bits of keeping everything, and keeps what it says. */
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

const char *const policies[] = {"act",     "norm",    "block-attn", "block",   "every:1", "every:2",
                                "every:3", "every:4", "every:5",    "every:9", "sqrt"};

/* ------------------------------------------------------------------------------------------------------------- the bits */

const int64_t B = 2, T = 12;

struct Place {
    const char *device;
    loom_dtype dtype;
    loom_gpt_activation activation;
};

void PrintTo(const Place &place, std::ostream *out) {
    *out << place.device << " " << loom_dtype_name(place.dtype)
         << (place.activation == LOOM_GPT_RELU ? " relu" : " gelu");
}

class Policies : public testing::TestWithParam<Place> {};

/* Losses and gradients of two micro-batches, the second added to the first. */
struct Outcome {
    std::string losses, gradients;
};

Outcome outcome(const loom_gpt_config &shape, const ModelOptions &options, std::string *choices) {
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
    char *text = nullptr;
    require([&](loom_error *error) { return model.device()->choices_get(model.device(), &text, error); });
    *choices = text ? text : "";
    free(text);
    return result;
}

/* All with the algorithms that the first model measured to be the fastest. */
TEST_P(Policies, GiveTheBitsOfKeepingEverything) {
    const loom_gpt_config shape = gpt_shape(5, 2, 16, T, 61, GetParam().activation);
    std::string choices;
    ModelOptions options;
    options.device = GetParam().device;
    options.dtype = GetParam().dtype;
    options.threads = 1;
    const Outcome kept = outcome(shape, options, &choices);
    options.before_lay_out = [&choices](loom_gpt *gpt) {
        loom_device *device = loom_gpt_get_device(gpt);
        if (choices.empty()) return;
        require([&](loom_error *error) { return device->choices_set(device, choices.c_str(), error); });
    };
    for (const char *name : policies) {
        options.recompute = policy(name);
        const Outcome recomputed = outcome(shape, options, &choices);
        EXPECT_TRUE(kept.losses == recomputed.losses) << name;
        EXPECT_TRUE(kept.gradients == recomputed.gradients) << name;
    }
}

std::vector<Place> places() {
    std::vector<Place> all;
    for (const char *device : {"cpu", "definition", "oracle", "cuda"})
        for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16, LOOM_F16})
            for (const loom_gpt_activation activation : {LOOM_GPT_GELU, LOOM_GPT_RELU}) {
                if (std::string(device) == "oracle" && dtype != LOOM_F32) continue;
                all.push_back({device, dtype, activation});
            }
    return all;
}

std::string name_of_place(const testing::TestParamInfo<Place> &row) {
    return std::string(row.param.device) + "_" + loom_dtype_name(row.param.dtype) +
           (row.param.activation == LOOM_GPT_RELU ? "_relu" : "_gelu");
}

INSTANTIATE_TEST_SUITE_P(Everywhere, Policies, testing::ValuesIn(places()), name_of_place);

} // namespace
