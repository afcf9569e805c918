/* What a step does, op by op, held to what it did before: each op with its shapes, strides and dtypes, and which value
 * goes where; what is copied, what waits, what goes between ranks, and the hooks that are called (trace.h says how it
 * is written). test/data/traces.txt has a hash for each of some hundred models, policies, dtypes and shardings, of
 * which every two choices meet at least once; test/data/traces has a few traces whole, to be read; traces-all.txt has
 * the hashes of all choices of one model.
 *
 * A trace that is meant to become another one: LOOM_TEST_UPDATE=1 writes these files anew (the last with
 * LOOM_TEST_FULL=1); LOOM_TEST_TRACES=FOLDER puts the traces there, to be compared with those of another commit. */
#include "trace.h"

#include <xxhash.h>

#include <set>

namespace {

using namespace support;
using trace::Tracer;

std::string data_path(const std::string &name) {
    const std::string here = __FILE__;
    return here.substr(0, here.rfind('/') + 1) + "data/" + name;
}

bool updates() {
    return std::getenv("LOOM_TEST_UPDATE") != nullptr;
}

/* ------------------------------------------------------------------------------------------------------------- choices */

struct Named {
    const char *name;
    loom_gpt_config config;
    int64_t B, T;
};

/* The vocabularies of the first and the last are of several chunks and groups of rows. The last has no size that
 * another one divides; the small ones are for whole traces. */
const Named models[] = {
    {"gpt2", {12, 12, 768, 1024, 50257, LOOM_GPT_GELU}, 2, 1024},
    {"mini", {4, 4, 128, 64, 257, LOOM_GPT_GELU}, 4, 64},
    {"odd", {5, 3, 39, 41, 140001, LOOM_GPT_RELU}, 9, 37},
};
const Named pair_of_blocks = {"two", {2, 2, 16, 8, 61, LOOM_GPT_GELU}, 2, 8};
const Named pair_of_gpt1 = {"gpt1", {2, 2, 16, 8, 61, LOOM_GPT_GELU, LOOM_GPT_1}, 2, 8};
const Named three_blocks = {"three", {3, 1, 8, 96, 140001, LOOM_GPT_RELU}, 2, 96};

const char *const policies[] = {"none", "act", "norm", "block-attn", "block", "every:2", "every:3", "sqrt"};

struct Dtypes {
    const char *name;
    loom_precision_flags flags;
};
const Dtypes dtypes[] = {{"fp32", {LOOM_F32, true, LOOM_F32, LOOM_F32}},
                         {"bf16", {LOOM_BF16, true, LOOM_F32, LOOM_F32}},
                         {"fp16", {LOOM_F16, true, LOOM_F32, LOOM_F32}},
                         {"all-bf16", {LOOM_BF16, false, LOOM_BF16, LOOM_BF16}}};

struct Ranks {
    const char *name;
    loom_sharding sharding;
    int64_t micro_batches; /* of this rank in a step */
};
const Ranks rankings[] = {
    {"alone", {1, 0, 0, false}, 3},        {"2-zero0", {2, 1, 0, false}, 2},      {"2-zero1", {2, 0, 1, false}, 2},
    {"2-zero2", {2, 1, 2, false}, 2},      {"2-zero3", {2, 0, 3, false}, 3},      {"4-zero0", {4, 2, 0, false}, 1},
    {"4-zero1", {4, 3, 1, false}, 3},      {"4-zero2", {4, 0, 2, false}, 1},      {"4-zero3", {4, 1, 3, false}, 2},
    {"alone-exact", {1, 0, 0, true}, 4},   {"2-zero0-exact", {2, 0, 0, true}, 2}, {"2-zero2-exact", {2, 1, 2, true}, 4},
    {"4-zero1-exact", {4, 3, 1, true}, 2}, {"4-zero3-exact", {4, 2, 3, true}, 1},
};

/* Rows of logits at a time, in groups; 0: the default, an eighth of all, rounded up to groups. */
struct Chunks {
    const char *name;
    int64_t rows;
};
const Chunks chunkings[] = {{"eighth", 0}, {"pairs", 2}, {"whole", INT64_C(1) << 40}};

struct Choice {
    Named model;
    std::string policy;
    Dtypes dtype;
    Ranks ranks;
    Chunks chunks;
    bool offload, generates;
    loom_gpt_purpose purpose = LOOM_GPT_TRAIN;
    int steps = 2;

