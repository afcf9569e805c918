/* Cases of add. */
#include "cases/case.h"

/* into-a, into-b, doubled: the sum is written over its first term, its second, or the only one there is. off-out,
 * off-a, off-b: that vector alone starts where 16-byte accesses cannot. */
static const loom_case_shape shapes[] = {
    {{1}, "", LOOM_CASE_PARITY},
    {{1}, "into-b", LOOM_CASE_PARITY},
    {{7}, "into-a", LOOM_CASE_PARITY},
    {{129}, "", LOOM_CASE_PARITY},
    {{1024}, "into-b", LOOM_CASE_PARITY},
    {{1027}, "off-out", LOOM_CASE_PARITY},
    {{1028}, "off-a", LOOM_CASE_PARITY},
    {{1029}, "off-b", LOOM_CASE_PARITY},
    {{1030}, "off-a into-a", LOOM_CASE_PARITY},
    {{1031}, "off-out off-a off-b", LOOM_CASE_PARITY},
    {{515}, "doubled", LOOM_CASE_PARITY},
    {{1500}, "extreme", LOOM_CASE_PARITY},
    {{1503}, "extreme into-a", LOOM_CASE_PARITY},
    {{1504}, "huge", LOOM_CASE_PARITY},
    {{1501}, "near", LOOM_CASE_PARITY},
    {{100003}, "", LOOM_CASE_PARITY},
    {{70001}, "into-a", LOOM_CASE_PARITY},
    {{7087872}, "into-a", LOOM_CASE_BENCH},
    {{7087872}, "", LOOM_CASE_BENCH},
    {{124475904}, "into-a", LOOM_CASE_BENCH_LARGE},
    {{124475904}, "", LOOM_CASE_BENCH_LARGE},
};

/* extreme: sums of the largest are infinite in fp16; huge: in fp32 and bf16. near: terms of one size, which may cancel
 * each other nearly. */
static loom_case_fill fill(const loom_case *c) {
    if (loom_case_option(c, "extreme")) return loom_case_extreme(6e4);
    if (loom_case_option(c, "huge")) return loom_case_extreme(3e38);
    return loom_case_option(c, "near") ? loom_case_uniform(-1.01, 1.01) : loom_case_normal(0, 1);
}

static void tensors(loom_case *c) {
    const loom_case_size n = loom_case_1d(loom_case_dim(c, "n"));
    loom_case_input(c, "a", LOOM_CASE_STORAGE, n, fill(c));
    loom_case_input(c, "b", LOOM_CASE_STORAGE, n, fill(c));
    loom_case_output(c, "out", LOOM_CASE_STORAGE, n, (loom_case_bound){.exact = true});
    if (loom_case_option(c, "huge")) loom_case_without(c, LOOM_F16); /* infinite themselves: there are no such sums */
    if (loom_case_option(c, "off-a")) loom_case_place(c, "a", "first terms", 1, 0, 0, 0);
    if (loom_case_option(c, "off-b")) loom_case_place(c, "b", "second terms", 2, 0, 0, 0);
    if (loom_case_option(c, "off-out")) loom_case_place(c, "out", "sums", 3, 0, 0, 0);
    if (loom_case_option(c, "into-a") || loom_case_option(c, "doubled")) loom_case_alias(c, "out", "a");
    if (loom_case_option(c, "into-b")) loom_case_alias(c, "out", "b");
}

static const char *second(const loom_case *c) {
    return loom_case_option(c, "doubled") ? "a" : "b";
}

static void arguments(loom_case *c, loom_case_arguments *a) {
    a->add = (struct loom_add){
        .out = loom_case_writes(c, "out"), .a = loom_case_reads(c, "a"), .b = loom_case_reads(c, second(c))};
}

static void formula(loom_case *c) {
    const double *a = loom_case_value(c, "a"), *b = loom_case_value(c, second(c));
    double *out = loom_case_expected(c, "out");
    for (int64_t i = 0; i < loom_case_dim(c, "n"); i++) out[i] = a[i] + b[i];
}

const loom_op_cases loom_op_cases_add = {
    .name = "add",
    .dims = "n",
    .options = "into-a into-b doubled off-out off-a off-b extreme huge near",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_add, arguments, formula}},
};
