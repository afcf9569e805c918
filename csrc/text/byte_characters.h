/* Bytes as characters. Files of byte-level vocabularies are text, so each byte of a token stands in them as one
 * character, in GPT-2's assignment   (Radford et al., 2019, encoder.py of its release): a byte that Latin-1 prints is
 * that character; the other 68 are, in order, the characters from U+0100 on. */
#ifndef LOOM_TEXT_BYTE_CHARACTERS_H
#define LOOM_TEXT_BYTE_CHARACTERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The UTF-8 encoding of each byte's character, of one or two bytes, and a zero. */
typedef struct loom_byte_characters {
    char of[256][3];
} loom_byte_characters;

loom_byte_characters loom_byte_characters_make(void);

/* The characters of n bytes, with a zero at the end, into a string that has room for 2 n + 1. */
void loom_characters_of_bytes(const loom_byte_characters *characters, const uint8_t *bytes, size_t n, char *string);

/* Turns a string of such characters into the bytes that they stand for: at most as many as the string has, into `bytes`,
 * which may be the string itself. False where a character stands for no byte. */
bool loom_bytes_of_characters(const char *string, uint8_t *bytes, size_t *n);

/* The bytes in GPT-2's order: those that Latin-1 prints, then the others. Token i of GPT-2 is byte order[i]. */
void loom_byte_order(uint8_t order[256]);

#ifdef __cplusplus
}
#endif
#endif
