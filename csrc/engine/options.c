#include "engine/options.h"
#include "engine/synonyms.h"

#include "base/check.h"
#include "base/file.h"
#include "base/printable.h"
#include "model/training.h"

#include <ctype.h>
#include <glob.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The longest string that a config file can hold; and the file. */
enum { LONGEST_STRING = PATH_MAX, LARGEST_FILE = 16 << 20 };

/* The first line of a file says which version of this format it has. Files without it are older than that, and are read
 * as version 1; of a later version none can be read. */
#define FORMAT "format-version"
enum { FORMAT_VERSION = 1 };

/* What follows from other options is written in a section of its own, in which a file is not read as options: a run
 * that goes on with another --lr has another --min-lr, unless that was given. The micro-batch stays where it can. All
 * else that was settled when a run began stays, as its bits depend on it. */
#define DERIVED "derived"
static const char *const follow[] = {"micro-batch", "steps", "min-lr", "warmup", NULL};

/* A line of that section: what relative paths are relative to. */
#define DIRECTORY "directory"

/* -------------------------------------------------------------------------------------------------------- the table */

/* In the order of loom_schedule_kind, loom_gpt_activation, ...: a choice is its place. */
static const char *const schedules[] = {"cosine", "linear", "wsd", "constant", NULL};
#define WORD(NAME, name) #name,
static const char *const activations[] = {LOOM_ACTIVATION_LIST(WORD) NULL};
#undef WORD
static const char *const devices[] = {"auto", "cpu", "cuda", "definition", "oracle", NULL};
static const char *const dtypes[] = {"fp32", "bf16", "fp16", NULL};
static const char *const fp32_or_bf16[] = {"fp32", "bf16", NULL};
static const char *const switches[] = {"off", "on", NULL};
static const char *const attentions[] = {"own", "cudnn", NULL};
static const char *const offloads[] = {"none", "activations", NULL};
static const char *const communicators[] = {"auto", "self", "mpi", "nccl", NULL};

#define AT(field) .offset = offsetof(loom_train_options, field)

