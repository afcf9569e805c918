/* NCCL as a back end: operations go into a stream of their own, and other streams wait for events in it. The host never
 * waits in a call that cannot end: NCCL's calls do not block, and a stream is waited for by asking whether it is done,
 * so that an operation that takes too long is found out.
 *
 * Under mpirun, MPI is its control communicator: it carries NCCL's id and what is on host memory, finds out which rank
 * others wait for, and ends all. Else the id goes by TCP or by a file. */
#include "comm/backend.h"

#include "base/clock.h"
#include "comm/mpi.h"
#include "comm/nccl_api.h"
#include "comm/rendezvous.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MARKED = 64, SPINS = 100, SECONDS_TO_END = 10, ID_FILE_BYTES = 1024 };
static const double seconds_between_looks = 0.01, seconds_of_pause = 20e-6;

/* A time in which a stream may have stood still for an operation. */
typedef struct stall {
    loom_event *begin, *end;
} stall;

typedef struct nccl {
    loom_comm_base base; /* first */
    const loom_nccl_api *api;
    loom_comm *control; /* MPI, or NULL where mpirun did not start us */
    char id_file[ID_FILE_BYTES];
    loom_rendezvous *rendezvous; /* while ranks join, on rank 0: it may have refused some */
    void *group;                 /* NCCL's communicator; NULL before attach and after a failure */
    loom_stream *stream;
    loom_event *begun[MARKED], *done[MARKED]; /* before and behind operation n, at n % MARKED */
    loom_event *end;                          /* of what the host waits for */
    loom_comm_operation recent[MARKED];
    loom_comm_op_id oldest; /* that may not be done; before it all are */
    double oldest_since;    /* when it was seen to wait for other ranks; 0: it was not */
    double looked;
    stall *stalls; /* the first `stalled` are not added up yet; the others are there to be taken */
    int stalled, n_stalls;
    stall host;  /* of the host's operations */
    void *place; /* on the device, for what is on host memory */
    size_t place_bytes;
    loom_stream *aside; /* always empty: where it is now */
} nccl;

static nccl *nccl_of(const loom_comm *comm) {
    return (nccl *)(uintptr_t)comm;
}

/* ------------------------------------------------------------------------------------------------------------- failures */

/* Kernels that wait for other ranks end when their communicator is aborted. */
static bool give_up(nccl *n, const loom_error *why, loom_error *error) {
    void *group = n->group;
    n->group = NULL;
    if (group) n->api->CommAbort(group);
    return loom_comm_failed(&n->base.comm, why, error);
}

static bool failed(nccl *n, int result, const char *what, loom_error *error) {
    loom_error why;
    /* An error that another rank has brought about is that one's to print: it may end this one meanwhile. */
    if (result == LOOM_NCCL_REMOTE_ERROR) loom_error_grace_period();
    const char *detail = n->group ? n->api->GetLastError(n->group) : NULL;
    const bool sharing = result == LOOM_NCCL_INVALID_USAGE && n->base.comm.local_size > 1;
    loom_fail(&why, "rank %d, %s: NCCL: %s%s%s%s", n->base.comm.rank, what, n->api->GetErrorString(result),
              detail && *detail ? ": " : "", detail && *detail ? detail : "",
              sharing ? " (NCCL wants a GPU for each rank; with --comm mpi ranks may share one)" : "");
    return give_up(n, &why, error);
}

/* Seconds that others may take. */
static double limit_of(const nccl *n) {
    return n->base.comm.timeout * (n->base.comm.long_timeout ? LOOM_COMM_LONG_TIMEOUT : 1);
}

