#include "base/random.h"

#include "base/math.h"

#include <math.h>

/* The ten rounds are unrolled so that loops over counters vectorise. The constants are those of Philox4x32 in the
 * paper. */
static inline __attribute__((always_inline)) void philox(uint32_t out[4], uint32_t c0, uint32_t c1, uint32_t c2,
                                                         uint32_t c3, uint32_t k0, uint32_t k1) {
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

loom_random4 loom_philox(const uint32_t counter[4], const uint32_t key[2]) {
    loom_random4 random;
    philox(random.word, counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
    return random;
}

loom_random4 loom_random(uint64_t seed, loom_random_purpose purpose, uint32_t step, uint64_t index) {
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), step, (uint32_t)purpose};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    return loom_philox(counter, key);
}

void loom_random_words(uint32_t *words, int64_t n, uint64_t seed, loom_random_purpose purpose, uint32_t step,
                       uint64_t first) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const uint64_t index = first + (uint64_t)i;
        philox(words + 4 * i, (uint32_t)index, (uint32_t)(index >> 32), step, (uint32_t)purpose, (uint32_t)seed,
               (uint32_t)(seed >> 32));
    }
}

float loom_random_uniform(uint32_t word) {
    return (float)(word >> 8) * 0x1p-24f;
}

/* One counter gives four values: two radii, each with the cosine and the sine of its angle. */
static void four_normals(float out[4], loom_random4 r) {
    for (int pair = 0; pair < 2; pair++) {
        const double radius = sqrt(-2 * loom_log(((double)r.word[2 * pair] + 1) * 0x1p-32));
        const double turns = (double)loom_random_uniform(r.word[2 * pair + 1]);
        out[2 * pair] = (float)(radius * loom_cos_of_turns(turns));
        out[2 * pair + 1] = (float)(radius * loom_sin_of_turns(turns));
    }
}

void loom_random_normal(float *out, int64_t n, uint64_t seed, loom_random_purpose purpose, uint32_t step,
                        uint64_t first) {
    float four[4];
    for (int64_t i = 0; i < n; i++) {
        const uint64_t index = first + (uint64_t)i;
        if (i == 0 || index % 4 == 0) four_normals(four, loom_random(seed, purpose, step, index / 4));
        out[i] = four[index % 4];
    }
}
