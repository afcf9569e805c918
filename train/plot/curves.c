#include "plot/curves.h"

#include "base/file.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The key of each column in a line of the file. The column of seconds is the running sum of "ms". */
static const char *const keys[LOOM_CURVES] = {"step",     "tokens", "ms",        "loss",
                                              "val_loss", "lr",     "grad_norm", "tokens_per_s"};

static bool grow(loom_curves *curves, int64_t capacity, const char *path, loom_error *error) {
    for (int c = 0; c < LOOM_CURVES; c++) {
        double *larger = realloc(curves->column[c], (size_t)capacity * sizeof *larger);
        if (!larger) return loom_fail(error, "%s: no memory for its %lld steps", path, (long long)capacity);
        curves->column[c] = larger;
    }
    return true;
}

/* Stores an object's numbers as the row of its step. A run that was resumed from a checkpoint repeats the steps after
 * it: a step that was read before replaces its old row and removes all later ones. */
static bool add_object(loom_curves *curves, const cJSON *object, const char *path, int64_t line, loom_error *error) {
    double value[LOOM_CURVES];
    for (int c = 0; c < LOOM_CURVES; c++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, keys[c]);
        if (item && !cJSON_IsNumber(item) && !cJSON_IsNull(item))
            return loom_fail(error, "%s: line %lld: \"%s\" is not a number; delete the line to plot the others", path,
                             (long long)line, keys[c]);
        value[c] = item && cJSON_IsNumber(item) && isfinite(item->valuedouble) ? item->valuedouble : NAN;
    }
    const double step = value[LOOM_CURVE_STEP];
    if (!(step >= 0))
        return loom_fail(error, "%s: line %lld: has no \"step\"; delete the line to plot the others", path,
                         (long long)line);

    while (curves->n > 0 && curves->column[LOOM_CURVE_STEP][curves->n - 1] >= step) curves->n--;
    const int64_t row = curves->n++;
    const double ms = value[LOOM_CURVE_SECONDS], before = row ? curves->column[LOOM_CURVE_SECONDS][row - 1] : 0;
    value[LOOM_CURVE_SECONDS] = before + (ms > 0 ? ms / 1000 : 0);
    for (int c = 0; c < LOOM_CURVES; c++) curves->column[c][row] = value[c];
    return true;
}

/* Reads lines up to the end of the file. */
static bool read_lines(loom_curves *curves, FILE *file, const char *path, loom_error *error) {
    char *text = NULL;
    size_t size = 0;
    int64_t capacity = 0;
    bool ok = true;
    for (int64_t line = 1; ok; line++) {
        const ssize_t length = getline(&text, &size, file);
        if (length < 0) break;
        const bool complete = text[length - 1] == '\n';
        const bool blank = text[strspn(text, " \t\r\n")] == 0;
        /* The parser would not see what follows a zero byte. */
        const bool is_text = strlen(text) == (size_t)length;
        if (is_text && blank) continue;
        cJSON *object = is_text ? cJSON_ParseWithOpts(text, NULL, true) : NULL;
        if (cJSON_IsObject(object)) {
            if (curves->n == capacity) ok = grow(curves, capacity = capacity ? 2 * capacity : 1024, path, error);
            ok = ok && add_object(curves, object, path, line, error);
        } else if (complete) {
            ok = loom_fail(error, "%s: line %lld is damaged: not a JSON object; delete the line to plot the others",
                           path, (long long)line);
        }
        cJSON_Delete(object);
    }
    free(text);
    if (ok && !feof(file)) ok = loom_fail(error, "%s: cannot be read: %s", path, strerror(errno));
    return ok;
}

bool loom_curves_read(loom_curves *curves, const char *directory, loom_error *error) {
    char path[PATH_MAX];
    *curves = (loom_curves){0};
    if (!loom_is_directory(directory)) return loom_fail(error, "%s: is not a run's directory", directory);
    if (!loom_join_path(path, sizeof path, directory, "metrics.jsonl", error)) return false;
    if (!loom_path_exists(path))
        return loom_fail(error, "%s: no metrics.jsonl there; name the --out directory of a training run", directory);

    size_t length = strlen(directory);
    while (length > 1 && directory[length - 1] == '/') length--;
    curves->name = strndup(directory, length);
    if (!curves->name) return loom_fail(error, "%s: no memory to read it", directory);

    FILE *file = loom_file_open(path, error);
    if (!file) return false;
    bool ok = read_lines(curves, file, path, error);
    fclose(file);
    if (ok && curves->n == 0) ok = loom_fail(error, "%s: has no steps yet; plot again after the first", path);
    return ok;
}

void loom_curves_free(loom_curves *curves) {
    for (int c = 0; c < LOOM_CURVES; c++) free(curves->column[c]);
    free(curves->name);
    *curves = (loom_curves){0};
}
