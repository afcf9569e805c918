#include "parallel/parallel.h"

#include "base/check.h"

#include <stdlib.h>

/* -------------------------------------------------------------------------------------------------------------- memory */

/* What arrives from other ranks: a share for each slot of REDUCE_EACH; all shares but the own one of REDUCE_TREE. */
static void lay_out_arrivals(loom_parallel *p, loom_arena *arena) {
    const loom_layout *layout = loom_gpt_get_layout(p->gpt);
    const size_t size = loom_dtype_size(loom_gpt_get_precision(p->gpt)->gradient);
    const loom_reduction reduction = loom_parallel_reduction(p);
    const int64_t shares = reduction == LOOM_REDUCE_TREE                           ? p->sharding.ranks - 1
                           : reduction == LOOM_REDUCE_EACH && p->micro_batches > 1 ? 1
                                                                                   : 0;
    bool taken[LOOM_BUCKET_SLOTS] = {false};
    for (int b = 0; shares > 0 && b < layout->n_buckets; b++) {
        const int slot = loom_gpt_bucket_slot(p->gpt, b);
        const int64_t share = layout->bucket[b].elements / p->sharding.ranks;
        if (!taken[slot]) p->arrived[slot] = loom_arena_take(arena, "communication", (size_t)(shares * share) * size);
        taken[slot] = true;
    }
}

void loom_parallel_lay_out(loom_parallel *p, loom_gpt *gpt, int64_t micro_batches, loom_arena *arena) {
    const loom_sharding *sharding = loom_gpt_get_sharding(gpt);
    const size_t size = loom_dtype_size(loom_gpt_get_precision(gpt)->gradient);
    *p = (loom_parallel){.gpt = gpt, .sharding = *sharding, .micro_batches = micro_batches};
    LOOM_CHECK(loom_micro_batches_divide(micro_batches * sharding->ranks, 1, sharding));
    if (sharding->deterministic)
        while (INT64_C(1) << p->levels < micro_batches) {
            LOOM_CHECK(p->levels < LOOM_MOST_LEVELS);
            p->level[p->levels++] = loom_arena_take(arena, "gradient tree",
                                                    (size_t)loom_gpt_get_layout(gpt)->elements * size);
        }
    lay_out_arrivals(p, arena);
}

/* --------------------------------------------------------------------------------------------------- opening and closing */

static bool synchronize(void *user, loom_error *error) {
    loom_parallel *p = user;
    return loom_parallel_ok(p, error) && loom_comm_synchronize(p->comm, NULL, error);
}

bool loom_parallel_open(loom_parallel *p, loom_comm *comm, loom_optimizer *optimizer, loom_error *error) {
    const size_t n = (size_t)loom_gpt_get_layout(p->gpt)->n_buckets;
    LOOM_CHECK(comm->size == p->sharding.ranks && comm->rank == p->sharding.rank);
    p->comm = comm;
    p->optimizer = optimizer;
    for (int slot = 0; slot < LOOM_BUCKET_SLOTS; slot++) p->in_slot[slot] = p->gathered[slot] = -1;
    p->reduction = calloc(n, sizeof *p->reduction);
    p->returning = calloc(n, sizeof *p->returning);
    p->gathering = calloc(n, sizeof *p->gathering);
    p->adds = calloc(n, sizeof *p->adds);
    if (!p->reduction || !p->returning || !p->gathering || !p->adds)
        return loom_fail(error, "no memory for what %d ranks share", comm->size);
    loom_gpt_set_hooks(p->gpt, &(loom_gpt_hooks){.params_acquire = loom_parallel_before_weights,
                                                 .grads_acquire = loom_parallel_before_gradient,
                                                 .grads_ready = loom_parallel_after_gradient,
                                                 .synchronize = synchronize,
                                                 .user = p});
    optimizer->hooks = (loom_optimizer_hooks){
        .summed = loom_parallel_after_sums, .updated = loom_parallel_after_update, .user = p};
    return true;
}

void loom_parallel_close(loom_parallel *p) {
    free(p->reduction);
    free(p->returning);
    free(p->gathering);
    free(p->adds);
    *p = (loom_parallel){0};
}

/* -------------------------------------------------------------------------------------------------------- a step's course */

void loom_parallel_begin(loom_parallel *p, int64_t i) {
    p->micro_batch = i;
}

bool loom_parallel_accumulates(const loom_parallel *p) {
    const loom_reduction reduction = loom_parallel_reduction(p);
    return reduction != LOOM_REDUCE_EACH && reduction != LOOM_REDUCE_TREE;
}

bool loom_parallel_is_quiet(const loom_parallel *p, int64_t i) {
    const bool last = i + 1 == p->micro_batches;
    return p->sharding.zero < 3 && loom_parallel_accumulates(p) && (p->sharding.ranks == 1 || !last);
}

bool loom_parallel_updates_quietly(const loom_parallel *p) {
    return p->sharding.zero == 0;
}
