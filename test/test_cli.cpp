/* The program from outside: it is built before the tests and run as a user runs it. Every mistake must give exit code
 * 2 and exactly one line on stderr that names the flag or file, and must leave nothing behind. */
#include "base/file.h"
#include "gptloom/device.h"

#include "../train/interrupts.h"
#include "../train/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

std::string slurp(const fs::path &path) {
    std::stringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

std::vector<std::string> lines_of(const std::string &text) {
    std::vector<std::string> lines;
    std::stringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

struct Outcome {
    int code = -1; /* 128 + signal where one ended it */
    std::string out, err;
};

/* GPTLOOM, or build/gptloom below the directory the tests run in. */
std::string program() {
    const char *named = std::getenv("GPTLOOM");
    char path[PATH_MAX];
    return realpath(named ? named : "build/gptloom", path) ? path : "";
}

class Program : public ::testing::Test {
  protected:
    fs::path folder;
    std::string gptloom = program();
    fs::path gptloom_directory; /* that it runs in, below the folder */

    void SetUp() override {
        ASSERT_FALSE(gptloom.empty()) << "there is no build/gptloom, and GPTLOOM names no program";
        std::string name = fs::temp_directory_path() / "gptloom-cli-XXXXXX";
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        folder = name;
        text("text.txt", 4000);
    }

    void TearDown() override {
        fs::remove_all(folder);
        for (const char *output : {".out", ".err"}) fs::remove(folder.string() + output);
    }

    void write(const fs::path &name, const std::string &content) {
        std::ofstream(folder / name, std::ios::binary) << content;
    }

    /* So many bytes that a model can learn something from. */
    void text(const fs::path &name, size_t bytes) {
        std::string content;
        while (content.size() < bytes) content += "the quick brown fox jumps over the lazy dog, and again.\n";
        write(name, content.substr(0, bytes));
    }

    /* An llm.c shard; `count` is what its header says. */
    void shard(const fs::path &name, const std::vector<uint16_t> &tokens, int32_t count, int32_t magic = 20240520,
               int32_t version = 1) {
        std::vector<int32_t> header(256);
        header[0] = magic, header[1] = version, header[2] = count;
        std::string content(reinterpret_cast<const char *>(header.data()), 1024);
        content.append(reinterpret_cast<const char *>(tokens.data()), tokens.size() * sizeof tokens[0]);
        write(name, content);
    }

    [[noreturn]] void become(const Words &arguments) {
        std::vector<char *> words{const_cast<char *>(gptloom.c_str())};
        for (const std::string &argument : arguments) words.push_back(const_cast<char *>(argument.c_str()));
        words.push_back(nullptr);
        if (chdir((folder / gptloom_directory).c_str()) != 0) _exit(120);
        alarm(120); /* a program that hangs is a failure, not a hanging test */
        execv(gptloom.c_str(), words.data());
        _exit(121);
    }

    static bool is_running(pid_t child) {
        siginfo_t ended = {};
        return waitid(P_PID, (id_t)child, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid == 0;
    }

    /* Waits until a program waits to write to stdout; false where that cannot be seen. */
    static bool await_write(pid_t child) {
        const std::string path = "/proc/" + std::to_string(child) + "/syscall"; /* what its first thread is in */
        long call = 0;
        unsigned long descriptor = 0;
        while (is_running(child) && !slurp("/proc/self/syscall").empty()) {
            if (sscanf(slurp(path).c_str(), "%ld %lx", &call, &descriptor) == 2 && call == SYS_write && descriptor == 1)
                return true;
            usleep(1000);
        }
        return false;
    }

    static int wait_for(pid_t child) {
        int status = 0;
        EXPECT_EQ(waitpid(child, &status, 0), child);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }

    static void redirect(const fs::path &path, int descriptor) {
        const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (file < 0 || dup2(file, descriptor) < 0) _exit(122);
        close(file);
    }

    /* Its output is kept outside the folder, which tests list. */
    pid_t start(
        const Words &arguments, const std::function<void()> &before = [] {}, const char *out = nullptr) {
        const pid_t child = fork();
        if (child != 0) return child;
        redirect(out ? out : folder.string() + ".out", 1);
        redirect(folder.string() + ".err", 2);
        for (const int number : {SIGHUP, SIGINT, SIGTERM}) signal(number, SIG_DFL); /* nohup has the first ignored */
        before();
        become(arguments);
    }

    Outcome finish(pid_t child) {
        Outcome outcome;
        outcome.code = wait_for(child);
        outcome.out = slurp(folder.string() + ".out");
        outcome.err = slurp(folder.string() + ".err");
        fs::remove(folder.string() + ".out");
        fs::remove(folder.string() + ".err");
        return outcome;
    }

    Outcome run(
        const Words &arguments, const std::function<void()> &before = [] {}) {
        return finish(start(arguments, before));
    }

    /* Every path below the folder with its size and, for files, its time of change: directories change when something
     * is tried in them. */
    std::map<std::string, std::string> everything() const {
        std::map<std::string, std::string> list;
        for (const auto &entry : fs::recursive_directory_iterator(folder)) {
            const fs::file_status status = entry.symlink_status();
            const auto changed = fs::is_regular_file(status) ? entry.last_write_time().time_since_epoch().count() : 0;
            list[entry.path()] = (fs::is_regular_file(status) ? std::to_string(entry.file_size()) : "-") + "@" +
                                 std::to_string(changed);
        }
        return list;
    }

    static void expect_one_line(const Outcome &outcome, const Words &words) {
        EXPECT_EQ(outcome.code, 2) << outcome.err;
        EXPECT_EQ(lines_of(outcome.err).size(), 1u) << outcome.err;
        EXPECT_EQ(outcome.err.rfind("gptloom: ", 0), 0u) << outcome.err;
        EXPECT_EQ(outcome.err.empty() ? 0 : outcome.err.back(), '\n');
        for (const std::string &word : words)
            EXPECT_NE(outcome.err.find(word), std::string::npos) << "'" << outcome.err << "' lacks '" << word << "'";
    }

    /* The promise for every mistake; `shown`, a word of what is printed beside the line. */
    void expect_mistake(const Words &arguments, const Words &words, const std::string &shown = "") {
        const auto before = everything();
        const Outcome outcome = run(arguments);
        std::string told;
        for (const std::string &argument : arguments) told += argument + " ";
        SCOPED_TRACE(told);
        expect_one_line(outcome, words);
        EXPECT_EQ(outcome.out.empty(), shown.empty()) << outcome.out;
        EXPECT_NE(outcome.out.find(shown), std::string::npos) << outcome.out;
        EXPECT_EQ(everything(), before) << "something was written";
    }

    /* A training run so small that it takes no time; what follows changes it. */
    static Words training(const Words &more) {
        Words all = {"train", "--data",    "text.txt", "--out",          "run", "--n-layer",   "1", "--n-head",
                     "2",     "--n-embd",  "16",       "--block-size",   "16",  "--batch",     "2", "--steps",
                     "4",     "--threads", "1",        "--sample-every", "0",   "--val-every", "0"};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }

    /* Drops a flag and its value. */
    static Words without(Words arguments, const std::string &flag) {
        const auto at = std::find(arguments.begin(), arguments.end(), flag);
        arguments.erase(at, at + 2);
        return arguments;
    }

    /* The same run on other data. */
    static Words training_on(const Words &data, const Words &more = {}) {
        Words all = without(training(more), "--data");
        all.push_back("--data");
        all.insert(all.end(), data.begin(), data.end());
        return all;
    }

    void expect_training_mistake(const Words &more, const Words &words) {
        expect_mistake(training(more), words);
    }

    void expect_run(const Words &arguments) {
        const Outcome outcome = run(arguments);
        ASSERT_EQ(outcome.code, 0) << outcome.err;
        EXPECT_EQ(outcome.err, "");
    }

    /* Steps in the run's metrics. */
    size_t metrics() const {
        return lines_of(slurp(folder / "run/metrics.jsonl")).size();
    }

    std::string latest() const {
        return fs::read_symlink(folder / "run/checkpoints/latest").filename();
    }
};

const Words commands = {"train", "sample", "info", "plan", "graph", "plot", "parity", "bench", "devices"};

/* ---------------------------------------------------------------------------------------------------- help and names */

TEST_F(Program, HelpGoesToStdoutWithin100Columns) {
    std::vector<Words> calls = {{"--help"}, {"-h"}, {"help"}, {"help", "train"}};
    for (const std::string &command : commands) calls.push_back({command, "--help"});
    for (const Words &call : calls) {
        const Outcome outcome = run(call);
        EXPECT_EQ(outcome.code, 0) << call[0];
        EXPECT_EQ(outcome.err, "");
        EXPECT_NE(outcome.out.find("Usage: gptloom"), std::string::npos);
        for (const std::string &line : lines_of(outcome.out)) EXPECT_LE(line.size(), 100u) << line;
    }
    const std::string all = run({"--help"}).out;
    for (const std::string &command : commands) EXPECT_NE(all.find("  " + command), std::string::npos) << command;
}

TEST_F(Program, TrainHelpNamesEveryFlagWithItsDefault) {
    const std::string help = run({"train", "--help"}).out;
    for (const char *flag : {"--data",
                             "--val-data",
                             "--out",
                             "--config",
                             "--model",
                             "--n-layer",
                             "--n-head",
                             "--n-embd",
                             "--block-size",
                             "--vocab-size",
                             "--batch",
                             "--micro-batch",
                             "--seq-len",
                             "--steps",
                             "--epochs",
                             "--stop-after",
                             "--lr",
                             "--min-lr",
                             "--warmup",
                             "--schedule",
                             "--weight-decay",
                             "--beta1",
                             "--beta2",
                             "--eps",
                             "--clip",
                             "--skip-spikes",
                             "--val-fraction",
                             "--val-every",
                             "--val-tokens",
                             "--sample-every",
                             "--sample-tokens",
                             "--checkpoint-every",
                             "--keep",
                             "--seed",
                             "--device",
                             "--threads",
                             "--[no-]deterministic",
                             "--init",
                             "--resume",
                             "--memory",
                             "--quiet"})
        EXPECT_NE(help.find(flag), std::string::npos) << flag;
    EXPECT_NE(help.find("(default: 6e-4)"), std::string::npos);
}

/* What libgomp says of its settings, as it is loaded: the program gives it its own, unless the user has. */
TEST_F(Program, ItsThreadsSpinForAShortTimeOnly) {
    const auto waits = [&](const char *name, const char *value) {
        return run({"--version"},
                   [=] {
                       for (const char *each : {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}) unsetenv(each);
                       setenv("OMP_DISPLAY_ENV", "verbose", 1);
                       if (name) setenv(name, value, 1);
                   })
            .err;
    };
    if (waits(nullptr, "").find("GOMP_") == std::string::npos) GTEST_SKIP() << "OpenMP is not libgomp's";
    const std::string ours = "GOMP_SPINCOUNT = '3000'";
    EXPECT_NE(waits(nullptr, "").find(ours), std::string::npos);
    EXPECT_NE(waits("GOMP_SPINCOUNT", "77").find("GOMP_SPINCOUNT = '77'"), std::string::npos);
    EXPECT_EQ(waits("GOMP_SPINCOUNT", "77").find(ours), std::string::npos);
    EXPECT_EQ(waits("OMP_WAIT_POLICY", "active").find(ours), std::string::npos);
}

TEST_F(Program, VersionAndDevicesTellWhatThereIs) {
    const Outcome version = run({"--version"});
    EXPECT_EQ(version.code, 0);
    EXPECT_EQ(version.out.rfind("gptloom ", 0), 0u) << version.out;
    EXPECT_NE(version.out.find("threads"), std::string::npos);
    const Outcome devices = run({"devices"});
    EXPECT_EQ(devices.code, 0);
    for (const char *word : {"cpu", "GFLOP/s", "GiB", "definition", "oracle", "cuda"})
        EXPECT_NE(devices.out.find(word), std::string::npos) << devices.out;
}

/* A run in 16 bits says where that is slow; one in fp32 has nothing to say. */
TEST_F(Program, RunsInSixteenBitsSayWhereTheyAreSlow) {
    loom_device *device = nullptr;
    ASSERT_TRUE(loom_device_open(&device, "cpu", nullptr, nullptr));
    const unsigned widened = device->emulated_dtypes;
    loom_device_close(device);
    for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16, LOOM_F16}) {
        const std::string name = loom_dtype_name(dtype);
        Words arguments = without(training({"--dtype", name, "--device", "cpu"}), "--out");
        arguments.insert(arguments.end(), {"--out", name});
        const Outcome trained = run(arguments);
        EXPECT_EQ(trained.code, 0) << trained.err;
        EXPECT_EQ(trained.out.find("widen " + name + " to fp32") != std::string::npos, (widened >> dtype & 1) != 0)
            << trained.out;
    }
}

/* One line that says what is missing: the toolkit when it was built, the driver, or a GPU. */
TEST_F(Program, WithoutAGpuDeviceCudaSaysWhatIsMissing) {
    loom_device *device = nullptr;
    if (loom_device_open(&device, "cuda", nullptr, nullptr)) {
        loom_device_close(device);
        GTEST_SKIP() << "there is a GPU";
    }
    expect_training_mistake({"--device", "cuda"}, {"--device cuda: "});
}

TEST_F(Program, UnknownCommandsAndFlagsSuggestTheNearest) {
    expect_mistake({}, {"no command"});
    expect_mistake({"trian"}, {"'trian'", "'train'"});
    expect_mistake({"qqqqqqqq"}, {"'qqqqqqqq'", "--help"});
    expect_training_mistake({"--n-layers", "3"}, {"--n-layers: ", "'--n-layer'"});
    expect_training_mistake({"--n_layers", "3"}, {"--n-layers: ", "'--n-layer'"});
    expect_training_mistake({"--n-layers=3"}, {"--n-layers: ", "'--n-layer'"});
    expect_training_mistake({"--check", "3"}, {"--check: "}); /* no abbreviations */
    expect_training_mistake({"-lr", "3"}, {"-lr: ", "'--lr'"});
    expect_training_mistake({"--xyzzyxyzzy"}, {"--xyzzyxyzzy: ", "gptloom train --help"});
    for (const std::string &command : commands) expect_mistake({command, "--hepl"}, {"--hepl: ", "'--help'"});
}

TEST_F(Program, NamesOfOtherProgramsAreAnsweredWithOurs) {
    const struct {
        Words words;
        Words said;
    } rows[] = {{{"--batch_size", "4"}, {"--batch-size: ", "'--batch'"}},
                {{"--learning-rate", "1e-3"}, {"--learning-rate: ", "'--lr'"}},
                {{"--learning_rate=1e-3"}, {"--learning-rate: ", "'--lr'"}},
                {{"--max_iters", "5"}, {"'--steps'"}},
                {{"--gradient_accumulation_steps", "5"}, {"'--micro-batch'"}},
                {{"--per_device_train_batch_size", "5"}, {"'--micro-batch'"}},
                {{"--num_train_epochs", "5"}, {"'--epochs'"}},
                {{"--save_total_limit", "5"}, {"'--keep'"}},
                {{"--dropout", "0.1"}, {"--dropout: there is no such flag; gptloom trains without dropout"}},
                {{"--model", "gpt2-124m"}, {"--model: 'gpt2-124m' is called gpt2 here"}},
                {{"--model", "openai-community/gpt2-XL"}, {"is called gpt2-xl here"}}};
    for (const auto &row : rows) expect_training_mistake(row.words, row.said);
    expect_mistake({"sample", "--from", "run", "--max_new_tokens", "5"}, {"'--tokens'"});
    expect_mistake({"sample", "--model", "run"}, {"'--from'"});
    expect_mistake({"eval", "--from", "run"}, {"'eval': there is no such command; a run validates as it trains"});
    expect_mistake({"generate"}, {"'sample'"});
    expect_mistake({"train", "--config", "text.txt"}, {"text.txt:1: "});
    write("theirs.ini", "batch_size = 4\n");
    expect_mistake({"train", "--config", "theirs.ini"}, {"theirs.ini:1: batch-size: ", "here it is 'batch'"});
    expect_run(training({"--val_every", "0", "--sample_every=0"})); /* underscores are dashes */
}

/* The numbers of every other command; those of training are asked in test_options, by the same table. */
TEST_F(Program, TextTypedAtRandomIsANumberOrOneLine) {
    static const Words texts = {"-",  "1e999", "0x10",      "+1", "1.5.2", "1e",    "nan", "99999999999999999999",
                                "-0", "1;2",   "\x1b[31m7", "7 ", "",      "1_000", "--7", "1e-320",
                                "٣"};
    size_t at = 0, asked = 0;
    for (const char *command : {"sample", "plan", "graph", "plot", "bench", "parity"}) {
        const Outcome help = run({command, "--help"});
        for (const std::string &line : lines_of(help.out)) {
            std::stringstream words(line);
            std::string flag, value;
            words >> flag >> value;
            if (flag.size() == 3 && flag.back() == ',') flag = value, words >> value;
            const Words numbers = {"N", "X", "B", "T", "V", "S", "K", "P", "SIZE", "SECONDS", "0..3"};
            if (flag.rfind("--", 0) != 0 || std::find(numbers.begin(), numbers.end(), value) == numbers.end()) continue;
            for (int i = 0; i < 2; i++, asked++) {
                const Outcome outcome = run({command, flag + "=" + texts[at++ % texts.size()], "--help"});
                SCOPED_TRACE(std::string(command) + " " + flag + "=" + texts[(at - 1) % texts.size()]);
                if (outcome.code == 0)
                    EXPECT_EQ(outcome.out, help.out);
                else
                    expect_one_line(outcome, {flag + ": "});
            }
        }
    }
    EXPECT_GT(asked, 40u);
}

TEST_F(Program, FlagsNeedTheirValues) {
    expect_training_mistake({"--lr"}, {"--lr: needs a value"});
    expect_training_mistake({"--lr", "--quiet"}, {"--lr: needs a value", "'--quiet'"});
    expect_training_mistake({"--init="}, {"--init: is empty"});
    expect_training_mistake({"--help=yes"}, {"--help: takes no value"});
    expect_training_mistake({"--no-deterministic=yes"}, {"--no-deterministic: takes no value"});
    expect_training_mistake({"--deterministic=perhaps"}, {"--deterministic: 'perhaps'"});
    expect_training_mistake({"word"}, {"'word'"});
    expect_mistake({"plot"}, {"RUN"});
    expect_mistake({"info", "gpt2", "mini"}, {"'mini'"});
}

/* ---------------------------------------------------------------------------------------------------------- bad values */

TEST_F(Program, NegativeHugeNanAndNonNumericValues) {
    for (const char *flag : {"--lr", "--min-lr", "--weight-decay", "--beta1", "--beta2", "--eps", "--clip",
                             "--skip-spikes", "--val-fraction", "--epochs"}) {
        expect_training_mistake({flag, "-1"}, {std::string(flag) + ": -1 is below"});
        expect_training_mistake({flag, "1e30"}, {std::string(flag) + ": 1e30 is above"});
        expect_training_mistake({flag, "nan"}, {std::string(flag) + ": 'nan' is not a number"});
        expect_training_mistake({flag, "abc"}, {std::string(flag) + ": 'abc' is not a number"});
    }
    for (const char *flag :
         {"--n-layer", "--n-head", "--n-embd", "--block-size", "--vocab-size", "--batch", "--micro-batch", "--seq-len",
          "--steps", "--stop-after", "--warmup", "--val-every", "--val-tokens", "--sample-every", "--sample-tokens",
          "--checkpoint-every", "--keep", "--seed", "--threads"}) {
        expect_training_mistake({flag, "-1"}, {std::string(flag) + ": -1 is below"});
        expect_training_mistake({flag, "99999999999999999999"},
                                {std::string(flag) + ": 99999999999999999999 is above"});
        expect_training_mistake({flag, "1.5"}, {std::string(flag) + ": '1.5' is not a whole number"});
        expect_training_mistake({flag, "many"}, {std::string(flag) + ": 'many' is not a whole number"});
    }
    expect_training_mistake({"--memory", "lots"}, {"--memory: 'lots' is not a size"});
    expect_training_mistake({"--schedule", "cosin"}, {"--schedule: 'cosin'", "'cosine'"});
    expect_training_mistake({"--device", "cud"}, {"--device: 'cud'", "did you mean 'cuda'?"});
    expect_training_mistake({"--dtype", "fp8"}, {"--dtype: 'fp8'", "fp32, bf16, fp16"});
    expect_training_mistake({"--dtype", "fp16", "--master-weights", "off"}, {"--master-weights", "bf16"});
    expect_training_mistake({"--dtype", "fp16", "--grad-dtype", "bf16"}, {"--grad-dtype", "--dtype bf16", "fp16"});
    expect_training_mistake({"--optimizer-dtype", "fp16"}, {"--optimizer-dtype: 'fp16'", "fp32, bf16"});
    expect_training_mistake({"--cuda-grap", "off"}, {"--cuda-grap", "--cuda-graph"});
    expect_training_mistake({"--retune"}, {"--retune", "--resume"});
    expect_training_mistake({"--fresh-choices"}, {"--fresh-choices: ", "here it is '--retune'"});
    expect_training_mistake({"--choices", "a/choices.txt"}, {"--choices: ", "here it is '--tuning'"});
    expect_training_mistake({"--model", "gtp2"}, {"--model", "gpt2"});
}

TEST_F(Program, ShapesThatCannotBe) {
    expect_training_mistake({"--n-head", "3"}, {"--n-embd", "--n-head"});
    expect_training_mistake({"--seq-len", "17"}, {"--seq-len: 17", "--block-size, 16"});
    expect_training_mistake({"--batch", "6", "--micro-batch", "4"}, {"--micro-batch: 4", "--batch, 6"});
    expect_training_mistake({"--micro-batch", "3"}, {"--micro-batch: 3", "--batch, 2"});
    expect_training_mistake({"--vocab-size", "200"}, {"--vocab-size"});
    expect_mistake({"train", "--data", "text.txt", "--out", "run", "--n-layer", "2", "--n-head", "2"},
                   {"--n-embd: is missing"});
}

TEST_F(Program, FlagsThatDoNotGoTogether) {
    expect_training_mistake({"--epochs", "2"}, {"--epochs", "--steps"});
    expect_training_mistake({"--min-lr", "1"}, {"--min-lr: 1 is above --lr"});
    expect_mistake(without(training({}), "--out"), {"--out: is missing"});
    expect_mistake(without(training({}), "--data"), {"--data"});
    expect_mistake({"train", "--resume"}, {"--resume: needs --out"});
    expect_mistake({"train", "--resume", "--out", "run"}, {"--resume: there is no run in run"});
}

TEST_F(Program, TooLittleMemoryIsSaidBeforeAllocating) {
    const Words big = {"train", "--data", "text.txt", "--out", "run", "--threads", "1", "--block-size", "64"};
    Words small = big;
    small.insert(small.end(), {"--model", "gpt2", "--memory", "64MiB", "--batch", "1"});
    expect_mistake(small, {"MiB", "64", "--memory"}, "moments");
    small.push_back("--quiet");
    expect_mistake(small, {"MiB", "64", "--memory"});
    Words impossible = big;
    impossible.insert(impossible.end(), {"--model", "gpt3-175b", "--batch", "1"});
    expect_mistake(impossible, {"MiB"}, "moments");
}

/* ---------------------------------------------------------------------------------------------------------- bad files */

TEST_F(Program, DataThatIsMissingEmptyOrTooShort) {
    write("empty.txt", "");
    write("short.txt", "abc");
    fs::create_directory(folder / "nothing");
    expect_mistake(training_on({"none.txt"}), {"none.txt"});
    expect_mistake(training_on({"text.txt", "none.txt"}), {"none.txt"});
    expect_mistake(training_on({"none*.txt"}), {"none*.txt"});
    expect_mistake(training_on({"nothing"}), {"nothing"});
    expect_mistake(training_on({"empty.txt"}), {"empty.txt"});
    expect_mistake(training_on({"short.txt"}), {"short"});
    expect_training_mistake({"--val-data", "none.txt"}, {"none.txt"});
    expect_training_mistake({"--val-data", "short.txt"}, {"short"});
}

TEST_F(Program, DataThatCannotBeRead) {
    fs::create_symlink("circle.txt", folder / "circle.txt"); /* not even root opens it */
    expect_mistake(training_on({"circle.txt"}), {"circle.txt"});
    if (geteuid() == 0) return; /* root reads what is not readable */
    text("closed.txt", 4000);
    fs::permissions(folder / "closed.txt", fs::perms::none);
    expect_mistake(training_on({"closed.txt"}), {"closed.txt"});
}

TEST_F(Program, DamagedAndForeignShards) {
    const std::vector<uint16_t> tokens(1000, 7);
    shard("good.bin", tokens, 1000);
    shard("magic.bin", tokens, 1000, 12345678);
    shard("version.bin", tokens, 1000, 20240520, 3);
    shard("cut.bin", tokens, 1500);
    shard("negative.bin", tokens, -4);
    shard("bare.bin", {}, 0);
    write("empty.bin", "");
    write("stub.bin", std::string(100, 'x'));
    for (const char *name :
         {"magic.bin", "version.bin", "cut.bin", "negative.bin", "bare.bin", "empty.bin", "stub.bin"})
        expect_mistake(training_on({name}), {name});
    expect_mistake(training_on({"good.bin", "text.txt"}), {"text"});
    expect_training_mistake({"--val-data", "good.bin"}, {"good.bin"});
}

TEST_F(Program, TokenIdsBeyondTheVocabulary) {
    std::vector<uint16_t> tokens(1000, 7);
    tokens[700] = 500;
    shard("ids.bin", tokens, 1000);
    expect_mistake(training_on({"ids.bin"}, {"--vocab-size", "500"}), {"ids.bin", "500"});
    expect_run(training_on({"ids.bin"}, {"--vocab-size", "501"}));
}

TEST_F(Program, DamagedConfigFiles) {
    write("words.ini", "steps = 3\nthis is no pair\n");
    write("key.ini", "n-layr = 3\n");
    write("value.ini", "\nlr = fast\n");
    write("binary.ini", std::string("\x7f"
                                    "ELF\0\0\0\0",
                                    8));
    expect_training_mistake({"--config", "none.ini"}, {"none.ini"});
    expect_training_mistake({"--config", "words.ini"}, {"words.ini:2: "});
    expect_training_mistake({"--config", "key.ini"}, {"key.ini:1: n-layr", "'n-layer'"});
    expect_training_mistake({"--config", "value.ini"}, {"value.ini:2: lr: 'fast'"});
    expect_training_mistake({"--config", "binary.ini"}, {"binary.ini"});
    expect_training_mistake({"--config", "nowhere/x.ini"}, {"nowhere/x.ini"});
}

TEST_F(Program, AnOutputDirectoryThatCannotBeUsed) {
    fs::create_directory(folder / "run");
    write("run/config.ini", "steps = 3\n");
    expect_training_mistake({}, {"--out", "run"});
    expect_training_mistake({"--out", "text.txt"}, {"text.txt"});
    expect_training_mistake({"--out", "text.txt/run"}, {"text.txt"});
}

TEST_F(Program, NamesThatAConfigFileCannotHold) {
    expect_training_mistake({"--out", "two\nlines"}, {"--out: "});
    expect_training_mistake({"--out", "a ;b"}, {"--out: "});
}

TEST_F(Program, CheckpointsThatDoNotFit) {
    expect_run(training({"--out", "first"}));
    expect_training_mistake({"--init", "first", "--n-embd", "32"}, {"--n-embd: 32", "16"});
    expect_training_mistake({"--init", "nowhere"}, {"nowhere"});
    expect_training_mistake({"--init", "first", "--resume", "--out", "first"}, {"--init", "--resume"});
    expect_mistake({"train", "--resume", "--out", "first", "--steps", "8", "--n-layer", "2"}, {"--n-layer: 2"});
    expect_mistake({"train", "--resume", "--out", "first", "--steps", "8", "--seed", "3"}, {"--seed"});
    text("other.txt", 3000);
    expect_mistake({"train", "--resume", "--out", "first", "--steps", "8", "--data", "other.txt"}, {"--data"});
    expect_run(training({"--init", "first"}));
}

TEST_F(Program, NothingIsSavedWhereThatIsAskedFor) {
    const Outcome outcome = run(training({"--no-save", "--checkpoint-every", "2"}));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_FALSE(fs::exists(folder / "run/checkpoints"));
    const std::string metrics = slurp(folder / "run/metrics.jsonl");
    EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 4);
    EXPECT_EQ(outcome.out.find("sample --from"), std::string::npos) << outcome.out;
    EXPECT_EQ(slurp(folder / "run/config.ini").find("save"), std::string::npos) << "it is of that session";
}

