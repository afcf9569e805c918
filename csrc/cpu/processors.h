/* Which of a machine's processors a rank computes on, and its threads' places on them. */
#ifndef LOOM_CPU_PROCESSORS_H
#define LOOM_CPU_PROCESSORS_H

#include <sched.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_processors {
    cpu_set_t set; /* where its threads may run */
    int threads;   /* as many as it should have */
    bool own;      /* no other rank of this run has any of them */
} loom_processors;

/* The processors of rank `local_rank` of `local_size` on a machine (0 of 0 or 1: alone). `allowed` are those that the
 * process may run on, `machine` those that the ranks' launcher had to give. Each rank gets a part, all of one size; where
 * there are more ranks than processors, one thread that may run on any. Where `allowed` are fewer, the launcher has bound
 * the rank: they are its own, if so many for each rank are there at all, and else it shares them with ranks that are not
 * known, as those of a socket, and has as many threads as its part would be. */
loom_processors loom_processors_share(const cpu_set_t *allowed, const cpu_set_t *machine, int local_rank,
                                      int local_size);

/* That of this process, as it was when this was first called: a thread that is pinned later does not change it. */
loom_processors loom_processors_of(int local_rank, int local_size);

/* Whether `threads` threads are given a processor each: when they are all that the rank's processors are for. Threads
 * that are not pinned can share a core; fewer threads than processors leave the choice to the system. */
bool loom_processors_pins(const loom_processors *processors, int threads);

/* Pins the calling thread's OpenMP pool, thread by thread; and lets the calling thread go where it could at the start. */
void loom_processors_pin(const loom_processors *processors, int threads);
void loom_processors_unpin(void);

#ifdef __cplusplus
}
#endif
#endif
