/* Starting ranks on this machine by mpirun. */
#include "launch.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/say.h"
#include "comm/rendezvous.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a small machine needs: more ranks than processors, which give way to each other when they wait, each with all
 * processors to share; and root, as in containers. */
static const char *const mpirun_arguments[] = {"--oversubscribe", "--mca", "mpi_yield_when_idle", "1",
                                               "--bind-to",       "none"};

/* ------------------------------------------------------------------------------------------------------------ signals */

enum { INTERRUPT, TERMINATE, HANG_UP, USER, SIGNALS };
static const int signals[SIGNALS] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
static volatile sig_atomic_t got[SIGNALS]; /* how often */
static volatile sig_atomic_t first, by;    /* the first one; the last one that asks for more than a pause (SIGUSR1) */

static void count_signal(int number) {
    for (int i = 0; i < SIGNALS; i++)
        if (signals[i] == number) got[i]++;
    if (!first) first = number;
    if (number != SIGUSR1) by = number;
    loom_hurry(true);
}

/* What this process ignores, as nohup has it do, stays ignored. */
static void catch_signals(struct sigaction before[SIGNALS]) {
    const struct sigaction action = {.sa_handler = count_signal};
    first = by = 0;
    loom_hurry(false);
    for (int i = 0; i < SIGNALS; i++) {
        got[i] = 0;
        sigaction(signals[i], &action, &before[i]);
        if (before[i].sa_handler == SIG_IGN) sigaction(signals[i], &before[i], NULL);
    }
}

static void release_signals(const struct sigaction before[SIGNALS]) {
    for (int i = 0; i < SIGNALS; i++) sigaction(signals[i], &before[i], NULL);
}

/* -------------------------------------------------------------------------------------------------------------- starting */

