#include "cuda/product.h"

#include "base/check.h"
#include "cuda/cuda.h"
#include "cuda/timing.h"

#include <math.h>
#include <stdlib.h>

/* cuBLASLt knows matrices by columns. What is stored by rows as (r,c) is, to it, (c,r) by columns with the same leading
 * dimension. So C = A B is asked for as C^T = B^T A^T: its first operand, called left here, is our B, its second,
 * right, is our A.
 *
 * All that is used of cuBLASLt, so that the emulation's stand-in can be complete:
 *   types       A and B both CUDA_R_32F, CUDA_R_16BF or CUDA_R_16F; C and D of that type or CUDA_R_32F
 *   compute     CUBLAS_COMPUTE_32F; with fp32 inputs also CUBLAS_COMPUTE_32F_FAST_TF32; scale type CUDA_R_32F
 *   layouts     cublasLtMatrixLayoutCreate with leading dimensions at least as large as the rows; no further attributes:
 *               order by columns, no batches. C and D are one matrix with one layout
 *   operation   CUBLASLT_MATMUL_DESC_TRANSA, _TRANSB (N or T: NN, TN, NT), _EPILOGUE (DEFAULT or BIAS; with NT, an output
 *               of CUDA_R_32F and CUBLAS_COMPUTE_32F also BGRADA or BGRADB), _BIAS_POINTER; alpha 1, beta 0 or 1, both on
 *               the host
 *   preference  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, _REDUCTION_SCHEME_MASK, _MIN_ALIGNMENT_{A,B,C,D}_BYTES
 *   functions   cublasLtMatmulAlgoGetHeuristic, cublasLtMatmulAlgoCheck, cublasLtMatmul. */

enum {
    CANDIDATES = 8, /* asked for */
    ALIGNMENT = 16  /* bytes: of the widest access that algorithms make */
};

struct loom_cuda_plan {
    loom_cuda_product product;
    size_t workspace;
    const loom_cublaslt_api *lt;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t left, right, out;
    cublasLtMatmulAlgo_t algorithm;
};

/* What lets the inner dimension be split into 32 parts, each with its own fp32 sums, up to the 32 MiB that NVIDIA
 * recommends for its largest GPUs: more would gain nothing, and small products would take it for nothing. */
size_t loom_cuda_product_workspace(int64_t m, int64_t n) {
    const size_t most = (size_t)32 << 20, least = (size_t)1 << 20, element = 32 * sizeof(float);
    return (size_t)m * (size_t)n < (most - least) / element
               ? (least + (size_t)m * (size_t)n * element + 255) / 256 * 256
               : most;
}

static cudaDataType_t type_of(int64_t dtype) {
    return dtype == LOOM_F32 ? CUDA_R_32F : dtype == LOOM_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static size_t item_of(int64_t dtype) {
    return loom_dtype_size((loom_dtype)dtype);
}

static bool refuse(const loom_cuda_product *p, const char *what, const char *why, loom_error *error) {
    return loom_fail(error, "cuBLASLt: %s for a product of (%lld,%lld) by (%lld,%lld), %s to %s%s: %s", what,
                     (long long)p->m, (long long)p->k, (long long)p->k, (long long)p->n,
                     loom_dtype_name((loom_dtype)p->input), loom_dtype_name((loom_dtype)p->output),
                     p->sums ? " with a bias gradient" : "", why);
}

/* ------------------------------------------------------------------------------------------------------- descriptors */

/* The sums of our A's rows are those of the right operand's columns, cuBLASLt's B, and the other way round. */
static uint32_t epilogue_of(const loom_cuda_product *p) {
    switch ((loom_cuda_sums)p->sums) {
    case LOOM_CUDA_ROW_SUMS: return CUBLASLT_EPILOGUE_BGRADB;
    case LOOM_CUDA_COLUMN_SUMS: return CUBLASLT_EPILOGUE_BGRADA;
    default: return p->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    }
}

static bool has_vector(const loom_cuda_product *p) {
    return p->bias || p->sums;
}

static cublasStatus_t set_vector(loom_cuda_plan *plan, const void *vector) {
    return plan->lt->MatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &vector, sizeof vector);
}

