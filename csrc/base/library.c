#include "base/library.h"

#include <dlfcn.h>
#include <string.h>

/* dlsym returns an object's address, which C does not convert to a function's. */
bool loom_library_find(void *library, const char *name, void *function) {
    void *const address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}
