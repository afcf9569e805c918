#include "engine/options.h"
#include "engine/run_directory.h"
#include "engine/trainer.h"

#include "base/check.h"
#include "base/file.h"
#include "ops/finite.h"
#include "base/printable.h"
#include "checkpoint/directory.h"
#include "checkpoint/documents.h"
#include "model/architectures.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------------ which one, and whether it fits */

/* A resumed or initialised run has the checkpoint's shape; what was said about it otherwise must agree. */
static bool take_shape(loom_train_options *o, const loom_checkpoint_info *from, loom_error *error) {
    loom_gpt_named named;
    if (o->model) {
        if (!loom_gpt_config_by_name(o->model, &named, error)) return false;
        if (!o->n_layer) o->n_layer = named.config.n_layer;
        if (!o->n_head) o->n_head = named.config.n_head;
        if (!o->n_embd) o->n_embd = named.config.n_embd;
    }
    const struct {
        const char *flag;
        int64_t *said;
        int64_t is;
    } rows[] = {{"--n-layer", &o->n_layer, from->config.n_layer},
                {"--n-head", &o->n_head, from->config.n_head},
                {"--n-embd", &o->n_embd, from->config.n_embd},
                {"--block-size", &o->block_size, from->config.block_size},
                {"--vocab-size", &o->vocab_size, from->config.vocab_size}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (*rows[i].said && *rows[i].said != rows[i].is)
            return loom_fail(error, "%s: %" PRId64 " is asked for, but the checkpoint %s has %" PRId64, rows[i].flag,
                             *rows[i].said, from->directory, rows[i].is);
        *rows[i].said = rows[i].is;
    }
    if (o->activation >= 0 && o->activation != (int)from->config.activation)
        return loom_fail(error, "--activation: the checkpoint %s has another", from->directory);
    o->activation = (int)from->config.activation;
    if (o->architecture >= 0 && o->architecture != (int)from->config.architecture)
        return loom_fail(error, "--architecture: the checkpoint %s has another, %s", from->directory,
                         loom_gpt_names_of(from->config.architecture)->name);
    o->architecture = (int)from->config.architecture;
    return true;
}

/* ------------------------------------------------------------------------------------------------- a run that goes on */

static bool path_in(const char *run, const char *name, char path[PATH_MAX]) {
    return loom_join_path(path, PATH_MAX, run, name, NULL);
}

/* What the run was, as its config.ini says, to compare with. */
static bool read_before(loom_trainer *t, loom_error *error) {
    char config[PATH_MAX];
    if (!loom_join_path(config, sizeof config, t->options.out, "config.ini", error)) return false;
    if (!loom_path_exists(config)) return true;
    t->before = loom_train_options_defaults();
    t->has_before = true;
    return loom_train_options_read_all(&t->before, config, error);
}

/* A run that ended before its first checkpoint was whole is there, but begins anew. */
static bool has_no_checkpoint(const char *run) {
    char config[PATH_MAX], checkpoints[PATH_MAX], latest[PATH_MAX];
    if (!path_in(run, "config.ini", config) || !path_in(run, "checkpoints", checkpoints) ||
        !path_in(checkpoints, "latest", latest) || !loom_path_exists(config))
        return false;
    if (!loom_path_exists(checkpoints)) return true;
    return access(checkpoints, R_OK | X_OK) == 0 && !loom_path_exists(latest) && loom_checkpoint_newest(run) < 0;
}

/* Lets a run that has no checkpoint yet begin with the files that it has: its tuning cache, and what --init named.
 * Refused where there must have been a checkpoint: what was trained is not given up in silence. */
