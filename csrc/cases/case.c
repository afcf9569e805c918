/* Declaring cases, and turning declarations into argument structs. */
#include "cases/case_internal.h"

#include "base/nearest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const loom_case_dtypes loom_case_dtypes_tested[] = {
    {"fp32", LOOM_F32, LOOM_F32}, {"bf16", LOOM_BF16, LOOM_F32}, {"bf16-gradients", LOOM_BF16, LOOM_BF16},
    {"fp16", LOOM_F16, LOOM_F32}, {NULL, LOOM_F32, LOOM_F32},
};
const loom_case_dtypes loom_case_dtypes_oracle = {"fp64", LOOM_F64, LOOM_F64};

/* ------------------------------------------------------------------------------------------------------------ words */

/* The place of a word in a list of words, or -1. */
static int word_index(const char *words, const char *word) {
    const size_t length = strlen(word);
    for (int i = 0; *words; i++) {
        const size_t n = strcspn(words, " ");
        if (n == length && !memcmp(words, word, n)) return i;
        words += n;
        words += strspn(words, " ");
    }
    return -1;
}

bool loom_case_is_for(const loom_case_shape *shape, unsigned use, bool full) {
    return (shape->use & use) && (full || !(shape->use & LOOM_CASE_FULL));
}

int64_t loom_case_dim(const loom_case *c, const char *name) {
    const int i = word_index(c->cases->dims, name);
    LOOM_CHECK(i >= 0 && i < LOOM_CASE_DIMS);
    return c->shape->dim[i];
}

bool loom_case_option(const loom_case *c, const char *name) {
    LOOM_CHECK(word_index(c->cases->options, name) >= 0);
    return word_index(c->shape->options, name) >= 0;
}

void loom_case_label(const loom_op_cases *cases, const loom_case_shape *shape, char label[LOOM_CASE_LABEL]) {
    int at = 0;
    const char *word = cases->dims;
    for (int i = 0; *word; i++) {
        const int n = (int)strcspn(word, " ");
        at += snprintf(label + at, (size_t)(LOOM_CASE_LABEL - at), "%s%.*s=%lld", i ? " " : "", n, word,
                       (long long)shape->dim[i]);
        LOOM_CHECK(at < LOOM_CASE_LABEL);
        word += n;
        word += strspn(word, " ");
    }
    at += snprintf(label + at, (size_t)(LOOM_CASE_LABEL - at), "%s%s", *shape->options ? " " : "", shape->options);
    LOOM_CHECK(at < LOOM_CASE_LABEL);
}

/* A shape's options must be among the file's, so that none is misspelt and silently ignored. */
static void check_options(const loom_op_cases *cases, const loom_case_shape *shape) {
    char word[64];
    for (const char *from = shape->options; *from;) {
        const size_t n = strcspn(from, " ");
        LOOM_CHECK(n < sizeof word);
        memcpy(word, from, n);
        word[n] = 0;
        LOOM_CHECK(word_index(cases->options, word) >= 0);
        from += n;
        from += strspn(from, " ");
    }
}

/* ------------------------------------------------------------------------------------------------------------ names */

bool loom_case_selected(const loom_op_cases *cases, int op, const char *name) {
    return !strcmp(name, "all") || !strcmp(name, cases->name) || !strcmp(name, loom_op_name(cases->op[op].op));
}

