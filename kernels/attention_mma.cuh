/* Products of tiles in shared memory on the tensor cores, as attention needs them. A warp computes 16 M rows. `s[m][n]`
 * is the 16 x 8 block of rows 16 m and columns 8 n on, in the layout of mma's c and d (kernels/ptx.h): lane l holds, of
 * rows l / 4 (0, 1) and l / 4 + 8 (2, 3), the columns 2 (l % 4) and the next. */
#ifndef LOOM_KERNELS_ATTENTION_MMA_CUH
#define LOOM_KERNELS_ATTENTION_MMA_CUH

#include "kernels/attention.cuh"

template <int M, int N> __device__ __forceinline__ void clear(float (&s)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][n][i] = 0;
}

/* Scores become -infinity, and so their probabilities zero, where the column's number is beyond the row's (rows are
 * queries, columns are keys), the first of which are given; or where the row's is beyond the column's. */
template <int M, int N>
__device__ __forceinline__ void mask_columns_after_rows(float (&s)[M][N][4], int first_row, int first_column) {
    const int lane = (int)threadIdx.x % 32, ahead = first_column + lane % 4 * 2 - first_row - lane / 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (ahead > 16 * m + i / 2 * 8 - 8 * n - i % 2) s[m][n][i] = -INFINITY;
}

template <int M, int N>
__device__ __forceinline__ void mask_rows_after_columns(float (&s)[M][N][4], int first_row, int first_column) {
    const int lane = (int)threadIdx.x % 32, ahead = first_row + lane / 4 - first_column - lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (ahead > 8 * n + i % 2 - 16 * m - i / 2 * 8) s[m][n][i] = -INFINITY;
}

/* -------------------------------------------------------------------------------------------------------- fragments */

/* a of 16 rows and 16 columns, from the tile's element (row, column) on. */
template <int D, typename T>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const T *tile, int row, int column) {
    const int lane = (int)threadIdx.x % 32;
    ptx::ldmatrix_x4(a, tile + (row + lane % 16) * PITCH<T, D> + column + lane / 16 * 8);
}

/* b of two blocks, 16 deep and 8 wide, side by side: a block's column is a row of the tile. */
template <int D, typename T>
__device__ __forceinline__ void load_b_from_rows(uint32_t (&b)[4], const T *tile, int row, int column) {
    const int lane = (int)threadIdx.x % 32;
    ptx::ldmatrix_x4(b, tile + (row + lane / 16 * 8 + lane % 8) * PITCH<T, D> + column + lane / 8 % 2 * 8);
}

/* The same where a block's column is a column of the tile. */
template <int D, typename T>
__device__ __forceinline__ void load_b_from_columns(uint32_t (&b)[4], const T *tile, int row, int column) {
    const int lane = (int)threadIdx.x % 32;
    ptx::ldmatrix_x4_trans(b, tile + (row + lane % 16) * PITCH<T, D> + column + lane / 16 * 8);
}

/* The 16 M rows of a tile that are a warp's left factor, for kernels that keep them in registers. */
template <int D, int M, int K, typename T>
__device__ __forceinline__ void load_left(uint32_t (&left)[M][K][4], const T *tile) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int k = 0; k < K; k++) load_a<D>(left[m][k], tile, 16 * m, 16 * k);
}

/* --------------------------------------------------------------------------------------------------------- products */

/* s = the dot products of 16 M rows of D elements with 8 N rows of another tile. The left rows are `held`, where the
 * registers suffice for that (HELD), or else read from the tile `left` again. */
template <int D, bool HELD, int M, int N, int K, typename T>
__device__ __forceinline__ void multiply_rows(float (&s)[M][N][4], const uint32_t (&held)[M][K][4], const T *left,
                                              const T *right) {
    clear(s);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            if constexpr (HELD) {
#pragma unroll
                for (int i = 0; i < 4; i++) a[m][i] = held[m][k][i];
            } else {
                load_a<D>(a[m], left, 16 * m, 16 * k);
            }
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            load_b_from_rows<D>(b, right, 8 * n, 16 * k);
            const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                ptx::mma_16x8x16(s[m][n], a[m], b0, s[m][n], T());
                ptx::mma_16x8x16(s[m][n + 1], a[m], b1, s[m][n + 1], T());
            }
        }
    }
}

/* o += p times 8 N rows of a tile, p (16 M, 8 N) rounded to T: where a block of p lies in registers as d of one
 * product, two of them side by side are a of the next. */
template <int M, int N, int D8, typename T>
__device__ __forceinline__ void multiply_add(float (&o)[M][D8][4], const float (&p)[M][N][4], const T *tile) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[m][0] = ptx::pair(p[m][n][0], p[m][n][1], T());
            a[m][1] = ptx::pair(p[m][n][2], p[m][n][3], T());
            a[m][2] = ptx::pair(p[m][n + 1][0], p[m][n + 1][1], T());
            a[m][3] = ptx::pair(p[m][n + 1][2], p[m][n + 1][3], T());
        }
#pragma unroll
        for (int d = 0; d < D8; d += 2) {
            uint32_t b[4];
            load_b_from_columns<8 * D8>(b, tile, 8 * n, 8 * d);
            const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                ptx::mma_16x8x16(o[m][d], a[m], b0, o[m][d], T());
                ptx::mma_16x8x16(o[m][d + 1], a[m], b1, o[m][d + 1], T());
            }
        }
    }
}

/* The 16 M rows of a warp, each times its own factor, through the warp's rows of a tile to memory; `rows` of them
 * exist. `factor[m][i]` is that of row 16 m + lane / 4 + 8 i. */
template <bool ALIGNED, int M, int D8, typename T>
__device__ __forceinline__ void store_rows(T *to, int64_t stride, T *tile, const float (&o)[M][D8][4],
                                           const float (&factor)[M][2], int rows, int head_size) {
    constexpr int D = 8 * D8;
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int d = 0; d < D8; d++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                T *at = tile + (16 * m + lane / 4 + 8 * i) * PITCH<T, D> + 8 * d + lane % 4 * 2;
                *reinterpret_cast<uint32_t *>(at) = ptx::pair(o[m][d][2 * i] * factor[m][i],
                                                              o[m][d][2 * i + 1] * factor[m][i], T());
            }
    __syncwarp();
    store_tile<16 * M, D, 32, ALIGNED>(to, stride, tile, rows, head_size, lane);
}

#endif
