#include "cuda/product.h"

#include "base/check.h"
#include "cuda/cuda.h"

#include <math.h>
#include <stdlib.h>

/* cuBLASLt knows matrices by columns. What is stored by rows as (r,c) is, to it, (c,r) by columns with the same leading
 * dimension. So C = A B is asked for as C^T = B^T A^T: its first operand, called left here, is our B, its second, right,
 * is our A.
 *
 * All that is used of cuBLASLt, so that the emulation's stand-in can be complete:
 *   types       A and B both CUDA_R_32F, CUDA_R_16BF or CUDA_R_16F; C and D of that type or CUDA_R_32F
 *   compute     CUBLAS_COMPUTE_32F; with fp32 inputs also CUBLAS_COMPUTE_32F_FAST_TF32; scale type CUDA_R_32F
 *   layouts     cublasLtMatrixLayoutCreate with leading dimensions at least as large as the rows; no further attributes:
 *               order by columns, no batches. C and D are one matrix with one layout
 *   operation   CUBLASLT_MATMUL_DESC_TRANSA, _TRANSB (N or T: NN, TN, NT), _EPILOGUE (DEFAULT or BIAS), _BIAS_POINTER;
 *               alpha 1, beta 0 or 1, both on the host
 *   preference  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, _REDUCTION_SCHEME_MASK, _MIN_ALIGNMENT_{A,B,C,D}_BYTES
 *   functions   cublasLtMatmulAlgoGetHeuristic, cublasLtMatmulAlgoCheck, cublasLtMatmul. */

enum {
    CANDIDATES = 8,    /* asked for */
    MOST_RUNS = 20,    /* timed of each */
    ALIGNMENT = 16,    /* bytes: of the widest access that algorithms make */
    FINITE_BYTE = 0x3C /* repeated, a finite number in every dtype, about 1 in fp16 and less in the others */
};

static const double TIMED_MS = 2; /* so long a candidate is timed, if one run is shorter */

struct loom_cuda_plan {
    loom_cuda_product product;
    size_t workspace;
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
    return loom_fail(error, "cuBLASLt: %s for a product of (%lld,%lld) by (%lld,%lld), %s to %s: %s", what,
                     (long long)p->m, (long long)p->k, (long long)p->k, (long long)p->n,
                     loom_dtype_name((loom_dtype)p->input), loom_dtype_name((loom_dtype)p->output), why);
}

/* ------------------------------------------------------------------------------------------------------- descriptors */

static cublasStatus_t set_bias(cublasLtMatmulDesc_t operation, const void *bias) {
    return cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
}

static cublasStatus_t describe_operation(loom_cuda_plan *plan) {
    const loom_cuda_product *p = &plan->product;
    const int32_t left = p->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                  right = p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint32_t epilogue = p->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    cublasStatus_t status = cublasLtMatmulDescCreate(
        &plan->operation, p->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status)
        status = cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &left, sizeof left);
    if (!status)
        status = cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &right, sizeof right);
    if (!status)
        status = cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                sizeof epilogue);
    /* Algorithms are proposed for a bias as well aligned as this address. */
    if (!status && p->bias) status = set_bias(plan->operation, (const void *)(uintptr_t)ALIGNMENT);
    return status;
}

/* A matrix stored by rows as (rows, columns). */
static cublasStatus_t describe_matrix(cublasLtMatrixLayout_t *layout, int64_t dtype, int64_t rows, int64_t columns,
                                      int64_t ld) {
    return cublasLtMatrixLayoutCreate(layout, type_of(dtype), (uint64_t)columns, (uint64_t)rows, ld);
}

static cublasStatus_t describe(loom_cuda_plan *plan) {
    const loom_cuda_product *p = &plan->product;
    cublasStatus_t status = describe_operation(plan);
    if (!status)
        status = describe_matrix(&plan->left, p->input, p->b_transposed ? p->n : p->k, p->b_transposed ? p->k : p->n,
                                 p->ldb);
    if (!status)
        status = describe_matrix(&plan->right, p->input, p->a_transposed ? p->k : p->m, p->a_transposed ? p->m : p->k,
                                 p->lda);
    if (!status) status = describe_matrix(&plan->out, p->output, p->m, p->n, p->ldc);
    return status;
}

/* --------------------------------------------------------------------------------------------------------- candidates */

static cublasStatus_t prefer(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                             size_t value) {
    const uint32_t narrow = (uint32_t)value;
    return cublasLtMatmulPreferenceSetAttribute(preference, attribute, &narrow, sizeof narrow);
}

/* Where the inner dimension is split, the parts are added in a step of their own, in fp32 and in a fixed order: not in
 * the output, whose dtype would round them. */
