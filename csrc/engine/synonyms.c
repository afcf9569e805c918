#include "engine/synonyms.h"

#include "base/nearest.h"

#include <stdio.h>
#include <string.h>

/* Theirs, ours, and what is different. Without a name of ours there is no such thing. A row counts only for commands
 * that have our name; several rows for one name are for several commands. */
typedef struct synonym {
    const char *theirs, *ours, *note;
} synonym;

static const synonym synonyms[] = {
    /* gptloom's own, of before */
    {"val-batches", "val-tokens", "micro-batches, which this counted, depend on memory and ranks"},
    {"choices", "tuning", NULL},
    {"fresh-choices", "retune", NULL},
    /* nanoGPT */
    {"batch-size", "batch", "the sequences of an optimizer step, over all ranks"},
    {"gradient-accumulation-steps", "micro-batch", "accumulation follows from --batch and the sequences of a forward"},
    {"grad-accum-steps", "micro-batch", "accumulation follows from --batch and the sequences of a forward"},
    {"learning-rate", "lr", NULL},
    {"max-lr", "lr", NULL},
    {"max-iters", "steps", NULL},
    {"num-iterations", "steps", NULL},
    {"iters", "steps", NULL},
    {"lr-decay-iters", "steps", "the schedule ends with the run"},
    {"warmup-iters", "warmup", NULL},
    {"grad-clip", "clip", NULL},
    {"eval-interval", "val-every", NULL},
    {"eval-iters", "val-tokens", "in tokens"},
    {"out-dir", "out", NULL},
    {"dataset", "data", NULL},
    {"init-from", "init", "and --resume goes on with a run"},
    {"always-save-checkpoint", "checkpoint-every", NULL},
    {"log-interval", NULL, "every step is written to metrics.jsonl in --out"},
    {"wandb-log", NULL, "metrics.jsonl in --out has every step, and 'gptloom plot' draws it"},
    {"report-to", NULL, "metrics.jsonl in --out has every step, and 'gptloom plot' draws it"},
    {"compile", NULL, "nothing is to be compiled"},
    {"backend", "comm", NULL},
    {"dropout", NULL, "gptloom trains without dropout; --weight-decay and more data are against overfitting"},
    {"bias", NULL, "linear layers and layernorms have biases, as GPT-2's have"},
    /* llm.c */
    {"input-bin", "data", NULL},
    {"input-val-bin", "val-data", NULL},
    {"output-dir", "out", NULL},
    {"sequence-length", "seq-len", NULL},
    {"total-batch-size", "batch", "in sequences, not tokens"},
    {"val-loss-every", "val-every", NULL},
    {"val-max-steps", "val-tokens", "in tokens"},
    {"learning-rate-decay-frac", "min-lr", "the rate itself, not a fraction"},
    {"zero-stage", "zero", NULL},
    {"skip-update-lossz", "skip-spikes", NULL},
    {"skip-update-gradz", "skip-spikes", NULL},
    /* Hugging Face's Trainer and its scripts */
    {"per-device-train-batch-size", "micro-batch", "and --batch are the sequences of a step, over all ranks"},
    {"per-device-eval-batch-size", "micro-batch", NULL},
    {"num-train-epochs", "epochs", NULL},
    {"max-steps", "steps", NULL},
    {"max-train-steps", "steps", NULL},
    {"num-steps", "steps", NULL},
    {"train-steps", "steps", NULL},
    {"warmup-steps", "warmup", NULL},
    {"num-warmup-steps", "warmup", NULL},
    {"warmup-ratio", "warmup", "in steps"},
    {"lr-scheduler-type", "schedule", NULL},
    {"lr-scheduler", "schedule", NULL},
    {"max-grad-norm", "clip", NULL},
    {"adam-beta1", "beta1", NULL},
    {"adam-beta2", "beta2", NULL},
    {"adam-epsilon", "eps", NULL},
    {"epsilon", "eps", NULL},
    {"wd", "weight-decay", NULL},
    {"optim", NULL, "the optimizer is AdamW"},
    {"optimizer", NULL, "the optimizer is AdamW"},
    {"save-steps", "checkpoint-every", NULL},
    {"save-interval", "checkpoint-every", NULL},
    {"save-every", "checkpoint-every", NULL},
    {"save-total-limit", "keep", NULL},
    {"eval-steps", "val-every", NULL},
    {"eval-every", "val-every", NULL},
    {"eval-fraction", "val-fraction", NULL},
    {"validation-split-percentage", "val-fraction", NULL},
    {"train-file", "data", NULL},
    {"train-data", "data", NULL},
    {"dataset-name", "data", "files on this machine"},
    {"validation-file", "val-data", NULL},
    {"eval-data", "val-data", NULL},
    {"model-name-or-path", "init", NULL},
    {"model-name", "model", NULL},
    {"pretrained", "init", NULL},
    {"resume-from-checkpoint", "resume", NULL},
    {"gradient-checkpointing", "recompute", NULL},
    {"activation-checkpointing", "recompute", NULL},
    {"bf16", "dtype", "bf16"},
    {"fp16", "dtype", "fp16"},
    {"precision", "dtype", NULL},
    {"mixed-precision", "dtype", NULL},
    {"deepspeed", "zero", NULL},
    {"attn-implementation", "attention", NULL},
    {"flash-attention", "attention", "own is one of that kind"},
    {"nproc-per-node", "ranks", NULL},
    {"num-gpus", "ranks", NULL},
    {"gpus", "ranks", NULL},
    {"num-workers", NULL, "data is read ahead without workers"},
    {"max-seq-length", "seq-len", NULL},
    {"max-length", "seq-len", NULL},
    {"context-length", "block-size", NULL},
    {"n-ctx", "block-size", NULL},
    {"n-positions", "block-size", NULL},
    {"num-layers", "n-layer", NULL},
    {"num-heads", "n-head", NULL},
    {"hidden-size", "n-embd", NULL},
    {"d-model", "n-embd", NULL},
    /* of samples */
    {"max-new-tokens", "tokens", NULL},
    {"num-samples", "seed", "one sample a call; another seed gives another"},
    {"n-predict", "tokens", NULL},
    {"length", "tokens", NULL},
    {"start", "prompt", NULL},
    {"text", "prompt", NULL},
    {"temp", "temperature", NULL},
    {"checkpoint", "from", NULL},
    {"ckpt", "from", NULL},
    {"model", "from", NULL},
    {"out-dir", "from", NULL},
    {"init-from", "from", NULL},
    {"do-sample", "temperature", "0 takes the most probable token"},
    /* plots, plans */
    {"output", "out", NULL},
    {"policy", "recompute", NULL},
    {"gpu", "on", NULL},
    /* commands */
    {"generate", "sample", NULL},
    {"inference", "sample", NULL},
    {"chat", "sample", NULL},
    {"resume", "train", "with --resume --out RUN"},
    {"finetune", "train", "with --init CHECKPOINT"},
    {"pretrain", "train", NULL},
    {"benchmark", "bench", NULL},
    {"models", "info", NULL},
    {"eval", NULL, "a run validates as it trains: --val-data or --val-fraction, and --val-every of 'gptloom train'"},
    {"evaluate", NULL,
     "a run validates as it trains: --val-data or --val-fraction, and --val-every of 'gptloom train'"},
    {"validate", NULL,
     "a run validates as it trains: --val-data or --val-fraction, and --val-every of 'gptloom train'"},
    {"export", NULL, "each checkpoint is a directory that Hugging Face's transformers load"},
    {"convert", NULL, "each checkpoint is a directory that Hugging Face's transformers load"},
    {"tokenize", NULL, "text is read as bytes; token shards are made by llm.c's scripts"},
    {"prepare", NULL, "text is read as bytes; token shards are made by llm.c's scripts"},
};

