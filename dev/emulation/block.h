/* The execution of one block: its threads as fibers, the scheduler, barriers and warp collectives. */
#ifndef LOOM_EMULATION_BLOCK_H
#define LOOM_EMULATION_BLOCK_H

#include "fiber.h"
#include "schedule.h"
#include "shared.h"
#include "simt.h"

#include <string>
#include <vector>

namespace simt {

constexpr int MAX_THREADS = 1024;
constexpr int MAX_WARPS = MAX_THREADS / 32;
constexpr int MAX_MEETINGS = 32; /* a lane is in no more than one at a time */

/* One CUDA thread. */
struct thread {
    fiber context;
    uint3 index;
    bool started;
    operation waits_in; /* while it waits */
    place waits_at;
};

/* The lanes of one mask, in one collective after the other. Words lie in two exchanges by turns, as a lane may come to
 * the next collective while others have still to read the words of the last; it cannot come to the one after that. */
struct meeting {
    exchange exchanges[2];
    uint32_t mask;    /* 0: not in use */
    uint32_t arrived; /* lanes that are there */
    uint32_t unread;  /* lanes that have not yet gone on from the last collective */
    uint32_t round;
    operation what;
    place at;
};

struct warp {
    uint32_t lanes;      /* those that the block has */
    uint32_t ready;      /* can run */
    uint32_t at_barrier; /* wait for the block */
    uint32_t ended;
    int meetings_used;
    meeting meetings[MAX_MEETINGS];
};

/* A copy by cp.async that is under way. */
struct copy {
    void *to;
    const void *from;
    int bytes; /* of 16; the rest becomes zeros */
    int group;
    place at;
};
struct copies {
    std::vector<copy> waiting;
    int group; /* the one that is being filled */
};

/* What one CPU thread has to run blocks with, one after the other. */
struct block {
    const struct kernel_call *call;
    thread threads[MAX_THREADS];
    warp warps[MAX_WARPS];
    copies copies_of[MAX_THREADS];
    bool any_copies;
    int count, ended;     /* threads */
    uint32_t ready_warps; /* with a lane that can run */
    int current;          /* the thread that runs */

    int barrier_arrived, barrier_round;
    operation barrier_what;
    place barrier_at;
    int barrier_result[2]; /* of this round and of the last */

    order kind;
    uint64_t random;

    shared_memory shared;
    char *stacks;
    fiber caller; /* who called run_block */
    std::string failure;
};

block *create_block();
void destroy_block(block *b);

/* To be called once before the blocks of a call. */
void prepare_block(block *b, const kernel_call *call, order kind, size_t shared_limit);

/* Runs the block to its end. False, with b->failure, if it failed. */
bool run_block(block *b, uint3 index, uint64_t seed);

} // namespace simt
#endif
