#include "engine/owed.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

bool loom_run_is_due(int64_t every, int64_t step) {
    return every > 0 && step % every == 0;
}

bool loom_run_validates_after(const loom_trainer *t, int64_t step) {
    const loom_train_options *o = &t->options;
    return t->has_validation && o->val_every > 0 && (loom_run_is_due(o->val_every, step) || step == o->steps);
}

bool loom_run_samples_after(const loom_trainer *t, int64_t step) {
    const loom_train_options *o = &t->options;
    return o->sample_every > 0 && (loom_run_is_due(o->sample_every, step) || step == o->steps);
}

/* Where the line begins that begins so; NULL: there is none. */
static const char *find_line(const loom_mapping *file, const char *start) {
    const char *end = (const char *)file->data + file->size;
    const size_t length = strlen(start);
    for (const char *line = file->data; line && (size_t)(end - line) >= length;) {
        if (!memcmp(line, start, length)) return line;
        line = memchr(line, '\n', (size_t)(end - line));
        if (line) line++;
    }
    return NULL;
}

const char *loom_run_find_metrics(const loom_mapping *file, int64_t step, const char **end) {
    char start[64];
    snprintf(start, sizeof start, "{\"step\": %" PRId64 ",", step);
    const char *line = find_line(file, start), *end_of_file = (const char *)file->data + file->size;
    const char *newline = line ? memchr(line, '\n', (size_t)(end_of_file - line)) : NULL;
    *end = newline ? newline : end_of_file;
    return line;
}

bool loom_run_find_owed(const loom_trainer *t, const char *metrics_path, const char *samples_path, int64_t step,
                        loom_run_owed *owed, loom_error *error) {
    loom_mapping file;
    char start[64];
    *owed = (loom_run_owed){false, false};
    if (step == 0) return true;
    if (loom_run_validates_after(t, step) && loom_path_exists(metrics_path)) {
        if (!loom_file_map(metrics_path, &file, error)) return false;
        const char *end, *line = loom_run_find_metrics(&file, step, &end);
        owed->validation = line && !memmem(line, (size_t)(end - line), "\"val_loss\"", strlen("\"val_loss\""));
        loom_file_unmap(&file);
    }
    if (loom_run_samples_after(t, step)) {
        const bool is_there = loom_path_exists(samples_path);
        if (is_there && !loom_file_map(samples_path, &file, error)) return false;
        snprintf(start, sizeof start, "--- step %" PRId64 "\n", step);
        owed->sample = !is_there || !find_line(&file, start);
        if (is_there) loom_file_unmap(&file);
    }
    return true;
}

bool loom_run_owes_nothing(const loom_trainer *t) {
    char metrics_path[PATH_MAX], samples_path[PATH_MAX];
    loom_run_owed owed;
    loom_error ignored;
    if (!loom_join_path(metrics_path, sizeof metrics_path, t->options.out, "metrics.jsonl", &ignored) ||
        !loom_join_path(samples_path, sizeof samples_path, t->options.out, "samples.txt", &ignored) ||
        !loom_run_find_owed(t, metrics_path, samples_path, t->state.step, &owed, &ignored))
        return true;
    return !owed.validation && !owed.sample;
}
