/* How ranks find each other by TCP where anybody may connect: what rank 0 and the others say to each other, byte by
 * byte, with a secret and without; and rank 0 at its port among strangers that are silent, slow, talk nonsense, or
 * claim to be ranks. */
#include "support_ranks.h"

#include "comm/handshake.h"
#include "comm/rendezvous.h"

#include <arpa/inet.h>
#include <future>
#include <sys/stat.h>
#include <thread>

namespace {

using namespace support;

const double time_limit = 120; /* seconds, for hangs */

class Environment {
  public:
    Environment(std::initializer_list<std::pair<std::string, std::string>> values) {
        for (const auto &[name, value] : values) {
            names_.push_back(name);
            setenv(name.c_str(), value.c_str(), 1);
        }
    }
    ~Environment() {
        for (const std::string &name : names_) unsetenv(name.c_str());
    }
    Environment(const Environment &) = delete;
    Environment &operator=(const Environment &) = delete;

  private:
    std::vector<std::string> names_;
};

/* ------------------------------------------------------------------------------------------------------------ in memory */

/* The library is loaded once, in main's thread. */
loom_secret keyed() {
    static const loom_secret loaded = [] {
        const Environment environment = {{"LOOM_SECRET", "any"}};
        loom_secret read;
        require([&](loom_error *error) { return loom_secret_read(&read, error); });
        return read;
    }();
    return loaded;
}

struct Side {
    Side(int rank, int size, const std::string &secret_, const std::string &payload_, unsigned char nonce)
        : secret(secret_), payload(payload_), has_come(new bool[(size_t)size]()) {
        has_come[0] = true;
        party.rank = rank;
        party.size = size;
        party.payload = payload.data();
        party.bytes = payload.size();
        party.has_come = has_come.get();
        if (!secret.empty()) party.secret = keyed();
        party.secret.key = secret.empty() ? nullptr : secret.c_str();
        party.secret.length = secret.size();
        begin(nonce);
    }
    void begin(unsigned char nonce) {
        const std::string bytes(LOOM_HANDSHAKE_NONCE, (char)nonce);
        loom_handshake_begin(&handshake, &party, (const unsigned char *)bytes.data());
        result = LOOM_HANDSHAKE_GOES_ON;
    }
    /* What it has to say. */
    std::string answer() const {
        return {(const char *)handshake.answer, handshake.answer_bytes};
    }
    void take(const std::string &bytes) {
        result = loom_handshake_take(&handshake, bytes.data(), bytes.size());
    }
    std::string why() const {
        return result == LOOM_HANDSHAKE_REFUSED ? handshake.why : "";
    }

