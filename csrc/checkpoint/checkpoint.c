/* Opening and loading. */
#include "gptloom/checkpoint.h"

#include "base/plural.h"
#include "checkpoint/directory.h"
#include "checkpoint/documents.h"
#include "checkpoint/tensors.h"
#include "gptloom/data.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

static bool exists(const char *directory, const char *name) {
    char path[PATH_MAX];
    return loom_join_path(path, sizeof path, directory, name, NULL) && loom_path_exists(path);
}

/* ---------------------------------------------------------------------------------------------------------- opening */

static bool open_weights(const char *directory, const loom_gpt_config *config, loom_error *error) {
    char path[PATH_MAX];
    if (!exists(directory, LOOM_WEIGHTS_FILE))
        return loom_fail(error, "%s/%s: is missing; %s", directory, LOOM_WEIGHTS_FILE,
                         exists(directory, LOOM_WEIGHTS_FILE ".index.json")
                             ? "the weights are in several files: save them again as one, in Python with "
                               "save_pretrained(DIR, max_shard_size=\"1TB\")"
                             : "weights in another format must be saved again as safetensors, in Python with "
                               "save_pretrained(DIR)");
    return loom_join_path(path, sizeof path, directory, LOOM_WEIGHTS_FILE, error) &&
           loom_weights_agree(path, config, error);
}

static bool open_tokenizer(const char *directory, const loom_gpt_config *config, bool *bytes, loom_error *error) {
    char path[PATH_MAX];
    if (config->vocab_size < LOOM_BYTE_VOCABULARY || !exists(directory, LOOM_TOKENIZER_FILE)) return true;
    return loom_join_path(path, sizeof path, directory, LOOM_TOKENIZER_FILE, error) &&
           loom_tokenizer_is_bytes(path, bytes, error);
}

static bool open_state(const char *directory, loom_training_state *state, bool *has_optimizer, loom_error *error) {
    char path[PATH_MAX];
    loom_safetensors moments;
    if (!exists(directory, LOOM_STATE_FILE)) return true;
    if (!loom_join_path(path, sizeof path, directory, LOOM_STATE_FILE, error) || !loom_state_read(path, state, error))
        return false;
    if (!exists(directory, LOOM_OPTIMIZER_FILE)) return true;
    if (!loom_join_path(path, sizeof path, directory, LOOM_OPTIMIZER_FILE, error) ||
        !loom_safetensors_open(&moments, path, error))
        return false;
    loom_safetensors_close(&moments);
    *has_optimizer = true;
    return true;
}

static bool identify(loom_checkpoint_info *info, loom_error *error) {
    enum { EDGE = 64 << 10 };
    const bool has_manifest = exists(info->directory, LOOM_MANIFEST_FILE);
    char path[PATH_MAX];
    loom_reader file;
    char edge[2][EDGE];
    if (!loom_join_path(path, sizeof path, info->directory, has_manifest ? LOOM_MANIFEST_FILE : LOOM_WEIGHTS_FILE,
                        error) ||
        !loom_reader_open(&file, path, error))
        return false;
    const size_t n = file.size < EDGE ? (size_t)file.size : EDGE;
    const bool ok = loom_reader_read(&file, 0, edge[0], n, error) &&
                    loom_reader_read(&file, file.size - n, edge[1], n, error);
    info->identity = XXH3_64bits_withSeed(edge[0], n, file.size);
    info->identity = XXH3_64bits_withSeed(edge[1], n, info->identity);
    loom_reader_close(&file);
    return ok;
}

static bool open_files(loom_checkpoint_info *info, loom_error *error) {
    const char *directory = info->directory;
    char config_path[PATH_MAX];
    if (!loom_join_path(config_path, sizeof config_path, directory, LOOM_CONFIG_FILE, error)) return false;
    if (!exists(directory, LOOM_CONFIG_FILE))
        return loom_fail(error, "%s: is missing; without it the model's shape is not known", config_path);
    return (!exists(directory, LOOM_MANIFEST_FILE) || loom_manifest_verify(directory, error)) &&
           loom_config_read(config_path, &info->config, &info->ends, error) &&
           open_weights(directory, &info->config, error) &&
           open_tokenizer(directory, &info->config, &info->bytes, error) &&
           open_state(directory, &info->state, &info->has_optimizer, error) && identify(info, error);
}

