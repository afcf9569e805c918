#include "kernels/elementwise.h"

/* Reads NC of one dtype, writes NC of another. */
template <typename To, typename From> __global__ void cast_kernel(rows<To> out, rows<const From> x, elements e) {
    constexpr int N = PACKED < To >> PACKED<From> ? PACKED<To> : PACKED<From>;
    const int64_t column = first_column<N>();
    if (column >= e.columns) return;
    const int n = column_count<N>(e, column);
    for (int64_t row = blockIdx.y; row < e.rows; row += gridDim.y) {
        float value[N];
        load_floats(value, row_at(x, row) + column, n, e.packed);
        store_floats(row_at(out, row) + column, value, n, e.packed);
    }
}

void loom_cuda_cast(loom_context *ctx, const struct loom_cast *a) {
    const elements e = elements_of(&a->out, &a->x);
    with_dtype(a->out.dtype, [&](auto to) {
        with_dtype(a->x.dtype, [&](auto from) {
            typedef typename decltype(to)::type To;
            typedef typename decltype(from)::type From;
            constexpr int N = PACKED < To >> PACKED<From> ? PACKED<To> : PACKED<From>;
            launch(ctx, "cast", cast_kernel<To, From>, elementwise_grid<N>(e), elementwise_block<N>(e), 0,
                   rows_of<To>(&a->out), rows_of<const From>(&a->x), e);
        });
    });
}
LOOM_CUDA_NO_WORKSPACE(cast)
