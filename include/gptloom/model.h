/* GPTs: learned positions, blocks of attention and an MLP, tied embeddings   (Radford et al., "Improving Language
 * Understanding by Generative Pre-Training", 2018, and "Language Models are Unsupervised Multitask Learners", 2019). */
#ifndef GPTLOOM_MODEL_H
#define GPTLOOM_MODEL_H

#include "gptloom/arena.h"
#include "gptloom/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ----------------------------------------------------------------------------------------------------------- shape */
typedef enum loom_gpt_activation {
#define LOOM_GPT_ACTIVATION(NAME, name) LOOM_GPT_##NAME,
    LOOM_ACTIVATION_LIST(LOOM_GPT_ACTIVATION)
#undef LOOM_GPT_ACTIVATION
        LOOM_GPT_ACTIVATIONS
} loom_gpt_activation;

/* What the blocks are made of: csrc/model/gpt2.c and gpt1.c. */
typedef enum loom_gpt_architecture {
    LOOM_GPT_2, /* layernorm before attention and MLP, and at the end */
    LOOM_GPT_1, /* layernorm behind them, of the sum */
    LOOM_GPT_ARCHITECTURES
} loom_gpt_architecture;

typedef struct loom_gpt_config {
    int64_t n_layer, n_head, n_embd;
    int64_t block_size;             /* the longest sequence: the number of learned positions */
    int64_t vocab_size;             /* as users see it; padded inside to a multiple of 128 */
    loom_gpt_activation activation; /* of the MLP; GPT-1's and GPT-2's is the tanh form of GELU */
    loom_gpt_architecture architecture;
} loom_gpt_config;

#define LOOM_LAYERNORM_EPSILON 1e-5f

/* What they are called, ended by NULL. */
extern const char *const loom_gpt_architecture_names[LOOM_GPT_ARCHITECTURES + 1];

/* A named model: gpt1, gpt2 .. gpt2-xl, gpt3-125m .. gpt3-175b, d6, d12, d24, d36, d48, d60, d72, d84 (llm.c's depths),
 * nano, mini. */
typedef struct loom_gpt_named {
    const char *name;
    loom_gpt_config config;
    const char *note; /* where the shape is from, and what was made whole */
} loom_gpt_named;

/* All named models but the d-family, ended by a NULL name. */
const loom_gpt_named *loom_gpt_catalogue(void);

/* Looks a name up ("gpt2", "d12"); the error suggests the nearest. */
bool loom_gpt_config_by_name(const char *name, loom_gpt_named *named, loom_error *error);

/* Refuses shapes that cannot be: naming the flag (--n-embd ...). */
bool loom_gpt_config_check(const loom_gpt_config *config, loom_error *error);

int64_t loom_gpt_padded_vocabulary(const loom_gpt_config *config);

/* Floating-point operations per trained token at sequence length T: 6 per weight of a matrix product (2 forward, 4
 * backward), and causal attention's two products at half their square   (PaLM, 2022, appendix B). */
double loom_gpt_flops_per_token(const loom_gpt_config *config, int64_t T);

/* How a parameter is initialised. */
typedef enum loom_initial {
    LOOM_INITIAL_ZERO,
    LOOM_INITIAL_ONE,
    LOOM_INITIAL_NORMAL,         /* deviation 0.02 */
    LOOM_INITIAL_NORMAL_RESIDUAL /* 0.02 / sqrt(2 n_layer): its product is added to the residual stream */
} loom_initial;

/* ------------------------------------------------------------------------------------------------ parameter layout
 * All parameter-like memory (weights, gradients, moments) has this one layout: bucket 0 holds the embeddings, bucket
 * 1 + l layer l, and where there is one, the last bucket a final layernorm. Tensors start at multiples of 128 elements (256 bytes in bf16).
 * A bucket is cut into equal blocks of at most 65536 elements, for sums over everything, in multiples of 64 and of the
 * number of ranks, and padded to a multiple of 128 elements in each: it is the same for 1, 2, 4 .. 64 ranks. Gaps hold
 * zeros. */
typedef struct loom_parameter {
    char name[64]; /* Hugging Face's: "transformer.h.3.attn.c_attn.weight" */
    int64_t rows;  /* as in the file; 1 for a vector */
    int64_t columns;
    bool vector;         /* biases and layernorms */
    int64_t padded_rows; /* in memory */
    int64_t offset;      /* first element, from the start of all buckets */
    int bucket;
    bool decay; /* weight decay applies: matrices */
    loom_initial initial;
} loom_parameter;

typedef struct loom_bucket {
    int64_t offset, elements;
    int64_t blocks; /* of elements / blocks each */
    int layer;      /* -1: embeddings and whatever else is no layer's */
} loom_bucket;

typedef struct loom_layout {
    loom_parameter *parameter;
    int n_parameters;
    loom_bucket *bucket;
    int n_buckets;
    int64_t elements; /* of all buckets */
    int64_t count;    /* parameters as users count them: no padding, tied weights once */
} loom_layout;

/* Layouts, and sums over their blocks, are the same for all numbers of ranks that divide this one. */
enum { LOOM_MAX_DETERMINISTIC_RANKS = 64 };