/* Waits for a call that returned "in progress". */
static bool settle(nccl *n, int result, const char *what, loom_error *error) {
    const double limit = limit_of(n), end = loom_seconds_now() + limit;
    while (result == LOOM_NCCL_IN_PROGRESS) {
        const int asked = n->api->CommGetAsyncError(n->group, &result);
        if (asked != LOOM_NCCL_SUCCESS) result = asked;
        if (result != LOOM_NCCL_IN_PROGRESS) break;
        if (n->rendezvous) loom_rendezvous_turn(n->rendezvous, 0);
        if (loom_seconds_now() > end) {
            loom_error why;
            loom_fail(&why,
                      "rank %d: NCCL was not done with %s within %g s: other ranks did not come to it, or cannot be "
                      "reached (NCCL_DEBUG=INFO tells more)%s",
                      n->base.comm.rank, what, limit, n->rendezvous ? loom_rendezvous_refused(n->rendezvous) : "");
            return give_up(n, &why, error);
        }
        loom_pause(seconds_of_pause);
    }
    return result == LOOM_NCCL_SUCCESS || failed(n, result, what, error);
}

static bool look_at_group(nccl *n, loom_error *error) {
    int result = LOOM_NCCL_SUCCESS;
    const int asked = n->api->CommGetAsyncError(n->group, &result);
    if (asked != LOOM_NCCL_SUCCESS) result = asked;
    n->looked = loom_seconds_now();
    return result == LOOM_NCCL_SUCCESS || result == LOOM_NCCL_IN_PROGRESS ||
           failed(n, result, "between operations", error);
}

static bool timed_out(nccl *n, const loom_comm_operation *o, double seconds, loom_error *error) {
    loom_comm *comm = &n->base.comm;
    loom_error why;
    char what[128];
    if (n->control) {
        loom_comm_mpi_find_stragglers(n->control, o, seconds, &why);
        comm->is_reporter = n->control->is_reporter;
    } else
        loom_fail(&why,
                  "rank %d waited %g s in step %lld for other ranks to come to %s; the one that says nothing of the "
                  "kind hangs",
                  comm->rank, seconds, (long long)comm->step, loom_comm_describe(what, sizeof what, o));
    return give_up(n, &why, error);
}

/* Whether the oldest operation that is not done, but could be as far as this rank goes, waits for too long. */
static bool look_at_operations(nccl *n, loom_error *error) {
    loom_device *device = n->base.comm.device;
    const loom_comm_op_id posted = n->base.posted;
    bool reached;
    if (n->oldest + MARKED <= posted) n->oldest = posted - MARKED + 1, n->oldest_since = 0;
    for (; n->oldest <= posted; n->oldest++, n->oldest_since = 0) {
        if (!device->event_query(device, n->done[n->oldest % MARKED], &reached, error)) return false;
        if (!reached) break;
    }
    if (n->oldest > posted) return true;
    if (!device->event_query(device, n->begun[n->oldest % MARKED], &reached, error)) return false;
    const double now = loom_seconds_now();
    const double limit = limit_of(n);
    if (!reached)
        n->oldest_since = 0;
    else if (n->oldest_since == 0)
        n->oldest_since = now;
    return n->oldest_since == 0 || now < n->oldest_since + limit ||
           timed_out(n, &n->recent[n->oldest % MARKED], limit, error);
}

/* ----------------------------------------------------------------------------------------------------------- operations */

static int type_of(loom_dtype dtype) {
    switch (dtype) {
    case LOOM_F32: return LOOM_NCCL_FLOAT32;
    case LOOM_BF16: return LOOM_NCCL_BFLOAT16;
    case LOOM_F64: return LOOM_NCCL_FLOAT64;
    case LOOM_I32: return LOOM_NCCL_INT32;
    case LOOM_I64: return LOOM_NCCL_INT64;
    case LOOM_F16: break;
    }
    return LOOM_NCCL_FLOAT16;
}

/* A send and a receive at once: in one group, or both ranks would wait in their sends. */
static int exchange(nccl *n, const loom_comm_operation *o) {
    const loom_nccl_api *api = n->api;
    const int type = type_of(o->dtype);
    int sent = LOOM_NCCL_SUCCESS, received = LOOM_NCCL_SUCCESS;
    const int started = api->GroupStart();
    if (started != LOOM_NCCL_SUCCESS) return started;
    if (o->to >= 0 && o->send_count > 0)
        sent = api->Send(o->in, (size_t)o->send_count, type, o->to, n->group, n->stream);
    if (o->from >= 0 && o->count > 0)
        received = api->Recv(o->out, (size_t)o->count, type, o->from, n->group, n->stream);
    const int ended = api->GroupEnd();
    return sent != LOOM_NCCL_SUCCESS && sent != LOOM_NCCL_IN_PROGRESS           ? sent
           : received != LOOM_NCCL_SUCCESS && received != LOOM_NCCL_IN_PROGRESS ? received
                                                                                : ended;
}

