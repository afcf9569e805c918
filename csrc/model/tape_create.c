/* Creates a tape: the architecture's declaration appends modules to it (tape.c), and then follows which nodes one op
 * computes, what backward reads, and where gradients add. */
#include "model/tape.h"

#include "base/check.h"
#include "model/module.h"
#include "model/schedule.h"

#include <stdlib.h>
#include <string.h>

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

/* The gradients that a node writes, in the order in which a micro-batch runs: what is written a second time is added.
 * */
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
