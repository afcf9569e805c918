#include "plan_answer.h"

#include "base/file.h"
#include "base/plural.h"
#include "base/printable.h"
#include "graph/graph.h"
#include "progress.h"

#include <cjson/cJSON.h>
#include <string.h>

/* -------------------------------------------------------------------------------------------------------------- tables */

static void show_training(const loom_plan_answer *a) {
    const loom_train_options *o = &a->planning.options;
    const loom_precision *precision = &a->precision;
    char count[16];
    loom_format_count(count, sizeof count, (double)a->best->plan.parameters);
    printf("%s: %lld layer%s, %lld head%s, %lld channel%s, context %lld, vocabulary %lld: %s parameters\n",
           LOOM_PRINTABLE(a->planning.name), (long long)o->n_layer, loom_plural(o->n_layer), (long long)o->n_head,
           loom_plural(o->n_head), (long long)o->n_embd, loom_plural(o->n_embd), (long long)o->block_size,
           (long long)o->vocab_size, count);
    printf("  on          %s%s\n", LOOM_PRINTABLE(a->title), a->gpu ? " (by its data sheet)" : "");
    if (a->sharding.ranks > 1)
        printf("  ranks       %d, ZeRO stage %d: memory and micro-batches are each rank's\n", a->sharding.ranks,
               a->sharding.zero);
    printf("  precision   %s", loom_dtype_name(precision->storage));
    if (precision->master != precision->storage) printf(", master weights in %s", loom_dtype_name(precision->master));
    printf(", gradients of weights in %s, moments in %s", loom_dtype_name(precision->gradient),
           loom_dtype_name(precision->moment));
    printf("\n  batch       %lld x %lld tokens, %lld at a time\n", (long long)o->batch, (long long)o->seq_len,
           (long long)a->micro_batch);
}

static void show_memory(const loom_plan_answer *a) {
    char name[LOOM_RECOMPUTE_NAME];
    loom_recompute_name(&a->best->recompute, name);
    printf("\nmemory with --recompute %s%s\n", name, a->sharding.ranks > 1 ? ", of each rank" : "");
    loom_show_plan(&a->best->plan);
}

static const char *verdict(const loom_plan_answer *a, const loom_plan_policy *p) {
    if (!p->fits) return "does not fit";
    if (p != a->best || a->n_policies == 1) return "fits";
    return a->speed == LOOM_SPEED_UNKNOWN ? "fits, with the least to compute" : "fits, the fastest";
}

static void show_policies(const loom_plan_answer *a) {
    int width = 12;
    for (int i = 0; i < a->n_policies; i++) {
        char name[LOOM_RECOMPUTE_NAME];
        loom_recompute_name(&a->policy[i].recompute, name);
        if ((int)strlen(name) > width) width = (int)strlen(name);
    }
    printf("\n  %-*s %12s %12s %12s\n", width, "recompute", "MiB", "extra FLOPs", "tokens/s");
    for (int i = 0; i < a->n_policies; i++) {
        const loom_plan_policy *p = &a->policy[i];
        char name[LOOM_RECOMPUTE_NAME], speed[16] = "-";
        loom_recompute_name(&p->recompute, name);
        if (a->speed != LOOM_SPEED_UNKNOWN) loom_format_count(speed, sizeof speed, p->tokens_per_s);
        printf("  %-*s %12.1f %11.1f%% %12s  %s\n", width, name,
               (double)(p->plan.arena.used + a->device->reserved) / 0x1p20, 100 * p->extra_flops, speed, verdict(a, p));
    }
}

/* Which values sets hold. */
static void show_sets(const loom_plan_answer *a, const loom_plan_policy *p) {
    loom_graph graph;
    loom_gpt_setup setup = p->plan.setup;
    setup.precision = &a->precision;
    if (!loom_graph_make(&graph, a->planning.name, &a->planning.config, &setup, a->device, NULL)) return;
    printf("\n");
    for (int i = 0, layer = 0; i < p->recompute.n_sets; layer += p->recompute.set[i++].blocks) {
        const int blocks = p->recompute.set[i].blocks;
        char kept[800];
        loom_graph_kept(&graph, layer, kept, sizeof kept);
        printf("%s %x: ", i ? "    " : "sets", (unsigned)p->recompute.set[i].values);
        if (layer + blocks == a->planning.config.n_layer && blocks == 1 && !p->recompute.set[i].values)
            printf("the last layer keeps nothing, as all of it is still there when backward begins\n");
        else
            printf("%d layer%s keep%s %s\n", blocks, loom_plural(blocks), blocks == 1 ? "s" : "", kept);
    }
    loom_graph_free(&graph);
}

