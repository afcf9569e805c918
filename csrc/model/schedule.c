#include "model/schedule.h"

#include "base/check.h"
#include "model/module.h"
#include "model/offload.h"

#include <stdlib.h>

/* ------------------------------------------------------------------------------------------------------- what is kept */

int loom_tape_saved_values(const loom_tape *t, int layer, loom_value values[LOOM_SET_MOST_VALUES]) {
    const loom_tape_scope *scope = &t->scope[t->first_layer + layer];
    int n = 0;
    for (loom_value v = scope->first_value; v <= scope->last_value; v++) {
        if (t->value[v].scope != t->first_layer + layer || !t->value[v].saved) continue;
        if (v == loom_tape_layer_input(t, layer)) continue;
        LOOM_CHECK(n < LOOM_SET_MOST_VALUES);
        values[n++] = v;
    }
    return n;
}

/* Each layer's set; all that is in no layer, and the layers' inputs, are kept. */
static void keep_sets(const loom_tape *t, const loom_recompute *policy, loom_keep *keep) {
    for (loom_value v = 0; v < t->n_values; v++)
        keep[v] = t->value[v].saved && !t->scope[t->value[v].scope].is_layer ? LOOM_KEEP_ALWAYS : LOOM_KEEP_NOT;
    for (int layer = 0, i = 0, end = policy->set[0].blocks; layer < t->n_layers; layer++) {
        loom_value values[LOOM_SET_MOST_VALUES];
        const int n = loom_tape_saved_values(t, layer, values);
        while (layer >= end) end += policy->set[++i].blocks;
        keep[loom_tape_layer_input(t, layer)] = LOOM_KEEP_ALWAYS;
        for (int k = 0; k < n; k++)
            if (policy->set[i].values >> k & 1) keep[values[k]] = LOOM_KEEP_ALWAYS;
    }
}

void loom_tape_keep(const loom_tape *t, const loom_recompute *policy, loom_keep *keep) {
    const int segment = (int)loom_recompute_segment(policy, t->n_layers);
    const bool by_segment = policy->kind == LOOM_RECOMPUTE_EVERY || policy->kind == LOOM_RECOMPUTE_SQRT;
    const loom_recompute_kind kind = by_segment ? LOOM_RECOMPUTE_BLOCK : policy->kind;
    if (policy->kind == LOOM_RECOMPUTE_SETS) {
        keep_sets(t, policy, keep);
        return;
    }
    for (loom_value v = 0; v < t->n_values; v++) {
        const loom_tape_value *value = &t->value[v];
        const bool in_layer = t->scope[value->scope].is_layer;
        const bool starts = !in_layer || (value->scope - t->first_layer) % segment == 0;
        const bool kept = !in_layer || kind <= t->node[value->node].module->kept_up_to[value->output];
        keep[v] = !value->saved || !kept ? LOOM_KEEP_NOT : starts ? LOOM_KEEP_ALWAYS : LOOM_KEEP_IN_SEGMENT;
    }
    for (int l = 0; l < t->n_layers; l++)
        keep[loom_tape_layer_input(t, l)] = l % segment == 0 ? LOOM_KEEP_ALWAYS : LOOM_KEEP_IN_SEGMENT;
}

/* ------------------------------------------------------------------------------------------------------------ building */

typedef struct builder {
    const loom_tape *tape;
    const loom_keep *keep; /* NULL: no backward follows */
    int segment;
    bool offloads;
    loom_tape_schedule *schedule;
    bool failed; /* there was no memory */

    bool *there;      /* [values] it has been computed, and lies where it was */
    bool *demanded;   /* [values] it is to be computed */
    unsigned *wanted; /* [nodes] the outputs that are to be computed */
    int *writers;     /* [buckets] nodes that have yet to write its gradients, of */
    int *all_writers; /* [buckets] so many */
    int in_scratch;   /* the layer (a scope) that ran last, whose values are there, kept or not; -1 */
    int acquired;     /* bucket; -1 */
    int copied;       /* the segment that is copied, for which compute has not waited; -1 */
} builder;

static void emit(builder *b, loom_tape_step step) {
    loom_tape_schedule *s = b->schedule;
    if (b->failed) return;
    if ((s->n & (s->n - 1)) == 0) {
        loom_tape_step *larger = realloc(s->step, (size_t)(s->n ? 2 * s->n : 1) * sizeof *larger);
        b->failed = !larger;
        if (!larger) return;
        s->step = larger;
    }
    s->step[s->n++] = step;
}

