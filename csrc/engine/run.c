#include "engine/options.h"
#include "engine/owed.h"
#include "engine/run_directory.h"
#include "engine/trainer.h"

#include "base/file.h"
#include "base/printable.h"
#include "checkpoint/directory.h"
#include "gptloom/device.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A whole run in its directory. The directory is made only once everything is open: a run that cannot start leaves
 * nothing behind. */

typedef struct run {
    loom_trainer *trainer;
    const loom_train_options *options; /* the trainer's, resolved */
    const loom_train_observer *observer;
    const loom_comm *comm;
    loom_lock *lock; /* on the directory: rank 0's alone */
    FILE *metrics;   /* rank 0's alone */
    FILE *log;       /* with several ranks, each its own; else NULL */
    char metrics_path[PATH_MAX], samples_path[PATH_MAX], config_path[PATH_MAX], plan_path[PATH_MAX],
        tuning_path[PATH_MAX], earlier_tuning_path[PATH_MAX];
    int64_t first; /* steps that were done before this session */
    int64_t saved_step, validated_step;
    double validation_loss;
    loom_run_owed owed;        /* after the step that this session begins with */
    bool is_good, save_is_due; /* the last step was no bad one; a checkpoint waits for such a one */
    bool is_finite;            /* the last step's loss and gradient were */
    bool proves_saved;         /* the last step was good, and its loss that of the newest checkpoint's parameters */
} run;

/* ------------------------------------------------------------------------------------------------------ the directory */

static bool is_tuning_cache(const char *path) {
    char text[sizeof LOOM_TUNING_BEGIN - 1];
    FILE *file = loom_file_open(path, NULL);
    const bool is = file && fread(text, sizeof text, 1, file) == 1 && !memcmp(text, LOOM_TUNING_BEGIN, sizeof text);
    if (file) fclose(file);
    return is;
}

/* A new run needs a place of its own: it writes over nothing that it has not made. (The lock tells that of itself.) A
 * tuning cache is written before config.ini: of a run that was killed between them it is all that is left. */
static bool check_place(const loom_train_options *options, loom_error *error) {
    static const char *const parts[] = {"config.ini",     "checkpoints",        "metrics.jsonl",
                                        "samples.txt",    "data.json",          "plan.json",
                                        LOOM_TUNING_FILE, "logs/rank-0000.log", "saved"};
    enum { OF_WHAT_GOES_ON = 2 }; /* the first ones */
    char part[PATH_MAX];
    if (!options->out || !*options->out) return loom_fail(error, "--out: name the directory for the run");
    if (options->resume) return true;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (!loom_join_path(part, sizeof part, options->out, parts[i], error)) return false;
        if (!loom_path_exists(part) || (!strcmp(parts[i], LOOM_TUNING_FILE) && is_tuning_cache(part))) continue;
        if (i < OF_WHAT_GOES_ON)
            return loom_fail(error, "--out: %s holds a run already; --resume continues it, or take another directory",
                             options->out);
        return loom_fail(error, "--out: %s is there already, and a run would write over it; take another directory",
                         part);
    }
    if (loom_path_exists(options->out) && !loom_is_directory(options->out))
        return loom_fail(error, "--out: %s is not a directory", options->out);
    return true;
}

bool loom_train_check(const loom_train_options *options, loom_error *error) {
    loom_dataset *data = NULL;
    bool ok = check_place(options, error);
    /* A run that is done goes on without its data. */
    for (int validation = 0; ok && !options->resume && validation < 2; validation++) {
        const int n = validation ? options->n_val_data : options->n_data;
        ok = n == 0 || loom_train_open_data(options, validation, &data, error);
        if (ok && n > 0) loom_dataset_close(data);
    }
    return ok;
}

static bool remove_file(const char *path, loom_error *error) {
    return unlink(path) == 0 || errno == ENOENT || loom_fail(error, "%s: cannot be removed: %s", path, strerror(errno));
}

/* The tuning cache, as the run's checkpoints have it too. A run that went on elsewhere has none of the machine before,
 * nor one of an earlier version, which would be read in its place. */
