/* Two hosts: network namespaces that a link joins, each with a name of its own. mpirun, started in one, enters the
 * other by a script where it would take ssh. Ranks train over the link; it is cut; they go on when it is there again.
 * */
#include "support_runs.h"

namespace {

using namespace support;

class TwoHosts : public RunsTest {
  protected:
    std::unique_ptr<Process> host[2]; /* what keeps a namespace there */
    std::string agent = here.at("agent");

    static std::string address(int i) {
        return "10.77.0." + std::to_string(i + 1);
    }
    /* Words that run others on a host. */
    Words on(int i) const {
        return words("nsenter -t " + std::to_string(host[i]->pid()) + " -n -u --");
    }
    bool runs(const Words &program) {
        return start(program)->wait() == 0;
    }
    bool set_link(int i, const std::string &state) {
        return runs(on(i) + words("ip link set link0 " + state));
    }

    std::string why_not() {
        for (const char *program : {"ip", "unshare", "nsenter"})
            if (!have(program)) return std::string("there is no ") + program + " here";
        if (geteuid() != 0 || !runs(words("unshare -n -u true")))
            return "namespaces of the network are not to be had here; as root they may be";
        for (auto &h : host) h = start(words("unshare -n -u sleep 600"));
        for (const auto &h : host)
            while (!h->has_ended() && read_file("/proc/" + std::to_string(h->pid()) + "/comm") != "sleep\n")
                usleep(1000);
        const std::string a = std::to_string(host[0]->pid()), b = std::to_string(host[1]->pid());
        if (!runs(words("ip link add link0 netns " + a + " type veth peer name link0 netns " + b)))
            return "no link between namespaces of the network can be made here";
        std::string script = "#!/bin/sh\nhost=$1\nshift\ncase $host in\n";
        for (int i = 0; i < 2; i++) {
            const std::string name = "loom-host-" + std::to_string(i);
            EXPECT_TRUE(runs(on(i) + Words{"sh", "-c", "echo " + name + " >/proc/sys/kernel/hostname"}));
            EXPECT_TRUE(runs(on(i) + words("ip link set lo up")));
            EXPECT_TRUE(runs(on(i) + words("ip address add " + address(i) + "/24 dev link0")));
            EXPECT_TRUE(set_link(i, "up"));
            std::string enter;
            for (const std::string &word : on(i)) enter += word + " ";
            script += address(i) + ") exec " + enter + "sh -c \"$*\" ;;\n";
        }
        write_file(agent, script + "esac\necho \"$host: no such host\"\nexit 1\n");
        fs::permissions(agent, fs::perms::owner_all);
        return "";
    }

    void SetUp() override {
        RunsTest::SetUp();
        if (IsSkipped()) return;
        const std::string why = why_not();
        if (!why.empty()) GTEST_SKIP() << why;
    }

    void TearDown() override {
        for (auto &h : host) h.reset(); /* and with them their namespaces and the link */
        RunsTest::TearDown();
    }

    /* Half of the ranks on each host. mpirun's own connection, which says nothing in a long while, tells a cut link by
     * so many seconds without an answer. */
    Words across(int ranks, int seconds = 480) {
        const std::string slots = ":" + std::to_string(ranks / 2);
        return on(0) + by_mpirun(ranks, words("-H " + address(0) + slots + "," + address(1) + slots +
                                              " --mca plm_rsh_agent " + agent + " --mca pml ob1 --mca btl tcp,self" +
                                              " --mca oob_tcp_keepalive_time " + std::to_string(seconds - 2) +
                                              " --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 2"));
    }

    /* Has TCP give up what is on its way after 13 s (6 retries: 25 s), where systems wait for a quarter of an hour. */
    void give_up_soon(int retries = 5) {
        const std::string number = std::to_string(retries);
        for (int i = 0; i < 2; i++)
            ASSERT_TRUE(runs(on(i) + Words{"sh", "-c", "echo " + number + " >/proc/sys/net/ipv4/tcp_retries2"}));
    }

