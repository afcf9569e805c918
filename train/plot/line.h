/* Lines through many points: smoothing, and paths that stay small. */
#ifndef LOOM_TRAIN_PLOT_LINE_H
#define LOOM_TRAIN_PLOT_LINE_H

#include "plot/axis.h"
#include "plot/svg.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out[i] is the mean of about `window` values around i, or NaN if value[i] is NaN; other NaNs are left out of the
 * means. The mean is taken twice, which gives near values more weight (a triangular window) and leaves no corners. Near
 * the beginning, where a loss falls steeply, the window shrinks so that it stays centred; at the end it is cut off.
 * `scratch` has 3 * n + 1 values. out may be the same array as value. */
void loom_smooth(double *out, const double *value, int64_t n, int64_t window, double *scratch);

/* Writes the points (x[i], y[i]) as the d attribute of a path; x must increase. If a column of pixels has more than two
 * points, only its lowest and highest are kept. So a path has at most two points per column, however long the run, and
 * no spike is lost. The line breaks at values that an axis cannot show. A single point becomes a dot (if line caps are
 * round). Returns the number of points written. */
int64_t loom_line_path(loom_svg *svg, const loom_axis *x_axis, const loom_axis *y_axis, const double *x,
                       const double *y, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
