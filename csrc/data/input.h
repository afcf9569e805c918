/* The files of a dataset, read by pread: one that shrinks, or whose disk fails, is an error. Small ones are kept in
 * memory; of the others only so many are open at once. */
#ifndef LOOM_DATA_INPUT_H
#define LOOM_DATA_INPUT_H

#include "gptloom/error.h"

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A file as it was found. */
typedef struct loom_input {
    char *path;
    uint64_t size;
    struct timespec changed, status_changed;
    dev_t device;
    ino_t inode;
    unsigned char *kept; /* all of it; NULL: it is read when it is asked for */
} loom_input;

typedef struct loom_inputs {
    loom_input *input;
    int n;
    size_t room;                  /* bytes that may still be kept in memory */
    struct loom_input_slot *slot; /* of input i, the (i mod n_slots)-th */
    int n_slots;
    pthread_mutex_t lock; /* of the slots: threads may read at the same time */
} loom_inputs;

/* Room for `most` inputs, of which there are none yet; NULL where memory runs out. */
loom_inputs *loom_inputs_open(int most);
void loom_inputs_close(loom_inputs *inputs);

/* Adds a file, whose path it takes over, also where it fails; removes the one that was added last. */
bool loom_inputs_add(loom_inputs *inputs, char *path, loom_error *error);
void loom_inputs_drop(loom_inputs *inputs);

/* Bytes offset .. offset + n - 1 of an input, which must lie in it: *bytes is in the input's own memory or in `buffer`. */
bool loom_inputs_read(loom_inputs *inputs, int i, uint64_t offset, size_t n, void *buffer, const unsigned char **bytes,
                      loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
