/* The op table: every operation that the model is made of, one function pointer each, filled once per device. The model
 * calls through it and never knows the device.
 *
 * An op has one name in every room: csrc/cpu/NAME.c is its definition, kernels/NAME.cu its CUDA implementation,
 * csrc/cases/NAME.c its cases. dev/adding-an-op.md walks through adding one.
 *
 * Contract of all ops
 * - Arguments are views in a struct named after the op. Views marked "optional" may be left zero.
 * - Nothing is allocated, nothing fails and nothing waits for the host during a call: shapes and dtypes were asked
 *   about with `supports`, plans were made with `prepare`, scratch lies in the context's workspace, whose size
 *   `workspace` told from shapes alone (data pointers are not looked at by these three).
 * - Outputs are written unless "added to" is said. Gradients that have several parts, of parameters and of what several
 *   products read, take `accumulate`: false writes, true adds.
 * - Outputs may alias inputs only where it is said.
 * - Activations, their gradients and weights may be stored in fp32, bf16 or fp16 (fp64 on the oracle); gradients of
 *   weights in fp32 (fp64) or bf16, the same for all that an op writes; statistics, losses and partial sums are fp32
 *   (fp64 on the oracle); token ids are int32. Arithmetic is fp32 (fp64).
 * - Memory is aligned to 256 bytes as a whole; a view may start at any element of it.
 * - Notation: B batch, T time, N = B*T rows, C channels, H heads, D = C/H, V vocabulary, Vp padded vocabulary. */
#ifndef GPTLOOM_OPS_H
#define GPTLOOM_OPS_H

#include "gptloom/error.h"
#include "gptloom/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ step scalars
 * All that changes from step to step and is read by ops: one small struct in device memory, so that a captured step
 * can be launched again. The host writes `in` before a step and reads `out` after it; `state` stays on the device between
 * steps and belongs to the checkpoint. */
typedef struct loom_scalars_in {
    float learning_rate;
    float beta1, beta2, epsilon; /* AdamW's */
    float weight_decay;
    float clip_norm;     /* gradients are scaled down to this global norm; 0: never */
    float loss_gradient; /* d(step's mean loss) / d(one row's loss): 1 / (targets in the whole step) */
    float spike_z;       /* skip an update whose loss or gradient norm lies this many deviations high; 0: never */
    int32_t loss_scale_interval; /* the loss scale halves when a gradient overflows and doubles after so many updates
                                    without; 0: it stays */
} loom_scalars_in;

typedef struct loom_scalars_out {
    float loss;                               /* the step's mean loss, nats per token */
    float gradient_norm;                      /* of the unscaled gradient, before clipping */
    float gradient_factor;                    /* what AdamW multiplies gradients with: clip factor / loss scale */
    float bias_correction1, bias_correction2; /* 1 - beta^t */
    int32_t skip;                             /* 1: AdamW leaves parameters and moments as they are */
} loom_scalars_out;

typedef struct loom_scalars_state {
    int64_t updates;               /* AdamW's t: updates that were not skipped */
    int64_t skipped;               /* updates that were */
    int64_t observed;              /* steps in the running statistics below */
    double loss_mean, loss_square; /* exponential means of loss and loss^2 */
    double norm_mean, norm_square; /* of the gradient norm */
    float loss_scale;              /* gradients are this much too large on their way back, so that fp16 holds the small
                                      ones: a power of two; 1 where nothing needs it   (Micikevicius et al., "Mixed
                                      Precision Training", 2018) */
    int32_t loss_scale_age;        /* updates since it last changed */
} loom_scalars_state;

typedef struct loom_scalars {
    loom_scalars_in in;
    loom_scalars_out out;
    loom_scalars_state state;
} loom_scalars;

/* ------------------------------------------------------------------------------------------------------- arguments
 * Behind each struct stand its views, in a list from which all that must know them is made: what `supports` checks, the bytes
 * of loom_op_work, what --check-finite looks at. VIEW(member, storage, access, what it is called):
 *
 *   storage   MODEL: the model's storage dtype, one for all such views of a call; REALS: fp32 (fp64 on the oracle);
 *             REALS_OR_BF16: gradients of weights, and what AdamW updates; IDS: int32; ANY: any, each for itself
 *   access    READ, WRITTEN, READ | WRITTEN, or ADDED_IF(flag): written, or added to where that member is true;
 *             | OPTIONAL: it may be left zero
 *   called    the name of an output in --check-finite's messages; without it, the view is skipped there. If one output is
 *             computed from another, the computed one is listed first
 *
 * Behind the last struct of a family, which are the ops of one file in csrc/cpu, kernels and csrc/cases, stand its ops.
 * */

