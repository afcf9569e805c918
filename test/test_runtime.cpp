/* The emulated CUDA runtime: what it promises as CUDA does, and that it shows the mistakes it is there to show. */
#include "support_cuda.h"

#include <cmath>
#include <cstring>
#include <thread>

namespace {

using namespace runtime;

/* -------------------------------------------------------------------------------------------------------------- streams */

class Streams : public Runtime {};

TEST_F(Streams, RunOnlyWhenTheHostWaits) {
    Stream stream;
    Array x(1, 1);
    OK(launch(stream, "store", store, x, 2.0f));
    EXPECT_EQ(*x, 1) << "device memory is host memory here: nothing may have happened yet";
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(*x, 2);
}

TEST_F(Streams, RunInOrderEach) {
    const int right = times_under_all_schedules(SEEDS, [] {
        Stream stream;
        Array x(1);
        for (int i = 1; i <= 8; i++) {
            works(launch(stream, "store", store, x, (float)i));
            works(launch(stream, "add_to", add_to, x, 0.5f));
        }
        works(cudaStreamSynchronize(stream));
        return x.first() == 8.5f;
    });
    EXPECT_EQ(right, SCHEDULES);
}

/* A copy stream fills what the other one reads, with or without an event between them. */
static bool reader_sees_writer(bool with_event) {
    Stream writer, reader;
    Event written(cudaEventDisableTiming);
    Array x(1, 1), y(1, 0);
    works(launch(writer, "store", store, x, 2.0f));
    works(cudaEventRecord(written, writer));
    if (with_event) works(cudaStreamWaitEvent(reader, written));
    works(launch(reader, "copy_value", copy_value, y, x));
    works(cudaStreamSynchronize(reader));
    works(cudaStreamSynchronize(writer));
    return y.first() == 2;
}

TEST_F(Streams, WaitForAnEventUnderEverySchedule) {
    EXPECT_EQ(times_under_all_schedules(SEEDS, [] { return reader_sees_writer(true); }), SCHEDULES);
}

TEST_F(Streams, AMissingWaitIsCaught) {
    const int right = times_under_all_schedules(SEEDS, [] { return reader_sees_writer(false); });
    EXPECT_GT(right, 0) << "a GPU would often get away with it: so does the schedule in order";
    EXPECT_LT(right, SCHEDULES - SEEDS / 4) << "random schedules must show it";
    emulation_set_schedule("reverse");
    EXPECT_FALSE(reader_sees_writer(false));
}

/* The other mistake with two streams: what is still being read is overwritten. */
TEST_F(Streams, AMissingWaitBeforeOverwritingIsCaught) {
    const int right = times_under_all_schedules(SEEDS, [] {
        Stream reader, writer;
        Array x(1, 1), y(1, 0);
        works(launch(reader, "copy_value", copy_value, y, x));
        works(launch(writer, "store", store, x, 2.0f));
        works(cudaStreamSynchronize(writer));
        works(cudaStreamSynchronize(reader));
        return y.first() == 1;
    });
    EXPECT_GT(right, 0);
    EXPECT_LT(right, SCHEDULES - SEEDS / 4);
}

/* A wait refers to the event as it was recorded last before it: an event may be used again at once. */
TEST_F(Streams, AWaitIsForTheRecordBeforeIt) {
    const int right = times_under_all_schedules(SEEDS, [] {
        Stream first, second, third;
        Event event;
        Array x(1), y(1), z(1);
        works(launch(first, "store", store, x, 1.0f));
        works(cudaEventRecord(event, first));
        works(cudaStreamWaitEvent(second, event));
        works(launch(second, "copy_value", copy_value, y, x));
        works(cudaEventRecord(event, second));
        works(cudaStreamWaitEvent(third, event));
        works(launch(third, "copy_value", copy_value, z, y));
        works(cudaStreamSynchronize(third));
        return z.first() == 1;
    });
    EXPECT_EQ(right, SCHEDULES);
}

TEST_F(Streams, TheLegacyStreamAndBlockingStreamsWaitForEachOther) {
    const auto legacy_sees = [](unsigned flags) {
        Stream stream(flags);
        Array x(1, 1), y(1, 0);
        works(launch(stream, "store", store, x, 2.0f));
        works(launch(nullptr, "copy_value", copy_value, y, x));
        works(launch(stream, "store", store, x, 3.0f));
        works(cudaDeviceSynchronize());
        return y.first() == 2;
    };
    EXPECT_EQ(times_under_all_schedules(SEEDS, [&] { return legacy_sees(cudaStreamDefault); }), SCHEDULES);
    EXPECT_LT(times_under_all_schedules(SEEDS, [&] { return legacy_sees(cudaStreamNonBlocking); }), SCHEDULES - 5);
}

TEST_F(Streams, HoldAnyAmountOfWork) {
    Stream stream;
    Array x(1);
    for (int i = 0; i < 10000; i++) OK(launch(stream, "add_to", add_to, x, 1.0f));
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(x.first(), 10000);
}

TEST_F(Streams, AskingGoesOn) {
    Stream stream;
    Event event;
    Array x(1);
    for (int i = 0; i < 3; i++) OK(launch(stream, "add_to", add_to, x, 1.0f));
    OK(cudaEventRecord(event, stream));
    EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
    int asked = 0;
    while (cudaEventQuery(event) == cudaErrorNotReady) ASSERT_LT(++asked, 100);
    EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
    EXPECT_EQ(x.first(), 3);
}

TEST_F(Streams, EventsTellTheTime) {
    Stream stream;
    Event start, end, untimed(cudaEventDisableTiming);
    float ms = -1;
    EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaErrorInvalidResourceHandle) << "not recorded";
    Array x(1);
    OK(cudaEventRecord(start, stream));
    OK(launch(stream, "store", store, x, 1.0f));
    OK(cudaEventRecord(end, stream));
    EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaErrorNotReady);
    OK(cudaEventSynchronize(end));
    OK(cudaEventElapsedTime(&ms, start, end));
    EXPECT_GT(ms, 0);
    EXPECT_LT(ms, 10000);
    OK(cudaEventRecord(untimed, stream));
    OK(cudaEventSynchronize(untimed));
    EXPECT_EQ(cudaEventElapsedTime(&ms, start, untimed), cudaErrorInvalidResourceHandle);
}

