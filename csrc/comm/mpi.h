/* MPI beside another back end: for launching, for what is on host memory, and to find out which rank others wait for.
 * */
#ifndef LOOM_COMM_MPI_H
#define LOOM_COMM_MPI_H

#include "comm/backend.h"

/* What this rank answers from now on to others that ask: that it has put in operation `number` of another back end, in
 * `step`. */
void loom_comm_mpi_publish_progress(loom_comm *comm, loom_comm_op_id number, int64_t step);

/* The error of an operation of another back end that has taken so many seconds, too long: which ranks it waits for.
 * Sets comm->is_reporter. */
void loom_comm_mpi_find_stragglers(loom_comm *comm, const loom_comm_operation *operation, double seconds,
                                   loom_error *error);

#endif
