/* Attention in fp32, on plain cores. The shape of the kernels is that of the 16-bit ones: a block owns a tile of rows
 * (queries, or keys for dk and dv) and runs over tiles of columns (keys, or queries). Its 256 threads form a square of
 * 16 by 16: thread (y, x) computes the elements in rows y, y + 16, ... and columns x, x + 16, ... of a tile of scores,
 * and likewise in its rows groups of columns of the result. All sums run in index order, in fused multiply-adds. */
#include "kernels/attention.cuh"

enum { SIDE = 16, THREADS = SIDE * SIDE };

/* A tile of probabilities, between the product that makes them and the one that uses them. */
template <int COLUMNS> constexpr int P_PITCH = COLUMNS + 4;

/* How a thread's columns of a result of D columns lie: GROUPS groups of WIDTH next to each other, 16 WIDTH apart. */
template <int D> struct result_columns {
    static constexpr int WIDTH = D % 64 == 0 ? 4 : D % 32 == 0 ? 2 : 1, GROUPS = D / SIDE / WIDTH;
};

__device__ __forceinline__ int thread_x() {
    return (int)threadIdx.x % SIDE;
}

__device__ __forceinline__ int thread_y() {
    return (int)threadIdx.x / SIDE;
}

/* s = the dot products of the thread's rows of one tile with those of another. */
template <int D, int R, int C>
__device__ __forceinline__ void multiply_rows(float (&s)[R][C], const float *left, const float *right) {
    left += thread_y() * PITCH<float, D>;
    right += thread_x() * PITCH<float, D>;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < C; j++) s[i][j] = 0;
#pragma unroll 1
    for (int d = 0; d < D; d += 4) {
        pack<float, 4> a[R], b[C];
#pragma unroll
        for (int i = 0; i < R; i++) a[i] = load_pack<4>(left + i * SIDE * PITCH<float, D> + d);
#pragma unroll
        for (int j = 0; j < C; j++) b[j] = load_pack<4>(right + j * SIDE * PITCH<float, D> + d);
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < R; i++)
#pragma unroll
                for (int j = 0; j < C; j++) s[i][j] = fmaf(a[i].at[n], b[j].at[n], s[i][j]);
    }
}

/* o += the thread's rows of p, a tile of COLUMNS columns, times a tile of COLUMNS rows. */
template <int D, int COLUMNS, int R, int C>
__device__ __forceinline__ void multiply_add(float (&o)[R][C], const float *p, const float *tile) {
    constexpr int WIDTH = result_columns<D>::WIDTH, GROUPS = result_columns<D>::GROUPS;
    p += thread_y() * P_PITCH<COLUMNS>;
    tile += thread_x() * WIDTH;
#pragma unroll 1
    for (int k = 0; k < COLUMNS; k += 4) {
        pack<float, 4> a[R];
#pragma unroll
        for (int i = 0; i < R; i++) a[i] = load_pack<4>(p + i * SIDE * P_PITCH<COLUMNS> + k);
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                const auto b = load_pack<WIDTH>(tile + (k + n) * PITCH<float, D> + g * SIDE * WIDTH);
#pragma unroll
                for (int w = 0; w < WIDTH; w++)
#pragma unroll
                    for (int i = 0; i < R; i++) o[i][g * WIDTH + w] = fmaf(a[i].at[n], b.at[w], o[i][g * WIDTH + w]);
            }
    }
}

/* Puts the thread's elements of a tile of probabilities where multiply_add reads them. */
template <int COLUMNS, int R, int C> __device__ __forceinline__ void put(float *p, const float (&s)[R][C]) {
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < C; j++) p[(thread_y() + i * SIDE) * P_PITCH<COLUMNS> + thread_x() + j * SIDE] = s[i][j];
}

