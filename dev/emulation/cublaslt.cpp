/* A stand-in for cuBLASLt: it supports what csrc/cuda/product.c lists and refuses everything else. For each product it
 * proposes three algorithms: one that adds up the inner dimension from beginning to end, one that adds up four parts of
 * it and then these, and one that fails when it is run. So bits depend on the choice, as with the library. For a third of
 * the products that could also sum up an operand it has no algorithm that does. */
#include "runtime.h"
#include "schedule.h"

#include "cuda/cublaslt_api.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>

namespace {

/* ------------------------------------------------------------------------------------------------ what is in the handles
 * The library's descriptors are opaque blocks of memory; these lie in them. */

struct operation_description {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int32_t transpose_a, transpose_b;
    uint32_t epilogue;
    void *vector; /* the bias, or where sums go */
};

struct layout_description {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t leading;
};

struct preference_description {
    uint64_t workspace;
    uint32_t reductions;
    uint32_t alignment[4]; /* of A, B, C, D */
};

template <typename Inside, typename Opaque> Inside inside(const Opaque *opaque) {
    static_assert(sizeof(Inside) <= sizeof(Opaque), "it must fit");
    Inside i;
    memcpy(&i, opaque, sizeof i);
    return i;
}

template <typename Inside, typename Opaque> void put_inside(Opaque *opaque, const Inside &i) {
    static_assert(sizeof(Inside) <= sizeof(Opaque), "it must fit");
    memcpy(opaque, &i, sizeof i);
}

template <typename Opaque, typename Inside> cublasStatus_t create(Opaque **out, const Inside &i) {
    if (!out) return CUBLAS_STATUS_INVALID_VALUE;
    *out = new Opaque();
    put_inside(*out, i);
    return CUBLAS_STATUS_SUCCESS;
}

template <typename T> cublasStatus_t set(T *member, const void *value, size_t bytes) {
    if (!value || bytes != sizeof *member) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(member, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/* ----------------------------------------------------------------------------------------------------------- a product */

/* D (m,n) = op(A) (m,k) op(B) (k,n), all stored by columns. */
struct product {
    int64_t m, n, k, lda, ldb, ldd;
    cudaDataType_t input, output;
    bool transpose_a, transpose_b, tf32, with_bias;
    bool sum_a, sum_b; /* of op(A)'s rows, or of op(B)'s columns, in the output's type */
    bool has_vector() const {
        return with_bias || sum_a || sum_b;
    }
    int64_t vector_length() const {
        return sum_b ? n : m;
    }
};

bool is_input(cudaDataType_t type) {
    return type == CUDA_R_32F || type == CUDA_R_16BF || type == CUDA_R_16F;
}

size_t size_of(cudaDataType_t type) {
    return type == CUDA_R_32F ? 4 : 2;
}

bool same(const layout_description &a, const layout_description &b) {
    return a.type == b.type && a.rows == b.rows && a.columns == b.columns && a.leading == b.leading;
}

/* Puts the descriptions together; false if the library that this stands for is never asked for such a product. */
bool understand(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a_layout, cublasLtMatrixLayout_t b_layout,
                cublasLtMatrixLayout_t c_layout, cublasLtMatrixLayout_t d_layout, product *p) {
    const auto o = inside<operation_description>(desc);
    const auto a = inside<layout_description>(a_layout), b = inside<layout_description>(b_layout),
               c = inside<layout_description>(c_layout), d = inside<layout_description>(d_layout);
    *p = {};
    p->transpose_a = o.transpose_a == CUBLAS_OP_T;
    p->transpose_b = o.transpose_b == CUBLAS_OP_T;
    p->m = (int64_t)d.rows;
    p->n = (int64_t)d.columns;
    p->k = (int64_t)(p->transpose_a ? a.rows : a.columns);
    p->lda = a.leading;
    p->ldb = b.leading;
    p->ldd = d.leading;
    p->input = a.type;
    p->output = d.type;
    p->tf32 = o.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    p->with_bias = o.epilogue == CUBLASLT_EPILOGUE_BIAS;
    p->sum_a = o.epilogue == CUBLASLT_EPILOGUE_BGRADA;
    p->sum_b = o.epilogue == CUBLASLT_EPILOGUE_BGRADB;
    const bool types = is_input(a.type) && b.type == a.type && (d.type == a.type || d.type == CUDA_R_32F);
    const bool compute = o.compute == CUBLAS_COMPUTE_32F || (p->tf32 && a.type == CUDA_R_32F);
    const bool transposes = (p->transpose_a || o.transpose_a == CUBLAS_OP_N) &&
                            (p->transpose_b || o.transpose_b == CUBLAS_OP_N) && !(p->transpose_a && p->transpose_b);
    const bool sums = p->transpose_b && d.type == CUDA_R_32F && !p->tf32;
    const bool epilogue = p->has_vector() ? o.vector && (p->with_bias || sums)
                                          : o.epilogue == CUBLASLT_EPILOGUE_DEFAULT;
    const bool shapes = (int64_t)(p->transpose_a ? a.columns : a.rows) == p->m &&
                        (int64_t)(p->transpose_b ? b.columns : b.rows) == p->k &&
                        (int64_t)(p->transpose_b ? b.rows : b.columns) == p->n && p->m > 0 && p->n > 0 && p->k > 0 &&
                        p->lda >= (int64_t)a.rows && p->ldb >= (int64_t)b.rows && p->ldd >= p->m;
    return types && compute && transposes && epilogue && shapes && o.scale == CUDA_R_32F && same(c, d);
}

/* ---------------------------------------------------------------------------------------------------------- algorithms */

enum algorithm_id : uint64_t { IN_ORDER, IN_PARTS, FAILS, ALGORITHMS };

enum { PARTS = 4 };

/* What cublasLtMatmulAlgo_t holds. */
struct algorithm {
    uint64_t mark, id, workspace;
    uint32_t alignment[4];
    uint64_t vector_alignment;
    uint64_t made_for; /* which product */
};

const uint64_t MARK = 0x6C65747075636D65u;

uint64_t hash(const product &p) {
    const int64_t epilogue = p.with_bias + 2 * p.sum_a + 4 * p.sum_b;
    uint64_t h = MARK;
    for (const int64_t x : {p.m, p.n, p.k, p.lda, p.ldb, p.ldd, (int64_t)p.input, (int64_t)p.output,
                            (int64_t)p.transpose_a, (int64_t)p.transpose_b, (int64_t)p.tf32, epilogue})
        h = simt::scramble(h ^ (uint64_t)x);
    return h;
}

bool is_aligned(const void *address, uint64_t alignment) {
    return (uintptr_t)address % std::max<uint64_t>(alignment, 1) == 0;
}

uint64_t alignment_of(const void *address) {
    return std::min<uint64_t>((uint64_t)((uintptr_t)address & -(uintptr_t)address), 256);
}

/* ----------------------------------------------------------------------------------------------------------- computing
 * The output is cut into tiles, which threads share; operands are copied into tiles of floats. */

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
enum { TILE = 64, DEPTH = 256, DOWN = 2, ACROSS = 4 };

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), may_alias));

