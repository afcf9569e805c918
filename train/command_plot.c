/* gptloom plot: training runs as a picture. */
#include "command.h"
#include "command_line.h"

#include "plot/plot.h"

#include "base/file.h"
#include "base/printable.h"

#include <limits.h>
#include <string.h>

struct settings {
    char *out, *title;
    int64_t smooth;
    loom_plot_x x;
    bool log_x;
};

static const char *const x_names[] = {"step", "tokens", "time", NULL}; /* as loom_plot_x */

static const loom_flag flags[] = {
    {.name = "out",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(struct settings, out),
     .derived = "RUN/loss.svg of one run, gptloom-plot.svg of several",
     .metavar = "FILE.svg",
     .group = "Picture",
     .help = "where it goes; '-': standard output"},
    {.name = "title",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(struct settings, title),
     .derived = "the run's name",
     .metavar = "TEXT",
     .group = "Picture",
     .help = "its heading"},
    {.name = "smooth",
     .type = LOOM_FLAG_INT,
     .offset = offsetof(struct settings, smooth),
     .min = 1,
     .max = 1e12,
     .derived = "a fiftieth of each run",
     .metavar = "N",
     .group = "Curves",
     .help = "draw means over N steps, and every step faintly; 1 draws every step only"},
    {.name = "x",
     .type = LOOM_FLAG_CHOICE,
     .offset = offsetof(struct settings, x),
     .choices = x_names,
     .default_value = "step",
     .group = "Curves",
     .help = "what runs to the right: steps, tokens trained on, or the time that the steps took"},
    {.name = "log-x",
     .type = LOOM_FLAG_BOOL,
     .offset = offsetof(struct settings, log_x),
     .default_value = "false",
     .group = "Curves",
     .help = "make that axis logarithmic"},
};
enum { FLAGS = sizeof flags / sizeof *flags };

/* Where the picture goes when --out does not say. */
static bool default_place(char *path, size_t size, const char *const *runs, int n_runs, loom_error *error) {
    if (n_runs == 1) return loom_join_path(path, size, runs[0], "loss.svg", error);
    strcpy(path, "gptloom-plot.svg");
    return true;
}

static bool plot(const struct settings *settings, const char *const *names, int n_runs, loom_error *error) {
    if (n_runs > LOOM_PLOT_MAX_RUNS)
        return loom_fail(error, "%d runs are too many for one picture: name at most %d", n_runs, LOOM_PLOT_MAX_RUNS);
    loom_curves runs[LOOM_PLOT_MAX_RUNS] = {{0}};
    loom_svg svg = {0};
    char path[PATH_MAX];
    bool ok = (!settings->out || loom_svg_check_place(settings->out, "plot draws SVG", error)) &&
              default_place(path, sizeof path, names, n_runs, error);
    for (int r = 0; r < n_runs && ok; r++) ok = loom_curves_read(&runs[r], names[r], error);
    const loom_plot_options options = {
        .title = settings->title, .x = settings->x, .log_x = settings->log_x, .smooth = settings->smooth};
    const char *place = settings->out ? settings->out : path;
    ok = ok && loom_plot_draw(&svg, runs, n_runs, &options, error);
    const bool to_stdout = ok && loom_output_is_stdout(place);
    ok = ok && loom_svg_save(&svg, settings->out, path, error);
    if (ok && !to_stdout) puts(LOOM_PRINTABLE(place));
    loom_svg_free(&svg);
    for (int r = 0; r < n_runs; r++) loom_curves_free(&runs[r]);
    return ok;
}

int loom_command_plot(int argc, char **argv) {
    struct settings settings = {0};
    loom_flag_table table = {flags, FLAGS, &settings, {false}};
    loom_command_line line = {
        .command = "plot",
        .arguments = "RUN...",
        .about = "Draws the loss, validation loss, learning rate, gradient norm and tokens per second of training runs "
                 "(directories with a metrics.jsonl) as one SVG, several runs over each other, and prints the name "
                 "of the file. A loss or gradient norm that spans orders of magnitude gets a logarithmic axis.",
        .examples = "  gptloom plot runs/first\n"
                    "  gptloom plot runs/a runs/b --x tokens --log-x --out compare.svg\n",
        .fewest = 1,
        .most = LOOM_MAX_ARGUMENTS,
        .tables = &table,
        .n_tables = 1};
    loom_error error;
    loom_flags_defaults(flags, FLAGS, &settings);
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0) code = plot(&settings, line.argument, line.n_arguments, &error) ? 0 : loom_command_failed(&error);
    loom_flags_free(flags, FLAGS, &settings);
    return code;
}
