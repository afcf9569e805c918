/* The table of training options, for the program: flags, --help and config files come from these rows alone. */
#ifndef LOOM_TRAIN_OPTIONS_H
#define LOOM_TRAIN_OPTIONS_H

#include "base/flag.h"
#include "gptloom/train.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The rows, whose offsets are into loom_train_options. */
const loom_flag *loom_train_option_table(int *n);

/* Copies the rows of some names, ended by NULL, for a command that takes these flags of training. Returns how many. */
int loom_train_option_rows(const char *const *names, loom_flag *rows);

/* The part of loom_train_options_resolve that needs no data: dtypes, recompute policy, the model's shape (vocab_size may
 * stay 0), batches. */
bool loom_train_options_resolve_shapes(loom_train_options *options, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
