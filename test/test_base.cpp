/* The ground floor: random numbers, the arena, checked files, nearest names, errors, views. */
#include "base/check.h"
#include "base/file.h"
#include "ops/finite.h"
#include "base/lock.h"
#include "base/lock_holder.h"
#include "base/nearest.h"
#include "base/printable.h"
#include "support.h"

#include <array>
#include <cfloat>
#include <climits>
#include <cstdint>
#include <fstream>
#include <set>
#include <thread>

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>

#if defined(__SANITIZE_ADDRESS__)
#    include <sanitizer/asan_interface.h>
#endif

namespace {

using namespace support;

/* --------------------------------------------------------------------------------------------------- random numbers */

struct Answer {
    uint32_t counter[4], key[2], words[4];
};

/* The three vectors of Philox4x32-10 that the authors publish with Random123 (kat_vectors). */
TEST(Philox, GivesThePublishedAnswers) {
    const Answer answers[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (const Answer &answer : answers) {
        const loom_random4 found = loom_philox(answer.counter, answer.key);
        for (int i = 0; i < 4; i++) EXPECT_EQ(found.word[i], answer.words[i]) << "word " << i;
    }
}

/* Each of the four keeps its own words of counter and key, so that streams cannot meet. */
TEST(Philox, SeedPurposeStepAndIndexHaveTheirOwnPlaces) {
    const uint64_t seed = 0x0123456789abcdef, index = 0xfedcba9876543210;
    const uint32_t counter[4] = {0x76543210, 0xfedcba98, 77, LOOM_RANDOM_SAMPLE}, key[2] = {0x89abcdef, 0x01234567};
    const loom_random4 direct = loom_philox(counter, key), named = loom_random(seed, LOOM_RANDOM_SAMPLE, 77, index);
    EXPECT_EQ(memcmp(&direct, &named, sizeof named), 0);
}

/* Many at once are those of one at a time, over the end of the low half of the index too. */
TEST(Philox, WordsOfManyIndicesAreThoseOfEach) {
    const uint64_t seed = 0x0123456789ABCDEFull;
    for (const uint64_t first : {uint64_t{0}, (uint64_t{1} << 32) - 7, UINT64_MAX - 40}) {
        for (const int64_t n : {int64_t{1}, int64_t{3}, int64_t{41}}) {
            std::vector<uint32_t> words(4 * (size_t)n + 1, 7);
            loom_random_words(words.data(), n, seed, LOOM_RANDOM_ROUNDING, 9, first);
            for (int64_t i = 0; i < n; i++) {
                const loom_random4 one = loom_random(seed, LOOM_RANDOM_ROUNDING, 9, first + (uint64_t)i);
                for (int w = 0; w < 4; w++)
                    ASSERT_EQ(words[4 * (size_t)i + (size_t)w], one.word[w]) << first << " " << i;
            }
            EXPECT_EQ(words.back(), 7u);
        }
    }
}

TEST(Philox, UniformValuesFillTheUnitIntervalWithoutItsEnd) {
    EXPECT_EQ(loom_random_uniform(0), 0.0f);
    EXPECT_EQ(loom_random_uniform(0x80000000), 0.5f);
    EXPECT_EQ(loom_random_uniform(0xffffffff), 1 - 0x1p-24f);
    EXPECT_EQ(loom_random_uniform(0x000000ff), 0.0f) << "only 24 bits count, or rounding could give 1";
}

/* Moments and dependences of n values lie within 5 standard errors of a normal distribution's; so do the counts in 64
 * bins of equal probability. */
TEST(NormalValues, AreStandardNormalAndIndependent) {
    const int64_t n = 1 << 18;
    std::vector<float> x((size_t)n);
    loom_random_normal(x.data(), n, 42, LOOM_RANDOM_TEST, 3, 0);
    const double errors = 5 / std::sqrt((double)n);
    double sum[5] = {0};
    std::array<int64_t, 64> bin = {};
    for (const float value : x) {
        double power = 1;
        for (int k = 1; k < 5; k++) sum[k] += power *= (double)value;
        const double below = 0.5 * std::erfc(-(double)value / std::sqrt(2.0));
        bin[(size_t)std::min(63.0, 64 * below)]++;
    }
    EXPECT_NEAR(sum[1] / (double)n, 0, errors);
    EXPECT_NEAR(sum[2] / (double)n, 1, errors * std::sqrt(2.0));
    EXPECT_NEAR(sum[3] / (double)n, 0, errors * std::sqrt(15.0));
    EXPECT_NEAR(sum[4] / (double)n, 3, errors * std::sqrt(96.0));
    double chi_square = 0;
    for (const int64_t count : bin)
        chi_square += ((double)count - (double)n / 64) * ((double)count - (double)n / 64) / ((double)n / 64);
    EXPECT_NEAR(chi_square, 63, 5 * std::sqrt(2 * 63.0));

    /* Neighbours, the four values of one counter among them: neither they nor their squares go together. */
    for (int64_t distance = 1; distance <= 8; distance++) {
        double together = 0, squares = 0;
        for (int64_t i = 0; i + distance < n; i++) {
            const double a = (double)x[(size_t)i], b = (double)x[(size_t)(i + distance)];
            together += a * b;
            squares += (a * a - 1) * (b * b - 1);
        }
        EXPECT_NEAR(together / (double)n, 0, errors) << "distance " << distance;
        EXPECT_NEAR(squares / (double)n, 0, 2 * errors) << "distance " << distance;
    }
}

TEST(NormalValues, AreTheSameHoweverASequenceIsCut) {
    const int64_t n = 203;
    for (const uint64_t first : {UINT64_C(0), UINT64_C(5), (UINT64_C(1) << 34) - 3}) {
        std::vector<float> whole((size_t)n), pieces((size_t)n);
        loom_random_normal(whole.data(), n, 9, LOOM_RANDOM_INIT, 1, first);
        int64_t at = 0;
        for (int64_t length = 0; at < n; length++) { /* 0, 1, 2, ... values at a time: every phase of a group of four */
            const int64_t count = std::min(length, n - at);
            loom_random_normal(pieces.data() + at, count, 9, LOOM_RANDOM_INIT, 1, first + (uint64_t)at);
            at += count;
        }
        EXPECT_EQ(memcmp(whole.data(), pieces.data(), (size_t)n * sizeof(float)), 0) << "from " << first;
    }
}

TEST(NormalValues, DifferWithSeedPurposeStepAndPlace) {
    std::set<std::array<float, 8>> seen;
    const auto take = [&](uint64_t seed, loom_random_purpose purpose, uint32_t step, uint64_t first) {
        std::array<float, 8> values;
        loom_random_normal(values.data(), 8, seed, purpose, step, first);
        EXPECT_TRUE(seen.insert(values).second) << seed << " " << purpose << " " << step << " " << first;
    };
    take(1, LOOM_RANDOM_INIT, 1, 0);
    take(2, LOOM_RANDOM_INIT, 1, 0);
    take(UINT64_C(1) << 32 | 1, LOOM_RANDOM_INIT, 1, 0);
    take(1, LOOM_RANDOM_SAMPLE, 1, 0);
    take(1, LOOM_RANDOM_INIT, 2, 0);
    take(1, LOOM_RANDOM_INIT, 1, 8);
    take(1, LOOM_RANDOM_INIT, 1, UINT64_C(1) << 40);
}

/* ------------------------------------------------------------------------------------------------------------ arena */

/* Memory for an arena, given back unpoisoned. */
class Memory {
  public:
    explicit Memory(size_t bytes) : data((char *)std::aligned_alloc(LOOM_ARENA_ALIGNMENT, bytes)), size(bytes) {
        memset(data, 0, size);
    }
    ~Memory() {
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(data, size);
#endif
        std::free(data);
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    char *const data;
    const size_t size;
};

const size_t region_sizes[] = {1, 255, 256, 257, 0, 100000, 64};

std::vector<char *> take_all(loom_arena *arena) {
    const char *const names[] = {"parameters", "gradients", "parameters", "activations"};
    std::vector<char *> regions;
    for (size_t i = 0; i < std::size(region_sizes); i++)
        regions.push_back((char *)loom_arena_take(arena, names[i % 4], region_sizes[i]));
    return regions;
}

TEST(Arena, RegionsAreAlignedApartAndInside) {
    const Memory memory(1 << 18);
    loom_arena arena = loom_arena_over(memory.data, memory.size, true);
    const std::vector<char *> regions = take_all(&arena);
    const char *free_from = memory.data;
    for (size_t i = 0; i < regions.size(); i++) {
        EXPECT_EQ((uintptr_t)regions[i] % LOOM_ARENA_ALIGNMENT, 0u);
        EXPECT_GE(regions[i], free_from) << "region " << i;
        free_from = regions[i] + region_sizes[i] + LOOM_ARENA_ALIGNMENT;
    }
    EXPECT_LE(free_from, memory.data + arena.used) << "the last gap is part of the arena";
    EXPECT_LE(arena.used, memory.size);
}

TEST(Arena, RowsAddUpToWhatIsUsed) {
    loom_arena arena = loom_arena_measure();
    take_all(&arena);
    ASSERT_EQ(arena.n_rows, 3);
    EXPECT_STREQ(arena.row[0].name, "parameters");
    EXPECT_STREQ(arena.row[1].name, "gradients");
    EXPECT_STREQ(arena.row[2].name, "activations");
    EXPECT_EQ(arena.row[0].bytes + arena.row[1].bytes + arena.row[2].bytes, arena.used);
    EXPECT_EQ(arena.row[1].bytes, 512u + 100096 + 256) << "255 and 100000 bytes, rounded up, and their gaps";
}

TEST(Arena, MeasuringGivesNoMemoryAndTheRealUse) {
    const Memory memory(1 << 18);
    loom_arena measured = loom_arena_measure();
    for (const char *region : take_all(&measured)) EXPECT_EQ(region, nullptr);
    loom_arena real = loom_arena_over(memory.data, measured.used, true);
    take_all(&real); /* exactly as much as was measured: all of it fits */
    EXPECT_EQ(real.used, measured.used);
    ASSERT_EQ(real.n_rows, measured.n_rows);
    for (int i = 0; i < real.n_rows; i++) EXPECT_EQ(real.row[i].bytes, measured.row[i].bytes);
}

TEST(ArenaDeathTest, WhatWasNotPlannedIsTheProgrammersMistake) {
    const Memory memory(4096);
    loom_arena arena = loom_arena_over(memory.data, 1024, true);
    EXPECT_NE(loom_arena_take(&arena, "a", 700), nullptr) << "with its gap it just fits";
    EXPECT_DEATH(loom_arena_take(&arena, "a", 1), "arena\\.c:[0-9]+: this must hold and does not: .*size");
    EXPECT_DEATH(loom_arena_over(memory.data + 128, 1024, true), "this must hold");
    EXPECT_DEATH(loom_arena_over(nullptr, 1024, true), "this must hold");
    loom_arena measured = loom_arena_measure();
    EXPECT_DEATH(loom_arena_take(&measured, "a", SIZE_MAX), "this must hold") << "sizes do not wrap around";
    EXPECT_DEATH(
        {
            static char names[LOOM_ARENA_MAX_ROWS + 1][16];
            for (int i = 0; i <= LOOM_ARENA_MAX_ROWS; i++) {
                snprintf(names[i], sizeof names[i], "%d", i);
                loom_arena_take(&measured, names[i], 1);
            }
        },
        "LOOM_ARENA_MAX_ROWS");
}

TEST(Arena, GapsArePoisonedUnderAddressSanitizer) {
#if defined(__SANITIZE_ADDRESS__)
    const Memory memory(1 << 18);
    loom_arena arena = loom_arena_over(memory.data, memory.size, true);
    const std::vector<char *> regions = take_all(&arena);
    for (size_t i = 0; i < regions.size(); i++) {
        EXPECT_EQ(__asan_region_is_poisoned(regions[i], region_sizes[i]), nullptr) << "region " << i;
        EXPECT_TRUE(__asan_address_is_poisoned(regions[i] + region_sizes[i])) << "behind region " << i;
        const char *next = i + 1 < regions.size() ? regions[i + 1] : memory.data + arena.used;
        EXPECT_TRUE(__asan_address_is_poisoned(next - 1)) << "before region " << i + 1;
    }
    const Memory remote(4096);
    loom_arena unfenced = loom_arena_over(remote.data, remote.size, false);
    const char *region = (char *)loom_arena_take(&unfenced, "a", 8);
    EXPECT_FALSE(__asan_address_is_poisoned(region + 8)) << "memory of a device is not the host's to mark";
#else
    GTEST_SKIP() << "poisoned gaps need a build with AddressSanitizer";
#endif
}

TEST(Arena, RegionsHoldNaNsInDebugBuilds) {
#ifdef LOOM_DEBUG_FILL
    const Memory memory(4096);
    loom_arena arena = loom_arena_over(memory.data, memory.size, true);
    const char *region = (char *)loom_arena_take(&arena, "a", 600);
    for (size_t i = 0; i + 4 <= 600; i += 4) {
        float single;
        memcpy(&single, region + i, sizeof single);
        EXPECT_TRUE(std::isnan(single)) << "as fp32, byte " << i;
    }
    for (size_t i = 0; i + 2 <= 600; i += 2) {
        uint16_t half;
        memcpy(&half, region + i, sizeof half);
        EXPECT_TRUE((half & 0x7F80) == 0x7F80 && (half & 0x7F)) << "as bf16, byte " << i;
    }
    for (size_t i = 0; i + 8 <= 600; i += 8) {
        double wide;
        memcpy(&wide, region + i, sizeof wide);
        EXPECT_TRUE(std::isnan(wide) || std::fabs(wide) > 1e300) << "as fp64, byte " << i;
    }
#else
    GTEST_SKIP() << "regions are filled in debug builds only (SANITIZE=...)";
#endif
}

/* ------------------------------------------------------------------------------------------------------------ files */

/* While it lives, a process of root's has the rights of nobody, so that permissions can be tested. */
class Unprivileged {
  public:
    Unprivileged() : was_root_(geteuid() == 0), able_(!was_root_ || seteuid(65534) == 0) {
    }
    ~Unprivileged() {
        if (was_root_ && able_ && seteuid(0) != 0) abort();
    }
    Unprivileged(const Unprivileged &) = delete;
    Unprivileged &operator=(const Unprivileged &) = delete;
    bool able() const {
        return able_;
    }

  private:
    const bool was_root_, able_;
};

class Files : public testing::Test {
  protected:
    TemporaryDirectory directory;

    std::string at(const std::string &name) const {
        return directory.at(name);
    }
    std::string write(const std::string &name, const std::string &content) const {
        write_file(at(name), content);
        return at(name);
    }
    std::set<std::string> names() const {
        std::set<std::string> all;
        for (const auto &entry : fs::directory_iterator(directory.path())) all.insert(entry.path().filename());
        return all;
    }
};

std::string random_bytes(size_t n) {
    std::string bytes(n, 0);
    for (size_t i = 0; i < n; i++) bytes[i] = (char)loom_random(1, LOOM_RANDOM_TEST, 0, i).word[0];
    return bytes;
}

std::string checksum_of(const std::string &bytes) {
    char checksum[33];
    loom_checksum(bytes.data(), bytes.size(), checksum);
    return checksum;
}

/* The empty input's XXH3-128, as its specification gives it. */
TEST_F(Files, TheChecksumIsXXH3) {
    EXPECT_EQ(checksum_of(""), "99aa06d3014798d86001c324468d497f");
    EXPECT_NE(checksum_of("a"), checksum_of("b"));
}

TEST_F(Files, AWriterWritesWhatItIsGivenAndKnowsItsChecksum) {
    const std::string content = random_bytes(900000);
    const size_t cuts[] = {0, 1, 65535, 65536, 65537, 0, 200000, 3, 131072}; /* around the buffer's 65536 */
    for (size_t start = 0; start < std::size(cuts); start++) {
        loom_writer *writer = nullptr;
        fs::remove(at("a"));
        ASSERT_TRUE(
            works([&](loom_error *error) { return (writer = loom_writer_open(at("a").c_str(), error)) != NULL; }));
        size_t done = 0;
        for (size_t i = start; i < std::size(cuts); i++) {
            ASSERT_TRUE(works(
                [&](loom_error *error) { return loom_writer_write(writer, content.data() + done, cuts[i], error); }));
            done += cuts[i];
        }
        uint64_t size = 0;
        char checksum[33] = "";
        ASSERT_TRUE(works([&](loom_error *error) { return loom_writer_close(writer, &size, checksum, error); }));
        EXPECT_EQ(size, done);
        EXPECT_EQ(read_file(at("a")), content.substr(0, done));
        EXPECT_EQ(checksum, checksum_of(content.substr(0, done)));
    }
}

TEST_F(Files, AWriterRefusesWhatCannotBeWritten) {
    const auto open = [](const std::string &path) {
        return [path](loom_error *error) {
            loom_writer *writer = loom_writer_open(path.c_str(), error);
            if (writer) loom_writer_close(writer, NULL, NULL, NULL);
            return writer != NULL;
        };
    };
    refusal(open(at("none/a")), {at("none/a"), "cannot be written", "No such file"});
    refusal(open(directory.path()), {directory.path().string(), "cannot be written"});
    refusal(open("/" + std::string(PATH_MAX, 'x')), {"name is too long"});
}

TEST_F(Files, AFullDiskIsToldOfWhereverItStrikes) {
    const std::string content = random_bytes(300000), path = at("a");
    for (const rlim_t room : {0, 1, 65536, 65537, 299999}) {
        loom_error error = {""};
        bool ok = true;
        {
            const FullDisk full(room);
            loom_writer *writer = loom_writer_open(path.c_str(), &error);
            for (size_t i = 0; ok && i < content.size(); i += 10000)
                ok = loom_writer_write(writer, content.data() + i, 10000, &error);
            if (ok)
                ok = loom_writer_close(writer, NULL, NULL, &error);
            else
                loom_writer_abandon(writer);
        }
        EXPECT_FALSE(ok) << "room for " << room;
        EXPECT_NE(std::string(error.message).find(path + ": cannot be written: "), std::string::npos) << error.message;
    }
}

TEST_F(Files, AnAbandonedWriterLeavesNothing) {
    loom_writer *writer = nullptr;
    ASSERT_TRUE(works([&](loom_error *error) {
        return (writer = loom_writer_open(at("a").c_str(), error)) != NULL &&
               loom_writer_write(writer, "content", 7, error);
    }));
    loom_writer_abandon(writer);
    loom_writer_abandon(NULL);
    EXPECT_TRUE(names().empty());
}

/* One makes a file that others fill, in any order, at any place; who gives up leaves it to them. */
TEST_F(Files, SeveralWritersFillOneFile) {
    const std::string path = at("shared"), header = "header", content = random_bytes(900000);
    const uint64_t size = header.size() + content.size() + 10;
    uint64_t found_size = 0;
    char checksum[33] = "?";
    loom_writer *writer = nullptr;
    ASSERT_TRUE(works([&](loom_error *error) {
        return (writer = loom_writer_open(path.c_str(), error)) != NULL &&
               loom_writer_write(writer, header.data(), header.size(), error) &&
               loom_writer_extend(writer, size, error) && loom_writer_close(writer, &found_size, checksum, error);
    }));
    EXPECT_EQ(found_size, size);
    EXPECT_STREQ(checksum, "");
    EXPECT_EQ(read_file(path), header + std::string(content.size() + 10, 0));

    loom_writer *part[2];
    for (auto &p : part)
        ASSERT_TRUE(works([&](loom_error *e) { return (p = loom_writer_open_part(path.c_str(), e)); }));
    const size_t piece = 50001; /* the buffer holds one of them */
    for (size_t i = 0, n = (content.size() + piece - 1) / piece; i < n; i++) {
        const size_t first = (i * 5 % n) * piece,
                     bytes = std::min(piece, content.size() - first); /* n and 5: coprime */
        ASSERT_TRUE(works([&](loom_error *e) {
            return loom_writer_seek(part[i % 2], header.size() + first, e) &&
                   loom_writer_write(part[i % 2], content.data() + first, bytes, e);
        }));
    }
    for (auto *p : part) ASSERT_TRUE(works([&](loom_error *e) { return loom_writer_close(p, NULL, NULL, e); }));
    const std::string whole = header + content + std::string(10, 0);
    EXPECT_TRUE(read_file(path) == whole);
    ASSERT_TRUE(works([&](loom_error *e) { return loom_file_checksum(path.c_str(), &found_size, checksum, e); }));
    EXPECT_EQ(found_size, size);
    EXPECT_EQ(checksum, checksum_of(whole));

    ASSERT_TRUE(works([&](loom_error *e) { return (writer = loom_writer_open_part(path.c_str(), e)) != NULL; }));
    loom_writer_abandon(writer);
    EXPECT_TRUE(read_file(path) == whole);
    refusal([&](loom_error *e) { return loom_writer_open_part(at("missing").c_str(), e) != NULL; },
            {at("missing"), "No such file"});
    EXPECT_FALSE(fs::exists(at("missing")));
    ASSERT_TRUE(works([&](loom_error *e) { return (writer = loom_writer_open(at("full").c_str(), e)) != NULL; }));
    bool extended;
    {
        const FullDisk full(1000);
        extended = loom_writer_extend(writer, 1001, NULL);
        loom_writer_abandon(writer);
    }
    EXPECT_FALSE(extended);
    EXPECT_FALSE(fs::exists(at("full")));
}

/* Who has the old file open keeps it whole: the new one takes its name, not its place on disk. */
TEST_F(Files, ReplacingPutsAWholeNewFileInTheOldOnesPlace) {
    const std::string path = write("a", "the old content");
    fs::create_hard_link(path, at("old"));
    const std::string longer = random_bytes(100000);
    ASSERT_TRUE(
        works([&](loom_error *error) { return loom_file_replace(path.c_str(), longer.data(), longer.size(), error); }));
    EXPECT_EQ(read_file(path), longer);
    EXPECT_EQ(read_file(at("old")), "the old content");
    ASSERT_TRUE(works([&](loom_error *error) { return loom_file_replace(path.c_str(), "", 0, error); }));
    EXPECT_EQ(read_file(path), "");
    EXPECT_EQ(names(), (std::set<std::string>{"a", "old"}));
}

TEST_F(Files, OnlyAFileIsReplacedByAFile) {
    const std::string pipe = directory.at("pipe");
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    loom_error error = {""};
    EXPECT_FALSE(loom_file_replace(pipe.c_str(), "x", 1, &error));
    EXPECT_NE(std::string(error.message).find(pipe), std::string::npos) << error.message;
    EXPECT_TRUE(fs::is_fifo(pipe));
}

TEST_F(Files, AFailedReplacementLeavesTheOldFileAndNothingElse) {
    const std::string path = write("a", "the old content"), content = random_bytes(100000);
    for (const rlim_t room : {0, 70000, 99999}) {
        loom_error error = {""};
        bool ok;
        {
            const FullDisk full(room);
            ok = loom_file_replace(path.c_str(), content.data(), content.size(), &error);
        }
        EXPECT_FALSE(ok) << "room for " << room;
        EXPECT_NE(std::string(error.message).find(path), std::string::npos) << error.message;
        EXPECT_EQ(read_file(path), "the old content");
        EXPECT_EQ(names(), std::set<std::string>{"a"});
    }
    fs::create_directory(at("d"));
    refusal([&](loom_error *error) { return loom_file_replace(at("d").c_str(), "x", 1, error); }, {at("d")});
    EXPECT_EQ(names(), (std::set<std::string>{"a", "d"}));
    const std::string long_name = "/" + std::string(PATH_MAX - 4, 'x');
    refusal([&](loom_error *error) { return loom_file_replace(long_name.c_str(), "x", 1, error); }, {"too long"});
}

/* What waits under a name that we are to write to may be anybody's. */
TEST_F(Files, NoWriterOpensWhatIsThereOrFollowsALink) {
    const auto opens = [](loom_writer *(*open)(const char *, loom_error *), const std::string &path) {
        return [open, path](loom_error *error) {
            loom_writer *writer = open(path.c_str(), error);
            loom_writer_abandon(writer);
            return writer != NULL;
        };
    };
    const std::string victim = write("victim", "precious");
    fs::create_symlink(victim, at("link"));
    fs::create_symlink(at("made"), at("dangling"));
    for (const std::string &path : {victim, at("link"), at("dangling")})
        refusal(opens(loom_writer_open, path), {path, "cannot be written", "File exists"});
    refusal(opens(loom_writer_open_part, at("link")), {at("link"), "cannot be written"});
    for (const char *path : {"link", "dangling"}) {
        refusal([&](loom_error *error) { return loom_file_append(at(path).c_str(), error) != NULL; },
                {at(path), "symbolic link"});
        refusal([&](loom_error *error) { return loom_file_cut(at(path).c_str(), 0, error); },
                {at(path), "symbolic link"});
        ASSERT_TRUE(works([&](loom_error *error) { return loom_file_replace(at(path).c_str(), "x", 1, error); }));
        EXPECT_FALSE(fs::is_symlink(at(path)));
    }
    EXPECT_EQ(read_file(victim), "precious");
    EXPECT_EQ(names(), (std::set<std::string>{"dangling", "link", "victim"}));
}

/* Two that write the same file at once, or one that was killed, leave each other's temporary files alone. */
TEST_F(Files, NoTwoTemporaryNamesAreAlike) {
    std::set<std::string> all;
    char name[PATH_MAX];
    for (int i = 0; i < 100; i++) {
        ASSERT_TRUE(works([&](loom_error *error) { return loom_temporary_path("a/b/c", name, sizeof name, error); }));
        EXPECT_EQ(fs::path(name).parent_path(), "a/b");
        EXPECT_TRUE(loom_is_temporary(fs::path(name).filename().c_str())) << name;
        all.insert(name);
    }
    EXPECT_EQ(all.size(), 100u);
    for (const char *other : {".tmp-", ".tmp-0123", ".tmp-0123456789abcdeg", "a.tmp-0123456789abcdef", ".tmp-latest"})
        EXPECT_FALSE(loom_is_temporary(other)) << other;
}

TEST_F(Files, AppendingAndCutting) {
    const std::string path = at("a"), pipe = at("pipe");
    for (const char *text : {"one\n", "two\n"}) {
        FILE *file = nullptr;
        ASSERT_TRUE(works([&](loom_error *error) { return (file = loom_file_append(path.c_str(), error)) != NULL; }));
        fputs(text, file);
        EXPECT_EQ(fclose(file), 0);
    }
    EXPECT_EQ(read_file(path), "one\ntwo\n");
    for (const uint64_t size : {100, 4}) {
        ASSERT_TRUE(works([&](loom_error *error) { return loom_file_cut(path.c_str(), size, error); }));
        EXPECT_EQ(read_file(path), size == 4 ? "one\n" : "one\ntwo\n");
    }
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    for (const std::string &other : {pipe, directory.path().string()}) { /* and nobody waits for the pipe's other end */
        refusal([&](loom_error *error) { return loom_file_append(other.c_str(), error) != NULL; }, {other});
        refusal([&](loom_error *error) { return loom_file_open(other.c_str(), error) != NULL; },
                {other, "not a regular"});
    }
}

/* Where a user points, output goes: through links, which stay, and into what is no regular file. */
TEST_F(Files, OutputGoesWhereTheUserPoints) {
    const std::string text = "the text\n", real = write("real", "old"), pipe = at("pipe");
    const auto put = [&](const std::string &path) {
        return works(
            [&](loom_error *error) { return loom_output_write(path.c_str(), text.data(), text.size(), error); });
    };
    fs::permissions(real, fs::perms(0600));
    fs::create_directory(at("d"));
    fs::create_symlink("../real", at("d/link"));
    fs::create_symlink("d/link", at("link"));
    fs::create_symlink("made", at("dangling"));
    ASSERT_TRUE(put(at("link")));
    ASSERT_TRUE(put(at("dangling")));
    ASSERT_TRUE(put(at("new")));
    for (const char *name : {"real", "made", "new"}) EXPECT_EQ(read_file(at(name)), text) << name;
    for (const char *name : {"link", "d/link", "dangling"}) EXPECT_TRUE(fs::is_symlink(at(name))) << name;
    EXPECT_EQ(fs::status(real).permissions(), fs::perms(0600));
    EXPECT_EQ(names(), (std::set<std::string>{"d", "dangling", "link", "made", "new", "real"}));

    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    const int reader = open(pipe.c_str(), O_RDWR);
    fs::create_symlink("pipe", at("to-pipe"));
    char read_back[32] = "";
    EXPECT_TRUE(loom_output_is_stream(at("to-pipe").c_str()));
    ASSERT_TRUE(put(at("to-pipe")));
    EXPECT_EQ(read(reader, read_back, sizeof read_back), (ssize_t)text.size());
    close(reader);
    EXPECT_EQ(read_back, text);
    EXPECT_TRUE(fs::is_fifo(pipe));
    ASSERT_TRUE(put("/dev/null"));
    EXPECT_TRUE(fs::is_character_file("/dev/null"));
    EXPECT_FALSE(loom_output_is_stream(real.c_str()));
    EXPECT_TRUE(loom_output_is_stdout("-"));
    EXPECT_TRUE(loom_output_is_stdout("/dev/stdout"));
    EXPECT_FALSE(loom_output_is_stdout(real.c_str()));
    for (const std::string &wrong : {at("d"), at("none/a")}) {
        refusal([&](loom_error *error) { return loom_output_write(wrong.c_str(), "x", 1, error); }, {wrong});
        refusal([&](loom_error *error) { return loom_output_check(wrong.c_str(), error); }, {wrong});
    }
    for (const std::string &right : {real, at("link"), at("dangling"), at("to-pipe"), std::string("-")})
        EXPECT_TRUE(works([&](loom_error *error) { return loom_output_check(right.c_str(), error); })) << right;
}

/* What is tried in a directory leaves nothing; what cannot be used is told. */
TEST_F(Files, ADirectoryIsTried) {
    EXPECT_TRUE(works([&](loom_error *error) { return loom_try_directory(directory.path().c_str(), error); }));
    EXPECT_TRUE(names().empty());
    for (const std::string &path : {at("none"), std::string("/proc")})
        refusal([&](loom_error *error) { return loom_try_directory(path.c_str(), error); },
                {path, "cannot be written"});
    {
        loom_error error = {""};
        bool ok;
        {
            const FullDisk full(3);
            ok = loom_try_directory(directory.path().c_str(), &error);
        }
        EXPECT_FALSE(ok);
        EXPECT_NE(std::string(error.message).find("File too large"), std::string::npos) << error.message;
    }
    EXPECT_TRUE(names().empty());
}

TEST_F(Files, DirectoriesOfOthersAreRefused) {
    fs::create_directory(at("d"));
    fs::create_directory_symlink("d", at("link"));
    const auto check = [&](const char *name) {
        return [&, name](loom_error *error) { return loom_check_place(at(name).c_str(), error); };
    };
    EXPECT_TRUE(works(check("d")));
    EXPECT_TRUE(works(check("link")));
    if (geteuid() != 0) GTEST_SKIP() << "needs two users: run it as root";
    ASSERT_EQ(lchown(at("link").c_str(), 4321, 4321), 0);
    refusal(check("link"), {at("link"), "another user", "4321"});
    ASSERT_EQ(lchown(at("link").c_str(), 0, 0), 0);
    ASSERT_EQ(chown(at("d").c_str(), 4321, 4321), 0);
    refusal(check("link"), {at("link"), "another user"});
    refusal(check("d"), {at("d"), "another user", "4321", "chown"});
    EXPECT_TRUE(fs::is_empty(at("d")));
    ASSERT_EQ(chown(at("d").c_str(), 0, 0), 0);
    ASSERT_EQ(chmod(directory.path().c_str(), 0755), 0);
    const fs::path before = fs::current_path();
    fs::current_path(directory.path()); /* whatever is above it is not to be passed through */
    ASSERT_EQ(seteuid(4321), 0);        /* root's is no other user's */
    EXPECT_TRUE(works([](loom_error *error) { return loom_check_place("d", error); }));
    ASSERT_EQ(seteuid(0), 0);
    fs::current_path(before);
}

TEST_F(Files, DirectoriesThatAllMayWriteToAreRefused) {
    fs::create_directories(at("a/b"));
    fs::create_directory_symlink("a/b", at("link"));
    const auto check = [&](const char *name) {
        return [&, name](loom_error *error) { return loom_check_place(at(name).c_str(), error); };
    };
    const auto mode = [&](const char *name, mode_t bits) { ASSERT_EQ(chmod(at(name).c_str(), bits), 0); };
    for (const char *name : {"a/b", "link"}) {
        mode("a/b", 0775);
        EXPECT_TRUE(works(check(name)));
        mode("a/b", 0777);
        refusal(check(name), {at(name) + ": all users may write to it (mode 0777)", "chmod o-w"});
        mode("a/b", 01777);
        refusal(check(name), {at(name) + ": all users may write to it (mode 1777)", "one below it"});
    }
    mode("a/b", 0755);
    mode("a", 0777); /* as the directories that containers are given */
    EXPECT_TRUE(works(check("a/b")));
}

/* In a container without root, which of those that it does not know owns a directory is not to be seen. */
TEST_F(Files, OwnersThatAUserNamespaceDoesNotKnowAreNoReason) {
    if (geteuid() != 0) GTEST_SKIP() << "needs two users: run it as root";
    fs::create_directories(at("d"));
    ASSERT_EQ(chown(at("d").c_str(), 4321, 4321), 0);
    const std::string path = at("d");
    const pid_t child = fork();
    if (child == 0) {
        if (unshare(CLONE_NEWUSER) != 0 || !(std::ofstream("/proc/self/uid_map") << "0 0 1\n").flush()) _exit(2);
        _exit(loom_check_place(path.c_str(), NULL) ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == 2) GTEST_SKIP() << "no user namespaces here";
    EXPECT_EQ(WEXITSTATUS(status), 0);
    refusal([&](loom_error *error) { return loom_check_place(path.c_str(), error); }, {at("d")});
}

TEST_F(Files, AMappingHasTheWholeFile) {
    const std::string content = random_bytes(10001);
    loom_mapping mapping;
    ASSERT_TRUE(works([&](loom_error *error) { return loom_file_map(write("a", content).c_str(), &mapping, error); }));
    EXPECT_EQ(std::string((const char *)mapping.data, mapping.size), content);
    loom_file_unmap(&mapping);
    EXPECT_EQ(mapping.data, nullptr);
    EXPECT_EQ(mapping.size, 0u);
    ASSERT_TRUE(works([&](loom_error *error) { return loom_file_map(write("b", "").c_str(), &mapping, error); }));
    EXPECT_EQ(mapping.data, nullptr);
    EXPECT_EQ(mapping.size, 0u);
    loom_file_unmap(&mapping);
}

TEST_F(Files, WhatCannotBeReadIsNamedWithTheReason) {
    const auto map = [](const std::string &path) {
        return [path](loom_error *error) {
            loom_mapping mapping;
            const bool ok = loom_file_map(path.c_str(), &mapping, error);
            if (ok) loom_file_unmap(&mapping);
            return ok;
        };
    };
    refusal(map(at("none")), {at("none") + ": cannot be read: No such file"});
    refusal(map(directory.path()), {directory.path().string() + ": is not a regular file"});
    ASSERT_EQ(mkfifo(at("pipe").c_str(), 0600), 0);
    refusal(map(at("pipe")), {at("pipe") + ": is not a regular file"}); /* and nobody waits for a writer */
}

TEST_F(Files, AFileWithoutPermissionIsNamed) {
    const std::string path = write("secret", "content");
    fs::permissions(directory.path(), fs::perms(0755));
    fs::permissions(path, fs::perms::none);
    loom_mapping mapping = {};
    loom_error error = {""};
    bool able, ok;
    {
        const Unprivileged now;
        able = now.able();
        ok = able && loom_file_map(path.c_str(), &mapping, &error);
    }
    if (!able) GTEST_SKIP() << "root cannot give up its rights here, and may read everything";
    EXPECT_FALSE(ok);
    EXPECT_EQ(std::string(error.message), path + ": cannot be read: Permission denied");
}

TEST_F(Files, ReadingTextEndsItAndKeepsToALimit) {
    const std::string path = write("a", "some text");
    const auto read = [&](size_t limit, char **text) {
        return [&path, limit, text](loom_error *error) {
            return (*text = loom_file_read_text(path.c_str(), limit, error)) != NULL;
        };
    };
    char *text = nullptr;
    ASSERT_TRUE(works(read(9, &text)));
    EXPECT_STREQ(text, "some text");
    free(text);
    refusal(read(8, &text), {path, "larger than the 8 bytes"});
    write("a", "");
    ASSERT_TRUE(works(read(0, &text)));
    EXPECT_STREQ(text, "");
    free(text);
    fs::remove(path);
    refusal(read(8, &text), {path, "cannot be read"});
}

TEST_F(Files, DirectoriesAreMadeWithTheirParents) {
    const auto make = [](const std::string &path) {
        return [path](loom_error *error) { return loom_make_directories(path.c_str(), error); };
    };
    EXPECT_TRUE(works(make(at("a/b/c"))));
    EXPECT_TRUE(fs::is_directory(at("a/b/c")));
    EXPECT_TRUE(works(make(at("a/b/c")))) << "what is there already is no error";
    EXPECT_TRUE(works(make(at("d//e///"))));
    EXPECT_TRUE(fs::is_directory(at("d/e")));
    fs::create_directory_symlink(at("a"), at("link"));
    EXPECT_TRUE(works(make(at("link/below"))));
    EXPECT_TRUE(fs::is_directory(at("a/below")));

    write("file", "");
    refusal(make(at("file/x")), {at("file") + ": cannot be made a directory"});
    refusal(make(at("file")), {at("file") + ": cannot be made a directory"});
    fs::create_symlink(at("nowhere"), at("dangling"));
    refusal(make(at("dangling/x")), {at("dangling")});
    refusal(make(""), {"no name for a directory"});
    refusal(make(at(std::string(300, 'n'))), {"File name too long"});
    refusal(make(std::string(PATH_MAX, 'n')), {"no name for a directory"});
}

TEST_F(Files, RemovingATreeFollowsNoLinks) {
    const auto remove = [](const std::string &path) {
        return [path](loom_error *error) { return loom_remove_tree(path.c_str(), error); };
    };
    fs::create_directories(at("outside"));
    write("outside/kept", "content");
    fs::create_directories(at("tree/a/b"));
    write("tree/a/b/file", "content");
    write("tree/.hidden", "content");
    fs::create_directory_symlink(at("outside"), at("tree/a/link"));
    fs::create_symlink(at("nowhere"), at("tree/dangling"));
    EXPECT_TRUE(works(remove(at("tree"))));
    EXPECT_FALSE(fs::exists(at("tree")));
    EXPECT_EQ(read_file(at("outside/kept")), "content");

    fs::create_directory_symlink(at("outside"), at("link"));
    EXPECT_TRUE(works(remove(at("link")))) << "a link goes, what it leads to stays";
    EXPECT_FALSE(fs::is_symlink(at("link")));
    EXPECT_EQ(read_file(at("outside/kept")), "content");

    write("file", "");
    EXPECT_TRUE(works(remove(at("file"))));
    EXPECT_TRUE(works(remove(at("none")))) << "what is not there is no error";
    EXPECT_EQ(names(), std::set<std::string>{"outside"});
}

TEST_F(Files, WhatCannotBeDeletedIsNamed) {
    fs::create_directories(at("tree/fixed"));
    write("tree/fixed/file", "");
    fs::permissions(directory.path(), fs::perms(0755));
    fs::permissions(at("tree/fixed"), fs::perms(0555));
    loom_error error = {""};
    bool able, ok;
    {
        const Unprivileged now;
        able = now.able();
        ok = able && loom_remove_tree(at("tree").c_str(), &error);
    }
    fs::permissions(at("tree/fixed"), fs::perms(0755)); /* so that the test can clean up */
    if (!able) GTEST_SKIP() << "root cannot give up its rights here, and may delete everything";
    EXPECT_FALSE(ok);
    EXPECT_NE(std::string(error.message).find(at("tree") + ": cannot be deleted: "), std::string::npos);
}

TEST_F(Files, PathsAreJoinedAndAskedAbout) {
    const auto join = [](char *out, size_t size) {
        return [=](loom_error *error) { return loom_join_path(out, size, "some/run", "file", error); };
    };
    char path[16];
    EXPECT_TRUE(works(join(path, 14)));
    EXPECT_STREQ(path, "some/run/file");
    refusal(join(path, 13), {"some/run/file", "too long"});

    fs::create_symlink(at("nowhere"), at("dangling"));
    fs::create_directory_symlink(directory.path(), at("link"));
    write("file", "");
    EXPECT_TRUE(loom_path_exists(at("file").c_str()));
    EXPECT_TRUE(loom_path_exists(at("dangling").c_str())) << "the name is taken";
    EXPECT_FALSE(loom_path_exists(at("none").c_str()));
    EXPECT_TRUE(loom_is_directory(at("link").c_str()));
    EXPECT_FALSE(loom_is_directory(at("file").c_str()));
    EXPECT_FALSE(loom_is_directory(at("dangling").c_str()));
}

TEST_F(Files, ADirectoryIsFlushed) {
    EXPECT_TRUE(works([&](loom_error *error) { return loom_sync_directory(directory.path().c_str(), error); }));
    refusal([&](loom_error *error) { return loom_sync_directory(at("none").c_str(), error); }, {at("none"), "flushed"});
    refusal([&](loom_error *error) { return loom_sync_directory(write("file", "").c_str(), error); }, {at("file")});
}

/* ------------------------------------------------------------------------------------------------------------ locks */

/* Locks with short times, and what was told. */
class Locks : public Files {
  protected:
    static void tell(void *user, const char *line) {
        static_cast<std::vector<std::string> *>(user)->push_back(line);
    }
    std::vector<std::string> told;
    const loom_lock_listener listener = {tell, &told};
    loom_lock_times times = {.heartbeat = 0.02, .take_over = 0.3, .settle = 0.01};
    const std::string path = at("lock");

    bool take(loom_lock **lock, loom_error *error) {
        told.clear();
        return loom_lock_take(lock, path.c_str(), "the run", &times, &listener, error);
    }
    bool takes(loom_lock **lock) {
        return works([&](loom_error *error) { return take(lock, error); });
    }
    void refuses(std::initializer_list<std::string> words) {
        loom_lock *lock = nullptr;
        refusal([&](loom_error *error) { return take(&lock, error); }, words);
        EXPECT_EQ(lock, nullptr);
    }
    /* A file as process 77 of another machine would have made it. */
    void write_other(long long beat, const char *host = "elsewhere") {
        write("lock", std::string("gptloom ") + host + " a-boot pid:[1] 77 5 " + std::to_string(beat) + "\n");
    }
    static long long now() {
        return static_cast<long long>(time(nullptr));
    }
    static void await(const std::function<bool()> &event) {
        for (int i = 0; i < 12000 && !event(); i++) usleep(10000);
        EXPECT_TRUE(event());
    }
};

TEST_F(Locks, OnlyOneHasIt) {
    loom_lock *lock = nullptr, *second = nullptr;
    ASSERT_TRUE(takes(&lock));
    EXPECT_TRUE(told.empty());
    const std::string own = "process " + std::to_string(getpid()) + " on ";
    refuses({"the run: is in use by ", own, "last sign of life"});
    EXPECT_TRUE(works([&](loom_error *error) { return loom_lock_is_held(lock, error); }));
    loom_lock_release(lock);
    EXPECT_TRUE(names().empty());
    ASSERT_TRUE(takes(&second));
    loom_lock_release(second);
    loom_lock_release(NULL);
}

TEST_F(Locks, ADeadOwnersIsTakenOver) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        loom_lock *lock = nullptr;
        _exit(take(&lock, nullptr) ? 0 : 1);
    }
    int status = 1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
    ASSERT_EQ(names(), std::set<std::string>{"lock"});
    loom_lock *lock = nullptr;
    ASSERT_TRUE(takes(&lock));
    ASSERT_EQ(told.size(), 1u);
    EXPECT_NE(told[0].find("process " + std::to_string(child) + " on "), std::string::npos) << told[0];
    EXPECT_NE(told[0].find("taken over"), std::string::npos) << told[0];
    loom_lock_release(lock);
    for (const char *nothing : {"", "gptloom half"}) { /* killed when it had made the file */
        write("lock", nothing);
        ASSERT_TRUE(takes(&lock)) << nothing;
        loom_lock_release(lock);
    }
    EXPECT_TRUE(names().empty());
}

TEST(LockHolder, IsALineThatMakesSense) {
    const auto reads = [](const std::string &line) {
        loom_lock_holder holder;
        return loom_lock_holder_read(&holder, line.data(), line.size());
    };
    EXPECT_TRUE(reads("gptloom here a-boot pid:[1] 77 5 1700000000\n"));
    EXPECT_TRUE(reads("gptloom here ? ? 77 -1 0\nand more"));
    for (const char *line : {"", "gptloom here a-boot pid:[1] 77 5 1700000000", "other here a-boot pid:[1] 77 5 6\n",
                             "gptloom here a-boot pid:[1] 77 5\n", "gptloom here a-boot pid:[1] 0 5 6\n",
                             "gptloom here a-boot pid:[1] 77 -2 6\n", "gptloom here a-boot pid:[1] 77 5 -6\n",
                             "gptloom here a-boot pid:[1] 77 5 -9223372036854775808\n"})
        EXPECT_FALSE(reads(line)) << line;
    EXPECT_FALSE(reads("gptloom here a-boot pid:[1] 77 5 6" + std::string(600, ' ') + "\n"));
}

/* What is no beginning of such a line somebody else has made: it stays, and is not waited for. */
TEST_F(Locks, AnotherFileStaysAsItIs) {
    times.settle = times.take_over = 1000;
    for (const std::string text :
         {"mine\n", "mine", "\n", "gptloom: notes\n", "gptloom here a-boot pid:[1] 77 5\n", "gptloom-2"}) {
        write("lock", text);
        refuses({path + ": is a file that gptloom has not made", "move it elsewhere"});
        std::ifstream file(path, std::ios::binary);
        EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), text);
    }
}

