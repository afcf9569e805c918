#include "cpu/definition.h"
#include "cpu/epilogue.h"
#include "cpu/tile.h"
#include "ops/arguments.h"

/* Matrix products   (after Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).
 *
 * The output is cut into blocks, each one thread's, and the inner dimension is walked through DEPTH at a time:
 *
 *   - this part of B is copied into panels as wide as a strip of registers, so that the innermost loop reads memory in
 *     order. One panel stays in the first-level cache while all rows go by, all of them in the second-level cache. If a
 *     block's columns of B fit into scratch over their whole depth, a thread whose next block lies in the same columns does
 *     not copy them again;
 *   - A is read where it lies if its rows are reals, else CHUNK rows at a time are copied. Where A is stored as (K,M), as it
 *     is for the gradient of a weight, all threads together copy it once, for all blocks, if it fits into SHARED_REALS;
 *     if it does not, but sums are kept in the output, K is cut into parts that fit, which all blocks go through one after
 *     the other. Copies are where storage types are converted and transposes made;
 *   - sums are kept in the output itself where that is stored as reals, else in scratch.
 *
 * Each element is one sum over the inner dimension, in order. So its bits depend neither on how a product is cut nor on
 * the width of registers; only fused multiply-adds make others. */
enum { PANEL = 2 * TILE_LANES };
enum { DEPTH = 256, CHUNK = 96, MOST_ROWS = 480, MOST_COLUMNS = 256 };
_Static_assert(MOST_COLUMNS % PANEL == 0 && CHUNK % STRIP_ROWS == 0 && CHUNK <= MOST_COLUMNS,
               "blocks are whole panels and strips, and lines of both fit");

/* There are two blocks per thread, so that no thread waits long for another. There are eight if columns of B are kept
 * from block to block. Blocks do not become smaller than this, because then copies would take as long as the
 * arithmetic. */
enum { FEWEST_ROWS = 32, FEWEST_COLUMNS = 64 };

/* The scratch of a thread: a part of B, a chunk of A, and the sums of a chunk. */
enum { B_REALS = DEPTH * MOST_COLUMNS, A_REALS = CHUNK * DEPTH, C_REALS = CHUNK * MOST_COLUMNS };
enum { THREAD_REALS = B_REALS + A_REALS + C_REALS };

/* The copy of A that all threads share has at most SHARED_REALS reals, in pieces of SHARED_ROWS rows. K is not cut into
 * parts of less than FEWEST_DEEP. */
enum { SHARED_REALS = 1 << 20, SHARED_ROWS = 4 * STRIP_ROWS, FEWEST_DEEP = 128 };

/* One operand of a product. `outer` is the dimension that it shares with the output: rows of the left operand, columns
 * of the right one. */
typedef struct operand {
    const loom_view *view;
    bool outer_first; /* stored as (outer, inner); otherwise as (inner, outer) */
} operand;

/* C (M,N) = A (M,K) B (K,N), plus the bias (N) if there is one. Sums are kept in `out` if it is given. `finish`, if not
 * NULL, is called with the finished sums of a row of a block. */
