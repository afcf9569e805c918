/* Plans of matrix products on the CUDA device, emulated: how they are autotuned, that the tuning cache can be kept and
 * given back, and that what is given back is what computes. The values of products are tested by the cases of
 * csrc/cases/matmul.c; here those of bias gradients are again, whichever way they are summed up. */
#include "support.h"

#include "cases/instance.h"

#include <cuda_runtime_api.h>
extern "C" {
#include "cuda/matmul.h"
}
#include "base/half.h"
#include "cuda/tuning.h"
#include "cuda/timing.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

namespace {

using namespace support;

/* --------------------------------------------------------------------------------------------- the tuning cache's text */

class Tuning : public testing::Test {
  protected:
    loom_tuning tuning = {};
    loom_error error = {};

    ~Tuning() override {
        loom_tuning_clear(&tuning);
    }
    /* An algorithm's digits, which all depend on `first`. */
    static std::string algorithm(int first) {
        std::string digits;
        for (int i = 0; i < 2 * LOOM_TUNING_ALGORITHM; i++) digits += "0123456789abcdef"[(first + 3 * i) % 16];
        return digits;
    }
    void add(const char *key, int first) {
        add(LOOM_TUNING_MATMUL, key, algorithm(first));
    }
    void add(loom_tuning_kind kind, const char *key, const std::string &value) {
        ASSERT_TRUE(loom_tuning_add(&tuning, kind, key, value.c_str(), &error)) << error.message;
    }
    static std::string text_of(const loom_tuning &c, const char *measured_on = "here") {
        char *text = nullptr;
        require([&](loom_error *e) { return loom_tuning_write(&c, measured_on, &text, e); });
        const std::string s = text ? text : "";
        free(text);
        return s;
    }
    /* What reading the text says; "" if it is taken. */
    std::string refusal(const std::string &text, const char *measured_on = "here") {
        error.message[0] = 0;
        const bool taken = loom_tuning_read(&tuning, measured_on, text.c_str(), &error);
        EXPECT_EQ(taken, error.message[0] == 0);
        return error.message;
    }
};

TEST_F(Tuning, EntriesAreWrittenAsALineEach) {
    add("4x5x6", 0);
    add(LOOM_TUNING_DBIAS, "4x5x6", "epilogue");
    add(LOOM_TUNING_ATTENTION, "forward,2x3", "engine8,24=3,27=-1");
    EXPECT_EQ(text_of(tuning), "measured on here\nmatmul 4x5x6 " + algorithm(0) +
                                   "\ndbias 4x5x6 epilogue\nattention forward,2x3 engine8,24=3,27=-1\n");
}

TEST_F(Tuning, NoEntriesAreNoText) {
    EXPECT_EQ(text_of(tuning), "");
}

TEST_F(Tuning, EntriesAreReadBackToTheLastDigit) {
    for (int i = 0; i < 40; i++) add(("key" + std::to_string(i)).c_str(), 7 * i);
    add(LOOM_TUNING_DBIAS, "key39", "kernel");
    add(LOOM_TUNING_ATTENTION, "key39", "engine10");
    const std::string text = text_of(tuning);
    loom_tuning read = {};
    ASSERT_TRUE(loom_tuning_read(&read, "here", text.c_str(), &error)) << error.message;
    ASSERT_EQ(read.count, 42u);
    EXPECT_EQ(text_of(read), text);
    for (size_t i = 0; i < 40; i++)
        EXPECT_EQ(loom_tuning_take(&read, LOOM_TUNING_MATMUL, tuning.at[i].key), algorithm(7 * (int)i));
    EXPECT_STREQ(loom_tuning_take(&read, LOOM_TUNING_DBIAS, "key39"), "kernel");
    EXPECT_STREQ(loom_tuning_take(&read, LOOM_TUNING_ATTENTION, "key39"), "engine10");
    EXPECT_EQ(loom_tuning_take(&read, LOOM_TUNING_MATMUL, "key40"), nullptr);
    EXPECT_EQ(loom_tuning_take(&read, LOOM_TUNING_DBIAS, "key38"), nullptr);
    loom_tuning_clear(&read);
}

/* A given entry that no plan was made by goes when others are given; what was taken stays, and is not contradicted. */
TEST_F(Tuning, EntriesStayOnceTheyAreTaken) {
    ASSERT_EQ(refusal("measured on here\ndbias a kernel\ndbias b kernel\n"), "");
    ASSERT_STREQ(loom_tuning_take(&tuning, LOOM_TUNING_DBIAS, "a"), "kernel");
    ASSERT_EQ(refusal("measured on here\ndbias b epilogue\n"), "");
    EXPECT_EQ(text_of(tuning), "measured on here\ndbias b epilogue\ndbias a kernel\n");
    const std::string line = refusal("measured on here\ndbias a epilogue\n");
    EXPECT_NE(line.find("the tuning cache's entry for dbias a is not the one that is in use"), std::string::npos)
        << line;
    ASSERT_TRUE(loom_tuning_read(&tuning, "here", nullptr, &error));
    EXPECT_EQ(text_of(tuning), "measured on here\ndbias a kernel\n");
}

TEST_F(Tuning, OfOtherHardwareIsRefusedInOneLineThatNamesBoth) {
    add("key", 1);
    const std::string line = refusal(text_of(tuning, "GPU A, sm_90, cuBLASLt 1.2.3"), "GPU B, sm_80, cuBLASLt 1.2.3");
    EXPECT_NE(line.find("GPU A, sm_90"), std::string::npos) << line;
    EXPECT_NE(line.find("GPU B, sm_80"), std::string::npos) << line;
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    EXPECT_NE(refusal(text_of(tuning, "GPU A and more"), "GPU A"), "");
    EXPECT_NE(refusal(text_of(tuning, "GPU"), "GPU A"), "");
}

TEST_F(Tuning, ThatIsDamagedIsRefusedAndWhatIsThereStays) {
    add("first", 1);
    add("second", 2);
    const std::string good = text_of(tuning);
    const size_t second = good.find("matmul second");
    std::vector<std::string> damaged = {
        "",
        "nonsense\n",
        good.substr(0, good.size() - 2),
        good + "matmul third\n",
        good + "\n",
        good + good.substr(second), /* chosen twice */
        good + "matmul third " + algorithm(3) + "0\n",
        good + "matmul third " + algorithm(3) + " \n",
        good + "matmul  " + algorithm(3) + "\n",
        good + "dbias third epilogues\n",
        good + "dbias third engine8\n",
        good + "dbias third\n",
    };
    for (const char *engine : {"8", "engine", "enginee8", "engine8,", "engine8,24", "engine8,24=", "engine8,24=x",
                               "engine8,24=3,", "engine8,24=3 ", "engine8;24=3", "engine8,24=3=4"})
        damaged.push_back(good + "attention third " + engine + "\n");
    for (const size_t at : {second, second + 6, second + 13, good.size() - 2}) {
        damaged.push_back(good);
        damaged.back()[at] = 'X';
    }
    for (const std::string &text : damaged) {
        EXPECT_NE(refusal(text), "") << text;
        EXPECT_EQ(text_of(tuning), good);
    }
    EXPECT_EQ(refusal(good.substr(0, good.size() - 1)), "") << "the last line may end the text";
    EXPECT_EQ(text_of(tuning), good);
}

/* ------------------------------------------------------------------------------------------------------------ products */

const int64_t M = 24, N = 40, K = 1200; /* long sums, whose bits depend on how they are added up */

/* out (M,N) = x (M,K) weight (K,N), in memory of the device. */
class Product {
  public:
    /* All data begins `shift` elements behind a multiple of 256 bytes. */
    explicit Product(loom_device *device, int64_t shift = 0, int64_t gap = 0, loom_dtype dtype = LOOM_F32)
        : device_(device) {
        const size_t item = loom_dtype_size(dtype), matrix = 512 * 1024;
        bytes_ = 3 * matrix + (size_t)(32 << 20);
        require([&](loom_error *e) { return device->allocate(device, &memory_, bytes_, e); });
        char *start = static_cast<char *>(memory_) + (size_t)shift * item;
        arguments.x = loom_view_2d(start, dtype, M, K);
        arguments.weight = loom_view_2d(start + matrix, dtype, K, N);
        arguments.out = loom_view_2d(start + 2 * matrix, dtype, M, N);
        arguments.out.stride[2] += gap;
    }
    ~Product() {
        device_->release(device_, memory_, bytes_);
    }
    Product(const Product &) = delete;
    Product &operator=(const Product &) = delete;

