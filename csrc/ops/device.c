#include "gptloom/device.h"

#include "base/file.h"
#include "base/nearest.h"
#include "cpu/device.h"
#include "cuda/device.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The host's part of a GPU's work has the threads of a CPU's. */
static bool open_gpu(loom_device **device, const loom_device_options *options, bool *there, loom_error *error) {
    if (!loom_cuda_open(device, options, there, error)) return false;
    (*device)->threads = loom_cpu_threads(options);
    return true;
}

/* A GPU that works (its emulation is none), else the CPU, which then says why a GPU that is there was not taken. */
static bool open_fastest(loom_device **device, const loom_device_options *options, loom_error *error) {
    bool there;
    loom_error why;
    if (open_gpu(device, options, &there, &why)) {
        if (!strcmp((*device)->name, "cuda")) return true;
        loom_device_close(*device);
        there = false;
    }
    if (!loom_cpu_open(device, LOOM_CPU_TUNED, options, error)) return false;
    if (there) snprintf((*device)->gpu_skip_reason, sizeof(*device)->gpu_skip_reason, "%.250s", why.message);
    return true;
}

bool loom_device_open(loom_device **device, const char *name, const loom_device_options *options, loom_error *error) {
    static const char *const names[] = {"auto", "cpu", "cuda", "definition", "oracle", NULL};
    bool there;
    if (!strcmp(name, "auto")) return open_fastest(device, options, error);
    if (!strcmp(name, "cpu")) return loom_cpu_open(device, LOOM_CPU_TUNED, options, error);
    if (!strcmp(name, "cuda")) return open_gpu(device, options, &there, error);
    if (!strcmp(name, "definition")) return loom_cpu_open(device, LOOM_CPU_DEFINITION, options, error);
    if (!strcmp(name, "oracle")) return loom_cpu_open(device, LOOM_CPU_ORACLE, options, error);
    const char *nearest = loom_nearest_name(name, names);
    return loom_fail(error, "--device: '%s' is no device; %s%s%sthere are auto, cpu, cuda, definition, oracle", name,
                     nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "");
}

bool loom_device_open_shapes(loom_device **device, size_t memory, size_t reserved, loom_error *error) {
    return loom_cuda_open_shapes(device, memory, reserved, error);
}

bool loom_device_read_tuning(loom_device *device, const char *path, loom_error *error) {
    loom_mapping mapping;
    if (!loom_file_map(path, &mapping, error)) return false;
    char *text = strndup(mapping.data ? mapping.data : "", mapping.size);
    loom_file_unmap(&mapping);
    loom_error why = {"no memory to read it"};
    const bool ok = text && device->tuning_set(device, text, &why);
    free(text);
    return ok || loom_fail(error, "%s: %s", path, why.message);
}

bool loom_device_restore_tuning(loom_device *device, const char *directory, loom_error *error) {
    static const char *const names[] = {LOOM_TUNING_FILE, LOOM_EARLIER_TUNING_FILE};
    char path[PATH_MAX];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!loom_join_path(path, sizeof path, directory, names[i], error)) return false;
        if (loom_path_exists(path)) return loom_device_read_tuning(device, path, error);
    }
    return true;
}

void loom_device_close(loom_device *device) {
    if (device) device->close(device);
}