typedef struct product {
    operand a, b;
    const loom_view *out, *bias;
    int64_t M, N, K;
    void (*finish)(const void *context, int64_t row, int64_t column, int64_t width, real *sums);
    const void *context;
} product;

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t ceiling_divide(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* --------------------------------------------------------------------------------------------------------------- copies */

static const void *stored_at(const operand *o, int64_t outer, int64_t inner) {
    return o->outer_first ? element_address(o->view, outer, inner) : element_address(o->view, inner, outer);
}

/* Copies `outers` by `inners` elements of an operand that is stored as (inner, outer) into strips that are `wide` in
 * the outer dimension: (outers / wide, inners, wide). The last strip is padded with zeros. */
static inline __attribute__((always_inline)) void copy_strips(real *to, const operand *o, int64_t outer, int64_t inner,
                                                              int64_t outers, int64_t inners, int wide) {
    real converted[MOST_COLUMNS];
    const loom_dtype dtype = o->view->dtype;
    const bool regular = loom_rows_regular(o->view);
    const char *const first = stored_at(o, outer, inner);
    const size_t size = stored_size(dtype), bytes = (size_t)outers * size;
    const int64_t step = o->view->stride[2] * (int64_t)size;
    for (int64_t i = 0; i < inners; i++) {
        const char *stored = regular ? first + i * step : stored_at(o, outer, inner + i);
        if (regular) ask_for(stored + AHEAD * step, bytes);
        const real *from = reals_at(stored, dtype, outers, converted);
        real *at = to + i * wide;
        int64_t r = 0;
        for (; r + wide <= outers; r += wide) memcpy(at + r * inners, from + r, (size_t)wide * sizeof *to);
        for (int w = 0; r < outers && w < wide; w++) at[r * inners + w] = r + w < outers ? from[r + w] : 0;
    }
}

/* Likewise copies an operand that is stored as (outer, inner) into panels. */
static void transpose_into_panels(real *to, const operand *o, int64_t outer, int64_t inner, int64_t outers,
                                  int64_t inners) {
    real converted[4][DEPTH];
    static const real zeros[DEPTH];
    for (int64_t first = 0; first < round_up(outers, PANEL); first += 4) {
        const real *row[4];
        for (int r = 0; r < 4; r++)
            row[r] = first + r < outers
                         ? reals_at(stored_at(o, outer + first + r, inner), o->view->dtype, inners, converted[r])
                         : zeros;
        real *at = to + first / PANEL * PANEL * inners + first % PANEL;
        int64_t i = 0;
        for (; i + 4 <= inners; i += 4) transpose_4x4(at + i * PANEL, PANEL, row, i);
        for (; i < inners; i++)
            for (int r = 0; r < 4; r++) at[i * PANEL + r] = row[r][i];
    }
}

/* Copies rows of an operand that is stored as (outer, inner) to a stride of DEPTH, and pads with zero rows up to whole
 * strips. */
static void copy_rows(real *to, const operand *o, int64_t outer, int64_t inner, int64_t outers, int64_t inners) {
    for (int64_t r = 0; r < outers; r++)
        load_reals(to + r * DEPTH, stored_at(o, outer + r, inner), o->view->dtype, inners);
    for (int64_t r = outers; r < round_up(outers, STRIP_ROWS); r++)
        memset(to + r * DEPTH, 0, (size_t)inners * sizeof *to);
}

/* Whether strips of A can be read directly from its storage. */
static bool readable(const operand *a) {
    return a->outer_first && stored_as_real(a->view) && loom_rows_regular(a->view) && a->view->stride[2] > 0;
}

/* --------------------------------------------------------------------------------------------------------------- strips */

/* Computes C of a strip and a panel. `a` holds rows that are `lda` apart or, if `lda` is 0, a strip as copy_strips()
 * makes it. */
static void multiply_strip(real *c, int64_t ldc, addend start, const real *a, int64_t lda, const real *panel,
                           int64_t depth) {
    if (lda)
        tile_strip_high(c, ldc, start, a, lda, panel, PANEL, depth);
    else
        tile_transposed_high(c, ldc, start, a, STRIP_ROWS, panel, PANEL, depth);
}

/* The same where C has fewer rows or columns than a strip or a panel. */
static void multiply_edge(real *c, int64_t ldc, int64_t rows, int64_t columns, addend start, const real *a, int64_t lda,
                          const real *panel, int64_t depth) {
    real sums[STRIP_ROWS * PANEL];
    if (start.at == c) {
        for (int64_t r = 0; r < rows; r++) memcpy(sums + r * PANEL, c + r * ldc, (size_t)columns * sizeof *c);
        start = (addend){sums, PANEL};
    }
    multiply_strip(sums, PANEL, start, a, lda, panel, depth);
    for (int64_t r = 0; r < rows; r++) memcpy(c + r * ldc, sums + r * PANEL, (size_t)columns * sizeof *c);
}

/* --------------------------------------------------------------------------------------------------------------- blocks */

/* The part of the output that a thread computes at a time. */
typedef struct block {
    int64_t row, column, rows, columns;
} block;

/* How the output is cut into blocks; the last blocks may be smaller. */
typedef struct grid {
    int64_t rows, columns, down, across;
} grid;

/* Returns the size of near-equal parts of n: at most `most`, and a multiple of `multiple` except for the last part. */
static int64_t near_equal(int64_t n, int64_t most, int64_t multiple) {
    return smaller(n, round_up(ceiling_divide(n, ceiling_divide(n, most)), multiple));
}

/* A part of the inner dimension, which all blocks finish before any begins the next. `a` is the copy of A's strips that
 * all threads share, (M / STRIP_ROWS, depth, STRIP_ROWS), or NULL. */
typedef struct part {
    int64_t k, depth;
    real *a;
} part;

/* The depth of parts whose A is copied once for all threads; 0 if A is not copied so. */
static int64_t shared_depth(const product *p) {
    if (p->M == 0 || p->K == 0) return 0;
    const int64_t most = SHARED_REALS / round_up(p->M, STRIP_ROWS);
    if (p->a.outer_first || (most < p->K && (!p->out || most < FEWEST_DEEP))) return 0;
    return near_equal(p->K, most, 1);
}

static size_t shared_bytes(const product *p) {
    return (size_t)(round_up(p->M, STRIP_ROWS) * shared_depth(p)) * sizeof(real);
}

/* The number of columns of B that fit into scratch over the depth of a part. */
static int64_t columns_that_fit(int64_t depth) {
    return B_REALS / depth / PANEL * PANEL;
}

static grid make_grid(const product *p, int64_t depth, int threads) {
    const bool fit = columns_that_fit(depth) >= FEWEST_COLUMNS;
    int64_t most_rows = p->out ? MOST_ROWS : CHUNK;
    int64_t most_columns = fit ? smaller(columns_that_fit(depth), MOST_COLUMNS) : MOST_COLUMNS;
    for (;;) {
        grid g = {near_equal(p->M, most_rows, STRIP_ROWS), near_equal(p->N, most_columns, PANEL), 0, 0};
        g.down = ceiling_divide(p->M, g.rows);
        g.across = ceiling_divide(p->N, g.columns);
        const int64_t blocks = g.down * g.across;
        if (fit && g.rows > CHUNK / 2 && blocks < 8 * threads) { /* costs each thread at most one more copy of B */
            most_rows = round_up(ceiling_divide(g.rows, 2), STRIP_ROWS);
            continue;
        }
        const bool wide = g.columns > g.rows && g.columns > FEWEST_COLUMNS;
        if (blocks >= 2 * threads || (!wide && g.rows <= FEWEST_ROWS)) return g;
        if (wide)
            most_columns = round_up(ceiling_divide(g.columns, 2), PANEL);
        else
            most_rows = round_up(ceiling_divide(g.rows, 2), STRIP_ROWS);
    }
}

/* Multiplies a chunk's rows of A by the panels of B, both `depth` deep from k on. At k = 0 sums begin with `first`, a
 * row as wide as the block. */
static void multiply_chunk(const product *p, const part *of, const block *chunk, int64_t k, int64_t depth, real *a,
                           const real *b, real *c, int64_t ldc, const real *first) {
    const int64_t read = readable(&p->a) ? chunk->rows / STRIP_ROWS * STRIP_ROWS : 0;
    if (p->a.outer_first)
        copy_rows(a, &p->a, chunk->row + read, k, chunk->rows - read, depth);
    else if (!of->a)
        copy_strips(a, &p->a, chunk->row, k, chunk->rows, depth, STRIP_ROWS);
    for (int64_t j = 0; j < chunk->columns; j += PANEL)
        for (int64_t i = 0; i < chunk->rows; i += STRIP_ROWS) {
            const real *strip = i < read           ? stored_at(&p->a, chunk->row + i, k)
                                : p->a.outer_first ? a + (i - read) * DEPTH
                                : of->a            ? of->a + (chunk->row + i) * of->depth + (k - of->k) * STRIP_ROWS
                                                   : a + i * depth;
            const int64_t lda = i < read ? p->a.view->stride[2] : p->a.outer_first ? DEPTH : 0;
            const int64_t rows = smaller(STRIP_ROWS, chunk->rows - i), columns = smaller(PANEL, chunk->columns - j);
            real *sums = c + i * ldc + j;
            const addend start = k == 0 ? (addend){first + j, 0} : (addend){sums, ldc};
            if (rows == STRIP_ROWS && columns == PANEL)
                multiply_strip(sums, ldc, start, strip, lda, b + j * depth, depth);
            else
                multiply_edge(sums, ldc, rows, columns, start, strip, lda, b + j * depth, depth);
        }
}

/* `copied` says that scratch already holds the block's columns of B. */
static void multiply_block(const product *p, const part *of, const block *whole, real *scratch, bool copied) {
    const bool fit = columns_that_fit(of->depth) >= whole->columns;
    const int64_t end = of->k + of->depth;
    real *a = scratch + B_REALS, first[MOST_COLUMNS] = {0};
    if (p->bias) load_reals(first, element_address(p->bias, 0, whole->column), p->bias->dtype, whole->columns);
    for (int64_t k = of->k; k < end; k += DEPTH) {
        const int64_t depth = smaller(DEPTH, end - k);
        real *b = scratch + (fit ? (k - of->k) * round_up(whole->columns, PANEL) : 0);
        if (!copied && p->b.outer_first)
            transpose_into_panels(b, &p->b, whole->column, k, whole->columns, depth);
        else if (!copied)
            copy_strips(b, &p->b, whole->column, k, whole->columns, depth, PANEL);
        for (int64_t done = 0; done < whole->rows; done += CHUNK) {
            const block chunk = {whole->row + done, whole->column, smaller(CHUNK, whole->rows - done), whole->columns};
            real *c = p->out ? element_address(p->out, chunk.row, chunk.column) : a + A_REALS;
            const int64_t ldc = p->out ? p->out->stride[2] : MOST_COLUMNS;
            multiply_chunk(p, of, &chunk, k, depth, a, b, c, ldc, first);
            for (int64_t r = 0; p->finish && k + depth == p->K && r < chunk.rows; r++)
                p->finish(p->context, chunk.row + r, chunk.column, chunk.columns, c + r * ldc);
        }
    }
}

/* Computes all blocks of a part, with the threads of the enclosing parallel region. */
static void multiply_part(const product *p, const part *of, const grid *g, real *scratch) {
    int64_t column_before = -1;
    if (of->a) {
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < p->M; row += SHARED_ROWS)
            copy_strips(of->a + row * of->depth, &p->a, row, of->k, smaller(SHARED_ROWS, p->M - row), of->depth,
                        STRIP_ROWS);
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < g->down * g->across; i++) {
        const int64_t row = i % g->down * g->rows, column = i / g->down * g->columns;
        const block b = {row, column, smaller(g->rows, p->M - row), smaller(g->columns, p->N - column)};
        multiply_block(p, of, &b, scratch, column == column_before && columns_that_fit(of->depth) >= g->columns);
        column_before = column;
    }
}

