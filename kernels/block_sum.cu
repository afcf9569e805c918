#include "kernels/elementwise.h"
#include "kernels/reduce.h"

/* A CUDA block to a partial sum, which is one of fixed parts of the tensor already. Its threads take packs of 16 bytes
 * in turn: thread t packs t, t + THREADS, ..., whose values it adds in order; warps and then the block add these sums
 * in the fixed order of reduce.h. How memory is accessed has no part in it. Four packs are under way at once, so that
 * one block to a multiprocessor is enough to keep the memory busy. Reads n, writes 4 bytes a partial. */
template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS)
    block_sum_kernel(float *partials, const T *x, int64_t n, int64_t block, bool square, bool packed) {
    constexpr int N = PACKED<T>, UNROLL = 4;
    constexpr int64_t TURN = (int64_t)THREADS * N;
    const int64_t first = blockIdx.x * block, count = n - first < block ? n - first : block;
    const T *from = x + first;
    int64_t i = (int64_t)threadIdx.x * N;
    float sum = 0;
    for (; packed && i + (UNROLL - 1) * TURN + N <= count; i += UNROLL * TURN) {
        pack<T, N> values[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) values[u] = load_pack<N>(from + i + u * TURN);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float value = to_float(values[u].at[j]);
                sum = square ? fmaf(value, value, sum) : sum + value;
            }
    }
    for (; i < count; i += TURN) {
        float value[N];
        load_floats(value, from + i, count - i < N ? (int)(count - i) : N, packed);
#pragma unroll
        for (int j = 0; j < N; j++) sum = square ? fmaf(value[j], value[j], sum) : sum + value[j];
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

void loom_cuda_block_sum(loom_context *ctx, const struct loom_block_sum *a) {
    with_dtype(a->x.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        const unsigned partials = grid_size(a->partials.shape[3]);
        const bool packed = (uintptr_t)a->x.data % 16 == 0 && a->block % PACKED<T> == 0;
        if (a->block >= 4096)
            launch(ctx, "block_sum", block_sum_kernel<T, 1024>, partials, 1024, 0, a->partials.data, a->x.data,
                   a->x.shape[3], a->block, a->square, packed);
        else
            launch(ctx, "block_sum", block_sum_kernel<T, 128>, partials, 128, 0, a->partials.data, a->x.data,
                   a->x.shape[3], a->block, a->square, packed);
    });
}
LOOM_CUDA_NO_WORKSPACE(block_sum)
