/* gptloom parity: every op's cases on a device, compared with the oracle. */
#include "command.h"
#include "command_line.h"

#include "ops/case.h"

#include <stdlib.h>
#include <string.h>

typedef struct settings {
    char *op, *device, *dtype;
    bool grad;
    int64_t threads;
    uint64_t seed;
} settings;

static const char *const dtype_choices[] = {"all", "fp32", "bf16", "bf16-gradients", NULL};

static const loom_flag flags[] = {
    {.name = "op",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, op),
     .standard = "all",
     .metavar = "NAME",
     .group = "What",
     .help = "an op (layernorm_backward), a file of cases (layernorm: forward and backward), or all"},
    {.name = "device",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, device),
     .standard = "cpu",
     .metavar = "NAME",
     .group = "What",
     .help = "what is compared with the oracle; the oracle itself is compared with the formulas of the ops"},
    {.name = "dtype",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, dtype),
     .choices = dtype_choices,
     .standard = "all",
     .group = "What",
     .help = "storage of activations and weights; bf16 keeps parameter gradients in fp32, bf16-gradients does not"},
    {.name = "grad",
     .type = LOOM_FLAG_BOOL,
     .offset = offsetof(settings, grad),
     .group = "What",
     .help = "instead: the oracle's backward ops against finite differences of its forward ops"},
    {.name = "threads",
     .type = LOOM_FLAG_INT,
     .offset = offsetof(settings, threads),
     .min = 1,
     .max = 1024,
     .derived = "all processors",
     .metavar = "N",
     .group = "How",
     .help = "CPU threads"},
    {.name = "seed",
     .type = LOOM_FLAG_INT,
     .offset = offsetof(settings, seed),
     .min = 0,
     .max = 0x1p53,
     .standard = "1",
     .metavar = "N",
     .group = "How",
     .help = "of the random inputs"},
};

/* What has been found so far. */
typedef struct tally {
    int ok, failed, unsupported;
    double worst;
    char worst_name[2 * LOOM_CASE_LABEL];
} tally;

enum { GRADIENT_SAMPLES = 64 };

static void show(tally *total, const char *op, const char *label, const char *dtypes, const loom_case_result *result) {
    static const char *const verdicts[] = {"ok", "FAILED", "not supported"};
    printf("%-22s %-52s %-14s ", op, label, dtypes);
    if (result->tensor)
        printf("%8.2g %-18s ", result->ratio, result->tensor);
    else
        printf("%8s %-18s ", "", "");
    printf("%s\n", verdicts[result->verdict]);
    if (result->verdict != LOOM_CASE_OK) printf("    %s\n", result->message);
    fflush(stdout);
    total->ok += result->verdict == LOOM_CASE_OK;
    total->failed += result->verdict == LOOM_CASE_FAILED;
    total->unsupported += result->verdict == LOOM_CASE_UNSUPPORTED;
    if (result->tensor && (total->worst_name[0] == 0 || result->ratio > total->worst)) {
        total->worst = result->ratio;
        snprintf(total->worst_name, sizeof total->worst_name, "%s of %s %s %s", result->tensor, op, label, dtypes);
    }
}

/* One shape, all its selected ops. */
static bool check_shape(const settings *mine, const loom_op_cases *cases, const loom_case_shape *shape,
                        loom_case_dtypes dtypes, loom_device *device, loom_device *oracle, tally *total,
                        loom_error *error) {
    char label[LOOM_CASE_LABEL];
    loom_case_label(cases, shape, label);
    loom_case *c;
    bool ran = loom_case_open(&c, cases, shape, dtypes, mine->seed, error);
    for (int op = 0; ran && cases->op[op].arguments; op++) {
        const bool has_reference = device != oracle || cases->op[op].formula;
        if (!loom_case_selected(cases, op, mine->op) || !loom_case_dtypes_matter(c, op) || !has_reference) continue;
        loom_case_result result;
        ran = loom_case_check(c, op, device, oracle, &result, error);
        if (ran) show(total, loom_op_name(cases->op[op].op), label, dtypes.name, &result);
    }
    loom_case_close(c);
    return ran;
}

