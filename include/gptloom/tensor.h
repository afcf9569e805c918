/* A view of a tensor: its address, dtype, shape and strides. Views own no memory. */
#ifndef GPTLOOM_TENSOR_H
#define GPTLOOM_TENSOR_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_dtype { LOOM_F32, LOOM_BF16, LOOM_F16, LOOM_F64, LOOM_I32, LOOM_I64 } loom_dtype;

size_t loom_dtype_size(loom_dtype dtype);
const char *loom_dtype_name(loom_dtype dtype); /* "fp32", "bf16", "fp16", "fp64", "int32", "int64" */

/* The address of element `i` of contiguous elements. For NULL, which stands for memory that is only planned, it is
 * NULL. */
void *loom_element(void *data, int64_t i, loom_dtype dtype);

/* A view of up to four dimensions. The innermost dimension is the last one and is contiguous: stride[3] is 1. Missing
 * outer dimensions are 1. Strides are counted in elements. If an op's argument is optional, a view with data NULL and
 * all shapes 0 means that it is not given. */
typedef struct loom_view {
    void *data;
    loom_dtype dtype;
    int64_t shape[4];
    int64_t stride[4];
} loom_view;

/* Make contiguous views; the outermost dimension comes first. */
loom_view loom_view_1d(void *data, loom_dtype dtype, int64_t n);
loom_view loom_view_2d(void *data, loom_dtype dtype, int64_t rows, int64_t columns);
loom_view loom_view_3d(void *data, loom_dtype dtype, int64_t a, int64_t b, int64_t c);
loom_view loom_view_4d(void *data, loom_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d);

/* Rows `first` to `first + rows - 1` of a two-dimensional view. */
loom_view loom_view_rows(loom_view view, int64_t first, int64_t rows);

/* loom_view_elements is the product of all dimensions, loom_view_row_count the product of all except the innermost
 * one. */
int64_t loom_view_elements(const loom_view *view);
int64_t loom_view_row_count(const loom_view *view);

/* Whether an optional view was given. */
bool loom_view_given(const loom_view *view);

/* The number of bytes from the view's data to one past its last byte: all of them must be addressable. */
size_t loom_view_extent(const loom_view *view);

#ifdef __cplusplus
}
#endif
#endif
