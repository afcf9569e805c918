#include "optim/optimizer.h"

#include "base/check.h"
#include "optim/decay.h"

/* The number of ranks among which the update is divided. */
static int sharers(const loom_gpt *gpt) {
    const loom_sharding *sharding = loom_gpt_get_sharding(gpt);
    return sharding->zero >= 1 ? sharding->ranks : 1;
}

/* The elements that this rank updates: those of all buckets, or of its shares of them. */
static int64_t elements_of_shards(const loom_gpt *gpt) {
    return loom_gpt_get_layout(gpt)->elements / sharers(gpt);
}

void loom_optimizer_lay_out(loom_optimizer *o, loom_gpt *gpt, int64_t sequences, loom_arena *arena) {
    const loom_layout *layout = loom_gpt_get_layout(gpt);
    const loom_device *device = loom_gpt_get_device(gpt);
    const size_t bytes = (size_t)elements_of_shards(gpt) * loom_dtype_size(loom_gpt_get_precision(gpt)->moment);
    o->gpt = gpt;
    o->sequences = sequences;
    o->n_squares = 0;
    for (int b = 0; b < layout->n_buckets; b++) o->n_squares += layout->bucket[b].blocks;
    o->moment1 = loom_arena_take(arena, "moments", bytes);
    o->moment2 = loom_arena_take(arena, "moments", bytes);
    o->squares = loom_arena_take(arena, "batch", (size_t)o->n_squares * loom_dtype_size(device->statistics));
    o->losses = loom_arena_take(arena, "batch", (size_t)sequences * loom_dtype_size(device->statistics));
}

int64_t loom_optimizer_moments_at(const loom_optimizer *o, int bucket) {
    return loom_gpt_get_layout(o->gpt)->bucket[bucket].offset / sharers(o->gpt);
}

float loom_loss_scale_at_first(const loom_precision *precision) {
    return precision->storage == LOOM_F16 ? 0x1p16f : 1;
}

int32_t loom_loss_scale_interval(const loom_precision *precision) {
    return precision->storage == LOOM_F16 ? 2000 : 0;
}

/* Runs the update over another table of ops, to size or prepare it. Its ops need no more workspace than the model's. */
static bool visit_with(loom_optimizer *o, const loom_ops *ops, loom_error *error) {
    loom_context *ctx = loom_gpt_get_context(o->gpt);
    const loom_context before = *ctx;
    const loom_optimizer_hooks hooks = o->hooks;
    o->hooks = (loom_optimizer_hooks){0};
    ctx->ops = ops;
    ctx->error = error;
    ctx->failed = false;
    loom_optimizer_update(o);
    LOOM_CHECK(ctx->workspace_bytes == before.workspace_bytes);
    const bool ok = !ctx->failed;
    *ctx = before;
    o->hooks = hooks;
    return ok;
}

bool loom_optimizer_prepare(loom_optimizer *o, loom_error *error) {
    if (!visit_with(o, loom_planning_ops(), error) || !visit_with(o, loom_preparing_ops(), error)) return false;
    loom_context *ctx = loom_gpt_get_context(o->gpt);
    const int64_t elements = elements_of_shards(o->gpt);
    const loom_dtype moment = loom_gpt_get_precision(o->gpt)->moment;
    void *moments[] = {o->moment1, o->moment2};
    for (int i = 0; i < 2; i++)
        ctx->ops->fill(ctx, &(struct loom_fill){.out = loom_view_2d(moments[i], moment, elements / 128, 128)});
    return ctx->device->synchronize(ctx->device, ctx->stream, error);
}

void loom_optimizer_take_losses(loom_optimizer *o, int64_t first, int64_t B) {
    loom_context *ctx = loom_gpt_get_context(o->gpt);
    const loom_dtype statistics = ctx->device->statistics;
    ctx->device->copy(ctx->device, ctx->stream, loom_element(o->losses, first, statistics),
                      loom_gpt_get_loss_sums(o->gpt), (size_t)B * loom_dtype_size(statistics), LOOM_DEVICE_TO_DEVICE);
}

/* The sums of squares of the blocks in this rank's shards; a shard is made of whole blocks. Where ranks divide the
 * update, the sums of other ranks' blocks are 0 here, so that the sum over ranks has each block's sum without rounding
 * it. */