/* What to do about a checkpoint that cannot be read: go back to the newest whole one before it. */
static void point_to_older(loom_checkpoint_info *info, loom_error *error) {
    char older[PATH_MAX], before[PATH_MAX];
    loom_checkpoint_info *found = calloc(1, sizeof *found);
    bool whole = false;
    snprintf(before, sizeof before, "%s", info->directory);
    while (found && !whole && loom_checkpoint_older(before, older, sizeof older)) {
        strcpy(before, older);
        snprintf(found->directory, sizeof found->directory, "%s", older);
        whole = open_files(found, NULL);
    }
    if (whole && found->has_optimizer) info->older_step = found->state.step;
    free(found);
    if (!whole || !error) return;
    const loom_error reason = *error;
    loom_fail(error, "%s; the newest whole checkpoint before it is %s", reason.message, older);
}

/* A run that trains beside a reader deletes old checkpoints: one that went while it was opened, or while weights alone
 * were read, is looked for anew, so often. */
enum { TRIES = 16 };

bool loom_checkpoint_open(const char *path, loom_checkpoint_info *info, loom_error *error) {
    for (int i = 0; i < TRIES; i++) {
        struct stat before, after;
        *info = (loom_checkpoint_info){.older_step = -1};
        if (snprintf(info->path, sizeof info->path, "%s", path) >= (int)sizeof info->path)
            return loom_fail(error, "%s: the name is too long", path);
        if (!loom_checkpoint_find(path, info->directory, sizeof info->directory, error)) return false;
        const bool seen = stat(info->directory, &before) == 0;
        if (open_files(info, error)) return true;
        const bool stays = seen && stat(info->directory, &after) == 0 && before.st_ino == after.st_ino;
        if (stays) {
            point_to_older(info, error);
            return false;
        }
    }
    return false;
}

bool loom_checkpoint_state(const char *directory, loom_training_state *state) {
    bool has_optimizer = false;
    return open_state(directory, state, &has_optimizer, NULL) && has_optimizer;
}

/* ---------------------------------------------------------------------------------------------------------- loading */

static bool same_shape(const loom_gpt_config *a, const loom_gpt_config *b) {
    return a->n_layer == b->n_layer && a->n_head == b->n_head && a->n_embd == b->n_embd &&
           a->block_size == b->block_size && a->vocab_size == b->vocab_size;
}

static const char *describe_shape(const loom_gpt_config *config, char text[192]) {
    snprintf(text, 192,
             "%" PRId64 " layer%s, %" PRId64 " head%s, %" PRId64 " channel%s, block size %" PRId64
             ", vocabulary %" PRId64,
             config->n_layer, loom_plural(config->n_layer), config->n_head, loom_plural(config->n_head), config->n_embd,
             loom_plural(config->n_embd), config->block_size, config->vocab_size);
    return text;
}

/* Everything is opened and matched before the first byte is copied. */
static bool load_files(const loom_checkpoint_info *info, const loom_checkpoint_tensors *tensors, loom_error *error) {
    char found[192], expected[192], weights_path[PATH_MAX], moments_path[PATH_MAX];
    if (!same_shape(&info->config, tensors->config))
        return loom_fail(error, "%s: is of another shape: it has %s; the model has %s", info->directory,
                         describe_shape(&info->config, found), describe_shape(tensors->config, expected));
    if (tensors->moments && !info->has_optimizer)
        return loom_fail(error, "%s: holds weights only; training cannot be resumed from it, but can start from them",
                         info->directory);
    if (!loom_join_path(weights_path, sizeof weights_path, info->directory, LOOM_WEIGHTS_FILE, error) ||
        !loom_join_path(moments_path, sizeof moments_path, info->directory, LOOM_OPTIMIZER_FILE, error))
        return false;

    const loom_tensor_sets weights = loom_weight_sets(tensors), moments = loom_moment_sets(tensors);
    loom_tensor_source weights_source, moments_source = {0};
    if (!loom_tensor_source_open(&weights_source, weights_path, tensors, &weights, true, error)) return false;
    const bool ok = (!tensors->moments ||
                     loom_tensor_source_open(&moments_source, moments_path, tensors, &moments, false, error)) &&
                    loom_tensor_source_load(&weights_source, tensors, &weights, error) &&
                    (!tensors->moments || loom_tensor_source_load(&moments_source, tensors, &moments, error));
    loom_tensor_source_close(&moments_source);
    loom_tensor_source_close(&weights_source);
    return ok;
}

bool loom_checkpoint_load(loom_checkpoint_info *info, const loom_checkpoint_tensors *tensors, loom_error *error) {
    char path[sizeof info->path];
    strcpy(path, info->path);
    for (int i = 0; i < TRIES; i++) {
        if (load_files(info, tensors, error)) return true;
        if (tensors->moments || loom_is_directory(info->directory)) return false;
        if (!loom_checkpoint_open(path, info, error)) return false;
    }
    return false;
}
