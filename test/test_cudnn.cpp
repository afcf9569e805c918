/* Attention by cuDNN, without a GPU: what the graphs compute, by an interpreter of our own against the oracle; that
 * cuDNN plans them for an H100; which engine it takes, and that a run can go on with it; and what is refused. */
#include "support.h"

#include "cuda/attention_cudnn.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <memory>

#ifdef __SANITIZE_ADDRESS__
#    include <sanitizer/lsan_interface.h>
#endif

using namespace support;

namespace {

/* An attention of some shape: q, k and v lie in one packed tensor, as do their gradients. */
struct Shape {
    int64_t B, Tq, Tk, H, Hkv, D;
    loom_dtype dtype = LOOM_BF16;

    int64_t row() const {
        return (H + 2 * Hkv) * D;
    }
    /* Elements of the packed tensor, and of out. */
    int64_t packed() const {
        return B * std::max(Tq, Tk) * row();
    }
    int64_t outs() const {
        return B * Tq * H * D;
    }
};

const Shape GPT2 = {4, 1024, 1024, 12, 12, 64};

loom_view part(void *data, const Shape &s, int64_t T, int64_t heads, int64_t offset, loom_dtype dtype) {
    loom_view v = loom_view_4d(data, dtype, s.B, T, heads, s.D);
    v.stride[0] = std::max(s.Tq, s.Tk) * s.row();
    v.stride[1] = s.row();
    if (data) v.data = static_cast<char *>(data) + (size_t)offset * loom_dtype_size(dtype);
    return v;
}

loom_attention_forward forward_of(const Shape &s, loom_dtype dtype, void *qkv = nullptr, void *out = nullptr,
                                  void *lse = nullptr) {
    loom_attention_forward a = {};
    a.q = part(qkv, s, s.Tq, s.H, 0, dtype);
    a.k = part(qkv, s, s.Tk, s.Hkv, s.H * s.D, dtype);
    a.v = part(qkv, s, s.Tk, s.Hkv, (s.H + s.Hkv) * s.D, dtype);
    a.out = loom_view_4d(out, dtype, s.B, s.Tq, s.H, s.D);
    a.lse = loom_view_3d(lse, dtype == LOOM_F64 ? LOOM_F64 : LOOM_F32, s.B, s.H, s.Tq);
    a.scale = 0.25f;
    return a;
}

loom_attention_backward backward_of(const Shape &s, loom_dtype dtype, void *qkv = nullptr, void *out = nullptr,
                                    void *lse = nullptr, void *dout = nullptr, void *dqkv = nullptr) {
    const loom_attention_forward f = forward_of(s, dtype, qkv, out, lse), d = forward_of(s, dtype, dqkv, dout);
    loom_attention_backward a = {};
    a.q = f.q, a.k = f.k, a.v = f.v, a.out = f.out, a.lse = f.lse, a.scale = f.scale;
    a.dq = d.q, a.dk = d.k, a.dv = d.v, a.dout = d.out;
    return a;
}

/* NVIDIA's description of an H100. */
const char *const H100 =
    "{\"maxGridSize\": [2147483647, 65535, 65535], \"maxBlockSize\": [1024, 1024, 64], \"regsPerBlock\": 65536, "
    "\"multiProcessorCount\": 132, \"warpSize\": 32, \"maxSharedMemoryPerBlock\": 49152, "
    "\"maxSharedMemoryPerBlockOptin\": 232448, \"reservedSharedMemoryPerBlock\": 1024, \"maxRegistersPerSM\": 65536, "
    "\"maxCtasPerSM\": 32, \"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": 2048, \"pciDeviceId\": 0, "
    "\"isTccDriver\": 0, \"supportCoopLaunch\": 1, \"smClockRateKHz\": 1980000, \"memClockRateKHz\": 2619000, "
    "\"l2CacheSize\": 52428800, \"deviceName\": \"NVIDIA H100 80GB HBM3\", \"deviceVer\": 900, \"driverVer\": 13000, "
    "\"cudaDeviceId\": 0, \"totalGlobalMem\": 85028765696}";

/* ------------------------------------------------------------------------------------------------------ planned by cuDNN */

/* While one lives, what is allocated may leak: the compiler that cuDNN loads and unloads again loses memory. */
class MayLeak {
#ifdef __SANITIZE_ADDRESS__
    __lsan::ScopedDisabler disabler_;
#endif
  public:
    MayLeak() {
    }
};

class Planned : public testing::Test {
  protected:
    void SetUp() override {
        loom_error error;
        if (cudnn_) return;
        /* cuDNN asks for libcuda.so.1 and gets what is loaded under that name. */
        static void *driver = dlopen((fs::read_symlink("/proc/self/exe").parent_path() / "libcuda.so.1").c_str(),
                                     RTLD_NOW | RTLD_GLOBAL);
        ASSERT_NE(driver, nullptr) << dlerror();
        if (loom_cuda_cudnn_create_for(&cudnn_, H100, &tuning_, &error)) return;
        const std::string why = error.message;
        if (why.find("cannot be loaded") != std::string::npos || why.find("built without") != std::string::npos)
            GTEST_SKIP() << why;
        FAIL() << why;
    }
    static void TearDownTestSuite() {
        loom_cuda_cudnn_destroy(cudnn_);
        cudnn_ = nullptr;
        loom_tuning_clear(&tuning_);
    }
    /* "" if cuDNN plans it; else why not. */
    template <typename Arguments> static std::string refusal(loom_op op, const Arguments &a) {
        return refusal_by(cudnn_, op, a);
    }
    template <typename Arguments>
    static std::string refusal_by(loom_cuda_cudnn *cudnn, loom_op op, const Arguments &a) {
        const MayLeak may_leak;
        const char *why = nullptr;
        const bool planned = loom_cuda_cudnn_supports(cudnn, op, &a, &why);
        EXPECT_EQ(planned, why == nullptr);
        return planned ? "" : why;
    }
    std::string forward_refusal(const Shape &s) {
        return refusal(LOOM_OP_attention_forward, forward_of(s, s.dtype));
    }
    std::string backward_refusal(const Shape &s) {
        return refusal(LOOM_OP_attention_backward, backward_of(s, s.dtype));
    }