void loom_optimizer_sum_squares(loom_optimizer *o) {
    loom_context *ctx = loom_gpt_get_context(o->gpt);
    const loom_layout *layout = loom_gpt_get_layout(o->gpt);
    const loom_dtype statistics = ctx->device->statistics;
    const loom_dtype gradient = loom_gpt_get_precision(o->gpt)->gradient;
    int64_t before = 0;
    if (sharers(o->gpt) > 1)
        ctx->ops->fill(ctx, &(struct loom_fill){.out = loom_view_1d(o->squares, statistics, o->n_squares)});
    for (int b = 0; b < layout->n_buckets; b++) {
        const loom_bucket *bucket = &layout->bucket[b];
        const loom_shard *shard = loom_gpt_get_shard(o->gpt, b);
        const int64_t block = bucket->elements / bucket->blocks, first = before + shard->first / block;
        ctx->ops->block_sum(
            ctx, &(struct loom_block_sum){.partials = loom_view_1d(loom_element(o->squares, first, statistics),
                                                                   statistics, shard->elements / block),
                                          .x = loom_view_1d(shard->gradient, gradient, shard->elements),
                                          .block = block,
                                          .square = true});
        before += bucket->blocks;
    }
}

/* A range of a bucket's elements, in memory whose first element is the shard's first one. */
static loom_view part(const loom_shard *shard, loom_element_range r, void *data, loom_dtype dtype) {
    return loom_view_1d(loom_element(data, r.first - shard->first, dtype), dtype, r.last - r.first);
}

/* The counter of an element's random number in stochastic rounding follows from its bucket and its place there, and so
 * does not depend on the number of ranks. */
static int64_t random_place(int bucket, int64_t place) {
    return ((int64_t)bucket << 40) + place;
}

static void update_part(loom_optimizer *o, int bucket, loom_element_range r, const loom_ranges *decayed) {
    loom_context *ctx = loom_gpt_get_context(o->gpt);
    const loom_precision *precision = loom_gpt_get_precision(o->gpt);
    const loom_shard *shard = loom_gpt_get_shard(o->gpt, bucket);
    const int64_t moments = loom_optimizer_moments_at(o, bucket);
    struct loom_adamw a = {
        .parameter = part(shard, r, shard->master, precision->master),
        .gradient = part(shard, r, shard->gradient, precision->gradient),
        .moment1 = part(shard, r, loom_element(o->moment1, moments, precision->moment), precision->moment),
        .moment2 = part(shard, r, loom_element(o->moment2, moments, precision->moment), precision->moment),
        .scalars = loom_gpt_get_scalars(o->gpt),
        .decayed = *decayed,
        .seed = o->seed,
        .first = random_place(bucket, r.first)};
    if (precision->master != precision->storage) a.copy = part(shard, r, shard->parameters, precision->storage);
    ctx->ops->adamw(ctx, &a);
}

/* Updates a bucket's shard, with the gaps between its tensors, by one op, or by several where it has more ranges of
 * elements that decay than one op takes. */
static void update_bucket(loom_optimizer *o, int bucket) {
    const loom_shard *shard = loom_gpt_get_shard(o->gpt, bucket);
    const int64_t end = shard->first + shard->elements;
    loom_element_range r = {.last = shard->first};
    while (r.last < end) {
        loom_ranges decayed;
        r.first = r.last;
        r.last = loom_decayed_ranges(loom_gpt_get_layout(o->gpt), bucket, (loom_element_range){r.first, end}, &decayed);
        update_part(o, bucket, r, &decayed);
    }
}

void loom_optimizer_share_sums(loom_optimizer *o) {
    if (o->hooks.summed) o->hooks.summed(o->hooks.user);
}

void loom_optimizer_apply(loom_optimizer *o) {
    loom_context *ctx = loom_gpt_get_context(o->gpt);
    const loom_layout *layout = loom_gpt_get_layout(o->gpt);
    const loom_dtype statistics = ctx->device->statistics;
    ctx->ops->optimizer_scalars(
        ctx, &(struct loom_optimizer_scalars){.scalars = loom_gpt_get_scalars(o->gpt),
                                              .losses = loom_view_1d(o->losses, statistics, o->sequences),
                                              .squares = loom_view_1d(o->squares, statistics, o->n_squares)});
    for (int b = 0; b < layout->n_buckets; b++) {
        update_bucket(o, b);
        if (o->hooks.updated) o->hooks.updated(o->hooks.user, b);
    }
}

void loom_optimizer_update(loom_optimizer *o) {
    loom_optimizer_sum_squares(o);
    loom_optimizer_share_sums(o);
    loom_optimizer_apply(o);
}
