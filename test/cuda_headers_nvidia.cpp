/* Compiled with NVIDIA's headers, where the CUDA Toolkit is. */
#include "cuda_headers.h"

header_table nvidia_headers() {
    return describe_headers();
}
