/* The byte-level vocabulary as a Hugging Face tokenizer: a BPE without merges. */
#include "checkpoint/documents.h"

#include "gptloom/data.h"
#include "text/byte_characters.h"

#include <string.h>

#define END_OF_TEXT "<|endoftext|>"

enum { BYTES = 256 };

/* ---------------------------------------------------------------------------------------------------------- writing */

/* The fields that describe the end-of-text token in every list that contains it. */
static bool add_special_token(cJSON *token) {
    return cJSON_AddStringToObject(token, "content", END_OF_TEXT) &&
           cJSON_AddBoolToObject(token, "single_word", false) && cJSON_AddBoolToObject(token, "lstrip", false) &&
           cJSON_AddBoolToObject(token, "rstrip", false) && cJSON_AddBoolToObject(token, "normalized", false) &&
           cJSON_AddBoolToObject(token, "special", true);
}

static bool add_byte_level(cJSON *json, const char *stage) {
    cJSON *level = cJSON_AddObjectToObject(json, stage);
    return level && cJSON_AddStringToObject(level, "type", "ByteLevel") &&
           cJSON_AddBoolToObject(level, "add_prefix_space", false) &&
           cJSON_AddBoolToObject(level, "trim_offsets", true) && cJSON_AddBoolToObject(level, "use_regex", false);
}

static bool add_model(cJSON *json) {
    const loom_byte_characters characters = loom_byte_characters_make();
    cJSON *model = cJSON_AddObjectToObject(json, "model");
    bool ok = model && cJSON_AddStringToObject(model, "type", "BPE") && cJSON_AddNullToObject(model, "dropout") &&
              cJSON_AddNullToObject(model, "unk_token") && cJSON_AddNullToObject(model, "continuing_subword_prefix") &&
              cJSON_AddNullToObject(model, "end_of_word_suffix") && cJSON_AddBoolToObject(model, "fuse_unk", false) &&
              cJSON_AddBoolToObject(model, "byte_fallback", false);
    cJSON *vocabulary = ok ? cJSON_AddObjectToObject(model, "vocab") : NULL;
    for (int byte = 0; byte < BYTES; byte++)
        ok = ok && vocabulary && cJSON_AddNumberToObject(vocabulary, characters.of[byte], byte);
    return ok && cJSON_AddArrayToObject(model, "merges");
}

static bool add_tokenizer(cJSON *json) {
    bool ok = cJSON_AddStringToObject(json, "version", "1.0") && cJSON_AddNullToObject(json, "truncation") &&
              cJSON_AddNullToObject(json, "padding");
    cJSON *added = ok ? cJSON_AddArrayToObject(json, "added_tokens") : NULL;
    cJSON *token = cJSON_CreateObject();
    if (!added || !cJSON_AddItemToArray(added, token)) {
        cJSON_Delete(token);
        return false;
    }
    return cJSON_AddNumberToObject(token, "id", LOOM_BYTE_END_OF_TEXT) && add_special_token(token) &&
           cJSON_AddNullToObject(json, "normalizer") && add_byte_level(json, "pre_tokenizer") &&
           cJSON_AddNullToObject(json, "post_processor") && add_byte_level(json, "decoder") && add_model(json);
}

static bool add_settings(cJSON *json, int64_t block_size) {
    cJSON *tokens = cJSON_AddObjectToObject(json, "added_tokens_decoder");
    cJSON *token = cJSON_AddObjectToObject(tokens, "256");
    return token && add_special_token(token) && cJSON_AddStringToObject(json, "bos_token", END_OF_TEXT) &&
           cJSON_AddStringToObject(json, "eos_token", END_OF_TEXT) &&
           cJSON_AddNumberToObject(json, "model_max_length", (double)block_size) &&
           cJSON_AddBoolToObject(json, "clean_up_tokenization_spaces", false) &&
           cJSON_AddStringToObject(json, "tokenizer_class", "PreTrainedTokenizerFast");
}

static bool add_specials(cJSON *json) {
    return cJSON_AddStringToObject(json, "bos_token", END_OF_TEXT) &&
           cJSON_AddStringToObject(json, "eos_token", END_OF_TEXT);
}

bool loom_tokenizer_write(loom_manifest *manifest, int64_t block_size, loom_error *error) {
    cJSON *tokenizer = cJSON_CreateObject();
    if (!loom_manifest_add_json(manifest, LOOM_TOKENIZER_FILE, tokenizer, add_tokenizer(tokenizer), error))
        return false;
    cJSON *settings = cJSON_CreateObject();
    if (!loom_manifest_add_json(manifest, "tokenizer_config.json", settings, add_settings(settings, block_size), error))
        return false;
    cJSON *specials = cJSON_CreateObject();
    return loom_manifest_add_json(manifest, "special_tokens_map.json", specials, add_specials(specials), error);
}

/* ---------------------------------------------------------------------------------------------------------- reading */

/* Fields that transformers or a later version adds to the file are ignored. The model must have no merges, and each
 * byte must be its own token. */
static bool model_is_bytes(const cJSON *model) {
    const loom_byte_characters characters = loom_byte_characters_make();
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(model, "type");
    const cJSON *merges = cJSON_GetObjectItemCaseSensitive(model, "merges");
    const cJSON *vocabulary = cJSON_GetObjectItemCaseSensitive(model, "vocab");
    bool bytes = cJSON_IsString(type) && strcmp(type->valuestring, "BPE") == 0 && cJSON_IsArray(merges) &&
                 !merges->child && cJSON_IsObject(vocabulary);
    for (int byte = 0; bytes && byte < BYTES; byte++) {
        const cJSON *id = cJSON_GetObjectItemCaseSensitive(vocabulary, characters.of[byte]);
        bytes = cJSON_IsNumber(id) && id->valuedouble == byte;
    }
    return bytes;
}

bool loom_tokenizer_is_bytes(const char *path, bool *bytes, loom_error *error) {
    cJSON *json = loom_json_read(path, error);
    *bytes = json && model_is_bytes(cJSON_GetObjectItemCaseSensitive(json, "model"));
    cJSON_Delete(json);
    return json != NULL;
}
