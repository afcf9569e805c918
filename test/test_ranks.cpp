/* Training by several ranks: the same as by one, whatever is sharded, recompute and store. Most of it is trained in
 * processes that train many times (train_rank), each training against one rank's; the rest as users do it, by the
 * program and mpirun. */
#include "support_ranks.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace support;
using Strings = std::vector<std::string>;

const std::string by_mpirun = "timeout -k 2 600 " + mpirun_here; /* of the largest matrix; it hangs then */

/* Text with something to learn, of so few bytes that to validate takes no time. */
std::string some_text(size_t bytes) {
    static const char *const words[] = {"the ", "loom ", "weaves ", "a ", "thread ", "of ", "blue ", "wool.\n"};
    std::string text;
    for (uint64_t i = 0; text.size() < bytes; i++) text += words[loom_random(7, LOOM_RANDOM_TEST, 0, i).word[0] % 8];
    text.resize(bytes);
    return text;
}

/* A folder of its own with a text; and ranks that write into it. */
class Ranks : public MpiTest {
  protected:
    void SetUp() override {
        MpiTest::SetUp();
        write_file(here.at("text.txt"), some_text(2000));
    }

    struct Outcome {
        int status;
        std::string out, err;
    };

    /* In the folder. Sanitizers find MPI's own leaks; threads of several ranks do not wait for each other at full
     * speed. */
    Outcome shell(const std::string &command) const {
        const std::string whole = "cd '" + here.path().string() +
                                  "' && export ASAN_OPTIONS=detect_leaks=0 OMP_WAIT_POLICY=passive " + tag + " " +
                                  open_mpi_files(here.path()) + " && " + command + " >out 2>err </dev/null";
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
    /* Three blocks: two segments of two, where blocks are recomputed in segments, and a third that takes the place of
     * the first where weights are there for a while only. The classifier takes several chunks of rows. */
    const std::string model =
        "data=text.txt out=none n-layer=3 n-head=2 n-embd=32 block-size=16 seed=3 steps=10 lr=1e-3 warmup=0 ";

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
                                     : shell("env " + libraries + " " + environment + " " + by_mpirun + "-np " +
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
            lines[name] = model + options + " deterministic-reduce @make-tuning=" + tuning_of(options);
            asked_[name] = options;
        }
        for (const auto &[name, result] : train(1, lines)) alone_[asked_[name]] = result;
    }

    /* The tuning cache of one rank's device, where it measures. */
    static std::string with_tuning(const std::string &path) {
        return fs::exists(path) ? " tuning=" + path : "";
    }

