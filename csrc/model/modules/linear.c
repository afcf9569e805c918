#include "model/gpt.h"

/* y = x @ weight + bias, and the activation of that if there is one. */

static void apply(loom_gpt *g, const loom_node *n) {
    const loom_view out = loom_run_value(g, n->out[LOOM_LINEAR_ACTIVATED]);
    loom_run_activation(g, n->activation, out, loom_run_value(g, n->out[LOOM_LINEAR_OUT]));
}

static void forward(loom_gpt *g, const loom_node *n, unsigned wanted) {
    if (!(wanted >> LOOM_LINEAR_OUT & 1)) {
        apply(g, n);
        return;
    }
    const bool activates = n->activation != LOOM_ACTIVATION_NONE;
    struct loom_matmul_forward a = {
        .out = loom_run_value(g, n->out[activates ? LOOM_LINEAR_ACTIVATED : LOOM_LINEAR_OUT]),
        .x = loom_run_value(g, n->in[0]),
        .weight = loom_run_parameter(g, n->parameter[0]),
        .bias = loom_run_parameter(g, n->parameter[1]),
        .activation = n->activation};
    if (activates) a.preactivation = loom_run_value(g, n->out[LOOM_LINEAR_OUT]);
    g->exec.ops->matmul_forward(&g->exec, &a);
}

static void backward(loom_gpt *g, const loom_node *n, bool accumulate) {
    const loom_view dout = loom_run_gradient(g, n->out[LOOM_LINEAR_OUT]), x = loom_run_value(g, n->in[0]);
    if (n->activation != LOOM_ACTIVATION_NONE)
        loom_run_activation_backward(g, n->activation, dout, loom_run_value(g, n->out[LOOM_LINEAR_OUT]));
    g->exec.ops->matmul_backward_input(
        &g->exec, &(struct loom_matmul_backward_input){.dx = loom_run_gradient(g, n->in[0]),
                                                       .dout = dout,
                                                       .weight = loom_run_parameter(g, n->parameter[0])});
    g->exec.ops->matmul_backward_weight(
        &g->exec, &(struct loom_matmul_backward_weight){.dweight = loom_run_parameter_gradient(g, n->parameter[0]),
                                                        .dbias = loom_run_parameter_gradient(g, n->parameter[1]),
                                                        .dout = dout,
                                                        .x = x,
                                                        .accumulate = accumulate});
}

const loom_module loom_module_linear = {.name = "linear",
                                        .output = {"out", "activated"},
                                        .needs_in = 1,
                                        .kept = {LOOM_KEEP_UP_TO_NORM, LOOM_KEEP_UP_TO_NONE},
                                        .forward = forward,
                                        .backward = backward};
