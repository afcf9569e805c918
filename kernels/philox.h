/* Philox4x32-10 in kernels: the same numbers as csrc/base/random.c. */
#ifndef LOOM_KERNELS_PHILOX_H
#define LOOM_KERNELS_PHILOX_H

#include "csrc/base/random.h"
#include "kernels/kernel.h"

__device__ __forceinline__ loom_random4 philox_random(uint64_t seed, loom_random_purpose purpose, uint32_t step,
                                                      uint64_t index) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = step, c3 = (uint32_t)purpose;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

#endif
