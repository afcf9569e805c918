/* Offloading: what a block keeps for backward waits in host memory until its backward.
 *
 * The device has two slots; blocks (or segments, where --recompute makes them) take them in turn:
 *
 *     compute | forward 0 | forward 1 | forward 2 | ... | backward 4 | backward 3 | backward 2 | ...
 *     copies  |           | 0 out     | 1 out     | ... |            | 2 back     | 1 back     | ...
 *     slot    | 0         | 1         | 0         | ... | 0          | 1          | 0          | ...
 *
 * Forward writes a slot once the copy out of what lay there is done; a copy back begins once backward has read what
 * lies there. The last two never leave. More slots would not hide more: a copy either fits beside one block's compute,
 * every time, or it does not. */
#ifndef LOOM_MODEL_OFFLOAD_H
#define LOOM_MODEL_OFFLOAD_H

#include "gptloom/model.h"

enum { LOOM_SLOTS = 2 };

typedef struct loom_offload {
    bool on;           /* there are more blocks (or segments) than slots */
    size_t slot_bytes; /* what each of them keeps, in one piece; known once memory is laid out */
    char *host;        /* pinned: all but the last two's */
    loom_stream *copies;
    bool copying; /* something is in `copies` that compute does not wait for yet */
} loom_offload;

/* Bytes of host memory, once memory is laid out. */
size_t loom_offload_host_bytes(const loom_gpt *gpt);

/* Takes the host memory and the stream. */
bool loom_offload_open(loom_gpt *gpt, loom_error *error);
void loom_offload_close(loom_gpt *gpt);

/* To be called after each block's forward for backward, and after each one's backward. Together they leave nothing in
 * the stream of copies that the compute stream does not wait for, so that a step can be recorded. */
void loom_offload_after_forward(loom_gpt *gpt, int64_t l);
void loom_offload_after_backward(loom_gpt *gpt, int64_t l);

#endif
