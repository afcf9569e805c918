/* Op cases: one declaration per op, in csrc/cases/NAME.c, from which come
 *
 *   parity      the op on a device against the oracle (double precision) on the same inputs;
 *   gradients   the oracle's backward ops against finite differences of its forward op;
 *   formula     the oracle's forward ops against the formula of ops.h, written a second time in the plainest way;
 *   threads     the same bits whatever the number of threads;
 *   speed       the benchmark.
 *
 * The tests (test/test_ops.cpp) and the subcommands `gptloom parity` and `gptloom bench` run over the same cases.
 *
 * A declaration is short: rows of shapes, a function that declares the tensors, and for each op of the file a function
 * that fills the op's argument struct with them. gelu.c is a good one to read first.
 *
 *     static void tensors(loom_case *c) {
 *         const loom_case_size size = loom_case_2d(loom_case_dim(c, "N"), loom_case_dim(c, "C"));
 *         loom_case_input(c, "x", LOOM_CASE_STORAGE, size, loom_case_normal(0, 1));
 *         loom_case_output(c, "out", LOOM_CASE_STORAGE, size, (loom_case_bound){.chain = 8, .floor = 1});
 *     }
 *     static void forward(loom_case *c, loom_case_arguments *a) {
 *         a->gelu_forward.x = loom_case_reads(c, "x");
 *         a->gelu_forward.out = loom_case_writes(c, "out");
 *     }
 *
 * Which tensor an op reads, writes or adds to is said where its argument is filled in, and nowhere else. An input of
 * one op that an earlier op of the file writes (a backward op's statistics) is first computed by the oracle. */
#ifndef LOOM_CASES_CASE_H
#define LOOM_CASES_CASE_H

#include "gptloom/device.h"
#include "gptloom/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LOOM_CASE_DIMS = 8, LOOM_CASE_OPS = 3, LOOM_CASE_TENSORS = 24, LOOM_CASE_LABEL = 160 };

typedef struct loom_case loom_case;

/* The argument struct of any op. */
typedef union loom_case_arguments {
#define LOOM_CASE_MEMBER(name) struct loom_##name name;
    LOOM_OP_LIST(LOOM_CASE_MEMBER)
#undef LOOM_CASE_MEMBER
} loom_case_arguments;

/* ------------------------------------------------------------------------------------------------------ declaration */

enum {
    LOOM_CASE_PARITY = 1,
    LOOM_CASE_GRADIENT = 2,
    LOOM_CASE_BENCH = 4,       /* on a CPU: GPT-2 124M and a small byte-level model, few tokens */
    LOOM_CASE_BENCH_LARGE = 8, /* on a GPU: GPT-2 124M, 16 sequences of 1024 tokens */
    LOOM_CASE_FULL = 16,       /* only when all is asked for: `parity --full`, LOOM_TEST_FULL */
};

/* One shape: the dimensions in the order of the file's `dims`, options out of its `options`, and what it is for. */
typedef struct loom_case_shape {
    int64_t dim[LOOM_CASE_DIMS];
    const char *options; /* "delta skip", "" for none */
    unsigned use;        /* LOOM_CASE_PARITY | ... */
} loom_case_shape;

typedef struct loom_case_op {
    loom_op op;
    void (*arguments)(loom_case *c, loom_case_arguments *a); /* NULL ends the list */
    void (*formula)(loom_case *c); /* loom_case_value -> loom_case_expected; NULL: none beside the gradient check */
} loom_case_op;

typedef struct loom_op_cases {
    const char *name;    /* "layernorm" */
    const char *dims;    /* "N C" */
    const char *options; /* "delta skip" */
    const loom_case_shape *shapes;
    int n_shapes;
    void (*tensors)(loom_case *c);
    loom_case_op op[LOOM_CASE_OPS + 1]; /* in an order in which each may read what those before it write */
} loom_op_cases;

/* All files of cases, ended by NULL: all.c. */
extern const loom_op_cases *const loom_op_catalogue[];

