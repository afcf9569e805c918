#include "command_line.h"

#include "output.h"
#include "engine/synonyms.h"

#include "base/check.h"
#include "base/printable.h"
#include "base/say.h"
#include "gptloom/comm.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_ENTRIES = 2 * LOOM_FLAG_MAX_ROWS + 2,
    LONG_BASE = 256, /* getopt codes from here on are entries; smaller ones are letters */
    WIDTH = 100,     /* of the help, in columns */
    HELP_COLUMN = 31
};

/* ------------------------------------------------------------------------------------------------------------- entries
 * What getopt_long is given: one entry per flag, one more for each boolean's negation, and --help. */

typedef struct entries {
    int n;
    struct option option[MAX_ENTRIES + 1];
    const loom_flag *flag[MAX_ENTRIES]; /* NULL: the entry is --help */
    loom_flag_table *table[MAX_ENTRIES];
    bool negated[MAX_ENTRIES];
    char negation[MAX_ENTRIES][48]; /* as in "no-deterministic" */
    const char *name[MAX_ENTRIES + 1];
    char letters[2 * MAX_ENTRIES];
} entries;

static void add_entry(entries *list, const char *name, int argument, loom_flag_table *table, const loom_flag *flag) {
    const int i = list->n++;
    LOOM_CHECK(i < MAX_ENTRIES);
    list->option[i] = (struct option){name, argument, NULL, LONG_BASE + i};
    list->name[i] = name;
    list->flag[i] = flag;
    list->table[i] = table;
}

static void add_letter(entries *list, char letter, bool takes_value) {
    const size_t used = strlen(list->letters);
    LOOM_CHECK(used + 3 <= sizeof list->letters);
    list->letters[used] = letter;
    if (takes_value) list->letters[used + 1] = ':';
}

/* The leading "-" makes getopt return other arguments in their order; ":" makes it tell a missing value from an unknown
 * flag. */
static void list_entries(entries *list, const loom_command_line *line) {
    memset(list, 0, sizeof *list);
    strcpy(list->letters, "-:h");
    for (int t = 0; t < line->n_tables; t++) {
        for (int i = 0; i < line->tables[t].n; i++) {
            const loom_flag *flag = &line->tables[t].flags[i];
            const bool is_bool = flag->type == LOOM_FLAG_BOOL;
            add_entry(list, flag->name, is_bool ? optional_argument : required_argument, &line->tables[t], flag);
            if (flag->letter) add_letter(list, flag->letter, !is_bool);
            if (!is_bool) continue;
            char *negation = list->negation[list->n];
            snprintf(negation, sizeof list->negation[0], "no-%s", flag->name);
            list->negated[list->n] = true;
            add_entry(list, negation, no_argument, &line->tables[t], flag);
        }
    }
    add_entry(list, "help", no_argument, NULL, NULL);
}

/* Returns the entry that belongs to one of getopt's codes. */
static int entry_of_code(const entries *list, int code) {
    if (code >= LONG_BASE) return code - LONG_BASE;
    for (int i = 0; i < list->n; i++) {
        const char letter = list->flag[i] ? list->flag[i]->letter : 'h';
        if (letter && letter == code) return i;
    }
    return -1;
}

/* Whether a word ("--name" or "--name=value") has exactly this name: getopt_long would also accept an abbreviation. */
static bool word_names(const char *word, const char *name) {
    const size_t length = strlen(name);
    return !strncmp(word, "--", 2) && !strncmp(word + 2, name, length) &&
           (!word[2 + length] || word[2 + length] == '=');
}

static bool unknown_flag(const loom_command_line *line, const entries *list, const char *word, loom_error *error) {
    char name[64];
    snprintf(name, sizeof name, "%s", word + strspn(word, "-"));
    name[strcspn(name, "=")] = 0;
    const char *dashes = word[1] == '-' ? "--" : "-";
    char suggestion[256];
    if (loom_suggest_name(name, "--", list->name, suggestion, sizeof suggestion))
        return loom_fail(error, "%s%s: there is no such flag; %s", dashes, name, suggestion);
    return loom_fail(error, "%s%s: there is no such flag; 'gptloom %s --help' lists them", dashes, name, line->command);
}

