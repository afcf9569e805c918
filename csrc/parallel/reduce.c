#include "parallel/parallel.h"

/* A rank's gradients on their way into the sum over ranks. */

/* Of zero 0 all ranks have all sums again. */
static loom_comm_op_id return_sums(loom_parallel *p, int bucket) {
    const loom_dtype dtype = loom_gpt_get_precision(p->gpt)->gradient;
    const int64_t share = loom_gpt_get_layout(p->gpt)->bucket[bucket].elements / p->sharding.ranks;
    void *all = loom_gpt_bucket_gradients(p->gpt, bucket);
    return loom_comm_all_gather(p->comm, NULL, all, loom_element(all, p->sharding.rank * share, dtype), share, dtype);
}

/* Waits for a bucket's reduction, if one is under way, and does what is left to do. */
static void finish(loom_parallel *p, int bucket) {
    const loom_shard *shard = loom_gpt_get_shard(p->gpt, bucket);
    const int slot = loom_gpt_bucket_slot(p->gpt, bucket);
    if (!p->reduction[bucket]) return;
    loom_parallel_wait(p, &p->reduction[bucket]);
    if (p->in_slot[slot] == bucket) p->in_slot[slot] = -1;
    if (loom_parallel_reduction(p) == LOOM_REDUCE_TREE) {
        loom_parallel_add_ranks(p, bucket);
        if (p->sharding.zero == 0) p->returning[bucket] = return_sums(p, bucket);
    } else if (p->adds[bucket]) {
        loom_parallel_add(p, shard->gradient, shard->gradient, p->arrived[slot], shard->elements);
    }
}

/* Makes a slot free, for a bucket. */
static void take_slot(loom_parallel *p, int bucket) {
    const int slot = loom_gpt_bucket_slot(p->gpt, bucket);
    if (p->in_slot[slot] >= 0) finish(p, p->in_slot[slot]);
    p->in_slot[slot] = bucket;
}

static loom_comm_op_id reduce_scatter(loom_parallel *p, int bucket, void *out) {
    return loom_comm_reduce_scatter(p->comm, NULL, out, loom_gpt_bucket_gradients(p->gpt, bucket),
                                    loom_gpt_get_shard(p->gpt, bucket)->elements,
                                    loom_gpt_get_precision(p->gpt)->gradient);
}

/* Where gradients have slots only for a while, the one before must have left. */
void loom_parallel_before_gradient(void *user, int bucket) {
    loom_parallel *p = user;
    if (loom_parallel_reduction(p) == LOOM_REDUCE_EACH) take_slot(p, bucket);
}

void loom_parallel_after_gradient(void *user, int bucket) {
    loom_parallel *p = user;
    const bool last = p->micro_batch + 1 == p->micro_batches;
    const loom_shard *shard = loom_gpt_get_shard(p->gpt, bucket);
    void *gradients = loom_gpt_bucket_gradients(p->gpt, bucket);
    switch (loom_parallel_reduction(p)) {
    case LOOM_REDUCE_NOTHING: break;
    case LOOM_REDUCE_ALL:
        if (last)
            p->reduction[bucket] = loom_comm_all_reduce(p->comm, NULL, gradients, gradients, shard->elements,
                                                        loom_gpt_get_precision(p->gpt)->gradient);
        break;
    case LOOM_REDUCE_SCATTER:
        if (last) p->reduction[bucket] = reduce_scatter(p, bucket, shard->gradient);
        break;
    case LOOM_REDUCE_EACH:
        p->adds[bucket] = p->micro_batch > 0;
        p->reduction[bucket] = reduce_scatter(
            p, bucket, p->adds[bucket] ? p->arrived[loom_gpt_bucket_slot(p->gpt, bucket)] : shard->gradient);
        break;
    case LOOM_REDUCE_TREE:
        loom_parallel_carry(p, bucket);
        if (!last || p->sharding.ranks == 1) break;
        take_slot(p, bucket);
        p->reduction[bucket] = loom_parallel_exchange(p, bucket);
        break;
    }
}

void loom_parallel_reduce(loom_parallel *p) {
    /* In the order in which backward gave them. */
    const int n = loom_gpt_get_layout(p->gpt)->n_buckets;
    for (int b = n - 1; b >= 0; b--) finish(p, b);
    for (int b = n - 1; b >= 0; b--) loom_parallel_wait(p, &p->returning[b]);
}
