/* Conversion between device memory that is laid out as the parameters are (weights and moments) and safetensors files.
 * Data is moved tensor by tensor. */
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

/* The content of one file: for each parameter of the layout and each set, the tensor "NAME" + suffix. */
typedef struct loom_tensor_sets {
    int n_sets;
    struct loom_tensor_set {
        const char *suffix;
        void *(*memory)(const loom_checkpoint_slice *slice); /* returns the memory of a slice's first element */
        loom_dtype dtype; /* dtype of the memory, and of a file that is written: fp32, bf16 or fp16 */
    } set[LOOM_MAX_TENSOR_SETS];
} loom_tensor_sets;

loom_tensor_sets loom_weight_sets(const loom_checkpoint_tensors *tensors);
loom_tensor_sets loom_moment_sets(const loom_checkpoint_tensors *tensors);

/* Writes such a file, with shapes as users see them and without padding. With `filled`, this rank alone writes all of
 * the data; its slices are whole buckets. Otherwise several ranks write the data later: the file then has its header
 * and its final length, and no checksum in the manifest yet. */
bool loom_tensors_write(loom_manifest *manifest, const char *name, const loom_checkpoint_tensors *tensors,
                        const loom_tensor_sets *sets, bool filled, loom_error *error);

/* Writes the data of this rank's slices into a file that loom_tensors_write made without `filled`. */
bool loom_tensors_write_part(const char *directory, const char *name, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, loom_error *error);

/* An open file whose tensors are exactly those of a layout, no more and no fewer. */
typedef struct loom_tensor_source {
    loom_safetensors file;
    const loom_safetensor **found; /* ordered by set, then by parameter */
} loom_tensor_source;

/* Opens a file and matches its tensors against the layout; no data is read yet. With `foreign`, weights may have any
 * dtype, their names may lack "transformer.", and tensors of GPT-2 files that are no weights (causal masks, an output
 * layer that equals the token embedding) are ignored. */
bool loom_tensor_source_open(loom_tensor_source *source, const char *path, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, bool foreign, loom_error *error);
void loom_tensor_source_close(loom_tensor_source *source);

/* Fills the slices from an open source, converting to the set's dtype if needed; elements between parameters become
 * zero. Refuses numbers that are not finite, and names their tensor. */
bool loom_tensor_source_load(const loom_tensor_source *source, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, loom_error *error);

/* Whether the shapes that a configuration implies are those of a file of weights. Then what is planned from a
 * config.json is bounded by a file that exists. */
bool loom_weights_agree(const char *path, const loom_gpt_config *config, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
