/* Attention: the entry points, which say in numbers what the views say, and delta. */
#include "csrc/base/check.h"
#include "kernels/attention.cuh"

/* Rows of this many bytes may stay in the second-level cache while other heads are at work: 40 MB and more are in an
 * A100 or H100. */
static const int64_t SECTION_BYTES = 16 << 20;

static attention_tensor tensor_of(const loom_view *v) {
    return {v->data, v->stride[0], v->stride[1], v->stride[2]};
}

static attention_statistic statistic_of(const loom_view *v) {
    return {static_cast<float *>(v->data), v->stride[1], v->stride[2]};
}

static attention_inputs inputs_of(const loom_view *q, const loom_view *k, const loom_view *v, int64_t first_query,
                                  float scale) {
    const int64_t queries = q->shape[1], keys = first_query + queries, D = q->shape[3];
    const int64_t head_bytes = 2 * keys * D * (int64_t)loom_dtype_size(q->dtype);
    LOOM_CHECK(scale > 0); /* the largest score is looked for before scaling, and masked ones are -infinity */
    attention_inputs in = {};
    in.q = tensor_of(q);
    in.k = tensor_of(k);
    in.v = tensor_of(v);
    in.batch = (int)q->shape[0];
    in.heads = (int)q->shape[2];
    in.group = (int)(q->shape[2] / k->shape[2]);
    in.queries = (int)queries;
    in.keys = (int)keys;
    in.head_size = (int)D;
    in.first_query = (int)first_query;
    in.scale = scale;
    in.aligned = rows_are_aligned(q) && rows_are_aligned(k) && rows_are_aligned(v);
    in.section = head_bytes < SECTION_BYTES ? (int)(SECTION_BYTES / head_bytes) : 1;
    return in;
}

extern "C" const char *loom_cuda_attention_refusal(int64_t head_size) {
    if (head_size % 8 || head_size > 128) return "head sizes that are not multiples of 8 up to 128";
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------------- forward */

extern "C" size_t loom_cuda_attention_forward_workspace(const struct loom_attention_forward *) {
    return 0;
}

extern "C" void loom_cuda_attention_forward(loom_context *ctx, const struct loom_attention_forward *a) {
    attention_forward_arguments arguments = {};
    arguments.in = inputs_of(&a->q, &a->k, &a->v, a->first_query, a->scale);
    arguments.in.aligned = arguments.in.aligned && rows_are_aligned(&a->out);
    arguments.out = tensor_of(&a->out);
    arguments.lse = statistic_of(&a->lse);
    if (a->q.dtype == LOOM_F32)
        loom_cuda_attention_forward_fp32(ctx, arguments);
    else if (a->q.dtype == LOOM_BF16)
        loom_cuda_attention_forward_bf16(ctx, arguments);
    else
        loom_cuda_attention_forward_fp16(ctx, arguments);
}

/* --------------------------------------------------------------------------------------------------------- backward */

enum { DELTA_THREADS = 256, DELTA_LANES = 8 };

/* delta (B,H,Tq) = the dot product of dout and out, row by row. Eight lanes take a row; rows follow each other as in
 * memory, (B,Tq,H). Reads 2 B Tq H D, writes B Tq H floats. */
template <typename T>
__global__ void __launch_bounds__(DELTA_THREADS)
    attention_delta(attention_statistic delta, attention_tensor dout, attention_tensor out, int64_t rows, int queries,
                    int heads, int head_size, bool aligned) {
    const int64_t row = ((int64_t)blockIdx.x * DELTA_THREADS + threadIdx.x) / DELTA_LANES;
    const int lane = (int)threadIdx.x % DELTA_LANES, head = (int)(row % heads);
    const int query = (int)(row / heads % queries), batch = (int)(row / heads / queries);
    float sum = 0;
    if (row < rows) {
        const T *a = attention_row<const T>(dout, batch, query, head);
        const T *b = attention_row<const T>(out, batch, query, head);
        for (int d = lane * PACKED<T>; d < head_size; d += DELTA_LANES * PACKED<T>) {
            pack<T, PACKED<T>> x, y;
            if (aligned) {
                x = load_pack<PACKED<T>>(a + d);
                y = load_pack<PACKED<T>>(b + d);
            } else {
#pragma unroll
                for (int i = 0; i < PACKED<T>; i++) x.at[i] = a[d + i], y.at[i] = b[d + i];
            }
#pragma unroll
            for (int i = 0; i < PACKED<T>; i++) sum = fmaf(to_float(x.at[i]), to_float(y.at[i]), sum);
        }
    }
#pragma unroll
    for (int distance = DELTA_LANES / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
    if (row < rows && lane == 0) attention_row(delta, batch, head)[query] = sum;
}

extern "C" size_t loom_cuda_attention_backward_workspace(const struct loom_attention_backward *a) {
    return (size_t)loom_view_row_count(&a->q) * sizeof(float);
}

extern "C" void loom_cuda_attention_backward(loom_context *ctx, const struct loom_attention_backward *a) {
    const int64_t queries = a->q.shape[1], heads = a->q.shape[2], rows = loom_view_row_count(&a->q);
    const bool out_aligned = rows_are_aligned(&a->dout) && rows_are_aligned(&a->out);
    attention_backward_arguments arguments = {};
    arguments.in = inputs_of(&a->q, &a->k, &a->v, a->first_query, a->scale);
    arguments.in.aligned = arguments.in.aligned && out_aligned && rows_are_aligned(&a->dq) &&
                           rows_are_aligned(&a->dk) && rows_are_aligned(&a->dv);
    arguments.dq = tensor_of(&a->dq);
    arguments.dk = tensor_of(&a->dk);
    arguments.dv = tensor_of(&a->dv);
    arguments.dout = tensor_of(&a->dout);
    arguments.lse = statistic_of(&a->lse);
    arguments.delta = {static_cast<float *>(ctx->workspace), heads * queries, queries};
    arguments.all_keys = (int)a->k.shape[1];
    with_dtype(a->q.dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        launch(ctx, "attention_backward", attention_delta<T>,
               grid_size(ceil_div(rows * DELTA_LANES, (int64_t)DELTA_THREADS)), DELTA_THREADS, 0, arguments.delta,
               arguments.dout, tensor_of(&a->out), rows, queries, heads, a->q.shape[3], out_aligned);
    });
    if (a->q.dtype == LOOM_F32)
        loom_cuda_attention_backward_fp32(ctx, arguments);
    else if (a->q.dtype == LOOM_BF16)
        loom_cuda_attention_backward_bf16(ctx, arguments);
    else
        loom_cuda_attention_backward_fp16(ctx, arguments);
}
