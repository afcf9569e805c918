/* Text from outside (names of files and devices, content of files, messages of drivers, output of a model) in a form
 * that a terminal or a log may show. Whole UTF-8 characters pass. Characters that could control the terminal, hide text
 * or change the writing direction do not. All code that prints such text sends it through here; loom_fail does so with
 * every message. */
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

/* Writes `text` to `out`, of `size` bytes (at least 4), and returns `out`. A text that does not fit is cut after a
 * whole character and ends in "...". */
char *loom_printable_text(char *out, size_t size, const char *text);

/* The same, but a text that does not fit loses its middle, because the cause of an error stands at the end of its
 * message. */
char *loom_printable_ends(char *out, size_t size, const char *text);

/* The length in bytes of the character that `text` begins with. It is 0 if `text` begins with none that may be shown,
 * or with a tab or a line end. */
int loom_printable_length(const char *text);

/* Whether the whole text would be shown unchanged. */
bool loom_is_printable(const char *text);

/* Writes a word in a form that a shell reads back: plain, in '...' or, if it contains characters that may not be shown,
 * in $'...' of bash, zsh and POSIX 2024. Returns `out`. */
char *loom_shell_word(char *out, size_t size, const char *word);

/* The same for the arguments of printf. The memory lives in the enclosing block. */
enum { LOOM_LONGEST_PRINTABLE = 4100 }; /* more than a path can have */
#define LOOM_PRINTABLE(text)  loom_printable_text((char[LOOM_LONGEST_PRINTABLE]){0}, LOOM_LONGEST_PRINTABLE, text)
#define LOOM_BRIEF(text, n)   loom_printable_text((char[(n) + 4]){0}, (n) + 4, text) /* the first n bytes of it */
#define LOOM_SHELL_WORD(word) loom_shell_word((char[4 *LOOM_LONGEST_PRINTABLE]){0}, 4 * LOOM_LONGEST_PRINTABLE, word)

/* --------------------------------------------------------------------------------------------------- byte by byte
 * What a model writes, as it comes: newlines and tabs pass, what may not be shown becomes U+FFFD. */

typedef struct loom_printable {
    unsigned char bytes[4]; /* the beginning of a character */
    int n, needed;          /* how many there are, and how many it will have */
} loom_printable;

/* Prints the character that `byte` completes, if it does. The state starts zeroed. */
void loom_printable_byte(loom_printable *state, unsigned char byte, FILE *out);

/* Ends the text: an incomplete character is shown as U+FFFD. */
void loom_printable_end(loom_printable *state, FILE *out);

#ifdef __cplusplus
}
#endif
#endif
