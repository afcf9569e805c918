#include "cpu/definition.h"
#include "cpu/epilogue.h"
#include "cpu/product.h"
#include "cpu/tuned.h"

#include <stdlib.h>

/* Matrix products in fp32 by a library, cut into output tiles on a grid that the shape alone decides; each tile is one
 * single-threaded call. So no bit depends on the number of threads, whatever the library does inside. Other storage
 * types are left to the definition. */

struct loom_tuned_matmul {
    bool alone; /* one product, one call, threaded by the library */
    loom_product_cache *products;
};

bool loom_tuned_matmul_create(loom_tuned_matmul **out, int threads, bool library_threads, loom_error *error) {
    loom_tuned_matmul *matmul = calloc(1, sizeof *matmul);
    if (!matmul) return loom_fail(error, "no memory for the plans of matrix products");
    matmul->alone = library_threads;
    if (!(matmul->products = loom_product_cache_create(threads, library_threads, error))) {
        free(matmul);
        return false;
    }
    *out = matmul;
    return true;
}

void loom_tuned_matmul_destroy(loom_tuned_matmul *matmul) {
    if (matmul) loom_product_cache_destroy(matmul->products);
    free(matmul);
}

const char *loom_tuned_matmul_name(void) {
    return loom_product_library();
}

/* ----------------------------------------------------------------------------------------------------------------- grid */

/* A whole product and where its matrices lie. */
typedef struct whole {
    loom_product shape;
    const float *a, *b;
    float *c;
} whole;

/* The largest tile: larger ones leave the cache. A product makes at least so many tiles that no thread waits long for
 * another, unless they would become smaller than the smallest, which spend their time on calls and copies. */
enum {
    MOST_ROWS = 128,
    MOST_COLUMNS = 384,
    FEWEST_TILES = 8,
    FEWEST_ROWS = 32,
    FEWEST_COLUMNS = 64,
    COLUMN_MULTIPLE = 32
};

typedef struct grid {
    int64_t rows, columns; /* of a tile; the last ones may be smaller */
    int64_t down, across;  /* tiles */
} grid;

