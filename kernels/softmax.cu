/* Softmax over rows of any length, forward and backward. */
#include "kernels/softmax.h"

#include <float.h>

/* Reads NC and writes NC, each value once where the row is cached; else it is read twice, the second time from L2 as
 * far as that reaches. out may be the memory of x. */
template <typename T, typename READING>
__global__ void __launch_bounds__(GROUP_THREADS<READING::GROUP>)
    forward_kernel(rows<T> out, rows<const T> x, int64_t N, int C, float scale2) {
    constexpr int ACCESS = READING::N, GROUP = READING::GROUP;
    DYNAMIC_SHARED(T, shared);
    const int64_t n = group_row<GROUP>();
    if (n >= N) return;
    T *cache = shared + (int)threadIdx.x / GROUP * C;
    const T *row = row_at(x, n);
    const softmax_row s = softmax_sweep<READING>(row, cache, C, scale2);
    const float reciprocal = 1 / s.sum;
    if (READING::CACHED) row = cache;
    for (int c = group_lane<GROUP>() * ACCESS; c < C; c += GROUP * ACCESS) {
        float values[ACCESS];
        read_values(values, row + c);
#pragma unroll
        for (int i = 0; i < ACCESS; i++) values[i] = exp_approximate(values[i] - s.largest, scale2) * reciprocal;
        write_values(row_at(out, n) + c, values);
    }
}

void loom_cuda_softmax_forward(loom_context *ctx, const struct loom_softmax_forward *a) {
    const int64_t N = loom_view_row_count(&a->x), C = a->x.shape[3];
    const bool aligned = rows_are_aligned(&a->out) && rows_are_aligned(&a->x);
    const float scale2 = fminf(a->scale * LOG2_E, FLT_MAX); /* infinity times the largest one's 0 would be no number */
    with_dtype(a->x.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        with_reading<T>(C, aligned, 1, [&](auto how, size_t shared_bytes) {
            typedef decltype(how) READING;
            launch(ctx, "softmax_forward", forward_kernel<T, READING>, group_grid<READING::GROUP>(N),
                   GROUP_THREADS<READING::GROUP>, shared_bytes, rows_of<T>(&a->out), rows_of<const T>(&a->x), N, (int)C,
                   scale2);
        });
    });
}
LOOM_CUDA_NO_WORKSPACE(softmax_forward)

/* Reads 2NC and writes NC, each value once where both rows are cached; else they are read twice. dx may be the memory
 * of dout. */
template <typename T, typename READING>
__global__ void __launch_bounds__(GROUP_THREADS<READING::GROUP>)
    backward_kernel(rows<T> dx, rows<const T> dout, rows<const T> out, int64_t N, int C, float scale) {
    constexpr int ACCESS = READING::N, GROUP = READING::GROUP;
    DYNAMIC_SHARED(T, shared);
    const int64_t n = group_row<GROUP>();
    if (n >= N) return;
    const T *g = row_at(dout, n), *y = row_at(out, n);
    if constexpr (READING::CACHED) {
        T *cache = shared + (int)threadIdx.x / GROUP * 2 * C;
        cache_packs<READING>(cache, g, 0, C / ACCESS);
        cache_packs<READING>(cache + C, y, 0, C / ACCESS);
        ptx::cp_async_wait<0>();
        g = cache;
        y = cache + C;
    }
    float dot = 0;
    for (int c = group_lane<GROUP>() * ACCESS; c < C; c += GROUP * ACCESS) {
        float gradient[ACCESS], probability[ACCESS];
        read_values(gradient, g + c);
        read_values(probability, y + c);
#pragma unroll
        for (int i = 0; i < ACCESS; i++) dot += gradient[i] * probability[i];
    }
    dot = group_sum<GROUP>(dot);
    for (int c = group_lane<GROUP>() * ACCESS; c < C; c += GROUP * ACCESS) {
        float gradient[ACCESS], probability[ACCESS];
        read_values(gradient, g + c);
        read_values(probability, y + c);
#pragma unroll
        for (int i = 0; i < ACCESS; i++) gradient[i] = scale * probability[i] * (gradient[i] - dot);
        write_values(row_at(dx, n) + c, gradient);
    }
}

void loom_cuda_softmax_backward(loom_context *ctx, const struct loom_softmax_backward *a) {
    const int64_t N = loom_view_row_count(&a->out), C = a->out.shape[3];
    const bool aligned = rows_are_aligned(&a->dx) && rows_are_aligned(&a->dout) && rows_are_aligned(&a->out);
    with_dtype(a->out.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        with_reading<T>(C, aligned, 2, [&](auto how, size_t shared_bytes) {
            typedef decltype(how) READING;
            launch(ctx, "softmax_backward", backward_kernel<T, READING>, group_grid<READING::GROUP>(N),
                   GROUP_THREADS<READING::GROUP>, shared_bytes, rows_of<T>(&a->dx), rows_of<const T>(&a->dout),
                   rows_of<const T>(&a->out), N, (int)C, a->scale);
        });
    });
}
LOOM_CUDA_NO_WORKSPACE(softmax_backward)
