/* A library to preload: calls that the program makes fail as asked. README.md beside this tells how to ask.
 *
 * Only calls whose return address lies in a module of ours count: what libraries call of each other is theirs. Whatever
 * this library does itself it does by system calls, so that it never meets its own wrappers. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <limits.h>
#include <link.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------------------- functions
 * Each with its groups: M gets memory, F changes files, R reads or opens, S is of sockets, O of others. */

/* clang-format off */
#define FUNCTIONS(X)                                                                                                   \
    X(malloc, 'M') X(calloc, 'M') X(realloc, 'M') X(aligned_alloc, 'M') X(posix_memalign, 'M') X(strdup, 'M')          \
    X(strndup, 'M') X(asprintf, 'M') X(open_memstream, 'M')                                                            \
    X(open, 'R') X(openat, 'R') X(read, 'R') X(pread, 'R') X(mmap, 'R') X(close, 'R') X(fstat, 'R') X(stat, 'R')       \
    X(lstat, 'R') X(lseek, 'R') X(readlink, 'R') X(realpath, 'R') X(opendir, 'R') X(readdir, 'R') X(glob, 'R')         \
    X(fopen, 'R') X(fdopen, 'R') X(fgets, 'R') X(fread, 'R') X(getline, 'R') X(flock, 'R')                             \
    X(write, 'F') X(pwrite, 'F') X(fsync, 'F') X(fdatasync, 'F') X(ftruncate, 'F') X(rename, 'F') X(renameat2, 'F')    \
    X(link, 'F') X(symlink, 'F') X(mkdir, 'F') X(unlink, 'F') X(unlinkat, 'F') X(rmdir, 'F') X(remove, 'F')            \
    X(nftw, 'F') X(create, 'F') X(fclose, 'F') X(fflush, 'F') X(fwrite, 'F') X(fputs, 'F') X(fputc, 'F')               \
    X(fprintf, 'F')                                                                                                    \
    X(printf, 'T') X(puts, 'T') X(putchar, 'T')                                                                        \
    X(socket, 'S') X(bind, 'S') X(listen, 'S') X(accept, 'S') X(connect, 'S') X(send, 'S') X(recv, 'S') X(poll, 'S')   \
    X(getaddrinfo, 'S') X(setsockopt, 'S')                                                                             \
    X(pthread_create, 'O')                                                                                             \
    X(pthread_cond_timedwait, 'W')                                                                                     \
    X(getrandom, 'O') X(fork, 'O') X(pipe, 'O') X(pipe2, 'O') X(dup2, 'O')
/* clang-format on */

enum {
#define ENUM(name, group) FN_##name,
    FUNCTIONS(ENUM) N_FUNCTIONS
};

static const struct {
    const char *name;
    char group;
} functions[] = {
#define ROW(name, group) {#name, group},
    FUNCTIONS(ROW)};

static const struct {
    const char *name, *groups;
} groups[] = {{"any", "MRFSOT"}, {"memory", "M"}, {"reads", "R"}, {"files", "F"}, {"sockets", "S"}};

/* --------------------------------------------------------------------------------------------------------- what is asked */

enum { SHORT = 1000, KILL, KILL_AFTER, GONE, SIGNALLED = 2000, MAX_FAULTS = 64 };

typedef struct fault {
    int function;       /* -1: of a group */
    const char *groups; /* where function is -1 */
    char module[64];    /* "": any of ours */
    uintptr_t offset;
    int what; /* an errno, or SHORT, .., or SIGNALLED with a signal's number */
    long at;
    bool from_there_on;
    atomic_long seen;
} fault;

static bool active, has_files_to_mind;
static fault faults[MAX_FAULTS];
static int n_faults;
static const char *log_path, *from = "program,libgptloom_mpi.so", *under;
static char under_path[PATH_MAX];
static struct {
    bool no_links, no_fsync, read_only, no_locks, no_exchange, no_mmap;
    bool full;
    atomic_long room; /* bytes, where full */
    unsigned slow;    /* microseconds a call */
} filesystem;

/* ------------------------------------------------------------------------------------------------------------- modules */

enum { MAX_MODULES = 512 };
typedef struct module {
    uintptr_t begin, end, base;
    char name[64];
    bool ours;
} module;
static module modules[MAX_MODULES];
static atomic_int n_modules;
static pthread_mutex_t modules_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static bool is_ours(const char *name) {
    const size_t length = strlen(name);
    for (const char *item = from; *item;) {
        const size_t n = strcspn(item, ",");
        if (n > 0 && n <= length && strncmp(item, name, n) == 0) return true;
        item += n + (item[n] == ',');
    }
    return false;
}

