#include "emulation.h"
#include "runtime.h"
#include "schedule.h"
#include "simt_launch.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace emulation {

/* -------------------------------------------------------------------------------------------------------------- streams */

static std::vector<CUstream_st *> streams; /* the legacy one first */
static std::vector<CUevent_st *> events;
static uint64_t put_in;     /* how many items were put into streams */
static size_t items_queued; /* how many of them have not run */

static long kernels_given, kernels_begun;

/* Work that is put in and never waited for begins to run when there is this much of it, as on a GPU. */
enum : size_t { MOST_QUEUED = 4096 };

CUstream_st &legacy_stream() {
    static CUstream_st *const legacy = new CUstream_st{0, true, {}, {}};
    return *legacy;
}

const std::vector<CUstream_st *> &all_streams() {
    if (streams.empty()) streams.push_back(&legacy_stream());
    return streams;
}

CUstream_st *find_stream(cudaStream_t handle) {
    if (!handle) return &legacy_stream();
    const auto found = std::find(streams.begin(), streams.end(), handle);
    return found == streams.end() ? nullptr : *found;
}

static bool is_event(cudaEvent_t event) {
    return std::find(events.begin(), events.end(), event) != events.end();
}

static bool is_kernel(const operation &what) {
    return what.type == cudaGraphNodeTypeKernel;
}

/* Of what is put in: a graph has many. */
static long kernels_in(const queued &item) {
    if (item.what) return is_kernel(*item.what);
    if (!item.run) return 0;
    const graph &nodes = *item.run->nodes;
    return std::count_if(nodes.begin(), nodes.end(), [](const graph_node &node) { return is_kernel(*node.what); });
}

void put(CUstream_st *stream, queued item) {
    while (items_queued >= MOST_QUEUED && run_one()) {
    }
    item.sequence = put_in++;
    kernels_given += kernels_in(item);
    all_streams();
    stream->queue.push_back(std::move(item));
    items_queued++;
}

cudaError_t enqueue(CUstream_st *stream, const operation &what) {
    if (stream->capturing.in) return add_to_capture(stream, what);
    if (stream == &legacy_stream())
        if (const cudaError_t error = refuse_legacy()) return error;
    queued item = {};
    item.what = std::make_shared<operation>(what);
    put(stream, item);
    return sticky_error();
}

void drop_queues() {
    for (CUstream_st *stream : streams) stream->queue.clear();
    items_queued = 0;
}

/* -------------------------------------------------------------------------------------------------------- what runs next */

/* The legacy stream waits for what was put before into streams that go with it, and they for it. */
static bool held_by_legacy(const CUstream_st *stream) {
    if (!stream->with_legacy) return false;
    const uint64_t sequence = stream->queue.front().sequence;
    const auto earlier = [&](const CUstream_st *other) {
        return other != stream && other->with_legacy && !other->queue.empty() &&
               other->queue.front().sequence < sequence;
    };
    if (stream != &legacy_stream()) return earlier(&legacy_stream());
    return std::any_of(streams.begin(), streams.end(), earlier);
}

/* A graph runs once at a time: launches of it follow each other. */
static bool held_by_earlier_launch(const CUstream_st *stream) {
    const queued &item = stream->queue.front();
    return std::any_of(streams.begin(), streams.end(), [&](const CUstream_st *other) {
        return std::any_of(other->queue.begin(), other->queue.end(), [&](const queued &q) {
            return q.run && q.run->nodes == item.run->nodes && q.sequence < item.sequence;
        });
    });
}

/* Something that may run now. */
struct candidate {
    CUstream_st *stream;
    size_t node; /* of the graph that is at the stream's head, if one is */
};

static std::vector<candidate> candidates() {
    std::vector<candidate> ready;
    for (CUstream_st *stream : all_streams()) {
        if (stream->queue.empty() || held_by_legacy(stream)) continue;
        const queued &item = stream->queue.front();
        if (item.wait && !item.wait->done) continue;
        if (!item.run) {
            ready.push_back({stream, 0});
            continue;
        }
        if (held_by_earlier_launch(stream)) continue;
        const graph &nodes = *item.run->nodes;
        for (size_t i = 0; i < nodes.size(); i++) {
            const auto is_done = [&](size_t before) { return (bool)item.run->done[before]; };
            if (!item.run->done[i] && std::all_of(nodes[i].after.begin(), nodes[i].after.end(), is_done))
                ready.push_back({stream, i});
        }
        if (nodes.empty()) ready.push_back({stream, 0});
    }
    return ready;
}

