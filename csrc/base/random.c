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

/* One counter makes four values: two radii, each with the cosine and the sine of its angle. */
static void four_normals(float out[4], loom_random4 r) {
    for (int pair = 0; pair < 2; pair++) {
        const float radius = sqrtf(-2.0f * logf(((float)r.word[2 * pair] + 1.0f) * 0x1p-32f));
        const float angle = 6.2831853f * loom_random_uniform(r.word[2 * pair + 1]);
        out[2 * pair] = radius * cosf(angle);
        out[2 * pair + 1] = radius * sinf(angle);
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
