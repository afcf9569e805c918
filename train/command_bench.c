/* gptloom bench: how fast every op is, as a share of what this machine can do. */
#include "command.h"
#include "command_line.h"

#include "base/file.h"
#include "ops/case.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct settings {
    char *op, *device, *dtype, *json, *against;
    double seconds;
    int64_t threads;
} settings;

static const char *const dtype_choices[] = {"fp32", "bf16", "bf16-gradients", NULL};

static const loom_flag flags[] = {
    {.name = "op",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, op),
     .standard = "all",
     .metavar = "NAME",
     .group = "What",
     .help = "an op (matmul_forward), a file of cases (matmul: forward and backward), or all"},
    {.name = "device",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, device),
     .standard = "cpu",
     .metavar = "NAME",
     .group = "What",
     .help = "where it runs"},
    {.name = "dtype",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, dtype),
     .choices = dtype_choices,
     .standard = "fp32",
     .group = "What",
     .help = "storage of activations and weights"},
    {.name = "threads",
     .type = LOOM_FLAG_INT,
     .offset = offsetof(settings, threads),
     .min = 1,
     .max = 1024,
     .derived = "all processors",
     .metavar = "N",
     .group = "How",
     .help = "CPU threads"},
    {.name = "seconds",
     .type = LOOM_FLAG_DOUBLE,
     .offset = offsetof(settings, seconds),
     .min = 0.001,
     .max = 3600,
     .standard = "0.5",
     .metavar = "S",
     .group = "How",
     .help = "for each line, flushing of caches included"},
    {.name = "json",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, json),
     .metavar = "FILE",
     .group = "Files",
     .help = "save the figures"},
    {.name = "against",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, against),
     .metavar = "FILE",
     .group = "Files",
     .help = "show saved figures beside the new ones, and what got slower"},
};

enum { LARGEST_FILE = 16 << 20 };
/* Medians of short runs differ by a few percent from one call of the program to the next. */
static const double slower_from = 1.10;

typedef struct bench {
    const settings *mine;
    loom_device *device;
    loom_case_flush flush;
    double bandwidth, peak; /* bytes and floating-point operations per second */
    cJSON *results;         /* an array, being filled */
    cJSON *saved;           /* of --against: the whole document, or NULL */
    int slower, compared;
    char slower_list[4096]; /* lines */
} bench;

/* ------------------------------------------------------------------------------------------------------------ files */

static bool bad_file(const char *path, loom_error *error) {
    return loom_fail(error, "--against: %s: is no file that 'gptloom bench --json' wrote", path);
}

/* Reads a saved document and checks all that will be used of it. */
static bool read_saved(const char *path, cJSON **saved, loom_error *error) {
    char *text = loom_file_read_text(path, LARGEST_FILE, error);
    if (!text) return false;
    *saved = cJSON_Parse(text);
    free(text);
    const cJSON *results = cJSON_GetObjectItemCaseSensitive(*saved, "results"), *row;
    if (!cJSON_IsArray(results)) return bad_file(path, error);
    cJSON_ArrayForEach(row, results) {
        const cJSON *ms = cJSON_GetObjectItemCaseSensitive(row, "ms");
        if (!cJSON_IsNumber(ms) || !(ms->valuedouble > 0) ||
            !cJSON_IsString(cJSON_GetObjectItemCaseSensitive(row, "op")) ||
            !cJSON_IsString(cJSON_GetObjectItemCaseSensitive(row, "shape")) ||
            !cJSON_IsString(cJSON_GetObjectItemCaseSensitive(row, "dtype")))
            return bad_file(path, error);
    }
    return true;
}

static bool has_text(const cJSON *row, const char *key, const char *text) {
    return !strcmp(cJSON_GetObjectItemCaseSensitive(row, key)->valuestring, text);
}

/* The saved time of a line in ms, or 0. */
static double saved_ms(const cJSON *saved, const char *op, const char *shape, const char *dtype) {
    const cJSON *row;
    cJSON_ArrayForEach(row, cJSON_GetObjectItemCaseSensitive(saved, "results")) {
        if (has_text(row, "op", op) && has_text(row, "shape", shape) && has_text(row, "dtype", dtype))
            return cJSON_GetObjectItemCaseSensitive(row, "ms")->valuedouble;
    }
    return 0;
}

