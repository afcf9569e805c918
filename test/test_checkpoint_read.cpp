/* Reading checkpoints: those of others, of other types and shapes, and damaged ones. */
#include "support_checkpoint.h"

#include "base/half.h"
#include "checkpoint/documents.h"

#include <sys/mman.h>

namespace {

using namespace support;

/* ---------------------------------------------------------------------------------------------------------- loading */

class ForeignTest : public CheckpointTest {
  protected:
    void SetUp() override {
        CheckpointTest::SetUp();
        ASSERT_TRUE(save(1));
        foreign = directory / "gpt2";
        fs::create_directory(foreign);
        fs::copy_file(checkpoints / "step-00000001/config.json", foreign / "config.json");
        raw = raw_weights(model);
    }

    /* Writes the raw tensors, and loads them into memory that must stay as it is when that fails; but where it is a
     * number that is none, which is found on the way. */
    bool load(bool numbers = true) {
        write_file(foreign / "model.safetensors", make_safetensors(raw));
        if (!open(foreign)) return false;
        EXPECT_FALSE(info.has_optimizer);
        EXPECT_FALSE(info.bytes);
        loaded.tensors.moments = false;
        const std::vector<float> before = loaded.weights;
        const bool ok = loom_checkpoint_load(&info, &loaded.tensors, &error);
        if (!ok && numbers) {
            EXPECT_EQ(memcmp(before.data(), loaded.weights.data(), before.size() * sizeof(float)), 0);
        }
        return ok;
    }

    fs::path foreign;
    std::vector<RawTensor> raw;
    CheckpointModel loaded{device};
};

TEST_F(ForeignTest, LoadsTheHubsNamesAndPassesOverMasks) {
    for (auto &tensor : raw) tensor.name = tensor.name.substr(strlen("transformer."));
    raw.push_back({"h.0.attn.bias", "F32", "[1,1,2,2]", std::string(16, 1)});
    raw.push_back({"h.1.attn.bias", "U8", "[1,1,2,2]", std::string(4, 1)});
    raw.push_back({"h.1.attn.masked_bias", "F32", "[]", std::string(4, 1)});
    raw.push_back({"lm_head.weight", "F32", "[257,8]", named(raw, "wte.weight").data});
    ASSERT_TRUE(load()) << error.message;
    EXPECT_EQ(loaded.difference(model), "");
}

TEST_F(ForeignTest, SixteenBitTensorsAreWidened) {
    const std::vector<std::pair<uint16_t, float>> f16 = {
        {0x0000, 0.0f},     {0x8000, -0.0f},     {0x0001, 0x1p-24f},        {0x83FF, -1023 * 0x1p-24f},
        {0x0400, 0x1p-14f}, {0x3C00, 1.0f},      {0x3C01, 1 + 0x1p-10f},    {0xC500, -5.0f},
        {0x7BFF, 65504.0f}, {0xFBFF, -65504.0f}, {0x3555, 0.333251953125f}, {0x2E66, 0.0999755859375f},
        {0x6400, 1024.0f}};
    const std::vector<std::pair<uint16_t, float>> bf16 = {{0x0000, 0.0f}, {0x8000, -0.0f}, {0x0001, 0x1p-133f},
                                                          {0x3F80, 1.0f}, {0xC0A0, -5.0f}, {0x3DCD, 0.10009765625f}};
    const auto put = [&](const std::string &name, const std::string &dtype, const auto &values) {
        RawTensor &tensor = named(raw, name);
        tensor.dtype = dtype;
        for (size_t i = 0; i < tensor.data.size() / 4; i++)
            memcpy(&tensor.data[2 * i], &values[i % values.size()].first, 2);
        tensor.data.resize(tensor.data.size() / 2);
    };
    put("transformer.wte.weight", "F16", f16);
    put("transformer.h.1.ln_2.bias", "BF16", bf16);
    ASSERT_TRUE(load()) << error.message;
    const auto check = [&](const std::string &name, const auto &values) {
        for (int i = 0; i < loaded.layout().n_parameters; i++) {
            const loom_parameter &p = loaded.layout().parameter[i];
            if (p.name != name) continue;
            for (int64_t j = 0; j < p.rows * p.columns; j++) {
                const float found = loaded.weights[static_cast<size_t>(p.offset + j)];
                const float expected = values[static_cast<size_t>(j) % values.size()].second;
                ASSERT_EQ(found, expected) << name << " " << j;
                ASSERT_EQ(std::signbit(found), std::signbit(expected)) << name << " " << j;
            }
            for (int64_t j = p.rows * p.columns; j < p.padded_rows * p.columns; j++)
                ASSERT_EQ(loaded.weights[static_cast<size_t>(p.offset + j)], 0) << name << " " << j;
        }
    };
    check("transformer.wte.weight", f16);
    check("transformer.h.1.ln_2.bias", bf16);
}

/* An output layer that is the token embedding holds nothing of its own, in whatever type; another one is not passed
 * over. */
TEST_F(ForeignTest, AnOutputLayerOfItsOwnIsRefused) {
    const RawTensor embedding = named(raw, "transformer.wte.weight");
    raw.push_back({"lm_head.weight", "F32", "[257,8]", embedding.data});
    ASSERT_TRUE(load()) << error.message;

    RawTensor &head = raw.back(), same = head;
    head.data.back() = static_cast<char>(head.data.back() ^ 1);
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({foreign / "model.safetensors", "'lm_head.weight' is not 'transformer.wte.weight'", "tied"}));
    head = same;
    head.shape = "[256,8]", head.data.resize(256 * 8 * 4);
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({"lm_head.weight", "(256, 8)", "(257, 8)"}));
    head = same;
    head.dtype = "I32";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({"lm_head.weight", "I32"}));
    head = same;
    std::string halves, &whole = named(raw, "transformer.wte.weight").data; /* bf16 beside the same in fp32 */
    for (size_t i = 0; i < whole.size(); i += 4) {
        whole[i] = whole[i + 1] = 0;
        halves += whole.substr(i + 2, 2);
    }
    head.dtype = "BF16", head.data = halves;
    EXPECT_TRUE(load()) << error.message;
}

