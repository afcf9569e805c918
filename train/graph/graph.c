#include "graph/graph.h"

#include <stdlib.h>

/* ---------------------------------------------------------------------------------------------------------- counting */

static void add_work(void *visitor, loom_op op, const void *arguments) {
    *(double *)visitor += loom_op_work(op, arguments).flops;
}

static double work_of(loom_gpt *g, const loom_tape_step *step) {
    double flops = 0;
    g->ctx.visitor = &flops;
    loom_gpt_run_step(g, step);
    return flops;
}

/* Forward by itself, as validation runs it: in training the head does its backward at once. */
static void count_forward(loom_graph *graph) {
    loom_gpt *g = graph->gpt;
    const loom_tape_schedule *s = loom_gpt_begin(g, LOOM_MODE_LOSS, (loom_rows){g->B, g->T, 0}, false);
    for (const loom_tape_step *step = s->step; step < s->step + s->n; step++)
        if (step->kind == LOOM_STEP_FORWARD) graph->forward[step->index] = work_of(g, step);
}

/* What the schedule of training runs once more. */
static void count_again(loom_graph *graph, int *written) {
    loom_gpt *g = graph->gpt;
    double all = 0, again = 0;
    const loom_tape_schedule *s = loom_gpt_begin(g, LOOM_MODE_TRAIN, (loom_rows){g->B, g->T, 0}, false);
    for (const loom_tape_step *step = s->step; step < s->step + s->n; step++) {
        if (step->kind != LOOM_STEP_FORWARD && step->kind != LOOM_STEP_BACKWARD) continue;
        const loom_node *n = &g->tape.node[step->index];
        const double work = work_of(g, step);
        bool before = false;
        for (int k = 0; step->kind == LOOM_STEP_FORWARD && k < LOOM_NODE_OUTPUTS; k++)
            if (step->wanted >> k & 1) before = written[n->out[k]]++ > 0 || before;
        all += work;
        if (!before) continue;
        again += work;
        graph->again[step->index] += work;
    }
    graph->all_again = again / (all - again);
}

/* Of layers, the last LOOM_SLOTS segments never leave the device. */
static bool leaves(const loom_gpt *g, loom_value v) {
    const int scope = g->tape.value[v].scope;
    return g->offload.on && g->tape.scope[scope].is_layer &&
           (scope - g->tape.first_layer) / g->segment < loom_segments_that_leave(&g->tape, g->segment);
}

static void find_fates(loom_graph *graph, const loom_keep *keep, const int *written) {
    const loom_tape *t = graph->tape;
    for (loom_value v = 0; v < t->n_values; v++) {
        if (keep[v] == LOOM_KEEP_ALWAYS)
            graph->fate[v] = leaves(graph->gpt, v) ? LOOM_FATE_OFFLOADED : LOOM_FATE_KEPT;
        else if (written[v] > 1)
            graph->fate[v] = LOOM_FATE_RECOMPUTED;
        else
            graph->fate[v] = t->value[v].saved ? LOOM_FATE_STAYS : LOOM_FATE_PASSES;
    }
}

static bool count(loom_graph *graph, loom_error *error) {
    loom_gpt *g = graph->gpt;
    const size_t values = (size_t)g->tape.n_values, nodes = (size_t)g->tape.n_nodes;
    loom_arena nowhere = loom_arena_measure();
    loom_keep *keep = malloc(values * sizeof *keep);
    int *written = calloc(values, sizeof *written);
    graph->fate = calloc(values, sizeof *graph->fate);
    graph->forward = calloc(2 * nodes, sizeof *graph->forward);
    const bool ok = keep && written && graph->fate && graph->forward;
    if (ok) {
        graph->again = graph->forward + nodes;
        loom_gpt_lay_out(g, &nowhere);
        g->ctx.ops = loom_visiting_ops();
        g->ctx.visit = add_work;
        count_forward(graph);
        count_again(graph, written);
        loom_tape_keep(&g->tape, &g->recompute, keep);
        find_fates(graph, keep, written);
    }
    free(keep);
    free(written);
    return ok || loom_fail(error, "no memory for the graph of a model of %d layers", g->tape.n_layers);
}

bool loom_graph_make(loom_graph *graph, const char *name, const loom_gpt_config *config, const loom_gpt_setup *setup,
                     loom_device *device, loom_error *error) {
    *graph = (loom_graph){.name = name};
    if (!loom_gpt_create(&graph->gpt, config, setup, device, error)) return false;
    graph->tape = &graph->gpt->tape;
    graph->kept_on_device = graph->gpt->buffers[LOOM_MODE_TRAIN].kept;
    graph->kept_elsewhere = loom_gpt_get_host_bytes(graph->gpt);
    return count(graph, error);
}

void loom_graph_free(loom_graph *graph) {
    free(graph->fate);
    free(graph->forward);
    loom_gpt_destroy(graph->gpt);
    *graph = (loom_graph){0};
}

double loom_graph_bytes(const loom_graph *graph, loom_value v) {
    const loom_gpt *g = graph->gpt;
    const loom_tape_value *value = &graph->tape->value[v];
    const loom_dtype dtype = value->kind == LOOM_VALUE_ROWS ? g->precision.storage : g->device->statistics;
    return (double)loom_bytes(g->B * g->T * value->columns, dtype);
}

loom_graph_sum loom_graph_sum_of(const loom_graph *graph, int first, int last) {
    const loom_tape *t = graph->tape;
    loom_graph_sum sum = {0};
    for (int i = 0; i < t->n_parameters; i++) {
        const loom_tape_parameter *p = &t->parameter[i];
        if (p->scope >= first && p->scope <= last) sum.parameters += (double)((p->rows ? p->rows : 1) * p->columns);
    }
    for (loom_value v = 0; v < t->n_values; v++) {
        if (t->value[v].scope < first || t->value[v].scope > last) continue;
        const double bytes = loom_graph_bytes(graph, v);
        if (graph->fate[v] <= LOOM_FATE_OFFLOADED) sum.kept += bytes;
        if (graph->fate[v] == LOOM_FATE_RECOMPUTED) sum.recomputed += bytes;
        if (graph->fate[v] == LOOM_FATE_STAYS) sum.stays += bytes;
    }
    for (int i = t->scope[first].first; i < t->scope[last].last; i++) {
        sum.forward += graph->forward[i];
        sum.again += graph->again[i];
    }
    return sum;
}