    std::string tuning_of(const std::string &options) const {
        return here.at("tuning-" + std::to_string(std::hash<std::string>()(options)));
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
                const std::string tuning = tuning_of(t.options);
                lines[name] = model + t.options + " deterministic-reduce " + t.shared + with_tuning(tuning);
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

/* One of so many pairs of stage and policy: of 2 the odd or the even ones, of 4 every policy once. Precisions, batches
 * (of 1 to 8 micro-batches on each rank), sizes of micro-batches and threads take turns. */
std::vector<Training> pairs_on_the_cpu(size_t which, size_t of) {
    static const Strings batches = {"batch=4 micro-batch=1", "batch=8 micro-batch=1", "batch=16 micro-batch=1",
                                    "batch=8 micro-batch=2", "batch=16 micro-batch=2"};
    std::vector<Training> all;
    for (size_t zero = 0; zero < 4; zero++)
        for (size_t p = 0; p < policies.size(); p++) {
            if ((zero + p) % of != which) continue;
            const size_t n = all.size();
            Training t = {"device=cpu " + precisions[(p + zero) % precisions.size()] + " " +
                              batches[n % batches.size()],
                          zero_and_policy((int)zero, policies[p]) + " threads=" + (n % 4 == 3 ? "2" : "1")};
            if (n % 4 == 0) t.options += " @validate @sample";
            all.push_back(t);
        }
    return all;
}

TEST_F(Trainings, HaveTheBitsOfOneRankOnTheCpu) {
    expect_bits_of_one_rank(pairs_on_the_cpu(0, 4), {1, 4});
    expect_bits_of_one_rank(pairs_on_the_cpu(1, 4), {2});
}

/* Emulated CUDA takes its time: here every policy is trained once by two ranks, and with
 * LOOM_TEST_FULL once by four, at another stage. */
std::vector<Training> some_pairs_on_cuda(size_t which) {
    static const Strings batches = {"batch=8 micro-batch=2", "batch=4 micro-batch=1", "batch=8 micro-batch=1"};
    std::vector<Training> all;
    for (size_t zero = 0; zero < 4; zero++)
        for (size_t p = 0; p < policies.size(); p++) {
            if ((zero * policies.size() + p) % 4 != which) continue;
            const size_t n = all.size();
            Training t = {"device=cuda " + std::string(zero < 3 ? "n-layer=2 " : "") + precisions[n % 3] + " " +
                              batches[(n + n / 3) % batches.size()],
                          zero_and_policy((int)zero, policies[p])};
            if (n % 3 == 1) t.shared += " offload=activations";
            if (n % 4 == 3) t.shared += " cuda-graph=off";
            if (n == 0 || n == 5) t.options += " @validate @sample";
            if (n == 4) t.options += " @steps=3"; /* what is captured is launched twice */
            all.push_back(t);
        }
    return all;
}

/* Streams are run in an order drawn by chance. */
TEST_F(Trainings, HaveTheBitsOfOneRankOnEmulatedCuda) {
    expect_bits_of_one_rank(some_pairs_on_cuda(1), {2}, "LOOM_EMULATION_SCHEDULE=random:2");
    if (sanitized || !full()) return; /* it takes long, and is no other code */
    expect_bits_of_one_rank(some_pairs_on_cuda(3), {4}, "LOOM_EMULATION_SCHEDULE=random:4");
}

/* GPT-1 has a bucket of embeddings and one for each layer, and none at the end. */
TEST_F(Trainings, OfGpt1HaveTheBitsOfOneRank) {
    static const Strings some = {"none", "norm", "block", "every:2"};
    std::vector<Training> all;
    for (size_t zero = 0; zero < 4; zero++)
        all.push_back({"device=cpu architecture=gpt1 batch=8 micro-batch=" + std::to_string(1 + zero % 2) +
                           (zero == 1 ? " @validate @sample" : ""),
                       zero_and_policy((int)zero, some[zero])});
    expect_bits_of_one_rank(all, {2});
}

/* What four ranks have saved at stage 2 is loaded by any number of ranks at any stage, as it was. */
TEST_F(Trainings, AreLoadedByOtherRanksAsTheyWereSaved) {
    const Strings saved = {"device=cpu dtype=fp32", "device=cpu dtype=bf16 optimizer-dtype=bf16",
                           "device=cuda n-layer=2 dtype=bf16 master-weights=off"};
    std::map<std::string, std::string> lines, wanted;
    const auto place = [&](size_t i) {
        return " out=" + here.at("run-" + std::to_string(i)) + " batch=12 micro-batch=1 ";
    };
    for (size_t i = 0; i < saved.size(); i++)
        lines["t" + std::to_string(i)] = model + saved[i] + place(i) + "zero=2 @save";
    for (const auto &[name, result] : train(4, lines)) wanted[name] = result.substr(result.find("weights"));
    for (const int ranks : {1, 2, 3}) {
        lines.clear();
        for (size_t i = 0; i < saved.size(); i++)
            for (const int zero : {0, 3})
                lines["t" + std::to_string(i) + "-zero-" + std::to_string(zero)] = model + saved[i] + place(i) +
                                                                                   "resume @steps=0 zero=" +
                                                                                   std::to_string(zero);
        for (const auto &[name, result] : train(ranks, lines))
            expect_same_lines(result, wanted[name.substr(0, 2)], std::to_string(ranks) + " ranks: " + lines[name]);
    }
}

/* ------------------------------------------------------------------------------------------------------ sums in any order */

/* A training's numbers, tensor by tensor. */
struct Tensor {
    std::string name; /* with what of it they are */
    std::vector<double> values;
};

class Sums : public Trainings {
  protected:
    /* Steps of 12 sequences, which two, three and four ranks share. With epsilon 1 the update is a smooth function of
     * the gradient: nothing is divided by what is almost zero. No gradient is clipped, as that would make each depend
     * on all. */
    const std::string sums = "n-layer=2 batch=12 micro-batch=1 eps=1 clip=0 @values ";

    std::vector<Tensor> tensors(const std::string &name, const std::string &lines) const {
        const std::vector<double> all = values(name);
        std::vector<Tensor> found;
        std::istringstream text(lines);
        size_t at = 0;
        for (std::string line; std::getline(text, line);) {
            std::istringstream words(line);
            std::string what, tensor;
            size_t count;
            if (!(words >> what >> tensor >> count) || (what != "weights" && what.find("moments") == std::string::npos))
                continue;
            if (at + count > all.size()) throw std::logic_error(name + ": numbers are missing");
            found.push_back({what + " of " + tensor, {all.begin() + (long)at, all.begin() + (long)(at + count)}});
            at += count;
        }
        return found;
    }

    /* A kind of training, and how near its tensors whose names begin with `prefix` are to be, by the norm of their
     * difference; and its losses, but for the first step's, which no sum of gradients comes before: it has one rank's
     * bits. */
    struct Kind {
        std::string options, prefix;
        double tolerance, of_losses;
    };

    static std::vector<std::pair<std::string, double>> losses(const std::string &text) {
        std::vector<std::pair<std::string, double>> found;
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) {
            char raw[16];
            double loss;
            if (sscanf(line.c_str(), "step %*d: loss %8s %lf", raw, &loss) == 2) found.push_back({raw, loss});
        }
        return found;
    }

    static std::string name_of(size_t kind, int zero) {
        return "kind-" + std::to_string(kind) + "-zero-" + std::to_string(zero);
    }

    /* All kinds at stages 0 to 3, beside one rank. */
    void expect_near(const std::vector<Kind> &kinds, int ranks) {
        std::map<std::string, std::string> lines, alone;
        std::vector<std::vector<Tensor>> wanted;
        std::vector<std::string> said;
        for (size_t k = 0; k < kinds.size(); k++) alone[name_of(k, 0)] = model + sums + kinds[k].options;
        for (auto &[name, line] : alone) line += " @make-tuning=" + here.at("tuning-" + name);
        const auto one = train(1, alone);
        for (size_t k = 0; k < kinds.size(); k++) {
            said.push_back(one.at(name_of(k, 0)));
            wanted.push_back(tensors(name_of(k, 0), said[k]));
            for (int zero = 0; zero < 4; zero++)
                lines[name_of(k, zero)] = model + sums + kinds[k].options + " zero=" + std::to_string(zero) +
                                          with_tuning(here.at("tuning-" + name_of(k, 0)));
        }
        const auto several = train(ranks, lines);
        for (size_t k = 0; k < kinds.size(); k++)
            for (int zero = 0; zero < 4; zero++) {
                SCOPED_TRACE(kinds[k].options + ", " + std::to_string(ranks) + " ranks, stage " + std::to_string(zero));
                const std::string &text = several.at(name_of(k, zero));
                expect_losses(losses(text), losses(said[k]), kinds[k].of_losses);
                expect_tensors(tensors(name_of(k, zero), text), wanted[k], kinds[k]);
            }
    }

    static void expect_losses(const std::vector<std::pair<std::string, double>> &found,
                              const std::vector<std::pair<std::string, double>> &wanted, double tolerance) {
        ASSERT_EQ(found.size(), wanted.size());
        ASSERT_FALSE(found.empty());
        EXPECT_EQ(found[0].first, wanted[0].first)
            << "the first loss: " << found[0].second << ", not " << wanted[0].second;
        for (size_t i = 1; i < found.size(); i++)
            EXPECT_LE(std::fabs(found[i].second - wanted[i].second), tolerance * wanted[i].second) << "step " << i + 1;
    }

    static void expect_tensors(const std::vector<Tensor> &found, const std::vector<Tensor> &wanted, const Kind &kind) {
        ASSERT_EQ(found.size(), wanted.size());
        for (size_t i = 0; i < found.size(); i++)
            if (wanted[i].name.rfind(kind.prefix, 0) == 0) {
                EXPECT_LE(relative_error(found[i].values, wanted[i].values), kind.tolerance) << wanted[i].name;
            }
    }
};

/* Without --deterministic-reduce gradients are the same micro-batches', added in another order: of n terms, so that
 * they are off by 2 u sqrt(n) of their size at most (support.h). Terms are rows, of which 12 x 16 are summed in fp32
 * also where weights are bf16; of gradients in bf16 the 12 sums of micro-batches. After a step the first moment is the
 * gradient, but for a factor. In fp64 all of that is so small that four steps add it up, for whatever they leave
 * behind, and that losses, which are reported in fp32, are off by an epsilon at most. In fp32 further steps round anew,
 * all the way through the model: three of them do so too where steps are captured and launched as graphs. */
TEST_F(Sums, AreWithinRoundingOfOneRanks) {
    const loom_gpt_config shape = gpt_shape(2, 2, 32, 16, LOOM_BYTE_VOCABULARY);
    const double rows = std::sqrt(12.0 * 16), path = std::sqrt(whole_path(shape, 12, 16));
    const double f64 = 4 * 2 * 0x1p-53 * rows, f32 = 2 * 0x1p-24 * rows, steps = 3 * 2 * 0x1p-24 * path;
    std::vector<Kind> kinds = {
        {"device=oracle @steps=4", "", f64, 0x1p-23},
        {"device=cpu @steps=1", "first-moments", f32, 0},
        {"device=cpu dtype=bf16 @steps=1", "first-moments", f32, 0},
        {"device=cpu dtype=bf16 grad-dtype=bf16 @steps=1", "first-moments", 2 * 0x1p-9 * std::sqrt(12.0), 0}};
    const bool full = support::full();
    if (full && !sanitized) expect_near(kinds, 2);
    if (!full) kinds.resize(2); /* make test has one of each CPU device, and ranks that are no power of two */
    if (full) expect_near(kinds, 4);
    if (full) kinds.push_back({"device=cuda @steps=3", "", steps, steps});
    expect_near(kinds, 3);
}

/* ------------------------------------------------------------------------------------------------------ the whole matrix */

/* Stages, policies, precisions and numbers of ranks: all of them. */
class Matrix : public Trainings {
  protected:
    static std::string no_time() {
        return !full() ? "make test-full runs it" : sanitized ? "runs without sanitizers" : "";
    }

