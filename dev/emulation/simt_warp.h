/* Warp collectives. A lane that is not in the mask has no value to give: reading from it yields poison. Unlike CUDA the
 * emulation refuses lanes of the mask that have ended. */
#ifndef LOOM_SIMT_WARP_H
#define LOOM_SIMT_WARP_H

#include <type_traits>

namespace simt {

/* Every lane shows `value`; the calling one gets that of lane `from`. */
template <typename T> inline T shuffle(uint32_t mask, T value, unsigned from, place here) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "what a shuffle can carry");
    constexpr int WORDS = sizeof(T) > 4 ? 2 : 1;
    uint32_t words[2] = {0, 0};
    memcpy(words, &value, sizeof(T));
    const exchange *shown = meet(mask, operation::SHUFFLE, words, WORDS, here);
    for (int i = 0; i < WORDS; i++)
        words[i] = shown->present >> from & 1 ? shown->words[i][position(from)] : 0xFFFFFFFFu;
    memcpy(static_cast<void *>(&value), words, sizeof(T));
    return value;
}

/* f over the values of all lanes of the mask, in the order of lanes. */
template <typename T, typename F> inline T reduce(uint32_t mask, T value, F f, place here) {
    uint32_t word;
    memcpy(&word, &value, 4);
    const exchange *shown = meet(mask, operation::REDUCE, &word, 1, here);
    T result = 0;
    bool first = true;
    for (unsigned l = 0; l < 32; l++) {
        if (!(shown->present >> l & 1)) continue;
        T other;
        memcpy(&other, &shown->words[0][position(l)], 4);
        result = first ? other : f(result, other);
        first = false;
    }
    return result;
}

template <typename T> using word = std::enable_if_t<std::is_integral<T>::value && sizeof(T) == 4, T>;

} // namespace simt

/* --------------------------------------------------------------------------------------------------------- shuffles */

template <typename T> inline T __shfl_sync(unsigned mask, T value, int from, int width = 32, SIMT_HERE) {
    const unsigned within = (unsigned)width - 1;
    return simt::shuffle(mask, value, (simt::lane() & ~within) | ((unsigned)from & within), here);
}
template <typename T> inline T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32, SIMT_HERE) {
    const unsigned l = simt::lane(), from = l ^ (unsigned)distance, last = l | ((unsigned)width - 1);
    return simt::shuffle(mask, value, from <= last ? from : l, here);
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, SIMT_HERE) {
    const unsigned l = simt::lane(), last = l | ((unsigned)width - 1);
    return simt::shuffle(mask, value, l + distance <= last ? l + distance : l, here);
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, SIMT_HERE) {
    const unsigned l = simt::lane(), first = l & ~((unsigned)width - 1);
    return simt::shuffle(mask, value, l >= first + distance ? l - distance : l, here);
}

/* ----------------------------------------------------------------------------------------------- votes and the like */

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
    const uint32_t word = predicate != 0;
    const simt::exchange *shown = simt::meet(mask, simt::operation::VOTE, &word, 1, here);
    unsigned votes = 0;
    for (unsigned l = 0; l < 32; l++) votes |= (shown->words[0][simt::position(l)] & 1) << l;
    return votes & shown->present;
}
inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
    return __ballot_sync(mask, predicate, here) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
    return __ballot_sync(mask, !predicate, here) == 0;
}

/* The lanes of the mask that have the same value. */
template <typename T> inline unsigned __match_any_sync(unsigned mask, T value, SIMT_HERE) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what a match can carry");
    uint32_t words[2] = {0, 0};
    memcpy(words, &value, sizeof(T));
    const simt::exchange *shown = simt::meet(mask, simt::operation::MATCH, words, 2, here);
    unsigned same = 0;
    for (unsigned l = 0; l < 32; l++)
        if (shown->words[0][simt::position(l)] == words[0] && shown->words[1][simt::position(l)] == words[1])
            same |= 1u << l;
    return same & shown->present;
}

template <typename T> inline simt::word<T> __reduce_add_sync(unsigned mask, T value, SIMT_HERE) {
    return simt::reduce(
        mask, value, [](T a, T b) { return (T)((unsigned)a + (unsigned)b); }, here);
}
template <typename T> inline simt::word<T> __reduce_max_sync(unsigned mask, T value, SIMT_HERE) {
    return simt::reduce(
        mask, value, [](T a, T b) { return a > b ? a : b; }, here);
}
template <typename T> inline simt::word<T> __reduce_min_sync(unsigned mask, T value, SIMT_HERE) {
    return simt::reduce(
        mask, value, [](T a, T b) { return a < b ? a : b; }, here);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, SIMT_HERE) {
    return simt::reduce(
        mask, value, [](unsigned a, unsigned b) { return a & b; }, here);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, SIMT_HERE) {
    return simt::reduce(
        mask, value, [](unsigned a, unsigned b) { return a | b; }, here);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, SIMT_HERE) {
    return simt::reduce(
        mask, value, [](unsigned a, unsigned b) { return a ^ b; }, here);
}

#endif
