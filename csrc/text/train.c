#include "text/train.h"

#include "base/check.h"
#include "text/build.h"
#include "text/byte_characters.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* ------------------------------------------------------------------------------------------------------------ counts */

typedef struct piece {
    size_t at; /* of its bytes */
    uint32_t n;
    int64_t count;
} piece;

struct loom_piece_counts {
    loom_split_pattern pattern;
    piece *piece;
    size_t n, capacity;
    uint8_t *bytes;
    size_t n_bytes, bytes_capacity;
    uint32_t *slot; /* 1 + the place of a piece, by its hash; 0: free */
    size_t slots;
};

enum { FIRST_SLOTS = 1 << 12 };

loom_piece_counts *loom_piece_counts_open(loom_split_pattern pattern) {
    loom_piece_counts *c = calloc(1, sizeof *c);
    if (c) c->slot = calloc(FIRST_SLOTS, sizeof *c->slot);
    if (!c || !c->slot) {
        free(c);
        return NULL;
    }
    c->pattern = pattern;
    c->slots = FIRST_SLOTS;
    return c;
}

void loom_piece_counts_close(loom_piece_counts *c) {
    if (!c) return;
    free(c->piece);
    free(c->bytes);
    free(c->slot);
    free(c);
}

size_t loom_piece_counts_pieces(const loom_piece_counts *c) {
    return c->n;
}

static size_t slot_of(const loom_piece_counts *c, const uint8_t *bytes, size_t n) {
    size_t slot = XXH3_64bits(bytes, n) & (c->slots - 1);
    for (; c->slot[slot]; slot = (slot + 1) & (c->slots - 1)) {
        const piece *p = &c->piece[c->slot[slot] - 1];
        if (p->n == n && !memcmp(c->bytes + p->at, bytes, n)) break;
    }
    return slot;
}

static bool grow_slots(loom_piece_counts *c) {
    if (2 * (c->n + 1) <= c->slots) return true;
    uint32_t *grown = calloc(2 * c->slots, sizeof *grown);
    if (!grown) return false;
    free(c->slot);
    c->slot = grown;
    c->slots *= 2;
    for (size_t i = 0; i < c->n; i++) c->slot[slot_of(c, c->bytes + c->piece[i].at, c->piece[i].n)] = (uint32_t)i + 1;
    return true;
}

static bool make_room(loom_piece_counts *c, size_t n) {
    if (c->n == c->capacity) {
        const size_t capacity = c->capacity ? 2 * c->capacity : 1024;
        piece *grown = capacity < UINT32_MAX ? realloc(c->piece, capacity * sizeof *grown) : NULL;
        if (!grown) return false;
        c->piece = grown;
        c->capacity = capacity;
    }
    if (c->n_bytes + n > c->bytes_capacity) {
        const size_t capacity = 2 * (c->n_bytes + n);
        uint8_t *grown = realloc(c->bytes, capacity);
        if (!grown) return false;
        c->bytes = grown;
        c->bytes_capacity = capacity;
    }
    return grow_slots(c);
}

static bool count_piece(loom_piece_counts *c, const uint8_t *bytes, size_t n, int64_t times) {
    size_t slot = slot_of(c, bytes, n);
    if (!c->slot[slot]) {
        if (n > UINT32_MAX || !make_room(c, n)) return false;
        slot = slot_of(c, bytes, n);
        memcpy(c->bytes + c->n_bytes, bytes, n);
        c->piece[c->n++] = (piece){.at = c->n_bytes, .n = (uint32_t)n};
        c->n_bytes += n;
        c->slot[slot] = (uint32_t)c->n;
    }
    c->piece[c->slot[slot] - 1].count += times;
    return true;
}

