/* Softmax, cross-entropy and its gradient, in one kernel over the logits. */
#include "kernels/softmax.h"

template <typename T> struct cross_entropy_arguments {
    float *losses;
    rows<T> dlogits; /* data NULL: losses only; may be the memory of logits */
    rows<const T> logits;
    const int32_t *targets;
    int64_t N;
    int V, padded;
    const loom_scalars *scalars;
};

/* The gradient of columns `column` to `column + N - 1` from their logits x. */
template <int N>
__device__ __forceinline__ void logit_gradients(float (&x)[N], softmax_row s, float weight, int column, int target,
                                                int V) {
    const float scale = weight / s.sum;
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = exp_approximate(x[i] - s.largest, LOG2_E) * scale;
    if (target >= column && target < column + N) {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (column + i == target) x[i] -= weight;
    }
    if (column + N > V) {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (column + i >= V) x[i] = 0;
    }
}

/* Reads NV logits and writes N Vp gradients, each value once where the row is cached (bf16 and fp16 vocabularies up to
 * 50432); else the row is read twice, the second time from L2 as far as that reaches. Rows without a target are not
 * read. The thread that owns the target's column reads it for the loss before it can write the gradient there. */
template <typename T, typename READING>
__global__ void __launch_bounds__(GROUP_THREADS<READING::GROUP>) cross_entropy_kernel(cross_entropy_arguments<T> a) {
    constexpr int N = READING::N, GROUP = READING::GROUP;
    DYNAMIC_SHARED(T, shared);
    const int64_t n = group_row<GROUP>();
    if (n >= a.N) return;
    const int lane = group_lane<GROUP>(), target = a.targets[n];
    const T *row = row_at(a.logits, n);
    softmax_row s = {0, 1};
    if (target >= 0) {
        T *cache = shared + (int)threadIdx.x / GROUP * a.padded;
        s = softmax_sweep<READING>(row, cache, a.V, LOG2_E);
        if (READING::CACHED) row = cache;
        if (lane == target / N % GROUP) a.losses[n] = logf(s.sum) - (to_float(row[target]) - s.largest);
    } else if (lane == 0) {
        a.losses[n] = 0;
    }
    if (!a.dlogits.data) return;
    const float weight = a.scalars->in.loss_gradient * a.scalars->state.loss_scale;
    for (int column = lane * N; column < a.padded; column += GROUP * N) {
        float x[N] = {};
        if (target >= 0 && column < a.V) {
            read_values(x, row + column);
            logit_gradients(x, s, weight, column, target, a.V);
        }
        write_values(row_at(a.dlogits, n) + column, x);
    }
}

void loom_cuda_cross_entropy(loom_context *ctx, const struct loom_cross_entropy *a) {
    const int64_t N = loom_view_row_count(&a->logits), padded = a->logits.shape[3];
    const bool aligned = rows_are_aligned(&a->logits) &&
                         (!loom_view_given(&a->dlogits) || rows_are_aligned(&a->dlogits));
    with_dtype(a->logits.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        const cross_entropy_arguments<T> arguments = {
            static_cast<float *>(a->losses.data),
            rows_of<T>(&a->dlogits),
            rows_of<const T>(&a->logits),
            static_cast<const int32_t *>(a->targets.data),
            N,
            (int)a->vocab_size,
            (int)padded,
            a->scalars,
        };
        with_reading<T>(padded, aligned, 1, [&](auto how, size_t shared_bytes) {
            typedef decltype(how) READING;
            launch(ctx, "cross_entropy", cross_entropy_kernel<T, READING>, group_grid<READING::GROUP>(N),
                   GROUP_THREADS<READING::GROUP>, shared_bytes, arguments);
        });
    });
}
LOOM_CUDA_NO_WORKSPACE(cross_entropy)