TEST_F(Streams, HandlesThatAreNoneAreRefused) {
    Array x(1);
    cudaStream_t gone;
    OK(cudaStreamCreate(&gone));
    OK(cudaStreamDestroy(gone));
    EXPECT_EQ(cudaStreamSynchronize(gone), cudaErrorInvalidResourceHandle);
    EXPECT_EQ(launch(gone, "store", store, x, 1.0f), cudaErrorInvalidResourceHandle);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "told once";
}

/* --------------------------------------------------------------------------------------------------------------- copies */

class Copies : public Runtime {
  protected:
    void SetUp() override {
        Runtime::SetUp();
        works(cudaHostAlloc(reinterpret_cast<void **>(&pinned), sizeof *pinned, cudaHostAllocDefault));
    }
    void TearDown() override {
        cudaFreeHost(pinned);
        Runtime::TearDown();
    }
    float *pinned = nullptr;
    Stream stream;
};

TEST_F(Copies, FromPinnedMemoryReadItWhenTheirTurnComes) {
    Array x(1);
    *pinned = 1;
    OK(cudaMemcpyAsync(x, pinned, sizeof *pinned, cudaMemcpyHostToDevice, stream));
    *pinned = 2; /* the mistake */
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(x.first(), 2);
}

TEST_F(Copies, FromOtherMemoryReadItAtTheCall) {
    Array x(1);
    float value = 1;
    OK(cudaMemcpyAsync(x, &value, sizeof value, cudaMemcpyHostToDevice, stream));
    value = 2;
    EXPECT_EQ(*x, 0) << "it has not run";
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(x.first(), 1);
}

/* As CUDA's manual says of cudaMemcpy: the host's memory is free again, but who reads the device's in another stream
 * must wait. */
TEST_F(Copies, FromOtherMemoryMayStillBeUnderWayWhenCudaMemcpyReturns) {
    Array x(1), y(1);
    const float value = 1;
    OK(cudaMemcpy(x, &value, sizeof value, cudaMemcpyHostToDevice));
    EXPECT_EQ(*x, 0);
    OK(cudaMemcpy(y, x, sizeof value, cudaMemcpyDeviceToDevice));
    EXPECT_EQ(y.first(), 1) << "the legacy stream itself is in order";
}

TEST_F(Copies, IntoPinnedMemoryAreThereAfterWaiting) {
    Array x(1, 5);
    *pinned = 0;
    OK(cudaMemcpyAsync(pinned, x, sizeof *pinned, cudaMemcpyDeviceToHost, stream));
    EXPECT_EQ(*pinned, 0);
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(*pinned, 5);
}

