#include "text/bpe.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

#include <stdlib.h>
#include <string.h>

/* Most pieces of a text were seen before, and most are short. Two caches have what they became, each piece in one line
 * that its bytes decide: pieces of up to 7 bytes, and those of up to 31. */
enum { SHORT_KEY = 7, LONG_KEY = 31, SHORT_IDS = 5, LONG_IDS = 7 };
enum { SHORT_BITS = 16, LONG_BITS = 14 }; /* of the number of lines */

typedef struct short_line {
    uint64_t key; /* the piece, zeros, and its length in the last byte; 0: none */
    int32_t id[SHORT_IDS];
    uint32_t n;
} short_line;

typedef struct long_key {
    uint64_t word[4]; /* the same */
} long_key;

typedef struct long_line {
    long_key key;
    int32_t id[LONG_IDS];
    uint32_t n;
} long_line;

_Static_assert(sizeof(short_line) == 32 && sizeof(long_line) == 64, "lines of the processor's cache are not cut");

struct loom_encoder {
    const loom_tokenizer *tokenizer;
    loom_special special;
    bool is_first_byte[256]; /* of an added token */
    loom_bpe_scratch scratch;
    uint8_t *prefixed; /* a stretch with a space before it */
    size_t prefixed_capacity;
    short_line *short_lines;
    long_line *long_lines;
};

static void *new_lines(size_t bytes) {
    void *lines = aligned_alloc(64, bytes);
    if (lines) memset(lines, 0, bytes);
    return lines;
}

loom_encoder *loom_encoder_open(const loom_tokenizer *tokenizer, loom_special special, loom_error *error) {
    loom_encoder *e = calloc(1, sizeof *e);
    if (e) e->short_lines = new_lines(sizeof(short_line) << SHORT_BITS);
    if (e && e->short_lines) e->long_lines = new_lines(sizeof(long_line) << LONG_BITS);
    if (!e || !e->long_lines) {
        loom_encoder_close(e);
        loom_fail(error, "no memory for a tokenizer's cache");
        return NULL;
    }
    e->tokenizer = tokenizer;
    e->special = special;
    for (int i = 0; i < tokenizer->n_added; i++)
        if (special != LOOM_SPECIAL_TEXT || !tokenizer->added[i].special)
            e->is_first_byte[(uint8_t)tokenizer->added[i].content[0]] = true;
    return e;
}

void loom_encoder_close(loom_encoder *e) {
    if (!e) return;
    loom_bpe_free(&e->scratch);
    free(e->prefixed);
    free(e->short_lines);
    free(e->long_lines);
    free(e);
}

/* ----------------------------------------------------------------------------------------------------------- pieces */

static bool merge_piece(loom_encoder *e, const uint8_t *piece, size_t n, int32_t *ids, size_t *count) {
    const loom_tokenizer *t = e->tokenizer;
    const int32_t whole = t->whole_first ? loom_vocabulary_find(t->vocabulary, piece, n) : -1;
    if (whole >= 0) {
        ids[0] = whole;
        *count = 1;
        return true;
    }
    for (size_t i = 0; i < n; i++) ids[i] = t->of_byte[piece[i]];
    *count = n;
    return !loom_vocabulary_merges(t->vocabulary) || loom_bpe_merge(t->vocabulary, ids, n, &e->scratch, count);
}

/* Eight bytes of which the first n, up to 8, count. */
static inline uint64_t word_at(const uint8_t *bytes, size_t n) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return n >= 8 ? word : word & ((UINT64_C(1) << 8 * n) - 1);
}

static inline size_t line_of(uint64_t mixed, int bits) {
    return (size_t)(mixed * UINT64_C(0x9E3779B97F4A7C15) >> (64 - bits));
}

static inline bool encode_short(loom_encoder *e, const uint8_t *piece, size_t n, int32_t *ids, size_t *count) {
    const uint64_t key = word_at(piece, n) | (uint64_t)n << 56;
    short_line *l = &e->short_lines[line_of(key ^ key >> 31, SHORT_BITS)];
    if (l->key == key) {
        memcpy(ids, l->id, sizeof l->id);
        *count = l->n;
        return true;
    }
    if (!merge_piece(e, piece, n, ids, count)) return false;
    if (*count > SHORT_IDS) return true;
    l->key = key;
    l->n = (uint32_t)*count;
    memcpy(l->id, ids, *count * sizeof *ids);
    return true;
}

static bool encode_long(loom_encoder *e, const uint8_t *piece, size_t n, int32_t *ids, size_t *count) {
    const long_key k = {{word_at(piece, n), n > 8 ? word_at(piece + 8, n - 8) : 0,
                         n > 16 ? word_at(piece + 16, n - 16) : 0,
                         (n > 24 ? word_at(piece + 24, n - 24) : 0) | (uint64_t)n << 56}};
    const uint64_t mixed = (k.word[0] * UINT64_C(0xC2B2AE3D27D4EB4F) ^ k.word[1]) * UINT64_C(0x165667B19E3779F9) ^
                           (k.word[2] * UINT64_C(0x85EBCA77C2B2AE63) ^ k.word[3]);
    long_line *l = &e->long_lines[line_of(mixed ^ mixed >> 29, LONG_BITS)];
    if (l->key.word[0] == k.word[0] && l->key.word[1] == k.word[1] && l->key.word[2] == k.word[2] &&
        l->key.word[3] == k.word[3]) {
        memcpy(ids, l->id, sizeof l->id);
        *count = l->n;
        return true;
    }
    if (!merge_piece(e, piece, n, ids, count)) return false;
    if (*count > LONG_IDS) return true;
    l->key = k;
    l->n = (uint32_t)*count;
    memcpy(l->id, ids, *count * sizeof *ids);
    return true;
}

