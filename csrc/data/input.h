/* The files of a dataset, read by pread: a file that shrinks, or whose disk fails, gives an error. Small files are kept
 * in memory; of the others only a limited number are open at once. */
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

/* A file as it was when it was found. */
typedef struct loom_input {
    char *path;
    uint64_t size;
    struct timespec changed, status_changed;
    dev_t device;
    ino_t inode;
    unsigned char *kept; /* the whole content; NULL: the file is read on demand */
} loom_input;

typedef struct loom_inputs {
    loom_input *input;
    int n;
    size_t room;                  /* bytes that may still be kept in memory */
    struct loom_input_slot *slot; /* input i uses slot i mod n_slots */
    int n_slots;
    pthread_mutex_t lock; /* protects the slots: threads may read at the same time */
} loom_inputs;

/* Makes a list with room for `most` inputs and none in it; returns NULL if memory runs out. */
loom_inputs *loom_inputs_open(int most);
void loom_inputs_close(loom_inputs *inputs);

/* loom_inputs_add adds a file and takes ownership of its path, also when it fails; loom_inputs_drop removes the file
 * that was added last. */
bool loom_inputs_add(loom_inputs *inputs, char *path, loom_error *error);
void loom_inputs_drop(loom_inputs *inputs);

/* Reads bytes offset .. offset + n - 1 of an input, which must lie within it. *bytes then points into the input's own
 * memory or to `buffer`. */
bool loom_inputs_read(loom_inputs *inputs, int i, uint64_t offset, size_t n, void *buffer, const unsigned char **bytes,
                      loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
