/* The inside of a trainer: what trainer.c (opening, closing, loading, saving) and step.c (the step) share. */
#ifndef LOOM_TRAIN_TRAINER_H
#define LOOM_TRAIN_TRAINER_H

#include "gptloom/train.h"

struct loom_trainer {
    loom_train_options options; /* resolved */
    loom_device *device;
    loom_dataset *data, *val_data; /* val_data NULL: validation is cut off the data */
    loom_split training, validation;
    bool has_validation;
    loom_precision precision;
    loom_feeder feeder; /* which has the loader */
    loom_plan plan;
    void *memory;
    size_t memory_bytes;
    loom_gpt *gpt;
    loom_optimizer optimizer;
    loom_schedule schedule;
    loom_training_state state;
    loom_scalars *host_scalars; /* pinned: what a step's scalars are copied from and to */
    loom_recording *recording;  /* of the step; NULL until it is made */
    int64_t steps_run;          /* since the trainer was opened, before recording began */
};

#endif
