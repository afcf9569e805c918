/* The stand-in for cuBLASLt against a plain triple loop, for all that it supports; that it refuses everything else; and
 * that it is as awkward as the library: an algorithm that fails, and bits that depend on the algorithm. */
#include "support_cuda.h"

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>
#include <random>

namespace {

using namespace runtime;

/* ------------------------------------------------------------------------------------------------------------- numbers
 * Rounding here is done in double with ldexp, so that it shares nothing with what it checks. */

struct format {
    cudaDataType_t type;
    int digits; /* of the significand, the leading one too */
    int least;  /* the exponent of the smallest positive number */
};

const format F32 = {CUDA_R_32F, 24, -149}, BF16 = {CUDA_R_16BF, 8, -133}, FP16 = {CUDA_R_16F, 11, -24};
const format TF32 = {CUDA_R_32F, 11, -136};

double round_to(const format &f, double x) {
    if (x == 0) return 0;
    const int last = std::max(std::ilogb(x) - f.digits + 1, f.least);
    return std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
}

size_t size_of(const format &f) {
    return f.type == CUDA_R_32F ? 4 : 2;
}

void encode(const format &f, double x, void *to) {
    const float narrow = (float)x;
    const __nv_bfloat16 b = __float2bfloat16_rn(narrow);
    const __half h = __float2half_rn(narrow);
    memcpy(to,
           f.type == CUDA_R_32F    ? (const void *)&narrow
           : f.type == CUDA_R_16BF ? (const void *)&b
                                   : &h,
           size_of(f));
}

double decode(const format &f, const void *from) {
    float wide;
    __nv_bfloat16 b;
    __half h;
    if (f.type == CUDA_R_32F) {
        memcpy(&wide, from, sizeof wide);
        return wide;
    }
    memcpy(&b, from, sizeof b);
    memcpy(&h, from, sizeof h);
    return f.type == CUDA_R_16BF ? __bfloat162float(b) : __half2float(h);
}

/* ------------------------------------------------------------------------------------------------------------ matrices */

/* A matrix on the device, by columns that are `leading` apart; what lies between them stays as memory is at first. */
class Matrix {
  public:
    Matrix(const format &format_, int64_t rows_, int64_t columns_, int64_t leading_, unsigned seed, int64_t offset = 0)
        : f(format_), rows(rows_), columns(columns_), leading(leading_) {
        const size_t bytes = ((size_t)((columns - 1) * leading + rows) + (size_t)offset) * size_of(f);
        works(cudaMalloc(reinterpret_cast<void **>(&block_), bytes));
        data = block_ + (size_t)offset * size_of(f);
        std::mt19937 random(seed);
        std::normal_distribution<double> normal;
        for (int64_t c = 0; c < columns; c++)
            for (int64_t r = 0; r < rows; r++) encode(f, round_to(f, normal(random)), at(r, c));
    }
    ~Matrix() {
        cudaFree(block_);
    }
    Matrix(const Matrix &) = delete;
    Matrix &operator=(const Matrix &) = delete;

    char *at(int64_t r, int64_t c) const {
        return data + (size_t)(c * leading + r) * size_of(f);
    }
    double operator()(int64_t r, int64_t c) const {
        return decode(f, at(r, c));
    }
    bool gaps_are_untouched() const {
        for (int64_t c = 0; c + 1 < columns; c++)
            for (const char *p = at(rows, c); p < at(0, c + 1); p++)
                if (*p != (char)0xFF) return false;
        return true;
    }
    std::string bytes() const {
        return std::string(data, at(rows - 1, columns - 1) + size_of(f));
    }

    const format f;
    const int64_t rows, columns, leading;
    char *data = nullptr;

