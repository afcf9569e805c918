/* The functions of cuDNN that we call, loaded at run time. */
#ifndef LOOM_CUDA_CUDNN_API_H
#define LOOM_CUDA_CUDNN_API_H

#include "gptloom/error.h"

#include <cudnn.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LOOM_CUDNN_FUNCTIONS(X)                                                                                        \
    X(GetVersion)                                                                                                      \
    X(GetErrorString)                                                                                                  \
    X(GetLastErrorString)                                                                                              \
    X(Create)                                                                                                          \
    X(Destroy)                                                                                                         \
    X(SetStream)                                                                                                       \
    X(BackendCreateDescriptor)                                                                                         \
    X(BackendDestroyDescriptor)                                                                                        \
    X(BackendSetAttribute)                                                                                             \
    X(BackendGetAttribute)                                                                                             \
    X(BackendFinalize)                                                                                                 \
    X(BackendExecute)

typedef struct loom_cudnn_api {
#define LOOM_CUDNN_MEMBER(name) __typeof__(&cudnn##name) name;
    LOOM_CUDNN_FUNCTIONS(LOOM_CUDNN_MEMBER)
#undef LOOM_CUDNN_MEMBER
} loom_cudnn_api;

/* Loads cuDNN once for the process: a library of its size is never unloaded. NULL with an error if there is none. */
const loom_cudnn_api *loom_cudnn_load(loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
