#include "checkpoint/directory.h"

#include "gptloom/checkpoint.h"

#include "base/check.h"
#include "base/file.h"
#include "checkpoint/documents.h"

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

#define TEMPORARY  LOOM_TEMPORARY
#define LATEST     "latest"
#define NEW_LATEST TEMPORARY LATEST
#define REPLACED   TEMPORARY "replaced-"

enum { NAME_SIZE = 64 };

/* ------------------------------------------------------------------------------------------------------------ steps */

static void step_name(int64_t step, const char *prefix, char name[NAME_SIZE]) {
    LOOM_CHECK(step >= 0);
    snprintf(name, NAME_SIZE, "%sstep-%08" PRId64, prefix, step);
}

/* Returns the step that a directory's name stands for; -1 for any name that step_name would not make. */
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

/* Returns all steps in a directory, newest first, in memory that the caller frees. There are none if the directory
 * cannot be read, and fewer if memory runs out. */
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

/* Returns the newest step below `limit`; -1 if there is none. */
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

static bool holds(const char *directory, const char *name) {
    char path[PATH_MAX];
    return loom_join_path(path, sizeof path, directory, name, NULL) && loom_path_exists(path);
}

/* Returns the step that a small text file names; -1 if it names none. `latest` is such a file on file systems without
 * links. */
static int64_t step_in_file(const char *path) {
    struct stat status;
    char name[NAME_SIZE] = "";
    if (stat(path, &status) != 0 || !S_ISREG(status.st_mode)) return -1;
    FILE *file = loom_file_open(path, NULL);
    if (!file) return -1;
    const bool read = fgets(name, sizeof name, file);
    fclose(file);
    name[strcspn(name, "\r\n")] = 0;
    return read ? step_of(name) : -1;
}

/* Replaces the path of `latest` by the directory that it leads to, so that a move of `latest` does not affect a reader.
 * The resulting path does not contain `latest`, to which other links may lead under other names. Returns false if
 * `latest` leads nowhere. */
