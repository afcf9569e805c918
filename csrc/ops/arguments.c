#include "ops/arguments.h"

#include <math.h>

/* Access, as the lists of ops.h say it. */
enum { READ = 1, WRITTEN = 2, OPTIONAL = 4 };
#define ADDED_IF(flag) (WRITTEN | (a->flag ? READ : 0))

/* Appends a view, but for an optional one that is not given. */
static int add_view(loom_argument *list, int n, unsigned access, loom_argument argument) {
    if (access & OPTIONAL && !loom_view_given(argument.view)) return n;
    argument.read = access & READ;
    argument.written = access & WRITTEN;
    list[n] = argument;
    return n + 1;
}

/* For each op, its list as a function. What a struct has beside its views is smaller than a view, AdamW's ranges aside,
 * so that a list that lacks one is seen. */
#define ONE(...)    +1
#define COUNT(name) (0 LOOM_VIEWS_##name(ONE))
#define ADD_VIEW(member, storage, access, ...)                                                                         \
    n = add_view(list, n, access, (loom_argument){#member, "" __VA_ARGS__, &a->member, LOOM_STORED_##storage});
#define VIEWS(name)                                                                                                    \
    _Static_assert(COUNT(name) <= LOOM_MOST_VIEWS, "more views than a list holds");                                    \
    _Static_assert(sizeof(struct loom_##name) - COUNT(name) * sizeof(loom_view) -                                      \
                           (LOOM_OP_##name == LOOM_OP_adamw ? sizeof(loom_ranges) : 0) <                               \
                       sizeof(loom_view),                                                                              \
                   "LOOM_VIEWS_" #name " lacks a view");                                                               \
    static int views_of_##name(const void *arguments, loom_argument *list) {                                           \
        const struct loom_##name *a = arguments;                                                                       \
        int n = 0;                                                                                                     \
        LOOM_VIEWS_##name(ADD_VIEW) return n;                                                                          \
    }
LOOM_OP_LIST(VIEWS)
#undef VIEWS
#undef ADD_VIEW
#undef COUNT
#undef ONE
#undef ADDED_IF

int loom_op_views(loom_op op, const void *arguments, loom_argument list[LOOM_MOST_VIEWS]) {
#define ROW(name) views_of_##name,
    static int (*const views_of[])(const void *, loom_argument *) = {LOOM_OP_LIST(ROW)};
#undef ROW
    return views_of[op](arguments, list);
}

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

static bool dtype_fits(loom_storage storage, loom_dtype dtype, loom_dtype real, unsigned stored) {
    switch (storage) {
    case LOOM_STORED_IDS: return dtype == LOOM_I32;
    case LOOM_STORED_REALS: return dtype == real;
    case LOOM_STORED_REALS_OR_BF16: return dtype == real || (dtype == LOOM_BF16 && stored & 1u << LOOM_BF16);
    case LOOM_STORED_MODEL:
    case LOOM_STORED_ANY: return (stored & 1u << dtype) != 0;
    }
    return false;
}

const char *loom_check_arguments(loom_op op, const void *arguments, loom_dtype real, unsigned stored) {
    loom_argument list[LOOM_MOST_VIEWS];
    const int n = loom_op_views(op, arguments, list);
    const loom_view *model = NULL;
    for (int i = 0; i < n; i++) {
        const loom_view *view = list[i].view;
        if (!loom_view_given(view)) return "a missing argument";
        if (!dtype_fits(list[i].storage, view->dtype, real, stored))
            return "a dtype that this device does not compute with";
        if (list[i].storage == LOOM_STORED_MODEL && model && model->dtype != view->dtype)
            return "activations and weights of different dtypes";
        if (list[i].storage == LOOM_STORED_MODEL) model = view;
        if (view->stride[3] != 1) return "an innermost dimension that is not contiguous";
    }
    return check_together(op, arguments);
}

bool loom_rows_regular(const loom_view *view) {
    const int64_t *shape = view->shape, *stride = view->stride;
    return (shape[1] == 1 || stride[1] == shape[2] * stride[2]) &&
           (shape[0] == 1 || stride[0] == shape[1] * shape[2] * stride[2]);
}

const char *loom_check_rows(loom_op op, const void *arguments) {
    loom_argument list[LOOM_MOST_VIEWS];
    const int n = loom_op_views(op, arguments, list);
    for (int i = 0; i < n; i++)
        if (!loom_rows_regular(list[i].view)) return "rows that are not one stride apart";
    return NULL;
}
