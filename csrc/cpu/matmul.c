#include "cpu/definition.h"
#include "cpu/epilogue.h"
#include "cpu/tile.h"

/* A product is cut into tiles of (ROWS, COLUMNS) of its output, one thread each, summed over the inner dimension in
 * steps of DEPTH in order. Operands are copied into tiles as reals, which makes transposes and storage types one thing. */
enum { ROWS = 64, COLUMNS = 128, DEPTH = 256 };

typedef struct operand {
    const loom_view *view; /* (rows, columns) */
    bool transposed;       /* the product uses its transpose */
} operand;

size_t LOOM_DEFINITION(matmul_scratch)(const loom_device *device) {
    return thread_scratch_bytes(device, ROWS * DEPTH + DEPTH * COLUMNS + ROWS * COLUMNS);
}

/* tile[r][c] = operand[row + r][column + c] for r < rows, c < columns; zeros up to the padded sizes. */
static void copy_tile(real *tile, int64_t ld, const operand *o, int64_t row, int64_t column, int64_t rows,
                      int64_t columns, int64_t padded_rows, int64_t padded_columns) {
    real line[DEPTH];
    if (o->transposed) {
        for (int64_t c = 0; c < columns; c++) {
            load_reals(line, element_address(o->view, column + c, row), o->view->dtype, rows);
            for (int64_t r = 0; r < rows; r++) tile[r * ld + c] = line[r];
        }
    } else {
        for (int64_t r = 0; r < rows; r++)
            load_reals(tile + r * ld, element_address(o->view, row + r, column), o->view->dtype, columns);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = columns; c < padded_columns; c++) tile[r * ld + c] = 0;
    for (int64_t r = rows; r < padded_rows; r++) memset(tile + r * ld, 0, (size_t)padded_columns * sizeof *tile);
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Calls finish(context, row, column, width, sums) for each row of each tile of A B (M,N), K inside. */
static void product(const loom_exec *exec, operand a, operand b, int64_t M, int64_t N, int64_t K,
                    void (*finish)(const void *context, int64_t row, int64_t column, int64_t width, real *sums),
                    const void *context) {
    const int64_t tiles_down = (M + ROWS - 1) / ROWS, tiles_across = (N + COLUMNS - 1) / COLUMNS;
#pragma omp parallel num_threads(exec->device->threads)
    {
        real *a_tile = thread_scratch(exec, ROWS * DEPTH + DEPTH * COLUMNS + ROWS * COLUMNS);
        real *b_tile = a_tile + ROWS * DEPTH, *c_tile = b_tile + DEPTH * COLUMNS;
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles_down * tiles_across; tile++) {
            const int64_t row = tile % tiles_down * ROWS, column = tile / tiles_down * COLUMNS;
            const int64_t rows = smaller(ROWS, M - row), columns = smaller(COLUMNS, N - column);
            const int64_t padded_rows = round_up(rows, TILE_ROWS), padded_columns = round_up(columns, TILE_LANES);
            memset(c_tile, 0, ROWS * COLUMNS * sizeof *c_tile);
            for (int64_t k = 0; k < K; k += DEPTH) {
                const int64_t depth = smaller(DEPTH, K - k);
                copy_tile(a_tile, DEPTH, &a, row, k, rows, depth, padded_rows, depth);
                copy_tile(b_tile, COLUMNS, &b, k, column, depth, columns, depth, padded_columns);
                tile_multiply_add(c_tile, COLUMNS, a_tile, DEPTH, 1, b_tile, COLUMNS, padded_rows, padded_columns,
                                  depth);
            }
            for (int64_t r = 0; r < rows; r++) finish(context, row + r, column, columns, c_tile + r * COLUMNS);
        }
    }
}

static void finish_forward(const void *context, int64_t row, int64_t column, int64_t width, real *sums) {
    finish_row(context, row, column, width, sums);
}

void LOOM_DEFINITION(matmul_forward)(loom_exec *exec, const struct loom_matmul_forward *a) {
    product(exec, (operand){&a->x, false}, (operand){&a->weight, a->transposed}, loom_view_row_count(&a->x),
            a->out.shape[3], a->x.shape[3], finish_forward, a);
}

static void finish_input(const void *context, int64_t row, int64_t column, int64_t width, real *sums) {
    finish_input_row(context, row, column, width, sums);
}

void LOOM_DEFINITION(matmul_backward_input)(loom_exec *exec, const struct loom_matmul_backward_input *a) {
    product(exec, (operand){&a->dout, false}, (operand){&a->weight, !a->transposed}, loom_view_row_count(&a->dout),
            a->dx.shape[3], a->dout.shape[3], finish_input, a);
}

static void finish_weight(const void *context, int64_t row, int64_t column, int64_t width, real *sums) {
    finish_weight_row(context, row, column, width, sums);
}

void LOOM_DEFINITION(matmul_backward_weight)(loom_exec *exec, const struct loom_matmul_backward_weight *a) {
    const loom_view *left = a->transposed ? &a->dout : &a->x, *right = a->transposed ? &a->x : &a->dout;
    product(exec, (operand){left, true}, (operand){right, false}, a->dweight.shape[2], a->dweight.shape[3],
            loom_view_row_count(&a->x), finish_weight, a);
    if (loom_view_given(&a->dbias)) bias_gradient(exec, &a->dbias, &a->dout, a->accumulate);
}