/* Whether a shape is for that use; those marked LOOM_CASE_FULL only when all is asked for. */
bool loom_case_is_for(const loom_case_shape *shape, unsigned use, bool full);

/* What a shape says. */
int64_t loom_case_dim(const loom_case *c, const char *name);
bool loom_case_option(const loom_case *c, const char *name);

/* What a tensor is stored in. On the oracle everything but ids is fp64. */
typedef enum loom_case_kind {
    LOOM_CASE_STORAGE,    /* activations, their gradients, weights: the storage dtype under test */
    LOOM_CASE_PARAMETER,  /* parameter gradients: the gradient dtype under test */
    LOOM_CASE_STATISTICS, /* fp32 */
    LOOM_CASE_IDS,        /* int32 */
    LOOM_CASE_SCALARS,    /* one loom_scalars; its fields are the elements */
} loom_case_kind;

typedef struct loom_case_size {
    int64_t n[4];
} loom_case_size;

loom_case_size loom_case_1d(int64_t n);
loom_case_size loom_case_2d(int64_t rows, int64_t columns);
loom_case_size loom_case_3d(int64_t a, int64_t b, int64_t c);
loom_case_size loom_case_4d(int64_t a, int64_t b, int64_t c, int64_t d);

/* What a tensor holds at first. Random values depend on the seed, the tensor's place in the declaration and the element
 * alone, and repeat after 65521, a prime, so that no two rows of a large matrix are alike. They are rounded to what the
 * device stores before the oracle sees them. */
typedef struct loom_case_fill {
    enum {
        LOOM_FILL_NORMAL,
        LOOM_FILL_UNIFORM,
        LOOM_FILL_CONSTANT,
        LOOM_FILL_IDS,
        LOOM_FILL_TARGETS,
        LOOM_FILL_ROWS,
        LOOM_FILL_EXTREME
    } how;
    double a, b;
} loom_case_fill;

loom_case_fill loom_case_normal(double mean, double deviation);
loom_case_fill loom_case_uniform(double low, double high);
loom_case_fill loom_case_constant(double value);
loom_case_fill loom_case_ids(int64_t n);         /* 0 .. n-1 */
loom_case_fill loom_case_targets(int64_t n);     /* likewise, but every third is -1 */
loom_case_fill loom_case_rows(double deviation); /* one normal value for all of a row */
loom_case_fill
loom_case_extreme(double largest); /* zeros of both signs, denormals, ones, +-largest, in a random order */

/* How far an output may be from the reference. Two errors are measured:
 *
 *   norm     ||out - ref|| / max(||ref||, floor * sqrt(elements)),
 *   element  the largest |out - ref| / max(|ref|, rms(ref), floor), in epsilons of the output's dtype,
 *
 * and bounded from what lies behind an element. With e and u = e/2 the epsilon and the rounding unit of the arithmetic
 * (fp32), U that of the output's dtype and S that of the storage dtype:
 *
 *   norm    <= U + D
 *   element <= 1/2 + D * (1 + sqrt(2 ln elements)) / (2U),   with D = rounded * S + e * (sqrt(sum) + chain)
 *
 * U is the output's own rounding. A sum of n terms whose partial sums have the size of the result, or less, errs by at
 * most sqrt(n) u where rounding errors are independent (Higham and Mary, "A New Approach to Probabilistic Rounding
 * Error Analysis", 2019): so e * sqrt(n) leaves a factor of two. Other operations behind an element count one e each in
 * `chain`, or as many as later steps amplify them to; what is rounded to storage on the way counts in `rounded`. The
 * norm averages over elements; the largest of m errors of a normal distribution lies near sqrt(2 ln m) deviations.
 * Relative bounds hold against the size of what was added: where terms cancel (a gradient that is exactly zero, p - 1
 * at a certain target), `floor` gives their size.
 *
 * Differences below the smallest denormal of the dtype are no errors. NaNs and infinities where the reference has none
 * are infinite errors. When the oracle is compared with a formula, both err, in double: D doubles. */
