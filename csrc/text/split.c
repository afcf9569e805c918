#include "text/split.h"

#include "text/unicode.h"

#include <string.h>

/* Each function here takes a text of n bytes and a position in it, and returns the end of what it finds there. */

enum {
    LETTER = LOOM_CLASS_L,
    NUMBER = LOOM_CLASS_N,
    SPACE = LOOM_CLASS_S,
    /* o200k's two kinds of letters, with marks; letters without case are of both. */
    CASELESS = LOOM_CLASS_LM | LOOM_CLASS_LO | LOOM_CLASS_M,
    UPPER = LOOM_CLASS_LU | LOOM_CLASS_LT | CASELESS,
    LOWER = LOOM_CLASS_LL | CASELESS
};

/* ------------------------------------------------------------------------------------------------------- characters */

typedef struct character {
    unsigned class;
    size_t end;
} character;

/* The first block of the classes is that of code points below 256, and so of ASCII's bytes. */
static inline character read_at(const uint8_t *text, size_t n, size_t at) {
    if (text[at] < 0x80) return (character){loom_unicode_classes[0][text[at]], at + 1};
    uint32_t point;
    const size_t length = loom_utf8_read(text + at, n - at, &point);
    return (character){loom_unicode_class(point), at + length};
}

static inline bool is_symbol(character it) {
    return !(it.class & (LETTER | NUMBER | SPACE));
}

static inline bool is_line_end(uint8_t byte) {
    return byte == '\r' || byte == '\n';
}

/* ------------------------------------------------------------------------------------------------------------- runs */

/* The characters of some classes. */
static inline size_t run_end(const uint8_t *text, size_t n, size_t at, unsigned classes) {
    while (at < n) {
        const character it = read_at(text, n, at);
        if (!(it.class & classes)) break;
        at = it.end;
    }
    return at;
}

/* The same, up to the first character of ASCII. */
static inline size_t beyond_ascii_end(const uint8_t *text, size_t n, size_t at, unsigned classes) {
    while (at < n && text[at] >= 0x80) {
        const character it = read_at(text, n, at);
        if (!(it.class & classes)) break;
        at = it.end;
    }
    return at;
}

/* How many of eight bytes, up to the first that is not, are ASCII letters; or lower-case ones. The eighth bit of each
 * byte of a word tells; without a branch for each letter, as where words end cannot be foretold. */
static inline size_t ascii_letters(const uint8_t *bytes, bool lower_only) {
    const uint64_t each = 0x0101010101010101u, high = 0x80 * each;
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    const uint64_t folded = (lower_only ? word : word | 0x20 * each) & ~high;
    const uint64_t from_a = folded + (0x80 - 'a') * each, beyond_z = folded + (0x80 - 'z' - 1) * each;
    const uint64_t others = ~(from_a & ~beyond_z & ~word) & high;
    return others ? (size_t)__builtin_ctzll(others) / 8 : 8;
}

/* Letters, or what o200k takes for lower-case ones. */
static inline size_t letter_run_end(const uint8_t *text, size_t n, size_t at, bool lower_only) {
    const unsigned classes = lower_only ? LOWER : LETTER;
    while (n - at >= 8) {
        const size_t found = ascii_letters(text + at, lower_only);
        at += found;
        if (found == 8) continue;
        const size_t end = text[at] < 0x80 ? at : beyond_ascii_end(text, n, at, classes);
        if (end == at) return at;
        at = end;
    }
    return run_end(text, n, at, classes);
}

static inline size_t letters_end(const uint8_t *text, size_t n, size_t at) {
    return letter_run_end(text, n, at, false);
}

static inline size_t numbers_end(const uint8_t *text, size_t n, size_t at, int most) {
    for (; at < n && most > 0; most--) {
        const character it = read_at(text, n, at);
        if (!(it.class & NUMBER)) break;
        at = it.end;
    }
    return at;
}

static inline size_t symbols_end(const uint8_t *text, size_t n, size_t at) {
    while (at < n) {
        const character it = read_at(text, n, at);
        if (!is_symbol(it)) break;
        at = it.end;
    }
    return at;
}

static inline size_t line_ends_end(const uint8_t *text, size_t n, size_t at) {
    while (at < n && is_line_end(text[at])) at++;
    return at;
}

/* ------------------------------------------------------------------------------------------------------ white space */