static bool write_tuning(const run *r, loom_error *error) {
    const loom_device *device = loom_gpt_get_device(loom_trainer_gpt(r->trainer));
    char *text = NULL;
    if (!device->tuning_get(device, &text, error)) return false;
    if (!text)
        return (!is_tuning_cache(r->earlier_tuning_path) || remove_file(r->earlier_tuning_path, error)) &&
               remove_file(r->tuning_path, error);
    const bool ok = loom_file_replace(r->tuning_path, text, strlen(text), error);
    free(text);
    return ok;
}

static bool log_path(char *path, size_t size, const char *out, int rank, loom_error *error) {
    char name[32];
    snprintf(name, sizeof name, "logs/rank-%04d.log", rank);
    return loom_join_path(path, size, out, name, error);
}

/* OUT/logs/rank-0003.log: of each rank what it is, the steps it has done, and how it ended. */
static bool open_log(run *r, loom_error *error) {
    char folder[PATH_MAX], path[PATH_MAX], host[256] = "";
    if (r->comm->size == 1) return true;
    if (!loom_join_path(folder, sizeof folder, r->options->out, "logs", error) ||
        !loom_make_directories(folder, error) || !log_path(path, sizeof path, r->options->out, r->comm->rank, error))
        return false;
    r->log = loom_file_append(path, error);
    if (!r->log) return false;
    setvbuf(r->log, NULL, _IOLBF, 0);
    gethostname(host, sizeof host - 1);
    const loom_device *device = loom_gpt_get_device(loom_trainer_gpt(r->trainer));
    fprintf(r->log, "rank %d of %d, process %ld on %s; %s; %s: %s; after step %" PRId64 "\n", r->comm->rank,
            r->comm->size, (long)getpid(), LOOM_PRINTABLE(host), LOOM_PRINTABLE(r->comm->description), device->name,
            LOOM_PRINTABLE(device->description), loom_trainer_steps_done(r->trainer));
    return true;
}

static void log_step(const run *r, const loom_step_report *report) {
    if (r->log)
        fprintf(r->log, "step %" PRId64 "  loss %.6f  norm %.4g  %.1f ms  waited %.1f ms\n", report->step,
                (double)report->loss, (double)report->grad_norm, report->ms, report->ms_waited);
}

int64_t loom_run_logged_step(const char *out, int rank) {
    char path[PATH_MAX], line[512];
    int64_t step = -1, found;
    FILE *log = log_path(path, sizeof path, out, rank, NULL) ? loom_file_open(path, NULL) : NULL;
    if (!log) return -1;
    while (fgets(line, sizeof line, log)) {
        const char *begin = strstr(line, "; after step "); /* of a run's first line */
        if (sscanf(line, "step %" SCNd64, &found) == 1) step = found;
        if (begin && sscanf(begin, "; after step %" SCNd64, &found) == 1) step = found;
    }
    fclose(log);
    return step;
}

/* Where a run goes on from another checkpoint than the newest, what came after it is given up. */
static bool abandon_newer(run *r, loom_error *error) {
    const int64_t step = loom_trainer_steps_done(r->trainer);
    int64_t oldest = 0, newest = 0;
    char those[64];
    int n;
    if (!loom_checkpoint_abandon(r->options->out, step, &n, &oldest, &newest, error)) return false;
    if (n == 0) return true;
    snprintf(those, sizeof those,
             n == 1   ? "%" PRId64
             : n == 2 ? "%" PRId64 " and %" PRId64
                      : "%" PRId64 " to %" PRId64,
             oldest, newest);
    loom_trainer_add_note(r->trainer,
                          "goes on from step %" PRId64 ": the newer checkpoint%s, of step%s %s, %s now called "
                          "abandoned-step-N; delete what is not wanted",
                          step, n > 1 ? "s" : "", n > 1 ? "s" : "", those, n > 1 ? "are" : "is");
    return true;
}

/* What all ranks read, rank 0 writes; the others only append to what is their own. The folder of checkpoints is made
 * before there are any, so that one that is gone is missed. */
