#include "gptloom/plan.h"

#include "base/check.h"
#include "gptloom/data.h"

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
                        .sequences = sequences,
                        .sharding = {.ranks = 1}};
    if (!loom_gpt_create(&gpt, config, setup, device, error)) return false;
    loom_gpt_lay_out(gpt, &plan->arena);
    if (setup->purpose == LOOM_GPT_TRAIN) {
        loom_optimizer optimizer;
        loom_optimizer_lay_out(&optimizer, gpt, sequences, &plan->arena);
        loom_feeder feeder;
        loom_feeder_lay_out(&feeder, sequences, setup->T, &plan->arena);
    }
    plan->parameters = loom_gpt_get_layout(gpt)->count;
    plan->elements = loom_gpt_get_layout(gpt)->elements;
    plan->precision = *loom_gpt_get_precision(gpt);
    plan->recompute = *loom_gpt_get_recompute(gpt);
    plan->logits_rows = loom_gpt_get_logits_rows(gpt);
    plan->setup.precision = NULL; /* the caller's; the plan has a copy */
    plan->host_bytes = loom_gpt_get_host_bytes(gpt);
    plan->host_available = device->available_host(device);
    loom_gpt_destroy(gpt);
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- ranks */

/* What the ranks share out, and what they need to give it to each other, in an arena of its own.
 *
 * Communication is assumed to be in place but for this: gradients that are shared out (2) exist in full only on their way,
 * the embeddings' from the classifier on and those of two blocks, one that backward fills and one that is being reduced;
 * parameters that are shared out (3), in two gathered buckets, one in use and one on its way. NCCL's own memory is
 * assumed, too. */
static loom_arena lay_out_share(const loom_plan *plan, const loom_layout *layout) {
    const int64_t ranks = plan->sharding.ranks, zero = plan->sharding.zero;
    const int64_t all = layout->elements, share = all / ranks;
    const int64_t embeddings = layout->bucket[0].elements, block = layout->bucket[1].elements;
    const loom_precision *precision = &plan->precision;
    loom_arena arena = loom_arena_measure();
    loom_arena_take(&arena, "parameters", (size_t)(zero >= 3 ? share : all) * loom_dtype_size(precision->storage));
    if (precision->master != precision->storage)
        loom_arena_take(&arena, "master weights",
                        (size_t)(zero >= 1 ? share : all) * loom_dtype_size(precision->master));
    loom_arena_take(&arena, "gradients", (size_t)(zero >= 2 ? share : all) * loom_dtype_size(precision->gradient));
    for (int i = 0; i < 2; i++)
        loom_arena_take(&arena, "moments", (size_t)(zero >= 1 ? share : all) * loom_dtype_size(precision->moment));
    if (zero >= 2)
        loom_arena_take(&arena, "communication",
                        (size_t)(embeddings + 2 * block) * loom_dtype_size(precision->gradient));
    if (zero >= 3)
        loom_arena_take(&arena, "communication",
                        (size_t)(block + (embeddings > block ? embeddings : block)) *
                            loom_dtype_size(precision->storage));
    if (!plan->device->host_memory) loom_arena_take(&arena, "communication", (size_t)loom_gpu_assumed.communicator);
    return arena;
}

/* Gives the plan's row of that name, which may be new, another size. */
static void replace_row(loom_arena *arena, const loom_arena_row *row) {
    int i = 0;
    while (i < arena->n_rows && strcmp(arena->row[i].name, row->name) != 0) i++;
    if (i == arena->n_rows) {
        LOOM_CHECK(arena->n_rows < LOOM_ARENA_MAX_ROWS);
        arena->row[arena->n_rows++] = (loom_arena_row){.name = row->name};
    }
    arena->used += row->bytes - arena->row[i].bytes;
    arena->row[i].bytes = row->bytes;
}

bool loom_plan_shard(loom_plan *plan, const loom_sharding *sharding, loom_error *error) {
    loom_layout layout;
    LOOM_CHECK(plan->setup.purpose == LOOM_GPT_TRAIN && plan->sharding.ranks == 1);
    LOOM_CHECK(sharding->ranks >= 1 && sharding->zero >= 0 && sharding->zero <= 3);
    if (sharding->ranks == 1) return true;
    if (!loom_layout_create(&layout, &plan->config, sharding->ranks, error)) return false;
    plan->sharding = *sharding;
    plan->elements = sharding->zero >= 1 ? layout.elements / sharding->ranks : layout.elements;
    const loom_arena share = lay_out_share(plan, &layout);
    for (int i = 0; i < share.n_rows; i++) replace_row(&plan->arena, &share.row[i]);
    loom_layout_destroy(&layout);
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
