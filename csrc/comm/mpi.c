/* MPI as a back end. All of MPI is called by one thread, the communication thread: it takes operations from a queue, in
 * the order in which they were put in, makes MPI progress until each has ended, and stages what is not in the host's
 * memory through pinned memory. Between and during operations it answers other ranks that ask how far this one is: so a
 * rank whose operation takes too long can say which rank it waits for. */
#include "comm/backend.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/half.h"
#include "comm/mpi.h"
#include "comm/mpi_table.h"

#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    QUEUE = 64,      /* operations that can be outstanding before putting one in waits */
    MOST = 1 << 30,  /* elements that one call of MPI moves */
    ALIGNMENT = 256, /* of pieces in pinned memory */
    ARRIVAL_BYTES = 4 << 20,
    SECONDS_TO_END = 10, /* before a process that MPI does not end ends itself */
    IDLE_NANOSECONDS = 20 * 1000 * 1000,
    SPINS = 20 /* looks at an operation that do not pause: what is small has ended by then */
};
static const double seconds_between_looks = 0.01, seconds_of_pause = 20e-6;
static const double least_seconds_for_answers = 4, share_of_timeout_for_answers = 0.05;

typedef struct mpi {
    loom_comm_base base; /* first */
    const loom_mpi_table *table;
    loom_mpi_world world;
    loom_stream *stream; /* for what is staged */
    void *pinned[2];     /* two pieces: one is copied while the other is sent */
    size_t piece;        /* bytes of each */
    loom_event *copied;
    void *arrival;              /* ARRIVAL_BYTES: of a sum, what another rank has sent */
    double seconds_for_answers; /* enough for a rank that gets no processor for a while */

    pthread_t thread;
    bool threaded;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    loom_comm_operation queue[QUEUE]; /* operation n at n % QUEUE */
    loom_event *ready[QUEUE];         /* behind what its input waits for */
    loom_comm_op_id put, completed;
    double held_up, held_up_since; /* seconds of operations for the device's own work; 0: not now */
    int64_t step;
    bool long_timeout;
    bool opened, closing, failed, is_reporter;
    loom_error failure;
    _Atomic int64_t published, published_step; /* of another back end (loom_comm_mpi_publish_progress) */
    bool finding_stragglers;                   /* the communication thread is to find those that `overdue` waits for */
    double overdue_seconds;
    loom_comm_operation overdue; /* of that back end */
    loom_error stragglers;       /* which they are */
    _Atomic bool aborting;
    bool quiet; /* as it aborts */
    int status;

    loom_comm_op_id begun;  /* the communication thread's own: the operation it is in, or was in last */
    int64_t own_step;       /* when that began */
    bool own_long_timeout;  /* then, too */
    double looked;          /* when it last looked for notes */
    loom_mpi_note *answers; /* (size): of other ranks to this one's question */
} mpi;

static mpi *mpi_of(const loom_comm *comm) {
    return (mpi *)(uintptr_t)comm;
}

/* ------------------------------------------------------------------------------------------------------------ the library */

/* A place relative to the program's folder; false if there is no such file. */
static bool beside_program(char *path, size_t size, const char *place) {
    char program[1024];
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0) return false;
    program[length] = 0;
    char *name = strrchr(program, '/');
    if (!name) return false;
    *name = 0;
    return snprintf(path, size, "%s/%s/libgptloom_mpi.so", program, place) < (int)size && access(path, R_OK) == 0;
}

