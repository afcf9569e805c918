/* Libraries that are loaded at run time. */
#ifndef LOOM_BASE_LIBRARY_H
#define LOOM_BASE_LIBRARY_H

#include <stdbool.h>

/* Looks up a function of a loaded library and stores its address in `function`, which points to a function pointer.
 * Returns false if the library has no function of that name. */
bool loom_library_find(void *library, const char *name, void *function);

#endif
