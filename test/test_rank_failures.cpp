/* Ranks that are killed, hang or fail, and the program that started them killed or asked to end: what is said, that
 * nothing is left behind, and that the run goes on to the bits of one that nothing happened to. */
#include "support_runs.h"

#include <random>

#include <poll.h>
#include <sys/stat.h>

namespace {

using namespace support;

#ifdef __SANITIZE_ADDRESS__
const double seconds_of_rounds = 10;
#else
const double seconds_of_rounds = 50;
#endif

class RankFailures : public RunsTest {};

/* Whoever is killed, our line is the last one, and says who, when, and what is left. */
TEST_F(RankFailures, AKilledRankIsNamedAndTheRunGoesOn) {
    Words loud = train("run", "--ranks 4 --zero 2");
    loud.erase(std::find(loud.begin(), loud.end(), "-q"));
    auto process = start(loud);
    kill(rank_after(*process, "run", 2, 7), SIGKILL);
    EXPECT_EQ(process->wait(), 137) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_GE(logged("run", 2), 7);
    EXPECT_EQ(last_line(process->output()), "gptloom: rank 2 was ended by signal 9 (Killed) after step " +
                                                std::to_string(logged("run", 2)) + "; the last checkpoint is of step " +
                                                std::to_string(saved("run")) + ": --resume goes on from it");
    EXPECT_EQ(ours(*process).size(), 1u) << process->output();
    for (int r = 0; r < 4; r++) EXPECT_NEAR((double)logged("run", r), (double)logged("run", 2), 1) << log("run", r);
    expect_resumes("run", "--ranks 2 --zero 3");
}

TEST_F(RankFailures, ARankThatIsKilledAsItStartsIsNamedToo) {
    auto process = start(train("run", "--ranks 2"));
    pid_t rank = 0;
    for (const double end = now() + seconds_to_hang; !rank && now() < end && !process->has_ended(); usleep(1000))
        for (const pid_t pid : pids_with("OMPI_COMM_WORLD_RANK=1"))
            if (process->has(pid)) rank = pid;
    ASSERT_GT(rank, 0) << process->output();
    kill(rank, SIGKILL);
    EXPECT_EQ(process->wait(), 137) << process->output();
    EXPECT_TRUE(process->is_gone());
    const std::string step = logged("run", 1) < 0 ? "" : " after step " + std::to_string(logged("run", 1));
    const std::string how = " was ended by signal 9 (Killed)",
                      rest = "; there is no checkpoint yet" +
                             std::string(fs::exists(here.at("run/config.ini")) ? ": --resume begins anew" : "");
    const std::string last = last_line(process->output());
    /* Open MPI does not always say which one it was, so early. */
    EXPECT_TRUE(last == "gptloom: rank 1" + how + step + rest || last == "gptloom: a rank" + how + rest)
        << process->output();
}

/* The data, too large to be kept in memory, lose their end: sooner or later a rank, most times one alone, is given
 * none. What was done is saved by all, and once the data are back the run goes on to the bits of one that nothing
 * happened to. */
TEST_F(RankFailures, ARankWithoutDataEndsTheRunAndNothingIsLost) {
    const std::string data = here.at("text"), more = " --any-bytes --steps 100000 --checkpoint-every 100000 ";
    int runs = 0;
    for (const char *const flags : {"--ranks 2 --zero 3", "--ranks 4 --zero 1"}) {
        const std::string ranks = flags, out = "run-" + std::to_string(++runs), whole = "whole-" + std::to_string(runs);
        fs::resize_file(data, 65 << 20);
        auto process = start(train(out, ranks + more));
        rank_after(*process, out, 0, 5);
        fs::resize_file(data, 60 << 20);
        EXPECT_EQ(process->wait(), 2) << process->output();
        EXPECT_TRUE(process->is_gone());
        ASSERT_GE(saved(out), 5) << process->output();
        for (int r = 0; r < 2; r++) EXPECT_EQ(logged(out, r), saved(out)) << log(out, r);
        const Words said = ours(*process);
        ASSERT_EQ(said.size(), 1u) << process->output();
        for (const std::string &words :
             {std::string("text: has become shorter"), "step " + std::to_string(saved(out)) + " is saved"})
            EXPECT_NE(said[0].find(words), std::string::npos) << said[0];
        fs::resize_file(data, 65 << 20);
        const std::string end = std::to_string(saved(out) + 2);
        auto resumed = start(words(gptloom_program() + " train --resume -q --stop-after 2 --out " + out + " " + ranks));
        EXPECT_EQ(resumed->wait(), 0) << resumed->output();
        auto alone = start(train(whole, more + "--stop-after " + end));
        EXPECT_EQ(alone->wait(), 0) << alone->output();
        EXPECT_TRUE(bits_in(here.path() / out) == bits_in(here.path() / whole)) << ranks << ", step " << end;
        if (!full()) return;
    }
}

/* What stands in for mpirun. */
class FakeMpirun : public RunsTest {
  protected:
    std::unique_ptr<Process> launch(const std::string &script) {
        fs::create_directory(here.at("bin"));
        write_file(here.at("bin/mpirun"), "#!/bin/sh\n" + script);
        fs::permissions(here.at("bin/mpirun"), fs::perms::owner_all);
        const std::string before = std::getenv("PATH");
        setenv("PATH", (here.at("bin") + ":" + before).c_str(), 1);
        auto process = start(train("none", "--ranks 2"));
        setenv("PATH", before.c_str(), 1);
        return process;
    }
    void await(const std::string &file, Process &process) {
        for (const double end = now() + seconds_to_hang; !fs::exists(here.at(file)) && now() < end;) {
            if (process.has_ended()) throw std::runtime_error(process.output());
            usleep(1000);
        }
    }
    const std::string waits = "touch begun\nwhile sleep 0.05; do :; done\n";
};

/* Open MPI 4 may wait for ever for a rank that was killed while it joined the others. It is ended, and killed after
 * that, with ranks that have process groups of their own. */
TEST_F(FakeMpirun, ThatWaitsForADeadRankIsEnded) {
    for (const char *ignored : {"", "trap '' TERM; setsid sleep 1000 & "}) {
        auto process = launch(std::string(ignored) +
                              "echo 'mpirun noticed that process rank 1 with PID 0 on node here exited on signal 9 "
                              "(Killed).' >&2\n" +
                              waits);
        EXPECT_EQ(process->wait(), 137) << process->output();
        EXPECT_TRUE(process->is_gone());
        EXPECT_EQ(last_line(process->output()),
                  "gptloom: rank 1 was ended by signal 9 (Killed); there is no checkpoint yet");
    }
}

/* What another rank prints is not mpirun's word, and numbers have to make sense. */
TEST_F(FakeMpirun, LinesThatAreNotItsOwnSayNothingOfRanks) {
    auto process = launch("echo 'data: process rank 1 exited on signal 9 (Killed).' >&2\n"
                          "echo 'mpirun noticed that process rank 7 with PID 0 on node here exited on signal 9' >&2\n"
                          "echo 'mpirun noticed that process rank 1 with PID 0 on node here exited on signal 999' >&2\n"
                          "exit 3\n");
    EXPECT_EQ(process->wait(), 3) << process->output();
    EXPECT_EQ(last_line(process->output()), "gptloom: the ranks ended with status 3: see above");
}

/* Ranks that have not begun have nothing to save: they are ended. */
TEST_F(FakeMpirun, RanksThatHaveNotBegunAreEndedAtOnce) {
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
        fs::remove(here.at("begun"));
        auto process = launch(waits);
        await("begun", *process);
        kill(process->pid(), number);
        EXPECT_EQ(process->wait(), 128 + number) << process->output();
        EXPECT_TRUE(process->is_gone());
        EXPECT_EQ(last_line(process->output()),
                  "gptloom: the ranks were asked to end before they had begun; there is no checkpoint yet");
    }
}

