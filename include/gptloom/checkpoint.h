/* Checkpoints: a Hugging Face model directory and beside it what training needs to go on.
 *
 *   RUN/checkpoints/step-00000100/
 *     config.json              transformers' of the architecture, as GPT2LMHeadModel's
 *     model.safetensors        weights, names and shapes as transformers writes them: the fp32 master; bf16 in runs
 *                              without one
 *     tokenizer.json, tokenizer_config.json, special_tokens_map.json   (byte-level models)
 *     optimizer.safetensors    NAME.exp_avg and NAME.exp_avg_sq for each weight, in the type the run has them in
 *     training_state.json      step, tokens, seed, the data's identity, the run's dtype and settings, the scalars' state
 *     tuning.txt               the device's tuning cache, where it has one (loom_device.tuning_get)
 *     manifest.json            size and XXH3-128 checksum of each of the files above
 *   RUN/checkpoints/latest     a symbolic link to the newest one
 *
 * A checkpoint is written to a temporary directory beside its place, flushed, renamed, and only then does `latest`
 * move: at any instant `latest` is whole.
 *
 * Ranks write it together, each what it has, and any number of ranks can load it: its bytes do not depend on how many
 * wrote it, nor on what each of them had. */
#ifndef GPTLOOM_CHECKPOINT_H
#define GPTLOOM_CHECKPOINT_H

#include "gptloom/comm.h"
#include "gptloom/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The settings, besides dtype and data order, that affect a run's exact bits, as they are in force. A resumed run may
 * change them. */
typedef struct loom_training_settings {
    int64_t micro_batch; /* 0: the file is older than these settings, and none of them is known */
    int64_t logits_rows; /* at a time; 0: not known */
    int64_t ranks, zero; /* 1 and 0, as all runs were, in files without it */
    bool deterministic, master_weights, tf32, cudnn_attention, deterministic_reduce;
    loom_dtype optimizer_dtype, grad_dtype; /* fp32, as all was in files without them, or bf16 */
    char device[32];                        /* its name */
    char arithmetic[128];                   /* what the device says of it; "" in files without it */
} loom_training_settings;

typedef struct loom_training_state {
    int64_t step;   /* steps done */
    int64_t tokens; /* targets trained on */
    uint64_t seed;
    uint64_t data_identity;
    /* What the order of the data hangs on beside the seed: sequences per step, their length, the training split. */
    int64_t batch, seq_len, training_tokens;
    loom_dtype dtype; /* what the run stores weights and activations in */
    loom_training_settings settings;
    char course[384];           /* the options that updates hang on, "--lr 0.001 ..."; "" in files without it */
    int64_t bad_steps;          /* in a row, up to this one, whose loss was no number or had run away */
    loom_scalars_state scalars; /* a loss scale of 0: not known, as in files older than loss scaling */
} loom_training_state;

/* Which tokens texts begin and end with: config.json's bos_token_id and eos_token_id. */
enum { LOOM_MAX_TEXT_ENDS = 16 };
typedef struct loom_text_ends {
    int64_t begin; /* -1: none */
    int n_ends;    /* 0: nothing ends a text */
    int64_t end[LOOM_MAX_TEXT_ENDS];
} loom_text_ends;

/* What a checkpoint says about itself. */
typedef struct loom_checkpoint_info {
    char path[4096];      /* what was opened, which may mean another checkpoint later */
    char directory[4096]; /* the checkpoint itself, `latest` resolved */
    loom_gpt_config config;
    loom_text_ends ends;
    bool bytes;         /* it carries the byte-level tokenizer */
    bool has_optimizer; /* training_state.json and optimizer.safetensors are there */
    /* A hash that tells checkpoints apart: of its manifest, which has all files' checksums; of one that others have
     * written, of the length, the first and the last 64 KiB of its weights. */
    uint64_t identity;
    /* Where opening fails: the step of the newest whole checkpoint before it that training can go on from; else -1. */
    int64_t older_step;
    loom_training_state state;
} loom_checkpoint_info;

/* What of one bucket lies on this rank's device: elements first .. first + elements - 1, counted from the bucket's
 * start. */
typedef struct loom_checkpoint_slice {
    int64_t first, elements;
    void *parameters, *moment1, *moment2; /* device memory of element `first`; moments NULL: weights only */
} loom_checkpoint_slice;

/* What is saved and loaded. */
typedef struct loom_checkpoint_tensors {
    const loom_gpt_config *config;
    const loom_layout *layout;
    loom_device *device;
    const loom_checkpoint_slice *slice; /* of each bucket of the layout */
    loom_dtype dtype;                   /* of the parameters: fp32, bf16 or fp16 */
    loom_dtype moment_dtype;            /* fp32 or bf16 */
    bool moments;                       /* they are saved, or loaded, too */
    const loom_text_ends *ends;         /* saved too; NULL: those of the vocabulary */
} loom_checkpoint_tensors;

/* The slices of one who has all: whole buckets, of memory in the layout that begins at these places (moments NULL:
 * weights only) and has the types of `tensors`. To be freed; NULL where memory runs out. */
loom_checkpoint_slice *loom_checkpoint_whole_slices(const loom_checkpoint_tensors *tensors, void *parameters,
                                                    void *moment1, void *moment2, loom_error *error);

/* Saves RUN/checkpoints/step-N and moves `latest`. On any error the previous ones are as they were and the temporary
 * directory is gone; but what has been written whole and has its name stays, even if `latest` cannot be moved to it.
 *
 * With a communicator all ranks call it. Their slices together cover every bucket once; all other data, and the name of
 * the directory, are rank 0's. The directory must be on a file system that all ranks share. If one rank fails, all do.
 * NULL: there is one rank. */
bool loom_checkpoint_save(const char *run, const loom_checkpoint_tensors *tensors, const loom_training_state *state,
                          bool bytes, loom_comm *comm, loom_error *error);

/* The state of a checkpoint's training; false where it is no whole one of a training. */
bool loom_checkpoint_state(const char *directory, loom_training_state *state);

/* The step of a run's newest checkpoint, as its name says, whole or not; -1 if there is none. */
int64_t loom_checkpoint_newest(const char *run);

/* Reads what is at `path`: a run (its latest, or the newest where `latest` leads nowhere), a checkpoints directory, a
 * checkpoint, or a Hugging Face directory of an architecture that is known here, with model.safetensors. Checks the
 * manifest where there is one. One that a running training deletes meanwhile is looked for anew. */
bool loom_checkpoint_open(const char *path, loom_checkpoint_info *info, loom_error *error);

/* Loads a checkpoint into the slices. Its shapes must be the layout's; other dtypes are rounded to nearest; padding and
 * gaps become zero. Each rank loads by itself, and slices may overlap. Where weights alone are loaded and a running
 * training has deleted the checkpoint since it was opened, the run is searched again, and *info is what was loaded. */
bool loom_checkpoint_load(loom_checkpoint_info *info, const loom_checkpoint_tensors *tensors, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
