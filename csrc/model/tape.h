/* A network as a tape: what a model's declaration (gpt2.c) writes down when a model is made, and forward and backward play in
 * every step. Nodes stand in the order in which forward runs them; backward runs them in reverse. A value that is not of the
 * residual stream is read by one node: only there gradients are added.
 *
 * The tape knows shapes up to the number of rows (B sequences of T tokens), names, and who writes and reads what. It knows no
 * device and no memory: a value is an index, as is a parameter. */
#ifndef LOOM_MODEL_TAPE_H
#define LOOM_MODEL_TAPE_H

#include "gptloom/model.h"

typedef struct loom_tape loom_tape;
typedef struct loom_node loom_node;
typedef struct loom_module loom_module;

typedef int loom_value;
enum { LOOM_NO_VALUE = -1 };

typedef enum loom_value_kind {
    LOOM_VALUE_ROWS,    /* (B,T,columns) in the storage type */
    LOOM_VALUE_PER_ROW, /* (B,T) statistics */
    LOOM_VALUE_PER_HEAD /* (B,columns,T) statistics */
} loom_value_kind;

/* What forward computes. */
typedef struct loom_tape_value {
    loom_value_kind kind;
    int64_t columns;
    int scope;       /* in whose memory it lies: of the last node that has it as an output */
    int node;        /* that writes it, */
    int output;      /* and as which of its outputs */
    bool saved;      /* backward reads it */
    int last_node;   /* that has it as an output: of a sum or an input, the layernorm of it */
    bool is_read;    /* by a node, */
    bool read_later; /* by one after the last that has it as an output: backward has come to its gradient before */
    bool residual;   /* a sum of the residual stream, or an addend of one: their gradients are the same */
    bool cached;     /* while generating, that of the tokens seen before is kept: keys and values */
    int in_scope;    /* among the saved values of its scope, in their order; -1 */
    int wanted_bit;  /* of a set of values that are to be computed (loom_tape_wanted) */
} loom_tape_value;

typedef struct loom_tape_parameter {
    char name[64];
    int64_t rows; /* 0: a vector */
    int64_t columns, padded_rows;
    int scope;
    loom_initial initial;
} loom_tape_parameter;

enum { LOOM_NODE_INPUTS = 2, LOOM_NODE_OUTPUTS = 4, LOOM_NODE_PARAMETERS = 2 };

/* A module with what it reads and writes; inputs and outputs that are not there are LOOM_NO_VALUE. */
struct loom_node {
    const loom_module *module;
    int scope;
    loom_value in[LOOM_NODE_INPUTS], out[LOOM_NODE_OUTPUTS];
    int parameter[LOOM_NODE_PARAMETERS]; /* indices; -1 */
    int64_t heads;                       /* attention's */
    loom_activation activation;          /* of a linear layer, or what an activation applies */
};

/* Consecutive nodes whose parameters are one bucket. */
typedef struct loom_tape_scope {
    char prefix[40]; /* of its parameters' names */
    int first, last; /* nodes first .. last - 1 */
    int n_saved;     /* values */
} loom_tape_scope;

struct loom_tape {
    loom_tape_value *value;
    loom_node *node;
    loom_tape_parameter *parameter;
    loom_tape_scope *scope;
    int n_values, n_nodes, n_parameters, n_scopes;
    loom_value out; /* what the classifier reads */
    bool failed;    /* there was no memory */
};

/* A model's tape, with neighbours fused that ops compute together. */
bool loom_tape_create(loom_tape *tape, const loom_gpt_config *config, loom_error *error);
void loom_tape_destroy(loom_tape *tape);

/* Where its parameters lie, for a number of ranks. */
bool loom_layout_of_tape(loom_layout *layout, const loom_tape *tape, int ranks, loom_error *error);

/* Of a scope's saved values, a bit each in their order: those that a policy (LOOM_KEEP_...) keeps. */
unsigned loom_tape_kept(const loom_tape *tape, int scope, unsigned policy);

/* ------------------------------------------------------------------------------------------------ for declarations
 * Each appends a node and returns its output. Parameters are named PREFIX NAME .weight and .bias. */

/* Begins a scope: a bucket of parameters, and the unit of recomputation. */
void loom_scope(loom_tape *tape, const char *prefix);

/* Token and position embeddings, wte and wpe: (vocab_size, columns) and (positions, columns). */
loom_value loom_embed(loom_tape *tape, int64_t vocab_size, int64_t padded_vocabulary, int64_t positions,
                      int64_t columns);
loom_value loom_layernorm(loom_tape *tape, loom_value x, const char *name);
loom_value loom_linear(loom_tape *tape, loom_value x, int64_t columns, const char *name);
/* Causal self-attention of packed queries, keys and values. */
loom_value loom_attention(loom_tape *tape, loom_value qkv, int64_t heads);
loom_value loom_activate(loom_tape *tape, loom_value x, loom_activation activation);
/* x + delta, both of the residual stream. Where delta is a linear layer's output, its weight is initialised for that. */
loom_value loom_residual(loom_tape *tape, loom_value x, loom_value delta);

/* GPT-2 (gpt2.c); returns what the classifier reads. */
loom_value loom_gpt2(loom_tape *tape, const loom_gpt_config *config);

/* Of a node's outputs those that must be computed, a bit each, where `values` must be: a set of saved values of the node's
 * scope, a bit each by `in_scope`, and LOOM_WANT_OUTPUT for what the scope's last node hands to the next one. A value that is
 * not saved and is added to the residual stream must be computed where the sum must. */
enum { LOOM_WANT_OUTPUT = 31 };
unsigned loom_tape_wanted(const loom_tape *tape, int node, unsigned values);

/* The saved value of this number in a scope. */
loom_value loom_tape_saved(const loom_tape *tape, int scope, int in_scope);

#endif
