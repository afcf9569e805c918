#include "cuda/cuda.h"
#include "cuda/matmul.h"

#include "ops/arguments.h"

/* The table of our own kernels, and its three questions. */

/* Attention steps through its views by all their strides; but it does not take every size of a head. */
static const char *attention_refusal(loom_op op, const void *arguments) {
    if (op == LOOM_OP_attention_forward)
        return loom_cuda_attention_refusal(((const struct loom_attention_forward *)arguments)->q.shape[3]);
    if (op == LOOM_OP_attention_backward)
        return loom_cuda_attention_refusal(((const struct loom_attention_backward *)arguments)->q.shape[3]);
    return NULL;
}

static const char *refusal(loom_op op, const void *arguments) {
    switch (op) {
    case LOOM_OP_attention_forward:
    case LOOM_OP_attention_backward: return attention_refusal(op, arguments);
    case LOOM_OP_matmul_forward:
    case LOOM_OP_matmul_backward_input:
    case LOOM_OP_matmul_backward_weight: {
        const char *rows = loom_check_rows(op, arguments);
        return rows ? rows : loom_cuda_matmul_refusal(op, arguments);
    }
    default: return loom_check_rows(op, arguments);
    }
}

static bool supports(const loom_device *device, loom_op op, const void *arguments, const char **why) {
    const unsigned stored = 1u << LOOM_F32 | 1u << LOOM_BF16 | 1u << LOOM_F16;
    (void)device;
    *why = loom_check_arguments(op, arguments, LOOM_F32, stored);
    if (!*why) *why = refusal(op, arguments);
    return !*why;
}

static size_t workspace(const loom_device *device, loom_op op, const void *arguments) {
    (void)device;
    switch (op) {
#define CASE(name)                                                                                                     \
    case LOOM_OP_##name: return loom_cuda_##name##_workspace(arguments);
        LOOM_OP_LIST(CASE)
#undef CASE
    case LOOM_OP_COUNT: break;
    }
    return 0;
}

static bool prepare(loom_device *device, loom_op op, const void *arguments, loom_error *error) {
    switch (op) {
    case LOOM_OP_matmul_forward:
    case LOOM_OP_matmul_backward_input:
    case LOOM_OP_matmul_backward_weight: return loom_cuda_matmul_prepare(device, op, arguments, error);
    default: return true;
    }
}

const loom_ops *loom_cuda_ops(void) {
#define MEMBER(name) .name = loom_cuda_##name,
    static const loom_ops ops = {LOOM_OP_LIST(MEMBER).supports = supports, .workspace = workspace, .prepare = prepare};
#undef MEMBER
    return &ops;
}
