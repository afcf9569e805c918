/* Squared ReLU of a row: shared by the op and by the matmul's epilogue. */
#ifndef LOOM_CPU_RELU2_H
#define LOOM_CPU_RELU2_H

#include "cpu/real.h"

static inline void relu2_row(real *out, const real *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = x[i] < 0 ? 0 : x[i] * x[i];
}

#endif