/* Nothing but its heartbeat tells whether another machine's is alive. */
TEST_F(Locks, AnotherMachinesIsWatched) {
    loom_lock *lock = nullptr;
    for (const long long off : {-100000, 100000}) { /* its clock says nothing */
        times.take_over = 0.3;
        write_other(now() + off);
        ASSERT_TRUE(takes(&lock));
        ASSERT_EQ(told.size(), 2u);
        EXPECT_NE(told[0].find("the run: process 77 on elsewhere may be at work there"), std::string::npos) << told[0];
        EXPECT_NE(told[1].find("taken over"), std::string::npos) << told[1];
        loom_lock_release(lock);

        times.take_over = 30; /* which ends as soon as there is a heartbeat */
        write_other(now() + off);
        std::thread beats([&] {
            await([&] { return told.size() == 1; });
            write_other(now() + off + 1);
        });
        refuses({"the run: is in use by process 77 on elsewhere (its last sign of life: 0 s ago)"});
        beats.join();
    }
    EXPECT_EQ(names(), std::set<std::string>{"lock"});
}

/* As when this process was stopped for minutes, and another machine saw no heartbeat. */
TEST_F(Locks, ALostOneIsNoticed) {
    loom_lock *lock = nullptr;
    ASSERT_TRUE(takes(&lock));
    write_other(now(), "else\x1b[31mwhere");
    await([&] { return !loom_lock_is_held(lock, nullptr); });
    refusal([&](loom_error *error) { return loom_lock_is_held(lock, error); },
            {"the run: process 77 on else?[31mwhere has taken it over"});
    loom_lock_release(lock);
    EXPECT_EQ(names(), std::set<std::string>{"lock"}) << "it is the other's";
}

