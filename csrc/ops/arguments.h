/* What a device's `supports` asks about an op's arguments before it looks at what is its own. */
#ifndef LOOM_OPS_ARGUMENTS_H
#define LOOM_OPS_ARGUMENTS_H

#include "gptloom/ops.h"

/* What is wrong with an op's arguments on a device whose statistics are `real` and that stores activations, weights and
 * their gradients in any of `stored`, a set of bits 1 << dtype; or NULL. The shapes of views are only looked at where a
 * caller may well get them wrong. */
const char *loom_check_arguments(loom_op op, const void *arguments, loom_dtype real, unsigned stored);

/* Bytes of all of an op's views that are given, each once. */
double loom_argument_bytes(loom_op op, const void *arguments);

/* Whether a view's rows, counted over all but the innermost dimension, lie one stride apart: row n starts at element
 * n * stride[2]. */
bool loom_rows_regular(const loom_view *view);

/* What is wrong with an op's arguments for a device that wants this of all of them, or NULL. */
const char *loom_check_rows(loom_op op, const void *arguments);

#endif
