/* The inside of the emulated CUDA runtime: what device.cpp, memory.cpp, stream.cpp, graph.cpp and cublaslt.cpp share.
 *
 * Nothing runs when it is put into a stream. Streams are queues, and run when the host waits for one of them: then, again
 * and again, one of the operations that could run now is chosen by the schedule (emulation.h) and run to its end. So
 * two streams without an event between them meet in orders that a GPU may show once in a thousand runs. */
#ifndef LOOM_EMULATION_RUNTIME_H
#define LOOM_EMULATION_RUNTIME_H

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace emulation {

/* ----------------------------------------------------------------------------------------------------- calls (device.cpp) */

/* Every call of the API holds it from beginning to end. */
std::recursive_mutex &runtime_lock();

/* What a call returns goes through here: errors are kept for cudaGetLastError. */
cudaError_t remember(cudaError_t error);

/* After a kernel has failed, every call returns that failure. */
cudaError_t sticky_error();
void set_sticky_error(cudaError_t error, const std::string &why);

/* Of the calling thread, as cudaSetDevice said. */
int current_device();

/* A call of the API that a failed device refuses. */
template <typename F> cudaError_t call(F body) {
    std::lock_guard<std::recursive_mutex> guard(runtime_lock());
    if (sticky_error() != cudaSuccess) return sticky_error();
    return remember(body());
}

/* ---------------------------------------------------------------------------------------------------- memory (memory.cpp) */

enum class memory_kind { device, pinned, pageable };

/* What lies at an address; *left is how many bytes follow in the same allocation (SIZE_MAX in pageable memory). */
memory_kind memory_at(const void *address, size_t *left);

/* Whether `bytes` from `address` on are in one allocation of the device. */
bool in_device_memory(const void *address, size_t bytes);

/* What a word of a kernel's arguments is: an address in or at the edge of the device's memory, an address of host memory
 * that no GPU can use, or nothing of the kind. */
enum class word_kind { device, host, other };
word_kind word_in_arguments(uint64_t word);

/* False, with one line, if anything was written just before or behind an allocation. */
bool red_zones_intact(std::string *failure);
void repair_red_zones();

/* Bytes of the device: what the host had free at the start, or LOOM_EMULATION_MEMORY MiB. */
size_t device_memory_total();

/* ------------------------------------------------------------------------------------------------- operations and graphs */

/* What a stream does at once: a kernel, a copy, ... In a graph it runs once at every launch. */
struct operation {
    std::string name; /* for failures */
    cudaGraphNodeType type;
    std::function<bool(std::string *failure)> run;
};
typedef std::shared_ptr<const operation> operation_pointer;

struct graph_node {
    operation_pointer what;
    std::vector<size_t> after; /* the nodes it waits for, all before it */
};
typedef std::vector<graph_node> graph;

/* A capture that goes on: its streams put operations into the graph instead of running them. */
struct capture {
    graph captured;
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread; /* that began it */
    bool valid;
};

/* What a stream or an event has to do with a capture: nothing, or which one, and the nodes that come last in it. */
struct capture_place {
    std::shared_ptr<capture> in;
    std::vector<size_t> last;
};

/* ---------------------------------------------------------------------------------------------------- streams (stream.cpp) */

/* Whether and when the device came to an event's record. */
struct completion {
    bool done = false;
    std::chrono::steady_clock::time_point when;
};

/* A launch of a graph that has begun or waits. */
struct graph_run {
    std::shared_ptr<const graph> nodes;
    std::vector<bool> done;
    size_t left;
};

/* One of five: an operation, a graph's launch, an event's record, a wait for an event, an attempt (emulation.h). */
struct queued {
    uint64_t sequence; /* when it was put in, over all streams */
    operation_pointer what;
    std::shared_ptr<graph_run> run;
    std::shared_ptr<completion> record, wait;
    std::function<bool()> attempt;
};

} // namespace emulation

struct CUstream_st {
    int device;       /* it was made on; the legacy stream goes with the first, and serves all */
    bool with_legacy; /* made without cudaStreamNonBlocking: it and the legacy stream wait for each other */
    std::deque<emulation::queued> queue;
    emulation::capture_place capturing;
};

struct CUevent_st {
    bool timed;
    std::shared_ptr<emulation::completion> recorded; /* null before the first record */
    emulation::capture_place captured;               /* where, if its last record was captured */
};

struct CUgraph_st {
    std::shared_ptr<const emulation::graph> nodes;
};

struct CUgraphExec_st {
    std::shared_ptr<const emulation::graph> nodes;
};

namespace emulation {

/* The stream behind a handle, or null: 0 is the legacy stream. */
CUstream_st *find_stream(cudaStream_t handle);
CUstream_st &legacy_stream();
const std::vector<CUstream_st *> &all_streams();

/* Puts an operation into a stream, or into the graph that the stream is being captured into. */
cudaError_t enqueue(CUstream_st *stream, const operation &what);

/* Puts something that is never captured into a stream. */
void put(CUstream_st *stream, queued item);

/* Runs until a stream, or all streams, hold nothing more. */
cudaError_t finish(CUstream_st *stream);
cudaError_t finish_all();

/* Runs the one operation that the schedule chooses; false if there is none. */
bool run_one();
void drop_queues();

/* ----------------------------------------------------------------------------------------------------- capture (graph.cpp) */

/* Ends the validity of a capture and returns the error. */
cudaError_t invalidate(capture &c, cudaError_t error);

/* For calls that CUDA forbids while a capture goes on: those it calls potentially unsafe, as cudaMalloc; those that use
 * the legacy stream; those that wait for the whole device. cudaSuccess if nothing is in the way. */
cudaError_t refuse_unsafe();
cudaError_t refuse_legacy();
cudaError_t refuse_waiting();

/* Adds to the capture that the stream is in. */
cudaError_t add_to_capture(CUstream_st *stream, const operation &what);

/* The error of asking the host to look at an event that was last recorded in a capture. */
cudaError_t refuse_captured(CUevent_st *event);

/* A wait of which the stream or the event is part of a capture. */
cudaError_t wait_in_capture(CUstream_st *stream, CUevent_st *event);

/* A stream that is closed takes its capture with it. */
void leave_capture(CUstream_st *stream);
void drop_captures();

} // namespace emulation
#endif
