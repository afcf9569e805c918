/* Data parallelism: how the gradients of a step's micro-batches, of one rank and of several, become one sum, and how
 * weights that were updated share by share become whole again (loom_sharding, in model.h, says what a rank holds).
 *
 *   zero 0  whole gradients are all-reduced, each bucket as soon as the last micro-batch's backward has written it
 *   zero 1  the same, but each rank gets only its share of the sum and updates that; weights are gathered afterwards
 *   zero 2  each micro-batch's gradients are reduce-scattered, and added to the rank's share
 *   zero 3  and layers' weights are gathered when they are used, one layer ahead of computing
 *   deterministic   the bits of a sum depend on the step's micro-batches only, and not on how many ranks ran them. The
 *           micro-batches are the leaves of a binary tree, in their order. Those of one rank are a subtree, for whose sums
 *           the rank keeps log2 of their number further gradients. Then each rank receives all ranks' sums of its share,
 *           and adds them in the order of the tree
 *
 * All of this happens in the hooks of the model and the optimizer, and runs beside computing where the communicator can
 * (comm/collectives.h). A failure is kept until loom_parallel_ok is asked. */
#ifndef LOOM_PARALLEL_DATA_PARALLEL_H
#define LOOM_PARALLEL_DATA_PARALLEL_H

#include "comm/collectives.h"
#include "optim/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The levels of a tree of at most 2^30 micro-batches. */
enum { LOOM_MOST_LEVELS = 30 };

typedef struct loom_parallel {
    loom_gpt *gpt;
    loom_comm *comm;
    loom_optimizer *optimizer;
    loom_sharding sharding;
    int64_t micro_batches; /* of this rank in a step */
    int64_t micro_batch;   /* the one that runs */
    bool failed;
    loom_error failure;
    /* Gradients. Buckets that share a slot (loom_gpt_bucket_slot) take turns with the memory of these. */
    int levels;
    void *level[LOOM_MOST_LEVELS]; /* deterministic: sums of 1, 2, 4 .. micro-batches, in the layout */
    void *arrived
        [LOOM_BUCKET_SLOTS]; /* zero 2, 3: a share of the sum over ranks; deterministic: other ranks' sums of it */
    int in_slot[LOOM_BUCKET_SLOTS]; /* the bucket that has it now; -1: none */
    loom_comm_op_id *reduction;     /* [n_buckets] under way; 0: none */
    loom_comm_op_id *returning;     /* [n_buckets] deterministic, zero 0: sums on their way to all */
    bool *adds;                     /* [n_buckets] what arrives is to be added to the share */
    /* Weights. */
    loom_comm_op_id *gathering;      /* [n_buckets] under way, or done but not waited for; 0: none */
    int gathered[LOOM_BUCKET_SLOTS]; /* zero 3: the block whose weights are there; -1: none */
} loom_parallel;

/* Memory for a rank's `micro_batches` in a step; once measuring, once for real. The model is laid out. */
void loom_parallel_lay_out(loom_parallel *parallel, loom_gpt *gpt, int64_t micro_batches, loom_arena *arena);

/* Takes the hooks of the model and the optimizer, which are prepared; the communicator is attached to their device. */
bool loom_parallel_open(loom_parallel *parallel, loom_comm *comm, loom_optimizer *optimizer, loom_error *error);
void loom_parallel_close(loom_parallel *parallel);

/* Makes weights whole after each rank has written its shards. */
bool loom_parallel_gather(loom_parallel *parallel, loom_error *error);

/* The step's micro-batch `i`, of this rank, begins. */
void loom_parallel_begin(loom_parallel *parallel, int64_t i);

/* Whether backward adds a further micro-batch's gradients itself (loom_gpt_train's accumulate). */
bool loom_parallel_accumulates(const loom_parallel *parallel);

/* Whether the hooks exchange nothing in micro-batch `i`, and at most wait for weights. Such a micro-batch can be
 * captured as a graph; it is launched after loom_parallel_settle(). */
bool loom_parallel_is_quiet(const loom_parallel *parallel, int64_t i);

/* The same of the update, once each rank has the sums of all: true where weights are not sharded. */
bool loom_parallel_updates_quietly(const loom_parallel *parallel);

/* After the last backward: the default stream's next work finds the sums of all gradients. */
void loom_parallel_reduce(loom_parallel *parallel);

/* The default stream's next work finds all gathered weights. */
void loom_parallel_settle(loom_parallel *parallel);

/* Whether nothing has failed so far. */
bool loom_parallel_ok(const loom_parallel *parallel, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
