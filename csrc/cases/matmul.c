/* Cases of matmul_forward, matmul_backward_input and matmul_backward_weight. */
#include "cases/case.h"

#include <math.h>

static const loom_case_shape shapes[] = {
    {{1, 1, 1}, "bias", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{3, 5, 4}, "bias", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{4, 3, 5}, "transposed accumulate", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{3, 4, 2}, "bias gelu accumulate", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{5, 33, 67}, "bias relu", LOOM_CASE_PARITY},
    {{66, 130, 259}, "bias relu strided", LOOM_CASE_PARITY},
    {{5, 33, 67}, "bias relu2", LOOM_CASE_PARITY},
    {{66, 130, 259}, "bias relu2 strided", LOOM_CASE_PARITY},
    {{1, 129, 65}, "bias gelu", LOOM_CASE_PARITY},
    {{7, 31, 33}, "bias gelu strided accumulate", LOOM_CASE_PARITY},
    {{9, 33, 31}, "transposed strided", LOOM_CASE_PARITY},
    {{65, 33, 129}, "transposed bias gelu accumulate", LOOM_CASE_PARITY},
    {{257, 300, 385}, "bias accumulate", LOOM_CASE_PARITY},
    {{300, 257, 385}, "transposed", LOOM_CASE_PARITY},
    {{67, 770, 130}, "bias gelu", LOOM_CASE_PARITY},
    {{770, 67, 259}, "", LOOM_CASE_PARITY},
    {{66, 130, 770}, "transposed bias", LOOM_CASE_PARITY},
    {{3, 24, 50304}, "transposed", LOOM_CASE_PARITY},
    {{33, 65, 130}, "extreme bias", LOOM_CASE_PARITY},
    {{5, 1, 7}, "bias accumulate", LOOM_CASE_PARITY},
    {{7, 5, 1}, "transposed bias", LOOM_CASE_PARITY},
    {{1, 40, 515}, "transposed", LOOM_CASE_PARITY},
    {{64, 128, 192}, "bias relu accumulate", LOOM_CASE_PARITY},
    {{128, 64, 72}, "transposed bias accumulate", LOOM_CASE_PARITY},
    {{33, 40, 24}, "bias gelu accumulate shifted", LOOM_CASE_PARITY},
    {{24, 33, 40}, "transposed bias shifted", LOOM_CASE_PARITY},
    {{24, 33, 40}, "transposed accumulate shifted", LOOM_CASE_PARITY},
    {{260, 40, 70}, "transposed accumulate", LOOM_CASE_PARITY},
    {{768, 128, 384}, "bias", LOOM_CASE_BENCH},
    {{768, 128, 512}, "bias gelu", LOOM_CASE_BENCH},
    {{768, 512, 128}, "bias", LOOM_CASE_BENCH},
    {{768, 128, 384}, "transposed", LOOM_CASE_BENCH},
    {{256, 768, 2304}, "bias", LOOM_CASE_BENCH},
    {{256, 768, 768}, "bias", LOOM_CASE_BENCH},
    {{256, 768, 3072}, "bias gelu", LOOM_CASE_BENCH},
    {{256, 3072, 768}, "bias", LOOM_CASE_BENCH},
    {{256, 768, 50304}, "transposed", LOOM_CASE_BENCH},
    {{16384, 768, 2304}, "bias", LOOM_CASE_BENCH_LARGE},
    {{16384, 768, 768}, "bias", LOOM_CASE_BENCH_LARGE},
    {{16384, 768, 3072}, "bias gelu", LOOM_CASE_BENCH_LARGE},
    {{16384, 3072, 768}, "bias", LOOM_CASE_BENCH_LARGE},
    {{4096, 768, 50304}, "transposed", LOOM_CASE_BENCH_LARGE},
};

static loom_activation activation_of(loom_case *c) {
    for (loom_activation a = LOOM_ACTIVATION_NONE + 1; a < LOOM_ACTIVATION_COUNT; a++)
        if (loom_case_option(c, loom_activation_name(a))) return a;
    return LOOM_ACTIVATION_NONE;
}