    static loom_cuda_cudnn *cudnn_; /* of all tests: plans take their time */
    static loom_tuning tuning_;
};

loom_cuda_cudnn *Planned::cudnn_;
loom_tuning Planned::tuning_;

TEST_F(Planned, Gpt2ForAnH100) {
    EXPECT_EQ(std::string(loom_cuda_cudnn_library(cudnn_)).find("cuDNN 9."), 0u);
    EXPECT_EQ(forward_refusal(GPT2), "");
    EXPECT_EQ(backward_refusal(GPT2), "");
    EXPECT_EQ(forward_refusal({4, 1024, 1024, 12, 12, 64, LOOM_F16}), "");
}

TEST_F(Planned, OtherLengthsAndHeads) {
    for (const Shape &s : {Shape{1, 1000, 1000, 8, 2, 128}, Shape{2, 77, 96, 3, 3, 24}}) {
        EXPECT_EQ(forward_refusal(s), "");
        EXPECT_EQ(backward_refusal(s), "");
    }
}

TEST_F(Planned, TheBackwardPassHasRoomForDelta) {
    const loom_attention_forward f = forward_of(GPT2, GPT2.dtype);
    const loom_attention_backward b = backward_of(GPT2, GPT2.dtype);
    ASSERT_EQ(refusal(LOOM_OP_attention_forward, f), "");
    ASSERT_EQ(refusal(LOOM_OP_attention_backward, b), "");
    const size_t delta = (size_t)(GPT2.B * GPT2.H * GPT2.Tq) * sizeof(float);
    EXPECT_GE(loom_cuda_cudnn_workspace(cudnn_, LOOM_OP_attention_backward, &b), delta);
    EXPECT_LT(loom_cuda_cudnn_workspace(cudnn_, LOOM_OP_attention_forward, &f), delta);
}

TEST_F(Planned, WhatOurOwnKernelsAreForIsRefusedInWords) {
    const Shape s = {2, 64, 128, 4, 4, 64};
    EXPECT_NE(forward_refusal({2, 64, 64, 4, 4, 64, LOOM_F32}).find("fp32"), std::string::npos);
    EXPECT_NE(forward_refusal({2, 64, 64, 4, 4, 20}).find("head size"), std::string::npos);
    EXPECT_NE(backward_refusal({2, 64, 64, 4, 4, 136}).find("head size"), std::string::npos);
    loom_attention_forward later = forward_of(s, s.dtype);
    later.first_query = 64;
    EXPECT_NE(refusal(LOOM_OP_attention_forward, later).find("first query"), std::string::npos);
    loom_attention_backward gaps = backward_of(s, s.dtype);
    gaps.dk.stride[1] += 4;
    EXPECT_NE(refusal(LOOM_OP_attention_backward, gaps).find("aligned"), std::string::npos);
}

/* Our own checks pass these; the library's planning must not. */
TEST_F(Planned, WhatMakesNoSenseIsRefusedByCudnn) {
    EXPECT_NE(forward_refusal({2, 64, 64, 5, 3, 64}), "") << "key heads that do not divide the query heads";
    const Shape s = {2, 64, 64, 4, 4, 64};
    loom_attention_forward f = forward_of(s, s.dtype);
    f.k.shape[3] = 32;
    EXPECT_NE(refusal(LOOM_OP_attention_forward, f), "") << "keys narrower than queries";
    loom_attention_backward b = backward_of(s, s.dtype);
    b.v.shape[1] = 32;
    EXPECT_NE(refusal(LOOM_OP_attention_backward, b), "") << "fewer values than keys";
    const std::string once = refusal(LOOM_OP_attention_backward, b);
    EXPECT_EQ(refusal(LOOM_OP_attention_backward, b), once) << "that there is no plan is kept";
}

/* Another run's cuDNN, with a tuning cache given as text. */
class Given {
  public:
    explicit Given(const std::string &text) {
        require([&](loom_error *e) { return loom_tuning_read(&tuning_, "here", text.c_str(), e); });
        require([&](loom_error *e) { return loom_cuda_cudnn_create_for(&cudnn, H100, &tuning_, e); });
    }
    ~Given() {
        loom_cuda_cudnn_destroy(cudnn);
        loom_tuning_clear(&tuning_);
    }
    Given(const Given &) = delete;
    Given &operator=(const Given &) = delete;

