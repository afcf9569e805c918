#include "graph/graph.h"

#include "base/check.h"
#include "plot/format.h"
#include "progress.h"

#include <stdio.h>
#include <stdlib.h>

/* From top to bottom: at the left the residual stream, one line from the embedding to the last layernorm; beside it the
 * nodes in their order, boxes that read from it, from each other, and are added to it. */
enum {
    WIDTH = 960,
    MARGIN = 28,
    STREAM = 58, /* x of the residual stream */
    LEFT = 112,  /* of boxes, */
    RIGHT = 904, /* and their other edge */
    TIE = 932,   /* x of the line between those that share a weight */
    TEXT = 128,  /* x of what is said of a node, */
    WORK = 408,  /* where its operations end, */
    MARK = 434,  /* and of its outputs: of their marks, */
    OUTPUT = 446,
    SYMBOLS = 512,
    NUMBERS = 580,
    BYTES = 796, /* where these end */
    FATE = 806,
    TOP = 134, /* of the first box */
    LINE = 18,
    INSIDE = 10, /* above and below a box's text */
    GAP = 18,    /* between boxes */
    HEADER = 34  /* of a layer */
};

#define STREAM_COLOUR "#44505c"

/* A node's box; or with node -1 that of layers that are not shown. */
typedef struct box {
    int node;
    double top, height;
} box;

typedef struct picture {
    loom_svg *svg;
    const loom_graph *graph;
    box *box;
    int n;
    double bottom;
    double layer_top, layer_bottom; /* the frame of the layer that is shown */
} picture;

/* ------------------------------------------------------------------------------------------------------------- places */

static void place(picture *p, int node, int lines) {
    p->box[p->n] = (box){node, p->bottom, 2 * INSIDE + LINE * lines};
    p->bottom += p->box[p->n++].height + GAP;
}

static void place_nodes(picture *p, int scope) {
    const loom_tape_scope *s = &p->graph->tape->scope[scope];
    loom_graph_parameter parameters[LOOM_NODE_PARAMETERS];
    loom_graph_output outputs[LOOM_NODE_OUTPUTS];
    for (int node = s->first; node < s->last; node++) {
        const int left = 1 + loom_graph_parameters(p->graph, node, parameters);
        const int right = loom_graph_outputs(p->graph, node, outputs);
        place(p, node, left > right ? left : right);
    }
}

static void place_all(picture *p) {
    const loom_tape *t = p->graph->tape;
    p->bottom = TOP;
    for (int scope = 0; scope < t->n_scopes; scope++) {
        if (!t->scope[scope].is_layer) place_nodes(p, scope);
        if (scope != t->first_layer) continue;
        p->layer_top = p->bottom;
        p->bottom += HEADER;
        place_nodes(p, scope);
        p->layer_bottom = p->bottom - GAP + 14;
        p->bottom = p->layer_bottom + GAP;
        if (t->n_layers > 1) place(p, -1, 2);
        if (t->n_layers > 1) p->bottom += 8; /* the edges of those behind */
    }
}

/* -------------------------------------------------------------------------------------------------------------- boxes */

static void rectangle(loom_svg *svg, double left, double top, double width, double height, const char *attributes) {
    loom_svg_write(svg, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"7\" %s/>\n", left, top, width,
                   height, attributes);
}

/* Each fate has a shape too, for those who do not tell the colours apart. */
static void mark(loom_svg *svg, double x, double y, loom_fate fate) {
    static const char *const shapes[LOOM_FATES] = {
        [LOOM_FATE_KEPT] = "m-4.5 -4.5h9v9h-9z",
        [LOOM_FATE_OFFLOADED] = "m-5 -4h10l-5 9z",
        [LOOM_FATE_RECOMPUTED] = "m-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0",
        [LOOM_FATE_STAYS] = "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
        [LOOM_FATE_PASSES] = "m-4.5 0h9",
    };
    loom_svg_write(svg, "<path d=\"M%.1f %.1f%s\" fill=\"%s\" stroke=\"%s\" stroke-width=\"%s\"/>\n", x, y,
                   shapes[fate], loom_fate_colour(fate), loom_fate_colour(fate), fate == LOOM_FATE_PASSES ? "2" : "0");
}

