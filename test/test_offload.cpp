/* Offloading activations to host memory: the bits of not offloading in any order that streams may run in, with every
 * one of its waits needed, in the memory of two slots. */
#include "support_train.h"

#include "emulation.h"

#include <cuda_runtime.h>

#include <cstring>

/* So that what cannot be allocated fails in sanitizer builds as it does elsewhere. */
extern "C" const char *__asan_default_options() {
    return "allocator_may_return_null=1";
}

namespace {

using namespace support;

const int64_t B = 2, T = 8, C = 8, V = 61;

loom_recompute policy(const std::string &name) {
    loom_recompute recompute;
    require([&](loom_error *error) { return loom_recompute_parse(name.c_str(), &recompute, error); });
    return recompute;
}

loom_gpt_config shape_of(int64_t n_layer, loom_gpt_architecture architecture = LOOM_GPT_2) {
    loom_gpt_config shape = gpt_shape(n_layer, 1, C, T, V);
    shape.architecture = architecture;
    return shape;
}

/* Ends with an emulation that works and runs in order. */
class Offload : public testing::Test {
  protected:
    void TearDown() override {
        emulation_reset();
        emulation_set_schedule("order");
    }
};

/* ------------------------------------------------------------------------------------------------------- one model's run */

struct Places {
    std::string recompute = "none";
    loom_dtype dtype = LOOM_F32;
    int64_t n_layer = 5;
    bool offload = true;
    loom_gpt_architecture architecture = LOOM_GPT_2;
};

/* A model that measures no algorithm a second time: those of the first model of a dtype and an architecture serve all.
 * */
std::unique_ptr<Model> make_model(const Places &places) {
    static std::map<std::pair<loom_dtype, loom_gpt_architecture>, std::string> caches;
    std::string &tuning = caches[{places.dtype, places.architecture}];
    ModelOptions options;
    options.device = "cuda";
    options.dtype = places.dtype;
    options.recompute = policy(places.recompute);
    options.offload = places.offload;
    options.before_lay_out = [&](loom_gpt *gpt) {
        loom_device *device = loom_gpt_get_device(gpt);
        if (tuning.empty()) return;
        require([&](loom_error *error) { return device->tuning_set(device, tuning.c_str(), error); });
    };
    auto model = std::make_unique<Model>(shape_of(places.n_layer, places.architecture), B, T, options);
    if (tuning.empty()) {
        char *text = nullptr;
        require([&](loom_error *error) { return model->device()->tuning_get(model->device(), &text, error); });
        tuning = text;
        free(text);
    }
    model->scatter_parameters(3);
    return model;
}

void set_batch(Model &model, int i) {
    loom_scalars_in in = model.scalars().in;
    in.loss_gradient = 1.0f / (float)(B * T);
    model.set_inputs(in);
    const std::vector<int32_t> tokens = random_ids(B * T, V, 2 * (uint64_t)i + 1),
                               targets = random_ids(B * T, V, 2 * (uint64_t)i + 2);
    loom_gpt_set_batch(model.gpt(), tokens.data(), targets.data(), LOOM_HOST_TO_DEVICE);
}

void compute(Model &model, bool accumulate) {
    loom_gpt_train(model.gpt(), accumulate);
}

/* The losses of the last micro-batch and the gradients of all. */
std::string bits_of(const Model &model) {
    std::vector<double> values = model.losses();
    const std::vector<double> gradients = model.gradients();
    values.insert(values.end(), gradients.begin(), gradients.end());
    return std::string((const char *)values.data(), values.size() * sizeof(double));
}

/* Two micro-batches with nothing waited for between them. */
std::string run_two(Model &model) {
    for (int i = 0; i < 2; i++) {
        set_batch(model, i);
        compute(model, i > 0);
    }
    return bits_of(model);
}

/* What keeping everything on the device gives, under any policy (test_recompute). */
std::string expected_of(loom_dtype dtype, int64_t n_layer, loom_gpt_architecture architecture = LOOM_GPT_2) {
    static std::map<std::tuple<loom_dtype, int64_t, loom_gpt_architecture>, std::string> known;
    std::string &bits = known[{dtype, n_layer, architecture}];
    emulation_set_schedule("order");
    if (bits.empty()) bits = run_two(*make_model({"none", dtype, n_layer, false, architecture}));
    return bits;
}

Places without(Places places) {
    places.offload = false;
    return places;
}

const std::vector<std::string> schedules = {"reverse", "random:1", "random:2"};

/* -------------------------------------------------------------------------------------------------------------- the bits */

/* 5 blocks in segments of 2 are 3 segments, 7 in segments of ceil(sqrt(7)) too: one of them leaves. */
TEST_F(Offload, GivesTheBitsOfNotOffloadingUnderEveryPolicyAndSchedule) {
    for (const loom_dtype dtype : {LOOM_F32, LOOM_BF16})
        for (const auto &[recompute, n_layer] : {std::pair<const char *, int64_t>{"none", 5},
                                                 {"act", 5},
                                                 {"norm", 5},
                                                 {"block-attn", 5},
                                                 {"block", 5},
                                                 {"every:2", 5},
                                                 {"sqrt", 7}}) {
            if (!full() && dtype == LOOM_F32 && std::strcmp(recompute, "none") != 0) continue;
            const Places places = {recompute, dtype, n_layer};
            const std::string expected = expected_of(dtype, n_layer);
            const auto model = make_model(places);
            for (const std::string &schedule : schedules) {
                emulation_set_schedule(schedule.c_str());
                EXPECT_TRUE(run_two(*model) == expected)
                    << recompute << " " << loom_dtype_name(dtype) << " " << schedule;
            }
        }
}

/* GPT-1's layers end with what the next one keeps: it lies in the next segment's slot. */
TEST_F(Offload, GivesTheSameBitsOfGpt1) {
    const std::string expected = expected_of(LOOM_F32, 6, LOOM_GPT_1);
    EXPECT_FALSE(expected == expected_of(LOOM_F32, 6));
    for (const char *recompute : {"none", "norm", "block", "every:2"}) {
        const auto model = make_model({recompute, LOOM_F32, 6, true, LOOM_GPT_1});
        for (const std::string &schedule : schedules) {
            emulation_set_schedule(schedule.c_str());
            EXPECT_TRUE(run_two(*model) == expected) << recompute << " " << schedule;
        }
    }
}

/* Three blocks are the fewest of which one leaves; of two or one nothing does. */
TEST_F(Offload, WorksForAnyNumberOfBlocks) {
    for (const int64_t n_layer : {1, 2, 3, 4}) {
        const Places places = {"none", LOOM_F32, n_layer};
        const std::string expected = expected_of(LOOM_F32, n_layer);
        const auto model = make_model(places);
        EXPECT_EQ(loom_gpt_get_host_bytes(model->gpt()) > 0, n_layer > 2);
        for (const char *schedule : {"reverse", "random:1"}) {
            emulation_set_schedule(schedule);
            EXPECT_TRUE(run_two(*model) == expected) << n_layer << " " << schedule;
        }
    }
}

/* What is captured in two streams comes together again before the capture ends, and the graph's nodes run in any order
 * that their waits allow. */
TEST_F(Offload, CanBeCaptured) {
    for (const char *recompute : {"none", "block", "every:2"}) {
        const Places places = {recompute};
        const std::string expected = expected_of(places.dtype, places.n_layer);
        const auto model = make_model(places);
        loom_device *device = model->device();
        loom_device_graph *graph[2];
        for (int i = 0; i < 2; i++) {
            require([&](loom_error *error) { return device->graph_begin(device, error); });
            compute(*model, i > 0);
            require([&](loom_error *error) { return device->graph_end(device, &graph[i], error); });
        }
        for (const std::string &schedule : schedules) {
            emulation_set_schedule(schedule.c_str());
            for (int i = 0; i < 2; i++) {
                set_batch(*model, i);
                device->graph_launch(device, graph[i]);
            }
            EXPECT_TRUE(bits_of(*model) == expected) << recompute << " " << schedule;
        }
        for (loom_device_graph *g : graph) device->graph_close(device, g);
    }
}

/* ----------------------------------------------------------------------------------------------------- every wait counts */

/* Streams are made to wait by the device's `order`; here one that leaves out its `left_out`-th call, or all. */
struct Forgetful {
    static constexpr int ALL = -1, NONE = -2;
    static inline void (*order)(loom_device *, loom_stream *, loom_stream *);
    static inline int calls, left_out;

