#include "cuda/matmul.h"

#include "cuda/attention_cudnn.h"

#include "base/check.h"
#include "cuda/choices.h"
#include "cuda/product.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The three products of a linear layer. The bias is added by cuBLASLt, in fp32 and before rounding, as the definition
 * does. Its GELU and ReLU are not used: they take the sum as it is before rounding, and an activation must give the same
 * bits whether it follows the product or is an op of its own; so the product writes what the activation is applied to,
 * and our kernel does the rest.
 *
 * A product has one plan for data that begins at multiples of 16 bytes, as all of a model's does, and another for data
 * that does not: it is made from shapes, and where data lies is known only when it runs. cuBLASLt adds no bias that is
 * not aligned; it is then written into all rows of the output first, as the product of a column of ones with it, and the
 * other product is added to that, which rounds once too. */

typedef struct entry {
    loom_cuda_product product;
    loom_cuda_plan *plan;      /* NULL where cuBLASLt has no algorithm for data that is not aligned */
    loom_cuda_plan *bias_rows; /* writes the bias into all rows; NULL where the plan adds it, or there is none */
    struct entry *next;
} entry;

struct loom_cuda_matmul {
    cublasLtHandle_t handle;
    char library[48];
    entry *first;
    loom_choices choices; /* of the aligned products */
    bool choices_given;   /* by an earlier run, which must be continued as it was */
};

bool loom_cuda_matmul_create(loom_cuda_matmul **out, loom_error *error) {
    loom_cuda_matmul *matmul = calloc(1, sizeof *matmul);
    if (!matmul) return loom_fail(error, "no memory for the plans of matrix products");
    const cublasStatus_t status = cublasLtCreate(&matmul->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        free(matmul);
        return loom_fail(error, "cublasLtCreate: %s", cublasLtGetStatusString(status));
    }
    const size_t version = cublasLtGetVersion(); /* as CUBLAS_VERSION */
    snprintf(matmul->library, sizeof matmul->library, "cuBLASLt %zu.%zu.%zu", version / 10000, version / 100 % 100,
             version % 100);
    *out = matmul;
    return true;
}

