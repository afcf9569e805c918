/* Kernels with one mistake each, of those that CUDA programs suffer from. With CORRECT the mistake is not made: the
 * twin differs in that only. All are for blocks of 128 threads, and out[i] is of thread i. */
#ifndef LOOM_TEST_EMULATION_BUGS_CUH
#define LOOM_TEST_EMULATION_BUGS_CUH

#include "kernels/ptx.h"

namespace bugs {

constexpr int THREADS = 128;

/* Expects out[i] == (i + 33) % 128. */
template <bool CORRECT> __global__ void missing_barrier(float *out) {
    SHARED_ARRAY(float, values, THREADS);
    values[threadIdx.x] = (float)threadIdx.x;
    if (CORRECT) __syncthreads();
    out[threadIdx.x] = values[(threadIdx.x + 33) % THREADS];
}

/* The barrier behind the reading, before the array is written again. Expects out[i] == 3 * ((i + 33) % 128) + 3. */
template <bool CORRECT> __global__ void missing_second_barrier(float *out) {
    SHARED_ARRAY(float, values, THREADS);
    float sum = 0;
    for (int round = 0; round < 3; round++) {
        values[threadIdx.x] = (float)(threadIdx.x + round);
        __syncthreads();
        sum += values[(threadIdx.x + 33) % THREADS];
        if (CORRECT) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

/* Lanes of one warp need no barrier, but __syncwarp(). Expects out[i] == i ^ 1. */
template <bool CORRECT> __global__ void missing_syncwarp(float *out) {
    SHARED_ARRAY(float, values, THREADS);
    values[threadIdx.x] = (float)threadIdx.x;
    if (CORRECT) __syncwarp();
    out[threadIdx.x] = values[threadIdx.x ^ 1];
}

/* Expects out[i] == 1. */
template <bool CORRECT> __global__ void divergent_barrier(float *out) {
    if (CORRECT || threadIdx.x < 40)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}

/* Half of a warp waits for the block, the other half for the warp. Expects out[i] == i ^ 1. */
template <bool CORRECT> __global__ void barrier_against_shuffle(float *out) {
    if (!CORRECT && threadIdx.x % 32 < 16) __syncthreads();
    out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, (float)threadIdx.x, 1);
}

/* Expects out[i] == i ^ 1. */
template <bool CORRECT> __global__ void divergent_shuffle(float *out) {
    float value = (float)threadIdx.x;
    if (CORRECT || threadIdx.x % 32 < 16) value = __shfl_xor_sync(0xFFFFFFFFu, value, 1);
    out[threadIdx.x] = value;
}

/* Lanes of a full mask that have left. Expects out[i] == i ^ 1 where thread i has not left. */
template <bool CORRECT> __global__ void shuffle_after_return(float *out) {
    if (CORRECT ? threadIdx.x >= 96 : threadIdx.x >= 100) return;
    out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, (float)threadIdx.x, 1);
}

/* Expects out[i] == i ^ 1. */
template <bool CORRECT> __global__ void lane_outside_of_its_mask(float *out) {
    const unsigned mask = CORRECT || threadIdx.x % 32 < 16 ? 0xFFFFFFFFu : 0x0000FFFFu;
    out[threadIdx.x] = __shfl_xor_sync(mask, (float)threadIdx.x, 1);
}

/* Reading from a lane that does not take part. Expects out[i] == (i ^ 1), for lanes 0 to 15 of each warp. */
template <bool CORRECT> __global__ void shuffle_from_absent_lane(float *out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0x0000FFFFu, (float)threadIdx.x, CORRECT ? 1 : 17);
}

/* Expects out[i] == i. */
template <bool CORRECT> __global__ void shared_overrun(float *out) {
    SHARED_ARRAY(float, values, THREADS);
    values[threadIdx.x + (CORRECT ? 0 : 1)] = (float)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x + (CORRECT ? 0 : 1)];
}

template <bool CORRECT> __global__ void shared_underrun(float *out) {
    SHARED_ARRAY(float, values, THREADS);
    float *before = values - (CORRECT ? 0 : 1);
    before[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = before[threadIdx.x];
}

template <bool CORRECT> __global__ void dynamic_overrun(float *out) {
    DYNAMIC_SHARED(float, values);
    values[threadIdx.x + (CORRECT ? 0 : 1)] = (float)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x + (CORRECT ? 0 : 1)];
}

