/* Cases of layernorm_forward and layernorm_backward. */
#include "cases/case.h"

#include <math.h>

static const float epsilon = 1e-5f;

static const loom_case_shape shapes[] = {
    {{1, 1}, "", LOOM_CASE_PARITY},
    {{2, 6}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{3, 5}, "delta skip", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{2, 7}, "delta skip accumulate", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{5, 17}, "delta skip sum-in-x dx-in-skip", LOOM_CASE_PARITY},
    {{6, 65}, "delta skip sum-in-delta accumulate", LOOM_CASE_PARITY},
    {{7, 129}, "delta skip strided", LOOM_CASE_PARITY},
    {{7, 129}, "delta skip statistics", LOOM_CASE_PARITY},
    {{9, 512}, "delta statistics sum-in-x", LOOM_CASE_PARITY},
    {{3, 8200}, "statistics", LOOM_CASE_PARITY},
    {{300, 385}, "accumulate", LOOM_CASE_PARITY},
    {{129, 768}, "delta skip", LOOM_CASE_PARITY},
    {{9, 257}, "offset", LOOM_CASE_PARITY},
    {{9, 257}, "flat", LOOM_CASE_PARITY},
    {{4, 130}, "zero", LOOM_CASE_PARITY},
    /* Rows that start at multiples of 16 bytes: of each size that a kernel may be made for, whole and in part. */
    {{1, 8}, "delta skip accumulate", LOOM_CASE_PARITY},
    {{19, 248}, "delta skip padded", LOOM_CASE_PARITY},
    {{9, 512}, "offset", LOOM_CASE_PARITY},
    {{21, 520}, "accumulate", LOOM_CASE_PARITY},
    {{5, 1024}, "delta skip sum-in-delta dx-in-skip", LOOM_CASE_PARITY},
    {{11, 1032}, "delta skip padded accumulate", LOOM_CASE_PARITY},
    {{3, 4096}, "offset", LOOM_CASE_PARITY},
    {{10, 8192}, "delta skip sum-in-x dx-in-skip", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{3, 8184}, "delta skip", LOOM_CASE_PARITY},
    /* Longer ones, and those that start anywhere. */
    {{3, 8200}, "delta skip", LOOM_CASE_PARITY},
    {{5, 1031}, "offset", LOOM_CASE_PARITY},
    {{4, 2051}, "delta skip strided sum-in-x", LOOM_CASE_PARITY},
    /* Many rows: sums over them in several stages. */
    {{6200, 8}, "delta skip accumulate", LOOM_CASE_PARITY},
    {{6200, 3}, "", LOOM_CASE_PARITY},
    {{6200, 768}, "delta skip accumulate", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{768, 128}, "delta skip sum-in-x dx-in-skip", LOOM_CASE_BENCH},
    {{256, 768}, "delta skip sum-in-x dx-in-skip", LOOM_CASE_BENCH},
    {{16384, 768}, "delta skip sum-in-x dx-in-skip", LOOM_CASE_BENCH_LARGE},
};

static void tensors(loom_case *c) {
    const int64_t N = loom_case_dim(c, "N"), C = loom_case_dim(c, "C");
    const loom_case_size rows = loom_case_2d(N, C), vector = loom_case_1d(C), per_row = loom_case_1d(N);
    const bool delta = loom_case_option(c, "delta"), skip = loom_case_option(c, "skip");
    /* A large mean makes x - mean cancel to 1/100 of x: a variance computed as mean(x^2) - mean(x)^2 would be off by
     * 10^4 epsilons, one from x - mean by 10^2. Flat rows have no variance: x - mean is rounding alone, times a rstd of
     * 1/sqrt(1e-5) = 316. */
    const bool offset = loom_case_option(c, "offset"), flat = loom_case_option(c, "flat") || C == 1;
    const bool zero = loom_case_option(c, "zero");
    const double cancelled = offset ? 100 : 1, rstd = flat || zero ? 317 : 1, sums = (double)C;
    /* The mean, a sum in any order, errs by e sqrt(C) of itself, which is 100 times a deviation with an offset. */
    const double mean_cancelled = offset ? 100 * sqrt(sums) : 1;
    loom_case_input(c, "x", LOOM_CASE_STORAGE, rows,
                    zero   ? loom_case_constant(0)
                    : flat ? loom_case_rows(1)
                           : loom_case_normal(offset ? 100 : 0, 1));
    if (delta) {
        loom_case_input(c, "delta", LOOM_CASE_STORAGE, rows, loom_case_normal(0, 1));
        loom_case_output(c, "sum", LOOM_CASE_STORAGE, rows, (loom_case_bound){.chain = 1});
    }
    loom_case_input(c, "weight", LOOM_CASE_STORAGE, vector, loom_case_normal(1, 0.5));
    loom_case_input(c, "bias", LOOM_CASE_STORAGE, vector, loom_case_normal(0, 1));
    /* All but the sum itself come from the sum as it was rounded to storage. */
    const double rounded = delta ? 1 : 0;
    if (!loom_case_option(c, "statistics"))
        loom_case_output(
            c, "out", LOOM_CASE_STORAGE, rows,
            (loom_case_bound){.sum = sums, .chain = 4 + mean_cancelled, .rounded = rounded, .floor = rstd});
    loom_case_output(c, "mean", LOOM_CASE_STATISTICS, per_row,
                     (loom_case_bound){.sum = sums, .chain = 1, .rounded = rounded, .floor = 1 / sqrt(sums)});
    loom_case_output(c, "rstd", LOOM_CASE_STATISTICS, per_row,
                     (loom_case_bound){.sum = sums, .chain = 4 + mean_cancelled, .rounded = rounded});

    loom_case_input(c, "dout", LOOM_CASE_STORAGE, rows, loom_case_normal(0, 1));
    if (skip) loom_case_input(c, "skip", LOOM_CASE_STORAGE, rows, loom_case_normal(0, 1));
    /* Rows of few channels have little left of g once its mean and its part along n are taken out. */
    loom_case_output(c, "dx", LOOM_CASE_STORAGE, rows,
                     (loom_case_bound){.sum = sums, .chain = 4 + cancelled, .floor = rstd * (C < 8 ? 4 : 1)});
    loom_case_output(c, "dweight", LOOM_CASE_PARAMETER, vector,
                     (loom_case_bound){.sum = (double)N + 1, .chain = 2 + cancelled, .floor = sqrt((double)N)});
    loom_case_output(c, "dbias", LOOM_CASE_PARAMETER, vector,
                     (loom_case_bound){.sum = (double)N + 1, .chain = 1, .floor = sqrt((double)N)});

    /* What goes around the layernorm reaches x, and delta, too. */
    if (!loom_case_option(c, "statistics")) loom_case_cotangent(c, "out", "dout");
    if (skip) loom_case_cotangent(c, "sum", "skip");
    loom_case_gradient(c, "x", "dx");
    if (delta) loom_case_gradient(c, "delta", "dx");
    loom_case_gradient(c, "weight", "dweight");
    loom_case_gradient(c, "bias", "dbias");

    if (loom_case_option(c, "strided")) {
        loom_case_widen(c, "x", 3);
        loom_case_widen(c, "delta", 2);
        loom_case_widen(c, "sum", 5);
        loom_case_widen(c, "out", 1);
        loom_case_widen(c, "dout", 9);
        loom_case_widen(c, "skip", 4);
        loom_case_widen(c, "dx", 7);
    }
    if (loom_case_option(c, "padded")) {
        loom_case_widen(c, "x", 8);
        loom_case_widen(c, "delta", 16);
        loom_case_widen(c, "sum", 24);
        loom_case_widen(c, "out", 32);
        loom_case_widen(c, "dout", 40);
        loom_case_widen(c, "skip", 8);
        loom_case_widen(c, "dx", 16);
    }
    if (loom_case_option(c, "sum-in-x")) loom_case_alias(c, "sum", "x");
    if (loom_case_option(c, "sum-in-delta")) loom_case_alias(c, "sum", "delta");
    if (loom_case_option(c, "dx-in-skip")) loom_case_alias(c, "dx", "skip");
}

