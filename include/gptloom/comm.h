/* The communicator: how the ranks of a run (processes, one per device) find each other. What
 * they do together is the trainer's. One thread of a process uses a communicator. */
#ifndef GPTLOOM_COMM_H
#define GPTLOOM_COMM_H

#include "gptloom/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Back ends:
 *   self  one rank; no library
 *   mpi   MPI (Open MPI) through libgptloom_mpi.so, which is found beside the program, in ../lib, or where LOOM_MPI
 *         says. Of every device, by way of pinned host memory if that is not the host's; a thread of its own makes
 *         MPI progress. Several ranks may share a GPU
 *   nccl  NVIDIA's library between GPUs, one rank each: libnccl.so.2, or what LOOM_NCCL says
 *   auto  what this process was started by: under mpirun or srun mpi, under torchrun (RANK and WORLD_SIZE) nccl, else
 *         self */
typedef struct loom_comm_options {
    const char *backend;     /* NULL is "auto" */
    double timeout;          /* seconds that an operation may wait for the other ranks; 0 takes 600 */
    const char *mpi_library; /* a path; NULL: see above */
    const char *nccl_library;
    const char *id_file; /* NCCL's id goes through this file, which all ranks see, instead of TCP; NULL: LOOM_NCCL_ID */
} loom_comm_options;

/* What has gone through a communicator so far, of this rank. */
typedef struct loom_comm_traffic {
    int64_t operations;
    int64_t bytes; /* that this rank handed in: an operation's input (of a broadcast, of the root alone) */
    /* Seconds that the host waited for operations. On the nccl back end: seconds in which the device's streams stood
     * still for them, or for the host that waited, as of the last synchronize. */
    double seconds_waited;
} loom_comm_traffic;

typedef struct loom_comm {
    const char *name;      /* "self", "mpi", "nccl" */
    char description[256]; /* "MPI (Open MPI 4.1.4), 4 ranks" */
    int rank, size;
    int local_rank, local_size; /* among the ranks of this machine */
    loom_device *device;        /* NULL before attach */
    double timeout;
    int64_t step; /* that this rank is at, for errors; -1 at first. The caller's to set */
    /* Operations may wait ten times the timeout, while ranks measure or write files by themselves. With MPI, a rank
     * that does not answer at all is still given up after the normal one. The caller's to set. */
    bool long_timeout;
    bool is_reporter; /* after a failure of all: whether this rank is the one that prints it */
    loom_comm_traffic traffic;
    const struct loom_comm_backend *backend;
} loom_comm;

/* Finds the other ranks and fills rank, size, local_rank and local_size. Errors: a library that is not there (and how
 * to get it), variables of the environment that make no sense, ranks that do not come within the time limit, or that
 * srun or another launcher has started but that do not find each other (but for "self", which does not ask). */
bool loom_comm_open(loom_comm **comm, const loom_comm_options *options, loom_error *error);

/* Collective unless something has failed: returns when all ranks have called it, with MPI after a little more than
 * twice the timeout at most. NULL is allowed. */
void loom_comm_close(loom_comm *comm);

/* Ends all ranks, and this process with the status. Prints "gptloom: " and the error (NULL: nothing), with the rank in
 * front where it is one rank's own, in one line to stderr; where a failure is all ranks', only the
 * reporter (`is_reporter`) prints it. `comm` is NULL in a process that was started as a rank and could not open one. */
void loom_comm_abort(loom_comm *comm, const loom_error *why, int status) __attribute__((noreturn));

/* For a process that is about to end with an error: where its environment says that it is a rank other than rank 0,
 * waits two seconds. An error that occurs on all ranks (a file that is missing) is printed by rank 0, whose end ends
 * the others. */
void loom_defer_error_to_rank0(void);

/* Whether this process was started as one of several ranks, by mpirun, srun or torchrun. */
bool loom_launched(void);

#ifdef __cplusplus
}
#endif
#endif
