#include "checkpoint/documents.h"

#include "base/printable.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FORMAT_VERSION = 1 };

/* ---------------------------------------------------------------------------------------------------------- writing */

static bool add_count(cJSON *json, const char *key, int64_t value) {
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, value);
    return cJSON_AddStringToObject(json, key, text);
}

static bool add_bits(cJSON *json, const char *key, uint64_t value) {
    char text[24];
    snprintf(text, sizeof text, "0x%016" PRIx64, value);
    return cJSON_AddStringToObject(json, key, text);
}

/* The significand is written as a whole number: "%a" would put in the locale's decimal point. */
static bool add_double(cJSON *json, const char *key, double value) {
    char text[40];
    int exponent = 0;
    if (isfinite(value)) {
        const double significand = ldexp(frexp(fabs(value), &exponent), 53);
        snprintf(text, sizeof text, "%s0x%" PRIx64 "p%d", signbit(value) ? "-" : "", (uint64_t)significand,
                 exponent - 53);
    } else {
        snprintf(text, sizeof text, "%a", value); /* inf or nan */
    }
    return cJSON_AddStringToObject(json, key, text);
}

static bool add_settings(cJSON *json, const loom_training_settings *settings) {
    if (!settings->micro_batch) return true; /* they are not known */
    cJSON *to = cJSON_AddObjectToObject(json, "settings");
    return to && add_count(to, "micro_batch", settings->micro_batch) &&
           add_count(to, "logits_rows", settings->logits_rows) && add_count(to, "ranks", settings->ranks) &&
           add_count(to, "zero", settings->zero) &&
           cJSON_AddBoolToObject(to, "deterministic_reduce", settings->deterministic_reduce) &&
           cJSON_AddBoolToObject(to, "deterministic", settings->deterministic) &&
           cJSON_AddBoolToObject(to, "master_weights", settings->master_weights) &&
           cJSON_AddStringToObject(to, "optimizer_dtype", loom_dtype_name(settings->optimizer_dtype)) &&
           cJSON_AddStringToObject(to, "grad_dtype", loom_dtype_name(settings->grad_dtype)) &&
           cJSON_AddBoolToObject(to, "tf32", settings->tf32) &&
           cJSON_AddStringToObject(to, "attention", settings->cudnn_attention ? "cudnn" : "own") &&
           cJSON_AddStringToObject(to, "device", settings->device) &&
           cJSON_AddStringToObject(to, "arithmetic", settings->arithmetic);
}

static bool add_state(cJSON *json, const loom_training_state *state) {
    if (!cJSON_AddNumberToObject(json, "format_version", FORMAT_VERSION) || !add_count(json, "step", state->step) ||
        !add_count(json, "tokens", state->tokens) || !add_bits(json, "seed", state->seed) ||
        !add_bits(json, "data_identity", state->data_identity) || !add_count(json, "batch", state->batch) ||
        !add_count(json, "seq_len", state->seq_len) || !add_count(json, "training_tokens", state->training_tokens) ||
        !cJSON_AddStringToObject(json, "dtype", loom_dtype_name(state->dtype)) ||
        (*state->course && !cJSON_AddStringToObject(json, "course", state->course)) ||
        (state->bad_steps > 0 && !add_count(json, "bad_steps", state->bad_steps)) ||
        !add_settings(json, &state->settings))
        return false;
    cJSON *scalars = cJSON_AddObjectToObject(json, "scalars");
    return scalars && add_count(scalars, "updates", state->scalars.updates) &&
           add_count(scalars, "skipped", state->scalars.skipped) &&
           add_count(scalars, "observed", state->scalars.observed) &&
           add_double(scalars, "loss_mean", state->scalars.loss_mean) &&
           add_double(scalars, "loss_square", state->scalars.loss_square) &&
           add_double(scalars, "norm_mean", state->scalars.norm_mean) &&
           add_double(scalars, "norm_square", state->scalars.norm_square) &&
           add_double(scalars, "loss_scale", (double)state->scalars.loss_scale) &&
           add_count(scalars, "loss_scale_age", state->scalars.loss_scale_age);
}

bool loom_state_write(loom_manifest *manifest, const loom_training_state *state, loom_error *error) {
    cJSON *json = cJSON_CreateObject();
    return loom_manifest_add_json(manifest, LOOM_STATE_FILE, json, add_state(json, state), error);
}

/* ------------------------------------------------------------------------------------------------------------- reading
 * The strto* functions skip leading blanks and take signs; here a number is all of its string and begins as a number
 * does. */

static bool get_count(const cJSON *json, const char *path, const char *key, int64_t *value, loom_error *error) {
    const char *text = loom_json_get_string(json, path, key, error);
    if (!text) return false;
    char *end;
    errno = 0;
    *value = strtoll(text, &end, 10);
    if (*text >= '0' && *text <= '9' && !*end && !errno) return true;
    return loom_fail(error, "%s: \"%s\" is '%s', which is no count", path, key, text);
}

