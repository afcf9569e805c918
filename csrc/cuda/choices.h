/* What was chosen by measuring, as text that a run keeps and that other ranks get. The first line says on what it was
 * measured; then comes a line for each choice, "matmul KEY VALUE": the key has no spaces, the value is 64 bytes in
 * hexadecimal digits. */
#ifndef LOOM_CUDA_CHOICES_H
#define LOOM_CUDA_CHOICES_H

#include "gptloom/error.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_CHOICE_KEY = 160, LOOM_CHOICE_BYTES = 64 };

typedef struct loom_choice {
    char key[LOOM_CHOICE_KEY];
    unsigned char value[LOOM_CHOICE_BYTES];
} loom_choice;

/* In the order in which they were made. All zero: none. */
typedef struct loom_choices {
    loom_choice *at;
    size_t count, room;
} loom_choices;

void loom_choices_clear(loom_choices *choices);

/* NULL if there is none. */
const loom_choice *loom_choices_find(const loom_choices *choices, const char *key);

/* The key must be new. The error is out of memory. */
bool loom_choices_add(loom_choices *choices, const char *key, const void *value, loom_error *error);

/* The text, to be freed; NULL where there are no choices. `measured_on` is one line. */
bool loom_choices_write(const loom_choices *choices, const char *measured_on, char **text, loom_error *error);

/* Puts the choices of the text, which may be NULL, in the place of those there are; these stay when it is refused:
 * because it was measured on something else, or is not such a text. */
bool loom_choices_read(loom_choices *choices, const char *measured_on, const char *text, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
