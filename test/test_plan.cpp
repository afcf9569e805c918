/* The planner: what ops are counted to do, whole steps put together from their parts, memory of ranks, what is
 * suggested where memory is short, and GPUs that are not here. */
#include "support.h"

extern "C" {
#include "plan/sample.h"
}

#include <map>
#include <set>

namespace {

using namespace support;

loom_recompute policy(const std::string &name) {
    loom_recompute recompute;
    require([&](loom_error *error) { return loom_recompute_parse(name.c_str(), &recompute, error); });
    return recompute;
}

std::string name_of(const loom_recompute &recompute) {
    char name[LOOM_RECOMPUTE_NAME];
    loom_recompute_name(&recompute, name);
    return name;
}

std::vector<loom_recompute> policies_of(int64_t n_layer) {
    loom_recompute list[LOOM_MOST_POLICIES];
    const int n = loom_recompute_policies(n_layer, list);
    return {list, list + n};
}

Device shapes_of(double memory, double reserved = 0) {
    loom_device *device = nullptr;
    require(
        [&](loom_error *error) { return loom_device_open_shapes(&device, (size_t)memory, (size_t)reserved, error); });
    return Device(device, loom_device_close);
}

loom_precision precision_of(loom_device *device, loom_dtype dtype, bool master = true, loom_dtype moments = LOOM_F32) {
    loom_precision precision;
    const loom_precision_flags flags = {dtype, master, moments, LOOM_F32};
    require([&](loom_error *error) { return loom_precision_of(device, &flags, &precision, error); });
    return precision;
}

loom_plan plan_of(const loom_gpt_config &config, const loom_gpt_setup &setup, loom_device *device, int64_t sequences) {
    loom_plan plan;
    require([&](loom_error *error) { return loom_plan_make(&plan, &config, &setup, device, sequences, error); });
    return plan;
}

/* ------------------------------------------------------------------------------------------------------- work of ops */

loom_view matrix(int64_t rows, int64_t columns, loom_dtype dtype = LOOM_F32) {
    return loom_view_2d(nullptr, dtype, rows, columns);
}

TEST(Work, OfAProductIs2mnkHoweverItIsCalled) {
    const int64_t N = 5, I = 7, O = 11;
    for (const bool transposed : {false, true}) {
        const loom_view weight = transposed ? matrix(O, I, LOOM_BF16) : matrix(I, O, LOOM_BF16);
        loom_matmul_forward forward = {};
        forward.out = matrix(N, O, LOOM_BF16), forward.x = matrix(N, I, LOOM_BF16), forward.weight = weight;
        forward.transposed = transposed;
        loom_matmul_backward_input input = {};
        input.dx = matrix(N, I, LOOM_BF16), input.dout = matrix(N, O, LOOM_BF16), input.weight = weight;
        input.transposed = transposed;
        loom_matmul_backward_weight gradient = {};
        gradient.dweight = transposed ? matrix(O, I) : matrix(I, O);
        gradient.dbias = loom_view_1d(nullptr, LOOM_F32, O);
        gradient.dout = matrix(N, O, LOOM_BF16), gradient.x = matrix(N, I, LOOM_BF16);
        gradient.transposed = transposed;
        const double flops = 2.0 * N * I * O, activations = 2.0 * (N * I + N * O);
        EXPECT_EQ(loom_op_work(LOOM_OP_matmul_forward, &forward).flops, flops);
        EXPECT_EQ(loom_op_work(LOOM_OP_matmul_forward, &forward).bytes, activations + 2.0 * I * O);
        EXPECT_EQ(loom_op_work(LOOM_OP_matmul_backward_input, &input).flops, flops);
        EXPECT_EQ(loom_op_work(LOOM_OP_matmul_backward_input, &input).bytes, activations + 2.0 * I * O);
        input.accumulate = true;
        EXPECT_EQ(loom_op_work(LOOM_OP_matmul_backward_input, &input).bytes, activations + 2.0 * (I * O + N * I));
        EXPECT_EQ(loom_op_work(LOOM_OP_matmul_backward_weight, &gradient).flops, flops);
        EXPECT_EQ(loom_op_work(LOOM_OP_matmul_backward_weight, &gradient).bytes, activations + 4.0 * (I * O + O));
        gradient.accumulate = true;
        EXPECT_EQ(loom_op_work(LOOM_OP_matmul_backward_weight, &gradient).bytes, activations + 2 * 4.0 * (I * O + O));
    }
}

TEST(Work, OfAttentionIsOfTheKeysThatAreSeen) {
    const int64_t B = 2, Tq = 5, Tk = 9, H = 3, D = 8, first = 4;
    double pairs = 0;
    for (int64_t i = 0; i < Tq; i++)
        for (int64_t j = 0; j < Tk; j++) pairs += j <= first + i;
    const loom_view q = loom_view_4d(nullptr, LOOM_F32, B, Tq, H, D), k = loom_view_4d(nullptr, LOOM_F32, B, Tk, H, D);
    const loom_view lse = loom_view_3d(nullptr, LOOM_F32, B, H, Tq);
    loom_attention_forward forward = {};
    forward.out = forward.q = q, forward.k = forward.v = k, forward.lse = lse, forward.first_query = first;
    loom_attention_backward backward = {};
    backward.dq = backward.dout = backward.out = backward.q = q, backward.lse = lse;
    backward.dk = backward.dv = backward.k = backward.v = k, backward.first_query = first;
    const double product = 2.0 * B * H * D * pairs, queries = B * Tq * H * D, keys = B * Tk * H * D;
    EXPECT_EQ(loom_op_work(LOOM_OP_attention_forward, &forward).flops, 2 * product);
    EXPECT_EQ(loom_op_work(LOOM_OP_attention_backward, &backward).flops, 5 * product);
    EXPECT_EQ(loom_op_work(LOOM_OP_attention_forward, &forward).bytes, 4 * (2 * queries + 2 * keys + B * H * Tq));
    EXPECT_EQ(loom_op_work(LOOM_OP_attention_backward, &backward).bytes, 4 * (4 * queries + 4 * keys + B * H * Tq));
}

TEST(Work, OfEmbeddingsIsOfTheRowsThatTokensCanTouch) {
    const int64_t B = 2, T = 3, C = 8, V = 100, P = 10;
    loom_embedding_forward forward = {};
    forward.out = loom_view_3d(nullptr, LOOM_F32, B, T, C);
    forward.tokens = loom_view_3d(nullptr, LOOM_I32, 1, B, T);
    forward.token_weight = matrix(V, C), forward.position_weight = matrix(P, C);
    loom_embedding_backward backward = {};
    backward.dout = forward.out, backward.tokens = forward.tokens;
    backward.token_gradient = matrix(V, C), backward.position_gradient = matrix(P, C);
    const double rows = B * T;
    EXPECT_EQ(loom_op_work(LOOM_OP_embedding_forward, &forward).bytes, 4 * (rows * C + rows + rows * C + T * C));
    EXPECT_EQ(loom_op_work(LOOM_OP_embedding_backward, &backward).bytes, 4 * (rows * C + rows + V * C + P * C));
    backward.accumulate_tokens = backward.accumulate_positions = true;
    EXPECT_EQ(loom_op_work(LOOM_OP_embedding_backward, &backward).bytes, 4 * (rows * C + rows + 2 * (rows + T) * C));
    forward.token_weight = matrix(4, C); /* fewer than there are tokens */
    EXPECT_EQ(loom_op_work(LOOM_OP_embedding_forward, &forward).bytes, 4 * (rows * C + rows + 4 * C + T * C));
}

TEST(Work, OfAnUpdateReadsAndWritesWhatItChanges) {
    loom_adamw adamw = {};
    adamw.parameter = adamw.moment1 = adamw.moment2 = loom_view_1d(nullptr, LOOM_F32, 10);
    adamw.gradient = adamw.parameter;
    adamw.copy = loom_view_1d(nullptr, LOOM_BF16, 10);
    EXPECT_EQ(loom_op_work(LOOM_OP_adamw, &adamw).bytes, 10 * (2 * 12 + 4 + 2));
}

/* ------------------------------------------------------------------------------------------------------- whole steps */

/* Sums over all ops of a traversal. */
struct Sum {
    double flops = 0, bytes = 0, ops = 0;
};

double flops_of(const void *, loom_op op, const void *arguments) {
    return loom_op_work(op, arguments).flops;
}
double bytes_of(const void *, loom_op op, const void *arguments) {
    return loom_op_work(op, arguments).bytes;
}
double one(const void *, loom_op, const void *) {
    return 1;
}

void add_to_sum(void *visitor, loom_op op, const void *arguments) {
    Sum *sum = static_cast<Sum *>(visitor);
    sum->flops += flops_of(nullptr, op, arguments);
    sum->bytes += bytes_of(nullptr, op, arguments);
    sum->ops += 1;
}

/* What a micro-batch of a model really runs, op by op, without memory. */
Sum visit(const loom_gpt_config &config, const Setup &setup, loom_device *device) {
    Sum sum;
    loom_gpt *gpt;
    require([&](loom_error *error) { return loom_gpt_create(&gpt, &config, setup, device, error); });
    loom_arena nowhere = loom_arena_measure();
    loom_gpt_lay_out(gpt, &nowhere);
    loom_context *ctx = loom_gpt_get_context(gpt);
    ctx->ops = loom_visiting_ops();
    ctx->visit = add_to_sum;
    ctx->visitor = &sum;
    loom_gpt_train(gpt, false);
    loom_gpt_destroy(gpt);
    return sum;
}

double step_of(const loom_cost &cost, const loom_gpt_config &config, const loom_recompute &recompute,
               int64_t micro_batches = 1, int64_t elements = 0) {
    double amount = 0;
    require([&](loom_error *error) {
        return loom_cost_step(&cost, &config, &recompute, micro_batches, elements, &amount, error);
    });
    return amount;
}

/* What two layers cost makes up what a step of any depth runs: exactly, in ops, operations and bytes. */
TEST(Cost, PartsMakeUpWhatAStepRunsUnderEveryPolicy) {
    const Device device = open_device("definition");
    const int64_t B = 2, T = 24;
    for (const loom_gpt_activation activation : {LOOM_GPT_GELU, LOOM_GPT_RELU})
        for (const int64_t L : {1, 2, 3, 4, 5, 7, 9, 12}) {
            const loom_gpt_config config = gpt_shape(L, 2, 16, T, 61, activation);
            std::vector<loom_recompute> all = policies_of(L);
            for (const char *name : {"every:1", "every:2", "every:3", "every:4", "every:5", "every:20"})
                all.push_back(policy(name));
            for (const loom_recompute &recompute : all) {
                auto setup = setup_of(B, T);
                setup.recompute = recompute;
                loom_cost flops, bytes, ops;
                require([&](loom_error *error) {
                    return loom_cost_count(&flops, &config, setup, device.get(), error) &&
                           loom_cost_by_op(&bytes, &config, setup, device.get(), bytes_of, nullptr, error) &&
                           loom_cost_by_op(&ops, &config, setup, device.get(), one, nullptr, error);
                });
                const Sum real = visit(config, setup, device.get());
                const std::string what = name_of(recompute) + " of " + std::to_string(L) + " layers";
                EXPECT_EQ(step_of(flops, config, recompute), real.flops) << what;
                EXPECT_EQ(step_of(ops, config, recompute), real.ops) << what;
                EXPECT_EQ(step_of(bytes, config, recompute), real.bytes) << what;
            }
        }
}

TEST(Cost, AStepHasMicroBatchesAndOneUpdate) {
    const Device device = open_device("definition");
    const loom_gpt_config config = gpt_shape(3, 2, 16, 8, 61);
    loom_cost cost;
    require([&](loom_error *error) { return loom_cost_count(&cost, &config, setup_of(2, 8), device.get(), error); });
    const double one_micro_batch = step_of(cost, config, policy("none"));
    cost.update = 0.5;
    EXPECT_EQ(step_of(cost, config, policy("none"), 4, 6), 4 * one_micro_batch + 3);
}

/* The parts that are reported are a step's: its ends, and each layer's forward, recomputing and backward. */
TEST(Cost, IsSplitIntoEndsAndLayers) {
    const Device device = open_device("definition");
    const double L = 5;
    const loom_gpt_config config = gpt_shape((int64_t)L, 2, 16, 8, 61);
    loom_cost cost;
    loom_cost_parts parts;
    require([&](loom_error *error) {
        return loom_cost_count(&cost, &config, setup_of(2, 8), device.get(), error) &&
               loom_cost_split(&cost, &config, &parts, error);
    });
    const auto layers = L * (parts.forward + parts.backward);
    EXPECT_DOUBLE_EQ(parts.ends + layers, step_of(cost, config, policy("none")));
    EXPECT_DOUBLE_EQ(parts.ends + layers + (L - 1) * parts.recompute[LOOM_RECOMPUTE_BLOCK],
                     step_of(cost, config, policy("block")));
    EXPECT_GT(parts.forward, parts.recompute[LOOM_RECOMPUTE_BLOCK]) << "all but the last product";
    EXPECT_GT(parts.recompute[LOOM_RECOMPUTE_BLOCK], 0);
    EXPECT_EQ(parts.recompute[LOOM_RECOMPUTE_NONE], 0);
    EXPECT_GT(parts.backward, parts.forward);
}

/* 6 per weight of a product and token, as loom_gpt_flops_per_token has it, but with attention's diagonal and backward's
 * fifth product. */
TEST(Cost, CountsWhatTheFormulaSays) {
    const Device device = open_device("definition");
    const int64_t T = 64, C = 48, L = 3;
    const loom_gpt_config config = gpt_shape(L, 3, C, T, 500);
    loom_cost flops;
    const loom_recompute none = policy("none");
    require([&](loom_error *error) { return loom_cost_count(&flops, &config, setup_of(2, T), device.get(), error); });
    const double attention = 7.0 * 2 * C * (T + 1) / 2; /* a token and layer */
    const double products = 6.0 * (L * 12.0 * C * C + 512.0 * C);
    EXPECT_EQ(step_of(flops, config, none), 2 * T * (products + L * attention));
    EXPECT_EQ(flops.update, 0);
}

TEST(Policies, AreListedFromTheLeastToTheMostRecomputation) {
    for (const int64_t L : {1, 2, 4, 12, 48, 1000}) {
        const std::vector<loom_recompute> all = policies_of(L);
        std::set<std::string> names;
        for (const loom_recompute &recompute : all) names.insert(name_of(recompute));
        EXPECT_EQ(names.size(), all.size()) << L;
        EXPECT_EQ(names.count("auto"), 0u);
        EXPECT_EQ(name_of(all.front()), "none");
        EXPECT_EQ(names.count("sqrt"), L > 1 ? 1u : 0u);
        for (const loom_recompute &recompute : all)
            EXPECT_LE(loom_recompute_segment(&recompute, L), loom_recompute_segment(&all.back(), L));
    }
}

/* Real seconds: only what must hold on a machine that is busy with other things. */
TEST(Cost, IsMeasuredOnADevice) {
    for (const char *name : {"cpu", "cuda"}) {
        const Device device = open_device(name);
        const loom_gpt_config config = gpt_shape(6, 2, 32, 32, 61);
        loom_cost cost;
        ASSERT_TRUE(works([&](loom_error *error) {
            return loom_cost_measure(&cost, &config, setup_of(2, 32), device.get(), error);
        })) << name;
        std::vector<double> seconds = {cost.update};
        for (int i = 0; i < cost.n; i++) seconds.push_back(cost.work[i].amount);
        for (const double s : seconds) {
            EXPECT_TRUE(std::isfinite(s)) << name;
            EXPECT_GT(s, 0) << name;
        }
        EXPECT_GT(step_of(cost, config, policy("block"), 3), step_of(cost, config, policy("none"), 3));
    }
}

/* The measured model is two layers, in memory that is given back. */
TEST(Cost, WhatCannotBeMeasuredIsSaid) {
    const Device device = open_device("cpu");
    device->available = [](const loom_device *) { return (size_t)1 << 20; };
    const loom_gpt_config config = gpt_shape(2, 4, 256, 256, 1000);
    loom_cost cost;
    refusal([&](loom_error *error) { return loom_cost_measure(&cost, &config, setup_of(4, 256), device.get(), error); },
            {"MiB are needed", "1 MiB"});
}

/* ------------------------------------------------------------------------------------------------------------ memory */

/* By name; together they are the whole. */
std::map<std::string, size_t> rows_of(const loom_plan &plan) {
    std::map<std::string, size_t> rows;
    size_t sum = 0;
    for (int i = 0; i < plan.arena.n_rows; i++) {
        rows[plan.arena.row[i].name] = plan.arena.row[i].bytes;
        sum += plan.arena.row[i].bytes;
    }
    EXPECT_EQ(sum, plan.arena.used);
    return rows;
}

bool allocates_nothing(loom_device *, void **, size_t, loom_error *error) {
    return loom_fail(error, "a plan must not allocate");
}

TEST(Memory, EveryModelIsPlannedUnderEveryPolicyWithoutAllocating) {
    for (const loom_gpt_named *model = loom_gpt_catalogue(); model->name; model++) {
        const Device cpu = open_device("cpu"), gpu = shapes_of(80 * 0x1p30);
        cpu->allocate = cpu->allocate_host = allocates_nothing;
        for (loom_device *device : {cpu.get(), gpu.get()}) {
            const loom_precision precision = precision_of(device, LOOM_BF16);
            auto setup = setup_of(1, model->config.block_size, LOOM_GPT_TRAIN, &precision);
            size_t before = SIZE_MAX;
            for (const loom_recompute &recompute : policies_of(model->config.n_layer)) {
                setup.recompute = recompute;
                const size_t kept = rows_of(plan_of(model->config, setup, device, 4))["activations"];
                EXPECT_LE(kept, before) << model->name << " " << name_of(recompute);
                before = kept;
            }
        }
    }
}

/* The device of a GPU that is here, if only emulated, needs the same. */
TEST(Memory, OfAGpuThatIsNotHereIsThatOfOneThatIs) {
    const Device here = open_device("cuda"), elsewhere = shapes_of(80 * 0x1p30, 2 * 0x1p30);
    EXPECT_EQ(elsewhere->available(elsewhere.get()), (size_t)(78 * 0x1p30));
    EXPECT_EQ(elsewhere->reserved, (size_t)(2 * 0x1p30));
    EXPECT_GE(here->reserved, (size_t)1 << 30);
    for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16}) {
        const loom_precision precision = precision_of(here.get(), dtype);
        const loom_gpt_config config = gpt_shape(3, 3, 48, 80, 700);
        const auto setup = setup_of(4, 80, LOOM_GPT_TRAIN, &precision);
        const loom_plan a = plan_of(config, setup, here.get(), 8), b = plan_of(config, setup, elsewhere.get(), 8);
        ASSERT_EQ(a.arena.n_rows, b.arena.n_rows);
        for (int i = 0; i < a.arena.n_rows; i++) {
            EXPECT_STREQ(a.arena.row[i].name, b.arena.row[i].name);
            EXPECT_EQ(a.arena.row[i].bytes, b.arena.row[i].bytes) << a.arena.row[i].name;
        }
    }
}

