/* OUT/data.json: the data of a run as they were when it began, file by file; a resumed run goes on with the same. */
#include "engine/trainer.h"

#include "base/file.h"
#include "base/json.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Up to so many bytes files are hashed whole; of more, those that are in memory anyway, and of each other one pieces.
 * */
enum { HASHED_WHOLE = 1 << 30 };
enum { FORMAT_VERSION = 1 };

static bool record_path(const loom_trainer *t, char *path, size_t size, loom_error *error) {
    return loom_join_path(path, size, t->options.out, "data.json", error);
}

/* What tells, without a look into a file, that nobody has written to it: setting mtime back (touch -d) moves ctime
 * forward. */
typedef struct marks {
    char changed[48], status_changed[48], inode[24];
} marks;

static void write_time(char text[48], const struct timespec *time) {
    snprintf(text, 48, "%lld.%09ld", (long long)time->tv_sec, time->tv_nsec);
}

static marks marks_of(const loom_dataset_file *file) {
    marks m;
    write_time(m.changed, &file->changed);
    write_time(m.status_changed, &file->status_changed);
    snprintf(m.inode, sizeof m.inode, "%" PRIu64, file->inode);
    return m;
}

/* ---------------------------------------------------------------------------------------------------------- writing */

static uint64_t bytes_of(const loom_dataset *data) {
    uint64_t bytes = 0;
    for (int i = 0; data && i < loom_dataset_files(data); i++) bytes += loom_dataset_get_file(data, i).size;
    return bytes;
}

static bool add_file(cJSON *list, const loom_dataset_file *file, bool whole, const char *hash) {
    char size[24];
    const marks m = marks_of(file);
    cJSON *entry = cJSON_CreateObject();
    if (!cJSON_AddItemToArray(list, entry)) {
        cJSON_Delete(entry);
        return false;
    }
    snprintf(size, sizeof size, "%" PRIu64, file->size);
    return cJSON_AddStringToObject(entry, "path", file->path) && cJSON_AddRawToObject(entry, "size", size) &&
           cJSON_AddStringToObject(entry, "changed", m.changed) &&
           cJSON_AddStringToObject(entry, "status_changed", m.status_changed) &&
           cJSON_AddStringToObject(entry, "inode", m.inode) &&
           cJSON_AddStringToObject(entry, "hash_of", whole ? "whole" : "pieces") &&
           cJSON_AddStringToObject(entry, "xxh3_128", hash);
}

static bool add_files(cJSON *json, const char *key, const loom_dataset *data, bool whole, const char *path,
                      loom_error *error) {
    cJSON *list = cJSON_AddArrayToObject(json, key);
    for (int i = 0; list && i < loom_dataset_files(data); i++) {
        const loom_dataset_file file = loom_dataset_get_file(data, i);
        char hash[33];
        uint64_t hashed;
        if (!loom_dataset_hash_file(data, i, whole || file.in_memory, hash, &hashed, error)) return false;
        if (!add_file(list, &file, hashed == file.size, hash)) list = NULL;
    }
    return list || loom_fail(error, "%s: no memory to write it", path);
}

bool loom_trainer_write_data(const loom_trainer *t, loom_error *error) {
    char path[PATH_MAX];
    if (t->data_stand) return true;
    if (!record_path(t, path, sizeof path, error)) return false;
    const bool whole = bytes_of(t->data) + bytes_of(t->val_data) <= HASHED_WHOLE;
    cJSON *json = cJSON_CreateObject();
    bool ok = cJSON_AddNumberToObject(json, "format_version", FORMAT_VERSION) ||
              loom_fail(error, "%s: no memory to write it", path);
    ok = ok && add_files(json, "data", t->data, whole, path, error) &&
         (!t->val_data || add_files(json, "validation", t->val_data, whole, path, error));
    char *text = ok ? cJSON_Print(json) : NULL;
    cJSON_Delete(json);
    if (ok && !text) ok = loom_fail(error, "%s: no memory to write it", path);
    ok = ok && loom_file_replace(path, text, strlen(text), error);
    cJSON_free(text);
    return ok;
}

/* --------------------------------------------------------------------------------------------------------- checking */

/* What the record says of a file. */
typedef struct recorded {
    const char *path, *changed, *hash;
    const char *status_changed, *inode; /* NULL: a record of an older version */
    int64_t size;
    bool whole;
} recorded;

static bool read_entry(const cJSON *entry, const char *record, recorded *was, loom_error *error) {
    const char *of;
    if (!(was->path = loom_json_get_string(entry, record, "path", error)) ||
        !(was->changed = loom_json_get_string(entry, record, "changed", error)) ||
        !(was->hash = loom_json_get_string(entry, record, "xxh3_128", error)) ||
        !(of = loom_json_get_string(entry, record, "hash_of", error)) ||
        !loom_json_get_whole(entry, record, "size", 0, INT64_C(1) << 53, &was->size, error))
        return false;
    was->whole = !strcmp(of, "whole");
    was->status_changed = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, "status_changed"));
    was->inode = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, "inode"));
    return true;
}

static bool fail_changed(const loom_trainer *t, const char *flag, const char *path, const char *was, const char *how,
                         loom_error *error) {
    const bool same = !strcmp(path, was);
    return loom_fail(
        error, "%s: %s is not what the run %s was trained on%s%s: %s; bring that back, or begin another run", flag,
        path, t->options.out, same ? ", and has changed since" : ", which was ", same ? "" : was, how);
}

