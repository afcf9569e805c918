/* Messages on stderr and output on stdout whose reader may not read at the moment, as a pager. Writes wait for the
 * reader until a signal asks the program to end. */
#ifndef LOOM_BASE_SAY_H
#define LOOM_BASE_SAY_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* For handlers of signals that ask the program to end: from this call on (or, with false, no longer) writes do not wait
 * for a reader. A write that has begun before still waits, until the next signal. */
void loom_hurry(bool hurried);

/* Whether a descriptor may be written to. After loom_hurry(true) that is so only if it can take data without
 * waiting. */
bool loom_may_write(int descriptor);

/* Writes to stderr, in one write if possible, so that lines of several processes do not mix. After loom_hurry(true),
 * output that would have to wait is dropped. A signal handler may call this. */
void loom_say(const char *text, size_t length);

#ifdef __cplusplus
}
#endif
#endif
