#include "model/gpt.h"
#include "gptloom/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool ends_in(const char *name, const char *end) {
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

/* A tensor's values in host memory, as reals of the storage type. */
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

/* The same values in the storage type of the oracle; NULL without memory. */
static double *widened(const float *values, int64_t n) {
    double *wide = malloc((size_t)n * sizeof *wide);
    for (int64_t i = 0; wide && i < n; i++) wide[i] = (double)values[i];
    return wide;
}

bool loom_gpt_initialise(loom_gpt *g, uint64_t seed, loom_error *error) {
    const loom_dtype storage = g->device->storage;
    bool ok = true;
    for (int i = 0; i < g->layout.n_parameters && ok; i++) {
        const loom_parameter *p = &g->layout.parameter[i];
        const int64_t n = p->rows * p->columns;
        float *values = malloc((size_t)n * sizeof *values);
        if (values) initial_values(g, p, seed, values);
        double *wide = values && storage == LOOM_F64 ? widened(values, n) : NULL;
        if (!values || (storage == LOOM_F64 && !wide)) {
            ok = loom_fail(error, "not enough memory to initialise %s", p->name);
        } else {
            g->device->copy(g->device, g->exec.stream, loom_advance(g->parameters, p->offset, storage),
                            wide ? (void *)wide : (void *)values, loom_bytes(n, storage), LOOM_HOST_TO_DEVICE);
            ok = g->device->synchronize(g->device, g->exec.stream, error);
        }
        free(wide);
        free(values);
    }
    return ok;
}
