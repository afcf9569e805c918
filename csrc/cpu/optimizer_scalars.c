#include "cpu/definition.h"

static double sum_in_order(const loom_view *view) {
    double sum = 0;
    for (int64_t i = 0; i < view->shape[3]; i++) sum += ((const real *)view->data)[i];
    return sum;
}

/* The statistics cover about the last 128 steps. Steps are judged once 32 were seen. */
enum { SPIKE_WINDOW = 128, SPIKE_FIRST = 32 };

static bool is_spike(double value, double mean, double mean_square, double z) {
    const double variance = mean_square - mean * mean;
    return value > mean + z * sqrt(variance > 0 ? variance : 0);
}

static void observe(double *mean, double *mean_square, double value, double weight) {
    *mean += weight * (value - *mean);
    *mean_square += weight * (value * value - *mean_square);
}

/* A spike is judged against the steps before it and is then included in the statistics, so that after a lasting change
 * of level training goes on. Steps whose loss or norm is not finite are always skipped and never included. */
static bool must_skip(loom_scalars_state *state, double loss, double norm, double z) {
    if (!isfinite(loss) || !isfinite(norm)) return true;
    const bool spike = z > 0 && state->observed >= SPIKE_FIRST &&
                       (is_spike(loss, state->loss_mean, state->loss_square, z) ||
                        is_spike(norm, state->norm_mean, state->norm_square, z));
    state->observed++;
    const double weight = 1.0 / (double)(state->observed < SPIKE_WINDOW ? state->observed : SPIKE_WINDOW);
    observe(&state->loss_mean, &state->loss_square, loss, weight);
    observe(&state->norm_mean, &state->norm_square, norm, weight);
    return spike;
}

/* The loss scale of the next step. */
enum { LARGEST_LOSS_SCALE = 1 << 24 };

static void adapt_loss_scale(loom_scalars_state *state, double norm, int32_t interval) {
    if (interval == 0) return;
    if (!isfinite(norm)) {
        state->loss_scale = state->loss_scale > 2 ? state->loss_scale / 2 : 1;
        state->loss_scale_age = 0;
    } else if (++state->loss_scale_age >= interval) {
        state->loss_scale = state->loss_scale < LARGEST_LOSS_SCALE / 2 ? state->loss_scale * 2 : LARGEST_LOSS_SCALE;
        state->loss_scale_age = 0;
    }
}

NO_SCRATCH(optimizer_scalars)

void LOOM_DEFINITION(optimizer_scalars)(loom_context *ctx, const struct loom_optimizer_scalars *a) {
    (void)ctx;
    const loom_scalars_in *in = &a->scalars->in;
    loom_scalars_out *out = &a->scalars->out;
    loom_scalars_state *state = &a->scalars->state;
    const double loss = sum_in_order(&a->losses) * (double)in->loss_gradient;
    const double norm = sqrt(sum_in_order(&a->squares)) / (double)state->loss_scale;
    const double clip = in->clip_norm > 0 && norm > (double)in->clip_norm ? (double)in->clip_norm / norm : 1;
    out->loss = (float)loss;
    out->gradient_norm = (float)norm;
    out->gradient_factor = (float)(clip / (double)state->loss_scale);
    out->skip = must_skip(state, loss, norm, (double)in->spike_z);
    if (out->skip)
        state->skipped++;
    else
        state->updates++;
    out->bias_correction1 = (float)(1 - loom_power((double)in->beta1, state->updates));
    out->bias_correction2 = (float)(1 - loom_power((double)in->beta2, state->updates));
    adapt_loss_scale(state, norm, in->loss_scale_interval);
}
