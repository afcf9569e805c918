/* CUDA's built-in functions that C++ has no names for. Accurate ones are as accurate here; approximate ones (__expf and
 * kin) take the same steps as on a GPU, whose table look-ups err by some units in the last place more. */
#ifndef LOOM_SIMT_MATH_H
#define LOOM_SIMT_MATH_H

#include <type_traits>

/* As CUDA's: of any two arithmetic types, in their common type; of floating-point numbers the one that is not NaN. */
template <typename A, typename B> inline std::common_type_t<A, B> max(A a, B b) {
    typedef std::common_type_t<A, B> T;
    if constexpr (std::is_floating_point<T>::value)
        return std::fmax((T)a, (T)b);
    else
        return (T)a < (T)b ? (T)b : (T)a;
}
template <typename A, typename B> inline std::common_type_t<A, B> min(A a, B b) {
    typedef std::common_type_t<A, B> T;
    if constexpr (std::is_floating_point<T>::value)
        return std::fmin((T)a, (T)b);
    else
        return (T)b < (T)a ? (T)b : (T)a;
}

/* ------------------------------------------------------------------------------------------------------------- bits */

namespace simt {
template <typename To, typename From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
} // namespace simt

inline float __uint_as_float(unsigned x) {
    return simt::bits<float>(x);
}
inline unsigned __float_as_uint(float x) {
    return simt::bits<unsigned>(x);
}
inline float __int_as_float(int x) {
    return simt::bits<float>(x);
}
inline int __float_as_int(float x) {
    return simt::bits<int>(x);
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline int __clzll(long long x) {
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)a * b >> 32);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((uint64_t)high << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}

/* ------------------------------------------------------------------------------------------------------- arithmetic */

inline float __fmul_rn(float a, float b) {
    volatile float product = a * b; /* never part of a fused multiply-add: that is what it is called for */
    return product;
}
inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline float rsqrtf(float x) {
    return 1.0f / std::sqrt(x);
}
inline float __expf(float x) {
    return exp2f(x * 1.44269504f);
}
inline float __log2f(float x) {
    return log2f(x);
}
inline float __logf(float x) {
    return log2f(x) * 0.693147181f;
}
/* Zero where the divisor's reciprocal is denormal. */
inline float __fdividef(float a, float b) {
    const float size = std::fabs(b);
    if (size > 0x1p126f && size < INFINITY) return std::isinf(a) ? NAN : 0.0f;
    return a / b;
}

#endif
