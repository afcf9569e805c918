/* Brings the windows of a split in a shuffled order that is a pure function of (seed, position), so that a run resumes
 * anywhere and its order does not depend on ranks. */
#ifndef LOOM_DATA_LOADER_H
#define LOOM_DATA_LOADER_H

#include "data/windows.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_loader loom_loader;

typedef struct loom_loader_options {
    int64_t T;
    int64_t batch;       /* sequences per step, over all ranks */
    int64_t micro_batch; /* divides batch */
    uint64_t seed;
    int64_t first_step;
    int rank, ranks; /* a rank takes consecutive micro-batches of each step; without ranks: 0 and 1 */
} loom_loader_options;

/* One step's sequences of this rank: micro-batches of (micro_batch, T), one after the other. */
typedef struct loom_batch {
    int64_t step;
    int32_t *inputs, *targets; /* (batch / ranks, T) */
    int64_t targets_in_step;   /* targets that are not -1, over all ranks */
} loom_batch;

/* Opens a loader. The dataset must stay open as long as the loader. */
bool loom_loader_open(loom_loader **loader, const loom_split *split, const loom_loader_options *options,
                      loom_error *error);
/* Returns the next step's batch, valid until the next call. Meanwhile a thread prepares the batch after it. After an
 * error the loader stays at that step: every further call returns the same error. */
bool loom_loader_next(loom_loader *loader, const loom_batch **batch, loom_error *error);
void loom_loader_close(loom_loader *loader);

#ifdef __cplusplus
}
#endif
#endif
