/* The tuning cache: what was autotuned for a run. As text it is kept with the run and sent to other ranks. The first
 * line says on what it was measured; then comes a line of three words for each entry, KIND KEY VALUE:
 *
 *     matmul PRODUCT 4e001f…              the algorithm of a matrix product, cuBLASLt's 64 bytes in hexadecimal digits
 *     dbias PRODUCT kernel|epilogue       who sums up the bias gradient beside a product: our kernel, or cuBLASLt
 *     attention GRAPH engine8,24=3,27=1   cuDNN's engine for an attention, and its knobs */
#ifndef LOOM_CUDA_TUNING_H
#define LOOM_CUDA_TUNING_H

#include "gptloom/error.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_tuning_kind {
    LOOM_TUNING_MATMUL,
    LOOM_TUNING_DBIAS,
    LOOM_TUNING_ATTENTION,
    LOOM_TUNING_KINDS
} loom_tuning_kind;

enum { LOOM_TUNING_ALGORITHM = 64 /* bytes */, LOOM_TUNING_KEY = 800, LOOM_TUNING_VALUE = 400 };

typedef struct loom_tuning_entry {
    loom_tuning_kind kind;
    bool taken; /* it was asked for: a plan may have been made by it */
    char key[LOOM_TUNING_KEY], value[LOOM_TUNING_VALUE];
} loom_tuning_entry;

/* Entries in the order in which they were added. All zero: none. */
typedef struct loom_tuning {
    loom_tuning_entry *at;
    size_t count, room;
} loom_tuning;

void loom_tuning_clear(loom_tuning *tuning);

/* The value, or NULL if there is no such entry. The entry stays as it is from now on. */
const char *loom_tuning_take(loom_tuning *tuning, loom_tuning_kind kind, const char *key);

/* Adds an entry, which was measured just now; the key must be new to its kind. The error is out of memory. */
bool loom_tuning_add(loom_tuning *tuning, loom_tuning_kind kind, const char *key, const char *value, loom_error *error);

/* The text, to be freed; NULL where there are no entries. `measured_on` is one line. */
bool loom_tuning_write(const loom_tuning *tuning, const char *measured_on, char **text, loom_error *error);

/* Puts the entries of the text, which may be NULL, in the place of those there are; of these only what was taken stays,
 * behind the others. All stay when the text is refused: because it was measured on something else, contradicts what was
 * taken, or is not such a text. */
bool loom_tuning_read(loom_tuning *tuning, const char *measured_on, const char *text, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