static void destroy_entry(entry *e) {
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
    loom_choices_clear(&matmul->choices);
    cublasLtDestroy(matmul->handle);
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
        return (operands){.a = &i->dout, .b = &i->weight, .c = &i->dx, .b_transposed = !i->transposed};
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

/* What names an aligned product in the run's choices: "1024x2304x768,768:2304:2304,nn,bf16>bf16,bias". */
static void name_product(const loom_cuda_product *p, char key[LOOM_CHOICE_KEY]) {
    snprintf(key, LOOM_CHOICE_KEY, "%lldx%lldx%lld,%lld:%lld:%lld,%c%c,%s>%s%s%s%s", (long long)p->m, (long long)p->n,
             (long long)p->k, (long long)p->lda, (long long)p->ldb, (long long)p->ldc, p->a_transposed ? 't' : 'n',
             p->b_transposed ? 't' : 'n', loom_dtype_name((loom_dtype)p->input), loom_dtype_name((loom_dtype)p->output),
             p->bias ? ",bias" : "", p->accumulate ? ",add" : "", p->tf32 ? ",tf32" : "");
}

/* Plans an aligned product as was chosen, or chooses. */
static bool plan_by_choice(loom_cuda *cuda, entry *e, loom_error *error) {
    loom_cuda_matmul *matmul = cuda->matmul;
    char key[LOOM_CHOICE_KEY];
    name_product(&e->product, key);
    const loom_choice *choice = loom_choices_find(&matmul->choices, key);
    cublasLtMatmulAlgo_t algorithm;
    _Static_assert(sizeof algorithm == LOOM_CHOICE_BYTES, "a choice holds an algorithm");
    if (choice) memcpy(&algorithm, choice->value, sizeof algorithm);
    return loom_cuda_plan_create(&e->plan, &e->product, matmul->handle, cuda->stream, choice ? &algorithm : NULL,
                                 error) &&
           (choice || loom_choices_add(&matmul->choices, key, loom_cuda_plan_algorithm(e->plan), error));
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
    if (e->product.bias && !loom_cuda_plan_create(&e->bias_rows, &rows, matmul->handle, cuda->stream, NULL, NULL))
        return;
    loom_cuda_plan_create(&e->plan, &product, matmul->handle, cuda->stream, NULL, NULL);
}

static bool prepare(loom_cuda *cuda, const loom_cuda_product *product, loom_error *error) {
    if (find(cuda->matmul, product)) return true;
    entry *e = calloc(1, sizeof *e);
    if (!e) return loom_fail(error, "no memory for the plan of a matrix product");
    e->product = *product;
    /* That data which is not aligned cannot be planned for is no error before it comes. */
    bool ok = true;
    if (!product->aligned)
        plan_bias_apart(cuda, e);
    else
        ok = plan_by_choice(cuda, e, error);
    /* There may be shapes for which there is no algorithm that adds a bias. */
    if (!ok && product->bias && !cuda->matmul->choices_given) {
        plan_bias_apart(cuda, e);
        ok = e->plan != NULL;
    }
    if (!ok) {
        destroy_entry(e);
        return false;
    }
    e->next = cuda->matmul->first;
    cuda->matmul->first = e;
    return true;
}

bool loom_cuda_matmul_prepare(loom_device *device, loom_op op, const void *arguments, loom_error *error) {
    loom_cuda *cuda = loom_cuda_of(device);
    const operands o = operands_of(op, arguments);
    const loom_cuda_product aligned = product_of(cuda, &o, true), unaligned = product_of(cuda, &o, false);
    return prepare(cuda, &aligned, error) && prepare(cuda, &unaligned, error);
}

/* ------------------------------------------------------------------------------------------------------------- choices */

static void measured_on(const loom_cuda *cuda, char text[200]) {
    snprintf(text, 200, "%s, sm_%d, %s%s%s", cuda->gpu, cuda->capability, cuda->matmul->library,
             cuda->cudnn ? ", " : "", cuda->cudnn ? loom_cuda_cudnn_library(cuda->cudnn) : "");
}

bool loom_cuda_matmul_choices_get(const loom_cuda *cuda, char **text, loom_error *error) {
    char here[200];
    measured_on(cuda, here);
    return loom_choices_write(&cuda->matmul->choices, here, text, error);
}

bool loom_cuda_matmul_choices_set(loom_cuda *cuda, const char *text, loom_error *error) {
    loom_cuda_matmul *matmul = cuda->matmul;
    loom_choices choices = {0};
    char here[200], key[LOOM_CHOICE_KEY];
    measured_on(cuda, here);
    if (!loom_choices_read(&choices, here, text, error)) return false;
    /* What was planned already stays as it is: it may have been used. */
    bool ok = true;
    for (const entry *e = matmul->first; e && ok; e = e->next) {
        if (!e->product.aligned) continue;
        name_product(&e->product, key);
        const loom_choice *choice = loom_choices_find(&choices, key);
        const cublasLtMatmulAlgo_t *planned = loom_cuda_plan_algorithm(e->plan);
        if (!choice)
            ok = loom_choices_add(&choices, key, planned, error);
        else if (memcmp(choice->value, planned, sizeof *planned) != 0)
            ok = loom_fail(error, "the run's choice for the matrix product %s comes after another one was made", key);
    }
    loom_choices_clear(ok ? &matmul->choices : &choices);
    if (ok) matmul->choices = choices;
    if (ok && text) matmul->choices_given = true;
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

/* First the product's, then that of the bias or of its gradient. */
size_t loom_cuda_matmul_workspace(loom_op op, const void *arguments) {
    const struct loom_matmul_backward_weight *w = arguments;
    const operands o = operands_of(op, arguments);
    const loom_view ones = ones_for(&o, NULL);
    size_t bias = o.bias ? loom_view_extent(&ones) : 0;
    if (op == LOOM_OP_matmul_backward_weight && loom_view_given(&w->dbias))
        bias = loom_cuda_bias_gradient_workspace(w->dout.shape[2], w->dout.shape[3]);
    return product_workspace(op, arguments) + bias;
}

static bool is_aligned(const loom_view *view) {
    return (uintptr_t)view->data % 16 == 0;
}

static void multiply(loom_exec *exec, loom_op op, const void *arguments) {
    loom_cuda *cuda = loom_cuda_of(exec->device);
    const operands o = operands_of(op, arguments);
    const bool aligned = is_aligned(o.a) && is_aligned(o.b) && is_aligned(o.c) && (!o.bias || is_aligned(o.bias));
    const loom_cuda_product product = product_of(cuda, &o, aligned);
    entry *prepared = find(cuda->matmul, &product);
    LOOM_CHECK(prepared);
    LOOM_CHECK(exec->workspace_bytes >= loom_cuda_matmul_workspace(op, arguments));
    if (!prepared->plan) {
        loom_cuda_failed_because(exec, loom_op_name(op), "cuBLASLt has no algorithm for data not aligned to 16 bytes");
        return;
    }
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (prepared->bias_rows) {
        const loom_view ones = ones_for(&o, (char *)exec->workspace + product_workspace(op, arguments));
        loom_cuda_fill(exec, &(struct loom_fill){.out = ones, .value = 1});
        status = loom_cuda_plan_run(prepared->bias_rows, ones.data, o.bias->data, o.c->data, NULL, exec->workspace,
                                    loom_cuda_stream(exec));
    }
    if (!status)
        status = loom_cuda_plan_run(prepared->plan, o.a->data, o.b->data, o.c->data, o.bias ? o.bias->data : NULL,
                                    exec->workspace, loom_cuda_stream(exec));
    if (status) loom_cuda_failed_because(exec, loom_op_name(op), cublasLtGetStatusString(status));
}

void loom_cuda_matmul_forward(loom_exec *exec, const struct loom_matmul_forward *a) {
    multiply(exec, LOOM_OP_matmul_forward, a);
    switch (a->activation) {
    case LOOM_ACTIVATION_NONE: break;
    case LOOM_ACTIVATION_GELU:
        loom_cuda_gelu_forward(exec, &(struct loom_gelu_forward){.out = a->out, .x = a->preactivation});
        break;
    case LOOM_ACTIVATION_RELU:
        loom_cuda_relu_forward(exec, &(struct loom_relu_forward){.out = a->out, .x = a->preactivation});
        break;
    }
}

void loom_cuda_matmul_backward_input(loom_exec *exec, const struct loom_matmul_backward_input *a) {
    multiply(exec, LOOM_OP_matmul_backward_input, a);
}

void loom_cuda_matmul_backward_weight(loom_exec *exec, const struct loom_matmul_backward_weight *a) {
    multiply(exec, LOOM_OP_matmul_backward_weight, a);
    if (loom_view_given(&a->dbias))
        loom_cuda_bias_gradient(exec, &a->dbias, &a->dout, a->accumulate,
                                (char *)exec->workspace + product_workspace(LOOM_OP_matmul_backward_weight, a));
}