static int add_module(struct dl_phdr_info *info, size_t size, void *user) {
    (void)size, (void)user;
    const char *slash = strrchr(info->dlpi_name, '/');
    const char *name = !*info->dlpi_name ? "program" : slash ? slash + 1 : info->dlpi_name;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        const uintptr_t begin = info->dlpi_addr + header->p_vaddr;
        bool known = header->p_type != PT_LOAD || !(header->p_flags & PF_X);
        for (int m = 0; !known && m < n_modules; m++) known = modules[m].begin == begin;
        if (known || n_modules == MAX_MODULES) continue;
        module *next = &modules[n_modules];
        *next = (module){begin, begin + header->p_memsz, info->dlpi_addr, "", is_ours(name)};
        snprintf(next->name, sizeof next->name, "%s", name);
        n_modules++;
    }
    return 0;
}

static const module *known_module(uintptr_t address) {
    const int n = n_modules;
    for (int i = 0; i < n; i++)
        if (address >= modules[i].begin && address < modules[i].end) return &modules[i];
    return NULL;
}

/* The module of an address; those that were loaded since are found when one of their addresses comes. */
static const module *module_of(uintptr_t address) {
    const module *found = known_module(address);
    if (found) return found;
    pthread_mutex_lock(&modules_lock);
    dl_iterate_phdr(add_module, NULL);
    pthread_mutex_unlock(&modules_lock);
    return known_module(address);
}

/* ----------------------------------------------------------------------------------------------------------------- log */

static void log_text(const char *text, size_t length) {
    if (!log_path) return;
    const int file = (int)syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0) return;
    if (syscall(SYS_write, file, text, length) < 0) {
    }
    syscall(SYS_close, file);
}

