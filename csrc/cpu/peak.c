#include "cpu/device.h"

#include "base/clock.h"

#include <omp.h>

/* What a register holds, and chains enough to hide the latency of a multiply-add (4 or 5 cycles, two of them begun in each)
 * that fit, with a factor and a summand, into the registers there are: 32 with AVX-512 and on aarch64, else 16. */
#if defined __AVX512F__
enum { VECTOR_BYTES = 64, CHAINS = 16 };
#elif defined __AVX__
enum { VECTOR_BYTES = 32, CHAINS = 12 };
#elif defined __aarch64__
enum { VECTOR_BYTES = 16, CHAINS = 24 };
#else
enum { VECTOR_BYTES = 16, CHAINS = 12 };
#endif
enum { ROUNDS = 20000 };

typedef float float_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef double double_vector __attribute__((vector_size(VECTOR_BYTES)));

/* Independent chains of fused multiply-adds that stay in registers. Factors that the compiler cannot know, and a result
 * that is used, keep them from being computed beforehand or not at all. */
static float float_round(void) {
    static volatile float factor = 0.999f, summand = 1e-3f;
    float_vector chain[CHAINS], scale = {0}, shift = {0};
    scale += factor;
    shift += summand;
    for (int i = 0; i < CHAINS; i++) chain[i] = shift * (float)i;
    for (int round = 0; round < ROUNDS; round++)
#pragma GCC unroll 24
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
#pragma GCC unroll 24
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
            const double lanes = VECTOR_BYTES / (double)(in_double ? sizeof(double) : sizeof(float));
            const double rate = 2.0 * CHAINS * ROUNDS * lanes / (after - now);
            if (rate > best) best = rate;
            now = after;
        }
        total += best;
#pragma omp critical
        keep += sink;
    }
    return total;
}
