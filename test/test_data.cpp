#include "data/feeder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fs = std::filesystem;

/* So that what cannot be allocated fails in sanitizer builds as it does elsewhere. */
extern "C" const char *__asan_default_options() {
    return "allocator_may_return_null=1";
}
extern "C" const char *__tsan_default_options() {
    return "allocator_may_return_null=1";
}

namespace {

/* ---------------------------------------------------------------------------------------------------------- scaffold */

/* A directory of its own for each test, open to other users so that permissions can be tested as root too. */
class DataTest : public ::testing::Test {
  protected:
    void SetUp() override {
        std::string pattern = (fs::temp_directory_path() / "gptloom-data-XXXXXX").string();
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        root = pattern;
        chmod(pattern.c_str(), 0755);
    }
    void TearDown() override {
        fs::remove_all(root);
    }

    std::string at(const std::string &name) const {
        return (root / name).string();
    }

    std::string text(const std::string &name, const std::string &content) const {
        fs::create_directories((root / name).parent_path());
        std::ofstream(root / name, std::ios::binary) << content;
        return at(name);
    }

    /* A shard; `promised` < 0 takes the number of ids. */
    std::string shard(const std::string &name, const std::vector<int> &ids, int64_t promised = -1,
                      uint32_t magic = 20240520, uint32_t version = 1) const {
        std::string bytes(1024, '\0');
        put32(bytes, 0, magic);
        put32(bytes, 4, version);
        put32(bytes, 8, (uint32_t)(promised < 0 ? (int64_t)ids.size() : promised));
        for (int id : ids) {
            bytes += (char)(id & 255);
            bytes += (char)(id >> 8);
        }
        return text(name, bytes);
    }

    /* A shard whose token i is i: each pair can be told by its input. */
    std::string counting_shard(const std::string &name, int n) const {
        std::vector<int> ids;
        for (int i = 0; i < n; i++) ids.push_back(i);
        return shard(name, ids);
    }

    /* A shard that is too large to be kept in memory; ids after those given are 0, and take no room on the disk. */
    std::string large_shard(const std::string &name, const std::vector<int> &ids) const {
        const std::string path = shard(name, ids, LARGE);
        fs::resize_file(path, 1024 + 2 * (uintmax_t)LARGE);
        return path;
    }

    static constexpr int64_t LARGE = 33 << 20;
    fs::path root;

  private:
    static void put32(std::string &bytes, size_t offset, uint32_t value) {
        for (int i = 0; i < 4; i++) bytes[offset + (size_t)i] = (char)(value >> 8 * i);
    }
};

/* A dataset that closes itself. */
class Dataset {
  public:
    explicit Dataset(const std::vector<std::string> &paths, const loom_dataset_options &options = {}) {
        std::vector<const char *> names;
        for (const std::string &path : paths) names.push_back(path.c_str());
        loom_error error = {};
        opened = loom_dataset_open_with(&dataset, names.data(), (int)names.size(), &options, &error);
        message = error.message;
        EXPECT_EQ(opened, dataset != nullptr);
    }
    explicit Dataset(const std::string &path) : Dataset(std::vector<std::string>{path}) {
    }
    Dataset(const Dataset &) = delete;
    Dataset &operator=(const Dataset &) = delete;
    ~Dataset() {
        loom_dataset_close(dataset);
    }

    operator const loom_dataset *() const {
        return dataset;
    }

    std::vector<int32_t> all() const {
        std::vector<int32_t> tokens((size_t)loom_dataset_tokens(dataset));
        loom_error error = {};
        EXPECT_TRUE(loom_dataset_read(dataset, 0, (int64_t)tokens.size(), 1 << 16, tokens.data(), &error))
            << error.message;
        return tokens;
    }

    /* Text, with '|' for end-of-text. */
    std::string all_text() const {
        std::string out;
        for (int32_t token : all()) out += token == LOOM_BYTE_END_OF_TEXT ? '|' : (char)token;
        return out;
    }

    loom_dataset *dataset = nullptr;
    bool opened;
    std::string message;
};

/* An error must be one line that holds every one of `parts`. */
void expect_message(const std::string &message, const std::vector<std::string> &parts) {
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string &part : parts)
        EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
}

void expect_refused(const std::vector<std::string> &paths, const std::vector<std::string> &parts) {
    const Dataset dataset(paths);
    EXPECT_FALSE(dataset.opened);
    expect_message(dataset.message, parts);
}

loom_split whole(const Dataset &dataset, int64_t vocab_size = 1 << 16) {
    return {dataset.dataset, 0, loom_dataset_tokens(dataset), vocab_size};
}

/* A loader that closes itself. */
class Loader {
  public:
    Loader(const loom_split &split, const loom_loader_options &given) : options(given) {
        loom_error error = {};
        opened = loom_loader_open(&loader, &split, &options, &error);
        message = error.message;
        EXPECT_EQ(opened, loader != nullptr);
    }
    Loader(const Loader &) = delete;
    Loader &operator=(const Loader &) = delete;
    ~Loader() {
        loom_loader_close(loader);
    }

    const loom_batch *next() {
        const loom_batch *batch = nullptr;
        loom_error error = {};
        if (!loom_loader_next(loader, &batch, &error)) batch = nullptr;
        message = error.message;
        return batch;
    }

    /* The inputs and targets of the next `steps` steps, one after the other. */
    std::vector<int32_t> tokens(int steps) {
        const int64_t n = options.batch / options.ranks * options.T;
        std::vector<int32_t> out;
        for (int i = 0; i < steps; i++) {
            const loom_batch *batch = next();
            if (!batch) {
                ADD_FAILURE() << message;
                return out;
            }
            out.insert(out.end(), batch->inputs, batch->inputs + n);
            out.insert(out.end(), batch->targets, batch->targets + n);
        }
        return out;
    }

    loom_loader_options options;
    loom_loader *loader = nullptr;
    bool opened;
    std::string message;
};

loom_loader_options loader_options(int64_t T, int64_t batch, uint64_t seed = 1) {
    loom_loader_options options = {};
    options.T = T;
    options.batch = batch;
    options.micro_batch = 1;
    options.seed = seed;
    options.ranks = 1;
    return options;
}

/* -------------------------------------------------------------------------------------------------------------- files */

TEST_F(DataTest, TextIsBytesWithEndOfTextAfterEachFile) {
    const std::string one = text("one", std::string("a\0\xff", 3)), two = text("two", "b");
    const Dataset dataset({one, two});
    ASSERT_TRUE(dataset.opened) << dataset.message;
    EXPECT_TRUE(loom_dataset_is_bytes(dataset));
    EXPECT_EQ(loom_dataset_files(dataset), 2);
    EXPECT_EQ(loom_dataset_first_path(dataset), one);
    EXPECT_EQ(loom_dataset_tokens(dataset), 6);
    EXPECT_EQ(dataset.all(), (std::vector<int32_t>{'a', 0, 255, 256, 'b', 256}));
}

