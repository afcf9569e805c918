/* What tests ask of the emulation beyond CUDA's own API. The environment says the rest:
 *   LOOM_EMULATION_SCHEDULE    order, reverse or random:SEED, see below
 *   LOOM_EMULATION_THREADS     the CPU threads that blocks are spread over
 *   LOOM_EMULATION_CAPABILITY  the compute capability that the device says it has; 9.0
 *   LOOM_EMULATION_MEMORY      the device's memory in MiB; what the host has free
 *   LOOM_EMULATION_GPUS        how many GPUs there are; 1 */
#ifndef LOOM_EMULATION_H
#define LOOM_EMULATION_H

#ifdef __cplusplus
extern "C" {
#endif

/* The order in which the threads of a block and the blocks of a grid run: "order", "reverse" or "random:SEED". Streams
 * follow it too: of what could run, what was put in first, last, or any. The environment's LOOM_EMULATION_SCHEDULE
 * says it at the start; without it "order". Returns 0 if there is no such
 * schedule. Takes effect at the next kernel that starts. In grid.cpp. */
int emulation_set_schedule(const char *schedule);

/* The CPU threads that blocks are spread over; 0: LOOM_EMULATION_THREADS, or the number of processors. In grid.cpp. */
void emulation_set_threads(int threads);

/* Why the sticky error cudaErrorLaunchFailure was set: kernel, what it did wrong, file and line; "" if nothing failed.
 * In device.cpp. */
const char *emulation_last_failure(void);

/* Puts into a stream (cudaStream_t) what takes as long as something outside the device does, another process say: when
 * its turn comes, `attempt` is called, again and again and between other streams' work, until it returns nonzero.
 * Returns a cudaError_t; it cannot be captured. In stream.cpp. */
int emulation_enqueue_attempt(void *stream, int (*attempt)(void *argument), void *argument);

/* How far into an allocation of the device's memory `address` is; -1 unless `bytes` from there on are in it. In
 * memory.cpp. */
long emulation_place_in_memory(const void *address, unsigned long bytes);

/* Kernels and matrix products, those of graphs too: how many streams have been given, how many have begun. In
 * stream.cpp. */
long emulation_kernels_given(void);
long emulation_kernels_begun(void);

/* The GPU that the calling thread's calls are for. In device.cpp. */
int emulation_current_gpu(void);

/* Forgets the sticky error, and drops what streams still hold and all captures, as a new process would: memory,
 * streams and events stay. In device.cpp. */
void emulation_reset(void);

#ifdef __cplusplus
}
#endif
#endif
