/* gptloom sample: continues a prompt with a trained model. */
#include "command.h"
#include "command_line.h"
#include "token_ids.h"

#include "base/printable.h"
#include "gptloom/checkpoint.h"
#include "gptloom/data.h"
#include "gptloom/plan.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct settings {
    char *from, *prompt, *device;
    int64_t tokens, top_k, seed, threads;
    double temperature, top_p;
    loom_dtype dtype;
} settings;

static const char *const devices[] = {"auto", "cpu", "cuda", "definition", "oracle", NULL};
static const char *const dtypes[] = {"fp32", "bf16", "fp16", NULL}; /* in loom_dtype's order */

#define AT(field) .offset = offsetof(settings, field)

/* clang-format off */
static const loom_flag flags[] = {
    {.name = "from", .type = LOOM_FLAG_STRING, AT(from), .metavar = "DIR", .group = "Model",
     .help = "a run (its latest checkpoint), a checkpoint, or a GPT-2 directory of Hugging Face with "
             "model.safetensors"},
    {.name = "prompt", .letter = 'p', .type = LOOM_FLAG_STRING, AT(prompt), .derived = "the token that texts begin with", .metavar = "TEXT",
     .group = "Text",
     .help = "what to continue. A model of bytes takes text; any other model takes token ids, '464 3280 318', and "
             "prints ids"},
    {.name = "tokens", .letter = 'n', .type = LOOM_FLAG_INT, AT(tokens), .min = 1, .max = 1e9, .default_value = "256",
     .metavar = "N", .group = "Text", .help = "tokens to add; a token that ends texts (eos_token_id of config.json) ends it earlier"},
    {.name = "temperature", .type = LOOM_FLAG_DOUBLE, AT(temperature), .min = 0, .max = 100, .default_value = "0.8",
     .metavar = "X", .group = "Choice of each token",
     .help = "divides the logits: below 1 safer, above 1 bolder; 0: always the most probable token"},
    {.name = "top-k", .type = LOOM_FLAG_INT, AT(top_k), .min = 0, .max = 1 << 22, .default_value = "0", .metavar = "K",
     .group = "Choice of each token", .help = "only among the K most probable tokens, of equal ones those with the lowest ids; 0: all"},
    {.name = "top-p", .type = LOOM_FLAG_DOUBLE, AT(top_p), .min = 1e-6, .max = 1, .default_value = "1", .metavar = "P",
     .group = "Choice of each token", .help = "only among the fewest tokens that together have probability P; 1: all"},
    {.name = "seed", .type = LOOM_FLAG_INT, AT(seed), .min = 0, .max = 0x1p63, .default_value = "1337", .metavar = "S",
     .group = "Choice of each token", .help = "the same seed gives the same text, with any number of threads"},
    {.name = "device", .type = LOOM_FLAG_STRING, AT(device), .choices = devices, .default_value = "auto", .metavar = "NAME",
     .group = "Machine",
     .help = "auto (a GPU that works, else the CPU), cpu or cuda; for tests also definition and oracle"},
    {.name = "dtype", .type = LOOM_FLAG_CHOICE, AT(dtype), .choices = dtypes, .default_value = "fp32", .metavar = "NAME",
     .group = "Machine", .help = "what weights and activations are stored in: fp32, bf16 or fp16"},
    {.name = "threads", .type = LOOM_FLAG_INT, AT(threads), .min = 0, .max = 1024, .default_value = "0", .metavar = "N",
     .group = "Machine", .help = "CPU threads; 0: all that the process may run on"},
};
/* clang-format on */

#undef AT

/* ----------------------------------------------------------------------------------------------------------- prompt */

/* Begins with what texts begin with, or what ends the one before. */
static bool begin_text(const loom_checkpoint_info *info, int32_t *tokens, int64_t *n, loom_error *error) {
    const loom_text_ends *ends = &info->ends;
    const int64_t begin = ends->begin >= 0 ? ends->begin : ends->n_ends > 0 ? ends->end[0] : -1;
    if (begin < 0)
        return loom_fail(error,
                         "--prompt: is missing, and %s/config.json names no token that texts begin with "
                         "(bos_token_id)",
                         info->directory);
    tokens[(*n)++] = (int32_t)begin;
    return true;
}

/* The prompt's tokens, which the caller frees. */
static bool make_prompt(const settings *mine, const loom_checkpoint_info *info, int32_t **tokens, int64_t *n,
                        loom_error *error) {
    const char *text = mine->prompt ? mine->prompt : "";
    const size_t length = strlen(text);
    *n = 0;
    *tokens = malloc((length + 1) * sizeof **tokens);
    if (!*tokens) return loom_fail(error, "--prompt: no memory for %zu bytes", length);
    bool ok = true;
    if (!*text)
        ok = begin_text(info, *tokens, n, error);
    else if (info->bytes)
        for (; *text; text++) (*tokens)[(*n)++] = (unsigned char)*text;
    else
        ok = loom_token_ids_read(text, info->config.vocab_size, *tokens, n, error);
    if (ok) return true;
    free(*tokens);
    *tokens = NULL;
    return false;
}

/* ----------------------------------------------------------------------------------------------------------- output */

typedef struct writer {
    bool bytes, terminal;
    const loom_text_ends *ends;
    loom_printable state;
} writer;

