/* What the parts of the picture share: the page, the colours, and the runs with the values that are computed from them
 * once. */
#ifndef LOOM_TRAIN_PLOT_PICTURE_H
#define LOOM_TRAIN_PLOT_PICTURE_H

#include "plot/plot.h"
#include "plot/axis.h"

/* The page, in pixels; it grows by a row with every run. */
enum { LOOM_PAGE_WIDTH = 1000, LOOM_PAGE_MARGIN = 28, LOOM_TABLE_TOP = 70, LOOM_TABLE_ROW = 21 };

struct loom_picture_run {
    const loom_curves *curves;
    double *memory;              /* the memory of all arrays below */
    double *x;                   /* x values, in the unit of the x axis */
    double *smooth[LOOM_CURVES]; /* the smoothed curve; NULL: the curve is shown unsmoothed */
    double *val_x, *val_loss;    /* the points at which the validation loss was measured */
    int64_t n_val;
    int64_t window; /* the window of the smoothing; 1: no smoothing */
    const char *colour, *val_colour, *dash;
};

struct loom_picture {
    loom_svg *svg;
    struct loom_picture_run run[LOOM_PLOT_MAX_RUNS];
    int n_runs;
    const loom_plot_options *options;
    const char *x_title;
};

/* The values, one per row, that a curve's strong line and the table's figures show. */
const double *loom_picture_shown(const struct loom_picture_run *run, loom_curve curve);

/* Draws a short sample of a line for a key, with a ring on it for validation. */
void loom_picture_sample(struct loom_picture *picture, double x, double y, double length, const char *colour,
                         const char *dash, double opacity, bool ring);

/* Draws the table of last values: for several runs also their key, for one run its figures. */
void loom_picture_table(struct loom_picture *picture);

/* One curve of all runs, with axes. The panel of the loss also has the validation loss, the key to the lines, and the
 * last values beside it. */
struct loom_panel {
    loom_curve curve;
    const char *title, *unit;
    double left, top, right, bottom;
    bool zero;                   /* the y axis begins at zero */
    double log_above;            /* the axis is logarithmic if highest / lowest exceeds this; 0: never */
    double x_spacing, y_spacing; /* approximate distance between ticks, in pixels */
    loom_axis x, y;              /* set when the panel is drawn */
};
void loom_picture_panel(struct loom_picture *picture, struct loom_panel *panel);

#endif
