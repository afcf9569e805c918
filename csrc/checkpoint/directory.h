/* The directory RUN/checkpoints: step-NNNNNNNN directories, `latest`, and the order in which they change so that a
 * crash at any instant leaves a whole checkpoint to find.
 *
 * Everything that is unfinished or about to be deleted is called ".tmp-..."; the next save removes what a crash left of
 * it. */
#ifndef LOOM_CHECKPOINT_DIRECTORY_H
#define LOOM_CHECKPOINT_DIRECTORY_H

#include "gptloom/error.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Finds the checkpoint that `path` stands for. `path` is a run, a checkpoints directory (both stand for its latest
 * checkpoint) or a checkpoint itself. If `latest` is missing or leads nowhere, the newest step is taken. `latest` is a
 * symbolic link or, if the file system has no links, a text file with the step's name. */
bool loom_checkpoint_find(const char *path, char *directory, size_t size, loom_error *error);

/* Prepares a run's checkpoints directory, if there is one, before training begins. It checks that the directory is ours
 * and allows all that a save does, removes what a killed save left, and makes sure that `latest` can be moved. If
 * `latest` is a directory, it is renamed to its step. */
bool loom_checkpoint_prepare(const char *checkpoints, loom_error *error);

/* Makes an empty directory for a checkpoint of `step` under `checkpoints`, which is made where it is missing, and
 * removes what earlier crashes left there. Its name has a random number: on a disk that ranks do not share, nothing is
 * taken for it. */
bool loom_checkpoint_begin(const char *checkpoints, int64_t step, char *temporary, size_t size, loom_error *error);

/* Gives the filled directory its final name and moves `latest` to it. Its content must be on disk before the call. Once
 * it has its final name it keeps it, whatever fails afterwards; the error then says so. After the call, in every case,
 * the caller deletes what exists under the temporary name: either the checkpoint that got no name, or an older one of
 * the same step that it replaced. */
bool loom_checkpoint_publish(const char *checkpoints, int64_t step, const char *temporary, loom_error *error);

/* Deletes old checkpoints so that `keep` are left, including that of step `good`, which is never deleted. A checkpoint
 * that cannot be deleted stays until the next call; this is no error. */
void loom_checkpoint_prune(const char *checkpoints, int64_t good, int keep);

/* Returns the path of a run's checkpoint of a given step. If there is none, the error lists the steps that exist. */
bool loom_checkpoint_of_step(const char *run, int64_t step, char *path, size_t size, loom_error *error);

/* Renames a run's checkpoints that are newer than `step` to abandoned-step-N, so that they are not found any more.
 * After that `latest` may lead nowhere, which stands for the newest remaining checkpoint. *n is the number of renamed
 * checkpoints, *oldest and *newest are the steps of the first and the last of them. */
bool loom_checkpoint_abandon(const char *run, int64_t step, int *n, int64_t *oldest, int64_t *newest,
                             loom_error *error);

/* Finds the newest checkpoint in the same directory that is older than this one. Returns false if there is none, or if
 * this one is not named step-N. */
bool loom_checkpoint_older(const char *directory, char *older, size_t size);

/* Exchanges the names of two directories: atomically if the file system can; otherwise by three renames, the first of
 * them to `spare`. */
bool loom_exchange_directories(const char *a, const char *b, const char *spare, loom_error *error);
bool loom_exchange_by_renames(const char *a, const char *b, const char *spare, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
