/* What the table "cpu" has beyond the definition: matrix products by a library. matmul_library.c implements this where
 * one is linked, matmul_plain.c where none is. */
#ifndef LOOM_CPU_TUNED_H
#define LOOM_CPU_TUNED_H

#include "gptloom/device.h"

typedef struct loom_tuned_matmul loom_tuned_matmul;

/* `library_threads`: a product is not cut into our tiles but threaded by the library. */
bool loom_tuned_matmul_create(loom_tuned_matmul **matmul, int threads, bool library_threads, loom_error *error);
void loom_tuned_matmul_destroy(loom_tuned_matmul *matmul);

/* "oneDNN 2.6.3", or "plain C". */
const char *loom_tuned_matmul_name(void);

/* Replaces in a copy of the definition's table what is done better here. The ops find their loom_tuned_matmul in the
 * device's implementation. */
void loom_tuned_matmul_install(loom_ops *ops);

#endif
