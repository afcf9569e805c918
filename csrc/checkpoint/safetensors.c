#include "checkpoint/safetensors.h"

#include "base/check.h"
#include "base/printable.h"
#include "base/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors data is little-endian and is used in place");

/* The header of the deepest GPT with its moments stays below 1 MiB; a larger length than LARGEST_HEADER is damaged. */
enum { LENGTH_BYTES = 8, LARGEST_HEADER = 16 << 20, HEADER_ALIGNMENT = 8, LARGEST_RANK = 4 };

static const struct {
    const char *name;
    size_t size;
} known_dtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
                    {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
                    {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8}};

/* The bytes of an element; 0 if the dtype is unknown. */
static size_t dtype_size(const char *dtype) {
    for (size_t i = 0; i < sizeof known_dtypes / sizeof *known_dtypes; i++)
        if (strcmp(known_dtypes[i].name, dtype) == 0) return known_dtypes[i].size;
    return 0;
}

/* Computes a tensor's bytes from its dtype and shape. Returns false if a size_t cannot hold them or the dtype is
 * unknown. */
static bool tensor_bytes(const loom_safetensor *tensor, size_t *bytes) {
    *bytes = dtype_size(tensor->dtype);
    bool fits = *bytes > 0;
    for (int i = 0; i < tensor->rank; i++)
        fits = fits && !__builtin_mul_overflow(*bytes, (size_t)tensor->shape[i], bytes);
    return fits;
}

/* ---------------------------------------------------------------------------------------------------------- reading */

/* Reads one entry of the header and checks it against `available` bytes of data that begin at byte `data` of the
 * file. */
static bool read_entry(const cJSON *entry, uint64_t data, uint64_t available, const char *path, loom_safetensor *tensor,
                       loom_error *error) {
    const char *name = entry->string;
    if (strlen(name) >= sizeof tensor->name || !loom_is_printable(name))
        return loom_fail(error, "%s: is damaged or foreign: a tensor's name is too long or is not text", path);
    strcpy(tensor->name, name);
    if (!loom_json_check_keys(entry, path, error)) return false;

    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
    if (!cJSON_IsString(dtype) || dtype_size(dtype->valuestring) == 0)
        return loom_fail(error, "%s: is damaged or foreign: the dtype of tensor '%s' is not one that is known", path,
                         name);
    strcpy(tensor->dtype, dtype->valuestring);

    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape"), *extent = NULL;
    bool ok = cJSON_IsArray(shape) && cJSON_GetArraySize(shape) <= LARGEST_RANK;
    if (ok) {
        cJSON_ArrayForEach(extent, shape) ok = ok && loom_json_whole(extent, &tensor->shape[tensor->rank++]);
    }
    size_t bytes;
    if (!ok || !tensor_bytes(tensor, &bytes))
        return loom_fail(error, "%s: is damaged or foreign: the shape of tensor '%s' is impossible", path, name);

    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    int64_t begin, end;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !loom_json_whole(cJSON_GetArrayItem(offsets, 0), &begin) ||
        !loom_json_whole(cJSON_GetArrayItem(offsets, 1), &end) || begin > end)
        return loom_fail(error, "%s: is damaged or foreign: the data_offsets of tensor '%s' are impossible", path,
                         name);
    if ((uint64_t)end > available)
        return loom_fail(error,
                         "%s: is truncated: tensor '%s' ends at byte %" PRId64 " of the data, which has %" PRIu64,

                         path, name, end, available);
    if ((uint64_t)(end - begin) != bytes)
        return loom_fail(error,
                         "%s: is damaged or foreign: tensor '%s' has %" PRId64 " bytes, its shape and dtype need %zu",
                         path, name, end - begin, bytes);
    tensor->place = data + (uint64_t)begin;
    tensor->bytes = bytes;
    return true;
}

