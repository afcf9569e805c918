#include "gptloom/error.h"

#include "base/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A message that is too long (a path can be) loses its middle: what is wrong stands at its end. */
static void keep_both_ends(loom_error *error, const char *format, va_list arguments, size_t length) {
    static const char gap[] = " ... ";
    const size_t kept = sizeof error->message / 2;
    char *whole = malloc(length + 1);
    if (!whole) return;
    vsnprintf(whole, length + 1, format, arguments);
    memcpy(error->message + sizeof error->message - kept, whole + length + 1 - kept, kept);
    memcpy(error->message + sizeof error->message - kept - strlen(gap), gap, strlen(gap));
    free(whole);
}

bool loom_fail(loom_error *error, const char *format, ...) {
    if (!error) return false;
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int length = vsnprintf(error->message, sizeof error->message, format, arguments);
    if (length >= (int)sizeof error->message) keep_both_ends(error, format, again, (size_t)length);
    va_end(again);
    va_end(arguments);
    for (char *c = error->message; *c; c++)
        if (*c == '\n' || *c == '\r') *c = ' ';
    return false;
}

void loom_check_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "%s:%d: this must hold and does not: %s\n", file, line, condition);
    abort();
}