static cublasStatus_t set_preferences(cublasLtMatmulPreference_t preference, const loom_cuda_plan *plan) {
    const loom_cuda_product *p = &plan->product;
    const uint64_t workspace = plan->workspace;
    const size_t input = p->aligned ? ALIGNMENT : item_of(p->input),
                 output = p->aligned ? ALIGNMENT : item_of(p->output);
    cublasStatus_t status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                                 &workspace, sizeof workspace);
    if (!status)
        status = prefer(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    if (!status) status = prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, input);
    if (!status) status = prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, input);
    if (!status) status = prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, output);
    if (!status) status = prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, output);
    return status;
}

/* The algorithms that cuBLASLt proposes, the most promising first; one at least. */
static bool propose(const loom_cuda_plan *plan, cublasLtMatmulAlgo_t algorithm[CANDIDATES], int *count,
                    loom_error *error) {
    cublasLtMatmulHeuristicResult_t results[CANDIDATES] = {0};
    cublasLtMatmulPreference_t preference = NULL;
    int n = 0;
    cublasStatus_t status = cublasLtMatmulPreferenceCreate(&preference);
    if (!status) status = set_preferences(preference, plan);
    if (!status)
        status = cublasLtMatmulAlgoGetHeuristic(plan->handle, plan->operation, plan->left, plan->right, plan->out,
                                                plan->out, preference, CANDIDATES, results, &n);
    if (preference) cublasLtMatmulPreferenceDestroy(preference);
    *count = 0;
    for (int i = 0; i < n && !status; i++)
        if (results[i].state == CUBLAS_STATUS_SUCCESS && results[i].workspaceSize <= plan->workspace)
            algorithm[(*count)++] = results[i].algo;
    return *count > 0 || refuse(&plan->product, "no algorithm", cublasLtGetStatusString(status), error);
}

/* ------------------------------------------------------------------------------------------------------------- timing */

/* Memory in which a product is tried, with events that time it. */
typedef struct trial {
    char *memory, *a, *b, *c, *bias, *workspace;
    cudaStream_t stream;
    cudaEvent_t before, after;
} trial;

/* Bytes of rows `ld` apart, and as many as keep what follows aligned wherever in its first ALIGNMENT bytes this one
 * starts. */
static size_t room(int64_t rows, int64_t columns, int64_t ld, int64_t dtype) {
    const size_t bytes = (size_t)((rows - 1) * ld + columns) * item_of(dtype);
    return (bytes + ALIGNMENT + 255) / 256 * 256;
}

/* False with an error when the device fails; true with no memory when there is not enough. */
static bool trial_open(trial *t, const loom_cuda_plan *plan, cudaStream_t stream, loom_error *error) {
    const loom_cuda_product *p = &plan->product;
    const size_t a = p->a_transposed ? room(p->k, p->m, p->lda, p->input) : room(p->m, p->k, p->lda, p->input);
    const size_t b = p->b_transposed ? room(p->n, p->k, p->ldb, p->input) : room(p->k, p->n, p->ldb, p->input);
    const size_t c = room(p->m, p->n, p->ldc, p->output), bias = room(1, p->n, p->n, p->output);
    const size_t input = p->aligned ? 0 : item_of(p->input), output = p->aligned ? 0 : item_of(p->output);
    *t = (trial){.stream = stream};
    void *memory = NULL;
    if (cudaMalloc(&memory, a + b + c + bias + plan->workspace) != cudaSuccess) {
        cudaGetLastError(); /* so that no later call reports it */
        return true;
    }
    t->memory = memory;
    t->a = t->memory + input;
    t->b = t->memory + a + input;
    t->c = t->memory + a + b + output;
    t->bias = t->memory + a + b + c;
    t->workspace = t->memory + a + b + c + bias;
    return loom_cuda_ok(cudaMemsetAsync(memory, FINITE_BYTE, a + b + c + bias, stream), "cudaMemsetAsync", error) &&
           loom_cuda_ok(cudaEventCreateWithFlags(&t->before, cudaEventDefault), "cudaEventCreateWithFlags", error) &&
           loom_cuda_ok(cudaEventCreateWithFlags(&t->after, cudaEventDefault), "cudaEventCreateWithFlags", error);
}

static void trial_close(trial *t) {
    if (t->before) cudaEventDestroy(t->before);
    if (t->after) cudaEventDestroy(t->after);
    if (t->memory) cudaFree(t->memory);
}

/* Runs the plan `runs` times. *ms is the time of one, or infinite if cuBLASLt does not run it after all; false if the
 * device fails. */
