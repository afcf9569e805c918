/* Training: options, the trainer (a step at a time), and the whole run (directory, metrics, checkpoints). */
#ifndef GPTLOOM_TRAIN_H
#define GPTLOOM_TRAIN_H

#include "gptloom/checkpoint.h"
#include "gptloom/data.h"
#include "gptloom/optim.h"
#include "gptloom/comm.h"
#include "gptloom/plan.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ----------------------------------------------------------------------------------------------------------- options
 * Every field is a flag of `gptloom train` and a key of a config file (underscores become dashes). A field that was not
 * given, and whose default is derived, is 0 or NULL (min_lr, warmup, val_fraction, activation and architecture: -1). Strings and lists of them are owned by the
 * options. */

typedef enum loom_switch { LOOM_OFF, LOOM_ON } loom_switch;
typedef enum loom_attention_kind { LOOM_ATTENTION_OWN, LOOM_ATTENTION_CUDNN } loom_attention_kind;
typedef enum loom_offload_kind { LOOM_OFFLOAD_NONE, LOOM_OFFLOAD_ACTIVATIONS } loom_offload_kind;

typedef struct loom_train_options {
    char **data, **val_data;
    int n_data, n_val_data;
    bool any_bytes;
    char *out;
    char *model;
    int64_t n_layer, n_head, n_embd, block_size, vocab_size;
    int activation;   /* a loom_gpt_activation; -1: the checkpoint's to begin with, else GELU */
    int architecture; /* a loom_gpt_architecture; -1: the checkpoint's to begin with, else the model's */
    int64_t batch, micro_batch, seq_len;
    int64_t steps, stop_after;
    double epochs;
    double lr, min_lr;
    int64_t warmup;
    loom_schedule_kind schedule;
    double weight_decay, beta1, beta2, eps, clip, skip_spikes;
    double val_fraction;
    int64_t val_every, val_tokens, sample_every, sample_tokens, checkpoint_every, keep;
    bool save; /* false: no checkpoint is ever written */
    uint64_t seed;
    loom_dtype dtype; /* fp32, bf16 or fp16 */
    loom_switch master_weights;
    loom_dtype optimizer_dtype, grad_dtype; /* fp32 or bf16 */
    char *device;
    int64_t threads;
    bool deterministic;
    bool tf32;
    loom_attention_kind attention;
    loom_switch cuda_graph;
    char *init;
    bool resume, retune, check_finite;
    int64_t resume_from; /* the step of the checkpoint to go on from; 0: the newest */
    char *tuning;        /* the file of a tuning cache to begin with; NULL: measured */
    double memory;       /* bytes the run may use; 0: what the device has */
    char *recompute;     /* as loom_recompute_parse reads it */
    loom_offload_kind offload;
    int64_t logits_rows; /* 0: from shapes */
    char *comm;          /* as loom_comm_options.backend */
    int64_t ranks;       /* 0: as many as were started */
    int64_t zero;
    bool deterministic_reduce;
    double comm_timeout; /* seconds */
} loom_train_options;

loom_train_options loom_train_options_defaults(void);
void loom_train_options_free(loom_train_options *options);

/* Sets one option from text, as the flag --KEY VALUE would; lists ("data") add. The error names the key, the value and
 * what is allowed; an unknown key suggests the nearest. */
bool loom_train_options_set(loom_train_options *options, const char *key, const char *value, loom_error *error);

/* Reads an INI file: `key = value` lines. Section names do not matter, but for `[derived]`, which is a
 * record and is skipped. */
bool loom_train_options_read(loom_train_options *options, const char *path, loom_error *error);

/* All options as such a file has them, to be freed; and the file. */
bool loom_train_options_text(const loom_train_options *options, char **text, size_t *size, loom_error *error);
bool loom_train_options_write(const loom_train_options *options, const char *path, loom_error *error);

/* What one option cannot check alone (n_embd divides by n_head, batch by micro_batch, ...), and derived defaults that
 * need no data or device: the model's shape from its name (vocab_size stays 0 until the data tells), seq_len, min_lr,
 * warmup (which stays -1 until epochs have become steps). Doing it again changes nothing. */
bool loom_train_options_resolve(loom_train_options *options, loom_error *error);

/* What the options say of precision. */
loom_precision_flags loom_train_options_precision(const loom_train_options *options);

/* What each rank holds; of rank 0, and of one rank where their number is not said. */
loom_sharding loom_train_options_sharding(const loom_train_options *options);

/* The warm-up of a run of so many steps, where none is given. */
int64_t loom_train_default_warmup(int64_t steps);

/* ----------------------------------------------------------------------------------------------------------- trainer */
typedef struct loom_trainer loom_trainer;
typedef struct loom_train_observer loom_train_observer; /* below */

typedef struct loom_step_report {
    int64_t step;   /* 1 for the first */
    int64_t tokens; /* so far */
    float loss, lr, grad_norm;
    bool skipped;
    double ms, tokens_per_s;
    /* With several ranks: milliseconds of the step in which this one waited for communication; by how many the ranks'
     * own work differed in the step before, the slowest's from the fastest's. */
    double ms_waited, ms_spread;
    int64_t comm_bytes; /* that this rank handed to the communicator in the step */
    bool stop;          /* the observer of one of the ranks asks to end the run */
    /* The step was given up before its update. Nothing has changed: `step` and `tokens` are those of the step before,
     * the other fields are 0, and the next call repeats the step to the same bits. */
    bool interrupted;
} loom_step_report;

