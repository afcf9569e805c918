#include "trainer.h"

#include <time.h>

/* The training step, from data to AdamW. It reads from top to bottom; devices, ranks and policies are behind the table of
 * ops, the hooks and the plan. */

static double milliseconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

/* What changes from step to step, as ops on the device will read it. */
static loom_scalars_in step_inputs(const loom_trainer *t, const loom_batch *batch) {
    const loom_train_options *o = &t->options;
    return (loom_scalars_in){.learning_rate = loom_schedule_at(&t->schedule, batch->step),
                             .beta1 = (float)o->beta1,
                             .beta2 = (float)o->beta2,
                             .epsilon = (float)o->eps,
                             .weight_decay = (float)o->weight_decay,
                             .clip_norm = (float)o->clip,
                             .loss_gradient = 1.0f / (float)batch->targets_in_step,
                             .spike_z = (float)o->skip_spikes};
}

bool loom_trainer_step(loom_trainer *t, loom_step_report *report, loom_error *error) {
    const double start = milliseconds_now();
    const int64_t B = t->options.micro_batch, T = t->options.seq_len;
    loom_scalars *scalars = loom_gpt_get_scalars(t->gpt); /* device memory */

    const loom_batch *batch;
    if (!loom_loader_next(t->loader, &batch, error)) return false;
    const loom_scalars_in in = step_inputs(t, batch);
    t->device->copy(t->device, NULL, &scalars->in, &in, sizeof in, LOOM_HOST_TO_DEVICE);

    for (int64_t first = 0; first < t->options.batch; first += B) {
        const bool accumulate = first > 0;
        loom_gpt_set_batch(t->gpt, batch->inputs + first * T, batch->targets + first * T);
        loom_gpt_forward(t->gpt);
        loom_gpt_loss(t->gpt, true, accumulate);
        loom_gpt_backward(t->gpt, accumulate);
        loom_optimizer_sum_losses(&t->optimizer, first, B, T);
    }
    loom_optimizer_update(&t->optimizer);

    loom_scalars after;
    t->device->copy(t->device, NULL, &after, scalars, sizeof after, LOOM_DEVICE_TO_HOST);
    if (!t->device->synchronize(t->device, NULL, error)) return false;
    t->state.step = batch->step + 1;
    t->state.tokens += batch->targets_in_step;
    t->state.scalars = after.state;

    const double ms = milliseconds_now() - start;
    *report = (loom_step_report){.step = t->state.step,
                                 .tokens = t->state.tokens,
                                 .loss = after.out.loss,
                                 .lr = in.learning_rate,
                                 .grad_norm = after.out.gradient_norm,
                                 .skipped = after.out.skip != 0,
                                 .ms = ms,
                                 .tokens_per_s = (double)batch->targets_in_step / (1e-3 * ms)};
    return true;
}
