/* Writing a tokenizer as Hugging Face's tokenizer.json. */
#include "base/file.h"
#include "base/json.h"
#include "text/byte_characters.h"
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* A token in characters that stand for its bytes; "" is none. */
static char *characters_of(const loom_tokenizer *t, const loom_byte_characters *characters, int32_t id) {
    const loom_token_bytes token = loom_vocabulary_bytes(t->vocabulary, id);
    char *string = malloc(2 * token.n + 1);
    if (string) loom_characters_of_bytes(characters, token.bytes, token.n, string);
    return string;
}

/* An added token as it is: transformers take its id from here. */
static char *content_of(const loom_tokenizer *t, int32_t id) {
    const loom_token_bytes token = loom_vocabulary_bytes(t->vocabulary, id);
    return strndup((const char *)token.bytes, token.n);
}

static bool add_vocabulary(cJSON *model, const loom_tokenizer *t, const loom_byte_characters *characters) {
    cJSON *vocabulary = cJSON_AddObjectToObject(model, "vocab");
    for (int32_t id = 0; vocabulary && id < loom_vocabulary_size(t->vocabulary); id++) {
        if (!loom_vocabulary_bytes(t->vocabulary, id).n) continue;
        const bool is_found = loom_vocabulary_finds(t->vocabulary, id);
        char *string = is_found ? characters_of(t, characters, id) : content_of(t, id);
        const bool ok = string && cJSON_AddNumberToObject(vocabulary, string, id);
        free(string);
        if (!ok) return false;
    }
    return vocabulary;
}

static bool add_string(cJSON *list, const loom_tokenizer *t, const loom_byte_characters *characters, int32_t id) {
    char *string = characters_of(t, characters, id);
    cJSON *item = string ? cJSON_CreateString(string) : NULL;
    free(string);
    return item && cJSON_AddItemToArray(list, item);
}

static bool add_merges(cJSON *model, const loom_tokenizer *t, const loom_byte_characters *characters) {
    const size_t n = loom_vocabulary_merges(t->vocabulary);
    loom_ranked_merge *merge = malloc((n + 1) * sizeof *merge);
    cJSON *list = cJSON_AddArrayToObject(model, "merges");
    bool ok = merge && list;
    if (ok) loom_vocabulary_list_merges(t->vocabulary, merge);
    for (size_t i = 0; ok && i < n; i++) {
        cJSON *pair = cJSON_CreateArray();
        ok = pair && cJSON_AddItemToArray(list, pair) && add_string(pair, t, characters, merge[i].a) &&
             add_string(pair, t, characters, merge[i].b);
    }
    free(merge);
    return ok;
}

static bool add_model(cJSON *json, const loom_tokenizer *t) {
    const loom_byte_characters characters = loom_byte_characters_make();
    cJSON *model = cJSON_AddObjectToObject(json, "model");
    return model && cJSON_AddStringToObject(model, "type", "BPE") && cJSON_AddNullToObject(model, "dropout") &&
           cJSON_AddNullToObject(model, "unk_token") && cJSON_AddNullToObject(model, "continuing_subword_prefix") &&
           cJSON_AddNullToObject(model, "end_of_word_suffix") && cJSON_AddBoolToObject(model, "fuse_unk", false) &&
           cJSON_AddBoolToObject(model, "byte_fallback", false) &&
           cJSON_AddBoolToObject(model, "ignore_merges", t->whole_first) && add_vocabulary(model, t, &characters) &&
           add_merges(model, t, &characters);
}

/* ------------------------------------------------------------------------------------------------------------- stages */

static bool fill_byte_level(cJSON *stage, bool prefix_space, bool use_regex) {
    return cJSON_AddStringToObject(stage, "type", "ByteLevel") &&
           cJSON_AddBoolToObject(stage, "add_prefix_space", prefix_space) &&
           cJSON_AddBoolToObject(stage, "trim_offsets", true) && cJSON_AddBoolToObject(stage, "use_regex", use_regex);
}

static bool fill_split(cJSON *stage, const char *regex) {
    cJSON *pattern;
    return cJSON_AddStringToObject(stage, "type", "Split") &&
           (pattern = cJSON_AddObjectToObject(stage, "pattern")) != NULL &&
           cJSON_AddStringToObject(pattern, "Regex", regex) && cJSON_AddStringToObject(stage, "behavior", "Isolated") &&
           cJSON_AddBoolToObject(stage, "invert", false);
}

static cJSON *add_object(cJSON *list) {
    cJSON *object = list ? cJSON_CreateObject() : NULL;
    return object && cJSON_AddItemToArray(list, object) ? object : NULL;
}

/* GPT-2's pattern is ByteLevel's own. */
static bool add_pre_tokenizer(cJSON *json, const loom_tokenizer *t) {
    const char *regex = loom_split_pattern_regex(t->split);
    cJSON *stage = cJSON_AddObjectToObject(json, "pre_tokenizer");
    if (!stage || !regex || t->split == LOOM_SPLIT_GPT2)
        return stage && fill_byte_level(stage, t->prefix_space, regex != NULL);
    cJSON *list = cJSON_AddStringToObject(stage, "type", "Sequence") ? cJSON_AddArrayToObject(stage, "pretokenizers")
                                                                     : NULL;
    cJSON *split = add_object(list), *byte_level = split ? add_object(list) : NULL;
    return byte_level && fill_split(split, regex) && fill_byte_level(byte_level, t->prefix_space, false);
}

static bool add_added(cJSON *json, const loom_tokenizer *t) {
    cJSON *list = cJSON_AddArrayToObject(json, "added_tokens");
    for (int i = 0; list && i < t->n_added; i++) {
        const loom_added_token *token = &t->added[i];
        cJSON *item = add_object(list);
        if (!item || !cJSON_AddNumberToObject(item, "id", token->id) ||
            !cJSON_AddStringToObject(item, "content", token->content) ||
            !cJSON_AddBoolToObject(item, "single_word", token->single_word) ||
            !cJSON_AddBoolToObject(item, "lstrip", token->left_strip) ||
            !cJSON_AddBoolToObject(item, "rstrip", token->right_strip) ||
            !cJSON_AddBoolToObject(item, "normalized", false) ||
            !cJSON_AddBoolToObject(item, "special", token->special))
            return false;
    }
    return list;
}

static bool fill(cJSON *json, const loom_tokenizer *t) {
    cJSON *decoder;
    return cJSON_AddStringToObject(json, "version", "1.0") && cJSON_AddNullToObject(json, "truncation") &&
           cJSON_AddNullToObject(json, "padding") && add_added(json, t) && cJSON_AddNullToObject(json, "normalizer") &&
           add_pre_tokenizer(json, t) && cJSON_AddNullToObject(json, "post_processor") &&
           (decoder = cJSON_AddObjectToObject(json, "decoder")) != NULL && fill_byte_level(decoder, false, true) &&
           add_model(json, t);
}

bool loom_tokenizer_write_json(const loom_tokenizer *tokenizer, const char *path, loom_error *error) {
    cJSON *json = cJSON_CreateObject();
    char *text = json && fill(json, tokenizer) ? cJSON_PrintUnformatted(json) : NULL;
    cJSON_Delete(json);
    const bool ok = text ? loom_output_write(path, text, strlen(text), error)
                         : loom_fail(error, "%s: no memory to write it", path);
    cJSON_free(text);
    return ok;
}
