/* The tape of a model: what its declaration comes to when neighbours are fused. What it runs is held by test_trace. */
#include "support.h"

extern "C" {
#include "model/buffers.h"
#include "model/module.h"
#include "model/offload.h"
}

#include <map>
#include <set>

#if defined(__SANITIZE_ADDRESS__)
#    include <sanitizer/asan_interface.h>
#endif

namespace {

using namespace support;

class TapeTest : public testing::Test {
  protected:
    loom_tape tape = {};

    void SetUp() override {
        const loom_gpt_config config = gpt_shape(2, 2, 8, 16, 100);
        require([&](loom_error *error) { return loom_tape_create(&tape, &config, error); });
    }
    void TearDown() override {
        loom_tape_destroy(&tape);
    }
    /* "linear(attn.c_proj)": a node with its first parameter. */
    std::string name_of(int node) const {
        const loom_node &n = tape.node[node];
        std::string name = n.module->name;
        if (n.parameter[0] >= 0) {
            const std::string prefix = tape.scope[n.scope].prefix, parameter = tape.parameter[n.parameter[0]].name;
            name += "(" + parameter.substr(prefix.size(), parameter.rfind('.') - prefix.size()) + ")";
        }
        return name;
    }
    std::string nodes_of(int scope) const {
        std::string names;
        for (int i = tape.scope[scope].first; i < tape.scope[scope].last; i++)
            names += (names.empty() ? "" : " ") + name_of(i);
        return names;
    }
};

TEST_F(TapeTest, AddsAndActivationsAreFusedWithTheirNeighbours) {
    const char *block =
        "layernorm(ln_1) linear(attn.c_attn) attention linear(attn.c_proj) layernorm(ln_2) linear(mlp.c_fc) "
        "linear(mlp.c_proj)";
    ASSERT_EQ(tape.n_scopes, 4);
    EXPECT_EQ(nodes_of(0), "embedding(wte)");
    EXPECT_EQ(nodes_of(1), block);
    EXPECT_EQ(nodes_of(2), block);
    EXPECT_EQ(nodes_of(3), "layernorm(ln_f) head(wte)");
    EXPECT_EQ(tape.node[tape.scope[1].first].in[1], LOOM_NO_VALUE) << "nothing is added to the embedding";
    EXPECT_NE(tape.node[tape.scope[2].first].in[1], LOOM_NO_VALUE);
    EXPECT_EQ(tape.node[tape.scope[1].last - 2].activation, LOOM_ACTIVATION_GELU);
}

/* ------------------------------------------------------------------------------------------------------------ schedules */

struct Policy {
    std::string name;
    loom_recompute recompute;
};

/* The named ones, and sets of values that come as they may. */
std::vector<Policy> policies(int64_t layers) {
    std::vector<Policy> all;
    for (const char *name : {"none", "act", "norm", "block-attn", "block", "every:2", "every:3", "sqrt"}) {
        Policy p = {name, {}};
        require([&](loom_error *error) { return loom_recompute_parse(name, &p.recompute, error); });
        all.push_back(p);
    }
    for (uint32_t i = 1; i <= 20; i++) {
        Policy p = {"sets " + std::to_string(i), {LOOM_RECOMPUTE_SETS}};
        const int32_t first = (int32_t)layers / 2;
        for (const int32_t blocks : {first, (int32_t)layers - first})
            if (blocks > 0)
                p.recompute.set[p.recompute.n_sets++] = {(i * 2654435761u >> (4 + p.recompute.n_sets)) % 4096, blocks};
        all.push_back(p);
    }
    return all;
}

std::vector<std::pair<int64_t, loom_gpt_architecture>> shapes() {
    std::vector<std::pair<int64_t, loom_gpt_architecture>> all;
    for (int a = 0; a < LOOM_GPT_ARCHITECTURES; a++)
        for (const int64_t layers : {1, 2, 3, 4, 5, 7, 12, 13}) all.emplace_back(layers, (loom_gpt_architecture)a);
    return all;
}

class ScheduleTest : public testing::Test {
  protected:
    loom_tape tape = {};
    loom_tape_schedule schedule = {};
    std::vector<loom_keep> keep;

