#include "checkpoint/tensors.h"

#include "base/check.h"
#include "base/half.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "transformer."

enum { STAGING_ELEMENTS = 1 << 20, NAME_SIZE = sizeof((loom_safetensor *)0)->name, SHAPE_TEXT_SIZE = 96 };

loom_tensor_sets loom_weight_sets(const loom_checkpoint_tensors *tensors) {
    return (loom_tensor_sets){1, {{"", tensors->parameters, tensors->dtype}}};
}

loom_tensor_sets loom_moment_sets(const loom_checkpoint_tensors *tensors) {
    return (loom_tensor_sets){2,
                              {{".exp_avg", tensors->moment1, tensors->moment_dtype},
                               {".exp_avg_sq", tensors->moment2, tensors->moment_dtype}}};
}

/* The format's names of the types that weights can have. */
static const char *format_name(loom_dtype dtype) {
    return dtype == LOOM_BF16 ? "BF16" : dtype == LOOM_F16 ? "F16" : "F32";
}

/* How a parameter of a set looks in a file. */
static loom_safetensor describe(const loom_parameter *parameter, const struct loom_tensor_set *set) {
    loom_safetensor tensor = {.rank = parameter->vector ? 1 : 2};
    const int length = snprintf(tensor.name, sizeof tensor.name, "%s%s", parameter->name, set->suffix);
    LOOM_CHECK(length > 0 && length < NAME_SIZE);
    snprintf(tensor.dtype, sizeof tensor.dtype, "%s", format_name(set->dtype));
    tensor.shape[0] = parameter->vector ? parameter->columns : parameter->rows;
    tensor.shape[1] = parameter->vector ? 0 : parameter->columns;
    tensor.bytes = (size_t)parameter->rows * (size_t)parameter->columns * loom_dtype_size(set->dtype);
    return tensor;
}

static char *place_of(const struct loom_tensor_set *set, const loom_parameter *parameter) {
    return (char *)set->memory + (size_t)parameter->offset * loom_dtype_size(set->dtype);
}

static bool check_storage(const loom_device *device, loom_error *error) {
    if (device->storage == LOOM_F32) return true;
    return loom_fail(error, "device %s stores parameters in %s; checkpoints hold fp32 or 16 bits", device->name,
                     loom_dtype_name(device->storage));
}

static float *make_staging(loom_error *error) {
    float *staging = malloc(STAGING_ELEMENTS * sizeof *staging);
    if (!staging)
        loom_fail(error, "no memory for the %zu bytes through which checkpoints are copied",
                  STAGING_ELEMENTS * sizeof *staging);
    return staging;
}

static int64_t chunk_of(int64_t left) {
    return left < STAGING_ELEMENTS ? left : STAGING_ELEMENTS;
}

/* ---------------------------------------------------------------------------------------------------------- writing */

static bool write_from_device(loom_writer *writer, loom_device *device, const char *from, int64_t n, size_t size,
                              void *staging, loom_error *error) {
    if (device->host_memory) return loom_writer_write(writer, from, (size_t)n * size, error);
    for (int64_t done = 0; done < n;) {
        const int64_t chunk = chunk_of(n - done);
        const size_t bytes = (size_t)chunk * size;
        device->copy(device, NULL, staging, from + (size_t)done * size, bytes, LOOM_DEVICE_TO_HOST);
        if (!device->synchronize(device, NULL, error) || !loom_writer_write(writer, staging, bytes, error))
            return false;
        done += chunk;
    }
    return true;
}

static bool write_header(loom_writer *writer, const loom_layout *layout, const loom_tensor_sets *sets,
                         loom_error *error) {
    const int n = sets->n_sets * layout->n_parameters;
    loom_safetensor *header = malloc((size_t)n * sizeof *header);
    if (!header) return loom_fail(error, "no memory for a checkpoint's header");
    for (int i = 0; i < n; i++)
        header[i] = describe(&layout->parameter[i % layout->n_parameters], &sets->set[i / layout->n_parameters]);
    const bool ok = loom_safetensors_write_header(writer, header, n, error);
    free(header);
    return ok;
}