/* ---------------------------------------------------------------------------------------------------------- parsing */

/* Rewrites "--batch_size=4", which other programs accept, as "--batch-size=4", in all words before "--", which ends the
 * flags. */
static void dash_names(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (!strncmp(argv[i], "--", 2))
            for (char *c = argv[i]; *c && *c != '='; c++)
                if (*c == '_') *c = '-';
}

static bool take_argument(loom_command_line *line, const char *word, loom_error *error) {
    if (line->most == 0)
        return loom_fail(error, "'%s': gptloom %s takes flags only; 'gptloom %s --help' lists them",
                         LOOM_BRIEF(word, 120), line->command, line->command);
    const int most = line->most < LOOM_MAX_ARGUMENTS ? line->most : LOOM_MAX_ARGUMENTS;
    if (line->n_arguments >= most)
        return loom_fail(error, "'%s': gptloom %s takes at most %d such argument%s", LOOM_BRIEF(word, 120),
                         line->command, most, most == 1 ? "" : "s");
    line->argument[line->n_arguments++] = word;
    return true;
}

/* Handles one of getopt's codes, found in `word`. `open` is the list to which following words are added. */
static bool take_code(loom_command_line *line, const entries *list, int code, const char *word, int *open, bool *help,
                      loom_error *error) {
    const bool is_long = word[0] == '-' && word[1] == '-';
    if (code == 1) {
        if (*open < 0) return take_argument(line, optarg, error);
        return loom_flag_give(list->table[*open], list->flag[*open], optarg, "--", error);
    }
    const int entry = entry_of_code(list, code == '?' || code == ':' ? optopt : code);
    if (entry < 0 || (is_long && !word_names(word, list->name[entry]))) return unknown_flag(line, list, word, error);
    const loom_flag *flag = list->flag[entry];
    *open = -1;
    if (code == '?') return loom_fail(error, "--%s: takes no value", list->name[entry]);
    if (code == ':') return loom_fail(error, "--%s: needs a value", list->name[entry]);
    if (!flag) return *help = true;
    if (flag->type == LOOM_FLAG_STRINGS) *open = entry;
    if (flag->type == LOOM_FLAG_BOOL)
        return loom_flag_give(list->table[entry], flag,
                              list->negated[entry] ? "false"
                              : optarg             ? optarg
                                                   : "true",
                              "--", error);
    if (!strncmp(optarg, "--", 2) && optarg[2] && !strchr(word, '='))
        return loom_fail(error, "--%s: needs a value, and '%s' is a flag; write --%s=VALUE if it is meant", flag->name,
                         LOOM_BRIEF(optarg, 60), flag->name);
    return loom_flag_give(list->table[entry], flag, optarg, "--", error);
}

bool loom_command_line_parse(loom_command_line *line, int argc, char **argv, bool *help, loom_error *error) {
    entries list;
    list_entries(&list, line);
    for (int t = 0; t < line->n_tables; t++) memset(line->tables[t].given, 0, sizeof line->tables[t].given);
    line->n_arguments = 0;
    *help = false;
    dash_names(argc, argv);
    opterr = 0;
    optind = 0; /* makes getopt start again */
    int open = -1;
    for (;;) {
        const int at = optind > 0 ? optind : 1;
        const int code = getopt_long(argc, argv, list.letters, list.option, NULL);
        if (code < 0) break;
        if (!take_code(line, &list, code, argv[at], &open, help, error)) return false;
        if (*help) return true;
    }
    for (int i = optind; i < argc; i++)
        if (!take_argument(line, argv[i], error)) return false;
    for (int t = 0; t < line->n_tables; t++)
        if (!loom_flags_have_defaults(line->tables[t].flags, line->tables[t].n, line->tables[t].target, error))
            return false;
    if (line->n_arguments < line->fewest)
        return loom_fail(error, "%s: is missing; 'gptloom %s --help' tells more", line->arguments, line->command);
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- help */

/* Prints text word by word, from `column` on, within WIDTH; further lines are indented by `indent`. Ends the line. */
static void print_wrapped(FILE *out, const char *text, int column, int indent) {
    bool first = true;
    while (*text) {
        const int length = (int)strcspn(text, " ");
        if (!first && column + 1 + length > WIDTH) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
            first = true;
        }
        column += fprintf(out, "%s%.*s", first ? "" : " ", length, text);
        first = false;
        text += length;
        if (*text) text++;
    }
    fputc('\n', out);
}

