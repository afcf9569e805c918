/* The tables of ops that the sources in this directory are compiled to (real.h). */
#ifndef LOOM_CPU_TABLES_H
#define LOOM_CPU_TABLES_H

#include "gptloom/device.h"

typedef struct loom_cpu_table {
    const char *instructions; /* "AVX2"; NULL of the definition and of the oracle, which have the same bits with all */
    const loom_ops *(*ops)(void);
    /* Replaces in a copy of the ops the matrix products by those of the library that is linked; NULL where that is not done,
     * in the definition and the oracle. */
    void (*install_products)(loom_ops *ops);
    bool library_is_faster; /* than the table's own products, of fp32 */
    /* Floating-point operations per second of its multiply-adds in registers, on `threads` threads, as measured for so many
     * seconds. */
    double (*peak)(int threads, double seconds);
} loom_cpu_table;

extern const loom_cpu_table loom_cpu_definition, loom_cpu_oracle;

/* The table of the best set of instructions that this processor has; where LOOM_INSTRUCTIONS names one (avx512, avx2, sse2;
 * neon), of that one. NULL with an error where it names none, or one that the processor does not have. */
const loom_cpu_table *loom_cpu_best_table(loom_error *error);

#endif
