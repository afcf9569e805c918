#include "cuda/device.h"

#include "base/host_memory.h"
#include "cuda/attention_cudnn.h"
#include "cuda/cublaslt_api.h"
#include "cuda/cuda.h"
#include "cuda/matmul.h"
#include "cuda/peak.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __has_include(<nvtx3/nvToolsExt.h>)
#    include <nvtx3/nvToolsExt.h>
#else
#    define nvtxRangePushA(name) ((void)(name))
#    define nvtxRangePop()       ((void)0)
#endif

enum { LEAST_CAPABILITY = 80 };

/* --------------------------------------------------------------------------------------------------------------- errors */

/* A call that cannot report: its failure waits for `synchronize`. */
static void check_later(loom_cuda *cuda, cudaError_t result, const char *call) {
    if (result != cudaSuccess && !cuda->failure[0])
        snprintf(cuda->failure, sizeof cuda->failure, "%s: %s (%s)", call, cudaGetErrorString(result),
                 cudaGetErrorName(result));
}

/* The failure kept so far is reported once. */
static bool tell_failure(loom_cuda *cuda, loom_error *error) {
    if (!cuda->failure[0]) return true;
    loom_fail(error, "device %s: %s", cuda->device.name, cuda->failure);
    cuda->failure[0] = 0;
    return false;
}

/* --------------------------------------------------------------------------------------------------------------- memory */

/* What the driver has free. */
static size_t free_bytes(void) {
    size_t found = 0, total;
    return cudaMemGetInfo(&found, &total) == cudaSuccess ? found : 0;
}

static bool allocate(loom_device *device, void **memory, size_t bytes, loom_error *error) {
    (void)device;
    *memory = NULL;
    const cudaError_t result = cudaMalloc(memory, bytes ? bytes : 1);
    if (result == cudaSuccess) return true;
    cudaGetLastError();
    if (result != cudaErrorMemoryAllocation) return loom_cuda_ok(result, "cudaMalloc", error);
    return loom_fail(error, "not enough memory on the GPU: %.1f MiB are needed and %.1f MiB are free",
                     (double)bytes / 0x1p20, (double)free_bytes() / 0x1p20);
}

static void release(loom_device *device, void *memory, size_t bytes) {
    (void)bytes;
    if (memory) check_later(loom_cuda_of(device), cudaFree(memory), "cudaFree");
}

static bool allocate_host(loom_device *device, void **memory, size_t bytes, loom_error *error) {
    (void)device;
    *memory = NULL;
    const cudaError_t result = cudaHostAlloc(memory, bytes ? bytes : 1, cudaHostAllocDefault);
    if (result == cudaSuccess) return true;
    cudaGetLastError();
    if (result != cudaErrorMemoryAllocation) return loom_cuda_ok(result, "cudaHostAlloc", error);
    return loom_fail(error, "not enough host memory: %.1f MiB cannot be pinned and %.1f MiB are free",
                     (double)bytes / 0x1p20, (double)loom_memory_available() / 0x1p20);
}

static void release_host(loom_device *device, void *memory, size_t bytes) {
    (void)bytes;
    if (memory) check_later(loom_cuda_of(device), cudaFreeHost(memory), "cudaFreeHost");
}

static void copy(loom_device *device, loom_stream *stream, void *to, const void *from, size_t bytes,
                 loom_copy_kind kind) {
    static const enum cudaMemcpyKind kinds[] = {[LOOM_HOST_TO_DEVICE] = cudaMemcpyHostToDevice,
                                                [LOOM_DEVICE_TO_HOST] = cudaMemcpyDeviceToHost,
                                                [LOOM_DEVICE_TO_DEVICE] = cudaMemcpyDeviceToDevice};
    loom_cuda *cuda = loom_cuda_of(device);
    if (bytes == 0) return;
    check_later(cuda, cudaMemcpyAsync(to, from, bytes, kinds[kind], loom_cuda_stream_of(cuda, stream)),
                "cudaMemcpyAsync");
}

/* A kernel that does what it must not fails later, in whatever call comes then. */
static bool synchronize(loom_device *device, loom_stream *stream, loom_error *error) {
    loom_cuda *cuda = loom_cuda_of(device);
    const cudaError_t result = cudaStreamSynchronize(loom_cuda_stream_of(cuda, stream));
    check_later(cuda, result,
                result == cudaErrorIllegalAddress
                    ? "a kernel (with CUDA_LAUNCH_BLOCKING=1 and --cuda-graph off the error names it)"
                    : "cudaStreamSynchronize");
    return tell_failure(cuda, error);
}

