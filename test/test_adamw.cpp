/* What the cases of adamw cannot compare with the oracle by bits: how weights and moments are rounded. On the
 * definition, and on "cuda" where there is one. */
#include "gptloom/device.h"
#include "base/random.h"

#include "cases/case_internal.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace {

struct DeviceCloser {
    void operator()(loom_device *d) const {
        loom_device_close(d);
    }
};

class AdamW : public testing::TestWithParam<const char *> {
  protected:
    std::unique_ptr<loom_device, DeviceCloser> device;

    void SetUp() override {
        loom_device *opened = nullptr;
        loom_error error;
        if (!loom_device_open(&opened, GetParam(), nullptr, &error)) GTEST_SKIP() << error.message;
        device.reset(opened);
    }
};

/* A vector of any dtype in a device's memory, from element `shift` of it on. */
class Vector {
  public:
    Vector(loom_device *device, loom_dtype dtype, const std::vector<double> &values, int64_t shift = 0)
        : device_(device), dtype_(dtype), n_(static_cast<int64_t>(values.size())), shift_(shift) {
        loom_error error;
        if (!device->allocate(device, &memory_, bytes(), &error)) throw std::runtime_error(error.message);
        std::vector<unsigned char> stored(bytes());
        for (size_t i = 0; i < values.size(); i++)
            loom_case_store(&stored[(i + static_cast<size_t>(shift)) * loom_dtype_size(dtype)], dtype, values[i]);
        device->copy(device, nullptr, memory_, stored.data(), bytes(), LOOM_HOST_TO_DEVICE);
        device->synchronize(device, nullptr, nullptr);
    }
    Vector(const Vector &) = delete;
    ~Vector() {
        device_->release(device_, memory_, bytes());
    }

    /* Elements first .. first + n - 1, to the end if n is -1. */
    loom_view view(int64_t first = 0, int64_t n = -1) const {
        char *data = static_cast<char *>(memory_) + static_cast<size_t>(shift_ + first) * loom_dtype_size(dtype_);
        return loom_view_1d(data, dtype_, n < 0 ? n_ - first : n);
    }

    std::vector<double> values() const {
        std::vector<unsigned char> stored(bytes());
        loom_error error;
        device_->copy(device_, nullptr, stored.data(), memory_, bytes(), LOOM_DEVICE_TO_HOST);
        if (!device_->synchronize(device_, nullptr, &error)) throw std::runtime_error(error.message);
        std::vector<double> values(static_cast<size_t>(n_));
        for (size_t i = 0; i < values.size(); i++)
            values[i] = loom_case_load(&stored[(i + static_cast<size_t>(shift_)) * loom_dtype_size(dtype_)], dtype_);
        return values;
    }

  private:
    size_t bytes() const {
        return static_cast<size_t>(n_ + shift_) * loom_dtype_size(dtype_);
    }

    loom_device *device_;
    loom_dtype dtype_;
    int64_t n_, shift_;
    void *memory_ = nullptr;
};

/* The scalars of a step, in a device's memory. */
class Scalars {
  public:
    Scalars(loom_device *device, const loom_scalars &scalars) : device_(device) {
        loom_error error;
        if (!device->allocate(device, &memory_, sizeof scalars, &error)) throw std::runtime_error(error.message);
        device->copy(device, nullptr, memory_, &scalars, sizeof scalars, LOOM_HOST_TO_DEVICE);
        device->synchronize(device, nullptr, nullptr);
    }
    Scalars(const Scalars &) = delete;
    ~Scalars() {
        device_->release(device_, memory_, sizeof(loom_scalars));
    }
    const loom_scalars *get() const {
        return static_cast<const loom_scalars *>(memory_);
    }

  private:
    loom_device *device_;
    void *memory_ = nullptr;
};

void run(loom_device *device, const struct loom_adamw &arguments) {
    loom_context ctx = {};
    ctx.ops = device->ops;
    ctx.device = device;
    const char *why = "";
    ASSERT_TRUE(device->ops->supports(device, LOOM_OP_adamw, &arguments, &why)) << why;
    device->ops->adamw(&ctx, &arguments);
}

