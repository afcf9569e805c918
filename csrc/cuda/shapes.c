#include "cuda/cuda.h"
#include "cuda/device.h"

#include <stdlib.h>

/* The CUDA device without a GPU or a driver: what ops support and the workspace they need follow from shapes alone, the
 * same for every GPU, so that a run can be planned for one that is not here. */

typedef struct absent_gpu {
    loom_device device; /* first, so that a device is an absent_gpu */
    size_t available;
} absent_gpu;

static size_t available(const loom_device *device) {
    return ((const absent_gpu *)device)->available;
}

/* Nothing is known of the host of a GPU that is not here. */
static size_t available_host(const loom_device *device) {
    (void)device;
    return SIZE_MAX;
}

static void close_device(loom_device *device) {
    free(device);
}

bool loom_cuda_open_shapes(loom_device **device, size_t memory, size_t reserved, loom_error *error) {
    absent_gpu *gpu = calloc(1, sizeof *gpu);
    if (!gpu) return loom_fail(error, "no memory for a device");
    gpu->available = memory > reserved ? memory - reserved : 0;
    gpu->device = (loom_device){.name = "cuda",
                                .ops = loom_cuda_ops(),
                                .storage = LOOM_F32,
                                .statistics = LOOM_F32,
                                .threads = 1,
                                .reserved = reserved,
                                .available = available,
                                .available_host = available_host,
                                .close = close_device};
    *device = &gpu->device;
    return true;
}