static bool follow_latest(char *path, size_t size) {
    char checkpoints[PATH_MAX];
    const int64_t step = step_in_file(path);
    if (step < 0) return loom_is_directory(path) && loom_follow_links(path, size, NULL);
    if (!loom_follow_links(path, size, NULL)) return false;
    const char *slash = strrchr(path, '/');
    snprintf(checkpoints, sizeof checkpoints, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    return step_path(checkpoints, step, "", path, size, NULL) && loom_is_directory(path);
}

static bool find_latest(const char *checkpoints, char *directory, size_t size, loom_error *error) {
    if (!loom_join_path(directory, size, checkpoints, LATEST, error)) return false;
    if (follow_latest(directory, size)) return true;
    const int64_t step = newest_below(checkpoints, INT64_MAX);
    if (step < 0) return loom_fail(error, "%s: there is no checkpoint in it", checkpoints);
    return step_path(checkpoints, step, "", directory, size, error);
}

bool loom_checkpoint_find(const char *path, char *directory, size_t size, loom_error *error) {
    char checkpoints[PATH_MAX];
    struct stat status;
    if (stat(path, &status) != 0)
        return loom_fail(error, "%s: no checkpoint can be read there: %s", path, strerror(errno));
    if (S_ISREG(status.st_mode) && snprintf(directory, size, "%s", path) < (int)size && follow_latest(directory, size))
        return true;
    if (!S_ISDIR(status.st_mode))
        return loom_fail(error,
                         "%s: is no directory; name a run's directory, one of its checkpoints, or a Hugging "
                         "Face model's directory",
                         path);
    if (faccessat(AT_FDCWD, path, R_OK | X_OK, AT_EACCESS) != 0)
        return loom_fail(error, "%s: cannot be read: %s", path, strerror(errno));

    if (snprintf(directory, size, "%s", path) >= (int)size) return loom_fail(error, "%s: the name is too long", path);
    for (size_t length = strlen(directory); length > 1 && directory[length - 1] == '/';) directory[--length] = 0;

    if (holds(directory, "config.json")) return loom_follow_links(directory, size, error);
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
    if (follow_latest(latest, sizeof latest)) {
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

/* If the directory is a whole checkpoint that was being replaced when its process was killed, or the disk failed,
 * between two renames, gives it its name back and returns true. */
static bool gives_back(const char *checkpoints, const char *name, const char *path) {
    static const char replaced[] = REPLACED;
    const char *step = name + strlen(replaced);
    char final[PATH_MAX];
    if (strncmp(name, replaced, strlen(replaced)) != 0 || step_of(step) < 0 ||
        !loom_join_path(final, sizeof final, checkpoints, step, NULL) || loom_path_exists(final))
        return false;
    rename(path, final); /* if the rename fails, the directory stays for the next attempt */
    return true;
}

static void remove_stale(const char *checkpoints) {
    DIR *listing = opendir(checkpoints);
    if (!listing) return;
    for (const struct dirent *entry; (entry = readdir(listing));) {
        char path[PATH_MAX];
        if (strncmp(entry->d_name, TEMPORARY, strlen(TEMPORARY)) == 0 &&
            loom_join_path(path, sizeof path, checkpoints, entry->d_name, NULL) &&
            !gives_back(checkpoints, entry->d_name, path))
            loom_remove_tree(path, NULL);
    }
    closedir(listing);
}

static bool rename_or_fail(const char *from, const char *to, loom_error *error) {
    return rename(from, to) == 0 || loom_fail(error, "%s: cannot be renamed to %s: %s", from, to, strerror(errno));
}

/* Makes the new `latest` under a temporary name: a link or, if the file system has no links, a text file with the
 * step's name. */
static bool make_new_latest(const char *new_latest, const char *name, loom_error *error) {
    char text[NAME_SIZE + 1];
    unlink(new_latest);
    if (symlink(name, new_latest) == 0) return true;
    loom_writer *writer = loom_writer_open(new_latest, error);
    if (!writer) return false;
    const int length = snprintf(text, sizeof text, "%s\n", name);
    if (loom_writer_write(writer, text, (size_t)length, error) && loom_writer_close(writer, NULL, NULL, error))
        return true;
    unlink(new_latest);
    return false;
}

/* Moves `latest` to a step whose directory already has its final name. */
static bool move_latest(const char *checkpoints, const char *name, loom_error *error) {
    char latest[PATH_MAX], new_latest[PATH_MAX];
    if (!loom_join_path(latest, sizeof latest, checkpoints, LATEST, error) ||
        !loom_join_path(new_latest, sizeof new_latest, checkpoints, NEW_LATEST, error) ||
        !make_new_latest(new_latest, name, error))
        return false;
    if (rename_or_fail(new_latest, latest, error)) return loom_sync_directory(checkpoints, error);
    unlink(new_latest);
    return false;
}

/* Whether two checkpoints are complete and byte for byte the same. */
static bool are_the_same(const char *a, const char *b) {
    char first[PATH_MAX], second[PATH_MAX];
    loom_mapping x = {0}, y = {0};
    const bool same = loom_join_path(first, sizeof first, a, LOOM_MANIFEST_FILE, NULL) &&
                      loom_join_path(second, sizeof second, b, LOOM_MANIFEST_FILE, NULL) &&
                      loom_file_map(first, &x, NULL) && loom_file_map(second, &y, NULL) && x.size > 0 &&
                      x.size == y.size && !memcmp(x.data, y.data, x.size);
    loom_file_unmap(&x);
    loom_file_unmap(&y);
    return same && loom_manifest_verify(a, NULL) && loom_manifest_verify(b, NULL);
}

/* Copies that follow links (cp -rL, zip, object stores) turn `latest` into a directory. If its step has no directory
 * yet, it is renamed to that step; if it only duplicates the step's directory, it is deleted. */
static bool repair_latest(const char *checkpoints, const char *latest, loom_error *error) {
    static const char wants[] = "is a directory, where a link to the newest checkpoint should be";
    char state_path[PATH_MAX], final[PATH_MAX], leaving[PATH_MAX], name[NAME_SIZE];
    loom_training_state state;
    loom_error why;
    if (!loom_join_path(state_path, sizeof state_path, latest, LOOM_STATE_FILE, error)) return false;
    if (!loom_state_read(state_path, &state, &why))
        return loom_fail(error, "%s: %s, and is no checkpoint itself (%s); move it elsewhere", latest, wants,
                         why.message);
    step_name(state.step, "", name);
    if (!loom_join_path(final, sizeof final, checkpoints, name, error) ||
        !step_path(checkpoints, state.step, TEMPORARY "copy-", leaving, sizeof leaving, error))
        return false;
    if (!loom_path_exists(final)) return rename_or_fail(latest, final, error) && move_latest(checkpoints, name, error);
    if (!are_the_same(latest, final))
        return loom_fail(error, "%s: %s, and is not the same as %s; move one of the two elsewhere", latest, wants,
                         name);
    if (!rename_or_fail(latest, leaving, error) || !move_latest(checkpoints, name, error)) return false;
    loom_remove_tree(leaving, NULL);
    return true;
}

bool loom_checkpoint_prepare(const char *checkpoints, loom_error *error) {
    char latest[PATH_MAX];
    struct stat status;
    if (!loom_path_exists(checkpoints)) return true;
    if (!loom_check_place(checkpoints, error) || !loom_try_directory(checkpoints, error)) return false;
    remove_stale(checkpoints);
    if (!loom_join_path(latest, sizeof latest, checkpoints, LATEST, error)) return false;
    return lstat(latest, &status) != 0 || !S_ISDIR(status.st_mode) || repair_latest(checkpoints, latest, error);
}

bool loom_checkpoint_begin(const char *checkpoints, int64_t step, char *temporary, size_t size, loom_error *error) {
    if (!loom_make_directories(checkpoints, error)) return false;
    remove_stale(checkpoints);
    uint32_t number;
    char prefix[NAME_SIZE / 2];
    if (getrandom(&number, sizeof number, 0) != sizeof number) number = (uint32_t)getpid();
    snprintf(prefix, sizeof prefix, TEMPORARY "%08" PRIx32 "-", number);
    if (!step_path(checkpoints, step, prefix, temporary, size, error)) return false;
    if (mkdir(temporary, 0775) == 0) return true;
    return loom_fail(error, "%s: cannot be made a directory: %s", temporary, strerror(errno));
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

bool loom_checkpoint_publish(const char *checkpoints, int64_t step, const char *temporary, loom_error *error) {
    char name[NAME_SIZE], final[PATH_MAX], spare[PATH_MAX];
    loom_error why;
    step_name(step, "", name);
    if (!loom_join_path(final, sizeof final, checkpoints, name, error) ||
        !step_path(checkpoints, step, REPLACED, spare, sizeof spare, error))
        return false;
    if (loom_path_exists(final) ? !loom_exchange_directories(temporary, final, spare, error)
                                : !rename_or_fail(temporary, final, error))
        return false;
    if (loom_sync_directory(checkpoints, &why) && move_latest(checkpoints, name, &why)) return true;
    return loom_fail(error, "%s; the checkpoint %s is whole and stays", why.message, final);
}

bool loom_checkpoint_of_step(const char *run, int64_t step, char *path, size_t size, loom_error *error) {
    char checkpoints[PATH_MAX], list[256] = "";
    if (!loom_join_path(checkpoints, sizeof checkpoints, run, "checkpoints", error) ||
        !step_path(checkpoints, step, "", path, size, error))
        return false;
    if (loom_is_directory(path)) return true;
    int n;
    int64_t *steps = list_steps(checkpoints, &n);
    for (int i = n - 1; i >= 0; i--) {
        const size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%" PRId64, used ? ", " : "", steps[i]);
    }
    free(steps);
    return loom_fail(error, "%s: has no checkpoint of step %" PRId64 "; %s%s", checkpoints, step,
                     *list ? "there are those of steps " : "there is none at all", list);
}

/* The same step may be abandoned more than once: later ones get a number. */
static bool abandon_step(const char *checkpoints, int64_t step, loom_error *error) {
    char from[PATH_MAX], to[PATH_MAX], name[NAME_SIZE + 16], numbered[NAME_SIZE + 32];
    step_name(step, "abandoned-", name);
    if (!step_path(checkpoints, step, "", from, sizeof from, error) ||
        !loom_join_path(to, sizeof to, checkpoints, name, error))
        return false;
    for (int i = 2; loom_path_exists(to); i++) {
        snprintf(numbered, sizeof numbered, "%s.%d", name, i);
        if (!loom_join_path(to, sizeof to, checkpoints, numbered, error)) return false;
    }
    return rename_or_fail(from, to, error);
}

bool loom_checkpoint_abandon(const char *run, int64_t step, int *n, int64_t *oldest, int64_t *newest,
                             loom_error *error) {
    char checkpoints[PATH_MAX];
    int all;
    *n = 0;
    if (!loom_join_path(checkpoints, sizeof checkpoints, run, "checkpoints", error)) return false;
    int64_t *steps = list_steps(checkpoints, &all);
    bool ok = true;
    /* The newest checkpoint, to which `latest` may lead, is renamed last. Until then, a crash at any instant leaves
     * what was there to find. */
    for (int i = all - 1; ok && i >= 0; i--) {
        if (steps[i] <= step) continue;
        ok = abandon_step(checkpoints, steps[i], error);
        if ((*n)++ == 0) *oldest = steps[i];
        *newest = steps[i];
    }
    free(steps);
    return ok && (*n == 0 || loom_sync_directory(checkpoints, error));
}

/* The directory is renamed before it is deleted, so that no half-deleted directory looks like a checkpoint. */
static void delete_step(const char *checkpoints, int64_t step) {
    char path[PATH_MAX], leaving[PATH_MAX];
    if (step_path(checkpoints, step, "", path, sizeof path, NULL) &&
        step_path(checkpoints, step, TEMPORARY "old-", leaving, sizeof leaving, NULL) && rename(path, leaving) == 0)
        loom_remove_tree(leaving, NULL);
}

void loom_checkpoint_prune(const char *checkpoints, int64_t good, int keep) {
    int n, kept = 1;
    int64_t *steps = list_steps(checkpoints, &n);
    for (int i = 0; i < n; i++)
        if (steps[i] != good && kept++ >= keep) delete_step(checkpoints, steps[i]);
    free(steps);
}