/* The schedule's choice among `ready`: what was put in first, last, or any. */
static candidate choose(const std::vector<candidate> &ready) {
    static uint64_t choices;
    const simt::schedule schedule = simt::current_schedule();
    if (schedule.kind == simt::order::RANDOM)
        return ready[simt::scramble(schedule.seed ^ simt::scramble(choices++)) % ready.size()];
    const auto earlier = [](const candidate &a, const candidate &b) {
        const uint64_t x = a.stream->queue.front().sequence, y = b.stream->queue.front().sequence;
        return x != y ? x < y : a.node < b.node;
    };
    if (schedule.kind == simt::order::REVERSE) return *std::max_element(ready.begin(), ready.end(), earlier);
    return *std::min_element(ready.begin(), ready.end(), earlier);
}

static void run_operation(const operation &what) {
    std::string why;
    kernels_begun += is_kernel(what);
    if (!what.run(&why))
        set_sticky_error(cudaErrorLaunchFailure, why.find(what.name) == 0 ? why : what.name + ": " + why);
    else if (!red_zones_intact(&why))
        set_sticky_error(cudaErrorLaunchFailure, what.name + ": " + why);
}

static void take(CUstream_st *stream) {
    stream->queue.pop_front();
    items_queued--;
}

/* Runs what was chosen; false if it waits for something outside the device. */
static bool run_candidate(const candidate &chosen) {
    const queued item = chosen.stream->queue.front();
    if (item.run) {
        graph_run &run = *item.run;
        if (run.left > 0) {
            run.done[chosen.node] = true;
            run.left--;
        }
        if (run.left == 0) take(chosen.stream);
        if (!run.nodes->empty()) run_operation(*(*run.nodes)[chosen.node].what);
        return true;
    }
    if (item.attempt && !item.attempt()) return false;
    take(chosen.stream);
    if (item.what) run_operation(*item.what);
    if (item.record) *item.record = {true, std::chrono::steady_clock::now()};
    return true;
}

/* What waits for something outside the device holds up its own stream alone. */
bool run_one() {
    std::vector<candidate> ready = candidates();
    const bool any = !ready.empty();
    while (!ready.empty()) {
        const candidate chosen = choose(ready);
        if (run_candidate(chosen)) return true;
        const auto same = [&](const candidate &c) { return c.stream == chosen.stream; };
        ready.erase(std::remove_if(ready.begin(), ready.end(), same), ready.end());
    }
    return any;
}

/* Red zones are looked at once more: the host may have written to the device's memory. */
static cudaError_t after_running() {
    std::string why;
    if (sticky_error() == cudaSuccess && !red_zones_intact(&why)) set_sticky_error(cudaErrorLaunchFailure, why);
    return sticky_error();
}

cudaError_t finish(CUstream_st *stream) {
    while (!stream->queue.empty() && run_one()) {
    }
    return after_running();
}

cudaError_t finish_all() {
    while (run_one()) {
    }
    return after_running();
}

} // namespace emulation

using namespace emulation;

/* Runs a kernel unless its arguments show that a GPU could not: device memory is told from the host's here, and memory
 * that has been freed since the launch, or the graph's capture, from memory that is still there. */
static operation kernel_operation(const std::shared_ptr<simt::kernel_call> &kernel) {
    bool host = false;
    std::vector<uint64_t> device;
    for (const uint64_t word : kernel->addresses) {
        const word_kind kind = word_in_arguments(word);
        host = host || kind == word_kind::host;
        if (kind == word_kind::device) device.push_back(word);
    }
    const auto run = [kernel, host, device](std::string *failure) {
        const auto there = [](uint64_t word) { return word_in_arguments(word) == word_kind::device; };
        if (host)
            *failure = "it is given an address of host memory that is not pinned";
        else if (!std::all_of(device.begin(), device.end(), there))
            *failure = "it is given memory that has been freed";
        else
            return simt::run(*kernel, failure);
        return false;
    };
    return {"kernel " + kernel->name, cudaGraphNodeTypeKernel, run};
}

cudaError_t emulation_enqueue(cudaStream_t handle, std::shared_ptr<simt::kernel_call> kernel) {
    return call([&] {
        CUstream_st *stream = find_stream(handle);
        const bool here = stream && (!handle || stream->device == current_device());
        return here ? enqueue(stream, kernel_operation(kernel)) : cudaErrorInvalidResourceHandle;
    });
}

extern "C" cudaError_t cudaDeviceSynchronize(void) {
    return call([&] {
        if (const cudaError_t error = refuse_waiting()) return error;
        return finish_all();
    });
}

