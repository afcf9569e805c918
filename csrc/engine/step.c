#include "engine/trainer.h"

#include "base/clock.h"

#include <math.h>
#include <stdlib.h>

/* The training step, from data to AdamW. Devices are behind the table of ops, ranks behind the hooks of csrc/parallel,
 * and policies of recomputation behind the model's schedule. */

/* The optimizer scalars of a step, which ops read from device memory: its learning rate, and what the options say. */
static loom_scalars_in step_inputs(const loom_trainer *t, int64_t step, int64_t targets) {
    const loom_train_options *o = &t->options;
    return (loom_scalars_in){.learning_rate = loom_schedule_at(&t->schedule, step),
                             .beta1 = (float)o->beta1,
                             .beta2 = (float)o->beta2,
                             .epsilon = (float)o->eps,
                             .weight_decay = (float)o->weight_decay,
                             .clip_norm = (float)o->clip,
                             .loss_gradient = 1.0f / (float)targets,
                             .spike_z = (float)o->skip_spikes,
                             .loss_scale_interval = loom_loss_scale_interval(loom_gpt_get_precision(t->gpt))};
}

/* ----------------------------------------------------------------------------------------------------------- the pieces
 * What the device does in a step, in pieces. A piece runs the same ops with the same addresses in every step; only the memory
 * that it reads has changed, so that a CUDA graph of it can be launched again. */

static void micro_batch(loom_trainer *t, bool accumulate) {
    loom_gpt_train(t->gpt, accumulate);
}

static void first_micro_batch(loom_trainer *t) {
    micro_batch(t, false);
}

static void further_micro_batch(loom_trainer *t) {
    micro_batch(t, true);
}

static void squares(loom_trainer *t) {
    loom_optimizer_sum_squares(&t->optimizer);
}

static void update(loom_trainer *t) {
    loom_optimizer_apply(&t->optimizer);
}

/* Runs a piece. One that exchanges nothing with other ranks (`quiet`) is captured as a graph, where the device has
 * graphs, the second time that it runs, and launched from then on. The first time it runs as it is, since CUDA loads
 * kernels at their first launch, which a capture does not allow. */
static bool run(loom_trainer *t, loom_piece piece, bool quiet, loom_error *error) {
    static void (*const run_piece[LOOM_PIECES])(loom_trainer *) = {
        [LOOM_FIRST_MICRO_BATCH] = first_micro_batch,
        [LOOM_FURTHER_MICRO_BATCH] = further_micro_batch,
        [LOOM_SQUARES] = squares,
        [LOOM_UPDATE] = update,
    };
    const bool captures = t->device->graph_begin && t->options.cuda_graph == LOOM_ON && quiet &&
                          !t->options.check_finite;
    if (!captures || !t->has_run[piece]) {
        run_piece[piece](t);
        t->has_run[piece] = true;
        return true;
    }
    loom_parallel_settle(&t->parallel);
    if (!t->graph[piece]) {
        if (!t->device->graph_begin(t->device, error)) return false;
        run_piece[piece](t);
        if (!t->device->graph_end(t->device, &t->graph[piece], error)) return false;
    }
    t->device->graph_launch(t->device, t->graph[piece]);
    return true;
}

/* ------------------------------------------------------------------------------------------------ whether the run ends */

bool loom_trainer_should_stop(loom_trainer *t) {
    const loom_train_observer *observer = t->observer;
    t->asked = t->asked || (observer && observer->should_stop && observer->should_stop(observer->user));
    if (t->comm->size == 1) t->stops = t->asked;
    return t->asked;
}

/* What a rank tells the others of itself. */
enum { STOP = 1 /* it was asked to end the run */, NO_DATA = 2 /* it has none for this step */ };
typedef struct rank_status {
    double worked; /* milliseconds of the step before */
    int64_t what;  /* of the above */
} rank_status;

/* Ranks that exchange their status wait for the slowest of them. They do so before the update, where they wait for each
 * other anyway, and between micro-batches about every five seconds. After how many micro-batches that is, each rank
 * computes from the time of the slowest rank in the step before, so that all come to the same number. In the first
 * step, of which no time is known, they exchange their status before every micro-batch. */
static int64_t stride(const loom_trainer *t, double slowest_ms) {
    static const double ask_every_ms = 5000, most = 1e9;
    const double n = ask_every_ms * (double)t->parallel.micro_batches / slowest_ms;
    return !(slowest_ms > 0) || n < 1 ? 1 : (int64_t)(n < most ? n : most);
}