TEST_F(DataTest, ShardsAreSixteenBitIds) {
    const Dataset dataset({shard("a.bin", {0, 1, 65535}), shard("b.bin", {256, 50256})});
    ASSERT_TRUE(dataset.opened) << dataset.message;
    EXPECT_FALSE(loom_dataset_is_bytes(dataset));
    EXPECT_EQ(dataset.all(), (std::vector<int32_t>{0, 1, 65535, 256, 50256}));
}

TEST_F(DataTest, ReadsEveryRangeAcrossFiles) {
    const Dataset texts({text("1", "ab"), text("2", "c"), text("3", "defg")});
    const Dataset shards({shard("1.bin", {1, 2, 3}), shard("2.bin", {4}), shard("3.bin", {5, 6})});
    for (const Dataset *dataset : {&texts, &shards}) {
        const std::vector<int32_t> all = dataset->all();
        for (size_t first = 0; first <= all.size(); first++)
            for (size_t n = 0; first + n <= all.size(); n++) {
                std::vector<int32_t> tokens(n + 1, -7);
                ASSERT_TRUE(loom_dataset_read(*dataset, (int64_t)first, (int64_t)n, 65536, tokens.data(), nullptr));
                EXPECT_TRUE(std::equal(tokens.begin(), tokens.end() - 1, all.begin() + (long)first));
                EXPECT_EQ(tokens[n], -7);
            }
    }
}

TEST_F(DataTest, DirectoryIsRecursiveSortedAndWithoutHiddenEntries) {
    text("d/b.txt", "B");
    text("d/a/z", "Z");
    text("d/a/y/x", "X");
    text("d/a.txt", "A");
    text("d/.hidden", "H");
    text("d/.git/config", "G");
    text("d/empty", "");
    fs::create_directories(root / "d/nothing");
    for (const char *name : {"d", "d/", "d//"}) {
        const Dataset dataset(at(name));
        ASSERT_TRUE(dataset.opened) << dataset.message;
        EXPECT_EQ(dataset.all_text(), "A|X|Z|B|"); /* '.' sorts before '/' */
        EXPECT_EQ(loom_dataset_files(dataset), 4);
    }
    EXPECT_EQ(Dataset(at("d/.git")).all_text(), "G|"); /* hidden, but named */
}

TEST_F(DataTest, ArgumentsKeepTheirOrder) {
    text("d/1", "1");
    text("d/2", "2");
    const Dataset dataset({text("z", "z"), at("d"), text("a", "a"), at("d/2")});
    EXPECT_EQ(dataset.all_text(), "z|1|2|a|2|");
}

TEST_F(DataTest, GlobMatchesSortedAndWalksDirectories) {
    text("part-2.txt", "2");
    text("part-10.txt", "10");
    text("part-d/x", "x");
    text("part-0.txt", "");
    text("other.txt", "o");
    EXPECT_EQ(Dataset(at("part-*")).all_text(), "10|2|x|");
    EXPECT_EQ(Dataset(at("part-[0-9]*")).all_text(), "10|2|");
    EXPECT_EQ(Dataset(at("*/x")).all_text(), "x|");
    EXPECT_EQ(Dataset(at("other.tx?")).all_text(), "o|");
}

TEST_F(DataTest, AnExistingNameIsNotAPattern) {
    text("a[1]", "literal");
    text("a1", "matched");
    EXPECT_EQ(Dataset(at("a[1]")).all_text(), "literal|");
    EXPECT_EQ(Dataset(at("a[0-9]")).all_text(), "matched|");
}

TEST_F(DataTest, LinksAreFollowedAndLoopsEnd) {
    text("far/f", "F");
    text("d/sub/s", "S");
    fs::create_symlink(root / "far", root / "d/link");
    fs::create_symlink(root / "far/f", root / "d/file");
    fs::create_symlink(root / "d", root / "d/sub/up");
    fs::create_symlink(root / "d/sub", root / "d/sub/self");
    fs::create_symlink(root / "far", root / "d/sub/again");
    const Dataset dataset(at("d"));
    ASSERT_TRUE(dataset.opened) << dataset.message;
    EXPECT_EQ(dataset.all_text(), "F|F|S|"); /* d/file, d/link/f, d/sub/s */
    EXPECT_EQ(Dataset(at("d/link")).all_text(), "F|");
}

/* Of several ways into a directory the first by name counts, in directories and in globs. */
TEST_F(DataTest, LinksAreTakenInTheOrderOfNames) {
    for (const std::string d : {"1", "2", "3", "4", "5"}) {
        text(d + "/x/f", "F");
        for (const char *name : {"t", "r", "v", "q", "u", "s"})
            fs::create_symlink(root / d / "x", root / d / (name + d));
        for (const std::string &name : {d, d + "/*"}) {
            const Dataset dataset(at(name));
            ASSERT_EQ(loom_dataset_files(dataset), 1);
            EXPECT_EQ(loom_dataset_first_path(dataset), at(d + "/q" + d + "/f"));
        }
    }
}

TEST_F(DataTest, LinksToNothingShow) {
    text("d/f", "F");
    fs::create_symlink(root / "gone", root / "d/dangling");
    expect_refused({at("d")}, {at("d/dangling"), "link to nothing"});
    fs::remove(root / "d/dangling");
    fs::create_symlink("circle", root / "d/circle");
    expect_refused({at("d")}, {at("d/circle"), "cannot be read"});
}

TEST_F(DataTest, PipesAreLeftOutAndNeverOpened) {
    text("d/f", "F");
    ASSERT_EQ(mkfifo(at("d/pipe").c_str(), 0600), 0);
    EXPECT_EQ(Dataset(at("d")).all_text(), "F|");
    expect_refused({at("d/pipe")}, {at("d/pipe"), "neither a regular file nor a directory"});
}

TEST_F(DataTest, NothingThere) {
    expect_refused({at("missing.txt")}, {at("missing.txt"), "no such file or directory"});
    expect_refused({text("f", "F"), at("f/below")}, {at("f/below"), "no such file or directory"});
    expect_refused({at("*.nothing")}, {at("*.nothing"), "no file matches"});
    expect_refused({at("no/such/*.txt")}, {at("no/such/*.txt"), "no file matches"});
    expect_refused({""}, {"no such file or directory"});
    expect_refused({}, {"no data is named"});
    fs::create_directories(root / "hollow");
    text("hollow/.hidden", "H");
    expect_refused({at("hollow")}, {at("hollow"), "no files"});
    expect_refused({at("f"), at("hollow")}, {at("hollow"), "no files"});
}