static void draw_outputs(loom_svg *svg, const loom_graph_output *outputs, int n, double y) {
    for (int i = 0; i < n; i++, y += LINE) {
        const loom_graph_output *out = &outputs[i];
        char size[16], colour[64];
        snprintf(colour, sizeof colour, "font-weight=\"600\" fill=\"%s\"", loom_fate_colour(out->fate));
        loom_graph_size(out->bytes, size);
        mark(svg, MARK, y - 4.5, out->fate);
        loom_svg_label(svg, OUTPUT, y, "start", "", out->name);
        loom_svg_label(svg, SYMBOLS, y, "start", "", out->symbols);
        loom_svg_label(svg, NUMBERS, y, "start", "fill=\"" LOOM_QUIET "\"", out->numbers);
        loom_svg_label(svg, BYTES, y, "end", "", size);
        loom_svg_label(svg, FATE, y, "start", colour, loom_fate_name(out->fate));
    }
}

static void draw_parameters(loom_svg *svg, const loom_graph_parameter *parameters, int n, double y) {
    for (int i = 0; i < n; i++, y += LINE) {
        loom_svg_write(svg, "<text x=\"%d\" y=\"%.1f\" fill=\"" LOOM_QUIET "\">", TEXT, y);
        loom_svg_escaped(svg, parameters[i].name);
        loom_svg_write(svg, " <tspan fill=\"" LOOM_INK "\">%s</tspan>%s</text>\n", parameters[i].shape,
                       parameters[i].tied ? ", tied" : "");
    }
}

/* What a pointer over the box tells: the figures whole. */
static void draw_title(loom_svg *svg, const char *module, const char *name, double flops,
                       const loom_graph_output *outputs, int n) {
    loom_svg_write(svg, "<title>");
    loom_svg_escaped(svg, module);
    loom_svg_write(svg, "%s", *name ? " " : "");
    loom_svg_escaped(svg, name);
    loom_svg_write(svg, ": %.0f FLOP forward", flops);
    for (int i = 0; i < n; i++)
        loom_svg_write(svg, "; %s %.0f bytes, %s", outputs[i].name, outputs[i].bytes, loom_fate_name(outputs[i].fate));
    loom_svg_write(svg, "</title>\n");
}

static void draw_node(const picture *p, const box *b, bool is_first) {
    loom_svg *svg = p->svg;
    char module[64], name[64], count[16], work[32];
    loom_graph_parameter parameters[LOOM_NODE_PARAMETERS];
    loom_graph_output outputs[LOOM_NODE_OUTPUTS];
    const int n_parameters = loom_graph_parameters(p->graph, b->node, parameters);
    const int n_outputs = loom_graph_outputs(p->graph, b->node, outputs);
    const double y = b->top + INSIDE + 13, left = is_first ? MARGIN : LEFT;
    loom_graph_node_name(p->graph, b->node, module, name);
    loom_format_count(count, sizeof count, p->graph->forward[b->node]);
    snprintf(work, sizeof work, p->graph->forward[b->node] > 0 ? "%s FLOP" : "", count);
    loom_svg_write(svg, "<g font-size=\"12\" fill=\"" LOOM_INK "\">\n");
    draw_title(svg, module, name, p->graph->forward[b->node], outputs, n_outputs);
    rectangle(svg, left, b->top, RIGHT - left, b->height, "fill=\"#fff\" stroke=\"#b9c0c8\"");
    loom_svg_write(svg, "<text x=\"%d\" y=\"%.1f\" font-size=\"13\" font-weight=\"600\">", TEXT, y);
    loom_svg_escaped(svg, module);
    loom_svg_write(svg, " <tspan font-weight=\"400\">");
    loom_svg_escaped(svg, name);
    loom_svg_write(svg, "</tspan></text>\n");
    loom_svg_label(svg, WORK, y, "end", "", work);
    draw_parameters(svg, parameters, n_parameters, y + LINE);
    draw_outputs(svg, outputs, n_outputs, y);
    loom_svg_write(svg, "</g>\n");
}

