#include "runtime.h"

#include <algorithm>
#include <set>

namespace emulation {

static std::vector<std::shared_ptr<capture>> captures; /* that go on, valid or not */

/* ------------------------------------------------------------------------------------------------ what a capture forbids */

cudaError_t invalidate(capture &c, cudaError_t error) {
    const bool was_valid = c.valid;
    c.valid = false;
    return was_valid ? error : cudaErrorStreamCaptureInvalidated;
}

/* Invalidates all captures of which `forbids` is true. */
template <typename F> static cudaError_t refuse(cudaError_t error, F forbids) {
    cudaError_t result = cudaSuccess;
    for (const auto &c : captures)
        if (forbids(*c)) result = invalidate(*c, error);
    return result;
}

/* In mode Relaxed nothing is forbidden, in ThreadLocal what the capturing thread calls, in Global what any calls. */
cudaError_t refuse_unsafe() {
    return refuse(cudaErrorStreamCaptureUnsupported, [](const capture &c) {
        return c.mode == cudaStreamCaptureModeGlobal ||
               (c.mode == cudaStreamCaptureModeThreadLocal && c.thread == std::this_thread::get_id());
    });
}

cudaError_t refuse_legacy() {
    return refuse(cudaErrorStreamCaptureImplicit, [](const capture &c) {
        const auto waits = [&](const CUstream_st *s) { return s->capturing.in.get() == &c && s->with_legacy; };
        return std::any_of(all_streams().begin(), all_streams().end(), waits);
    });
}

cudaError_t refuse_waiting() {
    return refuse(cudaErrorStreamCaptureUnsupported, [](const capture &) { return true; });
}

/* ----------------------------------------------------------------------------------------------------- what is captured */

cudaError_t add_to_capture(CUstream_st *stream, const operation &what) {
    capture &c = *stream->capturing.in;
    if (!c.valid) return cudaErrorStreamCaptureInvalidated;
    c.captured.push_back({std::make_shared<operation>(what), stream->capturing.last});
    stream->capturing.last = {c.captured.size() - 1};
    return cudaSuccess;
}

static bool goes_on(const std::shared_ptr<capture> &c) {
    return std::find(captures.begin(), captures.end(), c) != captures.end();
}

cudaError_t refuse_captured(CUevent_st *event) {
    const std::shared_ptr<capture> &c = event->captured.in;
    return goes_on(c) ? invalidate(*c, cudaErrorCapturedEvent) : cudaErrorCapturedEvent;
}

/* A stream that waits for a captured event joins its capture. What is captured and what is not cannot wait for each
 * other, as a graph runs again and again. */
cudaError_t wait_in_capture(CUstream_st *stream, CUevent_st *event) {
    capture_place &here = stream->capturing, &there = event->captured;
    if (!there.in) return invalidate(*here.in, cudaErrorStreamCaptureIsolation);
    if (!goes_on(there.in)) return here.in ? invalidate(*here.in, cudaErrorCapturedEvent) : cudaErrorCapturedEvent;
    if (!there.in->valid || (here.in && !here.in->valid)) return cudaErrorStreamCaptureInvalidated;
    if (stream == &legacy_stream()) return invalidate(*there.in, cudaErrorStreamCaptureImplicit);
    if (here.in && here.in != there.in) {
        invalidate(*here.in, cudaErrorStreamCaptureMerge);
        return invalidate(*there.in, cudaErrorStreamCaptureMerge);
    }
    std::set<size_t> both(here.last.begin(), here.last.end());
    both.insert(there.last.begin(), there.last.end());
    here = {there.in, {both.begin(), both.end()}};
    return cudaSuccess;
}

static void end(const std::shared_ptr<capture> &c) {
    for (CUstream_st *stream : all_streams())
        if (stream->capturing.in == c) stream->capturing = {};
    captures.erase(std::remove(captures.begin(), captures.end(), c), captures.end());
}

void drop_captures() {
    while (!captures.empty()) end(captures.back());
}

void leave_capture(CUstream_st *stream) {
    const std::shared_ptr<capture> c = stream->capturing.in;
    stream->capturing = {};
    if (!c) return;
    c->valid = false;
    if (c->origin == stream) end(c);
}

/* Whether all that was captured comes before the last nodes of the origin. */
static bool joined(const capture &c, const std::vector<size_t> &last) {
    std::set<size_t> before;
    std::vector<size_t> pending = last;
    while (!pending.empty()) {
        const size_t node = pending.back();
        pending.pop_back();
        if (!before.insert(node).second) continue;
        pending.insert(pending.end(), c.captured[node].after.begin(), c.captured[node].after.end());
    }
    return before.size() == c.captured.size();
}

} // namespace emulation

