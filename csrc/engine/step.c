#include "engine/trainer.h"

#include "base/clock.h"

#include <math.h>
#include <stdlib.h>

/* The training step, from data to AdamW. It reads from top to bottom; devices, ranks and policies are behind the table of
 * ops, the hooks and the plan. */

/* What changes from step to step, as ops on the device will read it. */
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
 * What the device does in a step, in pieces that are the same every time but for what they read from memory. */

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

/* Where the device has graphs, a piece that leaves other ranks alone (`quiet`) runs the first time as it is, which loads
 * what is loaded late; the second time it is captured as a graph, which is launched from then on. */
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

/* Ranks that ask each other wait for the slowest. So they do it where they wait for each other anyway, before the update, and between
 * micro-batches about as often as this: all compute the same number of micro-batches, from what the slowest took for the
 * step before. Of the first step nothing is known, and they ask each time. */
static int64_t stride(const loom_trainer *t, double slowest_ms) {
    static const double ask_every_ms = 5000, most = 1e9;
    const double n = ask_every_ms * (double)t->parallel.micro_batches / slowest_ms;
    return !(slowest_ms > 0) || n < 1 ? 1 : (int64_t)(n < most ? n : most);
}

/* Compares the step before, and asks whether one of the ranks is to end the run. */
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

/* Before micro-batch i of this rank: whether the step is given up. */
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

/* Lets the host wait until few micro-batches are ahead of the device, where these wait for no other ranks: the
 * communicator alone knows for how long to wait for those. */
static bool stay_near(loom_trainer *t, int64_t i, loom_error *error) {
    return i < LOOM_MICRO_BATCHES_AHEAD || !loom_parallel_is_quiet(&t->parallel, i) ||
           t->device->event_synchronize(t->device, t->ahead[i % LOOM_MICRO_BATCHES_AHEAD], error);
}

/* Runs this rank's micro-batches, which are consecutive ones of the step, up to the update; or fewer, if the run is to end.
 * Every rank puts the same operations into the communicator, in the same order: after a failure the others wait for this
 * one's, and its process is to end. */
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

/* The ranks meet before the update, as what it leaves to the communicator (weights on their way) is to be done beside the
 * next step. A run that ends from here on does the step to its end, if all ranks had data for it. */
static bool exchange_status_and_update(loom_trainer *t, bool *gives_up, loom_error *error) {
    if (t->comm->size > 1 && !exchange_status(t, error)) return false;
    *gives_up = t->no_data;
    if (*gives_up) return true;
    loom_parallel_reduce(&t->parallel);
    if (!run(t, LOOM_SQUARES, true, error)) return false;
    loom_optimizer_share_sums(&t->optimizer);
    return run(t, LOOM_UPDATE, loom_parallel_updates_quietly(&t->parallel), error);
}

/* A step that was given up: the batch is the next one again, and what is on its way between ranks is awaited. Gradients and
 * losses are written afresh by the first micro-batch; nothing else was touched. */
static bool give_up(loom_trainer *t, loom_step_report *report, loom_error *error) {
    loom_feeder_give_back(&t->feeder);
    loom_parallel_reduce(&t->parallel);
    t->comm->step = t->state.step;
    *report = (loom_step_report){.step = t->state.step, .tokens = t->state.tokens, .stop = true, .interrupted = true};
    return loom_parallel_ok(&t->parallel, error) && loom_comm_synchronize(t->comm, NULL, error);
}

/* The step's batch. A rank among several that has none goes on without targets until they meet: it could not leave the
 * others waiting. */
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