bool loom_case_check_name(const char *flag, const char *name, loom_error *error) {
    const char *names[2 * LOOM_OP_COUNT + 2];
    int n = 0;
    names[n++] = "all";
    for (const loom_op_cases *const *cases = loom_op_catalogue; *cases; cases++) {
        LOOM_CHECK(n + LOOM_CASE_OPS < (int)(sizeof names / sizeof *names));
        names[n++] = (*cases)->name;
        for (int op = 0; (*cases)->op[op].arguments; op++) {
            if (loom_case_selected(*cases, op, name)) return true;
            names[n++] = loom_op_name((*cases)->op[op].op);
        }
    }
    names[n] = NULL;
    const char *nearest = loom_nearest_name(name, names);
    if (nearest) return loom_fail(error, "%s: there is no op '%.60s'; did you mean '%s'?", flag, name, nearest);
    char list[512] = "";
    for (const loom_op_cases *const *cases = loom_op_catalogue; *cases; cases++) {
        const size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, ", %s", (*cases)->name);
    }
    return loom_fail(error, "%s: there is no op '%.60s'; there are all%s", flag, name, list);
}

/* ---------------------------------------------------------------------------------------------------------- tensors */

loom_case_size loom_case_4d(int64_t a, int64_t b, int64_t c, int64_t d) {
    return (loom_case_size){{a, b, c, d}};
}

loom_case_size loom_case_3d(int64_t a, int64_t b, int64_t c) {
    return loom_case_4d(1, a, b, c);
}

loom_case_size loom_case_2d(int64_t rows, int64_t columns) {
    return loom_case_4d(1, 1, rows, columns);
}

loom_case_size loom_case_1d(int64_t n) {
    return loom_case_4d(1, 1, 1, n);
}

loom_case_fill loom_case_normal(double mean, double deviation) {
    return (loom_case_fill){LOOM_FILL_NORMAL, mean, deviation};
}

loom_case_fill loom_case_uniform(double low, double high) {
    return (loom_case_fill){LOOM_FILL_UNIFORM, low, high};
}

loom_case_fill loom_case_constant(double value) {
    return (loom_case_fill){LOOM_FILL_CONSTANT, value, 0};
}

loom_case_fill loom_case_ids(int64_t n) {
    return (loom_case_fill){LOOM_FILL_IDS, (double)n, 0};
}

loom_case_fill loom_case_targets(int64_t n) {
    return (loom_case_fill){LOOM_FILL_TARGETS, (double)n, 0};
}

loom_case_fill loom_case_rows(double deviation) {
    return (loom_case_fill){LOOM_FILL_ROWS, 0, deviation};
}

loom_case_fill loom_case_extreme(double largest) {
    return (loom_case_fill){LOOM_FILL_EXTREME, largest, 0};
}

static loom_case_tensor *find(loom_case *c, const char *name) {
    for (int i = 0; i < c->n_tensors; i++)
        if (!strcmp(c->tensor[i].name, name)) return &c->tensor[i];
    return NULL;
}

loom_case_tensor *loom_case_find(loom_case *c, const char *name) {
    loom_case_tensor *t = find(c, name);
    LOOM_CHECK(t);
    return t;
}

static loom_case_tensor *declare(loom_case *c, const char *name, loom_case_kind kind, loom_case_size size) {
    LOOM_CHECK(c->n_tensors < LOOM_CASE_TENSORS && !find(c, name));
    loom_case_tensor *t = &c->tensor[c->n_tensors];
    t->name = name;
    t->kind = kind;
    t->size = size;
    t->elements = size.n[0] * size.n[1] * size.n[2] * size.n[3];
    LOOM_CHECK(t->elements > 0);
    t->written_by = -1;
    t->stride[3] = 1;
    for (int i = 2; i >= 0; i--) t->stride[i] = t->stride[i + 1] * size.n[i + 1];
    t->memory = c->n_memories++;
    c->memory[t->memory] = (loom_case_memory){.name = name, .kind = kind};
    c->n_tensors++;
    return t;
}

void loom_case_input(loom_case *c, const char *name, loom_case_kind kind, loom_case_size size, loom_case_fill fill) {
    declare(c, name, kind, size)->fill = fill;
}

void loom_case_output(loom_case *c, const char *name, loom_case_kind kind, loom_case_size size, loom_case_bound bound) {
    loom_case_tensor *t = declare(c, name, kind, size);
    t->output = true;
    t->bound = bound;
    t->fill = loom_case_normal(0, 1);
}

