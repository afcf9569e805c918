#include "plot/plot.h"

#include "plot/line.h"
#include "plot/picture.h"
#include "plot/format.h"

#include "base/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Okabe and Ito's colours, which colour-blind people can tell apart, without their yellow, which is hard to see on
 * white paper. */
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#3c3c3c"};
static const char *const dashes[] = {"", " stroke-dasharray=\"7 3\"", " stroke-dasharray=\"2 3\""};
enum { COLOURS = sizeof colours / sizeof *colours, DASHES = sizeof dashes / sizeof *dashes };
_Static_assert(COLOURS *DASHES == LOOM_PLOT_MAX_RUNS, "every run has a line of its own");

static const loom_curve smoothed[] = {LOOM_CURVE_LOSS, LOOM_CURVE_GRAD_NORM, LOOM_CURVE_TOKENS_PER_S};
enum { SMOOTHED = sizeof smoothed / sizeof *smoothed };

/* Names the x axis and returns the size of its unit. For time, the unit fits the longest run. */
static double x_unit(struct loom_picture *picture, const loom_curves *runs) {
    static const struct {
        double seconds;
        const char *title;
    } units[] = {{86400, "days"}, {3600, "hours"}, {60, "minutes"}, {1, "seconds"}};
    if (picture->options->x != LOOM_PLOT_TIME) {
        picture->x_title = picture->options->x == LOOM_PLOT_STEP ? "step" : "tokens";
        return 1;
    }
    double longest = 0;
    for (int r = 0; r < picture->n_runs; r++)
        longest = fmax(longest, runs[r].column[LOOM_CURVE_SECONDS][runs[r].n - 1]);
    int u = 0;
    while (u < 3 && longest < 2 * units[u].seconds) u++;
    picture->x_title = units[u].title;
    return units[u].seconds;
}

/* Fills in all fields of a run except its colours. */
static bool prepare_run(struct loom_picture_run *run, const loom_curves *curves, const loom_plot_options *options,
                        double unit, loom_error *error) {
    static const loom_curve x_curves[] = {LOOM_CURVE_STEP, LOOM_CURVE_TOKENS, LOOM_CURVE_SECONDS};
    const double *x = curves->column[x_curves[options->x]], *val_loss = curves->column[LOOM_CURVE_VAL_LOSS];
    const int64_t n = curves->n;
    if (isnan(x[n - 1])) return loom_fail(error, "%s: its metrics do not count tokens: use --x step", curves->name);

    run->curves = curves;
    run->window = options->smooth ? options->smooth : n / 50;
    if (run->window > n) run->window = n;
    if (run->window < 1) run->window = 1;
    enum {
        ARRAYS = 3 + SMOOTHED + 3
    }; /* x; x and loss of the validation; the smoothed curves; three of scratch for
                                           smoothing */
    run->memory = malloc(((size_t)n * ARRAYS + 1) * sizeof *run->memory);
    if (!run->memory) return loom_fail(error, "%s: no memory to draw its %lld steps", curves->name, (long long)n);
    run->x = run->memory;
    run->val_x = run->memory + n;
    run->val_loss = run->memory + 2 * n;
    for (int64_t i = 0; i < n; i++) {
        run->x[i] = x[i] / unit;
        if (isnan(val_loss[i]) || isnan(x[i])) continue;
        run->val_x[run->n_val] = run->x[i];
        run->val_loss[run->n_val++] = val_loss[i];
    }
    double *scratch = run->memory + (3 + SMOOTHED) * n;
    for (int s = 0; s < SMOOTHED && run->window > 1; s++) {
        run->smooth[smoothed[s]] = run->memory + (3 + s) * n;
        loom_smooth(run->smooth[smoothed[s]], curves->column[smoothed[s]], n, run->window, scratch);
    }
    return true;
}

static void draw_heading(struct loom_picture *picture, double height) {
    const char *given = picture->options->title;
    loom_svg *svg = picture->svg;
    char title[512];
    if (given && *given)
        loom_shortened(given, 80, title, sizeof title);
    else if (picture->n_runs == 1)
        loom_shortened(picture->run[0].curves->name, 80, title, sizeof title);
    else
        snprintf(title, sizeof title, "%d training runs", picture->n_runs);
    loom_svg_begin(svg, LOOM_PAGE_WIDTH, height, title);
    loom_svg_label(svg, LOOM_PAGE_MARGIN, 38, "start", "font-size=\"20\" font-weight=\"600\" fill=\"" LOOM_INK "\"",
                   title);
}

static void draw(struct loom_picture *picture) {
    const double loss_top = LOOM_TABLE_TOP + LOOM_TABLE_ROW * picture->n_runs + 50, loss_bottom = loss_top + 310;
    const double small_top = loss_bottom + 74, small_bottom = small_top + 132;
    struct loom_panel panels[] = {
        {.curve = LOOM_CURVE_LOSS, .title = "Loss", .unit = "nats per token", .log_above = 100},
        {.curve = LOOM_CURVE_LR, .title = "Learning rate", .unit = "", .zero = true},
        {.curve = LOOM_CURVE_GRAD_NORM, .title = "Gradient norm", .unit = "before clipping", .log_above = 30},
        {.curve = LOOM_CURVE_TOKENS_PER_S, .title = "Throughput", .unit = "tokens per second", .zero = true}};
    draw_heading(picture, small_bottom + 50);
    loom_picture_table(picture);
    for (int i = 0; i < (int)(sizeof panels / sizeof *panels); i++) {
        struct loom_panel *panel = &panels[i];
        const bool large = i == 0;
        panel->left = large ? 66 : 66 + 326 * (i - 1);
        panel->right = panel->left + (large ? 822 : 254);
        panel->top = large ? loss_top : small_top;
        panel->bottom = large ? loss_bottom : small_bottom;
        panel->x_spacing = large ? 90 : 62;
        panel->y_spacing = large ? 46 : 32;
        loom_picture_panel(picture, panel);
    }
    loom_svg_write(picture->svg, "</svg>\n");
}

bool loom_plot_draw(loom_svg *svg, const loom_curves *runs, int n_runs, const loom_plot_options *options,
                    loom_error *error) {
    LOOM_CHECK(n_runs >= 1 && n_runs <= LOOM_PLOT_MAX_RUNS);
    struct loom_picture picture = {.svg = svg, .n_runs = n_runs, .options = options};
    *svg = (loom_svg){0};
    const double unit = x_unit(&picture, runs);
    bool ok = true;
    for (int r = 0; r < n_runs && ok; r++) {
        struct loom_picture_run *run = &picture.run[r];
        ok = prepare_run(run, &runs[r], options, unit, error);
        run->colour = colours[r % COLOURS];
        run->val_colour = n_runs == 1 ? colours[1] : run->colour;
        run->dash = dashes[r / COLOURS];
    }
    if (ok) draw(&picture);
    for (int r = 0; r < n_runs; r++) free(picture.run[r].memory);
    if (ok && svg->failed) ok = loom_fail(error, "no memory for the picture");
    return ok;
}
