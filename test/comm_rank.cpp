/* One rank of a test of the communicator: test_comm starts several of these.
 *
 *     comm_rank SCENARIO,... BACKEND DEVICE [SECONDS [SECONDS OF WHAT FAILS]]
 *
 * Ends with status 0, or with 1 and lines that say what is wrong with its results; 2 is an error of the communicator.
 * */
#include "gptloom/gptloom.h"

#include "base/clock.h"
#include "base/half.h"
#include "comm/collectives.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <unistd.h>

namespace {

loom_comm *comm;
loom_device *device;
int wrong;
double limit; /* of the operations that are to fail: ranks do not start at the same time, whatever that takes */

/* What an error of the communicator does in a program. */
void require(const std::function<bool(loom_error *)> &run) {
    loom_error error = {""};
    if (run(&error)) return;
    if (comm) loom_comm_abort(comm, &error, 2);
    fprintf(stderr, "gptloom: %s\n", error.message);
    exit(2);
}

void expect(bool holds, const std::string &what) {
    if (holds) return;
    if (wrong++ < 10) fprintf(stderr, "rank %d: wrong: %s\n", comm->rank, what.c_str());
}

/* ----------------------------------------------------------------------------------------------------- device memory */

/* Copies go through a stream, without waiting. */
class Buffer {
  public:
    Buffer(int64_t n, loom_dtype dtype) : bytes_((size_t)n * loom_dtype_size(dtype)), host_(bytes_, 0) {
        require([&](loom_error *error) { return device->allocate(device, &data_, bytes_ ? bytes_ : 1, error); });
    }
    ~Buffer() {
        device->release(device, data_, bytes_ ? bytes_ : 1);
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    char *at(int64_t first, loom_dtype dtype) const {
        return (char *)data_ + (size_t)first * loom_dtype_size(dtype);
    }
    void write(const std::string &bytes, loom_stream *stream = nullptr) {
        host_ = bytes;
        device->copy(device, stream, data_, host_.data(), host_.size(), LOOM_HOST_TO_DEVICE);
    }
    /* Waits. */
    std::string read(loom_stream *stream = nullptr) const {
        std::string bytes(bytes_, 0);
        device->copy(device, stream, bytes.data(), data_, bytes_, LOOM_DEVICE_TO_HOST);
        require([&](loom_error *error) { return loom_comm_synchronize(comm, stream, error); });
        return bytes;
    }

  private:
    size_t bytes_;
    std::string host_;
    void *data_ = nullptr;
};

/* ------------------------------------------------------------------------------------------------------------ values */

/* Values of a rank that differ from rank to rank and place to place, of either sign. */
double value(int rank, int64_t i, int salt, loom_dtype dtype) {
    uint64_t x = (uint64_t)i * 0x9E3779B97F4A7C15u + (uint64_t)(rank + 1) * 0xD1B54A32D192ED03u + (uint64_t)salt;
    x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9u;
    x ^= x >> 32;
    if (dtype == LOOM_I32 || dtype == LOOM_I64) return (double)(int64_t)(x % 2000001) - 1000000;
    return ((double)(x % 2000001) - 1000000) * 0x1p-17;
}

void store(char *to, double v, loom_dtype dtype) {
    const float f = (float)v;
    const uint16_t h = dtype == LOOM_BF16 ? float_to_bf16(f) : float_to_fp16(f);
    const int32_t i = (int32_t)v;
    const int64_t l = (int64_t)v;
    const void *from = dtype == LOOM_F32   ? (const void *)&f
                       : dtype == LOOM_F64 ? (const void *)&v
                       : dtype == LOOM_I32 ? (const void *)&i
                       : dtype == LOOM_I64 ? (const void *)&l
                                           : (const void *)&h;
    memcpy(to, from, loom_dtype_size(dtype));
}

double load(const char *from, loom_dtype dtype) {
    float f;
    double d;
    uint16_t h;
    int32_t i;
    int64_t l;
    switch (dtype) {
    case LOOM_F32: return memcpy(&f, from, sizeof f), f;
    case LOOM_F64: return memcpy(&d, from, sizeof d), d;
    case LOOM_I32: return memcpy(&i, from, sizeof i), i;
    case LOOM_I64: return memcpy(&l, from, sizeof l), (double)l;
    case LOOM_BF16: return memcpy(&h, from, sizeof h), bf16_to_float(h);
    case LOOM_F16: return memcpy(&h, from, sizeof h), fp16_to_float(h);
    }
    return 0;
}

/* n values of a rank from place `first` on, as they are stored. */
std::string values(int rank, int64_t first, int64_t n, int salt, loom_dtype dtype) {
    const size_t size = loom_dtype_size(dtype);
    std::string bytes((size_t)n * size, 0);
    for (int64_t i = 0; i < n; i++) store(&bytes[(size_t)i * size], value(rank, first + i, salt, dtype), dtype);
    return bytes;
}

/* Half an epsilon; 0 for what is exact. */
double unit(loom_dtype dtype) {
    return dtype == LOOM_F32 ? 0x1p-24 : dtype == LOOM_F64 ? 0x1p-53 : dtype == LOOM_BF16 ? 0x1p-8 : 0;
}

/* Sums in any order of N addends err by no more than (N - 1) u / (1 - (N - 1) u) times the sum of magnitudes (Higham,
 * Accuracy and Stability, 4.2); the plain sum in double, which it is compared with, errs too little to count. */
void expect_sums(const std::string &found, int64_t first, int64_t n, int salt, loom_dtype dtype,
                 const std::string &what) {
    const size_t size = loom_dtype_size(dtype);
    const double roundings = (comm->size - 1) * unit(dtype), bound = roundings / (1 - roundings) * (1 + 0x1p-20);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0, magnitude = 0;
        for (int r = 0; r < comm->size; r++) {
            char stored[8];
            store(stored, value(r, first + i, salt, dtype), dtype);
            sum += load(stored, dtype);
            magnitude += std::fabs(load(stored, dtype));
        }
        const double is = load(&found[(size_t)i * size], dtype);
        const bool holds = comm->size == 2 && dtype == LOOM_BF16
                               ? is == (double)bf16_to_float(float_to_bf16((float)sum)) /* one rounding */
                               : std::fabs(is - sum) <= bound * magnitude;
        if (!holds) {
            expect(false, what + ": element " + std::to_string(i) + " is " + std::to_string(is) + ", not " +
                              std::to_string(sum));
            return;
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------- operations */

void wait(loom_comm_op_id op_id, loom_stream *stream = nullptr) {
    require([&](loom_error *error) { return loom_comm_wait(comm, op_id, stream, error); });
}

std::string name(const char *what, int64_t n, loom_dtype dtype, bool in_place) {
    return std::string(what) + " of " + std::to_string(n) + " " + loom_dtype_name(dtype) +
           (in_place ? ", in place" : "");
}

/* Whether all ranks have the same bytes. */
void expect_agreement(const std::string &bytes, const std::string &what) {
    const uint64_t hash = std::hash<std::string>()(bytes);
    std::vector<uint64_t> all((size_t)comm->size);
    require([&](loom_error *error) { return loom_comm_host_gather(comm, all.data(), &hash, sizeof hash, error); });
    for (const uint64_t other : all) expect(other == hash, what + ": ranks have different bits");
}

void try_all_reduce(int64_t n, loom_dtype dtype, bool in_place) {
    Buffer in(n, dtype), out(n, dtype);
    const std::string before = values(comm->rank, 0, n, 1, dtype);
    in.write(before);
    Buffer &to = in_place ? in : out;
    wait(loom_comm_all_reduce(comm, nullptr, to.at(0, dtype), in.at(0, dtype), n, dtype));
    const std::string found = to.read(), what = name("all_reduce", n, dtype, in_place);
    expect_sums(found, 0, n, 1, dtype, what);
    expect_agreement(found, what);
    if (!in_place) expect(in.read() == before, what + ": the input has changed");
}

void try_reduce_scatter(int64_t n, loom_dtype dtype, bool in_place) {
    Buffer in(n * comm->size, dtype), out(n, dtype);
    const std::string before = values(comm->rank, 0, n * comm->size, 2, dtype);
    in.write(before);
    char *to = in_place ? in.at(n * comm->rank, dtype) : out.at(0, dtype);
    wait(loom_comm_reduce_scatter(comm, nullptr, to, in.at(0, dtype), n, dtype));
    std::string found = (in_place ? in : out).read();
    const std::string what = name("reduce_scatter", n, dtype, in_place);
    const size_t row = (size_t)n * loom_dtype_size(dtype), own = row * (size_t)comm->rank;
    if (in_place) {
        std::string rest = found;
        rest.replace(own, row, before, own, row);
        expect(rest == before, what + ": other ranks' parts of the input have changed");
        found = found.substr(own, row);
    } else
        expect(in.read() == before, what + ": the input has changed");
    expect_sums(found, n * comm->rank, n, 2, dtype, what);
}

void try_all_gather(int64_t n, loom_dtype dtype, bool in_place) {
    Buffer in(n, dtype), out(n * comm->size, dtype);
    const std::string own = values(comm->rank, 0, n, 3, dtype);
    in.write(own);
    std::string all;
    for (int r = 0; r < comm->size; r++) all += values(r, 0, n, 3, dtype);
    if (in_place) {
        std::string rows(all.size(), 7);
        rows.replace(own.size() * (size_t)comm->rank, own.size(), own);
        out.write(rows);
    }
    const void *from = in_place ? out.at(n * comm->rank, dtype) : in.at(0, dtype);
    wait(loom_comm_all_gather(comm, nullptr, out.at(0, dtype), from, n, dtype));
    expect(out.read() == all, name("all_gather", n, dtype, in_place));
}

void try_broadcast(int64_t n, loom_dtype dtype) {
    for (int root = 0; root < comm->size; root += comm->size - 1 ? comm->size - 1 : 1) {
        Buffer buffer(n, dtype);
        buffer.write(values(comm->rank, 0, n, 4, dtype));
        wait(loom_comm_broadcast(comm, nullptr, buffer.at(0, dtype), n, dtype, root));
        expect(buffer.read() == values(root, 0, n, 4, dtype), name("broadcast", n, dtype, true));
    }
}

/* With the neighbour, as a tree of pairs does; round a ring, with counts that differ; and one way only. */
void try_exchange(int64_t n, loom_dtype dtype) {
    const int rank = comm->rank, size = comm->size;
    const int right = (rank + 1) % size, left = (rank + size - 1) % size;
    Buffer in(n + size, dtype), out(n + size, dtype);
    in.write(values(rank, 0, n + size, 5, dtype));
    const std::string untouched((size_t)(n + size) * loom_dtype_size(dtype), 9);
    const auto received = [&](int from, int64_t count) {
        std::string whole = untouched;
        const std::string got = values(from, 0, count, 5, dtype);
        return whole.replace(0, got.size(), got);
    };
    out.write(untouched);
    const int pair = rank ^ 1;
    wait(loom_comm_exchange(comm, nullptr, out.at(0, dtype), n, pair, in.at(0, dtype), n, pair, dtype));
    expect(out.read() == received(pair, n), name("exchange in pairs", n, dtype, false));
    out.write(untouched);
    wait(loom_comm_exchange(comm, nullptr, out.at(0, dtype), n + left, left, in.at(0, dtype), n + rank, right, dtype));
    expect(out.read() == received(left, n + left), name("exchange in a ring", n, dtype, false));
    out.write(untouched);
    const int to = rank == 0 ? size - 1 : -1, from = rank == size - 1 ? 0 : -1;
    wait(loom_comm_exchange(comm, nullptr, from < 0 ? nullptr : out.at(0, dtype), n, from,
                            to < 0 ? nullptr : in.at(0, dtype), n, to, dtype));
    expect(out.read() == (from < 0 ? untouched : received(0, n)), name("exchange one way", n, dtype, false));
}

/* Every operation and type; sizes of nothing, of one, odd, and of more pieces than there are pinned buffers. */
void operations() {
    for (const int64_t n : {0, 1, 3, 1000, 70001})
        for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16, LOOM_F64, LOOM_I32, LOOM_I64, LOOM_F16}) {
            if (n != 1000 && dtype != LOOM_F32 && dtype != LOOM_BF16) continue;
            for (const bool in_place : {false, true}) {
                if (dtype != LOOM_F16) try_all_reduce(n, dtype, in_place);
                if (dtype != LOOM_F16) try_reduce_scatter(n, dtype, in_place);
                try_all_gather(n, dtype, in_place);
            }
            try_broadcast(n, dtype);
            try_exchange(n, dtype);
        }
}

/* ------------------------------------------------------------------------------------------------------- many at once */

/* More operations than can be outstanding, of different kinds and sizes; each one's result is looked at, in an order
 * that is not the one in which they were put in. */
void outstanding() {
    enum { COUNT = 150 };
    const loom_comm_traffic before = comm->traffic;
    std::vector<std::unique_ptr<Buffer>> buffers;
    std::vector<loom_comm_op_id> op_ids;
    const auto length = [](int i) { return (int64_t)(i * 37 % 91 + 1); };
    for (int i = 0; i < COUNT; i++) {
        const int64_t n = length(i);
        buffers.push_back(std::make_unique<Buffer>(n * comm->size, LOOM_F32));
        Buffer &b = *buffers.back();
        b.write(values(comm->rank, 0, n * comm->size, i, LOOM_F32));
        char *own = b.at(n * comm->rank, LOOM_F32), *all = b.at(0, LOOM_F32);
        if (i % 3 == 0) op_ids.push_back(loom_comm_all_reduce(comm, nullptr, all, all, n, LOOM_F32));
        if (i % 3 == 1) op_ids.push_back(loom_comm_reduce_scatter(comm, nullptr, own, all, n, LOOM_F32));
        if (i % 3 == 2) op_ids.push_back(loom_comm_all_gather(comm, nullptr, all, own, n, LOOM_F32));
        if (i == COUNT / 2) require([](loom_error *error) { return loom_comm_barrier(comm, error); });
    }
    for (int k = 0; k < COUNT; k++) {
        const int i = k * 77 % COUNT;
        const int64_t n = length(i);
        wait(op_ids[(size_t)i]);
        const std::string found = buffers[(size_t)i]->read(), what = "operation " + std::to_string(i) + " of many";
        const size_t row = (size_t)n * sizeof(float);
        if (i % 3 == 0) expect_sums(found.substr(0, row), 0, n, i, LOOM_F32, what);
        if (i % 3 == 1) expect_sums(found.substr(row * (size_t)comm->rank, row), n * comm->rank, n, i, LOOM_F32, what);
        for (int r = 0; i % 3 == 2 && r < comm->size; r++)
            expect(found.substr(row * (size_t)r, row) == values(r, n * r, n, i, LOOM_F32), what);
    }
    expect(comm->traffic.operations - before.operations == COUNT + 1, "traffic counts operations");
    int64_t handed_in = 0;
    for (int i = 0; i < COUNT; i++) handed_in += length(i) * 4 * (i % 3 == 1 ? comm->size : 1);
    expect(comm->traffic.bytes - before.bytes == handed_in, "traffic counts bytes");
}

/* An operation takes what the stream it is put in after has written, and no more; what comes after the wait, in another
 * stream, has its result. Nothing else keeps them in order. */
void streams() {
    loom_stream *other = nullptr;
    const int64_t n = 5000;
    require([&](loom_error *error) { return device->stream_open(device, &other, error); });
    Buffer in(n, LOOM_F32), sum(n, LOOM_F32), copy(n, LOOM_F32);
    std::vector<float> gone((size_t)n, NAN), first((size_t)n), second((size_t)n);
    const auto bytes = [&](const std::vector<float> &v) { return std::string((const char *)v.data(), (size_t)n * 4); };
    double expected = 0;
    for (int r = 0; r < comm->size; r++) expected += r + 1;
    for (int round = 0; round < 20; round++) {
        for (float &v : first) v = (float)(comm->rank + 1 + round);
        in.write(bytes(gone));
        sum.write(bytes(gone));
        copy.write(bytes(gone));
        device->stream_wait_stream(device, other, nullptr);
        in.write(bytes(first), other);
        const loom_comm_op_id op_id = loom_comm_all_reduce(comm, other, sum.at(0, LOOM_F32), in.at(0, LOOM_F32), n,
                                                           LOOM_F32);
        wait(op_id, nullptr);
        in.write(bytes(gone)); /* after the operation: it may not see this */
        device->copy(device, nullptr, copy.at(0, LOOM_F32), sum.at(0, LOOM_F32), (size_t)n * 4, LOOM_DEVICE_TO_DEVICE);
        const std::string found = copy.read();
        memcpy(second.data(), found.data(), found.size());
        bool holds = true;
        for (const float v : second) holds = holds && v == (float)(expected + comm->size * round);
        expect(holds, "round " + std::to_string(round) + " of streams: " + std::to_string(second[0]));
    }
    device->stream_close(device, other);
}

/* What is on host memory. */
void host() {
    std::string data = "rank " + std::to_string(comm->rank) + "!";
    require([&](loom_error *error) { return loom_comm_host_broadcast(comm, data.data(), data.size(), 1, error); });
    expect(data == "rank 1!", "host_broadcast: " + data);
    const char mine[3] = {(char)('a' + comm->rank), 'x', (char)('A' + comm->rank)};
    std::string all(3 * (size_t)comm->size, 0), wanted;
    for (int r = 0; r < comm->size; r++) wanted += {(char)('a' + r), 'x', (char)('A' + r)};
    require([&](loom_error *error) { return loom_comm_host_gather(comm, all.data(), mine, sizeof mine, error); });
    expect(all == wanted, "host_gather: " + all);
    int64_t sums[2] = {1, ((int64_t)1 << 53) + comm->rank};
    require([&](loom_error *error) { return loom_comm_host_sum(comm, sums, 2, error); });
    const int64_t size = comm->size;
    expect(sums[0] == size && sums[1] == size * ((int64_t)1 << 53) + size * (size - 1) / 2, "host_sum");
    require([&](loom_error *error) { return loom_comm_barrier(comm, error); });
    require([&](loom_error *error) { return loom_comm_agree(comm, "the weather", "fine", 4, error); });
}

/* ------------------------------------------------------------------------------------------------------------ what fails */

/* Ranks other than 0 and 1 say that they have come, and rank 0 waits until all have. */
void come() {
    const auto file = [](int rank) { return "came." + std::to_string(rank); };
    if (comm->rank > 1) std::ofstream(file(comm->rank)).flush();
    for (int r = 2; comm->rank == 0 && r < comm->size; r++)
        while (access(file(r).c_str(), F_OK) != 0) usleep(1000);
}

/* A few operations that work, then steps in which rank 1 does something else. Rank 0 alone has the short limit, and
 * waits for rank 1 alone: so no other is ever late. */
void steps(
    const std::function<void()> &instead, const std::function<void()> &once_there = [] {}) {
    Buffer buffer(1000, LOOM_F32);
    buffer.write(values(comm->rank, 0, 1000, 6, LOOM_F32));
    for (comm->step = 1; comm->step < 100; comm->step++) {
        if (comm->step == 3 && comm->rank == 0) come(), comm->timeout = limit;
        if (comm->step == 3 && comm->rank == 1) instead();
        char *data = buffer.at(0, LOOM_F32);
        const loom_comm_op_id op_id = loom_comm_all_reduce(comm, nullptr, data, data, 1000, LOOM_F32);
        if (comm->step == 3 && comm->rank > 1) come(), once_there();
        wait(op_id);
        require([](loom_error *error) { return loom_comm_synchronize(comm, nullptr, error); });
    }
}

void hang_at_once() {
    for (;;) pause();
}

void hang() {
    steps(hang_at_once);
}

/* Rank 1 hangs, and when rank 0 asks who does, the others get no processor for a while. */
void slow() {
    steps(hang_at_once, [] {
        const pid_t self = getpid();
        if (fork() == 0) {
            usleep(3500000);
            kill(self, SIGCONT);
            _exit(0);
        }
        raise(SIGSTOP);
    });
}

/* Rank 1 is at work alone for longer than the limit: before what is on host memory, and in a step. */
void long_timeout() {
    const auto work = [] { usleep((useconds_t)(1.5e6 * limit)); };
    comm->long_timeout = true;
    require([](loom_error *error) { return loom_comm_barrier(comm, error); });
    if (comm->rank == 0) comm->timeout = limit;
    if (comm->rank == 1) work();
    require([](loom_error *error) { return loom_comm_barrier(comm, error); });
    steps(work);
}

void long_timeout_hang() {
    comm->long_timeout = true;
    hang();
}

/* What the device has to do before an operation is not waiting for others. */
void own_work() {
    const int64_t n = 1 << 20;
    Buffer in(n, LOOM_F32), out(n, LOOM_F32);
    in.write(values(comm->rank, 0, n, 6, LOOM_F32));
    require([](loom_error *error) { return loom_comm_barrier(comm, error); });
    const double before = comm->traffic.seconds_waited, begin = loom_seconds_now();
    for (int i = 0; i < 500; i++)
        device->copy(device, nullptr, out.at(0, LOOM_F32), in.at(0, LOOM_F32), (size_t)n * 4, LOOM_DEVICE_TO_DEVICE);
    wait(loom_comm_all_reduce(comm, nullptr, out.at(0, LOOM_F32), out.at(0, LOOM_F32), 10, LOOM_F32));
    const double seconds = loom_seconds_now() - begin, waited = comm->traffic.seconds_waited - before;
    /* On a busy machine some wait for the slowest, which waits for nobody. */
    const double mine = waited / seconds;
    std::vector<double> all((size_t)comm->size);
    require([&](loom_error *error) { return loom_comm_host_gather(comm, all.data(), &mine, sizeof mine, error); });
    const double least = *std::min_element(all.begin(), all.end());
    expect(least < 0.5, "even the slowest rank waited " + std::to_string(least) + " of its time");
}

void stop() {
    steps([] { raise(SIGSTOP); });
}

/* Rank 0 waits for the stopped one; a little later rank 2 waits for rank 0, in the next exchange. */
void stop_in_pairs() {
    Buffer in(10, LOOM_F32), out(10, LOOM_F32);
    in.write(values(comm->rank, 0, 10, 6, LOOM_F32));
    comm->step = 1;
    require([](loom_error *error) { return loom_comm_barrier(comm, error); });
    comm->timeout = limit;
    if (comm->rank == 1) raise(SIGSTOP);
    if (comm->rank > 1) usleep(300000);
    for (const int distance : {1, 2}) {
        const int pair = comm->rank ^ distance;
        wait(loom_comm_exchange(comm, nullptr, out.at(0, LOOM_F32), 10, pair, in.at(0, LOOM_F32), 10, pair, LOOM_F32));
    }
}

void die() {
    steps([] { raise(SIGKILL); });
}

void own_error() {
    steps([] {
        loom_error error;
        loom_fail(&error, "data.bin: no such file");
        loom_comm_abort(comm, &error, 2);
    });
}

/* As if it had fewer steps than the others. */
void leave() {
    steps([] {
        loom_comm_close(comm);
        loom_device_close(device);
        exit(0);
    });
}

void disagree() {
    const char mine = comm->rank == 1 ? 'b' : 'a';
    require([&](loom_error *error) { return loom_comm_agree(comm, "the configuration", &mine, 1, error); });
}

/* One rank's error is that of all, and not the end of the communicator. */
void all() {
    loom_error error = {"kept"};
    expect(loom_comm_all(comm, true, &error) && !strcmp(error.message, "kept"), "all went well");
    const int bad = comm->size - 1;
    for (int round = 0; round < 2; round++) {
        loom_fail(&error, "the disk of %d is full", comm->rank);
        const bool ok = comm->rank != bad && comm->rank != bad - 1;
        expect(!loom_comm_all(comm, ok, &error), "some failed");
        const std::string first = std::to_string(bad - 1);
        expect(error.message == "rank " + first + ": the disk of " + first + " is full", error.message);
    }
    expect(!loom_comm_all(comm, comm->rank != bad, nullptr), "an error may be null");
    expect(loom_comm_all(comm, true, &error), "all goes on");
}

void all_end() {
    loom_error error;
    loom_fail(&error, "the disk is full");
    if (!loom_comm_all(comm, comm->rank != 1, &error)) loom_comm_abort(comm, &error, 2);
}

/* A rank that could not take part takes part in nothing that follows. */
void no_memory() {
    loom_error error;
    if (comm->rank == 1 && loom_comm_memory(comm, SIZE_MAX, &error)) exit(1);
    if (!loom_comm_all(comm, true, &error)) loom_comm_abort(comm, &error, 2);
    sleep(120); /* until it ends all */
}

} // namespace

int main(int argc, char **argv) {
    static const std::map<std::string, void (*)()> scenarios = {{"operations", operations},
                                                                {"outstanding", outstanding},
                                                                {"streams", streams},
                                                                {"host", host},
                                                                {"hang", hang},
                                                                {"slow", slow},
                                                                {"long_timeout", long_timeout},
                                                                {"long_timeout_hang", long_timeout_hang},
                                                                {"own_work", own_work},
                                                                {"stop", stop},
                                                                {"stop_in_pairs", stop_in_pairs},
                                                                {"die", die},
                                                                {"own_error", own_error},
                                                                {"leave", leave},
                                                                {"disagree", disagree},
                                                                {"all", all},
                                                                {"all_end", all_end},
                                                                {"no_memory", no_memory}};
    if (argc < 4) return fprintf(stderr, "what is to be done?\n"), 1;
    loom_comm_options options = {};
    options.backend = argv[2];
    options.timeout = argc > 4 ? atof(argv[4]) : 120;
    limit = argc > 5 ? atof(argv[5]) : options.timeout;
    require([&](loom_error *error) { return loom_comm_open(&comm, &options, error); });
    loom_device_options how = {};
    how.threads = 1;
    /* NCCL wants a GPU for each; by MPI they share one. */
    if (!strcmp(comm->name, "nccl")) {
        how.local_rank = comm->local_rank;
        how.local_size = comm->local_size;
        setenv("LOOM_EMULATION_GPUS", std::to_string(comm->local_size).c_str(), 0);
    }
    require([&](loom_error *error) { return loom_device_open(&device, argv[3], &how, error); });
    require([&](loom_error *error) { return loom_comm_attach(comm, device, 100000, error); });
    std::istringstream names(argv[1]);
    for (std::string scenario; std::getline(names, scenario, ',');) scenarios.at(scenario)();
    loom_comm_close(comm);
    loom_device_close(device);
    return wrong ? 1 : 0;
}
