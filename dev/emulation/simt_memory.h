/* Loads and stores with a cache hint, which is ignored, and atomic operations. Those on floating-point numbers are left
 * out: their sums depend on the order of threads, and results must not. */
#ifndef LOOM_SIMT_MEMORY_H
#define LOOM_SIMT_MEMORY_H

#include <type_traits>

template <typename T> inline T __ldg(const T *p) {
    return *p;
}
template <typename T> inline T __ldca(const T *p) {
    return *p;
}
template <typename T> inline T __ldcg(const T *p) {
    return *p;
}
template <typename T> inline T __ldcs(const T *p) {
    return *p;
}
template <typename T> inline void __stwb(T *p, std::common_type_t<T> value) {
    *p = value;
}
template <typename T> inline void __stcg(T *p, std::common_type_t<T> value) {
    *p = value;
}
template <typename T> inline void __stcs(T *p, std::common_type_t<T> value) {
    *p = value;
}

namespace simt {
template <typename T> using integer = std::enable_if_t<std::is_integral<T>::value && sizeof(T) >= 4, T>;

/* Replaces *p by update(*p) at once; returns what was there. */
template <typename T, typename F> inline T exchange_with(T *p, F update) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, (T)update(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
} // namespace simt

template <typename T> inline simt::integer<T> atomicAdd(T *p, std::common_type_t<T> value) {
    return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}
template <typename T> inline simt::integer<T> atomicSub(T *p, std::common_type_t<T> value) {
    return __atomic_fetch_sub(p, value, __ATOMIC_RELAXED);
}
template <typename T> inline simt::integer<T> atomicAnd(T *p, std::common_type_t<T> value) {
    return __atomic_fetch_and(p, value, __ATOMIC_RELAXED);
}
template <typename T> inline simt::integer<T> atomicOr(T *p, std::common_type_t<T> value) {
    return __atomic_fetch_or(p, value, __ATOMIC_RELAXED);
}
template <typename T> inline simt::integer<T> atomicXor(T *p, std::common_type_t<T> value) {
    return __atomic_fetch_xor(p, value, __ATOMIC_RELAXED);
}
template <typename T> inline simt::integer<T> atomicExch(T *p, std::common_type_t<T> value) {
    return __atomic_exchange_n(p, value, __ATOMIC_RELAXED);
}
template <typename T>
inline simt::integer<T> atomicCAS(T *p, std::common_type_t<T> expected, std::common_type_t<T> value) {
    __atomic_compare_exchange_n(p, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <typename T> inline simt::integer<T> atomicMax(T *p, std::common_type_t<T> value) {
    return simt::exchange_with(p, [=](T old) { return old > value ? old : value; });
}
template <typename T> inline simt::integer<T> atomicMin(T *p, std::common_type_t<T> value) {
    return simt::exchange_with(p, [=](T old) { return old < value ? old : value; });
}
/* Counts from 0 to `limit`, and then from 0 again. */
inline unsigned atomicInc(unsigned *p, unsigned limit) {
    return simt::exchange_with(p, [=](unsigned old) { return old >= limit ? 0 : old + 1; });
}

#endif