bool loom_layout_create(loom_layout *layout, const loom_gpt_config *config, int ranks, loom_error *error);
void loom_layout_destroy(loom_layout *layout);
/* NULL where there is none of that name. */
const loom_parameter *loom_layout_find(const loom_layout *layout, const char *name);

/* -------------------------------------------------------------------------------------------------------- sharding
 * Data parallelism: what of the model each of several ranks holds   (Rajbhandari et al., "ZeRO", 2020). A rank's share of
 * a bucket is one of `ranks` equal parts, in their order. */
typedef struct loom_sharding {
    int ranks, rank; /* 0 ranks are one */
    int zero; /* 0: everything; 1: its shares of moments and master weights; 2: and of gradients; 3: and of blocks' weights
                 (embeddings and the last layernorm, which are used twice in a micro-batch, stay whole) */
    bool deterministic; /* the gradients of micro-batches are added up in the order of a tree; each is then whole */
} loom_sharding;

/* Whether a step of so many sequences can be cut into micro-batches of B sequences, the same number on each rank; for
 * deterministic sums both numbers have to be powers of two. */
bool loom_micro_batches_divide(int64_t sequences, int64_t B, const loom_sharding *sharding);

/* Micro-batches of each rank in such a step. */
int64_t loom_micro_batches(int64_t sequences, int64_t B, const loom_sharding *sharding);

/* ------------------------------------------------------------------------------------------------------- precision
 * What a model's numbers are stored in. Statistics and losses are always the device's statistics type. */
typedef struct loom_precision {
    loom_dtype storage; /* weights as the model reads them, activations, and the activations' gradients */
    loom_dtype master; /* weights as the optimizer updates them and checkpoints hold them; if this is not `storage` they
                            lie beside the model's, which are their copy, rounded to nearest */
    loom_dtype gradient; /* of weights, in which micro-batches are added up: fp32; bf16 rounds each of these sums */
    loom_dtype moment;   /* AdamW's: fp32; bf16 is rounded stochastically */
} loom_precision;

/* The same as users choose it, by flags. */
typedef struct loom_precision_flags {
    loom_dtype dtype;     /* --dtype: fp32, bf16 or fp16 */
    bool master;          /* --master-weights */
    loom_dtype optimizer; /* --optimizer-dtype: fp32 or bf16 */
    loom_dtype gradient;  /* --grad-dtype: fp32 or bf16 */
} loom_precision_flags;

/* Whether a run can have these types: bf16 alone can do without master weights, by stochastic rounding, or have
 * gradients of weights in 16 bits. The error names the flags. */
bool loom_precision_check(const loom_precision_flags *flags, loom_error *error);

/* The precision of such a run on a device. On the oracle all is fp64. */
bool loom_precision_of(const loom_device *device, const loom_precision_flags *flags, loom_precision *precision,
                       loom_error *error);

/* ------------------------------------------------------------------------------------------------------- recompute
 * Gradient checkpointing   (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016): what forward keeps of
 * each block for backward; the rest is computed once more when backward comes to it, by the same ops from the same
 * inputs, so that every policy gives the same bits. */
typedef enum loom_recompute_kind {
    LOOM_RECOMPUTE_NONE,       /* everything is kept */
    LOOM_RECOMPUTE_ACT,        /* all but the MLP's activation */
    LOOM_RECOMPUTE_NORM,       /* and but the layernorms' outputs */
    LOOM_RECOMPUTE_BLOCK_ATTN, /* the block's input, and attention's output and log-sum-exp */
    LOOM_RECOMPUTE_BLOCK,      /* the block's input */
    LOOM_RECOMPUTE_EVERY, /* the input of every K-th block; backward first runs a segment of K once more to have the
                             inputs of its blocks, then each of them as above */
    LOOM_RECOMPUTE_SQRT,  /* the same with K = ceil(sqrt(n_layer)) */
    LOOM_RECOMPUTE_AUTO,  /* the fastest that fits into memory; a model is never made with it */
    LOOM_RECOMPUTE_SETS,  /* a set of values of each block, of those that its backward reads: what `auto` may find */
} loom_recompute_kind;

/* What so many blocks keep beside their inputs: bit i stands for the i-th of the other values that a block's backward
 * reads, in the order in which forward computes them. */
typedef struct loom_kept_set {
    uint32_t values;
    int32_t blocks;
} loom_kept_set;

enum { LOOM_RECOMPUTE_MOST_SETS = 4 };

typedef struct loom_recompute {
    loom_recompute_kind kind;
    int64_t every;                               /* K of LOOM_RECOMPUTE_EVERY */
    int n_sets;                                  /* of LOOM_RECOMPUTE_SETS, */
    loom_kept_set set[LOOM_RECOMPUTE_MOST_SETS]; /* for all blocks, from the first on */
} loom_recompute;

enum { LOOM_RECOMPUTE_NAME = 80 };

/* "none", "act", "norm", "block-attn", "block", "every:3", "sqrt", "auto", or "sets:1f*8,3*4": of each set its values,
 * as a hexadecimal number, and its blocks. The error of an unknown one lists them. */
