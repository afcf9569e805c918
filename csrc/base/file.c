#include "base/file.h"

#include "base/check.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

/* ------------------------------------------------------------------------------------------------------------ reading */

static int open_again(const char *path, int flags) {
    int descriptor;
    do descriptor = open(path, flags | O_CLOEXEC | O_NOCTTY, 0666);
    while (descriptor < 0 && errno == EINTR);
    return descriptor;
}

/* O_NONBLOCK changes nothing for a regular file, and a pipe is refused instead of waited for. */
static bool open_regular(const char *path, int flags, int *descriptor, struct stat *status, loom_error *error) {
    const char *verb = flags == O_RDONLY ? "read" : "written";
    *descriptor = open_again(path, flags | O_NONBLOCK);
    if (*descriptor < 0 && errno == ELOOP && flags & O_NOFOLLOW)
        return loom_fail(error, "%s: is a symbolic link, which is not followed here; move it elsewhere", path);
    if (*descriptor < 0 && errno != ENXIO) return loom_fail(error, "%s: cannot be %s: %s", path, verb, strerror(errno));
    if (*descriptor < 0) return loom_fail(error, "%s: is not a regular file", path);
    if (fstat(*descriptor, status) != 0 || !S_ISREG(status->st_mode)) {
        close(*descriptor);
        return loom_fail(error, "%s: is not a regular file", path);
    }
    return true;
}

bool loom_reader_open(loom_reader *reader, const char *path, loom_error *error) {
    struct stat status;
    if (snprintf(reader->path, sizeof reader->path, "%s", path) >= (int)sizeof reader->path)
        loom_fail(error, "%s: its name is too long", path);
    else if (open_regular(path, O_RDONLY, &reader->descriptor, &status, error)) {
        reader->size = (uint64_t)status.st_size;
        return true;
    }
    *reader->path = 0;
    return false;
}