TEST_F(DataTest, EmptyFiles) {
    text("d/empty", "");
    text("d/empty.bin", "");
    const std::string headed = shard("d/headed.bin", {});
    expect_refused({text("full", "F"), at("d/empty")}, {at("d/empty"), "is empty"});
    expect_refused({at("d/empty.bin")}, {at("d/empty.bin"), "is empty"});
    expect_refused({headed}, {headed, "is empty"});
    expect_refused({at("d")}, {at("d"), "nothing but empty files"});
    expect_refused({at("d/*")}, {at("d/*"), "nothing but empty files"});
    EXPECT_EQ(Dataset({at("d"), at("full")}).all_text(), "F|");
}

TEST_F(DataTest, Unreadable) {
    text("closed/f", "F");
    text("open/f", "F");
    const uid_t user = geteuid();
    if (user == 0 && seteuid(65534) != 0) GTEST_SKIP() << "root reads everything and cannot become another user here";
    const auto become = [user](uid_t id) {
        if (user == 0) {
            ASSERT_EQ(seteuid(id), 0);
        }
    };
    become(0);
    chmod(at("closed").c_str(), 0000);
    chmod(at("open/f").c_str(), 0000);
    become(65534);
    expect_refused({at("open/f")}, {at("open/f"), "cannot be read", "Permission denied"});
    expect_refused({at("open")}, {at("open/f"), "cannot be read", "Permission denied"});
    expect_refused({at("closed")}, {at("closed"), "cannot be read", "Permission denied"});
    expect_refused({at("closed/f")}, {at("closed/f"), "cannot be read", "Permission denied"});
    expect_refused({at("closed/*")}, {at("closed/*"), "cannot be read", "Permission denied"});
    expect_refused({at("*/*")}, {at("*/*"), "cannot be read"});
    become(0);
    chmod(at("closed").c_str(), 0755);
    EXPECT_TRUE(Dataset(at("closed")).opened);
}

TEST_F(DataTest, KindsDoNotMix) {
    const std::string note = text("d/README", "words"), tokens = shard("d/train.bin", {1, 2});
    expect_refused({at("d")}, {note, tokens, "one kind"});
    expect_refused({tokens, note}, {note, tokens, "one kind"});
    text("d/train.bin", "no shard at all"); /* that it is of another kind is the first thing to know */
    expect_refused({at("d")}, {note, tokens, "one kind"});
}

TEST_F(DataTest, DamagedAndForeignShards) {
    const std::string cut = shard("cut.bin", {1, 2, 3}, 4);
    expect_refused({cut}, {cut, "cut off", "4 tokens", "1032", "1030"});
    const std::string longer = shard("longer.bin", {1, 2, 3}, 2);
    expect_refused({longer}, {longer, "no sound token shard", "2 tokens"});
    const std::string huge = shard("huge.bin", {1, 2, 3}, 0xFFFFFFFF);
    expect_refused({huge}, {huge, "cut off", "4294967295 tokens", "8589935614"});
    const std::string magic = shard("magic.bin", {1, 2, 3}, -1, 7);
    expect_refused({magic}, {magic, "magic number is 7", "20240520"});
    const std::string wide = shard("wide.bin", {1, 2, 3, 4}, 2, 20240801, 7);
    expect_refused({wide}, {wide, "32-bit"});
    const std::string version = shard("version.bin", {1, 2, 3}, -1, 20240520, 2);
    expect_refused({version}, {version, "version 2"});
    const std::string stub = text("stub.bin", std::string(1023, 'x'));
    expect_refused({stub}, {stub, "1023 bytes", "1024"});
    const std::string odd = shard("odd.bin", {1, 2, 3});
    std::ofstream(odd, std::ios::binary | std::ios::app) << 'x';
    expect_refused({odd}, {odd, "no sound token shard", "1031"});
}

/* -------------------------------------------------------------------------------------- files that change, many files */

/* Reads n tokens from `first` on; on an error its message. */
std::string read_error(const Dataset &dataset, int64_t first, int64_t n) {
    std::vector<int32_t> tokens((size_t)n);
    loom_error error = {""};
    const bool ok = loom_dataset_read(dataset, first, n, 1 << 16, tokens.data(), &error);
    EXPECT_EQ(ok, error.message[0] == 0);
    return error.message;
}

TEST_F(DataTest, LargeFilesReadAsSmallOnes) {
    std::vector<int> ids;
    for (int i = 0; i < 20000; i++) ids.push_back(i);
    const Dataset dataset(std::vector<std::string>{large_shard("1.bin", ids), large_shard("2.bin", {7, 8, 9})});
    ASSERT_TRUE(dataset.opened) << dataset.message;
    ASSERT_EQ(loom_dataset_tokens(dataset), 2 * LARGE);
    std::vector<int32_t> tokens(20003);
    ASSERT_TRUE(loom_dataset_read(dataset, 1, 20000, 1 << 16, tokens.data(), nullptr));
    for (int i = 0; i < 19999; i++) ASSERT_EQ(tokens[(size_t)i], i + 1);
    ASSERT_TRUE(loom_dataset_read(dataset, LARGE - 2, 5, 1 << 16, tokens.data(), nullptr));
    EXPECT_EQ(std::vector<int32_t>(tokens.begin(), tokens.begin() + 5), (std::vector<int32_t>{0, 0, 7, 8, 9}));
}

TEST_F(DataTest, AFileThatShrinksIsAnError) {
    const std::string small = text("small", "abcdefgh"), large = large_shard("large.bin", {});
    const Dataset kept(small), read(large);
    fs::resize_file(small, 3);
    EXPECT_EQ(kept.all_text(), "abcdefgh|"); /* is in memory */
    EXPECT_EQ(read_error(read, LARGE - 10, 10), "");
    fs::resize_file(large, 5000);
    EXPECT_EQ(read_error(read, 0, 1000), "");
    expect_message(read_error(read, LARGE - 10, 10), {large, "has become shorter", "bring it back"});
    fs::resize_file(large, 0);
    expect_message(read_error(read, 0, 1), {large, "has become shorter"});

    Loader loader(whole(read), loader_options(16, 4));
    ASSERT_TRUE(loader.opened);
    EXPECT_EQ(loader.next(), nullptr);
    expect_message(loader.message, {large, "has become shorter"});
    EXPECT_EQ(loader.next(), nullptr); /* and it stays so */
    expect_message(loader.message, {large, "has become shorter"});
}

