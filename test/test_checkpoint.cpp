#include "base/file.h"
#include "base/half.h"
#include "checkpoint/directory.h"
#include "checkpoint/documents.h"
#include "checkpoint/tensors.h"
#include "gptloom/checkpoint.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <csignal>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace fs = std::filesystem;

namespace {

/* ----------------------------------------------------------------------------------------------------- fake devices */

/* A device whose memory is host memory; or one whose pointers the host cannot follow and whose copies happen no sooner
 * than they are waited for, as a GPU's may. */
class FakeDevice {
  public:
    explicit FakeDevice(bool remote) : remote_(remote) {
        device_.name = remote ? "remote" : "host";
        device_.storage = LOOM_F32;
        device_.statistics = LOOM_F32;
        device_.host_memory = !remote;
        device_.copy = copy;
        device_.synchronize = synchronize;
        device_.choices_get = [](const loom_device *, char **, loom_error *) { return true; };
        device_.implementation = this;
    }

    loom_device *get() {
        return &device_;
    }
    void *address(std::vector<float> &memory) const {
        return remote_ ? turn(memory.data()) : memory.data();
    }
    size_t pending() const {
        return queue_.size();
    }
    int synchronizations_until_failure = -1;

  private:
    static void *turn(const void *pointer) {
        return reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(pointer) ^ uintptr_t{1} << 62);
    }

    static void copy(loom_device *device, loom_stream *, void *to, const void *from, size_t bytes,
                     loom_copy_kind kind) {
        auto *self = static_cast<FakeDevice *>(device->implementation);
        if (!self->remote_) {
            memcpy(to, from, bytes);
            return;
        }
        if (kind == LOOM_HOST_TO_DEVICE) to = turn(to);
        if (kind == LOOM_DEVICE_TO_HOST) from = turn(from);
        self->queue_.push_back([=] { memcpy(to, from, bytes); });
    }

    static bool synchronize(loom_device *device, loom_stream *, loom_error *error) {
        auto *self = static_cast<FakeDevice *>(device->implementation);
        for (const auto &work : self->queue_) work();
        self->queue_.clear();
        if (self->synchronizations_until_failure-- == 0) return loom_fail(error, "the device fell off the bus");
        return true;
    }

    bool remote_;
    loom_device device_{};
    std::deque<std::function<void()>> queue_;
};

/* ---------------------------------------------------------------------------------------------------------- a model */

const float padding_mark = 7777.25f;

/* A layout made by hand, with padding wherever a layout can have it, and memory for weights and moments. */
class Model {
  public:
    explicit Model(FakeDevice &device, loom_gpt_config config = {2, 2, 8, 16, 257}) : config_(config) {
        const int64_t C = config.n_embd;
        add("transformer.wte.weight", config.vocab_size, C, (config.vocab_size + 127) / 128 * 128);
        add("transformer.wpe.weight", config.block_size, C);
        for (int64_t l = 0; l < config.n_layer; l++) {
            const std::string block = "transformer.h." + std::to_string(l) + ".";
            add(block + "ln_1.weight", 0, C);
            add(block + "ln_1.bias", 0, C);
            add(block + "attn.c_attn.weight", C, 3 * C);
            add(block + "attn.c_attn.bias", 0, 3 * C);
            add(block + "attn.c_proj.weight", C, C);
            add(block + "attn.c_proj.bias", 0, C);
            add(block + "ln_2.weight", 0, C);
            add(block + "ln_2.bias", 0, C);
            add(block + "mlp.c_fc.weight", C, 4 * C);
            add(block + "mlp.c_fc.bias", 0, 4 * C);
            add(block + "mlp.c_proj.weight", 4 * C, C);
            add(block + "mlp.c_proj.bias", 0, C);
        }
        add("transformer.ln_f.weight", 0, C);
        add("transformer.ln_f.bias", 0, C);
        layout_.parameter = parameters_.data();
        layout_.n_parameters = static_cast<int>(parameters_.size());
        for (auto *memory : {&weights, &moment1, &moment2})
            memory->assign(static_cast<size_t>(layout_.elements), padding_mark);
        tensors = {&config_,
                   &layout_,
                   device.get(),
                   device.address(weights),
                   device.address(moment1),
                   device.address(moment2)};
    }
    Model(const Model &) = delete;

    /* Random bits, so that every kind of float occurs, signalling NaNs and subnormal numbers included. */
    void fill(uint64_t seed) {
        for (auto *memory : {&weights, &moment1, &moment2}) {
            for (const auto &parameter : parameters_) {
                for (int64_t i = 0; i < parameter.rows * parameter.columns; i++) {
                    seed = seed * 6364136223846793005u + 1442695040888963407u;
                    const auto bits = static_cast<uint32_t>(seed >> 32);
                    memcpy(memory->data() + parameter.offset + i, &bits, sizeof bits);
                }
            }
        }
    }

    std::vector<float> weights, moment1, moment2;
    loom_checkpoint_tensors tensors;

    const loom_layout &layout() const {
        return layout_;
    }
    loom_gpt_config &config() {
        return config_;
    }

  private:
    void add(const std::string &name, int64_t rows, int64_t columns, int64_t padded_rows = 0) {
        loom_parameter parameter{};
        snprintf(parameter.name, sizeof parameter.name, "%s", name.c_str());
        parameter.vector = rows == 0;
        parameter.rows = rows == 0 ? 1 : rows;
        parameter.columns = columns;
        parameter.padded_rows = padded_rows ? padded_rows : parameter.rows;
        parameter.offset = layout_.elements;
        layout_.elements += (parameter.padded_rows * columns + 127) / 128 * 128;
        layout_.count += parameter.rows * columns;
        parameters_.push_back(parameter);
    }

    loom_gpt_config config_;
    std::vector<loom_parameter> parameters_;
    loom_layout layout_{};
};

/* Whether every parameter is bit for bit the other's and every padded row is zero. */
::testing::AssertionResult loaded_from(const std::vector<float> &memory, const std::vector<float> &saved,
                                       const loom_layout &layout) {
    for (int i = 0; i < layout.n_parameters; i++) {
        const loom_parameter &p = layout.parameter[i];
        const auto n = static_cast<size_t>(p.rows * p.columns), padded = static_cast<size_t>(p.padded_rows * p.columns);
        if (memcmp(memory.data() + p.offset, saved.data() + p.offset, n * sizeof(float)) != 0)
            return ::testing::AssertionFailure() << p.name << " differs";
        for (size_t j = n; j < padded; j++)
            if (memory[static_cast<size_t>(p.offset) + j] != 0)
                return ::testing::AssertionFailure() << p.name << " has padding that is not zero";
    }
    return ::testing::AssertionSuccess();
}

/* ------------------------------------------------------------------------------------------------------------ files */

std::string read_file(const fs::path &path) {
    std::ifstream in(path, std::ios::binary);
    EXPECT_TRUE(in) << path;
    return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const fs::path &path, const std::string &content) {
    std::ofstream(path, std::ios::binary) << content;
}

void replace_in_file(const fs::path &path, const std::string &old_text, const std::string &new_text) {
    std::string content = read_file(path);
    const size_t at = content.find(old_text);
    ASSERT_NE(at, std::string::npos) << old_text << " is not in " << path;
    write_file(path, content.replace(at, old_text.size(), new_text));
}

std::string raw_safetensors(const std::string &header, const std::string &data) {
    std::string length(8, 0);
    for (size_t i = 0; i < 8; i++) length[i] = static_cast<char>(header.size() >> (8 * i));
    return length + header + data;
}

struct RawTensor {
    std::string name, dtype, shape, data;
};

/* A safetensors file as another program may write it: its data begins at an odd byte. */
std::string make_safetensors(const std::vector<RawTensor> &tensors) {
    std::string header = "{", data;
    for (const auto &t : tensors) {
        header += "\"" + t.name + "\":{\"dtype\":\"" + t.dtype + "\",\"shape\":" + t.shape + ",\"data_offsets\":[" +
                  std::to_string(data.size()) + "," + std::to_string(data.size() + t.data.size()) + "]},";
        data += t.data;
    }
    header += "\"__metadata__\":{\"format\":\"pt\"}}";
    if (header.size() % 2 == 0) header += ' ';
    return raw_safetensors(header, data);
}

std::vector<RawTensor> raw_weights(const Model &model) {
    std::vector<RawTensor> raw;
    for (int i = 0; i < model.layout().n_parameters; i++) {
        const loom_parameter &p = model.layout().parameter[i];
        const std::string columns = std::to_string(p.columns);
        const auto *data = reinterpret_cast<const char *>(model.weights.data() + p.offset);
        raw.push_back({p.name, "F32",
                       p.vector ? "[" + columns + "]" : "[" + std::to_string(p.rows) + "," + columns + "]",
                       std::string(data, static_cast<size_t>(p.rows * p.columns) * sizeof(float))});
    }
    return raw;
}

RawTensor &named(std::vector<RawTensor> &tensors, const std::string &name) {
    for (auto &tensor : tensors)
        if (tensor.name == name) return tensor;
    throw std::out_of_range(name);
}

