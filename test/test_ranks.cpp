/* Training by several ranks: the same as by one, whatever they share out, recompute and store. Most of it is trained in
 * processes that train many times (train_rank), each training against one rank's; the rest as users do it, by the program
 * and mpirun. */
#include "support.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <sys/wait.h>

namespace {

using namespace support;
using Strings = std::vector<std::string>;

fs::path folder() {
    return fs::read_symlink("/proc/self/exe").parent_path();
}

#if defined(__SANITIZE_ADDRESS__)
const bool sanitized = true;
#else
const bool sanitized = false;
#endif

const bool full = std::getenv("LOOM_TEST_FULL") != nullptr;

const std::string mpirun = "timeout -k 2 300 mpirun --allow-run-as-root --oversubscribe --bind-to none --mca "
                           "mpi_yield_when_idle 1 ";

/* Text with something to learn, of so few bytes that to validate takes no time. */
std::string some_text(size_t bytes) {
    static const char *const words[] = {"the ", "loom ", "weaves ", "a ", "thread ", "of ", "blue ", "wool.\n"};
    std::string text;
    for (uint64_t i = 0; text.size() < bytes; i++) text += words[loom_random(7, LOOM_RANDOM_TEST, 0, i).word[0] % 8];
    text.resize(bytes);
    return text;
}

/* A folder of its own with a text; and ranks that write into it. */
class Ranks : public testing::Test {
  protected:
    TemporaryDirectory here;

    void SetUp() override {
        if (std::system("command -v mpirun >/dev/null 2>&1") != 0)
            GTEST_SKIP() << "there is no mpirun here (apt-get install openmpi-bin libopenmpi-dev)";
        if (!fs::exists(folder() / "../libgptloom_mpi.so")) GTEST_SKIP() << "there was no mpicc when this was built";
        write_file(here.at("text.txt"), some_text(2000));
    }

    struct Outcome {
        int status;
        std::string out, err;
    };

    /* In the folder. Sanitizers find MPI's own leaks; threads of several ranks do not wait for each other at full speed. */
    Outcome shell(const std::string &command) const {
        const std::string whole = "cd '" + here.path().string() +
                                  "' && export ASAN_OPTIONS=detect_leaks=0 OMP_WAIT_POLICY=passive && " + command +
                                  " >out 2>err </dev/null";
        const int result = std::system(whole.c_str());
        return {WIFEXITED(result) ? WEXITSTATUS(result) : 128 + WTERMSIG(result), read_file(here.at("out")),
                read_file(here.at("err"))};
    }
};

/* --------------------------------------------------------------------------------------------------------- many trainings */

/* One training: its options, and of these what may not change anything. */
struct Training {
    std::string options; /* for one rank too */
    std::string shared;  /* how ranks share it, and how each computes */
};

class Trainings : public Ranks {
  protected:
    /* Two blocks and buckets that ranks' shares do not fit evenly into; the classifier takes several chunks of rows. */
    const std::string model =
        "data=text.txt out=none n-layer=2 n-head=2 n-embd=32 block-size=16 seed=3 steps=10 lr=1e-3 warmup=0 ";

    /* Each line by so many ranks; what each training has come to, by its name. */
    std::map<std::string, std::string> train(int ranks, const std::map<std::string, std::string> &lines,
                                             const std::string &environment = "") {
        const std::string place = here.at("ranks-" + std::to_string(started_++));
        std::string all;
        std::map<std::string, std::string> results;
        fs::create_directory(place);
        for (const auto &[name, line] : lines) all += name + " " + line + "\n";
        write_file(here.at("trainings"), all);
        const std::string program = (folder() / "train_rank").string();
        const std::string libraries = "LOOM_TEST_MPI=" + (folder() / "libmpi_lasting.so").string() +
                                      " LOOM_MPI=" + (folder() / "../libgptloom_mpi.so").string();
        const Outcome o = ranks == 1 ? shell("env " + environment + " " + program + " self " + place + " trainings")
                                     : shell("env " + libraries + " " + environment + " " + mpirun + "-np " +
                                             std::to_string(ranks) + " " + program + " mpi " + place + " trainings");
        EXPECT_EQ(o.status, 0) << o.err;
        EXPECT_EQ(o.err, "");
        for (const auto &[name, line] : lines) {
            EXPECT_TRUE(fs::exists(place + "/" + name)) << "not trained: " << line;
            results[name] = fs::exists(place + "/" + name) ? read_file(place + "/" + name) : "";
        }
        last_ = place;
        return results;
    }

    /* What one rank's training comes to; of those that were not asked for before. */
    void train_alone(const std::set<std::string> &all) {
        std::map<std::string, std::string> lines;
        for (const std::string &options : all) {
            if (alone_.count(options)) continue;
            const std::string name = "alone-" + std::to_string(alone_.size() + lines.size());
            lines[name] = model + options + " deterministic-reduce @make-choices=" + choices_of(options);
            asked_[name] = options;
        }
        for (const auto &[name, result] : train(1, lines)) alone_[asked_[name]] = result;
    }

    std::string choices_of(const std::string &options) const {
        return here.at("choices-" + std::to_string(std::hash<std::string>()(options)));
    }