TEST_F(Copies, IntoOtherMemoryAreThereAtTheReturn) {
    Array x(1, 5);
    float value = 0;
    OK(launch(stream, "add_to", add_to, x, 1.0f));
    OK(cudaMemcpyAsync(&value, x, sizeof value, cudaMemcpyDeviceToHost, stream));
    EXPECT_EQ(value, 6);
}

TEST_F(Copies, OnTheDeviceAndFills) {
    Array x(4, 5), y(4, 0);
    OK(cudaMemcpyAsync(y, x, x.bytes(), cudaMemcpyDeviceToDevice, stream));
    OK(cudaMemsetAsync(x, 0, x.bytes() / 2, stream));
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(y.get(), (std::vector<float>{5, 5, 5, 5}));
    EXPECT_EQ(x.get(), (std::vector<float>{0, 0, 5, 5}));
    OK(cudaMemcpyAsync(pinned, y, sizeof *pinned, cudaMemcpyDefault, stream));
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(*pinned, 5) << "the kind follows from the addresses";
}

TEST_F(Copies, BeyondMemoryOrOfTheWrongKindAreRefused) {
    Array x(4), y(4);
    std::vector<float> host(8);
    EXPECT_EQ(cudaMemcpy(x, host.data(), x.bytes() + 1, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(host.data(), x + 1, x.bytes(), cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(host.data(), x, x.bytes(), cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(x, host.data(), x.bytes(), cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(x + 1, x, 8, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue) << "they overlap";
    EXPECT_EQ(cudaMemset(x, 0, x.bytes() + 1), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemset(host.data(), 0, 4), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpyAsync(pinned, x, 2 * sizeof *pinned, cudaMemcpyDeviceToHost, stream), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(x, host.data(), x.bytes(), cudaMemcpyHostToDevice), cudaSuccess);
}

/* --------------------------------------------------------------------------------------------------------------- memory */

class Memory : public Runtime {
  protected:
    void TearDown() override {
        unsetenv("LOOM_EMULATION_MEMORY");
        Runtime::TearDown();
    }
};

TEST_F(Memory, IsFreshAndAlignedAsPromisedAndNoBetter) {
    unsigned char *memory;
    OK(cudaMalloc(reinterpret_cast<void **>(&memory), 100));
    EXPECT_EQ((uintptr_t)memory % 256, 0u);
    EXPECT_NE((uintptr_t)memory % 512, 0u) << "code that needs more must fail";
    for (int i = 0; i < 100; i++) ASSERT_EQ(memory[i], 0xFF);
    OK(cudaFree(memory));
    OK(cudaFree(nullptr));
}

TEST_F(Memory, IsLimited) {
    size_t free_bytes, total;
    void *memory = nullptr, *more;
    setenv("LOOM_EMULATION_MEMORY", "2", 1);
    OK(cudaMemGetInfo(&free_bytes, &total));
    EXPECT_EQ(total, 2u << 20);
    EXPECT_EQ(free_bytes, 2u << 20);
    OK(cudaMalloc(&memory, 1 << 20));
    OK(cudaMemGetInfo(&free_bytes, &total));
    EXPECT_EQ(free_bytes, 1u << 20);
    EXPECT_EQ(cudaMalloc(&more, (1 << 20) + 1), cudaErrorMemoryAllocation);
    EXPECT_EQ(more, nullptr);
    EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    OK(cudaMalloc(&more, 1 << 20));
    OK(cudaFree(more));
    OK(cudaFree(memory));
}

TEST_F(Memory, OnlyWhatWasAllocatedIsFreed) {
    Array x(4);
    EXPECT_EQ(cudaFree(x + 1), cudaErrorInvalidValue);
    EXPECT_EQ(cudaFreeHost(x), cudaErrorInvalidValue);
}

/* Freeing waits for what may use the memory. */
TEST_F(Memory, IsFreedAfterItsUse) {
    Stream stream;
    Array y(1);
    float *x;
    OK(cudaMalloc(reinterpret_cast<void **>(&x), sizeof *x));
    OK(launch(stream, "store", store, x, 3.0f));
    OK(launch(stream, "copy_value", copy_value, y, x));
    OK(cudaFree(x));
    EXPECT_EQ(*y, 3);
}

#ifdef __SANITIZE_ADDRESS__
TEST_F(Memory, AddressSanitizerSeesAnAccessBeyondIt) {
    Array x(4), y(1);
    EXPECT_DEATH(
        {
            launch(nullptr, "beyond", store, x + 4, 1.0f);
            cudaDeviceSynchronize();
        },
        "use-after-poison");
    EXPECT_DEATH(
        {
            launch(nullptr, "beyond", copy_value, y, x - 1);
            cudaDeviceSynchronize();
        },
        "use-after-poison");
}
#else
/* One kernel writes one float outside of a tensor: its name, the place and the allocation are told. */
static std::string failure_of_writing_at(int index) {
    Array before(100), x(4), behind(100);
    works(launch(nullptr, "good", store, x, 1.0f));
    works(launch(nullptr, "bad", store, x + index, 1.0f));
    works(launch(nullptr, "good", store, x, 1.0f));
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    return emulation_last_failure();
}

static void expect_words(const std::string &text, std::initializer_list<const char *> words) {
    for (const char *word : words) EXPECT_NE(text.find(word), std::string::npos) << "'" << text << "' lacks " << word;
}

TEST_F(Memory, AWriteBehindItIsCaught) {
    expect_words(failure_of_writing_at(4), {"kernel bad", "beyond the end", "byte 16", "16 bytes", "cudaMalloc"});
}

TEST_F(Memory, AWriteFarBehindItIsCaught) {
    expect_words(failure_of_writing_at(4 + 1000), {"kernel bad", "beyond the end"});
}

TEST_F(Memory, AWriteBeforeItIsCaught) {
    expect_words(failure_of_writing_at(-1), {"kernel bad", "before the beginning", "byte -4", "16 bytes"});
}

TEST_F(Memory, ReadsOutsideOfItGetNaN) {
    Array x(4), y(1);
    for (const int index : {-1, 4}) {
        OK(launch(nullptr, "reads", copy_value, y, x + index));
        OK(cudaDeviceSynchronize());
        EXPECT_TRUE(std::isnan(y.first())) << index;
    }
}

/* A GPU cannot read the host's memory, which the emulation could. */
struct two_pointers {
    int32_t number;
    const float *from;
    bool flag;
    float *to;
};

static __global__ void copy_between(two_pointers p) {
    *p.to = *p.from;
}

TEST_F(Memory, OfTheHostIsRefusedToKernels) {
    Array x(1);
    std::vector<float> on_heap(1, 3);
    float on_stack = 3, *pinned;
    OK(cudaMallocHost(reinterpret_cast<void **>(&pinned), sizeof *pinned));
    *pinned = 3;
    for (const float *host : {(const float *)on_heap.data(), (const float *)&on_stack}) {
        OK(launch(nullptr, "bad", copy_value, x, host));
        EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
        expect_words(emulation_last_failure(), {"kernel bad", "host memory"});
        emulation_reset();
        OK(launch(nullptr, "bad", copy_between, two_pointers{1, host, true, x}));
        EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
        expect_words(emulation_last_failure(), {"kernel bad", "host memory"});
        emulation_reset();
    }
    OK(launch(nullptr, "good", copy_value, x, (const float *)pinned));
    OK(launch(nullptr, "good", copy_between, two_pointers{1, pinned, true, x}));
    OK(cudaDeviceSynchronize());
    EXPECT_EQ(x.first(), 3);
    OK(cudaFreeHost(pinned));
}

/* -------------------------------------------------------------------------------------------------------------- failures */

class Failures : public Runtime {};

TEST_F(Failures, StayAndStopTheDevice) {
    Array x(4);
    Stream stream;
    OK(launch(stream, "bad", store, x + 4, 1.0f));
    OK(launch(stream, "later", store, x, 7.0f));
    EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess) << "nobody knows yet";
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    EXPECT_EQ(x[0], 0) << "nothing runs after a failure";
    EXPECT_EQ(launch(stream, "more", store, x, 7.0f), cudaErrorLaunchFailure);
    void *memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, 4), cudaErrorLaunchFailure);
    EXPECT_EQ(cudaMemcpy(x, x, 4, cudaMemcpyDeviceToDevice), cudaErrorLaunchFailure);
    EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
    EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure) << "it stays";
    EXPECT_STREQ(cudaGetErrorName(cudaErrorLaunchFailure), "cudaErrorLaunchFailure");
    EXPECT_STREQ(cudaGetErrorString(cudaErrorLaunchFailure), emulation_last_failure());
    emulation_reset();
    EXPECT_STREQ(emulation_last_failure(), "");
    OK(launch(stream, "again", store, x, 8.0f));
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(x[0], 8);
}

TEST_F(Failures, OfTheHostInDeviceMemoryAreSeenToo) {
    Array x(4);
    float *beyond = x + 4;
    *beyond = 1;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    expect_words(emulation_last_failure(), {"beyond the end", "16 bytes"});
}
#endif

/* --------------------------------------------------------------------------------------------------------------- graphs */

class Graphs : public Runtime {
  protected:
    Stream stream;

    /* What `record` puts into the stream, as a graph that can be launched. */
    cudaGraphExec_t capture(const std::function<void()> &record, size_t nodes = SIZE_MAX) {
        cudaGraph_t graph;
        cudaGraphExec_t instance;
        works(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        record();
        works(cudaStreamEndCapture(stream, &graph));
        size_t count = 0;
        works(cudaGraphGetNodes(graph, nullptr, &count));
        if (nodes != SIZE_MAX) {
            EXPECT_EQ(count, nodes);
        }
        works(cudaGraphInstantiate(&instance, graph, 0));
        works(cudaGraphDestroy(graph));
        return instance;
    }

    /* What the call returns in the middle of a capture, which then must have become invalid. */
    void expect_refused(cudaError_t expected, const std::function<cudaError_t()> &call,
                        cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
        Array x(1);
        cudaGraph_t graph;
        cudaStreamCaptureStatus status;
        works(cudaStreamBeginCapture(stream, mode));
        works(launch(stream, "store", store, x, 1.0f));
        EXPECT_EQ(call(), expected);
        works(cudaStreamIsCapturing(stream, &status));
        EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
        EXPECT_EQ(launch(stream, "store", store, x, 1.0f), cudaErrorStreamCaptureInvalidated);
        EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
        EXPECT_EQ(graph, nullptr);
        works(cudaStreamIsCapturing(stream, &status));
        EXPECT_EQ(status, cudaStreamCaptureStatusNone);
        works(launch(stream, "store", store, x, 2.0f));
        works(cudaStreamSynchronize(stream));
        EXPECT_EQ(x.first(), 2);
    }
};

TEST_F(Graphs, RunWhatWasCapturedAtEachLaunchAndNotBefore) {
    Array x(1), y(1, 9);
    cudaGraphExec_t graph = capture(
        [&] {
            works(launch(stream, "add_to", add_to, x, 1.0f));
            works(cudaMemcpyAsync(y, x, x.bytes(), cudaMemcpyDeviceToDevice, stream));
            works(cudaMemsetAsync(x + 0, 0, 0, stream));
        },
        2);
    EXPECT_EQ(x.first(), 0);
    for (int i = 1; i <= 3; i++) {
        OK(cudaGraphLaunch(graph, stream));
        EXPECT_EQ(*y, i == 1 ? 9 : i - 1) << "a launch waits like all work";
        OK(cudaStreamSynchronize(stream));
        EXPECT_EQ(y.first(), i);
    }
    OK(cudaGraphLaunch(graph, stream));
    OK(cudaGraphExecDestroy(graph)); /* while it waits */
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(y.first(), 4);
}

TEST_F(Graphs, KnowTheirNodes) {
    Array x(1);
    cudaGraph_t graph;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    OK(launch(stream, "store", store, x, 1.0f));
    OK(cudaMemsetAsync(x, 0, x.bytes(), stream));
    OK(cudaStreamEndCapture(stream, &graph));
    cudaGraphNode_t nodes[3];
    size_t count = 3;
    OK(cudaGraphGetNodes(graph, nodes, &count));
    ASSERT_EQ(count, 2u);
    cudaGraphNodeType type;
    OK(cudaGraphNodeGetType(nodes[0], &type));
    EXPECT_EQ(type, cudaGraphNodeTypeKernel);
    OK(cudaGraphNodeGetType(nodes[1], &type));
    EXPECT_EQ(type, cudaGraphNodeTypeMemset);
    OK(cudaGraphDestroy(graph));
}

/* Why the learning rate is read from device memory: what is passed by value is what it was at the capture. */
TEST_F(Graphs, AStaleCapturedScalarIsSeen) {
    float learning_rate = 0.5f;
    Array by_value(1, 1), by_memory(1, 1), in_memory(1, learning_rate);
    cudaGraphExec_t graph = capture([&] {
        works(launch(stream, "add_to", add_to, by_value, -learning_rate));
        works(launch(stream, "scale_by", scale_by, by_memory, in_memory));
    });
    learning_rate = 0.25f;
    in_memory.set(learning_rate);
    OK(cudaGraphLaunch(graph, stream));
    OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(by_value.first(), 0.5f) << "1 - 0.5, not 1 - 0.25";
    EXPECT_EQ(by_memory.first(), 0.25f);
    OK(cudaGraphExecDestroy(graph));
}

TEST_F(Graphs, ReadPinnedMemoryAtEachLaunch) {
    float *pinned;
    Array x(1);
    OK(cudaMallocHost(reinterpret_cast<void **>(&pinned), sizeof *pinned));
    cudaGraphExec_t graph = capture(
        [&] { works(cudaMemcpyAsync(x, pinned, sizeof *pinned, cudaMemcpyHostToDevice, stream)); });
    for (const float value : {3.0f, 4.0f}) {
        *pinned = value;
        OK(cudaGraphLaunch(graph, stream));
        OK(cudaStreamSynchronize(stream));
        EXPECT_EQ(x.first(), value);
    }
    OK(cudaGraphExecDestroy(graph));
    OK(cudaFreeHost(pinned));
}

/* x = 1; then beside each other y = x and x's copy in the other stream z = x + 10; joined: w = y. */
static void fork_and_join(cudaStream_t stream, cudaStream_t other, float *x, float *y, float *z, bool fork, bool join) {
    Event forked, joined;
    works(launch(stream, "store", store, x, 1.0f));
    works(cudaEventRecord(forked, stream));
    if (fork) works(cudaStreamWaitEvent(other, forked));
    works(launch(other, "copy_value", copy_value, y, x));
    works(cudaEventRecord(joined, other));
    if (join) works(cudaStreamWaitEvent(stream, joined));
    works(launch(stream, "copy_value", copy_value, z, y));
}

TEST_F(Graphs, ForkAndJoinByEvents) {
    Stream other;
    Array x(1), y(1), z(1);
    cudaGraphExec_t graph = capture([&] { fork_and_join(stream, other, x, y, z, true, true); }, 3);
    const int right = times_under_all_schedules(SEEDS, [&] {
        for (Array *a : {&x, &y, &z}) a->set(0);
        works(cudaGraphLaunch(graph, stream));
        works(cudaStreamSynchronize(stream));
        return z.first() == 1;
    });
    EXPECT_EQ(right, SCHEDULES);
    OK(cudaGraphExecDestroy(graph));
    works(launch(other, "store", store, y, 5.0f)); /* the other stream is an ordinary one again */
    OK(cudaStreamSynchronize(other));
    EXPECT_EQ(y.first(), 5);
}

/* Branches of a graph that nothing orders run in any order: the join comes after the reader. */
TEST_F(Graphs, AMissingEdgeIsCaught) {
    Stream other;
    Array x(1), y(1), z(1);
    cudaGraphExec_t graph = capture([&] {
        fork_and_join(stream, other, x, y, z, true, false);
        Event late;
        works(cudaEventRecord(late, other));
        works(cudaStreamWaitEvent(stream, late));
        works(launch(stream, "add_to", add_to, z, 0.0f));
    });
    const int right = times_under_all_schedules(SEEDS, [&] {
        for (Array *a : {&x, &y, &z}) a->set(0);
        works(cudaGraphLaunch(graph, stream));
        works(cudaStreamSynchronize(stream));
        return z.first() == 1;
    });
    EXPECT_GT(right, 0);
    EXPECT_LT(right, SCHEDULES - SEEDS / 4);
    OK(cudaGraphExecDestroy(graph));
}

TEST_F(Graphs, LaunchesOfOneGraphFollowEachOther) {
    Stream other;
    Array x(1);
    cudaGraphExec_t graph = capture([&] {
        works(launch(stream, "add_to", add_to, x, 1.0f));
        works(launch(stream, "scale_by", scale_by, x, x));
    });
    const int right = times_under_all_schedules(SEEDS, [&] {
        x.set(1);
        works(cudaGraphLaunch(graph, stream));
        works(cudaGraphLaunch(graph, other));
        works(cudaStreamSynchronize(other));
        return x.first() == 25; /* (1 + 1)^2 = 4, (4 + 1)^2 = 25 */
    });
    EXPECT_EQ(right, SCHEDULES);
    OK(cudaGraphExecDestroy(graph));
}

TEST_F(Graphs, MemoryThatIsGoneIsSeen) {
    Array x(1);
    float *y;
    OK(cudaMalloc(reinterpret_cast<void **>(&y), sizeof *y));
    cudaGraphExec_t graph = capture([&] { works(cudaMemcpyAsync(x, y, sizeof *y, cudaMemcpyDeviceToDevice, stream)); });
    OK(cudaFree(y));
    OK(cudaGraphLaunch(graph, stream));
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    EXPECT_NE(std::string(emulation_last_failure()).find("freed"), std::string::npos) << emulation_last_failure();
    emulation_reset();
    OK(cudaGraphExecDestroy(graph));
}

/* ------------------------------------------------------------------------------------ what a capture forbids */

TEST_F(Graphs, WaitingIsRefused) {
    Event event;
    expect_refused(cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamSynchronize(stream); });
    expect_refused(cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamQuery(stream); });
    expect_refused(cudaErrorStreamCaptureUnsupported, [&] { return cudaDeviceSynchronize(); });
    expect_refused(cudaErrorCapturedEvent, [&] {
        works(cudaEventRecord(event, stream));
        return cudaEventSynchronize(event);
    });
    expect_refused(cudaErrorCapturedEvent, [&] {
        works(cudaEventRecord(event, stream));
        return cudaEventQuery(event);
    });
}

