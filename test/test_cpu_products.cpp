/* Who multiplies on a CPU, bf16 above all: what it says about it, and that every way rounds where the definition does.
 * */
#include "support.h"

#include <map>

namespace {

using namespace support;

/* One way of multiplying. */
struct Way {
    const char *name, *device;
    loom_products products;
    bool library_threads;
    int threads;
};

const Way definition = {"definition", "definition", LOOM_PRODUCTS_AUTO, false, 1};
const Way library = {"library", "cpu", LOOM_PRODUCTS_LIBRARY, false, 3};
const Way library_threaded = {"library_threaded", "cpu", LOOM_PRODUCTS_LIBRARY, true, 2};
const Way automatic = {"auto", "cpu", LOOM_PRODUCTS_AUTO, false, 2};
const Way own = {"own", "cpu", LOOM_PRODUCTS_OWN, false, 3};

Device open_way(const Way &way) {
    loom_device_options options = {};
    options.threads = way.threads;
    options.products = way.products;
    options.library_threads = way.library_threads;
    loom_device *device = nullptr;
    require([&](loom_error *error) { return loom_device_open(&device, way.device, &options, error); });
    return {device, loom_device_close};
}

/* All ways but the definition's; the library's where one is linked. */
std::vector<Way> all_ways() {
    loom_device_options options = {};
    options.products = LOOM_PRODUCTS_LIBRARY;
    loom_device *device = nullptr;
    const bool linked = loom_device_open(&device, "cpu", &options, nullptr);
    loom_device_close(device);
    return linked ? std::vector<Way>{automatic, own, library, library_threaded} : std::vector<Way>{automatic, own};
}
const std::vector<Way> ways = all_ways();

bool says(const Device &device, const char *what) {
    return std::string(device->description).find(what) != std::string::npos;
}

bool is_widened(const Device &device, loom_dtype dtype) {
    return device->emulated_dtypes >> dtype & 1;
}

/* --------------------------------------------------------------------------------------------------- what it says */

TEST(Bf16Products, TheDescriptionSaysHowTheyAreMade) {
    for (const Way &way : ways) {
        const Device device = open_way(way);
        EXPECT_TRUE(is_widened(device, LOOM_F16)) << way.name;
        EXPECT_FALSE(is_widened(device, LOOM_F32)) << way.name;
        EXPECT_EQ(is_widened(device, LOOM_BF16), says(device, "of bf16 widened to fp32")) << device->description;
        EXPECT_NE(is_widened(device, LOOM_BF16), says(device, "of bf16 by ")) << device->description;
        EXPECT_EQ(says(device, "products by gptloom"),
                  !says(device, "products by oneDNN") && !says(device, "OpenBLAS"));
        EXPECT_TRUE(way.products != LOOM_PRODUCTS_OWN || says(device, "products by gptloom")) << device->description;
        EXPECT_TRUE(way.products != LOOM_PRODUCTS_OWN || is_widened(device, LOOM_BF16)) << way.name;
    }
    EXPECT_TRUE(is_widened(open_way(definition), LOOM_BF16));
    const Device oracle = open_device("oracle");
    EXPECT_FALSE(says(oracle, "bf16")) << oracle->description;
}

/* What a processor lacks is not taken by itself; what it has is, where the library knows it. */
TEST(Bf16Products, AutoGoesByTheProcessor) {
    const Device device = open_way(automatic);
#if defined(__x86_64__)
    const bool has = __builtin_cpu_supports("avx512bf16");
    const bool knows = says(device, "oneDNN") && !std::getenv("ONEDNN_MAX_CPU_ISA") && !std::getenv("DNNL_MAX_CPU_ISA");
    const bool takes = says(device, "of bf16 by AVX512_BF16") || says(device, "of bf16 by AMX");
    EXPECT_TRUE(has || is_widened(device, LOOM_BF16)) << device->description;
    EXPECT_TRUE(!has || !knows || takes) << device->description;
#else
    EXPECT_TRUE(is_widened(device, LOOM_BF16)) << device->description;
#endif
}

TEST(Products, ByOthersThanThereAreAreRefused) {
    for (const char *asked : {"onednn", "OWN", "own "}) {
        setenv("LOOM_PRODUCTS", asked, 1);
        loom_device *device = nullptr;
        loom_error error;
        EXPECT_FALSE(loom_device_open(&device, "cpu", nullptr, &error)) << asked;
        EXPECT_NE(std::string(error.message).find("LOOM_PRODUCTS is to be own or library"), std::string::npos);
    }
    unsetenv("LOOM_PRODUCTS");
}

TEST(Bf16Products, HaveAPeak) {
    for (const Way &way : ways) {
        const Device device = open_way(way);
        double peak = 0;
        require([&](loom_error *error) { return device->peak(device.get(), LOOM_BF16, 0.005, &peak, error); });
        EXPECT_GT(peak, 1e8) << way.name;
    }
}

/* -------------------------------------------------------------------------------------------------- what it computes */

/* Matrices of small integers: all sums are exact in fp32, in any order, and too long for bf16. So ways differ only if
 * they round elsewhere. More than one tile in each direction, more than two parts in depth, and none of them whole. */
struct Sizes {
    int64_t N, I, O; /* rows of x, its columns, columns of the output */
};
const Sizes odd = {197, 1013, 421};

/* Memory of a device, and what lies there. */
class Memory {
  public:
    Memory(loom_device *device, size_t bytes) : device_(device), bytes_(bytes) {
        require([&](loom_error *error) { return device->allocate(device, &data_, bytes, error); });
    }
    ~Memory() {
        device_->release(device_, data_, bytes_);
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    void *data() const {
        return data_;
    }
    std::string bytes() const {
        return {(const char *)data_, bytes_};
    }

  private:
    loom_device *device_;
    void *data_ = nullptr;
    size_t bytes_;
};

/* The results of one way, by name. */
class Products {
  public:
    explicit Products(const Way &way, const Sizes &sizes = odd)
        : device_(open_way(way)), N(sizes.N), I(sizes.I), O(sizes.O) {
    }

