#include "cpu/definition.h"
#include "cpu/sums.h"

/* The scratch of a thread: rows in reals if the storage type differs: weight, bias, x (or sum), delta, out. */
static int64_t forward_scratch(const struct loom_layernorm_forward *a) {
    return stored_as_real(&a->x) ? 0 : 5 * a->x.shape[3];
}

size_t LOOM_DEFINITION(layernorm_forward_scratch)(const loom_device *device, const struct loom_layernorm_forward *a) {
    return thread_scratch_bytes(device, forward_scratch(a));
}

void LOOM_DEFINITION(layernorm_forward)(loom_context *ctx, const struct loom_layernorm_forward *a) {
    const int64_t N = loom_view_row_count(&a->x), C = a->x.shape[3];
    const bool residual = loom_view_given(&a->delta);
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *scratch = thread_scratch(ctx, forward_scratch(a));
        const real *weight = row_read(&a->weight, 0, scratch), *bias = row_read(&a->bias, 0, scratch + C);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const real *x = row_read(&a->x, n, scratch + 2 * C);
            if (residual) {
                const real *delta = row_read(&a->delta, n, scratch + 3 * C);
                real *sum = row_write(&a->sum, n, scratch + 4 * C);
#pragma omp simd
                for (int64_t c = 0; c < C; c++) sum[c] = x[c] + delta[c];
                row_written(&a->sum, n, sum);
                x = row_read(&a->sum, n, scratch + 2 * C); /* the sum as it was rounded for storage */
            }
            const real mean = row_sum(x, C) / (real)C, variance = row_square_sum(x, mean, C) / (real)C;
            const real rstd = 1 / real_sqrt(variance + (real)a->epsilon);
            ((real *)a->mean.data)[n] = mean;
            ((real *)a->rstd.data)[n] = rstd;
            if (!loom_view_given(&a->out)) continue;
            real *out = row_write(&a->out, n, scratch + 4 * C);
#pragma omp simd
            for (int64_t c = 0; c < C; c++) out[c] = (x[c] - mean) * rstd * weight[c] + bias[c];
            row_written(&a->out, n, out);
        }
    }
}

static int64_t backward_scratch(const struct loom_layernorm_backward *a) {
    return stored_as_real(&a->dout) ? 0 : 5 * a->dout.shape[3];
}

size_t LOOM_DEFINITION(layernorm_backward_scratch)(const loom_device *device, const struct loom_layernorm_backward *a) {
    return thread_scratch_bytes(device, backward_scratch(a));
}

static void input_gradient(loom_context *ctx, const struct loom_layernorm_backward *a) {
    const int64_t N = loom_view_row_count(&a->dout), C = a->dout.shape[3];
    const bool skipped = loom_view_given(&a->skip);
#pragma omp parallel num_threads(ctx->device->threads)
    {
        real *scratch = thread_scratch(ctx, backward_scratch(a));
        const real *weight = row_read(&a->weight, 0, scratch);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const real *x = row_read(&a->x, n, scratch + C), *dout = row_read(&a->dout, n, scratch + 2 * C);
            const real mean = ((const real *)a->mean.data)[n], rstd = ((const real *)a->rstd.data)[n];
            const real sum = row_dot(dout, weight, C) / (real)C;
            const real dot = row_normal_dot(dout, weight, x, mean, rstd, C) / (real)C;
            const real *skip = skipped ? row_read(&a->skip, n, scratch + 3 * C) : NULL;
            real *dx = row_write(&a->dx, n, scratch + 4 * C);
            if (skip)
#pragma omp simd
                for (int64_t c = 0; c < C; c++)
                    dx[c] = skip[c] + rstd * (dout[c] * weight[c] - sum - (x[c] - mean) * rstd * dot);
            else
#pragma omp simd
                for (int64_t c = 0; c < C; c++) dx[c] = rstd * (dout[c] * weight[c] - sum - (x[c] - mean) * rstd * dot);
            row_written(&a->dx, n, dx);
        }
    }
}

/* Channels are split into fixed columns, and within each the rows are added in order, so that the bits do not depend on
 * the number of threads. */
enum { COLUMN = 64 };

static void parameter_gradient(const struct loom_layernorm_backward *a, int64_t first, int64_t width) {
    const int64_t N = loom_view_row_count(&a->dout);
    const size_t size = loom_dtype_size(a->dout.dtype), parameter_size = loom_dtype_size(a->dweight.dtype);
    real dweight[COLUMN] = {0}, dbias[COLUMN] = {0}, x_row[COLUMN], dout_row[COLUMN];
    for (int64_t n = 0; n < N; n++) {
        const real *x = reals_at((const char *)row_address(&a->x, n) + (size_t)first * size, a->x.dtype, width, x_row);
        const real *dout = reals_at((const char *)row_address(&a->dout, n) + (size_t)first * size, a->dout.dtype, width,
                                    dout_row);
        const real mean = ((const real *)a->mean.data)[n], rstd = ((const real *)a->rstd.data)[n];
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            dweight[c] += dout[c] * ((x[c] - mean) * rstd);
            dbias[c] += dout[c];
        }
    }
    char *dweight_out = (char *)a->dweight.data + (size_t)first * parameter_size;
    char *dbias_out = (char *)a->dbias.data + (size_t)first * parameter_size;
    if (a->accumulate) {
        load_reals(x_row, dweight_out, a->dweight.dtype, width);
        load_reals(dout_row, dbias_out, a->dbias.dtype, width);
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            dweight[c] += x_row[c];
            dbias[c] += dout_row[c];
        }
    }
    store_reals(dweight_out, a->dweight.dtype, dweight, width);
    store_reals(dbias_out, a->dbias.dtype, dbias, width);
}

/* The parameters' gradient first: dx may take the place of skip, never of what is read here. */
void LOOM_DEFINITION(layernorm_backward)(loom_context *ctx, const struct loom_layernorm_backward *a) {
    const int64_t C = a->dout.shape[3], columns = (C + COLUMN - 1) / COLUMN;
#pragma omp parallel for schedule(static) num_threads(ctx->device->threads)
    for (int64_t column = 0; column < columns; column++) {
        const int64_t first = column * COLUMN;
        parameter_gradient(a, first, C - first < COLUMN ? C - first : COLUMN);
    }
    input_gradient(ctx, a);
}
