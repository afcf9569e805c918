/* Training data: files become one sequence of token ids. */
#ifndef LOOM_DATA_DATASET_H
#define LOOM_DATA_DATASET_H

#include "gptloom/data.h"
#include "gptloom/error.h"

#include <stddef.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How files are searched for and checked. */
typedef struct loom_dataset_options {
    bool any_bytes;  /* reads compressed, binary and otherwise encoded files as text, which are refused by default */
    const char *out; /* the run's directory, which is left out of the data wherever it lies; NULL: none */
} loom_dataset_options;

/* Opens files, directories and globs, sorted by path within each argument. A directory stands for every regular file
 * below it, except hidden files and the directories of runs; links are followed. An argument is a glob if nothing has
 * exactly that name. Files ending in .bin are llm.c token shards: 256 int32 of header (magic 20240520, version 1, token
 * count), then uint16 ids. All other files are text, read as bytes: ids 0..255, with end-of-text (256) after each file.
 * Text and shards cannot be mixed. An empty file is an error if it is named, and is left out of directories and globs.
 * Up to 64 MiB are kept in memory; the other files are read on demand. Errors name the path and what to do: nothing
 * found, unreadable, empty, not text, an invalid header, a truncated shard; and later, when reading: a file that has
 * become shorter, a different file of the same name, a disk that fails. */
bool loom_dataset_open_with(loom_dataset **dataset, const char *const *paths, int n_paths,
                            const loom_dataset_options *options, loom_error *error);
/* The same with options that are all zero. */
bool loom_dataset_open(loom_dataset **dataset, const char *const *paths, int n_paths, loom_error *error);
void loom_dataset_close(loom_dataset *dataset);

/* One of the dataset's files, as it was when it was opened. */
typedef struct loom_dataset_file {
    const char *path;
    uint64_t size, inode;
    struct timespec changed, status_changed; /* mtime, ctime */
    bool in_memory;                          /* the whole file is in memory, so that reading it again costs nothing */
} loom_dataset_file;

loom_dataset_file loom_dataset_get_file(const loom_dataset *dataset, int i);

/* Returns 32 hex digits of XXH3-128, either of the whole file or of samples: 64 KiB at every 8 MiB and at the end.
 * *hashed is the number of bytes that were hashed. */
bool loom_dataset_hash_file(const loom_dataset *dataset, int i, bool whole, char hash[33], uint64_t *hashed,
                            loom_error *error);

/* A hash of the data: its kind, and each file's length and first and last 64 KiB. The order of the files counts, their
 * names do not. */
uint64_t loom_dataset_identity(const loom_dataset *dataset);

/* Checks token ids against a vocabulary: all of them up to 2^30 tokens, beyond that each file's first 2^24. Reading
 * checks every id again. The error names the file, the id and its place. */
bool loom_dataset_check_ids(const loom_dataset *dataset, int64_t vocab_size, loom_error *error);

/* Reads tokens first .. first + n - 1 as int32. */
bool loom_dataset_read(const loom_dataset *dataset, int64_t first, int64_t n, int64_t vocab_size, int32_t *tokens,
                       loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
