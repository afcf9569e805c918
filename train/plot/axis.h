/* One axis of a panel: the range that it shows, the pixel of a value, its ticks and their labels. */
#ifndef LOOM_TRAIN_PLOT_AXIS_H
#define LOOM_TRAIN_PLOT_AXIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_AXIS_MAX_TICKS = 24 };

typedef struct loom_axis {
    double low, high; /* low < high; on a logarithmic axis both are positive */
    bool logarithmic;
    double from, to; /* the pixels of low and high */
    int n_ticks;
    double tick[LOOM_AXIS_MAX_TICKS];
    double tick_step; /* distance between ticks of a linear axis; 0 on a logarithmic one */
} loom_axis;

/* The range of values that an axis must show. Add all values, then make the axis. A zeroed struct is an empty range. */
typedef struct loom_range {
    int64_t n;
    double low, high, low_positive;
} loom_range;

/* Extends the range to a value. Values that are not finite, or whose magnitude is above 1e300, are left out. */
void loom_range_add(loom_range *range, double value);

/* An axis for a range, from pixel `from` to pixel `to`, with ticks about `spacing` pixels apart, but not nearer than
 * `least_step` (1 for whole numbers, 0: any). A linear axis with `zero` begins at 0 when all values are positive. An
 * empty range gives 0 to 1; a range of one value lies around it. A logarithmic axis over a range with no positive value
 * becomes linear. */
loom_axis loom_axis_make(const loom_range *range, bool logarithmic, bool zero, double from, double to, double spacing,
                         double least_step);

/* The pixel of a value; NaN for a value that the axis cannot show. */
double loom_axis_pixel(const loom_axis *axis, double value);

/* The label of a tick: "0.5", "2000", "20k", "1.5M", "2e-4". */
void loom_axis_label(const loom_axis *axis, int tick, char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
