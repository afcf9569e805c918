/* Reading tokenizers: which file is what, and the files. */
#include "base/file.h"
#include "text/build.h"
#include "text/byte_characters.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST_FILE = 64 << 20 };

/* ------------------------------------------------------------------------------------------ merges.txt and vocab.json */

/* Lines of two tokens. A first line that begins with "#version" is none, nor are empty ones. */
static bool read_merges(loom_tokenizer *t, char *text, bool has_ids, const char *path, loom_error *error) {
    uint32_t rank = 0;
    if (!strncmp(text, "#version", strlen("#version"))) text += strcspn(text, "\n");
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        if (*next) *next++ = 0;
        const size_t length = strlen(line);
        if (length && line[length - 1] == '\r') line[length - 1] = 0;
        if (!*line) continue;
        char *space = strchr(line, ' ');
        if (!space || strchr(space + 1, ' '))
            return loom_fail(error, "%s: merge %u is not two tokens with a space between them", path, rank + 1);
        *space = 0;
        if (!loom_tokenizer_add_merge(t, line, space + 1, rank++, has_ids, path, error)) return false;
    }
    return true;
}

static bool add_gpt2_bytes(loom_tokenizer *t) {
    uint8_t order[256];
    loom_byte_order(order);
    for (int i = 0; i < 256; i++)
        if (!loom_vocabulary_add(t->vocabulary, i, &order[i], 1)) return false;
    return true;
}

/* GPT-2's end of text is the last token; a vocab.json has it, as text. */
static bool add_end_of_text(loom_tokenizer *t, bool has_ids, const char *path, loom_error *error) {
    static char content[] = "<|endoftext|>";
    loom_added_token token = {.content = content, .n = sizeof content - 1, .special = true};
    const int32_t id = loom_vocabulary_find(t->vocabulary, content, token.n);
    if (id < 0 && has_ids) return true;
    token.id = id >= 0 ? id : loom_vocabulary_size(t->vocabulary);
    return loom_tokenizer_add_token(t, token, path, error);
}

static bool read_with_merges(loom_tokenizer *t, char *merges, const char *merges_path, const char *vocabulary_path,
                             loom_error *error) {
    cJSON *vocabulary = vocabulary_path ? loom_json_read(vocabulary_path, error) : NULL;
    if (vocabulary_path && !vocabulary) return false;
    const bool is_read = vocabulary ? loom_tokenizer_add_vocabulary(t, vocabulary, vocabulary_path, error)
                                    : add_gpt2_bytes(t) || loom_fail(error, "%s: no memory to read it", merges_path);
    cJSON_Delete(vocabulary);
    t->split = LOOM_SPLIT_GPT2;
    return is_read && read_merges(t, merges, vocabulary_path != NULL, merges_path, error) &&
           add_end_of_text(t, vocabulary_path != NULL, merges_path, error);
}

/* ---------------------------------------------------------------------------------------------------- tokenizer.json */

static bool is_null(const cJSON *item) {
    return !item || cJSON_IsNull(item);
}

static bool flag_of(const cJSON *json, const char *key, bool otherwise) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    return cJSON_IsBool(item) ? cJSON_IsTrue(item) : otherwise;
}

/* The "type" of a stage; "" where there is none. */
static const char *type_of(const cJSON *json) {
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "type"));
    return type ? type : "";
}

/* An empty sequence of normalizers is none. */
static bool check_normalizer(const cJSON *json, const char *path, loom_error *error) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, "normalizers");
    if (is_null(json) || (!strcmp(type_of(json), "Sequence") && cJSON_IsArray(list) && !list->child)) return true;
    return loom_fail(error, "%s: changes text before it is encoded (normalizer %s), which gptloom does not", path,
                     type_of(json));
}