/* A region as an arena counts it. */
size_t taken(int64_t elements, int64_t size) {
    return (size_t)((elements * size + 255) / 256 * 256 + 256);
}

TEST(Memory, RanksShareOutWhatTheirStageSays) {
    const Device gpu = shapes_of(80 * 0x1p30);
    const loom_precision precision = precision_of(gpu.get(), LOOM_BF16);
    const loom_gpt_config config = gpt_shape(3, 3, 48, 80, 700);
    auto setup = setup_of(2, 80, LOOM_GPT_TRAIN, &precision);
    const int micro_batches = 4; /* of each rank */
    for (const int ranks : {1, 2, 3, 8}) {
        setup.sharding = {.ranks = ranks};
        const loom_plan whole = plan_of(config, setup, gpu.get(), 2 * micro_batches * ranks);
        loom_layout layout;
        require([&](loom_error *error) { return loom_layout_create(&layout, &config, ranks, error); });
        const int64_t all = layout.elements, embeddings = layout.bucket[0].elements, block = layout.bucket[2].elements;
        const int64_t last = layout.bucket[4].elements;
        loom_layout_destroy(&layout);
        ASSERT_EQ(all % ranks, 0);
        for (int zero = 0; zero <= 3; zero++) {
            setup.sharding = {.ranks = ranks, .rank = ranks - 1, .zero = zero, .deterministic = false};
            loom_plan plan = plan_of(config, setup, gpu.get(), whole.sequences);
            std::map<std::string, size_t> rows = rows_of(plan), before = rows_of(whole);
            if (ranks == 1) {
                EXPECT_EQ(rows, before);
                continue;
            }
            const auto held = [&](int stage) { return zero >= stage ? all / ranks : all; };
            /* Embeddings and last layernorm stay whole, in regions of their own as each block's share is. */
            EXPECT_EQ(rows["parameters"],
                      zero < 3 ? taken(all, 2) : taken(embeddings, 2) + taken(last, 2) + 3 * taken(block / ranks, 2));
            EXPECT_EQ(rows["master weights"], taken(held(1), 4));
            EXPECT_EQ(rows["gradients"], taken(held(2), 4));
            EXPECT_EQ(rows["moments"], 2 * taken(held(1), 4));
            EXPECT_EQ(plan.elements, held(1));
            /* Whole gradients on their way, in four places, and what arrives for them; two blocks' whole weights. */
            size_t communication = 0;
            for (const int64_t bucket : {embeddings, last, block, block})
                if (zero >= 2) communication += taken(bucket, 4) + taken(bucket / ranks, 4);
            if (zero >= 3) communication += 2 * taken(block, 2);
            EXPECT_EQ(rows["communication"], communication);
            for (const char *same : {"activations", "scratch", "logits", "workspace", "batch"})
                EXPECT_EQ(rows[same], before[same]) << same;
            setup.sharding.deterministic = ranks != 3;
            if (ranks == 3) continue;
            rows = rows_of(plan_of(config, setup, gpu.get(), whole.sequences));
            EXPECT_EQ(rows["gradients"], taken(all, 4)) << "whole, whatever the stage";
            EXPECT_EQ(rows["gradient tree"], 2 * taken(all, 4)) << "of one and of two micro-batches";
            communication = zero >= 3 ? 2 * taken(block, 2) : 0;
            for (const int64_t bucket : {embeddings, last, block, block})
                communication += taken(bucket / ranks * (ranks - 1), 4);
            EXPECT_EQ(rows["communication"], communication);
        }
    }
}

