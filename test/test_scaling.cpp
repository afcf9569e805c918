/* dev/scaling-report.py: the simulation of a step against steps that a pencil can follow, and the report on a
 * gptloom made of a small script; in full tests on the real one. */
#include "support.h"

#include <cjson/cJSON.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include <sys/wait.h>

namespace {

using namespace support;

fs::path repository() {
    return fs::absolute(fs::path(__FILE__)).parent_path().parent_path();
}

bool contains(const std::string &text, const std::string &part) {
    return text.find(part) != std::string::npos;
}

class Scaling : public testing::Test {
  protected:
    /* A script of dev/; its exit status. What it prints is in `output`. */
    int script(const std::string &name, const std::string &arguments) {
        const std::string command = "cd '" + here.path().string() + "' && python3 -B '" +
                                    (repository() / "dev" / name).string() + "' " + arguments + " >log 2>&1";
        const int status = std::system(command.c_str());
        output = read_file(here.at("log"));
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }

    TemporaryDirectory here;
    std::string output;
};

/* ------------------------------------------------------------------------------------------------------ the simulation
 *
 * Four ranks, three blocks of 40 elements, 400 of embeddings, 4 of the last layernorm; 8 sequences in a step, and sums
 * of squares in 4 parts of each bucket: a gather of 32 bytes and an all-reduce of 80; and 64 when ranks exchange their
 * status before the update. Forward of a block takes 1 s, backward 2 s, the ends 3 s, an element's update 1/100 s: 5.24
 * s for all 524 of them, and 3 + 3 * 3 = 12 s for a micro-batch. */

using Results = std::map<std::string, double>;

class Simulation : public Scaling {
  protected:
    static constexpr double bandwidth = 1e3, nothing = 1e-9;
    const std::string seconds = "\"ends\": 3, \"forward\": 1, \"backward\": 2, \"update\": 0.01";
    const std::string no_seconds = "\"ends\": 0, \"forward\": 0, \"backward\": 0, \"update\": 0";

    static std::string links(double bytes_per_s) {
        return "\"links\": {\"near\": " + std::to_string(bytes_per_s) + "}";
    }
    static std::string step(int zero, int micro_batches, const std::string &more) {
        return "{\"ranks\": 4, \"zero\": " + std::to_string(zero) +
               ", \"micro_batches\": " + std::to_string(micro_batches) +
               ", \"sequences\": 2, \"elements\": [400, 40, 40, 40, 4], \"squares\": 20, " + more + "}";
    }

