/* The GPT: its shapes and layout, the memory it plans and takes, forward and backward as a whole, the hooks, and
 * generation. Single ops are held to the oracle in test_ops.cpp, whole models to PyTorch in test_golden.cpp. */
#include "support.h"

extern "C" {
#include "base/clock.h"
#include "model/gpt.h"
}

#include <cinttypes>
#include <map>
#include <set>
#include <tuple>

#include <sched.h>

namespace {

using namespace support;

/* ----------------------------------------------------------------------------------------------------------- shapes */

loom_gpt_named by_name(const std::string &name) {
    loom_gpt_named named = {};
    require([&](loom_error *error) { return loom_gpt_config_by_name(name.c_str(), &named, error); });
    return named;
}

/* A layout that frees itself. */
class Layout {
  public:
    explicit Layout(const loom_gpt_config &config, int ranks = 1) {
        require([&](loom_error *error) { return loom_layout_create(&layout_, &config, ranks, error); });
    }
    ~Layout() {
        loom_layout_destroy(&layout_);
    }
    Layout(const Layout &) = delete;
    Layout &operator=(const Layout &) = delete;
    const loom_layout *operator->() const {
        return &layout_;
    }
    const loom_layout *get() const {
        return &layout_;
    }

  private:
    loom_layout layout_ = {};
};

/* Embeddings; per block two layernorms (4C), the products C to 3C, C to C, C to 4C, 4C to C (12C^2) and their biases
 * (9C); GPT-2's last layernorm. The classifier is the token embedding. */
int64_t count_of(const loom_gpt_config &c) {
    return (c.vocab_size + c.block_size) * c.n_embd + c.n_layer * (12 * c.n_embd * c.n_embd + 13 * c.n_embd) +
           (c.architecture == LOOM_GPT_2 ? 2 * c.n_embd : 0);
}

TEST(Catalogue, ParameterCountsAreThePublishedOnes) {
    const std::map<std::string, int64_t> published = {
        /* as transformers counts them */
        {"gpt2", 124439808},     {"gpt2-medium", 354823168}, {"gpt2-large", 774030080},
        {"gpt2-xl", 1557611200}, {"gpt1", 116534784},        {"d12", 124439808},
        {"d24", 354823168},      {"d36", 774030080},         {"d48", 1557611200},
    };
    for (const auto &[name, count] : published) EXPECT_EQ(Layout(by_name(name).config)->count, count) << name;

    /* GPT-3's names round their sizes. */
    const std::map<std::string, double> rounded = {
        {"gpt3-125m", 125e6}, {"gpt3-350m", 350e6}, {"gpt3-760m", 760e6}, {"gpt3-1.3b", 1.3e9},
        {"gpt3-2.7b", 2.7e9}, {"gpt3-6.7b", 6.7e9}, {"gpt3-13b", 13e9},   {"gpt3-175b", 175e9},
    };
    for (const auto &[name, size] : rounded)
        EXPECT_NEAR((double)Layout(by_name(name).config)->count, size, 0.02 * size) << name;
}

TEST(Catalogue, EveryModelIsSoundAndFoundByItsName) {
    int n = 0;
    for (const loom_gpt_named *row = loom_gpt_catalogue(); row->name; row++, n++) {
        const loom_gpt_config &c = row->config;
        EXPECT_TRUE(works([&](loom_error *error) { return loom_gpt_config_check(&c, error); })) << row->name;
        EXPECT_EQ(Layout(c)->count, count_of(c)) << row->name;
        const loom_gpt_named found = by_name(row->name);
        EXPECT_STREQ(found.name, row->name);
        EXPECT_TRUE(found.config.n_layer == c.n_layer && found.config.n_head == c.n_head &&
                    found.config.n_embd == c.n_embd && found.config.block_size == c.block_size &&
                    found.config.vocab_size == c.vocab_size && found.config.activation == c.activation &&
                    found.config.architecture == c.architecture)
            << row->name;
        EXPECT_STRNE(row->note, "") << row->name;
    }
    EXPECT_EQ(n, 15) << "nano, mini, GPT-1, four GPT-2s, eight GPT-3s";
    for (const int depth : {6, 12, 24, 36, 48}) {
        const loom_gpt_config c = by_name("d" + std::to_string(depth)).config;
        EXPECT_EQ(c.n_layer, depth);
        EXPECT_EQ(c.n_embd, 64 * c.n_head) << "llm.c's heads have 64 channels";
    }
}

TEST(Catalogue, AnUnknownNameIsRefusedWithTheNearest) {
    const auto find = [](const std::string &name) {
        return [name](loom_error *error) {
            loom_gpt_named named;
            return loom_gpt_config_by_name(name.c_str(), &named, error);
        };
    };
    refusal(find("gtp2-xl"), {"--model", "'gtp2-xl'", "did you mean gpt2-xl?"});
    refusal(find("gpt3-125M"), {"is called gpt3-125m here"});
    refusal(find("d13"), {"--model", "'d13'"});
    refusal(find("d12x"), {"'d12x'"});
    refusal(find("d-12"), {"'d-12'"});
    refusal(find("d99999999999999999999"), {"--model"});
    refusal(find(""), {"--model"});
    EXPECT_EQ(refusal(find("transformer-xxl")).find("did you mean"), std::string::npos);
}

TEST(Shapes, WhatCannotBeIsRefusedByItsFlag) {
    const loom_gpt_config good = gpt_shape(2, 4, 64, 32, 100);
    const struct {
        const char *flag;
        int64_t loom_gpt_config::*field;
        int64_t largest;
    } rows[] = {{"--n-layer", &loom_gpt_config::n_layer, 1000},
                {"--n-head", &loom_gpt_config::n_head, 1024},
                {"--n-embd", &loom_gpt_config::n_embd, 1 << 17},
                {"--block-size", &loom_gpt_config::block_size, 1 << 20},
                {"--vocab-size", &loom_gpt_config::vocab_size, 1 << 22}};
    const auto check = [](const loom_gpt_config &config) {
        return [config](loom_error *error) { return loom_gpt_config_check(&config, error); };
    };
    EXPECT_TRUE(works(check(good)));
    for (const auto &row : rows)
        for (const int64_t value : {INT64_C(0), INT64_C(-1), row.largest + 1, INT64_MIN, INT64_MAX}) {
            loom_gpt_config bad = good;
            bad.*row.field = value;
            refusal(check(bad), {row.flag, std::to_string(value), std::to_string(row.largest)});
            loom_layout layout;
            refusal([&](loom_error *error) { return loom_layout_create(&layout, &bad, 1, error); }, {row.flag});
        }
    loom_gpt_config uneven = good;
    uneven.n_head = 3;
    refusal(check(uneven), {"--n-embd", "64", "--n-head", "3"});
}

TEST(Shapes, AModelRefusesWhatItsPositionsAndIndicesCannotHold) {
    const loom_gpt_config config = gpt_shape(1, 1, 8, 16, 32);
    const Device device = open_device("definition");
    const auto create = [&](int64_t B, int64_t T) {
        return [&config, &device, B, T](loom_error *error) {
            loom_gpt *gpt = nullptr;
            const bool ok = loom_gpt_create(&gpt, &config, setup_of(B, T), device.get(), error);
            loom_gpt_destroy(gpt);
            return ok;
        };
    };
    EXPECT_TRUE(works(create(1, 16)));
    refusal(create(1, 17), {"--seq-len", "17", "--block-size", "16"});
    refusal(create((INT64_C(1) << 31) / 16 + 1, 16), {"--micro-batch"});
}

/* Matrices' weights from the layout itself: 2 operations each forward, 4 backward; the padded vocabulary's rows are
 * multiplied too. A token attends to half the sequence on average: 2 products, 2 operations, T/2 keys, C channels, and
 * twice that backward. */
TEST(Shapes, FlopsPerTokenCountProductsAndAttention) {
    for (const char *name : {"nano", "gpt2", "gpt2-xl", "gpt3-175b"}) {
        const loom_gpt_config c = by_name(name).config;
        const Layout layout(c);
        double weights = 0;
        for (int i = 0; i < layout->n_parameters; i++) {
            const loom_parameter &p = layout->parameter[i];
            if (!p.vector && std::string(p.name) != "transformer.wpe.weight")
                weights += (double)(p.padded_rows * p.columns);
        }
        for (const int64_t T : {INT64_C(1), c.block_size}) {
            const double attention = (double)c.n_layer * 3 * 2 * 2 * (double)T / 2 * (double)c.n_embd;
            EXPECT_DOUBLE_EQ(loom_gpt_flops_per_token(&c, T), 6 * weights + attention) << name << " T " << T;
        }
    }
    const loom_gpt_config gpt2 = by_name("gpt2").config;
    EXPECT_EQ(loom_gpt_flops_per_token(&gpt2, 1024), 798031872.0);
}

/* ---------------------------------------------------------------------------------------------------------- devices */

TEST(Devices, AreOpenedByName) {
    const std::map<std::string, std::pair<std::string, loom_dtype>> names = {{"auto", {"cpu", LOOM_F32}},
                                                                             {"cpu", {"cpu", LOOM_F32}},
                                                                             {"definition", {"definition", LOOM_F32}},
                                                                             {"oracle", {"oracle", LOOM_F64}}};
    for (const auto &[name, is] : names) {
        const Device device = open_device(name, 2);
        EXPECT_EQ(device->name, is.first);
        EXPECT_EQ(device->storage, is.second) << name;
        EXPECT_EQ(device->statistics, is.second) << name;
        EXPECT_EQ(device->threads, 2);
        EXPECT_NE(std::string(device->description).find("2 threads"), std::string::npos) << device->description;
        double peak = 0;
        require([&](loom_error *error) { return device->peak(device.get(), device->storage, 0.005, &peak, error); });
        EXPECT_GT(peak, 0) << name;
    }
    loom_device *device = nullptr;
    refusal([&](loom_error *error) { return loom_device_open(&device, "orcale", NULL, error); },
            {"--device", "'orcale'", "did you mean oracle?"});
    refusal([&](loom_error *error) { return loom_device_open(&device, "cuda", NULL, error); }, {"--device", "cpu"});
    loom_device_close(NULL);
}

/* Each of them takes turns with others, and once each was counted as if it had a processor. What the processors do is
 * measured until it shows, as others may have them. */
TEST(Devices, ManyThreadsHaveThePeakOfTheProcessors) {
    cpu_set_t here;
    ASSERT_EQ(sched_getaffinity(0, sizeof here, &here), 0);
    const int processors = CPU_COUNT(&here);
    const auto peak_of = [](int threads) {
        const Device device = open_device("cpu", threads);
        double peak = 0;
        require([&](loom_error *error) { return device->peak(device.get(), LOOM_F32, 0.005, &peak, error); });
        return peak;
    };
    const double crowded = peak_of(16 * processors), end = loom_seconds_now() + 60;
    double alone = 0;
    while (alone < crowded / 4 && loom_seconds_now() < end) alone = std::max(alone, peak_of(processors));
    EXPECT_GE(alone, crowded / 4) << crowded;
}

TEST(Devices, MoreMemoryThanThereIsIsRefusedWithTheSizes) {
    const Device device = open_device("cpu");
    const size_t available = device->available(device.get());
    ASSERT_GT(available, 0u);
    void *memory = nullptr;
    if (available < SIZE_MAX / 4)
        refusal([&](loom_error *error) { return device->allocate(device.get(), &memory, 4 * available, error); },
                {"MiB are needed", "MiB are free"});
    EXPECT_EQ(memory, nullptr);
    ASSERT_TRUE(works([&](loom_error *error) { return device->allocate(device.get(), &memory, 100000, error); }));
    EXPECT_EQ((uintptr_t)memory % LOOM_ARENA_ALIGNMENT, 0u);
    EXPECT_EQ(std::string((const char *)memory, 100000), std::string(100000, 0));
    device->release(device.get(), memory, 100000);
}

/* A device that pins its threads leaves the caller's thread as free as it was. */
TEST(Devices, LeaveTheProcessorsAsTheyWere) {
    cpu_set_t before, after;
    ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    open_device("cpu", 0);
    ASSERT_EQ(sched_getaffinity(0, sizeof after, &after), 0);
    EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

/* ----------------------------------------------------------------------------------------------------------- layout */

const loom_gpt_config layout_shapes[] = {
    gpt_shape(1, 1, 1, 1, 1),      gpt_shape(3, 3, 48, 64, 257),   gpt_shape(2, 5, 35, 7, 128),
    gpt_shape(4, 4, 128, 64, 129), gpt_shape(1, 2, 130, 100, 383), gpt_shape(12, 12, 768, 1024, 50257),
};

TEST(LayoutTest, TensorsAreAlignedApartAndInsideTheirBuckets) {
    for (const loom_gpt_config &c : layout_shapes)
        for (const int ranks : {1, 2, 3, 8}) {
            SCOPED_TRACE("channels " + std::to_string(c.n_embd) + ", ranks " + std::to_string(ranks));
            const Layout layout(c, ranks);
            ASSERT_EQ(layout->n_buckets, c.n_layer + 2);
            int64_t end = 0;
            for (int b = 0; b < layout->n_buckets; b++) {
                EXPECT_EQ(layout->bucket[b].offset, end) << "buckets follow each other";
                EXPECT_GT(layout->bucket[b].elements, 0);
                EXPECT_EQ(layout->bucket[b].elements % (ranks * 128), 0) << "each rank gets an equal, aligned share";
                end += layout->bucket[b].elements;
            }
            EXPECT_EQ(layout->elements, end);

            ASSERT_EQ(layout->n_parameters, 2 + 12 * c.n_layer + 2);
            std::vector<int64_t> last_of_bucket((size_t)layout->n_buckets, 0);
            int64_t free_from = 0, count = 0;
            for (int i = 0; i < layout->n_parameters; i++) {
                const loom_parameter &p = layout->parameter[i];
                const loom_bucket &bucket = layout->bucket[p.bucket];
                EXPECT_EQ(p.offset % 128, 0) << p.name;
                EXPECT_GE(p.offset, free_from) << p.name;
                free_from = p.offset + p.padded_rows * p.columns;
                EXPECT_GE(p.offset, bucket.offset) << p.name;
                EXPECT_LE(free_from, bucket.offset + bucket.elements) << p.name;
                last_of_bucket[(size_t)p.bucket] = free_from - bucket.offset;
                count += p.rows * p.columns;
                EXPECT_EQ(p.vector, p.rows == 1 && p.padded_rows == 1 && !p.decay) << p.name;
                EXPECT_EQ(p.decay, !p.vector) << p.name;
            }
            for (int b = 0; b < layout->n_buckets; b++)
                EXPECT_LT(layout->bucket[b].elements - last_of_bucket[(size_t)b], (layout->bucket[b].blocks + 1) * 128)
                    << "no more padding than that";
            EXPECT_EQ(layout->count, count);
            EXPECT_EQ(count, count_of(c));
        }
}

TEST(LayoutTest, IsTheSameForRanksThatDivide64AndGivesEachWholeBlocks) {
    for (const int64_t channels : {8, 96, 768}) {
        const loom_gpt_config c = gpt_shape(2, 1, channels, 300, 5000);
        const Layout one(c);
        for (const int ranks : {1, 2, 3, 4, 5, 8, 16, 32, 64, 96, 128}) {
            SCOPED_TRACE("channels " + std::to_string(channels) + ", ranks " + std::to_string(ranks));
            const Layout layout(c, ranks);
            for (int b = 0; b < layout->n_buckets; b++) {
                const loom_bucket &bucket = layout->bucket[b];
                EXPECT_EQ(bucket.blocks % ranks, 0);
                EXPECT_EQ(bucket.elements % (bucket.blocks * 128), 0);
                EXPECT_LE(bucket.elements / bucket.blocks, 65536);
                if (64 % ranks) continue;
                EXPECT_EQ(bucket.elements, one->bucket[b].elements);
                EXPECT_EQ(bucket.blocks, one->bucket[b].blocks);
            }
        }
    }
}

/* Names, shapes and kinds as transformers' GPT2LMHeadModel has them. */
TEST(LayoutTest, NamesAndShapesAreThoseOfTheFile) {
    const loom_gpt_config c = gpt_shape(2, 3, 48, 20, 70);
    const Layout layout(c);
    const int64_t C = c.n_embd;
    std::map<std::string, std::pair<int64_t, int64_t>> expected = {{"transformer.wte.weight", {c.vocab_size, C}},
                                                                   {"transformer.wpe.weight", {c.block_size, C}},
                                                                   {"transformer.ln_f.weight", {0, C}},
                                                                   {"transformer.ln_f.bias", {0, C}}};
    for (int64_t l = 0; l < c.n_layer; l++) {
        const std::string h = "transformer.h." + std::to_string(l) + ".";
        for (const char *norm : {"ln_1", "ln_2"}) {
            expected[h + norm + ".weight"] = {0, C};
            expected[h + norm + ".bias"] = {0, C};
        }
        const std::tuple<const char *, int64_t, int64_t> products[] = {
            {"attn.c_attn", C, 3 * C}, {"attn.c_proj", C, C}, {"mlp.c_fc", C, 4 * C}, {"mlp.c_proj", 4 * C, C}};
        for (const auto &[name, in, out] : products) {
            expected[h + name + ".weight"] = {in, out};
            expected[h + name + ".bias"] = {0, out};
        }
    }
    ASSERT_EQ((size_t)layout->n_parameters, expected.size());
    for (const auto &[name, shape] : expected) {
        const loom_parameter *p = loom_layout_find(layout.get(), name.c_str());
        ASSERT_NE(p, nullptr) << name;
        EXPECT_EQ(p->vector, shape.first == 0) << name;
        EXPECT_EQ(p->rows, std::max(shape.first, INT64_C(1))) << name;
        EXPECT_EQ(p->columns, shape.second) << name;
        EXPECT_EQ(p->padded_rows, name == "transformer.wte.weight" ? 128 : p->rows) << name;
        const int bucket = name.find(".h.") == std::string::npos ? (name.find("ln_f") == std::string::npos ? 0 : 3)
                                                                 : name[14] - '0' + 1;
        EXPECT_EQ(p->bucket, bucket) << name;
    }
    EXPECT_EQ(loom_layout_find(layout.get(), "transformer.h.2.ln_1.weight"), nullptr);
    EXPECT_EQ(loom_layout_find(layout.get(), ""), nullptr);
}

TEST(LayoutTest, TheVocabularyIsPaddedTo128) {
    for (const auto &[size, padded] : std::map<int64_t, int64_t>{{1, 128}, {128, 128}, {129, 256}, {50257, 50304}}) {
        const loom_gpt_config c = gpt_shape(1, 1, 8, 8, size);
        EXPECT_EQ(loom_gpt_padded_vocabulary(&c), padded);
    }
}

/* ------------------------------------------------------------------------------------------------------------- plan */

/* The plan, made without any memory, is the use of a model laid out in memory: row by row and in all, and the step that
 * follows needs nothing more. */
TEST(Plan, IsTheArenasUseToTheByte) {
    const loom_gpt_config shapes[] = {gpt_shape(1, 1, 8, 70, 5), gpt_shape(2, 3, 48, 80, 300, LOOM_GPT_RELU)};
    const std::pair<int64_t, int64_t> batches[] = {{1, 1}, {3, 20}, {2, 67}};
    for (const char *name : {"cpu", "definition", "oracle"})
        for (const int threads : {1, 2})
            for (const loom_gpt_config &shape : shapes)
                for (const auto &[B, T] : batches)
                    for (const loom_gpt_purpose purpose : {LOOM_GPT_TRAIN, LOOM_GPT_INFER}) {
                        SCOPED_TRACE(std::string(name) + " threads " + std::to_string(threads) + " channels " +
                                     std::to_string(shape.n_embd) + " B " + std::to_string(B) + " T " +
                                     std::to_string(T) + (purpose == LOOM_GPT_TRAIN ? " training" : " inference"));
                        const Device device = open_device(name, threads);
                        loom_plan plan;
                        ASSERT_TRUE(works([&, b = B, t = T](loom_error *error) {
                            return loom_plan_make(&plan, &shape, setup_of(b, t, purpose), device.get(), 100 * b, error);
                        }));
                        ModelOptions options;
                        options.device = name;
                        options.threads = threads;
                        options.purpose = purpose;
                        options.sequences = 100 * B;
                        Model model(shape, B, T, options);
                        EXPECT_EQ(plan.arena.used, model.arena.used);
                        ASSERT_EQ(plan.arena.n_rows, model.arena.n_rows);
                        for (int i = 0; i < plan.arena.n_rows; i++) {
                            EXPECT_STREQ(plan.arena.row[i].name, model.arena.row[i].name);
                            EXPECT_EQ(plan.arena.row[i].bytes, model.arena.row[i].bytes) << plan.arena.row[i].name;
                        }
                        EXPECT_EQ(plan.parameters, count_of(shape));
                        EXPECT_EQ(plan.B, B);
                        EXPECT_EQ(plan.T, T);
                        if (purpose == LOOM_GPT_TRAIN) {
                            model.run(random_ids(B * T, 5, 1), random_ids(B * T, 5, 2), 1);
                            loom_optimizer_update(&model.optimizer);
                        }
                    }
}

/* Parameters, gradients and two moments of GPT-3 in fp32 are 16 bytes each; no machine that runs this has them. */
TEST(Plan, NeedsNoMemoryForTheLargestModel) {
    const loom_gpt_config c = by_name("gpt3-175b").config;
    const Device device = open_device("definition");
    loom_plan plan;
    ASSERT_TRUE(works([&](loom_error *error) {
        return loom_plan_make(&plan, &c, setup_of(1, c.block_size), device.get(), 1, error);
    }));
    EXPECT_GT((double)plan.arena.used, 16.0 * (double)count_of(c));
    EXPECT_LT((double)plan.arena.used, 16.0 * (double)count_of(c) * 1.2);
}

TEST(Plan, WhatDoesNotFitIsRefusedWithSizesAndTheLargestParts) {
    loom_plan plan = {};
    plan.arena = loom_arena_measure();
    loom_arena_take(&plan.arena, "small part", (1 << 20) - 256);
    loom_arena_take(&plan.arena, "largest part", (40 << 20) - 256);
    loom_arena_take(&plan.arena, "smallest part", (1 << 19) - 256);
    loom_arena_take(&plan.arena, "second part", (20 << 20) - 256);
    const auto check = [&](loom_error *error) { return loom_plan_check(&plan, error); };
    EXPECT_TRUE(works(check)) << "nobody said what there is";
    plan.available = plan.arena.used;
    EXPECT_TRUE(works(check));
    plan.available = plan.arena.used - 1;
    const std::string message = refusal(
        check, {"--memory", "62 MiB are needed", "largest part 40, second part 20, small part 1", "--micro-batch"});
    EXPECT_EQ(message.find("smallest part"), std::string::npos);
}

/* --------------------------------------------------------------------------------------------- one forward and back */

/* Odd sizes: heads of 16 channels, a vocabulary with padding, rows beyond one tile of attention. */
const loom_gpt_config odd_shape = gpt_shape(2, 3, 48, 80, 70);

struct Batch {
    std::vector<int32_t> tokens, targets;
};

Batch random_batch(const loom_gpt_config &c, int64_t B, int64_t T, uint64_t seed) {
    return {random_ids(B * T, c.vocab_size, seed), random_ids(B * T, c.vocab_size, seed + 1000)};
}

ModelOptions on(const std::string &device, int threads = 1, int fill = 0xFF) {
    ModelOptions options;
    options.device = device;
    options.threads = threads;
    options.fill = fill;
    return options;
}

loom_scalars_in optimizer_inputs() {
    loom_scalars_in in = {};
    in.learning_rate = 1e-2f;
    in.beta1 = 0.9f;
    in.beta2 = 0.95f;
    in.epsilon = 1e-8f;
    in.weight_decay = 0.1f;
    in.clip_norm = 1;
    return in;
}

/* Everything that two steps leave behind, one of them of two micro-batches, as bits; validation and inference
 * between. The workspace and what was left of the activations may hold anything. */
std::string bits_of_two_steps(Model &model) {
    const loom_gpt_config &c = model.config();
    const size_t real = loom_dtype_size(model.device()->storage),
                 statistic = loom_dtype_size(model.device()->statistics);
    const size_t elements = (size_t)model.layout().elements, rows = (size_t)(model.B * model.T);
    std::string bits;
    require([&](loom_error *error) { return loom_gpt_initialise(model.gpt(), 5, error); });
    model.set_inputs(optimizer_inputs());
    const auto spoil_workspace = [&] {
        loom_context *ctx = loom_gpt_get_context(model.gpt());
        const std::string nans(ctx->workspace_bytes, (char)0xFF);
        model.copy(ctx->workspace, nans.data(), nans.size(), LOOM_HOST_TO_DEVICE);
    };
    const auto keep = [&](const void *data, size_t bytes) { bits += model.bytes(data, bytes); };
    for (uint64_t step = 0; step < 2; step++) {
        for (int64_t micro = 0; micro <= (int64_t)step; micro++) {
            const Batch batch = random_batch(c, model.B, model.T, 10 * step + (uint64_t)micro);
            spoil_workspace();
            model.run(batch.tokens, batch.targets, 1.0 / (double)((int64_t)(step + 1) * model.B * model.T), micro > 0);
            loom_optimizer_take_losses(&model.optimizer, micro * model.B, model.B);
            keep(loom_gpt_get_losses(model.gpt()), rows * statistic);
        }
        if (step == 0) /* the second half of the step's losses, which the second step has */
            loom_optimizer_take_losses(&model.optimizer, model.B, model.B);
        spoil_workspace();
        loom_optimizer_update(&model.optimizer);
        keep(loom_gpt_get_gradients(model.gpt()), elements * real);
        keep(loom_gpt_get_parameters(model.gpt()), elements * real);
        keep(model.optimizer.moment1, elements * statistic);
        keep(model.optimizer.moment2, elements * statistic);
        const loom_scalars scalars = model.scalars();
        bits.append((const char *)&scalars.out, sizeof scalars.out);

        spoil_workspace();
        std::vector<float> logits((size_t)c.vocab_size);
        const std::vector<int32_t> prompt = random_ids(model.T, c.vocab_size, 99);
        require([&](loom_error *error) {
            return loom_gpt_next_logits(model.gpt(), prompt.data(), model.T, 0, logits.data(), error);
        });
        bits.append((const char *)logits.data(), logits.size() * sizeof(float));
    }
    return bits;
}

ModelOptions two_batches(ModelOptions options, int64_t B) {
    options.sequences = 2 * B;
    return options;
}

/* Each architecture on each device. */
class OnDevice : public testing::TestWithParam<std::tuple<const char *, loom_gpt_architecture>> {
  protected:
    const char *const device = std::get<0>(GetParam());
    const loom_gpt_config odd = of_architecture(odd_shape);

    static loom_gpt_config of_architecture(loom_gpt_config shape) {
        shape.architecture = std::get<1>(GetParam());
        return shape;
    }
};

std::string device_name(const testing::TestParamInfo<OnDevice::ParamType> &place) {
    return std::string(std::get<0>(place.param)) + "_" + loom_gpt_names_of(std::get<1>(place.param))->name;
}

INSTANTIATE_TEST_SUITE_P(Devices, OnDevice,
                         testing::Combine(testing::Values("cpu", "definition", "oracle"),
                                          testing::Values(LOOM_GPT_2, LOOM_GPT_1)),
                         device_name);

/* What a step gives does not depend on what its memory held: once NaNs, once zeros, once large numbers. So nothing is
 * read that was not written. And all of it is numbers. */
TEST_P(OnDevice, NothingIsReadBeforeItIsWritten) {
    const int64_t B = 2, T = 67;
    std::string reference;
    for (const int fill : {0x00, 0xFF, 0x5A}) {
        Model model(odd, B, T, two_batches(on(device, 2, fill), B));
        const std::string bits = bits_of_two_steps(model);
        if (reference.empty()) reference = bits;
        EXPECT_TRUE(bits == reference) << "memory of bytes " << fill << " changes what a step gives";
        for (const std::vector<double> &values :
             {model.gradients(), model.parameters(), model.losses(), model.moments(1), model.moments(2)})
            EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); }));
    }
}