static bool read_split(loom_tokenizer *t, const cJSON *stage, const char *path, loom_error *error) {
    const char *behavior = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(stage, "behavior"));
    const cJSON *pattern = cJSON_GetObjectItemCaseSensitive(stage, "pattern");
    const char *regex = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(pattern, "Regex"));
    if (!regex || !behavior || strcmp(behavior, "Isolated") != 0 || flag_of(stage, "invert", false))
        return loom_fail(error, "%s: splits text in another way than by a regular expression for pieces", path);
    return loom_split_pattern_find(regex, &t->split) ||
           loom_fail(error, "%s: splits text by a pattern that is not known here: %s", path, regex);
}

/* ByteLevel, which may split as GPT-2 does; or first Split and then ByteLevel. */
static bool read_pre_tokenizer(loom_tokenizer *t, const cJSON *stage, const char *path, loom_error *error) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(stage, "pretokenizers");
    const bool is_sequence = !strcmp(type_of(stage), "Sequence") && cJSON_IsArray(list) && list->child;
    const cJSON *first = is_sequence ? list->child : stage, *last = first;
    if (is_sequence && first->next && !strcmp(type_of(first), "Split")) {
        if (!read_split(t, first, path, error)) return false;
        last = first->next;
    }
    if (is_sequence && last->next)
        return loom_fail(error, "%s: splits text in more ways than are known here (%s)", path, type_of(last->next));
    if (strcmp(type_of(last), "ByteLevel") != 0)
        return loom_fail(error, "%s: is no byte-level tokenizer: its pre-tokenizer is %s", path, type_of(last));
    t->prefix_space = flag_of(last, "add_prefix_space", true);
    if (last != first && t->prefix_space)
        return loom_fail(error, "%s: puts a space before each piece, which gptloom does not", path);
    const bool by_gpt2 = flag_of(last, "use_regex", true);
    if (last != first) return !by_gpt2 || loom_fail(error, "%s: splits text twice", path);
    t->split = by_gpt2 ? LOOM_SPLIT_GPT2 : LOOM_SPLIT_NONE;
    return true;
}

static bool read_added(loom_tokenizer *t, const cJSON *list, const char *path, loom_error *error) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        int64_t id;
        const char *content = loom_json_get_string(item, path, "content", error);
        if (!content || !loom_json_get_whole(item, path, "id", 0, LOOM_LARGEST_TOKEN_ID, &id, error)) return false;
        const loom_added_token token = {.content = (char *)content,
                                        .n = strlen(content),
                                        .id = (int32_t)id,
                                        .special = flag_of(item, "special", false),
                                        .left_strip = flag_of(item, "lstrip", false),
                                        .right_strip = flag_of(item, "rstrip", false),
                                        .single_word = flag_of(item, "single_word", false)};
        if (!loom_tokenizer_add_token(t, token, path, error)) return false;
    }
    return true;
}

/* A merge is "first second", or the list of the two. */
static bool read_json_merge(loom_tokenizer *t, const cJSON *item, uint32_t rank, const char *path, loom_error *error) {
    const cJSON *pair = cJSON_IsArray(item) ? item->child : NULL;
    char *first = cJSON_GetStringValue(pair ? pair : item);
    char *second = pair && pair->next ? cJSON_GetStringValue(pair->next) : NULL;
    if (first && !pair && (second = strchr(first, ' ')) != NULL) *second++ = 0;
    if (!first || !second || (pair && pair->next->next))
        return loom_fail(error, "%s: merge %u is not of two tokens", path, rank + 1);
    return loom_tokenizer_add_merge(t, first, second, rank, true, path, error);
}

static bool is_nothing(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    return is_null(item) || (cJSON_IsString(item) && !*item->valuestring) ||
           (cJSON_IsNumber(item) && item->valuedouble == 0);
}

