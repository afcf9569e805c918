/* gptloom bench: how fast every op is, as a share of what this machine can do. */
#include "command.h"
#include "command_cases.h"
#include "command_line.h"

#include "base/file.h"
#include "base/printable.h"
#include "cases/case.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct settings {
    loom_case_choice choice;
    char *dtype, *size, *json, *against;
    double seconds, flush;
} settings;

static const char *const sizes[] = {"small", "large", NULL};

static const loom_flag flags[] = {
    {.name = "dtype",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, dtype),
     .choices = loom_case_dtype_names + 1,
     .default_value = "fp32",
     .group = "What",
     .help = "storage of activations and weights"},
    {.name = "size",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, size),
     .choices = sizes,
     .derived = "large on a GPU",
     .group = "What",
     .help = "shapes of a few hundred tokens, or of 16 sequences of 1024"},
    {.name = "seconds",
     .type = LOOM_FLAG_DOUBLE,
     .offset = offsetof(settings, seconds),
     .min = 0.001,
     .max = 3600,
     .default_value = "0.5",
     .metavar = "S",
     .group = "How",
     .help = "for each line, flushing of caches included"},
    {.name = "flush",
     .type = LOOM_FLAG_SIZE,
     .offset = offsetof(settings, flush),
     .min = 1,
     .max = 0x1p40,
     .derived = "what surely exceeds the cache",
     .metavar = "SIZE",
     .group = "How",
     .help = "memory that is written before each timed run, so that it begins with cold caches"},
    {.name = "json",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, json),
     .metavar = "FILE",
     .group = "Files",
     .help = "save the figures, line by line; - for stdout at the end, and the table goes to stderr"},
    {.name = "against",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, against),
     .metavar = "FILE",
     .group = "Files",
     .help = "show saved figures beside the new ones, and what got slower or faster"},
};

enum { LARGEST_FILE = 16 << 20 };
/* Medians of short runs differ by a few percent from one call of the program to the next. */
static const double noticeable = 1.10;

/* Lines that differ from the saved ones. */
typedef struct change_list {
    int n;
    char text[4096];
} change_list;

typedef struct bench {
    const settings *mine;
    FILE *out;           /* of the table */
    loom_device *device; /* NULL until it is open */
    loom_device *rival;  /* the same, with cuDNN's attention; or NULL */
    const loom_case_dtypes *dtypes;
    unsigned use; /* of the shapes: LOOM_CASE_BENCH or LOOM_CASE_BENCH_LARGE */
    loom_case_flush flush;
    double bandwidth, peak; /* bytes and floating-point operations per second */
    cJSON *results;         /* an array, being filled */
    cJSON *saved;           /* of --against: the whole document, or NULL */
    int compared;
    change_list slower, faster;
} bench;

/* ------------------------------------------------------------------------------------------------------------ files */

static bool bad_file(const char *path, loom_error *error) {
    return loom_fail(error, "--against: %s: is no file that 'gptloom bench --json' wrote", path);
}

/* What tells lines apart. */
static const char *const row_keys[] = {"op", "shape", "dtype", "by"};
enum { ROW_KEYS = 4 };

bool loom_bench_read(const char *path, cJSON **saved, loom_error *error) {
    char *text = loom_file_read_text(path, LARGEST_FILE, error);
    if (!text) return false;
    *saved = cJSON_Parse(text);
    free(text);
    const cJSON *results = cJSON_GetObjectItemCaseSensitive(*saved, "results"), *row;
    if (!cJSON_IsArray(results)) return bad_file(path, error);
    cJSON_ArrayForEach(row, results) {
        const cJSON *ms = cJSON_GetObjectItemCaseSensitive(row, "ms");
        if (!cJSON_IsNumber(ms) || !(ms->valuedouble > 0)) return bad_file(path, error);
        for (int i = 0; i < ROW_KEYS; i++)
            if (!cJSON_IsString(cJSON_GetObjectItemCaseSensitive(row, row_keys[i]))) return bad_file(path, error);
    }
    return true;
}

/* The saved time, in ms, of a line with these values of row_keys; or 0. */
static double saved_ms(const cJSON *saved, const char *const values[ROW_KEYS]) {
    const cJSON *row;
    cJSON_ArrayForEach(row, cJSON_GetObjectItemCaseSensitive(saved, "results")) {
        bool same = true;
        for (int i = 0; i < ROW_KEYS; i++)
            same = same && !strcmp(cJSON_GetObjectItemCaseSensitive(row, row_keys[i])->valuestring, values[i]);
        if (same) return cJSON_GetObjectItemCaseSensitive(row, "ms")->valuedouble;
    }
    return 0;
}

