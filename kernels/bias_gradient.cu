#include "kernels/elementwise.h"

/* The sum of dout's rows in two stages, both in a fixed order: slices of rows, whose number follows from N alone, are
 * summed into the workspace (slices, O); then the slices. */
constexpr int SLICE_ROWS = 64, MOST_SLICES = 256;
constexpr int ADDING_WARPS = 8, GATHERING_WARPS = 32;

static int64_t slice_count(int64_t N) {
    const int64_t slices = ceil_div(N, (int64_t)SLICE_ROWS);
    return slices < MOST_SLICES ? slices : MOST_SLICES;
}

size_t loom_cuda_bias_gradient_workspace(int64_t N, int64_t O) {
    return (size_t)(slice_count(N) * O) * sizeof(float);
}

/* A block has one slice of rows and as many columns as a warp reads with 16 bytes a lane. Warp w adds rows w, w + 8,
 * ... of the slice in order; then the warps' sums are added in order. Reads NO, writes 4 O slices. */
template <typename T>
__global__ void bias_gradient_slices_kernel(float *sums, rows<const T> dout, int64_t slice_rows, elements e) {
    constexpr int N = PACKED<T>, COLUMNS = WARP * N;
    SHARED_ARRAY(float, warp_sums, ADDING_WARPS *COLUMNS);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t first = (int64_t)blockIdx.x * COLUMNS, column = first + lane * N;
    const int64_t begin = blockIdx.y * slice_rows, end = begin + slice_rows < e.rows ? begin + slice_rows : e.rows;
    float sum[N] = {};
    if (column < e.columns) {
        const int n = column_count<N>(e, column);
#pragma unroll 4
        for (int64_t row = begin + warp; row < end; row += ADDING_WARPS) {
            float value[N];
            load_floats(value, row_at(dout, row) + column, n, e.packed);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] += value[i];
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) warp_sums[warp * COLUMNS + lane * N + i] = sum[i];
    __syncthreads();
    const int64_t mine = first + threadIdx.x;
    if (threadIdx.x >= COLUMNS || mine >= e.columns) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < ADDING_WARPS; w++) total += warp_sums[w * COLUMNS + threadIdx.x];
    sums[blockIdx.y * e.columns + mine] = total;
}

/* A block has 32 columns: warp w adds slices w, w + 32, ... of them, the first warp what these come to. Reads 4 O
 * slices, writes O, and reads it too when adding to it. */
template <typename T>
__global__ void bias_gradient_kernel(T *dbias, const float *sums, int64_t slices, int64_t columns, bool accumulate) {
    SHARED_ARRAY(float, warp_sums, GATHERING_WARPS *WARP);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t column = (int64_t)blockIdx.x * WARP + lane;
    float sum = 0;
    if (column < columns)
#pragma unroll 8
        for (int64_t slice = warp; slice < slices; slice += GATHERING_WARPS) sum += sums[slice * columns + column];
    warp_sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < GATHERING_WARPS; w++) total += warp_sums[w * WARP + lane];
    dbias[column] = from_float<T>(accumulate ? to_float(dbias[column]) + total : total);
}

static void gather(loom_context *ctx, const loom_view *dbias, const void *sums, int64_t slices, bool accumulate) {
    const int64_t O = dbias->shape[3];
    with_fp32_or_bf16(dbias->dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        launch(ctx, "bias_gradient", bias_gradient_kernel<T>, grid_size(ceil_div(O, (int64_t)WARP)),
               GATHERING_WARPS * WARP, 0, dbias->data, sums, slices, O, accumulate);
    });
}

void loom_cuda_bias_gradient(loom_context *ctx, const loom_view *dbias, const loom_view *dout, bool accumulate,
                             void *workspace) {
    const int64_t N = loom_view_row_count(dout), O = dout->shape[3];
    const int64_t slice_rows = ceil_div(N, slice_count(N)), slices = ceil_div(N, slice_rows);
    const elements e = {N, O, rows_are_aligned(dout)};
    with_dtype(dout->dtype, [&](auto tag) {
        typedef typename decltype(tag)::type T;
        const unsigned tiles = grid_size(ceil_div(O, (int64_t)WARP * PACKED<T>));
        launch(ctx, "bias_gradient", bias_gradient_slices_kernel<T>, dim3(tiles, (unsigned)slices), ADDING_WARPS * WARP,
               0, workspace, rows_of<const T>(dout), slice_rows, e);
    });
    gather(ctx, dbias, workspace, slices, accumulate);
}

/* Sums of all rows are those of one slice. */
void loom_cuda_bias_gradient_take(loom_context *ctx, const loom_view *dbias, const void *sums, bool accumulate) {
    gather(ctx, dbias, sums, 1, accumulate);
}