TEST_F(DataTest, AFileThatIsOpenStaysWhatItWas) {
    const std::string path = large_shard("a.bin", {1, 2, 3});
    const Dataset dataset(path);
    fs::rename(large_shard("b.bin", {4, 5, 6}), path);
    EXPECT_EQ(std::vector<int32_t>({1, 2, 3}), [&] {
        std::vector<int32_t> tokens(3);
        EXPECT_TRUE(loom_dataset_read(dataset, 0, 3, 1 << 16, tokens.data(), nullptr));
        return tokens;
    }());
}

TEST_F(DataTest, ManyFilesTakeFewDescriptors) {
    struct rlimit before;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    std::vector<std::string> paths;
    for (int i = 0; i < 40; i++) paths.push_back(large_shard("f" + std::to_string(100 + i) + ".bin", {i}));
    struct rlimit few = before;
    few.rlim_cur = 32;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    const Dataset dataset(at("*.bin"));
    EXPECT_TRUE(dataset.opened) << dataset.message;
    const auto read_all = [&] {
        for (int i = 0; dataset.opened && i < 40; i++) {
            int32_t token = -1;
            EXPECT_TRUE(loom_dataset_read(dataset, i * LARGE, 1, 1 << 16, &token, nullptr));
            EXPECT_EQ(token, i);
        }
    };
    std::thread another(read_all); /* as validation reads beside the loader */
    read_all();
    another.join();
    /* By now the first is closed: what bears its name must be what it was. */
    fs::last_write_time(paths[0], fs::file_time_type::clock::now() - std::chrono::hours(1));
    EXPECT_EQ(read_error(dataset, 0, 1), "");
    EXPECT_EQ(read_error(dataset, 8 * LARGE, 1), "");
    fs::rename(paths[1], paths[0]);
    fs::last_write_time(paths[0], fs::file_time_type::clock::now() - std::chrono::hours(2));
    expect_message(read_error(dataset, 0, 1), {paths[0], "another file has taken its place"});
    expect_message(read_error(dataset, LARGE, 1), {paths[1], "cannot be read"});
    ASSERT_EQ(mkfifo(paths[1].c_str(), 0600), 0);
    expect_message(read_error(dataset, LARGE, 1), {paths[1], "not a regular file"});
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST_F(DataTest, AnyNumberOfFiles) {
    const Dataset dataset(std::vector<std::string>(5000, text("f", "F")));
    ASSERT_TRUE(dataset.opened) << dataset.message;
    EXPECT_EQ(loom_dataset_files(dataset), 5000);
    EXPECT_EQ(loom_dataset_tokens(dataset), 10000);
}

TEST_F(DataTest, FilesAreHashedWholeOrInPieces) {
    const auto hash = [](const Dataset &dataset, bool whole) {
        char digits[33] = "";
        uint64_t hashed = 0;
        loom_error error = {""};
        EXPECT_TRUE(loom_dataset_hash_file(dataset, 0, whole, digits, &hashed, &error)) << error.message;
        return std::string(digits);
    };
    const auto put = [](const std::string &path, uint64_t offset, char byte) {
        std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
        file.seekp((std::streamoff)offset);
        file.put(byte);
    };
    EXPECT_EQ(hash(Dataset(text("abc", "abc")), true), "06b05ab6733a618578af5f94892f3950"); /* xxhsum -H2 */
    EXPECT_EQ(hash(Dataset(at("abc")), false), "06b05ab6733a618578af5f94892f3950");
    const std::string path = large_shard("large.bin", {1});
    const std::string is = hash(Dataset(path), true), sampled = hash(Dataset(path), false);
    EXPECT_NE(is, sampled);
    put(path, 1 << 20, 1); /* between two pieces */
    EXPECT_NE(hash(Dataset(path), true), is);
    EXPECT_EQ(hash(Dataset(path), false), sampled);
    put(path, 8 << 20, 1);
    const std::string changed = hash(Dataset(path), false);
    EXPECT_NE(changed, sampled);
    put(path, 1023 + 2 * LARGE, 1);
    EXPECT_NE(hash(Dataset(path), false), changed);
}

/* ------------------------------------------------------------------------------------------------- what files hold */

TEST_F(DataTest, WhatIsNoTextIsRefused) {
    const std::string zeros(100, '\0'), letters(400, 'x');
    const auto bytes = [](std::initializer_list<int> list) { return std::string(list.begin(), list.end()); };
    std::string wide, tar = letters, random;
    for (int i = 0; i < 100; i++) wide += std::string{(char)('a' + i % 26), '\0'};
    tar.replace(257, 5, "ustar");
    std::string wider, ideographs; /* UTF-32 */
    for (int i = 0; i < 100; i++) wider += std::string{(char)('a' + i % 26), 0, 0, 0};
    for (int i = 0; i < 100; i++) ideographs += std::string{(char)i, 0x4e, 0, 0};
    std::mt19937 generator(1);
    for (int i = 0; i < 4096; i++) random += (char)generator();
    const struct {
        std::string content;
        const char *words;
    } rows[] = {
        {bytes({0x1f, 0x8b, 8, 0}) + letters, "gzip: gunzip"},
        {bytes({0x28, 0xb5, 0x2f, 0xfd}) + letters, "zstd -d"},
        {bytes({0xfd, '7', 'z', 'X', 'Z', 0}) + letters, "xz -d"},
        {"BZh91AY&SY" + letters, "bunzip2"},
        {bytes({4, 0x22, 0x4d, 0x18}) + letters, "lz4 -d"},
        {"PK\3\4" + letters, "zip archive"},
        {tar, "tar archive"},
        {"PAR1" + bytes({0x15, 4}) + zeros, "Parquet"},
        {std::string("ARROW1\0\0", 8) + letters, "Arrow"},
        {bytes({0x93}) + "NUMPY" + bytes({1, 0, 'v', 0}) + letters, "NumPy"},
        {bytes({0x89}) + "HDF\r\n\x1a\n" + letters, "HDF5"},
        {std::string("SQLite format 3\0", 16) + letters, "SQLite"},
        {"%PDF-1.7\n" + letters, "pdftotext"},
        {bytes({0x89}) + "PNG\r\n\x1a\n" + letters, "PNG"},
        {bytes({0xff, 0xd8, 0xff, 0xe0}) + letters, "JPEG"},
        {bytes({0x7f, 'E', 'L', 'F', 2, 1, 1}) + zeros, "a program"},
        {bytes({0xff, 0xfe}) + wide, "iconv -f utf-16"},
        {bytes({0xfe, 0xff, 0, 'a'}) + letters, "iconv -f utf-16"},
        {bytes({0xff, 0xfe, 0, 0, 'a', 0, 0, 0}), "iconv -f utf-32"},
        {wide, "iconv -f utf-16le"},
        {std::string(1, '\0') + wide + "a", "iconv -f utf-16be"},
        {wider, "iconv -f utf-32le"},
        {ideographs, "iconv -f utf-32le"},
        {std::string(3, '\0') + wider + "a", "iconv -f utf-32be"},
        {std::string(2, '\0') + ideographs + "aa", "iconv -f utf-32be"},
        {bytes({16, 0, 0, 0, 0, 0, 0, 0}) + "{\"__metadata__\": {}}" + letters, "safetensors"},
        {"GGUF" + bytes({3, 0, 0, 0}) + letters, "GGUF"},
        {bytes({0x80, 4, 0x95}) + letters, "pickle"},
        {bytes({0x88, 0xd8, 0x34, 1, 1, 0, 0, 0}) + zeros, "end in .bin"},
        {letters + zeros, "is binary"},
        {random, "is binary"},
    };
    for (const auto &row : rows) {
        const std::string path = text("file.txt", row.content);
        expect_refused({path}, {path, row.words, "--any-bytes"});
        expect_refused({at("*")}, {path, row.words});
        loom_dataset_options options = {};
        options.any_bytes = true;
        const Dataset dataset({path}, options);
        ASSERT_TRUE(dataset.opened) << dataset.message;
        EXPECT_EQ(loom_dataset_tokens(dataset), (int64_t)row.content.size() + 1);
        EXPECT_STREQ(loom_dataset_note(dataset), "");
    }
}

/* Every byte from 0x80 on is one of letters somewhere. */
TEST_F(DataTest, TextIsTextInAnyLanguage) {
    std::string high, shifted;
    for (int i = 0x80; i < 0x100; i++) high += (char)i;
    for (int i = 0; i < 50; i++)
        shifted += "\x1b$B\x46\x7c\x4b\x5c\x1b(B \x0e"
                   "abc\x0f ";
    for (const std::string &content :
         {std::string("a"), std::string(1000, '\n'), high + high + high, shifted,
          std::string("Zażółć gęślą jaźń. 日本語のテキスト。 Привет, мир! مرحبا بالعالم \U0001F600\n"),
          std::string("\xef\xbb\xbfwith a mark"), std::string("\x80\x20\x35 in Windows-1252"),
          std::string("\x1b[31mred\x1b[0m\r\n\tlog\f\x1a"),
          std::string("PK is what begins a zip, PAR1 Parquet, GGUF a model"),
          std::string("BZh9 is bzip2's; ustar, %PDF, SQLite format 3; {\"a\": 1}"), std::string("1AY&SY ustar \x7f"),
          std::string(2000, 'x') + std::string(3, '\0') + std::string(2000, 'x')}) {
        const Dataset dataset(text("file.txt", content));
        EXPECT_TRUE(dataset.opened) << dataset.message;
        if (!dataset.opened) continue;
        EXPECT_STREQ(loom_dataset_note(dataset), "");
    }
}

TEST_F(DataTest, MarkupIsNoted) {
    for (const char *content : {"<!DOCTYPE html>\n<p>", "\xef\xbb\xbf \n<html lang=en>"})
        expect_message(loom_dataset_note(Dataset(text("a.html", content))), {at("a.html"), "HTML", "tags"});
    expect_message(loom_dataset_note(Dataset(text("b.jsonl", "{\"text\": \"one\"}\r\n{}"))), {at("b.jsonl"), "JSON"});
    EXPECT_STREQ(loom_dataset_note(Dataset(text("c.txt", "{\"no line of JSON\"\n"))), "");
}

/* A run that lies among its data is not trained on, nor are others. */
TEST_F(DataTest, RunsAmongTheDataAreLeftOut) {
    text("d/a.txt", "A");
    text("d/old/config.ini", "x = 1");
    text("d/old/metrics.jsonl", "{}");
    text("d/sub/older/config.ini", "x = 1");
    text("d/sub/older/checkpoints/f", "F");
    text("d/sub/config.ini", "C"); /* is of no run */
    text("d/out/begun", "B");
    loom_dataset_options options = {};
    const std::string out = at("d/out");
    options.out = out.c_str();
    for (const char *name : {"d", "d/*"}) {
        const Dataset dataset({at(name)}, options);
        ASSERT_TRUE(dataset.opened) << dataset.message;
        EXPECT_EQ(dataset.all_text(), "A|C|");
        expect_message(loom_dataset_note(dataset), {at("d/old"), "left out"});
    }
    EXPECT_EQ(Dataset(at("d/out")).all_text(), "B|");
    expect_refused({at("d/old")}, {at("d/old"), "directory of a run", "--out"});
    const Dataset self({at("d/out")}, options);
    EXPECT_FALSE(self.opened);
    expect_message(self.message, {at("d/out"), "directory of a run"});
    EXPECT_EQ(Dataset(at("d/old/config.ini")).all_text(), "x = 1|"); /* is named */
    fs::create_directories(root / "only");
    fs::copy(root / "d/old", root / "only/old", fs::copy_options::recursive);
    expect_refused({at("only")}, {at("only"), "no files"});
}

TEST_F(DataTest, IdentityIsOfContent) {
    const std::string block(70000, 'x');
    const auto identity = [](const std::vector<std::string> &paths) { return loom_dataset_identity(Dataset(paths)); };
    const std::string a = text("a", block + "1"), b = text("b", "short");
    const uint64_t base = identity({a, b});
    EXPECT_EQ(identity({a, b}), base);
    EXPECT_EQ(identity({text("other/name", block + "1"), b}), base);
    EXPECT_NE(identity({b, a}), base);
    EXPECT_NE(identity({a}), base);
    EXPECT_NE(identity({text("c", block + "2"), b}), base);                 /* the last bytes */
    EXPECT_NE(identity({text("d", "2" + block.substr(1) + "1"), b}), base); /* the first */
    EXPECT_NE(identity({text("e", block + "x1"), b}), base);                /* the length */
    EXPECT_NE(identity({a, text("g", "shorT")}), base);                     /* another file */
    EXPECT_NE(identity({text("h", block), text("i", "1short")}), base);     /* where files end */
    const std::string tokens = shard("t.bin", {1, 2, 3});
    fs::copy(tokens, root / "t.txt");
    loom_dataset_options options = {};
    options.any_bytes = true;
    EXPECT_NE(identity({tokens}), loom_dataset_identity(Dataset({at("t.txt")}, options))); /* the kind */
}

/* ---------------------------------------------------------------------------------------------------------------- ids */

TEST_F(DataTest, IdsAreCheckedAgainstTheVocabulary) {
    std::vector<int> ids(10000, 5);
    ids[9001] = 300;
    const std::string good = counting_shard("1.bin", 200), bad = shard("2.bin", ids);
    const Dataset dataset({good, bad});
    loom_error error = {};
    EXPECT_TRUE(loom_dataset_check_ids(dataset, 301, &error)) << error.message;
    EXPECT_TRUE(loom_dataset_check_ids(dataset, 65536, &error)) << error.message;
    ASSERT_FALSE(loom_dataset_check_ids(dataset, 300, &error));
    expect_message(error.message, {bad, "token 9001", "id 300", "299", "--vocab-size"});
    ASSERT_FALSE(loom_dataset_check_ids(dataset, 100, &error));
    expect_message(error.message, {good, "token 100 ", "id 100"});

    std::vector<int32_t> tokens(400);
    EXPECT_TRUE(loom_dataset_read(dataset, 9000, 100, 300, tokens.data(), &error));
    ASSERT_FALSE(loom_dataset_read(dataset, 9000, 400, 300, tokens.data(), &error));
    expect_message(error.message, {bad, "token 9001", "id 300"});
}

TEST_F(DataTest, TextNeedsTheByteVocabulary) {
    const std::string path = text("f", "abc");
    const Dataset dataset(path);
    loom_error error = {};
    EXPECT_TRUE(loom_dataset_check_ids(dataset, 257, &error)) << error.message;
    ASSERT_FALSE(loom_dataset_check_ids(dataset, 256, &error));
    expect_message(error.message, {path, "token 3", "id 256", "--vocab-size of 257"});
    int32_t tokens[4];
    EXPECT_TRUE(loom_dataset_read(dataset, 0, 3, 256, tokens, &error));
    ASSERT_FALSE(loom_dataset_read(dataset, 0, 4, 256, tokens, &error));
    expect_message(error.message, {path, "token 3", "id 256"});
    ASSERT_FALSE(loom_dataset_read(dataset, 0, 4, 98, tokens, &error));
    expect_message(error.message, {path, "token 1 ", "id 98"});
}

/* ------------------------------------------------------------------------------------------------------------- splits */

TEST_F(DataTest, SplitsByFraction) {
    const Dataset dataset(counting_shard("d.bin", 1000));
    loom_split training, validation;
    loom_error error = {};
    ASSERT_TRUE(loom_split_by_fraction(dataset, 1000, 0.1, 64, &training, &validation, &error)) << error.message;
    EXPECT_EQ(training.first, 0);
    EXPECT_EQ(training.tokens, 900);
    EXPECT_EQ(validation.first, 900);
    EXPECT_EQ(validation.tokens, 100);
    EXPECT_EQ(training.vocab_size, 1000);
    EXPECT_EQ(training.dataset, dataset.dataset);
    int32_t inputs[64], targets[64];
    ASSERT_TRUE(loom_split_window(&validation, 64, 0, 1, inputs, targets, &error)) << error.message;
    EXPECT_EQ(inputs[0], 964);
    EXPECT_EQ(targets[34], 999);
    EXPECT_EQ(targets[35], -1);

    ASSERT_TRUE(loom_split_by_fraction(dataset, 1000, 0, 999, &training, &validation, &error)) << error.message;
    EXPECT_EQ(training.tokens, 1000);
    EXPECT_EQ(validation.tokens, 0);
}

TEST_F(DataTest, SplitsNeedAWholeWindow) {
    const std::string path = counting_shard("d.bin", 100);
    const Dataset dataset(path);
    loom_split training, validation;
    loom_error error = {};
    const auto split = [&](double fraction, int64_t T) {
        return loom_split_by_fraction(dataset, 100, fraction, T, &training, &validation, &error);
    };
    EXPECT_TRUE(split(0.1, 9)) << error.message;
    ASSERT_FALSE(split(0.1, 10));
    expect_message(error.message, {path, "100 tokens", "--val-fraction 0.1", "10 for validation", "needs 11",
                                   "more data", "--seq-len", "another --val-fraction"});
    ASSERT_FALSE(split(0.9, 10));
    expect_message(error.message, {"10 for training", "needs 11"});
    EXPECT_TRUE(split(0, 99)) << error.message;
    ASSERT_FALSE(split(0, 100));
    expect_message(error.message, {path, "has 100 tokens", "--seq-len 100", "needs 101", "more data"});
    for (const double fraction : {-0.1, 1.0, 1.5, std::nan(""), HUGE_VAL}) {
        ASSERT_FALSE(split(fraction, 9)) << fraction;
        expect_message(error.message, {"--val-fraction", "at least 0"});
    }
}

/* ------------------------------------------------------------------------------------------------------------ windows */

/* Every pair of a split in exactly one window of a cut, whatever the lengths and the shift; what is over is filling. */
TEST_F(DataTest, WindowsHoldEveryPairOnce) {
    const Dataset dataset(counting_shard("d.bin", 120));
    const int64_t first = 7;
    for (int64_t n : {2, 3, 33, 34, 65, 66, 100})
        for (int64_t T : {1, 2, 8, 11, 32}) {
            const int64_t pairs = n - 1, windows = (pairs + T - 1) / T;
            const loom_split split = {dataset, first, n, 1 << 16};
            ASSERT_EQ(loom_split_windows(&split, T), windows);
            for (int64_t shift : {int64_t(0), pairs / 3, pairs - 1}) {
                std::vector<int> seen((size_t)pairs);
                std::vector<int32_t> inputs((size_t)T), targets((size_t)T);
                int64_t filled = 0;
                for (int64_t w = 0; w < windows; w++) {
                    ASSERT_TRUE(loom_split_window(&split, T, shift, w, inputs.data(), targets.data(), nullptr));
                    for (int64_t t = 0; t < T; t++) {
                        if (targets[(size_t)t] == -1) {
                            filled++;
                            EXPECT_EQ(w, windows - 1);
                            EXPECT_EQ(inputs[(size_t)t], 0);
                            continue;
                        }
                        ASSERT_EQ(filled, 0) << "filling comes last";
                        ASSERT_EQ(inputs[(size_t)t] - first, (shift + w * T + t) % pairs);
                        ASSERT_EQ(targets[(size_t)t], inputs[(size_t)t] + 1);
                        seen[(size_t)(inputs[(size_t)t] - first)]++;
                    }
                }
                EXPECT_EQ(filled, windows * T - pairs);
                EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), pairs) << n << " " << T << " " << shift;
            }
        }
}

