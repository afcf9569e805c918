/* Functions on windows that the loader needs beyond gptloom/data.h. */
#ifndef LOOM_DATA_WINDOWS_H
#define LOOM_DATA_WINDOWS_H

#include "gptloom/data.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The number of pairs in window `w`: T, except in the last window, which has the pairs that are left and is otherwise
 * padding. */
int64_t loom_window_pairs(const loom_split *split, int64_t T, int64_t w);

/* The number of pairs after which an epoch's cut starts: uniform in [0, pairs), a pure function of its arguments. */
int64_t loom_window_shift(uint64_t seed, uint32_t epoch, int64_t pairs);

#ifdef __cplusplus
}
#endif
#endif