/* Weights and moments that are no numbers would be carried on from step to step. */
TEST_F(ForeignTest, WhatIsNoFiniteNumberIsNamed) {
    const std::string path = foreign / "model.safetensors";
    for (const uint32_t bits : {0x7F800000u, 0xFF800000u, 0x7FC00000u, 0xFFFFFFFFu}) {
        for (const char *name :
             {"transformer.wte.weight", "transformer.h.1.mlp.c_proj.bias", "transformer.ln_f.bias"}) {
            const std::string kept = named(raw, name).data;
            memcpy(&named(raw, name).data[12], &bits, 4);
            EXPECT_FALSE(load(false));
            EXPECT_TRUE(says({path, name, "element 3 is infinite or NaN"}));
            named(raw, name).data = kept;
        }
    }
    RawTensor &last = named(raw, "transformer.ln_f.bias");
    const RawTensor kept = last;
    for (const auto &[dtype, bits] : {std::pair{"BF16", 0xFF80}, std::pair{"F16", 0x7C00}, std::pair{"F16", 0xFE00}}) {
        const auto half = static_cast<uint16_t>(bits);
        last.dtype = dtype, last.data = std::string(kept.data.size() / 2, 0);
        memcpy(&last.data[last.data.size() - 2], &half, 2);
        EXPECT_FALSE(load(false));
        EXPECT_TRUE(says({path, "transformer.ln_f.bias", "element 7 is infinite or NaN"}));
        last = kept;
    }
    EXPECT_TRUE(load()) << error.message;
}

/* A file that is cut off, or replaced by a shorter one in its place, while it is read. */
TEST_F(CheckpointTest, AFileThatShrinksWhileItIsReadIsAnError) {
    for (const bool far : {false, true}) {
        FakeDevice remote(far);
        OneTensor tensor("tensor", remote.get(), 300, 100, 384);
        std::vector<float> memory(384 * 100, 1);
        tensor.slice.parameters = far ? remote.address(memory) : memory.data();
        const fs::path path = directory / "shrinks.safetensors";
        ASSERT_TRUE(tensor.write(path, false, &error)) << error.message;
        const loom_tensor_sets sets = loom_weight_sets(&tensor.tensors);
        loom_tensor_source source;
        ASSERT_TRUE(loom_tensor_source_open(&source, path.c_str(), &tensor.tensors, &sets, true, &error));
        fs::resize_file(path, 60000);
        EXPECT_FALSE(loom_tensor_source_load(&source, &tensor.tensors, &sets, &error));
        EXPECT_TRUE(says({path, "has become shorter", "60000"}));
        loom_tensor_source_close(&source);
        fs::remove(path);
    }
}

