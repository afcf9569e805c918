/* Building a tokenizer from what a file of it holds. Errors name the file, `path`. */
#ifndef LOOM_TEXT_BUILD_H
#define LOOM_TEXT_BUILD_H

#include "base/json.h"
#include "text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

loom_tokenizer *loom_tokenizer_new(const char *path, loom_error *error);

/* Adds an added token, whose content is copied. Added tokens come before the vocabulary where both are in a file: the
 * vocabulary may spell them in another way. */
bool loom_tokenizer_add_token(loom_tokenizer *t, loom_added_token token, const char *path, loom_error *error);

/* Adds {"token": id, ...}, in characters that stand for bytes. */
bool loom_tokenizer_add_vocabulary(loom_tokenizer *t, const cJSON *vocabulary, const char *path, loom_error *error);

/* Adds the merge of two tokens, in such characters, which are overwritten. `rank` is its place in the list. Without
 * `has_ids` the token that it makes gets the next id. */
bool loom_tokenizer_add_merge(loom_tokenizer *t, char *first, char *second, uint32_t rank, bool has_ids,
                              const char *path, loom_error *error);

/* Checks what every tokenizer must have, a token for each byte, and orders its added tokens. */
bool loom_tokenizer_finish(loom_tokenizer *t, const char *path, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
