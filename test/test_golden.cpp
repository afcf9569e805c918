/* A small GPT's loss, logits and gradients, held to what PyTorch computes in double precision: dev/torch/golden.py made
 * test/data/golden.safetensors. Every device runs it, as one micro-batch and as two that accumulate.
 *
 * Tolerances. Rounding with unit u (half an epsilon: 2^-24 in fp32, 2^-53 in fp64) leaves a sum of n terms off by at
 * most about sqrt(n) u of its size (Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019).
 * The roundings of one reduction are independent of those of the next, so their squares add up: a value at the end of a
 * path through reductions of lengths n1, n2, ... is off by sqrt(n1 + n2 + ...) u. The file's parameters are scaled such
 * that no step of the path amplifies errors much. Hence, with S the length of the longest path,
 *   ||a - b|| / ||b||  <=  u sqrt(S), and
 *   |a[i] - b[i]|      <=  4 u sqrt(S) max |b|: the largest of some thousand errors is about 4 deviations large.
 * To both comes what storing the reference in fp32 costs it: 2^-24 of itself. For the file's model S is 1466; in fp32
 * the norm may be off by 20 epsilons (PyTorch's own fp32 is off by up to 4), and on the oracle only the storing is
 * left: half an epsilon of each element. */
#include "checkpoint/safetensors.h"
#include "gptloom/model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr double kStored = FLT_EPSILON / 2; /* what rounding to fp32 costs a value, relative to it */

std::string golden_path() {
    const std::string here = __FILE__;
    return here.substr(0, here.rfind('/') + 1) + "data/golden.safetensors";
}

/* --------------------------------------------------------------------------------------------------------- the file */

class Golden {
  public:
    Golden() {
        loom_error error;
        opened_ = loom_safetensors_open(&file_, golden_path().c_str(), &error);
        if (!opened_) {
            ADD_FAILURE() << error.message;
            return;
        }
        const std::vector<int32_t> shape = read<int32_t>("config", "I32");
        if (shape.size() == 5) config = {shape[0], shape[1], shape[2], shape[3], shape[4], LOOM_GPT_GELU};
        tokens = read<int32_t>("tokens", "I32");
        targets = read<int32_t>("targets", "I32");
        const std::vector<double> losses = read<double>("loss", "F64");
        if (losses.size() == 1) loss = losses[0];
        const loom_safetensor *batch = loom_safetensors_find(&file_, "tokens");
        if (batch && batch->rank == 2) {
            B = batch->shape[0];
            T = batch->shape[1];
        }
        valid = std::count_if(targets.begin(), targets.end(), [](int32_t target) { return target >= 0; });
    }
    ~Golden() {
        if (opened_) loom_safetensors_close(&file_);
    }
    Golden(const Golden &) = delete;
    Golden &operator=(const Golden &) = delete;

    std::vector<float> floats(const std::string &name) const {
        return read<float>(name, "F32");
    }

    loom_gpt_config config = {};
    int64_t B = 0, T = 0, valid = 0;
    double loss = 0;
    std::vector<int32_t> tokens, targets; /* (B,T) */

  private:
    template <typename Element> std::vector<Element> read(const std::string &name, const char *dtype) const {
        const loom_safetensor *tensor = loom_safetensors_find(&file_, name.c_str());
        if (!tensor || strcmp(tensor->dtype, dtype) != 0) {
            ADD_FAILURE() << golden_path() << " has no " << name << " of type " << dtype;
            return {};
        }
        std::vector<Element> values(tensor->bytes / sizeof(Element));
        loom_error error;
        EXPECT_TRUE(loom_safetensors_read(&file_, tensor, 0, values.data(), tensor->bytes, &error)) << error.message;
        return values;
    }

    loom_safetensors file_ = {};
    bool opened_ = false;
};

/* -------------------------------------------------------------------------------------------------------- the model */

