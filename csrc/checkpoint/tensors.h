/* Parameter-like memory and safetensors files: weights and moments, moved tensor by tensor between a device and a
 * file. */
#ifndef LOOM_CHECKPOINT_TENSORS_H
#define LOOM_CHECKPOINT_TENSORS_H

#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "gptloom/checkpoint.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LOOM_WEIGHTS_FILE   "model.safetensors"
#define LOOM_OPTIMIZER_FILE "optimizer.safetensors"

enum { LOOM_MAX_TENSOR_SETS = 2 };

/* What one file holds: for each parameter of the layout, and each set, the tensor "NAME" + suffix. */
typedef struct loom_tensor_sets {
    int n_sets;
    struct loom_tensor_set {
        const char *suffix;
        void *(*memory)(const loom_checkpoint_slice *slice); /* of a slice's first element */
        loom_dtype dtype; /* of the memory, and of a file that is written: fp32, bf16 or fp16 */
    } set[LOOM_MAX_TENSOR_SETS];
} loom_tensor_sets;

loom_tensor_sets loom_weight_sets(const loom_checkpoint_tensors *tensors);
loom_tensor_sets loom_moment_sets(const loom_checkpoint_tensors *tensors);

/* Writes such a file: shapes as users see them, no padding. `filled` by this rank alone, whose slices are whole buckets;
 * or to be filled by several, and then it has its header and its length, and no checksum yet in the manifest. */
bool loom_tensors_write(loom_manifest *manifest, const char *name, const loom_checkpoint_tensors *tensors,
                        const loom_tensor_sets *sets, bool filled, loom_error *error);

/* Writes what lies in this rank's slices into a file that is to be filled. */
bool loom_tensors_write_part(const char *directory, const char *name, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, loom_error *error);

/* A file whose tensors were found to be those of a layout, no more and no fewer. */
typedef struct loom_tensor_source {
    loom_safetensors file;
    const loom_safetensor **found; /* by set, then by parameter */
} loom_tensor_source;

/* Opens a file and matches its tensors; nothing is copied yet. With `foreign`, weights may be of any type, their names
 * may lack "transformer.", and what a GPT-2 file may hold beyond its weights (causal masks, an
 * output layer that is the token embedding) is passed over. */
bool loom_tensor_source_open(loom_tensor_source *source, const char *path, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, bool foreign, loom_error *error);
void loom_tensor_source_close(loom_tensor_source *source);

/* Fills the slices from an open source, converted where its type is another; zeros where no parameter is. Refuses what is
 * no finite number, and names its tensor. */
bool loom_tensor_source_load(const loom_tensor_source *source, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, loom_error *error);

/* Whether the extents that a configuration states are those of a file of weights: what is planned from a config.json is
 * then bounded by a file that exists. */
bool loom_weights_agree(const char *path, const loom_gpt_config *config, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
