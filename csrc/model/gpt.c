#include "model/gpt.h"

#include "base/check.h"

#include <stdio.h>

/* ---------------------------------------------------------------------------------------------------------------- views */

static loom_view rows_at(const loom_gpt *g, void *data, int64_t columns) {
    return loom_view_2d(data, g->precision.storage, g->rows.B * g->rows.T, columns);
}

/* While generating, keys and values stand behind those of the tokens before. */
static bool is_cached(const loom_gpt *g, const loom_tape_value *v) {
    return v->cached && g->generating;
}

loom_view loom_run_value(const loom_gpt *g, loom_value value) {
    const loom_tape_value *v = &g->tape.value[value];
    void *data = is_cached(g, v) ? loom_element(g->seen[v->scope - 1], g->rows.past * v->columns, g->precision.storage)
                                 : g->memory[value];
    switch (v->kind) {
    case LOOM_VALUE_ROWS: return rows_at(g, data, v->columns);
    case LOOM_VALUE_PER_ROW: return loom_view_1d(data, g->device->statistics, g->rows.B * g->rows.T);
    case LOOM_VALUE_PER_HEAD: return loom_view_3d(data, g->device->statistics, g->rows.B, v->columns, g->rows.T);
    }
    LOOM_CHECK(!"a known kind");
    return (loom_view){0};
}

loom_view loom_run_cached(const loom_gpt *g, loom_value value) {
    const loom_tape_value *v = &g->tape.value[value];
    if (!is_cached(g, v)) return loom_run_value(g, value);
    return loom_view_2d(g->seen[v->scope - 1], g->precision.storage, g->rows.past + g->rows.T, v->columns);
}

/* Gradients on their way back lie in three places, as one after the other is needed: the residual stream's, and those of
 * values as wide as it and wider. */
loom_view loom_run_gradient(const loom_gpt *g, loom_value value) {
    const loom_tape_value *v = &g->tape.value[value];
    void *place = v->residual ? g->dresidual : v->columns <= g->config.n_embd ? g->dnarrow : g->dwide;
    LOOM_CHECK(v->columns <= (v->residual ? 1 : 4) * g->config.n_embd);
    return rows_at(g, place, v->columns);
}

/* A parameter, or its gradient: the same place in another bucket's memory, of another type. */
static loom_view in_bucket(const loom_gpt *g, void *const *buckets, loom_dtype dtype, int index) {
    const loom_parameter *p = &g->layout.parameter[index];
    void *data = loom_element(buckets[p->bucket], p->offset - g->layout.bucket[p->bucket].offset, dtype);
    return p->vector ? loom_view_1d(data, dtype, p->columns) : loom_view_2d(data, dtype, p->padded_rows, p->columns);
}

loom_view loom_run_parameter(const loom_gpt *g, int index) {
    return in_bucket(g, g->bucket_parameters, g->precision.storage, index);
}

loom_view loom_run_parameter_gradient(const loom_gpt *g, int index) {
    return in_bucket(g, g->bucket_gradients, g->precision.gradient, index);
}

loom_view loom_run_heads(const loom_gpt *g, loom_view rows, int part, int parts, int64_t heads) {
    const int64_t columns = rows.shape[3], T = rows.shape[2] / g->rows.B;
    loom_view view = loom_view_4d(loom_element(rows.data, part * (columns / parts), rows.dtype), rows.dtype, g->rows.B,
                                  T, heads, columns / parts / heads);
    view.stride[0] = T * columns;
    view.stride[1] = columns;
    return view;
}

/* --------------------------------------------------------------------------------------------------------------- hooks */

enum { NOT_KNOWN = -1 };

static void acquire(loom_gpt *g, int64_t bucket, int64_t next) {
    if (g->hooks.params_acquire) g->hooks.params_acquire(g->hooks.user, (int)bucket, (int)next);
}

static void release(loom_gpt *g, int64_t bucket) {
    if (g->hooks.params_release) g->hooks.params_release(g->hooks.user, (int)bucket);
}

static void begin_gradient(loom_gpt *g, int64_t bucket) {
    if (g->hooks.grads_acquire) g->hooks.grads_acquire(g->hooks.user, (int)bucket);
}

static void ready(loom_gpt *g, int64_t bucket) {
    if (g->hooks.grads_ready) g->hooks.grads_ready(g->hooks.user, (int)bucket);
}

/* ---------------------------------------------------------------------------------------------------------- profiling */

/* Names for profilers what runs until `end_range`: "forward 3" is block 3's. A recorded step shows them only while it is
 * recorded. */
static void begin_range(loom_gpt *g, const char *what, int64_t l) {
    char name[32];
    if (!g->device->range_push) return;
    snprintf(name, sizeof name, "%s %lld", what, (long long)l);
    g->device->range_push(g->device, name);
}

static void end_range(loom_gpt *g) {
    if (g->device->range_pop) g->device->range_pop(g->device);
}

/* ------------------------------------------------------------------------------------------------------------- forward */

static const unsigned ALL = ~0u;

