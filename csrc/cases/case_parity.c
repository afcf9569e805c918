/* An op on a device against the oracle: the run itself, what it may touch, and how far off it is. */
#include "cases/case_internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

/* Garbage that outputs, gaps, fences and workspace hold before a run. All ones is a NaN in every floating-point dtype
 * and -1 as an int32, so that reading it shows; the second run takes another, finite in every dtype. */
enum { GARBAGE = 0xFF, OTHER_GARBAGE = 0x3A };

/* What may be written where, by what a byte of `covered` says. */
enum { NOTHING, OUTPUT, SCRATCH };
enum { STRIDE = 4096 };

static void fail(loom_case_result *result, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The first reason is kept. */
static void fail(loom_case_result *result, const char *format, ...) {
    if (result->verdict == LOOM_CASE_FAILED) return;
    result->verdict = LOOM_CASE_FAILED;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(result->message, sizeof result->message, format, arguments);
    va_end(arguments);
}

/* ----------------------------------------------------------------------------------------------------------- images */

static bool is_output(loom_case_role role) {
    return role == LOOM_CASE_WRITTEN || role == LOOM_CASE_UPDATED;
}

/* Images of the block on the host. */
typedef struct images {
    unsigned char *before, *after;
    unsigned char *covered; /* NOTHING, OUTPUT or SCRATCH for each byte */
} images;

/* Where row `row` of a tensor (rows are counted over all but the innermost dimension) begins in the block; its elements
 * follow one another. Scalars are one row. */
static size_t place_of_row(const loom_case *c, const loom_case_tensor *t, int64_t row) {
    const size_t place = c->memory[t->memory].place;
    if (t->kind == LOOM_CASE_SCALARS) return place;
    int64_t element = t->offset;
    for (int d = 2; d >= 0; d--) {
        element += row % t->size.n[d] * t->stride[d];
        row /= t->size.n[d];
    }
    return place + (size_t)element * loom_case_tensor_item(c, t);
}

static int64_t row_count(const loom_case_tensor *t) {
    return t->elements / t->size.n[3];
}

static size_t row_bytes(const loom_case *c, const loom_case_tensor *t) {
    const size_t item = loom_case_tensor_item(c, t);
    return t->kind == LOOM_CASE_SCALARS ? item : item * (size_t)t->size.n[3];
}

static void put(const loom_case *c, const loom_case_tensor *t, unsigned char *image) {
    if (t->kind == LOOM_CASE_SCALARS) {
        memcpy(image + place_of_row(c, t, 0), &t->value_scalars, sizeof t->value_scalars);
        return;
    }
    const loom_dtype dtype = loom_case_tensor_dtype(c, t);
    const size_t item = loom_dtype_size(dtype);
    const double *value = t->value;
    for (int64_t row = 0; row < row_count(t); row++) {
        unsigned char *at = image + place_of_row(c, t, row);
        for (int64_t i = 0; i < t->size.n[3]; i++, at += item) loom_case_store(at, dtype, *value++);
    }
}

static void get(const loom_case *c, loom_case_tensor *t, const unsigned char *image) {
    if (t->kind == LOOM_CASE_SCALARS) {
        loom_scalars scalars;
        memcpy(&scalars, image + place_of_row(c, t, 0), sizeof scalars);
        loom_case_scalars_load(&scalars, t->found);
        return;
    }
    const loom_dtype dtype = loom_case_tensor_dtype(c, t);
    const size_t item = loom_dtype_size(dtype);
    double *found = t->found;
    for (int64_t row = 0; row < row_count(t); row++) {
        const unsigned char *at = image + place_of_row(c, t, row);
        for (int64_t i = 0; i < t->size.n[3]; i++, at += item) *found++ = loom_case_load(at, dtype);
    }
}

static void free_images(images *m) {
    free(m->before);
    free(m->after);
    free(m->covered);
    *m = (images){0};
}

static bool make_images(const loom_case *c, int op, images *m, loom_error *error) {
    const loom_case_block *block = &c->block;
    *m = (images){malloc(block->bytes), malloc(block->bytes), calloc(1, block->bytes)};
    if (!m->before || !m->after || !m->covered)
        return loom_fail(error, "out of memory for a test case of %s: %zu bytes", c->cases->name, block->bytes);
    for (int i = 0; i < c->n_tensors; i++) {
        const loom_case_tensor *t = &c->tensor[i];
        if (!is_output(t->role[op])) continue;
        for (int64_t row = 0; row < row_count(t); row++)
            memset(m->covered + place_of_row(c, t, row), OUTPUT, row_bytes(c, t));
    }
    memset(m->covered + block->workspace, SCRATCH, block->workspace_bytes);
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- runs */

/* Sends garbage and inputs, runs the op, fetches all memory back into `after`. */
static bool run_once(loom_case *c, int op, loom_device *device, images *m, unsigned char garbage, loom_error *error) {
    const loom_case_block *block = &c->block;
    memset(m->before, garbage, block->bytes);
    for (int i = 0; i < c->n_tensors; i++) {
        const loom_case_tensor *t = &c->tensor[i];
        if (t->role[op] == LOOM_CASE_READ || t->role[op] == LOOM_CASE_UPDATED) put(c, t, m->before);
    }
    device->copy(device, NULL, block->device, m->before, block->bytes, LOOM_HOST_TO_DEVICE);
    loom_case_run(c, op, device);
    device->copy(device, NULL, m->after, block->device, block->bytes, LOOM_DEVICE_TO_HOST);
    return device->synchronize(device, NULL, error);
}

/* As run_once; that the device failed is the case's failure, in the device's words. */
static bool run_or_fail(loom_case *c, int op, loom_device *device, images *m, unsigned char garbage,
                        loom_case_result *result) {
    loom_error error;
    if (run_once(c, op, device, m, garbage, &error)) return true;
    fail(result, "%s", error.message);
    return false;
}

/* Plans the op; that the device has no plan for it is the case's failure too. */
static bool plan_or_fail(loom_case *c, int op, loom_device *device, size_t *workspace, loom_case_result *result) {
    loom_error error;
    if (loom_case_plan(c, op, LOOM_CASE_SHAPES, device, workspace, &error)) return true;
    fail(result, "%s", error.message);
    return false;
}

/* ------------------------------------------------------------------------------------------------- what was touched */

/* The memory nearest to a place in the block that is no tensor's and not the workspace. */
static const loom_case_memory *nearest_memory(const loom_case *c, size_t place) {
    const loom_case_memory *nearest = NULL;
    for (int i = 0; i < c->n_memories; i++) {
        const loom_case_memory *m = &c->memory[i];
        if (m->device && place + LOOM_CASE_FENCE >= m->place && (!nearest || m->place > nearest->place)) nearest = m;
    }
    return nearest;
}

/* The tensor whose element the byte at `place` belongs to, or NULL. */
static const loom_case_tensor *owner(const loom_case *c, int op, size_t place) {
    for (int i = 0; i < c->n_tensors; i++) {
        const loom_case_tensor *t = &c->tensor[i];
        if (t->role[op] == LOOM_CASE_UNUSED) continue;
        for (int64_t row = 0; row < row_count(t); row++)
            if (place - place_of_row(c, t, row) < row_bytes(c, t)) return t;
    }
    return NULL;
}

/* Says whose the byte is that should have stayed as it was. */
static void tell_touched(const loom_case *c, int op, size_t place, loom_case_result *result) {
    const loom_case_block *block = &c->block;
    const loom_case_tensor *t = owner(c, op, place);
    if (t) {
        fail(result, "changed its input %s, at byte %zu", t->name, place - c->memory[t->memory].place);
    } else if (place + LOOM_CASE_FENCE >= block->workspace) {
        fail(result, "wrote outside the %zu bytes of workspace it asked for, at byte %lld", block->workspace_bytes,
             (long long)place - (long long)block->workspace);
    } else {
        const loom_case_memory *m = nearest_memory(c, place);
        fail(result, "wrote outside its outputs: byte %lld of the %zu of memory %s",
             (long long)place - (long long)m->place, m->bytes, m->name);
    }
}

/* The first of so many bytes that is covered so and differs from an earlier image; their number if there is none. They
 * are compared in strides: a loop with no other way out is one that the compiler makes vectors of. */
static size_t first_difference(size_t bytes, const images *m, const unsigned char *earlier, unsigned char covered) {
    size_t byte = 0;
    for (; byte + STRIDE <= bytes; byte += STRIDE) {
        unsigned char any = 0;
        for (size_t i = byte; i < byte + STRIDE; i++)
            any |= (unsigned char)((m->covered[i] == covered) & (m->after[i] != earlier[i]));
        if (any) break;
    }
    while (byte < bytes && (m->covered[byte] != covered || m->after[byte] == earlier[byte])) byte++;
    return byte;
}

static void check_untouched(const loom_case *c, int op, const images *m, loom_case_result *result) {
    const size_t byte = first_difference(c->block.bytes, m, m->before, NOTHING);
    if (byte < c->block.bytes) tell_touched(c, op, byte, result);
}

/* Elements that still hold the garbage: no op means to write that very NaN. */
static void check_written(const loom_case *c, int op, const images *m, loom_case_result *result) {
    for (int i = 0; i < c->n_tensors; i++) {
        const loom_case_tensor *t = &c->tensor[i];
        if (t->role[op] != LOOM_CASE_WRITTEN) continue;
        const size_t item = loom_case_tensor_item(c, t);
        for (int64_t j = 0; j < t->elements; j++) {
            const unsigned char *row = m->after + place_of_row(c, t, j / t->size.n[3]);
            const unsigned char *at = row + (size_t)(j % t->size.n[3]) * item;
            size_t same = 0;
            while (same < item && at[same] == GARBAGE) same++;
            if (same == item) fail(result, "left element %lld of %s unwritten", (long long)j, t->name);
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------- errors */

static double difference(double found, double reference, double smallest) {
    if (found == reference) return 0;
    const double d = fabs(found - reference);
    if (!isfinite(d)) return INFINITY;
    return d > smallest ? d : 0;
}

static void keep_worst(loom_case_result *result, const loom_case_tensor *t, double norm_error, double norm_bound,
                       double element_error, double element_bound) {
    const double ratio = fmax(norm_error / norm_bound, element_error / element_bound);
    if (result->tensor && ratio <= result->ratio) return;
    result->tensor = t->name;
    result->norm_error = norm_error;
    result->norm_bound = norm_bound;
    result->element_error = element_error;
    result->element_bound = element_bound;
    result->ratio = ratio;
}

/* D of case.h. */
static double spread(const loom_case *c, const loom_case_bound *bound) {
    const bool oracle = c->dtypes.storage == LOOM_F64;
    const double e = loom_case_epsilon(oracle ? LOOM_F64 : LOOM_F32);
    const double d = bound->rounded * loom_case_epsilon(c->dtypes.storage) / 2 + e * (sqrt(bound->sum) + bound->chain);
    return oracle ? 2 * d : d;
}

static void check_exact(const loom_case *c, const loom_case_tensor *t, loom_case_result *result) {
    const loom_dtype dtype = loom_case_tensor_dtype(c, t);
    int64_t wrong = 0;
    for (int64_t i = 0; i < t->elements; i++) {
        const double reference = loom_case_round(dtype, t->reference[i]), found = t->found[i];
        if (found == reference && !signbit(found) == !signbit(reference)) continue;
        if (!wrong++)
            fail(result, "element %lld of %s is %.9g and must be %.9g to the bit", (long long)i, t->name, found,
                 reference);
    }
    keep_worst(result, t, wrong ? INFINITY : 0, 1, wrong ? INFINITY : 0, 1);
}

/* Each field alone: they have nothing to do with each other. */
static void check_scalars(const loom_case *c, const loom_case_tensor *t, loom_case_result *result) {
    const double bound = 0.5 + spread(c, &t->bound) / loom_case_epsilon(LOOM_F32);
    for (int64_t i = 0; i < t->elements; i++) {
        const double size = fmax(fabs(t->reference[i]), t->bound.floor);
        const double off = difference(t->found[i], t->reference[i], 0);
        const double error = off > 0 ? off / size / loom_case_epsilon(LOOM_F32) : 0;
        const double allowed = loom_case_field_exact(i) ? 0 : bound;
        if (error > allowed)
            fail(result, "%s is %.9g and should be %.9g: %.3g epsilons off, %.3g allowed", loom_case_field_name(i),
                 t->found[i], t->reference[i], error, allowed);
        if (!loom_case_field_exact(i)) keep_worst(result, t, 0, 1, error, bound);
    }
}

static void check_tensor(const loom_case *c, const loom_case_tensor *t, loom_case_result *result) {
    const loom_dtype dtype = loom_case_tensor_dtype(c, t);
    const double epsilon = loom_case_epsilon(dtype), smallest = loom_case_smallest(dtype), m = (double)t->elements;
    double square = 0;
    for (int64_t i = 0; i < t->elements; i++) square += t->reference[i] * t->reference[i];
    if (!isfinite(square)) {
        fail(result, "the reference for %s is not finite", t->name);
        return;
    }
    const double rms = sqrt(square / m), typical = fmax(rms, t->bound.floor), d = spread(c, &t->bound);
    const double norm_bound = epsilon / 2 + d;
    const double element_bound = 0.5 + d * (1 + sqrt(2 * log(m))) / epsilon;
    double error_square = 0, largest = 0;
    int64_t worst = 0, nonzero = -1;
    for (int64_t i = 0; i < t->elements; i++) {
        const double off = difference(t->found[i], t->reference[i], smallest);
        if (off == 0) continue;
        error_square += off * off;
        const double relative = off / fmax(fabs(t->reference[i]), typical) / epsilon;
        if (relative > largest) largest = relative, worst = i;
        if (t->bound.zeros && t->reference[i] == 0 && nonzero < 0) nonzero = i;
    }
    const double norm = error_square > 0 ? sqrt(error_square / m) / typical : 0;
    keep_worst(result, t, norm, norm_bound, largest, element_bound);
    if (!(norm <= norm_bound)) fail(result, "%s is off by %.3g in norm, %.3g allowed", t->name, norm, norm_bound);
    if (!(largest <= element_bound))
        fail(result, "element %lld of %s is %.9g and should be %.9g: %.3g epsilons off, %.3g allowed", (long long)worst,
             t->name, t->found[worst], t->reference[worst], largest, element_bound);
    if (nonzero >= 0)
        fail(result, "element %lld of %s is %.3g and must be zero", (long long)nonzero, t->name, t->found[nonzero]);
}

static void check_outputs(loom_case *c, int op, const images *m, loom_case_result *result) {
    for (int i = 0; i < c->n_tensors; i++) {
        loom_case_tensor *t = &c->tensor[i];
        if (!is_output(t->role[op])) continue;
        get(c, t, m->after);
        if (t->kind == LOOM_CASE_SCALARS)
            check_scalars(c, t, result);
        else if (t->bound.exact)
            check_exact(c, t, result);
        else
            check_tensor(c, t, result);
    }
}

/* ----------------------------------------------------------------------------------------------------- whole checks */

/* The reference from the formula: outputs begin as what they held before. */
static void run_formula(loom_case *c, int op) {
    for (int i = 0; i < c->n_tensors; i++) {
        loom_case_tensor *t = &c->tensor[i];
        if (!is_output(t->role[op])) continue;
        memcpy(t->reference, t->value, (size_t)t->elements * sizeof(double));
        t->expected_scalars = t->value_scalars;
    }
    c->cases->op[op].formula(c);
    for (int i = 0; i < c->n_tensors; i++)
        if (c->tensor[i].kind == LOOM_CASE_SCALARS && is_output(c->tensor[i].role[op]))
            loom_case_scalars_load(&c->tensor[i].expected_scalars, c->tensor[i].reference);
}

/* Inputs, derived ones too, and the reference. */
static bool make_reference(loom_case *c, int op, loom_device *oracle, loom_error *error) {
    if (!loom_case_make_values(c, op, error) || !loom_case_derive(c, op, oracle, error)) return false;
    if (c->dtypes.storage != LOOM_F64) return loom_case_run_oracle(c, op, oracle, error);
    run_formula(c, op);
    return true;
}

/* The outputs of the last run, byte for byte, against an earlier one's. */
static void check_same_bits(const loom_case *c, int op, const images *m, const unsigned char *earlier, const char *what,
                            loom_case_result *result) {
    /* What comes after the tensors, the workspace, may differ in size. */
    const size_t byte = first_difference(c->block.workspace, m, earlier, OUTPUT);
    if (byte == c->block.workspace) return;
    const loom_case_tensor *t = owner(c, op, byte);
    fail(result, "gives other bits %s: %s, byte %zu", what, t->name, byte - c->memory[t->memory].place);
}

/* A hash of the outputs, and of nothing else. Takes the memory of `before`, which the next run fills anew. */
static uint64_t hash_outputs(const loom_case *c, const images *m) {
    const size_t bytes = c->block.workspace;
    for (size_t byte = 0; byte < bytes; byte++) m->before[byte] = m->covered[byte] == OUTPUT ? m->after[byte] : 0;
    return XXH3_64bits(m->before, bytes);
}

/* Hands the image of the last run to `kept`, for the caller to free, and makes room for the next one. */
static bool keep_image(const loom_case *c, images *m, unsigned char **kept, loom_error *error) {
    *kept = m->after;
    m->after = malloc(c->block.bytes);
    return m->after || loom_fail(error, "out of memory for a test case of %s", c->cases->name);
}

static bool check_runs(loom_case *c, int op, loom_device *device, images *m, loom_case_result *result,
                       loom_error *error) {
    if (!run_or_fail(c, op, device, m, GARBAGE, result)) return true;
    check_untouched(c, op, m, result);
    check_written(c, op, m, result);
    check_outputs(c, op, m, result);
    result->bits = hash_outputs(c, m);

    unsigned char *first;
    const bool room = keep_image(c, m, &first, error);
    if (room && run_or_fail(c, op, device, m, OTHER_GARBAGE, result)) {
        check_untouched(c, op, m, result);
        check_same_bits(c, op, m, first, "when run again over other garbage", result);
    }
    free(first);
    return room;
}

/* Makes the op's memory and images. */
static bool begin_runs(loom_case *c, int op, loom_device *device, size_t workspace, images *m, loom_error *error) {
    return loom_case_allocate(c, 1u << op, workspace, device, error) && make_images(c, op, m, error);
}

static void end_runs(loom_case *c, loom_device *device, images *m) {
    free_images(m);
    loom_case_release(c, device);
}

bool loom_case_check(loom_case *c, int op, loom_device *device, loom_device *oracle, loom_case_result *result,
                     loom_error *error) {
    *result = (loom_case_result){.verdict = LOOM_CASE_OK};
    LOOM_CHECK(c->dtypes.storage != LOOM_F64 || c->cases->op[op].formula);
    size_t workspace;
    if (!loom_case_supported(c, op, device, result) || !plan_or_fail(c, op, device, &workspace, result)) return true;
    images m = {0};
    const bool ran = make_reference(c, op, oracle, error) && begin_runs(c, op, device, workspace, &m, error) &&
                     check_runs(c, op, device, &m, result, error);
    end_runs(c, device, &m);
    return ran;
}

/* Runs once on each device; `first` keeps the first one's outputs. */
static bool compare_bits(loom_case *c, int op, loom_device *device, unsigned char **first, loom_case_result *result,
                         loom_error *error) {
    size_t workspace;
    if (!plan_or_fail(c, op, device, &workspace, result)) return true;
    images m = {0};
    bool ran = begin_runs(c, op, device, workspace, &m, error);
    if (ran && run_or_fail(c, op, device, &m, GARBAGE, result)) {
        char what[96];
        snprintf(what, sizeof what, "on %s with %d threads", device->name, device->threads);
        if (*first)
            check_same_bits(c, op, &m, *first, what, result);
        else
            ran = keep_image(c, &m, first, error);
    }
    end_runs(c, device, &m);
    return ran;
}

bool loom_case_check_same_bits(loom_case *c, int op, loom_device *const *devices, int n, loom_device *oracle,
                               loom_case_result *result, loom_error *error) {
    *result = (loom_case_result){.verdict = LOOM_CASE_OK};
    for (int i = 0; i < n; i++)
        if (!loom_case_supported(c, op, devices[i], result)) return true;
    if (!loom_case_make_values(c, op, error) || !loom_case_derive(c, op, oracle, error)) return false;
    unsigned char *first = NULL;
    bool ran = true;
    for (int i = 0; ran && i < n; i++) ran = compare_bits(c, op, devices[i], &first, result, error);
    free(first);
    return ran;
}