TEST_F(Program, ADamagedCheckpointIsRefused) {
    expect_run(training({}));
    const fs::path weights = fs::canonical(folder / "run/checkpoints/latest") / "model.safetensors";
    fs::resize_file(weights, fs::file_size(weights) / 2);
    expect_mistake({"sample", "--from", "run"}, {"model.safetensors"});
    expect_mistake({"train", "--resume", "--out", "run", "--steps", "8"}, {"model.safetensors"});
}

TEST_F(Program, AFullDiskLeavesTheCheckpointBeforeIt) {
    expect_run(training({"--stop-after", "2"}));
    ASSERT_EQ(latest(), "step-00000002");
    const std::string weights = slurp(folder / "run/checkpoints/latest/model.safetensors");
    /* Files may not grow beyond what all but the weights need: write() fails, as it does on a full disk. */
    const Outcome outcome = run({"train", "--resume", "--out", "run"}, [] {
        const struct rlimit limit = {8192, 8192};
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
    });
    expect_one_line(outcome, {"safetensors"});
    EXPECT_EQ(latest(), "step-00000002");
    EXPECT_EQ(slurp(folder / "run/checkpoints/latest/model.safetensors"), weights);
    size_t entries = 0;
    for (const auto &entry : fs::directory_iterator(folder / "run/checkpoints")) entries += !entry.path().empty();
    EXPECT_EQ(entries, 2u) << "a half-written checkpoint was left";
    expect_run({"train", "--resume", "--out", "run"});
    EXPECT_EQ(latest(), "step-00000004");
}

