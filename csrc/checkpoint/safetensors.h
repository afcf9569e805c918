/* The safetensors file format: 8 bytes of header length, a JSON header (name -> dtype, shape, offsets), raw data. */
#ifndef LOOM_CHECKPOINT_SAFETENSORS_H
#define LOOM_CHECKPOINT_SAFETENSORS_H

#include "base/file.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_safetensor {
    char name[128];
    char dtype[8]; /* as in "F32", "BF16", "I32" */
    int rank;      /* at most 4 */
    int64_t shape[4];
    uint64_t place; /* in the file, of any alignment; while writing: unused */
    size_t bytes;
} loom_safetensor;

typedef struct loom_safetensors {
    loom_reader reader;
    loom_safetensor *tensor; /* sorted by name */
    int n_tensors;
} loom_safetensors;

/* Opens a file and checks its whole header against the file's size: dtypes, shapes and offsets. As the format demands,
 * the tensors must follow each other without overlap or gap, up to the file's last byte. */
bool loom_safetensors_open(loom_safetensors *file, const char *path, loom_error *error);
void loom_safetensors_close(loom_safetensors *file);
/* Reads some bytes of a tensor, from its byte `first` on. */
bool loom_safetensors_read(const loom_safetensors *file, const loom_safetensor *tensor, size_t first, void *to,
                           size_t bytes, loom_error *error);
const loom_safetensor *loom_safetensors_find(const loom_safetensors *file, const char *name); /* NULL: not found */

/* Returns the beginning of a file whose tensors follow in this order without gaps. The result has `bytes` bytes, and
 * the caller frees it. Returns NULL if memory runs out. */
char *loom_safetensors_header(const loom_safetensor *tensors, int n, size_t *bytes, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
