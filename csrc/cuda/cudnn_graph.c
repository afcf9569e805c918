#include "cuda/cudnn_graph.h"

#include "base/check.h"

#include <string.h>

/* cuDNN's attention engines recognise these very graphs and no others: a product for the scores, their scaling, the
 * causal mask made of row and column numbers, softmax spelt out, a second product. What they compute, and what the
 * gradients are, is csrc/cpu/attention.c's; the order and the types are what the engines look for. Nothing of size
 * (Tq,Tk) exists in memory: tensors between operations are virtual. */

typedef cudnnBackendDescriptor_t descriptor;

typedef struct size {
    int64_t n[4];
} size;

static const cudnnDataType_t FLOAT = CUDNN_DATA_FLOAT;

/* --------------------------------------------------------------------------------------------------------- descriptors */

static void check(loom_cudnn_graph *g, cudnnStatus_t status) {
    if (status == CUDNN_STATUS_SUCCESS || g->status != CUDNN_STATUS_SUCCESS) return;
    g->status = status;
    g->api->GetLastErrorString(g->message, sizeof g->message);
    if (!g->message[0]) strncpy(g->message, g->api->GetErrorString(status), sizeof g->message - 1);
}

static descriptor make(loom_cudnn_graph *g, cudnnBackendDescriptorType_t type) {
    descriptor d = NULL;
    LOOM_CHECK(g->descriptors < LOOM_CUDNN_DESCRIPTORS);
    if (g->status) return NULL;
    check(g, g->api->BackendCreateDescriptor(type, &d));
    if (d) g->descriptor[g->descriptors++] = d;
    return d;
}

static void set(loom_cudnn_graph *g, descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t count, const void *values) {
    if (!g->status) check(g, g->api->BackendSetAttribute(d, name, type, count, values));
}

static void set_part(loom_cudnn_graph *g, descriptor d, cudnnBackendAttributeName_t name, descriptor part) {
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}

static void set_integer(loom_cudnn_graph *g, descriptor d, cudnnBackendAttributeName_t name, int64_t value) {
    set(g, d, name, CUDNN_TYPE_INT64, 1, &value);
}

