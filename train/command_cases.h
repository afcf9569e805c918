/* What `gptloom parity` and `gptloom bench` have in common: which ops, and on which device. */
#ifndef LOOM_TRAIN_COMMAND_CASES_H
#define LOOM_TRAIN_COMMAND_CASES_H

#include "base/flag.h"
#include "gptloom/device.h"

#include <cjson/cJSON.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_case_choice {
    char *op, *device;
    int64_t threads;
} loom_case_choice;

enum { LOOM_CASE_CHOICE_FLAGS = 3 };
extern const loom_flag loom_case_choice_flags[LOOM_CASE_CHOICE_FLAGS];

/* The choices of --dtype: "all", then the names of loom_case_dtypes_tested; ended by NULL. */
extern const char *const loom_case_dtype_names[];

/* Checks --op and opens --device; with cudnn_attention, the CUDA device whose attention is cuDNN's, and others are
 * refused. After an error, `device` is NULL. */
bool loom_case_choice_open(const loom_case_choice *choice, bool cudnn_attention, loom_device **device,
                           loom_error *error);

/* Reads what `gptloom bench --json` wrote, and checks all that is used of it; the caller deletes it, after an error
 * too. */
bool loom_bench_read(const char *path, cJSON **saved, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