/* The only forward of a scope's nodes: of them, what is wanted (loom_tape_wanted). */
static void run_nodes(loom_gpt *g, int first, int last, unsigned wanted) {
    for (int i = first; i < last; i++) {
        const loom_node *n = &g->tape.node[i];
        const unsigned outputs = loom_tape_wanted(&g->tape, i, wanted);
        if (outputs) n->module->forward(g, n, outputs);
    }
}

static void run_forward(loom_gpt *g, int scope, unsigned wanted) {
    run_nodes(g, g->tape.scope[scope].first, g->tape.scope[scope].last, wanted);
}

/* Blocks first .. last - 1, one after another; of the last one `last_wanted`. The input of the first is there. What they keep
 * is `for_backward`, or is not needed. */
static void run_blocks(loom_gpt *g, int64_t first, int64_t last, bool for_backward, unsigned last_wanted) {
    for (int64_t l = first; l < last; l++) {
        unsigned wanted = l < last - 1 ? ALL : last_wanted;
        if (l == first) wanted &= ~1u;
        begin_range(g, "forward", l);
        acquire(g, l + 1, l + 1 < last ? l + 2 : NOT_KNOWN);
        run_forward(g, (int)l + 1, wanted);
        release(g, l + 1);
        if (for_backward) loom_offload_after_forward(g, l);
        end_range(g);
    }
}

static void run_end(loom_gpt *g, int scope, int64_t next) {
    acquire(g, scope, next);
    run_forward(g, scope, ALL);
    release(g, scope);
}

static void set_rows(loom_gpt *g, int64_t B, int64_t T, int64_t past, bool generating) {
    g->rows = (loom_rows){B, T, past};
    g->generating = generating;
}

static void forward(loom_gpt *g, bool for_backward) {
    const int64_t L = g->config.n_layer;
    run_end(g, 0, 1);
    run_blocks(g, 0, L, for_backward, ALL);
    run_end(g, (int)L + 1, NOT_KNOWN);
}

void loom_gpt_forward(loom_gpt *g) {
    set_rows(g, g->B, g->T, 0, false);
    forward(g, true);
}

void loom_gpt_forward_alone(loom_gpt *g) {
    set_rows(g, g->B, g->T, 0, false);
    forward(g, false);
}

/* ---------------------------------------------------------------------------------------------- the classifier and loss */

static int64_t at_most(int64_t n, int64_t most) {
    return n < most ? n : most;
}

static void classify(loom_gpt *g, loom_view out, loom_view x) {
    g->exec.ops->matmul_forward(
        &g->exec,
        &(struct loom_matmul_forward){.out = out, .x = x, .weight = loom_run_parameter(g, 0), .transposed = true});
}

/* The two products between rows of x and of logits run group by group, each of the same shape in a chunk of any size:
 * then it is the same plan that computes a row, and the same bits. */
static void classify_in_groups(loom_gpt *g, loom_view logits, loom_view x) {
    for (int64_t first = 0; first < logits.shape[2]; first += g->group_rows) {
        const int64_t n = at_most(logits.shape[2] - first, g->group_rows);
        classify(g, loom_view_rows(logits, first, n), loom_view_rows(x, first, n));
    }
}

static void classify_backward_in_groups(loom_gpt *g, loom_view dx, loom_view dlogits) {
    for (int64_t first = 0; first < dlogits.shape[2]; first += g->group_rows) {
        const int64_t n = at_most(dlogits.shape[2] - first, g->group_rows);
        g->exec.ops->matmul_backward_input(
            &g->exec, &(struct loom_matmul_backward_input){.dx = loom_view_rows(dx, first, n),
                                                           .dout = loom_view_rows(dlogits, first, n),
                                                           .weight = loom_run_parameter(g, 0),
                                                           .transposed = true});
    }
}

void loom_gpt_loss(loom_gpt *g, bool with_gradients, bool accumulate) {
    const int64_t N = g->B * g->T;
    set_rows(g, g->B, g->T, 0, false);
    const loom_view lnf = loom_run_value(g, g->tape.out), dlnf = loom_run_gradient(g, g->tape.out);
    acquire(g, 0, NOT_KNOWN);
    if (with_gradients) begin_gradient(g, 0);
    for (int64_t first = 0; first < N; first += g->chunk_rows) {
        const int64_t n = at_most(N - first, g->chunk_rows);
        const loom_view logits = loom_view_2d(g->logits, g->precision.storage, n, g->padded_vocabulary);
        const loom_view x = loom_view_rows(lnf, first, n);
        classify_in_groups(g, logits, x);
        struct loom_cross_entropy a = {
            .losses = loom_view_1d(loom_element(g->losses, first, g->device->statistics), g->device->statistics, n),
            .logits = logits,
            .targets = loom_view_1d(loom_element(g->targets, first, LOOM_I32), LOOM_I32, n),
            .vocab_size = g->config.vocab_size,
            .scalars = g->scalars};
        if (with_gradients) a.dlogits = logits;
        g->exec.ops->cross_entropy(&g->exec, &a);
        if (!with_gradients) continue;
        classify_backward_in_groups(g, loom_view_rows(dlnf, first, n), logits);
        g->exec.ops->matmul_backward_weight(
            &g->exec, &(struct loom_matmul_backward_weight){.dweight = loom_run_parameter_gradient(g, 0),
                                                            .dout = logits,
                                                            .x = x,
                                                            .transposed = true,
                                                            .accumulate = accumulate || first > 0});
    }
    release(g, 0);
}

