#include "cpu/tuned.h"

/* No library is linked: the definition computes matrix products. */

bool loom_tuned_matmul_create(loom_tuned_matmul **matmul, int threads, bool library_threads, loom_error *error) {
    (void)threads, (void)library_threads, (void)error;
    *matmul = NULL;
    return true;
}

void loom_tuned_matmul_destroy(loom_tuned_matmul *matmul) {
    (void)matmul;
}

const char *loom_tuned_matmul_name(void) {
    return "plain C";
}

void loom_tuned_matmul_install(loom_ops *ops) {
    (void)ops;
}