/* clang-format off */
static const loom_flag table[] = {
    {.name = "data", .type = LOOM_FLAG_STRINGS, AT(data), .count = offsetof(loom_train_options, n_data),
     .metavar = "PATH...", .group = "Data",
     .help = "what to train on: files, directories, quoted patterns. Files ending in .bin are token shards as llm.c "
             "writes them, all others are text and read as bytes"},
    {.name = "val-data", .type = LOOM_FLAG_STRINGS, AT(val_data), .count = offsetof(loom_train_options, n_val_data),
     .metavar = "PATH...", .group = "Data",
     .help = "what to validate on, of the same kind; goes before --val-fraction"},
    {.name = "val-fraction", .type = LOOM_FLAG_DOUBLE, AT(val_fraction), .min = 0, .max = 0.9, .unset = -1,
     .derived = "0.1; 0 where that would be too short to validate on",
     .overrides = {"val-data"}, .metavar = "F", .group = "Data",
     .help = "how much of the data's end is kept for validation; 0: none"},
    {.name = "any-bytes", .type = LOOM_FLAG_BOOL, AT(any_bytes), .group = "Data",
     .help = "read files that do not end in .bin as bytes whatever they hold; without it, what is compressed, binary or "
             "in UTF-16 is refused"},

    {.name = "model", .type = LOOM_FLAG_STRING, AT(model), .derived = "mini's shape, if none is given",
     .overrides = {"n-layer", "n-head", "n-embd", "block-size", "vocab-size", "architecture"}, .metavar = "NAME", .group = "Model",
     .help = "a named shape: gpt2, d12, nano, ...; 'gptloom info' lists them. The flags below change parts of it"},
    {.name = "n-layer", .type = LOOM_FLAG_INT, AT(n_layer), .min = 1, .max = 1000, .derived = "the model's",
     .metavar = "N", .group = "Model", .help = "transformer blocks"},
    {.name = "n-head", .type = LOOM_FLAG_INT, AT(n_head), .min = 1, .max = 1024, .derived = "the model's",
     .metavar = "N", .group = "Model", .help = "attention heads; divides --n-embd"},
    {.name = "n-embd", .type = LOOM_FLAG_INT, AT(n_embd), .min = 1, .max = 1 << 17, .derived = "the model's",
     .metavar = "N", .group = "Model", .help = "channels"},
    {.name = "block-size", .type = LOOM_FLAG_INT, AT(block_size), .min = 1, .max = 1 << 20,
     .derived = "the model's; else --seq-len; else 1024", .metavar = "T", .group = "Model",
     .help = "the longest context: how many positions are learned"},
    {.name = "vocab-size", .type = LOOM_FLAG_INT, AT(vocab_size), .min = 2, .max = 1 << 22,
     .derived = "257 for text, 50257 for token shards", .metavar = "V", .group = "Model",
     .help = "token ids are below this"},
    {.name = "activation", .type = LOOM_FLAG_CHOICE, AT(activation), .choices = activations, .unset = -1,
     .derived = "gelu; of --init, its own", .metavar = "NAME", .group = "Model",
     .help = "of the MLP: gelu (GPT-2's, the tanh form), relu, or relu2 (the square of relu)"},
    {.name = "architecture", .type = LOOM_FLAG_CHOICE, AT(architecture), .choices = loom_gpt_architecture_names, .unset = -1,
     .derived = "the model's; of --init, its own; else gpt2", .metavar = "NAME", .group = "Model",
     .help = "gpt2 (layernorms before attention and MLP, and at the end) or gpt1 (behind them)"},
    {.name = "init", .type = LOOM_FLAG_STRING, AT(init), .derived = "GPT-2's random initialisation",
     .metavar = "CHECKPOINT", .group = "Model",
     .help = "begin with the weights of this run or checkpoint, which must have the same shape"},
    {.name = "seed", .type = LOOM_FLAG_INT, AT(seed), .min = 0, .max = 0x1p63, .default_value = "1337", .metavar = "S",
     .group = "Model", .help = "of the initialisation, the data's order and the samples"},

    {.name = "dtype", .type = LOOM_FLAG_CHOICE, AT(dtype), .choices = dtypes, .default_value = "fp32",
     .metavar = "NAME", .group = "Precision",
     .help = "what weights and activations are stored in: fp32, bf16 or fp16 (with loss scaling). Moments and the "
             "gradients of weights stay fp32, unless the flags below say otherwise"},
    {.name = "master-weights", .type = LOOM_FLAG_CHOICE, AT(master_weights), .choices = switches, .default_value = "on",
     .metavar = "on|off", .group = "Precision",
     .help = "bf16 and fp16: update weights in fp32 and train with their rounded copy. off, with bf16 only: update "
             "the bf16 weights themselves, rounded up or down at random"},
    {.name = "optimizer-dtype", .type = LOOM_FLAG_CHOICE, AT(optimizer_dtype), .choices = fp32_or_bf16,
     .default_value = "fp32", .metavar = "fp32|bf16", .group = "Precision",
     .help = "what AdamW's moments are stored in; bf16, with any --dtype, takes half the memory and rounds them up or "
             "down at random at each step, so that small changes are kept in the mean"},
    {.name = "grad-dtype", .type = LOOM_FLAG_CHOICE, AT(grad_dtype), .choices = fp32_or_bf16, .default_value = "fp32",
     .metavar = "fp32|bf16", .group = "Precision",
     .help = "what the gradients of weights are stored in; bf16, with --dtype bf16 only, takes half the memory and "
             "rounds the sum to nearest each time a micro-batch is added, so that with many of them small ones "
             "are lost"},
    {.name = "tf32", .type = LOOM_FLAG_BOOL, AT(tf32), .group = "Precision",
     .help = "products of fp32 matrices round their inputs to TF32; --device cuda only"},

    {.name = "batch", .type = LOOM_FLAG_INT, AT(batch), .min = 1, .max = 1 << 20, .default_value = "8", .metavar = "B",
     .group = "Batches and steps", .help = "sequences per optimizer step, over everything"},
    {.name = "micro-batch", .type = LOOM_FLAG_INT, AT(micro_batch), .min = 1, .max = 1 << 20,
     .derived = "the largest that fits in memory; of a run that goes on as before, where that divides and fits", .metavar = "B", .group = "Batches and steps",
     .help = "sequences per forward; divides --batch, and the gradients of all are added up"},
    {.name = "seq-len", .type = LOOM_FLAG_INT, AT(seq_len), .min = 1, .max = 1 << 20,
     .derived = "--block-size, at most 1024", .metavar = "T", .group = "Batches and steps",
     .help = "tokens per sequence; at most --block-size"},
    {.name = "steps", .type = LOOM_FLAG_INT, AT(steps), .min = 1, .max = 1e9, .derived = "one epoch",
     .overrides = {"epochs"}, .metavar = "N", .group = "Batches and steps",
     .help = "optimizer steps of the whole run"},
    {.name = "epochs", .type = LOOM_FLAG_DOUBLE, AT(epochs), .min = 1e-6, .max = 1e6, .overrides = {"steps"},
     .metavar = "E", .group = "Batches and steps",
     .help = "passes over the training data, in place of --steps; 0.5 is half of one"},
    {.name = "stop-after", .type = LOOM_FLAG_INT, AT(stop_after), .min = 1, .max = 1e9,
     .derived = "to the run's end", .session = true, .metavar = "N", .group = "Batches and steps",
     .help = "save and end after N steps of this session, for jobs with a time limit; --resume goes on"},

    {.name = "lr", .type = LOOM_FLAG_DOUBLE, AT(lr), .min = 0, .max = 100, .default_value = "6e-4", .metavar = "X",
     .group = "Optimizer (AdamW)", .help = "the largest learning rate"},
    {.name = "min-lr", .type = LOOM_FLAG_DOUBLE, AT(min_lr), .min = 0, .max = 100, .unset = -1,
     .derived = "a tenth of --lr", .metavar = "X", .group = "Optimizer (AdamW)",
     .help = "the learning rate at the schedule's end"},
    {.name = "warmup", .type = LOOM_FLAG_INT, AT(warmup), .min = 0, .max = 1e9, .unset = -1,
     .derived = "a twentieth of the steps, at most 2000", .metavar = "N",
     .group = "Optimizer (AdamW)", .help = "steps in which the learning rate rises to --lr"},
    {.name = "schedule", .type = LOOM_FLAG_CHOICE, AT(schedule), .choices = schedules, .default_value = "cosine",
     .metavar = "NAME", .group = "Optimizer (AdamW)",
     .help = "the way from --lr to --min-lr: cosine, linear, wsd (stays at --lr until the last fifth of the steps after warm-up, "
             "then a line) or constant (stays at --lr)"},
    {.name = "weight-decay", .type = LOOM_FLAG_DOUBLE, AT(weight_decay), .min = 0, .max = 100, .default_value = "0.1",
     .metavar = "X", .group = "Optimizer (AdamW)",
     .help = "decoupled, on matrices only: none on biases and layernorms"},
    {.name = "beta1", .type = LOOM_FLAG_DOUBLE, AT(beta1), .min = 0, .max = 0.999999, .default_value = "0.9",
     .metavar = "X", .group = "Optimizer (AdamW)", .help = "decay of the gradients' mean"},
    {.name = "beta2", .type = LOOM_FLAG_DOUBLE, AT(beta2), .min = 0, .max = 0.999999, .default_value = "0.95",
     .metavar = "X", .group = "Optimizer (AdamW)", .help = "decay of the squared gradients' mean"},
    {.name = "eps", .type = LOOM_FLAG_DOUBLE, AT(eps), .min = 1e-20, .max = 1, .default_value = "1e-8", .metavar = "X",
     .group = "Optimizer (AdamW)", .help = "added to the update's denominator"},
    {.name = "clip", .type = LOOM_FLAG_DOUBLE, AT(clip), .min = 0, .max = 1e6, .default_value = "1", .metavar = "X",
     .group = "Optimizer (AdamW)",
     .help = "the largest global norm of the gradients; larger ones are scaled down to it. 0: no clipping"},
    {.name = "skip-spikes", .type = LOOM_FLAG_DOUBLE, AT(skip_spikes), .min = 0, .max = 1000, .default_value = "0",
     .metavar = "Z", .group = "Optimizer (AdamW)",
     .help = "leave out updates whose loss or gradient norm is more than Z standard deviations above its recent mean; "
             "0: none"},

    {.name = "out", .letter = 'o', .type = LOOM_FLAG_STRING, AT(out), .metavar = "DIR", .group = "Run",
     .help = "the run's directory: config.ini, metrics.jsonl, samples.txt, checkpoints/. It must not hold another run"},
    {.name = "resume", .type = LOOM_FLAG_BOOL, AT(resume), .session = true, .overrides = {"init"}, .group = "Run",
     .help = "go on with the run in --out from its last checkpoint, with its options; those given here change them"},
    {.name = "resume-from", .type = LOOM_FLAG_INT, AT(resume_from), .min = 1, .max = 0x1p53, .session = true,
     .derived = "the newest", .metavar = "STEP", .group = "Run",
     .help = "with --resume: go on from the checkpoint of that step; newer ones are renamed abandoned-step-N"},
    {.name = "check-finite", .type = LOOM_FLAG_BOOL, AT(check_finite), .session = true, .group = "Run",
     .help = "look at all that every op writes, which is slow, and end at the first step whose loss or gradient is not "
             "finite, with the name of the tensor that was the first"},
    {.name = "retune", .type = LOOM_FLAG_BOOL, AT(retune), .session = true, .group = "Run",
     .help = "with --resume on other hardware or libraries: autotune again what the checkpoint's tuning cache has; the "
             "bits may then differ"},
    {.name = "tuning", .type = LOOM_FLAG_STRING, AT(tuning), .session = true, .derived = "measured at the start",
     .metavar = "FILE", .group = "Run",
     .help = "another run's tuning cache, its tuning.txt: take the algorithms that were measured to be the fastest "
             "then, for the same bits as that run's"},
    {.name = "val-every", .type = LOOM_FLAG_INT, AT(val_every), .min = 0, .max = 1e9, .default_value = "250",
     .metavar = "N", .group = "Run", .help = "validate after every N steps, and at the end; 0: never"},
    {.name = "val-tokens", .type = LOOM_FLAG_INT, AT(val_tokens), .min = 0, .max = 0x1p62, .default_value = "131072",
     .metavar = "N", .group = "Run",
     .help = "tokens per validation, rounded up to whole windows of --seq-len, evenly spaced over the split and the same "
             "each time; 0: the whole split"},
    {.name = "sample-every", .type = LOOM_FLAG_INT, AT(sample_every), .min = 0, .max = 1e9, .default_value = "500",
     .metavar = "N", .group = "Run", .help = "write a sample after every N steps, and at the end; 0: never"},
    {.name = "sample-tokens", .type = LOOM_FLAG_INT, AT(sample_tokens), .min = 1, .max = 1 << 20, .default_value = "256",
     .metavar = "N", .group = "Run", .help = "tokens of a sample"},
    {.name = "checkpoint-every", .type = LOOM_FLAG_INT, AT(checkpoint_every), .min = 0, .max = 1e9,
     .default_value = "1000", .metavar = "N", .group = "Run",
     .help = "save after every N steps, and at the end; 0: at the end only"},
    {.name = "keep", .type = LOOM_FLAG_INT, AT(keep), .min = 0, .max = 1e6, .default_value = "3", .metavar = "N",
     .group = "Run", .help = "checkpoints to keep: the newest that the loss of the step after it has shown to be good, and those that "
                             "were saved before it; the last one comes beside them; 0: all"},
    {.name = "save", .type = LOOM_FLAG_BOOL, AT(save), .default_value = "true", .session = true, .group = "Run",
     .help = "--no-save: write no checkpoint, not even at the end, for runs whose speed alone is of interest"},

    {.name = "device", .type = LOOM_FLAG_STRING, AT(device), .choices = devices, .default_value = "auto",
     .metavar = "NAME", .group = "Machine",
     .help = "auto (a GPU that works, else the CPU), cpu or cuda; for tests also definition (the plain reading of "
             "every operation) and oracle (the same in double)"},
    {.name = "threads", .type = LOOM_FLAG_INT, AT(threads), .min = 0, .max = 1024, .default_value = "0", .metavar = "N",
     .group = "Machine", .help = "CPU threads, of each rank; 0: all that the process may run on, or the rank's part of them"},
    {.name = "deterministic", .type = LOOM_FLAG_BOOL, AT(deterministic), .default_value = "true", .group = "Machine",
     .help = "the same bits with any number of threads; off, a library that multiplies matrices threads its products as it likes"},
    {.name = "attention", .type = LOOM_FLAG_CHOICE, AT(attention), .choices = attentions, .default_value = "own",
     .metavar = "NAME", .group = "Machine", .help = "attention by our own kernels, or by cudnn; --device cuda only"},
    {.name = "cuda-graph", .type = LOOM_FLAG_CHOICE, AT(cuda_graph), .choices = switches, .default_value = "on",
     .metavar = "on|off", .group = "Machine",
     .help = "capture the step as graphs and launch these, to the same bits, which saves the time of launching it; with several "
             "ranks, of --zero 0 and 1, micro-batches before the last one"},
    {.name = "recompute", .type = LOOM_FLAG_STRING, AT(recompute), .default_value = "none", .metavar = "POLICY",
     .group = "Memory",
     .help = "what backward computes once more instead of keeping it, to the same bits: none, act (the activation), norm "
             "(and layernorms), block-attn (blocks, but for attention), block, every:K (segments of K blocks), sqrt (the K "
             "that keeps least), or auto (the fastest that fits, measured at the start; it also tries sets of values, which "
             "it then names sets:1f*8,3*4)"},
    {.name = "offload", .type = LOOM_FLAG_CHOICE, AT(offload), .choices = offloads, .default_value = "none",
     .metavar = "NAME", .group = "Memory",
     .help = "activations: what --recompute keeps waits in host memory for backward, copied out and back beside the "
             "computing, to the same bits; the GPU holds two blocks' (or segments') at a time. --device cuda only"},
    {.name = "logits-rows", .type = LOOM_FLAG_INT, AT(logits_rows), .min = 1, .max = 0x1p31,
     .derived = "an eighth of the micro-batch's rows", .metavar = "N", .group = "Memory",
     .help = "rows of logits that exist at a time, rounded up to whole groups of rows; the fewer, the less memory and "
             "the more often the classifier's gradient is added to"},
    {.name = "memory", .type = LOOM_FLAG_SIZE, AT(memory), .min = 1 << 20, .max = 0x1p60, .derived = "what is free",
     .metavar = "SIZE", .group = "Memory",
     .help = "what the run may take, as 800MiB or 1.5GiB; a run that needs more is refused before it starts"},

    {.name = "ranks", .type = LOOM_FLAG_INT, AT(ranks), .min = 1, .max = 1 << 16, .derived = "as mpirun, srun or torchrun started; else 1",
     .session = true, .metavar = "N", .group = "Ranks",
     .help = "train with N processes, each with its share of every batch and, if there are as many, a GPU of its own; starts "
             "them on this machine by mpirun, if nothing else has started several"},
    {.name = "zero", .type = LOOM_FLAG_INT, AT(zero), .min = 0, .max = 3, .default_value = "0", .metavar = "0..3",
     .group = "Ranks",
     .help = "what is sharded over ranks instead of replicated: 1 moments and master weights, 2 and gradients, 3 and the "
             "weights of blocks"},
    {.name = "deterministic-reduce", .type = LOOM_FLAG_BOOL, AT(deterministic_reduce), .group = "Ranks",
     .help = "gradients are added up in the order of a tree of a step's micro-batches, so that the bits are the same with any "
             "number of ranks, for one --micro-batch. Ranks and micro-batches of a step are powers of two in number. Takes "
             "whole gradients on every rank, and one more for each doubling of a rank's micro-batches"},
    {.name = "comm", .type = LOOM_FLAG_STRING, AT(comm), .choices = communicators, .default_value = "auto", .session = true,
     .metavar = "NAME", .group = "Ranks",
     .help = "how ranks exchange what they compute: nccl, between GPUs, a rank each; mpi, between CPUs, or GPUs by way of the "
             "host; auto: nccl under torchrun, mpi under mpirun and srun, self where there is one rank"},
    {.name = "comm-timeout", .type = LOOM_FLAG_DOUBLE, AT(comm_timeout), .min = 1, .max = 1e6, .default_value = "600",
     .metavar = "SECONDS", .group = "Ranks",
     .help = "how long ranks wait for one that does not come, before they name it and end; ten times as long while one "
             "measures or writes a checkpoint"},
};
/* clang-format on */

