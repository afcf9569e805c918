/* Where the values of a tape lie while a schedule runs: places in one region of memory. Values whose lifetimes overlap
 * lie apart; others may share a place. */
#ifndef LOOM_MODEL_BUFFERS_H
#define LOOM_MODEL_BUFFERS_H

#include "model/schedule.h"

/* Places are bytes from the region's start. */
typedef struct loom_buffers {
    size_t *value;    /* [values] the place of each value */
    size_t *gradient; /* [values] the place of its gradient; values that share a gradient share the place */
    size_t logits;    /* the place of the logits that exist at a time */
    size_t *size;     /* [values] bytes of each value, and of its gradient, */
    size_t logits_size;
    bool trains;  /* backward follows */
    size_t slot;  /* with offloading: bytes of a slot for what one segment keeps; the slots lie at the region's start */
    size_t kept;  /* bytes for what is kept from forward to backward, or from one run to the next */
    size_t bytes; /* of the region */
} loom_buffers;

/* What the sizes and the lifetimes of values depend on, beside the schedule. */
typedef struct loom_buffer_sizes {
    int64_t rows;               /* of all sequences together */
    size_t storage, statistics; /* bytes of an element */
    size_t logits;              /* bytes of the logits that exist at a time */
    const loom_keep *keep;      /* [values] what becomes of each; NULL where no backward follows */
    bool caches;                /* keys and values are kept from run to run */
    int segment;                /* layers of a segment */
    bool offloads;              /* what segments keep takes slots in turn */
} loom_buffer_sizes;

/* Finds a place for everything that the steps of a schedule write. Asserts that every step reads only what an earlier
 * one has written. Fails where there is no memory for it, or where the region would be larger than any memory. */
bool loom_buffers_find(loom_buffers *buffers, const loom_tape *tape, const loom_tape_schedule *schedule,
                       const loom_buffer_sizes *sizes, loom_error *error);
void loom_buffers_destroy(loom_buffers *buffers);

/* Under AddressSanitizer: of the region, which begins at `base` in host memory, the program may touch what the step
 * reads and writes, and nothing else; without a step, all of it. */
void loom_buffers_fence(const loom_buffers *buffers, const loom_tape *tape, const loom_tape_step *step, char *base);

#endif
