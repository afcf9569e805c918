/* A network as a tape. A model's declaration (gpt2.c) appends modules to it when a model is created. Nodes stand in the
 * order in which forward runs them; backward runs them in reverse, and adds gradients.
 *
 * The tape knows shapes up to the number of rows (B sequences of T tokens), names, and which node writes and reads
 * which value. It knows no device and no memory: values and parameters are indices. */
#ifndef LOOM_MODEL_TAPE_H
#define LOOM_MODEL_TAPE_H

#include "model/architectures.h"
#include "model/training.h"

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

/* A value that forward computes. */
typedef struct loom_tape_value {
    loom_value_kind kind;
    int64_t columns;
    int node, output; /* the node that computes it, and which of its outputs it is */
    int scope;    /* the scope that keeps it: that of the last node that has it as an output (a sum is an output of the
                         layernorm behind it too); of a layer's input that the layer before computes, the layer's */
    bool saved;   /* backward reads it */
    bool added;   /* it is added to another value; nodes after that sum do not read it */
    bool cached;  /* keys and values, which generation keeps for the tokens before (KV cache) */
    int gradient; /* the value whose gradient this one shares, or itself: a sum and its addends have one gradient */
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
    unsigned adds_in, adds_parameter;    /* the inputs and the parameters, a bit each, to whose gradients backward adds,
                                            as another node writes them before in every micro-batch */
    int like;                            /* the first node of the same module and shapes */
};

/* Consecutive nodes. The parameters of a scope are one bucket. */
typedef struct loom_tape_scope {
    char prefix[40];                    /* of its parameters' names */
    int first, last;                    /* its nodes: first .. last - 1 */
    loom_value first_value, last_value; /* the values of this scope are among these */
    int bucket;                         /* -1 where it has no parameters */
    bool is_layer;                      /* policies of recomputation apply to it: there are many like it */
} loom_tape_scope;

struct loom_tape {
    loom_tape_value *value;
    loom_node *node;
    loom_tape_parameter *parameter;
    loom_tape_scope *scope;
    int n_values, n_nodes, n_parameters, n_scopes, n_buckets;
    int first_layer, n_layers; /* scopes */
    bool failed;               /* there was no memory */
};

/* A model's tape, with neighbours fused that ops compute together. */
bool loom_tape_create(loom_tape *tape, const loom_gpt_config *config, loom_error *error);
void loom_tape_destroy(loom_tape *tape);

/* Where its parameters lie, for a number of ranks. */
bool loom_layout_of_tape(loom_layout *layout, const loom_tape *tape, int ranks, loom_error *error);

/* What a layer's values all follow from, and its policies keep at least. */
loom_value loom_tape_layer_input(const loom_tape *tape, int layer);

/* The bucket of a node's parameters; -1 where it has none. */
int loom_node_bucket(const loom_tape *tape, const loom_node *node);

/* ------------------------------------------------------------------------------------------------ for declarations
 * Each appends a node and returns its output. Parameters are named PREFIX NAME .weight and .bias. */

/* Begins a scope: a bucket of parameters, whose names begin with a prefix. */
void loom_scope(loom_tape *tape, const char *prefix);
/* The same for layer l of many alike, which can be recomputed: the prefix is PREFIX l and a dot. */
void loom_layer(loom_tape *tape, const char *prefix, int64_t l);

/* Token and position embeddings, (vocab_size, n_embd) and (block_size, n_embd), of these names. */
loom_value loom_embed(loom_tape *tape, const loom_gpt_config *config, const char *tokens, const char *positions);
loom_value loom_layernorm(loom_tape *tape, loom_value x, const char *name);
loom_value loom_linear(loom_tape *tape, loom_value x, int64_t columns, const char *name);
/* Causal self-attention of packed queries, keys and values. */
loom_value loom_attention(loom_tape *tape, loom_value qkv, int64_t heads);
loom_value loom_activate(loom_tape *tape, loom_value x, loom_gpt_activation activation);
/* x + delta. What comes later reads the sum, and x no more. */
loom_value loom_sum(loom_tape *tape, loom_value x, loom_value delta);
/* The same for a residual stream that grows with each sum: the weight of the linear layer that made delta is
 * initialised for that. */
loom_value loom_residual(loom_tape *tape, loom_value x, loom_value delta);
/* The classifier, whose weight is the token embedding of this name, and the loss. */
void loom_head(loom_tape *tape, loom_value x, const char *embedding);

/* The architectures, in files of their names. */
void loom_gpt1(loom_tape *tape, const loom_gpt_config *config);
void loom_gpt2(loom_tape *tape, const loom_gpt_config *config);
void loom_declare(loom_tape *tape, const loom_gpt_config *config); /* the one that is configured (architectures.c) */

/* ---------------------------------------------------------------------------------------------------- for modules
 * What a node is made of. Without memory they return 0 or NULL, and tape->failed says so. */
loom_value loom_tape_value_add(loom_tape *tape, loom_value_kind kind, int64_t columns);
int loom_tape_parameter_add(loom_tape *tape, const char *name, const char *part, int64_t rows, int64_t columns,
                            loom_initial initial);
loom_node *loom_tape_node_add(loom_tape *tape, const loom_module *module);
int64_t loom_tape_columns(const loom_tape *tape, loom_value value);

#endif