/* ------------------------------------------------------------------------------------------------------------ backward */

/* Of a scope's nodes, in reverse. */
static void run_backward(loom_gpt *g, int scope, bool accumulate) {
    const loom_tape_scope *s = &g->tape.scope[scope];
    for (int i = s->last - 1; i >= s->first; i--) g->tape.node[i].module->backward(g, &g->tape.node[i], accumulate);
}

/* What of a block's forward backward needs and a policy (LOOM_KEEP_...) does not keep. */
static unsigned left_to_backward(const loom_gpt *g, unsigned policy) {
    return ~(1u << LOOM_WANT_OUTPUT) & ~loom_tape_kept(&g->tape, 1, policy);
}

/* A block's backward, after computing once more what forward did not keep; `there`: it lies in the scratch already, as
 * the block was the last to run. `next` is the bucket that is read after it. */
static void recompute_and_backward(loom_gpt *g, int64_t l, bool there, int64_t next, bool accumulate) {
    begin_range(g, "backward", l);
    acquire(g, l + 1, next);
    if (!there) run_forward(g, (int)l + 1, left_to_backward(g, g->policy));
    begin_gradient(g, l + 1);
    run_backward(g, (int)l + 1, accumulate);
    release(g, l + 1);
    ready(g, l + 1);
    loom_offload_after_backward(g, l);
    end_range(g);
}

static void last_layernorm_backward(loom_gpt *g, bool accumulate) {
    const int64_t L = g->config.n_layer;
    acquire(g, L + 1, NOT_KNOWN);
    begin_gradient(g, L + 1);
    run_backward(g, (int)L + 1, accumulate);
    release(g, L + 1);
    ready(g, L + 1);
}

static void embedding_backward(loom_gpt *g, bool accumulate) {
    run_backward(g, 0, accumulate);
    ready(g, 0);
}

void loom_gpt_backward(loom_gpt *g, bool accumulate) {
    const int64_t L = g->config.n_layer;
    set_rows(g, g->B, g->T, 0, false);
    last_layernorm_backward(g, accumulate);
    for (int64_t end = L, first; end > 0; end = first) {
        first = (end - 1) / g->segment * g->segment;
        /* The inputs of a segment's blocks; forward left those of the last segment, whose blocks ran last. */
        const bool run_again = end < L && end - first > 1;
        if (run_again) run_blocks(g, first, end, false, ~(1u << LOOM_WANT_OUTPUT));
        /* The segment before it begins with a run of all its blocks, if it has several. */
        const int64_t before = first > 0 ? (g->segment > 1 ? first - g->segment : first - 1) : NOT_KNOWN - 1;
        for (int64_t l = end - 1; l >= first; l--)
            recompute_and_backward(g, l, l == end - 1 && (end == L || run_again), (l > first ? l - 1 : before) + 1,
                                   accumulate);
    }
    embedding_backward(g, accumulate);
}

/* The first block's forward as that of one which is not the first: its first layernorm adds what a block before it left. */
static void run_as_later_block(loom_gpt *g) {
    const loom_tape_scope *s = &g->tape.scope[1];
    loom_node first = g->tape.node[s->first];
    first.in[1] = g->tape.node[s->last - 1].out[0];
    first.module->forward(g, &first, ALL);
    run_nodes(g, s->first + 1, s->last, ALL);
}

void loom_gpt_run_part(loom_gpt *g, loom_gpt_part part, loom_recompute_kind policy) {
    const int L = (int)g->config.n_layer;
    set_rows(g, g->B, g->T, 0, false);
    switch (part) {
    case LOOM_GPT_ENDS:
        run_end(g, 0, 1);
        run_end(g, L + 1, NOT_KNOWN);
        loom_gpt_loss(g, true, false);
        last_layernorm_backward(g, false);
        embedding_backward(g, false);
        break;
    case LOOM_GPT_FORWARD: run_as_later_block(g); break;
    case LOOM_GPT_BACKWARD: run_backward(g, 1, false); break;
    case LOOM_GPT_RECOMPUTE: run_forward(g, 1, left_to_backward(g, 1u << policy)); break;
    }
}

/* ----------------------------------------------------------------------------------------------------------- inference */

void loom_gpt_infer(loom_gpt *g, int64_t n, int64_t past) {
    set_rows(g, 1, n, past, true);
    forward(g, false);
    acquire(g, 0, NOT_KNOWN);
    const loom_view logits = loom_view_2d(g->logits, g->precision.storage, 1, g->padded_vocabulary);
    classify(g, logits, loom_view_rows(loom_run_value(g, g->tape.out), n - 1, 1));
    release(g, 0);
    if (loom_logits_are_narrow(g))
        g->exec.ops->cast(
            &g->exec,
            &(struct loom_cast){.out = loom_view_2d(g->last_logits, LOOM_F32, 1, g->padded_vocabulary), .x = logits});
}