/* Expects out[i] == i. */
template <bool CORRECT> __global__ void uninitialised_shared(float *out) {
    SHARED_ARRAY(float, values, THREADS);
    if (CORRECT || threadIdx.x != 77) values[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

/* What the block before has left in shared memory is not there any more. Two blocks; expects out[i] == i. */
template <bool CORRECT> __global__ void left_from_another_block(float *out) {
    SHARED_ARRAY(float, values, THREADS);
    if (CORRECT || blockIdx.x == 0) values[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    if (blockIdx.x == 1) out[threadIdx.x] = values[threadIdx.x];
}

/* out[i] == in[i], by way of shared memory, 16 bytes to a thread of the first warp. */
template <bool CORRECT> __global__ void missing_copy_wait(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS);
    if (threadIdx.x < 32) {
        ptx::cp_async_16(values + 4 * threadIdx.x, in + 4 * threadIdx.x);
        ptx::cp_async_commit();
        if (CORRECT) ptx::cp_async_wait<0>();
    }
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
    if (!CORRECT) ptx::cp_async_wait<0>();
}

/* Waiting, but for a group too few. */
template <bool CORRECT> __global__ void waits_for_wrong_group(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS);
    if (threadIdx.x < 16) {
        for (int half = 0; half < 2; half++) {
            ptx::cp_async_16(values + 64 * half + 4 * threadIdx.x, in + 64 * half + 4 * threadIdx.x);
            ptx::cp_async_commit();
        }
        ptx::cp_async_wait<CORRECT ? 0 : 1>();
    }
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
    ptx::cp_async_wait<0>();
}

/* What was there before a copy is gone as soon as it begins, even if it is the same. */
template <bool CORRECT> __global__ void reads_what_is_being_copied_over(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS);
    values[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 32) ptx::cp_async_16(values + 4 * threadIdx.x, in + 4 * threadIdx.x);
    ptx::cp_async_commit();
    if (CORRECT) ptx::cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
    ptx::cp_async_wait<0>();
}

/* The reader's own copies are there; those of other threads are after a barrier only. */
template <bool CORRECT> __global__ void missing_barrier_after_wait(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS);
    if (threadIdx.x < 32) {
        ptx::cp_async_16(values + 4 * threadIdx.x, in + 4 * threadIdx.x);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
    }
    if (CORRECT) __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

template <bool CORRECT> __global__ void never_waits(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS);
    ptx::cp_async_16(values + threadIdx.x / 4 * 4, in + threadIdx.x / 4 * 4);
    ptx::cp_async_commit();
    if (CORRECT) ptx::cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool CORRECT> __global__ void misaligned_copy(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS + 4);
    if (threadIdx.x < 32) {
        ptx::cp_async_16(values + 4 * threadIdx.x + (CORRECT ? 0 : 1), in + 4 * threadIdx.x);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
    }
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

template <bool CORRECT> __global__ void copy_from_misaligned(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS);
    if (threadIdx.x < 31) {
        ptx::cp_async_16(values + 4 * threadIdx.x, in + 4 * threadIdx.x + (CORRECT ? 0 : 1));
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
    }
    __syncthreads();
    out[threadIdx.x] = threadIdx.x < 124 ? values[threadIdx.x] : in[threadIdx.x];
}

template <bool CORRECT> __global__ void copy_to_global(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS);
    if (threadIdx.x < 32) {
        ptx::cp_async_16((CORRECT ? values : out) + 4 * threadIdx.x, in + 4 * threadIdx.x);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
    }
    __syncthreads();
    if (CORRECT) out[threadIdx.x] = values[threadIdx.x];
}

/* For an in[] of 126 floats. */
template <bool CORRECT> __global__ void copy_beyond_the_end(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS);
    values[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    if (threadIdx.x == 31) {
        ptx::cp_async_16(values + 124, in + 124, CORRECT ? 8 : 16);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
    }
    out[threadIdx.x] = threadIdx.x < 124 ? values[threadIdx.x] : (float)threadIdx.x;
}

/* Loads rows of 8; expects nothing of the values. */
template <bool CORRECT> __global__ void misaligned_ldmatrix(float *out) {
    SHARED_ARRAY(bf16, rows, 32 * 12);
    for (int i = (int)threadIdx.x; i < 32 * 12; i += THREADS) rows[i] = from_float<bf16>(0.0f);
    __syncthreads();
    uint32_t r[4];
    ptx::ldmatrix_x4(r, rows + threadIdx.x % 32 * (CORRECT ? 8 : 12));
    out[threadIdx.x] = __uint_as_float(r[0]) + (float)threadIdx.x;
}

template <bool CORRECT> __global__ void ldmatrix_from_global(float *out, const float *in) {
    SHARED_ARRAY(float, values, THREADS);
    values[threadIdx.x] = 0;
    __syncthreads();
    uint32_t r[4];
    ptx::ldmatrix_x4(r, (CORRECT ? values : in) + threadIdx.x % 32 * 4);
    out[threadIdx.x] = __uint_as_float(r[0]) + (float)threadIdx.x;
}

/* Half of the lanes take another way, which mma (.aligned) forbids. */
template <bool CORRECT> __global__ void divergent_mma(float *out) {
    float d[4] = {};
    const uint32_t a[4] = {}, b[2] = {};
    if (CORRECT || threadIdx.x % 2)
        ptx::mma_16x8x16(d, a, b, d, bf16());
    else
        ptx::mma_16x8x16(d, a, b, d, bf16());
    out[threadIdx.x] = d[0] + (float)threadIdx.x;
}

template <bool CORRECT> __global__ void misaligned_pack(float *out, const float *in) {
    const pack<float, 4> values = load_pack<4>(in + threadIdx.x / 4 * 4 + (CORRECT || threadIdx.x >= 124 ? 0 : 1));
    out[threadIdx.x] = values.at[threadIdx.x % 4];
}

} // namespace bugs
#endif