__attribute__((format(printf, 1, 2))) static void log_line(const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length > 0) log_text(line, (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
}

/* Call sites that were reached, and how often. */
enum { MAX_SITES = 1 << 12 };
static struct {
    _Atomic uintptr_t key; /* the address with the function above */
    atomic_long calls;
} sites[MAX_SITES];

static void count_site(int function, const module *m, uintptr_t address) {
    const uintptr_t key = address ^ (uintptr_t)(function + 1) << 56;
    for (size_t probe = 0, at = (key * 0x9E3779B97F4A7C15u) >> 52; probe < MAX_SITES;
         probe++, at = (at + 1) % MAX_SITES) {
        uintptr_t empty = 0;
        if (atomic_compare_exchange_strong(&sites[at].key, &empty, key))
            log_line("site %s %s+0x%lx\n", functions[function].name, m->name, (unsigned long)(address - m->base));
        else if (empty != key)
            continue;
        sites[at].calls++;
        return;
    }
}

/* How often each site was reached, told by a process that ends by exit(). */
__attribute__((destructor)) static void tell_counts(void) {
    if (!active) return;
    for (size_t i = 0; i < MAX_SITES; i++) {
        if (!sites[i].key) continue;
        const int function = (int)(sites[i].key >> 56) - 1;
        const uintptr_t address = sites[i].key & (((uintptr_t)1 << 56) - 1);
        const module *m = module_of(address);
        if (m)
            log_line("count %s %s+0x%lx %ld\n", functions[function].name, m->name, (unsigned long)(address - m->base),
                     sites[i].calls);
    }
}

/* ------------------------------------------------------------------------------------------------------------- deciding */

static bool concerns(const fault *f, int function, const module *m, uintptr_t address) {
    if (f->function >= 0 ? f->function != function : !strchr(f->groups, functions[function].group)) return false;
    return !*f->module || (strcmp(f->module, m->name) == 0 && f->offset == address - m->base);
}

static void end_process(void) {
    syscall(SYS_kill, syscall(SYS_getpid), 9);
}

/* Whether this call is to fail: 0, an errno, SHORT or KILL_AFTER. */
static int verdict(int function, const void *caller) {
    if (!active) return 0;
    const uintptr_t address = (uintptr_t)caller;
    const module *m = module_of(address);
    if (!m || !m->ours) return 0;
    const int kept = errno;
    count_site(function, m, address);
    errno = kept;
    int what = 0;
    for (int i = 0; i < n_faults; i++) {
        fault *f = &faults[i];
        if (!concerns(f, function, m, address)) continue;
        const long n = ++f->seen;
        if (n != f->at && !(f->from_there_on && n > f->at)) continue;
        log_line("fired %s %s+0x%lx %d %ld\n", functions[function].name, m->name, (unsigned long)(address - m->base),
                 f->what, n);
        if (f->what == KILL) end_process();
        if (f->what > SIGNALLED)
            syscall(SYS_kill, syscall(SYS_getpid), f->what - SIGNALLED); /* and the call is made */
        else
            what = f->what;
    }
    errno = kept;
    return what;
}

#define VERDICT(name) verdict(FN_##name, __builtin_return_address(0))
#define RESOLVE(name)                                                                                                  \
    static __typeof__(&name) real;                                                                                     \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* ------------------------------------------------------------------------------------------------------- file systems */

static bool is_under(const char *path) {
    static const char *const systems[] = {"/dev", "/proc", "/sys"};
    for (size_t i = 0; i < sizeof systems / sizeof *systems; i++) {
        const size_t length = strlen(systems[i]);
        if (!strncmp(path, systems[i], length) && (!path[length] || path[length] == '/')) return false;
    }
    return !under || !strncmp(path, under_path, strlen(under_path));
}

static bool minds_path(const char *path) {
    if (!has_files_to_mind) return false;
    if (filesystem.slow && is_under(path)) syscall(SYS_nanosleep, &(struct timespec){0, filesystem.slow * 1000L}, NULL);
    if (*path == '/' || !under) return is_under(path);
    char whole[2 * PATH_MAX], here[PATH_MAX];
    if (syscall(SYS_getcwd, here, sizeof here) < 0) return false;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    return is_under(whole);
}

static bool minds_descriptor(int descriptor) {
    char name[64], path[PATH_MAX];
    if (!has_files_to_mind) return false;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    const long n = syscall(SYS_readlinkat, AT_FDCWD, name, path, sizeof path - 1);
    if (n <= 0 || *path != '/') return false;
    path[n] = 0;
    if (filesystem.slow && is_under(path)) syscall(SYS_nanosleep, &(struct timespec){0, filesystem.slow * 1000L}, NULL);
    return is_under(path);
}

static bool there_is(const char *path) {
    return syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
}

/* What a file system says to a call that makes, moves or removes something: 0 or an errno. */
static int refusal(const char *path, bool makes) {
    if (!minds_path(path)) return 0;
    if (filesystem.read_only) return makes == there_is(path) ? (makes ? EEXIST : ENOENT) : EROFS;
    return makes && filesystem.full && filesystem.room <= 0 ? ENOSPC : 0;
}

/* How many of these bytes there is room for. */
static size_t take_room(int descriptor, size_t bytes) {
    if (!filesystem.full || !minds_descriptor(descriptor)) return bytes;
    const long left = atomic_fetch_sub(&filesystem.room, (long)bytes);
    return left >= (long)bytes ? bytes : left > 0 ? (size_t)left : 0;
}

/* -------------------------------------------------------------------------------------------------------- set-up */

static int errno_of(const char *name) {
    if (!strcmp(name, "short")) return SHORT;
    if (!strcmp(name, "kill")) return KILL;
    if (!strcmp(name, "killafter")) return KILL_AFTER;
    if (!strcmp(name, "gone")) return GONE;
    for (int n = 1; n < 32; n++)
        if (!strncmp(name, "SIG", 3) && sigabbrev_np(n) && !strcmp(sigabbrev_np(n), name + 3)) return SIGNALLED + n;
    for (int e = 1; e < 134; e++)
        if (strerrorname_np(e) && !strcmp(strerrorname_np(e), name)) return e;
    return 0;
}

static void refuse(const char *text) {
    char line[512];
    const int n = snprintf(line, sizeof line, "libfaults: '%.400s' is not understood; see test/faults/README.md\n",
                           text);
    if (syscall(SYS_write, 2, line, n) < 0) {
    }
    syscall(SYS_exit_group, 99);
}

/* FUNCTION[@MODULE+0xOFFSET]:WHAT:N[+] */
static void read_fault(const char *text) {
    char name[32] = "", what[32] = "", place[96] = "";
    fault *f = &faults[n_faults];
    int used = 0;
    if (n_faults == MAX_FAULTS) refuse(text);
    const bool placed = sscanf(text, "%31[a-z0-9_]@%95[^:]:%31[A-Za-z0-9]:%ld%n", name, place, what, &f->at, &used) ==
                        4;
    if (!placed && sscanf(text, "%31[a-z0-9_]:%31[A-Za-z0-9]:%ld%n", name, what, &f->at, &used) != 3) refuse(text);
    if (placed && sscanf(place, "%63[^+]+%lx", f->module, &f->offset) != 2) refuse(text);
    f->from_there_on = text[used] == '+';
    f->what = errno_of(what);
    f->function = -1;
    for (int i = 0; i < N_FUNCTIONS; i++)
        if (!strcmp(functions[i].name, name)) f->function = i;
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (!strcmp(groups[i].name, name)) f->groups = groups[i].groups;
    if (!f->what || f->at < 1 || (f->function < 0 && !f->groups)) refuse(text);
    n_faults++;
}

static void read_filesystem(const char *word) {
    has_files_to_mind = true;
    if (!strcmp(word, "nolinks"))
        filesystem.no_links = true;
    else if (!strcmp(word, "nofsync"))
        filesystem.no_fsync = true;
    else if (!strcmp(word, "readonly"))
        filesystem.read_only = true;
    else if (!strcmp(word, "nolocks"))
        filesystem.no_locks = true;
    else if (!strcmp(word, "noexchange"))
        filesystem.no_exchange = true;
    else if (!strcmp(word, "nommap"))
        filesystem.no_mmap = true;
    else if (!strncmp(word, "full=", 5))
        filesystem.full = true, filesystem.room = atol(word + 5);
    else if (!strncmp(word, "slow=", 5))
        filesystem.slow = (unsigned)atol(word + 5);
    else
        refuse(word);
}

static void for_each_word(const char *list, void (*take)(const char *word)) {
    char word[256];
    while (list && *list) {
        const size_t n = strcspn(list, ",");
        snprintf(word, sizeof word, "%.*s", (int)n, list);
        if (n > 0) take(word);
        list += n + (list[n] == ',');
    }
}

/* Whether this process is meant: other programs that the preloaded library comes to are left alone. */
static bool is_meant(void) {
    char path[PATH_MAX];
    const char *program = getenv("LOOM_FAULT_PROGRAM"), *rank = getenv("LOOM_FAULT_RANK"),
               *mine = getenv("OMPI_COMM_WORLD_RANK");
    if (!mine) mine = getenv("RANK");
    const long n = syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", path, sizeof path - 1);
    if (n <= 0) return false;
    path[n] = 0;
    if (strcmp(strrchr(path, '/') + 1, program ? program : "gptloom") != 0) return false;
    return !rank || !strcmp(mine ? mine : "none", rank);
}

__attribute__((constructor)) static void begin(void) {
    if (!is_meant()) return;
    if (getenv("LOOM_FAULT_FROM")) from = getenv("LOOM_FAULT_FROM");
    log_path = getenv("LOOM_FAULT_LOG");
    under = getenv("LOOM_FAULT_UNDER");
    if (under) snprintf(under_path, sizeof under_path, "%s", under);
    for_each_word(getenv("LOOM_FAULT"), read_fault);
    for_each_word(getenv("LOOM_FAULT_FS"), read_filesystem);
    dl_iterate_phdr(add_module, NULL);
    active = true;
}

/* -------------------------------------------------------------------------------------------------------------- memory
 * The next malloc may be that of a sanitizer. Before it is found, and while it is, memory comes from a small arena. */

static char arena[1 << 16] __attribute__((aligned(64)));
static atomic_size_t arena_used;
static __typeof__(&malloc) real_malloc;
static __typeof__(&calloc) real_calloc;
static __typeof__(&realloc) real_realloc;
static __typeof__(&free) real_free;
static __typeof__(&aligned_alloc) real_aligned_alloc;
static __typeof__(&posix_memalign) real_posix_memalign;
static bool finding;

static bool in_arena(const void *p) {
    return (const char *)p >= arena && (const char *)p < arena + sizeof arena;
}

static void *from_arena(size_t bytes) {
    const size_t at = atomic_fetch_add(&arena_used, (bytes + 63) / 64 * 64);
    return at + bytes <= sizeof arena ? arena + at : NULL;
}

static bool found_memory(void) {
    if (real_posix_memalign) return true;
    if (finding) return false;
    finding = true;
    real_malloc = (__typeof__(&malloc))dlsym(RTLD_NEXT, "malloc");
    real_calloc = (__typeof__(&calloc))dlsym(RTLD_NEXT, "calloc");
    real_realloc = (__typeof__(&realloc))dlsym(RTLD_NEXT, "realloc");
    real_free = (__typeof__(&free))dlsym(RTLD_NEXT, "free");
    real_aligned_alloc = (__typeof__(&aligned_alloc))dlsym(RTLD_NEXT, "aligned_alloc");
    real_posix_memalign = (__typeof__(&posix_memalign))dlsym(RTLD_NEXT, "posix_memalign");
    finding = false;
    return true;
}

static void *no_memory(void) {
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t bytes) {
    if (!found_memory()) return from_arena(bytes);
    return VERDICT(malloc) ? no_memory() : real_malloc(bytes);
}
void *calloc(size_t n, size_t bytes) {
    if (!found_memory()) return from_arena(n * bytes); /* is zero as it is */
    return VERDICT(calloc) ? no_memory() : real_calloc(n, bytes);
}
void *realloc(void *p, size_t bytes) {
    if (!found_memory()) return NULL;
    if (VERDICT(realloc)) return no_memory();
    if (!in_arena(p)) return real_realloc(p, bytes);
    const size_t there = (size_t)(arena + sizeof arena - (char *)p);
    void *q = real_malloc(bytes);
    return q ? memcpy(q, p, bytes < there ? bytes : there) : NULL;
}
void free(void *p) {
    if (!p || in_arena(p)) return;
    if (found_memory()) real_free(p);
}
void *aligned_alloc(size_t alignment, size_t bytes) {
    found_memory();
    return VERDICT(aligned_alloc) ? no_memory() : real_aligned_alloc(alignment, bytes);
}
int posix_memalign(void **p, size_t alignment, size_t bytes) {
    found_memory();
    return VERDICT(posix_memalign) ? ENOMEM : real_posix_memalign(p, alignment, bytes);
}
char *strdup(const char *text) {
    RESOLVE(strdup);
    return VERDICT(strdup) ? no_memory() : real(text);
}
char *strndup(const char *text, size_t n) {
    RESOLVE(strndup);
    return VERDICT(strndup) ? no_memory() : real(text, n);
}
int asprintf(char **text, const char *format, ...) {
    const int what = VERDICT(asprintf);
    va_list arguments;
    if (what) {
        *text = NULL;
        errno = ENOMEM;
        return -1;
    }
    va_start(arguments, format);
    const int n = vasprintf(text, format, arguments);
    va_end(arguments);
    return n;
}
FILE *open_memstream(char **text, size_t *size) {
    RESOLVE(open_memstream);
    return VERDICT(open_memstream) ? no_memory() : real(text, size);
}

/* --------------------------------------------------------------------------------------------------------------- plain
 * Calls that are either made or not. AFTER is where a process ends that is to end behind the call. */

#define REAL_SHORT(what) ((what) && (what) != SHORT && (what) != KILL_AFTER && (what) != GONE)
#define PLAIN(type, name, parameters, arguments, failed)                                                               \
    type name parameters {                                                                                             \
        RESOLVE(name);                                                                                                 \
        const int what = VERDICT(name);                                                                                \
        if (REAL_SHORT(what)) {                                                                                        \
            errno = what;                                                                                              \
            return failed;                                                                                             \
        }                                                                                                              \
        type result = real arguments;                                                                                  \
        if (what == KILL_AFTER) end_process();                                                                         \
        return result;                                                                                                 \
    }

PLAIN(int, fstat, (int file, struct stat *status), (file, status), -1)
PLAIN(int, lstat, (const char *path, struct stat *status), (path, status), -1)
PLAIN(off_t, lseek, (int file, off_t offset, int whence), (file, offset, whence), -1)
PLAIN(ssize_t, readlink, (const char *path, char *target, size_t size), (path, target, size), -1)
PLAIN(char *, realpath, (const char *path, char *out), (path, out), NULL)
PLAIN(DIR *, opendir, (const char *path), (path), NULL)
PLAIN(struct dirent *, readdir, (DIR * directory), (directory), NULL)
PLAIN(int, nftw, (const char *path, __nftw_func_t visit, int depth, int flags), (path, visit, depth, flags), -1)
PLAIN(FILE *, fdopen, (int file, const char *mode), (file, mode), NULL)
PLAIN(int, socket, (int domain, int type, int protocol), (domain, type, protocol), -1)
PLAIN(int, bind, (int file, const struct sockaddr *address, socklen_t size), (file, address, size), -1)
PLAIN(int, listen, (int file, int waiting), (file, waiting), -1)
PLAIN(int, connect, (int file, const struct sockaddr *address, socklen_t size), (file, address, size), -1)
PLAIN(int, setsockopt, (int file, int level, int name, const void *value, socklen_t size),
      (file, level, name, value, size), -1)
PLAIN(int, poll, (struct pollfd * files, nfds_t n, int timeout), (files, n, timeout), -1)
PLAIN(ssize_t, getrandom, (void *data, size_t bytes, unsigned flags), (data, bytes, flags), -1)
PLAIN(pid_t, fork, (void), (), -1)
PLAIN(int, pipe, (int ends[2]), (ends), -1)
PLAIN(int, pipe2, (int ends[2], int flags), (ends, flags), -1)
PLAIN(int, dup2, (int from_file, int to_file), (from_file, to_file), -1)

/* GONE: somebody else has just deleted it. */
int stat(const char *path, struct stat *status) {
    RESOLVE(stat);
    const int what = VERDICT(stat);
    if (what == GONE) syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (REAL_SHORT(what)) return errno = what, -1;
    return real(path, status);
}
/* The time is over at once. */
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *end) {
    RESOLVE(pthread_cond_timedwait);
    return VERDICT(pthread_cond_timedwait) ? ETIMEDOUT : real(condition, mutex, end);
}
int accept(int file, struct sockaddr *address, socklen_t *size) {
    RESOLVE(accept);
    const int what = VERDICT(accept);
    if (REAL_SHORT(what)) return errno = what, -1;
    return real(file, address, size);
}
int accept4(int file, struct sockaddr *address, socklen_t *size, int flags) {
    RESOLVE(accept4);
    const int what = VERDICT(accept);
    if (REAL_SHORT(what)) return errno = what, -1;
    return real(file, address, size, flags);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    RESOLVE(getaddrinfo);
    return VERDICT(getaddrinfo) ? EAI_AGAIN : real(node, service, hints, found);
}
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *user) {
    RESOLVE(pthread_create);
    return VERDICT(pthread_create) ? EAGAIN : real(thread, attributes, run, user);
}
int glob(const char *pattern, int flags, int (*failed)(const char *, int), glob_t *found) {
    RESOLVE(glob);
    return VERDICT(glob) ? GLOB_NOSPACE : real(pattern, flags, failed, found);
}

