#include "gptloom/optim.h"

#include "base/check.h"

static void *advance(void *data, int64_t elements, loom_dtype dtype) {
    return data ? (char *)data + (size_t)elements * loom_dtype_size(dtype) : NULL;
}

void loom_optimizer_lay_out(loom_optimizer *o, loom_gpt *gpt, int64_t sequences, loom_arena *arena) {
    const loom_layout *layout = loom_gpt_get_layout(gpt);
    const loom_device *device = loom_gpt_get_device(gpt);
    const size_t bytes = (size_t)layout->elements * loom_dtype_size(loom_gpt_get_precision(gpt)->moment);
    o->gpt = gpt;
    o->sequences = sequences;
    o->n_squares = 0;
    for (int b = 0; b < layout->n_buckets; b++)
        o->n_squares += (layout->bucket[b].elements + LOOM_NORM_BLOCK - 1) / LOOM_NORM_BLOCK;
    o->moment1 = loom_arena_take(arena, "moments", bytes);
    o->moment2 = loom_arena_take(arena, "moments", bytes);
    o->squares = loom_arena_take(arena, "batch", (size_t)o->n_squares * loom_dtype_size(device->statistics));
    o->losses = loom_arena_take(arena, "batch", (size_t)sequences * loom_dtype_size(device->statistics));
}

float loom_loss_scale_at_first(const loom_precision *precision) {
    return precision->storage == LOOM_F16 ? 0x1p16f : 1;
}

int32_t loom_loss_scale_interval(const loom_precision *precision) {
    return precision->storage == LOOM_F16 ? 2000 : 0;
}

/* Runs the update's ops with another table. They take no workspace beyond the model's. */
static bool walk_with(loom_optimizer *o, const loom_ops *ops, loom_error *error) {
    loom_exec *exec = loom_gpt_get_exec(o->gpt);
    const loom_exec before = *exec;
    exec->ops = ops;
    exec->error = error;
    exec->failed = false;
    loom_optimizer_update(o);
    LOOM_CHECK(exec->workspace_bytes == before.workspace_bytes);
    const bool ok = !exec->failed;
    *exec = before;
    return ok;
}

bool loom_optimizer_prepare(loom_optimizer *o, loom_error *error) {
    if (!walk_with(o, loom_planning_ops(), error) || !walk_with(o, loom_preparing_ops(), error)) return false;
    loom_exec *exec = loom_gpt_get_exec(o->gpt);
    const int64_t elements = loom_gpt_get_layout(o->gpt)->elements;
    const loom_dtype moment = loom_gpt_get_precision(o->gpt)->moment;
    void *moments[] = {o->moment1, o->moment2};
    for (int i = 0; i < 2; i++)
        exec->ops->fill(exec, &(struct loom_fill){.out = loom_view_2d(moments[i], moment, elements / 128, 128)});
    return exec->device->synchronize(exec->device, exec->stream, error);
}

void loom_optimizer_sum_losses(loom_optimizer *o, int64_t first, int64_t B, int64_t T) {
    loom_exec *exec = loom_gpt_get_exec(o->gpt);
    const loom_dtype statistics = exec->device->statistics;
    exec->ops->block_sum(
        exec, &(struct loom_block_sum){.partials = loom_view_1d(advance(o->losses, first, statistics), statistics, B),
                                       .x = loom_view_1d(loom_gpt_get_losses(o->gpt), statistics, B * T),
                                       .block = T});
}

/* Each bucket is cut into blocks of its own, so that a rank that holds some buckets sums the same blocks. */
static void sum_squares(loom_optimizer *o) {
    loom_exec *exec = loom_gpt_get_exec(o->gpt);
    const loom_layout *layout = loom_gpt_get_layout(o->gpt);
    const loom_dtype statistics = exec->device->statistics;
    const loom_dtype gradient = loom_gpt_get_precision(o->gpt)->gradient;
    int64_t done = 0;
    for (int b = 0; b < layout->n_buckets; b++) {
        const loom_bucket *bucket = &layout->bucket[b];
        const int64_t blocks = (bucket->elements + LOOM_NORM_BLOCK - 1) / LOOM_NORM_BLOCK;
        void *gradients = advance(loom_gpt_get_gradients(o->gpt), bucket->offset, gradient);
        exec->ops->block_sum(exec,
                             &(struct loom_block_sum){
                                 .partials = loom_view_1d(advance(o->squares, done, statistics), statistics, blocks),
                                 .x = loom_view_1d(gradients, gradient, bucket->elements),
                                 .block = LOOM_NORM_BLOCK,
                                 .square = true});
        done += blocks;
    }
}

/* The part of memory in the layout that one parameter takes, padding included. */
static loom_view part(const loom_parameter *p, void *data, loom_dtype dtype) {
    return loom_view_1d(advance(data, p->offset, dtype), dtype, p->padded_rows * p->columns);
}

static void update_parameters(loom_optimizer *o) {
    loom_exec *exec = loom_gpt_get_exec(o->gpt);
    const loom_layout *layout = loom_gpt_get_layout(o->gpt);
    const loom_precision *precision = loom_gpt_get_precision(o->gpt);
    for (int i = 0; i < layout->n_parameters; i++) {
        const loom_parameter *p = &layout->parameter[i];
        struct loom_adamw a = {.parameter = part(p, loom_gpt_get_master(o->gpt), precision->master),
                               .gradient = part(p, loom_gpt_get_gradients(o->gpt), precision->gradient),
                               .moment1 = part(p, o->moment1, precision->moment),
                               .moment2 = part(p, o->moment2, precision->moment),
                               .scalars = loom_gpt_get_scalars(o->gpt),
                               .decay = p->decay,
                               .seed = o->seed,
                               .first = p->offset};
        if (precision->master != precision->storage)
            a.copy = part(p, loom_gpt_get_parameters(o->gpt), precision->storage);
        exec->ops->adamw(exec, &a);
    }
}

void loom_optimizer_update(loom_optimizer *o) {
    loom_exec *exec = loom_gpt_get_exec(o->gpt);
    const loom_dtype statistics = exec->device->statistics;
    sum_squares(o);
    exec->ops->step_scalars(exec,
                            &(struct loom_step_scalars){.scalars = loom_gpt_get_scalars(o->gpt),
                                                        .losses = loom_view_1d(o->losses, statistics, o->sequences),
                                                        .squares = loom_view_1d(o->squares, statistics, o->n_squares)});
    update_parameters(o);
}
