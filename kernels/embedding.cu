/* Embedding, forward and backward.
 *
 * The gradient of a token's row is the sum of dout over the token's occurrences. To add them in one fixed order at a
 * cost that does not hang on how the tokens are spread:
 *
 *   1. sort:  the places n = 0 .. N-1 are put in order of their tokens, equal tokens in order of n, by a radix sort of
 *             eight bits a pass. Its counts come from ballots, not from atomics, which makes it stable;
 *   2. sum:   the sorted places are cut into pieces of a fixed length. A block walks through one piece and adds rows while
 *             the token stays the same. A run of equal tokens that lies in one piece is then finished. One that crosses
 *             the ends of pieces leaves a partial sum in each;
 *   3. join:  the partial sums of such a run are added in order of the pieces.
 *
 * So rows of a token that makes up most of the batch cost as much as any other's. The gradient of a position is a sum
 * of B rows, added in order by one thread to a column. Both read dout: 2NC, where N small enough for L2 makes it NC. */
#include "kernels/rows.h"

/* ------------------------------------------------------------------------------------------------------------ forward */

/* Reads the N tokens, 2NC weights (of the positions' only TC from memory, if B > 1) and writes NC: each value once. A
 * warp to a row. */
template <typename T, int ACCESS>
__global__ void __launch_bounds__(GROUP_THREADS<WARP>)
    forward_kernel(rows<T> out, rows<const T> token_weight, rows<const T> position_weight, const int32_t *tokens,
                   int64_t N, int64_t length, int64_t first_position, int C) {
    const int64_t n = group_row<WARP>();
    if (n >= N) return;
    const T *word = row_at(token_weight, tokens[n]), *place = row_at(position_weight, first_position + n % length);
#pragma unroll 4
    for (int c = group_lane<WARP>() * ACCESS; c < C; c += WARP * ACCESS) {
        float sum[ACCESS], added[ACCESS];
        read_values(sum, word + c);
        read_values(added, place + c);
#pragma unroll
        for (int i = 0; i < ACCESS; i++) sum[i] += added[i];
        write_values(row_at(out, n) + c, sum);
    }
}

void loom_cuda_embedding_forward(loom_context *ctx, const struct loom_embedding_forward *a) {
    const int64_t N = loom_view_row_count(&a->out), C = a->out.shape[3];
    const bool aligned = rows_are_aligned(&a->out) && rows_are_aligned(&a->token_weight) &&
                         rows_are_aligned(&a->position_weight);
    with_dtype(a->out.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        launch(ctx, "embedding_forward", aligned ? forward_kernel<T, PACKED<T>> : forward_kernel<T, 1>,
               group_grid<WARP>(N), GROUP_THREADS<WARP>, 0, rows_of<T>(&a->out), rows_of<const T>(&a->token_weight),
               rows_of<const T>(&a->position_weight), static_cast<const int32_t *>(a->tokens.data), N, a->out.shape[2],
               a->first_position, (int)C);
    });
}
LOOM_CUDA_NO_WORKSPACE(embedding_forward)

/* --------------------------------------------------------------------------------------------------- backward: scratch */

constexpr int DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS;
constexpr int SORT_THREADS = DIGITS; /* a thread to a digit */
constexpr int SORT_WARPS = SORT_THREADS / WARP, PARTS = SORT_WARPS * DIGITS;
constexpr int SORT_ITEMS = 8; /* of a thread */
constexpr int TILE = SORT_THREADS * SORT_ITEMS;

/* Where things lie in the workspace. All sizes follow from N, V and C. */
struct backward_plan {
    int64_t N, tiles;      /* tiles of the sort */
    int passes;            /* of the sort: digits in V - 1 */
    int64_t pieces, piece; /* sorted places in a piece */
    size_t order[2];       /* (N) int32 each: the places, sorted by the digits so far; passes alternate */
    size_t counts;         /* (DIGITS, tiles) int32 */
    size_t totals;         /* (DIGITS) int32 */
    size_t partials;       /* (pieces, 2, C) fp32 */
    size_t bytes;
};

static size_t take(size_t *bytes, int64_t count) {
    const size_t start = *bytes;
    *bytes = (start + (size_t)count * 4 + 255) / 256 * 256;
    return start;
}

