#include "trainer.h"

#include "base/check.h"
#include "data/windows.h"

#include <stdlib.h>
#include <string.h>

/* -------------------------------------------------------------------------------------------------------- validation */

/* The windows of the validation split in order; places of the last micro-batch that are left over have no targets. */
static bool fill_validation_batch(const loom_trainer *t, int64_t first, int64_t windows, int32_t *inputs,
                                  int32_t *targets, loom_error *error) {
    const int64_t B = t->options.micro_batch, T = t->options.seq_len;
    for (int64_t b = 0; b < B; b++) {
        int32_t *in = inputs + b * T, *out = targets + b * T;
        if (first + b < windows) {
            if (!loom_split_window(&t->validation, T, 0, first + b, in, out, error)) return false;
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
    /* A copy to memory that is not pinned lets the host wait for the stream, and so, without a limit, for other ranks. */
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

/* What validation needs beside the model. Windows' losses are summed in their order, however many ranks share them. */
typedef struct validation {
    int64_t windows, batches; /* in all; micro-batches of them to run */
    int32_t *inputs, *targets;
    void *losses;
    double *mine, *all; /* a round's windows, of this rank and of all */
    double sum;
    int64_t rows;
} validation;

static bool validation_open(validation *v, const loom_trainer *t, int64_t batches, loom_error *error) {
    const int64_t B = t->options.micro_batch, T = t->options.seq_len;
    *v = (validation){.windows = loom_split_windows(&t->validation, T)};
    const int64_t needed = (v->windows + B - 1) / B;
    v->batches = batches > 0 && batches < needed ? batches : needed;
    v->inputs = malloc(2 * (size_t)(B * T) * sizeof *v->inputs);
    v->targets = v->inputs ? v->inputs + B * T : NULL;
    v->losses = malloc((size_t)(B * T) * sizeof(double));
    v->mine = malloc((size_t)B * (size_t)(t->comm->size + 1) * sizeof *v->mine);
    v->all = v->mine ? v->mine + B : NULL;
    return (v->inputs && v->losses && v->mine) || loom_fail(error, "no memory to validate");
}

static void validation_close(validation *v) {
    free(v->inputs);
    free(v->losses);
    free(v->mine);
}

/* One micro-batch on each rank, from micro-batch `first` of the split on; what is beyond the last has no targets. */
static bool validate_round(loom_trainer *t, validation *v, int64_t first, loom_error *error) {
    const int64_t B = t->options.micro_batch, mine = first + t->comm->rank;
    const int64_t windows = v->batches * B < v->windows ? v->batches * B : v->windows;
    if (!fill_validation_batch(t, mine * B, windows, v->inputs, v->targets, error)) return false;
    loom_gpt_set_batch(t->gpt, v->inputs, v->targets, LOOM_HOST_TO_DEVICE);
    loom_gpt_forward_alone(t->gpt);
    loom_gpt_loss(t->gpt, false, false);
    if (!sum_windows(t, v->losses, v->mine, error) ||
        !loom_comm_host_gather(t->comm, v->all, v->mine, (size_t)B * sizeof *v->mine, error))
        return false;
    for (int64_t i = 0; i < B * t->comm->size && first * B + i < windows; i++) {
        v->sum += v->all[i];
        v->rows += loom_window_pairs(&t->validation, t->options.seq_len, first * B + i);
    }
    return true;
}

bool loom_trainer_validate(loom_trainer *t, int64_t batches, double *loss, loom_error *error) {
    LOOM_CHECK(t->has_validation);
    validation v;
    bool ok = validation_open(&v, t, batches, error);
    for (int64_t i = 0; ok && i < v.batches; i += t->comm->size) ok = validate_round(t, &v, i, error);
    if (ok) *loss = v.sum / (double)v.rows;
    validation_close(&v);
    return ok;
}

/* ----------------------------------------------------------------------------------------------------------- samples */

/* Of several ranks each samples the same; one that ended earlier than the others would leave them waiting for weights. */
typedef struct listener {
    bool (*emit)(void *user, int32_t token);
    void *user;
    bool goes_on; /* when `emit` has had enough */
    bool had_enough;
} listener;

static bool pass_on_token(void *user, int32_t token) {
    listener *l = user;
    l->had_enough = l->had_enough || !l->emit(l->user, token);
    return l->goes_on || !l->had_enough;
}

bool loom_trainer_sample(loom_trainer *t, int64_t n, bool (*emit)(void *user, int32_t token), void *user,
                         loom_error *error) {
    const loom_sampling sampling = {
        .temperature = 0.8f, .top_k = 200, .top_p = 1, .seed = t->options.seed + (uint64_t)t->state.step};
    const int32_t prompt = loom_dataset_is_bytes(t->data) ? '\n' : (int32_t)t->options.vocab_size - 1;
    listener l = {.emit = emit, .user = user, .goes_on = t->comm->size > 1};
    return loom_gpt_generate(t->gpt, &prompt, 1, n, &sampling, pass_on_token, &l, error);
}
