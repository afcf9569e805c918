/* The types that tensors are stored in, and 16-byte accesses to them. Arithmetic is in float. */
#ifndef LOOM_KERNELS_NUMBERS_H
#define LOOM_KERNELS_NUMBERS_H

#include "kernels/kernel.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef __nv_bfloat16 bf16;
typedef __half fp16;

/* --------------------------------------------------------------------------------------------------------- conversion */

__device__ __forceinline__ float to_float(float x) {
    return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
    return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(fp16 x) {
    return __half2float(x);
}

/* Rounded to nearest, ties to even. */
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ fp16 from_float<fp16>(float x) {
    return __float2half_rn(x);
}

/* -------------------------------------------------------------------------------------------------------------- packs
 * N values that are read and written as one aligned access. */
template <typename T, int N> struct alignas(sizeof(T) * N) pack { T at[N]; };

/* How many values a 16-byte access holds. */
template <typename T> constexpr int PACKED = 16 / (int)sizeof(T);

template <int N, typename T> __device__ __forceinline__ pack<T, N> load_pack(const T *from) {
    expect_aligned(from, sizeof(pack<T, N>));
    return *reinterpret_cast<const pack<T, N> *>(from);
}

template <int N, typename T> __device__ __forceinline__ void store_pack(T *to, const pack<T, N> &values) {
    expect_aligned(to, sizeof(pack<T, N>));
    *reinterpret_cast<pack<T, N> *>(to) = values;
}

/* Whether all rows of a view start where 16-byte accesses can. */
static inline bool rows_are_aligned(const loom_view *view) {
    const int64_t item = (int64_t)loom_dtype_size(view->dtype);
    bool aligned = (uintptr_t)view->data % 16 == 0 && view->shape[3] * item % 16 == 0;
    for (int d = 0; d < 3; d++) aligned = aligned && (view->shape[d] == 1 || view->stride[d] * item % 16 == 0);
    return aligned;
}

/* ----------------------------------------------------------------------------------------------------------- dispatch */

template <typename T> struct type_tag { typedef T type; };

/* Calls f with the tag of a dtype: with_dtype(view.dtype, [&](auto tag) { typedef typename decltype(tag)::type T; ...
 * }); `supports` has refused all other dtypes. */
template <typename F> static inline void with_dtype(loom_dtype dtype, F f) {
    if (dtype == LOOM_F32)
        f(type_tag<float>());
    else if (dtype == LOOM_BF16)
        f(type_tag<bf16>());
    else
        f(type_tag<fp16>());
}

/* The same for what is fp32 or bf16: gradients of weights, and what AdamW updates. */
template <typename F> static inline void with_fp32_or_bf16(loom_dtype dtype, F f) {
    if (dtype == LOOM_F32)
        f(type_tag<float>());
    else
        f(type_tag<bf16>());
}

#endif