    std::vector<Results> simulate(const std::vector<std::string> &cases) {
        std::string all;
        for (const std::string &one : cases) all += (all.empty() ? "[" : ",\n") + one;
        write_file(here.at("cases"), all + "]");
        EXPECT_EQ(script("simulate_step.py", "<cases"), 0) << output;
        std::vector<Results> results;
        cJSON *list = cJSON_Parse(output.c_str());
        for (const cJSON *item = list ? list->child : nullptr; item; item = item->next) {
            results.emplace_back();
            for (const cJSON *value = item->child; value; value = value->next)
                results.back()[value->string] = value->valuedouble;
        }
        cJSON_Delete(list);
        EXPECT_EQ(results.size(), cases.size()) << output;
        results.resize(cases.size());
        return results;
    }
};

/* Each rank's bytes in a step of two micro-batches. Whole, gradients and weights have 4 * 524 = 2096 bytes, blocks'
 * 480; a ring sends 3/4 of what is reduce-scattered or gathered, and twice that of what is all-reduced. A rank hands
 * in what is to be reduced whole, as 80 bytes of squares are at stages, and a quarter of what is to be gathered: of
 * losses 8 bytes, and 16 of status. At stage 3 forward gathers three blocks (of the second micro-batch
 * one: two are there yet, as backward ended on them), backward one, and the update the rest of 1616 bytes. */
TEST_F(Simulation, CountsBytes) {
    const double of_all = 2096, of_blocks = 480, losses = 64 + 32, squares = 80;
    const std::string more = no_seconds + ", " + links(bandwidth);
    std::vector<std::string> cases;
    for (int zero = 0; zero < 4; zero++) cases.push_back(step(zero, 2, more));
    for (int zero = 0; zero < 2; zero++) cases.push_back(step(zero, 2, more + ", \"deterministic\": true"));
    const double gathered_at_3 = 6 * of_blocks / 3 + of_all - of_blocks;
    const double reduced[] = {of_all, squares, squares, squares, 0, squares};
    const double scattered[] = {0, of_all, 2 * of_all, 2 * of_all, 0, 0};
    const double exchanged[] = {0, 0, 0, 0, of_all, of_all};
    const double gathered[] = {losses,          losses + of_all, losses + of_all, losses + gathered_at_3,
                               losses + of_all, losses + of_all};
    const double operations[] = {5 + 2, 5 + 3 + 5, 10 + 3 + 5, 10 + 3 + 6 + 2, 15 + 2 + 5, 15 + 3 + 5};
    const std::vector<Results> results = simulate(cases);
    for (size_t i = 0; i < results.size(); i++) {
        const double sent = 0.75 * (2 * reduced[i] + scattered[i] + exchanged[i] + gathered[i]);
        const double handed = reduced[i] + scattered[i] + 0.75 * exchanged[i] + 0.25 * gathered[i];
        EXPECT_NEAR(results[i].at("wire"), sent, nothing) << i;
        EXPECT_NEAR(results[i].at("handed"), handed, nothing) << i;
        EXPECT_EQ(results[i].at("operations"), operations[i]) << i;
    }
}

TEST_F(Simulation, ExposesNothingWhereCommunicationTakesNoTime) {
    std::vector<std::string> cases;
    for (int zero = 0; zero < 4; zero++) cases.push_back(step(zero, 2, seconds + ", " + links(1e300)));
    const std::vector<Results> results = simulate(cases);
    for (int zero = 0; zero < 4; zero++) {
        const double computed = 2 * 12 + (zero >= 1 ? 5.24 / 4 : 5.24);
        EXPECT_NEAR(results[zero].at("computed"), computed, nothing) << zero;
        EXPECT_NEAR(results[zero].at("seconds"), computed, nothing) << zero;
        EXPECT_NEAR(results[zero].at("exposed"), 0, nothing) << zero;
    }
}

/* Then operations follow each other without a gap. */
TEST_F(Simulation, IsTheSumOfTransfersWhereComputingTakesNoTime) {
    std::vector<std::string> cases;
    for (int zero = 0; zero < 4; zero++) cases.push_back(step(zero, 2, no_seconds + ", " + links(bandwidth)));
    for (const Results &r : simulate(cases)) {
        EXPECT_NEAR(r.at("seconds"), r.at("wire") / bandwidth, nothing);
        EXPECT_NEAR(r.at("busy"), r.at("wire") / bandwidth, nothing);
    }
}

/* One block, at stage 0: ends 3, forward 1, backward 2; the last layernorm's gradient is there after 4 s, the
 * block's and the embeddings' after 6. At 1000 bytes/s they take 0.024, 0.24 and 2.4 s, the status 0.048, and the
 * losses 0.024: nothing of the first is exposed, all of the others is. */
TEST_F(Simulation, ExposesWhatNoBackwardIsLeftFor) {
    const std::string one =
        "{\"ranks\": 4, \"zero\": 0, \"micro_batches\": 1, \"sequences\": 2, \"elements\": [400, 40, 4], "
        "\"squares\": 12, " +
        seconds + ", " + links(bandwidth) + "}";
    const Results r = simulate({one})[0];
    EXPECT_NEAR(r.at("busy"), 0.024 + 0.24 + 2.4 + 0.048 + 0.024, nothing);
    EXPECT_NEAR(r.at("exposed"), 0.24 + 2.4 + 0.048 + 0.024, nothing);
    EXPECT_NEAR(r.at("seconds"), 6 + 4.44 + 0.24 + 2.4 + 0.048 + 0.024, nothing);
}

/* Stage 1: the update takes 1 s for the embeddings' share, 0.1 for each block's, 0.01 for the last; the embeddings'
 * weights, gathered from then on at 1000 bytes/s, take 1.2 s and blocks' 0.12. All of the update is over after 0.31
 * s more, and the next forward waits 0.89 s for the embeddings; blocks' weights come while it goes on, the first's
 * 0.12 s late. At stage 3 the first block's are put in when the embeddings are there, behind the last layernorm's;
 * so late it is. */
TEST_F(Simulation, GathersWeightsBesideTheNextForward) {
    const std::string more = seconds + ", " + links(bandwidth);
    const std::vector<Results> r = simulate({step(1, 1, more), step(3, 1, more)});
    /* The last block's reduction, 0.12 s, and the embeddings', 1.2 s, follow backward; then ranks exchange their
     * status, losses are gathered and squares added up. */
    const double reduced = 0.12 + 1.2, summed = 0.048 + 0.024 + 0.12;
    EXPECT_NEAR(r[0].at("exposed"), reduced + summed + 0.89 + 0.12, nothing);
    EXPECT_NEAR(r[1].at("exposed"), reduced + summed + 0.89 + 0.012 + 0.12, nothing);
}

/* Stage 2: the first reduction, of the last block, takes 20 s, all others 1 s; backward of a block 2 s. A block
 * waits until the reduction of the block two before it has left its slot. */
TEST_F(Simulation, WaitsForThePlaceOfAGradient) {
    const std::string five =
        "{\"ranks\": 4, \"zero\": 2, \"micro_batches\": 1, \"sequences\": 0, \"elements\": [0, 8, 8, 8, 8, 160, "
        "0], \"squares\": 0, \"ends\": 3, \"forward\": 1, \"backward\": 2, "
        "\"update\": 0, \"weight_bytes\": 0, " +
        links(24) + "}";
    const Results r = simulate({five})[0];
    /* Backward begins at 8 s. The first block is done at 10 and reduced at 30, the second done at 12 and reduced at
     * 31. The third begins at 30, is done at 32 and reduced at 33, the fourth done at 34, the fifth at 36: it is
     * reduced at 37. The status takes 2 s. */
    EXPECT_NEAR(r.at("busy"), 24 + 2, nothing);
    EXPECT_NEAR(r.at("seconds"), 37 + 2, nothing);
    EXPECT_NEAR(r.at("exposed"), 37 + 2 - 18, nothing);
}

/* Stage 3: with gathers of 4 s a block, put in one block ahead of a forward of 1 s. */
TEST_F(Simulation, FetchesWeightsOneBlockAhead) {
    const std::string three =
        "{\"ranks\": 4, \"zero\": 3, \"micro_batches\": 1, \"sequences\": 0, \"elements\": [0, 8, 8, 8, 0], "
        "\"squares\": 0, \"ends\": 3, \"forward\": 1, \"backward\": 10, \"update\": 0, "
        "\"gradient_bytes\": 0, \"weight_bytes\": 4, " +
        links(6) + "}";
    const Results r = simulate({three})[0];
    /* Block 1 is there at 4 and done at 5; block 2, fetched at 4, is there at 8 and done at 9; block 3, from 8, at
     * 12 and 13. Ends until 16. Backward of 3 and of 2, whose weights are there; block 1 is fetched when that of 2
     * begins. The status takes 8 s. */
    EXPECT_NEAR(r.at("seconds"), 16 + 3 * 10 + 8, nothing);
    EXPECT_NEAR(r.at("busy"), 4 * 4 + 8, nothing);
}

/* All of computing's speed, at stage 0: a step takes what its parts take, one after another. Half of it: a reduction
 * of 6 s is put in at 8, when the first block's backward is done; the next block's takes 4 s instead of 2, until 12,
 * and the last one's 2 s until 14, for half of it, and 1 s for the rest; then the status takes 6 s. */
TEST_F(Simulation, TakesSpeedFromComputing) {
    const std::string more = seconds + ", " + links(bandwidth);
    const std::string half =
        "{\"ranks\": 4, \"zero\": 0, \"micro_batches\": 1, \"sequences\": 0, \"elements\": [0, 0, 0, 8, 0], "
        "\"squares\": 0, \"ends\": 3, \"forward\": 1, \"backward\": 2, \"update\": 0, "
        "\"steals\": 0.5, " +
        links(8) + "}";
    const std::vector<Results> r = simulate({step(0, 1, more + ", \"steals\": 1"), half});
    EXPECT_NEAR(r[0].at("seconds"), r[0].at("computed") + r[0].at("busy"), nothing);
    EXPECT_NEAR(r[1].at("seconds"), 15 + 6, nothing);
}

/* An element takes 1 s to be added, and 2/3 s to be copied; a bucket of 12. In a tree of four micro-batches the
 * first and the third are copied, the second makes one addition, the fourth two; of four ranks each then adds three
 * to its quarter. At stage 2 a rank adds its quarter for each micro-batch but the first. Operations take no time. */
TEST_F(Simulation, CountsAdditions) {
    const std::string more = ", \"micro_batches\": 4, \"sequences\": 0, \"elements\": [0, 12, 0], \"squares\": 0, "
                             "\"addition\": 1, " +
                             no_seconds + ", " + links(1e300) + "}";
    const std::vector<Results> r = simulate({"{\"ranks\": 1, \"zero\": 0, \"deterministic\": true" + more,
                                             "{\"ranks\": 4, \"zero\": 1, \"deterministic\": true" + more,
                                             "{\"ranks\": 4, \"zero\": 2" + more, "{\"ranks\": 4, \"zero\": 1" + more});
    const double tree = 8 + 12 + 8 + 24;
    const double expected[] = {tree, tree + 9, 9, 0};
    for (size_t i = 0; i < 4; i++) EXPECT_NEAR(r[i].at("seconds"), expected[i], nothing) << i;
}

/* Eight ranks on two nodes of four, 64 bytes to send: hops of 1 s within a node and of 5 s between nodes, of which a
 * ring has 7 and one of them far; bandwidth is what the four adapters of a node have, 4 * 2, or 0.5 by the second
 * protocol. */
TEST_F(Simulation, TakesTheFastestProtocol) {
    const std::string where = "{\"ranks\": 8, \"zero\": 1, \"micro_batches\": 1, \"sequences\": 0, \"squares\": 0, "
                              "\"weight_bytes\": 0, " +
                              no_seconds +
                              ", \"links\": {\"near\": 100, \"far\": 2, \"per_node\": 4, \"protocols\": [{\"base\": 2, "
                              "\"near\": 1, \"far\": 5, \"share\": 1}, {\"base\": 1, \"share\": 0.0625}]}, ";
    const std::vector<Results> r = simulate({where + "\"elements\": [0, 640, 0]}", where + "\"elements\": [0, 0, 0]}"});
    /* 7/8 of 2560 bytes at 8 a second and 2 + 6 + 5 s, against at 0.5 a second. Of status: 112 bytes. All other
     * operations, 2 reductions, 2 of losses and squares, 3 of weights, are empty: 1 s each by the second protocol. */
    EXPECT_NEAR(r[0].at("busy"), 280 + 13 + 14 + 13 + 7, nothing);
    EXPECT_NEAR(r[1].at("busy"), 14 + 13 + 8, nothing);
}

/* --------------------------------------------------------------------------------------------------------- the report */

/* A gptloom of two buckets beside one block's: its steps take 80 ms on one rank and 50 on two, 10 more for each
 * stage and half as much again where they are deterministic; few tokens, 4 ms. Of the traffic of two ranks, each
 * with one micro-batch of one sequence: all-reduce of 4 * 160 bytes, 16 of status, and 4 of losses; at stage 1,
 * reduce-scatter and gather half of that, and all-reduce 4 * 12 of squares. */
const char *const answers = R"(#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"$here/calls"
command=$1; shift
ranks=1 zero=0 deterministic=0
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=$2 ;; --ranks) ranks=$2 ;; --zero) zero=$2 ;; --deterministic-reduce) deterministic=1 ;;
    --seq-len) tokens=$2 ;; --on) on=$2 ;; --micro-batch) micro=$2 ;;
    esac
    shift
