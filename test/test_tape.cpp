/* The tape of a model: what its declaration comes to when neighbours are fused. What it runs is held by test_trace. */
#include "support.h"

extern "C" {
#include "model/module.h"
}

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
    /* Of the saved values of the second block, those of a set. */
    std::string names_of(unsigned values) const {
        std::string names;
        for (int i = 0; i < tape.scope[2].n_saved; i++) {
            const loom_tape_value &v = tape.value[loom_tape_saved(&tape, 2, i)];
            if (values >> i & 1)
                names += (names.empty() ? "" : " ") + name_of(v.node) + "." +
                         tape.node[v.node].module->output[v.output];
        }
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
    EXPECT_EQ(nodes_of(3), "layernorm(ln_f)");
    EXPECT_EQ(tape.node[tape.scope[1].first].in[1], LOOM_NO_VALUE) << "nothing is added to the embedding";
    EXPECT_NE(tape.node[tape.scope[2].first].in[1], LOOM_NO_VALUE);
    EXPECT_EQ(tape.node[tape.scope[1].last - 2].activation, LOOM_ACTIVATION_GELU);
}

TEST_F(TapeTest, PoliciesKeepSetsOfWhatBackwardReads) {
    EXPECT_EQ(names_of(loom_tape_kept(&tape, 2, LOOM_KEEP_BLOCK)), "layernorm(ln_1).x");
    EXPECT_EQ(names_of(loom_tape_kept(&tape, 2, LOOM_KEEP_BLOCK_ATTN)),
              "layernorm(ln_1).x attention.out attention.lse");
    EXPECT_EQ(names_of(~loom_tape_kept(&tape, 2, LOOM_KEEP_NORM)),
              "layernorm(ln_1).out layernorm(ln_2).out linear(mlp.c_fc).activated");
    EXPECT_EQ(names_of(~loom_tape_kept(&tape, 2, LOOM_KEEP_ACT)), "linear(mlp.c_fc).activated");
    EXPECT_EQ(names_of(~loom_tape_kept(&tape, 2, LOOM_KEEP_NONE)), "");
    EXPECT_EQ(names_of(loom_tape_kept(&tape, 2, LOOM_KEEP_INFERENCE)), "linear(attn.c_attn).out");
}

TEST_F(TapeTest, WhatAddsToTheResidualStreamIsWantedWithTheSum) {
    const int first = tape.scope[2].first, projection = first + 3, last = tape.scope[2].last - 1;
    const unsigned mid = 1u << tape.value[tape.node[first + 4].out[LOOM_NORM_X]].in_scope;
    EXPECT_EQ(loom_tape_wanted(&tape, projection, mid), 1u);
    EXPECT_EQ(loom_tape_wanted(&tape, projection, ~mid), 0u);
    EXPECT_EQ(loom_tape_wanted(&tape, last, 1u << LOOM_WANT_OUTPUT), 1u);
    EXPECT_EQ(loom_tape_wanted(&tape, last, ~(1u << LOOM_WANT_OUTPUT)), 0u);
}

} // namespace
