/* GPT-2   (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019): learned positions,
 * pre-layernorm blocks, tanh-GELU, and a classifier that is the token embedding. */
#include "model/tape.h"

static loom_value block(loom_tape *t, const loom_gpt_config *c, loom_value x) {
    loom_value a = loom_layernorm(t, x, "ln_1");
    a = loom_attention(t, loom_linear(t, a, 3 * c->n_embd, "attn.c_attn"), c->n_head);
    x = loom_residual(t, x, loom_linear(t, a, c->n_embd, "attn.c_proj"));
    a = loom_layernorm(t, x, "ln_2");
    a = loom_activate(t, loom_linear(t, a, 4 * c->n_embd, "mlp.c_fc"), c->activation);
    return loom_residual(t, x, loom_linear(t, a, c->n_embd, "mlp.c_proj"));
}

void loom_gpt2(loom_tape *t, const loom_gpt_config *c) {
    loom_scope(t, "transformer.");
    loom_value x = loom_embed(t, c, "wte", "wpe");
    for (int64_t l = 0; l < c->n_layer; l++) {
        loom_layer(t, "transformer.h.", l);
        x = block(t, c, x);
    }
    loom_scope(t, "transformer.");
    loom_head(t, loom_layernorm(t, x, "ln_f"), "transformer.wte.weight");
}
