/* Attention forward, fp16. */
#include "kernels/attention_forward_mma.cuh"

void loom_cuda_attention_forward_fp16(const loom_context *ctx, const attention_forward_arguments &a) {
    attention_forward_16_bit<fp16>(ctx, a);
}
