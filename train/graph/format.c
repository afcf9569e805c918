#include "graph/graph.h"

#include "base/plural.h"
#include "plot/format.h"
#include "progress.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *meaning, *colour;
} fates[LOOM_FATES] = {
    [LOOM_FATE_KEPT] = {"kept", "kept for backward", "#0072b2"},
    [LOOM_FATE_OFFLOADED] = {"offloaded", "in host memory", "#9a4f96"},
    [LOOM_FATE_RECOMPUTED] = {"recomputed", "computed once more", "#d55e00"},
    [LOOM_FATE_STAYS] = {"still there", "still there at backward", "#008a63"},
    [LOOM_FATE_PASSES] = {"passes", "not read again", "#8b939c"},
};

const char *loom_fate_name(loom_fate fate) {
    return fates[fate].name;
}

const char *loom_fate_meaning(loom_fate fate) {
    return fates[fate].meaning;
}

const char *loom_fate_colour(loom_fate fate) {
    return fates[fate].colour;
}

/* Of all layers: what is shown of one stands for them. */
bool loom_graph_has_fate(const loom_graph *graph, loom_fate fate) {
    for (loom_value v = 0; v < graph->tape->n_values; v++)
        if (graph->fate[v] == fate) return true;
    return false;
}

void loom_graph_size(double bytes, char text[16]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int unit = 0;
    while (unit < 5 && bytes >= 999.5) {
        bytes /= 1024;
        unit++;
    }
    const int decimals = unit == 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2;
    snprintf(text, 16, "%.*f %s", decimals, bytes, units[unit]);
}

/* A parameter's name without the prefix of its scope. */
static const char *within_scope(const loom_graph *graph, int parameter) {
    const loom_tape_parameter *p = &graph->tape->parameter[parameter];
    return p->name + strlen(graph->tape->scope[p->scope].prefix);
}

/* Up to the last dot that both names have in common; 0: to none. */
static size_t common_length(const char *a, const char *b) {
    size_t common = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '.') common = i;
    return common;
}

static size_t name_length(const loom_graph *graph, const loom_node *n) {
    if (n->parameter[0] < 0) return 0;
    const char *first = within_scope(graph, n->parameter[0]);
    return common_length(first, n->parameter[1] < 0 ? first : within_scope(graph, n->parameter[1]));
}

void loom_graph_node_name(const loom_graph *graph, int node, char module[64], char name[64]) {
    const loom_node *n = &graph->tape->node[node];
    snprintf(module, 64, "%s%s%s", n->module->name, n->activation ? ", " : "",
             n->activation ? loom_activation_name(n->activation) : "");
    snprintf(name, 64, "%.*s", (int)name_length(graph, n),
             n->parameter[0] < 0 ? "" : within_scope(graph, n->parameter[0]));
}

int loom_graph_parameters(const loom_graph *graph, int node, loom_graph_parameter list[LOOM_NODE_PARAMETERS]) {
    const loom_node *n = &graph->tape->node[node];
    const size_t skipped = name_length(graph, n);
    int found = 0;
    for (int k = 0; k < LOOM_NODE_PARAMETERS; k++) {
        if (n->parameter[k] < 0) continue;
        const loom_tape_parameter *p = &graph->tape->parameter[n->parameter[k]];
        loom_graph_parameter *to = &list[found++];
        to->tied = p->scope != n->scope;
        snprintf(to->name, sizeof to->name, "%s", within_scope(graph, n->parameter[k]) + (skipped ? skipped + 1 : 0));
        if (p->rows == 0)
            snprintf(to->shape, sizeof to->shape, "%lld", (long long)p->columns);
        else if (p->padded_rows != p->rows && !to->tied)
            snprintf(to->shape, sizeof to->shape, "%lld × %lld, padded to %lld", (long long)p->rows,
                     (long long)p->columns, (long long)p->padded_rows);
        else
            snprintf(to->shape, sizeof to->shape, "%lld × %lld", (long long)p->rows, (long long)p->columns);
    }
    return found;
}

static void describe_shape(const loom_gpt *g, const loom_tape_value *v, loom_graph_output *to) {
    const long long B = g->B, T = g->T, columns = v->columns, C = g->config.n_embd;
    switch (v->kind) {
    case LOOM_VALUE_ROWS:
        if (columns == C)
            snprintf(to->symbols, sizeof to->symbols, "(B,T,C)");
        else if (columns % C == 0)
            snprintf(to->symbols, sizeof to->symbols, "(B,T,%lldC)", columns / C);
        else
            snprintf(to->symbols, sizeof to->symbols, "(B,T,%lld)", columns);
        snprintf(to->numbers, sizeof to->numbers, "%lld × %lld × %lld", B, T, columns);
        return;
    case LOOM_VALUE_PER_ROW:
        snprintf(to->symbols, sizeof to->symbols, "(B,T)");
        snprintf(to->numbers, sizeof to->numbers, "%lld × %lld", B, T);
        return;
    case LOOM_VALUE_PER_HEAD:
        snprintf(to->symbols, sizeof to->symbols, "(B,H,T)");
        snprintf(to->numbers, sizeof to->numbers, "%lld × %lld × %lld", B, columns, T);
        return;
    }
}

