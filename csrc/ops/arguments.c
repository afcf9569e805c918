#include "ops/arguments.h"

#include <math.h>
#include <stddef.h>

/* What each view of each op may be stored as: in the model's storage type (one for all views of a call), as reals, as
 * reals or in bf16 (weights' gradients, and what AdamW updates), as token ids, or each for itself. */
typedef enum storage { MODEL, REALS, REALS_OR_BF16, IDS, ANY } storage;

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
    VIEW(embedding_backward, token_gradient, REALS_OR_BF16),
    VIEW(embedding_backward, position_gradient, REALS_OR_BF16),
    VIEW(embedding_backward, dout, MODEL),
    VIEW(embedding_backward, tokens, IDS),
    OPTIONAL_VIEW(layernorm_forward, out, MODEL),
    OPTIONAL_VIEW(layernorm_forward, sum, MODEL),
    VIEW(layernorm_forward, mean, REALS),
    VIEW(layernorm_forward, rstd, REALS),
    VIEW(layernorm_forward, x, MODEL),
    OPTIONAL_VIEW(layernorm_forward, delta, MODEL),
    VIEW(layernorm_forward, weight, MODEL),
    VIEW(layernorm_forward, bias, MODEL),
    VIEW(layernorm_backward, dx, MODEL),
    VIEW(layernorm_backward, dweight, REALS_OR_BF16),
    VIEW(layernorm_backward, dbias, REALS_OR_BF16),
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
    VIEW(matmul_backward_weight, dweight, REALS_OR_BF16),
    OPTIONAL_VIEW(matmul_backward_weight, dbias, REALS_OR_BF16),
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
    VIEW(add, out, ANY),
    VIEW(add, a, ANY),
    VIEW(add, b, ANY),
    VIEW(block_sum, partials, REALS),
    VIEW(block_sum, x, ANY),
    VIEW(optimizer_scalars, losses, REALS),
    VIEW(optimizer_scalars, squares, REALS),
    VIEW(adamw, parameter, REALS_OR_BF16),
    OPTIONAL_VIEW(adamw, copy, ANY),
    VIEW(adamw, gradient, REALS_OR_BF16),
    VIEW(adamw, moment1, REALS_OR_BF16),
    VIEW(adamw, moment2, REALS_OR_BF16),
    VIEW(cast, out, ANY),
    VIEW(cast, x, ANY),
    VIEW(fill, out, ANY),
};
#undef VIEW
#undef OPTIONAL_VIEW

/* What is wrong with the shapes of an attention, or NULL. */
static const char *check_attention(const loom_view *q, const loom_view *k, int64_t first_query) {
    if (q->shape[2] % k->shape[2] != 0) return "query heads that key heads do not divide";
    if (first_query < 0 || first_query + q->shape[1] > k->shape[1]) return "queries that stand behind the last key";
    return NULL;
}

/* What is wrong between the vectors of an addition, or NULL. Its callers cut them out of larger memory themselves. */
static const char *check_add(const struct loom_add *a) {
    if (a->a.dtype != a->out.dtype || a->b.dtype != a->out.dtype) return "terms and a sum of different dtypes";
    if (a->a.shape[3] != a->out.shape[3] || a->b.shape[3] != a->out.shape[3])
        return "terms and a sum of different lengths";
    const bool vectors = loom_view_row_count(&a->out) == 1 && loom_view_row_count(&a->a) == 1 &&
                         loom_view_row_count(&a->b) == 1;
    return vectors ? NULL : "terms or a sum of several rows";
}

static const char *check_adamw(const struct loom_adamw *a) {
    if (loom_view_given(&a->copy) && a->parameter.dtype == LOOM_BF16)
        return "a rounded copy of parameters that are rounded themselves";
    if (a->moment1.dtype != a->moment2.dtype) return "two moments of different dtypes";
    if (a->decayed.n < 0 || a->decayed.n > LOOM_MOST_RANGES) return "more ranges than an op is told of";
    int64_t done = 0;
    for (int i = 0; i < a->decayed.n; i++) {
        const loom_element_range *range = &a->decayed.at[i];
        if (range->first < done || range->last < range->first) return "ranges that are not in their order";
        done = range->last;
    }
    return done > a->parameter.shape[3] ? "a range that goes beyond the parameters" : NULL;
}

/* Likewise between the gradients of two weights. */
static const char *check_gradients(const loom_view *a, const loom_view *b) {
    return loom_view_given(b) && a->dtype != b->dtype ? "two gradients of different dtypes" : NULL;
}

/* A softmax subtracts the largest value, which it is only before a scale above zero. */
static const char *check_scale(float scale) {
    return scale > 0 && scale < INFINITY ? NULL : "a scale that is no number above zero";
}

