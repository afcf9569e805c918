/* Training with NCCL between emulated GPUs, as a user starts it: by mpirun, and as torchrun does. The stand-in for NCCL
 * (nccl_standin.c) moves the data; what it was asked for, in which order and beside what, is looked at here. */
#include "support_ranks.h"
#include "support_train.h"

#include <algorithm>
#include <map>
#include <set>

namespace {

using namespace support;

/* ------------------------------------------------------------------------------------------------------------- runs */

enum { LAYERS = 4, CHANNELS = 32, BATCH = 8, STEPS = 3 };

/* A text, and a run of one rank on it, whose tuning cache all others take: with them come the same bits. */
struct Reference {
    TemporaryDirectory directory;
    Reference() {
        write_file(directory.at("text"), some_text(6000, 1));
    }
    std::string flags() const {
        return "--data " + directory.at("text") + " --n-layer " + std::to_string(LAYERS) + " --n-head 2 --n-embd " +
               std::to_string(CHANNELS) + " --block-size 16 --seq-len 16 --batch " + std::to_string(BATCH) +
               " --micro-batch 2 --warmup 1 --lr 1e-3 --device cuda --val-every 0 --sample-every 0 --seed 7 --quiet";
    }
    /* The run of these settings, made when it is asked for first. */
    const std::string &run(const std::string &settings) {
        std::string &place = runs[settings];
        if (!place.empty()) return place;
        place = directory.at("run" + std::to_string(runs.size()));
        const std::string command = "env LOOM_EMULATION_THREADS=1 " + program() + " train " + flags() + " " + settings +
                                    " --deterministic-reduce --out " + place + " >" + place + ".log 2>&1";
        if (std::system(command.c_str()) != 0) throw std::runtime_error(read_file(place + ".log"));
        return place;
    }
    static std::string name() {
        return "../emulated/gptloom";
    }
    static std::string program() {
        return (folder() / name()).lexically_normal().string();
    }
    std::map<std::string, std::string> runs;
};

const std::string steps = "--steps " + std::to_string(STEPS);

/* Weights and moments of a run's last checkpoint, and losses on the way: all that it leaves but times. */
std::string results(const std::string &run) {
    const fs::path last = fs::path(run) / "checkpoints/latest";
    std::string all = read_file(last / "model.safetensors") + read_file(last / "optimizer.safetensors");
    std::istringstream metrics(read_file(fs::path(run) / "metrics.jsonl"));
    for (std::string line; std::getline(metrics, line);) all += line.substr(0, line.find(", \"ms\"")) + "\n";
    return all;
}

class NcclTrain : public RanksTest {
  protected:
    static void SetUpTestSuite() {
        reference = new Reference();
    }
    static void TearDownTestSuite() {
        delete reference;
        reference = nullptr;
    }
    void SetUp() override {
        ASSERT_TRUE(fs::exists(Reference::program())) << Reference::program();
    }
    /* The arguments of a run in here/`out`, which chooses as the reference of these settings did; a resumed one does so
     * anyway. */
    std::string train(const std::string &out, const std::string &more, const std::string &settings = steps) {
        const bool resumes = more.find("--resume") != std::string::npos;
        return "train " + reference->flags() + " " + settings + " --comm nccl --out " + here.at(out) +
               (resumes ? " " : " --tuning " + reference->run(settings) + "/tuning.txt ") + more;
    }
    static std::string gpus(int n) {
        return "LOOM_EMULATION_THREADS=1 LOOM_EMULATION_GPUS=" + std::to_string(n);
    }
    std::string calls_to(const std::string &out) {
        return " NCCL_STANDIN_LOG=" + here.at(out + ".calls");
    }
    /* As torchrun starts it; the stand-in's log is at here/`out`.calls.R. */
    Outcome by_torchrun(int ranks, const std::string &out, const std::string &more, const std::string &environment = "",
                        const std::string &settings = steps) {
        return torchrun(ranks, Reference::name(), train(out, more, settings),
                        gpus(ranks) + calls_to(out) + " " + at_port(free_port()) + " " + environment);
    }
    Outcome by_mpirun(int ranks, const std::string &out, const std::string &more, const std::string &environment = "",
                      const std::string &settings = steps) {
        return mpirun(ranks, Reference::name(), train(out, more, settings),
                      gpus(ranks) + calls_to(out) + " LOOM_NCCL=" + standin() + " " + environment);
    }
    void expect_like_one_rank(const Outcome &o, const std::string &out, const std::string &settings = steps) {
        ASSERT_EQ(o.status, 0) << o.output;
        EXPECT_EQ(o.output, "");
        EXPECT_TRUE(results(here.at(out)) == results(reference->run(settings))) << "other bits than one rank's";
    }
    static bool mpi_is_here() {
        return have("mpirun") && fs::exists(folder() / "../libgptloom_mpi.so");
    }