    bool prepare(loom_error *error) {
        loom_matmul_forward shapes = arguments;
        shapes.x.data = shapes.weight.data = shapes.out.data = nullptr;
        return device_->ops->prepare(device_, LOOM_OP_matmul_forward, &shapes, error);
    }
    /* The values of out; fp32 alone, without a gap. */
    std::vector<float> run() {
        std::vector<float> x(M * K), weight(K * N), out(M * N);
        for (size_t i = 0; i < x.size(); i++) x[i] = value(i);
        for (size_t i = 0; i < weight.size(); i++) weight[i] = value(i + 7919);
        copy(arguments.x.data, x.data(), x.size(), LOOM_HOST_TO_DEVICE);
        copy(arguments.weight.data, weight.data(), weight.size(), LOOM_HOST_TO_DEVICE);
        loom_context ctx = {};
        ctx.ops = device_->ops;
        ctx.device = device_;
        ctx.workspace = static_cast<char *>(memory_) + bytes_ - (32 << 20);
        ctx.workspace_bytes = 32 << 20;
        device_->ops->matmul_forward(&ctx, &arguments);
        copy(out.data(), arguments.out.data, out.size(), LOOM_DEVICE_TO_HOST);
        require([&](loom_error *e) { return device_->synchronize(device_, NULL, e); });
        return out;
    }
    /* The largest difference of `out` from sums in double, in the size of what was added. */
    static double error_of(const std::vector<float> &out) {
        double largest = 0;
        for (int64_t m = 0; m < M; m++)
            for (int64_t n = 0; n < N; n++) {
                double sum = 0;
                for (int64_t k = 0; k < K; k++)
                    sum += (double)value((size_t)(m * K + k)) * (double)value((size_t)(k * N + n) + 7919);
                largest = std::max(largest, std::fabs(out[(size_t)(m * N + n)] - sum) / std::sqrt((double)K));
            }
        return largest;
    }

