/* The emulation's own: bfloat16, the upper half of a float, as far as kernels use it. */
#ifndef LOOM_EMULATION_CUDA_BF16_H
#define LOOM_EMULATION_CUDA_BF16_H

#include <cstdint>
#include <cstring>

struct alignas(2) __nv_bfloat16 {
    uint16_t bits;
};

static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
    return x.bits;
}
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    return {bits};
}

static inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To nearest, ties to even: half a unit less one, and one if the last kept bit is set, carry into what is kept. A NaN
 * becomes 0x7FFF, CUDA's only one. */
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return {0x7FFF};
    return {(uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16(float x) {
    return __float2bfloat16_rn(x);
}

#endif