static bool open_directory(run *r, loom_error *error) {
    const char *out = r->options->out;
    char checkpoints[PATH_MAX];
    if (r->comm->rank > 0) return true;
    if (!r->lock && (!loom_run_directory_open(&r->lock, out, r->observer, error) || !check_place(r->options, error)))
        return false;
    /* checkpoints/ comes after config.ini: alone it would be in the way of another start. */
    if (!loom_join_path(checkpoints, sizeof checkpoints, out, "checkpoints", error) ||
        (r->options->resume && !abandon_newer(r, error)) ||
        !loom_join_path(r->metrics_path, sizeof r->metrics_path, out, "metrics.jsonl", error) ||
        !loom_join_path(r->samples_path, sizeof r->samples_path, out, "samples.txt", error) ||
        !loom_join_path(r->config_path, sizeof r->config_path, out, "config.ini", error) ||
        !loom_join_path(r->tuning_path, sizeof r->tuning_path, out, LOOM_TUNING_FILE, error) ||
        !loom_join_path(r->earlier_tuning_path, sizeof r->earlier_tuning_path, out, LOOM_EARLIER_TUNING_FILE, error) ||
        !loom_join_path(r->plan_path, sizeof r->plan_path, out, "plan.json", error) ||
        !write_tuning(r, error) || /* with config.ini, a run that was killed before its first step goes on */
        !loom_train_options_write_run(&r->trainer->given, r->options, r->trainer->device, r->config_path, error) ||
        (r->options->save && !loom_make_directories(checkpoints, error)) ||
        !loom_trainer_write_data(r->trainer, error) || !loom_trainer_write_plan(r->trainer, r->plan_path, error) ||
        !write_tuning(r, error) || !loom_run_cut_metrics(r->metrics_path, loom_trainer_steps_done(r->trainer), error) ||
        !loom_run_cut_samples(r->samples_path, loom_trainer_steps_done(r->trainer), error))
        return false;
    r->metrics = loom_file_append(r->metrics_path, error);
    return r->metrics;
}

/* ------------------------------------------------------------------------------------------------------------ metrics */

/* JSON knows no NaN: null says that there is no number. */
static void print_number(FILE *file, const char *key, double value) {
    if (isfinite(value))
        fprintf(file, ", \"%s\": %.9g", key, value);
    else
        fprintf(file, ", \"%s\": null", key);
}

static bool write_metrics(run *r, const loom_step_report *report, loom_error *error) {
    if (!r->metrics) return true;
    if (!loom_lock_is_held(r->lock, error)) return false;
    fprintf(r->metrics, "{\"step\": %" PRId64 ", \"tokens\": %" PRId64, report->step, report->tokens);
    print_number(r->metrics, "loss", (double)report->loss);
    print_number(r->metrics, "lr", (double)report->lr);
    print_number(r->metrics, "grad_norm", (double)report->grad_norm);
    print_number(r->metrics, "ms", report->ms);
    print_number(r->metrics, "tokens_per_s", report->tokens_per_s);
    if (r->comm->size > 1) {
        print_number(r->metrics, "ms_waited", report->ms_waited);
        print_number(r->metrics, "ms_spread", report->ms_spread);
        print_number(r->metrics, "comm_bytes", (double)report->comm_bytes);
    }
    if (report->skipped) fputs(", \"skipped\": true", r->metrics);
    if (r->options->dtype == LOOM_F16)
        print_number(r->metrics, "loss_scale", (double)loom_trainer_loss_scale(r->trainer));
    if (r->validated_step == report->step) print_number(r->metrics, "val_loss", r->validation_loss);
    fputs("}\n", r->metrics);
    if (!ferror(r->metrics) && fflush(r->metrics) == 0) return true;
    loom_fail(error, "%s: cannot be written: %s", r->metrics_path, strerror(errno));
    __fpurge(r->metrics); /* closing it is not to add the rest of a line */
    return false;
}

/* --------------------------------------------------------------------------------------------------- what happens when */

/* What is interrupted here leaves nothing; *stops then. */
static bool validate(run *r, int64_t step, bool *stops, loom_error *error) {
    loom_validation result;
    if (!loom_trainer_validate(r->trainer, r->options->val_tokens, &result, error)) return false;
    *stops = result.interrupted;
    if (*stops) return true;
    r->validated_step = step;
    r->validation_loss = result.loss;
    if (r->observer->validated) r->observer->validated(r->observer->user, step, &result);
    return true;
}

/* Text being sampled: bytes as they are, other tokens as numbers. */
typedef struct text {
    char *data;
    size_t used, size;
    bool bytes, failed;
} text;