loom_scalars some_scalars(int64_t updates) {
    loom_scalars s = {};
    s.in.learning_rate = 0.3f;
    s.in.beta1 = 0.9f;
    s.in.beta2 = 0.99f;
    s.in.epsilon = 1e-8f;
    s.in.weight_decay = 0.1f;
    s.out.gradient_factor = 0.7f;
    s.out.bias_correction1 = 0.271f;
    s.out.bias_correction2 = 0.0297f;
    s.state.updates = updates;
    s.state.loss_scale = 1;
    return s;
}

std::vector<double> normals(loom_dtype dtype, size_t n, uint32_t stream) {
    std::vector<float> values(n);
    loom_random_normal(values.data(), static_cast<int64_t>(n), 7, LOOM_RANDOM_TEST, stream, 0);
    std::vector<double> rounded(n);
    for (size_t i = 0; i < n; i++) rounded[i] = loom_case_round(dtype, static_cast<double>(values[i]));
    return rounded;
}

double absolute(double x) {
    return std::fabs(x);
}

/* Rounds as ops.h says, from its words: cut off after adding 16 bits of the counter's half-word. */
double rounded_stochastically(double value, loom_random_purpose purpose, uint64_t seed, uint32_t updates,
                              uint64_t place) {
    const loom_random4 random = loom_random(seed, purpose, updates, place / 8);
    const uint32_t half = place % 8, word = random.word[half / 2];
    const float single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    bits += half % 2 ? word >> 16 : word & 0xFFFF;
    const uint16_t kept = static_cast<uint16_t>(bits >> 16);
    return loom_case_load(&kept, LOOM_BF16);
}

/* What a step is run with, and what it leaves. */
struct Stored {
    loom_dtype parameter, copy, gradient, moment; /* copy: fp32 for none */
};

struct Updated {
    std::vector<double> parameter, copy, moment1, moment2;
};

constexpr uint64_t rounding_seed = 0x123456789ABCDEFull;
constexpr int64_t first_place = (int64_t{1} << 35) + 5;

loom_ranges all_of(int64_t n) {
    return {1, {{0, n}}};
}

/* One step with decay, vectors from different elements of their memory on. */
Updated step(loom_device *device, const Stored &stored, const Scalars &scalars, const Updated &start,
             const std::vector<double> &slope, int64_t shift) {
    Vector parameter(device, stored.parameter, start.parameter, shift), gradient(device, stored.gradient, slope, shift);
    Vector copy(device, stored.copy, start.parameter, 2 * shift);
    Vector m(device, stored.moment, start.moment1, shift / 2), v(device, stored.moment, start.moment2, 3 * shift);
    struct loom_adamw a = {};
    a.parameter = parameter.view();
    if (stored.copy != LOOM_F32) a.copy = copy.view();
    a.gradient = gradient.view();
    a.moment1 = m.view();
    a.moment2 = v.view();
    a.scalars = scalars.get();
    a.decayed = all_of(static_cast<int64_t>(slope.size()));
    a.seed = rounding_seed;
    a.first = first_place;
    run(device, a);
    return {parameter.values(), copy.values(), m.values(), v.values()};
}

/* Fails unless `found` is `exact`: as it is in fp32, in bf16 rounded with the random bits of each element's place. */
void expect_rounded(const std::vector<double> &found, const std::vector<double> &exact, loom_dtype dtype,
                    loom_random_purpose purpose) {
    size_t away = 0;
    for (size_t i = 0; i < found.size(); i++) {
        const uint64_t place = static_cast<uint64_t>(first_place) + i;
        const double expected = dtype == LOOM_F32 ? exact[i]
                                                  : rounded_stochastically(exact[i], purpose, rounding_seed, 41, place);
        ASSERT_EQ(found[i], expected) << i << " of purpose " << purpose;
        away += found[i] != loom_case_round(dtype, exact[i]);
    }
    if (dtype == LOOM_BF16) {
        EXPECT_GT(away, found.size() / 8) << "as if rounded to nearest";
    }
}

/* One step with everything in fp32 gives the sums before rounding. Starts and sizes such that no vector is aligned as
 * another, and such that all are. */
