#include "model/gpt.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------------------------- views */

/* A block's parameters, in the layout's order. */
enum {
    LN1_WEIGHT,
    LN1_BIAS,
    QKV_WEIGHT,
    QKV_BIAS,
    PROJECTION_WEIGHT,
    PROJECTION_BIAS,
    LN2_WEIGHT,
    LN2_BIAS,
    FC_WEIGHT,
    FC_BIAS,
    FC_PROJECTION_WEIGHT,
    FC_PROJECTION_BIAS,
    PER_BLOCK
};

/* What is run: B sequences of T tokens, standing behind `past` tokens whose keys and values are kept (then B is 1). */
typedef struct span {
    int64_t B, T, past;
} span;

/* A parameter, or its gradient: the same place in another bucket's memory, of another type. */
static loom_view in_bucket(const loom_gpt *g, void *const *buckets, loom_dtype dtype, int index) {
    const loom_parameter *p = &g->layout.parameter[index];
    void *data = loom_element(buckets[p->bucket], p->offset - g->layout.bucket[p->bucket].offset, dtype);
    return p->vector ? loom_view_1d(data, dtype, p->columns) : loom_view_2d(data, dtype, p->padded_rows, p->columns);
}

static loom_view parameter(const loom_gpt *g, int index) {
    return in_bucket(g, g->bucket_parameters, g->precision.storage, index);
}

static loom_view gradient(const loom_gpt *g, int index) {
    return in_bucket(g, g->bucket_gradients, g->precision.gradient, index);
}

static int block_index(int64_t l, int index) {
    return 2 + (int)l * PER_BLOCK + index;
}

static loom_view block_weight(const loom_gpt *g, int64_t l, int index) {
    return parameter(g, block_index(l, index));
}

static loom_view block_gradient(const loom_gpt *g, int64_t l, int index) {
    return gradient(g, block_index(l, index));
}

static int final_index(const loom_gpt *g, int index) {
    return block_index(g->config.n_layer, index);
}

/* (N, width * C) in the storage type. */
static loom_view rows(const loom_gpt *g, void *data, span s, int64_t width) {
    return loom_view_2d(data, g->precision.storage, s.B * s.T, width * g->config.n_embd);
}

static loom_view statistics(const loom_gpt *g, void *data, span s) {
    return loom_view_1d(data, g->device->statistics, s.B * s.T);
}

/* One of the three parts of packed (B,T,3,H,D): 0 queries, 1 keys, 2 values; T rows from row `first` on. */
static loom_view part_of_qkv(const loom_gpt *g, void *qkv, int part, int64_t B, int64_t first, int64_t T) {
    const int64_t C = g->config.n_embd, H = g->config.n_head, D = C / H;
    loom_view view = loom_view_4d(loom_element(qkv, first * 3 * C + part * C, g->precision.storage),
                                  g->precision.storage, B, T, H, D);
    view.stride[0] = T * 3 * C;
    view.stride[1] = 3 * C;
    return view;
}

static loom_view heads(const loom_gpt *g, void *data, span s) {
    const int64_t H = g->config.n_head;
    return loom_view_4d(data, g->precision.storage, s.B, s.T, H, g->config.n_embd / H);
}

static loom_view per_head(const loom_gpt *g, void *data, span s) {
    return loom_view_3d(data, g->device->statistics, s.B, g->config.n_head, s.T);
}

static loom_view per_row_ids(int32_t *ids, span s) {
    return loom_view_3d(ids, LOOM_I32, 1, s.B, s.T);
}

