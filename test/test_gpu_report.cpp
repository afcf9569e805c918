/* dev/gpu-report.py on a machine made of small scripts, and on the emulated GPU: what it writes, and how it bears what
 * is missing or fails. */
#include "support_ranks.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include <sys/wait.h>

namespace {

using namespace support;

fs::path repository() {
    return fs::absolute(fs::path(__FILE__)).parent_path().parent_path();
}

bool contains(const std::string &text, const std::string &part) {
    return text.find(part) != std::string::npos;
}

/* What a program does that answers as gptloom does: cases hold, figures are saved, a run leaves its metrics. */
const char *const answers = R"(#!/bin/sh
here=$(dirname "$0")
echo "$*${RANK:+ as rank $RANK of $WORLD_SIZE, LOOM_NCCL=$LOOM_NCCL}" >>"$here/calls"
command=$1; shift
while [ $# -gt 0 ]; do
    case $1 in
    --json) json=$2 ;; --out) out=$2 ;; --micro-batch) micro=$2 ;; --attention) attention=$2 ;; --op) op=$2 ;;
    --ranks) ranks=$2 ;; --comm) comm=$2 ;; --zero) zero=$2 ;; --batch) batch=$2 ;;
    esac
    shift
done
. "$here/trouble"
case $command in
parity)
    echo "cuda (Test GPU, 1 GiB) against the oracle"
    echo "$op  N=1 C=1  bf16  0 out  ok"
    echo "$op  N=2 C=1  bf16  0.5 out  ok"
    echo "2 ok, 0 failed, 0 not supported; nearest to its bound: 0.5 of it, out of fill N=2" ;;
bench)
    cat >"$json" <<END
{"device": "cuda", "copy_gb_per_s": 2000, "peak_tflop_per_s": 700, "results": [
 {"op": "attention_forward", "shape": "B=1", "dtype": "bf16", "by": "ours", "ms": 0.5, "gb_per_s": 10, "of_copy": 0.25},
 {"op": "attention_forward", "shape": "B=1", "dtype": "bf16", "by": "cudnn", "ms": 0.4, "gb_per_s": 12, "of_copy": 0.3,
  "tflop_per_s": 300, "of_peak": 0.43}]}
END
    ;;
train)
    [ "${RANK:-0}" = 0 ] || exit 0
    ms=2
    [ "${WORLD_SIZE:-1}" -gt 1 ] && ms=2.5
    [ "${ranks:-1}" -gt 1 ] && ms=8
    mkdir -p "$out"
    for step in 1 2 3; do
        echo "{\"step\": $step, \"loss\": 4.$step, \"ms\": $ms, \"tokens_per_s\": 1, \"ms_waited\": 0.$step, \"ms_spread\": 0.5}"
    done >"$out/metrics.jsonl" ;;
esac
)";

