#include "cpu/matmul_library.h"

#include <stdio.h>
#include <stdlib.h>

bool loom_tuned_matmul_create(loom_tuned_matmul **out, int threads, const loom_device_options *options,
                              loom_products products, bool faster, loom_error *error) {
    *out = NULL;
    const bool asked = products == LOOM_PRODUCTS_LIBRARY;
    const bool fp32 = asked || faster;
    const bool bf16 = loom_product_has_bf16() >= (asked ? LOOM_PRODUCT_BF16_EMULATED : LOOM_PRODUCT_BF16_AVX512);
    if (products == LOOM_PRODUCTS_OWN || (!fp32 && !bf16) || loom_product_obstacle()) return true;
    loom_tuned_matmul *matmul = calloc(1, sizeof *matmul);
    if (!matmul) return loom_fail(error, "no memory for the plans of matrix products");
    matmul->fp32 = fp32;
    matmul->bf16 = bf16;
    matmul->library_threaded = options->library_threads;
    if (!(matmul->products = loom_product_cache_create(threads, matmul->library_threaded, error))) {
        free(matmul);
        return false;
    }
    *out = matmul;
    return true;
}

void loom_tuned_matmul_destroy(loom_tuned_matmul *matmul) {
    if (matmul) loom_product_cache_destroy(matmul->products);
    free(matmul);
}

void loom_tuned_matmul_name(const loom_tuned_matmul *matmul, char *name, size_t size) {
    const char *obstacle = loom_product_obstacle();
    if (matmul && matmul->fp32)
        snprintf(name, size, "%s", loom_product_library());
    else if (obstacle)
        snprintf(name, size, "gptloom (%s %s)", loom_product_library(), obstacle);
    else
        snprintf(name, size, "gptloom");
}

bool loom_tuned_matmul_takes(const loom_tuned_matmul *matmul, loom_dtype dtype) {
    return matmul && ((matmul->fp32 && dtype == LOOM_F32) || (matmul->bf16 && dtype == LOOM_BF16));
}

const char *loom_tuned_matmul_library(void) {
    return loom_product_library();
}

const char *loom_tuned_matmul_bf16(const loom_tuned_matmul *matmul) {
    static const char *const instructions[] = {[LOOM_PRODUCT_BF16_EMULATED] = "emulation",
                                               [LOOM_PRODUCT_BF16_AVX512] = "AVX512_BF16",
                                               [LOOM_PRODUCT_BF16_AMX] = "AMX"};
    return matmul && matmul->bf16 ? instructions[loom_product_has_bf16()] : NULL;
}
