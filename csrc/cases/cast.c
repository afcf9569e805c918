/* Cases of cast: from the storage dtype to fp32 (widen), from fp32 to it (narrow), or within it. */
#include "cases/case.h"

static const loom_case_shape shapes[] = {
    {{1, 1}, "", LOOM_CASE_PARITY},
    {{3, 5}, "widen", LOOM_CASE_PARITY},
    {{5, 33}, "narrow", LOOM_CASE_PARITY},
    {{7, 129}, "narrow strided", LOOM_CASE_PARITY},
    {{9, 130}, "widen strided", LOOM_CASE_PARITY},
    {{5, 136}, "narrow spaced", LOOM_CASE_PARITY},
    {{5, 136}, "narrow gaps-in-x", LOOM_CASE_PARITY},
    {{300, 385}, "narrow", LOOM_CASE_PARITY},
    {{6, 257}, "narrow extreme", LOOM_CASE_PARITY},
    {{6, 257}, "narrow huge", LOOM_CASE_PARITY},
    {{6, 257}, "widen extreme", LOOM_CASE_PARITY},
    {{1, 100003}, "narrow", LOOM_CASE_PARITY},
    {{1, 7087872}, "narrow", LOOM_CASE_BENCH},
    {{1, 124475904}, "narrow", LOOM_CASE_BENCH_LARGE},
};

static void tensors(loom_case *c) {
    const loom_case_size size = loom_case_2d(loom_case_dim(c, "N"), loom_case_dim(c, "C"));
    const loom_case_kind from = loom_case_option(c, "narrow") ? LOOM_CASE_STATISTICS : LOOM_CASE_STORAGE;
    const loom_case_kind to = loom_case_option(c, "widen") ? LOOM_CASE_STATISTICS : LOOM_CASE_STORAGE;
    /* 10^6 is infinite in fp16. */
    loom_case_input(c, "x", from, size,
                    loom_case_option(c, "extreme") ? loom_case_extreme(1e4)
                    : loom_case_option(c, "huge")  ? loom_case_extreme(1e6)
                                                   : loom_case_normal(0, 1));
    loom_case_output(c, "out", to, size, (loom_case_bound){.exact = true});
    if (loom_case_option(c, "spaced")) { /* rows that begin at multiples of 16 bytes */
        loom_case_widen(c, "x", 8);
        loom_case_widen(c, "out", 16);
    }
    if (loom_case_option(c, "gaps-in-x")) loom_case_widen(c, "x", 3); /* while out is one long row */
    if (loom_case_option(c, "strided")) {
        loom_case_widen(c, "x", 3);
        loom_case_widen(c, "out", 5);
    }
}

static void arguments(loom_case *c, loom_case_arguments *a) {
    a->cast = (struct loom_cast){.out = loom_case_writes(c, "out"), .x = loom_case_reads(c, "x")};
}

static void formula(loom_case *c) {
    const double *x = loom_case_value(c, "x");
    double *out = loom_case_expected(c, "out");
    for (int64_t i = 0; i < loom_case_dim(c, "N") * loom_case_dim(c, "C"); i++) out[i] = x[i];
}

const loom_op_cases loom_op_cases_cast = {
    .name = "cast",
    .dims = "N C",
    .options = "widen narrow strided spaced extreme huge gaps-in-x",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_cast, arguments, formula}},
};
