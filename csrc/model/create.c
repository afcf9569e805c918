#include "model/gpt.h"

#include "base/check.h"

#include <stdlib.h>

/* A model's making: what it will run, the memory that takes, the device's plans. */

/* Everything the model will ever run, for tables of ops that plan or prepare. */
static void visit_all(loom_gpt *g) {
    const loom_rows batch = {g->B, g->T, 0};
    if (g->purpose == LOOM_GPT_TRAIN) {
        loom_gpt_visit(g, LOOM_MODE_LOSS, batch, false);
        for (int accumulate = 0; accumulate < 2; accumulate++) loom_gpt_visit(g, LOOM_MODE_TRAIN, batch, accumulate);
    }
    for (int64_t n = 1; g->generates && n <= g->T; n *= 2)
        loom_gpt_visit(g, LOOM_MODE_GENERATE, (loom_rows){1, n, g->T - n}, false);
    if (g->generates) loom_run_last_probabilities(g, 1);
    loom_gpt_copy_master(g);
}

/* With another table of ops; false if an op failed. */
static bool visit_with(loom_gpt *g, const loom_ops *ops, loom_error *error) {
    g->ctx.ops = ops;
    g->ctx.error = error;
    g->ctx.failed = false;
    visit_all(g);
    g->ctx.ops = g->device->ops;
    g->ctx.error = NULL;
    return !g->ctx.failed;
}

/* Rows of logits that one product computes, from the vocabulary alone: whole tiles of 128 rows, about 32 Mi logits. It
 * is 640 rows for GPT-2's vocabulary, enough for a GPU to be bound by arithmetic and not by reading the weights again.
 * */
static int64_t rows_of_group(int64_t padded_vocabulary) {
    const int64_t tiles = (INT64_C(32) << 20) / padded_vocabulary / 128;
    return 128 * (tiles > 0 ? tiles : 1);
}

/* Rows of logits that exist at a time: what was asked for, or an eighth of all (each chunk reads and writes the
 * classifier's whole gradient once more); in whole groups. */
static int64_t rows_of_chunk(const loom_gpt *g, int64_t asked) {
    const int64_t N = g->purpose == LOOM_GPT_TRAIN ? g->B * g->T : 1, group = g->group_rows;
    const int64_t wanted = asked ? asked : (N + 7) / 8;
    const int64_t rows = wanted < N ? (wanted + group - 1) / group * group : N;
    return rows < N ? rows : N;
}

static bool check_setup(const loom_gpt_config *config, const loom_gpt_setup *setup, const loom_device *device,
                        loom_error *error) {
    const int64_t B = setup->B, T = setup->T;
    LOOM_CHECK(B >= 1 && T >= 1);
    if (T > config->block_size)
        return loom_fail(error, "--seq-len: %lld tokens are more than the model's --block-size of %lld", (long long)T,
                         (long long)config->block_size);
    if (B > (INT64_C(1) << 31) / T)
        return loom_fail(error, "--micro-batch: %lld sequences of %lld tokens are more than 2^31 tokens", (long long)B,
                         (long long)T);
    if (setup->offload && device->host_memory)
        return loom_fail(
            error,
            "--offload: activations are in host memory already on device %s; say --offload none, or take a "
            "GPU",
            device->name);
    return true;
}

/* Sets are for so many layers, and of the values that these have. */
static bool check_sets(const loom_tape *tape, const loom_recompute *recompute, loom_error *error) {
    loom_value values[LOOM_SET_MOST_VALUES];
    char name[LOOM_RECOMPUTE_NAME];
    int64_t blocks = 0, most = INT64_C(1) << loom_tape_saved_values(tape, 0, values);
    loom_recompute_name(recompute, name);
    for (int i = 0; i < recompute->n_sets; i++) {
        blocks += recompute->set[i].blocks;
        if (recompute->set[i].values >= most)
            return loom_fail(error,
                             "--recompute: %s: a block's backward reads %d values, so that its set is at most %llx",
                             name, loom_tape_saved_values(tape, 0, values), (long long)most - 1);
    }
    return blocks == tape->n_layers || loom_fail(error, "--recompute: %s is for %lld blocks, and this model has %d",
                                                 name, (long long)blocks, tape->n_layers);
}

