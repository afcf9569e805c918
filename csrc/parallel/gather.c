#include "parallel/parallel.h"

/* Weights that ranks update share by share, on their way to all of them. */

static void gather(loom_parallel *p, int bucket) {
    const loom_shard *shard = loom_gpt_get_shard(p->gpt, bucket);
    p->gathering[bucket] = loom_comm_all_gather(p->comm, NULL, loom_gpt_bucket_parameters(p->gpt, bucket),
                                                shard->parameters, shard->elements,
                                                loom_gpt_get_precision(p->gpt)->storage);
}

/* Whether a bucket's weights are whole for a while only. */
static bool is_passing(const loom_parallel *p, int bucket) {
    return p->sharding.zero >= 3 && loom_parallel_is_block(p, bucket);
}

/* Begins to gather a block's weights where they are not there. The slot is free: whoever used it last comes before in
 * the stream; a block that was fetched too early and never waited for, among the operations. */
static void fetch(loom_parallel *p, int bucket) {
    const int slot = loom_gpt_bucket_slot(p->gpt, bucket);
    if (p->gathered[slot] == bucket) return;
    p->gathered[slot] = bucket;
    gather(p, bucket);
}

/* Waits for a bucket's weights, and lets those of the next block come beside what is computed with these. */
void loom_parallel_before_weights(void *user, int bucket, int next) {
    loom_parallel *p = user;
    if (p->sharding.zero == 0) return;
    if (is_passing(p, bucket)) fetch(p, bucket);
    loom_parallel_wait(p, &p->gathering[bucket]);
    if (next >= 0 && is_passing(p, next) && loom_gpt_bucket_slot(p->gpt, next) != loom_gpt_bucket_slot(p->gpt, bucket))
        fetch(p, next);
}

/* A shard was written: what is whole becomes so again, what was passing is not there any more. */
void loom_parallel_after_update(void *user, int bucket) {
    loom_parallel *p = user;
    const int slot = loom_gpt_bucket_slot(p->gpt, bucket);
    if (p->sharding.zero == 0) return;
    if (!is_passing(p, bucket))
        gather(p, bucket);
    else if (p->gathered[slot] == bucket)
        p->gathered[slot] = -1;
}

bool loom_parallel_gather(loom_parallel *p, loom_error *error) {
    const int n = loom_gpt_get_layout(p->gpt)->n_buckets;
    for (int b = 0; b < n; b++) loom_parallel_after_update(p, b);
    loom_parallel_settle(p);
    loom_device *device = loom_gpt_get_device(p->gpt);
    return loom_parallel_ok(p, error) && (p->sharding.ranks > 1 ? loom_comm_synchronize(p->comm, NULL, error)
                                                                : device->synchronize(device, NULL, error));
}

void loom_parallel_settle(loom_parallel *p) {
    const int n = loom_gpt_get_layout(p->gpt)->n_buckets;
    for (int b = 0; b < n; b++) loom_parallel_wait(p, &p->gathering[b]);
}

/* Each rank has the sums of its own sequences, and of its own blocks of squares, beside zeros. */
void loom_parallel_after_sums(void *user) {
    loom_parallel *p = user;
    const loom_optimizer *o = p->optimizer;
    const loom_dtype dtype = loom_gpt_get_device(p->gpt)->statistics;
    const int ranks = p->sharding.ranks, rank = p->sharding.rank;
    if (ranks == 1) return;
    const int64_t own = o->sequences / ranks;
    loom_comm_op_id last = loom_comm_all_gather(p->comm, NULL, o->losses, loom_element(o->losses, rank * own, dtype),
                                                own, dtype);
    if (p->sharding.zero >= 1) last = loom_comm_all_reduce(p->comm, NULL, o->squares, o->squares, o->n_squares, dtype);
    loom_parallel_wait(p, &last);
}