static int call(nccl *n, const loom_comm_operation *o) {
    const loom_nccl_api *api = n->api;
    const int type = type_of(o->dtype);
    const size_t count = (size_t)o->count;
    if (o->kind == LOOM_EXCHANGE) return o->count > 0 || o->send_count > 0 ? exchange(n, o) : LOOM_NCCL_SUCCESS;
    if (count == 0) return LOOM_NCCL_SUCCESS;
    switch (o->kind) {
    case LOOM_ALL_REDUCE: return api->AllReduce(o->in, o->out, count, type, LOOM_NCCL_SUM, n->group, n->stream);
    case LOOM_REDUCE_SCATTER: return api->ReduceScatter(o->in, o->out, count, type, LOOM_NCCL_SUM, n->group, n->stream);
    case LOOM_ALL_GATHER: return api->AllGather(o->in, o->out, count, type, n->group, n->stream);
    case LOOM_BROADCAST: return api->Broadcast(o->in, o->out, count, type, o->from, n->group, n->stream);
    case LOOM_EXCHANGE:
    case LOOM_BARRIER:
    case LOOM_FINAL_BARRIER: break;
    }
    return LOOM_NCCL_SUCCESS;
}

static void post(loom_comm *comm, const loom_comm_operation *o, loom_stream *after) {
    nccl *n = nccl_of(comm);
    loom_device *device = comm->device;
    const int place = (int)(o->number % MARKED);
    char what[128];
    if (n->control) loom_comm_mpi_publish_progress(n->control, o->number, comm->step);
    n->recent[place] = *o;
    device->stream_wait_stream(device, n->stream, after);
    device->event_record(device, n->begun[place], n->stream);
    settle(n, call(n, o), loom_comm_describe(what, sizeof what, o), NULL);
    device->event_record(device, n->done[place], n->stream);
}

/* A free stall, or NULL; as many are kept as a step needs. */
static stall *take_stall(nccl *n, loom_error *error) {
    loom_device *device = n->base.comm.device;
    if (n->stalled == n->n_stalls) {
        stall fresh = {NULL, NULL};
        stall *larger = realloc(n->stalls, ((size_t)n->n_stalls + 1) * sizeof *larger);
        if (!larger) return loom_fail(error, "no memory to time %d operations", n->n_stalls + 1), NULL;
        n->stalls = larger;
        if (!device->timed_event_open(device, &fresh.begin, error) ||
            !device->timed_event_open(device, &fresh.end, error)) {
            device->event_close(device, fresh.begin);
            return NULL;
        }
        n->stalls[n->n_stalls++] = fresh;
    }
    return &n->stalls[n->stalled++];
}

/* Adds up stalls that have come to their end. */
static bool add_stalls(nccl *n, loom_error *error) {
    loom_device *device = n->base.comm.device;
    for (int i = 0; i < n->stalled;) {
        bool reached;
        double seconds;
        const stall s = n->stalls[i];
        if (!device->event_query(device, s.end, &reached, error)) return false;
        if (!reached) {
            i++;
            continue;
        }
        if (!device->event_elapsed(device, s.begin, s.end, &seconds, error)) return false;
        n->base.comm.traffic.seconds_waited += seconds;
        n->stalls[i] = n->stalls[--n->stalled];
        n->stalls[n->stalled] = s;
    }
    return true;
}

/* The stream waits on the device, and how long is found out when it is done. */
static bool wait(loom_comm *comm, loom_comm_op_id op_id, loom_stream *stream, loom_error *error) {
    nccl *n = nccl_of(comm);
    loom_device *device = comm->device;
    if (!look_at_group(n, error)) return false;
    if (op_id <= 0) return true;
    const stall *s = take_stall(n, error);
    if (!s) return false;
    device->event_record(device, s->begin, stream);
    device->stream_wait_event(device, stream, n->done[op_id % MARKED]);
    device->event_record(device, s->end, stream);
    return true;
}