TEST_P(AdamW, RoundsToTheBit) {
    const size_t n = 3001;
    const Scalars scalars(device.get(), some_scalars((int64_t{1} << 32) + 41));
    Updated start = {normals(LOOM_BF16, n, 1), {}, normals(LOOM_BF16, n, 2), normals(LOOM_BF16, n, 3)};
    for (double &x : start.moment2) x = absolute(x);
    const std::vector<double> slope = normals(LOOM_BF16, n, 4); /* exact in both types */
    for (loom_dtype gradient : {LOOM_F32, LOOM_BF16})
        for (int64_t shift : {0, 3}) {
            const Stored wide = {LOOM_F32, LOOM_F32, gradient, LOOM_F32};
            const Updated exact = step(device.get(), wide, scalars, start, slope, shift);
            for (loom_dtype moment : {LOOM_F32, LOOM_BF16})
                for (const auto &[parameter, copy] : std::vector<std::pair<loom_dtype, loom_dtype>>{
                         {LOOM_F32, LOOM_F32}, {LOOM_F32, LOOM_BF16}, {LOOM_F32, LOOM_F16}, {LOOM_BF16, LOOM_F32}}) {
                    SCOPED_TRACE(std::string(loom_dtype_name(parameter)) + ", copy " + loom_dtype_name(copy) +
                                 ", gradient " + loom_dtype_name(gradient) + ", moments " + loom_dtype_name(moment));
                    const Stored stored = {parameter, copy, gradient, moment};
                    const Updated found = step(device.get(), stored, scalars, start, slope, shift);
                    expect_rounded(found.parameter, exact.parameter, parameter, LOOM_RANDOM_ROUNDING);
                    expect_rounded(found.moment1, exact.moment1, moment, LOOM_RANDOM_ROUNDING_MOMENT1);
                    expect_rounded(found.moment2, exact.moment2, moment, LOOM_RANDOM_ROUNDING_MOMENT2);
                    for (size_t i = 0; i < n; i++) {
                        const bool given = copy != LOOM_F32;
                        ASSERT_EQ(found.copy[i], given ? loom_case_round(copy, exact.parameter[i]) : start.parameter[i])
                            << i;
                    }
                }
        }
}

/* Of 2500 elements from `first` on, those that are decayed: of three tensors between others. */
loom_ranges decayed_from(int64_t first, int64_t count) {
    loom_ranges found = {};
    for (const auto &[from, to] : {std::pair<int64_t, int64_t>{0, 9}, {11, 1024}, {1100, 2331}}) {
        const int64_t begin = std::max<int64_t>(from - first, 0), end = std::min(to - first, count);
        if (begin < end) found.at[found.n++] = {begin, end};
    }
    return found;
}

/* The bits of an element depend on its place and on whether it is decayed, not on what it is updated with: one op does
 * to several tensors what one op for each did. */
TEST_P(AdamW, RoundsTheSameInAnyRanges) {
    const size_t n = 2500;
    const Scalars scalars(device.get(), some_scalars(3));
    const std::vector<double> start = normals(LOOM_BF16, n, 1), zeros(n, 0), ones(n, 1);
    for (loom_dtype moment : {LOOM_F32, LOOM_BF16}) {
        std::vector<std::vector<double>> whole;
        for (const std::vector<int64_t> &cuts :
             std::vector<std::vector<int64_t>>{{0, 2500}, {0, 1, 12, 1029, 2500}, {0, 9, 11, 1024, 1100, 2331, 2500}}) {
            Vector parameter(device.get(), LOOM_BF16, start), gradient(device.get(), LOOM_F32, start);
            Vector m(device.get(), moment, zeros), v(device.get(), moment, ones);
            for (size_t i = 0; i + 1 < cuts.size(); i++) {
                const int64_t from = cuts[i], count = cuts[i + 1] - cuts[i];
                struct loom_adamw a = {};
                a.parameter = parameter.view(from, count);
                a.gradient = gradient.view(from, count);
                a.moment1 = m.view(from, count);
                a.moment2 = v.view(from, count);
                a.scalars = scalars.get();
                a.decayed = decayed_from(from, count);
                a.seed = 9;
                a.first = 1000 + from;
                run(device.get(), a);
            }
            const std::vector<std::vector<double>> found = {parameter.values(), m.values(), v.values()};
            if (whole.empty()) whole = found;
            EXPECT_EQ(found, whole);
        }
    }
}

/* Gaps are updated with the tensors between which they lie, decayed or not, whatever is rounded how; and an empty range
 * is none. Every other element is a gap. */
