#ifndef LOOM_BASE_CLOCK_H
#define LOOM_BASE_CLOCK_H

#ifdef __cplusplus
extern "C" {
#endif

/* The seconds of a monotonic clock, whose zero is arbitrary. */
double loom_seconds_now(void);

/* Sleeps for `seconds`, or until a signal is handled. */
void loom_pause(double seconds);

#ifdef __cplusplus
}
#endif

#endif
