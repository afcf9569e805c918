/* gptloom graph: a model's tape as a picture. */
#include "command.h"
#include "command_line.h"
#include "graph/graph.h"
#include "planning.h"

#include "base/file.h"
#include "base/printable.h"

#include <string.h>
#include <strings.h>
#include <unistd.h>

typedef enum picture_format { FORMAT_UNSET = -1, FORMAT_SVG, FORMAT_DOT } picture_format;

typedef struct settings {
    char *out;
    picture_format format;
} settings;

static const char *const formats[] = {"svg", "dot", NULL}; /* as picture_format */

static const loom_flag own_flags[] = {
    {.name = "format",
     .type = LOOM_FLAG_CHOICE,
     .offset = offsetof(settings, format),
     .choices = formats,
     .unset = FORMAT_UNSET,
     .derived = "dot where --out ends in .dot or .gv; else svg",
     .group = "Picture",
     .help = "svg, or dot, for Graphviz"},
    {.name = "out",
     .type = LOOM_FLAG_STRING,
     .offset = offsetof(settings, out),
     .derived = "standard output; where that is a terminal, gptloom-graph.svg or .dot",
     .metavar = "FILE",
     .group = "Picture",
     .help = "where it goes; '-': standard output"},
};

enum { OWN_FLAGS = sizeof own_flags / sizeof *own_flags };

/* The flags of `gptloom train` that it takes; and behind them --policy, which is --recompute. */
static const char *const train_flags[] = {
    "model", "n-layer", "n-head",      "n-embd",  "block-size", "vocab-size",  "activation", "architecture",
    "dtype", "batch",   "micro-batch", "seq-len", "offload",    "logits-rows", "recompute",  NULL};

enum { TRAIN_FLAGS = sizeof train_flags / sizeof *train_flags - 1 };

static void adapt_flags(loom_flag flags[TRAIN_FLAGS + 1]) {
    for (int i = 0; i < TRAIN_FLAGS; i++) {
        loom_flag *flag = &flags[i];
        if (!strcmp(flag->name, "vocab-size")) flag->derived = "the model's; else 50257";
        if (!strcmp(flag->name, "micro-batch")) flag->derived = "all of --batch";
        if (!strcmp(flag->name, "offload")) flag->help = "activations: what is kept waits in host memory, as on a GPU";
        if (strcmp(flag->name, "recompute") != 0) continue;
        flag->help = "what backward computes once more: none, act, norm, block-attn, block, every:K, sqrt";
        flags[TRAIN_FLAGS] = *flag;
        flags[TRAIN_FLAGS].name = "policy";
        flags[TRAIN_FLAGS].help = "the same as --recompute";
    }
}

static bool ends_in(const char *path, const char *ending) {
    const size_t length = strlen(path), of_it = strlen(ending);
    return length > of_it && !strcasecmp(path + length - of_it, ending);
}

/* What is drawn where neither says otherwise. */
static bool settle_format(settings *s, loom_error *error) {
    const bool is_dot = s->out && (ends_in(s->out, ".dot") || ends_in(s->out, ".gv"));
    if (s->format == FORMAT_UNSET) s->format = is_dot ? FORMAT_DOT : FORMAT_SVG;
    if (s->out && (is_dot ? s->format == FORMAT_SVG : s->format == FORMAT_DOT && ends_in(s->out, ".svg")))
        return loom_fail(error, "--out: %s: does not go with --format %s", s->out, formats[s->format]);
    return !s->out || loom_svg_check_place(s->out, "graph draws SVG and dot", error);
}

static bool settle_policy(const loom_planning *planning, loom_recompute *recompute, loom_error *error) {
    if (!loom_recompute_parse(planning->options.recompute, recompute, error)) return false;
    return recompute->kind != LOOM_RECOMPUTE_AUTO ||
           loom_fail(error, "--recompute: auto takes what fits a device; 'gptloom plan' tells what that is");
}

