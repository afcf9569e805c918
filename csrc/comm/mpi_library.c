/* libgptloom_mpi.so: what the communicator needs of MPI, as a table (see mpi_table.h). Compiled with mpicc. */
#include "comm/mpi_table.h"

#include "base/half.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const loom_mpi_table *loom_mpi_get_table(void) __attribute__((visibility("default")));

enum { DATA_TAG = 1, NOTE_TAG = 2 };

/* A note on its way. */
typedef struct sent_note {
    loom_mpi_note note;
    MPI_Request request;
} sent_note;

static int rank, size;
static MPI_Comm data, notes; /* operations; what is said beside them */
static MPI_Op add_bf16;      /* MPI knows no bf16 */
static MPI_Request under_way[2] = {MPI_REQUEST_NULL,
                                   MPI_REQUEST_NULL}; /* the operation; of an exchange, both its parts */
static sent_note *sent; /* (size, LOOM_MPI_NOTE_KINDS): the last of each kind to each rank */

static bool ok(int result, const char *call, char *why) {
    if (result == MPI_SUCCESS) return true;
    char text[MPI_MAX_ERROR_STRING];
    int length;
    if (MPI_Error_string(result, text, &length) != MPI_SUCCESS) snprintf(text, sizeof text, "error %d", result);
    snprintf(why, LOOM_MPI_WHY, "%s: %.400s", call, text);
    return false;
}

/* inout = in + inout: in fp32, rounded once. MPI's signature. */
static void sum_bf16(void *in, void *inout, int *count, MPI_Datatype *type) {
    const uint16_t *a = in;
    uint16_t *b = inout;
    (void)type;
    for (int i = 0; i < *count; i++) b[i] = float_to_bf16(bf16_to_float(a[i]) + bf16_to_float(b[i]));
}

/* "Open MPI 4.1.4" of "Open MPI v4.1.4, package: ..."; other libraries' first words. */
static void name_library(char *name, size_t room) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length, major, minor, patch;
    MPI_Get_library_version(text, &length);
    if (sscanf(text, "Open MPI v%d.%d.%d", &major, &minor, &patch) == 3)
        snprintf(name, room, "Open MPI %d.%d.%d", major, minor, patch);
    else
        snprintf(name, room, "%.*s", (int)strcspn(text, ",\n"), text);
}

static bool open_library(loom_mpi_world *world, char *why) {
    int had, level;
    MPI_Comm local;
    MPI_Initialized(&had);
    if (!had && !ok(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level), "MPI_Init_thread", why)) return false;
    if (!ok(MPI_Comm_dup(MPI_COMM_WORLD, &data), "MPI_Comm_dup", why) ||
        !ok(MPI_Comm_dup(MPI_COMM_WORLD, &notes), "MPI_Comm_dup", why) ||
        !ok(MPI_Comm_split_type(data, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local), "MPI_Comm_split_type", why))
        return false;
    MPI_Comm_set_errhandler(data, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(notes, MPI_ERRORS_RETURN);
    MPI_Comm_rank(data, &rank);
    MPI_Comm_size(data, &size);
    world->rank = rank;
    world->size = size;
    MPI_Comm_rank(local, &world->local_rank);
    MPI_Comm_size(local, &world->local_size);
    MPI_Comm_free(&local);
    name_library(world->library, sizeof world->library);
    const int places = size * LOOM_MPI_NOTE_KINDS;
    sent = malloc((size_t)places * sizeof *sent);
    if (!sent) return snprintf(why, LOOM_MPI_WHY, "no memory for %d ranks", size), false;
    for (int i = 0; i < places; i++) sent[i].request = MPI_REQUEST_NULL;
    return ok(MPI_Op_create(sum_bf16, 1, &add_bf16), "MPI_Op_create", why);
}

static MPI_Datatype type_of(loom_dtype dtype) {
    switch (dtype) {
    case LOOM_F32: return MPI_FLOAT;
    case LOOM_F64: return MPI_DOUBLE;
    case LOOM_I32: return MPI_INT32_T;
    case LOOM_I64: return MPI_INT64_T;
    case LOOM_BF16:
    case LOOM_F16: break;
    }
    return MPI_UINT16_T;
}

