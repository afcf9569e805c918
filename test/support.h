/* What several test files share: places on disk, errors as test results, a device and a model in memory of their own,
 * and how far rounding may take a whole model's values. */
#ifndef LOOM_TEST_SUPPORT_H
#define LOOM_TEST_SUPPORT_H

#include "gptloom/gptloom.h"

#include "base/half.h"
#include "base/random.h"
#include "data/feeder.h"
#include "optim/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <sys/resource.h>
#include <unistd.h>

namespace support {

namespace fs = std::filesystem;

/* Whether make test-full runs this. */
inline bool full() {
    return std::getenv("LOOM_TEST_FULL") != nullptr;
}

/* Whether this is a sanitizer build, in which all takes several times as long. */
#ifdef __SANITIZE_ADDRESS__
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

/* ------------------------------------------------------------------------------------------------------------- disk */

/* A directory that is deleted with all below it when the object goes. */
class TemporaryDirectory {
  public:
    TemporaryDirectory() {
        std::string pattern = (fs::temp_directory_path() / "gptloom-test-XXXXXX").string();
        if (!mkdtemp(pattern.data())) throw std::runtime_error("no temporary directory: " + pattern);
        path_ = pattern;
    }
    ~TemporaryDirectory() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    TemporaryDirectory(const TemporaryDirectory &) = delete;
    TemporaryDirectory &operator=(const TemporaryDirectory &) = delete;

    const fs::path &path() const {
        return path_;
    }
    std::string at(const std::string &name) const {
        return (path_ / name).string();
    }

  private:
    fs::path path_;
};

inline std::string read_file(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path.string());
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_file(const fs::path &path, const std::string &content) {
    std::ofstream file(path, std::ios::binary);
    if (!(file << content) || !file.flush()) throw std::runtime_error("cannot write " + path.string());
}

/* Every name below a directory with what is there: two directories are the same if these are. */
inline std::string fingerprint(const fs::path &directory) {
    std::vector<std::string> lines;
    for (const auto &entry : fs::recursive_directory_iterator(directory)) {
        const std::string name = entry.path().lexically_relative(directory).string();
        if (entry.is_symlink())
            lines.push_back(name + " -> " + fs::read_symlink(entry).string());
        else if (entry.is_regular_file())
            lines.push_back(name + ": " + read_file(entry));
        else
            lines.push_back(name + "/");
    }
    std::sort(lines.begin(), lines.end());
    std::string all;
    for (const std::string &line : lines) all += line + "\n";
    return all;
}

/* Lets no file grow beyond a size while it lives: what a full disk does, without one. Assert nothing meanwhile: the
 * report may be such a file. */
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
    FullDisk(const FullDisk &) = delete;
    FullDisk &operator=(const FullDisk &) = delete;

  private:
    rlimit before_{};
    void (*handler_)(int);
};

/* ----------------------------------------------------------------------------------------------------------- errors */

/* Runs what must work: run(&error) -> bool. */
template <typename Run> testing::AssertionResult works(Run run) {
    loom_error error = {"(nothing was said)"};
    if (run(&error)) return testing::AssertionSuccess();
    return testing::AssertionFailure() << error.message;
}

/* Runs what must be refused; it returns the one line that says so, which must have all these words. */
template <typename Run> std::string refusal(Run run, std::initializer_list<std::string> words = {}) {
    loom_error error = {""};
    EXPECT_FALSE(run(&error)) << "this was not refused";
    const std::string message = error.message;
    EXPECT_FALSE(message.empty()) << "refused without a word";
    EXPECT_EQ(message.find_first_of("\n\r"), std::string::npos) << "more than one line: " << message;
    for (const std::string &word : words)
        EXPECT_NE(message.find(word), std::string::npos) << "'" << message << "' lacks '" << word << "'";
    return message;
}

/* Throws, and so fails the test, if what a test is built on does not work. */
template <typename Run> void require(Run run) {
    loom_error error = {"(nothing was said)"};
    if (!run(&error)) throw std::runtime_error(error.message);
}

/* ----------------------------------------------------------------------------------------------- devices and models */

inline loom_gpt_config gpt_shape(int64_t n_layer, int64_t n_head, int64_t n_embd, int64_t block_size,
                                 int64_t vocab_size, loom_gpt_activation activation = LOOM_GPT_GELU) {
    return {n_layer, n_head, n_embd, block_size, vocab_size, activation};
}

using Device = std::unique_ptr<loom_device, void (*)(loom_device *)>;

inline Device open_device(const std::string &name, int threads = 1) {
    loom_device *device = nullptr;
    loom_device_options options = {};
    options.threads = threads;
    require([&](loom_error *error) { return loom_device_open(&device, name.c_str(), &options, error); });
    return Device(device, loom_device_close);
}