  private:
    char *block_ = nullptr;
};

/* ---------------------------------------------------------------------------------------------------------- the library */

struct Problem {
    int64_t m, n, k;
    format in = F32, out = F32;
    bool transpose_a = false, transpose_b = false, bias = false, add = false, tf32 = false;
    uint32_t sums = 0;  /* CUBLASLT_EPILOGUE_BGRADA or _BGRADB */
    int64_t gap = 0;    /* leading dimensions are that much larger than the rows */
    int64_t offset = 0; /* elements before the data, which make it less aligned */
};

/* All handles of one product, and its memory. The descriptors may be changed before the algorithms are asked for. */
class Product {
  public:
    explicit Product(const Problem &problem, unsigned seed = 1)
        : p(problem), a(p.in, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, (p.transpose_a ? p.k : p.m) + p.gap,
                        seed, p.offset),
          b(p.in, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, (p.transpose_b ? p.n : p.k) + p.gap, seed + 1,
            p.offset),
          d(p.out, p.m, p.n, p.m + p.gap, seed + 2, p.offset),
          vector(p.out, p.sums == CUBLASLT_EPILOGUE_BGRADB ? p.n : p.m, 1, p.m + p.n, seed + 3, p.offset) {
        must(cublasLtCreate(&handle));
        must(cublasLtMatmulDescCreate(&desc, p.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
        set(CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N));
        set(CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N));
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, p.sums   ? p.sums
                                           : p.bias ? (uint32_t)CUBLASLT_EPILOGUE_BIAS
                                                    : (uint32_t)CUBLASLT_EPILOGUE_DEFAULT);
        if (p.bias || p.sums) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)vector.data);
        layout_a = layout(a);
        layout_b = layout(b);
        layout_d = layout(d);
        must(cublasLtMatmulPreferenceCreate(&preference));
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)32 << 20);
        const uint32_t in = (uint32_t)(p.offset ? size_of(p.in) : 16), out = (uint32_t)(p.offset ? size_of(p.out) : 16);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, in);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, in);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out);
    }
    ~Product() {
        for (cublasLtMatrixLayout_t l : {layout_a, layout_b, layout_d}) cublasLtMatrixLayoutDestroy(l);
        cublasLtMatmulPreferenceDestroy(preference);
        cublasLtMatmulDescDestroy(desc);
        cublasLtDestroy(handle);
    }
    Product(const Product &) = delete;
    Product &operator=(const Product &) = delete;

    static void must(cublasStatus_t status) {
        if (status) throw std::runtime_error(cublasLtGetStatusString(status));
    }
    template <typename T> void set(cublasLtMatmulDescAttributes_t attribute, T value) {
        must(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value));
    }
    template <typename T> void prefer(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
        must(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
    }
    static cublasLtMatrixLayout_t layout(const Matrix &m) {
        cublasLtMatrixLayout_t l;
        must(cublasLtMatrixLayoutCreate(&l, m.f.type, (uint64_t)m.rows, (uint64_t)m.columns, m.leading));
        return l;
    }

    cublasStatus_t propose(int asked, std::vector<cublasLtMatmulHeuristicResult_t> *results) {
        int found = -1;
        results->resize((size_t)asked);
        const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
            handle, desc, layout_a, layout_b, layout_d, layout_d, preference, asked, results->data(), &found);
        results->resize((size_t)found);
        return status;
    }
    std::vector<cublasLtMatmulHeuristicResult_t> propose(int asked = 8) {
        std::vector<cublasLtMatmulHeuristicResult_t> results;
        must(propose(asked, &results));
        return results;
    }
    cublasStatus_t run(const cublasLtMatmulAlgo_t &algo, void *workspace = nullptr, size_t bytes = 0,
                       cudaStream_t stream = nullptr) {
        const float alpha = 1, beta = p.add ? 1 : 0;
        return cublasLtMatmul(handle, desc, &alpha, a.data, layout_a, b.data, layout_b, &beta, d.data, layout_d, d.data,
                              layout_d, &algo, workspace, bytes, stream);
    }

    const Problem p;
    Matrix a, b, d, vector; /* the vector is the bias, or where sums go */
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout_a, layout_b, layout_d;
    cublasLtMatmulPreference_t preference;
};