/* ------------------------------------------------------------------------------------- reads and writes, which may be short */

#define TRANSFER(name, parameters, bytes, call)                                                                        \
    ssize_t name parameters {                                                                                          \
        RESOLVE(name);                                                                                                 \
        const int what = VERDICT(name);                                                                                \
        if (REAL_SHORT(what)) return errno = what, -1;                                                                 \
        if (what == SHORT && bytes > 1) bytes /= 2;                                                                    \
        const ssize_t result = call;                                                                                   \
        if (what == KILL_AFTER) end_process();                                                                         \
        return result;                                                                                                 \
    }

static size_t room_or_fail(int file, size_t bytes, bool *failed) {
    const bool needs = bytes > 0 && file != STDERR_FILENO; /* messages come through */
    const size_t room = needs ? take_room(file, bytes) : bytes;
    *failed = needs && room == 0;
    if (*failed) errno = ENOSPC;
    return room;
}

TRANSFER(read, (int file, void *data, size_t bytes), bytes, real(file, data, bytes))
TRANSFER(pread, (int file, void *data, size_t bytes, off_t offset), bytes, real(file, data, bytes, offset))
TRANSFER(recv, (int file, void *data, size_t bytes, int flags), bytes, real(file, data, bytes, flags))
TRANSFER(send, (int file, const void *data, size_t bytes, int flags), bytes, real(file, data, bytes, flags))