/* What libraries will still take for their code, and the room in which matrix products are measured at the start: in
 * each rank. */
static const size_t reserve = (size_t)1 << 30;

/* This rank's part of what the driver has free, but for that. */
static size_t available(const loom_device *device) {
    const size_t part = free_bytes() / (size_t)loom_cuda_of(device)->sharers;
    return part > reserve ? part - reserve : 0;
}

/* Before anything is allocated: what contexts (and whatever else runs on the GPU) have taken, and the reserve. */
static bool find_reserved(loom_cuda *cuda, loom_error *error) {
    size_t found, total;
    if (!loom_cuda_ok(cudaMemGetInfo(&found, &total), "cudaMemGetInfo", error)) return false;
    cuda->device.reserved = (total - found) / (size_t)cuda->sharers + reserve;
    return true;
}

/* Pinned pages are never given to anyone else: an eighth of what is free stays for all that the machine does beside.
 * The rest is shared by the machine's ranks. */
static size_t available_host(const loom_device *device) {
    const size_t found = loom_memory_available();
    return (found - found / 8) / (size_t)loom_cuda_of(device)->ranks;
}

/* -------------------------------------------------------------------------------------------------------------- streams */

static bool stream_open(loom_device *device, loom_stream **stream, loom_error *error) {
    (void)device;
    cudaStream_t opened;
    if (!loom_cuda_ok(cudaStreamCreateWithFlags(&opened, cudaStreamNonBlocking), "cudaStreamCreateWithFlags", error))
        return false;
    *stream = (loom_stream *)opened;
    return true;
}

static void stream_close(loom_device *device, loom_stream *stream) {
    if (stream) check_later(loom_cuda_of(device), cudaStreamDestroy((cudaStream_t)stream), "cudaStreamDestroy");
}

/* A wait refers to the event as it was recorded last before it, so that one event serves all. */
static void stream_wait_stream(loom_device *device, loom_stream *later, loom_stream *earlier) {
    loom_cuda *cuda = loom_cuda_of(device);
    check_later(cuda, cudaEventRecord(cuda->ordered, loom_cuda_stream_of(cuda, earlier)), "cudaEventRecord");
    check_later(cuda, cudaStreamWaitEvent(loom_cuda_stream_of(cuda, later), cuda->ordered, 0), "cudaStreamWaitEvent");
}

static bool event_create(loom_event **event, unsigned int flags, loom_error *error) {
    cudaEvent_t made;
    if (!loom_cuda_ok(cudaEventCreateWithFlags(&made, flags), "cudaEventCreateWithFlags", error)) return false;
    *event = (loom_event *)made;
    return true;
}

static bool event_open(loom_device *device, loom_event **event, loom_error *error) {
    (void)device;
    return event_create(event, cudaEventDisableTiming | cudaEventBlockingSync, error);
}

static bool timed_event_open(loom_device *device, loom_event **event, loom_error *error) {
    (void)device;
    return event_create(event, cudaEventBlockingSync, error);
}

static void event_close(loom_device *device, loom_event *event) {
    if (event) check_later(loom_cuda_of(device), cudaEventDestroy((cudaEvent_t)event), "cudaEventDestroy");
}

static void event_record(loom_device *device, loom_event *event, loom_stream *stream) {
    loom_cuda *cuda = loom_cuda_of(device);
    check_later(cuda, cudaEventRecord((cudaEvent_t)event, loom_cuda_stream_of(cuda, stream)), "cudaEventRecord");
}

static void stream_wait_event(loom_device *device, loom_stream *stream, loom_event *event) {
    loom_cuda *cuda = loom_cuda_of(device);
    check_later(cuda, cudaStreamWaitEvent(loom_cuda_stream_of(cuda, stream), (cudaEvent_t)event, 0),
                "cudaStreamWaitEvent");
}

/* This and the next keep nothing in the device, as a second thread may call them; what that calls next is of this GPU.
 * */
static bool event_query(loom_device *device, loom_event *event, bool *reached, loom_error *error) {
    *reached = false;
    if (!loom_cuda_ok(cudaSetDevice(loom_cuda_of(device)->ordinal), "cudaSetDevice", error)) return false;
    const cudaError_t result = cudaEventQuery((cudaEvent_t)event);
    *reached = result != cudaErrorNotReady;
    if (!*reached) cudaGetLastError(); /* or the next launch of a kernel would find it */
    return !*reached || loom_cuda_ok(result, "cudaEventQuery", error);
}

