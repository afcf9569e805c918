/* What the files of csrc/parallel share. */
#ifndef LOOM_PARALLEL_PARALLEL_H
#define LOOM_PARALLEL_PARALLEL_H

#include "parallel/data_parallel.h"

/* How the gradients of a step's micro-batches on all ranks are added up. */
typedef enum loom_reduction {
    LOOM_REDUCE_NOTHING, /* there is one rank, and backward adds up its micro-batches */
    LOOM_REDUCE_ALL,     /* backward adds, and the sums are all-reduced in the last micro-batch */
    LOOM_REDUCE_SCATTER, /* the same, with a reduce-scatter */
    LOOM_REDUCE_EACH,    /* each micro-batch's gradients are reduce-scattered, and added to the rank's share */
    LOOM_REDUCE_TREE     /* in the order of a tree, for sums that do not depend on the number of ranks */
} loom_reduction;

loom_reduction loom_parallel_reduction(const loom_parallel *parallel);

/* What is put into the default stream from now on waits for an operation. A failure is kept in `parallel`. */
void loom_parallel_wait(loom_parallel *parallel, loom_comm_op_id *op_id);

/* Whether the bucket is a layer's. */
bool loom_parallel_is_block(const loom_parallel *parallel, int bucket);

/* out (count) = a + b, in the type of gradients. */
void loom_parallel_add(loom_parallel *parallel, void *out, void *a, void *b, int64_t count);

/* Gradients (reduce.c, tree.c): the model's hooks. */
void loom_parallel_before_gradient(void *parallel, int bucket);
void loom_parallel_after_gradient(void *parallel, int bucket);

/* tree.c: adds the present micro-batch's gradient of a bucket into the rank's own tree, ... */
void loom_parallel_carry(loom_parallel *parallel, int bucket);
/* ... sends the shares of the rank's sum to those that they belong to, ... */
loom_comm_op_id loom_parallel_exchange(loom_parallel *parallel, int bucket);
/* ... and adds what has arrived. */
void loom_parallel_add_ranks(loom_parallel *parallel, int bucket);

/* Weights (gather.c): the hooks of the model and the optimizer. */
void loom_parallel_before_weights(void *parallel, int bucket, int next);
void loom_parallel_after_update(void *parallel, int bucket);
void loom_parallel_after_sums(void *parallel);

#endif
