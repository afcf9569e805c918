/* manifest.json: what files a checkpoint consists of, with their sizes and checksums. */
#ifndef LOOM_CHECKPOINT_MANIFEST_H
#define LOOM_CHECKPOINT_MANIFEST_H

#include "base/file.h"
#include "base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LOOM_MANIFEST_FILE "manifest.json"

enum { LOOM_MANIFEST_MAX_FILES = 16 };

/* A directory being filled: every file that is written through it is recorded. */
typedef struct loom_manifest {
    const char *directory;
    int n_files;
    struct loom_manifest_file {
        const char *name; /* a literal */
        uint64_t size;
        char checksum[33];
    } file[LOOM_MANIFEST_MAX_FILES];
} loom_manifest;

/* Opens a new file of the directory for writing; NULL on errors. */
loom_writer *loom_manifest_begin(const loom_manifest *manifest, const char *name, loom_error *error);

/* Closes that file and records it; where `ok` is false deletes it instead. Returns whether all is well. */
bool loom_manifest_end(loom_manifest *manifest, const char *name, loom_writer *writer, bool ok, loom_error *error);

/* Of a file that was made but not filled by its writer (loom_writer_extend), what its checksum has come to be. */
void loom_manifest_set_checksum(loom_manifest *manifest, const char *name, const char checksum[33]);

/* Writes and records a JSON file, and deletes the object in every case. `complete` is false, and `json` may be NULL,
 * where cJSON ran out of memory while it was made. */
bool loom_manifest_add_json(loom_manifest *manifest, const char *name, cJSON *json, bool complete, loom_error *error);

/* Writes manifest.json itself; after this nothing may be added. */
bool loom_manifest_write(loom_manifest *manifest, loom_error *error);

/* Reads a directory's manifest.json and every file it lists, and names the first that is missing or differs. */
bool loom_manifest_verify(const char *directory, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
