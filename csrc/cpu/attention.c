#include "cpu/definition.h"
#include "cpu/sums.h"
#include "cpu/tile.h"

/* Probabilities and their gradients are reals here. Devices that multiply 16-bit values round both to the storage type
 * before they multiply them by v, dout, k or q; the bounds in csrc/cases/attention.c allow for that.
 *
 * Queries and keys are processed in tiles of TILE rows; of the (Tq,Tk) matrix of scores only one tile exists at a time.
 * Tiles are copied as reals, with D padded by zeros to whole vectors. Forward uses a tile of keys for QUERY_TILES tiles
 * of queries before it loads the next; backward uses a tile of queries for KEY_TILES tiles of keys.
 *
 * Rows are processed GROUP at a time, so that on the diagonal fewer masked scores are computed. Only products with
 * zeros are left out. */
enum { TILE = 64, GROUP = 16, QUERY_TILES = 4, KEY_TILES = 2 };
_Static_assert(TILE % GROUP == 0 && GROUP % TILE_ROWS == 0 && GROUP % TILE_LANES == 0, "groups are whole strips");

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* The address of head h at position t of a (B,T,H,D) view. */
static void *head_address(const loom_view *v, int64_t b, int64_t t, int64_t h) {
    const int64_t element = b * v->stride[0] + t * v->stride[1] + h * v->stride[2];
    return (char *)v->data + (size_t)element * stored_size(v->dtype);
}

static const real *read_head(const loom_view *v, int64_t b, int64_t t, int64_t h, real *scratch) {
    ask_for(head_address(v, b, t + AHEAD, h), (size_t)v->shape[3] * stored_size(v->dtype));
    return reals_at(head_address(v, b, t, h), v->dtype, v->shape[3], scratch);
}

/* Loads rows first .. first + rows - 1 of head h of a (B,T,H,D) view, multiplied by `scale`, and pads with zeros up to
 * padded_rows and padded_D. */
static void load_tile(real *tile, const loom_view *v, int64_t b, int64_t h, int64_t first, int64_t rows,
                      int64_t padded_rows, int64_t padded_D, real scale) {
    const int64_t D = v->shape[3];
    for (int64_t r = 0; r < rows; r++) {
        real *row = tile + r * padded_D;
        const real *stored = read_head(v, b, first + r, h, row);
#pragma omp simd
        for (int64_t d = 0; d < D; d++) row[d] = stored[d] * scale;
        for (int64_t d = D; d < padded_D; d++) row[d] = 0;
    }
    memset(tile + rows * padded_D, 0, (size_t)((padded_rows - rows) * padded_D) * sizeof *tile);
}

static void store_tile(const loom_view *v, int64_t b, int64_t h, int64_t first, int64_t rows, const real *tile,
                       int64_t padded_D) {
    for (int64_t r = 0; r < rows; r++)
        store_reals(head_address(v, b, first + r, h), v->dtype, tile + r * padded_D, v->shape[3]);
}

/* The same, transposed to (D, TILE). Rows that are not stored as reals are converted in `staging` (TILE, padded_D). */
static void load_transposed(real *tile, real *staging, const loom_view *v, int64_t b, int64_t h, int64_t first,
                            int64_t rows, int64_t padded_D) {
    const int64_t D = v->shape[3];
    for (int64_t r = 0; r < round_up(rows, GROUP); r += 4) {
        const real *row[4];
        for (int i = 0; i < 4; i++) {
            real *own = staging + (r + i) * padded_D;
            row[i] = r + i < rows ? read_head(v, b, first + r + i, h, own) : memset(own, 0, (size_t)D * sizeof *own);
        }
        int64_t d = 0;
        for (; d + 4 <= D; d += 4) transpose_4x4(tile + d * TILE + r, TILE, row, d);
        for (; d < D; d++)
            for (int i = 0; i < 4; i++) tile[d * TILE + r + i] = row[i][d];
    }
}

/* The number of keys, among the `keys` keys from `key` on, that the query at `position` may attend to. */
static int64_t visible(int64_t position, int64_t key, int64_t keys) {
    const int64_t n = smaller(position - key + 1, keys);
    return n < 0 ? 0 : n;
}

