/* The program's subcommands. Each gets its own words, argv[0] being its name, and returns the exit code: 0, or 2 after
 * a mistake that it has printed in one line (loom_command_failed). */
#ifndef LOOM_TRAIN_COMMAND_H
#define LOOM_TRAIN_COMMAND_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_command {
    const char *name;
    const char *summary; /* for the list in --help */
    int (*run)(int argc, char **argv);
} loom_command;

int loom_command_train(int argc, char **argv);
int loom_command_sample(int argc, char **argv);
int loom_command_info(int argc, char **argv);
int loom_command_plan(int argc, char **argv);
int loom_command_graph(int argc, char **argv);
int loom_command_plot(int argc, char **argv);
int loom_command_tokenizer(int argc, char **argv);
int loom_command_parity(int argc, char **argv);
int loom_command_bench(int argc, char **argv);
int loom_command_devices(int argc, char **argv);

#ifdef __cplusplus
}
#endif
#endif
