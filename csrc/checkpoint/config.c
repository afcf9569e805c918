#include "checkpoint/documents.h"
#include "model/architectures.h"

#include "gptloom/data.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* More than any machine holds, and small enough that no product of two shapes overflows. */
enum { LARGEST_EXTENT = INT32_MAX };

static const double layernorm_epsilon = 1e-5; /* LOOM_LAYERNORM_EPSILON, as JSON should show it */

/* transformers' name of an activation in an architecture. */
static const char *activation_name(const loom_gpt_names *names, loom_gpt_activation activation) {
    return activation == LOOM_GPT_GELU ? names->gelu : loom_activation_name(loom_activation_of(activation));
}

/* "gelu_new, relu and relu2" */
static void list_activations(const loom_gpt_names *names, char *to, size_t size) {
    size_t length = 0;
    *to = '\0';
    for (loom_gpt_activation a = 0; a < LOOM_GPT_ACTIVATIONS && length < size; a++)
        length += (size_t)snprintf(to + length, size - length, "%s%s",
                                   a == 0                         ? ""
                                   : a < LOOM_GPT_ACTIVATIONS - 1 ? ", "
                                                                  : " and ",
                                   activation_name(names, a));
}

static const char *const same_as_gelu_new[] = {"gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"};

/* ---------------------------------------------------------------------------------------------------------- writing */

static bool add_token_id(cJSON *json, const char *key, int64_t id) {
    return id < 0 ? cJSON_AddNullToObject(json, key) : cJSON_AddNumberToObject(json, key, (double)id);
}

static bool add_architecture(cJSON *json, const loom_gpt_names *names) {
    cJSON *architectures = cJSON_AddArrayToObject(json, "architectures");
    return architectures && cJSON_AddItemToArray(architectures, cJSON_CreateString(names->class_name)) &&
           cJSON_AddStringToObject(json, "model_type", names->model_type);
}

static bool add_shape(cJSON *json, const loom_gpt_config *config) {
    return cJSON_AddNumberToObject(json, "vocab_size", (double)config->vocab_size) &&
           cJSON_AddNumberToObject(json, "n_positions", (double)config->block_size) &&
           cJSON_AddNumberToObject(json, "n_ctx", (double)config->block_size) &&
           cJSON_AddNumberToObject(json, "n_embd", (double)config->n_embd) &&
           cJSON_AddNumberToObject(json, "n_layer", (double)config->n_layer) &&
           cJSON_AddNumberToObject(json, "n_head", (double)config->n_head) && cJSON_AddNullToObject(json, "n_inner");
}

/* Raw text keeps "0.0", which cJSON would write as 0, a floating-point number for readers that care. */
static bool add_arithmetic(cJSON *json, const loom_gpt_config *config, loom_dtype dtype) {
    const loom_gpt_names *names = loom_gpt_names_of(config->architecture);
    const char *torch_dtype = dtype == LOOM_BF16 ? "bfloat16" : dtype == LOOM_F16 ? "float16" : "float32";
    return cJSON_AddStringToObject(json, names->activation_key, activation_name(names, config->activation)) &&
           cJSON_AddNumberToObject(json, "layer_norm_epsilon", layernorm_epsilon) &&
           cJSON_AddRawToObject(json, "resid_pdrop", "0.0") && cJSON_AddRawToObject(json, "embd_pdrop", "0.0") &&
           cJSON_AddRawToObject(json, "attn_pdrop", "0.0") &&
           cJSON_AddNumberToObject(json, "initializer_range", 0.02) &&
           cJSON_AddBoolToObject(json, "tie_word_embeddings", true) &&
           cJSON_AddStringToObject(json, "torch_dtype", torch_dtype);
}

/* One token's id, or a list of them. */
static bool add_ends(cJSON *json, const loom_text_ends *ends) {
    if (ends->n_ends < 2) return add_token_id(json, "eos_token_id", ends->n_ends ? ends->end[0] : -1);
    cJSON *list = cJSON_AddArrayToObject(json, "eos_token_id");
    bool ok = list;
    for (int i = 0; ok && i < ends->n_ends; i++)
        ok = cJSON_AddItemToArray(list, cJSON_CreateNumber((double)ends->end[i]));
    return ok;
}