static bool synchronize(loom_comm *comm, loom_stream *stream, loom_error *error) {
    nccl *n = nccl_of(comm);
    loom_device *device = comm->device;
    bool reached = false;
    device->event_record(device, n->end, stream);
    for (int looks = 0;; looks++) {
        if (!device->event_query(device, n->end, &reached, error)) return false;
        if (reached) break;
        if (loom_seconds_now() > n->looked + seconds_between_looks &&
            (!look_at_group(n, error) || !look_at_operations(n, error)))
            return false;
        if (looks >= SPINS) loom_pause(seconds_of_pause);
    }
    return device->synchronize(device, stream, error) && add_stalls(n, error);
}

/* Makes room on the device for what is on host memory: a step takes as much as the one before. */
static bool has_place(nccl *n, size_t bytes, loom_error *error) {
    loom_device *device = n->base.comm.device;
    if (bytes <= n->place_bytes) return true;
    if (n->place) device->release(device, n->place, n->place_bytes);
    n->place = NULL;
    n->place_bytes = 0;
    if (!device->allocate(device, &n->place, bytes, error)) return false;
    n->place_bytes = bytes;
    return true;
}

/* What is on host memory takes the way over the device where there is no control communicator. A barrier is a sum of
 * one number. */
static bool run_on_device(nccl *n, const loom_comm_operation *o, loom_error *error) {
    loom_comm *comm = &n->base.comm;
    loom_device *device = comm->device;
    if (!device) return loom_fail(error, "--comm nccl: ranks cannot speak before they have a device");
    loom_comm_operation there = *o;
    if (o->kind == LOOM_BARRIER) there.kind = LOOM_ALL_REDUCE, there.dtype = LOOM_I32, there.count = 1;
    const size_t row = (size_t)there.count * loom_dtype_size(there.dtype);
    const size_t bytes = row * (o->kind == LOOM_ALL_GATHER ? (size_t)comm->size : 1);
    if (!has_place(n, bytes, error)) return false;
    char *in = (char *)n->place + (o->kind == LOOM_ALL_GATHER ? (size_t)comm->rank * row : 0);
    const int32_t zero = 0;
    device->copy(device, n->stream, in, o->kind == LOOM_BARRIER ? &zero : o->in, row, LOOM_HOST_TO_DEVICE);
    there.in = in;
    there.out = n->place;
    post(comm, &there, n->stream);
    bool ok = !n->base.failed || loom_fail(error, "%s", n->base.failure.message);
    /* The copy, to memory that is not pinned, would wait for the operation without a limit. */
    ok = ok && synchronize(comm, n->stream, error);
    if (ok && o->kind != LOOM_BARRIER) {
        device->copy(device, n->stream, o->out, n->place, bytes, LOOM_DEVICE_TO_HOST);
        ok = device->synchronize(device, n->stream, error);
    }
    return ok;
}

/* The operation has the number that it has here, and one of MPI's own there. */
static bool run_by_control(nccl *n, const loom_comm_operation *o, loom_error *error) {
    loom_comm *comm = &n->base.comm;
    loom_comm_operation there = *o;
    loom_error why;
    there.number = ++loom_comm_base_of(n->control)->posted;
    n->control->long_timeout = comm->long_timeout;
    loom_comm_mpi_publish_progress(n->control, o->number, comm->step);
    if (comm->device) {
        n->recent[o->number % MARKED] = *o;
        comm->device->event_record(comm->device, n->begun[o->number % MARKED], n->stream);
        comm->device->event_record(comm->device, n->done[o->number % MARKED], n->stream);
    }
    if (n->control->backend->run(n->control, &there, &why)) return true;
    comm->is_reporter = n->control->is_reporter;
    return give_up(n, &why, error);
}

