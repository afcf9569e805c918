#include "block.h"

#include "simt_launch.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

namespace simt {

/* The block that this CPU thread runs. A fiber never moves to another CPU thread. */
static thread_local block *running = nullptr;

/* ---------------------------------------------------------------------------------------------------------- failing */

static const char *name_of(operation what) {
    static const char *const names[] = {
        "nothing",   "__syncthreads", "__syncthreads_count", "__syncthreads_and", "__syncthreads_or", "__syncwarp",
        "a shuffle", "a vote",        "__reduce_sync",       "__match_sync",      "ldmatrix",         "mma"};
    return names[(int)what];
}

__attribute__((format(printf, 1, 2))) static std::string format(const char *form, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, form);
    vsnprintf(text, sizeof text, form, arguments);
    va_end(arguments);
    return text;
}

static std::string describe(uint3 i) {
    return format("(%u,%u,%u)", i.x, i.y, i.z);
}

/* The first failure counts. `thread` -1: it is the whole block's. */
static void record_failure(block *b, int thread, const std::string &what) {
    if (!b->failure.empty()) return;
    b->failure = "kernel " + b->call->name + ", block " + describe(blockIdx);
    if (thread >= 0) b->failure += ", thread " + describe(b->threads[thread].index);
    b->failure += ": " + what;
}

/* Leaves the calling fiber, and with it the whole block, for good. */
[[noreturn]] static void abandon(block *b) {
    leave_fiber(&b->threads[b->current].context, &b->caller);
    __builtin_unreachable();
}

/* Ends the block on behalf of the calling thread. The frames of a fiber that is left are forgotten, with no
 * destructors: nothing that owns memory may live in them, so what is wrong comes as a format. */
[[noreturn]] __attribute__((format(printf, 3, 4))) static void fail_at(block *b, place at, const char *form, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, form);
    vsnprintf(text, sizeof text, form, arguments);
    va_end(arguments);
    record_failure(b, b->current, text + format(" at %s:%d", at.file, at.line));
    abandon(b);
}

void fail(const char *message, place here) {
    fail_at(running, here, "%s", message);
}

/* Everyone who is left waits: where, the first of each kind. */
static std::string describe_deadlock(const block *b) {
    std::string text = "deadlock: every thread that has not ended waits";
    int shown = 0;
    for (int i = 0; i < b->count && shown < 4; i++) {
        const thread &t = b->threads[i];
        auto waits_alike = [&](const thread &u) {
            return u.waits_in == t.waits_in && u.waits_at.line == t.waits_at.line && u.waits_at.file == t.waits_at.file;
        };
        if (t.waits_in == operation::NONE || std::find_if(b->threads, b->threads + i, waits_alike) != b->threads + i)
            continue;
        const long alike = std::count_if(b->threads + i, b->threads + b->count, waits_alike);
        text += format("; %ld in %s at %s:%d, the first of them thread ", alike, name_of(t.waits_in), t.waits_at.file,
                       t.waits_at.line) +
                describe(t.index);
        shown++;
    }
    return text;
}

[[noreturn]] static void fail_deadlocked(block *b) {
    record_failure(b, -1, describe_deadlock(b));
    abandon(b);
}

/* ---------------------------------------------------------------------------------------------------------- scheduling
 * ready and ready_warps say who can run. FORWARD goes on with the next higher lane of the warp, then with the next
 * higher warp, each time around; REVERSE with the next lower ones. Of those that a barrier or a collective has just let
 * go, FORWARD first runs the one that came last, REVERSE the highest. */

/* On the way of every lane through every collective: inlined, a fifth faster. */
#define ALWAYS_INLINE __attribute__((always_inline)) inline

static uint32_t next_random(block *b) {
    b->random = scramble(b->random);
    return (uint32_t)b->random;
}

/* The first set bit of a mask that is not zero, from bit `from` on upwards or downwards, around the ends. */
static int next_above(uint32_t mask, int from) {
    const uint32_t above = mask >> from << from;
    return __builtin_ctz(above ? above : mask);
}
static int next_below(uint32_t mask, int from) {
    const uint32_t below = mask << (31 - from) >> (31 - from);
    return 31 - __builtin_clz(below ? below : mask);
}

