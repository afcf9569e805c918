/* The inside of a trainer: what trainer.c (opening, closing, loading, saving) and step.c (the step) share. */
#ifndef LOOM_TRAIN_TRAINER_H
#define LOOM_TRAIN_TRAINER_H

#include "gptloom/train.h"

/* What is recorded of a step. */
typedef enum loom_piece { LOOM_FIRST_MICRO_BATCH, LOOM_FURTHER_MICRO_BATCH, LOOM_UPDATE, LOOM_PIECES } loom_piece;

struct loom_trainer {
    loom_train_options options; /* resolved */
    loom_device *device;
    loom_dataset *data, *val_data; /* val_data NULL: validation is cut off the data */
    loom_split training, validation;
    bool has_validation;
    loom_precision precision;
    loom_feeder feeder; /* which has the loader */
    loom_recompute recompute;
    loom_plan plan;
    void *memory;
    size_t memory_bytes;
    loom_gpt *gpt;
    loom_optimizer optimizer;
    loom_schedule schedule;
    loom_training_state state;
    char note[256];                         /* which flags a resumed run has otherwise than before; "" if none */
    loom_scalars *host_scalars;             /* pinned: what a step's scalars are copied from and to */
    loom_recording *recording[LOOM_PIECES]; /* NULL until they are made */
    bool has_run[LOOM_PIECES];
};

#endif
