#include "cuda/timing.h"

#include "cuda/cuda.h"
#include "base/random.h"

#include <math.h>

enum { MOST_RUNS = 20, PATTERN_WORDS = 4096 };

static const double ENOUGH_MS = 2; /* so long work is timed, if one run is shorter */

/* Two halves at a time, each a sign, an exponent from a few, and seven random bits: 0x3C00 to 0x3F7F but for the sign.
 * */
static uint32_t ordinary(uint32_t random) {
    uint32_t word = 0;
    for (int half = 0; half < 32; half += 16) {
        const uint32_t bits = random >> half & 0xFFFFu;
        word |= ((bits & 0x8000u) | (0x3C00u + (bits & 0x7FFFu) % 0x380u)) << half;
    }
    return word;
}

bool loom_cuda_fill_random(void *memory, size_t bytes, cudaStream_t stream, loom_error *error) {
    uint32_t pattern[PATTERN_WORDS];
    loom_random_words(pattern, PATTERN_WORDS / 4, 0, LOOM_RANDOM_TEST, 0, 0);
    for (int i = 0; i < PATTERN_WORDS; i++) pattern[i] = ordinary(pattern[i]);
    size_t filled = bytes < sizeof pattern ? bytes : sizeof pattern;
    bool ok = loom_cuda_ok(cudaMemcpyAsync(memory, pattern, filled, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync",
                           error) &&
              loom_cuda_ok(cudaStreamSynchronize(stream), "cudaStreamSynchronize", error);
    while (ok && filled < bytes) {
        const size_t more = filled < bytes - filled ? filled : bytes - filled;
        ok = loom_cuda_ok(cudaMemcpyAsync((char *)memory + filled, memory, more, cudaMemcpyDeviceToDevice, stream),
                          "cudaMemcpyAsync", error);
        filled += more;
    }
    return ok;
}

int loom_cuda_sets(size_t bytes) {
    int gpu = 0, cache = 0;
    if (cudaGetDevice(&gpu) != cudaSuccess ||
        cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, gpu) != cudaSuccess || cache <= 0 || bytes == 0)
        return 1;
    const size_t sets = ((size_t)cache + bytes - 1) / bytes + 1;
    return sets < LOOM_CUDA_MOST_SETS ? (int)sets : LOOM_CUDA_MOST_SETS;
}

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
