#include "engine/trainer.h"

#include "base/check.h"
#include "base/clock.h"
#include "data/windows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* -------------------------------------------------------------------------------------------------------- validation */

/* What validation needs beside the model. Of the split's windows some are taken, evenly spaced; their losses are summed
 * in their order, however many ranks share them. */
typedef struct validation {
    int64_t all, taken;
    int32_t *inputs, *targets;
    void *losses;
    double *mine, *each; /* a round's windows, and whether the run is to end: of this rank, and of all */
    double sum;
    int64_t rows;
} validation;

/* As many windows as hold so many tokens. */
static int64_t windows_of(const loom_trainer *t, int64_t tokens) {
    const int64_t T = t->options.seq_len, all = loom_split_windows(&t->validation, T);
    const int64_t wanted = tokens / T + (tokens % T > 0);
    return tokens > 0 && wanted < all ? wanted : all;
}

/* Where window i of those that are taken lies in the split. */
static int64_t place_of(const validation *v, int64_t i) {
    return v->all / v->taken * i + v->all % v->taken * i / v->taken; /* i * all / taken, which could overflow */
}

int64_t loom_trainer_validation_tokens(const loom_trainer *t, int64_t tokens) {
    const validation v = {.all = loom_split_windows(&t->validation, t->options.seq_len),
                          .taken = windows_of(t, tokens)};
    return (v.taken - 1) * t->options.seq_len +
           loom_window_pairs(&t->validation, t->options.seq_len, place_of(&v, v.taken - 1));
}

/* A micro-batch of them; places that are left over have no targets. */
static bool fill_validation_batch(const loom_trainer *t, const validation *v, int64_t first, loom_error *error) {
    const int64_t B = t->options.micro_batch, T = t->options.seq_len;
    for (int64_t b = 0; b < B; b++) {
        int32_t *in = v->inputs + b * T, *out = v->targets + b * T;
        if (first + b < v->taken) {
            if (!loom_split_window(&t->validation, T, 0, place_of(v, first + b), in, out, error)) return false;
            continue;
        }
        memset(in, 0, (size_t)T * sizeof *in);
        for (int64_t i = 0; i < T; i++) out[i] = -1;
    }
    return true;
}

/* Sums the losses of each window of the micro-batch that has just run. */
static bool sum_windows(loom_trainer *t, void *losses, double *window, loom_error *error) {
    const int64_t B = t->options.micro_batch, T = t->options.seq_len;
    const bool wide = t->device->statistics == LOOM_F64;
    /* A copy to memory that is not pinned lets the host wait for the stream, and so, without a limit, for other ranks.
     * */
    if (!loom_parallel_ok(&t->parallel, error) || !loom_comm_synchronize(t->comm, NULL, error)) return false;
    t->device->copy(t->device, NULL, losses, loom_gpt_get_losses(t->gpt),
                    (size_t)(B * T) * loom_dtype_size(t->device->statistics), LOOM_DEVICE_TO_HOST);
    if (!t->device->synchronize(t->device, NULL, error)) return false;
    for (int64_t b = 0; b < B; b++) {
        window[b] = 0;
        for (int64_t i = b * T; i < (b + 1) * T; i++)
            window[b] += wide ? ((const double *)losses)[i] : (double)((const float *)losses)[i];
    }
    return true;
}

static bool validation_open(validation *v, const loom_trainer *t, int64_t tokens, loom_error *error) {
    const int64_t B = t->options.micro_batch, T = t->options.seq_len;
    *v = (validation){.all = loom_split_windows(&t->validation, T), .taken = windows_of(t, tokens)};
    v->inputs = malloc(2 * (size_t)(B * T) * sizeof *v->inputs);
    v->targets = v->inputs ? v->inputs + B * T : NULL;
    v->losses = malloc((size_t)(B * T) * sizeof(double));
    v->mine = malloc((size_t)(B + 1) * (size_t)(t->comm->size + 1) * sizeof *v->mine);
    v->each = v->mine ? v->mine + B + 1 : NULL;
    return (v->inputs && v->losses && v->mine) || loom_fail(error, "no memory to validate");
}

static void validation_close(validation *v) {
    free(v->inputs);
    free(v->losses);
    free(v->mine);
}

/* What a rank says that cannot read its data, in place of whether the run is to end. */
enum { NO_DATA = 2 };

/* A rank without data stays with the others: no targets. */
static void clear_validation_batch(const loom_trainer *t, const validation *v) {
    for (int64_t i = 0; i < t->options.micro_batch * t->options.seq_len; i++) {
        v->inputs[i] = 0;
        v->targets[i] = -1;
    }
}