static bool take_token(void *user, int32_t token) {
    text *t = user;
    if (t->bytes && token >= LOOM_BYTE_END_OF_TEXT) return false;
    if (t->size - t->used < 16) {
        char *larger = realloc(t->data, 2 * t->size + 256);
        t->failed = !larger;
        if (t->failed) return false;
        t->data = larger;
        t->size = 2 * t->size + 256;
    }
    if (t->bytes)
        t->data[t->used++] = (char)token;
    else
        t->used += (size_t)snprintf(t->data + t->used, 16, "%s%d", t->used ? " " : "", (int)token);
    t->data[t->used] = 0;
    return true;
}

static bool sample(run *r, int64_t step, bool *stops, loom_error *error) {
    text t = {.bytes = loom_dataset_is_bytes(loom_trainer_data(r->trainer))};
    bool ok = loom_trainer_sample(r->trainer, r->options->sample_tokens, take_token, &t, stops, error);
    if (*stops) {
        free(t.data);
        return ok;
    }
    if (ok && t.failed) ok = loom_fail(error, "--sample-every: no memory to keep a sample");
    if (ok && t.data && r->comm->rank == 0) {
        FILE *file = loom_file_append(r->samples_path, error);
        if (!file) {
            free(t.data);
            return false;
        }
        ok = fprintf(file, "--- step %" PRId64 "\n", step) > 0 && fwrite(t.data, 1, t.used, file) == t.used &&
             fputc('\n', file) != EOF;
        if (fclose(file) != 0) ok = false;
        if (!ok) loom_fail(error, "%s: cannot be written: %s", r->samples_path, strerror(errno));
    }
    if (ok && r->observer->sampled) r->observer->sampled(r->observer->user, step, t.data ? t.data : "");
    free(t.data);
    return ok;
}

/* ------------------------------------------------------------------------------------------------- runs that are lost */

/* A word of a command with a space before it, as a shell reads it. */
static void add_word(char *command, size_t size, const char *format, const char *word) {
    const size_t used = strlen(command);
    snprintf(command + used, size - used, format, LOOM_SHELL_WORD(word));
}

/* The value of an option in a course; false where that does not tell. */
static bool find_in_course(const char *course, const char *option, char value[32]) {
    char key[32];
    snprintf(key, sizeof key, "%s ", option);
    const char *at = strstr(course, key);
    return at && sscanf(at + strlen(key), "%31s", value) == 1;
}

/* The options with which a lost run may go on: those that have changed since its last good checkpoint was saved as they
 * were in that one's course, else a tenth of the rate. */
static void add_remedy(const run *r, const char *course, char *command, size_t size) {
    const loom_trainer *t = r->trainer;
    char now[sizeof t->state.course], was[32], word[96], *rest;
    bool changed = false;
    strcpy(now, t->state.course);
    for (char *option = strtok_r(now, " ", &rest); option; option = strtok_r(NULL, " ", &rest)) {
        const char *is = strtok_r(NULL, " ", &rest);
        const bool follows = !strcmp(option, "--min-lr") && t->given.min_lr < 0;
        if (follows || !find_in_course(course, option, was) || !strcmp(was, is)) continue;
        snprintf(word, sizeof word, " %s %%s", option);
        add_word(command, size, word, was);
        changed = true;
    }
    snprintf(word, sizeof word, "%.3g", r->options->lr / 10);
    if (!changed) add_word(command, size, " --lr %s", word);
    snprintf(word, sizeof word, "%.3g", r->options->lr / 100);
    if (!changed && t->given.min_lr > r->options->lr / 10) add_word(command, size, " --min-lr %s", word);
}

/* Ends a run with what has happened, and the command with which its last good checkpoint goes on. */
static bool fail_lost(const run *r, const char *what, bool finite, loom_error *error) {
    const loom_training_state *state = &r->trainer->state;
    loom_training_state then;
    const int64_t good = loom_run_last_good(r->options->out, state->step - state->bad_steps, &then);
    char command[sizeof error->message / 2] = "", step[32];
    const char *hint = finite || r->options->check_finite ? "" : "; --check-finite tells which tensor goes bad first";
    if (good < 0) {
        add_remedy(r, "", command, sizeof command);
        return loom_fail(error, "--lr: %s; there is no good checkpoint: begin anew in another --out, with%s%s", what,
                         command, hint);
    }
    add_word(command, sizeof command, "gptloom train --resume --out %s", r->options->out);
    snprintf(step, sizeof step, "%" PRId64, good);
    if (good != loom_checkpoint_newest(r->options->out)) add_word(command, sizeof command, " --resume-from %s", step);
    char ranks[16];
    snprintf(ranks, sizeof ranks, "%d", r->comm->size);
    if (r->comm->size > 1) add_word(command, sizeof command, " --ranks %s", ranks);
    add_remedy(r, then.course, command, sizeof command);
    return loom_fail(error, "--lr: %s; the last good checkpoint is of step %s: %s%s", what, step, command, hint);
}