/* Which of the two counts would depend on the reader. */
TEST_F(CheckpointTest, KeysThatStandTwiceAreRefused) {
    ASSERT_TRUE(save(1));
    const fs::path step = checkpoints / "step-00000001";
    for (const auto &[file, key] : {std::pair{"manifest.json", "format_version"}, std::pair{"manifest.json", "name"},
                                    std::pair{"config.json", "n_head"}, std::pair{"training_state.json", "seed"},
                                    std::pair{"training_state.json", "observed"}}) {
        const std::string kept = read_file(step / file), manifest = read_file(step / "manifest.json");
        const std::string quoted = std::string("\"") + key + "\":";
        replace_in_file(step / file, quoted, quoted + " 1, " + quoted);
        if (file != std::string("manifest.json")) fs::remove(step / "manifest.json");
        EXPECT_FALSE(open(run)) << file;
        EXPECT_TRUE(says({step / file, std::string("\"") + key + "\" twice"}));
        write_file(step / "manifest.json", manifest);
        write_file(step / file, kept);
    }
    EXPECT_TRUE(open(run)) << error.message;
}

TEST_F(ForeignTest, TensorsThatAreNotTheModelsAreNamed) {
    const std::string path = foreign / "model.safetensors", fc = "transformer.h.1.mlp.c_fc.weight";
    const std::vector<RawTensor> good = raw;
    ASSERT_TRUE(load()) << error.message;

    named(raw, fc).name = "transformer.h.1.mlp.c_other.weight";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, fc, "has no tensor"}));

    raw = good;
    raw.push_back({"transformer.h.2.ln_1.weight", "F32", "[8]", std::string(32, 0)});
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, "transformer.h.2.ln_1.weight", "does not have"}));

    raw = good;
    named(raw, fc).shape = "[32,8]";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, fc, "(32, 8)", "(8, 32)"}));

    raw = good;
    named(raw, "transformer.ln_f.bias").shape = "[1,8]";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, "transformer.ln_f.bias", "(1, 8)", "(8)"}));

    raw = good;
    named(raw, fc).dtype = "I32";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, fc, "I32", "F32, F16 or BF16"}));

    raw = good;
    raw.push_back({"wpe.weight", "F32", "[16,8]", std::string(16 * 8 * 4, 0)});
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({path, "'wpe.weight'"}));
}

TEST_F(ForeignTest, ConfigurationsThatComputeSomethingElseAreRefused) {
    ASSERT_TRUE(load()) << error.message;
    const fs::path config = foreign / "config.json";
    const std::string good = read_file(config);
    const struct {
        const char *old_text, *new_text, *says;
    } cases[] = {
        {"\"gpt2\"", "\"llama\"", "model_type"},
        {"\"gpt2\"", "2", "model_type"},
        {"\"model_type\"", "\"type\"", "model_type"},
        {"gelu_new", "silu", "only gelu_new, relu and relu2 are computed here: take a model"},
        {"gelu_new", "gelu_pytorch_tanh", "is gelu_new by another name: write gelu_new"},
        {"1e-05", "1e-06",
         "\"layer_norm_epsilon\" is not 1e-05, the only one that is computed with here; take a model"},
        {"1e-05", "\"1e-05\"", "layer_norm_epsilon"},
        {"\"n_inner\":\tnull", "\"n_inner\":\t33",
         "\"n_inner\" is not 4 * n_embd = 32, the only width of an MLP that is "
         "computed here; take a model"},
        {"\"tie_word_embeddings\":\ttrue", "\"tie_word_embeddings\":\tfalse",
         "\"tie_word_embeddings\" is not true: it has an output layer of its own, which cannot be computed here; take"},
        {"{", "{\"scale_attn_by_inverse_layer_idx\": true, ", "scale_attn_by_inverse_layer_idx"},
        {"{", "{\"scale_attn_weights\": false, ", "scale_attn_weights"},
        {"\"n_head\":\t2", "\"n_head\":\t3", "not divisible"},
        {"\"n_head\":\t2", "\"n_head\":\t0", "n_head"},
        {"\"n_layer\":\t2", "\"n_layer\":\t-2", "n_layer"},
        {"\"n_layer\":\t2", "\"n_layer\":\t1.5", "n_layer"},
        {"\"n_layer\":\t2", "\"n_layer\":\t1e300", "n_layer"},
        {"\"n_layer\":\t2", "\"n_layer\":\t\"2\"", "n_layer"},
        {"\"n_embd\"", "\"n_channels\"", "n_embd"},
        {"\"n_positions\":\t16", "\"n_positions\":\t17", "wpe.weight"},
        {"\"vocab_size\":\t257", "\"vocab_size\":\t50257", "wte.weight"},
        {"\"n_layer\":\t2", "\"n_layer\":\t3", "h.2.attn.c_attn.weight"},
        {"\"n_layer\":\t2", "\"n_layer\":\t2,,", "not valid JSON from line"},
    };
    for (const auto &c : cases) {
        write_file(config, good);
        replace_in_file(config, c.old_text, c.new_text);
        EXPECT_FALSE(open(foreign)) << c.new_text;
        EXPECT_TRUE(says({foreign, c.says}));
    }
    for (const std::string &text : {std::string(), std::string("[1]"), std::string("nonsense"), good + "x"}) {
        write_file(config, text);
        EXPECT_FALSE(open(foreign)) << text;
        EXPECT_TRUE(says({config, "damaged"}));
    }
    write_file(config, good);
    replace_in_file(config, "\"n_inner\":\tnull", "\"n_inner\":\t32");
    EXPECT_TRUE(open(foreign)) << error.message;
    fs::remove(config);
    EXPECT_FALSE(open(foreign));
    EXPECT_TRUE(says({config, "is missing"}));
    fs::create_directory(config);
    EXPECT_FALSE(open(foreign));
    EXPECT_TRUE(says({config, "not a regular file"}));
}

