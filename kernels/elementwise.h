/* Kernels that do the same to every element of views of one shape. Views whose rows follow one another are one long
 * row. A thread has N elements of a row, which is one access of 16 bytes in the narrowest of the dtypes, and several
 * where another is wider; rows that no 16-byte access could read are read value by value. */
#ifndef LOOM_KERNELS_ELEMENTWISE_H
#define LOOM_KERNELS_ELEMENTWISE_H

#include "kernels/rows.h"

/* What the threads of a launch share out among them. */
struct elements {
    int64_t rows, columns;
    bool packed; /* all rows of all views start at multiples of 16 bytes */
};

constexpr int ELEMENTWISE_THREADS = 256; /* of a block, at most */

static inline bool is_one_row(const loom_view *view) {
    return loom_view_row_count(view) == 1 || view->stride[2] == view->shape[3];
}

template <typename... V> static inline elements elements_of(const loom_view *view, const V *...others) {
    elements e = {loom_view_row_count(view), view->shape[3], true};
    if (is_one_row(view) && (is_one_row(others) && ...)) {
        e.columns *= e.rows;
        e.rows = 1;
    }
    for (const loom_view *v : {view, others...}) {
        const uintptr_t row = (uintptr_t)v->stride[2] * loom_dtype_size(v->dtype);
        e.packed = e.packed && (uintptr_t)v->data % 16 == 0 && (e.rows == 1 || row % 16 == 0);
    }
    return e;
}

/* Threads of a block: whole warps, no more than a row needs. */
template <int N> static inline unsigned elementwise_block(const elements &e) {
    const int64_t warps = ceil_div(e.columns, (int64_t)N * WARP);
    return warps < ELEMENTWISE_THREADS / WARP ? (unsigned)warps * WARP : ELEMENTWISE_THREADS;
}

/* Blocks along a row, and rows; where there are more rows than a grid can have, threads go on with others. */
template <int N> static inline dim3 elementwise_grid(const elements &e) {
    return dim3(grid_size(ceil_div(e.columns, (int64_t)N * elementwise_block<N>(e))),
                (unsigned)(e.rows < 65535 ? e.rows : 65535));
}

/* The first of a thread's N columns. */
template <int N> __device__ __forceinline__ int64_t first_column() {
    return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
}

/* How many of them there are, where the first is one. */
template <int N> __device__ __forceinline__ int column_count(const elements &e, int64_t first) {
    return e.columns - first < N ? (int)(e.columns - first) : N;
}

/* n values as N floats, the rest zeros; in accesses of 16 bytes if they are packed and none is missing. */
template <int N, typename T>
__device__ __forceinline__ void load_floats(float (&to)[N], const T *from, int n, bool packed) {
    constexpr int W = PACKED<T>;
    static_assert(N % W == 0, "whole packs");
    if (packed && n == N) {
#pragma unroll
        for (int start = 0; start < N; start += W) {
            const pack<T, W> values = load_pack<W>(from + start);
#pragma unroll
            for (int i = 0; i < W; i++) to[start + i] = to_float(values.at[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = i < n ? to_float(from[i]) : 0;
    }
}

/* The other way. __stwb stores as an assignment does, but whole: nvcc would merge a plain store of a pack with the
 * single ones of the other branch, which leaves single ones only. */
template <int N, typename T>
__device__ __forceinline__ void store_floats(T *to, const float (&from)[N], int n, bool packed) {
    constexpr int W = PACKED<T>;
    static_assert(N % W == 0, "whole packs");
    if (packed && n == N) {
#pragma unroll
        for (int start = 0; start < N; start += W) {
            pack<T, W> values;
#pragma unroll
            for (int i = 0; i < W; i++) values.at[i] = from_float<T>(from[start + i]);
            __stwb(reinterpret_cast<uint4 *>(to + start), *reinterpret_cast<const uint4 *>(&values));
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < n) to[i] = from_float<T>(from[i]);
    }
}

#endif