class Workspace {
  public:
    enum : size_t { BYTES = 32 << 20 };
    Workspace() {
        works(cudaMalloc(reinterpret_cast<void **>(&data), BYTES));
    }
    ~Workspace() {
        cudaFree(data);
    }
    unsigned char *data = nullptr;
};

class CublasLt : public Runtime {
  protected:
    Workspace workspace;
};

/* ----------------------------------------------------------------------------------------------------------- the values */

/* Sums of k products, added in any order in fp32, are off by at most k 2^-24 of the sum of their sizes; then comes one
 * rounding each for the old value, the bias and the output. */
void check_values(const Workspace &workspace, const Problem &p) {
    const std::string what = std::to_string(p.m) + "," + std::to_string(p.n) + "," + std::to_string(p.k) + " types " +
                             std::to_string(p.in.type) + ">" + std::to_string(p.out.type) +
                             (p.transpose_a   ? " tn"
                              : p.transpose_b ? " nt"
                                              : " nn") +
                             (p.bias ? " bias" : "") + (p.add ? " add" : "") + (p.tf32 ? " tf32" : "") +
                             (p.gap ? " gap" : "");
    Product x(p);
    std::vector<double> wanted, bound;
    for (int64_t c = 0; c < p.n; c++)
        for (int64_t r = 0; r < p.m; r++) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < p.k; k++) {
                const double u = p.transpose_a ? x.a(k, r) : x.a(r, k), v = p.transpose_b ? x.b(c, k) : x.b(k, c);
                const double product = p.tf32 ? round_to(TF32, u) * round_to(TF32, v) : u * v;
                sum += product;
                size += std::fabs(product);
            }
            const double old = p.add ? x.d(r, c) : 0, bias = p.bias ? x.vector(r, 0) : 0;
            wanted.push_back(sum + old + bias);
            bound.push_back((double)p.k * 0x1p-24 * size + 2 * 0x1p-24 * (size + std::fabs(old) + std::fabs(bias)) +
                            std::ldexp(std::fabs(wanted.back()), -p.out.digits) + 0x1p-24);
        }
    const std::string before = x.d.bytes();
    int ran = 0;
    for (const auto &candidate : x.propose()) {
        memcpy(x.d.data, before.data(), before.size());
        ASSERT_EQ(candidate.state, CUBLAS_STATUS_SUCCESS);
        const cublasStatus_t status = x.run(candidate.algo, workspace.data, Workspace::BYTES);
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << what;
        if (status) continue;
        ran++;
        size_t i = 0;
        for (int64_t c = 0; c < p.n; c++)
            for (int64_t r = 0; r < p.m; r++, i++)
                ASSERT_LE(std::fabs(x.d(r, c) - wanted[i]), bound[i])
                    << what << " at " << r << "," << c << ": " << x.d(r, c) << ", not " << wanted[i];
        EXPECT_TRUE(x.d.gaps_are_untouched()) << what;
    }
    EXPECT_EQ(ran, 2) << what << ": of three candidates one fails";
}

TEST_F(CublasLt, ComputesAllThatItSupports) {
    const format types[][2] = {{F32, F32}, {BF16, BF16}, {BF16, F32}, {FP16, FP16}, {FP16, F32}};
    for (const auto &type : types)
        for (int transpose = 0; transpose < 3; transpose++)
            for (int mode = 0; mode < 4; mode++)
                for (int tf32 = 0; tf32 < (type[0].type == CUDA_R_32F ? 2 : 1); tf32++)
                    for (const int64_t gap : {0, 5}) {
                        Problem p = {19, 70, 33};
                        p.in = type[0];
                        p.out = type[1];
                        p.transpose_a = transpose == 1;
                        p.transpose_b = transpose == 2;
                        p.bias = mode & 1;
                        p.add = mode & 2;
                        p.tf32 = tf32;
                        p.gap = gap;
                        check_values(workspace, p);
                        if (HasFatalFailure()) return;
                    }
}

