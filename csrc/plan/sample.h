/* A model of two layers, which stands for a deeper one when what a step runs is counted or timed: it runs all kinds of
 * work that a step of the deeper one is made of, whatever that one recomputes. */
#ifndef LOOM_PLAN_SAMPLE_H
#define LOOM_PLAN_SAMPLE_H

#include "gptloom/plan.h"
#include "model/gpt.h"
#include "optim/optimizer.h"

/* What is counted or timed by itself: the runs of nodes, and last the optimizer's update. */
enum { LOOM_SAMPLE_MOST_PARTS = 128 };

typedef struct loom_sample {
    loom_gpt *gpt;
    loom_optimizer optimizer;
    loom_tape_step step[LOOM_SAMPLE_MOST_PARTS]; /* in an order in which each finds what it reads */
    int n_steps, parts;
} loom_sample;

/* Like the model that `config` and `setup` describe, but for its depth, its policy (it keeps everything) and that it
 * does not generate. It has no memory yet. */
bool loom_sample_create(loom_sample *sample, const loom_gpt_config *config, const loom_gpt_setup *setup,
                        loom_device *device, loom_error *error);
void loom_sample_destroy(loom_sample *sample);

/* Takes its memory and the optimizer's from an arena. */
void loom_sample_lay_out(loom_sample *sample, loom_arena *arena);

/* Runs a part, by the table of ops that the model's context has. */
void loom_sample_run(loom_sample *sample, int part);

/* What the parts cost becomes a cost model: of equal parts, their mean; times `scale` but for the update. */
void loom_sample_sum_up(const loom_sample *sample, const double amount[LOOM_SAMPLE_MOST_PARTS], double scale,
                        loom_cost *cost);

/* A cost model of what each op costs, added up; of the device only shapes are asked. */
typedef double loom_cost_of_op(const void *user, loom_op op, const void *arguments);
bool loom_cost_by_op(loom_cost *cost, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                     loom_cost_of_op *of_op, const void *user, loom_error *error);

/* What all that a schedule runs costs, of works that the cost model has. */
double loom_cost_of_schedule(const loom_cost *cost, const loom_tape *tape, const loom_tape_schedule *schedule);

/* The work of this key; a new one, of no cost, where there is none. */
int loom_cost_find(loom_cost *cost, const int64_t key[LOOM_COST_KEY]);

#endif
