/* A model as the library's own code uses it, beside gptloom/model.h: micro-batches of training and of losses alone, its
 * shards, the memory of its buckets, and when that is read and written. */
#ifndef LOOM_MODEL_TRAINING_H
#define LOOM_MODEL_TRAINING_H

#include "gptloom/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Blocks of a segment: 1 where each block is recomputed from its own input. */
int64_t loom_recompute_segment(const loom_recompute *recompute, int64_t n_layer);

/* Whether so many ranks can compute the same bits as one rank: powers of two up to LOOM_MAX_DETERMINISTIC_RANKS. */
bool loom_ranks_can_be_alike(int64_t ranks);

/* The published initialisation: weights normal(0, 0.02), GPT-2's residual projections scaled by 1/sqrt(2 n_layer),
 * positions like weights; biases 0, layernorms 1. An element's value depends on its bucket and its place there. Only
 * the model's shards are written: the weights that it reads beside these are to be gathered afterwards. */
bool loom_gpt_initialise(loom_gpt *gpt, uint64_t seed, loom_error *error);

/* Copies a micro-batch of ids, (B,T) each, to where the model reads it, from the host or from device memory. A target
 * of -1 is none. */
void loom_gpt_set_batch(loom_gpt *gpt, const int32_t *tokens, const int32_t *targets, loom_copy_kind kind);

/* A micro-batch of training: forward, losses (B,T) and their sums over each sequence (B), and backward, which writes
 * the parameters' gradients, or with `accumulate` adds to them. Losses and the gradients of activations do not depend
 * on how many rows of logits there are at a time; the classifier's weight gradient does in the order of its additions. */
void loom_gpt_train(loom_gpt *gpt, bool accumulate);

/* Its losses alone. */
void loom_gpt_evaluate(loom_gpt *gpt);

void *loom_gpt_get_gradients(loom_gpt *gpt);
void *loom_gpt_get_losses(loom_gpt *gpt);              /* (B,T), device's statistics type */
int64_t loom_gpt_get_logits_rows(const loom_gpt *gpt); /* what logits_rows came to */

/* What of a bucket a rank updates: all of it, or its share. */
typedef struct loom_shard {
    int64_t first, elements;              /* from the bucket's start */
    void *parameters, *master, *gradient; /* device memory, of element `first` */
} loom_shard;

/* Where ZeRO and overlapped reductions live (parallel/data_parallel.h); each may be NULL. */
typedef struct loom_gpt_hooks {
    void (*params_acquire)(void *user, int bucket, int next); /* `bucket` is about to be read, and after it `next`; -1:
                                                                 no other */
    void (*params_release)(void *user, int bucket);           /* it is not read any more before it is acquired again */
    void (*grads_acquire)(void *user, int bucket);            /* backward begins to write its gradients */
    void (*grads_ready)(void *user, int bucket);              /* and has written them */
    bool (*synchronize)(void *user, loom_error *error);       /* the host waits for the device, in generation: where
                                                                 hooks wait for other ranks, not for ever */
    void *user;
} loom_gpt_hooks;

void loom_gpt_set_hooks(loom_gpt *gpt, const loom_gpt_hooks *hooks);

/* Device memory of a bucket: where the model reads it, and where backward writes its gradients. Where they are sharded
 * these are for a while only: blocks take two slots in turn. */
void *loom_gpt_bucket_parameters(loom_gpt *gpt, int bucket);
void *loom_gpt_bucket_gradients(loom_gpt *gpt, int bucket);
/* The slot, a buffer that buckets take in turn, of a bucket that has none of its own: 0 the embeddings', 1 the last
 * layernorm's, 2 and 3 the blocks'. */
enum { LOOM_BUCKET_SLOTS = 4 };
int loom_gpt_bucket_slot(const loom_gpt *gpt, int bucket);
const loom_sharding *loom_gpt_get_sharding(const loom_gpt *gpt);
const loom_shard *loom_gpt_get_shard(const loom_gpt *gpt, int bucket);

/* Makes the weights of the model's shards the rounded copy of the master weights, after these were written by something
 * other than the optimizer. It does nothing where there are no separate master weights. */
void loom_gpt_copy_master(loom_gpt *gpt);

/* Makes the device's plans, by running each kind of work once over the preparing table. It is best done before the
 * model's memory is taken, as devices measure in memory of their own. */
bool loom_gpt_make_plans(loom_gpt *gpt, loom_error *error);

loom_context *loom_gpt_get_context(loom_gpt *gpt);
const loom_recompute *loom_gpt_get_recompute(const loom_gpt *gpt); /* never `sqrt`: the `every` it comes to */
void *loom_gpt_get_loss_sums(loom_gpt *gpt);       /* (B), as the losses: of each sequence, in training */
loom_scalars *loom_gpt_get_scalars(loom_gpt *gpt); /* device memory */

#ifdef __cplusplus
}
#endif
#endif
