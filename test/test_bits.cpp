/* The bits of short runs, held to what they were: each step's loss and gradient norm, the gradients of the first step,
 * and the checkpoint after the last, under several policies, dtypes and ways of adding up; test/data/bits.txt has them.
 *
 * The definition and the oracle have the same bits everywhere (test_definition.cpp says why). Those of the tuned CPU
 * are a set of instructions' and a compiler's, which contracts as it likes: they are known for some, and the others are
 * passed over. Products are gptloom's own there, as a library's are its version's. The emulated GPU computes without
 * contraction, so that its bits hang on what is measured to be the fastest, which is given to it
 * (test/data/tuning.txt), and on the C library's exp2f, log2f and logf: they are known by a hash of these functions'
 * values.
 *
 * Bits that are meant to become others: LOOM_TEST_UPDATE=1 writes the lines of what runs here anew, and leaves all
 * others. */
#include "support_train.h"

#include <xxhash.h>

#include <cinttypes>
#include <cstdio>
#include <sstream>

namespace {

using namespace support;

std::string data_path(const std::string &name) {
    const std::string here = __FILE__;
    return here.substr(0, here.rfind('/') + 1) + "data/" + name;
}

bool updates() {
    return std::getenv("LOOM_TEST_UPDATE") != nullptr;
}

std::string hash_of(const void *bytes, size_t size) {
    char text[17];
    std::snprintf(text, sizeof text, "%016" PRIx64, (uint64_t)XXH3_64bits(bytes, size));
    return text;
}

std::string hash_of(const std::string &bytes) {
    return hash_of(bytes.data(), bytes.size());
}

/* ------------------------------------------------------------------------------------------------------------ the file */

/* "KEY, RUN: BITS" of each; and whether there are any of a key. */
class Known {
  public:
    Known() {
        std::istringstream file(fs::exists(path_) ? read_file(path_) : "");
        for (std::string line; std::getline(file, line);)
            if (const size_t end = line.find(": "); end != std::string::npos)
                bits_[line.substr(0, end)] = line.substr(end + 2);
    }
    bool has(const std::string &key) const {
        return updates() || bits_.lower_bound(key + ", ") != bits_.lower_bound(key + "-");
    }
    void expect(const std::string &key, const std::string &run, const std::string &bits) {
        const std::string name = key + ", " + run;
        if (updates()) {
            bits_[name] = bits;
            std::string text;
            for (const auto &[which, what] : bits_) text += which + ": " + what + "\n";
            write_file(path_, text);
        }
        EXPECT_EQ(bits, bits_[name]) << name << ", as " << path_ << " has it";
    }

