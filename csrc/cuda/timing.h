/* How long work takes on the GPU, for choosing between ways to do it. */
#ifndef LOOM_CUDA_TIMING_H
#define LOOM_CUDA_TIMING_H

#include "gptloom/error.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Fills memory, in the order of the stream, with what work is timed on: random numbers, finite and of ordinary size in
 * every dtype (about 1 in fp16, from 2^-7 on in bf16 and fp32). What a GPU's clock does depends on how many bits
 * change: of constants it runs faster than in training, and not by the same factor for every algorithm. */
bool loom_cuda_fill_random(void *memory, size_t bytes, cudaStream_t stream, loom_error *error);

/* How many sets of operands, `bytes` each, a trial takes in turn so that none is in the L2 cache still when it comes
 * round again: one at least, and no more than LOOM_CUDA_MOST_SETS. */
enum { LOOM_CUDA_MOST_SETS = 32 };
int loom_cuda_sets(size_t bytes);

/* Something that can be put into a stream, again and again. */
typedef struct loom_cuda_work {
    bool (*run)(void *of); /* false if it is refused */
    void *of;
    cudaStream_t stream; /* into which it is put */
} loom_cuda_work;

/* Runs it `runs` times. *ms is the time of one, or infinite if it is refused; false if the device fails. */
bool loom_cuda_time(const loom_cuda_work *work, int runs, double *ms, loom_error *error);

/* Runs it until the time is known well: some milliseconds long, or 20 times. The first run, which loads kernels, is not
 * counted. */
bool loom_cuda_time_well(const loom_cuda_work *work, double *ms, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