    void expect_all(const std::string &device, const Strings &offloads) {
        for (const int ranks : {2, 4})
            for (const char *precision : {"dtype=fp32", "dtype=bf16", "dtype=fp16"}) {
                std::vector<Training> all;
                for (int zero = 0; zero < 4; zero++)
                    for (const std::string &policy : policies)
                        for (const std::string &offload : offloads)
                            all.push_back({"device=" + device + (device == "cuda" && zero < 3 ? " n-layer=2 " : " ") +
                                               precision + " batch=4 micro-batch=1",
                                           zero_and_policy(zero, policy) + offload});
                expect_bits_of_one_rank(all, {ranks}, "LOOM_EMULATION_SCHEDULE=random:" + std::to_string(ranks));
            }
    }
};

TEST_F(Matrix, HasTheBitsOfOneRankOnTheCpu) {
    if (!no_time().empty()) GTEST_SKIP() << no_time();
    expect_all("cpu", {""});
}

TEST_F(Matrix, HasTheBitsOfOneRankOnEmulatedCuda) {
    if (!no_time().empty()) GTEST_SKIP() << no_time();
    expect_all("cuda", {"", " offload=activations"});
}

/* ------------------------------------------------------------------------------------------------------------ the program */

/* As users start it. */
class Program : public Ranks {
  protected:
    const std::string gptloom = fs::canonical(folder() / "../gptloom").string();
    const std::string run = gptloom +
                            " train --data text.txt --n-layer 2 --n-head 2 --n-embd 32 --block-size 16 --batch 8 "
                            "--micro-batch 1 --threads 1 --device cpu --schedule constant --warmup 0 "
                            "--steps 100000 --deterministic-reduce ";
    const std::string rest = "--val-every 2 --sample-every 4 --sample-tokens 20 ";

