#include "cpu/definition.h"
#include "cpu/tile.h"

size_t LOOM_DEFINITION(embedding_scratch)(const loom_device *device, const struct loom_embedding_forward *a) {
    return stored_as_real(&a->out) ? 0 : thread_scratch_bytes(device, 3 * a->out.shape[3]);
}

void LOOM_DEFINITION(embedding_forward)(loom_exec *exec, const struct loom_embedding_forward *a) {
    const int64_t N = loom_view_row_count(&a->out), T = a->out.shape[2], C = a->out.shape[3];
#pragma omp parallel num_threads(exec->device->threads)
    {
        real *scratch = thread_scratch(exec, stored_as_real(&a->out) ? 0 : 3 * C);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const int32_t token = ((const int32_t *)a->tokens.data)[n];
            const real *word = row_read(&a->token_weight, token, scratch);
            const real *place = row_read(&a->position_weight, a->first_position + n % T, scratch + C);
            real *out = row_write(&a->out, n, scratch + 2 * C);
            for (int64_t c = 0; c < C; c++) out[c] = word[c] + place[c];
            row_written(&a->out, n, out);
        }
    }
}

/* Channels are split into fixed columns; within one, rows are added in order of n, so no two threads meet and the order
 * of additions never changes. A table stored in bf16 would round at every addition: gradients here are reals. */
enum { COLUMN = 64 };

static void add_rows(const struct loom_embedding_backward *a, int64_t first, int64_t width) {
    const int64_t N = loom_view_row_count(&a->dout), T = a->dout.shape[2];
    const int64_t V = a->token_gradient.shape[2], P = a->position_gradient.shape[2];
    real row[COLUMN];
    if (!a->accumulate_tokens)
        for (int64_t v = 0; v < V; v++)
            memset((real *)row_address(&a->token_gradient, v) + first, 0, (size_t)width * sizeof(real));
    if (!a->accumulate_positions)
        for (int64_t p = 0; p < P; p++)
            memset((real *)row_address(&a->position_gradient, p) + first, 0, (size_t)width * sizeof(real));
    for (int64_t n = 0; n < N; n++) {
        const char *stored = (const char *)row_address(&a->dout, n) + (size_t)first * loom_dtype_size(a->dout.dtype);
        const real *dout = reals_at(stored, a->dout.dtype, width, row);
        const int32_t token = ((const int32_t *)a->tokens.data)[n];
        real *word = (real *)row_address(&a->token_gradient, token) + first;
        real *place = (real *)row_address(&a->position_gradient, a->first_position + n % T) + first;
        for (int64_t c = 0; c < width; c++) {
            word[c] += dout[c];
            place[c] += dout[c];
        }
    }
}

void LOOM_DEFINITION(embedding_backward)(loom_exec *exec, const struct loom_embedding_backward *a) {
    const int64_t C = a->dout.shape[3], columns = (C + COLUMN - 1) / COLUMN;
#pragma omp parallel for schedule(static) num_threads(exec->device->threads)
    for (int64_t column = 0; column < columns; column++) {
        const int64_t first = column * COLUMN;
        add_rows(a, first, C - first < COLUMN ? C - first : COLUMN);
    }
}
