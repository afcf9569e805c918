#include "comm/rendezvous.h"

#include "base/clock.h"
#include "base/file.h"
#include "comm/backend.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

/* -------------------------------------------------------------------------------------------------------- what started us */

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

bool loom_started_by_mpi(void) {
    return variable("OMPI_COMM_WORLD_SIZE") || variable("PMIX_RANK");
}

bool loom_started_by_torchrun(void) {
    return variable("RANK") && variable("WORLD_SIZE") && strcmp(variable("WORLD_SIZE"), "1") != 0;
}

bool loom_is_alone(loom_error *error) {
    static const char *const counts[] = {"OMPI_COMM_WORLD_SIZE", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (variable(counts[i]) && atoi(variable(counts[i])) > 1)
            return loom_fail(error,
                             "this process was started as one of several ranks (%s is %s), but would train alone; "
                             "start ranks by mpirun, by srun --mpi=pmix, or by torchrun for --comm nccl",
                             counts[i], variable(counts[i]));
    return true;
}

bool loom_launched(void) {
    return loom_started_by_mpi() || loom_started_by_torchrun();
}

void loom_let_others_speak(void) {
    const double end = loom_seconds_now() + 2;
    signal(SIGTERM, SIG_DFL);
    while (loom_seconds_now() < end) loom_pause(0.01);
}

void loom_give_way_to_rank_0(void) {
    const char *names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "RANK"}, *rank = NULL;
    for (size_t i = 0; loom_launched() && !rank && i < sizeof names / sizeof *names; i++) rank = variable(names[i]);
    if (rank && atoi(rank) > 0) loom_let_others_speak();
}

static bool read_number(const char *name, long least, long most, int *number, loom_error *error) {
    const char *text = variable(name);
    char *end;
    errno = 0;
    const long value = text ? strtol(text, &end, 10) : 0;
    if (!text || *end || errno || value < least || value > most)
        return loom_fail(error,
                         "--comm nccl: the environment's %s is '%s', not a number from %ld to %ld; start with "
                         "torchrun or mpirun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT",
                         name, text ? text : "", least, most);
    *number = (int)value;
    return true;
}

bool loom_read_rank_variables(loom_rank_variables *v, loom_error *error) {
    if (!read_number("WORLD_SIZE", 1, 1 << 20, &v->size, error) ||
        !read_number("RANK", 0, v->size - 1, &v->rank, error) ||
        !read_number("LOCAL_RANK", 0, v->rank, &v->local_rank, error))
        return false;
    v->local_size = v->size;
    return !variable("LOCAL_WORLD_SIZE") ||
           read_number("LOCAL_WORLD_SIZE", v->local_rank + 1, v->size, &v->local_size, error);
}

/* -------------------------------------------------------------------------------------------------------------------- TCP
 * Rank 0 listens. Another rank connects, says who it is, gets the bytes, and says that it has them: what connects and
 * does not speak so is not a rank. */

typedef struct greeting {
    char magic[8]; /* "gptloom1" */
    int32_t rank, size;
} greeting;

static const char magic[8] = {'g', 'p', 't', 'l', 'o', 'o', 'm', '1'};
enum { SECONDS_OF_A_CALL = 5, POLL_MILLISECONDS = 100 };

/* Moves all of the bytes, within the socket's time limit. */
static bool transfer(int socket, void *data, size_t bytes, bool out) {
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = out ? send(socket, (char *)data + done, bytes - done, MSG_NOSIGNAL)
                              : recv(socket, (char *)data + done, bytes - done, 0);
        if (n <= 0 && errno != EINTR) return false;
        if (n > 0) done += (size_t)n;
        if (n == 0) return false;
    }
    return true;
}

