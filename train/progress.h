/* What a training run shows while it runs: on a terminal one live line, redrawn in place; elsewhere plain lines, some
 * hundred in all however long the run is. */
#ifndef LOOM_TRAIN_PROGRESS_H
#define LOOM_TRAIN_PROGRESS_H

#include "gptloom/train.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_progress {
    FILE *out;
    bool live;                    /* a terminal */
    int64_t first, last, total;   /* steps: done before this session, this session's last, the whole run's */
    double flops_per_token, peak; /* of the model; of the machine, 0 if unknown, */
    loom_dtype peak_dtype;        /* with numbers of this type */
    /* What the steps have reported so far. */
    loom_step_report report; /* of the last step */
    int64_t tokens;          /* trained on in this session */
    double loss, weight;     /* running mean of the loss, and the sum of its weights */
    double ms;               /* running mean of a step's time */
    double validation;       /* NAN until there is one */
    double validating;       /* how far it is, from 0 to 1; negative: it is not under way */
    double validation_seconds;
    double validation_began, line_at; /* when; how long after that a line last said how far it is, negative: not yet */
    int64_t validation_tokens;        /* that one takes */
    double started, drawn;            /* seconds on the monotonic clock */
    int64_t skipped;
    bool open; /* a live line stands without its newline */
} loom_progress;

/* Begins a session. `out` shows a live line if it is a terminal that can. */
void loom_progress_begin(loom_progress *progress, FILE *out, int64_t first, int64_t last, int64_t total);

void loom_progress_step(loom_progress *progress, const loom_step_report *report);
/* During validation the live line says how far it is; a plain one comes at its end, with the time that it took, and in
 * one that is long sparse ones before, with the time that is left. */
void loom_progress_validating(loom_progress *progress, int64_t step, double part);
void loom_progress_validated(loom_progress *progress, int64_t step, const loom_validation *result);

/* Ends the live line, if one stands, so that other lines can be printed; the next step draws it anew. */
void loom_progress_interrupt(loom_progress *progress);

/* Ends the session: the live line, if one stands, shows the last step and stays. */
void loom_progress_end(loom_progress *progress);

/* Whether a plain line on how far something is is due, `seconds` after it began, a `part` of it done, and the last such
 * line `last_line` seconds after it began (negative: none yet). The first is due once it is clear that the whole takes
 * half a minute or more; then at most one for each tenth of it, at least 3 minutes apart. */
bool loom_progress_is_due(double seconds, double part, double last_line);

double loom_progress_seconds(const loom_progress *progress); /* since the beginning */

/* "1:05", "2:03:04" or "3d 04:05". */
void loom_format_duration(char *text, size_t size, double seconds);
/* "812", "12.3K", "1.25M", "3.1G". */
void loom_format_count(char *text, size_t size, double count);

#ifdef __cplusplus
}
#endif
#endif
