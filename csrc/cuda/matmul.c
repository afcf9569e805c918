#include "cuda/matmul.h"

#include "base/check.h"
#include "cuda/product.h"
#include "cuda/timing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The three products of a linear layer. The bias is added by cuBLASLt, in fp32 and before rounding, as the definition
 * does. Its GELU and ReLU are not used: they take the sum as it is before rounding, and an activation must give the
 * same bits whether it follows the product or is an op of its own; so the product writes what the activation is applied
 * to, and our kernel does the rest.
 *
 * A product has one plan for data that begins at multiples of 16 bytes, as all of a model's does, and another for data
 * that does not: it is made from shapes, and where data lies is known only when it runs. cuBLASLt adds no bias that is
 * not aligned; it is then written into all rows of the output first, as the product of a column of ones with it, and
 * the other product is added to that, which rounds once too.
 *
 * The bias gradient beside a weight gradient is the sum of dout over the dimension that the product reduces. Our kernel
 * reads dout once more for it; or cuBLASLt adds it up on the way, into workspace, as it overwrites, and from there it
 * is written or added to dbias. The faster way is taken, for a shape as a whole: all micro-batches sum up alike.
 * cuBLASLt's sums are of C's dtype and of numbers as they are multiplied, so that it is our kernel where gradients are
 * narrow, whose sums would be rounded twice, and where TF32 would round what is summed. */

typedef struct entry {
    loom_cuda_product product;
    loom_cuda_plan *plan;      /* NULL where cuBLASLt has no algorithm for data that is not aligned */
    loom_cuda_plan *bias_rows; /* writes the bias into all rows; NULL where the plan adds it, or there is none */
    struct entry *next;
} entry;

static const char KERNEL[] = "kernel", EPILOGUE[] = "epilogue"; /* the ways to a bias gradient */

struct loom_cuda_matmul {
    const loom_cublaslt_api *lt;
    cublasLtHandle_t handle;
    char library[48];
    entry *first;
};

bool loom_cuda_matmul_create(loom_cuda_matmul **out, loom_error *error) {
    const loom_cublaslt_api *lt = loom_cublaslt_load(error);
    if (!lt) return false;
    loom_cuda_matmul *matmul = calloc(1, sizeof *matmul);
    if (!matmul) return loom_fail(error, "no memory for the plans of matrix products");
    const cublasStatus_t status = lt->Create(&matmul->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        free(matmul);
        return loom_fail(error, "cublasLtCreate: %s", lt->GetStatusString(status));
    }
    matmul->lt = lt;
    const size_t version = lt->GetVersion(); /* as CUBLAS_VERSION */
    snprintf(matmul->library, sizeof matmul->library, "cuBLASLt %zu.%zu.%zu", version / 10000, version / 100 % 100,
             version % 100);
    *out = matmul;
    return true;
}

static void destroy_entry(entry *e) {
    if (!e) return;
    loom_cuda_plan_destroy(e->plan);
    loom_cuda_plan_destroy(e->bias_rows);
    free(e);
}

void loom_cuda_matmul_destroy(loom_cuda_matmul *matmul) {
    if (!matmul) return;
    while (matmul->first) {
        entry *e = matmul->first;
        matmul->first = e->next;
        destroy_entry(e);
    }
    matmul->lt->Destroy(matmul->handle);
    free(matmul);
}

const char *loom_cuda_matmul_library(const loom_cuda_matmul *matmul) {
    return matmul->library;
}

int loom_cuda_matmul_plans(const loom_cuda_matmul *matmul) {
    int count = 0;
    for (const entry *e = matmul->first; e; e = e->next) count++;
    return count;
}

/* ------------------------------------------------------------------------------------------------------ ops as products */

/* A call's views in the places they have in the product C = A B. */
typedef struct operands {
    const loom_view *a, *b, *c, *bias; /* bias: NULL for none */
    bool a_transposed, b_transposed, accumulate;
} operands;

