/* The communicator: one rank here; several as processes (comm_rank), started by mpirun, and as torchrun would start
 * them, with a stand-in for NCCL; and what a user sees when ranks fail or libraries are missing. */
#include "launch.h"
#include "support_ranks.h"

#include <gtest/gtest.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <string>
#include <sys/socket.h>
#include <sys/wait.h>
#include <vector>

/* In nccl_header.cpp, which is linked where the CUDA Toolkit and NCCL's header are; null else. */
std::string nccl_header_differences() __attribute__((weak));

namespace {

using namespace support;

/* ------------------------------------------------------------------------------------------------------------ one rank */

class Self : public testing::TestWithParam<const char *> {
  protected:
    void SetUp() override {
        require([&](loom_error *error) { return loom_comm_open(&comm, nullptr, error); });
        require([&](loom_error *error) { return loom_comm_attach(comm, device.get(), 0, error); });
    }
    void TearDown() override {
        loom_comm_close(comm);
    }
    Device device = open_device(GetParam());
    loom_comm *comm = nullptr;
};

TEST_P(Self, CopiesAndLeavesInPlace) {
    EXPECT_STREQ(comm->name, "self");
    EXPECT_EQ(comm->rank, 0);
    EXPECT_EQ(comm->size, 1);
    const std::vector<float> values = {1, 2, 3, 4, 5};
    const size_t bytes = values.size() * sizeof(float);
    void *in, *out;
    for (void **memory : {&in, &out})
        require([&](loom_error *error) { return device->allocate(device.get(), memory, bytes, error); });
    const auto read = [&](void *from) {
        std::vector<float> found(values.size());
        device->copy(device.get(), nullptr, found.data(), from, bytes, LOOM_DEVICE_TO_HOST);
        require([&](loom_error *error) { return loom_comm_synchronize(comm, nullptr, error); });
        return found;
    };
    const std::vector<loom_comm_op_id (*)(loom_comm *, loom_stream *, void *, const void *, int64_t, loom_dtype)>
        moves = {loom_comm_all_reduce, loom_comm_reduce_scatter, loom_comm_all_gather,
                 [](loom_comm *c, loom_stream *after, void *to, const void *from, int64_t n, loom_dtype dtype) {
                     return to == from ? loom_comm_broadcast(c, after, to, n, dtype, 0)
                                       : loom_comm_exchange(c, after, to, n, 0, from, n, 0, dtype);
                 }};
    for (const auto &move : moves)
        for (void *to : {in, out}) {
            device->copy(device.get(), nullptr, in, values.data(), bytes, LOOM_HOST_TO_DEVICE);
            const loom_comm_op_id op_id = move(comm, nullptr, to, in, (int64_t)values.size(), LOOM_F32);
            EXPECT_TRUE(works([&](loom_error *error) { return loom_comm_wait(comm, op_id, nullptr, error); }));
            EXPECT_EQ(read(to), values);
        }
    EXPECT_EQ(comm->traffic.operations, 8);
    EXPECT_EQ(comm->traffic.bytes, (int64_t)(8 * bytes));
    int64_t count = 7;
    char all[3] = "..";
    EXPECT_TRUE(works([&](loom_error *error) { return loom_comm_host_sum(comm, &count, 1, error); }));
    EXPECT_TRUE(works([&](loom_error *error) { return loom_comm_host_gather(comm, all, "ab", 2, error); }));
    EXPECT_TRUE(works([&](loom_error *error) { return loom_comm_barrier(comm, error); }));
    EXPECT_TRUE(works([&](loom_error *error) { return loom_comm_all(comm, true, error); }));
    EXPECT_EQ(refusal([&](loom_error *error) {
                  loom_fail(error, "mine");
                  return loom_comm_all(comm, false, error);
              }),
              "mine");
    EXPECT_EQ(count, 7);
    EXPECT_STREQ(all, "ab");
    for (void *memory : {in, out}) device->release(device.get(), memory, bytes);
}

INSTANTIATE_TEST_SUITE_P(Devices, Self, testing::Values("cpu", "cuda"));

TEST(Comm, UnknownNamesAndMissingLibrariesAreSaidInOneLine) {
    loom_comm *comm = nullptr;
    loom_comm_options options = {};
    const auto open = [&](loom_error *error) { return loom_comm_open(&comm, &options, error); };
    options.backend = "ncll";
    refusal(open, {"--comm", "'ncll'", "did you mean nccl"});
    options.backend = "mpi";
    options.mpi_library = "/nowhere/libgptloom_mpi.so";
    refusal(open, {"--comm mpi", "/nowhere/libgptloom_mpi.so", "apt-get install"});
    options.backend = "nccl";
    options.nccl_library = "/nowhere/libnccl.so.2";
    refusal(open, {"--comm nccl", "/nowhere/libnccl.so.2", "LOOM_NCCL"});
    options.nccl_library = "libm.so.6";
    refusal(open, {"--comm nccl", "libm.so.6", "not NCCL"});
    options.backend = "mpi";
    options.mpi_library = "libm.so.6";
    refusal(open, {"--comm mpi", "libm.so.6", "build it again"});
}

/* A launcher that does not tell its ranks of each other. */
TEST(Comm, OneOfSeveralRanksThatFindsNoOtherIsRefused) {
    loom_comm *comm = nullptr;
    loom_comm_options options = {};
    const auto open = [&](loom_error *error) { return loom_comm_open(&comm, &options, error); };
    for (const char *count : {"SLURM_STEP_NUM_TASKS", "PMI_SIZE"}) {
        setenv(count, "4", 1);
        options.backend = "auto";
        refusal(open, {"one of several ranks", std::string(count) + " is 4", "mpirun", "--mpi=pmix", "torchrun"});
        options.backend = "self";
        require(open);
        loom_comm_close(comm);
        setenv(count, "1", 1);
        options.backend = "auto";
        require(open);
        loom_comm_close(comm);
        unsetenv(count);
    }
}

/* ------------------------------------------------------------------------------------------------------------------ MPI */

class Mpi : public MpiTest {
  protected:
    Outcome mpirun(int ranks, const std::string &arguments, const std::string &environment = "") {
        return MpiTest::mpirun(ranks, "comm_rank", arguments, environment);
    }
    /* mpirun adds its own banner about the abort; of ours there is one line. */
    static void all_end(const Outcome &o, const std::string &line) {
        EXPECT_EQ(o.status, 2) << o.output;
        EXPECT_EQ(lines_of(o.output), std::vector<std::string>{line}) << o.output;
    }
    void all_works(int ranks, const std::string &device, const std::string &environment = "",
                   const std::string &scenarios = "operations,outstanding,streams,host,all") {
        const Outcome o = mpirun(ranks, scenarios + " mpi " + device, environment);
        EXPECT_EQ(o.status, 0) << o.output;
        EXPECT_EQ(o.output, "");
    }
};

TEST_F(Mpi, TwoRanksOnTheCpu) {
    all_works(2, "cpu");
}

TEST_F(Mpi, FourRanksOnTheCpu) {
    all_works(4, "cpu");
}

TEST_F(Mpi, TwoRanksOnEmulatedCuda) {
    all_works(2, "cuda");
    for (const char *schedule : {"reverse", "random:1", "random:2"})
        all_works(2, "cuda", std::string("LOOM_EMULATION_SCHEDULE=") + schedule, "outstanding,streams");
}

TEST_F(Mpi, FourRanksOnEmulatedCuda) {
    all_works(4, "cuda", "LOOM_EMULATION_SCHEDULE=random:3");
}

TEST_F(Mpi, AHungRankIsNamed) {
    for (const int ranks : {2, 4}) {
        const Outcome o = mpirun(ranks, "hang mpi cpu 120 1");
        all_end(o, "gptloom: rank 1 did not come to all_reduce 3 (1000 of fp32) within 1 s: in step 2, "
                   "while the others are in step 3");
    }
}

TEST_F(Mpi, ARankThatGetsNoProcessorForAWhileIsNotNamed) {
    all_end(mpirun(3, "slow mpi cpu 240 1"),
            "gptloom: rank 1 did not come to all_reduce 3 (1000 of fp32) within 1 s: in step 2, "
            "while the others are in step 3");
}

TEST_F(Mpi, ThoseAtWorkAloneHaveTenTimesTheLimit) {
    all_works(2, "cpu 120 1", "", "long_timeout");
    all_end(mpirun(2, "long_timeout_hang mpi cpu 120 0.5"),
            "gptloom: rank 1 did not come to all_reduce 3 (1000 of fp32) within 5 s: in step 2, "
            "while the others are in step 3");
}

TEST_F(Mpi, TheDevicesOwnWorkIsNotWaitingForOthers) {
    all_works(2, "cuda", "", "own_work");
}

TEST_F(Mpi, AStoppedRankIsNamed) {
    const Outcome o = mpirun(4, "stop mpi cuda 120 1");
    EXPECT_EQ(o.status, 2) << o.output;
    ASSERT_EQ(lines_of(o.output).size(), 1u) << o.output;
    EXPECT_EQ(lines_of(o.output)[0].find("gptloom: rank 1: no answer for 1 s, to all_reduce 3 (1000 of fp32)"), 0u)
        << o.output;
    EXPECT_NE(lines_of(o.output)[0].find("in step 3"), std::string::npos) << o.output;
}

/* As rank 0 ends all, mpirun wakes the stopped rank, which then answers rank 2, too. */
TEST_F(Mpi, WhatIsFoundOutAfterTheEndIsNotSaid) {
    all_end(mpirun(4, "stop_in_pairs mpi cpu 120 1"),
            "gptloom: rank 1: no answer for 1 s, to exchange 2 (10 of fp32) of the other ranks, in step 1: it hangs, "
            "or its machine or the link to it is down");
}

TEST_F(Mpi, ARankThatLeavesEarlyIsNamed) {
    all_end(mpirun(2, "leave mpi cpu 120 1"),
            "gptloom: rank 1 did not come to all_reduce 3 (1000 of fp32) within 1 s: in step 2, "
            "while the others are in step 3");
}

TEST_F(Mpi, AKilledRankEndsAll) {
    const Outcome o = mpirun(4, "die mpi cpu");
    EXPECT_NE(o.status, 0) << o.output;
    EXPECT_NE(o.output.find("exited on signal 9"), std::string::npos) << "mpirun's own banner:\n" << o.output;
    EXPECT_EQ(lines_of(o.output).size(), 0u) << o.output;
}

TEST_F(Mpi, ARanksOwnErrorEndsAll) {
    all_end(mpirun(4, "own_error mpi cpu"), "gptloom: rank 1: data.bin: no such file");
}

TEST_F(Mpi, WhatDiffersBetweenRanksIsSaidOnce) {
    all_end(mpirun(4, "disagree mpi cpu"), "gptloom: the configuration of rank 1 is not that of rank 0: "
                                           "start all ranks alike");
}

TEST_F(Mpi, AnErrorThatRanksShareIsSaidOnce) {
    all_end(mpirun(4, "all_end mpi cpu"), "gptloom: rank 1: the disk is full");
}

TEST_F(Mpi, ARankWithoutMemoryToCommunicateEndsAll) {
    if (sanitized) GTEST_SKIP() << "AddressSanitizer ends a program that asks for so much";
    all_end(mpirun(3, "no_memory mpi cpu"),
            "gptloom: rank 1 has no memory to communicate: " + std::to_string(SIZE_MAX) + " bytes");
}

/* --ranks N: our line comes back to who started them. */
TEST_F(Mpi, LaunchedRanksLeaveTheirLastLine) {
    const std::string program = (folder() / "comm_rank").string();
    loom_ranks_end end;
    const auto launch = [&](std::vector<std::string> arguments, int *status) {
        arguments.insert(arguments.begin(), program);
        std::vector<char *> argv;
        for (std::string &a : arguments) argv.push_back(a.data());
        argv.push_back(nullptr);
        setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
        EXPECT_TRUE(works([&](loom_error *error) { return loom_launch_ranks(2, argv.data(), nullptr, &end, error); }));
        *status = end.status;
        return std::string(end.line.message);
    };
    int status = -1;
    EXPECT_EQ(launch({"host", "auto", "cpu"}, &status), "");
    EXPECT_EQ(status, 0);
    EXPECT_EQ(launch({"own_error", "auto", "cpu"}, &status), "rank 1: data.bin: no such file");
    EXPECT_EQ(status, 2);
    EXPECT_EQ(launch({"die", "auto", "cpu"}, &status), "rank 1 was ended by signal 9 (Killed)");
    EXPECT_EQ(status, 137);
    EXPECT_TRUE(end.was_ended);
    EXPECT_EQ(end.rank, 1);
    EXPECT_EQ(end.signal, 9);
    const std::string path = std::getenv("PATH");
    setenv("PATH", "/nowhere", 1);
    char *argv[] = {nullptr};
    refusal([&](loom_error *error) { return loom_launch_ranks(2, argv, nullptr, &end, error); },
            {"--ranks", "mpirun", "apt-get install"});
    setenv("PATH", path.c_str(), 1);
}

/* ----------------------------------------------------------------------------------------------------------------- NCCL */

class Nccl : public RanksTest {
  protected:
    Outcome torchrun(int ranks, const std::string &arguments, const std::string &environment = "", int stopped = -1) {
        return RanksTest::torchrun(ranks, "comm_rank", arguments, environment, stopped);
    }
    void all_works(const Outcome &o) {
        EXPECT_EQ(o.status, 0) << o.output;
        EXPECT_EQ(o.output, "");
    }
    const std::string everything = "operations,outstanding,streams,host nccl cuda";
};

TEST_F(Nccl, TwoRanksFindEachOtherByTcp) {
    for (const char *schedule : {"order LOOM_SECRET=known", "reverse", "random:1", "random:2"})
        all_works(torchrun(2, everything, at_port(free_port()) + " LOOM_EMULATION_SCHEDULE=" + schedule));
}

TEST_F(Nccl, FourRanksFindEachOtherByTcp) {
    all_works(torchrun(4, everything, at_port(free_port()) + " LOOM_EMULATION_SCHEDULE=random:3"));
}

TEST_F(Nccl, RanksFindEachOtherByAFile) {
    const std::string file = here.at("id");
    all_works(torchrun(3, "host nccl cuda", "LOOM_NCCL_ID=" + file));
    EXPECT_FALSE(fs::exists(file));
    /* What runs that were ended have left is in nobody's way. */
    write_file(file, std::string(128 + 3 * 8, 'x'));
    write_file(file + ".1", "12345678");
    all_works(torchrun(3, "host nccl cuda", "LOOM_NCCL_ID=" + file));
    for (const char *left : {"", ".0", ".1", ".2"}) EXPECT_FALSE(fs::exists(file + left)) << left;
}

TEST_F(Nccl, TorchrunsAgentHasMasterPort) {
    const int port = free_port();
    const int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)port);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    ASSERT_EQ(bind(s, (sockaddr *)&address, sizeof address), 0);
    ASSERT_EQ(listen(s, 1), 0);
    all_works(torchrun(2, "host nccl cuda", at_port(port) + " TORCHELASTIC_USE_AGENT_STORE=True"));
    const Outcome o = shell("env RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 LOOM_NCCL=" + standin() + " " + at_port(port) + " " +
                            (folder() / "comm_rank").string() + " host nccl cuda 2");
    EXPECT_EQ(o.status, 2) << o.output;
    EXPECT_NE(o.output.find("choose another MASTER_PORT"), std::string::npos) << o.output;
    close(s);
}