float load(const void *from, cudaDataType_t type, int64_t at) {
    if (type == CUDA_R_32F) return static_cast<const float *>(from)[at];
    if (type == CUDA_R_16BF) return __bfloat162float(static_cast<const __nv_bfloat16 *>(from)[at]);
    return __half2float(static_cast<const __half *>(from)[at]);
}

void store(void *to, cudaDataType_t type, int64_t at, float value) {
    if (type == CUDA_R_32F)
        static_cast<float *>(to)[at] = value;
    else if (type == CUDA_R_16BF)
        static_cast<__nv_bfloat16 *>(to)[at] = __float2bfloat16_rn(value);
    else
        static_cast<__half *>(to)[at] = __float2half_rn(value);
}

/* To 10 bits behind the point, to nearest, ties to even; infinities and NaNs stay. */
float round_to_tf32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7F800000u) != 0x7F800000u) bits = (bits + 0x0FFFu + (bits >> 13 & 1u)) & ~0x1FFFu;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* A stored matrix. */
struct source {
    const void *data;
    cudaDataType_t type;
    int64_t leading;
    bool tf32;
};

/* line[i] = element (row + i, column), for i < n. */
void load_line(float *line, const source &s, int64_t row, int64_t column, int64_t n) {
    const int64_t start = column * s.leading + row;
    if (s.type == CUDA_R_32F)
        memcpy(line, static_cast<const float *>(s.data) + start, (size_t)n * sizeof *line);
    else
        for (int64_t i = 0; i < n; i++) line[i] = load(s.data, s.type, start + i);
    if (s.tf32)
        for (int64_t i = 0; i < n; i++) line[i] = round_to_tf32(line[i]);
}

