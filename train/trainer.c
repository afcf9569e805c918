#include "trainer.h"

#include "base/check.h"
#include "base/file.h"
#include "data/windows.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* --------------------------------------------------------------------------------------------------------- the model's shape */

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
    if (o->activation != LOOM_GPT_GELU && o->activation != from->config.activation)
        return loom_fail(error, "--activation: the checkpoint %s has another", from->directory);
    o->activation = from->config.activation;
    return true;
}

/* --------------------------------------------------------------------------------------------------------------------- data */

static bool open_paths(loom_dataset **data, char *const *paths, int n, loom_error *error) {
    return loom_dataset_open(data, (const char *const *)paths, n, error);
}

/* The vocabulary, where nobody said: bytes have 257 ids, llm.c's shards are GPT-2's. */
static bool settle_vocabulary(loom_trainer *t, loom_error *error) {
    enum { GPT2_VOCABULARY = 50257 };
    loom_train_options *o = &t->options;
    const bool bytes = loom_dataset_is_bytes(t->data);
    if (!o->vocab_size) o->vocab_size = bytes ? LOOM_BYTE_VOCABULARY : GPT2_VOCABULARY;
    if (bytes && o->vocab_size < LOOM_BYTE_VOCABULARY)
        return loom_fail(error, "--vocab-size: text is read as bytes and needs %d ids; %" PRId64 " are too few",
                         LOOM_BYTE_VOCABULARY, o->vocab_size);
    return true;
}

static bool open_data(loom_trainer *t, loom_error *error) {
    loom_train_options *o = &t->options;
    if (o->n_data == 0) return loom_fail(error, "--data: name the text or token files to train on");
    if (!open_paths(&t->data, o->data, o->n_data, error)) return false;
    if (o->n_val_data && !open_paths(&t->val_data, o->val_data, o->n_val_data, error)) return false;
    if (t->val_data && loom_dataset_is_bytes(t->val_data) != loom_dataset_is_bytes(t->data))
        return loom_fail(error, "--val-data: %s is %s, unlike --data", loom_dataset_first_path(t->val_data),
                         loom_dataset_is_bytes(t->val_data) ? "text" : "a token shard");
    return settle_vocabulary(t, error);
}

