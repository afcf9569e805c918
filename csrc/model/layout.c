#include "model/tape.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TENSOR_MULTIPLE = 128, MOST_IN_BLOCK = 65536 };

static int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/* What is added where while a layout is built. */
typedef struct builder {
    loom_layout *layout;
    int bucket;
    int64_t next; /* free element */
} builder;

static void add(builder *b, const loom_tape_parameter *from) {
    loom_parameter *p = &b->layout->parameter[b->layout->n_parameters++];
    *p = (loom_parameter){.vector = from->rows == 0,
                          .rows = from->rows ? from->rows : 1,
                          .columns = from->columns,
                          .padded_rows = from->rows ? from->padded_rows : 1,
                          .offset = b->next,
                          .bucket = b->bucket,
                          .decay = from->rows != 0,
                          .initial = from->initial};
    snprintf(p->name, sizeof p->name, "%s", from->name);
    b->next = round_up(b->next + p->padded_rows * p->columns, TENSOR_MULTIPLE);
    b->layout->count += p->rows * p->columns;
}

static int64_t least_common_multiple(int64_t a, int64_t b) {
    int64_t x = a, y = b;
    while (y) {
        const int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

/* Cuts it into blocks, in a multiple of LOOM_MAX_DETERMINISTIC_RANKS and of the ranks, so that each rank's share has
 * whole ones. */
static void end_bucket(builder *b, int ranks) {
    loom_bucket *bucket = &b->layout->bucket[b->bucket];
    const int64_t used = b->next - bucket->offset, shares = least_common_multiple(LOOM_MAX_DETERMINISTIC_RANKS, ranks);
    bucket->blocks = round_up(used, shares * MOST_IN_BLOCK) / MOST_IN_BLOCK;
    bucket->elements = round_up(used, bucket->blocks * TENSOR_MULTIPLE);
    b->next = bucket->offset + bucket->elements;
    if (++b->bucket < b->layout->n_buckets) b->layout->bucket[b->bucket].offset = b->next;
}

/* The tape's parameters in their order, a bucket for each scope that has some. */
bool loom_layout_of_tape(loom_layout *layout, const loom_tape *tape, int ranks, loom_error *error) {
    *layout = (loom_layout){.n_buckets = tape->n_buckets};
    layout->parameter = calloc((size_t)tape->n_parameters, sizeof *layout->parameter);
    layout->bucket = calloc((size_t)tape->n_buckets, sizeof *layout->bucket);
    if (!layout->parameter || !layout->bucket) {
        loom_layout_destroy(layout);
        return loom_fail(error, "no memory to describe a model of %d tensors", tape->n_parameters);
    }
    builder b = {.layout = layout};
    for (int s = 0; s < tape->n_scopes; s++)
        if (tape->scope[s].bucket >= 0)
            layout->bucket[tape->scope[s].bucket].layer = tape->scope[s].is_layer ? s - tape->first_layer : -1;
    for (int i = 0; i < tape->n_parameters; i++) {
        add(&b, &tape->parameter[i]);
        if (i + 1 == tape->n_parameters || tape->parameter[i + 1].scope != tape->parameter[i].scope)
            end_bucket(&b, ranks);
    }
    layout->elements = b.next;
    return true;
}

bool loom_layout_create(loom_layout *layout, const loom_gpt_config *config, int ranks, loom_error *error) {
    loom_tape tape;
    *layout = (loom_layout){0};
    if (!loom_gpt_config_check(config, error) || !loom_tape_create(&tape, config, error)) return false;
    const bool ok = loom_layout_of_tape(layout, &tape, ranks, error);
    loom_tape_destroy(&tape);
    return ok;
}

void loom_layout_destroy(loom_layout *layout) {
    free(layout->parameter);
    free(layout->bucket);
    *layout = (loom_layout){0};
}

const loom_parameter *loom_layout_find(const loom_layout *layout, const char *name) {
    for (int i = 0; i < layout->n_parameters; i++)
        if (!strcmp(layout->parameter[i].name, name)) return &layout->parameter[i];
    return NULL;
}