std::set<std::string> names_in(const fs::path &directory) {
    std::set<std::string> names;
    for (const auto &entry : fs::directory_iterator(directory)) names.insert(entry.path().filename());
    return names;
}

/* Every file below a directory and every link, with its content: what a failed save must not change. */
std::string fingerprint(const fs::path &directory) {
    std::set<std::string> parts;
    for (const auto &entry : fs::recursive_directory_iterator(directory)) {
        std::string part = entry.path().string();
        if (entry.is_symlink())
            part += " -> " + fs::read_symlink(entry.path()).string();
        else if (entry.is_regular_file())
            part += " = " + read_file(entry.path());
        parts.insert(part);
    }
    std::string all;
    for (const auto &part : parts) all += part + "\n";
    return all;
}

loom_training_state state_of(int64_t step) {
    loom_training_state state{};
    state.step = step;
    state.tokens = step * 768;
    state.seed = 1337;
    state.data_identity = 0xfedcba9876543210u;
    state.batch = 12;
    state.seq_len = 64;
    state.training_tokens = 1003854;
    state.dtype = LOOM_F16;
    state.scalars = {step, 0, step, 2.5, 6.5, 1.0 / 3, 0.1, 0x1p15f, 1234};
    return state;
}

class CheckpointTest : public ::testing::Test {
  protected:
    void SetUp() override {
        std::string pattern = (fs::temp_directory_path() / "gptloom-checkpoint-XXXXXX").string();
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        directory = pattern;
        fs::permissions(directory, fs::perms(0755)); /* other users, which permission tests run as, may enter */
        run = directory / "run";
        checkpoints = run / "checkpoints";
        model.fill(1);
    }
    void TearDown() override {
        fs::remove_all(directory);
    }

    bool save(int64_t step, int keep = 0) {
        const loom_training_state state = state_of(step);
        error.message[0] = 0;
        return loom_checkpoint_save(run.c_str(), &model.tensors, &state, true, keep, &error);
    }

    bool open(const fs::path &path) {
        error.message[0] = 0;
        return loom_checkpoint_open(path.c_str(), &info, &error);
    }

    /* The one line that a failing call left: it must be one, and name what it is about. */
    ::testing::AssertionResult says(std::initializer_list<std::string> parts) const {
        const std::string message = error.message;
        if (message.empty() || message.find('\n') != std::string::npos)
            return ::testing::AssertionFailure() << "not one line: '" << message << "'";
        for (const auto &part : parts)
            if (message.find(part) == std::string::npos)
                return ::testing::AssertionFailure() << "'" << part << "' is not in '" << message << "'";
        return ::testing::AssertionSuccess();
    }

    fs::path directory, run, checkpoints;
    FakeDevice device{false};
    Model model{device};
    loom_checkpoint_info info{};
    loom_error error{};
};

/* ------------------------------------------------------------------------------------------------------ round trips */

class RoundTripTest : public CheckpointTest, public ::testing::WithParamInterface<bool> {};

TEST_P(RoundTripTest, KeepsEveryBit) {
    FakeDevice saver(GetParam()), loader(!GetParam());
    Model saved(saver), loaded(loader);
    saved.fill(42);
    const loom_training_state state = state_of(100);
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &saved.tensors, &state, true, 0, &error)) << error.message;
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(checkpoints / "step-00000100", info.directory);
    EXPECT_EQ(memcmp(&info.config, &saved.config(), sizeof info.config), 0);
    EXPECT_EQ(memcmp(&info.state, &state, sizeof state), 0);
    EXPECT_TRUE(info.bytes);
    EXPECT_TRUE(info.has_optimizer);
    ASSERT_TRUE(loom_checkpoint_load(&info, &loaded.tensors, &error)) << error.message;
    EXPECT_EQ(loader.pending(), 0u);
    EXPECT_TRUE(loaded_from(loaded.weights, saved.weights, saved.layout()));
    EXPECT_TRUE(loaded_from(loaded.moment1, saved.moment1, saved.layout()));
    EXPECT_TRUE(loaded_from(loaded.moment2, saved.moment2, saved.layout()));
}

INSTANTIATE_TEST_SUITE_P(Devices, RoundTripTest, ::testing::Bool());

/* Tensors and padding larger than the staging memory, which is copied through in several rounds. */
TEST_F(CheckpointTest, CopiesLargeTensorsPiecewise) {
    loom_parameter parameter{};
    strcpy(parameter.name, "large");
    parameter.rows = 1030, parameter.columns = 1024, parameter.padded_rows = 2200;
    loom_layout layout{};
    layout.parameter = &parameter, layout.n_parameters = 1;
    std::vector<float> saved(2200 * 1024, padding_mark), loaded = saved;
    for (size_t i = 0; i < 1030 * 1024; i++) saved[i] = static_cast<float>(i);

    FakeDevice remote(true);
    loom_checkpoint_tensors tensors{nullptr, &layout, remote.get(), remote.address(saved), nullptr, nullptr};
    loom_tensor_sets sets = loom_weight_sets(&tensors);
    loom_manifest manifest{};
    const std::string path = directory / "large.safetensors";
    manifest.directory = directory.c_str();
    ASSERT_TRUE(loom_tensors_write(&manifest, "large.safetensors", &tensors, &sets, &error)) << error.message;

    tensors.parameters = remote.address(loaded);
    sets = loom_weight_sets(&tensors);
    loom_tensor_source source;
    ASSERT_TRUE(loom_tensor_source_open(&source, path.c_str(), &tensors, &sets, false, &error)) << error.message;
    ASSERT_TRUE(loom_tensor_source_load(&source, &tensors, &sets, &error)) << error.message;
    loom_tensor_source_close(&source);
    EXPECT_TRUE(loaded_from(loaded, saved, layout));

    std::string halves(1030 * 1024 * 2, 0); /* bf16 of the index's upper half */
    for (uint32_t i = 0; i < 1030 * 1024; i++) {
        const auto bits = static_cast<uint16_t>(i / 64);
        memcpy(&halves[2 * i], &bits, 2);
        const uint32_t wide = uint32_t{bits} << 16;
        memcpy(&saved[i], &wide, 4);
    }
    write_file(path, make_safetensors({{"large", "BF16", "[1030,1024]", halves}}));
    ASSERT_TRUE(loom_tensor_source_open(&source, path.c_str(), &tensors, &sets, true, &error)) << error.message;
    ASSERT_TRUE(loom_tensor_source_load(&source, &tensors, &sets, &error)) << error.message;
    loom_tensor_source_close(&source);
    EXPECT_TRUE(loaded_from(loaded, saved, layout));
}

/* Weights of 16 bits are written as they are, and become any other type when they are loaded. */
TEST_F(CheckpointTest, WeightsOfEveryTypeBecomeEveryOther) {
    loom_parameter parameter{};
    strcpy(parameter.name, "large");
    parameter.rows = 1030, parameter.columns = 1024, parameter.padded_rows = 1100;
    loom_layout layout{};
    layout.parameter = &parameter, layout.n_parameters = 1;
    const size_t n = 1030 * 1024, padded = 1100 * 1024;
    /* Exact in all three types: 7 significant bits, small exponents. */
    std::vector<float> values(n);
    for (size_t i = 0; i < n; i++)
        values[i] = std::ldexp(static_cast<float>(i % 255) - 127, static_cast<int>(i % 16) - 10);
    const loom_dtype dtypes[] = {LOOM_F32, LOOM_BF16, LOOM_F16};
    const auto stored = [&](loom_dtype dtype) {
        std::vector<float> memory(padded, padding_mark);
        for (size_t i = 0; i < padded; i++) {
            const float value = i < n ? values[i] : 0;
            const uint16_t narrow = dtype == LOOM_BF16 ? float_to_bf16(value) : float_to_fp16(value);
            if (dtype == LOOM_F32)
                memory[i] = value;
            else
                memcpy(reinterpret_cast<char *>(memory.data()) + 2 * i, &narrow, 2);
        }
        return memory;
    };
    FakeDevice remote(true);
    const std::string path = directory / "large.safetensors";
    for (const loom_dtype from : dtypes) {
        std::vector<float> saved = stored(from);
        loom_checkpoint_tensors tensors{nullptr, &layout, remote.get(), remote.address(saved), nullptr, nullptr, from};
        loom_tensor_sets sets = loom_weight_sets(&tensors);
        loom_manifest manifest{};
        manifest.directory = directory.c_str();
        ASSERT_TRUE(loom_tensors_write(&manifest, "large.safetensors", &tensors, &sets, &error)) << error.message;
        loom_safetensors file;
        ASSERT_TRUE(loom_safetensors_open(&file, path.c_str(), &error)) << error.message;
        EXPECT_STREQ(file.tensor[0].dtype, from == LOOM_F32 ? "F32" : from == LOOM_BF16 ? "BF16" : "F16");
        EXPECT_EQ(file.tensor[0].bytes, n * loom_dtype_size(from));
        loom_safetensors_close(&file);
        for (const loom_dtype to : dtypes) {
            std::vector<float> loaded(padded, padding_mark);
            tensors.parameters = remote.address(loaded);
            tensors.dtype = to;
            sets = loom_weight_sets(&tensors);
            loom_tensor_source source;
            ASSERT_TRUE(loom_tensor_source_open(&source, path.c_str(), &tensors, &sets, true, &error)) << error.message;
            ASSERT_TRUE(loom_tensor_source_load(&source, &tensors, &sets, &error)) << error.message;
            loom_tensor_source_close(&source);
            EXPECT_EQ(memcmp(loaded.data(), stored(to).data(), padded * sizeof(float)), 0)
                << loom_dtype_name(from) << " as " << loom_dtype_name(to);
        }
        fs::remove(path);
    }
}

