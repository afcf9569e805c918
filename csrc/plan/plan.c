#include "gptloom/plan.h"

#include "base/check.h"
#include "gptloom/data.h"
#include "gptloom/parallel.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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

/* ------------------------------------------------------------------------------------------------------------- fitting */

bool loom_plan_fits(const loom_plan *plan) {
    return (plan->available == 0 || plan->arena.used <= plan->available) && plan->host_bytes <= plan->host_available;
}

static double mebibytes(size_t bytes) {
    return (double)bytes / 0x1p20;
}

/* Adds to a text that is cut off where it is full. */
static void append(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void append(char *text, size_t size, const char *format, ...) {
    const size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
}

/* The three largest rows: "parameters 474, moments 949, activations 300". */
static void name_largest(const loom_arena *arena, char *text, size_t size) {
    bool told[LOOM_ARENA_MAX_ROWS] = {false};
    for (int shown = 0; shown < 3 && shown < arena->n_rows; shown++) {
        int largest = -1;
        for (int i = 0; i < arena->n_rows; i++)
            if (!told[i] && (largest < 0 || arena->row[i].bytes > arena->row[largest].bytes)) largest = i;
        told[largest] = true;
        append(text, size, "%s%s %.0f", shown ? ", " : "", arena->row[largest].name,
               mebibytes(arena->row[largest].bytes));
    }
}

void loom_plan_advise(const loom_plan *plan, char *text, size_t size) {
    loom_suggestion found[LOOM_MOST_SUGGESTIONS];
    const int n = loom_plan_suggest(plan, found);
    *text = 0;
    if (n == 0) append(text, size, "take a smaller --micro-batch, --seq-len or model");
    if (n > 0) append(text, size, n > 1 ? "these would fit: " : "this would fit: ");
    for (int i = 0; i < n; i++) append(text, size, "%s%s", i ? "; " : "", found[i].flags);
}

bool loom_plan_check(const loom_plan *plan, loom_error *error) {
    char largest[160] = "", advice[512];
    if (loom_plan_fits(plan)) return true;
    if (plan->host_bytes > plan->host_available)
        return loom_fail(error,
                         "--offload: %.0f MiB of host memory are needed and %.0f MiB can be pinned; take a smaller "
                         "--micro-batch or another --recompute",
                         mebibytes(plan->host_bytes), mebibytes(plan->host_available));
    name_largest(&plan->arena, largest, sizeof largest);
    loom_plan_advise(plan, advice, sizeof advice);
    return loom_fail(error, "--memory: %.0f MiB are needed and %.0f MiB are there (the largest parts in MiB: %s); %s",
                     mebibytes(plan->arena.used), mebibytes(plan->available), largest, advice);
}
