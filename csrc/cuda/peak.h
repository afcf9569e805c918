/* What a GPU can do. */
#ifndef LOOM_CUDA_PEAK_H
#define LOOM_CUDA_PEAK_H

#include "gptloom/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As loom_device says. */
bool loom_cuda_peak(loom_device *device, loom_dtype dtype, double seconds, double *rate, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
