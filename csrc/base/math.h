/* Functions that the C library has too, but whose bits there differ between its versions and between processors. These
 * give the same bits everywhere: they consist only of additions, multiplications and divisions of doubles, in an order
 * that no compiler changes, and are compiled without fused multiply-adds. Their error is below two units in the last
 * place unless stated otherwise. */
#ifndef LOOM_BASE_MATH_H
#define LOOM_BASE_MATH_H

#include <stdint.h>

double loom_exp(double x);
double loom_log(double x);

/* The cosine and the sine of an angle given in turns (one turn is 2 pi). `turns` is finite and below 2^60. */
double loom_cos_of_turns(double turns);
double loom_sin_of_turns(double turns);

/* x to the power of n, n >= 0. The error is up to n units in the last place. */
double loom_power(double x, int64_t n);

#endif