static bool start(const loom_comm_operation *o, char *why) {
    const MPI_Datatype type = type_of(o->dtype);
    const MPI_Op op = o->dtype == LOOM_BF16 ? add_bf16 : MPI_SUM;
    const int n = (int)o->count;
    MPI_Request *request = &under_way[0];
    int bytes;
    MPI_Type_size(type, &bytes);
    switch (o->kind) {
    case LOOM_ALL_REDUCE:
        return ok(MPI_Iallreduce(o->in == o->out ? MPI_IN_PLACE : o->in, o->out, n, type, op, data, request),
                  "MPI_Iallreduce", why);
    case LOOM_REDUCE_SCATTER: snprintf(why, LOOM_MPI_WHY, "MPI adds no shares: they are exchanged"); break;
    case LOOM_ALL_GATHER: {
        const bool in_place = (const char *)o->in == (char *)o->out + (size_t)rank * (size_t)n * (size_t)bytes;
        return ok(MPI_Iallgather(in_place ? MPI_IN_PLACE : o->in, n, type, o->out, n, type, data, request),
                  "MPI_Iallgather", why);
    }
    case LOOM_BROADCAST: return ok(MPI_Ibcast(o->out, n, type, o->from, data, request), "MPI_Ibcast", why);
    case LOOM_EXCHANGE:
        return (o->from < 0 ||
                ok(MPI_Irecv(o->out, n, type, o->from, DATA_TAG, data, &under_way[0]), "MPI_Irecv", why)) &&
               (o->to < 0 ||
                ok(MPI_Isend(o->in, (int)o->send_count, type, o->to, DATA_TAG, data, &under_way[1]), "MPI_Isend", why));
    case LOOM_BARRIER: return ok(MPI_Ibarrier(data, request), "MPI_Ibarrier", why);
    case LOOM_FINAL_BARRIER: return ok(MPI_Ibarrier(notes, request), "MPI_Ibarrier", why);
    }
    return false;
}

static bool test(bool *ended, char *why) {
    int flag = 0;
    const bool good = ok(MPI_Testall(2, under_way, &flag, MPI_STATUSES_IGNORE), "MPI_Testall", why);
    *ended = flag != 0;
    return good;
}

static bool send_note(const loom_mpi_note *note, int to, char *why) {
    sent_note *s = &sent[to * LOOM_MPI_NOTE_KINDS + note->kind];
    int free_again = 0;
    if (!ok(MPI_Test(&s->request, &free_again, MPI_STATUS_IGNORE), "MPI_Test", why)) return false;
    if (!free_again) return true;
    s->note = *note;
    return ok(MPI_Isend(&s->note, sizeof s->note, MPI_BYTE, to, NOTE_TAG, notes, &s->request), "MPI_Isend", why);
}

static bool take_note(loom_mpi_note *note, int *from, char *why) {
    MPI_Status status;
    int there = 0;
    *from = -1;
    if (!ok(MPI_Iprobe(MPI_ANY_SOURCE, NOTE_TAG, notes, &there, &status), "MPI_Iprobe", why)) return false;
    if (!there) return true;
    const int sender = status.MPI_SOURCE;
    int bytes = 0;
    if (!ok(MPI_Recv(note, sizeof *note, MPI_BYTE, sender, NOTE_TAG, notes, &status), "MPI_Recv", why) ||
        !ok(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count", why))
        return false;
    if (bytes != sizeof *note || sender < 0 || sender >= size || note->kind < 0 || note->kind >= LOOM_MPI_NOTE_KINDS)
        return snprintf(why, LOOM_MPI_WHY, "rank %d sends notes of another form", sender), false;
    *from = sender;
    return true;
}

static void end_all(int status) {
    MPI_Abort(MPI_COMM_WORLD, status);
}

static void close_library(void) {
    MPI_Op_free(&add_bf16);
    MPI_Finalize();
    free(sent);
}

const loom_mpi_table *loom_mpi_get_table(void) {
    static const loom_mpi_table table = {
        LOOM_MPI_TABLE_VERSION, open_library, start, test, send_note, take_note, end_all, close_library};
    return &table;
}
