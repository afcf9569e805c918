#include "plot/picture.h"
#include "plot/line.h"
#include "plot/format.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Makes a panel's axes from all values that it will show. */
static void make_axes(const struct loom_picture *picture, struct loom_panel *panel) {
    loom_range x = {0}, y = {0};
    for (int r = 0; r < picture->n_runs; r++) {
        const struct loom_picture_run *run = &picture->run[r];
        for (int64_t i = 0; i < run->curves->n; i++) {
            loom_range_add(&x, run->x[i]);
            loom_range_add(&y, run->curves->column[panel->curve][i]);
        }
        for (int64_t i = 0; panel->curve == LOOM_CURVE_LOSS && i < run->n_val; i++)
            loom_range_add(&y, run->val_loss[i]);
    }
    panel->x = loom_axis_make(&x, picture->options->log_x, x.low < x.high / 10, panel->left, panel->right,
                              panel->x_spacing, picture->options->x == LOOM_PLOT_TIME ? 0 : 1);
    const bool logarithmic = panel->log_above > 0 && y.low > 0 && y.low <= y.high / panel->log_above;
    panel->y = loom_axis_make(&y, logarithmic, panel->zero, panel->bottom - 4, panel->top + 4, panel->y_spacing, 0);
}

static void draw_axes(struct loom_picture *picture, const struct loom_panel *panel) {
    loom_svg *svg = picture->svg;
    char text[64];
    loom_svg_write(svg, "<path d=\"");
    for (int i = 0; i < panel->y.n_ticks; i++)
        loom_svg_write(svg, "M%.1f %.1fH%.1f", panel->left, loom_axis_pixel(&panel->y, panel->y.tick[i]), panel->right);
    for (int i = 0; i < panel->x.n_ticks; i++)
        loom_svg_write(svg, "M%.1f %.1fV%.1f", loom_axis_pixel(&panel->x, panel->x.tick[i]), panel->top, panel->bottom);
    loom_svg_write(svg, "\" stroke=\"" LOOM_GRID "\"/>\n");
    loom_svg_write(svg, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#9aa1a9\"/>\n", panel->left, panel->bottom, panel->right);

    loom_svg_write(svg, "<g font-size=\"11\" fill=\"" LOOM_QUIET "\">\n");
    for (int i = 0; i < panel->y.n_ticks; i++) {
        loom_axis_label(&panel->y, i, text, sizeof text);
        loom_svg_label(svg, panel->left - 7, loom_axis_pixel(&panel->y, panel->y.tick[i]) + 4, "end", "", text);
    }
    for (int i = 0; i < panel->x.n_ticks; i++) {
        loom_axis_label(&panel->x, i, text, sizeof text);
        loom_svg_label(svg, loom_axis_pixel(&panel->x, panel->x.tick[i]), panel->bottom + 16, "middle", "", text);
    }
    loom_svg_label(svg, (panel->left + panel->right) / 2, panel->bottom + 32, "middle", "", picture->x_title);
    loom_svg_write(svg, "</g>\n");
    loom_svg_write(svg,
                   "<text x=\"%.1f\" y=\"%.1f\" font-size=\"13\" font-weight=\"600\" fill=\"" LOOM_INK "\">%s "
                   "<tspan font-size=\"11\" font-weight=\"400\" fill=\"" LOOM_QUIET "\">%s</tspan></text>\n",
                   panel->left, panel->top - 9, panel->title, panel->unit);
}

/* Draws one line of a run; a line of a single point becomes a visible dot. */
static void draw_line(struct loom_picture *picture, const struct loom_panel *panel, const struct loom_picture_run *run,
                      const double *x, const double *y, int64_t n, const char *colour, double width, double opacity) {
    loom_svg_write(picture->svg, "<path d=\"");
    const int64_t points = loom_line_path(picture->svg, &panel->x, &panel->y, x, y, n);
    loom_svg_write(picture->svg, "\" stroke=\"%s\" stroke-width=\"%g\" opacity=\"%g\"%s/>\n", colour,
                   points == 1 ? 5 : width, opacity, run->dash);
}

/* Draws bars along the upper edge where the loss was not finite, because a line that only stops is easy to miss. */
static void draw_not_finite(struct loom_picture *picture, const struct loom_panel *panel,
                            const struct loom_picture_run *run) {
    const double *loss = run->curves->column[LOOM_CURVE_LOSS];
    double first = NAN, last = NAN; /* the pixels of the bar that is being extended */
    bool any = false;
    for (int64_t i = 0; i <= run->curves->n; i++) {
        const bool end = i == run->curves->n;
        const double x = end ? NAN : loom_axis_pixel(&panel->x, run->x[i]);
        if (!end && (!isnan(loss[i]) || isnan(x))) continue;
        const bool goes_on = !end && !isnan(first) && (x <= last + 3 || (i > 0 && isnan(loss[i - 1])));
        if (!isnan(first) && !goes_on) {
            loom_svg_write(picture->svg, "%sM%.1f %.1fH%.1f", any ? "" : "<path d=\"", first - 1.5, panel->top + 1,
                           last + 1.5);
            any = true;
        }
        if (!goes_on) first = x;
        last = x;
    }
    if (any)
        loom_svg_write(picture->svg, "\" stroke=\"#b00020\" stroke-width=\"5\" stroke-linecap=\"butt\">"
                                     "<title>the loss was not finite here</title></path>\n");
}

static void draw_validation(struct loom_picture *picture, const struct loom_panel *panel,
                            const struct loom_picture_run *run) {
    loom_svg *svg = picture->svg;
    draw_line(picture, panel, run, run->val_x, run->val_loss, run->n_val, run->val_colour, 1.3, 1);
    loom_svg_write(svg, "<g fill=\"#fff\" stroke=\"%s\" stroke-width=\"1.3\">\n", run->val_colour);
    double previous = -100;
    for (int64_t i = 0; i < run->n_val; i++) {
        const double x = loom_axis_pixel(&panel->x, run->val_x[i]);
        const double y = loom_axis_pixel(&panel->y, run->val_loss[i]);
        const bool crowded = x < previous + 12 && i != run->n_val - 1;
        if (isnan(x) || isnan(y) || crowded) continue;
        char at[64], loss[64];
        loom_number_label(run->val_x[i], 4, true, at, sizeof at);
        loom_number_label(run->val_loss[i], 4, false, loss, sizeof loss);
        loom_svg_write(svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.8\"><title>%s %s: val loss %s</title></circle>\n", x,
                       y, picture->x_title, at, loss);
        previous = x;
    }
    loom_svg_write(svg, "</g>\n");
}

static void draw_curves(struct loom_picture *picture, const struct loom_panel *panel) {
    const double faint = picture->n_runs > 1 ? 0.18 : 0.28;
    loom_svg_write(picture->svg, "<g fill=\"none\" stroke-linejoin=\"round\" stroke-linecap=\"round\">\n");
    for (int r = 0; r < picture->n_runs; r++) {
        const struct loom_picture_run *run = &picture->run[r];
        if (run->smooth[panel->curve])
            draw_line(picture, panel, run, run->x, run->curves->column[panel->curve], run->curves->n, run->colour, 1,
                      faint);
    }
    for (int r = 0; r < picture->n_runs; r++) {
        const struct loom_picture_run *run = &picture->run[r];
        draw_line(picture, panel, run, run->x, loom_picture_shown(run, panel->curve), run->curves->n, run->colour, 1.8,
                  1);
    }
    for (int r = 0; r < picture->n_runs && panel->curve == LOOM_CURVE_LOSS; r++) {
        draw_validation(picture, panel, &picture->run[r]);
        draw_not_finite(picture, panel, &picture->run[r]);
    }
    loom_svg_write(picture->svg, "</g>\n");
}

/* Explains the kinds of line, above the loss panel at the right. */
static void draw_key(struct loom_picture *picture, const struct loom_panel *panel) {
    const struct loom_picture_run *run = &picture->run[0];
    const bool one = picture->n_runs == 1;
    bool any_smoothed = false, any_val = false;
    for (int r = 0; r < picture->n_runs; r++) {
        any_smoothed |= picture->run[r].window > 1;
        any_val |= picture->run[r].n_val > 0;
    }
    char smoothed[64] = "training";
    if (any_smoothed && (one || picture->options->smooth)) {
        char window[32];
        loom_whole_number((double)run->window, window, sizeof window);
        snprintf(smoothed, sizeof smoothed, "training, smoothed over %s steps", window);
    } else if (any_smoothed) {
        snprintf(smoothed, sizeof smoothed, "training, smoothed over a fiftieth of the run");
    }
    const struct {
        const char *text, *colour;
        double opacity;
        bool ring, there;
    } key[] = {{smoothed, one ? run->colour : LOOM_QUIET, 1, false, true},
               {"every step", one ? run->colour : LOOM_QUIET, 0.35, false, any_smoothed},
               {"validation", one ? run->val_colour : LOOM_QUIET, 1, true, any_val}};
    const double letter = 6.1, between = 18; /* `letter` is about the width of a letter in most fonts */
    double left = panel->right + between;
    for (int i = 0; i < 3; i++)
        if (key[i].there) left -= 29 + letter * (double)strlen(key[i].text) + between;
    loom_svg_write(picture->svg, "<g font-size=\"11\" fill=\"" LOOM_QUIET "\">\n");
    for (int i = 0; i < 3; i++) {
        if (!key[i].there) continue;
        loom_picture_sample(picture, left, panel->top - 13, 22, key[i].colour, "", key[i].opacity, key[i].ring);
        loom_svg_label(picture->svg, left + 29, panel->top - 9, "start", "", key[i].text);
        left += 29 + letter * (double)strlen(key[i].text) + between;
    }
    loom_svg_write(picture->svg, "</g>\n");
}

struct end_label {
    double x, y, place; /* where the curve ends; where the label goes */
    const struct loom_picture_run *run;
    bool validation;
    double value;
};

static int by_height(const void *a, const void *b) {
    const struct end_label *left = a, *right = b;
    return left->y != right->y ? (left->y > right->y) - (left->y < right->y) : left->validation - right->validation;
}

/* Moves sorted labels apart, within the panel as far as they fit. */
static void spread(struct end_label *labels, int n, double top, double bottom) {
    const double apart = 15;
    for (int i = 0; i < n; i++)
        labels[i].place = i ? fmax(labels[i].y, labels[i - 1].place + apart) : fmax(labels[i].y, top);
    double limit = bottom;
    for (int i = n - 1; i >= 0 && labels[i].place > limit; i--) {
        labels[i].place = limit;
        limit -= apart;
    }
}

/* Adds the label of the values x and y, unless the axes cannot show them. */
static int add_label(struct end_label *labels, int n, const struct loom_panel *panel,
                     const struct loom_picture_run *run, bool validation, double x, double y) {
    labels[n] = (struct end_label){.x = loom_axis_pixel(&panel->x, x),
                                   .y = loom_axis_pixel(&panel->y, y),
                                   .run = run,
                                   .validation = validation,
                                   .value = y};
    return n + (!isnan(labels[n].x) && !isnan(labels[n].y));
}

/* Writes the last values of the losses beside the panel. Labels of many runs would not fit; then only the validation
 * losses are labelled, if there are any. */
static void draw_end_labels(struct loom_picture *picture, const struct loom_panel *panel) {
    enum { FEW = 8, MOST = LOOM_PLOT_MAX_RUNS + FEW };
    struct end_label labels[MOST];
    int n = 0;
    for (int r = 0; r < picture->n_runs; r++) {
        const struct loom_picture_run *run = &picture->run[r];
        const double *loss = loom_picture_shown(run, LOOM_CURVE_LOSS);
        int64_t last = run->curves->n - 1;
        while (last > 0 && isnan(loss[last])) last--;
        if (picture->n_runs <= FEW || run->n_val == 0)
            n = add_label(labels, n, panel, run, false, run->x[last], loss[last]);
        if (run->n_val > 0)
            n = add_label(labels, n, panel, run, true, run->val_x[run->n_val - 1], run->val_loss[run->n_val - 1]);
    }
    qsort(labels, (size_t)n, sizeof *labels, by_height);
    spread(labels, n, panel->top, panel->bottom);

    loom_svg_write(picture->svg, "<g font-size=\"11.5\" fill=\"" LOOM_INK "\">\n");
    for (int i = 0; i < n; i++) {
        const struct end_label *label = &labels[i];
        const char *colour = label->validation ? label->run->val_colour : label->run->colour;
        char value[64], text[80];
        loom_svg_write(picture->svg,
                       "<path d=\"M%.1f %.1fH%.1fL%.1f %.1f\" fill=\"none\" stroke=\"%s\" stroke-width=\"0.8\" "
                       "stroke-dasharray=\"1 2\"/>\n",
                       label->x, label->y, panel->right, panel->right + 12, label->place, colour);
        loom_picture_sample(picture, panel->right + 12, label->place, 12, colour, "", 1, label->validation);
        loom_number_label(label->value, 4, false, value, sizeof value);
        snprintf(text, sizeof text, "%s%s", value, label->validation ? " val" : "");
        loom_svg_label(picture->svg, panel->right + 29, label->place + 4, "start", "", text);
    }
    loom_svg_write(picture->svg, "</g>\n");
}

/* Writes the last value of the only run at the upper right. */
static void draw_last_value(struct loom_picture *picture, const struct loom_panel *panel) {
    const struct loom_picture_run *run = &picture->run[0];
    char text[64];
    loom_number_label(loom_picture_shown(run, panel->curve)[run->curves->n - 1], 3, panel->curve == LOOM_CURVE_LR, text,
                      sizeof text);
    loom_svg_label(picture->svg, panel->right, panel->top - 9, "end", "font-size=\"12\" fill=\"" LOOM_INK "\"", text);
}

void loom_picture_panel(struct loom_picture *picture, struct loom_panel *panel) {
    make_axes(picture, panel);
    draw_axes(picture, panel);
    draw_curves(picture, panel);
    if (panel->curve == LOOM_CURVE_LOSS) {
        draw_key(picture, panel);
        draw_end_labels(picture, panel);
    } else if (picture->n_runs == 1) {
        draw_last_value(picture, panel);
    }
}
