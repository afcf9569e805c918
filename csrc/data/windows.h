/* What the loader needs to know of windows beyond gptloom/data.h. */
#ifndef LOOM_DATA_WINDOWS_H
#define LOOM_DATA_WINDOWS_H

#include "gptloom/data.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Pairs in window `w`: T, or in the last window what is left. The rest of it is filling. */
int64_t loom_window_pairs(const loom_split *split, int64_t T, int64_t w);

/* How many pairs in an epoch's cut starts: uniform in [0, pairs), a pure function. */
int64_t loom_window_shift(uint64_t seed, uint32_t epoch, int64_t pairs);

#ifdef __cplusplus
}
#endif
#endif