/* Open MPI's plugins look for its symbols among the process's: RTLD_GLOBAL. Never unloaded: neither is libmpi. */
static const loom_mpi_table *load(const char *asked, loom_error *error) {
    static const char *const places[] = {".", "..", "../lib"};
    char path[1200];
    const char *file = asked ? asked : getenv("LOOM_MPI");
    for (size_t i = 0; (!file || !*file) && i < sizeof places / sizeof *places; i++)
        if (beside_program(path, sizeof path, places[i])) file = path;
    if (!file || !*file) {
        loom_fail(error,
                  "--comm mpi: libgptloom_mpi.so is not beside this program: it is built where mpicc is; install "
                  "Open MPI (apt-get install libopenmpi-dev openmpi-bin) and run make again, or say where the "
                  "library is with LOOM_MPI=/path/to/libgptloom_mpi.so");
        return NULL;
    }
    void *library = dlopen(file, RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
        loom_fail(error, "--comm mpi: %s cannot be loaded: %s; is Open MPI installed (apt-get install openmpi-bin)?",
                  file, dlerror());
        return NULL;
    }
    loom_mpi_get_table_function get;
    void *const address = dlsym(library, LOOM_MPI_TABLE_SYMBOL);
    memcpy(&get, &address, sizeof get);
    const loom_mpi_table *table = get ? get() : NULL;
    if (!table || table->version != LOOM_MPI_TABLE_VERSION) {
        loom_fail(error, "--comm mpi: %s is not of this version of gptloom: build it again, with make", file);
        return NULL;
    }
    return table;
}

/* ---------------------------------------------------------------------------------------------------------------- notes */

static int64_t step_of(const mpi *m) {
    return m->published ? m->published_step : m->own_step;
}

static bool send_note(mpi *m, loom_mpi_note_kind kind, int to, char *why) {
    const loom_mpi_note note = {.kind = kind, .number = m->begun, .published = m->published, .step = step_of(m)};
    return m->table->send_note(&note, to, why);
}

static void send_all(mpi *m, loom_mpi_note_kind kind) {
    char why[LOOM_MPI_WHY];
    for (int r = 0; r < m->world.size; r++)
        if (r != m->world.rank) send_note(m, kind, r, why);
}

/* Ends all ranks. mpirun first wakes one that hangs; it answers those that still ask, who would find out, and say,
 * something else. So they hear before that that this rank has said it. */
static void abort_all(mpi *m) {
    if (!m->quiet) send_all(m, LOOM_MPI_END);
    m->table->abort(m->status);
}

/* Answers other ranks, keeps what they say, and ends all if the caller's thread wants it. */
static bool look_around(mpi *m, char *why) {
    if (m->aborting) abort_all(m);
    m->looked = loom_seconds_now();
    for (;;) {
        loom_mpi_note note;
        int from;
        if (!m->table->take_note(&note, &from, why)) return false;
        if (from < 0) return true;
        switch ((loom_mpi_note_kind)note.kind) {
        case LOOM_MPI_QUESTION:
            if (!send_note(m, LOOM_MPI_ANSWER, from, why)) return false;
            break;
        case LOOM_MPI_ANSWER: m->answers[from] = note; break;
        case LOOM_MPI_END:
            pthread_mutex_lock(&m->lock);
            m->is_reporter = false;
            pthread_mutex_unlock(&m->lock);
            break;
        case LOOM_MPI_NOTE_KINDS: break;
        }
    }
}

/* Asks all others how far they are; ends when all have answered, or after a while. */
static void ask_around(mpi *m) {
    const double end = loom_seconds_now() + m->seconds_for_answers;
    const int size = m->world.size;
    char why[LOOM_MPI_WHY];
    int answered;
    memset(m->answers, 0, (size_t)size * sizeof *m->answers);
    send_all(m, LOOM_MPI_QUESTION);
    do {
        if (!look_around(m, why)) return;
        answered = 1;
        for (int r = 0; r < size; r++) answered += m->answers[r].kind == LOOM_MPI_ANSWER;
        loom_pause(seconds_of_pause);
    } while (answered < size && loom_seconds_now() < end);
}

static void say_step(char *text, size_t size, int64_t step) {
    if (step < 0)
        snprintf(text, size, "before the first step");
    else
        snprintf(text, size, "in step %lld", (long long)step);
}

/* Finds out which ranks an operation (`of_other`: of another back end) has waited for, for so many seconds; the error
 * names them. Of the ranks that wait, the first is the reporter, if none has been. True where the operation may wait
 * longer and all ranks answer. */
