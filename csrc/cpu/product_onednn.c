#include "cpu/product.h"

#include "base/check.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* oneDNN's matmul primitive, one per shape, for versions 2 and 3 of its interface. Each thread has its own stream, and
 * its own memory objects for each plan, so that running a plan only sets pointers. */

struct loom_product_plan {
    loom_product shape;
    dnnl_primitive_t primitive;
    dnnl_stream_t *stream; /* the cache's streams, one per thread */
    dnnl_memory_t *memory; /* per thread: a, b, c and scratchpad */
    size_t scratch;
    struct loom_product_plan *next;
};

struct loom_product_cache {
    dnnl_engine_t engine;
    dnnl_stream_t *stream; /* one per thread */
    int threads;
    bool library_threaded;
    loom_product_plan *first;
};

const char *loom_product_library(void) {
    static char name[64];
    const dnnl_version_t *version = dnnl_version();
    snprintf(name, sizeof name, "oneDNN %d.%d.%d", version->major, version->minor, version->patch);
    return name;
}

/* oneDNN generates machine code at run time, into memory that it then makes executable. SELinux, seccomp and
 * PR_SET_MDWE can forbid that. How oneDNN reacts then depends on the shape: some products fail only when they run. So
 * permission is tested once, in advance, in the way that oneDNN asks for it. */
const char *loom_product_obstacle(void) {
    const size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return NULL; /* lack of memory is a different error */
    const bool granted = mprotect(page, bytes, PROT_READ | PROT_WRITE | PROT_EXEC) == 0;
    munmap(page, bytes);
    return granted ? NULL : "may not make memory executable here";
}

/* An instruction set is a set of bits. On processors with plain AVX-512, oneDNN accepts bf16 too, but computes in
 * fp32. */
static bool has(dnnl_cpu_isa_t instructions) {
    return (dnnl_get_effective_cpu_isa() & instructions) == instructions;
}

loom_product_bf16 loom_product_has_bf16(void) {
    return has(dnnl_cpu_isa_avx512_core_amx)    ? LOOM_PRODUCT_BF16_AMX
           : has(dnnl_cpu_isa_avx512_core_bf16) ? LOOM_PRODUCT_BF16_AVX512
           : has(dnnl_cpu_isa_avx512_core)      ? LOOM_PRODUCT_BF16_EMULATED
                                                : LOOM_PRODUCT_BF16_NONE;
}

/* ------------------------------------------------------------------------------ what differs between versions 2 and 3 */

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t descriptor;
typedef const_dnnl_memory_desc_t descriptor_reference;

static bool describe(descriptor *d, dnnl_data_type_t type, const dnnl_dims_t shape, const dnnl_dims_t stride) {
    return dnnl_memory_desc_create_with_strides(d, 2, shape, type, stride) == dnnl_success;
}

static void forget(descriptor *d) {
    if (*d) dnnl_memory_desc_destroy(*d);
}

static descriptor_reference reference(const descriptor *d) {
    return *d;
}

static size_t size_of(descriptor_reference d) {
    return dnnl_memory_desc_get_size(d);
}

static bool choose_implementation(dnnl_primitive_desc_t *chosen, dnnl_engine_t engine, const descriptor d[3],
                                  dnnl_primitive_attr_t attributes) {
    return dnnl_matmul_primitive_desc_create(chosen, engine, d[0], d[1], NULL, d[2], attributes) == dnnl_success;
}
#else
typedef dnnl_memory_desc_t descriptor;
typedef const dnnl_memory_desc_t *descriptor_reference;

static bool describe(descriptor *d, dnnl_data_type_t type, const dnnl_dims_t shape, const dnnl_dims_t stride) {
    return dnnl_memory_desc_init_by_strides(d, 2, shape, type, stride) == dnnl_success;
}

static void forget(descriptor *d) {
    (void)d;
}

static descriptor_reference reference(const descriptor *d) {
    return d;
}

static size_t size_of(descriptor_reference d) {
    return dnnl_memory_desc_get_size(d);
}