/* What training keeps and recomputes, and whether what it keeps leaves the device. */
static bool take_policy(loom_gpt *g, const loom_recompute *recompute, bool offload, loom_error *error) {
    if (recompute->kind == LOOM_RECOMPUTE_SETS && !check_sets(&g->tape, recompute, error)) return false;
    g->recompute = *recompute;
    g->segment = (int)loom_recompute_segment(recompute, g->config.n_layer);
    if (recompute->kind == LOOM_RECOMPUTE_SQRT) g->recompute = (loom_recompute){LOOM_RECOMPUTE_EVERY, g->segment};
    g->offload.on = offload && g->purpose == LOOM_GPT_TRAIN && loom_segments_that_leave(&g->tape, g->segment) > 0;
    return true;
}

loom_buffer_sizes loom_gpt_buffer_sizes(const loom_gpt *g) {
    return (loom_buffer_sizes){.rows = g->B * g->T,
                               .storage = loom_dtype_size(g->precision.storage),
                               .statistics = loom_dtype_size(g->device->statistics),
                               .logits = loom_logits_bytes(g, g->chunk_rows),
                               .segment = 1};
}

/* The steps of each mode, and where their values lie. */
static bool make_schedules(loom_gpt *g, loom_error *error) {
    const bool trains = g->purpose == LOOM_GPT_TRAIN;
    loom_buffer_sizes sizes = loom_gpt_buffer_sizes(g);
    bool ok = loom_tape_schedule_forward(&g->forward, &g->tape, error);
    if (ok && trains) {
        ok = loom_buffers_find(&g->buffers[LOOM_MODE_LOSS], &g->tape, &g->forward, &sizes, error);
        loom_keep *keep = malloc((size_t)g->tape.n_values * sizeof *keep);
        if (!keep) return loom_fail(error, "no memory for a model");
        loom_tape_keep(&g->tape, &g->recompute, keep);
        sizes.keep = keep;
        sizes.segment = g->segment;
        sizes.offloads = g->offload.on;
        ok = ok && loom_tape_schedule_train(&g->train, &g->tape, keep, g->segment, g->offload.on, error) &&
             loom_buffers_find(&g->buffers[LOOM_MODE_TRAIN], &g->tape, &g->train, &sizes, error);
        free(keep);
    }
    if (!ok || !g->generates) return ok;
    return loom_buffers_find(&g->buffers[LOOM_MODE_GENERATE], &g->tape, &g->forward,
                             &(loom_buffer_sizes){.rows = g->T,
                                                  .storage = sizes.storage,
                                                  .statistics = sizes.statistics,
                                                  .logits = loom_logits_bytes(g, 1),
                                                  .segment = 1,
                                                  .caches = true},
                             error);
}

static void take_sharding(loom_gpt *g, const loom_sharding *sharding) {
    g->sharding = *sharding;
    if (g->sharding.ranks == 0) g->sharding.ranks = 1;
    LOOM_CHECK(sharding->rank >= 0 && sharding->rank < g->sharding.ranks);
    LOOM_CHECK(sharding->zero >= 0 && sharding->zero <= 3);
    LOOM_CHECK(g->purpose == LOOM_GPT_TRAIN || g->sharding.ranks == 1);
    if (g->sharding.ranks == 1) g->sharding.zero = 0;
}

static bool allocate_tables(loom_gpt *g, loom_error *error) {
    const size_t buckets = (size_t)g->layout.n_buckets;
    g->shard = calloc(buckets, sizeof *g->shard);
    g->bucket_parameters = calloc(buckets, sizeof *g->bucket_parameters);
    g->bucket_gradients = calloc(buckets, sizeof *g->bucket_gradients);
    return (g->shard && g->bucket_parameters && g->bucket_gradients) || loom_fail(error, "no memory for a model");
}

bool loom_gpt_create(loom_gpt **out, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                     loom_error *error) {
    if (!loom_gpt_config_check(config, error) || !check_setup(config, setup, device, error)) return false;
    loom_gpt *g = calloc(1, sizeof *g);
    if (!g) return loom_fail(error, "no memory for a model");
    g->config = *config;
    g->purpose = setup->purpose;
    g->device = device;
    g->precision = setup->precision
                       ? *setup->precision
                       : (loom_precision){device->storage, device->storage, device->storage, device->storage};
    if (g->purpose == LOOM_GPT_INFER) g->precision.master = g->precision.storage;
    g->generates = setup->generates || g->purpose == LOOM_GPT_INFER;
    g->B = setup->B;
    g->T = setup->T;
    g->padded_vocabulary = loom_gpt_padded_vocabulary(config);
    g->group_rows = rows_of_group(g->padded_vocabulary);
    g->chunk_rows = rows_of_chunk(g, setup->logits_rows);
    g->ctx.device = device;
    take_sharding(g, &setup->sharding);
    if (!loom_tape_create(&g->tape, config, error) ||
        !loom_layout_of_tape(&g->layout, &g->tape, g->sharding.ranks, error) || !allocate_tables(g, error))
        goto failed;
    if (!take_policy(g, &setup->recompute, setup->offload, error) || !make_schedules(g, error) ||
        !visit_with(g, loom_planning_ops(), error))
        goto failed;
    g->workspace_bytes = g->ctx.workspace_bytes;
    *out = g;
    return true;
failed:
    loom_gpt_destroy(g);
    return false;
}

