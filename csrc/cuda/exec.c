#include "cuda/cuda.h"

#include <stdio.h>

/* What ops need of where they run: its stream, and that a failure is kept. */

struct CUstream_st *loom_cuda_stream(const loom_context *ctx) {
    return loom_cuda_stream_of(loom_cuda_of(ctx->device), ctx->stream);
}

bool loom_cuda_ok(cudaError_t result, const char *call, loom_error *error) {
    if (result == cudaSuccess) return true;
    return loom_fail(error, "%s: %s (%s)", call, cudaGetErrorString(result), cudaGetErrorName(result));
}

void loom_cuda_failed_because(const loom_context *ctx, const char *what, const char *why) {
    loom_cuda *cuda = loom_cuda_of(ctx->device);
    if (!cuda->failure[0]) snprintf(cuda->failure, sizeof cuda->failure, "%s: %s", what, why);
}

void loom_cuda_failed(const loom_context *ctx, const char *kernel, int result) {
    char what[96];
    snprintf(what, sizeof what, "launch of kernel %s", kernel);
    loom_cuda_failed_because(ctx, what, cudaGetErrorString((cudaError_t)result));
}
