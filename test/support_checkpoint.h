/* What tests of checkpoints share: safetensors files as others write them, and a run's directory with a model to save.
 * */
#ifndef LOOM_TEST_SUPPORT_CHECKPOINT_H
#define LOOM_TEST_SUPPORT_CHECKPOINT_H

#include "checkpoint_model.h"
#include "support.h"

#include "checkpoint/directory.h"
#include "checkpoint/tensors.h"

#include <set>

namespace support {

/* ------------------------------------------------------------------------------------------------------------ files */

inline void replace_in_file(const fs::path &path, const std::string &old_text, const std::string &new_text) {
    std::string content = read_file(path);
    const size_t at = content.find(old_text);
    ASSERT_NE(at, std::string::npos) << old_text << " is not in " << path;
    write_file(path, content.replace(at, old_text.size(), new_text));
}

inline std::string raw_safetensors(const std::string &header, const std::string &data) {
    std::string length(8, 0);
    for (size_t i = 0; i < 8; i++) length[i] = static_cast<char>(header.size() >> (8 * i));
    return length + header + data;
}

struct RawTensor {
    std::string name, dtype, shape, data;
};

/* A safetensors file as another program may write it: its data begins at an odd byte. */
inline std::string make_safetensors(const std::vector<RawTensor> &tensors) {
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

inline std::string bytes_of(const loom_safetensors &file, const loom_safetensor &tensor) {
    std::string bytes(tensor.bytes, 0);
    loom_error error;
    EXPECT_TRUE(loom_safetensors_read(&file, &tensor, 0, bytes.data(), bytes.size(), &error)) << error.message;
    return bytes;
}

inline std::vector<RawTensor> raw_weights(const CheckpointModel &model) {
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

inline RawTensor &named(std::vector<RawTensor> &tensors, const std::string &name) {
    for (auto &tensor : tensors)
        if (tensor.name == name) return tensor;
    throw std::out_of_range(name);
}

inline std::set<std::string> names_in(const fs::path &directory) {
    std::set<std::string> names;
    for (const auto &entry : fs::directory_iterator(directory)) names.insert(entry.path().filename());
    return names;
}

/* --------------------------------------------------------------------------------------------------------------- a run */

/* A matrix in a layout of its own, with padding behind it, that is saved and loaded whole. */
class OneTensor {
  public:
    OneTensor(const std::string &name, loom_device *device, int64_t rows, int64_t columns, int64_t padded_rows) {
        snprintf(parameter_.name, sizeof parameter_.name, "%s", name.c_str());
        parameter_.rows = rows, parameter_.columns = columns, parameter_.padded_rows = padded_rows;
        slice.elements = bucket_.elements = layout_.elements = padded_rows * columns;
        layout_.parameter = &parameter_, layout_.n_parameters = 1;
        layout_.bucket = &bucket_, layout_.n_buckets = 1;
        tensors.layout = &layout_, tensors.device = device, tensors.slice = &slice;
    }
    OneTensor(const OneTensor &) = delete;

    bool write(const fs::path &path, bool moments, loom_error *error) const {
        const std::string directory = path.parent_path(), name = path.filename();
        const loom_tensor_sets sets = moments ? loom_moment_sets(&tensors) : loom_weight_sets(&tensors);
        loom_manifest manifest{};
        manifest.directory = directory.c_str();
        return loom_tensors_write(&manifest, name.c_str(), &tensors, &sets, true, error);
    }
    bool load(const fs::path &path, bool moments, loom_error *error) const {
        const loom_tensor_sets sets = moments ? loom_moment_sets(&tensors) : loom_weight_sets(&tensors);
        loom_tensor_source source;
        if (!loom_tensor_source_open(&source, path.c_str(), &tensors, &sets, !moments, error)) return false;
        const bool ok = loom_tensor_source_load(&source, &tensors, &sets, error);
        loom_tensor_source_close(&source);
        return ok;
    }

    loom_checkpoint_slice slice{};
    loom_checkpoint_tensors tensors{};

  private:
    loom_parameter parameter_{};
    loom_bucket bucket_{};
    loom_layout layout_{};
};

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
        const bool saved = loom_checkpoint_save(run.c_str(), &model.tensors, &state, true, nullptr, &error);
        if (saved && keep > 0) loom_checkpoint_prune(checkpoints.c_str(), step, keep);
        return saved;
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
    CheckpointModel model{device};
    loom_checkpoint_info info{};
    loom_error error{};
};

} // namespace support

#endif