TEST_F(Nccl, RanksThatDoNotComeAreNamed) {
    const std::string all = at_port(free_port()) + " LOOM_NCCL=" + standin();
    const std::string rank = (folder() / "comm_rank").string() + " host nccl cuda 1";
    Outcome o = shell("env RANK=0 LOCAL_RANK=0 WORLD_SIZE=3 " + all + " " + rank);
    EXPECT_EQ(o.status, 2);
    ASSERT_EQ(lines_of(o.output).size(), 1u) << o.output;
    EXPECT_NE(o.output.find("ranks 1 and 2 did not come"), std::string::npos) << o.output;
    o = shell("env RANK=2 LOCAL_RANK=2 WORLD_SIZE=3 " + all + " " + rank);
    EXPECT_EQ(o.status, 2);
    EXPECT_NE(o.output.find("rank 0 cannot be reached at 127.0.0.1:"), std::string::npos) << o.output;
    o = shell("env RANK=2 LOCAL_RANK=2 WORLD_SIZE=3 LOOM_NCCL_ID=id " + all + " " + rank);
    EXPECT_EQ(o.status, 2);
    EXPECT_NE(o.output.find("rank 0 did not come to id"), std::string::npos) << o.output;
}

TEST_F(Nccl, VariablesThatMakeNoSenseAreNamed) {
    const std::string rank = (folder() / "comm_rank").string() + " host nccl cuda 1";
    Outcome o = shell("env RANK=3 LOCAL_RANK=0 WORLD_SIZE=3 LOOM_NCCL=" + standin() + " " + rank);
    EXPECT_EQ(o.status, 2);
    EXPECT_NE(o.output.find("RANK is"), std::string::npos) << o.output;
    o = shell("env RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 LOOM_NCCL=" + standin() + " " + rank);
    EXPECT_NE(o.output.find("MASTER_ADDR"), std::string::npos) << o.output;
    o = shell("env RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 LOOM_NCCL=" + standin() + " " + (folder() / "comm_rank").string() +
              " host nccl cpu 1");
    EXPECT_NE(o.output.find("--comm nccl: NCCL is between GPUs"), std::string::npos) << o.output;
}