/* A warning that comes early is kept until they all can take it. */
TEST_F(FakeMpirun, RanksAreWarnedWhenTheyHaveBegun) {
    auto process = launch("trap 'test -e ready && exit 0; exit 5' USR1\necho ready >>$LOOM_LAST_LINE\ntouch begun\n"
                          "while test ! -e go; do sleep 0.05; done\ntouch ready\necho ready >>$LOOM_LAST_LINE\n"
                          "while sleep 0.05; do :; done\n");
    await("begun", *process);
    process->deliver(SIGUSR1);
    write_file(here.at("go"), "");
    EXPECT_EQ(process->wait(), 0) << process->output();
    EXPECT_TRUE(process->is_gone());
}

/* Nor does a reader that does not read, of stdout and stderr together, keep them: a pager, or a terminal that is
 * stopped. */
TEST_F(FakeMpirun, SignalsEndWhatNobodyReads) {
    const std::string floods = "while :; do echo 'a line, and another one of the same length'; done\n",
                      begins = "trap '' USR1\necho ready >>$LOOM_LAST_LINE\necho ready >>$LOOM_LAST_LINE\n";
    for (const auto &[script, signals] :
         {std::pair(floods, 1), {"exec >&2\n" + floods, 1}, {begins + "exec >&2\n" + floods, 3}}) {
        const std::string pipe = here.at("command-" + std::to_string(commands + 1) + "."); /* where its output goes */
        ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
        const int reader = open(pipe.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
        ASSERT_EQ(fcntl(reader, F_SETPIPE_SZ, 4096), 4096);
        auto process = launch(script);
        struct pollfd room = {reader, POLLOUT, 0};
        while (poll(&room, 1, 0) != 0 && !process->has_ended()) usleep(1000);
        for (int i = 0; i < signals; i++) process->deliver(SIGINT);
        EXPECT_EQ(process->wait(), 130) << script;
        fs::remove(pipe);
        close(reader);
        EXPECT_TRUE(process->is_gone());
    }
}

TEST_F(RankFailures, UnderMpirunItsBannerStandsAndLogsNameTheLastStep) {
    auto process = start(by_mpirun(2, train("run", "--zero 1")));
    kill(rank_after(*process, "run", 0, 4), SIGKILL);
    EXPECT_EQ(process->wait(), 137) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_NE(process->output().find("process rank 0 "), std::string::npos) << process->output();
    EXPECT_EQ(ours(*process).size(), 0u) << process->output();
    EXPECT_EQ(last_line(log("run", 1)).rfind("step " + std::to_string(logged("run", 1)) + "  loss ", 0), 0u);
    EXPECT_NEAR((double)logged("run", 1), (double)logged("run", 0), 1);
    expect_resumes("run");
}

TEST_F(RankFailures, AHungRankIsNamed) {
    auto process = start(train("run", "--ranks 2 --comm-timeout 10"));
    kill(rank_after(*process, "run", 1, 4), SIGSTOP);
    EXPECT_EQ(process->wait(), 2) << process->output();
    EXPECT_TRUE(process->is_gone());
    ASSERT_EQ(ours(*process).size(), 1u) << process->output();
    const std::string line = last_line(process->output()), step = std::to_string(logged("run", 0) + 1);
    EXPECT_EQ(line.rfind("gptloom: rank 1: no answer for 10 s, to ", 0), 0u) << line;
    EXPECT_NE(line.find(" in step "), std::string::npos) << line;
    EXPECT_EQ(last_line(log("run", 0)).rfind("ended in step ", 0), 0u) << log("run", 0);
    expect_resumes("run", "--ranks 1");
}

/* Not even what started the ranks may be killed without their ending; and mpirun neither. */
TEST_F(RankFailures, NothingOutlivesWhatStartedIt) {
    auto process = start(train("launcher", "--ranks 2"));
    rank_after(*process, "launcher", 0, 2);
    kill(process->pid(), SIGKILL);
    EXPECT_EQ(process->wait(), 137);
    EXPECT_TRUE(process->is_gone());
    if (!full()) return;
    process = start(train("mpirun", "--ranks 2"));
    const pid_t rank = rank_after(*process, "mpirun", 0, 2);
    std::ifstream status("/proc/" + std::to_string(rank) + "/status");
    pid_t parent = 0;
    for (std::string word; status >> word;)
        if (word == "PPid:") status >> parent;
    ASSERT_NE(parent, 0);
    kill(parent, SIGKILL);
    EXPECT_EQ(process->wait(), 137);
    EXPECT_EQ(last_line(process->output()).rfind("gptloom: mpirun was ended by signal 9 (Killed); ", 0), 0u)
        << process->output();
    EXPECT_TRUE(process->is_gone());
}

/* They save and end, and what started them says which signal asked for it; but for SIGUSR1, by which Slurm warns of a
 * time limit. */
TEST_F(RankFailures, SignalsToWhatStartedThem) {
    for (const auto &[number, status] : {std::pair(SIGHUP, 129), {SIGINT, 130}, {SIGTERM, 143}, {SIGUSR1, 0}}) {
        const std::string out = "run-" + std::to_string(number);
        auto process = start(train(out, "--ranks 2"));
        rank_after(*process, out, 1, 4);
        kill(process->pid(), number);
        EXPECT_EQ(process->wait(), status) << process->output();
        EXPECT_TRUE(process->is_gone());
        EXPECT_EQ(ours(*process).size(), 0u) << process->output();
        EXPECT_EQ(saved(out), logged(out, 1));
        EXPECT_EQ(last_line(log(out, 1)), "ended in order");
        if (number == SIGHUP || full()) expect_resumes(out, "--ranks 1");
    }
}

/* Once more: at once, even with a rank that hangs. */
TEST_F(RankFailures, ASecondSigtermEndsThemAtOnce) {
    auto process = start(train("twice", "--ranks 2"));
    kill(rank_after(*process, "twice", 1, 4), SIGSTOP);
    process->deliver(SIGTERM);
    EXPECT_FALSE(process->has_ended()) << process->output();
    process->deliver(SIGTERM);
    EXPECT_EQ(process->wait(), 143) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_EQ(last_line(process->output()),
              "gptloom: the ranks were ended at once, as was asked for; the last checkpoint is of step " +
                  std::to_string(saved("twice")) + ": --resume goes on from it");
}

TEST_F(RankFailures, ASecondCtrlCSaysWhatWouldBeLostAndAThirdEndsThem) {
    auto process = start(train("thrice", "--ranks 2"));
    kill(rank_after(*process, "thrice", 1, 4), SIGSTOP);
    process->deliver(SIGINT);
    process->deliver(SIGINT);
    const std::string line = "gptloom: the ranks end and save still; once more ends them at once, and ";
    const double end = now() + seconds_to_hang;
    while (process->output().find(line) == std::string::npos && !process->has_ended() && now() < end) usleep(1000);
    EXPECT_NE(process->output().find(line), std::string::npos) << process->output();
    EXPECT_FALSE(process->has_ended());
    process->deliver(SIGINT);
    EXPECT_EQ(process->wait(), 130) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_NE(last_line(process->output()).find("the ranks were ended at once, as was asked for"), std::string::npos);
    EXPECT_EQ(ours(*process).size(), 2u) << process->output();
}

/* Open MPI's files go with the launcher, or if that is killed, as the next one starts. */
TEST_F(RankFailures, TheNextStartCleansUp) {
    const auto place = [&](pid_t rank) {
        std::istringstream environment(read_file("/proc/" + std::to_string(rank) + "/environ"));
        const std::string name = "OMPI_MCA_orte_tmpdir_base=";
        for (std::string item; std::getline(environment, item, '\0');)
            if (item.rfind(name, 0) == 0) return item.substr(name.size());
        return std::string();
    };
    const Words as_users_do = words("env -u OMPI_MCA_orte_tmpdir_base -u OMPI_MCA_btl_vader_backing_directory");
    auto process = start(as_users_do + train("one", "--ranks 2"));
    const std::string first = place(rank_after(*process, "one", 1, 1));
    EXPECT_EQ(first.rfind("/dev/shm/gptloom-ranks-", 0), 0u) << first;
    kill(process->pid(), SIGKILL);
    EXPECT_EQ(process->wait(), 137);
    EXPECT_TRUE(process->is_gone());
    process = start(as_users_do + train("two", "--ranks 2"));
    const std::string second = place(rank_after(*process, "two", 1, 1));
    EXPECT_NE(second, first);
    EXPECT_TRUE(fs::exists(second));
    EXPECT_FALSE(fs::exists(first));
    kill(process->pid(), SIGTERM);
    EXPECT_EQ(process->wait(), 143) << process->output();
    EXPECT_FALSE(fs::exists(second));
}

/* What all ranks meet alike is said once, and so is what one of them alone meets. */
TEST_F(RankFailures, MistakesAreSaidOnce) {
    const auto said = [&](const Words &words, const std::string &line) {
        auto process = start(words);
        EXPECT_EQ(process->wait(), 2) << process->output();
        EXPECT_EQ(ours(*process), Words{line}) << process->output();
        EXPECT_TRUE(process->is_gone());
        return process->output();
    };
    const std::string nowhere = ": there is no such file or directory: name text files, .bin token shards, a directory "
                                "of either, or a quoted glob";
    const std::string alone = said(train("run", "--ranks 4 --val-data lost"), "gptloom: lost" + nowhere);
    EXPECT_EQ(alone, "gptloom: lost" + nowhere + "\n") << "ranks were started";
    said(by_mpirun(4, train("run", "--val-data lost")), "gptloom: rank 0: lost" + nowhere);
    said(by_mpirun(4, train("run", "--rank")), "gptloom: --rank: there is no such flag; did you mean '--ranks'?");
    EXPECT_FALSE(fs::exists(here.at("run")));
    if (!full()) return;
    /* The loss is all ranks', and so is one that is no number. */
    auto process = start(by_mpirun(2, train("run", "--lr 100 --weight-decay 100 --warmup 0")));
    EXPECT_EQ(process->wait(), 2) << process->output();
    ASSERT_EQ(ours(*process).size(), 1u) << process->output();
    EXPECT_EQ(ours(*process)[0].rfind("gptloom: rank 0: --lr: the loss ", 0), 0u) << process->output();
    EXPECT_NE(ours(*process)[0].find(": 10 steps in a row were bad"), std::string::npos) << process->output();
    const std::string held = "--out: run holds a run already; --resume continues it, or take another directory";
    said(train("run", "--ranks 2"), "gptloom: " + held);
    said(by_mpirun(2, train("run")), "gptloom: rank 0: " + held);
}

TEST_F(RankFailures, OneRanksOwnMistakeEndsAll) {
    auto process = start(by_mpirun(1, train("data")) + words(": -np 1") + train("data", "--val-data lost"));
    EXPECT_EQ(process->wait(), 2) << process->output();
    ASSERT_EQ(ours(*process).size(), 1u) << process->output();
    EXPECT_EQ(ours(*process)[0].rfind("gptloom: rank 1: lost: there is no such file", 0), 0u) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_FALSE(fs::exists(here.at("data")));

    /* A disk that is full for one rank's part of the first checkpoint. */
    process = start(by_mpirun(2, train("disk", "--checkpoint-every 30")));
    const pid_t pid = rank_after(*process, "disk", 1, 1);
    const rlimit small = {8192, 8192};
    ASSERT_EQ(prlimit(pid, RLIMIT_FSIZE, &small, nullptr), 0);
    EXPECT_EQ(process->wait(), 2) << process->output();
    ASSERT_EQ(ours(*process).size(), 1u) << process->output();
    EXPECT_EQ(ours(*process)[0].rfind("gptloom: rank 1: ", 0), 0u) << process->output();
    EXPECT_NE(ours(*process)[0].find("File too large"), std::string::npos) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_EQ(saved("disk"), -1);
    for (int r = 0; r < 2; r++) EXPECT_NE(last_line(log("disk", r)).find("File too large"), std::string::npos);
    expect_resumes("disk");
}

/* Waits until a checkpoint is being written. */
void await_save(const fs::path &run, Process &process) {
    const auto saves = [&] {
        std::error_code ignored;
        for (const auto &entry : fs::directory_iterator(run / "checkpoints", ignored))
            if (entry.path().filename().string()[0] == '.') return true;
        return false;
    };
    for (const double end = now() + seconds_to_hang; !saves() && !process.has_ended() && now() < end;) usleep(100);
}

/* Anything may happen to any rank at any moment. LOOM_TEST_SEED repeats what has failed, as far as moments can be. */
TEST_F(RankFailures, AtRandom) {
    if (!full()) GTEST_SKIP() << "make test-full runs it";
    const char *given = getenv("LOOM_TEST_SEED");
    const unsigned seed = given ? (unsigned)std::stoul(given) : std::random_device()();
    std::mt19937 random(seed);
    const auto any = [&](int n) { return (int)(random() % (unsigned)n); };
    const double end = now() + seconds_of_rounds;
    for (int round = 0; now() < end && !HasFailure(); round++) {
        static const char *const times[] = {" ms after its log begins", " ms after a step", " ms after a save begins"};
        const int ranks = 2 << any(2), victim = any(ranks), stage = any(4), time = any(3),
                  moment = any(time < 2 ? 25 : 8);
        const bool launched = any(2), hangs = any(3) == 0;
        const std::string out = "run-" + std::to_string(round), timeout = hangs ? " --comm-timeout 10" : "";
        std::ostringstream what;
        what << "seed " << seed << ", round " << round << ": " << (launched ? "--ranks " : "mpirun -np ") << ranks
             << ", stage " << stage << ": rank " << victim << (hangs ? " is stopped " : " is killed ") << moment
             << times[time];
        SCOPED_TRACE(what.str());
        printf("%s\n", what.str().c_str());
        const Words program = train(out, "--zero " + std::to_string(stage) + timeout +
                                             (launched ? " --ranks " + std::to_string(ranks) : ""));
        auto process = start(launched ? program : by_mpirun(ranks, program));
        const pid_t pid = rank_after(*process, out, victim, time == 0 ? 0 : 1 + any(2 * EVERY));
        if (time == 2) await_save(here.at(out), *process);
        usleep((useconds_t)moment * 1000);
        kill(pid, hangs ? SIGSTOP : SIGKILL);
        EXPECT_EQ(process->wait(), hangs ? 2 : 137) << process->output();
        EXPECT_TRUE(process->is_gone());
        EXPECT_EQ(ours(*process).size(), hangs || launched ? 1u : 0u) << process->output();
        if (launched) {
            EXPECT_EQ(Words{last_line(process->output())}, ours(*process)) << process->output();
        }
        if (ours(*process).size() == 1) {
            EXPECT_NE(ours(*process)[0].find("rank " + std::to_string(victim)), std::string::npos) << process->output();
        }
        for (int r = 0; r < ranks; r++) EXPECT_GE(logged(out, r), logged(out, victim) - 1) << log(out, r);
        const int others = 1 << any(3);
        expect_resumes(out, "--ranks " + std::to_string(others) + " --zero " + std::to_string(any(4)));
        fs::remove_all(here.at(out));
    }
}

} // namespace
