#include "cpu/device.h"

#include "base/clock.h"

#include <omp.h>

typedef float float_vector __attribute__((vector_size(64)));
typedef double double_vector __attribute__((vector_size(64)));

enum { CHAINS = 16, ROUNDS = 20000 };

/* Independent chains of fused multiply-adds that stay in registers. Factors that the compiler cannot know, and a result
 * that is used, keep them from being computed beforehand or not at all. */
static float float_round(void) {
    static volatile float factor = 0.999f, summand = 1e-3f;
    float_vector chain[CHAINS], scale = {0}, shift = {0};
    scale += factor;
    shift += summand;
    for (int i = 0; i < CHAINS; i++) chain[i] = shift * (float)i;
    for (int round = 0; round < ROUNDS; round++)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * scale + shift;
    for (int i = 1; i < CHAINS; i++) chain[0] += chain[i];
    return chain[0][0];
}

static double double_round(void) {
    static volatile double factor = 0.999, summand = 1e-3;
    double_vector chain[CHAINS], scale = {0}, shift = {0};
    scale += factor;
    shift += summand;
    for (int i = 0; i < CHAINS; i++) chain[i] = shift * (double)i;
    for (int round = 0; round < ROUNDS; round++)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * scale + shift;
    for (int i = 1; i < CHAINS; i++) chain[0] += chain[i];
    return chain[0][0];
}

double loom_cpu_peak(int threads, bool in_double, double seconds) {
    double total = 0;
    volatile double keep = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const double start = loom_seconds_now();
        double now = start, sink = 0, best = 0;
        while (now - start < seconds) {
            sink += in_double ? double_round() : (double)float_round();
            const double after = loom_seconds_now();
            const double rate = 2.0 * CHAINS * ROUNDS * (in_double ? 8 : 16) / (after - now);
            if (rate > best) best = rate;
            now = after;
        }
        total += best;
#pragma omp critical
        keep += sink;
    }
    return total;
}
