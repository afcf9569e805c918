#include "base/lock.h"

#include "base/lock_holder.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

const loom_lock_times loom_lock_standard_times = {.heartbeat = 15, .take_over = 60, .settle = 2};

typedef loom_lock_holder holder;

struct loom_lock {
    char path[PATH_MAX], what[PATH_MAX];
    loom_lock_times times;
    loom_lock_listener listener;
    holder own;
    int descriptor;
    pthread_t thread;
    pthread_mutex_t mutex; /* protects the fields below */
    pthread_cond_t changed;
    bool ends, lost;
    holder other; /* if the lock is lost: who has it */
};

/* ---------------------------------------------------------------------------------------------------------- holders */

static void read_word(const char *path, char word[LOOM_LOCK_WORD]) {
    char text[LOOM_LOCK_WORD] = "";
    FILE *file = fopen(path, "re");
    if (file && !fgets(text, sizeof text, file)) *text = 0;
    if (file) fclose(file);
    text[strcspn(text, "\n")] = 0;
    loom_lock_word(word, text);
}

/* The start time of a process; -1 if there is no process with this number. The process's name, in brackets, may contain
 * any character. */
static long long start_of(long process) {
    char path[64], text[1024] = "";
    long long start = -1;
    snprintf(path, sizeof path, "/proc/%ld/stat", process);
    FILE *file = fopen(path, "re");
    if (!file) return -1;
    if (!fgets(text, sizeof text, file)) *text = 0;
    fclose(file);
    const char *field = strrchr(text, ')');
    for (int i = 0; field && i < 20; i++) field = strchr(field + 1, ' ');
    return field && sscanf(field, "%lld", &start) == 1 ? start : -1;
}

static long long now(void) {
    return (long long)time(NULL);
}

static holder make_own(void) {
    holder own = {.process = (long)getpid(), .start = start_of((long)getpid()), .beat = now()};
    char text[256] = "", space[65] = "";
    gethostname(text, sizeof text - 1);
    loom_lock_word(own.host, text);
    read_word("/proc/sys/kernel/random/boot_id", own.boot);
    if (readlink("/proc/self/ns/pid", space, sizeof space - 1) < 0) *space = 0;
    loom_lock_word(own.space, space);
    return own;
}

/* Returns the number of bytes read of the file's line; -1 with errno if it cannot be read. */
static ssize_t read_line(const char *path, char line[LOOM_LOCK_LINE]) {
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0) return -1;
    const ssize_t n = pread(descriptor, line, LOOM_LOCK_LINE, 0);
    const int failure = errno;
    close(descriptor);
    errno = failure;
    return n;
}

/* Reads the holder that the file names. Returns false if the line is incomplete, as while it is being written. */
static bool read_holder(const char *path, holder *found) {
    char line[LOOM_LOCK_LINE];
    const ssize_t n = read_line(path, line);
    return n > 0 && loom_lock_holder_read(found, line, (size_t)n);
}