TEST_F(ForeignTest, MissingWeightsAreExplained) {
    EXPECT_FALSE(open(foreign));
    EXPECT_TRUE(says({foreign / "model.safetensors", "is missing"}));
    write_file(foreign / "model.safetensors.index.json", "{}");
    EXPECT_FALSE(open(foreign));
    EXPECT_TRUE(says({foreign / "model.safetensors", "in several files", "save_pretrained(DIR, max_shard_size="}));
    fs::remove(foreign / "model.safetensors.index.json");
    write_file(foreign / "pytorch_model.bin", "PK");
    EXPECT_FALSE(open(foreign));
    EXPECT_TRUE(says({foreign / "model.safetensors", "as safetensors", "save_pretrained(DIR)"}));
}

TEST_F(CheckpointTest, ACheckpointOfAnotherShapeIsRefused) {
    ASSERT_TRUE(save(1) && open(run));
    const loom_gpt_config shapes[] = {
        {2, 4, 8, 16, 257}, {1, 2, 8, 16, 257}, {2, 2, 16, 16, 257}, {2, 2, 8, 32, 257}, {2, 2, 8, 16, 300}};
    for (const auto &shape : shapes) {
        CheckpointModel other(device, {shape});
        EXPECT_FALSE(loom_checkpoint_load(&info, &other.tensors, &error));
        EXPECT_TRUE(says({checkpoints / "step-00000001", "another shape", "2 layers, 2 heads"}));
        EXPECT_EQ(other.weights[0], padding_mark);
    }
}

/* Any part of each bucket, be it between tensors, in padding, or one element: that part, and nothing beside it. */
TEST_F(CheckpointTest, SlicesOfAnyCutLoadWhatIsTheirs) {
    ASSERT_TRUE(save(1) && open(run));
    uint64_t random = 7;
    int64_t begin = 0;
    for (int round = 0; round < 60; round++) {
        CheckpointKind kind;
        kind.ranks = 1 + round % 3; /* of the layout's padding; what is cut here is in no relation to them */
        kind.cut = [&](int, int r, int, int64_t elements) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const auto any = static_cast<int64_t>((random >> 33) % static_cast<uint64_t>(elements + 1));
            if (r == 0) return begin = any;
            return begin + (round % 2 ? std::min<int64_t>(any % 9, elements - begin) : any % (elements - begin + 1));
        };
        FakeDevice remote(round % 5 == 0);
        CheckpointModel loaded(remote, kind);
        ASSERT_TRUE(loom_checkpoint_load(&info, &loaded.tensors, &error)) << error.message;
        ASSERT_EQ(loaded.difference(model), "") << "round " << round;
    }
}

