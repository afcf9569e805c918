/* GPT-1   (Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018): learned positions,
 * blocks that normalise the sums behind attention and MLP, tanh-GELU, and a classifier that is the token embedding. */
#include "model/tape.h"

static loom_value block(loom_tape *t, const loom_gpt_config *c, loom_value x) {
    loom_value a = loom_attention(t, loom_linear(t, x, 3 * c->n_embd, "attn.c_attn"), c->n_head);
    x = loom_layernorm(t, loom_sum(t, x, loom_linear(t, a, c->n_embd, "attn.c_proj")), "ln_1");
    a = loom_activate(t, loom_linear(t, x, 4 * c->n_embd, "mlp.c_fc"), c->activation);
    return loom_layernorm(t, loom_sum(t, x, loom_linear(t, a, c->n_embd, "mlp.c_proj")), "ln_2");
}

void loom_gpt1(loom_tape *t, const loom_gpt_config *c) {
    loom_scope(t, "transformer.");
    loom_value x = loom_embed(t, c, "tokens_embed", "positions_embed");
    for (int64_t l = 0; l < c->n_layer; l++) {
        loom_layer(t, "transformer.h.", l);
        x = block(t, c, x);
    }
    loom_scope(t, "transformer.");
    loom_head(t, x, "transformer.tokens_embed.weight");
}