static void multiply(const loom_context *ctx, const product *p) {
    if (p->M == 0 || p->N == 0) return;
    LOOM_CHECK(p->K > 0);
    const int64_t shared = shared_depth(p), deep = shared ? shared : p->K;
    const size_t threads_bytes = thread_scratch_bytes(ctx->device, THREAD_REALS);
    const grid g = make_grid(p, deep, ctx->device->threads);
    LOOM_CHECK(threads_bytes + shared_bytes(p) <= ctx->workspace_bytes);
#pragma omp parallel num_threads(ctx->device->threads)
    for (int64_t k = 0; k < p->K; k += deep) {
        const part of = {k, smaller(deep, p->K - k), shared ? (real *)((char *)ctx->workspace + threads_bytes) : NULL};
        multiply_part(p, &of, &g, thread_scratch(ctx, THREAD_REALS));
    }
}

/* ------------------------------------------------------------------------------------------------------------------ ops */

/* Returns the output if sums can be kept in it, otherwise NULL. */
static const loom_view *in_place(const loom_view *out) {
    return stored_as_real(out) && loom_rows_regular(out) ? out : NULL;
}

static void finish_forward(const void *context, int64_t row, int64_t column, int64_t width, real *sums) {
    store_row(context, row, column, width, sums);
}