/* The head's are not on the tape: nothing reads them after it. */
static int describe_head(const loom_gpt *g, loom_graph_output *list) {
    const loom_tape_value loss = {.kind = LOOM_VALUE_PER_ROW};
    list[0] = (loom_graph_output){.name = "logits", .symbols = "(n,V)", .fate = LOOM_FATE_PASSES};
    snprintf(list[0].numbers, sizeof list[0].numbers, "%lld × %lld", (long long)g->chunk_rows,
             (long long)g->padded_vocabulary);
    list[0].bytes = (double)loom_bytes(g->chunk_rows * g->padded_vocabulary, g->precision.storage);
    list[1] = (loom_graph_output){.name = "loss", .fate = LOOM_FATE_PASSES};
    describe_shape(g, &loss, &list[1]);
    list[1].bytes = (double)loom_bytes(g->B * g->T, g->device->statistics);
    return 2;
}

int loom_graph_outputs(const loom_graph *graph, int node, loom_graph_output list[LOOM_NODE_OUTPUTS]) {
    const loom_node *n = &graph->tape->node[node];
    int found = 0;
    if (n->module == &loom_module_head) return describe_head(graph->gpt, list);
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
        if (n->out[k] < 0 || graph->tape->value[n->out[k]].node != node) continue;
        loom_graph_output *to = &list[found++];
        *to = (loom_graph_output){.name = n->module->output[k] ? n->module->output[k] : "out",
                                  .bytes = loom_graph_bytes(graph, n->out[k]),
                                  .fate = graph->fate[n->out[k]]};
        describe_shape(graph->gpt, &graph->tape->value[n->out[k]], to);
    }
    return found;
}

void loom_graph_kept(const loom_graph *graph, int layer, char *text, size_t size) {
    loom_value values[LOOM_SET_MOST_VALUES];
    const int n = loom_tape_saved_values(graph->tape, layer, values);
    size_t length = 0;
    *text = 0;
    for (int i = 0; i < n && length < size; i++) {
        const loom_tape_value *v = &graph->tape->value[values[i]];
        const loom_node *node = &graph->tape->node[v->node];
        char module[64], name[64];
        if (graph->fate[values[i]] > LOOM_FATE_OFFLOADED) continue;
        loom_graph_node_name(graph, v->node, module, name);
        length += (size_t)snprintf(text + length, size - length, "%s%s.%s", length ? ", " : "",
                                   *name ? name : node->module->name,
                                   node->module->output[v->output] ? node->module->output[v->output] : "out");
    }
    if (!*text) snprintf(text, size, "nothing but the input");
}

void loom_graph_heading(const loom_graph *graph, char shape[160], char policy[240]) {
    const loom_gpt *g = graph->gpt;
    const loom_gpt_config *c = &g->config;
    char count[32], kept[16], elsewhere[16], host[48] = "", name[LOOM_RECOMPUTE_NAME];
    loom_whole_number((double)g->layout.count, count, sizeof count);
    snprintf(shape, 160, "%s parameters · %lld layer%s · %lld head%s (H) · %lld channel%s (C) · vocabulary %lld (V)",
             count, (long long)c->n_layer, loom_plural(c->n_layer), (long long)c->n_head, loom_plural(c->n_head),
             (long long)c->n_embd, loom_plural(c->n_embd), (long long)c->vocab_size);
    loom_recompute_name(&g->recompute, name);
    loom_graph_size((double)(graph->kept_on_device + graph->kept_elsewhere), kept);
    loom_graph_size((double)graph->kept_elsewhere, elsewhere);
    if (graph->kept_elsewhere) snprintf(host, sizeof host, " (%s of it in host memory)", elsewhere);
    snprintf(policy, 240, "policy %s · %lld × %lld tokens (B × T) · %s · layers keep %s%s · %.1f%% extra FLOPs", name,
             (long long)g->B, (long long)g->T, loom_dtype_name(g->precision.storage), kept, host,
             100 * graph->all_again);
}

void loom_graph_layers(const loom_graph *graph, int first, int last, char name[64], char sums[200]) {
    const loom_graph_sum sum = loom_graph_sum_of(graph, first, last);
    const int number = first - graph->tape->first_layer + 1;
    char parameters[16], kept[16], forward[16], again[16], size[16], recomputed[64] = "", stays[32] = "";
    if (first == last)
        snprintf(name, 64, number == 1 ? "layer 1" : "layer %d, built as layer 1", number);
    else
        snprintf(name, 64, "layers %d .. %d, built as layer 1", number, number + last - first);
    loom_format_count(parameters, sizeof parameters, sum.parameters);
    loom_graph_size(sum.kept, kept);
    loom_format_count(forward, sizeof forward, sum.forward);
    loom_format_count(again, sizeof again, sum.again);
    loom_graph_size(sum.recomputed, size);
    if (sum.recomputed > 0)
        snprintf(recomputed, sizeof recomputed, sum.again > 0 ? " · %s and %s FLOP once more" : " · %s once more", size,
                 again);
    loom_graph_size(sum.stays, size);
    if (sum.stays > 0) snprintf(stays, sizeof stays, " · %s still there", size);
    snprintf(sums, 200, "%s parameters · %s FLOP forward · %s kept%s%s", parameters, forward, kept, recomputed, stays);
}