/* CUDA calls these potentially unsafe: mode Relaxed alone lets a capturing thread do them. */
TEST_F(Graphs, AllocatingIsRefused) {
    void *memory = nullptr;
    Array x(1);
    float host = 0;
    for (const cudaStreamCaptureMode mode : {cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeGlobal}) {
        expect_refused(
            cudaErrorStreamCaptureUnsupported, [&] { return cudaMalloc(&memory, 16); }, mode);
        expect_refused(
            cudaErrorStreamCaptureUnsupported, [&] { return cudaHostAlloc(&memory, 16, cudaHostAllocDefault); }, mode);
        expect_refused(
            cudaErrorStreamCaptureUnsupported, [&] { return cudaFree(x); }, mode);
        expect_refused(
            cudaErrorStreamCaptureUnsupported,
            [&] { return cudaMemcpy(x, &host, sizeof host, cudaMemcpyHostToDevice); }, mode);
    }
    cudaGraph_t graph;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    OK(cudaMalloc(&memory, 16));
    OK(cudaFree(memory));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphDestroy(graph));
}

TEST_F(Graphs, AllocatingInAnotherThreadDependsOnTheMode) {
    for (const cudaStreamCaptureMode mode : {cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeGlobal}) {
        cudaGraph_t graph = nullptr;
        OK(cudaStreamBeginCapture(stream, mode));
        cudaError_t elsewhere = cudaSuccess;
        std::thread([&] {
            void *memory = nullptr;
            elsewhere = cudaMalloc(&memory, 16);
            if (elsewhere == cudaSuccess) cudaFree(memory);
        }).join();
        const bool global = mode == cudaStreamCaptureModeGlobal;
        EXPECT_EQ(elsewhere, global ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
        EXPECT_EQ(cudaStreamEndCapture(stream, &graph), global ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
        if (graph) {
            OK(cudaGraphDestroy(graph));
        }
    }
}

TEST_F(Graphs, TheLegacyStreamIsRefusedBesideABlockingStream) {
    Stream blocking(cudaStreamDefault);
    Array x(1);
    cudaGraph_t graph;
    EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed), cudaErrorStreamCaptureUnsupported);
    OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
    EXPECT_EQ(launch(nullptr, "store", store, x, 1.0f), cudaErrorStreamCaptureImplicit);
    EXPECT_EQ(cudaStreamEndCapture(blocking, &graph), cudaErrorStreamCaptureInvalidated);
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    EXPECT_EQ(launch(nullptr, "store", store, x, 1.0f), cudaSuccess);
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphDestroy(graph));
}

