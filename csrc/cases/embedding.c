/* Cases of embedding_forward and embedding_backward. V is the number of rows of the token table, P of the
 * positions'. */
#include "cases/case.h"

#include <math.h>

static const loom_case_shape shapes[] = {
    {{1, 1, 1, 1, 1, 0}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{2, 3, 5, 7, 9, 2}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{2, 3, 4, 5, 3, 0}, "add-tokens add-positions", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{3, 67, 130, 300, 70, 3}, "add-tokens", LOOM_CASE_PARITY},
    {{4, 65, 33, 1, 65, 0}, "add-positions", LOOM_CASE_PARITY},
    {{2, 130, 300, 384, 257, 127}, "", LOOM_CASE_PARITY},
    {{1, 5, 9, 50304, 16, 11}, "", LOOM_CASE_PARITY},
    {{2, 9, 8, 70000, 9, 0}, "add-positions", LOOM_CASE_PARITY},
    {{1, 33, 2056, 7, 40, 3}, "add-tokens", LOOM_CASE_PARITY},
    {{2, 17, 777, 40, 17, 0}, "", LOOM_CASE_PARITY},
    /* Many tokens, spread evenly, or one or two of them over and over. */
    {{7, 1000, 8, 300, 1000, 0}, "add-tokens", LOOM_CASE_PARITY},
    {{9, 300, 16, 1000, 512, 100}, "same", LOOM_CASE_PARITY},
    {{3, 33, 5, 3, 33, 0}, "same add-tokens", LOOM_CASE_PARITY},
    {{7, 300, 24, 257, 300, 0}, "two add-tokens add-positions", LOOM_CASE_PARITY},
    {{33, 1100, 1, 9, 1100, 0}, "add-tokens", LOOM_CASE_PARITY},
    {{70, 2048, 8, 50304, 2048, 0}, "", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{40, 1024, 64, 50304, 1024, 0}, "two add-tokens", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{12, 64, 128, 384, 64, 0}, "", LOOM_CASE_BENCH},
    {{4, 64, 768, 50304, 1024, 0}, "add-tokens", LOOM_CASE_BENCH},
    {{16, 1024, 768, 50304, 1024, 0}, "add-tokens", LOOM_CASE_BENCH_LARGE},
};

static void tensors(loom_case *c) {
    const int64_t B = loom_case_dim(c, "B"), T = loom_case_dim(c, "T"), C = loom_case_dim(c, "C");
    const int64_t V = loom_case_dim(c, "V");
    const loom_case_size token_table = loom_case_2d(V, C);
    const loom_case_size position_table = loom_case_2d(loom_case_dim(c, "P"), C);
    loom_case_input(c, "tokens", LOOM_CASE_IDS, loom_case_3d(1, B, T),
                    loom_case_option(c, "same")  ? loom_case_constant((double)(V - 1))
                    : loom_case_option(c, "two") ? loom_case_ids(2)
                                                 : loom_case_ids(V));
    loom_case_input(c, "token_weight", LOOM_CASE_STORAGE, token_table, loom_case_normal(0, 1));
    loom_case_input(c, "position_weight", LOOM_CASE_STORAGE, position_table, loom_case_normal(0, 1));
    loom_case_output(c, "out", LOOM_CASE_STORAGE, loom_case_3d(B, T, C), (loom_case_bound){.chain = 1});
    loom_case_input(c, "dout", LOOM_CASE_STORAGE, loom_case_3d(B, T, C), loom_case_normal(0, 1));
    /* A token may fall on every row, a position on B of them; one more term is what was there. Rows where none fell are
     * zero. A token that falls on most rows has partial sums much larger than the table as a whole. */
    const double most = loom_case_option(c, "same") || loom_case_option(c, "two") ? sqrt((double)(B * T)) : 1;
    loom_case_output(c, "token_gradient", LOOM_CASE_PARAMETER, token_table,
                     (loom_case_bound){.sum = (double)(B * T) + 1, .floor = most, .zeros = true});
    loom_case_output(c, "position_gradient", LOOM_CASE_PARAMETER, position_table,
                     (loom_case_bound){.sum = (double)B + 1, .floor = 1, .zeros = true});
    loom_case_cotangent(c, "out", "dout");
    loom_case_gradient(c, "token_weight", "token_gradient");
    loom_case_gradient(c, "position_weight", "position_gradient");
}

static void forward(loom_case *c, loom_case_arguments *a) {
    a->embedding_forward = (struct loom_embedding_forward){
        .out = loom_case_writes(c, "out"),
        .tokens = loom_case_reads(c, "tokens"),
        .token_weight = loom_case_reads(c, "token_weight"),
        .position_weight = loom_case_reads(c, "position_weight"),
        .first_position = loom_case_dim(c, "first"),
    };
}

static void forward_formula(loom_case *c) {
    const int64_t N = loom_case_dim(c, "B") * loom_case_dim(c, "T"), T = loom_case_dim(c, "T");
    const int64_t C = loom_case_dim(c, "C"), first = loom_case_dim(c, "first");
    const double *token = loom_case_value(c, "tokens"), *token_weight = loom_case_value(c, "token_weight");
    const double *position_weight = loom_case_value(c, "position_weight");
    double *out = loom_case_expected(c, "out");
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < C; i++)
            out[n * C + i] = token_weight[(int64_t)token[n] * C + i] + position_weight[(first + n % T) * C + i];
}

static void backward(loom_case *c, loom_case_arguments *a) {
    const bool tokens = loom_case_option(c, "add-tokens");
    const bool positions = loom_case_option(c, "add-positions");
    a->embedding_backward = (struct loom_embedding_backward){
        .token_gradient = loom_case_adds(c, "token_gradient", tokens),
        .position_gradient = loom_case_adds(c, "position_gradient", positions),
        .dout = loom_case_reads(c, "dout"),
        .tokens = loom_case_reads(c, "tokens"),
        .first_position = loom_case_dim(c, "first"),
        .accumulate_tokens = tokens,
        .accumulate_positions = positions,
    };
}

const loom_op_cases loom_op_cases_embedding = {
    .name = "embedding",
    .dims = "B T C V P first",
    .options = "add-tokens add-positions same two",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_embedding_forward, forward, forward_formula}, {LOOM_OP_embedding_backward, backward, NULL}},
};
