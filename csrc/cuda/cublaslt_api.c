#include "cuda/cublaslt_api.h"

#include "base/library.h"

#include <dlfcn.h>
#include <stdlib.h>

/* The macro's value as text. */
#define TEXT(name)  TEXT_(name)
#define TEXT_(name) #name

static const char library_name[] = "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR);

const loom_cublaslt_api *loom_cublaslt_load(loom_error *error) {
    static loom_cublaslt_api api;
    static bool loaded;
    if (loaded) return &api;
    const char *file = getenv("LOOM_CUBLASLT");
    if (!file || !*file) file = library_name;
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        loom_fail(error,
                  "--device cuda: cuBLASLt cannot be loaded: %s; install the libraries of CUDA %d, or say where it is "
                  "with LOOM_CUBLASLT=/path/to/%s",
                  dlerror(), CUBLAS_VER_MAJOR, library_name);
        return NULL;
    }
#define FIND(name)                                                                                                     \
    if (!loom_library_find(library, "cublasLt" #name, &api.name)) {                                                    \
        loom_fail(error, "--device cuda: %s has no function cublasLt" #name ": it is not cuBLASLt", file);             \
        dlclose(library);                                                                                              \
        return NULL;                                                                                                   \
    }
    LOOM_CUBLASLT_FUNCTIONS(FIND)
#undef FIND
    const size_t version = api.GetVersion();
    if (version / 10000 != CUBLAS_VER_MAJOR) {
        loom_fail(error, "--device cuda: %s is version %zu of cuBLASLt, and this program is built for %d", file,
                  version / 10000, CUBLAS_VER_MAJOR);
        dlclose(library);
        return NULL;
    }
    loaded = true;
    return &api;
}
