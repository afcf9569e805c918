/* The directory RUN/checkpoints: step-NNNNNNNN directories, `latest`, and the order in which they change so that a
 * crash at any instant leaves a whole checkpoint to find.
 *
 * Everything unfinished or on its way out is called ".tmp-..."; the next save removes what a crash left of it. */
#ifndef LOOM_CHECKPOINT_DIRECTORY_H
#define LOOM_CHECKPOINT_DIRECTORY_H

#include "gptloom/error.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The checkpoint that `path` means: a run's, a checkpoints directory's latest, or the directory itself. Where `latest`
 * is missing or leads nowhere it is the newest step. `latest` is a symbolic link or, where the file system has none, a
 * text file with the step's name. */
bool loom_checkpoint_find(const char *path, char *directory, size_t size, loom_error *error);

/* Readies a run's checkpoints directory, if there is one, before anything is trained: it is ours, takes what a save does,
 * has nothing left from a killed save, and `latest` can be moved. A directory of that name is renamed to its step. */
bool loom_checkpoint_prepare(const char *checkpoints, loom_error *error);

/* Makes an empty directory for a checkpoint of `step` under `checkpoints`, which is made where it is missing, and
 * removes what earlier crashes left there. Its name has a random number: on a disk that ranks do not share, nothing is
 * taken for it. */
bool loom_checkpoint_begin(const char *checkpoints, int64_t step, char *temporary, size_t size, loom_error *error);

/* Gives the filled directory its name and moves `latest` to it. Before, what is in it must be on the disk. Once it
 * has its name it stays, whatever fails after: the error then says so. In every case what is then found under the
 * temporary name is to be deleted: a checkpoint that got no name, or one of the same step that it replaced. */
bool loom_checkpoint_publish(const char *checkpoints, int64_t step, const char *temporary, loom_error *error);

/* Deletes old checkpoints, so that `keep` are left with that of step `good`, which is never deleted. What cannot be
 * deleted stays for the next time: that is no reason to end a run. */
void loom_checkpoint_prune(const char *checkpoints, int64_t good, int keep);

/* The path of a run's checkpoint of a step; where there is none the error lists those that there are. */
bool loom_checkpoint_of_step(const char *run, int64_t step, char *path, size_t size, loom_error *error);

/* Renames a run's checkpoints that are newer than `step`, so that they are not found any more: abandoned-step-N. `latest`
 * may then lead nowhere, which means the newest that is left. Returns how many, with the oldest and the newest of them. */
bool loom_checkpoint_abandon(const char *run, int64_t step, int *n, int64_t *oldest, int64_t *newest,
                             loom_error *error);

/* The newest checkpoint beside this one that is older than it; false if there is none or this is no step-N. */
bool loom_checkpoint_older(const char *directory, char *older, size_t size);

/* Makes two directories change names. At once where the file system can; else by three renames, the first through
 * `spare`. */
bool loom_exchange_directories(const char *a, const char *b, const char *spare, loom_error *error);
bool loom_exchange_by_renames(const char *a, const char *b, const char *spare, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
