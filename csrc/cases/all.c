/* The list of all files of cases: one for each family of ops. */
#include "cases/case.h"

#include <stddef.h>

#define DECLARE(name, ...) extern const loom_op_cases loom_op_cases_##name;
LOOM_OP_FAMILIES(DECLARE)
#undef DECLARE

const loom_op_cases *const loom_op_catalogue[] = {
#define ROW(name, ...) &loom_op_cases_##name,
    LOOM_OP_FAMILIES(ROW)
#undef ROW
        NULL,
};