static bool write_data(loom_writer *writer, const loom_checkpoint_tensors *tensors, const loom_tensor_sets *sets,
                       loom_error *error) {
    const loom_layout *layout = tensors->layout;
    loom_device *device = tensors->device;
    if (!device->synchronize(device, NULL, error)) return false;
    float *staging = make_staging(error);
    bool ok = staging;
    for (int s = 0; ok && s < sets->n_sets; s++) {
        for (int i = 0; ok && i < layout->n_parameters; i++) {
            const loom_parameter *parameter = &layout->parameter[i];
            ok = write_from_device(writer, device, place_of(&sets->set[s], parameter),
                                   parameter->rows * parameter->columns, loom_dtype_size(sets->set[s].dtype), staging,
                                   error);
        }
    }
    free(staging);
    return ok;
}

bool loom_tensors_write(loom_manifest *manifest, const char *name, const loom_checkpoint_tensors *tensors,
                        const loom_tensor_sets *sets, loom_error *error) {
    if (!check_storage(tensors->device, error)) return false;
    loom_writer *writer = loom_manifest_begin(manifest, name, error);
    const bool ok = writer && write_header(writer, tensors->layout, sets, error) &&
                    write_data(writer, tensors, sets, error);
    return loom_manifest_end(manifest, name, writer, ok, error);
}

/* --------------------------------------------------------------------------------------------------------- matching */

