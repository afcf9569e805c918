#include "model/tape.h"

#include "base/check.h"
#include "model/module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -------------------------------------------------------------------------------------------------------- what is there */

/* The array with room for one more element than its n: it grows by doubling. Without memory, as it was. */
static void *grown(loom_tape *t, void *array, int n, size_t size) {
    if (t->failed || (n & (n - 1)) != 0) return array;
    void *larger = realloc(array, (size_t)(n ? 2 * n : 1) * size);
    if (!larger) t->failed = true;
    return larger ? larger : array;
}

static loom_value add_value(loom_tape *t, loom_value_kind kind, int64_t columns) {
    t->value = grown(t, t->value, t->n_values, sizeof *t->value);
    if (t->failed) return 0;
    t->value[t->n_values] = (loom_tape_value){.kind = kind, .columns = columns, .node = -1, .in_scope = -1};
    return t->n_values++;
}

/* NULL where there is no memory, now or before. */
static loom_node *add_node(loom_tape *t, const loom_module *module) {
    t->node = grown(t, t->node, t->n_nodes, sizeof *t->node);
    if (t->failed) return NULL;
    loom_node *n = &t->node[t->n_nodes++];
    *n = (loom_node){.module = module, .scope = t->n_scopes - 1, .parameter = {-1, -1}};
    for (int i = 0; i < LOOM_NODE_INPUTS; i++) n->in[i] = LOOM_NO_VALUE;
    for (int i = 0; i < LOOM_NODE_OUTPUTS; i++) n->out[i] = LOOM_NO_VALUE;
    return n;
}

/* (rows, columns), or with 0 rows a vector. */
static int add_parameter(loom_tape *t, const char *name, const char *part, int64_t rows, int64_t columns,
                         loom_initial initial) {
    t->parameter = grown(t, t->parameter, t->n_parameters, sizeof *t->parameter);
    if (t->failed) return -1;
    loom_tape_parameter *p = &t->parameter[t->n_parameters];
    *p = (loom_tape_parameter){
        .rows = rows, .columns = columns, .padded_rows = rows, .scope = t->n_scopes - 1, .initial = initial};
    snprintf(p->name, sizeof p->name, "%s%s.%s", t->scope[p->scope].prefix, name, part);
    return t->n_parameters++;
}

static int64_t columns_of(const loom_tape *t, loom_value v) {
    return t->failed ? 1 : t->value[v].columns;
}

/* --------------------------------------------------------------------------------------------------------- declarations */

void loom_scope(loom_tape *t, const char *prefix) {
    t->scope = grown(t, t->scope, t->n_scopes, sizeof *t->scope);
    if (t->failed) return;
    loom_tape_scope *s = &t->scope[t->n_scopes++];
    *s = (loom_tape_scope){0};
    snprintf(s->prefix, sizeof s->prefix, "%s", prefix);
}

loom_value loom_embed(loom_tape *t, int64_t vocab_size, int64_t padded_vocabulary, int64_t positions, int64_t columns) {
    const int token = add_parameter(t, "wte", "weight", vocab_size, columns, LOOM_INITIAL_NORMAL);
    const int position = add_parameter(t, "wpe", "weight", positions, columns, LOOM_INITIAL_NORMAL);
    const loom_value out = add_value(t, LOOM_VALUE_ROWS, columns);
    loom_node *n = add_node(t, &loom_module_embedding);
    if (!n) return 0;
    t->parameter[token].padded_rows = padded_vocabulary;
    n->parameter[0] = token;
    n->parameter[1] = position;
    n->out[0] = out;
    return out;
}

loom_value loom_layernorm(loom_tape *t, loom_value x, const char *name) {
    const int64_t columns = columns_of(t, x);
    const int weight = add_parameter(t, name, "weight", 0, columns, LOOM_INITIAL_ONE);
    const int bias = add_parameter(t, name, "bias", 0, columns, LOOM_INITIAL_ZERO);
    const loom_value out = add_value(t, LOOM_VALUE_ROWS, columns), mean = add_value(t, LOOM_VALUE_PER_ROW, 1);
    const loom_value rstd = add_value(t, LOOM_VALUE_PER_ROW, 1);
    loom_node *n = add_node(t, &loom_module_layernorm);
    if (!n) return 0;
    n->in[0] = x;
    n->out[LOOM_NORM_X] = x;
    n->out[LOOM_NORM_OUT] = out;
    n->out[LOOM_NORM_MEAN] = mean;
    n->out[LOOM_NORM_RSTD] = rstd;
    n->parameter[0] = weight;
    n->parameter[1] = bias;
    return out;
}

