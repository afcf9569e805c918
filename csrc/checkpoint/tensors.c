#include "checkpoint/tensors.h"

#include "base/check.h"
#include "ops/finite.h"
#include "base/half.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "transformer."
#define HEAD   "lm_head.weight"

enum { STAGING_ELEMENTS = 1 << 20, NAME_SIZE = sizeof((loom_safetensor *)0)->name, SHAPE_TEXT_SIZE = 96 };

static void *parameters_of(const loom_checkpoint_slice *slice) {
    return slice->parameters;
}

static void *moment1_of(const loom_checkpoint_slice *slice) {
    return slice->moment1;
}

static void *moment2_of(const loom_checkpoint_slice *slice) {
    return slice->moment2;
}

loom_tensor_sets loom_weight_sets(const loom_checkpoint_tensors *tensors) {
    return (loom_tensor_sets){1, {{"", parameters_of, tensors->dtype}}};
}

loom_tensor_sets loom_moment_sets(const loom_checkpoint_tensors *tensors) {
    return (loom_tensor_sets){
        2, {{".exp_avg", moment1_of, tensors->moment_dtype}, {".exp_avg_sq", moment2_of, tensors->moment_dtype}}};
}

static void *at(void *memory, int64_t element, loom_dtype dtype) {
    return memory ? (char *)memory + (size_t)element * loom_dtype_size(dtype) : NULL;
}

loom_checkpoint_slice *loom_checkpoint_whole_slices(const loom_checkpoint_tensors *tensors, void *parameters,
                                                    void *moment1, void *moment2, loom_error *error) {
    const loom_layout *layout = tensors->layout;
    loom_checkpoint_slice *slices = malloc((size_t)layout->n_buckets * sizeof *slices);
    if (!slices) {
        loom_fail(error, "no memory to describe a checkpoint");
        return NULL;
    }
    for (int b = 0; b < layout->n_buckets; b++) {
        const loom_bucket *bucket = &layout->bucket[b];
        slices[b] = (loom_checkpoint_slice){.elements = bucket->elements,
                                            .parameters = at(parameters, bucket->offset, tensors->dtype),
                                            .moment1 = at(moment1, bucket->offset, tensors->moment_dtype),
                                            .moment2 = at(moment2, bucket->offset, tensors->moment_dtype)};
    }
    return slices;
}

/* The safetensors names of the dtypes that weights can have. */
static const char *format_name(loom_dtype dtype) {
    return dtype == LOOM_BF16 ? "BF16" : dtype == LOOM_F16 ? "F16" : "F32";
}

/* Describes a set's tensor of a parameter as the file holds it. */
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

/* The elements of a parameter that lie on this device. Like all element numbers here, `first` counts from the
 * parameter's first element. */
typedef struct piece {
    int64_t first, elements; /* 0: none */
    char *memory;
} piece;

/* The piece of a parameter's elements begin .. end - 1 that this rank holds. */
static piece piece_of(const loom_checkpoint_tensors *tensors, const struct loom_tensor_set *set,
                      const loom_parameter *parameter, int64_t begin, int64_t end) {
    const loom_checkpoint_slice *slice = &tensors->slice[parameter->bucket];
    const int64_t start = parameter->offset - tensors->layout->bucket[parameter->bucket].offset;
    const int64_t slice_begin = slice->first - start, slice_end = slice_begin + slice->elements;
    if (begin < slice_begin) begin = slice_begin;
    if (end > slice_end) end = slice_end;
    if (begin >= end) return (piece){0};
    return (piece){.first = begin,
                   .elements = end - begin,
                   .memory = (char *)set->memory(slice) + (size_t)(begin - slice_begin) * loom_dtype_size(set->dtype)};
}

/* The elements from a parameter's start to the next parameter, or to the bucket's end. Those after the parameter itself
 * are zero. */