/* Enough pieces to fill a large GPU, and few enough that joining the longest run stays cheap. */
static backward_plan plan_of(const struct loom_embedding_backward *a) {
    backward_plan p = {};
    p.N = loom_view_row_count(&a->dout);
    p.tiles = ceil_div(p.N, (int64_t)TILE);
    p.passes = 1;
    while ((a->token_gradient.shape[2] - 1) >> (p.passes * DIGIT_BITS) > 0) p.passes++;
    p.piece = ceil_div(p.N, (int64_t)1024);
    if (p.piece < 32) p.piece = 32;
    p.pieces = ceil_div(p.N, p.piece);
    p.order[0] = take(&p.bytes, p.N);
    p.order[1] = take(&p.bytes, p.N);
    p.counts = take(&p.bytes, DIGITS * p.tiles);
    p.totals = take(&p.bytes, DIGITS);
    p.partials = take(&p.bytes, p.pieces * 2 * a->dout.shape[3]);
    return p;
}

size_t loom_cuda_embedding_backward_workspace(const struct loom_embedding_backward *a) {
    return plan_of(a).bytes;
}

/* ------------------------------------------------------------------------------------------------------ backward: sort
 * One pass: `order` holds places (NULL: 0 .. N-1 as they are), whose tokens' digit is at bit `shift`. A tile is TILE
 * consecutive entries of it; a warp has a consecutive part of the tile and walks through it 32 at a time, so that who
 * comes first in `order` is who comes first in (warp, step, lane). */

struct sort_pass {
    const int32_t *tokens, *order;
    int64_t N, tiles;
    int shift;
};

/* The place that the calling thread has in step i, or -1 beyond the end; and its digit. */
__device__ __forceinline__ int32_t place_of(sort_pass s, int i) {
    const int64_t at = ((int64_t)blockIdx.x * SORT_WARPS + threadIdx.x / WARP) * (WARP * SORT_ITEMS) + i * WARP +
                       threadIdx.x % WARP;
    if (at >= s.N) return -1;
    return s.order ? s.order[at] : (int32_t)at;
}

__device__ __forceinline__ int digit_of(sort_pass s, int32_t place) {
    return place < 0 ? 0 : s.tokens[place] >> s.shift & (DIGITS - 1);
}

/* The lanes of the warp that hold a place with the calling lane's digit. */
__device__ __forceinline__ unsigned lanes_alike(int32_t place, int digit) {
    unsigned lanes = __ballot_sync(0xFFFFFFFFu, place >= 0);
#pragma unroll
    for (int bit = 0; bit < DIGIT_BITS; bit++) {
        const bool set = digit >> bit & 1;
        const unsigned have = __ballot_sync(0xFFFFFFFFu, set);
        lanes &= set ? have : ~have;
    }
    return lanes;
}

/* Counts the digits of each warp's part into counts (SORT_WARPS, DIGITS), and tells each of a thread's places how many
 * with its digit come before it in the part. */
__device__ __forceinline__ void rank_places(sort_pass s, int *counts, int32_t (&place)[SORT_ITEMS],
                                            int (&rank)[SORT_ITEMS]) {
    for (int i = threadIdx.x; i < PARTS; i += SORT_THREADS) counts[i] = 0;
    __syncthreads();
    int *own = counts + threadIdx.x / WARP * DIGITS;
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < SORT_ITEMS; i++) {
        place[i] = place_of(s, i);
        const int digit = digit_of(s, place[i]);
        const unsigned alike = lanes_alike(place[i], digit);
        const int before = own[digit];
        rank[i] = before + __popc(alike & ((1u << lane) - 1));
        __syncwarp();
        if (place[i] >= 0 && (alike >> lane) == 1) own[digit] = rank[i] + 1; /* the last of those alike */
        __syncwarp();
    }
    __syncthreads();
}

/* How often each digit occurs in the tile. Reads N places and tokens. */
__global__ void __launch_bounds__(SORT_THREADS) count_digits(sort_pass s, int32_t *counts) {
    SHARED_ARRAY(int, in_parts, PARTS);
    int32_t place[SORT_ITEMS];
    int rank[SORT_ITEMS];
    rank_places(s, in_parts, place, rank);
    int sum = 0;
    for (int warp = 0; warp < SORT_WARPS; warp++) sum += in_parts[warp * DIGITS + threadIdx.x];
    counts[threadIdx.x * s.tiles + blockIdx.x] = sum;
}

/* The sum over lower lanes; `total` becomes that over all. */
__device__ __forceinline__ int sum_before(int value, int &total) {
    int sum = value;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int lower = __shfl_up_sync(0xFFFFFFFFu, sum, distance);
        if ((int)threadIdx.x % WARP >= distance) sum += lower;
    }
    total = __shfl_sync(0xFFFFFFFFu, sum, WARP - 1);
    return sum - value;
}

