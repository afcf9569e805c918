#include "plot/svg.h"

#include "base/printable.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static bool reserve(loom_svg *svg, size_t more) {
    if (svg->failed) return false;
    if (svg->capacity - svg->length > more) return true;
    size_t capacity = svg->capacity ? svg->capacity : 1 << 14;
    while (capacity - svg->length <= more && capacity <= SIZE_MAX / 4) capacity *= 2;
    char *larger = realloc(svg->text, capacity);
    if (!larger) {
        svg->failed = true;
        return false;
    }
    svg->text = larger;
    svg->capacity = capacity;
    return true;
}

void loom_svg_write(loom_svg *svg, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int length = vsnprintf(NULL, 0, format, arguments);
    if (length >= 0 && reserve(svg, (size_t)length)) {
        vsnprintf(svg->text + svg->length, (size_t)length + 1, format, again);
        svg->length += (size_t)length;
    }
    va_end(again);
    va_end(arguments);
}

/* What XML allows and a reader should see; the rest becomes U+FFFD. */
void loom_svg_escaped(loom_svg *svg, const char *text) {
    while (*text) {
        const int length = loom_printable_length(text);
        switch (length ? *text : 0) {
        case 0: loom_svg_write(svg, "\xEF\xBF\xBD"); break;
        case '&': loom_svg_write(svg, "&amp;"); break;
        case '<': loom_svg_write(svg, "&lt;"); break;
        case '>': loom_svg_write(svg, "&gt;"); break;
        case '"': loom_svg_write(svg, "&quot;"); break;
        default: loom_svg_write(svg, "%.*s", length, text);
        }
        text += length ? length : 1;
    }
}

void loom_svg_label(loom_svg *svg, double x, double y, const char *anchor, const char *attributes, const char *text) {
    loom_svg_write(svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s%s>", x, y, anchor, *attributes ? " " : "",
                   attributes);
    loom_svg_escaped(svg, text);
    loom_svg_write(svg, "</text>\n");
}

/* Half of a large picture is coordinates: in tenths, without a zero at the end. */
static void coordinate(loom_svg *svg, double value) {
    const long tenths = lround(value * 10);
    loom_svg_write(svg, tenths % 10 ? "%.1f" : "%.0f", (double)tenths / 10);
}

void loom_svg_point(loom_svg *svg, char command, double x, double y) {
    loom_svg_write(svg, "%c", command);
    coordinate(svg, x);
    loom_svg_write(svg, " ");
    coordinate(svg, y);
}

void loom_svg_free(loom_svg *svg) {
    free(svg->text);
    *svg = (loom_svg){0};
}
