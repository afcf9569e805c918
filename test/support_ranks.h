/* What tests of ranks share: several processes, started by mpirun or by a shell, and what they print. */
#ifndef LOOM_TEST_SUPPORT_RANKS_H
#define LOOM_TEST_SUPPORT_RANKS_H

#include "support.h"

#include <chrono>
#include <sstream>

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

namespace support {

inline fs::path folder() {
    return fs::read_symlink("/proc/self/exe").parent_path();
}

inline bool have(const std::string &program) {
    return std::system(("command -v " + program + " >/dev/null 2>&1").c_str()) == 0;
}

/* How long anything may take before it counts as hanging: a busy machine takes its time. */
constexpr double seconds_to_hang = 300;

/* Has Open MPI keep its files in a directory of the test's, which goes with it, whoever is killed. */
inline std::string open_mpi_files(const fs::path &directory) {
    const std::string at = directory.string();
    return "TMPDIR=" + at + " OMPI_MCA_orte_tmpdir_base=" + at + " OMPI_MCA_btl_vader_backing_directory=" + at;
}

struct Outcome {
    int status; /* of the shell: 128 + N after signal N, 124 if it took too long */
    std::string output;
};

/* Our own lines of an output. */
inline std::vector<std::string> lines_of(const std::string &output, const std::string &start = "gptloom: ") {
    std::vector<std::string> found;
    std::istringstream lines(output);
    for (std::string line; std::getline(lines, line);)
        if (line.rfind(start, 0) == 0) found.push_back(line);
    return found;
}

/* Processes that carry a variable in their environment, but those that have ended and are not buried. */
inline std::vector<pid_t> pids_with(const std::string &variable) {
    std::vector<pid_t> found;
    std::error_code ignored;
    for (const auto &entry : fs::directory_iterator("/proc", ignored)) {
        const std::string pid = entry.path().filename();
        if (pid.find_first_not_of("0123456789") != std::string::npos || pid == std::to_string(getpid())) continue;
        std::ifstream file(entry.path() / "environ", std::ios::binary);
        const std::string environment{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
        if (environment.find(variable) != std::string::npos) found.push_back((pid_t)std::stol(pid));
    }
    return found;
}

inline size_t processes_with(const std::string &variable) {
    return pids_with(variable).size();
}

inline std::string standin() {
    return (folder() / "libnccl_standin.so").string();
}

inline bool can_bind(int port) {
    const int s = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)port);
    const bool can = bind(s, (sockaddr *)&address, sizeof address) == 0;
    close(s);
    return can;
}

/* A port that is free, and the one above it too (torchrun's agent has the first, and rank 0 listens at the second).
 * They are below those that the kernel gives to connections, and until this process ends no other test gets them: the
 * name of an abstract socket holds them. */
inline int free_port() {
    const int first = 20000, pairs = 6000;
    static int next = getpid() * 7; /* processes that begin together look in different places */
    for (int i = 0; i < pairs; i++, next++) {
        const int port = first + next % pairs * 2;
        sockaddr_un name = {};
        name.sun_family = AF_UNIX;
        const int length = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "gptloom-test-port-%d", port);
        const int holder = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        const auto size = (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + (size_t)length);
        const bool ours = bind(holder, (sockaddr *)&name, size) == 0;
        if (ours && can_bind(port) && can_bind(port + 1)) return next++, port;
        close(holder);
    }
    ADD_FAILURE() << "no port is free from " << first << " on";
    return first;
}

inline std::string at_port(int port) {
    return "MASTER_ADDR=127.0.0.1 MASTER_PORT=" + std::to_string(port);
}

/* With what a small machine needs. */
inline const std::string mpirun_here = "mpirun --allow-run-as-root --oversubscribe --bind-to none --mca "
                                       "mpi_yield_when_idle 1 ";

/* Several ranks in processes; nothing may be left of them. */
class RanksTest : public testing::Test {
  protected:
    TemporaryDirectory here;
    std::string tag = "LOOM_TEST_TAG=" + here.path().filename().string() + "-";

    Outcome shell(const std::string &command) {
        const std::string log = here.at("log");
        const std::string whole = "cd '" + here.path().string() + "' && env " + tag + " " +
                                  open_mpi_files(here.path()) + " timeout -k 2 " +
                                  std::to_string((int)seconds_to_hang) + " sh -c '" + command + "' >'" + log +
                                  "' 2>&1 </dev/null";
        const int result = std::system(whole.c_str());
        return {WIFEXITED(result) ? WEXITSTATUS(result) : 128 + WTERMSIG(result), read_file(log)};
    }

    /* A program of this folder under mpirun. Sanitizers find MPI's own leaks. */
    Outcome mpirun(int ranks, const std::string &program, const std::string &arguments,
                   const std::string &environment = "") {
        return shell("env ASAN_OPTIONS=detect_leaks=0 " + environment + " " + mpirun_here + "-np " +
                     std::to_string(ranks) + " " + (folder() / program).string() + " " + arguments);
    }

    /* A program of this folder with the stand-in for NCCL, as torchrun does it: each rank with its number in its
     * environment. Ends when all have, with the first status that is not 0; a rank that is expected to stop is killed
     * when the others have ended, and its status does not count. */
    Outcome torchrun(int ranks, const std::string &program, const std::string &arguments,
                     const std::string &environment = "", int stopped = -1) {
        std::string start, wait = "worst=0; ";
        for (int i = 0; i < ranks; i++) {
            const std::string r = std::to_string(i);
            start += "env RANK=" + r + " LOCAL_RANK=" + r + " WORLD_SIZE=" + std::to_string(ranks) +
                     " LOOM_NCCL=" + standin() + " " + environment + " " + (folder() / program).string() + " " +
                     arguments + " & p" + r + "=$!; ";
            if (i != stopped) wait += "wait $p" + r + "; s=$?; [ $worst -ne 0 ] || worst=$s; ";
        }
        if (stopped >= 0) wait += "kill -9 $p" + std::to_string(stopped) + "; ";
        return shell(start + wait + "exit $worst");
    }

    void TearDown() override {
        /* mpirun's own helpers may take a moment. */
        const auto begin = std::chrono::steady_clock::now();
        const std::chrono::duration<double> limit(seconds_to_hang);
        while (processes_with(tag) && std::chrono::steady_clock::now() - begin < limit) usleep(20000);
        EXPECT_EQ(processes_with(tag), 0u) << "processes are left";
    }
};

/* Those that MPI connects; skipped where it is not. */
class MpiTest : public RanksTest {
  protected:
    void SetUp() override {
        if (!have("mpirun")) GTEST_SKIP() << "there is no mpirun here (apt-get install openmpi-bin libopenmpi-dev)";
        if (!fs::exists(folder() / "../libgptloom_mpi.so")) GTEST_SKIP() << "there was no mpicc when this was built";
    }
};

} // namespace support

#endif