typedef struct launch {
    int ranks;
    loom_ranks_hooks hooks;
    pid_t child;          /* mpirun */
    char mark[48];        /* a variable that all that comes of it has in its environment */
    char place[PATH_MAX]; /* a directory for the files of Open MPI; "" */
    int place_lock;
    int lines;      /* what ranks write: that they are ready, and why they end */
    int output;     /* mpirun's stderr, to be read; -1 at its end */
    int prints;     /* and its stdout */
    char line[512]; /* of that, as far as it has come */
    size_t used;
    loom_ranks_end *end;
    bool stopping;         /* the ranks were asked to save and end, */
    bool warned;           /* were asked again, */
    bool was_killed;       /* or mpirun to end at once */
    bool on_request;       /* by a signal to this process */
    double rank_killed_at; /* when mpirun said that a signal has killed a rank; 0 */
    double asked_at, killed_at;
} launch;

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
static void become(const char **line, pid_t parent, int prints, int output) {
    const int nothing = open("/dev/null", O_RDONLY);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(126);
    if (nothing >= 0) dup2(nothing, STDIN_FILENO);
    dup2(prints, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    execvp(line[0], (char *const *)(uintptr_t)line);
}

/* Starts mpirun. A pipe that closes when it runs tells whether it could be; else it brings errno, as a byte, which
 * cannot come in parts. Returns errno, or 0. */
static int start(launch *l, const char **line) {
    int pipes[3][2], failure = 0;
    const pid_t self = getpid();
    for (int i = 0; i < 3; i++) {
        if (pipe2(pipes[i], O_CLOEXEC) == 0) continue;
        failure = errno;
        while (i-- > 0) close(pipes[i][0]), close(pipes[i][1]);
        return failure;
    }
    const int *failed = pipes[0], *prints = pipes[1], *printed = pipes[2];
    fflush(NULL);
    l->child = fork();
    if (l->child == 0) {
        become(line, self, prints[1], printed[1]);
        const unsigned char why = (unsigned char)errno;
        _exit(write(failed[1], &why, sizeof why) == sizeof why ? 127 : 126);
    }
    failure = l->child < 0 ? errno : 0;
    for (int i = 0; i < 3; i++) close(pipes[i][1]);
    unsigned char why;
    ssize_t n = 0;
    while (!failure && (n = read(failed[0], &why, sizeof why)) < 0 && errno == EINTR) continue;
    if (n != 0) {
        failure = n > 0 ? why : errno;
        kill(l->child, SIGTERM); /* it has ended, unless nothing could be read */
        waitpid(l->child, NULL, 0);
    }
    close(failed[0]);
    if (failure) close(prints[0]), close(printed[0]);
    l->prints = prints[0];
    l->output = printed[0];
    return failure;
}

/* ------------------------------------------------------------------------------------------------------- mpirun's stderr
 * Which rank a signal has ended, mpirun alone knows, and prints in a line: "mpirun noticed that process rank 2 with PID
 * 0 on node here exited on signal 9 (Killed)." */

static void look_at_line(launch *l) {
    static const char begins[] = "mpirun noticed that process rank ";
    int rank, number;
    l->line[l->used] = 0;
    l->used = 0;
    const char *who = strstr(l->line, begins), *how = strstr(l->line, " exited on signal ");
    if (l->end->signal || !who || !how || sscanf(who + strlen(begins), "%6d", &rank) != 1 ||
        sscanf(how, " exited on signal %6d", &number) != 1 || rank < 0 || rank >= l->ranks || number < 1 ||
        number > SIGRTMAX)
        return;
    l->end->rank = rank;
    l->end->signal = number;
    l->rank_killed_at = loom_seconds_now();
}

/* Passes on what is there, and looks at it. */
static void listen_once(launch *l) {
    char text[4096];
    const ssize_t n = read(l->output, text, sizeof text);
    if (n < 0 && errno == EINTR) return;
    if (n > 0) loom_say(text, (size_t)n);
    for (ssize_t i = 0; i < n; i++) {
        if (text[i] == '\n')
            look_at_line(l);
        else if (l->used < sizeof l->line - 1)
            l->line[l->used++] = text[i];
    }
    if (n > 0) return;
    close(l->output);
    l->output = -1;
}

/* Passes on what ranks print. mpirun would end them where its stdout breaks; where ours does, nothing more is passed
 * on. Nor does a reader that does not read, as a pager, hold up what signals ask for. */
static void pass_on(launch *l) {
    char text[4096];
    const ssize_t n = read(l->prints, text, sizeof text);
    if (n < 0 && errno == EINTR) return;
    for (ssize_t done = 0; done < n && !l->end->unwritten;) {
        const bool may = loom_may_write(STDOUT_FILENO);
        const ssize_t out = may ? write(STDOUT_FILENO, text + done, (size_t)(n - done)) : -1;
        if (out >= 0)
            done += out;
        else if (!may || errno != EINTR)
            l->end->unwritten = may ? errno : EAGAIN;
    }
    if (n > 0) return;
    close(l->prints);
    l->prints = -1;
}

/* Listens for so long, or less; false where there was nothing. */
static bool listen_for(launch *l, int milliseconds) {
    struct pollfd polled[] = {{.fd = l->output, .events = POLLIN}, {.fd = l->prints, .events = POLLIN}};
    if (poll(polled, 2, milliseconds) <= 0) return false; /* a descriptor of -1 is passed over */
    if (polled[0].revents) listen_once(l);
    if (polled[1].revents) pass_on(l);
    return true;
}

/* ---------------------------------------------------------------------------------------------------- what ranks write */

/* The text in the file of lines, and how many ranks have come to where they can be asked to end. */
static int read_lines(const launch *l, char *text, size_t size) {
    int ready = 0;
    const ssize_t length = pread(l->lines, text, size - 1, 0);
    text[length > 0 ? length : 0] = 0;
    for (const char *at = text; (at = strstr(at, LOOM_RANK_READY)); at += strlen(LOOM_RANK_READY)) ready++;
    return ready;
}

static bool all_ready(const launch *l) {
    char *text = malloc(LOOM_LAST_LINE_BYTES);
    const bool ready = text && read_lines(l, text, LOOM_LAST_LINE_BYTES) >= l->ranks;
    free(text);
    return ready;
}

/* ------------------------------------------------------------------------------------------------------------- ending */

/* Whether a process carries the mark. */
static bool has_mark(const launch *l, const char *pid) {
    char path[64], *item = NULL;
    size_t size = 0;
    bool found = false;
    snprintf(path, sizeof path, "/proc/%.16s/environ", pid);
    FILE *file = fopen(path, "re");
    while (file && !found && getdelim(&item, &size, 0, file) > 0) found = !strcmp(item, l->mark);
    free(item);
    if (file) fclose(file);
    return found;
}

/* Kills whatever came of mpirun and is there still: ranks have process groups of their own. How many there were. */
static int kill_the_rest(const launch *l) {
    int count = 0;
    DIR *all = opendir("/proc");
    for (const struct dirent *entry; all && (entry = readdir(all));) {
        const long pid = strtol(entry->d_name, NULL, 10);
        if (pid <= 1 || pid == (long)getpid() || !has_mark(l, entry->d_name)) continue;
        kill((pid_t)pid, SIGKILL);
        count++;
    }
    if (all) closedir(all);
    return count;
}

/* mpirun ends its ranks then, which takes it a second where one does not heed it. */
static void end_at_once(launch *l) {
    if (!l->was_killed) kill(l->child, SIGTERM);
    if (!l->was_killed) l->killed_at = loom_seconds_now();
    l->was_killed = true;
}

/* Does what signals have asked for. */
static void heed_signals(launch *l) {
    static const double seconds_to_ask_again = 5; /* what mpirun got before it had noticed that its ranks run is lost */
    const double now = loom_seconds_now();
    const int interrupts = got[INTERRUPT]; /* read before what the handler sets later */
    const int again = interrupts - (first == SIGINT);
    if (!first || l->on_request) return;
    if (!l->stopping || now > l->asked_at + seconds_to_ask_again) {
        const bool ready = l->stopping || all_ready(l);
        if (ready) kill(l->child, SIGUSR1);
        if (ready || by) l->asked_at = now;
        l->stopping = ready;
    }
    /* Ranks that have not begun have nothing to save. */
    if ((by && !l->stopping) || got[TERMINATE] > 1 || again > 1) {
        l->on_request = true;
        end_at_once(l);
    } else if (again == 1 && !l->warned) {
        l->warned = true;
        if (l->hooks.asked_again) l->hooks.asked_again(l->hooks.user);
    }
}

/* Until mpirun has ended. What it has left, if anything, may hold its stderr still: that is not waited for. Where a
 * rank is killed while it joins the others, Open MPI 4 says so and then waits for ever. Its status, as waitpid() says
 * it. */
static int wait_for_mpirun(launch *l) {
    enum { LOOK_MILLISECONDS = 50 };
    static const double seconds_to_end = 2, seconds_to_be_killed = 1.5;
    int status = 0;
    for (;;) {
        const double now = loom_seconds_now();
        heed_signals(l);
        if (l->rank_killed_at > 0 && now > l->rank_killed_at + seconds_to_end) end_at_once(l);
        if (l->was_killed && now > l->killed_at + seconds_to_be_killed) {
            kill(-l->child, SIGKILL);
            kill_the_rest(l);
            l->killed_at = now;
        }
        listen_for(l, LOOK_MILLISECONDS);
        const pid_t ended = waitpid(l->child, &status, WNOHANG);
        if (ended > 0 || (ended < 0 && errno != EINTR)) break;
    }
    const double end = loom_seconds_now() + seconds_to_end;
    while (kill_the_rest(l) && loom_seconds_now() < end) listen_for(l, 10);
    while (listen_for(l, 0)) {
    }
    if (l->output >= 0) close(l->output);
    if (l->prints >= 0) close(l->prints);
    return status;
}

/* ------------------------------------------------------------------------------------------------------- how they ended */

/* The first line of ours that a rank left, without its end and "gptloom: ". */
static bool find_line(launch *l) {
    static const char program[] = "gptloom: ";
    char *text = malloc(LOOM_LAST_LINE_BYTES), *line = NULL;
    if (text) read_lines(l, text, LOOM_LAST_LINE_BYTES);
    for (char *at = text; at && *at && !line; at += strcspn(at, "\n"), at += *at == '\n')
        if (!strncmp(at, program, strlen(program))) line = at + strlen(program);
    if (line) line[strcspn(line, "\n")] = 0;
    if (line) loom_fail(&l->end->line, "%s", line);
    free(text);
    return line != NULL;
}

/* A rank's own words count most, then what this process has done itself, then what mpirun says. */
static void tell_end(launch *l, int status) {
    loom_ranks_end *end = l->end;
    end->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (find_line(l)) {
        if (l->was_killed) end->status = 128 + (l->on_request ? by : end->signal);
        return;
    }
    end->was_ended = l->was_killed || end->signal || end->status > 128;
    if (l->on_request) {
        end->status = 128 + by;
        loom_fail(&end->line, l->stopping ? "the ranks were ended at once, as was asked for"
                                          : "the ranks were asked to end before they had begun");
    } else if (end->signal) {
        end->status = 128 + end->signal;
        loom_fail(&end->line, "rank %d was ended by signal %d (%s)", end->rank, end->signal, strsignal(end->signal));
    } else if (end->status > 128) {
        /* Open MPI does not always name a rank that ends as it starts. */
        loom_fail(&end->line, "%s was ended by signal %d (%s)", WIFSIGNALED(status) ? "mpirun" : "a rank",
                  end->status - 128, strsignal(end->status - 128));
    } else if (end->status > 0) {
        loom_fail(&end->line, "the ranks ended with status %d: see above", end->status);
    } else if (by)
        end->status = 128 + by;
}

/* --------------------------------------------------------------------------------------------- files that Open MPI leaves
 * It keeps sockets and memory that ranks share in files, which stay if it is killed. They are put into a directory of this
 * process, which removes it, or else the next one does. A lock that ends with this process says that it is in use. */

static const char place_name[] = "gptloom-ranks-";

static int lock_place(const char *path) {
    struct stat mine, there;
    const int lock = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (lock >= 0 && fstat(lock, &mine) == 0 && mine.st_uid == geteuid() && flock(lock, LOCK_EX | LOCK_NB) == 0 &&
        lstat(path, &there) == 0 && there.st_ino == mine.st_ino)
        return lock;
    if (lock >= 0) close(lock);
    return -1;
}

static void remove_left_places(const char *base) {
    DIR *all = opendir(base);
    for (const struct dirent *entry; all && (entry = readdir(all));) {
        char path[PATH_MAX];
        if (strncmp(entry->d_name, place_name, strlen(place_name)) != 0 ||
            snprintf(path, sizeof path, "%s/%s", base, entry->d_name) >= (int)sizeof path)
            continue;
        const int lock = lock_place(path);
        if (lock < 0) continue;
        loom_remove_tree(path, NULL);
        close(lock);
    }
    if (all) closedir(all);
}

/* What somebody has set already holds. */
static const char *const place_variables[] = {"OMPI_MCA_orte_tmpdir_base", "OMPI_MCA_btl_vader_backing_directory"};
enum { PLACE_VARIABLES = sizeof place_variables / sizeof *place_variables };

static void make_place(launch *l) {
    static const char base[] = "/dev/shm";
    for (int i = 0; i < PLACE_VARIABLES; i++)
        if (getenv(place_variables[i])) return;
    remove_left_places(base);
    snprintf(l->place, sizeof l->place, "%s/%sXXXXXX", base, place_name);
    if (mkdtemp(l->place)) l->place_lock = lock_place(l->place);
    if (l->place_lock < 0) {
        l->place[0] = 0; /* Open MPI takes its own places */
        return;
    }
    for (int i = 0; i < PLACE_VARIABLES; i++) setenv(place_variables[i], l->place, 1);
}

static void remove_place(launch *l) {
    if (!l->place[0]) return;
    for (int i = 0; i < PLACE_VARIABLES; i++) unsetenv(place_variables[i]);
    loom_remove_tree(l->place, NULL);
    close(l->place_lock);
}

/* --------------------------------------------------------------------------------------------------------------- launch */

static bool prepare(launch *l, loom_error *error) {
    uint64_t number;
    char path[64];
    /* A file in memory, which is gone with this process, however it ends. */
    l->lines = memfd_create("lines of ranks", MFD_CLOEXEC);
    if (l->lines < 0 || getrandom(&number, sizeof number, 0) != sizeof number)
        return loom_fail(error, "--ranks: no memory for what ranks say: %s", strerror(errno));
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)getpid(), l->lines);
    snprintf(l->mark, sizeof l->mark, LOOM_RANKS_OF "=%ld-%016llx", (long)getpid(), (unsigned long long)number);
    setenv(LOOM_LAST_LINE, path, 1);
    setenv(LOOM_RANKS_OF, strchr(l->mark, '=') + 1, 1);
    make_place(l);
    return true;
}

