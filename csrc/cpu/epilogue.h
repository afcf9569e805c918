/* The operations after a matrix product: bias and activation of a part of a row, and the bias gradient. The definition
 * and the tuned product share them, so that both give the same values. */
#ifndef LOOM_CPU_EPILOGUE_H
#define LOOM_CPU_EPILOGUE_H

#include "cpu/gelu.h"
#include "cpu/relu.h"
#include "cpu/relu2.h"

static inline void activate_row(loom_activation activation, real *out, const real *x, int64_t n) {
    switch (activation) {
#define CASE(NAME, name)                                                                                               \
case LOOM_ACTIVATION_##NAME: name##_row(out, x, n); break;
        LOOM_ACTIVATION_LIST(CASE)
#undef CASE
    case LOOM_ACTIVATION_COUNT:
    case LOOM_ACTIVATION_NONE: LOOM_CHECK(!"an activation");
    }
}

/* Adds columns first .. first + width - 1 of a stored row to `sums`; values that must be converted are converted in
 * small pieces. */
static inline void add_stored(const loom_view *view, int64_t row, int64_t first, int64_t width, real *sums) {
    enum { PIECE = 64 };
    real converted[PIECE];
    for (int64_t start = 0; start < width; start += PIECE) {
        const int64_t n = width - start < PIECE ? width - start : PIECE;
        const real *values = reals_at(element_address(view, row, first + start), view->dtype, n, converted);
#pragma omp simd
        for (int64_t c = 0; c < n; c++) sums[start + c] += values[c];
    }
}

/* Columns first .. first + width - 1 of output row `row`, bias included: stores and activates. `sums` may be the stored
 * place itself. */
static inline void store_row(const struct loom_matmul_forward *a, int64_t row, int64_t first, int64_t width,
                             real *sums) {
    if (a->activation != LOOM_ACTIVATION_NONE) {
        void *before = element_address(&a->preactivation, row, first);
        if (before != sums) store_reals(before, a->preactivation.dtype, sums, width);
        if (!stored_as_real(&a->preactivation)) load_reals(sums, before, a->preactivation.dtype, width);
        if (stored_as_real(&a->out)) {
            activate_row(a->activation, element_address(&a->out, row, first), sums, width);
            return;
        }
        activate_row(a->activation, sums, sums, width);
    }
    void *out = element_address(&a->out, row, first);
    if (out != sums) store_reals(out, a->out.dtype, sums, width);
}

/* The same for sums that do not include the bias yet. */
static inline void finish_row(const struct loom_matmul_forward *a, int64_t row, int64_t first, int64_t width,
                              real *sums) {
    if (loom_view_given(&a->bias)) add_stored(&a->bias, 0, first, width, sums);
    store_row(a, row, first, width, sums);
}

/* Stores such a part of a row of the input's or the weight's gradient, or adds it to the stored one. */
static inline void finish_input_row(const struct loom_matmul_backward_input *a, int64_t row, int64_t first,
                                    int64_t width, real *sums) {
    if (a->accumulate) add_stored(&a->dx, row, first, width, sums);
    store_reals(element_address(&a->dx, row, first), a->dx.dtype, sums, width);
}

static inline void finish_weight_row(const struct loom_matmul_backward_weight *a, int64_t row, int64_t first,
                                     int64_t width, real *sums) {
    if (a->accumulate) add_stored(&a->dweight, row, first, width, sums);
    store_reals(element_address(&a->dweight, row, first), a->dweight.dtype, sums, width);
}

/* dbias = the sum of dout's rows, which are added in order within fixed columns. */
static inline void bias_gradient(const loom_context *ctx, const loom_view *dbias, const loom_view *dout,
                                 bool accumulate) {
    enum { COLUMN = 64 };
    const int64_t N = loom_view_row_count(dout), C = dout->shape[3], columns = (C + COLUMN - 1) / COLUMN;
#pragma omp parallel for schedule(static) num_threads(ctx->device->threads)
    for (int64_t column = 0; column < columns; column++) {
        const int64_t first = column * COLUMN, width = C - first < COLUMN ? C - first : COLUMN;
        real sum[COLUMN] = {0}, row[COLUMN];
        const size_t bytes = (size_t)width * stored_size(dout->dtype);
        for (int64_t n = 0; n < N; n++) {
            if (n + AHEAD < N) ask_for(element_address(dout, n + AHEAD, first), bytes);
            const real *values = reals_at(element_address(dout, n, first), dout->dtype, width, row);
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sum[c] += values[c];
        }
        void *out = element_address(dbias, 0, first);
        if (accumulate) {
            load_reals(row, out, dbias->dtype, width);
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sum[c] += row[c];
        }
        store_reals(out, dbias->dtype, sum, width);
    }
}

#endif