    std::string name() const {
        if (purpose == LOOM_GPT_INFER) return std::string(model.name) + " " + dtype.name + " infer";
        return std::string(model.name) + " " + policy + " " + dtype.name + " " + ranks.name + " " + chunks.name +
               (offload ? " offload" : "") + (generates ? " generates" : "");
    }
};

/* Every two values of any two of the seven factors meet in one of these at least: to each policy of each sharding the
 * rest that brings most new pairs. */
class Pairs {
  public:
    static constexpr size_t size[] = {14, 8, 3, 4, 3, 2, 2};
    using Row = std::vector<size_t>;
    std::vector<Row> rows;

    Pairs() {
        Row row(7);
        for (row[0] = 0; row[0] < size[0]; row[0]++)
            for (row[1] = 0; row[1] < size[1]; row[1]++) {
                Row best;
                size_t most = 0;
                for (size_t rest = 0; rest < 144; rest++) {
                    size_t left = rest + row[0] * 31 + row[1] * 17; /* of equal ones not always the first */
                    for (size_t f = 2; f < 7; left /= size[f++]) row[f] = left % size[f];
                    const size_t found = meetings(row, false);
                    if (best.empty() || found > most) best = row, most = found;
                }
                meetings(best, true);
                rows.push_back(best);
            }
    }
    /* Of all pairs. */
    size_t missing() const {
        size_t all = 0;
        for (size_t f = 0; f < 7; f++)
            for (size_t g = f + 1; g < 7; g++) all += size[f] * size[g];
        return all - met_.size();
    }

  private:
    std::set<size_t> met_;

    /* The row's pairs that have not met. */
    size_t meetings(const Row &row, bool keep) {
        size_t found = 0;
        for (size_t f = 0; f < 7; f++)
            for (size_t g = f + 1; g < 7; g++) {
                const size_t pair = ((f * 8 + g) * 16 + row[f]) * 16 + row[g];
                found += !met_.count(pair);
                if (keep) met_.insert(pair);
            }
        return found;
    }
};

const Pairs &pairs() {
    static const Pairs all;
    return all;
}

std::vector<Choice> all_choices() {
    std::vector<Choice> all;
    for (const Pairs::Row &row : pairs().rows)
        all.push_back({models[row[2]], policies[row[1]], dtypes[row[3]], rankings[row[0]], chunkings[row[4]],
                       row[5] == 1, row[6] == 1});
    for (const Named &model : models)
        for (int d = 0; d < 3; d++)
            all.push_back({model, "none", dtypes[d], rankings[0], chunkings[0], false, true, LOOM_GPT_INFER});
    return all;
}

/* Those that are kept whole. */
std::vector<Choice> whole_choices() {
    std::vector<Choice> all = {
        {pair_of_blocks, "none", dtypes[0], rankings[0], chunkings[0], false, true},
        {pair_of_blocks, "act", dtypes[1], rankings[2], chunkings[0], false, false},
        {pair_of_blocks, "norm", dtypes[2], rankings[3], chunkings[0], false, false},
        {pair_of_blocks, "none", dtypes[3], rankings[8], chunkings[0], false, false},
        {pair_of_blocks, "block-attn", dtypes[0], rankings[10], chunkings[0], false, false},
        {three_blocks, "block", dtypes[1], rankings[0], chunkings[0], true, false},
        {three_blocks, "every:2", dtypes[0], rankings[0], chunkings[0], false, false},
        {pair_of_blocks, "none", dtypes[1], rankings[0], chunkings[0], false, true, LOOM_GPT_INFER},
        {pair_of_gpt1, "norm", dtypes[0], rankings[4], chunkings[0], false, false},
    };
    for (Choice &choice : all) {
        choice.ranks.micro_batches = choice.policy == "every:2" ? 1 : 2;
        choice.steps = choice.ranks.sharding.zero % 2 == 1 ? 2 : 1; /* where weights come to the next step */
    }
    return all;
}

/* ----------------------------------------------------------------------------------------------------------- one trace */

/* A model that is traced from its preparation on. */
class Traced {
  public:
    explicit Traced(const Choice &choice)
        : c_(choice), B_(choice.model.B), T_(choice.model.T),
          sequences_(B_ * choice.ranks.micro_batches * choice.ranks.sharding.ranks),
          ranks_(&tracer, choice.ranks.sharding.ranks, choice.ranks.sharding.rank) {
        loom_precision precision;
        Setup setup = setup_of(B_, T_, choice.purpose, &precision);
        setup.offload = choice.offload;
        setup.generates = choice.generates;
        setup.sharding = choice.ranks.sharding;
        setup.logits_rows = choice.chunks.rows == 2 ? 2 * group_rows() : choice.chunks.rows;
        require([&](loom_error *error) {
            return loom_recompute_parse(choice.policy.c_str(), &setup.recompute, error) &&
                   loom_precision_of(&tracer.device, &choice.dtype.flags, &precision, error) &&
                   loom_gpt_create(&gpt_, &choice.model.config, setup, &tracer.device, error);
        });
        loom_arena arena = loom_arena_measure();
        lay_out(&arena);
        const size_t bytes = arena.used;
        arena = loom_arena_over(tracer.reserve(bytes), bytes, false);
        lay_out(&arena);
        prepare();
    }
    ~Traced() {
        if (trains()) loom_parallel_close(&parallel_);
        loom_gpt_destroy(gpt_);
    }
    Traced(const Traced &) = delete;
    Traced &operator=(const Traced &) = delete;

