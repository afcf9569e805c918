#include "kernels/elementwise.h"
#include "kernels/philox.h"

/* A thread's elements: as many as share a random counter. */
constexpr int ELEMENTS = 8;

/* What a step multiplies with, the same for all elements. */
struct factors {
    float beta1, beta2, epsilon, gradient;
    float decayed;         /* what weight decay keeps of a parameter */
    float step;            /* the learning rate by the first moment's correction */
    float root_correction; /* sqrt of the second's */
};

__device__ __forceinline__ factors factors_of(const loom_scalars *scalars) {
    const loom_scalars_in *in = &scalars->in;
    const loom_scalars_out *out = &scalars->out;
    return {in->beta1,
            in->beta2,
            in->epsilon,
            out->gradient_factor,
            fmaf(-in->learning_rate, in->weight_decay, 1.0f),
            in->learning_rate / out->bias_correction1,
            sqrtf(out->bias_correction2)};
}

/* Of a thread's elements, from `i` on, those to which weight decay applies: bit j for the j-th. */
__device__ __forceinline__ unsigned decayed_of(const loom_ranges &decayed, int64_t i) {
    unsigned bits = 0;
    for (int k = 0; k < decayed.n && decayed.at[k].first < i + ELEMENTS; k++) {
        const int64_t first = decayed.at[k].first - i, last = decayed.at[k].last - i;
        if (last > 0) bits |= (1u << (last < ELEMENTS ? last : ELEMENTS)) - (1u << (first > 0 ? first : 0));
    }
    return bits;
}

/* Every fused multiply-add is written out, so that all variants of the kernel round alike. */
__device__ __forceinline__ void update(float &p, float &m, float &v, float gradient, const factors &f, bool decays) {
    const float g = __fmul_rn(gradient, f.gradient);
    m = fmaf(f.beta1, m, __fmul_rn(1 - f.beta1, g));
    v = fmaf(f.beta2, v, __fmul_rn(__fmul_rn(1 - f.beta2, g), g));
    p = fmaf(-f.step, m / (sqrtf(v) / f.root_correction + f.epsilon), __fmul_rn(decays ? f.decayed : 1.0f, p));
}

/* The half-words of eight elements in a row, from any place on: those of one random counter, or where the first is not
 * the first of its counter's, the end of one and the beginning of the next. */
__device__ __forceinline__ void random_halves(uint32_t (&half)[ELEMENTS], uint64_t seed, loom_random_purpose purpose,
                                              uint32_t updates, uint64_t place) {
    uint32_t word[8];
    const loom_random4 random = philox_random(seed, purpose, updates, place / 8);
#pragma unroll
    for (int i = 0; i < 8; i++) word[i] = i < 4 ? random.word[i] : 0;
    const int shift = (int)(place % 8); /* in half-words */
    if (shift) {
        const loom_random4 next = philox_random(seed, purpose, updates, place / 8 + 1);
#pragma unroll
        for (int i = 0; i < 4; i++) word[4 + i] = next.word[i];
#pragma unroll
        for (int i = 0; i < 6; i++) word[i] = shift & 4 ? word[i + 2] : word[i];
#pragma unroll
        for (int i = 0; i < 5; i++) word[i] = shift & 2 ? word[i + 1] : word[i];
#pragma unroll
        for (int i = 0; i < 4; i++) word[i] = shift & 1 ? __funnelshift_r(word[i], word[i + 1], 16) : word[i];
    }
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) half[i] = i % 2 ? word[i / 2] >> 16 : word[i / 2] & 0xFFFF;
}

/* What is not finite is not rounded: random bits would make infinity a NaN. Otherwise the result has no bits below
 * bf16's, and so is stored as it is. */
__device__ __forceinline__ float round_stochastically(float x, uint32_t half) {
    return isfinite(x) ? __uint_as_float((__float_as_uint(x) + half) & 0xFFFF0000u) : x;
}

/* What an element's random bits hang on beside their purpose. */
struct counter {
    uint64_t seed;
    uint32_t updates;
    uint64_t place; /* of the first of a thread's elements */
};

