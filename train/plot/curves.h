/* A run's metrics.jsonl as columns of numbers. */
#ifndef LOOM_TRAIN_PLOT_CURVES_H
#define LOOM_TRAIN_PLOT_CURVES_H

#include "gptloom/error.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum loom_curve {
    LOOM_CURVE_STEP,
    LOOM_CURVE_TOKENS,
    LOOM_CURVE_SECONDS, /* since the first step: the sum of ms */
    LOOM_CURVE_LOSS,
    LOOM_CURVE_VAL_LOSS,
    LOOM_CURVE_LR,
    LOOM_CURVE_GRAD_NORM,
    LOOM_CURVE_TOKENS_PER_S,
    LOOM_CURVES
} loom_curve;

typedef struct loom_curves {
    char *name;                  /* the run's, as it shall be shown */
    int64_t n;                   /* rows, of rising step */
    double *column[LOOM_CURVES]; /* n values each; NaN: not measured, or not a number */
} loom_curves;

/* Reads DIRECTORY/metrics.jsonl: an object a line with "step" and, each optional, tokens, ms, loss, val_loss, lr,
 * grad_norm, tokens_per_s; null stands for a value that was not finite. A last line without its end, left by a run that
 * was killed or is still writing, is dropped; so is what a resumed run has done again. Errors: no metrics there, none
 * yet, a damaged line (by its number). The curves are freed with loom_curves_free, after an error too. */
bool loom_curves_read(loom_curves *curves, const char *directory, loom_error *error);

void loom_curves_free(loom_curves *curves);

#ifdef __cplusplus
}
#endif
#endif
