/* Attention backward for 16-bit storage, on the tensor cores. With P = exp(S - lse) and delta_i = sum_d dout_id out_id:
 *
 *     dV = P^T dO,   dP = dO V^T,   dS = P (dP - delta),   dQ = scale dS K,   dK = scale dS^T Q
 *
 * (Dao, "FlashAttention-2", 2023, algorithm 2). dq sums over keys and dk, dv over queries; a block that made all three
 * would have to add to what other blocks add to, in an order that varies. So there are two kernels, one that owns tiles
 * of keys and one that owns tiles of queries, and S and dP are computed in both: 14 D flops for each seen pair instead
 * of 10, and the same bits in every run. In both, what a warp owns are rows, so that P and dS go from one product to
 * the next in registers. */
#ifndef LOOM_KERNELS_ATTENTION_BACKWARD_MMA_CUH
#define LOOM_KERNELS_ATTENTION_BACKWARD_MMA_CUH

#include "kernels/attention_mma.cuh"

/* -------------------------------------------------------------------------------------------------------- dk and dv */

/* How the kernel is cut for a padded head size. A block takes 16 M WARPS keys, and QUERIES queries at a time. Of a
 * thread's registers dk and dv fill 2 (4 M D/8), S^T and dP^T 2 (4 M QUERIES/8), and k and v, where they stay there, 2
 * (4 M D/16): their sum is at most 192, as about 60 more are needed beside. */
template <int D> struct backward_keys_shape {
    static constexpr int WARPS = 4, THREADS = 32 * WARPS, M = D <= 64 ? 2 : 1, KEYS = 16 * M * WARPS;
    static constexpr int QUERIES = 32;
    static constexpr bool HELD = D <= 32 || D == 96;
};

/* Of a tile of queries, what the thread is to put into shared memory beside q and dout: lse in base 2 of one query, or
 * delta of one. A query that is not there gets an infinite lse, and with it probability 0. */
template <int QUERIES>
__device__ __forceinline__ float load_statistic(const attention_backward_arguments &a, int batch, int head, int query) {
    const int thread = (int)threadIdx.x, at = query + thread % QUERIES;
    if (thread >= 2 * QUERIES) return 0;
    if (thread >= QUERIES) return at < a.in.queries ? attention_row(a.delta, batch, head)[at] : 0;
    return at < a.in.queries ? attention_row(a.lse, batch, head)[at] * 1.44269504f : INFINITY;
}

/* dk and dv of a tile of keys of one key head: S^T and dP^T have a row for each key. The queries of all heads of the
 * group run past in tiles, in order, from the first that sees any of the keys on. While a tile is used the next one is
 * copied, its lse and delta by way of a register.
 *
 * Floor: 8 D flops per seen pair; reads q, dout, lse and delta once per section of heads (from the cache for each tile
 * of keys), and k and v, writes dk and dv. */
