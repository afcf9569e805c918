/* Starting ranks on this machine by mpirun. */
#include "gptloom/comm.h"

#include "comm/rendezvous.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a small machine needs: more ranks than processors, which give way to each other when they wait, each with all
 * processors to share; and root, as in containers. */
static const char *const mpirun_arguments[] = {"--oversubscribe", "--mca", "mpi_yield_when_idle", "1",
                                               "--bind-to",       "none"};

static pid_t child; /* mpirun, for the handler */
static volatile sig_atomic_t asked;

/* The first time ranks are asked to save and end: mpirun passes SIGUSR1 on to them. The second time it ends them. */
static void pass_on(int number) {
    if (child > 0) kill(child, asked ? number : SIGUSR1);
    asked = 1;
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

/* Starts mpirun; a pipe that closes when it runs tells whether it could be. Returns errno, or 0. */
static int start(const char **line) {
    int told[2], failure = 0;
    if (pipe2(told, O_CLOEXEC) != 0) return errno;
    fflush(NULL);
    child = fork();
    if (child == 0) {
        /* A terminal's Ctrl-C is for this process, which passes it on. */
        const int nothing = open("/dev/null", O_RDONLY);
        setpgid(0, 0);
        if (nothing >= 0) dup2(nothing, STDIN_FILENO);
        execvp(line[0], (char *const *)(uintptr_t)line);
        failure = errno;
        const ssize_t written = write(told[1], &failure, sizeof failure);
        _exit(written == sizeof failure ? 127 : 126);
    }
    failure = child < 0 ? errno : 0;
    close(told[1]);
    int theirs;
    if (!failure && read(told[0], &theirs, sizeof theirs) == sizeof theirs) {
        failure = theirs;
        waitpid(child, NULL, 0);
    }
    close(told[0]);
    return failure;
}

/* Waits for mpirun, passing on what would end this process meanwhile. */
static int wait_for_child(void) {
    static const int passed[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction before[3], action = {.sa_handler = pass_on};
    int status = 0;
    asked = 0;
    for (int i = 0; i < 3; i++) {
        sigaction(passed[i], &action, &before[i]);
        if (before[i].sa_handler == SIG_IGN) sigaction(passed[i], &before[i], NULL);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    for (int i = 0; i < 3; i++) sigaction(passed[i], &before[i], NULL);
    child = 0;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* The first line that a rank left, without its end and "gptloom: "; or what its status says. */
static void read_last_line(const char *path, int status, loom_error *last_line) {
    static const char program[] = "gptloom: ";
    char text[sizeof last_line->message] = "";
    FILE *file = fopen(path, "re");
    if (file) {
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
    }
    text[strcspn(text, "\n")] = 0;
    const char *line = strncmp(text, program, strlen(program)) ? text : text + strlen(program);
    last_line->message[0] = 0;
    if (*line)
        loom_fail(last_line, "%s", line);
    else if (status > 128)
        loom_fail(last_line,
                  "a rank was ended by signal %d: mpirun's lines above say which, the ranks' logs their last "
                  "steps",
                  status - 128);
    else if (status)
        loom_fail(last_line, "the ranks ended with status %d: see above", status);
}

bool loom_launch_ranks(int ranks, char *const argv[], int *status, loom_error *last_line, loom_error *error) {
    const char *folder = getenv("TMPDIR");
    char path[1024], number[16];
    snprintf(number, sizeof number, "%d", ranks);
    snprintf(path, sizeof path, "%s/gptloom-line-XXXXXX", folder && *folder ? folder : "/tmp");
    const int file = mkstemp(path);
    if (file < 0) return loom_fail(error, "%s: %s", path, strerror(errno));
    close(file);
    setenv(LOOM_LAST_LINE, path, 1);
    const char **line = command_line(number, argv, geteuid() == 0);
    int failure = line ? start(line) : ENOMEM;
    free(line);
    if (!failure) {
        *status = wait_for_child();
        read_last_line(path, *status, last_line);
    }
    unsetenv(LOOM_LAST_LINE);
    unlink(path);
    if (failure == ENOENT)
        return loom_fail(error, "--ranks: mpirun is not on the path; install Open MPI (apt-get install openmpi-bin "
                                "libopenmpi-dev) and run make again");
    return !failure || loom_fail(error, "--ranks: mpirun cannot be started: %s", strerror(failure));
}