/* As they were saved, or the nearest: between neighbours of bf16, and half-way to the next. */
TEST_F(CheckpointTest, MomentsOfEitherTypeLoadIntoEither) {
    const size_t n = 900;
    std::vector<float> values(n);
    for (size_t i = 0; i < n; i++)
        values[i] = std::ldexp(1 + static_cast<float>(i) * 0x1p-10f, static_cast<int>(i % 60) - 30);
    const auto stored = [&](loom_dtype dtype, bool rounded) {
        std::vector<float> memory(n, 0);
        for (size_t i = 0; i < n; i++) {
            const uint16_t narrow = float_to_bf16(values[i]);
            const float wide = rounded ? bf16_to_float(narrow) : values[i];
            if (dtype == LOOM_F32)
                memory[i] = wide;
            else
                memcpy(reinterpret_cast<char *>(memory.data()) + 2 * i, &narrow, 2);
        }
        return memory;
    };
    FakeDevice remote(true);
    OneTensor moved("moved", remote.get(), 30, 30, 30);
    const fs::path path = directory / "moments.safetensors";
    const auto place = [&](std::vector<float> &moment1, std::vector<float> &moment2, loom_dtype dtype) {
        moved.slice.moment1 = remote.address(moment1), moved.slice.moment2 = remote.address(moment2);
        moved.tensors.moment_dtype = dtype;
    };
    for (const loom_dtype from : {LOOM_F32, LOOM_BF16}) {
        std::vector<float> saved = stored(from, false), saved2 = saved;
        place(saved, saved2, from);
        ASSERT_TRUE(moved.write(path, true, &error)) << error.message;
        EXPECT_EQ(fs::file_size(path) / (2 * n), loom_dtype_size(from)) << "two moments, and a header";
        for (const loom_dtype to : {LOOM_F32, LOOM_BF16}) {
            std::vector<float> loaded(n, 0), loaded2(n, 0);
            place(loaded, loaded2, to);
            ASSERT_TRUE(moved.load(path, true, &error)) << error.message;
            for (const auto *memory : {&loaded, &loaded2})
                EXPECT_EQ(memcmp(memory->data(), stored(to, from == LOOM_BF16).data(), n * sizeof(float)), 0)
                    << loom_dtype_name(from) << " as " << loom_dtype_name(to);
        }
        fs::remove(path);
    }
}

TEST_F(CheckpointTest, MomentsMustBeWholeToo) {
    ASSERT_TRUE(save(1));
    const fs::path step = checkpoints / "step-00000001", moments = step / "optimizer.safetensors";
    fs::remove(step / "manifest.json");
    auto raw = raw_weights(model);
    auto squares = raw;
    for (auto &tensor : raw) tensor.name += ".exp_avg";
    for (auto &tensor : squares) tensor.name += ".exp_avg_sq";
    raw.insert(raw.end(), squares.begin(), squares.end());
    const auto load = [&] {
        write_file(moments, make_safetensors(raw));
        CheckpointModel loaded(device);
        const bool ok = open(run) && loom_checkpoint_load(&info, &loaded.tensors, &error);
        if (!ok) {
            EXPECT_EQ(loaded.weights[0], padding_mark) << "was loaded in part";
        }
        return ok;
    };
    ASSERT_TRUE(load()) << error.message;

    RawTensor &last = raw.back();
    const RawTensor good = last;
    last.dtype = "F16", last.data.resize(last.data.size() / 2);
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({moments, "transformer.ln_f.bias.exp_avg_sq", "F16", "expected F32"}));
    last = good;
    last.name = "ln_f.bias.exp_avg_sq";
    EXPECT_FALSE(load());
    EXPECT_TRUE(says({moments, "transformer.ln_f.bias.exp_avg_sq"}));
    write_file(moments, "short");
    EXPECT_FALSE(open(run));
    EXPECT_TRUE(says({moments, "truncated"}));
}

/* ----------------------------------------------------------------------------------------------------------- damage */

TEST_F(CheckpointTest, DamageIsFoundInEveryFileAndTheOlderCheckpointNamed) {
    ASSERT_TRUE(save(1) && save(2));
    const fs::path step = checkpoints / "step-00000002", older = checkpoints / "step-00000001";
    for (const std::string &name : names_in(step)) {
        const fs::path path = step / name;
        const std::string good = read_file(path);
        if (name != "manifest.json") { /* of which not every byte matters */
            std::string flipped = good;
            flipped[good.size() / 2] ^= 4;
            write_file(path, flipped);
            EXPECT_FALSE(open(run));
            EXPECT_TRUE(says({path, "checksum", older}));
        }
        write_file(path, good.substr(0, good.size() - 3));
        EXPECT_FALSE(open(run));
        EXPECT_TRUE(says({path, "damaged", name == "manifest.json" ? "JSON" : " bytes, ", older}));
        fs::remove(path);
        if (name != "manifest.json") {
            EXPECT_FALSE(open(step));
            EXPECT_TRUE(says({path, older}) || name == "config.json") << error.message;
        }
        write_file(path, good);
    }
    EXPECT_TRUE(open(run)) << error.message;

    write_file(older / "config.json", "{}");
    EXPECT_FALSE(open(older));
    EXPECT_EQ(std::string(error.message).find("checkpoint before"), std::string::npos);
}