typedef struct loom_case_bound {
    double sum;
    double chain;
    double rounded;
    double floor;
    bool exact; /* the reference, correctly rounded, to the bit */
    bool zeros; /* besides: where the reference is zero, so is the output */
} loom_case_bound;

void loom_case_input(loom_case *c, const char *name, loom_case_kind kind, loom_case_size size, loom_case_fill fill);
void loom_case_output(loom_case *c, const char *name, loom_case_kind kind, loom_case_size size, loom_case_bound bound);
/* What an output that is added to or updated holds before; standard normal values if this is not called. */
void loom_case_start(loom_case *c, const char *name, loom_case_fill fill);
void loom_case_scalars(loom_case *c, const char *name, const loom_scalars *scalars, loom_case_bound bound);

/* Where tensors lie in the device's memory, each contiguous in memory of its own unless said otherwise. What lies
 * between strided elements, before and after, must not be touched. The oracle's tensors are always apart and
 * contiguous. alias: `name` is the very memory of `other`. widen: rows are `gap` elements further apart. place: in the
 * memory named `memory`, from element `offset` on, with these strides (the last is 1). */
void loom_case_alias(loom_case *c, const char *name, const char *other);
void loom_case_widen(loom_case *c, const char *name, int64_t gap);
void loom_case_place(loom_case *c, const char *name, const char *memory, int64_t offset, int64_t stride0,
                     int64_t stride1, int64_t stride2);

/* Nothing is tested in this storage dtype, as the op's contract does not have it. */
void loom_case_without(loom_case *c, loom_dtype storage);

/* How gradients relate: with f = sum over outputs of output * cotangent, backward ops write df/dinput into
 * `gradient`. */
void loom_case_cotangent(loom_case *c, const char *output, const char *cotangent);
void loom_case_gradient(loom_case *c, const char *input, const char *gradient);

/* The views of an argument struct. may_: optional arguments, zero where the tensor was not declared. adds: written when
 * `accumulate` is false, else added to. */
loom_view loom_case_reads(loom_case *c, const char *name);
loom_view loom_case_may_read(loom_case *c, const char *name);
loom_view loom_case_writes(loom_case *c, const char *name);
loom_view loom_case_may_write(loom_case *c, const char *name);
loom_view loom_case_adds(loom_case *c, const char *name, bool accumulate);
loom_view loom_case_may_add(loom_case *c, const char *name, bool accumulate);
loom_view loom_case_updates(loom_case *c, const char *name);
const loom_scalars *loom_case_reads_scalars(loom_case *c, const char *name);
loom_scalars *loom_case_updates_scalars(loom_case *c, const char *name);

/* For formulas: a tensor's elements before the op, and where to write what they should be after it. Contiguous. */
const double *loom_case_value(loom_case *c, const char *name);
double *loom_case_expected(loom_case *c, const char *name);
/* The scalars before the op; and after it, to be filled in (they begin as a copy). */
const loom_scalars *loom_case_scalars_value(loom_case *c, const char *name);
loom_scalars *loom_case_scalars_expected(loom_case *c, const char *name);

/* ------------------------------------------------------------------------------------------------------------ using */

/* The dtypes of a run of a case. */
typedef struct loom_case_dtypes {
    const char *name; /* "fp32" */
    loom_dtype storage, gradient;
} loom_case_dtypes;

/* fp32, bf16 and fp16 (gradients of parameters in fp32), bf16-gradients (these in bf16 too); ended by a NULL name. */
extern const loom_case_dtypes loom_case_dtypes_tested[];
/* Those of the oracle as a device under test: fp64. */
extern const loom_case_dtypes loom_case_dtypes_oracle;

/* Declares one shape of a file of cases. The error is out of memory. */
bool loom_case_open(loom_case **c, const loom_op_cases *cases, const loom_case_shape *shape, loom_case_dtypes dtypes,
                    uint64_t seed, loom_error *error);
void loom_case_close(loom_case *c);

/* Whether there is a run with these dtypes and it differs from one in fp32: the op touches a tensor that is stored in
 * what fp32 does not have, and no other run does the same. */