static cublasStatus_t describe_operation(loom_cuda_plan *plan) {
    const loom_cublaslt_api *lt = plan->lt;
    const loom_cuda_product *p = &plan->product;
    const int32_t left = p->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                  right = p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint32_t epilogue = epilogue_of(p);
    cublasStatus_t status = lt->MatmulDescCreate(
        &plan->operation, p->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status) status = lt->MatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &left, sizeof left);
    if (!status)
        status = lt->MatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &right, sizeof right);
    if (!status)
        status = lt->MatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    /* Algorithms are proposed for a vector as well aligned as this address; it is of C's dtype, if nothing else is
     * said. */
    if (!status && has_vector(p)) status = set_vector(plan, (const void *)(uintptr_t)ALIGNMENT);
    return status;
}

/* A matrix stored by rows as (rows, columns). */
static cublasStatus_t describe_matrix(const loom_cuda_plan *plan, cublasLtMatrixLayout_t *layout, int64_t dtype,
                                      int64_t rows, int64_t columns, int64_t ld) {
    return plan->lt->MatrixLayoutCreate(layout, type_of(dtype), (uint64_t)columns, (uint64_t)rows, ld);
}

static cublasStatus_t describe(loom_cuda_plan *plan) {
    const loom_cuda_product *p = &plan->product;
    cublasStatus_t status = describe_operation(plan);
    if (!status)
        status = describe_matrix(plan, &plan->left, p->input, p->b_transposed ? p->n : p->k,
                                 p->b_transposed ? p->k : p->n, p->ldb);
    if (!status)
        status = describe_matrix(plan, &plan->right, p->input, p->a_transposed ? p->k : p->m,
                                 p->a_transposed ? p->m : p->k, p->lda);
    if (!status) status = describe_matrix(plan, &plan->out, p->output, p->m, p->n, p->ldc);
    return status;
}

/* --------------------------------------------------------------------------------------------------------- candidates */

static cublasStatus_t prefer(const loom_cuda_plan *plan, cublasLtMatmulPreference_t preference,
                             cublasLtMatmulPreferenceAttributes_t attribute, size_t value) {
    const uint32_t narrow = (uint32_t)value;
    return plan->lt->MatmulPreferenceSetAttribute(preference, attribute, &narrow, sizeof narrow);
}

/* Where the inner dimension is split, the parts are added in a step of their own, in fp32 and in a fixed order: not in
 * the output, whose dtype would round them. */
static cublasStatus_t set_preferences(cublasLtMatmulPreference_t preference, const loom_cuda_plan *plan) {
    const loom_cuda_product *p = &plan->product;
    const uint64_t workspace = plan->workspace;
    const size_t input = p->aligned ? ALIGNMENT : item_of(p->input),
                 output = p->aligned ? ALIGNMENT : item_of(p->output);
    cublasStatus_t status = plan->lt->MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                                   &workspace, sizeof workspace);
    if (!status)
        status = prefer(plan, preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    if (!status) status = prefer(plan, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, input);
    if (!status) status = prefer(plan, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, input);
    if (!status) status = prefer(plan, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, output);
    if (!status) status = prefer(plan, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, output);
    return status;
}

/* The algorithms that cuBLASLt proposes, the most promising first; one at least. */
static bool propose(const loom_cuda_plan *plan, cublasLtMatmulAlgo_t algorithm[CANDIDATES], int *count,
                    loom_error *error) {
    const loom_cublaslt_api *lt = plan->lt;
    cublasLtMatmulHeuristicResult_t results[CANDIDATES] = {0};
    cublasLtMatmulPreference_t preference = NULL;
    int n = 0;
    cublasStatus_t status = lt->MatmulPreferenceCreate(&preference);
    if (!status) status = set_preferences(preference, plan);
    if (!status)
        status = lt->MatmulAlgoGetHeuristic(plan->handle, plan->operation, plan->left, plan->right, plan->out,
                                            plan->out, preference, CANDIDATES, results, &n);
    if (preference) lt->MatmulPreferenceDestroy(preference);
    *count = 0;
    for (int i = 0; i < n && !status; i++)
        if (results[i].state == CUBLAS_STATUS_SUCCESS && results[i].workspaceSize <= plan->workspace)
            algorithm[(*count)++] = results[i].algo;
    return *count > 0 || refuse(&plan->product, "no algorithm", lt->GetStatusString(status), error);
}