done
case $command in
devices) echo "cpu  a CPU"; echo "is   two threads of a test" ;;
plan)
    fits=true; [ $micro -gt 4 ] && fits=false
    cat <<END
{"ranks": $ranks, "zero": $zero, "gradient": "fp32", "dtype": "fp32",
 "policies": [{"fits": $fits, "bytes": 2147483648}],
 "buckets": [{"elements": 80, "blocks": 4}, {"elements": 72, "blocks": 4}, {"elements": 8, "blocks": 4}],
 "part_seconds": {"ends": 0.001, "forward_block": 0.0001, "backward_block": 0.0002, "update_element": 0.000001}}
END
    ;;
train)
    mkdir -p "$out"
    ms=$((80 + 10 * zero)); [ $ranks = 2 ] && ms=$((50 + 10 * zero))
    [ $deterministic = 1 ] && ms=$((ms + ms / 2))
    [ $tokens = 8 ] && ms=4
    case $ranks-$zero-$deterministic in
    1-*) bytes=0 ;; 2-0-*) bytes=660 ;; 2-1-1) bytes=708 ;; *) bytes=1028 ;;
    esac
    loss=4
    . "$here/trouble"
    for step in 1 2 3; do
        echo "{\"step\": $step, \"loss\": $loss.$step, \"ms\": $ms, \"ms_waited\": 7.5, \"ms_spread\": 2.5, \
\"comm_bytes\": $bytes}"
    done >"$out/metrics.jsonl"
    echo '{"bytes": {"all": 3145728}}' >"$out/plan.json" ;;