static bool find_stragglers(mpi *m, const loom_comm_operation *o, bool of_other, double seconds, bool may_wait,
                            loom_error *error) {
    const int size = m->world.size, self = m->world.rank;
    char what[128], ranks[128], here[64], there[64];
    loom_comm_describe(what, sizeof what, o);
    bool *silent = calloc(2 * (size_t)size, sizeof *silent), *late = silent + size;
    if (!silent) return loom_fail(error, "%s did not end within %g s", what, seconds);
    ask_around(m);
    int silents = 0, lates = 0, first_waiting = self, first_late = -1;
    for (int r = 0; r < size; r++) {
        if (r == self) continue;
        silent[r] = m->answers[r].kind != LOOM_MPI_ANSWER;
        late[r] = !silent[r] && (of_other ? m->answers[r].published : m->answers[r].number) < o->number;
        silents += silent[r];
        lates += late[r];
        if (late[r] && first_late < 0) first_late = r;
    }
    /* Where ranks are silent, one that is late waits for them too, in an earlier operation. */
    for (int r = 0; r < self && first_waiting == self; r++)
        if (!silent[r] && (silents || !late[r])) first_waiting = r;
    if (!silents && may_wait) {
        free(silent);
        return true;
    }
    say_step(here, sizeof here, step_of(m));
    if (silents) {
        loom_comm_name_ranks(ranks, sizeof ranks, silent, size);
        loom_fail(error, "%s: no answer for %g s, to %s of the other ranks, %s: %s", ranks, m->base.comm.timeout, what,
                  here,
                  silents == 1 ? "it hangs, or its machine or the link to it is down"
                               : "they hang, or their machines or the links to them are down");
    } else if (lates) {
        loom_comm_name_ranks(ranks, sizeof ranks, late, size);
        say_step(there, sizeof there, m->answers[first_late].step);
        loom_fail(error, "%s did not come to %s within %g s: %s, while the others are %s", ranks, what, seconds, there,
                  here);
    } else
        loom_fail(error, "%s did not end within %g s, %s, though all ranks have come to it", what, seconds, here);
    free(silent);
    pthread_mutex_lock(&m->lock);
    m->is_reporter = m->is_reporter && first_waiting == self;
    pthread_mutex_unlock(&m->lock);
    return false;
}

/* ------------------------------------------------------------------------------------------------------------- operations */

/* Moves one call's worth on host memory, with what other ranks have to say in between: `part` of an operation o, or all
 * of it. */
static bool transfer_part(mpi *m, const loom_comm_operation *o, const loom_comm_operation *part, loom_error *error) {
    /* Who is at the end lets those who are not find out what is wrong, and say it. */
    const double limit = o->kind == LOOM_FINAL_BARRIER ? 2 * (m->base.comm.timeout + m->seconds_for_answers)
                                                       : m->base.comm.timeout;
    double end = loom_seconds_now() + limit;
    int limits = 0; /* that have passed */
    char why[LOOM_MPI_WHY], what[128];
    bool ended = false, ok = m->table->start(part, why);
    for (int looks = 0; ok; looks++) {
        ok = m->table->test(&ended, why);
        if (!ok || ended) break;
        if (looks < SPINS) continue;
        const double now = loom_seconds_now();
        if (now > end) {
            const bool may_wait = m->own_long_timeout && ++limits < LOOM_COMM_LONG_TIMEOUT;
            if (!find_stragglers(m, o, false, m->own_long_timeout ? limits * limit : m->base.comm.timeout, may_wait,
                                 error))
                return false;
            end = now + limit;
        }
        if (now > m->looked + seconds_between_looks || m->aborting) ok = look_around(m, why);
        loom_pause(seconds_of_pause);
    }
    return ok || loom_fail(error, "rank %d, %s: %s", m->world.rank, loom_comm_describe(what, sizeof what, o), why);
}

