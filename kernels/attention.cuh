/* What the attention kernels share: their arguments, which part of the work a block takes, and tiles in shared memory.
 * attention.cu has the entry points; attention_forward_mma.cuh and attention_backward_mma.cuh have the kernels for
 * 16-bit storage, attention_fp32.cu those for fp32. */
#ifndef LOOM_KERNELS_ATTENTION_CUH
#define LOOM_KERNELS_ATTENTION_CUH

#include "kernels/ptx.h"

/* -------------------------------------------------------------------------------------------------------- arguments */

/* A (B,T,H,D) view as a kernel sees it; strides in elements. */
struct attention_tensor {
    void *data;
    int64_t batch, time, head;
};

/* A float for each query, (B,H,Tq): lse, and delta. */
struct attention_statistic {
    float *data;
    int64_t batch, head;
};

/* What forward and backward both read. */
struct attention_inputs {
    attention_tensor q, k, v;
    int batch, heads, group; /* `group` query heads share a key head */
    int queries, keys;       /* Tq; of the Tk keys those that any query sees, first_query + Tq */
    int head_size, first_query;
    float scale;
    bool aligned; /* every row of every tensor starts at a multiple of 16 bytes */
    int section;  /* heads whose rows fit into the cache together: see attention_part */
};

struct attention_forward_arguments {
    attention_inputs in;
    attention_tensor out;
    attention_statistic lse;
};

struct attention_backward_arguments {
    attention_inputs in;
    attention_tensor dq, dk, dv, dout;
    attention_statistic lse, delta;
    int all_keys; /* Tk: dk and dv are written for keys that nobody sees, too */
};

/* The kernels, one source file for each dtype and, with 16 bits, direction. `backward` reads delta. */
void loom_cuda_attention_forward_fp32(const loom_context *ctx, const attention_forward_arguments &a);
void loom_cuda_attention_forward_bf16(const loom_context *ctx, const attention_forward_arguments &a);
void loom_cuda_attention_forward_fp16(const loom_context *ctx, const attention_forward_arguments &a);
void loom_cuda_attention_backward_fp32(const loom_context *ctx, const attention_backward_arguments &a);
void loom_cuda_attention_backward_bf16(const loom_context *ctx, const attention_backward_arguments &a);
void loom_cuda_attention_backward_fp16(const loom_context *ctx, const attention_backward_arguments &a);

/* Calls f(head size padded to one that kernels are made for, whether rows are aligned), both std::integral_constant.
 * What is not aligned is rare and slow in any case: one size serves it. */
template <typename F> static inline void with_attention_variant(const attention_inputs &in, F f) {
    if (!in.aligned)
        f(std::integral_constant<int, 128>(), std::false_type());
    else if (in.head_size <= 16)
        f(std::integral_constant<int, 16>(), std::true_type());
    else if (in.head_size <= 32)
        f(std::integral_constant<int, 32>(), std::true_type());
    else if (in.head_size <= 64)
        f(std::integral_constant<int, 64>(), std::true_type());
    else if (in.head_size <= 96)
        f(std::integral_constant<int, 96>(), std::true_type());
    else
        f(std::integral_constant<int, 128>(), std::true_type());
}

/* ---------------------------------------------------------------------------------------------- the work of a block */

/* A tile of one head of one sequence. */
struct attention_part {
    int tile, batch, head;
};

/* Blocks start about in the order of their index. Tiles are taken longest first, so that short ones fill the
 * multiprocessors when the work runs out: tile 0 is to be the longest, and all heads' tile 0 come before tile 1. As the
 * tiles of a head read the same rows, the heads are taken in sections that fit into the second-level cache. */
__device__ __forceinline__ attention_part part_of_block(int tiles, int batch, int heads, int section) {
    const int block = (int)blockIdx.x, number = block / (section * tiles), first = number * section;
    const int here = min(section, batch * heads - first), within = block - first * tiles;
    const int head = first + within % here;
    return {within / here, head / heads, head % heads};
}

/* The first of a head's rows from `time` on. */
template <typename T>
__device__ __forceinline__ T *attention_row(const attention_tensor &t, int batch, int time, int head) {
    return static_cast<T *>(t.data) + batch * t.batch + time * t.time + head * t.head;
}

__device__ __forceinline__ float *attention_row(const attention_statistic &s, int batch, int head) {
    return s.data + batch * s.batch + head * s.head;
}

/* ---------------------------------------------------------------------------------------------------- tiles of memory
 * A tile has rows of D elements, a head size with its padding, that lie PITCH<T, D> apart: 16 bytes more than they
 * fill, so that eight rows' accesses of 16 bytes at the same column fall on different banks. */
template <typename T, int D> constexpr int PITCH = D + PACKED<T>;

/* x, of which the compiler does not know that it is the same each time: what is computed from it in a loop is computed
 * there, when it is needed, rather than once and kept in registers all the time. */
__device__ __forceinline__ int anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

/* Starts to copy `rows` rows, `stride` apart, to the beginning of a tile of ROWS; zeros fill what is missing of rows
 * and of D (a copy of 0 bytes reads nothing at its address). To be waited for as cp_async. Rows that are not ALIGNED
 * are copied element by element.
 *
 * Each thread copies the same columns of every STEP-th row; a few have nothing to do where PACKS does not divide
 * THREADS. */
template <int ROWS, int D, int THREADS, bool ALIGNED, typename T>
__device__ __forceinline__ void load_tile(T *tile, const T *from, int64_t stride, int rows, int head_size) {
    if constexpr (ALIGNED) {
        constexpr int PACKS = D / PACKED<T>, STEP = THREADS / PACKS;
        const int thread = anew((int)threadIdx.x), first = thread / PACKS, column = thread % PACKS * PACKED<T>;
        if (THREADS % PACKS && first == STEP) return;
        const T *source = from + first * stride + column;
        T *to = tile + first * PITCH<T, D> + column;
        const int last = column < head_size ? rows : 0;
        /* Counted from a constant: a loop that began at `first` would not be unrolled whole. */
#pragma unroll
        for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++) {
            const int row = first + i * STEP;
            if (ROWS % STEP == 0 || row < ROWS)
                ptx::cp_async_16(to + i * STEP * PITCH<T, D>, source + i * STEP * stride, row < last ? 16 : 0);
        }
    } else {
#pragma unroll 1
        for (int i = (int)threadIdx.x; i < ROWS * D; i += THREADS) {
            const int row = i / D, column = i % D;
            const bool inside = row < rows && column < head_size;
            tile[row * PITCH<T, D> + column] = inside ? from[row * stride + column] : from_float<T>(0);
        }
    }
}

/* Writes the first `rows` rows of a tile of ROWS, by the THREADS threads of which this one is `thread`. */
template <int ROWS, int D, int THREADS, bool ALIGNED, typename T>
__device__ __forceinline__ void store_tile(T *to, int64_t stride, const T *tile, int rows, int head_size, int thread) {
    constexpr int STEP = ALIGNED ? PACKED<T> : 1;
    for (int i = thread * STEP; i < ROWS * D; i += THREADS * STEP) {
        const int row = i / D, column = i % D;
        if (row < rows && column < head_size)
            store_pack(to + row * stride + column, load_pack<STEP>(tile + row * PITCH<T, D> + column));
    }
}

#endif
