/* Layernorm, forward and backward.
 *
 * Rows of up to 8192 channels whose accesses can be 16 bytes wide are kept in registers, in their storage type, between
 * the sweeps over them: PACKS packs for each thread of the row's group. All other rows are read again for each sweep,
 * from the caches, one value at a time. */
#include "kernels/rows.h"

/* Rows longer than this have a block to themselves. */
constexpr int64_t WARP_CHANNELS = 1024;
constexpr int BLOCK = 256;

/* Calls f(group, packs) with the sizes, as types, of the smallest group and packs that hold C channels, or returns
 * false if none does. A thread of a group holds 8, 16, 24 or 32 values. */
template <int N> struct size_tag { static constexpr int value = N; };

template <typename T, typename F> static bool with_registers(int64_t C, F f) {
    constexpr int EIGHT = 8 / PACKED<T>;
    if (C <= WARP * 8)
        f(size_tag<WARP>(), size_tag<EIGHT>());
    else if (C <= WARP * 16)
        f(size_tag<WARP>(), size_tag<2 * EIGHT>());
    else if (C <= WARP * 24)
        f(size_tag<WARP>(), size_tag<3 * EIGHT>());
    else if (C <= WARP_CHANNELS)
        f(size_tag<WARP>(), size_tag<4 * EIGHT>());
    else if (C <= BLOCK * 8)
        f(size_tag<BLOCK>(), size_tag<EIGHT>());
    else if (C <= BLOCK * 16)
        f(size_tag<BLOCK>(), size_tag<2 * EIGHT>());
    else if (C <= BLOCK * 32)
        f(size_tag<BLOCK>(), size_tag<4 * EIGHT>());
    else
        return false;
    return true;
}

/* Likewise f(group), for rows that are read again. */
template <typename F> static void with_group(int64_t C, F f) {
    if (C <= WARP_CHANNELS)
        f(size_tag<WARP>());
    else
        f(size_tag<BLOCK>());
}

static bool given_rows_are_aligned(const loom_view *view) {
    return !loom_view_given(view) || rows_are_aligned(view);
}

/* The first column of the calling thread's pack p. Rows have whole packs: a pack is within the row if this column is.
 * */
template <typename T, int GROUP> __device__ __forceinline__ int pack_column(int p) {
    return (p * GROUP + group_lane<GROUP>()) * PACKED<T>;
}

/* The calling thread's packs of a row. Those beyond the row's end are left as they are. */
template <typename T, int GROUP, int PACKS>
__device__ __forceinline__ void load_row(vec128 (&packs)[PACKS], const T *row, int C) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int column = pack_column<T, GROUP>(p);
        if (column < C) packs[p] = load_vec128(row + column);
    }
}

/* ------------------------------------------------------------------------------------------------------------ forward */

/* The arguments of a forward kernel. */
template <typename T> struct forward_arguments {
    rows<T> out, sum; /* out.data NULL: not written; sum may be the memory of x or delta */
    float *mean, *rstd;
    rows<const T> x, delta; /* delta.data NULL: sum is x and not written */
    const T *weight, *bias;
    int64_t N;
    int C;
    float epsilon;
};

/* Reads NC (2NC with delta), writes NC (2NC): each value once. The mean comes first and the variance from x - mean,
 * both of what was rounded to storage, so that a large mean costs no accuracy. */
template <typename T, int GROUP, int PACKS>
__global__ void __launch_bounds__(GROUP_THREADS<GROUP>) forward_in_registers(forward_arguments<T> a) {
    constexpr int N = PACKED<T>;
    const int64_t n = group_row<GROUP>();
    if (n >= a.N) return;
    vec128 row[PACKS] = {};
    load_row<T, GROUP>(row, row_at(a.x, n), a.C);
    if (a.delta.data) {
        vec128 delta[PACKS];
        load_row<T, GROUP>(delta, row_at(a.delta, n), a.C);
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int column = pack_column<T, GROUP>(p);
            if (column >= a.C) continue;
            float x[N], added[N];
            unpack(x, row[p], T());
            unpack(added, delta[p], T());
#pragma unroll
            for (int i = 0; i < N; i++) x[i] += added[i];
            row[p] = pack_values(x, T());
            store_vec128(row_at(a.sum, n) + column, row[p]);
        }
    }

    float sum = 0, square = 0;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        float x[N];
        unpack(x, row[p], T()); /* zeros beyond the row's end */
