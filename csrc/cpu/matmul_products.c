#include "cpu/definition.h"
#include "cpu/epilogue.h"
#include "cpu/matmul_tiles.h"

/* The three matmul ops as products of the library. If out is stored in fp32 the product is computed into it directly.
 * Otherwise it is computed into scratch; then bias, activation and rounding follow, as they do without a library. */

/* ------------------------------------------------------------------------------------------------------------- products */

/* The view that receives a forward product's sums: the value before the activation. */
static const loom_view *sums_of(const struct loom_matmul_forward *a) {
    return a->activation == LOOM_ACTIVATION_NONE ? &a->out : &a->preactivation;
}

static loom_gemm gemm_of_forward(const struct loom_matmul_forward *a) {
    const loom_view *c = sums_of(a);
    return (loom_gemm){.shape = {.dtype = a->x.dtype,
                                 .m = loom_view_row_count(&a->x),
                                 .n = a->out.shape[3],
                                 .k = a->x.shape[3],
                                 .lda = a->x.stride[2],
                                 .ldb = a->weight.stride[2],
                                 .ldc = c->stride[2],
                                 .b_transposed = a->transposed},
                       .a = a->x.data,
                       .b = a->weight.data,
                       .c = c->data,
                       .via_scratch = c->dtype != LOOM_F32};
}

static loom_gemm gemm_of_backward_input(const struct loom_matmul_backward_input *a) {
    return (loom_gemm){.shape = {.dtype = a->dout.dtype,
                                 .m = loom_view_row_count(&a->dout),
                                 .n = a->dx.shape[3],
                                 .k = a->dout.shape[3],
                                 .lda = a->dout.stride[2],
                                 .ldb = a->weight.stride[2],
                                 .ldc = a->dx.stride[2],
                                 .b_transposed = !a->transposed,
                                 .accumulate = a->accumulate},
                       .a = a->dout.data,
                       .b = a->weight.data,
                       .c = a->dx.data,
                       .via_scratch = a->dx.dtype != LOOM_F32};
}

static loom_gemm gemm_of_backward_weight(const struct loom_matmul_backward_weight *a) {
    const loom_view *left = a->transposed ? &a->dout : &a->x, *right = a->transposed ? &a->x : &a->dout;
    return (loom_gemm){.shape = {.dtype = a->dout.dtype,
                                 .m = a->dweight.shape[2],
                                 .n = a->dweight.shape[3],
                                 .k = loom_view_row_count(&a->x),
                                 .lda = left->stride[2],
                                 .ldb = right->stride[2],
                                 .ldc = a->dweight.stride[2],
                                 .a_transposed = true,
                                 .accumulate = a->accumulate},
                       .a = left->data,
                       .b = right->data,
                       .c = a->dweight.data,
                       .via_scratch = a->dweight.dtype != LOOM_F32};
}

/* Whether a matrix has a single row stride, as the library requires. */
static bool one_stride(const loom_view *view) {
    return view->shape[0] == 1 && view->shape[1] == 1;
}

/* Whether the library computes this call; if so, fills in the product. */
static bool library_takes(const loom_device *device, loom_op op, const void *arguments, loom_gemm *w) {
    const struct loom_matmul_forward *f = arguments;
    const struct loom_matmul_backward_input *i = arguments;
    const struct loom_matmul_backward_weight *d = arguments;
    const loom_tuned_matmul *matmul = device->implementation;
    switch (op) {
    case LOOM_OP_matmul_forward:
        *w = gemm_of_forward(f);
        return loom_tuned_matmul_takes(matmul, f->x.dtype) && one_stride(&f->x) && one_stride(sums_of(f));
    case LOOM_OP_matmul_backward_input:
        *w = gemm_of_backward_input(i);
        return loom_tuned_matmul_takes(matmul, i->dout.dtype) && one_stride(&i->dout) && one_stride(&i->dx);
    case LOOM_OP_matmul_backward_weight:
        *w = gemm_of_backward_weight(d);
        return loom_tuned_matmul_takes(matmul, d->dout.dtype) && one_stride(&d->dout) && one_stride(&d->x);
    default: return false;
    }
}

/* ------------------------------------------------------------------------------------------------------------------ ops */

static void finish_forward(const void *context, int64_t row, int64_t column, int64_t width, float *sums) {
    finish_row(context, row, column, width, sums);
}

static void forward(loom_context *ctx, const struct loom_matmul_forward *a) {
    loom_gemm w;
    if (!library_takes(ctx->device, LOOM_OP_matmul_forward, a, &w)) {
        LOOM_DEFINITION(matmul_forward)(ctx, a);
        return;
    }
    const bool epilogue = w.via_scratch || loom_view_given(&a->bias) || a->activation != LOOM_ACTIVATION_NONE;
    LOOM_DEFINITION(tiles_run)(ctx, &w, epilogue ? finish_forward : NULL, a);
}

static void finish_input(const void *context, int64_t row, int64_t column, int64_t width, float *sums) {
    finish_input_row(context, row, column, width, sums);
}

static void backward_input(loom_context *ctx, const struct loom_matmul_backward_input *a) {
    loom_gemm w;
    if (library_takes(ctx->device, LOOM_OP_matmul_backward_input, a, &w))
        LOOM_DEFINITION(tiles_run)(ctx, &w, w.via_scratch ? finish_input : NULL, a);
    else
        LOOM_DEFINITION(matmul_backward_input)(ctx, a);
}

static void finish_weight(const void *context, int64_t row, int64_t column, int64_t width, float *sums) {
    finish_weight_row(context, row, column, width, sums);
}

static void backward_weight(loom_context *ctx, const struct loom_matmul_backward_weight *a) {
    loom_gemm w;
    if (!library_takes(ctx->device, LOOM_OP_matmul_backward_weight, a, &w)) {
        LOOM_DEFINITION(matmul_backward_weight)(ctx, a);
        return;
    }
    LOOM_DEFINITION(tiles_run)(ctx, &w, w.via_scratch ? finish_weight : NULL, a);
    if (loom_view_given(&a->dbias)) bias_gradient(ctx, &a->dbias, &a->dout, a->accumulate);
}

static size_t workspace(const loom_device *device, loom_op op, const void *arguments) {
    loom_gemm w;
    return library_takes(device, op, arguments, &w) ? LOOM_DEFINITION(tiles_workspace)(device, &w)
                                                    : LOOM_DEFINITION(workspace)(device, op, arguments);
}

static bool prepare(loom_device *device, loom_op op, const void *arguments, loom_error *error) {
    loom_gemm w;
    return !library_takes(device, op, arguments, &w) || LOOM_DEFINITION(tiles_prepare)(device, &w, error);
}

void LOOM_DEFINITION(install_products)(loom_ops *ops) {
    ops->matmul_forward = forward;
    ops->matmul_backward_input = backward_input;
    ops->matmul_backward_weight = backward_weight;
    ops->workspace = workspace;
    ops->prepare = prepare;
}