void LOOM_DEFINITION(matmul_forward)(loom_context *ctx, const struct loom_matmul_forward *a) {
    const loom_view *out = in_place(a->activation == LOOM_ACTIVATION_NONE ? &a->out : &a->preactivation);
    const bool more = !out || a->activation != LOOM_ACTIVATION_NONE;
    const product p = {.a = {&a->x, true},
                       .b = {&a->weight, a->transposed},
                       .out = out,
                       .bias = loom_view_given(&a->bias) ? &a->bias : NULL,
                       .M = loom_view_row_count(&a->x),
                       .N = a->out.shape[3],
                       .K = a->x.shape[3],
                       .finish = more ? finish_forward : NULL,
                       .context = a};
    multiply(ctx, &p);
}

static void finish_input(const void *context, int64_t row, int64_t column, int64_t width, real *sums) {
    finish_input_row(context, row, column, width, sums);
}

void LOOM_DEFINITION(matmul_backward_input)(loom_context *ctx, const struct loom_matmul_backward_input *a) {
    const loom_view *out = a->accumulate ? NULL : in_place(&a->dx);
    const product p = {.a = {&a->dout, true},
                       .b = {&a->weight, !a->transposed},
                       .out = out,
                       .M = loom_view_row_count(&a->dout),
                       .N = a->dx.shape[3],
                       .K = a->dout.shape[3],
                       .finish = out ? NULL : finish_input,
                       .context = a};
    multiply(ctx, &p);
}

