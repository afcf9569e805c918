/* The product of small tiles, the one inner kernel of the definitions: C += A B, written with the compiler's vector types.
 * Each element is summed over k in order, whatever the size of vectors and strips, so that its bits depend on neither. */
#ifndef LOOM_CPU_TILE_H
#define LOOM_CPU_TILE_H

#include "cpu/real.h"

/* A strip's accumulators stay in registers: rows * 2 of them, beside two vectors of B and one element of A. One that does
 * not fit is several times slower. TILE_ROWS divide tiles whose size is a power of two; STRIP_ROWS are as many as fit,
 * which keeps both multipliers busy while sums wait for themselves. */
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

/* C (M,N) += A (M,K) B (K,N). A's element (i,k) lies at i * a_row + k * a_column, so that a transposed A costs
 * nothing; rows of B and C are contiguous. M is a multiple of TILE_ROWS and N of TILE_LANES: callers pad with zeros. */
static inline void tile_multiply_add(real *c, int64_t ldc, const real *a, int64_t a_row, int64_t a_column,
                                     const real *b, int64_t ldb, int64_t M, int64_t N, int64_t K) {
    for (int64_t j = 0; j < N;) {
        const int vectors = j + 2 * TILE_LANES <= N ? 2 : 1;
        for (int64_t i = 0; i < M; i += TILE_ROWS) {
            if (vectors == 2)
                tile_strip(c + i * ldc + j, ldc, a + i * a_row, a_row, a_column, b + j, ldb, K, TILE_ROWS, 2, false);
            else
                tile_strip(c + i * ldc + j, ldc, a + i * a_row, a_row, a_column, b + j, ldb, K, TILE_ROWS, 1, false);
        }
        j += vectors * TILE_LANES;
    }
}

#endif
