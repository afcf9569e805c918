/* The op cases of csrc/cases as tests: each op on each CPU device against the oracle, the oracle against formulas and
 * finite differences, the same bits for any number of threads; and the harness itself against ops that are wrong on
 * purpose. */
#include "cases/case_internal.h"
#include "cases/instance.h"
#include "support.h"

extern "C" {
#include "ops/arguments.h"
}

#include "command_cases.h"

#include <gtest/gtest.h>

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace {

/* ---------------------------------------------------------------------------------------------------------- devices */

/* Opens the device "cpu" with these instructions; NULL if the processor does not have them. */
loom_device *open_with_instructions(const std::string &set) {
    loom_device *device = nullptr;
    setenv("LOOM_INSTRUCTIONS", set.c_str(), 1);
    const bool opened = loom_device_open(&device, "cpu", nullptr, nullptr);
    unsetenv("LOOM_INSTRUCTIONS");
    return opened ? device : nullptr;
}

/* A device of so many threads (0: all), opened when first asked for and closed at the end. Three are the device "cpu"
 * with products by others than those that it takes: "own", "library" and "threaded_library", which threads each itself.
 * "sse2" and its like are "cpu" with these instructions. */
loom_device *device(const std::string &name, int threads = 0) {
    struct closer {
        void operator()(loom_device *d) const {
            loom_device_close(d);
        }
    };
    static std::map<std::pair<std::string, int>, std::unique_ptr<loom_device, closer>> devices;
    auto &d = devices[{name, threads}];
    if (!d) {
        loom_device_options options = {};
        options.threads = threads;
        options.library_threads = name == "threaded_library";
        options.products = name == "own"                                  ? LOOM_PRODUCTS_OWN
                           : name == "library" || options.library_threads ? LOOM_PRODUCTS_LIBRARY
                                                                          : LOOM_PRODUCTS_AUTO;
        const bool is_cpu = options.products != LOOM_PRODUCTS_AUTO;
        loom_device *opened = open_with_instructions(name);
        loom_error error;
        if (!opened && !loom_device_open(&opened, is_cpu ? "cpu" : name.c_str(), &options, &error))
            throw std::runtime_error(error.message);
        d.reset(opened);
    }
    return d.get();
}

/* ---------------------------------------------------------------------------------------------- cases as parameters */

/* The sets of instructions that the processor has, but for the one that "cpu" takes. */
std::vector<std::string> other_instructions() {
    std::vector<std::string> others;
    for (const char *set : {"sse2", "avx2", "avx512", "neon"}) {
        loom_device *other = open_with_instructions(set);
        if (other && std::strcmp(other->description, device("cpu")->description) != 0) others.push_back(set);
        if (other) loom_device_close(other);
    }
    return others;
}

bool is_product(loom_op op) {
    return op == LOOM_OP_matmul_forward || op == LOOM_OP_matmul_backward_input || op == LOOM_OP_matmul_backward_weight;
}

/* Whether a device may do something that "cpu" does not: those with other products, for products alone, if they have
 * other ones; the library multiplies fp32, and bf16 where it says so. Whether it threads itself has nothing to do with
 * types: make test takes fp32. */
bool differs(const std::string &name, const Instance &instance) {
    const bool threaded = name == "threaded_library";
    if (name != "own" && name != "library" && !threaded) return true;
    const loom_dtype dtype = instance.dtypes.storage;
    if (!is_product(instance.cases->op[instance.op].op) || (threaded && !is_full() && dtype != LOOM_F32)) return false;
    if (name != "own" && (device(name)->emulated_dtypes >> dtype & 1)) return false;
    return threaded || std::strcmp(device(name)->description, device("cpu")->description) != 0;
}

/* The products that this program has beside those of "cpu". */
std::vector<std::string> with_other_products(std::vector<std::string> devices) {
    loom_device_options options = {};
    options.products = LOOM_PRODUCTS_LIBRARY;
    loom_device *library = nullptr;
    const bool has_library = loom_device_open(&library, "cpu", &options, nullptr);
    loom_device_close(library);
    devices.push_back("own");
    if (has_library) devices.insert(devices.end(), {"library", "threaded_library"});
    return devices;
}

/* Parity on devices that have code of their own for the op. */
std::vector<Instance> cpu_instances(const std::vector<std::string> &devices) {
    std::vector<Instance> all;
    for (const std::string &name : devices)
        for (const Instance &instance : parity_instances(name))
            if (differs(name, instance)) all.push_back(instance);
    return all;
}

/* Of other instructions than those that "cpu" takes make test, and a sanitizer build, try fp32. */
std::vector<Instance> instruction_instances() {
    std::vector<Instance> all = cpu_instances(other_instructions());
    const auto is_left_out = [](const Instance &i) { return i.dtypes.storage != LOOM_F32; };
    if (!is_full() || support::sanitized) all.erase(std::remove_if(all.begin(), all.end(), is_left_out), all.end());
    return all;
}

std::vector<Instance> formula_instances() {
    std::vector<Instance> all;
    for_each_shape(LOOM_CASE_PARITY, [&](const loom_op_cases *cases, const loom_case_shape *shape) {
        for (int op = 0; cases->op[op].arguments; op++)
            if (cases->op[op].formula) all.push_back({cases, shape, op, loom_case_dtypes_oracle, "oracle"});
    });
    return all;
}

/* One for each shape: all ops of a file take part. The op is the one that comes last, for the name. */
std::vector<Instance> gradient_instances() {
    std::vector<Instance> all;
    for_each_shape(LOOM_CASE_GRADIENT, [&](const loom_op_cases *cases, const loom_case_shape *shape) {
        int last = 0;
        while (cases->op[last + 1].arguments) last++;
        all.push_back({cases, shape, last, loom_case_dtypes_oracle, ""});
    });
    return all;
}

class Parity : public testing::TestWithParam<Instance> {};
class Formula : public testing::TestWithParam<Instance> {};
class Gradient : public testing::TestWithParam<Instance> {};
class Threads : public testing::TestWithParam<Instance> {};

void expect_ok(const Instance &instance) {
    Case c = open_case(instance);
    loom_case_result result;
    loom_error error;
    ASSERT_TRUE(loom_case_check(c.get(), instance.op, device(instance.device), device("oracle"), &result, &error))
        << error.message;
    EXPECT_EQ(result.verdict, LOOM_CASE_OK) << result.message;
    EXPECT_LE(result.ratio, 1) << result.tensor;
}

TEST_P(Parity, AgreesWithOracle) {
    expect_ok(GetParam());
}

TEST_P(Formula, OracleAgreesWithFormula) {
    expect_ok(GetParam());
}

TEST_P(Gradient, AgreesWithFiniteDifferences) {
    Case c = open_case(GetParam());
    loom_case_result result;
    loom_error error;
    ASSERT_TRUE(loom_case_check_gradients(c.get(), device("oracle", 1), 24, &result, &error)) << error.message;
    EXPECT_EQ(result.verdict, LOOM_CASE_OK) << result.message;
    EXPECT_LT(result.element_bound, 1e-6) << "a bound that says little";
}

TEST_P(Threads, DoNotChangeBits) {
    const Instance &instance = GetParam();
    Case c = open_case(instance);
    loom_case_result result;
    loom_device *devices[] = {device(instance.device, 1), device(instance.device, 2), device(instance.device, 3)};
    loom_error error;
    ASSERT_TRUE(loom_case_check_same_bits(c.get(), instance.op, devices, 3, device("oracle"), &result, &error))
        << error.message;
    EXPECT_EQ(result.verdict, LOOM_CASE_OK) << result.message;
}

INSTANTIATE_TEST_SUITE_P(Ops, Parity, testing::ValuesIn(cpu_instances(with_other_products({"definition", "cpu"}))),
                         instance_name);
INSTANTIATE_TEST_SUITE_P(Instructions, Parity, testing::ValuesIn(instruction_instances()), instance_name);
INSTANTIATE_TEST_SUITE_P(Ops, Formula, testing::ValuesIn(formula_instances()), instance_name);
INSTANTIATE_TEST_SUITE_P(Ops, Gradient, testing::ValuesIn(gradient_instances()), instance_name);
/* How work is cut for threads does not depend on the dtype: make test takes fp32, and bf16 where its products are
 * others. */
std::vector<Instance> thread_instances() {
    std::vector<Instance> all = cpu_instances(with_other_products({"definition", "cpu"}));
    const auto has_no_order = [](const Instance &i) { return i.device == "threaded_library"; };
    all.erase(std::remove_if(all.begin(), all.end(), has_no_order), all.end());
    const auto is_left_out = [](const Instance &i) {
        return (i.device == "definition" || i.device == "cpu") && i.dtypes.storage != LOOM_F32;
    };
    if (!is_full()) all.erase(std::remove_if(all.begin(), all.end(), is_left_out), all.end());
    return all;
}
INSTANTIATE_TEST_SUITE_P(Ops, Threads, testing::ValuesIn(thread_instances()), instance_name);

/* ---------------------------------------------------------------------------------------------------- the catalogue */

TEST(Catalogue, CoversEveryOp) {
    const std::map<unsigned, std::string> uses = {
        {LOOM_CASE_PARITY, "parity"}, {LOOM_CASE_BENCH, "the benchmark"}, {LOOM_CASE_BENCH_LARGE, "that of a GPU"}};
    for (const auto &use : uses) {
        std::set<std::string> covered;
        for_each_shape(use.first, [&](const loom_op_cases *cases, const loom_case_shape *) {
            for (int op = 0; cases->op[op].arguments; op++) covered.insert(loom_op_name(cases->op[op].op));
        });
        for (int op = 0; op < LOOM_OP_COUNT; op++) {
            const char *name = loom_op_name(static_cast<loom_op>(op));
            EXPECT_EQ(covered.count(name), 1u) << name << " has no shape for " << use.second;
        }
    }
}

/* What ops.h says of an op's views is what its cases do with the tensors of these names. What is only read may be
 * another tensor instead, as one term of a sum twice. */
TEST(Catalogue, ViewsAreReadAndWrittenAsRegistered) {
    for_each_shape(LOOM_CASE_PARITY, [&](const loom_op_cases *cases, const loom_case_shape *shape) {
        Case c = open_case({cases, shape, 0, loom_case_dtypes_tested[0], ""});
        for (int op = 0; cases->op[op].arguments; op++) {
            loom_case_arguments arguments;
            loom_argument list[LOOM_MOST_VIEWS];
            loom_case_bind(c.get(), op, LOOM_CASE_SHAPES, &arguments);
            const std::string name = loom_op_name(cases->op[op].op);
            const bool may_skip = name == "adamw"; /* and what it writes is then what it was */
            const int n = loom_op_views(cases->op[op].op, &arguments, list);
            int views = 0, tensors = 0;
            for (int i = 0; i < n; i++) {
                const loom_case_tensor &tensor = *loom_case_find(c.get(), list[i].name);
                const loom_case_role role = tensor.role[op];
                const std::string what = name + " " + list[i].name;
                views += list[i].written;
                if (!list[i].written)
                    EXPECT_TRUE(role == LOOM_CASE_READ || role == LOOM_CASE_UNUSED) << what;
                else
                    EXPECT_EQ(role, list[i].read || may_skip ? LOOM_CASE_UPDATED : LOOM_CASE_WRITTEN) << what;
                EXPECT_TRUE(list[i].storage != LOOM_STORED_MODEL || tensor.kind == LOOM_CASE_STORAGE) << what;
                EXPECT_TRUE(list[i].storage != LOOM_STORED_IDS || tensor.kind == LOOM_CASE_IDS) << what;
            }
            for (int t = 0; t < c->n_tensors; t++)
                tensors += c->tensor[t].role[op] > LOOM_CASE_READ && c->tensor[t].kind != LOOM_CASE_SCALARS;
            EXPECT_EQ(views, tensors) << name;
        }
    });
}

/* Shapes marked as slow are left out unless all is asked for, whatever else they are for. */
TEST(Catalogue, SlowShapesWait) {
    const loom_case_shape quick = {{1}, "", LOOM_CASE_PARITY}, slow = {{1}, "", LOOM_CASE_PARITY | LOOM_CASE_FULL};
    for (bool full : {false, true}) {
        EXPECT_TRUE(loom_case_is_for(&quick, LOOM_CASE_PARITY, full));
        EXPECT_EQ(loom_case_is_for(&slow, LOOM_CASE_PARITY, full), full);
        EXPECT_FALSE(loom_case_is_for(&slow, LOOM_CASE_BENCH, full));
    }
}

/* What the program's --dtype can name is what the cases are tested in. */
TEST(Catalogue, DtypesHaveNames) {
    int n = 0;
    EXPECT_STREQ(loom_case_dtype_names[0], "all");
    for (; loom_case_dtypes_tested[n].name; n++)
        EXPECT_STREQ(loom_case_dtype_names[n + 1], loom_case_dtypes_tested[n].name);
    EXPECT_EQ(loom_case_dtype_names[n + 1], nullptr);
}

/* Each output of a backward op is the gradient of something: none is left out of the finite differences. */
TEST(Catalogue, EveryBackwardOutputIsAGradient) {
    for_each_shape(LOOM_CASE_GRADIENT, [&](const loom_op_cases *cases, const loom_case_shape *shape) {
        Case c = open_case({cases, shape, 0, loom_case_dtypes_oracle, ""});
        for (int t = 0; t < c->n_tensors; t++) {
            const loom_case_tensor &tensor = c->tensor[t];
            if (tensor.written_by < 0) continue;
            const std::string op = loom_op_name(cases->op[tensor.written_by].op);
            if (op.find("backward") == std::string::npos) continue;
            bool found = false;
            for (int g = 0; g < c->n_gradients; g++) found |= !std::strcmp(c->gradient[g].gradient, tensor.name);
            EXPECT_TRUE(found) << op << " writes " << tensor.name;
        }
    });
}

/* ------------------------------------------------------------------------------------------------- wrong on purpose */
/* A table whose ops run the real ones and then do some damage. The harness must see all of it, for every op and output.
 * */

struct Saboteur {
    loom_device *real = nullptr;
    std::function<void(loom_context *)> before, after;
};
Saboteur saboteur;

#define SABOTAGED(name)                                                                                                \
    void sabotaged_##name(loom_context *ctx, const struct loom_##name *arguments) {                                    \
        if (saboteur.before) saboteur.before(ctx);                                                                     \
        saboteur.real->ops->name(ctx, arguments);                                                                      \
        if (saboteur.after) saboteur.after(ctx);                                                                       \
    }