TEST_F(Program, AFullStdoutIsAnError) {
    for (const Words &call : {Words{"--help"}, Words{"train", "--help"}, Words{"info"}}) {
        const Outcome outcome = finish(start(
            call, [] {}, "/dev/full"));
        EXPECT_EQ(outcome.code, 2);
        EXPECT_EQ(lines_of(outcome.err).size(), 1u) << outcome.err;
        EXPECT_NE(outcome.err.find("standard output"), std::string::npos) << outcome.err;
    }
}

/* A pipe whose reader has left ends other commands as it ends cat: by SIGPIPE, silently. Where the caller has that
 * signal ignored, which programs inherit, there is a line. */
TEST_F(Program, APipeThatNobodyReadsEndsOtherCommands) {
    for (const bool ignored : {false, true})
        for (const Words &call : {Words{"--help"}, Words{"train", "--help"}, Words{"info", "gpt2"}}) {
            const Outcome outcome = run(call, [ignored] {
                int ends[2];
                signal(SIGPIPE, ignored ? SIG_IGN : SIG_DFL);
                if (pipe(ends) != 0 || close(ends[0]) != 0 || dup2(ends[1], 1) < 0) _exit(122);
            });
            if (ignored) {
                expect_one_line(outcome, {"standard output: cannot be written: Broken pipe"});
            } else {
                EXPECT_EQ(outcome.code, 128 + SIGPIPE);
                EXPECT_EQ(outcome.err, "");
            }
        }
}

/* The product of a training is the run: it goes on without a stdout, and says so in its last line. */
TEST_F(Program, AStdoutThatBreaksEndsNoTraining) {
    Outcome outcome = finish(start(
        training({}), [] {}, "/dev/full"));
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    ASSERT_EQ(lines_of(outcome.err).size(), 1u) << outcome.err;
    EXPECT_NE(outcome.err.find("standard output: could not be written after step 0 (No space left on device)"),
              std::string::npos)
        << outcome.err;
    EXPECT_EQ(latest(), "step-00000004");
    fs::remove_all(folder / "run");
    outcome = run(training({}), [] {
        int ends[2];
        if (pipe(ends) != 0 || close(ends[0]) != 0 || dup2(ends[1], 1) < 0 || dup2(1, 2) < 0) _exit(122);
    });
    EXPECT_EQ(outcome.code, 0) << "neither stdout nor stderr can be written";
    EXPECT_EQ(latest(), "step-00000004");
}

/* Ctrl-C of `gptloom train | tee log` ends tee first. */
TEST_F(Program, CtrlCOfAPipelineSaves) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = start(training({"--steps", "1000000", "--checkpoint-every", "0"}), [&] {
        close(ends[0]);
        dup2(ends[1], 1);
        close(ends[1]);
    });
    close(ends[1]);
    while (metrics() == 0 && is_running(child)) usleep(1000);
    close(ends[0]);
    kill(child, SIGINT);
    const Outcome outcome = finish(child);
    EXPECT_EQ(outcome.code, 130) << outcome.err;
    ASSERT_EQ(lines_of(outcome.err).size(), 2u) << outcome.err;
    EXPECT_NE(outcome.err.find("gptloom: interrupted: "), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("standard output: could not be written after step "), std::string::npos);
    EXPECT_EQ(std::stoul(latest().substr(5)), metrics());
}

/* A pager that shows the first page reads no further: a training that waits for it ends when it is asked to. */
TEST_F(Program, CtrlCInFrontOfAPagerEnds) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_NONBLOCK), 0);
    const std::string page(1 << 16, '.');
    while (::write(ends[1], page.data(), page.size()) > 0) {
    }
    fcntl(ends[1], F_SETFL, 0);
    const pid_t child = start(training({}), [&] { dup2(ends[1], 1); });
    const bool waited = await_write(child);
    kill(child, SIGINT);
    const Outcome outcome = finish(child);
    close(ends[0]);
    close(ends[1]);
    if (!waited) GTEST_SKIP() << "whether a process waits cannot be seen here";
    EXPECT_EQ(outcome.code, 130) << outcome.err;
    ASSERT_EQ(lines_of(outcome.err).size(), 2u) << outcome.err;
    EXPECT_NE(outcome.err.find("could not be written after step 0 (nobody read it)"), std::string::npos) << outcome.err;
}

/* Nor is it in the way that stderr is the same pipe, as in `gptloom train 2>&1 | less`: what was done is saved. */
TEST_F(Program, CtrlCInFrontOfAPagerOfBothStreamsSaves) {
    for (const int number : {SIGINT, SIGTERM}) {
        int ends[2];
        fs::remove_all(folder / "run");
        ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
        ASSERT_EQ(fcntl(ends[1], F_SETPIPE_SZ, 4096), 4096); /* the first lines fit, not those of all steps */
        const pid_t child = start(training({"--steps", "100"}), [&] { dup2(ends[1], 1), dup2(1, 2); });
        const bool waited = await_write(child);
        kill(child, number);
        EXPECT_EQ(finish(child).code, 128 + number);
        close(ends[0]);
        close(ends[1]);
        if (!waited) GTEST_SKIP() << "whether a process waits cannot be seen here";
        ASSERT_GT(metrics(), 0u);
        EXPECT_EQ(std::stoul(latest().substr(5)), metrics());
    }
}

/* A file that is opened where 0, 1 or 2 is closed gets that number, and what is printed: cron jobs and daemons close
 * them. */
TEST_F(Program, WhereDescriptorsAreClosedFilesAreAsEver) {
    const auto lines = [this] {
        std::string all;
        for (const std::string &line : lines_of(slurp(folder / "run/metrics.jsonl")))
            all += line.substr(0, line.find(", \"ms\"")) + "\n";
        return all + slurp(folder / "run/samples.txt");
    };
    const Words more = {"--val-every", "2", "--sample-every", "2", "--sample-tokens", "8"};
    expect_run(training(more));
    const std::string as_ever = lines();
    for (const std::vector<int> &closed : {std::vector<int>{1}, {0, 1}, {1, 2}, {0, 1, 2}}) {
        fs::remove_all(folder / "run");
        const Outcome outcome = run(training(more), [&] {
            for (const int descriptor : closed) close(descriptor);
        });
        EXPECT_EQ(outcome.code, 0);
        EXPECT_EQ(lines(), as_ever);
        EXPECT_EQ(outcome.err, "");
    }
    const Outcome outcome = run({"plan", "nano", "--no-measure", "--json", "plan.json"}, [] { close(1); });
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(slurp(folder / "plan.json")[0], '{');
}

TEST_F(Program, SampleAndInfoMistakes) {
    expect_mistake({"sample"}, {"--from: is missing"});
    expect_mistake({"sample", "--from", "nowhere"}, {"nowhere"});
    expect_mistake({"sample", "--from", folder}, {folder});
    expect_mistake({"sample", "--from", "run", "--temperature", "-1"}, {"--temperature: -1 is below 0"});
    expect_mistake({"sample", "--from", "run", "--top-p", "2"}, {"--top-p: 2 is above"});
    expect_mistake({"info", "gpt22"}, {"'gpt22'", "'gpt2'"});
    expect_mistake({"info", folder}, {folder});
    expect_mistake({"info", "gpt2", "--seq-len", "2048"}, {"--seq-len: 2048"});
    expect_mistake({"info", "gpt2", "--batch", "4", "--micro-batch", "3"}, {"--micro-batch: 3"});
    expect_mistake({"info", "gpt2", "--dtype", "fp32", "--master-weights", "off"}, {"--master-weights", "fp32"});
    expect_mistake({"info", "gpt2", "--grad-dtype", "bf16"}, {"--grad-dtype", "--dtype bf16", "fp32"});
    expect_mistake({"sample", "--from", "run", "--dtype", "half"}, {"--dtype: 'half'"});
}

TEST_F(Program, PlanMistakes) {
    expect_mistake({"plan", "gpt22"}, {"'gpt22'", "'gpt2'"});
    expect_mistake({"plan", "gpt2", "mini"}, {"'mini'"});
    expect_mistake({"plan", "gpt2", "--model", "mini"}, {"--model", "'gpt2'"});
    expect_mistake({"plan", folder}, {folder});
    expect_mistake({"plan", "--on", "h10"}, {"--on: 'h10'", "h100"});
    expect_mistake({"plan", "--on", "xyzzy"}, {"--on: 'xyzzy'", "rtx-4090", "cpu"});
    expect_mistake({"plan", "--ranks", "3"}, {"--ranks: 3", "--batch, 8"});
    expect_mistake({"plan", "--ranks", "0"}, {"--ranks: 0"});
    expect_mistake({"plan", "--zero", "4"}, {"--zero: 4"});
    expect_mistake({"plan", "--micro-batch", "3"}, {"--micro-batch: 3"});
    expect_mistake({"plan", "--ranks", "4", "--micro-batch", "8", "--no-measure"}, {"--micro-batch: 8", "share", "2"});
    expect_mistake({"plan", "gpt2", "--seq-len", "2048"}, {"--seq-len: 2048"});
    expect_mistake({"plan", "--recompute", "blocks"}, {"--recompute: 'blocks'", "block"});
    expect_mistake({"plan", "--dtype", "fp32", "--master-weights", "off"}, {"--master-weights", "fp32"});
    expect_mistake({"plan", "--tf32", "--on", "cpu"}, {"--tf32"});
    expect_mistake({"plan", "--memory", "lots"}, {"--memory: 'lots'"});
    expect_mistake({"plan", "--no-measure", "--json", "nowhere/plan.json"}, {"nowhere/plan.json"});
}

/* --------------------------------------------------------------------------------------------------------- what it does */

