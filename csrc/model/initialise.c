#include "model/gpt.h"
#include "base/random.h"

#include "base/half.h"

#include <math.h>
#include <stdlib.h>

/* Values are made in host memory so many at a time: what a run takes beside its plan is to be little. */
enum { CHUNK = 1 << 20, PIECE = 1 << 16 };

/* Values first .. first + n - 1 of a tensor. */
static void initial_values(const loom_gpt *g, const loom_parameter *p, uint64_t seed, int64_t first, int64_t n,
                           float *values) {
    if (p->initial == LOOM_INITIAL_ZERO || p->initial == LOOM_INITIAL_ONE) {
        for (int64_t i = 0; i < n; i++) values[i] = p->initial == LOOM_INITIAL_ONE ? 1.0f : 0.0f;
        return;
    }
    const bool residual = p->initial == LOOM_INITIAL_NORMAL_RESIDUAL;
    const float deviation = residual ? 0.02f / sqrtf(2.0f * (float)g->config.n_layer) : 0.02f;
    const int64_t in_bucket = p->offset - g->layout.bucket[p->bucket].offset + first;
#pragma omp parallel for schedule(static) num_threads(g->device->threads)
    for (int64_t start = 0; start < n; start += PIECE) {
        const int64_t count = n - start < PIECE ? n - start : PIECE;
        loom_random_normal(values + start, count, seed, LOOM_RANDOM_INIT, (uint32_t)p->bucket,
                           (uint64_t)(in_bucket + start));
        for (int64_t i = start; i < start + count; i++) values[i] *= deviation;
    }
}

/* The same values in the master's type, in `out`; or as they are, where that is fp32. */
static const void *converted(const float *values, int64_t n, loom_dtype dtype, double *out) {
    if (dtype == LOOM_F32) return values;
    for (int64_t i = 0; i < n; i++) {
        if (dtype == LOOM_F64)
            out[i] = (double)values[i];
        else
            ((uint16_t *)out)[i] = dtype == LOOM_BF16 ? float_to_bf16(values[i]) : float_to_fp16(values[i]);
    }
    return out;
}

/* Writes to the device what of one tensor lies in the rank's shard. */
static bool initialise(loom_gpt *g, const loom_parameter *p, uint64_t seed, float *values, double *wide,
                       loom_error *error) {
    const loom_dtype dtype = g->precision.master;
    const loom_shard *shard = &g->shard[p->bucket];
    const int64_t begin = p->offset - g->layout.bucket[p->bucket].offset, end = begin + p->rows * p->columns;
    const int64_t shard_end = shard->first + shard->elements, last = end < shard_end ? end : shard_end;
    for (int64_t first = begin > shard->first ? begin : shard->first; first < last; first += CHUNK) {
        const int64_t n = last - first < CHUNK ? last - first : CHUNK;
        initial_values(g, p, seed, first - begin, n, values);
        g->device->copy(g->device, g->ctx.stream, loom_element(shard->master, first - shard->first, dtype),
                        converted(values, n, dtype, wide), loom_bytes(n, dtype), LOOM_HOST_TO_DEVICE);
        if (!g->device->synchronize(g->device, g->ctx.stream, error)) return false;
    }
    return true;
}

bool loom_gpt_initialise(loom_gpt *g, uint64_t seed, loom_error *error) {
    double *wide = malloc(CHUNK * (sizeof *wide + sizeof(float)));
    bool ok = wide || loom_fail(error, "no memory to initialise the model");
    for (int i = 0; i < g->layout.n_parameters && ok; i++)
        ok = initialise(g, &g->layout.parameter[i], seed, (float *)(wide + CHUNK), wide, error);
    free(wide);
    if (!ok) return false;
    loom_gpt_copy_master(g);
    return g->device->synchronize(g->device, g->ctx.stream, error);
}
