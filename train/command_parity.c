/* gptloom parity: every op's cases on a device, compared with the oracle. */
#include "command.h"
#include "command_cases.h"
#include "command_line.h"

#include "cases/case.h"

#include "base/printable.h"

#include <inttypes.h>
#include <string.h>

typedef struct settings {
    loom_case_choice choice;
    char *dtype;
    bool grad, full, first_failure;
    int attention; /* in `attentions` */
    uint64_t seed;
} settings;

static const char *const attentions[] = {"own", "cudnn", NULL};

static const loom_flag flags[] = {
    {.name = "dtype",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, dtype),
     .choices = loom_case_dtype_names,
     .default_value = "all",
     .group = "What",
     .help = "storage of activations and weights; bf16 keeps parameter gradients in fp32, bf16-gradients does not"},
    {.name = "full",
     .type = LOOM_FLAG_BOOL,
     .offset = offsetof(settings, full),
     .group = "What",
     .help = "the slow shapes too"},
    {.name = "grad",
     .type = LOOM_FLAG_BOOL,
     .offset = offsetof(settings, grad),
     .group = "What",
     .help = "instead: the oracle's backward ops against finite differences of its forward ops"},
    {.name = "attention",
     .type = LOOM_FLAG_CHOICE,
     .offset = offsetof(settings, attention),
     .choices = attentions,
     .default_value = "own",
     .group = "What",
     .help = "by our own kernels, or by cuDNN; device cuda only"},
    {.name = "seed",
     .type = LOOM_FLAG_INT,
     .offset = offsetof(settings, seed),
     .min = 0,
     .max = 0x1p53,
     .default_value = "1",
     .metavar = "N",
     .group = "How",
     .help = "of the random inputs"},
    {.name = "first-failure",
     .type = LOOM_FLAG_BOOL,
     .offset = offsetof(settings, first_failure),
     .group = "How",
     .help = "stop at the first case that fails"},
};

/* What has been found so far. */
typedef struct tally {
    int ok, failed, unsupported;
    double worst;
    char worst_name[2 * LOOM_CASE_LABEL];
    uint64_t bits; /* of all outputs */
} tally;

enum { GRADIENT_SAMPLES = 64 };

/* What a run of the program works with. */
typedef struct parity {
    const settings *mine;
    loom_device *device, *oracle; /* the same when the oracle is compared with formulas */
    tally total;
} parity;

/* Whether enough has been seen. */
static bool is_over(const parity *p) {
    return p->mine->first_failure && p->total.failed;
}

static void show(tally *total, const char *op, const char *label, const char *dtypes, const loom_case_result *result) {
    static const char *const verdicts[] = {"ok", "FAILED", "not supported"};
    printf("%-22s %-52s %-14s ", op, label, dtypes);
    if (result->tensor)
        printf("%8.2g %-18s ", result->ratio, result->tensor);
    else
        printf("%8s %-18s ", "", "");
    printf("%s\n", verdicts[result->verdict]);
    if (result->verdict != LOOM_CASE_OK) printf("    %s\n", LOOM_PRINTABLE(result->message));
    fflush(stdout);
    total->ok += result->verdict == LOOM_CASE_OK;
    total->failed += result->verdict == LOOM_CASE_FAILED;
    total->unsupported += result->verdict == LOOM_CASE_UNSUPPORTED;
    total->bits = (total->bits << 1 | total->bits >> 63) ^ result->bits;
    if (result->tensor && (total->worst_name[0] == 0 || result->ratio > total->worst)) {
        total->worst = result->ratio;
        snprintf(total->worst_name, sizeof total->worst_name, "%s of %s %s %s", result->tensor, op, label, dtypes);
    }
}

/* One shape, all its selected ops. */
static bool check_shape(parity *p, const loom_op_cases *cases, const loom_case_shape *shape, loom_case_dtypes dtypes,
                        loom_error *error) {
    char label[LOOM_CASE_LABEL];
    loom_case_label(cases, shape, label);
    loom_case *c;
    bool ran = loom_case_open(&c, cases, shape, dtypes, p->mine->seed, error);
    for (int op = 0; ran && cases->op[op].arguments && !is_over(p); op++) {
        const bool has_reference = p->device != p->oracle || cases->op[op].formula;
        const bool selected = loom_case_selected(cases, op, p->mine->choice.op);
        if (!selected || !loom_case_dtypes_matter(c, op) || !has_reference) continue;
        loom_case_result result;
        ran = loom_case_check(c, op, p->device, p->oracle, &result, error);
        if (ran) show(&p->total, loom_op_name(cases->op[op].op), label, dtypes.name, &result);
    }
    loom_case_close(c);
    return ran;
}