TEST_F(DataTest, NoWindowsWithoutAPair) {
    const Dataset dataset(counting_shard("d.bin", 3));
    for (int64_t tokens : {0, 1}) {
        const loom_split split = {dataset, 0, tokens, 3};
        EXPECT_EQ(loom_split_windows(&split, 4), 0);
    }
}

/* ------------------------------------------------------------------------------------------------------------ shuffle */

std::vector<int64_t> shuffled(uint64_t seed, uint32_t epoch, int64_t n) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < n; i++) order.push_back(loom_shuffle(seed, epoch, n, i));
    return order;
}

TEST(Shuffle, IsABijection) {
    std::vector<int64_t> sizes = {255, 256, 257, 1000, 1023, 1024, 1025, 4097, 20000};
    for (int64_t n = 1; n <= 70; n++) sizes.push_back(n);
    for (int64_t n : sizes)
        for (uint32_t epoch : {0u, 1u, 4000000000u}) {
            std::vector<int64_t> order = shuffled(42, epoch, n);
            std::sort(order.begin(), order.end());
            for (int64_t i = 0; i < n; i++) ASSERT_EQ(order[(size_t)i], i) << n;
        }
}

TEST(Shuffle, StaysInjectiveWhereItCannotBeCounted) {
    for (int64_t n : {(int64_t(1) << 33) + 12345, (int64_t(1) << 40) - 1, int64_t(1) << 62}) {
        std::set<int64_t> seen;
        for (int64_t i = 0; i < 1000; i++) {
            for (int64_t place : {i, n / 2 + i, n - 1 - i}) {
                const int64_t to = loom_shuffle(9, 3, n, place);
                ASSERT_TRUE(to >= 0 && to < n);
                ASSERT_TRUE(seen.insert(to).second);
            }
        }
        EXPECT_LT(*seen.begin(), n / 100);
        EXPECT_GT(*seen.rbegin(), n - n / 100);
    }
}

