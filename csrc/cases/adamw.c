/* Cases of adamw. */
#include "cases/case.h"

#include <math.h>

/* copy: a master in fp32 with a copy in the storage dtype. alone: parameters in the storage dtype, rounded
 * stochastically when that is bf16. narrow: moments in the storage dtype, likewise. decay: of all elements; parts: of
 * those of several tensors, of any lengths, between others and gaps. */
static const loom_case_shape shapes[] = {
    {{1}, "", LOOM_CASE_PARITY},
    {{1}, "copy", LOOM_CASE_PARITY},
    {{5}, "alone", LOOM_CASE_PARITY},
    {{129}, "decay", LOOM_CASE_PARITY},
    {{1000}, "", LOOM_CASE_PARITY},
    {{1003}, "skip copy", LOOM_CASE_PARITY},
    {{1003}, "skip alone", LOOM_CASE_PARITY},
    {{257}, "zeros copy", LOOM_CASE_PARITY},
    {{2600}, "decay copy", LOOM_CASE_PARITY},
    {{2051}, "decay alone", LOOM_CASE_PARITY},
    {{1029}, "apart copy", LOOM_CASE_PARITY},
    {{1030}, "apart alone", LOOM_CASE_PARITY},
    {{100003}, "decay copy", LOOM_CASE_PARITY},
    {{3}, "parts", LOOM_CASE_PARITY},
    {{5000}, "parts copy", LOOM_CASE_PARITY},
    {{1033}, "parts alone", LOOM_CASE_PARITY},
    {{2600}, "parts narrow", LOOM_CASE_PARITY},
    {{3001}, "parts apart narrow alone", LOOM_CASE_PARITY},
    {{300}, "extreme copy", LOOM_CASE_PARITY},
    {{1}, "narrow", LOOM_CASE_PARITY},
    {{7}, "narrow alone", LOOM_CASE_PARITY},
    {{1003}, "skip narrow alone", LOOM_CASE_PARITY},
    {{257}, "zeros narrow copy", LOOM_CASE_PARITY},
    {{2600}, "decay narrow", LOOM_CASE_PARITY},
    {{2051}, "decay narrow copy", LOOM_CASE_PARITY},
    {{2056}, "decay narrow alone", LOOM_CASE_PARITY},
    {{1031}, "apart narrow copy", LOOM_CASE_PARITY},
    {{1030}, "apart narrow alone", LOOM_CASE_PARITY},
    {{300}, "extreme narrow copy", LOOM_CASE_PARITY},
    {{7087872}, "decay copy", LOOM_CASE_BENCH},
    {{7087872}, "decay narrow copy", LOOM_CASE_BENCH},
    {{7094272}, "parts copy", LOOM_CASE_BENCH},
    {{124475904}, "decay copy", LOOM_CASE_BENCH_LARGE},
    {{124475904}, "parts copy", LOOM_CASE_BENCH_LARGE},
    {{124475904}, "decay narrow copy", LOOM_CASE_BENCH_LARGE},
    {{124475904}, "decay narrow alone", LOOM_CASE_BENCH_LARGE},
};

/* As many parts as an op is told of: some that follow one another at once, the first and the last elements, single
 * ones, several among the elements of a thread, and an empty one. */
static loom_ranges decayed_parts(const loom_case *c) {
    const int64_t n = loom_case_dim(c, "n");
    const int64_t edge[] = {0, 1, 1, 6, 13, 14, n / 7, n / 3, n / 2, n / 2, n / 2 + 5, n - 9, n - 8, n - 6, n - 1, n};
    loom_ranges parts = {0};
    if (loom_case_option(c, "decay")) return (loom_ranges){.n = 1, .at = {{0, n}}};
    if (!loom_case_option(c, "parts")) return parts;
    if (n < 1000) return (loom_ranges){.n = 1, .at = {{1, 2}}};
    for (; parts.n < LOOM_MOST_RANGES; parts.n++)
        parts.at[parts.n] = (loom_element_range){edge[2 * parts.n], edge[2 * parts.n + 1]};
    return parts;
}

static bool is_decayed(const loom_ranges *parts, int64_t i) {
    for (int k = 0; k < parts->n; k++)
        if (i >= parts->at[k].first && i < parts->at[k].last) return true;
    return false;
}