/* Operands lie in tiles as [k][i], i being what is not summed over; zeros fill the tile's width. `across` says that the
 * stored columns are along k. */
void copy_tile(float (*tile)[TILE], const source &s, int64_t first, int64_t width, int64_t k, int64_t depth,
               bool across) {
    float line[DEPTH];
    if (width < TILE) memset(tile, 0, (size_t)depth * sizeof *tile);
    if (across)
        for (int64_t i = 0; i < depth; i++) load_line(tile[i], s, first, k + i, width);
    else
        for (int64_t i = 0; i < width; i++) {
            load_line(line, s, k, first + i, depth);
            for (int64_t j = 0; j < depth; j++) tile[j][i] = line[j];
        }
}

/* d[j][i] += the sum over k, in order, of a[k][i] b[k][j]. */
void multiply_tiles(float (*d)[TILE], const float (*a)[TILE], const float (*b)[TILE], int64_t depth) {
    for (int j = 0; j < TILE; j += ACROSS)
        for (int i = 0; i < TILE; i += DOWN * LANES) {
            lanes sum[ACROSS][DOWN];
#pragma GCC unroll 8
            for (int v = 0; v < ACROSS * DOWN; v++)
                sum[v / DOWN][v % DOWN] = *reinterpret_cast<lanes *>(&d[j + v / DOWN][i + v % DOWN * LANES]);
            for (int64_t k = 0; k < depth; k++) {
#pragma GCC unroll 8
                for (int v = 0; v < ACROSS * DOWN; v++)
                    sum[v / DOWN][v % DOWN] += *reinterpret_cast<const lanes *>(&a[k][i + v % DOWN * LANES]) *
                                               b[k][j + v / DOWN];
            }
#pragma GCC unroll 8
            for (int v = 0; v < ACROSS * DOWN; v++)
                *reinterpret_cast<lanes *>(&d[j + v / DOWN][i + v % DOWN * LANES]) = sum[v / DOWN][v % DOWN];
        }
}

struct operands {
    const void *a, *b;
    void *vector, *d;
    bool add; /* beta is 1 */
};

struct tiles {
    alignas(64) float a[DEPTH][TILE], b[DEPTH][TILE], d[TILE][TILE], part[TILE][TILE];
};

/* Adds the inner dimension from `begin` to `end` to a tile of sums that starts at (row, column). */
void add_products(const product &p, const operands &o, tiles *t, float (*sums)[TILE], int64_t row, int64_t column,
                  int64_t begin, int64_t end) {
    const int64_t rows = std::min<int64_t>(TILE, p.m - row), columns = std::min<int64_t>(TILE, p.n - column);
    const source a = {o.a, p.input, p.lda, p.tf32}, b = {o.b, p.input, p.ldb, p.tf32};
    for (int64_t k = begin; k < end; k += DEPTH) {
        const int64_t depth = std::min<int64_t>(DEPTH, end - k);
        copy_tile(t->a, a, row, rows, k, depth, !p.transpose_a);
        copy_tile(t->b, b, column, columns, k, depth, p.transpose_b);
        multiply_tiles(sums, t->a, t->b, depth);
    }
}