static int64_t room_of(const loom_layout *layout, int parameter) {
    const loom_parameter *p = &layout->parameter[parameter], *next = p + 1;
    const loom_bucket *bucket = &layout->bucket[p->bucket];
    const bool last = parameter + 1 == layout->n_parameters || next->bucket != p->bucket;
    return (last ? bucket->offset + bucket->elements : next->offset) - p->offset;
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

/* Returns the beginning of such a file, which the caller frees, and the number of data bytes that follow it. */
static char *make_header(const loom_layout *layout, const loom_tensor_sets *sets, size_t *header_bytes,
                         uint64_t *data_bytes, loom_error *error) {
    const int n = sets->n_sets * layout->n_parameters;
    loom_safetensor *tensor = malloc((size_t)n * sizeof *tensor);
    if (!tensor) {
        loom_fail(error, "no memory for a checkpoint's header");
        return NULL;
    }
    *data_bytes = 0;
    for (int i = 0; i < n; i++) {
        tensor[i] = describe(&layout->parameter[i % layout->n_parameters], &sets->set[i / layout->n_parameters]);
        *data_bytes += tensor[i].bytes;
    }
    char *header = loom_safetensors_header(tensor, n, header_bytes, error);
    free(tensor);
    return header;
}

/* Writes what lies in this rank's slices, each piece in its place: tensors follow each other from byte `place` on. */
static bool write_data(loom_writer *writer, uint64_t place, const loom_checkpoint_tensors *tensors,
                       const loom_tensor_sets *sets, loom_error *error) {
    const loom_layout *layout = tensors->layout;
    loom_device *device = tensors->device;
    if (!device->synchronize(device, NULL, error)) return false;
    float *staging = make_staging(error);
    bool ok = staging;
    for (int i = 0; ok && i < sets->n_sets * layout->n_parameters; i++) {
        const struct loom_tensor_set *set = &sets->set[i / layout->n_parameters];
        const loom_parameter *parameter = &layout->parameter[i % layout->n_parameters];
        const int64_t n = parameter->rows * parameter->columns;
        const size_t size = loom_dtype_size(set->dtype);
        const piece mine = piece_of(tensors, set, parameter, 0, n);
        if (mine.elements > 0)
            ok = loom_writer_seek(writer, place + (uint64_t)mine.first * size, error) &&
                 write_from_device(writer, device, mine.memory, mine.elements, size, staging, error);
        place += (uint64_t)n * size;
    }
    free(staging);
    return ok;
}

bool loom_tensors_write(loom_manifest *manifest, const char *name, const loom_checkpoint_tensors *tensors,
                        const loom_tensor_sets *sets, bool filled, loom_error *error) {
    size_t bytes;
    uint64_t data_bytes;
    if (!check_storage(tensors->device, error)) return false;
    char *header = make_header(tensors->layout, sets, &bytes, &data_bytes, error);
    if (!header) return false;
    loom_writer *writer = loom_manifest_begin(manifest, name, error);
    const bool ok = writer && loom_writer_write(writer, header, bytes, error) &&
                    (filled ? write_data(writer, bytes, tensors, sets, error)
                            : loom_writer_extend(writer, bytes + data_bytes, error));
    free(header);
    return loom_manifest_end(manifest, name, writer, ok, error);
}

bool loom_tensors_write_part(const char *directory, const char *name, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, loom_error *error) {
    char path[PATH_MAX];
    size_t bytes;
    uint64_t data_bytes;
    if (!check_storage(tensors->device, error) || !loom_join_path(path, sizeof path, directory, name, error))
        return false;
    char *header = make_header(tensors->layout, sets, &bytes, &data_bytes, error);
    if (!header) return false;
    free(header);
    loom_writer *writer = loom_writer_open_part(path, error);
    if (!writer) return false;
    if (write_data(writer, bytes, tensors, sets, error)) return loom_writer_close(writer, NULL, NULL, error);
    loom_writer_abandon(writer);
    return false;
}

/* ---------------------------------------------------------------------------------------------------------- numbers */

static loom_dtype dtype_of(const loom_safetensor *tensor) {
    return !strcmp(tensor->dtype, "F32") ? LOOM_F32 : !strcmp(tensor->dtype, "F16") ? LOOM_F16 : LOOM_BF16;
}

/* Reads `n` numbers of a tensor from `first` on, in the tensor's dtype. They must be finite. */
static bool read_finite(const loom_safetensors *file, const loom_safetensor *tensor, int64_t first, int64_t n, void *to,
                        loom_error *error) {
    const loom_dtype dtype = dtype_of(tensor);
    const size_t size = loom_dtype_size(dtype);
    if (!loom_safetensors_read(file, tensor, (size_t)first * size, to, (size_t)n * size, error)) return false;
    const int64_t bad = loom_first_not_finite(to, n, dtype);
    if (bad == n) return true;
    return loom_fail(error,
                     "%s: tensor '%s' is not all numbers: its element %" PRId64 " is infinite or NaN; the model was "
                     "saved after its training had diverged, or is damaged: take an older one",
                     file->reader.path, tensor->name, first + bad);
}

/* Reads numbers and converts them to fp32. 16-bit numbers are read into the end of the buffer and converted from front
 * to back, so that none is overwritten before it is read. */
static bool read_numbers(const loom_safetensors *file, const loom_safetensor *tensor, int64_t first, int64_t n,
                         float *to, loom_error *error) {
    const loom_dtype dtype = dtype_of(tensor);
    char *raw = (char *)to + (size_t)n * (sizeof *to - loom_dtype_size(dtype));
    if (!read_finite(file, tensor, first, n, raw, error)) return false;
    for (int64_t i = 0; dtype != LOOM_F32 && i < n; i++) {
        uint16_t bits;
        memcpy(&bits, raw + i * (int64_t)sizeof bits, sizeof bits);
        to[i] = dtype == LOOM_BF16 ? bf16_to_float(bits) : fp16_to_float(bits);
    }
    return true;
}

/* --------------------------------------------------------------------------------------------------------- matching */

static bool ends_with(const char *text, const char *end) {
    const size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

/* Whether a tensor of a GPT-2 file holds no weights of its own: the output layer, which must equal the token embedding
 * (check_head), or the causal mask and its value. */
static bool carries_nothing(const char *name) {
    return strcmp(name, HEAD) == 0 || ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias");
}

/* Finds a weight by transformers' name, or by that of the files on the hub, which lack the prefix. */
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

/* Runs save moments in fp32 or bf16. Weights of foreign files may have other dtypes. */
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

static bool same_numbers(const float *a, const float *b, int64_t n) {
    bool same = true;
    for (int64_t i = 0; i < n; i++) same &= a[i] == b[i];
    return same;
}

/* If the file has an output layer, it must equal the token embedding: with any other output layer the model would
 * compute something else. */
static bool check_head(const loom_safetensors *file, const loom_layout *layout, loom_error *error) {
    const loom_safetensor *head = loom_safetensors_find(file, HEAD),
                          *embedding = find_weight(file, layout->parameter[0].name);
    const char *path = file->reader.path;
    if (!head || !embedding) return true;
    if (!check_shape(path, head, embedding, error) || !check_dtype(path, head, true, error)) return false;
    float *staging = make_staging(error);
    if (!staging) return false;
    const int64_t all = embedding->shape[0] * embedding->shape[1], half = STAGING_ELEMENTS / 2;
    bool ok = true, same = true;
    for (int64_t done = 0; ok && same && done < all; done += half) {
        const int64_t n = all - done < half ? all - done : half;
        ok = read_numbers(file, head, done, n, staging, error) &&
             read_numbers(file, embedding, done, n, staging + half, error);
        same = ok && same_numbers(staging, staging + half, n);
    }
    free(staging);
    if (!ok) return false;
    return same || loom_fail(error,
                             "%s: '" HEAD "' is not '%s': the model has an output layer of its own, and only models "
                             "whose output layer is their token embedding can be loaded; save it with the two tied",
                             path, embedding->name);
}

bool loom_tensor_source_open(loom_tensor_source *source, const char *path, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, bool foreign, loom_error *error) {
    *source = (loom_tensor_source){0};
    if (!check_storage(tensors->device, error) || !loom_safetensors_open(&source->file, path, error)) return false;
    const loom_layout *layout = tensors->layout;
    bool *wanted = calloc((size_t)source->file.n_tensors + 1, sizeof *wanted);
    source->found = calloc((size_t)(sets->n_sets * layout->n_parameters), sizeof *source->found);
    const bool ok = wanted && source->found ? match(source, path, layout, sets, foreign, wanted, error) &&
                                                  (!foreign || check_head(&source->file, layout, error))
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

/* Checks only that the file has a matrix of this shape. All other checks are made when the file is loaded. */
static bool matrix_agrees(const loom_safetensors *file, const char *path, const loom_parameter *p, loom_error *error) {
    const loom_safetensor expected = {.rank = 2, .shape = {p->rows, p->columns}}, *found = find_weight(file, p->name);
    return found ? check_shape(path, found, &expected, error) : no_such_tensor(path, p->name, error);
}

/* Checks both embeddings and the first matrix of the last layer. */
bool loom_weights_agree(const char *path, const loom_gpt_config *config, loom_error *error) {
    loom_safetensors file;
    loom_layout layout;
    if (!loom_layout_create(&layout, config, 1, error)) return false;
    if (!loom_safetensors_open(&file, path, error)) {
        loom_layout_destroy(&layout);
        return false;
    }
    int last = layout.n_parameters - 1;
    while (layout.bucket[layout.parameter[last].bucket].layer != config->n_layer - 1) last--;
    while (layout.parameter[last - 1].bucket == layout.parameter[last].bucket) last--;
    while (layout.parameter[last].vector) last++;
    const int looked_at[] = {0, 1, last};
    bool ok = true;
    for (int i = 0; ok && i < 3; i++) ok = matrix_agrees(&file, path, &layout.parameter[looked_at[i]], error);
    loom_safetensors_close(&file);
    loom_layout_destroy(&layout);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- loading */

/* Converts in place, rounding to nearest: 16-bit number i is written over 32-bit number i / 2, which has been read
 * already. */
static void narrow(float *values, int64_t n, loom_dtype dtype) {
    for (int64_t i = 0; dtype != LOOM_F32 && i < n; i++) {
        const uint16_t bits = dtype == LOOM_BF16 ? float_to_bf16(values[i]) : float_to_fp16(values[i]);
        memcpy((char *)values + i * (int64_t)sizeof bits, &bits, sizeof bits);
    }
}

/* Copies staging memory to the device. When it returns, the staging memory may be used again. */
static bool put(loom_device *device, char *to, const void *staging, size_t bytes, loom_error *error) {
    device->copy(device, NULL, to, staging, bytes, LOOM_HOST_TO_DEVICE);
    return device->synchronize(device, NULL, error);
}

/* The elements of a tensor that a piece is, converted where it is of another type; straight to their place where
 * nothing stands between. */
static bool load_piece(const loom_safetensors *file, const loom_safetensor *tensor, loom_device *device,
                       const piece *mine, loom_dtype dtype, float *staging, loom_error *error) {
    const size_t size = loom_dtype_size(dtype);
    const bool converted = dtype_of(tensor) != dtype;
    for (int64_t done = 0; done < mine->elements;) {
        const int64_t chunk = chunk_of(mine->elements - done), first = mine->first + done;
        char *to = mine->memory + (size_t)done * size;
        void *through = device->host_memory && !converted ? (void *)to : staging;
        if (converted ? !read_numbers(file, tensor, first, chunk, staging, error)
                      : !read_finite(file, tensor, first, chunk, through, error))
            return false;
        if (converted) narrow(staging, chunk, dtype);
        if (converted && !loom_all_finite(staging, chunk, dtype))
            return loom_fail(error, "%s: tensor '%s' has numbers that are too large for %s; take another dtype",
                             file->reader.path, tensor->name, loom_dtype_name(dtype));
        if (through != to && !put(device, to, staging, (size_t)chunk * size, error)) return false;
        done += chunk;
    }
    return true;
}

static bool load_zeros(loom_device *device, const piece *mine, loom_dtype dtype, float *staging, loom_error *error) {
    const size_t size = loom_dtype_size(dtype);
    memset(staging, 0, (size_t)chunk_of(mine->elements) * size);
    for (int64_t done = 0; done < mine->elements;) {
        const int64_t chunk = chunk_of(mine->elements - done);
        if (!put(device, mine->memory + (size_t)done * size, staging, (size_t)chunk * size, error)) return false;
        done += chunk;
    }
    return true;
}

/* Loads a parameter and zeroes the gap after it, as far as they lie in this rank's slice. */
static bool load_parameter(const loom_checkpoint_tensors *tensors, const struct loom_tensor_set *set, int i,
                           const loom_safetensors *file, const loom_safetensor *tensor, float *staging,
                           loom_error *error) {
    const loom_parameter *parameter = &tensors->layout->parameter[i];
    const int64_t n = parameter->rows * parameter->columns;
    const piece mine = piece_of(tensors, set, parameter, 0, n);
    const piece behind = piece_of(tensors, set, parameter, n, room_of(tensors->layout, i));
    return load_piece(file, tensor, tensors->device, &mine, set->dtype, staging, error) &&
           load_zeros(tensors->device, &behind, set->dtype, staging, error);
}

bool loom_tensor_source_load(const loom_tensor_source *source, const loom_checkpoint_tensors *tensors,
                             const loom_tensor_sets *sets, loom_error *error) {
    const int n = tensors->layout->n_parameters;
    float *staging = make_staging(error);
    bool ok = staging;
    for (int i = 0; ok && i < sets->n_sets * n; i++)
        ok = load_parameter(tensors, &sets->set[i / n], i % n, &source->file, source->found[i], staging, error);
    free(staging);
    return ok;
}