    static Strings lines_of(const std::string &text, const std::string &with = "") {
        Strings found;
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);)
            if (line.find(with) != std::string::npos) found.push_back(line);
        return found;
    }

    void works(const std::string &command) {
        const Outcome o = shell("timeout -k 2 300 " + command);
        EXPECT_EQ(o.status, 0) << command << "\n" << o.err;
        EXPECT_EQ(o.err, "") << command;
    }

    /* One line of ours, with these words; under mpirun, which adds lines of its own, each rank may say it. */
    void refuses(const std::string &command, const Strings &words, bool by_all = false) {
        const Outcome o = shell("timeout -k 2 300 " + command);
        SCOPED_TRACE(command);
        EXPECT_EQ(o.status, 2) << o.err;
        std::set<std::string> said;
        const Strings ours = lines_of(o.err, "gptloom: ");
        for (const std::string &line : ours)
            said.insert(line.substr(0, 14) == "gptloom: rank " && by_all ? line.substr(line.find(':', 14)) : line);
        EXPECT_EQ(said.size(), 1u) << o.err;
        EXPECT_TRUE(by_all || ours.size() == 1) << o.err;
        for (const std::string &word : words)
            EXPECT_NE(o.err.find(word), std::string::npos) << "'" << o.err << "' lacks '" << word << "'";
    }

    /* The lines of a run's metrics, without what they say of time. */
    Strings metrics(const std::string &out) const {
        Strings lines = lines_of(read_file(here.at(out + "/metrics.jsonl")));
        for (std::string &line : lines)
            for (const char *key :
                 {", \"ms\"", ", \"tokens_per_s\"", ", \"ms_waited\"", ", \"ms_spread\"", ", \"comm_bytes\""}) {
                const size_t at = line.find(key);
                if (at != std::string::npos) line.erase(at, line.find_first_of(",}", at + 2) - at);
            }
        return lines;
    }

    /* A checkpoint's tensors. */
    std::string state(const std::string &out, const std::string &step = "latest") const {
        const std::string at = here.at(out + "/checkpoints/" + step + "/");
        return read_file(at + "model.safetensors") + read_file(at + "optimizer.safetensors");
    }

    /* The same, as rows of a plan under its key. */
    static std::string rows(const std::string &json, const std::string &key) {
        const size_t at = json.find("\"" + key + "\":"), begin = json.find('{', at);
        std::string found;
        for (const char c : json.substr(begin, json.find('}', begin) - begin))
            if (!isspace((unsigned char)c)) found += c;
        return found;
    }
};