TEST_F(Graphs, MemoryThatIsNotPinnedIsRefused) {
    Array x(1);
    float host = 0;
    expect_refused(cudaErrorStreamCaptureUnsupported,
                   [&] { return cudaMemcpyAsync(x, &host, sizeof host, cudaMemcpyHostToDevice, stream); });
    expect_refused(cudaErrorStreamCaptureUnsupported,
                   [&] { return cudaMemcpyAsync(&host, x, sizeof host, cudaMemcpyDeviceToHost, stream); });
}

TEST_F(Graphs, WaitingForWhatIsNotCapturedIsRefused) {
    Stream other;
    Event event;
    Array x(1);
    OK(launch(other, "store", store, x, 1.0f));
    OK(cudaEventRecord(event, other));
    expect_refused(cudaErrorStreamCaptureIsolation, [&] { return cudaStreamWaitEvent(stream, event); });
}

TEST_F(Graphs, TwoCapturesDoNotMix) {
    Stream other;
    Event event;
    cudaGraph_t graph;
    OK(cudaStreamBeginCapture(other, cudaStreamCaptureModeRelaxed)); /* the other one allocates */
    OK(cudaEventRecord(event, other));
    expect_refused(cudaErrorStreamCaptureMerge, [&] { return cudaStreamWaitEvent(stream, event); });
    EXPECT_EQ(cudaStreamEndCapture(other, &graph), cudaErrorStreamCaptureInvalidated);
}

