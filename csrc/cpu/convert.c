#include "cpu/real.h"

void LOOM_DEFINITION(widen)(real *to, const void *from, loom_dtype dtype, int64_t n) {
    const uint16_t *halves = from;
    const float *floats = from;
    if (dtype == LOOM_BF16)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[i] = (real)bf16_to_float(halves[i]);
    else if (dtype == LOOM_F16)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[i] = (real)fp16_to_float(halves[i]);
    else
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[i] = (real)floats[i];
}

void LOOM_DEFINITION(narrow)(void *to, loom_dtype dtype, const real *from, int64_t n) {
    uint16_t *halves = to;
    float *floats = to;
    if (dtype == LOOM_BF16)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) halves[i] = float_to_bf16((float)from[i]);
    else if (dtype == LOOM_F16)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) halves[i] = float_to_fp16((float)from[i]);
    else
#pragma omp simd
        for (int64_t i = 0; i < n; i++) floats[i] = (float)from[i];
}
