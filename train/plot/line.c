#include "plot/line.h"

#include <math.h>

/* Sums over a window come from sums inside blocks of the window's size, up to each place and from each place: a window
 * is one block or parts of two. (Differences of sums from the very start would lose all that follows a huge value.) */
static void mean_around(double *out, const double *value, int64_t n, int64_t window, double *scratch) {
    const int64_t half = window / 2, block = 2 * half + 1;
    double *up_to = scratch, *from = scratch + n, *count = scratch + 2 * n; /* count[i]: the values before i that are
                                                                               not NaN */
    count[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        const double term = isnan(value[i]) ? 0 : value[i];
        up_to[i] = term + (i % block ? up_to[i - 1] : 0);
        count[i + 1] = count[i] + !isnan(value[i]);
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        const double term = isnan(value[i]) ? 0 : value[i];
        from[i] = term + (i < n - 1 && (i + 1) % block ? from[i + 1] : 0);
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t around = i < half ? i : half;
        const int64_t first = i - around, last = i + around < n ? i + around : n - 1;
        const bool in_one = first / block == last / block;
        const double sum = !in_one ? from[first] + up_to[last] : first % block ? from[first] : up_to[last];
        out[i] = isnan(value[i]) ? NAN : sum / (count[last + 1] - count[first]);
    }
}

void loom_smooth(double *out, const double *value, int64_t n, int64_t window, double *scratch) {
    mean_around(out, value, n, window / 2 + 1, scratch);
    mean_around(out, out, n, window / 2 + 1, scratch);
}

/* The points so far of one column of pixels. */
struct column {
    int64_t pixel, n;
    struct {
        int64_t at;
        double x, y; /* pixels */
    } low, high;
    bool broken; /* a value could not be shown: the line ends after this column */
};

/* A path that is being written. */
struct pen {
    loom_svg *svg;
    bool down;
    int64_t in_line, points; /* points since the pen was put down; points in all */
};

static void pen_up(struct pen *pen) {
    if (pen->down && pen->in_line == 1) loom_svg_write(pen->svg, "h0");
    pen->down = false;
    pen->in_line = 0;
}

static void pen_to(struct pen *pen, double x, double y) {
    loom_svg_point(pen->svg, pen->down ? 'L' : 'M', x, y);
    pen->down = true;
    pen->in_line++;
    pen->points++;
}

static void write_column(struct pen *pen, const struct column *column) {
    if (column->n > 0) {
        const bool low_first = column->low.at <= column->high.at;
        if (low_first) pen_to(pen, column->low.x, column->low.y);
        if (column->high.at != column->low.at) pen_to(pen, column->high.x, column->high.y);
        if (!low_first) pen_to(pen, column->low.x, column->low.y);
    }
    if (column->broken) pen_up(pen);
}

int64_t loom_line_path(loom_svg *svg, const loom_axis *x_axis, const loom_axis *y_axis, const double *x,
                       const double *y, int64_t n) {
    struct pen pen = {.svg = svg};
    struct column column = {.pixel = INT64_MIN};
    for (int64_t i = 0; i < n; i++) {
        const double px = loom_axis_pixel(x_axis, x[i]), py = loom_axis_pixel(y_axis, y[i]);
        if (isnan(px)) continue;
        if ((int64_t)floor(px) != column.pixel) {
            write_column(&pen, &column);
            column = (struct column){.pixel = (int64_t)floor(px)};
        }
        if (isnan(py)) {
            column.broken = true;
            continue;
        }
        if (column.n == 0 || py < column.low.y) column.low.at = i, column.low.x = px, column.low.y = py;
        if (column.n == 0 || py > column.high.y) column.high.at = i, column.high.x = px, column.high.y = py;
        column.n++;
    }
    write_column(&pen, &column);
    pen_up(&pen);
    return pen.points;
}