void finish_tile(const product &p, const operands &o, const tiles *t, int64_t row, int64_t column) {
    for (int64_t c = column; c < std::min(column + TILE, p.n); c++)
        for (int64_t r = row; r < std::min(row + TILE, p.m); r++) {
            float x = t->d[c - column][r - row];
            if (o.add) x += load(o.d, p.output, c * p.ldd + r);
            if (p.with_bias) x += load(o.vector, p.output, r);
            store(o.d, p.output, c * p.ldd + r, x);
        }
}

/* Element i of the sums, whose parts are added as those of products are. Neither matrix is stored along what is summed. */
float sum_up(const product &p, const operands &o, int64_t i, int parts) {
    const void *summed = p.sum_a ? o.a : o.b;
    const int64_t leading = p.sum_a ? p.lda : p.ldb;
    float sum = 0;
    for (int part = 0; part < parts; part++) {
        float one = 0;
        for (int64_t k = p.k * part / parts; k < p.k * (part + 1) / parts; k++)
            one += load(summed, p.input, k * leading + i);
        sum += one;
    }
    return sum;
}

void compute(const product &p, const operands &o, int parts) {
    const int64_t down = (p.m + TILE - 1) / TILE, across = (p.n + TILE - 1) / TILE;
    const int threads = down * across * p.k > 8 * DEPTH ? simt::current_threads() : 1;
#pragma omp parallel num_threads(threads)
    {
        static thread_local tiles mine;
        tiles *const t = &mine;
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < down * across; tile++) {
            const int64_t row = tile % down * TILE, column = tile / down * TILE;
            memset(t->d, 0, sizeof t->d);
            for (int part = 0; part < parts; part++) {
                const int64_t begin = p.k * part / parts, end = p.k * (part + 1) / parts;
                if (part == 0) {
                    add_products(p, o, t, t->d, row, column, begin, end);
                    continue;
                }
                memset(t->part, 0, sizeof t->part);
                add_products(p, o, t, t->part, row, column, begin, end);
                for (int c = 0; c < TILE; c++)
                    for (int r = 0; r < TILE; r++) t->d[c][r] += t->part[c][r];
            }
            finish_tile(p, o, t, row, column);
        }
    }
    if (p.sum_a || p.sum_b)
        for (int64_t i = 0; i < p.vector_length(); i++) store(o.vector, p.output, i, sum_up(p, o, i, parts));
}

/* -------------------------------------------------------------------------------------------------------------- checks */

bool inside_memory(const void *data, int64_t rows, int64_t columns, int64_t leading, cudaDataType_t type) {
    return emulation::in_device_memory(data, (size_t)((columns - 1) * leading + rows) * size_of(type));
}

/* What a GPU would answer with an illegal memory access, if at all. */
bool check_memory(const product &p, const operands &o, std::string *failure) {
    *failure = "";
    if (!inside_memory(o.a, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.lda, p.input)) *failure = "A";
    if (!inside_memory(o.b, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.ldb, p.input)) *failure = "B";
    if (!inside_memory(o.d, p.m, p.n, p.ldd, p.output)) *failure = "D";
    const int64_t length = p.vector_length();
    if (p.has_vector() && !inside_memory(o.vector, length, 1, length, p.output))
        *failure = p.with_bias ? "the bias" : "the sum";
    if (failure->empty()) return true;
    *failure += " is not, or not wholly, in an allocation of the device";
    return false;
}

