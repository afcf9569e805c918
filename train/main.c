/* gptloom: finds the subcommand and hands the words over. */
#include "command.h"
#include "command_line.h"
#include "output.h"
#include "engine/synonyms.h"

#include "base/printable.h"
#include "gptloom/device.h"

#include <stdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

static const loom_command commands[] = {
    {"train", "train a GPT on text or token shards", loom_command_train},
    {"sample", "let a trained model write", loom_command_sample},
    {"info", "a model's shape, parameters, memory and arithmetic", loom_command_info},
    {"plan", "what a training needs and how fast it will be, here or on a GPU by name", loom_command_plan},
    {"graph", "draw what a model computes, with shapes, memory and arithmetic, as SVG", loom_command_graph},
    {"plot", "draw runs as one SVG: losses, learning rate, gradient norm, tokens per second", loom_command_plot},
    {"tokenizer", "text as token ids, ids as text, and how a text is cut", loom_command_tokenizer},
    {"parity", "compare every op with its definition in double precision", loom_command_parity},
    {"bench", "time every op against what the machine can do", loom_command_bench},
    {"devices", "what there is to run on", loom_command_devices},
};

enum { COMMANDS = sizeof commands / sizeof *commands };

static int help(void) {
    printf("gptloom trains GPT-style transformers.\n\n"
           "Usage: gptloom COMMAND [flags]\n\nCommands\n");
    for (int i = 0; i < COMMANDS; i++) printf("  %-10s %s\n", commands[i].name, commands[i].summary);
    printf("\n  -h, --help     prints this; 'gptloom COMMAND --help' tells a command's flags\n"
           "      --version  prints the version and what is built in\n\n"
           "A first run\n"
           "  gptloom train --data input.txt --out runs/first --model mini --steps 500\n"
           "  gptloom sample --from runs/first --prompt 'Once'\n"
           "  gptloom plot runs/first\n");
    return 0;
}

static int version(void) {
    loom_error error;
    loom_device *device;
    const loom_device_options options = {0};
    printf("gptloom " LOOM_VERSION "\n");
    printf("  compiler  %s %s\n",
#ifdef __clang__
           "clang", __clang_version__
#else
           "gcc", __VERSION__
#endif
    );
    if (!loom_device_open(&device, "cpu", &options, &error)) return loom_command_failed(&error);
    printf("  cpu       %s\n", LOOM_PRINTABLE(device->description));
    printf("  cuda      %s\n", LOOM_PRINTABLE(loom_device_cuda_build()));
    loom_device_close(device);
    return 0;
}

static int run(const char *name, int argc, char **argv) {
    const char *names[COMMANDS + 1] = {NULL};
    loom_error error;
    for (int i = 0; i < COMMANDS; i++) {
        if (!strcmp(commands[i].name, name)) return commands[i].run(argc, argv);
        names[i] = commands[i].name;
    }
    char suggestion[256] = "'gptloom --help' lists them";
    loom_suggest_name(name, "", names, suggestion, sizeof suggestion);
    loom_fail(&error, "'%s': there is no such command; %s", LOOM_BRIEF(name, 60), suggestion);
    return loom_command_failed(&error);
}

static int dispatch(int argc, char **argv) {
    loom_error error;
    if (argc < 2) {
        loom_fail(&error, "no command is given; 'gptloom --help' lists them");
        return loom_command_failed(&error);
    }
    if (!strcmp(argv[1], "--version")) return version();
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) return help();
    if (strcmp(argv[1], "help")) return run(argv[1], argc - 1, argv + 1);
    if (argc == 2) return help();
    char flag[] = "--help";
    char *words[] = {argv[2], flag, NULL};
    return run(argv[2], 2, words);
}

/* What is printed is what a command is for: where it cannot be written the command has failed. Into a pipe that nobody
 * reads any more it is the signal SIGPIPE that ends this program, silently, as it ends other tools; where the caller
 * has that signal ignored, there is this line. Only a training goes on (output.h). */
static int finish(int code) {
    loom_error error;
    if (loom_output_flush() || code != 0) return code;
    loom_fail(&error, "standard output: cannot be written: %s", strerror(loom_output_failure()));
    return loom_command_failed(&error);
}

/* Threads of a step wait for each other some hundred times. libgomp has them spin for milliseconds before they sleep,
 * which on a machine that has other work takes the processor from the very thread that they wait for: training was up
 * to three times slower. It reads how long they spin when it is loaded, before main(), so the program begins once more,
 * told to let them spin for some 60 microseconds, unless the user has said how they shall wait. */
static void begin_with_short_waits(char **argv) {
    static const char spins[] = "GOMP_SPINCOUNT", self[] = "/proc/self/exe";
    const char *started = (const char *)getauxval(AT_EXECFN);
    struct stat runs, named;
    if (getenv(spins) || getenv("OMP_WAIT_POLICY")) return;
    /* Where a loader or valgrind was started, which runs this program, that is what would begin once more. */
    if (!started || stat(self, &runs) != 0 || stat(started, &named) != 0) return;
    if (runs.st_dev != named.st_dev || runs.st_ino != named.st_ino || setenv(spins, "3000", 1) != 0) return;
    execv(started, argv);
    unsetenv(spins); /* it failed */
}

int main(int argc, char **argv) {
    loom_output_open_descriptors();
    begin_with_short_waits(argv);
    signal(SIGXFSZ, SIG_IGN); /* a file at the size limit is a failed write, which is reported */
    return finish(dispatch(argc, argv));
}