/* Replaces each digit's counts by how many come in earlier tiles, and writes the digit's total. A warp to a digit. */
__global__ void __launch_bounds__(SORT_THREADS) sum_counts(int32_t *counts, int32_t *totals, int64_t tiles) {
    const int digit = (int)(blockIdx.x * SORT_WARPS + threadIdx.x / WARP), lane = threadIdx.x % WARP;
    int32_t *own = counts + digit * tiles;
    int before = 0;
    for (int64_t first = 0; first < tiles; first += WARP) {
        const int64_t tile = first + lane;
        int total;
        const int sum = sum_before(tile < tiles ? own[tile] : 0, total);
        if (tile < tiles) own[tile] = before + sum;
        before += total;
    }
    if (lane == 0) totals[digit] = before;
}

/* Writes the places in order of their digits. Reads N places and tokens, writes N. */
__global__ void __launch_bounds__(SORT_THREADS)
    scatter_places(sort_pass s, const int32_t *counts, const int32_t *totals, int32_t *sorted) {
    SHARED_ARRAY(int, in_parts, PARTS);
    SHARED_ARRAY(int, of_warps, SORT_WARPS);
    int32_t place[SORT_ITEMS];
    int rank[SORT_ITEMS];
    rank_places(s, in_parts, place, rank);

    /* Where the thread's digit begins: after all lower digits, after its own in earlier tiles, in earlier parts. */
    const int digit = threadIdx.x, warp = threadIdx.x / WARP;
    int total;
    int start = sum_before(totals[digit], total);
    if (threadIdx.x % WARP == 0) of_warps[warp] = total;
    __syncthreads();
    for (int w = 0; w < warp; w++) start += of_warps[w];
    start += counts[digit * s.tiles + blockIdx.x];
    for (int w = 0; w < SORT_WARPS; w++) {
        const int count = in_parts[w * DIGITS + digit];
        in_parts[w * DIGITS + digit] = start;
        start += count;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SORT_ITEMS; i++)
        if (place[i] >= 0) sorted[in_parts[warp * DIGITS + digit_of(s, place[i])] + rank[i]] = place[i];
}

/* Returns the sorted places. */
static const int32_t *sort_places(const loom_context *ctx, const backward_plan *p, const int32_t *tokens) {
    char *base = static_cast<char *>(ctx->workspace);
    int32_t *counts = reinterpret_cast<int32_t *>(base + p->counts);
    int32_t *totals = reinterpret_cast<int32_t *>(base + p->totals);
    const int32_t *order = nullptr;
    for (int pass = 0; pass < p->passes; pass++) {
        const sort_pass s = {tokens, order, p->N, p->tiles, pass * DIGIT_BITS};
        int32_t *sorted = reinterpret_cast<int32_t *>(base + p->order[pass % 2]);
        launch(ctx, "embedding_backward", count_digits, grid_size(p->tiles), SORT_THREADS, 0, s, counts);
        launch(ctx, "embedding_backward", sum_counts, DIGITS / SORT_WARPS, SORT_THREADS, 0, counts, totals, p->tiles);
        launch(ctx, "embedding_backward", scatter_places, grid_size(p->tiles), SORT_THREADS, 0, s, counts, totals,
               sorted);
        order = sorted;
    }
    return order;
}

/* ---------------------------------------------------------------------------------------------- backward: sum and join
 * A thread owns ACCESS neighbouring columns, a block a piece; long rows are split over blockIdx.y. */

template <typename G> struct token_sums {
    rows<G> gradient;
    float *partials; /* (pieces, 2, C): of the run that began in an earlier piece, of the one that goes on in a later */
    const int32_t *tokens, *order;
    int64_t N, piece, pieces;
    int C;
};

template <typename G> __device__ __forceinline__ int32_t token_at(token_sums<G> s, int64_t i) {
    return s.tokens[s.order[i]];
}

/* How many of a thread's N values are one access: all, or as many as 16 bytes hold. */
template <int N, typename G> constexpr int TOGETHER = N < PACKED<G> ? N : PACKED<G>;

/* N values of a gradient, or of partial sums, as floats. They begin at a multiple of such an access. */
template <int N, typename G> __device__ __forceinline__ void read_floats(float (&to)[N], const G *from) {
    constexpr int W = TOGETHER<N, G>;
#pragma unroll
    for (int i = 0; i < N; i += W) {
        const pack<G, W> values = load_pack<W>(from + i);
#pragma unroll
        for (int j = 0; j < W; j++) to[i + j] = to_float(values.at[j]);
    }
}