/* Products that also sum up an operand, and do so whether or not they add to what was there: sums are overwritten. */
TEST_F(CublasLt, SumsUpAnOperand) {
    int ran = 0, without = 0;
    for (const uint32_t sums : {CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB})
        for (const format &in : {F32, BF16, FP16})
            for (const int64_t m : {1, 19, 70, 130})
                for (const bool add : {false, true}) {
                    Problem p = {m, 23, 333};
                    p.in = in;
                    p.transpose_b = true;
                    p.sums = sums;
                    p.add = add;
                    p.gap = 5;
                    Product x(p);
                    std::vector<cublasLtMatmulHeuristicResult_t> candidates;
                    if (x.propose(8, &candidates)) {
                        without++;
                        continue;
                    }
                    check_values(workspace, p);
                    if (HasFatalFailure()) return;
                    std::vector<std::string> bits;
                    for (const auto &candidate : candidates) {
                        for (int64_t i = 0; i < x.vector.rows; i++) encode(F32, NAN, x.vector.at(i, 0));
                        if (x.run(candidate.algo, workspace.data, Workspace::BYTES)) continue;
                        OK(cudaDeviceSynchronize());
                        bits.push_back(x.vector.bytes());
                        for (int64_t i = 0; i < x.vector.rows; i++) {
                            double sum = 0, size = 0;
                            for (int64_t k = 0; k < p.k; k++) {
                                const double value = sums == CUBLASLT_EPILOGUE_BGRADA ? x.a(i, k) : x.b(i, k);
                                sum += value;
                                size += std::fabs(value);
                            }
                            ASSERT_LE(std::fabs(x.vector(i, 0) - sum), (double)p.k * 0x1p-24 * size) << i;
                        }
                    }
                    ASSERT_EQ(bits.size(), 2u);
                    if (in.type == CUDA_R_32F && x.vector.rows > 10) { /* short significands add up exactly */
                        EXPECT_NE(bits[0], bits[1]) << "both algorithms add in the same order";
                    }
                    ran++;
                }
    EXPECT_GT(ran, 24);
    EXPECT_GT(without, 8) << "for some it has no algorithm";
}

TEST_F(CublasLt, ComputesAnySize) {
    for (const Problem &size : {Problem{1, 1, 1}, {1, 200, 3}, {130, 1, 5}, {64, 64, 256}, {65, 63, 257}, {7, 9, 1030}})
        for (int transpose = 0; transpose < 3; transpose++) {
            Problem p = size;
            p.transpose_a = transpose == 1;
            p.transpose_b = transpose == 2;
            check_values(workspace, p);
            if (HasFatalFailure()) return;
        }
}

TEST_F(CublasLt, ComputesUnalignedMatrices) {
    Problem p = {19, 23, 33};
    p.in = p.out = BF16;
    p.bias = true;
    p.offset = 1;
    check_values(workspace, p);
}

/* Without beta the old value must not matter, whatever it is. */
TEST_F(CublasLt, DoesNotReadWhatItOverwrites) {
    Product x({8, 8, 8});
    memset(x.d.data, 0xFF, 8 * 8 * sizeof(float));
    ASSERT_EQ(x.run(x.propose(1)[0].algo, workspace.data, Workspace::BYTES), CUBLAS_STATUS_SUCCESS);
    OK(cudaDeviceSynchronize());
    for (int64_t i = 0; i < 8; i++) EXPECT_FALSE(std::isnan(x.d(i, i)));
}

/* ---------------------------------------------------------------------------------------------------------- algorithms */