TEST_F(CheckpointTest, DamagedManifestsAreRefused) {
    ASSERT_TRUE(save(1));
    const fs::path manifest = checkpoints / "step-00000001/manifest.json";
    const std::string good = read_file(manifest);
    const struct {
        const char *old_text, *new_text, *says;
    } cases[] = {{"\"format_version\":\t1", "\"format_version\":\t2", "newer"},
                 {"\"format_version\"", "\"version\"", "format_version"},
                 {"\"files\"", "\"none\"", "files"},
                 {"\"config.json\"", "\"../config.json\"", "no file's name"},
                 {"\"config.json\"", "\"\"", "no file's name"},
                 {"\"config.json\"", "7", "must be a string"},
                 {"\"config.json\"", "\"absent\"", "absent"},
                 {"\"size\"", "\"bytes\"", "size"},
                 {"\"size\":\t", "\"size\":\t-", "size"},
                 {"\"xxh3_128\"", "\"sha256\"", "xxh3_128"}};
    for (const auto &c : cases) {
        write_file(manifest, good);
        replace_in_file(manifest, c.old_text, c.new_text);
        EXPECT_FALSE(open(run)) << c.new_text;
        EXPECT_TRUE(says({checkpoints, c.says}));
    }
    write_file(manifest, "{\"format_version\":1,\"files\":[3]}");
    EXPECT_FALSE(open(run));
    EXPECT_TRUE(says({manifest, "name"}));
}

TEST_F(CheckpointTest, EveryFieldOfTheStateIsChecked) {
    ASSERT_TRUE(save(1));
    const fs::path path = checkpoints / "step-00000001/training_state.json";
    const std::string good = read_file(path);
    loom_training_state state;
    const auto read = [&] {
        error.message[0] = 0;
        return loom_state_read(path.c_str(), &state, &error);
    };
    ASSERT_TRUE(read()) << error.message;

    const std::vector<std::string> never = {"null", "true", "[]", "\"\"", "\"-\"", "\"1x\"", "\"1 \""};
    const std::vector<std::string> no_count = {"1", "\" 1\"", "\"-1\"", "\"+1\"", "\"0x1\"", "\"9223372036854775808\""};
    const std::vector<std::string> no_bits = {"1", "\"1\"", "\" 0x1\"", "\"0x\"", "\"0x10000000000000000\""};
    const struct {
        std::vector<std::string> fields, values;
    } cases[] = {
        {{"step", "tokens", "batch", "seq_len", "training_tokens", "updates", "skipped", "observed"}, no_count},
        {{"seed", "data_identity"}, no_bits},
        {{"loss_mean", "loss_square", "norm_mean", "norm_square"}, {"1.5", "\"one\"", "\"0x1p9999\""}},
        {{"format_version"}, {"0", "2", "\"1\""}},
        {{"scalars"}, {"7"}}};
    for (const auto &c : cases) {
        for (const std::string &field : c.fields) {
            write_file(path, good);
            replace_in_file(path, "\"" + field + "\"", "\"other\"");
            EXPECT_FALSE(read()) << field;
            EXPECT_TRUE(says({path, field}));

            std::vector<std::string> values = never;
            values.insert(values.end(), c.values.begin(), c.values.end());
            for (const std::string &value : values) {
                const size_t at = good.find("\"" + field + "\":\t") + field.size() + 4;
                const size_t end = field == "scalars" ? good.find('}', at) + 1 : good.find_first_of(",\n", at);
                write_file(path, good.substr(0, at) + value + good.substr(end));
                EXPECT_FALSE(read()) << field << " " << value;
                EXPECT_TRUE(says({path, field == "format_version" && value == "2" ? "newer" : field}));
            }
        }
    }
}

