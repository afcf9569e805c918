/* Modules: what a node of the tape does. Each has a file in csrc/model/modules; what they ask of a run is in gpt.c. */
#ifndef LOOM_MODEL_MODULE_H
#define LOOM_MODEL_MODULE_H

#include "model/tape.h"

/* Policies of what a block keeps for itself; the rest lies in scratch that all blocks share. Of a segment's blocks
 * (LOOM_RECOMPUTE_EVERY) each keeps what LOOM_KEEP_BLOCK says, while backward is in that segment. */
enum {
    LOOM_KEEP_NONE = 1 << LOOM_RECOMPUTE_NONE,
    LOOM_KEEP_ACT = 1 << LOOM_RECOMPUTE_ACT,
    LOOM_KEEP_NORM = 1 << LOOM_RECOMPUTE_NORM,
    LOOM_KEEP_BLOCK_ATTN = 1 << LOOM_RECOMPUTE_BLOCK_ATTN,
    LOOM_KEEP_BLOCK = 1 << LOOM_RECOMPUTE_BLOCK,
    LOOM_KEEP_INFERENCE = 1 << 8, /* keys and values of the tokens seen */

    /* What is kept up to a policy and by all before it, which recompute less. */
    LOOM_KEEP_UP_TO_NONE = LOOM_KEEP_NONE,
    LOOM_KEEP_UP_TO_ACT = LOOM_KEEP_UP_TO_NONE | LOOM_KEEP_ACT,
    LOOM_KEEP_UP_TO_NORM = LOOM_KEEP_UP_TO_ACT | LOOM_KEEP_NORM,
    LOOM_KEEP_UP_TO_BLOCK_ATTN = LOOM_KEEP_UP_TO_NORM | LOOM_KEEP_BLOCK_ATTN,
    LOOM_KEEP_UP_TO_BLOCK = LOOM_KEEP_UP_TO_BLOCK_ATTN | LOOM_KEEP_BLOCK,
};

struct loom_module {
    const char *name;
    const char *output[LOOM_NODE_OUTPUTS]; /* their names */
    unsigned needs_in, needs_out;          /* the inputs and outputs that its backward reads, a bit each */
    unsigned kept[LOOM_NODE_OUTPUTS];      /* by which policies each output is kept where backward reads it */

    /* Computes the outputs that are wanted, a bit each. What is not wanted and needed for them is there from an earlier
     * run. */
    void (*forward)(loom_gpt *gpt, const loom_node *node, unsigned wanted);

    /* From the gradients of its outputs: those of its inputs, and of its parameters, to which it adds with `accumulate`. */
    void (*backward)(loom_gpt *gpt, const loom_node *node, bool accumulate);
};

extern const loom_module loom_module_embedding, loom_module_layernorm, loom_module_linear, loom_module_attention,
    loom_module_activation, loom_module_add;

/* The outputs of a layernorm: what is normed (the sum of its two inputs, or its only one), and the rest. */
enum { LOOM_NORM_X, LOOM_NORM_OUT, LOOM_NORM_MEAN, LOOM_NORM_RSTD };

/* The outputs of a linear layer: of one with an activation, before and after it. */
enum { LOOM_LINEAR_OUT, LOOM_LINEAR_ACTIVATED };

/* ---------------------------------------------------------------------------------------------- what modules ask a run for
 * Views are of the rows that run now. */
loom_view loom_run_value(const loom_gpt *gpt, loom_value value);
loom_view loom_run_cached(const loom_gpt *gpt, loom_value value); /* and of all before them, where those are kept */
loom_view loom_run_gradient(const loom_gpt *gpt, loom_value value);
loom_view loom_run_parameter(const loom_gpt *gpt, int parameter);
loom_view loom_run_parameter_gradient(const loom_gpt *gpt, int parameter);

/* One of `parts` that lie side by side in each row of a value or its gradient, as heads: (B,T,heads,columns). */
loom_view loom_run_heads(const loom_gpt *gpt, loom_view rows, int part, int parts, int64_t heads);

/* modules/activation.c */
void loom_run_activation(loom_gpt *gpt, loom_activation activation, loom_view out, loom_view x);
void loom_run_activation_backward(loom_gpt *gpt, loom_activation activation, loom_view d, loom_view x);

#endif