static operands operands_of(loom_op op, const void *arguments) {
    const struct loom_matmul_forward *f = arguments;
    const struct loom_matmul_backward_input *i = arguments;
    const struct loom_matmul_backward_weight *w = arguments;
    switch (op) {
    case LOOM_OP_matmul_forward:
        return (operands){.a = &f->x,
                          .b = &f->weight,
                          .c = f->activation == LOOM_ACTIVATION_NONE ? &f->out : &f->preactivation,
                          .bias = loom_view_given(&f->bias) ? &f->bias : NULL,
                          .b_transposed = f->transposed};
    case LOOM_OP_matmul_backward_input:
        return (operands){
            .a = &i->dout, .b = &i->weight, .c = &i->dx, .b_transposed = !i->transposed, .accumulate = i->accumulate};
    case LOOM_OP_matmul_backward_weight:
        return (operands){.a = w->transposed ? &w->dout : &w->x,
                          .b = w->transposed ? &w->x : &w->dout,
                          .c = &w->dweight,
                          .a_transposed = true,
                          .accumulate = w->accumulate};
    default: LOOM_CHECK(!"a matrix product"); return (operands){0};
    }
}

static int64_t leading_dimension(const loom_view *view) {
    return view->shape[2] > 1 ? view->stride[2] : view->shape[3];
}

static loom_cuda_product product_of(const loom_cuda *cuda, const operands *o, bool aligned) {
    return (loom_cuda_product){.m = o->c->shape[2],
                               .n = o->c->shape[3],
                               .k = o->a->shape[o->a_transposed ? 2 : 3],
                               .lda = leading_dimension(o->a),
                               .ldb = leading_dimension(o->b),
                               .ldc = leading_dimension(o->c),
                               .a_transposed = o->a_transposed,
                               .b_transposed = o->b_transposed,
                               .input = o->a->dtype,
                               .output = o->c->dtype,
                               .bias = o->bias != NULL,
                               .accumulate = o->accumulate,
                               .tf32 = cuda->tf32 && o->a->dtype == LOOM_F32,
                               .aligned = aligned};
}

static bool fits(const loom_view *view) {
    return view->shape[2] <= INT32_MAX && view->shape[3] <= INT32_MAX;
}

static bool overlaps(const loom_view *view) {
    return leading_dimension(view) < view->shape[3];
}

const char *loom_cuda_matmul_refusal(loom_op op, const void *arguments) {
    const operands o = operands_of(op, arguments);
    if (!fits(o.a) || !fits(o.b) || !fits(o.c)) return "a matrix with 2^31 rows or columns";
    if (overlaps(o.a) || overlaps(o.b) || overlaps(o.c)) return "a matrix whose rows overlap";
    if (o.c->dtype != o.a->dtype && o.c->dtype != LOOM_F32)
        return "weight gradients that are neither fp32 nor of the activations' dtype";
    return NULL;
}

/* -------------------------------------------------------------------------------------------------------------- plans */

static entry *find(const loom_cuda_matmul *matmul, const loom_cuda_product *product) {
    for (entry *e = matmul->first; e; e = e->next)
        if (!memcmp(&e->product, product, sizeof *product)) return e;
    return NULL;
}

/* What names an aligned product in the tuning cache: "1024x2304x768,768:2304:2304,nn,bf16>bf16,bias". */
static void name_product(const loom_cuda_product *p, char key[LOOM_TUNING_KEY]) {
    static const char *const sums[] = {"", ",rowsums", ",columnsums"};
    snprintf(key, LOOM_TUNING_KEY, "%lldx%lldx%lld,%lld:%lld:%lld,%c%c,%s>%s%s%s%s%s", (long long)p->m, (long long)p->n,
             (long long)p->k, (long long)p->lda, (long long)p->ldb, (long long)p->ldc, p->a_transposed ? 't' : 'n',
             p->b_transposed ? 't' : 'n', loom_dtype_name((loom_dtype)p->input), loom_dtype_name((loom_dtype)p->output),
             p->bias ? ",bias" : "", sums[p->sums], p->accumulate ? ",add" : "", p->tf32 ? ",tf32" : "");
}