/* While the host waits the device goes on with what it has: time is lost only from when it has nothing left. */
static bool run(loom_comm *comm, const loom_comm_operation *o, loom_error *error) {
    nccl *n = nccl_of(comm);
    loom_device *device = comm->device;
    bool idle;
    double seconds = 0;
    if (!device) return n->control ? run_by_control(n, o, error) : run_on_device(n, o, error);
    device->event_record(device, n->host.begin, NULL);
    if (!(n->control ? run_by_control(n, o, error) : run_on_device(n, o, error))) return false;
    if (!device->event_query(device, n->host.begin, &idle, error)) return false;
    if (!idle) return true;
    device->event_record(device, n->host.end, n->aside);
    if (!device->event_synchronize(device, n->host.end, error) ||
        !device->event_elapsed(device, n->host.begin, n->host.end, &seconds, error))
        return false;
    if (seconds > 0) comm->traffic.seconds_waited += seconds;
    return true;
}

/* ----------------------------------------------------------------------------------------------------- open, attach, close */

/* Gives rank 0's bytes, an even number of them, to all ranks. */
static bool broadcast_by_control(nccl *n, void *data, size_t bytes, loom_error *error) {
    const loom_comm_operation o = {.kind = LOOM_BROADCAST,
                                   .dtype = LOOM_F16,
                                   .host = true,
                                   .out = data,
                                   .in = data,
                                   .count = (int64_t)bytes / 2,
                                   .number = ++loom_comm_base_of(n->control)->posted};
    return n->control->backend->run(n->control, &o, error);
}

static bool share_id(nccl *n, loom_nccl_id *id, loom_error *error) {
    loom_comm *comm = &n->base.comm;
    const int result = comm->rank == 0 ? n->api->GetUniqueId(id) : LOOM_NCCL_SUCCESS;
    if (result != LOOM_NCCL_SUCCESS) return failed(n, result, "ncclGetUniqueId", error);
    if (n->control) return broadcast_by_control(n, id, sizeof *id, error);
    if (*n->id_file)
        return loom_share_by_file(n->id_file, id, sizeof *id, comm->rank, comm->size, comm->timeout, error);
    const loom_rank_variables v = {comm->rank, comm->size, comm->local_rank, comm->local_size};
    if (!loom_share_by_tcp(id, sizeof *id, &v, comm->timeout, &n->rendezvous, error)) return false;
    if (n->rendezvous && loom_rendezvous_is_open_to_all(n->rendezvous)) {
        const size_t length = strlen(comm->description);
        snprintf(comm->description + length, sizeof comm->description - length,
                 "; rank 0 listened at all addresses, as MASTER_ADDR is none of this machine's");
    }
    return true;
}

static bool join(nccl *n, const loom_nccl_id *id, loom_error *error) {
    loom_comm *comm = &n->base.comm;
    loom_nccl_config config = {.size = sizeof config,
                               .magic = LOOM_NCCL_MAGIC,
                               .version = LOOM_NCCL_OLDEST,
                               .blocking = 0,
                               .cluster_size = LOOM_NCCL_UNDEFINED,
                               .least_ctas = LOOM_NCCL_UNDEFINED,
                               .most_ctas = LOOM_NCCL_UNDEFINED,
                               .split_share = LOOM_NCCL_UNDEFINED};
    const int result = n->api->CommInitRankConfig(&n->group, comm->size, *id, comm->rank, &config);
    return settle(n, result, "ncclCommInitRankConfig", error);
}

static bool attach(loom_comm *comm, size_t staging, loom_error *error) {
    nccl *n = nccl_of(comm);
    loom_device *device = comm->device;
    loom_nccl_id id = {{0}};
    (void)staging;
    if (device->host_memory) {
        comm->device = NULL;
        return loom_fail(error, "--comm nccl: NCCL is between GPUs, not for --device %s; take --comm mpi",
                         device->name);
    }
    bool ok = device->stream_open(device, &n->stream, error) && device->stream_open(device, &n->aside, error) &&
              device->timed_event_open(device, &n->host.begin, error) &&
              device->timed_event_open(device, &n->host.end, error) && device->event_open(device, &n->end, error);
    n->base.times_waiting = true;
    for (int i = 0; ok && i < MARKED; i++)
        ok = device->event_open(device, &n->begun[i], error) && device->event_open(device, &n->done[i], error);
    ok = ok && share_id(n, &id, error) && join(n, &id, error);
    loom_rendezvous_close(n->rendezvous);
    n->rendezvous = NULL;
    return ok;
}

