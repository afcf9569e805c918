/* Libraries that are loaded at run time. */
#ifndef LOOM_BASE_LIBRARY_H
#define LOOM_BASE_LIBRARY_H

#include <stdbool.h>

/* Puts the address of a loaded library's function into `function`, the address of a pointer to such functions; false if
 * the library has none of the name. */
bool loom_library_find(void *library, const char *name, void *function);

#endif
