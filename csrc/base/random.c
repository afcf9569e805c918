#include "gptloom/random.h"

#include <math.h>

static uint32_t multiply_high_low(uint32_t a, uint32_t b, uint32_t *low) {
    const uint64_t product = (uint64_t)a * b;
    *low = (uint32_t)product;
    return (uint32_t)(product >> 32);
}

/* Ten rounds; the constants are those of the paper's Philox4x32. */
loom_random4 loom_philox(const uint32_t counter[4], const uint32_t key[2]) {
    loom_random4 c = {{counter[0], counter[1], counter[2], counter[3]}};
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint32_t low0, low1;
        const uint32_t high0 = multiply_high_low(0xD2511F53u, c.word[0], &low0);
        const uint32_t high1 = multiply_high_low(0xCD9E8D57u, c.word[2], &low1);
        c = (loom_random4){{high1 ^ c.word[1] ^ k0, low1, high0 ^ c.word[3] ^ k1, low0}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

loom_random4 loom_random(uint64_t seed, loom_random_purpose purpose, uint32_t step, uint64_t index) {
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), step, (uint32_t)purpose};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    return loom_philox(counter, key);
}

float loom_random_uniform(uint32_t word) {
    return (float)(word >> 8) * 0x1p-24f;
}

/* Each index owns a whole counter: two of its words make one normal value. */
void loom_random_normal(float *out, int64_t n, uint64_t seed, loom_random_purpose purpose, uint32_t step,
                        uint64_t first) {
    for (int64_t i = 0; i < n; i++) {
        const loom_random4 r = loom_random(seed, purpose, step, first + (uint64_t)i);
        const double radius = sqrt(-2.0 * log(((double)r.word[0] + 1.0) * 0x1p-32));
        out[i] = (float)(radius * cos(6.283185307179586 * ((double)r.word[1] * 0x1p-32)));
    }
}
