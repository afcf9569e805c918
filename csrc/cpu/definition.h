/* The ops of the table that is being compiled, and the bytes of scratch that each of them needs. */
#ifndef LOOM_CPU_DEFINITION_H
#define LOOM_CPU_DEFINITION_H

#include "cpu/real.h"

#define DECLARE(name)                                                                                                  \
    void LOOM_DEFINITION(name)(loom_context * ctx, const struct loom_##name *a);                                       \
    size_t LOOM_DEFINITION(name##_scratch)(const loom_device *device, const struct loom_##name *a);
LOOM_OP_LIST(DECLARE)
#undef DECLARE

/* The answer of an op that needs none. */
#define NO_SCRATCH(name)                                                                                               \
    size_t LOOM_DEFINITION(name##_scratch)(const loom_device *device, const struct loom_##name *a) {                   \
        (void)device, (void)a;                                                                                         \
        return 0;                                                                                                      \
    }

/* The whole table of ops, and the rate of its multiply-adds (tables.h). */
const loom_ops *LOOM_DEFINITION(ops)(void);
double LOOM_DEFINITION(peak)(int threads, double seconds);
void LOOM_DEFINITION(install_products)(loom_ops *ops);

/* The table's queries. The tuned table forwards to them what it does not answer itself. */
bool LOOM_DEFINITION(supports)(const loom_device *device, loom_op op, const void *arguments, const char **why);
size_t LOOM_DEFINITION(workspace)(const loom_device *device, loom_op op, const void *arguments);

#endif