TEST_F(Locks, ADeletedFileIsMadeAnew) {
    loom_lock *lock = nullptr;
    ASSERT_TRUE(takes(&lock));
    fs::remove(path);
    await([&] { return fs::exists(path) && fs::file_size(path) > 0; });
    refuses({"is in use by"});
    EXPECT_TRUE(loom_lock_is_held(lock, nullptr));
    loom_lock_release(lock);
    EXPECT_TRUE(names().empty());
}

TEST_F(Locks, WhatIsNoFileIsRefused) {
    fs::create_symlink(at("elsewhere"), path);
    refuses({path, "symbolic links"});
    fs::remove(path);
    ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
    refuses({path, "not a regular file"});
    fs::remove(path);
    fs::create_directory(path);
    refuses({path});
    fs::remove(path);
    EXPECT_TRUE(names().empty());
}

/* ---------------------------------------------------------------------------------------------------- nearest names */

TEST(NearestNames, DistanceCountsEdits) {
    EXPECT_EQ(loom_name_distance("", ""), 0);
    EXPECT_EQ(loom_name_distance("batch", "batch"), 0);
    EXPECT_EQ(loom_name_distance("", "abc"), 3);
    EXPECT_EQ(loom_name_distance("abc", ""), 3);
    EXPECT_EQ(loom_name_distance("kitten", "sitting"), 3);
    EXPECT_EQ(loom_name_distance("setps", "steps"), 1) << "neighbours that changed places count once";
    EXPECT_EQ(loom_name_distance("ca", "abc"), 3) << "optimal string alignment edits nothing twice";
    const std::string a(200, 'a'), b = std::string(63, 'a') + std::string(137, 'b');
    EXPECT_EQ(loom_name_distance(a.c_str(), b.c_str()), 0) << "names count up to 63 bytes";
    EXPECT_EQ(loom_name_distance(a.c_str(), ""), 63);
}