    loom_matmul_forward arguments = {};

  private:
    static float value(size_t i) {
        return (float)((i * 2654435761u) % 65521) / 32760.0f - 1;
    }
    void copy(void *to, const void *from, size_t n, loom_copy_kind kind) {
        device_->copy(device_, NULL, to, from, n * sizeof(float), kind);
        require([&](loom_error *e) { return device_->synchronize(device_, NULL, e); });
    }

    loom_device *device_;
    void *memory_ = nullptr;
    size_t bytes_ = 0;
};

std::string tuning_of(const Device &device) {
    char *text = nullptr;
    require([&](loom_error *e) { return device->tuning_get(device.get(), &text, e); });
    const std::string s = text ? text : "";
    free(text);
    return s;
}

void prepare(Product &product) {
    require([&](loom_error *e) { return product.prepare(e); });
}

void give(const Device &device, const std::string &text) {
    require([&](loom_error *e) { return device->tuning_set(device.get(), text.c_str(), e); });
}

/* The emulation's algorithms: which one is the second number of the 64 bytes. */
enum Algorithm { IN_ORDER, IN_PARTS, FAILS };

std::string with_algorithm(std::string text, Algorithm algorithm) {
    const size_t value = text.rfind(' ') + 1;
    const std::string digits = "0" + std::to_string((int)algorithm) + "00000000000000";
    return text.replace(value + 16, 16, digits);
}

class Plans : public testing::Test {
  protected:
    Device device = open_device("cuda");