#undef AT

enum { ROWS = sizeof table / sizeof *table };

const loom_flag *loom_train_option_table(int *n) {
    *n = ROWS;
    return table;
}

int loom_train_option_rows(const char *const *names, loom_flag *rows) {
    int n = 0;
    for (; names[n]; n++) {
        const loom_flag *row = loom_flag_find(table, ROWS, names[n]);
        LOOM_CHECK(row);
        rows[n] = *row;
    }
    return n;
}

loom_train_options loom_train_options_defaults(void) {
    loom_train_options options;
    memset(&options, 0, sizeof options);
    loom_flags_defaults(table, ROWS, &options);
    return options;
}

void loom_train_options_free(loom_train_options *options) {
    loom_flags_free(table, ROWS, options);
}

/* ---------------------------------------------------------------------------------------------------- one at a time */

/* "n_layer" as "n-layer". */
static void name_of_key(char *name, size_t size, const char *key) {
    snprintf(name, size, "%s", key);
    for (char *c = name; *c; c++)
        if (*c == '_') *c = '-';
}

/* The row of a key; the error, begun by `where`, suggests the nearest. */
static const loom_flag *find_option(const char *key, const char *where, loom_error *error) {
    char name[64];
    const char *names[ROWS + 1] = {NULL};
    name_of_key(name, sizeof name, key);
    const loom_flag *flag = loom_flag_find(table, ROWS, name);
    if (flag) return flag;
    for (int i = 0; i < ROWS; i++) names[i] = table[i].name;
    char suggestion[256] = "'gptloom train --help' lists them";
    loom_suggest_name(name, "", names, suggestion, sizeof suggestion);
    loom_fail(error, "%s%s: there is no such option; %s", where, name, suggestion);
    return NULL;
}

