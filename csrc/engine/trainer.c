#include "engine/options.h"
#include "engine/owed.h"
#include "engine/trainer.h"

#include "base/check.h"
#include "base/file.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* --------------------------------------------------------------------------------------------------------------------- data */

bool loom_train_open_data(const loom_train_options *o, bool validation, loom_dataset **data, loom_error *error) {
    const loom_dataset_options how = {.any_bytes = o->any_bytes, .out = o->out};
    char *const *paths = validation ? o->val_data : o->data;
    return loom_dataset_open_with(data, (const char *const *)paths, validation ? o->n_val_data : o->n_data, &how,
                                  error);
}

/* The vocabulary, where nobody said: bytes have 257 ids, llm.c's shards are GPT-2's. */
static bool settle_vocabulary(loom_trainer *t, loom_error *error) {
    loom_train_options *o = &t->options;
    const bool bytes = loom_dataset_is_bytes(t->data);
    if (!o->vocab_size) o->vocab_size = bytes ? LOOM_BYTE_VOCABULARY : LOOM_GPT2_VOCABULARY;
    if (bytes && o->vocab_size < LOOM_BYTE_VOCABULARY)
        return loom_fail(error, "--vocab-size: text is read as bytes and needs %d ids; %" PRId64 " are too few",
                         LOOM_BYTE_VOCABULARY, o->vocab_size);
    return true;
}

/* Ids mean nothing to a model that was trained on those of another vocabulary. */
static bool check_vocabulary(const loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    const bool bytes = loom_dataset_is_bytes(t->data);
    const char *flag = t->options.resume ? "--resume" : "--init", *path = loom_dataset_first_path(t->data);
    if (bytes && !from->bytes && from->config.vocab_size != LOOM_BYTE_VOCABULARY)
        return loom_fail(error,
                         "%s: the model %s has a vocabulary of %" PRId64
                         " tokens that are not bytes, and %s is text, which is read as bytes: give token shards (.bin) "
                         "that its tokenizer has made",
                         flag, from->directory, from->config.vocab_size, path);
    if (!bytes && from->bytes)
        return loom_fail(
            error, "%s: the model %s is one of bytes, and %s holds the token ids of another vocabulary: give text",
            flag, from->directory, path);
    return true;
}

static bool open_data(loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    loom_train_options *o = &t->options;
    if (o->n_data == 0) return loom_fail(error, "--data: name the text or token files to train on");
    const char *missing = o->resume ? loom_train_options_missing_data(o) : NULL;
    if (missing)
        return loom_fail(error,
                         "--data: %s, which the run %s was trained on, is not there (nor here); name where it is now",
                         missing, o->out);
    if (!loom_train_open_data(o, false, &t->data, error)) return false;
    if (o->n_val_data && !loom_train_open_data(o, true, &t->val_data, error)) return false;
    if (t->val_data && loom_dataset_is_bytes(t->val_data) != loom_dataset_is_bytes(t->data))
        return loom_fail(error, "--val-data: %s is %s, unlike --data", loom_dataset_first_path(t->val_data),
                         loom_dataset_is_bytes(t->val_data) ? "text" : "a token shard");
    return (!from || check_vocabulary(t, from, error)) && settle_vocabulary(t, error);
}

/* Data that are too short to hold out what nobody asked for are all for training. */
static void hold_out(loom_trainer *t) {
    loom_train_options *o = &t->options;
    if (t->given.val_fraction >= 0 ||
        loom_split_by_fraction(t->data, o->vocab_size, o->val_fraction, o->seq_len, &t->training, &t->validation, NULL))
        return;
    loom_trainer_add_note(t,
                          "the data are too short to hold out %g%% of them: there is no validation; --val-data or "
                          "--val-fraction asks for it",
                          100 * o->val_fraction);
    o->val_fraction = 0;
}

