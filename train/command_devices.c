/* gptloom devices: what there is to run on. */
#include "command.h"
#include "command_line.h"

#include "base/printable.h"
#include "gptloom/device.h"

static void show_device(loom_device *device, const char *use, bool measured) {
    printf("%s\n  %s\n", device->name, use);
    if (!measured) return;
    printf("  is          %s\n", LOOM_PRINTABLE(device->description));
    if (device->host_memory) printf("  threads     %d\n", device->threads);
    printf("  memory      %.1f GiB free\n", (double)device->available(device) / 0x1p30);
    const loom_dtype dtypes[] = {LOOM_F32, LOOM_BF16, LOOM_F16};
    for (int i = 0; i < 3; i++) {
        double peak;
        if (!(device->emulated_dtypes >> dtypes[i] & 1) && device->peak(device, dtypes[i], 0.2, &peak, NULL))
            printf("  peak        %.0f GFLOP/s in %s, measured just now\n", peak / 1e9, loom_dtype_name(dtypes[i]));
    }
}

static bool open_and_show(const char *name, const char *use, bool measured, loom_error *error) {
    loom_device *device;
    if (!loom_device_open(&device, name, NULL, error)) return false;
    show_device(device, use, measured);
    loom_device_close(device);
    return true;
}

int loom_command_devices(int argc, char **argv) {
    loom_command_line line = {.command = "devices",
                              .about = "Lists what --device can name, with what it has and how fast it is."};
    loom_error error;
    const int code = loom_command_line_read(&line, argc, argv);
    if (code >= 0) return code;
    if (!open_and_show("cpu", "the tuned CPU implementation; --device auto takes it where no GPU works", true,
                       &error) ||
        !open_and_show("definition", "for tests: every op as it is defined, in readable C, without libraries", false,
                       &error) ||
        !open_and_show("oracle", "for tests: the definition in double precision", false, &error))
        return loom_command_failed(&error);
    if (!open_and_show("cuda", "an NVIDIA GPU, which --device auto takes, or its emulation, which it does not", true,
                       &error))
        printf("cuda\n  none: %s\n", error.message);
    return 0;
}