/* Stores what was updated: as it is in fp32, rounded stochastically in bf16. */
template <typename T>
__device__ __forceinline__ void store_updated(T *to, float (&values)[ELEMENTS], int n, bool packed, const counter &c,
                                              loom_random_purpose purpose) {
    if constexpr (sizeof(T) < sizeof(float)) {
        uint32_t half[ELEMENTS];
        random_halves(half, c.seed, purpose, c.updates, c.place);
#pragma unroll
        for (int j = 0; j < ELEMENTS; j++) values[j] = round_stochastically(values[j], half[j]);
    }
    store_floats(to, values, n, packed);
}

/* A copy of updated parameters, in what it is stored in: the same for all threads. A kernel for each dtype would be
 * three times as many, for a branch beside eight square roots. */
__device__ __forceinline__ void store_copy(void *copy, loom_dtype dtype, int64_t i, const float (&values)[ELEMENTS],
                                           int n, bool packed) {
    if (dtype == LOOM_BF16)
        store_floats(static_cast<bf16 *>(copy) + i, values, n, packed);
    else if (dtype == LOOM_F16)
        store_floats(static_cast<fp16 *>(copy) + i, values, n, packed);
    else
        store_floats(static_cast<float *>(copy) + i, values, n, packed);
}

/* P is what parameters are stored in: float, with a copy where one is given, or bf16; G what gradients and M what the
 * moments are stored in: float or bf16. A step reads parameter, gradient and both moments, and writes all but the
 * gradient, and the copy: 28 bytes an element in fp32; 2 less with a gradient of 16 bits, 4 less with such parameters,
 * 8 less with such moments, 2 more with a copy. What is decayed comes with the launch, in constant memory. A step to
 * skip costs a read of the scalars. */
template <typename P, typename G, typename M>
__global__ void __launch_bounds__(ELEMENTWISE_THREADS)
    adamw_kernel(P *parameter, void *copy, loom_dtype copy_dtype, const G *gradient, M *moment1, M *moment2,
                 const loom_scalars *scalars, loom_ranges decayed, uint64_t seed, int64_t first, elements e) {
    const int64_t i = first_column<ELEMENTS>();
    if (i >= e.columns || scalars->out.skip) return;
    const int n = column_count<ELEMENTS>(e, i);
    float p[ELEMENTS], g[ELEMENTS], m[ELEMENTS], v[ELEMENTS];
    load_floats(g, gradient + i, n, e.packed);
    load_floats(m, moment1 + i, n, e.packed);
    load_floats(v, moment2 + i, n, e.packed);
    load_floats(p, parameter + i, n, e.packed);
    const factors f = factors_of(scalars);
    const unsigned decays = decayed_of(decayed, i);
#pragma unroll
    for (int j = 0; j < ELEMENTS; j++) update(p[j], m[j], v[j], g[j], f, decays >> j & 1);
    const counter random = {seed, (uint32_t)scalars->state.updates, (uint64_t)(first + i)};
    store_updated(moment1 + i, m, n, e.packed, random, LOOM_RANDOM_ROUNDING_MOMENT1);
    store_updated(moment2 + i, v, n, e.packed, random, LOOM_RANDOM_ROUNDING_MOMENT2);
    store_updated(parameter + i, p, n, e.packed, random, LOOM_RANDOM_ROUNDING);
    if (copy) store_copy(copy, copy_dtype, i, p, n, e.packed);
}

void loom_cuda_adamw(loom_context *ctx, const struct loom_adamw *a) {
    const elements e = loom_view_given(&a->copy)
                           ? elements_of(&a->parameter, &a->gradient, &a->moment1, &a->moment2, &a->copy)
                           : elements_of(&a->parameter, &a->gradient, &a->moment1, &a->moment2);
    with_fp32_or_bf16(a->parameter.dtype, [&](auto parameter_tag) {
        with_fp32_or_bf16(a->gradient.dtype, [&](auto gradient_tag) {
            with_fp32_or_bf16(a->moment1.dtype, [&](auto moment_tag) {
                typedef typename decltype(parameter_tag)::type P;
                typedef typename decltype(gradient_tag)::type G;
                typedef typename decltype(moment_tag)::type M;
                launch(ctx, "adamw", adamw_kernel<P, G, M>, elementwise_grid<ELEMENTS>(e),
                       elementwise_block<ELEMENTS>(e), 0, a->parameter.data, a->copy.data, a->copy.dtype,
                       a->gradient.data, a->moment1.data, a->moment2.data, a->scalars, a->decayed, a->seed, a->first,
                       e);
            });
        });
    });
}
LOOM_CUDA_NO_WORKSPACE(adamw)
