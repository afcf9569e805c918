/* A stand-in for NCCL: a library with its symbols, for several processes of one machine and the emulated device. It
 * checks what real NCCL would trip over or silently get wrong (arguments, buffers, use before the communicator is ready
 * or after its end, calls of the ranks that do not match), keeps to streams, and moves data through POSIX shared memory.
 *
 * A collective goes through in pieces: each rank writes what it says and its piece into its slot, waits until all have,
 * reads what it needs, and waits until all have read. Sends and receives have a mailbox for every pair of ranks.
 *
 * The environment:
 *   NCCL_STANDIN_LOG   the calls of rank R are written to this path + ".R", a line each: "AllGather 8 type 7 comm 1,
 *                      from 256 to 0, 12 kernels given"; places are bytes from the beginning of the device's allocation,
 *                      kernels those that the process has put into streams before. And when its turn came, to path +
 *                      ".R.ran": "AllGather 8: begun after 12 kernels, ended after 19"
 *   NCCL_STANDIN_FAIL  R:N: rank R's N-th call that communicates fails with ncclSystemError
 *   NCCL_STANDIN_DIE   R:N: in it the rank is killed
 *   NCCL_STANDIN_STOP  R:N: in it the rank is stopped
 *   NCCL_STANDIN_SLOW  R:N: before it the rank sleeps for two seconds */
#include "comm/nccl_api.h"

#include "base/half.h"
#include "dev/emulation/emulation.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum { MOST_RANKS = 8, PIECE = 16384, SLOW_CALLS = 3, ID_MARK = 'L' };

/* The functions as NCCL's header declares them; types as in nccl_api.h. */
#define DECLARE(result, name, arguments) result nccl##name arguments;
LOOM_NCCL_FUNCTIONS(DECLARE)
#undef DECLARE

/* ------------------------------------------------------------------------------------------------------ shared memory */

typedef struct description {
    char call[16];
    int64_t count;
    int type, op, root;
} description;

/* A rank's side of collectives: the number of the last piece that it has put in, and of the last it has read. */
typedef struct slot {
    _Atomic int64_t written, read;
    _Atomic int present, gone;
    uint64_t host; /* hosts, as far as these processes can tell, are network namespaces */
    int gpu;
    description says;
    _Alignas(8) char piece[MOST_RANKS][PIECE];
} slot;

typedef struct mailbox {
    _Atomic int64_t sent, taken;
    description says;
    _Alignas(8) char piece[PIECE];
} mailbox;

typedef struct segment {
    slot slots[MOST_RANKS];
    mailbox boxes[MOST_RANKS][MOST_RANKS]; /* from, to */
} segment;

/* ------------------------------------------------------------------------------------------------------- communicators */

typedef struct communicator {
    uint64_t magic;
    segment *shared;
    char name[128];
    int rank, ranks;
    _Atomic int state; /* of nonblocking calls: IN_PROGRESS until asked a few times; or an error that stays */
    int slow;
    _Atomic bool aborted;
    void *stream;      /* the one that all calls have used */
    int64_t piece;     /* the number of the last piece put in */
    int number;        /* of the process's communicators, from 1 */
    int calls, queued; /* that communicate; that have not ended */
    char why[256];
    struct communicator *before; /* see let_go */
} communicator;

static communicator *last; /* that was made */

static const uint64_t alive = 0x6e63636c6e63636c, dead = 0xdeaddeaddeaddead;
static FILE *calls_log, *ran_log;
static int communicators;
static const int type_sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

/* The process's logs, from its first communicator on. */
static void open_logs(int rank) {
    const char *path = getenv("NCCL_STANDIN_LOG");
    char whole[4096];
    if (!path || calls_log) return;
    if (snprintf(whole, sizeof whole, "%s.%d", path, rank) < (int)sizeof whole) calls_log = fopen(whole, "we");
    if (snprintf(whole, sizeof whole, "%s.%d.ran", path, rank) < (int)sizeof whole) ran_log = fopen(whole, "we");
    if (calls_log) setvbuf(calls_log, NULL, _IOLBF, 0);
    if (ran_log) setvbuf(ran_log, NULL, _IOLBF, 0);
}

static void log_call(const char *call) {
    if (calls_log) fprintf(calls_log, "%s\n", call);
}

/* What is wrong goes to the log too: GetLastError tells it only to those who ask. */
static int wrong(communicator *c, int result, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[256];
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (c) snprintf(c->why, sizeof c->why, "%s", text);
    if (calls_log) fprintf(calls_log, "wrong: %s\n", text);
    return result;
}

