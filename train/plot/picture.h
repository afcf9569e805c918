/* What the parts of the picture share: the page, the colours, the runs with what is computed from them once. */
#ifndef LOOM_TRAIN_PLOT_PICTURE_H
#define LOOM_TRAIN_PLOT_PICTURE_H

#include "plot/plot.h"
#include "plot/axis.h"

/* The page, in pixels; it grows by a row with every run. */
enum { LOOM_PAGE_WIDTH = 1000, LOOM_PAGE_MARGIN = 28, LOOM_TABLE_TOP = 70, LOOM_TABLE_ROW = 21 };

struct loom_picture_run {
    const loom_curves *curves;
    double *memory;              /* of all below */
    double *x;                   /* in the unit of the x axis */
    double *smooth[LOOM_CURVES]; /* NULL: this curve is shown as it is */
    double *val_x, *val_loss;    /* where it was measured */
    int64_t n_val;
    int64_t window; /* of the smoothing; 1: none */
    const char *colour, *val_colour, *dash;
};

struct loom_picture {
    loom_svg *svg;
    struct loom_picture_run run[LOOM_PLOT_MAX_RUNS];
    int n_runs;
    const loom_plot_options *options;
    const char *x_title;
};

/* The values that a curve's strong line and figures show, one a row. */
const double *loom_picture_shown(const struct loom_picture_run *run, loom_curve curve);

/* A short piece of line as a key, with a ring on it for validation. */
void loom_picture_sample(struct loom_picture *picture, double x, double y, double length, const char *colour,
                         const char *dash, double opacity, bool ring);

/* The table of last values: the key of several runs, and the figures of one. */
void loom_picture_table(struct loom_picture *picture);

/* One curve of all runs, with axes. The loss comes with the validation loss, the key to the lines, and its last values
 * beside it. */
struct loom_panel {
    loom_curve curve;
    const char *title, *unit;
    double left, top, right, bottom;
    bool zero;                   /* the y axis begins at zero */
    double log_above;            /* the y axis is logarithmic from this ratio of highest to lowest value; 0: never */
    double x_spacing, y_spacing; /* of the ticks, about */
    loom_axis x, y;              /* made by drawing */
};
void loom_picture_panel(struct loom_picture *picture, struct loom_panel *panel);

#endif
