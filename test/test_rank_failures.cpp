/* Ranks that are killed, hang or fail, and the program that started them killed or asked to end: what is said, that
 * nothing is left behind, and that the run goes on to the bits of one that nothing happened to. */
#include "support_processes.h"
#include "support_train.h"

#include <random>

namespace {

using namespace support;

/* One small run, which ranks are to do together. */
class RankFailures : public testing::Test {
  protected:
    static constexpr int STEPS = 400, EVERY = 3; /* far more than are done; a checkpoint in every third */
    TemporaryDirectory here;
    int commands = 0;
    std::map<int64_t, std::string> bits_after; /* of a run that nothing happens to */

    void SetUp() override {
        if (const std::string why = no_mpi(); !why.empty()) GTEST_SKIP() << why;
        write_file(here.at("text"), some_text(2000, 7));
    }

    Words train(const std::string &out, const Words &more) {
        Words words = {gptloom_program(), "train", "--data", "text", "--out", out};
        for (const char *word : {"--n-layer", "1", "--n-head", "1", "--n-embd", "16", "--block-size", "16"})
            words.push_back(word);
        for (const char *word : {"--batch", "4", "--micro-batch", "1", "--val-fraction", "0", "--lr", "1e-3"})
            words.push_back(word);
        for (const char *word : {"--device", "cpu", "--threads", "1", "--deterministic-reduce", "--keep", "0", "-q"})
            words.push_back(word);
        for (const std::string &word :
             {std::string("--steps"), std::to_string(STEPS), std::string("--checkpoint-every"), std::to_string(EVERY)})
            words.push_back(word);
        words.insert(words.end(), more.begin(), more.end());
        return words;
    }