static loom_view embedded(const loom_gpt *g, void *data, span s) {
    return loom_view_3d(data, g->precision.storage, s.B, s.T, g->config.n_embd);
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

static void layernorm(loom_gpt *g, span s, void *out, void *mean, void *rstd, loom_view x, const loom_view *delta,
                      void *sum, loom_view weight, loom_view bias) {
    struct loom_layernorm_forward a = {.out = rows(g, out, s, 1),
                                       .mean = statistics(g, mean, s),
                                       .rstd = statistics(g, rstd, s),
                                       .x = x,
                                       .weight = weight,
                                       .bias = bias,
                                       .epsilon = LOOM_LAYERNORM_EPSILON};
    if (delta) {
        a.delta = *delta;
        a.sum = rows(g, sum, s, 1);
    }
    g->exec.ops->layernorm_forward(&g->exec, &a);
}

static loom_activation mlp_activation(const loom_gpt *g) {
    return g->config.activation == LOOM_GPT_RELU ? LOOM_ACTIVATION_RELU : LOOM_ACTIVATION_GELU;
}

/* What a block's forward is made of; each step computes what is said beside it and is run if that is wanted. `x` lies in
 * acts already, or is residual + delta. */

/* X, LN1 and its statistics */
static void first_layernorm(loom_gpt *g, int64_t l, void *const *acts, loom_view residual, const loom_view *delta,
                            span s) {
    layernorm(g, s, acts[LOOM_ACT_LN1], acts[LOOM_ACT_MEAN1], acts[LOOM_ACT_RSTD1], residual, delta, acts[LOOM_ACT_X],
              block_weight(g, l, LN1_WEIGHT), block_weight(g, l, LN1_BIAS));
}

/* QKV */
static void project_qkv(loom_gpt *g, int64_t l, void *const *acts, span s) {
    void *qkv_rows = loom_element(acts[LOOM_ACT_QKV], s.past * 3 * g->config.n_embd, g->precision.storage);
    g->exec.ops->matmul_forward(&g->exec, &(struct loom_matmul_forward){.out = rows(g, qkv_rows, s, 3),
                                                                        .x = rows(g, acts[LOOM_ACT_LN1], s, 1),
                                                                        .weight = block_weight(g, l, QKV_WEIGHT),
                                                                        .bias = block_weight(g, l, QKV_BIAS)});
}

/* ATT, LSE */
static void attend(loom_gpt *g, void *const *acts, span s) {
    const int64_t D = g->config.n_embd / g->config.n_head, seen = s.past + s.T;
    g->exec.ops->attention_forward(
        &g->exec, &(struct loom_attention_forward){.out = heads(g, acts[LOOM_ACT_ATT], s),
                                                   .lse = per_head(g, acts[LOOM_ACT_LSE], s),
                                                   .q = part_of_qkv(g, acts[LOOM_ACT_QKV], 0, s.B, s.past, s.T),
                                                   .k = part_of_qkv(g, acts[LOOM_ACT_QKV], 1, s.B, 0, seen),
                                                   .v = part_of_qkv(g, acts[LOOM_ACT_QKV], 2, s.B, 0, seen),
                                                   .first_query = s.past,
                                                   .scale = 1 / sqrtf((float)D)});
}

/* LN2 and its statistics, from MID; or from x + projection, which is MID, where that is wanted too. */
static void second_layernorm(loom_gpt *g, int64_t l, void *const *acts, span s, bool mid_is_wanted) {
    const loom_view projection = rows(g, g->delta, s, 1);
    if (mid_is_wanted)
        g->exec.ops->matmul_forward(&g->exec,
                                    &(struct loom_matmul_forward){.out = projection,
                                                                  .x = rows(g, acts[LOOM_ACT_ATT], s, 1),
                                                                  .weight = block_weight(g, l, PROJECTION_WEIGHT),
                                                                  .bias = block_weight(g, l, PROJECTION_BIAS)});
    layernorm(g, s, acts[LOOM_ACT_LN2], acts[LOOM_ACT_MEAN2], acts[LOOM_ACT_RSTD2],
              rows(g, acts[mid_is_wanted ? LOOM_ACT_X : LOOM_ACT_MID], s, 1), mid_is_wanted ? &projection : NULL,
              acts[LOOM_ACT_MID], block_weight(g, l, LN2_WEIGHT), block_weight(g, l, LN2_BIAS));
}

/* HIDDEN, from FC. */
static void activate(loom_gpt *g, void *const *acts, span s) {
    const loom_view out = rows(g, acts[LOOM_ACT_HIDDEN], s, 4), x = rows(g, acts[LOOM_ACT_FC], s, 4);
    if (mlp_activation(g) == LOOM_ACTIVATION_RELU)
        g->exec.ops->relu_forward(&g->exec, &(struct loom_relu_forward){.out = out, .x = x});
    else
        g->exec.ops->gelu_forward(&g->exec, &(struct loom_gelu_forward){.out = out, .x = x});
}

/* FC and HIDDEN */
static void widen(loom_gpt *g, int64_t l, void *const *acts, span s) {
    g->exec.ops->matmul_forward(&g->exec,
                                &(struct loom_matmul_forward){.out = rows(g, acts[LOOM_ACT_HIDDEN], s, 4),
                                                              .preactivation = rows(g, acts[LOOM_ACT_FC], s, 4),
                                                              .x = rows(g, acts[LOOM_ACT_LN2], s, 1),
                                                              .weight = block_weight(g, l, FC_WEIGHT),
                                                              .bias = block_weight(g, l, FC_BIAS),
                                                              .activation = mlp_activation(g)});
}

/* The output */
static void narrow(loom_gpt *g, int64_t l, void *const *acts, span s) {
    g->exec.ops->matmul_forward(&g->exec,
                                &(struct loom_matmul_forward){.out = rows(g, g->delta, s, 1),
                                                              .x = rows(g, acts[LOOM_ACT_HIDDEN], s, 4),
                                                              .weight = block_weight(g, l, FC_PROJECTION_WEIGHT),
                                                              .bias = block_weight(g, l, FC_PROJECTION_BIAS)});
}

/* The only forward of a block, from x = residual + delta (delta may be absent: then residual is x, and there already):
 *   x -> ln1 -> qkv -> att -> projection;   mid = x + projection;   mid -> ln2 -> fc -> activation -> delta
 * The caller adds delta to mid: the next block does, or the final layernorm. It computes what of it is `wanted`, a set
 * of activations; what they need and is not wanted is there already, from an earlier run. */
static void block_forward(loom_gpt *g, int64_t l, void *const *acts, loom_view residual, const loom_view *delta, span s,
                          unsigned wanted) {
    if (wanted & loom_act_bit(LOOM_ACT_LN1)) first_layernorm(g, l, acts, residual, delta, s);
    if (wanted & loom_act_bit(LOOM_ACT_QKV)) project_qkv(g, l, acts, s);
    if (wanted & loom_act_bit(LOOM_ACT_ATT)) attend(g, acts, s);
    if (wanted & loom_act_bit(LOOM_ACT_LN2)) second_layernorm(g, l, acts, s, wanted & loom_act_bit(LOOM_ACT_MID));
    if (wanted & loom_act_bit(LOOM_ACT_FC))
        widen(g, l, acts, s);
    else if (wanted & loom_act_bit(LOOM_ACT_HIDDEN))
        activate(g, acts, s);
    if (wanted & loom_act_bit(LOOM_ACT_OUTPUT)) narrow(g, l, acts, s);
}

/* Where a block's activations lie; `generating`, its keys and values are those of the tokens seen. */
static void find_activations(const loom_gpt *g, int64_t l, bool generating, void *acts[LOOM_ACT_COUNT]) {
    memcpy(acts, g->acts[l], sizeof g->acts[l]);
    if (generating) acts[LOOM_ACT_QKV] = g->seen[l];
}

/* What blocks run forward for. */
typedef enum purpose {
    FOR_BACKWARD, /* which comes later, and for which they are kept */
    FOR_LOSS,     /* alone, or to have the inputs of a segment's blocks once more */
    FOR_A_TOKEN   /* with the keys and values of those before it */
} purpose;

/* Blocks first .. last - 1, one after another, from x of the first, which is there; of the last one `last_wanted`. */
static void run_blocks(loom_gpt *g, int64_t first, int64_t last, span s, purpose what_for, unsigned last_wanted) {
    loom_view residual = rows(g, g->acts[first][LOOM_ACT_X], s, 1);
    const loom_view delta = rows(g, g->delta, s, 1);
    for (int64_t l = first; l < last; l++) {
        void *acts[LOOM_ACT_COUNT];
        find_activations(g, l, what_for == FOR_A_TOKEN, acts);
        begin_range(g, "forward", l);
        acquire(g, l + 1, l + 1 < last ? l + 2 : NOT_KNOWN);
        block_forward(g, l, acts, residual, l > first ? &delta : NULL, s, l < last - 1 ? LOOM_ACT_ALL : last_wanted);
        release(g, l + 1);
        if (what_for == FOR_BACKWARD) loom_offload_after_forward(g, l);
        end_range(g);
        residual = rows(g, acts[LOOM_ACT_MID], s, 1);
    }
}

static void embed(loom_gpt *g, span s) {
    void *x = g->acts[0][LOOM_ACT_X];
    acquire(g, 0, 1);
    g->exec.ops->embedding_forward(&g->exec, &(struct loom_embedding_forward){.out = embedded(g, x, s),
                                                                              .tokens = per_row_ids(g->tokens, s),
                                                                              .token_weight = parameter(g, 0),
                                                                              .position_weight = parameter(g, 1),
                                                                              .first_position = s.past});
    release(g, 0);
}

/* After the last block, whose output is added to the residual stream. */
static void last_layernorm(loom_gpt *g, span s) {
    const int64_t L = g->config.n_layer;
    const loom_view residual = rows(g, g->acts[L - 1][LOOM_ACT_MID], s, 1), delta = rows(g, g->delta, s, 1);
    acquire(g, L + 1, NOT_KNOWN);
    layernorm(g, s, g->lnf, g->meanf, g->rstdf, residual, &delta, g->last, parameter(g, final_index(g, 0)),
              parameter(g, final_index(g, 1)));
    release(g, L + 1);
}

static void forward(loom_gpt *g, span s, purpose what_for) {
    embed(g, s);
    run_blocks(g, 0, g->config.n_layer, s, what_for, LOOM_ACT_ALL);
    last_layernorm(g, s);
}

void loom_gpt_forward(loom_gpt *g) {
    forward(g, (span){g->B, g->T, 0}, FOR_BACKWARD);
}

void loom_gpt_forward_alone(loom_gpt *g) {
    forward(g, (span){g->B, g->T, 0}, FOR_LOSS);
}

/* ---------------------------------------------------------------------------------------------- the classifier and loss */

static int64_t at_most(int64_t n, int64_t most) {
    return n < most ? n : most;
}

static void classify(loom_gpt *g, loom_view out, loom_view x) {
    g->exec.ops->matmul_forward(
        &g->exec, &(struct loom_matmul_forward){.out = out, .x = x, .weight = parameter(g, 0), .transposed = true});
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
                                                           .weight = parameter(g, 0),
                                                           .transposed = true});
    }
}

