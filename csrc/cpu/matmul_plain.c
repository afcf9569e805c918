#include "cpu/tuned.h"

#include <stdio.h>

/* No library is linked: the definition computes matrix products. */

bool loom_tuned_matmul_create(loom_tuned_matmul **matmul, int threads, const loom_device_options *options,
                              loom_error *error) {
    (void)threads, (void)options, (void)error;
    *matmul = NULL;
    return true;
}

void loom_tuned_matmul_destroy(loom_tuned_matmul *matmul) {
    (void)matmul;
}

void loom_tuned_matmul_name(const loom_tuned_matmul *matmul, char *name, size_t size) {
    (void)matmul;
    snprintf(name, size, "plain C");
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
