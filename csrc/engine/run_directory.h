/* A run's directory while a run is in it: whose it is, that no other run is in it, and that it takes what a run writes.
 * All this is found out before anything is trained. Only rank 0 opens it. */
#ifndef LOOM_ENGINE_RUN_DIRECTORY_H
#define LOOM_ENGINE_RUN_DIRECTORY_H

#include "gptloom/train.h"

#include "base/lock.h"

/* Makes the directory where it is missing; refuses one of another user and one that another run is in; deletes what
 * killed runs have left unfinished; tries files and directories in it; readies its checkpoints. */
bool loom_run_directory_open(loom_lock **lock, const char *out, const loom_train_observer *observer, loom_error *error);

/* Cuts samples and metrics back to those of the first `step` steps: later ones will be made again. */
bool loom_run_cut_samples(const char *path, int64_t step, loom_error *error);
bool loom_run_cut_metrics(const char *path, int64_t step, loom_error *error);

/* The step of the last line of a run's metrics that has one; -1: there is none. */
int64_t loom_run_last_step(const char *out);

#endif