    /* Bytes that a host has sent over the link. */
    int64_t sent(int i) const {
        std::istringstream lines(read_file("/proc/" + std::to_string(host[i]->pid()) + "/net/dev"));
        for (std::string line; std::getline(lines, line);) {
            const size_t at = line.find("link0:");
            if (at == std::string::npos) continue;
            std::istringstream numbers(line.substr(at + 6));
            int64_t value = -1;
            for (int field = 0; field < 9; field++) numbers >> value;
            return value;
        }
        return -1;
    }
};

TEST_F(TwoHosts, TrainTogetherToTheSameBits) {
    for (const int ranks : {2, 4}) {
        if (ranks > 2 && !full()) continue;
        const std::string out = "run-" + std::to_string(ranks);
        const int64_t before[2] = {sent(0), sent(1)};
        auto process = start(across(ranks) + train(out, "--zero 2 --stop-after 4"));
        EXPECT_EQ(process->wait(), 0) << process->output();
        EXPECT_TRUE(process->is_gone());
        EXPECT_TRUE(bits_in(here.path() / out) == bits_without_failures(4)) << "other bits";
        EXPECT_NE(log(out, 0).find(" on loom-host-0;"), std::string::npos) << log(out, 0);
        EXPECT_NE(log(out, ranks - 1).find(" on loom-host-1;"), std::string::npos) << log(out, ranks - 1);
        /* In each step at least half of the gradients, and half of the parameters, go each way. */
        const int64_t bytes = 4 * 2 * (257 * 16 + 16 * 16 + 12 * 16 * 16) * (int64_t)sizeof(float) / 2;
        for (int i = 0; i < 2; i++) EXPECT_GT(sent(i) - before[i], bytes);
    }
}

/* mpirun notices it first, and ends both sides. */
TEST_F(TwoHosts, ALinkThatIsCutForLongerThanMpirunWaits) {
    if (!full()) GTEST_SKIP() << "make test-full runs it";
    give_up_soon();
    auto process = start(across(2, 4) + train("run", "--zero 2 --comm-timeout 60"));
    rank_after(*process, "run", 1, 4);
    ASSERT_TRUE(set_link(1, "down"));
    EXPECT_GT(process->wait(), 0) << process->output();
    EXPECT_TRUE(process->is_gone());
    EXPECT_NE(process->output().find("lost communication with a remote daemon"), std::string::npos)
        << process->output();
    for (int r = 0; r < 2; r++) EXPECT_EQ(last_line(log("run", r)).rfind("step ", 0), 0u) << log("run", r);
    ASSERT_TRUE(set_link(1, "up"));
    expect_resumes("run", "", across(2));
}

/* The ranks notice it first: those of either side say who is silent, and end. mpirun, whose last words to the other
 * side are on their way, ends when TCP gives up. */
TEST_F(TwoHosts, ALinkThatIsCutForLongerThanRanksWait) {
    if (!full()) GTEST_SKIP() << "make test-full runs it";
    give_up_soon(6);
    auto process = start(across(4) + train("run", "--zero 2 --comm-timeout 10"));
    rank_after(*process, "run", 3, 4);
    ASSERT_TRUE(set_link(1, "down"));
    const std::string one = ": ranks 2 and 3: no answer for 10 s, to ",
                      other = ": ranks 0 and 1: no answer for 10 s, to ";
    const std::string why = ": they hang, or their machines or the links to them are down";
    const double end = now() + seconds_to_hang;
    for (int r = 0; r < 4; r++) {
        std::string last;
        while ((last = last_line(log("run", r))).rfind("ended in step ", 0) != 0 && now() < end) usleep(10000);
        EXPECT_EQ(last.rfind("ended in step ", 0), 0u) << log("run", r);
        EXPECT_NE(last.find(r < 2 ? one : other), std::string::npos) << log("run", r);
        EXPECT_NE(last.find(why), std::string::npos) << log("run", r);
    }
    EXPECT_GT(process->wait(), 0) << process->output();
    EXPECT_TRUE(process->is_gone());
    ASSERT_EQ(ours(*process).size(), 1u) << process->output();
    EXPECT_EQ(ours(*process)[0].rfind("gptloom" + one, 0), 0u) << process->output();
    ASSERT_TRUE(set_link(1, "up"));
    expect_resumes("run", "", across(2));
}

/* NCCL's id goes over the link, by TCP to torchrun's address; what stands in for NCCL goes through shared memory. */
TEST_F(TwoHosts, FindEachOtherForNccl) {
    const std::string program = (folder() / "../emulated/gptloom").lexically_normal().string();
    const auto rank = [&](int i, const std::string &out) {
        Words all = on(i) + words("env WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_PORT=29500 RANK=" +
                                  std::to_string(i) + " MASTER_ADDR=" + address(0) +
                                  " LOOM_NCCL=" + (folder() / "libnccl_standin.so").string());
        Words rest = train(out, "--device cuda --comm nccl --tuning alone/tuning.txt --stop-after 2");
        rest[0] = program;
        return all + rest;
    };
    Words alone = train("alone", "--device cuda --stop-after 2");
    alone[0] = program;
    ASSERT_TRUE(runs(alone));
    const int64_t before[2] = {sent(0), sent(1)};
    std::unique_ptr<Process> ranks[2] = {start(rank(0, "run")), start(rank(1, "run"))};
    for (auto &process : ranks) EXPECT_EQ(process->wait(), 0) << process->output();
    EXPECT_EQ(saved("run"), 2);
    for (int i = 0; i < 2; i++) EXPECT_GT(sent(i) - before[i], 128) << "the id's bytes";
    EXPECT_TRUE(bits_in(here.path() / "run") == bits_in(here.path() / "alone")) << "other bits";
    /* Over a link that is down. */
    ASSERT_TRUE(set_link(1, "down"));
    for (int i = 0; i < 2; i++) ranks[i] = start(rank(i, "none") + words("--comm-timeout 2"));
    for (auto &process : ranks) {
        EXPECT_EQ(process->wait(), 2) << process->output();
        EXPECT_EQ(ours(*process).size(), 1u) << process->output();
    }
    EXPECT_NE(ranks[0]->output().find("rank 1 did not come to rank 0 at " + address(0) + ":29500 within 2 s"),
              std::string::npos)
        << ranks[0]->output();
    EXPECT_NE(ranks[1]->output().find("rank 0 cannot be reached at " + address(0) + ":29500 within 2 s"),
              std::string::npos)
        << ranks[1]->output();
}

} // namespace
