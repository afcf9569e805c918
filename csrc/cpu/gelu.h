/* GELU of a row: shared by the op and by the matmul's epilogue. */
#ifndef LOOM_CPU_GELU_H
#define LOOM_CPU_GELU_H

#include "cpu/real.h"

/* 0.5 (1 + tanh u) equals the logistic function of 2u, which has no cancellation for u near 0 or below. */
static inline real gelu_gate(real x) {
    const real twice_sqrt_2_over_pi = (real)1.5957691216057308;
    return 1 / (1 + real_exp(-twice_sqrt_2_over_pi * (x + (real)0.044715 * x * x * x)));
}

static inline void gelu_row(real *out, const real *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * gelu_gate(x[i]);
}

#endif