TEST_F(CheckpointTest, StateSurvivesAtItsLimits) {
    loom_training_state state{};
    state.step = 12345678901;
    state.tokens = INT64_MAX;
    state.seed = UINT64_MAX;
    state.data_identity = (uint64_t{1} << 63) + 1;
    state.batch = 1;
    state.seq_len = INT64_MAX;
    state.training_tokens = (int64_t{1} << 53) + 1;
    const double values[] = {0.0,          -0.0,
                             DBL_MAX,      -DBL_MIN,
                             DBL_TRUE_MIN, -5 * DBL_TRUE_MIN,
                             1.0 / 3,      INFINITY,
                             -INFINITY,    DBL_MIN * (1 - 1e-10),
                             0.1,          std::nextafter(1.0, 2.0)};
    const std::string path = directory / "training_state.json";
    const auto round_trip = [&] {
        loom_manifest manifest{};
        manifest.directory = directory.c_str();
        loom_training_state read{};
        EXPECT_TRUE(loom_state_write(&manifest, &state, &error)) << error.message;
        EXPECT_TRUE(loom_state_read(path.c_str(), &read, &error)) << error.message;
        return read;
    };
    for (const double value : values) {
        state.scalars = {INT64_MAX - 1, (int64_t{1} << 53) + 1, 7, value, -value, value / 3, value * 3, 0x1p127f,
                         INT32_MAX};
        const loom_training_state read = round_trip();
        EXPECT_EQ(memcmp(&read, &state, sizeof state), 0) << value;
    }
    state.scalars.loss_mean = NAN;
    EXPECT_TRUE(std::isnan(round_trip().scalars.loss_mean));
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &model.tensors, &state, true, 0, &error)) << error.message;
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(checkpoints / "step-12345678901", info.directory);
}

TEST_F(CheckpointTest, WeightsAloneCanBeSavedAndLoaded) {
    const loom_training_state state = state_of(3);
    loom_checkpoint_tensors weights = model.tensors;
    weights.moment1 = weights.moment2 = nullptr;
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &weights, &state, false, 0, &error)) << error.message;
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_FALSE(info.has_optimizer);
    EXPECT_FALSE(info.bytes);
    EXPECT_EQ(info.state.step, 3);
    Model loaded(device);
    EXPECT_FALSE(loom_checkpoint_load(&info, &loaded.tensors, &error));
    EXPECT_TRUE(says({info.directory, "weights only"}));
    loom_checkpoint_tensors wanted = loaded.tensors;
    wanted.moment1 = wanted.moment2 = nullptr;
    ASSERT_TRUE(loom_checkpoint_load(&info, &wanted, &error)) << error.message;
    EXPECT_TRUE(loaded_from(loaded.weights, model.weights, model.layout()));
}

/* ------------------------------------------------------------------------------------------------ what is in a file */

TEST_F(CheckpointTest, FilesAreNamedAndShapedAsTransformersWritesThem) {
    ASSERT_TRUE(save(5)) << error.message;
    const fs::path step = checkpoints / "step-00000005";
    EXPECT_EQ(names_in(step),
              (std::set<std::string>{"config.json", "manifest.json", "model.safetensors", "optimizer.safetensors",
                                     "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
                                     "training_state.json"}));

    loom_safetensors file;
    ASSERT_TRUE(loom_safetensors_open(&file, (step / "model.safetensors").c_str(), &error)) << error.message;
    EXPECT_EQ(file.n_tensors, model.layout().n_parameters);
    size_t bytes = 0;
    for (int i = 0; i < file.n_tensors; i++) {
        EXPECT_STREQ(file.tensor[i].dtype, "F32");
        EXPECT_EQ(reinterpret_cast<uintptr_t>(file.tensor[i].data) % sizeof(float), 0u);
        bytes += file.tensor[i].bytes;
    }
    EXPECT_EQ(bytes, static_cast<size_t>(model.layout().count) * sizeof(float));
    const loom_safetensor *wte = loom_safetensors_find(&file, "transformer.wte.weight");
    ASSERT_NE(wte, nullptr);
    EXPECT_EQ(wte->rank, 2);
    EXPECT_EQ(wte->shape[0], 257);
    EXPECT_EQ(wte->shape[1], 8);
    const loom_safetensor *bias = loom_safetensors_find(&file, "transformer.h.1.attn.c_attn.bias");
    ASSERT_NE(bias, nullptr);
    EXPECT_EQ(bias->rank, 1);
    EXPECT_EQ(bias->shape[0], 24);
    EXPECT_EQ(loom_safetensors_find(&file, "lm_head.weight"), nullptr);
    loom_safetensors_close(&file);

    ASSERT_TRUE(loom_safetensors_open(&file, (step / "optimizer.safetensors").c_str(), &error)) << error.message;
    EXPECT_EQ(file.n_tensors, 2 * model.layout().n_parameters);
    EXPECT_NE(loom_safetensors_find(&file, "transformer.h.0.mlp.c_fc.weight.exp_avg"), nullptr);
    EXPECT_NE(loom_safetensors_find(&file, "transformer.h.0.mlp.c_fc.weight.exp_avg_sq"), nullptr);
    loom_safetensors_close(&file);

    const std::string mark(reinterpret_cast<const char *>(&padding_mark), sizeof padding_mark);
    for (const char *name : {"model.safetensors", "optimizer.safetensors"})
        EXPECT_EQ(read_file(step / name).find(mark + mark), std::string::npos) << name << " holds padding";
}

TEST_F(CheckpointTest, TheActivationIsKept) {
    loom_gpt_config config{1, 1, 2, 4, 300, LOOM_GPT_RELU};
    Model relu(device, config);
    const loom_training_state state = state_of(2);
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &relu.tensors, &state, true, 0, &error)) << error.message;
    EXPECT_NE(read_file(checkpoints / "step-00000002/config.json").find("\"activation_function\":\t\"relu\""),
              std::string::npos);
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(info.config.activation, LOOM_GPT_RELU);
}

TEST_F(CheckpointTest, ConfigurationIsGpt2s) {
    ASSERT_TRUE(save(1));
    const std::string config = read_file(checkpoints / "step-00000001/config.json");
    for (const char *line :
         {"\"model_type\":\t\"gpt2\"", "[\"GPT2LMHeadModel\"]", "\"vocab_size\":\t257", "\"n_positions\":\t16",
          "\"n_embd\":\t8", "\"n_layer\":\t2", "\"n_head\":\t2", "\"activation_function\":\t\"gelu_new\"",
          "\"layer_norm_epsilon\":\t1e-05", "\"resid_pdrop\":\t0.0", "\"tie_word_embeddings\":\ttrue",
          "\"bos_token_id\":\t256", "\"eos_token_id\":\t256"})
        EXPECT_NE(config.find(line), std::string::npos) << line << " is not in " << config;

    const loom_training_state state = state_of(2);
    Model large(device, {1, 1, 2, 4, 50257}), odd(device, {1, 1, 2, 4, 300});
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &large.tensors, &state, false, 0, &error)) << error.message;
    EXPECT_NE(read_file(checkpoints / "latest/config.json").find("\"eos_token_id\":\t50256"), std::string::npos);
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &odd.tensors, &state, false, 0, &error)) << error.message;
    EXPECT_NE(read_file(checkpoints / "latest/config.json").find("\"eos_token_id\":\tnull"), std::string::npos);
}