#pragma unroll
        for (int i = 0; i < N; i++) sum += x[i];
    }
    const float mean = group_sum<GROUP>(sum) / (float)a.C;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        if (pack_column<T, GROUP>(p) >= a.C) continue;
        float x[N];
        unpack(x, row[p], T());
#pragma unroll
        for (int i = 0; i < N; i++) square += (x[i] - mean) * (x[i] - mean);
    }
    const float rstd = 1 / sqrtf(group_sum<GROUP>(square) / (float)a.C + a.epsilon);

#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int column = pack_column<T, GROUP>(p);
        if (column >= a.C || !a.out.data) continue;
        float x[N], weight[N], out[N];
        unpack(x, row[p], T());
        read_values(weight, a.weight + column);
        read_values(out, a.bias + column);
#pragma unroll
        for (int i = 0; i < N; i++) out[i] += (x[i] - mean) * rstd * weight[i];
        write_values(row_at(a.out, n) + column, out);
    }
    if (group_lane<GROUP>() == 0) {
        a.mean[n] = mean;
        a.rstd[n] = rstd;
    }
}

/* The same for any row. Its floor is the same; it reads 3NC (4NC with delta), what comes again from the caches. */
template <typename T, int GROUP>
__global__ void __launch_bounds__(GROUP_THREADS<GROUP>) forward_in_sweeps(forward_arguments<T> a) {
    const int64_t n = group_row<GROUP>();
    if (n >= a.N) return;
    const T *x = row_at(a.x, n);
    float sum = 0, square = 0;
    if (a.delta.data) {
        T *added = row_at(a.sum, n);
        for (int c = group_lane<GROUP>(); c < a.C; c += GROUP) {
            added[c] = from_float<T>(to_float(x[c]) + to_float(row_at(a.delta, n)[c]));
            sum += to_float(added[c]);
        }
        x = added;
    } else {
        for (int c = group_lane<GROUP>(); c < a.C; c += GROUP) sum += to_float(x[c]);
    }
    const float mean = group_sum<GROUP>(sum) / (float)a.C;
    for (int c = group_lane<GROUP>(); c < a.C; c += GROUP) square += (to_float(x[c]) - mean) * (to_float(x[c]) - mean);
    const float rstd = 1 / sqrtf(group_sum<GROUP>(square) / (float)a.C + a.epsilon);
    for (int c = group_lane<GROUP>(); c < a.C && a.out.data; c += GROUP)
        row_at(a.out,
               n)[c] = from_float<T>((to_float(x[c]) - mean) * rstd * to_float(a.weight[c]) + to_float(a.bias[c]));
    if (group_lane<GROUP>() == 0) {
        a.mean[n] = mean;
        a.rstd[n] = rstd;
    }
}

template <typename T> static void forward(const loom_context *ctx, const struct loom_layernorm_forward *a) {
    const int64_t N = loom_view_row_count(&a->x), C = a->x.shape[3];
    const forward_arguments<T> arguments = {
        rows_of<T>(&a->out),
        rows_of<T>(&a->sum),
        static_cast<float *>(a->mean.data),
        static_cast<float *>(a->rstd.data),
        rows_of<const T>(&a->x),
        rows_of<const T>(&a->delta),
        static_cast<const T *>(a->weight.data),
        static_cast<const T *>(a->bias.data),
        N,
        (int)C,
        a->epsilon,
    };
    const bool aligned = given_rows_are_aligned(&a->out) && given_rows_are_aligned(&a->sum) &&
                         rows_are_aligned(&a->x) && given_rows_are_aligned(&a->delta) && rows_are_aligned(&a->weight) &&
                         rows_are_aligned(&a->bias);
    const bool launched = aligned && with_registers<T>(C, [&](auto group, auto packs) {
                              constexpr int GROUP = decltype(group)::value, PACKS = decltype(packs)::value;
                              launch(ctx, "layernorm_forward", forward_in_registers<T, GROUP, PACKS>,
                                     group_grid<GROUP>(N), GROUP_THREADS<GROUP>, 0, arguments);
                          });
    if (launched) return;
    with_group(C, [&](auto group) {
        constexpr int GROUP = decltype(group)::value;
        launch(ctx, "layernorm_forward", forward_in_sweeps<T, GROUP>, group_grid<GROUP>(N), GROUP_THREADS<GROUP>, 0,
               arguments);
    });
}