/* One micro-batch on each rank, from window `first` of those that are taken. */
static bool validate_round(loom_trainer *t, validation *v, int64_t first, loom_error *error) {
    const int64_t B = t->options.micro_batch;
    loom_error why;
    const bool has_data = fill_validation_batch(t, v, first + t->comm->rank * B, &why);
    if (!has_data) t->no_data = true;
    if (!has_data && t->comm->size == 1) return loom_fail(error, "%s", why.message);
    if (!has_data) clear_validation_batch(t, v);
    loom_gpt_set_batch(t->gpt, v->inputs, v->targets, LOOM_HOST_TO_DEVICE);
    loom_gpt_evaluate(t->gpt);
    if (!sum_windows(t, v->losses, v->mine, error)) return false;
    v->mine[B] = has_data ? loom_trainer_should_stop(t) : NO_DATA;
    if (!loom_comm_host_gather(t->comm, v->each, v->mine, (size_t)(B + 1) * sizeof *v->mine, error)) return false;
    for (int r = 0; r < t->comm->size; r++) {
        const double *theirs = v->each + r * (B + 1);
        t->stops = t->stops || theirs[B] != 0;
        t->no_data = t->no_data || theirs[B] == NO_DATA;
        for (int64_t b = 0; b < B && first + r * B + b < v->taken; b++) {
            v->sum += theirs[b];
            v->rows += loom_window_pairs(&t->validation, t->options.seq_len, place_of(v, first + r * B + b));
        }
    }
    return !t->no_data || loom_comm_all(t->comm, has_data, &why) || loom_fail(error, "%s", why.message);
}

bool loom_trainer_validate(loom_trainer *t, int64_t tokens, loom_validation *result, loom_error *error) {
    LOOM_CHECK(t->has_validation);
    const int64_t windows = t->options.micro_batch * t->comm->size; /* of a round */
    const double begin = loom_seconds_now();
    const loom_train_observer *o = t->observer;
    validation v;
    bool ok = validation_open(&v, t, tokens, error), interrupted = false;
    for (int64_t first = 0; ok && !interrupted && first < v.taken; first += windows) {
        if (o && o->validating) o->validating(o->user, t->state.step, (double)first / (double)v.taken);
        ok = validate_round(t, &v, first, error);
        interrupted = t->stops && first + windows < v.taken;
    }
    if (ok)
        *result = (loom_validation){.loss = interrupted ? NAN : v.sum / (double)v.rows,
                                    .tokens = v.rows,
                                    .seconds = loom_seconds_now() - begin,
                                    .interrupted = interrupted};
    validation_close(&v);
    return ok;
}

/* ----------------------------------------------------------------------------------------------------------- samples */

/* Of several ranks each samples the same, and all end at the same token: one that ended earlier would leave the others
 * waiting for weights. They ask each other rarely, as a token of a small model takes no longer than that. */
enum { TOKENS_BETWEEN_ASKING = 8 };

typedef struct listener {
    loom_trainer *trainer;
    bool (*emit)(void *user, int32_t token);
    void *user;
    int64_t tokens;
    bool had_enough; /* `emit`: of several ranks the others may not have */
    bool ok;
    loom_error *error;
} listener;

static bool pass_on_token(void *user, int32_t token) {
    listener *l = user;
    loom_trainer *t = l->trainer;
    const bool alone = t->comm->size == 1;
    l->had_enough = l->had_enough || !l->emit(l->user, token);
    if (alone) return !l->had_enough && !loom_trainer_should_stop(t);
    if (++l->tokens % TOKENS_BETWEEN_ASKING > 0) return true;
    int64_t asked = loom_trainer_should_stop(t);
    l->ok = loom_comm_host_sum(t->comm, &asked, 1, l->error);
    t->stops = l->ok && asked > 0;
    return l->ok && !t->stops;
}

bool loom_trainer_sample(loom_trainer *t, int64_t n, bool (*emit)(void *user, int32_t token), void *user,
                         bool *interrupted, loom_error *error) {
    const loom_sampling sampling = {
        .temperature = 0.8f, .top_k = 200, .top_p = 1, .seed = t->options.seed + (uint64_t)t->state.step};
    const int32_t prompt = loom_dataset_is_bytes(t->data) ? '\n' : (int32_t)t->options.vocab_size - 1;
    listener l = {.trainer = t, .emit = emit, .user = user, .ok = true, .error = error};
    const bool ok = loom_gpt_generate(t->gpt, &prompt, 1, n, &sampling, pass_on_token, &l, error) && l.ok;
    if (interrupted) *interrupted = t->stops && !l.had_enough;
    return ok;
}