bool loom_piece_counts_add(loom_piece_counts *c, const void *text, size_t n) {
    const uint8_t *bytes = text;
    for (size_t at = 0, end; at < n; at = end) {
        end = loom_split_next(c->pattern, bytes, n, at);
        if (!count_piece(c, bytes + at, end - at, 1)) return false;
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- pairs
 * A pair of neighbours has a count, and waits in a heap with the pieces that it occurs in. Two ways may lead to one token
 * ("th" and "e", "t" and "he"). A pair with such a token can get new pieces when it waits already: then it waits twice,
 * each time with pieces of its own, as in Hugging Face's trainer. */

typedef struct places {
    uint32_t *piece;
    uint32_t n, capacity;
} places;

typedef struct pair {
    int32_t a, b; /* a < 0: a free slot */
    int64_t count;
    places added; /* the pieces that got it in the present merge */
} pair;

typedef struct waiting {
    int64_t count; /* when it was put there */
    int32_t a, b;
    places at;
} waiting;

typedef struct merged {
    int32_t a, b, id;
} merged;

typedef struct trainer {
    const loom_piece_counts *counts;
    int32_t *token; /* of all pieces, at the places of their bytes */
    uint32_t *left; /* [pieces] tokens that a piece has */
    pair *pair;
    size_t pairs, slots;
    waiting *heap;
    size_t waiting, heap_capacity;
    struct {
        int32_t a, b;
    } * changed; /* pairs that have got pieces in the present merge */
    size_t n_changed, changed_capacity;
    merged *merge; /* in order; a pair may stand there twice */
    size_t merges, merge_capacity;
    loom_tokenizer *tokenizer;
} trainer;

size_t loom_piece_counts_memory(const loom_piece_counts *c) {
    return c->n_bytes * (sizeof(int32_t) + 2 * sizeof(pair) + sizeof(uint32_t) + sizeof(waiting)) +
           c->n * sizeof(uint32_t);
}

static size_t pair_slot(const trainer *t, int32_t a, int32_t b) {
    const uint64_t key = (uint64_t)(uint32_t)a << 32 | (uint32_t)b;
    size_t slot = (size_t)((key ^ key >> 29) * UINT64_C(0x9E3779B97F4A7C15) >> 32) & (t->slots - 1);
    while (t->pair[slot].a >= 0 && (t->pair[slot].a != a || t->pair[slot].b != b)) slot = (slot + 1) & (t->slots - 1);
    return slot;
}

static pair *new_pairs(size_t n) {
    pair *pairs = malloc(n * sizeof *pairs);
    for (size_t i = 0; pairs && i < n; i++) pairs[i].a = -1;
    return pairs;
}

static bool grow_pairs(trainer *t) {
    if (2 * (t->pairs + 1) <= t->slots) return true;
    pair *before = t->pair, *after = new_pairs(2 * t->slots);
    if (!after) return false;
    const size_t slots = t->slots;
    t->pair = after;
    t->slots = 2 * slots;
    for (size_t i = 0; i < slots; i++)
        if (before[i].a >= 0) after[pair_slot(t, before[i].a, before[i].b)] = before[i];
    free(before);
    return true;
}

static bool note_change(trainer *t, int32_t a, int32_t b) {
    if (t->n_changed == t->changed_capacity) {
        const size_t capacity = t->changed_capacity ? 2 * t->changed_capacity : 256;
        void *grown = realloc(t->changed, capacity * sizeof *t->changed);
        if (!grown) return false;
        t->changed = grown;
        t->changed_capacity = capacity;
    }
    t->changed[t->n_changed].a = a;
    t->changed[t->n_changed++].b = b;
    return true;
}

static bool append(places *p, uint32_t in) {
    if (p->n == p->capacity) {
        const uint32_t capacity = p->capacity ? 2 * p->capacity : 2;
        uint32_t *grown = realloc(p->piece, capacity * sizeof *grown);
        if (!grown) return false;
        p->piece = grown;
        p->capacity = capacity;
    }
    p->piece[p->n++] = in;
    return true;
}

/* One more of a pair in a piece. */
static bool add_pair(trainer *t, int32_t a, int32_t b, uint32_t in) {
    if (!grow_pairs(t)) return false;
    pair *p = &t->pair[pair_slot(t, a, b)];
    if (p->a < 0) {
        *p = (pair){.a = a, .b = b};
        t->pairs++;
    }
    p->count += t->counts->piece[in].count;
    if (p->added.n && p->added.piece[p->added.n - 1] == in) return true;
    return (p->added.n || note_change(t, a, b)) && append(&p->added, in);
}

static void drop_pair(trainer *t, int32_t a, int32_t b, uint32_t in) {
    pair *p = &t->pair[pair_slot(t, a, b)];
    if (p->a >= 0) p->count -= t->counts->piece[in].count;
}

/* --------------------------------------------------------------------------------------------------------------- heap */

/* Whether x comes before y: more frequent, or else with lower ids. */
static bool is_before(const waiting *x, const waiting *y) {
    if (x->count != y->count) return x->count > y->count;
    return x->a != y->a ? x->a < y->a : x->b < y->b;
}

static bool push(trainer *t, waiting w) {
    if (t->waiting == t->heap_capacity) {
        const size_t capacity = t->heap_capacity ? 2 * t->heap_capacity : 1024;
        waiting *grown = realloc(t->heap, capacity * sizeof *grown);
        if (!grown) return false;
        t->heap = grown;
        t->heap_capacity = capacity;
    }
    size_t i = t->waiting++;
    for (; i > 0 && is_before(&w, &t->heap[(i - 1) / 2]); i = (i - 1) / 2) t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = w;
    return true;
}

static waiting pop(trainer *t) {
    const waiting top = t->heap[0], last = t->heap[--t->waiting];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < t->waiting; i = child) {
        if (child + 1 < t->waiting && is_before(&t->heap[child + 1], &t->heap[child])) child++;
        if (!is_before(&t->heap[child], &last)) break;
        t->heap[i] = t->heap[child];
    }
    t->heap[i] = last;
    return top;
}

/* Lets pairs wait that have got pieces. */
static bool push_changed(trainer *t) {
    for (size_t i = 0; i < t->n_changed; i++) {
        pair *p = &t->pair[pair_slot(t, t->changed[i].a, t->changed[i].b)];
        if (p->count <= 0)
            free(p->added.piece);
        else if (!push(t, (waiting){p->count, p->a, p->b, p->added}))
            return false;
        p->added = (places){0};
    }
    t->n_changed = 0;
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ merging */

/* Merges a pair in one piece, from left to right. */
static bool merge_in(trainer *t, uint32_t in, int32_t a, int32_t b, int32_t id) {
    int32_t *token = t->token + t->counts->piece[in].at;
    uint32_t n = t->left[in], to = 0;
    bool ok = true;
    for (uint32_t i = 0; i < n; i++) {
        if (token[i] != a || i + 1 == n || token[i + 1] != b) {
            token[to++] = token[i];
            continue;
        }
        if (to > 0) {
            drop_pair(t, token[to - 1], a, in);
            ok = ok && add_pair(t, token[to - 1], id, in);
        }
        if (i + 2 < n) {
            drop_pair(t, b, token[i + 2], in);
            ok = ok && add_pair(t, id, token[i + 2], in);
        }
        token[to++] = id;
        i++;
    }
    t->left[in] = to;
    return ok;
}

/* The token that a pair becomes; -1 where memory runs out, or where it would be too long. */
static int32_t join_tokens(trainer *t, int32_t a, int32_t b) {
    loom_vocabulary *v = t->tokenizer->vocabulary;
    const loom_token_bytes x = loom_vocabulary_bytes(v, a), y = loom_vocabulary_bytes(v, b);
    uint8_t *bytes = x.n + y.n <= LOOM_LONGEST_TOKEN ? malloc(x.n + y.n) : NULL;
    if (!bytes) return -1;
    memcpy(bytes, x.bytes, x.n);
    memcpy(bytes + x.n, y.bytes, y.n);
    int32_t id = loom_vocabulary_find(v, bytes, x.n + y.n);
    if (id < 0) {
        id = loom_vocabulary_size(v);
        if (!loom_vocabulary_add(v, id, bytes, x.n + y.n)) id = -1;
    }
    free(bytes);
    return id;
}

static bool note_merge(trainer *t, merged merge) {
    if (t->merges == t->merge_capacity) {
        const size_t capacity = t->merge_capacity ? 2 * t->merge_capacity : 1024;
        merged *grown = realloc(t->merge, capacity * sizeof *grown);
        if (!grown) return false;
        t->merge = grown;
        t->merge_capacity = capacity;
    }
    t->merge[t->merges++] = merge;
    return true;
}

static bool merge_everywhere(trainer *t, const waiting *top) {
    const loom_vocabulary *v = t->tokenizer->vocabulary;
    if (loom_vocabulary_bytes(v, top->a).n + loom_vocabulary_bytes(v, top->b).n > LOOM_LONGEST_TOKEN) return true;
    const int32_t id = join_tokens(t, top->a, top->b);
    bool ok = id >= 0 && note_merge(t, (merged){top->a, top->b, id});
    for (uint32_t i = 0; ok && i < top->at.n; i++) ok = merge_in(t, top->at.piece[i], top->a, top->b, id);
    return ok && push_changed(t);
}

/* Of a pair that was merged twice the later place counts. */
static bool add_merges(trainer *t) {
    for (size_t i = 0; i < t->merges; i++) {
        const merged *m = &t->merge[i];
        if (!loom_vocabulary_add_merge(t->tokenizer->vocabulary, m->a, m->b, (loom_merge){(uint32_t)i, m->id}))
            return false;
    }
    return true;
}

static const char no_memory[] = "no memory to train a tokenizer on so much text: give less of it";

static bool merge_all(trainer *t, const loom_bpe_training *training, loom_error *error) {
    const loom_vocabulary *v = t->tokenizer->vocabulary;
    while (t->waiting > 0 && loom_vocabulary_size(v) < training->vocab_size) {
        waiting top = pop(t);
        const int64_t count = t->pair[pair_slot(t, top.a, top.b)].count;
        bool ok = true, is_last = false;
        if (count != top.count && count > 0) {
            top.count = count;
            ok = push(t, top);
            top.at = (places){0};
        } else if (count == top.count) {
            is_last = count < training->min_frequency;
            ok = is_last || merge_everywhere(t, &top);
        }
        free(top.at.piece);
        if (!ok) return loom_fail(error, "%s", no_memory);
        if (is_last) break;
    }
    return add_merges(t) || loom_fail(error, "%s", no_memory);
}

/* -------------------------------------------------------------------------------------------------------------- start */

static bool add_bytes(loom_tokenizer *t, loom_error *error) {
    static char end_of_text[] = "<|endoftext|>";
    uint8_t order[256];
    loom_byte_order(order);
    const loom_added_token token = {.content = end_of_text, .n = sizeof end_of_text - 1, .id = 0, .special = true};
    if (!loom_tokenizer_add_token(t, token, "a new tokenizer", error)) return false;
    for (int i = 0; i < 256; i++)
        if (!loom_vocabulary_add(t->vocabulary, i + 1, &order[i], 1))
            return loom_fail(error, "no memory for a tokenizer");
    return loom_tokenizer_finish(t, "a new tokenizer", error);
}

/* The pieces as tokens of single bytes, and their pairs. */
static bool begin(trainer *t) {
    const loom_piece_counts *c = t->counts;
    t->slots = FIRST_SLOTS;
    t->pair = new_pairs(FIRST_SLOTS);
    t->token = malloc((c->n_bytes + 1) * sizeof *t->token);
    t->left = malloc((c->n + 1) * sizeof *t->left);
    if (!t->pair || !t->token || !t->left) return false;
    for (size_t i = 0; i < c->n_bytes; i++) t->token[i] = t->tokenizer->of_byte[c->bytes[i]];
    for (uint32_t i = 0; i < c->n; i++) {
        const int32_t *token = t->token + c->piece[i].at;
        t->left[i] = c->piece[i].n;
        for (uint32_t k = 0; k + 1 < t->left[i]; k++)
            if (!add_pair(t, token[k], token[k + 1], i)) return false;
    }
    return push_changed(t);
}

static void end(trainer *t) {
    for (size_t i = 0; t->pair && i < t->slots; i++)
        if (t->pair[i].a >= 0) free(t->pair[i].added.piece);
    for (size_t i = 0; i < t->waiting; i++) free(t->heap[i].at.piece);
    free(t->pair);
    free(t->token);
    free(t->left);
    free(t->heap);
    free(t->changed);
    free(t->merge);
}

bool loom_bpe_train(loom_tokenizer **tokenizer, const loom_piece_counts *counts, const loom_bpe_training *training,
                    loom_error *error) {
    LOOM_CHECK(training->vocab_size >= 257);
    trainer t = {.counts = counts, .tokenizer = loom_tokenizer_new("a new tokenizer", error)};
    *tokenizer = NULL;
    if (!t.tokenizer) return false;
    t.tokenizer->split = counts->pattern;
    bool ok = add_bytes(t.tokenizer, error);
    if (ok && !begin(&t)) ok = loom_fail(error, "%s", no_memory);
    ok = ok && merge_all(&t, training, error);
    end(&t);
    if (ok)
        *tokenizer = t.tokenizer;
    else
        loom_tokenizer_close(t.tokenizer);
    return ok;
}