static bool split_data(loom_trainer *t, loom_error *error) {
    const loom_train_options *o = &t->options;
    if (!loom_dataset_check_ids(t->data, o->vocab_size, error)) return false;
    if (!t->val_data) {
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

/* --steps, or the steps that --epochs come to. */
static bool settle_steps(loom_trainer *t, loom_error *error) {
    loom_train_options *o = &t->options;
    if (!o->steps) {
        const double windows = (double)loom_split_windows(&t->training, o->seq_len);
        const double steps = ceil((o->epochs > 0 ? o->epochs : 1) * windows / (double)o->batch);
        if (!(steps < 1e12)) return loom_fail(error, "--epochs: %g epochs are too many steps", o->epochs);
        o->steps = steps < 1 ? 1 : (int64_t)steps;
        o->epochs = 0;
    }
    if (o->warmup < 0) o->warmup = loom_train_default_warmup(o->steps);
    if (o->warmup >= o->steps && o->warmup > 0)
        return loom_fail(error, "--warmup: %" PRId64 " steps of warm-up do not fit into %" PRId64 " steps", o->warmup,
                         o->steps);
    t->schedule = (loom_schedule){
        .kind = o->schedule, .lr = (float)o->lr, .min_lr = (float)o->min_lr, .warmup = o->warmup, .steps = o->steps};
    return true;
}

/* ------------------------------------------------------------------------------------------------------------------- memory */

/* What rank 0's device has chosen by measuring, the others' take. */
static bool send_choices(loom_trainer *t, loom_error *error) {
    char *text = NULL;
    int64_t length = 0;
    loom_error why;
    if (t->comm->rank == 0) {
        if (!t->device->choices_get(t->device, &text, error)) return false;
        length = text ? (int64_t)strlen(text) + 1 : 0;
    }
    bool ok = loom_comm_host_broadcast(t->comm, &length, sizeof length, 0, error);
    if (ok && !text && length > 0 && !(text = malloc((size_t)length)))
        ok = loom_fail(error, "no memory for %lld bytes", (long long)length);
    ok = ok && (length == 0 || loom_comm_host_broadcast(t->comm, text, (size_t)length, 0, error));
    if (ok && length > 0 && t->comm->rank > 0 && !t->device->choices_set(t->device, text, &why))
        ok = loom_fail(error, "--ranks: all need the same hardware and libraries, and rank %d has not: %s",
                       t->comm->rank, why.message);
    free(text);
    return ok;
}

/* Rank 0's device measures what can be chosen; then the others make the same plans. */
static bool make_plans(loom_trainer *t, loom_error *error) {
    if (t->comm->rank == 0 && !loom_gpt_make_plans(t->gpt, error)) return false;
    return (t->comm->size == 1 || send_choices(t, error)) && loom_gpt_make_plans(t->gpt, error);
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
    return loom_gpt_prepare(t->gpt, error) && loom_optimizer_prepare(&t->optimizer, error) &&
           loom_parallel_open(&t->parallel, t->comm, &t->optimizer, error);
}

/* -------------------------------------------------------------------------------------------------------------- start, resume */

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
        (*slices)[b] = (loom_checkpoint_slice){
            .first = shard->first + skipped,
            .elements = n,
            .parameters = (char *)shard->master + (size_t)skipped * loom_dtype_size(dtype),
            .moment1 = (char *)t->optimizer.moment1 + (size_t)moments * loom_dtype_size(moment),
            .moment2 = (char *)t->optimizer.moment2 + (size_t)moments * loom_dtype_size(moment)};
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
                                     .moment_dtype = t->precision.moment};
}

/* What may not change because the order of the data hangs on it. */
static bool check_order(const char *flag, int64_t is, int64_t was, const char *run, loom_error *error) {
    if (is == was) return true;
    return loom_fail(error, "%s: the order of the data hangs on it; the resumed run %s cannot change it", flag, run);
}

