/* gptloom train: options from flags and files, the run (the library's loom_train), and what is shown of it. */
#include "command.h"
#include "command_line.h"
#include "interrupts.h"
#include "launch.h"
#include "engine/options.h"
#include "output.h"
#include "progress.h"

#include "base/file.h"
#include "base/plural.h"
#include "base/printable.h"
#include "base/say.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------------------- options */

/* What is the program's alone. */
typedef struct settings {
    char *config;
    bool quiet;
} settings;

static const loom_flag program_flags[] = {
    {.name = "config",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, config),
     .metavar = "FILE",
     .group = "Run",
     .help = "read options from an INI file: 'lr = 1e-3', one a line, keys as the flags here, which win over it; a "
             "run's config.ini is such a file"},
    {.name = "quiet",
     .letter = 'q',
     .type = LOOM_FLAG_BOOL,
     .offset = offsetof(settings, quiet),
     .group = "Run",
     .help = "print nothing but errors; OUT/metrics.jsonl tells all"},
};

static const char about[] =
    "Trains a GPT and leaves in --out its configuration, one line of metrics per step, samples and checkpoints, which "
    "Hugging Face's transformers load. Ctrl-C saves and ends; --resume goes on, to the same bits as if it had never "
    "stopped.";

static const char examples[] =
    "  gptloom train --data input.txt --out runs/first --model mini --steps 2000 --batch 12 --lr 1e-3\n"
    "  gptloom train --data 'shards/train_*.bin' --val-data shards/val.bin --out runs/gpt2 --model gpt2\n"
    "  gptloom train --resume --out runs/first\n"
    "  gptloom train --data input.txt --out runs/two --ranks 2 --zero 1\n"
    "  mpirun -np 16 --bind-to none --hostfile hosts gptloom train --config gpt2.ini --out runs/gpt2\n";

/* Reads one more layer of options: files first, then the command line again, so that flags win. */
static bool read_layers(loom_command_line *line, int argc, char **argv, loom_train_options *options, const char *saved,
                        const char *config, loom_error *error) {
    bool help;
    loom_train_options_free(options);
    *options = loom_train_options_defaults();
    return (!saved || loom_train_options_read_run(options, saved, error)) &&
           (!config || loom_train_options_read(options, config, error)) &&
           loom_command_line_parse(line, argc, argv, &help, error);
}

/* The command line was read into `options`; adds what files say: --config's, and below it the run's own where it is
 * resumed. Which run that is may stand in --config's file. */
