/* Checked files: every read, write and flush is checked; what is written whole is written to a temporary name first.
 *
 * What is made is made anew: O_EXCL, O_NOFOLLOW and random names, so that no symbolic link that somebody has put there
 * leads a write elsewhere. The one exception is loom_output_write(), whose place the user has named. A file system that
 * has no fsync() (it returns EINVAL, ENOTSUP or ENOSYS) is taken at its word: what it writes is as safe as it makes it.
 */
#ifndef LOOM_BASE_FILE_H
#define LOOM_BASE_FILE_H

#include "gptloom/error.h"

#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A regular file that is read in places. One that becomes shorter meanwhile, or whose disk fails, is an error: nothing
 * is mapped, where such a file would end the process. */
typedef struct loom_reader {
    int descriptor;
    uint64_t size;       /* when it was opened */
    char path[PATH_MAX]; /* "": none is open */
} loom_reader;

bool loom_reader_open(loom_reader *reader, const char *path, loom_error *error);
bool loom_reader_read(const loom_reader *reader, uint64_t place, void *to, size_t bytes, loom_error *error);
void loom_reader_close(loom_reader *reader);

/* The content of a whole file. For an empty file `data` is NULL. */
typedef struct loom_mapping {
    const void *data;
    size_t size;
} loom_mapping;

/* Fails if the path is missing, unreadable or a directory. Errors name the path. */
bool loom_file_map(const char *path, loom_mapping *mapping, loom_error *error);
void loom_file_unmap(loom_mapping *mapping);

/* Returns the text of a whole small file with a zero byte at its end; the caller frees it. Files over `limit` bytes are
 * refused, and what holds zero bytes. */
char *loom_file_read_text(const char *path, size_t limit, loom_error *error);

/* Opens a regular file, for reading line by line. */
FILE *loom_file_open(const char *path, loom_error *error);

/* A new file that is being written. Writes are buffered and checksummed (XXH3-128), and flushed to disk when the file
 * is closed. */
typedef struct loom_writer loom_writer;
/* Fails if something exists at `path`. */
loom_writer *loom_writer_open(const char *path, loom_error *error);
bool loom_writer_write(loom_writer *writer, const void *data, size_t bytes, loom_error *error);
/* Several processes can write one file. One of them makes it with its final size; bytes that are not written yet read
 * as zeros. Then each process opens it and seeks to the parts that it writes. A writer that was extended or opened
 * for parts has no checksum. */
bool loom_writer_extend(loom_writer *writer, uint64_t size, loom_error *error);
loom_writer *loom_writer_open_part(const char *path, loom_error *error);
bool loom_writer_seek(loom_writer *writer, uint64_t position, loom_error *error);
/* Flushes, syncs, closes and frees the writer in every case. `size` and `checksum` are optional: they get the writer's
 * position and 32 hex digits ("" if the writer has no checksum). */
bool loom_writer_close(loom_writer *writer, uint64_t *size, char checksum[33], loom_error *error);
/* Closes the file and deletes it, unless it was opened with loom_writer_open_part. Used to clean up after an error.
 * NULL is allowed. */
void loom_writer_abandon(loom_writer *writer);

/* Replaces a small file atomically: temporary name, sync, rename. A symbolic link is itself replaced, not followed. */
bool loom_file_replace(const char *path, const void *data, size_t bytes, loom_error *error);

/* Opens a regular file for appending and makes it if it is missing. Symbolic links are refused. */
FILE *loom_file_append(const char *path, loom_error *error);
/* Truncates a regular file to its first `size` bytes. */
bool loom_file_cut(const char *path, uint64_t size, loom_error *error);

/* Writes to the place that a user has named: "-" is standard output; pipes and devices are written to, regular files
 * are replaced at once, with the same permissions, where symbolic links lead. */
bool loom_output_write(const char *path, const void *data, size_t bytes, loom_error *error);
/* Refuses a place that cannot be written to before work is spent on what goes there. */
bool loom_output_check(const char *path, loom_error *error);
/* Whether that place is standard output, by whatever name; and whether it takes writes one after the other, as pipes
 * do, instead of being replaced. */
bool loom_output_is_stdout(const char *path);
bool loom_output_is_stream(const char *path);

/* The infix of temporary names: ".tmp-" and 16 random hex digits, beside `path`. A file or directory with such a name
 * is ours, and is unfinished. */
#define LOOM_TEMPORARY ".tmp-"
bool loom_temporary_path(const char *path, char *temporary, size_t size, loom_error *error);
bool loom_is_temporary(const char *name);

/* 32 hex digits of XXH3-128. */
void loom_checksum(const void *data, size_t bytes, char checksum[33]);
/* The same of a whole file. */
bool loom_file_checksum(const char *path, uint64_t *size, char checksum[33], loom_error *error);

/* Puts what symbolic links lead to in the place of a path that is one. */
bool loom_follow_links(char *path, size_t size, loom_error *error);

/* Makes a directory and its parents, to which not all users may write. */
bool loom_make_directories(const char *path, loom_error *error);
/* Deletes a directory with all below it, or a file; what is not there is no error. Symbolic links are not followed. */
bool loom_remove_tree(const char *path, loom_error *error);
/* Makes a rename or a new file in a directory last through a power cut. */
bool loom_sync_directory(const char *path, loom_error *error);
/* Tries what a run needs of a directory: files made, written, flushed, renamed and deleted. */
bool loom_try_directory(const char *path, loom_error *error);
/* Refuses a directory, or a link to it, of another user but root, and a directory that all may write to: others could
 * put something else in the place of what we use there. A group may write: whoever is let into it is trusted. Owners
 * and modes that a file system shows of every file (exFAT, NFS that maps root) are no reason, nor is an owner that a
 * user namespace does not know. What is above the directory is not looked at. */
bool loom_check_place(const char *path, loom_error *error);
bool loom_path_exists(const char *path);
bool loom_is_directory(const char *path);

/* directory + "/" + name in a buffer of `size`; false if it does not fit. */
bool loom_join_path(char *out, size_t size, const char *directory, const char *name, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