static bool begin_anew(loom_trainer *t, loom_error *error) {
    loom_train_options *o = &t->options;
    char checkpoints[PATH_MAX], mark[PATH_MAX];
    const int64_t last = loom_run_last_step(o->out), every = t->has_before ? t->before.checkpoint_every : 0;
    if (!loom_join_path(checkpoints, sizeof checkpoints, o->out, "checkpoints", error) ||
        !loom_join_path(mark, sizeof mark, o->out, "saved", error))
        return false;
    const bool gone = !loom_path_exists(checkpoints);
    const char *is = gone ? "is not there" : "holds no checkpoint";
    if (loom_path_exists(mark))
        return loom_fail(
            error, "--resume: %s %s, though the run has saved some; put them back, or begin anew in another --out",
            checkpoints, is);
    /* Runs of earlier versions have no mark. */
    if (last > 0 && (gone || (every > 0 && last > every)))
        return loom_fail(error,
                         "--resume: %s %s, though metrics.jsonl beside it has %" PRId64
                         " steps (--no-save leaves none); put back what was there, or begin anew in another --out",
                         checkpoints, is, last);
    if (last > 0)
        loom_trainer_add_note(t,
                              "the run was ended before its first checkpoint: it begins anew, and its %" PRId64
                              " steps are done again",
                              last);
    t->begins_anew = true;
    o->resume = false;
    if (t->has_before) o->init = t->before.init;
    return true;
}

/* What may not change because the order of the data depends on it. */
static bool check_order(const char *flag, int64_t is, int64_t was, const char *run, loom_error *error) {
    if (is == was) return true;
    return loom_fail(error,
                     "%s: %" PRId64 " is asked for, and the run %s has %" PRId64
                     "; a resumed run cannot change it, as the order of the data depends on it",
                     flag, is, run, was);
}

/* What is opened: a run's newest checkpoint, the one that --resume-from names, or --init. */
static bool find_path(const loom_train_options *o, char path[PATH_MAX], loom_error *error) {
    if (o->resume && o->resume_from > 0) return loom_checkpoint_of_step(o->out, o->resume_from, path, PATH_MAX, error);
    const char *place = o->resume ? o->out : o->init;
    return snprintf(path, PATH_MAX, "%s", place ? place : "") < PATH_MAX ||
           loom_fail(error, "%s: the name is too long", place);
}

/* Adds to what is wrong with a run's checkpoint how to go on from the one before it. */
static bool offer_older(const loom_train_options *o, const loom_checkpoint_info *info, loom_error *error) {
    if (!o->resume || info->older_step <= 0 || !error) return false;
    const loom_error why = *error;
    return loom_fail(error, "%s; 'gptloom train --resume --resume-from %" PRId64 " --out %s' goes on from there",
                     why.message, info->older_step, LOOM_SHELL_WORD(o->out));
}

bool loom_trainer_find_checkpoint(loom_trainer *t, loom_checkpoint_info *info, loom_checkpoint_info **found,
                                  loom_error *error) {
    loom_train_options *o = &t->options;
    char path[PATH_MAX];
    *found = NULL;
    if (o->resume && (!read_before(t, error) || (has_no_checkpoint(o->out) && !begin_anew(t, error)))) return false;
    if (!find_path(o, path, error)) return false;
    if (!*path) return true;
    if (!loom_checkpoint_open(path, info, error)) return offer_older(o, info, error);
    if (!take_shape(o, info, error)) return false;
    *found = info;
    if (!o->resume || !info->has_optimizer) return true;
    return check_order("--batch", o->batch, info->state.batch, o->out, error) &&
           (!o->seq_len || check_order("--seq-len", o->seq_len, info->state.seq_len, o->out, error));
}

static bool check_data(const loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    if (from->state.data_identity == loom_dataset_identity(t->data)) return true;
    const char *named = t->has_before && t->before.n_data > 0 ? t->before.data[0] : NULL;
    const bool others = named && t->before.n_data > 1;
    return loom_fail(error, "--data: %s%s is not what the run %s was trained on%s%s%s%s",
                     loom_dataset_first_path(t->data), loom_dataset_files(t->data) > 1 ? " with the others" : "",
                     t->options.out, named ? ", which was " : "", named ? named : "", others ? " and others" : "",
                     named && !strcmp(named, t->options.data[0]) ? ", and has changed since" : "");
}