    std::string secret, payload;
    std::unique_ptr<bool[]> has_come;
    loom_handshake_party party = {};
    loom_handshake handshake;
    loom_handshake_result result;
};

const std::string id = [] {
    std::string bytes;
    for (int i = 0; i < 128; i++) bytes += (char)(i * 37 + 11);
    return bytes;
}();

/* Messages in the order in which they were sent, the ranks' at even places; `change` may change each on its way. */
using Messages = std::vector<std::string>;
Messages converse(Side &zero, Side &other, const std::function<void(size_t, std::string &)> &change = {}) {
    Messages all;
    Side *from = &other, *to = &zero;
    while (from->handshake.answer_bytes > 0 && to->result == LOOM_HANDSHAKE_GOES_ON) {
        std::string message = from->answer();
        from->handshake.answer_bytes = 0;
        if (change) change(all.size(), message);
        all.push_back(message);
        to->take(message);
        std::swap(from, to);
    }
    return all;
}

const std::string secret = "a secret of these ranks";

TEST(Handshake, GivesThePayloadWithAndWithoutASecret) {
    for (const std::string &key : {std::string(), secret}) {
        Side zero(0, 3, key, id, 1), two(2, 3, key, std::string(id.size(), 0), 2);
        const Messages all = converse(zero, two);
        EXPECT_EQ(all.size(), 5u);
        EXPECT_EQ(zero.result, LOOM_HANDSHAKE_DONE);
        EXPECT_EQ(two.result, LOOM_HANDSHAKE_DONE);
        EXPECT_EQ(zero.handshake.peer, 2);
        EXPECT_TRUE(two.payload == id);
        for (const std::string &message : all) EXPECT_EQ(message.find(secret), std::string::npos);
    }
}

TEST(Handshake, TakesBytesInAnyPieces) {
    Side zero(0, 2, secret, id, 1), one(1, 2, secret, std::string(id.size(), 0), 2);
    const std::function<void(Side &, const std::string &)> drip = [](Side &side, const std::string &bytes) {
        for (size_t i = 0; i < bytes.size(); i++) {
            EXPECT_EQ(side.result, LOOM_HANDSHAKE_GOES_ON);
            side.take(bytes.substr(i, 1));
            if (i + 1 < bytes.size()) {
                EXPECT_EQ(side.answer(), "");
            }
        }
    };
    for (int turn = 0; turn < 5; turn++) {
        Side &from = turn % 2 ? zero : one, &to = turn % 2 ? one : zero;
        drip(to, from.answer());
    }
    EXPECT_EQ(zero.result, LOOM_HANDSHAKE_DONE);
    EXPECT_EQ(one.result, LOOM_HANDSHAKE_DONE);
    EXPECT_TRUE(one.payload == id);
}

/* No bit of the id leaves rank 0 before the other side has proved that it knows the secret. */
TEST(Handshake, SecretsThatDifferAreRefusedByBoth) {
    const std::string other = "a secret of other ranks";
    const std::tuple<std::string, std::string, std::string, std::string> cases[] = {
        {secret, other, "rank 1 has another LOOM_SECRET", "LOOM_SECRET is another one there"},
        {secret, "", "rank 1 has no LOOM_SECRET, and rank 0 has one", "LOOM_SECRET is not set here, and is set there"},
        {"", secret, "rank 1 has a LOOM_SECRET, and rank 0 has none", "LOOM_SECRET is set here, and is not set there"}};
    for (const auto &[of_zero, of_one, why_zero, why_one] : cases) {
        Side zero(0, 2, of_zero, id, 1), one(1, 2, of_one, std::string(id.size(), 0), 2);
        const Messages all = converse(zero, one);
        EXPECT_EQ(zero.why(), why_zero);
        EXPECT_EQ(zero.result, LOOM_HANDSHAKE_REFUSED);
        EXPECT_EQ(one.result, LOOM_HANDSHAKE_REFUSED);
        EXPECT_EQ(one.why(), why_one);
        EXPECT_TRUE(one.handshake.was_refused);
        for (const std::string &message : all) EXPECT_EQ(message.find(id.substr(0, 16)), std::string::npos);
    }
}

/* What says that it is rank 0 has to know the secret too. */
TEST(Handshake, AFalseRankZeroIsRefused) {
    Side zero(0, 2, "a guess", id, 1), one(1, 2, secret, std::string(id.size(), 0), 2);
    zero.take(one.answer());
    one.take(zero.answer());
    /* It gives its payload to anybody. */
    Side guess(1, 2, "a guess", std::string(id.size(), 0), 2);
    guess.take(zero.answer());
    zero.take(guess.answer());
    one.take(zero.answer());
    EXPECT_EQ(one.why(), "what listens there does not know LOOM_SECRET");
    EXPECT_TRUE(one.payload == std::string(id.size(), 0));
}

TEST(Handshake, WhatWasHeardCannotBeUsedAgain) {
    Side zero(0, 2, secret, id, 1), one(1, 2, secret, std::string(id.size(), 0), 2);
    const Messages heard = converse(zero, one);
    ASSERT_EQ(zero.result, LOOM_HANDSHAKE_DONE);
    Side again(0, 2, secret, id, 3);
    again.take(heard[0]);
    again.take(heard[2]);
    EXPECT_EQ(again.why(), "rank 1 has another LOOM_SECRET");
    EXPECT_EQ(again.answer().find(id.substr(0, 16)), std::string::npos);
    Side other(1, 2, secret, std::string(id.size(), 0), 4);
    other.take(heard[1]);
    other.take(heard[3]);
    EXPECT_EQ(other.why(), "what listens there does not know LOOM_SECRET");
    /* Nor for another message: a proof is no acknowledgement. */
    Side third(0, 2, secret, id, 1), fourth(1, 2, secret, std::string(id.size(), 0), 2);
    converse(third, fourth, [&](size_t i, std::string &message) {
        if (i == 4) message.replace(24, 32, heard[2], 24, 32);
    });
    EXPECT_EQ(third.result, LOOM_HANDSHAKE_REFUSED);
}

/* Each bit of each message is checked where there is a secret; and without one, each that is not a nonce's. */
TEST(Handshake, AnyBitThatIsWrongIsRefused) {
    for (const std::string &key : {std::string(), secret}) {
        Side plain(0, 2, key, id, 1), peer(1, 2, key, std::string(id.size(), 0), 2);
        const Messages right = converse(plain, peer);
        for (size_t at = 0; at < right.size(); at++)
            for (size_t bit = 0; bit < 8 * right[at].size(); bit++) {
                const bool nonce = at < 2 && bit >= 8 * 32, payload = at == 3 && bit >= 8 * 56;
                if (key.empty() && (nonce || payload)) continue;
                Side zero(0, 2, key, id, 1), one(1, 2, key, std::string(id.size(), 0), 2);
                converse(zero, one, [&](size_t i, std::string &message) {
                    if (i == at) message[bit / 8] = (char)(message[bit / 8] ^ (1 << bit % 8));
                });
                EXPECT_NE(zero.result, LOOM_HANDSHAKE_DONE) << "bit " << bit << " of message " << at;
            }
    }
}

/* Once, rank 0 took the number in the last message for a place in memory. */
TEST(Handshake, NumbersOfRanksThatMakeNoSenseAreRefused) {
    for (const int32_t rank : {0x70000000, -1, -0x70000000, 0, 2, 3, 7})
        for (const size_t at : {0, 2, 4}) {
            Side zero(0, 3, "", id, 1), one(1, 3, "", std::string(id.size(), 0), 2);
            converse(zero, one, [&](size_t i, std::string &message) {
                if (i == at) memcpy(&message[16], &rank, sizeof rank);
            });
            if (at == 0 && rank == 2) continue; /* is a rank */
            EXPECT_EQ(zero.result, LOOM_HANDSHAKE_REFUSED) << rank << " in message " << at;
            EXPECT_LT(zero.handshake.peer, 3);
        }
}

TEST(Handshake, MoreRanksThanExpectedAndRanksThatHaveComeAreRefused) {
    Side zero(0, 3, "", id, 1), three(3, 4, "", std::string(id.size(), 0), 2), two(2, 3, "", three.payload, 2);
    converse(zero, three);
    EXPECT_EQ(zero.why(), "it says that it is rank 3 of 4");
    EXPECT_NE(three.why().find("WORLD_SIZE differs"), std::string::npos) << three.why();
    zero.begin(1);
    zero.has_come[2] = true;
    converse(zero, two);
    EXPECT_EQ(zero.why(), "rank 2 has come already");
    EXPECT_NE(two.why().find("another process has the same RANK"), std::string::npos) << two.why();
}

TEST(Handshake, TooMuchIsRefused) {
    for (const size_t at : {0, 1, 2, 3, 4}) {
        Side zero(0, 2, "", id, 1), one(1, 2, "", std::string(id.size(), 0), 2);
        converse(zero, one, [&](size_t i, std::string &message) {
            if (i == at) message += '\0';
        });
        EXPECT_EQ((at % 2 ? one : zero).result, LOOM_HANDSHAKE_REFUSED) << at;
    }
}

TEST(Handshake, NonsenseIsRefused) {
    for (uint64_t i = 0; i < 20000; i++) {
        Side zero(0, 2, "", id, 1), one(1, 2, "", std::string(id.size(), 0), 2);
        Side &side = i % 2 ? zero : one;
        std::string bytes = "gptloom2";
        bytes.resize(loom_random(i, LOOM_RANDOM_TEST, 0, 0).word[0] % 400);
        for (size_t k = i % 4 ? 12 : 0; k < bytes.size(); k++)
            bytes[k] = (char)(loom_random(i, LOOM_RANDOM_TEST, 1, k).word[0] >> (i % 8 < 4 ? 30 : 24));
        if (i % 4 && bytes.size() > 12) bytes[8] = (char)(i % 8);
        side.take(bytes);
        EXPECT_NE(side.result, LOOM_HANDSHAKE_DONE) << i;
    }
}

TEST(Secret, NeedsALibrary) {
    loom_secret read;
    const Environment environment = {{"LOOM_SECRET", "known"}, {"LOOM_CRYPTO", "/nowhere/libcrypto.so.3"}};
    refusal([&](loom_error *error) { return loom_secret_read(&read, error); },
            {"LOOM_SECRET", "/nowhere/libcrypto.so.3", "cannot be loaded", "apt-get install"});
    setenv("LOOM_CRYPTO", "libm.so.6", 1);
    refusal([&](loom_error *error) { return loom_secret_read(&read, error); }, {"libm.so.6", "lacks its functions"});
}

/* RFC 4231, test case 2. */
TEST(Secret, SignsAsTheStandardSays) {
    loom_secret read;
    unsigned char code[LOOM_SECRET_CODE];
    const Environment environment = {{"LOOM_SECRET", "Jefe"}};
    require([&](loom_error *error) { return loom_secret_read(&read, error); });
    ASSERT_TRUE(loom_secret_sign(&read, "what do ya want for nothing?", 28, code));
    const unsigned char right[] = {0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e};
    EXPECT_EQ(memcmp(code, right, sizeof right), 0);
    EXPECT_TRUE(loom_secret_holds(&read, "what do ya want for nothing?", 28, code));
    EXPECT_FALSE(loom_secret_holds(&read, "what do ya want for something?", 30, code));
}

/* -------------------------------------------------------------------------------------------------------------- at a port */

struct Shared {
    bool ok;
    std::string payload, message, refused; /* of rank 0: whom it has refused */
    bool open_to_all;
};

class Port : public testing::Test {
  protected:
    const int port = free_port();
    Environment environment = {{"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", std::to_string(port)}};
    std::vector<int> sockets;