    explicit Forgetful(loom_device *device, int which) : device_(device) {
        order = device->stream_wait_stream;
        calls = 0;
        left_out = which;
        device->stream_wait_stream = count;
    }
    ~Forgetful() {
        device_->stream_wait_stream = order;
    }

  private:
    static void count(loom_device *device, loom_stream *later, loom_stream *earlier) {
        if (left_out != ALL && calls++ != left_out) order(device, later, earlier);
    }
    loom_device *device_;
};

/* The bits under a schedule, without a wait. */
std::string run_forgetful(Model &model, const std::string &schedule, int left_out) {
    emulation_set_schedule(schedule.c_str());
    const Forgetful forgetful(model.device(), left_out);
    const std::string bits = run_two(model);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess); /* what nobody waited for */
    return bits;
}

/* Whether the bits are others than expected under one of many schedules. */
bool shows(Model &model, const std::string &expected, int left_out) {
    if (run_forgetful(model, "reverse", left_out) != expected) return true;
    for (int seed = 0; seed < 200; seed++)
        if (run_forgetful(model, "random:" + std::to_string(seed), left_out) != expected) return true;
    return false;
}

/* Without any of its waits some order of the streams shows it: none is one too many, and a test under random orders
 * sees each that is missing. */
TEST_F(Offload, EveryWaitIsNeeded) {
    for (const auto &[recompute, architecture] : {std::pair<const char *, loom_gpt_architecture>{"block", LOOM_GPT_2},
                                                  {"none", LOOM_GPT_2},
                                                  {"none", LOOM_GPT_1}}) {
        if (!full() && (std::strcmp(recompute, "block") != 0 || architecture != LOOM_GPT_2)) continue;
        const std::string expected = expected_of(LOOM_F32, 4, architecture);
        const auto model = make_model({recompute, LOOM_F32, 4, true, architecture});
        EXPECT_TRUE(run_forgetful(*model, "reverse", Forgetful::NONE) == expected);
        const int waits = Forgetful::calls;
        EXPECT_EQ(waits, 2 * 2 * 2 * 2)
            << "two blocks leave and come back in each of two micro-batches, with two waits";
        EXPECT_TRUE(shows(*model, expected, Forgetful::ALL));
        for (int i = 0; i < waits; i++) EXPECT_TRUE(shows(*model, expected, i)) << recompute << " wait " << i;
    }
}

