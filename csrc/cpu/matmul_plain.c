#include "cpu/tuned.h"

#include <stdio.h>

/* No library is linked: the table computes matrix products. */

bool loom_tuned_matmul_create(loom_tuned_matmul **matmul, int threads, const loom_device_options *options,
                              loom_products products, bool faster, loom_error *error) {
    (void)threads, (void)options, (void)faster;
    *matmul = NULL;
    return products != LOOM_PRODUCTS_LIBRARY ||
           loom_fail(error, "this program is built without a library for matrix products (MATMUL=onednn or openblas)");
}

void loom_tuned_matmul_destroy(loom_tuned_matmul *matmul) {
    (void)matmul;
}

void loom_tuned_matmul_name(const loom_tuned_matmul *matmul, char *name, size_t size) {
    (void)matmul;
    snprintf(name, size, "gptloom");
}

bool loom_tuned_matmul_takes(const loom_tuned_matmul *matmul, loom_dtype dtype) {
    (void)matmul, (void)dtype;
    return false;
}

const char *loom_tuned_matmul_library(void) {
    return "no library";
}

const char *loom_tuned_matmul_bf16(const loom_tuned_matmul *matmul) {
    (void)matmul;
    return NULL;
}

bool loom_tuned_matmul_bf16_rate(const loom_tuned_matmul *matmul, int threads, double seconds, double *rate,
                                 loom_error *error) {
    (void)matmul, (void)threads, (void)seconds, (void)rate;
    return loom_fail(error, "no library multiplies bf16");
}