/* The algorithm that the tuning cache has for an aligned product; false if there is none. */
static bool find_tuned(loom_cuda *cuda, const loom_cuda_product *product, cublasLtMatmulAlgo_t *algorithm) {
    char key[LOOM_TUNING_KEY];
    unsigned char bytes[LOOM_TUNING_ALGORITHM];
    _Static_assert(sizeof bytes == sizeof *algorithm, "an entry holds an algorithm");
    name_product(product, key);
    const char *digits = loom_tuning_take(&cuda->tuning, LOOM_TUNING_MATMUL, key);
    for (size_t i = 0; digits && i < sizeof bytes; i++) sscanf(digits + 2 * i, "%2hhx", &bytes[i]);
    if (digits) memcpy(algorithm, bytes, sizeof bytes);
    return digits != NULL;
}

/* Adds the algorithm of a plan to the tuning cache, if it is not from there. */
static bool keep_tuned(loom_cuda *cuda, const entry *e, loom_error *error) {
    char key[LOOM_TUNING_KEY], digits[2 * LOOM_TUNING_ALGORITHM + 1];
    unsigned char bytes[LOOM_TUNING_ALGORITHM];
    name_product(&e->product, key);
    if (loom_tuning_take(&cuda->tuning, LOOM_TUNING_MATMUL, key)) return true;
    memcpy(bytes, loom_cuda_plan_algorithm(e->plan), sizeof bytes);
    for (size_t i = 0; i < sizeof bytes; i++) sprintf(digits + 2 * i, "%02x", bytes[i]);
    return loom_tuning_add(&cuda->tuning, LOOM_TUNING_MATMUL, key, digits, error);
}

static entry *new_entry(const loom_cuda_product *product, loom_error *error) {
    entry *e = calloc(1, sizeof *e);
    if (!e)
        loom_fail(error, "no memory for the plan of a matrix product");
    else
        e->product = *product;
    return e;
}

static void keep_entry(loom_cuda_matmul *matmul, entry *e) {
    e->next = matmul->first;
    matmul->first = e;
}

/* Plans an aligned product by the tuning cache, or measures. */
static bool plan_tuned(loom_cuda *cuda, entry *e, loom_error *error) {
    cublasLtMatmulAlgo_t algorithm;
    const bool tuned = find_tuned(cuda, &e->product, &algorithm);
    return loom_cuda_plan_create(&e->plan, &e->product, cuda->matmul->lt, cuda->matmul->handle, cuda->stream,
                                 tuned ? &algorithm : NULL, error);
}

/* Plans a product and the rows of its bias one by one, each as cuBLASLt proposes. Leaves no plan where it has none. */
static void plan_bias_apart(loom_cuda *cuda, entry *e) {
    const loom_cuda_matmul *matmul = cuda->matmul;
    loom_cuda_product product = e->product, rows = e->product;
    product.bias = 0;
    product.accumulate = e->product.accumulate || e->product.bias;
    rows.bias = rows.accumulate = rows.a_transposed = rows.b_transposed = rows.tf32 = 0;
    rows.k = rows.lda = 1;
    rows.ldb = rows.n;
    if (e->product.bias &&
        !loom_cuda_plan_create(&e->bias_rows, &rows, matmul->lt, matmul->handle, cuda->stream, NULL, NULL))
        return;
    loom_cuda_plan_create(&e->plan, &product, matmul->lt, matmul->handle, cuda->stream, NULL, NULL);
}

/* That data which is not aligned cannot be planned for is no error before it comes. Of aligned data there may be shapes
 * for which there is no algorithm that adds a bias. */
static bool plan_entry(loom_cuda *cuda, entry *e, loom_error *error) {
    cublasLtMatmulAlgo_t ignored;
    if (!e->product.aligned) {
        plan_bias_apart(cuda, e);
        return true;
    }
    if (plan_tuned(cuda, e, error)) return keep_tuned(cuda, e, error);
    if (!e->product.bias || find_tuned(cuda, &e->product, &ignored)) return false;
    plan_bias_apart(cuda, e);
    return e->plan != NULL;
}

