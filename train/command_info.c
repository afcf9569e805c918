/* gptloom info: a model's shape, parameters, memory for training, and arithmetic per token. */
#include "command.h"
#include "command_line.h"
#include "progress.h"

#include "base/file.h"
#include "base/nearest.h"

#include <string.h>

typedef struct settings {
    int64_t batch, micro_batch, seq_len;
    loom_dtype dtype;
    loom_switch master_weights;
    loom_dtype optimizer_dtype, grad_dtype;
} settings;

static const char *const dtypes[] = {"fp32", "bf16", "fp16", NULL}; /* in loom_dtype's order */
static const char *const fp32_or_bf16[] = {"fp32", "bf16", NULL};
static const char *const switches[] = {"off", "on", NULL};

static const loom_flag flags[] = {
    {.name = "batch",
     .type = LOOM_FLAG_INT,
     .offset = offsetof(settings, batch),
     .min = 1,
     .max = 1 << 20,
     .standard = "8",
     .metavar = "B",
     .group = "Training with",
     .help = "sequences per optimizer step"},
    {.name = "micro-batch",
     .type = LOOM_FLAG_INT,
     .offset = offsetof(settings, micro_batch),
     .min = 1,
     .max = 1 << 20,
     .derived = "all of --batch",
     .metavar = "B",
     .group = "Training with",
     .help = "sequences per forward"},
    {.name = "seq-len",
     .type = LOOM_FLAG_INT,
     .offset = offsetof(settings, seq_len),
     .min = 1,
     .max = 1 << 20,
     .derived = "the model's block size, at most 1024",
     .metavar = "T",
     .group = "Training with",
     .help = "tokens per sequence"},
    {.name = "dtype",
     .type = LOOM_FLAG_CHOICE,
     .offset = offsetof(settings, dtype),
     .choices = dtypes,
     .standard = "fp32",
     .metavar = "NAME",
     .group = "Training with",
     .help = "what weights and activations are stored in: fp32, bf16 or fp16"},
    {.name = "master-weights",
     .type = LOOM_FLAG_CHOICE,
     .offset = offsetof(settings, master_weights),
     .choices = switches,
     .standard = "on",
     .metavar = "on|off",
     .group = "Training with",
     .help = "fp32 weights beside those of 16 bits; bf16 can do without"},
    {.name = "optimizer-dtype",
     .type = LOOM_FLAG_CHOICE,
     .offset = offsetof(settings, optimizer_dtype),
     .choices = fp32_or_bf16,
     .standard = "fp32",
     .metavar = "fp32|bf16",
     .group = "Training with",
     .help = "what AdamW's moments are stored in"},
    {.name = "grad-dtype",
     .type = LOOM_FLAG_CHOICE,
     .offset = offsetof(settings, grad_dtype),
     .choices = fp32_or_bf16,
     .standard = "fp32",
     .metavar = "fp32|bf16",
     .group = "Training with",
     .help = "what the gradients of weights are stored in; bf16 with --dtype bf16 only"},
};

/* 124439808 as "124,439,808". */
static void format_whole(char *text, size_t size, int64_t number) {
    char digits[32];
    const int n = snprintf(digits, sizeof digits, "%lld", (long long)number);
    size_t length = 0;
    for (int i = 0; i < n && length + 2 < size; i++) {
        if (i > 0 && (n - i) % 3 == 0) text[length++] = ',';
        text[length++] = digits[i];
    }
    text[length] = 0;
}

static void show_whole(const char *name, int64_t number) {
    char text[48];
    format_whole(text, sizeof text, number);
    printf("  %-20s %18s\n", name, text);
}

/* Parameters of one bucket, as users count them. */
static int64_t count_of_bucket(const loom_layout *layout, int bucket) {
    int64_t count = 0;
    for (int i = 0; i < layout->n_parameters; i++)
        if (layout->parameter[i].bucket == bucket) count += layout->parameter[i].rows * layout->parameter[i].columns;
    return count;
}

/* All that is told of a shape, gathered before the first line is printed. */
typedef struct facts {
    loom_gpt_config config;
    loom_layout layout;
    loom_plan plan;
} facts;

/* Plans training on this machine. */
static bool make_plan(facts *all, const settings *mine, loom_error *error) {
    const int64_t block_size = all->config.block_size;
    const int64_t T = mine->seq_len > 0 ? mine->seq_len : block_size < 1024 ? block_size : 1024;
    const int64_t B = mine->micro_batch > 0 ? mine->micro_batch : mine->batch;
    const loom_device_options options = {0};
    loom_device *device;
    if (T > block_size)
        return loom_fail(error, "--seq-len: %lld is longer than the model's block size, %lld", (long long)T,
                         (long long)block_size);
    if (B > mine->batch || mine->batch % B != 0)
        return loom_fail(error, "--micro-batch: %lld does not divide --batch, %lld", (long long)B,
                         (long long)mine->batch);
    if (!loom_device_open(&device, "cpu", &options, error)) return false;
    const loom_precision_flags asked = {.dtype = mine->dtype,
                                        .master = mine->master_weights == LOOM_ON,
                                        .optimizer = mine->optimizer_dtype,
                                        .gradient = mine->grad_dtype};
    loom_precision precision;
    const loom_gpt_setup setup = {
        .purpose = LOOM_GPT_TRAIN, .precision = &precision, .B = B, .T = T, .generates = true};
    const bool ok = loom_precision_of(device, &asked, &precision, error) &&
                    loom_plan_make(&all->plan, &all->config, &setup, device, mine->batch, error);
    all->plan.available = device->available(device);
    loom_device_close(device);
    return ok;
}