LOOM_OP_LIST(SABOTAGED)
#undef SABOTAGED

/* A copy of what users see of a device, with the sabotaged table. What needs more of the device is asked of it. */
struct SabotagedDevice {
    loom_ops ops;
    loom_device device;

    explicit SabotagedDevice(loom_device *of) : ops(*of->ops), device(*of) {
#define MEMBER(name) ops.name = sabotaged_##name;
        LOOM_OP_LIST(MEMBER)
#undef MEMBER
        saboteur = {of, {}, {}};
        device.ops = &ops;
        device.timer_start = [](loom_device *) { saboteur.real->timer_start(saboteur.real); };
        device.timer_stop = [](loom_device *, double *seconds, loom_error *error) {
            return saboteur.real->timer_stop(saboteur.real, seconds, error);
        };
        device.available = [](const loom_device *) { return saboteur.real->available(saboteur.real); };
    }
    SabotagedDevice(const SabotagedDevice &) = delete;
    ~SabotagedDevice() {
        saboteur = {};
    }
};

/* The last element of a tensor in the device's memory. */
unsigned char *last_element(const loom_case *c, const loom_case_tensor &t) {
    int64_t element = t.offset;
    for (int d = 0; d < 4; d++) element += (t.size.n[d] - 1) * t.stride[d];
    if (t.kind == LOOM_CASE_SCALARS) element = 0;
    return static_cast<unsigned char *>(c->memory[t.memory].device) + LOOM_CASE_FENCE +
           static_cast<size_t>(element) * loom_case_tensor_item(c, &t);
}