/* The thread's elements of a result, each row times its factor; `rows` rows exist. */
template <int D, int R, int C>
__device__ __forceinline__ void store(float *to, int64_t stride, const float (&o)[R][C], const float (&factor)[R],
                                      int rows, int head_size, bool aligned) {
    constexpr int WIDTH = result_columns<D>::WIDTH, GROUPS = result_columns<D>::GROUPS;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const int row = thread_y() + i * SIDE, column = (g * SIDE + thread_x()) * WIDTH;
            if (row >= rows || column >= head_size) continue;
            pack<float, WIDTH> values;
#pragma unroll
            for (int w = 0; w < WIDTH; w++) values.at[w] = o[i][g * WIDTH + w] * factor[i];
            float *at = to + row * stride + column;
            if (aligned) {
                store_pack(at, values);
            } else {
#pragma unroll
                for (int w = 0; w < WIDTH; w++) at[w] = values.at[w];
            }
        }
}

template <int R, int C> __device__ __forceinline__ void clear(float (&o)[R][C]) {
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int c = 0; c < C; c++) o[i][c] = 0;
}

/* ---------------------------------------------------------------------------------------------------------- forward */

template <int D> struct forward_shape {
    static constexpr int QUERIES = 64, KEYS = D <= 64 ? 64 : 32, R = QUERIES / SIDE, C = KEYS / SIDE;
    static constexpr size_t BYTES = ((QUERIES + 2 * KEYS) * PITCH<float, D> + QUERIES * P_PITCH<KEYS>)*sizeof(float);
};

/* One online step of the softmax: scores become exp2(scale2 (score - maximum)), the running maximum and the thread's
 * part of the sum move, and o is scaled to the new maximum. The 16 threads of a row lie side by side in a warp. */
template <int R, int C, int O>
__device__ __forceinline__ void online_softmax(float (&s)[R][C], float (&o)[R][O], float (&maximum)[R], float (&sum)[R],
                                               float scale2) {
#pragma unroll
    for (int i = 0; i < R; i++) {
        float largest = maximum[i];
#pragma unroll
        for (int j = 0; j < C; j++) largest = fmaxf(largest, s[i][j]);
#pragma unroll
        for (int distance = SIDE / 2; distance > 0; distance /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, distance));
        const float shift = largest * scale2, correction = exp2f(fmaf(maximum[i], scale2, -shift));
        maximum[i] = largest;
        float added = 0;
#pragma unroll
        for (int j = 0; j < C; j++) added += s[i][j] = exp2f(fmaf(s[i][j], scale2, -shift));
        sum[i] = fmaf(sum[i], correction, added);
#pragma unroll
        for (int c = 0; c < O; c++) o[i][c] *= correction;
    }
}

/* out and lse of a tile of queries of one head; as attention_forward_mma.
 *
 * Floor: 4 D flops per seen pair, 2 B H Tq Tk D in all where Tq = Tk; reads q, k and v, writes out and 4 bytes a
 * query. */