/* A count of what there is at least one of. */
static bool get_size(const cJSON *json, const char *path, const char *key, int64_t *value, loom_error *error) {
    return get_count(json, path, key, value, error) &&
           (*value > 0 || loom_fail(error, "%s: \"%s\" is 0, which no run has", path, key));
}

static bool get_bits(const cJSON *json, const char *path, const char *key, uint64_t *value, loom_error *error) {
    const char *text = loom_json_get_string(json, path, key, error);
    if (!text) return false;
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 16);
    if (text[0] == '0' && text[1] == 'x' && !*end && !errno) return true;
    return loom_fail(error, "%s: \"%s\" is '%s', which is no 64-bit number in hexadecimal", path, key, text);
}

static bool get_double(const cJSON *json, const char *path, const char *key, double *value, loom_error *error) {
    const char *text = loom_json_get_string(json, path, key, error);
    if (!text) return false;
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    if (end != text && !*end && (!errno || fabs(*value) < 1)) return true; /* subnormal values may set errno */
    return loom_fail(error, "%s: \"%s\" is '%s', which is no floating-point number", path, key, text);
}

/* One of fp32, bf16 and fp16, in this order up to `last`. */
static bool get_dtype(const cJSON *json, const char *path, const char *key, loom_dtype last, loom_dtype *dtype,
                      loom_error *error) {
    const char *text = loom_json_get_string(json, path, key, error);
    if (!text) return false;
    for (*dtype = LOOM_F32; *dtype <= last; ++*dtype)
        if (!strcmp(text, loom_dtype_name(*dtype))) return true;
    return loom_fail(error, "%s: \"%s\" is '%s', which is none of %s", path, key, text,
                     last == LOOM_F16 ? "fp32, bf16 and fp16" : "fp32 and bf16");
}

/* The same of what older files do not tell, where it was fp32. */
static bool get_later_dtype(const cJSON *json, const char *path, const char *key, loom_dtype *dtype,
                            loom_error *error) {
    *dtype = LOOM_F32;
    return !cJSON_HasObjectItem(json, key) || get_dtype(json, path, key, LOOM_BF16, dtype, error);
}

static bool get_loss_scale(const cJSON *json, const char *path, loom_scalars_state *scalars, loom_error *error) {
    double scale;
    int64_t age;
    if (!get_double(json, path, "loss_scale", &scale, error) || !get_count(json, path, "loss_scale_age", &age, error))
        return false;
    if (!(scale >= 0 && scale <= 0x1p127) || age > INT32_MAX)
        return loom_fail(error, "%s: \"loss_scale\" or its age is no number that training leaves", path);
    scalars->loss_scale = (float)scale;
    scalars->loss_scale_age = (int32_t)age;
    return true;
}

/* What was written before there were other dtypes than fp32 has neither a dtype nor a loss scale. */
static bool read_precision(const cJSON *json, const char *path, loom_training_state *state, loom_error *error) {
    const cJSON *scalars = cJSON_GetObjectItemCaseSensitive(json, "scalars");
    state->dtype = LOOM_F32;
    state->scalars.loss_scale = 0;
    state->scalars.loss_scale_age = 0;
    if (!cJSON_HasObjectItem(json, "dtype")) return true;
    return get_dtype(json, path, "dtype", LOOM_F16, &state->dtype, error) &&
           get_loss_scale(scalars, path, &state->scalars, error);
}

static bool get_switch(const cJSON *json, const char *path, const char *key, bool *value, loom_error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    *value = cJSON_IsTrue(item);
    return cJSON_IsBool(item) || loom_fail(error, "%s: \"%s\" is missing, or neither true nor false", path, key);
}

static bool get_attention(const cJSON *json, const char *path, bool *cudnn, loom_error *error) {
    const char *text = loom_json_get_string(json, path, "attention", error);
    if (!text) return false;
    *cudnn = !strcmp(text, "cudnn");
    if (*cudnn || !strcmp(text, "own")) return true;
    return loom_fail(error, "%s: \"attention\" is '%s', which is none of own and cudnn", path, text);
}

static bool get_device(const cJSON *json, const char *path, loom_training_settings *settings, loom_error *error) {
    const char *text = loom_json_get_string(json, path, "device", error);
    if (!text) return false;
    const size_t length = strlen(text);
    if (length == 0 || length >= sizeof settings->device)
        return loom_fail(error, "%s: \"device\" is '%s', which is no name of a device", path, LOOM_BRIEF(text, 40));
    memset(settings->device, 0, sizeof settings->device);
    memcpy(settings->device, text, length);
    return true;
}

/* A text that files that are older than it do not have. It is only compared and shown. */
static bool get_later_text(const cJSON *json, const char *path, const char *key, char *to, size_t size,
                           loom_error *error) {
    memset(to, 0, size);
    if (!cJSON_HasObjectItem(json, key)) return true;
    const char *text = loom_json_get_string(json, path, key, error);
    if (!text) return false;
    if (strlen(text) >= size) return loom_fail(error, "%s: \"%s\" is longer than any is", path, key);
    memcpy(to, text, strlen(text));
    return true;
}

