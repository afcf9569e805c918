/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
 *
 * A number is a pure function of (seed, purpose, step, index). So it is the same on every device and for any number of
 * threads and ranks, and no state needs to be saved for resuming. */
#ifndef LOOM_BASE_RANDOM_H
#define LOOM_BASE_RANDOM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_random_purpose {
    LOOM_RANDOM_INIT = 1,             /* parameters: index is the element's place in its bucket, step the bucket */
    LOOM_RANDOM_ORDER = 2,            /* the data order: step is the epoch */
    LOOM_RANDOM_SAMPLE = 3,           /* sampling text: step is the token's number */
    LOOM_RANDOM_TEST = 4,             /* inputs of tests and benchmarks */
    LOOM_RANDOM_ROUNDING = 5,         /* stochastic rounding of parameters */
    LOOM_RANDOM_ROUNDING_MOMENT1 = 6, /* stochastic rounding of AdamW's moments */
    LOOM_RANDOM_ROUNDING_MOMENT2 = 7,
} loom_random_purpose;

typedef struct loom_random4 {
    uint32_t word[4];
} loom_random4;

/* The raw Philox function: a bijection of 128-bit counters for each 64-bit key. */
loom_random4 loom_philox(const uint32_t counter[4], const uint32_t key[2]);

/* Four random words for (seed, purpose, step, index). The numbers of different purposes never overlap, for all 2^32
 * values of `step`. */
loom_random4 loom_random(uint64_t seed, loom_random_purpose purpose, uint32_t step, uint64_t index);

/* Writes the 4 n words of n indices from `first` on, many times as fast as single calls. */
void loom_random_words(uint32_t *words, int64_t n, uint64_t seed, loom_random_purpose purpose, uint32_t step,
                       uint64_t first);

/* A number that is uniform in [0, 1) with 24 random bits, made from one word. */
float loom_random_uniform(uint32_t word);

/* Writes standard normal values, made by the Box-Muller transform from (seed, purpose, step, first .. first + n - 1).
 * Element i of a sequence is the same however the sequence is split into calls. */
void loom_random_normal(float *out, int64_t n, uint64_t seed, loom_random_purpose purpose, uint32_t step,
                        uint64_t first);

#ifdef __cplusplus
}
#endif
#endif