template <int D, bool ALIGNED>
__global__ void __launch_bounds__(THREADS, 2) attention_forward_fp32(attention_forward_arguments a) {
    typedef forward_shape<D> shape;
    constexpr int R = shape::R, C = shape::C, KEYS = shape::KEYS;
    DYNAMIC_SHARED(float, shared);
    float *const q = shared, *const k = q + shape::QUERIES * PITCH<float, D>, *const v = k + KEYS * PITCH<float, D>;
    float *const p = v + KEYS * PITCH<float, D>;

    const attention_inputs &in = a.in;
    const int tiles = ceil_div(in.queries, shape::QUERIES);
    const attention_part part = part_of_block(tiles, in.batch, in.heads, in.section);
    const int first = (tiles - 1 - part.tile) * shape::QUERIES, key_head = part.head / in.group;
    const int end = min(in.first_query + first + shape::QUERIES, in.keys); /* of the keys that the block sees */
    const int position = in.first_query + first + thread_y();
    const float scale2 = in.scale * 1.44269504f;

    load_tile<shape::QUERIES, D, THREADS, ALIGNED>(q, attention_row<const float>(in.q, part.batch, first, part.head),
                                                   in.q.time, in.queries - first, in.head_size);
    float o[R][D / SIDE], maximum[R], sum[R];
    clear(o);
#pragma unroll
    for (int i = 0; i < R; i++) maximum[i] = -INFINITY, sum[i] = 0;

    for (int key = 0; key < end; key += KEYS) {
        load_tile<KEYS, D, THREADS, ALIGNED>(k, attention_row<const float>(in.k, part.batch, key, key_head), in.k.time,
                                             end - key, in.head_size);
        load_tile<KEYS, D, THREADS, ALIGNED>(v, attention_row<const float>(in.v, part.batch, key, key_head), in.v.time,
                                             end - key, in.head_size);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncthreads();
        float s[R][C];
        multiply_rows<D>(s, q, k);
        if (key + KEYS - 1 > in.first_query + first) {
#pragma unroll
            for (int i = 0; i < R; i++)
#pragma unroll
                for (int j = 0; j < C; j++)
                    if (key + thread_x() + j * SIDE > position + i * SIDE) s[i][j] = -INFINITY;
        }
        online_softmax(s, o, maximum, sum, scale2);
        put<KEYS>(p, s);
        __syncwarp(); /* a row of p is written and read by one half of a warp */
        multiply_add<D, KEYS>(o, p, v);
        __syncthreads();
    }

    float *const lse = attention_row(a.lse, part.batch, part.head) + first;
#pragma unroll
    for (int i = 0; i < R; i++) {
#pragma unroll
        for (int distance = SIDE / 2; distance > 0; distance /= 2)
            sum[i] += __shfl_xor_sync(0xFFFFFFFFu, sum[i], distance);
        const int query = thread_y() + i * SIDE;
        if (thread_x() == 0 && first + query < in.queries) lse[query] = maximum[i] * in.scale + logf(sum[i]);
        sum[i] = 1 / sum[i];
    }
    store<D>(attention_row<float>(a.out, part.batch, first, part.head), a.out.time, o, sum, in.queries - first,
             in.head_size, ALIGNED);
}

void loom_cuda_attention_forward_fp32(const loom_context *ctx, const attention_forward_arguments &a) {
    with_attention_variant(a.in, [&](auto padded, auto aligned) {
        constexpr int D = decltype(padded)::value;
        typedef forward_shape<D> shape;
        const int64_t blocks = (int64_t)a.in.batch * a.in.heads * ceil_div(a.in.queries, shape::QUERIES);
        launch(ctx, "attention_forward", attention_forward_fp32<D, decltype(aligned)::value>, grid_size(blocks),
               THREADS, shape::BYTES, a);
    });
}

/* --------------------------------------------------------------------------------------------------------- backward */

/* ROWS of what the block owns, COLUMNS of what it runs over. */
template <int D> struct backward_shape {
    static constexpr int ROWS = D <= 64 ? 64 : 32, COLUMNS = 32, R = ROWS / SIDE, C = COLUMNS / SIDE;
    static constexpr size_t BYTES = (2 * (ROWS + COLUMNS) * PITCH<float, D> + ROWS * P_PITCH<COLUMNS>)*sizeof(float);
};

/* The probability of a pair whose key and query the caller knows: 0 where the query does not see the key. */
__device__ __forceinline__ float probability(float score, float scale2, float lse2, int key, int position) {
    return key <= position ? exp2f(fmaf(score, scale2, -lse2)) : 0;
}

/* dk and dv of a tile of keys; as attention_backward_keys_mma.
 *
 * Floor: 8 D flops per seen pair; reads q and dout once per tile of keys, k, v, lse and delta, writes dk and dv. */