void loom_gpt_destroy(loom_gpt *g) {
    if (!g) return;
    loom_offload_close(g);
    for (int mode = 0; mode < LOOM_MODES; mode++) loom_buffers_destroy(&g->buffers[mode]);
    loom_tape_schedule_destroy(&g->train);
    loom_tape_schedule_destroy(&g->forward);
    loom_tape_destroy(&g->tape);
    loom_layout_destroy(&g->layout);
    free(g->shard);
    free(g->bucket_parameters);
    free(g->bucket_gradients);
    free(g);
}

/* One region for the values of all modes, of which one runs at a time. */
static void lay_out_activations(loom_gpt *g, loom_arena *arena) {
    const loom_gpt_mode most = g->purpose == LOOM_GPT_TRAIN ? LOOM_MODE_TRAIN : LOOM_MODE_GENERATE;
    size_t bytes = 0;
    for (int mode = 0; mode < LOOM_MODES; mode++)
        bytes = g->buffers[mode].bytes > bytes ? g->buffers[mode].bytes : bytes;
    g->activations = loom_arena_take(arena, "activations", bytes - LOOM_ARENA_ALIGNMENT);
    loom_arena_count(arena, "activations", "scratch", bytes - g->buffers[most].kept);
}

/* ----------------------------------------------------------------------------------------- what is in the layout */

int loom_gpt_bucket_slot(const loom_gpt *g, int bucket) {
    const int layer = g->layout.bucket[bucket].layer;
    return layer >= 0 ? 2 + layer % 2 : bucket == 0 ? 0 : 1;
}

static bool is_block(const loom_gpt *g, int bucket) {
    return loom_gpt_bucket_slot(g, bucket) >= 2;
}

static void *take(loom_arena *arena, const char *row, int64_t elements, loom_dtype dtype) {
    return loom_arena_take(arena, row, loom_bytes(elements, dtype));
}

/* What of each bucket the optimizer updates here. */
static void cut_shards(loom_gpt *g) {
    for (int b = 0; b < g->layout.n_buckets; b++) {
        const int64_t all = g->layout.bucket[b].elements;
        const int64_t share = g->sharding.zero >= 1 ? all / g->sharding.ranks : all;
        g->shard[b] = (loom_shard){.first = g->sharding.zero >= 1 ? share * g->sharding.rank : 0, .elements = share};
    }
}

/* Memory for all buckets in the order of the layout. */
static void *take_whole(const loom_gpt *g, loom_arena *arena, const char *row, loom_dtype dtype, void **bucket) {
    void *all = take(arena, row, g->layout.elements, dtype);
    for (int b = 0; b < g->layout.n_buckets; b++) bucket[b] = loom_element(all, g->layout.bucket[b].offset, dtype);
    return all;
}

/* Memory for slots that buckets take in turn: those of blocks, and with `ends` the two others'. */
static void take_slots(const loom_gpt *g, loom_arena *arena, const char *row, loom_dtype dtype, bool ends,
                       void **bucket) {
    void *slot[LOOM_BUCKET_SLOTS] = {NULL};
    bool taken[LOOM_BUCKET_SLOTS] = {false};
    for (int b = 0; b < g->layout.n_buckets; b++) {
        const int s = loom_gpt_bucket_slot(g, b);
        if (!is_block(g, b) && !ends) continue;
        if (!taken[s]) slot[s] = take(arena, row, g->layout.bucket[b].elements, dtype);
        taken[s] = true;
        bucket[b] = slot[s];
    }
}