TEST_F(Graphs, ABranchThatIsNotJoinedIsRefused) {
    Stream other;
    Event event;
    Array x(1);
    cudaGraph_t graph;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    OK(cudaEventRecord(event, stream));
    OK(cudaStreamWaitEvent(other, event));
    OK(launch(other, "store", store, x, 1.0f));
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureUnjoined);
    EXPECT_EQ(graph, nullptr);
}

TEST_F(Graphs, ACaptureEndsWhereAndByWhomItWasBegun) {
    Stream other;
    Event event;
    cudaGraph_t graph;
    EXPECT_NE(cudaStreamEndCapture(stream, &graph), cudaSuccess) << "none was begun";
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    OK(cudaEventRecord(event, stream));
    OK(cudaStreamWaitEvent(other, event));
    EXPECT_EQ(cudaStreamEndCapture(other, &graph), cudaErrorStreamCaptureUnmatched);
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cudaError_t elsewhere = cudaSuccess;
    std::thread([&] { elsewhere = cudaStreamEndCapture(stream, &graph); }).join();
    EXPECT_EQ(elsewhere, cudaErrorStreamCaptureWrongThread);
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphDestroy(graph));
}

/* --------------------------------------------------------------------------------------------------------------- device */

class TheDevice : public Runtime {
  protected:
    void TearDown() override {
        unsetenv("LOOM_EMULATION_CAPABILITY");
        Runtime::TearDown();
    }
};

