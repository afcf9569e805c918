#include "model/gpt.h"

#include "base/check.h"

#include <stdlib.h>

/* A model's making: what it will run, the memory that takes, the device's plans. */

/* Everything the model will ever run, for tables of ops that plan or prepare. */
static void walk(loom_gpt *g) {
    if (g->purpose == LOOM_GPT_TRAIN) {
        loom_gpt_forward(g);
        loom_gpt_loss(g, false, false);
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            loom_gpt_loss(g, true, accumulate);
            loom_gpt_backward(g, accumulate);
        }
    }
    for (int64_t n = 1; n <= g->T; n *= 2) loom_gpt_infer(g, n, g->T - n);
    loom_gpt_copy_master(g);
}

/* Runs `walk` with another table of ops; false if an op failed. */
static bool walk_with(loom_gpt *g, const loom_ops *ops, loom_error *error) {
    g->exec.ops = ops;
    g->exec.error = error;
    g->exec.failed = false;
    walk(g);
    g->exec.ops = g->device->ops;
    g->exec.error = NULL;
    return !g->exec.failed;
}

/* Rows of logits at a time, from shapes alone: about 64 MiB of fp32, or an eighth of all where that is more, in whole
 * tiles of 128 rows (each chunk reads and writes the classifier's whole gradient once more). */
static int64_t rows_of_logits(const loom_gpt *g) {
    const int64_t N = g->purpose == LOOM_GPT_TRAIN ? g->B * g->T : 1;
    const int64_t fit = (INT64_C(64) << 20) / (4 * g->padded_vocabulary);
    const int64_t eighth = (N + 8 * 128 - 1) / (8 * 128) * 128;
    int64_t rows = fit < 1 ? 1 : fit;
    if (eighth > rows) rows = eighth;
    return N < rows ? N : rows;
}

bool loom_gpt_create(loom_gpt **out, const loom_gpt_config *config, loom_gpt_purpose purpose,
                     const loom_precision *precision, loom_device *device, int64_t B, int64_t T, loom_error *error) {
    LOOM_CHECK(B >= 1 && T >= 1);
    if (T > config->block_size)
        return loom_fail(error, "--seq-len: %lld tokens are more than the model's --block-size of %lld", (long long)T,
                         (long long)config->block_size);
    if (B > (INT64_C(1) << 31) / T)
        return loom_fail(error, "--micro-batch: %lld sequences of %lld tokens are more than 2^31 tokens", (long long)B,
                         (long long)T);
    loom_gpt *g = calloc(1, sizeof *g);
    if (!g) return loom_fail(error, "no memory for a model");
    g->config = *config;
    g->purpose = purpose;
    g->device = device;
    g->precision = precision ? *precision : (loom_precision){device->storage, device->storage, device->storage};
    if (purpose == LOOM_GPT_INFER) g->precision.master = g->precision.storage;
    g->B = B;
    g->T = T;
    g->padded_vocabulary = loom_gpt_padded_vocabulary(config);
    g->chunk_rows = rows_of_logits(g);
    g->exec.device = device;
    if (!loom_layout_create(&g->layout, config, 1, error)) goto failed;
    if (!(g->acts = calloc((size_t)config->n_layer, sizeof *g->acts))) {
        loom_fail(error, "no memory for a model");
        goto failed;
    }
    if (!walk_with(g, loom_planning_ops(), error)) goto failed;
    g->workspace_bytes = g->exec.workspace_bytes;
    *out = g;
    return true;
failed:
    loom_gpt_destroy(g);
    return false;
}

void loom_gpt_destroy(loom_gpt *g) {
    if (!g) return;
    loom_layout_destroy(&g->layout);
    free(g->acts);
    free(g);
}

/* Each row of the table of activations: one tensor per block where it is kept, else one for all. */
static void lay_out_activations(loom_gpt *g, loom_arena *arena) {
    const unsigned policy = g->purpose == LOOM_GPT_TRAIN ? LOOM_KEEP_TRAINING : LOOM_KEEP_INFERENCE;
    for (int name = 0; name < LOOM_ACT_COUNT; name++) {
        const loom_act_row *row = &loom_act_table[name];
        const loom_dtype dtype = row->shape == LOOM_ACT_PER_CHANNEL ? g->precision.storage : g->device->statistics;
        const size_t size = loom_bytes(loom_act_elements(name, &g->config, g->B, g->T), dtype);
        const bool kept = row->kept & policy;
        void *shared = kept ? NULL : loom_arena_take(arena, "scratch", size);
        for (int64_t l = 0; l < g->config.n_layer; l++)
            g->acts[l][name] = kept ? loom_arena_take(arena, "activations", size) : shared;
    }
}