bool loom_case_dtypes_matter(const loom_case *c, int op);

/* Whether `name` is the op, its file of cases, or "all". */
bool loom_case_selected(const loom_op_cases *cases, int op, const char *name);
/* Refuses a name that selects nothing: what is given for `flag`. Suggests the nearest. */
bool loom_case_check_name(const char *flag, const char *name, loom_error *error);

/* "N=3 C=17 delta" */
void loom_case_label(const loom_op_cases *cases, const loom_case_shape *shape, char label[LOOM_CASE_LABEL]);

typedef enum loom_case_verdict { LOOM_CASE_OK, LOOM_CASE_FAILED, LOOM_CASE_UNSUPPORTED } loom_case_verdict;

typedef struct loom_case_result {
    loom_case_verdict verdict;
    char message[1024]; /* why it failed or what is not supported */
    const char *tensor; /* the one nearest to its bound, or beyond */
    double norm_error, norm_bound;
    double element_error, element_bound; /* in epsilons; of a gradient check: relative, and norm_ is not used */
    double ratio;                        /* error / bound, the larger of the two */
    uint64_t bits;                       /* a hash of all outputs of a check's first run: equal bits, equal hash */
} loom_case_result;

/* Runs the file's op-th op on a device and compares with the oracle; on the oracle itself (dtypes fp64), with the
 * formula. Also looks whether inputs are as they were, nothing beyond the outputs was written, all of them was, the
 * workspace was kept to, plans need shapes only, and a second run over other garbage gives the same bits. What the
 * device says went wrong while it planned or ran the op is the case's failure. false: out of memory, on the host or
 * there. */
bool loom_case_check(loom_case *c, int op, loom_device *device, loom_device *oracle, loom_case_result *result,
                     loom_error *error);

/* Compares all gradients of a case with central differences of fourth order, f'(x) = (8 (f(x+h) - f(x-h)) -
 * (f(x+2h) - f(x-2h))) / 12h with h = 2^-10, in double on the oracle. Their error is h^4 f^(5) / 30, where the fifth
 * derivative is at most R^4 times the first with R = 8 (inputs of gradient shapes are of size one, and no op varies on
 * a scale below 1/8 there), and 1.5/h times the rounding error of f, which follows from the outputs' bounds. Small
 * tensors are checked in all elements, larger ones in `samples` random ones. */
bool loom_case_check_gradients(loom_case *c, loom_device *oracle, int samples, loom_case_result *result,
                               loom_error *error);

/* Runs the op on several devices (the same one with other numbers of threads) and compares the bits of all outputs with
 * the first one's. */
bool loom_case_check_same_bits(loom_case *c, int op, loom_device *const *devices, int n, loom_device *oracle,
                               loom_case_result *result, loom_error *error);

/* ------------------------------------------------------------------------------------------------------------ speed */

/* Device memory larger than the last cache, written between timed runs so that each begins with cold caches. */
typedef struct loom_case_flush {
    void *memory;
    size_t bytes;
} loom_case_flush;

/* bytes: 0 takes what surely exceeds the cache. */
bool loom_case_flush_open(loom_case_flush *flush, loom_device *device, size_t bytes, loom_error *error);
void loom_case_flush_close(loom_case_flush *flush, loom_device *device);

typedef struct loom_case_timing {
    double ms;           /* the median */
    int runs;            /* timed */
    double flops, bytes; /* what there is to do at least (loom_op_work) */
} loom_case_timing;

/* Times one op by the device's clock, for about `seconds` (5 runs at least) after warm-up runs. */
bool loom_case_time(loom_case *c, int op, loom_device *device, const loom_case_flush *flush, double seconds,
                    loom_case_timing *timing, loom_case_result *support, loom_error *error);

/* Bytes per second, read and written, of a plain copy of memory larger than the caches by all of the device's threads:
 * the fastest of several, as what a device can do should not depend on what else runs. */
bool loom_case_copy_bandwidth(loom_device *device, const loom_case_flush *flush, double *bandwidth, loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
