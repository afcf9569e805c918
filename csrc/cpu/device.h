/* The CPU as a device, with one of three tables of ops. */
#ifndef LOOM_CPU_DEVICE_H
#define LOOM_CPU_DEVICE_H

#include "gptloom/device.h"

typedef enum loom_cpu_table { LOOM_CPU_TUNED, LOOM_CPU_DEFINITION, LOOM_CPU_ORACLE } loom_cpu_table;

bool loom_cpu_open(loom_device **device, loom_cpu_table table, const loom_device_options *options, loom_error *error);

/* As many threads as are asked for, or as the rank has processors. NULL options are none. */
int loom_cpu_threads(const loom_device_options *options);

/* Floating-point operations per second of fused multiply-adds in registers, on `threads` threads for `seconds`. */
double loom_cpu_peak(int threads, bool in_double, double seconds);

#endif