TEST(NearestNames, SuggestWhatIsNearAndNothingElse) {
    const char *const names[] = {"n-layer", "n-head", "steps", "seed", "batch", "micro-batch", NULL};
    EXPECT_STREQ(loom_nearest_name("n-layr", names), "n-layer");
    EXPECT_STREQ(loom_nearest_name("setps", names), "steps");
    EXPECT_STREQ(loom_nearest_name("batch", names), "batch");
    EXPECT_STREQ(loom_nearest_name("micro_batch", names), "micro-batch");
    EXPECT_EQ(loom_nearest_name("temperature", names), nullptr);
    const char *const tied[] = {"cat", "car", NULL}, *const none[] = {NULL};
    EXPECT_STREQ(loom_nearest_name("caz", tied), "cat") << "of equally near ones the first";
    EXPECT_EQ(loom_nearest_name("caz", none), nullptr);
}

/* ----------------------------------------------------------------------------------------------------------- errors */

TEST(Errors, AreOneLineOfLimitedLength) {
    loom_error error;
    EXPECT_FALSE(loom_fail(&error, "%s: is\r\nwrong in %d ways\n", "a\nfile", 2));
    EXPECT_STREQ(error.message, "a file: is  wrong in 2 ways ");
    for (const size_t length : {1000, 1020, 1021, 5000}) { /* 1023 bytes fit; beyond, the two ends stay */
        const std::string path(length, 'x'), whole = "/" + path + ":no";
        EXPECT_FALSE(loom_fail(&error, "/%s:%s", path.c_str(), "no"));
        const std::string said = error.message;
        EXPECT_EQ(said.size(), std::min(whole.size(), sizeof error.message - 1));
        EXPECT_EQ(said.substr(0, 400), whole.substr(0, 400));
        EXPECT_EQ(said.substr(said.size() - 400), whole.substr(whole.size() - 400));
        EXPECT_EQ(said.find(" ... ") == std::string::npos, whole.size() < sizeof error.message) << length;
    }
    EXPECT_FALSE(loom_fail(NULL, "%s", "nobody asks"));
}