/* --------------------------------------------------------------------------------------------------------- forward */

/* The tiles of one thread. */
typedef struct forward_tiles {
    real *q, *out;                    /* (QUERY_TILES * TILE, padded_D) */
    real *v, *staging, *k_transposed; /* (TILE, padded_D); k_transposed is (D, TILE) */
    real *score;                      /* (TILE, TILE) */
    real *maximum, *sum;              /* (QUERY_TILES * TILE) */
} forward_tiles;

static int64_t forward_reals(int64_t D) {
    return (2 * QUERY_TILES + 3) * TILE * round_up(D, TILE_LANES) + TILE * TILE + 2 * QUERY_TILES * TILE;
}

size_t LOOM_DEFINITION(attention_forward_scratch)(const loom_device *device, const struct loom_attention_forward *a) {
    return thread_scratch_bytes(device, forward_reals(a->q.shape[3]));
}

/* Turns rows of scores into exp(score - max). Row i attends to its first visible(position + i, ...) keys; after these,
 * the row is zero up to the `last` key that any of the rows attends to. The running maximum and sum are updated, and
 * `out` is rescaled to the new maximum. */
static void online_softmax(real *score, real *out, int64_t rows, int64_t position, int64_t key, int64_t keys,
                           int64_t last, int64_t padded_D, real *maximum, real *sum) {
    for (int64_t i = 0; i < rows; i++, score += TILE, out += padded_D) {
        const int64_t n = visible(position + i, key, keys), whole = round_up(n, TILE_LANES);
        const real largest = row_max(score, n, maximum[i]);
#pragma omp simd
        for (int64_t j = 0; j < whole; j++) score[j] = real_exp(score[j] - largest);
        for (int64_t j = n; j < last; j++) score[j] = 0;
        if (n == 0) continue;
        const real correction = real_exp(maximum[i] - largest);
        maximum[i] = largest;
        sum[i] = sum[i] * correction + row_sum(score, n);
#pragma omp simd
        for (int64_t d = 0; d < padded_D; d++) out[d] *= correction;
    }
}

/* Processes a tile of queries, whose first row is row `first` of the block, against the loaded tile of keys. */
static void forward_tile(const forward_tiles *t, int64_t first, int64_t rows, int64_t position, int64_t key,
                         int64_t keys, int64_t D, int64_t padded_D) {
    for (int64_t g = 0; g < rows; g += GROUP) {
        const int64_t count = smaller(GROUP, rows - g), last = visible(position + g + count - 1, key, keys);
        if (last == 0) continue;
        real *score = t->score + g * TILE, *out = t->out + (first + g) * padded_D;
        const int64_t padded = round_up(count, TILE_ROWS);
        tile_multiply(score, TILE, t->q + (first + g) * padded_D, padded_D, false, t->k_transposed, TILE, padded,
                      round_up(last, TILE_LANES), D, true);
        online_softmax(score, out, count, position + g, key, keys, last, padded_D, t->maximum + first + g,
                       t->sum + first + g);
        tile_multiply(out, padded_D, score, TILE, false, t->v, padded_D, padded, padded_D, last, false);
    }
}

