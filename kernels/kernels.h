/* What kernels/ offers to the host code in csrc/cuda: every op of the table, and the bytes of workspace that it needs,
 * from shapes alone. All is asynchronous in the context's stream; a launch that fails is passed to loom_cuda_failed().
 * */
#ifndef LOOM_KERNELS_H
#define LOOM_KERNELS_H

#include "gptloom/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The ops. Those of matrix products are in csrc/cuda/matmul.c, as cuBLASLt computes them. */
#define LOOM_CUDA_DECLARE(name)                                                                                        \
    void loom_cuda_##name(loom_context *ctx, const struct loom_##name *arguments);                                     \
    size_t loom_cuda_##name##_workspace(const struct loom_##name *arguments);
LOOM_OP_LIST(LOOM_CUDA_DECLARE)
#undef LOOM_CUDA_DECLARE

/* The answer of an op that needs none; its file defines it beside the op. */
#define LOOM_CUDA_NO_WORKSPACE(name)                                                                                   \
    size_t loom_cuda_##name##_workspace(const struct loom_##name *arguments) {                                         \
        (void)arguments;                                                                                               \
        return 0;                                                                                                      \
    }

/* Why the attention kernels do not take a head size, or NULL. */
const char *loom_cuda_attention_refusal(int64_t head_size);

/* dbias (O) = or += the sum over rows of dout (N,O): what matmul_backward_weight does beside its product. `workspace`
 * holds loom_cuda_bias_gradient_workspace(N, O) bytes. */
void loom_cuda_bias_gradient(loom_context *ctx, const loom_view *dbias, const loom_view *dout, bool accumulate,
                             void *workspace);
size_t loom_cuda_bias_gradient_workspace(int64_t N, int64_t O);

/* dbias (O) = or += sums (O) fp32, what cuBLASLt has summed up. */
void loom_cuda_bias_gradient_take(loom_context *ctx, const loom_view *dbias, const void *sums, bool accumulate);

/* ----------------------------------------------------------------------------------------- csrc/cuda, for the kernels */

/* The CUDA stream of an ctx, a cudaStream_t. */
struct CUstream_st *loom_cuda_stream(const loom_context *ctx);

/* Keeps the first failure of a launch (a cudaError_t) until the device is waited for, which then fails with both. */
void loom_cuda_failed(const loom_context *ctx, const char *kernel, int error);

#ifdef __cplusplus
}
#endif
#endif