bool loom_trainer_check_resumable(const loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    if (!from->has_optimizer)
        return loom_fail(error, "--resume: %s has weights only; --init starts a new run from them", from->directory);
    if (from->state.seed != t->options.seed)
        return loom_fail(
            error, "--seed: %" PRIu64 " is asked for, and the run %s has %" PRIu64 "; a resumed run cannot change it",
            t->options.seed, t->options.out, from->state.seed);
    return check_order("--seq-len", t->options.seq_len, from->state.seq_len, t->options.out, error);
}

bool loom_trainer_check_same_data(const loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    if (!check_data(t, from, error)) return false;
    if (t->training.tokens != from->state.training_tokens)
        return loom_fail(error,
                         "--val-fraction: leaves %" PRId64 " tokens for training, and the run %s has %" PRId64
                         "; a resumed run cannot change it, as the order of the data depends on it",
                         t->training.tokens, t->options.out, from->state.training_tokens);
    if (from->state.step > t->options.steps)
        return loom_fail(error,
                         "--steps: the run %s has done %" PRId64 " steps already, more than %" PRId64
                         "; ask for more, or go back by --resume-from",
                         t->options.out, from->state.step, t->options.steps);
    return true;
}

/* ------------------------------------------------------------------------------------------------ the state of a run */

/* --deterministic is for CPUs, --tf32 for fp32: elsewhere they change nothing. */
static loom_training_settings settings_of(const loom_trainer *t) {
    const loom_train_options *o = &t->options;
    loom_training_settings settings = {.micro_batch = o->micro_batch,
                                       .logits_rows = o->logits_rows,
                                       .ranks = t->comm->size,
                                       .zero = t->comm->size > 1 ? o->zero : 0,
                                       .deterministic_reduce = o->deterministic_reduce,
                                       .deterministic = o->deterministic || !t->device->host_memory,
                                       .master_weights = o->master_weights == LOOM_ON,
                                       .optimizer_dtype = o->optimizer_dtype,
                                       .grad_dtype = o->grad_dtype,
                                       .tf32 = o->tf32 && t->precision.storage == LOOM_F32,
                                       .cudnn_attention = o->attention == LOOM_ATTENTION_CUDNN};
    snprintf(settings.device, sizeof settings.device, "%s", t->device->name);
    if (t->device->arithmetic)
        t->device->arithmetic(t->device, t->precision.storage, settings.arithmetic, sizeof settings.arithmetic);
    return settings;
}

/* The options that say what course a run takes. A run that is lost is offered the first ones as they were. */
static const char *const course_options[] = {"lr",    "min-lr",    "schedule",  "weight-decay", "beta1",
                                             "beta2", "eps",       "clip",      "skip-spikes",  "warmup",
                                             "steps", "val-every", "val-tokens"};
enum { COURSE_OPTIONS = sizeof course_options / sizeof *course_options, COURSE_OFFERED = 9 };

static void write_course(const loom_train_options *options, char *course, size_t size) {
    int n;
    const loom_flag *table = loom_train_option_table(&n);
    char value[32];
    size_t used = 0;
    for (int i = 0; i < COURSE_OFFERED; i++) {
        const char *name = course_options[i];
        const bool fits = loom_flag_text(loom_flag_find(table, n, name), options, 0, value, sizeof value);
        LOOM_CHECK(fits);
        used += (size_t)snprintf(course + used, size - used, "%s--%s %s", used ? " " : "", name, value);
        LOOM_CHECK(used < size);
    }
}

static loom_training_state fresh_state(const loom_trainer *t) {
    return (loom_training_state){.seed = t->options.seed,
                                 .data_identity = loom_dataset_identity(t->data),
                                 .batch = t->options.batch,
                                 .seq_len = t->options.seq_len,
                                 .training_tokens = t->training.tokens,
                                 .dtype = t->precision.storage,
                                 .settings = settings_of(t),
                                 .scalars.loss_scale = loom_loss_scale_at_first(&t->precision)};
}

/* A resumed run's state. It may go on in another dtype, with a loss scale of its own. */
static loom_training_state resumed_state(const loom_trainer *t, const loom_checkpoint_info *from) {
    loom_training_state state = from->state;
    if (state.dtype != t->precision.storage || state.scalars.loss_scale == 0) {
        state.scalars.loss_scale = loom_loss_scale_at_first(&t->precision);
        state.scalars.loss_scale_age = 0;
    }
    state.dtype = t->precision.storage;
    state.settings = settings_of(t);
    return state;
}

