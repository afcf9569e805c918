#include "data/paths.h"

#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* -------------------------------------------------------------------------------------------------------------- list */

static bool append(loom_found_files *found, const char *path, bool named, loom_error *error) {
    if (found->n == found->capacity) {
        if (found->capacity > INT_MAX / 2) return loom_fail(error, "%s: one file too many", path);
        const int capacity = found->capacity ? 2 * found->capacity : 16;
        loom_found_file *file = realloc(found->file, (size_t)capacity * sizeof *file);
        if (!file) return loom_fail(error, "%s: no memory for the list of files", path);
        found->file = file;
        found->capacity = capacity;
    }
    char *copy = strdup(path);
    if (!copy) return loom_fail(error, "%s: no memory for the list of files", path);
    found->file[found->n++] = (loom_found_file){copy, named};
    return true;
}

void loom_found_files_free(loom_found_files *found) {
    for (int i = 0; i < found->n; i++) free(found->file[i].path);
    free(found->file);
    free(found->run);
    *found = (loom_found_files){0};
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const loom_found_file *)a)->path, ((const loom_found_file *)b)->path);
}

/* -------------------------------------------------------------------------------------------------------- directories */

/* The search for one argument. `entered` is a tsearch tree of the directories entered so far; it ends loops of
 * links. */
typedef struct file_search {
    loom_found_files *found;
    void *entered;
} file_search;

typedef struct directory_id {
    dev_t device;
    ino_t inode;
} directory_id;

static int by_id(const void *a, const void *b) {
    const directory_id *x = a, *y = b;
    if (x->device != y->device) return x->device < y->device ? -1 : 1;
    return (x->inode > y->inode) - (x->inode < y->inode);
}

/* Records a directory as entered; *first says whether this was the first time. */
static bool enter(file_search *search, const char *path, const struct stat *status, bool *first, loom_error *error) {
    directory_id *id = malloc(sizeof *id);
    if (!id) return loom_fail(error, "%s: no memory to walk it", path);
    *id = (directory_id){status->st_dev, status->st_ino};
    directory_id **node = tsearch(id, &search->entered, by_id);
    *first = node && *node == id;
    if (!*first) free(id);
    return node || loom_fail(error, "%s: no memory to walk it", path);
}

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

/* Compares bytes. alphasort would follow the locale. */
static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static bool visit(file_search *search, const char *path, bool named, loom_error *error);

static bool visit_entry(file_search *search, const char *directory, const char *name, loom_error *error) {
    const size_t length = strlen(directory);
    const char *slash = length && directory[length - 1] == '/' ? "" : "/";
    char *path;
    if (asprintf(&path, "%s%s%s", directory, slash, name) < 0)
        return loom_fail(error, "%s: no memory to walk it", directory);
    const bool ok = visit(search, path, false, error);
    free(path);
    return ok;
}

static bool has(const char *directory, const char *name) {
    char path[PATH_MAX];
    struct stat status;
    return loom_join_path(path, sizeof path, directory, name, NULL) && stat(path, &status) == 0;
}

/* Whether a directory is a run's, either the asking run's or another's. Such a directory is written to while data are
 * read. */
static bool is_run(const file_search *search, const char *path, const struct stat *status) {
    struct stat out;
    if (search->found->out && stat(search->found->out, &out) == 0 && out.st_dev == status->st_dev &&
        out.st_ino == status->st_ino)
        return true;
    return has(path, "config.ini") && (has(path, "metrics.jsonl") || has(path, "checkpoints"));
}

static bool leave_out(file_search *search, const char *path, bool named, loom_error *error) {
    if (named)
        return loom_fail(error,
                         "%s: is the directory of a run, not of data: name its files if they are meant, and another "
                         "directory for --out",
                         path);
    if (search->found->run) return true;
    search->found->run = strdup(path);
    return search->found->run || loom_fail(error, "%s: no memory for the list of files", path);
}