/* What names and files hold does not reach a terminal as it is, and no character is cut in two. */
TEST(Errors, HoldNothingThatSteersATerminal) {
    loom_error error;
    loom_fail(&error, "%s: is missing", "a\x1b]0;owned\x07\x9b\xc2\x9b\xe2\x80\xae\xc0\xaf\x7f-\u00e9\u4e16");
    EXPECT_STREQ(error.message,
                 "a\\x1b]0;owned\\x07\\x9b\\xc2\\x9b\\xe2\\x80\\xae\\xc0\\xaf\\x7f-\u00e9\u4e16: is missing");
    loom_fail(&error, "%s", std::string(error.message).c_str()); /* passed on, it stays what it is */
    EXPECT_NE(std::string(error.message).find("a\\x1b]0"), std::string::npos);
    for (size_t shift = 0; shift < 8; shift++) { /* the cuts fall on every byte of a character */
        std::string path(shift, 'x');
        while (path.size() < 3000) path += "\U0001f9f6\u00e9\x1b";
        loom_fail(&error, "%s: is missing", path.c_str());
        EXPECT_TRUE(loom_is_printable(error.message)) << error.message;
        EXPECT_EQ(std::string(error.message).find("\\xf0"), std::string::npos) << error.message;
        EXPECT_GE(strlen(error.message), sizeof error.message - 16);
    }
}

