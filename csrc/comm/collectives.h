/* Collective operations: how the ranks of a run (processes, one per device) add up, share and exchange what lies on
 * their devices.
 *
 *     loom_comm_open()    finds the other ranks; rank, size and local rank are known
 *     loom_device_open()  which may depend on the local rank
 *     loom_comm_attach()  from here on there are operations on this device's buffers
 *
 * An operation is put into the communicator and goes on beside the device's streams: it begins after what the stream
 * `after` holds at the call, and nothing waits for it before loom_comm_wait(). Until then its input may not be written
 * and its output not be touched. Operations run in the order in which they were put in; any number may be outstanding.
 *
 *     loom_comm_op_id sum = loom_comm_all_reduce(comm, NULL, gradient, gradient, n, LOOM_F32);
 *     ...                                            more work in the default stream, which runs beside it
 *     loom_comm_wait(comm, sum, NULL, error);        the default stream's next work comes after the sum
 *
 * Every rank calls the same operations in the same order with the same counts and types: that is what a number of an
 * operation in an error refers to. An operation cannot fail where it is put in (one of a wrong shape is a programmer's
 * mistake); failures are kept, what follows is not run, and the next wait reports it. After a failure the communicator
 * is good for loom_comm_abort() and loom_comm_close() alone.
 *
 * One thread of a process uses a communicator. Operations cannot be captured (loom_device's graph_begin). */
#ifndef LOOM_COMM_COLLECTIVES_H
#define LOOM_COMM_COLLECTIVES_H

#include "gptloom/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The number of an operation, from 1. */
typedef int64_t loom_comm_op_id;

/* Prepares for operations on the device's buffers; collective. `staging` is how many bytes of pinned memory an
 * operation is staged through (0 takes 8 MiB); of no use where the device's memory is the host's, or NCCL's. The device
 * must be closed after the communicator. */
bool loom_comm_attach(loom_comm *comm, loom_device *device, size_t staging, loom_error *error);

/* ------------------------------------------------------------------------------------------------- on device buffers
 *
 * Buffers are the device's, of `count` contiguous elements unless said otherwise, aligned to their type. Counts may be
 * any, 0 too, but below 2^31 for what is reduce-scattered or gathered. Sums are of fp32, bf16, fp64, int32 and int64,
 * and take place in the type, but in fp32 for bf16, rounded to nearest even after each addition: of N ranks an error of
 * up to N - 1 roundings, in an order that is the back end's and the same in all runs of one kind (not for other numbers
 * of ranks: sums that must not depend on it are made of exchanges, or of terms of which at most one is not 0). All
 * ranks get the same bits. What only moves takes all types. */

/* out (count) = the sum of all ranks' in (count). In place if out == in; else they do not overlap. */
loom_comm_op_id loom_comm_all_reduce(loom_comm *comm, loom_stream *after, void *out, const void *in, int64_t count,
                                     loom_dtype dtype);

/* out (count) = rank's part of the sum of all ranks' in (size, count). In place if out == in + rank * count. */
loom_comm_op_id loom_comm_reduce_scatter(loom_comm *comm, loom_stream *after, void *out, const void *in, int64_t count,
                                         loom_dtype dtype);

/* out (size, count) = every rank's in (count). In place if in == out + rank * count. */
loom_comm_op_id loom_comm_all_gather(loom_comm *comm, loom_stream *after, void *out, const void *in, int64_t count,
                                     loom_dtype dtype);

/* buffer (count) of all ranks = that of rank `root`. */
loom_comm_op_id loom_comm_broadcast(loom_comm *comm, loom_stream *after, void *buffer, int64_t count, loom_dtype dtype,
                                    int root);

/* Sends in (send_count) to rank `to` and receives out (receive_count) from rank `from`; -1 is no rank, and a rank
 * without part calls it with two of them. Each receives what is sent to it in the same exchange: counts agree. The two
 * do not overlap. */
loom_comm_op_id loom_comm_exchange(loom_comm *comm, loom_stream *after, void *out, int64_t receive_count, int from,
                                   const void *in, int64_t send_count, int to, loom_dtype dtype);

/* What is put into `stream` from now on comes after the operation (and those before it). On the mpi back end the host
 * waits. False if an operation failed: the error names it, its number and, as far as that can be known, the rank. */
bool loom_comm_wait(loom_comm *comm, loom_comm_op_id op_id, loom_stream *stream, loom_error *error);

/* The host waits for what the stream holds, as the device's own synchronize, but no longer than the time limit for
 * operations that the stream waits for: with many ranks, the way in which the host waits for a step. */
bool loom_comm_synchronize(loom_comm *comm, loom_stream *stream, loom_error *error);

/* ---------------------------------------------------------------------------------------------------- on host memory
 *
 * Small and blocking: for the start, and for what is said once a step. On the nccl back end they come after attach. */

bool loom_comm_barrier(loom_comm *comm, loom_error *error);

/* Zeroed memory for a host operation; the caller frees it. NULL comes with an error: this rank cannot take part, and
 * the communicator has failed, as its next operation would be matched with the one that the others are in. */
void *loom_comm_memory(loom_comm *comm, size_t bytes, loom_error *error);

/* data (bytes) of all ranks = that of rank `root`. */
bool loom_comm_host_broadcast(loom_comm *comm, void *data, size_t bytes, int root, loom_error *error);

/* all (size, bytes) = every rank's mine (bytes). */
bool loom_comm_host_gather(loom_comm *comm, void *all, const void *mine, size_t bytes, loom_error *error);

/* values (count) = the sum over ranks. */
bool loom_comm_host_sum(loom_comm *comm, int64_t *values, int64_t count, loom_error *error);

/* Whether all ranks have the same value, e.g. a hash, of as many bytes on each, of what `what` says ("the
 * configuration"). If not, all ranks get the same error, which names the first rank that differs from rank 0, and
 * `is_reporter` is true on rank 0. */
bool loom_comm_agree(loom_comm *comm, const char *what, const void *value, size_t bytes, loom_error *error);

/* Whether all ranks come to it with `ok`; one that does not has said why in its error. If not, all ranks get the same
 * error, that of the first such rank with "rank N: " before it; ended by loom_comm_abort(), rank 0 is the one that
 * prints it. The communicator itself has not failed, and goes on. */
bool loom_comm_all(loom_comm *comm, bool ok, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