bool loom_recompute_parse(const char *text, loom_recompute *recompute, loom_error *error);
void loom_recompute_name(const loom_recompute *recompute, char name[LOOM_RECOMPUTE_NAME]);

/* The policies to choose among, from what computes nothing again to what computes most: none .. block, every:2 and so
 * on, sqrt; returns how many. A larger K than sqrt's would keep more and compute more. */
enum { LOOM_MOST_POLICIES = LOOM_RECOMPUTE_EVERY + 32 };
int loom_recompute_policies(int64_t n_layer, loom_recompute policies[LOOM_MOST_POLICIES]);

/* ------------------------------------------------------------------------------------------------------- the model */
typedef enum loom_gpt_purpose { LOOM_GPT_TRAIN, LOOM_GPT_INFER } loom_gpt_purpose;

/* What a model is made for, beside its shape. */
typedef struct loom_gpt_setup {
    loom_gpt_purpose purpose;
    const loom_precision *precision; /* NULL: the device's own, fp32 (fp64 on the oracle). Read while creating */
    int64_t B, T;                    /* of a micro-batch: sequences, and tokens in each */
    loom_recompute recompute;
    bool offload;        /* what blocks keep for backward waits in host memory; for devices with memory of their own */
    int64_t logits_rows; /* rows of logits that exist at a time, rounded up to whole groups; 0: about an eighth */
    bool generates;      /* a model that trains generates too, and has room for keys and values */
    loom_sharding sharding;
} loom_gpt_setup;

typedef struct loom_gpt loom_gpt;

/* Creates a model for a device. Only small host structures are allocated. How much workspace the model's ops need is
 * found by running each kind of work of each mode once over the planning table. A model for inference has no master
 * weights, and generates. */
bool loom_gpt_create(loom_gpt **gpt, const loom_gpt_config *config, const loom_gpt_setup *setup, loom_device *device,
                     loom_error *error);
void loom_gpt_destroy(loom_gpt *gpt);

/* Takes all of the model's memory from an arena: once measuring, once for real. */
void loom_gpt_lay_out(loom_gpt *gpt, loom_arena *arena);

/* After the real lay-out: makes the device's plans if they are not made, takes the host memory to offload to, clears
 * what must start as zero, and sets the loss scale to 1. */
bool loom_gpt_prepare(loom_gpt *gpt, loom_error *error);

const loom_gpt_config *loom_gpt_get_config(const loom_gpt *gpt);
const loom_layout *loom_gpt_get_layout(const loom_gpt *gpt);
loom_device *loom_gpt_get_device(const loom_gpt *gpt);
const loom_precision *loom_gpt_get_precision(const loom_gpt *gpt);
size_t loom_gpt_get_host_bytes(const loom_gpt *gpt); /* pinned host memory to offload to; after a lay-out */
/* Device memory of a model that is whole, in the layout. */
void *loom_gpt_get_parameters(loom_gpt *gpt); /* as the model reads them */
void *loom_gpt_get_master(loom_gpt *gpt); /* as the optimizer updates them; the same place where there is no master */

/* Generation, for one sequence (B = 1 is used), by a model that was made to generate: runs `n` tokens standing at
 * positions past .. past+n-1 after `past` tokens already seen, and writes the last one's logits, vocab_size floats, to
 * the host. past + n <= T. */
bool loom_gpt_next_logits(loom_gpt *gpt, const int32_t *tokens, int64_t n, int64_t past, float *logits,
                          loom_error *error);

/* The same, and then the device computes softmax(logits / temperature), vocab_size floats too. The temperature is above
 * 0. */
bool loom_gpt_next_probabilities(loom_gpt *gpt, const int32_t *tokens, int64_t n, int64_t past, float temperature,
                                 float *logits, float *probabilities, loom_error *error);

/* ------------------------------------------------------------------------------------------------------- generation */
typedef struct loom_sampling {
    float temperature; /* 0: the most probable token */
    int top_k;         /* so many of the most probable tokens, of equal ones those with the lowest ids; 0: all */
    float top_p;       /* of these the fewest, in the same order, that have this part of their probability; 1: all */
    uint64_t seed;
} loom_sampling;

/* Draws one of n tokens as `sampling` says, by probabilities that are softmax(logits / temperature); the random number
 * is that of `step`. Which token is more probable the logits decide, as different logits may have equal probabilities.
 * A temperature of 0 reads no probabilities. `scratch` holds 2n floats. -1 where a logit is NaN or +infinity, or all
 * are -infinity. */
int32_t loom_sample_token(const float *logits, const float *probabilities, int64_t n, const loom_sampling *sampling,
                          uint32_t step, float *scratch);

/* Continues `prompt` (at least one token) by up to `count` tokens, handing each to `emit`, which may return false to
 * stop. Of a longer prompt the model sees the last T tokens. When the context is full its older half is dropped and the
 * rest run again. */
bool loom_gpt_generate(loom_gpt *gpt, const int32_t *prompt, int64_t n_prompt, int64_t count,
                       const loom_sampling *sampling, bool (*emit)(void *user, int32_t token), void *user,
                       loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
