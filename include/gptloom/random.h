/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
 *
 * A number is a pure function of (seed, purpose, step, index): the same on every device, for any number of threads
 * and ranks, and nothing needs to be saved to resume. */
#ifndef GPTLOOM_RANDOM_H
#define GPTLOOM_RANDOM_H

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
    LOOM_RANDOM_ROUNDING_MOMENT1 = 6, /* and of AdamW's moments */
    LOOM_RANDOM_ROUNDING_MOMENT2 = 7,
} loom_random_purpose;

typedef struct loom_random4 {
    uint32_t word[4];
} loom_random4;

/* The raw bijection: a 128-bit counter under a 64-bit key. */
loom_random4 loom_philox(const uint32_t counter[4], const uint32_t key[2]);

/* Four words for (seed, purpose, step, index). step < 2^32 keeps its whole range apart from other purposes. */
loom_random4 loom_random(uint64_t seed, loom_random_purpose purpose, uint32_t step, uint64_t index);

/* The same for n indices from `first` on, 4n words, many times as fast. */
void loom_random_words(uint32_t *words, int64_t n, uint64_t seed, loom_random_purpose purpose, uint32_t step,
                       uint64_t first);

/* Uniform in [0, 1) with 24 random bits, from one word. */
float loom_random_uniform(uint32_t word);

/* Standard normal values, by the Box-Muller transform from (seed, purpose, step, first .. first + n - 1): element i
 * of a sequence is the same however the sequence is cut. */
void loom_random_normal(float *out, int64_t n, uint64_t seed, loom_random_purpose purpose, uint32_t step,
                        uint64_t first);

#ifdef __cplusplus
}
#endif
#endif
