#include "cpu/definition.h"

#include "base/clock.h"

/* There are enough chains to hide the latency of a multiply-add (4 or 5 cycles, with two begun in each cycle). They fit
 * into the available registers together with a factor and a summand. */
#if defined __AVX512F__
enum { CHAINS = 16 };
#elif defined __aarch64__
enum { CHAINS = 24 };
#else
enum { CHAINS = 12 };
#endif
enum { ROUNDS = 20000 };

/* Independent chains of multiply-adds that stay in registers. The factors are unknown to the compiler and the result is
 * used, so the compiler can neither precompute the chains nor remove them. */
static real multiply_and_add(void) {
    static volatile real factor = (real)0.999, summand = (real)1e-3;
    vector chain[CHAINS], scale = {0}, shift = {0};
    scale += factor;
    shift += summand;
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) chain[i] = shift * (real)i;
    for (int round = 0; round < ROUNDS; round++)
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * scale + shift;
#pragma GCC unroll 24
    for (int i = 1; i < CHAINS; i++) chain[0] += chain[i];
    return chain[0][0];
}

double LOOM_DEFINITION(peak)(int threads, double seconds) {
    double total = 0;
    volatile real keep = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const double start = loom_seconds_now(), lanes = VECTOR_LANES;
        double now = start, best = 0;
        real sink = 0;
        while (now - start < seconds) {
            sink += multiply_and_add();
            const double after = loom_seconds_now(), rate = 2.0 * CHAINS * ROUNDS * lanes / (after - now);
            if (rate > best) best = rate;
            now = after;
        }
        total += best;
#pragma omp critical
        keep += sink;
    }
    return total;
}
