/* The product of small tiles, C += A B: the one inner kernel of the definitions, written with the compiler's vector
 * types. Each element is summed over k in order, whatever the size of vectors and strips, so that its bits depend on
 * neither. */
#ifndef LOOM_CPU_TILE_H
#define LOOM_CPU_TILE_H

#include "cpu/real.h"

/* A strip's accumulators must stay in registers: rows * 2 of them, beside two vectors of B and one element of A. A
 * strip that does not fit is several times slower. TILE_ROWS divides every tile size that is a power of two. STRIP_ROWS
 * is the largest number of rows that fits; it keeps both multipliers busy while each sum waits for its previous
 * addition. For example, tile_multiply cuts 16 rows into 6 + 6 + 4 if STRIP_ROWS is 6, and into 8 + 8 if it is 12. */
#if defined __AVX512F__ || defined __aarch64__
enum { TILE_ROWS = 8, STRIP_ROWS = 12 }; /* a strip of STRIP_ROWS rows uses 27 of 32 registers */
#elif defined __AVX__
enum { TILE_ROWS = 4, STRIP_ROWS = 6 }; /* 15 of 16 registers */
#else
enum { TILE_ROWS = 4, STRIP_ROWS = 4 }; /* 11 of 16 registers: the multiply instruction overwrites an operand */
#endif
enum { TILE_LANES = VECTOR_LANES };

static inline int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

/* sum += a * b. UNROLLED is the number of steps of the inner dimension that are written out. Inline assembly is used
 * because gcc, which may choose among the three forms of the fused instruction, inserts moves of accumulators: a step
 * of 12 multiply-adds then has 24 to 29 instructions instead of 21.5. A core issues that many more only while its other
 * hardware thread is idle, which is rare on a shared machine. */
#if defined LOOM_CONTRACTS && defined __FMA__
enum { UNROLLED = 4 };
static inline __attribute__((always_inline)) void multiply_add(vector *sum, vector a, vector b) {
    __asm__("vfmadd231ps %1, %2, %0" : "+v"(*sum) : "v"(a), "v"(b));
}
#else
enum { UNROLLED = 1 };
static inline __attribute__((always_inline)) void multiply_add(vector *sum, vector a, vector b) {
    *sum += a * b;
}
#endif

/* One step of the inner dimension: a column of A, which is at index `at` of each row pointer, times a row of B. */
static inline __attribute__((always_inline)) void tile_step(vector sum[][2], const real *const *row, int64_t at,
                                                            const real *b, int rows, int vectors) {
    vector column[2];
    for (int v = 0; v < vectors; v++) column[v] = VECTOR_AT(b, v * TILE_LANES);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        const vector element = row[i][at] - (vector){0};
        for (int v = 0; v < vectors; v++) multiply_add(&sum[i][v], element, column[v]);
    }
}

/* The initial value of C: rows `ld` apart; with ld 0 all rows are the same one. */
typedef struct addend {
    const real *at;
    int64_t ld;
} addend;

/* C = start + A B for `rows` rows and `vectors` (1 or 2) vectors of columns, accumulated in registers over k. `start`
 * may be C itself. A's element (i,k) lies at i * a_row + k * a_column. */
static inline __attribute__((always_inline)) void tile_strip(real *c, int64_t ldc, addend start, const real *a,
                                                             int64_t a_row, int64_t a_column, const real *b,
                                                             int64_t ldb, int64_t K, int rows, int vectors) {
    vector sum[STRIP_ROWS][2];
    const real *row[STRIP_ROWS];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        row[i] = a + i * a_row;
        for (int v = 0; v < vectors; v++) sum[i][v] = VECTOR_AT(start.at, i * start.ld + v * TILE_LANES);
    }
    int64_t k = 0, at = 0;
    for (; k + UNROLLED <= K; k += UNROLLED) {
#pragma GCC unroll 4
        for (int u = 0; u < UNROLLED; u++, b += ldb, at += a_column) tile_step(sum, row, at, b, rows, vectors);
    }
    for (; k < K; k++, b += ldb, at += a_column) tile_step(sum, row, at, b, rows, vectors);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) *(vector *)(c + i * ldc + v * TILE_LANES) = sum[i][v];
}