/* Of which only shapes are asked: the CPU takes all of them, and a GPU has memory to offload from. */
static bool open_device(loom_device **device, bool offloads, loom_error *error) {
    loom_error why;
    if (!offloads) return loom_device_open(device, "cpu", NULL, error);
    return loom_device_open_shapes(device, SIZE_MAX, 0, &why) || loom_fail(error, "--offload: %s", why.message);
}

static bool draw(loom_planning *planning, const loom_recompute *recompute, picture_format format, loom_svg *svg,
                 loom_error *error) {
    loom_device *device;
    loom_precision precision;
    loom_graph graph = {0};
    if (!open_device(&device, planning->options.offload == LOOM_OFFLOAD_ACTIVATIONS, error)) return false;
    const int64_t B = planning->options.micro_batch ? planning->options.micro_batch : planning->options.batch;
    const loom_gpt_setup setup = loom_planning_setup(planning, &precision, recompute, B);
    const bool ok = loom_planning_precision(planning, device, &precision, error) &&
                    loom_graph_make(&graph, planning->name, &planning->config, &setup, device, error) &&
                    (format == FORMAT_DOT ? loom_graph_write_dot : loom_graph_draw)(svg, &graph, error);
    loom_graph_free(&graph);
    loom_device_close(device);
    return ok;
}

static bool graph(loom_planning *planning, const char *model, settings *s, loom_error *error) {
    loom_checkpoint_info from = {0};
    loom_recompute recompute;
    loom_svg svg = {0};
    bool ok = settle_format(s, error) && loom_planning_settle(planning, model, &from, error) &&
              settle_policy(planning, &recompute, error) && draw(planning, &recompute, s->format, &svg, error);
    const char *out = !s->out && !isatty(STDOUT_FILENO) ? "-" : s->out;
    const char *default_path = s->format == FORMAT_DOT ? "gptloom-graph.dot" : "gptloom-graph.svg";
    const bool to_stdout = ok && out && loom_output_is_stdout(out);
    ok = ok && loom_svg_save(&svg, out, default_path, error);
    if (ok && !to_stdout) puts(LOOM_PRINTABLE(out ? out : default_path));
    loom_svg_free(&svg);
    return ok;
}

int loom_command_graph(int argc, char **argv) {
    settings mine = {0};
    loom_error error;
    loom_flag flags[TRAIN_FLAGS + 2];
    loom_planning planning = {.options = loom_train_options_defaults()};
    loom_train_option_rows(train_flags, flags);
    adapt_flags(flags);
    loom_flags_defaults(own_flags, OWN_FLAGS, &mine);
    loom_flag_table tables[] = {{flags, TRAIN_FLAGS + 1, &planning.options, {false}},
                                {own_flags, OWN_FLAGS, &mine, {false}}};
    loom_command_line line = {
        .command = "graph",
        .arguments = "[DIR|NAME]",
        .about =
            "Draws what a model computes: the nodes of its tape, one layer of them, with their parameters, the shapes "
            "and bytes of what they write, their operations forward, and what a policy of recomputing activations "
            "makes of each value: kept for backward, computed once more, or offloaded. All is counted from shapes, "
            "for one micro-batch. The model is a named one, one with a shape of its own, or that of a run or "
            "checkpoint.",
        .examples = "  gptloom graph gpt2 --policy norm --out gpt2.svg\n"
                    "  gptloom graph gpt2-xl --dtype bf16 --policy block --offload activations --out xl.svg\n"
                    "  gptloom graph mini --format dot | dot -Tpdf -o mini.pdf\n",
        .most = 1,
        .tables = tables,
        .n_tables = 2,
    };
    int code = loom_command_line_read(&line, argc, argv);
    if (code < 0)
        code = graph(&planning, line.n_arguments ? line.argument[0] : NULL, &mine, &error)
                   ? 0
                   : loom_command_failed(&error);
    loom_train_options_free(&planning.options);
    loom_flags_free(own_flags, OWN_FLAGS, &mine);
    return code;
}
