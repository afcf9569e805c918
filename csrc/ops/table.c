#include "gptloom/ops.h"

#include "gptloom/device.h"

/* The tables that walk a sequence of ops without running it. Planning and preparing ask the device first whether it can
 * run the op. */

const char *loom_op_name(loom_op op) {
    static const char *const names[] = {
#define NAME(name) #name,
        LOOM_OP_LIST(NAME)
#undef NAME
    };
    return (unsigned)op < LOOM_OP_COUNT ? names[op] : "no op";
}

static bool runnable(loom_exec *exec, loom_op op, const void *arguments) {
    const char *why = NULL;
    if (exec->failed) return false;
    if (exec->device->ops->supports(exec->device, op, arguments, &why)) return true;
    loom_fail(exec->error, "device %s cannot run %s: %s", exec->device->name, loom_op_name(op), why);
    exec->failed = true;
    return false;
}

static void plan(loom_exec *exec, loom_op op, const void *arguments) {
    if (!runnable(exec, op, arguments)) return;
    const size_t need = exec->device->ops->workspace(exec->device, op, arguments);
    if (need > exec->workspace_bytes) exec->workspace_bytes = need;
}

static void prepare(loom_exec *exec, loom_op op, const void *arguments) {
    if (!runnable(exec, op, arguments)) return;
    if (!exec->device->ops->prepare(exec->device, op, arguments, exec->error)) exec->failed = true;
}

#define WALK(name)                                                                                                     \
    static void plan_##name(loom_exec *exec, const struct loom_##name *arguments) {                                    \
        plan(exec, LOOM_OP_##name, arguments);                                                                         \
    }                                                                                                                  \
    static void prepare_##name(loom_exec *exec, const struct loom_##name *arguments) {                                 \
        prepare(exec, LOOM_OP_##name, arguments);                                                                      \
    }                                                                                                                  \
    static void visit_##name(loom_exec *exec, const struct loom_##name *arguments) {                                   \
        exec->visit(exec->visitor, LOOM_OP_##name, arguments);                                                         \
    }
LOOM_OP_LIST(WALK)
#undef WALK

const loom_ops *loom_planning_ops(void) {
#define MEMBER(name) .name = plan_##name,
    static const loom_ops ops = {LOOM_OP_LIST(MEMBER)};
#undef MEMBER
    return &ops;
}

const loom_ops *loom_preparing_ops(void) {
#define MEMBER(name) .name = prepare_##name,
    static const loom_ops ops = {LOOM_OP_LIST(MEMBER)};
#undef MEMBER
    return &ops;
}

const loom_ops *loom_visiting_ops(void) {
#define MEMBER(name) .name = visit_##name,
    static const loom_ops ops = {LOOM_OP_LIST(MEMBER)};
#undef MEMBER
    return &ops;
}