static bool is_among(const char *name, const char *const *names) {
    for (; *names; names++)
        if (!strcmp(*names, name)) return true;
    return false;
}

/* Commands and flags share the table, so that what there is nothing of is asked for last. */
static const synonym *find(const char *word, const char *const *names) {
    const synonym *none = NULL;
    for (size_t i = 0; i < sizeof synonyms / sizeof *synonyms; i++) {
        const synonym *row = &synonyms[i];
        if (row->theirs[0] != word[0] || strcmp(row->theirs, word)) continue;
        if (!row->ours) none = row;
        if (row->ours && is_among(row->ours, names)) return row;
    }
    return none;
}

bool loom_suggest_name(const char *word, const char *dashes, const char *const *names, char *text, size_t size) {
    char name[64];
    snprintf(name, sizeof name, "%s", word);
    for (char *c = name; *c; c++)
        if (*c == '_') *c = '-';
    const synonym *row = find(name, names);
    if (row && !row->ours)
        snprintf(text, size, "%s", row->note);
    else if (row)
        snprintf(text, size, "here it is '%s%s'%s%s%s", dashes, row->ours, row->note ? " (" : "",
                 row->note ? row->note : "", row->note ? ")" : "");
    if (row) return true;
    const char *nearest = loom_nearest_name(name, names);
    if (nearest) snprintf(text, size, "did you mean '%s%s'?", dashes, nearest);
    return nearest;
}