static bool is_unwritten(const loom_dataset_file *file, const recorded *was) {
    const marks m = marks_of(file);
    return was->status_changed && was->inode && !strcmp(m.changed, was->changed) &&
           !strcmp(m.status_changed, was->status_changed) && !strcmp(m.inode, was->inode);
}

/* Files of which not all could be compared. */
typedef struct in_part {
    int files;
    const char *path; /* of the first */
    uint64_t compared, bytes;
} in_part;

static void note_in_part(loom_trainer *t, const char *flag, const in_part *part) {
    char others[32] = "";
    if (part->files == 0) return;
    if (part->files > 1) snprintf(others, sizeof others, " and %d more", part->files - 1);
    loom_trainer_add_note(t,
                          "%s: %s%s may have been written to since the run began: of %" PRIu64
                          " bytes only the %" PRIu64 " that data.json has a hash of were compared, which are the same",
                          flag, part->path, others, part->bytes, part->compared);
}

/* A file is what it was if its length and hash are. What is not in memory is hashed only where it may have been written
 * to, or is another file. */
static bool check_file(const loom_trainer *t, const char *flag, const loom_dataset *data, int i, const recorded *was,
                       in_part *part, loom_error *error) {
    const loom_dataset_file is = loom_dataset_get_file(data, i);
    uint64_t hashed;
    char hash[33], how[96];
    if (is.size != (uint64_t)was->size) {
        snprintf(how, sizeof how, "it has %" PRIu64 " bytes, and had %" PRId64, is.size, was->size);
        return fail_changed(t, flag, is.path, was->path, how, error);
    }
    if (is_unwritten(&is, was) && !is.in_memory) return true;
    if (!loom_dataset_hash_file(data, i, was->whole, hash, &hashed, error)) return false;
    if (strcmp(hash, was->hash) != 0)
        return fail_changed(t, flag, is.path, was->path, "it has as many bytes, but not the same", error);
    if (hashed >= is.size || is_unwritten(&is, was)) return true;
    if (part->files++ == 0) part->path = is.path;
    part->compared += hashed;
    part->bytes += is.size;
    return true;
}

static bool fail_number(const loom_trainer *t, const char *flag, const loom_dataset *data, const cJSON *list, int i,
                        const char *path, loom_error *error) {
    const int had = cJSON_GetArraySize(list), has = loom_dataset_files(data);
    if (has < had)
        return loom_fail(error,
                         "%s: the run %s was trained on %s too, which is not among the data now (%d files, not %d): "
                         "bring it back",
                         flag, t->options.out, path, has, had);
    return loom_fail(error,
                     "%s: the run %s was not trained on %s, which is among the data now (%d files, not %d): take it "
                     "away",
                     flag, t->options.out, loom_dataset_get_file(data, i).path, has, had);
}

static bool check_files(loom_trainer *t, const char *flag, const loom_dataset *data, const cJSON *list,
                        const char *record, loom_error *error) {
    const cJSON *entry;
    in_part part = {0};
    const int has = loom_dataset_files(data);
    const bool as_many = has == cJSON_GetArraySize(list);
    int i = 0;
    cJSON_ArrayForEach(entry, list) {
        recorded was;
        if (!read_entry(entry, record, &was, error)) return false;
        if (!as_many && (i >= has || loom_dataset_get_file(data, i).size != (uint64_t)was.size))
            return fail_number(t, flag, data, list, i < has ? i : has - 1, was.path, error);
        if (as_many && !check_file(t, flag, data, i, &was, &part, error)) return false;
        i++;
    }
    note_in_part(t, flag, &part);
    return as_many || fail_number(t, flag, data, list, i < has ? i : has - 1, "", error);
}

/* Whether the list is of files of these names: another --val-data may be given at any time. */
static bool are_named(const loom_dataset *data, const cJSON *list) {
    const cJSON *entry;
    int i = 0;
    if (loom_dataset_files(data) != cJSON_GetArraySize(list)) return false;
    cJSON_ArrayForEach(entry, list) {
        const char *path = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, "path"));
        if (!path || strcmp(path, loom_dataset_get_file(data, i++).path)) return false;
    }
    return true;
}

static bool check_record(loom_trainer *t, const cJSON *json, const char *record, loom_error *error) {
    const cJSON *data = cJSON_GetObjectItemCaseSensitive(json, "data"),
                *validation = cJSON_GetObjectItemCaseSensitive(json, "validation");
    int64_t version;
    if (!loom_json_get_whole(json, record, "format_version", 1, INT32_MAX, &version, error)) return false;
    if (version > FORMAT_VERSION)
        return loom_fail(error, "%s: was written by a newer gptloom (format %" PRId64 ", this one reads %d)", record,
                         version, FORMAT_VERSION);
    if (!cJSON_IsArray(data) || (validation && !cJSON_IsArray(validation)))
        return loom_fail(error, "%s: is damaged: it has no list of data; without this file data are not checked",
                         record);
    if (!check_files(t, "--data", t->data, data, record, error)) return false;
    t->data_stand = !t->val_data == !validation && (!validation || are_named(t->val_data, validation));
    return !t->data_stand || !validation || check_files(t, "--val-data", t->val_data, validation, record, error);
}

bool loom_trainer_check_data(loom_trainer *t, loom_error *error) {
    char path[PATH_MAX];
    if (!t->options.resume || t->comm->rank > 0) return true;
    if (!record_path(t, path, sizeof path, error)) return false;
    if (!loom_path_exists(path)) return true; /* a run of an older version */
    cJSON *json = loom_json_read(path, error);
    const bool ok = json && check_record(t, json, path, error);
    cJSON_Delete(json);
    return ok;
}
