/* What is said on stderr, and what is written to stdout, in front of a reader that does not read, as a pager: it is waited
 * for, until a signal asks for an end. */
#ifndef LOOM_BASE_SAY_H
#define LOOM_BASE_SAY_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* For handlers of signals that ask for an end: from now on (or, with false, no longer) no reader is waited for. A write that
 * was begun before waits still, until the next signal. */
void loom_hurry(bool hurried);

/* Whether a descriptor may be written to: in a hurry only where it takes something at present. */
bool loom_may_write(int descriptor);

/* Writes to stderr, if it can in one write, so that lines of several processes do not mix. In a hurry what would wait is
 * dropped. May be called by a signal handler. */
void loom_say(const char *text, size_t length);

#ifdef __cplusplus
}
#endif
#endif