/* The library may write anything anywhere in the workspace that it is given, whichever algorithm runs. */
bool is_apart(const product &p, const operands &o, const void *workspace, size_t bytes) {
    const auto begin = (uintptr_t)o.vector, end = begin + (size_t)p.vector_length() * size_of(p.output);
    return !p.has_vector() || end <= (uintptr_t)workspace || begin >= (uintptr_t)workspace + bytes;
}

} // namespace

struct cublasLtContext {
    int unused;
};

extern "C" cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    if (!handle) return CUBLAS_STATUS_INVALID_VALUE;
    *handle = new cublasLtContext();
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" size_t cublasLtGetVersion(void) {
    return 130100;
}

extern "C" const char *cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "unknown status";
}

extern "C" const char *cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "the function failed to launch on the GPU";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
    default: return cublasLtGetStatusName(status);
    }
}

/* --------------------------------------------------------------------------------------------------------- descriptors */

extern "C" cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                                   cudaDataType_t scale) {
    return create(desc,
                  operation_description{compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr});
}

extern "C" cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                                         cublasLtMatmulDescAttributes_t attribute, const void *value,
                                                         size_t bytes) {
    if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
    auto o = inside<operation_description>(desc);
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: status = set(&o.transpose_a, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_TRANSB: status = set(&o.transpose_b, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: status = set(&o.epilogue, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: status = set(&o.vector, value, bytes); break;
    default: break;
    }
    put_inside(desc, o);
    return status;
}

extern "C" cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows,
                                                     uint64_t columns, int64_t leading) {
    return create(layout, layout_description{type, rows, columns, leading});
}

extern "C" cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t,
                                                           const void *, size_t) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

/* The library's own defaults. */
extern "C" cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    return create(preference, preference_description{0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}});
}

extern "C" cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                               cublasLtMatmulPreferenceAttributes_t attribute,
                                                               const void *value, size_t bytes) {
    if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
    auto p = inside<preference_description>(preference);
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: status = set(&p.workspace, value, bytes); break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: status = set(&p.reductions, value, bytes); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: status = set(&p.alignment[0], value, bytes); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: status = set(&p.alignment[1], value, bytes); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: status = set(&p.alignment[2], value, bytes); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: status = set(&p.alignment[3], value, bytes); break;
    default: break;
    }
    put_inside(preference, p);
    return status;
}

/* ---------------------------------------------------------------------------------------------------------- algorithms */

