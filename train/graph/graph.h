/* A model's tape as its picture tells it: what each node computes and writes, and what becomes of that under a policy
 * of recomputation. */
#ifndef LOOM_TRAIN_GRAPH_H
#define LOOM_TRAIN_GRAPH_H

#include "model/gpt.h"
#include "plot/svg.h"

/* What becomes of a value after forward. */
typedef enum loom_fate {
    LOOM_FATE_KEPT,       /* it lies there until its backward, */
    LOOM_FATE_OFFLOADED,  /* the same, in host memory meanwhile; */
    LOOM_FATE_RECOMPUTED, /* it is computed once more, */
    LOOM_FATE_STAYS,      /* or backward comes before anything has taken its place; */
    LOOM_FATE_PASSES,     /* nothing reads it later */
    LOOM_FATES
} loom_fate;

typedef struct loom_graph {
    const char *name; /* the model's: anybody's text */
    loom_gpt *gpt;    /* which has no memory */
    const loom_tape *tape;
    loom_fate *fate;  /* [values] */
    double *forward;  /* [nodes] floating-point operations of a run forward, */
    double *again;    /* and of its further runs in a step of training */
    double all_again; /* of a micro-batch, beyond those of keeping everything, as a share of them */
    size_t kept_on_device, kept_elsewhere; /* bytes of layers from forward to backward, as the plan has them */
} loom_graph;

/* Counts all of it from shapes; of the device only these are asked. */
bool loom_graph_make(loom_graph *graph, const char *name, const loom_gpt_config *config, const loom_gpt_setup *setup,
                     loom_device *device, loom_error *error);
void loom_graph_free(loom_graph *graph);

/* What a value takes. */
double loom_graph_bytes(const loom_graph *graph, loom_value value);

/* Sums over scopes first .. last. */
typedef struct loom_graph_sum {
    double parameters;
    double kept, recomputed, stays; /* bytes */
    double forward, again;          /* operations */
} loom_graph_sum;
loom_graph_sum loom_graph_sum_of(const loom_graph *graph, int first, int last);

/* ---------------------------------------------------------------------------------------------------------- in words */

/* "linear, gelu" and "mlp.c_fc": the module, and what its parameters' names have in common within their scope. */
void loom_graph_node_name(const loom_graph *graph, int node, char module[64], char name[64]);

typedef struct loom_graph_parameter {
    char name[64]; /* behind the node's name */
    char shape[64];
    bool tied; /* another scope's */
} loom_graph_parameter;
int loom_graph_parameters(const loom_graph *graph, int node, loom_graph_parameter list[LOOM_NODE_PARAMETERS]);

typedef struct loom_graph_output {
    const char *name;
    char symbols[32], numbers[80]; /* "(B,T,3C)", "8 × 1024 × 2304" */
    double bytes;
    loom_fate fate;
} loom_graph_output;
int loom_graph_outputs(const loom_graph *graph, int node, loom_graph_output list[LOOM_NODE_OUTPUTS]);

/* "75.5 MiB" */
void loom_graph_size(double bytes, char text[16]);

/* "kept" */
const char *loom_fate_name(loom_fate fate);
/* What it means, for the key, and a colour that tells it. */
const char *loom_fate_meaning(loom_fate fate);
const char *loom_fate_colour(loom_fate fate);
bool loom_graph_has_fate(const loom_graph *graph, loom_fate fate);

/* What stands over the picture. */
void loom_graph_heading(const loom_graph *graph, char shape[160], char policy[240]);
/* What a layer keeps beside its input: "ln_1.out, attn.c_attn.out"; "nothing but the input". */
void loom_graph_kept(const loom_graph *graph, int layer, char *text, size_t size);
/* Of a layer, or of several alike. */
void loom_graph_layers(const loom_graph *graph, int first, int last, char name[64], char sums[200]);

/* ---------------------------------------------------------------------------------------------------------- pictures
 * Layers but the first are one box. The caller frees the picture, after an error too. */
bool loom_graph_draw(loom_svg *svg, const loom_graph *graph, loom_error *error);
/* As a graph in the language of Graphviz. */
bool loom_graph_write_dot(loom_svg *dot, const loom_graph *graph, loom_error *error);

#endif