/* out = a + b: 16-bit sums in fp32, rounded once. */
static void add(void *out, const void *a, const void *b, int64_t n, loom_dtype dtype) {
    switch (dtype) {
    case LOOM_F32:
        for (int64_t i = 0; i < n; i++) ((float *)out)[i] = ((const float *)a)[i] + ((const float *)b)[i];
        break;
    case LOOM_F64:
        for (int64_t i = 0; i < n; i++) ((double *)out)[i] = ((const double *)a)[i] + ((const double *)b)[i];
        break;
    case LOOM_I32:
        for (int64_t i = 0; i < n; i++) ((int32_t *)out)[i] = ((const int32_t *)a)[i] + ((const int32_t *)b)[i];
        break;
    case LOOM_I64:
        for (int64_t i = 0; i < n; i++) ((int64_t *)out)[i] = ((const int64_t *)a)[i] + ((const int64_t *)b)[i];
        break;
    case LOOM_BF16:
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)out)[i] = float_to_bf16(bf16_to_float(((const uint16_t *)a)[i]) +
                                                 bf16_to_float(((const uint16_t *)b)[i]));
        break;
    case LOOM_F16: LOOM_CHECK(false);
    }
}

/* Each rank gets its row from all others, one after the other, and adds it: Open MPI's own nonblocking reductions to
 * one rank took ten times as long as moving what they add, and MPI_Ireduce_scatter_block goes through one rank. */
static bool reduce_scatter(mpi *m, const loom_comm_operation *o, loom_error *error) {
    const int size = m->world.size, rank = m->world.rank;
    const size_t element = loom_dtype_size(o->dtype), row = (size_t)o->count * element;
    const int64_t room = (int64_t)(ARRIVAL_BYTES / element);
    const char *in = o->in;
    char *out = o->out;
    if (size == 1 && out != in) memcpy(out, in, row);
    for (int64_t first = 0; size > 1 && first < o->count; first += room) {
        const int64_t n = o->count - first < room ? o->count - first : room;
        const size_t skipped = (size_t)first * element;
        const void *sum = in + (size_t)rank * row + skipped;
        for (int shift = 1; shift < size; shift++) {
            const int to = (rank + shift) % size, from = (rank + size - shift) % size;
            const loom_comm_operation part = {.kind = LOOM_EXCHANGE,
                                              .dtype = o->dtype,
                                              .out = m->arrival,
                                              .in = in + (size_t)to * row + skipped,
                                              .count = n,
                                              .send_count = n,
                                              .from = from,
                                              .to = to,
                                              .number = o->number};
            if (!transfer_part(m, o, &part, error)) return false;
            add(out + skipped, sum, m->arrival, n, o->dtype);
            sum = out + skipped;
        }
    }
    return true;
}

static bool transfer(mpi *m, const loom_comm_operation *o, loom_error *error) {
    return o->kind == LOOM_REDUCE_SCATTER ? reduce_scatter(m, o, error) : transfer_part(m, o, o, error);
}

/* Elements [first, first + n) of each of an operation's rows, as an operation of its own on contiguous rows. */
static loom_comm_operation slice_of(const loom_comm_operation *o, int64_t first, int64_t n) {
    const size_t shift = (size_t)first * loom_dtype_size(o->dtype);
    loom_comm_operation s = *o;
    const int64_t received = o->count - first, to_send = o->send_count - first;
    s.count = received < 0 ? 0 : received < n ? received : n;
    s.send_count = to_send < 0 ? 0 : to_send < n ? to_send : n;
    if (s.count > 0) s.out = (char *)o->out + shift;
    if (o->kind == LOOM_EXCHANGE ? s.send_count > 0 : s.count > 0) s.in = (const char *)o->in + shift;
    if (o->kind == LOOM_EXCHANGE && s.count == 0) s.from = -1;
    if (o->kind == LOOM_EXCHANGE && s.send_count == 0) s.to = -1;
    return s;
}

static int64_t longest(const loom_comm_operation *o) {
    return o->count > o->send_count ? o->count : o->send_count;
}

static bool run_direct(mpi *m, const loom_comm_operation *o, loom_error *error) {
    if (o->kind == LOOM_BARRIER) return transfer(m, o, error);
    for (int64_t first = 0; first < longest(o); first += MOST) {
        const bool whole = o->kind == LOOM_REDUCE_SCATTER || o->kind == LOOM_ALL_GATHER;
        const loom_comm_operation s = whole ? *o : slice_of(o, first, MOST);
        if (!transfer(m, &s, error)) return false;
        if (whole) break;
    }
    return true;
}

