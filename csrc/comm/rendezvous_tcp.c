/* The exchange over TCP: rank 0 listens at MASTER_ADDR and MASTER_PORT, and the others connect. Anybody may connect, so
 * all connections are served at once, none for more than a few seconds, and what they say is checked (handshake.c). */
#include "comm/rendezvous.h"

#include "base/clock.h"
#include "comm/backend.h"
#include "comm/handshake.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    POLL_MILLISECONDS = 100,
    ADDRESSES = 8,     /* that rank 0 listens at: a name may have several */
    CONNECTIONS = 128, /* at one time: an honest one takes some milliseconds */
    NAME = 72          /* "[IPv6%interface]:port" */
};
static const double seconds_of_a_connection = 5, /* from its first word to the last */
    seconds_of_refusals = 10;                    /* that a rank takes for a mistake: before that, a run may be ending */

static bool make_nonce(unsigned char nonce[LOOM_HANDSHAKE_NONCE]) {
    return getrandom(nonce, LOOM_HANDSHAKE_NONCE, 0) == LOOM_HANDSHAKE_NONCE;
}

/* Numbers only: nobody is asked for a name. */
static void name_address(char name[NAME], const struct sockaddr_storage *address, socklen_t size) {
    static const char mapped[] = "::ffff:"; /* IPv4 at an IPv6 socket */
    char text[48], port[8];
    const bool known = getnameinfo((const struct sockaddr *)address, size, text, sizeof text, port, sizeof port,
                                   NI_NUMERICHOST | NI_NUMERICSERV) == 0;
    const char *host = strncmp(text, mapped, strlen(mapped)) ? text : text + strlen(mapped);
    if (known)
        snprintf(name, NAME, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    else
        snprintf(name, NAME, "an unknown address");
}

/* ---------------------------------------------------------------------------------------------------------- listening */

static bool is_loopback(const struct sockaddr *a) {
    if (a->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
    return a->sa_family == AF_INET &&
           ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

/* A listening socket, or -1 with errno. */
static int listen_at(const struct addrinfo *a, bool takes_ipv4_too) {
    const int on = 1, only = !takes_ipv4_too, s = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s < 0) return -1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6) setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
    if (bind(s, a->ai_addr, a->ai_addrlen) == 0 && listen(s, SOMAXCONN) == 0) return s;
    const int why = errno;
    close(s);
    errno = why;
    return -1;
}

/* One connection to rank 0. */
typedef struct connection {
    int socket;
    double since;
    size_t sent; /* of the answer */
    char from[NAME];
    loom_handshake handshake;
} connection;

struct loom_rendezvous {
    loom_handshake_party party;
    int listening[ADDRESSES], n_listening;
    bool anywhere;                        /* at all addresses of this machine, as MASTER_ADDR is none of them */
    connection *connections[CONNECTIONS]; /* the oldest first */
    int n_connections;
    bool *has_come;
    char (*from)[NAME]; /* where each came from */
    int missing;
    char refused[320]; /* the last rank that was: ""; or "; refused ADDRESS: why" */
};

/* All addresses of the name that are this machine's. A name other than localhost may stand for this machine in its own
 * /etc/hosts only, and for the address that other machines use elsewhere: where there are ranks on others, loopback
 * would leave these out. */
static bool listen_at_name(loom_rendezvous *r, const char *host, const char *port, bool all_here, loom_error *error) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    struct in6_addr literal;
    if (getaddrinfo(host, port, &hints, &found) != 0) return true; /* others may know it */
    const bool is_literal = inet_pton(AF_INET, host, &literal) == 1 || strchr(host, ':');
    const bool loopback = all_here || is_literal || !strcmp(host, "localhost");
    int why = 0;
    for (const struct addrinfo *a = found; a && r->n_listening < ADDRESSES && why != EADDRINUSE; a = a->ai_next) {
        if (!loopback && is_loopback(a->ai_addr)) continue;
        const int s = listen_at(a, false);
        if (s >= 0)
            r->listening[r->n_listening++] = s;
        else if (errno != EADDRNOTAVAIL)
            why = errno;
    }
    freeaddrinfo(found);
    return why == 0 || (r->n_listening > 0 && why != EADDRINUSE) ||
           loom_fail(error, "rank 0 cannot listen at %s:%s for the other ranks: %s; choose another MASTER_PORT", host,
                     port, strerror(why));
}

