#include "emulation.h"
#include "runtime.h"
#include "simt_launch.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

/* ------------------------------------------------------------------------------------------------------- errors of calls */

namespace emulation {

static thread_local cudaError_t last_error = cudaSuccess;
static cudaError_t sticky = cudaSuccess;
static std::string failure;

std::recursive_mutex &runtime_lock() {
    static std::recursive_mutex lock;
    return lock;
}

cudaError_t remember(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

cudaError_t sticky_error() {
    return sticky;
}

void set_sticky_error(cudaError_t error, const std::string &why) {
    if (sticky != cudaSuccess) return;
    sticky = error;
    failure = why;
    drop_queues();
}

} // namespace emulation

using namespace emulation;

const char *emulation_last_failure(void) {
    return failure.c_str();
}

int emulation_current_gpu(void) {
    return current_device();
}

void emulation_reset(void) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    drop_queues();
    drop_captures();
    repair_red_zones();
    sticky = last_error = cudaSuccess;
    failure.clear();
}

extern "C" cudaError_t cudaPeekAtLastError(void) {
    return sticky_error() != cudaSuccess ? sticky_error() : last_error;
}

extern "C" cudaError_t cudaGetLastError(void) {
    const cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}

struct error_text {
    cudaError_t error;
    const char *name, *text;
};

static const error_text texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no device"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be done in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "a kernel failed"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "the capture was invalidated by an earlier error"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge", "operation would merge two captures"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "the capture was not begun in this stream"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "a captured stream was not joined"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "a captured stream would wait for what is not captured"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "the legacy stream would wait for a stream that is being captured"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent", "the event was last recorded in a captured stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread", "the capture was begun by another thread"},
};

static const error_text *find_text(cudaError_t error) {
    for (const error_text &text : texts)
        if (text.error == error) return &text;
    return nullptr;
}

extern "C" const char *cudaGetErrorName(cudaError_t error) {
    const error_text *text = find_text(error);
    return text ? text->name : "unrecognized error code";
}

/* What made the device fail is said instead of CUDA's own general words. */
extern "C" const char *cudaGetErrorString(cudaError_t error) {
    if (error != cudaSuccess && error == sticky) return failure.c_str();
    const error_text *text = find_text(error);
    return text ? text->text : "unrecognized error code";
}

/* ------------------------------------------------------------------------------------------------------------ the device */

enum { MULTIPROCESSORS = 8, L2_BYTES = 4 << 20, KIB = 1024 };

/* 90 for 9.0, which LOOM_EMULATION_CAPABILITY may say otherwise. */
static int capability() {
    const char *text = getenv("LOOM_EMULATION_CAPABILITY");
    int major, minor;
    if (text && sscanf(text, "%d.%d", &major, &minor) == 2 && minor >= 0 && minor < 10) return 10 * major + minor;
    return 90;
}

/* How many devices there are: all alike, and with one memory, of which each process uses what it may. */
static int devices() {
    const char *text = getenv("LOOM_EMULATION_GPUS");
    return text && atoi(text) > 1 ? atoi(text) : 1;
}

static thread_local int current; /* the device that a thread's calls are for */

int emulation::current_device() {
    return current;
}

/* What a block may have at most, by the CUDA C++ Programming Guide's table of compute capabilities. */
static int shared_bytes_of_a_block() {
    const int c = capability();
    if (c == 80 || c == 87) return 163 * KIB;
    if (c == 90 || c / 10 == 10 || c / 10 == 11) return 227 * KIB;
    return 99 * KIB;
}

static bool attribute(cudaDeviceAttr which, int *value) {
    switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; return true;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 * KIB; return true;
    case cudaDevAttrWarpSize: *value = 32; return true;
    case cudaDevAttrClockRate: *value = 1000000; return true;
    case cudaDevAttrMultiProcessorCount: *value = MULTIPROCESSORS; return true;
    case cudaDevAttrMemoryClockRate: *value = 1000000; return true;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 64; return true;
    case cudaDevAttrL2CacheSize: *value = L2_BYTES; return true;
    case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; return true;
    case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; return true;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = shared_bytes_of_a_block() + KIB; return true;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_bytes_of_a_block(); return true;
    }
    return false;
}

extern "C" cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int device) {
    return call([&] {
        if (device < 0 || device >= devices()) return cudaErrorInvalidDevice;
        return value && attribute(which, value) ? cudaSuccess : cudaErrorInvalidValue;
    });
}

extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    return call([&] {
        if (device < 0 || device >= devices()) return cudaErrorInvalidDevice;
        memset(properties, 0, sizeof *properties);
        snprintf(properties->name, sizeof properties->name, "emulated GPU");
        properties->totalGlobalMem = device_memory_total();
        properties->sharedMemPerBlock = 48 * KIB;
        properties->regsPerBlock = 65536;
        properties->warpSize = 32;
        properties->maxThreadsPerBlock = 1024;
        properties->major = capability() / 10;
        properties->minor = capability() % 10;
        properties->multiProcessorCount = MULTIPROCESSORS;
        properties->memoryBusWidth = 64;
        properties->l2CacheSize = L2_BYTES;
        properties->sharedMemPerMultiprocessor = (size_t)shared_bytes_of_a_block() + KIB;
        properties->sharedMemPerBlockOptin = (size_t)shared_bytes_of_a_block();
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaGetDeviceCount(int *count) {
    *count = devices();
    return cudaSuccess;
}

extern "C" cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return cudaSuccess;
}

extern "C" cudaError_t cudaSetDevice(int device) {
    return call([&] {
        if (device < 0 || device >= devices()) return cudaErrorInvalidDevice;
        current = device;
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

extern "C" cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

extern "C" cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute which, int value) {
    return call([&] {
        if (!function) return cudaErrorInvalidDeviceFunction;
        if (which == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
        if (which != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0) return cudaErrorInvalidValue;
        if (value > shared_bytes_of_a_block()) return cudaErrorInvalidValue;
        return simt::set_dynamic_shared_limit(function, value);
    });
}
