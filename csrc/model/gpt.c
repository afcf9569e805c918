#include "model/gpt.h"

#include "base/check.h"

#include <stdio.h>
#include <string.h>

/* -------------------------------------------------------------------------------------------------------------- playing */

void loom_gpt_run_step(loom_gpt *g, const loom_tape_step *step) {
    const loom_node *n = &g->tape.node[step->index];
    if (step->kind == LOOM_STEP_FORWARD) n->module->forward(g, n, step->wanted);
    if (step->kind == LOOM_STEP_BACKWARD) n->module->backward(g, n);
}

/* "backward transformer.h.3". A step that is a graph shows it only while it is captured. */
static void begin_range(loom_gpt *g, const loom_tape_step *step) {
    char name[64];
    if (!g->device->range_push) return;
    snprintf(name, sizeof name, "%s %s", step->wanted ? "backward" : "forward", g->tape.scope[step->index].prefix);
    name[strlen(name) - 1] = 0; /* the dot */
    g->device->range_push(g->device, name);
}

/* What a step does not name it may not touch: sanitizer builds see to that where the memory is the host's. */
static void fence(loom_gpt *g, const loom_tape_step *step) {
    if (g->device->host_memory && g->activations)
        loom_buffers_fence(&g->buffers[g->mode], &g->tape, step, g->activations);
}

static void play(loom_gpt *g, const loom_tape_schedule *schedule) {
    const loom_gpt_hooks *hooks = &g->hooks;
    for (const loom_tape_step *s = schedule->step; s < schedule->step + schedule->n; s++) {
        switch (s->kind) {
        case LOOM_STEP_FORWARD:
        case LOOM_STEP_BACKWARD:
            fence(g, s);
            loom_gpt_run_step(g, s);
            break;
        case LOOM_STEP_ACQUIRE:
            if (hooks->params_acquire) hooks->params_acquire(hooks->user, s->index, s->next);
            break;
        case LOOM_STEP_RELEASE:
            if (hooks->params_release) hooks->params_release(hooks->user, s->index);
            break;
        case LOOM_STEP_BEGIN_GRADIENTS:
            if (hooks->grads_acquire) hooks->grads_acquire(hooks->user, s->index);
            break;
        case LOOM_STEP_READY:
            if (hooks->grads_ready) hooks->grads_ready(hooks->user, s->index);
            break;
        case LOOM_STEP_SEND:
        case LOOM_STEP_FETCH:
        case LOOM_STEP_WAIT: loom_offload_step(g, s); break;
        case LOOM_STEP_RANGE: begin_range(g, s); break;
        case LOOM_STEP_RANGE_END:
            if (g->device->range_pop) g->device->range_pop(g->device);
            break;
        }
    }
    fence(g, NULL);
}

const loom_tape_schedule *loom_gpt_begin(loom_gpt *g, loom_gpt_mode mode, loom_rows rows, bool accumulate) {
    g->mode = mode;
    g->rows = rows;
    g->accumulate = accumulate;
    LOOM_CHECK(g->buffers[mode].value); /* it was made for that */
    return mode == LOOM_MODE_TRAIN ? &g->train : &g->forward;
}

void loom_gpt_train(loom_gpt *g, bool accumulate) {
    play(g, loom_gpt_begin(g, LOOM_MODE_TRAIN, (loom_rows){g->B, g->T, 0}, accumulate));
}

void loom_gpt_evaluate(loom_gpt *g) {
    play(g, loom_gpt_begin(g, LOOM_MODE_LOSS, (loom_rows){g->B, g->T, 0}, false));
}

void loom_gpt_infer(loom_gpt *g, int64_t n, int64_t past) {
    play(g, loom_gpt_begin(g, LOOM_MODE_GENERATE, (loom_rows){1, n, past}, false));
}

void loom_gpt_visit(loom_gpt *g, loom_gpt_mode mode, loom_rows rows, bool accumulate) {
    const loom_tape_schedule *schedule = loom_gpt_begin(g, mode, rows, accumulate);
    loom_tape_class classes[LOOM_MOST_CLASSES];
    const int n = loom_tape_classes(&g->tape, schedule, classes);
    for (int i = 0; i < n; i++) loom_gpt_run_step(g, classes[i].step);
}