/* All gradients of one shape. */
static bool check_gradients(parity *p, const loom_op_cases *cases, const loom_case_shape *shape, loom_error *error) {
    char label[LOOM_CASE_LABEL];
    loom_case_label(cases, shape, label);
    loom_case *c;
    loom_case_result result;
    const bool ran = loom_case_open(&c, cases, shape, loom_case_dtypes_oracle, p->mine->seed, error) &&
                     loom_case_check_gradients(c, p->oracle, GRADIENT_SAMPLES, &result, error);
    if (ran) show(&p->total, cases->name, label, loom_case_dtypes_oracle.name, &result);
    loom_case_close(c);
    return ran;
}

static bool is_selected(const settings *mine, const loom_op_cases *cases) {
    for (int op = 0; cases->op[op].arguments; op++)
        if (loom_case_selected(cases, op, mine->choice.op)) return true;
    return false;
}

/* One shape in all selected dtypes. */
static bool check_dtypes(parity *p, const loom_op_cases *cases, const loom_case_shape *shape, loom_error *error) {
    if (p->device == p->oracle) return check_shape(p, cases, shape, loom_case_dtypes_oracle, error);
    for (const loom_case_dtypes *dtypes = loom_case_dtypes_tested; dtypes->name && !is_over(p); dtypes++) {
        const bool selected = !strcmp(p->mine->dtype, "all") || !strcmp(p->mine->dtype, dtypes->name);
        if (selected && !check_shape(p, cases, shape, *dtypes, error)) return false;
    }
    return true;
}

static bool check_file(parity *p, const loom_op_cases *cases, loom_error *error) {
    const bool grad = p->mine->grad;
    for (int s = 0; s < cases->n_shapes && !is_over(p); s++) {
        const loom_case_shape *shape = &cases->shapes[s];
        if (!loom_case_is_for(shape, grad ? LOOM_CASE_GRADIENT : LOOM_CASE_PARITY, p->mine->full)) continue;
        if (!(grad ? check_gradients : check_dtypes)(p, cases, shape, error)) return false;
    }
    return true;
}

static void show_header(const parity *p) {
    if (p->mine->grad)
        printf("the oracle's gradients against finite differences\n");
    else
        printf("%s (%s) against %s\n", p->device->name, LOOM_PRINTABLE(p->device->description),
               p->device == p->oracle ? "the formulas" : "the oracle");
    printf("\n%-22s %-52s %-14s %8s %-18s\n", "op", "shape", "dtypes", "of bound", "worst output");
}

static int report(const tally *total) {
    printf("\n%d ok, %d failed, %d not supported", total->ok, total->failed, total->unsupported);
    if (total->worst_name[0]) printf("; nearest to its bound: %.2g of it, %s", total->worst, total->worst_name);
    if (total->bits) printf("; bits %016" PRIx64, total->bits);
    printf("\n");
    return total->failed ? 1 : 0;
}

static int run(const settings *mine) {
    loom_error error;
    parity p = {.mine = mine};
    const loom_device_options options = {.threads = (int)mine->choice.threads};
    bool ran = loom_case_choice_open(&mine->choice, mine->attention == 1, &p.device, &error);
    if (ran && p.device->storage == LOOM_F64)
        p.oracle = p.device;
    else
        ran = ran && loom_device_open(&p.oracle, "oracle", &options, &error);
    if (ran) show_header(&p);
    for (const loom_op_cases *const *cases = loom_op_catalogue; ran && *cases; cases++)
        if (is_selected(mine, *cases)) ran = check_file(&p, *cases, &error);
    int code = ran || p.total.failed ? report(&p.total) : 0;
    if (!ran) code = loom_command_failed(&error);
    if (p.oracle != p.device) loom_device_close(p.oracle);
    loom_device_close(p.device);
    return code;
}

int loom_command_parity(int argc, char **argv) {
    settings mine;
    loom_flag_table tables[] = {
        {loom_case_choice_flags, LOOM_CASE_CHOICE_FLAGS, &mine.choice, {false}},
        {flags, sizeof flags / sizeof *flags, &mine, {false}},
    };
    const int n_tables = sizeof tables / sizeof *tables;
    loom_command_line line = {
        .command = "parity",
        .about = "Runs every op's cases on a device and compares the outputs with the oracle, the same ops in double "
                 "precision; the oracle itself with the formulas of the ops. A line tells how much of its error bound "
                 "the worst output takes (1 is all of it). Inputs, memory around outputs and the workspace are checked "
                 "too, and that a second run gives the same bits. The exit code is 1 if any case fails.",
        .examples = "  gptloom parity\n  gptloom parity --op layernorm --dtype bf16 --device cuda\n"
                    "  gptloom parity --grad\n",
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
