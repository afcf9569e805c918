/* What the communicator's back ends share: an operation, and the functions that a back end is. */
#ifndef LOOM_COMM_BACKEND_H
#define LOOM_COMM_BACKEND_H

#include "comm/collectives.h"

/* How many times the limit a long timeout is, for ranks that others wait for while they work by themselves. */
enum { LOOM_COMM_LONG_TIMEOUT = 10 };

typedef enum loom_comm_kind {
    LOOM_ALL_REDUCE,
    LOOM_REDUCE_SCATTER,
    LOOM_ALL_GATHER,
    LOOM_BROADCAST,
    LOOM_EXCHANGE,
    LOOM_BARRIER,
    LOOM_FINAL_BARRIER /* of the end: in a communicator of its own, so that it cannot match another operation */
} loom_comm_kind;

/* The contract of each is in comm/collectives.h. A broadcast's buffer is `in` on the root and `out` on all. */
typedef struct loom_comm_operation {
    loom_comm_kind kind;
    loom_dtype dtype;
    bool host; /* on host memory */
    void *out;
    const void *in;
    int64_t count;      /* of an exchange: received */
    int64_t send_count; /* of an exchange */
    int from, to;       /* of an exchange; `from` is a broadcast's root */
    loom_comm_op_id number;
} loom_comm_operation;

/* A communicator of any back end begins with it. */
typedef struct loom_comm_base {
    loom_comm comm; /* first */
    loom_comm_op_id posted;
    bool failed;        /* as far as the caller's thread knows */
    loom_error failure; /* then */
    bool times_waiting; /* the back end itself adds to the traffic's seconds_waited */
    loom_error agreed;  /* what loom_comm_all() said last: no failure of the communicator */
} loom_comm_base;

typedef struct loom_comm_backend {
    bool (*attach)(loom_comm *comm, size_t staging, loom_error *error);
    /* Puts an operation on device memory in. */
    void (*post)(loom_comm *comm, const loom_comm_operation *operation, loom_stream *after);
    bool (*wait)(loom_comm *comm, loom_comm_op_id op_id, loom_stream *stream, loom_error *error);
    bool (*synchronize)(loom_comm *comm, loom_stream *stream, loom_error *error);
    /* Runs an operation on host memory to its end. */
    bool (*run)(loom_comm *comm, const loom_comm_operation *operation, loom_error *error);
    /* Ends all ranks as far as it can; may return. `quiet`: another rank does it, and this one only if that fails. */
    void (*abort)(loom_comm *comm, bool quiet, int status);
    /* Frees the communicator too. */
    void (*close)(loom_comm *comm);
} loom_comm_backend;

static inline loom_comm_base *loom_comm_base_of(const loom_comm *comm) {
    return (loom_comm_base *)(uintptr_t)comm;
}

/* Open a communicator of each back end. `control` is another one that connects the same ranks, or NULL: nccl uses it
 * for what is on host memory, and closes it, also where it cannot be opened itself. self and mpi are given none. */
bool loom_comm_self_open(loom_comm **comm, const loom_comm_options *options, loom_comm *control, loom_error *error);
bool loom_comm_mpi_open(loom_comm **comm, const loom_comm_options *options, loom_comm *control, loom_error *error);
bool loom_comm_nccl_open(loom_comm **comm, const loom_comm_options *options, loom_comm *control, loom_error *error);

/* Whether NCCL can be loaded, and the id's file be named. */
bool loom_comm_nccl_check(const loom_comm_options *options, loom_error *error);

/* Keeps a failure, of this rank's alone or of all (the first counts), and returns false with it as the error. */
bool loom_comm_failed(loom_comm *comm, const loom_error *why, loom_error *error);

/* "all_reduce 17 (1000 of fp32)", in a buffer of `size`. */
const char *loom_comm_describe(char *text, size_t size, const loom_comm_operation *operation);

/* "rank 3", "ranks 1, 2 and 5" of those marked, in a buffer of 128 at least: a few are named, the rest counted. */
void loom_comm_name_ranks(char *text, size_t size, const bool *marked, int ranks);
/* The same of those that are not. */
void loom_comm_name_missing(char *text, size_t size, const bool *there, int ranks);

/* Rows of `count` elements that an operation reads and writes on this rank: 0, 1 or the number of ranks. */
int loom_comm_rows_in(const loom_comm *comm, const loom_comm_operation *operation);
int loom_comm_rows_out(const loom_comm *comm, const loom_comm_operation *operation);

#endif
