#include "emulation.h"
#include "runtime.h"

#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#if defined(__SANITIZE_ADDRESS__)
#    include <sanitizer/asan_interface.h>
#else
#    define ASAN_POISON_MEMORY_REGION(address, bytes)   ((void)(address), (void)(bytes))
#    define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace emulation {

/* --------------------------------------------------------------------------------------------------------- allocations
 * A pointer of the device is an address of the host. Before and behind each allocation lies a red zone, which nobody may
 * write to; AddressSanitizer also sees who reads it. Its bytes are NaNs in every floating-point type. */

enum : size_t { ZONE = 4096, ALIGNMENT = 256 };

struct allocation {
    char *block; /* what the host gave: ZONE + ALIGNMENT bytes, the memory, ZONE bytes */
    char *memory;
    size_t bytes;
    size_t number; /* the first is 1 */
    const char *made_by;
};

/* By where they start. */
typedef std::map<uintptr_t, allocation> allocations;

static allocations device_memory, pinned_memory;
static size_t device_bytes, allocated;

/* What a red zone that starts at an address holds. */
static const char *zone_bytes(const char *address) {
    static const std::vector<char> pattern = [] {
        std::vector<char> bytes(ZONE + 1);
        for (size_t i = 0; i < bytes.size(); i++) bytes[i] = (char)(i % 2 ? 0xFF : 0xE5);
        return bytes;
    }();
    return pattern.data() + (uintptr_t)address % 2;
}

static void fill_zone(char *zone) {
    memcpy(zone, zone_bytes(zone), ZONE);
}

/* Allocations are aligned as CUDA promises and no better, so that code that hopes for more fails. */
static bool allocate(allocations &into, size_t bytes, const char *made_by, void **memory) {
    char *block = static_cast<char *>(
        aligned_alloc(2 * ALIGNMENT, (bytes + 2 * ZONE + 3 * ALIGNMENT - 1) / (2 * ALIGNMENT) * (2 * ALIGNMENT)));
    if (!block) return false;
    allocation a = {block, block + ZONE + ALIGNMENT, bytes, ++allocated, made_by};
    fill_zone(a.memory - ZONE);
    memset(a.memory, 0xFF, bytes);
    fill_zone(a.memory + bytes);
    ASAN_POISON_MEMORY_REGION(a.memory - ZONE, ZONE);
    ASAN_POISON_MEMORY_REGION(a.memory + bytes, ZONE);
    into[(uintptr_t)a.memory] = a;
    *memory = a.memory;
    return true;
}

static void release(allocations &from, allocations::iterator which) {
    const allocation a = which->second;
    ASAN_UNPOISON_MEMORY_REGION(a.memory - ZONE, ZONE);
    ASAN_UNPOISON_MEMORY_REGION(a.memory + a.bytes, ZONE);
    from.erase(which);
    free(a.block);
}

static const allocation *find(const allocations &in, const void *address) {
    auto after = in.upper_bound((uintptr_t)address);
    if (after == in.begin()) return nullptr;
    const allocation &a = std::prev(after)->second;
    return static_cast<const char *>(address) < a.memory + std::max<size_t>(a.bytes, 1) ? &a : nullptr;
}

memory_kind memory_at(const void *address, size_t *left) {
    const allocation *device = find(device_memory, address), *pinned = find(pinned_memory, address);
    const allocation *a = device ? device : pinned;
    *left = a ? (size_t)(a->memory + a->bytes - static_cast<const char *>(address)) : SIZE_MAX;
    return device ? memory_kind::device : pinned ? memory_kind::pinned : memory_kind::pageable;
}

bool in_device_memory(const void *address, size_t bytes) {
    size_t left;
    return memory_at(address, &left) == memory_kind::device && bytes <= left;
}

/* Whether an address lies in an allocation or in its red zones. */
static bool in_or_at(const allocations &in, uint64_t address) {
    auto after = in.upper_bound(address + ZONE);
    if (after == in.begin()) return false;
    const allocation &a = std::prev(after)->second;
    return address <= (uintptr_t)a.memory + a.bytes + ZONE;
}

/* Where programs, their heaps and their stacks lie on 64-bit Linux; two small integers side by side are no such word
 * unless the second is at least this, and then the page would have to be there. */
static const uint64_t LEAST_HOST_ADDRESS = (uint64_t)0x5500 << 32;

word_kind word_in_arguments(uint64_t word) {
    if (in_or_at(device_memory, word)) return word_kind::device;
    if (word < LEAST_HOST_ADDRESS || in_or_at(pinned_memory, word)) return word_kind::other;
    const uint64_t page = word & ~(uint64_t)(sysconf(_SC_PAGESIZE) - 1);
    return msync(reinterpret_cast<void *>(page), 1, MS_ASYNC) == 0 ? word_kind::host : word_kind::other;
}