extern "C" cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
    return call([&] {
        if (!stream || (flags & ~(unsigned)cudaStreamNonBlocking)) return cudaErrorInvalidValue;
        all_streams();
        *stream = new CUstream_st{current_device(), !(flags & cudaStreamNonBlocking), {}, {}};
        streams.push_back(*stream);
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

extern "C" int emulation_enqueue_attempt(void *handle, int (*attempt)(void *argument), void *argument) {
    return call([&] {
        CUstream_st *stream = find_stream((cudaStream_t)handle);
        if (!stream || (handle && stream->device != current_device())) return cudaErrorInvalidResourceHandle;
        if (stream->capturing.in) return invalidate(*stream->capturing.in, cudaErrorStreamCaptureUnsupported);
        queued item = {};
        item.attempt = [=] { return attempt(argument) != 0; };
        put(stream, item);
        return sticky_error();
    });
}

extern "C" long emulation_kernels_given(void) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    return kernels_given;
}

extern "C" long emulation_kernels_begun(void) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    return kernels_begun;
}

/* CUDA lets a stream's work end after the call; here it has ended. */
extern "C" cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    CUstream_st *stream = handle ? find_stream(handle) : nullptr;
    if (!stream) return remember(cudaErrorInvalidResourceHandle);
    finish(stream);
    leave_capture(stream);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return sticky_error();
}

extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    return call([&] {
        CUstream_st *stream = find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->capturing.in) return invalidate(*stream->capturing.in, cudaErrorStreamCaptureUnsupported);
        if (stream == &legacy_stream())
            if (const cudaError_t error = refuse_legacy()) return error;
        return finish(stream);
    });
}

/* Each question lets the device do one thing, so that who asks again and again gets his answer. */
extern "C" cudaError_t cudaStreamQuery(cudaStream_t handle) {
    return call([&] {
        CUstream_st *stream = find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->capturing.in) return invalidate(*stream->capturing.in, cudaErrorStreamCaptureUnsupported);
        if (!stream->queue.empty()) run_one();
        if (sticky_error() != cudaSuccess) return sticky_error();
        return stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
    });
}

extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int flags) {
    return call([&] {
        CUstream_st *stream = find_stream(handle);
        if (!stream || !is_event(event)) return cudaErrorInvalidResourceHandle;
        if (flags) return cudaErrorInvalidValue;
        if (stream->capturing.in || event->captured.in) return wait_in_capture(stream, event);
        if (!event->recorded) return cudaSuccess;
        queued item = {};
        item.wait = event->recorded;
        put(stream, item);
        return sticky_error();
    });
}

/* --------------------------------------------------------------------------------------------------------------- events */

extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags) {
    return call([&] {
        if (!event || (flags & ~(unsigned)(cudaEventBlockingSync | cudaEventDisableTiming)))
            return cudaErrorInvalidValue;
        *event = new CUevent_st{!(flags & cudaEventDisableTiming), nullptr, {}};
        events.push_back(*event);
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

/* Who waits for it goes on waiting for its last record. */
extern "C" cudaError_t cudaEventDestroy(cudaEvent_t event) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    if (!is_event(event)) return remember(cudaErrorInvalidResourceHandle);
    events.erase(std::find(events.begin(), events.end(), event));
    delete event;
    return sticky_error();
}

extern "C" cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    return call([&] {
        CUstream_st *stream = find_stream(handle);
        if (!stream || !is_event(event)) return cudaErrorInvalidResourceHandle;
        if (stream == &legacy_stream())
            if (const cudaError_t error = refuse_legacy()) return error;
        if (stream->capturing.in) {
            if (!stream->capturing.in->valid) return cudaErrorStreamCaptureInvalidated;
            event->captured = stream->capturing;
            return cudaSuccess;
        }
        event->captured = {};
        event->recorded = std::make_shared<completion>();
        queued item = {};
        item.record = event->recorded;
        put(stream, item);
        return sticky_error();
    });
}

extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return call([&] {
        if (!is_event(event)) return cudaErrorInvalidResourceHandle;
        if (event->captured.in) return refuse_captured(event);
        while (event->recorded && !event->recorded->done && run_one()) {
        }
        return after_running();
    });
}

extern "C" cudaError_t cudaEventQuery(cudaEvent_t event) {
    return call([&] {
        if (!is_event(event)) return cudaErrorInvalidResourceHandle;
        if (event->captured.in) return refuse_captured(event);
        if (const cudaError_t error = refuse_unsafe()) return error;
        if (!event->recorded) return cudaSuccess;
        if (!event->recorded->done) run_one();
        if (sticky_error() != cudaSuccess) return sticky_error();
        return event->recorded->done ? cudaSuccess : cudaErrorNotReady;
    });
}

extern "C" cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    return call([&] {
        for (const cudaEvent_t event : {start, end}) {
            if (!is_event(event)) return cudaErrorInvalidResourceHandle;
            if (event->captured.in) return refuse_captured(event);
            if (!event->timed || !event->recorded) return cudaErrorInvalidResourceHandle;
        }
        if (!start->recorded->done || !end->recorded->done) return cudaErrorNotReady;
        const std::chrono::duration<float, std::milli> time = end->recorded->when - start->recorded->when;
        *milliseconds = time.count();
        return cudaSuccess;
    });
}
