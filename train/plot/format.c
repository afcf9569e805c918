#include "plot/format.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Removes trailing zeros of a decimal fraction. */
static void trim_zeros(char *text) {
    if (!strchr(text, '.')) return;
    char *end = text + strlen(text);
    while (end[-1] == '0') end--;
    if (end[-1] == '.') end--;
    *end = 0;
}

void loom_scaled_number(double value, double largest, double step, bool trim, char *text, size_t size) {
    static const struct {
        double unit;
        const char *suffix;
    } units[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "k"}};
    char number[400];
    if (value == 0) {
        snprintf(text, size, "0");
        return;
    }
    if (largest < 5e-3 || largest >= 1e16) {
        const double power = floor(log10(fabs(value)) + 1e-9);
        const int decimals = (int)fmin(fmax(ceil(power - log10(step) - 1e-6), 0), 12);
        snprintf(number, sizeof number, "%.*f", decimals, value / pow(10, power));
        trim_zeros(number);
        snprintf(text, size, "%se%d", number, (int)power);
        return;
    }
    double unit = 1;
    const char *suffix = "";
    for (size_t i = 0; i < sizeof units / sizeof *units && largest >= 1e4; i++) {
        if (largest < units[i].unit) continue;
        unit = units[i].unit;
        suffix = units[i].suffix;
        break;
    }
    const int decimals = (int)fmin(fmax(ceil(-log10(step / unit) - 1e-6), 0), 12);
    snprintf(number, sizeof number, "%.*f", decimals, value / unit);
    if (trim) trim_zeros(number);
    snprintf(text, size, "%s%s", number, suffix);
}

void loom_number_label(double value, int digits, bool trim, char *text, size_t size) {
    if (!isfinite(value)) {
        snprintf(text, size, "–");
        return;
    }
    /* The value is rounded first, because 9.9999e-5 becomes 1e-4, whose first digit has another exponent. But 1234 must
     * not become 1230. */
    char text_rounded[64];
    snprintf(text_rounded, sizeof text_rounded, "%.*e", digits - 1, value);
    const double rounded = strtod(text_rounded, NULL);
    const double step = pow(10, strtod(strchr(text_rounded, 'e') + 1, NULL) - (digits - 1));
    if (step < 1 || fabs(rounded) >= 1e4) value = rounded;
    loom_scaled_number(value, fabs(value), step, trim, text, size);
}

void loom_whole_number(double value, char *text, size_t size) {
    char digits[32];
    const int n = snprintf(digits, sizeof digits, "%.0f", fmin(value, 1e15));
    size_t at = 0;
    for (int i = 0; i < n && at + 2 < size; i++) {
        if (i > 0 && (n - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
}

void loom_duration(double seconds, char *text, size_t size) {
    const long long s = llround(fmin(seconds, 1e12));
    if (seconds < 60)
        snprintf(text, size, "%.1f s", seconds);
    else if (s < 3600)
        snprintf(text, size, "%lld min %02lld s", s / 60, s % 60);
    else if (s < 86400)
        snprintf(text, size, "%lld h %02lld min", s / 3600, s / 60 % 60);
    else
        snprintf(text, size, "%lld d %02lld h", s / 86400, s / 3600 % 24);
}

void loom_shortened(const char *name, int most, char *text, size_t size) {
    int n = 0;
    for (const char *c = name; *c; c++) n += (*c & 0xC0) != 0x80;
    const int head = most / 3, tail = most - 1 - head;
    size_t at = 0;
    int character = -1;
    for (const char *c = name; *c && at + 4 < size; c++) {
        character += (*c & 0xC0) != 0x80;
        const bool left_out = n > most && character >= head && character < n - tail;
        if (!left_out) text[at++] = *c;
        if (left_out && character == head && (*c & 0xC0) != 0x80) at += (size_t)snprintf(text + at, size - at, "…");
    }
    text[at] = 0;
}