/* Visits the entries of a directory in the order of their names, so that it does not depend on the file system which of
 * several links to a directory is entered. The recursion is bounded, because paths cannot grow past PATH_MAX. */
static bool walk(file_search *search, const char *path, const struct stat *status, bool named, loom_error *error) {
    bool first = false;
    if (is_run(search, path, status)) return leave_out(search, path, named, error);
    if (!enter(search, path, status, &first, error)) return false;
    if (!first) return true;
    struct dirent **entry;
    const int n = scandir(path, &entry, is_visible, by_name);
    if (n < 0) return loom_fail(error, "%s: cannot be read: %s", path, strerror(errno));
    bool ok = true;
    for (int i = 0; i < n; i++) {
        ok = ok && visit_entry(search, path, entry[i]->d_name, error);
        free(entry[i]);
    }
    free(entry);
    return ok;
}

/* A file is added, a directory walked. Pipes, sockets and devices are left out where they were only met, and never
 * opened: opening a pipe would wait for its writer. A link to nothing is an error: data that is missing must show. */
static bool visit(file_search *search, const char *path, bool named, loom_error *error) {
    struct stat status;
    if (stat(path, &status) != 0) {
        const int reason = errno;
        if (reason == ENOENT && lstat(path, &status) == 0)
            return loom_fail(error, "%s: is a symbolic link to nothing: remove it or bring its target back", path);
        return loom_fail(error, "%s: cannot be read: %s", path, strerror(reason));
    }
    if (S_ISDIR(status.st_mode)) return walk(search, path, &status, named, error);
    if (S_ISREG(status.st_mode)) return append(search->found, path, named, error);
    if (!named) return true;
    return loom_fail(error, "%s: is neither a regular file nor a directory: write its data to a file first", path);
}

/* -------------------------------------------------------------------------------------------------------------- globs */

static int by_string(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A directory that does not exist just does not match; any other directory that cannot be read ends the search. */
static int stop_at_unreadable(const char *path, int reason) {
    (void)path;
    return reason != ENOENT && reason != ENOTDIR;
}

static bool visit_matches(file_search *search, const char *pattern, loom_error *error) {
    glob_t matches = {0};
    bool ok = true;
    switch (glob(pattern, GLOB_NOSORT, stop_at_unreadable, &matches)) {
    case 0:
        qsort(matches.gl_pathv, matches.gl_pathc, sizeof *matches.gl_pathv, by_string);
        for (size_t i = 0; ok && i < matches.gl_pathc; i++) ok = visit(search, matches.gl_pathv[i], false, error);
        break;
    case GLOB_NOMATCH: ok = loom_fail(error, "%s: no file matches this pattern", pattern); break;
    case GLOB_ABORTED:
        ok = loom_fail(error, "%s: a directory that this pattern leads through cannot be read", pattern);
        break;
    default: ok = loom_fail(error, "%s: no memory to match this pattern", pattern);
    }
    globfree(&matches);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------- search */

static bool search_argument(file_search *search, const char *argument, loom_error *error) {
    struct stat status;
    if (lstat(argument, &status) == 0 || (errno != ENOENT && errno != ENOTDIR))
        return visit(search, argument, true, error);
    if (strpbrk(argument, "*?[")) return visit_matches(search, argument, error);
    return loom_fail(error,
                     "%s: there is no such file or directory: name text files, .bin token shards, a directory of "
                     "either, or a quoted glob",
                     argument);
}

bool loom_find_files(loom_found_files *found, const char *argument, loom_error *error) {
    file_search search = {.found = found};
    const int before = found->n;
    bool ok = search_argument(&search, argument, error);
    tdestroy(search.entered, free);
    if (ok && found->n == before)
        ok = loom_fail(error, "%s: there are no files in it (hidden ones do not count)", argument);
    if (ok) qsort(found->file + before, (size_t)(found->n - before), sizeof *found->file, by_path);
    return ok;
}