TEST_F(TheDevice, SaysThatItIsEmulated) {
    int count = 0;
    cudaDeviceProp properties;
    OK(cudaGetDeviceCount(&count));
    EXPECT_EQ(count, 1);
    OK(cudaGetDeviceProperties(&properties, 0));
    EXPECT_EQ(std::string(properties.name).find("emulated"), 0u);
    EXPECT_GT(properties.totalGlobalMem, 1u << 20);
    EXPECT_EQ(cudaGetDeviceProperties(&properties, 1), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
}

TEST_F(TheDevice, HasTheCapabilityAskedFor) {
    for (const auto &[text, major, minor, shared] :
         {std::tuple("8.0", 8, 0, 163), {"8.6", 8, 6, 99}, {"9.0", 9, 0, 227}, {"12.0", 12, 0, 99}}) {
        setenv("LOOM_EMULATION_CAPABILITY", text, 1);
        int value;
        OK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0));
        EXPECT_EQ(value, major);
        OK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMinor, 0));
        EXPECT_EQ(value, minor);
        OK(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
        EXPECT_EQ(value, shared * 1024);
        const void *kernel = reinterpret_cast<const void *>(store);
        EXPECT_EQ(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared * 1024),
                  cudaSuccess);
        EXPECT_EQ(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared * 1024 + 1),
                  cudaErrorInvalidValue);
        cudaGetLastError();
    }
}