bool is_output(const loom_case_tensor &t, int op) {
    return t.role[op] == LOOM_CASE_WRITTEN || t.role[op] == LOOM_CASE_UPDATED;
}

bool is_input(const loom_case_tensor &t, int op) {
    return t.role[op] == LOOM_CASE_READ;
}

/* Whether another such tensor of the op lies in the memory of the i-th. */
bool shares_memory(const loom_case *c, int i, int op, bool (*such)(const loom_case_tensor &, int)) {
    for (int j = 0; j < c->n_tensors; j++)
        if (j != i && c->tensor[j].memory == c->tensor[i].memory && such(c->tensor[j], op)) return true;
    return false;
}

loom_case_result check(loom_case *c, int op, loom_device *subject) {
    loom_case_result result;
    loom_error error;
    EXPECT_TRUE(loom_case_check(c, op, subject, device("oracle"), &result, &error)) << error.message;
    return result;
}

/* Calls f(case, op) for all ops of all small cases in fp32: a case for each, with values. */
void for_each_small_case(const std::function<void(loom_case *, int)> &f) {
    for_each_shape(LOOM_CASE_PARITY, [&](const loom_op_cases *cases, const loom_case_shape *shape) {
        for (int op = 0; cases->op[op].arguments; op++) {
            Case c = open_case({cases, shape, op, loom_case_dtypes_tested[0], ""});
            int64_t elements = 0;
            for (int t = 0; t < c->n_tensors; t++) elements += c->tensor[t].elements;
            if (elements > 4000) continue;
            char label[LOOM_CASE_LABEL];
            loom_case_label(cases, shape, label);
            SCOPED_TRACE(std::string(loom_op_name(cases->op[op].op)) + " " + label);
            f(c.get(), op);
        }
    });
}

