#include "cpu/definition.h"

#include "ops/arguments.h"

bool LOOM_DEFINITION(supports)(const loom_device *device, loom_op op, const void *arguments, const char **why) {
    const unsigned stored = 1u << LOOM_REAL_DTYPE |
                            (LOOM_REAL_DTYPE == LOOM_F32 ? 1u << LOOM_BF16 | 1u << LOOM_F16 : 0);
    (void)device;
    const char *wrong = loom_check_arguments(op, arguments, LOOM_REAL_DTYPE, stored);
    if (wrong) *why = wrong;
    return !wrong;
}

size_t LOOM_DEFINITION(workspace)(const loom_device *device, loom_op op, const void *arguments) {
    switch (op) {
#define CASE(name)                                                                                                     \
    case LOOM_OP_##name: return LOOM_DEFINITION(name##_scratch)(device, arguments);
        LOOM_OP_LIST(CASE)
#undef CASE
    case LOOM_OP_COUNT: break;
    }
    return 0;
}

/* The definition plans nothing. */
static bool prepare(loom_device *device, loom_op op, const void *arguments, loom_error *error) {
    (void)device, (void)op, (void)arguments, (void)error;
    return true;
}

const loom_ops *LOOM_DEFINITION(ops)(void) {
#define MEMBER(name) .name = LOOM_DEFINITION(name),
    static const loom_ops ops = {LOOM_OP_LIST(MEMBER).supports = LOOM_DEFINITION(supports),
                                 .workspace = LOOM_DEFINITION(workspace), .prepare = prepare};
#undef MEMBER
    return &ops;
}