static bool to_stdout(const settings *mine) {
    return mine->json && loom_output_is_stdout(mine->json);
}

static bool write_results(const bench *b, loom_error *error) {
    cJSON *document = cJSON_CreateObject();
    cJSON_AddStringToObject(document, "version", LOOM_VERSION);
    cJSON_AddStringToObject(document, "device", b->device->name);
    cJSON_AddStringToObject(document, "description", LOOM_PRINTABLE(b->device->description));
    cJSON_AddNumberToObject(document, "copy_gb_per_s", b->bandwidth / 1e9);
    cJSON_AddNumberToObject(document, "peak_tflop_per_s", b->peak / 1e12);
    cJSON_AddItemReferenceToObject(document, "results", b->results);
    char *text = cJSON_Print(document);
    cJSON_Delete(document);
    if (!text) return loom_fail(error, "out of memory for the figures");
    const bool written = loom_output_write(b->mine->json, text, strlen(text), error);
    cJSON_free(text);
    return written;
}

/* ------------------------------------------------------------------------------------------------------------ lines */

static void show_header(const bench *b) {
    fprintf(b->out, "%s (%s)\n", b->device->name, LOOM_PRINTABLE(b->device->description));
    fprintf(b->out, "copy bandwidth %.1f GB/s, matrix rate %.3f TFLOP/s in %s, both measured just now\n",
            b->bandwidth / 1e9, b->peak / 1e12, loom_dtype_name(b->dtypes->storage));
    fprintf(b->out, "median times with cold caches: %.0f MiB are written before each run\n",
            (double)b->flush.bytes / 0x1p20);
    if (!b->device->host_memory) fprintf(b->out, "matrix products are cuBLASLt's, all else is our own kernels\n");
    fprintf(b->out, "\n%-22s %-50s %-6s %-8s %10s %8s %7s %9s %7s", "op", "shape", "dtype", "by", "ms", "GB/s",
            "of copy", "TFLOP/s", "of peak");
    fprintf(b->out, b->saved ? " %10s %6s\n" : "\n", "before", "ratio");
}