template <int N, typename G> __device__ __forceinline__ void write_floats(G *to, const float (&from)[N]) {
    constexpr int W = TOGETHER<N, G>;
#pragma unroll
    for (int i = 0; i < N; i += W) {
        pack<G, W> values;
#pragma unroll
        for (int j = 0; j < W; j++) values.at[j] = from_float<G>(from[i + j]);
        store_pack(to + i, values);
    }
}

template <int N, typename G> __device__ __forceinline__ void add_floats(G *to, const float (&values)[N]) {
    float sum[N];
    read_floats(sum, to);
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] += values[i];
    write_floats(to, sum);
}

constexpr int AHEAD = 4; /* rows that are read before the first of them is added */

/* With D different tokens: reads N places, N tokens and NC of dout, reads and writes DC of the gradient. */
template <typename T, typename G, int ACCESS>
__global__ void __launch_bounds__(256) sum_pieces(token_sums<G> s, rows<const T> dout) {
    const int column = (int)(blockIdx.y * blockDim.x + threadIdx.x) * ACCESS;
    if (column >= s.C) return;
    const int64_t first = (int64_t)blockIdx.x * s.piece, end = first + s.piece < s.N ? first + s.piece : s.N;
    float *partials = s.partials + (int64_t)blockIdx.x * 2 * s.C + column;
    bool begun_before = first > 0 && token_at(s, first - 1) == token_at(s, first);
    int32_t token = token_at(s, first);
    float sum[ACCESS] = {};
    for (int64_t base = first; base < end; base += AHEAD) {
        float row[AHEAD][ACCESS];
        int32_t next[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (base + k >= end) break;
            const int32_t place = s.order[base + k];
            next[k] = s.tokens[place];
            read_values(row[k], row_at(dout, place) + column);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (base + k >= end) break;
            if (next[k] != token) {
                if (begun_before)
                    write_floats(partials, sum);
                else
                    add_floats(row_at(s.gradient, token) + column, sum);
                begun_before = false;
                token = next[k];
#pragma unroll
                for (int i = 0; i < ACCESS; i++) sum[i] = 0;
            }
#pragma unroll
            for (int i = 0; i < ACCESS; i++) sum[i] += row[k][i];
        }
    }
    if (begun_before)
        write_floats(partials, sum);
    else if (end < s.N && token_at(s, end) == token)
        write_floats(partials + s.C, sum);
    else
        add_floats(row_at(s.gradient, token) + column, sum);
}

/* For the piece in which a run begins that goes on in the next one: adds the run's partial sums to the gradient. Reads
 * them once; no more than 2C for each piece. */
template <typename G, int ACCESS> __global__ void __launch_bounds__(256) join_pieces(token_sums<G> s) {
    const int column = (int)(blockIdx.y * blockDim.x + threadIdx.x) * ACCESS;
    if (column >= s.C) return;
    const int64_t first = (int64_t)blockIdx.x * s.piece, end = first + s.piece;
    const int32_t token = token_at(s, end - 1);
    if (token_at(s, end) != token) return;
    if (first > 0 && token_at(s, first - 1) == token) return; /* it began in an earlier piece */

    int64_t low = blockIdx.x + 1,
            high = s.pieces; /* pieces below `low` begin with the token, those from `high` do not */
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (token_at(s, middle * s.piece) == token)
            low = middle + 1;
        else
            high = middle;
    }
    float sum[ACCESS];
    read_floats(sum, s.partials + ((int64_t)blockIdx.x * 2 + 1) * s.C + column);
#pragma unroll 8
    for (int64_t piece = (int64_t)blockIdx.x + 1; piece < high; piece++) {
        float partial[ACCESS];
        read_floats(partial, s.partials + piece * 2 * s.C + column);
#pragma unroll
        for (int i = 0; i < ACCESS; i++) sum[i] += partial[i];
    }
    add_floats(row_at(s.gradient, token) + column, sum);
}

/* ------------------------------------------------------------------------------------------------ backward: positions */

/* Adds dout (B,T,C) over b in order; T is `length`. Reads NC and, if there is something to add to, TC; writes TC. */
template <typename T, typename G, int ACCESS>
__global__ void __launch_bounds__(256) add_positions(rows<G> gradient, rows<const T> dout, int64_t B, int64_t length,
                                                     int64_t first_position, int C, bool accumulate) {
    const int column = (int)(blockIdx.y * blockDim.x + threadIdx.x) * ACCESS;
    if (column >= C) return;
    G *to = row_at(gradient, first_position + blockIdx.x) + column;
    float sum[ACCESS] = {};
    if (accumulate) read_floats(sum, to);
#pragma unroll 4
    for (int64_t b = 0; b < B; b++) {
        float values[ACCESS];
        read_values(values, row_at(dout, b * length + blockIdx.x) + column);
#pragma unroll
        for (int i = 0; i < ACCESS; i++) sum[i] += values[i];
    }
    write_floats(to, sum);
}

