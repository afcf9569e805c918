/* Sums over a row, in LANES partial sums: element i is added to lane i % LANES, and then the lanes are added pairwise,
 * half to half. The order depends on n only, so that vector registers of any width give the same bits. */
#ifndef LOOM_CPU_SUMS_H
#define LOOM_CPU_SUMS_H

#include "cpu/real.h"

/* The lanes take 1 register with AVX-512, 2 with AVX2, 4 with SSE2 and NEON, and twice as many in double. */
enum { LANES = 16, LANE_VECTORS = LANES / VECTOR_LANES };

/* Computes sums[l] += term(i + l) for whole groups of LANES elements i, then adds the remaining elements, then the
 * lanes. `term` is an expression of vectors at element `at`, `last` the same expression of the single element `at`. */
#define SUM_IN_LANES(n, term, last)                                                                                    \
    real lane[LANES];                                                                                                  \
    vector sums[LANE_VECTORS] = {{0}};                                                                                 \
    const int64_t whole = (n) - (n) % LANES;                                                                           \
    for (int64_t i = 0; i < whole; i += LANES)                                                                         \
        for (int v = 0; v < LANE_VECTORS; v++) {                                                                       \
            const int64_t at = i + v * VECTOR_LANES;                                                                   \
            sums[v] += term;                                                                                           \
        }                                                                                                              \
    memcpy(lane, sums, sizeof lane);                                                                                   \
    for (int64_t at = whole; at < (n); at++) lane[at - whole] += last;                                                 \
    for (int width = LANES / 2; width > 0; width /= 2)                                                                 \
        for (int l = 0; l < width; l++) lane[l] += lane[l + width];                                                    \
    return lane[0]

/* sum of x */
static inline real row_sum(const real *x, int64_t n) {
    SUM_IN_LANES(n, VECTOR_AT(x, at), x[at]);
}

/* sum of x y */
static inline real row_dot(const real *x, const real *y, int64_t n) {
    SUM_IN_LANES(n, VECTOR_AT(x, at) * VECTOR_AT(y, at), x[at] * y[at]);
}

/* sum of (x - mean)^2 */
static inline real row_square_sum(const real *x, real mean, int64_t n) {
    SUM_IN_LANES(n, (VECTOR_AT(x, at) - mean) * (VECTOR_AT(x, at) - mean), (x[at] - mean) * (x[at] - mean));
}

/* sum of x y (z - mean) scale */
static inline real row_normal_dot(const real *x, const real *y, const real *z, real mean, real scale, int64_t n) {
    SUM_IN_LANES(n, VECTOR_AT(x, at) * VECTOR_AT(y, at) * ((VECTOR_AT(z, at) - mean) * scale),
                 x[at] * y[at] * ((z[at] - mean) * scale));
}

/* The largest of `largest` and the elements of x; NaNs in x are ignored. */
static inline real row_max(const real *x, int64_t n, real largest) {
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

/* e = exp(scale (x - shift)), and the sum of e. e may be x. */
static inline real row_exp(real *e, const real *x, real shift, real scale, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) e[i] = real_exp(scale * (x[i] - shift));
    return row_sum(e, n);
}

#endif