/* In place, and as long as before: a full disk has room for it. */
static bool write_holder(int descriptor, const holder *own) {
    char line[LOOM_LOCK_LINE];
    const int length = loom_lock_holder_write(own, line);
    size_t done = 0;
    while (done < (size_t)length) {
        const ssize_t n = pwrite(descriptor, line + done, (size_t)length - done, (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    if (ftruncate(descriptor, length) != 0) return false;
    fdatasync(descriptor); /* so that other machines see it; where there is no such thing, they see it anyhow */
    return true;
}

/* -------------------------------------------------------------------------------------------------------- heartbeat */

static void wait_seconds(double seconds) {
    const struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

/* Renews the heartbeat of this process, unless another process has taken the lock over. If somebody has deleted the
 * file it is made anew, unless another process makes it first. */
static void beat(loom_lock *lock) {
    holder found;
    struct stat status;
    lock->own.beat = now();
    if (stat(lock->path, &status) != 0 && errno == ENOENT) {
        const int fresh = open(lock->path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (fresh >= 0) {
            flock(fresh, LOCK_EX | LOCK_NB);
            close(lock->descriptor);
            lock->descriptor = fresh;
            write_holder(fresh, &lock->own);
        }
    }
    if (!read_holder(lock->path, &found)) return;
    pthread_mutex_lock(&lock->mutex);
    if (!loom_lock_same_holder(&found, &lock->own)) {
        lock->lost = true;
        lock->other = found;
    }
    const bool lost = lock->lost;
    pthread_mutex_unlock(&lock->mutex);
    if (!lost) write_holder(lock->descriptor, &lock->own);
}

static void *keep(void *argument) {
    loom_lock *lock = argument;
    pthread_mutex_lock(&lock->mutex);
    while (!lock->ends && !lock->lost) {
        struct timespec next;
        clock_gettime(CLOCK_MONOTONIC, &next);
        const double seconds = lock->times.heartbeat + (double)next.tv_nsec * 1e-9;
        next.tv_sec += (time_t)seconds;
        next.tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9);
        if (pthread_cond_timedwait(&lock->changed, &lock->mutex, &next) != ETIMEDOUT) continue;
        pthread_mutex_unlock(&lock->mutex);
        beat(lock);
        pthread_mutex_lock(&lock->mutex);
    }
    pthread_mutex_unlock(&lock->mutex);
    return NULL;
}

/* All signals are blocked in the new thread: the other threads handle them. */
static bool start_thread(loom_lock *lock, loom_error *error) {
    sigset_t all, before;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&lock->mutex, NULL);
    pthread_cond_init(&lock->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failure = pthread_create(&lock->thread, NULL, keep, lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return !failure || loom_fail(error, "%s: no thread to keep it: %s", lock->path, strerror(failure));
}

/* ----------------------------------------------------------------------------------------------------------- taking */

typedef enum outcome { TAKEN, REFUSED, AGAIN } outcome;

static outcome refuse(const loom_lock *lock, const holder *other, long long silence, loom_error *error) {
    loom_fail(error,
              "%s: is in use by process %ld on %s (its last sign of life: %lld s ago); wait for its end, or end it",
              lock->what, other->process, other->host, silence);
    return REFUSED;
}

static void tell(const loom_lock *lock, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void tell(const loom_lock *lock, const char *format, ...) {
    char line[PATH_MAX + 256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (lock->listener.tell) lock->listener.tell(lock->listener.user, line);
}

/* Looks whether a lock of another machine is renewed: only that it is not, for a while, tells that nobody has it. A
 * heartbeat that comes is new, whatever that machine's clock says. */
static outcome watch(const loom_lock *lock, const holder *other, loom_error *error) {
    holder found;
    const double pause = lock->times.take_over / 60;
    tell(lock, "%s: process %ld on %s may be at work there; watching for up to %.0f s whether it is", lock->what,
         other->process, other->host, lock->times.take_over);
    for (int i = 0; i < 60; i++) {
        wait_seconds(pause);
        if (!read_holder(lock->path, &found)) return AGAIN;
        if (found.beat != other->beat || !loom_lock_same_holder(&found, other)) return refuse(lock, &found, 0, error);
    }
    return TAKEN;
}

static outcome fail_to(const loom_lock *lock, const char *what, loom_error *error) {
    loom_fail(error, "%s: cannot be %s: %s", lock->path, what, strerror(errno));
    return REFUSED;
}

/* Whether the lock that is there, open and perhaps flock()ed by us, may be taken over. A file that is none of ours
 * stays. */
static outcome judge(const loom_lock *lock, bool locked, bool may_be_new, const holder **other, holder *found,
                     loom_error *error) {
    char line[LOOM_LOCK_LINE];
    const ssize_t n = read_line(lock->path, line);
    *other = NULL;
    if (n < 0) return errno == ENOENT || errno == EINTR ? AGAIN : fail_to(lock, "read", error);
    if (loom_lock_holder_is_begun(line, (size_t)n))
        return may_be_new ? AGAIN : TAKEN; /* its maker was killed at once */
    if (!loom_lock_holder_read(found, line, (size_t)n)) {
        loom_fail(error, "%s: is a file that gptloom has not made, where its lock should be; move it elsewhere",
                  lock->path);
        return REFUSED;
    }
    *other = found;
    if (locked && loom_lock_same_system(found, &lock->own)) return TAKEN;
    if (loom_lock_same_space(found, &lock->own))
        return found->start >= 0 && start_of(found->process) == found->start
                   ? refuse(lock, found, loom_lock_silence(found, now()), error)
                   : TAKEN;
    return watch(lock, found, error);
}

static bool is_still_there(int descriptor, const char *path) {
    struct stat open_one, there;
    return fstat(descriptor, &open_one) == 0 && lstat(path, &there) == 0 && open_one.st_dev == there.st_dev &&
           open_one.st_ino == there.st_ino;
}

/* `may_be_new`: a file that says nothing yet may be just made. */
static outcome try_to_take(loom_lock *lock, bool may_be_new, loom_error *error) {
    holder found, again;
    const holder *other = NULL;
    struct stat status;
    lock->descriptor = open(lock->path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    const bool made = lock->descriptor >= 0;
    if (!made && errno != EEXIST) return errno == EINTR ? AGAIN : fail_to(lock, "made", error);
    if (!made) lock->descriptor = open(lock->path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (lock->descriptor < 0) return errno == ENOENT || errno == EINTR ? AGAIN : fail_to(lock, "opened", error);
    if (fstat(lock->descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
        loom_fail(error, "%s: is not a regular file; move it elsewhere", lock->path);
        return REFUSED;
    }
    const bool locked = flock(lock->descriptor, LOCK_EX | LOCK_NB) == 0;
    if (!locked && errno == EWOULDBLOCK) {
        if (read_holder(lock->path, &found)) return refuse(lock, &found, loom_lock_silence(&found, now()), error);
        if (may_be_new) return AGAIN;
        loom_fail(error, "%s: is in use by another process", lock->what);
        return REFUSED;
    }
    if (!is_still_there(lock->descriptor, lock->path)) return AGAIN;
    const outcome judged = made ? TAKEN : judge(lock, locked, may_be_new, &other, &found, error);
    if (judged != TAKEN) return judged;
    if (other)
        tell(lock, "%s: process %ld on %s has not ended in order; its lock is taken over", lock->what, other->process,
             other->host);
    lock->own.beat = now();
    if (!write_holder(lock->descriptor, &lock->own)) {
        const outcome failed = fail_to(lock, "written", error);
        if (made) unlink(lock->path);
        return failed;
    }
    if (!other || (locked && loom_lock_same_system(other, &lock->own))) return TAKEN;
    wait_seconds(lock->times.settle);
    if (!read_holder(lock->path, &again)) return AGAIN;
    return loom_lock_same_holder(&again, &lock->own) ? TAKEN : refuse(lock, &again, 0, error);
}

bool loom_lock_take(loom_lock **out, const char *path, const char *what, const loom_lock_times *times,
                    const loom_lock_listener *listener, loom_error *error) {
    enum { TRIES = 40, TRIES_WHILE_NEW = 20 };
    loom_lock *lock = calloc(1, sizeof *lock);
    *out = NULL;
    if (!lock || strlen(path) >= sizeof lock->path || strlen(what) >= sizeof lock->what) {
        free(lock);
        return loom_fail(error, "%s: %s", path, lock ? "the name is too long" : "no memory for a lock");
    }
    strcpy(lock->path, path);
    strcpy(lock->what, what);
    if (listener) lock->listener = *listener;
    lock->times = times ? *times : loom_lock_standard_times;
    lock->own = make_own();
    outcome result = AGAIN;
    loom_fail(error, "%s: others take it and give it back all the time", what);
    for (int i = 0; result == AGAIN && i < TRIES; i++) {
        if (i > 0) wait_seconds(0.05);
        result = try_to_take(lock, i < TRIES_WHILE_NEW, error);
        if (result != TAKEN && lock->descriptor >= 0) close(lock->descriptor);
    }
    if (result == TAKEN && start_thread(lock, error)) {
        *out = lock;
        return true;
    }
    if (result == TAKEN) {
        unlink(lock->path);
        close(lock->descriptor);
    }
    free(lock);
    return false;
}

bool loom_lock_is_held(const loom_lock *lock, loom_error *error) {
    loom_lock *mine = (loom_lock *)lock; /* only the mutex is changed, which is not part of the lock's visible state */
    pthread_mutex_lock(&mine->mutex);
    const bool lost = mine->lost;
    pthread_mutex_unlock(&mine->mutex);
    return !lost || loom_fail(error, "%s: process %ld on %s has taken it over while this one was stopped", lock->what,
                              lock->other.process, lock->other.host);
}

void loom_lock_release(loom_lock *lock) {
    holder found;
    if (!lock) return;
    pthread_mutex_lock(&lock->mutex);
    lock->ends = true;
    pthread_cond_signal(&lock->changed);
    pthread_mutex_unlock(&lock->mutex);
    pthread_join(lock->thread, NULL);
    if (read_holder(lock->path, &found) && loom_lock_same_holder(&found, &lock->own)) unlink(lock->path);
    close(lock->descriptor);
    pthread_cond_destroy(&lock->changed);
    pthread_mutex_destroy(&lock->mutex);
    free(lock);
}
