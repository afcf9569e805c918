/* Learning-rate schedules. */
#ifndef GPTLOOM_OPTIM_H
#define GPTLOOM_OPTIM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_schedule_kind {
    LOOM_SCHEDULE_COSINE, /* half a cosine from lr to min_lr over the steps after warm-up */
    LOOM_SCHEDULE_LINEAR, /* a straight line */
    LOOM_SCHEDULE_WSD,    /* warm-up, stable, decay: lr until the last fifth of the steps after warm-up, then a line */
    LOOM_SCHEDULE_CONSTANT, /* lr after warm-up */
} loom_schedule_kind;

typedef struct loom_schedule {
    loom_schedule_kind kind;
    float lr, min_lr;
    int64_t warmup, steps; /* the first `warmup` steps rise linearly to lr; `steps` is the whole run */
} loom_schedule;

/* The learning rate of step 0, 1, ... steps - 1. */
float loom_schedule_at(const loom_schedule *schedule, int64_t step);

#ifdef __cplusplus
}
#endif
#endif