using namespace emulation;

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    return call([&] {
        CUstream_st *stream = find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream == &legacy_stream()) return cudaErrorStreamCaptureUnsupported;
        if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
        if (stream->capturing.in) return invalidate(*stream->capturing.in, cudaErrorIllegalState);
        const auto c = std::make_shared<capture>(capture{{}, stream, mode, std::this_thread::get_id(), true});
        captures.push_back(c);
        stream->capturing = {c, {}};
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
    return call([&] {
        CUstream_st *stream = find_stream(handle);
        if (!stream || !status) return stream ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle;
        const capture *c = stream->capturing.in.get();
        *status = !c         ? cudaStreamCaptureStatusNone
                  : c->valid ? cudaStreamCaptureStatusActive
                             : cudaStreamCaptureStatusInvalidated;
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *out) {
    return call([&] {
        CUstream_st *stream = find_stream(handle);
        if (out) *out = nullptr;
        if (!stream) return cudaErrorInvalidResourceHandle;
        const std::shared_ptr<capture> c = stream->capturing.in;
        if (!out || !c) return cudaErrorInvalidValue;
        if (c->origin != stream) return invalidate(*c, cudaErrorStreamCaptureUnmatched);
        if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
            return cudaErrorStreamCaptureWrongThread;
        const std::vector<size_t> last = stream->capturing.last;
        end(c);
        if (!c->valid) return cudaErrorStreamCaptureInvalidated;
        if (!joined(*c, last)) return cudaErrorStreamCaptureUnjoined;
        *out = new CUgraph_st{std::make_shared<graph>(c->captured)};
        return cudaSuccess;
    });
}

/* --------------------------------------------------------------------------------------------------------------- graphs */

extern "C" cudaError_t cudaGraphGetNodes(cudaGraph_t of, cudaGraphNode_t *nodes, size_t *count) {
    return call([&] {
        if (!of || !count) return cudaErrorInvalidValue;
        if (!nodes) {
            *count = of->nodes->size();
            return cudaSuccess;
        }
        for (size_t i = 0; i < *count; i++)
            nodes[i] = i < of->nodes->size()
                           ? reinterpret_cast<cudaGraphNode_t>(const_cast<graph_node *>(&(*of->nodes)[i]))
                           : nullptr;
        *count = std::min(*count, of->nodes->size());
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType *type) {
    return call([&] {
        if (!node || !type) return cudaErrorInvalidValue;
        *type = reinterpret_cast<const graph_node *>(node)->what->type;
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaGraphInstantiate(cudaGraphExec_t *instance, cudaGraph_t from, unsigned long long flags) {
    return call([&] {
        if (!instance || !from || flags) return cudaErrorInvalidValue;
        *instance = new CUgraphExec_st{std::make_shared<graph>(*from->nodes)};
        return cudaSuccess;
    });
}

extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t instance, cudaStream_t handle) {
    return call([&] {
        CUstream_st *stream = find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (!instance) return cudaErrorInvalidValue;
        if (stream->capturing.in) return invalidate(*stream->capturing.in, cudaErrorStreamCaptureUnsupported);
        if (stream == &legacy_stream())
            if (const cudaError_t error = refuse_legacy()) return error;
        const size_t n = instance->nodes->size();
        queued item = {};
        item.run = std::make_shared<graph_run>(graph_run{instance->nodes, std::vector<bool>(n, false), n});
        put(stream, item);
        return sticky_error();
    });
}

/* A launch that has not run yet keeps what it needs. */
extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t instance) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    if (!instance) return remember(cudaErrorInvalidValue);
    delete instance;
    return sticky_error();
}

extern "C" cudaError_t cudaGraphDestroy(cudaGraph_t of) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    if (!of) return remember(cudaErrorInvalidValue);
    delete of;
    return sticky_error();
}