/* What was written before there were dtypes and loss scaling has neither; what has a dtype has all of it. */
TEST_F(CheckpointTest, OlderStatesAreOfFp32WithoutALossScale) {
    ASSERT_TRUE(save(1));
    const fs::path path = checkpoints / "step-00000001/training_state.json";
    const std::string good = read_file(path);
    loom_training_state state;
    const auto read = [&] {
        error.message[0] = 0;
        return loom_state_read(path.c_str(), &state, &error);
    };
    ASSERT_TRUE(read()) << error.message;
    EXPECT_EQ(state.dtype, LOOM_F16);
    EXPECT_EQ(state.scalars.loss_scale, 0x1p15f);
    EXPECT_EQ(state.scalars.loss_scale_age, 1234);
    replace_in_file(path, "\"dtype\"", "\"other\"");
    ASSERT_TRUE(read()) << error.message;
    EXPECT_STREQ(state.course, "") << "older ones do not tell";
    EXPECT_EQ(state.dtype, LOOM_F32);
    EXPECT_EQ(state.scalars.loss_scale, 0);
    EXPECT_EQ(state.scalars.loss_scale_age, 0);

    const std::string long_course = "\"fp16\", \"course\": \"" + std::string(sizeof state.course, 'x') + "\"";
    const struct {
        const char *old_text, *new_text, *says;
    } cases[] = {{"\"fp16\"", "\"fp8\"", "fp8"},
                 {"\"fp16\"", "\"fp64\"", "fp64"},
                 {"\"fp16\"", "16", "dtype"},
                 {"\"fp16\"", "\"fp16\", \"course\": 1", "course"},
                 {"\"fp16\"", long_course.c_str(), "longer"},
                 {"\"loss_scale\"", "\"other\"", "loss_scale"},
                 {"\"loss_scale_age\"", "\"other\"", "loss_scale_age"},
                 {"\"loss_scale\":\t\"0x", "\"loss_scale\":\t\"-0x", "loss_scale"},
                 {"\"1234\"", "\"4294967296\"", "loss_scale"}};
    for (const auto &c : cases) {
        write_file(path, good);
        replace_in_file(path, c.old_text, c.new_text);
        EXPECT_FALSE(read()) << c.new_text;
        EXPECT_TRUE(says({path, c.says}));
    }
}

/* ------------------------------------------------------------------------------------------------------ safetensors */

/* Its file is one in memory, because some of these tests write it very often. */
class SafetensorsTest : public CheckpointTest {
  protected:
    void SetUp() override {
        CheckpointTest::SetUp();
        descriptor = memfd_create("safetensors", MFD_CLOEXEC);
        ASSERT_GE(descriptor, 0);
        path = "/proc/self/fd/" + std::to_string(descriptor);
    }
    void TearDown() override {
        close(descriptor);
        CheckpointTest::TearDown();
    }

    bool open_content(const std::string &content) {
        EXPECT_EQ(ftruncate(descriptor, 0), 0);
        EXPECT_EQ(pwrite(descriptor, content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
        error.message[0] = 0;
        const bool ok = loom_safetensors_open(&file, path.c_str(), &error);
        if (!ok) {
            EXPECT_TRUE(says({path}));
            EXPECT_EQ(file.tensor, nullptr);
            EXPECT_STREQ(file.reader.path, "");
        }
        return ok;
    }

    int descriptor = -1;
    std::string path;
    loom_safetensors file{};
};

TEST_F(SafetensorsTest, ReadsWhatTheFormatAllows) {
    ASSERT_TRUE(open_content(
        raw_safetensors(R"({"b":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                        R"("a":{"dtype":"BOOL","shape":[1,3,1,1],"data_offsets":[8,11]},)"
                        R"("none":{"dtype":"F32","shape":[5,0],"data_offsets":[11,11]},"__metadata__":{"x":"y"}}   )",
                        "12345678xyz")))
        << error.message;
    EXPECT_EQ(file.n_tensors, 3);
    const loom_safetensor *a = loom_safetensors_find(&file, "a"), *b = loom_safetensors_find(&file, "b");
    ASSERT_TRUE(a && b && loom_safetensors_find(&file, "none"));
    EXPECT_EQ(bytes_of(file, *a), "xyz");
    EXPECT_EQ(bytes_of(file, *b), "12345678");
    EXPECT_EQ(a->rank, 4);
    EXPECT_EQ(a->shape[1], 3);
    EXPECT_EQ(b->rank, 0);
    EXPECT_EQ(loom_safetensors_find(&file, "c"), nullptr);
    EXPECT_EQ(loom_safetensors_find(&file, ""), nullptr);
    loom_safetensors_close(&file);
    ASSERT_TRUE(open_content(raw_safetensors("{}", ""))) << error.message;
    EXPECT_EQ(file.n_tensors, 0);
    loom_safetensors_close(&file);
}

TEST_F(SafetensorsTest, ImpossibleHeadersAreRefused) {
    const auto one = [](const std::string &fields) { return "{\"t\":{" + fields + "}}"; };
    const std::string four_bytes = "abcd";
    const struct {
        std::string header, says;
    } cases[] = {
        {"", "not valid JSON"},
        {"[]", "not an object"},
        {"{", "not valid JSON"},
        {"{} {}", "not valid JSON"},
        {std::string("{}\0  ", 5), "not text"},
        {"{}", "4 bytes at its end"},
        {"{\"t\":7}", "dtype"},
        {"{\"t\":[1]}", "dtype"},
        {one(R"("shape":[1],"data_offsets":[0,4])"), "dtype"},
        {one(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])"), "dtype"},
        {one(R"("dtype":32,"shape":[1],"data_offsets":[0,4])"), "dtype"},
        {one(R"("dtype":"F32","data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":1,"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[0.5],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":["1"],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[1,1,1,1,1],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[1e300],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4])"), "shape of tensor"},
        /* 2^62 + 1 elements: in 64 bits their bytes come to 4 again */
        {one(R"("dtype":"F32","shape":[242243305,19037413721],"data_offsets":[0,4])"), "shape of tensor"},
        {one(R"("dtype":"F32","shape":[1])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":["0","4"])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), "truncated"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[1e18,1e18])"), "data_offsets"},
        {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), "truncated"},
        {one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), "shape and dtype need 8"},
        {one(R"("dtype":"U8","shape":[3],"data_offsets":[1,4])"), "does not follow"},
        {one(R"("dtype":"U8","shape":[3],"data_offsets":[0,3])"), "1 bytes at its end"},
        {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
         "overlaps"},
        {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}})",
         "overlaps"},
        {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
         "two tensors 'a'"},
        {"{\"" + std::string(128, 'n') + R"(":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "name"},
        {"{\"\\u001b[2J\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "name"},
        {std::string(100000, '['), "not valid JSON"},
    };
    for (const auto &c : cases) {
        if (open_content(raw_safetensors(c.header, four_bytes))) {
            ADD_FAILURE() << "accepted: " << c.header.substr(0, 200);
            loom_safetensors_close(&file);
        }
        EXPECT_TRUE(says({c.says})) << c.header.substr(0, 200);
    }
}

