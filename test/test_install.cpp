/* What `make install` leaves is enough to train with: the example in dev/examples is compiled from the installed
 * headers, library and pkg-config file alone, and run. */
#include "support.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace {

using namespace support;

fs::path repository() {
    return fs::absolute(fs::path(__FILE__)).parent_path().parent_path();
}

/* Runs a shell command in the repository; what it prints is the message of a failure. */
testing::AssertionResult runs(const std::string &command, const fs::path &log) {
    const std::string whole = "cd '" + repository().string() + "' && { " + command + "; } >'" + log.string() + "' 2>&1";
    if (std::system(whole.c_str()) == 0) return testing::AssertionSuccess();
    return testing::AssertionFailure() << command << ":\n" << read_file(log);
}

/* A field of the installed pkg-config file, its ${prefix} filled in, as pkg-config itself would print it. */
std::string field(const fs::path &prefix, const std::string &name) {
    const std::string all = read_file(prefix / "lib/pkgconfig/gptloom.pc");
    const size_t at = all.find(name + ": ");
    if (at == std::string::npos) return "";
    std::string value = all.substr(at + name.size() + 2, all.find('\n', at) - at - name.size() - 2);
    for (size_t i; (i = value.find("${prefix}")) != std::string::npos;) value.replace(i, 9, prefix.string());
    return value;
}

TEST(Install, TheExampleTrainsWithWhatIsInstalled) {
#if defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "a sanitizer build is not installed: programs would need its flags";
#endif
    TemporaryDirectory directory;
    const fs::path prefix = directory.path() / "prefix", log = directory.path() / "log";
    ASSERT_TRUE(runs("make --no-print-directory install PREFIX='" + prefix.string() + "'", log));
    EXPECT_TRUE(fs::exists(prefix / "bin/gptloom"));
    EXPECT_EQ(fs::exists(prefix / "lib/libgptloom_mpi.so"), runs("command -v mpicc", log)) << "built where mpicc is";
    ASSERT_TRUE(runs("gcc -std=c11 -Wall -Wextra -Werror " + field(prefix, "Cflags") + " dev/examples/train.c " +
                         field(prefix, "Libs") + " -o '" + (directory.path() / "train").string() + "'",
                     log));
    std::string text;
    for (int i = 0; i < 400; i++) text += "the quick brown fox jumps over the lazy dog. ";
    write_file(directory.path() / "text", text);
    ASSERT_TRUE(runs(
        "'" + (directory.path() / "train").string() + "' '" + (directory.path() / "text").string() + "' 100", log));
    const std::string printed = read_file(log);
    const size_t last = printed.find("step 100  loss ");
    ASSERT_NE(last, std::string::npos) << printed;
    EXPECT_LT(std::stod(printed.substr(last + 15)), 2.0) << "an untrained model's loss is log 257 = 5.5";
}

} // namespace