/* ------------------------------------------------------------------------------------------------------- suggestions */

/* Plans again with what a suggestion says. */
loom_plan planned_again(const loom_plan &plan, const loom_suggestion &suggestion) {
    Setup setup;
    static_cast<loom_gpt_setup &>(setup) = plan.setup;
    setup.B = suggestion.B;
    setup.T = suggestion.T;
    setup.precision = &suggestion.precision;
    setup.recompute = suggestion.recompute;
    return plan_of(plan.config, setup, plan.device, plan.sequences);
}

std::vector<std::string> suggestions_of(const loom_plan &plan) {
    loom_suggestion found[LOOM_MOST_SUGGESTIONS];
    const int n = loom_plan_suggest(&plan, found);
    std::vector<std::string> flags;
    for (int i = 0; i < n; i++) {
        EXPECT_LE(planned_again(plan, found[i]).arena.used, plan.available) << found[i].flags;
        flags.push_back(found[i].flags);
    }
    return flags;
}

loom_plan short_of_memory(const loom_gpt_config &config, const Setup &setup, loom_device *device, size_t available) {
    loom_plan plan = plan_of(config, setup, device, 8 * std::max(1, setup.sharding.ranks));
    plan.available = available;
    return plan;
}

TEST(Suggestions, FitAndChangeTheLeastFirst) {
    const Device device = open_device("definition");
    const loom_gpt_config config = gpt_shape(9, 2, 32, 64, 61);
    auto setup = setup_of(8, 64);
    const size_t needed = plan_of(config, setup, device.get(), 8).arena.used;
    setup.recompute = policy("act");
    const size_t with_act = plan_of(config, setup, device.get(), 8).arena.used;
    setup.recompute = policy("block");
    const size_t with_block = plan_of(config, setup, device.get(), 8).arena.used;
    setup.recompute = policy("none");
    ASSERT_LT(with_block, with_act);
    ASSERT_LT(with_act, needed);
    const auto at = [&](size_t available) {
        return suggestions_of(short_of_memory(config, setup, device.get(), available));
    };
    EXPECT_EQ(at(with_act), (std::vector<std::string>{"--recompute act", "--micro-batch 4", "--dtype bf16"}));
    EXPECT_EQ(at(with_block), (std::vector<std::string>{"--recompute block", "--micro-batch 1"}));
    for (size_t available = needed - 1; available > needed / 32; available = available * 9 / 10)
        EXPECT_LE(at(available).size(), 3u); /* and that they fit */
}