/* out[b,t,:] = token_weight[tokens[b,t],:] + position_weight[first_position + t,:]   (GPT-2 paper, section 2.3) */
struct loom_embedding_forward {
    loom_view out;             /* (B,T,C) */
    loom_view tokens;          /* (1,B,T) int32, each below token_weight's rows */
    loom_view token_weight;    /* (Vp,C) */
    loom_view position_weight; /* (P,C), P >= first_position + T */
    int64_t first_position;
};
#define LOOM_VIEWS_embedding_forward(VIEW)                                                                             \
    VIEW(out, MODEL, WRITTEN, "the output")                                                                            \
    VIEW(tokens, IDS, READ)                                                                                            \
    VIEW(token_weight, MODEL, READ)                                                                                    \
    VIEW(position_weight, MODEL, READ)

/* Both gradients in one fixed order of additions, each element rounded to its storage once. With accumulate false the
 * whole table is written, zeros where no token or position fell. */
struct loom_embedding_backward {
    loom_view token_gradient;    /* (Vp,C) */
    loom_view position_gradient; /* (P,C) */
    loom_view dout;              /* (B,T,C) */
    loom_view tokens;            /* (1,B,T) int32 */
    int64_t first_position;
    bool accumulate_tokens, accumulate_positions;
};
#define LOOM_VIEWS_embedding_backward(VIEW)                                                                            \
    VIEW(token_gradient, REALS_OR_BF16, ADDED_IF(accumulate_tokens), "the gradient of the token embedding")            \
    VIEW(position_gradient, REALS_OR_BF16, ADDED_IF(accumulate_positions), "the gradient of the position embedding")   \
    VIEW(dout, MODEL, READ)                                                                                            \
    VIEW(tokens, IDS, READ)
#define LOOM_OPS_embedding(OP) OP(embedding_forward) OP(embedding_backward)

/* sum = x + delta, rounded to its storage; out = (sum - mean) * rstd * weight + bias per row, with
 * rstd = 1/sqrt(variance + epsilon)   (Ba et al., "Layer Normalization", 2016). Without delta, sum is x and is not
 * written. Without out, sum, mean and rstd are all that is computed. */
struct loom_layernorm_forward {
    loom_view out;          /* (N,C) optional */
    loom_view sum;          /* (N,C) optional, with delta; may alias x or delta */
    loom_view mean, rstd;   /* (N) fp32 */
    loom_view x;            /* (N,C) */
    loom_view delta;        /* (N,C) optional */
    loom_view weight, bias; /* (C) */
    float epsilon;
};
#define LOOM_VIEWS_layernorm_forward(VIEW)                                                                             \
    VIEW(out, MODEL, WRITTEN | OPTIONAL, "the output")                                                                 \
    VIEW(sum, MODEL, WRITTEN | OPTIONAL, "the residual stream")                                                        \
    VIEW(mean, REALS, WRITTEN)                                                                                         \
    VIEW(rstd, REALS, WRITTEN)                                                                                         \
    VIEW(x, MODEL, READ)                                                                                               \
    VIEW(delta, MODEL, READ | OPTIONAL)                                                                                \
    VIEW(weight, MODEL, READ)                                                                                          \
    VIEW(bias, MODEL, READ)

/* dx = skip + rstd * (g - mean(g) - n * mean(g * n)), g = dout * weight, n = (x - mean) * rstd;
 * dweight = sum over rows of dout * n; dbias = sum over rows of dout. `skip` is the gradient that reaches x around the
 * layernorm, through the residual connection. */
