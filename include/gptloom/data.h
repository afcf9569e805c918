/* What a trainer says of its data. */
#ifndef GPTLOOM_DATA_H
#define GPTLOOM_DATA_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Token ids. Text is read as bytes, and the last id of its vocabulary ends a text. llm.c's shards hold GPT-2's
 * tokens. */
enum { LOOM_BYTE_VOCABULARY = 257, LOOM_BYTE_END_OF_TEXT = 256, LOOM_GPT2_VOCABULARY = 50257 };

typedef struct loom_dataset loom_dataset;

int64_t loom_dataset_tokens(const loom_dataset *dataset);
bool loom_dataset_is_bytes(const loom_dataset *dataset);
int loom_dataset_files(const loom_dataset *dataset);
const char *loom_dataset_first_path(const loom_dataset *dataset);
/* One line on what was found, "PATH is HTML: ..."; "": nothing to say. */
const char *loom_dataset_note(const loom_dataset *dataset);

#ifdef __cplusplus
}
#endif
#endif