TEST_F(SafetensorsTest, ImpossibleLengthsAreRefused) {
    const std::string good = raw_safetensors("{}", "");
    EXPECT_FALSE(open_content(""));
    EXPECT_FALSE(open_content(good.substr(0, 7)));
    EXPECT_FALSE(open_content(good.substr(0, 9)));
    EXPECT_FALSE(open_content(std::string(8, '\xff') + "{}"));
    EXPECT_FALSE(open_content(std::string("\x03\0\0\0\0\0\0\0{}", 10)));
    const size_t page = 4096, one_too_long = page - 8 + 1; /* nothing is mapped after the file */
    EXPECT_FALSE(open_content(raw_safetensors(std::string(one_too_long, ' '), "").substr(0, page)));
    EXPECT_TRUE(says({"no safetensors file"}));
    EXPECT_FALSE(open_content("<!DOCTYPE html><html><body>not found</body></html>"));
    EXPECT_TRUE(says({"no safetensors file"}));
    EXPECT_FALSE(loom_safetensors_open(&file, (directory / "absent").c_str(), &error));
    EXPECT_TRUE(says({directory / "absent", "No such file"}));
}

/* What a damaged header is taken for does not matter here, only that nothing outside the file is ever touched: which
 * the sanitizer builds see. */
TEST_F(SafetensorsTest, DamagedHeadersNeverLeadOutOfTheFile) {
    const std::string good = make_safetensors(raw_weights(model));
    size_t header = 0;
    memcpy(&header, good.data(), 8);
    ASSERT_TRUE(open_content(good));
    loom_safetensors_close(&file);

    uint64_t random = 12345;
    const auto next = [&random] { return (random = random * 6364136223846793005u + 1442695040888963407u) >> 33; };
    const char telling[] = "0123456789-.eE\"[]{},: \\\x00\xff";
    size_t refused = 0, accepted = 0, sum = 0;
    for (int round = 0; round < 1500; round++) {
        std::string damaged = good;
        for (uint64_t changes = 1 + next() % 3; changes > 0; changes--) {
            char &byte = damaged[next() % 4 == 0 ? next() % 8 : 8 + next() % header];
            byte = next() % 2 ? telling[next() % (sizeof telling - 1)] : static_cast<char>(byte ^ 1 << next() % 8);
        }
        if (next() % 16 == 0) damaged.resize(next() % damaged.size());
        if (!open_content(damaged)) {
            refused++;
            continue;
        }
        accepted++;
        for (int i = 0; i < file.n_tensors; i++)
            for (const char byte : bytes_of(file, file.tensor[i])) sum += static_cast<unsigned char>(byte);
        loom_safetensors_close(&file);
    }
    EXPECT_GT(refused, 500u);
    EXPECT_GT(accepted, 20u); /* changed names, mostly */
    EXPECT_GT(sum, 0u);
}

} // namespace
