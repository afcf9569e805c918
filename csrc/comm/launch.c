/* Starting ranks on this machine by mpirun. */
#include "gptloom/comm.h"

#include "base/clock.h"
#include "comm/backend.h"
#include "comm/rendezvous.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a small machine needs: more ranks than processors, which give way to each other when they wait, each with all
 * processors to share; and root, as in containers. */
static const char *const mpirun_arguments[] = {"--oversubscribe", "--mca", "mpi_yield_when_idle", "1",
                                               "--bind-to",       "none"};

static pid_t child;                 /* mpirun, for the handler */
static volatile sig_atomic_t asked; /* how often ranks were, */
static volatile sig_atomic_t by;    /* and the signal that did last */

/* The first time ranks are asked to save and end: mpirun passes SIGUSR1 on to them. The second time it ends them. */
static void pass_on(int number) {
    if (child > 0) kill(child, asked ? SIGTERM : SIGUSR1);
    by = number;
    asked++;
}

/* mpirun, its arguments and ours, ended by NULL; the caller frees it. */
static const char **command_line(char *ranks, char *const argv[], bool root) {
    const size_t fixed = sizeof mpirun_arguments / sizeof *mpirun_arguments;
    size_t ours = 0, n = 0;
    while (argv[ours]) ours++;
    const char **line = calloc(fixed + ours + 8, sizeof *line);
    if (!line) return NULL;
    line[n++] = "mpirun";
    if (root) line[n++] = "--allow-run-as-root";
    for (size_t i = 0; i < fixed; i++) line[n++] = mpirun_arguments[i];
    line[n++] = "-x";
    line[n++] = LOOM_LAST_LINE;
    line[n++] = "-np";
    line[n++] = ranks;
    for (size_t i = 0; i < ours; i++) line[n++] = argv[i];
    return line;
}

/* In the child: becomes mpirun, or returns. A terminal's Ctrl-C is for the parent, which passes it on. If the parent
 * ends, however it does, mpirun is ended, which ends the ranks. */
static void become(const char **line, pid_t parent, int output) {
    const int nothing = open("/dev/null", O_RDONLY);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(126);
    if (nothing >= 0) dup2(nothing, STDIN_FILENO);
    dup2(output, STDERR_FILENO);
    execvp(line[0], (char *const *)(uintptr_t)line);
}

/* Starts mpirun; its stderr is to be read from *output. A pipe that closes when it runs tells whether it could be.
 * Returns errno, or 0. */
static int start(const char **line, int *output) {
    int told[2], printed[2], failure = 0;
    const pid_t self = getpid();
    if (pipe2(told, O_CLOEXEC) != 0) return errno;
    if (pipe2(printed, O_CLOEXEC) != 0) {
        failure = errno;
        close(told[0]);
        close(told[1]);
        return failure;
    }
    fflush(NULL);
    child = fork();
    if (child == 0) {
        become(line, self, printed[1]);
        failure = errno;
        const ssize_t written = write(told[1], &failure, sizeof failure);
        _exit(written == sizeof failure ? 127 : 126);
    }
    failure = child < 0 ? errno : 0;
    close(told[1]);
    close(printed[1]);
    int theirs;
    if (!failure && read(told[0], &theirs, sizeof theirs) == sizeof theirs) {
        failure = theirs;
        waitpid(child, NULL, 0);
    }
    close(told[0]);
    if (failure) close(printed[0]);
    *output = printed[0];
    return failure;
}

/* --------------------------------------------------------------------------------------------------- mpirun's stderr
 * Which rank a signal has ended, mpirun alone knows, and tells in a line: "mpirun noticed that process rank 2 with PID
 * 0 on node here exited on signal 9 (Killed)." */

typedef struct listener {
    int file;
    char line[512]; /* as far as it has come */
    size_t used;
    loom_ranks_end *end;
} listener;

static void look_at_line(listener *l) {
    int rank, number;
    l->line[l->used] = 0;
    l->used = 0;
    const char *who = strstr(l->line, "process rank "), *how = strstr(l->line, " exited on signal ");
    if (l->end->signal || !who || !how || sscanf(who, "process rank %d", &rank) != 1 ||
        sscanf(how, " exited on signal %d", &number) != 1)
        return;
    l->end->rank = rank;
    l->end->signal = number;
}

/* Passes on what is there, and looks at it. False at the end. */
static bool listen_once(listener *l) {
    char text[4096];
    const ssize_t n = read(l->file, text, sizeof text);
    if (n < 0) return errno == EINTR;
    for (ssize_t done = 0, out; done < n; done += out)
        if ((out = write(STDERR_FILENO, text + done, (size_t)(n - done))) <= 0) break;
    for (ssize_t i = 0; i < n; i++) {
        if (text[i] == '\n')
            look_at_line(l);
        else if (l->used < sizeof l->line - 1)
            l->line[l->used++] = text[i];
    }
    return n > 0;
}

/* Whether something is there to be read, now or in a moment. */
static bool has_more(const listener *l, int milliseconds) {
    struct pollfd polled = {.fd = l->file, .events = POLLIN};
    return poll(&polled, 1, milliseconds) > 0;
}

