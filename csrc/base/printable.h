/* Text from outside (names of files and devices, what files and drivers say, what a model made up) as a terminal or a log
 * may show it: whole UTF-8 characters pass; nothing that could steer the terminal, hide itself or turn the direction of
 * writing does. Whatever prints such text sends it through here; loom_fail does so with every message. */
#ifndef LOOM_BASE_PRINTABLE_H
#define LOOM_BASE_PRINTABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------- one line
 * Bytes of what may not be shown, or is no UTF-8, become \xNN; tabs and ends of lines become spaces. */

/* Writes `text` and returns `out`, of `size` bytes (at least 4). What does not fit ends in "...", behind a whole
 * character. */
char *loom_printable_text(char *out, size_t size, const char *text);

/* The same, but what does not fit loses its middle: of a message, what is wrong stands at its end. */
char *loom_printable_ends(char *out, size_t size, const char *text);

/* The bytes of the character that `text` begins with; 0 where it begins with none that may be shown, or with a tab or the
 * end of a line. */
int loom_printable_length(const char *text);

/* Whether it would all be shown as it is. */
bool loom_is_printable(const char *text);

/* A word as a shell reads it back: plain, in '...' or, where it holds what may not be shown, in $'...' of bash, zsh and
 * POSIX of 2024. Returns `out`. */
char *loom_shell_word(char *out, size_t size, const char *word);

/* The same as an argument of printf: with memory of the block that it stands in. */
enum { LOOM_LONGEST_PRINTABLE = 4100 }; /* a path, and more than that */
#define LOOM_PRINTABLE(text)  loom_printable_text((char[LOOM_LONGEST_PRINTABLE]){0}, LOOM_LONGEST_PRINTABLE, text)
#define LOOM_BRIEF(text, n)   loom_printable_text((char[(n) + 4]){0}, (n) + 4, text) /* the first n bytes of it */
#define LOOM_SHELL_WORD(word) loom_shell_word((char[4 *LOOM_LONGEST_PRINTABLE]){0}, 4 * LOOM_LONGEST_PRINTABLE, word)

/* --------------------------------------------------------------------------------------------------- byte by byte
 * What a model writes, as it comes: newlines and tabs pass, what may not be shown becomes U+FFFD. */

typedef struct loom_printable {
    unsigned char bytes[4]; /* the beginning of a character */
    int n, needed;          /* how many there are, and how many it will have */
} loom_printable;

/* Prints what `byte` completes. Start with a zeroed state. */
void loom_printable_byte(loom_printable *state, unsigned char byte, FILE *out);

/* Ends the text: a character that was only begun is shown as a damaged one. */
void loom_printable_end(loom_printable *state, FILE *out);

#ifdef __cplusplus
}
#endif
#endif
