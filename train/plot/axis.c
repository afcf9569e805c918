#include "plot/axis.h"

#include "plot/format.h"

#include <math.h>

/* Whether an axis can show a value: it must be finite, and so small that differences of such values are finite too. */
static bool can_show(double value) {
    return fabs(value) <= 1e300;
}

void loom_range_add(loom_range *range, double value) {
    if (!can_show(value)) return;
    if (value > 0 && !(range->low_positive > 0 && range->low_positive <= value)) range->low_positive = value;
    if (range->n == 0 || value < range->low) range->low = value;
    if (range->n == 0 || value > range->high) range->high = value;
    range->n++;
}

/* 1, 2 or 5 times a power of ten: the nearest such number to `size`. */
static double nice_step(double size) {
    const double power = pow(10, floor(log10(size)));
    const double mantissa = size / power;
    return (mantissa < 1.5 ? 1 : mantissa < 3.5 ? 2 : mantissa < 7.5 ? 5 : 10) * power;
}

static void linear_ticks(loom_axis *axis, double spacing, double least_step) {
    const double pixels = fabs(axis->to - axis->from);
    const double wanted = fmin(fmax(pixels / spacing, 1), LOOM_AXIS_MAX_TICKS / 4);
    axis->tick_step = fmax(nice_step((axis->high - axis->low) / wanted), least_step);
    const double first = ceil(axis->low / axis->tick_step - 1e-9), last = floor(axis->high / axis->tick_step + 1e-9);
    for (double i = first; i <= last && axis->n_ticks < LOOM_AXIS_MAX_TICKS; i++)
        axis->tick[axis->n_ticks++] = i * axis->tick_step;
}

/* Ticks at powers of ten: only at every second or third if there are many, and also at 2 and 5 times them if there are
 * few. */
static void logarithmic_ticks(loom_axis *axis, double spacing) {
    const double decades = log10(axis->high) - log10(axis->low);
    const double pixels_per_decade = fabs(axis->to - axis->from) / decades;
    const int stride = (int)fmax(1, ceil(spacing / pixels_per_decade));
    const double between[] = {1, 2, 5};
    const int n_between = pixels_per_decade > 2 * spacing ? 3 : 1;
    for (int power = (int)floor(log10(axis->low)); power <= (int)ceil(log10(axis->high)); power++) {
        if (power % stride) continue;
        for (int i = 0; i < n_between && axis->n_ticks < LOOM_AXIS_MAX_TICKS; i++) {
            const double tick = between[i] * pow(10, power);
            if (tick >= axis->low * (1 - 1e-9) && tick <= axis->high * (1 + 1e-9)) axis->tick[axis->n_ticks++] = tick;
        }
    }
}

loom_axis loom_axis_make(const loom_range *range, bool logarithmic, bool zero, double from, double to, double spacing,
                         double least_step) {
    loom_axis axis = {.low = range->low, .high = range->high, .from = from, .to = to};
    axis.logarithmic = logarithmic && range->low_positive > 0;
    if (range->n == 0) axis.high = 1;
    if (axis.logarithmic) {
        axis.low = range->low_positive;
        if (axis.high < axis.low * 1.1) axis.low /= 1.5, axis.high *= 1.5;
        logarithmic_ticks(&axis, spacing);
        return axis;
    }
    if (zero && axis.low > 0) axis.low = 0;
    /* In a range smaller than this, ticks would only show the rounding of the values. */
    const double least = fmax(fabs(axis.low), fabs(axis.high)) * 1e-9;
    if (!(axis.high - axis.low > least)) {
        const double around = axis.high != 0 ? fabs(axis.high) / 2 : 0.5;
        axis.low -= around;
        axis.high += around;
    }
    linear_ticks(&axis, spacing, least_step);
    return axis;
}

double loom_axis_pixel(const loom_axis *axis, double value) {
    if (!can_show(value) || (axis->logarithmic && value <= 0)) return NAN;
    double low = axis->low, high = axis->high;
    if (axis->logarithmic) low = log(low), high = log(high), value = log(value);
    const double place = (value - low) / (high - low);
    return axis->from + place * (axis->to - axis->from);
}

void loom_axis_label(const loom_axis *axis, int tick, char *text, size_t size) {
    const double value = axis->tick[tick];
    if (axis->logarithmic)
        loom_scaled_number(value, value, value / 10, true, text, size);
    else
        loom_scaled_number(value, fmax(fabs(axis->low), fabs(axis->high)), axis->tick_step, false, text, size);
}