/* What the figures are made of. */
static void show_grounds(const loom_plan_answer *a) {
    const loom_gpu_assumptions *assumed = &loom_gpu_assumed;
    printf("\n");
    switch (a->speed) {
    case LOOM_SPEED_UNKNOWN: printf("speed is not known: %s\n", a->unmeasured.message); break;
    case LOOM_SPEED_MEASURED:
        printf("speed is put together from the parts of a step, measured just now on two layers\n");
        break;
    case LOOM_SPEED_PREDICTED:
        printf("speed is predicted, not measured: of the data sheet's rates, %.0f%% in matrix products, %.0f%% in "
               "attention, %.0f%% of the memory's, and %.0f us for each op at least, are assumed; so are %.0f MiB for "
               "the CUDA context and libraries, and that the card has %.1f%% less memory than its data sheet says\n",
               100 * assumed->matmul, 100 * assumed->attention, 100 * assumed->bandwidth, 1e6 * assumed->launch,
               assumed->reserved / 0x1p20, 100 * assumed->unreported);
        break;
    }
    if (a->sharding.ranks > 1)
        printf("ranks are taken to add up without loss: the time that communication takes is not modelled\n");
}

bool loom_plan_answer_show(const loom_plan_answer *a) {
    char advice[512], name[LOOM_RECOMPUTE_NAME];
    show_training(a);
    show_memory(a);
    show_policies(a);
    for (int i = 0; i < a->n_policies; i++)
        if (a->policy[i].recompute.kind == LOOM_RECOMPUTE_SETS) show_sets(a, &a->policy[i]);
    show_grounds(a);
    if (!a->best->fits) {
        loom_recompute_name(&a->best->recompute, name);
        loom_plan_advise(&a->best->plan, advice, sizeof advice);
        printf("nothing of this fits; with --recompute %s %s\n", name, advice);
    }
    return true;
}

/* ---------------------------------------------------------------------------------------------------------------- JSON */

static void add_policy(const loom_plan_answer *a, const loom_plan_policy *p, cJSON *list) {
    const loom_arena *arena = &p->plan.arena;
    char name[LOOM_RECOMPUTE_NAME];
    cJSON *line = cJSON_CreateObject(), *rows = cJSON_CreateObject();
    loom_recompute_name(&p->recompute, name);
    cJSON_AddStringToObject(line, "recompute", name);
    cJSON_AddBoolToObject(line, "fits", p->fits);
    cJSON_AddNumberToObject(line, "bytes", (double)(arena->used + a->device->reserved));
    for (int i = 0; i < arena->n_rows; i++)
        cJSON_AddNumberToObject(rows, arena->row[i].name, (double)arena->row[i].bytes);
    if (a->device->reserved) cJSON_AddNumberToObject(rows, "CUDA context and libraries", (double)a->device->reserved);
    cJSON_AddItemToObject(line, "memory", rows);
    cJSON_AddNumberToObject(line, "host_bytes", (double)p->plan.host_bytes);
    cJSON_AddNumberToObject(line, "extra_flops", p->extra_flops);
    if (a->speed != LOOM_SPEED_UNKNOWN) {
        cJSON_AddNumberToObject(line, "seconds_per_step", p->seconds);
        cJSON_AddNumberToObject(line, "tokens_per_s", p->tokens_per_s);
    }
    cJSON_AddItemToArray(list, line);
}

static void add_assumptions(cJSON *document) {
    const loom_gpu_assumptions *assumed = &loom_gpu_assumed;
    cJSON *rows = cJSON_AddObjectToObject(document, "assumed");
    cJSON_AddNumberToObject(rows, "matmul_of_peak", assumed->matmul);
    cJSON_AddNumberToObject(rows, "attention_of_peak", assumed->attention);
    cJSON_AddNumberToObject(rows, "bandwidth_of_peak", assumed->bandwidth);
    cJSON_AddNumberToObject(rows, "seconds_per_op_at_least", assumed->launch);
    cJSON_AddNumberToObject(rows, "reserved_bytes", assumed->reserved);
    cJSON_AddNumberToObject(rows, "memory_unreported", assumed->unreported);
}

