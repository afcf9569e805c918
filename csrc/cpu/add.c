#include "cpu/definition.h"

/* Elements in a chunk of work. */
enum { CHUNK = 4096 };

/* The output may be one of the inputs: each element is read before it is written. No other overlap is allowed. */
static void add_reals(real *out, const real *a, const real *b, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = a[i] + b[i];
}

/* The two 16-bit formats are converted, added and rounded in one loop, so that arithmetic overlaps with waiting for
 * memory. The float sum, rounded to 16 bits, equals the exact sum rounded once, because float has 24 bits: at least
 * twice those of fp16 (or bf16) and two more   (Figueroa, "When is double rounding innocuous?", 1995). */
static void add_bf16(uint16_t *out, const uint16_t *a, const uint16_t *b, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = float_to_bf16(bf16_to_float(a[i]) + bf16_to_float(b[i]));
}

static void add_fp16(uint16_t *out, const uint16_t *a, const uint16_t *b, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = float_to_fp16(fp16_to_float(a[i]) + fp16_to_float(b[i]));
}

static void add_chunk(const struct loom_add *v, int64_t first, int64_t n) {
    void *out = element_address(&v->out, 0, first);
    const void *a = element_address(&v->a, 0, first), *b = element_address(&v->b, 0, first);
    switch (v->out.dtype) {
    case LOOM_BF16: add_bf16(out, a, b, n); return;
    case LOOM_F16: add_fp16(out, a, b, n); return;
    default: add_reals(out, a, b, n);
    }
}

NO_SCRATCH(add)

void LOOM_DEFINITION(add)(loom_context *ctx, const struct loom_add *a) {
    const int64_t count = a->out.shape[3];
#pragma omp parallel for schedule(static) num_threads(ctx->device->threads)
    for (int64_t first = 0; first < count; first += CHUNK)
        add_chunk(a, first, count - first < CHUNK ? count - first : CHUNK);
}