    std::string text() const {
        return text_of(tuning_);
    }
    static std::string text_of(const loom_tuning &tuning) {
        char *text = nullptr;
        require([&](loom_error *e) { return loom_tuning_write(&tuning, "here", &text, e); });
        const std::string s = text ? text : "";
        free(text);
        return s;
    }
    template <typename Arguments> void prepare(loom_op op, const Arguments &a) const {
        require([&](loom_error *e) { return loom_cuda_cudnn_prepare(cudnn, op, &a, e); });
    }

    loom_cuda_cudnn *cudnn = nullptr;

  private:
    loom_tuning tuning_ = {};
};

TEST_F(Planned, TheEngineIsChosenOnceAndTakenAgain) {
    const Shape s = {2, 64, 64, 4, 4, 64};
    const loom_attention_forward f = forward_of(s, s.dtype);
    const loom_attention_backward b = backward_of(s, s.dtype);
    const Given first("measured on here\n");
    ASSERT_EQ(refusal_by(first.cudnn, LOOM_OP_attention_forward, f), "");
    EXPECT_EQ(first.text(), "") << "what is only planned, as sizes that do not fit, is no part of a run";
    for (int i = 0; i < 2; i++) {
        first.prepare(LOOM_OP_attention_forward, f);
        first.prepare(LOOM_OP_attention_backward, b);
    }
    const std::string text = first.text();
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3) << text;
    EXPECT_NE(text.find("\nattention forward,bf16,2x64x4:64x4x64,49152:768:64,"), std::string::npos) << text;
    EXPECT_NE(text.find("\nattention backward,bf16,2x64x4:64x4x64,49152:768:64,"), std::string::npos) << text;

    const Given again(text);
    again.prepare(LOOM_OP_attention_backward, b);
    again.prepare(LOOM_OP_attention_forward, f);
    EXPECT_EQ(again.text(), text);
    EXPECT_EQ(loom_cuda_cudnn_workspace(again.cudnn, LOOM_OP_attention_backward, &b),
              loom_cuda_cudnn_workspace(first.cudnn, LOOM_OP_attention_backward, &b));
}

TEST_F(Planned, AnEngineThatCudnnDoesNotAcceptIsRefusedInOneLine) {
    const Shape s = {2, 64, 64, 4, 4, 64};
    const loom_attention_forward f = forward_of(s, s.dtype);
    const Given first("measured on here\n");
    first.prepare(LOOM_OP_attention_forward, f);
    const std::string text = first.text(), key = text.substr(0, text.rfind(' ') + 1);
    const std::string engine = text.substr(key.size(), text.find_first_of(",\n", key.size()) - key.size());
    for (const std::string &other : {std::string("engine99999"), engine + ",44=77777", engine + ",9999=1"}) {
        const Given given(key + other + "\n");
        const std::string why = refusal_by(given.cudnn, LOOM_OP_attention_forward, f);
        EXPECT_EQ(why.find("attention by cuDNN: " + other + " of the run's tuning cache is refused: "), 0u) << why;
        EXPECT_EQ(why.find('\n'), std::string::npos) << why;
        loom_error error;
        EXPECT_FALSE(loom_cuda_cudnn_prepare(given.cudnn, LOOM_OP_attention_forward, &f, &error));
        EXPECT_EQ(error.message, why);
    }
}

TEST(Cudnn, ThatCannotBeLoadedIsSaidInOneLine) {
    /* In a process of its own: a library that is loaded stays. */
    const auto load = [] {
        loom_cuda_cudnn *cudnn = nullptr;
        loom_error error;
        setenv("LOOM_CUDNN", "/nowhere/libcudnn.so.9", 1);
        loom_tuning tuning = {};
        if (loom_cuda_cudnn_create_for(&cudnn, H100, &tuning, &error)) _exit(1);
        const std::string why = error.message;
        const bool absent = why.find("built without") != std::string::npos;
        const bool named = why.find("/nowhere/libcudnn.so.9 cannot be loaded") != std::string::npos;
        _exit(why.find('\n') == std::string::npos && (absent || named) ? 0 : 2);
    };
    testing::GTEST_FLAG(death_test_style) = "threadsafe";
    EXPECT_EXIT(load(), testing::ExitedWithCode(0), "");
}

} // namespace