static bool split_data(loom_trainer *t, loom_error *error) {
    loom_train_options *o = &t->options;
    if (!loom_dataset_check_ids(t->data, o->vocab_size, error)) return false;
    if (!t->val_data) {
        hold_out(t);
        t->has_validation = o->val_fraction > 0;
        return loom_split_by_fraction(t->data, o->vocab_size, o->val_fraction, o->seq_len, &t->training, &t->validation,
                                      error);
    }
    loom_split nothing;
    t->has_validation = true;
    return loom_dataset_check_ids(t->val_data, o->vocab_size, error) &&
           loom_split_by_fraction(t->data, o->vocab_size, 0, o->seq_len, &t->training, &nothing, error) &&
           loom_split_by_fraction(t->val_data, o->vocab_size, 0, o->seq_len, &t->validation, &nothing, error);
}

/* The steps of `batch` windows that so many epochs come to, the last one begun; -1 where they are too many. 0.07 is
 * meant as 7/100, which no double is: the shortest decimal that reads as this double is counted with, in whole numbers.
 * */
static int64_t steps_of_epochs(double epochs, int64_t windows, int64_t batch) {
    enum { MOST_DIGITS = 17 };
    const double steps = epochs * (double)windows / (double)batch;
    if (!(steps < 1e12)) return -1;
    char text[40];
    for (int digits = 0; digits < MOST_DIGITS; digits++) {
        snprintf(text, sizeof text, "%.*e", digits, epochs);
        if (strtod(text, NULL) == epochs) break;
    }
    int64_t decimal = 0;
    int places = -(int)strtol(strchr(text, 'e') + 1, NULL, 10) - 1; /* of `decimal` behind the point */
    for (const char *c = text; *c != 'e'; c++) {
        if (!isdigit((unsigned char)*c)) continue; /* the point, as the locale has it */
        decimal = 10 * decimal + (*c - '0');
        places++;
    }
    /* At most 10^17 * 2^42 above and 10^22 * 2^20 below, as epochs and a batch have limits. */
    __extension__ unsigned __int128 whole = (unsigned __int128)(uint64_t)decimal * (uint64_t)windows;
    __extension__ unsigned __int128 divisor = (uint64_t)batch;
    for (; places > 0; places--) divisor *= 10;
    for (; places < 0; places++) whole *= 10;
    const int64_t exact = (int64_t)((whole + divisor - 1) / divisor);
    return exact < 1 ? 1 : exact;
}

/* --steps, or the steps that --epochs come to. */
static bool settle_steps(loom_trainer *t, loom_error *error) {
    loom_train_options *o = &t->options;
    if (!o->steps) {
        o->steps = steps_of_epochs(o->epochs > 0 ? o->epochs : 1, loom_split_windows(&t->training, o->seq_len),
                                   o->batch);
        if (o->steps < 0) return loom_fail(error, "--epochs: %g epochs are too many steps", o->epochs);
    }
    if (o->warmup < 0 || (t->given.warmup < 0 && o->warmup >= o->steps))
        o->warmup = loom_train_default_warmup(o->steps);
    if (o->warmup >= o->steps && o->warmup > 0)
        return loom_fail(error, "--warmup: %" PRId64 " steps of warm-up do not fit into %" PRId64 " steps; give fewer",
                         o->warmup, o->steps);
    t->schedule = (loom_schedule){
        .kind = o->schedule, .lr = (float)o->lr, .min_lr = (float)o->min_lr, .warmup = o->warmup, .steps = o->steps};
    return true;
}

/* ------------------------------------------------------------------------------------------------------------------- memory */

/* The other ranks' devices take the tuning cache of rank 0's. */
static bool send_tuning(loom_trainer *t, loom_error *error) {
    char *text = NULL;
    int64_t length = 0;
    loom_error why;
    if (t->comm->rank == 0) {
        if (!t->device->tuning_get(t->device, &text, error)) return false;
        length = text ? (int64_t)strlen(text) + 1 : 0;
    }
    bool ok = loom_comm_host_broadcast(t->comm, &length, sizeof length, 0, error);
    if (ok && !text && length > 0 && !(text = malloc((size_t)length)))
        ok = loom_fail(error, "no memory for %lld bytes", (long long)length);
    ok = ok && (length == 0 || loom_comm_host_broadcast(t->comm, text, (size_t)length, 0, error));
    if (ok && length > 0 && t->comm->rank > 0 && !t->device->tuning_set(t->device, text, &why))
        ok = loom_fail(error, "--ranks: all need the same hardware and libraries, and rank %d has not: %s",
                       t->comm->rank, why.message);
    free(text);
    return ok;
}

