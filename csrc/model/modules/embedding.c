#include "model/gpt.h"

/* x = token_weight[token] + position_weight[position]. */

loom_value loom_embed(loom_tape *t, const loom_gpt_config *c, const char *tokens, const char *positions) {
    const int64_t columns = c->n_embd;
    const int token = loom_tape_parameter_add(t, tokens, "weight", c->vocab_size, columns, LOOM_INITIAL_NORMAL);
    const int position = loom_tape_parameter_add(t, positions, "weight", c->block_size, columns, LOOM_INITIAL_NORMAL);
    const loom_value out = loom_tape_value_add(t, LOOM_VALUE_ROWS, columns);
    loom_node *n = loom_tape_node_add(t, &loom_module_embedding);
    if (!n) return 0;
    t->parameter[token].padded_rows = loom_gpt_padded_vocabulary(c);
    n->parameter[0] = token;
    n->parameter[1] = position;
    n->out[0] = out;
    return out;
}

static loom_view ids(const loom_gpt *g) {
    return loom_view_3d(g->tokens, LOOM_I32, 1, g->rows.B, g->rows.T);
}

static loom_view embedded(const loom_gpt *g, loom_view rows) {
    return loom_view_3d(rows.data, rows.dtype, g->rows.B, g->rows.T, rows.shape[3]);
}

static void forward(loom_gpt *g, const loom_node *n, unsigned wanted) {
    (void)wanted;
    g->ctx.ops->embedding_forward(
        &g->ctx, &(struct loom_embedding_forward){.out = embedded(g, loom_run_value(g, n->out[0])),
                                                  .tokens = ids(g),
                                                  .token_weight = loom_run_parameter(g, n->parameter[0]),
                                                  .position_weight = loom_run_parameter(g, n->parameter[1]),
                                                  .first_position = g->rows.past});
}

static void backward(loom_gpt *g, const loom_node *n) {
    g->ctx.ops->embedding_backward(
        &g->ctx, &(struct loom_embedding_backward){.token_gradient = loom_run_parameter_gradient(g, n->parameter[0]),
                                                   .position_gradient = loom_run_parameter_gradient(g, n->parameter[1]),
                                                   .dout = embedded(g, loom_run_gradient(g, n->out[0])),
                                                   .tokens = ids(g),
                                                   .accumulate_tokens = loom_run_accumulates(g, n, 0),
                                                   .accumulate_positions = loom_run_accumulates(g, n, 1)});
}

const loom_module loom_module_embedding = {.name = "embedding",
                                           .output = {"x"},
                                           .kept_up_to = {LOOM_RECOMPUTE_BLOCK},
                                           .forward = forward,
                                           .backward = backward,
                                           .backward_reads_no_parameters = true};
