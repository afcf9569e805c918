#include "model/tape.h"

#include "model/module.h"
#include "model/schedule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------------- what it is made of */

/* The array with room for one more element than its n: it grows by doubling. Without memory, as it was. */
static void *grown(loom_tape *t, void *array, int n, size_t size) {
    if (t->failed || (n & (n - 1)) != 0) return array;
    void *larger = realloc(array, (size_t)(n ? 2 * n : 1) * size);
    if (!larger) t->failed = true;
    return larger ? larger : array;
}

loom_value loom_tape_value_add(loom_tape *t, loom_value_kind kind, int64_t columns) {
    t->value = grown(t, t->value, t->n_values, sizeof *t->value);
    if (t->failed) return 0;
    t->value[t->n_values] = (loom_tape_value){.kind = kind, .columns = columns, .node = -1, .gradient = t->n_values};
    return t->n_values++;
}

loom_node *loom_tape_node_add(loom_tape *t, const loom_module *module) {
    t->node = grown(t, t->node, t->n_nodes, sizeof *t->node);
    if (t->failed) return NULL;
    loom_node *n = &t->node[t->n_nodes++];
    *n = (loom_node){.module = module, .scope = t->n_scopes - 1, .parameter = {-1, -1}};
    for (int i = 0; i < LOOM_NODE_INPUTS; i++) n->in[i] = LOOM_NO_VALUE;
    for (int i = 0; i < LOOM_NODE_OUTPUTS; i++) n->out[i] = LOOM_NO_VALUE;
    return n;
}

/* (rows, columns), or with 0 rows a vector. */
int loom_tape_parameter_add(loom_tape *t, const char *name, const char *part, int64_t rows, int64_t columns,
                            loom_initial initial) {
    t->parameter = grown(t, t->parameter, t->n_parameters, sizeof *t->parameter);
    if (t->failed) return 0;
    loom_tape_parameter *p = &t->parameter[t->n_parameters];
    *p = (loom_tape_parameter){
        .rows = rows, .columns = columns, .padded_rows = rows, .scope = t->n_scopes - 1, .initial = initial};
    snprintf(p->name, sizeof p->name, "%s%s.%s", t->scope[p->scope].prefix, name, part);
    return t->n_parameters++;
}

int64_t loom_tape_columns(const loom_tape *t, loom_value v) {
    return t->failed ? 1 : t->value[v].columns;
}

void loom_scope(loom_tape *t, const char *prefix) {
    t->scope = grown(t, t->scope, t->n_scopes, sizeof *t->scope);
    if (t->failed) return;
    loom_tape_scope *s = &t->scope[t->n_scopes++];
    *s = (loom_tape_scope){0};
    snprintf(s->prefix, sizeof s->prefix, "%s", prefix);
}

void loom_layer(loom_tape *t, const char *prefix, int64_t l) {
    char numbered[40];
    snprintf(numbered, sizeof numbered, "%s%d.", prefix, (int)l);
    loom_scope(t, numbered);
    if (t->failed) return;
    if (t->n_layers++ == 0) t->first_layer = t->n_scopes - 1;
    t->scope[t->n_scopes - 1].is_layer = true;
}

/* ------------------------------------------------------------------------------------------------------------ questions */

int loom_node_bucket(const loom_tape *t, const loom_node *n) {
    return n->parameter[0] < 0 ? -1 : t->scope[t->parameter[n->parameter[0]].scope].bucket;
}

unsigned loom_node_saves_outputs(const loom_node *n) {
    return n->module->needs_out | (n->activation != LOOM_ACTIVATION_NONE ? 1u << LOOM_LINEAR_OUT : 0);
}

unsigned loom_node_reads_outputs(const loom_node *n, unsigned wanted) {
    unsigned read = 0;
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
        if (n->out[k] >= 0 && wanted >> k & 1 && n->module->from[k]) read |= 1u << (n->module->from[k] - 1);
    return read & ~wanted;
}

unsigned loom_node_writes_outputs(const loom_tape *t, int node, unsigned wanted) {
    const loom_node *n = &t->node[node];
    const unsigned read = loom_node_reads_outputs(n, wanted) & ~wanted;
    unsigned written = 0;
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
        if (n->out[k] >= 0 && t->value[n->out[k]].node == node) written |= 1u << k;
    return written & ~read & ~(n->module->written_if_wanted & ~wanted);
}

bool loom_node_reads_inputs(const loom_node *n, unsigned wanted) {
    bool has_outputs = false;
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
        if (n->out[k] < 0) continue;
        if (wanted >> k & 1 && !n->module->from[k]) return true;
        has_outputs = true;
    }
    return !has_outputs;
}

void loom_tape_destroy(loom_tape *t) {
    free(t->value);
    free(t->node);
    free(t->parameter);
    free(t->scope);
    *t = (loom_tape){0};
}
