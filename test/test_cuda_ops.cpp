/* The op cases of csrc/cases on the CUDA device, which here is the emulation: every op, dtype and shape against the
 * oracle, with the threads of a block and the blocks of a grid running in order, and in other orders too, to the same
 * bits: small shapes in one, with LOOM_TEST_FULL large ones in one and all others in four. */
#include "emulation.h"
#include "cases/case_internal.h"
#include "cases/instance.h"

#include <cstring>
#include <set>

namespace {

struct DeviceCloser {
    void operator()(loom_device *d) const {
        loom_device_close(d);
    }
};
using Device = std::unique_ptr<loom_device, DeviceCloser>;

Device open_device(const char *name) {
    loom_device *device = nullptr;
    loom_error error;
    if (!loom_device_open(&device, name, nullptr, &error)) throw std::runtime_error(error.message);
    return Device(device);
}

loom_device *oracle() {
    static const Device device = open_device("oracle");
    return device.get();
}

Device &cuda() {
    static Device device = open_device("cuda");
    return device;
}

enum { SMALL = 20000, LARGE = 200000 };

/* The orders that a case of so many elements is run in besides, where bits may show that threads do not wait for each
 * other. */
std::vector<std::string> other_schedules(int64_t elements) {
    if (!is_full()) return elements <= SMALL ? std::vector<std::string>{"random:1"} : std::vector<std::string>{};
    if (elements > LARGE) return {"reverse"};
    return {"reverse", "random:1", "random:2", "random:3"};
}

int64_t elements_of(const loom_case *c) {
    int64_t elements = 0;
    for (int t = 0; t < c->n_tensors; t++) elements += c->tensor[t].elements;
    return elements;
}

/* Runs a case in one order. A device that has failed stays failed, as a GPU's context does: the next case gets a new
 * one. */
loom_case_result check(const Instance &instance, loom_case *c, const std::string &schedule) {
    EXPECT_TRUE(emulation_set_schedule(schedule.c_str())) << schedule;
    loom_case_result result;
    loom_error error;
    if (!loom_case_check(c, instance.op, cuda().get(), oracle(), &result, &error)) {
        result.verdict = LOOM_CASE_FAILED;
        snprintf(result.message, sizeof result.message, "%s", error.message);
    }
    if (result.verdict == LOOM_CASE_FAILED) {
        cuda().reset();
        cuda() = open_device("cuda");
    }
    return result;
}

/* What the contract of the CUDA device leaves out: heads whose size is no multiple of 8. */
bool is_left_out(const Instance &instance, const loom_case *c) {
    return !std::strcmp(instance.cases->name, "attention") && loom_case_dim(c, "D") % 8 != 0;
}

class CudaOps : public testing::TestWithParam<Instance> {
  protected:
    void TearDown() override {
        emulation_set_schedule("order");
    }
};

TEST_P(CudaOps, AgreeWithOracle) {
    const Instance &instance = GetParam();
    Case c = open_case(instance);
    const loom_case_result result = check(instance, c.get(), "order");
    if (is_left_out(instance, c.get())) {
        EXPECT_EQ(result.verdict, LOOM_CASE_UNSUPPORTED) << result.message;
        return;
    }
    ASSERT_EQ(result.verdict, LOOM_CASE_OK) << result.message;
    EXPECT_LE(result.ratio, 1) << result.tensor;
    for (const std::string &schedule : other_schedules(elements_of(c.get()))) {
        const loom_case_result other = check(instance, c.get(), schedule);
        ASSERT_EQ(other.verdict, LOOM_CASE_OK) << "in schedule " << schedule << ": " << other.message;
        EXPECT_EQ(other.bits, result.bits) << "schedule " << schedule << " gives other bits";
    }
}

INSTANTIATE_TEST_SUITE_P(Emulated, CudaOps, testing::ValuesIn(parity_instances("")), instance_name);

/* The device is the emulation and says so, and keeps the host out of its memory. */
TEST(CudaDevice, IsEmulated) {
    EXPECT_FALSE(cuda()->host_memory);
    EXPECT_NE((std::string(cuda()->name) + cuda()->description).find("emulated"), std::string::npos)
        << cuda()->name << " " << cuda()->description;
}

/* The quick run sees every op in another schedule at least once in each dtype. */
TEST(CudaDevice, EveryOpRunsInAnotherSchedule) {
    std::set<std::string> seen;
    for (const Instance &instance : parity_instances(""))
        if (elements_of(open_case(instance).get()) <= SMALL) seen.insert(instance.op_name() + instance.dtypes.name);
    for (const Instance &instance : parity_instances(""))
        EXPECT_TRUE(seen.count(instance.op_name() + instance.dtypes.name)) << instance;
}

TEST(CudaDevice, TimesOps) {
    for (const Instance &instance : parity_instances("")) {
        if (instance.op_name() != "gelu_backward") continue;
        Case c = open_case(instance);
        loom_case_flush flush;
        loom_case_timing timing;
        loom_case_result support;
        loom_error error;
        double bandwidth = 0;
        ASSERT_TRUE(loom_case_flush_open(&flush, cuda().get(), 1 << 16, &error)) << error.message;
        EXPECT_TRUE(loom_case_time(c.get(), instance.op, cuda().get(), &flush, 1e-6, &timing, &support, &error))
            << error.message;
        EXPECT_TRUE(loom_case_copy_bandwidth(cuda().get(), &flush, &bandwidth, &error)) << error.message;
        loom_case_flush_close(&flush, cuda().get());
        EXPECT_GT(timing.ms, 0);
        EXPECT_GT(bandwidth, 0);
        return;
    }
}

} // namespace
