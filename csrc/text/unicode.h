/* What the patterns of tokenizers ask about a character, in Unicode 16.0.0, and characters read from UTF-8. */
#ifndef LOOM_TEXT_UNICODE_H
#define LOOM_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_UNICODE_POINTS = 0x110000, LOOM_UNICODE_BLOCK = 256 };

/* A character's class is one of these bits, or none: punctuation, symbols, controls, surrogates, what is unassigned. */
enum {
    LOOM_CLASS_LU = 1 << 0, /* letters: upper case, lower case, title case, modifiers, others */
    LOOM_CLASS_LL = 1 << 1,
    LOOM_CLASS_LT = 1 << 2,
    LOOM_CLASS_LM = 1 << 3,
    LOOM_CLASS_LO = 1 << 4,
    LOOM_CLASS_M = 1 << 5, /* marks */
    LOOM_CLASS_N = 1 << 6, /* numbers: decimal digits and all others */
    LOOM_CLASS_S = 1 << 7, /* \s: the property White_Space, and so U+0085, but not U+001C to U+001F, U+180E, U+200B */
    LOOM_CLASS_L = LOOM_CLASS_LU | LOOM_CLASS_LL | LOOM_CLASS_LT | LOOM_CLASS_LM | LOOM_CLASS_LO
};

/* Two stages: the block of 256 code points that a point is in, and the classes of each different block. */
extern const uint8_t loom_unicode_blocks[LOOM_UNICODE_POINTS / LOOM_UNICODE_BLOCK];
extern const uint8_t loom_unicode_classes[][LOOM_UNICODE_BLOCK];

/* The class of a code point, which is below LOOM_UNICODE_POINTS. */
static inline unsigned loom_unicode_class(uint32_t point) {
    return loom_unicode_classes[loom_unicode_blocks[point / LOOM_UNICODE_BLOCK]][point % LOOM_UNICODE_BLOCK];
}

/* Whether the bytes of a character but its first are there, and are such bytes. */
static inline bool loom_utf8_is_whole(const uint8_t *bytes, size_t n, size_t length) {
    if (n < length || (bytes[1] & 0xC0) != 0x80) return false;
    return length == 2 || ((bytes[2] & 0xC0) == 0x80 && (length == 3 || (bytes[3] & 0xC0) == 0x80));
}

/* Reads the character with which n bytes begin (n > 0): returns its length and stores its code point. A byte with which
 * no valid character begins (one cut short, an overlong form, a surrogate, a point above U+10FFFF, a byte from a
 * character's middle) is a character of its own, of length 1 and point U+FFFD. */
static inline size_t loom_utf8_read(const uint8_t *bytes, size_t n, uint32_t *point) {
    const uint8_t first = bytes[0];
    const size_t length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    *point = length == 1 ? first : 0xFFFD;
    if (length == 1 || !loom_utf8_is_whole(bytes, n, length)) return 1;
    uint32_t found = first & (0xFFu >> (length + 1)), least = 0x80;
    found = found << 6 | (bytes[1] & 0x3Fu);
    if (length > 2) found = found << 6 | (bytes[2] & 0x3Fu), least = 0x800;
    if (length > 3) found = found << 6 | (bytes[3] & 0x3Fu), least = 0x10000;
    const bool is_point = found >= least && found < LOOM_UNICODE_POINTS && (found < 0xD800 || found > 0xDFFF);
    if (first < 0xC2 || first > 0xF4 || !is_point) return 1;
    *point = found;
    return length;
}

#ifdef __cplusplus
}
#endif
#endif