/* Who runs next, after thread `self`; -1 if no one can. */
ALWAYS_INLINE static int choose(block *b, int self) {
    if (!b->ready_warps) return -1;
    const int w = self / 32, lane = self % 32;
    const uint32_t here = b->warps[w].ready;
    if (b->kind == order::FORWARD) {
        if (here) return w * 32 + next_above(here, (lane + 1) % 32);
        const int other = next_above(b->ready_warps, (w + 1) % 32);
        return other * 32 + __builtin_ctz(b->warps[other].ready);
    }
    if (b->kind == order::REVERSE) {
        if (here) return w * 32 + next_below(here, (lane + 31) % 32);
        const int other = next_below(b->ready_warps, (w + 31) % 32);
        return other * 32 + 31 - __builtin_clz(b->warps[other].ready);
    }
    const uint32_t bits = next_random(b), warps = (uint32_t)(b->count + 31) / 32;
    const int other = next_above(b->ready_warps, (int)(bits % 32 * warps / 32));
    return other * 32 + next_above(b->warps[other].ready, (int)(bits / 32 % 32));
}

static void make_unready(block *b, int i) {
    warp &w = b->warps[i / 32];
    w.ready &= ~(1u << i % 32);
    if (!w.ready) b->ready_warps &= ~(1u << i / 32);
}

static void run_threads();

static void set_current(block *b, int i) {
    b->current = i;
    threadIdx = b->threads[i].index;
}

static void start(block *b, int i) {
    b->threads[i].started = true;
    start_fiber(&b->threads[i].context, run_threads, (unsigned)i);
}

/* Lets thread `next` run, until someone lets this one run again; -1: no one can. */
ALWAYS_INLINE static void hand_over(block *b, int next) {
    const int self = b->current;
    if (next == self) return;
    if (next < 0) fail_deadlocked(b);
    if (!b->threads[next].started) start(b, next);
    set_current(b, next);
    switch_fiber(&b->threads[self].context, &b->threads[next].context);
}

ALWAYS_INLINE static void wait_in(block *b, operation what, place at) {
    thread &t = b->threads[b->current];
    t.waits_in = what;
    t.waits_at = at;
    make_unready(b, b->current);
    hand_over(b, choose(b, b->current));
    t.waits_in = operation::NONE;
}

/* After this thread has released others, of whom the highest are in `last_warp`. */
static void let_others_run(block *b, int last_warp) {
    if (b->kind == order::RANDOM) hand_over(b, choose(b, b->current));
    if (b->kind == order::REVERSE) hand_over(b, last_warp * 32 + 31 - __builtin_clz(b->warps[last_warp].ready));
}

/* --------------------------------------------------------------------------------------------------------- barriers */

/* All have arrived who can. */
static void release_barrier(block *b) {
    b->barrier_arrived = 0;
    b->barrier_round++;
    for (int w = 0; w * 32 < b->count; w++) {
        b->warps[w].ready |= b->warps[w].at_barrier;
        b->warps[w].at_barrier = 0;
        if (b->warps[w].ready) b->ready_warps |= 1u << w;
    }
}

int barrier(operation what, int predicate, place here) {
    block *b = running;
    int &result = b->barrier_result[b->barrier_round & 1];
    if (b->barrier_arrived == 0) {
        b->barrier_what = what;
        b->barrier_at = here;
        result = what == operation::BARRIER_AND;
    } else if (b->barrier_what != what || b->barrier_at.line != here.line || b->barrier_at.file != here.file) {
        fail_at(b, here, "divergent barrier: %s, while other threads wait in %s at %s:%d,", name_of(what),
                name_of(b->barrier_what), b->barrier_at.file, b->barrier_at.line);
    }
    if (what == operation::BARRIER_COUNT) result += predicate != 0;
    if (what == operation::BARRIER_AND) result &= predicate != 0;
    if (what == operation::BARRIER_OR) result |= predicate != 0;
    b->barrier_arrived++;
    if (b->barrier_arrived < b->count - b->ended) {
        b->warps[b->current / 32].at_barrier |= 1u << b->current % 32;
        wait_in(b, what, here);
    } else {
        release_barrier(b);
        let_others_run(b, 31 - __builtin_clz(b->ready_warps));
    }
    return result;
}

/* ------------------------------------------------------------------------------------------------- warp collectives */