/* A layer's name and its sums, on one line or two. */
static void draw_layers(const picture *p, int first, int last, double y, bool one_line) {
    const loom_tape_scope *scope = p->graph->tape->scope;
    char name[64], sums[200], prefixes[96];
    loom_graph_layers(p->graph, first, last, name, sums);
    if (first == last)
        snprintf(prefixes, sizeof prefixes, "%s", scope[first].prefix);
    else
        snprintf(prefixes, sizeof prefixes, "%s .. %s", scope[first].prefix, scope[last].prefix);
    loom_svg_write(p->svg, "<text x=\"%d\" y=\"%.1f\" font-size=\"13\" font-weight=\"600\" fill=\"" LOOM_INK "\">%s ",
                   one_line ? LEFT : TEXT, y, name);
    loom_svg_write(p->svg, "<tspan font-size=\"12\" font-weight=\"400\" fill=\"" LOOM_QUIET "\"> ");
    loom_svg_escaped(p->svg, prefixes);
    loom_svg_write(p->svg, "</tspan></text>\n");
    loom_svg_label(p->svg, one_line ? RIGHT : TEXT, one_line ? y : y + LINE, one_line ? "end" : "start",
                   "font-size=\"12\" fill=\"" LOOM_INK "\"", sums);
}

static void draw_folded(const picture *p, const box *b) {
    const loom_tape *t = p->graph->tape;
    const double width = RIGHT + 4 - MARGIN;
    for (int behind = t->n_layers > 3 ? 2 : t->n_layers - 2; behind >= 0; behind--)
        rectangle(p->svg, MARGIN + 4 * behind, b->top + 4 * behind, width, b->height,
                  "fill=\"#f3f5f8\" stroke=\"#b9c0c8\"");
    draw_layers(p, t->first_layer + 1, t->first_layer + t->n_layers - 1, b->top + INSIDE + 13, false);
}

/* -------------------------------------------------------------------------------------------------------------- edges */

static void arrow(loom_svg *svg, double x, double y, double dx, double dy) {
    loom_svg_write(svg, "<path d=\"M%.1f %.1fl%.1f %.1f\" marker-end=\"url(#tip)\"/>\n", x, y, dx, dy);
}

/* Where a sum is made of the stream and what comes from a box. */
static void draw_sum(loom_svg *svg, double y) {
    arrow(svg, LEFT, y, STREAM + 10 - LEFT, 0);
    loom_svg_write(svg, "<path d=\"M%.1f %.1fa8 8 0 1 0 16 0a8 8 0 1 0 -16 0m3.5 0h9m-4.5 -4.5v9\" fill=\"#fff\"/>\n",
                   STREAM - 8.0, y);
}

/* Whether the node reads the residual stream: a sum, or what another scope has written. */
static bool reads_stream(const loom_tape *t, int node) {
    const loom_node *n = &t->node[node];
    return n->in[0] >= 0 && (n->in[1] >= 0 || t->node[t->value[n->in[0]].node].scope != n->scope);
}

/* Whether what it writes is added to the stream. */
static bool is_added(const loom_tape *t, int node) {
    const loom_value out = t->node[node].out[0];
    bool added = false;
    for (int i = 0; i < t->n_nodes && out >= 0; i++) added = added || t->node[i].in[1] == out;
    return added;
}

/* Whether its output takes the stream's place, as that of a layernorm behind a sum: what it writes is added to, or read
 * by another scope. */
static bool becomes_stream(const loom_tape *t, int node) {
    const loom_value out = t->node[node].module == &loom_module_layernorm ? t->node[node].out[LOOM_NORM_OUT] : -1;
    bool found = false;
    for (int i = 0; i < t->n_nodes && out >= 0; i++) found = found || (t->node[i].in[0] == out && reads_stream(t, i));
    return found && t->node[node].in[1] >= 0;
}

