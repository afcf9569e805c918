#include "cpu/definition.h"

size_t LOOM_DEFINITION(cast_scratch)(const loom_device *device, const struct loom_cast *a) {
    return thread_scratch_bytes(device, stored_as_real(&a->x) ? 0 : a->x.shape[3]);
}

void LOOM_DEFINITION(cast)(loom_context *ctx, const struct loom_cast *a) {
    const int64_t N = loom_view_row_count(&a->x), C = a->x.shape[3];
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *scratch = thread_scratch(ctx, stored_as_real(&a->x) ? 0 : C);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++)
            store_reals(row_address(&a->out, n), a->out.dtype, row_read(&a->x, n, scratch), C);
    }
}
