#include "data/dataset.h"

#include "base/check.h"
#include "data/content.h"
#include "data/input.h"
#include "data/paths.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* llm.c's token shards. Numbers are little-endian and are read by memcpy: where they lie in memory is no matter. */
enum {
    SHARD_MAGIC = 20240520,
    SHARD_MAGIC_32_BIT = 20240801,
    SHARD_VERSION = 1,
    SHARD_HEADER = 256 * 4,
};

/* Beside its size, a file is identified by this many bytes at each end. They include a shard's header, and are enough
 * to tell text from other content. */
enum { EDGE = LOOM_CONTENT_BYTES };

/* The number of tokens read at once: a window of usual length. */
enum { BLOCK = 4096 };

typedef struct data_file {
    int64_t first;  /* place of its first token in the dataset */
    int64_t tokens; /* end-of-text included */
} data_file;

struct loom_dataset {
    loom_inputs *inputs;
    data_file *file; /* one per input */
    bool bytes;      /* text, not shards */
    int64_t tokens;
    uint64_t identity;
    char note[512];
};

/* ------------------------------------------------------------------------------------------------------------- opening */

static bool is_shard(const char *path) {
    const size_t length = strlen(path);
    return length >= 4 && !strcmp(path + length - 4, ".bin");
}

static uint32_t header_field(const unsigned char *header, int i) {
    uint32_t field;
    memcpy(&field, header + 4 * i, sizeof field);
    return le32toh(field);
}

/* Believes the header's token count only where it agrees with the file's size. */
static bool measure_shard(const loom_input *input, const unsigned char *header, int64_t *n, loom_error *error) {
    const char *path = input->path;
    const unsigned long long size = input->size;
    if (size < SHARD_HEADER)
        return loom_fail(error,
                         "%s: is no whole token shard: its %llu bytes are fewer than a header's %d: fetch or make "
                         "it again",
                         path, size, SHARD_HEADER);
    const uint32_t magic = header_field(header, 0), version = header_field(header, 1), tokens = header_field(header, 2);
    if (magic == SHARD_MAGIC_32_BIT)
        return loom_fail(error,
                         "%s: holds 32-bit token ids (magic number %u); only llm.c's 16-bit shards (%d) can be read",
                         path, magic, SHARD_MAGIC);
    if (magic != SHARD_MAGIC)
        return loom_fail(error,
                         "%s: is no llm.c token shard: its magic number is %u, not %d (text must not end in .bin)",
                         path, magic, SHARD_MAGIC);
    if (version != SHARD_VERSION)
        return loom_fail(error, "%s: is a token shard of version %u; only version %d can be read", path, version,
                         SHARD_VERSION);
    const unsigned long long promised = SHARD_HEADER + 2ULL * tokens;
    if (size < promised)
        return loom_fail(error,
                         "%s: is cut off: its header promises %u tokens in %llu bytes, and it has %llu: fetch or "
                         "make it again",
                         path, tokens, promised, size);
    if (size > promised)
        return loom_fail(error,
                         "%s: is no sound token shard: its header promises %u tokens in %llu bytes, and it has "
                         "%llu: make it again",
                         path, tokens, promised, size);
    *n = tokens;
    return true;
}

static void add_note(loom_dataset *dataset, const char *path, const char *note) {
    if (dataset->note[0]) return; /* one note per dataset is enough */
    snprintf(dataset->note, sizeof dataset->note, "%s %s", path, note);
}

/* A file whose name says that it is text must also contain text, unless options->any_bytes is set. */
static bool check_content(loom_dataset *dataset, const loom_input *input, const unsigned char *head, size_t n,
                          const loom_dataset_options *options, loom_error *error) {
    if (options->any_bytes) return true;
    const char *refusal = loom_content_refusal(head, n, input->size), *note = loom_content_note(head, n);
    if (refusal) return loom_fail(error, "%s: %s (--any-bytes trains on its bytes as they are)", input->path, refusal);
    if (note) add_note(dataset, input->path, note);
    return true;
}

/* Refuses input `i`, the dataset's next one, if it is not of the same kind (text or shards) as those before it. */
static bool check_kind(const loom_dataset *dataset, int i, bool bytes, loom_error *error) {
    if (i == 0 || bytes == dataset->bytes) return true;
    const char *other = dataset->inputs->input[0].path, *path = dataset->inputs->input[i].path;
    return loom_fail(error,
                     "%s is text and %s is a .bin token shard: train on one kind, and name it by a glob where both "
                     "lie together",
                     bytes ? path : other, bytes ? other : path);
}