/* ------------------------------------------------------------------------------------------------------- interpreted here */
#if __has_include(<cudnn.h>)
#    include "cuda/cudnn_engine.h"

namespace {

/* What a graph's descriptors were given, in place of cuDNN. */
struct Descriptor {
    cudnnBackendDescriptorType_t type;
    std::map<int, std::vector<char>> attribute;
    bool finalized = false, destroyed = false;

    template <typename T> std::vector<T> all(int name) const {
        const auto it = attribute.find(name);
        if (it == attribute.end()) return {};
        std::vector<T> values(it->second.size() / sizeof(T));
        memcpy(values.data(), it->second.data(), values.size() * sizeof(T));
        return values;
    }
    template <typename T> T one(int name) const {
        T value = {};
        const auto it = attribute.find(name);
        if (it == attribute.end() || it->second.size() != sizeof value)
            ADD_FAILURE() << "attribute " << name << " was not given";
        else
            memcpy(&value, it->second.data(), sizeof value);
        return value;
    }
    const Descriptor *part(int name) const {
        const auto parts = all<const Descriptor *>(name);
        return parts.empty() ? nullptr : parts[0];
    }
};

std::vector<std::unique_ptr<Descriptor>> recorded;
int calls_until_failure = -1; /* negative: none fails */

cudnnStatus_t count_call() {
    return calls_until_failure >= 0 && calls_until_failure-- == 0 ? CUDNN_STATUS_BAD_PARAM : CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t record_create(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out) {
    recorded.push_back(std::make_unique<Descriptor>());
    recorded.back()->type = type;
    *out = recorded.back().get();
    return count_call();
}

cudnnStatus_t record_destroy(cudnnBackendDescriptor_t d) {
    auto *descriptor = static_cast<Descriptor *>(d);
    EXPECT_FALSE(descriptor->destroyed);
    descriptor->destroyed = true;
    return CUDNN_STATUS_SUCCESS;
}

size_t size_of(cudnnBackendAttributeType_t type) {
    switch (type) {
    case CUDNN_TYPE_BOOLEAN: return sizeof(bool);
    case CUDNN_TYPE_INT64: return sizeof(int64_t);
    case CUDNN_TYPE_BACKEND_DESCRIPTOR: return sizeof(void *);
    default: return sizeof(int); /* enumerations */
    }
}

cudnnStatus_t record_attribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                               cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    const char *bytes = static_cast<const char *>(values);
    auto *descriptor = static_cast<Descriptor *>(d);
    EXPECT_FALSE(descriptor->finalized);
    descriptor->attribute[name].assign(bytes, bytes + (size_t)count * size_of(type));
    return count_call();
}

cudnnStatus_t record_finalize(cudnnBackendDescriptor_t d) {
    static_cast<Descriptor *>(d)->finalized = true;
    return count_call();
}

void no_message(char *message, size_t) {
    *message = 0;
}

const char *error_text(cudnnStatus_t) {
    return "refused by the recorder";
}

loom_cudnn_api recorder() {
    loom_cudnn_api api = {};
    api.GetErrorString = error_text;
    api.GetLastErrorString = no_message;
    api.BackendCreateDescriptor = record_create;
    api.BackendDestroyDescriptor = record_destroy;
    api.BackendSetAttribute = record_attribute;
    api.BackendFinalize = record_finalize;
    return api;
}

/* Runs a recorded graph, operation by operation, in double. */
class Interpreter {
  public:
    /* Where tensors that have memory lie; others come and go. */
    std::map<int64_t, std::vector<double>> memory;
    std::map<int64_t, double *> bound;

    void run(const Descriptor *graph) {
        for (const Descriptor *o : graph->all<const Descriptor *>(CUDNN_ATTR_OPERATIONGRAPH_OPS)) {
            ASSERT_TRUE(o->finalized);
            switch (o->type) {
            case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR: multiply(o); break;
            case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR: pointwise(o); break;
            case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR: reduce(o); break;
            case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR: reshape(o); break;
            default: FAIL() << "an operation that attention has no use for: " << o->type;
            }
        }
    }

  private:
    struct Tensor {
        std::vector<int64_t> dim, stride;
        double *data;

        /* An index that is out of range is broadcast, or, of heads, shared by a group of them. */
        double &at(const int64_t (&index)[4], const int64_t (&dims)[4]) const {
            int64_t offset = 0;
            for (size_t d = 0; d < 4; d++) offset += (index[d] * dim[d] / dims[d]) * stride[d];
            return data[offset];
        }
    };

