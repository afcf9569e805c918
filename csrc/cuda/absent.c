#include "cuda/device.h"

const char *loom_device_cuda_build(void) {
    return "not built in: there was no nvcc";
}

/* Linked in place of the CUDA device where there was no CUDA Toolkit to build it with. */
bool loom_cuda_open(loom_device **device, const loom_device_options *options, bool *there, loom_error *error) {
    (void)options;
    *device = NULL;
    *there = false;
    return loom_fail(error,
                     "--device cuda: this program was built without CUDA, as nvcc was not found; install the CUDA "
                     "Toolkit and build again, or take --device cpu");
}

bool loom_cuda_open_shapes(loom_device **device, size_t memory, size_t reserved, loom_error *error) {
    (void)memory, (void)reserved;
    *device = NULL;
    return loom_fail(error, "this program was built without CUDA, as nvcc was not found, and does not know what a GPU "
                            "needs; build/emulated/gptloom does");
}
