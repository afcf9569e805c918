#ifndef LOOM_BASE_PLURAL_H
#define LOOM_BASE_PLURAL_H

#include <stdint.h>

/* The end of a word for so many: "%d layer%s". */
static inline const char *loom_plural(int64_t n) {
    return n == 1 ? "" : "s";
}

#endif
