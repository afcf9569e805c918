/* What was chosen for a run, as text that it keeps and that other ranks get. The first line says on what it was measured;
 * then comes a line of three words for each choice, KIND KEY VALUE:
 *
 *     matmul PRODUCT 4e001f…              the algorithm of a matrix product, cuBLASLt's 64 bytes in hexadecimal digits
 *     dbias PRODUCT kernel|epilogue       who sums up the bias gradient beside a product: our kernel, or cuBLASLt
 *     attention GRAPH engine8,24=3,27=1   cuDNN's engine for an attention, and its knobs */
#ifndef LOOM_CUDA_CHOICES_H
#define LOOM_CUDA_CHOICES_H

#include "gptloom/error.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_choice_kind {
    LOOM_CHOICE_MATMUL,
    LOOM_CHOICE_DBIAS,
    LOOM_CHOICE_ATTENTION,
    LOOM_CHOICE_KINDS
} loom_choice_kind;

/* How the text begins; by it the choices of a run that was killed are told from other files. */
#define LOOM_CHOICES_BEGIN "measured on "

enum { LOOM_CHOICE_ALGORITHM = 64 /* bytes */, LOOM_CHOICE_KEY = 800, LOOM_CHOICE_VALUE = 400 };

typedef struct loom_choice {
    loom_choice_kind kind;
    bool taken; /* what was chosen has been made, and may have been used */
    char key[LOOM_CHOICE_KEY], value[LOOM_CHOICE_VALUE];
} loom_choice;

/* In the order in which they were made. All zero: none. */
typedef struct loom_choices {
    loom_choice *at;
    size_t count, room;
} loom_choices;

void loom_choices_clear(loom_choices *choices);

/* The value, or NULL if there is no such choice. It stays as it is from now on. */
const char *loom_choices_take(loom_choices *choices, loom_choice_kind kind, const char *key);

/* Adds what was chosen just now; the key must be new to its kind. The error is out of memory. */
bool loom_choices_add(loom_choices *choices, loom_choice_kind kind, const char *key, const char *value,
                      loom_error *error);

/* The text, to be freed; NULL where there are no choices. `measured_on` is one line. */
bool loom_choices_write(const loom_choices *choices, const char *measured_on, char **text, loom_error *error);

/* Puts the choices of the text, which may be NULL, in the place of those there are; of these, only what was taken stays,
 * behind the others. All stay when the text is refused: because it was measured on something else, contradicts what was
 * taken, or is not such a text. */
bool loom_choices_read(loom_choices *choices, const char *measured_on, const char *text, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