/* To be passed as a pointer within one expression. */
struct Setup : loom_gpt_setup {
    operator const loom_gpt_setup *() const {
        return this;
    }
};

/* A model that generates too. */
inline Setup setup_of(int64_t B, int64_t T, loom_gpt_purpose purpose = LOOM_GPT_TRAIN,
                      const loom_precision *precision = nullptr) {
    Setup setup = {};
    setup.purpose = purpose;
    setup.precision = precision;
    setup.B = B;
    setup.T = T;
    setup.generates = true;
    return setup;
}

struct ModelOptions {
    std::string device = "cpu";
    int threads = 1;
    loom_gpt_purpose purpose = LOOM_GPT_TRAIN;
    loom_dtype dtype = LOOM_F32;
    bool master = true;
    loom_dtype optimizer = LOOM_F32, gradient = LOOM_F32;
    loom_recompute recompute = {};
    bool offload = false;
    int64_t logits_rows = 0;
    int64_t sequences = 0; /* of a step, for the optimizer; 0: one micro-batch */
    int fill = 0xFF;       /* what every byte of the memory holds at first: 0xFF makes NaNs of every type */
    std::function<void(loom_gpt *)> before_lay_out;
};

/* A device and a model on it, laid out in memory of its own and prepared; when training, with an optimizer. Values
 * go in and out as doubles whatever the device stores. */
class Model {
  public:
    Model(const loom_gpt_config &shape, int64_t batch, int64_t length, const ModelOptions &options = {})
        : B(batch), T(length), device_(open_device(options.device, options.threads)) {
        const loom_precision_flags flags = {options.dtype, options.master, options.optimizer, options.gradient};
        loom_precision precision;
        Setup setup = setup_of(B, T, options.purpose, &precision);
        setup.recompute = options.recompute;
        setup.offload = options.offload;
        setup.logits_rows = options.logits_rows;
        require([&](loom_error *error) {
            return loom_precision_of(device_.get(), &flags, &precision, error) &&
                   loom_gpt_create(&gpt_, &shape, setup, device_.get(), error);
        });
        if (options.before_lay_out) options.before_lay_out(gpt_);
        loom_arena plan = loom_arena_measure();
        lay_out(options, &plan);
        bytes_ = plan.used;
        require([&](loom_error *error) { return device_->allocate(device_.get(), &memory_, bytes_, error); });
        const std::string filling(bytes_, (char)options.fill);
        copy(memory_, filling.data(), bytes_, LOOM_HOST_TO_DEVICE);
        arena = loom_arena_over(memory_, bytes_, device_->host_memory);
        lay_out(options, &arena);
        require([&](loom_error *error) {
            return loom_gpt_prepare(gpt_, error) &&
                   (options.purpose != LOOM_GPT_TRAIN || loom_optimizer_prepare(&optimizer, error));
        });
    }
    ~Model() {
        loom_gpt_destroy(gpt_);
        if (memory_) device_->release(device_.get(), memory_, bytes_);
    }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    const int64_t B, T;
    loom_arena arena = {};
    loom_optimizer optimizer = {};

    loom_gpt *gpt() const {
        return gpt_;
    }
    loom_device *device() const {
        return device_.get();
    }
    const loom_layout &layout() const {
        return *loom_gpt_get_layout(gpt_);
    }
    const loom_gpt_config &config() const {
        return *loom_gpt_get_config(gpt_);
    }
    const loom_precision &precision() const {
        return *loom_gpt_get_precision(gpt_);
    }
    /* Half an epsilon of what the device computes in. */
    double unit() const {
        return device_->storage == LOOM_F64 ? 0x1p-53 : 0x1p-24;
    }

    /* ------------------------------------------------------------------------------------------------ device memory */