static int64_t ceiling_divide(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* n cut into near-equal parts of at most `most`, each a multiple of `multiple` but the last. */
static int64_t near_equal(int64_t n, int64_t most, int64_t multiple) {
    const int64_t part = ceiling_divide(n, ceiling_divide(n, most));
    return ceiling_divide(part, multiple) * multiple;
}

static grid make_grid(const loom_tuned_matmul *matmul, const loom_product *shape) {
    if (matmul->alone) return (grid){shape->m, shape->n, 1, 1};
    int64_t most_rows = MOST_ROWS, most_columns = MOST_COLUMNS;
    for (;;) {
        grid g = {.rows = near_equal(shape->m, most_rows, 1),
                  .columns = near_equal(shape->n, most_columns, COLUMN_MULTIPLE)};
        g.down = ceiling_divide(shape->m, g.rows);
        g.across = ceiling_divide(shape->n, g.columns);
        const bool columns = g.columns > g.rows && g.columns > FEWEST_COLUMNS;
        if (g.down * g.across >= FEWEST_TILES || (!columns && g.rows <= FEWEST_ROWS)) return g;
        if (columns)
            most_columns = ceiling_divide(g.columns, 2);
        else
            most_rows = ceiling_divide(g.rows, 2);
    }
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* The plans of a product's tiles: only the last row and the last column of tiles differ in size from the rest. */
typedef struct tile_plans {
    const loom_product_plan *plan[2][2]; /* [last row][last column] */
    size_t scratch;
} tile_plans;

static bool plan_tiles(const loom_tuned_matmul *matmul, const loom_product *shape, grid g, tile_plans *plans,
                       loom_error *error) {
    plans->scratch = 0;
    for (int bottom = 0; bottom < 2; bottom++)
        for (int right = 0; right < 2; right++) {
            loom_product tile = *shape;
            tile.m = bottom ? shape->m - (g.down - 1) * g.rows : smaller(g.rows, shape->m);
            tile.n = right ? shape->n - (g.across - 1) * g.columns : smaller(g.columns, shape->n);
            const loom_product_plan *plan = loom_product_prepare(matmul->products, &tile, error);
            if (!plan) return false;
            plans->plan[bottom][right] = plan;
            if (loom_product_scratch(plan) > plans->scratch) plans->scratch = loom_product_scratch(plan);
        }
    plans->scratch = (plans->scratch + 255) / 256 * 256;
    return true;
}

/* Runs all tiles, and after each, while it is in cache, finish(context, row, column, rows, columns) on its place. */
static void run(const loom_exec *exec, const whole *w,
                void (*finish)(const void *context, int64_t row, int64_t column, int64_t rows, int64_t columns),
                const void *context) {
    const loom_tuned_matmul *matmul = exec->device->implementation;
    const loom_product *s = &w->shape;
    const grid g = make_grid(matmul, s);
    tile_plans plans;
    loom_error error;
    LOOM_CHECK(plan_tiles(matmul, s, g, &plans, &error)); /* was prepared, or its like was */
    if (matmul->alone) {
        LOOM_CHECK(plans.scratch <= exec->workspace_bytes);
        loom_product_run(plans.plan[0][0], 0, w->a, w->b, w->c, exec->workspace);
        if (!finish) return;
#pragma omp parallel for schedule(static) num_threads(exec->device->threads)
        for (int64_t row = 0; row < s->m; row++) finish(context, row, 0, 1, s->n);
        return;
    }
    LOOM_CHECK(plans.scratch * (size_t)exec->device->threads <= exec->workspace_bytes);
    /* A region of one thread is none to OpenMP: the library would start threads of its own inside. */
    const int before = omp_get_max_threads();
    omp_set_num_threads(1);
#pragma omp parallel for schedule(dynamic) num_threads(exec->device->threads)
    for (int64_t tile = 0; tile < g.down * g.across; tile++) {
        const int64_t i = tile % g.down, j = tile / g.down, row = i * g.rows, column = j * g.columns;
        const int thread = omp_get_thread_num();
        loom_product_run(plans.plan[i == g.down - 1][j == g.across - 1], thread,
                         w->a + (s->a_transposed ? row : row * s->lda),
                         w->b + (s->b_transposed ? column * s->ldb : column), w->c + row * s->ldc + column,
                         (char *)exec->workspace + plans.scratch * (size_t)thread);
        if (finish) finish(context, row, column, smaller(g.rows, s->m - row), smaller(g.columns, s->n - column));
    }
    omp_set_num_threads(before);
}

/* ------------------------------------------------------------------------------------------------------------------ ops */

static whole whole_forward(const struct loom_matmul_forward *a) {
    const loom_view *out = a->activation == LOOM_ACTIVATION_NONE ? &a->out : &a->preactivation;
    return (whole){.shape = {.m = loom_view_row_count(&a->x),
                             .n = a->out.shape[3],
                             .k = a->x.shape[3],
                             .lda = a->x.stride[2],
                             .ldb = a->weight.stride[2],
                             .ldc = out->stride[2],
                             .b_transposed = a->transposed},
                   .a = a->x.data,
                   .b = a->weight.data,
                   .c = out->data};
}

static whole whole_backward_input(const struct loom_matmul_backward_input *a) {
    return (whole){.shape = {.m = loom_view_row_count(&a->dout),
                             .n = a->dx.shape[3],
                             .k = a->dout.shape[3],
                             .lda = a->dout.stride[2],
                             .ldb = a->weight.stride[2],
                             .ldc = a->dx.stride[2],
                             .b_transposed = !a->transposed},
                   .a = a->dout.data,
                   .b = a->weight.data,
                   .c = a->dx.data};
}

static whole whole_backward_weight(const struct loom_matmul_backward_weight *a) {
    const loom_view *left = a->transposed ? &a->dout : &a->x, *right = a->transposed ? &a->x : &a->dout;
    return (whole){.shape = {.m = a->dweight.shape[2],
                             .n = a->dweight.shape[3],
                             .k = loom_view_row_count(&a->x),
                             .lda = left->stride[2],
                             .ldb = right->stride[2],
                             .ldc = a->dweight.stride[2],
                             .a_transposed = true,
                             .accumulate = a->accumulate},
                   .a = left->data,
                   .b = right->data,
                   .c = a->dweight.data};
}

/* The rows of a matrix as the library sees it: one stride. */
static bool one_stride(const loom_view *view) {
    return view->shape[0] == 1 && view->shape[1] == 1;
}

/* Whether the library computes this call; the product, if so. */
static bool is_ours(loom_op op, const void *arguments, whole *w) {
    const struct loom_matmul_forward *f = arguments;
    const struct loom_matmul_backward_input *i = arguments;
    const struct loom_matmul_backward_weight *d = arguments;
    switch (op) {
    case LOOM_OP_matmul_forward:
        *w = whole_forward(f);
        return f->x.dtype == LOOM_F32 && one_stride(&f->x) && one_stride(&f->out);
    case LOOM_OP_matmul_backward_input:
        *w = whole_backward_input(i);
        return i->dout.dtype == LOOM_F32 && one_stride(&i->dout) && one_stride(&i->dx);
    case LOOM_OP_matmul_backward_weight:
        *w = whole_backward_weight(d);
        return d->dout.dtype == LOOM_F32 && d->dweight.dtype == LOOM_F32 && one_stride(&d->dout) && one_stride(&d->x);
    default: return false;
    }
}

static void finish_forward(const void *context, int64_t row, int64_t column, int64_t rows, int64_t columns) {
    const struct loom_matmul_forward *a = context;
    const loom_view *stored = a->activation == LOOM_ACTIVATION_NONE ? &a->out : &a->preactivation;
    for (int64_t r = row; r < row + rows; r++) finish_row(a, r, column, columns, element_address(stored, r, column));
}

static void forward(loom_exec *exec, const struct loom_matmul_forward *a) {
    whole w;
    if (!is_ours(LOOM_OP_matmul_forward, a, &w)) {
        loom_definition_matmul_forward(exec, a);
        return;
    }
    const bool epilogue = loom_view_given(&a->bias) || a->activation != LOOM_ACTIVATION_NONE;
    run(exec, &w, epilogue ? finish_forward : NULL, a);
}

static void backward_input(loom_exec *exec, const struct loom_matmul_backward_input *a) {
    whole w;
    if (is_ours(LOOM_OP_matmul_backward_input, a, &w))
        run(exec, &w, NULL, NULL);
    else
        loom_definition_matmul_backward_input(exec, a);
}

static void backward_weight(loom_exec *exec, const struct loom_matmul_backward_weight *a) {
    whole w;
    if (!is_ours(LOOM_OP_matmul_backward_weight, a, &w)) {
        loom_definition_matmul_backward_weight(exec, a);
        return;
    }
    run(exec, &w, NULL, NULL);
    if (loom_view_given(&a->dbias)) bias_gradient(exec, &a->dbias, &a->dout, a->accumulate);
}

static size_t workspace(const loom_device *device, loom_op op, const void *arguments) {
    const loom_tuned_matmul *matmul = device->implementation;
    whole w;
    tile_plans plans;
    if (!is_ours(op, arguments, &w) || !plan_tiles(matmul, &w.shape, make_grid(matmul, &w.shape), &plans, NULL))
        return loom_definition_workspace(device, op, arguments);
    return plans.scratch * (size_t)(matmul->alone ? 1 : device->threads);
}

static bool prepare(loom_device *device, loom_op op, const void *arguments, loom_error *error) {
    const loom_tuned_matmul *matmul = device->implementation;
    whole w;
    tile_plans plans;
    return !is_ours(op, arguments, &w) || plan_tiles(matmul, &w.shape, make_grid(matmul, &w.shape), &plans, error);
}

void loom_tuned_matmul_install(loom_ops *ops) {
    ops->matmul_forward = forward;
    ops->matmul_backward_input = backward_input;
    ops->matmul_backward_weight = backward_weight;
    ops->workspace = workspace;
    ops->prepare = prepare;
}