    Tracer tracer;

    /* As csrc/engine/step.c does them. */
    void run() {
        for (int step = 1; trains() && step <= c_.steps; step++) one_step(std::to_string(step));
        if (trains() && c_.ranks.sharding.ranks == 1) validate();
        if (c_.generates && c_.ranks.sharding.ranks == 1) generate();
    }

  private:
    const Choice c_;
    const int64_t B_, T_, sequences_;
    trace::Ranks ranks_;
    loom_gpt *gpt_ = nullptr;
    loom_gpt_hooks hooks_ = {}; /* those of csrc/parallel, behind the tracer's */
    loom_optimizer_hooks optimizer_hooks_ = {};
    loom_optimizer optimizer_ = {};
    loom_parallel parallel_ = {};
    loom_feeder feeder_ = {};
    loom_scalars_in in_ = {}; /* only their addresses are of interest */
    std::vector<int32_t> prompt_ = {1, 2, 3, 4, 5, 6, 7};
    std::vector<float> logits_, probabilities_;

    bool trains() const {
        return c_.purpose == LOOM_GPT_TRAIN;
    }
    /* The smallest chunk there is. */
    int64_t group_rows() const {
        const int64_t tiles = (INT64_C(32) << 20) / loom_gpt_padded_vocabulary(&c_.model.config) / 128;
        return 128 * std::max<int64_t>(tiles, 1);
    }
    void lay_out(loom_arena *arena) {
        loom_gpt_lay_out(gpt_, arena);
        if (!trains()) return;
        loom_optimizer_lay_out(&optimizer_, gpt_, sequences_, arena);
        loom_parallel_lay_out(&parallel_, gpt_, c_.ranks.micro_batches, arena);
        loom_feeder_lay_out(&feeder_, sequences_ / c_.ranks.sharding.ranks, T_, arena);
    }

    void prepare() {
        tracer.watch(loom_gpt_get_context(gpt_));
        tracer.section("prepare");
        name_all(); /* where it lies */
        require([&](loom_error *error) {
            return loom_gpt_prepare(gpt_, error) &&
                   (!trains() || (loom_optimizer_prepare(&optimizer_, error) &&
                                  loom_parallel_open(&parallel_, ranks_.comm(), &optimizer_, error)));
        });
        name_all(); /* what is there */
        if (!trains()) return;
        hook();
        tracer.section("start");
        require([&](loom_error *error) { return loom_parallel_gather(&parallel_, error); });
    }

