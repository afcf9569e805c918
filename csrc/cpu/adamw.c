#include "cpu/definition.h"

void LOOM_DEFINITION(adamw)(loom_exec *exec, const struct loom_adamw *a) {
    const loom_scalars_in *in = &a->scalars->in;
    const loom_scalars_out *out = &a->scalars->out;
    if (out->skip) return;
    real *restrict p = a->parameter.data, *restrict m = a->moment1.data, *restrict v = a->moment2.data;
    const real *restrict gradient = a->gradient.data;
    const real beta1 = in->beta1, beta2 = in->beta2, epsilon = in->epsilon, factor = out->gradient_factor;
    const real keep = 1 - (real)in->learning_rate * (a->decay ? (real)in->weight_decay : 0);
    const real step = (real)in->learning_rate / (real)out->bias_correction1;
    const real root_correction = (real)sqrt((real)out->bias_correction2);
    const int64_t count = a->parameter.shape[3];
#pragma omp parallel for simd schedule(static) num_threads(exec->device->threads)
    for (int64_t i = 0; i < count; i++) {
        const real g = gradient[i] * factor;
        m[i] = beta1 * m[i] + (1 - beta1) * g;
        v[i] = beta2 * v[i] + (1 - beta2) * g * g;
        p[i] = keep * p[i] - step * m[i] / ((real)sqrt(v[i]) / root_correction + epsilon);
    }
}