    /* Waits: all work is done, and host memory is free again. */
    void copy(void *to, const void *from, size_t bytes, loom_copy_kind kind) const {
        device_->copy(device_.get(), nullptr, to, from, bytes, kind);
        require([&](loom_error *error) { return device_->synchronize(device_.get(), nullptr, error); });
    }
    std::string bytes(const void *from, size_t n) const {
        std::string raw(n, 0);
        copy(raw.data(), from, n, LOOM_DEVICE_TO_HOST);
        return raw;
    }
    std::vector<double> read(const void *from, loom_dtype dtype, int64_t first, int64_t n) const {
        const char *start = (const char *)from + (size_t)first * loom_dtype_size(dtype);
        if (dtype == LOOM_F64) return as_doubles<double>(bytes(start, (size_t)n * sizeof(double)));
        if (dtype == LOOM_F32) return as_doubles<float>(bytes(start, (size_t)n * sizeof(float)));
        if (dtype == LOOM_I32) throw std::logic_error("values of this type are not read");
        std::vector<double> values = as_doubles<uint16_t>(bytes(start, (size_t)n * sizeof(uint16_t)));
        for (double &v : values)
            v = (double)(dtype == LOOM_BF16 ? bf16_to_float((uint16_t)v) : fp16_to_float((uint16_t)v));
        return values;
    }
    void write(void *to, loom_dtype dtype, int64_t first, const std::vector<double> &values) {
        char *start = (char *)to + (size_t)first * loom_dtype_size(dtype);
        if (dtype == LOOM_F64) {
            copy(start, values.data(), values.size() * sizeof(double), LOOM_HOST_TO_DEVICE);
        } else if (dtype == LOOM_F32) {
            const std::vector<float> narrow(values.begin(), values.end());
            copy(start, narrow.data(), narrow.size() * sizeof(float), LOOM_HOST_TO_DEVICE);
        } else if (dtype != LOOM_I32) {
            std::vector<uint16_t> narrow(values.size());
            for (size_t i = 0; i < values.size(); i++)
                narrow[i] = dtype == LOOM_BF16 ? float_to_bf16((float)values[i]) : float_to_fp16((float)values[i]);
            copy(start, narrow.data(), narrow.size() * sizeof(uint16_t), LOOM_HOST_TO_DEVICE);
        } else {
            throw std::logic_error("values of this type are not written");
        }
    }

    std::vector<double> parameters() const {
        return read(loom_gpt_get_parameters(gpt_), precision().storage, 0, layout().elements);
    }
    std::vector<double> master() const {
        return read(loom_gpt_get_master(gpt_), precision().master, 0, layout().elements);
    }
    std::vector<double> gradients() const {
        return read(loom_gpt_get_gradients(gpt_), precision().gradient, 0, layout().elements);
    }
    std::vector<double> moments(int which) const {
        return read(which == 1 ? optimizer.moment1 : optimizer.moment2, precision().moment, 0, layout().elements);
    }
    std::vector<double> losses() const {
        return read(loom_gpt_get_losses(gpt_), device_->statistics, 0, B * T);
    }
    void set_parameters(const std::vector<double> &values) {
        write(loom_gpt_get_master(gpt_), precision().master, 0, values);
        loom_gpt_copy_master(gpt_);
    }
    void set_gradients(const std::vector<double> &values) {
        write(loom_gpt_get_gradients(gpt_), precision().gradient, 0, values);
    }
    loom_scalars scalars() const {
        loom_scalars out;
        copy(&out, loom_gpt_get_scalars(gpt_), sizeof out, LOOM_DEVICE_TO_HOST);
        return out;
    }
    void set_inputs(const loom_scalars_in &in) {
        copy(&loom_gpt_get_scalars(gpt_)->in, &in, sizeof in, LOOM_HOST_TO_DEVICE);
    }
    void set_loss_scale(float scale) {
        copy(&loom_gpt_get_scalars(gpt_)->state.loss_scale, &scale, sizeof scale, LOOM_HOST_TO_DEVICE);
    }

    /* ------------------------------------------------------------------------------------------------------ running */

    /* Values such that every part of the model matters: activations and logits of order one, biases away from zero,
     * layernorm weights away from one. Gaps and padding stay zero. */
    void scatter_parameters(uint64_t seed) {
        std::vector<double> all((size_t)layout().elements, 0.0);
        for (int i = 0; i < layout().n_parameters; i++) {
            const loom_parameter &p = layout().parameter[i];
            std::vector<float> values((size_t)(p.rows * p.columns));
            loom_random_normal(values.data(), (int64_t)values.size(), seed, LOOM_RANDOM_TEST, (uint32_t)i, 0);
            const bool one = p.vector && std::string(p.name).find(".weight") != std::string::npos;
            const double deviation = p.vector ? 0.2 : p.bucket == 0 ? 0.3 : 1 / std::sqrt((double)p.rows);
            for (size_t k = 0; k < values.size(); k++)
                all[(size_t)p.offset + k] = (double)(float)((one ? 1 : 0) + deviation * (double)values[k]);
        }
        set_parameters(all);
    }

    /* Forward, loss and backward of one micro-batch; d(loss)/d(a row's loss) is `weight`. */
    void run(const std::vector<int32_t> &tokens, const std::vector<int32_t> &targets, double weight,
             bool accumulate = false) {
        loom_scalars_in in = scalars().in;
        in.loss_gradient = (float)weight;
        set_inputs(in);
        loom_gpt_set_batch(gpt_, tokens.data(), targets.data(), LOOM_HOST_TO_DEVICE);
        loom_gpt_train(gpt_, accumulate);
    }

