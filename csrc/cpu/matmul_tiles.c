#include "cpu/matmul_tiles.h"

/* Each tile is computed by one thread. Its size and the order of its sums depend on the shape only, so the bits do not
 * depend on the number of threads, whatever the library does inside. */

/* ----------------------------------------------------------------------------------------------------------------- grid */

/* MOST_ROWS and MOST_COLUMNS bound a tile: larger ones do not stay in the cache. A product is cut into enough tiles
 * that no thread waits long for another, as long as they are not smaller than the smallest tile, which spends its time
 * on calls and copies. */
enum {
    MOST_ROWS = 128,
    MOST_COLUMNS = 384,
    FEWEST_TILES = 8,
    FEWEST_ROWS = 32,
    FEWEST_COLUMNS = 64,
    COLUMN_MULTIPLE = 32
};

/* Where the library threads each product, and sums are scratch: which bound it. */
enum { MOST_LIBRARY_THREADED = 2048 };

typedef struct grid {
    int64_t rows, columns; /* of a tile; the last tiles may be smaller */
    int64_t down, across;  /* the number of tiles */
} grid;

static int64_t ceiling_divide(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Returns the size of near-equal parts of n: at most `most`, and a multiple of `multiple` except for the last part. */
static int64_t near_equal(int64_t n, int64_t most, int64_t multiple) {
    const int64_t part = ceiling_divide(n, ceiling_divide(n, most));
    return smaller(n, ceiling_divide(part, multiple) * multiple);
}

static grid make_grid_of(int64_t m, int64_t n, int64_t most_rows, int64_t most_columns) {
    grid g = {.rows = near_equal(m, most_rows, 1), .columns = near_equal(n, most_columns, COLUMN_MULTIPLE)};
    g.down = ceiling_divide(m, g.rows);
    g.across = ceiling_divide(n, g.columns);
    return g;
}

static grid make_grid(const loom_tuned_matmul *matmul, const loom_gemm *w) {
    const int64_t m = w->shape.m, n = w->shape.n;
    if (matmul->library_threaded && !w->via_scratch) return (grid){m, n, 1, 1};
    if (matmul->library_threaded) return make_grid_of(m, n, MOST_LIBRARY_THREADED, MOST_LIBRARY_THREADED);
    int64_t most_rows = MOST_ROWS, most_columns = MOST_COLUMNS;
    for (;;) {
        const grid g = make_grid_of(m, n, most_rows, most_columns);
        const bool columns = g.columns > g.rows && g.columns > FEWEST_COLUMNS;
        if (g.down * g.across >= FEWEST_TILES || (!columns && g.rows <= FEWEST_ROWS)) return g;
        if (columns)
            most_columns = ceiling_divide(g.columns, 2);
        else
            most_rows = ceiling_divide(g.rows, 2);
    }
}

/* ---------------------------------------------------------------------------------------------------------------- plans */

/* How a product runs. Only the last row and the last column of tiles differ from the rest. */
typedef struct gemm_plan {
    const loom_gemm *gemm;
    grid grid;
    int64_t ldc;                         /* of what the library is given */
    const loom_product_plan *plan[2][2]; /* [last row][last column] */
    size_t c_at, bytes;                  /* scratch of a tile; the library's own comes first */
} gemm_plan;

/* The library's product for a kind of tile. */
static loom_product product_of(const gemm_plan *r, bool bottom, bool right) {
    const loom_product *s = &r->gemm->shape;
    const grid *g = &r->grid;
    loom_product p = *s;
    p.m = bottom ? s->m - (g->down - 1) * g->rows : g->rows;
    p.n = right ? s->n - (g->across - 1) * g->columns : g->columns;
    p.ldc = r->ldc;
    if (r->gemm->via_scratch) p.accumulate = false;
    return p;
}

static bool make_plan(const loom_tuned_matmul *matmul, const loom_gemm *w, gemm_plan *r, loom_error *error) {
    const grid g = make_grid(matmul, w);
    *r = (gemm_plan){.gemm = w, .grid = g, .ldc = w->via_scratch ? g.columns : w->shape.ldc};
    size_t library = 0;
    for (int kind = 0; kind < 4; kind++) {
        const loom_product product = product_of(r, kind / 2, kind % 2);
        const loom_product_plan *plan = loom_product_prepare(matmul->products, &product, error);
        if (!plan) return false;
        r->plan[kind / 2][kind % 2] = plan;
        if (loom_product_scratch(plan) > library) library = loom_product_scratch(plan);
    }
    r->c_at = (library + 255) / 256 * 256;
    r->bytes = r->c_at;
    if (w->via_scratch) r->bytes += ((size_t)(g.rows * g.columns) * sizeof(float) + 255) / 256 * 256;
    return true;
}

bool LOOM_DEFINITION(tiles_prepare)(const loom_device *device, const loom_gemm *gemm, loom_error *error) {
    gemm_plan r;
    return make_plan(device->implementation, gemm, &r, error);
}

size_t LOOM_DEFINITION(tiles_workspace)(const loom_device *device, const loom_gemm *gemm) {
    const loom_tuned_matmul *matmul = device->implementation;
    gemm_plan r;
    if (!make_plan(matmul, gemm, &r, NULL)) return 0;
    return r.bytes * (size_t)(matmul->library_threaded ? 1 : device->threads);
}

/* ------------------------------------------------------------------------------------------------------------------ run */

/* Where element (row, column) of a stored matrix lies. */
static const void *element(const gemm_plan *r, const void *matrix, int64_t ld, int64_t row, int64_t column) {
    return (const char *)matrix + (size_t)(row * ld + column) * loom_dtype_size(r->gemm->shape.dtype);
}

/* One tile, as thread `thread`, with `team` threads where there are more to it. */
static void run_tile(const gemm_plan *r, int64_t tile, int thread, int team, char *scratch, loom_finish *finish,
                     const void *context) {
    const loom_gemm *w = r->gemm;
    const loom_product *s = &w->shape;
    const grid *g = &r->grid;
    const int64_t i = tile % g->down, j = tile / g->down, row = i * g->rows, column = j * g->columns;
    const int64_t rows = smaller(g->rows, s->m - row), columns = smaller(g->columns, s->n - column);
    float *c = w->via_scratch ? (float *)(scratch + r->c_at) : w->c + row * s->ldc + column;
    const void *a = s->a_transposed ? element(r, w->a, s->lda, 0, row) : element(r, w->a, s->lda, row, 0);
    const void *b = s->b_transposed ? element(r, w->b, s->ldb, column, 0) : element(r, w->b, s->ldb, 0, column);
    loom_product_run(r->plan[i == g->down - 1][j == g->across - 1], thread, a, b, c, scratch);
    if (!finish) return;
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
    for (int64_t y = 0; y < rows; y++) finish(context, row + y, column, columns, c + y * r->ldc);
}

void LOOM_DEFINITION(tiles_run)(const loom_context *ctx, const loom_gemm *gemm, loom_finish *finish,
                                const void *context) {
    const loom_tuned_matmul *matmul = ctx->device->implementation;
    const int threads = ctx->device->threads;
    gemm_plan r;
    loom_error error;
    LOOM_CHECK(make_plan(matmul, gemm, &r, &error)); /* was prepared, or its like was */
    const int64_t tiles = r.grid.down * r.grid.across;
    LOOM_CHECK(r.bytes * (size_t)(matmul->library_threaded ? 1 : threads) <= ctx->workspace_bytes);
    if (matmul->library_threaded) {
        for (int64_t tile = 0; tile < tiles; tile++) run_tile(&r, tile, 0, threads, ctx->workspace, finish, context);
        return;
    }
    /* OpenMP does not count a region of one thread as parallel, so the library would start its own threads inside. */
    const int before = omp_get_max_threads();
    omp_set_num_threads(1);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int thread = omp_get_thread_num();
        run_tile(&r, tile, thread, 1, (char *)ctx->workspace + r.bytes * (size_t)thread, finish, context);
    }
    omp_set_num_threads(before);
}
