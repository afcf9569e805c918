/* The table of training options, for the program: flags, --help and config files come from these rows alone. */
#ifndef LOOM_ENGINE_OPTIONS_H
#define LOOM_ENGINE_OPTIONS_H

#include "base/flag.h"
#include "gptloom/train.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The rows, whose offsets are into loom_train_options. */
const loom_flag *loom_train_option_table(int *n);

/* Copies the rows of some names, ended by NULL, for a command that takes these flags of training. Returns how many. */
int loom_train_option_rows(const char *const *names, loom_flag *rows);

/* The part of loom_train_options_resolve that needs no data: dtypes, recompute policy, the model's shape (vocab_size
 * may stay 0), batches. */
bool loom_train_options_resolve_shapes(loom_train_options *options, loom_error *error);

/* A run's config.ini: `options` as they were resolved, and of those that follow from others, which were `given`. What
 * only follows is in a section that loom_train_options_read passes over. A comment says what the device is. */
bool loom_train_options_write_run(const loom_train_options *given, const loom_train_options *options,
                                  const loom_device *device, const char *path, loom_error *error);

/* Reads such a file for a run that goes on: paths that are not found from here are those from the directory in which
 * the run was started. */
bool loom_train_options_read_run(loom_train_options *options, const char *path, loom_error *error);

/* The first path of the data that leads nowhere, or NULL. */
const char *loom_train_options_missing_data(const loom_train_options *options);

/* Reads all of such a file, of what only follows too: what the run was. */
bool loom_train_options_read_all(loom_train_options *options, const char *path, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