    void SetUp() override {
        keyed();
    }
    void TearDown() override {
        for (const int s : sockets) close(s);
    }

    /* A rank as a thread. */
    std::future<Shared> rank(int number, int size, double timeout = time_limit) {
        /* What it reads of the environment it has read when it listens or connects; strangers come after that. */
        return std::async(std::launch::async, [=] {
            Shared shared = {false, number == 0 ? id : std::string(id.size(), 0), "", "", false};
            const loom_rank_variables v = {number, size, number, size};
            loom_rendezvous *rendezvous = nullptr;
            loom_error error = {""};
            shared.ok = loom_share_by_tcp(shared.payload.data(), id.size(), &v, timeout, &rendezvous, &error);
            shared.message = error.message;
            if (rendezvous) {
                shared.refused = loom_rendezvous_refused(rendezvous);
                shared.open_to_all = loom_rendezvous_is_open_to_all(rendezvous);
            }
            loom_rendezvous_close(rendezvous);
            return shared;
        });
    }
    /* Of the first one, more. */
    static Shared expect_shared(std::initializer_list<std::future<Shared> *> ranks) {
        std::vector<Shared> all;
        for (auto *r : ranks) {
            all.push_back(r->get());
            EXPECT_TRUE(all.back().ok) << all.back().message;
            EXPECT_TRUE(all.back().payload == id);
        }
        return all[0];
    }

