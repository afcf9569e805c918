/* How long work takes on the GPU, for choosing between ways to do it. */
#ifndef LOOM_CUDA_TIMING_H
#define LOOM_CUDA_TIMING_H

#include "gptloom/error.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Filled with it, memory that is timed on holds a finite number in every dtype, about 1 in fp16 and less in the others. */
enum { LOOM_CUDA_FINITE_BYTE = 0x3C };

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
