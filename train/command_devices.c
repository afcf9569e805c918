/* gptloom devices: what there is to run on. */
#include "command.h"
#include "command_line.h"

#include "gptloom/device.h"

static bool show_device(const char *name, const char *use, bool measured, loom_error *error) {
    loom_device *device;
    const loom_device_options options = {0};
    if (!loom_device_open(&device, name, &options, error)) return false;
    printf("%s\n  %s\n", device->name, use);
    if (measured) {
        printf("  built with  %s\n", device->description);
        printf("  threads     %d\n", device->threads);
        printf("  memory      %.1f GiB free\n", (double)device->available(device) / 0x1p30);
        printf("  peak        %.0f GFLOP/s in %s, measured just now\n", loom_device_probe_peak(device, 0.2) / 1e9,
               loom_dtype_name(device->storage));
    }
    loom_device_close(device);
    return true;
}

int loom_command_devices(int argc, char **argv) {
    loom_command_line line = {.command = "devices",
                              .about = "Lists what --device can name, with what it has and how fast it is."};
    loom_error error;
    const int code = loom_command_line_read(&line, argc, argv);
    if (code >= 0) return code;
    if (!show_device("cpu", "the tuned CPU implementation; --device auto takes it", true, &error) ||
        !show_device("definition", "for tests: every op as it is defined, in readable C, without libraries", false,
                     &error) ||
        !show_device("oracle", "for tests: the definition in double precision", false, &error))
        return loom_command_failed(&error);
    printf("cuda\n  no CUDA support in this build\n");
    return 0;
}