static communicator *living(void *comm) {
    communicator *c = comm;
    return c && c->magic == alive ? c : NULL;
}

int ncclGetVersion(int *version) {
    *version = 22809;
    return SUCCESS;
}

const char *ncclGetErrorString(int result) {
    static const char *const texts[] = {
        "no error",         "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage",        "remote process exited",  "in progress"};
    return result >= 0 && result <= IN_PROGRESS ? texts[result] : "unknown result code";
}

const char *ncclGetLastError(void *comm) {
    return comm ? ((communicator *)comm)->why : "";
}

int ncclGetUniqueId(loom_nccl_id *id) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "/gptloom-nccl-%d-%lld", (int)getpid(), (long long)now.tv_nsec);
    id->bytes[sizeof id->bytes - 1] = ID_MARK; /* all of it must get through */
    return SUCCESS;
}

static uint64_t this_host(void) {
    struct stat network;
    return stat("/proc/self/ns/net", &network) == 0 ? network.st_ino : 0;
}

/* A GPU is for one rank. */
static void look_for_duplicates(communicator *c) {
    const slot *slots = c->shared->slots;
    for (int a = 0; a < c->ranks; a++)
        for (int b = 0; b < a; b++)
            if (slots[a].host == slots[b].host && slots[a].gpu == slots[b].gpu)
                c->state = wrong(c, INVALID_USAGE, "ranks %d and %d are both on GPU %d", b, a, slots[a].gpu);
}

