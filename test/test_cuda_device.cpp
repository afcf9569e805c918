/* The CUDA device itself, emulated: memory, streams, graphs, failures, and what opens when. */
#include "support.h"

#include "emulation.h"

#include <cuda_runtime_api.h>

#include <thread>

namespace {

using namespace support;

class CudaDevice : public testing::Test {
  protected:
    Device device = open_device("cuda");

    void fill(void *memory, float value) {
        loom_context ctx = {};
        ctx.ops = device->ops;
        ctx.device = device.get();
        loom_fill a = {loom_view_2d(memory, LOOM_F32, 1, 64), value};
        device->ops->fill(&ctx, &a);
    }
    void *allocate(size_t bytes) {
        void *memory = nullptr;
        require([&](loom_error *error) { return device->allocate(device.get(), &memory, bytes, error); });
        return memory;
    }
    float first(const void *memory) {
        float value = 0;
        device->copy(device.get(), NULL, &value, memory, sizeof value, LOOM_DEVICE_TO_HOST);
        require([&](loom_error *error) { return device->synchronize(device.get(), NULL, error); });
        return value;
    }
};

TEST_F(CudaDevice, SaysWhatItIs) {
    EXPECT_STREQ(device->name, "cuda (emulated)");
    EXPECT_NE(std::string(device->description).find("compute capability"), std::string::npos);
    EXPECT_FALSE(device->host_memory);
}

TEST_F(CudaDevice, RunsAnOpAndCopiesItBack) {
    void *memory = allocate(256);
    fill(memory, 3);
    EXPECT_EQ(first(memory), 3);
    device->release(device.get(), memory, 256);
}

TEST_F(CudaDevice, AGraphRunsAgainAndReadsMemoryAsItIs) {
    void *from = allocate(256), *to = allocate(256);
    fill(from, 1);
    require([&](loom_error *error) { return device->synchronize(device.get(), NULL, error); });
    require([&](loom_error *error) { return device->graph_begin(device.get(), error); });
    device->copy(device.get(), NULL, to, from, 256, LOOM_DEVICE_TO_DEVICE);
    loom_device_graph *graph = nullptr;
    require([&](loom_error *error) { return device->graph_end(device.get(), &graph, error); });
    for (const float value : {5.0f, 6.0f}) {
        fill(from, value);
        device->graph_launch(device.get(), graph);
        EXPECT_EQ(first(to), value);
    }
    device->graph_close(device.get(), graph);
    device->release(device.get(), from, 256);
    device->release(device.get(), to, 256);
}

/* Under some order of the streams, a copy that is not made to wait comes before what it should copy. */
TEST_F(CudaDevice, OrderMakesAStreamWait) {
    loom_stream *other = nullptr;
    require([&](loom_error *error) { return device->stream_open(device.get(), &other, error); });
    void *from = allocate(256), *to = allocate(256);
    int wrong_without = 0;
    for (int seed = 0; seed < 16; seed++) {
        emulation_set_schedule(("random:" + std::to_string(seed)).c_str());
        for (const bool ordered : {true, false}) {
            fill(from, 0);
            fill(to, -1);
            require([&](loom_error *error) { return device->synchronize(device.get(), NULL, error); });
            fill(from, 7);
            if (ordered) device->stream_wait_stream(device.get(), other, NULL);
            device->copy(device.get(), other, to, from, 256, LOOM_DEVICE_TO_DEVICE);
            require([&](loom_error *error) {
                return device->synchronize(device.get(), other, error) &&
                       device->synchronize(device.get(), NULL, error);
            });
            if (ordered) {
                EXPECT_EQ(first(to), 7) << seed;
            } else {
                wrong_without += first(to) != 7;
            }
        }
    }
    EXPECT_GT(wrong_without, 0) << "the emulation does not show what is missing";
    emulation_set_schedule("order");
    device->stream_close(device.get(), other);
    device->release(device.get(), from, 256);
    device->release(device.get(), to, 256);
}

TEST_F(CudaDevice, TimesWhatRuns) {
    void *memory = allocate(256);
    double seconds = -1;
    device->timer_start(device.get());
    fill(memory, 1);
    require([&](loom_error *error) { return device->timer_stop(device.get(), &seconds, error); });
    EXPECT_GE(seconds, 0);
    device->release(device.get(), memory, 256);
}

TEST_F(CudaDevice, TooMuchMemoryIsRefusedInOneLine) {
    void *memory = nullptr;
    refusal([&](loom_error *error) { return device->allocate(device.get(), &memory, (size_t)1 << 60, error); },
            {"memory", "MiB"});
    EXPECT_EQ(memory, nullptr);
}

TEST_F(CudaDevice, WhatAnOpDoesNotTakeIsRefused) {
    const char *why = nullptr;
    loom_attention_forward a = {};
    a.q = a.out = loom_view_4d(NULL, LOOM_F32, 1, 4, 1, 12);
    a.k = a.v = loom_view_4d(NULL, LOOM_F32, 1, 4, 1, 12);
    a.lse = loom_view_3d(NULL, LOOM_F32, 1, 1, 4);
    EXPECT_FALSE(device->ops->supports(device.get(), LOOM_OP_attention_forward, &a, &why));
    ASSERT_NE(why, nullptr);
    EXPECT_NE(std::string(why).find("8"), std::string::npos) << why;
}

/* With so many GPUs for as long as it lives; the calling thread's device is the first again afterwards. */
struct Gpus {
    explicit Gpus(int count) {
        setenv("LOOM_EMULATION_GPUS", std::to_string(count).c_str(), 1);
    }
    ~Gpus() {
        cudaSetDevice(0);
        unsetenv("LOOM_EMULATION_GPUS");
    }
};

Device open_rank(int local_rank, int local_size) {
    loom_device *device = nullptr;
    loom_device_options options = {};
    options.threads = 1;
    options.local_rank = local_rank;
    options.local_size = local_size;
    require([&](loom_error *error) { return loom_device_open(&device, "cuda", &options, error); });
    return Device(device, loom_device_close);
}

TEST(CudaRanks, TakeGpusInTurnAndSaySo) {
    const Gpus gpus(2);
    for (int rank = 0; rank < 5; rank++) {
        const Device device = open_rank(rank, 5);
        int current = -1;
        ASSERT_EQ(cudaGetDevice(&current), cudaSuccess);
        EXPECT_EQ(current, rank % 2);
        const std::string which = "GPU " + std::to_string(rank % 2 + 1) + " of 2: ";
        EXPECT_EQ(std::string(device->description).rfind(which, 0), 0u) << device->description;
    }
}

/* Another thread's calls are for the first GPU until it says otherwise: waiting for an event says it. */
TEST(CudaRanks, ASecondThreadCanWaitAndCopyOnAGpuThatIsNotTheFirst) {
    const Gpus gpus(2);
    const Device device = open_rank(1, 2);
    loom_event *event = nullptr;
    loom_stream *stream = nullptr;
    void *memory = nullptr;
    float value = 0;
    require([&](loom_error *error) {
        return device->event_open(device.get(), &event, error) && device->stream_open(device.get(), &stream, error) &&
               device->allocate(device.get(), &memory, sizeof value, error);
    });
    loom_context ctx = {};
    ctx.ops = device->ops;
    ctx.device = device.get();
    const loom_fill fill = {loom_view_2d(memory, LOOM_F32, 1, 1), 9};
    device->ops->fill(&ctx, &fill);
    device->event_record(device.get(), event, NULL);
    int current = -1;
    std::thread([&] {
        require([&](loom_error *error) { return device->event_synchronize(device.get(), event, error); });
        cudaGetDevice(&current);
        device->copy(device.get(), stream, &value, memory, sizeof value, LOOM_DEVICE_TO_HOST);
        require([&](loom_error *error) { return device->synchronize(device.get(), stream, error); });
    }).join();
    EXPECT_EQ(current, 1);
    EXPECT_EQ(value, 9);
    device->release(device.get(), memory, sizeof value);
    device->stream_close(device.get(), stream);
    device->event_close(device.get(), event);
}

/* Three ranks on two GPUs: two share one, and the third plans as they do. Memory is found free anew at each question:
 * other programs take and give some. Each rank has a reserve of 1 GiB, which is no part of what is shared. */
TEST(CudaRanks, ThatShareAGpuShareItsMemory) {
    const Gpus gpus(2);
    const double reserve = 0x1p30;
    const auto part = [&](const Device &device) { return (double)device->available(device.get()) + reserve; };
    const auto of_host = [](const Device &device) { return (double)device->available_host(device.get()); };
    const Device alone = open_rank(0, 1), own = open_rank(1, 2), shared = open_rank(2, 3);
    if (!shared->available(shared.get())) GTEST_SKIP() << "too little memory is free for a rank to have a part";
    EXPECT_NEAR(part(own) / part(alone), 1, 0.2);
    EXPECT_NEAR(part(shared) / part(alone), 0.5, 0.1);
    EXPECT_NEAR(of_host(own) / of_host(alone), 0.5, 0.1);
    EXPECT_NEAR(of_host(shared) / of_host(alone), 1 / 3.0, 0.07);
}

/* An emulated GPU is not what a user means by "auto". */
TEST_F(CudaDevice, AutoDoesNotTakeTheEmulation) {
    EXPECT_STREQ(open_device("auto")->name, "cpu");
}

} // namespace
