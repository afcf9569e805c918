/* The thin header that every kernel file includes. With nvcc it is CUDA; with a C++ compiler and LOOM_EMULATED the same
 * source runs on a CPU, one fiber per CUDA thread (dev/emulation). What kernels may use:
 *
 *   launch(ctx, "name", kernel, grid, block, shared_bytes, arguments...)
 *   SHARED_ARRAY(type, name, count)     a shared array of the block; never plain __shared__
 *   DYNAMIC_SHARED(type, name)          the launch's shared_bytes, aligned to 16 bytes
 *   __syncthreads(), __syncwarp(), __shfl_sync() and its kin, __ballot_sync(), __reduce_*_sync() (integers)
 *   what numbers.h, reduce.h and ptx.h define
 *
 * A full-mask collective must be reached by all 32 lanes of a warp: threads may leave early only as whole warps. */
#ifndef LOOM_KERNEL_H
#define LOOM_KERNEL_H

#include "kernels/kernels.h"

#include <cuda_runtime.h>

#include <math.h>
#include <stdint.h>
#include <utility>

#ifdef LOOM_EMULATED
#    include "simt.h"
#else
#    define SHARED_ARRAY(T, name, count) __shared__ __align__(16) T name[count]
#    define DYNAMIC_SHARED(T, name)                                                                                    \
        extern __shared__ __align__(16) unsigned char dynamic_shared[];                                                \
        T *name = reinterpret_cast<T *>(dynamic_shared)
/* In the emulation, fails unless p is a multiple of `bytes`; a GPU does so by itself. */
__device__ __forceinline__ void expect_aligned(const void *, size_t) {
}
#endif

/* Puts a kernel into the context's stream. `name` is the op's and is what an error will name. Arguments are converted
 * to the kernel's parameter types. */
template <typename... P, typename... A>
static inline void launch(const loom_context *ctx, const char *name, void (*kernel)(P...), dim3 grid, dim3 block,
                          size_t shared_bytes, A &&...arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = loom_cuda_stream(ctx);
#ifdef LOOM_EMULATED
    simt::name_next_launch(name);
#endif
    cudaError_t error = cudaSuccess;
    if (shared_bytes > 32 * 1024) /* 48 KiB is what a block has without asking, static arrays included */
        error = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
    if (error == cudaSuccess)
        error = cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(arguments))...);
    if (error != cudaSuccess) loom_cuda_failed(ctx, name, error);
}

template <typename T> __host__ __device__ constexpr T ceil_div(T n, T d) {
    return (n + d - 1) / d;
}

/* Refuses at run time what `supports` has let through by mistake: a grid dimension that CUDA does not have. */
static inline unsigned grid_size(int64_t blocks) {
    return blocks > 0x7FFFFFFF ? 0xFFFFFFFFu : (unsigned)blocks;
}

#endif
