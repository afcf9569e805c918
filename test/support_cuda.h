/* What tests of the emulated CUDA runtime share: calls that must work, memory, kernels, and all schedules. */
#ifndef LOOM_TEST_SUPPORT_CUDA_H
#define LOOM_TEST_SUPPORT_CUDA_H

#include "emulation.h"

#include <cuda_runtime.h>

#include "simt.h"
#include "simt_launch.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace runtime {

#define OK(call) ASSERT_EQ(call, cudaSuccess)

inline void works(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

/* Memory of the device that is filled with one value, and read and written by way of pinned memory. */
class Array {
  public:
    explicit Array(size_t n, float value = 0) : n_(n) {
        works(cudaMalloc(reinterpret_cast<void **>(&data_), n * sizeof(float)));
        set(value);
    }
    ~Array() {
        cudaFree(data_);
    }
    Array(const Array &) = delete;
    Array &operator=(const Array &) = delete;
    operator float *() const {
        return data_;
    }
    /* The copy may still be under way when cudaMemcpy returns, and streams need not wait for it. */
    void set(float value) {
        const std::vector<float> values(n_, value);
        works(cudaMemcpy(data_, values.data(), n_ * sizeof(float), cudaMemcpyHostToDevice));
        works(cudaStreamSynchronize(nullptr));
    }
    /* Waits for the legacy stream alone. */
    std::vector<float> get() const {
        std::vector<float> values(n_);
        works(cudaMemcpy(values.data(), data_, n_ * sizeof(float), cudaMemcpyDeviceToHost));
        return values;
    }
    float first() const {
        return get()[0];
    }
    size_t bytes() const {
        return n_ * sizeof(float);
    }

  private:
    float *data_ = nullptr;
    size_t n_;
};

/* A stream that does not wait for the legacy one. */
class Stream {
  public:
    explicit Stream(unsigned flags = cudaStreamNonBlocking) {
        works(cudaStreamCreateWithFlags(&stream_, flags));
    }
    ~Stream() {
        cudaStreamDestroy(stream_);
    }
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;
    operator cudaStream_t() const {
        return stream_;
    }

  private:
    cudaStream_t stream_ = nullptr;
};

class Event {
  public:
    explicit Event(unsigned flags = cudaEventDefault) {
        works(cudaEventCreateWithFlags(&event_, flags));
    }
    ~Event() {
        cudaEventDestroy(event_);
    }
    Event(const Event &) = delete;
    Event &operator=(const Event &) = delete;
    operator cudaEvent_t() const {
        return event_;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

/* Puts a kernel of one thread into a stream. */
template <typename... P, typename... A>
cudaError_t launch(cudaStream_t stream, const char *name, void (*kernel)(P...), const A &...arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = 1;
    config.blockDim = 1;
    config.stream = stream;
    simt::name_next_launch(name);
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

static inline __global__ void store(float *to, float value) {
    *to = value;
}
static inline __global__ void copy_value(float *to, const float *from) {
    *to = *from;
}
static inline __global__ void add_to(float *to, float value) {
    *to += value;
}
static inline __global__ void scale_by(float *x, const float *factor) {
    *x *= *factor;
}

/* Each test ends with an emulation that works and runs in order. */
class Runtime : public testing::Test {
  protected:
    void SetUp() override {
        emulation_set_schedule("order");
        cudaGetLastError();
    }
    void TearDown() override {
        emulation_reset();
        emulation_set_schedule("order");
    }
};

/* How often `test` returns true under one schedule each: in order, reversed, and `seeds` random ones. */
inline int times_under_all_schedules(int seeds, const std::function<bool()> &test) {
    std::vector<std::string> schedules = {"order", "reverse"};
    for (int seed = 0; seed < seeds; seed++) schedules.push_back("random:" + std::to_string(seed));
    int times = 0;
    for (const std::string &schedule : schedules) {
        emulation_set_schedule(schedule.c_str());
        times += test();
    }
    emulation_set_schedule("order");
    return times;
}

enum { SEEDS = 20, SCHEDULES = SEEDS + 2 };

} // namespace runtime
#endif