/* The size that errors in an output are measured against, once more, from the reference of the last check. */
double typical_size(const loom_case_tensor &t) {
    double square = 0;
    for (int64_t i = 0; i < t.elements; i++) square += t.reference[i] * t.reference[i];
    return std::fmax(std::sqrt(square / static_cast<double>(t.elements)), t.bound.floor);
}

TEST(Harness, AcceptsTheRealOps) {
    for_each_small_case([](loom_case *c, int op) {
        SabotagedDevice bad(device("cpu"));
        EXPECT_EQ(check(c, op, &bad.device).verdict, LOOM_CASE_OK);
    });
}

/* An error of 10^-3 of an output's size in its last element (fp32 bounds are far below), in every output of every op;
 * one in the last place where the contract asks for exact results. */
TEST(Harness, SeesAnErrorInAnyOutput) {
    int seen = 0;
    for_each_small_case([&](loom_case *c, int op) {
        for (int i = 0; i < c->n_tensors; i++) {
            const loom_case_tensor &t = c->tensor[i];
            if (!is_output(t, op) || t.kind == LOOM_CASE_SCALARS) continue;
            SabotagedDevice bad(device("cpu"));
            saboteur.after = [&](loom_context *) {
                float *x = reinterpret_cast<float *>(last_element(c, t));
                *x = t.bound.exact ? std::nextafterf(*x, 10)
                                   : *x + 1e-3f * static_cast<float>(typical_size(t)) + 1e-30f;
            };
            EXPECT_EQ(check(c, op, &bad.device).verdict, LOOM_CASE_FAILED) << "an error in " << t.name;
            seen++;
        }
    });
    EXPECT_GT(seen, 100);
}