void loom_gpt_loss(loom_gpt *g, bool with_gradients, bool accumulate) {
    const span s = {g->B, g->T, 0};
    const int64_t N = s.B * s.T;
    const loom_view lnf = rows(g, g->lnf, s, 1), dlnf = rows(g, g->dnarrow, s, 1);
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
            &g->exec, &(struct loom_matmul_backward_weight){.dweight = gradient(g, 0),
                                                            .dout = logits,
                                                            .x = x,
                                                            .transposed = true,
                                                            .accumulate = accumulate || first > 0});
    }
    release(g, 0);
}

/* ------------------------------------------------------------------------------------------------------------ backward */

static void layernorm_backward(loom_gpt *g, span s, void *dx, loom_view dout, bool has_skip, void *x, void *mean,
                               void *rstd, int weight_index, bool accumulate) {
    struct loom_layernorm_backward a = {.dx = rows(g, dx, s, 1),
                                        .dweight = gradient(g, weight_index),
                                        .dbias = gradient(g, weight_index + 1),
                                        .dout = dout,
                                        .x = rows(g, x, s, 1),
                                        .weight = parameter(g, weight_index),
                                        .mean = statistics(g, mean, s),
                                        .rstd = statistics(g, rstd, s),
                                        .accumulate = accumulate};
    if (has_skip) a.skip = a.dx;
    g->exec.ops->layernorm_backward(&g->exec, &a);
}

