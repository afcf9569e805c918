/* What tensors hold: numbers as they are stored, generated inputs, and the oracle's results. */
#include "cases/case_internal.h"

#include "base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------------------- numbers */

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Round to nearest, ties to even; adding can only carry into the exponent, which is right. */
static uint16_t bf16_from_float(float value) {
    const uint32_t bits = to_bits(value);
    if (isnan(value)) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* fp16 by arithmetic: the value in units of its last place, rounded by nearbyint. */
static uint16_t fp16_from_double(double value) {
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    const double magnitude = fabs(value);
    if (isnan(value)) return sign | 0x7E00;
    if (magnitude >= 65520) return sign | 0x7C00;
    int exponent = magnitude > 0 ? ilogb(magnitude) : -15;
    if (exponent < -14) exponent = -14;
    const uint32_t units = (uint32_t)nearbyint(ldexp(magnitude, 10 - exponent)); /* 1024 .. 2048, or denormal below */
    return (uint16_t)(sign + (units < 1024 ? units : ((uint32_t)(exponent + 15) << 10) + units - 1024));
}

static double double_from_fp16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
    return bits & 0x8000 ? -magnitude : magnitude;
}

double loom_case_load(const void *stored, loom_dtype dtype) {
    switch (dtype) {
    case LOOM_F64: return *(const double *)stored;
    case LOOM_F32: return (double)*(const float *)stored;
    case LOOM_BF16: return (double)from_bits((uint32_t) * (const uint16_t *)stored << 16);
    case LOOM_F16: return double_from_fp16(*(const uint16_t *)stored);
    case LOOM_I32: return *(const int32_t *)stored;
    case LOOM_I64: return (double)*(const int64_t *)stored;
    }
    LOOM_CHECK(!"a known dtype");
    return 0;
}

void loom_case_store(void *stored, loom_dtype dtype, double value) {
    switch (dtype) {
    case LOOM_F64: *(double *)stored = value; return;
    case LOOM_F32: *(float *)stored = (float)value; return;
    case LOOM_BF16: *(uint16_t *)stored = bf16_from_float((float)value); return;
    case LOOM_F16: *(uint16_t *)stored = fp16_from_double(value); return;
    case LOOM_I32: *(int32_t *)stored = (int32_t)value; return;
    case LOOM_I64: *(int64_t *)stored = (int64_t)value; return;
    }
    LOOM_CHECK(!"a known dtype");
}

double loom_case_round(loom_dtype dtype, double value) {
    double stored;
    loom_case_store(&stored, dtype, value);
    return loom_case_load(&stored, dtype);
}

double loom_case_epsilon(loom_dtype dtype) {
    switch (dtype) {
    case LOOM_F64: return 0x1p-52;
    case LOOM_F32: return 0x1p-23;
    case LOOM_BF16: return 0x1p-7;
    case LOOM_F16: return 0x1p-10;
    case LOOM_I32:
    case LOOM_I64: break;
    }
    LOOM_CHECK(!"a floating-point dtype");
    return 0;
}

double loom_case_smallest(loom_dtype dtype) {
    switch (dtype) {
    case LOOM_F64: return 0x1p-1074;
    case LOOM_F32: return 0x1p-149;
    case LOOM_BF16: return 0x1p-133;
    case LOOM_F16: return 0x1p-24;
    case LOOM_I32:
    case LOOM_I64: break;
    }
    LOOM_CHECK(!"a floating-point dtype");
    return 0;
}

/* ----------------------------------------------------------------------------------------------------------- fields */