static double upper_port(const box *b) {
    return b->top + INSIDE + 8;
}

static double lower_port(const box *b) {
    return b->top + b->height - INSIDE - 8;
}

/* From the embedding to the last node that reads it, with a gap where a node's output takes its place. */
static void draw_stream(const picture *p) {
    const loom_tape *t = p->graph->tape;
    double last = p->box[0].top + p->box[0].height;
    loom_svg_write(p->svg, "<path d=\"M%d %.1f", STREAM, last);
    for (int i = 0; i < p->n; i++) {
        const box *b = &p->box[i];
        if (b->node < 0 || !reads_stream(t, b->node)) continue;
        last = upper_port(b);
        if (becomes_stream(t, b->node)) loom_svg_write(p->svg, "V%.1fM%d %.1f", last, STREAM, lower_port(b));
    }
    loom_svg_write(p->svg, "V%.1f\" stroke-width=\"4\" stroke-linecap=\"round\"/>\n", last);
}

static void draw_edges(const picture *p) {
    const loom_tape *t = p->graph->tape;
    loom_svg *svg = p->svg;
    loom_svg_write(svg, "<g fill=\"none\" stroke=\"" STREAM_COLOUR "\" stroke-width=\"1.6\">\n");
    draw_stream(p);
    for (int i = 0; i < p->n; i++) {
        const box *b = &p->box[i];
        if (b->node < 0) continue;
        const bool follows = i > 0 && p->box[i - 1].node >= 0 && becomes_stream(t, p->box[i - 1].node);
        if (reads_stream(t, b->node) || follows) {
            arrow(svg, STREAM, upper_port(b), LEFT - STREAM - 2, 0);
        } else if (i > 0) {
            LOOM_CHECK(t->value[t->node[b->node].in[0]].node == p->box[i - 1].node); /* else more is to be drawn */
            arrow(svg, TEXT + 20, p->box[i - 1].top + p->box[i - 1].height, 0, GAP - 2);
        }
        if (is_added(t, b->node)) draw_sum(svg, lower_port(b));
        if (becomes_stream(t, b->node)) arrow(svg, LEFT, lower_port(b), STREAM + 4 - LEFT, 0);
    }
    loom_svg_write(svg, "</g>\n");
}

/* A line between the boxes that read the same weight. */
static void draw_tie(const picture *p) {
    const loom_tape *t = p->graph->tape;
    const box *from = &p->box[0], *to = &p->box[p->n - 1];
    loom_graph_parameter parameters[LOOM_NODE_PARAMETERS];
    if (loom_graph_parameters(p->graph, to->node, parameters) < 1 || !parameters[0].tied) return;
    const double y0 = from->top + INSIDE + LINE + 8, y1 = to->top + INSIDE + LINE + 8;
    char text[96], attributes[64];
    loom_svg_write(p->svg,
                   "<path d=\"M%d %.1fH%dq10 0 10 10V%.1fq0 10 -10 10H%d\" fill=\"none\" stroke=\"" LOOM_QUIET
                   "\" stroke-width=\"1.4\" stroke-dasharray=\"5 4\"/>\n",
                   RIGHT, y0, TIE - 10, y1 - 10, RIGHT);
    snprintf(text, sizeof text, "one weight: %s", t->parameter[t->node[to->node].parameter[0]].name);
    snprintf(attributes, sizeof attributes, "font-size=\"12\" fill=\"" LOOM_QUIET "\" transform=\"rotate(90 %d %.1f)\"",
             TIE + 6, (y0 + y1) / 2);
    loom_svg_label(p->svg, TIE + 6, (y0 + y1) / 2, "middle", attributes, text);
}

/* ------------------------------------------------------------------------------------------------------------ heading */