template <typename T, int D, bool ALIGNED>
__global__ void __launch_bounds__(backward_keys_shape<D>::THREADS, 2)
    attention_backward_keys_mma(attention_backward_arguments a) {
    typedef backward_keys_shape<D> shape;
    constexpr int M = shape::M, QUERIES = shape::QUERIES, THREADS = shape::THREADS;
    constexpr int TILE = QUERIES * PITCH<T, D>;
    DYNAMIC_SHARED(T, shared);
    T *const k = shared, *const v = k + shape::KEYS * PITCH<T, D>, *const q = v + shape::KEYS * PITCH<T, D>;
    T *const dout = q + 2 * TILE;
    float *const statistics = reinterpret_cast<float *>(dout + 2 * TILE); /* (2, {lse, delta}, QUERIES) */

    const attention_inputs &in = a.in;
    const int tiles = ceil_div(a.all_keys, shape::KEYS), key_heads = in.heads / in.group;
    const attention_part part = part_of_block(tiles, in.batch, key_heads, in.section);
    const int first = part.tile * shape::KEYS, first_head = part.head * in.group;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int row = 16 * M * warp, key = first + row;
    const float scale2 = in.scale * 1.44269504f;

    /* The first tile of queries that sees any of the keys, if there is one. */
    const int begin = max(first - in.first_query, 0) / QUERIES * QUERIES;
    const int end_head = begin < in.queries ? first_head + in.group : first_head;

    float next_statistic = 0;
    const auto load_queries = [&](int head, int query, int stage) {
        const int rows = in.queries - query, batch = anew(part.batch);
        load_tile<QUERIES, D, THREADS, ALIGNED>(q + stage * TILE, attention_row<const T>(in.q, batch, query, head),
                                                in.q.time, rows, in.head_size);
        load_tile<QUERIES, D, THREADS, ALIGNED>(dout + stage * TILE, attention_row<const T>(a.dout, batch, query, head),
                                                a.dout.time, rows, in.head_size);
        ptx::cp_async_commit();
        next_statistic = load_statistic<QUERIES>(a, batch, head, query);
    };
    const auto put_statistic = [&](int stage) {
        if (threadIdx.x < 2 * QUERIES) statistics[stage * 2 * QUERIES + (int)threadIdx.x] = next_statistic;
    };

    load_tile<shape::KEYS, D, THREADS, ALIGNED>(k, attention_row<const T>(in.k, part.batch, first, part.head),
                                                in.k.time, in.keys - first, in.head_size);
    load_tile<shape::KEYS, D, THREADS, ALIGNED>(v, attention_row<const T>(in.v, part.batch, first, part.head),
                                                in.v.time, in.keys - first, in.head_size);
    ptx::cp_async_commit();
    if (first_head < end_head) {
        load_queries(first_head, begin, 0);
        put_statistic(0);
    }

    uint32_t held_k[M][shape::HELD ? D / 16 : 1][4], held_v[M][shape::HELD ? D / 16 : 1][4];
    float dk[M][D / 8][4], dv[M][D / 8][4];
    clear(dk);
    clear(dv);

    for (int head = first_head, query = begin, stage = 0; head < end_head; stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if constexpr (shape::HELD)
            if (head == first_head && query == begin) {
                load_left<D>(held_k, k + row * PITCH<T, D>);
                load_left<D>(held_v, v + row * PITCH<T, D>);
            }
        const int position = in.first_query + query; /* of the first of these queries */
        query += QUERIES;
        if (query >= in.queries) query = begin, head++;
        if (head < end_head) load_queries(head, query, stage ^ 1);
        if (position + QUERIES > key) {
            const float *const lse = statistics + stage * 2 * QUERIES, *const delta = lse + QUERIES;
            float p[M][QUERIES / 8][4], ds[M][QUERIES / 8][4];
            multiply_rows<D, shape::HELD>(p, held_k, k + row * PITCH<T, D>, q + stage * TILE);
            multiply_rows<D, shape::HELD>(ds, held_v, v + row * PITCH<T, D>, dout + stage * TILE);
            if (position < key + 16 * M - 1) mask_rows_after_columns(p, key, position);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++) {
                const pack<float, 2> shift = load_pack<2>(lse + 8 * n + lane % 4 * 2);
                const pack<float, 2> subtract = load_pack<2>(delta + 8 * n + lane % 4 * 2);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        p[m][n][i] = ptx::exp2_approximate(fmaf(p[m][n][i], scale2, -shift.at[i % 2]));
                        ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - subtract.at[i % 2]);
                    }
            }
            multiply_add(dv, p, dout + stage * TILE);
            multiply_add(dk, ds, q + stage * TILE);
        }
        if (head < end_head) put_statistic(stage ^ 1);
    }
    ptx::cp_async_wait<0>(); /* for k and v, if no query sees them */
    __syncthreads();

    float one[M][2], scale[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
        for (int i = 0; i < 2; i++) one[m][i] = 1, scale[m][i] = in.scale;
    const int rows = a.all_keys - key;
    if (rows <= 0) return;
    store_rows<ALIGNED>(attention_row<T>(a.dk, part.batch, key, part.head), a.dk.time, k + row * PITCH<T, D>, dk, scale,
                        rows, in.head_size);
    store_rows<ALIGNED>(attention_row<T>(a.dv, part.batch, key, part.head), a.dv.time, v + row * PITCH<T, D>, dv, one,
                        rows, in.head_size);
}

/* --------------------------------------------------------------------------------------------------------------- dq */

/* A block takes 16 M WARPS queries, and KEYS keys at a time. Of a thread's registers dq fills 4 M D/8, S and dP
 * 2 (4 M KEYS/8), and q and dout, which stay there, 2 (4 M D/16). */
template <int D> struct backward_queries_shape {
    static constexpr int WARPS = 4, THREADS = 32 * WARPS, M = D <= 64 ? 2 : 1, QUERIES = 16 * M * WARPS;
    static constexpr int KEYS = 32;
};

/* dq of a tile of queries of one head: S and dP have a row for each query. Built as attention_forward_mma.
 *
 * Floor: 6 D flops per seen pair; reads k and v once per section of heads (from the cache for each tile of queries),
 * and q, dout, lse and delta, writes dq. */