/* Where a piece's rows are in pinned memory: input first, and output in the same place but for an exchange. */
typedef struct staged {
    loom_comm_operation slice; /* on pinned memory */
    int64_t first;             /* of the operation's elements */
} staged;

static staged stage(const mpi *m, const loom_comm_operation *o, int64_t first, int64_t n, char *pinned) {
    const loom_comm *comm = &m->base.comm;
    staged s = {.slice = slice_of(o, first, n), .first = first};
    loom_comm_operation *p = &s.slice;
    const size_t row = (size_t)p->count * loom_dtype_size(o->dtype);
    p->in = p->out = pinned;
    if (o->kind == LOOM_REDUCE_SCATTER) p->out = pinned + (size_t)comm->rank * row;
    if (o->kind == LOOM_ALL_GATHER) p->in = pinned + (size_t)comm->rank * row;
    if (o->kind == LOOM_EXCHANGE) p->in = pinned + row;
    return s;
}

/* Puts the copies of a piece's rows into the stream: input from the device, or output to it. */
static void copy_rows(const mpi *m, const loom_comm_operation *o, const staged *s, loom_copy_kind kind) {
    const loom_comm *comm = &m->base.comm;
    loom_device *device = comm->device;
    const bool out = kind == LOOM_HOST_TO_DEVICE;
    const size_t element = loom_dtype_size(o->dtype);
    const bool sends = !out && o->kind == LOOM_EXCHANGE;
    const int64_t whole = sends ? o->send_count : o->count, n = sends ? s->slice.send_count : s->slice.count;
    const int rows = out ? loom_comm_rows_out(comm, o) : loom_comm_rows_in(comm, o);
    for (int r = 0; n > 0 && r < rows; r++) {
        const size_t there = ((size_t)r * (size_t)whole + (size_t)s->first) * element;
        const size_t here = (size_t)r * (size_t)n * element;
        if (out)
            device->copy(device, m->stream, (char *)o->out + there, (char *)s->slice.out + here, (size_t)n * element,
                         kind);
        else
            device->copy(device, m->stream, (void *)((uintptr_t)s->slice.in + here), (const char *)o->in + there,
                         (size_t)n * element, kind);
    }
}

/* In pieces that take turns in two pinned buffers: while MPI has one, the device fills the other. */
static bool run_staged(mpi *m, const loom_comm_operation *o, loom_error *error) {
    loom_device *device = m->base.comm.device;
    const int in = loom_comm_rows_in(&m->base.comm, o), out = loom_comm_rows_out(&m->base.comm, o);
    const int rows = o->kind == LOOM_EXCHANGE ? 2 : in > out ? in : out;
    const int64_t room = (int64_t)(m->piece / ((size_t)rows * loom_dtype_size(o->dtype)));
    const int64_t n = room < MOST ? room : MOST, all = longest(o);
    staged s[2];
    s[0] = stage(m, o, 0, n, m->pinned[0]);
    copy_rows(m, o, &s[0], LOOM_DEVICE_TO_HOST);
    for (int64_t first = 0, turn = 0; first < all; first += n, turn = 1 - turn) {
        device->event_record(device, m->copied, m->stream);
        if (!device->event_synchronize(device, m->copied, error)) return false;
        if (first + n < all) {
            s[1 - turn] = stage(m, o, first + n, n, m->pinned[1 - turn]);
            copy_rows(m, o, &s[1 - turn], LOOM_DEVICE_TO_HOST);
        }
        if (!transfer(m, &s[turn].slice, error)) return false;
        copy_rows(m, o, &s[turn], LOOM_HOST_TO_DEVICE);
    }
    device->event_record(device, m->copied, m->stream);
    return device->event_synchronize(device, m->copied, error);
}