/* The calls that NCCL gets, in order: the same on all ranks. */
TEST_F(Nccl, CallsAreThoseAskedForInOrder) {
    all_works(torchrun(2, "outstanding nccl cuda", at_port(free_port()) + " NCCL_STANDIN_LOG=" + here.at("calls")));
    /* All of a line but where and when. */
    const auto calls = [&](const char *file) {
        std::istringstream lines(read_file(here.at(file)));
        std::string found;
        for (std::string line; std::getline(lines, line);) found += line.substr(0, line.find(',')) + "\n";
        return found;
    };
    const std::string first = calls("calls.0");
    EXPECT_EQ(first, calls("calls.1"));
    std::string wanted = "CommInitRankConfig\n";
    for (int i = 0; i < 150; i++) {
        const char *const names[] = {"AllReduce", "ReduceScatter", "AllGather"};
        wanted += std::string(names[i % 3]) + " " + std::to_string(i * 37 % 91 + 1) + " type 7 comm 1\n";
        if (i == 75) wanted += "AllReduce 1 type 2 comm 1\n"; /* the barrier */
    }
    EXPECT_EQ(first, wanted + "CommFinalize\nCommDestroy\n");
}

TEST_F(Nccl, AHungRankEndsTheOthers) {
    const Outcome o = torchrun(2, "hang nccl cuda 120 1", at_port(free_port()), 1);
    EXPECT_EQ(o.status, 2) << o.output;
    ASSERT_EQ(lines_of(o.output).size(), 1u) << o.output;
    EXPECT_NE(o.output.find("rank 0 waited 1 s in step 3 for other ranks to come to all_reduce 3 (1000 of fp32)"),
              std::string::npos)
        << o.output;
}