TEST(Shuffle, DiffersBetweenEpochsAndSeeds) {
    const std::vector<int64_t> base = shuffled(1, 0, 1000);
    EXPECT_EQ(shuffled(1, 0, 1000), base);
    for (const auto &other : {shuffled(1, 1, 1000), shuffled(2, 0, 1000), shuffled(1ull << 32 | 1, 0, 1000)}) {
        int64_t same = 0;
        for (size_t i = 0; i < 1000; i++) same += other[i] == base[i];
        EXPECT_LT(same, 10); /* 1 is expected */
    }
}

/* Few windows are the hard case for a network of few bits: all orders of them must come about equally often. */
TEST(Shuffle, SmallOnesTakeEveryOrderEquallyOften) {
    const double limit[] = {0, 0, 15, 22, 56}; /* chi-squared at 1, 5 and 23 degrees of freedom: 1 in 10,000 */
    for (int64_t n : {2, 3, 4}) {
        std::map<std::vector<int64_t>, int> times;
        const int trials = 24000;
        for (int epoch = 0; epoch < trials; epoch++) times[shuffled(5, (uint32_t)epoch, n)]++;
        const size_t orders = n == 2 ? 2 : n == 3 ? 6 : 24;
        EXPECT_EQ(times.size(), orders);
        double chi2 = 0;
        for (const auto &entry : times) chi2 += std::pow(entry.second - trials / (double)orders, 2);
        EXPECT_LT(chi2 * (double)orders / trials, limit[n]) << n;
    }
}

