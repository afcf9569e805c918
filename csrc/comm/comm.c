#include "comm/backend.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/nearest.h"
#include "base/say.h"
#include "comm/rendezvous.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_TIMEOUT = 600 };

/* -------------------------------------------------------------------------------------------------------- the launcher */

/* In one write, so that lines of ranks do not mix: into the file that train/launch.c reads, if it started us. Its name
 * is a link that the kernel made (/proc/PID/fd/N). */
static bool write_to_launcher(const char *line) {
    const char *path = getenv(LOOM_LAST_LINE);
    const int file = path ? open(path, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;
    if (file < 0) return false;
    const bool ok = write(file, line, strlen(line)) == (ssize_t)strlen(line);
    close(file);
    return ok;
}

static void print_line(const char *line) {
    if (!write_to_launcher(line)) loom_say(line, strlen(line));
}

/* ----------------------------------------------------------------------------------------------------------- open, close */

/* What a process that was started like this one wants. */
static const char *fitting_backend(void) {
    return loom_started_by_mpi() ? "mpi" : loom_started_by_torchrun() ? "nccl" : "self";
}

/* Back ends, in the order in which messages list them. */
typedef struct backend_row {
    const char *name;
    /* What is refused before other ranks are looked for; NULL: nothing. */
    bool (*check)(const loom_comm_options *options, loom_error *error);
    bool (*open)(loom_comm **comm, const loom_comm_options *options, loom_comm *control, loom_error *error);
    bool has_control; /* under mpirun, MPI is its control communicator */
} backend_row;

static const backend_row backends[] = {{.name = "self", .open = loom_comm_self_open},
                                       {.name = "mpi", .open = loom_comm_mpi_open},
                                       {"nccl", loom_comm_nccl_check, loom_comm_nccl_open, true}};
enum { BACKENDS = sizeof backends / sizeof *backends };

static const backend_row *find_backend(const char *name, loom_error *error) {
    const char *names[BACKENDS + 2] = {"auto"};
    for (int i = 0; i < BACKENDS; i++) {
        if (!strcmp(name, backends[i].name)) return &backends[i];
        names[i + 1] = backends[i].name;
    }
    const char *nearest = loom_nearest_name(name, names);
    loom_fail(error, "--comm: '%s' is no communicator; %s%s%sthere are auto, self, mpi, nccl", name,
              nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "");
    return NULL;
}

bool loom_comm_open(loom_comm **comm, const loom_comm_options *options, loom_error *error) {
    loom_comm_options filled = options ? *options : (loom_comm_options){0};
    if (!filled.backend) filled.backend = "auto";
    if (filled.timeout <= 0) filled.timeout = DEFAULT_TIMEOUT;
    *comm = NULL;
    if (loom_launched()) write_to_launcher(LOOM_RANK_READY);
    const bool automatic = !strcmp(filled.backend, "auto");
    const backend_row *backend = find_backend(automatic ? fitting_backend() : filled.backend, error);
    if (!backend || (backend->check && !backend->check(&filled, error))) return false;
    loom_comm *control = NULL;
    if (backend->has_control && loom_started_by_mpi() && !loom_comm_mpi_open(&control, &filled, NULL, error))
        return false;
    if (!backend->open(comm, &filled, control, error)) return false;
    /* Ranks that do not find each other would each train the whole, in one place. `self` was asked for by name. */
    const bool may_be_alone = (*comm)->size > 1 || (!automatic && backend->open == loom_comm_self_open);
    if (may_be_alone || loom_is_alone(error)) return true;
    loom_comm_close(*comm);
    *comm = NULL;
    return false;
}

bool loom_comm_attach(loom_comm *comm, loom_device *device, size_t staging, loom_error *error) {
    enum { DEFAULT_STAGING = 8 << 20 };
    LOOM_CHECK(!comm->device);
    comm->device = device;
    return comm->backend->attach(comm, staging ? staging : DEFAULT_STAGING, error);
}

void loom_comm_close(loom_comm *comm) {
    if (comm) comm->backend->close(comm);
}

/* ------------------------------------------------------------------------------------------------------------- failures */

void loom_comm_abort(loom_comm *comm, const loom_error *why, int status) {
    const loom_comm_base *base = comm ? loom_comm_base_of(comm) : NULL;
    const bool agreed = why && base && !strcmp(why->message, base->agreed.message);
    const bool of_all = agreed || (why && base && base->failed && !strcmp(why->message, base->failure.message));
    const bool quiet = of_all && !(agreed ? comm->rank == 0 : comm->is_reporter);
    char line[sizeof why->message + 64];
    loom_error unheard;
    if (why && !quiet) {
        if (!of_all) loom_defer_error_to_rank0();
        if (of_all || !comm || comm->size == 1)
            snprintf(line, sizeof line, "gptloom: %s\n", why->message);
        else
            snprintf(line, sizeof line, "gptloom: rank %d: %s\n", comm->rank, why->message);
        print_line(line);
    }
    fflush(NULL);
    /* The one that ends the others waits until they have written to their logs how the run ended. */
    if (agreed) (void)loom_comm_barrier(comm, &unheard);
    if (comm) comm->backend->abort(comm, quiet, status);
    _exit(status);
}

/* ----------------------------------------------------------------------------------------------------------- operations */

static bool sums(const loom_comm_operation *o) {
    return o->kind == LOOM_ALL_REDUCE || o->kind == LOOM_REDUCE_SCATTER;
}

/* What only a programmer can get wrong. */
static void check(const loom_comm *comm, const loom_comm_operation *o) {
    const size_t size = loom_dtype_size(o->dtype);
    const char *in = o->in, *out = o->out;
    LOOM_CHECK(o->count >= 0 && o->send_count >= 0);
    LOOM_CHECK(o->from >= -1 && o->from < comm->size && o->to >= -1 && o->to < comm->size);
    LOOM_CHECK(!sums(o) || o->dtype != LOOM_F16);
    LOOM_CHECK(in || o->count == 0 || o->kind == LOOM_EXCHANGE);
    LOOM_CHECK(out || o->count == 0 || (o->kind == LOOM_EXCHANGE && o->from < 0));
    LOOM_CHECK((uintptr_t)in % size == 0 && (uintptr_t)out % size == 0);
    if (o->kind == LOOM_REDUCE_SCATTER || o->kind == LOOM_ALL_GATHER) LOOM_CHECK(o->count <= INT32_MAX);
    const size_t bytes = (size_t)o->count * size, shift = (size_t)comm->rank * bytes;
    const size_t reads = o->kind == LOOM_REDUCE_SCATTER ? (size_t)comm->size * bytes : bytes;
    const size_t writes = o->kind == LOOM_ALL_GATHER ? (size_t)comm->size * bytes : bytes;
    const bool in_place = (o->kind == LOOM_REDUCE_SCATTER && out == in + shift) ||
                          (o->kind == LOOM_ALL_GATHER && in == out + shift) || (in == out && o->kind != LOOM_EXCHANGE);
    if (in && out && !in_place && o->kind != LOOM_EXCHANGE) LOOM_CHECK(in + reads <= out || out + writes <= in);
    if (in && out && o->kind == LOOM_EXCHANGE)
        LOOM_CHECK(in + (size_t)o->send_count * size <= out || out + bytes <= in);
}

/* Gives an operation its number and adds it to the traffic. */
static void number(loom_comm *comm, loom_comm_operation *o) {
    check(comm, o);
    o->number = ++loom_comm_base_of(comm)->posted;
    const int64_t count = o->kind == LOOM_EXCHANGE ? o->send_count : o->count;
    comm->traffic.operations++;
    comm->traffic.bytes += loom_comm_rows_in(comm, o) * count * (int64_t)loom_dtype_size(o->dtype);
}

static loom_comm_op_id post(loom_comm *comm, loom_stream *after, loom_comm_operation o) {
    LOOM_CHECK(comm->device);
    number(comm, &o);
    if (!loom_comm_base_of(comm)->failed) comm->backend->post(comm, &o, after);
    return o.number;
}

loom_comm_op_id loom_comm_all_reduce(loom_comm *comm, loom_stream *after, void *out, const void *in, int64_t count,
                                     loom_dtype dtype) {
    return post(comm, after,
                (loom_comm_operation){.kind = LOOM_ALL_REDUCE, .dtype = dtype, .out = out, .in = in, .count = count});
}

loom_comm_op_id loom_comm_reduce_scatter(loom_comm *comm, loom_stream *after, void *out, const void *in, int64_t count,
                                         loom_dtype dtype) {
    return post(
        comm, after,
        (loom_comm_operation){.kind = LOOM_REDUCE_SCATTER, .dtype = dtype, .out = out, .in = in, .count = count});
}

loom_comm_op_id loom_comm_all_gather(loom_comm *comm, loom_stream *after, void *out, const void *in, int64_t count,
                                     loom_dtype dtype) {
    return post(comm, after,
                (loom_comm_operation){.kind = LOOM_ALL_GATHER, .dtype = dtype, .out = out, .in = in, .count = count});
}

loom_comm_op_id loom_comm_broadcast(loom_comm *comm, loom_stream *after, void *buffer, int64_t count, loom_dtype dtype,
                                    int root) {
    LOOM_CHECK(root >= 0);
    return post(comm, after,
                (loom_comm_operation){
                    .kind = LOOM_BROADCAST, .dtype = dtype, .out = buffer, .in = buffer, .count = count, .from = root});
}

loom_comm_op_id loom_comm_exchange(loom_comm *comm, loom_stream *after, void *out, int64_t receive_count, int from,
                                   const void *in, int64_t send_count, int to, loom_dtype dtype) {
    return post(comm, after,
                (loom_comm_operation){.kind = LOOM_EXCHANGE,
                                      .dtype = dtype,
                                      .out = out,
                                      .in = in,
                                      .count = from < 0 ? 0 : receive_count,
                                      .send_count = to < 0 ? 0 : send_count,
                                      .from = from,
                                      .to = to});
}

/* The failure that is known already, if there is one. */
static bool still_good(loom_comm *comm, loom_error *error) {
    const loom_comm_base *base = loom_comm_base_of(comm);
    return !base->failed || loom_fail(error, "%s", base->failure.message);
}

bool loom_comm_wait(loom_comm *comm, loom_comm_op_id op_id, loom_stream *stream, loom_error *error) {
    LOOM_CHECK(op_id <= loom_comm_base_of(comm)->posted);
    if (!still_good(comm, error)) return false;
    const double begin = loom_seconds_now();
    const bool ok = comm->backend->wait(comm, op_id, stream, error);
    if (!loom_comm_base_of(comm)->times_waiting) comm->traffic.seconds_waited += loom_seconds_now() - begin;
    return ok;
}

bool loom_comm_synchronize(loom_comm *comm, loom_stream *stream, loom_error *error) {
    LOOM_CHECK(comm->device);
    return still_good(comm, error) && comm->backend->synchronize(comm, stream, error);
}

/* -------------------------------------------------------------------------------------------------------- on host memory */

static bool run(loom_comm *comm, loom_comm_operation o, loom_error *error) {
    if (!still_good(comm, error)) return false;
    o.host = true;
    number(comm, &o);
    const double begin = loom_seconds_now();
    const bool ok = comm->backend->run(comm, &o, error);
    if (!loom_comm_base_of(comm)->times_waiting) comm->traffic.seconds_waited += loom_seconds_now() - begin;
    return ok;
}

bool loom_comm_barrier(loom_comm *comm, loom_error *error) {
    return run(comm, (loom_comm_operation){.kind = LOOM_BARRIER}, error);
}

void *loom_comm_memory(loom_comm *comm, size_t bytes, loom_error *error) {
    void *memory = calloc(bytes ? bytes : 1, 1);
    if (memory) return memory;
    loom_error why;
    loom_fail(&why, "rank %d has no memory to communicate: %zu bytes", comm->rank, bytes);
    if (!loom_comm_base_of(comm)->failed) comm->is_reporter = true;
    loom_comm_failed(comm, &why, error);
    return NULL;
}

/* Bytes travel as the 16-bit type, which is only moved, with one that is odd rounded up in memory of our own. */
bool loom_comm_host_broadcast(loom_comm *comm, void *data, size_t bytes, int root, loom_error *error) {
    uint16_t *padded = loom_comm_memory(comm, bytes + 1, error);
    if (!padded) return false;
    memcpy(padded, data, bytes);
    const bool ok = run(comm,
                        (loom_comm_operation){.kind = LOOM_BROADCAST,
                                              .dtype = LOOM_F16,
                                              .out = padded,
                                              .in = padded,
                                              .count = (int64_t)(bytes + 1) / 2,
                                              .from = root},
                        error);
    if (ok) memcpy(data, padded, bytes);
    free(padded);
    return ok;
}

bool loom_comm_host_gather(loom_comm *comm, void *all, const void *mine, size_t bytes, loom_error *error) {
    const size_t count = (bytes + 1) / 2;
    uint16_t *padded = loom_comm_memory(comm, count * (size_t)comm->size * sizeof *padded, error);
    if (!padded) return false;
    uint16_t *row = padded + (size_t)comm->rank * count;
    memcpy(row, mine, bytes);
    const bool ok = run(
        comm,
        (loom_comm_operation){
            .kind = LOOM_ALL_GATHER, .dtype = LOOM_F16, .out = padded, .in = row, .count = (int64_t)count},
        error);
    for (int r = 0; ok && r < comm->size; r++)
        memcpy((char *)all + (size_t)r * bytes, padded + (size_t)r * count, bytes);
    free(padded);
    return ok;
}

bool loom_comm_host_sum(loom_comm *comm, int64_t *values, int64_t count, loom_error *error) {
    return run(
        comm,
        (loom_comm_operation){.kind = LOOM_ALL_REDUCE, .dtype = LOOM_I64, .out = values, .in = values, .count = count},
        error);
}

bool loom_comm_agree(loom_comm *comm, const char *what, const void *value, size_t bytes, loom_error *error) {
    char *all = loom_comm_memory(comm, bytes * (size_t)comm->size, error);
    if (!all) return false;
    bool ok = loom_comm_host_gather(comm, all, value, bytes, error);
    for (int r = 1; ok && r < comm->size; r++) {
        if (!memcmp(all, all + (size_t)r * bytes, bytes)) continue;
        loom_error why;
        ok = loom_fail(&why, "%s of rank %d is not that of rank 0: start all ranks alike", what, r);
        comm->is_reporter = comm->rank == 0;
        loom_comm_failed(comm, &why, error);
    }
    free(all);
    return ok;
}

bool loom_comm_all(loom_comm *comm, bool ok, loom_error *error) {
    char *all = loom_comm_memory(comm, (size_t)comm->size, error); /* bytes, as what is no true or false is no bool */
    if (!all) return false;
    const char own = ok;
    const bool heard = loom_comm_host_gather(comm, all, &own, sizeof own, error);
    int first = 0;
    while (heard && first < comm->size && all[first]) first++;
    free(all);
    if (!heard) return false;
    if (first == comm->size) return true;
    loom_error why = {""};
    if (comm->rank == first && comm->size > 1)
        loom_fail(&why, "rank %d: %s", first, error ? error->message : "failed");
    else if (comm->rank == first && error)
        why = *error;
    if (!loom_comm_host_broadcast(comm, &why, sizeof why, first, error)) return false;
    why.message[sizeof why.message - 1] = 0;
    loom_comm_base_of(comm)->agreed = why;
    return loom_fail(error, "%s", why.message);
}
