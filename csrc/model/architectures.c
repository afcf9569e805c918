#include "model/tape.h"

/* One row for each architecture, in the order of loom_gpt_architecture. */
static const struct {
    loom_gpt_names names;
    void (*declare)(loom_tape *tape, const loom_gpt_config *config);
} architectures[LOOM_GPT_ARCHITECTURES] = {
    [LOOM_GPT_2] = {{"gpt2", "gpt2", "GPT2LMHeadModel", "activation_function", "gelu_new"}, loom_gpt2},
    [LOOM_GPT_1] = {{"gpt1", "openai-gpt", "OpenAIGPTLMHeadModel", "afn", "gelu"}, loom_gpt1},
};

const loom_gpt_names *loom_gpt_names_of(loom_gpt_architecture architecture) {
    return &architectures[architecture].names;
}

void loom_declare(loom_tape *tape, const loom_gpt_config *config) {
    architectures[config->architecture].declare(tape, config);
}