static bool event_synchronize(loom_device *device, loom_event *event, loom_error *error) {
    return loom_cuda_ok(cudaSetDevice(loom_cuda_of(device)->ordinal), "cudaSetDevice", error) &&
           loom_cuda_ok(cudaEventSynchronize((cudaEvent_t)event), "cudaEventSynchronize", error);
}

static bool event_elapsed(loom_device *device, loom_event *first, loom_event *second, double *seconds,
                          loom_error *error) {
    float ms = 0;
    (void)device;
    if (!loom_cuda_ok(cudaEventElapsedTime(&ms, (cudaEvent_t)first, (cudaEvent_t)second), "cudaEventElapsedTime",
                      error))
        return false;
    *seconds = 1e-3 * (double)ms;
    return true;
}

static void timer_start(loom_device *device) {
    loom_cuda *cuda = loom_cuda_of(device);
    check_later(cuda, cudaEventRecord(cuda->started, cuda->stream), "cudaEventRecord");
}

static bool timer_stop(loom_device *device, double *seconds, loom_error *error) {
    loom_cuda *cuda = loom_cuda_of(device);
    float ms = 0;
    check_later(cuda, cudaEventRecord(cuda->stopped, cuda->stream), "cudaEventRecord");
    check_later(cuda, cudaEventSynchronize(cuda->stopped), "cudaEventSynchronize");
    check_later(cuda, cudaEventElapsedTime(&ms, cuda->started, cuda->stopped), "cudaEventElapsedTime");
    *seconds = 1e-3 * (double)ms;
    return tell_failure(cuda, error);
}

/* --------------------------------------------------------------------------------------------------------------- graphs */

struct loom_device_graph {
    cudaGraphExec_t executable;
};

static bool graph_begin(loom_device *device, loom_error *error) {
    loom_cuda *cuda = loom_cuda_of(device);
    return tell_failure(cuda, error) &&
           loom_cuda_ok(cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal),
                        "cudaStreamBeginCapture", error);
}

static bool graph_end(loom_device *device, loom_device_graph **graph, loom_error *error) {
    loom_cuda *cuda = loom_cuda_of(device);
    cudaGraph_t captured = NULL;
    loom_device_graph *made = calloc(1, sizeof *made);
    bool ok = loom_cuda_ok(cudaStreamEndCapture(cuda->stream, &captured), "cudaStreamEndCapture", error);
    ok = tell_failure(cuda, ok ? error : NULL) && ok;
    if (ok && !made) ok = loom_fail(error, "no memory for a graph");
    if (ok) ok = loom_cuda_ok(cudaGraphInstantiate(&made->executable, captured, 0), "cudaGraphInstantiate", error);
    if (captured) cudaGraphDestroy(captured);
    if (!ok) {
        free(made);
        return false;
    }
    *graph = made;
    return true;
}

static void graph_launch(loom_device *device, loom_device_graph *graph) {
    loom_cuda *cuda = loom_cuda_of(device);
    check_later(cuda, cudaGraphLaunch(graph->executable, cuda->stream), "cudaGraphLaunch");
}

static void graph_close(loom_device *device, loom_device_graph *graph) {
    if (!graph) return;
    check_later(loom_cuda_of(device), cudaGraphExecDestroy(graph->executable), "cudaGraphExecDestroy");
    free(graph);
}

/* ------------------------------------------------------------------------------------------------------------ profiling */

static void range_push(loom_device *device, const char *name) {
    (void)device;
    nvtxRangePushA(name);
}

static void range_pop(loom_device *device) {
    (void)device;
    nvtxRangePop();
}

/* --------------------------------------------------------------------------------------------------------- tuning cache */

static void measured_on(const loom_cuda *cuda, char text[240]) {
    snprintf(text, 240, "%s, sm_%d, %s%s%s", cuda->gpu, cuda->capability, loom_cuda_matmul_library(cuda->matmul),
             cuda->cudnn ? ", " : "", cuda->cudnn ? loom_cuda_cudnn_library(cuda->cudnn) : "");
}

static bool tuning_get(const loom_device *device, char **text, loom_error *error) {
    const loom_cuda *cuda = loom_cuda_of(device);
    char here[240];
    measured_on(cuda, here);
    return loom_tuning_write(&cuda->tuning, here, text, error);
}