/* The same algorithm always gives the same bits; another one does not: so the algorithm must be kept with a run. */
TEST_F(CublasLt, BitsFollowTheAlgorithm) {
    Problem p = {40, 50, 700};
    Product x(p);
    std::vector<std::string> outputs;
    for (const auto &candidate : x.propose()) {
        std::string bits[2];
        bool ran = true;
        for (std::string &b : bits) {
            ran = x.run(candidate.algo, workspace.data, Workspace::BYTES) == CUBLAS_STATUS_SUCCESS;
            OK(cudaDeviceSynchronize());
            b = x.d.bytes();
        }
        if (!ran) continue;
        EXPECT_EQ(bits[0], bits[1]);
        outputs.push_back(bits[0]);
    }
    ASSERT_EQ(outputs.size(), 2u);
    EXPECT_NE(outputs[0], outputs[1]);
}

TEST_F(CublasLt, BitsDoNotFollowTheThreads) {
    Product x({150, 200, 300});
    const auto algo = x.propose(1)[0].algo;
    std::string bits[2];
    for (int threads = 1; threads <= 2; threads++) {
        emulation_set_threads(threads);
        ASSERT_EQ(x.run(algo, workspace.data, Workspace::BYTES), CUBLAS_STATUS_SUCCESS);
        OK(cudaDeviceSynchronize());
        bits[threads - 1] = x.d.bytes();
    }
    emulation_set_threads(0);
    EXPECT_EQ(bits[0], bits[1]);
}

/* One of three fails, and not always the same; who asks for one gets one that runs. */
TEST_F(CublasLt, OneCandidateFailsWhenRun) {
    std::vector<int> failures(3, 0);
    for (int64_t m = 1; m <= 20; m++) {
        Product x({m, 3, 5});
        const auto candidates = x.propose();
        ASSERT_EQ(candidates.size(), 3u);
        int failed = 0;
        for (size_t i = 0; i < 3; i++) {
            const cublasStatus_t status = x.run(candidates[i].algo, workspace.data, Workspace::BYTES);
            if (status == CUBLAS_STATUS_SUCCESS) continue;
            EXPECT_EQ(status, CUBLAS_STATUS_EXECUTION_FAILED);
            failed++;
            failures[i]++;
        }
        EXPECT_EQ(failed, 1);
        EXPECT_EQ(x.run(x.propose(1)[0].algo, workspace.data, Workspace::BYTES), CUBLAS_STATUS_SUCCESS);
        OK(cudaDeviceSynchronize());
    }
    for (const int times : failures) EXPECT_GT(times, 0);
}