/* What is put into streams, in the order of the calls: blocks' names, `order`s and copies of a stream beside the
 * default one. */
struct Trace {
    static inline void (*order)(loom_device *, loom_stream *, loom_stream *);
    static inline void (*copy)(loom_device *, loom_stream *, void *, const void *, size_t, loom_copy_kind);
    static inline void (*range_push)(loom_device *, const char *);
    static inline std::string calls;

    static void watch(loom_device *device) {
        order = device->stream_wait_stream;
        copy = device->copy;
        range_push = device->range_push;
        calls.clear();
        device->stream_wait_stream = [](loom_device *d, loom_stream *later, loom_stream *earlier) {
            calls += later ? "copies-wait " : "compute-waits ";
            order(d, later, earlier);
        };
        device->copy = [](loom_device *d, loom_stream *stream, void *to, const void *from, size_t bytes,
                          loom_copy_kind kind) {
            if (stream) calls += kind == LOOM_DEVICE_TO_HOST ? "out " : "back ";
            copy(d, stream, to, from, bytes, kind);
        };
        device->range_push = [](loom_device *d, const char *name) {
            const char *layer = std::strstr(name, "transformer.h.");
            if (layer) calls += std::string(name, layer) + (layer + std::strlen("transformer.h.")) + " ";
            range_push(d, name);
        };
    }
};

/* A copy runs beside the next block: compute waits for it no sooner than that one is done. */
TEST_F(Offload, ACopyRunsBesideTheNextBlock) {
    const auto trace_of = [](const char *recompute, int64_t n_layer) {
        const auto model = make_model({recompute, LOOM_F32, n_layer});
        set_batch(*model, 0);
        Trace::watch(model->device());
        compute(*model, false);
        return Trace::calls;
    };
    EXPECT_EQ(trace_of("none", 4), "forward 0 copies-wait out "
                                   "forward 1 compute-waits copies-wait out "
                                   "forward 2 compute-waits "
                                   "forward 3 "
                                   "backward 3 copies-wait back "
                                   "backward 2 compute-waits copies-wait back "
                                   "backward 1 compute-waits "
                                   "backward 0 ");
    EXPECT_EQ(trace_of("every:2", 5), "forward 0 forward 1 copies-wait out "
                                      "forward 2 forward 3 compute-waits "
                                      "forward 4 "
                                      "backward 4 copies-wait back "
                                      "forward 2 forward 3 backward 3 backward 2 compute-waits "
                                      "forward 0 forward 1 backward 1 backward 0 ");
    EXPECT_EQ(trace_of("none", 2), "forward 0 forward 1 backward 1 backward 0 ");
}