static void write_token(writer *to, int32_t token) {
    if (!to->bytes)
        printf("%d ", token);
    else if (to->terminal)
        loom_printable_byte(&to->state, (unsigned char)token, stdout);
    else
        putchar(token);
    fflush(stdout);
}

/* A byte model may have a larger vocabulary than bytes: such tokens have no text. */
static bool emit(void *user, int32_t token) {
    writer *to = user;
    for (int i = 0; i < to->ends->n_ends; i++)
        if (token == to->ends->end[i]) return false;
    if (!to->bytes || token < 256) write_token(to, token);
    return !ferror(stdout);
}

/* ------------------------------------------------------------------------------------------------------------ model */

/* A model for inference on a device, with the checkpoint's weights. */
typedef struct loaded {
    loom_device *device;
    loom_gpt *gpt;
    void *memory;
    size_t bytes;
} loaded;

static bool load(loaded *model, loom_checkpoint_info *info, const settings *mine, loom_error *error) {
    const loom_device_options options = {.threads = (int)mine->threads};
    const int64_t T = info->config.block_size;
    const loom_precision_flags asked = {.dtype = mine->dtype, .master = true};
    loom_precision precision;
    const loom_gpt_setup setup = {.purpose = LOOM_GPT_INFER, .precision = &precision, .B = 1, .T = T};
    loom_plan plan;
    if (!loom_device_open(&model->device, mine->device, &options, error) ||
        !loom_precision_of(model->device, &asked, &precision, error) ||
        !loom_plan_make(&plan, &info->config, &setup, model->device, 1, error))
        return false;
    plan.available = model->device->available(model->device);
    if (!loom_plan_check(&plan, error) || !loom_gpt_create(&model->gpt, &info->config, &setup, model->device, error))
        return false;
    if (!model->device->allocate(model->device, &model->memory, plan.arena.used, error)) return false;
    model->bytes = plan.arena.used;
    loom_arena arena = loom_arena_over(model->memory, model->bytes, model->device->host_memory);
    loom_gpt_lay_out(model->gpt, &arena);
    if (!loom_gpt_prepare(model->gpt, error)) return false;
    loom_checkpoint_tensors tensors = {.config = &info->config,
                                       .layout = loom_gpt_get_layout(model->gpt),
                                       .device = model->device,
                                       .dtype = loom_gpt_get_precision(model->gpt)->master};
    loom_checkpoint_slice *slices = loom_checkpoint_whole_slices(&tensors, loom_gpt_get_master(model->gpt), NULL, NULL,
                                                                 error);
    tensors.slice = slices;
    const bool ok = slices && loom_checkpoint_load(info, &tensors, error);
    free(slices);
    return ok;
}

static void unload(loaded *model) {
    if (model->gpt) loom_gpt_destroy(model->gpt);
    if (model->bytes) model->device->release(model->device, model->memory, model->bytes);
    if (model->device) loom_device_close(model->device);
}

/* Prints the prompt, of n tokens, and what follows it. */
static bool continue_prompt(const settings *mine, const loom_checkpoint_info *info, loom_gpt *gpt,
                            const int32_t *prompt, int64_t n, loom_error *error) {
    const loom_sampling sampling = {.temperature = (float)mine->temperature,
                                    .top_k = (int)mine->top_k,
                                    .top_p = (float)mine->top_p,
                                    .seed = (uint64_t)mine->seed};
    const long long context = info->config.block_size;
    writer to = {.bytes = info->bytes, .terminal = isatty(STDOUT_FILENO), .ends = &info->ends};
    if (n > context)
        fprintf(stderr,
                "gptloom: note: --prompt has %lld tokens and the model's context is %lld: it goes on from the last "
                "%lld, and does not see the first %lld\n",
                (long long)n, context, context, (long long)n - context);
    for (int64_t i = 0; mine->prompt && *mine->prompt && i < n; i++) write_token(&to, prompt[i]);
    if (!loom_gpt_generate(gpt, prompt, n, mine->tokens, &sampling, emit, &to, error)) return false;
    loom_printable_end(&to.state, stdout);
    putchar('\n');
    return true;
}

static bool sample(const settings *mine, loom_error *error) {
    loom_checkpoint_info info;
    loaded model = {0};
    int32_t *prompt;
    int64_t n;
    if (!mine->from) return loom_fail(error, "--from: is missing; name a run or a checkpoint");
    if (!loom_checkpoint_open(mine->from, &info, error) || !make_prompt(mine, &info, &prompt, &n, error)) return false;
    const bool ok = load(&model, &info, mine, error) && continue_prompt(mine, &info, model.gpt, prompt, n, error);
    unload(&model);
    free(prompt);
    return ok;
}

int loom_command_sample(int argc, char **argv) {
    settings mine;
    loom_flag_table table = {flags, sizeof flags / sizeof *flags, &mine, {false}};
    loom_command_line line = {
        .command = "sample",
        .about = "Continues a prompt with a trained model and prints both, token by token.",
        .examples = "  gptloom sample --from runs/first --prompt 'Once upon a time' --tokens 500\n"
                    "  gptloom sample --from runs/first --temperature 0\n",
        .tables = &table,
        .n_tables = 1,
    };
    loom_error error;
    loom_flags_defaults(flags, table.n, &mine);
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0) code = sample(&mine, &error) ? 0 : loom_command_failed(&error);
    loom_flags_free(flags, table.n, &mine);
    return code;
}
