#include "model/activations.h"

#include "base/check.h"

/* What is kept up to a policy and by all before it, which recompute less. */
enum {
    UP_TO_NONE = LOOM_KEEP_NONE,
    UP_TO_ACT = UP_TO_NONE | LOOM_KEEP_ACT,
    UP_TO_NORM = UP_TO_ACT | LOOM_KEEP_NORM,
    UP_TO_BLOCK_ATTN = UP_TO_NORM | LOOM_KEEP_BLOCK_ATTN,
    UP_TO_BLOCK = UP_TO_BLOCK_ATTN | LOOM_KEEP_BLOCK,
};

const loom_act_row loom_act_table[LOOM_ACT_COUNT] = {
    [LOOM_ACT_X] = {"x", LOOM_ACT_PER_CHANNEL, 1, UP_TO_BLOCK},
    [LOOM_ACT_LN1] = {"ln1", LOOM_ACT_PER_CHANNEL, 1, UP_TO_ACT},
    [LOOM_ACT_MEAN1] = {"mean1", LOOM_ACT_PER_ROW, 0, UP_TO_NORM},
    [LOOM_ACT_RSTD1] = {"rstd1", LOOM_ACT_PER_ROW, 0, UP_TO_NORM},
    [LOOM_ACT_QKV] = {"qkv", LOOM_ACT_PER_CHANNEL, 3, UP_TO_NORM | LOOM_KEEP_INFERENCE},
    [LOOM_ACT_ATT] = {"att", LOOM_ACT_PER_CHANNEL, 1, UP_TO_BLOCK_ATTN},
    [LOOM_ACT_LSE] = {"lse", LOOM_ACT_PER_HEAD, 0, UP_TO_BLOCK_ATTN},
    [LOOM_ACT_MID] = {"mid", LOOM_ACT_PER_CHANNEL, 1, UP_TO_NORM},
    [LOOM_ACT_LN2] = {"ln2", LOOM_ACT_PER_CHANNEL, 1, UP_TO_ACT},
    [LOOM_ACT_MEAN2] = {"mean2", LOOM_ACT_PER_ROW, 0, UP_TO_NORM},
    [LOOM_ACT_RSTD2] = {"rstd2", LOOM_ACT_PER_ROW, 0, UP_TO_NORM},
    [LOOM_ACT_FC] = {"fc", LOOM_ACT_PER_CHANNEL, 4, UP_TO_NORM},
    [LOOM_ACT_HIDDEN] = {"hidden", LOOM_ACT_PER_CHANNEL, 4, UP_TO_NONE},
};

unsigned loom_act_kept(unsigned policy) {
    unsigned kept = 0;
    for (int name = 0; name < LOOM_ACT_COUNT; name++)
        if (loom_act_table[name].kept & policy) kept |= loom_act_bit(name);
    return kept;
}

int64_t loom_act_elements(loom_activation_name name, const loom_gpt_config *config, int64_t B, int64_t T) {
    switch (loom_act_table[name].shape) {
    case LOOM_ACT_PER_CHANNEL: return B * T * config->n_embd * loom_act_table[name].width;
    case LOOM_ACT_PER_ROW: return B * T;
    case LOOM_ACT_PER_HEAD: return B * T * config->n_head;
    }
    LOOM_CHECK(!"a known shape");
    return 0;
}