/* Processes QUERY_TILES tiles of queries (or those that are left) from `query` on. */
static void forward_block(const struct loom_attention_forward *a, const forward_tiles *t, int64_t b, int64_t h,
                          int64_t query) {
    const int64_t Tq = a->q.shape[1], H = a->q.shape[2], D = a->q.shape[3], Hkv = a->k.shape[2];
    const int64_t padded_D = round_up(D, TILE_LANES), hkv = h * Hkv / H, position = a->first_query + query;
    const int64_t rows = smaller(QUERY_TILES * TILE, Tq - query), seen = position + rows;
    load_tile(t->q, &a->q, b, h, query, rows, round_up(rows, TILE_ROWS), padded_D, (real)a->scale);
    memset(t->out, 0, (size_t)(round_up(rows, TILE_ROWS) * padded_D) * sizeof(real));
    for (int64_t i = 0; i < rows; i++) t->maximum[i] = -INFINITY, t->sum[i] = 0;
    for (int64_t key = 0; key < seen; key += TILE) {
        const int64_t keys = smaller(TILE, seen - key);
        load_transposed(t->k_transposed, t->staging, &a->k, b, hkv, key, keys, padded_D);
        load_tile(t->v, &a->v, b, hkv, key, keys, keys, padded_D, 1);
        for (int64_t first = 0; first < rows; first += TILE)
            forward_tile(t, first, smaller(TILE, rows - first), position + first, key, keys, D, padded_D);
    }
    real *lse = (real *)a->lse.data + b * a->lse.stride[1] + h * a->lse.stride[2] + query;
    for (int64_t i = 0; i < rows; i++) {
        const real scale = 1 / t->sum[i];
#pragma omp simd
        for (int64_t d = 0; d < D; d++) t->out[i * padded_D + d] *= scale;
        lse[i] = t->maximum[i] + (real)loom_log((double)t->sum[i]);
    }
    store_tile(&a->out, b, h, query, rows, t->out, padded_D);
}

void LOOM_DEFINITION(attention_forward)(loom_context *ctx, const struct loom_attention_forward *a) {
    const int64_t B = a->q.shape[0], Tq = a->q.shape[1], H = a->q.shape[2], D = a->q.shape[3];
    const int64_t part = TILE * round_up(D, TILE_LANES), blocks = (Tq + QUERY_TILES * TILE - 1) / (QUERY_TILES * TILE);
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *q = thread_scratch(ctx, forward_reals(D)), *out = q + QUERY_TILES * part;
        real *v = out + QUERY_TILES * part, *score = v + 3 * part, *maximum = score + TILE * TILE;
        const forward_tiles t = {q, out, v, v + part, v + 2 * part, score, maximum, maximum + QUERY_TILES * TILE};
        /* Later blocks of queries attend to more keys: a dynamic schedule balances the threads. No value depends on the
         * thread that computes it. */
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < B * H * blocks; i++)
            forward_block(a, &t, i / H / blocks, i / blocks % H, i % blocks * QUERY_TILES * TILE);
    }
}

/* --------------------------------------------------------------------------------------------------------- backward
 * With P = exp(S - lse) and delta_i = sum_d dout_id out_id:  dV = P^T dO,  dP = dO V^T,  dS = P (dP - delta),
 * dQ = scale dS K,  dK = scale dS^T Q   (FlashAttention-2, algorithm 2). One thread owns a key head, so that no
 * two threads add to the same element. */

typedef struct backward_tiles {
    real *k, *k_transposed, *v_transposed, *dk, *dv; /* KEY_TILES of (TILE, padded_D) each, or transposed */
    real *q, *dout;                                  /* (TILE, padded_D) */
    real *p, *ds;                                    /* (TILE, TILE) */
    real *dq;                                        /* (Tq padded, padded_D), per query head of the key head */
    real *delta;                                     /* (Tq padded) */
} backward_tiles;

static int64_t backward_reals(const struct loom_attention_backward *a) {
    const int64_t padded_D = round_up(a->q.shape[3], TILE_LANES), padded_T = round_up(a->q.shape[1], TILE);
    return (5 * KEY_TILES + 2) * TILE * padded_D + 2 * TILE * TILE +
           a->q.shape[2] / a->k.shape[2] * padded_T * (padded_D + 1);
}

size_t LOOM_DEFINITION(attention_backward_scratch)(const loom_device *device, const struct loom_attention_backward *a) {
    return thread_scratch_bytes(device, backward_reals(a));
}

/* Computes delta for the rows of one head and zeroes dq. */
static void start_head(const struct loom_attention_backward *a, const backward_tiles *t, real *dq, real *delta,
                       int64_t b, int64_t h, int64_t padded_D) {
    const int64_t Tq = a->q.shape[1];
    for (int64_t query = 0; query < Tq; query += TILE) {
        const int64_t rows = smaller(TILE, Tq - query);
        load_tile(t->dout, &a->dout, b, h, query, rows, TILE, padded_D, 1);
        load_tile(t->q, &a->out, b, h, query, rows, TILE, padded_D, 1);
        for (int64_t i = 0; i < TILE; i++)
            delta[query + i] = row_dot(t->dout + i * padded_D, t->q + i * padded_D, a->q.shape[3]);
        memset(dq + query * padded_D, 0, (size_t)(TILE * padded_D) * sizeof(real));
    }
}

