/* The inside of a CUDA device: what ctx.c, device.c, table.c, matmul.c and attention_cudnn.c share. */
#ifndef LOOM_CUDA_CUDA_H
#define LOOM_CUDA_CUDA_H

#include "cuda/tuning.h"
#include "gptloom/device.h"
#include "kernels/kernels.h"

#include <cuda_runtime_api.h>

typedef struct loom_cuda_matmul loom_cuda_matmul;
typedef struct loom_cuda_cudnn loom_cuda_cudnn;

typedef struct loom_cuda {
    loom_device device; /* first, so that a device is a loom_cuda */
    loom_ops ops;
    int ordinal, gpus;  /* which GPU of how many */
    int ranks, sharers; /* on this machine; on this GPU, at most: one number for all, so that all plan alike */
    char gpu[128];      /* its name */
    int capability;     /* 90 for 9.0 */
    bool tf32;
    cudaStream_t stream;          /* the default one */
    cudaEvent_t ordered;          /* of `order` */
    cudaEvent_t started, stopped; /* the timer's */
    loom_cuda_matmul *matmul;
    loom_cuda_cudnn *cudnn; /* NULL: attention is our own */
    loom_tuning tuning;     /* of both */
    char failure[512];      /* the first failure since the device was last waited for; "" */
} loom_cuda;

static inline loom_cuda *loom_cuda_of(const loom_device *device) {
    return (loom_cuda *)(uintptr_t)device;
}

/* The stream of an ctx, or the default one. */
static inline cudaStream_t loom_cuda_stream_of(const loom_cuda *cuda, const loom_stream *stream) {
    return stream ? (cudaStream_t)(uintptr_t)stream : cuda->stream;
}

/* Whether a call of the CUDA runtime did what it should; if not, fills the error: "cudaMalloc: ...". */
bool loom_cuda_ok(cudaError_t result, const char *call, loom_error *error);

/* Keeps the first failure of an op until the device is waited for: what failed, and why. For libraries other than the
 * CUDA runtime, whose failures loom_cuda_failed() keeps. */
void loom_cuda_failed_because(const loom_context *ctx, const char *what, const char *why);

/* csrc/cuda/table.c: the table of our own kernels. */
const loom_ops *loom_cuda_ops(void);

#endif
