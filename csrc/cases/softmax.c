/* Cases of softmax_forward and softmax_backward. */
#include "cases/case.h"

#include <math.h>

static const loom_case_shape shapes[] = {
    {{1, 1}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{3, 7}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{5, 33}, "in-place", LOOM_CASE_PARITY},
    {{7, 129}, "strided", LOOM_CASE_PARITY},
    {{300, 385}, "in-place", LOOM_CASE_PARITY},
    {{6, 770}, "extreme", LOOM_CASE_PARITY},
    {{6, 257}, "equal", LOOM_CASE_PARITY},
    {{2, 50257}, "", LOOM_CASE_PARITY},
    {{1, 1031}, "", LOOM_CASE_PARITY},
    /* Rows that start at multiples of 16 bytes: short, long, and so long that no cache on a GPU holds them. */
    {{3, 8}, "", LOOM_CASE_PARITY},
    {{9, 136}, "padded", LOOM_CASE_PARITY},
    {{6, 768}, "extreme in-place", LOOM_CASE_PARITY},
    {{5, 2048}, "", LOOM_CASE_PARITY},
    {{3, 4104}, "in-place", LOOM_CASE_PARITY},
    {{2, 13328}, "padded", LOOM_CASE_PARITY},
    {{3, 2056}, "equal", LOOM_CASE_PARITY},
    {{2, 50304}, "in-place", LOOM_CASE_PARITY},
    {{2, 50304}, "extreme", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{2, 131072}, "", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    /* Other scales than 1. */
    {{3, 7}, "flat", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{4, 9}, "sharp", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{5, 33}, "sharp in-place", LOOM_CASE_PARITY},
    {{9, 136}, "sharp padded", LOOM_CASE_PARITY},
    {{6, 768}, "sharp extreme", LOOM_CASE_PARITY},
    {{6, 264}, "flat equal", LOOM_CASE_PARITY},
    {{5, 4104}, "sharp", LOOM_CASE_PARITY},
    {{3, 13328}, "flat", LOOM_CASE_PARITY},
    {{1, 50257}, "sharp in-place", LOOM_CASE_PARITY},
    {{768, 257}, "", LOOM_CASE_BENCH},
    {{1, 50257}, "in-place", LOOM_CASE_BENCH},
    {{64, 50257}, "", LOOM_CASE_BENCH},
    {{4096, 50257}, "", LOOM_CASE_BENCH_LARGE},
};

static float scale_of(const loom_case *c) {
    return loom_case_option(c, "sharp") ? 3.3f : loom_case_option(c, "flat") ? 0.3f : 1;
}

static void tensors(loom_case *c) {
    const int64_t C = loom_case_dim(c, "C");
    const loom_case_size size = loom_case_2d(loom_case_dim(c, "N"), C);
    const bool extreme = loom_case_option(c, "extreme"), equal = loom_case_option(c, "equal");
    const double scale = (double)scale_of(c);
    loom_case_input(c, "x", LOOM_CASE_STORAGE, size,
                    extreme ? loom_case_extreme(1e4)
                    : equal ? loom_case_rows(1e4)
                            : loom_case_normal(0, 1));
    loom_case_input(c, "dout", LOOM_CASE_STORAGE, size, loom_case_normal(0, 1));
    /* x - max is at most about 8 for standard normal values and rounds in units of its own size, times the scale, whose
     * product rounds as much; where x is large, what counts is equal to the maximum. */
    const double exponent = scale > 1 || scale < 1 ? 16 * scale : 8;
    loom_case_output(c, "out", LOOM_CASE_STORAGE, size, (loom_case_bound){.sum = (double)C, .chain = 2 + exponent});
    /* dout - sum(dout out) cancels where one probability is 1. */
    const double probability = scale * (extreme || scale > 1 ? 1 : 1 / (double)C);
    loom_case_output(c, "dx", LOOM_CASE_STORAGE, size,
                     (loom_case_bound){.sum = (double)C, .chain = 4, .floor = probability});
    loom_case_cotangent(c, "out", "dout");
    loom_case_gradient(c, "x", "dx");
    if (loom_case_option(c, "strided")) {
        loom_case_widen(c, "x", 3);
        loom_case_widen(c, "out", 5);
        loom_case_widen(c, "dout", 1);
        loom_case_widen(c, "dx", 7);
    }
    if (loom_case_option(c, "padded")) {
        loom_case_widen(c, "x", 8);
        loom_case_widen(c, "out", 16);
        loom_case_widen(c, "dout", 24);
        loom_case_widen(c, "dx", 32);
    }
    if (loom_case_option(c, "in-place")) {
        loom_case_alias(c, "out", "x");
        loom_case_alias(c, "dx", "dout");
    }
}

static void forward(loom_case *c, loom_case_arguments *a) {
    a->softmax_forward = (struct loom_softmax_forward){
        .out = loom_case_writes(c, "out"), .x = loom_case_reads(c, "x"), .scale = scale_of(c)};
}

static void forward_formula(loom_case *c) {
    const int64_t N = loom_case_dim(c, "N"), C = loom_case_dim(c, "C");
    const double *x = loom_case_value(c, "x"), scale = (double)scale_of(c);
    double *out = loom_case_expected(c, "out");
    for (int64_t n = 0; n < N; n++, x += C, out += C) {
        double largest = x[0], sum = 0;
        for (int64_t i = 0; i < C; i++) largest = fmax(largest, x[i]);
        for (int64_t i = 0; i < C; i++) sum += exp(scale * (x[i] - largest));
        for (int64_t i = 0; i < C; i++) out[i] = exp(scale * (x[i] - largest)) / sum;
    }
}

static void backward(loom_case *c, loom_case_arguments *a) {
    a->softmax_backward = (struct loom_softmax_backward){.dx = loom_case_writes(c, "dx"),
                                                         .dout = loom_case_reads(c, "dout"),
                                                         .out = loom_case_reads(c, "out"),
                                                         .scale = scale_of(c)};
}

const loom_op_cases loom_op_cases_softmax = {
    .name = "softmax",
    .dims = "N C",
    .options = "in-place strided padded extreme equal sharp flat",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_softmax_forward, forward, forward_formula}, {LOOM_OP_softmax_backward, backward, NULL}},
};
