/* The emulation's own: the part of CUDA C++ that kernels/ uses, beside the C API. Works with no CUDA toolkit. */
#ifndef LOOM_EMULATION_CUDA_RUNTIME_H
#define LOOM_EMULATION_CUDA_RUNTIME_H

#include <cuda_runtime_api.h>

#include "vector_types.h"

#ifdef __cplusplus

#    include "simt_launch.h"

#    include <type_traits>
#    include <utility>

#    define __global__
#    define __device__
#    define __host__
#    define __forceinline__  inline __attribute__((always_inline))
#    define __align__(bytes) __attribute__((aligned(bytes)))
#    define __grid_constant__

/* As CUDA's: the arguments are converted to the kernel's parameters and copied at the call. */
template <typename... P, typename... A>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...), A &&...arguments) {
    static_assert((std::is_trivially_copyable<P>::value && ...), "arguments are copied to the device as bytes");
    static_assert((sizeof(P) + ... + 0) <= 4096, "CUDA takes 4 KiB of arguments");
    auto call = std::make_shared<simt::kernel_call_of<P...>>(kernel, static_cast<P>(std::forward<A>(arguments))...);
    call->name = simt::take_launch_name();
    call->grid = config->gridDim;
    call->block = config->blockDim;
    call->shared_bytes = config->dynamicSmemBytes;
    const cudaError_t error = simt::check_launch(*call);
    return error == cudaSuccess ? emulation_enqueue(config->stream, std::move(call)) : error;
}

#endif
#endif
