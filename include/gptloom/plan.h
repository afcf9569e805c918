/* The planner: every byte a run will allocate, and how long its steps will take, before it allocates anything. */
#ifndef GPTLOOM_PLAN_H
#define GPTLOOM_PLAN_H

#include "gptloom/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------------------- memory */
typedef struct loom_plan {
    loom_arena arena; /* measured: its rows are the plan's, its `used` the total */
    int64_t B, T;
    loom_precision precision;
    loom_recompute recompute;
    int64_t logits_rows;   /* rows of logits at a time */
    int64_t parameters;    /* as users count them */
    int64_t elements;      /* that one rank's optimizer updates, padding included */
    size_t available;      /* what the device (or --memory) has; 0: not asked */
    size_t host_bytes;     /* pinned host memory to offload to, beside the arena */
    size_t host_available; /* to be pinned */

    /* What was planned, to plan something like it. */
    loom_gpt_config config;
    loom_gpt_setup setup; /* its precision is NULL: the plan's own counts */
    loom_device *device;  /* only shapes are asked of it */
    int64_t sequences;    /* in a step, of all ranks */
} loom_plan;

/* Plans training (or inference) of a model on a device, with `sequences` in a step: the memory of one of setup's ranks.
 * */
bool loom_plan_make(loom_plan *plan, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                    int64_t sequences, loom_error *error);

/* Whether it fits into plan->available. */
bool loom_plan_fits(const loom_plan *plan);

/* Other settings of the same training that do fit. */
typedef struct loom_suggestion {
    char flags[128]; /* "--micro-batch 2 --recompute block" */
    int64_t B, T;
    loom_precision precision;
    loom_recompute recompute;
} loom_suggestion;

enum { LOOM_MOST_SUGGESTIONS = 3 };

/* Finds up to three of them, those first that change the least: more recomputation; a smaller micro-batch; both; bf16;
 * bf16 without master weights; half the sequence length. Returns how many. plan->device must still be open. */
int loom_plan_suggest(const loom_plan *plan, loom_suggestion found[LOOM_MOST_SUGGESTIONS]);

/* The same in words: "these would fit: --recompute act; --micro-batch 4", or what to try where none is found. */
void loom_plan_advise(const loom_plan *plan, char *text, size_t size);

/* Whether it fits in plan->available; the error gives the total, what there is, the largest rows, and what would fit.
 * */
bool loom_plan_check(const loom_plan *plan, loom_error *error);

/* ------------------------------------------------------------------------------------------------------------ costs
 * What a step costs: the sum over what its schedule runs, of which each kind of work (a module, forward or backward, with its
 * shapes) is looked at once. In seconds, measured or predicted, or in floating-point operations, counted. */
enum { LOOM_COST_KEY = 19, LOOM_COST_MOST = 64 };

typedef struct loom_cost {
    struct {
        int64_t key[LOOM_COST_KEY]; /* which work */
        double amount;              /* of a micro-batch */
    } work[LOOM_COST_MOST];
    int n;
    double update; /* of a step: the optimizer, for each element of the layout */
} loom_cost;

/* The cost of a rank's step of so many micro-batches, with an optimizer that updates so many elements (plan.elements).
 * The cost model was made for the same shapes and micro-batch, and may have been made for another depth. */
bool loom_cost_step(const loom_cost *cost, const loom_gpt_config *config, const loom_recompute *recompute,
                    int64_t micro_batches, int64_t elements, double *amount, loom_error *error);

/* What a micro-batch costs, by where it comes from. */
typedef struct loom_cost_parts {
    double ends;                            /* embedding, last layernorm, classifier and loss, both ways */
    double forward, backward;               /* of one layer, on average */
    double recompute[LOOM_RECOMPUTE_EVERY]; /* of one layer, by policy: none .. block */
} loom_cost_parts;

bool loom_cost_split(const loom_cost *cost, const loom_gpt_config *config, loom_cost_parts *parts, loom_error *error);

/* Seconds, measured: a model of two layers, else as `config` and `setup` say (but for the policy), is made on the
 * device, runs step by step, and is given back. Takes a second or two, or a few runs where one takes longer. */
bool loom_cost_measure(loom_cost *cost, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                       loom_error *error);

/* Floating-point operations, counted from shapes; of the device only these are asked. */
bool loom_cost_count(loom_cost *cost, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                     loom_error *error);

/* The policy that trains fastest of those that fit into `available` bytes, by costs that hold for setup->B and
 * setup->T; setup->recompute is not looked at. `plan` becomes its plan. False where none fits; the error says what
 * would. */
bool loom_plan_choose(loom_plan *plan, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                      int64_t sequences, size_t available, const loom_cost *cost, loom_error *error);

/* ------------------------------------------------------------------------------------------------------------- GPUs */
typedef struct loom_gpu {
    const char *name;    /* "h100" */
    const char *aliases; /* other names, between spaces: " h100-sxm h100-80 "; "" */
    const char *title;   /* "NVIDIA H100 SXM, 80 GB" */
    double memory;       /* bytes */
    double tensor;       /* floating-point operations per second: 16-bit products summed in fp32, dense */
    double tf32;         /* products of fp32 matrices rounded to TF32, dense */
    double fp32;         /* anything else */
    double bandwidth;    /* of its memory, bytes per second */
} loom_gpu;

/* All known ones, ended by a NULL name: the data sheets' figures. */
const loom_gpu *loom_gpu_table(void);

/* Looks a name or an alias up; the error suggests the nearest. */
const loom_gpu *loom_gpu_by_name(const char *name, loom_error *error);

/* What is assumed of any GPU that is not here to be measured. */
typedef struct loom_gpu_assumptions {
    double matmul, attention; /* of the rate that the data sheet gives, in matrix products and in attention */
    double bandwidth;         /* of its memory's */
    double launch;            /* seconds that an op takes at least */
    double reserved;          /* bytes of its memory that the CUDA context and libraries keep */
    double unreported;        /* the part of the data sheet's memory that the card does not report */
    double communicator;      /* and those that NCCL keeps, where there are several ranks */
} loom_gpu_assumptions;

extern const loom_gpu_assumptions loom_gpu_assumed;

/* Seconds, predicted from a GPU's peaks: each op takes as long as its arithmetic or its memory, whichever is longer.
 * `device` answers for the shapes (loom_device_open_shapes). */
bool loom_cost_predict(loom_cost *cost, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                       const loom_gpu *gpu, bool tf32, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