static void add_change(change_list *list, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add_change(change_list *list, const char *format, ...) {
    const size_t used = strlen(list->text);
    list->n++;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(list->text + used, sizeof list->text - used, format, arguments);
    va_end(arguments);
}

static void compare(bench *b, const char *const row[ROW_KEYS], double ms) {
    const double before = saved_ms(b->saved, row);
    if (before <= 0) {
        fprintf(b->out, " %10s", "-");
        return;
    }
    const double ratio = ms / before;
    fprintf(b->out, " %10.4f %6.2f", before, ratio);
    b->compared++;
    if (ratio < noticeable && ratio > 1 / noticeable) return;
    add_change(ratio > 1 ? &b->slower : &b->faster, "  %.2f times the time  %s %s %s: %.4f ms, was %.4f\n", ratio,
               row[0], row[1], row[3], ms, before);
}

static void keep(bench *b, const char *const row[ROW_KEYS], const loom_case_timing *t) {
    cJSON *line = cJSON_CreateObject();
    for (int i = 0; i < ROW_KEYS; i++) cJSON_AddStringToObject(line, row_keys[i], row[i]);
    cJSON_AddNumberToObject(line, "ms", t->ms);
    cJSON_AddNumberToObject(line, "runs", t->runs);
    cJSON_AddNumberToObject(line, "gb_per_s", t->bytes / t->ms / 1e6);
    cJSON_AddNumberToObject(line, "of_copy", t->bytes / t->ms * 1e3 / b->bandwidth);
    if (t->flops > 0) {
        cJSON_AddNumberToObject(line, "tflop_per_s", t->flops / t->ms / 1e9);
        cJSON_AddNumberToObject(line, "of_peak", t->flops / t->ms * 1e3 / b->peak);
    }
    cJSON_AddItemToArray(b->results, line);
}

/* The saved file holds every line as soon as it is measured: a run that is ended early leaves what it found. */
static bool show(bench *b, const char *const row[ROW_KEYS], const loom_case_timing *t, loom_error *error) {
    fprintf(b->out, "%-22s %-50s %-6s %-8s %10.4f %8.2f %6.0f%%", row[0], row[1], row[2], row[3], t->ms,
            t->bytes / t->ms / 1e6, 100 * t->bytes / t->ms * 1e3 / b->bandwidth);
    if (t->flops > 0)
        fprintf(b->out, " %9.3f %6.0f%%", t->flops / t->ms / 1e9, 100 * t->flops / t->ms * 1e3 / b->peak);
    else
        fprintf(b->out, " %9s %7s", "", "");
    if (b->saved) compare(b, row, t->ms);
    fprintf(b->out, "\n");
    fflush(b->out);
    keep(b, row, t);
    return !b->mine->json || loom_output_is_stream(b->mine->json) || write_results(b, error);
}

/* Whose code runs an op on our device. */
static const char *maker(const bench *b, loom_op op) {
    const bool product = !strncmp(loom_op_name(op), "matmul", 6);
    return product && !b->device->host_memory ? "cublaslt" : "ours";
}

static bool is_attention(loom_op op) {
    return op == LOOM_OP_attention_forward || op == LOOM_OP_attention_backward;
}

static bool time_line(bench *b, loom_case *c, const loom_op_cases *cases, int op, const char *label,
                      loom_device *device, const char *by, loom_error *error) {
    const char *const row[ROW_KEYS] = {loom_op_name(cases->op[op].op), label, b->dtypes->name, by};
    loom_case_timing timing;
    loom_case_result support;
    if (!loom_case_time(c, op, device, &b->flush, b->mine->seconds, &timing, &support, error)) return false;
    if (support.verdict == LOOM_CASE_OK) return show(b, row, &timing, error);
    fprintf(b->out, "%-22s %-50s %-6s %-8s %s\n", row[0], row[1], row[2], row[3], LOOM_PRINTABLE(support.message));
    return true;
}

static bool time_shape(bench *b, const loom_op_cases *cases, const loom_case_shape *shape, loom_error *error) {
    char label[LOOM_CASE_LABEL];
    loom_case_label(cases, shape, label);
    loom_case *c;
    bool ran = loom_case_open(&c, cases, shape, *b->dtypes, 1, error);
    for (int i = 0; ran && cases->op[i].arguments; i++) {
        const loom_op op = cases->op[i].op;
        if (!loom_case_selected(cases, i, b->mine->choice.op)) continue;
        ran = time_line(b, c, cases, i, label, b->device, maker(b, op), error) &&
              (!b->rival || !is_attention(op) || time_line(b, c, cases, i, label, b->rival, "cudnn", error));
    }
    loom_case_close(c);
    return ran;
}

static bool time_all(bench *b, loom_error *error) {
    for (const loom_op_cases *const *cases = loom_op_catalogue; *cases; cases++)
        for (int s = 0; s < (*cases)->n_shapes; s++)
            if (loom_case_is_for(&(*cases)->shapes[s], b->use, true) &&
                !time_shape(b, *cases, &(*cases)->shapes[s], error))
                return false;
    return true;
}

static void report(const bench *b) {
    if (!b->saved) return;
    fprintf(b->out, "\nof %d lines also in %s, %d take longer by a tenth or more%s\n%s", b->compared,
            LOOM_PRINTABLE(b->mine->against), b->slower.n, b->slower.n ? ":" : "", b->slower.text);
    fprintf(b->out, "and %d got faster likewise%s\n%s", b->faster.n, b->faster.n ? ":" : "", b->faster.text);
}

/* ------------------------------------------------------------------------------------------------------------ whole */

static bool times_attention(const loom_case_choice *choice) {
    for (const loom_op_cases *const *cases = loom_op_catalogue; *cases; cases++)
        for (int i = 0; (*cases)->op[i].arguments; i++)
            if (is_attention((*cases)->op[i].op) && loom_case_selected(*cases, i, choice->op)) return true;
    return false;
}

/* Opens the device once more, with cuDNN's attention, or says why that is not timed. */
static void open_rival(bench *b) {
    static const char flag[] = "--attention cudnn: "; /* which is not one of bench */
    loom_error why;
    if (loom_case_choice_open(&b->mine->choice, true, &b->rival, &why)) return;
    const bool named = !strncmp(why.message, flag, sizeof flag - 1);
    fprintf(b->out, "attention by cuDNN is left out: %s\n", why.message + (named ? sizeof flag - 1 : 0));
}

static bool open_devices(bench *b, loom_error *error) {
    const loom_case_choice *choice = &b->mine->choice;
    if (!loom_case_choice_open(choice, false, &b->device, error)) return false;
    if (b->device->storage == LOOM_F64)
        return loom_fail(error, "--device: the oracle is not for timing; take cpu, cuda or definition");
    if (!b->device->host_memory && times_attention(choice)) open_rival(b);
    return true;
}

/* Where the saved figures were measured: a member of the document, or "?" where it does not say. */
static const char *saved_text(const bench *b, const char *member) {
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(b->saved, member));
    return text ? text : "?";
}