loom_text_ends loom_text_ends_of(bool bytes, int64_t vocab_size) {
    const int64_t end = bytes ? LOOM_BYTE_END_OF_TEXT : LOOM_GPT2_VOCABULARY - 1;
    if (!bytes && vocab_size != LOOM_GPT2_VOCABULARY) return (loom_text_ends){.begin = -1};
    return (loom_text_ends){.begin = end, .n_ends = 1, .end = {end}};
}

bool loom_config_write(loom_manifest *manifest, const loom_gpt_config *config, const loom_text_ends *ends,
                       loom_dtype dtype, loom_error *error) {
    cJSON *json = cJSON_CreateObject();
    const bool complete = add_architecture(json, loom_gpt_names_of(config->architecture)) && add_shape(json, config) &&
                          add_arithmetic(json, config, dtype) && add_token_id(json, "bos_token_id", ends->begin) &&
                          add_ends(json, ends);
    return loom_manifest_add_json(manifest, LOOM_CONFIG_FILE, json, complete, error);
}

/* ------------------------------------------------------------------------------------------------------------- reading
 * A field that is missing or null has transformers' default, which is GPT-2's and ours. */

static const cJSON *given(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    return cJSON_IsNull(item) ? NULL : item;
}

static bool read_architecture(const cJSON *json, const char *path, loom_gpt_architecture *architecture,
                              loom_error *error) {
    const char *type = loom_json_get_string(json, path, "model_type", error);
    if (!type) return false;
    for (int i = 0; i < LOOM_GPT_ARCHITECTURES; i++)
        if (!strcmp(type, loom_gpt_names_of((loom_gpt_architecture)i)->model_type)) {
            *architecture = (loom_gpt_architecture)i;
            return true;
        }
    return loom_fail(error,
                     "%s: \"model_type\" is %s; only models of gpt2 and openai-gpt can be loaded: take one of them",
                     path, type);
}

/* `meaning` is what another value makes of the model. */
static bool check_bool(const cJSON *json, const char *path, const char *key, bool only, const char *meaning,
                       loom_error *error) {
    const cJSON *item = given(json, key);
    if (!item || (only ? cJSON_IsTrue(item) : cJSON_IsFalse(item))) return true;
    return loom_fail(error,
                     "%s: \"%s\" is not %s: %s, which cannot be computed here; take a model that was trained "
                     "with %s",
                     path, key, only ? "true" : "false", meaning, only ? "true" : "false");
}

static bool check_arithmetic(const cJSON *json, const char *path, loom_error *error) {
    if (!check_bool(json, path, "tie_word_embeddings", true, "it has an output layer of its own", error) ||
        !check_bool(json, path, "scale_attn_weights", true, "its attention is not scaled", error) ||
        !check_bool(json, path, "scale_attn_by_inverse_layer_idx", false, "its attention is scaled by layers", error) ||
        !check_bool(json, path, "add_cross_attention", false, "it attends to a second text", error))
        return false;
    const cJSON *epsilon = given(json, "layer_norm_epsilon");
    if (epsilon && !(cJSON_IsNumber(epsilon) && fabs(epsilon->valuedouble - layernorm_epsilon) < 1e-9))
        return loom_fail(
            error,
            "%s: \"layer_norm_epsilon\" is not 1e-05, the only one that is computed with here; take a model "
            "that was trained with it",
            path);
    return true;
}

static bool read_activation(const cJSON *json, const char *path, loom_gpt_config *config, loom_error *error) {
    const loom_gpt_names *names = loom_gpt_names_of(config->architecture);
    const char *key = names->activation_key;
    const cJSON *item = given(json, key);
    const char *name = !item ? names->gelu : cJSON_IsString(item) ? item->valuestring : "no string";
    for (config->activation = LOOM_GPT_GELU; config->activation < LOOM_GPT_ACTIVATIONS; config->activation++)
        if (!strcmp(name, activation_name(names, config->activation))) return true;
    for (size_t i = 0; i < sizeof same_as_gelu_new / sizeof *same_as_gelu_new; i++)
        if (strcmp(name, same_as_gelu_new[i]) == 0)
            return loom_fail(error, "%s: \"%s\" is %s, which is %s by another name: write %s there to load the model",
                             path, key, name, names->gelu, names->gelu);
    char all[128];
    list_activations(names, all, sizeof all);
    return loom_fail(error,
                     "%s: \"%s\" is %s; only %s are computed here: take a model that was trained with one of them",
                     path, key, name, all);
}