    void make(int64_t layers, loom_gpt_architecture architecture = LOOM_GPT_2) {
        loom_gpt_config config = gpt_shape(layers, 2, 8, 16, 100);
        config.architecture = architecture;
        require([&](loom_error *error) { return loom_tape_create(&tape, &config, error); });
        keep.resize((size_t)tape.n_values);
    }
    void TearDown() override {
        loom_tape_schedule_destroy(&schedule);
        loom_tape_destroy(&tape);
    }
    void schedule_for(const loom_recompute &policy, bool offloads = false) {
        loom_tape_schedule_destroy(&schedule);
        loom_tape_keep(&tape, &policy, keep.data());
        require([&](loom_error *error) {
            return loom_tape_schedule_train(&schedule, &tape, keep.data(),
                                            (int)loom_recompute_segment(&policy, tape.n_layers), offloads, error);
        });
    }
    std::string name_of(loom_value v) const {
        const loom_node &n = tape.node[tape.value[v].node];
        return std::to_string(n.scope) + " " + n.module->name + "." + n.module->output[tape.value[v].output];
    }
    /* Of the values of the second layer that a layer saves, those that are kept always. */
    std::string kept() const {
        std::string names;
        for (loom_value v = 0; v < tape.n_values; v++)
            if (tape.value[v].scope == 2 && keep[(size_t)v] == LOOM_KEEP_ALWAYS)
                names += (names.empty() ? "" : ", ") + name_of(v).substr(2);
        return names;
    }
    /* How often each node runs forward for some output. */
    int forwards() const {
        int n = 0;
        for (int i = 0; i < schedule.n; i++) n += schedule.step[i].kind == LOOM_STEP_FORWARD;
        return n;
    }
};

TEST_F(ScheduleTest, PoliciesKeepSetsOfWhatBackwardReads) {
    make(2);
    const std::string statistics = "layernorm.mean, layernorm.rstd", norm = "layernorm.out, " + statistics;
    const std::string x = "layernorm.x, ", attention = "attention.out, attention.lse", qkv = "linear.out, ";
    const std::map<std::string, std::string> expected = {
        {"block", "layernorm.x"},
        {"block-attn", x + attention},
        {"norm", x + statistics + ", " + qkv + attention + ", " + x + statistics + ", linear.out"},
        {"act", x + norm + ", " + qkv + attention + ", " + x + norm + ", linear.out"},
        {"none", x + norm + ", " + qkv + attention + ", " + x + norm + ", linear.out, linear.activated"}};
    for (const Policy &p : policies(tape.n_layers)) {
        if (!expected.count(p.name)) continue;
        schedule_for(p.recompute);
        EXPECT_EQ(kept(), expected.at(p.name)) << p.name;
    }
}

/* What a step reads has been computed, and no policy of recomputation has let it go: an interpreter of the schedule
 * that forgets, of a layer, all that is not kept as soon as another layer runs. */
TEST_F(ScheduleTest, NothingReadsWhatIsNotThere) {
    for (const auto &[layers, architecture] : shapes()) {
        make(layers, architecture);
        for (const Policy &p : policies(tape.n_layers)) {
            schedule_for(p.recompute);
            const int K = (int)loom_recompute_segment(&p.recompute, layers);
            const auto layer_of = [&](int scope) { return tape.scope[scope].is_layer ? scope - tape.first_layer : -1; };
            std::set<loom_value> there;
            int running = -1;
            std::vector<int> backward((size_t)tape.n_nodes);
            for (int i = 0; i < schedule.n; i++) {
                const loom_tape_step &step = schedule.step[i];
                if (step.kind != LOOM_STEP_FORWARD && step.kind != LOOM_STEP_BACKWARD) continue;
                const loom_node &n = tape.node[step.index];
                const std::string what = p.name + " of " + std::to_string(layers) + ", step " + std::to_string(i);
                const auto reads = [&](loom_value v) {
                    EXPECT_TRUE(v < 0 || there.count(v)) << what << " reads " << (v < 0 ? "" : name_of(v));
                };
                const int layer = layer_of(n.scope);
                if (step.kind == LOOM_STEP_FORWARD && layer >= 0 && layer != running) {
                    /* Of the layer before, what this one's first node reads goes with that. */
                    for (auto v = there.begin(); v != there.end();) {
                        const int of = layer_of(tape.value[*v].scope);
                        const bool input = *v == n.in[0] || *v == n.in[1] || of < 0 || of == layer;
                        const bool stays = keep[(size_t)*v] == LOOM_KEEP_ALWAYS ||
                                           (keep[(size_t)*v] == LOOM_KEEP_IN_SEGMENT && of / K == layer / K);
                        v = input || stays ? std::next(v) : there.erase(v);
                    }
                    running = layer;
                }
                if (step.kind == LOOM_STEP_FORWARD) {
                    ASSERT_NE(step.wanted || !n.module->backward, 0u) << what;
                    if (loom_node_reads_inputs(&n, step.wanted))
                        for (const loom_value v : n.in) reads(v);
                    const unsigned read = loom_node_reads_outputs(&n, step.wanted) & ~step.wanted;
                    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
                        if (read >> k & 1) reads(n.out[k]);
                        if (step.wanted >> k & 1) there.insert(n.out[k]);
                    }
                } else {
                    backward[(size_t)step.index]++;
                    for (int k = 0; k < LOOM_NODE_INPUTS; k++)
                        if (n.module->needs_in >> k & 1) reads(n.in[k]);
                    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
                        if (loom_node_saves_outputs(&n) >> k & 1) reads(n.out[k]);
                }
            }
            for (int i = 0; i < tape.n_nodes; i++)
                EXPECT_EQ(backward[(size_t)i], tape.node[i].module->backward ? 1 : 0) << p.name;
        }
        loom_tape_schedule_destroy(&schedule);
        loom_tape_destroy(&tape);
    }
}

