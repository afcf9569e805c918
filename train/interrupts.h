/* Signals that ask a training to save and end: SIGINT (Ctrl-C), SIGTERM, SIGHUP, and SIGUSR1, by which Slurm warns of a
 * time limit and mpirun passes on what the launcher got.
 *
 *   the first  asks; a line on stderr says so at once
 *   then       SIGINT or SIGTERM says what would be lost, and the next one ends the program at once. SIGHUP, which a
 *              terminal that closes sends several times, and SIGUSR1 do not count again
 *
 * Before there is anything to lose, each but SIGUSR1 ends the program as if it were not caught. What the caller
 * ignores, as nohup does, stays ignored; and mpirun's SIGTERM, by which it ends ranks when one has died, is not caught.
 * */
#ifndef LOOM_TRAIN_INTERRUPTS_H
#define LOOM_TRAIN_INTERRUPTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

void loom_interrupts_catch(void);

/* The training begins after step `saved`, the last that is in a checkpoint; `saves`: there will be more. `speaks`: this
 * process says what becomes of signals; of several ranks one does. */
void loom_interrupts_begin(bool speaks, bool saves, int64_t saved);

/* From now on stdout shows a line that is drawn again and again: what is said of signals clears it first. */
void loom_interrupts_clear_line(void);

/* The last step that is done, and the last that is in a checkpoint: what would be lost. */
void loom_interrupts_progress(int64_t done, int64_t saved);

/* The same in words: "the 3 steps since the checkpoint of step 9 are lost". */
void loom_interrupts_name_lost(char *text, size_t size, int64_t done, int64_t saved);

/* The last signal that asked to end; 0: none. */
int loom_interrupts_asked(void);

/* The exit code of a training that has saved and ends: 0, or 128 and the signal that asked for it. A process of its own
 * (`alone`) ends by that signal, which shells take for the end of their loops, too, and does not return: to be called
 * last. A rank returns: to mpirun one that is ended by a signal has failed. SIGUSR1 asks for a pause, not for an end:
 * 0. */
int loom_interrupts_end(bool alone);

/* Ends this process by the signal; returns the exit code that says the same where it does not, being blocked or
 * ignored. */
int loom_interrupts_end_by(int number);

#ifdef __cplusplus
}
#endif
#endif