TEST_F(Nccl, ThoseAtWorkAloneHaveTenTimesTheLimit) {
    all_works(torchrun(2, "long_timeout nccl cuda 120 1", at_port(free_port())));
}

TEST_F(Nccl, AnErrorOfTheLibraryNamesCallAndRank) {
    const Outcome o = torchrun(2, "outstanding nccl cuda", at_port(free_port()) + " NCCL_STANDIN_FAIL=0:5");
    EXPECT_EQ(o.status, 2) << o.output;
    EXPECT_NE(o.output.find("gptloom: rank 0, reduce_scatter 5 (58 of fp32): NCCL: unhandled system error: the cable "
                            "has been pulled\n"),
              std::string::npos)
        << o.output;
    EXPECT_EQ(lines_of(o.output, "gptloom: rank 1, ").size(), 1u) << o.output;
    EXPECT_NE(o.output.find("NCCL: remote process exited"), std::string::npos) << o.output;
}

TEST_F(Nccl, RanksThatShareAGpuAreRefused) {
    const Outcome o = torchrun(2, "host nccl cuda", at_port(free_port()) + " LOOM_EMULATION_GPUS=1");
    EXPECT_EQ(o.status, 2) << o.output;
    EXPECT_NE(
        o.output.find("ranks 0 and 1 are both on GPU 0 (NCCL wants a GPU for each rank; with --comm mpi ranks may "
                      "share one)"),
        std::string::npos)
        << o.output;
}

