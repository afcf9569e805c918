/* Whether numbers in memory are finite: neither infinite nor NaN. The test looks at the bits of the exponents and runs
 * at the speed of memory. */
#ifndef LOOM_OPS_FINITE_H
#define LOOM_OPS_FINITE_H

#include "gptloom/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `n` numbers of fp32, bf16, fp16 or fp64, at any alignment. */
bool loom_all_finite(const void *data, int64_t n, loom_dtype dtype);

/* The index of the first number that is not finite; `n` if all are finite. */
int64_t loom_first_not_finite(const void *data, int64_t n, loom_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif
