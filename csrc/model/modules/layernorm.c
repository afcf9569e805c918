#include "model/gpt.h"

#include "base/check.h"

/* y = (x - mean) * rstd * weight + bias   (Ba et al., "Layer Normalization", 2016), where x may be a sum that is made
 * first: then a residual stream and what is added to it. */

loom_value loom_layernorm(loom_tape *t, loom_value x, const char *name) {
    const int64_t columns = loom_tape_columns(t, x);
    const int weight = loom_tape_parameter_add(t, name, "weight", 0, columns, LOOM_INITIAL_ONE);
    const int bias = loom_tape_parameter_add(t, name, "bias", 0, columns, LOOM_INITIAL_ZERO);
    const loom_value out = loom_tape_value_add(t, LOOM_VALUE_ROWS, columns);
    const loom_value mean = loom_tape_value_add(t, LOOM_VALUE_PER_ROW, 1);
    const loom_value rstd = loom_tape_value_add(t, LOOM_VALUE_PER_ROW, 1);
    loom_node *n = loom_tape_node_add(t, &loom_module_layernorm);
    if (!n) return 0;
    n->in[0] = x;
    n->out[LOOM_NORM_X] = x;
    n->out[LOOM_NORM_OUT] = out;
    n->out[LOOM_NORM_MEAN] = mean;
    n->out[LOOM_NORM_RSTD] = rstd;
    n->parameter[0] = weight;
    n->parameter[1] = bias;
    return out;
}

loom_value loom_sum(loom_tape *t, loom_value x, loom_value delta) {
    const loom_value out = loom_tape_value_add(t, LOOM_VALUE_ROWS, loom_tape_columns(t, x));
    loom_node *n = loom_tape_node_add(t, &loom_module_add);
    if (!n) return 0;
    n->in[0] = x;
    n->in[1] = delta;
    n->out[0] = out;
    LOOM_CHECK(t->value[delta].gradient == delta);
    t->value[delta].gradient = t->value[out].gradient = t->value[x].gradient;
    return out;
}

loom_value loom_residual(loom_tape *t, loom_value x, loom_value delta) {
    const loom_node *before = t->n_nodes ? &t->node[t->n_nodes - 1] : NULL;
    if (before && before->module == &loom_module_linear && before->out[0] == delta)
        t->parameter[before->parameter[0]].initial = LOOM_INITIAL_NORMAL_RESIDUAL;
    return loom_sum(t, x, delta);
}

/* x + delta, and the layernorm of the sum: the sum is what is normed. */
static bool fuse(const loom_node *n, loom_node *next) {
    if (next->module != &loom_module_layernorm || next->in[0] != n->out[0]) return false;
    next->in[0] = n->in[0];
    next->in[1] = n->in[1];
    return true;
}

static void forward(loom_gpt *g, const loom_node *n, unsigned wanted) {
    const bool adds = n->in[1] >= 0 && wanted >> LOOM_NORM_X & 1;
    struct loom_layernorm_forward a = {.mean = loom_run_value(g, n->out[LOOM_NORM_MEAN]),
                                       .rstd = loom_run_value(g, n->out[LOOM_NORM_RSTD]),
                                       .x = loom_run_value(g, adds ? n->in[0] : n->out[LOOM_NORM_X]),
                                       .weight = loom_run_parameter(g, n->parameter[0]),
                                       .bias = loom_run_parameter(g, n->parameter[1]),
                                       .epsilon = LOOM_LAYERNORM_EPSILON};
    if (wanted >> LOOM_NORM_OUT & 1) a.out = loom_run_value(g, n->out[LOOM_NORM_OUT]);
    if (adds) {
        a.delta = loom_run_value(g, n->in[1]);
        a.sum = loom_run_value(g, n->out[LOOM_NORM_X]);
    }
    g->ctx.ops->layernorm_forward(&g->ctx, &a);
}

/* The gradient of x is that of both addends, and adds to what comes to it from later in the residual stream. */
static void backward(loom_gpt *g, const loom_node *n) {
    struct loom_layernorm_backward a = {.dx = loom_run_gradient(g, n->out[LOOM_NORM_X]),
                                        .dweight = loom_run_parameter_gradient(g, n->parameter[0]),
                                        .dbias = loom_run_parameter_gradient(g, n->parameter[1]),
                                        .dout = loom_run_gradient(g, n->out[LOOM_NORM_OUT]),
                                        .x = loom_run_value(g, n->out[LOOM_NORM_X]),
                                        .weight = loom_run_parameter(g, n->parameter[0]),
                                        .mean = loom_run_value(g, n->out[LOOM_NORM_MEAN]),
                                        .rstd = loom_run_value(g, n->out[LOOM_NORM_RSTD]),
                                        .accumulate = loom_run_accumulates(g, n, 0)};
    if (n->adds_in & 1) a.skip = a.dx;
    g->ctx.ops->layernorm_backward(&g->ctx, &a);
}

const loom_module loom_module_add = {.name = "add", .fuse = fuse};

const loom_module loom_module_layernorm = {
    .name = "layernorm",
    .output = {"x", "out", "mean", "rstd"},
    .needs_out = 1u << LOOM_NORM_X | 1u << LOOM_NORM_MEAN | 1u << LOOM_NORM_RSTD,
    .kept_up_to = {LOOM_RECOMPUTE_NORM, LOOM_RECOMPUTE_ACT, LOOM_RECOMPUTE_NORM, LOOM_RECOMPUTE_NORM},
    .from = {0, 1 + LOOM_NORM_X, 1 + LOOM_NORM_X, 1 + LOOM_NORM_X},
    .written_if_wanted = 1u << LOOM_NORM_OUT,
    .forward = forward,
    .backward = backward,
    .adds = true};