    int plans() const {
        return loom_cuda_matmul_plans(loom_cuda_of(device.get())->matmul);
    }
};

TEST_F(Plans, AShapeIsPlannedOnceForAlignedAndOnceForOtherData) {
    EXPECT_EQ(tuning_of(device), "");
    Product product(device.get());
    prepare(product);
    const std::string chosen = tuning_of(device);
    EXPECT_EQ(plans(), 2);
    prepare(product);
    EXPECT_EQ(plans(), 2);
    EXPECT_EQ(tuning_of(device), chosen);
    EXPECT_EQ(std::count(chosen.begin(), chosen.end(), '\n'), 2) << "only what is measured is an entry:\n" << chosen;
    EXPECT_EQ(chosen.find("measured on "), 0u);
    EXPECT_NE(chosen.find(", cuBLASLt "), std::string::npos);
    EXPECT_NE(chosen.find("\nmatmul 24x40x1200,1200:40:40,nn,fp32>fp32 "), std::string::npos) << chosen;
}

TEST_F(Plans, DifferInShapeStrideTypeBiasTransposeAndAccumulation) {
    Product product(device.get());
    prepare(product);
    loom_matmul_forward changed = product.arguments;
    const auto prepares_new = [&](loom_op op, const void *arguments) {
        const int before = plans();
        require([&](loom_error *e) { return device->ops->prepare(device.get(), op, arguments, e); });
        return plans() == before + 2;
    };
    changed.out.stride[2] += 8;
    EXPECT_TRUE(prepares_new(LOOM_OP_matmul_forward, &changed));
    changed = product.arguments;
    changed.bias = loom_view_1d(nullptr, LOOM_F32, N);
    EXPECT_TRUE(prepares_new(LOOM_OP_matmul_forward, &changed));
    changed = product.arguments;
    changed.weight = loom_view_2d(nullptr, LOOM_F32, N, K);
    changed.transposed = true;
    EXPECT_TRUE(prepares_new(LOOM_OP_matmul_forward, &changed));
    Product half(device.get(), 0, 0, LOOM_BF16);
    EXPECT_TRUE(prepares_new(LOOM_OP_matmul_forward, &half.arguments));
    loom_matmul_backward_input input = {};
    input.dx = product.arguments.x;
    input.dout = product.arguments.out;
    input.weight = product.arguments.weight;
    EXPECT_TRUE(prepares_new(LOOM_OP_matmul_backward_input, &input));
    input.accumulate = true;
    EXPECT_TRUE(prepares_new(LOOM_OP_matmul_backward_input, &input));
    EXPECT_FALSE(prepares_new(LOOM_OP_matmul_backward_input, &input));
    EXPECT_NE(tuning_of(device).find("\nmatmul 24x1200x40,40:40:1200,nt,fp32>fp32,add "), std::string::npos);
    loom_matmul_backward_weight weight = {};
    weight.x = product.arguments.x;
    weight.dout = product.arguments.out;
    weight.dweight = product.arguments.weight;
    EXPECT_TRUE(prepares_new(LOOM_OP_matmul_backward_weight, &weight));
    weight.accumulate = true;
    EXPECT_TRUE(prepares_new(LOOM_OP_matmul_backward_weight, &weight));
    EXPECT_FALSE(prepares_new(LOOM_OP_matmul_backward_weight, &weight));
}

TEST_F(Plans, AWeightGradientIsFp32OrOfTheActivationsType) {
    Product product(device.get(), 0, 0, LOOM_BF16);
    loom_matmul_backward_weight weight = {};
    weight.x = product.arguments.x;
    weight.dout = product.arguments.out;
    weight.dweight = product.arguments.weight;
    EXPECT_EQ(loom_cuda_matmul_refusal(LOOM_OP_matmul_backward_weight, &weight), nullptr);
    weight.dweight.dtype = LOOM_F32;
    EXPECT_EQ(loom_cuda_matmul_refusal(LOOM_OP_matmul_backward_weight, &weight), nullptr);
    weight.dweight.dtype = LOOM_F16;
    EXPECT_NE(loom_cuda_matmul_refusal(LOOM_OP_matmul_backward_weight, &weight), nullptr);
    weight.dweight = product.arguments.weight;
    weight.x.stride[2] = K - 1;
    EXPECT_NE(loom_cuda_matmul_refusal(LOOM_OP_matmul_backward_weight, &weight), nullptr);
}

TEST_F(Plans, DataMayBeginAtAnyElement) {
    for (const int64_t shift : {0, 1, 2, 4}) {
        Product product(device.get(), shift);
        prepare(product);
        EXPECT_LT(Product::error_of(product.run()), 1e-5) << "shifted by " << shift << " elements";
    }
    EXPECT_EQ(plans(), 2);
}

TEST_F(Plans, AnEntryThatIsGivenBackIsTakenWithoutMeasuring) {
    {
        Product product(device.get());
        prepare(product);
    }
    const std::string measured = tuning_of(device);
    std::vector<std::vector<float>> outs;
    for (const Algorithm algorithm : {IN_ORDER, IN_PARTS}) {
        const std::string given = with_algorithm(measured, algorithm);
        Device other = open_device("cuda");
        give(other, given);
        EXPECT_EQ(tuning_of(other), given);
        Product product(other.get());
        prepare(product);
        EXPECT_EQ(tuning_of(other), given);
        outs.push_back(product.run());
        EXPECT_LT(Product::error_of(outs.back()), 1e-5);
    }
    EXPECT_NE(outs[0], outs[1]) << "both algorithms gave the same bits: one of the entries was not taken";
}

TEST_F(Plans, WhatDidNotRunIsNotTakenAndWhatIsGivenIsNotTriedAgain) {
    std::string measured;
    {
        Product product(device.get());
        prepare(product);
        measured = tuning_of(device);
        EXPECT_NE(measured, with_algorithm(measured, FAILS));
    }
    Device other = open_device("cuda");
    give(other, with_algorithm(measured, FAILS));
    Product product(other.get());
    prepare(product);
    try {
        product.run();
        FAIL() << "the entry that was given was not taken";
    } catch (const std::exception &e) {
        EXPECT_NE(std::string(e.what()).find("matmul_forward"), std::string::npos) << e.what();
    }
}

TEST_F(Plans, AGivenEntryThatTheLibraryDoesNotKnowIsRefused) {
    Product product(device.get());
    prepare(product);
    std::string text = tuning_of(device);
    text.replace(text.rfind(' ') + 1, 16, "0123456789abcdef");
    Device other = open_device("cuda");
    give(other, text);
    Product again(other.get());
    loom_error error;
    ASSERT_FALSE(again.prepare(&error));
    EXPECT_NE(std::string(error.message).find("the algorithm of the run's tuning cache is refused"), std::string::npos)
        << error.message;
    EXPECT_EQ(std::string(error.message).find('\n'), std::string::npos);
}

TEST_F(Plans, ATuningCacheOfAnotherDeviceIsRefused) {
    Product product(device.get());
    prepare(product);
    std::string text = tuning_of(device);
    text.replace(text.find("sm_"), 3, "sn_");
    Device other = open_device("cuda");
    loom_error error;
    ASSERT_FALSE(other->tuning_set(other.get(), text.c_str(), &error));
    EXPECT_NE(std::string(error.message).find("sn_"), std::string::npos) << error.message;
    EXPECT_EQ(tuning_of(other), "");
}

TEST_F(Plans, EntriesThatComeAfterOtherPlansAreRefusedAndThoseOfNewShapesAdded) {
    Product product(device.get());
    prepare(product);
    const std::string chosen = tuning_of(device);
    give(device, chosen);
    EXPECT_EQ(tuning_of(device), chosen);
    const bool in_order = with_algorithm(chosen, IN_ORDER) == chosen;
    const std::string contrary = with_algorithm(chosen, in_order ? IN_PARTS : IN_ORDER);
    loom_error error;
    EXPECT_FALSE(device->tuning_set(device.get(), contrary.c_str(), &error));
    EXPECT_EQ(tuning_of(device), chosen);

    Device other = open_device("cuda");
    Product wider(other.get(), 0, 8);
    prepare(wider);
    give(other, contrary);
    const std::string both = tuning_of(other);
    EXPECT_EQ(both.find(contrary), 0u);
    EXPECT_EQ(std::count(both.begin(), both.end(), '\n'), 3);
}

TEST_F(Plans, WithoutMemoryToMeasureInTheFirstAlgorithmIsTaken) {
    Product product(device.get());
    setenv("LOOM_EMULATION_MEMORY", "1", 1);
    loom_error error;
    const bool prepared = product.prepare(&error);
    unsetenv("LOOM_EMULATION_MEMORY");
    ASSERT_TRUE(prepared) << error.message;
    EXPECT_EQ(tuning_of(device), with_algorithm(tuning_of(device), IN_ORDER));
    EXPECT_LT(Product::error_of(product.run()), 1e-5);
}

TEST_F(Plans, OnlyATf32DeviceRoundsItsInputs) {
    loom_device_options options = {};
    options.tf32 = true;
    loom_device *opened = nullptr;
    require([&](loom_error *e) { return loom_device_open(&opened, "cuda", &options, e); });
    Device rounding(opened, loom_device_close);
    Product product(rounding.get()), half(rounding.get(), 0, 0, LOOM_BF16);
    prepare(product);
    EXPECT_NE(tuning_of(rounding).find("fp32>fp32,tf32 "), std::string::npos) << tuning_of(rounding);
    const double error = Product::error_of(product.run());
    EXPECT_GT(error, 1e-5);
    EXPECT_LT(error, 1e-2);
    prepare(half);
    EXPECT_EQ(tuning_of(rounding).find("bf16,tf32"), std::string::npos);
}

TEST_F(Plans, BothPartsOfAProductsWorkspaceAreToldFromShapesAlone) {
    loom_matmul_backward_weight weight = {};
    weight.x = loom_view_2d(nullptr, LOOM_BF16, 64, K);
    weight.dout = loom_view_2d(nullptr, LOOM_BF16, 64, N);
    weight.dweight = loom_view_2d(nullptr, LOOM_F32, K, N);
    const size_t without = device->ops->workspace(device.get(), LOOM_OP_matmul_backward_weight, &weight);
    weight.dbias = loom_view_1d(nullptr, LOOM_F32, N);
    const size_t with = device->ops->workspace(device.get(), LOOM_OP_matmul_backward_weight, &weight);
    EXPECT_GE(without, (size_t)1 << 20);
    EXPECT_EQ(with - without, loom_cuda_bias_gradient_workspace(64, N));
    for (const int64_t rows : {1, 64, 65, 100000})
        EXPECT_GE(loom_cuda_bias_gradient_workspace(rows, N), (size_t)N * sizeof(float)) << "cuBLASLt's sums";
    weight.dweight = loom_view_2d(nullptr, LOOM_F32, 50304, 768);
    weight.dbias = {};
    EXPECT_EQ(device->ops->workspace(device.get(), LOOM_OP_matmul_backward_weight, &weight), (size_t)32 << 20);
}

/* ------------------------------------------------------------------------------------------------------ bias gradients */

/* dweight and dbias of R rows, in memory of the device: all values of x and dout are made here. */
class WeightGradient {
  public:
    enum : int64_t { R = 1200, I = 24 };