static bool prepare_product(loom_cuda *cuda, const loom_cuda_product *product, loom_error *error) {
    if (find(cuda->matmul, product)) return true;
    entry *e = new_entry(product, error);
    const bool ok = e && plan_entry(cuda, e, error);
    if (ok)
        keep_entry(cuda->matmul, e);
    else
        destroy_entry(e);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------- running */

static size_t product_workspace(loom_op op, const void *arguments) {
    const operands o = operands_of(op, arguments);
    return loom_cuda_product_workspace(o.c->shape[2], o.c->shape[3]);
}

/* A column of ones, with as many rows as the output: see above. */
static loom_view ones_for(const operands *o, void *memory) {
    return loom_view_2d(memory, o->c->dtype, 1, o->c->shape[2]);
}

/* First the product's, then that of the bias or of its gradient: our kernel's, which has room for cuBLASLt's sums. */
static size_t workspace_of(loom_op op, const void *arguments) {
    const struct loom_matmul_backward_weight *w = arguments;
    const operands o = operands_of(op, arguments);
    const loom_view ones = ones_for(&o, NULL);
    size_t bias = o.bias ? loom_view_extent(&ones) : 0;
    if (op == LOOM_OP_matmul_backward_weight && loom_view_given(&w->dbias))
        bias = loom_cuda_bias_gradient_workspace(w->dout.shape[2], w->dout.shape[3]);
    return product_workspace(op, arguments) + bias;
}

size_t loom_cuda_matmul_forward_workspace(const struct loom_matmul_forward *a) {
    return workspace_of(LOOM_OP_matmul_forward, a);
}

size_t loom_cuda_matmul_backward_input_workspace(const struct loom_matmul_backward_input *a) {
    return workspace_of(LOOM_OP_matmul_backward_input, a);
}

size_t loom_cuda_matmul_backward_weight_workspace(const struct loom_matmul_backward_weight *a) {
    return workspace_of(LOOM_OP_matmul_backward_weight, a);
}

static bool is_aligned(const loom_view *view) {
    return (uintptr_t)view->data % 16 == 0;
}

static void multiply(loom_context *ctx, loom_op op, const void *arguments) {
    loom_cuda *cuda = loom_cuda_of(ctx->device);
    const operands o = operands_of(op, arguments);
    const bool aligned = is_aligned(o.a) && is_aligned(o.b) && is_aligned(o.c) && (!o.bias || is_aligned(o.bias));
    const loom_cuda_product product = product_of(cuda, &o, aligned);
    entry *prepared = find(cuda->matmul, &product);
    LOOM_CHECK(prepared);
    LOOM_CHECK(ctx->workspace_bytes >= workspace_of(op, arguments));
    if (!prepared->plan) {
        loom_cuda_failed_because(ctx, loom_op_name(op), "cuBLASLt has no algorithm for data not aligned to 16 bytes");
        return;
    }
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (prepared->bias_rows) {
        const loom_view ones = ones_for(&o, (char *)ctx->workspace + product_workspace(op, arguments));
        loom_cuda_fill(ctx, &(struct loom_fill){.out = ones, .value = 1});
        status = loom_cuda_plan_run(prepared->bias_rows, ones.data, o.bias->data, o.c->data, NULL, ctx->workspace,
                                    loom_cuda_stream(ctx));
    }
    if (!status)
        status = loom_cuda_plan_run(prepared->plan, o.a->data, o.b->data, o.c->data, o.bias ? o.bias->data : NULL,
                                    ctx->workspace, loom_cuda_stream(ctx));
    if (status) loom_cuda_failed_because(ctx, loom_op_name(op), cuda->matmul->lt->GetStatusString(status));
}

void loom_cuda_matmul_forward(loom_context *ctx, const struct loom_matmul_forward *a) {
    multiply(ctx, LOOM_OP_matmul_forward, a);
    switch (a->activation) {
#define CASE(NAME, name)                                                                                               \
    case LOOM_ACTIVATION_##NAME:                                                                                       \
        loom_cuda_##name##_forward(ctx, &(struct loom_##name##_forward){.out = a->out, .x = a->preactivation});        \
        break;
        LOOM_ACTIVATION_LIST(CASE)
#undef CASE
    case LOOM_ACTIVATION_NONE:
    case LOOM_ACTIVATION_COUNT: break;
    }
}

void loom_cuda_matmul_backward_input(loom_context *ctx, const struct loom_matmul_backward_input *a) {
    multiply(ctx, LOOM_OP_matmul_backward_input, a);
}

/* ------------------------------------------------------------------------------------------------------- bias gradients */

/* The product with the sum of dout, which is its A or its B. */
static loom_cuda_product summing_product(const loom_cuda *cuda, const struct loom_matmul_backward_weight *w,
                                         bool accumulate) {
    const operands o = operands_of(LOOM_OP_matmul_backward_weight, w);
    loom_cuda_product product = product_of(cuda, &o, true);
    product.sums = w->transposed ? LOOM_CUDA_ROW_SUMS : LOOM_CUDA_COLUMN_SUMS;
    product.accumulate = accumulate;
    return product;
}

/* The plan that does all of a call; NULL if our kernel is to follow the product. */
static const entry *find_summing(const loom_cuda *cuda, const struct loom_matmul_backward_weight *w) {
    const loom_cuda_product product = summing_product(cuda, w, w->accumulate);
    const bool aligned = is_aligned(&w->x) && is_aligned(&w->dout) && is_aligned(&w->dweight);
    return loom_view_given(&w->dbias) && aligned ? find(cuda->matmul, &product) : NULL;
}

static void multiply_then_sum(loom_context *ctx, const struct loom_matmul_backward_weight *w) {
    multiply(ctx, LOOM_OP_matmul_backward_weight, w);
    if (loom_view_given(&w->dbias))
        loom_cuda_bias_gradient(ctx, &w->dbias, &w->dout, w->accumulate,
                                (char *)ctx->workspace + product_workspace(LOOM_OP_matmul_backward_weight, w));
}

static void multiply_and_sum(loom_context *ctx, const struct loom_matmul_backward_weight *w, const entry *summing) {
    const operands o = operands_of(LOOM_OP_matmul_backward_weight, w);
    void *sums = (char *)ctx->workspace + product_workspace(LOOM_OP_matmul_backward_weight, w);
    LOOM_CHECK(ctx->workspace_bytes >= workspace_of(LOOM_OP_matmul_backward_weight, w));
    const cublasStatus_t status = loom_cuda_plan_run(summing->plan, o.a->data, o.b->data, o.c->data, sums,
                                                     ctx->workspace, loom_cuda_stream(ctx));
    if (status)
        loom_cuda_failed_because(ctx, loom_op_name(LOOM_OP_matmul_backward_weight),
                                 loom_cuda_of(ctx->device)->matmul->lt->GetStatusString(status));
    else
        loom_cuda_bias_gradient_take(ctx, &w->dbias, sums, w->accumulate);
}

void loom_cuda_matmul_backward_weight(loom_context *ctx, const struct loom_matmul_backward_weight *a) {
    const entry *summing = find_summing(loom_cuda_of(ctx->device), a);
    if (summing)
        multiply_and_sum(ctx, a, summing);
    else
        multiply_then_sum(ctx, a);
}

/* A call in memory of its own, to be timed either way: several sets of operands, of which each run takes the next. */
typedef struct trial {
    loom_context ctx;
    struct loom_matmul_backward_weight arguments;
    const entry *summing; /* NULL: our kernel */
    char *memory;
    size_t set; /* its bytes */
    int sets, turn;
} trial;

/* Puts the views into memory, if it is not NULL, one behind the other; returns the bytes that they take. */
static size_t place(trial *t, char *memory) {
    loom_view *const views[] = {&t->arguments.x, &t->arguments.dout, &t->arguments.dweight, &t->arguments.dbias};
    size_t used = 0;
    for (size_t i = 0; i < sizeof views / sizeof *views; i++) {
        views[i]->data = memory ? memory + used : NULL;
        used += (loom_view_extent(views[i]) + 255) / 256 * 256;
    }
    return used;
}

static bool trial_run(void *of) {
    trial *t = of;
    place(t, t->memory + (size_t)t->turn * t->set);
    t->turn = (t->turn + 1) % t->sets;
    if (t->summing)
        multiply_and_sum(&t->ctx, &t->arguments, t->summing);
    else
        multiply_then_sum(&t->ctx, &t->arguments);
    return true;
}

/* Whether the plan is faster than the product and our kernel; not, where there is no memory to time them in. */
static bool compare(loom_cuda *cuda, const struct loom_matmul_backward_weight *w, const entry *summing, bool *faster,
                    loom_error *error) {
    trial t = {.ctx = {.ops = &cuda->ops, .device = &cuda->device}, .arguments = *w};
    const loom_cuda_work work = {trial_run, &t, cuda->stream};
    const size_t workspace = workspace_of(LOOM_OP_matmul_backward_weight, w);
    t.set = place(&t, NULL);
    t.sets = loom_cuda_sets(t.set);
    const size_t tensors = (size_t)t.sets * t.set;
    double own = 0, epilogue = 0;
    void *memory = NULL;
    *faster = false;
    if (cudaMalloc(&memory, tensors + workspace) != cudaSuccess) {
        cudaGetLastError(); /* so that no later call reports it */
        return true;
    }
    t.memory = memory;
    t.ctx.workspace = (char *)memory + tensors;
    t.ctx.workspace_bytes = workspace;
    bool ok = loom_cuda_fill_random(memory, tensors, cuda->stream, error) && loom_cuda_time_well(&work, &own, error);
    t.summing = summing;
    ok = ok && loom_cuda_time_well(&work, &epilogue, error) && cuda->device.synchronize(&cuda->device, NULL, error);
    cudaFree(memory);
    *faster = epilogue < own;
    return ok;
}

/* Plans the product that sums up, once writing C and once adding to it, both times with the algorithm that is given, or
 * measured, for writing. */
static bool plan_summing(loom_cuda *cuda, const loom_cuda_product product[2], entry *both[2], loom_error *error) {
    for (int i = 0; i < 2; i++)
        if (!(both[i] = new_entry(&product[i], error))) return false;
    return plan_tuned(cuda, both[0], error) &&
           loom_cuda_plan_create(&both[1]->plan, &product[1], cuda->matmul->lt, cuda->matmul->handle, cuda->stream,
                                 loom_cuda_plan_algorithm(both[0]->plan), error);
}

/* Plans the product that sums up, unless the tuning cache has our kernel, or that is found to be faster. */
static bool prepare_bias_gradient(loom_cuda *cuda, const struct loom_matmul_backward_weight *w, loom_error *error) {
    const loom_cuda_product product[] = {summing_product(cuda, w, false), summing_product(cuda, w, true)};
    entry *both[] = {NULL, NULL};
    char key[LOOM_TUNING_KEY];
    loom_error why;
    if (product->output != LOOM_F32 || product->tf32 || find(cuda->matmul, product)) return true;
    name_product(product, key);
    const char *tuned = loom_tuning_take(&cuda->tuning, LOOM_TUNING_DBIAS, key);
    if (tuned && !strcmp(tuned, KERNEL)) return true;
    bool ok = true, epilogue = plan_summing(cuda, product, both, &why);
    if (tuned && !epilogue)
        ok = loom_fail(error, "the way to a bias gradient in the run's tuning cache cannot be taken: %s", why.message);
    if (!tuned) {
        if (epilogue) ok = compare(cuda, w, both[w->accumulate], &epilogue, error);
        ok = ok && loom_tuning_add(&cuda->tuning, LOOM_TUNING_DBIAS, key, epilogue ? EPILOGUE : KERNEL, error);
    }
    ok = ok && (!epilogue || keep_tuned(cuda, both[0], error));
    for (int i = 0; i < 2; i++)
        if (ok && epilogue)
            keep_entry(cuda->matmul, both[i]);
        else
            destroy_entry(both[i]);
    return ok;
}

/* ----------------------------------------------------------------------------------------------------------- preparing */

bool loom_cuda_matmul_prepare(loom_device *device, loom_op op, const void *arguments, loom_error *error) {
    loom_cuda *cuda = loom_cuda_of(device);
    const struct loom_matmul_backward_weight *w = arguments;
    const operands o = operands_of(op, arguments);
    const loom_cuda_product aligned = product_of(cuda, &o, true), unaligned = product_of(cuda, &o, false);
    return prepare_product(cuda, &aligned, error) && prepare_product(cuda, &unaligned, error) &&
           (op != LOOM_OP_matmul_backward_weight || !loom_view_given(&w->dbias) ||
            prepare_bias_gradient(cuda, w, error));
}
