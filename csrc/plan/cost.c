#include "plan/sample.h"

#include "base/check.h"
#include "parallel/data_parallel.h"

#include <stdlib.h>

/* ------------------------------------------------------------------------------------------------------- whole steps */

/* Of a micro-batch, by where it comes from. */
typedef struct by_place {
    double ends, forward, backward; /* of all layers */
} by_place;

static double cost_of_run(loom_cost *cost, const loom_tape *tape, const loom_tape_step *step) {
    int64_t key[LOOM_COST_KEY];
    const int known = cost->n;
    loom_tape_step_key(tape, step, key);
    const int work = loom_cost_find(cost, key);
    LOOM_CHECK(work < known); /* else the cost model is one of other shapes */
    return cost->work[work].amount;
}

static by_place sum_by_place(const loom_cost *cost, const loom_tape *tape, const loom_tape_schedule *schedule) {
    loom_tape_class classes[LOOM_MOST_CLASSES];
    const int n = loom_tape_classes(tape, schedule, classes);
    loom_cost found = *cost;
    by_place sum = {0};
    for (int i = 0; i < n; i++) {
        const double amount = classes[i].count * cost_of_run(&found, tape, classes[i].step);
        if (!tape->scope[tape->node[classes[i].step->index].scope].is_layer)
            sum.ends += amount;
        else if (classes[i].step->kind == LOOM_STEP_FORWARD)
            sum.forward += amount;
        else
            sum.backward += amount;
    }
    return sum;
}

double loom_cost_of_schedule(const loom_cost *cost, const loom_tape *tape, const loom_tape_schedule *schedule) {
    const by_place sum = sum_by_place(cost, tape, schedule);
    return sum.ends + sum.forward + sum.backward;
}

static bool cost_of_policy(const loom_cost *cost, const loom_gpt_config *config, const loom_recompute *recompute,
                           by_place *sum, loom_error *error) {
    loom_tape tape;
    loom_tape_schedule schedule = {0};
    if (!loom_tape_create(&tape, config, error)) return false;
    loom_keep *keep = malloc((size_t)tape.n_values * sizeof *keep);
    bool ok = keep || loom_fail(error, "no memory to predict what a step costs");
    if (ok) {
        loom_tape_keep(&tape, recompute, keep);
        ok = loom_tape_schedule_train(&schedule, &tape, keep, (int)loom_recompute_segment(recompute, config->n_layer),
                                      false, error);
    }
    if (ok) *sum = sum_by_place(cost, &tape, &schedule);
    free(keep);
    loom_tape_schedule_destroy(&schedule);
    loom_tape_destroy(&tape);
    return ok;
}

bool loom_cost_step(const loom_cost *cost, const loom_gpt_config *config, const loom_recompute *recompute,
                    int64_t micro_batches, int64_t elements, double *amount, loom_error *error) {
    by_place sum;
    if (!cost_of_policy(cost, config, recompute, &sum, error)) return false;
    *amount = (double)micro_batches * (sum.ends + sum.forward + sum.backward) + (double)elements * cost->update;
    return true;
}

/* All layers but the last one are recomputed. */
bool loom_cost_split(const loom_cost *cost, const loom_gpt_config *config, loom_cost_parts *parts, loom_error *error) {
    const double layers = (double)config->n_layer, again = layers > 1 ? layers - 1 : 1;
    by_place least = {0};
    for (int kind = LOOM_RECOMPUTE_NONE; kind < LOOM_RECOMPUTE_EVERY; kind++) {
        by_place sum;
        if (!cost_of_policy(cost, config, &(loom_recompute){.kind = (loom_recompute_kind)kind}, &sum, error))
            return false;
        if (kind == LOOM_RECOMPUTE_NONE) least = sum;
        parts->recompute[kind] = (sum.forward - least.forward) / again;
    }
    parts->ends = least.ends;
    parts->forward = least.forward / layers;
    parts->backward = least.backward / layers;
    return true;
}

/* ---------------------------------------------------------------------------------------------------------- counting */

typedef struct summing {
    loom_cost_of_op *of_op;
    const void *user;
    double sum;
} summing;

static void add(void *visitor, loom_op op, const void *arguments) {
    summing *s = visitor;
    s->sum += s->of_op(s->user, op, arguments);
}

bool loom_cost_by_op(loom_cost *cost, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                     loom_cost_of_op *of_op, const void *user, loom_error *error) {
    loom_sample sample;
    loom_arena nowhere = loom_arena_measure();
    double amount[LOOM_SAMPLE_MOST_PARTS];
    if (!loom_sample_create(&sample, config, setup, device, error)) return false;
    loom_sample_lay_out(&sample, &nowhere);
    loom_context *ctx = loom_gpt_get_context(sample.gpt);
    ctx->ops = loom_visiting_ops();
    ctx->visit = add;
    for (int part = 0; part < sample.parts; part++) {
        summing s = {.of_op = of_op, .user = user};
        ctx->visitor = &s;
        loom_sample_run(&sample, part);
        amount[part] = s.sum;
    }
    loom_sample_sum_up(&sample, amount, 1, cost);
    loom_sample_destroy(&sample);
    return true;
}

static double flops_of_op(const void *user, loom_op op, const void *arguments) {
    (void)user;
    return loom_op_work(op, arguments).flops;
}

bool loom_cost_count(loom_cost *cost, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                     loom_error *error) {
    return loom_cost_by_op(cost, config, setup, device, flops_of_op, NULL, error);
}
