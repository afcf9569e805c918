/* Attention backward, fp16. */
#include "kernels/attention_backward_mma.cuh"

void loom_cuda_attention_backward_fp16(const loom_context *ctx, const attention_backward_arguments &a) {
    attention_backward_16_bit<fp16>(ctx, a);
}