TEST_P(AdamW, KeepsZerosOfGaps) {
    const size_t n = 1000;
    const Scalars scalars(device.get(), some_scalars(3));
    std::vector<double> start = normals(LOOM_BF16, n, 1);
    for (size_t i = 0; i < n; i += 2) start[i] = 0;
    std::vector<double> squares = start;
    for (double &x : squares) x *= x;
    for (loom_dtype stored : {LOOM_F32, LOOM_BF16}) {
        Vector parameter(device.get(), stored, start), gradient(device.get(), stored, start);
        Vector m(device.get(), stored, start), v(device.get(), stored, squares);
        struct loom_adamw a = {};
        a.parameter = parameter.view();
        a.gradient = gradient.view();
        a.moment1 = m.view();
        a.moment2 = v.view();
        a.scalars = scalars.get();
        a.decayed = {2, {{300, 300}, {400, 1000}}};
        a.seed = 13;
        run(device.get(), a);
        for (const std::vector<double> &found : {parameter.values(), m.values(), v.values()})
            for (size_t i = 0; i < n; i++) {
                if (i % 2)
                    ASSERT_NE(found[i], 0) << i;
                else
                    ASSERT_TRUE(found[i] == 0 && !std::signbit(found[i])) << i;
            }
    }
}

/* A step without a gradient on moments of bf16, which thereby shrink by their betas; returns them. */
std::pair<std::vector<double>, std::vector<double>> decayed(loom_device *device, const std::vector<double> &m_start,
                                                            const std::vector<double> &v_start, float beta,
                                                            int64_t updates) {
    loom_scalars s = some_scalars(updates);
    s.in.beta1 = s.in.beta2 = beta;
    const Scalars scalars(device, s);
    const std::vector<double> zeros(m_start.size(), 0);
    Vector parameter(device, LOOM_F32, zeros), gradient(device, LOOM_F32, zeros);
    Vector m(device, LOOM_BF16, m_start), v(device, LOOM_BF16, v_start);
    struct loom_adamw a = {};
    a.parameter = parameter.view();
    a.gradient = gradient.view();
    a.moment1 = m.view();
    a.moment2 = v.view();
    a.scalars = scalars.get();
    a.seed = 11;
    run(device, a);
    return {m.values(), v.values()};
}

/* Moments of one that shrink by a part of the distance to the next number below arrive there in that part of all
 * elements, and the two of an element independently of each other: within five deviations of the binomial
 * distribution. */
TEST_P(AdamW, RoundsMomentsDownAsOftenAsIsLost) {
    const size_t n = 20000;
    const std::vector<double> ones(n, 1);
    for (double fraction : {0.0, 0.125, 0.5, 0.9375}) {
        const auto [m, v] = decayed(device.get(), ones, ones, static_cast<float>(1 - fraction * 0x1p-8), 1);
        double down_m = 0, down_v = 0, down_both = 0;
        for (size_t i = 0; i < n; i++) {
            ASSERT_TRUE(m[i] == 1 || m[i] == 1 - 0x1p-8) << m[i];
            ASSERT_TRUE(v[i] == 1 || v[i] == 1 - 0x1p-8) << v[i];
            down_m += m[i] < 1;
            down_v += v[i] < 1;
            down_both += m[i] < 1 && v[i] < 1;
        }
        const auto near = [&](double count, double probability) {
            const double expected = probability * static_cast<double>(n);
            EXPECT_NEAR(count, expected, 5 * std::sqrt(expected * (1 - probability))) << fraction;
        };
        near(down_m, fraction);
        near(down_v, fraction);
        near(down_both, fraction * fraction);
    }
}

/* 100 steps of a beta2 of 0.999, each of which rounding to nearest would lose, are 0.999^100 in the mean. A step's
 * rounding has a deviation of at most half the distance of two neighbours, 2^-9 below one, and they are independent: 5
 * deviations of the mean of n elements are 5 * sqrt(100 / n) * 2^-9. */
TEST_P(AdamW, KeepsSmallChangesOfMomentsInTheMean) {
    const size_t n = 4000;
    std::vector<double> m(n, 1), v(n, 1);
    for (int64_t updates = 1; updates <= 100; updates++) std::tie(m, v) = decayed(device.get(), m, v, 0.999f, updates);
    for (const std::vector<double> &moment : {m, v}) {
        double sum = 0;
        for (double x : moment) sum += x;
        EXPECT_NEAR(sum / n, std::pow(0.999, 100), 5 * std::sqrt(100.0 / n) * 0x1p-9);
    }
}

