#include "kernels/elementwise.h"

/* The square of max(x, 0); NaN stays NaN, which fmaxf would drop. Reads NC, writes NC. */
template <typename T> __global__ void relu2_forward_kernel(rows<T> out, rows<const T> x, elements e) {
    constexpr int N = PACKED<T>;
    const int64_t column = first_column<N>();
    if (column >= e.columns) return;
    const int n = column_count<N>(e, column);
    for (int64_t row = blockIdx.y; row < e.rows; row += gridDim.y) {
        float value[N];
        load_floats(value, row_at(x, row) + column, n, e.packed);
#pragma unroll
        for (int i = 0; i < N; i++) value[i] = value[i] < 0 ? 0 : value[i] * value[i];
        store_floats(row_at(out, row) + column, value, n, e.packed);
    }
}

/* Reads 2NC, writes NC. */
template <typename T>
__global__ void relu2_backward_kernel(rows<T> dx, rows<const T> dout, rows<const T> x, elements e) {
    constexpr int N = PACKED<T>;
    const int64_t column = first_column<N>();
    if (column >= e.columns) return;
    const int n = column_count<N>(e, column);
    for (int64_t row = blockIdx.y; row < e.rows; row += gridDim.y) {
        float value[N], gradient[N];
        load_floats(value, row_at(x, row) + column, n, e.packed);
        load_floats(gradient, row_at(dout, row) + column, n, e.packed);
#pragma unroll
        for (int i = 0; i < N; i++) gradient[i] = value[i] > 0 ? 2 * value[i] * gradient[i] : 0;
        store_floats(row_at(dx, row) + column, gradient, n, e.packed);
    }
}

void loom_cuda_relu2_forward(loom_context *ctx, const struct loom_relu2_forward *a) {
    const elements e = elements_of(&a->out, &a->x);
    with_dtype(a->x.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        launch(ctx, "relu2_forward", relu2_forward_kernel<T>, elementwise_grid<PACKED<T>>(e),
               elementwise_block<PACKED<T>>(e), 0, rows_of<T>(&a->out), rows_of<const T>(&a->x), e);
    });
}
LOOM_CUDA_NO_WORKSPACE(relu2_forward)

void loom_cuda_relu2_backward(loom_context *ctx, const struct loom_relu2_backward *a) {
    const elements e = elements_of(&a->dx, &a->dout, &a->x);
    with_dtype(a->x.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        launch(ctx, "relu2_backward", relu2_backward_kernel<T>, elementwise_grid<PACKED<T>>(e),
               elementwise_block<PACKED<T>>(e), 0, rows_of<T>(&a->dx), rows_of<const T>(&a->dout),
               rows_of<const T>(&a->x), e);
    });
}
LOOM_CUDA_NO_WORKSPACE(relu2_backward)
