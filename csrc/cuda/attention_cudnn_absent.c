#include "cuda/attention_cudnn.h"

#include "base/check.h"

/* Compiled in place of attention_cudnn.c, cudnn_graph.c and cudnn_api.c where cuDNN's header was not found. */

static bool absent(loom_error *error) {
    return loom_fail(error,
                     "--attention cudnn: this program was built without cuDNN's header, cudnn.h; install cuDNN 9 "
                     "and build again, or leave --attention away");
}

bool loom_cuda_cudnn_create(loom_cuda_cudnn **cudnn, loom_cuda *cuda, loom_error *error) {
    (void)cudnn, (void)cuda;
    return absent(error);
}

bool loom_cuda_cudnn_create_for(loom_cuda_cudnn **cudnn, const char *properties, loom_tuning *tuning,
                                loom_error *error) {
    (void)cudnn, (void)properties, (void)tuning;
    return absent(error);
}

/* None is ever created: only NULL comes here. */
void loom_cuda_cudnn_destroy(loom_cuda_cudnn *cudnn) {
    LOOM_CHECK(!cudnn);
}

const char *loom_cuda_cudnn_library(const loom_cuda_cudnn *cudnn) {
    LOOM_CHECK(!cudnn);
    return "no cuDNN";
}

bool loom_cuda_cudnn_supports(loom_cuda_cudnn *cudnn, loom_op op, const void *arguments, const char **why) {
    (void)op, (void)arguments;
    LOOM_CHECK(!cudnn);
    *why = "attention by cuDNN";
    return false;
}

size_t loom_cuda_cudnn_workspace(loom_cuda_cudnn *cudnn, loom_op op, const void *arguments) {
    (void)op, (void)arguments;
    LOOM_CHECK(!cudnn);
    return 0;
}

bool loom_cuda_cudnn_prepare(loom_cuda_cudnn *cudnn, loom_op op, const void *arguments, loom_error *error) {
    (void)op, (void)arguments;
    LOOM_CHECK(!cudnn);
    return absent(error);
}

void loom_cuda_cudnn_install(loom_ops *ops) {
    (void)ops;
}
