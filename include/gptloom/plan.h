/* The memory plan: every byte a run will allocate, before it allocates anything. */
#ifndef GPTLOOM_PLAN_H
#define GPTLOOM_PLAN_H

#include "gptloom/model.h"
#include "gptloom/optim.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_plan {
    loom_arena arena; /* measured: its rows are the plan's, its `used` the total */
    int64_t B, T;
    loom_precision precision;
    loom_recompute recompute;
    int64_t logits_rows; /* rows of logits at a time */
    int64_t parameters;  /* as users count them */
    size_t available;    /* what the device (or --memory) has; 0: not asked */
} loom_plan;

/* Plans training (or inference) of a model on a device, with `sequences` in a step. */
bool loom_plan_make(loom_plan *plan, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                    int64_t sequences, loom_error *error);

/* Whether it fits in plan->available; the error gives the total, what there is, and the largest rows. */
bool loom_plan_check(const loom_plan *plan, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