/* What is suggested to those who plan B sequences of 64 at a time, and have exactly what other settings need. */
std::vector<std::string> suggested(int64_t B, int64_t other_B, int64_t other_T, const char *dtype, bool master,
                                   const char *recompute) {
    const Device device = open_device("cpu");
    const loom_gpt_config config = gpt_shape(9, 2, 32, 64, 61);
    const loom_precision precision = precision_of(device.get(), std::string(dtype) == "bf16" ? LOOM_BF16 : LOOM_F32,
                                                  master, master ? LOOM_F32 : LOOM_BF16);
    Setup other = setup_of(other_B, other_T, LOOM_GPT_TRAIN, &precision);
    other.recompute = policy(recompute);
    const size_t available = plan_of(config, other, device.get(), 8).arena.used;
    return suggestions_of(short_of_memory(config, setup_of(B, 64), device.get(), available));
}

TEST(Suggestions, GoFromOneChangeToAllAtOnce) {
    using Flags = std::vector<std::string>;
    EXPECT_EQ(suggested(8, 8, 64, "fp32", true, "every:2"), (Flags{"--recompute every:2", "--micro-batch 1"}));
    EXPECT_EQ(suggested(8, 1, 64, "fp32", true, "none"), (Flags{"--micro-batch 1"}));
    EXPECT_EQ(suggested(8, 1, 64, "fp32", true, "block"), (Flags{"--micro-batch 1 --recompute block"}));
    EXPECT_EQ(suggested(8, 8, 64, "bf16", true, "none"),
              (Flags{"--recompute block-attn", "--micro-batch 4", "--dtype bf16"}));
    EXPECT_EQ(suggested(1, 1, 64, "bf16", false, "none"),
              (Flags{"--dtype bf16 --master-weights off --optimizer-dtype bf16"}));
    EXPECT_EQ(suggested(1, 1, 40, "fp32", true, "none"),
              (Flags{"--recompute block-attn", "--optimizer-dtype bf16",
                     "--dtype bf16 --master-weights off --optimizer-dtype bf16"}));
    EXPECT_EQ(suggested(8, 1, 64, "bf16", false, "block"),
              (Flags{"--dtype bf16 --master-weights off --optimizer-dtype bf16 --micro-batch 1 --recompute block"}));
    const Device device = open_device("cpu");
    const loom_gpt_config config = gpt_shape(9, 2, 32, 64, 61);
    EXPECT_TRUE(suggestions_of(short_of_memory(config, setup_of(8, 64), device.get(), 1000)).empty());
}

