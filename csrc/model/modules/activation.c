#include "model/gpt.h"

/* The tanh form of GELU (Hendrycks and Gimpel, 2016), or ReLU; part of the linear layer before it. */

loom_value loom_activate(loom_tape *t, loom_value x, loom_activation activation) {
    const loom_value out = loom_tape_value_add(t, LOOM_VALUE_ROWS, loom_tape_columns(t, x));
    loom_node *n = loom_tape_node_add(t, &loom_module_activation);
    if (!n) return 0;
    n->in[0] = x;
    n->out[0] = out;
    n->activation = activation;
    return out;
}

void loom_run_activation(loom_gpt *g, loom_activation activation, loom_view out, loom_view x) {
    if (activation == LOOM_ACTIVATION_RELU)
        g->ctx.ops->relu_forward(&g->ctx, &(struct loom_relu_forward){.out = out, .x = x});
    else
        g->ctx.ops->gelu_forward(&g->ctx, &(struct loom_gelu_forward){.out = out, .x = x});
}

/* In place: the gradient of the output becomes that of x. */
void loom_run_activation_backward(loom_gpt *g, loom_activation activation, loom_view d, loom_view x) {
    if (activation == LOOM_ACTIVATION_RELU)
        g->ctx.ops->relu_backward(&g->ctx, &(struct loom_relu_backward){.dx = d, .dout = d, .x = x});
    else
        g->ctx.ops->gelu_backward(&g->ctx, &(struct loom_gelu_backward){.dx = d, .dout = d, .x = x});
}

const loom_module loom_module_activation = {.name = "activation"};
