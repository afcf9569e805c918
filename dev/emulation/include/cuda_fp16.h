/* The emulation's own: IEEE 754's binary16, as far as kernels use it. */
#ifndef LOOM_EMULATION_CUDA_FP16_H
#define LOOM_EMULATION_CUDA_FP16_H

#include <cstdint>
#include <cstring>

struct alignas(2) __half {
    uint16_t bits;
};

static inline unsigned short __half_as_ushort(__half x) {
    return x.bits;
}
static inline __half __ushort_as_half(unsigned short bits) {
    return {bits};
}

/* 5 bits of exponent (bias 15) and 10 of mantissa go where a float has 8 (bias 127) and 23. Read as a float's, the
 * exponent is 112 too small, which a multiplication by 2^112 puts right, also for denormals; that of infinity and NaN
 * becomes 255. */
static inline float __half2float(__half x) {
    const uint32_t magnitude = (uint32_t)(x.bits & 0x7FFF) << 13;
    float value;
    uint32_t bits;
    memcpy(&value, &magnitude, 4);
    value *= 0x1p112f;
    memcpy(&bits, &value, 4);
    if (magnitude >= 0x7C00u << 13) bits = magnitude | 0x7F800000;
    bits |= (uint32_t)(x.bits & 0x8000) << 16;
    memcpy(&value, &bits, 4);
    return value;
}

/* To nearest, ties to even; from 65520 on infinity; a NaN becomes 0x7FFF, CUDA's only one. Below 2^-14 the result's
 * unit is 2^-24, which is that of floats near 0.5: adding 0.5 rounds there, by the processor's own rule. */
static inline __half __float2half_rn(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return {0x7FFF};
    if (bits >= 0x477FF000) return {(uint16_t)(sign | 0x7C00)};
    if (bits < 0x38800000) {
        float value;
        memcpy(&value, &bits, 4);
        value += 0.5f;
        memcpy(&bits, &value, 4);
        return {(uint16_t)(sign | (bits - 0x3F000000))};
    }
    bits += 0xFFF + (bits >> 13 & 1);
    return {(uint16_t)(sign | ((bits - (112u << 23)) >> 13))};
}
static inline __half __float2half(float x) {
    return __float2half_rn(x);
}

#endif