struct loom_layernorm_backward {
    loom_view dx;             /* (N,C) */
    loom_view dweight, dbias; /* (C) */
    loom_view dout;           /* (N,C) */
    loom_view skip;           /* (N,C) optional; may alias dx */
    loom_view x;              /* (N,C): what was normalised (sum) */
    loom_view weight;         /* (C) */
    loom_view mean, rstd;     /* (N) */
    bool accumulate;
};
#define LOOM_VIEWS_layernorm_backward(VIEW)                                                                            \
    VIEW(dx, MODEL, WRITTEN, "the gradient of the input")                                                              \
    VIEW(dweight, REALS_OR_BF16, ADDED_IF(accumulate), "the gradient of the weight")                                   \
    VIEW(dbias, REALS_OR_BF16, ADDED_IF(accumulate), "the gradient of the bias")                                       \
    VIEW(dout, MODEL, READ)                                                                                            \
    VIEW(skip, MODEL, READ | OPTIONAL)                                                                                 \
    VIEW(x, MODEL, READ)                                                                                               \
    VIEW(weight, MODEL, READ)                                                                                          \
    VIEW(mean, REALS, READ)                                                                                            \
    VIEW(rstd, REALS, READ)
#define LOOM_OPS_layernorm(OP) OP(layernorm_forward) OP(layernorm_backward)

/* What an MLP may apply to its widened rows, each a family of ops: NAME_forward (out, x) and NAME_backward (dx, dout,
 * x). */
#define LOOM_ACTIVATION_LIST(ACTIVATION) ACTIVATION(GELU, gelu) ACTIVATION(RELU, relu) ACTIVATION(RELU2, relu2)

typedef enum loom_activation {
    LOOM_ACTIVATION_NONE,
#define LOOM_ACTIVATION_ENUM(NAME, name) LOOM_ACTIVATION_##NAME,
    LOOM_ACTIVATION_LIST(LOOM_ACTIVATION_ENUM)
#undef LOOM_ACTIVATION_ENUM
        LOOM_ACTIVATION_COUNT
} loom_activation;

/* "gelu", ...; "none" */
const char *loom_activation_name(loom_activation activation);

/* out = activation(x @ weight + bias). Weights lie as in Hugging Face's Conv1D, (in, out); `transposed` says that
 * weight is (out, in), as the tied classifier's is. With an activation, `preactivation` is what it is applied to,
 * rounded to its storage, so that a separate activation op gives the same bits. */
struct loom_matmul_forward {
    loom_view out;           /* (N,O) */
    loom_view preactivation; /* (N,O) with an activation */
    loom_view x;             /* (N,I) */
    loom_view weight;        /* (I,O), or (O,I) transposed */
    loom_view bias;          /* (O) optional */
    loom_activation activation;
    bool transposed;
};
#define LOOM_VIEWS_matmul_forward(VIEW)                                                                                \
    VIEW(out, MODEL, WRITTEN, "the output")                                                                            \
    VIEW(preactivation, MODEL, WRITTEN | OPTIONAL, "what is activated")                                                \
    VIEW(x, MODEL, READ)                                                                                               \
    VIEW(weight, MODEL, READ)                                                                                          \
    VIEW(bias, MODEL, READ | OPTIONAL)

/* dx = dout @ weight^T. With `accumulate` dx's old value is added before the sum is rounded, once, to its dtype. */
struct loom_matmul_backward_input {
    loom_view dx;     /* (N,I) */
    loom_view dout;   /* (N,O) */
    loom_view weight; /* (I,O), or (O,I) transposed */
    bool transposed;
    bool accumulate;
};
#define LOOM_VIEWS_matmul_backward_input(VIEW)                                                                         \
    VIEW(dx, MODEL, ADDED_IF(accumulate), "the gradient of the input")                                                 \
    VIEW(dout, MODEL, READ)                                                                                            \
    VIEW(weight, MODEL, READ)

/* dweight = x^T @ dout (dout^T @ x transposed); dbias = sum over rows of dout */
struct loom_matmul_backward_weight {
    loom_view dweight; /* as weight */
    loom_view dbias;   /* (O) optional */
    loom_view dout;    /* (N,O) */
    loom_view x;       /* (N,I) */
    bool transposed;
    bool accumulate;
};
#define LOOM_VIEWS_matmul_backward_weight(VIEW)                                                                        \
    VIEW(dweight, REALS_OR_BF16, ADDED_IF(accumulate), "the gradient of the weight")                                   \
    VIEW(dbias, REALS_OR_BF16, ADDED_IF(accumulate) | OPTIONAL, "the gradient of the bias")                            \
    VIEW(dout, MODEL, READ)                                                                                            \
    VIEW(x, MODEL, READ)
#define LOOM_OPS_matmul(OP) OP(matmul_forward) OP(matmul_backward_input) OP(matmul_backward_weight)

