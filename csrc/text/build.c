#include "text/build.h"

#include "text/byte_characters.h"

#include <stdlib.h>
#include <string.h>

/* -------------------------------------------------------------------------------------------------------- a tokenizer */

loom_tokenizer *loom_tokenizer_new(const char *path, loom_error *error) {
    loom_tokenizer *t = calloc(1, sizeof *t);
    if (t) t->vocabulary = loom_vocabulary_open();
    if (t && t->vocabulary) return t;
    free(t);
    loom_fail(error, "%s: no memory to read it", path);
    return NULL;
}

void loom_tokenizer_close(loom_tokenizer *t) {
    if (!t) return;
    for (int i = 0; i < t->n_added; i++) free(t->added[i].content);
    free(t->added);
    loom_vocabulary_close(t->vocabulary);
    free(t);
}

/* Of two added tokens that begin alike the longer one is looked for first. */
static int by_length(const void *a, const void *b) {
    const loom_added_token *x = a, *y = b;
    if (x->n != y->n) return x->n < y->n ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Whether an added token has this id, so that the vocabulary's own spelling of it does not count. */
static bool is_added(const loom_tokenizer *t, int64_t id) {
    for (int i = 0; i < t->n_added; i++)
        if (t->added[i].id == id) return true;
    return false;
}

bool loom_tokenizer_add_token(loom_tokenizer *t, loom_added_token token, const char *path, loom_error *error) {
    if (token.n == 0 || token.n > LOOM_LONGEST_TOKEN || token.id < 0 || token.id > LOOM_LARGEST_TOKEN_ID)
        return loom_fail(error, "%s: added token %d has no content or a very long one, or an id that no token can have",
                         path, token.id);
    if (is_added(t, token.id)) return loom_fail(error, "%s: two added tokens have id %d", path, token.id);
    loom_added_token *grown = realloc(t->added, (size_t)(t->n_added + 1) * sizeof *grown);
    if (grown) t->added = grown;
    token.content = grown ? strdup(token.content) : NULL;
    if (!token.content) return loom_fail(error, "%s: no memory to read it", path);
    t->added[t->n_added++] = token;
    const bool is_new = !loom_vocabulary_bytes(t->vocabulary, token.id).n;
    return !is_new || loom_vocabulary_add_apart(t->vocabulary, token.id, token.content, token.n) ||
           loom_fail(error, "%s: no memory to read it", path);
}

bool loom_tokenizer_finish(loom_tokenizer *t, const char *path, loom_error *error) {
    for (int byte = 0; byte < 256; byte++) {
        const uint8_t one = (uint8_t)byte;
        t->of_byte[byte] = loom_vocabulary_find(t->vocabulary, &one, 1);
        if (t->of_byte[byte] < 0)
            return loom_fail(error, "%s: has no token for byte 0x%02X: it is no byte-level vocabulary", path, byte);
    }
    if (t->n_added > 1) qsort(t->added, (size_t)t->n_added, sizeof *t->added, by_length);
    return true;
}

/* ------------------------------------------------------------------------------------- tokens and merges as characters */

static bool add_entry(loom_tokenizer *t, const cJSON *item, uint8_t *bytes, const char *path, loom_error *error) {
    int64_t id;
    size_t n;
    if (!loom_json_whole(item, &id) || id > LOOM_LARGEST_TOKEN_ID)
        return loom_fail(error, "%s: token \"%s\" has no id from 0 to %d", path, item->string, LOOM_LARGEST_TOKEN_ID);
    const bool is_bytes = loom_bytes_of_characters(item->string, bytes, &n) && n > 0 && n <= LOOM_LONGEST_TOKEN;
    const bool is_taken = loom_vocabulary_bytes(t->vocabulary, (int32_t)id).n > 0;
    if ((!is_bytes || is_taken) && is_added(t, id)) return true;
    if (!is_bytes)
        return loom_fail(error, "%s: token %d, \"%s\", is not made of bytes: it is no byte-level vocabulary", path,
                         (int)id, item->string);
    if (is_taken) return loom_fail(error, "%s: two tokens have id %d", path, (int)id);
    return loom_vocabulary_add(t->vocabulary, (int32_t)id, bytes, n) ||
           loom_fail(error, "%s: no memory to read it", path);
}

bool loom_tokenizer_add_vocabulary(loom_tokenizer *t, const cJSON *vocabulary, const char *path, loom_error *error) {
    size_t longest = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, vocabulary) longest = strlen(item->string) > longest ? strlen(item->string) : longest;
    uint8_t *bytes = malloc(longest + 1);
    bool ok = bytes || loom_fail(error, "%s: no memory to read it", path);
    cJSON_ArrayForEach(item, vocabulary) {
        ok = ok && add_entry(t, item, bytes, path, error);
    }
    free(bytes);
    return ok;
}

/* The token of characters that stand for bytes, which are overwritten by these; -1: none. */
static int32_t find_token(const loom_tokenizer *t, char *characters, size_t *n) {
    uint8_t *bytes = (uint8_t *)characters;
    if (!loom_bytes_of_characters(characters, bytes, n) || *n == 0) return -1;
    return loom_vocabulary_find(t->vocabulary, bytes, *n);
}

bool loom_tokenizer_add_merge(loom_tokenizer *t, char *first, char *second, uint32_t rank, bool has_ids,
                              const char *path, loom_error *error) {
    size_t n, m;
    const int32_t a = find_token(t, first, &n), b = find_token(t, second, &m);
    uint8_t *bytes = a >= 0 && b >= 0 ? malloc(n + m) : NULL;
    if (a < 0 || b < 0) return loom_fail(error, "%s: merge %u is of what is no token", path, rank + 1);
    if (n + m > LOOM_LONGEST_TOKEN || !bytes) {
        const bool is_long = n + m > LOOM_LONGEST_TOKEN;
        free(bytes);
        return loom_fail(error, "%s: %s merge %u", path, is_long ? "too long a token comes of" : "no memory for",
                         rank + 1);
    }
    memcpy(bytes, first, n);
    memcpy(bytes + n, second, m);
    int32_t id = loom_vocabulary_find(t->vocabulary, bytes, n + m);
    bool ok = true;
    if (id < 0 && !has_ids && loom_vocabulary_size(t->vocabulary) <= LOOM_LARGEST_TOKEN_ID) {
        id = loom_vocabulary_size(t->vocabulary);
        ok = loom_vocabulary_add(t->vocabulary, id, bytes, n + m);
    }
    free(bytes);
    if (id < 0) return loom_fail(error, "%s: merge %u makes what is no token", path, rank + 1);
    return (ok && loom_vocabulary_add_merge(t->vocabulary, a, b, (loom_merge){rank, id})) ||
           loom_fail(error, "%s: no memory to read it", path);
}