void loom_cuda_layernorm_forward(loom_context *ctx, const struct loom_layernorm_forward *a) {
    with_dtype(a->x.dtype, [&](auto tag) { forward<typename decltype(tag)::type>(ctx, a); });
}
LOOM_CUDA_NO_WORKSPACE(layernorm_forward)

/* ----------------------------------------------------------------------------------------------------------- backward
 * dweight and dbias are sums over all rows, made in two stages: each block of the first kernel adds those of a chunk of
 * rows, the second kernel adds the chunks. How many rows a chunk has follows from N alone. */

/* Enough chunks to fill a large GPU, and few enough that the second stage reads little. */
static int64_t rows_per_chunk(int64_t N) {
    const int64_t rows = ceil_div(N, (int64_t)512);
    return rows < 8 ? 8 : rows;
}

static int64_t chunk_count(int64_t N) {
    return ceil_div(N, rows_per_chunk(N));
}

size_t loom_cuda_layernorm_backward_workspace(const struct loom_layernorm_backward *a) {
    return (size_t)chunk_count(loom_view_row_count(&a->dout)) * 2 * (size_t)a->dout.shape[3] * sizeof(float);
}

template <typename T> struct backward_arguments {
    rows<T> dx;      /* may be the memory of skip */
    float *partials; /* (chunks, 2, C): of dweight and dbias */
    rows<const T> dout, skip, x;
    const T *weight;
    const float *mean, *rstd;
    int64_t N, chunk_rows;
    int C;
};

/* Adds the groups' sums of a block in order of the groups and stores them as the block's partials. A thread's values
 * belong to the same columns in every group. */
template <typename T, int GROUP, int PACKS>
__device__ __forceinline__ void store_partials(float *partials, int C, float (&dweight)[PACKS][PACKED<T>],
                                               float (&dbias)[PACKS][PACKED<T>]) {
    constexpr int N = PACKED<T>;
    if constexpr (GROUPS < GROUP >> 1) {
        SHARED_ARRAY(float, shared, 2 * PACKS * N * GROUP);
        float(*sums)[N][GROUP] = reinterpret_cast<float(*)[N][GROUP]>(shared); /* (2 PACKS, N, GROUP) */
        const int group = threadIdx.x / GROUP, lane = group_lane<GROUP>();
        for (int turn = 0; turn < GROUPS<GROUP>; turn++) {
            if (group == turn) {
#pragma unroll
                for (int p = 0; p < PACKS; p++)
#pragma unroll
                    for (int i = 0; i < N; i++) {
                        if (turn > 0) {
                            dweight[p][i] += sums[p][i][lane];
                            dbias[p][i] += sums[PACKS + p][i][lane];
                        }
                        sums[p][i][lane] = dweight[p][i];
                        sums[PACKS + p][i][lane] = dbias[p][i];
                    }
            }
            __syncthreads();
        }
        if (group != GROUPS<GROUP> - 1) return;
    }
    float *chunk = partials + (int64_t)blockIdx.x * 2 * C;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int column = pack_column<T, GROUP>(p);
        if (column >= C) continue;
#pragma unroll
        for (int i = 0; i < N; i++) {
            chunk[column + i] = dweight[p][i];
            chunk[C + column + i] = dbias[p][i];
        }
    }
}

/* How many blocks of the kernel below must fit into a multiprocessor: registers for 512 threads, 384 or 256, less where
 * a thread holds more of a row. */
template <typename T, int GROUP, int PACKS>
constexpr int RESIDENT_BLOCKS = (PACKS <= 3   ? 512
                                 : PACKS == 4 ? 384
                                              : 256) /
                                GROUP_THREADS<GROUP>;

