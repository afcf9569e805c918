/* The functions of cuBLASLt that we call, loaded at run time: the library is so large that to load it costs a start of
 * the program more than all else, and is of use only where there is a GPU. product.c says what we use of them. */
#ifndef LOOM_CUDA_CUBLASLT_API_H
#define LOOM_CUDA_CUBLASLT_API_H

#include "gptloom/error.h"

#include <cublasLt.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LOOM_CUBLASLT_FUNCTIONS(X)                                                                                     \
    X(GetVersion)                                                                                                      \
    X(GetStatusString)                                                                                                 \
    X(Create)                                                                                                          \
    X(Destroy)                                                                                                         \
    X(MatmulDescCreate)                                                                                                \
    X(MatmulDescDestroy)                                                                                               \
    X(MatmulDescSetAttribute)                                                                                          \
    X(MatrixLayoutCreate)                                                                                              \
    X(MatrixLayoutDestroy)                                                                                             \
    X(MatmulPreferenceCreate)                                                                                          \
    X(MatmulPreferenceDestroy)                                                                                         \
    X(MatmulPreferenceSetAttribute)                                                                                    \
    X(MatmulAlgoGetHeuristic)                                                                                          \
    X(MatmulAlgoCheck)                                                                                                 \
    X(Matmul)

typedef struct loom_cublaslt_api {
#define LOOM_CUBLASLT_MEMBER(name) __typeof__(&cublasLt##name) name;
    LOOM_CUBLASLT_FUNCTIONS(LOOM_CUBLASLT_MEMBER)
#undef LOOM_CUBLASLT_MEMBER
} loom_cublaslt_api;

/* Loads cuBLASLt once for the process: the version that the program was built with, or what LOOM_CUBLASLT names. NULL
 * with an error if there is none. The emulation has one of its own (dev/emulation/cublaslt.cpp), the stand-in's
 * functions. */
const loom_cublaslt_api *loom_cublaslt_load(loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