static bool tuning_set(loom_device *device, const char *text, loom_error *error) {
    loom_cuda *cuda = loom_cuda_of(device);
    char here[240];
    measured_on(cuda, here);
    return loom_tuning_read(&cuda->tuning, here, text, error);
}

/* ---------------------------------------------------------------------------------------------------------- open, close */

static void close_device(loom_device *device) {
    loom_cuda *cuda = loom_cuda_of(device);
    if (cuda->stream) cudaStreamSynchronize(cuda->stream);
    loom_cuda_cudnn_destroy(cuda->cudnn);
    loom_cuda_matmul_destroy(cuda->matmul);
    loom_tuning_clear(&cuda->tuning);
    if (cuda->ordered) cudaEventDestroy(cuda->ordered);
    if (cuda->started) cudaEventDestroy(cuda->started);
    if (cuda->stopped) cudaEventDestroy(cuda->stopped);
    if (cuda->stream) cudaStreamDestroy(cuda->stream);
    free(cuda);
}

/* Counts the GPUs, or says in one line why there is none: the driver's own words do not tell a user what to do. */
static bool count_gpus(int *count, bool *there, loom_error *error) {
    *count = 0;
    const cudaError_t result = cudaGetDeviceCount(count);
    *there = result == cudaSuccess && *count > 0;
    if (*there) return true;
    cudaGetLastError();
    if (result == cudaErrorInsufficientDriver) {
        int driver = 0, runtime = 0;
        cudaDriverGetVersion(&driver);
        cudaRuntimeGetVersion(&runtime);
        if (driver == 0)
            return loom_fail(error, "--device cuda: there is no NVIDIA driver on this machine; take --device cpu, or "
                                    "build/emulated/gptloom, which emulates a GPU");
        *there = true;
        return loom_fail(error,
                         "--device cuda: the NVIDIA driver is for CUDA %d.%d and this program for %d.%d; update the "
                         "driver",
                         driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (result == cudaSuccess || result == cudaErrorNoDevice)
        return loom_fail(error, "--device cuda: there is no GPU on this machine; take --device cpu, or "
                                "build/emulated/gptloom, which emulates one");
    *there = true;
    return loom_fail(error, "--device cuda: cudaGetDeviceCount: %s (%s)", cudaGetErrorString(result),
                     cudaGetErrorName(result));
}

const char *loom_device_cuda_build(void) {
    static char text[64];
    int runtime = 0;
    const loom_cublaslt_api *lt = loom_cublaslt_load(NULL);
    const size_t cublas = lt ? lt->GetVersion() : 0;
    cudaRuntimeGetVersion(&runtime);
    const int length = snprintf(text, sizeof text, "CUDA %d.%d, ", runtime / 1000, runtime % 1000 / 10);
    if (lt)
        snprintf(text + length, sizeof text - (size_t)length, "cuBLASLt %zu.%zu.%zu", cublas / 10000,
                 cublas / 100 % 100, cublas % 100);
    else
        snprintf(text + length, sizeof text - (size_t)length, "cuBLASLt not found");
    return text;
}

static bool describe(loom_cuda *cuda, loom_error *error) {
    struct cudaDeviceProp properties;
    if (!loom_cuda_ok(cudaGetDeviceProperties(&properties, cuda->ordinal), "cudaGetDeviceProperties", error))
        return false;
    snprintf(cuda->gpu, sizeof cuda->gpu, "%.120s", properties.name);
    cuda->capability = 10 * properties.major + properties.minor;
    if (cuda->capability < LEAST_CAPABILITY)
        return loom_fail(error, "--device cuda: %s has compute capability %d.%d; %d.%d is the least", cuda->gpu,
                         properties.major, properties.minor, LEAST_CAPABILITY / 10, LEAST_CAPABILITY % 10);
    cuda->device.name = strncmp(cuda->gpu, "emulated", 8) == 0 ? "cuda (emulated)" : "cuda";
    char which[48] = "";
    if (cuda->gpus > 1) snprintf(which, sizeof which, "GPU %d of %d: ", cuda->ordinal + 1, cuda->gpus);
    snprintf(cuda->device.description, sizeof cuda->device.description,
             "%s%s, compute capability %d.%d, %.1f GiB, %.40s", which, cuda->gpu, properties.major, properties.minor,
             (double)properties.totalGlobalMem / 0x1p30, loom_cuda_matmul_library(cuda->matmul));
    return true;
}

/* One kernel is run and its result looked at: a build for other GPUs, or a GPU that does not work, shows here. */
static bool try_kernel(loom_cuda *cuda, loom_error *error) {
    loom_device *device = &cuda->device;
    loom_context ctx = {.ops = &cuda->ops, .device = device};
    float found = 0;
    void *memory;
    if (!allocate(device, &memory, sizeof found, error)) return false;
    cuda->ops.fill(&ctx, &(struct loom_fill){.out = loom_view_2d(memory, LOOM_F32, 1, 1), .value = 42});
    copy(device, NULL, &found, memory, sizeof found, LOOM_DEVICE_TO_HOST);
    loom_error why;
    bool ok = synchronize(device, NULL, &why);
    if (!ok)
        loom_fail(error, "--device cuda: %s does not run this program's kernels; build with CUDA_ARCH=%d (%s)",
                  cuda->gpu, cuda->capability, why.message);
    if (ok && found != 42) ok = loom_fail(error, "--device cuda: %s computes wrong results", cuda->gpu);
    release(device, memory, sizeof found);
    return ok;
}

static bool open_parts(loom_cuda *cuda, const loom_device_options *options, loom_error *error) {
    return loom_cuda_ok(cudaSetDevice(cuda->ordinal), "cudaSetDevice", error) &&
           loom_cuda_ok(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags",
                        error) &&
           loom_cuda_ok(cudaEventCreateWithFlags(&cuda->ordered, cudaEventDisableTiming), "cudaEventCreateWithFlags",
                        error) &&
           loom_cuda_ok(cudaEventCreateWithFlags(&cuda->started, cudaEventDefault), "cudaEventCreateWithFlags",
                        error) &&
           loom_cuda_ok(cudaEventCreateWithFlags(&cuda->stopped, cudaEventDefault), "cudaEventCreateWithFlags",
                        error) &&
           loom_cuda_matmul_create(&cuda->matmul, error) && describe(cuda, error) && try_kernel(cuda, error) &&
           find_reserved(cuda, error) &&
           (!options->cudnn_attention || loom_cuda_cudnn_create(&cuda->cudnn, cuda, error));
}

bool loom_cuda_open(loom_device **out, const loom_device_options *options, bool *there, loom_error *error) {
    static const loom_device_options defaults;
    if (!options) options = &defaults;
    *out = NULL;
    int gpus;
    if (!count_gpus(&gpus, there, error)) return false;
    loom_cuda *cuda = calloc(1, sizeof *cuda);
    if (!cuda) return loom_fail(error, "no memory for a device");
    cuda->gpus = gpus;
    cuda->ordinal = options->local_rank % gpus;
    cuda->ranks = options->local_size > 1 ? options->local_size : 1;
    cuda->sharers = (cuda->ranks + gpus - 1) / gpus;
    cuda->tf32 = options->tf32;
    cuda->ops = *loom_cuda_ops();
    cuda->device = (loom_device){.name = "cuda",
                                 .ops = &cuda->ops,
                                 .storage = LOOM_F32,
                                 .statistics = LOOM_F32,
                                 .threads = 1,
                                 .host_memory = false,
                                 .allocate = allocate,
                                 .release = release,
                                 .allocate_host = allocate_host,
                                 .release_host = release_host,
                                 .copy = copy,
                                 .synchronize = synchronize,
                                 .stream_open = stream_open,
                                 .stream_close = stream_close,
                                 .stream_wait_stream = stream_wait_stream,
                                 .event_open = event_open,
                                 .event_close = event_close,
                                 .event_record = event_record,
                                 .stream_wait_event = stream_wait_event,
                                 .event_query = event_query,
                                 .event_synchronize = event_synchronize,
                                 .timed_event_open = timed_event_open,
                                 .event_elapsed = event_elapsed,
                                 .graph_begin = graph_begin,
                                 .graph_end = graph_end,
                                 .graph_launch = graph_launch,
                                 .graph_close = graph_close,
                                 .timer_start = timer_start,
                                 .timer_stop = timer_stop,
                                 .range_push = range_push,
                                 .range_pop = range_pop,
                                 .tuning_get = tuning_get,
                                 .tuning_set = tuning_set,
                                 .peak = loom_cuda_peak,
                                 .available = available,
                                 .available_host = available_host,
                                 .close = close_device};
    if (!open_parts(cuda, options, error)) {
        close_device(&cuda->device);
        return false;
    }
    if (cuda->cudnn) loom_cuda_cudnn_install(&cuda->ops);
    *out = &cuda->device;
    return true;
}
