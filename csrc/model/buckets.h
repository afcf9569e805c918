/* What the step, the optimizer, the ranks' sums and checkpoints see of a model beside gptloom/model.h: its shards, the
 * memory of its buckets, and when that is read and written. */
#ifndef LOOM_MODEL_BUCKETS_H
#define LOOM_MODEL_BUCKETS_H

#include "gptloom/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What of a bucket a rank updates: all of it, or its share. */
typedef struct loom_shard {
    int64_t first, elements;              /* from the bucket's start */
    void *parameters, *master, *gradient; /* device memory, of element `first` */
} loom_shard;

/* Where ZeRO and overlapped reductions live (parallel/data_parallel.h); each may be NULL. */
typedef struct loom_gpt_hooks {
    void (*params_acquire)(void *user, int bucket, int next); /* it is read from now on, and after it `next`; or -1, as
                                                                 it is the last one */
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
