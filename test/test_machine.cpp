/* What of a machine a process has: the processors of a rank, its part of the memory, and what control groups leave. */
#include "support.h"

#include "cpu/device.h"
#include "base/host_memory.h"
#include "cpu/processors.h"

#include <algorithm>
#include <pthread.h>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace support;

using Numbers = std::vector<int>;

cpu_set_t set_of(const Numbers &processors) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int processor : processors) CPU_SET(processor, &set);
    return set;
}

Numbers numbers_of(const cpu_set_t &set) {
    Numbers processors;
    for (int processor = 0; processor < CPU_SETSIZE; processor++)
        if (CPU_ISSET(processor, &set)) processors.push_back(processor);
    return processors;
}

loom_processors share(const Numbers &allowed, const Numbers &machine, int rank, int size) {
    const cpu_set_t may = set_of(allowed), of = set_of(machine);
    return loom_processors_share(&may, &of, rank, size);
}

void expect(const loom_processors &found, const Numbers &processors, int threads, bool own) {
    EXPECT_EQ(numbers_of(found.set), processors);
    EXPECT_EQ(found.threads, threads);
    EXPECT_EQ(found.own, own);
}

const Numbers eight = {0, 1, 2, 3, 4, 5, 6, 7};

TEST(Processors, OfARankAloneAreAllThatItMayRunOn) {
    for (const int size : {0, 1}) {
        expect(share(eight, eight, 0, size), eight, 8, true);
        expect(share({2, 5}, eight, 0, size), {2, 5}, 2, true);
    }
}

TEST(Processors, OfRanksAreEqualPartsThatDoNotOverlap) {
    expect(share(eight, eight, 0, 2), {0, 1, 2, 3}, 4, true);
    expect(share(eight, eight, 1, 2), {4, 5, 6, 7}, 4, true);
    expect(share(eight, eight, 2, 3), {4, 5}, 2, true);
    expect(share(eight, eight, 7, 8), {7}, 1, true);
    expect(share({1, 4, 6, 9}, {1, 4, 6, 9}, 1, 2), {6, 9}, 2, true);
}

TEST(Processors, OfMoreRanksThanThereAreAreShared) {
    expect(share({0, 1}, {0, 1}, 2, 3), {0, 1}, 1, false);
}

TEST(Processors, OfABoundRankAreItsOwn) {
    expect(share({6, 7}, eight, 3, 4), {6, 7}, 2, true);
    expect(share({7}, eight, 1, 4), {7}, 1, true);
}

/* Four ranks, two to each of two sockets: which of the two it is a rank does not know. */
TEST(Processors, OfRanksBoundToTheSameAreSharedByThem) {
    expect(share({4, 5, 6, 7}, eight, 3, 4), {4, 5, 6, 7}, 2, false);
    expect(share({4, 5, 6, 7}, eight, 9, 16), {4, 5, 6, 7}, 1, false);
}

/* Where others compute too, and where there is room to move, the system finds the better place. */
TEST(Processors, ThatOthersHaveTooAreNoPlaceToPin) {
    if (loom_processors_of(0, 1).threads < 2) GTEST_SKIP() << "there is one processor";
    const loom_processors own = share({6, 7}, eight, 3, 4), shared = share({0, 1}, {0, 1}, 2, 3);
    EXPECT_TRUE(loom_processors_pins(&own, 2));
    EXPECT_FALSE(loom_processors_pins(&own, 1));
    EXPECT_FALSE(loom_processors_pins(&shared, 2));
    EXPECT_FALSE(loom_processors_pins(&shared, 1));
}

/* What the threads of the device's pool may run on. */
std::vector<Numbers> places_of(int threads) {
    std::vector<Numbers> places((size_t)threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int i = 0; i < threads; i++) {
        cpu_set_t set;
        pthread_getaffinity_np(pthread_self(), sizeof set, &set);
        places[(size_t)i] = numbers_of(set);
    }
    return places;
}

Device open_rank(int local_rank, int local_size, int threads = 0) {
    loom_device *device = nullptr;
    loom_device_options options = {};
    options.threads = threads;
    options.local_rank = local_rank;
    options.local_size = local_size;
    require([&](loom_error *error) { return loom_device_open(&device, "cpu", &options, error); });
    return Device(device, loom_device_close);
}

/* On the machine that this is, however many processors it has. */
TEST(Processors, OfADeviceAreThoseOfItsRank) {
    const int all = open_rank(0, 1)->threads;
    for (const int size : {1, 2, 3}) {
        Numbers used;
        for (int rank = 0; rank < size; rank++) {
            const loom_processors mine = loom_processors_of(rank, size);
            const Device device = open_rank(rank, size);
            EXPECT_EQ(device->threads, mine.threads);
            EXPECT_LE(device->threads, std::max(1, all));
            if (!mine.own || all < 2) continue;
            Numbers places;
            for (const Numbers &place : places_of(device->threads)) {
                ASSERT_EQ(place.size(), 1u) << "a thread is not pinned";
                places.push_back(place[0]);
            }
            std::sort(places.begin(), places.end());
            EXPECT_EQ(places, numbers_of(mine.set));
        }
    }
    EXPECT_EQ(open_rank(1, 2, 3)->threads, 3) << "as many as were asked for";
}