/* A run of white space: where it ends, where its last character begins, and the end of the last line end in it (0: it
 * has none). */
typedef struct white {
    size_t end, last, line;
} white;

static inline white white_run(const uint8_t *text, size_t n, size_t at) {
    white run = {at, at, 0};
    while (run.end < n) {
        const character it = read_at(text, n, run.end);
        if (!(it.class & SPACE)) break;
        run.last = run.end;
        run.end = it.end;
        if (is_line_end(text[run.last])) run.line = run.end;
    }
    return run;
}

/* \s+(?!\S)|\s+: all of it at the text's end, else all but the last character, which goes with the next word, unless it
 * is the only one. */
static inline size_t spaces_end(white run, size_t n, size_t at) {
    return run.end == n || run.last == at ? run.end : run.last;
}

/* \s*[\r\n]+ before that. */
static inline size_t lines_end(white run, size_t n, size_t at) {
    return run.line ? run.line : spaces_end(run, n, at);
}

/* ----------------------------------------------------------------------------------------------------- contractions */

/* 's|'t|'re|'ve|'m|'ll|'d, in small letters: returns `at` where none begins. */
static inline size_t contraction_end(const uint8_t *text, size_t n, size_t at) {
    if (n - at < 2 || text[at] != '\'') return at;
    const uint8_t first = text[at + 1], second = n - at < 3 ? 0 : text[at + 2];
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    const bool two = ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
    return two ? at + 3 : at;
}

/* The same in letters of any case. U+017F, the long s, is one of s: no other character but ASCII's is folded to one of
 * these letters. */
static inline size_t any_case_contraction_end(const uint8_t *text, size_t n, size_t at) {
    if (n - at < 2 || text[at] != '\'') return at;
    const uint8_t first = text[at + 1] | 0x20, second = n - at < 3 ? 0 : text[at + 2] | 0x20;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    const bool two = ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
    const bool is_long_s = n - at >= 3 && text[at + 1] == 0xC5 && text[at + 2] == 0xBF;
    return two || is_long_s ? at + 3 : at;
}

/* --------------------------------------------------------------------------------------------------------- patterns */

static size_t next_gpt2(const uint8_t *text, size_t n, size_t at) {
    if (text[at] == '\'') {
        const size_t end = contraction_end(text, n, at);
        if (end > at) return end;
    }
    const size_t begin = at + (text[at] == ' ');
    if (begin < n) {
        const character it = read_at(text, n, begin);
        if (it.class & LETTER) return letters_end(text, n, it.end);
        if (it.class & NUMBER) return run_end(text, n, it.end, NUMBER);
        if (is_symbol(it)) return symbols_end(text, n, it.end);
    }
    return spaces_end(white_run(text, n, at), n, at);
}

/* cl100k and what came of it: how many numbers make a piece, and whether white space at the text's end is one. */
static inline size_t next_of_cl100k(const uint8_t *text, size_t n, size_t at, int most_numbers, bool whole_end) {
    if (text[at] == '\'') {
        const size_t end = any_case_contraction_end(text, n, at);
        if (end > at) return end;
    }
    const character it = read_at(text, n, at);
    if (it.class & LETTER) return letters_end(text, n, it.end);
    if (it.class & NUMBER) return numbers_end(text, n, it.end, most_numbers - 1);
    character symbol = it;
    if (it.end < n && !is_line_end(text[at])) {
        const character second = read_at(text, n, it.end);
        if (second.class & LETTER) return letters_end(text, n, second.end);
        if (text[at] == ' ') symbol = second;
    }
    if (is_symbol(symbol)) return line_ends_end(text, n, symbols_end(text, n, symbol.end));
    const white run = white_run(text, n, at);
    return whole_end && run.end == n ? n : lines_end(run, n, at);
}

static size_t next_cl100k(const uint8_t *text, size_t n, size_t at) {
    return next_of_cl100k(text, n, at, 3, true);
}

static size_t next_llama3(const uint8_t *text, size_t n, size_t at) {
    return next_of_cl100k(text, n, at, 3, false);
}

static size_t next_qwen2(const uint8_t *text, size_t n, size_t at) {
    return next_of_cl100k(text, n, at, 1, false);
}