/* Several tiles of every product: N = 320 rows, 4C = 384 and Vp = 1152 columns. */
TEST_P(OnDevice, BitsDoNotDependOnTheNumberOfThreads) {
    const loom_gpt_config shape = of_architecture(gpt_shape(1, 4, 96, 80, 1100));
    std::string reference;
    for (const int threads : {1, 2, 3}) {
        Model model(shape, 4, 80, two_batches(on(device, threads), 4));
        const std::string bits = bits_of_two_steps(model);
        if (reference.empty()) reference = bits;
        EXPECT_TRUE(bits == reference) << threads << " threads";
    }
}

/* Gaps between tensors and the rows that pad the vocabulary: gradients, moments and parameters stay zero, weight decay
 * or not. */
TEST_P(OnDevice, PaddingStaysZero) {
    const int64_t B = 2, T = 20;
    Model model(odd, B, T, two_batches(on(device), B));
    bits_of_two_steps(model);
    std::map<std::string, std::vector<double>> values = {{"gradients", model.gradients()},
                                                         {"parameters", model.parameters()},
                                                         {"first moments", model.moments(1)},
                                                         {"second moments", model.moments(2)}};
    for (auto &[what, all] : values) {
        const loom_layout &layout = model.layout();
        for (int i = 0; i < layout.n_parameters; i++) {
            const loom_parameter &p = layout.parameter[i];
            double *first = all.data() + p.offset;
            EXPECT_TRUE(std::any_of(first, first + p.rows * p.columns, [](double x) { return x != 0; }))
                << what << " of " << p.name << " are all zero";
            std::fill(first, first + p.rows * p.columns, 0.0);
        }
        EXPECT_TRUE(std::all_of(all.begin(), all.end(), [](double x) { return x == 0; })) << what;
    }
}

