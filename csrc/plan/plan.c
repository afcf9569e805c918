#include "gptloom/plan.h"

#include "gptloom/data.h"

#include <stdio.h>
#include <string.h>

/* The plan is the lay-out code itself, run on an arena that only measures. */
bool loom_plan_make(loom_plan *plan, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                    int64_t sequences, loom_error *error) {
    loom_gpt *gpt;
    *plan = (loom_plan){.B = setup->B, .T = setup->T, .arena = loom_arena_measure()};
    if (!loom_gpt_create(&gpt, config, setup, device, error)) return false;
    loom_gpt_lay_out(gpt, &plan->arena);
    if (setup->purpose == LOOM_GPT_TRAIN) {
        loom_optimizer optimizer;
        loom_optimizer_lay_out(&optimizer, gpt, sequences, &plan->arena);
        loom_feeder feeder;
        loom_feeder_lay_out(&feeder, sequences, setup->T, &plan->arena);
    }
    plan->parameters = loom_gpt_get_layout(gpt)->count;
    plan->precision = *loom_gpt_get_precision(gpt);
    plan->recompute = *loom_gpt_get_recompute(gpt);
    plan->logits_rows = loom_gpt_get_logits_rows(gpt);
    loom_gpt_destroy(gpt);
    return true;
}

static double mebibytes(size_t bytes) {
    return (double)bytes / 0x1p20;
}

bool loom_plan_check(const loom_plan *plan, loom_error *error) {
    if (plan->available == 0 || plan->arena.used <= plan->available) return true;
    bool told[LOOM_ARENA_MAX_ROWS] = {false};
    char rows[256] = "";
    for (int shown = 0; shown < 3 && shown < plan->arena.n_rows; shown++) {
        int largest = -1;
        for (int i = 0; i < plan->arena.n_rows; i++)
            if (!told[i] && (largest < 0 || plan->arena.row[i].bytes > plan->arena.row[largest].bytes)) largest = i;
        told[largest] = true;
        const size_t used = strlen(rows);
        snprintf(rows + used, sizeof rows - used, "%s%s %.0f", shown ? ", " : "", plan->arena.row[largest].name,
                 mebibytes(plan->arena.row[largest].bytes));
    }
    return loom_fail(
        error,
        "--memory: %.0f MiB are needed and %.0f MiB are there (the largest parts in MiB: %s); take a smaller "
        "--micro-batch, --seq-len or model",
        mebibytes(plan->arena.used), mebibytes(plan->available), rows);
}
