/* What the hooks (gather.c, reduce.c, tree.c) and parallel.c, which installs them, both call. */
#include "parallel/parallel.h"

loom_reduction loom_parallel_reduction(const loom_parallel *p) {
    if (p->sharding.deterministic) return LOOM_REDUCE_TREE;
    if (p->sharding.ranks == 1) return LOOM_REDUCE_NOTHING;
    static const loom_reduction by_stage[] = {LOOM_REDUCE_ALL, LOOM_REDUCE_SCATTER, LOOM_REDUCE_EACH, LOOM_REDUCE_EACH};
    return by_stage[p->sharding.zero];
}

bool loom_parallel_is_block(const loom_parallel *p, int bucket) {
    return loom_gpt_bucket_slot(p->gpt, bucket) >= 2;
}

void loom_parallel_add(loom_parallel *p, void *out, void *a, void *b, int64_t count) {
    loom_context *ctx = loom_gpt_get_context(p->gpt);
    const loom_dtype dtype = loom_gpt_get_precision(p->gpt)->gradient;
    ctx->ops->add(ctx, &(struct loom_add){.out = loom_view_1d(out, dtype, count),
                                          .a = loom_view_1d(a, dtype, count),
                                          .b = loom_view_1d(b, dtype, count)});
}

void loom_parallel_wait(loom_parallel *p, loom_comm_op_id *op_id) {
    if (*op_id && !p->failed) p->failed = !loom_comm_wait(p->comm, *op_id, NULL, &p->failure);
    *op_id = 0;
}

bool loom_parallel_ok(const loom_parallel *p, loom_error *error) {
    return !p->failed || loom_fail(error, "%s", p->failure.message);
}
