#include "cpu/matmul_library.h"

#include <stdio.h>
#include <stdlib.h>

bool loom_tuned_matmul_create(loom_tuned_matmul **out, int threads, const loom_device_options *options,
                              loom_error *error) {
    *out = NULL;
    if (loom_product_obstacle()) return true;
    loom_tuned_matmul *matmul = calloc(1, sizeof *matmul);
    if (!matmul) return loom_fail(error, "no memory for the plans of matrix products");
    matmul->alone = options->library_threads;
    matmul->bf16 = options->bf16 == LOOM_BF16_LIBRARY ? loom_product_has_bf16() != LOOM_PRODUCT_BF16_NONE
                   : options->bf16 == LOOM_BF16_AUTO  ? loom_product_has_bf16() >= LOOM_PRODUCT_BF16_AVX512
                                                      : false;
    if (!(matmul->products = loom_product_cache_create(threads, matmul->alone, error))) {
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
    if (matmul)
        snprintf(name, size, "%s", loom_product_library());
    else
        snprintf(name, size, "plain C, which is slow: %s %s", loom_product_library(), loom_product_obstacle());
}

const char *loom_tuned_matmul_bf16(const loom_tuned_matmul *matmul) {
    static const char *const instructions[] = {[LOOM_PRODUCT_BF16_EMULATED] = "emulation",
                                               [LOOM_PRODUCT_BF16_AVX512] = "AVX512_BF16",
                                               [LOOM_PRODUCT_BF16_AMX] = "AMX"};
    return matmul && matmul->bf16 ? instructions[loom_product_has_bf16()] : NULL;
}