TEST_F(Program, ARunLeavesItsFiles) {
    const Outcome outcome = run(training({"--val-every", "2", "--sample-every", "4", "--sample-tokens", "9"}));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    EXPECT_EQ(outcome.out.find('\r'), std::string::npos); /* plain lines */
    EXPECT_EQ(outcome.out.find('\x1b'), std::string::npos);
    for (const char *word : {"step 1/4  loss ", "step 4/4  loss ", "validation loss ", "sample after step 4",
                             "parameters", "gptloom", "sample --from run", "plot run"})
        EXPECT_NE(outcome.out.find(word), std::string::npos) << outcome.out << "\nlacks " << word;
    const auto metrics = lines_of(slurp(folder / "run/metrics.jsonl"));
    ASSERT_EQ(metrics.size(), 4u);
    for (const char *key : {"\"step\"", "\"tokens\"", "\"loss\"", "\"lr\"", "\"grad_norm\"", "\"ms\"",
                            "\"tokens_per_s\"", "\"val_loss\""})
        EXPECT_NE(metrics[1].find(key), std::string::npos) << metrics[1];
    EXPECT_EQ(metrics[0].find("val_loss"), std::string::npos);
    EXPECT_EQ(latest(), "step-00000004");
    EXPECT_NE(slurp(folder / "run/config.ini").find("n-embd = 16"), std::string::npos);
    EXPECT_NE(slurp(folder / "run/samples.txt").find("step 4"), std::string::npos);
}

/* What a shell makes of a pattern. */
TEST_F(Program, AHundredShardsAreNamedOneByOne) {
    fs::create_directory(folder / "m");
    std::string shard(1024, '\0');
    const uint32_t header[] = {20240520, 1, 40};
    memcpy(shard.data(), header, sizeof header);
    for (int i = 0; i < 40; i++) shard += {(char)i, '\0'};
    Words shards;
    for (int i = 0; i < 103; i++) {
        shards.push_back("m/" + std::to_string(i) + ".bin");
        write(shards.back(), shard);
    }
    const Words more = {"--vocab-size", "64", "--stop-after", "2"};
    const Outcome outcome = run(training_on(shards, more));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("tokens: m/0.bin and 102 others"), std::string::npos) << outcome.out;
    expect_run({"train", "--resume", "--out", "run", "--quiet"});
    EXPECT_EQ(latest(), "step-00000004");
}

TEST_F(Program, DataThatAreNoTextAreRefused) {
    write("text.gz", std::string("\x1f\x8b\x08\x00 and so on", 14));
    write("page", "<!doctype html><p>" + std::string(1000, 'x'));
    expect_mistake(training_on({"text.gz"}), {"text.gz: is compressed by gzip: gunzip it first", "--any-bytes"});
    const Outcome outcome = run(training_on({"page"}));
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("  note        page is HTML: its tags are trained on"), std::string::npos)
        << outcome.out;
    expect_run(
        training_on({"text.gz"}, {"--any-bytes", "--val-fraction", "0", "--out", "any", "--quiet", "--seq-len", "4"}));
}

TEST_F(Program, QuietSaysNothing) {
    const Outcome outcome = run(training({"--quiet"}));
    EXPECT_EQ(outcome.code, 0);
    EXPECT_EQ(outcome.out + outcome.err, "");
    EXPECT_TRUE(fs::exists(folder / "run/metrics.jsonl"));
}

TEST_F(Program, LongRunsPrintFewLines) {
    const Outcome outcome = run(training({"--steps", "150", "--n-embd", "4"}));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto lines = lines_of(outcome.out);
    EXPECT_GT(lines.size(), 60u);
    EXPECT_LT(lines.size(), 120u);
    EXPECT_NE(outcome.out.find("step 150/150"), std::string::npos);
}

/* Where stdout is no terminal, a validation that is long says so, and seldom how far it is. */
TEST(Progress, OfALongValidationIsToldSeldom) {
    EXPECT_FALSE(loom_progress_is_due(1000, 0, -1)) << "nothing is known";
    EXPECT_FALSE(loom_progress_is_due(1, 0.001, -1)) << "the first batches tell little";
    EXPECT_FALSE(loom_progress_is_due(5, 0.25, -1)) << "it takes 20 s";
    EXPECT_TRUE(loom_progress_is_due(5, 0.1, -1));
    EXPECT_FALSE(loom_progress_is_due(170, 0.9, 5)) << "within minutes of the last";
    EXPECT_TRUE(loom_progress_is_due(190, 0.9, 5));
    EXPECT_FALSE(loom_progress_is_due(3600, 0.1, 400)) << "of ten hours not a tenth since the last";
    EXPECT_TRUE(loom_progress_is_due(4000, 0.11, 5));
    for (const double whole : {20., 60., 36000.}) {
        int told = 0;
        double last = -1;
        for (double part = 0; part < 1; part += 1e-4)
            if (loom_progress_is_due(part * whole, part, last)) told++, last = part * whole;
        EXPECT_EQ(told, whole < 30 ? 0 : whole < 180 ? 1 : 10) << whole;
    }
}

TEST(Progress, OfALongValidationTellsTokensAndTime) {
    FILE *out = tmpfile();
    loom_progress progress;
    char line[200] = "";
    loom_progress_begin(&progress, out, 0, 9, 9);
    progress.validation_tokens = 12345678;
    loom_progress_validating(&progress, 7, 0);
    progress.validation_began -= 3600;
    loom_progress_validating(&progress, 7, 0.5);
    loom_progress_validating(&progress, 7, 0.51);
    rewind(out);
    EXPECT_NE(fgets(line, sizeof line, out), nullptr);
    EXPECT_STREQ(line, "step 7: validates on 12.3M tokens: 50% done, about 1:00:00 left\n");
    EXPECT_EQ(fgets(line, sizeof line, out), nullptr);
    fclose(out);
}

TEST_F(Program, FlagsWinOverTheConfigFile) {
    write("run.ini", "data = none.txt\nsteps = 50\nlr = 0.5\nseed = 3\nepochs-are = off\n");
    expect_training_mistake({"--config", "run.ini"}, {"run.ini:5: "});
    write("run.ini", "data = none.txt\nepochs = 50\nlr = 0.5\nseed = 3\n");
    expect_run(training({"--config", "run.ini", "--lr=0.25"}));
    const std::string config = slurp(folder / "run/config.ini");
    for (const char *line : {"data = text.txt\n", "steps = 4\n", "lr = 0.25\n", "seed = 3\n"})
        EXPECT_NE(config.find(line), std::string::npos) << config << "\nlacks " << line;
    EXPECT_EQ(config.find("none.txt"), std::string::npos);
    EXPECT_EQ(config.find("epochs"), std::string::npos);
}

TEST_F(Program, ARunsConfigFileMakesTheSameRunAgain) {
    expect_run(training({"--lr", "0.003", "--seed", "5"}));
    expect_run({"train", "--config", "run/config.ini", "--out", "again"});
    const auto losses = [](const std::string &metrics) { /* all but the times */
                                                         std::string kept;
                                                         for (const std::string &line : lines_of(metrics))
                                                             kept += line.substr(0, line.find(", \"ms\"")) + "\n";
                                                         return kept;
    };
    EXPECT_EQ(losses(slurp(folder / "run/metrics.jsonl")), losses(slurp(folder / "again/metrics.jsonl")));
}

TEST_F(Program, DataTakesManyValues) {
    text("more.txt", 2000);
    fs::create_directory(folder / "inner");
    text("inner/third.txt", 1000);
    expect_run(training({"--data", "text.txt", "more.txt", "--data", "inner", "--keep", "1"}));
    const std::string config = slurp(folder / "run/config.ini");
    EXPECT_NE(config.find("data = text.txt\ndata = text.txt\ndata = more.txt\ndata = inner\n"), std::string::npos)
        << config;
}

TEST_F(Program, StopAndResumeGiveTheSameBits) {
    expect_run(training({"--out", "whole"}));
    expect_run(training({"--stop-after", "1"}));
    EXPECT_EQ(latest(), "step-00000001");
    expect_run({"train", "--resume", "--out", "run"}); /* config.ini knows the rest */
    EXPECT_EQ(latest(), "step-00000004");
    for (const char *file : {"model.safetensors", "optimizer.safetensors"})
        EXPECT_TRUE(slurp(folder / "whole/checkpoints/latest" / file) ==
                    slurp(folder / "run/checkpoints/latest" / file))
            << file;
    EXPECT_EQ(lines_of(slurp(folder / "run/metrics.jsonl")).size(), 4u);
}

TEST_F(Program, ARunGoesOnFromAnotherDirectoryAndItsDataMayMove) {
    expect_run(training({"--stop-after", "1"}));
    fs::create_directory(folder / "inner");
    const auto in = [&](const Words &more) {
        Words words = {"train", "--resume", "--out", "../run", "--stop-after", "1"};
        words.insert(words.end(), more.begin(), more.end());
        return run(words, [&] { gptloom_directory = "inner"; });
    };
    Outcome outcome = in({});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find((folder / "text.txt").string()), std::string::npos) << outcome.out;
    fs::rename(folder / "text.txt", folder / "moved.txt");
    expect_one_line(in({}), {"--data: " + (folder / "text.txt").string(), "is not there"});
    outcome = in({"--data", "../moved.txt"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(latest(), "step-00000003");
}

TEST_F(Program, LongPathsAreKept) {
    const fs::path deep = folder / std::string(100, 'a') / std::string(100, 'b');
    fs::create_directories(deep);
    fs::rename(folder / "text.txt", deep / "text.txt");
    expect_run(training_on({deep / "text.txt"}, {"--stop-after", "1", "--out", deep / "run"}));
    expect_run({"train", "--resume", "--out", deep / "run"});
    EXPECT_EQ(fs::read_symlink(deep / "run/checkpoints/latest"), "step-00000004");
}

TEST_F(Program, ARunThatIsDoneIsNoMistakeToResume) {
    expect_run(training({}));
    const auto before = everything();
    for (const Words &more : {Words{}, Words{"--steps", "4"}, Words{"--quiet"}}) {
        Words words = {"train", "--resume", "--out", "run"};
        words.insert(words.end(), more.begin(), more.end());
        const Outcome outcome = run(words);
        EXPECT_EQ(outcome.code, 0) << outcome.err;
        EXPECT_EQ(outcome.err, "");
        EXPECT_EQ(outcome.out,
                  more == Words{"--quiet"} ? "" : "the run has done all of its 4 steps; a larger --steps goes on\n");
    }
    EXPECT_EQ(everything(), before);
    expect_mistake({"train", "--resume", "--out", "run", "--steps", "3"}, {"--steps: ", "4", "3"});
}

/* Whether by steps or by epochs. */
TEST_F(Program, ARunThatIsDoneNeedsNoDataToSaySo) {
    expect_run(training({}));
    expect_run(without(training({"--out", "epochs", "--epochs", "0.05"}), "--steps"));
    fs::remove(folder / "text.txt");
    for (const char *out : {"run", "epochs"}) {
        const Outcome outcome = run({"train", "--resume", "--out", out});
        EXPECT_EQ(outcome.code, 0) << outcome.err;
        EXPECT_NE(outcome.out.find("the run has done all of its "), std::string::npos) << outcome.out;
    }
    expect_mistake({"train", "--resume", "--out", "run", "--steps", "8"}, {"--data: ", "text.txt", "is not there"});
    expect_mistake({"train", "--resume", "--out", "run", "--seed", "8"}, {"--seed: "});
}

TEST_F(Program, EpochsBecomeSteps) {
    text("text.txt", 3199); /* and end-of-text; without the tenth that is held out, 180 windows of 16 */
    expect_run(without(training({"--epochs", "0.1", "--stop-after", "1"}), "--steps"));
    EXPECT_NE(slurp(folder / "run/config.ini").find("steps = 9\n"), std::string::npos);
    expect_run({"train", "--resume", "--out", "run"});
    EXPECT_EQ(latest(), "step-00000009");
}

/* Whatever the micro-batch, the memory or the threads: what --val-tokens counts is tokens. */
TEST_F(Program, ValidationIsTheSameWhateverTheMicroBatch) {
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP() << "not optimised, one row's loop and that of several are contracted differently";
#endif
    std::vector<std::string> losses;
    for (const char *micro : {"1", "2", "8"}) {
        fs::remove_all(folder / "run");
        const Outcome outcome = run(training({"--batch", "8", "--micro-batch", micro, "--val-every", "1",
                                              "--val-tokens", "79", "--steps", "1", "--lr", "0"}));
        ASSERT_EQ(outcome.code, 0) << outcome.err;
        EXPECT_NE(outcome.out.find("; 80 tokens every 1 step\n"), std::string::npos) << outcome.out;
        EXPECT_NE(outcome.out.find(" on 80 tokens in "), std::string::npos) << outcome.out;
        const std::string metrics = slurp(folder / "run/metrics.jsonl");
        losses.push_back(metrics.substr(metrics.find("\"val_loss\"")));
    }
    EXPECT_EQ(losses, std::vector<std::string>(3, losses[0]));
    expect_training_mistake({"--val-batches", "2"}, {"--val-batches: ", "--val-tokens"});
}

/* Runs of before have --val-batches in their config.ini: micro-batches; 0 were all. */
TEST_F(Program, OldConfigFilesBoundValidationByMicroBatches) {
    for (const auto &[old, tokens] : std::map<std::string, std::string>{
             {"val-batches = 0\n", "0"},
             {"val-batches = 3\nmicro-batch = 2\nseq-len = 16\n", "96"},
             {"val-batches = 3\nmicro-batch = 2\nval-tokens = 7\nseq-len = 16\n", "7"}}) {
        fs::remove_all(folder / "run");
        write("run.ini", old);
        expect_run(training({"--config", "run.ini", "--steps", "1"}));
        EXPECT_NE(slurp(folder / "run/config.ini").find("val-tokens = " + tokens + "\n"), std::string::npos) << old;
    }
    fs::remove_all(folder / "run");
    write("run.ini", "val-batches = 3\n");
    expect_training_mistake({"--config", "run.ini"}, {"run.ini: val-batches", "val-tokens"});
    write("words.ini", "val-batches = many\n");
    expect_training_mistake({"--config", "words.ini"}, {"words.ini:1: val-batches: 'many' is not a whole number"});
}

TEST_F(Program, OneIsSingularAndMoreThreadsThanProcessorsAreTold) {
    const std::string threads = std::to_string(sysconf(_SC_NPROCESSORS_ONLN) + 1);
    Outcome outcome = run(training({"--n-head", "1", "--steps", "1", "--threads", threads}));
    EXPECT_NE(outcome.out.find(" 1 layer, 1 head, 16 channels, "), std::string::npos) << outcome.out;
    EXPECT_NE(outcome.out.find(threads + " threads on "), std::string::npos) << outcome.out;
    EXPECT_NE(outcome.out.find(" (slow: fewer are faster)"), std::string::npos) << outcome.out;
    EXPECT_NE(outcome.out.find(": 1 step in "), std::string::npos) << outcome.out;
    outcome = run({"info", "run"});
    EXPECT_NE(outcome.out.find(" 1 layer, 1 head, 16 channels, "), std::string::npos) << outcome.out;
}

/* Saved, then ended by the signal itself, as which shells end their loops; Slurm's warning asks for a pause only. */
TEST_F(Program, AnInterruptSavesAndEndsWithItsStatus) {
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) {
        SCOPED_TRACE(strsignal(number));
        fs::remove_all(folder / "run");
        const pid_t child = start(training({"--steps", "1000000", "--checkpoint-every", "0"}));
        while (metrics() == 0 && is_running(child)) usleep(1000);
        kill(child, number);
        int status = 0;
        EXPECT_EQ(waitpid(child, &status, 0), child);
        const bool is_warning = number == SIGUSR1;
        EXPECT_TRUE(is_warning ? WIFEXITED(status) && WEXITSTATUS(status) == 0
                               : WIFSIGNALED(status) && WTERMSIG(status) == number)
            << status;
        const std::string out = slurp(folder.string() + ".out"), err = slurp(folder.string() + ".err");
        EXPECT_EQ(err.rfind("gptloom: interrupted: ", 0), 0u) << err;
        EXPECT_EQ(lines_of(err).size(), 1u) << err;
        EXPECT_NE(out.find("stopped after step"), std::string::npos) << out;
        EXPECT_NE(out.find("train --resume --out run"), std::string::npos);
        EXPECT_EQ(out.find("to be continued") != std::string::npos, is_warning) << out;
        ASSERT_TRUE(fs::exists(folder / "run/checkpoints/latest"));
        const size_t steps = metrics();
        EXPECT_EQ(std::stoul(latest().substr(5)), steps);
        expect_run({"train", "--resume", "--out", "run", "--stop-after", "1"});
        EXPECT_EQ(metrics(), steps + 1);
    }
    fs::remove(folder.string() + ".out");
    fs::remove(folder.string() + ".err");
}

