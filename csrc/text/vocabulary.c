#include "text/vocabulary.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* Both tables are open: an entry lies at its hash's place or at the next free one. They are at most half full. */
typedef struct merge_entry {
    uint64_t pair; /* EMPTY: none */
    loom_merge merge;
} merge_entry;

enum { FIRST_SLOTS = 1 << 10 };
#define EMPTY UINT64_MAX

typedef struct token {
    size_t at; /* of its bytes */
    uint32_t n;
} token;

struct loom_vocabulary {
    token *token; /* [size, capacity] */
    int32_t size, capacity;
    uint8_t *bytes; /* of all tokens, one after the other */
    size_t n_bytes, bytes_capacity;
    int32_t *by_bytes; /* ids by the hash of their tokens' bytes; -1: none */
    size_t by_bytes_slots, n_tokens;
    merge_entry *merges;
    size_t merge_slots, n_merges;
};

static int32_t *new_ids(size_t n) {
    int32_t *ids = malloc(n * sizeof *ids);
    if (ids) memset(ids, 0xFF, n * sizeof *ids);
    return ids;
}

static merge_entry *new_merges(size_t n) {
    merge_entry *merges = malloc(n * sizeof *merges);
    if (merges) memset(merges, 0xFF, n * sizeof *merges);
    return merges;
}

loom_vocabulary *loom_vocabulary_open(void) {
    loom_vocabulary *v = calloc(1, sizeof *v);
    if (!v) return NULL;
    v->by_bytes_slots = v->merge_slots = FIRST_SLOTS;
    v->by_bytes = new_ids(FIRST_SLOTS);
    v->merges = new_merges(FIRST_SLOTS);
    if (v->by_bytes && v->merges) return v;
    loom_vocabulary_close(v);
    return NULL;
}

void loom_vocabulary_close(loom_vocabulary *v) {
    if (!v) return;
    free(v->token);
    free(v->bytes);
    free(v->by_bytes);
    free(v->merges);
    free(v);
}

int32_t loom_vocabulary_size(const loom_vocabulary *v) {
    return v->size;
}

loom_token_bytes loom_vocabulary_bytes(const loom_vocabulary *v, int32_t id) {
    if (id < 0 || id >= v->size || v->token[id].n == 0) return (loom_token_bytes){NULL, 0};
    return (loom_token_bytes){v->bytes + v->token[id].at, v->token[id].n};
}

/* -------------------------------------------------------------------------------------------------- tokens by bytes */

/* The slot that holds the token of these bytes, or the free one where it would be put. */
static size_t slot_of_bytes(const loom_vocabulary *v, const void *bytes, size_t n) {
    size_t slot = XXH3_64bits(bytes, n) & (v->by_bytes_slots - 1);
    for (;; slot = (slot + 1) & (v->by_bytes_slots - 1)) {
        if (v->by_bytes[slot] < 0) return slot;
        const loom_token_bytes found = loom_vocabulary_bytes(v, v->by_bytes[slot]);
        if (found.n == n && !memcmp(found.bytes, bytes, n)) return slot;
    }
}

int32_t loom_vocabulary_find(const loom_vocabulary *v, const void *bytes, size_t n) {
    return v->by_bytes[slot_of_bytes(v, bytes, n)];
}

bool loom_vocabulary_finds(const loom_vocabulary *v, int32_t id) {
    const loom_token_bytes held = loom_vocabulary_bytes(v, id);
    return held.n && loom_vocabulary_find(v, held.bytes, held.n) == id;
}

static bool grow_by_bytes(loom_vocabulary *v) {
    if (2 * (v->n_tokens + 1) <= v->by_bytes_slots) return true;
    int32_t *before = v->by_bytes, *after = new_ids(2 * v->by_bytes_slots);
    if (!after) return false;
    const size_t slots = v->by_bytes_slots;
    v->by_bytes = after;
    v->by_bytes_slots = 2 * slots;
    for (size_t i = 0; i < slots; i++) {
        const loom_token_bytes held = loom_vocabulary_bytes(v, before[i]);
        if (held.n) after[slot_of_bytes(v, held.bytes, held.n)] = before[i];
    }
    free(before);
    return true;
}

static bool make_room(loom_vocabulary *v, int32_t id, size_t n) {
    if (id >= v->capacity) {
        const int32_t capacity = id < 512 ? 1024 : id > LOOM_LARGEST_TOKEN_ID / 2 ? LOOM_LARGEST_TOKEN_ID + 1 : 2 * id;
        token *grown = realloc(v->token, (size_t)capacity * sizeof *grown);
        if (!grown) return false;
        memset(grown + v->capacity, 0, (size_t)(capacity - v->capacity) * sizeof *grown);
        v->token = grown;
        v->capacity = capacity;
    }
    if (v->n_bytes + n > v->bytes_capacity) {
        const size_t capacity = 2 * (v->n_bytes + n);
        uint8_t *grown = realloc(v->bytes, capacity);
        if (!grown) return false;
        v->bytes = grown;
        v->bytes_capacity = capacity;
    }
    return grow_by_bytes(v);
}

