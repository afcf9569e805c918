#include "plot/svg.h"

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

/* The bytes of the UTF-8 character at `text`; 0 where there is none that XML allows. */
static int character_length(const unsigned char *text) {
    if (text[0] < 0x80) return text[0] >= 0x20 && text[0] != 0x7F;
    const int length = text[0] >= 0xF0 ? 4 : text[0] >= 0xE0 ? 3 : 2;
    if (text[0] < 0xC2 || text[0] > 0xF4) return 0;
    uint32_t code = text[0] & (0x7Fu >> length);
    for (int i = 1; i < length; i++) {
        if ((text[i] & 0xC0) != 0x80) return 0;
        code = code << 6 | (text[i] & 0x3Fu);
    }
    const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    const bool allowed = code >= smallest[length] && code <= 0x10FFFF && (code & 0xFFFFF800u) != 0xD800 &&
                         (code & 0xFFFEu) != 0xFFFE;
    return allowed ? length : 0;
}

void loom_svg_escaped(loom_svg *svg, const char *text) {
    while (*text) {
        const int length = character_length((const unsigned char *)text);
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
