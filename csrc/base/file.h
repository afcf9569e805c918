/* Checked files: every read, write and flush is checked; what is written whole is written to a temporary name first. */
#ifndef LOOM_BASE_FILE_H
#define LOOM_BASE_FILE_H

#include "gptloom/error.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A file mapped for reading. An empty file has data NULL. */
typedef struct loom_mapping {
    const void *data;
    size_t size;
} loom_mapping;

/* Errors name the path: it is missing, unreadable, a directory. */
bool loom_file_map(const char *path, loom_mapping *mapping, loom_error *error);
void loom_file_unmap(loom_mapping *mapping);

/* The whole of a small text file, ended by a zero; the caller frees it. Refuses files over `limit` bytes. */
char *loom_file_read_text(const char *path, size_t limit, loom_error *error);

/* A file being written: buffered, checksummed (XXH3-128), flushed to disk when closed. */
typedef struct loom_writer loom_writer;
loom_writer *loom_writer_open(const char *path, loom_error *error);
bool loom_writer_write(loom_writer *writer, const void *data, size_t bytes, loom_error *error);
/* Several processes write one file: one makes it, as long as it will be (what is not written yet reads as zeros); then
 * each opens it for its parts and seeks to them. A writer that has done any of this has no checksum. */
bool loom_writer_extend(loom_writer *writer, uint64_t size, loom_error *error);
loom_writer *loom_writer_open_part(const char *path, loom_error *error);
bool loom_writer_seek(loom_writer *writer, uint64_t position, loom_error *error);
/* Flushes, syncs, closes and frees the writer in every case; size and checksum are optional: the position it is at, and
 * 32 hex digits, "" where there is none. */
bool loom_writer_close(loom_writer *writer, uint64_t *size, char checksum[33], loom_error *error);
/* Closes and deletes the file, but one that was opened for parts; for the way out after an error. NULL is allowed. */
void loom_writer_abandon(loom_writer *writer);

/* A small file replaced at once: temporary name, sync, rename. */
bool loom_file_replace(const char *path, const void *data, size_t bytes, loom_error *error);

/* 32 hex digits of XXH3-128. */
void loom_checksum(const void *data, size_t bytes, char checksum[33]);
/* The same of a whole file. */
bool loom_file_checksum(const char *path, uint64_t *size, char checksum[33], loom_error *error);

/* Makes a directory and its parents. */
bool loom_make_directories(const char *path, loom_error *error);
/* Deletes a directory with all below it, or a file; what is not there is no error. Symbolic links are not followed. */
bool loom_remove_tree(const char *path, loom_error *error);
/* Makes a rename or a new file in a directory last through a power cut. */
bool loom_sync_directory(const char *path, loom_error *error);
bool loom_path_exists(const char *path);
bool loom_is_directory(const char *path);

/* directory + "/" + name in a buffer of `size`; false if it does not fit. */
bool loom_join_path(char *out, size_t size, const char *directory, const char *name, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
