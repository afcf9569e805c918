/* AdamW over a model's buckets, with the norm of the gradients and the loss of a step. */
#ifndef LOOM_OPTIM_OPTIMIZER_H
#define LOOM_OPTIM_OPTIMIZER_H

#include "model/training.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where sharded gradients and weights are reduced and gathered (parallel/data_parallel.h); each may be NULL. */
typedef struct loom_optimizer_hooks {
    void (*summed)(void *user);              /* this rank's sums are in `losses` and, between zeros, `squares` */
    void (*updated)(void *user, int bucket); /* its shard of a bucket has new weights */
    void *user;
} loom_optimizer_hooks;

typedef struct loom_optimizer {
    loom_gpt *gpt;
    loom_optimizer_hooks hooks;
    void *moment1,
        *moment2;  /* device memory, of the model's shards one after another, in its precision's type of moments */
    void *squares; /* sums of squared gradients over blocks, of all buckets in the layout's order */
    int64_t n_squares;
    void *losses; /* sums of the losses of each sequence of a step, of all ranks */
    int64_t sequences;
    uint64_t
        seed; /* of stochastic rounding, set by the owner; bf16 without master weights and bf16 moments ask for it */
} loom_optimizer;

/* Loss scaling: fp16 alone needs it. The scale that a run begins with, 1 elsewhere; and after how many good updates it
 * doubles, 0 elsewhere (loom_scalars_in.loss_scale_interval). */
float loom_loss_scale_at_first(const loom_precision *precision);
int32_t loom_loss_scale_interval(const loom_precision *precision);

/* Memory for a step of `sequences` sequences, of all ranks; once measuring, once for real. */
void loom_optimizer_lay_out(loom_optimizer *optimizer, loom_gpt *gpt, int64_t sequences, loom_arena *arena);
/* Makes the device's plans for the update, or says what the device cannot run, and clears the moments. */
bool loom_optimizer_prepare(loom_optimizer *optimizer, loom_error *error);

/* Takes the losses of the micro-batch of B sequences that the model has just run to their places in the step's, of
 * which the first is `first`. */
void loom_optimizer_take_losses(loom_optimizer *optimizer, int64_t first, int64_t B);

/* The end of a step, after the last backward: the gradient norm, what the step's scalars say of clipping and skipping,
 * and AdamW on all parameters of the model's shards. */
void loom_optimizer_update(loom_optimizer *optimizer);

/* Its three parts, as no communication is captured: this rank's sums of squares; the hook `summed`; and all that
 * needs the sums of all ranks, with the hook `updated` after each bucket. */
void loom_optimizer_sum_squares(loom_optimizer *optimizer);
void loom_optimizer_share_sums(loom_optimizer *optimizer);
void loom_optimizer_apply(loom_optimizer *optimizer);

/* Moments of a bucket's shard, which begins so many elements after the first bucket's. */
int64_t loom_optimizer_moments_at(const loom_optimizer *optimizer, int bucket);

#ifdef __cplusplus
}
#endif
#endif