TEST(Harness, SeesAnErrorInTheStepScalars) {
    for_each_small_case([&](loom_case *c, int op) {
        if (c->cases->op[op].op != LOOM_OP_optimizer_scalars) return;
        const loom_case_tensor &t = *loom_case_find(c, "scalars");
        const std::vector<std::function<void(loom_scalars *)>> damages = {
            [](loom_scalars *s) { s->out.loss = s->out.loss * 1.00001f + 1e-9f; },
            [](loom_scalars *s) { s->out.skip ^= 1; },
            [](loom_scalars *s) { s->state.updates++; },
            [](loom_scalars *s) { s->state.norm_square = s->state.norm_square * 1.00001 + 1e-9; },
            [](loom_scalars *s) { s->in.clip_norm += 1; },
            [](loom_scalars *s) { s->state.loss_scale *= 2; },
            [](loom_scalars *s) { s->state.loss_scale_age++; },
        };
        for (const auto &damage : damages) {
            SabotagedDevice bad(device("cpu"));
            saboteur.after = [&](loom_context *) { damage(reinterpret_cast<loom_scalars *>(last_element(c, t))); };
            EXPECT_EQ(check(c, op, &bad.device).verdict, LOOM_CASE_FAILED);
        }
    });
}

/* In place there is no telling where the value was right before. */
TEST(Harness, SeesAnUnwrittenElementInAnyOutput) {
    for_each_small_case([&](loom_case *c, int op) {
        for (int i = 0; i < c->n_tensors; i++) {
            const loom_case_tensor &t = c->tensor[i];
            if (t.role[op] != LOOM_CASE_WRITTEN || shares_memory(c, i, op, is_input)) continue;
            SabotagedDevice bad(device("cpu"));
            float kept = 0;
            saboteur.before = [&](loom_context *) { std::memcpy(&kept, last_element(c, t), sizeof kept); };
            saboteur.after = [&](loom_context *) { std::memcpy(last_element(c, t), &kept, sizeof kept); };
            EXPECT_EQ(check(c, op, &bad.device).verdict, LOOM_CASE_FAILED) << t.name << " not wholly written";
        }
    });
}

/* A byte before and after each memory, and in the gap after a strided row. */
TEST(Harness, SeesAWriteOutsideTheOutputs) {
    int gaps = 0;
    for_each_small_case([&](loom_case *c, int op) {
        for (int i = 0; i < c->n_tensors; i++) {
            const loom_case_tensor &t = c->tensor[i];
            if (!is_output(t, op)) continue;
            const loom_case_memory &m = c->memory[t.memory];
            std::vector<int64_t> places = {-1, static_cast<int64_t>(m.bytes)};
            const bool alone = t.kind != LOOM_CASE_SCALARS && t.size.n[2] > 1 && t.stride[2] > t.size.n[3];
            if (alone && t.stride[1] >= t.stride[2] * t.size.n[2] && m.name == std::string(t.name)) {
                places.push_back(t.size.n[3] * static_cast<int64_t>(loom_case_tensor_item(c, &t)));
                gaps++;
            }
            for (int64_t place : places) {
                SabotagedDevice bad(device("cpu"));
                saboteur.after = [&](loom_context *) {
                    static_cast<unsigned char *>(m.device)[LOOM_CASE_FENCE + place] ^= 0x11;
                };
                const loom_case_result result = check(c, op, &bad.device);
                EXPECT_EQ(result.verdict, LOOM_CASE_FAILED) << "byte " << place << " of " << m.name;
                EXPECT_NE(std::string(result.message).find("outside"), std::string::npos) << result.message;
            }
        }
    });
    EXPECT_GT(gaps, 5);
}

TEST(Harness, SeesAChangedInput) {
    for_each_small_case([&](loom_case *c, int op) {
        for (int i = 0; i < c->n_tensors; i++) {
            const loom_case_tensor &t = c->tensor[i];
            if (t.role[op] != LOOM_CASE_READ || shares_memory(c, i, op, is_output)) continue;
            SabotagedDevice bad(device("cpu"));
            saboteur.after = [&](loom_context *) { last_element(c, t)[0] ^= 1; };
            const loom_case_result result = check(c, op, &bad.device);
            EXPECT_EQ(result.verdict, LOOM_CASE_FAILED);
            EXPECT_NE(std::string(result.message).find(t.name), std::string::npos) << result.message;
        }
    });
}

