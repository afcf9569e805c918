/* Timing an op: inputs in place, caches cold, the median of many runs. */
#include "cases/case_internal.h"

#include "base/clock.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    FEWEST_RUNS = 5,
    MOST_RUNS = 400,
    WARM_UPS = 2,
    PATTERN = LOOM_CASE_PERIOD,
    FLUSH_COLUMNS = 8192,
    FLUSH_BLOCK = 1 << 16
};

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median; the times are sorted by the way. */
static double median(double *times, int n) {
    qsort(times, (size_t)n, sizeof *times, by_size);
    return n % 2 ? times[n / 2] : (times[n / 2 - 1] + times[n / 2]) / 2;
}

/* --------------------------------------------------------------------------------------------------------- flushing */

/* Twice the last cache, as far as the system tells its size, and 64 MiB at least; where memory is not the host's, four
 * times the largest cache of a GPU so far. */
static size_t flush_size(const loom_device *device) {
    if (!device->host_memory) return (size_t)256 << 20;
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const size_t least = (size_t)64 << 20, twice = cache > 0 ? 2 * (size_t)cache : 0;
    return twice > least ? twice : least;
}

/* Blocks that the memory to be read is summed in. */
static int64_t flush_blocks(const loom_device *device, size_t bytes) {
    const int64_t n = (int64_t)(bytes / loom_dtype_size(device->storage));
    return (n + FLUSH_BLOCK - 1) / FLUSH_BLOCK;
}

/* What a GPU is to read lies behind what it writes, and behind that the sums. */
static size_t flush_memory(const loom_device *device, size_t bytes) {
    return device->host_memory ? bytes : 2 * bytes + (size_t)flush_blocks(device, bytes) * sizeof(float);
}

bool loom_case_flush_open(loom_case_flush *flush, loom_device *device, size_t bytes, loom_error *error) {
    const size_t row = FLUSH_COLUMNS * loom_dtype_size(device->storage);
    flush->bytes = (bytes ? bytes : flush_size(device)) / row * row;
    if (!flush->bytes) flush->bytes = row;
    flush->memory = NULL;
    return device->allocate(device, &flush->memory, flush_memory(device, flush->bytes), error);
}

void loom_case_flush_close(loom_case_flush *flush, loom_device *device) {
    if (flush->memory) device->release(device, flush->memory, flush_memory(device, flush->bytes));
    flush->memory = NULL;
}

/* The device writes all of the memory in its own way, so that this works for any device. A GPU then reads as much other
 * memory: what was written would stay in its cache, and writing it back would be part of the time of what comes next.
 * */
static void cool(loom_device *device, const loom_case_flush *flush) {
    const int64_t rows = (int64_t)(flush->bytes / loom_dtype_size(device->storage)) / FLUSH_COLUMNS;
    const struct loom_fill fill = {.out = loom_view_2d(flush->memory, device->storage, rows, FLUSH_COLUMNS),
                                   .value = 1};
    loom_context ctx = {.ops = device->ops, .device = device};
    device->ops->fill(&ctx, &fill);
    if (device->host_memory) return;
    char *other = (char *)flush->memory + flush->bytes;
    const struct loom_block_sum read = {
        .partials = loom_view_1d(other + flush->bytes, device->statistics, flush_blocks(device, flush->bytes)),
        .x = loom_view_1d(other, device->storage, rows * FLUSH_COLUMNS),
        .block = FLUSH_BLOCK};
    device->ops->block_sum(&ctx, &read);
}

/* ----------------------------------------------------------------------------------------------------------- inputs */

/* Sends the pattern, then doubles what is there until the memory is full. */
static bool fill_with(loom_case_memory *m, loom_device *device, const void *pattern, size_t bytes, loom_error *error) {
    char *start = (char *)m->device + LOOM_CASE_FENCE;
    size_t filled = bytes < m->bytes ? bytes : m->bytes;
    device->copy(device, NULL, start, pattern, filled, LOOM_HOST_TO_DEVICE);
    while (filled < m->bytes) {
        const size_t more = filled < m->bytes - filled ? filled : m->bytes - filled;
        device->copy(device, NULL, start + filled, start, more, LOOM_DEVICE_TO_DEVICE);
        filled += more;
    }
    return device->synchronize(device, NULL, error);
}

/* Fills a memory with the pattern of its first tensor, repeated: what numbers there are does not change an op's time,
 * as long as they are ordinary ones. */
static bool fill_memory(loom_case *c, int memory, loom_device *device, loom_error *error) {
    loom_case_memory *m = &c->memory[memory];
    const loom_case_tensor *t = c->tensor;
    while (t->memory != memory) t++;
    if (t->kind == LOOM_CASE_SCALARS) return fill_with(m, device, &t->scalars, sizeof t->scalars, error);
    const loom_dtype dtype = loom_case_tensor_dtype(c, t);
    const size_t item = loom_case_tensor_item(c, t), bytes = PATTERN * item;
    double *values = malloc(PATTERN * sizeof *values);
    char *stored = malloc(bytes);
    bool filled = values && stored;
    if (filled) {
        loom_case_generate(c, t, PATTERN, values);
        for (size_t i = 0; i < PATTERN; i++) loom_case_store(stored + i * item, dtype, values[i]);
        filled = fill_with(m, device, stored, bytes, error);
    } else {
        loom_fail(error, "out of memory for the inputs of a benchmark of %s", c->cases->name);
    }
    free(values);
    free(stored);
    return filled;
}

