/* Writing SVG: text that grows, escaping, and numbers as short as a picture needs them. */
#ifndef LOOM_TRAIN_PLOT_SVG_H
#define LOOM_TRAIN_PLOT_SVG_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Begins zeroed; what is written after memory ran out is dropped, and `failed` says so at the end. */
typedef struct loom_svg {
    char *text; /* zero-ended; NULL before the first write */
    size_t length, capacity;
    bool failed;
} loom_svg;

/* Markup as it is. */
void loom_svg_write(loom_svg *svg, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Anybody's text between tags or in an attribute: markup is escaped, and what XML does not allow (control characters,
 * broken UTF-8) becomes U+FFFD. */
void loom_svg_escaped(loom_svg *svg, const char *text);

/* One <text> element. anchor is "start", "middle" or "end"; attributes (may be "") are markup. */
void loom_svg_label(loom_svg *svg, double x, double y, const char *anchor, const char *attributes, const char *text);

/* A path's next point: `command` ('M' or 'L') and the place, to a tenth. */
void loom_svg_point(loom_svg *svg, char command, double x, double y);

void loom_svg_free(loom_svg *svg);

#ifdef __cplusplus
}
#endif
#endif