bool loom_train_options_set(loom_train_options *options, const char *key, const char *value, loom_error *error) {
    const loom_flag *flag = find_option(key, "--", error);
    return flag && loom_flag_set(flag, options, value, "--", error);
}

/* ----------------------------------------------------------------------------------------------------- config files */

/* A file that is being read. */
typedef struct reading {
    const char *path;
    int line;
    int64_t val_batches; /* an option of before; -1: is not there */
    bool in_derived;     /* the lines are of that section, */
    bool has_derived;    /* which is read too, */
    char *directory;     /* and this of it, PATH_MAX bytes; NULL: not wanted */
    loom_flag_table source;
    loom_error *error;
} reading;

/* Older runs bounded validation by micro-batches, of which 0 were all; their files say how large these were. */
static bool take_val_batches(reading *file) {
    loom_train_options *o = file->source.target;
    const int64_t n = file->val_batches;
    if (n < 0 || loom_flag_given(&file->source, "val-tokens")) return true;
    if (n > 0 && (o->micro_batch <= 0 || o->seq_len <= 0 || n > INT64_C(1) << 20))
        return loom_fail(file->error, "%s: val-batches is no option any more; val-tokens takes its place", file->path);
    o->val_tokens = n * o->micro_batch * o->seq_len;
    return true;
}