/* The key to the marks that occur, and to the stream. */
static void draw_key(const picture *p) {
    const double letter = 6.9, y = 104; /* as wide as a letter is in wide fonts */
    double x = MARGIN;
    loom_svg *svg = p->svg;
    loom_svg_write(svg,
                   "<path d=\"M%.1f %.1fh18\" stroke=\"" STREAM_COLOUR "\" stroke-width=\"4\" "
                   "stroke-linecap=\"round\"/>\n",
                   x + 2, y - 4);
    loom_svg_label(svg, x + 28, y, "start", "font-size=\"12\" fill=\"" LOOM_INK "\"", "residual stream");
    x += 28 + 15 * letter + 16;
    for (int fate = 0; fate < LOOM_FATES; fate++) {
        if (!loom_graph_has_fate(p->graph, (loom_fate)fate)) continue;
        const char *text = loom_fate_meaning((loom_fate)fate);
        mark(svg, x + 5, y - 4.5, (loom_fate)fate);
        loom_svg_label(svg, x + 16, y, "start", "font-size=\"12\" fill=\"" LOOM_INK "\"", text);
        for (x += 16 + 16; *text; text++) x += letter;
    }
}

static void draw_heading(const picture *p) {
    char name[512], shape[160], policy[240];
    loom_shortened(p->graph->name, 80, name, sizeof name);
    loom_graph_heading(p->graph, shape, policy);
    loom_svg_begin(p->svg, WIDTH, p->bottom + LINE + MARGIN, name);
    loom_svg_write(p->svg, "<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"5.5\" "
                           "markerHeight=\"5.5\" orient=\"auto\"><path d=\"M0 0l8 4l-8 4z\" fill=\"" STREAM_COLOUR
                           "\"/></marker></defs>\n");
    loom_svg_label(p->svg, MARGIN, 38, "start", "font-size=\"20\" font-weight=\"600\" fill=\"" LOOM_INK "\"", name);
    loom_svg_label(p->svg, MARGIN, 60, "start", "font-size=\"13\" fill=\"" LOOM_INK "\"", shape);
    loom_svg_label(p->svg, MARGIN, 79, "start", "font-size=\"13\" fill=\"" LOOM_INK "\"", policy);
    draw_key(p);
}

static void draw_notes(const picture *p) {
    static const char *const notes[] = {
        "FLOPs are those of matrix products and attention. A sum is made by the layernorm that reads it, in one op, "
        "and "
        "is its x.",
        "What a layer keeps has its input with it. Of the logits there are n rows at a time.",
    };
    for (int i = 0; i < 2; i++)
        loom_svg_label(p->svg, MARGIN, p->bottom + 8 + LINE * i, "start", "font-size=\"12\" fill=\"" LOOM_QUIET "\"",
                       notes[i]);
}

static void draw(const picture *p) {
    const int layer = p->graph->tape->first_layer;
    draw_heading(p);
    rectangle(p->svg, MARGIN, p->layer_top, RIGHT + 12 - MARGIN, p->layer_bottom - p->layer_top,
              "fill=\"#f3f5f8\" stroke=\"#d5dae0\"");
    draw_layers(p, layer, layer, p->layer_top + 22, true);
    for (int i = 0; i < p->n; i++)
        if (p->box[i].node < 0) draw_folded(p, &p->box[i]);
    draw_edges(p);
    for (int i = 0; i < p->n; i++)
        if (p->box[i].node >= 0) draw_node(p, &p->box[i], i == 0);
    draw_tie(p);
    draw_notes(p);
    loom_svg_write(p->svg, "</svg>\n");
}

bool loom_graph_draw(loom_svg *svg, const loom_graph *graph, loom_error *error) {
    picture p = {.svg = svg, .graph = graph, .box = malloc(((size_t)graph->tape->n_nodes + 1) * sizeof *p.box)};
    *svg = (loom_svg){0};
    if (p.box) {
        place_all(&p);
        draw(&p);
    }
    const bool ok = p.box && !svg->failed;
    free(p.box);
    return ok || loom_fail(error, "no memory for the picture");
}