static void set_limits(int socket) {
    const struct timeval limit = {.tv_sec = SECONDS_OF_A_CALL};
    const int on = 1;
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Of those that are not there. */
static void name_missing(char *text, size_t size, const bool *there, int ranks) {
    bool *missing = calloc((size_t)ranks, sizeof *missing);
    for (int r = 0; missing && r < ranks; r++) missing[r] = !there[r];
    snprintf(text, size, "other ranks");
    if (missing) loom_comm_name_ranks(text, size, missing, ranks);
    free(missing);
}

/* Serves one that has connected; what is no rank of ours is sent away without a word. */
static void serve(int socket, void *data, size_t bytes, int size, bool *there) {
    greeting hello;
    set_limits(socket);
    if (transfer(socket, &hello, sizeof hello, false) && !memcmp(hello.magic, magic, sizeof magic) &&
        hello.size == size && hello.rank > 0 && hello.rank < size && transfer(socket, data, bytes, true) &&
        transfer(socket, &hello, sizeof hello, false))
        there[hello.rank] = true;
    close(socket);
}

static int listen_at(const char *host, const char *port, loom_error *error) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found;
    /* Any address of this machine: MASTER_ADDR may be one that only others use. */
    const int result = getaddrinfo(NULL, port, &hints, &found);
    if (result != 0) return loom_fail(error, "MASTER_PORT %s: %s", port, gai_strerror(result)), -1;
    int listening = -1, why = 0;
    /* An IPv6 socket takes IPv4 too, so it comes first. */
    for (int family = 0; family < 2 && listening < 0; family++)
        for (const struct addrinfo *a = found; a && listening < 0; a = a->ai_next) {
            if (a->ai_family != (family == 0 ? AF_INET6 : AF_INET)) continue;
            const int on = 1, off = 0, s = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
            if (s < 0) continue;
            setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
            if (a->ai_family == AF_INET6) setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
            if (bind(s, a->ai_addr, a->ai_addrlen) == 0 && listen(s, SOMAXCONN) == 0)
                listening = s;
            else {
                why = errno;
                close(s);
                if (why == EADDRINUSE) family = 2; /* IPv4 alone would share the port with whoever has it in IPv6 */
            }
        }
    freeaddrinfo(found);
    if (listening < 0)
        loom_fail(error, "rank 0 cannot listen at %s:%s for the other ranks: %s; choose another MASTER_PORT", host,
                  port, strerror(why));
    return listening;
}

static bool serve_all(const char *host, const char *port, void *data, size_t bytes, int size, double timeout,
                      loom_error *error) {
    const double end = loom_seconds_now() + timeout;
    bool *there = calloc((size_t)size, sizeof *there);
    if (!there) return loom_fail(error, "no memory for %d ranks", size);
    const int listening = listen_at(host, port, error);
    int missing = size - 1;
    there[0] = true;
    while (listening >= 0 && missing > 0 && loom_seconds_now() < end) {
        struct pollfd polled = {.fd = listening, .events = POLLIN};
        if (poll(&polled, 1, POLL_MILLISECONDS) <= 0) continue;
        const int s = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
        if (s >= 0) serve(s, data, bytes, size, there);
        missing = 0;
        for (int r = 0; r < size; r++) missing += !there[r];
    }
    if (listening >= 0) close(listening);
    bool ok = listening >= 0;
    if (ok && missing > 0) {
        char names[128];
        name_missing(names, sizeof names, there, size);
        ok = loom_fail(error, "%s did not come to rank 0 at %s:%s within %g s", names, host, port, timeout);
    }
    free(there);
    return ok;
}

/* A connection, or -1 with what was in the way. */
static int connect_to(const char *host, const char *port, char *why, size_t size) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    const int result = getaddrinfo(host, port, &hints, &found);
    if (result != 0) return snprintf(why, size, "%s", gai_strerror(result)), -1;
    int connected = -1;
    for (const struct addrinfo *a = found; a && connected < 0; a = a->ai_next) {
        const int s = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (s < 0) continue;
        set_limits(s); /* of connecting too */
        if (connect(s, a->ai_addr, a->ai_addrlen) == 0)
            connected = s;
        else {
            snprintf(why, size, "%s", errno == EINPROGRESS ? "no answer" : strerror(errno));
            close(s);
        }
    }
    freeaddrinfo(found);
    return connected;
}

static bool fetch(const char *host, const char *port, void *data, size_t bytes, int rank, int size, double timeout,
                  loom_error *error) {
    const double end = loom_seconds_now() + timeout;
    greeting hello = {.rank = rank, .size = size};
    memcpy(hello.magic, magic, sizeof magic);
    char why[128] = "no answer";
    do {
        const int s = connect_to(host, port, why, sizeof why);
        if (s >= 0) {
            snprintf(why, sizeof why, "what listens there is not rank 0 of these %d ranks", size);
            const bool got = transfer(s, &hello, sizeof hello, true) && transfer(s, data, bytes, false) &&
                             transfer(s, &hello, sizeof hello, true);
            close(s);
            if (got) return true;
        }
        loom_pause(1e-3 * POLL_MILLISECONDS);
    } while (loom_seconds_now() < end);
    return loom_fail(error, "rank 0 cannot be reached at %s:%s within %g s: %s; check MASTER_ADDR and MASTER_PORT",
                     host, port, timeout, why);
}