/* A token's id; -1 for one that the vocabulary does not have, which no text can hold. */
static bool read_token_id(const cJSON *item, int64_t vocab_size, int64_t *id) {
    if (!loom_json_whole(item, id)) return false;
    if (*id >= vocab_size) *id = -1;
    return true;
}

/* Where nothing is said, it is GPT-2's end-of-text; null says that there is none. */
static bool read_ends(const cJSON *json, const char *path, int64_t vocab_size, loom_text_ends *ends,
                      loom_error *error) {
    const cJSON *begin = cJSON_GetObjectItemCaseSensitive(json, "bos_token_id");
    const cJSON *end = cJSON_GetObjectItemCaseSensitive(json, "eos_token_id");
    const int64_t standard = LOOM_GPT2_VOCABULARY - 1 < vocab_size ? LOOM_GPT2_VOCABULARY - 1 : -1;
    *ends = (loom_text_ends){.begin = begin ? -1 : standard};
    if (given(json, "bos_token_id") && !read_token_id(begin, vocab_size, &ends->begin))
        return loom_fail(error, "%s: \"bos_token_id\" is no token's id", path);
    if (!end && standard >= 0) ends->end[ends->n_ends++] = standard;
    if (!given(json, "eos_token_id")) return true;
    for (const cJSON *item = cJSON_IsArray(end) ? end->child : end; item;
         item = cJSON_IsArray(end) ? item->next : NULL) {
        int64_t id;
        if (!read_token_id(item, vocab_size, &id))
            return loom_fail(error, "%s: \"eos_token_id\" is neither a token's id nor a list of them", path);
        if (id < 0) continue;
        if (ends->n_ends == LOOM_MAX_TEXT_ENDS)
            return loom_fail(error, "%s: \"eos_token_id\" lists more than %d tokens", path, LOOM_MAX_TEXT_ENDS);
        ends->end[ends->n_ends++] = id;
    }
    return true;
}

static bool read_config(const cJSON *json, const char *path, loom_gpt_config *config, loom_error *error) {
    if (!read_architecture(json, path, &config->architecture, error) ||
        !loom_json_get_whole(json, path, "n_layer", 1, LARGEST_EXTENT, &config->n_layer, error) ||
        !loom_json_get_whole(json, path, "n_head", 1, LARGEST_EXTENT, &config->n_head, error) ||
        !loom_json_get_whole(json, path, "n_embd", 1, LARGEST_EXTENT, &config->n_embd, error) ||
        !loom_json_get_whole(json, path, "n_positions", 1, LARGEST_EXTENT, &config->block_size, error) ||
        !loom_json_get_whole(json, path, "vocab_size", 1, LARGEST_EXTENT, &config->vocab_size, error) ||
        !read_activation(json, path, config, error) || !check_arithmetic(json, path, error))
        return false;
    if (config->n_embd % config->n_head != 0)
        return loom_fail(error, "%s: n_embd %" PRId64 " is not divisible by n_head %" PRId64, path, config->n_embd,
                         config->n_head);
    const cJSON *inner = given(json, "n_inner");
    int64_t n_inner;
    if (inner && !(loom_json_whole(inner, &n_inner) && n_inner == 4 * config->n_embd))
        return loom_fail(error,
                         "%s: \"n_inner\" is not 4 * n_embd = %" PRId64 ", the only width of an MLP that is computed "
                         "here; take a model with that width",
                         path, 4 * config->n_embd);
    return true;
}

bool loom_config_read(const char *path, loom_gpt_config *config, loom_text_ends *ends, loom_error *error) {
    cJSON *json = loom_json_read(path, error);
    const bool ok = json && loom_json_check_keys(json, path, error) && read_config(json, path, config, error) &&
                    read_ends(json, path, config->vocab_size, ends, error);
    cJSON_Delete(json);
    return ok;
}
