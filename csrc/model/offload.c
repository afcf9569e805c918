#include "model/gpt.h"

#include "base/check.h"

/* Blocks, or segments of them. */
static int64_t units(const loom_gpt *g) {
    return (g->config.n_layer + g->segment - 1) / g->segment;
}

static int64_t units_that_leave(const loom_gpt *g) {
    return g->offload.on ? units(g) - LOOM_SLOTS : 0;
}

size_t loom_offload_host_bytes(const loom_gpt *g) {
    return (size_t)units_that_leave(g) * g->offload.slot_bytes;
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
    if (g->offload.host) g->device->synchronize(g->device, g->exec.stream, NULL);
    if (g->offload.copies) g->device->stream_close(g->device, g->offload.copies);
    if (g->offload.host) g->device->release_host(g->device, g->offload.host, loom_offload_host_bytes(g));
    g->offload = (loom_offload){0};
}

/* At a unit's end: compute waits for the copy that ran beside it, whose slot is next; then what compute left behind lets
 * another copy begin, if `unit` is one that leaves. This order keeps compute from waiting for the new copy. */
static void next_copy(loom_gpt *g, int64_t unit, loom_copy_kind kind) {
    loom_offload *o = &g->offload;
    loom_device *device = g->device;
    if (o->copying) device->order(device, g->exec.stream, o->copies);
    o->copying = unit >= 0 && unit < units_that_leave(g);
    if (!o->copying) return;
    char *slot = g->memory[loom_tape_saved(&g->tape, (int)(unit * g->segment) + 1, 0)]; /* the first of what is kept */
    char *host = o->host + (size_t)unit * o->slot_bytes;
    const bool out = kind == LOOM_DEVICE_TO_HOST;
    device->order(device, o->copies, g->exec.stream);
    device->copy(device, o->copies, out ? host : slot, out ? slot : host, o->slot_bytes, kind);
}

/* Walks that plan or prepare move nothing. */
static bool moves(const loom_gpt *g) {
    if (!g->offload.on || g->walking) return false;
    LOOM_CHECK(g->offload.copies);
    return true;
}

void loom_offload_after_forward(loom_gpt *g, int64_t l) {
    const bool ends = (l + 1) % g->segment == 0 || l + 1 == g->config.n_layer;
    if (moves(g) && ends) next_copy(g, l / g->segment, LOOM_DEVICE_TO_HOST);
}

void loom_offload_after_backward(loom_gpt *g, int64_t l) {
    const bool ends = l % g->segment == 0;
    if (moves(g) && ends) next_copy(g, l / g->segment - LOOM_SLOTS, LOOM_HOST_TO_DEVICE);
}
