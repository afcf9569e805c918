#include "cpu/relu.h"
#include "cpu/definition.h"

static int64_t scratch_of(const loom_view *view) {
    return stored_as_real(view) ? 0 : 2 * view->shape[3];
}

size_t LOOM_DEFINITION(relu_forward_scratch)(const loom_device *device, const struct loom_relu_forward *a) {
    return thread_scratch_bytes(device, scratch_of(&a->x));
}

size_t LOOM_DEFINITION(relu_backward_scratch)(const loom_device *device, const struct loom_relu_backward *a) {
    return thread_scratch_bytes(device, scratch_of(&a->x));
}

void LOOM_DEFINITION(relu_forward)(loom_context *ctx, const struct loom_relu_forward *a) {
    const int64_t N = loom_view_row_count(&a->x), C = a->x.shape[3];
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *scratch = thread_scratch(ctx, scratch_of(&a->x));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            real *out = row_write(&a->out, n, scratch);
            relu_row(out, row_read(&a->x, n, scratch), C);
            row_written(&a->out, n, out);
        }
    }
}

void LOOM_DEFINITION(relu_backward)(loom_context *ctx, const struct loom_relu_backward *a) {
    const int64_t N = loom_view_row_count(&a->x), C = a->x.shape[3];
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *scratch = thread_scratch(ctx, scratch_of(&a->x));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const real *x = row_read(&a->x, n, scratch), *dout = row_read(&a->dout, n, scratch + C);
            real *dx = row_write(&a->dx, n, scratch + C);
#pragma omp simd
            for (int64_t c = 0; c < C; c++) dx[c] = x[c] > 0 ? dout[c] : 0;
            row_written(&a->dx, n, dx);
        }
    }
}