/* An IPv6 socket takes IPv4 too, so it comes first. */
static bool listen_anywhere(loom_rendezvous *r, const char *host, const char *port, loom_error *error) {
    int why = 0;
    for (int family = 0; family < 2 && r->n_listening == 0 && why != EADDRINUSE; family++) {
        const struct addrinfo hints = {
            .ai_family = family ? AF_INET : AF_INET6, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
        struct addrinfo *found;
        if (getaddrinfo(NULL, port, &hints, &found) != 0) continue;
        const int s = listen_at(found, true);
        if (s >= 0)
            r->listening[r->n_listening++] = s;
        else
            why = errno;
        freeaddrinfo(found);
    }
    return r->n_listening > 0 ||
           loom_fail(error, "rank 0 cannot listen at %s:%s for the other ranks: %s; choose another MASTER_PORT", host,
                     port, strerror(why));
}

/* ------------------------------------------------------------------------------------------------------------ serving */

static void drop(loom_rendezvous *r, int i) {
    close(r->connections[i]->socket);
    free(r->connections[i]);
    r->n_connections--;
    memmove(&r->connections[i], &r->connections[i + 1], (size_t)(r->n_connections - i) * sizeof *r->connections);
}

/* Of those that have said nothing that makes sense, the oldest; else the oldest. */
static void drop_one(loom_rendezvous *r) {
    int i = 0;
    while (i < r->n_connections && r->connections[i]->handshake.peer >= 0) i++;
    if (r->n_connections > 0) drop(r, i < r->n_connections ? i : 0);
}

/* What a rank, or what says it is one, was sent away for. */
static void note_refusal(loom_rendezvous *r, const connection *c) {
    const int peer = c->handshake.peer;
    const char *why = c->handshake.why;
    if (!*why) return;
    if (peer > 0 && r->has_come[peer] && strstr(why, "already"))
        snprintf(r->refused, sizeof r->refused, "; refused %s: %s, from %s", c->from, why, r->from[peer]);
    else
        snprintf(r->refused, sizeof r->refused, "; refused %s: %s", c->from, why);
}

/* What is to be sent, as far as it goes now. False at the connection's end. */
static bool send_answer(connection *c) {
    loom_handshake *h = &c->handshake;
    while (c->sent < h->answer_bytes) {
        const ssize_t n = send(c->socket, h->answer + c->sent, h->answer_bytes - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
        c->sent += (size_t)n;
    }
    return true;
}

/* Goes on with a connection as far as it goes now. False at its end. */
static bool advance(loom_rendezvous *r, connection *c) {
    loom_handshake *h = &c->handshake;
    for (;;) {
        unsigned char bytes[LOOM_HANDSHAKE_MESSAGE];
        if (!send_answer(c)) return false;
        if (c->sent < h->answer_bytes) return true;
        const ssize_t n = recv(c->socket, bytes, sizeof bytes, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
        c->sent = 0;
        switch (loom_handshake_take(h, bytes, (size_t)n)) {
        case LOOM_HANDSHAKE_GOES_ON: continue;
        case LOOM_HANDSHAKE_DONE:
            r->has_come[h->peer] = true;
            r->missing--;
            memcpy(r->from[h->peer], c->from, sizeof c->from);
            return false;
        case LOOM_HANDSHAKE_REFUSED:
            send_answer(c);
            note_refusal(r, c);
            return false;
        }
    }
}

static void take_connections(loom_rendezvous *r, int listening) {
    for (int i = 0; i < CONNECTIONS; i++) {
        struct sockaddr_storage address;
        socklen_t size = sizeof address;
        unsigned char nonce[LOOM_HANDSHAKE_NONCE];
        const int on = 1, s = accept4(listening, (struct sockaddr *)&address, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (s < 0 && (errno == EMFILE || errno == ENFILE)) drop_one(r); /* and takes it the next time */
        if (s < 0 && errno == ECONNABORTED) continue;
        if (s < 0) return;
        if (r->n_connections == CONNECTIONS) drop_one(r);
        connection *c = calloc(1, sizeof *c);
        if (!c || !make_nonce(nonce)) {
            free(c);
            close(s);
            return;
        }
        setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        c->socket = s;
        c->since = loom_seconds_now();
        name_address(c->from, &address, size);
        loom_handshake_begin(&c->handshake, &r->party, nonce);
        r->connections[r->n_connections++] = c;
        if (!advance(r, c)) drop(r, r->n_connections - 1);
    }
}

void loom_rendezvous_turn(loom_rendezvous *r, int milliseconds) {
    struct pollfd polled[ADDRESSES + CONNECTIONS];
    const int first = r->n_listening, all = first + r->n_connections;
    for (int i = 0; i < first; i++) polled[i] = (struct pollfd){.fd = r->listening[i], .events = POLLIN};
    for (int i = first; i < all; i++) {
        const connection *c = r->connections[i - first];
        polled[i] = (struct pollfd){.fd = c->socket, .events = c->sent < c->handshake.answer_bytes ? POLLOUT : POLLIN};
    }
    if (poll(polled, (nfds_t)all, milliseconds) < 0) return;
    const double now = loom_seconds_now();
    for (int i = all - 1; i >= first; i--) {
        connection *c = r->connections[i - first];
        if ((polled[i].revents && !advance(r, c)) || now > c->since + seconds_of_a_connection) drop(r, i - first);
    }
    for (int i = 0; i < first; i++)
        if (polled[i].revents) take_connections(r, r->listening[i]);
}

const char *loom_rendezvous_refused(const loom_rendezvous *r) {
    return r->refused;
}

bool loom_rendezvous_is_open_to_all(const loom_rendezvous *r) {
    return r->anywhere;
}

void loom_rendezvous_close(loom_rendezvous *r) {
    if (!r) return;
    while (r->n_connections > 0) drop(r, r->n_connections - 1);
    for (int i = 0; i < r->n_listening; i++) close(r->listening[i]);
    free(r->has_come);
    free(r->from);
    free(r);
}

static loom_rendezvous *open_rendezvous(const char *host, const char *port, bool all_here,
                                        const loom_handshake_party *party, loom_error *error) {
    loom_rendezvous *r = calloc(1, sizeof *r);
    if (r) {
        r->has_come = calloc((size_t)party->size, sizeof *r->has_come);
        r->from = calloc((size_t)party->size, sizeof *r->from);
    }
    if (!r || !r->has_come || !r->from) {
        loom_rendezvous_close(r);
        return loom_fail(error, "no memory for %d ranks", party->size), NULL;
    }
    r->party = *party;
    r->party.has_come = r->has_come;
    r->has_come[0] = true;
    r->missing = party->size - 1;
    bool ok = listen_at_name(r, host, port, all_here, error);
    if (ok && r->n_listening == 0) {
        r->anywhere = true;
        ok = listen_anywhere(r, host, port, error);
    }
    if (ok) return r;
    loom_rendezvous_close(r);
    return NULL;
}

static bool serve(loom_rendezvous *r, const char *host, const char *port, double timeout, loom_error *error) {
    const double end = loom_seconds_now() + timeout;
    while (r->missing > 0 && loom_seconds_now() < end) loom_rendezvous_turn(r, POLL_MILLISECONDS);
    if (r->missing == 0) return true;
    char names[128];
    loom_comm_name_missing(names, sizeof names, r->has_come, r->party.size);
    return loom_fail(error, "%s did not come to rank 0 at %s:%s within %g s%s%s", names, host, port, timeout,
                     r->anywhere ? " (at all addresses of this machine: that is none of its own)" : "", r->refused);
}

/* ------------------------------------------------------------------------------------------------------- another rank */

/* Waits until a socket is ready, or the time is up. */
static bool await(int socket, short events, double end) {
    for (;;) {
        struct pollfd polled = {.fd = socket, .events = events};
        const double rest = end - loom_seconds_now();
        const int n = poll(&polled, 1, rest > 0 ? 1 + (int)(1e3 * rest) : 0);
        if (n > 0) return true;
        if (rest <= 0 || (n < 0 && errno != EINTR)) return false;
    }
}

/* A connection, or -1 with what was in the way. */
static int connect_to(const char *host, const char *port, double end, char *why, size_t size) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    const int result = getaddrinfo(host, port, &hints, &found), on = 1;
    if (result != 0) return snprintf(why, size, "%s", gai_strerror(result)), -1;
    int connected = -1;
    for (const struct addrinfo *a = found; a && connected < 0; a = a->ai_next) {
        const int s = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (s < 0) continue;
        int failure = connect(s, a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
        socklen_t length = sizeof failure;
        if (failure == EINPROGRESS && await(s, POLLOUT, end)) getsockopt(s, SOL_SOCKET, SO_ERROR, &failure, &length);
        if (failure == 0)
            connected = s;
        else {
            snprintf(why, size, "%s", failure == EINPROGRESS ? "no answer" : strerror(failure));
            close(s);
        }
    }
    freeaddrinfo(found);
    if (connected >= 0) setsockopt(connected, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return connected;
}

static bool send_whole(int s, const unsigned char *bytes, size_t count, double end) {
    for (size_t done = 0; done < count;) {
        const ssize_t n = send(s, bytes + done, count - done, MSG_NOSIGNAL);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || (errno != EINTR && errno != EAGAIN) || !await(s, POLLOUT, end))
            return false;
    }
    return true;
}

/* Says all that is to be said over a connection. */
static bool converse(int s, loom_handshake *h, double end) {
    loom_handshake_result result = LOOM_HANDSHAKE_GOES_ON;
    for (;;) {
        unsigned char bytes[LOOM_HANDSHAKE_MESSAGE];
        if (!send_whole(s, h->answer, h->answer_bytes, end)) return false;
        h->answer_bytes = 0;
        if (result != LOOM_HANDSHAKE_GOES_ON) return result == LOOM_HANDSHAKE_DONE;
        if (!await(s, POLLIN, end)) return false;
        const ssize_t n = recv(s, bytes, sizeof bytes, 0);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (n <= 0) return false;
        result = loom_handshake_take(h, bytes, (size_t)n);
    }
}

static bool fetch(const char *host, const char *port, const loom_handshake_party *party, double timeout,
                  loom_error *error) {
    const double end = loom_seconds_now() + timeout;
    double refused_since = 0;
    char why[192] = "no answer";
    do {
        unsigned char nonce[LOOM_HANDSHAKE_NONCE];
        loom_handshake h;
        const double begin = loom_seconds_now(), end_of_this = begin + seconds_of_a_connection;
        if (!make_nonce(nonce)) return loom_fail(error, "getrandom failed: %s", strerror(errno));
        loom_handshake_begin(&h, party, nonce);
        const int s = connect_to(host, port, end_of_this < end ? end_of_this : end, why, sizeof why);
        if (s >= 0) {
            const bool got = converse(s, &h, end_of_this);
            close(s);
            if (got) return true;
            if (*h.why)
                snprintf(why, sizeof why, "%s", h.why);
            else
                snprintf(why, sizeof why, "what listens there is not rank 0 of these %d ranks", party->size);
        }
        refused_since = !h.was_refused ? 0 : refused_since > 0 ? refused_since : begin;
        if (refused_since > 0 && loom_seconds_now() > refused_since + seconds_of_refusals) break;
        loom_pause(1e-3 * POLL_MILLISECONDS);
    } while (loom_seconds_now() < end);
    if (refused_since > 0) return loom_fail(error, "rank 0 at %s:%s refuses rank %d: %s", host, port, party->rank, why);
    return loom_fail(error, "rank 0 cannot be reached at %s:%s within %g s: %s; check MASTER_ADDR and MASTER_PORT",
                     host, port, timeout, why);
}

/* -------------------------------------------------------------------------------------------------------------- both */

bool loom_share_by_tcp(void *data, size_t bytes, const loom_rank_variables *v, double timeout,
                       loom_rendezvous **rendezvous, loom_error *error) {
    const char *host = getenv("MASTER_ADDR"), *agent = getenv("TORCHELASTIC_USE_AGENT_STORE");
    loom_handshake_party party = {.rank = v->rank, .size = v->size, .payload = data, .bytes = bytes};
    int number;
    char port[16];
    *rendezvous = NULL;
    if (v->size == 1) return true;
    if (!host || !*host)
        return loom_fail(error, "--comm nccl: the environment has no MASTER_ADDR, where rank 0 can be reached; start "
                                "with torchrun or mpirun");
    if (!loom_read_master_port(&number, error) || !loom_secret_read(&party.secret, error)) return false;
    /* torchrun's agent listens at MASTER_PORT itself then. */
    snprintf(port, sizeof port, "%d", number + (agent && !strcmp(agent, "True")));
    if (v->rank > 0) return fetch(host, port, &party, timeout, error);
    const bool all_here = getenv("LOCAL_WORLD_SIZE") && v->local_size == v->size;
    loom_rendezvous *r = open_rendezvous(host, port, all_here, &party, error);
    if (r && serve(r, host, port, timeout, error)) return *rendezvous = r, true;
    loom_rendezvous_close(r);
    return false;
}