static bool check_version(const char *text, const char *where, loom_error *error) {
    char *end;
    const long long version = strtoll(text, &end, 10);
    if (end == text || *end || version < 1) return loom_fail(error, "%s" FORMAT ": '%.60s' is no version", where, text);
    return version <= FORMAT_VERSION ||
           loom_fail(error, "%swas written by a newer gptloom (format %lld, this one reads %d)", where, version,
                     FORMAT_VERSION);
}

/* A key as options are called, those of earlier versions too. */
static void name_of_option(char *name, size_t size, const char *key) {
    static const char *const renamed[][2] = {{"choices", "tuning"}, {"fresh-choices", "retune"}};
    name_of_key(name, size, key);
    for (size_t i = 0; i < sizeof renamed / sizeof *renamed; i++)
        if (!strcmp(name, renamed[i][0])) snprintf(name, size, "%s", renamed[i][1]);
}

static bool take_option(reading *file, const char *name, const char *value) {
    char where[300], option[64];
    if (file->in_derived && file->directory && !strcmp(name, DIRECTORY))
        snprintf(file->directory, PATH_MAX, "%s", value);
    if (file->in_derived && (!file->has_derived || !strcmp(name, DIRECTORY))) return true;
    snprintf(where, sizeof where, "%.256s:%d: ", file->path, file->line);
    if (!strcmp(name, FORMAT) || !strcmp(name, "format_version")) return check_version(value, where, file->error);
    if (!strcmp(name, "val-batches")) {
        char *end;
        file->val_batches = strtoll(value, &end, 10);
        return (end != value && !*end && file->val_batches >= 0) ||
               loom_fail(file->error, "%sval-batches: '%.60s' is not a whole number", where, value);
    }
    name_of_option(option, sizeof option, name);
    const loom_flag *flag = find_option(option, where, file->error);
    if (flag && flag->type != LOOM_FLAG_STRINGS && loom_flag_given(&file->source, flag->name))
        return loom_fail(file->error, "%s%s: is given twice; keep one", where, flag->name);
    return flag && loom_flag_give(&file->source, flag, value, where, file->error);
}

/* Without spaces at either end. */
static char *trim(char *text) {
    text += strspn(text, " \t\r\v\f");
    for (size_t n = strlen(text); n > 0 && isspace((unsigned char)text[n - 1]);) text[--n] = 0;
    return text;
}

/* `key = value` or `key: value`, [section], or a remark: a line that begins by ; or #, or what is behind a space and ;.
 * */
static bool take_line(reading *file, char *line) {
    for (char *c = line; *c; c++)
        if (*c == ';' && (c == line || isspace((unsigned char)c[-1]))) *c = 0;
    line = trim(line);
    if (!*line || *line == '#') return true;
    char *end = *line == '[' ? strchr(line, ']') : strpbrk(line, "=:");
    if (!end || end == line)
        return loom_fail(file->error, "%s:%d: is not of the form 'key = value'", file->path, file->line);
    const bool is_section = *line == '[';
    *end = 0;
    if (is_section) file->in_derived = !strcmp(line + 1, DERIVED);
    return is_section || take_option(file, trim(line), trim(end + 1));
}