static void clean_up(launch *l) {
    remove_place(l);
    unsetenv(LOOM_LAST_LINE);
    unsetenv(LOOM_RANKS_OF);
    if (l->lines >= 0) close(l->lines);
}

bool loom_launch_ranks(int ranks, char *const argv[], const loom_ranks_hooks *hooks, loom_ranks_end *end,
                       loom_error *error) {
    launch l = {.ranks = ranks, .end = end, .place_lock = -1, .lines = -1, .output = -1, .prints = -1};
    char number[16];
    *end = (loom_ranks_end){.rank = -1};
    if (hooks) l.hooks = *hooks;
    if (!prepare(&l, error)) return clean_up(&l), false;
    snprintf(number, sizeof number, "%d", ranks);
    /* A process that ignores its children's end, as it may have been started, could not ask how they ended. */
    struct sigaction before[SIGNALS], of_children, standard = {.sa_handler = SIG_DFL};
    sigaction(SIGCHLD, &standard, &of_children);
    catch_signals(before);
    const char **line = command_line(number, argv, geteuid() == 0);
    const int failure = line ? start(&l, line) : ENOMEM;
    free(line);
    if (!failure) tell_end(&l, wait_for_mpirun(&l));
    release_signals(before);
    sigaction(SIGCHLD, &of_children, NULL);
    clean_up(&l);
    if (failure == ENOENT)
        return loom_fail(error, "--ranks: mpirun is not on the path; install Open MPI (apt-get install openmpi-bin "
                                "libopenmpi-dev) and run make again");
    return !failure || loom_fail(error, "--ranks: mpirun cannot be started: %s", strerror(failure));
}