/* Causal attention: out = softmax(scale * q @ k^T, masked) @ v per head, where query i, standing at position
 * first_query + i, sees keys 0 .. first_query + i. lse = log(sum(exp(scores))) of the seen ones. No (Tq,Tk) matrix
 * exists beyond a tile   (Dao, "FlashAttention-2", 2023). Hkv divides H: query head h reads key head h*Hkv/H. */
struct loom_attention_forward {
    loom_view out;  /* (B,Tq,H,D) */
    loom_view lse;  /* (1,B,H,Tq) fp32 */
    loom_view q;    /* (B,Tq,H,D) strided */
    loom_view k, v; /* (B,Tk,Hkv,D) strided, Tk >= first_query + Tq */
    int64_t first_query;
    float scale; /* above 0 */
};
#define LOOM_VIEWS_attention_forward(VIEW)                                                                             \
    VIEW(out, MODEL, WRITTEN, "the output")                                                                            \
    VIEW(lse, REALS, WRITTEN, "the log-sum-exp")                                                                       \
    VIEW(q, MODEL, READ)                                                                                               \
    VIEW(k, MODEL, READ)                                                                                               \
    VIEW(v, MODEL, READ)

/* The gradients of all three, recomputing the probabilities from lse. dq, dk, dv are written; they may be parts of one
 * packed tensor. */
struct loom_attention_backward {
    loom_view dq;        /* (B,Tq,H,D) strided */
    loom_view dk, dv;    /* (B,Tk,Hkv,D) strided */
    loom_view dout, out; /* (B,Tq,H,D) */
    loom_view lse;       /* (1,B,H,Tq) */
    loom_view q, k, v;
    int64_t first_query;
    float scale;
};
#define LOOM_VIEWS_attention_backward(VIEW)                                                                            \
    VIEW(dq, MODEL, WRITTEN, "the gradient of the queries")                                                            \
    VIEW(dk, MODEL, WRITTEN, "the gradient of the keys")                                                               \
    VIEW(dv, MODEL, WRITTEN, "the gradient of the values")                                                             \
    VIEW(dout, MODEL, READ)                                                                                            \
    VIEW(out, MODEL, READ)                                                                                             \
    VIEW(lse, REALS, READ)                                                                                             \
    VIEW(q, MODEL, READ)                                                                                               \
    VIEW(k, MODEL, READ)                                                                                               \
    VIEW(v, MODEL, READ)
#define LOOM_OPS_attention(OP) OP(attention_forward) OP(attention_backward)

/* out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))   (Hendrycks and Gimpel, 2016, the tanh form of GPT-2) */
struct loom_gelu_forward {
    loom_view out, x; /* (N,C); may alias */
};
#define LOOM_VIEWS_gelu_forward(VIEW)                                                                                  \
    VIEW(out, MODEL, WRITTEN, "the output")                                                                            \
    VIEW(x, MODEL, READ)

struct loom_gelu_backward {
    loom_view dx, dout, x; /* (N,C); dx may alias dout */
};
#define LOOM_VIEWS_gelu_backward(VIEW)                                                                                 \
    VIEW(dx, MODEL, WRITTEN, "the gradient of the input")                                                              \
    VIEW(dout, MODEL, READ)                                                                                            \
    VIEW(x, MODEL, READ)
#define LOOM_OPS_gelu(OP) OP(gelu_forward) OP(gelu_backward)

/* out = max(x, 0)   (Nair and Hinton, 2010); NaN stays NaN */
struct loom_relu_forward {
    loom_view out, x; /* (N,C); may alias */
};
#define LOOM_VIEWS_relu_forward(VIEW)                                                                                  \
    VIEW(out, MODEL, WRITTEN, "the output")                                                                            \
    VIEW(x, MODEL, READ)

/* dx = dout where x > 0, else 0 */
struct loom_relu_backward {
    loom_view dx, dout, x; /* (N,C); dx may alias dout */
};
#define LOOM_VIEWS_relu_backward(VIEW)                                                                                 \
    VIEW(dx, MODEL, WRITTEN, "the gradient of the input")                                                              \
    VIEW(dout, MODEL, READ)                                                                                            \
    VIEW(x, MODEL, READ)
#define LOOM_OPS_relu(OP) OP(relu_forward) OP(relu_backward)

/* out = max(x, 0)^2   (So et al., "Primer", 2021); NaN stays NaN */
struct loom_relu2_forward {
    loom_view out, x; /* (N,C); may alias */
};
#define LOOM_VIEWS_relu2_forward(VIEW)                                                                                 \
    VIEW(out, MODEL, WRITTEN, "the output")                                                                            \
    VIEW(x, MODEL, READ)

