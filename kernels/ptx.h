/* The PTX instructions that kernels use and CUDA C++ has no names for. The emulation has its own ptx.h with the same
 * functions, checked against the fragment layouts of the PTX ISA (section "Matrix multiply-accumulate operations using
 * mma instruction", and "ldmatrix"). */
#ifndef LOOM_KERNELS_PTX_H
#define LOOM_KERNELS_PTX_H

#include "kernels/numbers.h"

#ifdef LOOM_EMULATED
#    include "simt_ptx.h"
#else
namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* d (16,8) = a (16,16) b (16,8) + c, over a warp; a by rows, b by columns, two 16-bit values to a register. Lane l,
 * with g = l / 4 and t = l % 4, holds
 *   a[0..3]  rows g, g + 8, g, g + 8, columns 2t and 2t + 1 of the left half (0, 1) and of the right half (2, 3)
 *   b[0..1]  column g, rows 2t and 2t + 1 of the upper half (0) and of the lower half (1)
 *   c, d     row g columns 2t, 2t + 1 (0, 1), row g + 8 columns 2t, 2t + 1 (2, 3) */
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                            const float (&c)[4], bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
                 "{%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                            const float (&c)[4], fp16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
                 "{%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

/* Four 8 x 8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned), and
 * gets in r[i] of matrix i the values of row l / 4, columns 2 (l % 4) and the next. trans: of the transposed matrices.
 * */
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* Two of them; lanes 0 to 15 give addresses. */
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

/* Copies 16 bytes from global to shared memory, both aligned, in the background: they are there after a wait for their
 * group and, for other threads, a barrier. Of `from` only the first `bytes` (0 to 16) are read, the rest is zeros. */
__device__ __forceinline__ void cp_async_16(void *shared, const void *from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(shared_address(shared)), "l"(from), "r"(bytes)
                 : "memory");
}

/* Ends a group of the thread's copies. */
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most N of the thread's groups are under way. */
template <int N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* 2^x with a relative error of 2^-22; denormal results are zero. */
__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two floats rounded to 16 bits each, the first in the low half: a fragment register of mma. */
__device__ __forceinline__ uint32_t pair(float low, float high, bf16) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

__device__ __forceinline__ uint32_t pair(float low, float high, fp16) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

} // namespace ptx
#endif
#endif