TEST(Harness, SeesAWriteBeyondTheWorkspace) {
    for_each_small_case([&](loom_case *c, int op) {
        for (bool after : {false, true}) {
            SabotagedDevice bad(device("cpu"));
            saboteur.after = [&](loom_context *ctx) {
                char *workspace = static_cast<char *>(ctx->workspace);
                (after ? workspace + ctx->workspace_bytes : workspace - 1)[0] ^= 1;
            };
            EXPECT_EQ(check(c, op, &bad.device).verdict, LOOM_CASE_FAILED);
        }
    });
}

/* The last place of one element, differing from run to run: far within every bound. */
TEST(Harness, SeesBitsThatChangeFromRunToRun) {
    for_each_small_case([&](loom_case *c, int op) {
        for (int i = 0; i < c->n_tensors; i++) {
            const loom_case_tensor &t = c->tensor[i];
            if (!is_output(t, op) || t.kind == LOOM_CASE_SCALARS) continue;
            SabotagedDevice bad(device("cpu"));
            unsigned run = 0;
            saboteur.after = [&](loom_context *) {
                if (run++ % 2) last_element(c, t)[0] ^= 1;
            };
            EXPECT_EQ(check(c, op, &bad.device).verdict, LOOM_CASE_FAILED) << t.name;
        }
    });
}

/* 10^-5 of a gradient's size in one element of the oracle's backward op. */
TEST(Harness, SeesAWrongGradient) {
    int seen = 0;
    for (const Instance &instance : gradient_instances()) {
        Case c = open_case(instance);
        for (int g = 0; g < c->n_gradients; g++) {
            const loom_case_tensor &t = *loom_case_find(c.get(), c->gradient[g].gradient);
            SabotagedDevice bad(device("oracle", 1));
            saboteur.after = [&](loom_context *) {
                double *x = static_cast<double *>(t.oracle);
                if (c->op == t.written_by) x[0] += 1e-5 * std::fmax(std::fabs(x[0]), 1);
            };
            loom_case_result result;
            loom_error error;
            ASSERT_TRUE(loom_case_check_gradients(c.get(), &bad.device, 24, &result, &error)) << error.message;
            EXPECT_EQ(result.verdict, LOOM_CASE_FAILED) << instance << " " << t.name;
            seen++;
        }
    }
    EXPECT_GT(seen, 20);
}

TEST(Harness, SeesBitsThatDependOnThreads) {
    for_each_small_case([&](loom_case *c, int op) {
        for (int i = 0; i < c->n_tensors; i++) {
            const loom_case_tensor &t = c->tensor[i];
            if (!is_output(t, op)) continue;
            SabotagedDevice bad(device("cpu"));
            saboteur.after = [&](loom_context *) { last_element(c, t)[0] ^= 1; };
            loom_device *devices[] = {device("cpu"), &bad.device};
            loom_case_result result;
            loom_error error;
            ASSERT_TRUE(loom_case_check_same_bits(c, op, devices, 2, device("oracle"), &result, &error))
                << error.message;
            EXPECT_EQ(result.verdict, LOOM_CASE_FAILED) << t.name;
        }
    });
}

loom_device *cpu_device() {
    return device("cpu");
}

/* A device whose memory the host may only touch through the device: elsewhere it is out of reach. */
struct FarDevice : SabotagedDevice {
    static std::map<void *, size_t> &memories() {
        static std::map<void *, size_t> all;
        return all;
    }
    static void reach(int protection) {
        for (const auto &memory : memories()) ASSERT_EQ(mprotect(memory.first, memory.second, protection), 0);
    }
    static bool allocate(loom_device *, void **memory, size_t bytes, loom_error *error) {
        if (!cpu_device()->allocate(cpu_device(), memory, bytes, error)) return false;
        memories()[*memory] = bytes;
        return mprotect(*memory, bytes, PROT_NONE) == 0;
    }
    static void release(loom_device *, void *memory, size_t bytes) {
        mprotect(memory, bytes, PROT_READ | PROT_WRITE);
        memories().erase(memory);
        cpu_device()->release(cpu_device(), memory, bytes);
    }
    static void copy(loom_device *, loom_stream *, void *to, const void *from, size_t bytes, loom_copy_kind) {
        reach(PROT_READ | PROT_WRITE);
        std::memcpy(to, from, bytes);
        reach(PROT_NONE);
    }
    FarDevice() : SabotagedDevice(cpu_device()) {
        device.host_memory = false;
        device.allocate = allocate;
        device.release = release;
        device.copy = copy;
        saboteur.before = [](loom_context *) { reach(PROT_READ | PROT_WRITE); };
        saboteur.after = [](loom_context *) { reach(PROT_NONE); };
    }
};

