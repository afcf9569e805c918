/* The one table of what a block's forward leaves behind. It drives the memory plan, the pointers and what is
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

/* Policies of what each block keeps for itself; the rest lies in scratch that all blocks share. Of a segment's blocks
 * (LOOM_RECOMPUTE_EVERY) each keeps what LOOM_KEEP_BLOCK says, while backward is in that segment. */
enum {
    LOOM_KEEP_NONE = 1 << LOOM_RECOMPUTE_NONE,
    LOOM_KEEP_ACT = 1 << LOOM_RECOMPUTE_ACT,
    LOOM_KEEP_NORM = 1 << LOOM_RECOMPUTE_NORM,
    LOOM_KEEP_BLOCK_ATTN = 1 << LOOM_RECOMPUTE_BLOCK_ATTN,
    LOOM_KEEP_BLOCK = 1 << LOOM_RECOMPUTE_BLOCK,
    LOOM_KEEP_INFERENCE = 1 << 8, /* keys and values of the tokens seen */
};

typedef struct loom_act_row {
    const char *name;
    loom_act_shape shape;
    int width;     /* in n_embd */
    unsigned kept; /* by which policies */
} loom_act_row;

extern const loom_act_row loom_act_table[LOOM_ACT_COUNT];

/* Sets of activations, a bit each; one more bit is the block's output, which is no tensor of its own block. */
enum { LOOM_ACT_OUTPUT = LOOM_ACT_COUNT, LOOM_ACT_ALL = (1 << (LOOM_ACT_COUNT + 1)) - 1 };

static inline unsigned loom_act_bit(int name) {
    return 1u << name;
}

/* The set that a policy (LOOM_KEEP_...) keeps. */
unsigned loom_act_kept(unsigned policy);

/* Elements of one such tensor for B sequences of T. */
int64_t loom_act_elements(loom_activation_name name, const loom_gpt_config *config, int64_t B, int64_t T);

#endif
