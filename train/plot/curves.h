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
    LOOM_CURVE_SECONDS, /* seconds since the first step: the sum of ms */
    LOOM_CURVE_LOSS,
    LOOM_CURVE_VAL_LOSS,
    LOOM_CURVE_LR,
    LOOM_CURVE_GRAD_NORM,
    LOOM_CURVE_TOKENS_PER_S,
    LOOM_CURVES
} loom_curve;

typedef struct loom_curves {
    char *name;                  /* the run's name, as the picture shows it */
    int64_t n;                   /* the number of rows; steps increase from row to row */
    double *column[LOOM_CURVES]; /* n values each; NaN: not measured, or not finite */
} loom_curves;

/* Reads DIRECTORY/metrics.jsonl. Each line is an object with "step" and, all optional, tokens, ms, loss, val_loss, lr,
 * grad_norm and tokens_per_s; null stands for a value that was not finite. An incomplete last line, left by a run that
 * was killed or is still writing, is dropped. Rows that a resumed run has computed again are dropped too. Errors: there
 * is no such file, it has no metrics yet, or a line is damaged (the error gives its number). The curves are freed with
 * loom_curves_free, also after an error. */
bool loom_curves_read(loom_curves *curves, const char *directory, loom_error *error);

void loom_curves_free(loom_curves *curves);

#ifdef __cplusplus
}
#endif
#endif