/* Of a step of so many micro-batches that it would take longer than this test may: it is given up between two of them,
 * and nothing of it is left. */
TEST_F(Program, AnInterruptDoesNotWaitForTheStep) {
    const pid_t child = start(training({"--batch", "65536", "--micro-batch", "1", "--steps", "3"}));
    while (slurp(folder.string() + ".out").find("memory") == std::string::npos && is_running(child)) usleep(1000);
    kill(child, SIGINT);
    const Outcome outcome = finish(child);
    EXPECT_EQ(outcome.code, 130) << outcome.err;
    EXPECT_EQ(outcome.err.rfind("gptloom: interrupted: ", 0), 0u) << outcome.err;
    EXPECT_EQ(metrics(), 0u);
    EXPECT_FALSE(fs::exists(folder / "run/checkpoints/latest")) << "the checkpoint of no step";
}

/* What the caller ignores, as nohup and `make test &` do, stays ignored. */
TEST_F(Program, WhatIsIgnoredStaysIgnored) {
    const pid_t child = start(training({"--steps", "1000000", "--checkpoint-every", "0"}), [] {
        signal(SIGINT, SIG_IGN);
        signal(SIGHUP, SIG_IGN);
    });
    while (metrics() == 0 && is_running(child)) usleep(1000);
    kill(child, SIGINT);
    kill(child, SIGHUP);
    for (const size_t before = metrics(); metrics() < before + 3 && is_running(child);) usleep(1000);
    kill(child, SIGTERM);
    const Outcome outcome = finish(child);
    EXPECT_EQ(outcome.code, 143) << outcome.err;
    EXPECT_EQ(lines_of(outcome.err).size(), 1u) << outcome.err;
}

/* In a child of this test: the signals in their order, after which it ends with 0 if it still lives. */
Outcome after_signals(const std::vector<int> &numbers, bool begun, int64_t done, int64_t saved) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        dup2(ends[1], 2);
        for (const int number : {SIGHUP, SIGINT, SIGTERM, SIGUSR1}) signal(number, SIG_DFL);
        loom_interrupts_catch();
        if (begun) loom_interrupts_begin(true, true, saved);
        loom_interrupts_progress(done, saved);
        for (const int number : numbers) raise(number);
        _exit(0);
    }
    close(ends[1]);
    Outcome outcome;
    char buffer[1024];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) outcome.err.append(buffer, (size_t)n);
    close(ends[0]);
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return outcome;
}

/* The second Ctrl-C says what would be lost, the third ends at once. Signals that come several times by themselves do
 * not count, and before anything has begun the first ends. */
TEST(Interrupts, TheThirdEndsAtOnce) {
    Outcome outcome = after_signals({SIGINT}, true, 237, 200);
    EXPECT_EQ(outcome.code, 0);
    EXPECT_EQ(lines_of(outcome.err).size(), 1u) << outcome.err;
    outcome = after_signals({SIGINT, SIGINT}, true, 237, 200);
    EXPECT_EQ(outcome.code, 0);
    ASSERT_EQ(lines_of(outcome.err).size(), 2u) << outcome.err;
    EXPECT_EQ(lines_of(outcome.err)[1],
              "gptloom: ends and saves still; once more ends at once, and the 37 steps since the "
              "checkpoint of step 200 are lost");
    EXPECT_EQ(
        lines_of(after_signals({SIGTERM, SIGINT}, true, 201, 200).err)[1],
        "gptloom: ends and saves still; once more ends at once, and the 1 step since the checkpoint of step 200 is "
        "lost");
    outcome = after_signals({SIGINT, SIGTERM, SIGINT}, true, 237, 200);
    EXPECT_EQ(outcome.code, 130);
    EXPECT_EQ(lines_of(outcome.err).size(), 2u) << outcome.err;
    outcome = after_signals({SIGHUP, SIGHUP, SIGHUP, SIGUSR1, SIGUSR1, SIGTERM}, true, 0, 0);
    EXPECT_EQ(outcome.code, 0);
    EXPECT_EQ(lines_of(outcome.err).size(), 2u) << outcome.err;
    EXPECT_EQ(after_signals({SIGTERM}, false, 0, 0).code, 143);
    EXPECT_EQ(after_signals({SIGUSR1}, false, 0, 0).code, 0);
}

TEST_F(Program, SamplesContinueThePromptAndRepeat) {
    expect_run(training({}));
    const Words call = {"sample", "--from", "run", "--prompt", "the quick", "--tokens", "20", "--threads", "1"};
    const Outcome first = run(call), second = run(call);
    EXPECT_EQ(first.code, 0) << first.err;
    EXPECT_EQ(first.out.rfind("the quick", 0), 0u) << first.out;
    EXPECT_EQ(first.out, second.out);
    Words other = call;
    other.insert(other.end(), {"--seed", "4"});
    EXPECT_NE(run(other).out, first.out);
    Words greedy = call;
    greedy.insert(greedy.end(), {"--temperature", "0", "--seed", "4"});
    Words greedy_too = call;
    greedy_too.insert(greedy_too.end(), {"--temperature", "0", "--seed", "5"});
    EXPECT_EQ(run(greedy).out, run(greedy_too).out);
    EXPECT_EQ(run({"sample", "--from", "run/checkpoints", "--tokens", "5"}).code, 0);
}

