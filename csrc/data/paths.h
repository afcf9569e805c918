/* What a data argument names: a file, a directory, or a glob, as a sorted list of regular files. */
#ifndef LOOM_DATA_PATHS_H
#define LOOM_DATA_PATHS_H

#include "gptloom/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_found_file {
    char *path;
    bool named; /* by the argument itself, not met in a directory or matched by a glob */
} loom_found_file;

/* Starts as all zeros but for `out`. */
typedef struct loom_found_files {
    const char *out; /* the directory of the run that asks; NULL: none */
    loom_found_file *file;
    int n, capacity;
    char *run; /* the first of the runs that were left out */
} loom_found_files;

/* Appends the regular files that `argument` names, sorted by the bytes of their paths. A directory stands for all below
 * it but hidden entries and the directories of runs (those that hold a config.ini and a metrics.jsonl or checkpoints, and
 * `out`); links are followed, and a directory is entered once however many links lead there. A glob is only tried if
 * nothing bears its name literally. What was found stays in the list after an error, too. */
bool loom_find_files(loom_found_files *found, const char *argument, loom_error *error);
void loom_found_files_free(loom_found_files *found);

#ifdef __cplusplus
}
#endif
#endif