/* A model on a device with the file's parameters in it. */
class Model {
  public:
    Model(const Golden &golden, const char *device, loom_gpt_purpose purpose, int64_t B, int64_t T) {
        loom_error error;
        const loom_device_options options = {};
        loom_gpt_setup setup = {};
        setup.purpose = purpose;
        setup.B = B;
        setup.T = T;
        setup.generates = true;
        ready_ = loom_device_open(&device_, device, &options, &error) &&
                 loom_gpt_create(&gpt_, &golden.config, &setup, device_, &error) && allocate(&error) &&
                 loom_gpt_prepare(gpt_, &error);
        if (ready_)
            load(golden);
        else
            ADD_FAILURE() << device << ": " << error.message;
    }
    ~Model() {
        loom_gpt_destroy(gpt_);
        if (memory_) device_->release(device_, memory_, bytes_);
        if (device_) loom_device_close(device_);
    }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    bool ready() const {
        return ready_;
    }
    loom_gpt *gpt() {
        return gpt_;
    }
    const loom_layout *layout() const {
        return loom_gpt_get_layout(gpt_);
    }
    double unit() const {
        return device_->storage == LOOM_F64 ? DBL_EPSILON / 2 : FLT_EPSILON / 2;
    }

    void set_loss_gradient(float value) {
        loom_scalars scalars;
        copy(&scalars, loom_gpt_get_scalars(gpt_), sizeof scalars, LOOM_DEVICE_TO_HOST);
        scalars.in.loss_gradient = value;
        copy(loom_gpt_get_scalars(gpt_), &scalars, sizeof scalars, LOOM_HOST_TO_DEVICE);
    }
    std::vector<double> losses(int64_t n) {
        return get(loom_gpt_get_losses(gpt_), device_->statistics, n);
    }
    std::vector<double> gradients() {
        return get(loom_gpt_get_gradients(gpt_), device_->storage, layout()->elements);
    }

  private:
    bool allocate(loom_error *error) {
        loom_arena plan = loom_arena_measure();
        loom_gpt_lay_out(gpt_, &plan);
        if (!device_->allocate(device_, &memory_, plan.used, error)) return false;
        bytes_ = plan.used;
        loom_arena arena = loom_arena_over(memory_, bytes_, device_->host_memory);
        loom_gpt_lay_out(gpt_, &arena);
        return true;
    }

    void load(const Golden &golden) {
        std::vector<double> all(layout()->elements, 0.0);
        for (int i = 0; i < layout()->n_parameters; i++) {
            const loom_parameter &parameter = layout()->parameter[i];
            const std::vector<float> values = golden.floats(parameter.name);
            ASSERT_EQ((int64_t)values.size(), parameter.rows * parameter.columns) << parameter.name;
            std::copy(values.begin(), values.end(), all.begin() + parameter.offset);
        }
        if (device_->storage == LOOM_F64)
            copy(loom_gpt_get_parameters(gpt_), all.data(), all.size() * sizeof(double), LOOM_HOST_TO_DEVICE);
        else {
            ASSERT_EQ(device_->storage, LOOM_F32);
            const std::vector<float> narrow(all.begin(), all.end());
            copy(loom_gpt_get_parameters(gpt_), narrow.data(), narrow.size() * sizeof(float), LOOM_HOST_TO_DEVICE);
        }
    }

    std::vector<double> get(const void *from, loom_dtype dtype, int64_t n) {
        std::vector<double> wide(n);
        if (dtype == LOOM_F64) {
            copy(wide.data(), from, wide.size() * sizeof(double), LOOM_DEVICE_TO_HOST);
            return wide;
        }
        EXPECT_EQ(dtype, LOOM_F32);
        std::vector<float> narrow(n);
        copy(narrow.data(), from, narrow.size() * sizeof(float), LOOM_DEVICE_TO_HOST);
        return {narrow.begin(), narrow.end()};
    }