/* dx = 2 x dout where x > 0, else 0 */
struct loom_relu2_backward {
    loom_view dx, dout, x; /* (N,C); dx may alias dout */
};
#define LOOM_VIEWS_relu2_backward(VIEW)                                                                                \
    VIEW(dx, MODEL, WRITTEN, "the gradient of the input")                                                              \
    VIEW(dout, MODEL, READ)                                                                                            \
    VIEW(x, MODEL, READ)
#define LOOM_OPS_relu2(OP) OP(relu2_forward) OP(relu2_backward)

/* out = softmax(scale * x) along the last dimension, as exp(scale * (x - max(x))) over the sum of these. A scale of
 * 1 / temperature gives what is sampled from. */
struct loom_softmax_forward {
    loom_view out, x; /* (N,C); may alias */
    float scale;      /* above zero, and finite */
};
#define LOOM_VIEWS_softmax_forward(VIEW)                                                                               \
    VIEW(out, MODEL, WRITTEN)                                                                                          \
    VIEW(x, MODEL, READ)

/* dx = scale * out * (dout - sum(dout * out)) */
struct loom_softmax_backward {
    loom_view dx, dout, out; /* (N,C); dx may alias dout */
    float scale;
};
#define LOOM_VIEWS_softmax_backward(VIEW)                                                                              \
    VIEW(dx, MODEL, WRITTEN)                                                                                           \
    VIEW(dout, MODEL, READ)                                                                                            \
    VIEW(out, MODEL, READ)
#define LOOM_OPS_softmax(OP) OP(softmax_forward) OP(softmax_backward)

/* losses[i] = -log(softmax(logits[i,:V])[targets[i]]), and its gradient at once:
 * dlogits[i,j] = (softmax(logits[i,:V])[j] - (j == target)) * scalars->in.loss_gradient * scalars->state.loss_scale,
 * zero for j >= V.
 * A target of -1 is no target: loss and gradient are zero. */
struct loom_cross_entropy {
    loom_view losses;  /* (N) fp32 */
    loom_view dlogits; /* (N,Vp) optional; may alias logits */
    loom_view logits;  /* (N,Vp) */
    loom_view targets; /* (N) int32, -1 or below vocab_size */
    int64_t vocab_size;
    const loom_scalars *scalars;
};
#define LOOM_VIEWS_cross_entropy(VIEW)                                                                                 \
    VIEW(losses, REALS, WRITTEN, "the losses")                                                                         \
    VIEW(dlogits, MODEL, WRITTEN | OPTIONAL, "the gradient of the logits")                                             \
    VIEW(logits, MODEL, READ)                                                                                          \
    VIEW(targets, IDS, READ)
#define LOOM_OPS_cross_entropy(OP) OP(cross_entropy)

/* out = a + b: the exact sum, rounded once. What gradients of micro-batches and of ranks are added up with, two by two.
 * All three are contiguous and of one dtype. */
struct loom_add {
    loom_view out;  /* (n) may alias a or b as a whole, and overlaps them in no other way */
    loom_view a, b; /* (n) */
};
#define LOOM_VIEWS_add(VIEW)                                                                                           \
    VIEW(out, ANY, WRITTEN, "the sum of gradients")                                                                    \
    VIEW(a, ANY, READ)                                                                                                 \
    VIEW(b, ANY, READ)
#define LOOM_OPS_add(OP) OP(add)

/* partials[i] = sum of x[j], or of x[j]^2, over block i of `block` elements: sums over everything are made of fixed
 * blocks, added in index order, so that neither threads nor ranks can change them. */
struct loom_block_sum {
    loom_view partials; /* (ceil(n/block)) fp32 */
    loom_view x;        /* (n) */
    int64_t block;
    bool square;
};
#define LOOM_VIEWS_block_sum(VIEW)                                                                                     \
    VIEW(partials, REALS, WRITTEN)                                                                                     \
    VIEW(x, ANY, READ)
#define LOOM_OPS_block_sum(OP) OP(block_sum)