TEST(Processors, FewerThreadsThanTheRankHasAreNotPinned) {
    const int all = open_rank(0, 1)->threads;
    if (all < 2) GTEST_SKIP() << "there is one processor";
    const Device device = open_rank(0, 1, all - 1);
    EXPECT_EQ((int)places_of(1)[0].size(), all);
}

/* Memory is found free anew at each question: other programs take and give some. */
TEST(RanksMemory, IsAnEqualPart) {
    const Device one = open_rank(0, 1), quarter = open_rank(3, 4);
    if (one->available(one.get()) > SIZE_MAX / 2) GTEST_SKIP() << "the system does not say how much is free";
    const double parts = (double)one->available(one.get()) / (double)quarter->available(quarter.get());
    EXPECT_GT(parts, 3);
    EXPECT_LT(parts, 5);
}

/* A rank's part is for plans. What is left when others have taken theirs can be had. */
TEST(RanksMemory, ThatIsFreeCanBeHad) {
    const Device device = open_rank(0, 1 << 20);
    const size_t bytes = 4 * device->available(device.get());
    if (bytes > (size_t)1 << 30) GTEST_SKIP() << "the system does not say how much is free";
    void *memory = nullptr;
    require([&](loom_error *error) { return device->allocate(device.get(), &memory, bytes, error); });
    device->release(device.get(), memory, bytes);
}

/* A tree of control groups as the system shows it, of made-up ones. */
class Groups : public testing::Test {
  protected:
    void group(const std::string &path, const std::vector<std::pair<std::string, std::string>> &files) {
        fs::create_directories(here.at("sys" + path));
        for (const auto &[name, text] : files) write_file(here.at("sys" + path + "/" + name), text + "\n");
    }
    size_t left(const std::string &lines) {
        write_file(here.at("groups"), lines);
        return loom_memory_left_by_groups(here.at("groups").c_str(), here.at("sys").c_str());
    }
    static constexpr size_t no_limit = SIZE_MAX;
    TemporaryDirectory here;
};

TEST_F(Groups, LeaveTheirLimitLessWhatIsUsedAndCannotBeDropped) {
    group("/a", {{"memory.max", "1000"}, {"memory.current", "700"}});
    EXPECT_EQ(left("0::/a\n"), 300u);
    group("/a", {{"memory.stat", "anon 500\ninactive_file_not 9\ninactive_file 150\nactive_file 50"}});
    EXPECT_EQ(left("0::/a\n"), 450u);
    group("/a", {{"memory.current", "1200"}});
    EXPECT_EQ(left("0::/a\n"), 0u);
    group("/a", {{"memory.max", "max"}});
    EXPECT_EQ(left("0::/a\n"), no_limit);
}

TEST_F(Groups, AreBoundByThoseAbove) {
    group("/a/b/c", {{"memory.max", "1000"}, {"memory.current", "100"}});
    group("/a/b", {{"memory.max", "max"}, {"memory.current", "300"}});
    group("/a", {{"memory.max", "1000"}, {"memory.current", "600"}});
    EXPECT_EQ(left("0::/a/b/c\n"), 400u);
    EXPECT_EQ(left("0::/x/y\n"), no_limit);
    group("", {{"memory.max", "500"}, {"memory.current", "450"}});
    for (const char *line : {"0::/a/b/c\n", "0::/\n", "0::/the/name/outside\n", "0::/../elsewhere"})
        EXPECT_EQ(left(line), 50u) << line;
}

TEST_F(Groups, OfVersion1HaveOtherNames) {
    group("/memory/a", {{"memory.limit_in_bytes", "1000"}, {"memory.usage_in_bytes", "700"}});
    group("/memory/a", {{"memory.stat", "inactive_file 1\ntotal_inactive_file 200"}});
    EXPECT_EQ(left("11:cpuset:/b\n4:memory:/a\n0::/c\n"), 500u);
    EXPECT_EQ(left("11:cpuset:/a\n1:cpu,cpuacct:/a\n"), no_limit);
    group("/memory", {{"memory.limit_in_bytes", "9223372036854771712"}, {"memory.usage_in_bytes", "800"}});
    EXPECT_EQ(left("4:hugetlb,memory:/a\n"), 500u);
}

TEST_F(Groups, ThatAreNotThereLeaveAll) {
    EXPECT_EQ(left(""), no_limit);
    EXPECT_EQ(left("no line of groups\n0::\n:\n"), no_limit);
    EXPECT_EQ(loom_memory_left_by_groups(here.at("none").c_str(), here.at("none").c_str()), no_limit);
}

} // namespace
