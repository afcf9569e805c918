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
static int nowhere = -1;   /* /dev/null, opened beforehand for signal handlers */

/* If /dev/null does not exist, a descriptor of any other file is used: writes to it fail. */
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

/* Keeps the first error that is noted. */
static void note(int reason) {
    int none = 0;
    atomic_compare_exchange_strong(&failure, &none, reason);
}

static void give_up(int reason) {
    note(reason);
    if (nowhere >= 0) dup2(nowhere, STDOUT_FILENO);
}

/* The reason for the failure of an earlier write by printf. errno does not hold it any more, but a pipe still shows
 * whether its reader is gone. */
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
    give_up(EIO); /* EIO is dropped: the reason is noted already */
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
