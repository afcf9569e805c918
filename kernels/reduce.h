/* Sums and maxima over a warp or a block, always in the same order. */
#ifndef LOOM_KERNELS_REDUCE_H
#define LOOM_KERNELS_REDUCE_H

#include "kernels/kernel.h"

/* Over all 32 lanes; every lane gets the result. */
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, distance));
    return value;
}

/* Over a block of THREADS threads; every thread gets the result. May be called again at once. */
template <int THREADS> __device__ __forceinline__ float block_sum(float value) {
    SHARED_ARRAY(float, partial, THREADS / 32);
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) sum += partial[i];
    __syncthreads();
    return sum;
}

template <int THREADS> __device__ __forceinline__ float block_max(float value) {
    SHARED_ARRAY(float, partial, THREADS / 32);
    value = warp_max(value);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    float largest = partial[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++) largest = fmaxf(largest, partial[i]);
    __syncthreads();
    return largest;
}

#endif
