/* What libFuzzer calls: the target that LOOM_FUZZ names, in the directory that LOOM_FUZZ_FOLDER names. */
#include "fuzz/fuzz.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

static const fuzz::Target *chosen;

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    const char *name = std::getenv("LOOM_FUZZ"), *folder = std::getenv("LOOM_FUZZ_FOLDER");
    for (const fuzz::Target &target : fuzz::targets())
        if (name && !std::strcmp(name, target.name)) chosen = &target;
    if (!chosen || !folder) {
        for (const fuzz::Target &target : fuzz::targets()) std::printf("%s %zu\n", target.name, target.longest);
        std::exit(chosen ? 2 : 0);
    }
    fuzz::set_folder(folder);
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    chosen->run(data, size);
    return 0;
}
