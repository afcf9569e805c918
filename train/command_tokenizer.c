/* gptloom tokenizer: text as token ids, ids as text, how a text is cut, and training. */
#include "command.h"
#include "command_line.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/plural.h"
#include "base/printable.h"
#include "data/paths.h"
#include "text/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct settings {
    char *tokenizer, *pattern;
    loom_special special;
    int64_t vocab_size, min_frequency;
    char *out;
} settings;

static const char *const specials[] = {"text", "encode", "error", NULL}; /* as loom_special */

#define AT(field) .offset = offsetof(settings, field)

static const loom_flag flags[] = {
    {.name = "tokenizer",
     .letter = 't',
     .type = LOOM_FLAG_STRING,
     AT(tokenizer),
     .metavar = "PATH",
     .group = "Tokenizer",
     .help = "a tokenizer.json, a merges.txt or vocab.bpe (with vocab.json or encoder.json beside it, or GPT-2's), "
             "tiktoken's ranks, or a directory that has them"},
    {.name = "pattern",
     .type = LOOM_FLAG_STRING,
     AT(pattern),
     .derived = "the file's; of tiktoken's ranks by their number; of a new tokenizer gpt2",
     .metavar = "NAME",
     .group = "Tokenizer",
     .help = "how a new tokenizer, or tiktoken's ranks, cut text into pieces: gpt2, cl100k, o200k, llama3"},
    {.name = "special",
     .type = LOOM_FLAG_CHOICE,
     AT(special),
     .choices = specials,
     .default_value = "text",
     .group = "Tokenizer",
     .help = "what a special token such as <|endoftext|> in the text is: text as any other, its id, or an error"},
    {.name = "vocab-size",
     .type = LOOM_FLAG_INT,
     AT(vocab_size),
     .min = 257,
     .max = LOOM_LARGEST_TOKEN_ID,
     .metavar = "N",
     .group = "Training",
     .help = "tokens, with the 256 bytes and <|endoftext|>"},
    {.name = "min-frequency",
     .type = LOOM_FLAG_INT,
     AT(min_frequency),
     .max = 1e15,
     .default_value = "2",
     .metavar = "N",
     .group = "Training",
     .help = "two tokens that are neighbours less often do not become one"},
    {.name = "out",
     .type = LOOM_FLAG_STRING,
     AT(out),
     .default_value = "tokenizer.json",
     .metavar = "FILE",
     .group = "Training",
     .help = "where the new tokenizer goes"},
};

enum { FLAGS = sizeof flags / sizeof *flags };

/* ------------------------------------------------------------------------------------------------------------- input */

/* What a command works on: a file, or standard input, whole. */
typedef struct input {
    char *data;
    size_t n;
} input;

static bool read_all(input *in, FILE *file, const char *path, loom_error *error) {
    size_t capacity = 0;
    for (size_t got = 1; got > 0; in->n += got) {
        if (in->n + 1 >= capacity) {
            char *grown = realloc(in->data, capacity = capacity ? 2 * capacity : 1 << 16);
            if (!grown) return loom_fail(error, "%s: no memory to read it", path);
            in->data = grown;
        }
        got = fread(in->data + in->n, 1, capacity - in->n - 1, file);
    }
    in->data[in->n] = 0;
    return !ferror(file) || loom_fail(error, "%s: %s", path, strerror(errno));
}

static bool read_input(input *in, const char *path, loom_error *error) {
    *in = (input){0};
    if (!strcmp(path, "-")) return read_all(in, stdin, "standard input", error);
    FILE *file = loom_file_open(path, error);
    const bool ok = file && read_all(in, file, path, error);
    if (file) fclose(file);
    return ok;
}

/* ----------------------------------------------------------------------------------------------------------- commands */

static bool encode_input(const loom_tokenizer *t, const settings *s, const input *in, int32_t **ids, size_t *n,
                         loom_error *error) {
    loom_encoder *encoder = loom_encoder_open(t, s->special, error);
    *ids = encoder ? malloc(loom_encode_room(t, in->n) * sizeof **ids) : NULL;
    if (encoder && !*ids) loom_fail(error, "no memory for the tokens of %zu bytes", in->n);
    const bool ok = *ids && loom_encode(encoder, in->data, in->n, *ids, n, error);
    loom_encoder_close(encoder);
    return ok;
}

static bool encode(const loom_tokenizer *t, const settings *s, const input *in, loom_error *error) {
    int32_t *ids;
    size_t n;
    const bool ok = encode_input(t, s, in, &ids, &n, error);
    for (size_t i = 0; ok && i < n; i++) printf("%d%c", ids[i], i + 1 < n ? ' ' : '\n');
    free(ids);
    return ok;
}

