/* The program, with things going wrong: test/faults/faults.py for as long as a test may take, and what it has found. */
#include "support_runs.h"

namespace {

namespace fs = std::filesystem;
using namespace support;

Outcome faults(const std::string &how) {
    const fs::path script = fs::absolute(fs::path(__FILE__)).parent_path() / "faults/faults.py";
    TemporaryDirectory here;
    const std::string log = here.at("log");
    const std::string command = "python3 " + script.string() + " --jobs 1 --build " + (folder() / "..").string() + " " +
                                how + " >" + log + " 2>&1";
    const int status = std::system(command.c_str());
    const std::string output = command + "\n" + read_file(log);
    puts(output.c_str());
    return {WEXITSTATUS(status), output};
}

TEST(Faults, NothingIsLost) {
    const Outcome o = faults(full() ? "--tries 1200 --seconds 100" : "--short --tries 100 --seconds 20");
    EXPECT_EQ(o.status, 0) << "see above";
}

/* What has no time tries the least of each kind; what is asked for less than that says so. */
TEST(Faults, HavingTriedNothingIsNotGood) {
    Outcome o = faults("--short --scenarios info --only calls,filesystems --seconds 0");
    EXPECT_EQ(o.status, 0) << o.output;
    EXPECT_NE(o.output.find("\n10 tries in "), std::string::npos) << o.output;
    o = faults("--short --scenarios info --only calls --tries 4");
    EXPECT_EQ(o.status, 1) << o.output;
    EXPECT_NE(o.output.find("\nfaults: 4 of calls: fewer than 5 tries have done anything\n"), std::string::npos)
        << o.output;
}

class OneFault : public RanksTest {
  protected:
    Outcome run(const std::string &words, const std::string &fault = "") {
        const std::string preload = "LD_PRELOAD=" + (folder() / "libfaults.so").string() + " LOOM_FAULT=" + fault + " ";
        return shell((fault.empty() ? "" : preload) + gptloom_program() + " " + words);
    }
};

TEST_F(OneFault, ADefaultThatCannotBeKeptIsALine) {
    for (const char *command : {"info nano", "plan nano --no-measure", "sample --from x", "train --data x --out y"}) {
        const Outcome first = run(command, "strdup:ENOMEM:1");
        EXPECT_EQ(first.status, 2) << command << ": " << first.output;
        EXPECT_EQ(first.output.rfind("gptloom: ", 0), 0u) << first.output;
        EXPECT_LE(run(command, "strdup:ENOMEM:2").status, 2) << command;
        EXPECT_LE(run(command, "strdup:ENOMEM:4").status, 2) << command;
    }
}

TEST_F(OneFault, ARunThatCouldNotBeginIsBegunAgain) {
    write_file(here.at("text"), some_text(2000, 7));
    const std::string train =
        "train --data text --out run --n-layer 1 --n-head 1 --n-embd 16 --block-size 16 --batch 2 "
        "--steps 1 --threads 1 --device cpu -q";
    EXPECT_EQ(run(train, "open_memstream:ENOMEM:1+").status, 2);
    const Outcome again = run(train);
    EXPECT_EQ(again.status, 0) << again.output;
}

/* What started the rank says so, last, once. */
TEST_F(OneFault, ARankThatCannotReadItsFlagsIsALine) {
    if (!have("mpirun") || !fs::exists(folder() / "../libgptloom_mpi.so")) GTEST_SKIP() << "there is no MPI here";
    write_file(here.at("text"), some_text(2000, 7));
    const Outcome ranks = run("train --data text --out run --ranks 2 --steps 1 --device cpu -q",
                              "strdup:ENOMEM:2 LOOM_FAULT_RANK=0");
    EXPECT_EQ(ranks.status, 2) << ranks.output;
    const std::vector<std::string> told = lines_of(ranks.output, "gptloom: ");
    ASSERT_EQ(told.size(), 1u) << ranks.output;
    EXPECT_NE(told[0].find("no memory to keep it"), std::string::npos) << ranks.output;
}

TEST_F(OneFault, ALineOfMetricsThatCannotBeWrittenLeavesNoRest) {
    write_file(here.at("text"), some_text(2000, 7));
    const std::string train =
        "train --data text --out run --n-layer 1 --n-head 1 --n-embd 16 --block-size 16 --batch 2 "
        "--steps 2 --threads 1 --device cpu -q";
    EXPECT_EQ(run(train, "fwrite:EIO:1").status, 2);
    EXPECT_EQ(run("train --resume --out run -q").status, 0);
    const std::string metrics = read_file(here.at("run/metrics.jsonl"));
    EXPECT_EQ(lines_of(metrics, "{\"step\": ").size(), 2u) << metrics;
    EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 2) << metrics;
}

} // namespace
