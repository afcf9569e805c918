#include "cpu/definition.h"

/* Elements are taken in chunks, so that what is not stored as reals can be converted on the way. */
enum { CHUNK = 1024 };

/* Where the sum is one of the terms, an element is read before it is written. The sum in float of two bf16 or fp16, rounded,
 * is the exact sum rounded once, as float has 24 bits: twice those of fp16 and two more   (Figueroa, "When is double
 * rounding innocuous?", 1995). */
static void add_chunk(const struct loom_add *a, int64_t first, int64_t n) {
    real term[CHUNK], other[CHUNK], sum[CHUNK];
    const real *x = reals_at(element_address(&a->a, 0, first), a->a.dtype, n, term);
    const real *y = reals_at(element_address(&a->b, 0, first), a->b.dtype, n, other);
    real *out = stored_as_real(&a->out) ? element_address(&a->out, 0, first) : sum;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = x[i] + y[i];
    if (!stored_as_real(&a->out)) store_reals(element_address(&a->out, 0, first), a->out.dtype, out, n);
}

void LOOM_DEFINITION(add)(loom_exec *exec, const struct loom_add *a) {
    const int64_t count = a->out.shape[3];
#pragma omp parallel for schedule(static) num_threads(exec->device->threads)
    for (int64_t first = 0; first < count; first += CHUNK)
        add_chunk(a, first, count - first < CHUNK ? count - first : CHUNK);
}
