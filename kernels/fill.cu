#include "kernels/elementwise.h"

/* Writes NC. */
template <typename T> __global__ void fill_kernel(rows<T> out, float value, elements e) {
    constexpr int N = PACKED<T>;
    const int64_t column = first_column<N>();
    if (column >= e.columns) return;
    float values[N];
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = value;
    for (int64_t row = blockIdx.y; row < e.rows; row += gridDim.y)
        store_floats(row_at(out, row) + column, values, column_count<N>(e, column), e.packed);
}

void loom_cuda_fill(loom_context *ctx, const struct loom_fill *a) {
    const elements e = elements_of(&a->out);
    with_dtype(a->out.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        launch(ctx, "fill", fill_kernel<T>, elementwise_grid<PACKED<T>>(e), elementwise_block<PACKED<T>>(e), 0,
               rows_of<T>(&a->out), a->value, e);
    });
}
LOOM_CUDA_NO_WORKSPACE(fill)
