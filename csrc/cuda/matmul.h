/* Matrix products on a CUDA device, by cuBLASLt. */
#ifndef LOOM_CUDA_MATMUL_H
#define LOOM_CUDA_MATMUL_H

#include "cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The plans of one device. */
bool loom_cuda_matmul_create(loom_cuda_matmul **matmul, loom_error *error);
void loom_cuda_matmul_destroy(loom_cuda_matmul *matmul);

/* "cuBLASLt 13.1.0" */
const char *loom_cuda_matmul_library(const loom_cuda_matmul *matmul);

/* Why cuBLASLt does not compute this, a literal, or NULL: asked after what all ops ask about dtypes and rows. */
const char *loom_cuda_matmul_refusal(loom_op op, const void *arguments);

/* Makes the plans, unless there are some: by the device's tuning cache, to which what it measures is added. Not to
 * be called while a step is captured. */
bool loom_cuda_matmul_prepare(loom_device *device, loom_op op, const void *arguments, loom_error *error);

/* How many plans there are. */
int loom_cuda_matmul_plans(const loom_cuda_matmul *matmul);

#ifdef __cplusplus
}
#endif
#endif