ssize_t write(int file, const void *data, size_t bytes) {
    RESOLVE(write);
    bool full;
    int what = VERDICT(write);
    if (file == STDERR_FILENO && REAL_SHORT(what)) what = 0;
    if (REAL_SHORT(what)) return errno = what, -1;
    if (what == SHORT && bytes > 1) bytes /= 2;
    bytes = room_or_fail(file, bytes, &full);
    const ssize_t result = full ? -1 : real(file, data, bytes);
    if (what == KILL_AFTER) end_process();
    return result;
}
ssize_t pwrite(int file, const void *data, size_t bytes, off_t offset) {
    RESOLVE(pwrite);
    bool full;
    const int what = VERDICT(pwrite);
    if (REAL_SHORT(what)) return errno = what, -1;
    if (what == SHORT && bytes > 1) bytes /= 2;
    bytes = room_or_fail(file, bytes, &full);
    const ssize_t result = full ? -1 : real(file, data, bytes, offset);
    if (what == KILL_AFTER) end_process();
    return result;
}

/* A descriptor is closed whatever close says. */
int close(int file) {
    RESOLVE(close);
    const int what = VERDICT(close);
    const int result = real(file);
    if (REAL_SHORT(what)) return errno = what, -1;
    return result;
}

/* --------------------------------------------------------------------------------------------------------------- files */