    /* Waits before and after, so that all work is done and host memory is free. */
    void copy(void *to, const void *from, size_t bytes, loom_copy_kind kind) {
        loom_error error;
        loom_stream *stream = loom_gpt_get_context(gpt_)->stream;
        device_->copy(device_, stream, to, from, bytes, kind);
        EXPECT_TRUE(device_->synchronize(device_, stream, &error)) << error.message;
    }

    loom_device *device_ = nullptr;
    loom_gpt *gpt_ = nullptr;
    void *memory_ = nullptr;
    size_t bytes_ = 0;
    bool ready_ = false;
};

/* ------------------------------------------------------------------------------------------------------ comparisons */

/* Lengths of the reductions on the way from the parameters to the loss: in each block two layernorms, the products that
 * read C, C, C and 4C, and attention's scores, softmax and sum of values; then the last layernorm, the classifier and
 * the softmax over the vocabulary. */
int64_t forward_path(const Golden &golden) {
    const loom_gpt_config &c = golden.config;
    const int64_t C = c.n_embd, D = C / c.n_head, T = golden.T;
    return c.n_layer * (2 * C + 7 * C + D + 2 * T) + 2 * C + c.vocab_size;
}

/* From there back to a parameter: the classifier and a layernorm (two sums); in each block the products' gradients,
 * which sum over outputs (C, 4C, C, 3C), two layernorms, and attention's dP and dot (D each), dq or dk, and dv (T
 * each); at the end the sum over all rows. */
int64_t whole_path(const Golden &golden) {
    const loom_gpt_config &c = golden.config;
    const int64_t C = c.n_embd, D = C / c.n_head, T = golden.T;
    return forward_path(golden) + c.vocab_size + 2 * C + c.n_layer * (9 * C + 4 * C + 2 * D + 2 * T) + golden.B * T;
}

/* Holds values to reference values, both of one tensor, after a path of length S with rounding unit u; `stored` is what
 * storing costs. */
void expect_close(const double *value, const std::vector<double> &reference, double u, int64_t S, double stored,
                  const std::string &what) {
    double largest = 0, square = 0, error_square = 0;
    for (const double r : reference) {
        largest = std::max(largest, std::fabs(r));
        square += r * r;
    }
    ASSERT_GT(largest, 0) << what;
    const double rounding = u * std::sqrt((double)S);
    double worst = 0; /* error of an element over what it may have */
    size_t place = 0;
    for (size_t i = 0; i < reference.size(); i++) {
        const double error = std::fabs(value[i] - reference[i]);
        error_square += error * error;
        const double allowed = 4 * rounding * largest + stored * std::fabs(reference[i]);
        if (!(error / allowed <= worst)) { /* NaN too */
            worst = error / allowed;
            place = i;
        }
    }
    EXPECT_LE(std::sqrt(error_square / square), rounding + stored) << what << ", norm of the error";
    EXPECT_LE(worst, 1) << what << ", element " << place << ": " << value[place] << " for " << reference[place] << ", "
                        << std::fabs(value[place] - reference[place]) / largest / FLT_EPSILON
                        << " fp32 epsilons of the largest, " << largest;
}

struct Case {
    const char *device;
    int64_t micro_batch;
};

std::string case_name(const testing::TestParamInfo<Case> &info) {
    return std::string(info.param.device) + "_" + std::to_string(info.param.micro_batch);
}

class GoldenGradients : public testing::TestWithParam<Case> {};

