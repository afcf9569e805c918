/* Cases of cross_entropy. V is the vocabulary, Vp its padded size. */
#include "cases/case.h"

#include <math.h>

static const loom_case_shape shapes[] = {
    {{1, 1, 1}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{4, 5, 7}, "some", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{3, 7, 8}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{5, 33, 64}, "some in-place", LOOM_CASE_PARITY},
    {{5, 130, 256}, "none", LOOM_CASE_PARITY},
    {{6, 257, 384}, "losses-only some", LOOM_CASE_PARITY},
    {{7, 257, 384}, "strided", LOOM_CASE_PARITY},
    {{300, 130, 256}, "some in-place", LOOM_CASE_PARITY},
    {{3, 50257, 50304}, "in-place", LOOM_CASE_PARITY},
    {{9, 385, 512}, "extreme", LOOM_CASE_PARITY},
    {{9, 300, 384}, "equal in-place", LOOM_CASE_PARITY},
    {{4, 5, 7}, "scaled some", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{7, 257, 384}, "scaled", LOOM_CASE_PARITY},
    /* Rows of each size that a kernel may be made for, starting at multiples of 16 bytes or anywhere. */
    {{5, 8, 8}, "some", LOOM_CASE_PARITY},
    {{6, 1000, 2048}, "some padded", LOOM_CASE_PARITY},
    {{3, 2047, 2047}, "", LOOM_CASE_PARITY},
    {{5, 2049, 2056}, "some in-place", LOOM_CASE_PARITY},
    {{4, 4099, 4101}, "some in-place", LOOM_CASE_PARITY},
    {{2, 13000, 13312}, "padded scaled", LOOM_CASE_PARITY},
    {{4, 20000, 20480}, "losses-only some", LOOM_CASE_PARITY},
    {{2, 50257, 50257}, "in-place", LOOM_CASE_PARITY},
    {{2, 131072, 131072}, "in-place", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    /* The largest values stand in the padding. */
    {{9, 3, 512}, "extreme", LOOM_CASE_PARITY},
    {{4, 5, 4096}, "extreme in-place", LOOM_CASE_PARITY},
    {{768, 257, 384}, "in-place", LOOM_CASE_BENCH},
    {{64, 50257, 50304}, "in-place", LOOM_CASE_BENCH},
    {{4096, 50257, 50304}, "in-place", LOOM_CASE_BENCH_LARGE},
};

static void tensors(loom_case *c) {
    const int64_t N = loom_case_dim(c, "N"), V = loom_case_dim(c, "V"), Vp = loom_case_dim(c, "Vp");
    const bool extreme = loom_case_option(c, "extreme"), equal = loom_case_option(c, "equal");
    const loom_scalars scalars = {.in = {.loss_gradient = 1.0f / (float)N},
                                  .state = {.loss_scale = loom_case_option(c, "scaled") ? 1024 : 1}};
    const double g = (double)scalars.in.loss_gradient * (double)scalars.state.loss_scale;
    loom_case_scalars(c, "scalars", &scalars, (loom_case_bound){0});
    loom_case_input(c, "logits", LOOM_CASE_STORAGE, loom_case_2d(N, Vp),
                    extreme ? loom_case_extreme(1e4)
                    : equal ? loom_case_rows(1e4)
                            : loom_case_normal(0, 1));
    loom_case_input(c, "targets", LOOM_CASE_IDS, loom_case_1d(N),
                    loom_case_option(c, "none")   ? loom_case_constant(-1)
                    : loom_case_option(c, "some") ? loom_case_targets(V)
                                                  : loom_case_ids(V));
    /* Where the target is nearly certain the loss is the logarithm of a sum near 1. */
    loom_case_output(
        c, "losses", LOOM_CASE_STATISTICS, loom_case_1d(N),
        (loom_case_bound){.sum = (double)V, .chain = 10, .floor = 1, .zeros = loom_case_option(c, "none")});
    /* p - 1 cancels where the target is nearly certain: the floor is the size of the gradient at p = 1. */
    if (!loom_case_option(c, "losses-only"))
        loom_case_output(c, "dlogits", LOOM_CASE_STORAGE, loom_case_2d(N, Vp),
                         (loom_case_bound){.sum = (double)V, .chain = 10, .floor = extreme ? g : 0, .zeros = true});
    /* Only rows with a target count in f; for the others the op gives a loss of zero whatever the logits. */
    loom_case_input(c, "loss weights", LOOM_CASE_STATISTICS, loom_case_1d(N), loom_case_constant(g));
    if (!loom_case_option(c, "losses-only")) {
        loom_case_cotangent(c, "losses", "loss weights");
        loom_case_gradient(c, "logits", "dlogits");
    }
    if (loom_case_option(c, "strided")) {
        loom_case_widen(c, "logits", 3);
        loom_case_widen(c, "dlogits", 5);
    }
    if (loom_case_option(c, "padded")) {
        loom_case_widen(c, "logits", 8);
        loom_case_widen(c, "dlogits", 16);
    }
    if (loom_case_option(c, "in-place")) loom_case_alias(c, "dlogits", "logits");
}

static void arguments(loom_case *c, loom_case_arguments *a) {
    a->cross_entropy = (struct loom_cross_entropy){
        .losses = loom_case_writes(c, "losses"),
        .dlogits = loom_case_may_write(c, "dlogits"),
        .logits = loom_case_reads(c, "logits"),
        .targets = loom_case_reads(c, "targets"),
        .vocab_size = loom_case_dim(c, "V"),
        .scalars = loom_case_reads_scalars(c, "scalars"),
    };
}

static void formula(loom_case *c) {
    const int64_t N = loom_case_dim(c, "N"), V = loom_case_dim(c, "V"), Vp = loom_case_dim(c, "Vp");
    const double *target = loom_case_value(c, "targets"), *logits = loom_case_value(c, "logits");
    const loom_scalars *scalars = loom_case_scalars_value(c, "scalars");
    const double g = (double)scalars->in.loss_gradient * (double)scalars->state.loss_scale;
    double *losses = loom_case_expected(c, "losses");
    double *dlogits = loom_case_option(c, "losses-only") ? NULL : loom_case_expected(c, "dlogits");
    for (int64_t n = 0; n < N; n++) {
        const double *row = logits + n * Vp;
        double largest = row[0], sum = 0;
        for (int64_t i = 0; i < V; i++) largest = fmax(largest, row[i]);
        for (int64_t i = 0; i < V; i++) sum += exp(row[i] - largest);
        losses[n] = target[n] < 0 ? 0 : log(sum) - (row[(int64_t)target[n]] - largest);
        for (int64_t i = 0; dlogits && i < Vp; i++)
            dlogits[n * Vp + i] = target[n] < 0 || i >= V
                                      ? 0
                                      : (exp(row[i] - largest) / sum - (i == (int64_t)target[n] ? 1 : 0)) * g;
    }
}

const loom_op_cases loom_op_cases_cross_entropy = {
    .name = "cross_entropy",
    .dims = "N V Vp",
    .options = "some none in-place losses-only strided padded extreme equal scaled",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_cross_entropy, arguments, formula}},
};
