/* Cases of attention_forward and attention_backward. */
#include "cases/case.h"

#include <math.h>
#include <string.h>

static const loom_case_shape shapes[] = {
    {{1, 1, 1, 1, 1, 8, 0}, "", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{2, 3, 3, 2, 2, 4, 0}, "packed", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{1, 3, 6, 4, 2, 3, 2}, "cache", LOOM_CASE_PARITY | LOOM_CASE_GRADIENT},
    {{2, 5, 5, 3, 3, 8, 0}, "packed", LOOM_CASE_PARITY},
    {{2, 65, 65, 3, 3, 64, 0}, "packed", LOOM_CASE_PARITY},
    {{1, 130, 130, 4, 2, 80, 0}, "packed", LOOM_CASE_PARITY},
    {{1, 300, 300, 2, 1, 32, 0}, "packed", LOOM_CASE_PARITY},
    {{2, 70, 211, 2, 2, 64, 126}, "cache", LOOM_CASE_PARITY},
    {{1, 1, 77, 6, 3, 128, 76}, "cache", LOOM_CASE_PARITY},
    {{1, 129, 258, 1, 1, 128, 129}, "", LOOM_CASE_PARITY},
    {{1, 67, 67, 2, 2, 24, 0}, "sharp", LOOM_CASE_PARITY},
    {{1, 67, 67, 2, 2, 16, 0}, "equal packed", LOOM_CASE_PARITY},
    {{1, 67, 67, 2, 1, 56, 0}, "huge packed", LOOM_CASE_PARITY},
    {{1, 70, 70, 2, 2, 64, 0}, "extreme packed", LOOM_CASE_PARITY},
    {{1, 33, 40, 2, 2, 104, 5}, "extreme cache", LOOM_CASE_PARITY},
    /* GPUs: three tiles of 128 queries or keys for each padded head size, keys that no query sees, odd addresses. */
    {{2, 3, 6, 4, 2, 8, 2}, "cache", LOOM_CASE_PARITY},
    {{1, 259, 259, 1, 1, 64, 0}, "packed", LOOM_CASE_PARITY},
    {{1, 261, 261, 2, 1, 96, 0}, "packed", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{1, 257, 400, 1, 1, 128, 131}, "cache", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{1, 257, 257, 2, 2, 16, 0}, "packed", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{2, 45, 45, 2, 1, 40, 0}, "odd-inputs", LOOM_CASE_PARITY},
    {{2, 35, 45, 4, 2, 16, 3}, "odd-results", LOOM_CASE_PARITY},
    {{2, 70, 200, 6, 3, 88, 120}, "odd-inputs odd-results", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{3, 513, 513, 4, 2, 64, 0}, "packed", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{1, 1, 2048, 18, 18, 128, 2047}, "cache", LOOM_CASE_PARITY | LOOM_CASE_FULL},
    {{12, 64, 64, 4, 4, 32, 0}, "packed", LOOM_CASE_BENCH},
    {{4, 64, 64, 12, 12, 64, 0}, "packed", LOOM_CASE_BENCH},
    {{1, 1024, 1024, 12, 12, 64, 0}, "packed", LOOM_CASE_BENCH},
    {{16, 1024, 1024, 12, 12, 64, 0}, "packed", LOOM_CASE_BENCH_LARGE},
};

/* q, k and v, or their gradients, as parts of one tensor (B,T,H + 2 Hkv,D). */
static void pack(loom_case *c, const char *memory, const char *q, const char *k, const char *v) {
    const int64_t T = loom_case_dim(c, "Tq"), H = loom_case_dim(c, "H"), D = loom_case_dim(c, "D");
    const int64_t Hkv = loom_case_dim(c, "Hkv"), row = (H + 2 * Hkv) * D;
    loom_case_place(c, q, memory, 0, T * row, row, D);
    loom_case_place(c, k, memory, H * D, T * row, row, D);
    loom_case_place(c, v, memory, (H + Hkv) * D, T * row, row, D);
}

/* Keys or values head by head, (B,Hkv,room,D), with room for later ones. */
static void lay_in_cache(loom_case *c, const char *name, const char *memory) {
    const int64_t room = loom_case_dim(c, "Tk") + 3, D = loom_case_dim(c, "D");
    loom_case_place(c, name, memory, 0, loom_case_dim(c, "Hkv") * room * D, D, room * D);
}