template <int D, bool ALIGNED>
__global__ void __launch_bounds__(THREADS, 2) attention_backward_keys_fp32(attention_backward_arguments a) {
    typedef backward_shape<D> shape;
    constexpr int R = shape::R, C = shape::C, KEYS = shape::ROWS, QUERIES = shape::COLUMNS;
    DYNAMIC_SHARED(float, shared);
    float *const k = shared, *const v = k + KEYS * PITCH<float, D>, *const q = v + KEYS * PITCH<float, D>;
    float *const dout = q + QUERIES * PITCH<float, D>, *const p = dout + QUERIES * PITCH<float, D>;

    const attention_inputs &in = a.in;
    const int tiles = ceil_div(a.all_keys, KEYS), key_heads = in.heads / in.group;
    const attention_part part = part_of_block(tiles, in.batch, key_heads, in.section);
    const int first = part.tile * KEYS, key = first + thread_y();
    const float scale2 = in.scale * 1.44269504f;

    load_tile<KEYS, D, THREADS, ALIGNED>(k, attention_row<const float>(in.k, part.batch, first, part.head), in.k.time,
                                         in.keys - first, in.head_size);
    load_tile<KEYS, D, THREADS, ALIGNED>(v, attention_row<const float>(in.v, part.batch, first, part.head), in.v.time,
                                         in.keys - first, in.head_size);
    ptx::cp_async_commit();
    float dk[R][D / SIDE], dv[R][D / SIDE];
    clear(dk);
    clear(dv);

    const int begin = max(first - in.first_query, 0) / QUERIES * QUERIES;
    for (int head = part.head * in.group; head < (part.head + 1) * in.group; head++) {
        const float *const lse = attention_row(a.lse, part.batch, head);
        const float *const delta = attention_row(a.delta, part.batch, head);
        for (int query = begin; query < in.queries; query += QUERIES) {
            load_tile<QUERIES, D, THREADS, ALIGNED>(q, attention_row<const float>(in.q, part.batch, query, head),
                                                    in.q.time, in.queries - query, in.head_size);
            load_tile<QUERIES, D, THREADS, ALIGNED>(dout, attention_row<const float>(a.dout, part.batch, query, head),
                                                    a.dout.time, in.queries - query, in.head_size);
            ptx::cp_async_commit();
            ptx::cp_async_wait<0>();
            __syncthreads();
            float s[R][C], ds[R][C];
            multiply_rows<D>(s, k, q);
            multiply_rows<D>(ds, v, dout);
#pragma unroll
            for (int j = 0; j < C; j++) {
                const int at = query + thread_x() + j * SIDE, exists = at < in.queries;
                const float lse2 = exists ? lse[at] * 1.44269504f : INFINITY, subtract = exists ? delta[at] : 0;
#pragma unroll
                for (int i = 0; i < R; i++) {
                    s[i][j] = probability(s[i][j], scale2, lse2, key + i * SIDE, in.first_query + at);
                    ds[i][j] = s[i][j] * (ds[i][j] - subtract);
                }
            }
            put<QUERIES>(p, s);
            __syncwarp();
            multiply_add<D, QUERIES>(dv, p, dout);
            __syncwarp();
            put<QUERIES>(p, ds);
            __syncwarp();
            multiply_add<D, QUERIES>(dk, p, q);
            __syncthreads();
        }
    }
    ptx::cp_async_wait<0>(); /* of k and v, where no query sees them */

    float one[R], scale[R];
#pragma unroll
    for (int i = 0; i < R; i++) one[i] = 1, scale[i] = in.scale;
    store<D>(attention_row<float>(a.dk, part.batch, first, part.head), a.dk.time, dk, scale, a.all_keys - first,
             in.head_size, ALIGNED);
    store<D>(attention_row<float>(a.dv, part.batch, first, part.head), a.dv.time, dv, one, a.all_keys - first,
             in.head_size, ALIGNED);
}

/* dq of a tile of queries; as attention_backward_queries_mma.
 *
 * Floor: 6 D flops per seen pair; reads k and v once per tile of queries, q, dout, lse and delta, writes dq. */
