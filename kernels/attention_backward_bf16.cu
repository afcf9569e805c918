/* Attention backward, bf16. */
#include "kernels/attention_backward_mma.cuh"

void loom_cuda_attention_backward_bf16(const loom_context *ctx, const attention_backward_arguments &a) {
    attention_backward_16_bit<bf16>(ctx, a);
}
