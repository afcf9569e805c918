#include "gptloom/tensor.h"

#include "base/check.h"

size_t loom_dtype_size(loom_dtype dtype) {
    switch (dtype) {
    case LOOM_F32:
    case LOOM_I32: return 4;
    case LOOM_BF16:
    case LOOM_F16: return 2;
    case LOOM_F64:
    case LOOM_I64: return 8;
    }
    LOOM_CHECK(!"a known dtype");
    return 0;
}

void *loom_element(void *data, int64_t i, loom_dtype dtype) {
    return data ? (char *)data + (size_t)i * loom_dtype_size(dtype) : NULL;
}

const char *loom_dtype_name(loom_dtype dtype) {
    static const char *const names[] = {"fp32", "bf16", "fp16", "fp64", "int32", "int64"};
    LOOM_CHECK((unsigned)dtype < sizeof names / sizeof *names);
    return names[dtype];
}

loom_view loom_view_4d(void *data, loom_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d) {
    return (loom_view){data, dtype, {a, b, c, d}, {b * c * d, c * d, d, 1}};
}

loom_view loom_view_3d(void *data, loom_dtype dtype, int64_t a, int64_t b, int64_t c) {
    return loom_view_4d(data, dtype, 1, a, b, c);
}

loom_view loom_view_2d(void *data, loom_dtype dtype, int64_t rows, int64_t columns) {
    return loom_view_4d(data, dtype, 1, 1, rows, columns);
}

loom_view loom_view_1d(void *data, loom_dtype dtype, int64_t n) {
    return loom_view_4d(data, dtype, 1, 1, 1, n);
}

loom_view loom_view_rows(loom_view view, int64_t first, int64_t rows) {
    LOOM_CHECK(view.shape[0] == 1 && view.shape[1] == 1 && first >= 0 && first + rows <= view.shape[2]);
    view.shape[2] = rows;
    if (view.data) view.data = (char *)view.data + (size_t)(first * view.stride[2]) * loom_dtype_size(view.dtype);
    return view;
}

int64_t loom_view_row_count(const loom_view *view) {
    return view->shape[0] * view->shape[1] * view->shape[2];
}

int64_t loom_view_elements(const loom_view *view) {
    return loom_view_row_count(view) * view->shape[3];
}

bool loom_view_given(const loom_view *view) {
    return view->shape[3] != 0;
}

size_t loom_view_extent(const loom_view *view) {
    if (loom_view_elements(view) == 0) return 0;
    int64_t last = 0;
    for (int i = 0; i < 4; i++) last += (view->shape[i] - 1) * view->stride[i];
    return (size_t)(last + 1) * loom_dtype_size(view->dtype);
}
