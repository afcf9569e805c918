/* The inside of a model: what create.c (lay-out), gpt.c (playing the tape), views.c (views of its buffers), generate.c
 * and the modules share. */
#ifndef LOOM_MODEL_GPT_H
#define LOOM_MODEL_GPT_H

#include "model/buffers.h"
#include "model/module.h"
#include "model/offload.h"

/* What a tape is played for. */
typedef enum loom_gpt_mode {
    LOOM_MODE_TRAIN,    /* forward, loss and backward of (B,T) tokens */
    LOOM_MODE_LOSS,     /* forward and loss */
    LOOM_MODE_GENERATE, /* one sequence's tokens behind others, whose keys and values are kept; the last one's logits */
    LOOM_MODES
} loom_gpt_mode;

/* What is run: B sequences of T tokens, standing behind `past` tokens whose keys and values are kept (then B is 1). */
typedef struct loom_rows {
    int64_t B, T, past;
} loom_rows;

struct loom_gpt {
    loom_gpt_config config;
    loom_gpt_purpose purpose;
    loom_precision precision;
    loom_tape tape;
    loom_tape_schedule train, forward; /* of LOOM_MODE_TRAIN, and of the others */
    loom_buffers buffers[LOOM_MODES];  /* of those that the model is made for */
    loom_layout layout;
    loom_device *device;
    loom_context ctx;
    loom_gpt_hooks hooks;
    int64_t B, T; /* of a micro-batch */
    int64_t padded_vocabulary;
    int64_t group_rows;       /* rows of logits that one product computes */
    int64_t chunk_rows;       /* rows of logits that exist at a time: whole groups */
    loom_recompute recompute; /* none of `sqrt` and `auto` */
    int segment;              /* layers that backward runs once more together */
    loom_offload offload;     /* of what the first of each segment's layers keeps */
    bool generates;
    size_t workspace_bytes;
    bool planned; /* the device has made its plans */

    loom_gpt_mode mode; /* of what runs now, */
    loom_rows rows;     /* its rows, */
    bool accumulate;    /* and whether its gradients are added to those of other micro-batches */

    loom_sharding sharding;
    void *parameters, *gradients; /* in the layout; NULL where there are slots for buckets instead */
    void *master;                 /* the same as parameters where there is no master beside them */
    loom_shard *shard;            /* [n_buckets]: what of each the optimizer updates */
    void **bucket_parameters;     /* [n_buckets]: where the model reads each, */
    void **bucket_gradients;      /* and where backward writes its gradients */
    loom_scalars *scalars;        /* device memory */
    int32_t *tokens, *targets;    /* (B,T) */
    void *losses;                 /* (B,T) statistics */
    void *loss_sums;              /* (B): of each sequence's, in training */
    char *activations;            /* what all modes' buffers lie in */
};

static inline size_t loom_bytes(int64_t elements, loom_dtype dtype) {
    return (size_t)elements * loom_dtype_size(dtype);
}

/* Whether the model's weights are a copy of master weights that lie beside them. */
static inline bool loom_has_master(const loom_precision *precision) {
    return precision->master != precision->storage;
}

/* Makes a mode the one that runs, with so many rows; returns its schedule. */
const loom_tape_schedule *loom_gpt_begin(loom_gpt *gpt, loom_gpt_mode mode, loom_rows rows, bool accumulate);
/* Runs a node of it; of other steps, nothing. */
void loom_gpt_run_step(loom_gpt *gpt, const loom_tape_step *step);
/* Runs one step of each class: for tables of ops that plan or prepare. */
void loom_gpt_visit(loom_gpt *gpt, loom_gpt_mode mode, loom_rows rows, bool accumulate);

/* The head's logits, (chunk_rows, Vp) in the storage type; their gradients take their place. */
loom_view loom_run_logits(const loom_gpt *gpt, int64_t rows);
/* Of generation, the last row's, (Vp): in fp32 where the storage type is narrower. */
loom_view loom_run_last_logits(const loom_gpt *gpt);
/* Puts softmax(scale * logits) over the vocabulary in their place. */
void loom_run_last_probabilities(loom_gpt *gpt, float scale);
/* Bytes of all these while so many rows exist at a time. */
size_t loom_logits_bytes(const loom_gpt *gpt, int64_t rows);

/* Of the values of a micro-batch; of a schedule without backward, with segments of one layer. */
loom_buffer_sizes loom_gpt_buffer_sizes(const loom_gpt *gpt);

/* Runs n tokens that lie in gpt->tokens, behind `past` others, for the last one's logits. */
void loom_gpt_infer(loom_gpt *gpt, int64_t n, int64_t past);

#endif