void loom_case_start(loom_case *c, const char *name, loom_case_fill fill) {
    loom_case_find(c, name)->fill = fill;
}

void loom_case_scalars(loom_case *c, const char *name, const loom_scalars *scalars, loom_case_bound bound) {
    loom_case_tensor *t = declare(c, name, LOOM_CASE_SCALARS, loom_case_1d(LOOM_CASE_FIELDS));
    t->scalars = *scalars;
    t->bound = bound;
}

void loom_case_alias(loom_case *c, const char *name, const char *other) {
    loom_case_tensor *t = loom_case_find(c, name);
    const loom_case_tensor *o = loom_case_find(c, other);
    LOOM_CHECK(t->kind == o->kind && !memcmp(&t->size, &o->size, sizeof t->size));
    t->memory = o->memory;
    t->offset = o->offset;
    memcpy(t->stride, o->stride, sizeof t->stride);
}

void loom_case_widen(loom_case *c, const char *name, int64_t gap) {
    loom_case_tensor *t = loom_case_find(c, name);
    t->stride[2] = t->size.n[3] + gap;
    t->stride[1] = t->stride[2] * t->size.n[2];
    t->stride[0] = t->stride[1] * t->size.n[1];
}

void loom_case_place(loom_case *c, const char *name, const char *memory, int64_t offset, int64_t stride0,
                     int64_t stride1, int64_t stride2) {
    loom_case_tensor *t = loom_case_find(c, name);
    int m = 0;
    while (m < c->n_memories && strcmp(c->memory[m].name, memory)) m++;
    if (m == c->n_memories) {
        c->memory[t->memory].name = memory; /* the tensor's own memory becomes the shared one */
        m = t->memory;
    }
    LOOM_CHECK(c->memory[m].kind == t->kind);
    t->memory = m;
    t->offset = offset;
    t->stride[0] = stride0;
    t->stride[1] = stride1;
    t->stride[2] = stride2;
}

void loom_case_without(loom_case *c, loom_dtype storage) {
    c->without |= 1u << storage;
}

void loom_case_cotangent(loom_case *c, const char *output, const char *cotangent) {
    LOOM_CHECK(c->n_cotangents < LOOM_CASE_TENSORS);
    LOOM_CHECK(loom_case_find(c, output)->elements == loom_case_find(c, cotangent)->elements);
    c->cotangent[c->n_cotangents].output = output;
    c->cotangent[c->n_cotangents++].cotangent = cotangent;
}

void loom_case_gradient(loom_case *c, const char *input, const char *gradient) {
    LOOM_CHECK(c->n_gradients < LOOM_CASE_TENSORS);
    LOOM_CHECK(loom_case_find(c, input)->elements == loom_case_find(c, gradient)->elements);
    c->gradient[c->n_gradients].input = input;
    c->gradient[c->n_gradients++].gradient = gradient;
}

/* ----------------------------------------------------------------------------------------------------------- dtypes */

static loom_dtype dtype_of(const loom_case_dtypes *dtypes, loom_case_kind kind) {
    switch (kind) {
    case LOOM_CASE_STORAGE: return dtypes->storage;
    case LOOM_CASE_PARAMETER: return dtypes->gradient;
    case LOOM_CASE_STATISTICS: return dtypes->storage == LOOM_F64 ? LOOM_F64 : LOOM_F32;
    case LOOM_CASE_IDS: return LOOM_I32;
    case LOOM_CASE_SCALARS: return LOOM_F32;
    }
    LOOM_CHECK(!"a known kind");
    return LOOM_F32;
}

loom_dtype loom_case_tensor_dtype(const loom_case *c, const loom_case_tensor *t) {
    return dtype_of(&c->dtypes, t->kind);
}