/* Rows that start nowhere in particular. */
static void lay_oddly(loom_case *c, const char *name, int64_t offset) {
    const bool query = strcmp(name, "k") && strcmp(name, "v") && strcmp(name, "dk") && strcmp(name, "dv");
    const int64_t T = loom_case_dim(c, query ? "Tq" : "Tk"), H = loom_case_dim(c, query ? "H" : "Hkv");
    const int64_t D = loom_case_dim(c, "D"), row = H * (D + 1) + 2;
    loom_case_place(c, name, name, offset, T * row, row, D + 1);
}

static void tensors(loom_case *c) {
    const int64_t B = loom_case_dim(c, "B"), Tq = loom_case_dim(c, "Tq"), Tk = loom_case_dim(c, "Tk");
    const int64_t H = loom_case_dim(c, "H"), Hkv = loom_case_dim(c, "Hkv"), D = loom_case_dim(c, "D");
    const loom_case_size query = loom_case_4d(B, Tq, H, D), key = loom_case_4d(B, Tk, Hkv, D);
    /* Scores have the size of q times that of k; their rounding errors, e sqrt(D) times that, become relative ones in
     * the probabilities. */
    const bool extreme = loom_case_option(c, "extreme");
    const double q_size = loom_case_option(c, "sharp")   ? 30
                          : loom_case_option(c, "huge")  ? 1e4
                          : loom_case_option(c, "equal") ? 0
                          : extreme                      ? 64
                                                         : 1;
    const double k_size = extreme ? 16 : 1, scores = q_size * k_size * sqrt((double)D);
    const double keys = (double)Tk, queries = (double)(Tq * H / Hkv);
    loom_case_input(c, "q", LOOM_CASE_STORAGE, query,
                    extreme ? loom_case_extreme(q_size) : loom_case_normal(0, q_size));
    loom_case_input(c, "k", LOOM_CASE_STORAGE, key, extreme ? loom_case_extreme(k_size) : loom_case_normal(0, k_size));
    loom_case_input(c, "v", LOOM_CASE_STORAGE, key, extreme ? loom_case_extreme(1) : loom_case_normal(0, 1));
    /* Tensor cores multiply what is stored in 16 bits: P is rounded to storage before it meets v or dout, and dS before
     * it meets k or q. Each term of these sums errs by S at most, by 0.42 S in root mean square, and independently: the
     * sum, by as much of its own size sqrt(sum of term^2). One S covers that, and early rows of out, which are larger
     * than the root mean square that errors are measured in. */
    const double rounded = 1;
    loom_case_output(c, "out", LOOM_CASE_STORAGE, query,
                     (loom_case_bound){.sum = keys, .chain = 8 + scores, .rounded = rounded, .floor = 1 / sqrt(keys)});
    loom_case_output(c, "lse", LOOM_CASE_STATISTICS, loom_case_4d(1, B, H, Tq),
                     (loom_case_bound){.sum = keys, .chain = 4 + scores, .floor = 1});
    loom_case_input(c, "dout", LOOM_CASE_STORAGE, query, loom_case_normal(0, 1));
    /* dP - delta cancels where few keys are seen (all of it at the first query): scale |dP| |k| is the size. */
    const double chain = 16 + 2 * scores + sqrt((double)D);
    loom_case_output(c, "dq", LOOM_CASE_STORAGE, query,
                     (loom_case_bound){.sum = keys, .chain = chain, .rounded = rounded, .floor = k_size});
    loom_case_output(c, "dk", LOOM_CASE_STORAGE, key,
                     (loom_case_bound){.sum = queries, .chain = chain, .rounded = rounded, .floor = fmax(q_size, 1)});
    loom_case_output(c, "dv", LOOM_CASE_STORAGE, key,
                     (loom_case_bound){.sum = queries, .chain = chain, .rounded = rounded, .floor = 1});
    loom_case_cotangent(c, "out", "dout");
    loom_case_gradient(c, "q", "dq");
    loom_case_gradient(c, "k", "dk");
    loom_case_gradient(c, "v", "dv");
    if (loom_case_option(c, "packed")) {
        pack(c, "qkv", "q", "k", "v");
        pack(c, "dqkv", "dq", "dk", "dv");
    }
    if (loom_case_option(c, "cache")) {
        lay_in_cache(c, "k", "k-cache");
        lay_in_cache(c, "v", "v-cache");
        lay_in_cache(c, "dk", "dk-cache");
        lay_in_cache(c, "dv", "dv-cache");
    }
    if (loom_case_option(c, "odd-inputs")) {
        const char *const names[] = {"q", "k", "v", "dout"};
        for (int i = 0; i < 4; i++) lay_oddly(c, names[i], i + 1);
    }
    if (loom_case_option(c, "odd-results")) {
        const char *const names[] = {"out", "dq", "dk", "dv"};
        for (int i = 0; i < 4; i++) lay_oddly(c, names[i], i + 1);
    }
}

