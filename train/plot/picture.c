#include "plot/picture.h"

const double *loom_picture_shown(const struct loom_picture_run *run, loom_curve curve) {
    return run->smooth[curve] ? run->smooth[curve] : run->curves->column[curve];
}

void loom_picture_sample(struct loom_picture *picture, double x, double y, double length, const char *colour,
                         const char *dash, double opacity, bool ring) {
    loom_svg_write(picture->svg, "<path d=\"M%.1f %.1fh%.0f\" stroke=\"%s\" stroke-width=\"%s\" opacity=\"%g\"%s/>\n",
                   x, y, length, colour, ring || opacity < 1 ? "1.3" : "2.2", opacity, dash);
    if (!ring) return;
    loom_svg_write(picture->svg,
                   "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.8\" fill=\"#fff\" stroke=\"%s\" stroke-width=\"1.3\"/>\n",
                   x + length / 2, y, colour);
}
