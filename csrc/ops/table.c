#include "gptloom/ops.h"

#include "gptloom/device.h"

/* The dispatch tables over which a model's code runs without computing: sizing, preparing and counting. Sizing and
 * preparing first ask the device whether it can run the op. */

const char *loom_op_name(loom_op op) {
    static const char *const names[] = {
#define NAME(name) #name,
        LOOM_OP_LIST(NAME)
#undef NAME
    };
    return (unsigned)op < LOOM_OP_COUNT ? names[op] : "no op";
}

const char *loom_activation_name(loom_activation activation) {
#define WORD(NAME, name) #name,
    static const char *const names[] = {"none", LOOM_ACTIVATION_LIST(WORD)};
#undef WORD
    return (unsigned)activation < LOOM_ACTIVATION_COUNT ? names[activation] : "no activation";
}

static bool runnable(loom_context *ctx, loom_op op, const void *arguments) {
    const char *why = NULL;
    if (ctx->failed) return false;
    if (ctx->device->ops->supports(ctx->device, op, arguments, &why)) return true;
    loom_fail(ctx->error, "device %s cannot run %s: %s", ctx->device->name, loom_op_name(op), why);
    ctx->failed = true;
    return false;
}

static void plan(loom_context *ctx, loom_op op, const void *arguments) {
    if (!runnable(ctx, op, arguments)) return;
    const size_t need = ctx->device->ops->workspace(ctx->device, op, arguments);
    if (need > ctx->workspace_bytes) ctx->workspace_bytes = need;
}

static void prepare(loom_context *ctx, loom_op op, const void *arguments) {
    if (!runnable(ctx, op, arguments)) return;
    if (!ctx->device->ops->prepare(ctx->device, op, arguments, ctx->error)) ctx->failed = true;
}

#define TRAVERSE(name)                                                                                                 \
    static void plan_##name(loom_context *ctx, const struct loom_##name *arguments) {                                  \
        plan(ctx, LOOM_OP_##name, arguments);                                                                          \
    }                                                                                                                  \
    static void prepare_##name(loom_context *ctx, const struct loom_##name *arguments) {                               \
        prepare(ctx, LOOM_OP_##name, arguments);                                                                       \
    }                                                                                                                  \
    static void visit_##name(loom_context *ctx, const struct loom_##name *arguments) {                                 \
        ctx->visit(ctx->visitor, LOOM_OP_##name, arguments);                                                           \
    }
LOOM_OP_LIST(TRAVERSE)
#undef TRAVERSE

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
