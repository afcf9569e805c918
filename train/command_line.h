/* A subcommand's command line: flags from tables (base/flag.h), the other arguments, --help, and the one line of an
 * error. A subcommand looks like this:
 *
 *     struct settings {
 *         char *out;
 *         int64_t steps;
 *     };
 *     static const loom_flag flags[] = {
 *         {.name = "out", .type = LOOM_FLAG_STRING, .offset = offsetof(struct settings, out), .default_value = "plot.svg",
 *          .metavar = "FILE", .group = "Output", .help = "where the picture goes"},
 *         {.name = "steps", .type = LOOM_FLAG_INT, .offset = offsetof(struct settings, steps), .min = 1, .max = 1e9,
 *          .metavar = "N", .group = "Output", .help = "show the first N steps"},
 *     };
 *
 *     int loom_command_plot(int argc, char **argv) {
 *         struct settings settings = {0};
 *         loom_flag_table table = {flags, sizeof flags / sizeof *flags, &settings, {false}};
 *         loom_command_line line = {.command = "plot", .arguments = "RUN...", .about = "Draws ...",
 *                                   .fewest = 1, .most = LOOM_MAX_ARGUMENTS, .tables = &table, .n_tables = 1};
 *         loom_flags_defaults(flags, table.n, &settings);
 *         int code = loom_command_line_read(&line, argc, argv);
 *         if (code < 0) code = plot(&settings, line.argument, line.n_arguments);
 *         loom_flags_free(flags, table.n, &settings);
 *         return code;
 *     }
 */
#ifndef LOOM_TRAIN_COMMAND_LINE_H
#define LOOM_TRAIN_COMMAND_LINE_H

#include "base/flag.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_MAX_ARGUMENTS = 256 };

typedef struct loom_command_line {
    const char *command;   /* "plot" */
    const char *arguments; /* those that are no flags, for the usage line: "RUN..."; NULL: none */
    const char *about;     /* for --help: paragraphs, each a line of the string, wrapped when printed */
    const char *examples;  /* for --help: lines printed as they are; NULL: none */
    int fewest, most;      /* how many arguments there may be */
    loom_flag_table *tables;
    int n_tables;
    /* Filled by reading; they point into argv. */
    const char *argument[LOOM_MAX_ARGUMENTS];
    int n_arguments;
} loom_command_line;

/* Parses argv (argv[0] is the subcommand's name) into the tables' structs and into `argument`. Flags are written --NAME
 * VALUE, --NAME=VALUE, and --NAME or --no-NAME for booleans; a list takes all words up to the next flag; "--" ends the
 * flags. Names are never abbreviated, and underscores in them (which argv then has as dashes) count as dashes; an
 * unknown one is an error that suggests what it may mean. What is not given stays as it is in the struct: set the
 * defaults before. A parse is one source of values (base/flag.h). */
bool loom_command_line_parse(loom_command_line *line, int argc, char **argv, bool *help, loom_error *error);

/* Prints --help: usage, text, flags by group, examples; at most 100 columns. */
void loom_command_line_help(const loom_command_line *line, FILE *out);

/* The two together, as every subcommand begins: returns -1 to go on, or the exit code to return at once: 0 after
 * --help, 2 after an error, which has been printed. */
int loom_command_line_read(loom_command_line *line, int argc, char **argv);

/* Prints "gptloom: MESSAGE" on stderr and returns the exit code, 2. */
int loom_command_failed(const loom_error *error);

/* The same before a rank has met the others: what has started it, if anything did, says it last. */
int loom_command_refused(const loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