esac
)";

class ScalingReport : public Scaling {
  protected:
    void SetUp() override {
        write_file(here.at("gptloom"), answers);
        fs::permissions(here.at("gptloom"), fs::perms::owner_all);
        trouble("");
    }
    /* Shell commands that a run obeys before it tells what it did. */
    void trouble(const std::string &commands) {
        write_file(here.at("trouble"), commands + "\n");
    }
    int report(const std::string &flags) {
        return script("scaling-report.py", "--program '" + here.at("gptloom") +
                                               "' --out report.md --seq-len 16 --batch 2 --micro-batch 1 --ranks 1,2 "
                                               "--rounds 1 --steps 3 --models gpt2 --gpus 8,16 --global-batch 64 " +
                                               flags);
    }
    void expect_lines(const std::vector<std::string> &lines) {
        const std::string markdown = read_file(here.at("report.md"));
        for (const std::string &line : lines)
            EXPECT_TRUE(contains(markdown, line)) << line << " is not in\n" << markdown;
    }
};

/* 32 tokens in 80 ms are 400 a second. A step computes 1 + 0.1 + 0.2 + 0.16 ms, at stage 1 half of the last; what
 * few tokens take beyond that, communication, is as much with all of them, which are in as many micro-batches. */
TEST_F(ScalingReport, TellsSpeedsRatiosAndBytes) {
    ASSERT_EQ(report("--only measured"), 0) << output;
    expect_lines({"On two threads of a test.", "| 1 | 0 |  | 400 | 1.00 (1.00 .. 1.00) | 80.0 |  |  |  |  | 3.0 |",
                  "| 2 | 0 |  | 640 | 1.60 (1.60 .. 1.60) | 50.0 | 7.5 | 2.5 | 0.0 | 0.0 | 3.0 |",
                  "| 2 | 1 | yes | 356 | 0.89 (0.89 .. 0.89) | 90.0 |", "| 2 | 1 | 1.50 (1.50 .. 1.50) |",
                  "| 0 |  | 1.5 | 4.0 | 50.0 | 0.08 |", "| 1 |  | 1.4 | 4.0 | 60.0 | 0.07 |"});
    const std::string json = read_file(here.at("report.json"));
    EXPECT_TRUE(contains(json, "\"handed_bytes\": 1028")) << json;
    EXPECT_FALSE(contains(output, "Predicted")) << output;
}