/* Reads both ends of a file, adds them to the identity (each hash is the seed of the next one) and counts the file's
 * tokens. */
static bool measure(loom_dataset *dataset, int i, bool bytes, unsigned char *buffer, int64_t *tokens,
                    const loom_dataset_options *options, loom_error *error) {
    const loom_input *input = &dataset->inputs->input[i];
    const size_t edge = input->size < EDGE ? input->size : EDGE;
    const uint64_t size = htole64(input->size);
    const unsigned char *head, *tail;
    if (!loom_inputs_read(dataset->inputs, i, 0, edge, buffer, &head, error)) return false;
    if (bytes && !check_content(dataset, input, head, edge, options, error)) return false;
    if (!bytes && !measure_shard(input, head, tokens, error)) return false;
    if (bytes) *tokens = (int64_t)input->size + 1;
    uint64_t hash = i == 0 ? bytes : dataset->identity;
    hash = XXH3_64bits_withSeed(&size, sizeof size, hash);
    hash = XXH3_64bits_withSeed(head, edge, hash);
    if (!loom_inputs_read(dataset->inputs, i, input->size - edge, edge, buffer, &tail, error)) return false;
    hash = XXH3_64bits_withSeed(tail, edge, hash);
    if (*tokens > 0) dataset->identity = hash;
    return true;
}

/* Opens a found file as the dataset's next one and takes ownership of its path. A file without tokens is an error if
 * the argument named it; otherwise it is left out. */
static bool take_file(loom_dataset *dataset, loom_found_file *found, const loom_dataset_options *options,
                      unsigned char *buffer, loom_error *error) {
    const int i = dataset->inputs->n;
    const bool bytes = !is_shard(found->path);
    int64_t tokens = 0;
    char *path = found->path;
    found->path = NULL;
    if (!loom_inputs_add(dataset->inputs, path, error)) return false;
    if (dataset->inputs->input[i].size > 0 &&
        (!check_kind(dataset, i, bytes, error) || !measure(dataset, i, bytes, buffer, &tokens, options, error)))
        return false;
    if (tokens == 0) {
        if (found->named) return loom_fail(error, "%s: is empty: there is nothing to train on", path);
        loom_inputs_drop(dataset->inputs);
        return true;
    }
    if (tokens > INT64_MAX - dataset->tokens)
        return loom_fail(error, "%s: with this file there are more tokens than can be counted", path);
    dataset->bytes = bytes;
    dataset->file[i] = (data_file){dataset->tokens, tokens};
    dataset->tokens += tokens;
    return true;
}

static bool open_all(loom_dataset *dataset, loom_found_files *found, const loom_dataset_options *options,
                     loom_error *error) {
    unsigned char *buffer = malloc(EDGE);
    dataset->file = calloc((size_t)found->n, sizeof *dataset->file);
    dataset->inputs = loom_inputs_open(found->n);
    bool ok = buffer && dataset->file && dataset->inputs;
    if (!ok) loom_fail(error, "%s: no memory to open it", found->file[0].path);
    for (int i = 0; ok && i < found->n; i++) ok = take_file(dataset, &found->file[i], options, buffer, error);
    free(buffer);
    return ok;
}

bool loom_dataset_open_with(loom_dataset **dataset, const char *const *paths, int n_paths,
                            const loom_dataset_options *options, loom_error *error) {
    *dataset = NULL;
    if (n_paths < 1) return loom_fail(error, "no data is named: give text files, .bin token shards, or a directory");
    loom_found_files found = {.out = options->out};
    bool ok = true;
    for (int i = 0; ok && i < n_paths; i++) ok = loom_find_files(&found, paths[i], error);
    loom_dataset *opened = ok ? calloc(1, sizeof *opened) : NULL;
    if (ok && !opened) ok = loom_fail(error, "%s: no memory to open it", paths[0]);
    if (ok && found.run)
        add_note(opened, found.run, "is the directory of a run, not data: it is left out, and so are others");
    ok = ok && open_all(opened, &found, options, error);
    if (ok && opened->inputs->n == 0)
        ok = loom_fail(error, "%s%s: there is nothing but empty files", paths[0], n_paths > 1 ? " and the others" : "");
    loom_found_files_free(&found);
    if (ok)
        *dataset = opened;
    else
        loom_dataset_close(opened);
    return ok;
}

