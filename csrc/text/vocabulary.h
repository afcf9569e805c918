/* A vocabulary of byte-level BPE: the bytes that each token stands for, and which two neighbouring tokens become a third
 * one, by rank   (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016; over bytes:
 * Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2). */
#ifndef LOOM_TEXT_VOCABULARY_H
#define LOOM_TEXT_VOCABULARY_H

#include "gptloom/error.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The largest id, and the most bytes of a token. Both are far above what any vocabulary has. */
enum { LOOM_LARGEST_TOKEN_ID = (1 << 24) - 1, LOOM_LONGEST_TOKEN = 1 << 12 };

/* The bytes of one token; n is 0 for an id that no token has. */
typedef struct loom_token_bytes {
    const uint8_t *bytes;
    size_t n;
} loom_token_bytes;

/* What two neighbouring tokens become. */
typedef struct loom_merge {
    uint32_t rank; /* lower ranks merge first; LOOM_NO_MERGE: the two do not merge */
    int32_t id;
} loom_merge;

#define LOOM_NO_MERGE UINT32_MAX

typedef struct loom_vocabulary loom_vocabulary;

/* An empty vocabulary, or NULL where memory runs out. It grows by the calls below, each of which is false where memory
 * runs out, and is not changed any more once it is used to encode. */
loom_vocabulary *loom_vocabulary_open(void);
void loom_vocabulary_close(loom_vocabulary *v);

/* Adds a token. The id is from 0 to LOOM_LARGEST_TOKEN_ID and new, n from 1 to LOOM_LONGEST_TOKEN. Where two tokens have
 * the same bytes, loom_vocabulary_find() returns the first one. */
bool loom_vocabulary_add(loom_vocabulary *v, int32_t id, const void *bytes, size_t n);

/* The same of an added token, which text does not become by merging: loom_vocabulary_find() does not return it. */
bool loom_vocabulary_add_apart(loom_vocabulary *v, int32_t id, const void *bytes, size_t n);

/* Says that tokens a, b become token `id`. Of two ranks that a pair is given the last one counts. */
bool loom_vocabulary_add_merge(loom_vocabulary *v, int32_t a, int32_t b, loom_merge merge);

/* Adds the merges of a vocabulary of ranks alone, as tiktoken's are: any two tokens whose bytes, put together, are those
 * of a third one become that one, which is its rank as well. */
bool loom_vocabulary_merge_by_rank(loom_vocabulary *v);

/* One more than the largest id. */
int32_t loom_vocabulary_size(const loom_vocabulary *v);

loom_token_bytes loom_vocabulary_bytes(const loom_vocabulary *v, int32_t id);

/* The token of exactly these bytes, or -1. */
int32_t loom_vocabulary_find(const loom_vocabulary *v, const void *bytes, size_t n);

loom_merge loom_vocabulary_merge(const loom_vocabulary *v, int32_t a, int32_t b);

/* A merge with the pair that it is of. */
typedef struct loom_ranked_merge {
    uint32_t rank;
    int32_t a, b, id;
} loom_ranked_merge;

/* How many merges there are, and all of them in the order of their ranks (of one rank in the order of a). */
size_t loom_vocabulary_merges(const loom_vocabulary *v);
void loom_vocabulary_list_merges(const loom_vocabulary *v, loom_ranked_merge *merges);

/* Whether loom_vocabulary_find() returns this id. */
bool loom_vocabulary_finds(const loom_vocabulary *v, int32_t id);

#ifdef __cplusplus
}
#endif
#endif