static size_t item_size(const loom_case *c, loom_case_kind kind) {
    return kind == LOOM_CASE_SCALARS ? sizeof(loom_scalars) : loom_dtype_size(dtype_of(&c->dtypes, kind));
}

size_t loom_case_tensor_item(const loom_case *c, const loom_case_tensor *t) {
    return item_size(c, t->kind);
}

static bool touches(const loom_case *c, int op, loom_case_kind kind) {
    for (int i = 0; i < c->n_tensors; i++)
        if (c->tensor[i].role[op] != LOOM_CASE_UNUSED && c->tensor[i].kind == kind) return true;
    return false;
}

bool loom_case_dtypes_matter(const loom_case *c, int op) {
    if (c->without >> c->dtypes.storage & 1) return false;
    if (c->dtypes.storage == LOOM_F32 || c->dtypes.storage == LOOM_F64) return true;
    return touches(c, op, c->dtypes.gradient == c->dtypes.storage ? LOOM_CASE_PARAMETER : LOOM_CASE_STORAGE);
}

/* -------------------------------------------------------------------------------------------------------- arguments */

static void *data_of(const loom_case *c, const loom_case_tensor *t) {
    if (c->side == LOOM_CASE_SHAPES) return NULL;
    if (c->side == LOOM_CASE_ORACLE) return t->oracle;
    char *start = (char *)c->block.device + c->memory[t->memory].place;
    return start + (size_t)t->offset * loom_case_tensor_item(c, t);
}

static loom_case_tensor *take(loom_case *c, const char *name, loom_case_role role) {
    loom_case_tensor *t = loom_case_find(c, name);
    LOOM_CHECK(role == LOOM_CASE_READ || t->output || t->kind == LOOM_CASE_SCALARS);
    t->role[c->op] = role;
    return t;
}

static loom_view view_as(loom_case *c, const char *name, loom_case_role role) {
    const loom_case_tensor *t = take(c, name, role);
    const int64_t *n = t->size.n;
    LOOM_CHECK(t->kind != LOOM_CASE_SCALARS);
    if (c->side == LOOM_CASE_ORACLE)
        return loom_view_4d(data_of(c, t), t->kind == LOOM_CASE_IDS ? LOOM_I32 : LOOM_F64, n[0], n[1], n[2], n[3]);
    loom_view view = loom_view_4d(data_of(c, t), loom_case_tensor_dtype(c, t), n[0], n[1], n[2], n[3]);
    memcpy(view.stride, t->stride, sizeof view.stride);
    return view;
}

loom_view loom_case_reads(loom_case *c, const char *name) {
    return view_as(c, name, LOOM_CASE_READ);
}

loom_view loom_case_writes(loom_case *c, const char *name) {
    return view_as(c, name, LOOM_CASE_WRITTEN);
}

loom_view loom_case_updates(loom_case *c, const char *name) {
    return view_as(c, name, LOOM_CASE_UPDATED);
}

loom_view loom_case_adds(loom_case *c, const char *name, bool accumulate) {
    return view_as(c, name, accumulate ? LOOM_CASE_UPDATED : LOOM_CASE_WRITTEN);
}

loom_view loom_case_may_read(loom_case *c, const char *name) {
    return find(c, name) ? loom_case_reads(c, name) : (loom_view){0};
}

loom_view loom_case_may_write(loom_case *c, const char *name) {
    return find(c, name) ? loom_case_writes(c, name) : (loom_view){0};
}

loom_view loom_case_may_add(loom_case *c, const char *name, bool accumulate) {
    return find(c, name) ? loom_case_adds(c, name, accumulate) : (loom_view){0};
}

const loom_scalars *loom_case_reads_scalars(loom_case *c, const char *name) {
    return data_of(c, take(c, name, LOOM_CASE_READ));
}

loom_scalars *loom_case_updates_scalars(loom_case *c, const char *name) {
    return data_of(c, take(c, name, LOOM_CASE_UPDATED));
}