int ncclCommInitRankConfig(void **comm, int ranks, loom_nccl_id id, int rank, loom_nccl_config *config) {
    if (!comm || ranks < 1 || ranks > MOST_RANKS || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
    if (config->magic != LOOM_NCCL_MAGIC || config->size != sizeof *config || config->version != LOOM_NCCL_OLDEST ||
        config->blocking != 0 || config->split_share != LOOM_NCCL_UNDEFINED || config->net_name)
        return INVALID_ARGUMENT;
    if (id.bytes[sizeof id.bytes - 1] != ID_MARK) return INVALID_ARGUMENT;
    communicator *c = calloc(1, sizeof *c);
    /* Whoever comes first makes it: an id that nobody uses leaves nothing. */
    const int file = shm_open(id.bytes, O_RDWR | O_CREAT, 0600);
    if (!c || file < 0 || ftruncate(file, sizeof *c->shared) != 0) return SYSTEM_ERROR;
    c->shared = mmap(NULL, sizeof *c->shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (c->shared == MAP_FAILED) return SYSTEM_ERROR;
    c->magic = alive;
    c->before = last;
    last = c;
    c->rank = rank;
    c->ranks = ranks;
    snprintf(c->name, sizeof c->name, "%.*s", (int)sizeof c->name - 1, id.bytes);
    c->number = ++communicators;
    open_logs(rank);
    log_call("CommInitRankConfig");
    c->state = IN_PROGRESS;
    c->shared->slots[rank].host = this_host();
    c->shared->slots[rank].gpu = emulation_current_gpu();
    c->shared->slots[rank].present = 1;
    *comm = c;
    return IN_PROGRESS;
}

/* Joining ends when all ranks are there; every other call after a few questions. */
int ncclCommGetAsyncError(void *comm, int *result) {
    communicator *c = living(comm);
    if (!c) return INVALID_ARGUMENT;
    bool all = true, gone = false;
    for (int r = 0; r < c->ranks; r++) {
        all = all && c->shared->slots[r].present;
        gone = gone || (r != c->rank && c->shared->slots[r].gone == 2);
    }
    if (c->state == IN_PROGRESS && all && ++c->slow >= SLOW_CALLS) {
        if (c->rank == 0) shm_unlink(c->name);
        c->state = SUCCESS;
        c->slow = 0;
        look_for_duplicates(c);
    }
    if (gone && c->state == SUCCESS) c->state = wrong(c, REMOTE_ERROR, "another rank has aborted");
    *result = c->state;
    return SUCCESS;
}

static void let_go(communicator *c) {
    munmap(c->shared, sizeof *c->shared);
    c->magic = dead; /* and stays in the list of all, so that who uses it is found out */
}

int ncclCommFinalize(void *comm) {
    communicator *c = living(comm);
    if (!c || c->state != SUCCESS) return INVALID_USAGE;
    log_call("CommFinalize");
    c->state = IN_PROGRESS;
    return IN_PROGRESS;
}

int ncclCommDestroy(void *comm) {
    communicator *c = living(comm);
    if (!c || c->state != SUCCESS) return INVALID_USAGE;
    if (c->queued) return wrong(c, INVALID_USAGE, "destroyed with %d operations under way", c->queued);
    log_call("CommDestroy");
    c->shared->slots[c->rank].gone = 1;
    let_go(c);
    return SUCCESS;
}

/* Operations under way end where they are. */
int ncclCommAbort(void *comm) {
    communicator *c = living(comm);
    if (!c) return INVALID_ARGUMENT;
    log_call("CommAbort");
    c->shared->slots[c->rank].gone = 2;
    if (c->rank == 0) shm_unlink(c->name);
    c->aborted = true;
    if (c->queued == 0) let_go(c);
    return SUCCESS;
}

/* ---------------------------------------------------------------------------------------------------------- operations */

/* Something put into a stream: a collective, or the sends and receives of a group, which go on side by side. */
typedef struct part {
    description says;
    const char *in;
    char *out;
    int peer; /* of a send or a receive */
    bool receives;
    int64_t moved; /* elements */
} part;

typedef struct operation {
    communicator *comm;
    part parts[8];
    int count;
    bool published; /* this rank's piece of a collective is in its slot, and has not been read by all */
    long begun;     /* kernels that had begun when its turn came; -1 before */
} operation;

static void add_to(void *sum, const void *value, int type, int64_t n) {
    for (int64_t i = 0; i < n; i++) switch (type) {
        case LOOM_NCCL_FLOAT32: ((float *)sum)[i] += ((const float *)value)[i]; break;
        case LOOM_NCCL_FLOAT64: ((double *)sum)[i] += ((const double *)value)[i]; break;
        case LOOM_NCCL_INT32: ((int32_t *)sum)[i] += ((const int32_t *)value)[i]; break;
        case LOOM_NCCL_INT64: ((int64_t *)sum)[i] += ((const int64_t *)value)[i]; break;
        case LOOM_NCCL_BFLOAT16: {
            uint16_t *s = (uint16_t *)sum + i;
            *s = float_to_bf16(bf16_to_float(*s) + bf16_to_float(((const uint16_t *)value)[i]));
        }
        }
}

static bool same(const description *a, const description *b) {
    return !strcmp(a->call, b->call) && a->count == b->count && a->type == b->type && a->op == b->op &&
           a->root == b->root;
}

static bool fails(communicator *c, const description *ours, const description *theirs, int rank) {
    c->state = wrong(c, INVALID_USAGE, "ranks do not match: %s of %lld here, %s of %lld on rank %d", ours->call,
                     (long long)ours->count, theirs->call, (long long)theirs->count, rank);
    return true;
}

/* One step of a collective; true when it has ended. */
static bool step_collective(operation *o) {
    communicator *c = o->comm;
    part *p = &o->parts[0];
    slot *own = &c->shared->slots[c->rank];
    const int64_t size = type_sizes[p->says.type], left = p->says.count - p->moved;
    const int64_t n = left < PIECE / size ? left : PIECE / size;
    const bool scatters = !strcmp(p->says.call, "ReduceScatter"), gathers = !strcmp(p->says.call, "AllGather");
    if (!o->published) {
        for (int r = 0; r < c->ranks; r++)
            if (c->shared->slots[r].read < c->piece) return false;
        own->says = p->says;
        for (int r = 0; r < (scatters ? c->ranks : 1); r++)
            memcpy(own->piece[r], p->in + (r * p->says.count + p->moved) * size, (size_t)(n * size));
        own->written = ++c->piece;
        o->published = true;
    }
    for (int r = 0; r < c->ranks; r++)
        if (c->shared->slots[r].written < c->piece) return false;
    for (int r = 0; r < c->ranks; r++)
        if (!same(&p->says, &c->shared->slots[r].says)) return fails(c, &p->says, &c->shared->slots[r].says, r);
    char *to = p->out + p->moved * size;
    const int row = scatters ? c->rank : 0;
    for (int r = 0; r < c->ranks; r++) {
        const char *from = c->shared->slots[r].piece[row];
        if (gathers)
            memcpy(to + r * p->says.count * size, from, (size_t)(n * size));
        else if (p->says.root >= 0 ? r == p->says.root : r == 0)
            memcpy(to, from, (size_t)(n * size));
        else if (p->says.root < 0)
            add_to(to, from, p->says.type, n);
    }
    own->read = c->piece;
    o->published = false;
    p->moved += n;
    return p->moved == p->says.count;
}

static bool step_mail(communicator *c, part *p) {
    const int64_t size = type_sizes[p->says.type], left = p->says.count - p->moved;
    const int64_t n = left < PIECE / size ? left : PIECE / size;
    mailbox *box = p->receives ? &c->shared->boxes[p->peer][c->rank] : &c->shared->boxes[c->rank][p->peer];
    if (left == 0) return true;
    if (box->sent != box->taken + p->receives) return false;
    if (p->receives) {
        if (box->says.count != p->says.count || box->says.type != p->says.type)
            return fails(c, &p->says, &box->says, p->peer);
        memcpy(p->out + p->moved * size, box->piece, (size_t)(n * size));
        box->taken++;
    } else {
        box->says = p->says;
        memcpy(box->piece, p->in + p->moved * size, (size_t)(n * size));
        box->sent++;
    }
    p->moved += n;
    return p->moved == p->says.count;
}

/* Called by the device again and again until it returns nonzero. */
static int attempt(void *argument) {
    operation *o = argument;
    communicator *c = o->comm;
    bool done = true;
    if (o->begun < 0) o->begun = emulation_kernels_begun();
    if (!c->aborted && c->state != INVALID_USAGE) {
        if (o->parts[0].peer < 0)
            done = step_collective(o);
        else
            for (int i = 0; i < o->count; i++) done = step_mail(c, &o->parts[i]) && done;
    }
    if (!done) {
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        return 0;
    }
    if (ran_log && !c->aborted)
        fprintf(ran_log, "%s %lld: begun after %ld kernels, ended after %ld\n", o->parts[0].says.call,
                (long long)o->parts[0].says.count, o->begun, emulation_kernels_begun());
    c->queued--;
    if (c->aborted && c->queued == 0) let_go(c);
    free(o);
    return 1;
}

static int depth;          /* of groups */
static operation *grouped; /* the sends and receives of the one that is open */
static void *group_stream;

static int launch(communicator *c, operation *o, void *stream) {
    c->queued++;
    o->begun = -1;
    const int result = emulation_enqueue_attempt(stream, attempt, o);
    if (result == 0) return c->state = IN_PROGRESS;
    c->queued--;
    free(o);
    return wrong(c, 1, "the stream cannot be used");
}

static void log_operation(const communicator *c, const part *p) {
    if (!calls_log) return;
    fprintf(calls_log, "%s %lld type %d", p->says.call, (long long)p->says.count, p->says.type);
    if (p->says.root >= 0) fprintf(calls_log, " root %d", p->says.root);
    if (p->peer >= 0) fprintf(calls_log, " peer %d", p->peer);
    fprintf(calls_log, " comm %d, from %ld to %ld, %ld kernels given\n", c->number, emulation_place_in_memory(p->in, 0),
            emulation_place_in_memory(p->out, 0), emulation_kernels_given());
}

/* Whether a variable says "R:N" of this rank's N-th call, which is this one. */
static bool it_is_time(const communicator *c, const char *variable) {
    const char *text = getenv(variable);
    int rank, call;
    return text && sscanf(text, "%d:%d", &rank, &call) == 2 && rank == c->rank && call == c->calls;
}

/* What all calls that communicate have to get right. */
static int check(communicator *c, const part *p, void *stream, int64_t in_rows, int64_t out_rows) {
    if (!c) return INVALID_ARGUMENT;
    log_operation(c, p);
    c->calls++;
    if (it_is_time(c, "NCCL_STANDIN_DIE")) raise(SIGKILL);
    if (it_is_time(c, "NCCL_STANDIN_STOP")) raise(SIGSTOP);
    if (it_is_time(c, "NCCL_STANDIN_SLOW")) sleep(2);
    if (it_is_time(c, "NCCL_STANDIN_FAIL")) return c->state = wrong(c, SYSTEM_ERROR, "the cable has been pulled");
    if (c->state != SUCCESS && !(depth && c->state == IN_PROGRESS))
        return wrong(c, INVALID_USAGE, "%s while the communicator is not ready", p->says.call);
    if (p->says.type < 0 || p->says.type > LOOM_NCCL_BFLOAT16 || p->says.op != LOOM_NCCL_SUM)
        return wrong(c, INVALID_ARGUMENT, "type %d, operation %d", p->says.type, p->says.op);
    if (p->says.root >= c->ranks || p->peer >= c->ranks) return wrong(c, INVALID_ARGUMENT, "no such rank");
    if (!stream) return wrong(c, INVALID_ARGUMENT, "the default stream");
    if (c->stream && c->stream != stream) return wrong(c, INVALID_USAGE, "another stream than before");
    c->stream = stream;
    const int64_t bytes = p->says.count * type_sizes[p->says.type];
    if (in_rows && emulation_place_in_memory(p->in, (unsigned long)(in_rows * bytes)) < 0)
        return wrong(c, INVALID_ARGUMENT, "%s: the input is not the device's memory", p->says.call);
    if (out_rows && emulation_place_in_memory(p->out, (unsigned long)(out_rows * bytes)) < 0)
        return wrong(c, INVALID_ARGUMENT, "%s: the output is not the device's memory", p->says.call);
    if (in_rows && out_rows) {
        const bool in_place = in_rows > out_rows   ? p->out == p->in + c->rank * bytes
                              : in_rows < out_rows ? p->in == p->out + c->rank * bytes
                                                   : p->in == p->out;
        if (!in_place && p->in < p->out + out_rows * bytes && p->out < p->in + in_rows * bytes)
            return wrong(c, INVALID_ARGUMENT, "%s: input and output overlap", p->says.call);
    }
    return SUCCESS;
}

static int collective(const char *name, const void *in, void *out, size_t count, int type, int op, int root, void *comm,
                      void *stream, bool many_in, bool many_out) {
    communicator *c = living(comm);
    part p = {
        .says = {.count = (int64_t)count, .type = type, .op = op, .root = root}, .in = in, .out = out, .peer = -1};
    snprintf(p.says.call, sizeof p.says.call, "%s", name);
    const int result = check(c, &p, stream, many_in ? c->ranks : 1, many_out ? c->ranks : 1);
    if (result != SUCCESS || count == 0) return result;
    operation *o = calloc(1, sizeof *o);
    if (!o) return SYSTEM_ERROR;
    *o = (operation){.comm = c, .parts = {p}, .count = 1};
    return launch(c, o, stream);
}

int ncclAllReduce(const void *in, void *out, size_t count, int type, int op, void *comm, void *stream) {
    return collective("AllReduce", in, out, count, type, op, -1, comm, stream, false, false);
}

int ncclReduceScatter(const void *in, void *out, size_t count, int type, int op, void *comm, void *stream) {
    return collective("ReduceScatter", in, out, count, type, op, -1, comm, stream, true, false);
}

int ncclAllGather(const void *in, void *out, size_t count, int type, void *comm, void *stream) {
    return collective("AllGather", in, out, count, type, LOOM_NCCL_SUM, -1, comm, stream, false, true);
}

int ncclBroadcast(const void *in, void *out, size_t count, int type, int root, void *comm, void *stream) {
    return collective("Broadcast", in, out, count, type, LOOM_NCCL_SUM, root, comm, stream, false, false);
}

static int mail(const char *name, part p, void *comm, void *stream) {
    communicator *c = living(comm);
    snprintf(p.says.call, sizeof p.says.call, "%s", name);
    p.says.root = -1;
    if (depth == 0) return wrong(c, INVALID_USAGE, "a send or receive outside a group would wait for its peer's");
    const int result = check(c, &p, stream, !p.receives, p.receives);
    if (result != SUCCESS) return result;
    if (!grouped && !(grouped = calloc(1, sizeof *grouped))) return SYSTEM_ERROR;
    if (grouped->count == (int)(sizeof grouped->parts / sizeof *grouped->parts)) return INVALID_USAGE;
    grouped->comm = c;
    grouped->parts[grouped->count++] = p;
    group_stream = stream;
    return SUCCESS;
}

int ncclSend(const void *in, size_t count, int type, int peer, void *comm, void *stream) {
    return mail("Send", (part){.says = {.count = (int64_t)count, .type = type}, .in = in, .peer = peer}, comm, stream);
}

int ncclRecv(void *out, size_t count, int type, int peer, void *comm, void *stream) {
    return mail("Recv",
                (part){.says = {.count = (int64_t)count, .type = type}, .out = out, .peer = peer, .receives = true},
                comm, stream);
}

int ncclGroupStart(void) {
    log_call("GroupStart");
    depth++;
    return SUCCESS;
}

int ncclGroupEnd(void) {
    if (depth == 0) return INVALID_USAGE;
    log_call("GroupEnd");
    if (--depth > 0 || !grouped) return SUCCESS;
    operation *o = grouped;
    grouped = NULL;
    return launch(o->comm, o, group_stream);
}