/* What is wrong between the arguments of an op whose views are each in order, or NULL. */
static const char *check_together(loom_op op, const void *arguments) {
    const struct loom_attention_forward *attention = arguments;
    const struct loom_attention_backward *attention_backward = arguments;
    const struct loom_matmul_forward *matmul = arguments;
    const struct loom_matmul_backward_weight *matmul_backward = arguments;
    const struct loom_layernorm_forward *layernorm = arguments;
    const struct loom_layernorm_backward *layernorm_backward = arguments;
    const struct loom_embedding_backward *embedding_backward = arguments;
    switch (op) {
    case LOOM_OP_embedding_backward:
        return check_gradients(&embedding_backward->token_gradient, &embedding_backward->position_gradient);
    case LOOM_OP_layernorm_backward: return check_gradients(&layernorm_backward->dweight, &layernorm_backward->dbias);
    case LOOM_OP_attention_forward: return check_attention(&attention->q, &attention->k, attention->first_query);
    case LOOM_OP_attention_backward:
        return check_attention(&attention_backward->q, &attention_backward->k, attention_backward->first_query);
    case LOOM_OP_matmul_forward:
        return matmul->activation != LOOM_ACTIVATION_NONE && !loom_view_given(&matmul->preactivation)
                   ? "an activation without a place for what it is applied to"
                   : NULL;
    case LOOM_OP_matmul_backward_weight: return check_gradients(&matmul_backward->dweight, &matmul_backward->dbias);
    case LOOM_OP_layernorm_forward:
        return loom_view_given(&layernorm->delta) && !loom_view_given(&layernorm->sum) ? "a delta without a sum" : NULL;
    case LOOM_OP_softmax_forward: return check_scale(((const struct loom_softmax_forward *)arguments)->scale);
    case LOOM_OP_softmax_backward: return check_scale(((const struct loom_softmax_backward *)arguments)->scale);
    case LOOM_OP_add: return check_add(arguments);
    case LOOM_OP_adamw: return check_adamw(arguments);
    default: return NULL;
    }
}

/* The i-th row's view in an op's arguments, or NULL where the row is another op's or an optional view is not given. */
static const loom_view *view_of(const argument *row, loom_op op, const void *arguments) {
    if (row->op != op) return NULL;
    const loom_view *view = (const void *)((const char *)arguments + row->offset);
    return row->optional && !loom_view_given(view) ? NULL : view;
}

static bool dtype_fits(storage allowed, loom_dtype dtype, loom_dtype real, unsigned stored) {
    switch (allowed) {
    case IDS: return dtype == LOOM_I32;
    case REALS: return dtype == real;
    case REALS_OR_BF16: return dtype == real || (dtype == LOOM_BF16 && stored & 1u << LOOM_BF16);
    case MODEL:
    case ANY: return (stored & 1u << dtype) != 0;
    }
    return false;
}

const char *loom_check_arguments(loom_op op, const void *arguments, loom_dtype real, unsigned stored) {
    const loom_view *model = NULL;
    for (size_t i = 0; i < sizeof arguments_of_ops / sizeof *arguments_of_ops; i++) {
        const argument *row = &arguments_of_ops[i];
        const loom_view *view = view_of(row, op, arguments);
        if (!view) continue;
        if (!loom_view_given(view)) return "a missing argument";
        if (!dtype_fits(row->storage, view->dtype, real, stored))
            return "a dtype that this device does not compute with";
        if (row->storage == MODEL && model && model->dtype != view->dtype)
            return "activations and weights of different dtypes";
        if (row->storage == MODEL) model = view;
        if (view->stride[3] != 1) return "an innermost dimension that is not contiguous";
    }
    return check_together(op, arguments);
}

double loom_argument_bytes(loom_op op, const void *arguments) {
    double bytes = 0;
    for (size_t i = 0; i < sizeof arguments_of_ops / sizeof *arguments_of_ops; i++) {
        const loom_view *view = view_of(&arguments_of_ops[i], op, arguments);
        if (view) bytes += (double)loom_view_elements(view) * (double)loom_dtype_size(view->dtype);
    }
    return bytes;
}

bool loom_rows_regular(const loom_view *view) {
    const int64_t *shape = view->shape, *stride = view->stride;
    return (shape[1] == 1 || stride[1] == shape[2] * stride[2]) &&
           (shape[0] == 1 || stride[0] == shape[1] * shape[2] * stride[2]);
}

const char *loom_check_rows(loom_op op, const void *arguments) {
    for (size_t i = 0; i < sizeof arguments_of_ops / sizeof *arguments_of_ops; i++) {
        const loom_view *view = view_of(&arguments_of_ops[i], op, arguments);
        if (view && !loom_rows_regular(view)) return "rows that are not one stride apart";
    }
    return NULL;
}
