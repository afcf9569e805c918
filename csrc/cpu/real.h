/* The basis of the ops in this directory: the type `real`, and functions that read and write rows of views as reals,
 * whatever type they are stored in. The same sources are compiled to several tables of ops, each with a LOOM_TABLE of
 * its own from the Makefile:
 *
 *   oracle       in double (LOOM_ORACLE)
 *   definition   in float, without fused multiply-adds: the same bits from every compiler and on every processor
 *   a set of instructions (sse2, avx2, avx512; neon): in float, and as fast as that set allows. The device "cpu" uses
 *                the best of these sets that the processor has (tables.h)
 *
 * So the sources must give the same bits however they are optimised, fused multiply-adds excepted. A sum over a row is
 * made in lanes (sums.h), and the only functions of the C library that are called are those that IEEE 754 defines to
 * the last bit, such as sqrt. */
#ifndef LOOM_CPU_REAL_H
#define LOOM_CPU_REAL_H

#include "base/check.h"
#include "base/half.h"
#include "base/math.h"
#include "gptloom/device.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#ifdef LOOM_ORACLE
typedef double real;
#    define LOOM_REAL_DTYPE LOOM_F64
#else
typedef float real;
#    define LOOM_REAL_DTYPE LOOM_F32
#endif

/* loom_TABLE_name */
#ifndef LOOM_TABLE
#    error "what includes this is compiled for each table"
#endif
#define LOOM_OF_TABLE(table, name) loom_##table##_##name
#define LOOM_EXPANDED(table, name) LOOM_OF_TABLE(table, name)
#define LOOM_DEFINITION(name)      LOOM_EXPANDED(LOOM_TABLE, name)

/* ---------------------------------------------------------------------------------------------------------- registers
 * The size of a vector register. There are 32 of them with AVX-512 and on aarch64, otherwise 16. Kernels are written so
 * that their accumulators fit. */

#if defined __AVX512F__
enum { VECTOR_BYTES = 64 };
#elif defined __AVX__
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
enum { VECTOR_LANES = VECTOR_BYTES / (int)sizeof(real) };

typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

/* The vector at element i of a row. */
#define VECTOR_AT(row, i) (*(const vector *)((row) + (i)))

/* ------------------------------------------------------------------------------------------------------------- rows */

static inline size_t stored_size(loom_dtype dtype) {
    return dtype == LOOM_REAL_DTYPE ? sizeof(real) : loom_dtype_size(dtype);
}

/* The address of row `row` of a view. Rows are counted over all but the innermost dimension. In most views all rows are
 * one stride apart; then no division is needed. */
static inline void *row_address(const loom_view *view, int64_t row) {
    const int64_t *shape = view->shape, *stride = view->stride;
    int64_t element = row * stride[2];
    if (stride[1] != shape[2] * stride[2] || stride[0] != shape[1] * stride[1]) {
        const int64_t c = row % shape[2], b = row / shape[2] % shape[1], a = row / shape[2] / shape[1];
        element = a * stride[0] + b * stride[1] + c * stride[2];
    }
    return (char *)view->data + (size_t)element * stored_size(view->dtype);
}

/* The address of column `first` of a row. */
static inline void *element_address(const loom_view *view, int64_t row, int64_t first) {
    return (char *)row_address(view, row) + (size_t)first * stored_size(view->dtype);
}

/* Hardware prefetchers do not predict short pieces of rows that lie far apart. So these are prefetched AHEAD rows
 * before they are read. Prefetching an address past the end is no error. */
enum { AHEAD = 12 };
static inline void ask_for(const void *stored, size_t bytes) {
    enum { LINE = 64 };
    for (size_t i = 0; i < bytes; i += LINE) __builtin_prefetch((const char *)stored + i);
}

static inline bool stored_as_real(const loom_view *view) {
    return view->dtype == LOOM_REAL_DTYPE;
}

/* n stored values as reals, and back: those that are converted (convert.c), and all. */
void LOOM_DEFINITION(widen)(real *to, const void *from, loom_dtype dtype, int64_t n);
void LOOM_DEFINITION(narrow)(void *to, loom_dtype dtype, const real *from, int64_t n);

static inline void load_reals(real *to, const void *from, loom_dtype dtype, int64_t n) {
    if (dtype == LOOM_REAL_DTYPE)
        memcpy(to, from, (size_t)n * sizeof *to);
    else
        LOOM_DEFINITION(widen)(to, from, dtype, n);
}

static inline void store_reals(void *to, loom_dtype dtype, const real *from, int64_t n) {
    if (dtype == LOOM_REAL_DTYPE)
        memcpy(to, from, (size_t)n * sizeof *from);
    else
        LOOM_DEFINITION(narrow)(to, dtype, from, n);
}

/* Returns n values for reading: the stored ones if they are reals, otherwise a converted copy in `scratch`. */
static inline const real *reals_at(const void *stored, loom_dtype dtype, int64_t n, real *scratch) {
    if (dtype == LOOM_REAL_DTYPE) return stored;
    load_reals(scratch, stored, dtype, n);
    return scratch;
}

static inline const real *row_read(const loom_view *view, int64_t row, real *scratch) {
    return reals_at(row_address(view, row), view->dtype, view->shape[3], scratch);
}

/* Returns a row for writing: the row itself if it is stored as reals, otherwise `scratch`, which row_written() then
 * stores. */
static inline real *row_write(const loom_view *view, int64_t row, real *scratch) {
    return stored_as_real(view) ? row_address(view, row) : scratch;
}

static inline void row_written(const loom_view *view, int64_t row, const real *scratch) {
    if (!stored_as_real(view)) store_reals(row_address(view, row), view->dtype, scratch, view->shape[3]);
}

/* ------------------------------------------------------------------------------------------------- per-thread scratch
 * Each thread of an op owns `count` reals of the context's workspace; starts are 256 bytes apart. */

static inline size_t thread_scratch_bytes(const loom_device *device, int64_t count) {
    const size_t each = ((size_t)count * sizeof(real) + 255) / 256 * 256;
    return each * (size_t)device->threads;
}

static inline real *thread_scratch(const loom_context *ctx, int64_t count) {
    const size_t each = ((size_t)count * sizeof(real) + 255) / 256 * 256;
    LOOM_CHECK(each * (size_t)ctx->device->threads <= ctx->workspace_bytes);
    return count ? (real *)((char *)ctx->workspace + each * (size_t)omp_get_thread_num()) : NULL;
}

/* --------------------------------------------------------------------------------------------------------- functions */

static inline real real_sqrt(real x) {
#ifdef LOOM_ORACLE
    return sqrt(x);
#else
    return sqrtf(x);
#endif
}

#ifdef LOOM_ORACLE
static inline real real_exp(real x) {
    return loom_exp(x);
}
#else
/* A version of exp that vectorises in loops: x = n ln 2 + r with |r| <= ln 2 / 2. exp(r) is a polynomial of degree 7,
 * whose first omitted Taylor term is below 6e-9. The multiplication by 2^n is done in two steps, so that overflow gives
 * infinity and underflow gives denormals. NaN stays NaN. */
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