TEST_F(CublasLt, AnAlgorithmServesItsProductAlone) {
    Product x({8, 8, 8}), y({8, 8, 9});
    cublasLtMatmulHeuristicResult_t result;
    cublasLtMatmulAlgo_t algo = x.propose(1)[0].algo;
    const auto check = [&](Product &p) {
        return cublasLtMatmulAlgoCheck(p.handle, p.desc, p.layout_a, p.layout_b, p.layout_d, p.layout_d, &algo,
                                       &result);
    };
    EXPECT_EQ(check(x), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(result.workspaceSize, x.propose(1)[0].workspaceSize);
    EXPECT_EQ(check(y), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(y.run(algo, workspace.data, Workspace::BYTES), CUBLAS_STATUS_NOT_SUPPORTED);
    algo.data[0] ^= 1;
    EXPECT_EQ(check(x), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(x.run(algo, workspace.data, Workspace::BYTES), CUBLAS_STATUS_NOT_SUPPORTED);
}

/* It writes into the workspace as far as it said, and not a byte beyond. */
TEST_F(CublasLt, KeepsToItsWorkspace) {
    Product x({30, 40, 50});
    size_t most = 0;
    for (const auto &candidate : x.propose()) {
        memset(workspace.data, 0x11, Workspace::BYTES);
        if (x.run(candidate.algo, workspace.data, candidate.workspaceSize) != CUBLAS_STATUS_SUCCESS) continue;
        OK(cudaDeviceSynchronize());
        size_t written = 0;
        while (workspace.data[written] != 0x11) written++;
        EXPECT_EQ(written, candidate.workspaceSize);
        for (size_t i = written; i < Workspace::BYTES; i++) ASSERT_EQ(workspace.data[i], 0x11) << i;
        most = std::max(most, candidate.workspaceSize);
        if (candidate.workspaceSize > 0) {
            EXPECT_NE(x.run(candidate.algo, workspace.data, candidate.workspaceSize - 1), CUBLAS_STATUS_SUCCESS);
            EXPECT_NE(x.run(candidate.algo, workspace.data + 16, candidate.workspaceSize), CUBLAS_STATUS_SUCCESS);
        }
    }
    EXPECT_GT(most, 0u);
    x.prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)0);
    for (const auto &candidate : x.propose()) EXPECT_EQ(candidate.workspaceSize, 0u);
}

/* ---------------------------------------------------------------------------------------------- streams, memory, capture */

TEST_F(CublasLt, RunsInItsStreamAndInGraphs) {
    Stream stream;
    Product x({8, 8, 8});
    const auto algo = x.propose(1)[0].algo;
    const std::string before = x.d.bytes();
    cudaGraph_t graph;
    cudaGraphExec_t instance;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    ASSERT_EQ(x.run(algo, workspace.data, Workspace::BYTES, stream), CUBLAS_STATUS_SUCCESS);
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&instance, graph, 0));
    OK(cudaGraphLaunch(instance, stream));
    EXPECT_EQ(x.d.bytes(), before);
    OK(cudaStreamSynchronize(stream));
    EXPECT_NE(x.d.bytes(), before);
    OK(cudaGraphExecDestroy(instance));
    OK(cudaGraphDestroy(graph));
}

TEST_F(CublasLt, SeesMemoryThatIsTooSmall) {
    Product x({8, 8, 8});
    const auto algo = x.propose(1)[0].algo;
    const float alpha = 1, beta = 0;
    char *half;
    OK(cudaMalloc(reinterpret_cast<void **>(&half), 8 * 4 * sizeof(float)));
    EXPECT_EQ(cublasLtMatmul(x.handle, x.desc, &alpha, half, x.layout_a, x.b.data, x.layout_b, &beta, x.d.data,
                             x.layout_d, x.d.data, x.layout_d, &algo, workspace.data, Workspace::BYTES, nullptr),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    const std::string failure = emulation_last_failure();
    EXPECT_NE(failure.find("cublasLtMatmul of (8,8) by (8,8): A is not"), std::string::npos) << failure;
    emulation_reset();
    OK(cudaFree(half));
}

/* What a change of the descriptors makes of the question for algorithms. */
cublasStatus_t asked_after(const Problem &p, const std::function<void(Product &)> &change) {
    Product x(p);
    change(x);
    std::vector<cublasLtMatmulHeuristicResult_t> results;
    return x.propose(8, &results);
}

/* What the library may use as it likes must hold nothing else. */
TEST_F(CublasLt, SeesASumInTheWorkspace) {
    Problem p = {8, 8, 8};
    p.transpose_b = true;
    p.sums = CUBLASLT_EPILOGUE_BGRADA;
    while (asked_after(p, [](Product &) {}) != CUBLAS_STATUS_SUCCESS) ASSERT_LT(p.m++, 40);
    Product x(p);
    const auto algo = x.propose(1)[0].algo;
    x.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)(workspace.data + 1024));
    ASSERT_EQ(x.run(algo, workspace.data, 1024), CUBLAS_STATUS_SUCCESS);
    OK(cudaDeviceSynchronize());
    ASSERT_EQ(x.run(algo, workspace.data, 2048), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    EXPECT_NE(std::string(emulation_last_failure()).find("the sum lies in the workspace"), std::string::npos);
    emulation_reset();
}