/* Files that are older than training on many ranks are of one. */
static bool read_ranks(const cJSON *json, const char *path, loom_training_settings *settings, loom_error *error) {
    settings->ranks = 1;
    settings->zero = 0;
    settings->deterministic_reduce = false;
    if (!cJSON_HasObjectItem(json, "ranks")) return true;
    if (!get_count(json, path, "ranks", &settings->ranks, error) ||
        !get_count(json, path, "zero", &settings->zero, error) ||
        !get_switch(json, path, "deterministic_reduce", &settings->deterministic_reduce, error))
        return false;
    return (settings->ranks > 0 && settings->zero <= 3) ||
           loom_fail(error, "%s: \"ranks\" or \"zero\" is none that training has", path);
}

/* What was written before settings were kept has none. */
static bool read_settings(const cJSON *json, const char *path, loom_training_settings *settings, loom_error *error) {
    const cJSON *from = cJSON_GetObjectItemCaseSensitive(json, "settings");
    *settings = (loom_training_settings){0};
    if (!from) return true;
    if (!cJSON_IsObject(from)) return loom_fail(error, "%s: \"settings\" is no object", path);
    if (!get_size(from, path, "micro_batch", &settings->micro_batch, error) ||
        (cJSON_HasObjectItem(from, "logits_rows") && /* older files do not have it */
         !get_count(from, path, "logits_rows", &settings->logits_rows, error)) ||
        !get_switch(from, path, "deterministic", &settings->deterministic, error) ||
        !get_switch(from, path, "master_weights", &settings->master_weights, error) ||
        !get_later_dtype(from, path, "optimizer_dtype", &settings->optimizer_dtype, error) ||
        !get_later_dtype(from, path, "grad_dtype", &settings->grad_dtype, error) ||
        !get_switch(from, path, "tf32", &settings->tf32, error) ||
        !get_attention(from, path, &settings->cudnn_attention, error) || !read_ranks(from, path, settings, error) ||
        !get_device(from, path, settings, error) ||
        !get_later_text(from, path, "arithmetic", settings->arithmetic, sizeof settings->arithmetic, error))
        return false;
    return true;
}

/* Most states have none. They are some of the steps. */
static bool read_bad_steps(const cJSON *json, const char *path, loom_training_state *state, loom_error *error) {
    state->bad_steps = 0;
    if (!cJSON_HasObjectItem(json, "bad_steps")) return true;
    return get_count(json, path, "bad_steps", &state->bad_steps, error) &&
           (state->bad_steps <= state->step ||
            loom_fail(error, "%s: has more \"bad_steps\" than steps: %" PRId64, path, state->bad_steps));
}

static bool read_state(const cJSON *json, const char *path, loom_training_state *state, loom_error *error) {
    int64_t version;
    if (!loom_json_get_whole(json, path, "format_version", 1, INT32_MAX, &version, error)) return false;
    if (version > FORMAT_VERSION)
        return loom_fail(error, "%s: was written by a newer gptloom (format %" PRId64 ", this one reads %d)", path,
                         version, FORMAT_VERSION);
    const cJSON *scalars = cJSON_GetObjectItemCaseSensitive(json, "scalars");
    if (!cJSON_IsObject(scalars)) return loom_fail(error, "%s: has no object \"scalars\"", path);
    return get_count(json, path, "step", &state->step, error) &&
           get_count(json, path, "tokens", &state->tokens, error) &&
           get_bits(json, path, "seed", &state->seed, error) &&
           get_bits(json, path, "data_identity", &state->data_identity, error) &&
           get_size(json, path, "batch", &state->batch, error) &&
           get_size(json, path, "seq_len", &state->seq_len, error) &&
           get_count(json, path, "training_tokens", &state->training_tokens, error) &&
           get_count(scalars, path, "updates", &state->scalars.updates, error) &&
           get_count(scalars, path, "skipped", &state->scalars.skipped, error) &&
           get_count(scalars, path, "observed", &state->scalars.observed, error) &&
           get_double(scalars, path, "loss_mean", &state->scalars.loss_mean, error) &&
           get_double(scalars, path, "loss_square", &state->scalars.loss_square, error) &&
           get_double(scalars, path, "norm_mean", &state->scalars.norm_mean, error) &&
           get_double(scalars, path, "norm_square", &state->scalars.norm_square, error) &&
           get_later_text(json, path, "course", state->course, sizeof state->course, error) &&
           read_bad_steps(json, path, state, error) && read_precision(json, path, state, error) &&
           read_settings(json, path, &state->settings, error);
}

bool loom_state_read(const char *path, loom_training_state *state, loom_error *error) {
    cJSON *json = loom_json_read(path, error);
    const bool ok = json && loom_json_check_keys(json, path, error) && read_state(json, path, state, error);
    cJSON_Delete(json);
    return ok;
}