TEST_F(CheckpointTest, TokenizerMapsEachByteToItself) {
    ASSERT_TRUE(save(1));
    const fs::path path = checkpoints / "latest/tokenizer.json";
    cJSON *json = cJSON_Parse(read_file(path).c_str());
    const cJSON *vocabulary = cJSON_GetObjectItem(cJSON_GetObjectItem(json, "model"), "vocab");
    EXPECT_EQ(cJSON_GetArraySize(vocabulary), 256);
    const std::pair<const char *, int> expected[] = {{"!", 33},  {"A", 65},  {"\"", 34}, {"\\", 92}, {"~", 126},
                                                     {"Ā", 0},   {"Ċ", 10},  {"Ġ", 32},  {"ġ", 127}, {"ł", 160},
                                                     {"¡", 161}, {"Ń", 173}, {"®", 174}, {"ÿ", 255}};
    for (const auto &[character, id] : expected)
        EXPECT_EQ(cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(vocabulary, character)), id) << character;
    cJSON_Delete(json);

    bool bytes = false;
    EXPECT_TRUE(loom_tokenizer_is_bytes(path.c_str(), &bytes, &error));
    EXPECT_TRUE(bytes);
    const std::string whole = read_file(path);
    replace_in_file(path, "\"A\":\t65", "\"A\":\t66");
    EXPECT_TRUE(loom_tokenizer_is_bytes(path.c_str(), &bytes, &error));
    EXPECT_FALSE(bytes);
    write_file(path, whole);
    replace_in_file(path, "\"merges\":\t[]", "\"merges\":\t[\"t h\"]");
    EXPECT_TRUE(loom_tokenizer_is_bytes(path.c_str(), &bytes, &error));
    EXPECT_FALSE(bytes);
    write_file(path, whole.substr(0, whole.size() / 2));
    EXPECT_FALSE(loom_tokenizer_is_bytes(path.c_str(), &bytes, &error));
    EXPECT_TRUE(says({path, "not valid JSON"}));
}

/* ---------------------------------------------------------------------------------------- the checkpoints directory */

TEST_F(CheckpointTest, LatestIsARelativeLinkAndKeepDeletesTheOldest) {
    for (int64_t step = 1; step <= 3; step++) ASSERT_TRUE(save(step)) << error.message;
    EXPECT_EQ(names_in(checkpoints),
              (std::set<std::string>{"latest", "step-00000001", "step-00000002", "step-00000003"}));
    EXPECT_EQ(fs::read_symlink(checkpoints / "latest"), "step-00000003");
    fs::create_directory(checkpoints / "step-7");
    fs::create_directory(checkpoints / "notes");
    ASSERT_TRUE(save(4, 2)) << error.message;
    EXPECT_EQ(names_in(checkpoints),
              (std::set<std::string>{"latest", "notes", "step-00000003", "step-00000004", "step-7"}));
    EXPECT_EQ(fs::read_symlink(checkpoints / "latest"), "step-00000004");
}