    WeightGradient(loom_device *device, int64_t O, bool transposed, loom_dtype gradients = LOOM_F32,
                   loom_dtype dtype = LOOM_F32)
        : device_(device) {
        const size_t matrix = 512 * 1024;
        bytes_ = 4 * matrix + (size_t)(32 << 20);
        require([&](loom_error *e) { return device->allocate(device, &memory_, bytes_, e); });
        char *start = static_cast<char *>(memory_);
        arguments.x = loom_view_2d(start, dtype, R, I);
        arguments.dout = loom_view_2d(start + matrix, dtype, R, O);
        arguments.dweight = loom_view_2d(start + 2 * matrix, gradients, transposed ? O : I, transposed ? I : O);
        arguments.dbias = loom_view_1d(start + 3 * matrix, gradients, O);
        arguments.transposed = transposed;
    }
    ~WeightGradient() {
        device_->release(device_, memory_, bytes_);
    }
    WeightGradient(const WeightGradient &) = delete;
    WeightGradient &operator=(const WeightGradient &) = delete;

    bool prepare(bool accumulate, loom_error *error) {
        loom_matmul_backward_weight shapes = arguments;
        shapes.x.data = shapes.dout.data = shapes.dweight.data = shapes.dbias.data = nullptr;
        shapes.accumulate = accumulate;
        return device_->ops->prepare(device_, LOOM_OP_matmul_backward_weight, &shapes, error);
    }
    /* dbias, in fp32, which begins as `before`. */
    std::vector<float> run(bool accumulate, float before) {
        const auto O = (size_t)arguments.dout.shape[3];
        std::vector<float> x(R * I), dout((size_t)R * O), dweight(I * O, before), dbias(O, before);
        for (size_t i = 0; i < x.size(); i++) x[i] = value(i);
        for (size_t i = 0; i < dout.size(); i++) dout[i] = value(i + 7919);
        copy(arguments.x.data, x.data(), x.size(), LOOM_HOST_TO_DEVICE);
        copy(arguments.dout.data, dout.data(), dout.size(), LOOM_HOST_TO_DEVICE);
        copy(arguments.dweight.data, dweight.data(), dweight.size(), LOOM_HOST_TO_DEVICE);
        copy(arguments.dbias.data, dbias.data(), dbias.size(), LOOM_HOST_TO_DEVICE);
        loom_context ctx = {};
        ctx.ops = device_->ops;
        ctx.device = device_;
        ctx.workspace = static_cast<char *>(memory_) + bytes_ - (32 << 20);
        ctx.workspace_bytes = 32 << 20;
        arguments.accumulate = accumulate;
        device_->ops->matmul_backward_weight(&ctx, &arguments);
        copy(dbias.data(), arguments.dbias.data, dbias.size(), LOOM_DEVICE_TO_HOST);
        return dbias;
    }

