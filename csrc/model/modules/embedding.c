#include "model/gpt.h"

/* x = wte[token] + wpe[position]. */

static loom_view ids(const loom_gpt *g) {
    return loom_view_3d(g->tokens, LOOM_I32, 1, g->rows.B, g->rows.T);
}

static loom_view embedded(const loom_gpt *g, loom_view rows) {
    return loom_view_3d(rows.data, rows.dtype, g->rows.B, g->rows.T, rows.shape[3]);
}

static void forward(loom_gpt *g, const loom_node *n, unsigned wanted) {
    (void)wanted;
    g->exec.ops->embedding_forward(
        &g->exec, &(struct loom_embedding_forward){.out = embedded(g, loom_run_value(g, n->out[0])),
                                                   .tokens = ids(g),
                                                   .token_weight = loom_run_parameter(g, n->parameter[0]),
                                                   .position_weight = loom_run_parameter(g, n->parameter[1]),
                                                   .first_position = g->rows.past});
}

static void backward(loom_gpt *g, const loom_node *n, bool accumulate) {
    g->exec.ops->embedding_backward(&g->exec, &(struct loom_embedding_backward){
                                                  .token_gradient = loom_run_parameter_gradient(g, n->parameter[0]),
                                                  .position_gradient = loom_run_parameter_gradient(g, n->parameter[1]),
                                                  .dout = embedded(g, loom_run_gradient(g, n->out[0])),
                                                  .tokens = ids(g),
                                                  .accumulate_tokens = true, /* to the classifier's */
                                                  .accumulate_positions = accumulate});
}

const loom_module loom_module_embedding = {
    .name = "embedding", .output = {"x"}, .forward = forward, .backward = backward};