bool loom_reader_read(const loom_reader *reader, uint64_t place, void *to, size_t bytes, loom_error *error) {
    while (bytes > 0) {
        const ssize_t got = pread(reader->descriptor, to, bytes, (off_t)place);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return loom_fail(error, "%s: cannot be read: %s", reader->path, strerror(errno));
        if (got == 0)
            return loom_fail(error,
                             "%s: has become shorter while it was read: it had %" PRIu64 " bytes and ends before byte "
                             "%" PRIu64,
                             reader->path, reader->size, place);
        to = (char *)to + got;
        place += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return true;
}

void loom_reader_close(loom_reader *reader) {
    if (*reader->path) close(reader->descriptor);
    *reader->path = 0;
}

/* The text is followed by a zero byte. */
static char *read_whole(const char *path, size_t limit, size_t *size, loom_error *error) {
    loom_reader reader;
    char *text = NULL;
    if (!loom_reader_open(&reader, path, error)) return NULL;
    *size = (size_t)reader.size;
    if (reader.size > limit)
        loom_fail(error, "%s: is larger than the %zu bytes such a file can have", path, limit);
    else if (!(text = malloc(*size + 1)))
        loom_fail(error, "%s: no memory to read it", path);
    else if (!loom_reader_read(&reader, 0, text, *size, error)) {
        free(text);
        text = NULL;
    } else
        text[*size] = 0;
    loom_reader_close(&reader);
    return text;
}

bool loom_file_map(const char *path, loom_mapping *mapping, loom_error *error) {
    *mapping = (loom_mapping){0};
    char *data = read_whole(path, SIZE_MAX - 1, &mapping->size, error);
    if (mapping->size == 0 || !data)
        free(data);
    else
        mapping->data = data;
    return data;
}

void loom_file_unmap(loom_mapping *mapping) {
    free((void *)mapping->data);
    *mapping = (loom_mapping){0};
}

char *loom_file_read_text(const char *path, size_t limit, loom_error *error) {
    size_t size;
    char *text = read_whole(path, limit, &size, error);
    if (!text || strlen(text) == size) return text;
    free(text);
    loom_fail(error, "%s: is damaged: it holds zero bytes, and should be text", path);
    return NULL;
}

static FILE *open_stream(int descriptor, const char *path, const char *mode, loom_error *error) {
    FILE *file = fdopen(descriptor, mode);
    if (file) return file;
    loom_fail(error, "%s: cannot be opened: %s", path, strerror(errno));
    close(descriptor);
    return NULL;
}

FILE *loom_file_open(const char *path, loom_error *error) {
    int descriptor;
    struct stat status;
    return open_regular(path, O_RDONLY, &descriptor, &status, error) ? open_stream(descriptor, path, "r", error) : NULL;
}

static void write_digits(XXH128_hash_t hash, char checksum[33]) {
    snprintf(checksum, 33, "%016llx%016llx", (unsigned long long)hash.high64, (unsigned long long)hash.low64);
}

void loom_checksum(const void *data, size_t bytes, char checksum[33]) {
    write_digits(XXH3_128bits(data, bytes), checksum);
}

bool loom_file_checksum(const char *path, uint64_t *size, char checksum[33], loom_error *error) {
    enum { CHUNK = 1 << 20 };
    loom_reader reader;
    if (!loom_reader_open(&reader, path, error)) return false;
    XXH3_state_t *hash = XXH3_createState();
    char *chunk = malloc(reader.size > 0 && reader.size < CHUNK ? (size_t)reader.size : CHUNK);
    bool ok = (hash && chunk) || loom_fail(error, "%s: no memory to read it", path);
    if (ok) XXH3_128bits_reset(hash);
    for (uint64_t at = 0; ok && at < reader.size; at += CHUNK) {
        const size_t n = reader.size - at < CHUNK ? (size_t)(reader.size - at) : CHUNK;
        ok = loom_reader_read(&reader, at, chunk, n, error);
        if (ok) XXH3_128bits_update(hash, chunk, n);
    }
    if (ok) write_digits(XXH3_128bits_digest(hash), checksum);
    *size = reader.size;
    free(chunk);
    XXH3_freeState(hash);
    loom_reader_close(&reader);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ writing */

struct loom_writer {
    int descriptor;
    uint64_t position; /* the file offset of the next write */
    size_t buffered;
    XXH3_state_t *hash; /* NULL: no checksum of the whole file is computed */
    bool part;          /* other processes write to this file too */
    char path[PATH_MAX];
    char name[PATH_MAX]; /* the name in error messages; for a temporary file, the final name */
    char buffer[1 << 16];
};

static uint64_t random_number(void) {
    uint64_t number;
    if (getrandom(&number, sizeof number, 0) == sizeof number) return number;
    struct timespec now; /* a kernel without it: O_EXCL stays what keeps others out */
    clock_gettime(CLOCK_REALTIME, &now);
    number = (uint64_t)now.tv_sec << 32 ^ (uint64_t)now.tv_nsec << 8 ^ (uint64_t)getpid();
    return XXH3_64bits(&number, sizeof number);
}

bool loom_temporary_path(const char *path, char *temporary, size_t size, loom_error *error) {
    const char *slash = strrchr(path, '/');
    const int folder = slash ? (int)(slash - path) + 1 : 0;
    const int length = snprintf(temporary, size, "%.*s" LOOM_TEMPORARY "%016" PRIx64, folder, path, random_number());
    return (length >= 0 && (size_t)length < size) || loom_fail(error, "%s: its name is too long", path);
}

bool loom_is_temporary(const char *name) {
    const size_t prefix = strlen(LOOM_TEMPORARY);
    return strncmp(name, LOOM_TEMPORARY, prefix) == 0 && strlen(name) == prefix + 16 &&
           strspn(name + prefix, "0123456789abcdef") == 16;
}

/* If `path` is NULL, a temporary file beside `name` is opened. */
static loom_writer *open_writer(const char *path, const char *name, int flags, loom_error *error) {
    enum { TRIES = 16 };
    loom_writer *writer = calloc(1, sizeof *writer);
    bool ok = writer || loom_fail(error, "%s: cannot be written: no memory", name);
    if (ok && strlen(path ? path : name) >= sizeof writer->path)
        ok = loom_fail(error, "%s: cannot be written: its name is too long", name);
    if (ok) {
        strcpy(writer->name, name);
        writer->descriptor = -1;
    }
    for (int i = 0; ok && writer->descriptor < 0 && i < (path ? 1 : TRIES); i++) {
        if (path)
            strcpy(writer->path, path);
        else if (!loom_temporary_path(name, writer->path, sizeof writer->path, error))
            ok = false;
        if (ok) writer->descriptor = open_again(writer->path, O_WRONLY | O_NOFOLLOW | flags);
        if (ok && writer->descriptor < 0 && errno != EEXIST) break;
    }
    if (ok && writer->descriptor >= 0) return writer;
    if (ok) loom_fail(error, "%s: cannot be written: %s", name, strerror(errno));
    free(writer);
    return NULL;
}

static loom_writer *open_new(const char *path, const char *name, loom_error *error) {
    XXH3_state_t *hash = XXH3_createState();
    if (!hash) {
        loom_fail(error, "%s: cannot be written: no memory", name);
        return NULL;
    }
    XXH3_128bits_reset(hash);
    loom_writer *writer = open_writer(path, name, O_CREAT | O_EXCL, error);
    if (writer)
        writer->hash = hash;
    else
        XXH3_freeState(hash);
    return writer;
}

loom_writer *loom_writer_open(const char *path, loom_error *error) {
    return open_new(path, path, error);
}

loom_writer *loom_writer_open_part(const char *path, loom_error *error) {
    loom_writer *writer = open_writer(path, path, 0, error);
    if (writer) writer->part = true;
    return writer;
}

static bool write_all(int descriptor, const char *name, const char *data, size_t bytes, loom_error *error) {
    while (bytes > 0) {
        const ssize_t written = write(descriptor, data, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return loom_fail(error, "%s: cannot be written: %s", name, strerror(errno));
        if (written == 0) return loom_fail(error, "%s: cannot be written: it takes nothing more", name);
        data += written;
        bytes -= (size_t)written;
    }
    return true;
}

static bool write_fully(loom_writer *writer, const char *data, size_t bytes, loom_error *error) {
    return write_all(writer->descriptor, writer->name, data, bytes, error);
}

/* Some file systems (FUSE and some network file systems) have no fsync and return one of these errors. */
static bool sync_descriptor(int descriptor) {
    int result;
    do result = fsync(descriptor);
    while (result != 0 && errno == EINTR);
    return result == 0 || errno == EINVAL || errno == ENOTSUP || errno == EOPNOTSUPP || errno == ENOSYS;
}

/* Linux closes the descriptor in any case: EINTR does not mean that data was lost. */
static bool close_checked(int descriptor) {
    return close(descriptor) == 0 || errno == EINTR;
}

static bool flush(loom_writer *writer, loom_error *error) {
    const size_t bytes = writer->buffered;
    writer->buffered = 0;
    return write_fully(writer, writer->buffer, bytes, error);
}

bool loom_writer_write(loom_writer *writer, const void *data, size_t bytes, loom_error *error) {
    if (writer->hash) XXH3_128bits_update(writer->hash, data, bytes);
    writer->position += bytes;
    if (writer->buffered + bytes > sizeof writer->buffer && !flush(writer, error)) return false;
    if (bytes > sizeof writer->buffer) return write_fully(writer, data, bytes, error);
    memcpy(writer->buffer + writer->buffered, data, bytes);
    writer->buffered += bytes;
    return true;
}

bool loom_writer_seek(loom_writer *writer, uint64_t position, loom_error *error) {
    if (position == writer->position) return true;
    LOOM_CHECK(!writer->hash);
    if (!flush(writer, error)) return false;
    if (lseek(writer->descriptor, (off_t)position, SEEK_SET) < 0)
        return loom_fail(error, "%s: cannot be written: %s", writer->name, strerror(errno));
    writer->position = position;
    return true;
}

bool loom_writer_extend(loom_writer *writer, uint64_t size, loom_error *error) {
    LOOM_CHECK(size >= writer->position);
    XXH3_freeState(writer->hash);
    writer->hash = NULL;
    if (!flush(writer, error)) return false;
    if (ftruncate(writer->descriptor, (off_t)size) != 0)
        return loom_fail(error, "%s: cannot be written: %s", writer->name, strerror(errno));
    return loom_writer_seek(writer, size, error);
}

static void destroy(loom_writer *writer) {
    XXH3_freeState(writer->hash);
    free(writer);
}

bool loom_writer_close(loom_writer *writer, uint64_t *size, char checksum[33], loom_error *error) {
    bool ok = flush(writer, error);
    if (ok && !sync_descriptor(writer->descriptor))
        ok = loom_fail(error, "%s: cannot be flushed to disk: %s", writer->name, strerror(errno));
    if (!close_checked(writer->descriptor) && ok)
        ok = loom_fail(error, "%s: cannot be written: %s", writer->name, strerror(errno));
    if (size) *size = writer->position;
    if (checksum) *checksum = 0;
    if (checksum && writer->hash) write_digits(XXH3_128bits_digest(writer->hash), checksum);
    destroy(writer);
    return ok;
}

void loom_writer_abandon(loom_writer *writer) {
    if (!writer) return;
    close(writer->descriptor);
    if (!writer->part) unlink(writer->path);
    destroy(writer);
}

/* With `mode` 0 the permissions follow from the umask. */
static bool replace(const char *path, const void *data, size_t bytes, mode_t mode, loom_error *error) {
    char temporary[PATH_MAX];
    struct stat status;
    if (lstat(path, &status) == 0 && !S_ISREG(status.st_mode) && !S_ISLNK(status.st_mode))
        return loom_fail(error, "%s: is not a regular file, and is not replaced by one", path);
    loom_writer *writer = open_new(NULL, path, error);
    if (!writer) return false;
    strcpy(temporary, writer->path);
    if (mode) (void)fchmod(writer->descriptor, mode); /* a file system without permissions is no reason to fail */
    if (!loom_writer_write(writer, data, bytes, error)) {
        loom_writer_abandon(writer);
        return false;
    }
    bool ok = loom_writer_close(writer, NULL, NULL, error);
    if (ok && rename(temporary, path) != 0) ok = loom_fail(error, "%s: cannot be replaced: %s", path, strerror(errno));
    if (!ok) unlink(temporary);
    return ok;
}

bool loom_file_replace(const char *path, const void *data, size_t bytes, loom_error *error) {
    return replace(path, data, bytes, 0, error);
}

FILE *loom_file_append(const char *path, loom_error *error) {
    int descriptor;
    struct stat status;
    if (!open_regular(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, &descriptor, &status, error)) return NULL;
    return open_stream(descriptor, path, "a", error);
}

bool loom_file_cut(const char *path, uint64_t size, loom_error *error) {
    int descriptor;
    struct stat status;
    if (!open_regular(path, O_WRONLY | O_NOFOLLOW, &descriptor, &status, error)) return false;
    bool ok = (uint64_t)status.st_size <= size || ftruncate(descriptor, (off_t)size) == 0;
    if (!ok) loom_fail(error, "%s: cannot be cut: %s", path, strerror(errno));
    if (!close_checked(descriptor) && ok) ok = loom_fail(error, "%s: cannot be written: %s", path, strerror(errno));
    return ok;
}

/* -------------------------------------------------------------------------------------- to where the user wants it */

static bool same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static bool is_descriptor(const struct stat *status, int descriptor) {
    struct stat open_already;
    return fstat(descriptor, &open_already) == 0 && same_file(status, &open_already);
}

bool loom_output_is_stdout(const char *path) {
    struct stat status;
    return !strcmp(path, "-") || (stat(path, &status) == 0 && is_descriptor(&status, STDOUT_FILENO));
}

bool loom_output_is_stream(const char *path) {
    struct stat status;
    return loom_output_is_stdout(path) ||
           (stat(path, &status) == 0 && (!S_ISREG(status.st_mode) || is_descriptor(&status, STDERR_FILENO)));
}

static bool write_stream(FILE *file, const char *name, const char *data, size_t bytes, loom_error *error) {
    const bool ended = bytes == 0 || data[bytes - 1] == '\n';
    const bool ok = fwrite(data, 1, bytes, file) == bytes && (ended || fputc('\n', file) != EOF) && fflush(file) == 0;
    return ok || loom_fail(error, "%s: cannot be written: %s", name, strerror(errno));
}

static bool write_in_place(const char *path, const void *data, size_t bytes, loom_error *error) {
    const int descriptor = open_again(path, O_WRONLY);
    if (descriptor < 0) return loom_fail(error, "%s: cannot be written: %s", path, strerror(errno));
    bool ok = write_all(descriptor, path, data, bytes, error);
    if (!close_checked(descriptor) && ok) ok = loom_fail(error, "%s: cannot be written: %s", path, strerror(errno));
    return ok;
}

bool loom_output_write(const char *path, const void *data, size_t bytes, loom_error *error) {
    char target[PATH_MAX];
    struct stat status;
    if (loom_output_is_stdout(path)) return write_stream(stdout, "standard output", data, bytes, error);
    const bool exists = stat(path, &status) == 0;
    if (exists && is_descriptor(&status, STDERR_FILENO)) return write_stream(stderr, path, data, bytes, error);
    if (exists && S_ISDIR(status.st_mode)) return loom_fail(error, "%s: is a directory; give a file's name", path);
    if (exists && !S_ISREG(status.st_mode)) return write_in_place(path, data, bytes, error);
    if (strlen(path) >= sizeof target) return loom_fail(error, "%s: its name is too long", path);
    strcpy(target, path);
    return loom_follow_links(target, sizeof target, error) &&
           replace(target, data, bytes, exists ? status.st_mode & 0777 : 0, error);
}

bool loom_output_check(const char *path, loom_error *error) {
    char target[PATH_MAX];
    struct stat status;
    if (loom_output_is_stdout(path)) return true;
    const bool exists = stat(path, &status) == 0;
    if (exists && S_ISDIR(status.st_mode)) return loom_fail(error, "%s: is a directory; give a file's name", path);
    if (strlen(path) >= sizeof target) return loom_fail(error, "%s: its name is too long", path);
    strcpy(target, path);
    if (exists && !S_ISREG(status.st_mode)) {
        if (access(path, W_OK) != 0) return loom_fail(error, "%s: cannot be written: %s", path, strerror(errno));
        return true;
    }
    if (!loom_follow_links(target, sizeof target, error)) return false;
    char *slash = strrchr(target, '/');
    if (slash) slash[slash == target] = 0;
    if (access(slash ? target : ".", W_OK | X_OK) == 0) return true;
    return loom_fail(error, "%s: cannot be written: %s", path, strerror(errno));
}

/* -------------------------------------------------------------------------------------------------------- directories */

bool loom_make_directories(const char *path, loom_error *error) {
    char partial[PATH_MAX];
    if (strlen(path) >= sizeof partial || !*path) return loom_fail(error, "'%s': is no name for a directory", path);
    strcpy(partial, path);
    for (char *slash = partial + 1;; slash++) {
        if (*slash != '/' && *slash != 0) continue;
        const char kept = *slash;
        *slash = 0;
        const int failure = mkdir(partial, 0775) == 0 ? 0 : errno;
        if (failure && !loom_is_directory(partial))
            return loom_fail(error, "%s: cannot be made a directory: %s", partial, strerror(failure));
        *slash = kept;
        if (!kept) return true;
    }
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path) == 0 || errno == ENOENT ? 0 : -1;
}

bool loom_remove_tree(const char *path, loom_error *error) {
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT) return true;
    return loom_fail(error, "%s: cannot be deleted: %s", path, strerror(errno));
}

bool loom_sync_directory(const char *path, loom_error *error) {
    const int descriptor = open_again(path, O_RDONLY | O_DIRECTORY);
    const bool ok = descriptor >= 0 && sync_descriptor(descriptor);
    if (!ok) loom_fail(error, "%s: cannot be flushed to disk: %s", path, strerror(errno));
    if (descriptor >= 0) close(descriptor);
    return ok;
}

/* Makes a file with a random name in a directory, to test what the directory allows. */
static loom_writer *open_trial(const char *path, char trial[PATH_MAX], loom_error *error) {
    char inside[PATH_MAX];
    if (!loom_join_path(inside, sizeof inside, path, "", error)) return NULL;
    loom_writer *writer = open_writer(NULL, inside, O_CREAT | O_EXCL, error);
    if (writer) strcpy(trial, writer->path);
    return writer;
}

bool loom_try_directory(const char *path, loom_error *error) {
    char trial[PATH_MAX], renamed[PATH_MAX];
    loom_error why;
    loom_writer *writer = open_trial(path, trial, &why);
    if (!writer) return loom_fail(error, "%s", why.message);
    bool ok = loom_temporary_path(trial, renamed, sizeof renamed, &why) &&
              loom_writer_write(writer, "trial\n", 6, &why);
    if (ok)
        ok = loom_writer_close(writer, NULL, NULL, &why);
    else
        loom_writer_abandon(writer);
    if (ok && rename(trial, renamed) != 0)
        ok = loom_fail(&why, "%s: files in it cannot be renamed: %s", path, strerror(errno));
    if (ok && unlink(renamed) != 0)
        ok = loom_fail(&why, "%s: files in it cannot be deleted: %s", path, strerror(errno));
    if (!ok) unlink(trial);
    if (ok && mkdir(trial, 0777) != 0)
        ok = loom_fail(&why, "%s: directories in it cannot be made: %s", path, strerror(errno));
    if (ok && rename(trial, renamed) != 0) {
        ok = loom_fail(&why, "%s: directories in it cannot be renamed: %s", path, strerror(errno));
        rmdir(trial);
    }
    if (ok && rmdir(renamed) != 0)
        ok = loom_fail(&why, "%s: directories in it cannot be deleted: %s", path, strerror(errno));
    return (ok && loom_sync_directory(path, &why)) || loom_fail(error, "%s", why.message);
}

bool loom_path_exists(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0;
}

bool loom_is_directory(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

bool loom_join_path(char *out, size_t size, const char *directory, const char *name, loom_error *error) {
    const int length = snprintf(out, size, "%s/%s", directory, name);
    if (length >= 0 && (size_t)length < size) return true;
    return loom_fail(error, "%s/%s: the name is too long", directory, name);
}

/* Puts a symbolic link's target in its place; *followed tells whether the path was one. */
static bool follow_link(char *path, size_t size, bool *followed, loom_error *error) {
    char target[PATH_MAX], link[PATH_MAX];
    const ssize_t length = readlink(path, target, sizeof target);
    *followed = length >= 0;
    if (!*followed) return true;
    if (length == (ssize_t)sizeof target || strlen(path) >= sizeof link)
        return loom_fail(error, "%s: the name it leads to is too long", path);
    target[length] = 0;
    strcpy(link, path);
    char *slash = strrchr(link, '/');
    if (!slash || *target == '/') {
        if (snprintf(path, size, "%s", target) < (int)size) return true;
        return loom_fail(error, "%s: the name it leads to is too long", link);
    }
    *slash = 0;
    return loom_join_path(path, size, link, target, error);
}

bool loom_follow_links(char *path, size_t size, loom_error *error) {
    enum { MOST_LINKS = 40 };
    bool followed = true;
    for (int links = 0; followed && links < MOST_LINKS; links++)
        if (!follow_link(path, size, &followed, error)) return false;
    return true;
}

/* ------------------------------------------------------------------------------------ who could lead writes elsewhere */

/* A directory that is checked, and the attributes that its file system reports for a file of ours to which nobody else
 * may write. */
typedef struct place {
    const char *path;
    struct stat status, mine;
    bool tried, shown;
} place;

static bool show_mine(place *p) {
    char trial[PATH_MAX];
    if (p->tried) return p->shown;
    p->tried = true;
    loom_writer *writer = open_trial(p->path, trial, NULL);
    if (writer) (void)fchmod(writer->descriptor, 0600); /* fails if the file system has no permissions */
    p->shown = writer && fstat(writer->descriptor, &p->mine) == 0;
    loom_writer_abandon(writer);
    return p->shown;
}

/* In a container without root privileges, owners that its user namespace does not map are shown as nobody. The
 * machine's root can be one of them. */
static bool is_unknown(uid_t owner) {
    enum { NOBODY = 65534 };
    unsigned long first, mapped, n;
    if (owner != NOBODY) return false;
    FILE *file = loom_file_open("/proc/self/uid_map", NULL);
    const bool lacks = file && fscanf(file, "%lu %lu %lu", &first, &mapped, &n) == 3 && n < UINT32_MAX;
    if (file) fclose(file);
    return lacks;
}

/* Whether nobody but this user, root and the members of the directory's group may exchange what lies in the directory
 * (or the link). Some file systems (exFAT, NFS that maps root) report the same owner or permissions for every file:
 * these prove nothing. */
static bool check_entry(place *p, const struct stat *entry, loom_error *error) {
    static const char elsewhere[] = "could lead what is written below it elsewhere";
    const bool there = entry->st_dev == p->status.st_dev, is_directory = S_ISDIR(entry->st_mode);
    const uid_t owner = entry->st_uid;
    const bool of_other = owner != geteuid() && owner != 0 && !is_unknown(owner) &&
                          !(there && show_mine(p) && p->mine.st_uid == owner);
    const bool is_open = is_directory && entry->st_mode & S_IWOTH &&
                         !(there && show_mine(p) && p->mine.st_mode & S_IWOTH);
    if (!of_other && !is_open) return true;
    const struct passwd *user = of_other ? getpwuid(owner) : NULL;
    if (of_other)
        loom_fail(error,
                  "%s: belongs to another user (%s%s%ld), who %s; take a directory of your own, or have this one given "
                  "to you (chown)",
                  p->path, user ? user->pw_name : "", user ? ", " : "", (long)owner, elsewhere);
    else
        loom_fail(error, "%s: all users may write to it (mode %04o), and %s; take another directory%s", p->path,
                  (unsigned)(entry->st_mode & 07777), elsewhere,
                  entry->st_mode & S_ISVTX ? ", as one below it" : ", or chmod o-w it");
    return false;
}

bool loom_check_place(const char *path, loom_error *error) {
    place p = {.path = path};
    struct stat link;
    if (stat(path, &p.status) != 0 || lstat(path, &link) != 0)
        return loom_fail(error, "%s: cannot be looked at: %s", path, strerror(errno));
    return check_entry(&p, &link, error) && check_entry(&p, &p.status, error);
}
