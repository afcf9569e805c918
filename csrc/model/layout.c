#include "gptloom/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TENSOR_MULTIPLE = 128, TENSORS_PER_BLOCK = 12 };

enum { MOST_IN_BLOCK = 65536 };

static int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/* What is added where while a layout is built. */
typedef struct builder {
    loom_layout *layout;
    int bucket;
    int64_t next; /* free element */
} builder;

static void add(builder *b, const char *prefix, const char *name, int64_t rows, int64_t columns, int64_t padded_rows) {
    loom_parameter *p = &b->layout->parameter[b->layout->n_parameters++];
    snprintf(p->name, sizeof p->name, "%s%s", prefix, name);
    p->vector = rows == 0;
    p->rows = p->vector ? 1 : rows;
    p->columns = columns;
    p->padded_rows = p->vector ? 1 : padded_rows;
    p->offset = b->next;
    p->bucket = b->bucket;
    p->decay = !p->vector;
    b->next = round_up(b->next + p->padded_rows * columns, TENSOR_MULTIPLE);
    b->layout->count += p->rows * columns;
}

static void add_matrix(builder *b, const char *prefix, const char *name, int64_t rows, int64_t columns) {
    add(b, prefix, name, rows, columns, rows);
}

static void add_vector(builder *b, const char *prefix, const char *name, int64_t n) {
    add(b, prefix, name, 0, n, 1);
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

/* Cuts it into blocks, in a multiple of LOOM_MOST_ALIKE and of the ranks, so that each rank's share has whole ones. */
static void end_bucket(builder *b, int ranks) {
    loom_bucket *bucket = &b->layout->bucket[b->bucket];
    const int64_t used = b->next - bucket->offset, shares = least_common_multiple(LOOM_MOST_ALIKE, ranks);
    bucket->blocks = round_up(used, shares * MOST_IN_BLOCK) / MOST_IN_BLOCK;
    bucket->elements = round_up(used, bucket->blocks * TENSOR_MULTIPLE);
    b->next = bucket->offset + bucket->elements;
    if (++b->bucket < b->layout->n_buckets) b->layout->bucket[b->bucket].offset = b->next;
}

/* One block's tensors, in the order of its forward. csrc/model/gpt.c finds them by this order. */
static void add_block(builder *b, int64_t l, int64_t C) {
    char prefix[40];
    snprintf(prefix, sizeof prefix, "transformer.h.%d.", (int)l);
    add_vector(b, prefix, "ln_1.weight", C);
    add_vector(b, prefix, "ln_1.bias", C);
    add_matrix(b, prefix, "attn.c_attn.weight", C, 3 * C);
    add_vector(b, prefix, "attn.c_attn.bias", 3 * C);
    add_matrix(b, prefix, "attn.c_proj.weight", C, C);
    add_vector(b, prefix, "attn.c_proj.bias", C);
    add_vector(b, prefix, "ln_2.weight", C);
    add_vector(b, prefix, "ln_2.bias", C);
    add_matrix(b, prefix, "mlp.c_fc.weight", C, 4 * C);
    add_vector(b, prefix, "mlp.c_fc.bias", 4 * C);
    add_matrix(b, prefix, "mlp.c_proj.weight", 4 * C, C);
    add_vector(b, prefix, "mlp.c_proj.bias", C);
}

bool loom_layout_create(loom_layout *layout, const loom_gpt_config *config, int ranks, loom_error *error) {
    *layout = (loom_layout){0};
    if (!loom_gpt_config_check(config, error)) return false;
    const int64_t C = config->n_embd, L = config->n_layer;
    layout->n_buckets = (int)L + 2;
    layout->parameter = calloc((size_t)(L * TENSORS_PER_BLOCK + 4), sizeof *layout->parameter);
    layout->bucket = calloc((size_t)layout->n_buckets, sizeof *layout->bucket);
    if (!layout->parameter || !layout->bucket) {
        loom_layout_destroy(layout);
        return loom_fail(error, "no memory to describe a model of %lld layers", (long long)L);
    }
    builder b = {.layout = layout};
    add(&b, "transformer.", "wte.weight", config->vocab_size, C, loom_gpt_padded_vocabulary(config));
    add_matrix(&b, "transformer.", "wpe.weight", config->block_size, C);
    end_bucket(&b, ranks);
    for (int64_t l = 0; l < L; l++) {
        add_block(&b, l, C);
        end_bucket(&b, ranks);
    }
    add_vector(&b, "transformer.", "ln_f.weight", C);
    add_vector(&b, "transformer.", "ln_f.bias", C);
    end_bucket(&b, ranks);
    layout->elements = b.next;
    return true;
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
