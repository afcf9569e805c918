/* Tokenizers: from text to token ids and back, as byte-level BPE has it.
 *
 *     text -> stretches between added tokens -> pieces (split.h) -> bytes -> tokens, merged within a piece (bpe.h)
 *
 * A tokenizer does not change once it is read, and any number of threads may use it, each with an encoder of its own. */
#ifndef LOOM_TEXT_TOKENIZER_H
#define LOOM_TEXT_TOKENIZER_H

#include "text/split.h"
#include "text/vocabulary.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A token that is found in the text before anything else is, as "<|endoftext|>". */
typedef struct loom_added_token {
    char *content;
    size_t n;
    int32_t id;
    bool special;     /* left out of what is shown to readers */
    bool left_strip;  /* takes the white space before it, */
    bool right_strip; /* or behind it */
    bool single_word; /* stands neither behind nor before a letter or number */
} loom_added_token;

typedef struct loom_tokenizer {
    loom_vocabulary *vocabulary; /* with the added tokens */
    int32_t of_byte[256];
    loom_split_pattern split;
    bool prefix_space; /* a stretch of text that does not begin with a space gets one */
    bool whole_first;  /* a piece that is a token becomes that one, whatever merging would make of it */
    loom_added_token *added;
    int n_added;
} loom_tokenizer;

/* Reads a tokenizer: what `path` is, is told by its content.
 *
 *   tokenizer.json        Hugging Face's, of model type BPE over bytes
 *   vocab.json            with merges.txt beside it
 *   merges.txt, vocab.bpe with vocab.json or encoder.json beside it; or else by itself, with GPT-2's ids
 *   *.tiktoken            lines of base64 and a rank
 *   a directory           with tokenizer.json, or with vocab.json and merges.txt
 *
 * `pattern` names the pattern of a file that has none, "gpt2", "cl100k", ...; NULL: GPT-2's for merges, and for
 * tiktoken's ranks by their number. tokenizer.json has its own, and takes none.
 * Errors name the file, and what in it is unknown: a normalizer, another model, a pattern. */
bool loom_tokenizer_open(loom_tokenizer **tokenizer, const char *path, const char *pattern, loom_error *error);
void loom_tokenizer_close(loom_tokenizer *tokenizer);

/* The pattern of a public vocabulary: gpt2, cl100k, o200k, llama3. The error lists them. */
bool loom_split_pattern_by_name(const char *name, loom_split_pattern *pattern, loom_error *error);

/* Writes it as Hugging Face's tokenizer.json to the place that a user has named (loom_output_write). Merges of one rank, as tiktoken's have, stand
 * there in some order. */
bool loom_tokenizer_write_json(const loom_tokenizer *tokenizer, const char *path, loom_error *error);

/* What a special token in a text means. Added tokens that are not special are always their ids. */
typedef enum loom_special {
    LOOM_SPECIAL_TEXT,   /* nothing: text as any other */
    LOOM_SPECIAL_ENCODE, /* its id */
    LOOM_SPECIAL_ERROR   /* a text that is not to be trusted: an error */
} loom_special;

typedef struct loom_encoder loom_encoder;

/* An encoder, which one thread uses at a time; NULL where memory runs out. */
loom_encoder *loom_encoder_open(const loom_tokenizer *tokenizer, loom_special special, loom_error *error);
void loom_encoder_close(loom_encoder *encoder);

/* Encodes n bytes of text, which need not be UTF-8. `ids` holds loom_encode_room(n) of them; *count says how many there
 * are. An error names the added token that is not allowed, with its place. */
bool loom_encode(loom_encoder *encoder, const void *text, size_t n, int32_t *ids, size_t *count, loom_error *error);

/* The most tokens that n bytes become. */
size_t loom_encode_room(const loom_tokenizer *tokenizer, size_t n);

#ifdef __cplusplus
}
#endif
#endif