static double activate(loom_activation activation, double u) {
    switch (activation) {
    case LOOM_ACTIVATION_GELU: return 0.5 * u * (1 + tanh(0.79788456080286535588 * (u + 0.044715 * u * u * u)));
    case LOOM_ACTIVATION_RELU: return fmax(u, 0);
    case LOOM_ACTIVATION_RELU2: return fmax(u, 0) * fmax(u, 0);
    default: return u;
    }
}

/* Of what is activated. A square doubles the relative error of what it is taken of. */
static loom_case_bound activated_bound(loom_activation activation, double i) {
    if (activation == LOOM_ACTIVATION_RELU2)
        return (loom_case_bound){.sum = 4 * i, .chain = 3, .rounded = 2, .floor = 1};
    return (loom_case_bound){.sum = i, .chain = 9, .rounded = 1.13 /* gelu's steepest */, .floor = 1};
}

/* A contiguous tensor that begins one element behind where its memory does. */
static void shift(loom_case *c, const char *name, int64_t rows, int64_t columns) {
    loom_case_place(c, name, name, 1, rows * columns, rows * columns, columns);
}

static void tensors(loom_case *c) {
    const int64_t N = loom_case_dim(c, "N"), I = loom_case_dim(c, "I"), O = loom_case_dim(c, "O");
    const double n = (double)N, i = (double)I, o = (double)O;
    const bool transposed = loom_case_option(c, "transposed"), bias = loom_case_option(c, "bias");
    const bool activation = activation_of(c) != LOOM_ACTIVATION_NONE, extreme = loom_case_option(c, "extreme");
    const loom_case_size weight = transposed ? loom_case_2d(O, I) : loom_case_2d(I, O);
    /* Weights of size 1/sqrt(I) keep sums over I at size one, so over O they come to sqrt(O/I). */
    const double large = extreme ? 1e4 : 1;
    loom_case_input(c, "x", LOOM_CASE_STORAGE, loom_case_2d(N, I),
                    extreme ? loom_case_extreme(1e4) : loom_case_normal(0, 1));
    loom_case_input(c, "weight", LOOM_CASE_STORAGE, weight, loom_case_normal(0, 1 / sqrt(i)));
    if (bias) loom_case_input(c, "bias", LOOM_CASE_STORAGE, loom_case_1d(O), loom_case_normal(0, 1));
    const loom_case_bound product = {.sum = i, .chain = 1, .floor = large};
    if (activation) {
        loom_case_output(c, "preactivation", LOOM_CASE_STORAGE, loom_case_2d(N, O), product);
        loom_case_output(c, "out", LOOM_CASE_STORAGE, loom_case_2d(N, O), activated_bound(activation_of(c), i));
    } else {
        loom_case_output(c, "out", LOOM_CASE_STORAGE, loom_case_2d(N, O), product);
    }
    loom_case_input(c, "dout", LOOM_CASE_STORAGE, loom_case_2d(N, O), loom_case_normal(0, 1));
    loom_case_output(c, "dx", LOOM_CASE_STORAGE, loom_case_2d(N, I),
                     (loom_case_bound){.sum = o + 1, .floor = sqrt(o / i)});
    loom_case_output(c, "dweight", LOOM_CASE_PARAMETER, weight,
                     (loom_case_bound){.sum = n + 1, .floor = large * sqrt(n)});
    if (bias)
        loom_case_output(c, "dbias", LOOM_CASE_PARAMETER, loom_case_1d(O),
                         (loom_case_bound){.sum = n + 1, .floor = sqrt(n)});

    /* The backward products know no activation: they start from the gradient of what it is applied to. */
    loom_case_cotangent(c, activation ? "preactivation" : "out", "dout");
    loom_case_gradient(c, "x", "dx");
    loom_case_gradient(c, "weight", "dweight");
    if (bias) loom_case_gradient(c, "bias", "dbias");

    if (loom_case_option(c, "strided")) {
        loom_case_widen(c, "x", 3);
        loom_case_widen(c, "weight", 1);
        loom_case_widen(c, "out", 5);
        if (activation) loom_case_widen(c, "preactivation", 2);
        loom_case_widen(c, "dout", 6);
        loom_case_widen(c, "dx", 7);
        loom_case_widen(c, "dweight", 4);
    }
    if (loom_case_option(c, "shifted")) {
        shift(c, "x", N, I);
        shift(c, "weight", weight.n[2], weight.n[3]);
        if (bias) shift(c, "bias", 1, O);
        shift(c, "out", N, O);
        if (activation) shift(c, "preactivation", N, O);
        shift(c, "dout", N, O);
        shift(c, "dx", N, I);
        shift(c, "dweight", weight.n[2], weight.n[3]);
        if (bias) shift(c, "dbias", 1, O);
    }
}

