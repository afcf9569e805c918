/* Modules: what a node of the tape does. Each has a file in csrc/model/modules, with the function that declarations
 * call; what modules ask of a run is in views.c. */
#ifndef LOOM_MODEL_MODULE_H
#define LOOM_MODEL_MODULE_H

#include "model/tape.h"

struct loom_module {
    const char *name;
    const char *output[LOOM_NODE_OUTPUTS]; /* the outputs' names */
    unsigned needs_in, needs_out;          /* the inputs and the outputs that its backward reads, a bit each */

    /* For each output the last policy of recomputation, in the order none .. block, that keeps it for backward. */
    loom_recompute_kind kept_up_to[LOOM_NODE_OUTPUTS];

    /* For each output, 0 if it is computed from the inputs, or 1 + the number of the output that it is computed from.
     * */
    int from[LOOM_NODE_OUTPUTS];

    /* The outputs, a bit each, that forward writes only if they are wanted. It writes all others in any case. */
    unsigned written_if_wanted;

    /* If one op can compute a node and the next one: turns `next` into both, and returns true. May be NULL. */
    bool (*fuse)(const loom_node *node, loom_node *next);

    /* Computes the outputs that are wanted, a bit each. Outputs that they are computed from, and that are not wanted
     * themselves, were computed by an earlier run. */
    void (*forward)(loom_gpt *gpt, const loom_node *node, unsigned wanted);

    /* Computes the gradients of the inputs and the parameters from those of the outputs. NULL if forward does so. */
    void (*backward)(loom_gpt *gpt, const loom_node *node);

    bool adds;                         /* backward can add to gradients of its inputs that are there already */
    bool backward_reads_no_parameters; /* and so needs none to be gathered */
};

extern const loom_module loom_module_embedding, loom_module_layernorm, loom_module_linear, loom_module_attention,
    loom_module_activation, loom_module_add, loom_module_head;

/* The outputs of a layernorm: what is normed (the sum of its two inputs, or its only one), and the rest. */
enum { LOOM_NORM_X, LOOM_NORM_OUT, LOOM_NORM_MEAN, LOOM_NORM_RSTD };

/* The outputs of a linear layer: of one with an activation, before and after it. */
enum { LOOM_LINEAR_OUT, LOOM_LINEAR_ACTIVATED };

/* Sets of a node's outputs, a bit each: those that its backward reads; those that a forward for `wanted` reads, since
 * wanted ones are computed from them; and those that such a forward writes. */
unsigned loom_node_saves_outputs(const loom_node *node);
unsigned loom_node_reads_outputs(const loom_node *node, unsigned wanted);
unsigned loom_node_writes_outputs(const loom_tape *tape, int node, unsigned wanted);
/* Whether a forward for `wanted` reads the node's inputs. */
bool loom_node_reads_inputs(const loom_node *node, unsigned wanted);

/* ---------------------------------------------------------------------------------------------- what modules ask a run for
 * Views are of the rows that run now. */
loom_view loom_run_value(const loom_gpt *gpt, loom_value value);
loom_view loom_run_cached(const loom_gpt *gpt, loom_value value); /* and of all before them, where those are kept */
loom_view loom_run_gradient(const loom_gpt *gpt, loom_value value);
loom_view loom_run_parameter(const loom_gpt *gpt, int parameter);
loom_view loom_run_parameter_gradient(const loom_gpt *gpt, int parameter);

/* Whether a node's gradient of its k-th parameter is added to what is there: to other micro-batches', or other nodes'.
 * */
bool loom_run_accumulates(const loom_gpt *gpt, const loom_node *node, int k);

/* One of `parts` that lie side by side in each row of a value or its gradient, as heads: (B,T,heads,columns). */
loom_view loom_run_heads(const loom_gpt *gpt, loom_view rows, int part, int parts, int64_t heads);

/* modules/activation.c */
void loom_run_activation(loom_gpt *gpt, loom_activation activation, loom_view out, loom_view x);
void loom_run_activation_backward(loom_gpt *gpt, loom_activation activation, loom_view d, loom_view x);

#endif
