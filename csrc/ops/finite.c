#include "ops/finite.h"

#include "base/check.h"

#include <string.h>

/* Infinities and NaNs have all exponent bits set. The loop over a block has no early exit, so that it vectorises. */
#define BLOCK_IS_FINITE(type, exponent)                                                                                \
    static bool block_of_##type(const char *data, int64_t n) {                                                         \
        const type mask = exponent;                                                                                    \
        type found = 0;                                                                                                \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            type bits;                                                                                                 \
            memcpy(&bits, data + i * (int64_t)sizeof bits, sizeof bits);                                               \
            found |= (type)((bits & mask) == mask);                                                                    \
        }                                                                                                              \
        return !found;                                                                                                 \
    }

typedef uint16_t bf16_bits, fp16_bits;
typedef uint32_t fp32_bits;
typedef uint64_t fp64_bits;
BLOCK_IS_FINITE(bf16_bits, 0x7F80)
BLOCK_IS_FINITE(fp16_bits, 0x7C00)
BLOCK_IS_FINITE(fp32_bits, 0x7F800000u)
BLOCK_IS_FINITE(fp64_bits, UINT64_C(0x7FF0000000000000))

static bool block_is_finite(const char *data, int64_t n, loom_dtype dtype) {
    switch (dtype) {
    case LOOM_F32: return block_of_fp32_bits(data, n);
    case LOOM_BF16: return block_of_bf16_bits(data, n);
    case LOOM_F16: return block_of_fp16_bits(data, n);
    case LOOM_F64: return block_of_fp64_bits(data, n);
    default: LOOM_CHECK(!"a floating-point type"); return false;
    }
}

int64_t loom_first_not_finite(const void *data, int64_t n, loom_dtype dtype) {
    enum { BLOCK = 4096 };
    const char *bytes = data;
    const int64_t size = (int64_t)loom_dtype_size(dtype);
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t end = n - i < BLOCK ? n : i + BLOCK;
        if (block_is_finite(bytes + i * size, end - i, dtype)) continue;
        while (block_is_finite(bytes + i * size, 1, dtype)) i++;
        return i;
    }
    return n;
}

bool loom_all_finite(const void *data, int64_t n, loom_dtype dtype) {
    return loom_first_not_finite(data, n, dtype) == n;
}