static bool read_model(loom_tokenizer *t, const cJSON *model, const char *path, loom_error *error) {
    const cJSON *vocabulary = cJSON_GetObjectItemCaseSensitive(model, "vocab");
    const cJSON *merges = cJSON_GetObjectItemCaseSensitive(model, "merges"), *item;
    if (!cJSON_IsObject(vocabulary) || !cJSON_IsArray(merges) ||
        (*type_of(model) && strcmp(type_of(model), "BPE") != 0))
        return loom_fail(error, "%s: is of a model %s, not of byte-pair encoding (BPE)", path, type_of(model));
    for (const char *const *key =
             (const char *const[]){"dropout", "continuing_subword_prefix", "end_of_word_suffix", NULL};
         *key; key++)
        if (!is_nothing(model, *key))
            return loom_fail(error, "%s: its model has a \"%s\", which is not known here", path, *key);
    t->whole_first = flag_of(model, "ignore_merges", false);
    if (!loom_tokenizer_add_vocabulary(t, vocabulary, path, error)) return false;
    uint32_t rank = 0;
    cJSON_ArrayForEach(item, merges) {
        if (!read_json_merge(t, item, rank++, path, error)) return false;
    }
    return true;
}

static bool read_tokenizer_json(loom_tokenizer *t, const cJSON *json, const char *path, loom_error *error) {
    return check_normalizer(cJSON_GetObjectItemCaseSensitive(json, "normalizer"), path, error) &&
           read_pre_tokenizer(t, cJSON_GetObjectItemCaseSensitive(json, "pre_tokenizer"), path, error) &&
           read_added(t, cJSON_GetObjectItemCaseSensitive(json, "added_tokens"), path, error) &&
           read_model(t, cJSON_GetObjectItemCaseSensitive(json, "model"), path, error);
}

/* ---------------------------------------------------------------------------------------------------------- tiktoken */

/* Base64 (RFC 4648) of a word of n characters; false where it is none, or empty. */
static bool decode_base64(const char *word, size_t n, uint8_t *bytes, size_t *count) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    size_t padding = 0;
    *count = 0;
    while (n > 0 && padding < 2 && word[n - 1] == '=') n--, padding++;
    if ((n + padding) % 4 != 0 || n == 0) return false;
    for (size_t i = 0; i < n; i++) {
        const char *digit = word[i] ? strchr(digits, word[i]) : NULL;
        if (!digit) return false;
        bits = bits << 6 | (uint32_t)(digit - digits);
        if (i % 4 == 3)
            for (int shift = 16; shift >= 0; shift -= 8) bytes[(*count)++] = (uint8_t)(bits >> shift);
    }
    if (n % 4 == 2) bytes[(*count)++] = (uint8_t)(bits >> 4);
    if (n % 4 == 3) bytes[(*count)++] = (uint8_t)(bits >> 10), bytes[(*count)++] = (uint8_t)(bits >> 2);
    return true;
}

/* Lines of a token's bytes in base64 and its rank, which is its id. */
static bool read_ranks(loom_tokenizer *t, char *text, const char *path, loom_error *error) {
    int line_number = 1;
    for (char *line = text, *next; *line; line = next, line_number++) {
        next = line + strcspn(line, "\n");
        if (*next) *next++ = 0;
        line[strcspn(line, "\r")] = 0;
        if (!*line) continue;
        char *space = strchr(line, ' '), *end = NULL;
        const long id = space ? strtol(space + 1, &end, 10) : -1;
        size_t n = 0;
        if (!space || !end || end == space + 1 || *end || id < 0 || id > LOOM_LARGEST_TOKEN_ID ||
            !decode_base64(line, (size_t)(space - line), (uint8_t *)line, &n) || n > LOOM_LONGEST_TOKEN)
            return loom_fail(error, "%s: line %d is not a token in base64 and its rank", path, line_number);
        if (loom_vocabulary_bytes(t->vocabulary, (int32_t)id).n || loom_vocabulary_find(t->vocabulary, line, n) >= 0)
            return loom_fail(error, "%s: line %d: a token or its rank, %ld, is there twice", path, line_number, id);
        if (!loom_vocabulary_add(t->vocabulary, (int32_t)id, line, n))
            return loom_fail(error, "%s: no memory to read it", path);
    }
    return loom_vocabulary_merge_by_rank(t->vocabulary) || loom_fail(error, "%s: no memory to read it", path);
}