/* Reads 2NC (3NC with skip), writes NC, each value once; the partials add about 1/16 of that at most. */
template <typename T, int GROUP, int PACKS>
__global__ void __launch_bounds__(GROUP_THREADS<GROUP>, (RESIDENT_BLOCKS<T, GROUP, PACKS>))
    backward_in_registers(backward_arguments<T> a) {
    constexpr int N = PACKED<T>;
    const int64_t first = (int64_t)blockIdx.x * a.chunk_rows;
    const int64_t end = first + a.chunk_rows < a.N ? first + a.chunk_rows : a.N;
    float dweight[PACKS][N] = {}, dbias[PACKS][N] = {};
    for (int64_t n = first + threadIdx.x / GROUP; n < end; n += GROUPS<GROUP>) {
        vec128 x_row[PACKS], dout_row[PACKS], skip_row[PACKS];
        load_row<T, GROUP>(x_row, row_at(a.x, n), a.C);
        load_row<T, GROUP>(dout_row, row_at(a.dout, n), a.C);
        if (a.skip.data) load_row<T, GROUP>(skip_row, row_at(a.skip, n), a.C);
        const float mean = a.mean[n], rstd = a.rstd[n];
        float sum = 0, dot = 0;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int column = pack_column<T, GROUP>(p);
            if (column >= a.C) continue;
            float x[N], dout[N], weight[N];
            unpack(x, x_row[p], T());
            unpack(dout, dout_row[p], T());
            read_values(weight, a.weight + column);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float normal = (x[i] - mean) * rstd, g = dout[i] * weight[i];
                sum += g;
                dot += g * normal;
                dweight[p][i] += dout[i] * normal;
                dbias[p][i] += dout[i];
            }
        }
        sum = group_sum<GROUP>(sum) / (float)a.C;
        dot = group_sum<GROUP>(dot) / (float)a.C;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int column = pack_column<T, GROUP>(p);
            if (column >= a.C) continue;
            float x[N], dout[N], weight[N], skip[N] = {};
            unpack(x, x_row[p], T());
            unpack(dout, dout_row[p], T());
            read_values(weight, a.weight + column);
            if (a.skip.data) unpack(skip, skip_row[p], T());
#pragma unroll
            for (int i = 0; i < N; i++) skip[i] += rstd * (dout[i] * weight[i] - sum - (x[i] - mean) * rstd * dot);
            write_values(row_at(a.dx, n) + column, skip);
        }
    }
    store_partials<T, GROUP, PACKS>(a.partials, a.C, dweight, dbias);
}

/* dx of any row. With the next kernel it has the floor of the one above and reads x and dout three times. */
template <typename T, int GROUP>
__global__ void __launch_bounds__(GROUP_THREADS<GROUP>) backward_in_sweeps(backward_arguments<T> a) {
    const int64_t n = group_row<GROUP>();
    if (n >= a.N) return;
    const T *x = row_at(a.x, n), *dout = row_at(a.dout, n), *skip = a.skip.data ? row_at(a.skip, n) : nullptr;
    const float mean = a.mean[n], rstd = a.rstd[n];
    float sum = 0, dot = 0;
    for (int c = group_lane<GROUP>(); c < a.C; c += GROUP) {
        const float g = to_float(dout[c]) * to_float(a.weight[c]);
        sum += g;
        dot += g * ((to_float(x[c]) - mean) * rstd);
    }
    sum = group_sum<GROUP>(sum) / (float)a.C;
    dot = group_sum<GROUP>(dot) / (float)a.C;
    for (int c = group_lane<GROUP>(); c < a.C; c += GROUP) {
        const float g = to_float(dout[c]) * to_float(a.weight[c]), normal = (to_float(x[c]) - mean) * rstd;
        const float dx = rstd * (g - sum - normal * dot);
        row_at(a.dx, n)[c] = from_float<T>(skip ? dx + to_float(skip[c]) : dx);
    }
}

constexpr int PARTIAL_THREADS = 128;

/* The partials beside it: a thread to a column of a chunk. */
template <typename T> __global__ void __launch_bounds__(PARTIAL_THREADS) partials_by_columns(backward_arguments<T> a) {
    const int column = (int)(blockIdx.y * PARTIAL_THREADS + threadIdx.x);
    if (column >= a.C) return;
    const int64_t first = (int64_t)blockIdx.x * a.chunk_rows;
    const int64_t end = first + a.chunk_rows < a.N ? first + a.chunk_rows : a.N;
    float dweight = 0, dbias = 0;
    for (int64_t n = first; n < end; n++) {
        const float d = to_float(row_at(a.dout, n)[column]);
        dweight += d * ((to_float(row_at(a.x, n)[column]) - a.mean[n]) * a.rstd[n]);
        dbias += d;
    }
    float *chunk = a.partials + (int64_t)blockIdx.x * 2 * a.C;
    chunk[column] = dweight;
    chunk[a.C + column] = dbias;
}