TEST_F(ScalingReport, IsNotWrittenWhereBytesOrLossesAreWrong) {
    trouble("[ $ranks-$zero-$deterministic = 2-2-0 ] && bytes=1027");
    EXPECT_EQ(report("--only measured"), 1);
    EXPECT_TRUE(contains(output, "2 rank(s), stage 2: handed {1027} bytes to the communicator, not 1028")) << output;
    trouble("[ $ranks-$zero-$deterministic = 2-1-1 ] && loss=3");
    EXPECT_EQ(report("--only measured"), 1);
    EXPECT_TRUE(contains(output, "losses with --deterministic-reduce are not the same")) << output;
    trouble("[ $ranks = 2 ] && echo 'gptloom: no memory' >&2 && exit 2");
    EXPECT_EQ(report("--only measured"), 1);
    EXPECT_TRUE(contains(output, "--ranks 2: gptloom: no memory")) << output;
    EXPECT_FALSE(fs::exists(here.at("report.md")));
}

/* With links of any speed and nothing else lost, GPUs are so many times one: the update, which stages shard,
 * takes 0.16 ms of 1.46 at stage 0. */
TEST_F(ScalingReport, PredictsWithInputsThatItNames) {
    ASSERT_EQ(report("--only predicted --nvlink 1e12 --network 1e12 --steals 0"), 0) << output;
    expect_lines({"## Predicted, not measured", "Nothing below was run", "| gpt2 | 1 |  | 1 x 4 | 2.0 | 1.5 |",
                  "NVLink: 1e+12 GB/s", "computing goes at 100.0 % of its speed", "1e+12 GB/s within a node",
                  "| gpt2 | 16 | 3 | 1 x 4 |"});
    EXPECT_FALSE(contains(read_file(here.at("report.md")), "## Measured"));
    EXPECT_TRUE(contains(read_file(here.at("calls")),
                         "plan gpt2 --on h100 --dtype bf16 --batch 64 --micro-batch 4 --seq-len 1024 --recompute none "
                         "--ranks 16 --zero 3 --json -"))
        << read_file(here.at("calls"));
}