    static Reference *reference;
};

Reference *NcclTrain::reference = nullptr;

std::string stage(int zero) {
    return "--zero " + std::to_string(zero);
}

/* ------------------------------------------------------------------------------------------------------- calls in words */

struct Call {
    std::string kind;
    int64_t count = 0, from = 0, to = 0; /* places in the device's memory, in bytes */
    int type = 0, peer = -1, comm = 0;
    int64_t kernels = 0; /* given to the device before */
    std::string name;    /* as below */
};

std::vector<Call> read_calls(const std::string &path) {
    std::vector<Call> calls;
    std::istringstream lines(read_file(path));
    for (std::string line; std::getline(lines, line);) {
        Call c;
        std::istringstream words(line);
        words >> c.kind >> c.count;
        for (std::string word; words >> word;) {
            if (word == "type") words >> c.type;
            if (word == "peer") words >> c.peer;
            if (word == "comm") words >> c.comm, words.ignore(1);
            if (word == "from") words >> c.from;
            if (word == "to") words >> c.to, words.ignore(1), words >> c.kernels;
        }
        calls.push_back(c);
    }
    return calls;
}

/* Names the calls that are chosen by the places that they have: the lowest place has the first name, and so on. */
void name_by_place(std::vector<Call> &calls, const std::function<bool(const Call &)> &chosen, int64_t Call::*place,
                   const std::vector<std::string> &names) {
    std::set<int64_t> places;
    for (const Call &c : calls)
        if (chosen(c)) places.insert(c.*place);
    ASSERT_EQ(places.size(), names.size()) << "in so many places lies what is named " << names[0] << " ...";
    for (Call &c : calls)
        if (chosen(c)) c.name = names[(size_t)std::distance(places.begin(), places.find(c.*place))];
}

/* Buckets: 0 the embeddings, 1 .. 4 the blocks, 5 the last layernorm. */
std::vector<std::string> of_buckets(const std::string &kind, std::initializer_list<int> buckets) {
    std::vector<std::string> names;
    for (const int b : buckets) names.push_back(kind + std::to_string(b));
    return names;
}

/* What a step asks NCCL for, in its order, in words:
 *     A4   all-reduce of bucket 4's gradients
 *     R4   reduce-scatter of them, into this rank's share; r4: to where they are added to it from. There blocks have one
 *          of two slots in turn: r13, r24
 *     X4   exchange of the parts of bucket 4's gradients with the other rank;  B4  the sums back to all
 *     G4   gathering bucket 4's weights
 *     losses, squares (of the gradients, all buckets')
 *     .    kernels were given to the device in between */
class Timeline {
  public:
    Timeline(const std::string &path, int zero, bool deterministic, int ranks) : calls_(read_calls(path)) {
        const auto kind = [](const char *which) {
            return [=](const Call &c) { return c.kind == which && c.type == 7; };
        };
        const auto weights = [](const Call &c) { return c.kind == "AllGather" && c.type == 7 && c.count >= 1024; };
        const std::initializer_list<int> buckets = {0, 1, 2, 3, 4, 5};
        loom_layout layout;
        const loom_gpt_config shape = gpt_shape(LAYERS, 2, CHANNELS, 16, 257);
        require([&](loom_error *error) { return loom_layout_create(&layout, &shape, ranks, error); });
        for (int b = 0; b < layout.n_buckets; b++) elements_.push_back(layout.bucket[b].elements);
        int64_t squares = 0;
        for (int b = 0; b < layout.n_buckets; b++) squares += layout.bucket[b].blocks;
        loom_layout_destroy(&layout);

        for (Call &c : calls_)
            if (c.kind == "AllGather" && c.type == 7)
                c.name = c.count == BATCH / ranks ? "losses" : "?";
            else if (c.kind == "AllReduce" && c.count == squares)
                c.name = "squares";
        if (deterministic)
            name_by_place(calls_, kind("Send"), &Call::from, of_buckets("X", buckets));
        else if (zero == 0)
            name_by_place(calls_, kind("AllReduce"), &Call::from, of_buckets("A", buckets));
        else if (zero == 1)
            name_by_place(calls_, kind("ReduceScatter"), &Call::from, of_buckets("R", buckets));
        else
            name_by_place(calls_, kind("ReduceScatter"), &Call::to,
                          {"R0", "R1", "R2", "R3", "R4", "R5", "r0", "r13", "r24", "r5"});
        /* Blocks' weights of stage 3 lie behind what is whole, share by share. */
        if (zero == 3)
            name_by_place(calls_, weights, &Call::from, of_buckets("G", {0, 5, 1, 2, 3, 4}));
        else if (zero > 0 || deterministic)
            name_by_place(calls_, weights, &Call::to, of_buckets(zero == 0 ? "B" : "G", buckets));
    }