/* Until the device has come to what an operation's input waits for: its own work, which is not waiting for others. */
static bool await_input(mpi *m, loom_event *ready, loom_error *error) {
    loom_device *device = m->base.comm.device;
    char why[LOOM_MPI_WHY];
    bool reached, ok = device->event_query(device, ready, &reached, error);
    if (!ok || reached) return ok;
    const double since = loom_seconds_now();
    pthread_mutex_lock(&m->lock);
    m->held_up_since = since;
    pthread_mutex_unlock(&m->lock);
    while (ok && !reached) {
        if (loom_seconds_now() > m->looked + seconds_between_looks || m->aborting)
            ok = look_around(m, why) || loom_fail(error, "rank %d: %s", m->world.rank, why);
        loom_pause(seconds_of_pause);
        ok = ok && device->event_query(device, ready, &reached, error);
    }
    pthread_mutex_lock(&m->lock);
    m->held_up += loom_seconds_now() - since;
    m->held_up_since = 0;
    pthread_mutex_unlock(&m->lock);
    return ok;
}

static bool run_operation(mpi *m, const loom_comm_operation *o, loom_event *ready, loom_error *error) {
    loom_device *device = m->base.comm.device;
    if (!o->host && !await_input(m, ready, error)) return false;
    if (longest(o) == 0 && o->kind != LOOM_BARRIER) return true;
    return o->host || device->host_memory ? run_direct(m, o, error) : run_staged(m, o, error);
}

/* -------------------------------------------------------------------------------------------------- the communication thread */

/* Waits for something to do, no longer than other ranks may wait for an answer. */
static void idle(mpi *m) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += IDLE_NANOSECONDS;
    if (until.tv_nsec >= 1000000000) until = (struct timespec){until.tv_sec + 1, until.tv_nsec - 1000000000};
    pthread_cond_timedwait(&m->changed, &m->lock, &until);
}

static void finish(mpi *m, bool ok, const loom_error *why) {
    if (ok)
        m->completed = m->begun;
    else if (!m->failed) {
        m->failed = true;
        m->failure = *why;
    }
    pthread_cond_broadcast(&m->changed);
}

/* With the lock held, but for while it asks. */
static void answer_for_stragglers(mpi *m) {
    const loom_comm_operation operation = m->overdue;
    const double seconds = m->overdue_seconds;
    loom_error error;
    pthread_mutex_unlock(&m->lock);
    find_stragglers(m, &operation, true, seconds, false, &error);
    pthread_mutex_lock(&m->lock);
    m->stragglers = error;
    m->finding_stragglers = false;
    pthread_cond_broadcast(&m->changed);
}

static void *communicate(void *communicator) {
    mpi *m = communicator;
    char why[LOOM_MPI_WHY] = "";
    loom_error error = {""};
    bool ok = m->table->open(&m->world, why);
    if (!ok) loom_fail(&error, "--comm mpi: %s", why);
    if (ok) m->answers = calloc((size_t)m->world.size, sizeof *m->answers);
    if (ok && !m->answers) ok = loom_fail(&error, "no memory for a communicator");
    pthread_mutex_lock(&m->lock);
    m->opened = true;
    finish(m, ok, &error);
    while (!m->closing && m->answers) {
        if (!m->finding_stragglers && (m->failed || m->completed == m->put)) idle(m);
        const bool work = !m->failed && m->completed < m->put;
        const loom_comm_op_id next = m->completed + 1;
        const loom_comm_operation operation = m->queue[next % QUEUE];
        loom_event *ready = m->ready[next % QUEUE];
        if (work) {
            m->begun = next;
            m->own_step = m->step;
            m->own_long_timeout = m->long_timeout;
        }
        pthread_mutex_unlock(&m->lock);
        ok = look_around(m, why) || loom_fail(&error, "rank %d: %s", m->world.rank, why);
        ok = ok && (!work || run_operation(m, &operation, ready, &error));
        pthread_mutex_lock(&m->lock);
        if (work || !ok) finish(m, ok, &error);
        if (m->finding_stragglers) answer_for_stragglers(m);
    }
    const loom_comm_operation final_barrier = {.kind = LOOM_FINAL_BARRIER, .number = m->begun + 1};
    const bool good = !m->failed;
    pthread_mutex_unlock(&m->lock);
    if (good && transfer(m, &final_barrier, &error)) m->table->close();
    return NULL;
}

