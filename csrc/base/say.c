#include "base/say.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <unistd.h>

static atomic_bool is_hurried;

void loom_hurry(bool hurried) {
    is_hurried = hurried;
}

bool loom_may_write(int descriptor) {
    struct pollfd polled = {.fd = descriptor, .events = POLLOUT};
    return !is_hurried || poll(&polled, 1, 0) > 0;
}

void loom_say(const char *text, size_t length) {
    while (length > 0 && loom_may_write(STDERR_FILENO)) {
        const ssize_t written = write(STDERR_FILENO, text, length);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return; /* nobody reads stderr any more */
        text += written;
        length -= (size_t)written;
    }
}
