#include "plan/sample.h"

#include "base/clock.h"

#include <stdlib.h>

/* Costs by measuring: rounds of all parts, one after the other as they are in a step, and the median of each over the
 * rounds. */

enum { FEWEST_ROUNDS = 3, MOST_ROUNDS = 200 };

/* Rounds go on for so long, and end early after much longer. */
static const double ENOUGH_SECONDS = 1, TOO_MANY_SECONDS = 20;

/* So long a round is to take at most, if one sequence takes no longer. */
static const double LONGEST_ROUND = 2;

typedef struct bench {
    loom_sample sample;
    loom_device *device;
    void *memory;
    size_t bytes;
    loom_device_graph *graph[LOOM_SAMPLE_MOST_PARTS]; /* where the device has graphs; else NULL */
} bench;

static void bench_close(bench *b) {
    for (int part = 0; part < LOOM_SAMPLE_MOST_PARTS; part++)
        if (b->graph[part]) b->device->graph_close(b->device, b->graph[part]);
    loom_sample_destroy(&b->sample);
    if (b->memory) b->device->release(b->device, b->memory, b->bytes);
}

/* Tokens that any vocabulary has, spread over it, and the scalars of an ordinary step that changes nothing. */
static bool fill_in(bench *b, const loom_gpt_config *config, loom_error *error) {
    const int64_t N = b->sample.gpt->B * b->sample.gpt->T;
    loom_device *device = b->device;
    int32_t *tokens = malloc((size_t)N * sizeof *tokens);
    if (!tokens) return loom_fail(error, "no memory for %lld tokens", (long long)N);
    for (int64_t i = 0; i < N; i++) tokens[i] = (int32_t)(i * 7919 % config->vocab_size);
    loom_gpt_set_batch(b->sample.gpt, tokens, tokens, LOOM_HOST_TO_DEVICE);
    const loom_scalars_in in = {
        .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .clip_norm = 1, .loss_gradient = 1 / (float)N};
    device->copy(device, NULL, &loom_gpt_get_scalars(b->sample.gpt)->in, &in, sizeof in, LOOM_HOST_TO_DEVICE);
    const bool ok = device->synchronize(device, NULL, error);
    free(tokens);
    return ok;
}

static bool bench_open(bench *b, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                       loom_error *error) {
    loom_arena plan = loom_arena_measure();
    *b = (bench){.device = device};
    if (!loom_sample_create(&b->sample, config, setup, device, error) || !loom_gpt_make_plans(b->sample.gpt, error))
        return false;
    loom_sample_lay_out(&b->sample, &plan);
    b->bytes = plan.used;
    if (plan.used > device->available(device))
        return loom_fail(
            error, "layers cannot be measured: %.0f MiB are needed and %.0f MiB are free; name a policy of --recompute",
            (double)plan.used / 0x1p20, (double)device->available(device) / 0x1p20);
    if (!device->allocate(device, &b->memory, b->bytes, error)) return false;
    loom_arena arena = loom_arena_over(b->memory, b->bytes, device->host_memory);
    loom_sample_lay_out(&b->sample, &arena);
    return loom_gpt_prepare(b->sample.gpt, error) && loom_optimizer_prepare(&b->sample.optimizer, error) &&
           loom_gpt_initialise(b->sample.gpt, 0, error) && fill_in(b, config, error);
}

/* Captures the parts as graphs, as a step would, where the device has graphs. */
static bool capture(bench *b, loom_error *error) {
    for (int part = 0; part < b->sample.parts && b->device->graph_begin; part++) {
        if (!b->device->graph_begin(b->device, error)) return false;
        loom_sample_run(&b->sample, part);
        if (!b->device->graph_end(b->device, &b->graph[part], error)) return false;
    }
    return true;
}

static bool time_part(bench *b, int part, double *seconds, loom_error *error) {
    b->device->timer_start(b->device);
    if (b->graph[part])
        b->device->graph_launch(b->device, b->graph[part]);
    else
        loom_sample_run(&b->sample, part);
    return b->device->timer_stop(b->device, seconds, error);
}

/* Whether the device has room for so many sequences. */
static bool has_room(const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device) {
    loom_sample sample;
    loom_arena plan = loom_arena_measure();
    if (!loom_sample_create(&sample, config, setup, device, NULL)) return true; /* which bench_open says */
    loom_sample_lay_out(&sample, &plan);
    loom_sample_destroy(&sample);
    return plan.used <= device->available(device);
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The times are sorted by the way. */
static double median(double *times, int n) {
    qsort(times, (size_t)n, sizeof *times, by_size);
    return n % 2 ? times[n / 2] : (times[n / 2 - 1] + times[n / 2]) / 2;
}

typedef double part_times[LOOM_SAMPLE_MOST_PARTS][MOST_ROUNDS];

static bool time_round(bench *b, part_times times, int round, loom_error *error) {
    for (int part = 0; part < b->sample.parts; part++)
        if (!time_part(b, part, &times[part][round], error)) return false;
    return true;
}

/* Until enough is known. The first round warms up and is forgotten, unless it has taken too long to be run again. */
static bool time_rounds(bench *b, part_times times, int *n, loom_error *error) {
    double begin = loom_seconds_now();
    if (!time_round(b, times, 0, error)) return false;
    *n = 1;
    if (loom_seconds_now() - begin > TOO_MANY_SECONDS) return true;
    if (!capture(b, error)) return false;
    begin = loom_seconds_now();
    for (*n = 0; *n < MOST_ROUNDS; ++*n) {
        const double spent = loom_seconds_now() - begin;
        if (*n > 0 && (spent > TOO_MANY_SECONDS || (*n >= FEWEST_ROUNDS && spent > ENOUGH_SECONDS))) break;
        if (!time_round(b, times, *n, error)) return false;
    }
    return true;
}

/* How many of the micro-batch's sequences to measure: a CPU takes so much longer for more of them, and nobody waits a
 * minute for a prediction. Guessed from the operations of two layers, at half of the device's peak. */
static int64_t sequences_to_measure(const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device) {
    const loom_recompute none = {.kind = LOOM_RECOMPUTE_NONE};
    loom_gpt_config two_layers = *config;
    loom_cost flops;
    double rate, round;
    two_layers.n_layer = config->n_layer < 2 ? config->n_layer : 2;
    if (!device->host_memory || !loom_cost_count(&flops, config, setup, device, NULL) ||
        !loom_cost_step(&flops, &two_layers, &none, 1, 0, &round, NULL) ||
        !device->peak(device, LOOM_F32, 0.1, &rate, NULL))
        return setup->B;
    const double B = (double)setup->B * LONGEST_ROUND / (round / (rate / 2));
    return B < 1 ? 1 : B < (double)setup->B ? (int64_t)B : setup->B;
}

bool loom_cost_measure(loom_cost *cost, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                       loom_error *error) {
    bench b;
    double amount[LOOM_SAMPLE_MOST_PARTS];
    part_times *times = calloc(1, sizeof *times);
    int n = 0;
    loom_gpt_setup measured = *setup;
    if (!times) return loom_fail(error, "no memory to measure");
    measured.B = sequences_to_measure(config, setup, device);
    while (measured.B > 1 && !has_room(config, &measured, device)) measured.B /= 2;
    const bool ok = bench_open(&b, config, &measured, device, error) && time_rounds(&b, *times, &n, error);
    for (int part = 0; ok && part < b.sample.parts; part++) amount[part] = median((*times)[part], n);
    if (ok) loom_sample_sum_up(&b.sample, amount, (double)setup->B / (double)measured.B, cost);
    bench_close(&b);
    free(times);
    return ok;
}
