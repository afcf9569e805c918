/* Windows of a split.
 *
 * A split is a range of a dataset's tokens. Its n - 1 pairs (token, next token) form a ring that is cut into
 * ceil((n-1)/T) windows of T pairs; where the cut starts moves with each epoch. Every pair is in exactly one window of
 * an epoch; the last window is filled up with targets of -1. */
#ifndef LOOM_DATA_WINDOWS_H
#define LOOM_DATA_WINDOWS_H

#include "data/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_split {
    const loom_dataset *dataset;
    int64_t first, tokens;
    int64_t vocab_size;
} loom_split;

/* Cuts off the last `fraction` of the tokens as the validation split; with 0 that split is empty. Refuses splits that
 * are too short for one window of T. */
bool loom_split_by_fraction(const loom_dataset *dataset, int64_t vocab_size, double fraction, int64_t T,
                            loom_split *training, loom_split *validation, loom_error *error);

int64_t loom_split_windows(const loom_split *split, int64_t T);

/* Reads window `w` of a cut that starts after `shift` pairs: T inputs and T targets. */
bool loom_split_window(const loom_split *split, int64_t T, int64_t shift, int64_t w, int32_t *inputs, int32_t *targets,
                       loom_error *error);

/* The bijection that shuffles 0 .. n-1 in an epoch: a Feistel network over Philox, walked until it lands below n. */
int64_t loom_shuffle(uint64_t seed, uint32_t epoch, int64_t n, int64_t i);

/* The number of pairs in window `w`: T, except in the last window, which has the pairs that are left and is otherwise
 * padding. */
int64_t loom_window_pairs(const loom_split *split, int64_t T, int64_t w);

/* The number of pairs after which an epoch's cut starts: uniform in [0, pairs), a pure function of its arguments. */
int64_t loom_window_shift(uint64_t seed, uint32_t epoch, int64_t pairs);

#ifdef __cplusplus
}
#endif
#endif
