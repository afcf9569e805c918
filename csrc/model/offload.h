/* Offloading: what a segment of layers keeps for backward waits in host memory until its backward.
 *
 * The device has two slots; segments take them in turn:
 *
 *     compute | forward 0 | forward 1 | forward 2 | ... | backward 4 | backward 3 | backward 2 | ...
 *     copies  |           | 0 out     | 1 out     | ... |            | 2 back     | 1 back     | ...
 *     slot    | 0         | 1         | 0         | ... | 0          | 1          | 0          | ...
 *
 * Forward writes a slot once the copy out of what lay there is done; a copy back begins once backward has read what
 * lies there. The last two never leave. More slots would not hide more: a copy either fits beside one layer's compute,
 * every time, or it does not. When is in the schedule; together its steps leave nothing in the stream of copies that
 * the compute stream does not wait for, so that a step can be captured. */
#ifndef LOOM_MODEL_OFFLOAD_H
#define LOOM_MODEL_OFFLOAD_H

#include "model/schedule.h"

enum { LOOM_SLOTS = 2 };

typedef struct loom_offload {
    bool on;    /* there are more segments than slots */
    char *host; /* pinned: all but the last two's */
    loom_stream *copies;
} loom_offload;

/* Bytes of host memory. */
size_t loom_offload_host_bytes(const loom_gpt *gpt);

/* Takes the host memory and the stream. */
bool loom_offload_open(loom_gpt *gpt, loom_error *error);
void loom_offload_close(loom_gpt *gpt);

/* A step of the schedule: LOOM_STEP_SEND, _FETCH or _WAIT. */
void loom_offload_step(loom_gpt *gpt, const loom_tape_step *step);

#endif