static float scale(const loom_case *c) {
    return 1 / sqrtf((float)loom_case_dim(c, "D"));
}

static void forward(loom_case *c, loom_case_arguments *a) {
    a->attention_forward = (struct loom_attention_forward){
        .out = loom_case_writes(c, "out"),
        .lse = loom_case_writes(c, "lse"),
        .q = loom_case_reads(c, "q"),
        .k = loom_case_reads(c, "k"),
        .v = loom_case_reads(c, "v"),
        .first_query = loom_case_dim(c, "first"),
        .scale = scale(c),
    };
}

static double scaled_dot(const loom_case *c, const double *query, const double *key) {
    double dot = 0;
    for (int64_t d = 0; d < loom_case_dim(c, "D"); d++) dot += query[d] * key[d];
    return dot * (double)scale(c);
}

static void forward_formula(loom_case *c) {
    const int64_t B = loom_case_dim(c, "B"), Tq = loom_case_dim(c, "Tq"), Tk = loom_case_dim(c, "Tk");
    const int64_t H = loom_case_dim(c, "H"), Hkv = loom_case_dim(c, "Hkv"), D = loom_case_dim(c, "D");
    const double *q = loom_case_value(c, "q"), *k = loom_case_value(c, "k"), *v = loom_case_value(c, "v");
    double *out = loom_case_expected(c, "out"), *lse = loom_case_expected(c, "lse");
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t i = 0; i < Tq; i++) {
                const double *query = q + ((b * Tq + i) * H + h) * D;
                double *row = out + ((b * Tq + i) * H + h) * D, largest = -INFINITY, sum = 0;
                const int64_t seen = loom_case_dim(c, "first") + i + 1, head = h * Hkv / H;
                for (int64_t j = 0; j < seen; j++)
                    largest = fmax(largest, scaled_dot(c, query, k + ((b * Tk + j) * Hkv + head) * D));
                for (int64_t d = 0; d < D; d++) row[d] = 0;
                for (int64_t j = 0; j < seen; j++) {
                    const int64_t at = ((b * Tk + j) * Hkv + head) * D;
                    const double weight = exp(scaled_dot(c, query, k + at) - largest);
                    sum += weight;
                    for (int64_t d = 0; d < D; d++) row[d] += weight * v[at + d];
                }
                for (int64_t d = 0; d < D; d++) row[d] /= sum;
                lse[(b * H + h) * Tq + i] = largest + log(sum);
            }
}

static void backward(loom_case *c, loom_case_arguments *a) {
    a->attention_backward = (struct loom_attention_backward){
        .dq = loom_case_writes(c, "dq"),
        .dk = loom_case_writes(c, "dk"),
        .dv = loom_case_writes(c, "dv"),
        .dout = loom_case_reads(c, "dout"),
        .out = loom_case_reads(c, "out"),
        .lse = loom_case_reads(c, "lse"),
        .q = loom_case_reads(c, "q"),
        .k = loom_case_reads(c, "k"),
        .v = loom_case_reads(c, "v"),
        .first_query = loom_case_dim(c, "first"),
        .scale = scale(c),
    };
}

const loom_op_cases loom_op_cases_attention = {
    .name = "attention",
    .dims = "B Tq Tk H Hkv D first",
    .options = "packed cache sharp equal huge extreme odd-inputs odd-results",
    .shapes = shapes,
    .n_shapes = sizeof shapes / sizeof *shapes,
    .tensors = tensors,
    .op = {{LOOM_OP_attention_forward, forward, forward_formula}, {LOOM_OP_attention_backward, backward, NULL}},
};