/* The end of a step's reductions: out.loss = sum(losses) * in.loss_gradient, out.gradient_norm = sqrt(sum(squares)) /
 * state.loss_scale, both added in index order; the clip factor; whether to skip; AdamW's t and bias corrections. An
 * update is skipped if the loss or the norm is not finite or, with in.spike_z and after 32 steps, more than that many
 * deviations above its mean over about the last 128 steps. What is not finite does not count in the mean; a spike does.
 * Last, with in.loss_scale_interval, the loss scale of the next step: half (1 at least) after a norm that is not
 * finite, with age 0; else the age grows by one, and at the interval the scale doubles (2^24 at most) and the age is 0.
 * */
struct loom_optimizer_scalars {
    loom_scalars *scalars;
    loom_view losses;  /* (n) fp32: block sums of the losses */
    loom_view squares; /* (m) fp32: block sums of squared gradients */
};
#define LOOM_VIEWS_optimizer_scalars(VIEW)                                                                             \
    VIEW(losses, REALS, READ)                                                                                          \
    VIEW(squares, REALS, READ)
#define LOOM_OPS_optimizer_scalars(OP) OP(optimizer_scalars)

/* Some of a vector's elements: runs of them, first .. last - 1 each, in their order and without a common element. They
 * lie in the arguments themselves, so that a captured op keeps them. */
enum { LOOM_MOST_RANGES = 8 };
typedef struct loom_element_range {
    int64_t first, last;
} loom_element_range;

typedef struct loom_ranges {
    int n;
    loom_element_range at[LOOM_MOST_RANGES];
} loom_ranges;

/* AdamW with decoupled weight decay   (Loshchilov and Hutter, 2019, algorithm 2), over tensors that lie one after
 * another: g = gradient * out.gradient_factor; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; p -= lr *
 * (m/bc1 / (sqrt(v/bc2) + eps) + decay * weight_decay * p), with a decay of 1 for the elements of `decayed`, of 0 for
 * the others. Nothing is touched when out.skip is set. Gaps between tensors, of zeros that are not decayed, stay zeros.
 * An element's bits do not depend on what else an op updates.
 *
 * In runs of bf16 or fp16, `parameter` holds the master weights in fp32 and `copy` the weights that the model reads, p
 * rounded to nearest. Without a master, `parameter` is bf16 itself and p is rounded stochastically: up with a
 * probability equal to the fraction that is lost   (Gupta et al., "Deep Learning with Limited Numerical Precision",
 * 2015), by adding 16 random bits below bf16's last and cutting off. Element i takes half-word (first + i) % 8 (low
 * halves of words first) of loom_random(seed, LOOM_RANDOM_ROUNDING, state.updates, (first + i) / 8).
 *
 * Moments in bf16 are rounded in the same way, with the purposes LOOM_RANDOM_ROUNDING_MOMENT1 and _MOMENT2: a step
 * changes v by as little as 1 - beta2 of it, which nearest rounding would lose. The parameter is updated with m and v
 * as they are before that. */
struct loom_adamw {
    loom_view parameter;        /* (n) fp32, or bf16 without a master */
    loom_view copy;             /* (n) optional, with fp32 parameters: in any dtype, in training bf16 or fp16 */
    loom_view gradient;         /* (n) fp32 or bf16 */
    loom_view moment1, moment2; /* (n) both fp32, or both bf16 */
    const loom_scalars *scalars;
    loom_ranges decayed;
    uint64_t seed; /* of stochastic rounding */
    int64_t first; /* the first element's place among all parameters */
};
#define LOOM_VIEWS_adamw(VIEW)                                                                                         \
    VIEW(parameter, REALS_OR_BF16, READ | WRITTEN, "the parameter")                                                    \
    VIEW(copy, ANY, WRITTEN | OPTIONAL)                                                                                \
    VIEW(gradient, REALS_OR_BF16, READ)                                                                                \
    VIEW(moment1, REALS_OR_BF16, READ | WRITTEN, "the first moment")                                                   \
    VIEW(moment2, REALS_OR_BF16, READ | WRITTEN, "the second moment")
#define LOOM_OPS_adamw(OP) OP(adamw)

/* out = x, converted. */
struct loom_cast {
    loom_view out, x; /* (N,C) */
};
#define LOOM_VIEWS_cast(VIEW)                                                                                          \
    VIEW(out, ANY, WRITTEN)                                                                                            \
    VIEW(x, ANY, READ)
#define LOOM_OPS_cast(OP) OP(cast)