static int file_fault(int what, int refused) {
    if (REAL_SHORT(what)) return what;
    return refused;
}

#define CHANGE(name, parameters, arguments, refused)                                                                   \
    int name parameters {                                                                                              \
        RESOLVE(name);                                                                                                 \
        const int what = VERDICT(name), why = file_fault(what, refused);                                               \
        if (why) {                                                                                                     \
            errno = why;                                                                                               \
            return -1;                                                                                                 \
        }                                                                                                              \
        const int result = real arguments;                                                                             \
        if (what == KILL_AFTER) end_process();                                                                         \
        return result;                                                                                                 \
    }

CHANGE(fsync, (int file), (file), filesystem.no_fsync &&minds_descriptor(file) ? EINVAL : 0)
CHANGE(fdatasync, (int file), (file), filesystem.no_fsync &&minds_descriptor(file) ? EINVAL : 0)
CHANGE(ftruncate, (int file, off_t size), (file, size), 0)
CHANGE(rename, (const char *a, const char *b), (a, b), minds_path(a) && filesystem.read_only ? EROFS : 0)
CHANGE(renameat2, (int at, const char *a, int bt, const char *b, unsigned flags), (at, a, bt, b, flags),
       !minds_path(a)                           ? 0
       : filesystem.read_only                   ? EROFS
       : (flags != 0 && filesystem.no_exchange) ? EINVAL
                                                : 0)
