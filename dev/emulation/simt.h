/* CUDA on a CPU, as a kernel sees it: what kernels/kernel.h includes where nvcc does not compile. Each CUDA thread is a
 * fiber; the threads of a block run one after the other on one CPU thread and change over only where they wait for each
 * other: at barriers and warp collectives. What is undefined in CUDA either fails with the kernel's name, thread, file
 * and line, or yields poison (NaN). block.cpp has the scheduler, grid.cpp the blocks. */
#ifndef LOOM_SIMT_H
#define LOOM_SIMT_H

#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __launch_bounds__(...)
#define __constant__ static
#pragma GCC poison __shared__ /* SHARED_ARRAY: a plain static would keep the last block's values */

extern __thread uint3 threadIdx, blockIdx; /* set at each change of thread */
extern __thread dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt {

/* Where a kernel calls; as a default argument `HERE` it is the caller's line. */
struct place {
    const char *file;
    int line;
};
#define SIMT_HERE simt::place here = {__builtin_FILE(), __builtin_LINE()}

/* ---------------------------------------------------------------------------------------------------- shared memory */

struct array_site {
    const char *name;
    size_t bytes;
    place at;
};

void *shared_array(const array_site *site);
void *dynamic_shared();

/* ---------------------------------------------------------------------------------------------------------- waiting */

enum class operation : unsigned char {
    NONE,
    BARRIER,
    BARRIER_COUNT,
    BARRIER_AND,
    BARRIER_OR,
    SYNCWARP,
    SHUFFLE,
    VOTE,
    REDUCE,
    MATCH,
    LDMATRIX,
    MMA
};

/* Waits for all threads of the block that have not ended; returns, for the last three, the count, `and` or `or` of the
 * predicates. */
int barrier(operation op, int predicate, place here);

/* What the lanes of a warp show each other: words[i][position(lane)]. Lanes lie as an mma's fragments want them: those
 * of one column of a fragment, whose lanes are 4 apart, beside each other. */
constexpr int EXCHANGE_WORDS = 10;
struct alignas(64) exchange {
    uint32_t words[EXCHANGE_WORDS][32];
    uint32_t present; /* the lanes that take part */
};
constexpr unsigned position(unsigned lane) {
    return lane % 4 * 8 + lane / 4;
}

/* A warp collective: leaves `count` words, waits until all lanes of `mask` have come to the same operation at the same
 * line, and returns what they left. `last`, if any, is run by the last to come before the others go on, and may write
 * results over the words; it returns what is wrong, or null. The exchange may be read until the lane's next
 * collective. */
exchange *meet(uint32_t mask, operation op, const uint32_t *words, int count, place here,
               const char *(*last)(exchange *) = nullptr);

/* The calling thread's lane. */
unsigned lane();

/* --------------------------------------------------------------------------------------------------------- cp.async */

void copy_async(void *shared, const void *from, int bytes, place here);
void commit_copies();
void wait_for_copies(int groups);

/* ---------------------------------------------------------------------------------------------------------- failing */

/* Ends the kernel: the launch has failed, with this message. */
[[noreturn]] void fail(const char *message, place here);

/* Whether all `bytes` at p are the block's shared memory. */
bool is_shared(const void *p, size_t bytes);

} // namespace simt

#define SHARED_ARRAY(T, name, count)                                                                                   \
    T(&name)                                                                                                           \
    [count] = *static_cast<T(*)[count]>([] {                                                                           \
        static const simt::array_site site = {#name, sizeof(T[count]), {__FILE__, __LINE__}};                          \
        return simt::shared_array(&site);                                                                              \
    }())
#define DYNAMIC_SHARED(T, name) T *name = static_cast<T *>(simt::dynamic_shared())

/* An access of `bytes` at once must be aligned to them. */
inline void expect_aligned(const void *p, size_t bytes, SIMT_HERE) {
    if ((uintptr_t)p % bytes != 0) simt::fail("misaligned access", here);
}

inline void __syncthreads(SIMT_HERE) {
    simt::barrier(simt::operation::BARRIER, 0, here);
}
inline int __syncthreads_count(int predicate, SIMT_HERE) {
    return simt::barrier(simt::operation::BARRIER_COUNT, predicate, here);
}
inline int __syncthreads_and(int predicate, SIMT_HERE) {
    return simt::barrier(simt::operation::BARRIER_AND, predicate, here);
}
inline int __syncthreads_or(int predicate, SIMT_HERE) {
    return simt::barrier(simt::operation::BARRIER_OR, predicate, here);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, SIMT_HERE) {
    simt::meet(mask, simt::operation::SYNCWARP, nullptr, 0, here);
}
inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_block() {
}
[[noreturn]] inline void __trap(SIMT_HERE) {
    simt::fail("__trap()", here);
}

#include "simt_math.h"
#include "simt_memory.h"
#include "simt_warp.h"

#endif