TEST(Suggestions, HoldForTheRanksOfThePlan) {
    const Device gpu = shapes_of(80 * 0x1p30);
    const loom_gpt_config config = gpt_shape(9, 2, 32, 64, 61);
    auto setup = setup_of(8, 64);
    setup.sharding = {.ranks = 4, .rank = 0, .zero = 2, .deterministic = false};
    auto with_block = setup;
    with_block.recompute = policy("block");
    const size_t available = short_of_memory(config, with_block, gpu.get(), 0).arena.used;
    const loom_plan plan = short_of_memory(config, setup, gpu.get(), available);
    ASSERT_FALSE(loom_plan_fits(&plan));
    ASSERT_FALSE(suggestions_of(plan).empty());
    EXPECT_EQ(suggestions_of(plan)[0], "--recompute block");
}

TEST(Suggestions, StandInTheError) {
    const Device device = open_device("cpu");
    const loom_gpt_config config = gpt_shape(9, 2, 32, 64, 61);
    loom_plan plan = short_of_memory(config, setup_of(8, 64), device.get(), 1);
    plan.available = plan.arena.used - 1;
    refusal([&](loom_error *error) { return loom_plan_check(&plan, error); },
            {"--memory", "MiB are needed", "activations", "these would fit: --recompute act; --micro-batch 4; "});
    auto inference = setup_of(1, 64, LOOM_GPT_INFER);
    plan = plan_of(config, inference, device.get(), 1);
    plan.available = plan.arena.used - 1;
    refusal([&](loom_error *error) { return loom_plan_check(&plan, error); }, {"this would fit: --dtype bf16"});
}

