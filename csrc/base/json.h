/* JSON: each file holds one object, whose fields are checked as they are read. */
#ifndef LOOM_BASE_JSON_H
#define LOOM_BASE_JSON_H

#include "gptloom/error.h"

#include <cjson/cJSON.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Parses text that must be one JSON object. `path` is where the text came from; errors name it and the line. */
cJSON *loom_json_parse(const char *text, const char *path, loom_error *error);

/* Parses a whole file in the same way. The caller frees the object with cJSON_Delete. */
cJSON *loom_json_read(const char *path, loom_error *error);

/* Refuses JSON in which an object, at any depth, has the same key twice: parsers differ in which of the values they
 * take. */
bool loom_json_check_keys(const cJSON *json, const char *path, loom_error *error);

/* Returns whether an item is a whole number from 0 to 2^53 (the range in which JSON numbers are exact), and stores it.
 * A NULL item is no number. */
bool loom_json_whole(const cJSON *item, int64_t *value);

/* Read a field that must exist: a whole number from `low` (not negative) to `high`, or a string. */
bool loom_json_get_whole(const cJSON *json, const char *path, const char *key, int64_t low, int64_t high,
                         int64_t *value, loom_error *error);
const char *loom_json_get_string(const cJSON *json, const char *path, const char *key, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
