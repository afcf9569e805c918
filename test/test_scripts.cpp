/* The shell scripts of dev/ and the test runner: each is run as a user runs it, with a network of one loopback server
 * and a machine made of small scripts where the real one must not be touched. */
#include <gtest/gtest.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace fs = std::filesystem;

namespace {

/* --------------------------------------------------------------------------------------------------------- scaffold */

/* The project's folder: above the working directory, or above this program. */
fs::path project() {
    for (fs::path start : {fs::current_path(), fs::read_symlink("/proc/self/exe")})
        for (fs::path folder = start; folder != folder.root_path(); folder = folder.parent_path())
            if (fs::exists(folder / "dev/get-text.sh")) return folder;
    ADD_FAILURE() << "the project's folder is not above the working directory";
    return ".";
}

std::string read(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

void write(const fs::path &path, const std::string &text) {
    std::ofstream(path, std::ios::binary) << text;
}

struct result {
    int status;
    std::string output; /* stdout and stderr */
};

result shell(const std::string &command) {
    result result{};
    FILE *pipe = popen(("{ " + command + "\n} 2>&1").c_str(), "r");
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, pipe)) > 0;) result.output.append(part, n);
    const int status = pclose(pipe);
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return result;
}

std::string quoted(const std::string &text) {
    return "'" + text + "'";
}

bool contains(const std::string &text, const std::string &part) {
    return text.find(part) != std::string::npos;
}

class ScriptTest : public ::testing::Test {
  protected:
    void SetUp() override {
        std::string pattern = (fs::temp_directory_path() / "gptloom-scripts-XXXXXX").string();
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        here = pattern;
        tools = here / "tools";
        fs::create_directory(tools);
    }
    void TearDown() override {
        fs::remove_all(here);
    }

    /* A script among the tools, or anywhere. */
    void script(const fs::path &path, const std::string &body) {
        write(path, "#!/bin/sh\n" + body);
        fs::permissions(path, fs::perms::owner_all);
    }
    void tool(const std::string &name, const std::string &body) {
        script(tools / name, body);
    }
    /* The machine's own tool of that name; false if it has none. */
    bool link_tool(const std::string &name) {
        std::string path = name == "python3" ? shell("python3 -c 'import sys; print(sys.executable)'").output
                                             : shell("command -v " + name).output;
        path.erase(path.find_last_not_of('\n') + 1);
        if (path.empty() || path[0] != '/') return false;
        fs::create_symlink(path, tools / name);
        return true;
    }
    void link_tools(const std::vector<std::string> &names) {
        for (const std::string &name : names) ASSERT_TRUE(link_tool(name)) << name;
    }

    fs::path here, tools;
};

/* A web server on loopback, for one request after the other: /text gives `content`, /slow begins to and never ends,
 * anything else is not found. */
