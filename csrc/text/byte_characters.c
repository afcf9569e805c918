#include "text/byte_characters.h"

/* The other bytes are 0 .. 0x20, 0x7F .. 0xA0 and 0xAD. */
enum { BYTES = 256, FIRST_SUBSTITUTE = 0x100, SUBSTITUTES = 68 };

static bool latin1_prints(int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

void loom_byte_order(uint8_t order[BYTES]) {
    int n = 0;
    for (int printed = 1; printed >= 0; printed--)
        for (int byte = 0; byte < BYTES; byte++)
            if (latin1_prints(byte) == printed) order[n++] = (uint8_t)byte;
}

/* All characters lie below U+0800, so two bytes are enough. */
loom_byte_characters loom_byte_characters_make(void) {
    loom_byte_characters characters;
    int substitute = FIRST_SUBSTITUTE;
    for (int byte = 0; byte < BYTES; byte++) {
        const int code = latin1_prints(byte) ? byte : substitute++;
        char *out = characters.of[byte];
        if (code >= 0x80) *out++ = (char)(0xC0 | code >> 6);
        *out++ = (char)(code < 0x80 ? code : 0x80 | (code & 0x3F));
        *out = 0;
    }
    return characters;
}

void loom_characters_of_bytes(const loom_byte_characters *characters, const uint8_t *bytes, size_t n, char *string) {
    for (size_t i = 0; i < n; i++)
        for (const char *c = characters->of[bytes[i]]; *c; c++) *string++ = *c;
    *string = 0;
}

/* The byte that the n-th character from U+0100 on stands for. */
static uint8_t substituted(int n) {
    return (uint8_t)(n < 33 ? n : n < SUBSTITUTES - 1 ? n - 33 + 0x7F : 0xAD);
}

bool loom_bytes_of_characters(const char *string, uint8_t *bytes, size_t *n) {
    *n = 0;
    for (const uint8_t *c = (const uint8_t *)string; *c; c++) {
        int code = *c;
        if (code >= 0x80) {
            if (code < 0xC2 || code > 0xDF || (c[1] & 0xC0) != 0x80) return false;
            code = (code & 0x1F) << 6 | (*++c & 0x3F);
        }
        const int place = code - FIRST_SUBSTITUTE;
        if (place >= SUBSTITUTES || (place < 0 && !latin1_prints(code))) return false;
        bytes[(*n)++] = place < 0 ? (uint8_t)code : substituted(place);
    }
    return true;
}
