/* Where the values of a tape lie while a schedule is played: one region of memory in which what lives at the same time lies
 * apart, and what does not may lie in the same place. */
#ifndef LOOM_MODEL_BUFFERS_H
#define LOOM_MODEL_BUFFERS_H

#include "model/schedule.h"

typedef struct loom_buffers {
    size_t *value;    /* [values] bytes from the region's start; */
    size_t *gradient; /* [values] of its gradient (of those that share one, loom_tape_value.gradient's alone) */
    size_t logits;    /* of what the head has of logits at a time */
    size_t slot;      /* the size of a slot for what a segment keeps, where it is offloaded: they lie at the start */
    size_t kept;      /* bytes for what is kept from forward to backward, or from one run to the next */
    size_t bytes;     /* of the region */
} loom_buffers;

/* What lies there. */
typedef struct loom_buffer_sizes {
    int64_t rows;               /* of all sequences */
    size_t storage, statistics; /* of an element */
    size_t logits;              /* bytes */
    const loom_keep *keep;      /* NULL: nothing is kept for backward */
    bool caches;                /* keys and values are kept from run to run */
    int segment;                /* layers, where what they keep */
    bool offloads;              /* takes slots in turn */
} loom_buffer_sizes;

/* Finds places for all that a schedule's steps write, and checks that each reads what is there. */
bool loom_buffers_find(loom_buffers *buffers, const loom_tape *tape, const loom_tape_schedule *schedule,
                       const loom_buffer_sizes *sizes, loom_error *error);
void loom_buffers_destroy(loom_buffers *buffers);

#endif