/* ----------------------------------------------------------------------------------------------------------- red zones */

#if defined(__SANITIZE_ADDRESS__)
/* AddressSanitizer has stopped the program at the access itself. */
bool red_zones_intact(std::string *) {
    return true;
}

void repair_red_zones() {
}
#else
static bool zone_intact(const allocation &a, const char *zone, std::string *failure) {
    const char *whole = zone_bytes(zone);
    if (memcmp(zone, whole, ZONE) == 0) return true;
    size_t first = 0, last = ZONE;
    while (zone[first] == whole[first]) first++;
    while (zone[last - 1] == whole[last - 1]) last--;
    const long long at = zone + first - a.memory;
    char text[200];
    snprintf(text, sizeof text, "%zu byte%s written %s, from byte %lld of an allocation of %zu bytes (%s number %zu)",
             last - first, last - first == 1 ? " was" : "s were",
             at < 0 ? "before the beginning of memory" : "beyond the end of memory", at, a.bytes, a.made_by, a.number);
    *failure = text;
    return false;
}

bool red_zones_intact(std::string *failure) {
    for (const allocations *all : {&device_memory, &pinned_memory})
        for (const auto &entry : *all) {
            const allocation &a = entry.second;
            if (!zone_intact(a, a.memory - ZONE, failure) || !zone_intact(a, a.memory + a.bytes, failure)) return false;
        }
    return true;
}

void repair_red_zones() {
    for (const allocations *all : {&device_memory, &pinned_memory})
        for (const auto &entry : *all) {
            fill_zone(entry.second.memory - ZONE);
            fill_zone(entry.second.memory + entry.second.bytes);
        }
}
#endif

/* ------------------------------------------------------------------------------------------------------------ how much */

static size_t host_memory_free() {
    struct sysinfo info;
    size_t bytes = sysinfo(&info) == 0 ? (size_t)info.freeram * info.mem_unit : 0;
    if (FILE *file = fopen("/proc/meminfo", "r")) {
        char line[128];
        size_t kilobytes;
        while (fgets(line, sizeof line, file))
            if (sscanf(line, "MemAvailable: %zu kB", &kilobytes) == 1) bytes = kilobytes * 1024;
        fclose(file);
    }
    return bytes;
}

size_t device_memory_total() {
    static const size_t at_start = host_memory_free();
    const char *text = getenv("LOOM_EMULATION_MEMORY");
    const long long mebibytes = text ? atoll(text) : 0;
    return mebibytes > 0 ? (size_t)mebibytes << 20 : at_start;
}

static size_t device_memory_free() {
    const size_t total = device_memory_total();
    return std::min(total > device_bytes ? total - device_bytes : 0, host_memory_free());
}

/* Frees memory after all work is done, as cudaFree waits for the device. */
static cudaError_t release_at(allocations &from, void *memory) {
    if (!memory) return cudaSuccess;
    if (const cudaError_t error = refuse_unsafe()) return error;
    auto which = from.find((uintptr_t)memory);
    if (which == from.end()) return cudaErrorInvalidValue;
    const cudaError_t error = finish_all();
    if (&from == &device_memory) device_bytes -= which->second.bytes;
    release(from, which);
    return error;
}

} // namespace emulation

using namespace emulation;

extern "C" cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    return call([&] {
        *free_bytes = device_memory_free();
        *total = device_memory_total();
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaMalloc(void **memory, size_t bytes) {
    return call([&] {
        if (!memory) return cudaErrorInvalidValue;
        *memory = nullptr;
        if (const cudaError_t error = refuse_unsafe()) return error;
        if (bytes == 0) return cudaSuccess;
        if (bytes > device_memory_free() || !allocate(device_memory, bytes, "cudaMalloc", memory))
            return cudaErrorMemoryAllocation;
        device_bytes += bytes;
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned int flags) {
    return call([&] {
        if (!memory || (flags & ~(unsigned)cudaHostAllocPortable)) return cudaErrorInvalidValue;
        *memory = nullptr;
        if (const cudaError_t error = refuse_unsafe()) return error;
        if (bytes == 0) return cudaSuccess;
        return allocate(pinned_memory, bytes, "cudaHostAlloc", memory) ? cudaSuccess : cudaErrorMemoryAllocation;
    });
}

extern "C" cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    return cudaHostAlloc(memory, bytes, cudaHostAllocDefault);
}

/* Memory is given back on a failed device too. */
extern "C" cudaError_t cudaFree(void *memory) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    const cudaError_t error = release_at(device_memory, memory);
    return sticky_error() != cudaSuccess ? sticky_error() : remember(error);
}

extern "C" cudaError_t cudaFreeHost(void *memory) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    const cudaError_t error = release_at(pinned_memory, memory);
    return sticky_error() != cudaSuccess ? sticky_error() : remember(error);
}

/* -------------------------------------------------------------------------------------------------------------- copies
 * CUDA's rules ("API synchronization behavior" in its runtime's manual): memory that is pinned is read and written when
 * the copy's turn comes; memory that is not is read at the call, and a copy into it has been done when the call returns. */

struct transfer {
    bool from_device, to_device, from_pinned, to_pinned;
};

static cudaError_t check_transfer(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind, transfer *t) {
    size_t to_left, from_left;
    const memory_kind to_kind = memory_at(to, &to_left), from_kind = memory_at(from, &from_left);
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
    *t = {from_kind == memory_kind::device, to_kind == memory_kind::device, from_kind == memory_kind::pinned,
          to_kind == memory_kind::pinned};
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && (to_device != t->to_device || from_device != t->from_device))
        return cudaErrorInvalidValue;
    if (!to || !from || bytes > to_left || bytes > from_left) return cudaErrorInvalidValue;
    const char *a = static_cast<const char *>(to), *b = static_cast<const char *>(from);
    return a < b + bytes && b < a + bytes ? cudaErrorInvalidValue : cudaSuccess;
}