/* Whether the device has autotuned anything. */
static bool has_tuning(const loom_device *device) {
    char *text = NULL;
    const bool has = device->tuning_get(device, &text, NULL) && text;
    free(text);
    return has;
}

/* The rate of the step after `step`. */
static float rate_after(const loom_train_options *o, int64_t step) {
    const loom_schedule schedule = {
        .kind = o->schedule, .lr = (float)o->lr, .min_lr = (float)o->min_lr, .warmup = o->warmup, .steps = o->steps};
    return loom_schedule_at(&schedule, step);
}

/* Of a run that goes on: whether an option is another than it was before, and as text what it was and is. */
static bool has_changed(const loom_trainer *t, const char *name, char before[64], char now[64]) {
    int n;
    const loom_flag *table = loom_train_option_table(&n), *flag = loom_flag_find(table, n, name);
    LOOM_CHECK(flag);
    return t->has_before && !loom_flag_is_unset(flag, &t->before) && loom_flag_text(flag, &t->before, 0, before, 64) &&
           loom_flag_text(flag, &t->options, 0, now, 64) && strcmp(before, now) != 0;
}

/* Says what of the run's course is not as it was, and where the rate jumps for that. */
static void note_course(loom_trainer *t) {
    char line[768] = "", before[64], now[64];
    size_t used = 0;
    for (int i = 0; i < COURSE_OPTIONS; i++)
        if (has_changed(t, course_options[i], before, now))
            used += (size_t)snprintf(line + used, sizeof line - used, "%s--%s %s -> %s", used ? ", " : "",
                                     course_options[i], before, now);
    LOOM_CHECK(used < sizeof line);
    if (used) loom_trainer_add_note(t, "%s", line);
    const float was = rate_after(&t->before, t->state.step), is = rate_after(&t->options, t->state.step);
    if (t->before.steps > 0 && fabsf(is - was) > 0.01f * was)
        loom_trainer_add_note(t, "the learning rate jumps from %.3g to %.3g, at step %" PRId64, (double)was, (double)is,
                              t->state.step + 1);
}

/* Names the flags whose change gives a resumed run other bits than it would have had. */
static void note_changes(loom_trainer *t, const loom_training_state *before) {
    const loom_training_settings *is = &t->state.settings, *was = &before->settings;
    const bool known = was->micro_batch > 0; /* older checkpoints do not have these settings */
    const struct {
        const char *flag;
        bool changed;
    } rows[] = {{"--dtype", t->state.dtype != before->dtype},
                {"--master-weights", known && is->master_weights != was->master_weights},
                {"--optimizer-dtype", known && is->optimizer_dtype != was->optimizer_dtype},
                {"--grad-dtype", known && is->grad_dtype != was->grad_dtype},
                {"--micro-batch", known && is->micro_batch != was->micro_batch},
                {"--logits-rows", known && is->micro_batch == was->micro_batch && was->logits_rows > 0 &&
                                      is->logits_rows != was->logits_rows},
                {"--tf32", known && is->tf32 != was->tf32},
                {"--attention", known && is->cudnn_attention != was->cudnn_attention},
                {"--deterministic", known && is->deterministic != was->deterministic},
                {"--deterministic-reduce", known && is->deterministic_reduce != was->deterministic_reduce},
                {"--ranks", known && !is->deterministic_reduce && is->ranks != was->ranks},
                {"--zero", known && !is->deterministic_reduce && is->zero != was->zero},
                {"--device", known && strcmp(is->device, was->device) != 0},
                {"--retune", t->options.retune && has_tuning(t->device)}};
    size_t used = 0;
    char flags[256];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].changed)
            used += (size_t)snprintf(flags + used, sizeof flags - used, "%s%s", used ? ", " : "", rows[i].flag);
    LOOM_CHECK(used < sizeof flags);
    if (used)
        loom_trainer_add_note(t, "%s: changed, so from here on the bits are not those of an uninterrupted run", flags);
    if (*was->arithmetic && !strcmp(is->device, was->device) && strcmp(is->arithmetic, was->arithmetic) != 0)
        loom_trainer_add_note(t,
                              "it goes on with %s, and was made with %s: from here on the bits are not those of an "
                              "uninterrupted run",
                              is->arithmetic, LOOM_PRINTABLE(was->arithmetic));
}

