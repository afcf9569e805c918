/* Lines through many points: smoothing, and paths that stay small. */
#ifndef LOOM_TRAIN_PLOT_LINE_H
#define LOOM_TRAIN_PLOT_LINE_H

#include "plot/axis.h"
#include "plot/svg.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out[i] = the mean of about `window` values around i, NaN where value[i] is NaN; other NaNs are left out of means. The
 * mean is taken twice, which weights near values more (a triangle) and leaves no corners. Near the beginning, where a
 * loss falls steeply, the window shrinks so that it stays centred; at the end it is cut. `scratch` has 3 * n + 1
 * values; out may be value. */
void loom_smooth(double *out, const double *value, int64_t n, int64_t window, double *scratch);

/* The points (x[i], y[i]) as the d attribute of a path; x rises. A pixel column with more than two points keeps the
 * lowest and the highest, so a path has at most two points a column, however long the run, and no spike is lost. The
 * line breaks where an axis cannot show a value; a point alone becomes a dot (where line caps are round). Returns the
 * number of points written. */
int64_t loom_line_path(loom_svg *svg, const loom_axis *x_axis, const loom_axis *y_axis, const double *x,
                       const double *y, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
