/* What tests share in which something happens to runs of several ranks: programs under way, found again with all that
 * came of them by a mark in their environment; and one small run that ranks do together, whose bits are known. */
#ifndef LOOM_TEST_SUPPORT_RUNS_H
#define LOOM_TEST_SUPPORT_RUNS_H

#include "support_ranks.h"
#include "support_train.h"

#include <fcntl.h>
#include <sys/wait.h>

namespace support {

using Words = std::vector<std::string>;

inline Words words(const std::string &text) {
    std::istringstream stream(text);
    return {std::istream_iterator<std::string>(stream), {}};
}
inline Words operator+(Words all, const Words &more) {
    all.insert(all.end(), more.begin(), more.end());
    return all;
}

inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/* BUILD/gptloom, where this test is in BUILD/test. */
inline std::string gptloom_program() {
    const char *named = std::getenv("GPTLOOM");
    return named ? named : (folder() / "../gptloom").lexically_normal().string();
}

inline std::string last_line(const std::string &text) {
    std::istringstream lines(text);
    std::string last;
    for (std::string line; std::getline(lines, line);)
        if (!line.empty()) last = line;
    return last;
}

/* A program under way. Its input is empty, its output goes to a file, stdout and stderr together. What is left of it
 * and of what it started is killed when the object goes. */
class Process {
  public:
    Process(const Words &words, const fs::path &directory, const std::string &mark, const std::string &output)
        : mark_(mark), output_(output) {
        std::vector<char *> argv;
        for (const std::string &word : words) argv.push_back(const_cast<char *>(word.c_str()));
        argv.push_back(nullptr);
        pid_ = fork();
        if (pid_ < 0) throw std::runtime_error("fork failed");
        if (pid_ > 0) return;
        const int file = open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
        const int nothing = open("/dev/null", O_RDONLY);
        if (chdir(directory.c_str()) != 0 || dup2(nothing, 0) < 0 || dup2(file, 1) < 0 || dup2(file, 2) < 0) _exit(120);
        close(file), close(nothing);
        setpgid(0, 0);
        putenv(const_cast<char *>(mark.c_str()));
        /* For what mpirun leaves if it is killed. */
        for (const std::string &setting : support::words(open_mpi_files(directory))) putenv(strdup(setting.c_str()));
        setenv("ASAN_OPTIONS", "detect_leaks=0", 0); /* of MPI's */
        execvp(argv[0], argv.data());
        _exit(121);
    }
    ~Process() {
        for (const pid_t pid : pids_with(mark_)) kill(pid, SIGKILL);
        if (!ended_) kill(pid_, SIGKILL), waitpid(pid_, nullptr, 0);
    }
    Process(const Process &) = delete;
    Process &operator=(const Process &) = delete;

