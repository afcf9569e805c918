/* Turns a data argument (a file, a directory or a glob) into a sorted list of regular files. */
#ifndef LOOM_DATA_PATHS_H
#define LOOM_DATA_PATHS_H

#include "gptloom/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_found_file {
    char *path;
    bool named; /* named by the argument itself, not found in a directory or matched by a glob */
} loom_found_file;

/* Starts with all fields zero except `out`. */
typedef struct loom_found_files {
    const char *out; /* the directory of the run that asks; NULL: none */
    loom_found_file *file;
    int n, capacity;
    char *run; /* the first of the runs that were left out */
} loom_found_files;

/* Appends the regular files that `argument` names, sorted by the bytes of their paths. A directory stands for all files
 * below it, except hidden entries and the directories of runs (`out`, and those that hold a config.ini and a
 * metrics.jsonl or checkpoints). Links are followed, and each directory is entered once, however many links lead to it.
 * An argument is tried as a glob only if nothing has exactly that name. The files found so far stay in the list after
 * an error. */
bool loom_find_files(loom_found_files *found, const char *argument, loom_error *error);
void loom_found_files_free(loom_found_files *found);

#ifdef __cplusplus
}
#endif
#endif
