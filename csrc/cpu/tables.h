/* The tables of ops that the sources in this directory are compiled to (real.h). */
#ifndef LOOM_CPU_TABLES_H
#define LOOM_CPU_TABLES_H

#include "gptloom/device.h"

typedef struct loom_cpu_table {
    const char *instructions; /* as in "AVX2"; NULL for the definition and the oracle, whose bits do not depend on it */
    const loom_ops *(*ops)(void);
    /* In a copy of the ops, replaces the matrix products by those of the linked library. NULL for the definition and
     * the oracle, which do not use it. */
    void (*install_products)(loom_ops *ops);
    bool library_is_faster; /* than the table's own products, for fp32 */
    /* Floating-point operations per second of the table's multiply-adds in registers, on `threads` threads, measured
     * for `seconds`. */
    double (*peak)(int threads, double seconds);
} loom_cpu_table;

extern const loom_cpu_table loom_cpu_definition, loom_cpu_oracle;

/* Returns the table of the best instruction set that this processor has, or of the set that LOOM_INSTRUCTIONS names
 * (avx512, avx2, sse2; neon). Returns NULL with an error if LOOM_INSTRUCTIONS names no set, or one that the processor
 * does not have. */
const loom_cpu_table *loom_cpu_best_table(loom_error *error);

#endif
