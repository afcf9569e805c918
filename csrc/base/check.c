#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>

void loom_check_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "%s:%d: this must hold and does not: %s\n", file, line, condition);
    abort();
}
