/* gptloom plan: what a training needs and how fast it will be, without training, and for a GPU without having it. */
#include "command.h"
#include "command_line.h"
#include "plan_answer.h"
#include "progress.h"

#include "base/file.h"

#include <stdlib.h>
#include <string.h>

typedef struct settings {
    char *on, *json;
    bool measure;
} settings;

static const loom_flag own_flags[] = {
    {.name = "on",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, on),
     .default_value = "here",
     .metavar = "DEVICE",
     .group = "Machine",
     .help =
         "here (what --device auto takes on this machine), cpu, cuda, or a GPU by name, which need not be here: h100, "
         "h200, a100, rtx-4090, ..."},
    {.name = "measure",
     .type = LOOM_FLAG_BOOL,
     .offset = offsetof(settings, measure),
     .default_value = "true",
     .group = "Machine",
     .help = "on a device that is here, run two layers for a second or two to know how fast it is"},
    {.name = "json",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, json),
     .metavar = "FILE",
     .group = "Output",
     .help = "write the answer as JSON, in bytes and seconds, instead of printing it; - for stdout"},
};

enum { OWN_FLAGS = sizeof own_flags / sizeof *own_flags };

/* The flags of `gptloom train` that it takes. */
static const char *const train_flags[] = {"model",
                                          "n-layer",
                                          "n-head",
                                          "n-embd",
                                          "block-size",
                                          "vocab-size",
                                          "activation",
                                          "architecture",
                                          "dtype",
                                          "master-weights",
                                          "optimizer-dtype",
                                          "grad-dtype",
                                          "tf32",
                                          "batch",
                                          "micro-batch",
                                          "seq-len",
                                          "recompute",
                                          "offload",
                                          "logits-rows",
                                          "memory",
                                          "threads",
                                          "ranks",
                                          "zero",
                                          "deterministic-reduce",
                                          NULL};

enum { TRAIN_FLAGS = sizeof train_flags / sizeof *train_flags - 1 };

