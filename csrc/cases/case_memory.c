/* Where a case's tensors lie on a device. One allocation holds them all, as allocating takes long on some devices. */
#include "cases/case_internal.h"

enum { ALIGNMENT = 256 };

static bool is_used(const loom_case *c, unsigned ops, int memory) {
    for (int i = 0; i < c->n_tensors; i++)
        for (int op = 0; op < LOOM_CASE_OPS; op++)
            if (c->tensor[i].memory == memory && ops >> op & 1 && c->tensor[i].role[op] != LOOM_CASE_UNUSED)
                return true;
    return false;
}

/* Takes room for so many bytes between fences, aligned; returns where they begin. */
static size_t take(loom_case_block *block, size_t bytes) {
    const size_t place = block->bytes + LOOM_CASE_FENCE;
    block->bytes = (place + bytes + LOOM_CASE_FENCE + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return place;
}

bool loom_case_allocate(loom_case *c, unsigned ops, size_t workspace_bytes, loom_device *device, loom_error *error) {
    loom_case_block *block = &c->block;
    LOOM_CHECK(!block->device);
    *block = (loom_case_block){.workspace_bytes = workspace_bytes};
    for (int i = 0; i < c->n_memories; i++)
        if (is_used(c, ops, i)) c->memory[i].place = take(block, c->memory[i].bytes);
    block->workspace = take(block, workspace_bytes);
    if (!device->allocate(device, &block->device, block->bytes, error)) return false;
    for (int i = 0; i < c->n_memories; i++)
        if (is_used(c, ops, i)) c->memory[i].device = (char *)block->device + c->memory[i].place - LOOM_CASE_FENCE;
    return true;
}

void loom_case_release(loom_case *c, loom_device *device) {
    if (c->block.device) device->release(device, c->block.device, c->block.bytes);
    c->block.device = NULL;
    for (int i = 0; i < c->n_memories; i++) c->memory[i].device = NULL;
}

void loom_case_run(loom_case *c, int op, loom_device *device) {
    loom_case_arguments arguments;
    loom_case_bind(c, op, LOOM_CASE_DEVICE, &arguments);
    loom_context ctx = {.ops = device->ops,
                        .device = device,
                        .workspace = (char *)c->block.device + c->block.workspace,
                        .workspace_bytes = c->block.workspace_bytes};
    loom_case_call(&ctx, c->cases->op[op].op, &arguments);
}