/* A line for each token: its id, and its text, in which \xNN is a byte that cannot be shown. */
static void show_token(int32_t id, loom_token_bytes token) {
    printf("%8d  \"", id);
    for (size_t i = 0; i < token.n;) {
        char character[5] = {0};
        memcpy(character, token.bytes + i, token.n - i < 4 ? token.n - i : 4);
        const int length = loom_printable_length(character);
        if (token.bytes[i] == '"' || token.bytes[i] == '\\') putchar('\\');
        if (length > 0)
            fwrite(character, 1, (size_t)length, stdout);
        else if (token.bytes[i] == '\n')
            fputs("\\n", stdout);
        else
            printf("\\x%02x", token.bytes[i]);
        i += length > 0 ? (size_t)length : 1;
    }
    puts("\"");
}

static bool show(const loom_tokenizer *t, const settings *s, const input *in, loom_error *error) {
    int32_t *ids;
    size_t n;
    const bool ok = encode_input(t, s, in, &ids, &n, error);
    for (size_t i = 0; ok && i < n; i++) show_token(ids[i], loom_vocabulary_bytes(t->vocabulary, ids[i]));
    if (ok)
        printf("%zu tokens, %zu bytes: %.2f bytes in a token; %d tokens in the vocabulary\n", n, in->n,
               n ? (double)in->n / (double)n : 0, loom_vocabulary_size(t->vocabulary));
    free(ids);
    return ok;
}

/* Ids with spaces, commas and ends of lines between them. */
static bool decode(const loom_tokenizer *t, const settings *s, const input *in, loom_error *error) {
    (void)s;
    static const char separators[] = " ,\t\r\n";
    const char *at = in->data + strspn(in->data, separators);
    for (; *at; at += strspn(at, separators)) {
        char *end;
        errno = 0;
        const long id = strtol(at, &end, 10);
        const loom_token_bytes token = errno || id < 0 || id > LOOM_LARGEST_TOKEN_ID
                                           ? (loom_token_bytes){NULL, 0}
                                           : loom_vocabulary_bytes(t->vocabulary, (int32_t)id);
        if (end == at || (*end && !strchr(separators, *end)) || !token.n)
            return loom_fail(error, "'%.*s' is no token of this vocabulary, which has ids from 0 to %d",
                             (int)strcspn(at, separators) % 40, at, loom_vocabulary_size(t->vocabulary) - 1);
        fwrite(token.bytes, 1, token.n, stdout);
        at = end;
    }
    return at == in->data + in->n || loom_fail(error, "byte %td is zero: these are no token ids", at - in->data);
}

/* ----------------------------------------------------------------------------------------------------------- training */

enum { CHUNK = 16 << 20 };

/* Counts the pieces of a file, which is read in chunks that end where a piece does. */
static bool count_file(loom_piece_counts *counts, const char *path, uint64_t *bytes, loom_error *error) {
    size_t capacity = CHUNK, n = 0, got;
    uint8_t *chunk = malloc(capacity);
    FILE *file = chunk ? loom_file_open(path, error) : NULL;
    bool ok = file || (!chunk && loom_fail(error, "%s: no memory to read it", path));
    while (ok && (got = fread(chunk + n, 1, capacity - n, file)) > 0) {
        n += got;
        *bytes += got;
        const size_t end = n < capacity ? n : loom_split_safe_end(chunk, n);
        if (n == capacity && !end) { /* no end is safe: more at once */
            uint8_t *grown = realloc(chunk, 2 * capacity);
            ok = grown || loom_fail(error, "%s: no memory to read %zu bytes at once", path, 2 * capacity);
            if (grown) chunk = grown, capacity *= 2;
            continue;
        }
        ok = loom_piece_counts_add(counts, chunk, end) || loom_fail(error, "%s: no memory to count its pieces", path);
        memmove(chunk, chunk + end, n -= end);
    }
    if (file && ferror(file)) ok = loom_fail(error, "%s: %s", path, strerror(errno));
    ok = ok && (loom_piece_counts_add(counts, chunk, n) || loom_fail(error, "%s: no memory to count its pieces", path));
    if (file) fclose(file);
    free(chunk);
    return ok;
}

static bool count_files(loom_piece_counts *counts, const char *const *paths, int n, uint64_t *bytes,
                        loom_error *error) {
    loom_found_files found = {0};
    bool ok = true;
    for (int i = 0; ok && i < n; i++) ok = loom_find_files(&found, paths[i], error);
    for (int i = 0; ok && i < found.n; i++) ok = count_file(counts, found.file[i].path, bytes, error);
    if (ok && *bytes == 0) ok = loom_fail(error, "%s: holds no text to train a tokenizer on", paths[0]);
    loom_found_files_free(&found);
    return ok;
}

