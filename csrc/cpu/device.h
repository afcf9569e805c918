/* The CPU as a device, with the ops of one of its tables (tables.h). */
#ifndef LOOM_CPU_DEVICE_H
#define LOOM_CPU_DEVICE_H

#include "gptloom/device.h"

typedef enum loom_cpu_kind { LOOM_CPU_TUNED, LOOM_CPU_DEFINITION, LOOM_CPU_ORACLE } loom_cpu_kind;

bool loom_cpu_open(loom_device **device, loom_cpu_kind kind, const loom_device_options *options, loom_error *error);

/* The number of threads asked for or, by default, the number of the rank's processors. NULL options stand for the
 * defaults. */
int loom_cpu_threads(const loom_device_options *options);

#endif
