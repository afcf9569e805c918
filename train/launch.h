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
    void (*asked_again)(
        void *user); /* Ctrl-C came again while ranks save: says what would be lost if they were ended */
} loom_ranks_hooks;

/* Starts `ranks` processes of argv on this machine by mpirun, and waits for them. mpirun's standard streams are this
 * process's, but the line of loom_comm_abort() comes here, for the caller to print when nothing follows.
 *
 * SIGINT, SIGTERM, SIGHUP or SIGUSR1 asks the ranks to save and end, by a SIGUSR1 to each, or several; they catch it before
 * they open a communicator. Ranks that have not come to that are ended, by all but SIGUSR1. A second SIGTERM ends them at
 * once; of SIGINT the second one calls the hook (`hooks` may be NULL), and the third one ends them. If this process is
 * killed, they are too. False if they could not be started: mpirun is missing (and how to get it). */
bool loom_launch_ranks(int ranks, char *const argv[], const loom_ranks_hooks *hooks, loom_ranks_end *end,
                       loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