/* What ranks exchange at a time: the layout's buckets, the embeddings' first; `blocks` is how many sums of squares are
 * taken of one. */
static bool add_buckets(const loom_plan_answer *a, cJSON *document, loom_error *error) {
    loom_layout layout;
    cJSON *list = cJSON_AddArrayToObject(document, "buckets");
    if (!loom_layout_create(&layout, &a->planning.config, a->sharding.ranks, error)) return false;
    for (int b = 0; b < layout.n_buckets; b++) {
        cJSON *bucket = cJSON_CreateObject();
        cJSON_AddNumberToObject(bucket, "elements", (double)layout.bucket[b].elements);
        cJSON_AddNumberToObject(bucket, "blocks", (double)layout.bucket[b].blocks);
        cJSON_AddItemToArray(list, bucket);
    }
    loom_layout_destroy(&layout);
    return true;
}

/* Seconds of the parts of a step, as loom_cost_parts says. */
static bool add_parts(const loom_plan_answer *a, cJSON *document, loom_error *error) {
    loom_cost_parts cost;
    if (!loom_cost_split(&a->seconds, &a->planning.config, &cost, error)) return false;
    cJSON *parts = cJSON_AddObjectToObject(document, "part_seconds");
    cJSON_AddNumberToObject(parts, "ends", cost.ends);
    cJSON_AddNumberToObject(parts, "forward_block", cost.forward);
    cJSON_AddNumberToObject(parts, "backward_block", cost.backward);
    cJSON_AddNumberToObject(parts, "update_element", a->seconds.update);
    return true;
}

static cJSON *document_of(const loom_plan_answer *a) {
    static const char *const speeds[] = {"unknown", "measured", "predicted"};
    const loom_train_options *o = &a->planning.options;
    char name[LOOM_RECOMPUTE_NAME];
    cJSON *document = cJSON_CreateObject();
    cJSON_AddStringToObject(document, "version", LOOM_VERSION);
    cJSON_AddStringToObject(document, "model", LOOM_PRINTABLE(a->planning.name));
    cJSON_AddNumberToObject(document, "parameters", (double)a->best->plan.parameters);
    cJSON_AddStringToObject(document, "device", LOOM_PRINTABLE(a->title));
    cJSON_AddStringToObject(document, "dtype", loom_dtype_name(a->precision.storage));
    cJSON_AddStringToObject(document, "master", loom_dtype_name(a->precision.master));
    cJSON_AddStringToObject(document, "gradient", loom_dtype_name(a->precision.gradient));
    cJSON_AddNumberToObject(document, "batch", (double)o->batch);
    cJSON_AddNumberToObject(document, "micro_batch", (double)a->micro_batch);
    cJSON_AddNumberToObject(document, "seq_len", (double)o->seq_len);
    cJSON_AddNumberToObject(document, "ranks", a->sharding.ranks);
    cJSON_AddNumberToObject(document, "zero", a->sharding.zero);
    cJSON_AddNumberToObject(document, "available_bytes", (double)(a->available + a->device->reserved));
    cJSON_AddStringToObject(document, "speed", speeds[a->speed]);
    if (a->gpu) add_assumptions(document);
    loom_recompute_name(&a->best->recompute, name);
    if (a->best->fits)
        cJSON_AddStringToObject(document, "best", name);
    else
        cJSON_AddNullToObject(document, "best");
    cJSON *list = cJSON_AddArrayToObject(document, "policies");
    for (int i = 0; i < a->n_policies; i++) add_policy(a, &a->policy[i], list);
    return document;
}

bool loom_plan_answer_write(const loom_plan_answer *a, const char *path, loom_error *error) {
    cJSON *document = document_of(a);
    bool ok = add_buckets(a, document, error) && (a->speed == LOOM_SPEED_UNKNOWN || add_parts(a, document, error));
    char *text = ok ? cJSON_Print(document) : NULL;
    cJSON_Delete(document);
    if (!ok) return false;
    if (!text) return loom_fail(error, "out of memory for the answer");
    ok = loom_output_write(path, text, strlen(text), error);
    cJSON_free(text);
    return ok;
}