TEST_F(CheckpointTest, KeepNeverDeletesWhatWasJustWritten) {
    for (int64_t step = 5; step <= 7; step++) ASSERT_TRUE(save(step)) << error.message;
    ASSERT_TRUE(save(2, 2)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000002", "step-00000007"}));
    EXPECT_EQ(fs::read_symlink(checkpoints / "latest"), "step-00000002");
    ASSERT_TRUE(save(1, 1)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000001"}));
}

TEST_F(CheckpointTest, SavingAStepAgainReplacesIt) {
    ASSERT_TRUE(save(4));
    write_file(checkpoints / "step-00000004/mark", "of the first");
    model.fill(99);
    ASSERT_TRUE(save(4)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000004"}));
    EXPECT_FALSE(fs::exists(checkpoints / "step-00000004/mark"));
    Model loaded(device);
    ASSERT_TRUE(open(run) && loom_checkpoint_load(&info, &loaded.tensors, &error)) << error.message;
    EXPECT_TRUE(loaded_from(loaded.weights, model.weights, model.layout()));
}

TEST_F(CheckpointTest, DirectoriesChangeNamesWithOrWithoutTheFileSystemsHelp) {
    const fs::path a = directory / "a", b = directory / "b", spare = directory / "spare";
    fs::create_directory(a), fs::create_directory(b);
    write_file(a / "first", ""), write_file(b / "second", "");
    ASSERT_TRUE(loom_exchange_by_renames(a.c_str(), b.c_str(), spare.c_str(), &error)) << error.message;
    EXPECT_TRUE(fs::exists(b / "first") && fs::exists(a / "second") && !fs::exists(spare));
    ASSERT_TRUE(loom_exchange_directories(a.c_str(), b.c_str(), spare.c_str(), &error)) << error.message;
    EXPECT_TRUE(fs::exists(a / "first") && fs::exists(b / "second") && !fs::exists(spare));

    const fs::path missing = directory / "missing";
    EXPECT_FALSE(loom_exchange_by_renames(missing.c_str(), b.c_str(), spare.c_str(), &error));
    EXPECT_TRUE(says({missing}));
    EXPECT_TRUE(fs::exists(b / "second") && !fs::exists(spare));
    EXPECT_FALSE(loom_exchange_directories(missing.c_str(), b.c_str(), spare.c_str(), &error));
    EXPECT_TRUE(fs::exists(b / "second") && !fs::exists(spare));
}

TEST_F(CheckpointTest, WhatACrashLeftIsRemovedByTheNextSave) {
    ASSERT_TRUE(save(1));
    fs::create_directories(checkpoints / ".tmp-step-00000002/deep");
    write_file(checkpoints / ".tmp-step-00000002/deep/half", "written");
    fs::create_directory(checkpoints / ".tmp-old-step-00000000");
    fs::create_symlink("step-00000002", checkpoints / ".tmp-latest");
    ASSERT_TRUE(open(run)) << error.message;
    ASSERT_TRUE(save(2)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000001", "step-00000002"}));
}

TEST_F(CheckpointTest, EveryWayToNameACheckpointOpensIt) {
    ASSERT_TRUE(save(1) && save(2));
    const fs::path newest = checkpoints / "step-00000002";
    for (const fs::path &path : {run, run / "", checkpoints, checkpoints / "latest", checkpoints / "latest/", newest}) {
        ASSERT_TRUE(open(path)) << path << ": " << error.message;
        EXPECT_EQ(newest, info.directory) << path;
        EXPECT_EQ(info.state.step, 2);
    }
    ASSERT_TRUE(open(checkpoints / "step-00000001"));
    EXPECT_EQ(info.state.step, 1);

    fs::create_symlink("run/checkpoints/latest", directory / "best"); /* a link to a link */
    ASSERT_TRUE(open(directory / "best")) << error.message;
    EXPECT_EQ(newest, info.directory);

    fs::remove(checkpoints / "latest");
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(newest, info.directory);
    ASSERT_TRUE(open(checkpoints)) << error.message;
    fs::create_symlink("step-00000009", checkpoints / "latest");
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(newest, info.directory);
    fs::remove(checkpoints / "latest");
    fs::create_symlink(fs::canonical(checkpoints) / "step-00000001", checkpoints / "latest");
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(info.state.step, 1);
}

TEST_F(CheckpointTest, NamesWithoutACheckpointAreRefused) {
    EXPECT_FALSE(open(directory / "nothing"));
    EXPECT_TRUE(says({directory / "nothing", "No such file"}));
    EXPECT_FALSE(open(directory));
    EXPECT_TRUE(says({directory, "holds no checkpoint"}));
    write_file(directory / "file", "text");
    EXPECT_FALSE(open(directory / "file"));
    EXPECT_TRUE(says({directory / "file", "is no directory"}));
    EXPECT_FALSE(open(directory / "file/below"));
    EXPECT_TRUE(says({directory / "file/below", "Not a directory"}));
    fs::create_symlink("loop", directory / "loop");
    EXPECT_FALSE(open(directory / "loop"));
    EXPECT_TRUE(says({directory / "loop"}));
    EXPECT_FALSE(open(std::string(5000, 'x')));
    EXPECT_TRUE(says({"xxxx"}));
    fs::create_directories(checkpoints);
    EXPECT_FALSE(open(run));
    EXPECT_TRUE(says({checkpoints, "no checkpoint in it"}));
}

TEST_F(CheckpointTest, AnErrorMayBeNull) {
    EXPECT_FALSE(loom_checkpoint_open((directory / "nothing").c_str(), &info, nullptr));
    ASSERT_TRUE(save(1) && save(2));
    write_file(checkpoints / "step-00000002/config.json", "");
    EXPECT_FALSE(loom_checkpoint_open(run.c_str(), &info, nullptr));
}

/* ----------------------------------------------------------------------------------------------------- failed saves */

/* Lets no file grow beyond a size while it lives: what a full disk does, without one. */
class FullDisk {
  public:
    explicit FullDisk(rlim_t largest) {
        getrlimit(RLIMIT_FSIZE, &before_);
        handler_ = signal(SIGXFSZ, SIG_IGN);
        const rlimit limit = {largest, before_.rlim_max};
        setrlimit(RLIMIT_FSIZE, &limit);
    }
    ~FullDisk() {
        setrlimit(RLIMIT_FSIZE, &before_);
        signal(SIGXFSZ, handler_);
    }

  private:
    rlimit before_{};
    void (*handler_)(int);
};

TEST_F(CheckpointTest, AFullDiskLeavesEverythingAsItWas) {
    ASSERT_TRUE(save(1) && save(2));
    const std::string before = fingerprint(checkpoints);
    std::set<uintmax_t> sizes;
    for (const auto &entry : fs::directory_iterator(checkpoints / "step-00000002")) sizes.insert(entry.file_size());
    model.fill(7);
    for (const uintmax_t size : sizes) { /* each time another file is the first that does not fit */
        bool saved, saved_again;
        {
            const FullDisk full(size - 1);
            saved = save(3, 1);
            saved_again = save(2, 1);
        }
        EXPECT_FALSE(saved) << size;
        EXPECT_FALSE(saved_again) << size;
        EXPECT_TRUE(says({(checkpoints / ".tmp-step-00000002/").string(), "cannot be written", "File too large"}));
        EXPECT_EQ(fingerprint(checkpoints), before) << size;
    }
    {
        const FullDisk nearly(*sizes.rbegin());
        EXPECT_TRUE(save(3)) << error.message;
    }
    EXPECT_TRUE(open(run)) << error.message;
}

TEST_F(CheckpointTest, AnythingInTheWayLeavesEverythingAsItWas) {
    write_file(directory / "file", "text");
    run = directory / "file";
    EXPECT_FALSE(save(1));
    EXPECT_TRUE(says({run}));

    run = directory / "run";
    fs::create_directories(checkpoints / "latest"); /* is found when the new checkpoint is already whole */
    EXPECT_FALSE(save(1));
    EXPECT_TRUE(says({checkpoints / "latest", "not a symbolic link"}));
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest"}));
}

TEST_F(CheckpointTest, AFailingDeviceLeavesEverythingAsItWas) {
    ASSERT_TRUE(save(1));
    const std::string before = fingerprint(checkpoints);
    FakeDevice remote(true);
    Model failing(remote);
    const loom_training_state state = state_of(2);
    for (const int successes : {0, 1, 40}) {
        remote.synchronizations_until_failure = successes;
        EXPECT_FALSE(loom_checkpoint_save(run.c_str(), &failing.tensors, &state, true, 1, &error));
        EXPECT_TRUE(says({"fell off the bus"}));
        EXPECT_EQ(fingerprint(checkpoints), before);
    }
    ASSERT_TRUE(open(run));
    remote.synchronizations_until_failure = 0;
    EXPECT_FALSE(loom_checkpoint_load(&info, &failing.tensors, &error));
    EXPECT_TRUE(says({"fell off the bus"}));
    EXPECT_EQ(remote.pending(), 0u);
}

TEST_F(CheckpointTest, DevicesOfAnotherPrecisionAreRefused) {
    ASSERT_TRUE(save(1) && open(run));
    device.get()->storage = LOOM_F64;
    EXPECT_FALSE(save(2));
    EXPECT_TRUE(says({"fp64", "fp32"}));
    EXPECT_FALSE(loom_checkpoint_load(&info, &model.tensors, &error));
    EXPECT_TRUE(says({"fp64", "fp32"}));
}

/* Runs as another user than root while it lives, because root may read and write everything. */
class OtherUser {
  public:
    OtherUser() : was_root_(geteuid() == 0) {
        if (was_root_) {
            EXPECT_EQ(seteuid(65534), 0);
        }
    }
    ~OtherUser() {
        if (was_root_) {
            EXPECT_EQ(seteuid(0), 0);
        }
    }

  private:
    bool was_root_;
};

TEST_F(CheckpointTest, PathsWithoutPermissionAreNamed) {
    ASSERT_TRUE(save(1));
    const fs::path weights = checkpoints / "step-00000001/model.safetensors";
    const auto forbid = [&](const fs::path &path, fs::perms perms, const std::function<bool()> &action) {
        const fs::perms before = fs::status(path).permissions();
        fs::permissions(path, perms);
        bool done;
        {
            const OtherUser other;
            done = action();
        }
        fs::permissions(path, before);
        return done;
    };
    EXPECT_FALSE(forbid(weights, fs::perms(0), [&] { return open(run); }));
    EXPECT_TRUE(says({weights, "Permission denied"}));
    EXPECT_FALSE(forbid(run, fs::perms(0), [&] { return open(run); }));
    EXPECT_TRUE(says({run, "Permission denied"}));
    EXPECT_FALSE(forbid(checkpoints, fs::perms(0555), [&] { return save(2); }));
    EXPECT_TRUE(says({checkpoints, "Permission denied"}));
    EXPECT_TRUE(open(run)) << error.message;
    EXPECT_EQ(info.state.step, 1);
}

/* Saving again and again, the same steps among them, until it is killed: there is always a whole one to open. */
TEST_F(CheckpointTest, AKillAtAnyInstantLeavesAWholeCheckpoint) {
    ASSERT_TRUE(save(1));
    for (int kills = 0; kills < 12; kills++) {
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            for (int64_t i = 0;; i++) save(1 + i / 3 % 4, 1);
        }
        usleep(static_cast<useconds_t>(5000 + 9700 * kills));
        ASSERT_EQ(kill(child, SIGKILL), 0);
        ASSERT_EQ(waitpid(child, nullptr, 0), child);
        Model loaded(device);
        ASSERT_TRUE(open(run) && loom_checkpoint_load(&info, &loaded.tensors, &error)) << error.message;
        EXPECT_TRUE(loaded_from(loaded.weights, model.weights, model.layout()));
    }
    ASSERT_TRUE(save(9, 1)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000009"}));
}

/* In a sticky directory one user cannot replace another's link: the last of all renames fails. */
TEST_F(CheckpointTest, ALatestThatCannotMoveTakesTheNewCheckpointBack) {
    if (geteuid() != 0) GTEST_SKIP() << "needs two users: run it as root";
    ASSERT_TRUE(save(1));
    const std::string before = fingerprint(checkpoints);
    fs::permissions(checkpoints, fs::perms(01777));
    {
        const OtherUser other;
        EXPECT_FALSE(save(2));
    }
    EXPECT_TRUE(says({checkpoints / "latest", "cannot be renamed"}));
    EXPECT_EQ(fingerprint(checkpoints), before);
}

/* cJSON's memory runs out at the n-th allocation, for many n: an error or a whole result, never a crash or a leak. */
int allocations_left;
void *scarce_malloc(size_t bytes) {
    return allocations_left-- > 0 ? malloc(bytes) : nullptr;
}

TEST_F(CheckpointTest, RunningOutOfMemoryIsAnError) {
    ASSERT_TRUE(save(1));
    cJSON_Hooks scarce = {scarce_malloc, free};
    bool saved = false, opened = false;
    int refused = 0;
    for (int n = 0; n < 100000 && !(saved && opened); n += 1 + n / 4) {
        cJSON_InitHooks(&scarce);
        allocations_left = n;
        saved = save(2);
        const bool save_explained = saved || says({"memory"});
        allocations_left = n;
        opened = open(checkpoints / "step-00000001");
        cJSON_InitHooks(nullptr);
        refused += !saved;
        EXPECT_TRUE(save_explained) << n;
        EXPECT_TRUE(opened || says({"step-00000001"})) << n;
        EXPECT_EQ(fs::exists(checkpoints / "step-00000002"), saved) << n;
    }
    EXPECT_TRUE(saved && opened);
    EXPECT_GT(refused, 10);
}

/* ---------------------------------------------------------------------------------------------------------- loading */

class ForeignTest : public CheckpointTest {
  protected:
    void SetUp() override {
        CheckpointTest::SetUp();
        ASSERT_TRUE(save(1));
        foreign = directory / "gpt2";
        fs::create_directory(foreign);
        fs::copy_file(checkpoints / "step-00000001/config.json", foreign / "config.json");
        raw = raw_weights(model);
    }

    /* Writes the raw tensors, and loads them into memory that must stay as it is when that fails. */
    bool load() {
        write_file(foreign / "model.safetensors", make_safetensors(raw));
        if (!open(foreign)) return false;
        EXPECT_FALSE(info.has_optimizer);
        EXPECT_FALSE(info.bytes);
        loom_checkpoint_tensors wanted = loaded.tensors;
        wanted.moment1 = wanted.moment2 = nullptr;
        const std::vector<float> before = loaded.weights;
        const bool ok = loom_checkpoint_load(&info, &wanted, &error);
        if (!ok) {
            EXPECT_EQ(memcmp(before.data(), loaded.weights.data(), before.size() * sizeof(float)), 0);
        }
        return ok;
    }

    fs::path foreign;
    std::vector<RawTensor> raw;
    Model loaded{device};
};

TEST_F(ForeignTest, LoadsTheHubsNamesAndPassesOverMasks) {
    for (auto &tensor : raw) tensor.name = tensor.name.substr(strlen("transformer."));
    raw.push_back({"h.0.attn.bias", "F32", "[1,1,2,2]", std::string(16, 1)});
    raw.push_back({"h.1.attn.bias", "U8", "[1,1,2,2]", std::string(4, 1)});
    raw.push_back({"h.1.attn.masked_bias", "F32", "[]", std::string(4, 1)});
    raw.push_back({"lm_head.weight", "F32", "[257,8]", std::string(257 * 8 * 4, 1)});
    ASSERT_TRUE(load()) << error.message;
    EXPECT_TRUE(loaded_from(loaded.weights, model.weights, model.layout()));
}

TEST_F(ForeignTest, SixteenBitTensorsAreWidened) {
    const std::vector<std::pair<uint16_t, float>> f16 = {{0x0000, 0.0f},
                                                         {0x8000, -0.0f},
                                                         {0x0001, 0x1p-24f},
                                                         {0x83FF, -1023 * 0x1p-24f},
                                                         {0x0400, 0x1p-14f},
                                                         {0x3C00, 1.0f},
                                                         {0x3C01, 1 + 0x1p-10f},
                                                         {0xC500, -5.0f},
                                                         {0x7BFF, 65504.0f},
                                                         {0xFBFF, -65504.0f},
                                                         {0x7C00, INFINITY},
                                                         {0xFC00, -INFINITY},
                                                         {0x7E00, NAN},
                                                         {0x3555, 0.333251953125f},
                                                         {0x2E66, 0.0999755859375f},
                                                         {0x6400, 1024.0f}};
    const std::vector<std::pair<uint16_t, float>> bf16 = {
        {0x0000, 0.0f},  {0x8000, -0.0f},          {0x0001, 0x1p-133f}, {0x3F80, 1.0f},
        {0xC0A0, -5.0f}, {0x3DCD, 0.10009765625f}, {0x7F80, INFINITY},  {0xFF80, -INFINITY}};
    const auto put = [&](const std::string &name, const std::string &dtype, const auto &values) {
        RawTensor &tensor = named(raw, name);
        tensor.dtype = dtype;
        for (size_t i = 0; i < tensor.data.size() / 4; i++)
            memcpy(&tensor.data[2 * i], &values[i % values.size()].first, 2);
        tensor.data.resize(tensor.data.size() / 2);
    };
    put("transformer.wte.weight", "F16", f16);
    put("transformer.h.1.ln_2.bias", "BF16", bf16);
    ASSERT_TRUE(load()) << error.message;
    const auto check = [&](const std::string &name, const auto &values) {
        for (int i = 0; i < loaded.layout().n_parameters; i++) {
            const loom_parameter &p = loaded.layout().parameter[i];
            if (p.name != name) continue;
            for (int64_t j = 0; j < p.rows * p.columns; j++) {
                const float found = loaded.weights[static_cast<size_t>(p.offset + j)];
                const float expected = values[static_cast<size_t>(j) % values.size()].second;
                ASSERT_TRUE(found == expected || (std::isnan(found) && std::isnan(expected))) << name << " " << j;
                ASSERT_EQ(std::signbit(found), std::signbit(expected)) << name << " " << j;
            }
            for (int64_t j = p.rows * p.columns; j < p.padded_rows * p.columns; j++)
                ASSERT_EQ(loaded.weights[static_cast<size_t>(p.offset + j)], 0) << name << " " << j;
        }
    };
    check("transformer.wte.weight", f16);
    check("transformer.h.1.ln_2.bias", bf16);
}

TEST_F(ForeignTest, TensorsThatAreNotTheModelsAreNamed) {
    const std::string path = foreign / "model.safetensors", fc = "transformer.h.1.mlp.c_fc.weight";
    const std::vector<RawTensor> good = raw;
    ASSERT_TRUE(load()) << error.message;

    named(raw, fc).name = "transformer.h.1.mlp.c_other.weight";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, fc, "has no tensor"}));

    raw = good;
    raw.push_back({"transformer.h.2.ln_1.weight", "F32", "[8]", std::string(32, 0)});
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, "transformer.h.2.ln_1.weight", "does not have"}));

    raw = good;
    named(raw, fc).shape = "[32,8]";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, fc, "(32, 8)", "(8, 32)"}));

    raw = good;
    named(raw, "transformer.ln_f.bias").shape = "[1,8]";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, "transformer.ln_f.bias", "(1, 8)", "(8)"}));

    raw = good;
    named(raw, fc).dtype = "I32";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, fc, "I32", "F32, F16 or BF16"}));

    raw = good;
    raw.push_back({"wpe.weight", "F32", "[16,8]", std::string(16 * 8 * 4, 0)});
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, "'wpe.weight'"}));
}

