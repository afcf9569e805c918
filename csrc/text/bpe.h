/* Byte-pair encoding of one piece of text. */
#ifndef LOOM_TEXT_BPE_H
#define LOOM_TEXT_BPE_H

#include "text/vocabulary.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Memory for pieces that are too long for the simple way. It grows to the longest piece, and stays. */
typedef struct loom_bpe_scratch {
    struct loom_bpe_node *node;
    uint64_t *heap;
    size_t capacity; /* in tokens */
} loom_bpe_scratch;

void loom_bpe_free(loom_bpe_scratch *scratch);

/* Merges tokens ids[0 .. n-1], in place, until no two neighbours merge: of all neighbours that do, always those of the
 * lowest rank, and of these the first. Stores in *left how many are left. For n tokens it takes O(n log n) steps. False
 * where memory runs out, for which a long piece asks. */
bool loom_bpe_merge(const loom_vocabulary *v, int32_t *ids, size_t n, loom_bpe_scratch *scratch, size_t *left);

#ifdef __cplusplus
}
#endif
#endif
