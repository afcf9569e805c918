/* What the ops in this directory are written over: `real`, and rows of views read and written as reals whatever they are
 * stored in. The same sources make several tables of ops, each of which the Makefile compiles with a LOOM_TABLE of its own:
 *
 *   oracle       in double (LOOM_ORACLE)
 *   definition   in float, without fused multiply-adds: the same bits from every compiler and on every processor
 *   a set of instructions (sse2, avx2, avx512; neon): in float, and as fast as that set allows. The device "cpu" has the
 *                best of them that the processor has (tables.h)
 *
 * So what is written here has the same bits however it is optimised, but for fused multiply-adds: a sum over a row is in
 * lanes (sums.h), and no function of the C library is called but those that IEEE 754 defines to the last bit, as sqrt. */
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
 * What one holds. There are 32 of them with AVX-512 and on aarch64, else 16: what is to stay in them is written to fit. */

#if defined __AVX512F__
enum { VECTOR_BYTES = 64 };
#elif defined __AVX__
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
enum { VECTOR_LANES = VECTOR_BYTES / (int)sizeof(real) };

typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

/* The vector that begins at element i of a row. */
#define VECTOR_AT(row, i) (*(const vector *)((row) + (i)))

/* ------------------------------------------------------------------------------------------------------------- rows */

static inline size_t stored_size(loom_dtype dtype) {
    return dtype == LOOM_REAL_DTYPE ? sizeof(real) : loom_dtype_size(dtype);
}

/* Where row `row` of a view starts, rows counted over all but the innermost dimension. Rows are all one stride apart in
 * most views, and then nothing is divided. */
static inline void *row_address(const loom_view *view, int64_t row) {
    const int64_t *shape = view->shape, *stride = view->stride;
    int64_t element = row * stride[2];
    if (stride[1] != shape[2] * stride[2] || stride[0] != shape[1] * stride[1]) {
        const int64_t c = row % shape[2], b = row / shape[2] % shape[1], a = row / shape[2] / shape[1];
        element = a * stride[0] + b * stride[1] + c * stride[2];
    }
    return (char *)view->data + (size_t)element * stored_size(view->dtype);
}

/* Where column `first` of a row lies. */
static inline void *element_address(const loom_view *view, int64_t row, int64_t first) {
    return (char *)row_address(view, row) + (size_t)first * stored_size(view->dtype);
}

/* Short pieces of rows that lie far apart no processor sees coming: they are asked for AHEAD rows before they are read. An
 * address behind the last is no error. */
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
