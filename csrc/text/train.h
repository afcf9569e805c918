/* Training a byte-level BPE vocabulary   (Sennrich et al., 2016, algorithm 1): starting from bytes, the two tokens that
 * stand beside each other most often become one, again and again. Of pairs that are as frequent, the one with the lower
 * ids comes first. The merges are those of Hugging Face's trainer for the same text. */
#ifndef LOOM_TEXT_TRAIN_H
#define LOOM_TEXT_TRAIN_H

#include "text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a text is made of: each different piece, and how often it occurs. */
typedef struct loom_piece_counts loom_piece_counts;

/* NULL where memory runs out. */
loom_piece_counts *loom_piece_counts_open(loom_split_pattern pattern);
void loom_piece_counts_close(loom_piece_counts *counts);

/* Counts the pieces of n bytes of text. False where memory runs out. */
bool loom_piece_counts_add(loom_piece_counts *counts, const void *text, size_t n);

/* How many different pieces there are, and about how many bytes of memory training with them takes. */
size_t loom_piece_counts_pieces(const loom_piece_counts *counts);
size_t loom_piece_counts_memory(const loom_piece_counts *counts);

typedef struct loom_bpe_training {
    int32_t vocab_size;    /* with the end of text and the 256 bytes: at least 257 */
    int64_t min_frequency; /* pairs that are less frequent do not merge; 0: any */
} loom_bpe_training;

/* Trains a tokenizer that splits by the pattern of the counts. Token 0 is "<|endoftext|>", then come the bytes in
 * GPT-2's order, and then what merges make. There are fewer tokens than asked for where no pair is left. */
bool loom_bpe_train(loom_tokenizer **tokenizer, const loom_piece_counts *counts, const loom_bpe_training *training,
                    loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