/* The meeting of a mask's lanes, made if there is none. */
static meeting &find_meeting(warp &w, uint32_t mask) {
    for (int i = 0; i < w.meetings_used; i++)
        if (w.meetings[i].mask == mask) return w.meetings[i];
    for (int i = 0; i < MAX_MEETINGS; i++) {
        meeting &m = w.meetings[i];
        if (i < w.meetings_used && (m.arrived || m.unread)) continue;
        m.mask = mask;
        m.arrived = m.unread = m.round = 0;
        w.meetings_used = std::max(w.meetings_used, i + 1);
        return m;
    }
    __builtin_unreachable();
}

/* A lane came to a meeting where it must not. */
[[noreturn]] static void refuse(block *b, const warp &w, const meeting &m, operation what, place here) {
    const char *name = name_of(what);
    if (!(m.mask >> b->current % 32 & 1))
        fail_at(b, here, "%s: the calling lane is not in its mask %08x", name, m.mask);
    if (m.mask & w.ended) fail_at(b, here, "%s: lanes %08x of its mask have ended", name, m.mask & w.ended);
    fail_at(b, here, "divergent collective: %s, while other lanes of its mask wait in %s at %s:%d,", name,
            name_of(m.what), m.at.file, m.at.line);
}

exchange *meet(uint32_t mask, operation what, const uint32_t *words, int count, place here,
               const char *(*last)(exchange *)) {
    block *b = running;
    const unsigned lane = (unsigned)b->current % 32;
    const uint32_t bit = 1u << lane;
    warp &w = b->warps[b->current / 32];
    meeting &m = find_meeting(w, mask);
    if (!(mask & bit) || mask & w.ended ||
        (m.arrived && (m.what != what || m.at.line != here.line || m.at.file != here.file)))
        refuse(b, w, m, what, here);

    exchange *shown = &m.exchanges[m.round & 1];
    for (int i = 0; i < count; i++) shown->words[i][position(lane)] = words[i];
    m.what = what;
    m.at = here;
    m.arrived |= bit;
    const uint32_t expected = mask & w.lanes;
    if (m.arrived != expected) {
        wait_in(b, what, here);
    } else {
        shown->present = expected;
        const char *problem = last ? last(shown) : nullptr;
        if (problem) fail_at(b, here, "%s", problem);
        m.arrived = 0;
        m.round++;
        m.unread = expected;
        w.ready |= expected;
        let_others_run(b, b->current / 32);
    }
    m.unread &= ~bit;
    return shown;
}

unsigned lane() {
    return (unsigned)running->current % 32;
}

/* ---------------------------------------------------------------------------------------------------- shared memory */

void *shared_array(const array_site *site) {
    block *b = running;
    char problem[160];
    void *at = find_shared(&b->shared, site, problem, sizeof problem);
    if (!at) fail_at(b, site->at, "%s", problem);
    return at;
}

void *dynamic_shared() {
    return running->shared.dynamic_bytes ? running->shared.part[0].at : nullptr;
}

bool is_shared(const void *p, size_t bytes) {
    return is_shared(&running->shared, p, bytes);
}

/* ------------------------------------------------------------------------------------------------------------ cp.async
 * A copy is done when it is waited for and not before; until then its destination is poison. */

void copy_async(void *shared, const void *from, int bytes, place here) {
    block *b = running;
    if ((uintptr_t)shared % 16 != 0) fail_at(b, here, "cp.async to an address that is not a multiple of 16");
    if ((uintptr_t)from % 16 != 0) fail_at(b, here, "cp.async from an address that is not a multiple of 16");
    if (bytes < 0 || bytes > 16) fail_at(b, here, "cp.async of %d bytes", bytes);
    if (!is_shared(&b->shared, shared, 16)) fail_at(b, here, "cp.async to outside of the block's shared memory");
    if (is_out_of_bounds(from, (size_t)bytes)) fail_at(b, here, "cp.async from outside of an allocation");
    memset(shared, 0xFF, 16);
    copies &c = b->copies_of[b->current];
    c.waiting.push_back({shared, from, bytes, c.group, here});
    b->any_copies = true;
}

void commit_copies() {
    running->copies_of[running->current].group++;
}

void wait_for_copies(int groups) {
    copies &c = running->copies_of[running->current];
    size_t kept = 0;
    for (const copy &one : c.waiting) {
        if (one.group >= c.group - groups) {
            c.waiting[kept++] = one;
            continue;
        }
        memcpy(one.to, one.from, (size_t)one.bytes);
        memset(static_cast<char *>(one.to) + one.bytes, 0, (size_t)(16 - one.bytes));
    }
    c.waiting.resize(kept);
}

