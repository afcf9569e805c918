#include "model/gpt.h"

/* y = x @ weight + bias, and the activation of that if there is one. */

loom_value loom_linear(loom_tape *t, loom_value x, int64_t columns, const char *name) {
    const int weight = loom_tape_parameter_add(t, name, "weight", loom_tape_columns(t, x), columns,
                                               LOOM_INITIAL_NORMAL);
    const int bias = loom_tape_parameter_add(t, name, "bias", 0, columns, LOOM_INITIAL_ZERO);
    const loom_value out = loom_tape_value_add(t, LOOM_VALUE_ROWS, columns);
    loom_node *n = loom_tape_node_add(t, &loom_module_linear);
    if (!n) return 0;
    n->in[0] = x;
    n->out[LOOM_LINEAR_OUT] = out;
    n->parameter[0] = weight;
    n->parameter[1] = bias;
    return out;
}

/* With the activation of its output, which are its first and its second output then. */
static bool fuse(const loom_node *n, loom_node *next) {
    if (next->module != &loom_module_activation || next->in[0] != n->out[0]) return false;
    const loom_value activated = next->out[0];
    const loom_activation activation = next->activation;
    *next = *n;
    next->activation = activation;
    next->out[LOOM_LINEAR_ACTIVATED] = activated;
    return true;
}

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
    g->ctx.ops->matmul_forward(&g->ctx, &a);
}

static void backward(loom_gpt *g, const loom_node *n) {
    const loom_view dout = loom_run_gradient(g, n->out[LOOM_LINEAR_OUT]), x = loom_run_value(g, n->in[0]);
    if (n->activation != LOOM_ACTIVATION_NONE)
        loom_run_activation_backward(g, n->activation, dout, loom_run_value(g, n->out[LOOM_LINEAR_OUT]));
    g->ctx.ops->matmul_backward_input(
        &g->ctx, &(struct loom_matmul_backward_input){.dx = loom_run_gradient(g, n->in[0]),
                                                      .dout = dout,
                                                      .weight = loom_run_parameter(g, n->parameter[0]),
                                                      .accumulate = n->adds_in & 1});
    g->ctx.ops->matmul_backward_weight(
        &g->ctx, &(struct loom_matmul_backward_weight){.dweight = loom_run_parameter_gradient(g, n->parameter[0]),
                                                       .dbias = loom_run_parameter_gradient(g, n->parameter[1]),
                                                       .dout = dout,
                                                       .x = x,
                                                       .accumulate = loom_run_accumulates(g, n, 0)});
}

const loom_module loom_module_linear = {.name = "linear",
                                        .output = {"out", "activated"},
                                        .needs_in = 1,
                                        .kept_up_to = {LOOM_RECOMPUTE_NORM, LOOM_RECOMPUTE_NONE},
                                        .from = {0, 1 + LOOM_LINEAR_OUT},
                                        .fuse = fuse,
                                        .forward = forward,
                                        .backward = backward,
                                        .adds = true};
