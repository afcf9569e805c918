/* Cases of relu2_forward and relu2_backward. */
#include "cases/case.h"

static const loom_case_shape shapes[] = {
    {{1, 1}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{3, 5}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{1, 33}, "in-place", LOOM_CASE_PARITY},
    {{7, 129}, "strided", LOOM_CASE_PARITY},
    {{5, 136}, "spaced", LOOM_CASE_PARITY},
    {{300, 385}, "in-place", LOOM_CASE_PARITY},
    {{9, 770}, "extreme", LOOM_CASE_PARITY},
    {{768, 512}, "", LOOM_CASE_BENCH},
    {{256, 3072}, "", LOOM_CASE_BENCH},
    {{16384, 3072}, "", LOOM_CASE_BENCH_LARGE},
};

static void tensors(loom_case *c) {
    const loom_case_size size = loom_case_2d(loom_case_dim(c, "N"), loom_case_dim(c, "C"));
    const bool extreme = loom_case_option(c, "extreme");
    loom_case_input(c, "x", LOOM_CASE_STORAGE, size, extreme ? loom_case_extreme(1e4) : loom_case_normal(0, 1));
    loom_case_input(c, "dout", LOOM_CASE_STORAGE, size, loom_case_normal(0, 1));
    const loom_case_bound bound = {.exact = true}; /* one product, rounded once: twice x is exact */
    loom_case_output(c, "out", LOOM_CASE_STORAGE, size, bound);
    loom_case_output(c, "dx", LOOM_CASE_STORAGE, size, bound);
    loom_case_cotangent(c, "out", "dout");
    loom_case_gradient(c, "x", "dx");
    if (loom_case_option(c, "strided")) {
        loom_case_widen(c, "x", 3);
        loom_case_widen(c, "out", 5);
        loom_case_widen(c, "dout", 1);
        loom_case_widen(c, "dx", 7);
    }
    if (loom_case_option(c, "spaced")) { /* rows that begin at multiples of 16 bytes */
        loom_case_widen(c, "x", 8);
        loom_case_widen(c, "out", 16);
        loom_case_widen(c, "dout", 24);
        loom_case_widen(c, "dx", 8);
    }
    if (loom_case_option(c, "in-place")) {
        loom_case_alias(c, "out", "x");
        loom_case_alias(c, "dx", "dout");
    }
}

static void forward(loom_case *c, loom_case_arguments *a) {
    a->relu2_forward = (struct loom_relu2_forward){.out = loom_case_writes(c, "out"), .x = loom_case_reads(c, "x")};
}

static void forward_formula(loom_case *c) {
    const int64_t n = loom_case_dim(c, "N") * loom_case_dim(c, "C");
    const double *x = loom_case_value(c, "x");
    double *out = loom_case_expected(c, "out");
    for (int64_t i = 0; i < n; i++) out[i] = x[i] > 0 ? x[i] * x[i] : 0;
}

static void backward(loom_case *c, loom_case_arguments *a) {
    a->relu2_backward = (struct loom_relu2_backward){
        .dx = loom_case_writes(c, "dx"), .dout = loom_case_reads(c, "dout"), .x = loom_case_reads(c, "x")};
}

const loom_op_cases loom_op_cases_relu2 = {
    .name = "relu2",
    .dims = "N C",
    .options = "in-place strided spaced extreme",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_relu2_forward, forward, forward_formula}, {LOOM_OP_relu2_backward, backward, NULL}},
};
