/* What tests share that start programs: a program with a mark in its environment, by which all that came of it is found
 * again, what it prints, and its end, waited for no longer than is said. */
#ifndef LOOM_TEST_SUPPORT_PROCESSES_H
#define LOOM_TEST_SUPPORT_PROCESSES_H

#include "support.h"

#include <chrono>
#include <sstream>

#include <fcntl.h>
#include <sys/wait.h>

namespace support {

using Words = std::vector<std::string>;

inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/* The folder that this test is in, BUILD/test, and BUILD/gptloom. */
inline fs::path test_folder() {
    return fs::read_symlink("/proc/self/exe").parent_path();
}

inline std::string gptloom_program() {
    const char *named = std::getenv("GPTLOOM");
    return named ? named : (test_folder() / "../gptloom").lexically_normal().string();
}

inline bool on_path(const std::string &program) {
    return std::system(("command -v " + program + " >/dev/null 2>&1").c_str()) == 0;
}

/* Why ranks cannot be started by mpirun here; "" if they can. */
inline std::string no_mpi() {
    if (!on_path("mpirun")) return "there is no mpirun here (apt-get install openmpi-bin libopenmpi-dev)";
    if (!fs::exists(test_folder() / "../libgptloom_mpi.so")) return "there was no mpicc when this was built";
    return "";
}

inline Words lines_starting(const std::string &text, const std::string &start) {
    Words found;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
        if (line.rfind(start, 0) == 0) found.push_back(line);
    return found;
}

inline std::string last_line(const std::string &text) {
    std::istringstream lines(text);
    std::string last;
    for (std::string line; std::getline(lines, line);)
        if (!line.empty()) last = line;
    return last;
}

/* Processes that carry a variable in their environment, but those that have ended and are not buried. */
inline std::vector<pid_t> processes_with(const std::string &variable) {
    std::vector<pid_t> found;
    std::error_code ignored;
    for (const auto &entry : fs::directory_iterator("/proc", ignored)) {
        const std::string name = entry.path().filename();
        if (name.find_first_not_of("0123456789") != std::string::npos || name == std::to_string(getpid())) continue;
        std::ifstream file(entry.path() / "environ", std::ios::binary);
        const std::string environment{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
        if (environment.find(variable) != std::string::npos) found.push_back((pid_t)std::stol(name));
    }
    return found;
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
        setenv("ASAN_OPTIONS", "detect_leaks=0", 0); /* of MPI's */
        execvp(argv[0], argv.data());
        _exit(121);
    }
    ~Process() {
        for (const pid_t pid : processes_with(mark_)) kill(pid, SIGKILL);
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
    /* Its status, 128 + N after signal N; -1 if it has not ended in so many seconds. */
    int wait(double seconds) {
        for (const double end = now() + seconds; !has_ended() && now() < end;) usleep(1000);
        return ended_ ? status_ : -1;
    }
    /* Whether nothing that carries the mark is left, or will be in a moment: mpirun's own helpers may take one. */
    testing::AssertionResult is_gone(double seconds = 5) {
        const double end = now() + seconds;
        std::vector<pid_t> left;
        while (!(left = processes_with(mark_)).empty() && now() < end) usleep(20000);
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
    std::string mark_, output_;
    pid_t pid_;
    bool ended_ = false;
    int status_ = -1;
};

} // namespace support

#endif