class GpuReport : public testing::Test {
  protected:
    void SetUp() override {
        write_file(at("gptloom"), answers);
        fs::permissions(at("gptloom"), fs::perms::owner_all);
        trouble("");
    }
    std::string at(const std::string &name) {
        return directory_.at(name);
    }
    /* Shell commands that the program runs before it answers. */
    void trouble(const std::string &commands) {
        write_file(at("trouble"), commands + "\n");
    }
    /* A python3 that has PyTorch, or something in its place. */
    void pytorch(const std::string &commands) {
        tool("python", commands);
        python_ = " --python '" + at("python") + "'";
    }
    int run(const std::string &program, const std::string &flags = "") {
        return script("--quick --program '" + program + "' --out '" + at("report") + "'" + python_ + " " + flags);
    }
    /* The script itself, where `settings` are those of the environment. */
    int script(const std::string &arguments, const std::string &settings = "") {
        const std::string command = "PATH='" + at("") + "':\"$PATH\" " + settings + " python3 -B '" +
                                    (repository() / "dev/gpu-report.py").string() + "' " + arguments + " >'" +
                                    at("log") + "' 2>&1";
        const int status = std::system(command.c_str());
        output = read_file(at("log"));
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    /* A program of some name that does what the shell's commands say. */
    void tool(const std::string &name, const std::string &commands) {
        write_file(at(name), "#!/bin/sh\n" + commands + "\n");
        fs::permissions(at(name), fs::perms::owner_all);
    }
    /* --check in a place where all is found that is not replaced by another tool(). */
    int check() {
        return script("--check" + python_, "CC='" + at("gcc") + "' CXX='" + at("g++") + "' NVCC='" +
                                               at("cuda/bin/nvcc") + "' LD_LIBRARY_PATH=");
    }
    int run() {
        return run(at("gptloom"));
    }

    std::string output;

  private:
    TemporaryDirectory directory_;
    std::string python_ = " --python /nowhere/python3";
};

TEST_F(GpuReport, TellsSpeedsAndRatios) {
    pytorch("echo '{\"tokens_per_s\": 8000, \"median_ms\": 4, \"peak_mib\": 99, \"loss\": 4.2, \"micro_batch\": 1}'");
    EXPECT_EQ(run(), 0) << output;
    const std::string markdown = read_file(at("report.md")), json = read_file(at("report.json"));
    /* 2 sequences of 16 tokens in 2 ms are 16,000 a second. */
    for (const char *part : {"all 4 cases hold", "| fill | 2 |", "| attention, by cuDNN | 2 |",
                             "| gptloom | 16,000 | 16,000 | 2.00 |", "2.000 in tokens/s",
                             "| PyTorch, compiled | 8,000 |", "| cudnn | 0.4000 |", "1.25 times as fast", "Test GPU"}) {
        EXPECT_TRUE(contains(markdown, part)) << part << " is not in\n" << markdown;
    }
    EXPECT_TRUE(contains(json, "\"ratio_to_pytorch\": 2.0")) << json;
    /* The table comes last. */
    EXPECT_GT(output.rfind("| gptloom, attention by cuDNN |"), output.rfind("are written")) << output;
}

TEST_F(GpuReport, EndsWhereThereIsNoGpu) {
    trouble("echo 'gptloom: --device cuda: there is no NVIDIA GPU' >&2; exit 2");
    EXPECT_EQ(run(), 2);
    EXPECT_EQ(output, "gpu-report: no GPU to report on: gptloom: --device cuda: there is no NVIDIA GPU\n");
    EXPECT_FALSE(fs::exists(at("report.md")));
    EXPECT_EQ(run(at("nothing")), 2);
    EXPECT_TRUE(contains(output, "is not there: run make first")) << output;
}

TEST_F(GpuReport, LeavesPyTorchOutWithAReason) {
    pytorch("echo '{\"left_out\": \"PyTorch sees no GPU\"}'; exit 3");
    EXPECT_EQ(run(), 0) << output;
    EXPECT_TRUE(contains(output, "| PyTorch, compiled | left out | PyTorch sees no GPU |")) << output;
    EXPECT_TRUE(contains(output, "not compared: see below")) << output;
}

TEST_F(GpuReport, ReportsWhatFails) {
    trouble("if [ $command = bench ]; then echo 'gptloom: the GPU fell off' >&2; exit 2; fi\n"
            "if [ $command = train ]; then kill -9 $$; fi");
    pytorch("echo no json");
    EXPECT_EQ(run(), 1);
    for (const char *part :
         {"| benchmark | exit code 2: gptloom: the GPU fell off |", "| gptloom | FAILED | exit code -9",
          "| PyTorch, compiled | FAILED |", "all 4 cases hold"}) {
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
    }
    EXPECT_TRUE(fs::exists(at("report.json")));
}

TEST_F(GpuReport, ReportsCasesThatFail) {
    trouble("if [ $command = parity ] && [ $op = fill ]; then\n"
            "    echo 'cuda (Test GPU, 1 GiB) against the oracle'\n"
            "    echo 'fill  N=1 C=1  bf16  9 out  FAILED'; echo '    out is off'\n"
            "    echo '0 ok, 1 failed, 0 not supported; nearest to its bound: 9 of it, out of fill N=1'; exit 1\nfi");
    EXPECT_EQ(run(), 1);
    EXPECT_TRUE(contains(output, "| parity with the oracle | failed: fill |")) << output;
    EXPECT_TRUE(contains(output, "fill: out is off")) << output;
}

/* Where no output was measured, or a phase broke, there is a report of the rest. */
TEST_F(GpuReport, BearsWhatIsMissing) {
    trouble("if [ $command = parity ]; then\n"
            "    echo 'cuda (Test GPU, 1 GiB) against the oracle'\n"
            "    for i in 1 2 3; do echo \"fill  N=$i C=1  bf16      not supported\"; echo '    why'; done\n"
            "    echo '0 ok, 0 failed, 3 not supported'; exit\nfi");
    EXPECT_EQ(run(), 0) << output;
    EXPECT_TRUE(contains(output, "| fill | 0 | 0 | 3 |  |")) << output;
    trouble("rm \"$0\"");
    EXPECT_EQ(run(), 1);
    EXPECT_TRUE(contains(output, "| parity with the oracle | [Errno 2] No such file")) << output;
    EXPECT_TRUE(contains(read_file(at("report.json")), "No such file"));
}

/* Attention by cuDNN is compared with the oracle, in bf16, and trained with, where cuDNN is. */
TEST_F(GpuReport, LeavesCudnnOutOnlyWhereThereIsNone) {
    trouble("if [ \"$attention\" = cudnn ]; then\n"
            "    echo 'gptloom: --attention cudnn: libcudnn.so.9 cannot be loaded' >&2; exit 2\nfi");
    EXPECT_EQ(run(), 0) << output;
    for (const char *part :
         {"| attention, by cuDNN | left out |", "| gptloom, attention by cuDNN | left out |", "all 2 cases hold"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
    EXPECT_TRUE(contains(read_file(at("calls")), "--op attention --dtype bf16 --attention cudnn"));
    trouble("if [ \"$attention\" = cudnn ]; then echo 'gptloom: an illegal instruction' >&2; exit 2; fi");
    EXPECT_EQ(run(), 1);
    for (const char *part :
         {"| attention, by cuDNN | FAILED |", "| gptloom, attention by cuDNN | FAILED |", "| gptloom | 16,000 |"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
}

/* A phase that takes too long is ended, what it had found is kept, and the others still run. */
TEST_F(GpuReport, EndsWhatTakesTooLong) {
    trouble("if [ $command = bench ]; then\n"
            "    echo '{\"results\": [{\"op\": \"fill\", \"shape\": \"N=9\", \"by\": \"ours\", \"ms\": 0.25}]}' "
            ">\"$json\"\n"
            "    sleep 600\nfi");
    /* A machine may be so busy that it takes as long to write that: then once more, with more time. */
    const std::string row = "| fill | N=9 | ours | 0.2500 |";
    std::string limit;
    for (const char *seconds : {"1", "10", "100"}) {
        if (contains(output, row)) break;
        EXPECT_EQ(run(at("gptloom"), std::string("--bench-limit ") + seconds), 1);
        limit = seconds;
    }
    EXPECT_TRUE(contains(output, "| benchmark | ended after its limit of " + limit + " s |")) << output;
    EXPECT_TRUE(contains(output, row)) << output;
    EXPECT_TRUE(contains(output, "| gptloom | 16,000 |")) << output;
}

/* The micro-batch halves until the run fits into the GPU's memory, and the report tells. */
TEST_F(GpuReport, TakesASmallerMicroBatchWhereMemoryIsShort) {
    trouble("if [ $command = train ] && [ $micro -gt 4 ]; then\n"
            "    echo 'gptloom: --memory: 9 MiB are needed and 8 MiB are there' >&2; exit 2\nfi\n"
            "if [ $command = train ] && [ $micro -gt 2 ]; then\n"
            "    echo 'gptloom: not enough memory on the GPU: 9.0 MiB are needed' >&2; exit 2\nfi");
    EXPECT_EQ(run(at("gptloom"), "--micro-batch 8 --batch 8 --rounds 2"), 0) << output;
    const std::string calls = read_file(at("calls"));
    for (const char *part : {"--micro-batch 8", "--micro-batch 4", "--micro-batch 2"})
        EXPECT_TRUE(contains(calls, part)) << calls;
    /* Two ranks that share the GPU take half of it each, in fewer steps. */
    EXPECT_FALSE(contains(calls, "--micro-batch 1 --seq-len 16 --steps 3 ")) << calls;
    EXPECT_TRUE(contains(calls, "--micro-batch 1 --seq-len 16 --steps 2 ")) << calls;
    for (const char *part : {"- gptloom: micro-batch 8: exit code 2: gptloom: --memory: 9 MiB are needed",
                             "- gptloom: micro-batch 4: exit code 2: gptloom: not enough memory on the GPU"}) {
        const size_t first = output.find(part);
        EXPECT_NE(first, std::string::npos) << part << " is not in\n" << output;
        /* The second round begins with what was found to fit. */
        EXPECT_EQ(output.find(part, first + 1), std::string::npos) << output;
    }
}

/* A kernel that crashes is no want of memory: it is not tried again, and the report tells. */
TEST_F(GpuReport, TellsOfAnIllegalMemoryAccess) {
    trouble("if [ $command = train ] && [ $micro -gt 2 ]; then\n"
            "    echo 'gptloom: device cuda: an illegal memory access was encountered' >&2; exit 2\nfi");
    EXPECT_EQ(run(at("gptloom"), "--micro-batch 8 --batch 8"), 1) << output;
    EXPECT_FALSE(contains(read_file(at("calls")), "--micro-batch 4")) << output;
    for (const char *part : {"| gptloom | FAILED | exit code 2: gptloom: device cuda: an illegal memory access",
                             "| NCCL, one rank | left out | gptloom does not train on one GPU |",
                             "- gptloom: micro-batch 8: exit code 2: gptloom: device cuda: an illegal memory access"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
}

/* A crash that comes in the second turn only is not hidden by the first one's speed. */
TEST_F(GpuReport, TellsOfALaterCrash) {
    trouble("if [ $command = train ] && [ \"$attention\" != cudnn ]; then\n"
            "    [ ! -e \"$here/before\" ] || { echo 'gptloom: the GPU fell off' >&2; exit 2; }\n"
            "    touch \"$here/before\"\nfi");
    EXPECT_EQ(run(at("gptloom"), "--rounds 2"), 1) << output;
    for (const char *part :
         {"| gptloom | 16,000 |", "- gptloom: micro-batch 1: exit code 2: gptloom: the GPU fell off"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
}

/* --check names in one line what is missing of what the build and the program take; that PyTorch is, is a warning. */
TEST_F(GpuReport, ChecksWhatThereIs) {
    for (const char *folder : {"cuda/bin", "cuda/include", "cuda/lib64", "python-packages/cublas/lib"})
        fs::create_directories(at(folder));
    for (const char *file : {"cuda/include/cuda_runtime_api.h", "cuda/include/cublasLt.h",
                             "cuda/lib64/libcudart_static.a", "cuda/lib64/libcublasLt.so.13"})
        write_file(at(file), "");
    pytorch("exit 0");
    tool("nvidia-smi", "echo Test GPU");
    tool("cuda/bin/nvcc", "exit 0");
    tool("gcc", "exit 0");
    tool("g++", "exit 0");
    EXPECT_EQ(check(), 0);
    EXPECT_EQ(output, "");
    /* cuBLASLt may lie in a Python package. */
    fs::rename(at("cuda/lib64/libcublasLt.so.13"), at("python-packages/cublas/lib/libcublasLt.so.13"));
    EXPECT_EQ(check(), 2);
    EXPECT_EQ(output, "gpu-report: missing here: cuBLASLt (libcublasLt.so)\n");
    pytorch("case \"$2\" in *\"'nvidia'\"*) echo '" + at("python-packages/cublas/lib") + "' ;; *) exit 1 ;; esac");
    EXPECT_EQ(check(), 0);
    EXPECT_EQ(output, "gpu-report: warning: " + at("python") + " has no PyTorch, which will be left out\n");
    tool("nvidia-smi", "exit 9");
    tool("gcc", "! grep -q '<cjson/cJSON.h>'");
    tool("g++", "! grep -q '<omp.h>'");
    fs::remove(at("cuda/include/cublasLt.h"));
    EXPECT_EQ(check(), 2);
    for (const char *part : {"missing here: a GPU that nvidia-smi shows, CUDA's cublasLt.h, ", "OpenMP for ",
                             "g++ (-fopenmp)", "cJSON (<cjson/cJSON.h>, -lcjson); dev/setup.sh"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in " << output;
    EXPECT_FALSE(contains(output, "xxHash")) << output;
    EXPECT_EQ(output.find('\n'), output.size() - 1) << output;
}

/* Where one process breaks, each file of cases has one of its own. */
TEST_F(GpuReport, TriesEachFileOfCasesWhereOneProcessBreaks) {
    trouble("if [ $command = parity ] && [ $op = all ]; then kill -9 $$; fi\n"
            "if [ $command = parity ] && [ $op = gelu ]; then echo 'gptloom: an illegal address' >&2; exit 2; fi");
    EXPECT_EQ(run(at("gptloom"), "--parity-op all"), 1);
    for (const char *part : {"| adamw | 2 | 0 |", "| gelu | FAILED |", "illegal address", "| relu | 2 | 0 |"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
}

/* compute-sanitizer and Nsight Compute, where they are: what they say is in the report, and only what the first one
 * finds is a failure. */
TEST_F(GpuReport, LooksCloselyWithCudasTools) {
    const auto with = [&](const char *code) {
        tool("compute-sanitizer", "echo '========= RACECHECK SUMMARY: 3 hazards displayed'; exit " + std::string(code));
    };
    with("0");
    tool("ncu", "echo '==PROF== Connected'\n"
                "echo '\"ID\",\"Kernel Name\",\"Metric Name\",\"Metric Unit\",\"Metric Value\"'\n"
                "echo '\"0\",\"attention_backward_keys_mma\",\"Duration\",\"us\",\"81.5\"'\n"
                "echo '\"0\",\"attention_backward_keys_mma\",\"DRAM Throughput\",\"%\",\"41\"'");
    EXPECT_EQ(run(), 0) << output;
    for (const char *part : {"| racecheck, attention | clean |", "| attention_backward_keys_mma | 81.5 us |  | 41 % |"})
        EXPECT_TRUE(contains(read_file(at("report.md")), part)) << part << " is not in\n" << output;
    with("9");
    tool("ncu", "echo 'ERR_NVGPUCTRPERM' >&2; exit 1");
    EXPECT_EQ(run(), 1) << output;
    for (const char *part : {"| racecheck, layernorm | FAILED | ========= RACECHECK SUMMARY: 3 hazards displayed |",
                             "Nsight Compute: ncu tells nothing: exit code 1: ERR_NVGPUCTRPERM."})
        EXPECT_TRUE(contains(read_file(at("report.md")), part)) << part << " is not in\n" << output;
}

/* Ranks: by NCCL in torchrun's environment, by MPI as gptloom starts them; on one GPU no more than those. */
TEST_F(GpuReport, TrainsWithRanks) {
    EXPECT_EQ(run(), 0) << output;
    /* 2 sequences of 16 tokens in 8 ms are 4,000 a second; a quarter of what one rank alone does. */
    for (const char *part : {"| NCCL, one rank | 16,000 | 1.00 | 100.0% | 2.00 | 0.25 | 0.50 |",
                             "| MPI, two ranks share a GPU | 4,000 | 0.25 | 25.0% | 8.00 |",
                             "| ranks | NCCL, one rank: 16,000 tokens/s, efficiency 100.0% |"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
    EXPECT_FALSE(contains(output, "2 GPUs")) << output;
    const std::string calls = read_file(at("calls"));
    for (const char *part :
         {"--comm nccl --zero 0 --comm-timeout 40 as rank 0 of 1, LOOM_NCCL=\n", "--comm mpi", "--ranks 2\n"})
        EXPECT_TRUE(contains(calls, part)) << part << " is not in\n" << calls;
}

/* On several GPUs: 2, 4 .. and all of them, stages 0 and 1, each GPU with the batch that one has alone. */
TEST_F(GpuReport, TrainsOnAllGpus) {
    tool("nvidia-smi",
         "case $1 in *memory.used*) echo 5 ;; *) for i in 1 2 3 4 5 6; do echo 'Test GPU, 1, 1, 1, 1'; done ;; esac");
    fs::create_directories(at("nccl/lib"));
    write_file(at("nccl/lib/libnccl.so.2"), "");
    pytorch("case \"$2\" in *\"'nvidia'\"*) echo '" + at("nccl/lib") + "' ;; *) exit 1 ;; esac");
    run();
    for (const char *part :
         {"| NCCL, 2 GPUs | 25,600 | 1.60 | 80.0% | 2.50 | 0.25 | 0.50 | 0 | 4, 1, 4.300 |",
          "| NCCL, 2 GPUs, ZeRO stage 1 | 25,600 |", "| NCCL, 4 GPUs | 51,200 | 3.20 | 80.0% |",
          "| NCCL, 6 GPUs, ZeRO stage 1 | 76,800 |", "| ranks | NCCL, 6 GPUs: 76,800 tokens/s, efficiency 80.0% |"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
    const std::string calls = read_file(at("calls"));
    EXPECT_TRUE(
        contains(calls, "--zero 1 --comm-timeout 40 as rank 5 of 6, LOOM_NCCL=" + at("nccl/lib/libnccl.so.2") + "\n"))
        << calls;
    EXPECT_TRUE(contains(read_file(at("report.json")), "\"efficiency\": 0.8")) << output;
    /* Those of CUDA_VISIBLE_DEVICES alone. */
    setenv("CUDA_VISIBLE_DEVICES", "3,5", 1);
    run();
    unsetenv("CUDA_VISIBLE_DEVICES");
    EXPECT_TRUE(contains(output, "| NCCL, 2 GPUs |")) << output;
    EXPECT_FALSE(contains(output, "4 GPUs")) << output;
}

/* What is not here is left out, what fails is a failure, with the line of the rank that failed. */
TEST_F(GpuReport, LeavesLibrariesOfRanksOutOnlyWhereTheyAreNot) {
    trouble("case \"$comm\" in\n"
            "nccl) echo 'gptloom: --comm nccl: libnccl.so.2 cannot be loaded: no such file' >&2; exit 2 ;;\n"
            "mpi) echo 'gptloom: --ranks: mpirun is not on the path; install Open MPI' >&2; exit 2 ;; esac");
    EXPECT_EQ(run(), 0) << output;
    for (const char *part : {"| NCCL, one rank | left out | NCCL is not here", "| ranks | left out: see below |",
                             "| MPI, two ranks share a GPU | left out | Open MPI is not here"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
    tool("nvidia-smi", "case $1 in *memory.used*) echo 5 ;; *) echo Test GPU, 1; echo Test GPU, 1 ;; esac");
    trouble(
        "[ \"$RANK$zero$WORLD_SIZE\" = 112 ] && { echo 'gptloom: rank 1: the cable has been pulled' >&2; exit 2; }\n"
        "[ \"$zero$WORLD_SIZE\" = 12 ] && sleep 60; true");
    EXPECT_EQ(run(), 1);
    for (const char *part : {"| NCCL, 2 GPUs, ZeRO stage 1 | FAILED | rank 1, exit code 2: gptloom: rank 1: the cable",
                             "| ranks | NCCL, 2 GPUs: 25,600 tokens/s, efficiency 80.0%; failed: NCCL, 2 GPUs, ZeRO"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
}

TEST_F(GpuReport, EndsRanksThatTakeTooLong) {
    trouble("[ -z \"$RANK\" ] || sleep 60");
    EXPECT_EQ(run(at("gptloom"), "--ranks-limit 2"), 1);
    EXPECT_TRUE(contains(output, "| NCCL, one rank | FAILED | ended after its limit of 2 s |")) << output;
    EXPECT_TRUE(contains(output, "| MPI, two ranks share a GPU | left out | no time was left |")) << output;
}

/* The real program, on the emulated GPU. */
TEST_F(GpuReport, RunsOnTheEmulation) {
#if defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "a sanitizer build is too slow for it";
#endif
    const char *named = std::getenv("GPTLOOM");
    const fs::path program = (named ? fs::path(named).parent_path() : repository() / "build") / "emulated/gptloom";
    ASSERT_TRUE(fs::exists(program)) << program;
    setenv("LOOM_NCCL", standin().c_str(), 1);
    setenv("LOOM_EMULATION_GPUS", "2", 1);
    EXPECT_EQ(run(program.string()), 0) << output;
    unsetenv("LOOM_NCCL");
    unsetenv("LOOM_EMULATION_GPUS");
    for (const char *part : {"emulated", "cases hold", "| fill | ", "| gptloom | ", "| NCCL, one rank | ",
                             "| NCCL, 2 GPUs | ", "| NCCL, 2 GPUs, ZeRO stage 1 | ", "| ranks | NCCL, 2 GPUs"})
        EXPECT_TRUE(contains(output, part)) << part << " is not in\n" << output;
    EXPECT_FALSE(contains(output, "FAILED")) << output;
}

} // namespace