static bool choose_implementation(dnnl_primitive_desc_t *chosen, dnnl_engine_t engine, const descriptor d[3],
                                  dnnl_primitive_attr_t attributes) {
    dnnl_matmul_desc_t product;
    return dnnl_matmul_desc_init(&product, &d[0], &d[1], NULL, &d[2]) == dnnl_success &&
           dnnl_primitive_desc_create(chosen, &product, attributes, engine, NULL) == dnnl_success;
}
#endif

/* ---------------------------------------------------------------------------------------------------------------- cache */

loom_product_cache *loom_product_cache_create(int threads, bool library_threaded, loom_error *error) {
    loom_product_cache *cache = calloc(1, sizeof *cache);
    if (!cache) goto failed;
    cache->threads = threads;
    cache->library_threaded = library_threaded;
    if (!(cache->stream = calloc((size_t)threads, sizeof *cache->stream))) goto failed;
    if (dnnl_engine_create(&cache->engine, dnnl_cpu, 0) != dnnl_success) goto failed;
    for (int i = 0; i < threads; i++)
        if (dnnl_stream_create(&cache->stream[i], cache->engine, dnnl_stream_default_flags) != dnnl_success)
            goto failed;
    return cache;
failed:
    loom_fail(error, "%s could not be started", loom_product_library());
    loom_product_cache_destroy(cache);
    return NULL;
}

static void destroy_plan(const loom_product_cache *cache, loom_product_plan *plan) {
    for (int i = 0; plan->memory && i < 4 * cache->threads; i++)
        if (plan->memory[i]) dnnl_memory_destroy(plan->memory[i]);
    if (plan->primitive) dnnl_primitive_destroy(plan->primitive);
    free(plan->memory);
    free(plan);
}

void loom_product_cache_destroy(loom_product_cache *cache) {
    if (!cache) return;
    while (cache->first) {
        loom_product_plan *plan = cache->first;
        cache->first = plan->next;
        destroy_plan(cache, plan);
    }
    for (int i = 0; cache->stream && i < cache->threads; i++)
        if (cache->stream[i]) dnnl_stream_destroy(cache->stream[i]);
    if (cache->engine) dnnl_engine_destroy(cache->engine);
    free(cache->stream);
    free(cache);
}

/* The caller provides the scratchpad. C += is expressed as a sum post-op. */
static bool make_attributes(dnnl_primitive_attr_t *attributes, bool accumulate) {
    if (dnnl_primitive_attr_create(attributes) != dnnl_success) return false;
    bool ok = dnnl_primitive_attr_set_scratchpad_mode(*attributes, dnnl_scratchpad_mode_user) == dnnl_success;
    dnnl_post_ops_t after = NULL;
    if (ok && accumulate)
        ok = dnnl_post_ops_create(&after) == dnnl_success &&
#if DNNL_VERSION_MAJOR >= 3
             dnnl_post_ops_append_sum(after, 1.0f, 0, dnnl_f32) == dnnl_success &&
#else
             dnnl_post_ops_append_sum(after, 1.0f) == dnnl_success &&
#endif
             dnnl_primitive_attr_set_post_ops(*attributes, after) == dnnl_success;
    if (after) dnnl_post_ops_destroy(after);
    return ok;
}

/* oneDNN reads the number of threads for the primitive from the size that a parallel region of this thread would
 * have. */
