/* Brings a loader's batches to the device: while one step computes, the next one's batch is copied beside it, in a
 * stream of its own, out of pinned memory. */
#ifndef LOOM_DATA_FEEDER_H
#define LOOM_DATA_FEEDER_H

#include "data/loader.h"
#include "gptloom/arena.h"
#include "gptloom/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_feeder {
    int32_t *inputs, *targets; /* device memory, (batch / ranks, T) each: the step's batch */
    int32_t *staged;           /* device memory: the next step's inputs, then its targets */
    loom_device *device;
    loom_loader *loader;
    loom_stream *stream;
    int32_t *pinned[2]; /* host memory, used alternately */
    size_t ids;         /* the number of ids in inputs and targets together */
    int turn;
    bool sent;       /* `staged` holds the next batch, or a copy to it is under way */
    bool failed;     /* there is no next batch, because data could not be read */
    bool given_back; /* the next take returns the batch that was taken last */
    loom_batch next; /* its step and count */
} loom_feeder;

/* Takes the memory for steps of `sequences` sequences of T tokens from an arena. Called once with a measuring arena and
 * once with a real one. */
void loom_feeder_lay_out(loom_feeder *feeder, int64_t sequences, int64_t T, loom_arena *arena);
/* Opens the feeder, after loom_feeder_lay_out() with a real arena. The feeder closes the loader. */
bool loom_feeder_open(loom_feeder *feeder, loom_device *device, loom_loader *loader, loom_error *error);
void loom_feeder_close(loom_feeder *feeder);
/* Puts the next step's batch where the step reads it, in the order of the device's default stream, and says which step
 * it is and how many targets it has. */
bool loom_feeder_take(loom_feeder *feeder, int64_t *step, int64_t *targets, loom_error *error);
/* Makes the next take return the last batch again. Allowed after a take if nothing was sent ahead since. */
void loom_feeder_give_back(loom_feeder *feeder);
/* Takes a batch without targets instead of one that could not be read. A rank computes it to stay in step with the
 * others. */
void loom_feeder_take_nothing(loom_feeder *feeder);
/* Sends the following batch ahead. It is best called when the device has been given its work. An error is reported by
 * the next take. */
void loom_feeder_send_ahead(loom_feeder *feeder);

#ifdef __cplusplus
}
#endif
#endif