/* Rank 0's device is autotuned; then the others make the same plans. */
static bool make_plans(loom_trainer *t, loom_error *error) {
    if (t->comm->rank == 0 && !loom_gpt_make_plans(t->gpt, error)) return false;
    return (t->comm->size == 1 || send_tuning(t, error)) && loom_gpt_make_plans(t->gpt, error);
}

static bool allocate(loom_trainer *t, loom_error *error) {
    const loom_train_options *o = &t->options;
    const loom_gpt_config shape = loom_trainer_shape(t);
    t->memory_bytes = t->plan.arena.used;
    const loom_gpt_setup setup = loom_trainer_setup(t, o->micro_batch);
    const int64_t own = o->batch / t->comm->size;
    if (!loom_gpt_create(&t->gpt, &shape, &setup, t->device, error) || !make_plans(t, error) ||
        !t->device->allocate(t->device, &t->memory, t->memory_bytes, error))
        return false;
    loom_arena arena = loom_arena_over(t->memory, t->memory_bytes, t->device->host_memory);
    loom_gpt_lay_out(t->gpt, &arena);
    loom_optimizer_lay_out(&t->optimizer, t->gpt, o->batch, &arena);
    t->optimizer.seed = o->seed;
    loom_parallel_lay_out(&t->parallel, t->gpt, own / o->micro_batch, &arena);
    loom_feeder_lay_out(&t->feeder, own, o->seq_len, &arena);
    LOOM_CHECK(arena.used == t->plan.arena.used);
    void *scalars;
    if (!t->device->allocate_host(t->device, &scalars, sizeof *t->host_scalars, error)) return false;
    t->host_scalars = scalars;
    for (int i = 0; i < LOOM_MICRO_BATCHES_AHEAD; i++)
        if (!t->device->event_open(t->device, &t->ahead[i], error)) return false;
    return loom_gpt_prepare(t->gpt, error) && loom_optimizer_prepare(&t->optimizer, error) &&
           loom_parallel_open(&t->parallel, t->comm, &t->optimizer, error);
}

/* ---------------------------------------------------------------------------------------------------------- opening, closing */

static bool open_device(loom_trainer *t, loom_error *error) {
    const loom_train_options *o = &t->options;
    const loom_device_options options = {.local_rank = t->comm->local_rank,
                                         .local_size = t->comm->local_size,
                                         .threads = (int)o->threads,
                                         .library_threads = !o->deterministic,
                                         .tf32 = o->tf32,
                                         .cudnn_attention = o->attention == LOOM_ATTENTION_CUDNN};
    if (!loom_device_open(&t->device, o->device ? o->device : "auto", &options, error)) return false;
    if (strncmp(t->device->name, "cuda", 4) != 0 && (options.tf32 || options.cudnn_attention))
        return loom_fail(error, "--%s: is for --device cuda; this run is on %s", options.tf32 ? "tf32" : "attention",
                         t->device->name);
    const loom_precision_flags flags = loom_train_options_precision(o);
    return loom_precision_of(t->device, &flags, &t->precision, error) && loom_comm_attach(t->comm, t->device, 0, error);
}

/* The program, as the system has it. */
static bool hash_program(XXH128_hash_t *hash, loom_error *error) {
    loom_mapping file;
    if (!loom_file_map("/proc/self/exe", &file, error)) return false;
    *hash = XXH3_128bits(file.data, file.size);
    loom_file_unmap(&file);
    return true;
}

/* Ranks that were started with different programs, options, data or checkpoints would train nonsense. Of data and of
 * weights that others have written, lengths and both ends are compared. */