loom_value loom_linear(loom_tape *t, loom_value x, int64_t columns, const char *name) {
    const int weight = add_parameter(t, name, "weight", columns_of(t, x), columns, LOOM_INITIAL_NORMAL);
    const int bias = add_parameter(t, name, "bias", 0, columns, LOOM_INITIAL_ZERO);
    const loom_value out = add_value(t, LOOM_VALUE_ROWS, columns);
    loom_node *n = add_node(t, &loom_module_linear);
    if (!n) return 0;
    n->in[0] = x;
    n->out[0] = out;
    n->parameter[0] = weight;
    n->parameter[1] = bias;
    return out;
}

loom_value loom_attention(loom_tape *t, loom_value qkv, int64_t heads) {
    const loom_value out = add_value(t, LOOM_VALUE_ROWS, columns_of(t, qkv) / 3);
    const loom_value lse = add_value(t, LOOM_VALUE_PER_HEAD, heads);
    loom_node *n = add_node(t, &loom_module_attention);
    if (!n) return 0;
    n->in[0] = qkv;
    n->out[0] = out;
    n->out[1] = lse;
    n->heads = heads;
    t->value[qkv].cached = true;
    return out;
}

loom_value loom_activate(loom_tape *t, loom_value x, loom_activation activation) {
    const loom_value out = add_value(t, LOOM_VALUE_ROWS, columns_of(t, x));
    loom_node *n = add_node(t, &loom_module_activation);
    if (!n) return 0;
    n->in[0] = x;
    n->out[0] = out;
    n->activation = activation;
    return out;
}

/* The weight whose product is added to the residual stream is initialised for it. */
loom_value loom_residual(loom_tape *t, loom_value x, loom_value delta) {
    const loom_value out = add_value(t, LOOM_VALUE_ROWS, columns_of(t, x));
    const loom_node *before = t->n_nodes ? &t->node[t->n_nodes - 1] : NULL;
    if (before && before->module == &loom_module_linear && before->out[0] == delta)
        t->parameter[before->parameter[0]].initial = LOOM_INITIAL_NORMAL_RESIDUAL;
    loom_node *n = add_node(t, &loom_module_add);
    if (!n) return 0;
    n->in[0] = x;
    n->in[1] = delta;
    n->out[0] = out;
    t->value[x].residual = t->value[delta].residual = t->value[out].residual = true;
    return out;
}

/* --------------------------------------------------------------------------------------------------------------- fusion
 * Ops compute some neighbours together: they become one node. */

/* x + delta, and the layernorm of the sum: the sum is what is normed. */
static bool fuse_add(const loom_node *n, loom_node *next) {
    if (n->module != &loom_module_add || next->module != &loom_module_layernorm || next->in[0] != n->out[0])
        return false;
    next->in[0] = n->in[0];
    next->in[1] = n->in[1];
    return true;
}

/* A linear layer and the activation of its output, which are its first and its second output then. */
static bool fuse_activation(const loom_node *n, loom_node *next) {
    if (n->module != &loom_module_linear || next->module != &loom_module_activation || next->in[0] != n->out[0])
        return false;
    const loom_value activated = next->out[0];
    const loom_activation activation = next->activation;
    *next = *n;
    next->activation = activation;
    next->out[LOOM_LINEAR_ACTIVATED] = activated;
    return true;
}

static void fuse(loom_tape *t) {
    int n = 0;
    for (int i = 0; i < t->n_nodes; i++)
        if (i + 1 == t->n_nodes ||
            (!fuse_add(&t->node[i], &t->node[i + 1]) && !fuse_activation(&t->node[i], &t->node[i + 1])))
            t->node[n++] = t->node[i];
    t->n_nodes = n;
}

/* --------------------------------------------------------------------------------------------------------- what follows */

