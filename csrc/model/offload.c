#include "model/gpt.h"

#include "base/check.h"

size_t loom_offload_host_bytes(const loom_gpt *g) {
    return g->offload.on ? (size_t)(loom_segments_that_leave(&g->tape, g->segment)) * g->buffers[LOOM_MODE_TRAIN].slot
                         : 0;
}

bool loom_offload_open(loom_gpt *g, loom_error *error) {
    const size_t bytes = loom_offload_host_bytes(g);
    void *host;
    loom_error why;
    if (!g->offload.on || g->offload.host) return true;
    if (!g->device->allocate_host(g->device, &host, bytes, &why))
        return loom_fail(error, "--offload: %s; take a smaller --micro-batch or another --recompute", why.message);
    g->offload.host = host;
    return g->device->stream_open(g->device, &g->offload.copies, error);
}

/* Compute waits for every copy, so that who waits for compute has waited for all. */
void loom_offload_close(loom_gpt *g) {
    if (g->offload.host) g->device->synchronize(g->device, g->ctx.stream, NULL);
    if (g->offload.copies) g->device->stream_close(g->device, g->offload.copies);
    if (g->offload.host) g->device->release_host(g->device, g->offload.host, loom_offload_host_bytes(g));
    g->offload = (loom_offload){0};
}

void loom_offload_step(loom_gpt *g, const loom_tape_step *step) {
    loom_device *device = g->device;
    loom_stream *copies = g->offload.copies;
    const size_t bytes = g->buffers[LOOM_MODE_TRAIN].slot;
    LOOM_CHECK(copies);
    if (step->kind == LOOM_STEP_WAIT) {
        device->stream_wait_stream(device, g->ctx.stream, copies);
        return;
    }
    char *slot = g->activations + (size_t)(step->index % LOOM_SLOTS) * bytes;
    char *host = g->offload.host + (size_t)step->index * bytes;
    device->stream_wait_stream(device, copies, g->ctx.stream);
    if (step->kind == LOOM_STEP_SEND)
        device->copy(device, copies, host, slot, bytes, LOOM_DEVICE_TO_HOST);
    else
        device->copy(device, copies, slot, host, bytes, LOOM_HOST_TO_DEVICE);
}
