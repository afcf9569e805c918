/* That the definition has one value everywhere: the bits of the functions that it is made of, and of what it trains,
 * are written down here and hold for every compiler, optimisation and processor. And which instructions the device
 * "cpu" takes. */
#include "support_train.h"

extern "C" {
#include "base/math.h"
}

#include <xxhash.h>

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <functional>
#include <tuple>

namespace {

using namespace support;

std::string hash_of(const void *bytes, size_t size) {
    char text[17];
    std::snprintf(text, sizeof text, "%016" PRIx64, (uint64_t)XXH3_64bits(bytes, size));
    return text;
}

/* --------------------------------------------------------------------------------------------------------- functions */

/* A number of the unit interval from a counter. */
double unit(uint64_t i) {
    const loom_random4 random = loom_random(1, LOOM_RANDOM_TEST, 0, i);
    return ((double)random.word[0] + (double)random.word[1] * 0x1p-32) * 0x1p-32;
}

struct Function {
    const char *name;
    double (*ours)(double);
    long double (*exact)(long double);
    double first, last; /* of its arguments */
    double floor;       /* errors are relative to the value, or to this where the value is smaller */
    const char *bits;   /* hash of its values */
};

constexpr long double TURN = 6.283185307179586476925286766559L;

const Function functions[] = {
    {"exp", loom_exp, [](long double x) { return std::exp(x); }, -700, 700, 0, "08932d52d4bbca9c"},
    {"log", loom_log, [](long double x) { return std::log(x); }, 0, 1e6, 0, "567cb10cc5235369"},
    {"log near 1", loom_log, [](long double x) { return std::log(x); }, 0.6, 1.5, 0, "40d593663b5148b6"},
    {"cos", loom_cos_of_turns, [](long double t) { return std::cos(TURN * t); }, -1, 2, 1, "6f9ee1152eb8cb5c"},
    {"sin", loom_sin_of_turns, [](long double t) { return std::sin(TURN * t); }, -1, 2, 1, "dfdab5f3d080ea43"},
};

TEST(Math, IsOffByLessThanTwoUnitsAndTheSameEverywhere) {
    for (const Function &f : functions) {
        std::vector<double> values;
        double worst = 0;
        for (uint64_t i = 0; i < 20000; i++) {
            const double x = f.first + (f.last - f.first) * unit(i), value = f.ours(x);
            const long double exact = f.exact((long double)x);
            const double size = std::max(std::fabs((double)exact), f.floor);
            worst = std::max(worst, std::fabs((double)((long double)value - exact)) / size);
            values.push_back(value);
        }
        EXPECT_LT(worst, 2 * 0x1p-52) << f.name;
        EXPECT_EQ(hash_of(values.data(), values.size() * sizeof values[0]), f.bits) << f.name;
    }
}

TEST(Math, HasTheLimitsOfTheCLibrary) {
    const double infinity = HUGE_VAL;
    EXPECT_EQ(loom_exp(0), 1);
    EXPECT_EQ(loom_exp(-infinity), 0);
    EXPECT_EQ(loom_exp(infinity), infinity);
    EXPECT_EQ(loom_exp(1e300), infinity);
    EXPECT_NEAR(loom_exp(-740) / std::exp(-740.0), 1, 0.01) << "a denormal";
    EXPECT_TRUE(std::isnan(loom_exp(NAN)));
    EXPECT_EQ(loom_log(1), 0);
    EXPECT_EQ(loom_log(0), -infinity);
    EXPECT_EQ(loom_log(infinity), infinity);
    EXPECT_DOUBLE_EQ(loom_log(0x1p-1074), std::log(0x1p-1074));
    EXPECT_TRUE(std::isnan(loom_log(-1)));
    EXPECT_TRUE(std::isnan(loom_log(NAN)));
    EXPECT_EQ(loom_cos_of_turns(0.25), 0);
    EXPECT_EQ(loom_sin_of_turns(0.5), 0);
    EXPECT_EQ(loom_power(0.9, 0), 1);
    EXPECT_NEAR(loom_power(0.999, 1000) / std::pow(0.999, 1000), 1, 1000 * 0x1p-52);
}

/* ---------------------------------------------------------------------------------------------------------- training */

/* Sizes that neither registers nor tiles divide. */
std::string bits_of_training(const std::string &device, const std::string &dtype, const std::string &threads) {
    TemporaryDirectory folder;
    write_file(folder.at("text.txt"), some_text(6000, 7));
    const Options options({{"data", folder.at("text.txt")},
                           {"out", folder.at("run")},
                           {"device", device},
                           {"dtype", dtype},
                           {"threads", threads},
                           {"steps", "20"},
                           {"n-layer", "2"},
                           {"n-head", "2"},
                           {"n-embd", "44"},
                           {"block-size", "37"},
                           {"batch", "3"},
                           {"lr", "3e-3"},
                           {"warmup", "4"},
                           {"recompute", "none"}});
    const Trainer trainer = open_trainer(options);
    const std::string bits = bits_of_steps(trainer, 20);
    return hash_of(bits.data(), bits.size());
}

TEST(Definition, TrainsToTheseBitsEverywhere) {
    EXPECT_EQ(bits_of_training("definition", "fp32", "1"), "242647711311a729");
    EXPECT_EQ(bits_of_training("definition", "fp32", "2"), "242647711311a729");
    EXPECT_EQ(bits_of_training("definition", "bf16", "2"), "fe92178c8d381ba1");
    EXPECT_EQ(bits_of_training("definition", "fp16", "2"), "eaae3c8c111b24b6");
    EXPECT_EQ(bits_of_training("oracle", "fp32", "2"), "ba8adc568a919803");
}

/* ------------------------------------------------------------------------------------------------------ instructions */

class Instructions : public testing::Test {
  protected:
    void TearDown() override {
        unsetenv("LOOM_INSTRUCTIONS");
    }
    /* The description of the device "cpu" with these instructions; empty with an error where there are none. */
    static std::string description(const char *asked, loom_error *error) {
        loom_device *device = nullptr;
        if (asked) setenv("LOOM_INSTRUCTIONS", asked, 1);
        if (!loom_device_open(&device, "cpu", nullptr, error)) return "";
        const std::string text = device->description;
        loom_device_close(device);
        return text;
    }
};

TEST_F(Instructions, AreTheBestThereAreOrThoseAskedFor) {
    loom_error error;
    const std::string best = description(nullptr, &error);
    EXPECT_EQ(description("", &error), best) << "an empty name is none";
    int tried = 0;
    bool is_first = true;
    for (const auto &[name, said] :
         {std::pair("avx512", "AVX-512"), {"avx2", "AVX2"}, {"sse2", "SSE2"}, {"neon", "NEON"}}) {
        const std::string found = description(name, &error);
        if (found.empty()) continue;
        EXPECT_NE(found.find(std::string(", ") + said + ", "), std::string::npos) << found;
        EXPECT_EQ(found == best, is_first) << found << "; the best: " << best;
        is_first = false;
        tried++;
    }
    EXPECT_GT(tried, 0);
}

TEST_F(Instructions, ThatThereAreNotAreRefused) {
    for (const char *name : {"avx", "AVX2", "avx512vnni", "2"})
        refusal([&](loom_error *error) { return !description(name, error).empty(); }, {"LOOM_INSTRUCTIONS", name});
}

/* The machine code of a function in an object file, a line to an instruction. */
std::vector<std::string> code_of(const std::string &object, const std::string &function) {
    std::vector<std::string> lines;
    FILE *listing = popen(("objdump -d --no-show-raw-insn '" + object + "'").c_str(), "r");
    bool inside = false;
    for (char line[512]; listing && std::fgets(line, sizeof line, listing);) {
        const std::string text = line;
        if (text.find(">:") != std::string::npos)
            inside = text.find("<" + function) != std::string::npos;
        else if (inside)
            lines.push_back(text);
    }
    if (listing) pclose(listing);
    return lines;
}

bool has(const std::string &line, std::initializer_list<const char *> words) {
    return std::any_of(words.begin(), words.end(),
                       [&](const char *word) { return line.find(word) != std::string::npos; });
}

/* The loops of `code` that have no loop in them: from where a jump goes back to, to the jump. */
std::vector<std::vector<std::string>> innermost_loops(const std::vector<std::string> &code) {
    const auto address = [](const std::string &line) { return std::strtoull(line.c_str(), nullptr, 16); };
    std::vector<std::vector<std::string>> loops;
    size_t done = 0;
    for (size_t last = 0; last < code.size(); last++) {
        const size_t jump = code[last].find("\tj");
        if (jump == std::string::npos || address(code[last]) == 0) continue;
        const size_t words = code[last].find_first_of(" ", jump), target = code[last].find_first_not_of(" ", words);
        if (target == std::string::npos) continue;
        const auto to = std::strtoull(code[last].c_str() + target, nullptr, 16);
        size_t first = last;
        while (first > done && address(code[first]) != to) first--;
        if (first == last || address(code[first]) != to) continue;
        loops.emplace_back(code.begin() + (long)first, code.begin() + (long)last + 1);
        done = last + 1;
    }
    return loops;
}

long count_of(const std::vector<std::string> &code, const char *word) {
    return std::count_if(code.begin(), code.end(), [&](const std::string &line) { return has(line, {word}); });
}

/* A core that another thread shares issues half as many instructions: those of an inner loop are few. */
TEST_F(Instructions, AreFewInTheInnerLoops) {
    if (sanitized) GTEST_SKIP() << "a sanitizer build is not optimised";
    const fs::path objects = fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "obj";
    for (const char *set : {"avx2", "avx512"}) {
        if (!fs::exists(objects / set)) continue;
        for (const char *file : {"attention.o", "matmul.o"})
            for (const char *function : {"tile_strip_high", "tile_transposed_high"}) {
                int unrolled = 0;
                for (const auto &loop : innermost_loops(code_of(objects / set / file, function))) {
                    const long products = count_of(loop, "fmadd");
                    if (products < 48) continue;
                    unrolled++;
                    EXPECT_LE((double)loop.size(), 1.95 * (double)products) << set << ", " << file << ", " << function;
                }
                EXPECT_EQ(unrolled, 1) << set << ", " << file << ", " << function << ": the loop was not found";
            }
    }
}

/* What is written to stay in registers does: no set of instructions has too few of them for it. */
TEST_F(Instructions, HaveRegistersEnoughForTheInnerLoops) {
    if (sanitized) GTEST_SKIP() << "a sanitizer build is not optimised";
    const fs::path objects = fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "obj";
    int sets = 0;
    for (const char *set : {"sse2", "avx2", "avx512", "neon"}) {
        if (!fs::exists(objects / set)) continue;
        sets++;
        for (const auto &[file, function, least] : {std::tuple("attention.o", "tile_strip_high", 8),
                                                    {"attention.o", "tile_transposed_high", 8},
                                                    {"matmul.o", "tile_strip_high", 8},
                                                    {"matmul.o", "tile_transposed_high", 8},
                                                    {"peak.o", "", 12}}) {
            int products = 0;
            for (const std::string &line : code_of(objects / set / file, function)) {
                products += has(line, {"mulps", "fmadd", "fmla"});
                const bool of_vectors = has(line, {"%xmm", "%ymm", "%zmm", "\tq"});
                const bool of_stack = has(line, {"(%rsp", "[sp"}) || (has(line, {"(%rbp"}) && has(line, {"-0x"}));
                EXPECT_FALSE(of_vectors && of_stack && has(line, {"ps ", "aps", "ups", "\tq"}))
                    << set << ", " << file << ": " << line;
            }
            EXPECT_GE(products, least) << set << ", " << file << ": the loop was not found";
        }
    }
    EXPECT_GT(sets, 0);
}

} // namespace
