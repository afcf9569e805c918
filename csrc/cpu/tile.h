/* The product of small tiles, the one inner kernel of the definitions: C += A B, written with the compiler's vector types.
 * Each element is summed over k in order, whatever the size of vectors and strips, so that its bits depend on neither. */
#ifndef LOOM_CPU_TILE_H
#define LOOM_CPU_TILE_H

#include "cpu/real.h"

/* A strip's accumulators stay in registers: rows * 2 of them, beside two vectors of B and one element of A. One that does
 * not fit is several times slower. TILE_ROWS divide tiles whose size is a power of two; STRIP_ROWS are as many as fit,
 * which keeps both multipliers busy while sums wait for themselves. Of 16 rows, say, tile_multiply makes 6 + 6 + 4 where
 * STRIP_ROWS are 6, and 8 + 8 where they are 12. */
#if defined __AVX512F__ || defined __aarch64__
enum { TILE_ROWS = 8, STRIP_ROWS = 12 }; /* 27 of 32 registers are in use by a strip of most rows */
#elif defined __AVX__
enum { TILE_ROWS = 4, STRIP_ROWS = 6 }; /* 15 of 16 */
#else
enum { TILE_ROWS = 4, STRIP_ROWS = 4 }; /* 11 of 16: what multiplies here overwrites an operand */
#endif
enum { TILE_LANES = VECTOR_LANES };

static inline int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

/* `rows` rows and `vectors` (1 or 2) vectors of columns, accumulated in registers over k: added to what C has, or with
 * `fresh` written. A's element (i,k) lies at i * a_row + k * a_column. */
static inline __attribute__((always_inline)) void tile_strip(real *c, int64_t ldc, const real *a, int64_t a_row,
                                                             int64_t a_column, const real *b, int64_t ldb, int64_t K,
                                                             int rows, int vectors, bool fresh) {
    vector sum[STRIP_ROWS][2];
    const real *row[STRIP_ROWS];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        row[i] = a + i * a_row;
        for (int v = 0; v < vectors; v++)
            sum[i][v] = fresh ? (vector){0} : *(const vector *)(c + i * ldc + v * TILE_LANES);
    }
    for (int64_t k = 0; k < K; k++) {
        vector column[2];
        for (int v = 0; v < vectors; v++) column[v] = *(const vector *)(b + k * ldb + v * TILE_LANES);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            const real scalar = row[i][k * a_column];
            for (int v = 0; v < vectors; v++) sum[i][v] += scalar * column[v];
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) *(vector *)(c + i * ldc + v * TILE_LANES) = sum[i][v];
}

/* C (M,N) += A (M,K) B (K,N), or with `fresh` =. A's element (i,k) lies at i * a_row + k * a_column, so that a transposed A
 * costs nothing; rows of B and C are contiguous. M is a multiple of TILE_ROWS and N of TILE_LANES: callers pad with zeros. */
static inline void tile_multiply(real *c, int64_t ldc, const real *a, int64_t a_row, int64_t a_column, const real *b,
                                 int64_t ldb, int64_t M, int64_t N, int64_t K, bool fresh) {
    int64_t low = 0; /* rows that are left to strips of TILE_ROWS */
    while ((M - low) % STRIP_ROWS) low += TILE_ROWS;
    for (int64_t j = 0; j < N;) {
        const int vectors = j + 2 * TILE_LANES <= N ? 2 : 1;
        const int64_t high = vectors == 2 ? M - low : 0;
        for (int64_t i = 0; i < M; i += i < high ? STRIP_ROWS : TILE_ROWS) {
            real *sums = c + i * ldc + j;
            const real *rows = a + i * a_row;
            if (i < high && fresh)
                tile_strip(sums, ldc, rows, a_row, a_column, b + j, ldb, K, STRIP_ROWS, 2, true);
            else if (i < high)
                tile_strip(sums, ldc, rows, a_row, a_column, b + j, ldb, K, STRIP_ROWS, 2, false);
            else if (vectors == 2 && fresh)
                tile_strip(sums, ldc, rows, a_row, a_column, b + j, ldb, K, TILE_ROWS, 2, true);
            else if (vectors == 2)
                tile_strip(sums, ldc, rows, a_row, a_column, b + j, ldb, K, TILE_ROWS, 2, false);
            else if (fresh)
                tile_strip(sums, ldc, rows, a_row, a_column, b + j, ldb, K, TILE_ROWS, 1, true);
            else
                tile_strip(sums, ldc, rows, a_row, a_column, b + j, ldb, K, TILE_ROWS, 1, false);
        }
        j += vectors * TILE_LANES;
    }
}

/* -------------------------------------------------------------------------------------------------------- transposition */

typedef real four __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* Elements of two vectors, counted over both. */
#ifdef __clang__
#    define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#elif defined LOOM_ORACLE
typedef int64_t four_places __attribute__((vector_size(32)));
#    define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (four_places){__VA_ARGS__})
#else
typedef int32_t four_places __attribute__((vector_size(16)));
#    define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (four_places){__VA_ARGS__})
#endif

/* Four rows of four become columns: to[c * ld + r] = row[r][i + c]. */
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
