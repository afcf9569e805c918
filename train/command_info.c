/* gptloom info: a model's shape, parameters, memory for training, and arithmetic per token. */
#include "command.h"
#include "command_line.h"
#include "planning.h"
#include "progress.h"

#include "base/plural.h"
#include "base/printable.h"

/* The flags of `gptloom train` that it takes. */
static const char *const flag_names[] = {"batch",          "micro-batch",     "seq-len",    "dtype",
                                         "master-weights", "optimizer-dtype", "grad-dtype", NULL};

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

/* All that is printed of a shape, gathered before the first line is printed. */
typedef struct facts {
    loom_planning planning;
    loom_checkpoint_info from; /* of a directory */
    loom_layout layout;
    loom_plan plan;
} facts;

/* Plans training on this machine's CPU: all sequences at a time, where nothing else is said. */
static bool make_plan(facts *all, loom_device *device, loom_error *error) {
    loom_train_options *o = &all->planning.options;
    const loom_recompute everything_kept = {.kind = LOOM_RECOMPUTE_NONE};
    loom_precision precision;
    if (!o->micro_batch) o->micro_batch = o->batch;
    const loom_gpt_setup setup = loom_planning_setup(&all->planning, &precision, &everything_kept, o->micro_batch);
    const bool ok = loom_planning_precision(&all->planning, device, &precision, error) &&
                    loom_plan_make(&all->plan, &all->planning.config, &setup, device, o->batch, error);
    all->plan.available = device->available(device);
    return ok;
}

static void show_parameters(const loom_layout *layout) {
    printf("\nparameters\n");
    show_whole("embeddings", count_of_bucket(layout, 0));
    show_whole("each layer", count_of_bucket(layout, 1));
    const int last = layout->n_buckets - 1;
    if (layout->bucket[last].layer < 0) show_whole("last layernorm", count_of_bucket(layout, last));
    show_whole("all", layout->count);
}

static void show_training(const facts *all) {
    const loom_plan *plan = &all->plan;
    char flops[16];
    loom_format_count(flops, sizeof flops, loom_gpt_flops_per_token(&all->planning.config, plan->T));
    printf("\ntraining in %s, %lld x %lld tokens at a time, on this machine's CPU\n",
           loom_dtype_name(plan->precision.storage), (long long)plan->B, (long long)plan->T);
    loom_show_plan(plan);
    printf("  %-28s %12s FLOP forward and backward\n", "each token", flops);
}

static void show(const facts *all) {
    const loom_gpt_config *config = &all->planning.config;
    printf("  %lld layer%s, %lld head%s, %lld channel%s, block size %lld, vocabulary %lld (%lld inside)\n",
           (long long)config->n_layer, loom_plural(config->n_layer), (long long)config->n_head,
           loom_plural(config->n_head), (long long)config->n_embd, loom_plural(config->n_embd),
           (long long)config->block_size, (long long)config->vocab_size, (long long)loom_gpt_padded_vocabulary(config));
    show_parameters(&all->layout);
    show_training(all);
}

static void show_checkpoint(const loom_checkpoint_info *info) {
    char tokens[48];
    printf("%s\n", LOOM_PRINTABLE(info->directory));
    if (info->has_optimizer) {
        format_whole(tokens, sizeof tokens, info->state.tokens);
        printf("  after step %lld: %s tokens seen in %s, seed %llu\n", (long long)info->state.step, tokens,
               loom_dtype_name(info->state.dtype), (unsigned long long)info->state.seed);
    }
    printf("  %s; %s\n", info->bytes ? "a model of bytes" : "a model of token ids",
           info->has_optimizer ? "training can go on from it" : "weights only");
}

static bool gather_and_show(facts *all, const char *name, loom_device *device, loom_error *error) {
    if (!loom_planning_settle(&all->planning, name, &all->from, error) || !make_plan(all, device, error) ||
        !loom_layout_create(&all->layout, &all->planning.config, 1, error))
        return false;
    if (all->from.directory[0])
        show_checkpoint(&all->from);
    else
        printf("%s: %s\n", LOOM_PRINTABLE(all->planning.name), LOOM_PRINTABLE(all->planning.note));
    show(all);
    loom_layout_destroy(&all->layout);
    return true;
}

static bool tell(facts *all, const char *name, loom_error *error) {
    loom_device *device;
    if (!loom_device_open(&device, "cpu", NULL, error)) return false;
    const bool ok = gather_and_show(all, name, device, error);
    loom_device_close(device);
    return ok;
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
    facts all = {.planning.options = loom_train_options_defaults()};
    loom_flag flags[sizeof flag_names / sizeof *flag_names];
    loom_flag_table table = {flags, loom_train_option_rows(flag_names, flags), &all.planning.options, {false}};
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
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0) {
        const bool ok = line.n_arguments ? tell(&all, line.argument[0], &error) : show_catalogue(&error);
        code = ok ? 0 : loom_command_failed(&error);
    }
    loom_train_options_free(&all.planning.options);
    return code;
}
