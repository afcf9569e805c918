/* Whether numbers in memory are numbers: neither infinite nor NaN. By the bits of their exponents, as fast as memory
 * is read. */
#ifndef LOOM_OPS_FINITE_H
#define LOOM_OPS_FINITE_H

#include "gptloom/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `n` numbers of fp32, bf16, fp16 or fp64, at any alignment. */
bool loom_all_finite(const void *data, int64_t n, loom_dtype dtype);

/* The first that is not finite; `n` where all are. */
int64_t loom_first_not_finite(const void *data, int64_t n, loom_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif
