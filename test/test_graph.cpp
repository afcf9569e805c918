/* gptloom graph: what the picture tells is what the schedule does and the plan counts; SVG and dot are sound. */
#include "../train/command.h"
#include "support.h"

extern "C" {
#include "../train/graph/graph.h"
}

#include "gptloom/plan.h"

namespace {

using namespace support;

size_t count(const std::string &text, const std::string &part) {
    size_t n = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) n++;
    return n;
}

bool contains(const std::string &text, const std::string &part) {
    return text.find(part) != std::string::npos;
}

class GraphTest : public testing::Test {
  protected:
    Device cpu = open_device("cpu"), gpu{nullptr, loom_device_close}; /* the GPU's shapes, where CUDA is built in */
    loom_device *device = cpu.get();
    loom_graph graph = {};
    TemporaryDirectory here;

    void SetUp() override {
        loom_device *shapes = nullptr;
        if (loom_device_open_shapes(&shapes, SIZE_MAX, 0, nullptr)) gpu.reset(shapes);
    }
    void TearDown() override {
        loom_graph_free(&graph);
    }

    static loom_gpt_config shape(int64_t layers) {
        return gpt_shape(layers, 2, 16, 16, 100);
    }
    static support::Setup setup(const std::string &policy, bool offload = false) {
        support::Setup made = setup_of(2, 16);
        require([&](loom_error *error) { return loom_recompute_parse(policy.c_str(), &made.recompute, error); });
        made.offload = offload;
        return made;
    }
    void make(int64_t layers, const support::Setup &made, const char *name = "a model") {
        const loom_gpt_config config = shape(layers);
        loom_graph_free(&graph);
        require([&](loom_error *error) { return loom_graph_make(&graph, name, &config, made, device, error); });
    }
    std::string write(bool (*with)(loom_svg *, const loom_graph *, loom_error *)) {
        loom_svg svg = {};
        require([&](loom_error *error) { return with(&svg, &graph, error); });
        const std::string text(svg.text, svg.length);
        loom_svg_free(&svg);
        return text;
    }

    /* Whether python finds nothing wrong with a text; `code` has it as `text`. */
    void expect_python(const std::string &text, const std::string &code) {
        write_file(here.at("text"), text);
        write_file(here.at("check.py"), "import re, sys, xml.etree.ElementTree as tree\n"
                                        "text = open(sys.argv[1], encoding='utf-8').read()\n" +
                                            code);
        const std::string command = "python3 '" + here.at("check.py") + "' '" + here.at("text") + "'";
        EXPECT_EQ(std::system(command.c_str()), 0) << text;
    }
    void expect_sound_svg(const std::string &svg) {
        expect_python(svg, "for element in tree.fromstring(text).iter():\n"
                           "    for name, value in element.items():\n"
                           "        assert not re.search(r'nan|inf', value), value\n");
        EXPECT_FALSE(contains(svg, "<script"));
        EXPECT_FALSE(contains(svg, "href"));
        EXPECT_EQ(count(svg, "http"), 1u); /* the name space */
    }
    /* Statements a line; labels are well-formed; ends of edges are declared. */
    void expect_sound_dot(const std::string &dot) {
        expect_python(dot, R"(
lines = text.split('\n')
assert lines[0] == 'digraph gptloom {' and lines[-2:] == ['}', ''], lines
nodes, edges, depth = set(), [], 0
for line in lines:
    label = re.search(r'label=<(.*)>(?=[],])', line)
    if label:
        tree.fromstring('<x>' + label[1] + '</x>')
        line = line.replace(label[0], 'label=x')
    depth += line.count('{') - line.count('}')
    assert depth >= 0 and not re.search('[<>]', line.replace('->', '')), line
    edge = re.fullmatch(r'(\w+) -> (\w+)( \[[\w=, ]+\])?', line)
    node = re.fullmatch(r'(\w+) \[[\w=, "]+\]', line)
    if edge: edges.append(edge.groups()[:2])
    elif node: nodes.add(node[1])
    else: assert line in ('', '}') or line.endswith('{'), line
assert depth == 0 and edges
assert {end for edge in edges for end in edge} == nodes - {'node', 'graph'}, (edges, nodes)
)");
    }

    /* What the titles of the picture's boxes tell. */
    static std::vector<std::string> titles(const std::string &svg) {
        std::vector<std::string> found;
        for (size_t at = 0; (at = svg.find("<g ", at)) != std::string::npos; at++) {
            const size_t title = svg.find("<title>", at), end = svg.find("</title>", at);
            if (title == std::string::npos) break;
            if (title < svg.find('>', at) + 3) found.push_back(svg.substr(title + 7, end - title - 7));
        }
        return found;
    }
};

/* B T = 32 rows of 16, 48 and 64 columns in fp32, two heads; 100 tokens are 128 inside. */
TEST_F(GraphTest, EachNodeIsThereWithWhatItWritesAndWhatBecomesOfIt) {
    make(3, setup("norm"));
    EXPECT_EQ(
        titles(write(loom_graph_draw)),
        (std::vector<std::string>{
            "embedding: 0 FLOP forward; x 2048 bytes, kept",
            "layernorm ln_1: 0 FLOP forward; out 2048 bytes, recomputed; mean 128 bytes, kept; rstd 128 bytes, kept",
            "linear attn.c_attn: 49152 FLOP forward; out 6144 bytes, kept",
            "attention: 17408 FLOP forward; out 2048 bytes, kept; lse 256 bytes, kept",
            "linear attn.c_proj: 16384 FLOP forward; out 2048 bytes, passes",
            "layernorm ln_2: 0 FLOP forward; x 2048 bytes, kept; out 2048 bytes, recomputed; mean 128 bytes, kept; "
            "rstd 128 bytes, kept",
            "linear, gelu mlp.c_fc: 65536 FLOP forward; out 8192 bytes, kept; activated 8192 bytes, recomputed",
            "linear mlp.c_proj: 65536 FLOP forward; out 2048 bytes, passes",
            "layernorm ln_f: 0 FLOP forward; x 2048 bytes, kept; out 2048 bytes, passes; mean 128 bytes, kept; "
            "rstd 128 bytes, kept",
            "head wte: 131072 FLOP forward; logits 16384 bytes, passes; loss 128 bytes, passes",
        }));
}

TEST_F(GraphTest, TheHeadingAndTheLayersAreTold) {
    make(3, setup("block"), "mine");
    const std::string svg = write(loom_graph_draw), dot = write(loom_graph_write_dot);
    for (const std::string &text : {svg, dot})
        for (const char *part :
             {"mine", "3 layers", "policy block", "2 × 16 tokens (B × T)", "fp32", "layer 1",
              "layers 2 .. 3, built as layer 1", "(B,T,3C)", "2 × 16 × 48", "16 × 48", "still there"})
            EXPECT_TRUE(contains(text, part)) << part;
    for (const char *part :
         {"computed once more", "kept for backward", "one weight: transformer.wte.weight", ", tied<"})
        EXPECT_TRUE(contains(svg, part)) << part;
    EXPECT_FALSE(contains(svg, "in host memory")) << "nothing is offloaded";
    make(1, setup("block"));
    EXPECT_FALSE(contains(write(loom_graph_draw), "as layer 1"));
    EXPECT_FALSE(contains(write(loom_graph_draw), "recomputed")) << "backward comes at once";
}

/* A value is recomputed if a node runs forward again for it, and backward of a layer reads nothing that is not told. */
TEST_F(GraphTest, WhatIsRecomputedIsWhatTheScheduleRunsAgain) {
    for (const char *policy : {"none", "act", "norm", "block-attn", "block", "every:2", "every:3", "sqrt"}) {
        SCOPED_TRACE(policy);
        make(5, setup(policy));
        const loom_tape &tape = *graph.tape;
        std::vector<int> runs(static_cast<size_t>(tape.n_values));
        const loom_tape_schedule &schedule = graph.gpt->train;
        for (const loom_tape_step *s = schedule.step; s < schedule.step + schedule.n; s++)
            for (int k = 0; s->kind == LOOM_STEP_FORWARD && k < LOOM_NODE_OUTPUTS; k++)
                if (s->wanted >> k & 1) runs[static_cast<size_t>(tape.node[s->index].out[k])]++;
        for (loom_value v = 0; v < tape.n_values; v++) {
            EXPECT_EQ(graph.fate[v] == LOOM_FATE_RECOMPUTED, runs[static_cast<size_t>(v)] > 1) << v;
            EXPECT_FALSE(tape.value[v].saved && graph.fate[v] == LOOM_FATE_PASSES) << v;
        }
    }
}

TEST_F(GraphTest, ItsNumbersAreThePlans) {
    const loom_gpt_config config = shape(5);
    loom_cost cost;
    double least;
    const loom_recompute none = {LOOM_RECOMPUTE_NONE, 0};
    require([&](loom_error *error) {
        return loom_cost_count(&cost, &config, setup("none"), device, error) &&
               loom_cost_step(&cost, &config, &none, 1, 0, &least, error);
    });
    for (const char *policy : {"none", "act", "norm", "block-attn", "block", "every:2", "sqrt"}) {
        for (bool offload : {false, true}) {
            if (offload && !gpu) continue;
            device = offload ? gpu.get() : cpu.get();
            SCOPED_TRACE(std::string(policy) + (offload ? ", offloading" : ""));
            const support::Setup made = setup(policy, offload);
            loom_plan plan;
            double flops;
            make(5, made);
            require([&](loom_error *error) {
                return loom_plan_make(&plan, &config, made, device, 2, error) &&
                       loom_cost_step(&cost, &config, &made.recompute, 1, 0, &flops, error);
            });
            size_t kept = 0;
            for (int i = 0; i < plan.arena.n_rows; i++)
                if (!std::strcmp(plan.arena.row[i].name, "activations")) kept = plan.arena.row[i].bytes;
            EXPECT_EQ(graph.kept_on_device, kept);
            EXPECT_EQ(graph.kept_elsewhere, plan.host_bytes);
            EXPECT_NEAR(graph.all_again, flops / least - 1, 1e-9);
            const loom_graph_sum all = loom_graph_sum_of(&graph, 0, graph.tape->n_scopes - 1);
            EXPECT_EQ(all.parameters, static_cast<double>(plan.parameters));
            const bool leaves = loom_segments_that_leave(graph.tape, graph.gpt->segment) > 0;
            EXPECT_EQ(loom_graph_has_fate(&graph, LOOM_FATE_OFFLOADED), offload && leaves);
        }
    }
}

