#include "plan/sample.h"

#include "base/check.h"

_Static_assert((int)LOOM_COST_KEY == (int)LOOM_STEP_KEY, "a cost has the key of a step");

static void add_step(loom_sample *s, loom_tape_step step) {
    LOOM_CHECK(s->n_steps < LOOM_SAMPLE_MOST_PARTS - 1);
    s->step[s->n_steps++] = step;
}

/* All that a step runs where everything is kept, and after what runs forward, the part of it that needs its outputs
 * alone, as recomputing may run that. */
static void list_steps(loom_sample *s) {
    const loom_tape *t = &s->gpt->tape;
    for (int i = 0; i < s->gpt->train.n; i++) {
        const loom_tape_step *step = &s->gpt->train.step[i];
        if (step->kind != LOOM_STEP_FORWARD && step->kind != LOOM_STEP_BACKWARD) continue;
        add_step(s, *step);
        const loom_node *n = &t->node[step->index];
        unsigned again = 0;
        for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
            if (step->wanted >> k & 1 && n->module->from[k]) again |= 1u << k;
        if (again && loom_node_reads_inputs(n, step->wanted))
            add_step(s, (loom_tape_step){LOOM_STEP_FORWARD, .index = step->index, .wanted = again});
    }
    s->parts = s->n_steps + 1;
}

bool loom_sample_create(loom_sample *s, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                        loom_error *error) {
    loom_gpt_config shape = *config;
    loom_gpt_setup what = *setup;
    shape.n_layer = config->n_layer < 2 ? config->n_layer : 2;
    what.recompute = (loom_recompute){LOOM_RECOMPUTE_NONE, 0};
    what.offload = false;
    what.generates = false;
    what.sharding = (loom_sharding){0};
    *s = (loom_sample){0};
    if (!loom_gpt_create(&s->gpt, &shape, &what, device, error)) return false;
    list_steps(s);
    return true;
}

void loom_sample_destroy(loom_sample *s) {
    loom_gpt_destroy(s->gpt);
}

void loom_sample_lay_out(loom_sample *s, loom_arena *arena) {
    loom_gpt_lay_out(s->gpt, arena);
    loom_optimizer_lay_out(&s->optimizer, s->gpt, s->gpt->B, arena);
}

void loom_sample_run(loom_sample *s, int part) {
    loom_gpt *g = s->gpt;
    if (part < s->n_steps) {
        if (part == 0) loom_gpt_begin(g, LOOM_MODE_TRAIN, (loom_rows){g->B, g->T, 0}, false);
        loom_gpt_run_step(g, &s->step[part]);
    } else {
        loom_optimizer_update(&s->optimizer);
    }
}

int loom_cost_find(loom_cost *cost, const int64_t key[LOOM_COST_KEY]) {
    for (int i = 0; i < cost->n; i++) {
        bool same = true;
        for (int k = 0; k < LOOM_COST_KEY; k++) same = same && cost->work[i].key[k] == key[k];
        if (same) return i;
    }
    LOOM_CHECK(cost->n < LOOM_COST_MOST);
    for (int k = 0; k < LOOM_COST_KEY; k++) cost->work[cost->n].key[k] = key[k];
    cost->work[cost->n].amount = 0;
    return cost->n++;
}

void loom_sample_sum_up(const loom_sample *s, const double amount[LOOM_SAMPLE_MOST_PARTS], double scale,
                        loom_cost *cost) {
    int parts[LOOM_COST_MOST] = {0};
    cost->n = 0;
    for (int i = 0; i < s->n_steps; i++) {
        int64_t key[LOOM_COST_KEY];
        loom_tape_step_key(&s->gpt->tape, &s->step[i], key);
        const int work = loom_cost_find(cost, key);
        cost->work[work].amount += amount[i];
        parts[work]++;
    }
    for (int i = 0; i < cost->n; i++) cost->work[i].amount *= scale / parts[i];
    cost->update = amount[s->n_steps] / (double)loom_gpt_get_layout(s->gpt)->elements;
}