TEST(NcclHeader, SaysWhatWeSay) {
    if (!nccl_header_differences) GTEST_SKIP() << "there is no nccl.h here";
    EXPECT_EQ(nccl_header_differences(), "");
}

/* Under mpirun MPI carries the id, and finds out who hangs. */
class NcclUnderMpi : public Mpi {
  protected:
    const std::string library = "LOOM_NCCL=" + standin();
};

TEST_F(NcclUnderMpi, Works) {
    const Outcome o = mpirun(2, "operations,outstanding,streams,host nccl cuda", library);
    EXPECT_EQ(o.status, 0) << o.output;
    EXPECT_EQ(o.output, "");
}

TEST_F(NcclUnderMpi, ThoseAtWorkAloneHaveTenTimesTheLimit) {
    const Outcome o = mpirun(2, "long_timeout nccl cuda 120 1", library);
    EXPECT_EQ(o.status, 0) << o.output;
    EXPECT_EQ(o.output, "");
}

TEST_F(NcclUnderMpi, AHungRankIsNamed) {
    all_end(mpirun(3, "hang nccl cuda 120 1", library),
            "gptloom: rank 1 did not come to all_reduce 3 (1000 of fp32) within 1 s: in step 2, "
            "while the others are in step 3");
}

} // namespace
