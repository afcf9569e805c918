/* The validation and the sample that are due after a step, and which of them an interrupted session has left to the
 * next one. */
#ifndef LOOM_ENGINE_OWED_H
#define LOOM_ENGINE_OWED_H

#include "base/file.h"
#include "engine/trainer.h"

typedef struct loom_run_owed {
    bool validation, sample;
} loom_run_owed;

/* Whether something that is done after every so many steps (0: never) is done after this one. */
bool loom_run_is_due(int64_t every, int64_t step);
bool loom_run_validates_after(const loom_trainer *trainer, int64_t step);
bool loom_run_samples_after(const loom_trainer *trainer, int64_t step);

/* A step's line in metrics.jsonl, and where it ends; NULL: there is none. */
const char *loom_run_find_metrics(const loom_mapping *file, int64_t step, const char **end);

/* What the files of rank 0 lack after a step. */
bool loom_run_find_owed(const loom_trainer *trainer, const char *metrics_path, const char *samples_path, int64_t step,
                        loom_run_owed *owed, loom_error *error);

/* Whether a run that has all its steps has their validation and sample too. */
bool loom_run_owes_nothing(const loom_trainer *trainer);

#endif
