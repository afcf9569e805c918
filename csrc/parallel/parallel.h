/* What the files of csrc/parallel share. */
#ifndef LOOM_PARALLEL_PARALLEL_H
#define LOOM_PARALLEL_PARALLEL_H

#include "gptloom/parallel.h"

/* How gradients of micro-batches and ranks become one. */
typedef enum loom_reduction {
    LOOM_REDUCE_NOTHING, /* one rank; backward adds */
    LOOM_REDUCE_ALL,     /* the last micro-batch: an all-reduce */
    LOOM_REDUCE_SCATTER, /* the last micro-batch: a reduce-scatter */
    LOOM_REDUCE_EACH,    /* each micro-batch: a reduce-scatter, and an addition */
    LOOM_REDUCE_TREE     /* deterministic */
} loom_reduction;

loom_reduction loom_parallel_reduction(const loom_parallel *parallel);

/* Lets the default stream's next work wait for an operation; a failure is kept. */
void loom_parallel_wait(loom_parallel *parallel, loom_ticket *ticket);

/* Whether the bucket is a block's. */
bool loom_parallel_is_block(const loom_parallel *parallel, int bucket);

/* out (count) = a + b, in the type of gradients. */
void loom_parallel_add(loom_parallel *parallel, void *out, void *a, void *b, int64_t count);

/* Gradients (reduce.c, tree.c): the model's hooks. */
void loom_parallel_before_gradient(void *parallel, int bucket);
void loom_parallel_after_gradient(void *parallel, int bucket);

/* tree.c: adds the present micro-batch's gradient of a bucket into the rank's own tree, ... */
void loom_parallel_carry(loom_parallel *parallel, int bucket);
/* ... sends the shares of the rank's sum to those that they belong to, ... */
loom_ticket loom_parallel_exchange(loom_parallel *parallel, int bucket);
/* ... and adds what has arrived. */
void loom_parallel_add_ranks(loom_parallel *parallel, int bucket);

/* Weights (gather.c): the hooks of the model and the optimizer. */
void loom_parallel_before_weights(void *parallel, int bucket, int next);
void loom_parallel_after_update(void *parallel, int bucket);
void loom_parallel_after_sums(void *parallel);

#endif
