#include "engine/run_directory.h"

#include "base/file.h"
#include "checkpoint/directory.h"
#include "gptloom/device.h"

#include <dirent.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --------------------------------------------------------------------------------------------------------- the place */

/* Whether a name is that of an unfinished file of a run; earlier versions added ".tmp-PID" to the file's own. */
static bool is_litter(const char *name) {
    static const char *const files[] = {"config.ini", "plan.json", LOOM_EARLIER_TUNING_FILE, "metrics.jsonl",
                                        "loss.svg"};
    if (loom_is_temporary(name)) return true;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const size_t length = strlen(files[i]), prefix = length + strlen(LOOM_TEMPORARY);
        if (!strncmp(name, files[i], length) && !strncmp(name + length, LOOM_TEMPORARY, strlen(LOOM_TEMPORARY)) &&
            name[prefix] && strspn(name + prefix, "0123456789") == strlen(name + prefix))
            return true;
    }
    return false;
}

/* What cannot be deleted stays: that is no reason not to train. */
static void remove_litter(const char *out) {
    char path[PATH_MAX];
    DIR *listing = opendir(out);
    if (!listing) return;
    for (const struct dirent *entry; (entry = readdir(listing));)
        if (is_litter(entry->d_name) && loom_join_path(path, sizeof path, out, entry->d_name, NULL))
            loom_remove_tree(path, NULL);
    closedir(listing);
}

/* What is appended to must be a file: a link may lead anywhere, a pipe would be waited for. */
static bool check_files(const char *out, loom_error *error) {
    static const char *const files[] = {"metrics.jsonl", "samples.txt"};
    char path[PATH_MAX];
    struct stat status;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        if (!loom_join_path(path, sizeof path, out, files[i], error)) return false;
        if (lstat(path, &status) == 0 && !S_ISREG(status.st_mode))
            return loom_fail(error, "%s: is %s, where a file should be; move it elsewhere", path,
                             S_ISLNK(status.st_mode) ? "a symbolic link" : "no regular file");
    }
    return true;
}

static bool ready(const char *out, loom_error *error) {
    char checkpoints[PATH_MAX];
    remove_litter(out);
    return check_files(out, error) && loom_try_directory(out, error) &&
           loom_join_path(checkpoints, sizeof checkpoints, out, "checkpoints", error) &&
           loom_checkpoint_prepare(checkpoints, error);
}

bool loom_run_directory_open(loom_lock **lock, const char *out, const loom_train_observer *observer,
                             loom_error *error) {
    char path[PATH_MAX], logs[PATH_MAX];
    const loom_lock_listener listener = {observer->noted, observer->user};
    const bool made = !loom_path_exists(out);
    *lock = NULL;
    if (!loom_join_path(path, sizeof path, out, "lock", error) ||
        !loom_join_path(logs, sizeof logs, out, "logs", error) || !loom_make_directories(out, error))
        return false;
    if (loom_check_place(out, error) && (!loom_path_exists(logs) || loom_check_place(logs, error)) &&
        loom_lock_take(lock, path, out, NULL, &listener, error) && ready(out, error))
        return true;
    loom_lock_release(*lock);
    *lock = NULL;
    if (made) rmdir(out);
    return false;
}

/* ----------------------------------------------------------------------------------------------------------- samples */

/* A sample's text may have lines like the one that begins a sample: what is cut begins with the first of the last lines
 * that are all of later steps. */