/* The model's own weights: whole, or blocks as shares, with two slots for whole blocks on their way. */
static void lay_out_parameters(loom_gpt *g, loom_arena *arena) {
    const loom_dtype storage = g->precision.storage;
    const bool sharded = g->sharding.zero >= 3;
    if (!sharded) {
        g->parameters = take_whole(g, arena, "parameters", storage, g->bucket_parameters);
    } else {
        for (int b = 0; b < g->layout.n_buckets; b++)
            if (!is_block(g, b))
                g->bucket_parameters[b] = take(arena, "parameters", g->layout.bucket[b].elements, storage);
        take_slots(g, arena, "communication", storage, false, g->bucket_parameters);
    }
    for (int b = 0; b < g->layout.n_buckets; b++) {
        loom_shard *shard = &g->shard[b];
        shard->parameters = sharded && is_block(g, b) ? take(arena, "parameters", shard->elements, storage)
                                                      : loom_element(g->bucket_parameters[b], shard->first, storage);
    }
}

static void lay_out_master(loom_gpt *g, loom_arena *arena) {
    const loom_dtype master = g->precision.master;
    if (!loom_has_master(&g->precision)) {
        g->master = g->parameters;
        for (int b = 0; b < g->layout.n_buckets; b++) g->shard[b].master = g->shard[b].parameters;
        return;
    }
    const int64_t share = g->layout.elements / (g->sharding.zero >= 1 ? g->sharding.ranks : 1);
    void *all = take(arena, "master weights", share, master);
    if (g->sharding.zero == 0) g->master = all;
    int64_t done = 0;
    for (int b = 0; b < g->layout.n_buckets; done += g->shard[b++].elements)
        g->shard[b].master = loom_element(all, done, master);
}

/* Gradients: whole, or as shares, with slots for whole buckets on their way. */
static void lay_out_gradients(loom_gpt *g, loom_arena *arena) {
    const loom_dtype dtype = g->precision.gradient;
    if (g->sharding.zero < 2 || g->sharding.deterministic) {
        g->gradients = take_whole(g, arena, "gradients", dtype, g->bucket_gradients);
        for (int b = 0; b < g->layout.n_buckets; b++)
            g->shard[b].gradient = loom_element(g->bucket_gradients[b], g->shard[b].first, dtype);
        return;
    }
    void *all = take(arena, "gradients", g->layout.elements / g->sharding.ranks, dtype);
    int64_t done = 0;
    for (int b = 0; b < g->layout.n_buckets; done += g->shard[b++].elements)
        g->shard[b].gradient = loom_element(all, done, dtype);
    take_slots(g, arena, "communication", dtype, true, g->bucket_gradients);
}

void loom_gpt_lay_out(loom_gpt *g, loom_arena *arena) {
    const int64_t N = g->B * g->T;
    const bool training = g->purpose == LOOM_GPT_TRAIN;
    cut_shards(g);
    lay_out_parameters(g, arena);
    lay_out_master(g, arena);
    if (training) lay_out_gradients(g, arena);
    lay_out_activations(g, arena);
    g->ctx.workspace = loom_arena_take(arena, "workspace", g->workspace_bytes);
    g->ctx.workspace_bytes = g->workspace_bytes;
    g->losses = loom_arena_take(arena, "batch", loom_bytes(N, g->device->statistics));
    if (training) g->loss_sums = loom_arena_take(arena, "batch", loom_bytes(g->B, g->device->statistics));
    g->tokens = loom_arena_take(arena, "batch", loom_bytes(N, LOOM_I32));
    g->targets = loom_arena_take(arena, "batch", loom_bytes(N, LOOM_I32));
    g->scalars = loom_arena_take(arena, "batch", sizeof *g->scalars);
}

/* Elements in a row, gaps included, as a matrix. */
static loom_view as_matrix(void *data, loom_dtype dtype, int64_t elements) {
    return loom_view_2d(data, dtype, elements / 128, 128);
}

/* Where nothing is sharded the buckets lie in a row, and are one. */
static int buckets_at_a_time(const loom_gpt *g) {
    return g->sharding.zero == 0 ? g->layout.n_buckets : 1;
}

void loom_gpt_copy_master(loom_gpt *g) {
    const int step = buckets_at_a_time(g);
    if (!loom_has_master(&g->precision)) return;
    for (int b = 0; b < g->layout.n_buckets; b += step) {
        const loom_shard *shard = &g->shard[b];
        const int64_t elements = step > 1 ? g->layout.elements : shard->elements;
        g->ctx.ops->cast(&g->ctx,
                         &(struct loom_cast){.out = as_matrix(shard->parameters, g->precision.storage, elements),
                                             .x = as_matrix(shard->master, g->precision.master, elements)});
    }
}