/* Both products of a linear layer: dx from dout, and its weight's and bias's gradients from dout and x. */
static void linear_backward(loom_gpt *g, int64_t l, int weight_index, loom_view dx, loom_view dout, loom_view x,
                            bool accumulate) {
    g->exec.ops->matmul_backward_input(
        &g->exec,
        &(struct loom_matmul_backward_input){.dx = dx, .dout = dout, .weight = block_weight(g, l, weight_index)});
    g->exec.ops->matmul_backward_weight(
        &g->exec, &(struct loom_matmul_backward_weight){.dweight = block_gradient(g, l, weight_index),
                                                        .dbias = block_gradient(g, l, weight_index + 1),
                                                        .dout = dout,
                                                        .x = x,
                                                        .accumulate = accumulate});
}

/* In place: the gradient of the activation's output becomes that of its input, x. */
static void activation_backward(loom_gpt *g, loom_view d, loom_view x) {
    if (mlp_activation(g) == LOOM_ACTIVATION_RELU)
        g->exec.ops->relu_backward(&g->exec, &(struct loom_relu_backward){.dx = d, .dout = d, .x = x});
    else
        g->exec.ops->gelu_backward(&g->exec, &(struct loom_gelu_backward){.dx = d, .dout = d, .x = x});
}

/* dresidual holds the gradient of the block's output and ends as that of its input; each layernorm adds its share. */
static void block_backward(loom_gpt *g, int64_t l, span s, bool accumulate) {
    void *const *acts = g->acts[l];
    const loom_view residual = rows(g, g->dresidual, s, 1), narrow = rows(g, g->dnarrow, s, 1);
    const loom_view wide = rows(g, g->dwide, s, 4), wide3 = rows(g, g->dwide, s, 3);
    linear_backward(g, l, FC_PROJECTION_WEIGHT, wide, residual, rows(g, acts[LOOM_ACT_HIDDEN], s, 4), accumulate);
    activation_backward(g, wide, rows(g, acts[LOOM_ACT_FC], s, 4));
    linear_backward(g, l, FC_WEIGHT, narrow, wide, rows(g, acts[LOOM_ACT_LN2], s, 1), accumulate);
    layernorm_backward(g, s, g->dresidual, narrow, true, acts[LOOM_ACT_MID], acts[LOOM_ACT_MEAN2], acts[LOOM_ACT_RSTD2],
                       block_index(l, LN2_WEIGHT), accumulate);

    linear_backward(g, l, PROJECTION_WEIGHT, narrow, residual, rows(g, acts[LOOM_ACT_ATT], s, 1), accumulate);
    const int64_t D = g->config.n_embd / g->config.n_head;
    g->exec.ops->attention_backward(
        &g->exec, &(struct loom_attention_backward){.dq = part_of_qkv(g, g->dwide, 0, s.B, 0, s.T),
                                                    .dk = part_of_qkv(g, g->dwide, 1, s.B, 0, s.T),
                                                    .dv = part_of_qkv(g, g->dwide, 2, s.B, 0, s.T),
                                                    .dout = heads(g, g->dnarrow, s),
                                                    .out = heads(g, acts[LOOM_ACT_ATT], s),
                                                    .lse = per_head(g, acts[LOOM_ACT_LSE], s),
                                                    .q = part_of_qkv(g, acts[LOOM_ACT_QKV], 0, s.B, 0, s.T),
                                                    .k = part_of_qkv(g, acts[LOOM_ACT_QKV], 1, s.B, 0, s.T),
                                                    .v = part_of_qkv(g, acts[LOOM_ACT_QKV], 2, s.B, 0, s.T),
                                                    .scale = 1 / sqrtf((float)D)});
    linear_backward(g, l, QKV_WEIGHT, narrow, wide3, rows(g, acts[LOOM_ACT_LN1], s, 1), accumulate);
    layernorm_backward(g, s, g->dresidual, narrow, true, acts[LOOM_ACT_X], acts[LOOM_ACT_MEAN1], acts[LOOM_ACT_RSTD1],
                       block_index(l, LN1_WEIGHT), accumulate);
}

