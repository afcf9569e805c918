#include "gptloom/plan.h"

#include "data/feeder.h"
#include "parallel/data_parallel.h"

/* The plan is the lay-out code itself, run on an arena that only measures. */
bool loom_plan_make(loom_plan *plan, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                    int64_t sequences, loom_error *error) {
    loom_gpt *gpt;
    *plan = (loom_plan){.B = setup->B,
                        .T = setup->T,
                        .arena = loom_arena_measure(),
                        .config = *config,
                        .setup = *setup,
                        .device = device,
                        .sequences = sequences};
    if (!loom_gpt_create(&gpt, config, setup, device, error)) return false;
    const loom_sharding *sharding = loom_gpt_get_sharding(gpt);
    loom_gpt_lay_out(gpt, &plan->arena);
    if (setup->purpose == LOOM_GPT_TRAIN) {
        loom_optimizer optimizer;
        loom_optimizer_lay_out(&optimizer, gpt, sequences, &plan->arena);
        loom_parallel parallel;
        loom_parallel_lay_out(&parallel, gpt, loom_micro_batches(sequences, setup->B, sharding), &plan->arena);
        loom_feeder feeder;
        loom_feeder_lay_out(&feeder, sequences / sharding->ranks, setup->T, &plan->arena);
    }
    plan->setup.sharding = *sharding;
    plan->parameters = loom_gpt_get_layout(gpt)->count;
    plan->elements = loom_gpt_get_layout(gpt)->elements / (sharding->zero >= 1 ? sharding->ranks : 1);
    plan->precision = *loom_gpt_get_precision(gpt);
    plan->recompute = *loom_gpt_get_recompute(gpt);
    plan->logits_rows = loom_gpt_get_logits_rows(gpt);
    plan->setup.precision = NULL; /* the caller's; the plan has a copy */
    plan->host_bytes = loom_gpt_get_host_bytes(gpt);
    plan->host_available = device->available_host(device);
    loom_gpt_destroy(gpt);
    return true;
}

bool loom_plan_fits(const loom_plan *plan) {
    return (plan->available == 0 || plan->arena.used <= plan->available) && plan->host_bytes <= plan->host_available;
}
