/* The inside of a trainer: what trainer.c (opening and closing), memory.c (the plan), checkpoints.c (what it begins
 * with and leaves), step.c (the step) and evaluate.c (validation and samples) share. */
#ifndef LOOM_ENGINE_TRAINER_H
#define LOOM_ENGINE_TRAINER_H

#include "gptloom/train.h"

#include "data/feeder.h"
#include "parallel/data_parallel.h"

/* On a GPU the host puts work in ahead of the device: of micro-batches at most so many, so that a run that is to end
 * need not wait for all of a step. */
enum { LOOM_MICRO_BATCHES_AHEAD = 4 };

/* What is captured of a step. */
typedef enum loom_piece {
    LOOM_FIRST_MICRO_BATCH,
    LOOM_FURTHER_MICRO_BATCH,
    LOOM_SQUARES,
    LOOM_UPDATE,
    LOOM_PIECES
} loom_piece;

/* What `--recompute auto` measured, and what a step should take by it. */
typedef struct loom_trainer_prediction {
    loom_cost cost;
    double seconds; /* 0: nothing was measured */
} loom_trainer_prediction;

struct loom_trainer {
    loom_train_options options; /* resolved */
    loom_train_options given;   /* as they were asked for; the strings are those of `options` */
    loom_train_options before;  /* of a run that goes on: what it was in its last session, as its config.ini says */
    bool has_before;
    bool begins_anew; /* it is to go on, but was ended before its first checkpoint: it is begun with the files it has */
    loom_comm *comm;
    const loom_train_observer *observer; /* NULL: none */
    bool no_data;                        /* one of the ranks could not read its data: no further step is done */
    bool asked, stops; /* this rank's observer has asked to end the run; all ranks know that one has, and end it */
    struct {
        double ms_worked, ms_spread; /* of the step before: of this rank; the slowest's from the fastest's */
        int64_t stride;              /* ranks ask each other after so many micro-batches whether the run is to end */
    } status_exchange;               /* of the ranks, in the present step */
    loom_event *ahead[LOOM_MICRO_BATCHES_AHEAD];
    loom_device *device;
    loom_dataset *data, *val_data; /* val_data NULL: validation is cut off the data */
    bool data_stand;               /* OUT/data.json says what they are */
    loom_split training, validation;
    bool has_validation;
    loom_precision precision;
    loom_feeder feeder; /* which has the loader */
    loom_recompute recompute;
    char recompute_name[LOOM_RECOMPUTE_NAME];
    loom_plan plan;
    loom_trainer_prediction prediction;
    void *memory;
    size_t memory_bytes;
    loom_gpt *gpt;
    loom_optimizer optimizer;
    loom_parallel parallel;
    loom_schedule schedule;
    loom_training_state state;
    loom_text_ends ends;
    struct {
        const char *parameter;             /* the last that an op worked with */
        char found[192];                   /* the first tensor that was not finite; "": none */
    } finite;                              /* with --check-finite */
    char note[2048];                       /* loom_trainer_note() */
    loom_scalars *host_scalars;            /* pinned: what a step's scalars are copied from and to */
    loom_device_graph *graph[LOOM_PIECES]; /* NULL until they are made */
    bool has_run[LOOM_PIECES];
};

/* What --data, or --val-data, names. */
bool loom_train_open_data(const loom_train_options *options, bool validation, loom_dataset **data, loom_error *error);

/* OUT/data.json, rank 0's: what the data were when the run began. A resumed run's data are checked against it, if it is
 * there; it is written if it is not, or if --val-data is another. */
bool loom_trainer_check_data(loom_trainer *trainer, loom_error *error);
bool loom_trainer_write_data(const loom_trainer *trainer, loom_error *error);

/* Asks this rank's observer whether the run is to end; once said it stays so. Of several ranks the caller exchanges it,
 * in an operation that all of them come to. */
bool loom_trainer_should_stop(loom_trainer *trainer);

/* As loom_trainer_open, but that a run to go on with that has all its steps is no error: then *done is true, *step is
 * the last one, and there is no trainer, nor is the communicator open any more. */
bool loom_trainer_open_unless_done(loom_trainer **trainer, const loom_train_options *options, loom_comm *comm,
                                   const loom_train_observer *observer, bool *done, int64_t *step, loom_error *error);

/* Looks at what every op writes from now on, for t->finite. */
void loom_trainer_check_ops(loom_trainer *trainer);

/* Whether all parameters are finite, of all ranks; the error names the first that is not. */
bool loom_trainer_check_parameters(loom_trainer *trainer, loom_error *error);

/* The run's newest checkpoint of a step below `before` that was written after a good step, and its state; -1: there is
 * none. */
int64_t loom_run_last_good(const char *out, int64_t before, loom_training_state *state);

/* Adds a line to the note. */
void loom_trainer_add_note(loom_trainer *trainer, const char *format, ...) __attribute__((format(printf, 2, 3)));

loom_gpt_config loom_trainer_shape(const loom_trainer *trainer);
loom_sharding loom_trainer_sharding(const loom_trainer *trainer);
loom_gpt_setup loom_trainer_setup(const loom_trainer *trainer, int64_t micro_batch);

/* Decides the micro-batch and what is recomputed, where the options leave it open, shows the plan to the observer,
 * which may be NULL, and refuses what does not fit. */
bool loom_trainer_plan_memory(loom_trainer *trainer, const loom_train_observer *observer, loom_error *error);

/* A resumed or initialised run's checkpoint, whose shape the options then have; *found NULL for a fresh run. */
bool loom_trainer_find_checkpoint(loom_trainer *trainer, loom_checkpoint_info *info, loom_checkpoint_info **found,
                                  loom_error *error);

/* A run goes on only as what it was: what its order of data or its numbers depend on may not change. Of the checkpoint
 * and the options; and, once they are open and split and the steps are known, of the data. */
bool loom_trainer_check_resumable(const loom_trainer *trainer, const loom_checkpoint_info *from, loom_error *error);
bool loom_trainer_check_same_data(const loom_trainer *trainer, const loom_checkpoint_info *from, loom_error *error);

/* Gives the device the tuning cache of --tuning, or a resumed run's own. The same entries as before give the same bits:
 * a run does not go on with others unless that is asked for. */
bool loom_trainer_restore_tuning(loom_trainer *trainer, const loom_checkpoint_info *from, loom_error *error);

/* The state, the weights and the moments that training begins with. */
bool loom_trainer_start(loom_trainer *trainer, loom_checkpoint_info *from, loom_error *error);

#endif
