#include "plan/sample.h"

#include "base/nearest.h"
#include "base/printable.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define GIB  0x1p30
#define TERA 1e12

/* Figures of NVIDIA's data sheets and architecture white papers. Tensor rates are dense ones and sum in fp32: a data
 * sheet that prints them "with sparsity" prints twice as much, and for GeForce those that sum in fp16 are twice as
 * high, too. A GB of memory is 2^30 bytes, as cards have it; of GDDR memory with ECC a sixteenth is not to be had. */
static const loom_gpu gpus[] = {
    {"b200", "", "NVIDIA B200, 180 GB", 180 * GIB, 2250 * TERA, 1125 * TERA, 75 * TERA, 8.0 * TERA},
    {"h200", " h200-sxm ", "NVIDIA H200 SXM, 141 GB", 141 * GIB, 989 * TERA, 494 * TERA, 67 * TERA, 4.8 * TERA},
    {"h100", " h100-sxm h100-80 ", "NVIDIA H100 SXM, 80 GB", 80 * GIB, 989 * TERA, 494 * TERA, 67 * TERA, 3.35 * TERA},
    {"h100-nvl", "", "NVIDIA H100 NVL, 94 GB", 94 * GIB, 835 * TERA, 417 * TERA, 60 * TERA, 3.9 * TERA},
    {"h100-pcie", "", "NVIDIA H100 PCIe, 80 GB", 80 * GIB, 756 * TERA, 378 * TERA, 51 * TERA, 2.0 * TERA},
    {"a100", " a100-80 a100-sxm ", "NVIDIA A100 SXM, 80 GB", 80 * GIB, 312 * TERA, 156 * TERA, 19.5 * TERA,
     2.039 * TERA},
    {"a100-pcie", "", "NVIDIA A100 PCIe, 80 GB", 80 * GIB, 312 * TERA, 156 * TERA, 19.5 * TERA, 1.935 * TERA},
    {"a100-40", "", "NVIDIA A100 SXM, 40 GB", 40 * GIB, 312 * TERA, 156 * TERA, 19.5 * TERA, 1.555 * TERA},
    {"l40s", "", "NVIDIA L40S, 48 GB", 45 * GIB, 362 * TERA, 183 * TERA, 91.6 * TERA, 0.864 * TERA},
    {"l4", "", "NVIDIA L4, 24 GB", 22.5 * GIB, 121 * TERA, 60 * TERA, 30.3 * TERA, 0.3 * TERA},
    {"a10", "", "NVIDIA A10, 24 GB", 22.5 * GIB, 125 * TERA, 62.5 * TERA, 31.2 * TERA, 0.6 * TERA},
    {"a10g", "", "NVIDIA A10G, 24 GB", 22.5 * GIB, 70 * TERA, 35 * TERA, 35 * TERA, 0.6 * TERA},
    {"rtx-a6000", " a6000 ", "NVIDIA RTX A6000, 48 GB", 48 * GIB, 154.8 * TERA, 77.4 * TERA, 38.7 * TERA, 0.768 * TERA},
    {"rtx-5090", " 5090 rtx5090 ", "NVIDIA GeForce RTX 5090, 32 GB", 32 * GIB, 209.5 * TERA, 104.8 * TERA, 104.8 * TERA,
     1.792 * TERA},
    {"rtx-4090", " 4090 rtx4090 ", "NVIDIA GeForce RTX 4090, 24 GB", 24 * GIB, 165.2 * TERA, 82.6 * TERA, 82.6 * TERA,
     1.008 * TERA},
    {"rtx-3090", " 3090 rtx3090 ", "NVIDIA GeForce RTX 3090, 24 GB", 24 * GIB, 71 * TERA, 35.6 * TERA, 35.6 * TERA,
     0.936 * TERA},
    {NULL, NULL, NULL, 0, 0, 0, 0, 0},
};

/* None of them is measured. Of what is reserved, 1 GiB is what csrc/cuda/device.c keeps free for libraries. */
const loom_gpu_assumptions loom_gpu_assumed = {
    .matmul = 0.65,
    .attention = 0.35,
    .bandwidth = 0.8,
    .launch = 3e-6,
    .reserved = 1.5 * GIB,
    .unreported = 0.025,
    .communicator = 0.5 * GIB,
};

const loom_gpu *loom_gpu_table(void) {
    return gpus;
}

static bool is_alias(const loom_gpu *gpu, const char *name) {
    char word[40];
    const int length = snprintf(word, sizeof word, " %s ", name);
    return length < (int)sizeof word && !strchr(name, ' ') && strstr(gpu->aliases, word);
}

const loom_gpu *loom_gpu_by_name(const char *name, loom_error *error) {
    enum { GPUS = sizeof gpus / sizeof *gpus };
    const char *names[GPUS] = {NULL};
    char list[256] = "";
    size_t used = 0;
    for (int i = 0; gpus[i].name; i++) {
        if (!strcmp(gpus[i].name, name) || is_alias(&gpus[i], name)) return &gpus[i];
        names[i] = gpus[i].name;
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", names[i]);
    }
    const char *nearest = loom_nearest_name(name, names);
    loom_fail(error, "'%s' is no GPU that is known; %s%s%sthere are %s", LOOM_BRIEF(name, 40),
              nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "", list);
    return NULL;
}

/* --------------------------------------------------------------------------------------------------------- prediction */

typedef struct roofline {
    const loom_gpu *gpu;
    bool tf32;
} roofline;

/* Of products of what is stored so. */
static double rate_of(const roofline *r, loom_dtype dtype, bool matmul) {
    if (dtype != LOOM_F32) return r->gpu->tensor;
    return matmul && r->tf32 ? r->gpu->tf32 : r->gpu->fp32;
}

/* The rate at which an op does its arithmetic, in products of matrices and in attention. */
static double arithmetic_rate(const roofline *r, loom_op op, const void *arguments) {
    const loom_gpu_assumptions *assumed = &loom_gpu_assumed;
    const struct loom_matmul_forward *forward = arguments;
    const struct loom_matmul_backward_input *input = arguments;
    const struct loom_matmul_backward_weight *weight = arguments;
    const struct loom_attention_forward *attention = arguments;
    const struct loom_attention_backward *attention_backward = arguments;
    switch (op) {
    case LOOM_OP_matmul_forward: return assumed->matmul * rate_of(r, forward->x.dtype, true);
    case LOOM_OP_matmul_backward_input: return assumed->matmul * rate_of(r, input->dout.dtype, true);
    case LOOM_OP_matmul_backward_weight: return assumed->matmul * rate_of(r, weight->dout.dtype, true);
    case LOOM_OP_attention_forward: return assumed->attention * rate_of(r, attention->q.dtype, false);
    case LOOM_OP_attention_backward: return assumed->attention * rate_of(r, attention_backward->q.dtype, false);
    default: return INFINITY;
    }
}

static double seconds_of_op(const void *user, loom_op op, const void *arguments) {
    const roofline *r = user;
    const loom_work work = loom_op_work(op, arguments);
    const double arithmetic = work.flops / arithmetic_rate(r, op, arguments);
    const double memory = work.bytes / (loom_gpu_assumed.bandwidth * r->gpu->bandwidth);
    return loom_gpu_assumed.launch + fmax(arithmetic, memory);
}

bool loom_cost_predict(loom_cost *cost, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                       const loom_gpu *gpu, bool tf32, loom_error *error) {
    const roofline r = {.gpu = gpu, .tf32 = tf32};
    return loom_cost_by_op(cost, config, setup, device, seconds_of_op, &r, error);
}