bool loom_dataset_open(loom_dataset **dataset, const char *const *paths, int n_paths, loom_error *error) {
    return loom_dataset_open_with(dataset, paths, n_paths, &(loom_dataset_options){0}, error);
}

void loom_dataset_close(loom_dataset *dataset) {
    if (!dataset) return;
    loom_inputs_close(dataset->inputs);
    free(dataset->file);
    free(dataset);
}

/* ---------------------------------------------------------------------------------------------------------- what it is */

int64_t loom_dataset_tokens(const loom_dataset *dataset) {
    return dataset->tokens;
}

bool loom_dataset_is_bytes(const loom_dataset *dataset) {
    return dataset->bytes;
}

int loom_dataset_files(const loom_dataset *dataset) {
    return dataset->inputs->n;
}

const char *loom_dataset_first_path(const loom_dataset *dataset) {
    return dataset->inputs->input[0].path;
}

const char *loom_dataset_note(const loom_dataset *dataset) {
    return dataset->note;
}

uint64_t loom_dataset_identity(const loom_dataset *dataset) {
    return dataset->identity;
}

loom_dataset_file loom_dataset_get_file(const loom_dataset *dataset, int i) {
    const loom_input *input = &dataset->inputs->input[i];
    return (loom_dataset_file){.path = input->path,
                               .size = input->size,
                               .inode = input->inode,
                               .changed = input->changed,
                               .status_changed = input->status_changed,
                               .in_memory = input->kept || input->size == 0};
}

/* ------------------------------------------------------------------------------------------------------------ hashing */

static bool hash_bytes(const loom_dataset *dataset, int i, bool whole, unsigned char *buffer, size_t piece,
                       XXH3_state_t *state, uint64_t *hashed, loom_error *error) {
    const uint64_t apart = whole ? piece : 128 * piece, size = dataset->inputs->input[i].size;
    *hashed = 0;
    for (uint64_t at = 0; at < size;) {
        const size_t n = size - at < piece ? (size_t)(size - at) : piece;
        const unsigned char *bytes;
        if (!loom_inputs_read(dataset->inputs, i, at, n, buffer, &bytes, error)) return false;
        XXH3_128bits_update(state, bytes, n);
        *hashed += n;
        if (at + n == size) break;
        at = at + apart + piece < size ? at + apart : whole ? at + piece : size - piece;
    }
    return true;
}

bool loom_dataset_hash_file(const loom_dataset *dataset, int i, bool whole, char hash[33], uint64_t *hashed,
                            loom_error *error) {
    const size_t piece = 64 << 10;
    const uint64_t size = dataset->inputs->input[i].size;
    XXH3_state_t *state = XXH3_createState();
    unsigned char *buffer = malloc(size > 0 && size < piece ? (size_t)size : piece);
    bool ok = state && buffer;
    if (!ok) loom_fail(error, "%s: no memory to compute its checksum", dataset->inputs->input[i].path);
    if (ok) XXH3_128bits_reset(state);
    ok = ok && hash_bytes(dataset, i, whole, buffer, piece, state, hashed, error);
    if (ok) {
        const XXH128_hash_t sum = XXH3_128bits_digest(state);
        snprintf(hash, 33, "%016llx%016llx", (unsigned long long)sum.high64, (unsigned long long)sum.low64);
    }
    free(buffer);
    XXH3_freeState(state);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------- reading */

/* The place of the first id outside the vocabulary, or n. Ids are not negative. */
static int64_t first_outside(const int32_t *tokens, int64_t n, int64_t vocab_size) {
    int32_t largest = 0;
    for (int64_t i = 0; i < n; i++) largest = tokens[i] > largest ? tokens[i] : largest;
    if (largest < vocab_size) return n;
    int64_t place = 0;
    while (tokens[place] < vocab_size) place++;
    return place;
}

static bool fail_outside(const loom_dataset *dataset, int i, int64_t place, int32_t id, int64_t vocab_size,
                         loom_error *error) {
    if (dataset->bytes)
        return loom_fail(error,
                         "%s: token %lld has id %d, and the vocabulary ends at %lld: text is read as bytes and "
                         "end-of-text, and needs a --vocab-size of %d or more",
                         dataset->inputs->input[i].path, (long long)place, id, (long long)vocab_size - 1,
                         LOOM_BYTE_VOCABULARY);
    return loom_fail(error,
                     "%s: token %lld has id %d, and the vocabulary ends at %lld: give the --vocab-size of the "
                     "tokenizer that made the shard",
                     dataset->inputs->input[i].path, (long long)place, id, (long long)vocab_size - 1);
}

static void widen_ids(const unsigned char *from, int64_t n, int32_t *tokens) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t id;
        memcpy(&id, from + 2 * i, sizeof id);
        tokens[i] = le16toh(id);
    }
}

