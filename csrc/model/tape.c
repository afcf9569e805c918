#include "model/tape.h"

#include "base/check.h"
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

/* --------------------------------------------------------------------------------------------------------- what follows */

static void fuse(loom_tape *t) {
    int n = 0;
    for (int i = 0; i < t->n_nodes; i++) {
        const loom_node *node = &t->node[i];
        const bool fused = i + 1 < t->n_nodes && node->module->fuse && node->module->fuse(node, &t->node[i + 1]);
        if (!fused) t->node[n++] = *node;
    }
    t->n_nodes = n;
}

/* What all that a layer computes follows from: the sum that its first layernorm makes, or what its first node reads. */
loom_value loom_tape_layer_input(const loom_tape *t, int layer) {
    const loom_node *first = &t->node[t->scope[t->first_layer + layer].first];
    return first->module == &loom_module_layernorm ? first->out[LOOM_NORM_X] : first->in[0];
}

/* Which nodes a scope has, who writes values, and which of them backward reads. */
static void find_writers(loom_tape *t) {
    for (int i = 0; i < t->n_nodes; i++) {
        const loom_node *n = &t->node[i];
        loom_tape_scope *s = &t->scope[n->scope];
        LOOM_CHECK(n->module->forward); /* what cannot run by itself was fused */
        if (s->last == 0) s->first = i;
        s->last = i + 1;
        for (int k = 0; k < LOOM_NODE_INPUTS; k++) {
            if (n->in[k] < 0) continue;
            loom_tape_value *v = &t->value[n->in[k]];
            LOOM_CHECK(
                !v->added); /* backward would come to this node first, and its sum's gradient be more than that */
            v->saved = v->saved || n->module->needs_in >> k & 1;
            v->added = n->in[1] >= 0;
        }
        for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
            if (n->out[k] < 0) continue;
            loom_tape_value *v = &t->value[n->out[k]];
            if (v->node < 0) v->node = i, v->output = k;
            v->scope = n->scope;
            if (k == LOOM_LINEAR_ACTIVATED && n->activation) v->gradient = n->out[LOOM_LINEAR_OUT]; /* in place */
            v->saved = v->saved || loom_node_saves_outputs(n) >> k & 1;
        }
    }
}

static void find_scopes(loom_tape *t) {
    for (int l = 0; l < t->n_layers; l++) t->value[loom_tape_layer_input(t, l)].scope = t->first_layer + l;
    for (int s = 0; s < t->n_scopes; s++) {
        t->scope[s].bucket = -1;
        t->scope[s].first_value = t->n_values;
        t->scope[s].last_value = -1;
    }
    for (loom_value v = 0; v < t->n_values; v++) {
        loom_tape_scope *s = &t->scope[t->value[v].scope];
        if (v < s->first_value) s->first_value = v;
        s->last_value = v;
    }
    for (int i = 0; i < t->n_parameters; i++) {
        int *bucket = &t->scope[t->parameter[i].scope].bucket;
        if (*bucket < 0) *bucket = t->n_buckets++;
    }
}

/* The gradients that a node writes, in the order in which a micro-batch runs: what is written a second time is added. */
static void write_gradients(loom_tape *t, loom_node *n, bool *value, bool *parameter) {
    for (int k = 0; k < LOOM_NODE_INPUTS; k++)
        if (n->in[k] >= 0 && value[t->value[n->in[k]].gradient]) n->adds_in |= 1u << k;
    LOOM_CHECK(!n->adds_in || n->module->adds);
    for (int k = 0; k < LOOM_NODE_INPUTS; k++)
        if (n->in[k] >= 0) value[t->value[n->in[k]].gradient] = true;
    for (int k = 0; k < LOOM_NODE_PARAMETERS; k++) {
        if (n->parameter[k] < 0) continue;
        if (parameter[n->parameter[k]]) n->adds_parameter |= 1u << k;
        parameter[n->parameter[k]] = true;
    }
}

static void find_sums(loom_tape *t) {
    bool *value = calloc((size_t)t->n_values + (size_t)t->n_parameters, sizeof *value);
    t->failed = !value;
    if (!value) return;
    for (int i = 0; i < t->n_nodes; i++)
        if (!t->node[i].module->backward) write_gradients(t, &t->node[i], value, value + t->n_values);
    for (int i = t->n_nodes - 1; i >= 0; i--)
        if (t->node[i].module->backward) write_gradients(t, &t->node[i], value, value + t->n_values);
    free(value);
}

/* The first letters of a node's module, and the sizes that its ops get beside the number of rows. */
enum { NODE_KEY = LOOM_STEP_KEY - 2 };

static void key_of_node(const loom_tape *t, const loom_node *n, int64_t key[NODE_KEY]) {
    int i = 0;
    key[0] = 0;
    strncpy((char *)&key[i++], n->module->name, sizeof *key); /* the same in all processes */
    key[i++] = n->heads;
    key[i++] = n->activation;
    key[i++] = n->adds_in;
    key[i++] = n->adds_parameter;
    for (int k = 0; k < LOOM_NODE_INPUTS; k++) key[i++] = n->in[k] < 0 ? 0 : t->value[n->in[k]].columns;
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) key[i++] = n->out[k] < 0 ? 0 : t->value[n->out[k]].columns;
    for (int k = 0; k < LOOM_NODE_PARAMETERS; k++) {
        const loom_tape_parameter *p = n->parameter[k] < 0 ? NULL : &t->parameter[n->parameter[k]];
        key[i++] = p ? p->rows : 0;
        key[i++] = p ? p->padded_rows : 0;
        key[i++] = p ? p->columns : 0;
    }
    LOOM_CHECK(i == NODE_KEY);
}

static bool are_alike(const loom_tape *t, const loom_node *a, const loom_node *b) {
    int64_t key_a[NODE_KEY], key_b[NODE_KEY];
    key_of_node(t, a, key_a);
    key_of_node(t, b, key_b);
    return !memcmp(key_a, key_b, sizeof key_a);
}

static void find_alike(loom_tape *t) {
    for (int i = 0; i < t->n_nodes; i++) {
        int j = 0;
        while (t->node[j].like != j || !are_alike(t, &t->node[j], &t->node[i])) /* at the latest, i itself */
            if (++j == i) break;
        t->node[i].like = j;
    }
}

bool loom_tape_create(loom_tape *t, const loom_gpt_config *config, loom_error *error) {
    *t = (loom_tape){0};
    loom_declare(t, config);
    if (!t->failed) {
        fuse(t);
        find_writers(t);
        find_scopes(t);
        find_sums(t);
    }
    if (t->failed) {
        loom_tape_destroy(t);
        return loom_fail(error, "no memory to describe a model of %lld layers", (long long)config->n_layer);
    }
    find_alike(t);
    return true;
}

void loom_tape_step_key(const loom_tape *t, const loom_tape_step *step, int64_t key[LOOM_STEP_KEY]) {
    const loom_node *n = &t->node[step->index];
    key_of_node(t, n, key);
    key[NODE_KEY] = step->kind;
    key[NODE_KEY + 1] = loom_node_reads_inputs(n, step->wanted);
}

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