/* Reads `text`, which it changes. */
static bool take_text(reading *file, char *text) {
    static const char mark[] = "\xef\xbb\xbf"; /* UTF-8's, as some editors put it in front */
    if (!strncmp(text, mark, sizeof mark - 1)) text += sizeof mark - 1;
    bool ok = true;
    for (char *line = text, *next; ok && line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        file->line++;
        ok = take_line(file, line);
    }
    return ok;
}

static bool read_file(reading *file, loom_train_options *options) {
    loom_mapping mapping;
    if (!loom_file_map(file->path, &mapping, file->error)) return false;
    const bool is_text = mapping.size <= LARGEST_FILE && !(mapping.size && memchr(mapping.data, 0, mapping.size));
    char *text = is_text ? strndup(mapping.size ? mapping.data : "", mapping.size) : NULL;
    loom_file_unmap(&mapping);
    if (!text && is_text) return loom_fail(file->error, "%s: no memory to read it", file->path);
    if (!text)
        return loom_fail(file->error, "%s: is no config file; such a file holds lines of text, 'key = value'",
                         file->path);
    file->source = (loom_flag_table){table, ROWS, options, {false}};
    file->val_batches = -1;
    const bool ok = take_text(file, text) && take_val_batches(file);
    free(text);
    return ok;
}

bool loom_train_options_read(loom_train_options *options, const char *path, loom_error *error) {
    reading file = {.path = path, .error = error};
    return read_file(&file, options);
}

bool loom_train_options_read_all(loom_train_options *options, const char *path, loom_error *error) {
    reading file = {.path = path, .has_derived = true, .error = error};
    return read_file(&file, options);
}

/* All that writes to the stream in memory says whether it could: its error flag does not tell where memory ran out. */
static bool write_option(FILE *out, const loom_flag *flag, const loom_train_options *options) {
    char text[LONGEST_STRING + 1];
    const int n = flag->type != LOOM_FLAG_STRINGS ? 1
                                                  : *(const int *)(const void *)((const char *)options + flag->count);
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        const bool fits = loom_flag_text(flag, options, i, text, sizeof text);
        LOOM_CHECK(fits); /* strings_can_be_kept */
        ok = fprintf(out, "%s = %s\n", flag->name, text) >= 0;
    }
    return ok;
}

/* Whether take_line reads this text back as it is. */
static bool can_be_kept(const char *text) {
    const size_t length = strlen(text);
    if (length == 0 || length > LONGEST_STRING || isspace((unsigned char)text[0]) || text[0] == ';') return false;
    for (size_t i = 0; i < length; i++) {
        if (iscntrl((unsigned char)text[i])) return false;
        if (text[i] == ' ' && (text[i + 1] == ';' || !text[i + 1])) return false;
    }
    return true;
}

/* Refuses strings that a config file cannot hold, so that a run whose config could not be written never starts. */
static bool strings_can_be_kept(const loom_train_options *options, loom_error *error) {
    for (int i = 0; i < ROWS; i++) {
        const bool is_list = table[i].type == LOOM_FLAG_STRINGS;
        if ((!is_list && table[i].type != LOOM_FLAG_STRING) || loom_flag_is_unset(&table[i], options)) continue;
        const int n = is_list ? *(const int *)(const void *)((const char *)options + table[i].count) : 1;
        const void *field = (const char *)options + table[i].offset;
        char *const *strings = is_list ? *(char *const *const *)field : field;
        for (int k = 0; k < n; k++)
            if (!can_be_kept(strings[k]))
                return loom_fail(
                    error,
                    "--%s: '%.60s': config.ini cannot hold a value that is empty, longer than %d bytes, has "
                    "control characters or ' ;', or begins or ends with a space; a link of another name helps",
                    table[i].name, strings[k], LONGEST_STRING);
    }
    return true;
}

/* Whether a value follows from others: `given` does not have it. NULL: all is given. */
static bool follows(const loom_flag *flag, const loom_train_options *given) {
    for (int i = 0; given && follow[i]; i++)
        if (!strcmp(flag->name, follow[i])) return loom_flag_is_unset(flag, given);
    return false;
}

static bool is_written(const loom_flag *flag, const loom_train_options *options) {
    return !flag->session && !loom_flag_is_unset(flag, options);
}

static bool write_what_follows(FILE *out, const loom_train_options *given, const loom_train_options *options) {
    char directory[PATH_MAX];
    bool ok = fprintf(out,
                      "\n; What followed from these. --resume lets it follow again, and says what changes.\n[" DERIVED
                      "]\n") >= 0;
    for (int i = 0; ok && i < ROWS; i++)
        if (is_written(&table[i], options) && follows(&table[i], given)) ok = write_option(out, &table[i], options);
    if (ok && getcwd(directory, sizeof directory) && can_be_kept(directory))
        ok = fprintf(out, "; Where paths begin that are not found where the run goes on.\n" DIRECTORY " = %s\n",
                     directory) >= 0;
    return ok;
}