/* ------------------------------------------------------------------------------------------------- loss alone, samples */

/* Validation waits for no copies and makes none; generation keeps keys and values beside the slots. Neither changes
 * what training does next. */
TEST_F(Offload, ValidationAndSamplesGiveTheSameBitsAndCopyNothing) {
    for (const char *recompute : {"none", "block"}) {
        emulation_set_schedule("random:5");
        std::string bits[2];
        for (const bool offload : {false, true}) {
            const auto model = make_model({recompute, LOOM_F32, 5, offload});
            const std::vector<int32_t> tokens = random_ids(T, V, 9);
            std::vector<float> logits(V);
            bits[offload] = run_two(*model);
            const Forgetful counting(model->device(), Forgetful::NONE);
            set_batch(*model, 3);
            loom_gpt_evaluate(model->gpt());
            const std::vector<double> losses = model->losses();
            bits[offload].append((const char *)losses.data(), losses.size() * sizeof(double));
            for (const int64_t past : {0, 3})
                require([&](loom_error *error) {
                    return loom_gpt_next_logits(model->gpt(), tokens.data() + past, past ? T - past : 3, past,
                                                logits.data(), error);
                });
            EXPECT_EQ(Forgetful::calls, 0);
            bits[offload].append((const char *)logits.data(), logits.size() * sizeof(float));
            bits[offload] += run_two(*model);
        }
        EXPECT_TRUE(bits[0] == bits[1]) << recompute;
    }
}

/* ------------------------------------------------------------------------------------------------------------ memory */

loom_plan plan(const Places &places) {
    const Device device = open_device("cuda");
    const loom_gpt_config shape = shape_of(places.n_layer);
    loom_plan made;
    loom_precision precision;
    Setup setup = setup_of(B, T, LOOM_GPT_TRAIN, &precision);
    setup.recompute = policy(places.recompute);
    setup.offload = places.offload;
    require([&](loom_error *error) {
        const loom_precision_flags flags = {places.dtype, true, LOOM_F32, LOOM_F32};
        return loom_precision_of(device.get(), &flags, &precision, error) &&
               loom_plan_make(&made, &shape, setup, device.get(), B, error);
    });
    return made;
}

/* The device keeps what two layers do, and the host what all others do; nothing else changes. */
TEST_F(Offload, TheDeviceHoldsTwoSlots) {
    for (const char *recompute : {"none", "act", "norm", "block-attn", "block"}) {
        const size_t two = bytes_of_row(plan({recompute, LOOM_BF16, 2, false}).arena, "activations");
        for (const int64_t n_layer : {3, 12}) {
            const Places places = {recompute, LOOM_BF16, n_layer};
            const loom_plan offloaded = plan(places), whole = plan(without(places));
            const size_t kept = bytes_of_row(whole.arena, "activations");
            EXPECT_EQ(kept, (size_t)n_layer * two / 2);
            EXPECT_EQ(bytes_of_row(offloaded.arena, "activations"), two) << recompute;
            EXPECT_EQ(offloaded.host_bytes, kept - two) << recompute;
            EXPECT_EQ(whole.host_bytes, 0u);
            EXPECT_EQ(whole.arena.used - kept, offloaded.arena.used - two);
        }
    }
}

/* Of segments the first layers' inputs leave. */
TEST_F(Offload, OfSegmentsTheInputsLeave) {
    const size_t input = bytes_of_row(plan({"block", LOOM_F32, 1, false}).arena, "activations");
    for (const auto &[K, n_layer, segments] :
         {std::tuple<int, int64_t, size_t>{2, 7, 4}, {3, 7, 3}, {4, 7, 2}, {7, 7, 1}}) {
        const loom_plan made = plan({"every:" + std::to_string(K), LOOM_F32, n_layer});
        const size_t slots = std::min<size_t>(segments, 2);
        EXPECT_EQ(bytes_of_row(made.arena, "activations"), slots * input) << K;
        EXPECT_EQ(made.host_bytes, (segments - slots) * input) << K;
    }
}