TEST_F(ForeignTest, ConfigurationsThatComputeSomethingElseAreRefused) {
    ASSERT_TRUE(load()) << error.message;
    const fs::path config = foreign / "config.json";
    const std::string good = read_file(config);
    const struct {
        const char *old_text, *new_text, *says;
    } cases[] = {
        {"\"gpt2\"", "\"llama\"", "model_type"},
        {"\"gpt2\"", "2", "model_type"},
        {"\"model_type\"", "\"type\"", "model_type"},
        {"gelu_new", "silu", "activation_function"},
        {"1e-05", "1e-06", "layer_norm_epsilon"},
        {"1e-05", "\"1e-05\"", "layer_norm_epsilon"},
        {"\"n_inner\":\tnull", "\"n_inner\":\t33", "n_inner"},
        {"\"tie_word_embeddings\":\ttrue", "\"tie_word_embeddings\":\tfalse", "tie_word_embeddings"},
        {"{", "{\"scale_attn_by_inverse_layer_idx\": true, ", "scale_attn_by_inverse_layer_idx"},
        {"{", "{\"scale_attn_weights\": false, ", "scale_attn_weights"},
        {"\"n_head\":\t2", "\"n_head\":\t3", "not divisible"},
        {"\"n_head\":\t2", "\"n_head\":\t0", "n_head"},
        {"\"n_layer\":\t2", "\"n_layer\":\t-2", "n_layer"},
        {"\"n_layer\":\t2", "\"n_layer\":\t1.5", "n_layer"},
        {"\"n_layer\":\t2", "\"n_layer\":\t1e300", "n_layer"},
        {"\"n_layer\":\t2", "\"n_layer\":\t\"2\"", "n_layer"},
        {"\"n_embd\"", "\"n_channels\"", "n_embd"},
        {"\"n_positions\":\t16", "\"n_positions\":\t17", "wpe.weight"},
        {"\"vocab_size\":\t257", "\"vocab_size\":\t50257", "wte.weight"},
        {"\"n_layer\":\t2", "\"n_layer\":\t3", "h.2.attn.c_attn.weight"},
        {"\"n_layer\":\t2", "\"n_layer\":\t2,,", "not valid JSON from line"},
    };
    for (const auto &c : cases) {
        write_file(config, good);
        replace_in_file(config, c.old_text, c.new_text);
        EXPECT_FALSE(open(foreign)) << c.new_text;
        EXPECT_TRUE(says({foreign, c.says}));
    }
    for (const std::string &text : {std::string(), std::string("[1]"), std::string("nonsense"), good + "x"}) {
        write_file(config, text);
        EXPECT_FALSE(open(foreign)) << text;
        EXPECT_TRUE(says({config, "damaged"}));
    }
    write_file(config, good);
    replace_in_file(config, "\"n_inner\":\tnull", "\"n_inner\":\t32");
    EXPECT_TRUE(open(foreign)) << error.message;
    fs::remove(config);
    EXPECT_FALSE(open(foreign));
    EXPECT_TRUE(says({config, "is missing"}));
    fs::create_directory(config);
    EXPECT_FALSE(open(foreign));
    EXPECT_TRUE(says({config, "not a regular file"}));
}

TEST_F(ForeignTest, MissingWeightsAreExplained) {
    EXPECT_FALSE(open(foreign));
    EXPECT_TRUE(says({foreign / "model.safetensors", "is missing"}));
    write_file(foreign / "model.safetensors.index.json", "{}");
    EXPECT_FALSE(open(foreign));
    EXPECT_TRUE(says({foreign / "model.safetensors", "in several files"}));
}

TEST_F(CheckpointTest, ACheckpointOfAnotherShapeIsRefused) {
    ASSERT_TRUE(save(1) && open(run));
    const loom_gpt_config shapes[] = {
        {2, 4, 8, 16, 257}, {1, 2, 8, 16, 257}, {2, 2, 16, 16, 257}, {2, 2, 8, 32, 257}, {2, 2, 8, 16, 300}};
    for (const auto &shape : shapes) {
        Model other(device, shape);
        EXPECT_FALSE(loom_checkpoint_load(&info, &other.tensors, &error));
        EXPECT_TRUE(says({checkpoints / "step-00000001", "another shape", "2 layers, 2 heads"}));
        EXPECT_EQ(other.weights[0], padding_mark);
    }
}