static void clear(loom_gpt *g, void *data, loom_dtype dtype, int64_t elements) {
    g->ctx.ops->fill(&g->ctx, &(struct loom_fill){.out = as_matrix(data, dtype, elements)});
}

/* Gaps are never written again. */
static void clear_all(loom_gpt *g) {
    const int step = buckets_at_a_time(g);
    for (int b = 0; b < g->layout.n_buckets; b += step) {
        const loom_shard *shard = &g->shard[b];
        const int64_t all = step > 1 ? g->layout.elements : g->layout.bucket[b].elements;
        const int64_t share = step > 1 ? all : shard->elements;
        clear(g, g->bucket_parameters[b], g->precision.storage, all);
        clear(g, shard->parameters, g->precision.storage, share);
        if (loom_has_master(&g->precision)) clear(g, shard->master, g->precision.master, share);
        if (g->purpose != LOOM_GPT_TRAIN) continue;
        clear(g, g->bucket_gradients[b], g->precision.gradient, all);
        clear(g, shard->gradient, g->precision.gradient, share);
    }
}

bool loom_gpt_make_plans(loom_gpt *g, loom_error *error) {
    if (!g->planned) g->planned = visit_with(g, loom_preparing_ops(), error);
    return g->planned;
}

bool loom_gpt_prepare(loom_gpt *g, loom_error *error) {
    const loom_scalars scalars = {.state.loss_scale = 1};
    if (!loom_gpt_make_plans(g, error) || !loom_offload_open(g, error)) return false;
    g->device->copy(g->device, g->ctx.stream, g->scalars, &scalars, sizeof scalars, LOOM_HOST_TO_DEVICE);
    clear_all(g);
    return g->device->synchronize(g->device, g->ctx.stream, error);
}

/* ----------------------------------------------------------------------------------------------------------- accessors */

void loom_gpt_set_batch(loom_gpt *g, const int32_t *tokens, const int32_t *targets, loom_copy_kind kind) {
    const size_t size = loom_bytes(g->B * g->T, LOOM_I32);
    g->device->copy(g->device, g->ctx.stream, g->tokens, tokens, size, kind);
    g->device->copy(g->device, g->ctx.stream, g->targets, targets, size, kind);
}

void loom_gpt_set_hooks(loom_gpt *g, const loom_gpt_hooks *hooks) {
    g->hooks = *hooks;
}

const loom_gpt_config *loom_gpt_get_config(const loom_gpt *g) {
    return &g->config;
}

const loom_layout *loom_gpt_get_layout(const loom_gpt *g) {
    return &g->layout;
}

loom_device *loom_gpt_get_device(const loom_gpt *g) {
    return g->device;
}

loom_context *loom_gpt_get_context(loom_gpt *g) {
    return &g->ctx;
}

const loom_sharding *loom_gpt_get_sharding(const loom_gpt *g) {
    return &g->sharding;
}

const loom_shard *loom_gpt_get_shard(const loom_gpt *g, int bucket) {
    return &g->shard[bucket];
}

void *loom_gpt_bucket_parameters(loom_gpt *g, int bucket) {
    return g->bucket_parameters[bucket];
}

void *loom_gpt_bucket_gradients(loom_gpt *g, int bucket) {
    return g->bucket_gradients[bucket];
}

void *loom_gpt_get_parameters(loom_gpt *g) {
    return g->parameters;
}

const loom_precision *loom_gpt_get_precision(const loom_gpt *g) {
    return &g->precision;
}

const loom_recompute *loom_gpt_get_recompute(const loom_gpt *g) {
    return &g->recompute;
}

int64_t loom_gpt_get_logits_rows(const loom_gpt *g) {
    return g->chunk_rows;
}

size_t loom_gpt_get_host_bytes(const loom_gpt *g) {
    return loom_offload_host_bytes(g);
}

void *loom_gpt_get_master(loom_gpt *g) {
    return g->master;
}

void *loom_gpt_get_gradients(loom_gpt *g) {
    return g->gradients;
}

void *loom_gpt_get_losses(loom_gpt *g) {
    return g->losses;
}

void *loom_gpt_get_loss_sums(loom_gpt *g) {
    return g->loss_sums;
}

loom_scalars *loom_gpt_get_scalars(loom_gpt *g) {
    return g->scalars;
}