TEST(Harness, ReachesMemoryOnlyThroughTheDevice) {
    for_each_small_case([](loom_case *c, int op) {
        FarDevice far;
        EXPECT_EQ(check(c, op, &far.device).verdict, LOOM_CASE_OK);
        loom_case_flush flush;
        loom_case_timing timing;
        loom_case_result support;
        loom_error error;
        double bandwidth = 0;
        ASSERT_TRUE(loom_case_flush_open(&flush, &far.device, 1 << 16, &error)) << error.message;
        EXPECT_TRUE(loom_case_time(c, op, &far.device, &flush, 1e-6, &timing, &support, &error)) << error.message;
        EXPECT_TRUE(loom_case_copy_bandwidth(&far.device, &flush, &bandwidth, &error)) << error.message;
        EXPECT_GT(timing.ms, 0);
        EXPECT_GT(bandwidth, 0);
        loom_case_flush_close(&flush, &far.device);
        EXPECT_TRUE(FarDevice::memories().empty());
    });
}

/* What goes wrong on the device is told when it is waited for, and is the case's failure in the device's words. */
TEST(Harness, ShowsWhatTheDeviceSaysWentWrong) {
    for (bool second : {false, true}) {
        SabotagedDevice bad(device("cpu"));
        static int waits;
        waits = second ? 1 : 0;
        bad.device.synchronize = [](loom_device *, loom_stream *, loom_error *error) {
            return waits-- > 0 || loom_fail(error, "gelu: unspecified launch failure");
        };
        const Instance instance = parity_instances("")[0];
        Case c = open_case(instance);
        const loom_case_result result = check(c.get(), instance.op, &bad.device);
        EXPECT_EQ(result.verdict, LOOM_CASE_FAILED);
        EXPECT_STREQ(result.message, "gelu: unspecified launch failure");
    }
}

/* The hash of a check's outputs tells a difference in their last bit. */
TEST(Harness, HashesTheOutputs) {
    for_each_small_case([](loom_case *c, int op) {
        SabotagedDevice same(device("cpu"));
        const uint64_t bits = check(c, op, &same.device).bits;
        EXPECT_EQ(check(c, op, &same.device).bits, bits);
        for (int i = 0; i < c->n_tensors; i++) {
            const loom_case_tensor &t = c->tensor[i];
            if (!is_output(t, op)) continue;
            saboteur.after = [&](loom_context *) { last_element(c, t)[0] ^= 1; };
            EXPECT_NE(check(c, op, &same.device).bits, bits) << t.name;
        }
    });
}

/* What a device does not support is said, not run. */
TEST(Harness, SaysWhatIsNotSupported) {
    Case c = open_case({loom_op_catalogue[0], &loom_op_catalogue[0]->shapes[0], 0, loom_case_dtypes_oracle, ""});
    const loom_case_result result = check(c.get(), 0, device("cpu"));
    EXPECT_EQ(result.verdict, LOOM_CASE_UNSUPPORTED);
    EXPECT_NE(std::string(result.message).find("cpu does not support"), std::string::npos) << result.message;
}

/* What is added is cut out of larger memory by who calls: vectors that do not match are refused, not read beyond. */
TEST(Arguments, OfAddMatch) {
    const auto refusal = [](const loom_view &out, const loom_view &a, const loom_view &b) {
        const struct loom_add add = {out, a, b};
        const loom_device *cpu = device("cpu");
        const char *why = "";
        return cpu->ops->supports(cpu, LOOM_OP_add, &add, &why) ? std::string() : std::string(why);
    };
    const loom_view vector = loom_view_1d(nullptr, LOOM_F32, 6), narrow = loom_view_1d(nullptr, LOOM_BF16, 6);
    const loom_view shorter = loom_view_1d(nullptr, LOOM_F32, 5), matrix = loom_view_2d(nullptr, LOOM_F32, 2, 6);
    EXPECT_EQ(refusal(vector, vector, vector), "");
    EXPECT_EQ(refusal(narrow, narrow, narrow), "");
    for (int i = 0; i < 3; i++) {
        const auto with = [&](const loom_view &other) {
            return refusal(i == 0 ? other : vector, i == 1 ? other : vector, i == 2 ? other : vector);
        };
        EXPECT_NE(with(narrow).find("dtypes"), std::string::npos) << i;
        EXPECT_NE(with(shorter).find("lengths"), std::string::npos) << i;
        EXPECT_NE(with(matrix).find("rows"), std::string::npos) << i;
        EXPECT_NE(with(loom_view{}).find("missing"), std::string::npos) << i;
    }
}