static bool make_text(const loom_train_options *given, const loom_train_options *options, const loom_device *device,
                      char **text, size_t *size, loom_error *error) {
    *text = NULL;
    *size = 0;
    if (!strings_can_be_kept(options, error)) return false;
    FILE *out = open_memstream(text, size);
    if (!out) return loom_fail(error, "no memory to write the options");
    bool ok = fprintf(out, "; A run of gptloom " LOOM_VERSION
                           ": all its options. 'gptloom train --config FILE' reads such a file.\n") >= 0;
    if (ok && device) ok = fprintf(out, "; On %s: %s.\n", device->name, LOOM_PRINTABLE(device->description)) >= 0;
    if (ok) ok = fprintf(out, FORMAT " = %d\n", FORMAT_VERSION) >= 0;
    for (int i = 0; ok && i < ROWS; i++) {
        if (i == 0 || strcmp(table[i].group, table[i - 1].group)) ok = fprintf(out, "\n; %s\n", table[i].group) >= 0;
        if (ok && is_written(&table[i], options) && !follows(&table[i], given))
            ok = write_option(out, &table[i], options);
    }
    if (ok && given) ok = write_what_follows(out, given, options);
    if (ferror(out)) ok = false;
    if (fclose(out) == 0 && ok && *text && *size > 0) return true;
    free(*text);
    *text = NULL;
    return loom_fail(error, "no memory to write the options");
}

static bool write_text(const loom_train_options *given, const loom_train_options *options, const loom_device *device,
                       const char *path, loom_error *error) {
    char *text = NULL;
    size_t size = 0;
    if (!make_text(given, options, device, &text, &size, error)) return false;
    const bool ok = loom_file_replace(path, text, size, error);
    free(text);
    return ok;
}

bool loom_train_options_text(const loom_train_options *options, char **text, size_t *size, loom_error *error) {
    return make_text(NULL, options, NULL, text, size, error);
}

bool loom_train_options_write(const loom_train_options *options, const char *path, loom_error *error) {
    return write_text(NULL, options, NULL, path, error);
}

bool loom_train_options_write_run(const loom_train_options *given, const loom_train_options *options,
                                  const loom_device *device, const char *path, loom_error *error) {
    return write_text(given, options, device, path, error);
}

/* ------------------------------------------------------------------------------------------------------- run's options */

/* Whether a path of --data is there, or a pattern finds something. */
static bool is_found(const char *path) {
    glob_t found;
    if (loom_path_exists(path)) return true;
    if (!strpbrk(path, "*?[")) return false;
    const bool any = glob(path, GLOB_NOSORT, NULL, &found) == 0;
    if (any) globfree(&found);
    return any;
}

/* Puts the path from `directory` in its place, unless it is found from here. */
static bool find_path(char **path, const char *directory, loom_error *error) {
    char there[PATH_MAX];
    if (!*path || **path == '/' || !*directory || is_found(*path)) return true;
    if (!loom_join_path(there, sizeof there, directory, *path, NULL)) return true;
    char *copy = strdup(there);
    if (!copy) return loom_fail(error, "%s: no memory to keep it", there);
    free(*path);
    *path = copy;
    return true;
}

const char *loom_train_options_missing_data(const loom_train_options *options) {
    for (int i = 0; i < options->n_data; i++)
        if (!is_found(options->data[i])) return options->data[i];
    for (int i = 0; i < options->n_val_data; i++)
        if (!is_found(options->val_data[i])) return options->val_data[i];
    return NULL;
}

bool loom_train_options_read_run(loom_train_options *options, const char *path, loom_error *error) {
    char directory[PATH_MAX] = "";
    reading file = {.path = path, .directory = directory, .error = error};
    bool ok = read_file(&file, options) && find_path(&options->init, directory, error);
    for (int i = 0; ok && i < options->n_data; i++) ok = find_path(&options->data[i], directory, error);
    for (int i = 0; ok && i < options->n_val_data; i++) ok = find_path(&options->val_data[i], directory, error);
    if (options->architecture < 0) options->architecture = LOOM_GPT_2; /* the only one of older runs */
    return ok;
}

/* -------------------------------------------------------------------------------------------------------- resolving */

loom_precision_flags loom_train_options_precision(const loom_train_options *options) {
    return (loom_precision_flags){.dtype = options->dtype,
                                  .master = options->master_weights == LOOM_ON,
                                  .optimizer = options->optimizer_dtype,
                                  .gradient = options->grad_dtype};
}

loom_sharding loom_train_options_sharding(const loom_train_options *options) {
    return (loom_sharding){.ranks = options->ranks > 0 ? (int)options->ranks : 1,
                           .zero = (int)options->zero,
                           .deterministic = options->deterministic_reduce};
}

static bool check_values(const loom_train_options *options, loom_error *error) {
    for (int i = 0; i < ROWS; i++)
        if (!loom_flag_check(&table[i], options, "--", error)) return false;
    return strings_can_be_kept(options, error);
}

static bool check_conflicts(const loom_train_options *options, loom_error *error) {
    if (options->n_data == 0)
        return loom_fail(error, "--data: is missing; name the text files, directories or token shards to train on");
    if (options->steps > 0 && options->epochs > 0)
        return loom_fail(error, "--epochs: does not go with --steps; give one of the two");
    if (options->resume && options->init)
        return loom_fail(error, "--init: does not go with --resume, which begins with the run's own checkpoint");
    if (options->resume && !options->out) return loom_fail(error, "--resume: needs --out, the run to go on with");
    if (options->deterministic_reduce && !options->micro_batch && !options->resume)
        return loom_fail(error, "--deterministic-reduce: needs --micro-batch, on which the bits hang; what fits into "
                                "memory, its default, hangs on the number of ranks");
    if (options->resume_from > 0 && !options->resume)
        return loom_fail(error, "--resume-from: goes with --resume, which goes on with the run in --out");
    if (options->tuning && options->resume)
        return loom_fail(error, "--tuning: does not go with --resume, which takes the run's own");
    if (options->retune && !options->resume)
        return loom_fail(error, "--retune: goes with --resume; a new run is tuned anyway");
    if (options->offload == LOOM_OFFLOAD_ACTIVATIONS && !strcmp(options->recompute, "auto"))
        return loom_fail(error,
                         "--recompute: auto does not know what the copies of --offload cost; name a policy; block "
                         "copies least");
    return true;
}

