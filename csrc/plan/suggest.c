#include "gptloom/plan.h"

#include "model/training.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What to change where a plan does not fit: each change is planned, and suggested if it does fit. */

typedef struct search {
    const loom_plan *plan; /* which does not fit */
    loom_suggestion *found;
    int n;
} search;

/* The plan's own settings, to be changed. */
static loom_suggestion settings_of(const loom_plan *plan) {
    return (loom_suggestion){.B = plan->B, .T = plan->T, .precision = plan->precision, .recompute = plan->recompute};
}

static bool fits(const search *s, const loom_suggestion *settings) {
    loom_plan plan;
    loom_gpt_setup setup = s->plan->setup;
    setup.B = settings->B;
    setup.T = settings->T;
    setup.precision = &settings->precision;
    setup.recompute = settings->recompute;
    if (!loom_plan_make(&plan, &s->plan->config, &setup, s->plan->device, s->plan->sequences, NULL)) return false;
    plan.available = s->plan->available;
    return loom_plan_fits(&plan);
}

static void add_flag(loom_suggestion *settings, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add_flag(loom_suggestion *settings, const char *format, ...) {
    const size_t used = strlen(settings->flags);
    va_list arguments;
    va_start(arguments, format);
    if (used) settings->flags[used] = ' ';
    vsnprintf(settings->flags + used + (used > 0), sizeof settings->flags - used - 1, format, arguments);
    va_end(arguments);
}

/* Keeps settings that fit, with the flags that make them of the plan's. */
static void keep(search *s, loom_suggestion settings) {
    const loom_plan *plan = s->plan;
    const loom_precision *precision = &settings.precision;
    char policy[LOOM_RECOMPUTE_NAME];
    if (s->n == LOOM_MOST_SUGGESTIONS) return;
    if (precision->storage != plan->precision.storage)
        add_flag(&settings, "--dtype %s", loom_dtype_name(precision->storage));
    if (precision->master == LOOM_BF16 && plan->precision.master != LOOM_BF16)
        add_flag(&settings, "--master-weights off");
    if (precision->moment != plan->precision.moment)
        add_flag(&settings, "--optimizer-dtype %s", loom_dtype_name(precision->moment));
    if (settings.T != plan->T) add_flag(&settings, "--seq-len %lld", (long long)settings.T);
    if (settings.B != plan->B) add_flag(&settings, "--micro-batch %lld", (long long)settings.B);
    if (settings.recompute.kind != plan->recompute.kind || settings.recompute.every != plan->recompute.every) {
        loom_recompute_name(&settings.recompute, policy);
        add_flag(&settings, "--recompute %s", policy);
    }
    s->found[s->n++] = settings;
}

/* Layers that segments run forward once more before each of them is recomputed: all but each segment's last one, and
 * the last segment's. */
static int64_t forwards_again(const loom_recompute *recompute, int64_t n_layer) {
    const int64_t K = loom_recompute_segment(recompute, n_layer);
    return (n_layer - 1) / K * (K - 1);
}

/* Whether policy `one` computes more than `other` does; segments, by the layers that run twice. */
static bool computes_more(const loom_recompute *one, const loom_recompute *other, int64_t n_layer) {
    const loom_recompute_kind a = one->kind < LOOM_RECOMPUTE_BLOCK ? one->kind : LOOM_RECOMPUTE_BLOCK;
    const loom_recompute_kind b = other->kind < LOOM_RECOMPUTE_BLOCK ? other->kind : LOOM_RECOMPUTE_BLOCK;
    return a != b ? a > b : forwards_again(one, n_layer) > forwards_again(other, n_layer);
}

/* The least recomputation with which the settings fit. */
static bool recompute_more(const search *s, loom_suggestion *settings) {
    const int64_t L = s->plan->config.n_layer;
    const loom_recompute *best = NULL;
    loom_recompute policies[LOOM_MOST_POLICIES];
    const int n = loom_recompute_policies(L, policies);
    for (int i = 0; i < n; i++) {
        settings->recompute = policies[i];
        if (computes_more(&policies[i], &s->plan->recompute, L) && (!best || computes_more(best, &policies[i], L)) &&
            fits(s, settings))
            best = &policies[i];
    }
    settings->recompute = best ? *best : s->plan->recompute;
    return best;
}

static bool fits_with(const search *s, loom_suggestion *settings, int64_t B, bool also_recomputing) {
    settings->B = B;
    return fits(s, settings) || (also_recomputing && recompute_more(s, settings));
}

/* The largest micro-batch, up to `most`, with which they fit, as they are or (`also_recomputing`) with some policy.
 * Where one sequence does not fit, no more do. */
static bool take_less_at_a_time(const search *s, loom_suggestion *settings, int64_t most, bool also_recomputing) {
    int64_t B = fits_with(s, settings, 1, also_recomputing) ? most : 0;
    while (B >= 1 && !(loom_micro_batches_divide(s->plan->sequences, B, &s->plan->setup.sharding) &&
                       fits_with(s, settings, B, also_recomputing)))
        B--;
    if (B < 1) settings->B = s->plan->B;
    return B >= 1;
}

/* bf16; without master weights, the moments in bf16 too. */
static bool round_weights(const search *s, bool master, loom_suggestion *settings) {
    const loom_precision_flags flags = {.dtype = LOOM_BF16,
                                        .master = master,
                                        .optimizer = master ? s->plan->precision.moment : LOOM_BF16,
                                        .gradient = s->plan->precision.gradient};
    return s->plan->device->storage == LOOM_F32 &&
           loom_precision_of(s->plan->device, &flags, &settings->precision, NULL);
}

/* A change by itself: the moments', then the weights'. */
static void try_precision(search *s) {
    loom_suggestion settings = settings_of(s->plan);
    const loom_precision *precision = &s->plan->precision;
    if (precision->moment == LOOM_F32) {
        settings.precision.moment = LOOM_BF16;
        if (fits(s, &settings)) keep(s, settings);
        settings = settings_of(s->plan);
    }
    const bool wide = precision->storage == LOOM_F32;
    const bool narrowest = precision->master == LOOM_BF16 && precision->moment == LOOM_BF16;
    if (wide && round_weights(s, true, &settings) && fits(s, &settings))
        keep(s, settings);
    else if (!narrowest && round_weights(s, false, &settings) && fits(s, &settings))
        keep(s, settings);
}

static void try_half_length(search *s) {
    loom_suggestion settings = settings_of(s->plan);
    settings.T = s->plan->T / 2;
    if (settings.T >= 1 && fits(s, &settings)) keep(s, settings);
}

/* Where nothing helps by itself: bf16, as many sequences at a time as will go, and recomputation. */
static void try_everything(search *s) {
    for (int master = 1; master >= 0 && s->n == 0; master--) {
        loom_suggestion settings = settings_of(s->plan);
        if (s->plan->precision.master == LOOM_BF16 && master) continue;
        if (round_weights(s, master, &settings) && take_less_at_a_time(s, &settings, s->plan->B, true))
            keep(s, settings);
    }
}

static void search_training(search *s) {
    loom_suggestion settings = settings_of(s->plan);
    if (recompute_more(s, &settings)) keep(s, settings);
    settings = settings_of(s->plan);
    if (take_less_at_a_time(s, &settings, s->plan->B - 1, false)) keep(s, settings);
    if (s->n == 0 && take_less_at_a_time(s, &settings, s->plan->B - 1, true)) keep(s, settings);
    try_precision(s);
    try_half_length(s);
    if (s->n == 0) try_everything(s);
}

/* A plan that was put together without a device, as tests do, has nothing to change. */
int loom_plan_suggest(const loom_plan *plan, loom_suggestion found[LOOM_MOST_SUGGESTIONS]) {
    search s = {.plan = plan, .found = found};
    if (!plan->device || !plan->available) return 0;
    if (plan->setup.purpose == LOOM_GPT_TRAIN)
        search_training(&s);
    else if (plan->precision.storage == LOOM_F32)
        try_precision(&s);
    return s.n;
}

/* ------------------------------------------------------------------------------------------------------ in words */

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
    bool named[LOOM_ARENA_MAX_ROWS] = {false};
    for (int shown = 0; shown < 3 && shown < arena->n_rows; shown++) {
        int largest = -1;
        for (int i = 0; i < arena->n_rows; i++)
            if (!named[i] && (largest < 0 || arena->row[i].bytes > arena->row[largest].bytes)) largest = i;
        named[largest] = true;
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