/* Refuses a place that cannot be written to before minutes are spent on measuring. */
static bool check_writable(const char *path, loom_error *error) {
    char directory[4096];
    const char *slash = strrchr(path, '/');
    const size_t length = slash ? (size_t)(slash - path) + 1 : 2;
    if (length >= sizeof directory) return loom_fail(error, "--json: the path is too long");
    memcpy(directory, slash ? path : "./", length);
    directory[length] = 0;
    if (loom_is_directory(path)) return loom_fail(error, "--json: %s: is a directory; give a file's name", path);
    if (access(directory, W_OK)) return loom_fail(error, "--json: %s: cannot be written: %s", path, strerror(errno));
    return true;
}

static bool write_results(const bench *b, loom_error *error) {
    cJSON *document = cJSON_CreateObject();
    cJSON_AddStringToObject(document, "version", LOOM_VERSION);
    cJSON_AddStringToObject(document, "device", b->device->name);
    cJSON_AddStringToObject(document, "description", b->device->description);
    cJSON_AddNumberToObject(document, "copy_gb_per_s", b->bandwidth / 1e9);
    cJSON_AddNumberToObject(document, "peak_gflop_per_s", b->peak / 1e9);
    cJSON_AddItemReferenceToObject(document, "results", b->results);
    char *text = cJSON_Print(document);
    cJSON_Delete(document);
    if (!text) return loom_fail(error, "out of memory for the figures");
    const bool written = loom_file_replace(b->mine->json, text, strlen(text), error);
    cJSON_free(text);
    return written;
}

/* ------------------------------------------------------------------------------------------------------------ lines */

static void show_header(const bench *b) {
    printf("%s (%s)\n", b->device->name, b->device->description);
    printf("copy bandwidth %.1f GB/s, arithmetic peak %.0f GFLOP/s in %s, both measured just now\n", b->bandwidth / 1e9,
           b->peak / 1e9, loom_dtype_name(b->device->storage));
    printf("median times with cold caches: %.0f MiB are written before each run\n\n", (double)b->flush.bytes / 0x1p20);
    printf("%-22s %-52s %-6s %10s %7s %7s %9s %7s", "op", "shape", "dtype", "ms", "GB/s", "of copy", "GFLOP/s",
           "of peak");
    printf(b->saved ? " %10s %6s\n" : "\n", "before", "ratio");
}

static void compare(bench *b, const char *op, const char *label, double ms) {
    const double before = saved_ms(b->saved, op, label, b->mine->dtype);
    if (before <= 0) {
        printf(" %10s", "-");
        return;
    }
    const double ratio = ms / before;
    printf(" %10.4f %6.2f", before, ratio);
    b->compared++;
    if (ratio < slower_from) return;
    b->slower++;
    const size_t used = strlen(b->slower_list);
    snprintf(b->slower_list + used, sizeof b->slower_list - used, "  %.2f times  %s %s: %.4f ms, was %.4f\n", ratio, op,
             label, ms, before);
}

static void show(bench *b, const char *op, const char *label, const loom_case_timing *t) {
    const double gigabytes = t->bytes / t->ms / 1e6, gigaflops = t->flops / t->ms / 1e6;
    printf("%-22s %-52s %-6s %10.4f %7.2f %6.0f%%", op, label, b->mine->dtype, t->ms, gigabytes,
           100 * gigabytes * 1e9 / b->bandwidth);
    if (t->flops > 0)
        printf(" %9.1f %6.0f%%", gigaflops, 100 * gigaflops * 1e9 / b->peak);
    else
        printf(" %9s %7s", "", "");
    if (b->saved) compare(b, op, label, t->ms);
    printf("\n");
    fflush(stdout);
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "op", op);
    cJSON_AddStringToObject(row, "shape", label);
    cJSON_AddStringToObject(row, "dtype", b->mine->dtype);
    cJSON_AddNumberToObject(row, "ms", t->ms);
    cJSON_AddNumberToObject(row, "runs", t->runs);
    cJSON_AddNumberToObject(row, "gb_per_s", gigabytes);
    cJSON_AddNumberToObject(row, "gflop_per_s", gigaflops);
    cJSON_AddItemToArray(b->results, row);
}

