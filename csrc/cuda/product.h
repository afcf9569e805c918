/* One matrix product by cuBLASLt: how it is described to the library, how the fastest of the library's algorithms is
 * found, and how it is run. */
#ifndef LOOM_CUDA_PRODUCT_H
#define LOOM_CUDA_PRODUCT_H

#include "cuda/cublaslt_api.h"
#include "gptloom/device.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a product can sum up on its way: the rows of A, a column (m), or the columns of B, a row (n). */
typedef enum loom_cuda_sums { LOOM_CUDA_NO_SUMS, LOOM_CUDA_ROW_SUMS, LOOM_CUDA_COLUMN_SUMS } loom_cuda_sums;

/* C (m,n) = A (m,k) B (k,n). Rows of the stored matrices are contiguous and lda, ldb, ldc elements apart; with
 * a_transposed A is stored as (k,m), with b_transposed B as (n,k). All members are of one size, so that products are
 * compared as bytes. */
typedef struct loom_cuda_product {
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    int64_t a_transposed, b_transposed;
    int64_t input, output; /* loom_dtype of A and B; of C */
    int64_t bias;          /* a row (n) of C's dtype is added to each row, before rounding; only where aligned */
    int64_t sums;          /* loom_cuda_sums, written besides; only where aligned, into fp32, without TF32 */
    int64_t accumulate;    /* the product is added to C */
    int64_t tf32;          /* inputs of fp32 may be rounded to TF32 */
    int64_t aligned;       /* all data begins at multiples of 16 bytes */
} loom_cuda_product;

/* Bytes of scratch that a product (m,n) may use. */
size_t loom_cuda_product_workspace(int64_t m, int64_t n);

typedef struct loom_cuda_plan loom_cuda_plan;

/* A plan, of the library `lt` and its handle, with the algorithm `given`, which cuBLASLt must accept; or, with NULL,
 * with the fastest of those that cuBLASLt proposes, timed in `stream` on memory of the plan's own while it is made.
 * Where there is no memory to time in, or the product is not aligned, as none is that matters, it is the first one
 * proposed (that runs). */
bool loom_cuda_plan_create(loom_cuda_plan **plan, const loom_cuda_product *product, const loom_cublaslt_api *lt,
                           cublasLtHandle_t handle, cudaStream_t stream, const cublasLtMatmulAlgo_t *given,
                           loom_error *error);
void loom_cuda_plan_destroy(loom_cuda_plan *plan);

const cublasLtMatmulAlgo_t *loom_cuda_plan_algorithm(const loom_cuda_plan *plan);

/* Puts the product into the stream. `workspace` holds loom_cuda_product_workspace() bytes; `vector` is the bias, or
 * where the sums are written (also where C is added to), and not looked at in a product with neither. */
cublasStatus_t loom_cuda_plan_run(loom_cuda_plan *plan, const void *a, const void *b, void *c, void *vector,
                                  void *workspace, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