bool loom_share_by_tcp(void *data, size_t bytes, int rank, int size, double timeout, loom_error *error) {
    const char *host = variable("MASTER_ADDR");
    const char *agent = variable("TORCHELASTIC_USE_AGENT_STORE");
    int number;
    char port[16];
    if (size == 1) return true;
    if (!host)
        return loom_fail(error, "--comm nccl: the environment has no MASTER_ADDR, where rank 0 can be reached; start "
                                "with torchrun or mpirun");
    if (!read_number("MASTER_PORT", 1, 65534, &number, error)) return false;
    /* torchrun's agent listens at MASTER_PORT itself then. */
    snprintf(port, sizeof port, "%d", number + (agent && !strcmp(agent, "True")));
    return rank == 0 ? serve_all(host, port, data, bytes, size, timeout, error)
                     : fetch(host, port, data, bytes, rank, size, timeout, error);
}

/* ------------------------------------------------------------------------------------------------------------------- file
 * Files that a run which was ended has left may be in the way: so each rank r puts a number that is its own into
 * FILE.r, and takes FILE only if that holds its number. Rank 0 writes FILE anew when a number has changed. A rank that
 * has the bytes deletes FILE.r; when all have, rank 0 deletes FILE. */

static bool read_whole(const char *path, void *data, size_t bytes) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    const bool ok = read(file, data, bytes) == (ssize_t)bytes;
    close(file);
    return ok;
}

static bool own_path(char *path, size_t size, const char *file, int rank, loom_error *error) {
    return snprintf(path, size, "%s.%d", file, rank) < (int)size || loom_fail(error, "%s: the path is too long", file);
}

static bool offer(const char *file, void *data, size_t bytes, int size, double timeout, loom_error *error) {
    const double end = loom_seconds_now() + timeout;
    const size_t whole = bytes + (size_t)size * sizeof(uint64_t);
    char path[4096], names[128];
    char *content = calloc(1, whole);
    bool *there = calloc((size_t)size, sizeof *there), *seen = calloc((size_t)size, sizeof *seen);
    bool ok = content && there && seen;
    if (!ok) loom_fail(error, "no memory for %d ranks", size);
    if (ok) {
        memcpy(content, data, bytes);
        unlink(file);
        there[0] = true;
    }
    for (int missing = size - 1; ok && missing > 0;) {
        bool changed = false;
        missing = 0;
        for (int r = 1; ok && r < size; r++) {
            uint64_t number;
            ok = own_path(path, sizeof path, file, r, error);
            if (!ok) break;
            char *place = content + bytes + (size_t)r * sizeof number;
            if (read_whole(path, &number, sizeof number)) {
                changed = changed || memcmp(place, &number, sizeof number);
                memcpy(place, &number, sizeof number);
                seen[r] = true;
                there[r] = false;
            } else if (seen[r] && access(path, F_OK) != 0)
                there[r] = true;
            missing += !there[r];
        }
        if (ok && changed) ok = loom_file_replace(file, content, whole, error);
        if (ok && missing > 0 && loom_seconds_now() > end) {
            name_missing(names, sizeof names, there, size);
            ok = loom_fail(error, "%s did not come to %s within %g s", names, file, timeout);
        }
        if (ok && missing > 0) loom_pause(1e-3 * POLL_MILLISECONDS);
    }
    unlink(file);
    free(content);
    free(there);
    free(seen);
    return ok;
}

static bool accept_offer(const char *file, void *data, size_t bytes, int rank, int size, double timeout,
                         loom_error *error) {
    const double end = loom_seconds_now() + timeout;
    const size_t whole = bytes + (size_t)size * sizeof(uint64_t);
    char path[4096];
    uint64_t number;
    char *content = malloc(whole);
    if (!content) return loom_fail(error, "no memory for %d ranks", size);
    bool ok = own_path(path, sizeof path, file, rank, error);
    if (ok && getrandom(&number, sizeof number, 0) != sizeof number) ok = loom_fail(error, "getrandom failed");
    ok = ok && loom_file_replace(path, &number, sizeof number, error);
    while (ok) {
        if (read_whole(file, content, whole) &&
            !memcmp(content + bytes + (size_t)rank * sizeof number, &number, sizeof number)) {
            memcpy(data, content, bytes);
            break;
        }
        if (loom_seconds_now() > end) ok = loom_fail(error, "rank 0 did not come to %s within %g s", file, timeout);
        loom_pause(1e-3 * POLL_MILLISECONDS);
    }
    unlink(path);
    free(content);
    return ok;
}

bool loom_share_by_file(const char *path, void *data, size_t bytes, int rank, int size, double timeout,
                        loom_error *error) {
    if (size == 1) return true;
    return rank == 0 ? offer(path, data, bytes, size, timeout, error)
                     : accept_offer(path, data, bytes, rank, size, timeout, error);
}