/* A run goes on only as what it was: what its order of data or its numbers hang on may not change. */
static bool check_resumable(const loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
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

static bool start(loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    const bool resumed = from && t->options.resume;
    t->state = resumed ? resumed_state(t, from) : fresh_state(t);
    if (resumed) note_changes(t, &from->state);
    t->device->copy(t->device, NULL, &loom_gpt_get_scalars(t->gpt)->state, &t->state.scalars, sizeof t->state.scalars,
                    LOOM_HOST_TO_DEVICE);
    if (!(from ? load(t, from, resumed, error) : loom_gpt_initialise(t->gpt, t->options.seed, error))) return false;
    return loom_parallel_gather(&t->parallel, error);
}

/* The same choices as before give the same bits: a run does not go on with others unless that is asked for. */
static bool restore_choices(loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
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

/* The program, as the system has it. */
static bool hash_program(XXH128_hash_t *hash, loom_error *error) {
    loom_mapping file;
    if (!loom_file_map("/proc/self/exe", &file, error)) return false;
    *hash = XXH3_128bits(file.data, file.size);
    loom_file_unmap(&file);
    return true;
}

/* Ranks that were started with different programs, options, data or checkpoints would train nonsense. */
static bool check_agreement(loom_trainer *t, const loom_checkpoint_info *from, loom_error *error) {
    char *text = NULL;
    size_t size = 0;
    XXH128_hash_t program;
    if (t->comm->size == 1) return true;
    if (!loom_train_options_text(&t->options, &text, &size, error)) return false;
    const XXH128_hash_t options = XXH3_128bits(text, size);
    free(text);
    const uint64_t data[2] = {loom_dataset_identity(t->data), t->val_data ? loom_dataset_identity(t->val_data) : 0};
    const int64_t step = from ? from->state.step : -1;
    char device[64] = ""; /* as long on all ranks */
    snprintf(device, sizeof device, "%s", t->device->name);
    return hash_program(&program, error) && loom_comm_agree(t->comm, "the program", &program, sizeof program, error) &&
           loom_comm_agree(t->comm, "--data", data, sizeof data, error) &&
           loom_comm_agree(t->comm, "the configuration", &options, sizeof options, error) &&
           loom_comm_agree(t->comm, "the device", device, sizeof device, error) &&
           loom_comm_agree(t->comm, "the step to go on from", &step, sizeof step, error);
}

/* A resumed or initialised run's checkpoint; *found NULL for a fresh run. */
static bool find_checkpoint(loom_trainer *t, loom_checkpoint_info *info, const loom_checkpoint_info **found,
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

static bool take_comm(loom_trainer *t, loom_comm *comm, loom_error *error) {
    t->comm = comm;
    if (!comm && !loom_comm_open(&t->comm, &(loom_comm_options){.backend = "self"}, error)) return false;
    if (t->options.ranks > 0 && t->options.ranks != t->comm->size)
        return loom_fail(error, "--ranks: %" PRId64 " are asked for, and %d %s started", t->options.ranks,
                         t->comm->size, t->comm->size == 1 ? "was" : "were");
    t->options.ranks = t->comm->size;
    t->comm->patient = true; /* with one that measures, while all start */
    return true;
}

static bool open_everything(loom_trainer *t, loom_checkpoint_info *info, loom_comm *comm,
                            const loom_train_observer *observer, loom_error *error) {
    const loom_checkpoint_info *from;
    if (!take_comm(t, comm, error)) return false;
    if (!find_checkpoint(t, info, &from, error)) return false;
    if (!loom_train_options_resolve(&t->options, error) ||
        !loom_recompute_parse(t->options.recompute, &t->recompute, error) || !open_data(t, error))
        return false;
    if (!split_data(t, error) || !settle_steps(t, error)) return false;
    if (t->options.resume && from && !check_resumable(t, from, error)) return false;
    if (!open_device(t, error) || !check_agreement(t, from, error) || !restore_choices(t, from, error)) return false;
    if (!loom_trainer_plan_memory(t, observer, error) || !allocate(t, error) || !start(t, from, error)) return false;
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

bool loom_trainer_open(loom_trainer **out, const loom_train_options *options, loom_comm *comm,
                       const loom_train_observer *observer, loom_error *error) {
    loom_trainer *t = calloc(1, sizeof *t);
    loom_checkpoint_info *info = calloc(1, sizeof *info);
    bool ok = t && info;
    if (!ok) loom_fail(error, "no memory for a trainer");
    if (ok) {
        t->options = *options;
        t->observer = observer;
        ok = open_everything(t, info, comm, observer, error);
    }
    free(info);
    if (!ok) {
        if (!comm || comm->size == 1) loom_trainer_close(t);
        return false;
    }
    t->comm->patient = false;
    *out = t;
    return true;
}

void loom_trainer_close(loom_trainer *t) {
    if (!t) return;
    loom_feeder_close(&t->feeder);
    for (int i = 0; i < LOOM_PIECES; i++)
        if (t->recording[i]) t->device->recording_close(t->device, t->recording[i]);
    if (t->host_scalars) t->device->release_host(t->device, t->host_scalars, sizeof *t->host_scalars);
    loom_parallel_close(&t->parallel);
    loom_comm_close(t->comm);
    loom_gpt_destroy(t->gpt);
    if (t->memory) t->device->release(t->device, t->memory, t->memory_bytes);
    loom_device_close(t->device);
    loom_dataset_close(t->val_data);
    loom_dataset_close(t->data);
    free(t);
}

/* ------------------------------------------------------------------------------------------------- validate, sample, save */

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
