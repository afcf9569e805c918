/* The one table of what a block's forward leaves behind. It drives the memory plan, the pointers and, later, what is
 * recomputed. */
#ifndef LOOM_MODEL_ACTIVATIONS_H
#define LOOM_MODEL_ACTIVATIONS_H

#include "gptloom/model.h"

typedef enum loom_activation_name {
    LOOM_ACT_X,     /* the block's input: the residual stream */
    LOOM_ACT_LN1,   /* layernorm of x */
    LOOM_ACT_MEAN1, /* its statistics */
    LOOM_ACT_RSTD1,
    LOOM_ACT_QKV, /* queries, keys, values, packed: (B,T,3,H,D) */
    LOOM_ACT_ATT, /* attention's output */
    LOOM_ACT_LSE,
    LOOM_ACT_MID, /* the residual stream after attention */
    LOOM_ACT_LN2, /* layernorm of mid */
    LOOM_ACT_MEAN2,
    LOOM_ACT_RSTD2,
    LOOM_ACT_FC,     /* the MLP before its activation */
    LOOM_ACT_HIDDEN, /* and after */
    LOOM_ACT_COUNT
} loom_activation_name;

typedef enum loom_act_shape {
    LOOM_ACT_PER_CHANNEL, /* (B,T,width * C) in the storage type */
    LOOM_ACT_PER_ROW,     /* (B,T) statistics */
    LOOM_ACT_PER_HEAD     /* (B,H,T) statistics */
} loom_act_shape;

/* Policies of what each block keeps for itself; the rest lies in scratch that all blocks share. */
enum {
    LOOM_KEEP_TRAINING = 1,  /* everything that backward reads */
    LOOM_KEEP_INFERENCE = 2, /* keys and values of the tokens seen */
};

typedef struct loom_act_row {
    const char *name;
    loom_act_shape shape;
    int width;     /* in n_embd */
    unsigned kept; /* by which policies */
} loom_act_row;

extern const loom_act_row loom_act_table[LOOM_ACT_COUNT];

/* Elements of one such tensor for B sequences of T. */
int64_t loom_act_elements(loom_activation_name name, const loom_gpt_config *config, int64_t B, int64_t T);

#endif
