/* --check-finite: the first tensor that is not finite. Every op runs as it is, and what it wrote is looked at on the host:
 * slow, and the same bits. */
#include "engine/trainer.h"

#include "ops/arguments.h"
#include "ops/finite.h"

#include <stdio.h>
#include <stdlib.h>

/* Whether an address is that of one of elements first .. last - 1 of memory. */
static bool is_among(const void *data, const void *memory, int64_t first, int64_t last, loom_dtype dtype) {
    const uintptr_t at = (uintptr_t)data - (uintptr_t)memory, size = loom_dtype_size(dtype);
    return first < last && at >= (uintptr_t)first * size && at < (uintptr_t)last * size;
}

/* The parameter of which an element, or its gradient or master, lies at an address; NULL: none. */
static const char *parameter_at(loom_trainer *t, const void *data) {
    const loom_layout *layout = loom_gpt_get_layout(t->gpt);
    for (int i = 0; i < layout->n_parameters; i++) {
        const loom_parameter *p = &layout->parameter[i];
        const int64_t first = p->offset - layout->bucket[p->bucket].offset, last = first + p->padded_rows * p->columns;
        const loom_shard *shard = loom_gpt_get_shard(t->gpt, p->bucket);
        const int64_t begin = first > shard->first ? first - shard->first : 0, end = last - shard->first;
        if (is_among(data, loom_gpt_bucket_parameters(t->gpt, p->bucket), first, last, t->precision.storage) ||
            is_among(data, loom_gpt_bucket_gradients(t->gpt, p->bucket), first, last, t->precision.gradient) ||
            is_among(data, shard->master, begin, end < shard->elements ? end : shard->elements, t->precision.master))
            return p->name;
    }
    return NULL;
}

/* The first element of a view that is not finite, counted row after row; -1: all are. A copy that fails is seen by the
 * step too. */
static int64_t first_not_finite(loom_device *device, const loom_view *view) {
    const int64_t *shape = view->shape, *stride = view->stride, n = shape[3];
    const size_t size = loom_dtype_size(view->dtype), bytes = (size_t)n * size;
    void *row = malloc(bytes ? bytes : 1);
    int64_t found = -1;
    for (int64_t i = 0; row && found < 0 && i < loom_view_row_count(view); i++) {
        const int64_t a = i / (shape[1] * shape[2]), b = i / shape[2] % shape[1], c = i % shape[2];
        const void *from = (const char *)view->data + (size_t)(a * stride[0] + b * stride[1] + c * stride[2]) * size;
        device->copy(device, NULL, row, from, bytes, LOOM_DEVICE_TO_HOST);
        if (!device->synchronize(device, NULL, NULL)) break;
        const int64_t first = loom_first_not_finite(row, n, view->dtype);
        if (first < n) found = i * n + first;
    }
    free(row);
    return found;
}

/* Whether it may be a parameter or the gradient of one: AdamW, and what adds up or sums, take many at once. */
static bool may_be_a_parameter(loom_op op, const loom_argument *argument) {
    return op != LOOM_OP_adamw &&
           (argument->storage == LOOM_STORED_MODEL || argument->storage == LOOM_STORED_REALS_OR_BF16);
}

/* The parameter with which an op computes, or of which it computes the gradient; NULL: none. */
static const char *parameter_of(loom_trainer *t, loom_op op, const loom_argument *list, int n) {
    const char *name = NULL;
    for (int i = 0; i < n && !name; i++)
        if (may_be_a_parameter(op, &list[i])) name = parameter_at(t, list[i].view->data);
    return name;
}

/* The outputs that ops.h has words for: sums over everything and scalars are left to the step's report. What others are
 * made of comes first. */
static void look_at(loom_context *ctx, loom_op op, const void *arguments) {
    loom_trainer *t = ctx->visitor;
    loom_argument list[LOOM_MOST_VIEWS];
    const int n = loom_op_views(op, arguments, list);
    const char *name = parameter_of(t, op, list, n);
    if (name) t->finite.parameter = name;
    for (int i = n - 1; i >= 0 && !*t->finite.found; i--) {
        const loom_view *view = list[i].view;
        const int64_t bad = list[i].written && *list[i].called ? first_not_finite(ctx->device, view) : -1;
        if (bad < 0) continue;
        if (op == LOOM_OP_adamw) { /* which updates many */
            const loom_view *all = &((const struct loom_adamw *)arguments)->parameter;
            t->finite.parameter = parameter_at(t, loom_element(all->data, bad, all->dtype));
        }
        snprintf(t->finite.found, sizeof t->finite.found, "%s of %s, at %s", list[i].called, loom_op_name(op),
                 t->finite.parameter ? t->finite.parameter : "the beginning");
    }
}

#define CHECKED(name)                                                                                                  \
    static void run_##name(loom_context *ctx, const struct loom_##name *arguments) {                                   \
        ctx->device->ops->name(ctx, arguments);                                                                        \
        look_at(ctx, LOOM_OP_##name, arguments);                                                                       \
    }
LOOM_OP_LIST(CHECKED)
#undef CHECKED

void loom_trainer_check_ops(loom_trainer *t) {
#define MEMBER(name) .name = run_##name,
    static const loom_ops ops = {LOOM_OP_LIST(MEMBER)};
#undef MEMBER
    loom_context *ctx = loom_gpt_get_context(t->gpt);
    ctx->ops = &ops;
    ctx->visitor = t;
}
