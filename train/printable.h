/* Text that a model made up, on a terminal: bytes arrive one by one; whole UTF-8 characters, newlines and tabs pass;
 * whatever could steer the terminal, or is no character, becomes U+FFFD. */
#ifndef LOOM_TRAIN_PRINTABLE_H
#define LOOM_TRAIN_PRINTABLE_H

#include <stdio.h>

typedef struct loom_printable {
    unsigned char bytes[4]; /* the beginning of a character */
    int n, needed;          /* how many there are, and how many it will have */
} loom_printable;

/* Prints what `byte` completes. Start with a zeroed state. */
void loom_printable_byte(loom_printable *state, unsigned char byte, FILE *out);

/* Ends the text: a character that was only begun is shown as a damaged one. */
void loom_printable_end(loom_printable *state, FILE *out);

#endif