/* One step that is not finite is skipped by AdamW; many bad ones in a row, in however many sessions, mean that the
 * parameters are lost. A loss that has run away is bad too, but may come back. A step whose gradients overflow because
 * of the loss scale is a good one if its loss is: the scale halves until they do not. */
static bool judge_step(run *r, const loom_step_report *report, loom_error *error) {
    enum { MOST_BAD_STEPS = 10 };
    /* So many nats more than a uniform guess are no step on the way to anything. */
    static const double RUN_AWAY = 10;
    loom_trainer *t = r->trainer;
    char what[512];
    const bool overflow = isfinite(report->loss) && !isfinite(report->grad_norm) && loom_trainer_loss_scale(t) > 1;
    const double guess = log((double)r->options->vocab_size), loss = (double)report->loss;
    const bool finite = r->is_finite = isfinite(report->loss) && isfinite(report->grad_norm);
    r->is_good = (finite || overflow) && loss < guess + RUN_AWAY;
    r->proves_saved = r->is_good && t->state.bad_steps == 0 && r->saved_step > 0 && r->saved_step == report->step - 1;
    t->state.bad_steps = r->is_good ? 0 : t->state.bad_steps + 1;
    if (r->options->check_finite && !finite && !overflow) {
        snprintf(what, sizeof what, "in step %" PRId64 " %s%s", report->step,
                 *t->finite.found ? "the first tensor that is not finite is "
                                  : "all tensors are finite, and the squares of the gradient are too large to be added",
                 t->finite.found);
        return fail_lost(r, what, finite, error);
    }
    if (overflow) *t->finite.found = 0; /* what an update has left shows in the next step */
    if (t->state.bad_steps < MOST_BAD_STEPS) return true;
    char how[96] = "the loss or its gradient is no finite number";
    if (finite) snprintf(how, sizeof how, "the loss has run away to %.4g, where a uniform guess has %.4g", loss, guess);
    snprintf(what, sizeof what, "%s: %d steps in a row were bad, up to step %" PRId64, how, MOST_BAD_STEPS,
             report->step);
    return fail_lost(r, what, finite, error);
}

/* A mark that stays with the run when its checkpoints go: it is not to begin anew then. */
static bool mark_saved(const run *r, loom_error *error) {
    static const char words[] = "This run has saved checkpoints: without them it does not go on.\n";
    char path[PATH_MAX];
    return r->comm->rank > 0 || (loom_join_path(path, sizeof path, r->options->out, "saved", error) &&
                                 (loom_path_exists(path) || loom_file_replace(path, words, strlen(words), error)));
}

/* Nothing takes the place of a good checkpoint before it is known to be good: after a bad step a save waits for a good
 * one, and older ones go only when a step has proved it. Parameters that are not finite are never saved. */
static bool save(run *r, int64_t step, bool last, loom_error *error) {
    loom_error why;
    char what[512], directory[PATH_MAX];
    if (r->saved_step == step) return true;
    r->save_is_due = true;
    if (!r->is_good && !last) return true;
    if (!loom_trainer_check_parameters(r->trainer, &why)) {
        snprintf(what, sizeof what, "after step %" PRId64 " %.400s", step, why.message);
        return fail_lost(r, what, false, error);
    }
    r->save_is_due = false;
    if (!r->options->save) return true;
    if (r->lock && !loom_lock_is_held(r->lock, error)) return false;
    if (!loom_trainer_save(r->trainer, r->options->out, error)) return false;
    r->saved_step = step;
    if (!mark_saved(r, error)) return false;
    if (!loom_join_path(directory, sizeof directory, r->options->out, "checkpoints/latest", error)) return false;
    if (r->observer->saved) r->observer->saved(r->observer->user, step, directory);
    return true;
}

/* A step's loss is that of the parameters before its update: a checkpoint is known to be good, and older ones may go,
 * only when the step after it has been, in this session or the next. */