  private:
    const std::string path_ = data_path("bits.txt");
    std::map<std::string, std::string> bits_;
};

/* ---------------------------------------------------------------------------------------------------------------- runs */

struct ShortRun {
    const char *name;
    bool odd; /* sizes that nothing divides */
    Options::Pairs options;
};

const ShortRun runs[] = {
    {"fp32", false, {}},
    {"fp32 tree act", true, {{"deterministic-reduce", "true"}, {"recompute", "act"}}},
    {"bf16 relu norm", true, {{"dtype", "bf16"}, {"activation", "relu"}, {"recompute", "norm"}}},
    {"fp16 every:2", true, {{"dtype", "fp16"}, {"recompute", "every:2"}}},
    {"all bf16 block-attn",
     false,
     {{"dtype", "bf16"},
      {"master-weights", "off"},
      {"optimizer-dtype", "bf16"},
      {"grad-dtype", "bf16"},
      {"recompute", "block-attn"}}},
};

constexpr int STEPS = 3;

/* Two or more micro-batches a step, of few tokens. The emulated GPU has heads of whole vectors only. */
Options::Pairs options_of(const ShortRun &run, const std::string &device, const TemporaryDirectory &folder) {
    const bool odd = run.odd, cuda = device == "cuda";
    const Options::Pairs shape = {{"n-layer", odd ? "3" : "2"},
                                  {"n-head", "3"},
                                  {"n-embd", !odd   ? "48"
                                             : cuda ? "24"
                                                    : "39"},
                                  {"block-size", odd ? "19" : "24"}};
    return Options::Pairs{{"data", folder.at("text.txt")},
                          {"out", folder.at("run")},
                          {"device", device},
                          {"threads", "1"},
                          {"steps", std::to_string(STEPS)},
                          {"batch", odd ? "8" : "4"},
                          {"micro-batch", "2"},
                          {"lr", "3e-3"},
                          {"warmup", "1"},
                          {"sample-every", "0"},
                          {"recompute", "none"}} +
           shape + run.options;
}

std::string gradients_of(const Trainer &trainer) {
    const loom_dtype dtype = loom_gpt_get_precision(trainer->gpt)->gradient;
    std::string raw((size_t)loom_gpt_get_layout(trainer->gpt)->elements * loom_dtype_size(dtype), 0);
    loom_device *device = trainer->device;
    device->copy(device, NULL, raw.data(), loom_gpt_get_gradients(trainer->gpt), raw.size(), LOOM_DEVICE_TO_HOST);
    require([&](loom_error *error) { return device->synchronize(device, NULL, error); });
    return raw;
}

/* `after` is called with the trainer at its end. */
std::string bits_of(
    const ShortRun &run, const std::string &device, const Options::Pairs &more = {},
    const std::function<void(const Trainer &)> &after = [](const Trainer &) {}) {
    TemporaryDirectory folder;
    write_file(folder.at("text.txt"), some_text(4000, 7));
    const Options options(options_of(run, device, folder) + more);
    const Trainer trainer = open_trainer(options);
    std::string bits = "losses";
    std::string norms = "norms", gradients;
    for (int i = 0; i < STEPS; i++) {
        const loom_step_report report = step(trainer);
        char text[64];
        std::snprintf(text, sizeof text, " %a", (double)report.loss);
        bits += text;
        std::snprintf(text, sizeof text, " %a", (double)report.grad_norm);
        norms += text;
        if (i == 0) gradients = hash_of(gradients_of(trainer));
    }
    bits += ", " + norms + ", gradients " + gradients;
    after(trainer);
    if (device == "oracle") return bits; /* which saves what others can read: in fp32 */
    require([&](loom_error *error) { return loom_trainer_save(trainer.get(), folder.at("run").c_str(), error); });
    const fs::path saved = fs::path(folder.at("run")) / "checkpoints" / "latest";
    return bits + ", model " + hash_of(read_file(saved / "model.safetensors")) + ", optimizer " +
           hash_of(read_file(saved / "optimizer.safetensors"));
}

/* --------------------------------------------------------------------------------------------------------------- tests */

TEST(Bits, OfTheDefinitionAreTheseEverywhere) {
    Known known;
    for (const ShortRun &run : runs) known.expect("definition", run.name, bits_of(run, "definition"));
    for (const ShortRun &run : {runs[0], runs[1]}) known.expect("oracle", run.name, bits_of(run, "oracle"));
}

/* A vocabulary of which no more than 128 rows are computed at a time: of 130, in one chunk or in two. */
TEST(Bits, OfChunksOfLogitsAreTheseEverywhere) {
    const int64_t B = 2, T = 65, V = 131073;
    Known known;
    for (const int64_t rows : {1, 1000}) {
        ModelOptions options;
        options.device = "definition";
        options.threads = 1;
        options.logits_rows = rows;
        Model model(gpt_shape(1, 1, 8, T, V), B, T, options);
        ASSERT_EQ(loom_gpt_get_logits_rows(model.gpt()), rows == 1 ? 128 : 130);
        model.scatter_parameters(3);
        model.run(random_ids(B * T, V, 1), random_ids(B * T, V, 2), 1.0 / (double)(B * T));
        const loom_layout &layout = model.layout();
        known.expect(
            "definition", "chunks of " + std::to_string(rows == 1 ? 128 : 130),
            "losses " + hash_of(model.bytes(loom_gpt_get_losses(model.gpt()), sizeof(float) * B * T)) + ", gradients " +
                hash_of(model.bytes(loom_gpt_get_gradients(model.gpt()), sizeof(float) * (size_t)layout.elements)));
    }
}

class OfInstructions : public testing::TestWithParam<const char *> {
  protected:
    void TearDown() override {
        unsetenv("LOOM_INSTRUCTIONS");
        unsetenv("LOOM_PRODUCTS");
    }
};

TEST_P(OfInstructions, AreTheseFromThisCompiler) {
    loom_device *device = nullptr;
    loom_error error;
    Known known;
    setenv("LOOM_INSTRUCTIONS", GetParam(), 1);
    setenv("LOOM_PRODUCTS", "own", 1);
    if (!loom_device_open(&device, "cpu", nullptr, &error)) GTEST_SKIP() << error.message;
    loom_device_close(device);
    if (sanitized) GTEST_SKIP() << "a sanitizer build is not optimised, and may contract otherwise";
    if (LOOM_OTHER_FLAGS) GTEST_SKIP() << "CC, ARCH or CFLAGS was given: the compiler may contract otherwise";
    const std::string key = std::string("cpu, ") + GetParam() + ", compiler " + __VERSION__;
    if (!known.has(key)) GTEST_SKIP() << "nothing is known of " << key;
    for (const ShortRun &run : runs) known.expect(key, run.name, bits_of(run, "cpu"));
}

INSTANTIATE_TEST_SUITE_P(Bits, OfInstructions, testing::Values("sse2", "avx2", "avx512", "neon"),
                         [](const auto &row) { return std::string(row.param); });

/* By what the emulation's bits hang on beside its sources. */
std::string hash_of_functions() {
    std::vector<float> values;
    for (int i = 0; i < 4096; i++) {
        const float x = (float)i / 64 - 40, y = std::ldexp(1 + (float)i / 4096, i % 40 - 20);
        values.insert(values.end(), {exp2f(x), log2f(y), logf(y)});
    }
    return hash_of(values.data(), values.size() * sizeof values[0]);
}

std::string tuning_of(loom_device *device) {
    char *text = nullptr;
    require([&](loom_error *error) { return device->tuning_get(device, &text, error); });
    const std::string tuning = text ? text : "";
    free(text);
    return tuning;
}

TEST(Bits, OfTheEmulatedGpuAreThese) {
    const std::string path = data_path("tuning.txt"), key = "emulated cuda, functions " + hash_of_functions();
    Known known;
    if (!known.has(key)) GTEST_SKIP() << "nothing is known of " << key;
    if (!updates()) {
        const Device device = open_device("cuda");
        loom_error error;
        if (!loom_device_read_tuning(device.get(), path.c_str(), &error)) GTEST_SKIP() << error.message;
    }
    std::vector<ShortRun> all = {
        runs[0],
        runs[3],
        {"bf16 block offload", true, {{"dtype", "bf16"}, {"recompute", "block"}, {"offload", "activations"}}}};
    if (full() || updates()) all.insert(all.end(), {runs[2], runs[4]});
    for (const ShortRun &run : all) {
        const Options::Pairs given = fs::exists(path) ? Options::Pairs{{"tuning", path}} : Options::Pairs{};
        const std::string bits = bits_of(run, "cuda", given, [&](const Trainer &trainer) {
            const std::string tuning = tuning_of(trainer->device);
            if (updates()) write_file(path, tuning);
            EXPECT_EQ(tuning.size(), read_file(path).size()) << run.name << ": products that are not in " << path;
        });
        known.expect(key, run.name, bits);
    }
}

} // namespace
