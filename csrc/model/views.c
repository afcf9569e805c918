/* What modules see of a run: views of values, parameters and gradients in the present mode's buffers. */
#include "model/gpt.h"

#include "base/check.h"

static void *in_region(const loom_gpt *g, size_t place) {
    return (void *)((uintptr_t)g->activations + place); /* also while there is no memory */
}

static loom_view rows_at(const loom_gpt *g, void *data, int64_t columns) {
    return loom_view_2d(data, g->precision.storage, g->rows.B * g->rows.T, columns);
}

/* In generation, keys and values stand behind those of the tokens before. */
static bool is_cached(const loom_gpt *g, const loom_tape_value *v) {
    return v->cached && g->mode == LOOM_MODE_GENERATE;
}

loom_view loom_run_value(const loom_gpt *g, loom_value value) {
    const loom_tape_value *v = &g->tape.value[value];
    void *data = in_region(g, g->buffers[g->mode].value[value]);
    if (is_cached(g, v)) data = loom_element(data, g->rows.past * v->columns, g->precision.storage);
    switch (v->kind) {
    case LOOM_VALUE_ROWS: return rows_at(g, data, v->columns);
    case LOOM_VALUE_PER_ROW: return loom_view_1d(data, g->device->statistics, g->rows.B * g->rows.T);
    case LOOM_VALUE_PER_HEAD: return loom_view_3d(data, g->device->statistics, g->rows.B, v->columns, g->rows.T);
    }
    LOOM_CHECK(!"a known kind");
    return (loom_view){0};
}

loom_view loom_run_cached(const loom_gpt *g, loom_value value) {
    const loom_tape_value *v = &g->tape.value[value];
    if (!is_cached(g, v)) return loom_run_value(g, value);
    return loom_view_2d(in_region(g, g->buffers[g->mode].value[value]), g->precision.storage, g->rows.past + g->rows.T,
                        v->columns);
}

loom_view loom_run_gradient(const loom_gpt *g, loom_value value) {
    return rows_at(g, in_region(g, g->buffers[g->mode].gradient[value]), g->tape.value[value].columns);
}

/* A parameter, or its gradient: the same place in another bucket's memory, of another type. */
static loom_view in_bucket(const loom_gpt *g, void *const *buckets, loom_dtype dtype, int index) {
    const loom_parameter *p = &g->layout.parameter[index];
    void *data = loom_element(buckets[p->bucket], p->offset - g->layout.bucket[p->bucket].offset, dtype);
    return p->vector ? loom_view_1d(data, dtype, p->columns) : loom_view_2d(data, dtype, p->padded_rows, p->columns);
}

loom_view loom_run_parameter(const loom_gpt *g, int index) {
    return in_bucket(g, g->bucket_parameters, g->precision.storage, index);
}

loom_view loom_run_parameter_gradient(const loom_gpt *g, int index) {
    return in_bucket(g, g->bucket_gradients, g->precision.gradient, index);
}

bool loom_run_accumulates(const loom_gpt *g, const loom_node *n, int k) {
    return g->accumulate || n->adds_parameter >> k & 1;
}

loom_view loom_run_heads(const loom_gpt *g, loom_view rows, int part, int parts, int64_t heads) {
    const int64_t columns = rows.shape[3], T = rows.shape[2] / g->rows.B;
    loom_view view = loom_view_4d(loom_element(rows.data, part * (columns / parts), rows.dtype), rows.dtype, g->rows.B,
                                  T, heads, columns / parts / heads);
    view.stride[0] = T * columns;
    view.stride[1] = columns;
    return view;
}
