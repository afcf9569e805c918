#include "model/gpt.h"

/* An activation: part of the linear layer before it. */

loom_activation loom_activation_of(loom_gpt_activation activation) {
#define ROW(NAME, name) [LOOM_GPT_##NAME] = LOOM_ACTIVATION_##NAME,
    static const loom_activation ops[] = {LOOM_ACTIVATION_LIST(ROW)};
#undef ROW
    return ops[activation];
}

loom_value loom_activate(loom_tape *t, loom_value x, loom_gpt_activation activation) {
    const loom_value out = loom_tape_value_add(t, LOOM_VALUE_ROWS, loom_tape_columns(t, x));
    loom_node *n = loom_tape_node_add(t, &loom_module_activation);
    if (!n) return 0;
    n->in[0] = x;
    n->out[0] = out;
    n->activation = loom_activation_of(activation);
    return out;
}

void loom_run_activation(loom_gpt *g, loom_activation activation, loom_view out, loom_view x) {
    switch (activation) {
#define CASE(NAME, name)                                                                                               \
    case LOOM_ACTIVATION_##NAME:                                                                                       \
        g->ctx.ops->name##_forward(&g->ctx, &(struct loom_##name##_forward){.out = out, .x = x});                      \
        break;
        LOOM_ACTIVATION_LIST(CASE)
#undef CASE
    case LOOM_ACTIVATION_NONE:
    case LOOM_ACTIVATION_COUNT: break;
    }
}

/* In place: the gradient of the output becomes that of x. */
void loom_run_activation_backward(loom_gpt *g, loom_activation activation, loom_view d, loom_view x) {
    switch (activation) {
#define CASE(NAME, name)                                                                                               \
    case LOOM_ACTIVATION_##NAME:                                                                                       \
        g->ctx.ops->name##_backward(&g->ctx, &(struct loom_##name##_backward){.dx = d, .dout = d, .x = x});            \
        break;
        LOOM_ACTIVATION_LIST(CASE)
#undef CASE
    case LOOM_ACTIVATION_NONE:
    case LOOM_ACTIVATION_COUNT: break;
    }
}

const loom_module loom_module_activation = {.name = "activation"};