CHANGE(link, (const char *a, const char *b), (a, b), minds_path(b) && filesystem.no_links ? EPERM : refusal(b, true))
CHANGE(symlink, (const char *a, const char *b), (a, b), minds_path(b) && filesystem.no_links ? EPERM : refusal(b, true))
CHANGE(mkdir, (const char *path, mode_t mode), (path, mode), refusal(path, true))
CHANGE(unlink, (const char *path), (path), refusal(path, false))
CHANGE(unlinkat, (int at, const char *path, int flags), (at, path, flags), refusal(path, false))
CHANGE(rmdir, (const char *path), (path), refusal(path, false))
CHANGE(remove, (const char *path), (path), refusal(path, false))
CHANGE(flock, (int file, int how), (file, how), filesystem.no_locks &&minds_descriptor(file) ? ENOLCK : 0)

void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    RESOLVE(mmap);
    const int what = VERDICT(mmap);
    const int why = file_fault(what, file >= 0 && filesystem.no_mmap && minds_descriptor(file) ? ENODEV : 0);
    if (why) return errno = why, MAP_FAILED;
    return real(at, bytes, protection, flags, file, offset);
}

static int open_fault(int what, const char *path, int flags) {
    const bool writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) != 0;
    if (REAL_SHORT(what)) return what;
    if (!writes || !minds_path(path)) return 0;
    return filesystem.read_only ? EROFS : 0;
}

/* Making a file is counted as a change of files too, under the name "create". */
int open(const char *path, int flags, ...) {
    RESOLVE(open);
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    int what = VERDICT(open);
    if (flags & O_CREAT && !what) what = VERDICT(create);
    const int why = open_fault(what, path, flags);
    if (why) return errno = why, -1;
    const int result = real(path, flags, mode);
    if (what == KILL_AFTER) end_process();
    return result;
}
int openat(int at, const char *path, int flags, ...) {
    RESOLVE(openat);
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    int what = VERDICT(openat);
    if (flags & O_CREAT && !what) what = VERDICT(create);
    const int why = open_fault(what, path, flags);
    if (why) return errno = why, -1;
    const int result = real(at, path, flags, mode);
    if (what == KILL_AFTER) end_process();
    return result;
}

/* --------------------------------------------------------------------------------------------------------------- stdio
 * What stdio calls inside libc passes no wrapper; so its own calls fail. */

#define STREAM_VERDICT(name, file) ((file) == stderr ? 0 : VERDICT(name)) /* messages come through */

static int fail_stream(FILE *file, int why) {
    file->_flags |= 0x20; /* what ferror looks at */
    errno = why;
    return -1;
}