TEST(Shuffle, EveryWindowComesEverywhereEquallyOften) {
    for (int64_t n : {5, 7, 16, 30}) {
        std::vector<int> times((size_t)(n * n));
        const int trials = 4000;
        for (int epoch = 0; epoch < trials; epoch++)
            for (int64_t i = 0; i < n; i++) times[(size_t)(i * n + loom_shuffle(7, (uint32_t)epoch, n, i))]++;
        double chi2 = 0;
        for (int count : times) chi2 += std::pow(count - trials / (double)n, 2);
        const double freedom = (double)((n - 1) * (n - 1)); /* rows and columns sum to the trials */
        EXPECT_LT(chi2 * (double)n / trials, freedom + 4 * std::sqrt(2 * freedom)) << n;
    }
}

/* ------------------------------------------------------------------------------------------------------------- loader */

/* The pairs of training as they come, epoch by epoch, with batches that straddle epochs. */
TEST_F(DataTest, LoaderBringsEveryPairOncePerEpoch) {
    const Dataset dataset(counting_shard("d.bin", 400));
    std::set<int64_t> starts;
    for (int64_t n : {33, 34, 100, 400})
        for (int64_t T : {1, 7, 16, 33 - 1})
            for (int64_t batch : {1, 3, 8}) {
                const loom_split split = {dataset, 0, n, 400};
                const int64_t windows = loom_split_windows(&split, T), epochs = 3;
                Loader loader(split, loader_options(T, batch));
                ASSERT_TRUE(loader.opened) << loader.message;
                std::vector<int> seen((size_t)(n - 1));
                int64_t sequence = 0;
                for (int64_t step = 0; sequence < epochs * windows; step++) {
                    const loom_batch *got = loader.next();
                    ASSERT_NE(got, nullptr) << loader.message;
                    ASSERT_EQ(got->step, step);
                    int64_t targets = 0;
                    for (int64_t b = 0; b < batch; b++, sequence++) {
                        for (int64_t t = 0; t < T; t++) {
                            const int32_t input = got->inputs[b * T + t], target = got->targets[b * T + t];
                            targets += target != -1;
                            if (target == -1 || sequence >= epochs * windows) continue;
                            ASSERT_EQ(target, input + 1);
                            seen[(size_t)input]++;
                            if (t == 0) starts.insert(input);
                        }
                        if ((sequence + 1) % windows == 0 && sequence < epochs * windows) {
                            const int epoch = (int)((sequence + 1) / windows);
                            ASSERT_EQ(std::count(seen.begin(), seen.end(), epoch), n - 1);
                        }
                    }
                    ASSERT_EQ(got->targets_in_step, targets);
                }
            }
    EXPECT_GT(starts.size(), 100u) << "the cut moves";
}

TEST_F(DataTest, TheCutMovesWithEpochAndSeed) {
    const Dataset dataset(counting_shard("d.bin", 1000));
    std::set<std::set<int32_t>> cuts; /* the first inputs of each epoch's windows */
    for (uint64_t seed : {1, 2}) {
        Loader loader(whole(dataset), loader_options(100, 10, seed));
        for (int epoch = 0; epoch < 5; epoch++) {
            const loom_batch *batch = loader.next();
            ASSERT_NE(batch, nullptr);
            std::set<int32_t> firsts;
            for (int b = 0; b < 10; b++) firsts.insert(batch->inputs[b * 100]);
            cuts.insert(firsts);
        }
    }
    EXPECT_EQ(cuts.size(), 10u);
}

