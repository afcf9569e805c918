/* A model of one layer, which stands for a deeper one when parts of a step are counted or timed. */
#ifndef LOOM_PLAN_ONE_LAYER_H
#define LOOM_PLAN_ONE_LAYER_H

#include "gptloom/plan.h"

/* The parts that a loom_cost tells of. */
typedef enum loom_cost_part {
    LOOM_COST_ENDS,
    LOOM_COST_FORWARD,
    LOOM_COST_BACKWARD,
    LOOM_COST_UPDATE,
    LOOM_COST_RECOMPUTE, /* and a policy: act .. block */
    LOOM_COST_PARTS = LOOM_COST_RECOMPUTE + LOOM_RECOMPUTE_EVERY
} loom_cost_part;

typedef struct loom_one_layer {
    loom_gpt *gpt;
    loom_optimizer optimizer;
    int64_t B, T;
} loom_one_layer;

/* Like the model that `config` and `setup` describe, but for its depth, its policy (it keeps everything) and that it does
 * not generate. It has no memory yet. */
bool loom_one_layer_create(loom_one_layer *model, const loom_gpt_config *config, const loom_gpt_setup *setup,
                           loom_device *device, loom_error *error);
void loom_one_layer_destroy(loom_one_layer *model);

/* Takes its memory and the optimizer's from an arena. */
void loom_one_layer_lay_out(loom_one_layer *model, loom_arena *arena);

/* Runs a part with the table of ops that the model's exec has. */
void loom_one_layer_run(loom_one_layer *model, int part);

/* What a part of this one layer costs becomes what it costs in a cost model. */
void loom_one_layer_enter(const loom_one_layer *model, loom_cost *cost, int part, double amount);

/* A cost model of what each op costs, added up; of the device only shapes are asked. */
typedef double loom_cost_of_op(const void *user, loom_op op, const void *arguments);
bool loom_cost_by_op(loom_cost *cost, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                     loom_cost_of_op *of_op, const void *user, loom_error *error);

#endif