/* Strips of A as it is stored, with rows `lda` apart, and of its transpose. Each is a separate function, so that
 * registers are allocated for its loop only. */
#define TILE_STRIP(name, rows, vectors, a_row, a_column)                                                               \
    static __attribute__((noinline, unused)) void name(real *c, int64_t ldc, addend start, const real *a, int64_t lda, \
                                                       const real *b, int64_t ldb, int64_t K) {                        \
        tile_strip(c, ldc, start, a, a_row, a_column, b, ldb, K, rows, vectors);                                       \
    }
TILE_STRIP(tile_strip_high, STRIP_ROWS, 2, lda, 1)
TILE_STRIP(tile_strip_low, TILE_ROWS, 2, lda, 1)
TILE_STRIP(tile_strip_narrow, TILE_ROWS, 1, lda, 1)
TILE_STRIP(tile_transposed_high, STRIP_ROWS, 2, 1, lda)
TILE_STRIP(tile_transposed_low, TILE_ROWS, 2, 1, lda)
TILE_STRIP(tile_transposed_narrow, TILE_ROWS, 1, 1, lda)
typedef void tile_strip_function(real *, int64_t, addend, const real *, int64_t, const real *, int64_t, int64_t);

/* C (M,N) += A (M,K) B (K,N); with `fresh` C = A B. A is stored as (M,K), or as (K,M) if `transposed`, which costs
 * nothing. M is a multiple of TILE_ROWS and N of TILE_LANES: callers pad with zeros. */
static inline void tile_multiply(real *c, int64_t ldc, const real *a, int64_t lda, bool transposed, const real *b,
                                 int64_t ldb, int64_t M, int64_t N, int64_t K, bool fresh) {
    static const real zeros[2 * TILE_LANES];
    tile_strip_function *const high = transposed ? tile_transposed_high : tile_strip_high;
    tile_strip_function *const low = transposed ? tile_transposed_low : tile_strip_low;
    tile_strip_function *const narrow = transposed ? tile_transposed_narrow : tile_strip_narrow;
    int64_t rest = 0; /* the rows that are left for strips of TILE_ROWS */
    while ((M - rest) % STRIP_ROWS) rest += TILE_ROWS;
    for (int64_t j = 0; j < N;) {
        const bool two = j + 2 * TILE_LANES <= N;
        for (int64_t i = 0; i < M;) {
            const bool most = two && i < M - rest;
            tile_strip_function *const strip = most ? high : two ? low : narrow;
            real *sums = c + i * ldc + j;
            const addend start = fresh ? (addend){zeros, 0} : (addend){sums, ldc};
            strip(sums, ldc, start, a + i * (transposed ? 1 : lda), lda, b + j, ldb, K);
            i += most ? STRIP_ROWS : TILE_ROWS;
        }
        j += two ? 2 * TILE_LANES : TILE_LANES;
    }
}

/* -------------------------------------------------------------------------------------------------------- transposition */

typedef real four __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* Selects elements of two vectors; the second vector's elements are numbered after the first's. */
#ifdef __clang__
#    define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#elif defined LOOM_ORACLE
typedef int64_t four_places __attribute__((vector_size(32)));
#    define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (four_places){__VA_ARGS__})
#else
typedef int32_t four_places __attribute__((vector_size(16)));
#    define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (four_places){__VA_ARGS__})
#endif

/* Transposes four rows of four: to[c * ld + r] = row[r][i + c]. */
static inline __attribute__((always_inline)) void transpose_4x4(real *to, int64_t ld, const real *const *row,
                                                                int64_t i) {
    const four a = *(const four *)(row[0] + i), b = *(const four *)(row[1] + i);
    const four c = *(const four *)(row[2] + i), d = *(const four *)(row[3] + i);
    const four ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
    const four ab_high = SHUFFLE(a, b, 2, 6, 3, 7), cd_high = SHUFFLE(c, d, 2, 6, 3, 7);
    *(four *)to = SHUFFLE(ab, cd, 0, 1, 4, 5);
    *(four *)(to + ld) = SHUFFLE(ab, cd, 2, 3, 6, 7);
    *(four *)(to + 2 * ld) = SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
    *(four *)(to + 3 * ld) = SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
}

#endif