/* Loss and the gradient of every parameter, its padding included: zero. */
TEST_P(GoldenGradients, AgreeWithPyTorch) {
    const Golden golden;
    ASSERT_GT(golden.valid, 0);
    const int64_t rows = GetParam().micro_batch * golden.T;
    Model model(golden, GetParam().device, LOOM_GPT_TRAIN, GetParam().micro_batch, golden.T);
    ASSERT_TRUE(model.ready());

    const float loss_gradient = 1.0f / (float)golden.valid;
    model.set_loss_gradient(loss_gradient);
    double loss = 0;
    for (int64_t first = 0; first < golden.B * golden.T; first += rows) {
        const bool accumulate = first > 0;
        loom_gpt_set_batch(model.gpt(), golden.tokens.data() + first, golden.targets.data() + first,
                           LOOM_HOST_TO_DEVICE);
        loom_gpt_train(model.gpt(), accumulate);
        for (const double row : model.losses(rows)) loss += row;
    }
    expect_close(&(loss /= (double)golden.valid), {golden.loss}, model.unit(), forward_path(golden), 0, "loss");

    /* The step's loss gradient is a float; its rounding is known and no error of the model's. */
    const double scale = (double)loss_gradient * (double)golden.valid;
    std::vector<double> gradients = model.gradients();
    for (int i = 0; i < model.layout()->n_parameters; i++) {
        const loom_parameter &parameter = model.layout()->parameter[i];
        const std::vector<float> stored = golden.floats(std::string("grad.") + parameter.name);
        ASSERT_EQ((int64_t)stored.size(), parameter.rows * parameter.columns) << parameter.name;
        std::vector<double> reference(stored.begin(), stored.end());
        for (double &r : reference) r *= scale;
        double *mine = gradients.data() + parameter.offset;
        expect_close(mine, reference, model.unit(), whole_path(golden), kStored, parameter.name);
        std::fill(mine, mine + reference.size(), 0.0);
    }
    EXPECT_TRUE(std::all_of(gradients.begin(), gradients.end(), [](double g) { return g == 0; }))
        << "a gradient in the padding";
}

INSTANTIATE_TEST_SUITE_P(Devices, GoldenGradients,
                         testing::Values(Case{"cpu", 2}, Case{"cpu", 1}, Case{"definition", 2}, Case{"definition", 1},
                                         Case{"oracle", 2}, Case{"oracle", 1}),
                         case_name);

std::string device_name(const testing::TestParamInfo<std::string> &info) {
    return info.param;
}

class GoldenLogits : public testing::TestWithParam<std::string> {};

/* Generation's logits, token by token from the keys and values kept so far, and all tokens at once. The oracle's are
 * rounded to fp32 on their way out, the reference's were in the file: two roundings. */
TEST_P(GoldenLogits, AgreeWithPyTorch) {
    const Golden golden;
    const int64_t V = golden.config.vocab_size, T = golden.T;
    const std::vector<float> stored = golden.floats("logits");
    ASSERT_EQ((int64_t)stored.size(), golden.B * T * V);
    Model model(golden, GetParam().c_str(), LOOM_GPT_INFER, 1, golden.config.block_size);
    ASSERT_TRUE(model.ready());

    const auto expect_row = [&](int64_t row, const std::vector<float> &logits, const char *how) {
        const std::vector<double> mine(logits.begin(), logits.end());
        const std::vector<double> reference(stored.begin() + row * V, stored.begin() + (row + 1) * V);
        expect_close(mine.data(), reference, model.unit(), forward_path(golden), 2 * kStored,
                     "logits of row " + std::to_string(row) + ", " + how);
    };
    loom_error error;
    std::vector<float> logits(V);
    for (int64_t b = 0; b < golden.B; b++) {
        const int32_t *tokens = golden.tokens.data() + b * T;
        for (int64_t t = 0; t < T; t++) {
            ASSERT_TRUE(loom_gpt_next_logits(model.gpt(), tokens + t, 1, t, logits.data(), &error)) << error.message;
            expect_row(b * T + t, logits, "token by token");
        }
        ASSERT_TRUE(loom_gpt_next_logits(model.gpt(), tokens, T, 0, logits.data(), &error)) << error.message;
        expect_row(b * T + T - 1, logits, "at once");
    }
}

INSTANTIATE_TEST_SUITE_P(Devices, GoldenLogits, testing::Values("cpu", "definition", "oracle"), device_name);

} // namespace
