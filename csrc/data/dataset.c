#include "gptloom/data.h"

#include "base/check.h"
#include "base/file.h"
#include "data/paths.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* llm.c's token shards. Numbers are little-endian and are read by memcpy: a file may lie anywhere in memory. */
enum {
    SHARD_MAGIC = 20240520,
    SHARD_MAGIC_32_BIT = 20240801,
    SHARD_VERSION = 1,
    SHARD_HEADER = 256 * 4,
};

/* Each file is one mapping, of which Linux allows a process 65530. */
enum { MOST_FILES = 60000 };

typedef struct data_file {
    char *path;
    loom_mapping mapping;
    int64_t first;  /* place of its first token in the dataset */
    int64_t tokens; /* end-of-text included */
} data_file;

struct loom_dataset {
    data_file *file;
    int n_files;
    bool bytes; /* text, not shards */
    int64_t tokens;
};

/* ------------------------------------------------------------------------------------------------------------- opening */

static bool is_shard(const char *path) {
    const size_t length = strlen(path);
    return length >= 4 && !strcmp(path + length - 4, ".bin");
}

static uint32_t header_field(const data_file *file, int i) {
    uint32_t field;
    memcpy(&field, (const char *)file->mapping.data + 4 * i, sizeof field);
    return le32toh(field);
}

/* Believes the header's token count only where it agrees with the file's size. */
static bool measure_shard(data_file *file, loom_error *error) {
    const char *path = file->path;
    const unsigned long long size = file->mapping.size;
    if (size < SHARD_HEADER)
        return loom_fail(error,
                         "%s: is no whole token shard: its %llu bytes are fewer than a header's %d: fetch or make "
                         "it again",
                         path, size, SHARD_HEADER);
    const uint32_t magic = header_field(file, 0), version = header_field(file, 1), tokens = header_field(file, 2);
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
    file->tokens = tokens;
    return true;
}

static bool check_kind(const loom_dataset *dataset, const data_file *file, bool bytes, loom_error *error) {
    if (dataset->n_files == 0 || bytes == dataset->bytes) return true;
    const char *other = dataset->file[0].path;
    return loom_fail(error,
                     "%s is text and %s is a .bin token shard: train on one kind, and name it by a glob where both "
                     "lie together",
                     bytes ? file->path : other, bytes ? other : file->path);
}

/* Maps a file that is to be the dataset's next and counts its tokens. One without any is an error if it was named, and
 * otherwise gets 0. */
static bool open_file(const loom_dataset *dataset, data_file *file, bool named, loom_error *error) {
    const bool bytes = !is_shard(file->path);
    if (!loom_file_map(file->path, &file->mapping, error)) return false;
    if (file->mapping.size > 0) {
        if (!check_kind(dataset, file, bytes, error)) return false;
        if (!bytes && !measure_shard(file, error)) return false;
        if (bytes) file->tokens = (int64_t)file->mapping.size + 1;
    }
    if (file->tokens == 0 && named) return loom_fail(error, "%s: is empty: there is nothing to train on", file->path);
    if (file->tokens > INT64_MAX - dataset->tokens)
        return loom_fail(error, "%s: with this file there are more tokens than can be counted", file->path);
    return true;
}

static void close_file(data_file *file) {
    loom_file_unmap(&file->mapping);
    free(file->path);
}

/* Opens a found file, whose path it takes over, as the dataset's next, or leaves it out if it is empty. */
static bool take_file(loom_dataset *dataset, loom_found_file *found, loom_error *error) {
    data_file file = {.path = found->path, .first = dataset->tokens};
    found->path = NULL;
    const bool ok = open_file(dataset, &file, found->named, error);
    if (!ok || file.tokens == 0) {
        close_file(&file);
        return ok;
    }
    dataset->bytes = !is_shard(file.path);
    dataset->tokens += file.tokens;
    dataset->file[dataset->n_files++] = file;
    return true;
}

static bool open_all(loom_dataset *dataset, loom_found_files *found, loom_error *error) {
    if (found->n > MOST_FILES)
        return loom_fail(error,
                         "%s and others: %d files are more than the %d that can be open at once: join them into "
                         "larger ones",
                         found->file[0].path, found->n, MOST_FILES);
    dataset->file = calloc((size_t)found->n, sizeof *dataset->file);
    if (!dataset->file) return loom_fail(error, "%s: no memory to open it", found->file[0].path);
    for (int i = 0; i < found->n; i++)
        if (!take_file(dataset, &found->file[i], error)) return false;
    return true;
}

bool loom_dataset_open(loom_dataset **dataset, const char *const *paths, int n_paths, loom_error *error) {
    *dataset = NULL;
    if (n_paths < 1) return loom_fail(error, "no data is named: give text files, .bin token shards, or a directory");
    loom_found_files found = {0};
    bool ok = true;
    for (int i = 0; ok && i < n_paths; i++) ok = loom_find_files(&found, paths[i], error);
    loom_dataset *opened = ok ? calloc(1, sizeof *opened) : NULL;
    if (ok && !opened) ok = loom_fail(error, "%s: no memory to open it", paths[0]);
    ok = ok && open_all(opened, &found, error);
    if (ok && opened->n_files == 0)
        ok = loom_fail(error, "%s%s: there is nothing but empty files", paths[0], n_paths > 1 ? " and the others" : "");
    loom_found_files_free(&found);
    if (ok)
        *dataset = opened;
    else
        loom_dataset_close(opened);
    return ok;
}

void loom_dataset_close(loom_dataset *dataset) {
    if (!dataset) return;
    for (int i = 0; i < dataset->n_files; i++) close_file(&dataset->file[i]);
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
    return dataset->n_files;
}