    static Traced *of(void *user) {
        return static_cast<Traced *>(user);
    }
    void hook() {
        hooks_ = gpt_->hooks;
        optimizer_hooks_ = optimizer_.hooks;
        loom_gpt_hooks hooks = {};
        hooks.user = this;
        hooks.params_acquire = [](void *user, int bucket, int next) {
            const loom_gpt_hooks &inner = of(user)->hooks_;
            of(user)->tracer.line("acquire %d, next %d", bucket, next);
            if (inner.params_acquire) inner.params_acquire(inner.user, bucket, next);
        };
        hooks.params_release = [](void *user, int bucket) {
            const loom_gpt_hooks &inner = of(user)->hooks_;
            of(user)->tracer.line("release %d", bucket);
            if (inner.params_release) inner.params_release(inner.user, bucket);
        };
        hooks.grads_acquire = [](void *user, int bucket) {
            const loom_gpt_hooks &inner = of(user)->hooks_;
            of(user)->tracer.line("acquire gradients %d", bucket);
            if (inner.grads_acquire) inner.grads_acquire(inner.user, bucket);
        };
        hooks.grads_ready = [](void *user, int bucket) {
            const loom_gpt_hooks &inner = of(user)->hooks_;
            of(user)->tracer.line("gradients %d ready", bucket);
            if (inner.grads_ready) inner.grads_ready(inner.user, bucket);
        };
        hooks.synchronize = [](void *user, loom_error *error) {
            Traced *traced = of(user);
            const loom_gpt_hooks &inner = traced->hooks_;
            return inner.synchronize(inner.user, error);
        };
        loom_gpt_set_hooks(gpt_, &hooks);
        optimizer_.hooks.user = this;
        optimizer_.hooks.summed = [](void *user) {
            const loom_optimizer_hooks &inner = of(user)->optimizer_hooks_;
            of(user)->tracer.line("summed");
            if (inner.summed) inner.summed(inner.user);
        };
        optimizer_.hooks.updated = [](void *user, int bucket) {
            const loom_optimizer_hooks &inner = of(user)->optimizer_hooks_;
            of(user)->tracer.line("updated %d", bucket);
            if (inner.updated) inner.updated(inner.user, bucket);
        };
    }

    /* Of a bucket's elements first .. first + elements - 1, which lie at `data`, those of each of its tensors. */
    void name_bucket(const std::string &prefix, int bucket, void *data, loom_dtype dtype, int64_t first,
                     int64_t elements) {
        const loom_layout *layout = loom_gpt_get_layout(gpt_);
        const int64_t size = (int64_t)loom_dtype_size(dtype), end = first + elements;
        char *zero = (char *)data - first * size; /* where the bucket would begin */
        int64_t done = first;
        const auto gap = [&](int64_t to) {
            if (to > done) tracer.name(prefix + "gap", zero + done * size, (size_t)((to - done) * size), zero);
            done = std::max(done, to);
        };
        for (int i = 0; i < layout->n_parameters; i++) {
            const loom_parameter &p = layout->parameter[i];
            const int64_t begin = p.offset - layout->bucket[bucket].offset;
            const int64_t from = std::max(begin, first), to = std::min(begin + p.padded_rows * p.columns, end);
            if (p.bucket != bucket || from >= to) continue;
            gap(from);
            tracer.name(prefix + (p.name + std::strlen("transformer.")), zero + from * size,
                        (size_t)((to - from) * size), zero + begin * size);
            done = to;
        }
        gap(end);
    }
    /* What is there before the first step. */
    void name_all() {
        const loom_layout *layout = loom_gpt_get_layout(gpt_);
        const loom_precision &p = *loom_gpt_get_precision(gpt_);
        for (int b = 0; b < layout->n_buckets; b++) {
            const loom_shard &shard = *loom_gpt_get_shard(gpt_, b);
            const int64_t moments = trains() ? loom_optimizer_moments_at(&optimizer_, b) : 0;
            const auto name_shard = [&](const char *prefix, void *data, loom_dtype dtype) {
                name_bucket(prefix, b, data, dtype, shard.first, shard.elements);
            };
            if (loom_gpt_get_parameters(gpt_) || loom_gpt_bucket_slot(gpt_, b) < 2)
                name_bucket("", b, loom_gpt_bucket_parameters(gpt_, b), p.storage, 0, layout->bucket[b].elements);
            else
                name_shard("", shard.parameters, p.storage);
            if (shard.master != shard.parameters) name_shard("master.", shard.master, p.master);
            if (!trains()) continue;
            if (loom_gpt_get_gradients(gpt_))
                name_bucket("grad.", b, loom_gpt_bucket_gradients(gpt_, b), p.gradient, 0, layout->bucket[b].elements);
            else
                name_shard("grad.", shard.gradient, p.gradient);
            name_shard("moment1.", loom_element(optimizer_.moment1, moments, p.moment), p.moment);
            name_shard("moment2.", loom_element(optimizer_.moment2, moments, p.moment), p.moment);
        }
        const size_t ids = (size_t)(sequences_ / c_.ranks.sharding.ranks * T_) * sizeof(int32_t);
        const auto name = [&](const char *what, const void *data, size_t bytes) {
            tracer.name(what, data, bytes, data);
        };
        name("host.prompt", prompt_.data(), prompt_.size() * sizeof(int32_t));
        if (!trains()) return;
        name("batch.tokens", feeder_.inputs, ids);
        name("batch.targets", feeder_.targets, ids);
        name("host.scalars", &in_, sizeof in_);
    }