/* What of a block's forward backward needs and a policy (LOOM_KEEP_...) does not keep. */
static unsigned left_to_backward(unsigned policy) {
    return LOOM_ACT_ALL & ~loom_act_bit(LOOM_ACT_OUTPUT) & ~loom_act_kept(policy);
}

/* A block's backward, after computing once more what forward did not keep; `there`: it lies in the scratch already, as
 * the block was the last to run. `next` is the bucket that is read after it. */
static void recompute_and_backward(loom_gpt *g, int64_t l, span s, bool there, int64_t next, bool accumulate) {
    const unsigned missing = there ? 0 : left_to_backward(g->policy);
    begin_range(g, "backward", l);
    acquire(g, l + 1, next);
    block_forward(g, l, g->acts[l], rows(g, g->acts[l][LOOM_ACT_X], s, 1), NULL, s, missing);
    begin_gradient(g, l + 1);
    block_backward(g, l, s, accumulate);
    release(g, l + 1);
    ready(g, l + 1);
    loom_offload_after_backward(g, l);
    end_range(g);
}

static void last_layernorm_backward(loom_gpt *g, span s, bool accumulate) {
    const int64_t L = g->config.n_layer;
    acquire(g, L + 1, NOT_KNOWN);
    begin_gradient(g, L + 1);
    layernorm_backward(g, s, g->dresidual, rows(g, g->dnarrow, s, 1), false, g->last, g->meanf, g->rstdf,
                       final_index(g, 0), accumulate);
    release(g, L + 1);
    ready(g, L + 1);
}

