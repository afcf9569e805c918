#include "plot/picture.h"
#include "plot/format.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static double last_shown(const struct loom_picture_run *run, loom_curve curve) {
    return loom_picture_shown(run, curve)[run->curves->n - 1];
}

void loom_picture_table(struct loom_picture *picture) {
    static const struct {
        const char *title;
        double right;
    } columns[] = {{"steps", 340},         {"tokens", 410},        {"time", 496},
                   {"loss", 560},          {"val loss", 628},      {"best val", 742},
                   {"learning rate", 828}, {"gradient norm", 914}, {"tokens/s", 972}};
    enum { COLUMNS = sizeof columns / sizeof *columns };
    loom_svg *svg = picture->svg;
    loom_svg_write(svg, "<g font-size=\"11\" fill=\"" LOOM_QUIET "\">\n");
    loom_svg_label(svg, LOOM_PAGE_MARGIN, LOOM_TABLE_TOP, "start", "",
                   picture->n_runs > 1 ? "runs, where they ended" : "where it ended");
    for (int c = 0; c < COLUMNS; c++)
        loom_svg_label(svg, columns[c].right, LOOM_TABLE_TOP, "end", "", columns[c].title);
    loom_svg_write(svg, "</g>\n<path d=\"M%d %.1fH%d\" stroke=\"" LOOM_GRID "\"/>\n", LOOM_PAGE_MARGIN,
                   LOOM_TABLE_TOP + 6.5, LOOM_PAGE_WIDTH - LOOM_PAGE_MARGIN);

    loom_svg_write(svg, "<g font-size=\"12\" fill=\"" LOOM_INK "\">\n");
    for (int r = 0; r < picture->n_runs; r++) {
        const struct loom_picture_run *run = &picture->run[r];
        const loom_curves *curves = run->curves;
        const double y = LOOM_TABLE_TOP + LOOM_TABLE_ROW * (r + 1);
        char text[COLUMNS][64], name[256];
        int64_t best = 0;
        for (int64_t i = 1; i < run->n_val; i++)
            if (run->val_loss[i] < run->val_loss[best]) best = i;
        loom_whole_number(curves->column[LOOM_CURVE_STEP][curves->n - 1], text[0], sizeof *text);
        loom_number_label(curves->column[LOOM_CURVE_TOKENS][curves->n - 1], 3, false, text[1], sizeof *text);
        loom_duration(curves->column[LOOM_CURVE_SECONDS][curves->n - 1], text[2], sizeof *text);
        loom_number_label(last_shown(run, LOOM_CURVE_LOSS), 4, false, text[3], sizeof *text);
        loom_number_label(run->n_val ? run->val_loss[run->n_val - 1] : NAN, 4, false, text[4], sizeof *text);
        loom_number_label(run->n_val ? run->val_loss[best] : NAN, 4, false, text[5], sizeof *text);
        loom_number_label(last_shown(run, LOOM_CURVE_LR), 3, true, text[6], sizeof *text);
        loom_number_label(last_shown(run, LOOM_CURVE_GRAD_NORM), 3, false, text[7], sizeof *text);
        loom_number_label(last_shown(run, LOOM_CURVE_TOKENS_PER_S), 3, false, text[8], sizeof *text);
        if (run->n_val) {
            int64_t row = 0;
            while (curves->column[LOOM_CURVE_VAL_LOSS][row] != run->val_loss[best]) row++;
            char step[32];
            loom_whole_number(curves->column[LOOM_CURVE_STEP][row], step, sizeof step);
            const size_t length = strlen(text[5]);
            snprintf(text[5] + length, sizeof *text - length, " at %s", step);
        }

        double name_left = LOOM_PAGE_MARGIN;
        if (picture->n_runs > 1) {
            loom_picture_sample(picture, LOOM_PAGE_MARGIN, y - 4, 22, run->colour, run->dash, 1, false);
            name_left += 30;
        }
        loom_shortened(curves->name, picture->n_runs > 1 ? 32 : 36, name, sizeof name);
        loom_svg_label(svg, name_left, y, "start", "font-weight=\"600\"", name);
        for (int c = 0; c < COLUMNS; c++) loom_svg_label(svg, columns[c].right, y, "end", "", text[c]);
    }
    loom_svg_write(svg, "</g>\n");
}
