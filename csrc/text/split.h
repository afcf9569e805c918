/* Text cut into the pieces in which a byte-level BPE tokenizer merges bytes: what the regular expression of its
 * pre-tokenizer finds, byte for byte, without a regular expression.
 *
 * Characters are classed as Unicode 16.0.0 does (text/unicode.h), as in tokenizers 0.23.3 and tiktoken 0.14.0. A byte
 * of what is not valid UTF-8 counts as a character that is no letter, mark, number or white space, as U+FFFD does: the
 * pieces are those of the text with U+FFFD in the place of each such byte. (tiktoken takes bytes that are not UTF-8
 * only at a text's end, which it does not cut.)
 *
 * The time is linear in the text's length, whatever the text: all pieces together look at each byte a few times. */
#ifndef LOOM_TEXT_SPLIT_H
#define LOOM_TEXT_SPLIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    /* GPT-2, and tiktoken's r50k_base and p50k_base:
     * 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
    LOOM_SPLIT_GPT2,
    /* tiktoken's cl100k_base of today, in which white space at the text's end is one piece (\s++$), with line ends or
     * without: '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|
     * \s*[\r\n]|\s+(?!\S)|\s */
    LOOM_SPLIT_CL100K,
    /* Llama 3, and cl100k_base as tokenizer.json and earlier versions of tiktoken have it:
     * (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
     * \s+(?!\S)|\s+ */
    LOOM_SPLIT_LLAMA3,
    /* Qwen 2: Llama 3's with \p{N} in the place of \p{N}{1,3}. */
    LOOM_SPLIT_QWEN2,
    /* o200k_base and o200k_harmony (GPT-4o, gpt-oss):
     * [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|
     * [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|
     * \p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
    LOOM_SPLIT_O200K,
    LOOM_SPLIT_NONE /* none: a text is one piece */
} loom_split_pattern;

/* The end of the piece of a text of n bytes that begins at `at`, which is 0 or where another piece ended: a position
 * after `at` and at most n, or n where `at` is n. A piece depends on the text from `at` on alone. */
size_t loom_split_next(loom_split_pattern pattern, const uint8_t *text, size_t n, size_t at);

/* For texts that are read piece by piece: the last position of n bytes at which a piece ends whatever follows them, in
 * every pattern: between an ASCII letter and a space or line end that a letter follows. 0: none is there. */
size_t loom_split_safe_end(const uint8_t *text, size_t n);

/* Finds the pattern that a regular expression is, as it stands in tokenizer.json (the string of a Regex) or in
 * tiktoken's pat_str: each is known in the spellings that were published, and read as the engine does that it was
 * published for. (With possessive quantifiers that is tiktoken's: to Oniguruma, which tokenizers uses, {1,3}+ is no
 * such quantifier, and $ is any line's end.) Returns false for any other. */
bool loom_split_pattern_find(const char *regex, loom_split_pattern *pattern);

/* A regular expression for the pattern as tokenizer.json has it; NULL for LOOM_SPLIT_NONE. Of CL100K it is Llama 3's, as
 * the engine of tokenizers knows no possessive quantifiers: white space at a text's end is cut in another way. */
const char *loom_split_pattern_regex(loom_split_pattern pattern);

#ifdef __cplusplus
}
#endif
#endif
