/* Cases of fill. */
#include "cases/case.h"

static const loom_case_shape shapes[] = {
    {{1, 1}, "", LOOM_CASE_PARITY},          {{3, 5}, "zero", LOOM_CASE_PARITY},
    {{7, 129}, "strided", LOOM_CASE_PARITY}, {{65600, 3}, "strided", LOOM_CASE_PARITY},
    {{300, 385}, "", LOOM_CASE_PARITY},      {{1, 100003}, "zero", LOOM_CASE_PARITY},
    {{1, 7087872}, "zero", LOOM_CASE_BENCH}, {{1, 124475904}, "zero", LOOM_CASE_BENCH_LARGE},
};

static void tensors(loom_case *c) {
    loom_case_output(c, "out", LOOM_CASE_STORAGE, loom_case_2d(loom_case_dim(c, "N"), loom_case_dim(c, "C")),
                     (loom_case_bound){.exact = true});
    if (loom_case_option(c, "strided")) loom_case_widen(c, "out", 3);
}

static float value(const loom_case *c) {
    return loom_case_option(c, "zero") ? 0 : -0.1f;
}

static void arguments(loom_case *c, loom_case_arguments *a) {
    a->fill = (struct loom_fill){.out = loom_case_writes(c, "out"), .value = value(c)};
}

static void formula(loom_case *c) {
    double *out = loom_case_expected(c, "out");
    for (int64_t i = 0; i < loom_case_dim(c, "N") * loom_case_dim(c, "C"); i++) out[i] = (double)value(c);
}

const loom_op_cases loom_op_cases_fill = {
    .name = "fill",
    .dims = "N C",
    .options = "zero strided",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_fill, arguments, formula}},
};