/* ------------------------------------------------------------------------------------------------ loading and saving */

/* What of each bucket this rank loads, which is what it updates; or saves (`once`): of what all ranks hold, a part. */
static bool cut_slices(loom_trainer *t, bool once, loom_checkpoint_slice **slices, loom_error *error) {
    const loom_layout *layout = loom_gpt_get_layout(t->gpt);
    const loom_dtype dtype = t->precision.master, moment = t->precision.moment;
    const bool cuts = once && loom_gpt_get_sharding(t->gpt)->zero == 0;
    *slices = calloc((size_t)layout->n_buckets, sizeof **slices);
    if (!*slices) return loom_fail(error, "no memory to describe a checkpoint");
    for (int b = 0; b < layout->n_buckets; b++) {
        const loom_shard *shard = loom_gpt_get_shard(t->gpt, b);
        const int64_t n = cuts ? shard->elements / t->comm->size : shard->elements,
                      skipped = cuts ? n * t->comm->rank : 0;
        const int64_t moments = loom_optimizer_moments_at(&t->optimizer, b) + skipped;
        (*slices)[b] = (loom_checkpoint_slice){.first = shard->first + skipped,
                                               .elements = n,
                                               .parameters = loom_element(shard->master, skipped, dtype),
                                               .moment1 = loom_element(t->optimizer.moment1, moments, moment),
                                               .moment2 = loom_element(t->optimizer.moment2, moments, moment)};
    }
    return true;
}

static loom_checkpoint_tensors tensors_of(loom_trainer *t, const loom_checkpoint_slice *slices, bool moments) {
    return (loom_checkpoint_tensors){.config = loom_gpt_get_config(t->gpt),
                                     .layout = loom_gpt_get_layout(t->gpt),
                                     .device = t->device,
                                     .slice = slices,
                                     .dtype = t->precision.master,
                                     .moments = moments,
                                     .ends = &t->ends,
                                     .moment_dtype = t->precision.moment};
}

/* Ranks that begin with weights of a run that deletes old checkpoints could each have found another one. */
static bool load(loom_trainer *t, loom_checkpoint_info *from, bool moments, loom_error *error) {
    loom_checkpoint_slice *slices;
    if (!cut_slices(t, false, &slices, error)) return false;
    const loom_checkpoint_tensors tensors = tensors_of(t, slices, moments);
    const bool ok = loom_checkpoint_load(from, &tensors, error);
    free(slices);
    if (!ok || !loom_comm_agree(t->comm, "the checkpoint", &from->identity, sizeof from->identity, error)) return false;
    loom_gpt_copy_master(t->gpt);
    return t->device->synchronize(t->device, NULL, error);
}

bool loom_trainer_start(loom_trainer *t, loom_checkpoint_info *from, loom_error *error) {
    const bool resumed = from && t->options.resume;
    const bool bytes = loom_dataset_is_bytes(t->data); /* whose texts end as the loader ends them */
    t->state = resumed ? resumed_state(t, from) : fresh_state(t);
    memset(t->state.course, 0, sizeof t->state.course);
    write_course(&t->options, t->state.course, sizeof t->state.course);
    t->ends = from && !bytes ? from->ends : loom_text_ends_of(bytes, t->options.vocab_size);
    if (resumed) note_changes(t, &from->state);
    if (resumed && t->has_before) note_course(t);
    t->device->copy(t->device, NULL, &loom_gpt_get_scalars(t->gpt)->state, &t->state.scalars, sizeof t->state.scalars,
                    LOOM_HOST_TO_DEVICE);
    if (!(from ? load(t, from, resumed, error) : loom_gpt_initialise(t->gpt, t->options.seed, error))) return false;
    if (t->options.check_finite) loom_trainer_check_ops(t);
    return loom_parallel_gather(&t->parallel, error);
}

