#include "cpu/definition.h"
#include "cpu/sums.h"
#include "cpu/tile.h"

/* Probabilities and their gradients are reals here. Devices that multiply what is stored in 16 bits round both to storage
 * before they meet v, dout, k or q: the bounds in test/ops/attention.c allow for that.
 *
 * Queries and keys are taken in tiles of TILE; a tile of scores is all that ever exists of the (Tq,Tk) matrix. Tiles are
 * copied as reals with D padded to whole vectors by zeros. */
enum { TILE = 64 };

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Rows first .. first + rows - 1 of head h of a (B,T,H,D) view, times `scale`; zeros up to padded_rows and padded_D. */
static void load_tile(real *tile, const loom_view *v, int64_t b, int64_t h, int64_t first, int64_t rows,
                      int64_t padded_rows, int64_t padded_D, real scale) {
    const int64_t D = v->shape[3];
    for (int64_t r = 0; r < rows; r++) {
        real *row = tile + r * padded_D;
        const int64_t element = b * v->stride[0] + (first + r) * v->stride[1] + h * v->stride[2];
        const real *stored = reals_at((const char *)v->data + (size_t)element * loom_dtype_size(v->dtype), v->dtype, D,
                                      row);
#pragma omp simd
        for (int64_t d = 0; d < D; d++) row[d] = stored[d] * scale;
        for (int64_t d = D; d < padded_D; d++) row[d] = 0;
    }
    memset(tile + rows * padded_D, 0, (size_t)((padded_rows - rows) * padded_D) * sizeof *tile);
}

static void store_tile(const loom_view *v, int64_t b, int64_t h, int64_t first, int64_t rows, const real *tile,
                       int64_t padded_D) {
    for (int64_t r = 0; r < rows; r++) {
        const int64_t element = b * v->stride[0] + (first + r) * v->stride[1] + h * v->stride[2];
        store_reals((char *)v->data + (size_t)element * loom_dtype_size(v->dtype), v->dtype, tile + r * padded_D,
                    v->shape[3]);
    }
}

/* (TILE, padded_D) -> (padded_D, TILE) */
static void transpose(real *out, const real *tile, int64_t padded_D) {
    for (int64_t d = 0; d < padded_D; d++)
        for (int64_t r = 0; r < TILE; r++) out[d * TILE + r] = tile[r * padded_D + d];
}

/* How many of the TILE keys from `key` on the query at `position` sees. */
static int64_t visible(int64_t position, int64_t key, int64_t keys) {
    const int64_t n = smaller(position - key + 1, keys);
    return n < 0 ? 0 : n;
}

/* --------------------------------------------------------------------------------------------------------- forward */

/* A thread's tiles. */
typedef struct forward_tiles {
    real *q, *k, *k_transposed, *v, *out; /* (TILE, padded_D) each; k_transposed (padded_D, TILE) */
    real *score;                          /* (TILE, TILE) */
} forward_tiles;

static int64_t forward_reals(int64_t D) {
    return 5 * TILE * round_up(D, TILE_LANES) + TILE * TILE;
}

size_t LOOM_DEFINITION(attention_forward_scratch)(const loom_device *device, const struct loom_attention_forward *a) {
    return thread_scratch_bytes(device, forward_reals(a->q.shape[3]));
}

/* One tile of keys into one tile of queries: score rows become exp(score - max), the running maximum and sum move, and
 * what out has so far is scaled to the new maximum. */
static void online_softmax(const forward_tiles *t, int64_t rows, int64_t position, int64_t key, int64_t keys,
                           int64_t padded_D, real *maximum, real *sum) {
    for (int64_t i = 0; i < rows; i++) {
        real *score = t->score + i * TILE, *out = t->out + i * padded_D;
        const int64_t n = visible(position + i, key, keys);
        const real largest = row_max(score, n, maximum[i]), added = row_exp(score, score, largest, n);
        for (int64_t j = n; j < TILE; j++) score[j] = 0;
        if (n == 0) continue;
        const real correction = real_exp(maximum[i] - largest);
        maximum[i] = largest;
        sum[i] = sum[i] * correction + added;
#pragma omp simd
        for (int64_t d = 0; d < padded_D; d++) out[d] *= correction;
    }
}