/* Weights of one, moved up by a part of the distance to the next by weight decay alone, arrive there in that part of
 * all elements: within five deviations of the binomial distribution, and otherwise at another step. */
TEST_P(AdamW, RoundsUpAsOftenAsIsLost) {
    const size_t n = 20000;
    const std::vector<double> ones(n, 1), zeros(n, 0);
    for (double fraction : {0.0, 0.125, 0.3, 0.5, 0.9375}) {
        std::vector<double> earlier;
        for (int64_t updates : {1, 2}) {
            loom_scalars s = some_scalars(updates);
            s.in.learning_rate = 1;
            s.in.weight_decay = static_cast<float>(-fraction * 0x1p-7);
            const Scalars scalars(device.get(), s);
            Vector parameter(device.get(), LOOM_BF16, ones), gradient(device.get(), LOOM_F32, zeros);
            Vector m(device.get(), LOOM_F32, zeros), v(device.get(), LOOM_F32, zeros);
            struct loom_adamw a = {};
            a.parameter = parameter.view();
            a.gradient = gradient.view();
            a.moment1 = m.view();
            a.moment2 = v.view();
            a.scalars = scalars.get();
            a.decayed = all_of(n);
            a.seed = 11;
            run(device.get(), a);
            const std::vector<double> found = parameter.values();
            double up = 0;
            for (double x : found) {
                ASSERT_TRUE(x == 1 || x == 1 + 0x1p-7) << x;
                up += x > 1;
            }
            const double expected = fraction * static_cast<double>(n);
            EXPECT_NEAR(up, expected, 5 * std::sqrt(expected * (1 - fraction))) << fraction;
            if (fraction > 0) {
                EXPECT_NE(found, earlier);
            }
            earlier = found;
        }
    }
}

/* Random bits must not make a NaN of infinity, nor a number of either. */
TEST_P(AdamW, KeepsWhatIsNotFinite) {
    const size_t n = 64;
    std::vector<double> start(n, INFINITY);
    for (size_t i = 0; i < n; i++) start[i] = i % 3 == 0 ? INFINITY : i % 3 == 1 ? -INFINITY : NAN;
    const std::vector<double> zeros(n, 0);
    const Scalars scalars(device.get(), some_scalars(1));
    Vector parameter(device.get(), LOOM_BF16, start), gradient(device.get(), LOOM_F32, zeros);
    Vector m(device.get(), LOOM_F32, zeros), v(device.get(), LOOM_F32, zeros);
    struct loom_adamw a = {};
    a.parameter = parameter.view();
    a.gradient = gradient.view();
    a.moment1 = m.view();
    a.moment2 = v.view();
    a.scalars = scalars.get();
    run(device.get(), a);
    const auto [moment1, moment2] = decayed(device.get(), start, start, 0.9f, 1);
    for (const std::vector<double> &found : {parameter.values(), moment1, moment2})
        for (size_t i = 0; i < n; i++) {
            if (i % 3 == 2)
                EXPECT_TRUE(std::isnan(found[i])) << i;
            else
                EXPECT_EQ(found[i], start[i]) << i;
        }
}