/* What CUDA refuses, and what one GPU does not show: a kernel for another GPU's stream. Copies it takes. */
TEST_F(TheDevice, MayBeOneOfSeveral) {
    setenv("LOOM_EMULATION_GPUS", "3", 1);
    int count = 0, current = -1;
    OK(cudaGetDeviceCount(&count));
    EXPECT_EQ(count, 3);
    EXPECT_EQ(cudaSetDevice(3), cudaErrorInvalidDevice);
    OK(cudaSetDevice(2));
    OK(cudaGetDevice(&current));
    EXPECT_EQ(current, 2);
    std::thread([&] { cudaGetDevice(&current); }).join();
    EXPECT_EQ(current, 0) << "each thread has its own";
    {
        Stream stream;
        Array x(1), y(1, 3);
        OK(launch(stream, "store", store, x, 1.0f));
        OK(cudaSetDevice(0));
        EXPECT_EQ(launch(stream, "store", store, x, 2.0f), cudaErrorInvalidResourceHandle);
        OK(cudaStreamSynchronize(stream));
        EXPECT_EQ(*x, 1);
        OK(cudaMemcpyAsync(x, y, sizeof(float), cudaMemcpyDeviceToDevice, stream));
        OK(cudaStreamSynchronize(stream));
        EXPECT_EQ(*x, 3);
    }
    cudaGetLastError();
    unsetenv("LOOM_EMULATION_GPUS");
}

} // namespace