const char *loom_dataset_first_path(const loom_dataset *dataset) {
    return dataset->file[0].path;
}

/* Each hash seeds the next. */
uint64_t loom_dataset_identity(const loom_dataset *dataset) {
    const size_t most = 64 << 10;
    uint64_t hash = dataset->bytes;
    for (int i = 0; i < dataset->n_files; i++) {
        const loom_mapping *mapping = &dataset->file[i].mapping;
        const char *data = mapping->data;
        const size_t edge = mapping->size < most ? mapping->size : most;
        const uint64_t size = htole64(mapping->size);
        hash = XXH3_64bits_withSeed(&size, sizeof size, hash);
        hash = XXH3_64bits_withSeed(data, edge, hash);
        hash = XXH3_64bits_withSeed(data + mapping->size - edge, edge, hash);
    }
    return hash;
}

/* ------------------------------------------------------------------------------------------------------------- reading */

/* Tokens first .. first + n - 1 of one file. */
static void copy_shard(const data_file *file, int64_t first, int64_t n, int32_t *tokens) {
    const char *data = (const char *)file->mapping.data + SHARD_HEADER + 2 * first;
    for (int64_t i = 0; i < n; i++) {
        uint16_t id;
        memcpy(&id, data + 2 * i, sizeof id);
        tokens[i] = le16toh(id);
    }
}

static void copy_text(const data_file *file, int64_t first, int64_t n, int32_t *tokens) {
    const unsigned char *data = (const unsigned char *)file->mapping.data + first;
    const int64_t left = (int64_t)file->mapping.size - first;
    const int64_t bytes = n < left ? n : left;
    for (int64_t i = 0; i < bytes; i++) tokens[i] = data[i];
    if (bytes < n) tokens[bytes] = LOOM_BYTE_END_OF_TEXT;
}

/* The place of the first id outside the vocabulary, or n. Ids are not negative. */
static int64_t first_outside(const int32_t *tokens, int64_t n, int64_t vocab_size) {
    int32_t largest = 0;
    for (int64_t i = 0; i < n; i++) largest = tokens[i] > largest ? tokens[i] : largest;
    if (largest < vocab_size) return n;
    int64_t place = 0;
    while (tokens[place] < vocab_size) place++;
    return place;
}

static bool fail_outside(const loom_dataset *dataset, const data_file *file, int64_t place, int32_t id,
                         int64_t vocab_size, loom_error *error) {
    if (dataset->bytes)
        return loom_fail(error,
                         "%s: token %lld has id %d, and the vocabulary ends at %lld: text is read as bytes and "
                         "end-of-text, and needs a --vocab-size of %d or more",
                         file->path, (long long)place, id, (long long)vocab_size - 1, LOOM_BYTE_VOCABULARY);
    return loom_fail(error,
                     "%s: token %lld has id %d, and the vocabulary ends at %lld: give the --vocab-size of the "
                     "tokenizer that made the shard",
                     file->path, (long long)place, id, (long long)vocab_size - 1);
}

static bool read_file(const loom_dataset *dataset, const data_file *file, int64_t first, int64_t n, int64_t vocab_size,
                      int32_t *tokens, loom_error *error) {
    if (dataset->bytes)
        copy_text(file, first, n, tokens);
    else
        copy_shard(file, first, n, tokens);
    const int64_t place = first_outside(tokens, n, vocab_size);
    return place == n || fail_outside(dataset, file, first + place, tokens[place], vocab_size, error);
}

/* The file that holds a token: the last one that starts at or before it. */
static const data_file *file_of(const loom_dataset *dataset, int64_t token) {
    int low = 0, high = dataset->n_files;
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        if (dataset->file[middle].first <= token)
            low = middle;
        else
            high = middle;
    }
    return &dataset->file[low];
}

bool loom_dataset_read(const loom_dataset *dataset, int64_t first, int64_t n, int64_t vocab_size, int32_t *tokens,
                       loom_error *error) {
    LOOM_CHECK(first >= 0 && n >= 0 && first <= dataset->tokens && n <= dataset->tokens - first);
    if (n == 0) return true;
    for (const data_file *file = file_of(dataset, first); n > 0; file++) {
        const int64_t left = file->first + file->tokens - first;
        const int64_t taken = n < left ? n : left;
        if (!read_file(dataset, file, first - file->first, taken, vocab_size, tokens, error)) return false;
        first += taken;
        tokens += taken;
        n -= taken;
    }
    return true;
}

/* Text needs no look: its ids end at end-of-text, which every file has. */
bool loom_dataset_check_ids(const loom_dataset *dataset, int64_t vocab_size, loom_error *error) {
    enum { BLOCK = 4096 };
    if (dataset->bytes) {
        const data_file *file = &dataset->file[0];
        return vocab_size >= LOOM_BYTE_VOCABULARY ||
               fail_outside(dataset, file, file->tokens - 1, LOOM_BYTE_END_OF_TEXT, vocab_size, error);
    }
    if (vocab_size > UINT16_MAX) return true;
    const int64_t most = dataset->tokens <= (int64_t)1 << 30 ? INT64_MAX : (int64_t)1 << 24;
    int32_t block[BLOCK];
    for (int i = 0; i < dataset->n_files; i++) {
        const data_file *file = &dataset->file[i];
        const int64_t end = file->tokens < most ? file->tokens : most;
        for (int64_t first = 0; first < end; first += BLOCK) {
            const int64_t n = end - first < BLOCK ? end - first : BLOCK;
            if (!read_file(dataset, file, first, n, vocab_size, block, error)) return false;
        }
    }
    return true;
}
