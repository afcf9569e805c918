#include "model/gpt.h"

/* The tanh form of GELU (Hendrycks and Gimpel, 2016), or ReLU. */

void loom_run_activation(loom_gpt *g, loom_activation activation, loom_view out, loom_view x) {
    if (activation == LOOM_ACTIVATION_RELU)
        g->exec.ops->relu_forward(&g->exec, &(struct loom_relu_forward){.out = out, .x = x});
    else
        g->exec.ops->gelu_forward(&g->exec, &(struct loom_gelu_forward){.out = out, .x = x});
}

/* In place: the gradient of the output becomes that of x. */
void loom_run_activation_backward(loom_gpt *g, loom_activation activation, loom_view d, loom_view x) {
    if (activation == LOOM_ACTIVATION_RELU)
        g->exec.ops->relu_backward(&g->exec, &(struct loom_relu_backward){.dx = d, .dout = d, .x = x});
    else
        g->exec.ops->gelu_backward(&g->exec, &(struct loom_gelu_backward){.dx = d, .dout = d, .x = x});
}