TEST_F(GraphTest, PicturesAreSoundWhateverTheModelIsCalled) {
    const std::string name = "<a & \"b\"> \x1b[31m\xff \xe2\x80\xae \\n -->";
    for (int64_t layers : {1, 2, 12}) {
        make(layers, setup("act"), name.c_str());
        const std::string svg = write(loom_graph_draw), dot = write(loom_graph_write_dot);
        expect_sound_svg(svg);
        expect_sound_dot(dot);
        for (const std::string &text : {svg, dot}) {
            EXPECT_TRUE(contains(text, "&lt;a &amp; &quot;b&quot;&gt; "));
            EXPECT_EQ(text.find_first_of("\x1b\xff"), std::string::npos);
            EXPECT_FALSE(contains(text, "\xe2\x80\xae"));
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------- command */

class GraphCommand : public GraphTest {
  protected:
    std::string out, err;

    static int call(std::vector<std::string> words) {
        words.insert(words.begin(), "graph");
        std::vector<char *> argv;
        for (std::string &word : words) argv.push_back(word.data());
        argv.push_back(nullptr);
        return loom_command_graph(static_cast<int>(words.size()), argv.data());
    }
    int graph_of(const std::vector<std::string> &words) {
        testing::internal::CaptureStdout();
        testing::internal::CaptureStderr();
        const int code = call(words);
        fflush(stdout);
        out = testing::internal::GetCapturedStdout();
        err = testing::internal::GetCapturedStderr();
        return code;
    }
    void expect_refused(const std::vector<std::string> &words, const std::vector<std::string> &parts) {
        EXPECT_EQ(graph_of(words), 2);
        EXPECT_EQ(out, "");
        EXPECT_EQ(count(err, "\n"), 1u) << err;
        for (const std::string &part : parts) EXPECT_TRUE(contains(err, part)) << err;
    }
};

TEST_F(GraphCommand, WritesToStandardOutputOrWhereItIsToldTo) {
    ASSERT_EQ(graph_of({"gpt2", "--policy", "norm"}), 0) << err;
    const std::string svg = out;
    expect_sound_svg(svg);
    EXPECT_TRUE(contains(svg, "124,439,808 parameters"));
    EXPECT_TRUE(contains(svg, "linear attn.c_attn: 28991029248 FLOP forward; out 75497472 bytes, kept"));
    ASSERT_EQ(graph_of({"--recompute", "norm", "--model", "gpt2", "--out", "-"}), 0) << err;
    EXPECT_EQ(out, svg);
    const std::string place = here.at("x.dot");
    ASSERT_EQ(graph_of({"gpt2", "--policy=norm", "--out", place}), 0) << err;
    EXPECT_EQ(out, place + "\n");
    expect_sound_dot(read_file(place));
    ASSERT_EQ(graph_of({"gpt2", "--policy=norm", "--format", "dot"}), 0) << err;
    EXPECT_EQ(out, read_file(place));
}

TEST_F(GraphCommand, MistakesAreOneLine) {
    expect_refused({"gpt22"}, {"'gpt22'", "'gpt2'"});
    expect_refused({"gpt2", "mini"}, {"'mini'"});
    expect_refused({"gpt2", "--model", "mini"}, {"--model", "'gpt2'"});
    expect_refused({here.path()}, {here.path()});
    expect_refused({"gpt2", "--policy", "blocks"}, {"'blocks'", "block"});
    expect_refused({"gpt2", "--policy", "auto"}, {"--recompute: auto", "gptloom plan"});
    expect_refused({"gpt2", "--format", "png"}, {"--format: 'png'", "svg"});
    expect_refused({"gpt2", "--out", "x.png"}, {"--out: x.png", "x.svg"});
    expect_refused({"gpt2", "--out", "x.svg", "--format", "dot"}, {"--out: x.svg", "--format dot"});
    expect_refused({"gpt2", "--out", "x.gv", "--format", "svg"}, {"--out: x.gv", "--format svg"});
    expect_refused({"gpt2", "--out", "nowhere/x.svg"}, {"nowhere/x.svg"});
    expect_refused({"gpt2", "--seq-len", "2048"}, {"--seq-len: 2048"});
    expect_refused({"gpt2", "--micro-batch", "3"}, {"--micro-batch: 3"});
    expect_refused({"--n-layer", "2"}, {"--n-head"});
    expect_refused({"gpt2", "--offload", "all"}, {"--offload: 'all'"});
    expect_refused({"gpt2", "--onto", "x"}, {"--onto"});
}

} // namespace