/* What the policies promise, in runs of nodes: a layer has seven. */
TEST_F(ScheduleTest, RecomputesNoMoreThanItsPolicySays) {
    const int L = 9, all = 7 * L + 3;
    make(L);
    const auto forwards_of = [&](const char *name) {
        loom_recompute policy;
        require([&](loom_error *error) { return loom_recompute_parse(name, &policy, error); });
        schedule_for(policy);
        return forwards();
    };
    EXPECT_EQ(forwards_of("none"), all);
    EXPECT_EQ(forwards_of("act"), all + (L - 1)) << "the activation";
    EXPECT_EQ(forwards_of("norm"), all + 3 * (L - 1)) << "and two layernorms";
    EXPECT_EQ(forwards_of("block-attn"), all + 5 * (L - 1)) << "all but attention and the last product";
    EXPECT_EQ(forwards_of("block"), all + 6 * (L - 1));
    /* Two of three segments run again: two layers whole and one but for its last product; then the two are recomputed;
     * of the last segment two layers are. */
    EXPECT_EQ(forwards_of("every:3"), all + 2 * (2 * 7 + 6 + 2 * 6) + 2 * 6);
}

/* ------------------------------------------------------------------------------------------------------------ buffers */

/* What is written lies apart from all else that is still to be read: followed step by step, by bytes. */
TEST_F(ScheduleTest, NothingOverwritesWhatIsStillToBeRead) {
    for (const auto &[layers, architecture] : shapes()) {
        make(layers, architecture);
        for (const Policy &p : policies(tape.n_layers))
            for (const auto &[offloads, late] : {std::pair<bool, bool>{false, false}, {true, false}, {true, true}}) {
                const int K = (int)loom_recompute_segment(&p.recompute, layers);
                if (offloads && loom_segments_that_leave(&tape, K) <= 0) continue;
                schedule_for(p.recompute, offloads);
                loom_buffers buffers;
                const loom_buffer_sizes sizes = {24, 4, 4, 2400, keep.data(), false, K, offloads};
                require(
                    [&](loom_error *error) { return loom_buffers_find(&buffers, &tape, &schedule, &sizes, error); });
                /* Who wrote each 256 bytes last. */
                std::vector<std::string> owner(buffers.bytes / 256);
                std::map<int, std::vector<std::string>> host;
                const loom_tape_step *copied = nullptr;
                const std::string what = p.name + " of " + std::to_string(layers) + (offloads ? ", offloaded" : "");
                const auto each = [&](size_t place, int64_t columns, auto see) {
                    for (size_t b = place / 256; b < (place + (size_t)(24 * columns) * 4 + 255) / 256; b++)
                        see(owner.at(b));
                };
                const auto value = [&](loom_value v, bool writes) {
                    each(buffers.value[v], tape.value[v].columns, [&](std::string &o) {
                        if (writes)
                            o = name_of(v);
                        else
                            EXPECT_EQ(o, name_of(v)) << what;
                    });
                };
                const auto gradient = [&](loom_value v, bool writes) {
                    const std::string name = "gradient " + std::to_string(tape.value[v].gradient);
                    each(buffers.gradient[v], tape.value[v].columns, [&](std::string &o) {
                        if (writes)
                            o = name;
                        else
                            EXPECT_EQ(o, name) << what;
                    });
                };
                for (int i = 0; i < schedule.n; i++) {
                    const loom_tape_step &step = schedule.step[i];
                    /* A copy is done at once, or only when compute waits for it. */
                    if (step.kind == LOOM_STEP_SEND || step.kind == LOOM_STEP_FETCH) copied = &step;
                    if (copied && (step.kind == LOOM_STEP_WAIT || !late)) {
                        const auto slot = owner.begin() +
                                          (copied->index % LOOM_SLOTS) * (ptrdiff_t)(buffers.slot / 256);
                        std::vector<std::string> &away = host[copied->index];
                        if (copied->kind == LOOM_STEP_SEND)
                            away.assign(slot, slot + (ptrdiff_t)(buffers.slot / 256));
                        else
                            std::copy(away.begin(), away.end(), slot);
                        copied = nullptr;
                    }
                    if (step.kind != LOOM_STEP_FORWARD && step.kind != LOOM_STEP_BACKWARD) continue;
                    const loom_node &node = tape.node[step.index];
                    if (step.kind == LOOM_STEP_FORWARD) {
                        const unsigned read = loom_node_reads_outputs(&node, step.wanted) & ~step.wanted;
                        const unsigned written = loom_node_writes_outputs(&tape, step.index, step.wanted);
                        for (int k = 0; k < LOOM_NODE_INPUTS; k++)
                            if (node.in[k] >= 0 && loom_node_reads_inputs(&node, step.wanted)) value(node.in[k], false);
                        for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
                            if (read >> k & 1) value(node.out[k], false);
                        for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
                            if (written >> k & 1) value(node.out[k], true);
                        for (int k = 0; k < LOOM_NODE_INPUTS && !node.module->backward; k++)
                            if (node.in[k] >= 0) gradient(node.in[k], true);
                        continue;
                    }
                    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
                        if (node.out[k] >= 0 && loom_node_saves_outputs(&node) >> k & 1) value(node.out[k], false);
                    for (int k = 0; k < LOOM_NODE_INPUTS; k++) {
                        if (node.in[k] < 0) continue;
                        if (node.module->needs_in >> k & 1) value(node.in[k], false);
                        if (node.adds_in >> k & 1) gradient(node.in[k], false);
                        gradient(node.in[k], true);
                    }
                    /* While it writes, it reads: nothing of that may have gone. */
                    for (int k = 0; k < LOOM_NODE_OUTPUTS; k++)
                        if (node.out[k] >= 0 && loom_node_saves_outputs(&node) >> k & 1) value(node.out[k], false);
                    for (int k = 0; k < LOOM_NODE_INPUTS; k++)
                        if (node.in[k] >= 0 && node.module->needs_in >> k & 1) value(node.in[k], false);
                }
                loom_buffers_destroy(&buffers);
            }
        loom_tape_schedule_destroy(&schedule);
        loom_tape_destroy(&tape);
    }
}