template <typename T, int D, bool ALIGNED>
__global__ void __launch_bounds__(backward_queries_shape<D>::THREADS, 2)
    attention_backward_queries_mma(attention_backward_arguments a) {
    typedef backward_queries_shape<D> shape;
    constexpr int M = shape::M, KEYS = shape::KEYS, THREADS = shape::THREADS;
    constexpr int OWN = shape::QUERIES * PITCH<T, D>, TILE = KEYS * PITCH<T, D>;
    DYNAMIC_SHARED(T, shared);
    T *const q = shared, *const dout = q + OWN, *const k = dout + OWN, *const v = k + 2 * TILE;

    const attention_inputs &in = a.in;
    const int tiles = ceil_div(in.queries, shape::QUERIES);
    const attention_part part = part_of_block(tiles, in.batch, in.heads, in.section);
    const int first = (tiles - 1 - part.tile) * shape::QUERIES, key_head = part.head / in.group;
    const int end = min(in.first_query + first + shape::QUERIES, in.keys); /* of the keys that the block sees */
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int row = 16 * M * warp, position = in.first_query + first + row; /* of the warp's first query */
    const int rows = in.queries - first - row; /* of the warp; 0 or less where the last tile ends before */
    const T *const keys = attention_row<const T>(in.k, part.batch, 0, key_head);
    const T *const values = attention_row<const T>(in.v, part.batch, 0, key_head);
    const float scale2 = in.scale * 1.44269504f;

    const auto load_keys = [&](int key, int stage) {
        load_tile<KEYS, D, THREADS, ALIGNED>(k + stage * TILE, keys + key * in.k.time, in.k.time, end - key,
                                             in.head_size);
        load_tile<KEYS, D, THREADS, ALIGNED>(v + stage * TILE, values + key * in.v.time, in.v.time, end - key,
                                             in.head_size);
        ptx::cp_async_commit();
    };
    load_tile<shape::QUERIES, D, THREADS, ALIGNED>(q, attention_row<const T>(in.q, part.batch, first, part.head),
                                                   in.q.time, in.queries - first, in.head_size);
    load_tile<shape::QUERIES, D, THREADS, ALIGNED>(dout, attention_row<const T>(a.dout, part.batch, first, part.head),
                                                   a.dout.time, in.queries - first, in.head_size);
    load_keys(0, 0);

    uint32_t held_q[M][D / 16][4], held_dout[M][D / 16][4];
    float dq[M][D / 8][4], lse2[M][2], delta[M][2], scale[M][2];
    clear(dq);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int query = first + row + 16 * m + lane / 4 + 8 * i;
            const bool exists = query < in.queries;
            lse2[m][i] = exists ? attention_row(a.lse, part.batch, part.head)[query] * 1.44269504f : INFINITY;
            delta[m][i] = exists ? attention_row(a.delta, part.batch, part.head)[query] : 0;
            scale[m][i] = in.scale;
        }

    for (int key = 0, stage = 0; key < end; key += KEYS, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (key + KEYS < end) load_keys(key + KEYS, stage ^ 1);
        if (key == 0) {
            load_left<D>(held_q, q + row * PITCH<T, D>);
            load_left<D>(held_dout, dout + row * PITCH<T, D>);
        }
        if (rows <= 0 || key >= position + 16 * M) continue;

        float s[M][KEYS / 8][4], ds[M][KEYS / 8][4];
        multiply_rows<D, true>(s, held_q, q + row * PITCH<T, D>, k + stage * TILE);
        multiply_rows<D, true>(ds, held_dout, dout + row * PITCH<T, D>, v + stage * TILE);
        if (key + KEYS - 1 > position) mask_columns_after_rows(s, position, key);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float p = ptx::exp2_approximate(fmaf(s[m][n][j], scale2, -lse2[m][j / 2]));
                    ds[m][n][j] = p * (ds[m][n][j] - delta[m][j / 2]);
                }
        multiply_add(dq, ds, k + stage * TILE);
    }
    if (rows > 0)
        store_rows<ALIGNED>(attention_row<T>(a.dq, part.batch, first + row, part.head), a.dq.time,
                            q + row * PITCH<T, D>, dq, scale, rows, in.head_size);
}

/* ----------------------------------------------------------------------------------------------------------- launch */

template <typename T>
static void attention_backward_16_bit(const loom_context *ctx, const attention_backward_arguments &a) {
    with_attention_variant(a.in, [&](auto padded, auto aligned) {
        constexpr int D = decltype(padded)::value;
        constexpr bool ALIGNED = decltype(aligned)::value;
        typedef backward_keys_shape<D> by_keys;
        typedef backward_queries_shape<D> by_queries;
        const int64_t heads = (int64_t)a.in.batch * a.in.heads;
        launch(ctx, "attention_backward", attention_backward_keys_mma<T, D, ALIGNED>,
               grid_size(heads / a.in.group * ceil_div(a.all_keys, by_keys::KEYS)), by_keys::THREADS,
               (2 * by_keys::KEYS + 4 * by_keys::QUERIES) * PITCH<T, D> * sizeof(T) +
                   4 * by_keys::QUERIES * sizeof(float),
               a);
        launch(ctx, "attention_backward", attention_backward_queries_mma<T, D, ALIGNED>,
               grid_size(heads * ceil_div(a.in.queries, by_queries::QUERIES)), by_queries::THREADS,
               (2 * by_queries::QUERIES + 4 * by_queries::KEYS) * PITCH<T, D> * sizeof(T), a);
    });
}

#endif