/* Learns from all ranks how long they worked in the step before, whether one of them was asked to end the run, and
 * whether one has no data. */
static bool exchange_status(loom_trainer *t, loom_error *error) {
    const int ranks = t->comm->size;
    const rank_status mine = {t->status_exchange.ms_worked,
                              (loom_trainer_should_stop(t) ? STOP : 0) | (t->feeder.failed ? NO_DATA : 0)};
    rank_status *all = loom_comm_memory(t->comm, (size_t)ranks * sizeof *all, error);
    const bool ok = all && loom_comm_host_gather(t->comm, all, &mine, sizeof mine, error);
    double least = INFINITY, most = 0;
    for (int r = 0; ok && r < ranks; r++) {
        least = all[r].worked < least ? all[r].worked : least;
        most = all[r].worked > most ? all[r].worked : most;
        t->stops = t->stops || all[r].what & STOP;
        t->no_data = t->no_data || all[r].what & NO_DATA;
    }
    t->status_exchange.ms_spread = most - least;
    t->status_exchange.stride = stride(t, most);
    free(all);
    return ok;
}

/* Before this rank's micro-batch i: asks whether the run is to end, of all ranks where it is time to exchange their
 * status. `gives_up`: the step is not to be completed. */
static bool ask(loom_trainer *t, int64_t i, bool *gives_up, loom_error *error) {
    const int64_t bytes = t->comm->traffic.bytes;
    const bool is_time = t->status_exchange.stride <= 1 || (i > 0 && i % t->status_exchange.stride == 0);
    bool ok = true;
    if (t->comm->size == 1)
        loom_trainer_should_stop(t);
    else if (!t->stops && !t->no_data && is_time)
        ok = exchange_status(t, error);
    t->comm->traffic.bytes = bytes; /* how often ranks ask depends on time; what a step moves does not */
    *gives_up = t->stops || t->no_data;
    return ok;
}

/* -------------------------------------------------------------------------------------------------------- computing */

/* The host gives the device work for a few micro-batches at most before it waits. It does not wait for micro-batches
 * that depend on other ranks: the communicator alone knows how long it may wait for those. */
static bool stay_near(loom_trainer *t, int64_t i, loom_error *error) {
    return i < LOOM_MICRO_BATCHES_AHEAD || !loom_parallel_is_quiet(&t->parallel, i) ||
           t->device->event_synchronize(t->device, t->ahead[i % LOOM_MICRO_BATCHES_AHEAD], error);
}

/* Runs this rank's micro-batches, which are consecutive ones of the step, or fewer if the run is to end. Every rank
 * gives the communicator the same operations in the same order. So after a failure this rank's process has to end: the
 * others would wait for its operations. */
static bool compute(loom_trainer *t, bool *gives_up, loom_error *error) {
    const int64_t B = t->options.micro_batch, T = t->options.seq_len, own = t->options.batch / t->comm->size;
    for (int64_t i = 0; i * B < own; i++) {
        const int64_t first = i * B;
        const loom_piece piece = i > 0 && loom_parallel_accumulates(&t->parallel) ? LOOM_FURTHER_MICRO_BATCH
                                                                                  : LOOM_FIRST_MICRO_BATCH;
        if (!ask(t, i, gives_up, error)) return false;
        if (*gives_up) return true;
        if (!stay_near(t, i, error)) return false;
        loom_gpt_set_batch(t->gpt, t->feeder.inputs + first * T, t->feeder.targets + first * T, LOOM_DEVICE_TO_DEVICE);
        loom_parallel_begin(&t->parallel, i);
        if (!run(t, piece, loom_parallel_is_quiet(&t->parallel, i), error)) return false;
        loom_optimizer_take_losses(&t->optimizer, t->comm->rank * own + first, B);
        t->device->event_record(t->device, t->ahead[i % LOOM_MICRO_BATCHES_AHEAD], NULL);
    }
    return true;
}

/* Ranks exchange their status before the update and not after it, because the update begins to gather weights, which is
 * to go on beside the next step. If all ranks had data for the step, it is completed from here on even if the run is to
 * end. */