static int by_place(const void *a, const void *b) {
    const loom_safetensor *x = a, *y = b;
    if (x->place != y->place) return x->place < y->place ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const loom_safetensor *)a)->name, ((const loom_safetensor *)b)->name);
}

/* Checks the tensors against each other and leaves them sorted by name. */
static bool check_together(loom_safetensor *tensor, int n, uint64_t data, uint64_t available, const char *path,
                           loom_error *error) {
    qsort(tensor, (size_t)n, sizeof *tensor, by_place);
    uint64_t end = data;
    for (int i = 0; i < n; i++) {
        if (tensor[i].place != end)
            return loom_fail(error, "%s: is damaged or foreign: tensor '%s' %s", path, tensor[i].name,
                             tensor[i].place < end ? "overlaps the one before it"
                                                   : "does not follow the one before it");
        end = tensor[i].place + tensor[i].bytes;
    }
    if (end != data + available)
        return loom_fail(error, "%s: is damaged or foreign: %" PRIu64 " bytes at its end belong to no tensor", path,
                         data + available - end);
    qsort(tensor, (size_t)n, sizeof *tensor, by_name);
    for (int i = 1; i < n; i++)
        if (strcmp(tensor[i - 1].name, tensor[i].name) == 0)
            return loom_fail(error, "%s: is damaged or foreign: it has two tensors '%s'", path, tensor[i].name);
    return true;
}

/* Returns the header's text with a zero byte at its end, as cJSON needs it. */
static char *header_text(const loom_reader *reader, size_t *length, loom_error *error) {
    unsigned char bytes[LENGTH_BYTES];
    const char *path = reader->path;
    uint64_t stated = 0;
    if (reader->size < LENGTH_BYTES) {
        loom_fail(error, "%s: is truncated or no safetensors file: it has only %" PRIu64 " bytes", path, reader->size);
        return NULL;
    }
    if (!loom_reader_read(reader, 0, bytes, sizeof bytes, error)) return NULL;
    for (int i = 0; i < LENGTH_BYTES; i++) stated |= (uint64_t)bytes[i] << (8 * i);
    if (stated > LARGEST_HEADER || stated > reader->size - LENGTH_BYTES) {
        loom_fail(error,
                  "%s: is truncated or no safetensors file: its header would have %" PRIu64
                  " bytes, the whole file has %" PRIu64,
                  path, stated, reader->size);
        return NULL;
    }
    char *text = malloc((size_t)stated + 1);
    if (!text) {
        loom_fail(error, "%s: no memory to read its header", path);
        return NULL;
    }
    if (!loom_reader_read(reader, LENGTH_BYTES, text, (size_t)stated, error)) {
        free(text);
        return NULL;
    }
    text[stated] = 0;
    if (strlen(text) != stated) {
        free(text);
        loom_fail(error, "%s: is damaged: its header is not text", path);
        return NULL;
    }
    *length = (size_t)stated;
    return text;
}

static bool read_entries(loom_safetensors *file, const cJSON *header, size_t header_bytes, const char *path,
                         loom_error *error) {
    const uint64_t data = LENGTH_BYTES + header_bytes, available = file->reader.size - data;
    file->tensor = calloc((size_t)cJSON_GetArraySize(header) + 1, sizeof *file->tensor);
    if (!file->tensor) return loom_fail(error, "%s: no memory to read its header", path);
    const cJSON *entry;
    cJSON_ArrayForEach(entry, header) {
        if (strcmp(entry->string, "__metadata__") == 0) continue; /* free text about the file */
        if (!read_entry(entry, data, available, path, &file->tensor[file->n_tensors], error)) return false;
        file->n_tensors++;
    }
    return check_together(file->tensor, file->n_tensors, data, available, path, error);
}

