#ifndef LOOM_BASE_CLOCK_H
#define LOOM_BASE_CLOCK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Seconds of a clock that only goes forward, from some time on. */
double loom_seconds_now(void);

/* Does nothing for as long as that, or until a signal. */
void loom_pause(double seconds);

#ifdef __cplusplus
}
#endif

#endif