/* A parameter's gradient: written, or added to what is there, in float and rounded once. */
template <typename T> __device__ __forceinline__ void give(T *to, float value, bool accumulate) {
    *to = from_float<T>(accumulate ? to_float(*to) + value : value);
}

constexpr int SUM_WARPS = 16;

/* Adds the chunks of 32 columns: each warp every 16th chunk, then the warps' sums in order. Columns count over dweight
 * and dbias. Reads the partials (chunks, 2C), writes 2C. */
template <typename G>
__global__ void __launch_bounds__(WARP *SUM_WARPS)
    parameter_gradients(G *dweight, G *dbias, const float *partials, int chunks, int C, bool accumulate) {
    SHARED_ARRAY(float, sums, SUM_WARPS *WARP);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int64_t column = (int64_t)blockIdx.x * WARP + lane, columns = 2 * (int64_t)C;
    float sum = 0;
    if (column < columns)
#pragma unroll 4
        for (int chunk = warp; chunk < chunks; chunk += SUM_WARPS) sum += partials[chunk * columns + column];
    sums[warp * WARP + lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    for (int w = 1; w < SUM_WARPS; w++) sum += sums[w * WARP + lane];
    if (column < C)
        give(dweight + column, sum, accumulate);
    else
        give(dbias + (column - C), sum, accumulate);
}

template <typename T> static void backward(const loom_context *ctx, const struct loom_layernorm_backward *a) {
    const int64_t N = loom_view_row_count(&a->dout), C = a->dout.shape[3];
    const backward_arguments<T> arguments = {
        rows_of<T>(&a->dx),
        static_cast<float *>(ctx->workspace),
        rows_of<const T>(&a->dout),
        rows_of<const T>(&a->skip),
        rows_of<const T>(&a->x),
        static_cast<const T *>(a->weight.data),
        static_cast<const float *>(a->mean.data),
        static_cast<const float *>(a->rstd.data),
        N,
        rows_per_chunk(N),
        (int)C,
    };
    const unsigned chunks = (unsigned)chunk_count(N);
    const bool aligned = rows_are_aligned(&a->dx) && rows_are_aligned(&a->dout) && given_rows_are_aligned(&a->skip) &&
                         rows_are_aligned(&a->x) && rows_are_aligned(&a->weight);
    const bool launched = aligned && with_registers<T>(C, [&](auto group, auto packs) {
                              constexpr int GROUP = decltype(group)::value, PACKS = decltype(packs)::value;
                              launch(ctx, "layernorm_backward", backward_in_registers<T, GROUP, PACKS>, chunks,
                                     GROUP_THREADS<GROUP>, 0, arguments);
                          });
    if (launched) return;
    with_group(C, [&](auto group) {
        constexpr int GROUP = decltype(group)::value;
        launch(ctx, "layernorm_backward", backward_in_sweeps<T, GROUP>, group_grid<GROUP>(N), GROUP_THREADS<GROUP>, 0,
               arguments);
    });
    launch(ctx, "layernorm_backward", partials_by_columns<T>,
           dim3(chunks, (unsigned)ceil_div(C, (int64_t)PARTIAL_THREADS)), PARTIAL_THREADS, 0, arguments);
}

void loom_cuda_layernorm_backward(loom_context *ctx, const struct loom_layernorm_backward *a) {
    with_dtype(a->dout.dtype, [&](auto tag) { backward<typename decltype(tag)::type>(ctx, a); });
    const int64_t C = a->dout.shape[3];
    with_fp32_or_bf16(a->dweight.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type G;
        launch(ctx, "layernorm_backward", parameter_gradients<G>, grid_size(ceil_div(2 * C, (int64_t)WARP)),
               WARP * SUM_WARPS, 0, static_cast<G *>(a->dweight.data), static_cast<G *>(a->dbias.data),
               static_cast<const float *>(ctx->workspace), (int)chunk_count(loom_view_row_count(&a->dout)), (int)C,
               a->accumulate);
    });
}
