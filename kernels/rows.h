/* Kernels that work on rows: a group of threads shares one row, a warp where rows are short, else a block, and each
 * thread owns the same columns in every sweep over it. So a thread may overwrite what only it has read, and rows can be
 * changed in place. */
#ifndef LOOM_KERNELS_ROWS_H
#define LOOM_KERNELS_ROWS_H

#include "kernels/ptx.h"
#include "kernels/reduce.h"

/* A two-dimensional view in a kernel: its rows are contiguous and `stride` elements apart. */
template <typename T> struct rows {
    T *data;
    int64_t stride;
};

template <typename T> static inline rows<T> rows_of(const loom_view *view) {
    return {static_cast<T *>(view->data), view->stride[2]};
}

template <typename T> __device__ __forceinline__ T *row_at(rows<T> r, int64_t n) {
    return r.data + n * r.stride;
}

/* -------------------------------------------------------------------------------------------------------------- words
 * A pack of 16 bytes as it stays in registers: four words, where values of 16 bits would take a register each. */

typedef pack<uint32_t, 4> vec128;

template <typename T> __device__ __forceinline__ vec128 load_vec128(const T *from) {
    expect_aligned(from, sizeof(vec128));
    return *reinterpret_cast<const vec128 *>(from);
}

template <typename T> __device__ __forceinline__ void store_vec128(T *to, const vec128 &w) {
    expect_aligned(to, sizeof(vec128));
    *reinterpret_cast<vec128 *>(to) = w;
}

__device__ __forceinline__ void unpack(float (&to)[4], const vec128 &w, float) {
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = __uint_as_float(w.at[i]);
}

/* A bf16 is the upper half of a float. */
__device__ __forceinline__ void unpack(float (&to)[8], const vec128 &w, bf16) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(w.at[i] << 16);
        to[2 * i + 1] = __uint_as_float(w.at[i] & 0xFFFF0000u);
    }
}

__device__ __forceinline__ void unpack(float (&to)[8], const vec128 &w, fp16) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = to_float(__ushort_as_half((unsigned short)(w.at[i] & 0xFFFF)));
        to[2 * i + 1] = to_float(__ushort_as_half((unsigned short)(w.at[i] >> 16)));
    }
}

__device__ __forceinline__ vec128 pack_values(const float (&from)[4], float) {
    vec128 w;
#pragma unroll
    for (int i = 0; i < 4; i++) w.at[i] = __float_as_uint(from[i]);
    return w;
}

template <typename T> __device__ __forceinline__ vec128 pack_values(const float (&from)[8], T type) {
    vec128 w;
#pragma unroll
    for (int i = 0; i < 4; i++) w.at[i] = ptx::pair(from[2 * i], from[2 * i + 1], type);
    return w;
}

/* N values of a row as floats, N being 1 or what an access of 16 bytes holds. */
template <int N, typename T> __device__ __forceinline__ void read_values(float (&to)[N], const T *from) {
    if constexpr (N == 1)
        to[0] = to_float(*from);
    else
        unpack(to, load_vec128(from), T());
}

template <int N, typename T> __device__ __forceinline__ void write_values(T *to, const float (&from)[N]) {
    if constexpr (N == 1)
        *to = from_float<T>(from[0]);
    else
        store_vec128(to, pack_values(from, T()));
}

/* ------------------------------------------------------------------------------------------------------------- groups
 * GROUP threads share a row: 32, where a block holds several groups, or the whole block. */

constexpr int WARP = 32;

template <int GROUP> constexpr int GROUPS = GROUP == WARP ? 4 : 1; /* in a block: also the rows it has in work */
template <int GROUP> constexpr int GROUP_THREADS = GROUP *GROUPS<GROUP>;

template <int GROUP> __device__ __forceinline__ float group_sum(float value) {
    if constexpr (GROUP == WARP)
        return warp_sum(value);
    else
        return block_sum<GROUP>(value);
}

template <int GROUP> __device__ __forceinline__ float group_max(float value) {
    if constexpr (GROUP == WARP)
        return warp_max(value);
    else
        return block_max<GROUP>(value);
}

/* The row of the calling thread's group, where each group has one; and the thread's place in the group. */
template <int GROUP> __device__ __forceinline__ int64_t group_row() {
    return (int64_t)blockIdx.x * GROUPS<GROUP> + threadIdx.x / GROUP;
}

template <int GROUP> __device__ __forceinline__ int group_lane() {
    return (int)threadIdx.x % GROUP;
}

/* The grid for N rows, one to a group. */
template <int GROUP> static inline unsigned group_grid(int64_t N) {
    return grid_size(ceil_div(N, (int64_t)GROUPS<GROUP>));
}

#endif