static void forward(loom_case *c, loom_case_arguments *a) {
    a->matmul_forward = (struct loom_matmul_forward){
        .out = loom_case_writes(c, "out"),
        .preactivation = loom_case_may_write(c, "preactivation"),
        .x = loom_case_reads(c, "x"),
        .weight = loom_case_reads(c, "weight"),
        .bias = loom_case_may_read(c, "bias"),
        .activation = activation_of(c),
        .transposed = loom_case_option(c, "transposed"),
    };
}

static void forward_formula(loom_case *c) {
    const int64_t N = loom_case_dim(c, "N"), I = loom_case_dim(c, "I"), O = loom_case_dim(c, "O");
    const bool transposed = loom_case_option(c, "transposed");
    const loom_activation activation = activation_of(c);
    const double *x = loom_case_value(c, "x"), *weight = loom_case_value(c, "weight");
    const double *bias = loom_case_option(c, "bias") ? loom_case_value(c, "bias") : NULL;
    double *before = loom_case_expected(c, activation ? "preactivation" : "out"), *out = loom_case_expected(c, "out");
    for (int64_t n = 0; n < N; n++)
        for (int64_t o = 0; o < O; o++) {
            double sum = bias ? bias[o] : 0;
            for (int64_t i = 0; i < I; i++) sum += x[n * I + i] * (transposed ? weight[o * I + i] : weight[i * O + o]);
            before[n * O + o] = sum;
        }
    for (int64_t i = 0; activation && i < N * O; i++) out[i] = activate(activation, before[i]);
}

static void backward_input(loom_case *c, loom_case_arguments *a) {
    const bool accumulate = loom_case_option(c, "accumulate");
    a->matmul_backward_input = (struct loom_matmul_backward_input){
        .dx = loom_case_adds(c, "dx", accumulate),
        .dout = loom_case_reads(c, "dout"),
        .weight = loom_case_reads(c, "weight"),
        .transposed = loom_case_option(c, "transposed"),
        .accumulate = accumulate,
    };
}

static void backward_weight(loom_case *c, loom_case_arguments *a) {
    const bool accumulate = loom_case_option(c, "accumulate");
    a->matmul_backward_weight = (struct loom_matmul_backward_weight){
        .dweight = loom_case_adds(c, "dweight", accumulate),
        .dbias = loom_case_may_add(c, "dbias", accumulate),
        .dout = loom_case_reads(c, "dout"),
        .x = loom_case_reads(c, "x"),
        .transposed = loom_case_option(c, "transposed"),
        .accumulate = accumulate,
    };
}

#define WORD(NAME, name) #name " "
const loom_op_cases loom_op_cases_matmul = {
    .name = "matmul",
    .dims = "N I O",
    .options = "transposed bias " LOOM_ACTIVATION_LIST(WORD) "accumulate strided shifted extreme",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_matmul_forward, forward, forward_formula},
           {LOOM_OP_matmul_backward_input, backward_input, NULL},
           {LOOM_OP_matmul_backward_weight, backward_weight, NULL}},
};