class Server {
  public:
    explicit Server(std::string content) : content_(std::move(content)) {
        listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr *>(&address), size), 0);
        EXPECT_EQ(listen(listener_, 8), 0);
        EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr *>(&address), &size), 0);
        url = "http://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
        thread_ = std::thread([this] { serve(); });
    }
    ~Server() {
        stop_ = true;
        thread_.join();
        close(listener_);
    }

    std::string url;
    std::atomic<int> requests{0};

  private:
    void serve() {
        while (!stop_) {
            pollfd ready{listener_, POLLIN, 0};
            if (poll(&ready, 1, 20) <= 0) continue;
            const int peer = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
            if (peer < 0) continue;
            answer(peer);
            close(peer);
        }
    }
    void answer(int peer) {
        std::string request;
        char part[1024];
        while (!contains(request, "\r\n\r\n")) {
            const ssize_t n = recv(peer, part, sizeof part, 0);
            if (n <= 0) return;
            request.append(part, static_cast<size_t>(n));
        }
        requests++;
        const bool slow = contains(request, "GET /slow ");
        if (!slow && !contains(request, "GET /text ")) {
            send_all(peer, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return;
        }
        send_all(peer, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + std::to_string(content_.size()) +
                           "\r\n\r\n" + (slow ? "" : content_));
        /* A byte now and then, so that only a limit on the whole time helps. */
        while (slow && !stop_ && send(peer, ".", 1, MSG_NOSIGNAL) == 1)
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    static void send_all(int peer, const std::string &text) {
        for (size_t at = 0; at < text.size();) {
            const ssize_t n = send(peer, text.data() + at, text.size() - at, MSG_NOSIGNAL);
            if (n <= 0) return;
            at += static_cast<size_t>(n);
        }
    }

    std::string content_;
    int listener_ = -1;
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

/* -------------------------------------------------------------------------------------------------- dev/get-text.sh */

class GetText : public ScriptTest {
  protected:
    void SetUp() override {
        ScriptTest::SetUp();
        for (int i = 0; i < 20000; i++) content += "line " + std::to_string(i) + "\n";
        write(here / "content", content);
        sum = shell("sha256sum <" + quoted((here / "content").string())).output.substr(0, 64);
        out = here / "new/text.txt";
    }
    /* Runs the script with settings as "NAME=value NAME=value". */
    result get(const std::string &settings) {
        return shell("unset DATA DATA_URL DATA_SHA256 DATA_TIMEOUT; no_proxy=127.0.0.1 " + settings + " " +
                     quoted((project() / "dev/get-text.sh").string()) + " " + quoted(out.string()));
    }
    /* What is left in place of a text that could not be had. */
    void expect_headers(const result &result) {
        EXPECT_EQ(result.status, 0) << result.output;
        EXPECT_TRUE(contains(result.output, "could not be used: ")) << result.output;
        EXPECT_TRUE(contains(result.output, "instead the C headers under /usr/include")) << result.output;
        const std::string expected =
            shell("find /usr/include -type f -name '*.h' -print0 | LC_ALL=C sort -z | xargs -0 cat 2>/dev/null | "
                  "head -c 4000000")
                .output;
        EXPECT_EQ(read(out).size(), expected.size());
        EXPECT_TRUE(read(out) == expected);
        expect_no_leftovers();
    }
    void expect_no_leftovers() {
        for (const auto &entry : fs::directory_iterator(out.parent_path())) EXPECT_EQ(entry.path(), out);
    }

    std::string content, sum;
    fs::path out;
};

TEST_F(GetText, TakesDataAsItIs) {
    const fs::path data = here / "content";
    const result file = get("DATA=" + quoted(data.string()));
    EXPECT_EQ(file.status, 0) << file.output;
    EXPECT_TRUE(contains(file.output, data.string()));
    EXPECT_FALSE(fs::exists(out));

    const result missing = get("DATA=" + quoted((here / "nowhere").string()));
    EXPECT_EQ(missing.status, 2);
    EXPECT_TRUE(contains(missing.output, "nowhere: there is no such file or directory")) << missing.output;
}

TEST_F(GetText, FetchesAndChecksAndKeepsWhatIsGood) {
    Server server(content);
    const std::string settings = "DATA_URL=" + server.url + "/text DATA_SHA256=" + sum;
    const result first = get(settings);
    EXPECT_EQ(first.status, 0) << first.output;
    EXPECT_TRUE(
        contains(first.output, server.url + "/text (" + std::to_string(content.size()) + " bytes, SHA-256 checked)"))
        << first.output;
    EXPECT_TRUE(read(out) == content);
    expect_no_leftovers();

    const result second = get(settings);
    EXPECT_EQ(second.status, 0);
    EXPECT_TRUE(contains(second.output, "as fetched before")) << second.output;
    EXPECT_EQ(server.requests, 1);

    write(out, content.substr(1));
    EXPECT_EQ(get(settings).status, 0);
    EXPECT_EQ(server.requests, 2);
    EXPECT_TRUE(read(out) == content);
}

TEST_F(GetText, SaysWhenThereIsNothingToCheckWith) {
    Server server(content);
    const result result = get("DATA_URL=" + server.url + "/text");
    EXPECT_EQ(result.status, 0);
    EXPECT_TRUE(contains(result.output, "not checked")) << result.output;
    EXPECT_TRUE(read(out) == content);
}

TEST_F(GetText, FetchesWithWhateverThereIs) {
    Server server(content);
    int tried = 0;
    link_tools({"sh", "timeout", "tail", "wc", "tr", "cut", "sha256sum", "mv", "rm", "mkdir", "dirname"});
    for (const char *fetcher : {"curl", "wget", "python3"}) {
        if (!link_tool(fetcher)) continue;
        tried++;
        const result good = get("PATH=" + quoted(tools.string()) + " DATA_SHA256=" + sum + " DATA_URL=" + server.url +
                                "/text");
        EXPECT_EQ(good.status, 0) << fetcher << ": " << good.output;
        EXPECT_TRUE(contains(good.output, "SHA-256 checked")) << fetcher << ": " << good.output;
        EXPECT_EQ(server.requests, tried);
        fs::remove(tools / fetcher);
        fs::remove(out);
    }
    EXPECT_GT(tried, 0);
}

TEST_F(GetText, RefusesAWrongSum) {
    Server server(content);
    const result result = get("DATA_URL=" + server.url + "/text DATA_SHA256=" + std::string(64, '0'));
    EXPECT_TRUE(contains(result.output, "its SHA-256 is " + sum + ", not 0000")) << result.output;
    expect_headers(result);
}

/* One that would never end by itself; where the machine is slow the time is over before it begins. */
TEST_F(GetText, EndsASlowDownload) {
    Server server(content);
    const result result = get("DATA_TIMEOUT=0.5 DATA_URL=" + server.url + "/slow");
    EXPECT_LE(server.requests, 1);
    EXPECT_TRUE(contains(result.output, "not there within 0.5 seconds")) << result.output;
    expect_headers(result);
}

TEST_F(GetText, GoesOnWithoutANetwork) {
    std::string url;
    {
        Server server(content);
        url = server.url; /* where nobody listens any more */
    }
    const result refused = get("DATA_URL=" + url + "/text");
    EXPECT_TRUE(contains(refused.output, url)) << refused.output;
    expect_headers(refused);

    Server server(content);
    const result not_found = get("DATA_URL=" + server.url + "/elsewhere");
    EXPECT_TRUE(contains(not_found.output, "404")) << not_found.output;
    expect_headers(not_found);
}

TEST_F(GetText, WantsOneArgument) {
    EXPECT_EQ(shell(quoted((project() / "dev/get-text.sh").string())).status, 2);
}

/* ----------------------------------------------------------------------------------------------------- dev/setup.sh */

/* A machine whose compilers lack libraries (a line each in the file `lacking`, "-lcjson"), whose apt writes down how it
 * was called, and which makes everything link once something was installed. */
class Setup : public ScriptTest {
  protected:
    void SetUp() override {
        ScriptTest::SetUp();
        link_tools({"sh", "grep", "cat", "env", "touch", "mkdir", "tail"});
        const std::string compiler = "cat >/dev/null\n"
                                     "for word in \"$@\"; do\n"
                                     "    if grep -qx -e \"$word\" " +
                                     in_here("lacking") +
                                     "; then exit 1; fi\n"
                                     "done\n";
        tool("gcc", compiler);
        tool("g++", compiler);
        tool("apt-get", "echo \"$@\" >>" + in_here("apt-calls") +
                            "\necho Reading package lists\ncase $* in\n*' install '*)\n    [ ! -e " +
                            in_here("apt-fails") + " ] || exit 100\n    : >" + in_here("lacking") + "\n    ;;\nesac\n");
        tool("apt-cache", "case $2 in\n'') printf ' 100 /var/lib/dpkg/status\\n     release a=now\\n'\n"
                          "    [ -e " +
                              in_here("apt-has-no-lists") +
                              " ] || printf '     release o=Debian,a=stable\\n' ;;\n"
                              "*) if grep -qx -e \"$2\" " +
                              in_here("not-in-release") +
                              "; then c='(none)'; else c=1.2; fi\n"
                              "    echo \"  Candidate: $c\" ;;\nesac\n");
        tool("id", "echo 0\n");
        tool("mpicc", "");
        tool("mpirun", "");
        for (const char *file : {"lacking", "not-in-release", "apt-calls"}) write(here / file, "");
    }
    std::string in_here(const char *name) {
        return quoted((here / name).string());
    }
    void no_root() {
        tool("id", "echo 1000\n");
    }
    result setup(const std::string &settings = "") {
        return shell("unset CC CXX MATMUL DNNL_CFLAGS DNNL_LIBS MPI MPICC; BUILD=" + in_here("build") + " " + settings +
                     " PATH=" + quoted(tools.string()) + " sh " + quoted((project() / "dev/setup.sh").string()) +
                     " </dev/null");
    }
    std::string calls() {
        return read(here / "apt-calls");
    }
};

const char install_all[] = "apt-get update && apt-get install -y --no-install-recommends "
                           "libcjson-dev libxxhash-dev libgtest-dev libdnnl-dev";

TEST_F(Setup, IsSilentWhereNothingIsMissing) {
    const result result = setup();
    EXPECT_EQ(result.status, 0);
    EXPECT_EQ(result.output, "");
    EXPECT_EQ(calls(), "");
}

TEST_F(Setup, InstallsAsRoot) {
    write(here / "lacking", "-lcjson\n-lxxhash\n-lgtest\n-ldnnl\n");
    const result result = setup();
    EXPECT_EQ(result.status, 0) << result.output;
    EXPECT_EQ(calls(), "-qq -o DPkg::Lock::Timeout=120 update\n"
                       "-qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends libcjson-dev libxxhash-dev "
                       "libgtest-dev libdnnl-dev\n");
}

TEST_F(Setup, InstallsCompilers) {
    write(here / "lacking", "c++\nc\n");
    EXPECT_EQ(setup().status, 0);
    EXPECT_TRUE(contains(calls(), "install -y --no-install-recommends g++ gcc libcjson-dev libxxhash-dev")) << calls();
}

TEST_F(Setup, PrintsTheOneCommandWhereItMayNotInstall) {
    write(here / "lacking", "-lcjson\n-lxxhash\n-lgtest\n-ldnnl\n");
    no_root();
    const result no_sudo = setup();
    EXPECT_EQ(no_sudo.status, 2);
    EXPECT_TRUE(contains(no_sudo.output, "\n    su -c '" + std::string(install_all) + "'\n")) << no_sudo.output;

    tool("sudo", "exit 1\n"); /* wants a password, and there is no terminal */
    const result sudo = setup();
    EXPECT_EQ(sudo.status, 2);
    EXPECT_TRUE(contains(sudo.output, "\n    sudo sh -c '" + std::string(install_all) + "'\n")) << sudo.output;
    EXPECT_EQ(calls(), "");
}

TEST_F(Setup, InstallsWithSudo) {
    write(here / "lacking", "-lxxhash\n");
    no_root();
    tool("sudo", "[ \"$1\" = -n ] && shift && touch " + in_here("sudo-was-used") + " && exec \"$@\"\n");
    tool("true", "");
    const result result = setup();
    EXPECT_EQ(result.status, 0) << result.output;
    EXPECT_TRUE(fs::exists(here / "sudo-was-used"));
    EXPECT_TRUE(contains(calls(), "install -y --no-install-recommends libxxhash-dev\n")) << calls();
}

TEST_F(Setup, TakesOpenblasWhereTheReleaseHasNoOnednn) {
    write(here / "lacking", "-ldnnl\n-lopenblas\n");
    write(here / "not-in-release", "libdnnl-dev\n");
    EXPECT_EQ(setup().status, 0);
    EXPECT_TRUE(contains(calls(), "--no-install-recommends libopenblas-dev\n")) << calls();
}

TEST_F(Setup, DoesWithoutWhatTheReleaseDoesNotHave) {
    write(here / "lacking", "-ldnnl\n-lopenblas\n");
    write(here / "not-in-release", "libdnnl-dev\nlibopenblas-dev\n");
    const result result = setup();
    EXPECT_EQ(result.status, 0);
    EXPECT_EQ(result.output, "");
    EXPECT_EQ(calls(), "");
}

TEST_F(Setup, DoesNotStopForSpeedAlone) {
    write(here / "lacking", "-ldnnl\n");
    const std::string hint = "apt-get update && apt-get install -y --no-install-recommends libdnnl-dev";
    write(here / "apt-has-no-lists", "");
    const result no_lists = setup();
    EXPECT_EQ(no_lists.status, 0);
    EXPECT_TRUE(contains(no_lists.output, hint)) << no_lists.output;

    fs::remove(here / "apt-has-no-lists");
    no_root();
    const result no_root = setup();
    EXPECT_EQ(no_root.status, 0);
    EXPECT_TRUE(contains(no_root.output, hint)) << no_root.output;
    EXPECT_EQ(calls(), "");
}

/* Training on one device needs no MPI. */
TEST_F(Setup, InstallsOpenMpiWhereItCanAndDoesNotStopForIt) {
    fs::remove(tools / "mpicc");
    EXPECT_EQ(setup("MPI=no").output, "");
    EXPECT_EQ(calls(), "");
    no_root();
    const result no_root = setup();
    EXPECT_EQ(no_root.status, 0);
    EXPECT_TRUE(contains(no_root.output, "\n    su -c 'apt-get update && apt-get install -y --no-install-recommends "
                                         "libopenmpi-dev openmpi-bin'\n"))
        << no_root.output;
    EXPECT_TRUE(contains(no_root.output, "several ranks") && !contains(no_root.output, "matrix")) << no_root.output;
    tool("id", "echo 0\n");
    write(here / "lacking", "-lxxhash\n-ldnnl\n");
    EXPECT_EQ(setup().status, 0);
    EXPECT_TRUE(contains(calls(), "install -y --no-install-recommends libxxhash-dev libdnnl-dev libopenmpi-dev "
                                  "openmpi-bin\n"))
        << calls();
    write(here / "apt-calls", "");
    write(here / "not-in-release", "libopenmpi-dev\n");
    EXPECT_EQ(setup().output, "");
    EXPECT_EQ(calls(), "");
}

TEST_F(Setup, InsistsOnALibraryThatIsAskedFor) {
    write(here / "lacking", "-ldnnl\n-lopenblas\n");
    EXPECT_EQ(setup("MATMUL=plain").output, "");
    no_root();
    for (const std::string name : {"onednn libdnnl-dev", "openblas libopenblas-dev"}) {
        const size_t space = name.find(' ');
        const result result = setup("MATMUL=" + name.substr(0, space));
        EXPECT_EQ(result.status, 2);
        EXPECT_TRUE(contains(result.output, "--no-install-recommends " + name.substr(space + 1) + "'\n"))
            << result.output;
    }
}

TEST_F(Setup, TellsWhenAptFails) {
    write(here / "lacking", "-lcjson\n");
    write(here / "apt-fails", "");
    const result result = setup();
    EXPECT_EQ(result.status, 2);
    EXPECT_TRUE(contains(result.output, "apt-get could not install libcjson-dev")) << result.output;
    EXPECT_TRUE(contains(result.output, "Reading package lists")) << result.output;
}

TEST_F(Setup, KeepsWhatAptSaysToItself) {
    write(here / "lacking", "-lcjson\n");
    const result result = setup();
    EXPECT_EQ(result.status, 0) << result.output;
    EXPECT_FALSE(contains(result.output, "Reading package lists")) << result.output;
    EXPECT_TRUE(contains(read(here / "build/setup.log"), "Reading package lists"));
}

TEST_F(Setup, ListsWhatToInstallWithoutApt) {
    write(here / "lacking", "-lcjson\n-ldnnl\n");
    fs::remove(tools / "apt-get");
    const result result = setup();
    EXPECT_EQ(result.status, 2);
    EXPECT_TRUE(contains(result.output, "no apt") && contains(result.output, "cJSON") &&
                contains(result.output, "oneDNN or OpenBLAS"))
        << result.output;
    EXPECT_FALSE(contains(result.output, "xxHash")) << result.output;

    write(here / "lacking", "-ldnnl\n");
    fs::remove(tools / "mpirun");
    EXPECT_EQ(setup().status, 0);
    write(here / "lacking", "-lcjson\n");
    EXPECT_TRUE(contains(setup().output, "Open MPI with mpicc (not needed)"));
}

/* ------------------------------------------------------------------------------------------------- dev/first-run.sh */

/* A project of two scripts and a program that only writes down how it was called. */
class FirstRun : public ScriptTest {
  protected:
    void SetUp() override {
        ScriptTest::SetUp();
        root = here / "project";
        fs::create_directories(root / "dev");
        fs::create_directories(root / "build");
        for (const char *name : {"get-text.sh", "first-run.sh"})
            fs::copy(project() / "dev" / name, root / "dev" / name);
        write(here / "data.txt", "\n* * *\nOnce upon a time\nthere was\n");
    }
    void build() {
        script(root / "build/gptloom", "printf '%s|' \"$@\" >>calls; echo >>calls\ncase $1 in\ntrain)\n"
                                       "    while [ \"$1\" != --out ]; do shift; done\n    mkdir -p \"$2\"\n"
                                       "    printf '{\"step\": 1, \"loss\": 5.5, \"val_loss\": 5.25}\\n{\"step\": 2, "
                                       "\"loss\": 1.25, \"lr\": 1}\\n' "
                                       ">\"$2/metrics.jsonl\" ;;\nplot) echo \"$2/loss.svg\" ;;\nesac\n");
    }
    result first_run() {
        return shell("cd " + quoted(here.string()) + "; unset DATA_URL BUILD; DATA=data.txt project/dev/first-run.sh");
    }

    fs::path root;
};

TEST_F(FirstRun, TrainsSamplesAndPlots) {
    build();
    const result result = first_run();
    EXPECT_EQ(result.status, 0) << result.output;
    EXPECT_TRUE(contains(result.output, "1.250 nats per token in training, 5.250 on the last tenth")) << result.output;
    EXPECT_TRUE(contains(result.output, "The loss curve:  runs/first/loss.svg")) << result.output;
    EXPECT_TRUE(contains(result.output, "build/gptloom train --resume --out runs/first")) << result.output;
    const std::string calls = read(root / "calls");
    EXPECT_TRUE(contains(calls, "train|--data|" + (here / "data.txt").string() + "|--out|runs/first|")) << calls;
    EXPECT_TRUE(contains(calls, "sample|--from|runs/first|--tokens|400|--prompt|Once upon a time\n|")) << calls;
    EXPECT_TRUE(contains(calls, "plot|runs/first|")) << calls;
}

TEST_F(FirstRun, KeepsEarlierRuns) {
    build();
    ASSERT_EQ(first_run().status, 0);
    ASSERT_EQ(first_run().status, 0);
    const result third = first_run();
    EXPECT_EQ(third.status, 0);
    EXPECT_TRUE(contains(third.output, "runs/first-3/loss.svg")) << third.output;
    EXPECT_TRUE(fs::exists(root / "runs/first/metrics.jsonl") && fs::exists(root / "runs/first-2/metrics.jsonl"));
}

TEST_F(FirstRun, StopsWithTheFirstFailure) {
    const result unbuilt = first_run();
    EXPECT_EQ(unbuilt.status, 2);
    EXPECT_TRUE(contains(unbuilt.output, "run make")) << unbuilt.output;

    script(root / "build/gptloom", "echo \"$1\" >>calls\nexit 2\n");
    EXPECT_EQ(first_run().status, 2);
    EXPECT_EQ(read(root / "calls"), "train\n");
}

/* ------------------------------------------------------------------------------------------------------ test/run.py */

/* The programs that the runner is tested with are this one: told by ACT which part to play, it has other tests. */
class Act : public ::testing::Test {
  public:
    explicit Act(std::function<void()> act) : act_(std::move(act)) {
    }
    void TestBody() override {
        act_();
    }

  private:
    std::function<void()> act_;
};

const bool acting = [] {
    const std::map<std::string, std::function<void()>> acts = {
        {"Pass", [] {}},
        {"Fail", [] { FAIL() << "two and two are five"; }},
        {"Skip", [] { GTEST_SKIP() << "no such thing here"; }},
        {"Crash", [] { raise(SIGKILL); }},
        {"HangUp", [] { raise(SIGHUP); }},
        {"Elsewhere", [] {}},
        {"Hang",
         [] {
             if (const char *begun = std::getenv("BEGUN")) std::ofstream(begun) << getpid();
             sleep(600);
         }},
        {"Slow", [] { usleep(100000); }},
        {"Litter", [] { std::ofstream(fs::temp_directory_path() / "litter"); }},
        {"Leak", [] { std::atexit([] { _exit(23); }); }},
        {"DISABLED_Act", [] {}},
    };
    const char *parts = std::getenv("ACT");
    if (!parts) return false;
    std::istringstream names(parts);
    for (std::string name; names >> name;) {
        const std::function<void()> act = acts.at(name);
        ::testing::RegisterTest("Act", name.c_str(), nullptr, nullptr,
                                name == "Elsewhere" ? "elsewhere.cpp" : "test_scripts.cpp", __LINE__,
                                [act]() -> ::testing::Test * { return new Act(act); });
    }
    return true;
}();

class Runner : public ScriptTest {
  protected:
    void SetUp() override {
        ScriptTest::SetUp();
        ASSERT_FALSE(acting);
    }
    /* A test program called test_N with these tests, of which the next run takes those that `only` matches; first it
     * does what `before` says. */
    void program(const std::string &tests, const std::string &only = "", const std::string &before = "",
                 const std::string &source = "") {
        const fs::path path = here / ("test_" + std::to_string(++n_));
        script(path, before + "ACT='" + tests + "' exec " + quoted(fs::read_symlink("/proc/self/exe").string()) +
                         " --gtest_filter='Act.*' \"$@\"\n");
        programs_ += " " + quoted(path.string() + source + (only.empty() ? "" : "=" + only));
    }
    /* Tests that run beside this one come and go in /dev/shm: the runner is to look elsewhere. */
    result run(const std::string &flags = "", const std::string &by = "") {
        fs::create_directory(shared_memory());
        return shell(by + "python3 " + quoted((project() / "test/run.py").string()) + " --logs " +
                     quoted((here / "logs").string()) + " --shared-memory " + quoted(shared_memory().string()) + " " +
                     flags + programs_);
    }
    fs::path shared_memory() const {
        return here / "shared-memory";
    }
    static std::string last_line(const std::string &output) {
        const size_t end = output.find_last_not_of('\n');
        return output.substr(output.rfind('\n', end) + 1, end - output.rfind('\n', end));
    }

  private:
    std::string programs_;
    int n_ = 0;
};

TEST_F(Runner, CountsAndExplains) {
    program("Pass Skip Fail");
    program("Pass DISABLED_Act");
    const result result = run();
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(last_line(result.output), "2 passed, 1 failed, 2 skipped") << result.output;
    EXPECT_TRUE(contains(result.output, "test_1: Act.Skip: no such thing here\n")) << result.output;
    EXPECT_TRUE(contains(result.output, "test_2: Act.DISABLED_Act: is disabled in its source\n")) << result.output;
    EXPECT_TRUE(contains(result.output, "| two and two are five\n")) << result.output;
    EXPECT_TRUE(contains(result.output, "\nFailed:\n    test_1: Act.Fail\n")) << result.output;
    EXPECT_FALSE(contains(result.output, "Act.Pass")) << result.output;
}

TEST_F(Runner, RunsWhatAFilterLeaves) {
    program("Pass Fail", "*.Pass");
    const result result = run();
    EXPECT_EQ(result.status, 0);
    EXPECT_EQ(last_line(result.output), "1 passed, 0 failed, 0 skipped") << result.output;
}

TEST_F(Runner, SucceedsWhenAllPass) {
    program("Pass");
    program("Skip Pass");
    const result result = run();
    EXPECT_EQ(result.status, 0);
    EXPECT_EQ(last_line(result.output), "2 passed, 0 failed, 1 skipped") << result.output;
}

TEST_F(Runner, CountsACrashAndWhatCameBefore) {
    program("Pass Skip Crash");
    program("Pass");
    const result result = run();
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(last_line(result.output), "2 passed, 1 failed, 1 skipped") << result.output;
    EXPECT_TRUE(contains(result.output, "FAILED Act.Crash\n")) << result.output;
    EXPECT_TRUE(contains(result.output, "killed by SIGKILL")) << result.output;
}

/* A machine may be so busy that it takes as long to come to what hangs: then once more, with more time. */
TEST_F(Runner, EndsWhatTakesTooLong) {
    const fs::path begun = here / "begun";
    program("Pass Hang", "", "export BEGUN=" + quoted(begun.string()) + "\n");
    result result;
    std::string limit;
    for (const char *seconds : {"0.5", "5", "60"}) {
        if (fs::exists(begun)) break;
        result = run(std::string("--timeout ") + seconds);
        limit = seconds;
    }
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(last_line(result.output), "1 passed, 1 failed, 0 skipped") << result.output;
    EXPECT_TRUE(contains(result.output, "ended after " + limit + " s")) << result.output;
}

/* By its source: of these two tests each is of another file, as this program is of many. */
TEST_F(Runner, RunsTheTestsOfOneSource) {
    program("Pass Elsewhere", "", "", ":test_scripts");
    program("Pass Elsewhere", "", "", ":elsewhere");
    program("Pass Elsewhere", "", "", ":nowhere");
    const result result = run();
    EXPECT_EQ(last_line(result.output), "2 passed, 1 failed, 0 skipped") << result.output;
    EXPECT_TRUE(contains(result.output, "/elsewhere ")) << result.output;
    EXPECT_TRUE(contains(result.output, "it has no tests of nowhere")) << result.output;
}

TEST_F(Runner, CountsWhatIsLeftInTheTemporaryDirectory) {
    program("Pass Litter");
    const result result = run();
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(last_line(result.output), "2 passed, 1 failed, 0 skipped") << result.output;
    EXPECT_TRUE(contains(result.output, "it left litter in TMPDIR")) << result.output;
    EXPECT_FALSE(fs::exists(fs::temp_directory_path() / "litter"));
}

TEST_F(Runner, CountsWhatIsLeftInSharedMemory) {
    const std::string left = (shared_memory() / "gptloom-left").string();
    program("Pass", "", "touch " + quoted(left) + "\n");
    const result result = run();
    EXPECT_EQ(result.status, 1);
    EXPECT_TRUE(contains(result.output, left)) << result.output;
}

/* Where the runner is to outlive a terminal the tests, which send these signals, are not to. */
TEST_F(Runner, StartsProgramsThatSignalsEnd) {
    program("HangUp");
    const result result = run("", "nohup ");
    EXPECT_TRUE(contains(result.output, "killed by SIGHUP")) << result.output;
}

TEST_F(Runner, CountsABadEndAfterGoodTests) {
    program("Pass Leak");
    const result result = run();
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(last_line(result.output), "2 passed, 1 failed, 0 skipped") << result.output;
    EXPECT_TRUE(contains(result.output, "status 23, after its tests")) << result.output;
}

/* Each of two waits for the other; their lines come in the order in which they were given. */
TEST_F(Runner, RunsProgramsBesideEachOther) {
    const std::string mine = quoted((here / "one").string()), theirs = quoted((here / "two").string());
    program("Pass", "", "touch " + mine + "; until [ -e " + theirs + " ]; do sleep 0.01; done; sleep 0.3\n");
    program("Fail", "", "touch " + theirs + "; until [ -e " + mine + " ]; do sleep 0.01; done\n");
    const result result = run("--jobs 2");
    EXPECT_EQ(last_line(result.output), "1 passed, 1 failed, 0 skipped") << result.output;
    EXPECT_LT(result.output.find("test_1 "), result.output.find("test_2 ")) << result.output;
}

/* The slowest of the last time begins first, so that it does not run alone at the end. */
TEST_F(Runner, BeginsWithWhatTookLongest) {
    const std::string order = quoted((here / "order").string());
    program("Pass", "", "echo quick >>" + order + "\n");
    program("Slow", "", "echo slow >>" + order + "\n");
    run("--jobs 1");
    run("--jobs 1");
    EXPECT_EQ(read(here / "order"), "quick\nslow\nslow\nquick\n");
}

/* Neither what runs nor what waits is left behind; that it is interrupted twice changes nothing. */
TEST_F(Runner, EndsAllWhenItIsInterrupted) {
    program("Hang", "", "echo $$ >" + quoted((here / "first").string()) + "; kill -INT $PPID; kill -INT $PPID\n");
    program("Pass", "", "echo $$ >" + quoted((here / "second").string()) + "\n");
    const result result = run("--jobs 1");
    EXPECT_EQ(result.status, 130) << result.output;
    const int hanging = std::atoi(read(here / "first").c_str());
    ASSERT_GT(hanging, 0) << "it was not begun";
    EXPECT_NE(kill(hanging, 0), 0) << "it was left";
    EXPECT_FALSE(fs::exists(here / "second"));
}

TEST_F(Runner, DoesNotTakeNothingForSuccess) {
    EXPECT_EQ(run().status, 1);
    EXPECT_EQ(last_line(run().output), "0 passed, 0 failed, 0 skipped");
    const result missing = run(quoted((here / "nowhere").string()));
    EXPECT_EQ(missing.status, 1);
    EXPECT_EQ(last_line(missing.output), "0 passed, 1 failed, 0 skipped") << missing.output;
}

/* ----------------------------------------------------------------------------------------------------------- the house */

/* What each folder of csrc includes of the others: none of a higher floor, and no two each other. Opening a device is
 * the one place that knows all of them, and CUDA's own headers are csrc/cuda's alone. What is not used is not
 * allowed. */
TEST(House, LowerFloorsIncludeNoHigherOnes) {
    const std::map<std::string, std::set<std::string>> allowed = {
        {"base", {}},
        {"ops", {"base"}},
        {"ops/device.c", {"base", "cpu", "cuda"}},
        {"cpu", {"base", "ops"}},
        {"cuda", {"base", "ops", "kernels"}},
        {"model", {"base"}},
        {"data", {"base"}},
        {"text", {"base"}},
        {"optim", {"base", "model"}},
        {"comm", {"base"}},
        {"parallel", {"base", "comm", "optim"}},
        {"checkpoint", {"base", "text", "ops", "model", "comm"}},
        {"plan", {"base", "model", "data", "optim", "parallel"}},
        {"engine", {"base", "ops", "model", "checkpoint", "data", "parallel"}},
        {"cases", {"base"}}};
    std::map<std::string, std::set<std::string>> unused = allowed;
    for (const auto &entry : fs::recursive_directory_iterator(project() / "csrc")) {
        const std::string extension = entry.path().extension().string();
        if (extension != ".c" && extension != ".h") continue;
        const fs::path path = fs::relative(entry.path(), project() / "csrc");
        const std::string folder = path.begin()->string(), own = allowed.count(path) ? path.string() : folder;
        ASSERT_TRUE(allowed.count(own)) << folder << " has no floor";
        std::istringstream lines(read(entry.path()));
        for (std::string line; std::getline(lines, line);) {
            const std::string quoted_mark = "#include \"", mark = "#include <";
            for (const char *of_cuda : {"cuda", "cublas", "cudnn", "nvtx"})
                EXPECT_TRUE(folder == "cuda" || line.compare(0, mark.size(), mark) != 0 ||
                            line.compare(mark.size(), strlen(of_cuda), of_cuda) != 0)
                    << entry.path() << ": " << line;
            if (line.compare(0, quoted_mark.size(), quoted_mark) != 0) continue;
            const size_t end = line.find('/');
            ASSERT_NE(end, std::string::npos) << entry.path() << ": " << line << " does not say whose it is";
            const std::string included = line.substr(quoted_mark.size(), end - quoted_mark.size());
            unused.at(own).erase(included);
            EXPECT_TRUE(included == folder || included == "gptloom" || allowed.at(own).count(included))
                << entry.path() << ": " << line;
        }
    }
    for (const auto &[own, folders] : unused) EXPECT_EQ(folders, std::set<std::string>()) << own;
}

/* Whoever uses the library needs nothing of csrc. */
TEST(House, PublicHeadersIncludeOnlyEachOther) {
    for (const auto &entry : fs::recursive_directory_iterator(project() / "include")) {
        if (!entry.is_regular_file()) continue;
        std::istringstream lines(read(entry.path()));
        for (std::string line; std::getline(lines, line);)
            EXPECT_TRUE(!contains(line, "#include \"") || contains(line, "#include \"gptloom/"))
                << entry.path() << ": " << line;
    }
}

/* Which object files call which: by the symbols that one defines and another needs. */
using Calls = std::map<std::string, std::set<std::string>>;

/* All that `from` calls, directly or through others. */
std::set<std::string> reached(const Calls &calls, const std::string &from) {
    std::set<std::string> seen;
    std::vector<std::string> left = {from};
    while (!left.empty()) {
        const std::string caller = left.back();
        left.pop_back();
        const auto found = calls.find(caller);
        if (found == calls.end()) continue;
        for (const std::string &called : found->second)
            if (seen.insert(called).second) left.push_back(called);
    }
    return seen;
}

/* Names that call each other in a circle, directly or through others: "a b c" for each circle. */
std::set<std::string> circles(const Calls &calls) {
    std::set<std::string> found;
    for (const auto &[name, called] : calls) {
        std::string circle;
        const std::set<std::string> from_here = reached(calls, name);
        for (const std::string &other : from_here)
            if (reached(calls, other).count(name)) circle += (circle.empty() ? "" : " ") + other;
        if (contains(circle, " ")) found.insert(circle);
    }
    return found;
}

/* The object of each of csrc's sources in BUILD/obj, where this test is in BUILD/test: "csrc/comm/comm.c" and its path.
 * Of csrc/cpu, which is compiled several times, the definition's. */
std::map<std::string, fs::path> objects() {
    const fs::path obj = fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "obj";
    std::map<std::string, fs::path> all;
    for (const auto &entry : fs::recursive_directory_iterator(project() / "csrc")) {
        if (entry.path().extension() != ".c") continue;
        const fs::path source = fs::relative(entry.path(), project());
        for (const fs::path &object : {obj / source, obj / "definition" / source.filename()}) {
            const fs::path compiled = fs::path(object).replace_extension(".o");
            if (object == obj / source || contains(source.string(), "csrc/cpu/"))
                if (fs::exists(compiled)) all.emplace(source.string(), compiled);
        }
    }
    return all;
}

Calls calls_of_objects() {
    std::map<std::string, std::string> source_of, definer;
    std::map<std::string, std::set<std::string>> needs;
    std::string command = "nm -A -g -P";
    for (const auto &[source, object] : objects()) {
        source_of[object.string()] = source;
        command += " " + quoted(object.string());
    }
    std::istringstream lines(shell(command).output);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string object, symbol, kind;
        words >> object >> symbol >> kind;
        if (symbol.compare(0, 5, "loom_") != 0) continue;
        const std::string &source = source_of.at(object.substr(0, object.size() - 1));
        if (kind == "U")
            needs[source].insert(symbol);
        else
            definer.emplace(symbol, source);
    }
    Calls calls;
    for (const auto &[source, symbols] : needs)
        for (const std::string &symbol : symbols)
            if (definer.count(symbol) && definer[symbol] != source) calls[source].insert(definer[symbol]);
    return calls;
}

TEST(House, FindsCircles) {
    EXPECT_EQ(circles({{"a", {"b"}}, {"b", {"c"}}}), std::set<std::string>{});
    EXPECT_EQ(circles({{"a", {"b", "d"}}, {"b", {"c"}}, {"c", {"a"}}}), std::set<std::string>{"a b c"});
    EXPECT_EQ(circles({{"a", {"b"}}, {"b", {"a"}}, {"c", {"d", "a"}}, {"d", {"c"}}}),
              (std::set<std::string>{"a b", "c d"}));
}

/* Opening a device, in csrc/ops/device.c, calls the devices, which use the rest of csrc/ops. */
TEST(House, FoldersDoNotCallEachOther) {
    Calls folders;
    for (const auto &[source, called] : calls_of_objects())
        for (const std::string &other : called) {
            const auto folder = [](const std::string &file) { return file.substr(0, file.find('/', 5)); };
            if (source != "csrc/ops/device.c" && folder(source) != folder(other))
                folders[folder(source)].insert(folder(other));
        }
    EXPECT_GE(folders.size(), 10u) << "the library's objects are not beside this test";
    EXPECT_EQ(circles(folders), std::set<std::string>{});
}

/* Known: in csrc/cases, case.c looks ops up in the list of all.c, whose cases call it, and frees values of
 * case_value.c. */
TEST(House, FilesDoNotCallEachOther) {
    Calls calls = calls_of_objects();
    calls["csrc/cases/case.c"].erase("csrc/cases/all.c");
    calls["csrc/cases/case.c"].erase("csrc/cases/case_value.c");
    EXPECT_GE(calls.size(), 100u) << "the library's objects are not beside this test";
    EXPECT_EQ(circles(calls), std::set<std::string>{});
}

/* ---------------------------------------------------------------------------------------------------------- Makefile */

/* The project's Makefile with compilers that make empty files, and a line for each. */
class Build : public ScriptTest {
  protected:
    void SetUp() override {
        ScriptTest::SetUp();
        const std::string body = "for a; do case $a in -dumpmachine) echo x86_64-linux-gnu; exit;; esac; done\n"
                                 "while [ $# -gt 1 ]; do\n"
                                 "    case $1 in -o) out=$2 ;; esac\n"
                                 "    shift\n"
                                 "done\n"
                                 "[ \"$out\" = /dev/null ] && exit\n"
                                 "echo \"${0##*/} $out\" >>" +
                                 quoted((here / "made").string()) + "\n: >\"$out\"\n";
        tool("ar", ": >\"$2\"\n");
        fs::create_directories(here / "cuda/bin");
        for (const char *compiler : {"tools/cc", "tools/c++", "cuda/bin/nvcc"}) script(here / compiler, body);
    }

    /* How many files each compiler makes of the program and its emulated sibling; and "link", how many it links. */
    std::map<std::string, int> make(const std::string &settings) {
        write(here / "made", "");
        const std::string compilers = "CC=" + (tools / "cc").string() + " CXX=" + (tools / "c++").string() +
                                      " NVCC=" + (here / "cuda/bin/nvcc").string() +
                                      " CUDA=" + (here / "cuda").string() +
                                      " CUDA_ARCH=\"80 90\" ARCH= CFLAGS= CUDNN_INCLUDE= MPICC= AR=" +
                                      (tools / "ar").string() + " ";
        const std::string build = (here / "build").string();
        const result done = shell("unset MAKEFLAGS MAKELEVEL MFLAGS CI; make -C " + quoted(project().string()) +
                                  " -j2 BUILD=" + build + " " + compilers + settings + " " + build + "/gptloom " +
                                  build + "/emulated/gptloom");
        EXPECT_EQ(done.status, 0) << done.output;
        std::map<std::string, int> made;
        std::istringstream lines(read(here / "made"));
        for (std::string compiler, file; lines >> compiler >> file;) made[contains(file, ".o") ? compiler : "link"]++;
        return made;
    }
};

TEST_F(Build, WithoutAGoalIsTheProgramAndTheLibrary) {
    const std::string build = (here / "build").string();
    const result would = shell("unset MAKEFLAGS MAKELEVEL MFLAGS CI; make -n -C " + quoted(project().string()) +
                               " BUILD=" + build + " CUDA= MPICC= MATMUL=plain");
    EXPECT_EQ(would.status, 0) << would.output;
    for (const char *made : {"/gptloom", "/libgptloom.a", "/emulated/gptloom"})
        EXPECT_TRUE(contains(would.output, build + made)) << made;
}

/* What a setting touches is compiled anew when it changes and when it changes back, and nothing else is. */
TEST_F(Build, CompilesAnewWhatASettingTouches) {
    const auto all = make("MATMUL=onednn");
    ASSERT_GT(all.at("cc"), 100);
    ASSERT_GT(all.at("c++"), 10);
    ASSERT_GT(all.at("nvcc"), 5);
    ASSERT_EQ(all.at("link"), 2);
    const std::map<std::string, int> none, c = {{"cc", all.at("cc")}, {"link", 2}}, links = {{"link", 2}};
    const std::map<std::string, int> kernels = {{"nvcc", all.at("nvcc")}, {"link", 1}};
    EXPECT_EQ(make("MATMUL=onednn"), none);
    EXPECT_EQ(make("MATMUL=onednn CFLAGS=-DOTHER=\"'x y'\""), c);
    EXPECT_EQ(make("MATMUL=onednn"), c);
    EXPECT_EQ(make("MATMUL=onednn CUDA_ARCH=90"), kernels);
    EXPECT_EQ(make("MATMUL=onednn"), kernels);
    EXPECT_EQ(make("MATMUL=onednn DNNL_LIBS=-L/opt/onednn/lib"), links);
    EXPECT_EQ(make("MATMUL=onednn"), links);
    /* Other sources, and so another library. */
    EXPECT_GT(make("MATMUL=plain").at("cc"), 0);
    EXPECT_TRUE(contains(read(here / "build/objects.list"), "matmul_plain.o"));
    EXPECT_FALSE(contains(read(here / "build/objects.list"), "product_onednn.o"));
    make("MATMUL=onednn");
    EXPECT_TRUE(contains(read(here / "build/objects.list"), "product_onednn.o"));
    EXPECT_EQ(make("MATMUL=onednn"), none);
}

} // namespace
