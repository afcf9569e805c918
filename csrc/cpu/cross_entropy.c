#include "cpu/definition.h"
#include "cpu/sums.h"

static int64_t scratch_of(const struct loom_cross_entropy *a) {
    return stored_as_real(&a->logits) && loom_view_given(&a->dlogits) ? 0 : 2 * a->logits.shape[3];
}

size_t LOOM_DEFINITION(cross_entropy_scratch)(const loom_device *device, const struct loom_cross_entropy *a) {
    return thread_scratch_bytes(device, scratch_of(a));
}

/* There are three passes over a row while it is in cache: the maximum; the exponentials and their sum; the scaling to
 * the gradient. For rows without a target the gradient is set to zero. */
void LOOM_DEFINITION(cross_entropy)(loom_context *ctx, const struct loom_cross_entropy *a) {
    const int64_t N = loom_view_row_count(&a->logits), padded = a->logits.shape[3], V = a->vocab_size;
    const bool gradient = loom_view_given(&a->dlogits);
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *scratch = thread_scratch(ctx, scratch_of(a));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const int32_t target = ((const int32_t *)a->targets.data)[n];
            real *loss = (real *)a->losses.data + n;
            if (target < 0) {
                *loss = 0;
                if (gradient)
                    memset(row_address(&a->dlogits, n), 0, (size_t)padded * loom_dtype_size(a->dlogits.dtype));
                continue;
            }
            const real *x = row_read(&a->logits, n, scratch);
            real *e = gradient ? row_write(&a->dlogits, n, scratch + padded) : scratch + padded;
            const real largest = row_max(x, V, x[0]);
            const real at_target = x[target] - largest; /* read before e may overwrite x */
            const real sum = row_exp(e, x, largest, 1, V);
            *loss = (real)loom_log((double)sum) - at_target;
            if (!gradient) continue;
            const real weight = (real)a->scalars->in.loss_gradient * (real)a->scalars->state.loss_scale;
            const real scale = weight / sum;
#pragma omp simd
            for (int64_t c = 0; c < V; c++) e[c] *= scale;
            e[target] -= weight;
            memset(e + V, 0, (size_t)(padded - V) * sizeof *e);
            row_written(&a->dlogits, n, e);
        }
    }
}