static void widen_bytes(const unsigned char *from, int64_t n, int32_t *tokens) {
    for (int64_t i = 0; i < n; i++) tokens[i] = from[i];
}

/* Reads at most BLOCK tokens, first .. first + n - 1 of file i. */
static bool read_block(const loom_dataset *dataset, int i, int64_t first, int64_t n, int32_t *tokens,
                       loom_error *error) {
    unsigned char buffer[2 * BLOCK];
    const unsigned char *from;
    if (!dataset->bytes) {
        if (!loom_inputs_read(dataset->inputs, i, SHARD_HEADER + 2 * (uint64_t)first, 2 * (size_t)n, buffer, &from,
                              error))
            return false;
        widen_ids(from, n, tokens);
        return true;
    }
    const int64_t left = (int64_t)dataset->inputs->input[i].size - first;
    const int64_t bytes = n < left ? n : left;
    if (bytes > 0 && !loom_inputs_read(dataset->inputs, i, (uint64_t)first, (size_t)bytes, buffer, &from, error))
        return false;
    if (bytes > 0) widen_bytes(from, bytes, tokens);
    if (bytes < n) tokens[bytes] = LOOM_BYTE_END_OF_TEXT;
    return true;
}

static bool read_file(const loom_dataset *dataset, int i, int64_t first, int64_t n, int64_t vocab_size, int32_t *tokens,
                      loom_error *error) {
    for (int64_t done = 0; done < n; done += BLOCK) {
        const int64_t taken = n - done < BLOCK ? n - done : BLOCK;
        int32_t *to = tokens + done;
        if (!read_block(dataset, i, first + done, taken, to, error)) return false;
        const int64_t place = first_outside(to, taken, vocab_size);
        if (place < taken) return fail_outside(dataset, i, first + done + place, to[place], vocab_size, error);
    }
    return true;
}

/* The file that holds a token: the last one that starts at or before it. */
static int file_of(const loom_dataset *dataset, int64_t token) {
    int low = 0, high = dataset->inputs->n;
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        if (dataset->file[middle].first <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

bool loom_dataset_read(const loom_dataset *dataset, int64_t first, int64_t n, int64_t vocab_size, int32_t *tokens,
                       loom_error *error) {
    LOOM_CHECK(first >= 0 && n >= 0 && first <= dataset->tokens && n <= dataset->tokens - first);
    if (n == 0) return true;
    for (int i = file_of(dataset, first); n > 0; i++) {
        const data_file *file = &dataset->file[i];
        const int64_t left = file->first + file->tokens - first;
        const int64_t taken = n < left ? n : left;
        if (!read_file(dataset, i, first - file->first, taken, vocab_size, tokens, error)) return false;
        first += taken;
        tokens += taken;
        n -= taken;
    }
    return true;
}

/* Text needs no search: its largest id is end-of-text, which every file contains. */
bool loom_dataset_check_ids(const loom_dataset *dataset, int64_t vocab_size, loom_error *error) {
    if (dataset->bytes)
        return vocab_size >= LOOM_BYTE_VOCABULARY ||
               fail_outside(dataset, 0, dataset->file[0].tokens - 1, LOOM_BYTE_END_OF_TEXT, vocab_size, error);
    if (vocab_size > UINT16_MAX) return true;
    const int64_t most = dataset->tokens <= (int64_t)1 << 30 ? INT64_MAX : (int64_t)1 << 24;
    int32_t block[BLOCK];
    for (int i = 0; i < dataset->inputs->n; i++) {
        const data_file *file = &dataset->file[i];
        const int64_t end = file->tokens < most ? file->tokens : most;
        for (int64_t first = 0; first < end; first += BLOCK) {
            const int64_t n = end - first < BLOCK ? end - first : BLOCK;
            if (!read_file(dataset, i, first, n, vocab_size, block, error)) return false;
        }
    }
    return true;
}
