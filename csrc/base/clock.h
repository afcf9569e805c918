#ifndef LOOM_BASE_CLOCK_H
#define LOOM_BASE_CLOCK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Seconds of a clock that only goes forward, from some time on. */
double loom_seconds_now(void);

#ifdef __cplusplus
}
#endif

#endif
