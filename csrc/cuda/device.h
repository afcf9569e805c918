/* An NVIDIA GPU as a device, from the host's side. */
#ifndef LOOM_CUDA_DEVICE_H
#define LOOM_CUDA_DEVICE_H

#include "gptloom/device.h"

/* Opens a GPU: the first, or that of the local rank. *there says whether one was found, working or not. */
bool loom_cuda_open(loom_device **device, const loom_device_options *options, bool *there, loom_error *error);

/* As loom_device_open_shapes says. */
bool loom_cuda_open_shapes(loom_device **device, size_t memory, size_t reserved, loom_error *error);

#endif