TEST_F(ScalingReport, RefusesWhatItCannotCompare) {
    EXPECT_EQ(report("--steps 2"), 2);
    EXPECT_TRUE(contains(output, "--steps")) << output;
    EXPECT_EQ(report("--ranks 2,4"), 2);
    EXPECT_TRUE(contains(output, "--ranks")) << output;
    EXPECT_EQ(report("--gpus 6"), 2);
    EXPECT_TRUE(contains(output, "--global-batch")) << output;
}

/* The real program: its bytes are the simulation's at every stage, or there is no report. */
TEST_F(Scaling, IsReportedOfTheRealProgram) {
    if (!full()) GTEST_SKIP() << "in full tests only";
    const fs::path program = fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "gptloom";
    if (std::system("command -v mpirun >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun here";
    if (!fs::exists(program.parent_path() / "libgptloom_mpi.so"))
        GTEST_SKIP() << "there was no mpicc when this was built";
    EXPECT_EQ(script("scaling-report.py", "--program '" + program.string() +
                                              "' --out report.md --only measured --n-layer 3 --n-head 2 --n-embd 32 "
                                              "--vocab-size 300 --seq-len 16 --rounds 1 --steps 3"),
              0)
        << output;
    EXPECT_TRUE(contains(read_file(here.at("report.md")), "| 4 | 3 |")) << output;
}

} // namespace
