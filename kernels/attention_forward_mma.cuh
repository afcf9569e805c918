/* Attention forward for 16-bit storage, on the tensor cores   (Dao, "FlashAttention-2", 2023, algorithm 1). */
#ifndef LOOM_KERNELS_ATTENTION_FORWARD_MMA_CUH
#define LOOM_KERNELS_ATTENTION_FORWARD_MMA_CUH

#include "kernels/attention_mma.cuh"

/* How the kernel is cut for a padded head size. A block of WARPS warps takes 16 M WARPS queries, and KEYS keys at a
 * time. Two 16-row blocks to a warp (M = 2), as what is read of keys and values from shared memory then serves twice as
 * many products: one ldmatrix_x4 feeds four, which is about what a multiprocessor computes in the time of it. What
 * remains of the 255 registers of a thread after out (4 M D/8) and scores (4 M KEYS/8) decides KEYS, and whether the
 * queries (4 M D/16) stay in registers too. */
template <int D> struct forward_shape {
    static constexpr int WARPS = 4, THREADS = 32 * WARPS, M = 2, QUERIES = 16 * M * WARPS;
    static constexpr int KEYS = D <= 64 ? 64 : 32;
    static constexpr bool HELD = D <= 64;
};

/* One online step of the softmax: scores become exp2(scale2 (score - maximum)), the running maximum and the thread's
 * part of the sum move, and o is scaled to the new maximum, which mostly has not changed. */
template <int M, int N, int D8>
__device__ __forceinline__ void online_softmax(float (&s)[M][N][4], float (&o)[M][D8][4], float (&maximum)[M][2],
                                               float (&sum)[M][2], float scale2) {
    float correction[M][2];
    bool moved = false;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float largest = maximum[m][i];
#pragma unroll
            for (int n = 0; n < N; n++) largest = fmaxf(largest, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 2));
            const float shift = largest * scale2;
            correction[m][i] = ptx::exp2_approximate(fmaf(maximum[m][i], scale2, -shift));
            moved = moved || largest > maximum[m][i];
            maximum[m][i] = largest;
            float added = 0;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int j = 2 * i; j < 2 * i + 2; j++)
                    added += s[m][n][j] = ptx::exp2_approximate(fmaf(s[m][n][j], scale2, -shift));
            sum[m][i] = fmaf(sum[m][i], correction[m][i], added);
        }
    if (__ballot_sync(0xFFFFFFFFu, moved) == 0) return;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int d = 0; d < D8; d++)
#pragma unroll
            for (int j = 0; j < 4; j++) o[m][d][j] *= correction[m][j / 2];
}

/* out and lse of a tile of queries of one head. Keys and values come in tiles, the next pair being copied while one is
 * used; keys that lie behind all queries are skipped, by the block and by each warp, and only tiles on the diagonal are
 * masked. Every query sees key 0, so that the maximum is finite from the first tile on.
 *
 * Floor: 4 D multiply-adds' flops per seen pair, 2 B H Tq Tk D in all where Tq = Tk; reads q, and k and v once per
 * section of heads (from the cache for each tile of queries), writes out and 4 bytes a query. */
