#include "model/gpt.h"
#include "gptloom/random.h"

#include "base/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool ends_in(const char *name, const char *end) {
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

/* A tensor's values in host memory. */
static void initial_values(const loom_gpt *g, const loom_parameter *p, uint64_t seed, float *values) {
    const int64_t n = p->rows * p->columns;
    if (p->vector) {
        const bool layernorm_weight = ends_in(p->name, ".weight");
        for (int64_t i = 0; i < n; i++) values[i] = layernorm_weight ? 1.0f : 0.0f;
        return;
    }
    const bool residual_projection = ends_in(p->name, "c_proj.weight");
    const float deviation = residual_projection ? 0.02f / sqrtf(2.0f * (float)g->config.n_layer) : 0.02f;
    const uint64_t first = (uint64_t)(p->offset - g->layout.bucket[p->bucket].offset);
    const int64_t piece = 1 << 16;
#pragma omp parallel for schedule(static) num_threads(g->device->threads)
    for (int64_t start = 0; start < n; start += piece) {
        const int64_t count = n - start < piece ? n - start : piece;
        loom_random_normal(values + start, count, seed, LOOM_RANDOM_INIT, (uint32_t)p->bucket, first + (uint64_t)start);
        for (int64_t i = start; i < start + count; i++) values[i] *= deviation;
    }
}

/* The same values in the master's type: `values` itself where that is fp32; NULL without memory. */
static void *converted(float *values, int64_t n, loom_dtype dtype) {
    if (dtype == LOOM_F32) return values;
    void *out = malloc((size_t)n * loom_dtype_size(dtype));
    for (int64_t i = 0; out && i < n; i++) {
        if (dtype == LOOM_F64)
            ((double *)out)[i] = (double)values[i];
        else
            ((uint16_t *)out)[i] = dtype == LOOM_BF16 ? float_to_bf16(values[i]) : float_to_fp16(values[i]);
    }
    return out;
}

/* Writes one tensor's values to the device and waits for them. */
static bool initialise(loom_gpt *g, const loom_parameter *p, uint64_t seed, loom_error *error) {
    const int64_t n = p->rows * p->columns;
    const loom_dtype dtype = g->precision.master;
    float *values = malloc((size_t)n * sizeof *values);
    if (values) initial_values(g, p, seed, values);
    void *stored = values ? converted(values, n, dtype) : NULL;
    bool ok = stored;
    if (stored) {
        g->device->copy(g->device, g->exec.stream, loom_advance(g->master, p->offset, dtype), stored,
                        loom_bytes(n, dtype), LOOM_HOST_TO_DEVICE);
        ok = g->device->synchronize(g->device, g->exec.stream, error);
    } else {
        loom_fail(error, "not enough memory to initialise %s", p->name);
    }
    if (stored != values) free(stored);
    free(values);
    return ok;
}

bool loom_gpt_initialise(loom_gpt *g, uint64_t seed, loom_error *error) {
    for (int i = 0; i < g->layout.n_parameters; i++)
        if (!initialise(g, &g->layout.parameter[i], seed, error)) return false;
    loom_gpt_copy_master(g);
    return g->device->synchronize(g->device, g->exec.stream, error);
}