    loom_matmul_backward_weight arguments = {};

  private:
    static float value(size_t i) {
        return (float)((i * 2654435761u) % 65521) / 32760.0f - 1;
    }
    void copy(void *to, const void *from, size_t n, loom_copy_kind kind) {
        device_->copy(device_, NULL, to, from, n * sizeof(float), kind);
        require([&](loom_error *e) { return device_->synchronize(device_, NULL, e); });
    }

    loom_device *device_;
    void *memory_ = nullptr;
    size_t bytes_ = 0;
};

size_t count_of(const std::string &text, const std::string &part) {
    size_t count = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) count++;
    return count;
}

/* The text with the bias gradient of its only, or last, "dbias" line taken this way. */
std::string with_way(const std::string &text, const std::string &way) {
    const size_t line = text.rfind("\ndbias "), value = text.find(' ', line + 7) + 1;
    return text.substr(0, value) + way + text.substr(text.find('\n', value));
}

/* What preparing says on a new device to which the text was given; "" if all is well. */
std::string refusal_of(const std::string &text, int64_t O, bool transposed) {
    Device device = open_device("cuda");
    give(device, text);
    WeightGradient gradient(device.get(), O, transposed);
    loom_error error;
    return gradient.prepare(false, &error) ? "" : error.message;
}

class BiasGradients : public Plans, public testing::WithParamInterface<bool> {
  protected:
    const bool transposed = GetParam();

    /* The tuning cache of a product, on a new device. */
    std::string measured(int64_t O) {
        Device other = open_device("cuda");
        WeightGradient gradient(other.get(), O, transposed);
        require([&](loom_error *e) { return gradient.prepare(false, e); });
        return tuning_of(other);
    }
    /* The first width for which the emulation's library has an algorithm that sums up, or none. */
    int64_t width(bool has) {
        for (int64_t O = 32;; O++)
            if (refusal_of(with_way(measured(O), "epilogue"), O, transposed).empty() == has) return O;
    }
};

TEST_P(BiasGradients, AreSummedUpAsIsChosenOnceForAllMicroBatches) {
    const int64_t O = width(true);
    const std::string sums = transposed ? "rowsums" : "columnsums", chosen = measured(O);
    EXPECT_EQ(count_of(chosen, "\ndbias "), 1u) << chosen;
    EXPECT_NE(chosen.find(",fp32>fp32," + sums +
                          (chosen.find(" epilogue\n") == std::string::npos ? " kernel\n" : " epilogue\n")),
              std::string::npos)
        << chosen;
    for (const std::string way : {"kernel", "epilogue"}) {
        Device other = open_device("cuda");
        give(other, with_way(chosen, way));
        WeightGradient gradient(other.get(), O, transposed);
        for (const bool accumulate : {true, false})
            require([&](loom_error *e) { return gradient.prepare(accumulate, e); });
        const std::string after = tuning_of(other);
        EXPECT_EQ(count_of(after, "\ndbias "), 1u) << after;
        EXPECT_NE(after.find(sums + " " + way + "\n"), std::string::npos) << after;
        if (way == "epilogue") {
            EXPECT_EQ(count_of(after, sums), 2u) << "the way, and one algorithm:\n" << after;
        }
        const int planned = loom_cuda_matmul_plans(loom_cuda_of(other.get())->matmul);
        EXPECT_EQ(planned, way == "epilogue" ? 6 : 4);
        require([&](loom_error *e) { return gradient.prepare(false, e); });
        EXPECT_EQ(loom_cuda_matmul_plans(loom_cuda_of(other.get())->matmul), planned);
        EXPECT_EQ(tuning_of(other), after);
    }
}