/* ----------------------------------------------------------------------------------------------------- the caller's thread */

static double held_up(const mpi *m) {
    return m->held_up + (m->held_up_since > 0 ? loom_seconds_now() - m->held_up_since : 0);
}

/* With the lock held: until the operation is done, or something failed. */
static bool wait_locked(mpi *m, loom_comm_op_id op_id) {
    const double begin = loom_seconds_now(), held_up_before = held_up(m);
    while (m->completed < op_id && !m->failed) pthread_cond_wait(&m->changed, &m->lock);
    const double seconds = loom_seconds_now() - begin - (held_up(m) - held_up_before);
    if (seconds > 0) m->base.comm.traffic.seconds_waited += seconds;
    return m->completed >= op_id;
}

static bool pass_failure(mpi *m, loom_error *error) {
    m->base.comm.is_reporter = m->is_reporter;
    return loom_comm_failed(&m->base.comm, &m->failure, error);
}

static bool wait(loom_comm *comm, loom_comm_op_id op_id, loom_stream *stream, loom_error *error) {
    mpi *m = mpi_of(comm);
    (void)stream; /* the host has waited, and whatever it puts in comes later */
    pthread_mutex_lock(&m->lock);
    const bool ok = wait_locked(m, op_id) || pass_failure(m, error);
    pthread_mutex_unlock(&m->lock);
    return ok;
}

/* Where many are outstanding it waits for one of them. */
static void post(loom_comm *comm, const loom_comm_operation *o, loom_stream *after) {
    mpi *m = mpi_of(comm);
    loom_device *device = comm->device;
    pthread_mutex_lock(&m->lock);
    wait_locked(m, o->number - QUEUE + 1);
    const int place = (int)(o->number % QUEUE);
    if (!o->host && !m->failed) device->event_record(device, m->ready[place], after);
    m->queue[place] = *o;
    m->put = o->number;
    m->step = comm->step;
    m->long_timeout = comm->long_timeout;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

static bool run(loom_comm *comm, const loom_comm_operation *o, loom_error *error) {
    post(comm, o, NULL);
    return wait(comm, o->number, NULL, error);
}

void loom_comm_mpi_publish_progress(loom_comm *comm, loom_comm_op_id number, int64_t step) {
    mpi_of(comm)->published_step = step;
    mpi_of(comm)->published = number;
}

void loom_comm_mpi_find_stragglers(loom_comm *comm, const loom_comm_operation *operation, double seconds,
                                   loom_error *error) {
    mpi *m = mpi_of(comm);
    pthread_mutex_lock(&m->lock);
    m->overdue = *operation;
    m->overdue_seconds = seconds;
    m->finding_stragglers = true;
    pthread_cond_broadcast(&m->changed);
    while (m->finding_stragglers) pthread_cond_wait(&m->changed, &m->lock);
    loom_fail(error, "%s", m->stragglers.message);
    comm->is_reporter = m->is_reporter;
    pthread_mutex_unlock(&m->lock);
}

/* Operations that matter to the stream have been waited for by the host. */
static bool synchronize(loom_comm *comm, loom_stream *stream, loom_error *error) {
    return comm->device->synchronize(comm->device, stream, error);
}

static bool attach(loom_comm *comm, size_t staging, loom_error *error) {
    mpi *m = mpi_of(comm);
    loom_device *device = comm->device;
    /* A piece has room for an element of each rank's row at least. */
    const size_t least = (size_t)(comm->size < 2 ? 2 : comm->size) * sizeof(int64_t);
    m->piece = staging / 2 < least ? least : staging / 2 / ALIGNMENT * ALIGNMENT;
    if (m->piece < least) m->piece = least;
    m->arrival = malloc(ARRIVAL_BYTES);
    bool ok = m->arrival ? device->event_open(device, &m->copied, error)
                         : loom_fail(error, "no memory for a communicator");
    for (int i = 0; ok && i < QUEUE; i++) ok = device->event_open(device, &m->ready[i], error);
    if (!ok || device->host_memory) return ok;
    ok = device->stream_open(device, &m->stream, error);
    for (int i = 0; ok && i < 2; i++) ok = device->allocate_host(device, &m->pinned[i], m->piece, error);
    return ok;
}

/* The communication thread ends all, as MPI is its own; if it is held up elsewhere, the alarm ends this process, which
 * ends the others. */
static void end_all(loom_comm *comm, bool quiet, int status) {
    mpi *m = mpi_of(comm);
    signal(SIGALRM, SIG_DFL);
    alarm(SECONDS_TO_END);
    if (quiet) sleep(SECONDS_TO_END / 2);
    m->status = status;
    m->quiet = quiet;
    m->aborting = true;
    pthread_mutex_lock(&m->lock);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    for (;;) pause();
}

static void free_all(mpi *m) {
    loom_device *device = m->base.comm.device;
    for (int i = 0; device && i < 2; i++)
        if (m->pinned[i]) device->release_host(device, m->pinned[i], m->piece);
    for (int i = 0; device && i < QUEUE; i++) device->event_close(device, m->ready[i]);
    if (device) device->event_close(device, m->copied);
    if (m->stream) device->stream_close(device, m->stream);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    free(m->arrival);
    free(m->answers);
    free(m);
}

static void close_mpi(loom_comm *comm) {
    mpi *m = mpi_of(comm);
    if (m->threaded) {
        pthread_mutex_lock(&m->lock);
        wait_locked(m, m->put);
        m->closing = true;
        pthread_cond_broadcast(&m->changed);
        pthread_mutex_unlock(&m->lock);
        pthread_join(m->thread, NULL);
    }
    free_all(m);
}

/* Signals are for the program's own threads. */
static bool start_thread(mpi *m, loom_error *error) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int result = pthread_create(&m->thread, NULL, communicate, m);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    m->threaded = result == 0;
    return result == 0 || loom_fail(error, "a thread for communication cannot be started: %s", strerror(result));
}

