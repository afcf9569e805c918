/* What the definitions in this directory are written over: `real`, which is float in the tables "cpu" and "definition"
 * and double in the table "oracle", and rows of views read and written as reals whatever they are stored in. */
#ifndef LOOM_CPU_REAL_H
#define LOOM_CPU_REAL_H

#include "base/check.h"
#include "base/half.h"
#include "gptloom/device.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#ifdef LOOM_ORACLE
typedef double real;
#    define LOOM_REAL_DTYPE       LOOM_F64
#    define LOOM_DEFINITION(name) loom_oracle_##name
#else
typedef float real;
#    define LOOM_REAL_DTYPE       LOOM_F32
#    define LOOM_DEFINITION(name) loom_definition_##name
#endif

/* ------------------------------------------------------------------------------------------------------------- rows */

/* Where row `row` of a view starts, rows counted over all but the innermost dimension. */
static inline void *row_address(const loom_view *view, int64_t row) {
    const int64_t c = row % view->shape[2], b = row / view->shape[2] % view->shape[1],
                  a = row / view->shape[2] / view->shape[1];
    const int64_t element = a * view->stride[0] + b * view->stride[1] + c * view->stride[2];
    return (char *)view->data + (size_t)element * loom_dtype_size(view->dtype);
}

/* Where column `first` of a row lies. */
static inline void *element_address(const loom_view *view, int64_t row, int64_t first) {
    return (char *)row_address(view, row) + (size_t)first * loom_dtype_size(view->dtype);
}

static inline bool stored_as_real(const loom_view *view) {
    return view->dtype == LOOM_REAL_DTYPE;
}

/* n stored values as reals. */
static inline void load_reals(real *to, const void *from, loom_dtype dtype, int64_t n) {
    if (dtype == LOOM_REAL_DTYPE)
        memcpy(to, from, (size_t)n * sizeof *to);
    else if (dtype == LOOM_BF16)
        for (int64_t i = 0; i < n; i++) to[i] = bf16_to_float(((const uint16_t *)from)[i]);
    else if (dtype == LOOM_F16)
        for (int64_t i = 0; i < n; i++) to[i] = fp16_to_float(((const uint16_t *)from)[i]);
    else
        for (int64_t i = 0; i < n; i++) to[i] = (real)((const float *)from)[i];
}

static inline void store_reals(void *to, loom_dtype dtype, const real *from, int64_t n) {
    if (dtype == LOOM_REAL_DTYPE)
        memcpy(to, from, (size_t)n * sizeof *from);
    else if (dtype == LOOM_BF16)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[i] = float_to_bf16((float)from[i]);
    else if (dtype == LOOM_F16)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[i] = float_to_fp16((float)from[i]);
    else
        for (int64_t i = 0; i < n; i++) ((float *)to)[i] = (float)from[i];
}

/* n values to read: where they are if they are stored as reals, else converted into `scratch`. */
static inline const real *reals_at(const void *stored, loom_dtype dtype, int64_t n, real *scratch) {
    if (dtype == LOOM_REAL_DTYPE) return stored;
    load_reals(scratch, stored, dtype, n);
    return scratch;
}

static inline const real *row_read(const loom_view *view, int64_t row, real *scratch) {
    return reals_at(row_address(view, row), view->dtype, view->shape[3], scratch);
}

/* A row to write: the row itself where it is stored as reals, else `scratch`; row_written() then stores it. */
static inline real *row_write(const loom_view *view, int64_t row, real *scratch) {
    return stored_as_real(view) ? row_address(view, row) : scratch;
}

static inline void row_written(const loom_view *view, int64_t row, const real *scratch) {
    if (!stored_as_real(view)) store_reals(row_address(view, row), view->dtype, scratch, view->shape[3]);
}

/* ------------------------------------------------------------------------------------------------- per-thread scratch
 * Each thread of an op owns `count` reals of the exec's workspace; starts are 256 bytes apart. */

static inline size_t thread_scratch_bytes(const loom_device *device, int64_t count) {
    const size_t each = ((size_t)count * sizeof(real) + 255) / 256 * 256;
    return each * (size_t)device->threads;
}

static inline real *thread_scratch(const loom_exec *exec, int64_t count) {
    const size_t each = ((size_t)count * sizeof(real) + 255) / 256 * 256;
    LOOM_CHECK(each * (size_t)exec->device->threads <= exec->workspace_bytes);
    return count ? (real *)((char *)exec->workspace + each * (size_t)omp_get_thread_num()) : NULL;
}

/* --------------------------------------------------------------------------------------------------------- exp */

#ifdef LOOM_ORACLE
static inline real real_exp(real x) {
    return exp(x);
}
#else
/* exp for loops that vectorise: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial of degree 7 for exp(r) (its first
 * missing Taylor term is below 6e-9), times 2^n in two steps so that overflow gives infinity and
 * underflow goes through the denormals. NaN stays NaN. */
static inline float real_exp(float x) {
    const float clamped = x > 89.0f ? 89.0f : x < -104.0f ? -104.0f : x;
    const float shifter = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    const float shifted = clamped * 1.44269504f + shifter;
    const float n = shifted - shifter;
    const float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    const int32_t whole = (int32_t)(bits - 0x4B400000u), half = whole >> 1;
    const uint32_t scale1_bits = (uint32_t)(half + 127) << 23, scale2_bits = (uint32_t)(whole - half + 127) << 23;
    float scale1, scale2;
    memcpy(&scale1, &scale1_bits, sizeof scale1);
    memcpy(&scale2, &scale2_bits, sizeof scale2);
    return p * scale1 * scale2;
}
#endif

#endif
