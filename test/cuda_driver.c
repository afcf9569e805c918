/* A stand-in for the NVIDIA driver, libcuda.so.1, for test_cudnn: it has no device, loads every kernel that it is given
 * and runs none. With it cuDNN plans to the end, compiled kernels included, on machines without a GPU. */
#include <stddef.h>

enum { SUCCESS = 0, NOT_FOUND = 500 };

int cuDeviceGetCount(int *count);
int cuGetErrorName(int error, const char **name);
int cuGetErrorString(int error, const char **text);
int cuGetExportTable(const void **table, const void *which);
int cuLibraryLoadData(void **library);
int cuLibraryGetKernel(void **kernel);

int cuDeviceGetCount(int *count) {
    *count = 0;
    return SUCCESS;
}

int cuGetErrorName(int error, const char **name) {
    (void)error;
    *name = "an error of the stand-in for the driver";
    return SUCCESS;
}

int cuGetErrorString(int error, const char **text) {
    return cuGetErrorName(error, text);
}

/* Tables of functions that the runtime may do without. */
int cuGetExportTable(const void **table, const void *which) {
    (void)which;
    *table = NULL;
    return NOT_FOUND;
}

/* Anything but NULL will do: nobody looks inside. */
static char something;

int cuLibraryLoadData(void **library) {
    *library = &something;
    return SUCCESS;
}

int cuLibraryGetKernel(void **kernel) {
    *kernel = &something;
    return SUCCESS;
}

/* What cuDNN looks for and, while it plans, does not need an answer from. */
#define DOES_NOTHING(name)                                                                                             \
    int name(void);                                                                                                    \
    int name(void) {                                                                                                   \
        return SUCCESS;                                                                                                \
    }
DOES_NOTHING(cuCtxGetCurrent)
DOES_NOTHING(cuCtxGetLimit)
DOES_NOTHING(cuCtxPopCurrent)
DOES_NOTHING(cuCtxPushCurrent)
DOES_NOTHING(cuDeviceGet)
DOES_NOTHING(cuDriverGetVersion)
DOES_NOTHING(cuInit)
DOES_NOTHING(cuKernelGetAttribute)
DOES_NOTHING(cuKernelSetAttribute)
DOES_NOTHING(cuLaunchCooperativeKernel)
DOES_NOTHING(cuLaunchKernel)
DOES_NOTHING(cuLaunchKernelEx)
DOES_NOTHING(cuLibraryLoadFromFile)
DOES_NOTHING(cuLibraryUnload)
DOES_NOTHING(cuLinkAddData)
DOES_NOTHING(cuLinkComplete)
DOES_NOTHING(cuLinkCreate)
DOES_NOTHING(cuLinkDestroy)
DOES_NOTHING(cuOccupancyMaxPotentialClusterSize)
DOES_NOTHING(cuStreamGetCtx)
