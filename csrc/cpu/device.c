#include "cpu/device.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/plural.h"
#include "base/printable.h"
#include "base/host_memory.h"
#include "cpu/processors.h"
#include "cpu/tables.h"
#include "cpu/tuned.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#    include <sanitizer/asan_interface.h>
#else
#    define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

/* The device and its own copy of the table of ops, in which the tuned ops are installed. */
typedef struct cpu {
    loom_device device;
    const loom_cpu_table *table;
    loom_ops ops;
    int processors; /* the number of processors that its threads may run on */
    int ranks;      /* the number of ranks that share the machine's memory */
    bool pinned;
    double timer; /* the time when it was started */
} cpu;

/* --------------------------------------------------------------------------------------------------------------- memory */

/* All threads touch the fresh pages once, so that later phases never wait for the kernel to clear a page. */
static bool allocate(loom_device *device, void **memory, size_t bytes, loom_error *error) {
    const size_t available = loom_memory_available();
    *memory = NULL;
    if (bytes > available)
        return loom_fail(error, "not enough memory: %.1f MiB are needed and %.1f MiB are free", (double)bytes / 0x1p20,
                         (double)available / 0x1p20);
    char *pages = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return loom_fail(error, "%.1f MiB of memory cannot be had: %s", (double)bytes / 0x1p20, strerror(errno));
    madvise(pages, bytes, MADV_HUGEPAGE);
    const int64_t step = 1 << 21, steps = ((int64_t)bytes + step - 1) / step;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t i = 0; i < steps; i++)
        memset(pages + i * step, 0, i == steps - 1 ? bytes - (size_t)(i * step) : (size_t)step);
    *memory = pages;
    return true;
}

static void release(loom_device *device, void *memory, size_t bytes) {
    (void)device;
    if (!memory) return;
    ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
    munmap(memory, bytes ? bytes : 1);
}

/* Ordinary memory is enough, because there is no other device to copy to. */
static bool allocate_host(loom_device *device, void **memory, size_t bytes, loom_error *error) {
    (void)device;
    *memory = malloc(bytes ? bytes : 1);
    return *memory ? true : loom_fail(error, "no memory: %zu bytes", bytes);
}

static void release_host(loom_device *device, void *memory, size_t bytes) {
    (void)device, (void)bytes;
    free(memory);
}

static void copy(loom_device *device, loom_stream *stream, void *to, const void *from, size_t bytes,
                 loom_copy_kind kind) {
    (void)device, (void)stream, (void)kind;
    if (bytes) memcpy(to, from, bytes);
}

