#include "checkpoint/directory.h"

#include "gptloom/checkpoint.h"

#include "base/check.h"
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEMPORARY  ".tmp-"
#define LATEST     "latest"
#define NEW_LATEST TEMPORARY LATEST

enum { NAME_SIZE = 64, MOST_LINKS = 40 };

/* ------------------------------------------------------------------------------------------------------------ steps */

static void step_name(int64_t step, const char *prefix, char name[NAME_SIZE]) {
    LOOM_CHECK(step >= 0);
    snprintf(name, NAME_SIZE, "%sstep-%08" PRId64, prefix, step);
}

/* The step of a directory's name; -1 for any name that step_name would not give. */
static int64_t step_of(const char *name) {
    char same[NAME_SIZE];
    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9') return -1;
    errno = 0;
    const long long step = strtoll(name + 5, NULL, 10);
    if (errno) return -1;
    step_name(step, "", same);
    return strcmp(name, same) == 0 ? step : -1;
}

static int newest_first(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* All steps in a directory, newest first, to be freed; none where it cannot be read, fewer where memory runs out. */
static int64_t *list_steps(const char *checkpoints, int *n) {
    *n = 0;
    DIR *listing = opendir(checkpoints);
    if (!listing) return NULL;
    int64_t *steps = NULL;
    int room = 0;
    for (const struct dirent *entry; (entry = readdir(listing));) {
        const int64_t step = step_of(entry->d_name);
        if (step < 0) continue;
        if (*n == room) {
            room = 2 * room + 16;
            int64_t *more = realloc(steps, (size_t)room * sizeof *steps);
            if (!more) break;
            steps = more;
        }
        steps[(*n)++] = step;
    }
    closedir(listing);
    if (*n > 0) qsort(steps, (size_t)*n, sizeof *steps, newest_first);
    return steps;
}

/* The newest step below `limit`, -1 if there is none. */
static int64_t newest_below(const char *checkpoints, int64_t limit) {
    int n;
    int64_t *steps = list_steps(checkpoints, &n), newest = -1;
    for (int i = 0; i < n && newest < 0; i++)
        if (steps[i] < limit) newest = steps[i];
    free(steps);
    return newest;
}

static bool step_path(const char *checkpoints, int64_t step, const char *prefix, char *path, size_t size,
                      loom_error *error) {
    char name[NAME_SIZE];
    step_name(step, prefix, name);
    return loom_join_path(path, size, checkpoints, name, error);
}

/* ---------------------------------------------------------------------------------------------------------- finding */

/* Puts a symbolic link's target in its place; *followed tells whether the path was one. */
static bool follow_link(char *path, size_t size, bool *followed, loom_error *error) {
    char target[PATH_MAX], link[PATH_MAX];
    const ssize_t length = readlink(path, target, sizeof target);
    *followed = length >= 0;
    if (!*followed) return true;
    if (length == (ssize_t)sizeof target || strlen(path) >= sizeof link)
        return loom_fail(error, "%s: the name it leads to is too long", path);
    target[length] = 0;
    strcpy(link, path);
    char *slash = strrchr(link, '/');
    if (!slash || *target == '/') {
        if (snprintf(path, size, "%s", target) < (int)size) return true;
        return loom_fail(error, "%s: the name it leads to is too long", link);
    }
    *slash = 0;
    return loom_join_path(path, size, link, target, error);
}

/* From `latest`, or a link to it, to the checkpoint itself, so that `latest` cannot move under a reader. */
static bool follow_links(char *path, size_t size, loom_error *error) {
    bool followed = true;
    for (int links = 0; followed && links < MOST_LINKS; links++)
        if (!follow_link(path, size, &followed, error)) return false;
    return true;
}

static bool holds(const char *directory, const char *name) {
    char path[PATH_MAX];
    return loom_join_path(path, sizeof path, directory, name, NULL) && loom_path_exists(path);
}

static bool find_latest(const char *checkpoints, char *directory, size_t size, loom_error *error) {
    if (!loom_join_path(directory, size, checkpoints, LATEST, error)) return false;
    if (loom_is_directory(directory)) return follow_links(directory, size, error);
    const int64_t step = newest_below(checkpoints, INT64_MAX);
    if (step < 0) return loom_fail(error, "%s: there is no checkpoint in it", checkpoints);
    return step_path(checkpoints, step, "", directory, size, error);
}

bool loom_checkpoint_find(const char *path, char *directory, size_t size, loom_error *error) {
    char checkpoints[PATH_MAX];
    struct stat status;
    if (stat(path, &status) != 0)
        return loom_fail(error, "%s: no checkpoint can be read there: %s", path, strerror(errno));
    if (!S_ISDIR(status.st_mode))
        return loom_fail(error,
                         "%s: is no directory; name a run's directory, one of its checkpoints, or a Hugging "
                         "Face model's directory",
                         path);
    if (faccessat(AT_FDCWD, path, R_OK | X_OK, AT_EACCESS) != 0)
        return loom_fail(error, "%s: cannot be read: %s", path, strerror(errno));

    if (snprintf(directory, size, "%s", path) >= (int)size) return loom_fail(error, "%s: the name is too long", path);
    for (size_t length = strlen(directory); length > 1 && directory[length - 1] == '/';) directory[--length] = 0;

    if (holds(directory, "config.json")) return follow_links(directory, size, error);
    if (holds(directory, "model.safetensors"))
        return loom_fail(error, "%s/config.json: is missing; without it the model's shape is not known", directory);
    if (holds(directory, "checkpoints")) {
        if (!loom_join_path(checkpoints, sizeof checkpoints, directory, "checkpoints", error)) return false;
        return find_latest(checkpoints, directory, size, error);
    }
    if (strlen(directory) >= sizeof checkpoints) return loom_fail(error, "%s: the name is too long", path);
    strcpy(checkpoints, directory);
    if (holds(checkpoints, LATEST) || newest_below(checkpoints, INT64_MAX) >= 0)
        return find_latest(checkpoints, directory, size, error);
    return loom_fail(error, "%s: holds no checkpoint: neither config.json nor checkpoints/%s is in it", path, LATEST);
}

int64_t loom_checkpoint_newest(const char *run) {
    char checkpoints[PATH_MAX], latest[PATH_MAX];
    if (!loom_join_path(checkpoints, sizeof checkpoints, run, "checkpoints", NULL) ||
        !loom_join_path(latest, sizeof latest, checkpoints, LATEST, NULL))
        return -1;
    if (loom_is_directory(latest) && follow_links(latest, sizeof latest, NULL)) {
        const int64_t step = step_of(strrchr(latest, '/') + 1);
        if (step >= 0) return step;
    }
    return newest_below(checkpoints, INT64_MAX);
}

bool loom_checkpoint_older(const char *directory, char *older, size_t size) {
    char checkpoints[PATH_MAX] = ".";
    const char *slash = strrchr(directory, '/');
    const int64_t step = step_of(slash ? slash + 1 : directory);
    if (step < 0) return false;
    if (slash) snprintf(checkpoints, sizeof checkpoints, "%.*s", (int)(slash - directory), directory);
    const int64_t before = newest_below(checkpoints, step);
    return before >= 0 && step_path(checkpoints, before, "", older, size, NULL);
}

/* ----------------------------------------------------------------------------------------------------------- saving */

static void remove_stale(const char *checkpoints) {
    DIR *listing = opendir(checkpoints);
    if (!listing) return;
    for (const struct dirent *entry; (entry = readdir(listing));) {
        char path[PATH_MAX];
        if (strncmp(entry->d_name, TEMPORARY, strlen(TEMPORARY)) == 0 &&
            loom_join_path(path, sizeof path, checkpoints, entry->d_name, NULL))
            loom_remove_tree(path, NULL);
    }
    closedir(listing);
}

bool loom_checkpoint_begin(const char *checkpoints, int64_t step, char *temporary, size_t size, loom_error *error) {
    if (!loom_make_directories(checkpoints, error)) return false;
    remove_stale(checkpoints);
    uint32_t number;
    char prefix[NAME_SIZE / 2];
    if (getrandom(&number, sizeof number, 0) != sizeof number) number = (uint32_t)getpid();
    snprintf(prefix, sizeof prefix, TEMPORARY "%08" PRIx32 "-", number);
    if (!step_path(checkpoints, step, prefix, temporary, size, error)) return false;
    if (mkdir(temporary, 0777) == 0) return true;
    return loom_fail(error, "%s: cannot be made a directory: %s", temporary, strerror(errno));
}

static bool rename_or_fail(const char *from, const char *to, loom_error *error) {
    return rename(from, to) == 0 || loom_fail(error, "%s: cannot be renamed to %s: %s", from, to, strerror(errno));
}

bool loom_exchange_by_renames(const char *a, const char *b, const char *spare, loom_error *error) {
    if (!rename_or_fail(b, spare, error)) return false;
    if (!rename_or_fail(a, b, error)) {
        rename(spare, b);
        return false;
    }
    if (!rename_or_fail(spare, a, error)) {
        rename(b, a);
        rename(spare, b);
        return false;
    }
    return true;
}

bool loom_exchange_directories(const char *a, const char *b, const char *spare, loom_error *error) {
    if (renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0) return true;
    if (errno == EINVAL || errno == ENOSYS || errno == ENOTSUP) return loom_exchange_by_renames(a, b, spare, error);
    return loom_fail(error, "%s: cannot be replaced: %s", b, strerror(errno));
}

/* The new link is made before anything else changes: after that, no step needs room on the disk. */
static bool make_new_link(const char *new_latest, const char *latest, const char *name, loom_error *error) {
    struct stat status;
    if (lstat(latest, &status) == 0 && !S_ISLNK(status.st_mode))
        return loom_fail(error, "%s: is in the way: it is not a symbolic link; move it elsewhere", latest);
    if (symlink(name, new_latest) == 0) return true;
    return loom_fail(error, "%s: cannot be made: %s", new_latest, strerror(errno));
}

bool loom_checkpoint_publish(const char *checkpoints, int64_t step, const char *temporary, loom_error *error) {
    char name[NAME_SIZE], final[PATH_MAX], spare[PATH_MAX], latest[PATH_MAX], new_latest[PATH_MAX];
    step_name(step, "", name);
    if (!loom_join_path(final, sizeof final, checkpoints, name, error) ||
        !step_path(checkpoints, step, TEMPORARY "replaced-", spare, sizeof spare, error) ||
        !loom_join_path(latest, sizeof latest, checkpoints, LATEST, error) ||
        !loom_join_path(new_latest, sizeof new_latest, checkpoints, NEW_LATEST, error) ||
        !make_new_link(new_latest, latest, name, error))
        return false;

    const bool replaces = loom_path_exists(final);
    if (replaces ? !loom_exchange_directories(temporary, final, spare, error)
                 : !rename_or_fail(temporary, final, error)) {
        unlink(new_latest);
        return false;
    }
    if (!loom_sync_directory(checkpoints, error) || !rename_or_fail(new_latest, latest, error)) {
        unlink(new_latest);
        if (replaces)
            loom_exchange_directories(temporary, final, spare, NULL);
        else
            rename(final, temporary);
        return false;
    }
    return loom_sync_directory(checkpoints, error);
}

/* Renamed first, so that no half-deleted directory looks like a checkpoint. */
static void delete_step(const char *checkpoints, int64_t step) {
    char path[PATH_MAX], leaving[PATH_MAX];
    if (step_path(checkpoints, step, "", path, sizeof path, NULL) &&
        step_path(checkpoints, step, TEMPORARY "old-", leaving, sizeof leaving, NULL) && rename(path, leaving) == 0)
        loom_remove_tree(leaving, NULL);
}

void loom_checkpoint_prune(const char *checkpoints, int64_t written, int keep) {
    int n, kept = 1;
    int64_t *steps = list_steps(checkpoints, &n);
    for (int i = 0; i < n; i++)
        if (steps[i] != written && kept++ >= keep) delete_step(checkpoints, steps[i]);
    free(steps);
}
