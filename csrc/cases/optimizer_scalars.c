/* Cases of optimizer_scalars: n block sums of losses, m of squared gradients. */
#include "cases/case.h"

#include <math.h>

static const loom_case_shape shapes[] = {
    {{1, 1}, "first", LOOM_CASE_PARITY},
    {{5, 300}, "clip", LOOM_CASE_PARITY},
    {{129, 1901}, "", LOOM_CASE_PARITY},
    {{5, 300}, "spike", LOOM_CASE_PARITY},
    {{5, 300}, "calm", LOOM_CASE_PARITY},
    {{7, 33}, "clip zero", LOOM_CASE_PARITY},
    {{5, 300}, "clip scaled", LOOM_CASE_PARITY},
    {{5, 300}, "scaled ripe", LOOM_CASE_PARITY},
    {{5, 300}, "largest ripe", LOOM_CASE_PARITY},
    {{5, 300}, "scaled overflow", LOOM_CASE_PARITY},
    {{5, 300}, "clip overflow", LOOM_CASE_PARITY},
    {{3001, 7013}, "clip scaled", LOOM_CASE_PARITY},
    {{5, 300}, "spike early", LOOM_CASE_PARITY},
    {{5, 300}, "steep", LOOM_CASE_PARITY},
    {{5, 300}, "calm long", LOOM_CASE_PARITY},
    {{12, 1901}, "clip calm", LOOM_CASE_BENCH},
    {{64, 1901}, "clip calm", LOOM_CASE_BENCH_LARGE},
};

/* Running statistics: a mean and the mean of squares that gives a deviation of 0.1. */
static void observe(double *mean, double *square, double value) {
    *mean = value;
    *square = value * value + 0.01;
}

static void tensors(loom_case *c) {
    const int64_t n = loom_case_dim(c, "n"), m = loom_case_dim(c, "m");
    const bool zero = loom_case_option(c, "zero"), spike = loom_case_option(c, "spike");
    const bool steep = loom_case_option(c, "steep");
    loom_scalars scalars = {
        .in = {.learning_rate = 1e-3f, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .weight_decay = 0.1f},
        .state = {.updates = loom_case_option(c, "first") ? 0 : 41, .loss_scale = 1},
    };
    scalars.in.loss_gradient = 1 / (float)n;
    if (loom_case_option(c, "clip")) scalars.in.clip_norm = 0.25f;
    /* An age of 6 becomes 7, below the interval. */
    scalars.in.loss_scale_interval = loom_case_option(c, "ripe") ? 7 : 8;
    scalars.state.loss_scale_age = 6;
    if (loom_case_option(c, "scaled")) scalars.state.loss_scale = 0x1p12f;
    if (loom_case_option(c, "largest")) scalars.state.loss_scale = 0x1p24f;
    if (spike || steep || loom_case_option(c, "calm")) {
        /* The loss is near 1 and the norm near sqrt(m): a spike stands 9 deviations above what was seen before. */
        scalars.in.spike_z = 6;
        /* Nothing is judged before 32 steps were seen, nor do more than 128 count. */
        scalars.state.observed = loom_case_option(c, "early") ? 31 : loom_case_option(c, "long") ? 1000 : 32;
        observe(&scalars.state.loss_mean, &scalars.state.loss_square, spike ? 0.1 : 1);
        observe(&scalars.state.norm_mean, &scalars.state.norm_square, steep ? 1 : sqrt((double)m));
    }
    loom_case_input(c, "losses", LOOM_CASE_STATISTICS, loom_case_1d(n),
                    zero ? loom_case_constant(0) : loom_case_uniform(0.5, 1.5));
    loom_case_input(c, "squares", LOOM_CASE_STATISTICS, loom_case_1d(m),
                    zero                              ? loom_case_constant(0)
                    : loom_case_option(c, "overflow") ? loom_case_constant(INFINITY)
                                                      : loom_case_uniform(0.5, 1.5));
    loom_case_scalars(c, "scalars", &scalars, (loom_case_bound){.sum = (double)(n > m ? n : m), .chain = 4});
}

static void arguments(loom_case *c, loom_case_arguments *a) {
    a->optimizer_scalars = (struct loom_optimizer_scalars){
        .scalars = loom_case_updates_scalars(c, "scalars"),
        .losses = loom_case_reads(c, "losses"),
        .squares = loom_case_reads(c, "squares"),
    };
}

static void expect_loss_scale(loom_scalars *s, bool overflow) {
    s->state.loss_scale_age = overflow ? 0 : s->state.loss_scale_age + 1;
    if (overflow) s->state.loss_scale = fmaxf(s->state.loss_scale / 2, 1);
    if (s->state.loss_scale_age < s->in.loss_scale_interval) return;
    s->state.loss_scale = fminf(s->state.loss_scale * 2, 0x1p24f);
    s->state.loss_scale_age = 0;
}

/* What ops.h says; how the running statistics move is the definition's choice, and taken as it was found. */
static void formula(loom_case *c) {
    const loom_scalars *before = loom_case_scalars_value(c, "scalars");
    loom_scalars *s = loom_case_scalars_expected(c, "scalars");
    const bool overflow = loom_case_option(c, "overflow");
    const double *losses = loom_case_value(c, "losses"), *squares = loom_case_value(c, "squares");
    double loss = 0, square = 0;
    for (int64_t i = 0; i < loom_case_dim(c, "n"); i++) loss += losses[i] * (double)before->in.loss_gradient;
    for (int64_t i = 0; i < loom_case_dim(c, "m"); i++) square += squares[i];
    const double scale = (double)before->state.loss_scale, norm = sqrt(square) / scale;
    const double clip = (double)before->in.clip_norm;
    s->out.loss = (float)loss;
    s->out.gradient_norm = (float)norm;
    s->out.gradient_factor = (float)((clip > 0 && norm > clip ? clip / norm : 1) / scale);
    s->out.skip = overflow || loom_case_option(c, "steep") ||
                  (loom_case_option(c, "spike") && !loom_case_option(c, "early"));
    s->state.skipped += s->out.skip;
    s->state.updates += !s->out.skip;
    s->out.bias_correction1 = (float)(1 - pow((double)before->in.beta1, (double)s->state.updates));
    s->out.bias_correction2 = (float)(1 - pow((double)before->in.beta2, (double)s->state.updates));
    expect_loss_scale(s, overflow);
    if (overflow) return;
    s->state.observed++;
    const double weight = 1 / fmin((double)s->state.observed, 128);
    s->state.loss_mean += weight * (loss - s->state.loss_mean);
    s->state.loss_square += weight * (loss * loss - s->state.loss_square);
    s->state.norm_mean += weight * (norm - s->state.norm_mean);
    s->state.norm_square += weight * (norm * norm - s->state.norm_square);
}

const loom_op_cases loom_op_cases_optimizer_scalars = {
    .name = "optimizer_scalars",
    .dims = "n m",
    .options = "first clip spike steep early long calm zero scaled largest ripe overflow",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_optimizer_scalars, arguments, formula}},
};