template <typename T, int D, bool ALIGNED>
__global__ void __launch_bounds__(forward_shape<D>::THREADS, 2) attention_forward_mma(attention_forward_arguments a) {
    typedef forward_shape<D> shape;
    constexpr int M = shape::M, KEYS = shape::KEYS, THREADS = shape::THREADS, PITCHED = PITCH<T, D>;
    DYNAMIC_SHARED(T, shared);
    T *const q = shared, *const k = q + shape::QUERIES * PITCHED, *const v = k + 2 * KEYS * PITCHED;

    const attention_inputs &in = a.in;
    const int tiles = ceil_div(in.queries, shape::QUERIES);
    const attention_part part = part_of_block(tiles, in.batch, in.heads, in.section);
    const int first = (tiles - 1 - part.tile) * shape::QUERIES, key_head = part.head / in.group;
    const int end = min(in.first_query + first + shape::QUERIES, in.keys); /* of the keys that the block sees */
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int row = 16 * M * warp, position = in.first_query + first + row; /* of the warp's first query */
    const T *const keys = attention_row<const T>(in.k, part.batch, 0, key_head);
    const T *const values = attention_row<const T>(in.v, part.batch, 0, key_head);
    const int rows = in.queries - first - row; /* of the warp; 0 or less where the last tile ends before */
    const float scale2 = in.scale * 1.44269504f;

    load_tile<shape::QUERIES, D, THREADS, ALIGNED>(q, attention_row<const T>(in.q, part.batch, first, part.head),
                                                   in.q.time, in.queries - first, in.head_size);
    load_tile<KEYS, D, THREADS, ALIGNED>(k, keys, in.k.time, end, in.head_size);
    load_tile<KEYS, D, THREADS, ALIGNED>(v, values, in.v.time, end, in.head_size);
    ptx::cp_async_commit();

    uint32_t held[M][shape::HELD ? D / 16 : 1][4];
    float o[M][D / 8][4], maximum[M][2], sum[M][2];
    clear(o);
#pragma unroll
    for (int m = 0; m < M; m++)
        for (int i = 0; i < 2; i++) maximum[m][i] = -INFINITY, sum[m][i] = 0;

    for (int key = 0, stage = 0; key < end; key += KEYS, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (key + KEYS < end) {
            const int next = key + KEYS, to = (stage ^ 1) * KEYS * PITCHED;
            load_tile<KEYS, D, THREADS, ALIGNED>(k + to, keys + next * in.k.time, in.k.time, end - next, in.head_size);
            load_tile<KEYS, D, THREADS, ALIGNED>(v + to, values + next * in.v.time, in.v.time, end - next,
                                                 in.head_size);
            ptx::cp_async_commit();
        }
        if constexpr (shape::HELD)
            if (key == 0) load_left<D>(held, q + row * PITCHED);
        if (rows <= 0 || key >= position + 16 * M) continue;

        float s[M][KEYS / 8][4];
        multiply_rows<D, shape::HELD>(s, held, q + row * PITCHED, k + stage * KEYS * PITCHED);
        if (key + KEYS - 1 > position) mask_columns_after_rows(s, position, key);
        online_softmax(s, o, maximum, sum, scale2);
        multiply_add(o, s, v + stage * KEYS * PITCHED);
    }

    float *const lse = attention_row(a.lse, part.batch, part.head) + first;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[m][i] += __shfl_xor_sync(0xFFFFFFFFu, sum[m][i], 1);
            sum[m][i] += __shfl_xor_sync(0xFFFFFFFFu, sum[m][i], 2);
            const int query = row + 16 * m + lane / 4 + 8 * i;
            if (lane % 4 == 0 && first + query < in.queries) lse[query] = maximum[m][i] * in.scale + logf(sum[m][i]);
            sum[m][i] = 1 / sum[m][i];
        }
    if (rows > 0)
        store_rows<ALIGNED>(attention_row<T>(a.out, part.batch, first + row, part.head), a.out.time, q + row * PITCHED,
                            o, sum, rows, in.head_size);
}

/* Launches the kernel for the head size. */
template <typename T>
static void attention_forward_16_bit(const loom_context *ctx, const attention_forward_arguments &a) {
    with_attention_variant(a.in, [&](auto padded, auto aligned) {
        constexpr int D = decltype(padded)::value;
        typedef forward_shape<D> shape;
        const int64_t blocks = (int64_t)a.in.batch * a.in.heads * ceil_div(a.in.queries, shape::QUERIES);
        launch(ctx, "attention_forward", attention_forward_mma<T, D, decltype(aligned)::value>, grid_size(blocks),
               shape::THREADS, (shape::QUERIES + 4 * shape::KEYS) * PITCH<T, D> * sizeof(T), a);
    });
}

#endif