static bool exchange_status_and_update(loom_trainer *t, bool *gives_up, loom_error *error) {
    if (t->comm->size > 1 && !exchange_status(t, error)) return false;
    *gives_up = t->no_data;
    if (*gives_up) return true;
    loom_parallel_reduce(&t->parallel);
    if (!run(t, LOOM_SQUARES, true, error)) return false;
    loom_optimizer_share_sums(&t->optimizer);
    return run(t, LOOM_UPDATE, loom_parallel_updates_quietly(&t->parallel), error);
}

/* Ends a step that was given up: its batch will be the next one again, and operations between ranks that are under way
 * are waited for. Gradients and losses need no care, as the first micro-batch of a step overwrites them; nothing else
 * was changed. */
static bool give_up(loom_trainer *t, loom_step_report *report, loom_error *error) {
    loom_feeder_give_back(&t->feeder);
    loom_parallel_reduce(&t->parallel);
    t->comm->step = t->state.step;
    *report = (loom_step_report){.step = t->state.step, .tokens = t->state.tokens, .stop = true, .interrupted = true};
    return loom_parallel_ok(&t->parallel, error) && loom_comm_synchronize(t->comm, NULL, error);
}

/* The step's batch. Where this rank has no data and there are other ranks, it computes with a batch without targets
 * until ranks exchange their status, as the others would wait for it. */
static bool take_batch(loom_trainer *t, int64_t *step, int64_t *targets, bool *has_data, loom_error *error) {
    *has_data = loom_feeder_take(&t->feeder, step, targets, error);
    if (*has_data) return true;
    t->no_data = t->feeder.failed && t->comm->size == 1;
    if (!t->feeder.failed || t->comm->size == 1) return false;
    loom_feeder_take_nothing(&t->feeder);
    *step = t->state.step;
    *targets = 1;
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- the step */

bool loom_trainer_step(loom_trainer *t, loom_step_report *report, loom_error *error) {
    const double start = loom_seconds_now(), waited = t->comm->traffic.seconds_waited;
    const int64_t bytes = t->comm->traffic.bytes;
    loom_scalars *scalars = loom_gpt_get_scalars(t->gpt); /* device memory */
    loom_scalars *host = t->host_scalars;                 /* pinned */

    int64_t step, targets;
    bool has_data, gives_up = false;
    loom_error why;
    if (!take_batch(t, &step, &targets, &has_data, &why)) return loom_fail(error, "%s", why.message);
    t->comm->step = step + 1;
    host->in = step_inputs(t, step, targets);
    t->device->copy(t->device, NULL, &scalars->in, &host->in, sizeof host->in, LOOM_HOST_TO_DEVICE);
    if (!compute(t, &gives_up, error) || (!gives_up && !exchange_status_and_update(t, &gives_up, error))) return false;
    if (gives_up && !give_up(t, report, error)) return false;
    if (t->no_data) return loom_comm_all(t->comm, has_data, &why) || loom_fail(error, "%s", why.message);
    if (gives_up) return true;
    loom_feeder_send_ahead(&t->feeder);
    t->device->copy(t->device, NULL, &host->out, &scalars->out, sizeof host->out, LOOM_DEVICE_TO_HOST);
    t->device->copy(t->device, NULL, &host->state, &scalars->state, sizeof host->state, LOOM_DEVICE_TO_HOST);
    if (!loom_parallel_ok(&t->parallel, error) || !loom_comm_synchronize(t->comm, NULL, error)) return false;
    t->state.step = step + 1;
    t->state.tokens += targets;
    t->state.scalars = host->state;

    const double ms = 1e3 * (loom_seconds_now() - start);
    *report = (loom_step_report){.step = t->state.step,
                                 .tokens = t->state.tokens,
                                 .loss = host->out.loss,
                                 .lr = host->in.learning_rate,
                                 .grad_norm = host->out.gradient_norm,
                                 .skipped = host->out.skip != 0,
                                 .ms = ms,
                                 .tokens_per_s = (double)targets / (1e-3 * ms),
                                 .ms_waited = 1e3 * (t->comm->traffic.seconds_waited - waited),
                                 .comm_bytes = t->comm->traffic.bytes - bytes,
                                 .ms_spread = t->status_exchange.ms_spread};
    if (t->comm->size == 1) loom_trainer_should_stop(t);
    report->stop = t->stops;
    t->status_exchange.ms_worked = ms - report->ms_waited;
    return true;
}