bool loom_run_cut_samples(const char *path, int64_t step, loom_error *error) {
    loom_mapping file;
    if (!loom_path_exists(path)) return true;
    if (!loom_file_map(path, &file, error)) return false;
    if (file.size == 0) return true;
    const char *text = file.data, *end = text + file.size;
    size_t kept = file.size;
    for (const char *line = text; line && line < end;) {
        char begin[64];
        int64_t of;
        const size_t length = (size_t)(end - line) < sizeof begin - 1 ? (size_t)(end - line) : sizeof begin - 1;
        memcpy(begin, line, length);
        begin[length] = 0;
        if (sscanf(begin, "--- step %" SCNd64, &of) == 1 && !strncmp(begin, "--- step ", 9)) {
            if (of <= step)
                kept = file.size;
            else if (kept == file.size)
                kept = (size_t)(line - text);
        }
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        line = newline ? newline + 1 : NULL;
    }
    const uint64_t size = file.size;
    loom_file_unmap(&file);
    return kept == size || loom_file_cut(path, kept, error);
}

/* ----------------------------------------------------------------------------------------------------------- metrics */

/* The step of a line of metrics; -1 if it has none. A line may be any text, and need not end. */
static int64_t step_of_line(const char *line, size_t length) {
    char begin[64] = "";
    int64_t step;
    memcpy(begin, line, length < sizeof begin - 1 ? length : sizeof begin - 1);
    return sscanf(begin, "{\"step\": %" SCNd64, &step) == 1 ? step : -1;
}

/* Whether this is how a line of metrics begins, and no more of it: a kill came in the middle of it. */
static bool is_torn(const char *line, size_t length) {
    static const char begin[] = "{\"step\": ";
    const size_t most = sizeof begin - 1;
    return memcmp(line, begin, length < most ? length : most) == 0;
}

int64_t loom_run_last_step(const char *out) {
    char path[PATH_MAX];
    loom_mapping file;
    int64_t last = -1;
    if (!loom_join_path(path, sizeof path, out, "metrics.jsonl", NULL) || !loom_file_map(path, &file, NULL)) return -1;
    const char *text = file.data;
    for (size_t end = file.size, line; last < 0 && end > 0; end = line) {
        const char *newline = memrchr(text, '\n', end - 1);
        line = newline ? (size_t)(newline - text) + 1 : 0;
        last = step_of_line(text + line, end - line);
        if (line == 0) break;
    }
    loom_file_unmap(&file);
    return last;
}

/* What of metrics stays before a run goes on after `step`: copied to `to` unless that is NULL; the length, and whether
 * it is a beginning of the text. A run that was killed may have written metrics of later steps, which will be done
 * again, the last line of them half. Whatever else is there is not ours to delete; its last line gets an end, so that
 * the next line begins one. */
static size_t metrics_until(const char *text, size_t size, int64_t step, char *to, bool *is_beginning) {
    size_t kept = 0;
    *is_beginning = true;
    for (size_t at = 0, next; at < size; at = next) {
        const char *line = text + at, *end = memchr(line, '\n', size - at);
        next = end ? (size_t)(end - text) + 1 : size;
        if (step_of_line(line, next - at) > step || (!end && is_torn(line, size - at))) continue;
        *is_beginning = *is_beginning && kept == at && end;
        if (to) memcpy(to + kept, line, next - at);
        kept += next - at;
        if (!end && to) to[kept] = '\n';
        if (!end) kept++;
    }
    return kept;
}

/* Metrics can be long: they are copied only where more than their end goes. */
bool loom_run_cut_metrics(const char *path, int64_t step, loom_error *error) {
    if (!loom_path_exists(path)) return true;
    loom_mapping old;
    if (!loom_file_map(path, &old, error)) return false;
    bool is_beginning, ok = true;
    const size_t kept = metrics_until(old.data, old.size, step, NULL, &is_beginning);
    if (is_beginning) {
        ok = kept == old.size || loom_file_replace(path, old.data, kept, error);
    } else {
        char *copy = malloc(kept);
        ok = copy || loom_fail(error, "%s: no memory to leave out what comes after step %" PRId64, path, step);
        if (ok) metrics_until(old.data, old.size, step, copy, &is_beginning);
        ok = ok && loom_file_replace(path, copy, kept, error);
        free(copy);
    }
    loom_file_unmap(&old);
    return ok;
}