static const struct {
    const char *name;
    size_t offset;
    enum { FLOAT, INT32, INT64, DOUBLE } type;
    bool exact;
} fields[LOOM_CASE_FIELDS] = {
#define IN(member, type)                                                                                               \
    { "in." #member, offsetof(loom_scalars, in.member), type, true }
#define OUT(member, type, exact)                                                                                       \
    { "out." #member, offsetof(loom_scalars, out.member), type, exact }
#define STATE(member, type, exact)                                                                                     \
    { "state." #member, offsetof(loom_scalars, state.member), type, exact }
    IN(learning_rate, FLOAT),
    IN(beta1, FLOAT),
    IN(beta2, FLOAT),
    IN(epsilon, FLOAT),
    IN(weight_decay, FLOAT),
    IN(clip_norm, FLOAT),
    IN(loss_gradient, FLOAT),
    IN(spike_z, FLOAT),
    IN(loss_scale_interval, INT32),
    OUT(loss, FLOAT, false),
    OUT(gradient_norm, FLOAT, false),
    OUT(gradient_factor, FLOAT, false),
    OUT(bias_correction1, FLOAT, false),
    OUT(bias_correction2, FLOAT, false),
    OUT(skip, INT32, true),
    STATE(updates, INT64, true),
    STATE(skipped, INT64, true),
    STATE(observed, INT64, true),
    STATE(loss_mean, DOUBLE, false),
    STATE(loss_square, DOUBLE, false),
    STATE(norm_mean, DOUBLE, false),
    STATE(norm_square, DOUBLE, false),
    STATE(loss_scale, FLOAT, true),
    STATE(loss_scale_age, INT32, true),
#undef IN
#undef OUT
#undef STATE
};

const char *loom_case_field_name(int64_t field) {
    return fields[field].name;
}

bool loom_case_field_exact(int64_t field) {
    return fields[field].exact;
}

void loom_case_scalars_load(const loom_scalars *scalars, double values[LOOM_CASE_FIELDS]) {
    for (int i = 0; i < LOOM_CASE_FIELDS; i++) {
        const void *at = (const char *)scalars + fields[i].offset;
        switch (fields[i].type) {
        case FLOAT: values[i] = (double)*(const float *)at; break;
        case INT32: values[i] = *(const int32_t *)at; break;
        case INT64: values[i] = (double)*(const int64_t *)at; break;
        case DOUBLE: values[i] = *(const double *)at; break;
        }
    }
}

/* ------------------------------------------------------------------------------------------------------- generating */

/* Zeros of both signs, denormals of fp32 and bf16, small and large numbers. */
static double extreme(uint32_t word, double largest) {
    const double values[] = {0, -0.0, 0x1p-140, -0x1p-130, 1e-30,   -1e-6,
                             1, -1,   largest,  -largest,  largest, -largest / 2};
    return values[word % (sizeof values / sizeof *values)];
}

/* The random value that stands at `index`: of an element, or of a row. */
static double generate_one(const loom_case *c, const loom_case_tensor *t, uint64_t index) {
    const uint32_t stream = (uint32_t)(t - c->tensor);
    const loom_case_fill *fill = &t->fill;
    float normal;
    if (fill->how == LOOM_FILL_ROWS) {
        loom_random_normal(&normal, 1, c->seed, LOOM_RANDOM_TEST, stream, index);
        return fill->a + fill->b * (double)normal;
    }
    if (fill->how == LOOM_FILL_CONSTANT) return fill->a;
    const loom_random4 r = loom_random(c->seed, LOOM_RANDOM_TEST, stream, index);
    const double uniform = (double)loom_random_uniform(r.word[2]);
    switch (fill->how) {
    case LOOM_FILL_UNIFORM: return fill->a + (fill->b - fill->a) * uniform;
    case LOOM_FILL_IDS: return floor(fill->a * uniform);
    case LOOM_FILL_TARGETS: return index % 3 == 2 ? -1 : floor(fill->a * uniform);
    case LOOM_FILL_EXTREME: return extreme(r.word[3], fill->a);
    default: break;
    }
    LOOM_CHECK(!"a known way to fill");
    return 0;
}

/* Those of generate_one at 0 .. n-1; one draw makes four of them. */
static void generate_normals(const loom_case *c, const loom_case_tensor *t, int64_t n, double *values) {
    enum { TOGETHER = 256 };
    float normal[TOGETHER];
    for (int64_t first = 0; first < n; first += TOGETHER) {
        const int64_t some = n - first < TOGETHER ? n - first : TOGETHER;
        loom_random_normal(normal, some, c->seed, LOOM_RANDOM_TEST, (uint32_t)(t - c->tensor), (uint64_t)first);
        for (int64_t i = 0; i < some; i++) values[first + i] = t->fill.a + t->fill.b * (double)normal[i];
    }
}

void loom_case_generate(const loom_case *c, const loom_case_tensor *t, int64_t n, double *values) {
    const int64_t columns = t->size.n[3];
    if (t->fill.how == LOOM_FILL_ROWS) {
        for (int64_t i = 0; i < n; i++)
            values[i] = i % columns ? values[i - 1] : generate_one(c, t, (uint64_t)(i / columns));
        return;
    }
    const int64_t distinct = n < LOOM_CASE_PERIOD ? n : LOOM_CASE_PERIOD;
    if (t->fill.how == LOOM_FILL_NORMAL)
        generate_normals(c, t, distinct, values);
    else
        for (int64_t i = 0; i < distinct; i++) values[i] = generate_one(c, t, (uint64_t)i);
    for (int64_t i = distinct; i < n; i++) values[i] = values[i - LOOM_CASE_PERIOD];
}

/* ---------------------------------------------------------------------------------------------------- host's arrays */

static void *allocate(size_t bytes) {
    return aligned_alloc(LOOM_CASE_FENCE, (bytes + LOOM_CASE_FENCE - 1) / LOOM_CASE_FENCE * LOOM_CASE_FENCE);
}

static bool is_wanted(const loom_case *c, const loom_case_tensor *t, int op) {
    for (int i = 0; i <= op; i++)
        if (t->role[i] != LOOM_CASE_UNUSED) return true;
    for (int i = 0; i < c->n_cotangents; i++)
        if (!strcmp(c->cotangent[i].cotangent, t->name)) return true;
    return false;
}

bool loom_case_make_values(loom_case *c, int op, loom_error *error) {
    for (int i = 0; i < c->n_tensors; i++) {
        loom_case_tensor *t = &c->tensor[i];
        if (!is_wanted(c, t, op)) continue;
        const size_t bytes = (size_t)t->elements * sizeof(double);
        if (!t->value) t->value = allocate(bytes);
        if (!t->reference) t->reference = allocate(bytes);
        if (!t->found) t->found = allocate(bytes);
        if (!t->oracle) t->oracle = allocate(t->kind == LOOM_CASE_SCALARS ? sizeof(loom_scalars) : bytes);
        if (!t->value || !t->reference || !t->found || !t->oracle)
            return loom_fail(error, "out of memory for the values of %s in a test case of %s", t->name, c->cases->name);
        if (t->kind == LOOM_CASE_SCALARS) {
            t->value_scalars = t->scalars;
            loom_case_scalars_load(&t->value_scalars, t->value);
            continue;
        }
        loom_case_generate(c, t, t->elements, t->value);
        const loom_dtype dtype = loom_case_tensor_dtype(c, t);
        for (int64_t j = 0; j < t->elements; j++) t->value[j] = loom_case_round(dtype, t->value[j]);
    }
    return true;
}

void loom_case_free_values(loom_case *c) {
    for (int i = 0; i < c->n_tensors; i++) {
        loom_case_tensor *t = &c->tensor[i];
        free(t->value);
        free(t->reference);
        free(t->found);
        free(t->oracle);
        t->value = t->reference = t->found = NULL;
        t->oracle = NULL;
    }
}

const double *loom_case_value(loom_case *c, const char *name) {
    return loom_case_find(c, name)->value;
}

double *loom_case_expected(loom_case *c, const char *name) {
    return loom_case_find(c, name)->reference;
}

const loom_scalars *loom_case_scalars_value(loom_case *c, const char *name) {
    return &loom_case_find(c, name)->value_scalars;
}

loom_scalars *loom_case_scalars_expected(loom_case *c, const char *name) {
    return &loom_case_find(c, name)->expected_scalars;
}

/* ------------------------------------------------------------------------------------------------------- the oracle */

static void give_to_oracle(loom_case_tensor *t, loom_case_role role) {
    if (role == LOOM_CASE_UNUSED) return;
    if (t->kind == LOOM_CASE_SCALARS) {
        *(loom_scalars *)t->oracle = t->value_scalars;
    } else if (t->kind == LOOM_CASE_IDS) {
        for (int64_t i = 0; i < t->elements; i++) ((int32_t *)t->oracle)[i] = (int32_t)t->value[i];
    } else if (role == LOOM_CASE_WRITTEN) {
        for (int64_t i = 0; i < t->elements; i++) ((double *)t->oracle)[i] = NAN;
    } else {
        memcpy(t->oracle, t->value, (size_t)t->elements * sizeof(double));
    }
}

static void take_from_oracle(loom_case_tensor *t, loom_case_role role) {
    if (role != LOOM_CASE_WRITTEN && role != LOOM_CASE_UPDATED) return;
    if (t->kind == LOOM_CASE_SCALARS) {
        t->expected_scalars = *(const loom_scalars *)t->oracle;
        loom_case_scalars_load(&t->expected_scalars, t->reference);
    } else {
        memcpy(t->reference, t->oracle, (size_t)t->elements * sizeof(double));
    }
}

bool loom_case_run_oracle(loom_case *c, int op, loom_device *oracle, loom_error *error) {
    LOOM_CHECK(oracle->host_memory && oracle->storage == LOOM_F64);
    size_t workspace;
    if (!loom_case_plan(c, op, LOOM_CASE_ORACLE, oracle, &workspace, error)) return false;
    void *scratch = allocate(workspace + 1);
    if (!scratch) return loom_fail(error, "out of memory for the oracle's workspace of %zu bytes", workspace);
    for (int i = 0; i < c->n_tensors; i++) give_to_oracle(&c->tensor[i], c->tensor[i].role[op]);
    loom_case_arguments arguments;
    loom_case_bind(c, op, LOOM_CASE_ORACLE, &arguments);
    loom_context ctx = {.ops = oracle->ops, .device = oracle, .workspace = scratch, .workspace_bytes = workspace};
    loom_case_call(&ctx, c->cases->op[op].op, &arguments);
    const bool ran = oracle->synchronize(oracle, NULL, error);
    free(scratch);
    for (int i = 0; ran && i < c->n_tensors; i++) take_from_oracle(&c->tensor[i], c->tensor[i].role[op]);
    return ran;
}

bool loom_case_derive(loom_case *c, int op, loom_device *oracle, loom_error *error) {
    for (int earlier = 0; earlier < op; earlier++) {
        bool needed = false;
        for (int i = 0; i < c->n_tensors; i++)
            needed |= c->tensor[i].written_by == earlier && c->tensor[i].role[op] != LOOM_CASE_UNUSED;
        if (!needed) continue;
        if (!loom_case_derive(c, earlier, oracle, error) || !loom_case_run_oracle(c, earlier, oracle, error))
            return false;
        for (int i = 0; i < c->n_tensors; i++) {
            loom_case_tensor *t = &c->tensor[i];
            if (t->written_by != earlier || t->kind == LOOM_CASE_SCALARS) continue;
            const loom_dtype dtype = loom_case_tensor_dtype(c, t);
            for (int64_t j = 0; j < t->elements; j++) t->value[j] = loom_case_round(dtype, t->reference[j]);
        }
    }
    return true;
}
