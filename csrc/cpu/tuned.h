/* What the device "cpu" has beyond its table of ops: matrix products by a library. matmul_library.c implements this where
 * one is linked, matmul_plain.c where none is. A loom_tuned_matmul that is NULL stands for none: the table's own products
 * are taken, none is linked, or the one that is cannot work in this process. */
#ifndef LOOM_CPU_TUNED_H
#define LOOM_CPU_TUNED_H

#include "gptloom/device.h"

typedef struct loom_tuned_matmul loom_tuned_matmul;

/* Takes library_threads of the options. `products` is what was asked for; `faster` says that of fp32 the library's are
 * faster than the table's. */
bool loom_tuned_matmul_create(loom_tuned_matmul **matmul, int threads, const loom_device_options *options,
                              loom_products products, bool faster, loom_error *error);
void loom_tuned_matmul_destroy(loom_tuned_matmul *matmul);

/* Who multiplies fp32: "oneDNN 2.6.3", or "gptloom", with the reason where a library that is linked cannot. */
void loom_tuned_matmul_name(const loom_tuned_matmul *matmul, char *name, size_t size);

/* Whether the library multiplies what is stored so, and its name. */
bool loom_tuned_matmul_takes(const loom_tuned_matmul *matmul, loom_dtype dtype);
const char *loom_tuned_matmul_library(void);

/* What bf16 is multiplied with: "AVX512_BF16", "AMX", or "emulation" where it was asked for; NULL where it is widened. */
const char *loom_tuned_matmul_bf16(const loom_tuned_matmul *matmul);

/* Floating-point operations per second of its products of bf16 that are not widened, on `threads` threads. */
bool loom_tuned_matmul_bf16_rate(const loom_tuned_matmul *matmul, int threads, double seconds, double *rate,
                                 loom_error *error);

#endif