/* "|"-separated choices, for flags without a metavar of their own. */
static void print_value_name(char *text, size_t size, const loom_flag *flag) {
    snprintf(text, size, "%s", flag->metavar ? flag->metavar : "");
    if (flag->metavar || !flag->choices) return;
    for (int i = 0; flag->choices[i]; i++) {
        const size_t used = strlen(text);
        snprintf(text + used, size - used, "%s%s", i ? "|" : "", flag->choices[i]);
    }
}

static void print_flag(FILE *out, const loom_flag *flag) {
    char value[128], text[1024], letter[8] = "";
    print_value_name(value, sizeof value, flag);
    const bool defaults_to_true = flag->type == LOOM_FLAG_BOOL && flag->default_value &&
                                  !strcmp(flag->default_value, "true");
    if (flag->letter) snprintf(letter, sizeof letter, "-%c, ", flag->letter);
    int column = fprintf(out, "  %s--%s%s%s%s", letter, defaults_to_true ? "[no-]" : "", flag->name, *value ? " " : "",
                         value);
    if (column >= HELP_COLUMN - 1) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", HELP_COLUMN - column, "");
    int length = snprintf(text, sizeof text, "%s", flag->help);
    LOOM_CHECK(length > 0 && (size_t)length < sizeof text);
    const char *default_value = flag->type == LOOM_FLAG_BOOL ? (defaults_to_true ? "on" : NULL) : flag->default_value;
    if (default_value || flag->derived)
        snprintf(text + length, sizeof text - (size_t)length, " (default: %s)",
                 default_value ? default_value : flag->derived);
    print_wrapped(out, text, HELP_COLUMN, HELP_COLUMN);
}

/* Whether the group of a flag was printed before: an earlier row of the tables has the same group. */
static bool group_was_printed(const loom_command_line *line, int table, int row, const char *group) {
    for (int t = 0; t <= table; t++)
        for (int i = 0; i < (t == table ? row : line->tables[t].n); i++)
            if (!strcmp(line->tables[t].flags[i].group, group)) return true;
    return false;
}

static void print_group(const loom_command_line *line, const char *group, FILE *out) {
    fprintf(out, "\n%s\n", group);
    for (int t = 0; t < line->n_tables; t++)
        for (int i = 0; i < line->tables[t].n; i++)
            if (!strcmp(line->tables[t].flags[i].group, group)) print_flag(out, &line->tables[t].flags[i]);
}

void loom_command_line_help(const loom_command_line *line, FILE *out) {
    fprintf(out, "Usage: gptloom %s [flags]%s%s\n\n", line->command, line->arguments ? " " : "",
            line->arguments ? line->arguments : "");
    print_wrapped(out, line->about, 0, 0);
    for (int t = 0; t < line->n_tables; t++)
        for (int i = 0; i < line->tables[t].n; i++)
            if (!group_was_printed(line, t, i, line->tables[t].flags[i].group))
                print_group(line, line->tables[t].flags[i].group, out);
    fprintf(out, "\n  %-*s%s\n", HELP_COLUMN - 2, "-h, --help", "prints this");
    if (line->examples) fprintf(out, "\nExamples\n%s", line->examples);
}

/* ------------------------------------------------------------------------------------------------------ subcommands */

int loom_command_failed(const loom_error *error) {
    loom_defer_error_to_rank0();
    char line[sizeof error->message + 16];
    const int length = snprintf(line, sizeof line, "gptloom: %s\n", error->message);
    loom_output_flush();
    loom_say(line, (size_t)length);
    return 2;
}

int loom_command_refused(const loom_error *error) {
    if (loom_launched()) loom_comm_abort(NULL, error, 2);
    return loom_command_failed(error);
}

int loom_command_line_read(loom_command_line *line, int argc, char **argv) {
    loom_error error;
    bool help;
    if (!loom_command_line_parse(line, argc, argv, &help, &error)) return loom_command_refused(&error);
    if (!help) return -1;
    loom_command_line_help(line, stdout);
    return 0;
}