TEST_P(AdamW, RefusesWhatItsContractLacks) {
    const auto refusal = [&](loom_dtype parameter, loom_dtype copy, loom_dtype moment1, loom_dtype moment2,
                             loom_dtype gradient = LOOM_F32) {
        struct loom_adamw a = {};
        a.parameter = loom_view_1d(nullptr, parameter, 4);
        a.gradient = loom_view_1d(nullptr, gradient, 4);
        if (copy != LOOM_F32) a.copy = loom_view_1d(nullptr, copy, 4);
        a.moment1 = loom_view_1d(nullptr, moment1, 4);
        a.moment2 = loom_view_1d(nullptr, moment2, 4);
        const char *why = "";
        return device->ops->supports(device.get(), LOOM_OP_adamw, &a, &why) ? std::string() : std::string(why);
    };
    EXPECT_EQ(refusal(LOOM_F32, LOOM_BF16, LOOM_BF16, LOOM_BF16), "");
    EXPECT_NE(refusal(LOOM_BF16, LOOM_BF16, LOOM_F32, LOOM_F32).find("copy"), std::string::npos);
    EXPECT_NE(refusal(LOOM_F32, LOOM_F32, LOOM_F32, LOOM_BF16).find("moments"), std::string::npos);
    EXPECT_NE(refusal(LOOM_F32, LOOM_F32, LOOM_BF16, LOOM_F32).find("moments"), std::string::npos);
    EXPECT_NE(refusal(LOOM_F32, LOOM_F32, LOOM_F16, LOOM_F16).find("dtype"), std::string::npos);
    EXPECT_NE(refusal(LOOM_F32, LOOM_F32, LOOM_F32, LOOM_F32, LOOM_F16).find("dtype"), std::string::npos);
    const auto refused = [&](const loom_ranges &decayed) {
        struct loom_adamw a = {};
        a.parameter = a.gradient = a.moment1 = a.moment2 = loom_view_1d(nullptr, LOOM_F32, 4);
        a.decayed = decayed;
        const char *why = "";
        return device->ops->supports(device.get(), LOOM_OP_adamw, &a, &why) ? std::string() : std::string(why);
    };
    EXPECT_EQ(refused({2, {{0, 2}, {2, 4}}}), "");
    EXPECT_NE(refused({1, {{1, 5}}}).find("beyond"), std::string::npos);
    EXPECT_NE(refused({2, {{2, 4}, {0, 2}}}).find("order"), std::string::npos);
    EXPECT_NE(refused({2, {{0, 3}, {2, 4}}}).find("order"), std::string::npos);
    EXPECT_NE(refused({1, {{3, 2}}}).find("order"), std::string::npos);
    EXPECT_NE(refused({LOOM_MOST_RANGES + 1, {}}).find("more ranges"), std::string::npos);
}

/* Every fp16 value, and what lies half-way to the next and beside that: narrowed as arithmetic on the values says. */
TEST_P(AdamW, CastsAllOfFp16) {
    std::vector<double> values;
    for (unsigned bits = 0; bits < 0x10000; bits++) {
        const uint16_t lower = static_cast<uint16_t>(bits), upper = static_cast<uint16_t>(bits + 1);
        const double x = loom_case_load(&lower, LOOM_F16);
        double next = loom_case_load(&upper, LOOM_F16);
        if (std::isnan(x)) continue;
        values.push_back(x);
        if (std::isinf(x)) continue;
        if (std::isinf(next)) next = std::copysign(65536, x);
        const float half = static_cast<float>((x + next) / 2);
        for (float at : {half, std::nextafterf(half, INFINITY), std::nextafterf(half, -INFINITY)})
            values.push_back(static_cast<double>(at));
    }
    const int64_t n = static_cast<int64_t>(values.size());
    Vector x(device.get(), LOOM_F32, values), narrow(device.get(), LOOM_F16, values);
    Vector wide(device.get(), LOOM_F32, values);
    const auto cast = [&](const Vector &out, const Vector &in) {
        struct loom_cast a = {};
        a.out = out.view();
        a.x = in.view();
        const size_t bytes = device->ops->workspace(device.get(), LOOM_OP_cast, &a);
        loom_context ctx = {};
        ctx.ops = device->ops;
        ctx.device = device.get();
        ctx.workspace_bytes = bytes;
        ASSERT_TRUE(device->allocate(device.get(), &ctx.workspace, bytes, nullptr));
        device->ops->cast(&ctx, &a);
        ASSERT_TRUE(device->synchronize(device.get(), nullptr, nullptr));
        device->release(device.get(), ctx.workspace, bytes);
    };
    cast(narrow, x);
    cast(wide, narrow);
    const std::vector<double> found = narrow.values(), widened = wide.values();
    for (int64_t i = 0; i < n; i++) {
        const size_t at = static_cast<size_t>(i);
        const double expected = loom_case_round(LOOM_F16, values[at]);
        ASSERT_EQ(found[at], expected) << values[at];
        ASSERT_EQ(std::signbit(found[at]), std::signbit(expected)) << values[at];
        ASSERT_EQ(widened[at], expected) << values[at];
    }
}

std::string device_name(const testing::TestParamInfo<const char *> &of) {
    return of.param;
}

INSTANTIATE_TEST_SUITE_P(On, AdamW, testing::Values("definition", "cuda"), device_name);

} // namespace