/* Parameters are acquired where a bucket is first read, and released where another one is. */
static void acquire(builder *b, int bucket) {
    if (bucket == b->acquired) return;
    if (b->acquired >= 0) emit(b, (loom_tape_step){LOOM_STEP_RELEASE, .index = b->acquired});
    if (bucket >= 0) emit(b, (loom_tape_step){LOOM_STEP_ACQUIRE, .index = bucket, .next = -1});
    b->acquired = bucket;
}

static void begin_pass(builder *b, int scope, bool backward) {
    emit(b, (loom_tape_step){LOOM_STEP_RANGE, .index = scope, .wanted = backward});
}

static void end_pass(builder *b) {
    acquire(b, -1);
}

static void end_range(builder *b) {
    emit(b, (loom_tape_step){LOOM_STEP_RANGE_END});
}

static void begin_gradients(builder *b, int bucket) {
    if (bucket >= 0 && b->writers[bucket] == b->all_writers[bucket])
        emit(b, (loom_tape_step){LOOM_STEP_BEGIN_GRADIENTS, .index = bucket});
    if (bucket >= 0) b->writers[bucket]--;
}

static int segment_of(const builder *b, int scope) {
    return (scope - b->tape->first_layer) / b->segment;
}

/* A layer's scratch is the next one's, and what a segment keeps goes with it. */
static void take_scratch(builder *b, int scope) {
    const loom_tape *t = b->tape;
    const int before = b->in_scratch;
    if (!b->keep || !t->scope[scope].is_layer) return;
    b->in_scratch = scope;
    if (before < 0 || before == scope) return;
    const bool leaves_segment = segment_of(b, before) != segment_of(b, scope);
    const int first = leaves_segment ? t->first_layer + segment_of(b, before) * b->segment : before;
    const int end = leaves_segment ? first + b->segment : before + 1;
    for (int s = first; s < end && s < t->first_layer + t->n_layers; s++)
        for (loom_value v = t->scope[s].first_value; v <= t->scope[s].last_value; v++) {
            if (t->value[v].scope != s) continue;
            if (b->keep[v] == LOOM_KEEP_NOT ? s == before : b->keep[v] == LOOM_KEEP_IN_SEGMENT && leaves_segment)
                b->there[v] = false;
        }
}

static void wait_for_copy(builder *b) {
    if (b->copied >= 0) emit(b, (loom_tape_step){LOOM_STEP_WAIT});
    b->copied = -1;
}

/* Whether a node writes what the next segment but one keeps, in the slot of what is copied. */
static bool writes_where_is_copied(const builder *b, int node, unsigned wanted) {
    const loom_tape *t = b->tape;
    const unsigned written = loom_node_writes_outputs(t, node, wanted);
    for (int k = 0; k < LOOM_NODE_OUTPUTS && b->copied >= 0; k++) {
        const loom_value v = t->node[node].out[k];
        if (written >> k & 1 && b->keep[v] == LOOM_KEEP_ALWAYS && t->scope[t->value[v].scope].is_layer &&
            segment_of(b, t->value[v].scope) == b->copied + LOOM_SLOTS)
            return true;
    }
    return false;
}

static unsigned all_outputs(const loom_tape *t, int node) {
    unsigned outputs = 0;
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
        const loom_value v = t->node[node].out[k];
        if (v >= 0 && t->value[v].node == node) outputs |= 1u << k;
    }
    return outputs;
}

static void run_forward(builder *b, int node, unsigned wanted) {
    const loom_node *n = &b->tape->node[node];
    const int bucket = loom_node_bucket(b->tape, n);
    if (bucket >= 0) acquire(b, bucket);
    if (b->keep && !n->module->backward) begin_gradients(b, bucket);
    if (writes_where_is_copied(b, node, wanted)) wait_for_copy(b);
    emit(b, (loom_tape_step){LOOM_STEP_FORWARD, .index = node, .wanted = wanted});
    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
        if (wanted >> k & 1) b->there[n->out[k]] = true;
}

static void run_backward(builder *b, int node) {
    const loom_node *n = &b->tape->node[node];
    const int bucket = loom_node_bucket(b->tape, n);
    if (bucket >= 0 && !n->module->backward_reads_no_parameters) acquire(b, bucket);
    begin_gradients(b, bucket);
    emit(b, (loom_tape_step){LOOM_STEP_BACKWARD, .index = node});
}

/* ---------------------------------------------------------------------------------------------------------- recomputing */

static int demand(builder *b, loom_value v) {
    if (v < 0 || b->there[v] || b->demanded[v]) return 0;
    b->demanded[v] = true;
    return 1;
}

/* From what is demanded, and of that `n` values are not there: which outputs of the nodes up to `last` are to be
 * computed. Returns the first node that has to run. */