bool loom_vocabulary_add_apart(loom_vocabulary *v, int32_t id, const void *bytes, size_t n) {
    LOOM_CHECK(id >= 0 && id <= LOOM_LARGEST_TOKEN_ID && n > 0 && n <= LOOM_LONGEST_TOKEN);
    LOOM_CHECK(!loom_vocabulary_bytes(v, id).n);
    if (!make_room(v, id, n)) return false;
    memcpy(v->bytes + v->n_bytes, bytes, n);
    v->token[id] = (token){v->n_bytes, (uint32_t)n};
    v->n_bytes += n;
    if (id >= v->size) v->size = id + 1;
    return true;
}

bool loom_vocabulary_add(loom_vocabulary *v, int32_t id, const void *bytes, size_t n) {
    if (!loom_vocabulary_add_apart(v, id, bytes, n)) return false;
    const size_t slot = slot_of_bytes(v, bytes, n);
    if (v->by_bytes[slot] < 0) {
        v->by_bytes[slot] = id;
        v->n_tokens++;
    }
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- merges */

static uint64_t pair_of(int32_t a, int32_t b) {
    return (uint64_t)(uint32_t)a << 32 | (uint32_t)b;
}

/* Multiplying by an odd number near 2^64 / golden ratio spreads pairs over the upper bits   (Knuth, vol. 3, 6.4). */
static size_t slot_of_pair(const loom_vocabulary *v, uint64_t pair) {
    const uint64_t mixed = (pair ^ pair >> 29) * UINT64_C(0x9E3779B97F4A7C15);
    size_t slot = (size_t)(mixed >> 32) & (v->merge_slots - 1);
    while (v->merges[slot].pair != pair && v->merges[slot].pair != EMPTY) slot = (slot + 1) & (v->merge_slots - 1);
    return slot;
}

loom_merge loom_vocabulary_merge(const loom_vocabulary *v, int32_t a, int32_t b) {
    const merge_entry *found = &v->merges[slot_of_pair(v, pair_of(a, b))];
    return found->merge; /* of a free slot: LOOM_NO_MERGE, as all its bits are set */
}

static bool grow_merges(loom_vocabulary *v) {
    if (2 * (v->n_merges + 1) <= v->merge_slots) return true;
    merge_entry *before = v->merges, *after = new_merges(2 * v->merge_slots);
    if (!after) return false;
    const size_t slots = v->merge_slots;
    v->merges = after;
    v->merge_slots = 2 * slots;
    for (size_t i = 0; i < slots; i++)
        if (before[i].pair != EMPTY) after[slot_of_pair(v, before[i].pair)] = before[i];
    free(before);
    return true;
}

bool loom_vocabulary_add_merge(loom_vocabulary *v, int32_t a, int32_t b, loom_merge merge) {
    LOOM_CHECK(a >= 0 && b >= 0 && merge.rank != LOOM_NO_MERGE);
    if (!grow_merges(v)) return false;
    merge_entry *entry = &v->merges[slot_of_pair(v, pair_of(a, b))];
    v->n_merges += entry->pair == EMPTY;
    *entry = (merge_entry){pair_of(a, b), merge};
    return true;
}

size_t loom_vocabulary_merges(const loom_vocabulary *v) {
    return v->n_merges;
}

static int by_rank(const void *x, const void *y) {
    const loom_ranked_merge *a = x, *b = y;
    if (a->rank != b->rank) return a->rank < b->rank ? -1 : 1;
    return (a->a > b->a) - (a->a < b->a);
}

void loom_vocabulary_list_merges(const loom_vocabulary *v, loom_ranked_merge *merges) {
    size_t n = 0;
    for (size_t i = 0; i < v->merge_slots; i++) {
        const merge_entry *m = &v->merges[i];
        if (m->pair != EMPTY)
            merges[n++] = (loom_ranked_merge){m->merge.rank, (int32_t)(m->pair >> 32), (int32_t)m->pair, m->merge.id};
    }
    qsort(merges, n, sizeof *merges, by_rank);
}

static bool merge_parts(loom_vocabulary *v, int32_t id) {
    const loom_token_bytes whole = loom_vocabulary_bytes(v, id);
    for (size_t i = 1; i < whole.n; i++) {
        const int32_t a = loom_vocabulary_find(v, whole.bytes, i);
        const int32_t b = a < 0 ? -1 : loom_vocabulary_find(v, whole.bytes + i, whole.n - i);
        if (b >= 0 && !loom_vocabulary_add_merge(v, a, b, (loom_merge){(uint32_t)id, id})) return false;
    }
    return true;
}

bool loom_vocabulary_merge_by_rank(loom_vocabulary *v) {
    for (int32_t id = 0; id < v->size; id++)
        if (!merge_parts(v, id)) return false;
    return true;
}