bool loom_safetensors_open(loom_safetensors *file, const char *path, loom_error *error) {
    *file = (loom_safetensors){0};
    if (!loom_reader_open(&file->reader, path, error)) return false;
    size_t header_bytes = 0;
    char *text = header_text(&file->reader, &header_bytes, error);
    cJSON *header = text ? loom_json_parse(text, path, error) : NULL;
    const bool ok = header && read_entries(file, header, header_bytes, path, error);
    cJSON_Delete(header);
    free(text);
    if (!ok) loom_safetensors_close(file);
    return ok;
}

void loom_safetensors_close(loom_safetensors *file) {
    loom_reader_close(&file->reader);
    free(file->tensor);
    file->tensor = NULL;
    file->n_tensors = 0;
}

bool loom_safetensors_read(const loom_safetensors *file, const loom_safetensor *tensor, size_t first, void *to,
                           size_t bytes, loom_error *error) {
    LOOM_CHECK(first <= tensor->bytes && bytes <= tensor->bytes - first);
    return loom_reader_read(&file->reader, tensor->place + first, to, bytes, error);
}

const loom_safetensor *loom_safetensors_find(const loom_safetensors *file, const char *name) {
    int low = 0, high = file->n_tensors;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        const int order = strcmp(name, file->tensor[middle].name);
        if (order == 0) return &file->tensor[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------------- writing */

/* Numbers are added as raw text: cJSON would write large ones with an exponent, which readers of the format refuse. */
static bool add_entry(cJSON *header, const loom_safetensor *tensor, size_t begin) {
    char shape[LARGEST_RANK * 24 + 3] = "[", offsets[64];
    size_t used = 1;
    for (int i = 0; i < tensor->rank; i++)
        used += (size_t)snprintf(shape + used, sizeof shape - used, i ? ",%" PRId64 : "%" PRId64, tensor->shape[i]);
    strcpy(shape + used, "]");
    snprintf(offsets, sizeof offsets, "[%zu,%zu]", begin, begin + tensor->bytes);
    cJSON *entry = cJSON_AddObjectToObject(header, tensor->name);
    return entry && cJSON_AddStringToObject(entry, "dtype", tensor->dtype) &&
           cJSON_AddRawToObject(entry, "shape", shape) && cJSON_AddRawToObject(entry, "data_offsets", offsets);
}

static char *print_header(const loom_safetensor *tensors, int n) {
    cJSON *header = cJSON_CreateObject();
    cJSON *metadata = cJSON_AddObjectToObject(header, "__metadata__");
    bool ok = metadata && cJSON_AddStringToObject(metadata, "format", "pt");
    size_t begin = 0;
    for (int i = 0; ok && i < n; i++) {
        size_t bytes;
        LOOM_CHECK(tensors[i].rank <= LARGEST_RANK && tensor_bytes(&tensors[i], &bytes) && bytes == tensors[i].bytes);
        ok = add_entry(header, &tensors[i], begin);
        begin += bytes;
    }
    char *text = ok ? cJSON_PrintUnformatted(header) : NULL;
    cJSON_Delete(header);
    return text;
}

/* The text is padded with spaces so that the data, and with it every fp32 tensor, is aligned. */
char *loom_safetensors_header(const loom_safetensor *tensors, int n, size_t *bytes, loom_error *error) {
    char *text = print_header(tensors, n), *header = NULL;
    const size_t length = text ? strlen(text) : 0;
    const size_t padded = (length + HEADER_ALIGNMENT - 1) / HEADER_ALIGNMENT * HEADER_ALIGNMENT;
    if (text) header = malloc(LENGTH_BYTES + padded);
    if (!header) {
        cJSON_free(text);
        loom_fail(error, "no memory to write a checkpoint's header");
        return NULL;
    }
    for (int i = 0; i < LENGTH_BYTES; i++) header[i] = (char)((uint64_t)padded >> (8 * i));
    memset(header + LENGTH_BYTES, ' ', padded);
    memcpy(header + LENGTH_BYTES, text, length);
    cJSON_free(text);
    *bytes = LENGTH_BYTES + padded;
    return header;
}
