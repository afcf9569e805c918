#include "cpu/matmul_library.h"

#include "base/clock.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* How fast the library multiplies bf16: there is no other way to the instructions it does so with. Matrices of a size
 * that all of its blocks fill, and that a core's own cache holds. */
enum { M = 256, N = 256, K = 1024 };

/* A, B, C and the library's scratch of a thread, one after the other. */
enum { A_BYTES = M * K * 2, B_BYTES = K * N * 2, C_BYTES = M * N * (int)sizeof(float) };

/* The best rate of one thread that runs the plan over and over for `seconds`. */
static double best_rate(const loom_product_plan *plan, int thread, char *memory, double seconds) {
    const double start = loom_seconds_now();
    double best = 0;
    for (double now = start; now - start < seconds;) {
        loom_product_run(plan, thread, memory, memory + A_BYTES, (float *)(memory + A_BYTES + B_BYTES),
                         memory + A_BYTES + B_BYTES + C_BYTES);
        const double after = loom_seconds_now(), rate = 2.0 * M * N * K / (after - now);
        if (rate > best) best = rate;
        now = after;
    }
    return best;
}

bool loom_tuned_matmul_bf16_rate(const loom_tuned_matmul *matmul, int threads, double seconds, double *rate,
                                 loom_error *error) {
    const loom_product shape = {.dtype = LOOM_BF16, .m = M, .n = N, .k = K, .lda = K, .ldb = N, .ldc = N};
    const loom_product_plan *plan = loom_product_prepare(matmul->products, &shape, error);
    if (!plan) return false;
    const int runners = matmul->library_threaded ? 1 : threads;
    const size_t bytes = (A_BYTES + B_BYTES + C_BYTES + loom_product_scratch(plan) + 255) / 256 * 256;
    char *memory = aligned_alloc(256, bytes * (size_t)runners);
    if (!memory) return loom_fail(error, "no memory to measure the rate of matrix products");
    memset(memory, 0x3C, bytes * (size_t)runners); /* small numbers in both types */
    double total = 0;
    const int before = omp_get_max_threads();
    if (!matmul->library_threaded) omp_set_num_threads(1); /* as in loom_tiles_run */
#pragma omp parallel num_threads(runners) if (runners > 1) reduction(+ : total)
    total += best_rate(plan, omp_get_thread_num(), memory + bytes * (size_t)omp_get_thread_num(), seconds);
    omp_set_num_threads(before);
    free(memory);
    *rate = total;
    return true;
}