typedef struct loom_validation {
    double loss;      /* mean over the tokens */
    int64_t tokens;   /* predicted */
    double seconds;   /* that it took */
    bool interrupted; /* the observer of one of the ranks asks to end the run: there is no loss */
} loom_validation;

/* Opens data and device, shapes the model, plans memory (refusing what does not fit), allocates once, initialises or
 * loads. Nothing is written. The options' strings must outlive the trainer. Of the observer, which may be NULL and
 * outlives the trainer, `planned`, `validating` and `should_stop` are called.
 *
 * `comm` is open and not attached; the trainer closes it. NULL is one rank. All ranks make the same calls. If one of
 * them fails, its process must call loom_comm_abort(), or the others wait in vain: the communicator stays open for that
 * when loom_trainer_open() or loom_train() fails. */
bool loom_trainer_open(loom_trainer **trainer, const loom_train_options *options, loom_comm *comm,
                       const loom_train_observer *observer, loom_error *error);
void loom_trainer_close(loom_trainer *trainer);

/* data -> forward -> loss -> backward -> reduce -> clip -> AdamW, once. Where the observer asks to end the run the step
 * may be given up between two micro-batches, which is no error: report->interrupted. */
bool loom_trainer_step(loom_trainer *trainer, loom_step_report *report, loom_error *error);

/* Mean loss over windows of the validation split: as many as hold so many tokens, evenly spaced over it; 0: all. Which
 * ones, and the order in which their losses are added, depends on the tokens and --seq-len alone: not on the
 * micro-batch or the ranks. */
bool loom_trainer_validate(loom_trainer *trainer, int64_t tokens, loom_validation *result, loom_error *error);

/* How many tokens that is. */
int64_t loom_trainer_validation_tokens(const loom_trainer *trainer, int64_t tokens);

/* Continues a new line (bytes) or end-of-text (other vocabularies) by n tokens; in runs with --sample-every. Ends early
 * where the observer of one of the ranks asks to end the run: *interrupted, which may be NULL. */
bool loom_trainer_sample(loom_trainer *trainer, int64_t n, bool (*emit)(void *user, int32_t token), void *user,
                         bool *interrupted, loom_error *error);

/* Writes a checkpoint of the current step into run directory `run`. */
bool loom_trainer_save(loom_trainer *trainer, const char *run, loom_error *error);

int64_t loom_trainer_steps_done(const loom_trainer *trainer);
const char *loom_trainer_note(const loom_trainer *trainer); /* lines on what is not as asked for, or as it was; or "" */
float loom_trainer_loss_scale(const loom_trainer *trainer); /* of the next step */
int64_t loom_trainer_steps_planned(const loom_trainer *trainer); /* --steps, or what --epochs comes to */
bool loom_trainer_has_validation(const loom_trainer *trainer);
const loom_train_options *loom_trainer_options(const loom_trainer *trainer); /* fully resolved */
const loom_plan *loom_trainer_plan(const loom_trainer *trainer);
/* Seconds that a step should take, by what `--recompute auto` measured; 0 where it did not. */
double loom_trainer_predicted_seconds(const loom_trainer *trainer);
/* Writes the plan, and what was measured for it, as JSON. */
bool loom_trainer_write_plan(const loom_trainer *trainer, const char *path, loom_error *error);
loom_gpt *loom_trainer_gpt(loom_trainer *trainer);
const loom_comm *loom_trainer_comm(const loom_trainer *trainer); /* never NULL */
const loom_dataset *loom_trainer_data(const loom_trainer *trainer);

/* -------------------------------------------------------------------------------------------------------- whole runs
 * loom_train runs options to the end in a run directory:
 *   OUT/config.ini  OUT/data.json  OUT/plan.json  OUT/metrics.jsonl  OUT/checkpoints/  OUT/samples.txt  OUT/lock
 * and OUT/saved after the first checkpoint, and OUT/tuning.txt where the device autotunes;
 * and tells an observer, all of whose functions may be NULL. */
struct loom_train_observer {
    void *user;
    void (*noted)(void *user, const char *line); /* at any time: what a user should know, a line without its end */
    void (*planned)(void *user, const loom_plan *plan); /* before anything is allocated; it may not fit */
    void (*already_done)(void *user, int64_t step); /* in place of all else: the run to go on with has all its steps */
    void (*started)(void *user, loom_trainer *trainer); /* after everything is open, before the first step */
    void (*stepped)(void *user, const loom_step_report *report);
    void (*validating)(void *user, int64_t step, double part); /* `part` of the way, from 0 to 1 */
    void (*validated)(void *user, int64_t step, const loom_validation *result);
    void (*sampled)(void *user, int64_t step, const char *text);
    void (*saved)(void *user, int64_t step, const char *directory);
    /* Asked between micro-batches, in training, validation and sampling; true, if only once, saves the last whole step
     * and ends the run cleanly, of all ranks. */
    bool (*should_stop)(void *user);
};

/* `comm` as for loom_trainer_open. All ranks see the same directory: rank 0 writes it, each its part of checkpoints,
 * and where there are several ranks its own OUT/logs/rank-N.log. */
bool loom_train(const loom_train_options *options, loom_comm *comm, const loom_train_observer *observer,
                loom_error *error);

/* What loom_train would refuse at first sight, with no device and no ranks: OUT holds another run, there are no such
 * data for a new one. */
bool loom_train_check(const loom_train_options *options, loom_error *error);

/* Of a run that goes on elsewhere or was ended: the last step in a rank's log; -1 if there is none. */
int64_t loom_run_logged_step(const char *out, int rank);

#ifdef __cplusplus
}
#endif
#endif