static void forward_query_tile(const struct loom_attention_forward *a, const forward_tiles *t, int64_t b, int64_t h,
                               int64_t query) {
    const int64_t Tq = a->q.shape[1], H = a->q.shape[2], D = a->q.shape[3], Hkv = a->k.shape[2];
    const int64_t padded_D = round_up(D, TILE_LANES), hkv = h * Hkv / H;
    const int64_t rows = smaller(TILE, Tq - query), padded_rows = round_up(rows, TILE_ROWS);
    const int64_t position = a->first_query + query, seen = position + rows;
    real maximum[TILE], sum[TILE] = {0};
    for (int64_t i = 0; i < rows; i++) maximum[i] = -INFINITY;
    load_tile(t->q, &a->q, b, h, query, rows, padded_rows, padded_D, (real)a->scale);
    memset(t->out, 0, (size_t)(padded_rows * padded_D) * sizeof(real));
    for (int64_t key = 0; key < seen; key += TILE) {
        const int64_t keys = smaller(TILE, seen - key);
        load_tile(t->k, &a->k, b, hkv, key, keys, TILE, padded_D, 1);
        load_tile(t->v, &a->v, b, hkv, key, keys, TILE, padded_D, 1);
        transpose(t->k_transposed, t->k, padded_D);
        memset(t->score, 0, TILE * TILE * sizeof(real));
        tile_multiply_add(t->score, TILE, t->q, padded_D, 1, t->k_transposed, TILE, padded_rows, TILE, D);
        online_softmax(t, rows, position, key, keys, padded_D, maximum, sum);
        tile_multiply_add(t->out, padded_D, t->score, TILE, 1, t->v, padded_D, padded_rows, padded_D, keys);
    }
    real *lse = (real *)a->lse.data + b * a->lse.stride[1] + h * a->lse.stride[2] + query;
    for (int64_t i = 0; i < rows; i++) {
        const real scale = 1 / sum[i];
#pragma omp simd
        for (int64_t d = 0; d < D; d++) t->out[i * padded_D + d] *= scale;
        lse[i] = maximum[i] + (real)loom_log((double)sum[i]);
    }
    store_tile(&a->out, b, h, query, rows, t->out, padded_D);
}

void LOOM_DEFINITION(attention_forward)(loom_exec *exec, const struct loom_attention_forward *a) {
    const int64_t B = a->q.shape[0], Tq = a->q.shape[1], H = a->q.shape[2], D = a->q.shape[3];
    const int64_t part = TILE * round_up(D, TILE_LANES), query_tiles = (Tq + TILE - 1) / TILE;
#pragma omp parallel num_threads(exec->device->threads)
    {
        real *scratch = thread_scratch(exec, forward_reals(D));
        const forward_tiles t = {
            scratch, scratch + part, scratch + 2 * part, scratch + 3 * part, scratch + 4 * part, scratch + 5 * part};
        /* Later tiles of queries see more keys: dynamic keeps threads busy, and no value depends on who computes it. */
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < B * H * query_tiles; i++)
            forward_query_tile(a, &t, i / H / query_tiles, i / query_tiles % H, i % query_tiles * TILE);
    }
}

/* --------------------------------------------------------------------------------------------------------- backward
 * With P = exp(S - lse) and delta_i = sum_d dout_id out_id:  dV = P^T dO,  dP = dO V^T,  dS = P (dP - delta),
 * dQ = scale dS K,  dK = scale dS^T Q   (FlashAttention-2, algorithm 2). One thread owns a key head: nothing is added to
 * by two threads. */

typedef struct backward_tiles {
    real *q, *k, *k_transposed, *v_transposed, *dout, *dk, *dv; /* (TILE, padded_D) each, or transposed */
    real *p, *ds;                                               /* (TILE, TILE) */
    real *dq;                                                   /* (Tq padded, padded_D): of one head */
    real *delta;                                                /* (Tq padded) */
} backward_tiles;

static int64_t backward_reals(const struct loom_attention_backward *a) {
    const int64_t padded_D = round_up(a->q.shape[3], TILE_LANES), padded_T = round_up(a->q.shape[1], TILE);
    return 7 * TILE * padded_D + 2 * TILE * TILE + a->q.shape[2] / a->k.shape[2] * padded_T * (padded_D + 1);
}

size_t LOOM_DEFINITION(attention_backward_scratch)(const loom_device *device, const struct loom_attention_backward *a) {
    return thread_scratch_bytes(device, backward_reals(a));
}

/* delta of one head's rows, and dq cleared. */
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

