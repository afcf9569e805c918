/* The two 16-bit floating-point formats, as bits: bf16 (the upper half of fp32) and fp16 (IEEE 754 binary16). The
 * functions are in a header so that loops over them vectorise. */
#ifndef LOOM_BASE_HALF_H
#define LOOM_BASE_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------------- bf16 */

static inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline uint16_t float_to_bf16(float value) {
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    if ((wide & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(wide >> 16 | 0x40u);
    return (uint16_t)((wide + 0x7FFFu + (wide >> 16 & 1u)) >> 16);
}

/* ------------------------------------------------------------------------------------------------------------- fp16 */

static inline float fp16_to_float(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
    const float denormal = (float)magnitude * 0x1p-24f;
    uint32_t wide = (magnitude << 13) + ((magnitude < 0x7C00u ? 127u - 15u : 255u - 31u) << 23);
    if (magnitude < 0x400u) memcpy(&wide, &denormal, sizeof wide);
    wide |= sign;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Rounds to nearest, ties to even, denormals included. Values from 65520 on become infinity. NaN stays NaN. */
static inline uint16_t float_to_fp16(float value) {
    uint32_t wide, units;
    memcpy(&wide, &value, sizeof wide);
    const uint32_t sign = wide >> 16 & 0x8000u, magnitude = wide & 0x7FFFFFFFu;
    /* Below 2^-14, adding 0.5 rounds correctly: the last bit of a float near one half is worth 2^-24, as is the last
     * bit of fp16's denormals. */
    const float on_half = 0.5f + fabsf(value);
    memcpy(&units, &on_half, sizeof units);
    uint32_t narrow = (magnitude - (112u << 23) + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
    if (magnitude < 0x38800000u) narrow = units - 0x3F000000u;
    if (magnitude >= 0x477FF000u) narrow = 0x7C00u;
    if (magnitude > 0x7F800000u) narrow = 0x7E00u;
    return (uint16_t)(sign | narrow);
}

#endif
