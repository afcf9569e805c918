/* One process at a time: a file that is locked (flock) while its maker lives and says who that is.
 *
 * On one machine the kernel's lock decides, which ends with its process. On a file system that several machines share it
 * may not reach the others, so the file also tells the host, the process and a heartbeat, which a thread renews: a lock
 * of another machine is taken over only when it has been watched and its heartbeat has stopped. How old that is says
 * nothing, as clocks differ. Two machines that take over the same stopped lock at once each look again whose it is. A file
 * that says something else is none of ours, and stays. (This has been tried with files that look as if another machine had
 * made them, not with two machines and NFS.) */
#ifndef LOOM_BASE_LOCK_H
#define LOOM_BASE_LOCK_H

#include "gptloom/error.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_lock loom_lock;

/* Seconds. */
typedef struct loom_lock_times {
    double heartbeat; /* between two heartbeats */
    double take_over; /* without a heartbeat, watched, after which a lock of another machine is taken over */
    double settle;    /* after a lock of another machine is taken over, before it is looked at again */
} loom_lock_times;

extern const loom_lock_times loom_lock_standard_times;

/* Who is told, in a line, whose lock has been taken over, and that a lock of another machine is being watched. */
typedef struct loom_lock_listener {
    void (*tell)(void *user, const char *line); /* NULL: nobody */
    void *user;
} loom_lock_listener;

/* Takes the lock, or fails and tells who has `what`. `times` NULL: the standard ones. */
bool loom_lock_take(loom_lock **lock, const char *path, const char *what, const loom_lock_times *times,
                    const loom_lock_listener *listener, loom_error *error);

/* False with who has it, once another has taken the lock over, as when this process was stopped for minutes: then
 * nothing that it guards may be written any more. */
bool loom_lock_is_held(const loom_lock *lock, loom_error *error);

/* Deletes the file, if it is still ours. NULL is allowed. */
void loom_lock_release(loom_lock *lock);

#ifdef __cplusplus
}
#endif
#endif