static bool make_primitive(const loom_product_cache *cache, loom_product_plan *plan) {
    const loom_product *s = &plan->shape;
    const dnnl_dims_t shape[3] = {{s->m, s->k}, {s->k, s->n}, {s->m, s->n}};
    const dnnl_dims_t stride[3] = {{s->a_transposed ? 1 : s->lda, s->a_transposed ? s->lda : 1},
                                   {s->b_transposed ? 1 : s->ldb, s->b_transposed ? s->ldb : 1},
                                   {s->ldc, 1}};
    descriptor d[3] = {0};
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_primitive_desc_t chosen = NULL;
    bool ok = true;
    for (int i = 0; i < 3 && ok; i++)
        ok = describe(&d[i], i < 2 && s->dtype == LOOM_BF16 ? dnnl_bf16 : dnnl_f32, shape[i], stride[i]);
    ok = ok && make_attributes(&attributes, s->accumulate) &&
         choose_implementation(&chosen, cache->engine, d, attributes) &&
         dnnl_primitive_create(&plan->primitive, chosen) == dnnl_success;
    if (ok) {
        const descriptor_reference scratchpad = dnnl_primitive_desc_query_md(chosen, dnnl_query_scratchpad_md, 0);
        plan->scratch = size_of(scratchpad);
        for (int i = 0; i < 4 * cache->threads && ok; i++)
            ok = dnnl_memory_create(&plan->memory[i], i % 4 < 3 ? reference(&d[i % 4]) : scratchpad, cache->engine,
                                    DNNL_MEMORY_NONE) == dnnl_success;
    }
    if (chosen) dnnl_primitive_desc_destroy(chosen);
    if (attributes) dnnl_primitive_attr_destroy(attributes);
    for (int i = 0; i < 3; i++) forget(&d[i]);
    return ok;
}

/* Returns the existing plan, or NULL. A plan that is found moves to the front of the list, because a model asks for the
 * same few products in every layer. */
static loom_product_plan *find_plan(loom_product_cache *cache, const loom_product *shape) {
    for (loom_product_plan **link = &cache->first; *link; link = &(*link)->next) {
        loom_product_plan *plan = *link;
        if (!loom_product_same(&plan->shape, shape)) continue;
        *link = plan->next;
        plan->next = cache->first;
        return cache->first = plan;
    }
    return NULL;
}

const loom_product_plan *loom_product_prepare(loom_product_cache *cache, const loom_product *shape, loom_error *error) {
    loom_product_plan *plan = find_plan(cache, shape);
    if (plan) return plan;
    plan = calloc(1, sizeof *plan);
    if (!plan || !(plan->memory = calloc(4 * (size_t)cache->threads, sizeof *plan->memory))) {
        free(plan);
        loom_fail(error, "no memory for the plan of a matrix product");
        return NULL;
    }
    plan->shape = *shape;
    plan->stream = cache->stream;
    const int before = omp_get_max_threads();
    omp_set_num_threads(cache->library_threaded ? cache->threads : 1);
    const bool ok = make_primitive(cache, plan);
    omp_set_num_threads(before);
    if (!ok) {
        destroy_plan(cache, plan);
        loom_fail(error, "%s refuses a matrix product of (%lld,%lld) by (%lld,%lld)", loom_product_library(),
                  (long long)shape->m, (long long)shape->k, (long long)shape->k, (long long)shape->n);
        return NULL;
    }
    plan->next = cache->first;
    return cache->first = plan;
}

size_t loom_product_scratch(const loom_product_plan *plan) {
    return plan->scratch;
}

void loom_product_run(const loom_product_plan *plan, int thread, const void *a, const void *b, float *c,
                      void *scratch) {
    dnnl_memory_t *memory = plan->memory + 4 * thread;
    LOOM_CHECK(dnnl_memory_set_data_handle(memory[0], (void *)a) == dnnl_success);
    LOOM_CHECK(dnnl_memory_set_data_handle(memory[1], (void *)b) == dnnl_success);
    LOOM_CHECK(dnnl_memory_set_data_handle(memory[2], c) == dnnl_success);
    LOOM_CHECK(dnnl_memory_set_data_handle(memory[3], scratch) == dnnl_success);
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, memory[0]},
                                         {DNNL_ARG_WEIGHTS, memory[1]},
                                         {DNNL_ARG_DST, memory[2]},
                                         {DNNL_ARG_SCRATCHPAD, memory[3]}};
    LOOM_CHECK(dnnl_primitive_execute(plan->primitive, plan->stream[thread], 4, arguments) == dnnl_success);
}
