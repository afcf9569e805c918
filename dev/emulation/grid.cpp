/* A kernel call: its limits, and its blocks spread over CPU threads. */
#include "block.h"
#include "emulation.h"
#include "simt_launch.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>

namespace simt {

/* ----------------------------------------------------------------------------------------------- order of execution */

static std::mutex settings_lock;

/* "order", "reverse" or "random:SEED". */
static bool parse_schedule(const char *text, schedule *result) {
    const std::string given = text;
    if (given == "order" || given == "reverse") {
        *result = {given == "order" ? order::FORWARD : order::REVERSE, 0};
        return true;
    }
    if (given.compare(0, 7, "random:") != 0 || !isdigit((unsigned char)text[7])) return false;
    char *end;
    const uint64_t seed = strtoull(text + 7, &end, 10);
    if (*end) return false;
    *result = {order::RANDOM, seed};
    return true;
}

static schedule schedule_of_environment() {
    const char *text = getenv("LOOM_EMULATION_SCHEDULE");
    schedule result;
    if (text && !parse_schedule(text, &result)) {
        fprintf(stderr, "gptloom: LOOM_EMULATION_SCHEDULE is '%s'; it can be order, reverse or random:SEED\n", text);
        exit(2);
    }
    return result;
}

static schedule &the_schedule() {
    static schedule current = schedule_of_environment();
    return current;
}

schedule current_schedule() {
    std::lock_guard<std::mutex> guard(settings_lock);
    return the_schedule();
}

static int threads_wanted = 0; /* 0: what the environment says */

static int threads_of_environment() {
    const char *text = getenv("LOOM_EMULATION_THREADS");
    if (!text) return std::max(1, (int)std::thread::hardware_concurrency());
    char *end;
    const long threads = strtol(text, &end, 10);
    if (*end || threads < 1 || threads > 256) {
        fprintf(stderr, "gptloom: LOOM_EMULATION_THREADS is '%s'; it can be 1 to 256\n", text);
        exit(2);
    }
    return (int)threads;
}

int current_threads() {
    static const int by_default = threads_of_environment();
    std::lock_guard<std::mutex> guard(settings_lock);
    return threads_wanted ? threads_wanted : by_default;
}

/* ----------------------------------------------------------------------------------------------------------- limits */

constexpr size_t SHARED_BY_DEFAULT = 48 * 1024;
constexpr size_t SHARED_AT_MOST = 227 * 1024; /* compute capability 9.0's */

static std::map<const void *, size_t> dynamic_limits; /* of kernels for which cudaFuncSetAttribute was called */

cudaError_t set_dynamic_shared_limit(const void *function, int bytes) {
    if (bytes < 0 || (size_t)bytes > SHARED_AT_MOST) return cudaErrorInvalidValue;
    std::lock_guard<std::mutex> guard(settings_lock);
    dynamic_limits[function] = (size_t)bytes;
    return cudaSuccess;
}

/* Bytes of dynamic shared memory that a launch may ask for; *total is for these and the kernel's own arrays. */
static size_t dynamic_limit(const void *function, size_t *total) {
    std::lock_guard<std::mutex> guard(settings_lock);
    const auto found = dynamic_limits.find(function);
    const bool raised = found != dynamic_limits.end() && found->second > SHARED_BY_DEFAULT;
    *total = raised ? SHARED_AT_MOST : SHARED_BY_DEFAULT;
    return raised ? found->second : SHARED_BY_DEFAULT;
}

cudaError_t check_launch(const kernel_call &call) {
    const dim3 g = call.grid, b = call.block;
    if (g.x < 1 || g.y < 1 || g.z < 1 || g.x > 0x7FFFFFFF || g.y > 65535 || g.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (b.x < 1 || b.y < 1 || b.z < 1 || b.x > MAX_THREADS || b.y > MAX_THREADS || b.z > 64 ||
        (uint64_t)b.x * b.y * b.z > MAX_THREADS)
        return cudaErrorInvalidConfiguration;
    size_t total;
    return call.shared_bytes > dynamic_limit(call.function, &total) ? cudaErrorInvalidValue : cudaSuccess;
}

/* ----------------------------------------------------------------------------------------------------------- blocks */

/* The block in which the CPU thread runs one block of the grid after the other; it is kept for the next call. */
static block *own_block() {
    struct owner {
        block *b = create_block();
        ~owner() {
            destroy_block(b);
        }
    };
    static thread_local owner mine;
    return mine.b;
}

/* What all CPU threads of one call share. */
struct grid {
    const kernel_call *call;
    schedule how;
    size_t shared_limit;
    uint64_t blocks;
    uint64_t step, shift; /* turn i is block (i * step + shift) % blocks: a permutation */
    std::atomic<uint64_t> next_turn{0};
    std::atomic<uint64_t> failed_turn{UINT64_MAX}; /* the earliest */
    std::mutex lock;
    std::string failure;
};

static void order_blocks(grid *g) {
    g->step = 1;
    g->shift = 0;
    if (g->how.kind == order::REVERSE) {
        g->step = g->blocks - 1 + (g->blocks == 1);
        g->shift = g->blocks - 1;
    } else if (g->how.kind == order::RANDOM) {
        g->shift = scramble(g->how.seed) % g->blocks;
        g->step = scramble(g->how.seed + 1) % g->blocks;
        while (std::gcd(g->step, g->blocks) != 1) g->step++;
    }
}

/* Takes turns until none is left. Turns before a failed one are still taken, so that of several failures always the
 * same one is told, however many CPU threads there are. */
static void take_turns(grid *g) {
    block *b = own_block();
    prepare_block(b, g->call, g->how.kind, g->shared_limit);
    const dim3 size = g->call->grid;
    for (uint64_t turn; (turn = g->next_turn++) < g->blocks && turn < g->failed_turn;) {
        const uint64_t i = (uint64_t)((unsigned __int128)turn * g->step % g->blocks + g->shift) % g->blocks;
        const uint3 index = {(unsigned)(i % size.x), (unsigned)(i / size.x % size.y),
                             (unsigned)(i / ((uint64_t)size.x * size.y))};
        if (run_block(b, index, scramble(g->how.seed ^ scramble(i)))) continue;
        std::lock_guard<std::mutex> guard(g->lock);
        if (turn < g->failed_turn) {
            g->failed_turn = turn;
            g->failure = b->failure;
        }
    }
}

/* ------------------------------------------------------------------------------------------------------- CPU threads
 * They wait for work from the first call that needs them to the program's end. */

class crew {
  public:
    /* Runs job() on this thread and on `others` more at once. */
    void run(int others, const std::function<void()> &what) {
        {
            std::lock_guard<std::mutex> guard(lock);
            while ((int)members.size() < others) {
                const int number = (int)members.size();
                members.emplace_back([this, number, seen = round] { work(number, seen); });
            }
            job = &what;
            wanted = busy = others;
            round++;
        }
        begin.notify_all();
        what();
        std::unique_lock<std::mutex> guard(lock);
        end.wait(guard, [&] { return busy == 0; });
    }
    ~crew() {
        {
            std::lock_guard<std::mutex> guard(lock);
            stop = true;
        }
        begin.notify_all();
        for (std::thread &member : members) member.join();
    }

  private:
    void work(int number, uint64_t seen) {
        std::unique_lock<std::mutex> guard(lock);
        for (;;) {
            begin.wait(guard, [&] { return stop || round != seen; });
            if (stop) return;
            seen = round;
            if (number >= wanted) continue;
            guard.unlock();
            (*job)();
            guard.lock();
            if (--busy == 0) end.notify_all();
        }
    }
    std::mutex lock;
    std::condition_variable begin, end;
    std::vector<std::thread> members;
    const std::function<void()> *job = nullptr;
    uint64_t round = 0;
    int wanted = 0, busy = 0;
    bool stop = false;
};

bool run(const kernel_call &call, std::string *failure) {
    static std::mutex one_at_a_time;
    static crew others;
    std::lock_guard<std::mutex> guard(one_at_a_time);
    grid g;
    g.call = &call;
    g.how = current_schedule();
    dynamic_limit(call.function, &g.shared_limit);
    g.blocks = (uint64_t)call.grid.x * call.grid.y * call.grid.z;
    order_blocks(&g);
    /* Waking a thread takes as long as some hundred CUDA threads. */
    const uint64_t threads = g.blocks * call.block.x * call.block.y * call.block.z;
    const uint64_t useful = std::min({(uint64_t)current_threads(), g.blocks, 1 + threads / 512});
    if (useful > 1)
        others.run((int)useful - 1, [&] { take_turns(&g); });
    else
        take_turns(&g);
    if (g.failed_turn == UINT64_MAX) return true;
    *failure = g.failure;
    return false;
}

/* -------------------------------------------------------------------------------------------------- launches' names */

static thread_local const char *next_name = nullptr;

void name_next_launch(const char *name) {
    next_name = name;
}

std::string take_launch_name() {
    const char *name = next_name;
    next_name = nullptr;
    return name ? name : "without a name";
}

} // namespace simt

extern "C" int emulation_set_schedule(const char *text) {
    std::lock_guard<std::mutex> guard(simt::settings_lock);
    return simt::parse_schedule(text, &simt::the_schedule());
}

extern "C" void emulation_set_threads(int threads) {
    std::lock_guard<std::mutex> guard(simt::settings_lock);
    simt::threads_wanted = threads;
}
