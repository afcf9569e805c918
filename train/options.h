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

#ifdef __cplusplus
}
#endif
#endif
