#include "plan/one_layer.h"

#include "base/check.h"
#include "gptloom/parallel.h"

#include <math.h>

/* ------------------------------------------------------------------------------------------------------- whole steps */

double loom_cost_step(const loom_cost *cost, const loom_gpt_config *config, const loom_recompute *recompute,
                      int64_t micro_batches, int64_t elements) {
    const loom_recomputed again = loom_recompute_count(recompute, config->n_layer);
    const double blocks = (double)config->n_layer * (cost->forward + cost->backward) +
                          (double)again.forwards * cost->forward +
                          (double)again.recomputes * cost->recompute[again.kind];
    return (double)micro_batches * (cost->ends + blocks) + (double)elements * cost->update;
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
    loom_one_layer model;
    loom_arena nowhere = loom_arena_measure();
    *cost = (loom_cost){0};
    if (!loom_one_layer_create(&model, config, setup, device, error)) return false;
    loom_one_layer_lay_out(&model, &nowhere);
    loom_exec *exec = loom_gpt_get_exec(model.gpt);
    exec->ops = loom_visiting_ops();
    exec->visit = add;
    for (int part = 0; part < LOOM_COST_PARTS; part++) {
        summing s = {.of_op = of_op, .user = user};
        exec->visitor = &s;
        loom_one_layer_run(&model, part);
        loom_one_layer_enter(&model, cost, part, s.sum);
    }
    loom_one_layer_destroy(&model);
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

/* ---------------------------------------------------------------------------------------------------------- choosing */

bool loom_plan_choose(loom_plan *plan, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                      int64_t sequences, size_t available, const loom_cost *cost, loom_error *error) {
    loom_recompute policies[LOOM_MOST_POLICIES];
    const int n = loom_recompute_policies(config->n_layer, policies);
    loom_plan smallest = {0};
    double fastest = INFINITY;
    for (int i = 0; i < n; i++) {
        loom_plan candidate;
        loom_gpt_setup with = *setup;
        with.recompute = policies[i];
        if (!loom_plan_make(&candidate, config, &with, device, sequences, error)) return false;
        candidate.available = available;
        if (i == 0 || candidate.arena.used < smallest.arena.used) smallest = candidate;
        const double seconds = loom_cost_step(
            cost, config, &policies[i], loom_micro_batches(sequences, setup->B, &setup->sharding), candidate.elements);
        if (!loom_plan_fits(&candidate) || seconds >= fastest) continue;
        fastest = seconds;
        *plan = candidate;
    }
    if (fastest < INFINITY) return true;
    *plan = smallest;
    return loom_plan_check(plan, error);
}
