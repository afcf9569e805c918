/* The answer of `gptloom plan`, and how it is printed. */
#ifndef LOOM_TRAIN_PLAN_ANSWER_H
#define LOOM_TRAIN_PLAN_ANSWER_H

#include "planning.h"

typedef enum loom_speed { LOOM_SPEED_UNKNOWN, LOOM_SPEED_MEASURED, LOOM_SPEED_PREDICTED } loom_speed;

/* One policy of recomputation. */
typedef struct loom_plan_policy {
    loom_recompute recompute;
    loom_plan plan;
    bool fits;
    double extra_flops;           /* beyond keeping everything, as a share of a micro-batch's */
    double seconds, tokens_per_s; /* of a step, all ranks together; 0 where not known */
} loom_plan_policy;

typedef struct loom_plan_answer {
    loom_planning planning;
    loom_device *device;
    const loom_gpu *gpu; /* NULL: a device that is here */
    char title[400];     /* of the device */
    size_t available;
    loom_precision precision;
    loom_sharding sharding;
    int64_t micro_batch; /* sequences of a rank at a time */
    loom_cost flops, seconds;
    loom_speed speed;
    loom_error unmeasured;                           /* why the speed is not known */
    loom_plan_policy policy[LOOM_MOST_POLICIES + 1]; /* the named ones, and sets of values that are faster */
    int n_policies;
    const loom_plan_policy *best; /* the fastest that fits; if none fits, the smallest */
} loom_plan_answer;

/* Prints tables. Always true. */
bool loom_plan_answer_show(const loom_plan_answer *answer);

/* Writes it as JSON to a file, or to stdout for "-". */
bool loom_plan_answer_write(const loom_plan_answer *answer, const char *path, loom_error *error);

#endif