static bool ends_with(const char *text, const char *end) {
    const size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

/* Tensors of GPT-2 files that hold nothing of their own: the classifier is the token embedding, the others are the
 * causal mask and its value. */
static bool carries_nothing(const char *name) {
    return strcmp(name, "lm_head.weight") == 0 || ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias");
}

/* By transformers' name, or by that of the files on the hub, which lack the prefix. */
static const loom_safetensor *find_weight(const loom_safetensors *file, const char *name) {
    const loom_safetensor *tensor = loom_safetensors_find(file, name);
    const size_t prefix = strlen(PREFIX);
    if (!tensor && strncmp(name, PREFIX, prefix) == 0) tensor = loom_safetensors_find(file, name + prefix);
    return tensor;
}

static const char *shape_text(const loom_safetensor *tensor, char text[SHAPE_TEXT_SIZE]) {
    int used = snprintf(text, SHAPE_TEXT_SIZE, "(");
    for (int i = 0; i < tensor->rank; i++)
        used += snprintf(text + used, (size_t)(SHAPE_TEXT_SIZE - used), i ? ", %" PRId64 : "%" PRId64,
                         tensor->shape[i]);
    snprintf(text + used, (size_t)(SHAPE_TEXT_SIZE - used), ")");
    return text;
}

static bool check_shape(const char *path, const loom_safetensor *found, const loom_safetensor *expected,
                        loom_error *error) {
    char found_text[SHAPE_TEXT_SIZE], expected_text[SHAPE_TEXT_SIZE];
    bool same = found->rank == expected->rank;
    for (int i = 0; same && i < found->rank; i++) same = found->shape[i] == expected->shape[i];
    if (same) return true;
    return loom_fail(error, "%s: tensor '%s' has the shape %s, expected %s", path, found->name,
                     shape_text(found, found_text), shape_text(expected, expected_text));
}

/* Runs save moments in fp32 or bf16; weights may come from elsewhere. */
static bool check_dtype(const char *path, const loom_safetensor *found, bool foreign, loom_error *error) {
    if (strcmp(found->dtype, "F32") == 0 || strcmp(found->dtype, "BF16") == 0 ||
        (foreign && strcmp(found->dtype, "F16") == 0))
        return true;
    return loom_fail(error, "%s: tensor '%s' is %s, expected %s", path, found->name, found->dtype,
                     foreign ? "F32, F16 or BF16" : "F32 or BF16");
}

static bool no_such_tensor(const char *path, const char *name, loom_error *error) {
    return loom_fail(error, "%s: has no tensor '%s', which a model of this shape needs", path, name);
}

/* `wanted` gets a mark for each tensor of the file that belongs to the layout. */
static bool match(loom_tensor_source *source, const char *path, const loom_layout *layout, const loom_tensor_sets *sets,
                  bool foreign, bool *wanted, loom_error *error) {
    const loom_safetensors *file = &source->file;
    for (int i = 0; i < sets->n_sets * layout->n_parameters; i++) {
        const loom_safetensor expected = describe(&layout->parameter[i % layout->n_parameters],
                                                  &sets->set[i / layout->n_parameters]);
        const loom_safetensor *found = foreign ? find_weight(file, expected.name)
                                               : loom_safetensors_find(file, expected.name);
        if (!found) return no_such_tensor(path, expected.name, error);
        if (!check_shape(path, found, &expected, error) || !check_dtype(path, found, foreign, error)) return false;
        source->found[i] = found;
        wanted[found - file->tensor] = true;
    }
    for (int i = 0; i < file->n_tensors; i++)
        if (!wanted[i] && !(foreign && carries_nothing(file->tensor[i].name)))
            return loom_fail(error, "%s: has a tensor '%s', which a model of this shape does not have", path,
                             file->tensor[i].name);
    return true;
}

bool loom_tensor_source_open(loom_tensor_source *source, const char *path, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, bool foreign, loom_error *error) {
    *source = (loom_tensor_source){0};
    if (!check_storage(tensors->device, error) || !loom_safetensors_open(&source->file, path, error)) return false;
    const loom_layout *layout = tensors->layout;
    bool *wanted = calloc((size_t)source->file.n_tensors + 1, sizeof *wanted);
    source->found = calloc((size_t)(sets->n_sets * layout->n_parameters), sizeof *source->found);
    const bool ok = wanted && source->found ? match(source, path, layout, sets, foreign, wanted, error)
                                            : loom_fail(error, "%s: no memory to read it", path);
    free(wanted);
    if (!ok) loom_tensor_source_close(source);
    return ok;
}

void loom_tensor_source_close(loom_tensor_source *source) {
    loom_safetensors_close(&source->file);
    free(source->found);
    *source = (loom_tensor_source){0};
}

/* Only to learn a tensor's shape; whether the rest agrees is found when it is loaded. */
static bool check_matrix(const loom_safetensors *file, const char *path, const char *name, int64_t rows,
                         int64_t columns, loom_error *error) {
    const loom_safetensor expected = {.rank = 2, .shape = {rows, columns}}, *found = find_weight(file, name);
    return found ? check_shape(path, found, &expected, error) : no_such_tensor(path, name, error);
}

bool loom_weights_agree(const char *path, const loom_gpt_config *config, loom_error *error) {
    loom_safetensors file;
    if (!loom_safetensors_open(&file, path, error)) return false;
    char last[NAME_SIZE];
    snprintf(last, sizeof last, PREFIX "h.%" PRId64 ".attn.c_attn.weight", config->n_layer - 1);
    const int64_t C = config->n_embd;
    const bool ok = check_matrix(&file, path, PREFIX "wte.weight", config->vocab_size, C, error) &&
                    check_matrix(&file, path, PREFIX "wpe.weight", config->block_size, C, error) &&
                    check_matrix(&file, path, last, C, 3 * C, error);
    loom_safetensors_close(&file);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- loading */

/* `n` numbers of a file, at any alignment, as fp32. */
static void widen(float *out, const char *from, int64_t n, loom_dtype dtype) {
    if (dtype == LOOM_F32) memcpy(out, from, (size_t)n * sizeof *out);
    for (int64_t i = 0; dtype != LOOM_F32 && i < n; i++) {
        uint16_t bits;
        memcpy(&bits, from + i * (int64_t)sizeof bits, sizeof bits);
        out[i] = dtype == LOOM_BF16 ? bf16_to_float(bits) : fp16_to_float(bits);
    }
}

/* In place, rounded to nearest: number i is written where numbers i / 2 and before were. */
static void narrow(float *values, int64_t n, loom_dtype dtype) {
    for (int64_t i = 0; dtype != LOOM_F32 && i < n; i++) {
        const uint16_t bits = dtype == LOOM_BF16 ? float_to_bf16(values[i]) : float_to_fp16(values[i]);
        memcpy((char *)values + i * (int64_t)sizeof bits, &bits, sizeof bits);
    }
}

/* From staging memory to the device; when it returns the staging memory is free again. */
static bool put(loom_device *device, char *to, const void *staging, size_t bytes, loom_error *error) {
    device->copy(device, NULL, to, staging, bytes, LOOM_HOST_TO_DEVICE);
    return device->synchronize(device, NULL, error);
}

static bool load_converted(loom_device *device, char *to, loom_dtype dtype, const loom_safetensor *tensor,
                           loom_dtype found, int64_t n, float *staging, loom_error *error) {
    const size_t size = loom_dtype_size(dtype), found_size = loom_dtype_size(found);
    for (int64_t done = 0; done < n;) {
        const int64_t chunk = chunk_of(n - done);
        widen(staging, (const char *)tensor->data + (size_t)done * found_size, chunk, found);
        narrow(staging, chunk, dtype);
        if (!put(device, to + (size_t)done * size, staging, (size_t)chunk * size, error)) return false;
        done += chunk;
    }
    return true;
}

static bool load_zeros(loom_device *device, char *to, loom_dtype dtype, int64_t n, float *staging, loom_error *error) {
    const size_t size = loom_dtype_size(dtype);
    memset(staging, 0, (size_t)chunk_of(n) * size);
    for (int64_t done = 0; done < n;) {
        const int64_t chunk = chunk_of(n - done);
        if (!put(device, to + (size_t)done * size, staging, (size_t)chunk * size, error)) return false;
        done += chunk;
    }
    return true;
}

static bool load_parameter(loom_device *device, const struct loom_tensor_set *set, const loom_parameter *parameter,
                           const loom_safetensor *tensor, float *staging, loom_error *error) {
    char *to = place_of(set, parameter);
    const int64_t n = parameter->rows * parameter->columns;
    const int64_t padding = (parameter->padded_rows - parameter->rows) * parameter->columns;
    const loom_dtype found = !strcmp(tensor->dtype, "F32")   ? LOOM_F32
                             : !strcmp(tensor->dtype, "F16") ? LOOM_F16
                                                             : LOOM_BF16;
    if (found == set->dtype)
        device->copy(device, NULL, to, tensor->data, tensor->bytes, LOOM_HOST_TO_DEVICE);
    else if (!load_converted(device, to, set->dtype, tensor, found, n, staging, error))
        return false;
    char *behind = to + (size_t)n * loom_dtype_size(set->dtype);
    return padding <= 0 || load_zeros(device, behind, set->dtype, padding, staging, error);
}

bool loom_tensor_source_load(const loom_tensor_source *source, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, loom_error *error) {
    const loom_layout *layout = tensors->layout;
    loom_device *device = tensors->device;
    float *staging = make_staging(error);
    bool ok = staging;
    for (int s = 0; ok && s < sets->n_sets; s++) {
        for (int i = 0; ok && i < layout->n_parameters; i++) {
            const loom_parameter *parameter = &layout->parameter[i];
            ok = load_parameter(device, &sets->set[s], parameter, source->found[s * layout->n_parameters + i], staging,
                                error);
        }
    }
    /* Copies out of the mapped file may still be under way, on every way out. */
    ok = device->synchronize(device, NULL, ok ? error : NULL) && ok;
    free(staging);
    return ok;
}
