/* Starting ranks on this machine by mpirun. */
#ifndef LOOM_TRAIN_LAUNCH_H
#define LOOM_TRAIN_LAUNCH_H

#include "gptloom/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How ranks that were started here have ended. */
typedef struct loom_ranks_end {
    int status;       /* mpirun's; 128 + N if a signal N ended it, or asked for the end (SIGUSR1, for a pause: 0) */
    bool was_ended;   /* by a signal, and not by themselves: */
    int rank, signal; /* that ended a rank, and which; -1 and 0 if that is not known */
    int unwritten;    /* errno if what they print could not be written to stdout, which ends nothing; else 0 */
    loom_error line;  /* what loom_comm_abort() said, or else how they ended; "" if all is well */
} loom_ranks_end;

typedef struct loom_ranks_hooks {
    void *user;
    /* Ctrl-C came again while ranks save: says what would be lost if they were ended now. */
    void (*asked_again)(void *user);
} loom_ranks_hooks;

/* Starts `ranks` processes of argv on this machine by mpirun, and waits for them. mpirun's standard streams are this
 * process's. Only the line of loom_comm_abort() is returned, for the caller to print last.
 *
 * The first SIGINT, SIGTERM, SIGHUP or SIGUSR1 is passed on as SIGUSR1, which asks ranks to save and end. They catch it
 * before they open a communicator; ranks that have not come so far are killed, unless it was SIGUSR1. A second SIGTERM
 * or a third SIGINT kills the ranks at once; the second SIGINT calls the hook (`hooks` may be NULL). If this process is
 * killed, they are too. False if they could not be started: mpirun is missing (and how to get it). */
bool loom_launch_ranks(int ranks, char *const argv[], const loom_ranks_hooks *hooks, loom_ranks_end *end,
                       loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