    pid_t pid() const {
        return pid_;
    }
    std::string output() const {
        return read_file(output_);
    }
    bool has_ended() {
        int status;
        if (!ended_ && waitpid(pid_, &status, WNOHANG) == pid_) {
            ended_ = true;
            status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        return ended_;
    }
    /* Its status, 128 + N after signal N; -1 if it hangs. */
    int wait() {
        for (const double end = now() + seconds_to_hang; !has_ended() && now() < end;) usleep(1000);
        return ended_ ? status_ : -1;
    }
    /* Sends a signal, and waits until it has been taken: two of a kind that wait are one. */
    void deliver(int number) {
        kill(pid_, number);
        for (const double end = now() + seconds_to_hang; pending(number) && !has_ended() && now() < end;) usleep(1000);
    }
    /* Whether a process came of it. */
    bool has(pid_t pid) const {
        const std::vector<pid_t> all = pids_with(mark_);
        return std::find(all.begin(), all.end(), pid) != all.end();
    }
    /* Whether nothing that carries the mark is left, or will be in a moment: mpirun's own helpers may take one. */
    testing::AssertionResult is_gone() {
        const double end = now() + seconds_to_hang;
        std::vector<pid_t> left;
        while (!(left = pids_with(mark_)).empty() && now() < end) usleep(20000);
        if (left.empty()) return testing::AssertionSuccess();
        testing::AssertionResult result = testing::AssertionFailure() << "left:";
        for (const pid_t pid : left) {
            std::ifstream file("/proc/" + std::to_string(pid) + "/cmdline", std::ios::binary);
            std::string line{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
            std::replace(line.begin(), line.end(), '\0', ' ');
            result << "\n  " << pid << ": " << line.substr(0, 200);
        }
        return result << "\n" << output();
    }

  private:
    bool pending(int number) const {
        std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
        for (std::string word; status >> word;)
            if (word == "SigPnd:" || word == "ShdPnd:") {
                status >> word;
                if (std::stoull(word, nullptr, 16) >> (number - 1) & 1) return true;
            }
        return false;
    }

    std::string mark_, output_;
    pid_t pid_;
    bool ended_ = false;
    int status_ = -1;
};

/* One small run, which ranks are to do together. */
class RunsTest : public MpiTest {
  protected:
    static constexpr int STEPS = 400, EVERY = 3; /* far more than are done; a checkpoint in every third */
    int commands = 0;
    std::map<int64_t, std::string> bits_after; /* of a run that nothing happens to */

    void SetUp() override {
        MpiTest::SetUp();
        if (IsSkipped()) return;
        write_file(here.at("text"), some_text(2000, 7));
    }

    /* What trains it, in words of the program. */
    Words train(const std::string &out, const std::string &more = "") const {
        return words(gptloom_program() + " train --data text --out " + out +
                     " --n-layer 1 --n-head 1 --n-embd 16 --block-size 16 --batch 4 --micro-batch 1 --val-fraction 0" +
                     " --lr 1e-3 --device cpu --threads 1 --deterministic-reduce --keep 0 -q --steps " +
                     std::to_string(STEPS) + " --checkpoint-every " + std::to_string(EVERY) + " " + more);
    }

    /* Words as so many ranks of mpirun, which is told what a small machine needs. */
    static Words by_mpirun(int ranks, const Words &program) {
        return words(std::string("mpirun ") + (geteuid() == 0 ? "--allow-run-as-root " : "") +
                     "--oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -np " + std::to_string(ranks)) +
               program;
    }

    std::unique_ptr<Process> start(const Words &program) {
        const std::string name = "command-" + std::to_string(++commands) + ".";
        return std::make_unique<Process>(
            program, here.path(), "LOOM_TEST_MARK=" + here.path().filename().string() + "-" + name, here.at(name));
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
        const double end = now() + seconds_to_hang;
        while (logged(out, rank) < step && !process.has_ended() && now() < end) usleep(500);
        const std::string text = log(out, rank);
        const size_t at = text.rfind(", process ");
        if (process.has_ended() || at == std::string::npos)
            throw std::runtime_error("the ranks did not come to step " + std::to_string(step) + ":\n" +
                                     process.output());
        return (pid_t)std::stol(text.substr(at + 10));
    }

    /* A checkpoint's parameters and moments, as bits. */
    static std::string bits_in(const fs::path &run) {
        std::map<std::string, std::string> files; /* in their names' order */
        for (const auto &entry : fs::directory_iterator(run / "checkpoints/latest"))
            if (entry.path().extension() == ".safetensors") files[entry.path()] = read_file(entry.path());
        std::string all;
        for (const auto &[name, content] : files) all += content;
        return all;
    }

    const std::string &bits_without_failures(int64_t step) {
        std::string &bits = bits_after[step];
        if (bits.empty()) {
            const std::string out = "alone-" + std::to_string(step);
            EXPECT_EQ(start(train(out, "--stop-after " + std::to_string(step)))->wait(), 0);
            bits = bits_in(here.path() / out);
            EXPECT_GT(bits.size(), 10000u);
        }
        return bits;
    }

    /* Goes on with a run that has ended somehow, past the next checkpoint; with more flags, and words before the
     * program, which start it. One that had not begun begins. */
    void expect_resumes(const std::string &out, const std::string &more = "", const Words &before = {}) {
        const int64_t from = saved(out) < 0 ? 0 : saved(out), steps = EVERY + 1;
        const std::string stop = "--stop-after " + std::to_string(steps) + " " + more;
        const bool begun = fs::exists(here.at(out) + "/config.ini");
        const Words program = begun ? words(gptloom_program() + " train --resume -q --out " + out + " " + stop)
                                    : train(out, stop);
        auto process = start(before + program);
        ASSERT_EQ(process->wait(), 0) << process->output();
        EXPECT_EQ(saved(out), from + steps);
        EXPECT_TRUE(bits_in(here.path() / out) == bits_without_failures(from + steps)) << "other bits";
        for (const auto &entry : fs::directory_iterator(here.path() / out / "checkpoints"))
            EXPECT_NE(entry.path().filename().string()[0], '.') << entry.path() << " is left";
        EXPECT_TRUE(process->is_gone());
    }

    static Words ours(const Process &process) {
        return lines_of(process.output());
    }
};

} // namespace support

#endif
