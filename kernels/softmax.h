/* What softmax and cross_entropy share: the sweep over a row that finds its largest value and its sum of exponentials,
 * and a copy of the row in shared memory, so that memory is read once. */
#ifndef LOOM_KERNELS_SOFTMAX_H
#define LOOM_KERNELS_SOFTMAX_H

#include "kernels/ptx.h"
#include "kernels/rows.h"

/* Rows longer than this have a block to themselves, a large one: a vocabulary. */
constexpr int64_t WARP_COLUMNS = 2048;
constexpr int BLOCK = 512;

/* How a kernel reads rows: N values to an access, of 16 bytes or one, by groups of GROUP threads; CACHED: by way of a
 * copy in shared memory, which later sweeps read. */
template <int ACCESS, int THREADS, bool SHARED> struct reading {
    static constexpr int N = ACCESS, GROUP = THREADS;
    static constexpr bool CACHED = SHARED;
};

/* What every GPU since sm_80 lets a block have, less what kernels declare beside it: 50304 bf16 values fit. The choice
 * may not hang on the GPU, because bits follow from shapes. */
constexpr int64_t CACHE_BYTES = 99 * 1024 - 512;

/* Calls f(reading, shared bytes) for rows of so many columns, of which a block keeps `cached_rows` to a group. */
template <typename T, typename F> static void with_reading(int64_t columns, bool aligned, int cached_rows, F f) {
    constexpr int N = PACKED<T>;
    const int64_t bytes = columns * (int64_t)sizeof(T) * cached_rows;
    if (columns <= WARP_COLUMNS && aligned)
        f(reading<N, WARP, true>(), (size_t)bytes * GROUPS<WARP>);
    else if (columns <= WARP_COLUMNS)
        f(reading<1, WARP, false>(), (size_t)0);
    else if (aligned && bytes <= CACHE_BYTES)
        f(reading<N, BLOCK, true>(), (size_t)bytes);
    else if (aligned)
        f(reading<N, BLOCK, false>(), (size_t)0);
    else
        f(reading<1, BLOCK, false>(), (size_t)0);
}

constexpr float LOG2_E = 1.44269504f;

/* exp(scale x), with scale2 = scale log2(e): a relative error of about 2^-22 + |scale x| 2^-23, where scale is 1 of
 * half that; denormal results are zero. Softmaxes take it of x - largest, where what errs more is small beside 1. */
__device__ __forceinline__ float exp_approximate(float x, float scale2) {
    return ptx::exp2_approximate(x * scale2);
}

/* Columns `column` to `column + N - 1` of a row; -inf, which adds nothing to a softmax, from `columns` on. */
template <int N, typename T>
__device__ __forceinline__ void read_columns(float (&x)[N], const T *row, int column, int columns) {
    read_values(x, row + column);
    if (column + N <= columns) return;
#pragma unroll
    for (int i = 0; i < N; i++)
        if (column + i >= columns) x[i] = -INFINITY;
}

/* A row's largest value, and the sum of exp(scale (x - largest)) over it. */
struct softmax_row {
    float largest, sum;
};

/* Adds values. The sum is scaled anew when a larger value comes   (Milakov and Gimelshein, "Online normalizer
 * calculation for softmax", 2018). While all values were -inf the sum stays 0; NaN makes it NaN. */
template <int N> __device__ __forceinline__ void softmax_add(softmax_row &s, const float (&x)[N], float scale2) {
    float largest = s.largest;
#pragma unroll
    for (int i = 0; i < N; i++) largest = fmaxf(largest, x[i]);
    if (largest > s.largest) s.sum *= exp_approximate(s.largest - largest, scale2);
    s.largest = largest;
    const float base = largest == -INFINITY ? 0.0f : largest;
#pragma unroll
    for (int i = 0; i < N; i++) s.sum += exp_approximate(x[i] - base, scale2);
}

/* Copies the calling thread's packs of a row into `cache`, in the background, those from the first-th up to the end-th,
 * as one group of copies. */
template <typename READING, typename T>
__device__ __forceinline__ void cache_packs(T *cache, const T *row, int first, int end) {
    for (int p = first + group_lane<READING::GROUP>(); p < end; p += READING::GROUP)
        ptx::cp_async_16(cache + p * READING::N, row + p * READING::N);
    ptx::cp_async_commit();
}

template <typename READING, typename T>
__device__ __forceinline__ void sweep_packs(softmax_row &s, const T *row, int first, int end, int columns,
                                            float scale2) {
    constexpr int N = READING::N;
    for (int p = first + group_lane<READING::GROUP>(); p < end; p += READING::GROUP) {
        float x[N];
        read_columns(x, row, p * N, columns);
        softmax_add(s, x, scale2);
    }
}

/* The sweep over the first `columns` columns of the group's row. With a cache, all of it is under way before the first
 * half is looked at, and afterwards each thread finds in the cache what it will own in the next sweep. The order of
 * additions is the same with and without. */
template <typename READING, typename T>
__device__ __forceinline__ softmax_row softmax_sweep(const T *row, T *cache, int columns, float scale2) {
    constexpr int GROUP = READING::GROUP;
    const int packs = ceil_div(columns, READING::N);
    softmax_row s = {-INFINITY, 0};
    if constexpr (READING::CACHED) {
        const int half = ceil_div(packs, 2 * GROUP) * GROUP;
        cache_packs<READING>(cache, row, 0, min(half, packs));
        cache_packs<READING>(cache, row, half, packs);
        ptx::cp_async_wait<1>();
        sweep_packs<READING>(s, cache, 0, min(half, packs), columns, scale2);
        ptx::cp_async_wait<0>();
        sweep_packs<READING>(s, cache, half, packs, columns, scale2);
    } else {
        sweep_packs<READING>(s, row, 0, packs, columns, scale2);
    }
    const float largest = group_max<GROUP>(s.largest);
    return {largest, group_sum<GROUP>(s.sum * exp_approximate(s.largest - largest, scale2))};
}

#endif