static bool prune(const run *r, int64_t step, loom_error *error) {
    char checkpoints[PATH_MAX];
    const loom_train_options *o = r->options;
    if (!r->proves_saved || !o->save || o->keep == 0) return true;
    if (!loom_join_path(checkpoints, sizeof checkpoints, o->out, "checkpoints", error)) return false;
    loom_comm *comm = r->trainer->comm;
    comm->long_timeout = true; /* with a file system that is slow to delete */
    if (comm->rank == 0) loom_checkpoint_prune(checkpoints, step - 1, (int)o->keep);
    const bool ok = loom_comm_barrier(comm, error);
    comm->long_timeout = false;
    return ok;
}

/* A sample of parameters that are not finite has no text: the run is lost. (Of several ranks rank 0 alone writes, and
 * may fail alone: then there is no asking the others.) */
static bool sample_or_lose(run *r, int64_t step, bool *stops, loom_error *error) {
    loom_error why;
    char what[512];
    if (sample(r, step, stops, error)) return true;
    if (r->comm->size > 1 || loom_trainer_check_parameters(r->trainer, &why)) return false;
    snprintf(what, sizeof what, "after step %" PRId64 " %.400s", step, why.message);
    return fail_lost(r, what, false, error);
}

/* The run's last step: done, unless it is a bad one. */
static bool finish(run *r, int64_t step, loom_error *error) {
    if (!save(r, step, true, error)) return false;
    if (r->is_good || step < loom_trainer_steps_planned(r->trainer)) return true;
    return fail_lost(r, "the loss at the end of the run is that of lost parameters", r->is_finite, error);
}

/* After an error that has left the state as step `step` did: what is done is saved before the run ends. Of several
 * ranks all know of data that could not be read, and of nothing else. */
static bool save_what_is_done(run *r, int64_t step, loom_error *error) {
    const loom_error why = *error;
    loom_error ignored;
    if ((r->comm->size == 1 || r->trainer->no_data) && step > r->first && save(r, step, true, &ignored) &&
        r->saved_step == step)
        loom_fail(error, "%s; step %" PRId64 " is saved, and --resume goes on from it", why.message, step);
    return false;
}

/* A step that was given no data has changed nothing. */
static bool do_step(run *r, int64_t step, loom_step_report *report, loom_error *error) {
    if (loom_trainer_step(r->trainer, report, error)) return true;
    return r->trainer->no_data && save_what_is_done(r, step - 1, error);
}

static bool share_owed(run *r, loom_comm *comm, loom_error *error) {
    return loom_comm_host_broadcast(comm, &r->owed, sizeof r->owed, 0, error);
}

/* Adds the validation's loss to a step's line of metrics, which has been written without it. */
static bool print_completed(const run *r, const loom_mapping *old, FILE *out, int64_t step) {
    const char *whole = old->data, *end, *line = loom_run_find_metrics(old, step, &end);
    const char *brace = line ? memrchr(line, '}', (size_t)(end - line)) : NULL;
    if (!brace) return false;
    fwrite(whole, 1, (size_t)(brace - whole), out);
    print_number(out, "val_loss", r->validation_loss);
    fwrite(brace, 1, (size_t)(whole + old->size - brace), out);
    return !ferror(out);
}

static bool complete_metrics(run *r, int64_t step, loom_error *error) {
    loom_mapping old;
    char *completed = NULL;
    size_t size = 0;
    if (!r->metrics) return true;
    if (!loom_file_map(r->metrics_path, &old, error)) return false;
    FILE *out = open_memstream(&completed, &size);
    bool ok = out && print_completed(r, &old, out, step);
    if (out && fclose(out) != 0) ok = false;
    loom_file_unmap(&old);
    if (!ok) loom_fail(error, "%s: cannot be completed: no memory", r->metrics_path);
    ok = ok && loom_file_replace(r->metrics_path, completed, size, error);
    free(completed);
    if (!ok) return false;
    FILE *again = loom_file_append(r->metrics_path, error);
    if (!again) return false;
    fclose(r->metrics);
    r->metrics = again;
    return true;
}

/* Does what is owed after the step that this session begins with. */
static bool catch_up(run *r, int64_t step, bool *stops, loom_error *error) {
    *stops = false;
    if (r->owed.validation && (!validate(r, step, stops, error) || (!*stops && !complete_metrics(r, step, error))))
        return false;
    return *stops || !r->owed.sample || sample(r, step, stops, error);
}