void loom_gpt_lay_out(loom_gpt *g, loom_arena *arena) {
    const int64_t N = g->B * g->T, C = g->config.n_embd;
    const int64_t elements = g->layout.elements;
    const loom_dtype storage = g->precision.storage, statistic = g->device->statistics;
    const bool training = g->purpose == LOOM_GPT_TRAIN;
    g->parameters = g->master = loom_arena_take(arena, "parameters", loom_bytes(elements, storage));
    if (loom_has_master(&g->precision))
        g->master = loom_arena_take(arena, "master weights", loom_bytes(elements, g->precision.master));
    if (training) g->gradients = loom_arena_take(arena, "gradients", loom_bytes(elements, g->precision.gradient));
    lay_out_activations(g, arena);
    g->delta = loom_arena_take(arena, "activations", loom_bytes(N * C, storage));
    g->last = loom_arena_take(arena, "activations", loom_bytes(N * C, storage));
    g->lnf = loom_arena_take(arena, "activations", loom_bytes(N * C, storage));
    g->meanf = loom_arena_take(arena, "activations", loom_bytes(N, statistic));
    g->rstdf = loom_arena_take(arena, "activations", loom_bytes(N, statistic));
    g->logits = loom_arena_take(arena, "logits", loom_bytes(g->chunk_rows * g->padded_vocabulary, storage));
    if (loom_logits_are_narrow(g))
        g->last_logits = loom_arena_take(arena, "logits", loom_bytes(g->padded_vocabulary, LOOM_F32));
    if (training) {
        g->dresidual = loom_arena_take(arena, "activation gradients", loom_bytes(N * C, storage));
        g->dnarrow = loom_arena_take(arena, "activation gradients", loom_bytes(N * C, storage));
        g->dwide = loom_arena_take(arena, "activation gradients", loom_bytes(N * 4 * C, storage));
    }
    g->exec.workspace = loom_arena_take(arena, "workspace", g->workspace_bytes);
    g->exec.workspace_bytes = g->workspace_bytes;
    g->losses = loom_arena_take(arena, "batch", loom_bytes(N, statistic));
    g->tokens = loom_arena_take(arena, "batch", loom_bytes(N, LOOM_I32));
    g->targets = loom_arena_take(arena, "batch", loom_bytes(N, LOOM_I32));
    g->scalars = loom_arena_take(arena, "batch", sizeof *g->scalars);
}

/* All of a layout's memory, gaps included, as one matrix. */
static loom_view whole_layout(const loom_gpt *g, void *data, loom_dtype dtype) {
    return loom_view_2d(data, dtype, g->layout.elements / 128, 128);
}

void loom_gpt_copy_master(loom_gpt *g) {
    if (!loom_has_master(&g->precision)) return;
    g->exec.ops->cast(&g->exec, &(struct loom_cast){.out = whole_layout(g, g->parameters, g->precision.storage),
                                                    .x = whole_layout(g, g->master, g->precision.master)});
}

static void clear(loom_gpt *g, void *data, loom_dtype dtype) {
    g->exec.ops->fill(&g->exec, &(struct loom_fill){.out = whole_layout(g, data, dtype)});
}

bool loom_gpt_make_plans(loom_gpt *g, loom_error *error) {
    if (!g->planned) g->planned = walk_with(g, loom_preparing_ops(), error);
    return g->planned;
}

bool loom_gpt_prepare(loom_gpt *g, loom_error *error) {
    const loom_scalars scalars = {.state.loss_scale = 1};
    if (!loom_gpt_make_plans(g, error)) return false;
    g->device->copy(g->device, g->exec.stream, g->scalars, &scalars, sizeof scalars, LOOM_HOST_TO_DEVICE);
    clear(g, g->parameters, g->precision.storage);
    if (loom_has_master(&g->precision)) clear(g, g->master, g->precision.master);
    if (g->gradients) clear(g, g->gradients, g->precision.gradient);
    return g->device->synchronize(g->device, g->exec.stream, error);
}

/* ----------------------------------------------------------------------------------------------------------- accessors */

void loom_gpt_set_batch(loom_gpt *g, const int32_t *tokens, const int32_t *targets, loom_copy_kind kind) {
    const size_t size = loom_bytes(g->B * g->T, LOOM_I32);
    g->device->copy(g->device, g->exec.stream, g->tokens, tokens, size, kind);
    g->device->copy(g->device, g->exec.stream, g->targets, targets, size, kind);
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

loom_exec *loom_gpt_get_exec(loom_gpt *g) {
    return &g->exec;
}

void *loom_gpt_get_parameters(loom_gpt *g) {
    return g->parameters;
}

const loom_precision *loom_gpt_get_precision(const loom_gpt *g) {
    return &g->precision;
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

loom_scalars *loom_gpt_get_scalars(loom_gpt *g) {
    return g->scalars;
}
