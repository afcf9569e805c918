#include "cpu/definition.h"
#include "cpu/sums.h"

/* A block is summed in chunks of 2048 elements: the rounding error grows with the sum of the chunk's size and the
 * number of chunks, not with their product. */
enum { CHUNK = 2048 };

static real sum_range(const loom_view *x, int64_t first, int64_t n, bool square) {
    real total = 0, converted[CHUNK];
    for (int64_t start = 0; start < n; start += CHUNK) {
        const int64_t count = n - start < CHUNK ? n - start : CHUNK;
        const char *stored = (const char *)x->data + (size_t)(first + start) * loom_dtype_size(x->dtype);
        const real *values = (const real *)stored;
        if (!stored_as_real(x)) load_reals(converted, stored, x->dtype, count), values = converted;
        total += square ? row_dot(values, values, count) : row_sum(values, count);
    }
    return total;
}

NO_SCRATCH(block_sum)

void LOOM_DEFINITION(block_sum)(loom_context *ctx, const struct loom_block_sum *a) {
    const int64_t n = a->x.shape[3], blocks = a->partials.shape[3];
#pragma omp parallel for schedule(static) num_threads(ctx->device->threads)
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t first = block * a->block, left = n - first;
        ((real *)a->partials.data)[block] = sum_range(&a->x, first, left < a->block ? left : a->block, a->square);
    }
}
