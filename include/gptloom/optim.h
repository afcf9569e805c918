/* The optimizer: learning-rate schedules and AdamW over a model's buckets. */
#ifndef GPTLOOM_OPTIM_H
#define GPTLOOM_OPTIM_H

#include "gptloom/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_schedule_kind {
    LOOM_SCHEDULE_COSINE,   /* half a cosine from lr to min_lr over the steps after warm-up */
    LOOM_SCHEDULE_LINEAR,   /* a straight line */
    LOOM_SCHEDULE_WSD,      /* warm-up, stable, decay: lr until the last fifth of the steps, then a line to min_lr */
    LOOM_SCHEDULE_CONSTANT, /* lr after warm-up */
} loom_schedule_kind;

typedef struct loom_schedule {
    loom_schedule_kind kind;
    float lr, min_lr;
    int64_t warmup, steps; /* the first `warmup` steps rise linearly to lr; `steps` is the whole run */
} loom_schedule;

/* The learning rate of step 0, 1, ... steps - 1. */
float loom_schedule_at(const loom_schedule *schedule, int64_t step);

typedef struct loom_optimizer {
    loom_gpt *gpt;
    void *moment1, *moment2; /* device memory, fp32, in the model's layout */
    void *squares;           /* block sums of squared gradients */
    int64_t n_squares;
} loom_optimizer;

enum { LOOM_NORM_BLOCK = 65536 };

void loom_optimizer_lay_out(loom_optimizer *optimizer, loom_gpt *gpt, loom_arena *arena);
bool loom_optimizer_prepare(loom_optimizer *optimizer, loom_error *error); /* clears the moments */

/* Block sums of the squared gradients. */
void loom_optimizer_norm(loom_optimizer *optimizer);

/* AdamW on all parameters, as the scalars on the device say. */
void loom_optimizer_update(loom_optimizer *optimizer);

#ifdef __cplusplus
}
#endif
#endif