    /* Every training by each number of ranks is one rank's, to the bit. */
    void expect_bits_of_one_rank(const std::vector<Training> &trainings, const std::vector<int> &numbers,
                                 const std::string &environment = "") {
        std::set<std::string> alone;
        for (const Training &t : trainings) alone.insert(t.options);
        train_alone(alone);
        for (const int ranks : numbers) {
            std::map<std::string, std::string> lines;
            std::map<std::string, const Training *> meant;
            for (const Training &t : trainings) {
                char name[16];
                snprintf(name, sizeof name, "t%04zu", lines.size());
                const std::string choices = choices_of(t.options);
                lines[name] = model + t.options + " deterministic-reduce " + t.shared +
                              (fs::exists(choices) ? " choices=" + choices : "");
                meant[name] = &t;
            }
            for (const auto &[name, result] : train(ranks, lines, environment))
                expect_same_lines(result, alone_[meant[name]->options],
                                  std::to_string(ranks) + " ranks: " + meant[name]->options + " " +
                                      meant[name]->shared);
        }
    }

    /* The first line that differs is shown, and how many do. */
    static void expect_same_lines(const std::string &is, const std::string &should, const std::string &what) {
        std::istringstream mine(is), wanted(should);
        std::string line, other, first;
        int differ = 0;
        while (std::getline(wanted, other)) {
            line.clear();
            std::getline(mine, line);
            if (line != other && !differ++) first = "  " + line + "\nis to be\n  " + other;
        }
        EXPECT_TRUE(differ == 0 && !should.empty()) << what << ": " << differ << " lines are wrong:\n" << first;
    }

    /* Numbers of the last trainings. */
    std::vector<double> values(const std::string &name) const {
        const std::string raw = read_file(last_ + "/" + name + ".values");
        std::vector<double> numbers(raw.size() / sizeof(double));
        memcpy(numbers.data(), raw.data(), raw.size());
        return numbers;
    }

  private:
    int started_ = 0;
    std::string last_;
    std::map<std::string, std::string> alone_, asked_;
};

const Strings policies = {"none", "act", "norm", "block-attn", "block", "every:2", "sqrt"};

/* What numbers are stored in. */
const Strings precisions = {"dtype=fp32", "dtype=bf16", "dtype=fp16", "dtype=bf16 master-weights=off",
                            "dtype=bf16 optimizer-dtype=bf16"};

std::string zero_and_policy(int zero, const std::string &policy) {
    return "zero=" + std::to_string(zero) + " recompute=" + policy;
}

/* All pairs of stage and policy; precisions, batches (1, 2 and 4 micro-batches on each of four ranks), sizes of
 * micro-batches and threads take turns, so that each meets each. */
std::vector<Training> pairs_on_the_cpu() {
    static const Strings batches = {"batch=4 micro-batch=1", "batch=8 micro-batch=1", "batch=16 micro-batch=1",
                                    "batch=8 micro-batch=2", "batch=16 micro-batch=2"};
    std::vector<Training> all;
    for (size_t zero = 0; zero < 4; zero++)
        for (size_t p = 0; p < policies.size(); p++) {
            const size_t n = all.size();
            Training t = {"device=cpu " + precisions[(p + zero) % precisions.size()] + " " +
                              batches[(p + 2 * zero + p / 5) % batches.size()],
                          zero_and_policy((int)zero, policies[p]) + " threads=" + std::to_string(1 + n % 2)};
            if (p == 0 || p == 3) t.options += " @validate @sample";
            all.push_back(t);
        }
    return all;
}

TEST_F(Trainings, HaveTheBitsOfOneRankOnTheCpu) {
    expect_bits_of_one_rank(pairs_on_the_cpu(), {1, 2, 4});
}

/* Emulated CUDA takes its time: here every policy is trained once by two ranks and once by four, at another stage. */
std::vector<Training> some_pairs_on_cuda(size_t which) {
    static const Strings batches = {"batch=8 micro-batch=2", "batch=4 micro-batch=1", "batch=8 micro-batch=1"};
    std::vector<Training> all;
    for (size_t zero = 0; zero < 4; zero++)
        for (size_t p = 0; p < policies.size(); p++) {
            if ((zero * policies.size() + p) % 4 != which) continue;
            const size_t n = all.size();
            Training t = {"device=cuda " + precisions[n % 3] + " " + batches[(n + n / 3) % batches.size()],
                          zero_and_policy((int)zero, policies[p])};
            if (n % 3 == 1) t.shared += " offload=activations";
            if (n % 4 == 3) t.shared += " cuda-graph=off";
            if (n == 0 || n == 5) t.options += " @validate @sample";
            if (n == 4) t.options += " @steps=3"; /* what is recorded is replayed twice */
            all.push_back(t);
        }
    return all;
}

/* Streams are run in an order drawn by chance. */
TEST_F(Trainings, HaveTheBitsOfOneRankOnEmulatedCuda) {
    expect_bits_of_one_rank(some_pairs_on_cuda(1), {2}, "LOOM_EMULATION_SCHEDULE=random:2");
    expect_bits_of_one_rank(some_pairs_on_cuda(3), {4}, "LOOM_EMULATION_SCHEDULE=random:4");
}

} // namespace
