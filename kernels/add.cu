#include "kernels/elementwise.h"

/* Reads 2n and writes n: 12 bytes an element in fp32, 6 in 16 bits. A thread reads its elements of both terms before it
 * writes the sum, which may be one of them. */
template <typename T> __global__ void add_kernel(T *out, const T *a, const T *b, elements e) {
    constexpr int N = PACKED<T>;
    const int64_t i = first_column<N>();
    if (i >= e.columns) return;
    const int n = column_count<N>(e, i);
    float sum[N], term[N];
    load_floats(sum, a + i, n, e.packed);
    load_floats(term, b + i, n, e.packed);
#pragma unroll
    for (int j = 0; j < N; j++) sum[j] += term[j];
    store_floats(out + i, sum, n, e.packed);
}

void loom_cuda_add(loom_context *ctx, const struct loom_add *a) {
    const elements e = elements_of(&a->out, &a->a, &a->b);
    with_dtype(a->out.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        launch(ctx, "add", add_kernel<T>, elementwise_grid<PACKED<T>>(e), elementwise_block<PACKED<T>>(e), 0,
               a->out.data, a->a.data, a->b.data, e);
    });
}
LOOM_CUDA_NO_WORKSPACE(add)