    std::map<std::string, std::string> run() {
        for (const bool transposed : {false, true}) {
            const loom_view x = integers(N, I, 1), dout = integers(N, O, 2);
            const loom_view weight = transposed ? integers(O, I, 3) : integers(I, O, 3);
            const std::string suffix = transposed ? " transposed" : "";
            run_forward(x, weight, transposed, suffix);
            for (const bool accumulate : {false, true}) {
                const loom_view dx = filled(N, I, LOOM_BF16);
                loom_matmul_backward_input input = {dx, dout, weight, transposed, accumulate};
                call(LOOM_OP_matmul_backward_input, input);
                keep((accumulate ? "dx added" : "dx") + suffix, dx);
            }
            for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16})
                for (const bool accumulate : {false, true})
                    keep(std::string("dweight ") + loom_dtype_name(dtype) + (accumulate ? " added" : "") + suffix,
                         weight_gradient(x, dout, dtype, transposed, accumulate));
        }
        return std::move(results_);
    }

    /* The gradient of a weight that is stored as (I,O) or, transposed, as (O,I), stored and added, is held to sums that
     * are made one by one. */
    void expect_right_weight_gradient(bool transposed) {
        const loom_view x = integers(N, I, 1), dout = integers(N, O, 2);
        const loom_view &left = transposed ? dout : x, &right = transposed ? x : dout;
        const int64_t rows = left.shape[3], columns = right.shape[3];
        const std::vector<float> left_values = floats(left), right_values = floats(right);
        std::vector<float> expected((size_t)(I * O), 0.0f);
        for (int64_t n = 0; n < N; n++)
            for (int64_t r = 0; r < rows; r++) {
                const float factor = left_values[(size_t)(n * rows + r)];
                const float *factors = &right_values[(size_t)(n * columns)];
                float *sums = &expected[(size_t)(r * columns)];
                for (int64_t c = 0; c < columns; c++) sums[c] += factor * factors[c];
            }
        for (const bool accumulate : {false, true}) {
            const loom_view result = weight_gradient(x, dout, LOOM_F32, transposed, accumulate);
            for (size_t i = 0; i < expected.size(); i++)
                ASSERT_EQ(((const float *)result.data)[i], expected[i] + (accumulate ? 3 : 0))
                    << N << "x" << I << "x" << O << ", transposed " << transposed << ", element " << i;
        }
    }

  private:
    loom_view weight_gradient(const loom_view &x, const loom_view &dout, loom_dtype dtype, bool transposed,
                              bool accumulate) {
        const loom_view dweight = transposed ? filled(O, I, dtype) : filled(I, O, dtype);
        call(LOOM_OP_matmul_backward_weight, loom_matmul_backward_weight{dweight, {}, dout, x, transposed, accumulate});
        return dweight;
    }