/* Which nodes a scope has, who writes values, where they lie, and which of them backward reads. */
static void find_writers(loom_tape *t) {
    for (int i = 0; i < t->n_nodes; i++) {
        const loom_node *n = &t->node[i];
        loom_tape_scope *s = &t->scope[n->scope];
        LOOM_CHECK(n->module->forward); /* what cannot run by itself was fused */
        if (s->last == 0) s->first = i;
        s->last = i + 1;
        for (int k = 0; k < LOOM_NODE_INPUTS; k++)
            if (n->in[k] >= 0 && n->module->needs_in >> k & 1) t->value[n->in[k]].saved = true;
        for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
            if (n->out[k] < 0) continue;
            loom_tape_value *v = &t->value[n->out[k]];
            if (v->node < 0) v->node = i, v->output = k;
            v->last_node = i;
            v->scope = n->scope;
            v->saved = v->saved || n->module->needs_out >> k & 1 || (k == LOOM_LINEAR_OUT && n->activation);
        }
    }
}

static void find_readers(loom_tape *t) {
    for (int i = 0; i < t->n_nodes; i++)
        for (int k = 0; k < LOOM_NODE_INPUTS; k++) {
            if (t->node[i].in[k] < 0) continue;
            loom_tape_value *v = &t->value[t->node[i].in[k]];
            LOOM_CHECK(v->residual || !v->is_read); /* its gradient is written, not added to */
            v->is_read = true;
            v->read_later = v->read_later || i > v->last_node;
        }
}

/* The numbers of saved values in their scopes, and by which bit of a set each value is wanted. */
static void number_saved(loom_tape *t) {
    for (int i = 0; i < t->n_nodes; i++)
        for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
            const int scope = t->node[i].scope;
            loom_tape_value *v = t->node[i].out[k] >= 0 ? &t->value[t->node[i].out[k]] : NULL;
            if (v && v->saved && v->scope == scope && v->in_scope < 0) v->in_scope = t->scope[scope].n_saved++;
        }
    for (int s = 0; s < t->n_scopes; s++) LOOM_CHECK(t->scope[s].n_saved <= LOOM_WANT_OUTPUT);
    for (int i = 0; i < t->n_values; i++)
        t->value[i].wanted_bit = t->value[i].saved ? t->value[i].in_scope : LOOM_WANT_OUTPUT;
    for (int i = 0; i < t->n_nodes; i++) {
        const loom_value delta = t->node[i].in[1];
        if (delta >= 0 && t->node[t->value[delta].node].scope == t->node[i].scope)
            t->value[delta].wanted_bit = t->value[t->node[i].out[LOOM_NORM_X]].in_scope;
    }
}

bool loom_tape_create(loom_tape *t, const loom_gpt_config *config, loom_error *error) {
    *t = (loom_tape){0};
    t->out = loom_gpt2(t, config);
    if (t->failed) {
        loom_tape_destroy(t);
        return loom_fail(error, "no memory to describe a model of %lld layers", (long long)config->n_layer);
    }
    t->value[t->out].saved = true;
    fuse(t);
    find_writers(t);
    find_readers(t);
    number_saved(t);
    return true;
}

/* A scope's input is kept by all policies that train. */
unsigned loom_tape_kept(const loom_tape *t, int scope, unsigned policy) {
    unsigned kept = 0;
    for (int i = 0; i < t->scope[scope].n_saved; i++) {
        const loom_tape_value *v = &t->value[loom_tape_saved(t, scope, i)];
        const unsigned by = (i == 0 ? LOOM_KEEP_UP_TO_BLOCK : t->node[v->node].module->kept[v->output]) |
                            (v->cached ? LOOM_KEEP_INFERENCE : 0);
        if (by & policy) kept |= 1u << i;
    }
    return kept;
}

unsigned loom_tape_wanted(const loom_tape *t, int node, unsigned values) {
    unsigned outputs = 0;
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
        const loom_value out = t->node[node].out[k];
        if (out >= 0 && t->value[out].node == node) outputs |= (values >> t->value[out].wanted_bit & 1u) << k;
    }
    return outputs;
}

loom_value loom_tape_saved(const loom_tape *t, int scope, int in_scope) {
    for (int i = t->scope[scope].first; i < t->scope[scope].last; i++)
        for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
            const loom_value out = t->node[i].out[k];
            if (out >= 0 && t->value[out].scope == scope && t->value[out].in_scope == in_scope) return out;
        }
    LOOM_CHECK(!"a saved value of this scope");
    return LOOM_NO_VALUE;
}

void loom_tape_destroy(loom_tape *t) {
    free(t->value);
    free(t->node);
    free(t->parameter);
    free(t->scope);
    *t = (loom_tape){0};
}

/* What is only ever a part of another node. */
const loom_module loom_module_add = {.name = "add"}, loom_module_activation = {.name = "activation"};