static operation copy_operation(void *to, const void *from, size_t bytes, const transfer &t) {
    std::shared_ptr<std::vector<char>> staged;
    if (t.to_device && !t.from_device && !t.from_pinned)
        staged = std::make_shared<std::vector<char>>(static_cast<const char *>(from),
                                                     static_cast<const char *>(from) + bytes);
    const auto run = [=](std::string *failure) {
        if ((t.to_device && !in_device_memory(to, bytes)) || (t.from_device && !in_device_memory(from, bytes))) {
            *failure = "its memory has been freed";
            return false;
        }
        memcpy(to, staged ? staged->data() : from, bytes);
        return true;
    };
    char name[100];
    snprintf(name, sizeof name, "copy of %zu bytes from the %s to the %s", bytes, t.from_device ? "device" : "host",
             t.to_device ? "device" : "host");
    return {name, cudaGraphNodeTypeMemcpy, run};
}

static cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, CUstream_st *stream,
                        bool host_waits) {
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (bytes == 0) return cudaSuccess;
    transfer t;
    if (const cudaError_t error = check_transfer(to, from, bytes, kind, &t)) return error;
    const bool pageable = (!t.from_device && !t.from_pinned) || (!t.to_device && !t.to_pinned);
    /* CUDA's manual leaves open what a graph does with memory that is not pinned. */
    if (stream->capturing.in && pageable) return invalidate(*stream->capturing.in, cudaErrorStreamCaptureUnsupported);
    if (const cudaError_t error = enqueue(stream, copy_operation(to, from, bytes, t))) return error;
    const bool staged = t.to_device && pageable, from_host_to_host = !t.from_device && !t.to_device;
    const bool between_devices = t.from_device && t.to_device;
    if (from_host_to_host || (pageable && !staged) || (host_waits && !between_devices && !staged))
        return stream->capturing.in ? cudaSuccess : finish(stream);
    return cudaSuccess;
}

extern "C" cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                                       cudaStream_t stream) {
    return call([&] { return copy(to, from, bytes, kind, find_stream(stream), false); });
}

extern "C" cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return call([&] {
        if (const cudaError_t error = refuse_legacy()) return error;
        if (const cudaError_t error = refuse_unsafe()) return error;
        return copy(to, from, bytes, kind, &legacy_stream(), true);
    });
}

/* ---------------------------------------------------------------------------------------------------------------- fills */

static cudaError_t fill(void *memory, int value, size_t bytes, CUstream_st *stream) {
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (bytes == 0) return cudaSuccess;
    if (!in_device_memory(memory, bytes)) return cudaErrorInvalidValue;
    const auto run = [=](std::string *failure) {
        if (!in_device_memory(memory, bytes)) {
            *failure = "its memory has been freed";
            return false;
        }
        memset(memory, value, bytes);
        return true;
    };
    return enqueue(stream, {"fill of " + std::to_string(bytes) + " bytes", cudaGraphNodeTypeMemset, run});
}

extern "C" cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    return call([&] { return fill(memory, value, bytes, find_stream(stream)); });
}

extern "C" cudaError_t cudaMemset(void *memory, int value, size_t bytes) {
    return call([&] {
        if (const cudaError_t error = refuse_legacy()) return error;
        if (const cudaError_t error = refuse_unsafe()) return error;
        return fill(memory, value, bytes, &legacy_stream());
    });
}

extern "C" long emulation_place_in_memory(const void *address, unsigned long bytes) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    if (!in_device_memory(address, bytes)) return -1;
    return static_cast<const char *>(address) - find(device_memory, address)->memory;
}