    void run_forward(const loom_view &x, const loom_view &weight, bool transposed, const std::string &suffix) {
        loom_view bias = integers(1, O, 4);
        bias = loom_view_1d(bias.data, LOOM_BF16, O);
        for (const loom_activation activation : {LOOM_ACTIVATION_NONE, LOOM_ACTIVATION_GELU}) {
            const loom_view out = filled(N, O, LOOM_BF16), before = filled(N, O, LOOM_BF16);
            const bool activated = activation != LOOM_ACTIVATION_NONE;
            loom_matmul_forward a = {out, activated ? before : loom_view{}, x, weight, bias, activation, transposed};
            call(LOOM_OP_matmul_forward, a);
            keep((activated ? "activated" : "out") + suffix, out);
            if (activated) keep("preactivation" + suffix, before);
        }
    }

    loom_view allocate(int64_t rows, int64_t columns, loom_dtype dtype) {
        memories_.push_back(std::make_unique<Memory>(device_.get(), (size_t)(rows * columns) * loom_dtype_size(dtype)));
        return loom_view_2d(memories_.back()->data(), dtype, rows, columns);
    }
    static std::vector<float> floats(const loom_view &view) {
        std::vector<float> values((size_t)(view.shape[2] * view.shape[3]));
        for (size_t i = 0; i < values.size(); i++) values[i] = bf16_to_float(((const uint16_t *)view.data)[i]);
        return values;
    }
    /* Between -7 and 7. */
    loom_view integers(int64_t rows, int64_t columns, uint32_t seed) {
        const loom_view view = allocate(rows, columns, LOOM_BF16);
        uint32_t state = seed;
        for (int64_t i = 0; i < rows * columns; i++) {
            state = state * 1664525 + 1013904223;
            ((uint16_t *)view.data)[i] = float_to_bf16((float)((int)(state >> 16) % 15 - 7));
        }
        return view;
    }
    /* What an output holds before: 3 everywhere. */
    loom_view filled(int64_t rows, int64_t columns, loom_dtype dtype) {
        const loom_view view = allocate(rows, columns, dtype);
        for (int64_t i = 0; i < rows * columns; i++)
            if (dtype == LOOM_F32)
                ((float *)view.data)[i] = 3;
            else
                ((uint16_t *)view.data)[i] = float_to_bf16(3);
        return view;
    }
    void keep(const std::string &name, const loom_view &view) {
        results_[name] = std::string((const char *)view.data, loom_view_extent(&view));
    }

    /* Plans, prepares and runs, as the model does. */
    template <typename Arguments> void call(loom_op op, const Arguments &arguments) {
        const loom_ops *ops = device_->ops;
        const char *why = "";
        ASSERT_TRUE(ops->supports(device_.get(), op, &arguments, &why)) << why;
        require([&](loom_error *error) { return ops->prepare(device_.get(), op, &arguments, error); });
        const size_t bytes = ops->workspace(device_.get(), op, &arguments);
        const Memory workspace(device_.get(), bytes);
        loom_context ctx = {};
        ctx.ops = ops;
        ctx.device = device_.get();
        ctx.workspace = workspace.data();
        ctx.workspace_bytes = bytes;
        run_op(&ctx, arguments);
    }
    static void run_op(loom_context *ctx, const loom_matmul_forward &a) {
        ctx->ops->matmul_forward(ctx, &a);
    }
    static void run_op(loom_context *ctx, const loom_matmul_backward_input &a) {
        ctx->ops->matmul_backward_input(ctx, &a);
    }
    static void run_op(loom_context *ctx, const loom_matmul_backward_weight &a) {
        ctx->ops->matmul_backward_weight(ctx, &a);
    }

    Device device_;
    const int64_t N, I, O;
    std::vector<std::unique_ptr<Memory>> memories_;
    std::map<std::string, std::string> results_;
};

TEST(Bf16Products, RoundWhereTheDefinitionDoes) {
    const std::map<std::string, std::string> reference = Products(definition).run();
    EXPECT_EQ(reference.size(), 18u);
    for (const Way &way : ways)
        for (const auto &[name, bytes] : Products(way).run())
            EXPECT_TRUE(bytes == reference.at(name)) << name << " by way " << way.name;
}

/* Our own copy the left side for all threads: whole, in two parts, or (where it is too wide for that) each thread for
 * itself. */
TEST(Products, WeightGradientsAreRightHoweverTheLeftSideIsCopied) {
    for (const Way &way : {own, definition}) {
        for (const bool transposed : {false, true}) Products(way, odd).expect_right_weight_gradient(transposed);
        Products(way, {1100, 1000, 19}).expect_right_weight_gradient(false);
        Products(way, {150, 19, 8300}).expect_right_weight_gradient(true);
    }
}

} // namespace
