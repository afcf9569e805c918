#include "plan/one_layer.h"

bool loom_one_layer_create(loom_one_layer *model, const loom_gpt_config *config, const loom_gpt_setup *setup,
                           loom_device *device, loom_error *error) {
    loom_gpt_config shape = *config;
    loom_gpt_setup what = *setup;
    shape.n_layer = 1;
    what.recompute = (loom_recompute){LOOM_RECOMPUTE_NONE, 0};
    what.generates = false;
    what.sharding = (loom_sharding){0};
    *model = (loom_one_layer){.B = setup->B, .T = setup->T};
    return loom_gpt_create(&model->gpt, &shape, &what, device, error);
}

void loom_one_layer_destroy(loom_one_layer *model) {
    loom_gpt_destroy(model->gpt);
}

void loom_one_layer_lay_out(loom_one_layer *model, loom_arena *arena) {
    loom_gpt_lay_out(model->gpt, arena);
    loom_optimizer_lay_out(&model->optimizer, model->gpt, model->B, arena);
}

void loom_one_layer_run(loom_one_layer *model, int part) {
    switch (part) {
    case LOOM_COST_ENDS:
        loom_gpt_run_part(model->gpt, LOOM_GPT_ENDS, LOOM_RECOMPUTE_NONE);
        loom_optimizer_sum_losses(&model->optimizer, 0, model->B, model->T);
        break;
    case LOOM_COST_FORWARD: loom_gpt_run_part(model->gpt, LOOM_GPT_FORWARD, LOOM_RECOMPUTE_NONE); break;
    case LOOM_COST_BACKWARD: loom_gpt_run_part(model->gpt, LOOM_GPT_BACKWARD, LOOM_RECOMPUTE_NONE); break;
    case LOOM_COST_UPDATE: loom_optimizer_update(&model->optimizer); break;
    default:
        loom_gpt_run_part(model->gpt, LOOM_GPT_RECOMPUTE, (loom_recompute_kind)(part - LOOM_COST_RECOMPUTE));
        break;
    }
}

void loom_one_layer_enter(const loom_one_layer *model, loom_cost *cost, int part, double amount) {
    switch (part) {
    case LOOM_COST_ENDS: cost->ends = amount; break;
    case LOOM_COST_FORWARD: cost->forward = amount; break;
    case LOOM_COST_BACKWARD: cost->backward = amount; break;
    case LOOM_COST_UPDATE: cost->update = amount / (double)loom_gpt_get_layout(model->gpt)->elements; break;
    default: cost->recompute[part - LOOM_COST_RECOMPUTE] = amount; break;
    }
}
