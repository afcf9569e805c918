/* Plans of cuDNN: an engine (a family of kernels) with settings, its knobs, compiled for a graph and a GPU. */
#ifndef LOOM_CUDA_CUDNN_ENGINE_H
#define LOOM_CUDA_CUDNN_ENGINE_H

#include "cuda/tuning.h"
#include "cuda/cudnn_graph.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_cudnn_plan {
    cudnnBackendDescriptor_t plan;  /* NULL: there is none */
    size_t workspace;               /* bytes */
    char engine[LOOM_TUNING_VALUE]; /* what cuDNN knows it by: "engine8,24=3,27=1" is engine 8 with knob 24 at 3 */
    char why[256];                  /* there is no plan, in one line */
} loom_cudnn_plan;

/* Plans a graph for the GPU of `properties`: with the engine that is given by its name, or with NULL with the first of
 * those that cuDNN's heuristics propose that gives the same bits in every run. */
void loom_cudnn_plan_make(loom_cudnn_plan *plan, const loom_cudnn_api *api, const loom_cudnn_graph *graph,
                          cudnnBackendDescriptor_t properties, const char *given);

#ifdef __cplusplus
}
#endif
#endif
