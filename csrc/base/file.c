#include "base/file.h"

#include "base/check.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* ------------------------------------------------------------------------------------------------------------ reading */

/* O_NONBLOCK changes nothing for a regular file, and a pipe is refused instead of waited for. */
static bool open_regular(const char *path, int *descriptor, struct stat *status, loom_error *error) {
    *descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*descriptor < 0) return loom_fail(error, "%s: cannot be read: %s", path, strerror(errno));
    if (fstat(*descriptor, status) != 0 || !S_ISREG(status->st_mode)) {
        close(*descriptor);
        return loom_fail(error, "%s: is not a regular file", path);
    }
    return true;
}

bool loom_file_map(const char *path, loom_mapping *mapping, loom_error *error) {
    int descriptor;
    struct stat status;
    *mapping = (loom_mapping){0};
    if (!open_regular(path, &descriptor, &status, error)) return false;
    if (status.st_size > 0) {
        void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (data == MAP_FAILED) {
            close(descriptor);
            return loom_fail(error, "%s: cannot be mapped: %s", path, strerror(errno));
        }
        *mapping = (loom_mapping){data, (size_t)status.st_size};
    }
    close(descriptor);
    return true;
}

void loom_file_unmap(loom_mapping *mapping) {
    if (mapping->data) munmap((void *)mapping->data, mapping->size);
    *mapping = (loom_mapping){0};
}

char *loom_file_read_text(const char *path, size_t limit, loom_error *error) {
    loom_mapping mapping;
    if (!loom_file_map(path, &mapping, error)) return NULL;
    char *text = NULL;
    if (mapping.size > limit)
        loom_fail(error, "%s: is larger than the %zu bytes such a file can have", path, limit);
    else if (!(text = malloc(mapping.size + 1)))
        loom_fail(error, "%s: no memory to read it", path);
    else {
        if (mapping.size) memcpy(text, mapping.data, mapping.size);
        text[mapping.size] = 0;
    }
    loom_file_unmap(&mapping);
    return text;
}

static void write_digits(XXH128_hash_t hash, char checksum[33]) {
    snprintf(checksum, 33, "%016llx%016llx", (unsigned long long)hash.high64, (unsigned long long)hash.low64);
}

void loom_checksum(const void *data, size_t bytes, char checksum[33]) {
    write_digits(XXH3_128bits(data, bytes), checksum);
}

bool loom_file_checksum(const char *path, uint64_t *size, char checksum[33], loom_error *error) {
    loom_mapping mapping;
    if (!loom_file_map(path, &mapping, error)) return false;
    loom_checksum(mapping.data, mapping.size, checksum);
    *size = mapping.size;
    loom_file_unmap(&mapping);
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ writing */

struct loom_writer {
    int descriptor;
    uint64_t position; /* of what is written next */
    size_t buffered;
    XXH3_state_t *hash; /* NULL: not of the whole file */
    bool part;          /* of a file that others write too */
    char path[PATH_MAX];
    char buffer[1 << 16];
};

static loom_writer *open_writer(const char *path, int flags, loom_error *error) {
    loom_writer *writer = calloc(1, sizeof *writer);
    if (!writer || strlen(path) >= sizeof writer->path) {
        loom_fail(error, "%s: cannot be written: %s", path, writer ? "its name is too long" : "no memory");
        free(writer);
        return NULL;
    }
    strcpy(writer->path, path);
    writer->descriptor = open(path, O_WRONLY | O_CLOEXEC | flags, 0666);
    if (writer->descriptor >= 0) return writer;
    loom_fail(error, "%s: cannot be written: %s", path, strerror(errno));
    free(writer);
    return NULL;
}

loom_writer *loom_writer_open(const char *path, loom_error *error) {
    XXH3_state_t *hash = XXH3_createState();
    if (!hash) {
        loom_fail(error, "%s: cannot be written: no memory", path);
        return NULL;
    }
    XXH3_128bits_reset(hash);
    loom_writer *writer = open_writer(path, O_CREAT | O_TRUNC, error);
    if (writer)
        writer->hash = hash;
    else
        XXH3_freeState(hash);
    return writer;
}

loom_writer *loom_writer_open_part(const char *path, loom_error *error) {
    loom_writer *writer = open_writer(path, 0, error);
    if (writer) writer->part = true;
    return writer;
}

static bool write_fully(loom_writer *writer, const char *data, size_t bytes, loom_error *error) {
    while (bytes > 0) {
        const ssize_t written = write(writer->descriptor, data, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return loom_fail(error, "%s: cannot be written: %s", writer->path, strerror(errno));
        data += written;
        bytes -= (size_t)written;
    }
    return true;
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
        return loom_fail(error, "%s: cannot be written: %s", writer->path, strerror(errno));
    writer->position = position;
    return true;
}

bool loom_writer_extend(loom_writer *writer, uint64_t size, loom_error *error) {
    LOOM_CHECK(size >= writer->position);
    XXH3_freeState(writer->hash);
    writer->hash = NULL;
    if (!flush(writer, error)) return false;
    if (ftruncate(writer->descriptor, (off_t)size) != 0)
        return loom_fail(error, "%s: cannot be written: %s", writer->path, strerror(errno));
    return loom_writer_seek(writer, size, error);
}

static void destroy(loom_writer *writer) {
    XXH3_freeState(writer->hash);
    free(writer);
}

bool loom_writer_close(loom_writer *writer, uint64_t *size, char checksum[33], loom_error *error) {
    bool ok = flush(writer, error);
    if (ok && fsync(writer->descriptor) != 0)
        ok = loom_fail(error, "%s: cannot be flushed to disk: %s", writer->path, strerror(errno));
    if (close(writer->descriptor) != 0 && ok)
        ok = loom_fail(error, "%s: cannot be written: %s", writer->path, strerror(errno));
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

bool loom_file_replace(const char *path, const void *data, size_t bytes, loom_error *error) {
    char temporary[PATH_MAX];
    struct stat status;
    if (lstat(path, &status) == 0 && !S_ISREG(status.st_mode) && !S_ISLNK(status.st_mode))
        return loom_fail(error, "%s: is not a regular file, and is not replaced by one", path);
    if (snprintf(temporary, sizeof temporary, "%s.tmp-%ld", path, (long)getpid()) >= (int)sizeof temporary)
        return loom_fail(error, "%s: its name is too long", path);
    loom_writer *writer = loom_writer_open(temporary, error);
    if (!writer) return false;
    if (!loom_writer_write(writer, data, bytes, error)) {
        loom_writer_abandon(writer);
        return false;
    }
    if (!loom_writer_close(writer, NULL, NULL, error)) {
        unlink(temporary);
        return false;
    }
    if (rename(temporary, path) != 0) {
        loom_fail(error, "%s: cannot be replaced: %s", path, strerror(errno));
        unlink(temporary);
        return false;
    }
    return true;
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
        if (mkdir(partial, 0777) != 0 && !(errno == EEXIST && loom_is_directory(partial)))
            return loom_fail(error, "%s: cannot be made a directory: %s", partial, strerror(errno));
        *slash = kept;
        if (!kept) return true;
    }
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

bool loom_remove_tree(const char *path, loom_error *error) {
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT) return true;
    return loom_fail(error, "%s: cannot be deleted: %s", path, strerror(errno));
}

bool loom_sync_directory(const char *path, loom_error *error) {
    const int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool ok = descriptor >= 0 && (fsync(descriptor) == 0 || errno == EINVAL);
    if (!ok) loom_fail(error, "%s: cannot be flushed to disk: %s", path, strerror(errno));
    if (descriptor >= 0) close(descriptor);
    return ok;
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