/* As they were saved, or the nearest: between neighbours of bf16, and half-way to the next. */
TEST_F(CheckpointTest, MomentsOfEitherTypeLoadIntoEither) {
    loom_parameter parameter{};
    snprintf(parameter.name, sizeof parameter.name, "moved");
    const size_t n = 900;
    parameter.rows = parameter.padded_rows = 30, parameter.columns = 30;
    loom_layout layout{};
    layout.parameter = &parameter, layout.n_parameters = 1;
    std::vector<float> values(n);
    for (size_t i = 0; i < n; i++)
        values[i] = std::ldexp(1 + static_cast<float>(i) * 0x1p-10f, static_cast<int>(i % 60) - 30);
    const auto stored = [&](loom_dtype dtype, bool rounded) {
        std::vector<float> memory(n, 0);
        for (size_t i = 0; i < n; i++) {
            const uint16_t narrow = float_to_bf16(values[i]);
            const float wide = rounded ? bf16_to_float(narrow) : values[i];
            if (dtype == LOOM_F32)
                memory[i] = wide;
            else
                memcpy(reinterpret_cast<char *>(memory.data()) + 2 * i, &narrow, 2);
        }
        return memory;
    };
    FakeDevice remote(true);
    for (const loom_dtype from : {LOOM_F32, LOOM_BF16}) {
        std::vector<float> saved = stored(from, false), saved2 = saved;
        loom_checkpoint_tensors tensors{
            nullptr, &layout, remote.get(), nullptr, remote.address(saved), remote.address(saved2), LOOM_F32, from};
        loom_tensor_sets sets = loom_moment_sets(&tensors);
        loom_manifest manifest{};
        manifest.directory = directory.c_str();
        const std::string path = directory / "moments.safetensors";
        ASSERT_TRUE(loom_tensors_write(&manifest, "moments.safetensors", &tensors, &sets, &error)) << error.message;
        EXPECT_EQ(fs::file_size(path) / (2 * n), loom_dtype_size(from)) << "two moments, and a header";
        for (const loom_dtype to : {LOOM_F32, LOOM_BF16}) {
            std::vector<float> loaded(n, 0), loaded2(n, 0);
            tensors.moment1 = remote.address(loaded), tensors.moment2 = remote.address(loaded2);
            tensors.moment_dtype = to;
            sets = loom_moment_sets(&tensors);
            loom_tensor_source source;
            ASSERT_TRUE(loom_tensor_source_open(&source, path.c_str(), &tensors, &sets, false, &error))
                << error.message;
            ASSERT_TRUE(loom_tensor_source_load(&source, &tensors, &sets, &error)) << error.message;
            loom_tensor_source_close(&source);
            for (const auto *memory : {&loaded, &loaded2})
                EXPECT_EQ(memcmp(memory->data(), stored(to, from == LOOM_BF16).data(), n * sizeof(float)), 0)
                    << loom_dtype_name(from) << " as " << loom_dtype_name(to);
        }
        fs::remove(path);
    }
}

TEST_F(CheckpointTest, MomentsMustBeWholeToo) {
    ASSERT_TRUE(save(1));
    const fs::path step = checkpoints / "step-00000001", moments = step / "optimizer.safetensors";
    fs::remove(step / "manifest.json");
    auto raw = raw_weights(model);
    auto squares = raw;
    for (auto &tensor : raw) tensor.name += ".exp_avg";
    for (auto &tensor : squares) tensor.name += ".exp_avg_sq";
    raw.insert(raw.end(), squares.begin(), squares.end());
    const auto load = [&] {
        write_file(moments, make_safetensors(raw));
        Model loaded(device);
        const bool ok = open(run) && loom_checkpoint_load(&info, &loaded.tensors, &error);
        if (!ok) {
            EXPECT_EQ(loaded.weights[0], padding_mark) << "was loaded in part";
        }
        return ok;
    };
    ASSERT_TRUE(load()) << error.message;

    RawTensor &last = raw.back();
    const RawTensor good = last;
    last.dtype = "F16", last.data.resize(last.data.size() / 2);
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({moments, "transformer.ln_f.bias.exp_avg_sq", "F16", "expected F32"}));
    last = good;
    last.name = "ln_f.bias.exp_avg_sq";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({moments, "transformer.ln_f.bias.exp_avg_sq"}));
    write_file(moments, "short");
    EXPECT_FALSE(open(run));
    EXPECT_TRUE(says({moments, "truncated"}));
}

/* ----------------------------------------------------------------------------------------------------------- damage */

TEST_F(CheckpointTest, DamageIsFoundInEveryFileAndTheOlderCheckpointNamed) {
    ASSERT_TRUE(save(1) && save(2));
    const fs::path step = checkpoints / "step-00000002", older = checkpoints / "step-00000001";
    for (const std::string &name : names_in(step)) {
        const fs::path path = step / name;
        const std::string good = read_file(path);
        if (name != "manifest.json") { /* of which not every byte matters */
            std::string flipped = good;
            flipped[good.size() / 2] ^= 4;
            write_file(path, flipped);
            EXPECT_FALSE(open(run));
            EXPECT_TRUE(says({path, "checksum", older}));
        }
        write_file(path, good.substr(0, good.size() - 3));
        EXPECT_FALSE(open(run));
        EXPECT_TRUE(says({path, "damaged", name == "manifest.json" ? "JSON" : " bytes, ", older}));
        fs::remove(path);
        if (name != "manifest.json") {
            EXPECT_FALSE(open(step));
            EXPECT_TRUE(says({path, older}) || name == "config.json") << error.message;
        }
        write_file(path, good);
    }
    EXPECT_TRUE(open(run)) << error.message;

    write_file(older / "config.json", "{}");
    EXPECT_FALSE(open(older));
    EXPECT_EQ(std::string(error.message).find("checkpoint before"), std::string::npos);
}

TEST_F(CheckpointTest, DamagedManifestsAreRefused) {
    ASSERT_TRUE(save(1));
    const fs::path manifest = checkpoints / "step-00000001/manifest.json";
    const std::string good = read_file(manifest);
    const struct {
        const char *old_text, *new_text, *says;
    } cases[] = {{"\"format_version\":\t1", "\"format_version\":\t2", "newer"},
                 {"\"format_version\"", "\"version\"", "format_version"},
                 {"\"files\"", "\"none\"", "files"},
                 {"\"config.json\"", "\"../config.json\"", "no file's name"},
                 {"\"config.json\"", "\"\"", "no file's name"},
                 {"\"config.json\"", "7", "must be a string"},
                 {"\"config.json\"", "\"absent\"", "absent"},
                 {"\"size\"", "\"bytes\"", "size"},
                 {"\"size\":\t", "\"size\":\t-", "size"},
                 {"\"xxh3_128\"", "\"sha256\"", "xxh3_128"}};
    for (const auto &c : cases) {
        write_file(manifest, good);
        replace_in_file(manifest, c.old_text, c.new_text);
        EXPECT_FALSE(open(run)) << c.new_text;
        EXPECT_TRUE(says({checkpoints, c.says}));
    }
    write_file(manifest, "{\"format_version\":1,\"files\":[3]}");
    EXPECT_FALSE(open(run));
    EXPECT_TRUE(says({manifest, "name"}));
}

TEST_F(CheckpointTest, EveryFieldOfTheStateIsChecked) {
    ASSERT_TRUE(save(1));
    const fs::path path = checkpoints / "step-00000001/training_state.json";
    const std::string good = read_file(path);
    loom_training_state state;
    const auto read = [&] {
        error.message[0] = 0;
        return loom_state_read(path.c_str(), &state, &error);
    };
    ASSERT_TRUE(read()) << error.message;

    const std::vector<std::string> never = {"null", "true", "[]", "\"\"", "\"-\"", "\"1x\"", "\"1 \""};
    const std::vector<std::string> no_count = {"1", "\" 1\"", "\"-1\"", "\"+1\"", "\"0x1\"", "\"9223372036854775808\""};
    const std::vector<std::string> no_bits = {"1", "\"1\"", "\" 0x1\"", "\"0x\"", "\"0x10000000000000000\""};
    const struct {
        std::vector<std::string> fields, values;
    } cases[] = {
        {{"step", "tokens", "batch", "seq_len", "training_tokens", "updates", "skipped", "observed"}, no_count},
        {{"seed", "data_identity"}, no_bits},
        {{"loss_mean", "loss_square", "norm_mean", "norm_square"}, {"1.5", "\"one\"", "\"0x1p9999\""}},
        {{"format_version"}, {"0", "2", "\"1\""}},
        {{"scalars"}, {"7"}}};
    for (const auto &c : cases) {
        for (const std::string &field : c.fields) {
            write_file(path, good);
            replace_in_file(path, "\"" + field + "\"", "\"other\"");
            EXPECT_FALSE(read()) << field;
            EXPECT_TRUE(says({path, field}));

            std::vector<std::string> values = never;
            values.insert(values.end(), c.values.begin(), c.values.end());
            for (const std::string &value : values) {
                const size_t at = good.find("\"" + field + "\":\t") + field.size() + 4;
                const size_t end = field == "scalars" ? good.find('}', at) + 1 : good.find_first_of(",\n", at);
                write_file(path, good.substr(0, at) + value + good.substr(end));
                EXPECT_FALSE(read()) << field << " " << value;
                EXPECT_TRUE(says({path, field == "format_version" && value == "2" ? "newer" : field}));
            }
        }
    }
}

