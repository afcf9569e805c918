/* Training data: files become one sequence of token ids; the sequence is cut into windows; a loader brings windows in
 * a shuffled order that is a pure function of (seed, position), so it resumes anywhere and does not depend on ranks. */
#ifndef GPTLOOM_DATA_H
#define GPTLOOM_DATA_H

#include "gptloom/arena.h"
#include "gptloom/device.h"
#include "gptloom/error.h"

#include <stdint.h>
#include <stddef.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* --------------------------------------------------------------------------------------------------------- datasets */
/* Token ids. Text is read as bytes, and the last id of its vocabulary ends a text. llm.c's shards hold GPT-2's
 * tokens. */
enum { LOOM_BYTE_VOCABULARY = 257, LOOM_BYTE_END_OF_TEXT = 256, LOOM_GPT2_VOCABULARY = 50257 };

typedef struct loom_dataset loom_dataset;

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

int64_t loom_dataset_tokens(const loom_dataset *dataset);
bool loom_dataset_is_bytes(const loom_dataset *dataset);
int loom_dataset_files(const loom_dataset *dataset);
const char *loom_dataset_first_path(const loom_dataset *dataset);
const char *
loom_dataset_note(const loom_dataset *dataset); /* one line on what was found, "PATH is HTML: ..."; "": none */

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

/* ---------------------------------------------------------------------------------------------------------- windows
 * A split is a range of a dataset's tokens. Its n - 1 pairs (token, next token) form a ring that is cut into
 * ceil((n-1)/T) windows of T pairs; where the cut starts moves with each epoch. Every pair is in exactly one window of
 * an epoch; the last window is filled up with targets of -1. */
typedef struct loom_split {
    const loom_dataset *dataset;
    int64_t first, tokens;
    int64_t vocab_size;
} loom_split;

/* Cuts off the last `fraction` of the tokens as the validation split; with 0 that split is empty. Refuses splits that
 * are too short for one window of T. */
bool loom_split_by_fraction(const loom_dataset *dataset, int64_t vocab_size, double fraction, int64_t T,
                            loom_split *training, loom_split *validation, loom_error *error);

int64_t loom_split_windows(const loom_split *split, int64_t T);

/* Reads window `w` of a cut that starts after `shift` pairs: T inputs and T targets. */
bool loom_split_window(const loom_split *split, int64_t T, int64_t shift, int64_t w, int32_t *inputs, int32_t *targets,
                       loom_error *error);

/* The bijection that shuffles 0 .. n-1 in an epoch: a Feistel network over Philox, walked until it lands below n. */
int64_t loom_shuffle(uint64_t seed, uint32_t epoch, int64_t n, int64_t i);

/* ----------------------------------------------------------------------------------------------------------- loader */
typedef struct loom_loader loom_loader;

typedef struct loom_loader_options {
    int64_t T;
    int64_t batch;       /* sequences per step, over all ranks */
    int64_t micro_batch; /* divides batch */
    uint64_t seed;
    int64_t first_step;
    int rank, ranks; /* a rank takes consecutive micro-batches of each step; without ranks: 0 and 1 */
} loom_loader_options;

/* One step's sequences of this rank: micro-batches of (micro_batch, T), one after the other. */
typedef struct loom_batch {
    int64_t step;
    int32_t *inputs, *targets; /* (batch / ranks, T) */
    int64_t targets_in_step;   /* targets that are not -1, over all ranks */
} loom_batch;

/* Opens a loader. The dataset must stay open as long as the loader. */
bool loom_loader_open(loom_loader **loader, const loom_split *split, const loom_loader_options *options,
                      loom_error *error);
/* Returns the next step's batch, valid until the next call. Meanwhile a thread prepares the batch after it. After an
 * error the loader stays at that step: every further call returns the same error. */
bool loom_loader_next(loom_loader *loader, const loom_batch **batch, loom_error *error);
void loom_loader_close(loom_loader *loader);

/* ----------------------------------------------------------------------------------------------------------- feeder
 * Brings a loader's batches to the device: while one step computes, the next one's batch is copied beside it, in a
 * stream of its own, out of pinned memory. */
typedef struct loom_feeder {
    int32_t *inputs, *targets; /* device memory, (batch / ranks, T) each: the step's batch */
    int32_t *staged;           /* device memory: the next step's inputs, then its targets */
    loom_device *device;
    loom_loader *loader;
    loom_stream *stream;
    int32_t *pinned[2]; /* host memory, used alternately */
    size_t ids;         /* the number of ids in inputs and targets together */
    int turn;
    bool sent;       /* `staged` holds the next batch, or a copy to it is under way */
    bool failed;     /* there is no next batch, because data could not be read */
    bool given_back; /* the next take returns the batch that was taken last */
    loom_batch next; /* its step and count */
} loom_feeder;

/* Takes the memory for steps of `sequences` sequences of T tokens from an arena. Called once with a measuring arena and
 * once with a real one. */
void loom_feeder_lay_out(loom_feeder *feeder, int64_t sequences, int64_t T, loom_arena *arena);
/* Opens the feeder, after loom_feeder_lay_out() with a real arena. The feeder closes the loader. */
bool loom_feeder_open(loom_feeder *feeder, loom_device *device, loom_loader *loader, loom_error *error);
void loom_feeder_close(loom_feeder *feeder);
/* Puts the next step's batch where the step reads it, in the order of the device's default stream, and says which step
 * it is and how many targets it has. */
bool loom_feeder_take(loom_feeder *feeder, int64_t *step, int64_t *targets, loom_error *error);
/* Makes the next take return the last batch again. Allowed after a take if nothing was sent ahead since. */
void loom_feeder_give_back(loom_feeder *feeder);
/* Takes a batch without targets instead of one that could not be read. A rank computes it to stay in step with the
 * others. */
void loom_feeder_take_nothing(loom_feeder *feeder);
/* Sends the following batch ahead. It is best called when the device has been given its work. An error is reported by
 * the next take. */
void loom_feeder_send_ahead(loom_feeder *feeder);

#ifdef __cplusplus
}
#endif
#endif
