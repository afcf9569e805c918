/* An op's views, and what a device's `supports` asks about them before it looks at what is its own. */
#ifndef LOOM_OPS_ARGUMENTS_H
#define LOOM_OPS_ARGUMENTS_H

#include "gptloom/ops.h"

/* What a view may be stored as: the words of ops.h. */
typedef enum loom_storage {
    LOOM_STORED_MODEL,
    LOOM_STORED_REALS,
    LOOM_STORED_REALS_OR_BF16,
    LOOM_STORED_IDS,
    LOOM_STORED_ANY
} loom_storage;

/* One view of an op's arguments, as its list in ops.h says. */
typedef struct loom_argument {
    const char *name;   /* the member, "dweight" */
    const char *called; /* "the gradient of the weight"; "": nothing */
    const loom_view *view;
    loom_storage storage;
    bool read, written; /* both: it is added to or updated */
} loom_argument;

enum { LOOM_MOST_VIEWS = 9 };

/* Lists the views in the order of ops.h, without the optional ones that are not given; returns how many they are. */
int loom_op_views(loom_op op, const void *arguments, loom_argument list[LOOM_MOST_VIEWS]);

/* What is wrong with an op's arguments on a device whose statistics are `real` and that stores activations, weights and
 * their gradients in any of `stored`, a set of bits 1 << dtype; or NULL. The shapes of views are only looked at where a
 * caller may well get them wrong. */
const char *loom_check_arguments(loom_op op, const void *arguments, loom_dtype real, unsigned stored);

/* Whether a view's rows, counted over all but the innermost dimension, lie one stride apart: row n starts at element
 * n * stride[2]. */
bool loom_rows_regular(const loom_view *view);

/* What is wrong with an op's arguments for a device that wants this of all of them, or NULL. */
const char *loom_check_rows(loom_op op, const void *arguments);

#endif