static int find_wanted(builder *b, int last, int n) {
    const loom_tape *t = b->tape;
    int node = last;
    for (; n > 0; node--) {
        LOOM_CHECK(node >= 0); /* all follows from the tokens */
        const loom_node *at = &t->node[node];
        unsigned wanted = 0;
        for (int k = LOOM_NODE_OUTPUTS - 1; k >= 0; k--) {
            const loom_value v = at->out[k];
            if (v < 0) continue;
            if (loom_node_reads_outputs(at, wanted) >> k & 1) n += demand(b, v);
            if (t->value[v].node != node || !b->demanded[v]) continue;
            b->demanded[v] = false;
            wanted |= 1u << k;
            n--;
        }
        b->wanted[node] = wanted;
        for (int k = 0; k < LOOM_NODE_INPUTS && wanted && loom_node_reads_inputs(at, wanted); k++)
            n += demand(b, at->in[k]);
    }
    return node + 1;
}

static void run_wanted(builder *b, int first, int last) {
    for (int i = first; i <= last; i++) {
        if (b->wanted[i]) run_forward(b, i, b->wanted[i]);
        b->wanted[i] = 0;
    }
}

/* What of a scope's forward its backward reads. */
static int demand_saved(builder *b, int scope) {
    const loom_tape *t = b->tape;
    int n = 0;
    for (int i = t->scope[scope].first; i < t->scope[scope].last; i++) {
        const loom_node *at = &t->node[i];
        for (int k = 0; k < LOOM_NODE_INPUTS; k++)
            if (at->module->needs_in >> k & 1) n += demand(b, at->in[k]);
        for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
            if (loom_node_saves_outputs(at) >> k & 1) n += demand(b, at->out[k]);
    }
    return n;
}

/* A segment's layers, scopes first .. last, once more: what they keep, and what the last one's backward reads. */
static void run_segment_again(builder *b, int first, int last) {
    const loom_tape *t = b->tape;
    int n = demand_saved(b, last);
    for (int s = first; s <= last; s++)
        for (loom_value v = t->scope[s].first_value; v <= t->scope[s].last_value; v++)
            if (t->value[v].scope == s && b->keep[v] != LOOM_KEEP_NOT) n += demand(b, v);
    if (n == 0) return;
    const int from = find_wanted(b, t->scope[last].last - 1, n);
    for (int scope = t->node[from].scope; scope <= last; scope++) {
        const int begin = t->scope[scope].first;
        begin_pass(b, scope, false);
        take_scratch(b, scope);
        run_wanted(b, begin > from ? begin : from, t->scope[scope].last - 1);
        end_pass(b);
        end_range(b);
    }
}

/* ---------------------------------------------------------------------------------------------------------- offloading */

int loom_segments_that_leave(const loom_tape *t, int segment) {
    return (t->n_layers + segment - 1) / segment - LOOM_SLOTS;
}

/* At a segment's end: compute waits for the copy that ran beside it, whose slot is next; then what compute left behind
 * lets another copy begin, if `segment` is one that leaves. This order keeps compute from waiting for the new copy. */
static void next_copy(builder *b, loom_tape_step_kind kind, int segment) {
    wait_for_copy(b);
    if (segment < 0 || segment >= loom_segments_that_leave(b->tape, b->segment)) return;
    emit(b, (loom_tape_step){kind, .index = segment});
    b->copied = segment;
}

static void offload_after_forward(builder *b, int scope) {
    const int l = scope - b->tape->first_layer;
    if (!b->offloads || !b->tape->scope[scope].is_layer) return;
    if ((l + 1) % b->segment == 0 || l + 1 == b->tape->n_layers) next_copy(b, LOOM_STEP_SEND, l / b->segment);
}

static void offload_after_backward(builder *b, int scope) {
    const int l = scope - b->tape->first_layer;
    if (!b->offloads || !b->tape->scope[scope].is_layer) return;
    if (l % b->segment == 0) next_copy(b, LOOM_STEP_FETCH, l / b->segment - LOOM_SLOTS);
}

/* ------------------------------------------------------------------------------------------------------- both directions */

static void forward(builder *b) {
    const loom_tape *t = b->tape;
    for (int scope = 0; scope < t->n_scopes; scope++) {
        begin_pass(b, scope, false);
        take_scratch(b, scope);
        for (int i = t->scope[scope].first; i < t->scope[scope].last; i++) run_forward(b, i, all_outputs(t, i));
        end_pass(b);
        offload_after_forward(b, scope);
        end_range(b);
    }
}