void loom_case_bind(loom_case *c, int op, loom_case_side side, loom_case_arguments *arguments) {
    memset(arguments, 0, sizeof *arguments);
    c->op = op;
    c->side = side;
    c->cases->op[op].arguments(c, arguments);
}

void loom_case_call(loom_context *ctx, loom_op op, const loom_case_arguments *arguments) {
    switch (op) {
#define CALL(name)                                                                                                     \
    case LOOM_OP_##name: ctx->ops->name(ctx, &arguments->name); return;
        LOOM_OP_LIST(CALL)
#undef CALL
    case LOOM_OP_COUNT: break;
    }
    LOOM_CHECK(!"an op of the table");
}

bool loom_case_supported(loom_case *c, int op, loom_device *device, loom_case_result *result) {
    loom_case_arguments arguments;
    const char *why = "no reason given";
    loom_case_bind(c, op, LOOM_CASE_SHAPES, &arguments);
    if (device->ops->supports(device, c->cases->op[op].op, &arguments, &why)) return true;
    result->verdict = LOOM_CASE_UNSUPPORTED;
    snprintf(result->message, sizeof result->message, "%s does not support %s", device->name, why);
    return false;
}

bool loom_case_plan(loom_case *c, int op, loom_case_side side, loom_device *device, size_t *workspace,
                    loom_error *error) {
    loom_case_arguments arguments;
    loom_case_bind(c, op, side, &arguments);
    loom_context planning = {.ops = loom_planning_ops(), .device = device, .error = error};
    loom_case_call(&planning, c->cases->op[op].op, &arguments);
    if (planning.failed) return false;
    loom_context preparing = {.ops = loom_preparing_ops(), .device = device, .error = error};
    loom_case_call(&preparing, c->cases->op[op].op, &arguments);
    *workspace = planning.workspace_bytes;
    return !preparing.failed;
}

/* --------------------------------------------------------------------------------------------------- open and close */

/* Fills in every op's arguments once, so that roles are known, and with them who writes what. */
static void find_roles(loom_case *c) {
    for (int op = 0; op < LOOM_CASE_OPS && c->cases->op[op].arguments; op++) {
        loom_case_arguments arguments;
        loom_case_bind(c, op, LOOM_CASE_SHAPES, &arguments);
        for (int i = 0; i < c->n_tensors; i++) {
            loom_case_tensor *t = &c->tensor[i];
            if (t->role[op] == LOOM_CASE_UNUSED || t->role[op] == LOOM_CASE_READ) continue;
            LOOM_CHECK(t->written_by < 0);
            t->written_by = op;
        }
    }
}

static void size_memories(loom_case *c) {
    for (int i = 0; i < c->n_tensors; i++) {
        const loom_case_tensor *t = &c->tensor[i];
        int64_t last = t->offset;
        if (t->kind == LOOM_CASE_SCALARS)
            last = 0;
        else
            for (int d = 0; d < 4; d++) last += (t->size.n[d] - 1) * t->stride[d];
        const size_t bytes = (size_t)(last + 1) * loom_case_tensor_item(c, t);
        if (bytes > c->memory[t->memory].bytes) c->memory[t->memory].bytes = bytes;
    }
}

bool loom_case_open(loom_case **out, const loom_op_cases *cases, const loom_case_shape *shape, loom_case_dtypes dtypes,
                    uint64_t seed, loom_error *error) {
    loom_case *c = *out = calloc(1, sizeof *c);
    if (!c) return loom_fail(error, "out of memory for a test case of %s", cases->name);
    c->cases = cases;
    c->shape = shape;
    c->dtypes = dtypes;
    c->seed = seed;
    check_options(cases, shape);
    cases->tensors(c);
    size_memories(c);
    find_roles(c);
    return true;
}

void loom_case_close(loom_case *c) {
    if (!c) return;
    loom_case_free_values(c);
    free(c);
}