/* Row i of the scores S and of dP becomes P = exp(S - lse) and dS = P (dP - delta). From the first masked key on, up to
 * `zeros`, both are zero. Padding rows, from `rows` on, are entirely zero. */
static void probabilities(real *p, real *ds, const real *lse, const real *delta, int64_t rows, int64_t padded_rows,
                          int64_t position, int64_t key, int64_t keys, int64_t zeros) {
    for (int64_t i = 0; i < padded_rows; i++, p += TILE, ds += TILE) {
        const int64_t n = i < rows ? visible(position + i, key, keys) : 0, whole = round_up(n, TILE_LANES);
        const real shift = n ? lse[i] : 0, subtract = n ? delta[i] : 0;
#pragma omp simd
        for (int64_t j = 0; j < whole; j++) {
            p[j] = real_exp(p[j] - shift);
            ds[j] = p[j] * (ds[j] - subtract);
        }
        for (int64_t j = n; j < zeros; j++) p[j] = ds[j] = 0;
    }
}

/* Processes the loaded tile of queries against the k-th tile of keys. */
static void backward_tile(const struct loom_attention_backward *a, const backward_tiles *t, real *dq, const real *delta,
                          const real *lse, int64_t rows, int64_t position, int64_t k, int64_t key, int64_t keys,
                          int64_t padded_D) {
    const int64_t D = a->q.shape[3], at = k * TILE * padded_D;
    for (int64_t g = 0; g < rows; g += GROUP) {
        const int64_t count = smaller(GROUP, rows - g), last = visible(position + g + count - 1, key, keys);
        if (last == 0) continue;
        real *p = t->p + g * TILE, *ds = t->ds + g * TILE;
        const int64_t padded = round_up(count, TILE_ROWS), columns = round_up(last, TILE_LANES);
        tile_multiply(p, TILE, t->q + g * padded_D, padded_D, false, t->k_transposed + at, TILE, padded, columns, D,
                      true);
        tile_multiply(ds, TILE, t->dout + g * padded_D, padded_D, false, t->v_transposed + at, TILE, padded, columns, D,
                      true);
        probabilities(p, ds, lse + g, delta + g, count, padded, position + g, key, keys, round_up(last, GROUP));
        tile_multiply(dq + g * padded_D, padded_D, ds, TILE, false, t->k + at, padded_D, padded, padded_D, last, false);
    }
    /* q is already scaled, so dk needs no further scaling; dq is scaled when it is stored. */
    for (int64_t g = 0; g < keys; g += GROUP) {
        const int64_t from = key + g > position ? key + g - position
                                                : 0; /* the first query that sees the first of these */
        if (from >= rows) break;
        real *dv = t->dv + at + g * padded_D, *dk = t->dk + at + g * padded_D;
        tile_multiply(dv, padded_D, t->p + from * TILE + g, TILE, true, t->dout + from * padded_D, padded_D, GROUP,
                      padded_D, rows - from, false);
        tile_multiply(dk, padded_D, t->ds + from * TILE + g, TILE, true, t->q + from * padded_D, padded_D, GROUP,
                      padded_D, rows - from, false);
    }
}

