/* Cases of block_sum. */
#include "cases/case.h"

#include <math.h>

static const loom_case_shape shapes[] = {
    {{1, 1}, "", LOOM_CASE_PARITY},
    {{7, 3}, "square", LOOM_CASE_PARITY},
    {{9, 3}, "", LOOM_CASE_PARITY},
    {{300, 1}, "square", LOOM_CASE_PARITY},
    {{5000, 2048}, "", LOOM_CASE_PARITY},
    {{6151, 2050}, "square", LOOM_CASE_PARITY},
    {{65536, 65536}, "square", LOOM_CASE_PARITY},
    {{200001, 65536}, "", LOOM_CASE_PARITY},
    {{90001, 40000}, "square apart", LOOM_CASE_PARITY},
    {{1000, 100}, "extreme", LOOM_CASE_PARITY},
    {{7087872, 65536}, "square", LOOM_CASE_BENCH},
    {{124475904, 65536}, "square", LOOM_CASE_BENCH_LARGE},
};

static void tensors(loom_case *c) {
    const int64_t n = loom_case_dim(c, "n"), block = loom_case_dim(c, "block");
    const bool square = loom_case_option(c, "square"), extreme = loom_case_option(c, "extreme");
    loom_case_input(c, "x", LOOM_CASE_PARAMETER, loom_case_1d(n),
                    extreme ? loom_case_extreme(1e4) : loom_case_normal(0, 1));
    if (loom_case_option(c, "apart")) loom_case_place(c, "x", "gradients", 3, 0, 0, 0);
    /* Terms of both signs come to sqrt(block). */
    loom_case_output(c, "partials", LOOM_CASE_STATISTICS, loom_case_1d((n + block - 1) / block),
                     (loom_case_bound){.sum = (double)block,
                                       .chain = 1,
                                       .floor = square ? 0 : (extreme ? 1e4 : 1) * sqrt((double)block)});
}

static void arguments(loom_case *c, loom_case_arguments *a) {
    a->block_sum = (struct loom_block_sum){
        .partials = loom_case_writes(c, "partials"),
        .x = loom_case_reads(c, "x"),
        .block = loom_case_dim(c, "block"),
        .square = loom_case_option(c, "square"),
    };
}

static void formula(loom_case *c) {
    const int64_t n = loom_case_dim(c, "n"), block = loom_case_dim(c, "block");
    const double *x = loom_case_value(c, "x");
    double *partials = loom_case_expected(c, "partials");
    for (int64_t i = 0; i < n; i++) {
        if (i % block == 0) partials[i / block] = 0;
        partials[i / block] += loom_case_option(c, "square") ? x[i] * x[i] : x[i];
    }
}

const loom_op_cases loom_op_cases_block_sum = {
    .name = "block_sum",
    .dims = "n block",
    .options = "square extreme apart",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_block_sum, arguments, formula}},
};
