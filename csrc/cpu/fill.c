#include "cpu/definition.h"

NO_SCRATCH(fill)

void LOOM_DEFINITION(fill)(loom_context *ctx, const struct loom_fill *a) {
    const int64_t N = loom_view_row_count(&a->out), C = a->out.shape[3];
    const real value = (real)a->value;
#pragma omp parallel for schedule(static) num_threads(ctx->device->threads)
    for (int64_t n = 0; n < N; n++) {
        char *row = row_address(&a->out, n);
        const size_t size = loom_dtype_size(a->out.dtype);
        for (int64_t c = 0; c < C; c++) store_reals(row + (size_t)c * size, a->out.dtype, &value, 1);
    }
}
