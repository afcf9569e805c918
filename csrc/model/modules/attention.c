#include "model/gpt.h"

#include <math.h>

/* Causal self-attention, softmax(q k^T / sqrt(D)) v, of queries, keys and values that lie side by side: (B,T,3,H,D).
 * While generating, keys and values are those of all tokens seen. */

loom_value loom_attention(loom_tape *t, loom_value qkv, int64_t heads) {
    const loom_value out = loom_tape_value_add(t, LOOM_VALUE_ROWS, loom_tape_columns(t, qkv) / 3);
    const loom_value lse = loom_tape_value_add(t, LOOM_VALUE_PER_HEAD, heads);
    loom_node *n = loom_tape_node_add(t, &loom_module_attention);
    if (!n) return 0;
    n->in[0] = qkv;
    n->out[0] = out;
    n->out[1] = lse;
    n->heads = heads;
    t->value[qkv].cached = true;
    return out;
}

static void forward(loom_gpt *g, const loom_node *n, unsigned wanted) {
    (void)wanted;
    const loom_view qkv = loom_run_value(g, n->in[0]), all = loom_run_cached(g, n->in[0]);
    const loom_view out = loom_run_heads(g, loom_run_value(g, n->out[0]), 0, 1, n->heads);
    g->ctx.ops->attention_forward(&g->ctx, &(struct loom_attention_forward){.out = out,
                                                                            .lse = loom_run_value(g, n->out[1]),
                                                                            .q = loom_run_heads(g, qkv, 0, 3, n->heads),
                                                                            .k = loom_run_heads(g, all, 1, 3, n->heads),
                                                                            .v = loom_run_heads(g, all, 2, 3, n->heads),
                                                                            .first_query = g->rows.past,
                                                                            .scale = 1 / sqrtf((float)out.shape[3])});
}

static void backward(loom_gpt *g, const loom_node *n) {
    const loom_view qkv = loom_run_value(g, n->in[0]), dqkv = loom_run_gradient(g, n->in[0]);
    const loom_view out = loom_run_heads(g, loom_run_value(g, n->out[0]), 0, 1, n->heads);
    const loom_view dout = loom_run_heads(g, loom_run_gradient(g, n->out[0]), 0, 1, n->heads);
    g->ctx.ops->attention_backward(&g->ctx,
                                   &(struct loom_attention_backward){.dq = loom_run_heads(g, dqkv, 0, 3, n->heads),
                                                                     .dk = loom_run_heads(g, dqkv, 1, 3, n->heads),
                                                                     .dv = loom_run_heads(g, dqkv, 2, 3, n->heads),
                                                                     .dout = dout,
                                                                     .out = out,
                                                                     .lse = loom_run_value(g, n->out[1]),
                                                                     .q = loom_run_heads(g, qkv, 0, 3, n->heads),
                                                                     .k = loom_run_heads(g, qkv, 1, 3, n->heads),
                                                                     .v = loom_run_heads(g, qkv, 2, 3, n->heads),
                                                                     .scale = 1 / sqrtf((float)out.shape[3])});
}

const loom_module loom_module_attention = {.name = "attention",
                                           .output = {"out", "lse"},
                                           .needs_in = 1,
                                           .needs_out = 3,
                                           .kept_up_to = {LOOM_RECOMPUTE_BLOCK_ATTN, LOOM_RECOMPUTE_BLOCK_ATTN},
                                           .forward = forward,
                                           .backward = backward};