static void backward_of_scope(builder *b, int scope) {
    const loom_tape *t = b->tape;
    const int last = t->scope[scope].last - 1;
    begin_pass(b, scope, true);
    const int n = demand_saved(b, scope);
    if (n > 0) {
        const int from = find_wanted(b, last, n);
        take_scratch(b, scope);
        run_wanted(b, from, last);
    }
    for (int i = last; i >= t->scope[scope].first; i--)
        if (t->node[i].module->backward) run_backward(b, i);
    end_pass(b);
    for (int bucket = t->n_buckets - 1; bucket >= 0; bucket--) {
        if (b->writers[bucket] != 0) continue;
        emit(b, (loom_tape_step){LOOM_STEP_READY, .index = bucket});
        b->writers[bucket] = -1;
    }
    offload_after_backward(b, scope);
    end_range(b);
}

static void backward(builder *b) {
    const loom_tape *t = b->tape;
    for (int scope = t->n_scopes - 1; scope >= 0; scope--) {
        const int l = scope - t->first_layer;
        const bool ends_segment = (l + 1) % b->segment == 0 && l + 1 < t->n_layers;
        if (t->scope[scope].is_layer && b->segment > 1 && ends_segment)
            run_segment_again(b, scope - b->segment + 1, scope);
        backward_of_scope(b, scope);
    }
}

/* ------------------------------------------------------------------------------------------------------------ schedules */

static bool open(builder *b, loom_tape_schedule *schedule, const loom_tape *t) {
    const size_t values = (size_t)t->n_values, nodes = (size_t)t->n_nodes, buckets = (size_t)t->n_buckets;
    b->tape = t;
    b->schedule = schedule;
    b->in_scratch = b->acquired = b->copied = -1;
    b->there = calloc(values, sizeof *b->there);
    b->demanded = calloc(values, sizeof *b->demanded);
    b->wanted = calloc(nodes, sizeof *b->wanted);
    b->writers = calloc(2 * buckets, sizeof *b->writers);
    *schedule = (loom_tape_schedule){0};
    if (!b->there || !b->demanded || !b->wanted || !b->writers) return false;
    b->all_writers = b->writers + buckets;
    for (size_t i = 0; i < nodes; i++) {
        const int bucket = loom_node_bucket(t, &t->node[i]);
        if (bucket >= 0) b->writers[bucket] = ++b->all_writers[bucket];
    }
    return true;
}

/* What is acquired next, of each bucket. */
static void find_next(loom_tape_schedule *s) {
    int next = -1;
    for (int i = s->n - 1; i >= 0; i--) {
        if (s->step[i].kind != LOOM_STEP_ACQUIRE) continue;
        s->step[i].next = next;
        next = s->step[i].index;
    }
}

static bool build(builder *b, loom_tape_schedule *schedule, const loom_tape *t, loom_error *error) {
    b->failed = !open(b, schedule, t);
    if (!b->failed) {
        forward(b);
        if (b->keep) backward(b);
        find_next(schedule);
    }
    free(b->there);
    free(b->demanded);
    free(b->wanted);
    free(b->writers);
    if (!b->failed) return true;
    loom_tape_schedule_destroy(schedule);
    return loom_fail(error, "no memory for the schedule of a model of %d layers", t->n_layers);
}

bool loom_tape_schedule_train(loom_tape_schedule *schedule, const loom_tape *tape, const loom_keep *keep, int segment,
                              bool offloads, loom_error *error) {
    builder b = {.keep = keep, .segment = segment, .offloads = offloads};
    return build(&b, schedule, tape, error);
}

bool loom_tape_schedule_forward(loom_tape_schedule *schedule, const loom_tape *tape, loom_error *error) {
    builder b = {.segment = 1};
    return build(&b, schedule, tape, error);
}

void loom_tape_schedule_destroy(loom_tape_schedule *schedule) {
    free(schedule->step);
    *schedule = (loom_tape_schedule){0};
}

/* Within one tape. */
static bool are_alike(const loom_tape *t, const loom_tape_step *a, const loom_tape_step *b) {
    const loom_node *n = &t->node[a->index], *m = &t->node[b->index];
    return a->kind == b->kind && n->like == m->like &&
           loom_node_reads_inputs(n, a->wanted) == loom_node_reads_inputs(m, b->wanted);
}

int loom_tape_classes(const loom_tape *t, const loom_tape_schedule *s, loom_tape_class classes[LOOM_MOST_CLASSES]) {
    int n = 0;
    for (const loom_tape_step *step = s->step; step < s->step + s->n; step++) {
        int i = 0;
        if (step->kind != LOOM_STEP_FORWARD && step->kind != LOOM_STEP_BACKWARD) continue;
        while (i < n && !are_alike(t, classes[i].step, step)) i++;
        LOOM_CHECK(i < LOOM_MOST_CLASSES);
        if (i == n) classes[n++] = (loom_tape_class){step, 0};
        classes[i].count++;
    }
    return n;
}