TEST_F(Offload, ThePlanIsTheArenasUseAndTheHostsMemory) {
    for (const char *recompute : {"none", "block", "every:2"}) {
        const Places places = {recompute};
        const auto model = make_model(places);
        const loom_plan made = plan(places);
        EXPECT_EQ(made.arena.used, model->arena.used);
        EXPECT_EQ(made.host_bytes, loom_gpt_get_host_bytes(model->gpt()));
    }
}

/* Counts what of host memory is taken and given back. */
struct HostMemory {
    static inline bool (*allocate)(loom_device *, void **, size_t, loom_error *);
    static inline void (*release)(loom_device *, void *, size_t);
    static inline size_t taken, given_back;
    static inline bool fails;

    static void watch(loom_device *device) {
        allocate = device->allocate_host;
        release = device->release_host;
        taken = given_back = 0;
        device->allocate_host = [](loom_device *d, void **memory, size_t bytes, loom_error *error) {
            if (fails) return loom_fail(error, "there is none");
            taken += bytes;
            return allocate(d, memory, bytes, error);
        };
        device->release_host = [](loom_device *d, void *memory, size_t bytes) {
            given_back += bytes;
            release(d, memory, bytes);
        };
    }
};

TEST_F(Offload, HostMemoryIsTakenAsPlannedAndGivenBack) {
    const Device device = open_device("cuda");
    HostMemory::watch(device.get());
    const loom_gpt_config shape = shape_of(5);
    for (const bool fails : {false, true}) {
        HostMemory::fails = fails;
        support::Setup setup = setup_of(B, T);
        setup.offload = true;
        loom_gpt *gpt;
        void *memory;
        loom_arena arena = loom_arena_measure();
        require([&](loom_error *error) { return loom_gpt_create(&gpt, &shape, setup, device.get(), error); });
        loom_gpt_lay_out(gpt, &arena);
        const size_t bytes = arena.used;
        require([&](loom_error *error) { return device->allocate(device.get(), &memory, bytes, error); });
        arena = loom_arena_over(memory, bytes, false);
        loom_gpt_lay_out(gpt, &arena);
        const auto prepare = [&](loom_error *error) { return loom_gpt_prepare(gpt, error); };
        if (fails) {
            refusal(prepare, {"--offload", "there is none", "--micro-batch"});
        } else {
            require(prepare);
            require(prepare); /* nothing more */
            EXPECT_EQ(HostMemory::taken, loom_gpt_get_host_bytes(gpt));
        }
        loom_gpt_destroy(gpt);
        EXPECT_EQ(HostMemory::given_back, HostMemory::taken);
        device->release(device.get(), memory, bytes);
    }
    HostMemory::fails = false;
}

TEST_F(Offload, TooLittleHostMemoryIsRefusedInOneLine) {
    loom_plan made = plan({"none"});
    EXPECT_GT(made.host_available, made.host_bytes);
    made.host_available = made.host_bytes;
    require([&](loom_error *error) { return loom_plan_check(&made, error); });
    made.host_available--;
    refusal([&](loom_error *error) { return loom_plan_check(&made, error); }, {"--offload", "MiB", "--micro-batch"});
    const Device device = open_device("cuda");
    void *memory = &made;
    refusal([&](loom_error *error) { return device->allocate_host(device.get(), &memory, (size_t)1 << 60, error); },
            {"host memory", "MiB", "free"});
    EXPECT_EQ(memory, nullptr);
}

/* -------------------------------------------------------------------------------------------------- where there is none */

TEST_F(Offload, IsRefusedWhereMemoryIsTheHosts) {
    for (const char *name : {"cpu", "definition", "oracle"}) {
        const Device device = open_device(name);
        const loom_gpt_config shape = shape_of(3);
        support::Setup setup = setup_of(B, T);
        setup.offload = true;
        loom_gpt *gpt;
        refusal([&](loom_error *error) { return loom_gpt_create(&gpt, &shape, setup, device.get(), error); },
                {"--offload: activations are in host memory already on device", name});
    }
}

/* ------------------------------------------------------------------------------------------------------------- training */