static bool check_agreement(loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    char *text = NULL;
    size_t size = 0;
    XXH128_hash_t program;
    if (t->comm->size == 1) return true;
    if (!loom_train_options_text(&t->options, &text, &size, error)) return false;
    const XXH128_hash_t options = XXH3_128bits(text, size);
    free(text);
    const uint64_t data[2] = {loom_dataset_identity(t->data), t->val_data ? loom_dataset_identity(t->val_data) : 0};
    const int64_t step[2] = {from ? from->state.step : -1, t->options.stop_after};
    const uint64_t weights = from ? from->identity : 0;
    char device[64] = ""; /* as long on all ranks */
    snprintf(device, sizeof device, "%s", t->device->name);
    return hash_program(&program, error) && loom_comm_agree(t->comm, "the program", &program, sizeof program, error) &&
           loom_comm_agree(t->comm, "--data", data, sizeof data, error) &&
           loom_comm_agree(t->comm, "the configuration", &options, sizeof options, error) &&
           loom_comm_agree(t->comm, "the device", device, sizeof device, error) &&
           loom_comm_agree(t->comm, "the step to begin or stop at", step, sizeof step, error) &&
           loom_comm_agree(t->comm, "the checkpoint", &weights, sizeof weights, error);
}

static bool take_comm(loom_trainer *t, loom_comm *comm, loom_error *error) {
    t->comm = comm;
    if (!comm && !loom_comm_open(&t->comm, &(loom_comm_options){.backend = "self"}, error)) return false;
    if (t->options.ranks > 0 && t->options.ranks != t->comm->size)
        return loom_fail(error, "--ranks: %" PRId64 " are asked for, and %d %s started", t->options.ranks,
                         t->comm->size, t->comm->size == 1 ? "was" : "were");
    t->options.ranks = t->comm->size;
    t->comm->long_timeout = true; /* with one that measures, while all start */
    return true;
}

/* Whether a run that goes on has all its steps, with what belongs to them. Its data, which may be gone by then, need
 * not be open: what follows from them is as it was before, and is set so here; a run that does go on sets it once more.
 * */
static bool is_done(loom_trainer *t, const loom_checkpoint_info *from) {
    loom_train_options *o = &t->options;
    const bool all_for_training = t->has_before && t->given.val_fraction < 0 && t->before.val_fraction == 0;
    if (!o->steps && t->has_before && o->epochs == t->before.epochs) o->steps = t->before.steps;
    t->has_validation = o->n_val_data > 0 || (o->val_fraction > 0 && !all_for_training);
    t->state.step = from->state.step;
    return t->state.step == o->steps && loom_run_owes_nothing(t);
}

/* With *done all is said: nothing more is open. */
static bool open_everything(loom_trainer *t, loom_checkpoint_info *info, loom_comm *comm,
                            const loom_train_observer *observer, bool *done, loom_error *error) {
    loom_checkpoint_info *from;
    if (!take_comm(t, comm, error)) return false;
    if (!loom_trainer_find_checkpoint(t, info, &from, error)) return false;
    /* A warm-up that nobody chose does not begin again because there are more steps. */
    if (t->has_before && t->options.warmup < 0) t->options.warmup = t->before.warmup;
    if (!loom_train_options_resolve(&t->options, error) ||
        !loom_recompute_parse(t->options.recompute, &t->recompute, error))
        return false;
    const bool goes_on = t->options.resume && from;
    if (goes_on && !loom_trainer_check_resumable(t, from, error)) return false;
    *done = goes_on && is_done(t, from);
    if (*done) return true;
    if (!open_data(t, from, error) || !loom_trainer_check_data(t, error) || !split_data(t, error) ||
        !settle_steps(t, error) || (goes_on && !loom_trainer_check_same_data(t, from, error)))
        return false;
    if (!open_device(t, error) || !check_agreement(t, from, error) || !loom_trainer_restore_tuning(t, from, error))
        return false;
    if (!loom_trainer_plan_memory(t, observer, error) || !allocate(t, error) || !loom_trainer_start(t, from, error))
        return false;
    const loom_loader_options order = {.T = t->options.seq_len,
                                       .batch = t->options.batch,
                                       .micro_batch = t->options.micro_batch,
                                       .seed = t->options.seed,
                                       .first_step = t->state.step,
                                       .rank = t->comm->rank,
                                       .ranks = t->comm->size};
    loom_loader *loader;
    return loom_loader_open(&loader, &t->training, &order, error) &&
           loom_feeder_open(&t->feeder, t->device, loader, error);
}