/* What tiktoken's files do not say: how many ranks a public vocabulary has, its pattern, and its special tokens. */
typedef struct public_ranks {
    const char *pattern;
    loom_split_pattern split;
    int32_t ranks; /* 0: any other */
    loom_added_token added[6];
} public_ranks;

#define ADDED(text, number)                                                                                            \
    { .content = text, .n = sizeof text - 1, .id = number, .special = true }
static const public_ranks known[] = {
    {"gpt2", LOOM_SPLIT_GPT2, 50256, {ADDED("<|endoftext|>", 50256)}},
    {"cl100k",
     LOOM_SPLIT_CL100K,
     100256,
     {ADDED("<|endoftext|>", 100257), ADDED("<|fim_prefix|>", 100258), ADDED("<|fim_middle|>", 100259),
      ADDED("<|fim_suffix|>", 100260), ADDED("<|endofprompt|>", 100276)}},
    {"o200k", LOOM_SPLIT_O200K, 199998, {ADDED("<|endoftext|>", 199999), ADDED("<|endofprompt|>", 200018)}},
    {"llama3",
     LOOM_SPLIT_LLAMA3,
     128000,
     {ADDED("<|begin_of_text|>", 128000), ADDED("<|end_of_text|>", 128001), ADDED("<|start_header_id|>", 128006),
      ADDED("<|end_header_id|>", 128007), ADDED("<|eot_id|>", 128009)}},
};
#undef ADDED
enum { KNOWN = sizeof known / sizeof *known };

bool loom_split_pattern_by_name(const char *name, loom_split_pattern *pattern, loom_error *error) {
    for (int i = 0; i < KNOWN; i++)
        if (!strcmp(name, known[i].pattern)) {
            *pattern = known[i].split;
            return true;
        }
    return loom_fail(error, "--pattern: '%s' is not known; there are gpt2, cl100k, o200k, llama3", name);
}

static bool read_tiktoken(loom_tokenizer *t, char *text, const char *pattern, const char *path, loom_error *error) {
    loom_split_pattern ignored;
    if (pattern && !loom_split_pattern_by_name(pattern, &ignored, error)) return false;
    if (!read_ranks(t, text, path, error)) return false;
    const int32_t ranks = loom_vocabulary_size(t->vocabulary);
    const public_ranks *of = NULL;
    for (int i = 0; i < KNOWN && !of; i++)
        if (pattern ? !strcmp(pattern, known[i].pattern) : ranks == known[i].ranks) of = &known[i];
    if (!of)
        return loom_fail(error, "%s: has %d ranks, as no public vocabulary: say by which pattern it splits", path,
                         ranks);
    t->split = of->split;
    t->whole_first = true;
    if (ranks != of->ranks) {
        static char end_of_text[] = "<|endoftext|>";
        return loom_tokenizer_add_token(
            t, (loom_added_token){.content = end_of_text, .n = sizeof end_of_text - 1, .id = ranks, .special = true},
            path, error);
    }
    for (const loom_added_token *token = of->added; token->n; token++)
        if (!loom_tokenizer_add_token(t, *token, path, error)) return false;
    return true;
}

/* ------------------------------------------------------------------------------------------------------ what is what */

/* The first of several names that is beside `path`, or in it; "" where none is. */
static bool find_beside(char found[PATH_MAX], const char *path, const char *const *names, loom_error *error) {
    char folder[PATH_MAX] = ".";
    const char *slash = strrchr(path, '/');
    if (loom_is_directory(path))
        snprintf(folder, sizeof folder, "%s", path);
    else if (slash)
        snprintf(folder, sizeof folder, "%.*s", (int)(slash == path ? 1 : slash - path), path);
    for (; *names; names++) {
        if (!loom_join_path(found, PATH_MAX, folder, *names, error)) return false;
        if (loom_path_exists(found)) return true;
    }
    *found = 0;
    return true;
}

static const char *const vocabularies[] = {"vocab.json", "encoder.json", NULL};
static const char *const merge_lists[] = {"merges.txt", "vocab.bpe", NULL};

