#include "comm/rendezvous.h"

#include "base/clock.h"
#include "base/file.h"
#include "comm/backend.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
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

void loom_error_grace_period(void) {
    const double end = loom_seconds_now() + 2;
    signal(SIGTERM, SIG_DFL);
    while (loom_seconds_now() < end) loom_pause(0.01);
}

void loom_defer_error_to_rank0(void) {
    const char *names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "RANK"}, *rank = NULL;
    for (size_t i = 0; loom_launched() && !rank && i < sizeof names / sizeof *names; i++) rank = variable(names[i]);
    if (rank && atoi(rank) > 0) loom_error_grace_period();
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

bool loom_read_master_port(int *port, loom_error *error) {
    return read_number("MASTER_PORT", 1, 65534, port, error);
}

/* ------------------------------------------------------------------------------------------------------------------- file
 * Files that a run which was ended has left may be in the way: so each rank r puts a number that is its own into
 * FILE.r, and takes FILE only if that holds its number. Rank 0 writes FILE anew when a number has changed. A rank that
 * has the bytes deletes FILE.r; when all have, rank 0 deletes FILE. */

enum { POLL_MILLISECONDS = 100 };

/* A file of exactly so many bytes; no link, and nothing that could be waited for. */
static bool read_whole(const char *path, void *data, size_t bytes) {
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat status;
    if (file < 0) return false;
    const bool ok = fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == (off_t)bytes &&
                    read(file, data, bytes) == (ssize_t)bytes;
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
            loom_comm_name_missing(names, sizeof names, there, size);
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