/* What of these flags is otherwise here than in training. */
static void adapt_flags(loom_flag *flags) {
    for (int i = 0; i < TRAIN_FLAGS; i++) {
        loom_flag *flag = &flags[i];
        if (!strcmp(flag->name, "vocab-size")) flag->derived = "the model's; else 50257";
        if (!strcmp(flag->name, "recompute")) {
            flag->default_value = "auto";
            flag->help =
                "look at this policy alone: none, act, norm, block-attn, block, every:K, sqrt; auto: at all of "
                "them, and at sets of values where these are faster";
        }
        if (!strcmp(flag->name, "ranks")) {
            flag->derived = "1";
            flag->help = "so many such devices, each with its share of the batch";
        }
        if (!strcmp(flag->name, "memory")) {
            flag->derived = "what the device has";
            flag->help = "of each device, as 24GiB; of a GPU with what the CUDA context and libraries take of it";
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------- the device */

static bool is_here(const char *on) {
    return !strcmp(on, "here") || !strcmp(on, "cpu") || !strcmp(on, "cuda");
}

static bool open_here(loom_plan_answer *a, const char *on, loom_error *error) {
    const loom_train_options *o = &a->planning.options;
    const loom_device_options options = {.threads = (int)o->threads, .tf32 = o->tf32};
    if (!loom_device_open(&a->device, strcmp(on, "here") ? on : "auto", &options, error)) return false;
    a->available = a->device->available(a->device);
    snprintf(a->title, sizeof a->title, "%s: %s", a->device->name, a->device->description);
    return true;
}

static bool open_named(loom_plan_answer *a, const char *on, loom_error *error) {
    loom_error why;
    a->gpu = loom_gpu_by_name(on, &why);
    if (!a->gpu) return loom_fail(error, "--on: %s; or here, cpu, cuda", why.message);
    const loom_gpu_assumptions *assumed = &loom_gpu_assumed;
    const double reported = a->gpu->memory * (1 - assumed->unreported);
    const double reserved = assumed->reserved + (a->sharding.ranks > 1 ? assumed->communicator : 0);
    if (!loom_device_open_shapes(&a->device, (size_t)reported, (size_t)reserved, &why))
        return loom_fail(error, "--on: %s", why.message);
    a->available = a->device->available(a->device);
    snprintf(a->title, sizeof a->title, "%s", a->gpu->title);
    return true;
}

static bool open_device(loom_plan_answer *a, const char *on, loom_error *error) {
    const double memory = a->planning.options.memory;
    if (!(is_here(on) ? open_here(a, on, error) : open_named(a, on, error))) return false;
    if (a->planning.options.tf32 && a->device->host_memory)
        return loom_fail(error, "--tf32: is for GPUs; this is planned on %s", a->device->name);
    if (memory == 0) return true;
    const size_t asked = (size_t)memory, reserved = a->device->reserved;
    if (asked <= reserved)
        return loom_fail(error, "--memory: the CUDA context and libraries alone take %.0f MiB",
                         (double)reserved / 0x1p20);
    a->available = asked - reserved;
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ planning */

static bool make_plan(const loom_plan_answer *a, const loom_recompute *recompute, int64_t B, loom_plan *plan,
                      loom_error *error) {
    const loom_gpt_setup setup = loom_planning_setup(&a->planning, &a->precision, recompute, B);
    if (!loom_plan_make(plan, &a->planning.config, &setup, a->device, a->planning.options.batch, error)) return false;
    plan->available = a->available;
    return true;
}

/* The micro-batch, as training with one policy takes it where none is said: the largest that fits with the first
 * policy, the smallest if none does. (--recompute auto in training also weighs larger ones against it.) */
static bool settle_micro_batch(loom_plan_answer *a, const loom_recompute *recompute, loom_error *error) {
    const int64_t T = a->planning.options.seq_len, most = (INT64_C(1) << 31) / T;
    const int64_t batch = a->planning.options.batch;
    a->micro_batch = a->planning.options.micro_batch;
    bool fits = a->micro_batch > 0;
    for (int64_t B = batch < most ? batch : most; !fits && B > 0; B--) {
        loom_plan plan;
        if (!loom_micro_batches_divide(batch, B, &a->sharding)) continue;
        if (!make_plan(a, recompute, B, &plan, error)) return false;
        a->micro_batch = B;
        fits = loom_plan_fits(&plan);
    }
    return a->micro_batch > 0 ||
           loom_fail(error, "--deterministic-reduce: no --micro-batch makes a power of two of them of --batch %lld",
                     (long long)batch);
}

/* What a step costs in operations, and in seconds where that can be known. */
static bool find_costs(loom_plan_answer *a, bool measure, loom_error *error) {
    const loom_recompute everything_kept = {.kind = LOOM_RECOMPUTE_NONE};
    const loom_gpt_config *config = &a->planning.config;
    const loom_gpt_setup setup = loom_planning_setup(&a->planning, &a->precision, &everything_kept, a->micro_batch);
    if (!loom_cost_count(&a->flops, config, &setup, a->device, error)) return false;
    if (setup.offload) {
        loom_fail(&a->unmeasured, "how long the copies of --offload take beside the computing is not modelled");
        return true;
    }
    if (a->gpu) {
        a->speed = LOOM_SPEED_PREDICTED;
        return loom_cost_predict(&a->seconds, config, &setup, a->device, a->gpu, a->planning.options.tf32, error);
    }
    if (measure && loom_cost_measure(&a->seconds, config, &setup, a->device, &a->unmeasured))
        a->speed = LOOM_SPEED_MEASURED;
    else if (!measure)
        loom_fail(&a->unmeasured, "--no-measure");
    return true;
}

static bool add_policy(loom_plan_answer *a, const loom_recompute *recompute, loom_error *error) {
    const loom_gpt_config *config = &a->planning.config;
    const loom_recompute everything_kept = {.kind = LOOM_RECOMPUTE_NONE};
    const int64_t micro_batches = loom_micro_batches(a->planning.options.batch, a->micro_batch, &a->sharding);
    loom_plan_policy *p = &a->policy[a->n_policies++];
    p->recompute = *recompute;
    if (!make_plan(a, recompute, a->micro_batch, &p->plan, error)) return false;
    p->fits = loom_plan_fits(&p->plan);
    double flops, least_flops;
    if (!loom_cost_step(&a->flops, config, recompute, 1, 0, &flops, error) ||
        !loom_cost_step(&a->flops, config, &everything_kept, 1, 0, &least_flops, error))
        return false;
    p->extra_flops = flops / least_flops - 1;
    if (a->speed == LOOM_SPEED_UNKNOWN) return true;
    const double tokens = (double)(a->planning.options.batch * a->planning.options.seq_len);
    if (!loom_cost_step(&a->seconds, config, recompute, micro_batches, p->plan.elements, &p->seconds, error))
        return false;
    p->tokens_per_s = tokens / p->seconds;
    return true;
}

/* What `--recompute auto` would take, where that is none of the named policies. */
static bool add_sets(loom_plan_answer *a, loom_error *error) {
    const loom_recompute found_here = {.kind = LOOM_RECOMPUTE_AUTO};
    const loom_gpt_setup setup = loom_planning_setup(&a->planning, &a->precision, &found_here, a->micro_batch);
    loom_plan plan;
    if (a->speed == LOOM_SPEED_UNKNOWN ||
        !loom_plan_choose(&plan, &a->planning.config, &setup, a->device, a->planning.options.batch, a->available,
                          &a->seconds, NULL) ||
        plan.recompute.kind != LOOM_RECOMPUTE_SETS)
        return true;
    return add_policy(a, &plan.recompute, error);
}

/* The fastest policy that fits; where speeds are not known, that of the fewest operations; where none fits, that of the
 * least memory. */
static const loom_plan_policy *best_of(const loom_plan_answer *a) {
    const loom_plan_policy *best = &a->policy[0];
    for (int i = 1; i < a->n_policies; i++) {
        const loom_plan_policy *p = &a->policy[i];
        const bool faster = a->speed == LOOM_SPEED_UNKNOWN ? p->extra_flops < best->extra_flops
                                                           : p->tokens_per_s > best->tokens_per_s;
        const bool smaller = p->plan.arena.used < best->plan.arena.used;
        if (p->fits != best->fits ? p->fits : p->fits ? faster : smaller) best = p;
    }
    return best;
}

static bool find_answer(loom_plan_answer *a, const char *model, const settings *mine, loom_error *error) {
    loom_train_options *o = &a->planning.options;
    loom_checkpoint_info from = {0};
    loom_recompute policies[LOOM_MOST_POLICIES];
    if (!loom_planning_settle(&a->planning, model, &from, error) ||
        !loom_recompute_parse(o->recompute, &policies[0], error))
        return false;
    int n = 1;
    const bool any = policies[0].kind == LOOM_RECOMPUTE_AUTO;
    if (any) n = loom_recompute_policies(o->n_layer, policies);
    a->sharding = loom_train_options_sharding(o);
    if (!open_device(a, mine->on, error) || !loom_planning_precision(&a->planning, a->device, &a->precision, error) ||
        !settle_micro_batch(a, &policies[0], error) || !find_costs(a, mine->measure, error))
        return false;
    for (int i = 0; i < n; i++)
        if (!add_policy(a, &policies[i], error)) return false;
    if (any && !add_sets(a, error)) return false;
    a->best = best_of(a);
    return true;
}

int loom_command_plan(int argc, char **argv) {
    settings mine = {0};
    loom_error error;
    loom_plan_answer *a = calloc(1, sizeof *a);
    loom_flag flags[TRAIN_FLAGS + 1];
    if (!a) {
        loom_fail(&error, "no memory for a plan");
        return loom_command_failed(&error);
    }
    loom_train_option_rows(train_flags, flags);
    adapt_flags(flags);
    a->planning.options = loom_train_options_defaults();
    loom_flags_defaults(own_flags, OWN_FLAGS, &mine);
    loom_flag_reset(loom_flag_find(flags, TRAIN_FLAGS, "recompute"), &a->planning.options);
    loom_flag_table tables[] = {{flags, TRAIN_FLAGS, &a->planning.options, {false}},
                                {own_flags, OWN_FLAGS, &mine, {false}}};
    loom_command_line line = {
        .command = "plan",
        .arguments = "[DIR|NAME]",
        .about = "Tells, without training, what memory a training takes, whether it fits, and how fast it will be, for "
                 "each policy of recomputing activations. For a device that is here it measures two layers; for a GPU "
                 "by name it predicts from the data sheet. The model is a named one, one with a shape of its own, or "
                 "that of a run or checkpoint.",
        .examples = "  gptloom plan gpt2 --batch 8 --seq-len 256\n"
                    "  gptloom plan gpt2-xl --on h100 --dtype bf16 --batch 64 --ranks 8 --zero 1\n"
                    "  gptloom plan gpt3-1.3b --on rtx-4090 --dtype bf16 --batch 16 --micro-batch 1\n",
        .most = 1,
        .tables = tables,
        .n_tables = 2,
    };
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0) {
        const bool ok = (!mine.json || loom_output_check(mine.json, &error)) &&
                        find_answer(a, line.n_arguments ? line.argument[0] : NULL, &mine, &error) &&
                        (mine.json ? loom_plan_answer_write(a, mine.json, &error) : loom_plan_answer_show(a));
        code = ok ? 0 : loom_command_failed(&error);
    }
    loom_device_close(a->device);
    loom_train_options_free(&a->planning.options);
    loom_flags_free(own_flags, OWN_FLAGS, &mine);
    free(a);
    return code;
}