/* ------------------------------------------------------------------------------------------------------------- timing */

/* Memory in which a plan is tried: several sets of operands, of which each run takes the next. */
typedef struct trial {
    loom_cuda_plan *plan;
    char *memory, *workspace;
    size_t a, b, c, vector, set; /* where each begins in a set; a set's bytes */
    int sets, turn;
    cudaStream_t stream;
} trial;

/* Bytes of rows `ld` apart, and as many as keep what follows aligned wherever in its first ALIGNMENT bytes this one
 * starts. */
static size_t room(int64_t rows, int64_t columns, int64_t ld, int64_t dtype) {
    const size_t bytes = (size_t)((rows - 1) * ld + columns) * item_of(dtype);
    return (bytes + ALIGNMENT + 255) / 256 * 256;
}

/* False with an error when the device fails; true with no memory when there is not enough. */
static bool trial_open(trial *t, loom_cuda_plan *plan, cudaStream_t stream, loom_error *error) {
    const loom_cuda_product *p = &plan->product;
    const int64_t length = p->sums == LOOM_CUDA_ROW_SUMS ? p->m : p->n;
    const size_t a = p->a_transposed ? room(p->k, p->m, p->lda, p->input) : room(p->m, p->k, p->lda, p->input);
    const size_t b = p->b_transposed ? room(p->n, p->k, p->ldb, p->input) : room(p->k, p->n, p->ldb, p->input);
    const size_t c = room(p->m, p->n, p->ldc, p->output), vector = room(1, length, length, p->output);
    const size_t input = p->aligned ? 0 : item_of(p->input), output = p->aligned ? 0 : item_of(p->output);
    const size_t set = a + b + c + vector;
    *t = (trial){.plan = plan, .stream = stream, .set = set};
    t->a = input;
    t->b = a + input;
    t->c = a + b + output;
    t->vector = a + b + c;
    t->sets = p->aligned ? loom_cuda_sets(set) : 1;
    void *memory = NULL;
    if (cudaMalloc(&memory, (size_t)t->sets * set + plan->workspace) != cudaSuccess) {
        cudaGetLastError(); /* so that no later call reports it */
        return true;
    }
    t->memory = memory;
    t->workspace = t->memory + (size_t)t->sets * set;
    return loom_cuda_fill_random(memory, (size_t)t->sets * set, stream, error);
}

static void trial_close(trial *t) {
    if (t->memory) cudaFree(t->memory);
}

static bool trial_run(void *of) {
    trial *t = of;
    char *set = t->memory + (size_t)t->turn * t->set;
    t->turn = (t->turn + 1) % t->sets;
    return !loom_cuda_plan_run(t->plan, set + t->a, set + t->b, set + t->c, set + t->vector, t->workspace, t->stream);
}

/* The plan takes the fastest of the candidates, or the first that runs where time is of no interest. */
static bool choose(loom_cuda_plan *plan, trial *t, const cublasLtMatmulAlgo_t *candidate, int count,
                   loom_error *error) {
    const loom_cuda_work work = {trial_run, t, t->stream};
    double best = INFINITY;
    cublasLtMatmulAlgo_t fastest = candidate[0];
    for (int i = 0; i < count; i++) {
        double ms;
        plan->algorithm = candidate[i];
        if (!(plan->product.aligned ? loom_cuda_time_well(&work, &ms, error) : loom_cuda_time(&work, 1, &ms, error)))
            return false;
        if (ms < best) {
            best = ms;
            fastest = candidate[i];
            if (!plan->product.aligned) break;
        }
    }
    plan->algorithm = fastest;
    return !isinf(best) || refuse(&plan->product, "no algorithm that runs", "all that it proposes fail", error);
}

