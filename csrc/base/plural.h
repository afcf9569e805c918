#ifndef LOOM_BASE_PLURAL_H
#define LOOM_BASE_PLURAL_H

#include <stdint.h>

/* The plural ending of a word after the number n, as in "%d layer%s". */
static inline const char *loom_plural(int64_t n) {
    return n == 1 ? "" : "s";
}

#endif
