#include "command_cases.h"

#include "cases/case.h"

#include <string.h>

#define AT(member) .offset = offsetof(loom_case_choice, member)

const loom_flag loom_case_choice_flags[LOOM_CASE_CHOICE_FLAGS] = {
    {.name = "op",
     .type = LOOM_FLAG_STRING,
     AT(op),
     .default_value = "all",
     .metavar = "NAME",
     .group = "What",
     .help = "an op (layernorm_backward), a file of cases (layernorm: forward and backward), or all"},
    {.name = "device",
     .type = LOOM_FLAG_STRING,
     AT(device),
     .default_value = "cpu",
     .metavar = "NAME",
     .group = "What",
     .help = "where it runs: cpu, cuda, definition or oracle"},
    {.name = "threads",
     .type = LOOM_FLAG_INT,
     AT(threads),
     .min = 1,
     .max = 1024,
     .derived = "all processors",
     .metavar = "N",
     .group = "How",
     .help = "CPU threads"},
};

const char *const loom_case_dtype_names[] = {"all", "fp32", "bf16", "bf16-gradients", "fp16", NULL};

bool loom_case_choice_open(const loom_case_choice *choice, bool cudnn_attention, loom_device **device,
                           loom_error *error) {
    const loom_device_options options = {.threads = (int)choice->threads, .cudnn_attention = cudnn_attention};
    *device = NULL;
    if (!loom_case_check_name("--op", choice->op, error) || !loom_device_open(device, choice->device, &options, error))
        return false;
    if (!cudnn_attention || !strncmp((*device)->name, "cuda", 4)) return true;
    loom_fail(error, "--attention cudnn: is for --device cuda; this run is on %s", (*device)->name);
    loom_device_close(*device);
    *device = NULL;
    return false;
}
