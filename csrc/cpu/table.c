#include "cpu/definition.h"

#include "ops/arguments.h"

bool LOOM_DEFINITION(supports)(const loom_device *device, loom_op op, const void *arguments, const char **why) {
    const unsigned stored = 1u << LOOM_REAL_DTYPE |
                            (LOOM_REAL_DTYPE == LOOM_F32 ? 1u << LOOM_BF16 | 1u << LOOM_F16 : 0);
    (void)device;
    const char *wrong = loom_check_arguments(op, arguments, LOOM_REAL_DTYPE, stored);
    if (wrong) *why = wrong;
    return !wrong;
}

size_t LOOM_DEFINITION(workspace)(const loom_device *device, loom_op op, const void *arguments) {
    switch (op) {
    case LOOM_OP_embedding_forward: return LOOM_DEFINITION(embedding_scratch)(device, arguments);
    case LOOM_OP_embedding_backward: return LOOM_DEFINITION(embedding_backward_scratch)(arguments);
    case LOOM_OP_layernorm_forward: return LOOM_DEFINITION(layernorm_forward_scratch)(device, arguments);
    case LOOM_OP_layernorm_backward: return LOOM_DEFINITION(layernorm_backward_scratch)(device, arguments);
    case LOOM_OP_matmul_forward:
    case LOOM_OP_matmul_backward_input: return LOOM_DEFINITION(matmul_scratch)(device);
    case LOOM_OP_matmul_backward_weight: return LOOM_DEFINITION(matmul_backward_weight_scratch)(device, arguments);
    case LOOM_OP_attention_forward: return LOOM_DEFINITION(attention_forward_scratch)(device, arguments);
    case LOOM_OP_attention_backward: return LOOM_DEFINITION(attention_backward_scratch)(device, arguments);
    case LOOM_OP_gelu_forward:
        return LOOM_DEFINITION(gelu_scratch)(device, &((const struct loom_gelu_forward *)arguments)->x);
    case LOOM_OP_gelu_backward:
        return LOOM_DEFINITION(gelu_scratch)(device, &((const struct loom_gelu_backward *)arguments)->x);
    case LOOM_OP_relu_forward:
        return LOOM_DEFINITION(relu_scratch)(device, &((const struct loom_relu_forward *)arguments)->x);
    case LOOM_OP_relu_backward:
        return LOOM_DEFINITION(relu_scratch)(device, &((const struct loom_relu_backward *)arguments)->x);
    case LOOM_OP_softmax_forward:
        return LOOM_DEFINITION(softmax_scratch)(device, &((const struct loom_softmax_forward *)arguments)->x);
    case LOOM_OP_softmax_backward:
        return LOOM_DEFINITION(softmax_scratch)(device, &((const struct loom_softmax_backward *)arguments)->out);
    case LOOM_OP_cross_entropy: return LOOM_DEFINITION(cross_entropy_scratch)(device, arguments);
    case LOOM_OP_cast: return LOOM_DEFINITION(cast_scratch)(device, arguments);
    case LOOM_OP_add:
    case LOOM_OP_block_sum:
    case LOOM_OP_optimizer_scalars:
    case LOOM_OP_adamw:
    case LOOM_OP_fill:
    case LOOM_OP_COUNT: break;
    }
    return 0;
}

/* The definition plans nothing. */
static bool prepare(loom_device *device, loom_op op, const void *arguments, loom_error *error) {
    (void)device, (void)op, (void)arguments, (void)error;
    return true;
}

const loom_ops *LOOM_DEFINITION(ops)(void) {
#define MEMBER(name) .name = LOOM_DEFINITION(name),
    static const loom_ops ops = {LOOM_OP_LIST(MEMBER).supports = LOOM_DEFINITION(supports),
                                 .workspace = LOOM_DEFINITION(workspace), .prepare = prepare};
#undef MEMBER
    return &ops;
}
