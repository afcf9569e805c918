#include "printable.h"

#include <stdbool.h>
#include <stdint.h>

static void print_replacement(FILE *out) {
    fputs("\xEF\xBF\xBD", out);
}

/* The length of a character from its first byte; 0 for one that begins none. */
static int length_from_first(unsigned char byte) {
    if (byte < 0x80) return 1;
    if (byte >= 0xC2 && byte <= 0xDF) return 2;
    if (byte >= 0xE0 && byte <= 0xEF) return 3;
    if (byte >= 0xF0 && byte <= 0xF4) return 4;
    return 0;
}

/* Whether a whole character is one that may be shown: in its shortest form, no surrogate, no control character. */
static bool is_harmless(const unsigned char *bytes, int n) {
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (n == 1) return bytes[0] == '\n' || bytes[0] == '\t' || (bytes[0] >= 0x20 && bytes[0] != 0x7F);
    uint32_t point = bytes[0] & (0xFFu >> (n + 1));
    for (int i = 1; i < n; i++) point = point << 6 | (bytes[i] & 0x3Fu);
    const bool is_surrogate = point >= 0xD800 && point <= 0xDFFF;
    const bool steers = (point >= 0x80 && point < 0xA0) || (point >= 0x202A && point <= 0x202E) ||
                        (point >= 0x2066 && point <= 0x2069); /* C1 controls; text direction */
    return point >= smallest[n] && point <= 0x10FFFF && !is_surrogate && !steers;
}

void loom_printable_byte(loom_printable *state, unsigned char byte, FILE *out) {
    if (state->n > 0 && (byte & 0xC0) != 0x80) loom_printable_end(state, out);
    if (state->n == 0) state->needed = length_from_first(byte);
    if (state->needed == 0) {
        print_replacement(out);
        return;
    }
    state->bytes[state->n++] = byte;
    if (state->n < state->needed) return;
    if (is_harmless(state->bytes, state->n))
        fwrite(state->bytes, 1, (size_t)state->n, out);
    else
        print_replacement(out);
    state->n = 0;
}

void loom_printable_end(loom_printable *state, FILE *out) {
    if (state->n > 0) print_replacement(out);
    state->n = 0;
}
