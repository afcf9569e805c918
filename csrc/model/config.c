#include "gptloom/model.h"

#include "base/nearest.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* GPT-3's table 2.1 contradicts itself in two rows, made whole here: XL's 24 heads of 128 are not its 2048 channels (16
 * heads are), 13B's 5140 channels are not 40 heads of 128 (5120 are). Its alternating sparse attention is dense here.
 * */
static const loom_gpt_named catalogue[] = {
    {"nano", {3, 3, 48, 64, 257}, "for trying things out: bytes, learns in seconds"},
    {"mini", {4, 4, 128, 64, 257}, "bytes, nanoGPT's CPU size"},
    {"gpt1", {12, 12, 768, 512, 40478, LOOM_GPT_GELU, LOOM_GPT_1}, "117M (Radford et al., 2018)"},
    {"gpt2", {12, 12, 768, 1024, 50257}, "124M (Radford et al., 2019)"},
    {"gpt2-medium", {24, 16, 1024, 1024, 50257}, "355M"},
    {"gpt2-large", {36, 20, 1280, 1024, 50257}, "774M"},
    {"gpt2-xl", {48, 25, 1600, 1024, 50257}, "1558M"},
    {"gpt3-125m", {12, 12, 768, 2048, 50257}, "GPT-3 Small (Brown et al., 2020, table 2.1), dense attention"},
    {"gpt3-350m", {24, 16, 1024, 2048, 50257}, "GPT-3 Medium, dense attention"},
    {"gpt3-760m", {24, 16, 1536, 2048, 50257}, "GPT-3 Large, dense attention"},
    {"gpt3-1.3b", {24, 16, 2048, 2048, 50257}, "GPT-3 XL, dense attention; 16 heads of 128 (24 are printed)"},
    {"gpt3-2.7b", {32, 32, 2560, 2048, 50257}, "GPT-3 2.7B, dense attention"},
    {"gpt3-6.7b", {32, 32, 4096, 2048, 50257}, "GPT-3 6.7B, dense attention"},
    {"gpt3-13b", {40, 40, 5120, 2048, 50257}, "GPT-3 13B, dense attention; 5120 channels (5140 are printed)"},
    {"gpt3-175b", {96, 96, 12288, 2048, 50257}, "GPT-3 175B, dense attention"},
    {NULL, {0}, NULL},
};

const loom_gpt_named *loom_gpt_catalogue(void) {
    return catalogue;
}

/* llm.c's family: a depth fixes the channels, and heads have 64 of them. */
static int64_t channels_of_depth(int64_t depth) {
    static const struct {
        int64_t depth, channels;
    } table[] = {{6, 384}, {12, 768}, {24, 1024}, {36, 1280}, {48, 1600}, {60, 1920}, {72, 2880}, {84, 3456}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].depth == depth) return table[i].channels;
    return 0;
}

/* What a model is called here that others name by its parameters; NULL where none is known. The nearest name would be
 * another model's. */
static const char *other_name(const char *name) {
    static const char *const names[][2] = {{"gpt2-small", "gpt2"},
                                           {"gpt2-117m", "gpt2"},
                                           {"gpt2-124m", "gpt2"},
                                           {"gpt2-345m", "gpt2-medium"},
                                           {"gpt2-350m", "gpt2-medium"},
                                           {"gpt2-355m", "gpt2-medium"},
                                           {"gpt2-762m", "gpt2-large"},
                                           {"gpt2-774m", "gpt2-large"},
                                           {"gpt2-1.5b", "gpt2-xl"},
                                           {"gpt2-1542m", "gpt2-xl"},
                                           {"gpt2-1558m", "gpt2-xl"},
                                           {"gpt-2", "gpt2"},
                                           {"gpt-1", "gpt1"},
                                           {"gpt3", "gpt3-175b"},
                                           {"gpt3-small", "gpt3-125m"}};
    const char *plain = !strncmp(name, "openai-community/", 17) ? name + 17 : name;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcasecmp(plain, names[i][0])) return names[i][1];
    for (const loom_gpt_named *row = catalogue; row->name; row++)
        if (!strcasecmp(plain, row->name)) return row->name;
    return NULL;
}

bool loom_gpt_config_by_name(const char *name, loom_gpt_named *named, loom_error *error) {
    for (const loom_gpt_named *row = catalogue; row->name; row++)
        if (!strcmp(row->name, name)) {
            *named = *row;
            return true;
        }
    int64_t depth;
    int end = 0;
    if (sscanf(name, "d%" SCNd64 "%n", &depth, &end) == 1 && !name[end] && channels_of_depth(depth)) {
        const int64_t channels = channels_of_depth(depth);
        *named = (loom_gpt_named){name, {depth, channels / 64, channels, 1024, 50257}, "a depth of llm.c's family"};
        return true;
    }
    const char *same = other_name(name);
    if (same) return loom_fail(error, "--model: '%s' is called %s here", name, same);
    const char *names[sizeof catalogue / sizeof *catalogue];
    for (size_t i = 0; i < sizeof catalogue / sizeof *catalogue; i++) names[i] = catalogue[i].name;
    const char *nearest = loom_nearest_name(name, names);
    return loom_fail(error, "--model: '%s' is no known model; %s%s%s`gptloom info` lists them", name,
                     nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "");
}

bool loom_gpt_config_check(const loom_gpt_config *c, loom_error *error) {
    const struct {
        const char *flag;
        int64_t value, largest;
    } rows[] = {{"--n-layer", c->n_layer, 1000},
                {"--n-head", c->n_head, 1024},
                {"--n-embd", c->n_embd, 1 << 17},
                {"--block-size", c->block_size, 1 << 20},
                {"--vocab-size", c->vocab_size, 1 << 22}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].value < 1 || rows[i].value > rows[i].largest)
            return loom_fail(error, "%s: %" PRId64 " is not between 1 and %" PRId64, rows[i].flag, rows[i].value,
                             rows[i].largest);
    if ((unsigned)c->architecture >= LOOM_GPT_ARCHITECTURES)
        return loom_fail(error, "--architecture: %d is none", (int)c->architecture);
    if (c->n_embd % c->n_head != 0)
        return loom_fail(error, "--n-embd: %" PRId64 " channels cannot be divided among --n-head %" PRId64 " heads",
                         c->n_embd, c->n_head);
    return true;
}

int64_t loom_gpt_padded_vocabulary(const loom_gpt_config *config) {
    return (config->vocab_size + 127) / 128 * 128;
}

double loom_gpt_flops_per_token(const loom_gpt_config *config, int64_t T) {
    const double C = (double)config->n_embd, L = (double)config->n_layer;
    const double weights = L * 12 * C * C + (double)loom_gpt_padded_vocabulary(config) * C;
    /* Scores and their product with v: 2 * 2 * T/2 * C forward, twice that backward. */
    return 6 * weights + 6 * L * (double)T * C;
}