static bool find_algorithm(loom_cuda_plan *plan, cudaStream_t stream, loom_error *error) {
    cublasLtMatmulAlgo_t candidate[CANDIDATES];
    int count;
    if (!propose(plan, candidate, &count, error)) return false;
    trial t;
    bool ok = trial_open(&t, plan, stream, error);
    if (ok && t.memory)
        ok = choose(plan, &t, candidate, count, error);
    else
        plan->algorithm = candidate[0];
    trial_close(&t);
    return ok;
}

/* What the tuning cache has; cuBLASLt looks whether it makes sense here. */
static bool take_algorithm(loom_cuda_plan *plan, const cublasLtMatmulAlgo_t *given, loom_error *error) {
    cublasLtMatmulHeuristicResult_t result = {0};
    const cublasStatus_t status = plan->lt->MatmulAlgoCheck(plan->handle, plan->operation, plan->left, plan->right,
                                                            plan->out, plan->out, given, &result);
    if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > plan->workspace)
        return refuse(&plan->product, "the algorithm of the run's tuning cache is refused",
                      status ? plan->lt->GetStatusString(status) : "it needs too much workspace", error);
    plan->algorithm = *given;
    return true;
}

/* -------------------------------------------------------------------------------------------------------------- plans */

bool loom_cuda_plan_create(loom_cuda_plan **out, const loom_cuda_product *product, const loom_cublaslt_api *lt,
                           cublasLtHandle_t handle, cudaStream_t stream, const cublasLtMatmulAlgo_t *given,
                           loom_error *error) {
    LOOM_CHECK(product->aligned || !has_vector(product));
    LOOM_CHECK(!product->sums || (!product->bias && product->output == LOOM_F32 && !product->tf32));
    loom_cuda_plan *plan = calloc(1, sizeof *plan);
    if (!plan) return loom_fail(error, "no memory for the plan of a matrix product");
    plan->product = *product;
    plan->workspace = loom_cuda_product_workspace(product->m, product->n);
    plan->lt = lt;
    plan->handle = handle;
    const cublasStatus_t status = describe(plan);
    bool ok = !status || refuse(product, "no description", lt->GetStatusString(status), error);
    if (ok) ok = given ? take_algorithm(plan, given, error) : find_algorithm(plan, stream, error);
    if (!ok) {
        loom_cuda_plan_destroy(plan);
        return false;
    }
    *out = plan;
    return true;
}

void loom_cuda_plan_destroy(loom_cuda_plan *plan) {
    if (!plan) return;
    const loom_cublaslt_api *lt = plan->lt;
    if (plan->operation) lt->MatmulDescDestroy(plan->operation);
    if (plan->left) lt->MatrixLayoutDestroy(plan->left);
    if (plan->right) lt->MatrixLayoutDestroy(plan->right);
    if (plan->out) lt->MatrixLayoutDestroy(plan->out);
    free(plan);
}

const cublasLtMatmulAlgo_t *loom_cuda_plan_algorithm(const loom_cuda_plan *plan) {
    return &plan->algorithm;
}

cublasStatus_t loom_cuda_plan_run(loom_cuda_plan *plan, const void *a, const void *b, void *c, void *vector,
                                  void *workspace, cudaStream_t stream) {
    const float one = 1, beta = plan->product.accumulate ? 1 : 0;
    if (has_vector(&plan->product)) {
        const cublasStatus_t status = set_vector(plan, vector);
        if (status) return status;
    }
    return plan->lt->Matmul(plan->handle, plan->operation, &one, b, plan->left, a, plan->right, &beta, c, plan->out, c,
                            plan->out, &plan->algorithm, workspace, plan->workspace, stream);
}