static bool read_merges_file(loom_tokenizer *t, const char *path, const char *vocabulary_path, loom_error *error) {
    char *text = loom_file_read_text(path, LARGEST_FILE, error);
    const bool ok = text && read_with_merges(t, text, path, vocabulary_path, error);
    free(text);
    return ok;
}

/* A pattern that was named is that of a file that has none of its own. */
static bool take_pattern(loom_tokenizer *t, bool has_own, const char *pattern, const char *path, loom_error *error) {
    if (!pattern) return true;
    if (has_own) return loom_fail(error, "--pattern: %s has a pattern of its own; leave it away", path);
    return loom_split_pattern_by_name(pattern, &t->split, error);
}

/* A JSON file is a whole tokenizer or its vocabulary alone. */
static bool read_json(loom_tokenizer *t, const char *text, const char *pattern, const char *path, loom_error *error) {
    char merges[PATH_MAX];
    cJSON *json = loom_json_parse(text, path, error);
    if (!json) return false;
    if (cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(json, "model"))) {
        const bool ok = loom_json_check_keys(json, path, error) && read_tokenizer_json(t, json, path, error) &&
                        take_pattern(t, true, pattern, path, error);
        cJSON_Delete(json);
        return ok;
    }
    cJSON_Delete(json);
    if (!find_beside(merges, path, merge_lists, error)) return false;
    if (!*merges)
        return loom_fail(error, "%s: is no tokenizer.json, nor a vocabulary with its merges.txt beside it", path);
    return read_merges_file(t, merges, path, error) && take_pattern(t, false, pattern, path, error);
}

static bool read_file(loom_tokenizer *t, const char *path, const char *pattern, loom_error *error) {
    char *text = loom_file_read_text(path, LARGEST_FILE, error), vocabulary[PATH_MAX];
    if (!text) return false;
    const char *begin = text + strspn(text, " \t\r\n");
    size_t word = strcspn(begin, " \r\n"), n;
    uint8_t *bytes = malloc(word + 1);
    const bool is_ranks = bytes && begin[word] == ' ' && decode_base64(begin, word, bytes, &n) &&
                          strspn(begin + word + 1, "0123456789") == strcspn(begin + word + 1, "\r\n");
    free(bytes);
    bool ok;
    if (*begin == '{')
        ok = read_json(t, text, pattern, path, error);
    else if (is_ranks)
        ok = read_tiktoken(t, text, pattern, path, error);
    else
        ok = find_beside(vocabulary, path, vocabularies, error) &&
             read_with_merges(t, text, path, *vocabulary ? vocabulary : NULL, error) &&
             take_pattern(t, false, pattern, path, error);
    free(text);
    return ok;
}

static bool read_directory(loom_tokenizer *t, const char *path, const char *pattern, loom_error *error) {
    static const char *const whole[] = {"tokenizer.json", NULL};
    char file[PATH_MAX], vocabulary[PATH_MAX];
    if (!find_beside(file, path, whole, error)) return false;
    if (*file) return read_file(t, file, pattern, error);
    if (!find_beside(file, path, merge_lists, error) || !find_beside(vocabulary, path, vocabularies, error))
        return false;
    if (!*file) return loom_fail(error, "%s: has no tokenizer.json, nor a merges.txt", path);
    return read_merges_file(t, file, *vocabulary ? vocabulary : NULL, error) &&
           take_pattern(t, false, pattern, path, error);
}

bool loom_tokenizer_open(loom_tokenizer **tokenizer, const char *path, const char *pattern, loom_error *error) {
    loom_tokenizer *t = *tokenizer = loom_tokenizer_new(path, error);
    if (!t) return false;
    const bool is_read = loom_is_directory(path) ? read_directory(t, path, pattern, error)
                                                 : read_file(t, path, pattern, error);
    if (is_read && loom_tokenizer_finish(t, path, error)) return true;
    loom_tokenizer_close(t);
    *tokenizer = NULL;
    return false;
}
