#include "graph/graph.h"

#include "progress.h"

/* Labels are in Graphviz's HTML, so that names are escaped as they are in SVG; identifiers are numbers. */

/* The box that a node is in: its own, or, -1, that of the layers that are one. */
static int box_of(const loom_tape *t, int node) {
    const int layer = t->node[node].scope - t->first_layer;
    return layer >= 1 && layer < t->n_layers ? -1 : node;
}

static void write_name(loom_svg *dot, int box) {
    if (box < 0)
        loom_svg_write(dot, "layers");
    else
        loom_svg_write(dot, "node%d", box);
}

static void write_cell(loom_svg *dot, const char *text) {
    loom_svg_write(dot, "<TD ALIGN=\"LEFT\">");
    loom_svg_escaped(dot, text);
    loom_svg_write(dot, "</TD>");
}

static void write_node(loom_svg *dot, const loom_graph *graph, int node) {
    char module[64], name[64], work[16];
    loom_graph_parameter parameters[LOOM_NODE_PARAMETERS];
    loom_graph_output outputs[LOOM_NODE_OUTPUTS];
    const int n_parameters = loom_graph_parameters(graph, node, parameters);
    const int n_outputs = loom_graph_outputs(graph, node, outputs);
    loom_graph_node_name(graph, node, module, name);
    loom_format_count(work, sizeof work, graph->forward[node]);
    write_name(dot, node);
    loom_svg_write(dot, " [label=<<TABLE BORDER=\"1\" CELLBORDER=\"0\" STYLE=\"ROUNDED\"><TR><TD COLSPAN=\"5\" "
                        "ALIGN=\"LEFT\"><B>");
    loom_svg_escaped(dot, module);
    loom_svg_write(dot, "</B> ");
    loom_svg_escaped(dot, name);
    if (graph->forward[node] > 0) loom_svg_write(dot, " %s FLOP", work);
    loom_svg_write(dot, "</TD></TR>");
    for (int i = 0; i < n_parameters; i++) {
        loom_svg_write(dot, "<TR><TD COLSPAN=\"5\" ALIGN=\"LEFT\">");
        loom_svg_escaped(dot, parameters[i].name);
        loom_svg_write(dot, " %s%s</TD></TR>", parameters[i].shape, parameters[i].tied ? ", tied" : "");
    }
    for (int i = 0; i < n_outputs; i++) {
        char size[16];
        loom_graph_size(outputs[i].bytes, size);
        loom_svg_write(dot, "<TR>");
        write_cell(dot, outputs[i].name);
        write_cell(dot, outputs[i].symbols);
        write_cell(dot, outputs[i].numbers);
        write_cell(dot, size);
        loom_svg_write(dot, "<TD ALIGN=\"LEFT\"><FONT COLOR=\"%s\">%s</FONT></TD></TR>",
                       loom_fate_colour(outputs[i].fate), loom_fate_name(outputs[i].fate));
    }
    loom_svg_write(dot, "</TABLE>>]\n");
}

static void write_layers(loom_svg *dot, const loom_graph *graph, int first, int last, const char *before,
                         const char *after) {
    char name[64], sums[200];
    loom_graph_layers(graph, first, last, name, sums);
    loom_svg_write(dot, "%s<%s<BR/>%s>%s\n", before, name, sums, after);
}

/* Along values; where several layers are one, only those into it and out of it. */
static void write_edges(loom_svg *dot, const loom_tape *t) {
    for (int node = 0; node < t->n_nodes; node++) {
        const loom_node *n = &t->node[node];
        const int to = box_of(t, node);
        for (int k = 0; k < LOOM_NODE_INPUTS; k++) {
            const int from = n->in[k] < 0 ? to : box_of(t, t->value[n->in[k]].node);
            if (from == to) continue;
            write_name(dot, from);
            loom_svg_write(dot, " -> ");
            write_name(dot, to);
            loom_svg_write(dot, n->in[1] >= 0 && k == 0 ? " [penwidth=3]\n" : "\n");
        }
        for (int k = 0; k < LOOM_NODE_PARAMETERS; k++)
            for (int i = 0; i < node && n->parameter[k] >= 0; i++)
                if (t->node[i].parameter[0] == n->parameter[k])
                    loom_svg_write(dot, "node%d -> node%d [style=dashed, dir=none, constraint=false]\n", i, node);
    }
}

bool loom_graph_write_dot(loom_svg *dot, const loom_graph *graph, loom_error *error) {
    const loom_tape *t = graph->tape;
    const int layer = t->first_layer;
    char shape[160], policy[240];
    *dot = (loom_svg){0};
    loom_graph_heading(graph, shape, policy);
    loom_svg_write(dot, "digraph gptloom {\nnode [shape=plain, fontname=\"Helvetica\", fontsize=11]\n"
                        "graph [fontname=\"Helvetica\", fontsize=12, labelloc=t, label=<<B>");
    loom_svg_escaped(dot, graph->name);
    loom_svg_write(dot, "</B><BR/>%s<BR/>%s>]\n", shape, policy);
    write_layers(dot, graph, layer, layer, "subgraph cluster_layer {\ngraph [label=", ", style=rounded]");
    for (int i = t->scope[layer].first; i < t->scope[layer].last; i++) write_node(dot, graph, i);
    loom_svg_write(dot, "}\n");
    for (int i = 0; i < t->n_nodes; i++)
        if (!t->scope[t->node[i].scope].is_layer) write_node(dot, graph, i);
    if (t->n_layers > 1)
        write_layers(dot, graph, layer + 1, layer + t->n_layers - 1, "layers [shape=box, style=rounded, label=", "]");
    write_edges(dot, t);
    loom_svg_write(dot, "}\n");
    return !dot->failed || loom_fail(error, "no memory for the graph");
}
