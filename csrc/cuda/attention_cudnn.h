/* Attention by cuDNN 9, in place of our own kernels (--attention cudnn): a yardstick for them, and an alternative.
 *
 * cuDNN is loaded when it is asked for, so that the program runs where there is none. LOOM_CUDNN in the environment
 * names the file to load instead of libcudnn.so.9. */
#ifndef LOOM_CUDA_ATTENTION_CUDNN_H
#define LOOM_CUDA_ATTENTION_CUDNN_H

#include "cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For the GPU of `cuda`, and with its tuning cache. The error says why there is no cuDNN. */
bool loom_cuda_cudnn_create(loom_cuda_cudnn **cudnn, loom_cuda *cuda, loom_error *error);

/* For a GPU that is described as cuDNN describes one, in JSON: plans can be made for it, on any machine, but not run.
 * */
bool loom_cuda_cudnn_create_for(loom_cuda_cudnn **cudnn, const char *properties, loom_tuning *tuning,
                                loom_error *error);

void loom_cuda_cudnn_destroy(loom_cuda_cudnn *cudnn);

/* "cuDNN 9.19.0" */
const char *loom_cuda_cudnn_library(const loom_cuda_cudnn *cudnn);

/* Whether cuDNN computes this; if not, *why says why. What it computes is planned by this: cuDNN knows only then, and
 * knows the workspace only then, with the engine that the tuning cache names, if it does. Compiling the plan's kernels
 * may take a second. */
bool loom_cuda_cudnn_supports(loom_cuda_cudnn *cudnn, loom_op op, const void *arguments, const char **why);

/* Of what is supported. */
size_t loom_cuda_cudnn_workspace(loom_cuda_cudnn *cudnn, loom_op op, const void *arguments);

/* Adds the plan's engine to the tuning cache. */
bool loom_cuda_cudnn_prepare(loom_cuda_cudnn *cudnn, loom_op op, const void *arguments, loom_error *error);

/* Puts the two attention ops, and the questions about them, into a device's table. */
void loom_cuda_cudnn_install(loom_ops *ops);

#ifdef __cplusplus
}
#endif
#endif
