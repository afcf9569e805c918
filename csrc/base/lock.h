/* A lock for one process at a time. It is a file that is locked (flock) while the process that made it lives, and that
 * names this process.
 *
 * On one machine the kernel's lock decides; it ends with its process. On a file system that several machines share, the
 * kernel's lock may not be visible to the others. So the file also names the host and the process, and contains a
 * heartbeat that a thread renews. A lock of another machine is taken over only after it has been watched for a while in
 * which its heartbeat did not change. The age of the heartbeat proves nothing, because clocks differ. If two machines
 * take over the same stopped lock at once, each checks again who has it. A file with any other content is not ours and
 * is left alone. (This was tested with files that look as if another machine had made them, not with two machines and
 * NFS.) */
#ifndef LOOM_BASE_LOCK_H
#define LOOM_BASE_LOCK_H

#include "gptloom/error.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_lock loom_lock;

/* All times are in seconds. */
typedef struct loom_lock_times {
    double heartbeat; /* interval between two heartbeats */
    double take_over; /* how long a lock of another machine is watched without a heartbeat before it is taken over */
    double settle;    /* wait between taking over a lock of another machine and checking it again */
} loom_lock_times;

extern const loom_lock_times loom_lock_standard_times;

/* Receives one line when a lock is taken over from its holder, and when a lock of another machine is being watched. */
typedef struct loom_lock_listener {
    void (*tell)(void *user, const char *line); /* NULL: nobody */
    void *user;
} loom_lock_listener;

/* Takes the lock, or fails with an error that names who has `what`. If `times` is NULL the default times are used. */
bool loom_lock_take(loom_lock **lock, const char *path, const char *what, const loom_lock_times *times,
                    const loom_lock_listener *listener, loom_error *error);

/* Returns false, with an error that names the new holder, once another process has taken the lock over (for example
 * because this process was stopped for minutes). Then nothing that the lock protects may be written any more. */
bool loom_lock_is_held(const loom_lock *lock, loom_error *error);

/* Deletes the file, if it is still ours. NULL is allowed. */
void loom_lock_release(loom_lock *lock);

#ifdef __cplusplus
}
#endif
#endif
