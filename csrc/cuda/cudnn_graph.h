/* Causal attention in the language of cuDNN's graphs. */
#ifndef LOOM_CUDA_CUDNN_GRAPH_H
#define LOOM_CUDA_CUDNN_GRAPH_H

#include "cuda/cudnn_api.h"
#include "gptloom/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The tensors that have memory, by the numbers that plans know them under. */
typedef enum loom_cudnn_tensor {
    LOOM_CUDNN_Q = 1,
    LOOM_CUDNN_K,
    LOOM_CUDNN_V,
    LOOM_CUDNN_OUT,
    LOOM_CUDNN_LSE,
    LOOM_CUDNN_SCALE, /* a float on the host, as are the next two */
    LOOM_CUDNN_MINUS_INFINITY,
    LOOM_CUDNN_ONE,
    LOOM_CUDNN_DELTA, /* (B,H,Tq) fp32, scratch of the backward pass: sum over d of dout * out */
    LOOM_CUDNN_DOUT,
    LOOM_CUDNN_DQ,
    LOOM_CUDNN_DK,
    LOOM_CUDNN_DV,
    LOOM_CUDNN_TENSORS
} loom_cudnn_tensor;

enum { LOOM_CUDNN_DESCRIPTORS = 128, LOOM_CUDNN_OPERATIONS = 32 };

/* An operation graph under construction. The first failure is kept, and nothing is done after it. */
typedef struct loom_cudnn_graph {
    const loom_cudnn_api *api;
    cudnnBackendDescriptor_t descriptor[LOOM_CUDNN_DESCRIPTORS]; /* all, to be destroyed */
    cudnnBackendDescriptor_t operation[LOOM_CUDNN_OPERATIONS];
    int descriptors, operations;
    int64_t next; /* the number of the next tensor without memory */
    cudnnBackendDescriptor_t graph;
    cudnnStatus_t status;
    char message[256];
} loom_cudnn_graph;

/* What is attended to, in one struct for both directions: views as the ops' arguments have them. */
typedef struct loom_cudnn_attention {
    const loom_view *q, *k, *v, *out, *lse;
    const loom_view *dout, *dq, *dk, *dv; /* NULL in the forward pass */
} loom_cudnn_attention;

/* Builds the graph of the forward or, with `dout`, of the backward pass. `handle` may be NULL. */
bool loom_cudnn_graph_build(loom_cudnn_graph *graph, const loom_cudnn_api *api, cudnnHandle_t handle,
                            const loom_cudnn_attention *attention);
void loom_cudnn_graph_destroy(loom_cudnn_graph *graph);

#ifdef __cplusplus
}
#endif
#endif