/* Bits tell which way was taken, and that the first micro-batch and further ones go the same way. */
TEST_P(BiasGradients, HaveTheBitsOfTheirWay) {
    const int64_t O = width(true);
    const std::string chosen = measured(O);
    std::vector<std::vector<float>> bits;
    for (const std::string way : {"kernel", "epilogue"}) {
        Device other = open_device("cuda");
        give(other, with_way(chosen, way));
        WeightGradient gradient(other.get(), O, transposed);
        for (const bool accumulate : {false, true})
            require([&](loom_error *e) { return gradient.prepare(accumulate, e); });
        bits.push_back(gradient.run(false, 1e30f));
        EXPECT_EQ(gradient.run(false, NAN), bits.back()) << way;
        EXPECT_EQ(gradient.run(true, 0), bits.back()) << way;
        std::vector<float> added = bits.back();
        for (float &sum : added) sum += 0.5f;
        EXPECT_EQ(gradient.run(true, 0.5f), added) << way;
    }
    EXPECT_NE(bits[0], bits[1]) << "both ways gave the same bits: one of the entries was not taken";
}

TEST_P(BiasGradients, AGivenWayThatIsNotPossibleIsRefusedInOneLine) {
    const int64_t without = width(false), with = width(true);
    const std::string chosen = measured(without);
    EXPECT_NE(chosen.find("sums kernel\n"), std::string::npos) << "where cuBLASLt has no algorithm it is our kernel";
    EXPECT_EQ(refusal_of(chosen, without, transposed), "");
    std::string line = refusal_of(with_way(chosen, "epilogue"), without, transposed);
    EXPECT_NE(line.find("the way to a bias gradient in the run's tuning cache cannot be taken: cuBLASLt: no algorithm"),
              std::string::npos)
        << line;
    EXPECT_EQ(line.find('\n'), std::string::npos);

    Device other = open_device("cuda");
    give(other, with_way(measured(with), "epilogue"));
    WeightGradient gradient(other.get(), with, transposed);
    require([&](loom_error *e) { return gradient.prepare(false, e); });
    std::string text = tuning_of(other);
    EXPECT_EQ(refusal_of(text, with, transposed), "");
    text.replace(text.rfind(' ') + 1, 16, "0123456789abcdef");
    line = refusal_of(text, with, transposed);
    EXPECT_NE(line.find("with a bias gradient"), std::string::npos) << line;
}

TEST_P(BiasGradients, OfNarrowTypeOrUnderTf32AreAlwaysOurKernels) {
    WeightGradient narrow(device.get(), 40, transposed, LOOM_BF16, LOOM_BF16);
    require([&](loom_error *e) { return narrow.prepare(false, e); });
    EXPECT_EQ(tuning_of(device).find("dbias"), std::string::npos) << tuning_of(device);
    WeightGradient wide(device.get(), 40, transposed, LOOM_F32, LOOM_BF16);
    require([&](loom_error *e) { return wide.prepare(false, e); });
    EXPECT_NE(tuning_of(device).find("dbias"), std::string::npos) << tuning_of(device);
    loom_device_options options = {};
    options.tf32 = true;
    loom_device *opened = nullptr;
    require([&](loom_error *e) { return loom_device_open(&opened, "cuda", &options, e); });
    Device rounding(opened, loom_device_close);
    WeightGradient rounded(rounding.get(), 40, transposed);
    require([&](loom_error *e) { return rounded.prepare(false, e); });
    EXPECT_EQ(tuning_of(rounding).find("dbias"), std::string::npos) << tuning_of(rounding);
}

TEST_P(BiasGradients, WithoutMemoryToMeasureInAreOurKernels) {
    const int64_t O = width(true);
    WeightGradient gradient(device.get(), O, transposed);
    setenv("LOOM_EMULATION_MEMORY", "1", 1);
    loom_error error;
    const bool prepared = gradient.prepare(false, &error);
    unsetenv("LOOM_EMULATION_MEMORY");
    ASSERT_TRUE(prepared) << error.message;
    EXPECT_NE(tuning_of(device).find("sums kernel\n"), std::string::npos) << tuning_of(device);
}

std::string name_of_layout(const testing::TestParamInfo<bool> &instance) {
    return instance.param ? "Transposed" : "AsTheyAre";
}

INSTANTIATE_TEST_SUITE_P(Weights, BiasGradients, testing::Bool(), name_of_layout);

