/* The JSON documents of a checkpoint: the model's shape, the byte-level tokenizer, the state of training. */
#ifndef LOOM_CHECKPOINT_DOCUMENTS_H
#define LOOM_CHECKPOINT_DOCUMENTS_H

#include "checkpoint/manifest.h"
#include "gptloom/checkpoint.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LOOM_CONFIG_FILE    "config.json"
#define LOOM_TOKENIZER_FILE "tokenizer.json"
#define LOOM_STATE_FILE     "training_state.json"

/* config.json, as transformers' GPT2LMHeadModel writes it; `dtype` is that of the weights beside it. */
bool loom_config_write(loom_manifest *manifest, const loom_gpt_config *config, const loom_text_ends *ends,
                       loom_dtype dtype, loom_error *error);

/* Reads any GPT-2's config.json, and refuses what would compute something else than this program does. */
bool loom_config_read(const char *path, loom_gpt_config *config, loom_text_ends *ends, loom_error *error);

/* tokenizer.json, tokenizer_config.json and special_tokens_map.json: byte n is token n, end-of-text is 256. */
bool loom_tokenizer_write(loom_manifest *manifest, int64_t block_size, loom_error *error);

/* Whether a tokenizer.json is that of the bytes. Another one is no error, a damaged one is. */
bool loom_tokenizer_is_bytes(const char *path, bool *bytes, loom_error *error);

/* training_state.json. 64-bit numbers are strings, because JSON readers keep 53 bits; doubles are hexadecimal. */
bool loom_state_write(loom_manifest *manifest, const loom_training_state *state, loom_error *error);
bool loom_state_read(const char *path, loom_training_state *state, loom_error *error);

/* The ends of texts of a vocabulary: the byte-level one's, GPT-2's, or none. */
loom_text_ends loom_text_ends_of(bool bytes, int64_t vocab_size);

#ifdef __cplusplus
}
#endif
#endif
