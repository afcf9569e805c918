#include "cuda/peak.h"

#include "cuda/matmul.h"
#include "base/random.h"

#include <math.h>
#include <stdlib.h>

/* The rate of a square product that is large enough to fill any GPU, as our own matmul_forward computes it. */

enum { PROBE = 512, LARGE = 8192, LARGE_FP32 = 4096 };

/* Seconds in which any GPU computes the probe, and which its emulation takes for longer: that gets no larger one. */
static const double SLOW = 5e-4;

/* A product of (n,n) matrices and all that it needs. */
typedef struct square {
    loom_context ctx;
    struct loom_matmul_forward arguments;
    void *memory;
    size_t bytes;
} square;

static void square_close(square *s) {
    loom_device *device = s->ctx.device;
    if (s->memory) device->release(device, s->memory, s->bytes);
}

/* Normal values, as in training: with zeros, or one value everywhere, a GPU takes less power and runs faster. A few
 * rows are drawn and repeated; `scratch` on the device holds them as fp32. */
static bool fill_randomly(square *s, const loom_view *matrix, void *scratch, loom_error *error) {
    enum { ROWS = 16 };
    loom_device *device = s->ctx.device;
    const int64_t n = matrix->shape[3], values = ROWS * n;
    const size_t bytes = (size_t)values * sizeof(float);
    float *drawn = malloc(bytes);
    if (!drawn) return loom_fail(error, "no memory for %zu bytes of random numbers", bytes);
    loom_random_normal(drawn, values, 0, LOOM_RANDOM_TEST, 0, 0);
    device->copy(device, NULL, scratch, drawn, bytes, LOOM_HOST_TO_DEVICE);
    for (int64_t row = 0; row < n; row += ROWS)
        device->ops->cast(&s->ctx, &(struct loom_cast){.out = loom_view_rows(*matrix, row, ROWS),
                                                       .x = loom_view_2d(scratch, LOOM_F32, ROWS, n)});
    const bool ok = device->synchronize(device, NULL, error);
    free(drawn);
    return ok;
}

static bool square_open(square *s, loom_device *device, loom_dtype dtype, int64_t n, loom_error *error) {
    *s = (square){.ctx = {.ops = device->ops, .device = device}};
    const size_t matrix = ((size_t)(n * n) * loom_dtype_size(dtype) + 255) / 256 * 256;
    s->arguments = (struct loom_matmul_forward){.out = loom_view_2d(NULL, dtype, n, n),
                                                .x = loom_view_2d(NULL, dtype, n, n),
                                                .weight = loom_view_2d(NULL, dtype, n, n)};
    s->ctx.workspace_bytes = device->ops->workspace(device, LOOM_OP_matmul_forward, &s->arguments);
    s->bytes = 3 * matrix + s->ctx.workspace_bytes;
    if (!device->ops->prepare(device, LOOM_OP_matmul_forward, &s->arguments, error) ||
        !device->allocate(device, &s->memory, s->bytes, error))
        return false;
    char *memory = s->memory;
    s->arguments.x.data = memory;
    s->arguments.weight.data = memory + matrix;
    s->arguments.out.data = memory + 2 * matrix;
    s->ctx.workspace = memory + 3 * matrix;
    return fill_randomly(s, &s->arguments.x, s->arguments.out.data, error) &&
           fill_randomly(s, &s->arguments.weight, s->arguments.out.data, error);
}

/* Seconds of one run. */
static bool time_one(square *s, double *seconds, loom_error *error) {
    loom_device *device = s->ctx.device;
    device->timer_start(device);
    device->ops->matmul_forward(&s->ctx, &s->arguments);
    return device->timer_stop(device, seconds, error);
}

/* The fastest of the runs that fit into `seconds`, after a first one that is not counted; two at least. */
static bool time_best(square *s, double seconds, double *best, loom_error *error) {
    double spent = 0, one;
    *best = INFINITY;
    if (!time_one(s, &one, error)) return false;
    do {
        if (!time_one(s, &one, error)) return false;
        spent += one;
        *best = fmin(*best, one);
    } while (spent < seconds);
    return true;
}

static bool time_square(loom_device *device, loom_dtype dtype, int64_t n, double seconds, double *best,
                        loom_error *error) {
    square s;
    const bool ok = square_open(&s, device, dtype, n, error) && time_best(&s, seconds, best, error);
    square_close(&s);
    return ok;
}

static bool measure(loom_device *device, loom_dtype dtype, double seconds, double *rate, loom_error *error) {
    int64_t n = PROBE;
    double best;
    if (!time_square(device, dtype, n, 0, &best, error)) return false;
    if (best < SLOW) {
        n = dtype == LOOM_F32 ? LARGE_FP32 : LARGE;
        if (!time_square(device, dtype, n, seconds, &best, error)) return false;
    }
    *rate = 2 * (double)n * (double)n * (double)n / best;
    return true;
}

/* With plans and a tuning cache of its own: what is tuned here is no part of a run. */
bool loom_cuda_peak(loom_device *device, loom_dtype dtype, double seconds, double *rate, loom_error *error) {
    loom_cuda *cuda = loom_cuda_of(device);
    loom_cuda_matmul *const matmul = cuda->matmul;
    const loom_tuning tuning = cuda->tuning;
    if (!loom_cuda_matmul_create(&cuda->matmul, error)) return false;
    cuda->tuning = (loom_tuning){0};
    const bool ok = measure(device, dtype, seconds, rate, error);
    loom_cuda_matmul_destroy(cuda->matmul);
    loom_tuning_clear(&cuda->tuning);
    cuda->matmul = matmul;
    cuda->tuning = tuning;
    return ok;
}
