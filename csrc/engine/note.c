#include "engine/trainer.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void loom_trainer_add_note(loom_trainer *t, const char *format, ...) {
    const size_t used = strlen(t->note), room = sizeof t->note - used;
    va_list arguments;
    if (room < 2) return;
    if (used) strcat(t->note, "\n");
    va_start(arguments, format);
    vsnprintf(t->note + strlen(t->note), sizeof t->note - strlen(t->note), format, arguments);
    va_end(arguments);
}