/* Everything that a run of four ranks leaves is what one rank leaves; what is said of ranks comes on top. It then goes
 * on with one rank and with two, at other stages, to the same bits. */
TEST_F(Program, RunsOfRanksLeaveWhatOneRankLeaves) {
    works(run + rest + "-q --out one --stop-after 4");
    const Outcome o = shell("timeout -k 2 300 " + run + rest + "--out four --stop-after 4 --ranks 4 --zero 2");
    ASSERT_EQ(o.status, 0) << o.err;
    EXPECT_EQ(o.err, "");
    EXPECT_EQ(lines_of(o.out, "trains in").size(), 1u) << "one rank prints:\n" << o.out;
    EXPECT_EQ(lines_of(o.out, "stopped after step 4").size(), 1u) << o.out;
    EXPECT_NE(o.out.find("4 ranks; ZeRO stage 2; deterministic reduction"), std::string::npos) << o.out;
    EXPECT_TRUE(state("four") == state("one")) << "the checkpoints differ";
    EXPECT_EQ(metrics("four"), metrics("one"));
    EXPECT_EQ(lines_of(metrics("one")[1], "val_loss").size(), 1u);
    EXPECT_EQ(read_file(here.at("four/samples.txt")), read_file(here.at("one/samples.txt")));

    const std::string raw = read_file(here.at("four/metrics.jsonl"));
    EXPECT_EQ(lines_of(raw, "\"ms_waited\": ").size(), 4u);
    EXPECT_EQ(lines_of(raw, "\"ms_spread\": ").size(), 4u);
    EXPECT_EQ(read_file(here.at("one/metrics.jsonl")).find("ms_waited"), std::string::npos);
    EXPECT_FALSE(fs::exists(here.at("one/logs")));
    for (int r = 0; r < 4; r++) {
        const Strings log = lines_of(read_file(here.at("four/logs/rank-000" + std::to_string(r) + ".log")));
        ASSERT_EQ(log.size(), 6u);
        EXPECT_EQ(log[0].find("rank " + std::to_string(r) + " of 4, process "), 0u) << log[0];
        EXPECT_EQ(log[4].find("step 4  loss "), 0u) << log[4];
        EXPECT_EQ(log[5], "ended in order");
    }

    fs::copy(here.at("four"), here.at("two"), fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    works(gptloom + " train -q --resume --out one --stop-after 4");
    works(gptloom + " train -q --resume --out four --stop-after 4 --zero 0");
    works(gptloom + " train -q --resume --out two --stop-after 4 --ranks 2 --zero 3");
    EXPECT_TRUE(state("four") == state("one")) << "the checkpoints differ";
    EXPECT_TRUE(state("two") == state("one")) << "the checkpoints differ";
    EXPECT_EQ(metrics("four"), metrics("one"));
    EXPECT_EQ(metrics("two"), metrics("one"));

    fs::remove(here.at("text.txt")); /* which a run that is done does not need */
    works(gptloom + " train -q --resume --out two --ranks 2 --steps 8");
}

/* The same by a GPU's ranks, which share it, started by mpirun; with one rank's tuning cache. */
TEST_F(Program, RunsOfRanksThatShareAGpuLeaveWhatOneRankLeaves) {
    const std::string emulated = fs::canonical(folder() / "../emulated/gptloom").string() + run.substr(gptloom.size()) +
                                 rest + "-q --device cuda --dtype bf16 --steps 4 --out ";
    works(emulated + "one");
    const Outcome o = shell(by_mpirun + "-np 2 " + emulated + "two --zero 3 --tuning one/tuning.txt");
    EXPECT_EQ(o.status, 0) << o.err;
    EXPECT_EQ(o.out + o.err, "");
    EXPECT_TRUE(state("two") == state("one")) << "the checkpoints differ";
    EXPECT_EQ(metrics("two"), metrics("one"));
    EXPECT_EQ(read_file(here.at("two/samples.txt")), read_file(here.at("one/samples.txt")));
}

/* What each rank takes is what the plan says, to the byte, here and where it is asked for. */
TEST_F(Program, PlansAreWhatRanksTake) {
    for (const char *of : {"--ranks 2 --zero 1 ", "--ranks 2 --zero 3 --recompute block "}) {
        works("rm -rf run && " + run + "-q --out run --stop-after 1 " + of);
        works(gptloom +
              " plan --n-layer 2 --n-head 2 --n-embd 32 --block-size 16 --vocab-size 257 --batch 8 --micro-batch 1 " +
              "--threads 1 --on cpu --no-measure --deterministic-reduce --recompute none --json plan.json " + of);
        std::string made = rows(read_file(here.at("run/plan.json")), "bytes");
        made.erase(made.find(",\"all\":"));
        EXPECT_EQ(made, rows(read_file(here.at("plan.json")), "memory")) << of;
        EXPECT_NE(made.find("\"communication\":"), std::string::npos) << made;
    }
}

/* A run of one rank that fitted whole goes on with two, which is told; and then with one, to what it was with two. */
TEST_F(Program, ARunWhoseMicroBatchNobodyGaveGoesOnWithOtherRanks) {
    works(
        gptloom +
        " train --data text.txt --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch 8 --threads 1 --device cpu "
        "--steps 9 --stop-after 1 -q --out run");
    const auto goes_on = [&](const std::string &flags) {
        const Outcome o = shell("timeout -k 2 300 " + gptloom + " train --resume --out run --stop-after 1 " + flags);
        EXPECT_EQ(o.status, 0) << o.err;
        return o.out + o.err;
    };
    const std::string two = goes_on("--ranks 2"), one = goes_on("");
    EXPECT_NE(two.find("--micro-batch, --ranks: changed, so from here on the bits"), std::string::npos) << two;
    EXPECT_NE(two.find("4 at a time"), std::string::npos) << two;
    EXPECT_NE(one.find("4 at a time"), std::string::npos) << one;
}

TEST_F(Program, MistakesAreOneLine) {
    const std::string quick = gptloom +
                              " train --data text.txt --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch 8 "
                              "--micro-batch 1 --threads 1 --device cpu --steps 2 -q --out run ";
    refuses(quick + "--ranks 3 --batch 12 --deterministic-reduce", {"--deterministic-reduce", "power of two", "3"});
    refuses(quick + "--ranks 2 --batch 12 --deterministic-reduce", {"--deterministic-reduce", "power of two", "12"});
    refuses(quick + "--ranks 4 --batch 6", {"--ranks: 4", "--batch, 6"});
    refuses(quick + "--ranks 4 --micro-batch 4", {"--micro-batch: 4", "2"});
    refuses(quick + "--ranks 2 --comm self", {"--comm self", "--ranks 2 "});
    refuses(quick + "--ranks 2 --comm nccl", {"--comm nccl", "--device cpu", "--comm mpi"});
    refuses("env PATH=/nowhere " + quick + "--ranks 2", {"mpirun", "apt-get install"});
    const std::string as_torchrun = "env RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=localhost MASTER_PORT=1 ";
    refuses(as_torchrun + quick + "--comm mpi", {"one of several ranks", "WORLD_SIZE is 2"});
    refuses("env SLURM_STEP_NUM_TASKS=4 " + quick, {"one of several ranks", "--mpi=pmix"});
    EXPECT_FALSE(fs::exists(here.at("run"))) << "something was written";
}

/* How mpirun ends is known too where this process was started to ignore its children. */
TEST_F(Program, MpirunsFailureIsNeverOverlooked) {
    fs::create_directory(here.at("bin"));
    write_file(here.at("bin/mpirun"), "#!/bin/sh\nexit 3\n");
    fs::permissions(here.at("bin/mpirun"), fs::perms::owner_all);
    for (const char *trap : {"", "trap '' CHLD; "}) {
        const Outcome o = shell("(" + std::string(trap) + "PATH=\"" + here.at("bin") + ":$PATH\"; exec " + run +
                                "--out run --ranks 2)");
        EXPECT_EQ(o.status, 3) << trap << o.err;
        EXPECT_NE(o.err.find("gptloom: the ranks ended with status 3"), std::string::npos) << trap << o.err;
    }
}

TEST_F(Program, MistakesUnderMpirunEndAllRanks) {
    const std::string quick = " train --data text.txt --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch 8 "
                              "--micro-batch 1 --threads 1 --device cpu --steps 2 -q --out run ";
    const std::string one = "-np 1 " + gptloom + quick;
    refuses(by_mpirun + "-np 2 " + gptloom + quick + "--ranks 4", {"--ranks: 4", "2 were started"}, true);
    refuses(by_mpirun + "-np 2 " + gptloom + quick + "--comm self", {"--comm self", "one of several ranks"}, true);
    refuses(by_mpirun + one + ": " + one + "--lr 1e-2", {"the configuration of rank 1", "rank 0"});
    refuses(by_mpirun + one + ": " + one + "--stop-after 1", {"the step to begin or stop at of rank 1", "rank 0"});
    write_file(here.at("other.txt"), some_text(2001));
    refuses(by_mpirun + one + ": " + one + "--data other.txt", {"--data of rank 1", "rank 0"});
    fs::create_directory(here.at("bin"));
    fs::copy(gptloom, here.at("bin/gptloom"));
    fs::copy(fs::canonical(folder() / "../libgptloom_mpi.so"), here.at("bin/libgptloom_mpi.so"));
    std::ofstream(here.at("bin/gptloom"), std::ios::app) << "x";
    refuses(by_mpirun + one + ": -np 1 bin/gptloom" + quick, {"the program of rank 1", "rank 0"});
    EXPECT_FALSE(fs::exists(here.at("run"))) << "something was written";
}

/* mpirun ends its ranks where its stdout breaks, so it gets one that does not. */
TEST_F(Program, AStdoutThatBreaksEndsNoRanks) {
    const std::string ranks = run + "--ranks 2 --stop-after 60 --out ";
    const Outcome o = shell("{ (" + ranks + "pipe; echo $? >status) | head -c 1; " + ranks + "full >/dev/full; }");
    EXPECT_EQ(o.status, 0) << o.err;
    EXPECT_EQ(read_file(here.at("status")), "0\n") << o.err;
    EXPECT_EQ(lines_of(o.err, "gptloom: standard output: could not be written (").size(), 2u) << o.err;
    for (const char *out : {"pipe", "full"})
        EXPECT_EQ(fs::read_symlink(here.at(std::string(out) + "/checkpoints/latest")), "step-00000060");
}

/* Ctrl-C at the launcher saves and ends all ranks cleanly, and so does Slurm's warning, after which the job is to go
 * on: one rank goes on to the bits of a run that never stopped. */
TEST_F(Program, CtrlCSavesAndEndsAllRanks) {
    for (const auto &[number, status] : {std::pair(SIGINT, 130), {SIGUSR1, 0}}) {
        const std::string out = "run-" + std::to_string(number), metrics_path = here.at(out + "/metrics.jsonl");
        const pid_t child = fork();
        if (child == 0) {
            const std::string command = "cd '" + here.path().string() + "' && export ASAN_OPTIONS=detect_leaks=0 " +
                                        open_mpi_files(here.path()) + " && exec " + run + "--out " + out +
                                        " --ranks 2 --zero 3 >out 2>err </dev/null";
            signal(SIGINT, SIG_DFL); /* a shell's job in the background has it ignored */
            execl("/bin/sh", "sh", "-c", command.c_str(), (char *)nullptr);
            _exit(121);
        }
        int ended = -1;
        const auto has_ended = [&] { return waitpid(child, &ended, WNOHANG) == child; };
        const auto steps = [&] { return fs::exists(metrics_path) ? lines_of(read_file(metrics_path)).size() : 0; };
        int looks = 0;
        while (steps() < 3 && ++looks < 50 * (int)seconds_to_hang && !has_ended()) usleep(20000);
        ASSERT_EQ(ended, -1) << read_file(here.at("err"));
        kill(child, number);
        for (looks = 0; !has_ended(); usleep(20000))
            if (++looks == 50 * (int)seconds_to_hang) kill(child, SIGKILL);
        EXPECT_TRUE((WIFEXITED(ended) ? WEXITSTATUS(ended) : 128 + WTERMSIG(ended)) == status)
            << ended << "\n"
            << read_file(here.at("err"));
        const size_t done = steps();
        ASSERT_GE(done, 3u);
        ASSERT_LT(done, 100000u);
        EXPECT_NE(read_file(here.at("err")).find("gptloom: interrupted: "), std::string::npos);
        EXPECT_EQ(read_file(here.at("out")).find("to be continued") != std::string::npos, true);
        for (const char *rank : {"0", "1"})
            EXPECT_NE(read_file(here.at(out + "/logs/rank-000" + rank + ".log")).find("ended in order\n"),
                      std::string::npos);
        works(gptloom + " train -q --resume --stop-after 2 --zero 0 --out " + out);
        works(run + "-q --out whole-" + out + " --stop-after " + std::to_string(done + 2));
        EXPECT_TRUE(state(out) == state("whole-" + out)) << "the checkpoints differ, after " << done << " and two more";
    }
}

} // namespace
