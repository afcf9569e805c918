/* Modules: what a node of the tape does. Each has a file in csrc/model/modules, with the function that declarations call; what
 * modules ask of a run is in gpt.c. */
#ifndef LOOM_MODEL_MODULE_H
#define LOOM_MODEL_MODULE_H

#include "model/tape.h"

struct loom_module {
    const char *name;
    const char *output[LOOM_NODE_OUTPUTS]; /* their names */
    unsigned needs_in, needs_out;          /* the inputs and outputs that its backward reads, a bit each */

    /* The last policy of recomputation that keeps an output, of those that keep less and less: none .. block. */
    loom_recompute_kind kept_up_to[LOOM_NODE_OUTPUTS];

    /* Of an output, 1 + the output of the same node that it is computed from; 0: from the inputs. */
    int from[LOOM_NODE_OUTPUTS];

    unsigned written_if_wanted; /* the outputs that forward does not write where they are not wanted, a bit each */

    /* Where a node and the next one can be computed by one op: makes `next` both, and returns true. */
    bool (*fuse)(const loom_node *node, loom_node *next);

    /* Computes the outputs that are wanted, a bit each. What is not wanted and needed for them is there from an earlier
     * run. */
    void (*forward)(loom_gpt *gpt, const loom_node *node, unsigned wanted);

    /* From the gradients of its outputs: those of its inputs, and of its parameters. NULL: forward has done it. */
    void (*backward)(loom_gpt *gpt, const loom_node *node);

    bool adds; /* backward can add to the gradients of its inputs */
    bool backward_reads_no_parameters;
};

extern const loom_module loom_module_embedding, loom_module_layernorm, loom_module_linear, loom_module_attention,
    loom_module_activation, loom_module_add, loom_module_head;

/* The outputs of a layernorm: what is normed (the sum of its two inputs, or its only one), and the rest. */
enum { LOOM_NORM_X, LOOM_NORM_OUT, LOOM_NORM_MEAN, LOOM_NORM_RSTD };

/* The outputs of a linear layer: of one with an activation, before and after it. */
enum { LOOM_LINEAR_OUT, LOOM_LINEAR_ACTIVATED };

/* Of a node's outputs, a bit each, those that its backward reads. */
unsigned loom_node_saves_outputs(const loom_node *node);
/* Those that a run of it for `wanted` reads: what the wanted ones are computed from. */
unsigned loom_node_reads_outputs(const loom_node *node, unsigned wanted);
/* Those that it writes. */
unsigned loom_node_writes_outputs(const loom_tape *tape, int node, unsigned wanted);
/* Whether it reads its inputs. */
bool loom_node_reads_inputs(const loom_node *node, unsigned wanted);

/* ---------------------------------------------------------------------------------------------- what modules ask a run for
 * Views are of the rows that run now. */
loom_view loom_run_value(const loom_gpt *gpt, loom_value value);
loom_view loom_run_cached(const loom_gpt *gpt, loom_value value); /* and of all before them, where those are kept */
loom_view loom_run_gradient(const loom_gpt *gpt, loom_value value);
loom_view loom_run_parameter(const loom_gpt *gpt, int parameter);
loom_view loom_run_parameter_gradient(const loom_gpt *gpt, int parameter);

/* Whether a node's gradient of its k-th parameter is added to what is there: to other micro-batches', or other nodes'. */
bool loom_run_accumulates(const loom_gpt *gpt, const loom_node *node, int k);

/* One of `parts` that lie side by side in each row of a value or its gradient, as heads: (B,T,heads,columns). */
loom_view loom_run_heads(const loom_gpt *gpt, loom_view rows, int part, int parts, int64_t heads);

/* modules/activation.c */
void loom_run_activation(loom_gpt *gpt, loom_activation activation, loom_view out, loom_view x);
void loom_run_activation_backward(loom_gpt *gpt, loom_activation activation, loom_view d, loom_view x);

#endif