template <int D, bool ALIGNED>
__global__ void __launch_bounds__(THREADS, 2) attention_backward_queries_fp32(attention_backward_arguments a) {
    typedef backward_shape<D> shape;
    constexpr int R = shape::R, C = shape::C, QUERIES = shape::ROWS, KEYS = shape::COLUMNS;
    DYNAMIC_SHARED(float, shared);
    float *const q = shared, *const dout = q + QUERIES * PITCH<float, D>;
    float *const k = dout + QUERIES * PITCH<float, D>, *const v = k + KEYS * PITCH<float, D>;
    float *const p = v + KEYS * PITCH<float, D>;

    const attention_inputs &in = a.in;
    const int tiles = ceil_div(in.queries, QUERIES);
    const attention_part part = part_of_block(tiles, in.batch, in.heads, in.section);
    const int first = (tiles - 1 - part.tile) * QUERIES, key_head = part.head / in.group;
    const int end = min(in.first_query + first + QUERIES, in.keys);
    const int position = in.first_query + first + thread_y();
    const float scale2 = in.scale * 1.44269504f;

    load_tile<QUERIES, D, THREADS, ALIGNED>(q, attention_row<const float>(in.q, part.batch, first, part.head),
                                            in.q.time, in.queries - first, in.head_size);
    load_tile<QUERIES, D, THREADS, ALIGNED>(dout, attention_row<const float>(a.dout, part.batch, first, part.head),
                                            a.dout.time, in.queries - first, in.head_size);
    float dq[R][D / SIDE], lse2[R], delta[R], scale[R];
    clear(dq);
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int at = first + thread_y() + i * SIDE, exists = at < in.queries;
        lse2[i] = exists ? attention_row(a.lse, part.batch, part.head)[at] * 1.44269504f : INFINITY;
        delta[i] = exists ? attention_row(a.delta, part.batch, part.head)[at] : 0;
        scale[i] = in.scale;
    }

    for (int key = 0; key < end; key += KEYS) {
        load_tile<KEYS, D, THREADS, ALIGNED>(k, attention_row<const float>(in.k, part.batch, key, key_head), in.k.time,
                                             end - key, in.head_size);
        load_tile<KEYS, D, THREADS, ALIGNED>(v, attention_row<const float>(in.v, part.batch, key, key_head), in.v.time,
                                             end - key, in.head_size);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncthreads();
        float s[R][C], ds[R][C];
        multiply_rows<D>(s, q, k);
        multiply_rows<D>(ds, dout, v);
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int j = 0; j < C; j++)
                ds[i][j] = probability(s[i][j], scale2, lse2[i], key + thread_x() + j * SIDE, position + i * SIDE) *
                           (ds[i][j] - delta[i]);
        put<KEYS>(p, ds);
        __syncwarp();
        multiply_add<D, KEYS>(dq, p, k);
        __syncthreads();
    }
    store<D>(attention_row<float>(a.dq, part.batch, first, part.head), a.dq.time, dq, scale, in.queries - first,
             in.head_size, ALIGNED);
}

void loom_cuda_attention_backward_fp32(const loom_context *ctx, const attention_backward_arguments &a) {
    with_attention_variant(a.in, [&](auto padded, auto aligned) {
        constexpr int D = decltype(padded)::value;
        constexpr bool ALIGNED = decltype(aligned)::value;
        typedef backward_shape<D> shape;
        const int64_t heads = (int64_t)a.in.batch * a.in.heads;
        const int64_t key_blocks = heads / a.in.group * ceil_div(a.all_keys, shape::ROWS);
        const int64_t query_blocks = heads * ceil_div(a.in.queries, shape::ROWS);
        launch(ctx, "attention_backward", attention_backward_keys_fp32<D, ALIGNED>, grid_size(key_blocks), THREADS,
               shape::BYTES, a);
        launch(ctx, "attention_backward", attention_backward_queries_fp32<D, ALIGNED>, grid_size(query_blocks), THREADS,
               shape::BYTES, a);
    });
}