/* Rows of zeros, but for those from first_kept up to end_kept. A block to a row, as far as it reaches; writes VC. */
template <typename G, int ACCESS>
__global__ void __launch_bounds__(256) clear_rows(rows<G> gradient, int64_t first_kept, int64_t end_kept, int C) {
    const int column = (int)(blockIdx.y * blockDim.x + threadIdx.x) * ACCESS;
    const int64_t n = blockIdx.x;
    if (column >= C || (n >= first_kept && n < end_kept)) return;
    const float zeros[ACCESS] = {};
    write_floats(row_at(gradient, n) + column, zeros);
}

/* Threads for a row of C columns, and the rest of the columns over the grid's second dimension. */
template <int ACCESS> static dim3 column_grid(int64_t rows, int64_t C, unsigned *threads) {
    const int64_t packs = ceil_div(C, (int64_t)ACCESS);
    *threads = packs >= 256 ? 256 : (unsigned)(ceil_div(packs, (int64_t)WARP) * WARP);
    return dim3(grid_size(rows), (unsigned)ceil_div(packs, (int64_t)*threads));
}

template <typename T, typename G, int ACCESS>
static void position_gradient(const loom_context *ctx, const struct loom_embedding_backward *a) {
    const char *name = "embedding_backward";
    const int64_t C = a->dout.shape[3], B = a->dout.shape[0] * a->dout.shape[1], length = a->dout.shape[2];
    const int64_t first = a->first_position;
    const rows<G> gradient = rows_of<G>(&a->position_gradient);
    unsigned threads;
    dim3 grid = column_grid<ACCESS>(a->position_gradient.shape[2], C, &threads);
    if (!a->accumulate_positions)
        launch(ctx, name, clear_rows<G, ACCESS>, grid, threads, 0, gradient, first, first + length, (int)C);
    grid = column_grid<ACCESS>(length, C, &threads);
    launch(ctx, name, add_positions<T, G, ACCESS>, grid, threads, 0, gradient, rows_of<const T>(&a->dout), B, length,
           first, (int)C, a->accumulate_positions);
}

template <typename T, typename G, int ACCESS>
static void token_gradient(const loom_context *ctx, const struct loom_embedding_backward *a) {
    const char *name = "embedding_backward";
    const backward_plan p = plan_of(a);
    const int64_t C = a->dout.shape[3];
    const int32_t *tokens = static_cast<const int32_t *>(a->tokens.data);
    const rows<G> gradient = rows_of<G>(&a->token_gradient);
    unsigned threads;
    dim3 grid = column_grid<ACCESS>(a->token_gradient.shape[2], C, &threads);
    if (!a->accumulate_tokens)
        launch(ctx, name, clear_rows<G, ACCESS>, grid, threads, 0, gradient, (int64_t)0, (int64_t)0, (int)C);
    const token_sums<G> sums = {
        gradient, reinterpret_cast<float *>(static_cast<char *>(ctx->workspace) + p.partials),
        tokens,   sort_places(ctx, &p, tokens),
        p.N,      p.piece,
        p.pieces, (int)C,
    };
    grid = column_grid<ACCESS>(p.pieces, C, &threads);
    launch(ctx, name, sum_pieces<T, G, ACCESS>, grid, threads, 0, sums, rows_of<const T>(&a->dout));
    grid = column_grid<ACCESS>(p.pieces - 1, C, &threads);
    if (p.pieces > 1) launch(ctx, name, join_pieces<G, ACCESS>, grid, threads, 0, sums);
}

template <typename T, int ACCESS>
static void backward(const loom_context *ctx, const struct loom_embedding_backward *a) {
    with_fp32_or_bf16(a->position_gradient.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type G;
        position_gradient<T, G, ACCESS>(ctx, a);
        token_gradient<T, G, ACCESS>(ctx, a);
    });
}

void loom_cuda_embedding_backward(loom_context *ctx, const struct loom_embedding_backward *a) {
    const bool aligned = rows_are_aligned(&a->dout) && rows_are_aligned(&a->token_gradient) &&
                         rows_are_aligned(&a->position_gradient);
    with_dtype(a->dout.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        if (aligned)
            backward<T, PACKED<T>>(ctx, a);
        else
            backward<T, 1>(ctx, a);
    });
}
