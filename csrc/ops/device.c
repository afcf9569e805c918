#include "gptloom/device.h"

#include "base/nearest.h"
#include "cpu/device.h"

#include <string.h>

bool loom_device_open(loom_device **device, const char *name, const loom_device_options *options, loom_error *error) {
    static const char *const names[] = {"auto", "cpu", "definition", "oracle", NULL};
    if (!strcmp(name, "auto") || !strcmp(name, "cpu")) return loom_cpu_open(device, LOOM_CPU_TUNED, options, error);
    if (!strcmp(name, "definition")) return loom_cpu_open(device, LOOM_CPU_DEFINITION, options, error);
    if (!strcmp(name, "oracle")) return loom_cpu_open(device, LOOM_CPU_ORACLE, options, error);
    const char *nearest = loom_nearest_name(name, names);
    return loom_fail(error, "--device: '%s' is no device of this build; %s%s%sthere are auto, cpu, definition, oracle",
                     name, nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "");
}

void loom_device_close(loom_device *device) {
    if (device) device->close(device);
}