static bool add_files(loom_command_line *line, int argc, char **argv, loom_train_options *options, settings *mine,
                      loom_error *error) {
    char *config = NULL, saved[PATH_MAX];
    if (mine->config && !(config = strdup(mine->config))) return loom_fail(error, "--config: no memory to keep it");
    bool ok = !config || read_layers(line, argc, argv, options, NULL, config, error);
    if (ok && options->resume) {
        if (!options->out)
            ok = loom_fail(error, "--resume: needs --out, the run to go on with");
        else
            ok = loom_join_path(saved, sizeof saved, options->out, "config.ini", error);
        if (ok && !loom_path_exists(saved))
            ok = loom_fail(error, "--resume: there is no run in %s (no config.ini); leave --resume out to begin one",
                           options->out);
        ok = ok && read_layers(line, argc, argv, options, saved, config, error);
    }
    free(config);
    if (ok && !options->out) ok = loom_fail(error, "--out: is missing; name a directory for the run");
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- summary */

static double mebibytes(size_t bytes) {
    return (double)bytes / 0x1p20;
}

/* What of the device is not as usual. */
static void show_settings(const loom_train_options *options, const loom_device *device) {
    if (options->tf32) printf("; tf32");
    if (options->attention == LOOM_ATTENTION_CUDNN) printf("; attention by cudnn");
    if (device->graph_begin && options->cuda_graph == LOOM_OFF) printf("; cuda-graph off");
}

static void show_ranks(const loom_train_options *options, const loom_comm *comm) {
    if (comm->size == 1 && !options->deterministic_reduce && options->zero == 0) return;
    printf("  ranks       %s", LOOM_PRINTABLE(comm->description));
    if (options->zero > 0) printf("; ZeRO stage %d", (int)options->zero);
    if (options->zero > 0 && comm->size == 1) printf(", with nobody to share with");
    if (options->deterministic_reduce) printf("; deterministic reduction");
    printf("\n");
}

static void show_model(const loom_train_options *options, loom_gpt *gpt) {
    const loom_gpt_config *config = loom_gpt_get_config(gpt);
    char count[16];
    loom_format_count(count, sizeof count, (double)loom_gpt_get_layout(gpt)->count);
    printf(
        "  model       %s%s%lld layer%s, %lld head%s, %lld channel%s, context %lld, vocabulary %lld: %s parameters\n",
        options->model ? LOOM_PRINTABLE(options->model) : "", options->model ? ": " : "", (long long)config->n_layer,
        loom_plural(config->n_layer), (long long)config->n_head, loom_plural(config->n_head), (long long)config->n_embd,
        loom_plural(config->n_embd), (long long)config->block_size, (long long)config->vocab_size, count);
}

/* What is validated on, and how much of it each time. */
static void show_validation(const loom_train_options *options, const loom_trainer *trainer) {
    char count[16];
    if (!loom_trainer_has_validation(trainer)) {
        printf("  validation  none\n");
        return;
    }
    if (options->n_val_data > 0)
        printf("  validation  %s%s", LOOM_PRINTABLE(options->val_data[0]),
               options->n_val_data > 1 ? " and others" : "");
    else
        printf("  validation  the data's last %g%%", 100 * options->val_fraction);
    loom_format_count(count, sizeof count, (double)loom_trainer_validation_tokens(trainer, options->val_tokens));
    if (options->val_every > 0)
        printf("; %s tokens every %lld step%s\n", count, (long long)options->val_every,
               loom_plural(options->val_every));
    else
        printf("; never, by --val-every 0\n");
}

static void show_data(const loom_train_options *options, const loom_trainer *trainer) {
    const loom_dataset *data = loom_trainer_data(trainer);
    char count[16];
    const int others = loom_dataset_files(data) - 1;
    loom_format_count(count, sizeof count, (double)loom_dataset_tokens(data));
    printf("  data        %s %s: %s", count, loom_dataset_is_bytes(data) ? "bytes" : "tokens",
           LOOM_PRINTABLE(loom_dataset_first_path(data)));
    if (others > 0) printf(" and %d other%s", others, others > 1 ? "s" : "");
    printf("\n");
    if (loom_dataset_note(data)[0]) printf("  note        %s\n", LOOM_PRINTABLE(loom_dataset_note(data)));
    show_validation(options, trainer);
}

static void show_steps(const loom_train_options *options, int64_t done, int64_t planned) {
    const loom_flag *rows;
    char schedule[32];
    int n;
    rows = loom_train_option_table(&n);
    loom_flag_text(loom_flag_find(rows, n, "schedule"), options, 0, schedule, sizeof schedule);
    printf("  batch       %lld x %lld tokens, %lld at a time%s\n", (long long)options->batch,
           (long long)options->seq_len, (long long)options->micro_batch, options->ranks > 1 ? " on each rank" : "");
    printf("  steps       %lld, %lld of them warm-up; %s, learning rate %g to %g\n", (long long)planned,
           (long long)options->warmup, schedule, options->lr, options->min_lr);
    if (done > 0) printf("  resumed     after step %lld\n", (long long)done);
}

static void show_precision(const loom_precision *precision, const loom_device *device) {
    const loom_dtype storage = precision->storage;
    printf("  precision   %s", loom_dtype_name(storage));
    if (precision->master != storage)
        printf("; master weights in %s", loom_dtype_name(precision->master));
    else if (storage == LOOM_BF16)
        printf("; weights rounded at random");
    if (precision->gradient != storage || precision->moment != storage || storage == LOOM_BF16)
        printf("; moments in %s, gradients of weights in %s", loom_dtype_name(precision->moment),
               loom_dtype_name(precision->gradient));
    printf("%s\n", storage == LOOM_F16 ? "; loss scaling" : "");
    if (device->emulated_dtypes >> storage & 1)
        printf("  note        matrix products widen %s to fp32 here: it saves memory, not time\n",
               loom_dtype_name(storage));
}

static void show_memory(const loom_plan *plan) {
    printf("  memory      %.1f MiB%s", mebibytes(plan->arena.used),
           plan->setup.sharding.ranks > 1 ? " on each rank" : "");
    if (plan->available > 0) printf(" of %.0f MiB", mebibytes(plan->available));
    char policy[LOOM_RECOMPUTE_NAME];
    loom_recompute_name(&plan->recompute, policy);
    printf("%s%s\n", plan->recompute.kind == LOOM_RECOMPUTE_NONE ? "" : "; recomputes ",
           plan->recompute.kind == LOOM_RECOMPUTE_NONE ? "" : policy);
    for (int i = 0; i < plan->arena.n_rows; i++)
        printf("  %10s  %10.1f  %s\n", "", mebibytes(plan->arena.row[i].bytes), plan->arena.row[i].name);
    if (plan->device->reserved > 0)
        printf("  %10s  %10.1f  CUDA context and libraries, beside these\n", "", mebibytes(plan->device->reserved));
    if (plan->host_bytes > 0)
        printf("  %10s  %10.1f  offloaded activations, beside these: host memory\n", "", mebibytes(plan->host_bytes));
}

/* --------------------------------------------------------------------------------------------------------- observer */

typedef struct session {
    loom_progress progress;
    bool quiet;
    bool bytes; /* samples are text */
    bool saves; /* checkpoints */
    int rank, ranks;
    int64_t done, saved;    /* the last step, and the last one in a checkpoint */
    int64_t unwritten_from; /* the step after which stdout could not be written any more */
} session;

/* Ends what is printed of an event. */
static void flush(session *now) {
    const bool was_good = !loom_output_failure();
    loom_output_flush_or_give_up();
    if (was_good) now->unwritten_from = now->done;
}

static void on_noted(void *user, const char *line) {
    session *now = user;
    if (now->quiet) return;
    if (now->progress.out) loom_progress_interrupt(&now->progress);
    printf("note: %s\n", LOOM_PRINTABLE(line));
    flush(now);
}

/* A run that fits shows its memory when it starts. */
static void on_planned(void *user, const loom_plan *plan) {
    session *now = user;
    if (now->quiet || loom_plan_fits(plan)) return;
    show_memory(plan);
    flush(now);
}

static void show_note(const char *note) {
    while (*note) {
        const int length = (int)strcspn(note, "\n");
        char line[1024];
        snprintf(line, sizeof line, "%.*s", length, note);
        printf("  note        %s\n", LOOM_PRINTABLE(line));
        note += length + (note[length] == '\n');
    }
}

/* Not an error: what starts a run again until it is done ends here. */
static void on_already_done(void *user, int64_t step) {
    session *now = user;
    if (now->quiet) return;
    printf("the run has done all of its %lld steps; a larger --steps goes on\n", (long long)step);
}

static void show_start(session *now, loom_trainer *trainer) {
    const loom_train_options *options = loom_trainer_options(trainer);
    loom_gpt *gpt = loom_trainer_gpt(trainer);
    loom_device *device = loom_gpt_get_device(gpt);
    const int64_t done = loom_trainer_steps_done(trainer), planned = loom_trainer_steps_planned(trainer);
    const bool ends_early = options->stop_after > 0 && options->stop_after < planned - done;
    double peak = 0;
    char rate[16] = "unknown";
    const loom_dtype storage = loom_gpt_get_precision(gpt)->storage;
    const loom_dtype peak_dtype = device->emulated_dtypes >> storage & 1 ? LOOM_F32 : storage;
    if (device->peak(device, peak_dtype, 0.01, &peak, NULL)) loom_format_count(rate, sizeof rate, peak);
    printf("gptloom " LOOM_VERSION " trains in %s\n", LOOM_PRINTABLE(options->out));
    printf("  device      %s: %s; peak %s FLOP/s in %s", device->name, LOOM_PRINTABLE(device->description), rate,
           loom_dtype_name(peak_dtype));
    show_settings(options, device);
    printf("\n");
    if (device->gpu_skip_reason[0]) printf("  passed over %s\n", LOOM_PRINTABLE(device->gpu_skip_reason));
    show_ranks(options, loom_trainer_comm(trainer));
    show_model(options, gpt);
    show_precision(loom_gpt_get_precision(gpt), device);
    show_data(options, trainer);
    show_steps(options, done, planned);
    const double seconds = loom_trainer_predicted_seconds(trainer);
    if (seconds > 0)
        printf("  prediction  %.3g s a step, %.0f tok/s, by what was measured at the start\n", seconds,
               (double)options->batch * (double)options->seq_len / seconds);
    show_note(loom_trainer_note(trainer));
    show_memory(loom_trainer_plan(trainer));
    flush(now);
    now->bytes = loom_dataset_is_bytes(loom_trainer_data(trainer));
    now->saves = options->save;
    loom_progress_begin(&now->progress, stdout, done, ends_early ? done + options->stop_after : planned, planned);
    if (loom_trainer_has_validation(trainer))
        now->progress.validation_tokens = loom_trainer_validation_tokens(trainer, options->val_tokens);
    now->progress.peak = peak;
    now->progress.peak_dtype = peak_dtype;
    now->progress.flops_per_token = loom_gpt_flops_per_token(loom_gpt_get_config(gpt), options->seq_len);
}

static void on_started(void *user, loom_trainer *trainer) {
    session *now = user;
    now->done = now->saved = loom_trainer_steps_done(trainer);
    /* A person at a terminal is told what becomes of Ctrl-C even by a quiet run. */
    loom_interrupts_begin(now->rank == 0 && (!now->quiet || isatty(STDERR_FILENO)), loom_trainer_options(trainer)->save,
                          now->saved);
    if (now->quiet) return;
    show_start(now, trainer);
    if (now->progress.live) loom_interrupts_clear_line();
}

static void on_stepped(void *user, const loom_step_report *report) {
    session *now = user;
    now->done = report->step;
    loom_interrupts_progress(now->done, now->saved);
    if (now->quiet) return;
    loom_progress_step(&now->progress, report);
    flush(now);
}

static void on_validating(void *user, int64_t step, double part) {
    session *now = user;
    if (now->quiet) return;
    loom_progress_validating(&now->progress, step, part);
    flush(now);
}

static void on_validated(void *user, int64_t step, const loom_validation *result) {
    session *now = user;
    if (now->quiet) return;
    loom_progress_validated(&now->progress, step, result);
    flush(now);
}

static void on_sampled(void *user, int64_t step, const char *text) {
    session *now = user;
    loom_printable state = {{0}, 0, 0};
    if (now->quiet) return;
    loom_progress_interrupt(&now->progress);
    printf("---- a sample after step %lld\n", (long long)step);
    for (const char *c = text; *c; c++) loom_printable_byte(&state, (unsigned char)*c, stdout);
    loom_printable_end(&state, stdout);
    printf("\n----\n");
    flush(now);
}

static void on_saved(void *user, int64_t step, const char *directory) {
    session *now = user;
    now->saved = step;
    loom_interrupts_progress(now->done, now->saved);
    if (now->quiet || now->progress.live) return;
    printf("step %lld: saved %s\n", (long long)step, LOOM_PRINTABLE(directory));
    flush(now);
}

static bool on_should_stop(void *user) {
    (void)user;
    return loom_interrupts_asked() != 0;
}

/* -------------------------------------------------------------------------------------------------------------- end */

static void print_next_command(const char *subcommand, const char *out, const char *more) {
    printf("  %s %s %s%s\n", LOOM_SHELL_WORD(program_invocation_name), subcommand, LOOM_SHELL_WORD(out), more);
}

static void show_end(session *now, const char *out) {
    loom_progress *progress = &now->progress;
    const loom_step_report *report = &progress->report;
    const double seconds = loom_progress_seconds(progress), validating = progress->validation_seconds;
    const int64_t steps = report->step - progress->first;
    char duration[24], validation[24], rate[16];
    loom_progress_end(progress);
    loom_format_duration(duration, sizeof duration, seconds);
    loom_format_duration(validation, sizeof validation, validating);
    loom_format_count(rate, sizeof rate, seconds > validating ? (double)progress->tokens / (seconds - validating) : 0);
    const bool finished = report->step >= progress->total;
    printf("\n%s after step %lld of %lld: %lld step%s in %s", finished ? "done" : "stopped", (long long)report->step,
           (long long)progress->total, (long long)steps, loom_plural(steps), duration);
    if (validating >= 1) printf(", %s of it validation", validation);
    printf(", %s tok/s", rate);
    if (progress->weight > 0)
        printf("; loss %.4f (smoothed %.4f)", (double)report->loss, progress->loss / progress->weight);
    if (!isnan(progress->validation)) printf(", validation %.4f", progress->validation);
    if (progress->skipped > 0)
        printf("; %lld update%s left out", (long long)progress->skipped, loom_plural(progress->skipped));
    char ranks[32] = "";
    if (now->ranks > 1) snprintf(ranks, sizeof ranks, " --ranks %d", now->ranks);
    if (!finished && now->saves && loom_interrupts_asked() == SIGUSR1) {
        printf("\n\nto be continued:\n");
        print_next_command("train --resume --out", out, ranks);
    } else {
        printf("\n\nwhat next:\n");
        if (now->saves)
            print_next_command("sample --from", out,
                               now->bytes ? " --prompt 'Once upon a time' --tokens 200" : " --tokens 200");
        print_next_command("plot", out, "");
        if (!finished && now->saves) print_next_command("train --resume --out", out, ranks);
    }
    flush(now);
}

/* The last line of a training whose stdout broke on the way: a closed pipe, a full disk, a pager that was left. */
static void tell_of_output(int failure, int64_t step, const char *out) {
    loom_error line;
    char after[48] = "";
    if (!failure) return;
    if (step >= 0) snprintf(after, sizeof after, " after step %lld", (long long)step);
    loom_fail(
        &line,
        "standard output: could not be written%s (%s); the training went on without it; %s/metrics.jsonl tells all",
        after, failure == EAGAIN ? "nobody read it" : strerror(failure), out);
    loom_command_failed(&line);
}

/* One rank's process, or the only one. */
static int train(const loom_train_options *options, bool quiet) {
    loom_error error;
    loom_comm *comm;
    session now = {.quiet = quiet};
    const loom_train_observer observer = {.user = &now,
                                          .noted = on_noted,
                                          .planned = on_planned,
                                          .already_done = on_already_done,
                                          .started = on_started,
                                          .stepped = on_stepped,
                                          .validating = on_validating,
                                          .validated = on_validated,
                                          .sampled = on_sampled,
                                          .saved = on_saved,
                                          .should_stop = on_should_stop};
    const loom_comm_options how = {.backend = options->comm, .timeout = options->comm_timeout};
    loom_output_ignore_sigpipe();
    loom_interrupts_catch();
    if (!loom_comm_open(&comm, &how, &error)) return loom_command_refused(&error);
    const bool several = comm->size > 1;
    now.rank = comm->rank;
    now.ranks = comm->size;
    if (comm->rank > 0) now.quiet = true;
    if (!loom_train(options, comm, &observer, &error)) {
        if (now.progress.out) loom_progress_interrupt(&now.progress);
        if (several) loom_comm_abort(comm, &error, 2);
        return loom_command_failed(&error);
    }
    if (!now.quiet && now.progress.out) show_end(&now, options->out);
    tell_of_output(loom_output_failure(), now.unwritten_from, options->out);
    return loom_interrupts_end(!loom_launched());
}

/* What can be refused before ranks are started is refused once. */
static bool check_before_launch(loom_train_options *options, loom_error *error) {
    return loom_train_check(options, error) &&
           (options->resume || options->init || loom_train_options_resolve(options, error));
}

/* Adds to a line that says how ranks ended where the run is, as far as its files tell. */
static void add_where(loom_error *line, const char *out, int rank) {
    const int64_t done = rank >= 0 ? loom_run_logged_step(out, rank) : -1, saved = loom_checkpoint_newest(out);
    char before[sizeof line->message], where[64] = "";
    snprintf(before, sizeof before, "%s", line->message);
    if (done >= 0) snprintf(where, sizeof where, " after step %lld", (long long)done);
    char config[PATH_MAX];
    const bool begun = loom_join_path(config, sizeof config, out, "config.ini", NULL) && loom_path_exists(config);
    if (saved >= 0)
        loom_fail(line, "%s%s; the last checkpoint is of step %lld: --resume goes on from it", before, where,
                  (long long)saved);
    else
        loom_fail(line, "%s%s; there is no checkpoint yet%s", before, where, begun ? ": --resume begins anew" : "");
}

/* Ranks that each took themselves for the only one would write the same run. */
static bool check_comm(const loom_train_options *options, loom_error *error) {
    if (!options->comm || strcmp(options->comm, "self") != 0) return true;
    if (loom_launched())
        return loom_fail(error,
                         "--comm self: is for one rank, and this process was started as one of several ranks; take "
                         "--comm mpi");
    return options->ranks <= 1 ||
           loom_fail(error, "--comm self: is for one rank, and --ranks %d are asked for; take --comm mpi",
                     (int)options->ranks);
}

/* At a second Ctrl-C, as far as the run's files tell. */
static void say_what_would_be_lost(void *out) {
    const int64_t done = loom_run_logged_step(out, 0), saved = loom_checkpoint_newest(out);
    char lost[128], line[256];
    loom_interrupts_name_lost(lost, sizeof lost, done, saved > 0 ? saved : 0);
    const int length = snprintf(line, sizeof line,
                                "gptloom: the ranks end and save still; once more ends them at once, and %s\n", lost);
    loom_say(line, (size_t)length);
}

/* Starts this command once more for each rank; waits, and prints last why they failed, if they did. */
static int launch(loom_train_options *options, int argc, char **argv) {
    char program[PATH_MAX] = "";
    loom_error error;
    loom_ranks_end end;
    loom_output_ignore_sigpipe();
    char **words = calloc((size_t)argc + 2, sizeof *words);
    bool ok = words && readlink("/proc/self/exe", program, sizeof program - 1) > 0;
    if (!ok) loom_fail(&error, "--ranks: this program cannot be found to be started again");
    /* mpirun gives ranks a terminal of its own, whatever this one's output is. */
    if (!isatty(STDOUT_FILENO)) setenv("TERM", "dumb", 1);
    if (ok) {
        words[0] = program;
        for (int i = 0; i < argc; i++) words[i + 1] = argv[i];
        const loom_ranks_hooks hooks = {.user = options->out, .asked_again = say_what_would_be_lost};
        ok = check_before_launch(options, &error) &&
             loom_launch_ranks((int)options->ranks, words, &hooks, &end, &error);
    }
    free(words);
    if (!ok) return loom_command_failed(&error);
    const int number = end.status - 128;
    const bool by_signal = number == SIGINT || number == SIGTERM || number == SIGHUP;
    if (!end.line.message[0]) tell_of_output(end.unwritten, -1, options->out);
    if (!end.line.message[0]) return by_signal ? loom_interrupts_end_by(number) : end.status;
    if (end.was_ended) add_where(&end.line, options->out, end.rank);
    loom_command_failed(&end.line);
    return end.status;
}

int loom_command_train(int argc, char **argv) {
    settings mine = {0};
    loom_train_options options = loom_train_options_defaults();
    loom_flag_table tables[2] = {{.target = &options},
                                 {program_flags, sizeof program_flags / sizeof *program_flags, &mine, {false}}};
    tables[0].flags = loom_train_option_table(&tables[0].n);
    loom_command_line line = {
        .command = "train", .about = about, .examples = examples, .tables = tables, .n_tables = 2};
    loom_error error;
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0) {
        if (!add_files(&line, argc, argv, &options, &mine, &error) || !check_comm(&options, &error))
            code = loom_command_refused(&error);
        else if (options.ranks > 1 && !loom_launched())
            code = launch(&options, argc, argv);
        else
            code = train(&options, mine.quiet);
    }
    loom_flags_free(program_flags, tables[1].n, &mine);
    loom_train_options_free(&options);
    return code;
}
