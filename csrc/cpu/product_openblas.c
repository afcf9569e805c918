#include "cpu/product.h"

#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>

/* OpenBLAS needs no plans. It runs single-threaded inside our parallel regions, or threads each product itself. */

struct loom_product_plan {
    loom_product shape;
    struct loom_product_plan *next;
};

struct loom_product_cache {
    loom_product_plan *first;
};

const char *loom_product_library(void) {
    return "OpenBLAS";
}

const char *loom_product_obstacle(void) {
    return NULL;
}

loom_product_bf16 loom_product_has_bf16(void) {
    return LOOM_PRODUCT_BF16_NONE;
}

loom_product_cache *loom_product_cache_create(int threads, bool library_threaded, loom_error *error) {
    openblas_set_num_threads(library_threaded ? threads : 1);
    loom_product_cache *cache = calloc(1, sizeof *cache);
    if (!cache) loom_fail(error, "no memory for the plans of matrix products");
    return cache;
}

void loom_product_cache_destroy(loom_product_cache *cache) {
    while (cache && cache->first) {
        loom_product_plan *plan = cache->first;
        cache->first = plan->next;
        free(plan);
    }
    free(cache);
}

const loom_product_plan *loom_product_prepare(loom_product_cache *cache, const loom_product *shape, loom_error *error) {
    for (loom_product_plan *plan = cache->first; plan; plan = plan->next)
        if (loom_product_same(&plan->shape, shape)) return plan;
    loom_product_plan *plan = malloc(sizeof *plan);
    if (!plan) {
        loom_fail(error, "no memory for the plan of a matrix product");
        return NULL;
    }
    *plan = (loom_product_plan){*shape, cache->first};
    return cache->first = plan;
}

size_t loom_product_scratch(const loom_product_plan *plan) {
    (void)plan;
    return 0;
}

void loom_product_run(const loom_product_plan *plan, int thread, const void *a, const void *b, float *c,
                      void *scratch) {
    (void)thread, (void)scratch;
    const loom_product *s = &plan->shape;
    cblas_sgemm(CblasRowMajor, s->a_transposed ? CblasTrans : CblasNoTrans, s->b_transposed ? CblasTrans : CblasNoTrans,
                (int)s->m, (int)s->n, (int)s->k, 1, a, (int)s->lda, b, (int)s->ldb, s->accumulate ? 1 : 0, c,
                (int)s->ldc);
}
