#include "interrupts.h"
#include "output.h"

#include "base/say.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
enum { SIGNALS = sizeof signals / sizeof *signals };

/* The state that the signal handler reads. The handler prints only text that was prepared before: of two texts, one is
 * shown while the other is written. */
static atomic_int asked;    /* the last signal; 0: none */
static atomic_int repeated; /* SIGINT and SIGTERM signals since the first one */
static atomic_bool begun, speaks, saves, live;
static char text[2][256];
static atomic_int shown;

/* Writes a line to stderr. A live line on stdout is erased first; it is drawn again later. */
static void say(const char *line) {
    static const char clear[] = "\r\x1b[K";
    if (!speaks) return;
    const ssize_t written = live ? write(STDOUT_FILENO, clear, strlen(clear)) : 0;
    (void)written;
    loom_say(line, strlen(line));
}

/* Ends the program as the signal itself would. The signal is blocked in its handler and is delivered when the handler
 * returns. */
static void end_at_once(int number) {
    signal(number, SIG_DFL);
    raise(number);
}

static void handle(int number) {
    const int before = errno;
    const bool counts = number == SIGINT || number == SIGTERM;
    int none = 0;
    if (!begun && number != SIGUSR1) {
        end_at_once(number);
        return;
    }
    loom_hurry(true);
    loom_output_give_up_if_blocked();
    if (atomic_compare_exchange_strong(&asked, &none, number)) {
        say(saves ? "gptloom: interrupted: ends with the micro-batch and saves the last whole step; --resume goes on\n"
                  : "gptloom: interrupted: ends with the micro-batch\n");
    } else if (counts && atomic_fetch_add(&repeated, 1) > 0) {
        end_at_once(number);
    } else if (counts) {
        say(text[shown]);
    }
    if (asked && number != SIGUSR1) asked = number;
    errno = before;
}

void loom_interrupts_catch(void) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < SIGNALS; i++) sigaddset(&action.sa_mask, signals[i]);
    for (int i = 0; i < SIGNALS; i++) {
        struct sigaction before;
        /* mpirun sends SIGTERM to its ranks when one of them has died. Then there is no time to save, and not all ranks
         * are left to do it. */
        if (signals[i] == SIGTERM && getenv("OMPI_COMM_WORLD_RANK")) continue;
        if (sigaction(signals[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(signals[i], &action, NULL);
    }
}

void loom_interrupts_begin(bool does_speak, bool does_save, int64_t saved) {
    loom_interrupts_progress(saved, saved);
    speaks = does_speak;
    saves = does_save;
    begun = true;
}

void loom_interrupts_clear_line(void) {
    live = true;
}

void loom_interrupts_name_lost(char *lost, size_t size, int64_t done, int64_t saved) {
    snprintf(lost, size, "what is at work is lost");
    if (done > saved)
        snprintf(lost, size, "the %lld step%s since %s %lld %s lost", (long long)(done - saved),
                 done - saved == 1 ? "" : "s", saved > 0 ? "the checkpoint of step" : "step", (long long)saved,
                 done - saved == 1 ? "is" : "are");
}

void loom_interrupts_progress(int64_t done, int64_t saved) {
    const int next = 1 - shown;
    char lost[128];
    loom_interrupts_name_lost(lost, sizeof lost, done, saved);
    snprintf(text[next], sizeof text[next], "gptloom: ends and saves still; once more ends at once, and %s\n", lost);
    shown = next;
}

int loom_interrupts_asked(void) {
    return asked;
}

int loom_interrupts_end(bool alone) {
    const int number = asked;
    if (!number || number == SIGUSR1) return 0;
    return alone ? loom_interrupts_end_by(number) : 128 + number;
}

int loom_interrupts_end_by(int number) {
    sigset_t one;
    fflush(NULL);
    sigemptyset(&one);
    sigaddset(&one, number);
    signal(number, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    raise(number);
    return 128 + number;
}