static bool time_runs(loom_cuda_plan *plan, const trial *t, int runs, double *ms, loom_error *error) {
    float elapsed = 0;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (!loom_cuda_ok(cudaEventRecord(t->before, t->stream), "cudaEventRecord", error)) return false;
    for (int i = 0; i < runs && !status; i++)
        status = loom_cuda_plan_run(plan, t->a, t->b, t->c, t->bias, t->workspace, t->stream);
    if (status) cudaGetLastError(); /* a launch that was refused harms nothing */
    if (!loom_cuda_ok(cudaEventRecord(t->after, t->stream), "cudaEventRecord", error) ||
        !loom_cuda_ok(cudaEventSynchronize(t->after), "a matrix product", error) ||
        !loom_cuda_ok(cudaEventElapsedTime(&elapsed, t->before, t->after), "cudaEventElapsedTime", error))
        return false;
    *ms = status ? INFINITY : (double)elapsed / runs;
    return true;
}

/* The first run loads the kernel and is not counted; the second says how many it takes for a good measurement. */
static bool time_plan(loom_cuda_plan *plan, const trial *t, double *ms, loom_error *error) {
    if (!time_runs(plan, t, 1, ms, error)) return false;
    if (isinf(*ms)) return true;
    if (!time_runs(plan, t, 1, ms, error)) return false;
    const double enough = *ms > 0 ? TIMED_MS / *ms : MOST_RUNS;
    return enough < 2 || time_runs(plan, t, enough < MOST_RUNS ? (int)enough : MOST_RUNS, ms, error);
}

/* The plan takes the fastest of the candidates, or the first that runs where time is of no interest. */
static bool choose(loom_cuda_plan *plan, const trial *t, const cublasLtMatmulAlgo_t *candidate, int count,
                   loom_error *error) {
    double best = INFINITY;
    cublasLtMatmulAlgo_t fastest = candidate[0];
    for (int i = 0; i < count; i++) {
        double ms;
        plan->algorithm = candidate[i];
        if (!(plan->product.aligned ? time_plan(plan, t, &ms, error) : time_runs(plan, t, 1, &ms, error))) return false;
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

/* What an earlier run chose; cuBLASLt looks whether it makes sense here. */
static bool take_algorithm(loom_cuda_plan *plan, const cublasLtMatmulAlgo_t *given, loom_error *error) {
    cublasLtMatmulHeuristicResult_t result = {0};
    const cublasStatus_t status = cublasLtMatmulAlgoCheck(plan->handle, plan->operation, plan->left, plan->right,
                                                          plan->out, plan->out, given, &result);
    if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > plan->workspace)
        return refuse(&plan->product, "the run's choice is refused",
                      status ? cublasLtGetStatusString(status) : "it needs too much workspace", error);
    plan->algorithm = *given;
    return true;
}

/* -------------------------------------------------------------------------------------------------------------- plans */

bool loom_cuda_plan_create(loom_cuda_plan **out, const loom_cuda_product *product, cublasLtHandle_t handle,
                           cudaStream_t stream, const cublasLtMatmulAlgo_t *given, loom_error *error) {
    LOOM_CHECK(product->aligned || !product->bias);
    loom_cuda_plan *plan = calloc(1, sizeof *plan);
    if (!plan) return loom_fail(error, "no memory for the plan of a matrix product");
    plan->product = *product;
    plan->workspace = loom_cuda_product_workspace(product->m, product->n);
    plan->handle = handle;
    const cublasStatus_t status = describe(plan);
    bool ok = !status || refuse(product, "no description", cublasLtGetStatusString(status), error);
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
    if (plan->operation) cublasLtMatmulDescDestroy(plan->operation);
    if (plan->left) cublasLtMatrixLayoutDestroy(plan->left);
    if (plan->right) cublasLtMatrixLayoutDestroy(plan->right);
    if (plan->out) cublasLtMatrixLayoutDestroy(plan->out);
    free(plan);
}

const cublasLtMatmulAlgo_t *loom_cuda_plan_algorithm(const loom_cuda_plan *plan) {
    return &plan->algorithm;
}

cublasStatus_t loom_cuda_plan_run(loom_cuda_plan *plan, const void *a, const void *b, void *c, const void *bias,
                                  void *workspace, cudaStream_t stream) {
    const float one = 1, beta = plan->product.accumulate ? 1 : 0;
    if (plan->product.bias) {
        const cublasStatus_t status = set_bias(plan->operation, bias);
        if (status) return status;
    }
    return cublasLtMatmul(plan->handle, plan->operation, &one, b, plan->left, a, plan->right, &beta, c, plan->out, c,
                          plan->out, &plan->algorithm, workspace, plan->workspace, stream);
}