/* An initialised model knows nothing: its loss is that of a uniform guess, but for the logits' small spread (their
 * variance is about C 0.02^2, of which half adds to the loss). */
TEST_P(OnDevice, InitialisationIsAsPublished) {
    const loom_gpt_config c = of_architecture(gpt_shape(4, 2, 64, 32, 200));
    Model model(c, 4, 32, on(device));
    ASSERT_TRUE(works([&](loom_error *error) { return loom_gpt_initialise(model.gpt(), 1, error); }));
    const std::vector<double> all = model.parameters();
    for (int i = 0; i < model.layout().n_parameters; i++) {
        const loom_parameter &p = model.layout().parameter[i];
        const std::vector<double> values = tensor(all, p);
        const std::string name = p.name;
        if (p.vector) {
            const double value = name.find(".weight") != std::string::npos ? 1 : 0;
            EXPECT_TRUE(std::all_of(values.begin(), values.end(), [=](double x) { return x == value; })) << name;
            continue;
        }
        const double n = (double)values.size();
        const bool scaled = c.architecture == LOOM_GPT_2 && name.find("c_proj") != std::string::npos;
        const double deviation = scaled ? 0.02 / std::sqrt(2.0 * 4) : 0.02;
        double sum = 0, squares = 0;
        for (const double x : values) sum += x, squares += x * x;
        EXPECT_NEAR(sum / n, 0, 5 * deviation / std::sqrt(n)) << name;
        EXPECT_NEAR(std::sqrt(squares / n) / deviation, 1, 5 / std::sqrt(2 * n)) << name;
    }
    const Batch batch = random_batch(c, 4, 32, 3);
    model.run(batch.tokens, batch.targets, 1.0 / 128);
    double loss = 0;
    for (const double row : model.losses()) loss += row / 128;
    const double spread = std::sqrt(64.0) * 0.02;
    EXPECT_NEAR(loss, std::log(200.0) + spread * spread / 2, 5 * spread / std::sqrt(128.0));
}

