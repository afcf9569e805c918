#include "comm/nccl_api.h"

#include "base/library.h"

#include <dlfcn.h>
#include <stdlib.h>

const loom_nccl_api *loom_nccl_load(const char *file, loom_error *error) {
    static loom_nccl_api api;
    static bool loaded;
    if (loaded) return &api;
    if (!file || !*file) file = getenv("LOOM_NCCL");
    if (!file || !*file) file = "libnccl.so.2";
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        loom_fail(
            error,
            "--comm nccl: %s cannot be loaded: %s; install NCCL (libnccl2 of NVIDIA's package repository), or say "
            "where it is with LOOM_NCCL=/path/to/libnccl.so.2",
            file, dlerror());
        return NULL;
    }
#define FIND(result, name, arguments)                                                                                  \
    if (!loom_library_find(library, "nccl" #name, &api.name)) {                                                        \
        loom_fail(error, "--comm nccl: %s has no function nccl" #name ": it is not NCCL 2.18 or later", file);         \
        dlclose(library);                                                                                              \
        return NULL;                                                                                                   \
    }
    LOOM_NCCL_FUNCTIONS(FIND)
#undef FIND
    const int result = api.GetVersion(&api.version);
    if (result != LOOM_NCCL_SUCCESS || api.version < LOOM_NCCL_OLDEST) {
        loom_fail(error, "--comm nccl: %s is version %d.%d; NCCL 2.18 or later is needed", file, api.version / 10000,
                  api.version / 100 % 100);
        dlclose(library);
        return NULL;
    }
    loaded = true;
    return &api;
}
