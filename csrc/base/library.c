#include "base/library.h"

#include <dlfcn.h>
#include <string.h>

/* dlsym returns a pointer to an object, which standard C does not convert to a pointer to a function. */
bool loom_library_find(void *library, const char *name, void *function) {
    void *const address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}
