#include "kernels/elementwise.h"
#include "kernels/ptx.h"

/* 0.5 (1 + tanh u) is the logistic function s of 2u, as in csrc/cpu/gelu.h, and s = 1 / (1 + e) with e = exp(-2u),
 * taken as a power of two: its relative error is a few 2^-24 wherever s(1 - s) is not tiny. Below 2^-126 s stays where
 * it is, so that 1 - s, which is e s, has no infinity in it. */
struct gate {
    float open, closed; /* s, 1 - s */
};

__device__ __forceinline__ gate gelu_gate(float x) {
    const float twice_sqrt_2_over_pi_log2_e = 2.3022082f;
    const float cube = x * x * x;
    const float e = ptx::exp2_approximate(fminf(-twice_sqrt_2_over_pi_log2_e * fmaf(0.044715f, cube, x), 126.0f));
    const float s = __fdividef(1.0f, 1.0f + e);
    return {s, e * s};
}

/* Reads NC, writes NC. */
template <typename T> __global__ void gelu_forward_kernel(rows<T> out, rows<const T> x, elements e) {
    constexpr int N = PACKED<T>;
    const int64_t column = first_column<N>();
    if (column >= e.columns) return;
    const int n = column_count<N>(e, column);
    for (int64_t row = blockIdx.y; row < e.rows; row += gridDim.y) {
        float value[N];
        load_floats(value, row_at(x, row) + column, n, e.packed);
#pragma unroll
        for (int i = 0; i < N; i++) value[i] *= gelu_gate(value[i]).open;
        store_floats(row_at(out, row) + column, value, n, e.packed);
    }
}

/* d/dx x s(2u) = s + x s (1 - s) 2u'. Reads 2NC, writes NC. */
template <typename T>
__global__ void gelu_backward_kernel(rows<T> dx, rows<const T> dout, rows<const T> x, elements e) {
    constexpr int N = PACKED<T>;
    const int64_t column = first_column<N>();
    if (column >= e.columns) return;
    const int n = column_count<N>(e, column);
    for (int64_t row = blockIdx.y; row < e.rows; row += gridDim.y) {
        float value[N], gradient[N];
        load_floats(value, row_at(x, row) + column, n, e.packed);
        load_floats(gradient, row_at(dout, row) + column, n, e.packed);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const gate s = gelu_gate(value[i]);
            const float slope = 1.5957691f * fmaf(0.134145f * value[i], value[i], 1.0f);
            gradient[i] *= fmaf(value[i] * s.open * s.closed, slope, s.open);
        }
        store_floats(row_at(dx, row) + column, gradient, n, e.packed);
    }
}

void loom_cuda_gelu_forward(loom_context *ctx, const struct loom_gelu_forward *a) {
    const elements e = elements_of(&a->out, &a->x);
    with_dtype(a->x.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        launch(ctx, "gelu_forward", gelu_forward_kernel<T>, elementwise_grid<PACKED<T>>(e),
               elementwise_block<PACKED<T>>(e), 0, rows_of<T>(&a->out), rows_of<const T>(&a->x), e);
    });
}
LOOM_CUDA_NO_WORKSPACE(gelu_forward)

void loom_cuda_gelu_backward(loom_context *ctx, const struct loom_gelu_backward *a) {
    const elements e = elements_of(&a->dx, &a->dout, &a->x);
    with_dtype(a->x.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        launch(ctx, "gelu_backward", gelu_backward_kernel<T>, elementwise_grid<PACKED<T>>(e),
               elementwise_block<PACKED<T>>(e), 0, rows_of<T>(&a->dx), rows_of<const T>(&a->dout),
               rows_of<const T>(&a->x), e);
    });
}
LOOM_CUDA_NO_WORKSPACE(gelu_backward)