    static bool connects(int s, uint32_t host, int to) {
        sockaddr_in address = {};
        address.sin_family = AF_INET;
        address.sin_port = htons((uint16_t)to);
        address.sin_addr.s_addr = htonl(host);
        return connect(s, (sockaddr *)&address, sizeof address) == 0;
    }
    /* A stranger's connection, as soon as rank 0 listens. */
    int stranger(uint32_t host = INADDR_LOOPBACK) {
        const int s = socket(AF_INET, SOCK_STREAM, 0);
        for (int i = 0; i < 100 * (int)time_limit && !connects(s, host, port); i++) usleep(10000);
        sockets.push_back(s);
        return s;
    }
    static void say(int s, const std::string &bytes) {
        send(s, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    }
    static std::string hear(int s) {
        char bytes[1000];
        const ssize_t n = recv(s, bytes, sizeof bytes, 0);
        return {bytes, n > 0 ? (size_t)n : 0};
    }
    /* Says it all as a rank would, but for what `change` does. */
    std::string claim(Side side, const std::function<void(size_t, std::string &)> &change = {}) {
        const int s = stranger();
        for (size_t i = 0; i < 3; i++) {
            std::string message = side.answer();
            if (change) change(i, message);
            say(s, message);
            if (i == 2) break;
            const std::string heard = hear(s);
            side.take(heard);
            if (side.result == LOOM_HANDSHAKE_REFUSED || heard.empty()) return side.handshake.why;
        }
        hear(s); /* until rank 0 has taken it */
        return "";
    }
};

TEST_F(Port, RanksShare) {
    for (const char *key : {"", "a secret"}) {
        const Environment with = {{"LOOM_SECRET", key}};
        auto zero = rank(0, 3), one = rank(1, 3), two = rank(2, 3);
        expect_shared({&zero, &one, &two});
    }
}

/* 5 s for each of these, one after the other, would be 25 minutes. */
TEST_F(Port, NobodyWaitsForThoseThatAreSilentOrTalkNonsense) {
    auto zero = rank(0, 2);
    for (int i = 0; i < 300; i++) {
        const int s = stranger();
        if (i % 3 == 1) say(s, "gpt");
        if (i % 3 == 2) say(s, std::string(1000, (char)i));
    }
    auto one = rank(1, 2);
    expect_shared({&zero, &one});
}

TEST_F(Port, AClaimNeedsTheSecret) {
    const Environment with = {{"LOOM_SECRET", secret}};
    auto zero = rank(0, 2);
    EXPECT_EQ(claim(Side(1, 2, "", id, 1)), "LOOM_SECRET is not set here, and is set there");
    EXPECT_EQ(claim(Side(1, 2, "a guess", id, 1)), "LOOM_SECRET is another one there");
    auto one = rank(1, 2);
    expect_shared({&zero, &one});
}

TEST_F(Port, AnAcknowledgementOfAnotherRankDoesNoHarm) {
    auto zero = rank(0, 2);
    for (const int32_t bad : {0x70000000, -5, 0, 2})
        claim(Side(1, 2, "", id, 1), [&](size_t i, std::string &message) {
            if (i == 2) memcpy(&message[16], &bad, sizeof bad);
        });
    auto one = rank(1, 2);
    expect_shared({&zero, &one});
}

/* Where there is no secret the first one is believed; rank 0 says who came second, and from where. */
TEST_F(Port, RanksThatComeTwiceAreNamedWithTheirAddress) {
    auto zero = rank(0, 3);
    EXPECT_EQ(claim(Side(1, 3, "", id, 1)), "");
    const Shared second = rank(1, 3, 0.1).get();
    EXPECT_FALSE(second.ok);
    EXPECT_EQ(second.message.find("rank 0 at 127.0.0.1:" + std::to_string(port) +
                                  " refuses rank 1: this rank has come already"),
              0u)
        << second.message;
    auto two = rank(2, 3);
    const std::string refused = expect_shared({&zero, &two}).refused;
    EXPECT_EQ(refused.find("; refused 127.0.0.1:"), 0u) << refused;
    EXPECT_NE(refused.find(": rank 1 has come already, from 127.0.0.1:"), std::string::npos) << refused;
}

TEST_F(Port, MoreRanksThanExpectedAreNamedWithTheirAddress) {
    auto zero = rank(0, 2);
    EXPECT_NE(claim(Side(3, 4, "", id, 1)).find("WORLD_SIZE differs"), std::string::npos);
    auto one = rank(1, 2);
    const std::string refused = expect_shared({&zero, &one}).refused;
    EXPECT_EQ(refused.find("; refused 127.0.0.1:"), 0u) << refused;
    EXPECT_NE(refused.find(": it says that it is rank 3 of 4"), std::string::npos) << refused;
}

TEST_F(Port, WhoDoesNotComeIsNamedWithWhomWasRefused) {
    std::string message;
    for (double limit = 0.3; limit < time_limit && message.find("; refused 127.0.0.1:") == std::string::npos;
         limit *= 6) {
        auto zero = rank(0, 2, limit);
        Side three(3, 5, "", id, 1);
        say(stranger(), three.answer());
        message = zero.get().message;
    }
    EXPECT_EQ(message.find("rank 1 did not come to rank 0 at 127.0.0.1:" + std::to_string(port) + " within "), 0u);
    EXPECT_NE(message.find(" s; refused 127.0.0.1:"), std::string::npos) << message;
}

/* Each connection has so many seconds, however often it says something. */
TEST_F(Port, ASlowOneIsSentAway) {
    if (!full()) GTEST_SKIP() << "make test-full runs it";
    auto zero = rank(0, 2);
    const int s = stranger();
    std::thread drip([s] {
        const char hello[] = "gptloom2\1\0\0\0\x40\0\0\0\1\0\0\0\2\0\0\0";
        for (size_t i = 0; i < 20; i++) {
            if (send(s, hello + i, 1, MSG_NOSIGNAL) < 0) break;
            usleep(500000);
        }
    });
    EXPECT_EQ(hear(s), "");
    drip.join();
    auto one = rank(1, 2);
    expect_shared({&zero, &one});
}

/* At MASTER_ADDR and nowhere else; but where that is none of this machine's, as behind a name for several machines. */
TEST_F(Port, ListensAtMasterAddr) {
    const auto reaches = [&](uint32_t host) {
        const int s = socket(AF_INET, SOCK_STREAM, 0);
        const bool there = connects(s, host, port);
        close(s);
        return there;
    };
    auto zero = rank(0, 2);
    stranger();
    EXPECT_FALSE(reaches(INADDR_LOOPBACK + 1));
    auto one = rank(1, 2);
    expect_shared({&zero, &one});
    setenv("MASTER_ADDR", "192.0.2.1", 1); /* nobody's: RFC 5737 */
    zero = rank(0, 2);
    stranger();
    EXPECT_TRUE(reaches(INADDR_LOOPBACK + 1));
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    one = rank(1, 2);
    EXPECT_TRUE(expect_shared({&zero, &one}).open_to_all);
    setenv("MASTER_ADDR", "localhost", 1);
    zero = rank(0, 2);
    one = rank(1, 2);
    expect_shared({&zero, &one});
}

/* ------------------------------------------------------------------------------------------------------------- by a file */

/* A pipe in the way is not waited for, and a file of another size is not taken. */
TEST(File, OnlyWhatRanksWriteIsRead) {
    TemporaryDirectory here;
    const std::string file = here.at("id");
    std::string payload = id;
    ASSERT_EQ(mkfifo((file + ".1").c_str(), 0600), 0);
    refusal(
        [&](loom_error *error) {
            return loom_share_by_file(file.c_str(), payload.data(), id.size(), 0, 2, 0.3, error);
        },
        {"rank 1 did not come to", "id within 0.3 s"});
    fs::remove(file + ".1");
    std::string mine(id.size(), 0);
    ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
    refusal(
        [&](loom_error *error) { return loom_share_by_file(file.c_str(), mine.data(), id.size(), 1, 2, 0.3, error); },
        {"rank 0 did not come to", "id within 0.3 s"});
}

} // namespace
