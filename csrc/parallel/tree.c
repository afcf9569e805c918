#include "parallel/parallel.h"

/* Sums in the order of a binary tree over a step's micro-batches
 *
 *     0   1   2   3   4   5   6   7
 *     +---+   +---+   +---+   +---+
 *       +-------+       +-------+
 *           +---------------+
 *
 * of which each of 2^n ranks has run 2^m in a row: a subtree. Within it a binary counter keeps what waits for a
 * partner: when i micro-batches are done, level k holds the sum of 2^k of them where bit k of i is set. */

static loom_dtype dtype_of(const loom_parallel *p) {
    return loom_gpt_get_precision(p->gpt)->gradient;
}

/* A bucket of a level. */
static void *in_level(loom_parallel *p, int level, int bucket) {
    return loom_element(p->level[level], loom_gpt_get_layout(p->gpt)->bucket[bucket].offset, dtype_of(p));
}

void loom_parallel_carry(loom_parallel *p, int bucket) {
    loom_device *device = loom_gpt_get_device(p->gpt);
    const int64_t count = loom_gpt_get_layout(p->gpt)->bucket[bucket].elements;
    const bool last = p->micro_batch + 1 == p->micro_batches;
    void *sum = loom_gpt_bucket_gradients(p->gpt, bucket);
    int level = 0;
    while (p->micro_batch >> level & 1) {
        /* The last addition before it rests goes to where it rests. */
        const bool rests = !last && !(p->micro_batch >> (level + 1) & 1);
        void *to = rests ? in_level(p, level + 1, bucket) : sum;
        loom_parallel_add(p, to, in_level(p, level, bucket), sum, count);
        level++;
    }
    if (level == 0 && !last)
        device->copy(device, NULL, in_level(p, 0, bucket), sum, (size_t)count * loom_dtype_size(dtype_of(p)),
                     LOOM_DEVICE_TO_DEVICE);
}

/* Rank `from`'s sum of this rank's share: its own lies among its gradients, the others' where they have arrived. */
static void *sum_of(loom_parallel *p, int bucket, int from) {
    const int rank = p->sharding.rank;
    const int64_t share = loom_gpt_get_layout(p->gpt)->bucket[bucket].elements / p->sharding.ranks;
    if (from == rank) return loom_element(loom_gpt_bucket_gradients(p->gpt, bucket), rank * share, dtype_of(p));
    return loom_element(p->arrived[loom_gpt_bucket_slot(p->gpt, bucket)], (from - (from > rank)) * share, dtype_of(p));
}

/* With each other rank in turn. Operations run in order: who waits for the last has waited for all. */
loom_comm_op_id loom_parallel_exchange(loom_parallel *p, int bucket) {
    const int ranks = p->sharding.ranks, rank = p->sharding.rank;
    const int64_t share = loom_gpt_get_layout(p->gpt)->bucket[bucket].elements / ranks;
    loom_comm_op_id op_id = 0;
    for (int shift = 1; shift < ranks; shift++) {
        const int to = (rank + shift) % ranks, from = (rank - shift + ranks) % ranks;
        op_id = loom_comm_exchange(p->comm, NULL, sum_of(p, bucket, from), share, from,
                                   loom_element(loom_gpt_bucket_gradients(p->gpt, bucket), to * share, dtype_of(p)),
                                   share, to, dtype_of(p));
    }
    return op_id;
}

/* The sum ends in this rank's share of its gradients. */
void loom_parallel_add_ranks(loom_parallel *p, int bucket) {
    const int ranks = p->sharding.ranks;
    const int64_t share = loom_gpt_get_layout(p->gpt)->bucket[bucket].elements / ranks;
    for (int stride = 1; stride < ranks; stride *= 2)
        for (int r = 0; r < ranks; r += 2 * stride)
            loom_parallel_add(p, sum_of(p, bucket, 2 * stride == ranks ? p->sharding.rank : r), sum_of(p, bucket, r),
                              sum_of(p, bucket, r + stride), share);
}