static bool open_mpi(mpi *m, loom_error *error) {
    if (!start_thread(m, error)) return false;
    pthread_mutex_lock(&m->lock);
    while (!m->opened) pthread_cond_wait(&m->changed, &m->lock);
    const bool ok = !m->failed || pass_failure(m, error);
    pthread_mutex_unlock(&m->lock);
    return ok;
}

bool loom_comm_mpi_open(loom_comm **comm, const loom_comm_options *options, loom_comm *control, loom_error *error) {
    LOOM_CHECK(!control);
    static const loom_comm_backend backend = {.attach = attach,
                                              .post = post,
                                              .wait = wait,
                                              .synchronize = synchronize,
                                              .run = run,
                                              .abort = end_all,
                                              .close = close_mpi};
    const loom_mpi_table *table = load(options->mpi_library, error);
    if (!table) return false;
    mpi *m = calloc(1, sizeof *m);
    if (!m) return loom_fail(error, "no memory for a communicator");
    m->table = table;
    m->step = m->own_step = -1;
    m->is_reporter = true;
    m->seconds_for_answers = fmax(least_seconds_for_answers, share_of_timeout_for_answers * options->timeout);
    m->base.times_waiting = true;
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    loom_comm *c = &m->base.comm;
    *c = (loom_comm){.name = "mpi", .timeout = options->timeout, .step = -1, .is_reporter = true, .backend = &backend};
    if (!open_mpi(m, error)) {
        close_mpi(c);
        return false;
    }
    c->rank = m->world.rank;
    c->size = m->world.size;
    c->local_rank = m->world.local_rank;
    c->local_size = m->world.local_size;
    snprintf(c->description, sizeof c->description, "MPI (%s), %d rank%s", m->world.library, c->size,
             c->size == 1 ? "" : "s");
    *comm = c;
    return true;
}