/* A stream that is not a standard one and has no room on a full disk left for what it holds. */
static bool overflows(FILE *file) {
    if (!has_files_to_mind || !filesystem.full || !file || fileno(file) < 3 || !minds_descriptor(fileno(file)))
        return false;
    const long held = (long)__fpending(file);
    if (held == 0 && filesystem.room > 0) return false;
    return atomic_fetch_sub(&filesystem.room, held) < held;
}

FILE *fopen(const char *path, const char *mode) {
    RESOLVE(fopen);
    int what = VERDICT(fopen);
    if (*mode != 'r' && !what) what = VERDICT(create);
    const int why = open_fault(what, path, *mode == 'r' ? O_RDONLY : O_WRONLY | O_CREAT);
    if (why) return errno = why, NULL;
    FILE *result = real(path, mode);
    if (what == KILL_AFTER) end_process();
    return result;
}
int fclose(FILE *file) {
    RESOLVE(fclose);
    const int what = VERDICT(fclose), why = file_fault(what, overflows(file) ? ENOSPC : 0);
    if (why && fileno(file) >= 0) __fpurge(file);
    const int result = real(file);
    if (why) return errno = why, EOF;
    if (what == KILL_AFTER) end_process();
    return result;
}
int fflush(FILE *file) {
    RESOLVE(fflush);
    const int what = STREAM_VERDICT(fflush, file), why = file_fault(what, overflows(file) ? ENOSPC : 0);
    if (why && file) {
        __fpurge(file);
        return fail_stream(file, why);
    }
    const int result = real(file);
    if (what == KILL_AFTER) end_process();
    return result;
}
size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    RESOLVE(fwrite);
    const int what = STREAM_VERDICT(fwrite, file), why = file_fault(what, 0);
    if (why) return fail_stream(file, why), 0;
    const size_t result = real(data, size, n, file);
    if (what == KILL_AFTER) end_process();
    return result;
}
int fputs(const char *text, FILE *file) {
    RESOLVE(fputs);
    const int what = STREAM_VERDICT(fputs, file), why = file_fault(what, 0);
    if (why) return fail_stream(file, why);
    const int result = real(text, file);
    if (what == KILL_AFTER) end_process();
    return result;
}
int fputc(int c, FILE *file) {
    RESOLVE(fputc);
    const int what = STREAM_VERDICT(fputc, file), why = file_fault(what, 0);
    if (why) return fail_stream(file, why);
    const int result = real(c, file);
    if (what == KILL_AFTER) end_process();
    return result;
}
int putc(int c, FILE *file) {
    RESOLVE(putc);
    const int what = STREAM_VERDICT(fputc, file), why = file_fault(what, 0);
    if (why) return fail_stream(file, why);
    const int result = real(c, file);
    if (what == KILL_AFTER) end_process();
    return result;
}
int fprintf(FILE *file, const char *format, ...) {
    const int what = STREAM_VERDICT(fprintf, file), why = file_fault(what, 0);
    if (why) return fail_stream(file, why);
    va_list arguments;
    va_start(arguments, format);
    const int n = vfprintf(file, format, arguments);
    va_end(arguments);
    if (what == KILL_AFTER) end_process();
    return n;
}
int printf(const char *format, ...) {
    const int why = file_fault(VERDICT(printf), 0);
    if (why) return fail_stream(stdout, why);
    va_list arguments;
    va_start(arguments, format);
    const int n = vfprintf(stdout, format, arguments);
    va_end(arguments);
    return n;
}
int puts(const char *text) {
    RESOLVE(puts);
    const int why = file_fault(VERDICT(puts), 0);
    return why ? fail_stream(stdout, why) : real(text);
}
int putchar(int c) {
    RESOLVE(putchar);
    const int why = file_fault(VERDICT(putchar), 0);
    return why ? fail_stream(stdout, why) : real(c);
}
char *fgets(char *line, int size, FILE *file) {
    RESOLVE(fgets);
    const int why = file_fault(VERDICT(fgets), 0);
    return why ? fail_stream(file, why), NULL : real(line, size, file);
}
size_t fread(void *data, size_t size, size_t n, FILE *file) {
    RESOLVE(fread);
    const int why = file_fault(VERDICT(fread), 0);
    return why ? fail_stream(file, why), 0 : real(data, size, n, file);
}
/* getline, as it is called. */
ssize_t __getdelim(char **line, size_t *size, int end, FILE *file);
ssize_t __getdelim(char **line, size_t *size, int end, FILE *file) {
    RESOLVE(__getdelim);
    const int why = file_fault(VERDICT(getline), 0);
    return why ? fail_stream(file, why) : real(line, size, end, file);
}
