#include "kernels/kernel.h"

constexpr int THREADS = 256, CHUNK = 2048;

/* Statistics over about the last 128 steps; judged once 32 were seen. */
constexpr int64_t SPIKE_WINDOW = 128, SPIKE_FIRST = 32;

constexpr float LARGEST_LOSS_SCALE = 1 << 24;

__device__ static bool is_spike(double value, double mean, double mean_square, double z) {
    const double variance = mean_square - mean * mean;
    return value > mean + z * sqrt(variance > 0 ? variance : 0);
}

__device__ static void observe(double *mean, double *mean_square, double value, double weight) {
    *mean += weight * (value - *mean);
    *mean_square += weight * (value * value - *mean_square);
}

__device__ static bool must_skip(loom_scalars_state *state, double loss, double norm, double z) {
    if (!isfinite(loss) || !isfinite(norm)) return true;
    const bool spike = z > 0 && state->observed >= SPIKE_FIRST &&
                       (is_spike(loss, state->loss_mean, state->loss_square, z) ||
                        is_spike(norm, state->norm_mean, state->norm_square, z));
    state->observed++;
    const double weight = 1.0 / (double)(state->observed < SPIKE_WINDOW ? state->observed : SPIKE_WINDOW);
    observe(&state->loss_mean, &state->loss_square, loss, weight);
    observe(&state->norm_mean, &state->norm_square, norm, weight);
    return spike;
}

__device__ static void adapt_loss_scale(loom_scalars_state *state, double norm, int32_t interval) {
    if (interval == 0) return;
    if (!isfinite(norm)) {
        state->loss_scale = fmaxf(state->loss_scale / 2, 1);
        state->loss_scale_age = 0;
    } else if (++state->loss_scale_age >= interval) {
        state->loss_scale = fminf(state->loss_scale * 2, LARGEST_LOSS_SCALE);
        state->loss_scale_age = 0;
    }
}

__device__ static void step(loom_scalars *scalars, double losses, double squares) {
    const loom_scalars_in in = scalars->in;
    loom_scalars_out out;
    loom_scalars_state state = scalars->state;
    const double loss = losses * (double)in.loss_gradient, norm = sqrt(squares) / (double)state.loss_scale;
    const double clip = in.clip_norm > 0 && norm > (double)in.clip_norm ? (double)in.clip_norm / norm : 1;
    out.loss = (float)loss;
    out.gradient_norm = (float)norm;
    out.gradient_factor = (float)(clip / (double)state.loss_scale);
    out.skip = must_skip(&state, loss, norm, (double)in.spike_z);
    state.skipped += out.skip;
    state.updates += !out.skip;
    out.bias_correction1 = (float)(1 - pow((double)in.beta1, (double)state.updates));
    out.bias_correction2 = (float)(1 - pow((double)in.beta2, (double)state.updates));
    adapt_loss_scale(&state, norm, in.loss_scale_interval);
    scalars->out = out;
    scalars->state = state;
}

/* n of at most CHUNK values into shared memory, by the whole block. */
__device__ static void fetch(float *to, const float *from, int64_t n) {
    for (int64_t i = threadIdx.x; i < n && i < CHUNK; i += THREADS) to[i] = from[i];
}

__device__ static double add_in_order(double sum, const float *values, int64_t n) {
    for (int64_t i = 0; i < n && i < CHUNK; i++) sum += (double)values[i];
    return sum;
}

/* One block: chunks of both lists are fetched by all threads and added in index order by one thread each, of different
 * warps, in double, so that the sums are those of the CPU to the bit. There are some thousands of values to a step,
 * which take a few microseconds; reads 4 (n + m) bytes. */
__global__ void optimizer_scalars_kernel(loom_scalars *scalars, const float *losses, int64_t n, const float *squares,
                                         int64_t m) {
    SHARED_ARRAY(float, loss_chunk, CHUNK);
    SHARED_ARRAY(float, square_chunk, CHUNK);
    SHARED_ARRAY(double, square_sum, 1);
    double sum = 0;
    for (int64_t start = 0; start < n || start < m; start += CHUNK) {
        fetch(loss_chunk, losses + start, n - start);
        fetch(square_chunk, squares + start, m - start);
        __syncthreads();
        if (threadIdx.x == 0) sum = add_in_order(sum, loss_chunk, n - start);
        if (threadIdx.x == 32) sum = add_in_order(sum, square_chunk, m - start);
        __syncthreads();
    }
    if (threadIdx.x == 32) square_sum[0] = sum;
    __syncthreads();
    if (threadIdx.x == 0) step(scalars, sum, square_sum[0]);
}

void loom_cuda_optimizer_scalars(loom_context *ctx, const struct loom_optimizer_scalars *a) {
    launch(ctx, "optimizer_scalars", optimizer_scalars_kernel, 1, THREADS, 0, a->scalars, a->losses.data,
           a->losses.shape[3], a->squares.data, a->squares.shape[3]);
}
LOOM_CUDA_NO_WORKSPACE(optimizer_scalars)
