#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

/* Pieces of at most so many tokens, which nearly all are, are merged by looking at all neighbours again each time. */
enum { SHORT = 48 };

/* ----------------------------------------------------------------------------------------------------- short pieces */

static size_t lowest(const loom_merge *merge, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (merge[i].rank < merge[best].rank) best = i;
    return best;
}

static size_t merge_short(const loom_vocabulary *v, int32_t *ids, size_t n) {
    loom_merge merge[SHORT]; /* of tokens i and i + 1 */
    for (size_t i = 0; i + 1 < n; i++) merge[i] = loom_vocabulary_merge(v, ids[i], ids[i + 1]);
    while (n > 1) {
        const size_t i = lowest(merge, n - 1);
        if (merge[i].rank == LOOM_NO_MERGE) break;
        ids[i] = merge[i].id;
        n--;
        memmove(ids + i + 1, ids + i + 2, (n - i - 1) * sizeof *ids);
        if (i + 1 < n) {
            memmove(merge + i + 1, merge + i + 2, (n - i - 2) * sizeof *merge);
            merge[i] = loom_vocabulary_merge(v, ids[i], ids[i + 1]);
        }
        if (i > 0) merge[i - 1] = loom_vocabulary_merge(v, ids[i - 1], ids[i]);
    }
    return n;
}

/* ------------------------------------------------------------------------------------------------------ long pieces
 * Tokens form a list. Neighbours that merge wait in a heap, as rank and place; the lowest one is taken. What has changed
 * since it was put there, as one of the two tokens has merged meanwhile, is told by its rank, and dropped. */

typedef struct loom_bpe_node {
    int32_t id;              /* -1: merged into the one before */
    uint32_t before, behind; /* places; NONE at both ends */
    loom_merge merge;        /* with the one behind */
} node;

#define NONE UINT32_MAX

void loom_bpe_free(loom_bpe_scratch *scratch) {
    free(scratch->node);
    free(scratch->heap);
    *scratch = (loom_bpe_scratch){0};
}

/* Each of n tokens puts at most one entry into the heap at first, and each merge at most two. */
static bool grow(loom_bpe_scratch *scratch, size_t n) {
    if (n <= scratch->capacity) return true;
    if (n >= NONE) return false;
    loom_bpe_free(scratch);
    scratch->node = malloc(n * sizeof *scratch->node);
    scratch->heap = malloc(3 * n * sizeof *scratch->heap);
    if (!scratch->node || !scratch->heap) return loom_bpe_free(scratch), false;
    scratch->capacity = n;
    return true;
}

static void push(uint64_t *heap, size_t *size, uint64_t entry) {
    size_t i = (*size)++;
    for (; i > 0 && heap[(i - 1) / 2] > entry; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = entry;
}

static uint64_t pop(uint64_t *heap, size_t *size) {
    const uint64_t top = heap[0], last = heap[--*size];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *size; i = child) {
        if (child + 1 < *size && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= last) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* Looks up what a token and the one behind it become, and lets them wait for it. */
static void look_up(const loom_vocabulary *v, loom_bpe_scratch *s, size_t *size, uint32_t at) {
    node *a = &s->node[at];
    a->merge.rank = LOOM_NO_MERGE;
    if (a->behind != NONE) a->merge = loom_vocabulary_merge(v, a->id, s->node[a->behind].id);
    if (a->merge.rank != LOOM_NO_MERGE) push(s->heap, size, (uint64_t)a->merge.rank << 32 | at);
}

static void join(const loom_vocabulary *v, loom_bpe_scratch *s, size_t *size, uint32_t at) {
    node *a = &s->node[at], *b = &s->node[a->behind];
    a->id = a->merge.id;
    a->behind = b->behind;
    if (b->behind != NONE) s->node[b->behind].before = at;
    b->id = -1;
    b->merge.rank = LOOM_NO_MERGE;
    look_up(v, s, size, at);
    if (a->before != NONE) look_up(v, s, size, a->before);
}

static size_t merge_long(const loom_vocabulary *v, int32_t *ids, size_t n, loom_bpe_scratch *s) {
    size_t size = 0, left = 0;
    for (uint32_t i = 0; i < n; i++)
        s->node[i] = (node){.id = ids[i], .before = i - 1, .behind = i + 1 < n ? i + 1 : NONE};
    for (uint32_t i = 0; i < n; i++) look_up(v, s, &size, i);
    while (size > 0) {
        const uint64_t entry = pop(s->heap, &size);
        const uint32_t at = (uint32_t)entry;
        if (s->node[at].merge.rank == entry >> 32) join(v, s, &size, at);
    }
    for (size_t i = 0; i < n; i++)
        if (s->node[i].id >= 0) ids[left++] = s->node[i].id;
    return left;
}

bool loom_bpe_merge(const loom_vocabulary *v, int32_t *ids, size_t n, loom_bpe_scratch *scratch, size_t *left) {
    if (n > SHORT && !grow(scratch, n)) return false;
    *left = n > SHORT ? merge_long(v, ids, n, scratch) : merge_short(v, ids, n);
    return true;
}