static bool run_steps(run *r, loom_error *error) {
    const loom_train_options *o = r->options;
    const int64_t first = r->first = r->saved_step = loom_trainer_steps_done(r->trainer),
                  planned = loom_trainer_steps_planned(r->trainer);
    const int64_t last = o->stop_after > 0 && first + o->stop_after < planned ? first + o->stop_after : planned;
    bool stops;
    if (!catch_up(r, first, &stops, error)) return false;
    if (stops) return true;
    for (int64_t step = first + 1; step <= last; step++) {
        loom_step_report report;
        if (!do_step(r, step, &report, error)) return false;
        if (report.interrupted) return step - 1 == first || save(r, step - 1, true, error);
        const bool goes_on = judge_step(r, &report, error);
        log_step(r, &report);
        stops = report.stop;
        if (r->observer->stepped) r->observer->stepped(r->observer->user, &report);
        if (!goes_on) {
            write_metrics(r, &report, NULL);
            return false;
        }
        if (!stops && loom_run_validates_after(r->trainer, step) && !validate(r, step, &stops, error))
            return write_metrics(r, &report, NULL) && save_what_is_done(r, step, error);
        if (!write_metrics(r, &report, error)) return false;
        if (!prune(r, step, error)) return false;
        if (!stops && r->is_good && loom_run_samples_after(r->trainer, step) && !sample_or_lose(r, step, &stops, error))
            return false;
        if (stops) return finish(r, step, error);
        if ((loom_run_is_due(o->checkpoint_every, step) || r->save_is_due) && !save(r, step, false, error))
            return false;
    }
    return finish(r, last, error);
}

/* Writes the run's end to its log; `error` says why, if not `ok`. */
static bool close_files(run *r, bool ok, loom_error *error) {
    if (r->log && !ok) fprintf(r->log, "ended in step %" PRId64 ": %s\n", r->comm->step, error->message);
    if (r->log && ok) fputs("ended in order\n", r->log);
    if (r->log) fclose(r->log);
    if (r->metrics && fclose(r->metrics) != 0 && ok)
        ok = loom_fail(error, "%s: cannot be written: %s", r->metrics_path, strerror(errno));
    return ok;
}

bool loom_train(const loom_train_options *options, loom_comm *comm, const loom_train_observer *observer,
                loom_error *error) {
    static const loom_train_observer nobody;
    loom_error why;
    run r = {.observer = observer ? observer : &nobody, .validated_step = -1, .is_good = true};
    if (!check_place(options, error)) {
        if (comm && comm->size == 1) loom_comm_close(comm);
        return false;
    }
    /* A run that goes on is locked before its checkpoint is looked for: the one that is in it may delete that. */
    const bool leads = !comm || comm->rank == 0;
    if (options->resume && leads && loom_is_directory(options->out) &&
        !loom_run_directory_open(&r.lock, options->out, r.observer, error)) {
        if (comm && comm->size == 1) loom_comm_close(comm);
        return false;
    }
    bool done;
    int64_t step;
    if (!loom_trainer_open_unless_done(&r.trainer, options, comm, r.observer, &done, &step, error)) {
        loom_lock_release(r.lock);
        return false;
    }
    if (done) {
        loom_lock_release(r.lock);
        if (r.observer->already_done) r.observer->already_done(r.observer->user, step);
        return true;
    }
    r.options = loom_trainer_options(r.trainer);
    r.comm = loom_trainer_comm(r.trainer);
    bool ok = open_directory(&r, &why) &&
              (r.comm->rank > 0 || loom_run_find_owed(r.trainer, r.metrics_path, r.samples_path,
                                                      loom_trainer_steps_done(r.trainer), &r.owed, &why));
    if (r.comm->size > 1) ok = loom_comm_all(comm, ok, &why) && share_owed(&r, comm, &why);
    ok = ok && open_log(&r, &why);
    if (ok) {
        if (r.observer->started) r.observer->started(r.observer->user, r.trainer);
        ok = run_steps(&r, &why);
    }
    ok = close_files(&r, ok, &why);
    loom_lock_release(r.lock);
    const bool others_wait = !ok && r.comm->size > 1;
    if (!others_wait) loom_trainer_close(r.trainer);
    return ok || loom_fail(error, "%s", why.message);
}