/* What was written before there were dtypes and loss scaling has neither; what has a dtype has all of it. */
TEST_F(CheckpointTest, OlderStatesAreOfFp32WithoutALossScale) {
    ASSERT_TRUE(save(1));
    const fs::path path = checkpoints / "step-00000001/training_state.json";
    const std::string good = read_file(path);
    loom_training_state state;
    const auto read = [&] {
        error.message[0] = 0;
        return loom_state_read(path.c_str(), &state, &error);
    };
    ASSERT_TRUE(read()) << error.message;
    EXPECT_EQ(state.dtype, LOOM_F16);
    EXPECT_EQ(state.scalars.loss_scale, 0x1p15f);
    EXPECT_EQ(state.scalars.loss_scale_age, 1234);
    replace_in_file(path, "\"dtype\"", "\"other\"");
    ASSERT_TRUE(read()) << error.message;
    EXPECT_EQ(state.dtype, LOOM_F32);
    EXPECT_EQ(state.scalars.loss_scale, 0);
    EXPECT_EQ(state.scalars.loss_scale_age, 0);

    const struct {
        const char *old_text, *new_text, *says;
    } cases[] = {{"\"fp16\"", "\"fp8\"", "fp8"},
                 {"\"fp16\"", "\"fp64\"", "fp64"},
                 {"\"fp16\"", "16", "dtype"},
                 {"\"loss_scale\"", "\"other\"", "loss_scale"},
                 {"\"loss_scale_age\"", "\"other\"", "loss_scale_age"},
                 {"\"loss_scale\":\t\"0x", "\"loss_scale\":\t\"-0x", "loss_scale"},
                 {"\"1234\"", "\"4294967296\"", "loss_scale"}};
    for (const auto &c : cases) {
        write_file(path, good);
        replace_in_file(path, c.old_text, c.new_text);
        EXPECT_FALSE(read()) << c.new_text;
        EXPECT_TRUE(says({path, c.says}));
    }
}

/* ------------------------------------------------------------------------------------------------------ safetensors */

/* Its file is one in memory, because some of these tests write it very often. */
class SafetensorsTest : public CheckpointTest {
  protected:
    void SetUp() override {
        CheckpointTest::SetUp();
        descriptor = memfd_create("safetensors", MFD_CLOEXEC);
        ASSERT_GE(descriptor, 0);
        path = "/proc/self/fd/" + std::to_string(descriptor);
    }
    void TearDown() override {
        close(descriptor);
        CheckpointTest::TearDown();
    }

    bool open_content(const std::string &content) {
        EXPECT_EQ(ftruncate(descriptor, 0), 0);
        EXPECT_EQ(pwrite(descriptor, content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
        error.message[0] = 0;
        const bool ok = loom_safetensors_open(&file, path.c_str(), &error);
        if (!ok) {
            EXPECT_TRUE(says({path}));
            EXPECT_EQ(file.tensor, nullptr);
            EXPECT_EQ(file.mapping.data, nullptr);
        }
        return ok;
    }

    int descriptor = -1;
    std::string path;
    loom_safetensors file{};
};

TEST_F(SafetensorsTest, ReadsWhatTheFormatAllows) {
    ASSERT_TRUE(open_content(
        raw_safetensors(R"({"b":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                        R"("a":{"dtype":"BOOL","shape":[1,3,1,1],"data_offsets":[8,11]},)"
                        R"("none":{"dtype":"F32","shape":[5,0],"data_offsets":[11,11]},"__metadata__":{"x":"y"}}   )",
                        "12345678xyz")))
        << error.message;
    EXPECT_EQ(file.n_tensors, 3);
    const loom_safetensor *a = loom_safetensors_find(&file, "a"), *b = loom_safetensors_find(&file, "b");
    ASSERT_TRUE(a && b && loom_safetensors_find(&file, "none"));
    EXPECT_EQ(std::string(static_cast<const char *>(a->data), a->bytes), "xyz");
    EXPECT_EQ(std::string(static_cast<const char *>(b->data), b->bytes), "12345678");
    EXPECT_EQ(a->rank, 4);
    EXPECT_EQ(a->shape[1], 3);
    EXPECT_EQ(b->rank, 0);
    EXPECT_EQ(loom_safetensors_find(&file, "c"), nullptr);
    EXPECT_EQ(loom_safetensors_find(&file, ""), nullptr);
    loom_safetensors_close(&file);
    ASSERT_TRUE(open_content(raw_safetensors("{}", ""))) << error.message;
    EXPECT_EQ(file.n_tensors, 0);
    loom_safetensors_close(&file);
}

TEST_F(SafetensorsTest, ImpossibleHeadersAreRefused) {
    const auto one = [](const std::string &fields) { return "{\"t\":{" + fields + "}}"; };
    const std::string four_bytes = "abcd";
    const struct {
        std::string header, says;
    } cases[] = {
        {"", "not valid JSON"},
        {"[]", "not an object"},
        {"{", "not valid JSON"},
        {"{} {}", "not valid JSON"},
        {std::string("{}\0  ", 5), "not text"},
        {"{}", "4 bytes at its end"},
        {"{\"t\":7}", "dtype"},
        {"{\"t\":[1]}", "dtype"},
        {one(R"("shape":[1],"data_offsets":[0,4])"), "dtype"},
        {one(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])"), "dtype"},
        {one(R"("dtype":32,"shape":[1],"data_offsets":[0,4])"), "dtype"},
        {one(R"("dtype":"F32","data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":1,"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[0.5],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":["1"],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[1,1,1,1,1],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[1e300],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4])"), "shape of tensor"},
        /* 2^62 + 1 elements: in 64 bits their bytes come to 4 again */
        {one(R"("dtype":"F32","shape":[242243305,19037413721],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[1])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":["0","4"])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), "truncated"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[1e18,1e18])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), "truncated"},
        {one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), "shape and dtype need 8"},
        {one(R"("dtype":"U8","shape":[3],"data_offsets":[1,4])"), "does not follow"},
        {one(R"("dtype":"U8","shape":[3],"data_offsets":[0,3])"), "1 bytes at its end"},
        {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
         "overlaps"},
        {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}})",
         "overlaps"},
        {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
         "two tensors 'a'"},
        {"{\"" + std::string(128, 'n') + R"(":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "name"},
        {"{\"\\u001b[2J\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "name"},
        {std::string(100000, '['), "not valid JSON"},
    };
    for (const auto &c : cases) {
        if (open_content(raw_safetensors(c.header, four_bytes))) {
            ADD_FAILURE() << "accepted: " << c.header.substr(0, 200);
            loom_safetensors_close(&file);
        }
        EXPECT_TRUE(says({c.says})) << c.header.substr(0, 200);
    }
}

TEST_F(SafetensorsTest, ImpossibleLengthsAreRefused) {
    const std::string good = raw_safetensors("{}", "");
    EXPECT_FALSE(open_content(""));
    EXPECT_FALSE(open_content(good.substr(0, 7)));
    EXPECT_FALSE(open_content(good.substr(0, 9)));
    EXPECT_FALSE(open_content(std::string(8, '\xff') + "{}"));
    EXPECT_FALSE(open_content(std::string("\x03\0\0\0\0\0\0\0{}", 10)));
    const size_t page = 4096, one_too_long = page - 8 + 1; /* nothing is mapped after the file */
    EXPECT_FALSE(open_content(raw_safetensors(std::string(one_too_long, ' '), "").substr(0, page)));
    EXPECT_TRUE(says({"no safetensors file"}));
    EXPECT_FALSE(open_content("<!DOCTYPE html><html><body>not found</body></html>"));
    EXPECT_TRUE(says({"no safetensors file"}));
    EXPECT_FALSE(loom_safetensors_open(&file, (directory / "absent").c_str(), &error));
    EXPECT_TRUE(says({directory / "absent", "No such file"}));
}

/* What a damaged header is taken for does not matter here, only that nothing outside the file is ever touched: which
 * the sanitizer builds see. */
TEST_F(SafetensorsTest, DamagedHeadersNeverLeadOutOfTheFile) {
    const std::string good = make_safetensors(raw_weights(model));
    size_t header = 0;
    memcpy(&header, good.data(), 8);
    ASSERT_TRUE(open_content(good));
    loom_safetensors_close(&file);

    uint64_t random = 12345;
    const auto next = [&random] { return (random = random * 6364136223846793005u + 1442695040888963407u) >> 33; };
    const char telling[] = "0123456789-.eE\"[]{},: \\\x00\xff";
    size_t refused = 0, accepted = 0, sum = 0;
    for (int round = 0; round < 1500; round++) {
        std::string damaged = good;
        for (uint64_t changes = 1 + next() % 3; changes > 0; changes--) {
            char &byte = damaged[next() % 4 == 0 ? next() % 8 : 8 + next() % header];
            byte = next() % 2 ? telling[next() % (sizeof telling - 1)] : static_cast<char>(byte ^ 1 << next() % 8);
        }
        if (next() % 16 == 0) damaged.resize(next() % damaged.size());
        if (!open_content(damaged)) {
            refused++;
            continue;
        }
        accepted++;
        for (int i = 0; i < file.n_tensors; i++)
            for (size_t j = 0; j < file.tensor[i].bytes; j++)
                sum += static_cast<const unsigned char *>(file.tensor[i].data)[j];
        loom_safetensors_close(&file);
    }
    EXPECT_GT(refused, 500u);
    EXPECT_GT(accepted, 20u); /* changed names, mostly */
    EXPECT_GT(sum, 0u);
}

} // namespace
