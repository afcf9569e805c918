#include "plot/svg.h"

#include "base/file.h"
#include "base/printable.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

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

/* Appends text unchanged. */
static void put(loom_svg *svg, const char *text, size_t length) {
    if (!reserve(svg, length)) return;
    memcpy(svg->text + svg->length, text, length);
    svg->length += length;
    svg->text[svg->length] = 0;
}

/* Formats into the free memory; if the result is longer, enlarges the memory and formats again. */
void loom_svg_write(loom_svg *svg, const char *format, ...) {
    va_list arguments, again;
    if (!reserve(svg, 1)) return;
    va_start(arguments, format);
    va_copy(again, arguments);
    const size_t room = svg->capacity - svg->length;
    const int length = vsnprintf(svg->text + svg->length, room, format, arguments);
    if (length >= 0 && (size_t)length >= room && reserve(svg, (size_t)length))
        vsnprintf(svg->text + svg->length, (size_t)length + 1, format, again);
    if (length >= 0 && !svg->failed) svg->length += (size_t)length;
    va_end(again);
    va_end(arguments);
    svg->text[svg->length] = 0;
}

/* The XML escape of a character; NULL if it needs none. */
static const char *escape(char c) {
    switch (c) {
    case '&': return "&amp;";
    case '<': return "&lt;";
    case '>': return "&gt;";
    case '"': return "&quot;";
    default: return NULL;
    }
}

/* Characters that XML allows and that are visible pass; all others become U+FFFD. */
void loom_svg_escaped(loom_svg *svg, const char *text) {
    while (*text) {
        size_t length = 0;
        for (int next; !escape(text[length]) && (next = loom_printable_length(text + length)) > 0;)
            length += (size_t)next;
        put(svg, text, length);
        text += length;
        if (!*text) break;
        const char *escaped = escape(*text);
        loom_svg_write(svg, "%s", escaped ? escaped : "\xEF\xBF\xBD");
        text++;
    }
}

void loom_svg_begin(loom_svg *svg, double width, double height, const char *title) {
    loom_svg_write(svg,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" "
                   "role=\"img\" font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\">\n"
                   "<title>",
                   width, height, width, height);
    loom_svg_escaped(svg, title);
    loom_svg_write(svg, "</title>\n<rect width=\"%.0f\" height=\"%.0f\" fill=\"#fff\"/>\n", width, height);
}

void loom_svg_label(loom_svg *svg, double x, double y, const char *anchor, const char *attributes, const char *text) {
    loom_svg_write(svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s%s>", x, y, anchor, *attributes ? " " : "",
                   attributes);
    loom_svg_escaped(svg, text);
    loom_svg_write(svg, "</text>\n");
}

/* Half of a large picture is coordinates. They are written with one decimal and without a trailing zero. */
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

/* Refuses a name whose extension stands for another kind of file. */
bool loom_svg_check_place(const char *path, const char *what, loom_error *error) {
    static const char *const others[] = {".png", ".jpg", ".jpeg", ".pdf", ".gif", ".webp", ".eps", ".ps", ".html"};
    const char *slash = strrchr(path, '/'), *dot = strrchr(slash ? slash : path, '.');
    for (size_t i = 0; dot && i < sizeof others / sizeof *others; i++)
        if (!strcasecmp(dot, others[i]))
            return loom_fail(error,
                             "--out: %s: %s only; name it %.*s.svg, which browsers show, and which 'rsvg-convert' or "
                             "'inkscape' turns into other formats",
                             path, what, (int)(dot - path), path);
    return loom_output_check(path, error);
}

bool loom_svg_save(const loom_svg *svg, const char *out, const char *default_path, loom_error *error) {
    struct stat status;
    if (out) return loom_output_write(out, svg->text, svg->length, error);
    if (lstat(default_path, &status) == 0 && S_ISLNK(status.st_mode))
        return loom_fail(error, "%s: is a symbolic link; --out says where the picture is to go", default_path);
    return loom_file_replace(default_path, svg->text, svg->length, error);
}

void loom_svg_free(loom_svg *svg) {
    free(svg->text);
    *svg = (loom_svg){0};
}
