/* The emulation's version of kernels/ptx.h, which says what each function does. test/test_ptx.cpp holds the layouts of
 * the fragments against the tables of the PTX ISA. */
#ifndef LOOM_SIMT_PTX_H
#define LOOM_SIMT_PTX_H

#include "simt.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace ptx {

/* mma.cpp: what the last lane to come does for all. They leave each lane's d in words 0 to 3. */
const char *multiply_bf16(simt::exchange *shown);
const char *multiply_fp16(simt::exchange *shown);

/* The address of lane l's row is in words 0 and 1; leaves each lane's values in words 0 to `matrices` - 1. */
const char *load_2_matrices(simt::exchange *shown);
const char *load_4_matrices(simt::exchange *shown);
const char *load_2_matrices_transposed(simt::exchange *shown);
const char *load_4_matrices_transposed(simt::exchange *shown);

inline void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                     const char *(*last)(simt::exchange *), simt::place here) {
    uint32_t words[10] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    memcpy(words + 6, c, sizeof c);
    const simt::exchange *shown = simt::meet(0xFFFFFFFFu, simt::operation::MMA, words, 10, here, last);
    const unsigned at = simt::position(simt::lane());
    for (int i = 0; i < 4; i++) d[i] = simt::bits<float>(shown->words[i][at]);
}

template <int MATRICES>
inline void load(uint32_t (&r)[MATRICES], const void *row, const char *(*last)(simt::exchange *), simt::place here) {
    const uint64_t address = (uint64_t)(uintptr_t)row;
    const uint32_t words[2] = {(uint32_t)address, (uint32_t)(address >> 32)};
    const simt::exchange *shown = simt::meet(0xFFFFFFFFu, simt::operation::LDMATRIX, words, 2, here, last);
    const unsigned at = simt::position(simt::lane());
    for (int i = 0; i < MATRICES; i++) r[i] = shown->words[i][at];
}

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                        __nv_bfloat16, SIMT_HERE) {
    multiply(d, a, b, c, multiply_bf16, here);
}
inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4], __half,
                        SIMT_HERE) {
    multiply(d, a, b, c, multiply_fp16, here);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void *row, SIMT_HERE) {
    load(r, row, load_4_matrices, here);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, SIMT_HERE) {
    load(r, row, load_4_matrices_transposed, here);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void *row, SIMT_HERE) {
    load(r, row, load_2_matrices, here);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row, SIMT_HERE) {
    load(r, row, load_2_matrices_transposed, here);
}

inline void cp_async_16(void *shared, const void *from, int bytes = 16, SIMT_HERE) {
    simt::copy_async(shared, from, bytes, here);
}
inline void cp_async_commit() {
    simt::commit_copies();
}
template <int N> inline void cp_async_wait() {
    simt::wait_for_copies(N);
}

/* ftz: a denormal argument counts as zero, a denormal result becomes zero. */
inline float exp2_approximate(float x) {
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

inline uint32_t pair(float low, float high, __nv_bfloat16) {
    return (uint32_t)__float2bfloat16_rn(high).bits << 16 | __float2bfloat16_rn(low).bits;
}
inline uint32_t pair(float low, float high, __half) {
    return (uint32_t)__float2half_rn(high).bits << 16 | __float2half_rn(low).bits;
}

} // namespace ptx
#endif