TEST_F(Program, ModelsOfTokenIdsSampleIds) {
    std::vector<uint16_t> tokens;
    for (int i = 0; i < 1000; i++) tokens.push_back(static_cast<uint16_t>(i % 50));
    shard("ids.bin", tokens, 1000);
    expect_run(training_on({"ids.bin"}, {"--vocab-size", "60"}));
    const Outcome outcome = run({"sample", "--from", "run", "--prompt", "3, 4 5", "--tokens", "4", "--threads", "1"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.out.rfind("3 4 5 ", 0), 0u) << outcome.out;
    EXPECT_EQ(outcome.out.find_first_not_of("0123456789 \n"), std::string::npos) << outcome.out;
    expect_mistake({"sample", "--from", "run", "--prompt", "hello"}, {"--prompt: 'hello'"});
    expect_mistake({"sample", "--from", "run", "--prompt", "3 60"}, {"--prompt: token id 60", "60"});
    expect_mistake({"sample", "--from", "run", "--prompt", "-1"}, {"--prompt: token id -1"});
    expect_mistake({"sample", "--from", "run", "--prompt", "3;4"}, {"--prompt: '3;4'"});
}

TEST_F(Program, InfoCountsParameters) {
    const Outcome gpt2 = run({"info", "gpt2", "--batch", "1", "--seq-len", "64"});
    EXPECT_EQ(gpt2.code, 0) << gpt2.err;
    for (const char *word : {"124,439,808", "7,087,872", "activations", "FLOP"})
        EXPECT_NE(gpt2.out.find(word), std::string::npos) << gpt2.out;
    const Outcome all = run({"info"});
    EXPECT_EQ(all.code, 0);
    for (const char *name : {"nano", "mini", "gpt1", "gpt2-xl", "gpt3-175b"})
        EXPECT_NE(all.out.find(name), std::string::npos) << name;
    const Outcome narrow = run({"info", "gpt2", "--batch", "1", "--seq-len", "64", "--dtype", "bf16"});
    for (const char *word : {"training in bf16", "master weights", "237."}) /* MiB of weights */
        EXPECT_NE(narrow.out.find(word), std::string::npos) << narrow.out;
    EXPECT_EQ(gpt2.out.find("master weights"), std::string::npos);
    const Outcome narrower = run({"info", "gpt2", "--batch", "1", "--seq-len", "64", "--dtype", "bf16",
                                  "--optimizer-dtype", "bf16", "--grad-dtype", "bf16"});
    const auto mebibytes = [](const Outcome &outcome, const std::string &row) {
        const size_t at = outcome.out.find("  " + row);
        return at == std::string::npos ? -1 : std::stod(outcome.out.substr(at + row.size() + 2));
    };
    for (const char *row : {"moments", "gradients"})
        EXPECT_NEAR(mebibytes(narrower, row), mebibytes(narrow, row) / 2, 0.1) << narrower.out;
    expect_run(training({}));
    const Outcome directory = run({"info", "run"});
    EXPECT_EQ(directory.code, 0) << directory.err;
    EXPECT_NE(directory.out.find("after step 4"), std::string::npos) << directory.out;
}

TEST_F(Program, PlansHere) {
    const Outcome mini = run({"plan", "mini", "--batch", "2"});
    EXPECT_EQ(mini.code, 0) << mini.err;
    for (const char *word : {"834K parameters", "batch       2 x 64 tokens, 2 at a time", "activations", "moments",
                             "MiB of", "block-attn", "sqrt", "fits, the fastest", "measured just now"})
        EXPECT_NE(mini.out.find(word), std::string::npos) << word << "\n" << mini.out;
    const Outcome short_of_memory = run({"plan", "mini", "--memory", "17MiB", "--micro-batch", "8", "--no-measure"});
    EXPECT_EQ(short_of_memory.code, 0) << short_of_memory.err;
    for (const char *word : {"does not fit", "nothing of this fits; with --recompute", "would fit: --micro-batch",
                             "not known: --no-measure"})
        EXPECT_NE(short_of_memory.out.find(word), std::string::npos) << word << "\n" << short_of_memory.out;
    expect_run(training({}));
    expect_mistake({"plan", "run", "--n-layer", "3"}, {"'run'", "shape"});
    const Outcome one = run({"plan", "run", "--no-measure", "--recompute", "block", "--seq-len", "16"});
    EXPECT_EQ(one.code, 0) << one.err;
    EXPECT_NE(one.out.find("memory with --recompute block"), std::string::npos) << one.out;
    EXPECT_EQ(one.out.find("sqrt"), std::string::npos) << one.out;
}

/* Without a CUDA toolkit the build says in a line who can. */
TEST_F(Program, PlansForGpusThatAreNotHere) {
    const Words xl = {"plan",    "gpt2-xl", "--on",    "h100", "--dtype", "bf16",
                      "--batch", "64",      "--ranks", "8",    "--zero",  "1"};
    if (run({"--version"}).out.find("not built in") != std::string::npos) {
        expect_mistake(xl, {"--on: ", "build/emulated/gptloom"});
        return;
    }
    const Outcome outcome = run(xl);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    for (const char *word : {"NVIDIA H100 SXM", "ZeRO stage 1", "communication", "CUDA context and libraries",
                             "MiB of 79872.0 MiB", "fits, the fastest", "predicted, not measured", "not modelled"})
        EXPECT_NE(outcome.out.find(word), std::string::npos) << word << "\n" << outcome.out;
    const Outcome large = run({"plan", "gpt3-175b", "--on", "rtx-4090", "--json", "-"});
    EXPECT_EQ(large.code, 0) << large.err;
    EXPECT_NE(large.out.find("\"best\":\tnull"), std::string::npos) << large.out;
    expect_run({"plan", "gpt2", "--on", "4090", "--json", "plan.json"});
    const std::string document = slurp(folder / "plan.json");
    /* The embeddings' bucket: 50304 and 1024 rows of 768, in 640 blocks (a multiple of 64, of at most 65536 elements)
     * of a multiple of 128 elements. */
    for (const char *word :
         {"\"best\":\t\"none\"", "\"speed\":\t\"predicted\"", "\"tokens_per_s\"", "\"matmul_of_peak\"",
          "\"gradient\":\t\"fp32\"", "\"elements\":\t39485440,\n\t\t\t\"blocks\":\t640\n"})
        EXPECT_NE(document.find(word), std::string::npos) << word << "\n" << document;
}

TEST_F(Program, RunsInSixteenBits) {
    for (const char *dtype : {"bf16", "fp16"}) {
        fs::remove_all(folder / "run");
        const Outcome outcome = run(training({"--dtype", dtype}));
        ASSERT_EQ(outcome.code, 0) << outcome.err;
        EXPECT_NE(outcome.out.find(std::string("precision   ") + dtype +
                                   "; master weights in fp32; moments in fp32, gradients of weights in fp32"),
                  std::string::npos)
            << outcome.out;
        EXPECT_NE(run({"info", "run"}).out.find(std::string("tokens seen in ") + dtype), std::string::npos);
        for (const char *narrow : {"fp32", "bf16", "fp16"}) {
            const Outcome sample = run(
                {"sample", "--from", "run", "--dtype", narrow, "--tokens", "5", "--prompt", "a"});
            EXPECT_EQ(sample.code, 0) << sample.err;
            EXPECT_EQ(sample.out[0], 'a');
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------- a terminal */

/* Runs the program on a terminal of so many columns and returns what it wrote there. */
std::string on_terminal(const std::function<void()> &become, int columns, int *code) {
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    EXPECT_GE(terminal, 0);
    EXPECT_EQ(grantpt(terminal), 0);
    EXPECT_EQ(unlockpt(terminal), 0);
    const std::string name = ptsname(terminal);
    const int side = open(name.c_str(), O_RDWR | O_NOCTTY);
    EXPECT_GE(side, 0);
    struct winsize window = {24, static_cast<unsigned short>(columns), 0, 0};
    EXPECT_EQ(ioctl(side, TIOCSWINSZ, &window), 0);
    const pid_t child = fork();
    if (child == 0) {
        setenv("TERM", "xterm", 1);
        dup2(side, 1);
        dup2(side, 2);
        close(side);
        close(terminal);
        become();
    }
    close(side);
    std::string text;
    char buffer[4096];
    for (ssize_t n; (n = read(terminal, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
    close(terminal);
    int status = 0;
    waitpid(child, &status, 0);
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return text;
}

/* The pieces that were drawn over each other, each without its "clear to the end of the line". */
std::vector<std::string> redraws_of(const std::string &text) {
    static const std::string clear = "\x1b[K";
    std::vector<std::string> redraws;
    for (size_t end = text.find(clear); end != std::string::npos; end = text.find(clear, end + 1)) {
        const size_t begin = text.rfind('\r', end);
        redraws.push_back(text.substr(begin + 1, end - begin - 1));
    }
    return redraws;
}

TEST_F(Program, ATerminalShowsOneLiveLineThatFits) {
    for (const int columns : {120, 80, 40, 12}) {
        fs::remove_all(folder / "run");
        int code = -1;
        const std::string text = on_terminal(
            [this] {
                become(
                    training({"--steps", "60", "--val-every", "20", "--sample-every", "30", "--sample-tokens", "30"}));
            },
            columns, &code);
        EXPECT_EQ(code, 0) << text;
        const auto redraws = redraws_of(text);
        ASSERT_GE(redraws.size(), 3u) << text;
        for (const std::string &line : redraws) EXPECT_LT(line.size(), static_cast<size_t>(columns)) << line;
        EXPECT_NE(redraws.back().find("60/60"), std::string::npos) << redraws.back();
        if (columns < 120) continue;
        for (const char *word : {"[==", "loss ", "val ", "lr ", "norm ", "tok/s", "% of fp32 peak", " left"})
            EXPECT_NE(redraws.back().find(word), std::string::npos) << redraws.back() << " lacks " << word;
        EXPECT_LT(redraws.size(), 60u) << "drawn for every step";
    }
}

TEST_F(Program, AGraphOnATerminalIsAFile) {
    for (const char *format : {"svg", "dot"}) {
        int code = -1;
        const std::string file = std::string("gptloom-graph.") + format;
        EXPECT_EQ(on_terminal([&] { become({"graph", "nano", "--format", format}); }, 80, &code), file + "\r\n");
        EXPECT_EQ(code, 0);
        EXPECT_EQ(slurp(folder / file), run({"graph", "nano", "--format", format}).out);
    }
    fs::remove(folder / "gptloom-graph.svg");
    fs::create_symlink("elsewhere", folder / "gptloom-graph.svg");
    int code = -1;
    const std::string refused = on_terminal([&] { become({"graph", "nano"}); }, 80, &code);
    EXPECT_NE(refused.find("is a symbolic link; --out says"), std::string::npos) << refused;
    EXPECT_EQ(code, 2);
}

TEST_F(Program, SamplesCannotSteerTheTerminal) {
    expect_run(training({"--steps", "1", "--lr", "0"})); /* an untrained model: any byte comes out */
    std::string text;
    for (const char *seed : {"1", "2", "3", "4", "5"}) { /* any of them may end early */
        int code = -1;
        text += on_terminal(
            [this, seed] {
                become({"sample", "--from", "run", "--tokens", "200", "--temperature", "5", "--seed", seed, "--prompt",
                        "\x1b[2J\x07"});
            },
            80, &code);
        EXPECT_EQ(code, 0) << text;
    }
    EXPECT_GT(text.size(), 200u);
    for (const char byte : text) {
        const bool steers = (byte >= 0 && byte < 32 && byte != '\n' && byte != '\t' && byte != '\r') || byte == 127;
        EXPECT_FALSE(steers) << "byte " << static_cast<int>(byte);
    }
}

/* Where a terminal would do as it is told: control characters, bytes that are no UTF-8, marks that turn the direction
 * of writing. The place of the first; npos where there is none. */
size_t first_that_steers(const std::string &text) {
    for (size_t i = 0; i < text.size();) {
        const auto byte = [&](size_t k) { return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u; };
        const unsigned length = byte(0) < 0x80 ? 1 : byte(0) < 0xC2 ? 0 : byte(0) < 0xE0 ? 2 : byte(0) < 0xF0 ? 3 : 4;
        uint32_t point = length == 1 ? byte(0) : byte(0) & (0x7Fu >> length);
        for (unsigned k = 1; k < length; k++) {
            if ((byte(k) & 0xC0) != 0x80) return i;
            point = point << 6 | (byte(k) & 0x3F);
        }
        const bool control = (point < 0x20 && point != '\n' && point != '\t') || (point >= 0x7F && point < 0xA0);
        const bool turns = (point >= 0x202A && point <= 0x202E) || (point >= 0x2066 && point <= 0x2069);
        const bool too_long = (length == 3 && point < 0x800) || (length == 4 && point < 0x10000);
        if (length == 0 || control || turns || too_long) return i;
        i += length;
    }
    return std::string::npos;
}

/* Names and contents that try to, wherever the program takes some. */
TEST_F(Program, NothingFromOutsideSteersTheTerminal) {
    const std::string bad = "\x1b]0;owned\x07\x1b[2J\r\x9b"
                            "31m\xc2\x9b"
                            "1m\xe2\x80\xae\xc0\xaf\xe0\x80\xaf\x7f\xff";
    const std::string turned = "\xe2\x80\xae"
                               "txt.exe\xe2\x81\xa6";
    expect_run(training({"--steps", "1"}));
    const fs::path checkpoint = folder / "run/checkpoints" / latest();
    const auto damaged = [&](const std::string &name, const std::string &file, const std::string &from,
                             const std::string &to) {
        fs::copy(checkpoint, folder / name, fs::copy_options::recursive);
        std::string content = slurp(folder / name / file);
        const size_t at = content.find(from);
        ASSERT_NE(at, std::string::npos) << from;
        write(fs::path(name) / file, content.replace(at, from.size(), to));
        if (file != "manifest.json") fs::remove(folder / name / "manifest.json");
    };
    damaged("type", "config.json", "\"gpt2\"", "\"" + turned + bad.substr(bad.find('\x9b')) + "\"");
    damaged("escaped", "config.json", "\"gpt2\"", "\"\\u001b]0;x\\u0007\\u009b\\u202e\"");
    damaged("activation", "config.json", "\"gelu_new\"", "\"\x7f\xc2\x9b" + turned + "\"");
    damaged("tensor", "model.safetensors", "transformer.wte.weight", "transformer.w\xc2\x9b\xe2\x80\xaewe.wei");
    damaged("long", "model.safetensors", "\"transformer.wte.weight", "\"\x9b\xff\xc0\xafsformer.wte.weight");
    damaged("listed", "manifest.json", "\"config.json\"", "\"" + turned + "\xff\x9b\"");
    damaged("state", "training_state.json", "\"fp32\"", "\"" + turned + "\xff\"");
    fs::create_directory(folder / bad);
    fs::create_directory(folder / turned);
    fs::copy_file(folder / "text.txt", folder / turned / "text.txt");
    fs::create_directory(folder / "metrics");
    write("metrics/metrics.jsonl", "{\"step\": \"" + bad + "\"}\n");
    write("unknown.ini", bad + " = 1\n");
    write("value.ini", "device = " + turned + "\xff\x9b\n");
    write("bench.json", "{\"device\": \"" + turned + "\", \"description\": \"\xff\x9b\", \"results\": []}");

    std::vector<Words> calls = {
        {bad},
        {"train", "--" + bad},
        training({"--data", bad}),
        training({"--data", turned, "--out", turned + "/run", "--steps", "2"}),
        training({"--out", "text.txt/" + bad}),
        training({"--init", "type", "--out", "new"}),
        {"train", "--resume", "--out", turned + "/run", "--steps", "3"},
        {"train", "--config", "unknown.ini", "--out", "new"},
        {"train", "--config", "value.ini", "--out", "new"},
        {"sample", "--from", "escaped"},
        {"sample", "--from", "activation"},
        {"sample", "--from", "tensor"},
        {"sample", "--from", "long"},
        {"sample", "--from", "listed"},
        {"sample", "--from", "state"},
        {"sample", "--from", "run", "--device", bad},
        {"info", bad},
        {"info", turned + "/run"},
        {"plan", "gpt2", "--on", bad},
        {"plan", turned + "/run", "--batch", "1"},
        {"graph", turned + "/run"},
        {"graph", "gpt2", "--out", bad + "/no/x.svg"},
        {"plot", "metrics"},
        {"plot", turned + "/run"},
        {"plot", "run", "--out", bad + "/no/x.svg"},
        {"plot", "run", "--title", bad, "--out", "/dev/stdout"},
    };
    if (std::getenv("LOOM_TEST_FULL")) /* it measures how fast much memory is copied */
        calls.push_back({"bench", "--op", "relu_forward", "--size", "small", "--seconds", "0.001", "--threads", "1",
                         "--against", "bench.json"});
    for (const Words &call : calls) {
        const Outcome outcome = run(call, [&] {
            for (const char *name : {"LOOM_MPI", "LOOM_NCCL", "LOOM_CUDNN", "LOOM_CUBLASLT"})
                setenv(name, bad.c_str(), 1);
        });
        std::string told;
        for (const std::string &word : call) told += word + " ";
        for (const std::string &text : {outcome.out, outcome.err}) {
            const size_t at = first_that_steers(text);
            EXPECT_EQ(at, std::string::npos)
                << "of " << testing::PrintToString(told) << " at byte " << at << " of " << testing::PrintToString(text);
        }
        EXPECT_TRUE(outcome.code == 0 || outcome.code == 2) << outcome.code << " of " << testing::PrintToString(told);
        EXPECT_EQ(outcome.err.find("there is no such flag") != std::string::npos, call.back() == "--" + bad) << told;
        EXPECT_LE(lines_of(outcome.err).size(), 1u) << outcome.err;
    }
}

/* What a run offers to type next means the same run to a shell, whatever it is called. */
TEST_F(Program, TheNextCommandsAreQuotedForAShell) {
    for (const std::string name : {"plain", "two words", "it's",
                                   "\xe2\x80\xae"
                                   "a\\b'c"}) {
        const Outcome trained = run(training({"--out", name, "--steps", "2", "--stop-after", "1"}));
        ASSERT_EQ(trained.code, 0) << trained.err;
        std::string command;
        for (const std::string &line : lines_of(trained.out))
            if (line.find(" train --resume --out ") != std::string::npos) command = line;
        ASSERT_NE(command, "") << trained.out;
        const std::string script = "bash -c '" + std::string("cd \"$0\" && eval \"$1 --quiet\"' '") + folder.string() +
                                   "' \"$(cat '" + folder.string() + ".cmd')\"";
        std::ofstream(folder.string() + ".cmd") << command;
        EXPECT_EQ(std::system(script.c_str()), 0) << command;
        fs::remove(folder.string() + ".cmd");
        EXPECT_EQ(lines_of(slurp(folder / name / "metrics.jsonl")).size(), 2u) << command;
    }
}

/* Texts end and begin with the tokens that the checkpoint names, and with no others; a run that begins from it names
 * them again. */
TEST_F(Program, TextsEndWithTheTokensThatTheConfigurationNames) {
    std::vector<uint16_t> tokens(400);
    for (size_t i = 0; i < tokens.size(); i++) tokens[i] = static_cast<uint16_t>(i * i % 5);
    shard("t.bin", tokens, static_cast<int32_t>(tokens.size()));
    expect_run(training_on({"t.bin"}, {"--vocab-size", "5", "--steps", "1"}));
    const fs::path config = "run/checkpoints/" + latest() + "/config.json";
    fs::remove(folder / config.parent_path() / "manifest.json");
    const std::string saved = slurp(folder / config);
    const auto name = [&](const std::string &begin, const std::string &end) {
        std::string content = saved;
        for (const auto &[key, value] : {std::pair{"bos_token_id", begin}, std::pair{"eos_token_id", end}}) {
            const std::string before = std::string("\"") + key + "\":\tnull";
            const size_t at = content.find(before);
            ASSERT_NE(at, std::string::npos) << content;
            content.replace(at, before.size(), std::string("\"") + key + "\": " + value);
        }
        write(config, content);
    };
    const auto sampled = [&](const Words &more) {
        Words call = {"sample", "--from", "run", "--tokens", "100", "--temperature", "100", "--threads", "1"};
        call.insert(call.end(), more.begin(), more.end());
        const Outcome outcome = run(call);
        EXPECT_EQ(outcome.code, 0) << outcome.err;
        std::stringstream stream(outcome.out);
        return Words(std::istream_iterator<std::string>(stream), {});
    };
    EXPECT_EQ(sampled({"--prompt", "0"}).size(), 101u) << "null: nothing ends it";
    expect_mistake({"sample", "--from", "run", "--threads", "1"}, {"--prompt", "config.json", "bos_token_id"});
    name("null", "3");
    EXPECT_LT(sampled({"--prompt", "0"}).size(), 100u);
    EXPECT_LT(sampled({}).size(), 100u) << "begins after the end of another text";
    name("1", "[2, 4]");
    const Words words = sampled({"--prompt", "0"});
    EXPECT_LT(words.size(), 100u);
    for (const char *end : {"2", "4"}) EXPECT_EQ(std::count(words.begin(), words.end(), end), 0);
    expect_run(training_on({"t.bin"}, {"--init", "run", "--out", "new", "--steps", "1"}));
    const std::string again = slurp(folder / "new/checkpoints/latest/config.json");
    EXPECT_NE(again.find("\"bos_token_id\":\t1"), std::string::npos) << again;
    EXPECT_NE(again.find("\"eos_token_id\":\t[2, 4]"), std::string::npos) << again;
    name("50256", "50256");
    EXPECT_EQ(sampled({"--prompt", "0"}).size(), 101u) << "not in the vocabulary";
    for (const char *bad : {"-1", "\"2\"", "[1, null]", "2.5", "{}"}) {
        name("null", bad);
        expect_mistake({"sample", "--from", "run", "--prompt", "0"}, {"config.json", "eos_token_id"});
    }
}

TEST_F(Program, APromptLongerThanTheContextIsTold) {
    expect_run(training({"--steps", "1"}));
    const auto sampled = [&](const std::string &prompt) {
        return run({"sample", "--from", "run", "--tokens", "4", "--threads", "1", "--prompt", prompt});
    };
    EXPECT_EQ(sampled(std::string(16, 'x')).err, "");
    const Outcome longer = sampled("abc" + std::string(16, 'x'));
    EXPECT_EQ(longer.code, 0);
    EXPECT_EQ(lines_of(longer.err).size(), 1u) << longer.err;
    for (const char *word : {"gptloom: note: --prompt", "19 tokens", "context is 16", "first 3"})
        EXPECT_NE(longer.err.find(word), std::string::npos) << longer.err;
    EXPECT_EQ(longer.out, "abc" + sampled(std::string(16, 'x')).out) << "the model goes on from what it sees";
}

/* In 16 bits equal logits are common: one of them is the most probable, whatever the seed. */
TEST_F(Program, TopKOfOneIsGreedy) {
    expect_run(training({"--steps", "1"}));
    for (const char *dtype : {"bf16", "fp16", "fp32"}) {
        const Words call = {"sample", "--from",   "run", "--tokens", "30", "--threads",
                            "1",      "--prompt", "th",  "--dtype",  dtype};
        const auto with = [&](Words more) {
            more.insert(more.begin(), call.begin(), call.end());
            const Outcome outcome = run(more);
            EXPECT_EQ(outcome.code, 0) << outcome.err;
            return outcome.out;
        };
        const std::string greedy = with({"--temperature", "0"});
        EXPECT_EQ(with({"--top-k", "1", "--seed", "1"}), greedy) << dtype;
        EXPECT_EQ(with({"--top-p", "1e-6", "--seed", "2", "--temperature", "1e-30"}), greedy) << dtype;
    }
}

/* Weights that are no numbers, wherever they come in. */
TEST_F(Program, WeightsThatAreNoNumbersAreRefused) {
    expect_run(training({"--steps", "1"}));
    const std::string file = "run/checkpoints/" + latest() + "/model.safetensors";
    std::string content = slurp(folder / file);
    const float bad = NAN;
    memcpy(&content[content.size() - 8], &bad, 4);
    write(file, content);
    fs::remove(folder / ("run/checkpoints/" + latest() + "/manifest.json"));
    const Words words = {"model.safetensors", "tensor '", "is infinite or NaN"};
    expect_mistake({"sample", "--from", "run", "--threads", "1"}, words);
    expect_mistake(training({"--init", "run", "--out", "new"}), words);
    expect_one_line(run({"train", "--resume", "--out", "run", "--steps", "2"}), words);
}

/* What bits hang on is kept with a run, and told where it goes on with other instructions. */
TEST_F(Program, SaysWhatInstructionsARunWasMadeWith) {
    const auto by_sse2 = [] { setenv("LOOM_INSTRUCTIONS", "sse2", 1); };
    const std::string best = run({"--version"}).out;
    if (run({"--version"}, by_sse2).code != 0 || best.find("SSE2") != std::string::npos)
        GTEST_SKIP() << "this processor has no other instructions";
    ASSERT_EQ(run(training({"--steps", "1"}), by_sse2).code, 0);
    EXPECT_NE(slurp(folder / "run/config.ini").find("; On cpu: "), std::string::npos);
    EXPECT_NE(slurp(folder / "run/config.ini").find(", SSE2, matrix products by "), std::string::npos);
    const std::string note = "and was made with SSE2, products by ";
    const Outcome same = run({"train", "--resume", "--out", "run", "--steps", "2"}, by_sse2);
    EXPECT_EQ(same.code, 0) << same.err;
    EXPECT_EQ(same.out.find(note), std::string::npos) << same.out;
    const Outcome other = run({"train", "--resume", "--out", "run", "--steps", "3"});
    EXPECT_EQ(other.code, 0) << other.err;
    EXPECT_NE(other.out.find(note), std::string::npos) << other.out;
    EXPECT_EQ(slurp(folder / "run/config.ini").find("SSE2"), std::string::npos);
}

/* SELinux, seccomp and this can forbid memory that is written and executed, which the matrix library would need. */
TEST_F(Program, WorksWhereMemoryMayNotBeMadeExecutable) {
    enum { SET_MDWE = 65, REFUSE_EXEC_GAIN = 1 }; /* PR_SET_MDWE, of Linux 6.3 */
    const auto by_library = [] { setenv("LOOM_PRODUCTS", "library", 1); };
    const Outcome version = run({"--version"}, by_library);
    if (version.code != 0) GTEST_SKIP() << "no library multiplies here";
    const auto forbid = [] {
        if (prctl(SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) != 0) _exit(77);
        setenv("LOOM_PRODUCTS", "library", 1);
    };
    const Outcome trained = run(training({"--steps", "1"}), forbid);
    if (trained.code == 77) GTEST_SKIP() << "this kernel cannot forbid it";
    EXPECT_EQ(trained.code, 0) << trained.err;
    const Words words = {"sample", "--from",        "run", "--prompt",  "the ", "--tokens",
                         "8",      "--temperature", "0",   "--threads", "1"};
    const Outcome forbidden = run(words, forbid), allowed = run(words);
    EXPECT_EQ(forbidden.code, 0) << forbidden.err;
    EXPECT_EQ(forbidden.err, "");
    EXPECT_EQ(forbidden.out, allowed.out);
    if (version.out.find("oneDNN") == std::string::npos) return;
    EXPECT_NE(run({"--version"}, forbid).out.find("products by gptloom (oneDNN"), std::string::npos);
}

/* ------------------------------------------------------------------------------------------------ the run's directory */

#ifdef __SANITIZE_ADDRESS__
const bool sanitized = true;
#else
const bool sanitized = false;
#endif

/* A file system with faults, or another place, for a run. */
class Places : public Program {
  protected:
    fs::path run_folder, checkpoints;

    void SetUp() override {
        Program::SetUp();
        run_folder = folder / "run";
        checkpoints = run_folder / "checkpoints";
    }
    /* Starts the program on a file system of the shim's (test/faults/README.md). */
    std::function<void()> on(const std::string &file_system) {
        const std::string shim = (fs::path(gptloom).parent_path() / "test/libfaults.so").string();
        return [this, shim, file_system] {
            setenv("LD_PRELOAD", shim.c_str(), 1);
            setenv("LOOM_FAULT_FS", file_system.c_str(), 1);
            setenv("LOOM_FAULT_UNDER", folder.c_str(), 1);
        };
    }
    void expect_run_on(const std::string &file_system, const Words &arguments) {
        const Outcome outcome = run(arguments, on(file_system));
        ASSERT_EQ(outcome.code, 0) << file_system << ": " << outcome.err;
        EXPECT_EQ(outcome.err, "");
    }
    static std::set<std::string> names_in(const fs::path &directory) {
        std::set<std::string> names;
        for (const auto &entry : fs::directory_iterator(directory)) names.insert(entry.path().filename());
        return names;
    }
    void await(const std::function<bool()> &event) {
        for (int i = 0; i < 12000 && !event(); i++) usleep(10000);
        ASSERT_TRUE(event());
    }
    /* What a training without an end has done once it has a checkpoint. */
    pid_t start_endless(const Words &more = {}) {
        Words arguments = without(training({"--steps", "1000000", "--checkpoint-every", "5", "-q"}), "--steps");
        arguments.insert(arguments.end(), more.begin(), more.end());
        const pid_t child = start(arguments);
        await([&] { return fs::exists(checkpoints / "latest"); });
        return child;
    }
};

TEST_F(Places, OneRunAtATimeIsInADirectory) {
    const pid_t first = start_endless();
    const std::string line = "run: is in use by process " + std::to_string(first) + " on ";
    const fs::path out = folder.string() + ".out", err = folder.string() + ".err";
    const auto second = [&](const Words &arguments, const std::function<void()> &before) {
        fs::rename(err, folder / "err");
        const Outcome outcome = run(arguments, before);
        fs::rename(folder / "err", err);
        return outcome;
    };
    expect_one_line(second({"train", "--resume", "--out", "run"}, [] {}), {line, "wait for its end"});
    if (!sanitized) expect_one_line(second({"train", "--resume", "--out", "run"}, on("nolocks")), {line});
    EXPECT_EQ(second({"sample", "--from", "run", "--tokens", "1"}, [] {}).code, 0) << "readers need no lock";
    kill(first, SIGKILL);
    EXPECT_EQ(wait_for(first), 128 + SIGKILL);
    const Outcome resumed = run({"train", "--resume", "--out", "run", "--stop-after", "1"});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_NE(resumed.out.find("note: run: process " + std::to_string(first) + " on "), std::string::npos)
        << resumed.out;
    EXPECT_FALSE(fs::exists(run_folder / "lock"));
}

TEST_F(Places, WithoutLinksLatestIsATextFile) {
    if (sanitized) GTEST_SKIP() << "the shim does not go before AddressSanitizer";
    const char *bare = "nolinks,nofsync,nolocks,noexchange";
    expect_run_on(bare, training({"--stop-after", "2", "-q"}));
    EXPECT_EQ(slurp(checkpoints / "latest"), "step-00000002\n");
    EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(checkpoints / "latest")));
    expect_run_on(bare, {"train", "--resume", "--out", "run", "-q"});
    EXPECT_EQ(slurp(checkpoints / "latest"), "step-00000004\n");
    EXPECT_EQ(names_in(run_folder),
              (std::set<std::string>{"checkpoints", "config.ini", "data.json", "metrics.jsonl", "plan.json", "saved"}));
    for (const char *from : {"run", "run/checkpoints", "run/checkpoints/latest"})
        EXPECT_EQ(run({"sample", "--from", from, "--tokens", "1"}, on(bare)).code, 0) << from;
    EXPECT_EQ(run({"info", "run"}, on(bare)).code, 0);
}

TEST_F(Places, WhatCannotBeWrittenIsFoundOutBeforeTraining) {
    if (sanitized) GTEST_SKIP() << "the shim does not go before AddressSanitizer";
    expect_run(training({"--stop-after", "2", "-q"}));
    for (const char *file_system : {"readonly", "full=3"}) {
        const auto before = everything();
        const Outcome outcome = run({"train", "--resume", "--out", "run"}, on(file_system));
        expect_one_line(outcome, {"run/"});
        EXPECT_EQ(outcome.out.find("step 3"), std::string::npos) << outcome.out;
        EXPECT_EQ(everything(), before) << file_system;
    }
    fs::remove(checkpoints / "latest");
    fs::create_directory(checkpoints / "latest");
    write("run/checkpoints/latest/notes", "text");
    expect_mistake({"train", "--resume", "--out", "run"}, {"run/checkpoints/latest: is a directory", "elsewhere"});
}

/* cp -rL, zip and object stores follow links. */
TEST_F(Places, ACopyThatFollowedLinksGoesOn) {
    expect_run(training({"--stop-after", "2", "-q"}));
    expect_run(training({"--out", "whole", "-q"}));
    fs::rename(run_folder, folder / "original");
    fs::copy(folder / "original", run_folder, fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    fs::remove(checkpoints / "latest");
    fs::copy(checkpoints / "step-00000002", checkpoints / "latest", fs::copy_options::recursive);
    expect_run({"train", "--resume", "--out", "run", "-q"});
    EXPECT_EQ(latest(), "step-00000004");
    EXPECT_TRUE(slurp(checkpoints / "latest/model.safetensors") ==
                slurp(folder / "whole/checkpoints/latest/model.safetensors"));
}

TEST_F(Places, WhatKilledRunsLeftUnfinishedIsDeleted) {
    expect_run(training({"--stop-after", "2", "-q"}));
    const std::set<std::string> whole = names_in(run_folder), steps = names_in(checkpoints);
    for (const char *name :
         {".tmp-0123456789abcdef", "config.ini.tmp-4711", "plan.json.tmp-1", "checkpoints/.tmp-latest"})
        write(fs::path("run") / name, "half");
    fs::create_directories(checkpoints / ".tmp-1234-step-00000009");
    write("run/notes.tmp-1", "mine");
    write("run/config.ini.tmp-mine", "mine");
    expect_run({"train", "--resume", "--out", "run", "--stop-after", "1", "-q"});
    std::set<std::string> names = names_in(run_folder);
    EXPECT_EQ(names.erase("notes.tmp-1") + names.erase("config.ini.tmp-mine"), 2u);
    EXPECT_EQ(names, whole);
    EXPECT_EQ(names_in(checkpoints).size(), steps.size() + 1);
}

/* Links that somebody has put where a run writes lead nothing elsewhere. */
TEST_F(Places, LinksInTheWayAreNotFollowed) {
    write("victim", "precious");
    fs::create_directory(run_folder);
    for (const char *name : {"plan.json", "tuning.txt", "samples.txt"}) {
        fs::create_symlink("../victim", run_folder / name);
        expect_mistake(training({}), {std::string("--out: run/") + name + " is there already"});
        fs::remove(run_folder / name);
    }
    expect_run(training({"--stop-after", "1", "-q"}));
    for (const char *name : {"plan.json", "tuning.txt"}) {
        fs::remove(run_folder / name);
        fs::create_symlink("../victim", run_folder / name);
    }
    expect_run({"train", "--resume", "--out", "run", "--stop-after", "1", "-q"});
    EXPECT_FALSE(fs::is_symlink(run_folder / "plan.json"));
    for (const char *name : {"metrics.jsonl", "samples.txt", "lock"}) {
        const bool was_there = fs::exists(run_folder / name);
        if (was_there) fs::rename(run_folder / name, folder / "kept");
        fs::create_symlink("../victim", run_folder / name);
        const Outcome outcome = run({"train", "--resume", "--out", "run", "--sample-every", "1", "-q"});
        expect_one_line(outcome, {std::string("run/") + name, "symbolic link"});
        fs::remove(run_folder / name);
        if (was_there) fs::rename(folder / "kept", run_folder / name);
    }
    EXPECT_EQ(slurp(folder / "victim"), "precious");
    expect_run({"train", "--resume", "--out", "run", "-q"});
}

/* A new run writes over nothing that it has not made. */
TEST_F(Places, FilesOfOthersAreNotWrittenOver) {
    fs::create_directories(run_folder / "logs");
    write("run/notes.txt", "mine");
    write("run/logs/other.log", "mine");
    for (const char *name :
         {"metrics.jsonl", "samples.txt", "data.json", "plan.json", "tuning.txt", "logs/rank-0000.log", "lock"}) {
        write(fs::path("run") / name, "mine");
        expect_mistake(training({}), {std::string("run/") + name});
        fs::remove(run_folder / name);
    }
    /* What runs leave that were killed before they began: on a GPU, with a tuning cache. */
    write("run/tuning.txt", "measured on a GPU\n");
    write("run/choices.txt", "measured on a GPU\n");
    write("run/.tmp-0123456789abcdef", "half");
    expect_run(training({"-q"}));
    EXPECT_EQ(names_in(run_folder), (std::set<std::string>{"checkpoints", "config.ini", "data.json", "logs",
                                                           "metrics.jsonl", "notes.txt", "plan.json", "saved"}));
}

TEST_F(Places, DirectoriesOfAnotherUserAreRefused) {
    if (geteuid() != 0) GTEST_SKIP() << "needs two users: run it as root";
    fs::create_directory(run_folder);
    ASSERT_EQ(chown(run_folder.c_str(), 4321, 4321), 0);
    expect_mistake(training({}), {"run: belongs to another user (4321)", "chown"});
    ASSERT_EQ(chown(run_folder.c_str(), 0, 0), 0);
    expect_run(training({"--stop-after", "2", "-q"}));
    ASSERT_EQ(chown(checkpoints.c_str(), 4321, 4321), 0);
    expect_mistake({"train", "--resume", "--out", "run"}, {"run/checkpoints: belongs to another user"});
}

TEST_F(Places, DirectoriesOfAllUsersAreRefused) {
    fs::create_directory(run_folder);
    fs::permissions(run_folder, fs::perms(0777));
    expect_mistake(training({}), {"run: all users may write to it (mode 0777)", "chmod o-w"});
    EXPECT_TRUE(fs::is_empty(run_folder));
}

/* Steps that are done again are not sampled twice. */
/* test/data/run-446cc63 was trained by gptloom of that commit, to step 6 of 8: by it, the last steps had these losses.
 * Names of options and files have changed since. */
TEST_F(Places, ARunOfAnEarlierVersionGoesOn) {
    const std::string source = __FILE__;
    fs::copy(fs::path(source.substr(0, source.rfind('/') + 1)) / "data/run-446cc63", folder,
             fs::copy_options::recursive | fs::copy_options::copy_symlinks | fs::copy_options::overwrite_existing);
    const Outcome outcome = run({"train", "--resume", "--out", "run", "-q"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    const auto metrics = lines_of(slurp(run_folder / "metrics.jsonl"));
    ASSERT_EQ(metrics.size(), 8u);
    const auto number = [&](size_t step, const std::string &key) {
        const std::string &line = metrics[step - 1];
        return std::stod(line.substr(line.find("\"" + key + "\": ") + key.size() + 4));
    };
    EXPECT_NEAR(number(7, "loss"), 5.0687232, 1e-5);
    EXPECT_NEAR(number(8, "loss"), 5.0560112, 1e-5);
    EXPECT_NEAR(number(8, "grad_norm"), 0.909822643, 1e-5);
    EXPECT_NEAR(number(8, "val_loss"), 5.0495088, 1e-5);
    EXPECT_EQ(run({"sample", "--from", "run", "--tokens", "3", "--prompt", "a"}).code, 0);
    EXPECT_EQ(run({"info", "run"}).code, 0);
}

/* They called a GPU's tuning cache choices.txt, in the checkpoint's manifest too. */
TEST_F(Places, ACheckpointOfAnEarlierVersionIsTaken) {
    expect_run(training({"--stop-after", "2", "-q"}));
    const std::string tuning = "measured on a GPU\n";
    char checksum[33];
    loom_checksum(tuning.data(), tuning.size(), checksum);
    std::string manifest = slurp(checkpoints / "latest/manifest.json");
    ASSERT_NE(manifest.find('['), std::string::npos);
    manifest.insert(manifest.find('[') + 1, "{\"name\": \"choices.txt\", \"size\": " + std::to_string(tuning.size()) +
                                                ", \"xxh3_128\": \"" + checksum + "\"}, ");
    write("run/checkpoints/latest/manifest.json", manifest);
    expect_mistake({"info", "run"}, {"choices.txt"});
    write("run/checkpoints/latest/choices.txt", tuning);
    EXPECT_EQ(run({"info", "run"}).code, 0);
    EXPECT_EQ(run({"sample", "--from", "run", "--tokens", "1"}).code, 0);
    expect_run(training({"--init", "run", "--out", "next", "--steps", "1", "-q"}));
    expect_run({"train", "--resume", "--out", "run", "-q"});
}

TEST_F(Places, SamplesAreThoseOfAnUninterruptedRun) {
    const Words flags = {"--sample-every", "1", "--sample-tokens", "40", "--checkpoint-every", "2", "-q"};
    const auto sampled = [&](const Words &more) {
        Words arguments = without(training(more), "--sample-every");
        arguments.insert(arguments.end(), flags.begin(), flags.end());
        return arguments;
    };
    expect_run(sampled({"--out", "whole"}));
    expect_run(sampled({"--stop-after", "3"}));
    fs::remove_all(checkpoints / "step-00000003"); /* as if it had been killed before it was saved */
    fs::remove(checkpoints / "latest");
    expect_run({"train", "--resume", "--out", "run", "-q"});
    EXPECT_EQ(slurp(run_folder / "samples.txt"), slurp(folder / "whole/samples.txt"));
}

/* The command that is offered works. */
TEST_F(Places, ADamagedNewestCheckpointIsLeftForTheOneBefore) {
    expect_run(training({"--out", "whole", "-q"}));
    expect_run(training({"--checkpoint-every", "1", "--keep", "9", "--stop-after", "3", "-q"}));
    fs::resize_file(checkpoints / "step-00000003/model.safetensors", 1000);
    fs::remove(checkpoints / "step-00000002/config.json");
    const char *command = "train --resume --resume-from 1 --out run";
    expect_mistake({"train", "--resume", "--out", "run"},
                   {"step-00000003/model.safetensors", "damaged", "newest whole checkpoint before it is ",
                    "/step-00000001; 'gptloom ", command, "goes on from there"});
    expect_run({"train", "--resume", "--resume-from", "1", "--out", "run", "-q"});
    EXPECT_TRUE(slurp(checkpoints / "latest/model.safetensors") ==
                slurp(folder / "whole/checkpoints/latest/model.safetensors"));
}

/* Wherever memory runs out while the options are written, the run ends, or has them whole. */
TEST_F(Places, OptionsAreWrittenWholeOrNotAtAll) {
    if (sanitized) GTEST_SKIP() << "the shim does not go before AddressSanitizer";
    expect_run(training({"--out", "whole", "--steps", "1", "-q"}));
    const auto lines = [&](const char *out) {
        std::vector<std::string> all = lines_of(slurp(folder / out / "config.ini"));
        all.erase(
            std::remove_if(all.begin(), all.end(), [](const std::string &l) { return l.rfind("out = ", 0) == 0; }),
            all.end());
        return all;
    };
    bool failed = false;
    for (const std::string fault : {"program open_memstream:ENOMEM:1", "program open_memstream:ENOMEM:2",
                                    "libc realloc:ENOMEM:1", "libc realloc:ENOMEM:2", "libc realloc:ENOMEM:3"}) {
        const Outcome outcome = run(training({"--steps", "1", "-q"}), [&] {
            on("")();
            unsetenv("LOOM_FAULT_FS");
            setenv("LOOM_FAULT_FROM", fault.substr(0, fault.find(' ')).c_str(), 1);
            setenv("LOOM_FAULT", fault.substr(fault.find(' ') + 1).c_str(), 1);
        });
        if (outcome.code != 0) expect_one_line(outcome, {"no memory"});
        if (fs::exists(run_folder / "config.ini")) {
            EXPECT_EQ(lines("run"), lines("whole")) << fault;
        }
        failed = failed || outcome.code == 2;
        fs::remove_all(run_folder);
    }
    EXPECT_TRUE(failed) << "no fault has struck";
}

} // namespace