static bool gather(facts *all, const loom_gpt_config *config, const settings *mine, loom_error *error) {
    all->config = *config;
    if (!make_plan(all, mine, error)) return false;
    return loom_layout_create(&all->layout, config, 1, error);
}

static void show_parameters(const loom_layout *layout) {
    printf("\nparameters\n");
    show_whole("embeddings", count_of_bucket(layout, 0));
    show_whole("each layer", count_of_bucket(layout, 1));
    show_whole("last layernorm", count_of_bucket(layout, layout->n_buckets - 1));
    show_whole("all", layout->count);
}

static void show_training(const facts *all) {
    const loom_plan *plan = &all->plan;
    char flops[16];
    loom_format_count(flops, sizeof flops, loom_gpt_flops_per_token(&all->config, plan->T));
    printf("\ntraining in %s, %lld x %lld tokens at a time\n", loom_dtype_name(plan->precision.storage),
           (long long)plan->B, (long long)plan->T);
    for (int i = 0; i < plan->arena.n_rows; i++)
        printf("  %-20s %18.1f MiB\n", plan->arena.row[i].name, (double)plan->arena.row[i].bytes / 0x1p20);
    printf("  %-20s %18.1f MiB of %.1f MiB free here\n", "all", (double)plan->arena.used / 0x1p20,
           (double)plan->available / 0x1p20);
    printf("  %-20s %18s FLOP forward and backward\n", "each token", flops);
}

/* Prints the facts and frees them. */
static void show(facts *all) {
    const loom_gpt_config *config = &all->config;
    printf("  %lld layers, %lld heads, %lld channels, block size %lld, vocabulary %lld (%lld inside)\n",
           (long long)config->n_layer, (long long)config->n_head, (long long)config->n_embd,
           (long long)config->block_size, (long long)config->vocab_size, (long long)loom_gpt_padded_vocabulary(config));
    show_parameters(&all->layout);
    show_training(all);
    loom_layout_destroy(&all->layout);
}

static bool show_checkpoint(const char *path, const settings *mine, loom_error *error) {
    loom_checkpoint_info info;
    facts all;
    char tokens[48];
    if (!loom_checkpoint_open(path, &info, error) || !gather(&all, &info.config, mine, error)) return false;
    printf("%s\n", info.directory);
    if (info.has_optimizer) {
        format_whole(tokens, sizeof tokens, info.state.tokens);
        printf("  after step %lld: %s tokens seen in %s, seed %llu\n", (long long)info.state.step, tokens,
               loom_dtype_name(info.state.dtype), (unsigned long long)info.state.seed);
    }
    printf("  %s; %s\n", info.bytes ? "a model of bytes" : "a model of token ids",
           info.has_optimizer ? "training can go on from it" : "weights only");
    show(&all);
    return true;
}

static bool show_named(const char *name, const settings *mine, loom_error *error) {
    loom_gpt_named named;
    facts all;
    if (!loom_gpt_config_by_name(name, &named, error)) {
        const char *names[128] = {NULL};
        const loom_gpt_named *catalogue = loom_gpt_catalogue();
        for (int i = 0; i < 127 && catalogue[i].name; i++) names[i] = catalogue[i].name;
        const char *nearest = loom_nearest_name(name, names);
        return loom_fail(error, "'%.200s': is neither a directory nor a named model; %s%s%s", name,
                         nearest ? "did you mean '" : "", nearest ? nearest : "'gptloom info' lists the models",
                         nearest ? "'?" : "");
    }
    if (!gather(&all, &named.config, mine, error)) return false;
    printf("%s: %s\n", named.name, named.note);
    show(&all);
    return true;
}

static bool show_catalogue(loom_error *error) {
    printf("%-12s %6s %6s %8s %8s %8s %10s  %s\n", "name", "layers", "heads", "channels", "context", "vocab",
           "parameters", "note");
    for (const loom_gpt_named *row = loom_gpt_catalogue(); row->name; row++) {
        const loom_gpt_config *config = &row->config;
        loom_layout layout;
        char count[16];
        if (!loom_layout_create(&layout, config, 1, error)) return false;
        loom_format_count(count, sizeof count, (double)layout.count);
        loom_layout_destroy(&layout);
        printf("%-12s %6lld %6lld %8lld %8lld %8lld %10s  %s\n", row->name, (long long)config->n_layer,
               (long long)config->n_head, (long long)config->n_embd, (long long)config->block_size,
               (long long)config->vocab_size, count, row->note);
    }
    printf(
        "\nd6, d12, d24, d36, d48, d60, d72, d84: llm.c's family, named by depth. 'gptloom info NAME' tells more.\n");
    return true;
}

int loom_command_info(int argc, char **argv) {
    settings mine;
    loom_flag_table table = {flags, sizeof flags / sizeof *flags, &mine, {false}};
    loom_command_line line = {
        .command = "info",
        .arguments = "[DIR|NAME]",
        .about =
            "Tells a run's, a checkpoint's or a named model's shape and parameters, the memory that training takes, "
            "and the arithmetic per token. Without DIR or NAME it lists the named models.",
        .examples = "  gptloom info\n  gptloom info gpt2 --batch 4 --seq-len 256\n  gptloom info runs/first\n",
        .most = 1,
        .tables = &table,
        .n_tables = 1,
    };
    loom_error error;
    loom_flags_defaults(flags, table.n, &mine);
    const int code = loom_command_line_read(&line, argc, argv);
    if (code >= 0) return code;
    const char *name = line.n_arguments ? line.argument[0] : NULL;
    const bool ok = !name                     ? show_catalogue(&error)
                    : loom_is_directory(name) ? show_checkpoint(name, &mine, &error)
                                              : show_named(name, &mine, &error);
    return ok ? 0 : loom_command_failed(&error);
}
