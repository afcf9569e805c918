/* MPI beside another back end: for launching, for what is on host memory, and to find out which rank others wait for. */
#ifndef LOOM_COMM_MPI_H
#define LOOM_COMM_MPI_H

#include "comm/backend.h"

/* Tells other ranks, when they ask, that this one has put in operation `number` of another back end, in `step`. */
void loom_comm_mpi_tell(loom_comm *comm, loom_comm_op_id number, int64_t step);

/* The error of an operation of another back end that has taken so many seconds, too long: which ranks it waits for. Sets
 * comm->is_reporter. */
void loom_comm_mpi_blame(loom_comm *comm, const loom_comm_operation *operation, double seconds, loom_error *error);

#endif