bool loom_trainer_restore_tuning(loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    loom_error why;
    if (t->options.tuning) {
        if (loom_device_read_tuning(t->device, t->options.tuning, &why)) return true;
        return loom_fail(error, "--tuning: %s", why.message);
    }
    if (t->options.retune || !(t->begins_anew || (t->options.resume && from))) return true;
    /* A run that begins anew has what was tuned, or what it was given, before it was ended. */
    if (loom_device_restore_tuning(t->device, t->begins_anew ? t->options.out : from->directory, &why)) return true;
    return loom_fail(error,
                     "--resume: this machine cannot go on with the same bits: %s; --retune goes on with what is the "
                     "fastest here",
                     why.message);
}

/* Whether what this rank updates of a parameter is finite; `host` has room for PIECE elements. */
enum { PIECE = 1 << 20 };

static bool is_finite(loom_trainer *t, const loom_parameter *p, void *host, bool *finite, loom_error *error) {
    const loom_shard *shard = loom_gpt_get_shard(t->gpt, p->bucket);
    const loom_dtype dtype = t->precision.master;
    const int64_t begin = p->offset - loom_gpt_get_layout(t->gpt)->bucket[p->bucket].offset - shard->first;
    const int64_t end = begin + p->padded_rows * p->columns, last = end < shard->elements ? end : shard->elements;
    *finite = true;
    for (int64_t i = begin > 0 ? begin : 0; *finite && i < last; i += PIECE) {
        const int64_t n = last - i < PIECE ? last - i : PIECE;
        const void *data = loom_element(shard->master, i, dtype);
        if (!t->device->host_memory) {
            t->device->copy(t->device, NULL, host, data, (size_t)n * loom_dtype_size(dtype), LOOM_DEVICE_TO_HOST);
            if (!t->device->synchronize(t->device, NULL, error)) return false;
            data = host;
        }
        *finite = loom_all_finite(data, n, dtype);
    }
    return true;
}

bool loom_trainer_check_parameters(loom_trainer *t, loom_error *error) {
    const loom_layout *layout = loom_gpt_get_layout(t->gpt);
    void *host = t->device->host_memory ? NULL : malloc(PIECE * loom_dtype_size(t->precision.master));
    bool finite, ok = t->device->host_memory || host || loom_fail(error, "no memory to look at the parameters");
    for (int i = 0; ok && i < layout->n_parameters; i++) {
        ok = is_finite(t, &layout->parameter[i], host, &finite, error);
        if (ok && !finite) ok = loom_fail(error, "the parameter %s is not finite", layout->parameter[i].name);
    }
    free(host);
    return t->comm->size > 1 ? loom_comm_all(t->comm, ok, error) : ok;
}

static int64_t step_of_path(const char *path) {
    return strtoll(strrchr(path, '-') + 1, NULL, 10);
}

int64_t loom_run_last_good(const char *out, int64_t before, loom_training_state *state) {
    char path[PATH_MAX], older[PATH_MAX];
    const int64_t newest = loom_checkpoint_newest(out);
    if (newest < 0 || !loom_checkpoint_of_step(out, newest, path, sizeof path, NULL)) return -1;
    while (step_of_path(path) >= before || !loom_checkpoint_state(path, state) || state->bad_steps > 0) {
        if (!loom_checkpoint_older(path, older, sizeof older)) return -1;
        strcpy(path, older);
    }
    return step_of_path(path);
}

bool loom_trainer_save(loom_trainer *t, const char *run, loom_error *error) {
    loom_checkpoint_slice *slices;
    if (!cut_slices(t, true, &slices, error)) return false;
    const loom_checkpoint_tensors tensors = tensors_of(t, slices, true);
    t->comm->long_timeout = true; /* with one that flushes or computes a checksum */
    const bool ok = loom_checkpoint_save(run, &tensors, &t->state, loom_dataset_is_bytes(t->data), t->comm, error);
    t->comm->long_timeout = false;
    free(slices);
    return ok;
}