    /* Words as so many ranks of mpirun, which is told what a small machine needs. */
    static Words by_mpirun(int ranks, const Words &words) {
        Words all = {"mpirun"};
        if (geteuid() == 0) all.push_back("--allow-run-as-root");
        for (const char *word : {"--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "-np"})
            all.push_back(word);
        all.push_back(std::to_string(ranks));
        all.insert(all.end(), words.begin(), words.end());
        return all;
    }

    std::unique_ptr<Process> start(const Words &words) {
        const std::string name = "command-" + std::to_string(++commands);
        return std::make_unique<Process>(
            words, here.path(), "LOOM_TEST_MARK=" + here.path().filename().string() + "-" + name, here.at(name));
    }

    std::string log(const std::string &out, int rank) const {
        char name[32];
        snprintf(name, sizeof name, "logs/rank-%04d.log", rank);
        const fs::path path = here.path() / out / name;
        return fs::exists(path) ? read_file(path) : "";
    }

    int64_t logged(const std::string &out, int rank) const {
        return loom_run_logged_step(here.at(out).c_str(), rank);
    }
    int64_t saved(const std::string &out) const {
        return loom_checkpoint_newest(here.at(out).c_str());
    }

    /* A rank's process, once it has done a step. */
    pid_t rank_after(Process &process, const std::string &out, int rank, int64_t step) {
        const double end = now() + 60;
        while (logged(out, rank) < step && !process.has_ended() && now() < end) usleep(500);
        const std::string text = log(out, rank);
        const size_t at = text.rfind(", process ");
        EXPECT_FALSE(process.has_ended()) << process.output();
        EXPECT_NE(at, std::string::npos) << process.output();
        return at == std::string::npos ? 0 : (pid_t)std::stol(text.substr(at + 10));
    }

    /* A checkpoint's parameters and moments, as bits. */
    static std::string bits_in(const fs::path &run) {
        std::string all;
        for (const auto &entry : fs::directory_iterator(run / "checkpoints/latest"))
            if (entry.path().extension() == ".safetensors") all += read_file(entry.path());
        return all;
    }

    const std::string &bits_without_failures(int64_t step) {
        std::string &bits = bits_after[step];
        if (bits.empty()) {
            const std::string out = "alone-" + std::to_string(step);
            EXPECT_EQ(start(train(out, {"--stop-after", std::to_string(step)}))->wait(60), 0);
            bits = bits_in(here.path() / out);
            EXPECT_GT(bits.size(), 10000u);
        }
        return bits;
    }

    /* Goes on with a run that has ended somehow, past the next checkpoint. */
    void expect_resumes(const std::string &out, const Words &more) {
        const int64_t from = saved(out) < 0 ? 0 : saved(out), steps = EVERY + 1;
        Words words = {gptloom_program(), "train", "--resume",     "-q",
                       "--out",           out,     "--stop-after", std::to_string(steps)};
        words.insert(words.end(), more.begin(), more.end());
        /* Before it had begun there is nothing to go on with. */
        if (!fs::exists(here.at(out) + "/config.ini")) words = train(out, {"--stop-after", std::to_string(steps)});
        auto process = start(words);
        ASSERT_EQ(process->wait(120), 0) << process->output();
        EXPECT_EQ(saved(out), from + steps);
        EXPECT_TRUE(bits_in(here.path() / out) == bits_without_failures(from + steps)) << "other bits";
        for (const auto &entry : fs::directory_iterator(here.path() / out / "checkpoints"))
            EXPECT_NE(entry.path().filename().string()[0], '.') << entry.path() << " is left";
        EXPECT_TRUE(process->is_gone());
    }

    static Words ours(const Process &process) {
        return lines_starting(process.output(), "gptloom: ");
    }
};

/* Whoever is killed, our line is the last one, and says who, when, and what is left. */
TEST_F(RankFailures, AKilledRankIsNamedAndTheRunGoesOn) {
    auto process = start(train("run", {"--ranks", "4", "--zero", "2"}));
    kill(rank_after(*process, "run", 2, 7), SIGKILL);
    EXPECT_EQ(process->wait(20), 137) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_GE(logged("run", 2), 7);
    EXPECT_EQ(last_line(process->output()), "gptloom: rank 2 was ended by signal 9 (Killed) after step " +
                                                std::to_string(logged("run", 2)) + "; the last checkpoint is of step " +
                                                std::to_string(saved("run")) + ": --resume goes on from it");
    EXPECT_EQ(ours(*process).size(), 1u) << process->output();
    for (int r = 0; r < 4; r++) EXPECT_NEAR((double)logged("run", r), (double)logged("run", 2), 1) << log("run", r);
    expect_resumes("run", {"--ranks", "2", "--zero", "3"});
}

TEST_F(RankFailures, UnderMpirunItsBannerStandsAndLogsNameTheLastStep) {
    auto process = start(by_mpirun(2, train("run", {"--zero", "1"})));
    kill(rank_after(*process, "run", 0, 4), SIGKILL);
    EXPECT_EQ(process->wait(20), 137) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_NE(process->output().find("process rank 0 "), std::string::npos) << process->output();
    EXPECT_EQ(ours(*process).size(), 0u) << process->output();
    EXPECT_EQ(last_line(log("run", 1)).rfind("step " + std::to_string(logged("run", 1)) + "  loss ", 0), 0u);
    EXPECT_NEAR((double)logged("run", 1), (double)logged("run", 0), 1);
    expect_resumes("run", {});
}

TEST_F(RankFailures, AHungRankIsNamedInTime) {
    auto process = start(train("run", {"--ranks", "2", "--comm-timeout", "1"}));
    kill(rank_after(*process, "run", 1, 4), SIGSTOP);
    const double begin = now();
    EXPECT_EQ(process->wait(30), 2) << process->output();
    EXPECT_LT(now() - begin, 12);
    EXPECT_TRUE(process->is_gone());
    ASSERT_EQ(ours(*process).size(), 1u) << process->output();
    const std::string line = last_line(process->output()), step = std::to_string(logged("run", 0) + 1);
    EXPECT_EQ(line.rfind("gptloom: rank 1: no answer for 1 s, to ", 0), 0u) << line;
    EXPECT_NE(line.find(" in step "), std::string::npos) << line;
    EXPECT_EQ(last_line(log("run", 0)).rfind("ended in step ", 0), 0u) << log("run", 0);
    expect_resumes("run", {"--ranks", "1"});
}

/* Not even what started the ranks may be killed without their ending; and mpirun neither. */
TEST_F(RankFailures, NothingOutlivesWhatStartedIt) {
    auto process = start(train("launcher", {"--ranks", "2"}));
    rank_after(*process, "launcher", 0, 2);
    kill(process->pid(), SIGKILL);
    EXPECT_EQ(process->wait(5), 137);
    EXPECT_TRUE(process->is_gone(10));
    process = start(train("mpirun", {"--ranks", "2"}));
    const pid_t rank = rank_after(*process, "mpirun", 0, 2);
    std::ifstream status("/proc/" + std::to_string(rank) + "/status");
    pid_t parent = 0;
    for (std::string word; status >> word;)
        if (word == "PPid:") status >> parent;
    ASSERT_NE(parent, 0);
    kill(parent, SIGKILL);
    EXPECT_EQ(process->wait(20), 137);
    EXPECT_EQ(last_line(process->output()).rfind("gptloom: mpirun or a rank was ended by signal 9 (Killed); ", 0), 0u)
        << process->output();
    EXPECT_TRUE(process->is_gone(10));
}

/* Once: they save and end in order. Twice: at once, even with a rank that hangs. */
TEST_F(RankFailures, SignalsToWhatStartedThem) {
    auto process = start(train("once", {"--ranks", "2"}));
    rank_after(*process, "once", 1, 4);
    kill(process->pid(), SIGHUP);
    EXPECT_EQ(process->wait(30), 0) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_EQ(saved("once"), logged("once", 1));
    EXPECT_EQ(last_line(log("once", 1)), "ended in order");
    expect_resumes("once", {"--ranks", "1"});

    process = start(train("twice", {"--ranks", "2"}));
    kill(rank_after(*process, "twice", 1, 4), SIGSTOP);
    kill(process->pid(), SIGTERM);
    usleep(200000);
    EXPECT_FALSE(process->has_ended()) << process->output();
    kill(process->pid(), SIGTERM);
    EXPECT_EQ(process->wait(10), 143) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_EQ(last_line(process->output()),
              "gptloom: the ranks were ended at once, as was asked for; the last checkpoint is of step " +
                  std::to_string(saved("twice")) + ": --resume goes on from it");
}

/* What all ranks meet alike is said once, and so is what one of them alone meets. */
TEST_F(RankFailures, MistakesAreSaidOnce) {
    const auto said = [&](const Words &words, const std::string &line) {
        auto process = start(words);
        EXPECT_EQ(process->wait(30), 2) << process->output();
        EXPECT_EQ(ours(*process), Words{line}) << process->output();
        EXPECT_TRUE(process->is_gone());
        return process->output();
    };
    const std::string nowhere = ": there is no such file or directory: name text files, .bin token shards, a directory "
                                "of either, or a quoted glob";
    const std::string alone = said(train("run", {"--ranks", "4", "--val-data", "lost"}), "gptloom: lost" + nowhere);
    EXPECT_EQ(alone, "gptloom: lost" + nowhere + "\n") << "ranks were started";
    said(by_mpirun(4, train("run", {"--val-data", "lost"})), "gptloom: rank 0: lost" + nowhere);
    said(by_mpirun(4, train("run", {"--rank"})), "gptloom: --rank: there is no such flag; did you mean '--ranks'?");
    EXPECT_FALSE(fs::exists(here.at("run")));
    /* The loss is all ranks', and so is one that is no number. */
    auto process = start(by_mpirun(2, train("run", {"--lr", "100", "--weight-decay", "100", "--warmup", "0"})));
    EXPECT_EQ(process->wait(60), 2) << process->output();
    ASSERT_EQ(ours(*process).size(), 1u) << process->output();
    EXPECT_EQ(ours(*process)[0].rfind("gptloom: rank 0: --lr: the loss or its gradient has been no finite number", 0),
              0u);
    const std::string held = "--out: run holds a run already; --resume continues it, or take another directory";
    said(train("run", {"--ranks", "2"}), "gptloom: " + held);
    said(by_mpirun(2, train("run", {})), "gptloom: rank 0: " + held);
}

/* As of two ranks, one of which is started in another way. */
TEST_F(RankFailures, OneRanksOwnMistakeEndsAll) {
    const auto said = [&](const std::string &out, const Words &one, const std::string &line) {
        Words words = by_mpirun(1, train(out, {}));
        for (const char *word : {":", "-np", "1"}) words.push_back(word);
        words.insert(words.end(), one.begin(), one.end());
        auto process = start(words);
        EXPECT_EQ(process->wait(30), 2) << process->output();
        ASSERT_EQ(ours(*process).size(), 1u) << process->output();
        EXPECT_NE(ours(*process)[0].find(line), std::string::npos) << process->output();
        EXPECT_TRUE(process->is_gone());
    };
    said("data", train("data", {"--val-data", "lost"}), "gptloom: rank 1: lost: there is no such file");
    /* A disk that is full for one rank's part of a checkpoint: the one before stays. */
    Words small = {"sh", "-c", "ulimit -f 16; exec \"$@\"", "sh"};
    const Words same = train("disk", {});
    small.insert(small.end(), same.begin(), same.end());
    said("disk", small, "File too large");
    EXPECT_EQ(saved("disk"), -1);
    for (int r = 0; r < 2; r++) EXPECT_NE(last_line(log("disk", r)).find("File too large"), std::string::npos);
    expect_resumes("disk", {});
}

} // namespace
