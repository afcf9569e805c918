/* Matrix products by a library, which the device "cpu" has beyond its table of ops. matmul_library.c implements this
 * interface if a library is linked, matmul_plain.c if none is. A NULL loom_tuned_matmul means that the table's own
 * products are used, because they were asked for, no library is linked, or the linked library cannot work in this
 * process. */
#ifndef LOOM_CPU_TUNED_H
#define LOOM_CPU_TUNED_H

#include "gptloom/device.h"

typedef struct loom_tuned_matmul loom_tuned_matmul;

/* Uses library_threads of the options. `products` is what was asked for. `faster` says that for fp32 the library's
 * products are faster than the table's. */
bool loom_tuned_matmul_create(loom_tuned_matmul **matmul, int threads, const loom_device_options *options,
                              loom_products products, bool faster, loom_error *error);
void loom_tuned_matmul_destroy(loom_tuned_matmul *matmul);

/* Writes what multiplies fp32: "oneDNN 2.6.3", or "gptloom", with the reason if a linked library cannot work. */
void loom_tuned_matmul_name(const loom_tuned_matmul *matmul, char *name, size_t size);

/* Whether the library multiplies matrices of this dtype, and the library's name. */
bool loom_tuned_matmul_takes(const loom_tuned_matmul *matmul, loom_dtype dtype);
const char *loom_tuned_matmul_library(void);

/* How bf16 is multiplied: "AVX512_BF16", "AMX", or "emulation" if it was asked for; NULL if bf16 is converted to
 * fp32. */
const char *loom_tuned_matmul_bf16(const loom_tuned_matmul *matmul);

/* Measures the floating-point operations per second of the library's native bf16 products, on `threads` threads. */
bool loom_tuned_matmul_bf16_rate(const loom_tuned_matmul *matmul, int threads, double seconds, double *rate,
                                 loom_error *error);

#endif