/* -------------------------------------------------------------------------------------------------------------- GPUs */

TEST(Gpus, HaveNamesOfTheirOwnAndAllFigures) {
    std::set<std::string> names;
    for (const loom_gpu *gpu = loom_gpu_table(); gpu->name; gpu++) {
        EXPECT_TRUE(names.insert(gpu->name).second) << gpu->name;
        std::stringstream aliases(gpu->aliases);
        for (std::string alias; aliases >> alias;) {
            EXPECT_TRUE(names.insert(alias).second) << alias;
            EXPECT_EQ(loom_gpu_by_name(alias.c_str(), nullptr), gpu);
        }
        EXPECT_EQ(loom_gpu_by_name(gpu->name, nullptr), gpu);
        EXPECT_GE(gpu->tensor, gpu->tf32);
        EXPECT_GE(gpu->tf32, gpu->fp32);
        EXPECT_GT(gpu->fp32, 1e13);
        EXPECT_GT(gpu->bandwidth, 1e11);
        EXPECT_GT(gpu->memory, loom_gpu_assumed.reserved);
    }
    refusal([](loom_error *error) { return loom_gpu_by_name("rtx-4091", error) != nullptr; },
            {"'rtx-4091'", "rtx-4090"});
    for (const char *no_name : {"", " ", "h100-sxm h100-80"})
        EXPECT_EQ(loom_gpu_by_name(no_name, nullptr), nullptr) << no_name;
}

