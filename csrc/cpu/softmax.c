#include "cpu/definition.h"
#include "cpu/sums.h"

static int64_t scratch_of(const loom_view *view) {
    return stored_as_real(view) ? 0 : 3 * view->shape[3];
}

size_t LOOM_DEFINITION(softmax_forward_scratch)(const loom_device *device, const struct loom_softmax_forward *a) {
    return thread_scratch_bytes(device, scratch_of(&a->x));
}

size_t LOOM_DEFINITION(softmax_backward_scratch)(const loom_device *device, const struct loom_softmax_backward *a) {
    return thread_scratch_bytes(device, scratch_of(&a->out));
}

void LOOM_DEFINITION(softmax_forward)(loom_context *ctx, const struct loom_softmax_forward *a) {
    const int64_t N = loom_view_row_count(&a->x), C = a->x.shape[3];
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *scratch = thread_scratch(ctx, scratch_of(&a->x));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const real *x = row_read(&a->x, n, scratch);
            real *out = row_write(&a->out, n, scratch + C);
            const real reciprocal = 1 / row_exp(out, x, row_max(x, C, x[0]), (real)a->scale, C);
#pragma omp simd
            for (int64_t c = 0; c < C; c++) out[c] *= reciprocal;
            row_written(&a->out, n, out);
        }
    }
}

void LOOM_DEFINITION(softmax_backward)(loom_context *ctx, const struct loom_softmax_backward *a) {
    const int64_t N = loom_view_row_count(&a->out), C = a->out.shape[3];
    const real scale = (real)a->scale;
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *scratch = thread_scratch(ctx, scratch_of(&a->out));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const real *out = row_read(&a->out, n, scratch), *dout = row_read(&a->dout, n, scratch + C);
            real *dx = row_write(&a->dx, n, scratch + 2 * C);
            const real dot = row_dot(dout, out, C);
#pragma omp simd
            for (int64_t c = 0; c < C; c++) dx[c] = scale * out[c] * (dout[c] - dot);
            row_written(&a->dx, n, dx);
        }
    }
}