/* The two alternatives of o200k that are words, without the contraction behind them: `it` is what the text has at
 * `at`. Returns `at` where there is none.
 *
 * The first takes upper-case letters and at least one lower-case one behind them. Letters without case are of both
 * kinds: where no lower-case letter follows, the word ends behind the last of these. Where there is none of these
 * either, the expression tries once more without the character before the word, which helps where that is a mark: the
 * mark alone is a word then. The second alternative takes what is left: upper-case letters alone. */
static inline size_t o200k_word_end(const uint8_t *text, size_t n, size_t at, character it) {
    const bool is_before = !(it.class & (LETTER | NUMBER)) && !is_line_end(text[at]);
    const size_t begin = is_before ? it.end : at;
    size_t end = begin, caseless_end = it.class & LOOM_CLASS_M ? it.end : at;
    while (end < n) {
        const character next = read_at(text, n, end);
        if (next.class & LOOM_CLASS_LL) return letter_run_end(text, n, next.end, true);
        if (!(next.class & UPPER)) break;
        end = next.end;
        if (next.class & CASELESS) caseless_end = end;
    }
    return caseless_end > at ? caseless_end : end > begin ? end : at;
}

static size_t next_o200k(const uint8_t *text, size_t n, size_t at) {
    const character it = read_at(text, n, at);
    const size_t word = o200k_word_end(text, n, at, it);
    if (word > at) return any_case_contraction_end(text, n, word);
    if (it.class & NUMBER) return numbers_end(text, n, it.end, 2);
    const character symbol = text[at] == ' ' && it.end < n ? read_at(text, n, it.end) : it;
    if (is_symbol(symbol)) {
        size_t end = symbols_end(text, n, symbol.end);
        while (end < n && (is_line_end(text[end]) || text[end] == '/')) end++;
        return end;
    }
    return lines_end(white_run(text, n, at), n, at);
}

size_t loom_split_next(loom_split_pattern pattern, const uint8_t *text, size_t n, size_t at) {
    if (at >= n) return n;
    switch (pattern) {
    case LOOM_SPLIT_GPT2: return next_gpt2(text, n, at);
    case LOOM_SPLIT_CL100K: return next_cl100k(text, n, at);
    case LOOM_SPLIT_LLAMA3: return next_llama3(text, n, at);
    case LOOM_SPLIT_QWEN2: return next_qwen2(text, n, at);
    case LOOM_SPLIT_O200K: return next_o200k(text, n, at);
    case LOOM_SPLIT_NONE: return n;
    }
    return n;
}

static inline bool is_ascii_letter(uint8_t byte) {
    return (byte | 0x20) >= 'a' && (byte | 0x20) <= 'z';
}

size_t loom_split_safe_end(const uint8_t *text, size_t n) {
    for (size_t at = n > 1 ? n - 2 : 0; at > 0; at--)
        if ((text[at] == ' ' || text[at] == '\n') && is_ascii_letter(text[at - 1]) && is_ascii_letter(text[at + 1]))
            return at;
    return 0;
}

/* -------------------------------------------------------------------------------------------------------- spellings */

static const struct spelling {
    loom_split_pattern pattern;
    const char *regex;
} spellings[] = {
    {LOOM_SPLIT_GPT2, "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {LOOM_SPLIT_GPT2, "'s|'t|'re|'ve|'m|'ll|'d| ?[\\p{L}]+| ?[\\p{N}]+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {LOOM_SPLIT_GPT2, "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {LOOM_SPLIT_GPT2, "'(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s"},
    {LOOM_SPLIT_CL100K, "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+|"
                        " ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s"},
    {LOOM_SPLIT_LLAMA3, "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                        " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {LOOM_SPLIT_LLAMA3, "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}|"
                        " ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"},
    {LOOM_SPLIT_QWEN2, "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
                       " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {LOOM_SPLIT_O200K, "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
                       "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                       "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
                       "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                       "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}};

bool loom_split_pattern_find(const char *regex, loom_split_pattern *pattern) {
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++)
        if (strcmp(regex, spellings[i].regex) == 0) {
            *pattern = spellings[i].pattern;
            return true;
        }
    return false;
}

const char *loom_split_pattern_regex(loom_split_pattern pattern) {
    if (pattern == LOOM_SPLIT_CL100K) pattern = LOOM_SPLIT_LLAMA3;
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++)
        if (spellings[i].pattern == pattern) return spellings[i].regex;
    return NULL;
}