/* -------------------------------------------------------------------------------------------------------------- refusals */

TEST_F(CublasLt, RefusesEverythingElse) {
    const Problem p = {8, 8, 8};
    const auto nothing = [](Product &) {};
    EXPECT_EQ(asked_after(p, nothing), CUBLAS_STATUS_SUCCESS);
    Problem both = p;
    both.transpose_a = both.transpose_b = true;
    EXPECT_EQ(asked_after(both, nothing), CUBLAS_STATUS_NOT_SUPPORTED);
    Problem wide = p;
    wide.in = F32;
    wide.out = BF16;
    EXPECT_EQ(asked_after(wide, nothing), CUBLAS_STATUS_NOT_SUPPORTED);
    Problem tf32 = p;
    tf32.in = tf32.out = BF16;
    tf32.tf32 = true;
    EXPECT_EQ(asked_after(tf32, nothing), CUBLAS_STATUS_NOT_SUPPORTED);
    const auto with_epilogue = [](uint32_t epilogue) {
        return [=](Product &x) { x.set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue); };
    };
    for (const uint32_t epilogue :
         {CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_RELU,
          CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB})
        EXPECT_EQ(asked_after(p, with_epilogue(epilogue)), CUBLAS_STATUS_NOT_SUPPORTED) << epilogue;
    EXPECT_EQ(asked_after(p, with_epilogue(CUBLASLT_EPILOGUE_BIAS)), CUBLAS_STATUS_NOT_SUPPORTED) << "there is no bias";
    EXPECT_EQ(asked_after(p, [](Product &x) { x.set(CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)CUBLAS_OP_C); }),
              CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(asked_after(p,
                          [](Product &x) {
                              x.prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                       (uint32_t)CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE);
                          }),
              CUBLAS_STATUS_NOT_SUPPORTED);
    for (const cublasComputeType_t compute :
         {CUBLAS_COMPUTE_16F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_16BF, CUBLAS_COMPUTE_32F_PEDANTIC})
        EXPECT_EQ(asked_after(p,
                              [=](Product &x) {
                                  cublasLtMatmulDescDestroy(x.desc);
                                  x.must(cublasLtMatmulDescCreate(&x.desc, compute, CUDA_R_32F));
                              }),
                  CUBLAS_STATUS_NOT_SUPPORTED)
            << compute;
    EXPECT_EQ(asked_after(p,
                          [](Product &x) {
                              cublasLtMatmulDescDestroy(x.desc);
                              x.must(cublasLtMatmulDescCreate(&x.desc, CUBLAS_COMPUTE_32F, CUDA_R_64F));
                          }),
              CUBLAS_STATUS_NOT_SUPPORTED);
}

/* Sums are for NT, into fp32, of what is not rounded. The product that is tried is one of which there are sums. */
TEST_F(CublasLt, RefusesOtherSums) {
    const auto nothing = [](Product &) {};
    for (const uint32_t sums : {CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB}) {
        Problem p = {1, 8, 8};
        p.transpose_b = true;
        p.sums = sums;
        while (asked_after(p, nothing) != CUBLAS_STATUS_SUCCESS) ASSERT_LT(p.m++, 40);
        const auto supported_after = [&](const std::function<void(Problem &)> &change) {
            int supported = 0;
            for (int64_t n = 8; n < 30; n++) { /* so many have none that it is not for want of an algorithm */
                Problem changed = p;
                changed.n = n;
                change(changed);
                supported += asked_after(changed, nothing) == CUBLAS_STATUS_SUCCESS;
            }
            return supported;
        };
        EXPECT_GT(supported_after([](Problem &) {}), 8);
        EXPECT_EQ(supported_after([](Problem &x) { x.transpose_b = false; }), 0);
        EXPECT_EQ(supported_after([](Problem &x) { x.transpose_a = true, x.transpose_b = false; }), 0);
        EXPECT_EQ(supported_after([](Problem &x) { x.in = x.out = BF16; }), 0);
        EXPECT_EQ(supported_after([](Problem &x) { x.tf32 = true; }), 0);
        EXPECT_EQ(asked_after(p, [](Product &x) { x.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)nullptr); }),
                  CUBLAS_STATUS_NOT_SUPPORTED);
    }
}

