/* Sampling: what the device makes of logits, and which token is drawn by that. */
#include "support.h"

#include <set>

namespace {

using namespace support;

/* ------------------------------------------------------------------------------------------------------- the reference
 * All of it in double, in the plainest way. */

std::vector<double> softmax(const std::vector<float> &logits, float temperature) {
    const double largest = (double)*std::max_element(logits.begin(), logits.end());
    std::vector<double> probabilities;
    double sum = 0;
    for (const float x : logits) {
        probabilities.push_back(std::exp(((double)x - largest) / (double)temperature));
        sum += probabilities.back();
    }
    for (double &p : probabilities) p /= sum;
    return probabilities;
}

/* The tokens that top-k and top-p leave, in the order of their logits, of equal ones in the order of their ids. */
std::vector<size_t> kept(const std::vector<float> &logits, const loom_sampling &sampling) {
    const std::vector<double> probabilities = softmax(logits, sampling.temperature);
    std::vector<size_t> ids(logits.size());
    for (size_t i = 0; i < ids.size(); i++) ids[i] = i;
    std::stable_sort(ids.begin(), ids.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    if (sampling.top_k > 0 && (size_t)sampling.top_k < ids.size()) ids.resize((size_t)sampling.top_k);
    if (sampling.top_p >= 1) return ids;
    double total = 0, mass = 0;
    for (const size_t i : ids) total += probabilities[i];
    for (size_t n = 0; n < ids.size(); n++) {
        mass += probabilities[ids[n]];
        if (mass >= (double)sampling.top_p * total) ids.resize(n + 1);
    }
    return ids;
}

/* ---------------------------------------------------------------------------------------------------------- one token */

int32_t draw(const std::vector<float> &logits, const std::vector<float> &probabilities, const loom_sampling &sampling,
             uint32_t step) {
    std::vector<float> scratch(2 * logits.size());
    return loom_sample_token(logits.data(), probabilities.data(), (int64_t)logits.size(), &sampling, step,
                             scratch.data());
}

int32_t draw(const std::vector<float> &logits, const loom_sampling &sampling, uint32_t step) {
    std::vector<float> probabilities;
    if (sampling.temperature > 0)
        for (const double p : softmax(logits, sampling.temperature)) probabilities.push_back((float)p);
    return draw(logits, probabilities, sampling, step);
}

const std::vector<float> some_logits = {0.5f, -1.0f, 2.0f, 1.5f, 0.0f, 1.9f, -3.0f, 1.0f};

TEST(Sampling, TemperatureZeroTakesTheMostProbable) {
    for (uint32_t step = 0; step < 50; step++) {
        EXPECT_EQ(draw(some_logits, {0, 0, 1, step}, step), 2);
        EXPECT_EQ(draw({1, 3, 3, 2}, {0, 3, 0.5f, 7}, step), 1) << "of equal ones the first";
        EXPECT_EQ(draw({-INFINITY, -5}, {0, 0, 1, 7}, step), 1);
        EXPECT_EQ(draw({4}, {1, 0, 1, 7}, step), 0);
        EXPECT_EQ(draw(some_logits, {1e-4f, 0, 1, 7}, step), 2) << "nearly zero";
    }
}

/* How often each is drawn, as probabilities after temperature, top-k and top-p, is what it should be: within 5 standard
 * deviations of chi-square's mean; and what they leave out is never drawn. */
TEST(Sampling, DrawsInProportion) {
    const uint32_t draws = 20000;
    const struct {
        loom_sampling sampling;
        std::set<size_t> kept;
    } rows[] = {
        {{1, 0, 1, 1}, {0, 1, 2, 3, 4, 5, 6, 7}},
        {{0.5f, 0, 1, 2}, {0, 1, 2, 3, 4, 5, 6, 7}},
        {{2, 100, 1, 3}, {0, 1, 2, 3, 4, 5, 6, 7}},
        {{1, 3, 1, 4}, {2, 3, 5}},
        {{1, 1, 1, 5}, {2}},
        /* probabilities at temperature 1: 2: .31, 5: .28, 3: .19, 7: .11, 0: .07, ... */
        {{1, 0, 0.6f, 6}, {2, 3, 5}},
        {{1, 0, 0.55f, 7}, {2, 5}},
        {{1, 0, 0.01f, 8}, {2}},
        {{1, 0, 0, 9}, {2}},
        /* among the first four the shares are .35, .32, .21, .12 */
        {{1, 4, 0.8f, 10}, {2, 3, 5}},
        {{1, 4, 0.9f, 11}, {2, 3, 5, 7}},
    };
    for (const auto &row : rows) {
        SCOPED_TRACE("seed " + std::to_string(row.sampling.seed));
        std::vector<double> expected(some_logits.size(), 0.0), count(some_logits.size(), 0.0);
        double total = 0;
        for (const size_t i : row.kept)
            total += expected[i] = std::exp((double)some_logits[i] / (double)row.sampling.temperature);
        for (uint32_t step = 0; step < draws; step++) count[(size_t)draw(some_logits, row.sampling, step)]++;
        double chi_square = 0;
        for (size_t i = 0; i < expected.size(); i++) {
            const double mean = (double)draws * expected[i] / total;
            EXPECT_TRUE(row.kept.count(i) || count[i] == 0) << "token " << i << " is left out";
            if (row.kept.count(i)) chi_square += (count[i] - mean) * (count[i] - mean) / mean;
        }
        const double freedom = (double)row.kept.size() - 1;
        EXPECT_LE(chi_square, freedom + 5 * std::sqrt(2 * freedom));
    }
}

TEST(Sampling, WhatHasNoProbabilityIsNeverDrawn) {
    const std::vector<float> logits = {-INFINITY, 1, -1000, 1, -INFINITY};
    std::set<int32_t> seen;
    for (uint32_t step = 0; step < 2000; step++) seen.insert(draw(logits, {1, 4, 1, 3}, step));
    EXPECT_EQ(seen, (std::set<int32_t>{1, 3}));
}

/* As they are in 16 bits: equal logits are common, and which of them stay must not hang on rounding. */
TEST(Sampling, OfEqualOnesTheLowestIdsStay) {
    const std::vector<float> logits = {1, 2, 3, 3, 2, 3, 2, 3};
    const auto seen = [&](const loom_sampling &sampling) {
        std::set<int32_t> all;
        for (uint32_t step = 0; step < 500; step++) all.insert(draw(logits, sampling, step));
        return all;
    };
    using Ids = std::set<int32_t>;
    for (const float temperature : {1e-30f, 1e-6f, 1.0f, 100.0f}) EXPECT_EQ(seen({temperature, 1, 1, 3}), Ids{2});
    EXPECT_EQ(seen({1, 2, 1, 3}), (Ids{2, 3}));
    EXPECT_EQ(seen({1, 5, 1, 3}), (Ids{1, 2, 3, 5, 7}));
    EXPECT_EQ(seen({1, 6, 1, 3}), (Ids{1, 2, 3, 4, 5, 7}));
    EXPECT_EQ(seen({1, 0, 1e-6f, 3}), Ids{2});
    EXPECT_EQ(seen({100, 0, 0.25f, 3}), (Ids{2, 3})) << "a little more than an eighth each";
    EXPECT_EQ(seen({100, 4, 0.25f, 3}), Ids{2}) << "a quarter each";
    EXPECT_EQ(seen({100, 4, 0.26f, 3}), (Ids{2, 3}));
    /* Logits that differ, though their probabilities are the same float, stand in their order. */
    EXPECT_EQ(draw({0, 1e-7f}, {100, 1, 1, 3}, 0), 1);
}

TEST(Sampling, LogitsThatAreNoNumbersDrawNothing) {
    for (const float bad : {NAN, -NAN, INFINITY})
        for (const float temperature : {0.0f, 1.0f})
            for (size_t at = 0; at < 3; at++) {
                std::vector<float> logits = {0, 1, 2};
                logits[at] = bad;
                EXPECT_EQ(draw(logits, {temperature, 2, 0.5f, 1}, 0), -1);
            }
    EXPECT_EQ(draw({-INFINITY, -INFINITY}, {1, 0, 1, 1}, 0), -1);
    Model model(gpt_shape(2, 3, 48, 80, 70), 1, 8);
    model.scatter_parameters(4);
    *(float *)loom_gpt_bucket_parameters(model.gpt(), 0) = NAN;
    const int32_t prompt = 0;
    for (const float temperature : {0.0f, 1.0f}) {
        const loom_sampling sampling = {temperature, 0, 1, 1};
        loom_error error;
        EXPECT_FALSE(loom_gpt_generate(
            model.gpt(), &prompt, 1, 4, &sampling, [](void *, int32_t) { return true; }, nullptr, &error));
        EXPECT_NE(std::string(error.message).find("are no finite numbers"), std::string::npos) << error.message;
    }
}

TEST(Sampling, IsAFunctionOfSeedAndStep) {
    std::vector<int32_t> first, again, other;
    for (uint32_t step = 0; step < 100; step++) {
        first.push_back(draw(some_logits, {1, 0, 1, 1}, step));
        other.push_back(draw(some_logits, {1, 0, 1, 2}, step));
    }
    for (uint32_t step = 0; step < 100; step++) again.push_back(draw(some_logits, {1, 0, 1, 1}, step));
    EXPECT_EQ(first, again);
    EXPECT_NE(first, other);
    EXPECT_GT(std::set<int32_t>(first.begin(), first.end()).size(), 3u) << "steps draw anew";
}

/* --------------------------------------------------------------------------------------------------------- the device */

/* Probabilities are those of the same logits in double, but for a few roundings: that of a sum, and those of an
 * exponent in units of its own size. Logits that were rounded before, as the oracle's are, count as exponents of their
 * size. What is denormal may be zero. */
void expect_probabilities(const std::vector<float> &logits, const std::vector<float> &probabilities, float temperature,
                          bool logits_were_rounded) {
    const std::vector<double> expected = softmax(logits, temperature);
    const double largest = (double)*std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (size_t i = 0; i < logits.size(); i++) {
        const double x = (double)logits[i], rounded = logits_were_rounded ? std::fabs(x) + std::fabs(largest) : 0;
        const double exponent = (largest - x + rounded) / (double)temperature;
        const double tolerance = expected[i] > 0 ? 0x1p-23 * (4 + 2 * exponent) * expected[i] : 0;
        ASSERT_NEAR((double)probabilities[i], expected[i], tolerance + 0x1p-126) << "token " << i;
        sum += (double)probabilities[i];
    }
    EXPECT_NEAR(sum, 1, 0x1p-20);
}

/* The token is the one at whose place in the distribution, among what is kept, the random number lies. */
void expect_draws(const std::vector<float> &logits, const std::vector<float> &probabilities,
                  const loom_sampling &sampling) {
    const std::vector<double> all = softmax(logits, sampling.temperature);
    std::vector<double> shares(logits.size(), 0.0);
    double total = 0;
    for (const size_t i : kept(logits, sampling)) total += shares[i] = all[i];
    for (uint32_t step = 0; step < 200; step++) {
        const size_t token = (size_t)draw(logits, probabilities, sampling, step);
        const double at = (double)loom_random_uniform(loom_random(sampling.seed, LOOM_RANDOM_SAMPLE, step, 0).word[0]);
        double before = 0;
        for (size_t i = 0; i < token; i++) before += shares[i] / total;
        ASSERT_GT(shares[token], 0) << "step " << step << " draws what is left out";
        ASSERT_GE(at, before - 1e-5) << "step " << step;
        ASSERT_LE(at, before + shares[token] / total + 1e-5) << "step " << step;
    }
}

/* The padding, which takes part in the classifier's product, has no probability. */
void expect_softmax_of_logits(const std::string &device, loom_dtype dtype, int64_t vocabulary) {
    SCOPED_TRACE(device + " " + loom_dtype_name(dtype) + " " + std::to_string(vocabulary));
    ModelOptions options;
    options.device = device;
    options.dtype = dtype;
    options.purpose = LOOM_GPT_INFER;
    Model model(gpt_shape(1, 1, 8, 8, vocabulary), 1, 8, options);
    model.scatter_parameters(4);
    const std::vector<int32_t> tokens = random_ids(7, vocabulary, 8);
    std::vector<float> alone((size_t)vocabulary);
    require(
        [&](loom_error *error) { return loom_gpt_next_logits(model.gpt(), tokens.data(), 7, 0, alone.data(), error); });
    for (const float temperature : {1e-44f, 1e-30f, 0.2f, 1.0f, 7.0f}) {
        SCOPED_TRACE(temperature);
        std::vector<float> logits((size_t)vocabulary, -1), probabilities = logits;
        require([&](loom_error *error) {
            return loom_gpt_next_probabilities(model.gpt(), tokens.data(), 7, 0, temperature, logits.data(),
                                               probabilities.data(), error);
        });
        EXPECT_EQ(logits, alone);
        expect_probabilities(logits, probabilities, temperature, device == "oracle");
        if (vocabulary > 256) continue;
        for (const loom_sampling &sampling :
             {loom_sampling{temperature, 0, 1, 1}, loom_sampling{temperature, 9, 1, 2},
              loom_sampling{temperature, 0, 0.7f, 3}, loom_sampling{temperature, 20, 0.45f, 4}})
            expect_draws(logits, probabilities, sampling);
    }
}

/* Vocabularies for each way in which a kernel reads a row. */
TEST(Sampling, TakesTheSoftmaxOfTheLogitsOnTheDevice) {
    for (const char *device : {"cpu", "definition", "oracle", "cuda"})
        for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16, LOOM_F16})
            for (const int64_t vocabulary : {61, 256, 2056, 5003}) {
                if (dtype != LOOM_F32 && std::string(device) == "oracle") continue;
                expect_softmax_of_logits(device, dtype, vocabulary);
            }
}

} // namespace
