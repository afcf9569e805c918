/* Which of a machine's processors a rank computes on, and its threads' places on them. */
#ifndef LOOM_CPU_PROCESSORS_H
#define LOOM_CPU_PROCESSORS_H

#include <sched.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct loom_processors {
    cpu_set_t set; /* the processors that the rank's threads may run on */
    int threads;   /* the number of threads that the rank should have */
    bool own;      /* no other rank of this run uses any of these processors */
} loom_processors;

/* Returns the processors of rank `local_rank` of `local_size` ranks on a machine (`local_size` 0 or 1: the only rank).
 * `allowed` are the processors that the process may run on, `machine` those that the ranks' launcher could assign. Each
 * rank gets an equal part of them; if there are more ranks than processors, a rank gets one thread that may run on any
 * processor. If `allowed` is smaller than `machine`, the launcher has bound the rank. If `allowed` is then no larger
 * than an equal part, it is the rank's own. Otherwise the rank shares it with unknown other ranks (as when ranks are
 * bound to a socket), and has as many threads as an equal part has processors. */
loom_processors loom_processors_share(const cpu_set_t *allowed, const cpu_set_t *machine, int local_rank,
                                      int local_size);

/* The processors of this process. The system is asked at the first call, so that pinning a thread later changes
 * nothing. */
loom_processors loom_processors_of(int local_rank, int local_size);

/* Whether each of `threads` threads is pinned to a processor: when their number is that of the rank's own processors.
 * Unpinned threads can end up on the same core. If there are fewer threads than processors, the system decides where
 * they run. */
bool loom_processors_pins(const loom_processors *processors, int threads);

/* loom_processors_pin pins the calling thread's OpenMP pool, one thread per processor. loom_processors_unpin lets the
 * calling thread run again on all processors that it could use at the start. */
void loom_processors_pin(const loom_processors *processors, int threads);
void loom_processors_unpin(void);

#ifdef __cplusplus
}
#endif
#endif
