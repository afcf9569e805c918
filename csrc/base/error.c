#include "gptloom/error.h"

#include "base/printable.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* The message is formatted first and made printable here, for all callers, because messages are full of names and texts
 * from outside. If there is no memory to format a long message whole, it is cut. */
bool loom_fail(loom_error *error, const char *format, ...) {
    if (!error) return false;
    char text[sizeof error->message], *whole = text;
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int length = vsnprintf(text, sizeof text, format, arguments);
    if (length < 0) *text = 0;
    if (length >= (int)sizeof text && (whole = malloc((size_t)length + 1)))
        vsnprintf(whole, (size_t)length + 1, format, again);
    va_end(again);
    va_end(arguments);
    loom_printable_ends(error->message, sizeof error->message, whole ? whole : text);
    if (whole != text) free(whole);
    return false;
}