static void set_type(loom_cudnn_graph *g, descriptor d, cudnnBackendAttributeName_t name, cudnnDataType_t type) {
    set(g, d, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

static void finalize(loom_cudnn_graph *g, descriptor d) {
    if (!g->status) check(g, g->api->BackendFinalize(d));
}

/* ------------------------------------------------------------------------------------------------------------- tensors */

static cudnnDataType_t type_of(loom_dtype dtype) {
    return dtype == LOOM_F32 ? CUDNN_DATA_FLOAT : dtype == LOOM_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
}

typedef enum place { IN_MEMORY, VIRTUAL, ON_HOST } place;

static descriptor tensor(loom_cudnn_graph *g, int64_t number, cudnnDataType_t type, size dims, size strides,
                         place where) {
    const bool is_virtual = where == VIRTUAL, by_value = where == ON_HOST;
    descriptor t = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set_type(g, t, CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    set(g, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.n);
    set(g, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.n);
    set_integer(g, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, number);
    set_integer(g, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, by_value ? 4 : 16);
    set(g, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(g, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    finalize(g, t);
    return t;
}

/* A view (B,T,H,D), which cuDNN takes as (B,H,T,D). */
static descriptor heads(loom_cudnn_graph *g, loom_cudnn_tensor number, const loom_view *v) {
    return tensor(g, number, type_of(v->dtype), (size){{v->shape[0], v->shape[2], v->shape[1], v->shape[3]}},
                  (size){{v->stride[0], v->stride[2], v->stride[1], 1}}, IN_MEMORY);
}

/* The same, each head transposed: (B,H,D,T). */
static size transposed_dims(const loom_view *v) {
    return (size){{v->shape[0], v->shape[2], v->shape[3], v->shape[1]}};
}

static descriptor transposed_heads(loom_cudnn_graph *g, loom_cudnn_tensor number, const loom_view *v) {
    return tensor(g, number, type_of(v->dtype), transposed_dims(v),
                  (size){{v->stride[0], v->stride[2], 1, v->stride[1]}}, IN_MEMORY);
}

/* One number for each row of scores: (B,H,Tq,1). */
static descriptor row_values(loom_cudnn_graph *g, loom_cudnn_tensor number, size dims, int64_t batch_stride,
                             int64_t head_stride) {
    return tensor(g, number, FLOAT, dims, (size){{batch_stride, head_stride, 1, 1}}, IN_MEMORY);
}

static descriptor scalar(loom_cudnn_graph *g, loom_cudnn_tensor number) {
    return tensor(g, number, FLOAT, (size){{1, 1, 1, 1}}, (size){{1, 1, 1, 1}}, ON_HOST);
}

/* What one operation hands to the next. */
static descriptor between(loom_cudnn_graph *g, cudnnDataType_t type, size dims) {
    const int64_t *n = dims.n;
    return tensor(g, g->next++, type, dims, (size){{n[1] * n[2] * n[3], n[2] * n[3], n[3], 1}}, VIRTUAL);
}

/* ---------------------------------------------------------------------------------------------------------- operations */

static descriptor operation(loom_cudnn_graph *g, cudnnBackendDescriptorType_t type) {
    descriptor o = make(g, type);
    LOOM_CHECK(g->operations < LOOM_CUDNN_OPERATIONS);
    if (o) g->operation[g->operations++] = o;
    return o;
}

static void multiply(loom_cudnn_graph *g, descriptor a, descriptor b, descriptor c) {
    descriptor how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set_type(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, FLOAT);
    finalize(g, how);
    descriptor o = operation(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_part(g, o, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_part(g, o, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_part(g, o, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    set_part(g, o, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    finalize(g, o);
}

static void reduce(loom_cudnn_graph *g, cudnnReduceTensorOp_t operator, descriptor x, descriptor y) {
    descriptor how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &operator);
    set_type(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, FLOAT);
    finalize(g, how);
    descriptor o = operation(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_part(g, o, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_part(g, o, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    set_part(g, o, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    finalize(g, o);
}

/* The same elements in another shape or order. */
static void reshape(loom_cudnn_graph *g, descriptor x, descriptor y) {
    descriptor o = operation(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_part(g, o, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_part(g, o, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    finalize(g, o);
}

/* y = x mode other, element by element, or where `condition` holds x, else other. `axis` is of index numbers, or -1. */
static void pointwise(loom_cudnn_graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t precision, descriptor x,
                      descriptor other, descriptor condition, int axis, descriptor y) {
    descriptor how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set_type(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, precision);
    if (axis >= 0) set_integer(g, how, CUDNN_ATTR_POINTWISE_AXIS, axis);
    finalize(g, how);
    descriptor o = operation(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (other) set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, other);
    if (condition) set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, condition);
    set_part(g, o, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    finalize(g, o);
}

/* A new tensor of floats: x mode other. */
static descriptor combine(loom_cudnn_graph *g, cudnnPointwiseMode_t mode, descriptor x, descriptor other, size dims) {
    descriptor y = between(g, FLOAT, dims);
    pointwise(g, mode, FLOAT, x, other, NULL, -1, y);
    return y;
}

static descriptor reduce_rows(loom_cudnn_graph *g, cudnnReduceTensorOp_t operator, descriptor x, size rows) {
    descriptor y = between(g, FLOAT, rows);
    reduce(g, operator, x, y);
    return y;
}

/* Minus infinity where the key stands behind the query. */
static descriptor mask(loom_cudnn_graph *g, descriptor scores, size dims) {
    descriptor query = between(g, CUDNN_DATA_INT32, dims), key = between(g, CUDNN_DATA_INT32, dims);
    descriptor seen = between(g, CUDNN_DATA_BOOLEAN, dims), masked = between(g, FLOAT, dims);
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, scores, NULL, NULL, 2, query);
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, scores, NULL, NULL, 3, key);
    pointwise(g, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, query, key, NULL, -1, seen);
    pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, FLOAT, scores, scalar(g, LOOM_CUDNN_MINUS_INFINITY), seen, -1, masked);
    return masked;
}

/* -------------------------------------------------------------------------------------------------------------- graphs */

static size score_dims(const loom_cudnn_attention *a) {
    return (size){{a->q->shape[0], a->q->shape[2], a->q->shape[1], a->k->shape[1]}};
}

static size row_dims(const loom_cudnn_attention *a) {
    return (size){{a->q->shape[0], a->q->shape[2], a->q->shape[1], 1}};
}

static descriptor lse_of(loom_cudnn_graph *g, const loom_cudnn_attention *a) {
    return row_values(g, LOOM_CUDNN_LSE, row_dims(a), a->lse->stride[1], a->lse->stride[2]);
}

static void forward(loom_cudnn_graph *g, const loom_cudnn_attention *a) {
    const size all = score_dims(a), rows = row_dims(a);
    descriptor q = heads(g, LOOM_CUDNN_Q, a->q), k = transposed_heads(g, LOOM_CUDNN_K, a->k);
    descriptor scores = between(g, FLOAT, all);
    multiply(g, q, k, scores);
    scores = combine(g, CUDNN_POINTWISE_MUL, scores, scalar(g, LOOM_CUDNN_SCALE), all);
    scores = mask(g, scores, all);
    /* softmax, and its statistics as a natural logarithm */
    descriptor largest = reduce_rows(g, CUDNN_REDUCE_TENSOR_MAX, scores, rows);
    descriptor shifted = combine(g, CUDNN_POINTWISE_SUB, scores, largest, all);
    descriptor weights = combine(g, CUDNN_POINTWISE_EXP, shifted, NULL, all);
    descriptor sum = reduce_rows(g, CUDNN_REDUCE_TENSOR_ADD, weights, rows);
    descriptor logarithm = combine(g, CUDNN_POINTWISE_LOG, sum, NULL, rows);
    pointwise(g, CUDNN_POINTWISE_ADD, FLOAT, largest, logarithm, NULL, -1, lse_of(g, a));
    descriptor probabilities = between(g, type_of(a->q->dtype), all);
    pointwise(g, CUDNN_POINTWISE_DIV, FLOAT, weights, sum, NULL, -1, probabilities);
    multiply(g, probabilities, heads(g, LOOM_CUDNN_V, a->v), heads(g, LOOM_CUDNN_OUT, a->out));
}

/* The gradient of keys or values: `weights`^T times `rows_of`, summed over the query heads that share a key head. */
static void key_gradient(loom_cudnn_graph *g, const loom_cudnn_attention *a, descriptor weights, descriptor rows_of,
                         loom_cudnn_tensor number, const loom_view *gradient) {
    const size all = score_dims(a);
    const int64_t *n = all.n, D = gradient->shape[3];
    const cudnnDataType_t type = type_of(a->q->dtype);
    descriptor turned = tensor(g, g->next++, type, (size){{n[0], n[1], n[3], n[2]}},
                               (size){{n[1] * n[2] * n[3], n[2] * n[3], 1, n[3]}}, VIRTUAL);
    reshape(g, weights, turned);
    descriptor out = heads(g, number, gradient);
    if (a->q->shape[2] == a->k->shape[2]) {
        multiply(g, turned, rows_of, out);
    } else {
        descriptor each = between(g, type, (size){{n[0], n[1], n[3], D}});
        multiply(g, turned, rows_of, each);
        reduce(g, CUDNN_REDUCE_TENSOR_ADD, each, out);
    }
}

/* dq is written by its product at once: with that, and not with a sum in memory that blocks add to, the engines are
 * deterministic. */
static void backward(loom_cudnn_graph *g, const loom_cudnn_attention *a) {
    const size all = score_dims(a), rows = row_dims(a);
    const int64_t H = rows.n[1], Tq = rows.n[2], D = a->q->shape[3];
    const size width = {{rows.n[0], H, Tq, D}};
    descriptor q = heads(g, LOOM_CUDNN_Q, a->q), k = transposed_heads(g, LOOM_CUDNN_K, a->k);
    descriptor v = transposed_heads(g, LOOM_CUDNN_V, a->v);
    descriptor out = heads(g, LOOM_CUDNN_OUT, a->out), dout = heads(g, LOOM_CUDNN_DOUT, a->dout);
    descriptor scale = scalar(g, LOOM_CUDNN_SCALE);
    /* delta */
    descriptor products = combine(g, CUDNN_POINTWISE_MUL, dout, out, width);
    descriptor sums = reduce_rows(g, CUDNN_REDUCE_TENSOR_ADD, products, rows);
    descriptor delta = row_values(g, LOOM_CUDNN_DELTA, rows, H * Tq, Tq);
    pointwise(g, CUDNN_POINTWISE_MUL, FLOAT, sums, scalar(g, LOOM_CUDNN_ONE), NULL, -1, delta);
    /* the probabilities again, and dv */
    descriptor scores = between(g, FLOAT, all);
    multiply(g, q, k, scores);
    scores = combine(g, CUDNN_POINTWISE_MUL, scores, scale, all);
    scores = combine(g, CUDNN_POINTWISE_SUB, scores, lse_of(g, a), all);
    scores = mask(g, scores, all);
    descriptor probabilities = combine(g, CUDNN_POINTWISE_EXP, scores, NULL, all);
    key_gradient(g, a, probabilities, dout, LOOM_CUDNN_DV, a->dv);
    /* the gradient of the scores, and dk */
    descriptor dscores = between(g, FLOAT, all);
    multiply(g, dout, v, dscores);
    dscores = combine(g, CUDNN_POINTWISE_SUB, dscores, delta, all);
    dscores = combine(g, CUDNN_POINTWISE_MUL, dscores, probabilities, all);
    dscores = combine(g, CUDNN_POINTWISE_MUL, dscores, scale, all);
    key_gradient(g, a, dscores, q, LOOM_CUDNN_DK, a->dk);
    /* dq */
    descriptor keys = tensor(g, g->next++, type_of(a->k->dtype),
                             (size){{a->k->shape[0], a->k->shape[2], a->k->shape[1], a->k->shape[3]}},
                             (size){{a->k->stride[0], a->k->stride[2], a->k->stride[1], 1}}, VIRTUAL);
    reshape(g, k, keys);
    multiply(g, dscores, keys, heads(g, LOOM_CUDNN_DQ, a->dq));
}

bool loom_cudnn_graph_build(loom_cudnn_graph *g, const loom_cudnn_api *api, cudnnHandle_t handle,
                            const loom_cudnn_attention *attention) {
    *g = (loom_cudnn_graph){.api = api, .next = LOOM_CUDNN_TENSORS};
    if (attention->dout)
        backward(g, attention);
    else
        forward(g, attention);
    g->graph = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, g->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->operations, g->operation);
    if (handle) set(g, g->graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    finalize(g, g->graph);
    return g->status == CUDNN_STATUS_SUCCESS;
}

void loom_cudnn_graph_destroy(loom_cudnn_graph *g) {
    while (g->descriptors) g->api->BackendDestroyDescriptor(g->descriptor[--g->descriptors]);
}
