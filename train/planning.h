/* What `gptloom info` and `gptloom plan` share: a training that is not to be run but planned, from the flags of
 * `gptloom train`, and its table of memory. */
#ifndef LOOM_TRAIN_PLANNING_H
#define LOOM_TRAIN_PLANNING_H

#include "engine/options.h"

typedef struct loom_planning {
    loom_train_options options; /* of their fields, those that shape memory and arithmetic */
    char name[4200];            /* of the model: "gpt2", a checkpoint's directory, "custom" */
    char note[160];             /* what the catalogue says of it; "" */
    loom_gpt_config config;
} loom_planning;

/* Takes the model from `argument`, a run's or checkpoint's directory or a model's name, or where there is none from
 * --model and the flags of its shape; then settles all that hangs on shapes. `from` is filled for a directory. */
bool loom_planning_settle(loom_planning *planning, const char *argument, loom_checkpoint_info *from, loom_error *error);

/* The options as a plan wants them, for so many sequences at a time. */
bool loom_planning_precision(const loom_planning *planning, const loom_device *device, loom_precision *precision,
                             loom_error *error);
loom_gpt_setup loom_planning_setup(const loom_planning *planning, const loom_precision *precision,
                                   const loom_recompute *recompute, int64_t B);

/* Rows, what the device reserves, and the sum beside what there is. */
void loom_show_plan(const loom_plan *plan);

#endif
