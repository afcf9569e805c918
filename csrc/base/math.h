/* Functions that the C library has too, but with other bits from version to version and from processor to processor. These
 * have the same everywhere: they are made of additions, multiplications and divisions of doubles alone, in an order that
 * no compiler changes, and compiled without fused multiply-adds. Where nothing else is said they are off by less than two
 * units in the last place. */
#ifndef LOOM_BASE_MATH_H
#define LOOM_BASE_MATH_H

#include <stdint.h>

double loom_exp(double x);
double loom_log(double x);

/* The cosine and the sine of so many turns, a turn being 2 pi. `turns` is finite and below 2^60. */
double loom_cos_of_turns(double turns);
double loom_sin_of_turns(double turns);

/* x to the power of n, n >= 0: off by up to n units. */
double loom_power(double x, int64_t n);

#endif
