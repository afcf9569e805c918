/* The schedule of a tape, step by step: which nodes run forward (some of them up to three times), which backward,
 * when the parameters of a bucket must be there and may go, when its gradients are written, and what is copied to host
 * memory and back. It follows from the tape and from what is kept for backward; what a step reads, an earlier one has
 * written. */
#ifndef LOOM_MODEL_SCHEDULE_H
#define LOOM_MODEL_SCHEDULE_H

#include "model/tape.h"

typedef enum loom_tape_step_kind {
    LOOM_STEP_FORWARD,         /* runs node `index` forward, to compute its outputs `wanted` (a bit each) */
    LOOM_STEP_BACKWARD,        /* runs node `index` backward */
    LOOM_STEP_ACQUIRE,         /* the following steps read the parameters of bucket `index`; bucket `next` (or -1) is
                                  acquired after it */
    LOOM_STEP_RELEASE,         /* no step reads the parameters of bucket `index` before it is acquired again */
    LOOM_STEP_BEGIN_GRADIENTS, /* the following steps write the gradients of bucket `index` */
    LOOM_STEP_READY,           /* the gradients of bucket `index` are complete */
    LOOM_STEP_SEND,            /* begins to copy what segment `index` keeps to host memory */
    LOOM_STEP_FETCH,           /* begins to copy what segment `index` keeps back to the device */
    LOOM_STEP_WAIT,            /* the following steps wait for the copy that was begun last */
    LOOM_STEP_RANGE,    /* begins a profiler range: the forward of scope `index`, or with `wanted` its backward */
    LOOM_STEP_RANGE_END /* ends it */
} loom_tape_step_kind;

typedef struct loom_tape_step {
    loom_tape_step_kind kind;
    int index, next;
    unsigned wanted;
} loom_tape_step;

typedef struct loom_tape_schedule {
    loom_tape_step *step;
    int n;
} loom_tape_schedule;

/* What becomes of a value that backward reads, between its computation in forward and that. */
typedef enum loom_keep {
    LOOM_KEEP_NOT,        /* it is computed once more for the backward of its layer; */
    LOOM_KEEP_IN_SEGMENT, /* it is computed once more, and kept, when backward comes to its segment; */
    LOOM_KEEP_ALWAYS      /* it stays */
} loom_keep;

/* Fills keep[n_values] with what a policy of recomputation makes of each value of the tape. */
void loom_tape_keep(const loom_tape *tape, const loom_recompute *policy, loom_keep *keep);

/* The values of a layer that a set (loom_kept_set) may hold, in the order of its bits; returns how many. */
enum { LOOM_SET_MOST_VALUES = 32 };
int loom_tape_saved_values(const loom_tape *tape, int layer, loom_value values[LOOM_SET_MOST_VALUES]);

/* A micro-batch of training: forward with the loss, and backward, which recomputes what is not kept. A segment is so
 * many layers: with more than one, backward first runs it forward again to have what it keeps. With `offloads` all but
 * the last LOOM_SLOTS segments leave the device. */
bool loom_tape_schedule_train(loom_tape_schedule *schedule, const loom_tape *tape, const loom_keep *keep, int segment,
                              bool offloads, loom_error *error);

/* Forward alone: for losses, or to generate. */
bool loom_tape_schedule_forward(loom_tape_schedule *schedule, const loom_tape *tape, loom_error *error);

void loom_tape_schedule_destroy(loom_tape_schedule *schedule);

/* What of a step that runs a node tells which ops it runs with which shapes, but for the number of rows: of two tapes
 * too. */
enum { LOOM_STEP_KEY = 19 };
void loom_tape_step_key(const loom_tape *tape, const loom_tape_step *step, int64_t key[LOOM_STEP_KEY]);

/* The steps that run nodes: one of all those that have the same key, and how many they are. */
typedef struct loom_tape_class {
    const loom_tape_step *step;
    int count;
} loom_tape_class;

enum { LOOM_MOST_CLASSES = 64 };
int loom_tape_classes(const loom_tape *tape, const loom_tape_schedule *schedule,
                      loom_tape_class classes[LOOM_MOST_CLASSES]);

/* Of the segments of a tape's layers, those that leave for host memory where that is asked for: all but as many as
 * there are slots. None or fewer where there are no more than these. */
int loom_segments_that_leave(const loom_tape *tape, int segment);

#endif
