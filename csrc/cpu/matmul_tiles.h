/* A large matrix product (GEMM) made of the library's products: it is cut into output tiles on a grid that depends on
 * the shape only. */
#ifndef LOOM_CPU_MATMUL_TILES_H
#define LOOM_CPU_MATMUL_TILES_H

#include "cpu/matmul_library.h"
#include "cpu/real.h"

/* A product and the addresses of its matrices. */
typedef struct loom_gemm {
    loom_product shape; /* with the dtype that A and B are stored in */
    const void *a, *b;
    float *c;
    bool via_scratch; /* there is no C in memory: sums go to scratch and from there to `finish` */
} loom_gemm;

/* What follows the sum of row `row`, columns column .. column + width - 1: of products that go via scratch it stores
 * them, else `sums` points into C. */
typedef void loom_finish(const void *context, int64_t row, int64_t column, int64_t width, float *sums);

/* From shapes alone: all plans of the library; the bytes of workspace. False and 0 where the library refuses. */
bool LOOM_DEFINITION(tiles_prepare)(const loom_device *device, const loom_gemm *gemm, loom_error *error);
size_t LOOM_DEFINITION(tiles_workspace)(const loom_device *device, const loom_gemm *gemm);

/* `finish` may be NULL where all is stored. */
void LOOM_DEFINITION(tiles_run)(const loom_context *ctx, const loom_gemm *gemm, loom_finish *finish,
                                const void *context);

#endif
