/* Writing SVG: a growing text, escaping, and numbers as short as a picture needs them. */
#ifndef LOOM_TRAIN_PLOT_SVG_H
#define LOOM_TRAIN_PLOT_SVG_H

#include "gptloom/error.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Colours on white paper: of text, of secondary text, and of auxiliary lines. */
#define LOOM_INK   "#1b1f24"
#define LOOM_QUIET "#5b636d"
#define LOOM_GRID  "#e6e8eb"

/* Starts zeroed. Writes after memory has run out are dropped; `failed` is then set. */
typedef struct loom_svg {
    char *text; /* zero-ended; NULL before the first write */
    size_t length, capacity;
    bool failed;
} loom_svg;

/* Appends markup, unescaped. */
void loom_svg_write(loom_svg *svg, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Begins the root element of a picture of the given size in pixels, with its title and a white background. The caller
 * ends the picture with </svg>. */
void loom_svg_begin(loom_svg *svg, double width, double height, const char *title);

/* Appends untrusted text between tags or in an attribute: markup is escaped, and what XML does not allow (control
 * characters, broken UTF-8) becomes U+FFFD. */
void loom_svg_escaped(loom_svg *svg, const char *text);

/* One <text> element. anchor is "start", "middle" or "end"; attributes (may be "") are markup. */
void loom_svg_label(loom_svg *svg, double x, double y, const char *anchor, const char *attributes, const char *text);

/* A path's next point: `command` ('M' or 'L') and the place, to a tenth. */
void loom_svg_point(loom_svg *svg, char command, double x, double y);

/* Refuses a place that cannot be written to, and for `what` a command draws ("plot draws SVG") the name of another kind
 * of picture. */
bool loom_svg_check_place(const char *path, const char *what, loom_error *error);

/* Writes it where the user says, through links; or where nothing is said (`out` is NULL) to a default place, through
 * none, as a link there may be anybody's. */
bool loom_svg_save(const loom_svg *svg, const char *out, const char *default_path, loom_error *error);

void loom_svg_free(loom_svg *svg);

#ifdef __cplusplus
}
#endif
#endif
