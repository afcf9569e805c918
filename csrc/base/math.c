#include "base/math.h"

#include <math.h>
#include <string.h>

/* ln 2 in two parts: LN2_HIGH has so few bits that its products with exponents are exact; LN2_LOW is the rest. */
static const double LN2_HIGH = 0x1.62e42fep-1, LN2_LOW = 0x1.f473de6af278fp-30, PER_LN2 = 0x1.71547652b82fep+0;

/* c[0] + c[1] x + .. + c[n-1] x^(n-1) */
static inline double polynomial(const double *c, int n, double x) {
    double sum = c[n - 1];
    for (int k = n - 2; k >= 0; k--) sum = c[k] + sum * x;
    return sum;
}

/* The nearest integer. The number must be far from the ends of the range of int64_t. */
static inline double nearest(double x) {
    return (double)(int64_t)(x < 0 ? x - 0.5 : x + 0.5);
}

/* Taylor's series of exp(r), sin(x) / x in x^2, and cos(x) in x^2; of artanh(s) / s in s^2 without its first term,
 * twice. */
static const double EXP[] = {
    1,          1,           1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
static const double SIN[] = {1,
                             -1.0 / 6,
                             1.0 / 120,
                             -1.0 / 5040,
                             1.0 / 362880,
                             -1.0 / 39916800,
                             1.0 / 6227020800,
                             -1.0 / 1307674368000,
                             1.0 / 355687428096000};
static const double COS[] = {1,
                             -1.0 / 2,
                             1.0 / 24,
                             -1.0 / 720,
                             1.0 / 40320,
                             -1.0 / 3628800,
                             1.0 / 479001600,
                             -1.0 / 87178291200,
                             1.0 / 20922789888000};
static const double ARTANH[] = {0,        2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9, 2.0 / 11,
                                2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21};
#define SERIES(c, x) polynomial(c, (int)(sizeof(c) / sizeof *(c)), x)

/* x = n ln 2 + r with |r| <= ln 2 / 2; the first omitted term of exp(r) is below 2^-57. */
double loom_exp(double x) {
    if (isnan(x)) return x;
    const double bounded = x > 1100 ? 1100 : x < -1100 ? -1100 : x, n = nearest(bounded * PER_LN2);
    const double r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
    return ldexp(SERIES(EXP, r), (int)n); /* ldexp is exact, or rounds once */
}

/* x = 2^n (1 + f) with 1 + f between sqrt(1/2) and sqrt(2); log(1 + f) = 2 artanh(s) with s = f / (2 + f), |s| < 0.172,
 * whose first term that is left out is below 2^-56 of the first. Of its first term, 2 s = f - s f, most is exact. */
double loom_log(double x) {
    if (isnan(x) || x == (double)INFINITY) return x;
    if (x <= 0) return x < 0 ? (double)NAN : (double)-INFINITY;
    int n = 0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        n = -54;
    }
    /* Subtracting the bits of sqrt(1/2) leaves n as the exponent; the rest of x is 1 + f. */
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int64_t exponent = (int64_t)(bits - 0x3FE6A09E667F3BCDu) >> 52;
    n += (int)exponent;
    bits -= (uint64_t)exponent << 52;
    memcpy(&x, &bits, sizeof x);
    const double f = x - 1, s = f / (2 + f);
    return n * LN2_HIGH + (n * LN2_LOW + (f - s * (f - SERIES(ARTANH, s * s))));
}

/* An angle as a quarter of a turn, 0 to 3, and what is left, of at most pi / 4: there the first terms of the series
 * that are left out are below 2^-56. */
static double from_quarter(double turns, int *quarter) {
    const double quarters = nearest(4 * turns);
    *quarter = (int)((int64_t)quarters & 3);
    return 6.283185307179586 * (turns - quarters / 4);
}

double loom_cos_of_turns(double turns) {
    int quarter;
    const double x = from_quarter(turns, &quarter);
    const double size = quarter % 2 ? x * SERIES(SIN, x * x) : SERIES(COS, x * x);
    return quarter == 1 || quarter == 2 ? -size : size;
}

double loom_sin_of_turns(double turns) {
    int quarter;
    const double x = from_quarter(turns, &quarter);
    const double size = quarter % 2 ? SERIES(COS, x * x) : x * SERIES(SIN, x * x);
    return quarter >= 2 ? -size : size;
}

double loom_power(double x, int64_t n) {
    double power = 1;
    for (; n > 0; n /= 2) {
        if (n % 2) power *= x;
        x *= x;
    }
    return power;
}
