#include "model/gpt.h"

#include "base/check.h"

#include <string.h>

/* The classifier, logits = x @ weight^T with a weight that is a token embedding too (Press and Wolf, 2017), and the
 * loss.
 *
 * Of all rows' logits only a chunk exists at a time. A training step's forward does with each chunk all that there is
 * to do, backward too: losses, the gradient of x, and the weight's; last it sums each sequence's losses. An
 * evaluation's leaves the losses, generation's the logits of the last row. Losses and the gradient of x do not depend
 * on the size of a chunk; the weight's gradient does in the order of its additions. */

void loom_head(loom_tape *t, loom_value x, const char *embedding) {
    loom_node *n = loom_tape_node_add(t, &loom_module_head);
    if (!n) return;
    n->in[0] = x;
    for (int i = 0; i < t->n_parameters; i++)
        if (!strcmp(t->parameter[i].name, embedding)) n->parameter[0] = i;
    LOOM_CHECK(n->parameter[0] >= 0);
}

static size_t bytes_of_rows(const loom_gpt *g, int64_t rows) {
    const size_t bytes = loom_bytes(rows * g->padded_vocabulary, g->precision.storage);
    return (bytes + LOOM_ARENA_ALIGNMENT - 1) / LOOM_ARENA_ALIGNMENT * LOOM_ARENA_ALIGNMENT;
}

/* What is sampled from is the last row in fp32, or in fp64 if it is. */
static bool are_narrow(const loom_gpt *g) {
    return loom_dtype_size(g->precision.storage) < sizeof(float);
}

size_t loom_logits_bytes(const loom_gpt *g, int64_t rows) {
    return bytes_of_rows(g, rows) + (are_narrow(g) ? loom_bytes(g->padded_vocabulary, LOOM_F32) : 0);
}

loom_view loom_run_logits(const loom_gpt *g, int64_t rows) {
    void *data = (void *)((uintptr_t)g->activations + g->buffers[g->mode].logits);
    return loom_view_2d(data, g->precision.storage, rows, g->padded_vocabulary);
}

loom_view loom_run_last_logits(const loom_gpt *g) {
    const loom_view logits = loom_run_logits(g, 1);
    if (!are_narrow(g)) return logits;
    return loom_view_2d((void *)((uintptr_t)logits.data + bytes_of_rows(g, 1)), LOOM_F32, 1, g->padded_vocabulary);
}

void loom_run_last_probabilities(loom_gpt *g, float scale) {
    const loom_view row = loom_run_last_logits(g);
    const loom_view vocabulary = loom_view_2d(row.data, row.dtype, 1, g->config.vocab_size);
    g->ctx.ops->softmax_forward(&g->ctx,
                                &(struct loom_softmax_forward){.out = vocabulary, .x = vocabulary, .scale = scale});
}

static int64_t at_most(int64_t n, int64_t most) {
    return n < most ? n : most;
}

static void classify(loom_gpt *g, const loom_node *n, loom_view out, loom_view x) {
    g->ctx.ops->matmul_forward(
        &g->ctx, &(struct loom_matmul_forward){
                     .out = out, .x = x, .weight = loom_run_parameter(g, n->parameter[0]), .transposed = true});
}

/* The two products between rows of x and of logits run group by group, each of the same shape in a chunk of any size:
 * then it is the same plan that computes a row, and the same bits. */
static void classify_in_groups(loom_gpt *g, const loom_node *n, loom_view logits, loom_view x) {
    for (int64_t first = 0; first < logits.shape[2]; first += g->group_rows) {
        const int64_t rows = at_most(logits.shape[2] - first, g->group_rows);
        classify(g, n, loom_view_rows(logits, first, rows), loom_view_rows(x, first, rows));
    }
}

static void backward_in_groups(loom_gpt *g, const loom_node *n, loom_view dx, loom_view dlogits) {
    for (int64_t first = 0; first < dlogits.shape[2]; first += g->group_rows) {
        const int64_t rows = at_most(dlogits.shape[2] - first, g->group_rows);
        g->ctx.ops->matmul_backward_input(
            &g->ctx, &(struct loom_matmul_backward_input){.dx = loom_view_rows(dx, first, rows),
                                                          .dout = loom_view_rows(dlogits, first, rows),
                                                          .weight = loom_run_parameter(g, n->parameter[0]),
                                                          .transposed = true});
    }
}

/* In the same place for each micro-batch, as a graph writes there. */
static void sum_losses(loom_gpt *g) {
    const loom_dtype statistics = g->device->statistics;
    const int64_t B = g->rows.B, T = g->rows.T;
    g->ctx.ops->block_sum(&g->ctx, &(struct loom_block_sum){.partials = loom_view_1d(g->loss_sums, statistics, B),
                                                            .x = loom_view_1d(g->losses, statistics, B * T),
                                                            .block = T});
}

static void losses(loom_gpt *g, const loom_node *node, loom_view x) {
    const bool trains = g->mode == LOOM_MODE_TRAIN;
    const int64_t N = x.shape[2];
    for (int64_t first = 0; first < N; first += g->chunk_rows) {
        const int64_t n = at_most(N - first, g->chunk_rows);
        const loom_view logits = loom_run_logits(g, n);
        const loom_view rows = loom_view_rows(x, first, n);
        classify_in_groups(g, node, logits, rows);
        struct loom_cross_entropy a = {
            .losses = loom_view_1d(loom_element(g->losses, first, g->device->statistics), g->device->statistics, n),
            .logits = logits,
            .targets = loom_view_1d(loom_element(g->targets, first, LOOM_I32), LOOM_I32, n),
            .vocab_size = g->config.vocab_size,
            .scalars = g->scalars};
        if (trains) a.dlogits = logits;
        g->ctx.ops->cross_entropy(&g->ctx, &a);
        if (!trains) continue;
        backward_in_groups(g, node, loom_view_rows(loom_run_gradient(g, node->in[0]), first, n), logits);
        g->ctx.ops->matmul_backward_weight(&g->ctx, &(struct loom_matmul_backward_weight){
                                                        .dweight = loom_run_parameter_gradient(g, node->parameter[0]),
                                                        .dout = logits,
                                                        .x = rows,
                                                        .transposed = true,
                                                        .accumulate = loom_run_accumulates(g, node, 0) || first > 0});
    }
    if (trains) sum_losses(g);
}

static void last_logits(loom_gpt *g, const loom_node *node, loom_view x) {
    const loom_view logits = loom_run_logits(g, 1);
    classify(g, node, logits, loom_view_rows(x, x.shape[2] - 1, 1));
    if (are_narrow(g)) g->ctx.ops->cast(&g->ctx, &(struct loom_cast){.out = loom_run_last_logits(g), .x = logits});
}

static void forward(loom_gpt *g, const loom_node *n, unsigned wanted) {
    (void)wanted;
    const loom_view x = loom_run_value(g, n->in[0]);
    if (g->mode == LOOM_MODE_GENERATE)
        last_logits(g, n, x);
    else
        losses(g, n, x);
}

const loom_module loom_module_head = {.name = "head", .forward = forward};