static void tensors(loom_case *c) {
    const loom_case_size n = loom_case_1d(loom_case_dim(c, "n"));
    const bool zeros = loom_case_option(c, "zeros");
    /* A learning rate so large that the update is as large as the parameter: what is wrong in it shows. */
    const loom_scalars scalars = {
        .in = {.learning_rate = 0.3f, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .weight_decay = 0.1f},
        .out = {.gradient_factor = 0.7f,
                .bias_correction1 = 0.271f,
                .bias_correction2 = 0.0297f,
                .skip = loom_case_option(c, "skip")},
        .state = {.updates = 3, .loss_scale = 1},
    };
    loom_case_scalars(c, "scalars", &scalars, (loom_case_bound){0});
    loom_case_input(c, "gradient", LOOM_CASE_PARAMETER, n,
                    zeros                            ? loom_case_constant(0)
                    : loom_case_option(c, "extreme") ? loom_case_extreme(1e4)
                                                     : loom_case_normal(0, 1));
    /* Moments and parameters are of size one; so is sqrt(v / bc2) with v from 0.01 on. Stochastic rounding is off by
     * less than one epsilon, twice what rounding to nearest is. */
    const bool narrow = loom_case_option(c, "narrow"), alone = loom_case_option(c, "alone");
    const loom_case_kind moments = narrow ? LOOM_CASE_STORAGE : LOOM_CASE_STATISTICS;
    const loom_case_bound bound = {.chain = 4, .rounded = narrow, .floor = 1};
    loom_case_output(c, "moment1", moments, n, bound);
    loom_case_output(c, "moment2", moments, n, bound);
    loom_case_start(c, "moment1", zeros ? loom_case_constant(0) : loom_case_normal(0, 0.3));
    loom_case_start(c, "moment2", zeros ? loom_case_constant(0) : loom_case_uniform(0.01, 1));
    const loom_case_bound parameter_bound = {.chain = 10, .floor = 1};
    if (alone)
        loom_case_output(c, "parameter", LOOM_CASE_STORAGE, n,
                         (loom_case_bound){.chain = 10, .rounded = 1, .floor = 1});
    else
        loom_case_output(c, "parameter", LOOM_CASE_STATISTICS, n, parameter_bound);
    if (alone || narrow) loom_case_without(c, LOOM_F16);
    if (loom_case_option(c, "copy")) loom_case_output(c, "copy", LOOM_CASE_STORAGE, n, parameter_bound);
    if (loom_case_option(c, "apart")) {
        /* Starts at which no two of the tensors are aligned alike. */
        loom_case_place(c, "parameter", "parameters", 1, 0, 0, 0);
        loom_case_place(c, "gradient", "gradients", 2, 0, 0, 0);
        loom_case_place(c, "moment1", "first moments", 3, 0, 0, 0);
        loom_case_place(c, "moment2", "second moments", 4, 0, 0, 0);
        if (loom_case_option(c, "copy")) loom_case_place(c, "copy", "copies", 5, 0, 0, 0);
    }
}

static void arguments(loom_case *c, loom_case_arguments *a) {
    a->adamw = (struct loom_adamw){
        .parameter = loom_case_updates(c, "parameter"),
        .copy = loom_case_option(c, "copy") ? loom_case_updates(c, "copy") : (loom_view){0},
        .gradient = loom_case_reads(c, "gradient"),
        .moment1 = loom_case_updates(c, "moment1"),
        .moment2 = loom_case_updates(c, "moment2"),
        .scalars = loom_case_reads_scalars(c, "scalars"),
        .decayed = decayed_parts(c),
        .seed = 0x123456789ABCDEFu,
        .first = loom_case_option(c, "apart") ? 0x10000000BL : 0,
    };
}

static void formula(loom_case *c) {
    const int64_t n = loom_case_dim(c, "n");
    const loom_scalars *s = loom_case_scalars_value(c, "scalars");
    const double beta1 = (double)s->in.beta1, beta2 = (double)s->in.beta2, lr = (double)s->in.learning_rate;
    const loom_ranges parts = decayed_parts(c);
    const double *gradient = loom_case_value(c, "gradient"), *before = loom_case_value(c, "parameter");
    double *p = loom_case_expected(c, "parameter"), *m = loom_case_expected(c, "moment1");
    double *v = loom_case_expected(c, "moment2");
    double *copy = loom_case_option(c, "copy") ? loom_case_expected(c, "copy") : NULL;
    for (int64_t i = 0; !s->out.skip && i < n; i++) {
        const double g = gradient[i] * (double)s->out.gradient_factor;
        m[i] = beta1 * loom_case_value(c, "moment1")[i] + (1 - beta1) * g;
        v[i] = beta2 * loom_case_value(c, "moment2")[i] + (1 - beta2) * g * g;
        const double first = m[i] / (double)s->out.bias_correction1, second = v[i] / (double)s->out.bias_correction2;
        const double decay = is_decayed(&parts, i) ? (double)s->in.weight_decay : 0;
        p[i] = before[i] - lr * (first / (sqrt(second) + (double)s->in.epsilon) + decay * before[i]);
        if (copy) copy[i] = p[i];
    }
}

const loom_op_cases loom_op_cases_adamw = {
    .name = "adamw",
    .dims = "n",
    .options = "decay parts skip zeros extreme copy alone narrow apart",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_adamw, arguments, formula}},
};