    /* From behind one step's losses to the next ones'. */
    std::string between_losses(int first) const {
        std::string text;
        int losses = 0;
        const Call *before = nullptr;
        for (const Call &c : calls_) {
            if (losses == first && !c.name.empty()) {
                if (before && c.kernels > before->kernels) text += " .";
                text += " " + c.name;
            }
            if (!c.name.empty()) before = losses == first ? &c : nullptr;
            if (c.name == "losses") {
                losses++;
                before = losses == first ? &c : nullptr;
            }
        }
        return text;
    }
    const std::vector<Call> &calls() const {
        return calls_;
    }
    const std::vector<int64_t> &elements() const {
        return elements_;
    }

  private:
    std::vector<Call> calls_;
    std::vector<int64_t> elements_;
};

/* The calls that communicate, and groups, as one line each without what lies elsewhere on other ranks. */
std::vector<std::string> same_on_all(const std::vector<Call> &calls) {
    std::vector<std::string> lines;
    for (const Call &c : calls)
        lines.push_back(c.kind + " " + std::to_string(c.count) + " type " + std::to_string(c.type) + " comm " +
                        std::to_string(c.comm));
    return lines;
}

/* The number, among a rank's calls that communicate, of the one that gathers a step's losses. */
int number_of_losses(const std::string &log, int of_step) {
    int number = 0, losses = 0;
    for (const Call &c : read_calls(log)) {
        number += c.comm != 0;
        losses += c.kind == "AllGather" && c.type == 7 && c.count == BATCH / 2;
        if (losses == of_step) return number;
    }
    throw std::runtime_error("there is no such call in " + log);
}

/* When each operation's turn came: how many kernels had begun. A group's are one operation. */
std::vector<int64_t> read_turns(const std::string &path) {
    std::vector<int64_t> turns;
    std::istringstream lines(read_file(path));
    for (std::string line; std::getline(lines, line);)
        turns.push_back(std::atol(line.c_str() + line.find("after ") + 6));
    return turns;
}

/* --------------------------------------------------------------------------------------------- what NCCL is asked for */

struct Case {
    friend void PrintTo(const Case &c, std::ostream *out) {
        *out << c.step;
    }
    int zero;
    bool deterministic;
    const char *step; /* as Timeline tells it */
};

/* Two micro-batches on each of two ranks. Reductions begin in the midst of backward, and weights are gathered while
 * others are updated, or one block ahead of where they are used. */
const Case cases[] = {
    {0, false, " . A5 . A4 . A3 . A2 . A1 . A0 . losses"},
    {1, false, " squares . G0 . G1 . G2 . G3 . G4 . G5 . R5 . R4 . R3 . R2 . R1 . R0 . losses"},
    {2, false,
     " squares . G0 . G1 . G2 . G3 . G4 . G5 . R5 . R4 . R3 . R2 . R1 . R0"
     " . r5 . r24 . r13 . r24 . r13 . r0 . losses"},
    {3, false,
     " squares . G0 . G5 G1 . G2 . G3 . G4 . R5 . R4 G2 . R3 G1 . R2 . R1 . R0"
     " . G3 . G4 . r5 . r24 G2 . r13 G1 . r24 . r13 . r0 . losses"},
    {0, true, " . X5 . X4 . X3 . B4 X2 . B3 X1 . X0 . B5 . B2 . B1 . B0 . losses"},
    {1, true, " squares . G0 . G1 . G2 . G3 . G4 . G5 . X5 . X4 . X3 . X2 . X1 . X0 . losses"},
    {2, true, " squares . G0 . G1 . G2 . G3 . G4 . G5 . X5 . X4 . X3 . X2 . X1 . X0 . losses"},
    {3, true,
     " squares . G0 . G5 G1 . G2 . G3 . G4 . G2 . G1"
     " . G3 . G4 . X5 . X4 G2 . X3 G1 . X2 . X1 . X0 . losses"},
};

class NcclCalls : public NcclTrain, public testing::WithParamInterface<Case> {
  protected:
    /* How many elements a named call should have. */
    static int64_t expected_count(const Call &c, const std::vector<int64_t> &elements, int ranks) {
        const int64_t whole = elements[(size_t)(c.name[1] - '0')];
        return c.name[0] == 'A' ? whole : whole / ranks;
    }
};

TEST_P(NcclCalls, AreThoseOfTheStage) {
    const auto [zero, deterministic, expected] = GetParam();
    /* The order in which streams run changes nothing that is asked for; where bits are compared it is one that shows a
     * wait that is missing. */
    const std::string schedule = !deterministic ? "order" : zero % 2 ? "reverse" : "random:1";
    const Outcome o = by_torchrun(2, "run", stage(zero) + (deterministic ? " --deterministic-reduce" : ""),
                                  "LOOM_EMULATION_SCHEDULE=" + schedule);
    ASSERT_EQ(o.status, 0) << o.output;
    EXPECT_EQ(o.output, "");
    if (deterministic) expect_like_one_rank(o, "run");
    std::vector<std::string> first;
    for (int rank = 0; rank < 2; rank++) {
        const std::string path = here.at("run.calls." + std::to_string(rank));
        const Timeline timeline(path, zero, deterministic, 2);
        const std::vector<Call> &calls = timeline.calls();
        for (int step = 1; step < STEPS; step++) EXPECT_EQ(timeline.between_losses(step), expected) << "rank " << rank;
        EXPECT_EQ(calls.front().kind, "CommInitRankConfig");
        EXPECT_EQ(calls[calls.size() - 2].kind + calls.back().kind, "CommFinalizeCommDestroy");
        if (rank == 0) first = same_on_all(calls);
        EXPECT_EQ(same_on_all(calls), first) << "rank " << rank;
        const std::vector<int64_t> turns = read_turns(path + ".ran");
        size_t turn = 0;
        bool in_group = false;
        for (size_t i = 0; i < calls.size(); i++) {
            const Call &c = calls[i];
            EXPECT_NE(c.kind, "wrong:");
            if (c.kind == "GroupStart" || c.kind == "GroupEnd") in_group = c.kind == "GroupStart";
            if (c.comm == 0) continue;
            EXPECT_EQ(c.comm, 1);
            EXPECT_NE(c.name, "?") << c.kind << " of " << c.count;
            if (!c.name.empty() && strchr("ARrXGB", c.name[0])) {
                EXPECT_EQ(c.count, expected_count(c, timeline.elements(), 2)) << c.name;
            }
            EXPECT_EQ(in_group, c.kind == "Send" || c.kind == "Recv") << c.kind;
            /* Sends and receives of a group go side by side, of as many. */
            if (c.kind == "Recv") {
                EXPECT_EQ(calls[i - 1].kind, "Send");
                EXPECT_EQ(calls[i - 1].count, c.count);
                EXPECT_EQ(c.peer, 1 - rank);
                EXPECT_EQ(calls[i - 1].peer, 1 - rank);
                continue;
            }
            /* It takes nothing that is not there. What the hosts ask each other, which has no name, waits for no
             * kernel. */
            ASSERT_LT(turn, turns.size());
            const int64_t ran = turns[turn++];
            EXPECT_GE(ran, c.name.empty() ? 0 : c.kernels) << "call " << i << ", " << c.kind << " " << c.name;
        }
        EXPECT_EQ(turn, turns.size());
    }
}

std::string name_of_case(const testing::TestParamInfo<Case> &info) {
    return "Stage" + std::to_string(info.param.zero) + (info.param.deterministic ? "Deterministic" : "");
}

INSTANTIATE_TEST_SUITE_P(Stages, NcclCalls, testing::ValuesIn(cases), name_of_case);

/* Where streams that could go on last put in first, all computing that does not wait for a reduction goes before it. At
 * stage 0 that is all of backward; where blocks' gradients have two slots in turn, that of two more blocks. */
TEST_F(NcclTrain, BackwardDoesNotWaitForReductions) {
    for (const int zero : {0, 2}) {
        const std::string out = "run" + std::to_string(zero);
        const Outcome o = by_torchrun(2, out, stage(zero) + " --cuda-graph off", "LOOM_EMULATION_SCHEDULE=reverse");
        ASSERT_EQ(o.status, 0) << o.output;
        const std::string path = here.at(out + ".calls.0");
        const Timeline timeline(path, zero, false, 2);
        const std::vector<int64_t> turns = read_turns(path + ".ran");
        size_t turn = 0;
        std::map<std::string, int64_t> given, begun; /* of the last step, by name */
        for (const Call &c : timeline.calls()) {
            if (c.comm == 0) continue;
            given[c.name] = c.kernels;
            begun[c.name] = turns.at(turn++);
        }
        if (zero == 0) {
            for (const char *name : {"A5", "A4", "A3", "A2", "A1"}) EXPECT_GE(begun[name], given["A0"]) << name;
        } else {
            EXPECT_GE(begun["R5"], given["R3"]);
            EXPECT_GE(begun["R4"], given["R3"]);
        }
    }
}

/* Where a rank is late by two seconds in step 2, the other one's GPU, whose metrics these are, stands still for what is
 * left of them when its own work is done: before the update at stage 0, and amid backward at stage 2, whose gradients
 * have to leave their slots. */
TEST_F(NcclTrain, TheTimeThatTheGpuStandsStillIsTold) {
    for (const int zero : {0, 2}) {
        const std::string out = "run" + std::to_string(zero);
        /* A reduction in the first half of step 2: the first one; or the second, behind squares and gathered weights.
         * */
        ASSERT_EQ(by_torchrun(2, "even" + std::to_string(zero), stage(zero)).status, 0);
        const int losses = number_of_losses(here.at("even" + std::to_string(zero) + ".calls.1"), 1);
        const std::string late = "1:" + std::to_string(losses + (zero == 0 ? 1 : 9));
        const Outcome o = by_torchrun(2, out, stage(zero), "NCCL_STANDIN_SLOW=" + late);
        ASSERT_EQ(o.status, 0) << o.output;
        std::istringstream metrics(read_file(fs::path(here.at(out)) / "metrics.jsonl"));
        int step = 0;
        for (std::string line; std::getline(metrics, line);) {
            double ms = 0, waited = -1, spread = -1;
            const size_t at = line.find("\"ms\""), at_waited = line.find("\"ms_waited\"");
            ASSERT_NE(at_waited, std::string::npos) << line;
            EXPECT_EQ(sscanf(line.c_str() + at, "\"ms\": %lf", &ms), 1) << line;
            EXPECT_EQ(sscanf(line.c_str() + at_waited, "\"ms_waited\": %lf, \"ms_spread\": %lf", &waited, &spread), 2);
            EXPECT_LE(waited, ms) << line;
            EXPECT_GE(spread, 0) << line;
            if (++step == 2) {
                EXPECT_GT(waited, 500) << line;
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------------------- the same bits */

/* Nor do graphs where the update is launched as one on each rank, ... */
TEST_F(NcclTrain, CapturedUpdatesChangeNoBit) {
    ASSERT_EQ(by_torchrun(2, "on", stage(0)).status, 0);
    ASSERT_EQ(by_torchrun(2, "off", stage(0) + " --cuda-graph off").status, 0);
    EXPECT_TRUE(results(here.at("off")) == results(here.at("on")));
}

/* ... nor where the norm is, and nor does MPI: a sum of two is the same in either order. */
TEST_F(NcclTrain, GraphsAndMpiChangeNoBit) {
    ASSERT_EQ(by_torchrun(2, "on", stage(1)).status, 0);
    ASSERT_EQ(by_torchrun(2, "off", stage(1) + " --cuda-graph off").status, 0);
    const std::string expected = results(here.at("on"));
    EXPECT_TRUE(results(here.at("off")) == expected) << "--cuda-graph off";
    if (!mpi_is_here()) return;
    const Outcome o = by_mpirun(2, "mpi", stage(1) + " --comm mpi");
    ASSERT_EQ(o.status, 0) << o.output;
    EXPECT_TRUE(results(here.at("mpi")) == expected) << "--comm mpi";
}

TEST_F(NcclTrain, FourRanksFindEachOtherByAFile) {
    expect_like_one_rank(torchrun(4, Reference::name(), train("run", stage(3) + " --deterministic-reduce"),
                                  gpus(4) + " LOOM_NCCL_ID=" + here.at("id")),
                         "run");
    EXPECT_FALSE(fs::exists(here.at("id")));
}

/* With one rank there is nobody to find and nothing to reduce. */
TEST_F(NcclTrain, OneRank) {
    expect_like_one_rank(torchrun(1, Reference::name(), train("run", stage(3) + " --deterministic-reduce"), gpus(1)),
                         "run");
    expect_like_one_rank(shell("env " + gpus(1) + " LOOM_NCCL=" + standin() + " " + Reference::program() + " " +
                               train("alone", " --deterministic-reduce")),
                         "alone");
}

class NcclTrainByMpi : public NcclTrain {
  protected:
    void SetUp() override {
        if (!mpi_is_here()) GTEST_SKIP() << "there is no Open MPI here";
        NcclTrain::SetUp();
    }
};

TEST_F(NcclTrainByMpi, TwoRanks) {
    expect_like_one_rank(by_mpirun(2, "run", stage(2) + " --deterministic-reduce"), "run");
}

/* ------------------------------------------------------------------------------------------------------- ranks that fail */

/* What a rank's log says last. */
std::string end_of_log(const std::string &run, int rank) {
    char name[32];
    snprintf(name, sizeof name, "logs/rank-%04d.log", rank);
    const std::string text = read_file(fs::path(run) / name);
    const size_t end = text.find_last_not_of('\n');
    return text.substr(text.rfind('\n', end) + 1);
}

TEST_F(NcclTrain, AKilledRankEndsTheOthersAndTheRunGoesOn) {
    const std::string more = stage(1) + " --deterministic-reduce --checkpoint-every 1";
    ASSERT_EQ(by_torchrun(2, "whole", more).status, 0);
    const int call = number_of_losses(here.at("whole.calls.1"), 2) - 5; /* an exchange's */
    const Outcome o = by_torchrun(2, "run", more + " --comm-timeout 10", "NCCL_STANDIN_DIE=1:" + std::to_string(call));
    EXPECT_EQ(o.status, 2) << o.output;
    ASSERT_EQ(lines_of(o.output).size(), 1u) << o.output;
    EXPECT_EQ(lines_of(o.output)[0].find("gptloom: rank 0 waited 10 s in step 2 for other ranks to come to exchange "),
              0u)
        << o.output;
    EXPECT_EQ(read_calls(here.at("run.calls.0")).back().kind, "CommAbort");
    EXPECT_EQ(end_of_log(here.at("run"), 0).find("ended in step 2: rank 0 waited"), 0u)
        << end_of_log(here.at("run"), 0);
    EXPECT_EQ(end_of_log(here.at("run"), 1).find("step 1  "), 0u) << end_of_log(here.at("run"), 1);
    expect_like_one_rank(by_torchrun(2, "run", more + " --resume"), "run");
}

TEST_F(NcclTrainByMpi, AStoppedRankIsNamed) {
    const Outcome o = by_mpirun(4, "run", stage(0) + " --comm-timeout 10", "NCCL_STANDIN_STOP=1:20");
    EXPECT_EQ(o.status, 2) << o.output;
    ASSERT_EQ(lines_of(o.output).size(), 1u) << o.output;
    EXPECT_EQ(lines_of(o.output)[0].find("gptloom: rank 1: no answer for 10 s, to all_"), 0u) << o.output;
    EXPECT_NE(lines_of(o.output)[0].find(" in step "), std::string::npos) << o.output;
}

/* The others hear of it by NCCL, and leave it to the one whose error it is. */
TEST_F(NcclTrainByMpi, AnErrorOfTheLibraryIsToldOnce) {
    const Outcome o = by_mpirun(4, "run", stage(0), "NCCL_STANDIN_FAIL=2:20");
    EXPECT_EQ(o.status, 2) << o.output;
    ASSERT_EQ(lines_of(o.output).size(), 1u) << o.output;
    EXPECT_EQ(lines_of(o.output)[0].find("gptloom: rank 2, all_reduce "), 0u) << o.output;
    EXPECT_NE(lines_of(o.output)[0].find("NCCL: unhandled system error: the cable has been pulled"), std::string::npos);
}

/* ------------------------------------------------------------------------------------------------------ for test-full */

class NcclTrainInFull : public NcclTrainByMpi {
  protected:
    void SetUp() override {
        if (!full()) GTEST_SKIP() << "takes long: make test-full runs it";
#if defined(__SANITIZE_ADDRESS__)
        GTEST_SKIP() << "a sanitizer build is too slow for it";
#endif
        NcclTrainByMpi::SetUp();
    }
};

TEST_F(NcclTrainInFull, EveryStageAndLaunchHasTheBitsOfOneRank) {
    for (const int ranks : {1, 2, 4})
        for (int zero = 0; zero < 4; zero++) {
            const std::string more = stage(zero) + " --deterministic-reduce" + (zero % 2 ? "" : " --cuda-graph off");
            const std::string out = std::to_string(ranks) + std::to_string(zero);
            SCOPED_TRACE(out);
            expect_like_one_rank(by_torchrun(ranks, "tcp" + out, more), "tcp" + out);
            expect_like_one_rank(by_mpirun(ranks, "mpi" + out, more), "mpi" + out);
            if (ranks > 1)
                expect_like_one_rank(torchrun(ranks, Reference::name(), train("file" + out, more),
                                              gpus(ranks) + " LOOM_NCCL_ID=" + here.at("id")),
                                     "file" + out);
        }
}

TEST_F(NcclTrainInFull, EveryDtypeAndPolicyHasTheBitsOfOneRank) {
    const std::string settings[] = {steps + " --dtype bf16", steps + " --dtype fp16",
                                    steps + " --dtype bf16 --master-weights off --optimizer-dtype bf16",
                                    steps + " --recompute block --offload activations", steps + " --recompute every:2"};
    for (const std::string &setting : settings)
        for (int zero = 0; zero < 4; zero++) {
            const std::string out = "run" + std::to_string(zero);
            SCOPED_TRACE(setting + ", stage " + std::to_string(zero));
            fs::remove_all(here.at(out));
            expect_like_one_rank(by_torchrun(2, out, stage(zero) + " --deterministic-reduce", "", setting), out,
                                 setting);
        }
}

/* Streams in other orders: a wait that is missing would show. */
TEST_F(NcclTrainInFull, EveryOrderOfStreamsHasTheSameBits) {
    for (const bool deterministic : {false, true})
        for (int zero = 0; zero < 4; zero++) {
            const std::string more = stage(zero) + (deterministic ? " --deterministic-reduce" : "");
            const auto run = [&](const std::string &schedule) {
                fs::remove_all(here.at("run"));
                const Outcome o = by_torchrun(2, "run", more, "LOOM_EMULATION_SCHEDULE=" + schedule);
                EXPECT_EQ(o.status, 0) << o.output;
                return results(here.at("run"));
            };
            const std::string expected = run("order");
            for (const char *schedule : {"reverse", "random:1", "random:2"})
                EXPECT_TRUE(run(schedule) == expected) << more << ", " << schedule;
        }
}

/* Every call that communicates, from joining to the last one of the run, may be where a rank is stopped. */
TEST_F(NcclTrainInFull, AStoppedRankIsFoundWhereverItIs) {
    const std::string more = stage(3) + " --val-every 2 --sample-every 2 --sample-tokens 2";
    ASSERT_EQ(by_torchrun(2, "whole", more).status, 0);
    int64_t calls = 0;
    for (const Call &c : read_calls(here.at("whole.calls.1"))) calls += c.comm != 0;
    const int rounds = 6;
    for (int i = 0; i < rounds; i++) {
        const int64_t call = 1 + i * (calls - 1) / (rounds - 1);
        SCOPED_TRACE("call " + std::to_string(call) + " of " + std::to_string(calls));
        fs::remove_all(here.at("run"));
        const Outcome o = torchrun(
            2, Reference::name(), train("run", more + " --comm-timeout 10"),
            gpus(2) + calls_to("run") + " " + at_port(free_port()) + " NCCL_STANDIN_STOP=1:" + std::to_string(call), 1);
        EXPECT_EQ(o.status, 2) << o.output;
        ASSERT_EQ(lines_of(o.output).size(), 1u) << o.output;
        EXPECT_NE(o.output.find("for other ranks to come to"), std::string::npos) << o.output;
        EXPECT_EQ(read_calls(here.at("run.calls.0")).back().kind, "CommAbort");
    }
}

TEST_F(NcclTrainInFull, AKilledRankUnderMpirunEndsAll) {
    const Outcome o = by_mpirun(4, "run", stage(2), "NCCL_STANDIN_DIE=3:40");
    EXPECT_NE(o.status, 0) << o.output;
    EXPECT_NE(o.output.find("exited on signal 9"), std::string::npos) << "mpirun's own banner:\n" << o.output;
    EXPECT_EQ(lines_of(o.output).size(), 0u) << o.output;
}

} // namespace