  private:
    void lay_out(const ModelOptions &options, loom_arena *into) {
        loom_gpt_lay_out(gpt_, into);
        if (options.purpose != LOOM_GPT_TRAIN) return;
        const int64_t sequences = options.sequences ? options.sequences : B;
        loom_optimizer_lay_out(&optimizer, gpt_, sequences, into);
        loom_feeder_lay_out(&feeder_, sequences, T, into);
    }

    template <typename Element> static std::vector<double> as_doubles(const std::string &raw) {
        std::vector<Element> values(raw.size() / sizeof(Element));
        if (!raw.empty()) memcpy(values.data(), raw.data(), raw.size());
        return {values.begin(), values.end()};
    }

    Device device_;
    loom_gpt *gpt_ = nullptr;
    loom_feeder feeder_ = {}; /* of no use but that it takes memory, as in a run */
    void *memory_ = nullptr;
    size_t bytes_ = 0;
};

/* What an arena counts under a name. */
inline size_t bytes_of_row(const loom_arena &arena, const std::string &name) {
    for (int i = 0; i < arena.n_rows; i++)
        if (arena.row[i].name == name) return arena.row[i].bytes;
    return 0;
}

/* n ids below `limit`, the same for the same seed. */
inline std::vector<int32_t> random_ids(int64_t n, int64_t limit, uint64_t seed) {
    std::vector<int32_t> ids((size_t)n);
    for (int64_t i = 0; i < n; i++)
        ids[(size_t)i] = (int32_t)(loom_random(seed, LOOM_RANDOM_TEST, 0, (uint64_t)i).word[0] % (uint64_t)limit);
    return ids;
}

/* ----------------------------------------------------------------------------------------------------------- tolerance
 * Rounding with unit u leaves a sum of n terms off by about sqrt(n) u of its size (Higham and Mary, "A New Approach to
 * Probabilistic Rounding Error Analysis", 2019). The roundings of one reduction are independent of the next one's, so
 * their squares add up: after reductions of lengths n1, n2, ... a value is off by sqrt(n1 + n2 + ...) u. With
 * parameters as scatter_parameters() makes them no step amplifies errors much, and with S the longest path's length
 *   ||a - b|| <= u sqrt(S) ||b||,   |a[i] - b[i]| <= 4 u sqrt(S) max |b|
 * (the largest of some thousand errors is about 4 deviations large). Two values that both err may be twice as far
 * apart. */

/* From the parameters to the loss: in each block two layernorms (two sums each), the products that read C, C, C and
 * 4C, and attention's scores, softmax and sum of values; the last layernorm, the classifier, the softmax over the
 * vocabulary. */
inline double forward_path(const loom_gpt_config &c, int64_t T) {
    const double C = (double)c.n_embd, D = C / (double)c.n_head;
    return (double)c.n_layer * (4 * C + 7 * C + D + 2 * (double)T) + 3 * C + (double)c.vocab_size;
}

/* And back to a parameter: the classifier and a layernorm; in each block the products' gradients, which read C, 4C,
 * C and 3C, two layernorms, attention's dP and dot (D each), dq or dk, and dv (T each); at last the sum over all
 * rows. */
inline double whole_path(const loom_gpt_config &c, int64_t B, int64_t T) {
    const double C = (double)c.n_embd, D = C / (double)c.n_head;
    return forward_path(c, T) + (double)c.vocab_size + 2 * C +
           (double)c.n_layer * (9 * C + 4 * C + 2 * D + 2 * (double)T) + (double)(B * T);
}

/* ||a - b|| / ||b||; with b zero, 0 or infinity. */
inline double relative_error(const std::vector<double> &a, const std::vector<double> &b) {
    if (a.size() != b.size()) return INFINITY;
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.size(); i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        size += b[i] * b[i];
    }
    return difference == 0 ? 0 : std::sqrt(difference / size);
}

/* A tensor's elements out of values in the layout. */
inline std::vector<double> tensor(const std::vector<double> &all, const loom_parameter &p) {
    const auto first = all.begin() + p.offset;
    return {first, first + p.rows * p.columns};
}

/* Each tensor of `a` beside that of `b`, by the norm of their difference. */
inline void expect_tensors_near(const loom_layout &layout, const std::vector<double> &a, const std::vector<double> &b,
                                double tolerance, const std::string &what) {
    for (int i = 0; i < layout.n_parameters; i++) {
        const loom_parameter &p = layout.parameter[i];
        const double error = relative_error(tensor(a, p), tensor(b, p));
        EXPECT_TRUE(error <= tolerance) << what << ", " << p.name << ": off by " << error << ", " << tolerance
                                        << " allowed";
    }
}

} // namespace support

#endif