std::string shown(const std::string &text, size_t size = 4096) {
    std::string out(size, 0);
    return loom_printable_text(out.data(), size, text.c_str());
}

std::string shell_word(const std::string &word) {
    std::string out(4096, 0);
    return loom_shell_word(out.data(), out.size(), word.c_str());
}

TEST(Printable, ShowsCharactersAndNothingElse) {
    const std::vector<std::pair<std::string, std::string>> rows = {
        {"", ""},
        {"plain ~ \u00e9 \u4e16 \U0001f9f6", "plain ~ \u00e9 \u4e16 \U0001f9f6"},
        {"a\nb\tc\rd", "a b c d"},
        {"\x01\x1b\x7f", "\\x01\\x1b\\x7f"},
        {"\xc2\x9b"
         "31m",
         "\\xc2\\x9b31m"}, /* C1: the terminal takes it for ESC [ */
        {"\u202egnp.exe\u2066\u200f", "\\xe2\\x80\\xaegnp.exe\\xe2\\x81\\xa6\\xe2\\x80\\x8f"},
        {"\u2028\ufffe", "\\xe2\\x80\\xa8\\xef\\xbf\\xbe"},
        {"\xc0\x9b\xe0\x80\x9b\xf0\x80\x80\x9b", "\\xc0\\x9b\\xe0\\x80\\x9b\\xf0\\x80\\x80\\x9b"}, /* overlong */
        {"\xed\xa0\x80\xf5\x80\x80\x80", "\\xed\\xa0\\x80\\xf5\\x80\\x80\\x80"}, /* a surrogate; beyond the last */
        {"\xe4\xb8", "\\xe4\\xb8"},
    };
    for (const auto &[text, wanted] : rows) {
        EXPECT_EQ(shown(text), wanted);
        EXPECT_EQ(loom_is_printable(text.c_str()), text == wanted) << wanted;
    }
    EXPECT_EQ(shown("12345678", 9), "12345678") << "a few more than that are no longer than dots";
    EXPECT_EQ(shown("123456789", 9), "12345...");
    EXPECT_EQ(shown("1234\u00e9789", 9), "1234...");
    EXPECT_EQ(shown("1234\x1b"
                    "789",
                    9),
              "1234...");
}

