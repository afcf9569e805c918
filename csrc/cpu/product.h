/* The interface to matrix products of a library, which matmul_tiles.c uses. Each library has a file product_NAME.c, of
 * which one is linked. A product here is one tile of a larger one, computed by one thread. */
#ifndef LOOM_CPU_PRODUCT_H
#define LOOM_CPU_PRODUCT_H

#include "gptloom/device.h"

/* C (m,n) = A (m,k) B (k,n), or C += with `accumulate`. C is fp32. A and B are fp32 or, if loom_product_has_bf16() says
 * so, bf16; sums are fp32. Rows of the stored matrices are contiguous. With a_transposed, A is stored as (k,m), and its
 * rows are lda apart. */
typedef struct loom_product {
    loom_dtype dtype; /* of A and B */
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    bool a_transposed, b_transposed, accumulate;
} loom_product;

static inline bool loom_product_same(const loom_product *x, const loom_product *y) {
    return x->dtype == y->dtype && x->m == y->m && x->n == y->n && x->k == y->k && x->lda == y->lda &&
           x->ldb == y->ldb && x->ldc == y->ldc && x->a_transposed == y->a_transposed &&
           x->b_transposed == y->b_transposed && x->accumulate == y->accumulate;
}

/* The library's plan for a shape, and the set of all plans made so far. */
typedef struct loom_product_plan loom_product_plan;
typedef struct loom_product_cache loom_product_cache;

/* `threads` threads may run plans; `library_threaded` says that the library threads each product itself. */
loom_product_cache *loom_product_cache_create(int threads, bool library_threaded, loom_error *error);
void loom_product_cache_destroy(loom_product_cache *cache);

/* Returns the plan for a shape and makes it if it does not exist. Returns NULL with an error if the library refuses.
 * Plans never move in memory. Must not be called by several threads at once. */
const loom_product_plan *loom_product_prepare(loom_product_cache *cache, const loom_product *shape, loom_error *error);

/* The bytes of scratch that a thread needs to run the plan. */
size_t loom_product_scratch(const loom_product_plan *plan);

/* Runs the plan as thread `thread`. Several threads may run one plan at the same time. */
void loom_product_run(const loom_product_plan *plan, int thread, const void *a, const void *b, float *c, void *scratch);

/* Returns, for example, "oneDNN 2.6.3". */
const char *loom_product_library(void);

/* Returns the reason why the library cannot work in this process; NULL if it can. */
const char *loom_product_obstacle(void);

/* How the library multiplies bf16 on this processor: not at all, in fp32 arithmetic (which gains nothing), or with
 * instructions for bf16. */
typedef enum loom_product_bf16 {
    LOOM_PRODUCT_BF16_NONE,
    LOOM_PRODUCT_BF16_EMULATED,
    LOOM_PRODUCT_BF16_AVX512,
    LOOM_PRODUCT_BF16_AMX
} loom_product_bf16;

loom_product_bf16 loom_product_has_bf16(void);

#endif