/* out = value everywhere. */
struct loom_fill {
    loom_view out; /* (N,C) */
    float value;
};
#define LOOM_VIEWS_fill(VIEW) VIEW(out, ANY, WRITTEN)
#define LOOM_OPS_fill(OP)     OP(fill)

/* ------------------------------------------------------------------------------------------------------- the table
 * All families of ops, and so all ops. Everything that must name each (the table, the enum, the names, the tables of the
 * devices, the cases) is made from this list. */
#define LOOM_OP_FAMILIES(FAMILY, ...)                                                                                  \
    FAMILY(embedding, __VA_ARGS__)                                                                                     \
    FAMILY(layernorm, __VA_ARGS__)                                                                                     \
    FAMILY(matmul, __VA_ARGS__)                                                                                        \
    FAMILY(attention, __VA_ARGS__)                                                                                     \
    FAMILY(gelu, __VA_ARGS__)                                                                                          \
    FAMILY(relu, __VA_ARGS__)                                                                                          \
    FAMILY(relu2, __VA_ARGS__)                                                                                         \
    FAMILY(softmax, __VA_ARGS__)                                                                                       \
    FAMILY(cross_entropy, __VA_ARGS__)                                                                                 \
    FAMILY(add, __VA_ARGS__)                                                                                           \
    FAMILY(block_sum, __VA_ARGS__)                                                                                     \
    FAMILY(optimizer_scalars, __VA_ARGS__)                                                                             \
    FAMILY(adamw, __VA_ARGS__)                                                                                         \
    FAMILY(cast, __VA_ARGS__)                                                                                          \
    FAMILY(fill, __VA_ARGS__)

#define LOOM_OPS_OF_FAMILY(name, OP) LOOM_OPS_##name(OP)
#define LOOM_OP_LIST(OP)             LOOM_OP_FAMILIES(LOOM_OPS_OF_FAMILY, OP)

typedef enum loom_op {
#define LOOM_OP_ENUM(name) LOOM_OP_##name,
    LOOM_OP_LIST(LOOM_OP_ENUM)
#undef LOOM_OP_ENUM
        LOOM_OP_COUNT
} loom_op;

/* "embedding_forward", ... */
const char *loom_op_name(loom_op op);

typedef struct loom_device loom_device;
typedef struct loom_stream loom_stream;
typedef struct loom_context loom_context;

typedef struct loom_ops {
#define LOOM_OP_MEMBER(name) void (*name)(loom_context * ctx, const struct loom_##name *arguments);
    LOOM_OP_LIST(LOOM_OP_MEMBER)
#undef LOOM_OP_MEMBER
    /* Whether this device runs the op on these shapes and dtypes; if not, *why says why (a literal). */
    bool (*supports)(const loom_device *device, loom_op op, const void *arguments, const char **why);
    /* Bytes of workspace the op needs. */
    size_t (*workspace)(const loom_device *device, loom_op op, const void *arguments);
    /* Makes and keeps whatever plan the op needs (library handles, compiled primitives), once per shape. */
    bool (*prepare)(loom_device *device, loom_op op, const void *arguments, loom_error *error);
} loom_ops;

/* What an op has to do at least: floating-point operations, of matrix products and attention alone (2mnk; causal
 * attention's products at half their square, two forward and five backward), and bytes: every given view once, what is
 * added to twice, and of embedding tables the rows that the batch can touch. From shapes alone. */
typedef struct loom_work {
    double flops, bytes;
} loom_work;

loom_work loom_op_work(loom_op op, const void *arguments);

/* Where and how a sequence of ops runs. The same sequence runs several times: with loom_planning_ops() it only adds up
 * the workspace it will need; with loom_preparing_ops() it makes the device's plans; with the device's own ops it runs.
 * With loom_visiting_ops() it is shown op by op, to be counted. */
struct loom_context {
    const loom_ops *ops;
    loom_device *device;
    loom_stream *stream; /* NULL: the device's default */
    void *workspace;
    size_t workspace_bytes; /* given; while planning: the largest need so far */
    loom_error *error;      /* while preparing: filled by the first op that fails, with `failed` */
    bool failed;
    /* While visiting: called for each op. */
    void (*visit)(void *visitor, loom_op op, const void *arguments);
    void *visitor;
};

/* The first two call `supports` first and fail on what the device cannot run. */
const loom_ops *loom_planning_ops(void);
const loom_ops *loom_preparing_ops(void);
const loom_ops *loom_visiting_ops(void);

#ifdef __cplusplus
}
#endif
#endif
