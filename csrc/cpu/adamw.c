#include "cpu/definition.h"
#include "base/random.h"

/* Elements are processed in chunks, so that those that are not stored as reals can be converted on the way. A chunk's
 * size is a multiple of the eight elements that share a random counter. */
enum { CHUNK = 1024 };

typedef struct factors {
    real beta1, beta2, epsilon, gradient;
    real kept[2];         /* the factor of the parameter: without weight decay, and with it */
    real step;            /* the learning rate divided by the first moment's bias correction */
    real root_correction; /* the square root of the second moment's bias correction */
} factors;

static void update(const factors *f, real keep, real *restrict p, real *restrict m, real *restrict v,
                   const real *restrict gradient, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const real g = gradient[i] * f->gradient;
        m[i] = f->beta1 * m[i] + (1 - f->beta1) * g;
        v[i] = f->beta2 * v[i] + (1 - f->beta2) * g * g;
        p[i] = keep * p[i] - f->step * m[i] / (real_sqrt(v[i]) / f->root_correction + f->epsilon);
    }
}

/* Whether weight decay applies to element i. *until is the first later element for which the answer differs, at most
 * `end`. */
static bool is_decayed(const loom_ranges *decayed, int64_t i, int64_t end, int64_t *until) {
    *until = end;
    for (int k = 0; k < decayed->n; k++) {
        const loom_element_range range = decayed->at[k];
        if (i >= range.last) continue;
        const bool inside = i >= range.first;
        const int64_t edge = inside ? range.last : range.first;
        if (edge < end) *until = edge;
        return inside;
    }
    return false;
}

/* Values that are not finite are not rounded: random bits would turn infinity into NaN. */
static inline uint16_t round_stochastically(float value, uint32_t random) {
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    const uint32_t rounded = (wide + random) >> 16, nearest = float_to_bf16(value);
    return (uint16_t)((wide & 0x7F800000u) == 0x7F800000u ? nearest : rounded);
}

static void store_stochastically(uint16_t *restrict to, const real *restrict from, int64_t n,
                                 const struct loom_adamw *a, int64_t first, loom_random_purpose purpose) {
    enum { COUNTERS = CHUNK / 8 + 1 };
    uint32_t word[4 * COUNTERS];
    uint16_t half[8 * COUNTERS];
    const uint64_t place = (uint64_t)(a->first + first);
    const int64_t before = (int64_t)(place % 8), counters = (before + n + 7) / 8;
    loom_random_words(word, counters, a->seed, purpose, (uint32_t)a->scalars->state.updates, place / 8);
#pragma omp simd
    for (int64_t i = 0; i < 4 * counters; i++) {
        half[2 * i] = (uint16_t)word[i];
        half[2 * i + 1] = (uint16_t)(word[i] >> 16);
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = round_stochastically((float)from[i], half[before + i]);
}

static void *element(const loom_view *view, int64_t i) {
    return (char *)view->data + (size_t)i * loom_dtype_size(view->dtype);
}

/* Returns a chunk of a tensor to update: the tensor's own memory if it is stored as reals, otherwise a converted copy
 * in `scratch`. updated() then rounds the copy and stores it. */
static real *to_update(const loom_view *view, int64_t first, int64_t n, real *scratch) {
    if (stored_as_real(view)) return element(view, first);
    load_reals(scratch, element(view, first), view->dtype, n);
    return scratch;
}

static void updated(const loom_view *view, int64_t first, int64_t n, const real *values, const struct loom_adamw *a,
                    loom_random_purpose purpose) {
    if (!stored_as_real(view)) store_stochastically(element(view, first), values, n, a, first, purpose);
}

static void update_chunk(const struct loom_adamw *a, const factors *f, int64_t first, int64_t n) {
    real gradient[CHUNK], parameter[CHUNK], moment1[CHUNK], moment2[CHUNK];
    real *p = to_update(&a->parameter, first, n, parameter);
    real *m = to_update(&a->moment1, first, n, moment1), *v = to_update(&a->moment2, first, n, moment2);
    const real *g = reals_at(element(&a->gradient, first), a->gradient.dtype, n, gradient);
    for (int64_t i = 0, until; i < n; i = until) {
        const bool decayed = is_decayed(&a->decayed, first + i, first + n, &until);
        until -= first;
        update(f, f->kept[decayed], p + i, m + i, v + i, g + i, until - i);
    }
    updated(&a->parameter, first, n, p, a, LOOM_RANDOM_ROUNDING);
    updated(&a->moment1, first, n, m, a, LOOM_RANDOM_ROUNDING_MOMENT1);
    updated(&a->moment2, first, n, v, a, LOOM_RANDOM_ROUNDING_MOMENT2);
    if (loom_view_given(&a->copy)) store_reals(element(&a->copy, first), a->copy.dtype, p, n);
}

NO_SCRATCH(adamw)

void LOOM_DEFINITION(adamw)(loom_context *ctx, const struct loom_adamw *a) {
    const loom_scalars_in *in = &a->scalars->in;
    const loom_scalars_out *out = &a->scalars->out;
    if (out->skip) return;
    const factors f = {.beta1 = in->beta1,
                       .beta2 = in->beta2,
                       .epsilon = in->epsilon,
                       .gradient = out->gradient_factor,
                       .kept = {1, 1 - (real)in->learning_rate * (real)in->weight_decay},
                       .step = (real)in->learning_rate / (real)out->bias_correction1,
                       .root_correction = real_sqrt((real)out->bias_correction2)};
    const int64_t count = a->parameter.shape[3];
#pragma omp parallel for schedule(static) num_threads(ctx->device->threads)
    for (int64_t first = 0; first < count; first += CHUNK)
        update_chunk(a, &f, first, count - first < CHUNK ? count - first : CHUNK);
}
