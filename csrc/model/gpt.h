/* The inside of a model: what create.c (lay-out), gpt.c (forward, backward), generate.c and the modules share. */
#ifndef LOOM_MODEL_GPT_H
#define LOOM_MODEL_GPT_H

#include "model/module.h"
#include "model/offload.h"

/* What is run: B sequences of T tokens, standing behind `past` tokens whose keys and values are kept (then B is 1). */
typedef struct loom_rows {
    int64_t B, T, past;
} loom_rows;

struct loom_gpt {
    loom_gpt_config config;
    loom_gpt_purpose purpose;
    loom_precision precision;
    loom_tape tape;
    loom_layout layout;
    loom_device *device;
    loom_exec exec;
    loom_gpt_hooks hooks;
    int64_t B, T; /* of a micro-batch */
    int64_t padded_vocabulary;
    int64_t group_rows;       /* rows of logits that one product computes */
    int64_t chunk_rows;       /* rows of logits that exist at a time: whole groups */
    loom_recompute recompute; /* none of `sqrt` and `auto` */
    int64_t segment;          /* blocks that backward runs once more together */
    unsigned policy;          /* LOOM_KEEP_...: what each block (of a segment) keeps */
    loom_offload offload;     /* of what the first of each segment's blocks keeps */
    bool generates;
    size_t workspace_bytes;
    bool planned; /* the device has made its plans */
    bool walking; /* over a table of ops that runs nothing */

    loom_rows rows;  /* what runs now, */
    bool generating; /* and whether with the keys and values of the tokens before */

    loom_sharding sharding;
    void *parameters, *gradients; /* in the layout; NULL where there are places of buckets instead */
    void *master;                 /* the same as parameters where there is no master beside them */
    loom_shard *shard;            /* [n_buckets]: what of each the optimizer updates */
    void **bucket_parameters;     /* [n_buckets]: where the model reads each, */
    void **bucket_gradients;      /* and where backward writes its gradients */
    loom_scalars *scalars;        /* device memory */
    int32_t *tokens, *targets;    /* (B,T) */
    void *losses;                 /* (B,T) statistics */
    void **memory;                /* [values of the tape]: a block's own memory, a slot, or the scratch all share */
    void **seen;                  /* [n_layer]: packed keys and values while generating, (T,3C) or larger */
    void *logits;                 /* (chunk_rows, Vp); their gradients take their place */
    void *last_logits;            /* (Vp) fp32: inference's, where logits are stored in 16 bits; else NULL */
    void *dresidual, *dnarrow, *dwide; /* (B,T,C), (B,T,C), (B,T,4C): gradients on their way back */
};

static inline size_t loom_bytes(int64_t elements, loom_dtype dtype) {
    return (size_t)elements * loom_dtype_size(dtype);
}

/* Whether the model's weights are a copy of master weights that lie beside them. */
static inline bool loom_has_master(const loom_precision *precision) {
    return precision->master != precision->storage;
}

/* Whether the host needs logits widened before it reads them. */
static inline bool loom_logits_are_narrow(const loom_gpt *gpt) {
    return loom_dtype_size(gpt->precision.storage) < sizeof(float);
}

/* The last row's logits, Vp of them, in device memory (`last_logits`, or where there are none, `logits`), after running
 * n tokens that lie in gpt->tokens. */
void loom_gpt_infer(loom_gpt *gpt, int64_t n, int64_t past);

#endif