/* A step takes at least what its arithmetic takes at the assumed rate, and at least what its memory does. */
TEST(Gpus, ArePredictedFromTheirPeaks) {
    const Device gpu = shapes_of(80 * 0x1p30);
    loom_gpt_named model;
    require([&](loom_error *error) { return loom_gpt_config_by_name("gpt2", &model, error); });
    const loom_recompute none = policy("none"), block = policy("block");
    std::map<std::string, double> seconds;
    for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16}) {
        const loom_precision precision = precision_of(gpu.get(), dtype);
        const auto setup = setup_of(8, 1024, LOOM_GPT_TRAIN, &precision);
        const loom_plan plan = plan_of(model.config, setup, gpu.get(), 8);
        loom_cost flops, cost, rounded;
        for (const loom_gpu *row = loom_gpu_table(); row->name; row++) {
            require([&](loom_error *error) {
                return loom_cost_count(&flops, &model.config, setup, gpu.get(), error) &&
                       loom_cost_predict(&cost, &model.config, setup, gpu.get(), row, false, error) &&
                       loom_cost_predict(&rounded, &model.config, setup, gpu.get(), row, true, error);
            });
            const double rate = dtype == LOOM_F32 ? row->fp32 : row->tensor;
            const double step = step_of(cost, model.config, none, 1, plan.elements);
            EXPECT_GT(step, step_of(flops, model.config, none, 1, 0) / rate) << row->name;
            EXPECT_GT(step, (double)plan.elements * 28 / row->bandwidth) << row->name;
            EXPECT_LT(step, 20 * step_of(flops, model.config, none, 1, 0) / rate) << row->name;
            EXPECT_GT(step_of(cost, model.config, block, 1, plan.elements), step) << row->name;
            const double with_tf32 = step_of(rounded, model.config, none, 1, plan.elements);
            if (dtype == LOOM_F32 && row->tf32 > row->fp32)
                EXPECT_LT(with_tf32, step) << row->name;
            else
                EXPECT_EQ(with_tf32, step) << row->name;
            seconds[std::string(row->name) + loom_dtype_name(dtype)] = step;
        }
    }
    EXPECT_LT(seconds["h100bf16"], seconds["a100bf16"]);
    EXPECT_LT(seconds["h200bf16"], seconds["h100bf16"]);
    EXPECT_LT(seconds["a100bf16"], seconds["a10gbf16"]);
    EXPECT_LT(seconds["h100bf16"], seconds["h100fp32"]);
}

} // namespace