static bool train(const settings *s, const char *const *paths, int n, loom_error *error) {
    const double begin = loom_seconds_now();
    loom_split_pattern pattern = LOOM_SPLIT_GPT2;
    if (!s->vocab_size) return loom_fail(error, "--vocab-size: is missing; 8192 suits some megabytes of text");
    if (n == 0) return loom_fail(error, "tokenizer train: name files or directories of text");
    if (s->pattern && !loom_split_pattern_by_name(s->pattern, &pattern, error)) return false;
    loom_piece_counts *counts = loom_piece_counts_open(pattern);
    loom_tokenizer *t = NULL;
    uint64_t bytes = 0;
    bool ok = (counts || loom_fail(error, "no memory to train a tokenizer")) && loom_output_check(s->out, error) &&
              count_files(counts, paths, n, &bytes, error);
    if (ok) {
        const size_t pieces = loom_piece_counts_pieces(counts);
        fprintf(stderr, "gptloom: %zu different piece%s in %.1f MB of text; training takes some %.0f MiB of memory\n",
                pieces, loom_plural((int64_t)pieces), (double)bytes / 1e6,
                (double)loom_piece_counts_memory(counts) / 0x1p20 + 1);
        const loom_bpe_training training = {(int32_t)s->vocab_size, s->min_frequency};
        ok = loom_bpe_train(&t, counts, &training, error) && loom_tokenizer_write_json(t, s->out, error);
    }
    if (ok)
        fprintf(loom_output_is_stdout(s->out) ? stderr : stdout,
                "%s: %d tokens, trained on %.1f MB of text in %.1f s\n", LOOM_PRINTABLE(s->out),
                loom_vocabulary_size(t->vocabulary), (double)bytes / 1e6, loom_seconds_now() - begin);
    loom_tokenizer_close(t);
    loom_piece_counts_close(counts);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------- words */

typedef struct word {
    const char *name;
    bool (*run)(const loom_tokenizer *t, const settings *s, const input *in, loom_error *error);
} word;

static const word words[] = {{"encode", encode}, {"decode", decode}, {"show", show}};
enum { WORDS = sizeof words / sizeof *words };

static const word *find_word(const char *name, loom_error *error) {
    for (int i = 0; i < WORDS; i++)
        if (!strcmp(name, words[i].name)) return &words[i];
    loom_fail(error, "tokenizer: '%s' is nothing that it does; there are encode, decode, show, train", name);
    return NULL;
}

static bool run(const settings *s, const char *const *argument, int n, loom_error *error) {
    loom_tokenizer *t = NULL;
    input in = {0};
    if (!strcmp(argument[0], "train")) return train(s, argument + 1, n - 1, error);
    const word *does = find_word(argument[0], error);
    if (!does) return false;
    if (n > 2) return loom_fail(error, "tokenizer %s: takes one file, not %d", argument[0], n - 1);
    if (!s->tokenizer) return loom_fail(error, "--tokenizer: is missing; name a tokenizer.json, a merges.txt or ranks");
    const bool ok = loom_tokenizer_open(&t, s->tokenizer, s->pattern, error) &&
                    read_input(&in, n > 1 ? argument[1] : "-", error) && does->run(t, s, &in, error);
    free(in.data);
    loom_tokenizer_close(t);
    return ok;
}

int loom_command_tokenizer(int argc, char **argv) {
    settings mine = {0};
    loom_error error;
    loom_flags_defaults(flags, FLAGS, &mine);
    loom_flag_table table = {flags, FLAGS, &mine, {false}};
    loom_command_line line = {
        .command = "tokenizer",
        .arguments = "encode|decode|show [FILE], or train DATA...",
        .about =
            "Text as the token ids of a byte-level BPE tokenizer (encode), ids as text (decode), and how a text is "
            "cut, a line for each token (show). Reads FILE, or standard input. The ids are those of Hugging Face's "
            "tokenizers and of tiktoken; text that is not UTF-8 is encoded byte by byte.",
        .examples = "  gptloom tokenizer encode --tokenizer tokenizer.json book.txt > book.ids\n"
                    "  echo 'Hello world' | gptloom tokenizer show --tokenizer merges.txt\n"
                    "  gptloom tokenizer train --vocab-size 8192 --out book.json book.txt\n",
        .fewest = 1,
        .most = LOOM_MAX_ARGUMENTS,
        .tables = &table,
        .n_tables = 1};
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0) code = run(&mine, line.argument, line.n_arguments, &error) ? 0 : loom_command_failed(&error);
    loom_flags_free(flags, FLAGS, &mine);
    return code;
}