/* While a node runs, memory of values that it neither reads nor writes is poisoned, and so is what lies behind each. */
TEST_F(ScheduleTest, AStepTouchesOnlyItsValuesUnderAddressSanitizer) {
#if defined(__SANITIZE_ADDRESS__)
    make(3);
    schedule_for({LOOM_RECOMPUTE_NORM});
    loom_buffers buffers;
    const loom_buffer_sizes sizes = {24, 4, 4, 2400, keep.data(), false, 1, false};
    require([&](loom_error *error) { return loom_buffers_find(&buffers, &tape, &schedule, &sizes, error); });
    std::vector<char> memory(buffers.bytes);
    char *base = memory.data();
    int poisoned = 0;
    for (int i = 0; i < schedule.n; i++) {
        const loom_tape_step &step = schedule.step[i];
        if (step.kind != LOOM_STEP_FORWARD) continue;
        const loom_node &node = tape.node[step.index];
        loom_buffers_fence(&buffers, &tape, &step, base);
        for (int k = 0; k < LOOM_NODE_OUTPUTS; k++) {
            if (!(step.wanted >> k & 1)) continue;
            const loom_value v = node.out[k];
            EXPECT_EQ(__asan_region_is_poisoned(base + buffers.value[v], buffers.size[v]), nullptr) << name_of(v);
            EXPECT_TRUE(__asan_address_is_poisoned(base + buffers.value[v] + buffers.size[v])) << name_of(v);
        }
        for (loom_value v = 0; v < tape.n_values; v++)
            poisoned += __asan_region_is_poisoned(base + buffers.value[v], buffers.size[v]) != nullptr;
    }
    EXPECT_GT(poisoned, schedule.n);
    loom_buffers_fence(&buffers, &tape, nullptr, base);
    EXPECT_EQ(__asan_region_is_poisoned(base, buffers.bytes - LOOM_ARENA_ALIGNMENT), nullptr);
    loom_buffers_destroy(&buffers);
#else
    GTEST_SKIP() << "poisoned memory needs a build with AddressSanitizer";
#endif
}

} // namespace