    void micro_batch(int64_t i) {
        const bool accumulate = i > 0 && loom_parallel_accumulates(&parallel_);
        loom_gpt_set_batch(gpt_, feeder_.inputs + i * B_ * T_, feeder_.targets + i * B_ * T_, LOOM_DEVICE_TO_DEVICE);
        loom_parallel_begin(&parallel_, i);
        loom_gpt_train(gpt_, accumulate);
        loom_optimizer_take_losses(&optimizer_, c_.ranks.sharding.rank * c_.ranks.micro_batches * B_ + i * B_, B_);
    }
    void one_step(const std::string &step) {
        tracer.section("step " + step);
        tracer.device.copy(&tracer.device, NULL, &loom_gpt_get_scalars(gpt_)->in, &in_, sizeof in_,
                           LOOM_HOST_TO_DEVICE);
        for (int64_t i = 0; i < c_.ranks.micro_batches; i++) {
            tracer.section(std::string(1, (char)('a' + i)) + step);
            micro_batch(i);
        }
        tracer.section("u" + step);
        loom_parallel_reduce(&parallel_);
        loom_optimizer_update(&optimizer_);
    }
    void validate() {
        tracer.section("v");
        loom_gpt_set_batch(gpt_, feeder_.inputs, feeder_.targets, LOOM_DEVICE_TO_DEVICE);
        loom_gpt_evaluate(gpt_);
    }
    void generate() {
        logits_.resize((size_t)c_.model.config.vocab_size);
        probabilities_ = logits_;
        tracer.section("g");
        int64_t past = 0;
        for (const int64_t n : {5, 1, 1}) {
            require([&](loom_error *error) {
                return loom_gpt_next_probabilities(gpt_, prompt_.data() + past, n, past, 0.5f, logits_.data(),
                                                   probabilities_.data(), error);
            });
            past += n;
        }
    }
};

struct Outcome {
    std::string text;
    int64_t operations;
};

Outcome trace_of(const Choice &choice) {
    Traced traced(choice);
    traced.run();
    for (const std::string &fault : traced.tracer.faults) ADD_FAILURE() << choice.name() << ": " << fault;
    return {traced.tracer.text, traced.tracer.operations};
}

/* -------------------------------------------------------------------------------------------------------------- files */

std::string file_name(const std::string &choice) {
    std::string name = choice;
    for (char &c : name)
        if (c == ' ' || c == ':') c = '-';
    return name + ".txt";
}

/* Where a trace is left, for who asks for all or for one that is not what it was. */
std::string leave(const std::string &choice, const std::string &text) {
    const char *asked = std::getenv("LOOM_TEST_TRACES");
    const fs::path folder = asked ? fs::path(asked) : fs::read_symlink("/proc/self/exe").parent_path() / "logs";
    const fs::path path = folder / ("trace-" + file_name(choice));
    fs::create_directories(folder);
    write_file(path, text);
    return path.string();
}

std::string line_of(const std::string &choice, const Outcome &outcome) {
    char text[256];
    std::snprintf(text, sizeof text, "%s: %" PRId64 " operations, %016" PRIx64 "\n", choice.c_str(), outcome.operations,
                  (uint64_t)XXH3_64bits(outcome.text.data(), outcome.text.size()));
    return text;
}

std::vector<std::string> lines_of(const std::string &text) {
    std::vector<std::string> lines;
    for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
        end = std::min(text.find('\n', begin), text.size());
        lines.push_back(text.substr(begin, end - begin));
    }
    return lines;
}