static void finish_weight(const void *context, int64_t row, int64_t column, int64_t width, real *sums) {
    finish_weight_row(context, row, column, width, sums);
}

static product weight_gradient(const struct loom_matmul_backward_weight *a) {
    const loom_view *left = a->transposed ? &a->dout : &a->x, *right = a->transposed ? &a->x : &a->dout;
    const loom_view *out = a->accumulate ? NULL : in_place(&a->dweight);
    return (product){.a = {left, false},
                     .b = {right, false},
                     .out = out,
                     .M = a->dweight.shape[2],
                     .N = a->dweight.shape[3],
                     .K = loom_view_row_count(&a->x),
                     .finish = out ? NULL : finish_weight,
                     .context = a};
}

void LOOM_DEFINITION(matmul_backward_weight)(loom_context *ctx, const struct loom_matmul_backward_weight *a) {
    const product p = weight_gradient(a);
    multiply(ctx, &p);
    if (loom_view_given(&a->dbias)) bias_gradient(ctx, &a->dbias, &a->dout, a->accumulate);
}

/* -------------------------------------------------------------------------------------------------------------- scratch */

size_t LOOM_DEFINITION(matmul_forward_scratch)(const loom_device *device, const struct loom_matmul_forward *a) {
    (void)a;
    return thread_scratch_bytes(device, THREAD_REALS);
}

size_t LOOM_DEFINITION(matmul_backward_input_scratch)(const loom_device *device,
                                                      const struct loom_matmul_backward_input *a) {
    (void)a;
    return thread_scratch_bytes(device, THREAD_REALS);
}

size_t LOOM_DEFINITION(matmul_backward_weight_scratch)(const loom_device *device,
                                                       const struct loom_matmul_backward_weight *a) {
    const product p = weight_gradient(a);
    return thread_scratch_bytes(device, THREAD_REALS) + shared_bytes(&p);
}