bool loom_trainer_open_unless_done(loom_trainer **out, const loom_train_options *options, loom_comm *comm,
                                   const loom_train_observer *observer, bool *done, int64_t *step, loom_error *error) {
    loom_trainer *t = calloc(1, sizeof *t);
    loom_checkpoint_info *info = calloc(1, sizeof *info);
    bool ok = t && info;
    *done = false;
    if (!ok) loom_fail(error, "no memory for a trainer");
    if (ok) {
        t->options = t->given = *options;
        t->observer = observer;
        ok = open_everything(t, info, comm, observer, done, error);
    }
    free(info);
    if (ok && *done) *step = t->state.step;
    if (!ok || *done) {
        if (ok || !comm || comm->size == 1) loom_trainer_close(t);
        return ok;
    }
    t->comm->long_timeout = false;
    *out = t;
    return true;
}

bool loom_trainer_open(loom_trainer **out, const loom_train_options *options, loom_comm *comm,
                       const loom_train_observer *observer, loom_error *error) {
    bool done;
    int64_t step;
    if (!loom_trainer_open_unless_done(out, options, comm, observer, &done, &step, error)) return false;
    return !done || loom_fail(error, "--steps: the run %s has done all of its %" PRId64 " steps; ask for more",
                              options->out, step);
}

void loom_trainer_close(loom_trainer *t) {
    if (!t) return;
    loom_feeder_close(&t->feeder);
    for (int i = 0; i < LOOM_PIECES; i++)
        if (t->graph[i]) t->device->graph_close(t->device, t->graph[i]);
    for (int i = 0; i < LOOM_MICRO_BATCHES_AHEAD; i++)
        if (t->ahead[i]) t->device->event_close(t->device, t->ahead[i]);
    if (t->host_scalars) t->device->release_host(t->device, t->host_scalars, sizeof *t->host_scalars);
    loom_parallel_close(&t->parallel);
    loom_comm_close(t->comm);
    loom_gpt_destroy(t->gpt);
    if (t->memory) t->device->release(t->device, t->memory, t->memory_bytes);
    loom_device_close(t->device);
    loom_dataset_close(t->val_data);
    loom_dataset_close(t->data);
    if (t->has_before) loom_train_options_free(&t->before);
    free(t);
}

/* --------------------------------------------------------------------------------------------------------------- accessors */

int64_t loom_trainer_steps_done(const loom_trainer *t) {
    return t->state.step;
}

const char *loom_trainer_note(const loom_trainer *t) {
    return t->note;
}

float loom_trainer_loss_scale(const loom_trainer *t) {
    return t->state.scalars.loss_scale;
}

int64_t loom_trainer_steps_planned(const loom_trainer *t) {
    return t->options.steps;
}

bool loom_trainer_has_validation(const loom_trainer *t) {
    return t->has_validation;
}

const loom_train_options *loom_trainer_options(const loom_trainer *t) {
    return &t->options;
}

const loom_plan *loom_trainer_plan(const loom_trainer *t) {
    return &t->plan;
}

double loom_trainer_predicted_seconds(const loom_trainer *t) {
    return t->prediction.seconds;
}

loom_gpt *loom_trainer_gpt(loom_trainer *t) {
    return t->gpt;
}

const loom_comm *loom_trainer_comm(const loom_trainer *t) {
    return t->comm;
}

const loom_dataset *loom_trainer_data(const loom_trainer *t) {
    return t->data;
}
