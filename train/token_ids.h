/* A prompt as token ids, '464 3280 318'. */
#ifndef GPTLOOM_TOKEN_IDS_H
#define GPTLOOM_TOKEN_IDS_H

#include "gptloom/error.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The ids, separated by spaces and commas, behind the `n` that are in `tokens`, which has room for strlen(text) more.
 * */
bool loom_token_ids_read(const char *text, int64_t vocab_size, int32_t *tokens, int64_t *n, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
