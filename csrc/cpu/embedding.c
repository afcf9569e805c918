#include "cpu/definition.h"

size_t LOOM_DEFINITION(embedding_forward_scratch)(const loom_device *device, const struct loom_embedding_forward *a) {
    return stored_as_real(&a->out) ? 0 : thread_scratch_bytes(device, 3 * a->out.shape[3]);
}

void LOOM_DEFINITION(embedding_forward)(loom_context *ctx, const struct loom_embedding_forward *a) {
    const int64_t N = loom_view_row_count(&a->out), T = a->out.shape[2], C = a->out.shape[3];
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *scratch = thread_scratch(ctx, stored_as_real(&a->out) ? 0 : 3 * C);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const int32_t token = ((const int32_t *)a->tokens.data)[n];
            const real *word = row_read(&a->token_weight, token, scratch);
            const real *place = row_read(&a->position_weight, a->first_position + n % T, scratch + C);
            real *out = row_write(&a->out, n, scratch + 2 * C);
#pragma omp simd
            for (int64_t c = 0; c < C; c++) out[c] = word[c] + place[c];
            row_written(&a->out, n, out);
        }
    }
}

/* The places of each token, as lists in order of n: first[v] is the first place of token v, next[n] the one after place n;
 * -1 ends a list. */
typedef struct token_places {
    int32_t *first, *next; /* (Vp), (N): the workspace */
} token_places;

size_t LOOM_DEFINITION(embedding_backward_scratch)(const loom_device *device, const struct loom_embedding_backward *a) {
    (void)device;
    return (size_t)(a->token_gradient.shape[2] + loom_view_row_count(&a->dout)) * sizeof(int32_t);
}

static token_places list_places(const loom_context *ctx, const struct loom_embedding_backward *a) {
    const int64_t V = a->token_gradient.shape[2], N = loom_view_row_count(&a->dout);
    const int32_t *tokens = a->tokens.data;
    LOOM_CHECK(LOOM_DEFINITION(embedding_backward_scratch)(ctx->device, a) <= ctx->workspace_bytes);
    const token_places p = {ctx->workspace, (int32_t *)ctx->workspace + V};
    for (int64_t v = 0; v < V; v++) p.first[v] = -1;
    for (int64_t n = N; n-- > 0;) {
        p.next[n] = p.first[tokens[n]];
        p.first[tokens[n]] = (int32_t)n;
    }
    return p;
}

/* Channels are split into fixed columns. Within a column, the rows of an element are added in order of n, as reals, and
 * the result is rounded once. So no two threads write the same element, and the order of additions never changes. */
enum { COLUMN = 64 };

typedef struct column {
    int64_t first, width;
    real sum[COLUMN];
} column;

static void *place_in(const loom_view *table, int64_t row, const column *c) {
    return (char *)row_address(table, row) + (size_t)c->first * loom_dtype_size(table->dtype);
}

static void begin_sum(column *c, const loom_view *table, int64_t row, bool accumulate) {
    if (accumulate)
        load_reals(c->sum, place_in(table, row, c), table->dtype, c->width);
    else
        memset(c->sum, 0, sizeof c->sum);
}

static void add_row(column *c, const loom_view *dout, int64_t n) {
    real converted[COLUMN];
    const real *values = reals_at(place_in(dout, n, c), dout->dtype, c->width, converted);
#pragma omp simd
    for (int64_t i = 0; i < c->width; i++) c->sum[i] += values[i];
}

static void end_sum(const column *c, const loom_view *table, int64_t row) {
    store_reals(place_in(table, row, c), table->dtype, c->sum, c->width);
}

static void add_tokens(const struct loom_embedding_backward *a, const token_places *places, column *c) {
    const loom_view *table = &a->token_gradient;
    const int64_t V = a->accumulate_tokens ? 0 : table->shape[2], N = loom_view_row_count(&a->dout);
    const int32_t *tokens = a->tokens.data;
    begin_sum(c, table, 0, false);
    for (int64_t v = 0; v < V; v++)
        if (places->first[v] < 0) end_sum(c, table, v);
    for (int64_t first = 0; first < N; first++) {
        const int64_t v = tokens[first];
        if (places->first[v] != first) continue; /* this token was added together with an earlier one */
        begin_sum(c, table, v, a->accumulate_tokens);
        for (int64_t n = first; n >= 0; n = places->next[n]) add_row(c, &a->dout, n);
        end_sum(c, table, v);
    }
}

static void add_positions(const struct loom_embedding_backward *a, column *c) {
    const loom_view *table = &a->position_gradient;
    const int64_t N = loom_view_row_count(&a->dout), T = a->dout.shape[2];
    for (int64_t p = 0; p < table->shape[2]; p++) {
        const int64_t t = p - a->first_position;
        const bool given = t >= 0 && t < T;
        if (!given && a->accumulate_positions) continue;
        begin_sum(c, table, p, a->accumulate_positions);
        for (int64_t n = t; given && n < N; n += T) add_row(c, &a->dout, n);
        end_sum(c, table, p);
    }
}

void LOOM_DEFINITION(embedding_backward)(loom_context *ctx, const struct loom_embedding_backward *a) {
    const int64_t C = a->dout.shape[3], columns = (C + COLUMN - 1) / COLUMN;
    const token_places places = list_places(ctx, a);
#pragma omp parallel for schedule(static) num_threads(ctx->device->threads)
    for (int64_t i = 0; i < columns; i++) {
        column c = {.first = i * COLUMN, .width = C - i * COLUMN < COLUMN ? C - i * COLUMN : COLUMN};
        add_tokens(a, &places, &c);
        add_positions(a, &c);
    }
}