TEST(Printable, WordsAreWhatAShellReadsBack) {
    EXPECT_EQ(shell_word("runs/a-1"), "runs/a-1");
    EXPECT_EQ(shell_word("two words"), "'two words'");
    EXPECT_EQ(shell_word("\u00e9"), "'\u00e9'");
    EXPECT_EQ(shell_word(""), "''");
    for (const std::string word : {"", "it's", "a b", "$(id)`id`\\n", "tab\tnew\nline",
                                   "\x1b]0;x\x07"
                                   "1",
                                   "\xff"
                                   "7\\'",
                                   "\u202ex\u4e16'", "-", "~", "!x"}) {
        const std::string quoted = shell_word(word);
        EXPECT_TRUE(loom_is_printable(quoted.c_str())) << quoted;
        FILE *shell = popen(("bash <<'END'\nprintf %s " + quoted + "\nEND\n").c_str(), "r");
        ASSERT_NE(shell, nullptr);
        std::string back;
        for (int c; (c = fgetc(shell)) != EOF;) back += static_cast<char>(c);
        EXPECT_EQ(pclose(shell), 0);
        EXPECT_EQ(back, word) << quoted;
    }
}

/* --------------------------------------------------------------------------------------------------- finite numbers */

TEST(Finite, FindsTheFirstThatIsNot) {
    const std::pair<loom_dtype, std::vector<uint64_t>> rows[] = {
        {LOOM_F32, {0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF}},
        {LOOM_BF16, {0x7F80, 0xFF80, 0x7FC0, 0xFFFF}},
        {LOOM_F16, {0x7C00, 0xFC00, 0x7E00, 0xFFFF}},
        {LOOM_F64, {0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000}}};
    const int64_t n = 10000;
    for (const auto &[dtype, bad] : rows) {
        const size_t size = loom_dtype_size(dtype);
        std::string memory((size_t)n * size + 1, 0);
        char *data = memory.data() + 1;   /* at any alignment */
        for (int64_t i = 0; i < n; i++) { /* the largest and smallest numbers that are some */
            const uint64_t largest = bad[0] - 1, smallest = 1, value = i % 3 ? i % 3 == 1 ? largest : smallest : 0;
            memcpy(data + (size_t)i * size, &value, size);
        }
        EXPECT_TRUE(loom_all_finite(data, n, dtype));
        EXPECT_EQ(loom_first_not_finite(data, n, dtype), n);
        for (const uint64_t bits : bad)
            for (const int64_t at : {int64_t{0}, int64_t{4095}, int64_t{4096}, n - 1}) {
                const std::string kept = memory;
                memcpy(data + (size_t)at * size, &bits, size);
                memcpy(data + (size_t)(n - 1) * size, &bits, size);
                EXPECT_EQ(loom_first_not_finite(data, n, dtype), at) << loom_dtype_name(dtype);
                EXPECT_EQ(loom_first_not_finite(data, at, dtype), at);
                EXPECT_FALSE(loom_all_finite(data, n, dtype));
                memory.assign(kept), data = memory.data() + 1;
            }
    }
    EXPECT_TRUE(loom_all_finite(nullptr, 0, LOOM_F32));
}