/* One tile of queries against the tile of keys that is loaded. */
static void backward_tile(const struct loom_attention_backward *a, const backward_tiles *t, real *dq, const real *delta,
                          int64_t b, int64_t h, int64_t query, int64_t key, int64_t keys, int64_t padded_D) {
    const int64_t Tq = a->q.shape[1], D = a->q.shape[3], rows = smaller(TILE, Tq - query);
    const int64_t padded_rows = round_up(rows, TILE_ROWS);
    const real *lse = (const real *)a->lse.data + b * a->lse.stride[1] + h * a->lse.stride[2] + query;
    load_tile(t->q, &a->q, b, h, query, rows, padded_rows, padded_D, (real)a->scale);
    load_tile(t->dout, &a->dout, b, h, query, rows, padded_rows, padded_D, 1);
    memset(t->p, 0, TILE * TILE * sizeof(real));
    memset(t->ds, 0, TILE * TILE * sizeof(real));
    tile_multiply_add(t->p, TILE, t->q, padded_D, 1, t->k_transposed, TILE, padded_rows, TILE, D);
    tile_multiply_add(t->ds, TILE, t->dout, padded_D, 1, t->v_transposed, TILE, padded_rows, TILE, D);
    for (int64_t i = 0; i < padded_rows; i++) {
        real *p = t->p + i * TILE, *ds = t->ds + i * TILE;
        const int64_t n = i < rows ? visible(a->first_query + query + i, key, keys) : 0;
        const real shift = n ? lse[i] : 0, subtract = delta[query + i];
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            p[j] = real_exp(p[j] - shift);
            ds[j] = p[j] * (ds[j] - subtract);
        }
        for (int64_t j = n; j < TILE; j++) p[j] = ds[j] = 0;
    }
    /* q carries the scale already, so dk needs no other; dq takes it when it is stored. */
    tile_multiply_add(t->dv, padded_D, t->p, 1, TILE, t->dout, padded_D, TILE, padded_D, rows);
    tile_multiply_add(t->dk, padded_D, t->ds, 1, TILE, t->q, padded_D, TILE, padded_D, rows);
    tile_multiply_add(dq + query * padded_D, padded_D, t->ds, TILE, 1, t->k, padded_D, padded_rows, padded_D, keys);
}

static void backward_key_head(const struct loom_attention_backward *a, const backward_tiles *t, int64_t b,
                              int64_t hkv) {
    const int64_t Tq = a->q.shape[1], group = a->q.shape[2] / a->k.shape[2], D = a->q.shape[3];
    const int64_t Tk = a->k.shape[1], padded_D = round_up(D, TILE_LANES), padded_T = round_up(Tq, TILE);
    for (int64_t g = 0; g < group; g++)
        start_head(a, t, t->dq + g * padded_T * padded_D, t->delta + g * padded_T, b, hkv * group + g, padded_D);
    for (int64_t key = 0; key < Tk; key += TILE) {
        const int64_t keys = smaller(TILE, Tk - key);
        load_tile(t->dv, &a->v, b, hkv, key, keys, TILE, padded_D, 1);
        transpose(t->v_transposed, t->dv, padded_D);
        load_tile(t->k, &a->k, b, hkv, key, keys, TILE, padded_D, 1);
        transpose(t->k_transposed, t->k, padded_D);
        memset(t->dk, 0, (size_t)(TILE * padded_D) * sizeof(real));
        memset(t->dv, 0, (size_t)(TILE * padded_D) * sizeof(real));
        const int64_t first = key > a->first_query ? (key - a->first_query) / TILE * TILE : 0;
        for (int64_t g = 0; g < group; g++)
            for (int64_t query = first; query < Tq; query += TILE)
                backward_tile(a, t, t->dq + g * padded_T * padded_D, t->delta + g * padded_T, b, hkv * group + g, query,
                              key, keys, padded_D);
        store_tile(&a->dk, b, hkv, key, keys, t->dk, padded_D);
        store_tile(&a->dv, b, hkv, key, keys, t->dv, padded_D);
    }
    for (int64_t g = 0; g < group; g++) {
        real *dq = t->dq + g * padded_T * padded_D;
#pragma omp simd
        for (int64_t i = 0; i < Tq * padded_D; i++) dq[i] *= (real)a->scale;
        store_tile(&a->dq, b, hkv * group + g, 0, Tq, dq, padded_D);
    }
}

void LOOM_DEFINITION(attention_backward)(loom_exec *exec, const struct loom_attention_backward *a) {
    const int64_t B = a->q.shape[0], Tq = a->q.shape[1], H = a->q.shape[2], D = a->q.shape[3], Hkv = a->k.shape[2];
    const int64_t padded_D = round_up(D, TILE_LANES), padded_T = round_up(Tq, TILE), part = TILE * padded_D;
#pragma omp parallel num_threads(exec->device->threads)
    {
        real *s = thread_scratch(exec, backward_reals(a));
        real *after = s + 7 * part + 2 * TILE * TILE;
        const backward_tiles t = {s,
                                  s + part,
                                  s + 2 * part,
                                  s + 3 * part,
                                  s + 4 * part,
                                  s + 5 * part,
                                  s + 6 * part,
                                  s + 7 * part,
                                  s + 7 * part + TILE * TILE,
                                  after,
                                  after + H / Hkv * padded_T * padded_D};
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < B * Hkv; i++) backward_key_head(a, &t, i / Hkv, i % Hkv);
    }
}