/* Whether `op` reads what `earlier` writes. */
static bool reads_from(const loom_case *c, int op, int earlier) {
    for (int i = 0; i < c->n_tensors; i++)
        if (c->tensor[i].written_by == earlier && c->tensor[i].role[op] != LOOM_CASE_UNUSED) return true;
    return false;
}

/* The ops of the file that must have run for this one to have its inputs; itself included. */
static unsigned needed_ops(const loom_case *c, int op) {
    unsigned needed = 1u << op;
    for (int earlier = 0; earlier < op; earlier++)
        if (reads_from(c, op, earlier)) needed |= needed_ops(c, earlier);
    return needed;
}

/* ----------------------------------------------------------------------------------------------------------- timing */

/* One timed run: the device's own clock runs from when the caches have been flushed to when the op is done. */
static bool time_run(loom_case *c, int op, loom_device *device, const loom_case_flush *flush, double *seconds,
                     loom_error *error) {
    cool(device, flush);
    device->timer_start(device);
    loom_case_run(c, op, device);
    return device->timer_stop(device, seconds, error);
}

static bool time_runs(loom_case *c, int op, loom_device *device, const loom_case_flush *flush, double seconds,
                      loom_case_timing *timing, loom_error *error) {
    double times[MOST_RUNS];
    const double begin = loom_seconds_now();
    int n = 0;
    while (n < MOST_RUNS && (n < FEWEST_RUNS || loom_seconds_now() - begin < seconds)) {
        if (!time_run(c, op, device, flush, &times[n], error)) return false;
        n++;
    }
    loom_case_arguments arguments;
    loom_case_bind(c, op, LOOM_CASE_SHAPES, &arguments);
    const loom_work work = loom_op_work(c->cases->op[op].op, &arguments);
    *timing = (loom_case_timing){.ms = 1e3 * median(times, n), .runs = n, .flops = work.flops, .bytes = work.bytes};
    return true;
}

/* Runs the ops that give this one its inputs, and itself: the first run of anything is a slow one. */
static bool warm_up(loom_case *c, int op, unsigned needed, loom_device *device, loom_error *error) {
    for (int i = 0; i < op; i++)
        if (needed >> i & 1) loom_case_run(c, i, device);
    for (int i = 0; i < WARM_UPS; i++) loom_case_run(c, op, device);
    return device->synchronize(device, NULL, error);
}

bool loom_case_time(loom_case *c, int op, loom_device *device, const loom_case_flush *flush, double seconds,
                    loom_case_timing *timing, loom_case_result *support, loom_error *error) {
    *support = (loom_case_result){.verdict = LOOM_CASE_OK};
    const unsigned needed = needed_ops(c, op);
    size_t workspace_bytes = 0;
    for (int i = 0; i <= op; i++) {
        if (!(needed >> i & 1)) continue;
        size_t bytes;
        if (!loom_case_supported(c, i, device, support)) return true;
        if (!loom_case_plan(c, i, LOOM_CASE_SHAPES, device, &bytes, error)) return false;
        if (bytes > workspace_bytes) workspace_bytes = bytes;
    }
    bool ran = loom_case_allocate(c, needed, workspace_bytes, device, error);
    for (int i = 0; ran && i < c->n_memories; i++)
        if (c->memory[i].device) ran = fill_memory(c, i, device, error);
    ran = ran && warm_up(c, op, needed, device, error) && time_runs(c, op, device, flush, seconds, timing, error);
    loom_case_release(c, device);
    return ran;
}

/* -------------------------------------------------------------------------------------------------------- bandwidth */

/* The time of one copy of `bytes`, by all threads where the host may touch the memory. */
static bool time_copy(loom_device *device, char *to, const char *from, size_t bytes, double *seconds,
                      loom_error *error) {
    device->timer_start(device);
    if (device->host_memory) {
        const int64_t pieces = device->threads;
        const size_t piece = bytes / (size_t)pieces;
#pragma omp parallel for schedule(static) num_threads(device->threads)
        for (int64_t i = 0; i < pieces; i++)
            memcpy(to + (size_t)i * piece, from + (size_t)i * piece,
                   i + 1 < pieces ? piece : bytes - (size_t)i * piece);
    } else {
        device->copy(device, NULL, to, from, bytes, LOOM_DEVICE_TO_DEVICE);
    }
    return device->timer_stop(device, seconds, error);
}

bool loom_case_copy_bandwidth(loom_device *device, const loom_case_flush *flush, double *bandwidth, loom_error *error) {
    void *to;
    if (!device->allocate(device, &to, flush->bytes, error)) return false;
    double best = INFINITY, seconds;
    bool ran = time_copy(device, to, flush->memory, flush->bytes, &seconds, error);
    for (int i = 0; ran && i < 2 * FEWEST_RUNS; i++) {
        ran = time_copy(device, to, flush->memory, flush->bytes, &seconds, error);
        if (ran) best = fmin(best, seconds);
    }
    if (ran) *bandwidth = 2 * (double)flush->bytes / best;
    device->release(device, to, flush->bytes);
    return ran;
}
