/* JSON as a checkpoint uses it: files that hold one object, whose fields are checked as they are read. */
#ifndef LOOM_CHECKPOINT_JSON_H
#define LOOM_CHECKPOINT_JSON_H

#include "gptloom/error.h"

#include <cjson/cJSON.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Parses text that must be one JSON object. `path` is where it came from; the error names it and the line. */
cJSON *loom_json_parse(const char *text, const char *path, loom_error *error);

/* The same of a whole file. The caller gives the object to cJSON_Delete. */
cJSON *loom_json_read(const char *path, loom_error *error);

/* Refuses objects in which a key stands twice, however deep: readers of JSON differ in which one counts. */
bool loom_json_check_keys(const cJSON *json, const char *path, loom_error *error);

/* Whether an item is a whole number from 0 to 2^53, up to which JSON numbers are exact, and which. NULL is none. */
bool loom_json_whole(const cJSON *item, int64_t *value);

/* A field that must be there and be a whole number from `low` (not negative) to `high`, or a string. */
bool loom_json_get_whole(const cJSON *json, const char *path, const char *key, int64_t low, int64_t high,
                         int64_t *value, loom_error *error);
const char *loom_json_get_string(const cJSON *json, const char *path, const char *key, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