TEST(Initialisation, IsTheSameOnEveryDeviceAndAnotherForAnotherSeed) {
    Model cpu(odd_shape, 1, 8, on("cpu", 2)), oracle(odd_shape, 1, 8, on("oracle"));
    const auto initialise = [](Model &model, uint64_t seed) {
        require([&](loom_error *error) { return loom_gpt_initialise(model.gpt(), seed, error); });
        return model.parameters();
    };
    const std::vector<double> first = initialise(cpu, 7);
    EXPECT_EQ(first, initialise(oracle, 7));
    const std::vector<double> other = initialise(cpu, 8);
    for (int i = 0; i < cpu.layout().n_parameters; i++) {
        const loom_parameter &p = cpu.layout().parameter[i];
        EXPECT_EQ(tensor(first, p) == tensor(other, p), p.vector) << p.name;
    }
    EXPECT_EQ(first, initialise(cpu, 7));
    std::set<std::vector<double>> matrices; /* no two tensors draw the same numbers */
    for (int i = 0; i < cpu.layout().n_parameters; i++) {
        std::vector<double> values = tensor(first, cpu.layout().parameter[i]);
        values.resize(8);
        if (!cpu.layout().parameter[i].vector) {
            for (double &x : values) x /= values[0]; /* whatever its scale */
            EXPECT_TRUE(matrices.insert(values).second) << cpu.layout().parameter[i].name;
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- gradients */

/* The whole model's gradient, on the oracle, beside central differences of its loss, each of some elements of every
 * tensor. D(h) errs by a h^2 + b h^4 + ..., so R(h) = (4 D(h) - D(2h)) / 3 errs by about -4 b h^4, and R(2h) by 16
 * times that: their difference bounds R(h)'s truncation with room to spare. Rounding adds what the loss's last bits
 * come to over h: with 2^-53 and a path of S roundings, sqrt(S) 2^-53 |loss| / h, twice for the two ends and 3 for
 * R's weights.
 *
 * Where ReLU has its kink there is no gradient to find, and where its square's slope has one the error is no series in
 * h: an element whose differences disagree, since some unit switches on or off between them, is left out. Smaller steps
 * make such places rare. */
class WholeGradient : public testing::TestWithParam<std::tuple<loom_gpt_activation, loom_gpt_architecture>> {
  protected:
    const loom_gpt_activation activation = std::get<0>(GetParam());

    static loom_gpt_config shaped(int64_t n_head, int64_t n_embd, int64_t block_size, int64_t vocab_size) {
        loom_gpt_config c = gpt_shape(2, n_head, n_embd, block_size, vocab_size, std::get<0>(GetParam()));
        c.architecture = std::get<1>(GetParam());
        return c;
    }
};

std::string activation_name(const testing::TestParamInfo<WholeGradient::ParamType> &of) {
    return std::string(loom_activation_name(loom_activation_of(std::get<0>(of.param)))) + "_" +
           loom_gpt_names_of(std::get<1>(of.param))->name;
}

INSTANTIATE_TEST_SUITE_P(Activations, WholeGradient,
                         testing::Combine(testing::Values(LOOM_GPT_GELU, LOOM_GPT_RELU, LOOM_GPT_RELU2),
                                          testing::Values(LOOM_GPT_2, LOOM_GPT_1)),
                         activation_name);

TEST_P(WholeGradient, AgreesWithFiniteDifferences) {
    const bool kinks = activation != LOOM_GPT_GELU;
    const loom_gpt_config c = shaped(2, 12, 12, 37);
    const int64_t B = 2, T = 11;
    Model model(c, B, T, on("oracle"));
    model.scatter_parameters(1);
    Batch batch = random_batch(c, B, T, 2);
    batch.targets[3] = -1;
    const double weight = (double)(1.0f / (float)(B * T - 1));
    model.run(batch.tokens, batch.targets, weight);
    const std::vector<double> gradients = model.gradients(), parameters = model.parameters();

    const auto loss_at = [&](int64_t element, double value) {
        model.write(loom_gpt_get_parameters(model.gpt()), LOOM_F64, element, {value});
        loom_gpt_evaluate(model.gpt());
        double loss = 0;
        for (const double row : model.losses()) loss += row;
        return loss * weight;
    };
    const double loss = loss_at(0, parameters[0]), h = kinks ? 2e-5 : 1e-3;
    const double rounding = 6 * std::sqrt(forward_path(c, T)) * 0x1p-53 * loss / h;
    int checked = 0, left_out = 0;
    for (int i = 0; i < model.layout().n_parameters; i++) {
        const loom_parameter &p = model.layout().parameter[i];
        const std::vector<double> own = tensor(gradients, p);
        double largest = 0;
        for (const double g : own) largest = std::max(largest, std::fabs(g));
        for (const int32_t place : random_ids(10, p.rows * p.columns, 100 + (uint64_t)i)) {
            const int64_t element = p.offset + place;
            const double at = parameters[(size_t)element];
            const auto difference = [&](double step) {
                return (loss_at(element, at + step) - loss_at(element, at - step)) / (2 * step);
            };
            const double d1 = difference(h), d2 = difference(2 * h), d4 = difference(4 * h);
            const double r1 = (4 * d1 - d2) / 3, r2 = (4 * d2 - d4) / 3;
            const double allowed = std::fabs(r1 - r2) + rounding;
            loss_at(element, at);
            if (allowed > 2e-6 * largest && kinks) {
                left_out++;
                continue;
            }
            EXPECT_NEAR(gradients[(size_t)element], r1, allowed) << p.name << ", element " << place;
            EXPECT_LE(allowed, 2e-6 * largest) << p.name << ": the differences are too rough to tell anything";
            checked++;
        }
    }
    EXPECT_EQ(checked + left_out, 10 * model.layout().n_parameters);
    EXPECT_LT(left_out, kinks ? 40 : 1);
}

/* fp32 beside double, for each device that computes in fp32. */
TEST_P(WholeGradient, OfFp32DevicesAgreesWithTheOracles) {
    const loom_gpt_config c = shaped(3, 48, 80, 70);
    const int64_t B = 3, T = 67;
    const Batch batch = random_batch(c, B, T, 4);
    Model oracle(c, B, T, on("oracle"));
    oracle.scatter_parameters(3);
    oracle.run(batch.tokens, batch.targets, 1.0 / 256);
    for (const char *name : {"cpu", "definition"}) {
        Model model(c, B, T, on(name, 2));
        model.scatter_parameters(3);
        model.run(batch.tokens, batch.targets, 1.0 / 256);
        EXPECT_LE(relative_error(model.losses(), oracle.losses()), model.unit() * std::sqrt(forward_path(c, T)))
            << name;
        expect_tensors_near(model.layout(), model.gradients(), oracle.gradients(),
                            model.unit() * std::sqrt(whole_path(c, B, T)), name);
    }
}

/* Two micro-batches, the second accumulated, against both in one: only the order of additions differs. */
TEST_P(OnDevice, AccumulatedMicroBatchesAreOneLargeBatch) {
    const int64_t B = 2, T = 23;
    const Batch first = random_batch(odd, B, T, 1), second = random_batch(odd, B, T, 2);
    Batch both = first;
    both.tokens.insert(both.tokens.end(), second.tokens.begin(), second.tokens.end());
    both.targets.insert(both.targets.end(), second.targets.begin(), second.targets.end());

    Model halves(odd, B, T, on(device)), whole(odd, 2 * B, T, on(device));
    halves.scatter_parameters(3);
    whole.scatter_parameters(3);
    whole.run(both.tokens, both.targets, 1.0 / 64);
    halves.run(first.tokens, first.targets, 1.0 / 64);
    std::vector<double> losses = halves.losses();
    halves.run(second.tokens, second.targets, 1.0 / 64, true);
    for (const double row : halves.losses()) losses.push_back(row);

    const double tolerance = 2 * whole.unit() * std::sqrt(whole_path(odd, 2 * B, T));
    EXPECT_TRUE(whole.unit() > 0x1p-53 || tolerance < 1e-12) << "the oracle is exact to 12 digits";
    EXPECT_LE(relative_error(losses, whole.losses()), tolerance);
    expect_tensors_near(whole.layout(), halves.gradients(), whole.gradients(), tolerance, device);
}

/* Logits exist some rows at a time; how many changes no loss by a bit, and gradients by their order of additions. */
TEST(Gradients, DoNotDependOnHowManyRowsOfLogitsExist) {
    const int64_t B = 2, T = 23;
    const Batch batch = random_batch(odd_shape, B, T, 1);
    Model whole(odd_shape, B, T, on("oracle"));
    whole.scatter_parameters(3);
    for (const int64_t rows : {1, 7, 45}) {
        ModelOptions options = on("oracle");
        options.before_lay_out = [=](loom_gpt *gpt) { gpt->chunk_rows = rows; };
        Model model(odd_shape, B, T, options);
        model.scatter_parameters(3);
        for (const bool accumulate : {false, true}) {
            whole.run(batch.tokens, batch.targets, 1.0 / 64, accumulate);
            model.run(batch.tokens, batch.targets, 1.0 / 64, accumulate);
            EXPECT_EQ(model.losses(), whole.losses()) << rows << " rows";
            expect_tensors_near(whole.layout(), model.gradients(), whole.gradients(),
                                2 * 0x1p-53 * std::sqrt(whole_path(odd_shape, B, T)), std::to_string(rows) + " rows");
        }
    }
}

/* Where the tape says that others have written the gradient of a linear layer's input before, it is added to. */
TEST(Gradients, OfALinearLayersInputAreAddedWhereTheTapeSaysSo) {
    Model model(odd_shape, 2, 23, on("oracle"));
    const Batch batch = random_batch(odd_shape, model.B, model.T, 1);
    model.scatter_parameters(3);
    model.run(batch.tokens, batch.targets, 1.0 / 64);
    loom_gpt *gpt = model.gpt();
    loom_node node = gpt->tape.node[2];
    ASSERT_TRUE(node.module == &loom_module_linear && node.module->adds);
    const loom_view dx = loom_run_gradient(gpt, node.in[0]), dout = loom_run_gradient(gpt, node.out[LOOM_LINEAR_OUT]);
    std::vector<double> values((size_t)loom_view_elements(&dout));
    for (size_t i = 0; i < values.size(); i++) values[i] = (double)(i % 7) - 2.5;
    model.copy(dout.data, values.data(), loom_view_extent(&dout), LOOM_HOST_TO_DEVICE);

    std::vector<double> written((size_t)loom_view_elements(&dx)), twice = written;
    node.module->backward(gpt, &node);
    model.copy(written.data(), dx.data, loom_view_extent(&dx), LOOM_DEVICE_TO_HOST);
    node.adds_in = 1;
    node.module->backward(gpt, &node);
    model.copy(twice.data(), dx.data, loom_view_extent(&dx), LOOM_DEVICE_TO_HOST);
    for (size_t i = 0; i < written.size(); i++) ASSERT_EQ(twice[i], 2 * written[i]) << i;
    EXPECT_NE(written, std::vector<double>(written.size()));
}

TEST_P(OnDevice, RowsWithoutATargetDoNotCount) {
    const int64_t B = 2, T = 23;
    const Batch batch = random_batch(odd, B, T, 1);
    Model model(odd, B, T, on(device));
    model.scatter_parameters(3);
    const double unit = model.unit();
    const auto run = [&](const std::function<bool(size_t)> &counts, std::vector<double> *losses) {
        std::vector<int32_t> targets = batch.targets;
        for (size_t i = 0; i < targets.size(); i++)
            if (!counts(i)) targets[i] = -1;
        model.run(batch.tokens, targets, 1.0 / 64);
        *losses = model.losses();
        return model.gradients();
    };
    std::vector<double> all_losses, even_losses, odd_losses, no_losses;
    const std::vector<double> all = run([](size_t) { return true; }, &all_losses);
    const std::vector<double> even = run([](size_t i) { return i % 2 == 0; }, &even_losses);
    const std::vector<double> odd_rows = run([](size_t i) { return i % 2 != 0; }, &odd_losses);
    const std::vector<double> none = run([](size_t) { return false; }, &no_losses);

    for (size_t i = 0; i < all_losses.size(); i++) {
        EXPECT_EQ(even_losses[i], i % 2 == 0 ? all_losses[i] : 0);
        EXPECT_EQ(odd_losses[i], i % 2 != 0 ? all_losses[i] : 0);
        EXPECT_EQ(no_losses[i], 0);
    }
    EXPECT_TRUE(std::all_of(none.begin(), none.end(), [](double g) { return g == 0; }));
    std::vector<double> sum = even; /* the gradient is a sum over rows */
    for (size_t i = 0; i < sum.size(); i++) sum[i] += odd_rows[i];
    /* Each half may err by its own size, which is less than twice the whole's. */
    expect_tensors_near(model.layout(), sum, all, 4 * unit * std::sqrt(whole_path(odd, B, T)), device);
}

/* Causality: what comes later changes no loss before it. */
TEST_P(OnDevice, LaterTokensAreNotSeen) {
    const int64_t B = 2, T = 70;
    Batch batch = random_batch(odd, B, T, 1);
    Model model(odd, B, T, on(device));
    model.scatter_parameters(3);
    model.run(batch.tokens, batch.targets, 1.0 / 64);
    const std::vector<double> before = model.losses();
    for (const int64_t place : {0, 1, 63, 64, 69}) {
        std::vector<int32_t> tokens = batch.tokens;
        tokens[(size_t)place] = (tokens[(size_t)place] + 1) % (int32_t)odd.vocab_size;
        model.run(tokens, batch.targets, 1.0 / 64);
        const std::vector<double> after = model.losses();
        for (int64_t i = 0; i < B * T; i++) {
            const bool unseen = i < place || i >= T; /* earlier, or another sequence */
            EXPECT_TRUE(!unseen || after[(size_t)i] == before[(size_t)i]) << "token " << place << " changes row " << i;
        }
        EXPECT_NE(after[(size_t)place], before[(size_t)place]);
    }
}

/* ------------------------------------------------------------------------------------------------------------ hooks */

struct Events {
    std::vector<std::string> said;
    void add(const std::string &what, int bucket) {
        said.push_back(what + std::to_string(bucket));
    }
    std::vector<std::string> take() {
        return std::move(said);
    }
};

loom_gpt_hooks listening(Events *events) {
    loom_gpt_hooks hooks = {};
    hooks.user = events;
    hooks.params_acquire = [](void *user, int bucket, int next) {
        ((Events *)user)->add(next < 0 ? "acquire " : "acquire before " + std::to_string(next) + " ", bucket);
    };
    hooks.grads_acquire = [](void *user, int bucket) { ((Events *)user)->add("begin ", bucket); };
    hooks.params_release = [](void *user, int bucket) { ((Events *)user)->add("release ", bucket); };
    hooks.grads_ready = [](void *user, int bucket) { ((Events *)user)->add("ready ", bucket); };
    return hooks;
}

TEST(Hooks, AreCalledBucketByBucket) {
    const loom_gpt_config c = gpt_shape(3, 1, 8, 8, 20);
    Model model(c, 1, 8);
    model.scatter_parameters(1);
    const Batch batch = random_batch(c, 1, 8, 1);
    Events events;
    const loom_gpt_hooks hooks = listening(&events);
    loom_gpt_set_hooks(model.gpt(), &hooks);
    loom_gpt_set_batch(model.gpt(), batch.tokens.data(), batch.targets.data(), LOOM_HOST_TO_DEVICE);

    using Said = std::vector<std::string>;
    const Said forward = {"acquire before 1 0", "release 0", "acquire before 2 1", "release 1",
                          "acquire before 3 2", "release 2", "acquire before 4 3", "release 3",
                          "acquire before 0 4", "release 4"};
    Said training = forward, evaluation = forward;
    for (const char *event : {"acquire before 4 0",
                              "begin 0",
                              "release 0",
                              "acquire before 3 4",
                              "begin 4",
                              "release 4",
                              "ready 4",
                              "acquire before 2 3",
                              "begin 3",
                              "release 3",
                              "ready 3",
                              "acquire before 1 2",
                              "begin 2",
                              "release 2",
                              "ready 2",
                              "acquire 1",
                              "begin 1",
                              "release 1",
                              "ready 1",
                              "ready 0"})
        training.push_back(event);
    evaluation.insert(evaluation.end(), {"acquire 0", "release 0"});
    for (const bool accumulate : {false, true}) {
        loom_gpt_train(model.gpt(), accumulate);
        EXPECT_EQ(events.take(), training) << "the gradients of every bucket once, the embeddings' last";
    }
    loom_gpt_evaluate(model.gpt());
    EXPECT_EQ(events.take(), evaluation) << "losses alone make no gradient ready";
    float logits[20];
    ASSERT_TRUE(works([&](loom_error *error) {
        return loom_gpt_next_logits(model.gpt(), batch.tokens.data(), 4, 0, logits, error);
    }));
    EXPECT_EQ(events.take(), evaluation) << "the classifier reads the embeddings again";
}

/* The hooks are enough for parameters that live elsewhere and gradients that leave: between release and acquire a
 * bucket may hold anything, and what grads_ready announces does not change any more. */
struct Elsewhere {
    Model *model;
    std::vector<double> home, ready;
    int acquired = 0;

    void fetch(int bucket) {
        const loom_bucket b = model->layout().bucket[bucket];
        const auto first = home.begin() + b.offset;
        model->write(loom_gpt_get_parameters(model->gpt()), model->device()->storage, b.offset,
                     {first, first + b.elements});
        acquired++;
    }
    void forget(int bucket) {
        const loom_bucket b = model->layout().bucket[bucket];
        model->write(loom_gpt_get_parameters(model->gpt()), model->device()->storage, b.offset,
                     std::vector<double>((size_t)b.elements, NAN));
        acquired--;
    }
    void keep(int bucket) {
        const loom_bucket b = model->layout().bucket[bucket];
        const std::vector<double> values = model->read(loom_gpt_get_gradients(model->gpt()), model->device()->storage,
                                                       b.offset, b.elements);
        std::copy(values.begin(), values.end(), ready.begin() + b.offset);
    }
};

TEST_P(OnDevice, HooksSufficeToKeepParametersElsewhere) {
    const int64_t B = 2, T = 20;
    const Batch first = random_batch(odd, B, T, 1), second = random_batch(odd, B, T, 2);
    Model model(odd, B, T, on(device));
    model.scatter_parameters(3);
    std::vector<float> logits((size_t)odd.vocab_size), logits_elsewhere = logits;
    const auto run_all = [&](std::vector<float> *into) {
        model.run(first.tokens, first.targets, 1.0 / 64);
        model.run(second.tokens, second.targets, 1.0 / 64, true);
        const std::vector<double> losses = model.losses();
        require([&](loom_error *error) {
            return loom_gpt_next_logits(model.gpt(), first.tokens.data(), 11, 0, into->data(), error);
        });
        return losses;
    };
    const std::vector<double> losses = run_all(&logits), gradients = model.gradients();

    Elsewhere elsewhere = {&model, model.parameters(), std::vector<double>(gradients.size(), NAN)};
    loom_gpt_hooks hooks = {};
    hooks.user = &elsewhere;
    hooks.params_acquire = [](void *user, int bucket, int) { ((Elsewhere *)user)->fetch(bucket); };
    hooks.params_release = [](void *user, int bucket) { ((Elsewhere *)user)->forget(bucket); };
    hooks.grads_ready = [](void *user, int bucket) { ((Elsewhere *)user)->keep(bucket); };
    loom_gpt_set_hooks(model.gpt(), &hooks);
    for (int b = 0; b < model.layout().n_buckets; b++) elsewhere.forget(b);
    elsewhere.acquired = 0;
    EXPECT_EQ(run_all(&logits_elsewhere), losses);
    EXPECT_EQ(elsewhere.acquired, 0);
    EXPECT_EQ(elsewhere.ready, gradients);
    EXPECT_EQ(logits_elsewhere, logits);
}

/* ------------------------------------------------------------------------------------------------------- generation */

/* log softmax of the last token's logits, from the device's own memory: on the oracle they are doubles. */
std::vector<double> log_probabilities(const Model &model) {
    const int64_t V = model.config().vocab_size;
    std::vector<double> x = model.read(loom_run_logits(model.gpt(), 1).data, model.device()->storage, 0, V);
    const double largest = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (const double v : x) sum += std::exp(v - largest);
    for (double &v : x) v -= largest + std::log(sum);
    return x;
}

/* The same for every row of a full forward: minus the loss of each target in turn. */
std::vector<std::vector<double>> log_probabilities_by_losses(Model &model, const std::vector<int32_t> &tokens) {
    const int64_t V = model.config().vocab_size;
    std::vector<std::vector<double>> rows(tokens.size(), std::vector<double>((size_t)V));
    for (int64_t v = 0; v < V; v++) {
        const std::vector<int32_t> targets(tokens.size(), (int32_t)v);
        loom_gpt_set_batch(model.gpt(), tokens.data(), targets.data(), LOOM_HOST_TO_DEVICE);
        loom_gpt_evaluate(model.gpt());
        const std::vector<double> losses = model.losses();
        for (size_t i = 0; i < losses.size(); i++) rows[i][(size_t)v] = -losses[i];
    }
    return rows;
}

/* However the tokens are cut into pieces, and whether the model was made for training or for inference, the last one's
 * logits are those of a full forward. Logits are of order one; what is left of rounding is absolute. */
TEST_P(OnDevice, PiecewiseLogitsAreThoseOfAFullForward) {
    const int64_t T = 77;
    Model full(odd, 1, T, on(device));
    full.scatter_parameters(6);
    const std::vector<int32_t> tokens = random_ids(T, odd.vocab_size, 8);
    const std::vector<std::vector<double>> expected = log_probabilities_by_losses(full, tokens);
    double largest = 0;
    for (const auto &row : expected)
        for (const double p : row) largest = std::max(largest, std::fabs(p));
    const double tolerance = 4 * full.unit() * std::sqrt(forward_path(odd, T)) * largest;
    EXPECT_TRUE(full.unit() > 0x1p-53 || tolerance < 1e-12) << "the oracle is exact to 12 digits";

    const std::vector<std::vector<int64_t>> cuts = {{77},     std::vector<int64_t>(77, 1), {1, 76}, {76, 1},
                                                    {64, 13}, {3, 1, 1, 30, 2, 29, 11}};
    for (const loom_gpt_purpose purpose : {LOOM_GPT_TRAIN, LOOM_GPT_INFER}) {
        ModelOptions options = on(device);
        options.purpose = purpose;
        Model model(odd, purpose == LOOM_GPT_TRAIN ? 2 : 1, odd.block_size, options);
        model.set_parameters(full.parameters());
        for (const std::vector<int64_t> &cut : cuts) {
            int64_t past = 0;
            std::vector<float> logits((size_t)odd.vocab_size);
            for (const int64_t piece : cut) {
                ASSERT_TRUE(works([&](loom_error *error) {
                    return loom_gpt_next_logits(model.gpt(), tokens.data() + past, piece, past, logits.data(), error);
                }));
                past += piece;
                const std::vector<double> found = log_probabilities(model), &row = expected[(size_t)past - 1];
                double worst = 0;
                for (size_t v = 0; v < row.size(); v++) worst = std::max(worst, std::fabs(found[v] - row[v]));
                ASSERT_LE(worst, tolerance) << "after " << past << " tokens, the last " << piece << " at once";
                const std::vector<double> raw = model.read(loom_run_logits(model.gpt(), 1).data,
                                                           model.device()->storage, 0, odd.vocab_size);
                for (size_t v = 0; v < raw.size(); v++) ASSERT_EQ(logits[v], (float)raw[v]);
            }
            ASSERT_EQ(past, T);
        }
    }
}

TEST(Generation, RefusesTokensOutsideTheVocabulary) {
    Model model(gpt_shape(1, 1, 8, 8, 20), 1, 8);
    for (const int32_t id : {20, -1, 127}) { /* 127 is a row of the padding */
        const int32_t tokens[] = {1, id};
        float logits[20];
        refusal([&](loom_error *error) { return loom_gpt_next_logits(model.gpt(), tokens, 2, 0, logits, error); },
                {std::to_string(id), "20"});
    }
}

struct Emitted {
    std::vector<int32_t> tokens;
    size_t limit = SIZE_MAX;
};

std::vector<int32_t> generate(Model &model, const std::vector<int32_t> &prompt, int64_t count,
                              const loom_sampling &sampling, size_t limit = SIZE_MAX) {
    Emitted emitted;
    emitted.limit = limit;
    const auto emit = [](void *user, int32_t token) {
        Emitted *e = (Emitted *)user;
        e->tokens.push_back(token);
        return e->tokens.size() < e->limit;
    };
    EXPECT_TRUE(works([&](loom_error *error) {
        return loom_gpt_generate(model.gpt(), prompt.data(), (int64_t)prompt.size(), count, &sampling, emit, &emitted,
                                 error);
    }));
    return emitted.tokens;
}

/* Generation written again in the plainest way: of a prompt as much as fits is seen, its end; the whole context runs
 * for every token, its older half goes when it is full. On the oracle no rounding can decide otherwise. */
TEST(Generation, GoesOnBeyondTheContext) {
    const int64_t T = 9;
    const loom_gpt_config c = gpt_shape(2, 2, 16, 12, 40);
    ModelOptions options = on("oracle");
    options.purpose = LOOM_GPT_INFER;
    Model model(c, 1, T, options);
    model.scatter_parameters(4);
    const loom_sampling sampling = {0.9f, 20, 0.95f, 17};
    for (const int64_t length : {1, 4, 9, 30}) { /* the last is longer than the context itself */
        const std::vector<int32_t> prompt = random_ids(length, c.vocab_size, 5);
        std::vector<int32_t> context, expected;
        const auto append = [&](int32_t token) {
            if ((int64_t)context.size() == T) context.erase(context.begin(), context.end() - T / 2);
            context.push_back(token);
        };
        context.assign(prompt.end() - std::min(length, T), prompt.end());
        for (uint32_t i = 0; i < 50; i++) {
            std::vector<float> logits((size_t)c.vocab_size), probabilities = logits, scratch(2 * logits.size());
            require([&](loom_error *error) {
                return loom_gpt_next_probabilities(model.gpt(), context.data(), (int64_t)context.size(), 0,
                                                   sampling.temperature, logits.data(), probabilities.data(), error);
            });
            expected.push_back(
                loom_sample_token(logits.data(), probabilities.data(), c.vocab_size, &sampling, i, scratch.data()));
            append(expected.back());
        }
        EXPECT_EQ(generate(model, prompt, 50, sampling), expected) << "a prompt of " << length;
    }
}

TEST(Generation, WorksWithAContextOfOneToken) {
    ModelOptions options = on("cpu");
    options.purpose = LOOM_GPT_INFER;
    Model model(gpt_shape(1, 1, 8, 1, 20), 1, 1, options);
    model.scatter_parameters(4);
    EXPECT_EQ(generate(model, {3, 4}, 10, {1, 0, 1, 1}).size(), 10u);
}

TEST(Generation, StopsWhenToldTo) {
    Model model(odd_shape, 1, 16);
    model.scatter_parameters(4);
    EXPECT_EQ(generate(model, {1, 2, 3}, 40, {1, 0, 1, 1}, 7).size(), 7u);
    EXPECT_EQ(generate(model, {1, 2, 3}, 0, {1, 0, 1, 1}).size(), 0u);
}

TEST(Generation, TheSameSeedGivesTheSameTextWithAnyNumberOfThreads) {
    std::vector<int32_t> text;
    for (const int threads : {1, 2, 3}) {
        Model model(odd_shape, 1, 24, on("cpu", threads));
        model.scatter_parameters(4);
        const std::vector<int32_t> first = generate(model, {1, 2, 3}, 40, {1, 0, 1, 1});
        if (text.empty()) text = first;
        EXPECT_EQ(first, text) << threads << " threads";
        EXPECT_EQ(generate(model, {1, 2, 3}, 40, {1, 0, 1, 1}), text) << "once more";
        EXPECT_NE(generate(model, {1, 2, 3}, 40, {1, 0, 1, 2}), text) << "another seed";
        EXPECT_EQ(generate(model, {1, 2, 3}, 20, {1, 0, 1, 1}),
                  (std::vector<int32_t>(text.begin(), text.begin() + 20)));
    }
}

} // namespace