static void forward(loom_case *c, loom_case_arguments *a) {
    a->layernorm_forward = (struct loom_layernorm_forward){
        .out = loom_case_may_write(c, "out"),
        .sum = loom_case_may_write(c, "sum"),
        .mean = loom_case_writes(c, "mean"),
        .rstd = loom_case_writes(c, "rstd"),
        .x = loom_case_reads(c, "x"),
        .delta = loom_case_may_read(c, "delta"),
        .weight = loom_case_reads(c, "weight"),
        .bias = loom_case_reads(c, "bias"),
        .epsilon = epsilon,
    };
}

static void forward_formula(loom_case *c) {
    const int64_t N = loom_case_dim(c, "N"), C = loom_case_dim(c, "C");
    const double *x = loom_case_value(c, "x"), *delta = NULL;
    const double *weight = loom_case_value(c, "weight"), *bias = loom_case_value(c, "bias");
    double *out = loom_case_option(c, "statistics") ? NULL : loom_case_expected(c, "out"), *sum = NULL;
    if (loom_case_option(c, "delta")) {
        delta = loom_case_value(c, "delta");
        sum = loom_case_expected(c, "sum");
        for (int64_t i = 0; i < N * C; i++) sum[i] = x[i] + delta[i];
        x = sum;
    }
    for (int64_t n = 0; n < N; n++, x += C) {
        double mean = 0, variance = 0;
        for (int64_t i = 0; i < C; i++) mean += x[i];
        mean /= (double)C;
        for (int64_t i = 0; i < C; i++) variance += (x[i] - mean) * (x[i] - mean) / (double)C;
        const double rstd = 1 / sqrt(variance + (double)epsilon);
        for (int64_t i = 0; i < C && out; i++) out[n * C + i] = (x[i] - mean) * rstd * weight[i] + bias[i];
        loom_case_expected(c, "mean")[n] = mean;
        loom_case_expected(c, "rstd")[n] = rstd;
    }
}

static void backward(loom_case *c, loom_case_arguments *a) {
    const bool accumulate = loom_case_option(c, "accumulate");
    a->layernorm_backward = (struct loom_layernorm_backward){
        .dx = loom_case_writes(c, "dx"),
        .dweight = loom_case_adds(c, "dweight", accumulate),
        .dbias = loom_case_adds(c, "dbias", accumulate),
        .dout = loom_case_reads(c, "dout"),
        .skip = loom_case_may_read(c, "skip"),
        .x = loom_case_reads(c, loom_case_option(c, "delta") ? "sum" : "x"),
        .weight = loom_case_reads(c, "weight"),
        .mean = loom_case_reads(c, "mean"),
        .rstd = loom_case_reads(c, "rstd"),
        .accumulate = accumulate,
    };
}

const loom_op_cases loom_op_cases_layernorm = {
    .name = "layernorm",
    .dims = "N C",
    .options = "delta skip accumulate sum-in-x sum-in-delta dx-in-skip strided padded offset flat zero statistics",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_layernorm_forward, forward, forward_formula}, {LOOM_OP_layernorm_backward, backward, NULL}},
};