    Tensor tensor(const Descriptor *d) {
        EXPECT_TRUE(d->finalized);
        Tensor t = {d->all<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS), d->all<int64_t>(CUDNN_ATTR_TENSOR_STRIDES), nullptr};
        const int64_t id = d->one<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
        const bool is_virtual = d->one<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL);
        EXPECT_EQ(bound.count(id), is_virtual ? 0u : 1u) << "tensor " << id;
        int64_t last = 0;
        for (size_t i = 0; i < 4; i++) last += (t.dim[i] - 1) * t.stride[i];
        std::vector<double> &own = memory[id];
        if (is_virtual && own.empty()) own.assign((size_t)last + 1, std::nan(""));
        t.data = is_virtual ? own.data() : bound[id];
        return t;
    }

    /* For each index of four dimensions. */
    template <typename F> static void each(const std::vector<int64_t> &dim, F f) {
        const int64_t dims[4] = {dim[0], dim[1], dim[2], dim[3]};
        int64_t i[4];
        for (i[0] = 0; i[0] < dims[0]; i[0]++)
            for (i[1] = 0; i[1] < dims[1]; i[1]++)
                for (i[2] = 0; i[2] < dims[2]; i[2]++)
                    for (i[3] = 0; i[3] < dims[3]; i[3]++) f(i, dims);
    }

    void multiply(const Descriptor *o) {
        const Tensor a = tensor(o->part(CUDNN_ATTR_OPERATION_MATMUL_ADESC));
        const Tensor b = tensor(o->part(CUDNN_ATTR_OPERATION_MATMUL_BDESC));
        const Tensor c = tensor(o->part(CUDNN_ATTR_OPERATION_MATMUL_CDESC));
        ASSERT_EQ(a.dim[3], b.dim[2]);
        ASSERT_EQ(a.dim[2], c.dim[2]);
        ASSERT_EQ(b.dim[3], c.dim[3]);
        each(c.dim, [&](const int64_t(&i)[4], const int64_t(&dims)[4]) {
            double sum = 0;
            for (int64_t k = 0; k < a.dim[3]; k++) {
                const int64_t left[4] = {i[0], i[1], i[2], k}, left_dims[4] = {dims[0], dims[1], dims[2], a.dim[3]};
                const int64_t right[4] = {i[0], i[1], k, i[3]}, right_dims[4] = {dims[0], dims[1], a.dim[3], dims[3]};
                sum += a.at(left, left_dims) * b.at(right, right_dims);
            }
            c.at(i, dims) = sum;
        });
    }

    static double apply(cudnnPointwiseMode_t mode, double x, double b, double t, int64_t index) {
        switch (mode) {
        case CUDNN_POINTWISE_ADD: return x + b;
        case CUDNN_POINTWISE_SUB: return x - b;
        case CUDNN_POINTWISE_MUL: return x * b;
        case CUDNN_POINTWISE_DIV: return x / b;
        case CUDNN_POINTWISE_EXP: return std::exp(x);
        case CUDNN_POINTWISE_LOG: return std::log(x);
        case CUDNN_POINTWISE_GEN_INDEX: return (double)index;
        case CUDNN_POINTWISE_CMP_GE: return x >= b;
        case CUDNN_POINTWISE_BINARY_SELECT: return t != 0 ? x : b;
        default: ADD_FAILURE() << "a pointwise mode that attention has no use for: " << mode; return std::nan("");
        }
    }

    void pointwise(const Descriptor *o) {
        const Descriptor *how = o->part(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
        const auto mode = how->one<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
        const auto axis = how->all<int64_t>(CUDNN_ATTR_POINTWISE_AXIS);
        const Descriptor *b = o->part(CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
        const Descriptor *t = o->part(CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
        const Tensor x = tensor(o->part(CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
        const Tensor y = tensor(o->part(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
        const Tensor other = b ? tensor(b) : x, condition = t ? tensor(t) : x;
        each(y.dim, [&](const int64_t(&i)[4], const int64_t(&dims)[4]) {
            y.at(i, dims) = apply(mode, x.at(i, dims), other.at(i, dims), condition.at(i, dims),
                                  axis.empty() ? 0 : i[axis[0]]);
        });
    }

    void reduce(const Descriptor *o) {
        const auto mode =
            o->part(CUDNN_ATTR_OPERATION_REDUCTION_DESC)->one<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR);
        const Tensor x = tensor(o->part(CUDNN_ATTR_OPERATION_REDUCTION_XDESC));
        const Tensor y = tensor(o->part(CUDNN_ATTR_OPERATION_REDUCTION_YDESC));
        ASSERT_TRUE(mode == CUDNN_REDUCE_TENSOR_ADD || mode == CUDNN_REDUCE_TENSOR_MAX);
        each(y.dim, [&](const int64_t(&i)[4], const int64_t(&dims)[4]) {
            y.at(i, dims) = mode == CUDNN_REDUCE_TENSOR_ADD ? 0 : -INFINITY;
        });
        each(x.dim, [&](const int64_t(&i)[4], const int64_t(&dims)[4]) {
            double &to = y.at(i, dims);
            to = mode == CUDNN_REDUCE_TENSOR_ADD ? to + x.at(i, dims) : std::max(to, x.at(i, dims));
        });
    }

    /* The same memory under other dimensions and strides. */
    void reshape(const Descriptor *o) {
        const Tensor x = tensor(o->part(CUDNN_ATTR_OPERATION_RESHAPE_XDESC));
        const Tensor y = tensor(o->part(CUDNN_ATTR_OPERATION_RESHAPE_YDESC));
        each(y.dim, [&](const int64_t(&i)[4], const int64_t(&)[4]) {
            int64_t offset = 0;
            for (size_t d = 0; d < 4; d++) offset += i[d] * y.stride[d];
            y.data[offset] = x.data[offset];
        });
    }
};

/* Forward and backward on the oracle and by the interpreted graphs. */
class Graph : public testing::TestWithParam<Shape> {
  protected:
    struct Tensors {
        std::vector<double> qkv, out, lse, dout, dqkv;
    };

    static Tensors tensors(const Shape &s) {
        Tensors t;
        for (int64_t i = 0; i < s.packed(); i++) t.qkv.push_back(std::sin(12.9898 * (double)(i + 1)) * 2);
        for (int64_t i = 0; i < s.outs(); i++) t.dout.push_back(std::cos(78.233 * (double)(i + 1)));
        t.out.assign((size_t)s.outs(), 0);
        t.lse.assign((size_t)(s.B * s.H * s.Tq), 0);
        t.dqkv.assign((size_t)s.packed(), 0);
        return t;
    }

    static void run_oracle(const Shape &s, Tensors *t) {
        Device oracle = open_device("oracle");
        const auto f = forward_of(s, LOOM_F64, t->qkv.data(), t->out.data(), t->lse.data());
        const auto b = backward_of(s, LOOM_F64, t->qkv.data(), t->out.data(), t->lse.data(), t->dout.data(),
                                   t->dqkv.data());
        loom_context ctx = {};
        ctx.ops = oracle->ops;
        ctx.device = oracle.get();
        ctx.workspace_bytes = std::max(oracle->ops->workspace(oracle.get(), LOOM_OP_attention_forward, &f),
                                       oracle->ops->workspace(oracle.get(), LOOM_OP_attention_backward, &b));
        std::vector<char> workspace(ctx.workspace_bytes + 256);
        ctx.workspace = workspace.data() + (256 - (uintptr_t)workspace.data() % 256);
        oracle->ops->attention_forward(&ctx, &f);
        oracle->ops->attention_backward(&ctx, &b);
    }

    static void run_graph(const Shape &s, const loom_cudnn_attention &attention, Tensors *t) {
        const loom_cudnn_api api = recorder();
        auto graph = std::make_unique<loom_cudnn_graph>();
        recorded.clear();
        ASSERT_TRUE(loom_cudnn_graph_build(graph.get(), &api, nullptr, &attention)) << graph->message;
        Interpreter interpreter;
        double scale = 0.25, minus_infinity = -INFINITY, one = 1;
        std::vector<double> delta((size_t)(s.B * s.H * s.Tq));
        const int64_t k = s.H * s.D, v = (s.H + s.Hkv) * s.D;
        interpreter.bound = {{LOOM_CUDNN_Q, t->qkv.data()},
                             {LOOM_CUDNN_K, t->qkv.data() + k},
                             {LOOM_CUDNN_V, t->qkv.data() + v},
                             {LOOM_CUDNN_OUT, t->out.data()},
                             {LOOM_CUDNN_LSE, t->lse.data()},
                             {LOOM_CUDNN_SCALE, &scale},
                             {LOOM_CUDNN_MINUS_INFINITY, &minus_infinity},
                             {LOOM_CUDNN_ONE, &one},
                             {LOOM_CUDNN_DELTA, delta.data()},
                             {LOOM_CUDNN_DOUT, t->dout.data()},
                             {LOOM_CUDNN_DQ, t->dqkv.data()},
                             {LOOM_CUDNN_DK, t->dqkv.data() + k},
                             {LOOM_CUDNN_DV, t->dqkv.data() + v}};
        interpreter.run(static_cast<const Descriptor *>(graph->graph));
        loom_cudnn_graph_destroy(graph.get());
    }

    static void expect_near(const std::vector<double> &found, const std::vector<double> &expected, const char *what) {
        ASSERT_EQ(found.size(), expected.size());
        for (size_t i = 0; i < found.size(); i++)
            ASSERT_NEAR(found[i], expected[i], 1e-12 * (1 + std::fabs(expected[i]))) << what << " " << i;
    }
};

TEST_P(Graph, ComputesWhatTheOracleComputes) {
    const Shape s = GetParam();
    Tensors expected = tensors(s), found = tensors(s);
    run_oracle(s, &expected);
    const loom_attention_forward f = forward_of(s, LOOM_BF16);
    const loom_attention_backward b = backward_of(s, LOOM_BF16);
    run_graph(s, {&f.q, &f.k, &f.v, &f.out, &f.lse, nullptr, nullptr, nullptr, nullptr}, &found);
    expect_near(found.out, expected.out, "out");
    expect_near(found.lse, expected.lse, "lse");
    run_graph(s, {&b.q, &b.k, &b.v, &b.out, &b.lse, &b.dout, &b.dq, &b.dk, &b.dv}, &found);
    expect_near(found.dqkv, expected.dqkv, "dqkv");
    expect_near(found.qkv, expected.qkv, "inputs");
    expect_near(found.dout, expected.dout, "inputs");
}

std::string name_of_shape(const testing::TestParamInfo<Shape> &instance) {
    const Shape &s = instance.param;
    return "B" + std::to_string(s.B) + "Tq" + std::to_string(s.Tq) + "Tk" + std::to_string(s.Tk) + "H" +
           std::to_string(s.H) + "Hkv" + std::to_string(s.Hkv) + "D" + std::to_string(s.D);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Graph,
                         testing::Values(Shape{1, 1, 1, 1, 1, 8}, Shape{2, 7, 7, 3, 3, 8}, Shape{2, 5, 5, 4, 2, 8},
                                         Shape{1, 4, 9, 2, 2, 16}, Shape{3, 6, 6, 6, 1, 8}),
                         name_of_shape);

/* Whichever call fails, the graph is refused with what cuDNN said. */
TEST(CudnnGraph, IsRefusedWhateverCallFails) {
    const Shape s = {2, 7, 7, 4, 2, 8};
    const loom_attention_backward b = backward_of(s, LOOM_BF16);
    const loom_cudnn_attention attention = {&b.q, &b.k, &b.v, &b.out, &b.lse, &b.dout, &b.dq, &b.dk, &b.dv};
    const loom_cudnn_api api = recorder();
    auto graph = std::make_unique<loom_cudnn_graph>();
    int failures = 0;
    for (;; failures++) {
        recorded.clear();
        calls_until_failure = failures;
        const bool built = loom_cudnn_graph_build(graph.get(), &api, nullptr, &attention);
        const bool failed = calls_until_failure < 0;
        calls_until_failure = -1;
        loom_cudnn_graph_destroy(graph.get());
        ASSERT_EQ(built, !failed) << "call " << failures;
        if (built) break;
        EXPECT_STREQ(graph->message, "refused by the recorder");
    }
    EXPECT_GT(failures, 200);
}

/* ------------------------------------------------------------------------------------------------------------ engines
 * A library of our own, that proposes engines for any graph. */

struct Engine {
    int64_t index;
    bool deterministic, compiles;
    std::vector<std::pair<int, int64_t>> knobs;
};

const std::vector<Engine> engines = {
    {3, false, true, {}}, {5, true, false, {{2, 7}}}, {8, true, true, {{24, 3}, {27, -1}}}, {9, true, true, {}}};

template <typename T> void put(Descriptor *d, int name, const std::vector<T> &values) {
    d->attribute[name].resize(values.size() * sizeof(T));
    memcpy(d->attribute[name].data(), values.data(), values.size() * sizeof(T));
}

/* What the proposal of an engine says of itself. */
void describe_proposal(Descriptor *config, const Engine &engine) {
    put<int64_t>(config, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, {engine.index});
    config->finalized = true;
}

const Engine *engine_numbered(const Descriptor *d) {
    const auto index = d->all<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
    for (const Engine &engine : engines)
        if (!index.empty() && engine.index == index[0]) return &engine;
    return nullptr;
}

cudnnStatus_t propose(cudnnBackendDescriptor_t from, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                      int64_t asked, int64_t *count, void *values) {
    auto *d = static_cast<Descriptor *>(from);
    Descriptor *const *parts = static_cast<Descriptor *const *>(values);
    const Engine *engine = engine_numbered(d);
    std::vector<char> &own = d->attribute[name];
    EXPECT_TRUE(d->finalized);
    *count = 1;
    switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
        *count = (int64_t)engines.size();
        for (size_t i = 0; i < engines.size(); i++) describe_proposal(parts[i], engines[i]);
        break;
    case CUDNN_ATTR_ENGINECFG_ENGINE: describe_proposal(parts[0], *engine); break;
    case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES:
        *count = (int64_t)engine->knobs.size();
        for (size_t i = 0; i < engine->knobs.size(); i++) {
            put<int>(parts[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, {engine->knobs[i].first});
            put<int64_t>(parts[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, {engine->knobs[i].second});
            parts[i]->finalized = true;
        }
        break;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
        *count = engine->deterministic ? 1 : 2;
        static_cast<int *>(values)[0] = CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
        if (!engine->deterministic) static_cast<int *>(values)[1] = CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
        break;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: *static_cast<int64_t *>(values) = 4096; break;
    default: EXPECT_EQ(own.size(), size_of(type)) << "attribute " << name; memcpy(values, own.data(), own.size());
    }
    EXPECT_LE(*count, asked);
    return count_call();
}

/* The engine that a plan is made of, proposed or named. */
const Engine *engine_of(const Descriptor *plan) {
    const Descriptor *config = plan->part(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    const Descriptor *named = config->part(CUDNN_ATTR_ENGINECFG_ENGINE);
    return engine_numbered(named ? named : config);
}

cudnnStatus_t finalize_engine(cudnnBackendDescriptor_t d) {
    const auto *descriptor = static_cast<Descriptor *>(d);
    if (descriptor->type == CUDNN_BACKEND_ENGINE_DESCRIPTOR && !engine_numbered(descriptor))
        return CUDNN_STATUS_BAD_PARAM;
    if (descriptor->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR && !engine_of(descriptor)->compiles)
        return CUDNN_STATUS_NOT_SUPPORTED;
    return record_finalize(d);
}

class CudnnEngine : public testing::Test {
  protected:
    CudnnEngine() {
        api = recorder();
        api.BackendGetAttribute = propose;
        api.BackendFinalize = finalize_engine;
        graph->graph = &a_graph;
        recorded.clear();
    }
    /* All that was made on the way is gone again. */
    void make(const char *given) {
        loom_cudnn_plan_make(&plan, &api, graph.get(), &properties, given);
        for (const auto &d : recorded) EXPECT_EQ(d->destroyed, plan.plan != d.get()) << d->type;
    }
    const Descriptor *made() const {
        return static_cast<const Descriptor *>(plan.plan);
    }

    Descriptor a_graph = {}, properties = {};
    std::unique_ptr<loom_cudnn_graph> graph = std::make_unique<loom_cudnn_graph>();
    loom_cudnn_api api = {};
    loom_cudnn_plan plan = {};
};

TEST_F(CudnnEngine, IsTheFirstDeterministicOneThatCompiles) {
    make(nullptr);
    ASSERT_NE(plan.plan, nullptr) << plan.why;
    EXPECT_STREQ(plan.engine, "engine8,24=3,27=-1");
    EXPECT_EQ(engine_of(made())->index, 8);
    EXPECT_EQ(plan.workspace, 4096u);
}

TEST_F(CudnnEngine, IsTheOneThatIsNamedWithItsKnobs) {
    make("engine8,24=4,27=-15");
    ASSERT_NE(plan.plan, nullptr) << plan.why;
    EXPECT_STREQ(plan.engine, "engine8,24=4,27=-15");
    const Descriptor *config = made()->part(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    const Descriptor *engine = config->part(CUDNN_ATTR_ENGINECFG_ENGINE);
    EXPECT_EQ(engine->one<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX), 8);
    EXPECT_EQ(engine->part(CUDNN_ATTR_ENGINE_OPERATION_GRAPH), &a_graph);
    EXPECT_EQ(engine->part(CUDNN_ATTR_ENGINE_DEVICEPROP), &properties);
    const auto knobs = config->all<const Descriptor *>(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES);
    ASSERT_EQ(knobs.size(), 2u);
    EXPECT_EQ(knobs[0]->one<int>(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE), 24);
    EXPECT_EQ(knobs[0]->one<int64_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE), 4);
    EXPECT_EQ(knobs[1]->one<int>(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE), 27);
    EXPECT_EQ(knobs[1]->one<int64_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE), -15);
    recorded.clear();
    make("engine9");
    ASSERT_NE(plan.plan, nullptr) << plan.why;
    EXPECT_EQ(engine_of(made())->index, 9);
}

TEST_F(CudnnEngine, ThatIsNamedIsRefusedIfItIsNotThereOrWillNotDo) {
    const std::pair<std::string, std::string> refused[] = {{"engine4", "refused by the recorder"},
                                                           {"engine3", "it is not deterministic"},
                                                           {"engine5,2=7", "refused by the recorder"}};
    for (const auto &[given, why] : refused) {
        recorded.clear();
        make(given.c_str());
        EXPECT_EQ(plan.plan, nullptr);
        EXPECT_EQ(plan.why, given + " of the run's tuning cache is refused: " + why);
    }
}

TEST_F(CudnnEngine, WhateverCallFailsNothingIsLeftBehind) {
    for (const char *given : {static_cast<const char *>(nullptr), "engine8,24=3,27=-1"}) {
        int failures = 0;
        for (;; failures++) {
            recorded.clear();
            calls_until_failure = failures;
            make(given);
            const bool failed = calls_until_failure < 0;
            calls_until_failure = -1;
            if (!failed) break;
            EXPECT_NE(plan.plan == nullptr, plan.why[0] == 0) << "call " << failures;
            if (given) {
                EXPECT_EQ(plan.plan, nullptr) << "call " << failures;
            }
        }
        EXPECT_NE(plan.plan, nullptr);
        EXPECT_GT(failures, 15);
    }
}

} // namespace
#endif
