#include "trainer.h"

#include "base/check.h"
#include "base/file.h"

#include <inttypes.h>
#include <limits.h>
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
    return true;
}

/* A run that ended before its first checkpoint was whole is there, but begins anew. */
static bool has_no_checkpoint(const char *run) {
    char config[PATH_MAX], checkpoints[PATH_MAX], latest[PATH_MAX];
    if (!loom_join_path(config, sizeof config, run, "config.ini", NULL) ||
        !loom_join_path(checkpoints, sizeof checkpoints, run, "checkpoints", NULL) ||
        !loom_join_path(latest, sizeof latest, checkpoints, "latest", NULL) || !loom_path_exists(config))
        return false;
    if (!loom_path_exists(checkpoints)) return true;
    return access(checkpoints, R_OK | X_OK) == 0 && !loom_path_exists(latest) && loom_checkpoint_newest(run) < 0;
}

/* What may not change because the order of the data hangs on it. */
static bool check_order(const char *flag, int64_t is, int64_t was, const char *run, loom_error *error) {
    if (is == was) return true;
    return loom_fail(error, "%s: the order of the data hangs on it; the resumed run %s cannot change it", flag, run);
}

bool loom_trainer_find_checkpoint(loom_trainer *t, loom_checkpoint_info *info, const loom_checkpoint_info **found,
                                  loom_error *error) {
    const char *path = t->options.resume ? t->options.out : t->options.init;
    *found = NULL;
    if (!path || !*path) return true;
    if (t->options.resume && has_no_checkpoint(path)) return true;
    if (!loom_checkpoint_open(path, info, error) || !take_shape(&t->options, info, error)) return false;
    *found = info;
    if (!t->options.resume || !info->has_optimizer) return true;
    return check_order("--batch", t->options.batch, info->state.batch, path, error) &&
           (!t->options.seq_len || check_order("--seq-len", t->options.seq_len, info->state.seq_len, path, error));
}

/* A run goes on only as what it was: what its order of data or its numbers hang on may not change. */
bool loom_trainer_check_resumable(const loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    if (!from->has_optimizer)
        return loom_fail(error, "--resume: %s has weights only; --init starts a new run from them", from->directory);
    if (from->state.seed != t->options.seed)
        return loom_fail(error, "--seed: the run %s has seed %" PRIu64 "; a resumed run cannot change it",
                         t->options.out, from->state.seed);
    if (from->state.data_identity != loom_dataset_identity(t->data))
        return loom_fail(error, "--data: this is not the data that the run %s was trained on", t->options.out);
    if (!check_order("--val-fraction", t->training.tokens, from->state.training_tokens, t->options.out, error) ||
        !check_order("--seq-len", t->options.seq_len, from->state.seq_len, t->options.out, error))
        return false;
    if (from->state.step >= t->options.steps)
        return loom_fail(error, "--steps: the run %s has done %" PRId64 " of %" PRId64 " steps already; ask for more",
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
    return settings;
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

/* Whether the device chose anything by measuring. */
static bool has_choices(const loom_device *device) {
    char *text = NULL;
    const bool has = device->choices_get(device, &text, NULL) && text;
    free(text);
    return has;
}

/* Names the flags whose change gives a resumed run other bits than it would have had. */
static void note_changes(loom_trainer *t, const loom_training_state *before) {
    const loom_training_settings *is = &t->state.settings, *was = &before->settings;
    const bool told = was->micro_batch > 0;
    const struct {
        const char *flag;
        bool changed;
    } rows[] = {{"--dtype", t->state.dtype != before->dtype},
                {"--master-weights", told && is->master_weights != was->master_weights},
                {"--optimizer-dtype", told && is->optimizer_dtype != was->optimizer_dtype},
                {"--grad-dtype", told && is->grad_dtype != was->grad_dtype},
                {"--micro-batch", told && is->micro_batch != was->micro_batch},
                {"--logits-rows", told && is->micro_batch == was->micro_batch && was->logits_rows > 0 &&
                                      is->logits_rows != was->logits_rows},
                {"--tf32", told && is->tf32 != was->tf32},
                {"--attention", told && is->cudnn_attention != was->cudnn_attention},
                {"--deterministic", told && is->deterministic != was->deterministic},
                {"--deterministic-reduce", told && is->deterministic_reduce != was->deterministic_reduce},
                {"--ranks", told && !is->deterministic_reduce && is->ranks != was->ranks},
                {"--zero", told && !is->deterministic_reduce && is->zero != was->zero},
                {"--device", told && strcmp(is->device, was->device) != 0},
                {"--fresh-choices", t->options.fresh_choices && has_choices(t->device)}};
    size_t used = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].changed)
            used += (size_t)snprintf(t->note + used, sizeof t->note - used, "%s%s", used ? ", " : "", rows[i].flag);
    if (!used) return;
    used += (size_t)snprintf(t->note + used, sizeof t->note - used,
                             ": changed, so from here on the bits are not those of an uninterrupted run");
    LOOM_CHECK(used < sizeof t->note);
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

static bool load(loom_trainer *t, const loom_checkpoint_info *from, bool moments, loom_error *error) {
    loom_checkpoint_slice *slices;
    if (!cut_slices(t, false, &slices, error)) return false;
    const loom_checkpoint_tensors tensors = tensors_of(t, slices, moments);
    const bool ok = loom_checkpoint_load(from, &tensors, error);
    free(slices);
    if (!ok) return false;
    loom_gpt_copy_master(t->gpt);
    return t->device->synchronize(t->device, NULL, error);
}

bool loom_trainer_start(loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    const bool resumed = from && t->options.resume;
    const bool bytes = loom_dataset_is_bytes(t->data); /* whose texts end as the loader ends them */
    t->state = resumed ? resumed_state(t, from) : fresh_state(t);
    t->ends = from && !bytes ? from->ends : loom_text_ends_of(bytes, t->options.vocab_size);
    if (resumed) note_changes(t, &from->state);
    t->device->copy(t->device, NULL, &loom_gpt_get_scalars(t->gpt)->state, &t->state.scalars, sizeof t->state.scalars,
                    LOOM_HOST_TO_DEVICE);
    if (!(from ? load(t, from, resumed, error) : loom_gpt_initialise(t->gpt, t->options.seed, error))) return false;
    return loom_parallel_gather(&t->parallel, error);
}

bool loom_trainer_restore_choices(loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    loom_error why;
    if (t->options.choices) {
        if (loom_device_read_choices(t->device, t->options.choices, &why)) return true;
        return loom_fail(error, "--choices: %s", why.message);
    }
    if (!t->options.resume || !from || t->options.fresh_choices) return true;
    if (loom_checkpoint_restore_choices(from, t->device, &why)) return true;
    return loom_fail(error,
                     "--resume: this machine cannot go on with the same bits: %s; --fresh-choices goes on with what is "
                     "best here",
                     why.message);
}

bool loom_trainer_save(loom_trainer *t, const char *run, int keep, loom_error *error) {
    loom_checkpoint_slice *slices;
    if (!cut_slices(t, true, &slices, error)) return false;
    const loom_checkpoint_tensors tensors = tensors_of(t, slices, true);
    t->comm->patient = true; /* with one that flushes or computes a checksum */
    const bool ok = loom_checkpoint_save(run, &tensors, &t->state, loom_dataset_is_bytes(t->data), keep, t->comm,
                                         error);
    t->comm->patient = false;
    free(slices);
    return ok;
}