TEST(ErrorsDeathTest, AProgrammersMistakeNamesItsPlace) {
    EXPECT_DEATH(LOOM_CHECK(1 + 1 == 3), "test_base\\.cpp:[0-9]+: this must hold and does not: 1 \\+ 1 == 3");
    int evaluated = 0;
    LOOM_CHECK(++evaluated);
    EXPECT_EQ(evaluated, 1);
}

/* ------------------------------------------------------------------------------------------------------------ views */

TEST(Views, DtypesHaveSizesAndNames) {
    const struct {
        loom_dtype dtype;
        size_t size;
        const char *name;
    } rows[] = {{LOOM_F32, 4, "fp32"},
                {LOOM_BF16, 2, "bf16"},
                {LOOM_F16, 2, "fp16"},
                {LOOM_F64, 8, "fp64"},
                {LOOM_I32, 4, "int32"}};
    for (const auto &row : rows) {
        EXPECT_EQ(loom_dtype_size(row.dtype), row.size);
        EXPECT_STREQ(loom_dtype_name(row.dtype), row.name);
    }
}

void expect_dims(const int64_t found[4], const std::array<int64_t, 4> &expected) {
    for (size_t i = 0; i < 4; i++) EXPECT_EQ(found[i], expected[i]) << "dimension " << i;
}

TEST(Views, AreContiguousAndFilledWithOnesInFront) {
    float data[120];
    const loom_view one = loom_view_1d(data, LOOM_F32, 7), two = loom_view_2d(data, LOOM_F32, 3, 7);
    const loom_view three = loom_view_3d(data, LOOM_F32, 2, 3, 7), four = loom_view_4d(data, LOOM_F32, 5, 2, 3, 4);
    expect_dims(one.shape, {1, 1, 1, 7});
    expect_dims(two.shape, {1, 1, 3, 7});
    expect_dims(two.stride, {21, 21, 7, 1});
    expect_dims(three.shape, {1, 2, 3, 7});
    expect_dims(three.stride, {42, 21, 7, 1});
    expect_dims(four.shape, {5, 2, 3, 4});
    expect_dims(four.stride, {24, 12, 4, 1});
    EXPECT_EQ(loom_view_elements(&one), 7);
    EXPECT_EQ(loom_view_elements(&four), 120);
    EXPECT_EQ(loom_view_row_count(&one), 1);
    EXPECT_EQ(loom_view_row_count(&four), 30);
    EXPECT_EQ(loom_view_extent(&four), sizeof data);
    EXPECT_EQ(four.data, data);
    EXPECT_EQ(four.dtype, LOOM_F32);
}

TEST(Views, RowsKeepTheStride) {
    uint16_t data[60];
    loom_view view = loom_view_2d(data, LOOM_BF16, 4, 5);
    view.stride[2] = 15; /* the rows of something wider */
    const loom_view rows = loom_view_rows(view, 1, 2);
    expect_dims(rows.shape, {1, 1, 2, 5});
    EXPECT_EQ(rows.stride[2], 15);
    EXPECT_EQ(rows.data, data + 15);
    EXPECT_EQ(loom_view_extent(&rows), (15 + 5) * sizeof(uint16_t));
    EXPECT_EQ(loom_view_extent(&view), (3 * 15 + 5) * sizeof(uint16_t));
    const loom_view planned = loom_view_rows(loom_view_2d(NULL, LOOM_BF16, 4, 5), 2, 2);
    EXPECT_EQ(planned.data, nullptr) << "while planning there is no memory, and none appears";
    EXPECT_EQ(loom_view_rows(view, 4, 0).shape[2], 0);
}

TEST(ViewsDeathTest, RowsOutsideAreTheProgrammersMistake) {
    float data[20];
    const loom_view view = loom_view_2d(data, LOOM_F32, 4, 5), deep = loom_view_3d(data, LOOM_F32, 2, 2, 5);
    EXPECT_DEATH(loom_view_rows(view, 3, 2), "this must hold");
    EXPECT_DEATH(loom_view_rows(view, -1, 1), "this must hold");
    EXPECT_DEATH(loom_view_rows(deep, 0, 1), "this must hold");
}

TEST(Views, AnEmptyOneIsNotGiven) {
    const loom_view none = {}, some = loom_view_1d(NULL, LOOM_F32, 1);
    EXPECT_FALSE(loom_view_given(&none));
    EXPECT_TRUE(loom_view_given(&some)) << "shapes count, not memory: plans have none";
    EXPECT_EQ(loom_view_extent(&none), 0u);
}

} // namespace