static void take_if_unset(int64_t *value, int64_t default_value) {
    if (*value == 0) *value = default_value;
}

/* The shape from the model's name and the flags beside it; a vocabulary that is not given stays 0, for the data to
 * tell. */
static bool resolve_shape(loom_train_options *options, loom_error *error) {
    loom_gpt_named named = {0};
    const bool begun = options->n_layer > 0 || options->n_head > 0 || options->n_embd > 0;
    const char *name = options->model ? options->model : begun ? NULL : "mini";
    if (name && !loom_gpt_config_by_name(name, &named, error)) return false;
    take_if_unset(&options->n_layer, named.config.n_layer);
    take_if_unset(&options->n_head, named.config.n_head);
    take_if_unset(&options->n_embd, named.config.n_embd);
    take_if_unset(&options->block_size, named.config.block_size);
    take_if_unset(&options->block_size, options->seq_len > 0 ? options->seq_len : 1024);
    if (options->activation < 0) options->activation = LOOM_GPT_GELU;
    if (options->architecture < 0) options->architecture = (int)named.config.architecture;
    const char *missing = options->n_layer == 0  ? "n-layer"
                          : options->n_head == 0 ? "n-head"
                          : options->n_embd == 0 ? "n-embd"
                                                 : NULL;
    if (missing)
        return loom_fail(error, "--%s: is missing; a shape is --n-layer, --n-head and --n-embd, or a --model", missing);
    loom_gpt_config config = {options->n_layer, options->n_head, options->n_embd, options->block_size,
                              options->vocab_size};
    take_if_unset(&config.vocab_size, LOOM_BYTE_VOCABULARY);
    return loom_gpt_config_check(&config, error);
}

/* Whether the batch can be cut into the same number of micro-batches for each rank. */
static bool resolve_ranks(const loom_train_options *o, loom_error *error) {
    const loom_sharding sharding = loom_train_options_sharding(o);
    const long long ranks = sharding.ranks, batch = o->batch, B = o->micro_batch;
    if (o->deterministic_reduce && !loom_ranks_can_be_alike(ranks))
        return loom_fail(error, "--deterministic-reduce: needs a power of two of --ranks, up to %d; %lld are not",
                         LOOM_MAX_DETERMINISTIC_RANKS, ranks);
    if (o->deterministic_reduce && o->grad_dtype != LOOM_F32)
        return loom_fail(error, "--deterministic-reduce: adds gradients in fp32; leave out --grad-dtype %s",
                         loom_dtype_name(o->grad_dtype));
    if (batch % ranks != 0) return loom_fail(error, "--ranks: %lld do not divide --batch, %lld", ranks, batch);
    if (B == 0 || loom_micro_batches_divide(batch, B, &sharding)) return true;
    if (batch / B % ranks != 0)
        return loom_fail(error, "--micro-batch: %lld does not divide a rank's share of --batch, %lld", B,
                         batch / ranks);
    return loom_fail(error,
                     "--deterministic-reduce: needs a power of two of micro-batches in a step; --batch %lld and "
                     "--micro-batch %lld make %lld",
                     batch, B, batch / B);
}

static bool resolve_batches(loom_train_options *options, loom_error *error) {
    take_if_unset(&options->seq_len, options->block_size < 1024 ? options->block_size : 1024);
    if (options->seq_len > options->block_size)
        return loom_fail(error, "--seq-len: %lld is longer than the model's --block-size, %lld",
                         (long long)options->seq_len, (long long)options->block_size);
    if (options->micro_batch > options->batch || (options->micro_batch > 0 && options->batch % options->micro_batch))
        return loom_fail(error, "--micro-batch: %lld does not divide --batch, %lld", (long long)options->micro_batch,
                         (long long)options->batch);
    return resolve_ranks(options, error);
}

int64_t loom_train_default_warmup(int64_t steps) {
    return steps / 20 < 2000 ? steps / 20 : 2000;
}

static bool resolve_schedule(loom_train_options *options, loom_error *error) {
    if (options->steps == 0 && options->epochs == 0) options->epochs = 1;
    if (options->warmup < 0 && options->steps > 0) options->warmup = loom_train_default_warmup(options->steps);
    if (options->min_lr < 0) options->min_lr = options->lr / 10;
    if (options->min_lr > options->lr)
        return loom_fail(error, "--min-lr: %g is above --lr, %g; give a lower --min-lr too", options->min_lr,
                         options->lr);
    if (options->val_fraction < 0) options->val_fraction = 0.1;
    if (options->n_val_data > 0) options->val_fraction = 0;
    return true;
}

bool loom_train_options_resolve_shapes(loom_train_options *options, loom_error *error) {
    const loom_precision_flags precision = loom_train_options_precision(options);
    loom_recompute recompute;
    return loom_flags_have_defaults(table, ROWS, options, error) && loom_precision_check(&precision, error) &&
           loom_recompute_parse(options->recompute, &recompute, error) && resolve_shape(options, error) &&
           resolve_batches(options, error);
}

bool loom_train_options_resolve(loom_train_options *options, loom_error *error) {
    return loom_flags_have_defaults(table, ROWS, options, error) && check_values(options, error) &&
           check_conflicts(options, error) && loom_train_options_resolve_shapes(options, error) &&
           resolve_schedule(options, error);
}