static bool synchronize(loom_device *device, loom_stream *stream, loom_error *error) {
    (void)device, (void)stream, (void)error;
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ the stream
 * Work is done when it is put there: there is nothing to wait for and nothing to order. */

static bool stream_open(loom_device *device, loom_stream **stream, loom_error *error) {
    (void)device, (void)error;
    *stream = NULL;
    return true;
}

static void stream_close(loom_device *device, loom_stream *stream) {
    (void)device, (void)stream;
}

static void stream_wait_stream(loom_device *device, loom_stream *later, loom_stream *earlier) {
    (void)device, (void)later, (void)earlier;
}

static bool event_open(loom_device *device, loom_event **event, loom_error *error) {
    (void)device, (void)error;
    *event = NULL;
    return true;
}

static void event_close(loom_device *device, loom_event *event) {
    (void)device, (void)event;
}

static void event_record(loom_device *device, loom_event *event, loom_stream *stream) {
    (void)device, (void)event, (void)stream;
}

static void stream_wait_event(loom_device *device, loom_stream *stream, loom_event *event) {
    (void)device, (void)stream, (void)event;
}

static bool event_query(loom_device *device, loom_event *event, bool *reached, loom_error *error) {
    (void)device, (void)event, (void)error;
    *reached = true;
    return true;
}

static bool event_synchronize(loom_device *device, loom_event *event, loom_error *error) {
    (void)device, (void)event, (void)error;
    return true;
}

/* All work is done when its call returns, so there is nothing to wait for. */
static bool event_elapsed(loom_device *device, loom_event *first, loom_event *second, double *seconds,
                          loom_error *error) {
    (void)device, (void)first, (void)second, (void)error;
    *seconds = 0;
    return true;
}

static void timer_start(loom_device *device) {
    ((cpu *)device)->timer = loom_seconds_now();
}

static bool timer_stop(loom_device *device, double *seconds, loom_error *error) {
    (void)error;
    *seconds = loom_seconds_now() - ((cpu *)device)->timer;
    return true;
}

/* Nothing is autotuned. */
static bool tuning_get(const loom_device *device, char **text, loom_error *error) {
    (void)device, (void)error;
    *text = NULL;
    return true;
}

static bool tuning_set(loom_device *device, const char *text, loom_error *error) {
    (void)device, (void)text, (void)error;
    return true;
}

/* Matrix products of types that are converted to fp32 run at the rate of fp32. At most one thread per processor is
 * measured: threads that take turns on a processor would each measure its full rate. */
static bool peak(loom_device *device, loom_dtype dtype, double seconds, double *rate, loom_error *error) {
    const cpu *c = (const cpu *)device;
    const int at_once = device->threads < c->processors ? device->threads : c->processors;
    if (dtype == LOOM_BF16 && !(device->emulated_dtypes & 1u << LOOM_BF16))
        return loom_tuned_matmul_bf16_rate(device->implementation, at_once, seconds, rate, error);
    *rate = c->table->peak(at_once, seconds);
    return true;
}

static size_t available(const loom_device *device) {
    return loom_memory_available() / (size_t)((const cpu *)device)->ranks;
}

/* -------------------------------------------------------------------------------------------------------------- threads */

int loom_cpu_threads(const loom_device_options *options) {
    static const loom_device_options defaults;
    if (!options) options = &defaults;
    return options->threads > 0 ? options->threads
                                : loom_processors_of(options->local_rank, options->local_size).threads;
}

/* Writes, for example, "2 threads, AVX-512, matrix products by oneDNN 3.7.1, of bf16 by AMX". If there are more threads
 * than processors the description says that this is slow: they wait for each other at every barrier. */
static void describe(loom_device *device, const char *products, const char *bf16) {
    const int processors = ((const cpu *)device)->processors;
    char how[64] = "", crowded[64] = "";
    if (device->threads > processors)
        snprintf(crowded, sizeof crowded, " on %d processor%s (slow: fewer are faster)", processors,
                 loom_plural(processors));
    if (bf16)
        snprintf(how, sizeof how, ", of bf16 by %s", bf16);
    else if (device->storage == LOOM_F32)
        snprintf(how, sizeof how, ", of bf16 widened to fp32%s",
                 loom_tuned_matmul_takes(device->implementation, LOOM_F32) ? " by gptloom" : "");
    const char *instructions = ((const cpu *)device)->table->instructions;
    snprintf(device->description, sizeof device->description, "%d thread%s%s%s%s, matrix products by %s%s",
             device->threads, loom_plural(device->threads), crowded, instructions ? ", " : "",
             instructions ? instructions : "", products, how);
}

/* ------------------------------------------------------------------------------------------------------------- products */

static void arithmetic(const loom_device *device, loom_dtype storage, char *text, size_t size) {
    const char *instructions = ((const cpu *)device)->table->instructions;
    const loom_tuned_matmul *matmul = device->implementation;
    *text = '\0';
    if (instructions)
        snprintf(text, size, "%s, products by %s", instructions,
                 loom_tuned_matmul_takes(matmul, storage) ? loom_tuned_matmul_library() : "gptloom");
}

static bool choose_products(const loom_device_options *options, loom_products *products, loom_error *error) {
    const char *asked = getenv("LOOM_PRODUCTS");
    *products = options->products;
    if (*products != LOOM_PRODUCTS_AUTO || !asked || !*asked) return true;
    *products = !strcmp(asked, "own") ? LOOM_PRODUCTS_OWN : LOOM_PRODUCTS_LIBRARY;
    return !strcmp(asked, "own") || !strcmp(asked, "library") ||
           loom_fail(error, "LOOM_PRODUCTS is to be own or library, not '%s'", LOOM_PRINTABLE(asked));
}

/* --------------------------------------------------------------------------------------------------------- open, close */

static void close_device(loom_device *device) {
    if (((cpu *)device)->pinned) loom_processors_unpin();
    loom_tuned_matmul_destroy(device->implementation);
    free(device);
}

bool loom_cpu_open(loom_device **out, loom_cpu_kind kind, const loom_device_options *options, loom_error *error) {
    static const char *const names[] = {"cpu", "definition", "oracle"};
    static const loom_device_options defaults;
    if (!options) options = &defaults;
    const loom_processors processors = loom_processors_of(options->local_rank, options->local_size);
    const int threads = loom_cpu_threads(options);
    const bool oracle = kind == LOOM_CPU_ORACLE;
    const loom_cpu_table *table = kind == LOOM_CPU_TUNED ? loom_cpu_best_table(error)
                                  : oracle               ? &loom_cpu_oracle
                                                         : &loom_cpu_definition;
    if (!table) return false;
    cpu *c = calloc(1, sizeof *c);
    if (!c) return loom_fail(error, "no memory for a device");
    c->table = table;
    const char *bf16 = NULL; /* what multiplies bf16 natively, if anything does */
    char products[128] = "the definition";
    loom_device *device = &c->device;
    c->processors = CPU_COUNT(&processors.set);
    c->ranks = options->local_size > 1 ? options->local_size : 1;
    *device = (loom_device){.name = names[kind],
                            .ops = &c->ops,
                            .storage = oracle ? LOOM_F64 : LOOM_F32,
                            .statistics = oracle ? LOOM_F64 : LOOM_F32,
                            .threads = threads,
                            .host_memory = true,
                            .allocate = allocate,
                            .release = release,
                            .allocate_host = allocate_host,
                            .release_host = release_host,
                            .copy = copy,
                            .synchronize = synchronize,
                            .stream_open = stream_open,
                            .stream_close = stream_close,
                            .stream_wait_stream = stream_wait_stream,
                            .event_open = event_open,
                            .event_close = event_close,
                            .event_record = event_record,
                            .stream_wait_event = stream_wait_event,
                            .event_query = event_query,
                            .event_synchronize = event_synchronize,
                            .timed_event_open = event_open,
                            .event_elapsed = event_elapsed,
                            .timer_start = timer_start,
                            .timer_stop = timer_stop,
                            .tuning_get = tuning_get,
                            .tuning_set = tuning_set,
                            .peak = peak,
                            .arithmetic = arithmetic,
                            .available = available,
                            .available_host = available,
                            .close = close_device};
    c->ops = *table->ops();
    if (kind == LOOM_CPU_TUNED) {
        loom_tuned_matmul *matmul;
        loom_products who;
        if (!choose_products(options, &who, error) ||
            !loom_tuned_matmul_create(&matmul, threads, options, who, table->library_is_faster, error)) {
            free(c);
            return false;
        }
        device->implementation = matmul;
        bf16 = loom_tuned_matmul_bf16(matmul);
        if (matmul) table->install_products(&c->ops);
        loom_tuned_matmul_name(matmul, products, sizeof products);
        c->pinned = loom_processors_pins(&processors, threads);
        if (c->pinned) loom_processors_pin(&processors, threads);
    }
    device->emulated_dtypes = 1u << LOOM_F16 | (bf16 ? 0 : 1u << LOOM_BF16);
    describe(device, products, bf16);
    *out = device;
    return true;
}