/* Until mpirun has ended. What it has left, if anything, may hold its stderr still: that is not waited for. Where a rank
 * is killed while it joins the others, Open MPI 4 says so and then waits for ever: it is ended after a while. */
static int listen_and_wait(listener *l) {
    enum { LOOK_MILLISECONDS = 50 };
    static const double seconds_to_end = 10;
    bool open = true;
    int status = 0;
    pid_t ended = 0;
    double told = 0;
    while (ended == 0 || (ended < 0 && errno == EINTR)) {
        if (l->end->signal && told == 0) told = loom_seconds_now();
        if (told > 0 && loom_seconds_now() > told + seconds_to_end) {
            kill(child, l->end->was_ended ? SIGKILL : SIGTERM);
            l->end->was_ended = true;
            told = loom_seconds_now();
        }
        if (!open)
            poll(NULL, 0, LOOK_MILLISECONDS);
        else if (has_more(l, LOOK_MILLISECONDS))
            open = listen_once(l);
        ended = waitpid(child, &status, WNOHANG);
    }
    while (open && has_more(l, 0)) open = listen_once(l);
    return status;
}

/* Waits for mpirun, passing on what would end this process meanwhile. */
static void wait_for_child(int output, loom_ranks_end *end) {
    static const int passed[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
    enum { PASSED = sizeof passed / sizeof *passed };
    struct sigaction before[PASSED], action = {.sa_handler = pass_on};
    listener l = {.file = output, .end = end};
    asked = 0;
    for (int i = 0; i < PASSED; i++) {
        sigaction(passed[i], &action, &before[i]);
        if (before[i].sa_handler == SIG_IGN) sigaction(passed[i], &before[i], NULL);
    }
    const int status = listen_and_wait(&l);
    for (int i = 0; i < PASSED; i++) sigaction(passed[i], &before[i], NULL);
    close(output);
    child = 0;
    end->status = end->was_ended ? 128 + end->signal
                                 : (WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
}

/* ------------------------------------------------------------------------------------------------------- the last line */

/* The first line that a rank left, without its end and "gptloom: "; or what the signals and status say. */
static void find_line(int lines, loom_ranks_end *end) {
    static const char program[] = "gptloom: ";
    char text[sizeof end->line.message];
    const ssize_t length = pread(lines, text, sizeof text - 1, 0);
    text[length > 0 ? length : 0] = 0;
    text[strcspn(text, "\n")] = 0;
    const char *line = strncmp(text, program, strlen(program)) ? text : text + strlen(program);
    const int status = end->status;
    const bool unready = asked == 1 && status == 128 + SIGUSR1; /* that signal found nobody who catches it */
    end->was_ended = !*line && (status > 128 || (status && asked > 1));
    if (unready || (end->was_ended && asked > 1)) end->status = 128 + by;
    if (*line)
        loom_fail(&end->line, "%s", line);
    else if (unready)
        loom_fail(&end->line, "the ranks were asked to end before they had begun");
    else if (end->was_ended && asked > 1)
        loom_fail(&end->line, "the ranks were ended at once, as was asked for");
    else if (end->signal)
        loom_fail(&end->line, "rank %d was ended by signal %d (%s)", end->rank, end->signal, strsignal(end->signal));
    else if (end->was_ended)
        loom_fail(&end->line, "mpirun or a rank was ended by signal %d (%s)", status - 128, strsignal(status - 128));
    else if (status)
        loom_fail(&end->line, "the ranks ended with status %d: see above", status);
}

bool loom_launch_ranks(int ranks, char *const argv[], loom_ranks_end *end, loom_error *error) {
    char path[64], number[16];
    int output = -1;
    *end = (loom_ranks_end){.rank = -1};
    snprintf(number, sizeof number, "%d", ranks);
    /* A file in memory, which is gone with this process, however it ends. */
    const int lines = memfd_create("lines of ranks", MFD_CLOEXEC);
    if (lines < 0) return loom_fail(error, "--ranks: no memory for what ranks say: %s", strerror(errno));
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)getpid(), lines);
    setenv(LOOM_LAST_LINE, path, 1);
    /* A process that ignores its children's end, as it may have been started, could not ask how they ended. */
    struct sigaction before, standard = {.sa_handler = SIG_DFL};
    sigaction(SIGCHLD, &standard, &before);
    const char **line = command_line(number, argv, geteuid() == 0);
    int failure = line ? start(line, &output) : ENOMEM;
    free(line);
    if (!failure) {
        wait_for_child(output, end);
        find_line(lines, end);
    }
    sigaction(SIGCHLD, &before, NULL);
    unsetenv(LOOM_LAST_LINE);
    close(lines);
    if (failure == ENOENT)
        return loom_fail(error, "--ranks: mpirun is not on the path; install Open MPI (apt-get install openmpi-bin "
                                "libopenmpi-dev) and run make again");
    return !failure || loom_fail(error, "--ranks: mpirun cannot be started: %s", strerror(failure));
}