/* The first lines that differ, with the one before. */
std::string difference(const std::string &was, const std::string &is) {
    const std::vector<std::string> a = lines_of(was), b = lines_of(is);
    size_t i = 0;
    while (i < a.size() && i < b.size() && a[i] == b[i]) i++;
    std::string text = "line " + std::to_string(i + 1) + "\n    " + (i ? a[i - 1] : "") + "\n";
    for (size_t j = i; j < i + 3; j++) {
        const std::string left = j < a.size() ? a[j] : "(its end)", right = j < b.size() ? b[j] : "(its end)";
        text += left == right ? "    " + left + "\n" : "  - " + left + "\n  + " + right + "\n";
    }
    return text;
}

/* ------------------------------------------------------------------------------------------------------------- tests */

TEST(Trace, ChoicesMeetInPairs) {
    EXPECT_EQ(pairs().missing(), 0u);
}

TEST(Trace, OfAFewModelsIsThisLineByLine) {
    for (const Choice &choice : whole_choices()) {
        const std::string name = choice.name(), path = data_path("traces/" + file_name(name));
        const Outcome is = trace_of(choice);
        if (std::getenv("LOOM_TEST_TRACES")) leave(name, is.text);
        if (updates()) write_file(path, is.text);
        const std::string was = read_file(path);
        EXPECT_TRUE(was == is.text) << name << " is not what " << path << " says from " << difference(was, is.text)
                                    << "all of it: " << leave(name, is.text);
    }
}

/* Holds traces to a file that has a line for each; a trace is left where it can be read. */
class Lines {
  public:
    explicit Lines(const std::string &name) : path_(data_path(name)) {
        if (updates()) return;
        for (const std::string &line : lines_of(read_file(path_))) was_.insert(line + "\n");
    }
    void expect(const std::string &name, const Outcome &is) {
        const std::string line = line_of(name, is);
        now_ += line;
        count_++;
        if (!updates() && !was_.count(line) && ++others_ <= 5)
            ADD_FAILURE() << "not as in " << path_ << ": " << line << "what it is: " << leave(name, is.text);
    }
    void end() const {
        if (updates()) return write_file(path_, now_);
        EXPECT_EQ(others_, 0u) << "traces of " << count_ << " that are not what they were";
        EXPECT_EQ(was_.size(), count_) << "lines of " << path_;
    }

  private:
    const std::string path_;
    std::set<std::string> was_;
    std::string now_;
    size_t count_ = 0, others_ = 0;
};

TEST(Trace, OfManyModelsIsWhatItWas) {
    Lines lines("traces.txt");
    for (const Choice &choice : all_choices()) {
        const Outcome is = trace_of(choice);
        if (std::getenv("LOOM_TEST_TRACES")) leave(choice.name(), is.text);
        lines.expect(choice.name(), is);
    }
    lines.end();
}

/* All choices of one model, those of a policy and a dtype in one line. */
TEST(Trace, OfAllChoicesIsWhatItWas) {
    if (!full() || sanitized) GTEST_SKIP() << "make test-full runs it: every two choices are traced together";
    Lines lines("traces-all.txt");
    for (const char *policy : policies)
        for (const Dtypes &dtype : dtypes) {
            Outcome all = {"", 0};
            for (const Ranks &ranks : rankings)
                for (const Chunks &chunks : chunkings)
                    for (const bool offload : {false, true}) {
                        const bool generates = ranks.sharding.ranks == 1;
                        const Choice choice = {models[2], policy, dtype, ranks, chunks, offload, generates};
                        const Outcome one = trace_of(choice);
                        if (std::getenv("LOOM_TEST_TRACES")) leave(choice.name(), one.text);
                        all.text += choice.name() + " " + line_of("", one);
                        all.operations += one.operations;
                    }
            lines.expect(std::string(policy) + " " + dtype.name, all);
        }
    lines.end();
}

/* Where memory lies is not told. */
TEST(Trace, DoesNotDependOnAddresses) {
    const Choice choice = whole_choices()[5];
    const Outcome one = trace_of(choice);
    const size_t bytes = 64 << 20;
    void *elsewhere = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_TRUE(one.text == trace_of(choice).text);
    munmap(elsewhere, bytes);
}

} // namespace