/* Gradients of weights are fp32 or bf16, and all that an op writes are alike. */
TEST(Arguments, GradientsOfWeightsMatch) {
    const auto refusal = [](loom_dtype dweight, loom_dtype dbias) {
        const loom_view x = loom_view_2d(nullptr, LOOM_F16, 4, 6), statistics = loom_view_1d(nullptr, LOOM_F32, 4);
        const struct loom_layernorm_backward norm = {.dx = x,
                                                     .dweight = loom_view_1d(nullptr, dweight, 6),
                                                     .dbias = loom_view_1d(nullptr, dbias, 6),
                                                     .dout = x,
                                                     .x = x,
                                                     .weight = loom_view_1d(nullptr, LOOM_F16, 6),
                                                     .mean = statistics,
                                                     .rstd = statistics};
        const struct loom_matmul_backward_weight product = {.dweight = loom_view_2d(nullptr, dweight, 6, 6),
                                                            .dbias = loom_view_1d(nullptr, dbias, 6),
                                                            .dout = x,
                                                            .x = x};
        const struct loom_embedding_backward embedding = {.token_gradient = loom_view_2d(nullptr, dweight, 9, 6),
                                                          .position_gradient = loom_view_2d(nullptr, dbias, 9, 6),
                                                          .dout = x,
                                                          .tokens = loom_view_1d(nullptr, LOOM_I32, 4)};
        const loom_device *cpu = device("cpu");
        const char *why[3] = {"", "", ""};
        cpu->ops->supports(cpu, LOOM_OP_layernorm_backward, &norm, &why[0]);
        cpu->ops->supports(cpu, LOOM_OP_matmul_backward_weight, &product, &why[1]);
        cpu->ops->supports(cpu, LOOM_OP_embedding_backward, &embedding, &why[2]);
        EXPECT_STREQ(why[0], why[1]);
        EXPECT_STREQ(why[0], why[2]);
        return std::string(why[0]);
    };
    EXPECT_EQ(refusal(LOOM_F32, LOOM_F32), "");
    EXPECT_EQ(refusal(LOOM_BF16, LOOM_BF16), "");
    EXPECT_NE(refusal(LOOM_F32, LOOM_BF16).find("different dtypes"), std::string::npos);
    EXPECT_NE(refusal(LOOM_BF16, LOOM_F32).find("different dtypes"), std::string::npos);
    EXPECT_NE(refusal(LOOM_F16, LOOM_F16).find("does not compute with"), std::string::npos);
}

/* ---------------------------------------------------------------------------------------------------------- numbers */

TEST(Numbers, RoundToNearestEven) {
    EXPECT_EQ(loom_case_round(LOOM_BF16, 1 + 0x1p-8), 1);             /* a tie: to even */
    EXPECT_EQ(loom_case_round(LOOM_BF16, 1 + 0x3p-8), 1 + 0x1p-6);    /* the other one */
    EXPECT_EQ(loom_case_round(LOOM_BF16, 1 + 0x1.01p-8), 1 + 0x1p-7); /* past the tie */
    EXPECT_EQ(loom_case_round(LOOM_F16, 1 + 0x1p-11), 1);
    EXPECT_EQ(loom_case_round(LOOM_F16, 1 + 0x3p-11), 1 + 0x1p-9);
    EXPECT_EQ(loom_case_round(LOOM_F16, -65504), -65504);
    EXPECT_EQ(loom_case_round(LOOM_F16, 65520), INFINITY);
    EXPECT_EQ(loom_case_round(LOOM_F16, 2047.6), 2048);               /* carries into the exponent */
    EXPECT_EQ(loom_case_round(LOOM_F16, 0x1.8p-24), 0x1p-23);         /* denormal, a tie */
    EXPECT_EQ(loom_case_round(LOOM_F16, 0x1p-14 - 0x1p-26), 0x1p-14); /* from the denormals up */
    EXPECT_TRUE(std::isnan(loom_case_round(LOOM_BF16, NAN)));
    EXPECT_TRUE(std::isnan(loom_case_round(LOOM_F16, NAN)));
    EXPECT_TRUE(std::signbit(loom_case_round(LOOM_F16, -0.0)));
}

/* Each dtype's epsilon and smallest denormal are what its rounding does. */
TEST(Numbers, EpsilonsAreThoseOfTheDtypes) {
    for (loom_dtype dtype : {LOOM_F32, LOOM_BF16, LOOM_F16, LOOM_F64}) {
        const double e = loom_case_epsilon(dtype), tiny = loom_case_smallest(dtype);
        EXPECT_EQ(loom_case_round(dtype, 1 + e), 1 + e);
        EXPECT_EQ(loom_case_round(dtype, 1 + 3 * e / 4), 1 + e);
        EXPECT_EQ(loom_case_round(dtype, 1 + e / 2), 1);
        EXPECT_EQ(loom_case_round(dtype, tiny), tiny);
        EXPECT_EQ(loom_case_round(dtype, tiny / 4), 0);
    }
}

} // namespace