TEST_F(DataTest, TheOrderDoesNotDependOnRanks) {
    const Dataset dataset(counting_shard("d.bin", 300));
    const int64_t T = 16, batch = 8;
    for (int ranks : {2, 4}) {
        std::vector<std::unique_ptr<Loader>> loaders;
        for (int rank = 0; rank < ranks; rank++) {
            loom_loader_options options = loader_options(T, batch);
            options.micro_batch = 2;
            options.rank = rank;
            options.ranks = ranks;
            loaders.push_back(std::make_unique<Loader>(whole(dataset), options));
            ASSERT_TRUE(loaders.back()->opened) << loaders.back()->message;
        }
        Loader reference(whole(dataset), loader_options(T, batch));
        for (int step = 0; step < 12; step++) {
            const loom_batch *one = reference.next();
            ASSERT_NE(one, nullptr);
            std::vector<int32_t> inputs, targets;
            for (auto &loader : loaders) {
                const loom_batch *part = loader->next();
                ASSERT_NE(part, nullptr) << loader->message;
                EXPECT_EQ(part->targets_in_step, one->targets_in_step);
                inputs.insert(inputs.end(), part->inputs, part->inputs + batch / ranks * T);
                targets.insert(targets.end(), part->targets, part->targets + batch / ranks * T);
            }
            EXPECT_TRUE(std::equal(inputs.begin(), inputs.end(), one->inputs));
            EXPECT_TRUE(std::equal(targets.begin(), targets.end(), one->targets));
        }
    }
}

TEST_F(DataTest, LoaderResumesAnywhere) {
    const Dataset dataset(counting_shard("d.bin", 300));
    loom_loader_options options = loader_options(16, 3);
    const size_t step_tokens = 2 * 3 * 16;
    const std::vector<int32_t> all = Loader(whole(dataset), options).tokens(40);
    for (int first : {0, 1, 6, 7, 39}) {
        options.first_step = first;
        Loader loader(whole(dataset), options);
        EXPECT_EQ(loader.tokens(40 - first),
                  std::vector<int32_t>(all.begin() + (long)((size_t)first * step_tokens), all.end()));
    }
    options.seed = 2;
    options.first_step = 0;
    EXPECT_NE(Loader(whole(dataset), options).tokens(40), all);
}

TEST_F(DataTest, ABatchStaysValidUntilTheNextCall) {
    const Dataset dataset(counting_shard("d.bin", 3000));
    Loader loader(whole(dataset), loader_options(64, 4)), reference(whole(dataset), loader_options(64, 4));
    for (int step = 0; step < 50; step++) {
        const std::vector<int32_t> expected = reference.tokens(1);
        const loom_batch *batch = loader.next();
        std::this_thread::sleep_for(std::chrono::microseconds(500)); /* time for the thread to run ahead */
        ASSERT_TRUE(std::equal(batch->inputs, batch->inputs + 256, expected.begin()));
        ASSERT_EQ(batch->step, step);
    }
}

TEST_F(DataTest, LoaderReportsWhatItsThreadMet) {
    std::vector<int> ids(2001, 5);
    ids[1234] = 700;
    const std::string path = shard("d.bin", ids);
    const Dataset dataset(path);
    Loader loader(whole(dataset, 700), loader_options(10, 4));
    ASSERT_TRUE(loader.opened);
    int delivered = 0;
    while (loader.next()) ASSERT_LT(++delivered, 50) << "an epoch is 50 steps";
    const std::string message = loader.message;
    expect_message(message, {path, "token 1234", "id 700", "699"});
    EXPECT_EQ(loader.next(), nullptr) << "no way past it";
    EXPECT_EQ(loader.message, message);
    const loom_batch *batch;
    EXPECT_FALSE(loom_loader_next(loader.loader, &batch, nullptr));
    EXPECT_EQ(Loader(whole(dataset, 701), loader_options(10, 4)).tokens(50).size(), 50u * 2 * 4 * 10);
}

TEST_F(DataTest, LoaderRefusesWhatDoesNotDivide) {
    const Dataset dataset(counting_shard("d.bin", 300));
    loom_loader_options options = loader_options(16, 12);
    options.micro_batch = 5;
    Loader uneven(whole(dataset), options);
    EXPECT_FALSE(uneven.opened);
    expect_message(uneven.message, {"--batch 12", "micro-batches of 5", "--micro-batch"});
    options.micro_batch = 6;
    options.ranks = 4;
    Loader ranks(whole(dataset), options);
    EXPECT_FALSE(ranks.opened);
    expect_message(ranks.message, {"--batch 12", "micro-batches of 6", "4 ranks"});
}

TEST_F(DataTest, LoaderRefusesWhatCannotBeHeld) {
    const Dataset dataset(counting_shard("d.bin", 300));
    Loader overflowing(whole(dataset), loader_options(1 << 20, int64_t(1) << 46));
    EXPECT_FALSE(overflowing.opened);
    expect_message(overflowing.message, {"no memory", "--batch"});
    Loader huge(whole(dataset), loader_options(1 << 10, int64_t(1) << 46));
    EXPECT_FALSE(huge.opened);
    expect_message(huge.message, {"no memory", "--batch"});
    loom_loader_options options = loader_options(16, 12);
    options.first_step = INT64_MAX / 8;
    Loader late(whole(dataset), options);
    EXPECT_FALSE(late.opened);
    expect_message(late.message, {"too large"});
}

TEST_F(DataTest, ClosesAtAnyTime) {
    const Dataset dataset(counting_shard("d.bin", 60000));
    for (int round = 0; round < 200; round++) {
        Loader loader(whole(dataset), loader_options(64, 1 + round % 7 * 50));
        for (int step = 0; step < round % 4; step++) ASSERT_NE(loader.next(), nullptr);
        if (round % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(round * 5));
    }
    /* While the thread has an error that nobody asked for. */
    for (int round = 0; round < 20; round++) Loader(whole(dataset, 10), loader_options(16, 4));
    loom_loader_close(nullptr);
    loom_dataset_close(nullptr);
}

TEST_F(DataTest, ClosesInTheMiddleOfALongStep) {
    const Dataset dataset(counting_shard("d.bin", 60000));
    loom_loader_options options = loader_options(1, int64_t(1) << 44); /* it would take days */
    options.ranks = 1 << 30;
    const Loader loader(whole(dataset), options);
    ASSERT_TRUE(loader.opened) << loader.message;
    std::this_thread::sleep_for(std::chrono::milliseconds(50)); /* for the thread to begin */
}

} // namespace
