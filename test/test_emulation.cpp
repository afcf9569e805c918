/* The emulation of CUDA: that kernels run as CUDA says, in several orders, and that mistakes are found. */
#include "emulation_bugs.cuh"

#include "emulation.h"
#include "simt_launch.h"

#include <gtest/gtest.h>

#include <climits>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
constexpr bool WITH_ASAN = true;
#else
constexpr bool WITH_ASAN = false;
#endif

namespace {

const std::vector<std::string> SCHEDULES = {"order", "reverse", "random:1", "random:2", "random:3"};

class Emulation : public ::testing::Test {
  protected:
    void TearDown() override {
        emulation_set_schedule("order");
        emulation_set_threads(0);
    }
};

/* Runs a kernel; "" or the failure. */
template <typename... P>
std::string run(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, std::common_type_t<P>... arguments) {
    simt::kernel_call_of<P...> call(kernel, arguments...);
    call.name = "tested";
    call.grid = grid;
    call.block = block;
    call.shared_bytes = shared_bytes;
    const cudaError_t error = simt::check_launch(call);
    if (error != cudaSuccess) return "refused: " + std::to_string(error);
    std::string failure;
    return simt::run(call, &failure) ? "" : failure;
}

bool contains(const std::string &text, const std::string &part) {
    return text.find(part) != std::string::npos;
}

/* --------------------------------------------------------------------------------------------------- what bugs show */

typedef std::function<float(int)> expectation;

float same(int i) {
    return (float)i;
}
float neighbour(int i) {
    return (float)(i ^ 1);
}

struct Outcome {
    std::string failure; /* of any schedule */
    int failed, wrong;   /* schedules */
};

/* Runs body(out) in every schedule, where out is of 128 floats of which those expected to be NaN are ignored. */
Outcome outcome_of(const expectation &expected, const std::function<std::string(float *)> &body) {
    Outcome outcome = {"", 0, 0};
    for (const std::string &schedule : SCHEDULES) {
        EXPECT_TRUE(emulation_set_schedule(schedule.c_str()));
        std::vector<float> out(bugs::THREADS, -1.0f);
        const std::string failure = body(out.data());
        if (!failure.empty()) {
            outcome.failure = failure;
            outcome.failed++;
            continue;
        }
        bool right = true;
        for (int i = 0; i < bugs::THREADS; i++)
            if (!std::isnan(expected(i))) right = right && out[i] == expected(i);
        if (!right) outcome.wrong++;
    }
    return outcome;
}

/* The first kernel fails in every schedule, with a message that has `part`; its twin gives what is expected. */
void expect_failure(const std::string &part, const expectation &expected,
                    const std::function<std::string(float *)> &faulty,
                    const std::function<std::string(float *)> &correct) {
    const Outcome bad = outcome_of(expected, faulty), good = outcome_of(expected, correct);
    EXPECT_EQ(bad.failed, (int)SCHEDULES.size());
    EXPECT_TRUE(contains(bad.failure, part)) << bad.failure;
    EXPECT_TRUE(contains(bad.failure, "kernel tested, block (0,0,0)")) << bad.failure;
    EXPECT_EQ(good.failed, 0) << good.failure;
    EXPECT_EQ(good.wrong, 0);
}

/* The first kernel's results are wrong in at least `schedules` schedules. */
void expect_wrong(int schedules, const expectation &expected, const std::function<std::string(float *)> &faulty,
                  const std::function<std::string(float *)> &correct) {
    const Outcome bad = outcome_of(expected, faulty), good = outcome_of(expected, correct);
    EXPECT_GE(bad.wrong, schedules);
    EXPECT_EQ(bad.failed, 0) << bad.failure;
    EXPECT_EQ(good.failed, 0) << good.failure;
    EXPECT_EQ(good.wrong, 0);
}

/* A call of a kernel of emulation_bugs.cuh, with out alone or with an input of 0, 1, 2 ... */
std::function<std::string(float *)> one_block(void (*kernel)(float *), size_t shared_bytes = 0, unsigned blocks = 1) {
    return [=](float *out) { return run(kernel, blocks, bugs::THREADS, shared_bytes, out); };
}
std::function<std::string(float *)> one_block(void (*kernel)(float *, const float *)) {
    return [=](float *out) {
        std::vector<float> in(bugs::THREADS + 4);
        std::iota(in.begin(), in.end(), 0.0f);
        return run(kernel, 1, bugs::THREADS, 0, out, in.data());
    };
}

TEST_F(Emulation, FindsAMissingBarrier) {
    const auto expected = [](int i) { return (float)((i + 33) % 128); };
    expect_wrong((int)SCHEDULES.size(), expected, one_block(bugs::missing_barrier<false>),
                 one_block(bugs::missing_barrier<true>));
    const auto expected_sum = [](int i) { return (float)(3 * ((i + 33) % 128) + 3); };
    expect_wrong((int)SCHEDULES.size(), expected_sum, one_block(bugs::missing_second_barrier<false>),
                 one_block(bugs::missing_second_barrier<true>));
    expect_wrong((int)SCHEDULES.size(), neighbour, one_block(bugs::missing_syncwarp<false>),
                 one_block(bugs::missing_syncwarp<true>));
}

TEST_F(Emulation, FindsADivergentBarrier) {
    expect_failure(
        "divergent barrier: __syncthreads, while other threads wait in __syncthreads at", [](int) { return 1.0f; },
        one_block(bugs::divergent_barrier<false>), one_block(bugs::divergent_barrier<true>));
    expect_failure("deadlock", neighbour, one_block(bugs::barrier_against_shuffle<false>),
                   one_block(bugs::barrier_against_shuffle<true>));
}

TEST_F(Emulation, NamesFileLineThreadAndBlock) {
    std::vector<float> out(bugs::THREADS);
    const std::string divergent = run(bugs::divergent_barrier<false>, 1, bugs::THREADS, 0, out.data());
    EXPECT_TRUE(contains(divergent, "kernel tested, block (0,0,0), thread (40,0,0): divergent barrier")) << divergent;
    EXPECT_TRUE(contains(divergent, "emulation_bugs.cuh:")) << divergent;
    const std::string deadlock = run(bugs::barrier_against_shuffle<false>, 1, bugs::THREADS, 0, out.data());
    EXPECT_TRUE(contains(deadlock, "; 64 in __syncthreads at ")) << deadlock;
    EXPECT_TRUE(contains(deadlock, "; 64 in a shuffle at ")) << deadlock;
    EXPECT_TRUE(contains(deadlock, "the first of them thread (16,0,0)")) << deadlock;
    const std::string ended = run(bugs::divergent_shuffle<false>, 1, bugs::THREADS, 0, out.data());
    EXPECT_TRUE(contains(ended, "thread (16,0,0): the thread ended while other lanes wait for it in a shuffle at"))
        << ended;
    emulation_set_schedule("reverse");
    const std::string late = run(bugs::divergent_shuffle<false>, 1, bugs::THREADS, 0, out.data());
    EXPECT_TRUE(contains(late, "thread (111,0,0): a shuffle: lanes ffff0000 of its mask have ended at")) << late;
}

TEST_F(Emulation, FindsADivergentShuffle) {
    expect_failure("a shuffle", neighbour, one_block(bugs::divergent_shuffle<false>),
                   one_block(bugs::divergent_shuffle<true>));
    expect_failure(
        "a shuffle", [](int i) { return i < 96 ? (float)(i ^ 1) : NAN; }, one_block(bugs::shuffle_after_return<false>),
        one_block(bugs::shuffle_after_return<true>));
    expect_failure("the calling lane is not in its mask 0000ffff", neighbour,
                   one_block(bugs::lane_outside_of_its_mask<false>), one_block(bugs::lane_outside_of_its_mask<true>));
    expect_failure("divergent collective: mma, while other lanes of its mask wait in mma at", same,
                   one_block(bugs::divergent_mma<false>), one_block(bugs::divergent_mma<true>));
}

TEST_F(Emulation, AShuffleFromAnAbsentLaneYieldsPoison) {
    const auto expected = [](int i) { return i % 32 < 16 ? (float)(i ^ 1) : NAN; };
    expect_wrong((int)SCHEDULES.size(), expected, one_block(bugs::shuffle_from_absent_lane<false>),
                 one_block(bugs::shuffle_from_absent_lane<true>));
}

TEST_F(Emulation, FindsSharedMemoryOutOfBounds) {
    const size_t bytes = bugs::THREADS * sizeof(float);
    if (WITH_ASAN) {
        ::testing::FLAGS_gtest_death_test_style = "threadsafe";
        EXPECT_DEATH(one_block(bugs::shared_overrun<false>)(std::vector<float>(bugs::THREADS).data()),
                     "use-after-poison|out of bounds");
        EXPECT_DEATH(one_block(bugs::shared_underrun<false>)(std::vector<float>(bugs::THREADS).data()),
                     "use-after-poison|out of bounds");
        EXPECT_DEATH(one_block(bugs::dynamic_overrun<false>, bytes)(std::vector<float>(bugs::THREADS).data()),
                     "use-after-poison|out of bounds");
        return;
    }
    expect_failure("the block wrote outside of shared array 'values' (512 bytes) of", same,
                   one_block(bugs::shared_overrun<false>), one_block(bugs::shared_overrun<true>));
    expect_failure("at byte -4", same, one_block(bugs::shared_underrun<false>), one_block(bugs::shared_underrun<true>));
    expect_failure("the block wrote outside of the 512 bytes of dynamic shared memory, at byte 512", same,
                   one_block(bugs::dynamic_overrun<false>, bytes), one_block(bugs::dynamic_overrun<true>, bytes));
}

TEST_F(Emulation, FindsUninitialisedSharedMemory) {
    expect_wrong((int)SCHEDULES.size(), same, one_block(bugs::uninitialised_shared<false>),
                 one_block(bugs::uninitialised_shared<true>));
    expect_wrong((int)SCHEDULES.size(), same, one_block(bugs::left_from_another_block<false>, 0, 2),
                 one_block(bugs::left_from_another_block<true>, 0, 2));
}

TEST_F(Emulation, FindsMissingWaitsForCopies) {
    const int all = (int)SCHEDULES.size();
    expect_wrong(all, same, one_block(bugs::missing_copy_wait<false>), one_block(bugs::missing_copy_wait<true>));
    expect_wrong(all, same, one_block(bugs::waits_for_wrong_group<false>),
                 one_block(bugs::waits_for_wrong_group<true>));
    expect_wrong(all, same, one_block(bugs::reads_what_is_being_copied_over<false>),
                 one_block(bugs::reads_what_is_being_copied_over<true>));
    expect_wrong(all - 1, same, one_block(bugs::missing_barrier_after_wait<false>),
                 one_block(bugs::missing_barrier_after_wait<true>));
    expect_failure("the thread ended without waiting for its cp.async at", same, one_block(bugs::never_waits<false>),
                   one_block(bugs::never_waits<true>));
}

TEST_F(Emulation, FindsWrongAddresses) {
    expect_failure("cp.async to an address that is not a multiple of 16", same, one_block(bugs::misaligned_copy<false>),
                   one_block(bugs::misaligned_copy<true>));
    expect_failure("cp.async from an address that is not a multiple of 16", same,
                   one_block(bugs::copy_from_misaligned<false>), one_block(bugs::copy_from_misaligned<true>));
    expect_failure("cp.async to outside of the block's shared memory", same, one_block(bugs::copy_to_global<false>),
                   one_block(bugs::copy_to_global<true>));
    if (WITH_ASAN) {
        const auto with_short_input = [](void (*kernel)(float *, const float *)) {
            return [=](float *out) {
                const std::vector<float> in(126, 1.0f);
                return run(kernel, 1, bugs::THREADS, 0, out, in.data());
            };
        };
        expect_failure("cp.async from outside of an allocation", same,
                       with_short_input(bugs::copy_beyond_the_end<false>),
                       with_short_input(bugs::copy_beyond_the_end<true>));
    }
    expect_failure("ldmatrix of a row whose address is not a multiple of 16", same,
                   one_block(bugs::misaligned_ldmatrix<false>), one_block(bugs::misaligned_ldmatrix<true>));
    expect_failure("ldmatrix of a row outside of the block's shared memory", same,
                   one_block(bugs::ldmatrix_from_global<false>), one_block(bugs::ldmatrix_from_global<true>));
    expect_failure("misaligned access", same, one_block(bugs::misaligned_pack<false>),
                   one_block(bugs::misaligned_pack<true>));
}

TEST_F(Emulation, GoesOnAfterAFailure) {
    std::vector<float> out(bugs::THREADS);
    for (int i = 0; i < 3; i++) {
        EXPECT_NE(run(bugs::divergent_barrier<false>, 1, bugs::THREADS, 0, out.data()), "");
        EXPECT_NE(run(bugs::barrier_against_shuffle<false>, 1, bugs::THREADS, 0, out.data()), "");
        EXPECT_EQ(run(bugs::missing_barrier<true>, 1, bugs::THREADS, 0, out.data()), "");
        EXPECT_EQ(out[100], 5);
    }
}

/* Of several blocks that fail, those of a high number take longer. */
__global__ void fails_in_some_blocks(int *) {
    if (blockIdx.x % 7 != 5) return;
    for (volatile unsigned i = 0; i < 50000 * blockIdx.x; i = i + 1) {
    }
    __trap();
}

TEST_F(Emulation, TellsTheSameFailureWithAnyNumberOfThreads) {
    for (const std::string &schedule : SCHEDULES) {
        std::set<std::string> told;
        emulation_set_schedule(schedule.c_str());
        for (int threads : {1, 2, 4, 4, 4}) {
            emulation_set_threads(threads);
            told.insert(run(fails_in_some_blocks, 100, 64, 0, nullptr));
        }
        EXPECT_EQ(told.size(), 1u);
        EXPECT_TRUE(contains(*told.begin(), "__trap() at ")) << *told.begin();
        const std::string first = schedule == "order" ? "block (5,0,0)" : "block (";
        EXPECT_TRUE(contains(*told.begin(), first)) << *told.begin();
    }
}

/* -------------------------------------------------------------------------------------------------------- schedules */

/* turn[i]: when thread i came, of all threads of the grid. */
__global__ void take_turn(int *turn, int *next) {
    turn[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

std::vector<int> turns(const char *schedule, int blocks, int threads) {
    emulation_set_threads(1);
    EXPECT_TRUE(emulation_set_schedule(schedule));
    std::vector<int> turn((size_t)blocks * threads, -1);
    int next = 0;
    EXPECT_EQ(run(take_turn, blocks, threads, 0, turn.data(), &next), "");
    return turn;
}

TEST_F(Emulation, RunsThreadsInTheOrderOfTheSchedule) {
    std::vector<int> forward(3 * 80);
    std::iota(forward.begin(), forward.end(), 0);
    const std::vector<int> backward(forward.rbegin(), forward.rend());
    EXPECT_EQ(turns("order", 3, 80), forward);
    EXPECT_EQ(turns("reverse", 3, 80), backward);
    std::set<std::vector<int>> different;
    for (const char *schedule : {"random:1", "random:2", "random:3"}) {
        std::vector<int> turn = turns(schedule, 3, 80);
        EXPECT_EQ(turn, turns(schedule, 3, 80)) << "a seed is one order";
        different.insert(turn);
        std::sort(turn.begin(), turn.end());
        EXPECT_EQ(turn, forward) << "every thread runs once";
    }
    EXPECT_EQ(different.size(), 3u);
    EXPECT_EQ(turns("random:7", 1, 1), std::vector<int>{0});
}

TEST_F(Emulation, RefusesUnknownSchedules) {
    for (const char *schedule :
         {"", "forward", "random", "random:", "random:x", "random:1x", "random:-1", "random: 1", "order "})
        EXPECT_FALSE(emulation_set_schedule(schedule)) << schedule;
}

/* What threads read here depends on the order of the block's threads, which is random, but not on other blocks. */
__global__ void order_within_block(int *out) {
    SHARED_ARRAY(int, next, 1);
    if (threadIdx.x == 0) next[0] = 0;
    __syncthreads();
    for (int i = 0; i < 10; i++) __syncwarp();
    out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

TEST_F(Emulation, ResultsDoNotDependOnTheNumberOfThreads) {
    for (const std::string &schedule : SCHEDULES) {
        emulation_set_schedule(schedule.c_str());
        std::set<std::vector<int>> results;
        for (int threads : {1, 2, 3, 8}) {
            emulation_set_threads(threads);
            std::vector<int> out(200 * 64);
            EXPECT_EQ(run(order_within_block, 200, 64, 0, out.data()), "");
            results.insert(out);
        }
        EXPECT_EQ(results.size(), 1u) << schedule;
    }
}

__global__ void count_all(unsigned *count, unsigned long long *sum, int *largest, int *smallest) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    atomicInc(count, 0xFFFFFFFFu);
    atomicAdd(sum, (unsigned long long)i);
    atomicMax(largest, i);
    atomicMin(smallest, -i);
}

TEST_F(Emulation, AtomicsCountOverBlocks) {
    emulation_set_threads(4);
    unsigned count = 0;
    unsigned long long sum = 0;
    int largest = 0, smallest = 0;
    EXPECT_EQ(run(count_all, 500, 96, 0, &count, &sum, &largest, &smallest), "");
    EXPECT_EQ(count, 48000u);
    EXPECT_EQ(sum, 48000ull * 47999 / 2);
    EXPECT_EQ(largest, 47999);
    EXPECT_EQ(smallest, -47999);
}

/* ----------------------------------------------------------------------------------------------- indices and limits */

__global__ void write_indices(int *out) {
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    const unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[b * threads + t] = (int)(b * threads + t);
}

TEST_F(Emulation, EveryThreadRunsOnceWithItsIndices) {
    const dim3 grid(3, 2, 4), block(5, 3, 7);
    for (const std::string &schedule : SCHEDULES) {
        emulation_set_schedule(schedule.c_str());
        std::vector<int> out(24 * 105, -1), expected(24 * 105);
        std::iota(expected.begin(), expected.end(), 0);
        EXPECT_EQ(run(write_indices, grid, block, 0, out.data()), "");
        EXPECT_EQ(out, expected);
    }
}

/* Lanes are numbered along x, then y, then z. */
__global__ void lane_below(int *out) {
    const int t = (int)((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
    out[t] = __shfl_up_sync(0xFFFFFFFFu, t, 1);
}

TEST_F(Emulation, WarpsAreRowsOfTheBlock) {
    std::vector<int> out(64);
    EXPECT_EQ(run(lane_below, 1, dim3(4, 8, 2), 0, out.data()), "");
    for (int i = 0; i < 64; i++) EXPECT_EQ(out[i], i % 32 == 0 ? i : i - 1);
}

__global__ void nothing(int *) {
}

__global__ void too_many_arrays(int *) {
    SHARED_ARRAY(char, first, 30 * 1024);
    SHARED_ARRAY(char, second, 20 * 1024);
    first[0] = second[0] = 0;
}

/* 40 KiB of arrays beside the dynamic ones. */
__global__ void large_array(int *) {
    SHARED_ARRAY(char, array, 40 * 1024);
    array[40 * 1024 - 1] = 0;
}

template <int N> __global__ void takes_dynamic(int *out) {
    DYNAMIC_SHARED(int, values);
    values[threadIdx.x] = (int)threadIdx.x;
    out[threadIdx.x] = values[threadIdx.x];
}

TEST_F(Emulation, RefusesWhatCudaRefuses) {
    const std::string invalid = "refused: " + std::to_string(cudaErrorInvalidConfiguration);
    EXPECT_EQ(run(nothing, 1, 1024, 0, nullptr), "");
    for (const dim3 &block : {dim3(1025), dim3(0), dim3(32, 33), dim3(1, 1, 65), dim3(0xFFFFFFFFu, 2)})
        EXPECT_EQ(run(nothing, 1, block, 0, nullptr), invalid);
    for (const dim3 &grid : {dim3(0), dim3(1, 65536), dim3(1, 1, 65536), dim3(0x80000000u)})
        EXPECT_EQ(run(nothing, grid, 32, 0, nullptr), invalid);
}

TEST_F(Emulation, SharedMemoryHasCudasLimits) {
    const std::string refused = "refused: " + std::to_string(cudaErrorInvalidValue);
    std::vector<int> out(32);
    EXPECT_EQ(run(takes_dynamic<0>, 1, 32, 48 * 1024, out.data()), "");
    EXPECT_EQ(run(takes_dynamic<0>, 1, 32, 48 * 1024 + 1, out.data()), refused);
    const void *other = reinterpret_cast<const void *>(takes_dynamic<1>);
    EXPECT_EQ(simt::set_dynamic_shared_limit(other, 227 * 1024 + 1), cudaErrorInvalidValue);
    EXPECT_EQ(simt::set_dynamic_shared_limit(other, 100 * 1024), cudaSuccess);
    EXPECT_EQ(run(takes_dynamic<1>, 1, 32, 100 * 1024, out.data()), "");
    EXPECT_EQ(run(takes_dynamic<1>, 1, 32, 100 * 1024 + 1, out.data()), refused);
    EXPECT_EQ(simt::set_dynamic_shared_limit(other, 227 * 1024), cudaSuccess);
    EXPECT_EQ(run(takes_dynamic<1>, 1, 32, 227 * 1024, out.data()), "");
    EXPECT_EQ(run(takes_dynamic<0>, 1, 32, 48 * 1024 + 1, out.data()), refused) << "the limit is each kernel's own";

    EXPECT_TRUE(contains(run(too_many_arrays, 1, 1, 0, nullptr), "more than the 48 KiB"));
    EXPECT_EQ(run(large_array, 1, 1, 8 * 1024, nullptr), "");
    EXPECT_TRUE(contains(run(large_array, 1, 1, 8 * 1024 + 16, nullptr), "40960 bytes of shared arrays and 8208 of"));
}

/* ----------------------------------------------------------------------------------------- barriers and collectives */

/* Whole warps may leave; the others' barriers are for those that are left. */
__global__ void barrier_after_return(int *out, int stay) {
    SHARED_ARRAY(int, values, 256);
    values[threadIdx.x] = (int)threadIdx.x;
    if ((int)threadIdx.x >= stay) return;
    for (int i = 0; i < 4; i++) {
        const int other = values[((int)threadIdx.x + 1) % stay];
        __syncthreads();
        values[threadIdx.x] = other;
        __syncthreads();
    }
    out[threadIdx.x] = values[threadIdx.x];
}

__global__ void leave_while_others_wait(int *out) {
    if (threadIdx.x < 32) {
        for (int i = 0; i < 3; i++) __syncwarp();
        return;
    }
    __syncthreads();
    out[threadIdx.x] = 1;
}

TEST_F(Emulation, BarriersDoNotCountThreadsThatHaveEnded) {
    for (const std::string &schedule : SCHEDULES) {
        emulation_set_schedule(schedule.c_str());
        std::vector<int> out(256, 0);
        EXPECT_EQ(run(leave_while_others_wait, 1, 256, 0, out.data()), "");
        EXPECT_EQ(std::accumulate(out.begin(), out.end(), 0), 224);
    }
    emulation_set_schedule("order");
    std::vector<int> out(256, -1);
    EXPECT_EQ(run(barrier_after_return, 1, 256, 0, out.data(), 256), "");
}

__global__ void block_votes(int *out, int n) {
    const int t = (int)threadIdx.x;
    const int count = __syncthreads_count(t % 3 == 0);
    const int all = __syncthreads_and(t < n), none = __syncthreads_and(t > 0);
    const int any = __syncthreads_or(t == 5), no = __syncthreads_or(t >= n);
    out[t] = count * 16 + all * 8 + none * 4 + any * 2 + no;
}

TEST_F(Emulation, BarriersCountPredicates) {
    for (const std::string &schedule : SCHEDULES) {
        emulation_set_schedule(schedule.c_str());
        std::vector<int> out(100);
        EXPECT_EQ(run(block_votes, 1, 100, 0, out.data(), 100), "");
        EXPECT_EQ(out, std::vector<int>(100, 34 * 16 + 8 + 2));
    }
}

struct Shuffled {
    int indexed, up, down, crossed;
    double wide;
    bf16 narrow;
};

__global__ void shuffle_all(Shuffled *out, int width, int distance) {
    const int l = (int)threadIdx.x, value = 100 + l;
    out[l].indexed = __shfl_sync(0xFFFFFFFFu, value, distance, width);
    out[l].up = __shfl_up_sync(0xFFFFFFFFu, value, (unsigned)distance, width);
    out[l].down = __shfl_down_sync(0xFFFFFFFFu, value, (unsigned)distance, width);
    out[l].crossed = __shfl_xor_sync(0xFFFFFFFFu, value, distance, width);
    out[l].wide = __shfl_sync(0xFFFFFFFFu, 1.0 / value, distance, width);
    out[l].narrow = __shfl_sync(0xFFFFFFFFu, from_float<bf16>((float)value), distance, width);
}

/* Against the definition: segments of `width` lanes; what would come from outside is the lane's own value. */
TEST_F(Emulation, ShufflesMoveValuesWithinSegments) {
    for (const std::string &schedule : SCHEDULES)
        for (int width = 1; width <= 32; width *= 2)
            for (int distance = 0; distance < 32; distance += 1 + distance / 4) {
                emulation_set_schedule(schedule.c_str());
                std::vector<Shuffled> out(32);
                ASSERT_EQ(run(shuffle_all, 1, 32, 0, out.data(), width, distance), "");
                for (int l = 0; l < 32; l++) {
                    const int segment = l / width * width, within = l % width;
                    const int indexed = segment + distance % width;
                    ASSERT_EQ(out[l].indexed, 100 + indexed);
                    ASSERT_EQ(out[l].wide, 1.0 / (100 + indexed));
                    ASSERT_EQ(to_float(out[l].narrow), (float)(100 + indexed));
                    ASSERT_EQ(out[l].up, 100 + (within >= distance ? l - distance : l));
                    ASSERT_EQ(out[l].down, 100 + (within + distance < width ? l + distance : l));
                    const int crossed = l ^ distance;
                    ASSERT_EQ(out[l].crossed, 100 + (crossed < segment + width ? crossed : l));
                }
            }
}

struct Voted {
    unsigned ballot, match, sum, all_bits, any_bits, odd_bits;
    int any, all, largest, smallest;
};

__global__ void vote_all(Voted *out, unsigned mask) {
    const unsigned l = threadIdx.x;
    if (!(mask >> l & 1)) return;
    out[l].ballot = __ballot_sync(mask, l % 3 == 0);
    out[l].match = __match_any_sync(mask, (int)l / 5);
    out[l].any = __any_sync(mask, l == 40);
    out[l].all = __all_sync(mask, l < 32);
    out[l].sum = __reduce_add_sync(mask, l);
    out[l].largest = __reduce_max_sync(mask, -(int)l);
    out[l].smallest = __reduce_min_sync(mask, -(int)l);
    out[l].all_bits = __reduce_and_sync(mask, l | 0x80u);
    out[l].any_bits = __reduce_or_sync(mask, 1u << l);
    out[l].odd_bits = __reduce_xor_sync(mask, l);
}

TEST_F(Emulation, VotesAndReductionsAreOverTheMask) {
    for (unsigned mask : {0xFFFFFFFFu, 0x0000FFFFu, 0xA5A5F00Fu, 0x80000000u}) {
        Voted expected = {0, 0, 0, 0xFFFFFFFFu, 0, 0, 0, 1, -1000, 1000};
        for (int l = 0; l < 32; l++) {
            if (!(mask >> l & 1)) continue;
            if (l % 3 == 0) expected.ballot |= 1u << l;
            expected.sum += (unsigned)l;
            expected.largest = std::max(expected.largest, -l);
            expected.smallest = std::min(expected.smallest, -l);
            expected.all_bits &= (unsigned)l | 0x80u;
            expected.any_bits |= 1u << l;
            expected.odd_bits ^= (unsigned)l;
        }
        std::vector<Voted> out(32);
        ASSERT_EQ(run(vote_all, 1, 32, 0, out.data(), mask), "");
        for (int l = 0; l < 32; l++) {
            if (!(mask >> l & 1)) continue;
            unsigned match = 0;
            for (int m = 0; m < 32; m++)
                if (m / 5 == l / 5) match |= mask & 1u << m;
            EXPECT_EQ(out[l].ballot, expected.ballot);
            EXPECT_EQ(out[l].match, match);
            EXPECT_EQ(out[l].any, 0);
            EXPECT_EQ(out[l].all, 1);
            EXPECT_EQ(out[l].sum, expected.sum);
            EXPECT_EQ(out[l].largest, expected.largest);
            EXPECT_EQ(out[l].smallest, expected.smallest);
            EXPECT_EQ(out[l].all_bits, expected.all_bits);
            EXPECT_EQ(out[l].any_bits, expected.any_bits);
            EXPECT_EQ(out[l].odd_bits, expected.odd_bits);
        }
    }
}

/* Parts of a warp go different ways, each with its own mask; then each lane alone: 34 masks in all. */
__global__ void separate_masks(int *out) {
    const int l = (int)threadIdx.x;
    int sum;
    if (l % 4 == 0)
        sum = __reduce_add_sync(0x11111111u, l);
    else
        sum = __reduce_add_sync(0xEEEEEEEEu, l);
    for (int i = 0; i < 32; i++)
        if (l == i) sum += __shfl_sync(1u << i, 1000, i);
    out[l] = __shfl_xor_sync(0xFFFFFFFFu, sum, 4);
}

TEST_F(Emulation, MasksThatDoNotMeetAreIndependent) {
    for (const std::string &schedule : SCHEDULES) {
        emulation_set_schedule(schedule.c_str());
        std::vector<int> out(32);
        ASSERT_EQ(run(separate_masks, 1, 32, 0, out.data()), "");
        for (int l = 0; l < 32; l++) EXPECT_EQ(out[l], 1000 + (l % 4 == 0 ? 112 : 496 - 112));
    }
}

/* The last warp of a block may be a part of one. */
TEST_F(Emulation, APartOfAWarpHasCollectives) {
    std::vector<int> out(40);
    EXPECT_EQ(run(lane_below, 1, 40, 0, out.data()), "");
    for (int i = 0; i < 40; i++) EXPECT_EQ(out[i], i % 32 == 0 ? i : i - 1);
    std::vector<float> floats(40);
    const std::string failure = run(bugs::divergent_mma<true>, 1, 40, 0, floats.data());
    EXPECT_TRUE(contains(failure, "mma in a warp of less than 32 lanes")) << failure;
}

/* Many collectives and barriers, in all orders, against a sum that is exact. */
__global__ void sum_of_warps(int *out, const int *in, int rounds) {
    SHARED_ARRAY(int, partial, 32);
    const int warps = (int)blockDim.x / 32;
    int total = 0;
    for (int round = 0; round < rounds; round++) {
        int sum = in[round * (int)blockDim.x + (int)threadIdx.x];
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
        __syncthreads();
        for (int w = 0; w < warps; w++) total += partial[w];
        __syncthreads();
    }
    out[threadIdx.x] = total;
}

TEST_F(Emulation, BlocksOfAllSizesAdd) {
    for (const std::string &schedule : SCHEDULES)
        for (int threads : {32, 96, 1024}) {
            emulation_set_schedule(schedule.c_str());
            std::vector<int> in(20 * (size_t)threads), out((size_t)threads);
            for (size_t i = 0; i < in.size(); i++) in[i] = (int)(i * 2654435761u % 1000);
            ASSERT_EQ(run(sum_of_warps, 1, threads, 0, out.data(), in.data(), 20), "");
            EXPECT_EQ(out, std::vector<int>((size_t)threads, std::accumulate(in.begin(), in.end(), 0)));
        }
}

/* A deep stack of its own for every thread that waits. */
__global__ void uses_its_stack(int *out) {
    int values[256];
    for (int i = 0; i < 256; i++) values[i] = (int)threadIdx.x * i;
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < 256; i++) sum += values[i];
    __syncthreads();
    out[threadIdx.x] = sum;
}

TEST_F(Emulation, ThreadsKeepTheirStacks) {
    for (const std::string &schedule : SCHEDULES) {
        emulation_set_schedule(schedule.c_str());
        std::vector<int> out(1024);
        ASSERT_EQ(run(uses_its_stack, 1, 1024, 0, out.data()), "");
        for (int t = 0; t < 1024; t++) ASSERT_EQ(out[t], t * 255 * 128);
    }
}

/* ----------------------------------------------------------------------------------------------- built-in functions */

TEST(Builtins, OfBits) {
    EXPECT_EQ(__float_as_uint(-2.0f), 0xC0000000u);
    EXPECT_EQ(__uint_as_float(0x3FC00000u), 1.5f);
    EXPECT_EQ(__float_as_int(-0.0f), INT_MIN);
    EXPECT_EQ(__int_as_float(0x40400000), 3.0f);
    EXPECT_EQ(__popc(0xF000000Fu), 8);
    EXPECT_EQ(__popcll(0x8000000000000001ull), 2);
    EXPECT_EQ(__ffs(0), 0);
    EXPECT_EQ(__ffs(0x50), 5);
    EXPECT_EQ(__ffsll(1ll << 40), 41);
    EXPECT_EQ(__clz(0), 32);
    EXPECT_EQ(__clz(1), 31);
    EXPECT_EQ(__clz(-1), 0);
    EXPECT_EQ(__clzll(0), 64);
    EXPECT_EQ(__clzll(1ll << 40), 23);
    EXPECT_EQ(__brev(0x80000003u), 0xC0000001u);
    EXPECT_EQ(__umulhi(0xFFFFFFFFu, 0xFFFFFFFFu), 0xFFFFFFFEu);
    EXPECT_EQ(__funnelshift_l(0x89ABCDEFu, 0x01234567u, 8), 0x23456789u);
    EXPECT_EQ(__funnelshift_r(0x89ABCDEFu, 0x01234567u, 8), 0x6789ABCDu);
    EXPECT_EQ(__funnelshift_r(0x89ABCDEFu, 0x01234567u, 32), 0x89ABCDEFu);
}

TEST(Builtins, OfNumbers) {
    EXPECT_EQ(max(1, 2u), 2u);
    EXPECT_EQ(min(-1, 2ll), -1);
    EXPECT_EQ(max(NAN, 1.0f), 1.0f);
    EXPECT_EQ(min(2.0, NAN), 2.0);
    EXPECT_EQ(rsqrtf(16.0f), 0.25f);
    EXPECT_EQ(__fdividef(6.0f, 4.0f), 1.5f);
    EXPECT_EQ(__fdividef(1e10f, 0x1p127f), 0.0f);
    EXPECT_EQ(__fdividef(1.0f, INFINITY), 0.0f);
    EXPECT_EQ(__fmaf_rn(0x1.000002p0f, 0x1.000002p0f, -0x1.000004p0f), 0x1p-46f);
    for (float x = -80; x < 80; x += 0.37f) {
        EXPECT_NEAR(__expf(x) / std::exp((double)x), 1.0, (2 + 1.173 * std::fabs(x)) * 0x1p-23) << x;
        EXPECT_NEAR(__logf(__expf(x)), x, 2e-5) << x;
    }
    EXPECT_EQ(__log2f(8.0f), 3.0f);
}

__global__ void hints_and_atomics(int *out, const int *in) {
    const int i = (int)threadIdx.x;
    __stcs(out + i, __ldg(in + i) + __ldcs(in + i));
    __stcg(out + 32 + i, __ldcg(in + i) * 3);
    __stwb(out + 64 + i, __ldca(in + i) * 4);
    atomicOr(out + 96, 1 << i);
    atomicAnd(out + 97, ~(1 << i));
    atomicXor(out + 98, i);
    atomicSub(out + 99, i);
    if (atomicCAS(out + 100, i, i + 1) == i) atomicAdd(out + 101, 1);
    out[102 + i] = atomicExch(out + 134, i);
}

TEST_F(Emulation, MemoryInstructionsDoAsTheySay) {
    std::vector<int> in(32), out(135, 0);
    std::iota(in.begin(), in.end(), 5);
    out[97] = -1;
    out[134] = -7;
    ASSERT_EQ(run(hints_and_atomics, 1, 32, 0, out.data(), in.data()), "");
    for (int i = 0; i < 32; i++) {
        EXPECT_EQ(out[i], 2 * in[i]);
        EXPECT_EQ(out[32 + i], 3 * in[i]);
        EXPECT_EQ(out[64 + i], 4 * in[i]);
        EXPECT_EQ(out[102 + i], i == 0 ? -7 : i - 1) << "in the order of threads";
    }
    EXPECT_EQ(out[96], -1);
    EXPECT_EQ(out[97], 0);
    EXPECT_EQ(out[98], 0);
    EXPECT_EQ(out[99], -496);
    EXPECT_EQ(out[100], 32);
    EXPECT_EQ(out[101], 32);
}

/* __fmul_rn is never contracted: with a fused multiply-add the difference would not be zero. */
TEST(Builtins, AProductIsRounded) {
    volatile float a = 0x1.000002p0f, c = a * a;
    EXPECT_EQ(__fmul_rn(a, a) - c, 0.0f);
}

} // namespace
