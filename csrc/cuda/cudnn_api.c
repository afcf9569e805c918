#include "cuda/cudnn_api.h"

#include "base/library.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum { OLDEST = 90800 }; /* the first that plans for a described device */

/* cuDNN loads these by name when it builds a graph, and does not look where this program does (RUNPATH is not
 * inherited). What the process has loaded already it takes. Where they are missing, cuDNN says so itself. */
static void load_what_cudnn_needs(void) {
    static const char *const names[] = {"libnvrtc.so", "libcublasLt.so"};
    char file[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(file, sizeof file, "%s.%d", names[i], CUDART_VERSION / 1000);
        dlopen(file, RTLD_NOW | RTLD_LOCAL);
    }
}

const loom_cudnn_api *loom_cudnn_load(loom_error *error) {
    static loom_cudnn_api api;
    static bool loaded;
    if (loaded) return &api;
    const char *file = getenv("LOOM_CUDNN");
    if (!file || !*file) file = "libcudnn.so.9";
    load_what_cudnn_needs();
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        loom_fail(error,
                  "--attention cudnn: %s cannot be loaded: %s; install cuDNN 9, or say where it is with "
                  "LOOM_CUDNN=/path/to/libcudnn.so.9",
                  file, dlerror());
        return NULL;
    }
#define FIND(name)                                                                                                     \
    if (!loom_library_find(library, "cudnn" #name, &api.name)) {                                                       \
        loom_fail(error, "--attention cudnn: %s has no function cudnn" #name ": it is not cuDNN 9", file);             \
        dlclose(library);                                                                                              \
        return NULL;                                                                                                   \
    }
    LOOM_CUDNN_FUNCTIONS(FIND)
#undef FIND
    const size_t version = api.GetVersion();
    if (version < OLDEST || version >= 100000) {
        loom_fail(error, "--attention cudnn: %s is version %zu; cuDNN 9.8 or a later 9 is needed", file, version);
        dlclose(library);
        return NULL;
    }
    loaded = true;
    return &api;
}