static void embedding_backward(loom_gpt *g, span s, bool accumulate) {
    g->exec.ops->embedding_backward(
        &g->exec, &(struct loom_embedding_backward){.token_gradient = gradient(g, 0),
                                                    .position_gradient = gradient(g, 1),
                                                    .dout = embedded(g, g->dresidual, s),
                                                    .tokens = per_row_ids(g->tokens, s),
                                                    .accumulate_tokens = true, /* to the classifier's */
                                                    .accumulate_positions = accumulate});
    ready(g, 0);
}

void loom_gpt_backward(loom_gpt *g, bool accumulate) {
    const span s = {g->B, g->T, 0};
    const int64_t L = g->config.n_layer;
    last_layernorm_backward(g, s, accumulate);
    for (int64_t end = L, first; end > 0; end = first) {
        first = (end - 1) / g->segment * g->segment;
        /* The inputs of a segment's blocks; forward left those of the last segment, whose blocks ran last. */
        const bool run_again = end < L && end - first > 1;
        if (run_again) run_blocks(g, first, end, s, FOR_LOSS, LOOM_ACT_ALL & ~loom_act_bit(LOOM_ACT_OUTPUT));
        /* The segment before it begins with a run of all its blocks, if it has several. */
        const int64_t before = first > 0 ? (g->segment > 1 ? first - g->segment : first - 1) : NOT_KNOWN - 1;
        for (int64_t l = end - 1; l >= first; l--)
            recompute_and_backward(g, l, s, l == end - 1 && (end == L || run_again), (l > first ? l - 1 : before) + 1,
                                   accumulate);
    }
    embedding_backward(g, s, accumulate);
}

void loom_gpt_run_part(loom_gpt *g, loom_gpt_part part, loom_recompute_kind policy) {
    const span s = {g->B, g->T, 0};
    const loom_view x = rows(g, g->acts[0][LOOM_ACT_X], s, 1), delta = rows(g, g->delta, s, 1);
    switch (part) {
    case LOOM_GPT_ENDS:
        embed(g, s);
        last_layernorm(g, s);
        loom_gpt_loss(g, true, false);
        last_layernorm_backward(g, s, false);
        embedding_backward(g, s, false);
        break;
    case LOOM_GPT_FORWARD: block_forward(g, 0, g->acts[0], x, &delta, s, LOOM_ACT_ALL); break;
    case LOOM_GPT_BACKWARD: block_backward(g, 0, s, false); break;
    case LOOM_GPT_RECOMPUTE: block_forward(g, 0, g->acts[0], x, NULL, s, left_to_backward(1u << policy)); break;
    }
}

/* ----------------------------------------------------------------------------------------------------------- inference */

void loom_gpt_infer(loom_gpt *g, int64_t n, int64_t past) {
    const span s = {1, n, past};
    forward(g, s, FOR_A_TOKEN);
    acquire(g, 0, NOT_KNOWN);
    const loom_view logits = loom_view_2d(g->logits, g->precision.storage, 1, g->padded_vocabulary);
    classify(g, logits, loom_view_rows(rows(g, g->lnf, s, 1), n - 1, 1));
    release(g, 0);
    if (loom_logits_are_narrow(g))
        g->exec.ops->cast(
            &g->exec,
            &(struct loom_cast){.out = loom_view_2d(g->last_logits, LOOM_F32, 1, g->padded_vocabulary), .x = logits});
}