class OffloadTrain : public Offload {
  protected:
    void SetUp() override {
        write_file(directory.at("text"), some_text(4000, 1));
    }
    Options::Pairs run(const std::string &out, const Options::Pairs &changes = {}) const {
        return Options::Pairs{{"data", directory.at("text")},
                              {"out", directory.at(out)},
                              {"n-layer", "4"},
                              {"n-head", "1"},
                              {"n-embd", "8"},
                              {"block-size", "8"},
                              {"batch", "4"},
                              {"micro-batch", "2"},
                              {"steps", "6"},
                              {"lr", "1e-2"},
                              {"warmup", "1"},
                              {"device", "cuda"},
                              {"threads", "1"},
                              {"val-every", "2"},
                              {"val-tokens", "16"},
                              {"sample-every", "3"},
                              {"sample-tokens", "3"}} +
               changes;
    }
    static void train(const Options::Pairs &pairs) {
        const Options options(pairs);
        require([&](loom_error *error) { return loom_train(options.get(), NULL, NULL, error); });
    }
    /* What a run leaves behind: weights, optimizer, samples. */
    std::string all_of(const std::string &out) const {
        const std::string checkpoint = out + "/checkpoints/latest/";
        return read_file(directory.at(checkpoint + "model.safetensors")) +
               read_file(directory.at(checkpoint + "optimizer.safetensors")) +
               read_file(directory.at(out + "/samples.txt"));
    }

    TemporaryDirectory directory;
};

/* Steps, validation and samples in turn, as graphs and not, and a run that is cut off and goes on otherwise. */
TEST_F(OffloadTrain, RunsComeOutTheSame) {
    train(run("whole"));
    const Options::Pairs same = {{"tuning", directory.at("whole/tuning.txt")}},
                         offloaded = same + Options::Pairs{{"offload", "activations"}};
    const std::string expected = all_of("whole");
    for (const auto &[schedule, graph] : {std::pair<std::string, const char *>{"order", "on"},
                                          {"reverse", "on"},
                                          {"random:1", "on"},
                                          {"random:2", "off"}}) {
        emulation_set_schedule(schedule.c_str());
        train(run(schedule, offloaded + Options::Pairs{{"cuda-graph", graph}}));
        EXPECT_TRUE(all_of(schedule) == expected) << schedule;
    }
    EXPECT_NE(read_file(directory.at("order/config.ini")).find("offload = activations"), std::string::npos);
    train(run("parts", offloaded + Options::Pairs{{"stop-after", "3"}, {"recompute", "block"}}));
    const Options resumed(run("parts", {{"offload", "none"}, {"resume", "true"}}));
    EXPECT_STREQ(loom_trainer_note(open_trainer(resumed).get()), "");
    train(run("parts", {{"offload", "none"}, {"resume", "true"}}));
    EXPECT_TRUE(all_of("parts") == expected);
}

TEST_F(OffloadTrain, FitsWhereKeepingAllOnTheDeviceDoesNot) {
    const Options::Pairs changes = {{"n-layer", "24"}, {"batch", "16"}, {"micro-batch", "16"}};
    const Options options(run("a", changes + Options::Pairs{{"offload", "activations"}}));
    const size_t needed = loom_trainer_plan(open_trainer(options).get())->arena.used;
    const Options whole(run("a", changes + Options::Pairs{{"memory", std::to_string(needed)}}));
    loom_trainer *trainer;
    refusal([&](loom_error *error) { return loom_trainer_open(&trainer, whole.get(), NULL, NULL, error); },
            {"--memory"});
}

/* What it chooses by counts computing alone. */
TEST_F(OffloadTrain, DoesNotGoWithAPolicyThatIsChosenByItsSpeed) {
    const Options options(run("a", {{"recompute", "auto"}, {"offload", "activations"}}));
    loom_trainer *trainer;
    refusal([&](loom_error *error) { return loom_trainer_open(&trainer, options.get(), NULL, NULL, error); },
            {"--recompute: auto", "--offload", "block"});
}

TEST_F(OffloadTrain, IsRefusedOnTheCpuInOneLine) {
    const Options options(run("a", {{"device", "cpu"}, {"offload", "activations"}}));
    loom_trainer *trainer;
    refusal([&](loom_error *error) { return loom_trainer_open(&trainer, options.get(), NULL, NULL, error); },
            {"--offload: activations are in host memory already on device cpu"});
}

} // namespace
