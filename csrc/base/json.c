#include "base/json.h"

#include "base/file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The largest file that is read as JSON is a tokenizer.json with its merges: a few MB. */
enum { LARGEST_FILE = 64 << 20 };

cJSON *loom_json_parse(const char *text, const char *path, loom_error *error) {
    const char *end = text;
    cJSON *json = cJSON_ParseWithOpts(text, &end, true);
    if (!json) {
        int line = 1;
        for (const char *c = text; c < end; c++) line += *c == '\n';
        loom_fail(error, "%s: is damaged: not valid JSON from line %d on", path, line);
    } else if (!cJSON_IsObject(json)) {
        cJSON_Delete(json);
        json = NULL;
        loom_fail(error, "%s: is damaged: its JSON is not an object", path);
    }
    return json;
}

cJSON *loom_json_read(const char *path, loom_error *error) {
    char *text = loom_file_read_text(path, LARGEST_FILE, error);
    if (!text) return NULL;
    cJSON *json = loom_json_parse(text, path, error);
    free(text);
    return json;
}

static int by_key(const void *a, const void *b) {
    return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string);
}

static bool check_object(const cJSON *json, const char *path, loom_error *error) {
    const int n = cJSON_GetArraySize(json);
    const cJSON **item = n > 1 ? malloc((size_t)n * sizeof *item) : NULL, *child;
    if (n > 1 && !item) return loom_fail(error, "%s: no memory to read it", path);
    int filled = 0, i = 1;
    if (item) {
        cJSON_ArrayForEach(child, json) item[filled++] = child;
        qsort(item, (size_t)n, sizeof *item, by_key);
    }
    while (i < n && strcmp(item[i - 1]->string, item[i]->string) != 0) i++;
    if (i < n) loom_fail(error, "%s: is damaged: it has \"%s\" twice in one object", path, item[i]->string);
    free(item);
    return i >= n;
}

bool loom_json_check_keys(const cJSON *json, const char *path, loom_error *error) {
    const cJSON *child;
    if (cJSON_IsObject(json) && !check_object(json, path, error)) return false;
    cJSON_ArrayForEach(child, json) {
        if (!loom_json_check_keys(child, path, error)) return false;
    }
    return true;
}

bool loom_json_whole(const cJSON *item, int64_t *value) {
    const double largest = 0x1p53;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= largest)) return false;
    *value = (int64_t)item->valuedouble;
    return (double)*value == item->valuedouble;
}

bool loom_json_get_whole(const cJSON *json, const char *path, const char *key, int64_t low, int64_t high,
                         int64_t *value, loom_error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!item) return loom_fail(error, "%s: has no field \"%s\"", path, key);
    if (loom_json_whole(item, value) && *value >= low && *value <= high) return true;
    return loom_fail(error, "%s: \"%s\" must be a whole number from %" PRId64 " to %" PRId64, path, key, low, high);
}

const char *loom_json_get_string(const cJSON *json, const char *path, const char *key, loom_error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (cJSON_IsString(item)) return item->valuestring;
    if (!item)
        loom_fail(error, "%s: has no field \"%s\"", path, key);
    else
        loom_fail(error, "%s: \"%s\" must be a string", path, key);
    return NULL;
}
