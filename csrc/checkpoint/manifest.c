#include "checkpoint/manifest.h"

#include "base/check.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

enum { FORMAT_VERSION = 1 };

/* ---------------------------------------------------------------------------------------------------------- writing */

loom_writer *loom_manifest_begin(const loom_manifest *manifest, const char *name, loom_error *error) {
    char path[PATH_MAX];
    if (!loom_join_path(path, sizeof path, manifest->directory, name, error)) return NULL;
    return loom_writer_open(path, error);
}

bool loom_manifest_end(loom_manifest *manifest, const char *name, loom_writer *writer, bool ok, loom_error *error) {
    LOOM_CHECK(manifest->n_files < LOOM_MANIFEST_MAX_FILES);
    if (!ok) {
        loom_writer_abandon(writer);
        return false;
    }
    struct loom_manifest_file *file = &manifest->file[manifest->n_files++];
    file->name = name;
    return loom_writer_close(writer, &file->size, file->checksum, error);
}

void loom_manifest_set_checksum(loom_manifest *manifest, const char *name, const char checksum[33]) {
    int i = 0;
    while (i < manifest->n_files && strcmp(manifest->file[i].name, name)) i++;
    LOOM_CHECK(i < manifest->n_files);
    memcpy(manifest->file[i].checksum, checksum, sizeof manifest->file[i].checksum);
}

bool loom_manifest_add_json(loom_manifest *manifest, const char *name, cJSON *json, bool complete, loom_error *error) {
    char *text = complete ? cJSON_Print(json) : NULL;
    cJSON_Delete(json);
    if (!text) return loom_fail(error, "%s/%s: no memory to write it", manifest->directory, name);
    loom_writer *writer = loom_manifest_begin(manifest, name, error);
    const bool ok = writer && loom_writer_write(writer, text, strlen(text), error) &&
                    loom_writer_write(writer, "\n", 1, error);
    cJSON_free(text);
    return loom_manifest_end(manifest, name, writer, ok, error);
}

static bool add_file(cJSON *files, const struct loom_manifest_file *file) {
    char size[24];
    snprintf(size, sizeof size, "%" PRIu64, file->size);
    cJSON *entry = cJSON_CreateObject();
    if (!cJSON_AddItemToArray(files, entry)) return false;
    return cJSON_AddStringToObject(entry, "name", file->name) && cJSON_AddRawToObject(entry, "size", size) &&
           cJSON_AddStringToObject(entry, "xxh3_128", file->checksum);
}

static bool add_files(cJSON *json, const loom_manifest *manifest) {
    if (!cJSON_AddNumberToObject(json, "format_version", FORMAT_VERSION) ||
        !cJSON_AddStringToObject(json, "written_by", "gptloom " LOOM_VERSION))
        return false;
    cJSON *files = cJSON_AddArrayToObject(json, "files");
    bool ok = files;
    for (int i = 0; ok && i < manifest->n_files; i++) ok = add_file(files, &manifest->file[i]);
    return ok;
}

bool loom_manifest_write(loom_manifest *manifest, loom_error *error) {
    cJSON *json = cJSON_CreateObject();
    return loom_manifest_add_json(manifest, LOOM_MANIFEST_FILE, json, add_files(json, manifest), error);
}

/* -------------------------------------------------------------------------------------------------------- verifying */

/* A file of the directory itself, whatever a damaged manifest says. */
static bool plain_name(const char *name) {
    return *name && *name != '.' && !strchr(name, '/');
}

static bool verify_content(const char *path, int64_t size, const char *checksum, loom_error *error) {
    char found[33];
    uint64_t found_size;
    if (!loom_file_checksum(path, &found_size, found, error)) return false;
    if (found_size != (uint64_t)size)
        return loom_fail(error, "%s: is damaged: it has %" PRIu64 " bytes, %s says %" PRId64, path, found_size,
                         LOOM_MANIFEST_FILE, size);
    if (strcmp(found, checksum) != 0)
        return loom_fail(error, "%s: is damaged: its checksum is not the one in %s", path, LOOM_MANIFEST_FILE);
    return true;
}

static bool verify_file(const char *directory, const char *manifest_path, const cJSON *entry, loom_error *error) {
    char path[PATH_MAX];
    int64_t size;
    const char *name = loom_json_get_string(entry, manifest_path, "name", error);
    if (!name) return false;
    if (!plain_name(name)) return loom_fail(error, "%s: is damaged: '%s' is no file's name", manifest_path, name);
    if (!loom_json_get_whole(entry, manifest_path, "size", 0, INT64_C(1) << 53, &size, error)) return false;
    const char *checksum = loom_json_get_string(entry, manifest_path, "xxh3_128", error);
    return checksum && loom_join_path(path, sizeof path, directory, name, error) &&
           verify_content(path, size, checksum, error);
}

static bool verify_files(const char *directory, const char *manifest_path, const cJSON *json, loom_error *error) {
    int64_t version;
    if (!loom_json_get_whole(json, manifest_path, "format_version", 1, INT32_MAX, &version, error)) return false;
    if (version > FORMAT_VERSION)
        return loom_fail(error, "%s: was written by a newer gptloom (format %" PRId64 ", this one reads %d)",
                         manifest_path, version, FORMAT_VERSION);
    const cJSON *files = cJSON_GetObjectItemCaseSensitive(json, "files"), *entry;
    if (!cJSON_IsArray(files) || !files->child)
        return loom_fail(error, "%s: is damaged: it has no list \"files\"", manifest_path);
    cJSON_ArrayForEach(entry, files) {
        if (!verify_file(directory, manifest_path, entry, error)) return false;
    }
    return true;
}

bool loom_manifest_verify(const char *directory, loom_error *error) {
    char path[PATH_MAX];
    if (!loom_join_path(path, sizeof path, directory, LOOM_MANIFEST_FILE, error)) return false;
    cJSON *json = loom_json_read(path, error);
    const bool ok = json && loom_json_check_keys(json, path, error) && verify_files(directory, path, json, error);
    cJSON_Delete(json);
    return ok;
}
