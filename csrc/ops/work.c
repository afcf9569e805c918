#include "ops/arguments.h"

/* What an op has to do at least, whoever implements it. */

static double elements(const loom_view *view) {
    return (double)loom_view_elements(view);
}

static double bytes(const loom_view *view) {
    return elements(view) * (double)loom_dtype_size(view->dtype);
}

/* Of a table of rows, so many of them. */
static double bytes_of_rows(const loom_view *table, int64_t rows) {
    const double all = (double)loom_view_row_count(table);
    return bytes(table) * ((double)rows < all ? (double)rows / all : 1);
}

/* ------------------------------------------------------------------------------------------------------- arithmetic */

/* 2mnk, with one of the three matrices and the dimension that it lacks. */
static double product(const loom_view *matrix, int64_t third) {
    return 2 * elements(matrix) * (double)third;
}

/* One product of all queries with the keys they see: half the square and its diagonal. */
static double attention_product(const loom_view *q, int64_t first_query) {
    const double T = (double)q->shape[1], pairs = T * (double)first_query + T * (T + 1) / 2;
    return 2 * pairs * (double)(q->shape[0] * q->shape[2] * q->shape[3]);
}

/* Of matrix products alone: all else is bound by memory. */
static double flops_of(loom_op op, const void *arguments) {
    const struct loom_matmul_forward *forward = arguments;
    const struct loom_matmul_backward_input *input = arguments;
    const struct loom_matmul_backward_weight *weight = arguments;
    const struct loom_attention_forward *attention = arguments;
    const struct loom_attention_backward *attention_backward = arguments;
    switch (op) {
    case LOOM_OP_matmul_forward: return product(&forward->out, forward->x.shape[3]);
    case LOOM_OP_matmul_backward_input: return product(&input->dx, input->dout.shape[3]);
    case LOOM_OP_matmul_backward_weight: return product(&weight->x, weight->dout.shape[3]);
    case LOOM_OP_attention_forward: return 2 * attention_product(&attention->q, attention->first_query);
    case LOOM_OP_attention_backward:
        return 5 * attention_product(&attention_backward->q, attention_backward->first_query);
    default: return 0;
    }
}

/* ----------------------------------------------------------------------------------------------------------- memory */

/* Of its two tables, the batch's rows. */
static double embedding_forward_bytes(const struct loom_embedding_forward *a) {
    return bytes(&a->out) + bytes(&a->tokens) + bytes_of_rows(&a->token_weight, loom_view_elements(&a->tokens)) +
           bytes_of_rows(&a->position_weight, a->tokens.shape[3]);
}

/* A table that is added to is read and written in the batch's rows; else it is written everywhere. */
static double embedding_backward_bytes(const struct loom_embedding_backward *a) {
    const int64_t T = a->tokens.shape[3];
    const loom_view *tokens = &a->token_gradient, *positions = &a->position_gradient;
    return bytes(&a->dout) + bytes(&a->tokens) +
           (a->accumulate_tokens ? 2 * bytes_of_rows(tokens, loom_view_elements(&a->tokens)) : bytes(tokens)) +
           (a->accumulate_positions ? 2 * bytes_of_rows(positions, T) : bytes(positions));
}

/* Every view once, and twice what is read and written. */
static double view_bytes(loom_op op, const void *arguments) {
    loom_argument list[LOOM_MOST_VIEWS];
    const int n = loom_op_views(op, arguments, list);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += bytes(list[i].view) * (list[i].read + list[i].written);
    return sum;
}

static double bytes_of(loom_op op, const void *arguments) {
    switch (op) {
    case LOOM_OP_embedding_forward: return embedding_forward_bytes(arguments);
    case LOOM_OP_embedding_backward: return embedding_backward_bytes(arguments);
    default: return view_bytes(op, arguments);
    }
}

loom_work loom_op_work(loom_op op, const void *arguments) {
    return (loom_work){.flops = flops_of(op, arguments), .bytes = bytes_of(op, arguments)};
}