/* All gradients of one shape. */
static bool check_gradients(const settings *mine, const loom_op_cases *cases, const loom_case_shape *shape,
                            loom_device *oracle, tally *total, loom_error *error) {
    char label[LOOM_CASE_LABEL];
    loom_case_label(cases, shape, label);
    loom_case *c;
    loom_case_result result;
    const bool ran = loom_case_open(&c, cases, shape, loom_case_dtypes_oracle, mine->seed, error) &&
                     loom_case_check_gradients(c, oracle, GRADIENT_SAMPLES, &result, error);
    if (ran) show(total, cases->name, label, loom_case_dtypes_oracle.name, &result);
    loom_case_close(c);
    return ran;
}

static bool is_selected(const settings *mine, const loom_op_cases *cases) {
    for (int op = 0; cases->op[op].arguments; op++)
        if (loom_case_selected(cases, op, mine->op)) return true;
    return false;
}

static bool check_file(const settings *mine, const loom_op_cases *cases, loom_device *device, loom_device *oracle,
                       tally *total, loom_error *error) {
    for (int s = 0; s < cases->n_shapes; s++) {
        const loom_case_shape *shape = &cases->shapes[s];
        if (mine->grad) {
            if ((shape->use & LOOM_CASE_GRADIENT) && !check_gradients(mine, cases, shape, oracle, total, error))
                return false;
            continue;
        }
        if (!(shape->use & LOOM_CASE_PARITY)) continue;
        if (device == oracle) {
            if (!check_shape(mine, cases, shape, loom_case_dtypes_oracle, device, oracle, total, error)) return false;
            continue;
        }
        for (const loom_case_dtypes *dtypes = loom_case_dtypes_tested; dtypes->name; dtypes++)
            if ((!strcmp(mine->dtype, "all") || !strcmp(mine->dtype, dtypes->name)) &&
                !check_shape(mine, cases, shape, *dtypes, device, oracle, total, error))
                return false;
    }
    return true;
}

static int report(const tally *total) {
    printf("\n%d ok, %d failed, %d not supported", total->ok, total->failed, total->unsupported);
    if (total->worst_name[0]) printf("; nearest to its bound: %.2g of it, %s", total->worst, total->worst_name);
    printf("\n");
    return total->failed ? 1 : 0;
}

static int parity(const settings *mine) {
    loom_error error;
    loom_device *oracle = NULL, *device = NULL;
    const loom_device_options options = {.threads = (int)mine->threads};
    tally total = {0};
    bool ran = loom_case_check_name("--op", mine->op, &error) &&
               loom_device_open(&device, mine->device, &options, &error);
    if (ran && device->storage == LOOM_F64)
        oracle = device;
    else
        ran = ran && loom_device_open(&oracle, "oracle", &options, &error);
    if (ran) {
        if (mine->grad)
            printf("the oracle's gradients against finite differences\n");
        else
            printf("%s (%s) against %s\n", device->name, device->description,
                   device == oracle ? "the formulas" : "the oracle");
        printf("\n%-22s %-52s %-14s %8s %-18s\n", "op", "shape", "dtypes", "of bound", "worst output");
    }
    for (const loom_op_cases *const *cases = loom_op_catalogue; ran && *cases; cases++)
        if (is_selected(mine, *cases)) ran = check_file(mine, *cases, device, oracle, &total, &error);
    const int code = ran ? report(&total) : loom_command_failed(&error);
    if (oracle != device) loom_device_close(oracle);
    loom_device_close(device);
    return code;
}

int loom_command_parity(int argc, char **argv) {
    settings mine;
    loom_flag_table table = {flags, sizeof flags / sizeof *flags, &mine, {false}};
    loom_command_line line = {
        .command = "parity",
        .about = "Runs every op's cases on a device and compares the outputs with the oracle, the same ops in double "
                 "precision. A line tells how much of its error bound the worst output takes (1 is all of it). Inputs, "
                 "memory around outputs and the workspace are checked too, and that a second run gives the same bits. "
                 "The exit code is 1 if any case fails.",
        .examples = "  gptloom parity\n  gptloom parity --op layernorm --dtype bf16\n  gptloom parity --grad\n",
        .tables = &table,
        .n_tables = 1,
    };
    memset(&mine, 0, sizeof mine);
    loom_flags_defaults(flags, table.n, &mine);
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0) code = parity(&mine);
    loom_flags_free(flags, table.n, &mine);
    return code;
}
