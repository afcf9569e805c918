#include "output.h"

#include "base/say.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

static atomic_int failure; /* errno of the first write that failed; 0: none */
static int nowhere = -1;   /* /dev/null, for a handler, which may open nothing itself */

/* Where /dev/null is missing any descriptor does: what is written to it fails. */
static int open_nowhere(void) {
    const int file = open("/dev/null", O_RDWR);
    return file >= 0 ? file : open("/", O_RDONLY);
}

void loom_output_open_descriptors(void) {
    int file;
    do file = open_nowhere();
    while (file >= 0 && file <= STDERR_FILENO);
    if (file >= 0) close(file);
}

void loom_output_ignore_sigpipe(void) {
    signal(SIGPIPE, SIG_IGN);
    if (nowhere < 0) nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
}

/* Keeps the first reason. */
static void note(int reason) {
    int none = 0;
    atomic_compare_exchange_strong(&failure, &none, reason);
}

static void give_up(int reason) {
    note(reason);
    if (nowhere >= 0) dup2(nowhere, STDOUT_FILENO);
}

/* Of a write that printf has made earlier errno tells no more; a pipe tells that nobody reads it. */
static int reason_of_earlier(void) {
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    return poll(&out, 1, 0) == 1 && out.revents & POLLERR ? EPIPE : EIO;
}

bool loom_output_flush(void) {
    loom_output_give_up_if_blocked();
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return true;
    note(errno ? errno : reason_of_earlier());
    return false;
}

void loom_output_flush_or_give_up(void) {
    if (loom_output_flush()) return;
    give_up(EIO); /* the reason is noted already */
    fflush(stdout);
    clearerr(stdout);
}

void loom_output_give_up_if_blocked(void) {
    if (!loom_may_write(STDOUT_FILENO)) give_up(EAGAIN);
    if (!loom_may_write(STDERR_FILENO) && nowhere >= 0) dup2(nowhere, STDERR_FILENO);
}

int loom_output_failure(void) {
    return atomic_load(&failure);
}