static void end_all(loom_comm *comm, bool quiet, int status) {
    nccl *n = nccl_of(comm);
    if (n->control) n->control->backend->abort(n->control, quiet, status);
    signal(SIGALRM, SIG_DFL);
    alarm(SECONDS_TO_END);
    if (n->group) n->api->CommAbort(n->group);
}

static void close_nccl(loom_comm *comm) {
    nccl *n = nccl_of(comm);
    loom_device *device = comm->device;
    if (n->group && !n->base.failed && settle(n, n->api->CommFinalize(n->group), "ncclCommFinalize", NULL))
        n->api->CommDestroy(n->group);
    if (device && n->stream) device->stream_close(device, n->stream);
    if (device && n->aside) device->stream_close(device, n->aside);
    for (int i = 0; device && i < MARKED; i++) {
        device->event_close(device, n->begun[i]);
        device->event_close(device, n->done[i]);
    }
    loom_event *const others[] = {n->end, n->host.begin, n->host.end};
    for (size_t i = 0; device && i < sizeof others / sizeof *others; i++) device->event_close(device, others[i]);
    for (int i = 0; i < n->n_stalls; i++) {
        device->event_close(device, n->stalls[i].begin);
        device->event_close(device, n->stalls[i].end);
    }
    if (n->place) device->release(device, n->place, n->place_bytes);
    free(n->stalls);
    if (n->control) n->control->backend->close(n->control);
    free(n);
}

/* The control communicator or torchrun's variables say which rank this is; without, it is the only one. */
static bool find_rank(nccl *n, loom_error *error) {
    loom_rank_variables v = {.size = 1, .local_size = 1};
    if (n->control)
        v = (loom_rank_variables){n->control->rank, n->control->size, n->control->local_rank, n->control->local_size};
    else if (loom_started_by_torchrun() && !loom_read_rank_variables(&v, error))
        return false;
    loom_comm *comm = &n->base.comm;
    comm->rank = v.rank;
    comm->size = v.size;
    comm->local_rank = v.local_rank;
    comm->local_size = v.local_size;
    return true;
}

static const char *id_file_of(const loom_comm_options *options) {
    const char *file = options->id_file ? options->id_file : getenv("LOOM_NCCL_ID");
    return file ? file : "";
}

bool loom_comm_nccl_check(const loom_comm_options *options, loom_error *error) {
    const char *file = id_file_of(options);
    if (!loom_nccl_load(options->nccl_library, error)) return false;
    return strlen(file) < ID_FILE_BYTES || loom_fail(error, "%s: the path is too long", file);
}

bool loom_comm_nccl_open(loom_comm **comm, const loom_comm_options *options, loom_comm *control, loom_error *error) {
    static const loom_comm_backend backend = {.attach = attach,
                                              .post = post,
                                              .wait = wait,
                                              .synchronize = synchronize,
                                              .run = run,
                                              .abort = end_all,
                                              .close = close_nccl};
    nccl *n = calloc(1, sizeof *n);
    if (!n) {
        if (control) control->backend->close(control);
        return loom_fail(error, "no memory for a communicator");
    }
    loom_comm *c = &n->base.comm;
    *c = (loom_comm){.name = "nccl", .timeout = options->timeout, .step = -1, .is_reporter = true, .backend = &backend};
    n->control = control;
    n->api = loom_nccl_load(options->nccl_library, error);
    n->oldest = 1;
    snprintf(n->id_file, sizeof n->id_file, "%s", id_file_of(options));
    if (!n->api || !find_rank(n, error)) {
        close_nccl(c);
        return false;
    }
    snprintf(c->description, sizeof c->description, "NCCL %d.%d.%d, %d rank%s%s", n->api->version / 10000,
             n->api->version / 100 % 100, n->api->version % 100, c->size, c->size == 1 ? "" : "s",
             n->control ? ", started by MPI" : "");
    *comm = c;
    return true;
}
