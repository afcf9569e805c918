#include "model/tape.h"

/* One row for each architecture, in the order of loom_gpt_architecture: what declares it, and its names. */
#define ARCHITECTURES(ROW)                                                                                             \
    ROW(LOOM_GPT_2, loom_gpt2, "gpt2", "gpt2", "GPT2LMHeadModel", "activation_function", "gelu_new")                   \
    ROW(LOOM_GPT_1, loom_gpt1, "gpt1", "openai-gpt", "OpenAIGPTLMHeadModel", "afn", "gelu")

static const struct {
    void (*declare)(loom_tape *tape, const loom_gpt_config *config);
    loom_gpt_names names;
} architectures[LOOM_GPT_ARCHITECTURES] = {
#define ROW(architecture, declare, ...) [architecture] = {declare, {__VA_ARGS__}},
    ARCHITECTURES(ROW)
#undef ROW
};

const char *const loom_gpt_architecture_names[LOOM_GPT_ARCHITECTURES + 1] = {
#define ROW(architecture, declare, name, ...) [architecture] = name,
    ARCHITECTURES(ROW)
#undef ROW
};

const loom_gpt_names *loom_gpt_names_of(loom_gpt_architecture architecture) {
    return &architectures[architecture].names;
}

void loom_declare(loom_tape *tape, const loom_gpt_config *config) {
    architectures[config->architecture].declare(tape, config);
}