TEST_F(CublasLt, RefusesLayoutsThatDoNotFit) {
    const auto with = [](uint64_t rows, uint64_t columns, int64_t leading, cudaDataType_t type) {
        return [=](Product &x) {
            cublasLtMatrixLayoutDestroy(x.layout_b);
            x.must(cublasLtMatrixLayoutCreate(&x.layout_b, type, rows, columns, leading));
        };
    };
    const Problem p = {4, 6, 8};
    EXPECT_EQ(asked_after(p, with(8, 6, 8, CUDA_R_32F)), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(asked_after(p, with(7, 6, 8, CUDA_R_32F)), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(asked_after(p, with(8, 5, 8, CUDA_R_32F)), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(asked_after(p, with(8, 6, 7, CUDA_R_32F)), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(asked_after(p, with(8, 6, 8, CUDA_R_16BF)), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(asked_after(p, with(8, 6, 8, CUDA_R_64F)), CUBLAS_STATUS_NOT_SUPPORTED);
    Product x(p);
    const int32_t row_order = CUBLASLT_ORDER_ROW;
    EXPECT_EQ(cublasLtMatrixLayoutSetAttribute(x.layout_a, CUBLASLT_MATRIX_LAYOUT_ORDER, &row_order, sizeof row_order),
              CUBLAS_STATUS_NOT_SUPPORTED);
    const int32_t mode = CUBLASLT_POINTER_MODE_DEVICE;
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(x.desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode, sizeof mode),
              CUBLAS_STATUS_NOT_SUPPORTED);
    const int64_t wide = CUBLAS_OP_N;
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(x.desc, CUBLASLT_MATMUL_DESC_TRANSA, &wide, sizeof wide),
              CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(CublasLt, RefusesOtherScalarsAndPlaces) {
    Product x({8, 8, 8});
    const auto algo = x.propose(1)[0].algo;
    Matrix other(F32, 8, 8, 8, 9);
    const auto run = [&](float alpha, float beta, const void *a, const void *c) {
        return cublasLtMatmul(x.handle, x.desc, &alpha, a, x.layout_a, x.b.data, x.layout_b, &beta, c, x.layout_d,
                              x.d.data, x.layout_d, &algo, workspace.data, Workspace::BYTES, nullptr);
    };
    EXPECT_EQ(run(1, 0, x.a.data, x.d.data), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(run(1, 1, x.a.data, x.d.data), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(run(2, 0, x.a.data, x.d.data), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(run(1, 0.5f, x.a.data, x.d.data), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(run(1, 1, x.a.data, other.data), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(run(1, 0, x.a.data + 4, x.d.data), CUBLAS_STATUS_NOT_SUPPORTED) << "16 bytes were promised";
    OK(cudaDeviceSynchronize());
}

/* An algorithm that was proposed for an aligned bias does not take another one. */
TEST_F(CublasLt, RefusesABiasThatIsLessAlignedThanPromised) {
    Problem p = {8, 8, 8};
    p.bias = true;
    Product x(p);
    x.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)(uintptr_t)16);
    const auto algo = x.propose(1)[0].algo;
    x.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)x.vector.data);
    EXPECT_EQ(x.run(algo, workspace.data, Workspace::BYTES), CUBLAS_STATUS_SUCCESS);
    x.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)(x.vector.data - 4));
    EXPECT_EQ(x.run(algo, workspace.data, Workspace::BYTES), CUBLAS_STATUS_NOT_SUPPORTED);
    OK(cudaDeviceSynchronize());
}

} // namespace