/* Encodes a piece of a text that ends at `end`. Up to LONG_IDS ids are written behind those that count: there is room. */
static inline bool encode_piece(loom_encoder *e, const uint8_t *piece, size_t n, const uint8_t *end, int32_t *ids,
                                size_t *count) {
    uint8_t padded[LONG_KEY + 1] = {0};
    if (n > LONG_KEY) return merge_piece(e, piece, n, ids, count);
    if (end - piece < LONG_KEY + 1) piece = memcpy(padded, piece, n); /* where fewer bytes can be read */
    return n <= SHORT_KEY ? encode_short(e, piece, n, ids, count) : encode_long(e, piece, n, ids, count);
}

/* ------------------------------------------------------------------------------------------------------------- text */

static const uint8_t *with_a_space(loom_encoder *e, const uint8_t *text, size_t n) {
    if (n + 1 > e->prefixed_capacity) {
        free(e->prefixed);
        e->prefixed_capacity = 0;
        e->prefixed = malloc(n + 1);
        if (!e->prefixed) return NULL;
        e->prefixed_capacity = n + 1;
    }
    e->prefixed[0] = ' ';
    memcpy(e->prefixed + 1, text, n);
    return e->prefixed;
}

/* Encodes text without added tokens. */
static bool encode_stretch(loom_encoder *e, const uint8_t *text, size_t n, int32_t *ids, size_t *count) {
    *count = 0;
    if (e->tokenizer->prefix_space && n > 0 && text[0] != ' ') {
        text = with_a_space(e, text, n++);
        if (!text) return false;
    }
    for (size_t at = 0, end, found; at < n; at = end, *count += found) {
        end = loom_split_next(e->tokenizer->split, text, n, at);
        if (!encode_piece(e, text + at, end - at, text + n, ids + *count, &found)) return false;
    }
    return true;
}

/* The character that begins or ends at `at`: its length, 0 where there is none, and its class. The underscore belongs to
 * words as letters do. */
static size_t character_at(const uint8_t *text, size_t n, size_t at, unsigned *class) {
    uint32_t point;
    *class = 0;
    if (at >= n) return 0;
    const size_t length = loom_utf8_read(text + at, n - at, &point);
    *class = point == '_' ? LOOM_CLASS_LO : loom_unicode_class(point);
    return length;
}

static size_t character_before(const uint8_t *text, size_t at, unsigned *class) {
    for (size_t back = at < 4 ? at : 4; back > 0; back--)
        if (character_at(text, at, at - back, class) == back) return back;
    *class = 0;
    return 0;
}

static bool is_of_word(unsigned class) {
    return class & (LOOM_CLASS_L | LOOM_CLASS_M | LOOM_CLASS_N);
}

/* Whether an added token stands at `at`, as far as its fields ask for what is beside it. */
static bool stands_at(const loom_added_token *token, const uint8_t *text, size_t n, size_t at) {
    if (n - at < token->n || memcmp(text + at, token->content, token->n) != 0) return false;
    unsigned before, behind;
    character_before(text, at, &before);
    character_at(text, n, at + token->n, &behind);
    return !token->single_word || (!is_of_word(before) && !is_of_word(behind));
}

/* Where white space begins that ends at `at`, not before `from`; and where it ends that begins there. */
static size_t strip_left(const uint8_t *text, size_t from, size_t at) {
    unsigned class;
    for (size_t n; at > from && (n = character_before(text + from, at - from, &class)) > 0 && class & LOOM_CLASS_S;)
        at -= n;
    return at;
}

static size_t strip_right(const uint8_t *text, size_t n, size_t at) {
    unsigned class;
    for (size_t length; (length = character_at(text, n, at, &class)) > 0 && class & LOOM_CLASS_S;) at += length;
    return at;
}

/* The first added token from `from` on; of several the longest, which come first in the list. */
static const loom_added_token *find_added(const loom_encoder *e, const uint8_t *text, size_t n, size_t from,
                                          size_t *at) {
    for (*at = from; *at < n; ++*at) {
        if (!e->is_first_byte[text[*at]]) continue;
        for (int i = 0; i < e->tokenizer->n_added; i++) {
            const loom_added_token *token = &e->tokenizer->added[i];
            if ((e->special != LOOM_SPECIAL_TEXT || !token->special) && stands_at(token, text, n, *at)) return token;
        }
    }
    return NULL;
}

bool loom_encode(loom_encoder *e, const void *text, size_t n, int32_t *ids, size_t *count, loom_error *error) {
    const uint8_t *bytes = text;
    *count = 0;
    for (size_t from = 0; from < n;) {
        size_t at = n, found;
        const loom_added_token *token = find_added(e, bytes, n, from, &at);
        if (token && token->special && e->special == LOOM_SPECIAL_ERROR)
            return loom_fail(error, "byte %zu of the text begins the token %s, which texts are not to have", at,
                             token->content);
        const size_t end = token && token->left_strip ? strip_left(bytes, from, at) : at;
        const size_t next = !token ? n : token->right_strip ? strip_right(bytes, n, at + token->n) : at + token->n;
        if (!encode_stretch(e, bytes + from, end - from, ids + *count, &found))
            return loom_fail(error, "no memory to encode a piece of text");
        *count += found;
        if (token) ids[(*count)++] = token->id;
        from = next;
    }
    return true;
}

/* A token for each byte, spaces that stretches get, and what is written behind the last tokens. */
size_t loom_encode_room(const loom_tokenizer *tokenizer, size_t n) {
    return n + (tokenizer->prefix_space ? n : 0) + LONG_IDS + 1;
}
