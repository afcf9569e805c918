#include "cuda/timing.h"

#include "cuda/cuda.h"

#include <math.h>

enum { MOST_RUNS = 20 };

static const double ENOUGH_MS = 2; /* so long work is timed, if one run is shorter */

static bool time_between(const loom_cuda_work *work, int runs, cudaEvent_t before, cudaEvent_t after, double *ms,
                         loom_error *error) {
    float elapsed = 0;
    bool runs_at_all = true;
    if (!loom_cuda_ok(cudaEventRecord(before, work->stream), "cudaEventRecord", error)) return false;
    for (int i = 0; i < runs && runs_at_all; i++) runs_at_all = work->run(work->of);
    if (!runs_at_all) cudaGetLastError(); /* a launch that was refused harms nothing */
    if (!loom_cuda_ok(cudaEventRecord(after, work->stream), "cudaEventRecord", error) ||
        !loom_cuda_ok(cudaEventSynchronize(after), "what is timed", error) ||
        !loom_cuda_ok(cudaEventElapsedTime(&elapsed, before, after), "cudaEventElapsedTime", error))
        return false;
    *ms = runs_at_all ? (double)elapsed / runs : INFINITY;
    return true;
}

bool loom_cuda_time(const loom_cuda_work *work, int runs, double *ms, loom_error *error) {
    cudaEvent_t before = NULL, after = NULL;
    const bool ok = loom_cuda_ok(cudaEventCreateWithFlags(&before, cudaEventDefault), "cudaEventCreateWithFlags",
                                 error) &&
                    loom_cuda_ok(cudaEventCreateWithFlags(&after, cudaEventDefault), "cudaEventCreateWithFlags",
                                 error) &&
                    time_between(work, runs, before, after, ms, error);
    if (before) cudaEventDestroy(before);
    if (after) cudaEventDestroy(after);
    return ok;
}

/* The second run says how many it takes. */
bool loom_cuda_time_well(const loom_cuda_work *work, double *ms, loom_error *error) {
    if (!loom_cuda_time(work, 1, ms, error)) return false;
    if (isinf(*ms)) return true;
    if (!loom_cuda_time(work, 1, ms, error)) return false;
    const double enough = *ms > 0 ? ENOUGH_MS / *ms : MOST_RUNS;
    return enough < 2 || loom_cuda_time(work, enough < MOST_RUNS ? (int)enough : MOST_RUNS, ms, error);
}
