#include "data/feeder.h"

#include "base/check.h"

#include <string.h>

void loom_feeder_lay_out(loom_feeder *f, int64_t sequences, int64_t T, loom_arena *arena) {
    const size_t half = (size_t)(sequences * T);
    f->ids = 2 * half;
    f->inputs = loom_arena_take(arena, "batch", half * sizeof(int32_t));
    f->targets = loom_arena_take(arena, "batch", half * sizeof(int32_t));
    f->staged = loom_arena_take(arena, "batch", f->ids * sizeof(int32_t));
}

bool loom_feeder_open(loom_feeder *f, loom_device *device, loom_loader *loader, loom_error *error) {
    f->device = device;
    f->loader = loader;
    bool ok = device->stream_open(device, &f->stream, error);
    for (int i = 0; ok && i < 2; i++) {
        void *memory;
        ok = device->allocate_host(device, &memory, f->ids * sizeof(int32_t), error);
        if (ok) f->pinned[i] = memory;
    }
    return ok;
}

void loom_feeder_close(loom_feeder *f) {
    if (!f->device) return;
    f->device->synchronize(f->device, f->stream, NULL);
    for (int i = 0; i < 2; i++)
        if (f->pinned[i]) f->device->release_host(f->device, f->pinned[i], f->ids * sizeof(int32_t));
    if (f->stream) f->device->stream_close(f->device, f->stream);
    loom_loader_close(f->loader);
    *f = (loom_feeder){0};
}

/* A pinned buffer is used again two batches later. By then the host has waited for the step between them, and that step
 * waited for the copy out of this buffer. */
static bool send(loom_feeder *f, loom_error *error) {
    const loom_batch *batch;
    const size_t half = f->ids / 2;
    f->failed = !loom_loader_next(f->loader, &batch, error);
    if (f->failed) return false;
    int32_t *pinned = f->pinned[f->turn];
    memcpy(pinned, batch->inputs, half * sizeof *pinned);
    memcpy(pinned + half, batch->targets, half * sizeof *pinned);
    f->device->copy(f->device, f->stream, f->staged, pinned, f->ids * sizeof *pinned, LOOM_HOST_TO_DEVICE);
    f->next = *batch;
    f->turn = 1 - f->turn;
    f->sent = true;
    return true;
}

void loom_feeder_send_ahead(loom_feeder *f) {
    if (!f->sent) send(f, NULL);
}

void loom_feeder_give_back(loom_feeder *f) {
    LOOM_CHECK(!f->sent);
    f->given_back = true;
}

bool loom_feeder_take(loom_feeder *f, int64_t *step, int64_t *targets, loom_error *error) {
    const size_t half = f->ids / 2, bytes = half * sizeof(int32_t);
    *step = f->next.step;
    *targets = f->next.targets_in_step;
    if (f->given_back) return !(f->given_back = false);
    if (!f->sent && !send(f, error)) return false;
    f->device->stream_wait_stream(f->device, NULL, f->stream);
    f->device->copy(f->device, NULL, f->inputs, f->staged, bytes, LOOM_DEVICE_TO_DEVICE);
    f->device->copy(f->device, NULL, f->targets, f->staged + half, bytes, LOOM_DEVICE_TO_DEVICE);
    f->device->stream_wait_stream(f->device, f->stream, NULL);
    f->sent = false;
    *step = f->next.step;
    *targets = f->next.targets_in_step;
    return true;
}

void loom_feeder_take_nothing(loom_feeder *f) {
    const size_t half = f->ids / 2, bytes = half * sizeof(int32_t);
    int32_t *pinned = f->pinned[f->turn];
    for (size_t i = 0; i < half; i++) {
        pinned[i] = 0;
        pinned[half + i] = -1;
    }
    f->device->copy(f->device, NULL, f->inputs, pinned, bytes, LOOM_HOST_TO_DEVICE);
    f->device->copy(f->device, NULL, f->targets, pinned + half, bytes, LOOM_HOST_TO_DEVICE);
}
