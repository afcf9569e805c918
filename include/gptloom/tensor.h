/* A view: where a tensor lies, of what type, and how to step through it. Views own nothing. */
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

/* The address of element `i` of contiguous ones; of NULL, as while planning, NULL. */
void *loom_element(void *data, int64_t i, loom_dtype dtype);

/* The innermost dimension is the last and is contiguous: stride[3] is 1. Missing outer dimensions are 1. Strides
 * count elements. A view with data NULL and all shapes 0 is "not given" where an op calls an argument optional. */
typedef struct loom_view {
    void *data;
    loom_dtype dtype;
    int64_t shape[4];
    int64_t stride[4];
} loom_view;

/* Contiguous views, outermost dimension first. */
loom_view loom_view_1d(void *data, loom_dtype dtype, int64_t n);
loom_view loom_view_2d(void *data, loom_dtype dtype, int64_t rows, int64_t columns);
loom_view loom_view_3d(void *data, loom_dtype dtype, int64_t a, int64_t b, int64_t c);
loom_view loom_view_4d(void *data, loom_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d);

/* Rows `first` to `first + rows - 1` of a two-dimensional view. */
loom_view loom_view_rows(loom_view view, int64_t first, int64_t rows);

/* The product of the shape; and of all but the innermost dimension. */
int64_t loom_view_elements(const loom_view *view);
int64_t loom_view_row_count(const loom_view *view);

/* Whether an optional view was given. */
bool loom_view_given(const loom_view *view);

/* One past the last byte of the view, from its data: what must be addressable. */
size_t loom_view_extent(const loom_view *view);

#ifdef __cplusplus
}
#endif
#endif
