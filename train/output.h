/* The program's standard descriptors, and what happens where stdout cannot be written. */
#ifndef LOOM_TRAIN_OUTPUT_H
#define LOOM_TRAIN_OUTPUT_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Opens descriptors 0 to 2, where they are closed, so that no file of a run gets one of these numbers. */
void loom_output_open_descriptors(void);

/* For a command that is to outlive its stdout: a write into a pipe that nobody reads is a failed write, no signal. */
void loom_output_ignore_sigpipe(void);

/* Flushes stdout; in a hurry gives it up before it waits. False where that, or a write before it, has failed. */
bool loom_output_flush(void);

/* The same for a command that is to outlive its stdout: after a failure nothing more is written to it. */
void loom_output_flush_or_give_up(void);

/* May be called by a signal handler. In a hurry (base/say.h): if stdout or stderr is a pipe or a terminal that takes
 * nothing at present, as in front of a pager, gives it up; a write that waits there goes on. */
void loom_output_give_up_if_blocked(void);

/* Why stdout could not be written, as errno; 0: it could. */
int loom_output_failure(void);

#ifdef __cplusplus
}
#endif
#endif