static void warn_of_other_device(const bench *b) {
    const char *name = saved_text(b, "device"), *description = saved_text(b, "description");
    if (!strcmp(name, b->device->name) && !strcmp(description, b->device->description)) return;
    fprintf(stderr, "gptloom: warning: --against: %s was measured on another device: %s (%s), not %s (%s)\n",
            LOOM_PRINTABLE(b->mine->against), LOOM_PRINTABLE(name), LOOM_PRINTABLE(description), b->device->name,
            LOOM_PRINTABLE(b->device->description));
}

static void choose_shapes(bench *b) {
    const char *size = b->mine->size;
    const bool large = size ? !strcmp(size, "large") : !b->device->host_memory;
    b->use = large ? LOOM_CASE_BENCH_LARGE : LOOM_CASE_BENCH;
    b->dtypes = loom_case_dtypes_tested;
    while (strcmp(b->dtypes->name, b->mine->dtype)) b->dtypes++;
}

static bool measure(bench *b, loom_error *error) {
    const settings *mine = b->mine;
    if (mine->json && !loom_output_check(mine->json, error)) return false;
    if (mine->against && !loom_bench_read(mine->against, &b->saved, error)) return false;
    if (!open_devices(b, error)) return false;
    if (b->saved) warn_of_other_device(b);
    choose_shapes(b);
    if (!loom_case_flush_open(&b->flush, b->device, (size_t)mine->flush, error) ||
        !loom_case_copy_bandwidth(b->device, &b->flush, &b->bandwidth, error) ||
        !b->device->peak(b->device, b->dtypes->storage, 0.2, &b->peak, error))
        return false;
    b->results = cJSON_CreateArray();
    show_header(b);
    if (!time_all(b, error)) return false;
    report(b);
    return !mine->json || write_results(b, error);
}

static int run(const settings *mine) {
    bench b = {.mine = mine, .out = to_stdout(mine) ? stderr : stdout};
    loom_error error;
    const int code = measure(&b, &error) ? 0 : loom_command_failed(&error);
    cJSON_Delete(b.results);
    cJSON_Delete(b.saved);
    if (b.device) loom_case_flush_close(&b.flush, b.device);
    loom_device_close(b.rival);
    loom_device_close(b.device);
    return code;
}

int loom_command_bench(int argc, char **argv) {
    settings mine;
    loom_flag_table tables[] = {
        {loom_case_choice_flags, LOOM_CASE_CHOICE_FLAGS, &mine.choice, {false}},
        {flags, sizeof flags / sizeof *flags, &mine, {false}},
    };
    const int n_tables = sizeof tables / sizeof *tables;
    loom_command_line line = {
        .command = "bench",
        .about =
            "Times every op at the shapes of GPT-2 124M and of a small byte-level model. Bytes are those an op must "
            "read and write at least; they and its arithmetic are given as shares of the copy bandwidth and of the "
            "rate of large matrix products that are measured in the same run. Caches are flushed before every timed "
            "run. On a GPU, cuDNN's attention is timed beside ours where cuDNN is installed.",
        .examples = "  gptloom bench --json before.json\n  gptloom bench --op matmul --against before.json\n"
                    "  gptloom bench --device cuda --dtype bf16\n",
        .tables = tables,
        .n_tables = n_tables,
    };
    memset(&mine, 0, sizeof mine);
    for (int i = 0; i < n_tables; i++) loom_flags_defaults(tables[i].flags, tables[i].n, tables[i].target);
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0) code = run(&mine);
    for (int i = 0; i < n_tables; i++) loom_flags_free(tables[i].flags, tables[i].n, tables[i].target);
    return code;
}