/* In an order that depends on the product; but who asks for one gets one that runs. */
extern "C" cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                                         cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                         cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                         cublasLtMatmulPreference_t preference, int asked,
                                                         cublasLtMatmulHeuristicResult_t results[], int *found) {
    product p;
    if (!handle || !desc || !a || !b || !c || !d || !preference || asked < 1 || !results || !found)
        return CUBLAS_STATUS_INVALID_VALUE;
    *found = 0;
    if (!understand(desc, a, b, c, d, &p)) return CUBLAS_STATUS_NOT_SUPPORTED;
    const auto wanted = inside<preference_description>(preference);
    if (!(wanted.reductions & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)) return CUBLAS_STATUS_NOT_SUPPORTED;
    algorithm made = {};
    made.mark = MARK;
    made.made_for = hash(p);
    if ((p.sum_a || p.sum_b) && made.made_for % 3 == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    memcpy(made.alignment, wanted.alignment, sizeof made.alignment);
    if (p.has_vector()) made.vector_alignment = alignment_of(inside<operation_description>(desc).vector);
    const uint64_t first = asked == 1 ? made.made_for % 2 : made.made_for % ALGORITHMS;
    for (int i = 0; i < std::min<int>(asked, ALGORITHMS); i++) {
        made.id = (first + (uint64_t)i) % ALGORITHMS;
        made.workspace = made.id == IN_PARTS ? std::min((uint64_t)(PARTS * p.m * p.n) * 4, wanted.workspace) : 0;
        results[i] = {};
        put_inside(&results[i].algo, made);
        results[i].workspaceSize = made.workspace;
        results[i].state = CUBLAS_STATUS_SUCCESS;
        results[i].wavesCount = 1;
        *found = i + 1;
    }
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                                  cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                  cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                  const cublasLtMatmulAlgo_t *algo,
                                                  cublasLtMatmulHeuristicResult_t *result) {
    product p;
    if (!handle || !desc || !a || !b || !c || !d || !algo || !result) return CUBLAS_STATUS_INVALID_VALUE;
    const auto made = inside<algorithm>(algo);
    const bool right = understand(desc, a, b, c, d, &p) && made.mark == MARK && made.id < ALGORITHMS &&
                       made.made_for == hash(p);
    *result = {};
    result->algo = *algo;
    result->state = right ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
    if (right) result->workspaceSize = made.workspace;
    return result->state;
}

/* What the algorithm was not made for is refused, as is memory that is less aligned than it was promised. */
extern "C" cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                                         const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                                         cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                                         cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                                         const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                                         cudaStream_t handle_of_stream) {
    std::lock_guard<std::recursive_mutex> guard(emulation::runtime_lock());
    cublasLtMatmulHeuristicResult_t checked;
    if (!alpha || !beta || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
    const cublasStatus_t status = cublasLtMatmulAlgoCheck(handle, desc, a_layout, b_layout, c_layout, d_layout, algo,
                                                          &checked);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    product p;
    understand(desc, a_layout, b_layout, c_layout, d_layout, &p);
    const auto made = inside<algorithm>(algo);
    const float scale = *static_cast<const float *>(alpha), add = *static_cast<const float *>(beta);
    const operands o = {a, b, inside<operation_description>(desc).vector, d, add == 1};
    if (scale != 1 || (add != 0 && add != 1) || c != d) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!is_aligned(a, made.alignment[0]) || !is_aligned(b, made.alignment[1]) || !is_aligned(d, made.alignment[2]) ||
        !is_aligned(d, made.alignment[3]) || (p.has_vector() && !is_aligned(o.vector, made.vector_alignment)))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (made.workspace > workspace_bytes || (workspace_bytes && !is_aligned(workspace, 256)))
        return CUBLAS_STATUS_INVALID_VALUE;
    CUstream_st *stream = emulation::find_stream(handle_of_stream);
    if (!stream) return CUBLAS_STATUS_INVALID_VALUE;
    if (made.id == FAILS || emulation::sticky_error() != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
    const int parts = made.id == IN_PARTS ? PARTS : 1;
    const size_t scratch = made.workspace;
    const auto run = [=](std::string *failure) {
        if (!check_memory(p, o, failure)) return false;
        if (scratch && !emulation::in_device_memory(workspace, scratch)) {
            *failure = "the workspace is not, or not wholly, in an allocation of the device";
            return false;
        }
        if (!is_apart(p, o, workspace, workspace_bytes)) {
            *failure = p.with_bias ? "the bias lies in the workspace" : "the sum lies in the workspace";
            return false;
        }
        if (scratch) memset(workspace, 0xFF, scratch);
        compute(p, o, parts);
        return true;
    };
    const std::string name = "cublasLtMatmul of (" + std::to_string(p.m) + "," + std::to_string(p.k) + ") by (" +
                             std::to_string(p.k) + "," + std::to_string(p.n) + ")";
    return emulation::remember(emulation::enqueue(stream, {name, cudaGraphNodeTypeKernel, run})) == cudaSuccess
               ? CUBLAS_STATUS_SUCCESS
               : CUBLAS_STATUS_EXECUTION_FAILED;
}

/* Nothing is loaded: the functions are these. */
extern "C" const loom_cublaslt_api *loom_cublaslt_load(loom_error *) {
#define FUNCTION(name) cublasLt##name,
    static const loom_cublaslt_api api = {LOOM_CUBLASLT_FUNCTIONS(FUNCTION)};
#undef FUNCTION
    return &api;
}