/* --------------------------------------------------------------------------------------------------- a block's life */

/* A thread has returned from the kernel. */
static void end_thread(block *b, int i) {
    warp &w = b->warps[i / 32];
    const uint32_t bit = 1u << i % 32;
    if (b->any_copies && !b->copies_of[i].waiting.empty())
        fail_at(b, b->copies_of[i].waiting[0].at, "the thread ended without waiting for its cp.async");
    for (int m = 0; m < w.meetings_used; m++)
        if (w.meetings[m].arrived && w.meetings[m].mask & bit)
            fail_at(b, w.meetings[m].at, "the thread ended while other lanes wait for it in %s",
                    name_of(w.meetings[m].what));
    make_unready(b, i);
    w.ended |= bit;
    b->ended++;
    if (b->barrier_arrived > 0 && b->barrier_arrived == b->count - b->ended) release_barrier(b);
}

/* What every fiber runs: a thread, then on the same stack one more that has not been started, if it is the next one's
 * turn; so threads that never wait cost no switch and share one stack, which stays in the cache. */
__attribute__((no_sanitize("address"))) static void run_threads() {
    fiber_entered();
    block *b = running;
    for (;;) {
        b->call->run_thread();
        const int self = b->current;
        end_thread(b, self);
        if (b->ended == b->count) abandon(b);
        const int next = choose(b, self);
        if (next < 0) fail_deadlocked(b);
        thread &to = b->threads[next];
        set_current(b, next);
        if (to.started) {
            leave_fiber(&b->threads[self].context, &to.context);
        } else {
            std::swap(to.context, b->threads[self].context);
            to.started = true;
        }
    }
}

block *create_block() {
    block *b = new block();
    b->stacks = allocate_stacks(MAX_THREADS);
    for (int i = 0; i < MAX_THREADS; i++) b->threads[i].context.stack = stack_at(b->stacks, i);
    allocate_shared(&b->shared);
    return b;
}

void destroy_block(block *b) {
    free_shared(&b->shared);
    free_stacks(b->stacks, MAX_THREADS);
    delete b;
}

void prepare_block(block *b, const kernel_call *call, order kind, size_t shared_limit) {
    b->call = call;
    b->kind = kind;
    b->shared.limit = shared_limit;
    b->count = (int)(call->block.x * call->block.y * call->block.z);
    for (int i = 0; i < b->count; i++) {
        const unsigned x = call->block.x, y = call->block.y, n = (unsigned)i;
        b->threads[i].index = {n % x, n / x % y, n / (x * y)};
    }
    for (int w = 0; w * 32 < b->count; w++) b->warps[w].lanes = 0xFFFFFFFFu >> std::max(0, 32 - (b->count - w * 32));
    running = b;
    gridDim = call->grid;
    blockDim = call->block;
}

bool run_block(block *b, uint3 index, uint64_t seed) {
    blockIdx = index;
    b->random = seed;
    b->failure.clear();
    b->ended = b->barrier_arrived = b->barrier_round = 0;
    b->ready_warps = 0;
    for (int w = 0; w * 32 < b->count; w++) {
        warp &one = b->warps[w];
        one.ready = one.lanes;
        one.at_barrier = one.ended = 0;
        one.meetings_used = 0;
        b->ready_warps |= 1u << w;
    }
    for (int i = 0; i < b->count; i++) {
        b->threads[i].started = false;
        b->threads[i].waits_in = operation::NONE;
    }
    if (b->any_copies)
        for (int i = 0; i < MAX_THREADS; i++) {
            b->copies_of[i].waiting.clear();
            b->copies_of[i].group = 0;
        }
    b->any_copies = false;
    begin_shared(&b->shared, b->call->shared_bytes);

    const int first = b->kind == order::FORWARD ? 0 : b->kind == order::REVERSE ? b->count - 1 : choose(b, 0);
    start(b, first);
    set_current(b, first);
    switch_fiber(&b->caller, &b->threads[first].context);

    if (!b->failure.empty())
        for (int i = 0; i < b->count; i++) forget_frames(&b->threads[i].context);
    const std::string overrun = b->failure.empty() ? check_shared(&b->shared) : "";
    if (!overrun.empty()) record_failure(b, -1, overrun);
    return b->failure.empty();
}

} // namespace simt
