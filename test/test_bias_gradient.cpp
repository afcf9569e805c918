/* The sum of a matrix's rows that matmul_backward_weight takes beside its product on CUDA: alone, at sizes that make
 * more slices of rows than the cases of matmul do. */
#include "kernels/kernels.h"

#include "cases/case_internal.h"

#include "base/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

struct DeviceCloser {
    void operator()(loom_device *d) const {
        loom_device_close(d);
    }
};

struct Shape {
    int64_t N, O, gap, offset; /* rows lie `gap` elements apart, the first starts at element `offset` */
};

std::ostream &operator<<(std::ostream &out, const Shape &s) {
    return out << s.N << " rows of " << s.O << " and " << s.gap << " from " << s.offset;
}

class BiasGradient : public testing::TestWithParam<Shape> {
  protected:
    std::unique_ptr<loom_device, DeviceCloser> device;
    std::vector<std::pair<void *, size_t>> memories;

    void SetUp() override {
        loom_device *opened = nullptr;
        loom_error error;
        if (!loom_device_open(&opened, "cuda", nullptr, &error)) GTEST_SKIP() << error.message;
        device.reset(opened);
    }

    void TearDown() override {
        for (const auto &[memory, bytes] : memories) device->release(device.get(), memory, bytes);
    }

    void *allocate(size_t bytes) {
        void *memory = nullptr;
        loom_error error;
        EXPECT_TRUE(device->allocate(device.get(), &memory, bytes, &error)) << error.message;
        memories.emplace_back(memory, bytes);
        return memory;
    }

    void *send(const std::vector<unsigned char> &bytes) {
        void *memory = allocate(bytes.size());
        device->copy(device.get(), nullptr, memory, bytes.data(), bytes.size(), LOOM_HOST_TO_DEVICE);
        device->synchronize(device.get(), nullptr, nullptr);
        return memory;
    }

    /* dbias, which begins as all 0.5, after the op. */
    std::vector<unsigned char> run(const loom_view &dout, loom_dtype dtype, bool accumulate) {
        const int64_t O = dout.shape[3];
        const size_t item = loom_dtype_size(dtype);
        std::vector<unsigned char> stored(static_cast<size_t>(O) * item);
        for (int64_t i = 0; i < O; i++) loom_case_store(&stored[static_cast<size_t>(i) * item], dtype, 0.5);
        const loom_view dbias = loom_view_1d(send(stored), dtype, O);
        loom_context ctx = {};
        ctx.ops = device->ops;
        ctx.device = device.get();
        loom_cuda_bias_gradient(&ctx, &dbias, &dout, accumulate,
                                allocate(loom_cuda_bias_gradient_workspace(dout.shape[2], O)));
        device->copy(device.get(), nullptr, stored.data(), dbias.data, stored.size(), LOOM_DEVICE_TO_HOST);
        loom_error error;
        EXPECT_TRUE(device->synchronize(device.get(), nullptr, &error)) << error.message;
        return stored;
    }
};

/* Sums of N terms of size one come to sqrt(N), and err by e sqrt(N) of that at most, beside the rounding of the result.
 * */
TEST_P(BiasGradient, AgreesWithASumInDouble) {
    const Shape &s = GetParam();
    std::vector<float> normal(static_cast<size_t>(s.N * s.O));
    loom_random_normal(normal.data(), s.N * s.O, 3, LOOM_RANDOM_TEST, 1, 0);
    for (loom_dtype dtype : {LOOM_F32, LOOM_BF16, LOOM_F16}) {
        const size_t item = loom_dtype_size(dtype);
        const int64_t stride = s.O + s.gap;
        std::vector<unsigned char> stored(static_cast<size_t>(s.N * stride + s.offset) * item, 0xFF);
        std::vector<double> sums(static_cast<size_t>(s.O));
        for (int64_t n = 0; n < s.N; n++)
            for (int64_t o = 0; o < s.O; o++) {
                const double value = static_cast<double>(normal[static_cast<size_t>(n * s.O + o)]);
                loom_case_store(&stored[static_cast<size_t>(s.offset + n * stride + o) * item], dtype, value);
                sums[static_cast<size_t>(o)] += loom_case_round(dtype, value);
            }
        loom_view dout = loom_view_2d(static_cast<char *>(send(stored)) + static_cast<size_t>(s.offset) * item, dtype,
                                      s.N, s.O);
        dout.stride[2] = stride;
        for (loom_dtype out : {LOOM_F32, LOOM_BF16})
            for (bool accumulate : {false, true}) {
                const std::vector<unsigned char> found = run(dout, out, accumulate);
                EXPECT_EQ(found, run(dout, out, accumulate)) << "other bits";
                const double error = loom_case_epsilon(LOOM_F32) * static_cast<double>(s.N);
                const double unit = loom_case_epsilon(out) / 2;
                for (int64_t o = 0; o < s.O; o++) {
                    const double sum = sums[static_cast<size_t>(o)] + (accumulate ? 0.5 : 0);
                    const double x = loom_case_load(&found[static_cast<size_t>(o) * loom_dtype_size(out)], out);
                    ASSERT_NEAR(x, sum, unit * std::fabs(sum) + error)
                        << "column " << o << " of " << loom_dtype_name(dtype) << " into " << loom_dtype_name(out);
                }
            }
    }
}

INSTANTIATE_TEST_SUITE_P(Shapes, BiasGradient,
                         testing::Values(Shape{1, 1, 0, 0}, Shape{7, 5, 3, 1}, Shape{64, 128, 0, 0},
                                         Shape{65, 129, 0, 0}, Shape{513, 264, 8, 8}, Shape{700, 770, 0, 3},
                                         Shape{2500, 40, 0, 0}, Shape{16700, 3, 1, 0}));

} // namespace
