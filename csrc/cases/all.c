/* The list of all files of cases. A new op's file is added here. */
#include "cases/case.h"

#include <stddef.h>

extern const loom_op_cases loom_op_cases_embedding, loom_op_cases_layernorm, loom_op_cases_matmul,
    loom_op_cases_attention, loom_op_cases_gelu, loom_op_cases_relu, loom_op_cases_softmax, loom_op_cases_cross_entropy,
    loom_op_cases_add, loom_op_cases_block_sum, loom_op_cases_optimizer_scalars, loom_op_cases_adamw,
    loom_op_cases_cast, loom_op_cases_fill;

const loom_op_cases *const loom_op_catalogue[] = {
    &loom_op_cases_embedding,
    &loom_op_cases_layernorm,
    &loom_op_cases_matmul,
    &loom_op_cases_attention,
    &loom_op_cases_gelu,
    &loom_op_cases_relu,
    &loom_op_cases_softmax,
    &loom_op_cases_cross_entropy,
    &loom_op_cases_add,
    &loom_op_cases_block_sum,
    &loom_op_cases_optimizer_scalars,
    &loom_op_cases_adamw,
    &loom_op_cases_cast,
    &loom_op_cases_fill,
    NULL,
};