/* Each case of matmul_backward_weight whose bias gradient may go both ways, once each way, within the case's bounds. */
TEST(BiasGradientCases, HoldWhicheverWayIsChosen) {
    enum { LARGE = 40000 };
    const Device oracle = open_device("oracle");
    std::map<std::string, int> ran;
    for (const Instance &instance : parity_instances("")) {
        if (instance.op_name() != "matmul_backward_weight" || instance.dtypes.gradient != LOOM_F32) continue;
        Case c = open_case(instance);
        const int64_t rows = loom_case_dim(c.get(), "N"), I = loom_case_dim(c.get(), "I"),
                      O = loom_case_dim(c.get(), "O");
        if (!loom_case_option(c.get(), "bias") || rows * O + rows * I + I * O > LARGE) continue;
        loom_case_result result;
        loom_error error;
        const auto check = [&](const Device &cuda) {
            result = {};
            ASSERT_TRUE(loom_case_check(c.get(), instance.op, cuda.get(), oracle.get(), &result, &error))
                << instance << ": " << error.message;
        };
        Device first = open_device("cuda");
        check(first);
        for (const std::string way : {"kernel", "epilogue"}) {
            Device cuda = open_device("cuda");
            give(cuda, with_way(tuning_of(first), way));
            check(cuda);
            if (way == "epilogue" && std::string(result.message).find("cannot be taken") != std::string::npos) {
                ran["refused"]++;
                continue;
            }
            ASSERT_EQ(result.verdict, LOOM_CASE_OK) << instance << " by " << way << ": " << result.message;
            EXPECT_LE(result.ratio, 1) << instance << " by " << way;
            for (const char *option : {"transposed", "accumulate", "strided", "shifted"})
                if (loom_case_option(c.get(), option)) ran[way + " " + option]++;
            ran[way + " " + instance.dtypes.name]++;
        }
    }
    EXPECT_GT(ran["refused"], 0);
    for (const std::string what : {" transposed", " accumulate", " strided", " shifted", " fp32", " bf16", " fp16"})
        for (const std::string way : {"kernel", "epilogue"}) EXPECT_GT(ran[way + what], 0) << way << what;
}

/* -------------------------------------------------------------------------------------------- what is timed, and on what */

/* Numbers that a GPU multiplies as it does those of training: in every dtype finite, of ordinary size, of both signs.
 * */
TEST(Timing, IsDoneOnOrdinaryNumbers) {
    const size_t bytes = 100002; /* not a multiple of the pattern, nor of its words */
    std::vector<uint16_t> halves(bytes / 2 + 8, 0xFFFF);
    void *memory = nullptr;
    ASSERT_EQ(cudaMalloc(&memory, bytes), cudaSuccess);
    require([&](loom_error *e) { return loom_cuda_fill_random(memory, bytes, nullptr, e); });
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ASSERT_EQ(cudaMemcpy(halves.data(), memory, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    cudaFree(memory);
    std::set<uint16_t> different;
    int negative = 0;
    for (size_t i = 0; i < bytes / 2; i++) {
        const float as_bf16 = std::fabs(bf16_to_float(halves[i])), as_fp16 = std::fabs(fp16_to_float(halves[i]));
        ASSERT_TRUE(as_bf16 >= 0x1p-7f && as_bf16 < 1) << i << ": " << halves[i];
        ASSERT_TRUE(as_fp16 >= 1 && as_fp16 < 2) << i << ": " << halves[i];
        different.insert(halves[i]);
        negative += halves[i] >> 15;
    }
    EXPECT_EQ(halves[bytes / 2], 0xFFFF);
    EXPECT_GT(different.size(), 1500u) << "of 2 x 896";
    EXPECT_GT(negative, 20000);
    EXPECT_LT(negative, 30000);
}

/* One set more than the L2 cache holds, so that each has left it when it is taken again. */
TEST(Timing, TakesSetsOfOperandsThatDoNotFitIntoTheCache) {
    int cache = 0;
    ASSERT_EQ(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, 0), cudaSuccess);
    EXPECT_EQ(loom_cuda_sets(0), 1);
    EXPECT_EQ(loom_cuda_sets(1), LOOM_CUDA_MOST_SETS);
    EXPECT_EQ(loom_cuda_sets((size_t)cache / 4), 5);
    EXPECT_EQ(loom_cuda_sets((size_t)cache), 2);
    EXPECT_EQ(loom_cuda_sets((size_t)cache * 9), 2);
}

/* ------------------------------------------------------------------------------------------------------------- the rest */

TEST_F(Plans, ThePeakIsTheRateOfAProduct) {
    double rate = 0;
    for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16}) {
        require([&](loom_error *e) { return device->peak(device.get(), dtype, 0.01, &rate, e); });
        EXPECT_GT(rate, 1e6);
        EXPECT_LT(rate, 1e16);
    }
    EXPECT_EQ(tuning_of(device), "") << "what is tuned for it is no part of a run";
}

} // namespace