/* Processes KEY_TILES tiles of keys (or those that are left) from `key` on. */
static void backward_keys(const struct loom_attention_backward *a, const backward_tiles *t, int64_t b, int64_t hkv,
                          int64_t key) {
    const int64_t Tq = a->q.shape[1], group = a->q.shape[2] / a->k.shape[2], Tk = a->k.shape[1];
    const int64_t padded_D = round_up(a->q.shape[3], TILE_LANES), part = TILE * padded_D;
    const int64_t tiles = smaller(KEY_TILES, (Tk - key + TILE - 1) / TILE);
    for (int64_t k = 0; k < tiles; k++) {
        const int64_t first = key + k * TILE, keys = smaller(TILE, Tk - first);
        load_transposed(t->v_transposed + k * part, t->dv + k * part, &a->v, b, hkv, first, keys, padded_D);
        load_transposed(t->k_transposed + k * part, t->dk + k * part, &a->k, b, hkv, first, keys, padded_D);
        load_tile(t->k + k * part, &a->k, b, hkv, first, keys, keys, padded_D, 1);
    }
    memset(t->dk, 0, (size_t)(tiles * part) * sizeof(real));
    memset(t->dv, 0, (size_t)(tiles * part) * sizeof(real));
    const int64_t start = key > a->first_query ? (key - a->first_query) / TILE * TILE : 0;
    for (int64_t g = 0; g < group; g++) {
        const int64_t h = hkv * group + g, head = g * round_up(Tq, TILE);
        for (int64_t query = start; query < Tq; query += TILE) {
            const int64_t rows = smaller(TILE, Tq - query), position = a->first_query + query;
            const real *lse = (const real *)a->lse.data + b * a->lse.stride[1] + h * a->lse.stride[2] + query;
            load_tile(t->q, &a->q, b, h, query, rows, round_up(rows, TILE_ROWS), padded_D, (real)a->scale);
            load_tile(t->dout, &a->dout, b, h, query, rows, round_up(rows, TILE_ROWS), padded_D, 1);
            for (int64_t k = 0; k < tiles && key + k * TILE < position + rows; k++)
                backward_tile(a, t, t->dq + (head + query) * padded_D, t->delta + head + query, lse, rows, position, k,
                              key + k * TILE, smaller(TILE, Tk - key - k * TILE), padded_D);
        }
    }
    for (int64_t k = 0; k < tiles; k++) {
        const int64_t first = key + k * TILE, keys = smaller(TILE, Tk - first);
        store_tile(&a->dk, b, hkv, first, keys, t->dk + k * part, padded_D);
        store_tile(&a->dv, b, hkv, first, keys, t->dv + k * part, padded_D);
    }
}

static void backward_key_head(const struct loom_attention_backward *a, const backward_tiles *t, int64_t b,
                              int64_t hkv) {
    const int64_t Tq = a->q.shape[1], group = a->q.shape[2] / a->k.shape[2], Tk = a->k.shape[1];
    const int64_t padded_D = round_up(a->q.shape[3], TILE_LANES), padded_T = round_up(Tq, TILE);
    for (int64_t g = 0; g < group; g++)
        start_head(a, t, t->dq + g * padded_T * padded_D, t->delta + g * padded_T, b, hkv * group + g, padded_D);
    for (int64_t key = 0; key < Tk; key += KEY_TILES * TILE) backward_keys(a, t, b, hkv, key);
    for (int64_t g = 0; g < group; g++) {
        real *dq = t->dq + g * padded_T * padded_D;
#pragma omp simd
        for (int64_t i = 0; i < Tq * padded_D; i++) dq[i] *= (real)a->scale;
        store_tile(&a->dq, b, hkv * group + g, 0, Tq, dq, padded_D);
    }
}

void LOOM_DEFINITION(attention_backward)(loom_context *ctx, const struct loom_attention_backward *a) {
    const int64_t B = a->q.shape[0], Tq = a->q.shape[1], H = a->q.shape[2], D = a->q.shape[3], Hkv = a->k.shape[2];
    const int64_t padded_D = round_up(D, TILE_LANES), keys = KEY_TILES * TILE * padded_D, part = TILE * padded_D;
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *k = thread_scratch(ctx, backward_reals(a)), *q = k + 5 * keys;
        real *p = q + 2 * part, *dq = p + 2 * TILE * TILE;
        const backward_tiles t = {.k = k,
                                  .k_transposed = k + keys,
                                  .v_transposed = k + 2 * keys,
                                  .dk = k + 3 * keys,
                                  .dv = k + 4 * keys,
                                  .q = q,
                                  .dout = q + part,
                                  .p = p,
                                  .ds = p + TILE * TILE,
                                  .dq = dq,
                                  .delta = dq + H / Hkv * round_up(Tq, TILE) * padded_D};
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < B * Hkv; i++) backward_key_head(a, &t, i / Hkv, i % Hkv);
    }
}