static bool time_shape(bench *b, const loom_op_cases *cases, const loom_case_shape *shape, loom_case_dtypes dtypes,
                       loom_error *error) {
    char label[LOOM_CASE_LABEL];
    loom_case_label(cases, shape, label);
    loom_case *c;
    bool ran = loom_case_open(&c, cases, shape, dtypes, 1, error);
    for (int op = 0; ran && cases->op[op].arguments; op++) {
        if (!loom_case_selected(cases, op, b->mine->op)) continue;
        const char *name = loom_op_name(cases->op[op].op);
        loom_case_timing timing;
        loom_case_result support;
        ran = loom_case_time(c, op, b->device, &b->flush, b->mine->seconds, &timing, &support, error);
        if (!ran) break;
        if (support.verdict == LOOM_CASE_UNSUPPORTED)
            printf("%-22s %-52s %-6s %s\n", name, label, b->mine->dtype, support.message);
        else
            show(b, name, label, &timing);
    }
    loom_case_close(c);
    return ran;
}

static bool time_all(bench *b, loom_error *error) {
    const loom_case_dtypes *dtypes = loom_case_dtypes_tested;
    while (strcmp(dtypes->name, b->mine->dtype)) dtypes++;
    for (const loom_op_cases *const *cases = loom_op_catalogue; *cases; cases++)
        for (int s = 0; s < (*cases)->n_shapes; s++)
            if (((*cases)->shapes[s].use & LOOM_CASE_BENCH) &&
                !time_shape(b, *cases, &(*cases)->shapes[s], *dtypes, error))
                return false;
    return true;
}

static void report(const bench *b) {
    if (!b->saved) return;
    if (b->slower)
        printf("\n%d of %d lines are slower than in %s by a tenth or more:\n%s", b->slower, b->compared,
               b->mine->against, b->slower_list);
    else
        printf("\nnone of %d lines is slower than in %s by a tenth\n", b->compared, b->mine->against);
}

/* ------------------------------------------------------------------------------------------------------------ whole */

static bool measure(bench *b, loom_error *error) {
    const loom_device_options options = {.threads = (int)b->mine->threads};
    if (!loom_case_check_name("--op", b->mine->op, error)) return false;
    if (b->mine->json && !check_writable(b->mine->json, error)) return false;
    if (b->mine->against && !read_saved(b->mine->against, &b->saved, error)) return false;
    if (!loom_device_open(&b->device, b->mine->device, &options, error)) return false;
    if (b->device->storage == LOOM_F64)
        return loom_fail(error, "--device: the oracle is not for timing; take cpu or definition");
    if (!loom_case_flush_open(&b->flush, b->device, error) ||
        !loom_case_copy_bandwidth(b->device, &b->flush, &b->bandwidth, error))
        return false;
    b->peak = loom_device_probe_peak(b->device, 0.2);
    b->results = cJSON_CreateArray();
    show_header(b);
    if (!time_all(b, error)) return false;
    report(b);
    return !b->mine->json || write_results(b, error);
}

static int run(const settings *mine) {
    bench b = {.mine = mine};
    loom_error error;
    const int code = measure(&b, &error) ? 0 : loom_command_failed(&error);
    cJSON_Delete(b.results);
    cJSON_Delete(b.saved);
    if (b.device) loom_case_flush_close(&b.flush, b.device);
    loom_device_close(b.device);
    return code;
}

int loom_command_bench(int argc, char **argv) {
    settings mine;
    loom_flag_table table = {flags, sizeof flags / sizeof *flags, &mine, {false}};
    loom_command_line line = {
        .command = "bench",
        .about =
            "Times every op at the shapes of GPT-2 124M and of a small byte-level model. Bytes are those an op must "
            "read and write at least; they and its arithmetic are told as shares of the copy bandwidth and of the "
            "arithmetic peak that are measured in the same run. Caches are flushed before every timed run.",
        .examples = "  gptloom bench --json before.json\n  gptloom bench --op matmul --against before.json\n",
        .tables = &table,
        .n_tables = 1,
    };
    memset(&mine, 0, sizeof mine);
    loom_flags_defaults(flags, table.n, &mine);
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0) code = run(&mine);
    loom_flags_free(flags, table.n, &mine);
    return code;
}
