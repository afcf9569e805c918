#include "cpu/definition.h"

#include <stddef.h>

/* What each view of each op may be stored as: in the model's storage type (one for all views of a call), as reals, as
 * token ids, or each for itself. */
typedef enum storage { MODEL, REALS, IDS, ANY } storage;

typedef struct argument {
    loom_op op;
    size_t offset;
    storage storage;
    bool optional;
} argument;

#define VIEW(op, member, storage)                                                                                      \
    { LOOM_OP_##op, offsetof(struct loom_##op, member), storage, false }
#define OPTIONAL_VIEW(op, member, storage)                                                                             \
    { LOOM_OP_##op, offsetof(struct loom_##op, member), storage, true }

static const argument arguments_of_ops[] = {
    VIEW(embedding_forward, out, MODEL),
    VIEW(embedding_forward, tokens, IDS),
    VIEW(embedding_forward, token_weight, MODEL),
    VIEW(embedding_forward, position_weight, MODEL),
    VIEW(embedding_backward, token_gradient, REALS),
    VIEW(embedding_backward, position_gradient, REALS),
    VIEW(embedding_backward, dout, MODEL),
    VIEW(embedding_backward, tokens, IDS),
    VIEW(layernorm_forward, out, MODEL),
    OPTIONAL_VIEW(layernorm_forward, sum, MODEL),
    VIEW(layernorm_forward, mean, REALS),
    VIEW(layernorm_forward, rstd, REALS),
    VIEW(layernorm_forward, x, MODEL),
    OPTIONAL_VIEW(layernorm_forward, delta, MODEL),
    VIEW(layernorm_forward, weight, MODEL),
    VIEW(layernorm_forward, bias, MODEL),
    VIEW(layernorm_backward, dx, MODEL),
    VIEW(layernorm_backward, dweight, ANY),
    VIEW(layernorm_backward, dbias, ANY),
    VIEW(layernorm_backward, dout, MODEL),
    OPTIONAL_VIEW(layernorm_backward, skip, MODEL),
    VIEW(layernorm_backward, x, MODEL),
    VIEW(layernorm_backward, weight, MODEL),
    VIEW(layernorm_backward, mean, REALS),
    VIEW(layernorm_backward, rstd, REALS),
    VIEW(matmul_forward, out, MODEL),
    OPTIONAL_VIEW(matmul_forward, preactivation, MODEL),
    VIEW(matmul_forward, x, MODEL),
    VIEW(matmul_forward, weight, MODEL),
    OPTIONAL_VIEW(matmul_forward, bias, MODEL),
    VIEW(matmul_backward_input, dx, MODEL),
    VIEW(matmul_backward_input, dout, MODEL),
    VIEW(matmul_backward_input, weight, MODEL),
    VIEW(matmul_backward_weight, dweight, ANY),
    OPTIONAL_VIEW(matmul_backward_weight, dbias, ANY),
    VIEW(matmul_backward_weight, dout, MODEL),
    VIEW(matmul_backward_weight, x, MODEL),
    VIEW(attention_forward, out, MODEL),
    VIEW(attention_forward, lse, REALS),
    VIEW(attention_forward, q, MODEL),
    VIEW(attention_forward, k, MODEL),
    VIEW(attention_forward, v, MODEL),
    VIEW(attention_backward, dq, MODEL),
    VIEW(attention_backward, dk, MODEL),
    VIEW(attention_backward, dv, MODEL),
    VIEW(attention_backward, dout, MODEL),
    VIEW(attention_backward, out, MODEL),
    VIEW(attention_backward, lse, REALS),
    VIEW(attention_backward, q, MODEL),
    VIEW(attention_backward, k, MODEL),
    VIEW(attention_backward, v, MODEL),
    VIEW(gelu_forward, out, MODEL),
    VIEW(gelu_forward, x, MODEL),
    VIEW(gelu_backward, dx, MODEL),
    VIEW(gelu_backward, dout, MODEL),
    VIEW(gelu_backward, x, MODEL),
    VIEW(relu_forward, out, MODEL),
    VIEW(relu_forward, x, MODEL),
    VIEW(relu_backward, dx, MODEL),
    VIEW(relu_backward, dout, MODEL),
    VIEW(relu_backward, x, MODEL),
    VIEW(softmax_forward, out, MODEL),
    VIEW(softmax_forward, x, MODEL),
    VIEW(softmax_backward, dx, MODEL),
    VIEW(softmax_backward, dout, MODEL),
    VIEW(softmax_backward, out, MODEL),
    VIEW(cross_entropy, losses, REALS),
    OPTIONAL_VIEW(cross_entropy, dlogits, MODEL),
    VIEW(cross_entropy, logits, MODEL),
    VIEW(cross_entropy, targets, IDS),
    VIEW(block_sum, partials, REALS),
    VIEW(block_sum, x, ANY),
    VIEW(step_scalars, losses, REALS),
    VIEW(step_scalars, squares, REALS),
    VIEW(adamw, parameter, REALS),
    VIEW(adamw, gradient, REALS),
    VIEW(adamw, moment1, REALS),
    VIEW(adamw, moment2, REALS),
    VIEW(cast, out, ANY),
    VIEW(cast, x, ANY),
    VIEW(fill, out, ANY),
};
#undef VIEW
#undef OPTIONAL_VIEW

static bool known(loom_dtype dtype) {
    return dtype == LOOM_REAL_DTYPE || (LOOM_REAL_DTYPE == LOOM_F32 && dtype == LOOM_BF16);
}

/* What is wrong with the shapes of an attention, or NULL. */
static const char *check_attention(const loom_view *q, const loom_view *k, int64_t first_query) {
    if (q->shape[2] % k->shape[2] != 0) return "query heads that key heads do not divide";
    if (first_query < 0 || first_query + q->shape[1] > k->shape[1]) return "queries that stand behind the last key";
    return NULL;
}

/* What is wrong between the arguments of an op whose views are each in order, or NULL. */
static const char *check_together(loom_op op, const void *arguments) {
    const struct loom_attention_forward *attention = arguments;
    const struct loom_attention_backward *attention_backward = arguments;
    const struct loom_matmul_forward *matmul = arguments;
    const struct loom_layernorm_forward *layernorm = arguments;
    switch (op) {
    case LOOM_OP_attention_forward: return check_attention(&attention->q, &attention->k, attention->first_query);
    case LOOM_OP_attention_backward:
        return check_attention(&attention_backward->q, &attention_backward->k, attention_backward->first_query);
    case LOOM_OP_matmul_forward:
        return matmul->activation != LOOM_ACTIVATION_NONE && !loom_view_given(&matmul->preactivation)
                   ? "an activation without a place for what it is applied to"
                   : NULL;
    case LOOM_OP_layernorm_forward:
        return loom_view_given(&layernorm->delta) && !loom_view_given(&layernorm->sum) ? "a delta without a sum" : NULL;
    default: return NULL;
    }
}

bool LOOM_DEFINITION(supports)(const loom_device *device, loom_op op, const void *arguments, const char **why) {
    (void)device;
    const loom_view *model = NULL;
    for (size_t i = 0; i < sizeof arguments_of_ops / sizeof *arguments_of_ops; i++) {
        const argument *row = &arguments_of_ops[i];
        const loom_view *view = (const void *)((const char *)arguments + row->offset);
        if (row->op != op) continue;
        if (!loom_view_given(view)) {
            if (row->optional) continue;
            return *why = "a missing argument", false;
        }
        if (row->storage == IDS     ? view->dtype != LOOM_I32
            : row->storage == REALS ? view->dtype != LOOM_REAL_DTYPE
                                    : !known(view->dtype))
            return *why = "a dtype that this device does not compute with", false;
        if (row->storage == MODEL && model && model->dtype != view->dtype)
            return *why = "activations and weights of different dtypes", false;
        if (row->storage == MODEL) model = view;
        if (view->stride[3] != 1) return *why = "an innermost dimension that is not contiguous", false;
    }
    const char *wrong = check_together(op, arguments);
    if (wrong) *why = wrong;
    return !wrong;
}

size_t LOOM_DEFINITION(workspace)(const loom_device *device, loom_op op, const void *arguments) {
    switch (op) {
    case LOOM_OP_embedding_forward: return LOOM_DEFINITION(embedding_scratch)(device, arguments);
    case LOOM_OP_layernorm_forward: return LOOM_DEFINITION(layernorm_forward_scratch)(device, arguments);
    case LOOM_OP_layernorm_backward: return LOOM_DEFINITION(layernorm_backward_scratch)(device, arguments);
    case LOOM_OP_matmul_forward:
    case LOOM_OP_matmul_backward_input:
    case LOOM_OP_matmul_backward_weight: return LOOM_DEFINITION(matmul_scratch)(device);
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
    case LOOM_OP_embedding_backward:
    case LOOM_OP_block_sum:
    case LOOM_OP_step_scalars:
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
