#include "model/gpt.h"

/* y = (x - mean) * rstd * weight + bias   (Ba et al., "Layer Normalization", 2016), where x may be a sum that is made
 * first: then a residual stream and what is added to it. */

static void forward(loom_gpt *g, const loom_node *n, unsigned wanted) {
    const bool adds = n->in[1] >= 0 && wanted >> LOOM_NORM_X & 1;
    struct loom_layernorm_forward a = {.out = loom_run_value(g, n->out[LOOM_NORM_OUT]),
                                       .mean = loom_run_value(g, n->out[LOOM_NORM_MEAN]),
                                       .rstd = loom_run_value(g, n->out[LOOM_NORM_RSTD]),
                                       .x = loom_run_value(g, adds ? n->in[0] : n->out[LOOM_NORM_X]),
                                       .weight = loom_run_parameter(g, n->parameter[0]),
                                       .bias = loom_run_parameter(g, n->parameter[1]),
                                       .epsilon = LOOM_LAYERNORM_EPSILON};
    if (adds) {
        a.delta = loom_run_value(g, n->in[1]);
        a.sum = loom_run_value(g, n->out[LOOM_NORM_X]);
    }
    g->exec.ops->layernorm_forward(&g->exec, &a);
}

/* The gradient of x is that of both addends. What comes to it from later in the residual stream is there already, but at
 * the stream's end. */
static void backward(loom_gpt *g, const loom_node *n, bool accumulate) {
    struct loom_layernorm_backward a = {.dx = loom_run_gradient(g, n->out[LOOM_NORM_X]),
                                        .dweight = loom_run_parameter_gradient(g, n->parameter[0]),
                                        .dbias = loom_run_parameter_gradient(g, n->parameter[1]),
                                        .dout = loom_run_gradient(g, n->out[LOOM_NORM_OUT]),
                                        .x = loom_run_value(g, n->out[LOOM_NORM_X]),
                                        .weight = loom_run_parameter(g, n->parameter[0]),
                                        .mean = loom_run_value(g, n->out[LOOM_NORM_MEAN]),
                                        .rstd = loom_run_value(g, n->out[LOOM_NORM_RSTD]),
                                        .accumulate = accumulate};
    if (g->tape.value[n->out[LOOM_NORM_X]].read_later) a.skip = a.dx;
    g->exec.ops->layernorm_backward(&g->exec, &a);
}

const loom_module loom_module_layernorm = {
    .name = "layernorm",
    .output = {"x", "out", "mean", "rstd"},
    .needs_out = 1u << LOOM_NORM_X | 1u << LOOM_NORM_MEAN | 1u << LOOM_NORM_RSTD,
    .kept = {LOOM_KEEP_UP_TO_NORM, LOOM_KEEP_UP_TO_ACT, LOOM_KEEP_UP_TO_NORM, LOOM_KEEP_UP_TO_NORM},
    .forward = forward,
    .backward = backward};
