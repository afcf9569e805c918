#include "data/input.h"

#include "base/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEPT_BYTES = 64 << 20 };

/* An open file; both fields are -1 if the slot is empty. */
typedef struct loom_input_slot {
    int input, descriptor;
} loom_input_slot;

/* At most a quarter of the files that the process may have open. */
static int affordable_slots(int most) {
    struct rlimit limit;
    int slots = 256;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        const rlim_t quarter = limit.rlim_cur / 4;
        slots = quarter > 4096 ? 4096 : quarter < 1 ? 1 : (int)quarter;
    }
    return slots < most ? slots : most;
}

loom_inputs *loom_inputs_open(int most) {
    loom_inputs *inputs = calloc(1, sizeof *inputs);
    if (!inputs) return NULL;
    inputs->room = KEPT_BYTES;
    inputs->n_slots = affordable_slots(most);
    inputs->input = calloc((size_t)most, sizeof *inputs->input);
    inputs->slot = malloc((size_t)inputs->n_slots * sizeof *inputs->slot);
    if (!inputs->input || !inputs->slot) {
        free(inputs->input);
        free(inputs->slot);
        free(inputs);
        return NULL;
    }
    pthread_mutex_init(&inputs->lock, NULL);
    for (int i = 0; i < inputs->n_slots; i++) inputs->slot[i] = (loom_input_slot){-1, -1};
    return inputs;
}

static void empty(loom_input_slot *slot) {
    if (slot->descriptor >= 0) close(slot->descriptor);
    *slot = (loom_input_slot){-1, -1};
}

static loom_input_slot *slot_of(loom_inputs *inputs, int i) {
    return &inputs->slot[i % inputs->n_slots];
}

void loom_inputs_drop(loom_inputs *inputs) {
    LOOM_CHECK(inputs->n > 0);
    const int i = --inputs->n;
    if (slot_of(inputs, i)->input == i) empty(slot_of(inputs, i));
    free(inputs->input[i].path);
    free(inputs->input[i].kept);
    inputs->input[i] = (loom_input){0};
}

void loom_inputs_close(loom_inputs *inputs) {
    if (!inputs) return;
    while (inputs->n > 0) loom_inputs_drop(inputs);
    free(inputs->input);
    free(inputs->slot);
    pthread_mutex_destroy(&inputs->lock);
    free(inputs);
}

/* O_NONBLOCK changes nothing for a regular file, and a pipe that has taken its place is refused instead of waited
 * for. */
static int open_regular(const char *path, struct stat *status, loom_error *error) {
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        loom_fail(error, "%s: cannot be read: %s", path, strerror(errno));
        return -1;
    }
    if (fstat(descriptor, status) == 0 && S_ISREG(status->st_mode)) return descriptor;
    close(descriptor);
    loom_fail(error, "%s: is not a regular file", path);
    return -1;
}

static bool read_all(const loom_input *input, int descriptor, uint64_t offset, size_t n, unsigned char *buffer,
                     loom_error *error) {
    while (n > 0) {
        const ssize_t got = pread(descriptor, buffer, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return loom_fail(error, "%s: cannot be read: %s", input->path, strerror(errno));
        if (got == 0)
            return loom_fail(error,
                             "%s: has become shorter while it was in use: it had %llu bytes and ends before byte %llu "
                             "now: bring it back as it was",
                             input->path, (unsigned long long)input->size, (unsigned long long)offset);
        buffer += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return true;
}

static bool keep(loom_inputs *inputs, loom_input *input, int descriptor, loom_error *error) {
    input->kept = malloc(input->size);
    if (!input->kept) return loom_fail(error, "%s: no memory to read it", input->path);
    inputs->room -= input->size;
    return read_all(input, descriptor, 0, input->size, input->kept, error);
}

bool loom_inputs_add(loom_inputs *inputs, char *path, loom_error *error) {
    const int i = inputs->n++;
    loom_input *input = &inputs->input[i];
    struct stat status;
    *input = (loom_input){.path = path};
    const int descriptor = open_regular(path, &status, error);
    if (descriptor < 0) return false;
    input->size = (uint64_t)status.st_size;
    input->changed = status.st_mtim;
    input->status_changed = status.st_ctim;
    input->device = status.st_dev;
    input->inode = status.st_ino;
    if (input->size > inputs->room) {
        empty(slot_of(inputs, i));
        *slot_of(inputs, i) = (loom_input_slot){i, descriptor};
        return true;
    }
    const bool ok = input->size == 0 || keep(inputs, input, descriptor, error);
    close(descriptor);
    return ok;
}

/* Opens a file again, and checks that it is still the same file. While a descriptor stays open it refers to the same
 * file even if another file takes its name. */
static bool open_again(const loom_input *input, loom_input_slot *slot, int i, loom_error *error) {
    struct stat status;
    empty(slot);
    const int descriptor = open_regular(input->path, &status, error);
    if (descriptor < 0) return false;
    *slot = (loom_input_slot){i, descriptor};
    const bool same_time = status.st_mtim.tv_sec == input->changed.tv_sec &&
                           status.st_mtim.tv_nsec == input->changed.tv_nsec;
    if (same_time || (status.st_dev == input->device && status.st_ino == input->inode)) return true;
    empty(slot);
    return loom_fail(error, "%s: another file has taken its place while it was in use: bring it back as it was",
                     input->path);
}

bool loom_inputs_read(loom_inputs *inputs, int i, uint64_t offset, size_t n, void *buffer, const unsigned char **bytes,
                      loom_error *error) {
    const loom_input *input = &inputs->input[i];
    LOOM_CHECK(i < inputs->n && offset <= input->size && n <= input->size - offset);
    if (input->kept) {
        *bytes = input->kept + offset;
        return true;
    }
    *bytes = buffer;
    pthread_mutex_lock(&inputs->lock);
    loom_input_slot *slot = slot_of(inputs, i);
    const bool ok = (slot->input == i || open_again(input, slot, i, error)) &&
                    read_all(input, slot->descriptor, offset, n, buffer, error);
    pthread_mutex_unlock(&inputs->lock);
    return ok;
}
