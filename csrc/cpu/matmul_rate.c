#include "cpu/matmul_library.h"

#include "base/clock.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* Measures how fast the library multiplies bf16. Its own products are used, because the instructions are not accessible
 * in another way. The matrices are large enough to fill all of the library's blocks, and small enough for a core's own
 * cache. */
enum { M = 256, N = 256, K = 1024 };

/* The memory of one thread: A, B, C and the library's scratch, one after the other. */
enum { A_BYTES = M * K * 2, B_BYTES = K * N * 2, C_BYTES = M * N * (int)sizeof(float) };

/* The best rate of one thread that runs the plan repeatedly for `seconds`. */
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
    memset(memory, 0x3C, bytes * (size_t)runners); /* this byte pattern gives small numbers in both types */
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
