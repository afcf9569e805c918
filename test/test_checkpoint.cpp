/* Checkpoints: what is saved, under which names, and what is left of a save that fails. */
#include "support_checkpoint.h"

#include "base/half.h"
#include "checkpoint/directory.h"
#include "checkpoint/documents.h"

#include <cfloat>
#include <csignal>
#include <limits>
#include <sys/wait.h>

namespace {

using namespace support;

/* ------------------------------------------------------------------------------------------------------ round trips */

class RoundTripTest : public CheckpointTest, public ::testing::WithParamInterface<bool> {};

TEST_P(RoundTripTest, KeepsEveryBit) {
    FakeDevice saver(GetParam()), loader(!GetParam());
    CheckpointModel saved(saver), loaded(loader);
    saved.fill(42);
    const loom_training_state state = state_of(100);
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &saved.tensors, &state, true, nullptr, &error)) << error.message;
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(checkpoints / "step-00000100", info.directory);
    EXPECT_EQ(memcmp(&info.config, &saved.config(), sizeof info.config), 0);
    EXPECT_EQ(memcmp(&info.state, &state, sizeof state), 0);
    EXPECT_TRUE(info.bytes);
    EXPECT_TRUE(info.has_optimizer);
    ASSERT_TRUE(loom_checkpoint_load(&info, &loaded.tensors, &error)) << error.message;
    EXPECT_EQ(loader.pending(), 0u);
    EXPECT_EQ(loaded.difference(saved), "");
}

INSTANTIATE_TEST_SUITE_P(Devices, RoundTripTest, ::testing::Bool());

/* Tensors and padding larger than the staging memory, which is copied through in several rounds. */
TEST_F(CheckpointTest, CopiesLargeTensorsPiecewise) {
    std::vector<float> saved(2200 * 1024, 0), loaded(saved.size(), padding_mark);
    for (size_t i = 0; i < 1030 * 1024; i++) saved[i] = static_cast<float>(i);

    FakeDevice remote(true);
    OneTensor large("large", remote.get(), 1030, 1024, 2200);
    const fs::path path = directory / "large.safetensors";
    large.slice.parameters = remote.address(saved);
    ASSERT_TRUE(large.write(path, false, &error)) << error.message;
    large.slice.parameters = remote.address(loaded);
    ASSERT_TRUE(large.load(path, false, &error)) << error.message;
    EXPECT_TRUE(loaded == saved);

    std::string halves(1030 * 1024 * 2, 0); /* bf16 of the index's upper half */
    for (uint32_t i = 0; i < 1030 * 1024; i++) {
        const auto bits = static_cast<uint16_t>(i / 64);
        memcpy(&halves[2 * i], &bits, 2);
        const uint32_t wide = uint32_t{bits} << 16;
        memcpy(&saved[i], &wide, 4);
    }
    write_file(path, make_safetensors({{"large", "BF16", "[1030,1024]", halves}}));
    ASSERT_TRUE(large.load(path, false, &error)) << error.message;
    EXPECT_TRUE(loaded == saved);
}

/* Weights of 16 bits are written as they are, and become any other type when they are loaded. */
TEST_F(CheckpointTest, WeightsOfEveryTypeBecomeEveryOther) {
    const size_t n = 1030 * 1024, padded = 1100 * 1024;
    /* Exact in all three types: 7 significant bits, small exponents. */
    std::vector<float> values(n);
    for (size_t i = 0; i < n; i++)
        values[i] = std::ldexp(static_cast<float>(i % 255) - 127, static_cast<int>(i % 16) - 10);
    const loom_dtype dtypes[] = {LOOM_F32, LOOM_BF16, LOOM_F16};
    const auto stored = [&](loom_dtype dtype) {
        std::vector<float> memory(padded, padding_mark);
        for (size_t i = 0; i < padded; i++) {
            const float value = i < n ? values[i] : 0;
            const uint16_t narrow = dtype == LOOM_BF16 ? float_to_bf16(value) : float_to_fp16(value);
            if (dtype == LOOM_F32)
                memory[i] = value;
            else
                memcpy(reinterpret_cast<char *>(memory.data()) + 2 * i, &narrow, 2);
        }
        return memory;
    };
    FakeDevice remote(true);
    OneTensor large("large", remote.get(), 1030, 1024, 1100);
    const fs::path path = directory / "large.safetensors";
    for (const loom_dtype from : dtypes) {
        std::vector<float> saved = stored(from);
        large.slice.parameters = remote.address(saved), large.tensors.dtype = from;
        ASSERT_TRUE(large.write(path, false, &error)) << error.message;
        loom_safetensors file;
        ASSERT_TRUE(loom_safetensors_open(&file, path.c_str(), &error)) << error.message;
        EXPECT_STREQ(file.tensor[0].dtype, from == LOOM_F32 ? "F32" : from == LOOM_BF16 ? "BF16" : "F16");
        EXPECT_EQ(file.tensor[0].bytes, n * loom_dtype_size(from));
        loom_safetensors_close(&file);
        for (const loom_dtype to : dtypes) {
            std::vector<float> loaded(padded, padding_mark);
            large.slice.parameters = remote.address(loaded), large.tensors.dtype = to;
            ASSERT_TRUE(large.load(path, false, &error)) << error.message;
            EXPECT_EQ(memcmp(loaded.data(), stored(to).data(), padded * sizeof(float)), 0)
                << loom_dtype_name(from) << " as " << loom_dtype_name(to);
        }
        fs::remove(path);
    }
}

TEST_F(CheckpointTest, StateSurvivesAtItsLimits) {
    loom_training_state state{};
    state.step = 12345678901;
    state.tokens = INT64_MAX;
    state.seed = UINT64_MAX;
    state.data_identity = (uint64_t{1} << 63) + 1;
    state.batch = 1;
    state.seq_len = INT64_MAX;
    state.training_tokens = (int64_t{1} << 53) + 1;
    memset(state.course, 'x', sizeof state.course - 1);
    state.bad_steps = state.step;
    const double values[] = {0.0,          -0.0,
                             DBL_MAX,      -DBL_MIN,
                             DBL_TRUE_MIN, -5 * DBL_TRUE_MIN,
                             1.0 / 3,      INFINITY,
                             -INFINITY,    DBL_MIN * (1 - 1e-10),
                             0.1,          std::nextafter(1.0, 2.0)};
    const std::string path = directory / "training_state.json";
    const auto round_trip = [&] {
        loom_manifest manifest{};
        manifest.directory = directory.c_str();
        loom_training_state read{};
        fs::remove(path);
        EXPECT_TRUE(loom_state_write(&manifest, &state, &error)) << error.message;
        EXPECT_TRUE(loom_state_read(path.c_str(), &read, &error)) << error.message;
        return read;
    };
    for (const double value : values) {
        state.scalars = {INT64_MAX - 1, (int64_t{1} << 53) + 1, 7, value, -value, value / 3, value * 3, 0x1p127f,
                         INT32_MAX};
        const loom_training_state read = round_trip();
        EXPECT_EQ(memcmp(&read, &state, sizeof state), 0) << value;
    }
    state.scalars.loss_mean = NAN;
    EXPECT_TRUE(std::isnan(round_trip().scalars.loss_mean));
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &model.tensors, &state, true, nullptr, &error)) << error.message;
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(checkpoints / "step-12345678901", info.directory);
}

TEST_F(CheckpointTest, WeightsAloneCanBeSavedAndLoaded) {
    const loom_training_state state = state_of(3);
    loom_checkpoint_tensors weights = model.tensors;
    weights.moments = false;
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &weights, &state, false, nullptr, &error)) << error.message;
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_FALSE(info.has_optimizer);
    EXPECT_FALSE(info.bytes);
    EXPECT_EQ(info.state.step, 3);
    CheckpointModel loaded(device);
    EXPECT_FALSE(loom_checkpoint_load(&info, &loaded.tensors, &error));
    EXPECT_TRUE(says({info.directory, "weights only"}));
    loaded.tensors.moments = false;
    ASSERT_TRUE(loom_checkpoint_load(&info, &loaded.tensors, &error)) << error.message;
    EXPECT_EQ(loaded.difference(model), "");
}

/* ------------------------------------------------------------------------------------------------ what is in a file */

TEST_F(CheckpointTest, FilesAreNamedAndShapedAsTransformersWritesThem) {
    ASSERT_TRUE(save(5)) << error.message;
    const fs::path step = checkpoints / "step-00000005";
    EXPECT_EQ(names_in(step),
              (std::set<std::string>{"config.json", "manifest.json", "model.safetensors", "optimizer.safetensors",
                                     "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
                                     "training_state.json"}));

    loom_safetensors file;
    ASSERT_TRUE(loom_safetensors_open(&file, (step / "model.safetensors").c_str(), &error)) << error.message;
    EXPECT_EQ(file.n_tensors, model.layout().n_parameters);
    size_t bytes = 0;
    for (int i = 0; i < file.n_tensors; i++) {
        EXPECT_STREQ(file.tensor[i].dtype, "F32");
        EXPECT_EQ(file.tensor[i].place % sizeof(float), 0u);
        bytes += file.tensor[i].bytes;
    }
    EXPECT_EQ(bytes, static_cast<size_t>(model.layout().count) * sizeof(float));
    const loom_safetensor *wte = loom_safetensors_find(&file, "transformer.wte.weight");
    ASSERT_NE(wte, nullptr);
    EXPECT_EQ(wte->rank, 2);
    EXPECT_EQ(wte->shape[0], 257);
    EXPECT_EQ(wte->shape[1], 8);
    const loom_safetensor *bias = loom_safetensors_find(&file, "transformer.h.1.attn.c_attn.bias");
    ASSERT_NE(bias, nullptr);
    EXPECT_EQ(bias->rank, 1);
    EXPECT_EQ(bias->shape[0], 24);
    EXPECT_EQ(loom_safetensors_find(&file, "lm_head.weight"), nullptr);
    loom_safetensors_close(&file);

    ASSERT_TRUE(loom_safetensors_open(&file, (step / "optimizer.safetensors").c_str(), &error)) << error.message;
    EXPECT_EQ(file.n_tensors, 2 * model.layout().n_parameters);
    EXPECT_NE(loom_safetensors_find(&file, "transformer.h.0.mlp.c_fc.weight.exp_avg"), nullptr);
    EXPECT_NE(loom_safetensors_find(&file, "transformer.h.0.mlp.c_fc.weight.exp_avg_sq"), nullptr);
    loom_safetensors_close(&file);

    const std::string mark(reinterpret_cast<const char *>(&padding_mark), sizeof padding_mark);
    for (const char *name : {"model.safetensors", "optimizer.safetensors"})
        EXPECT_EQ(read_file(step / name).find(mark + mark), std::string::npos) << name << " holds padding";
}

TEST_F(CheckpointTest, TheActivationIsKept) {
    const std::pair<loom_gpt_activation, std::string> names[] = {
        {LOOM_GPT_GELU, "gelu_new"}, {LOOM_GPT_RELU, "relu"}, {LOOM_GPT_RELU2, "relu2"}};
    int64_t step = 1;
    for (const auto &[activation, name] : names) {
        loom_gpt_config config{1, 1, 2, 4, 300, activation};
        CheckpointModel activated(device, {config});
        const loom_training_state state = state_of(++step);
        ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &activated.tensors, &state, true, nullptr, &error))
            << error.message;
        EXPECT_NE(read_file(checkpoints / ("step-0000000" + std::to_string(step)) / "config.json")
                      .find("\"activation_function\":\t\"" + name + "\""),
                  std::string::npos);
        ASSERT_TRUE(open(run)) << error.message;
        EXPECT_EQ(info.config.activation, activation);
    }
}

/* GPT-1's files are those of transformers' OpenAIGPTLMHeadModel. */
TEST_F(CheckpointTest, TheArchitectureIsKept) {
    loom_gpt_config config{2, 1, 2, 4, 300, LOOM_GPT_RELU, LOOM_GPT_1};
    CheckpointModel gpt1(device, {config});
    const loom_training_state state = state_of(2);
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &gpt1.tensors, &state, true, nullptr, &error)) << error.message;
    const std::string written = read_file(checkpoints / "step-00000002/config.json");
    for (const char *line : {"\"model_type\":\t\"openai-gpt\"", "[\"OpenAIGPTLMHeadModel\"]", "\"afn\":\t\"relu\""})
        EXPECT_NE(written.find(line), std::string::npos) << line << " is not in " << written;
    loom_safetensors file;
    ASSERT_TRUE(loom_safetensors_open(&file, (checkpoints / "step-00000002/model.safetensors").c_str(), &error));
    for (const char *name : {"transformer.tokens_embed.weight", "transformer.positions_embed.weight",
                             "transformer.h.1.ln_2.bias", "transformer.h.1.mlp.c_proj.weight"})
        EXPECT_NE(loom_safetensors_find(&file, name), nullptr) << name;
    EXPECT_EQ(file.n_tensors, 2 + 2 * 12);
    loom_safetensors_close(&file);
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(info.config.architecture, LOOM_GPT_1);
    EXPECT_EQ(info.config.activation, LOOM_GPT_RELU);
}

TEST_F(CheckpointTest, ConfigurationIsGpt2s) {
    ASSERT_TRUE(save(1));
    const std::string config = read_file(checkpoints / "step-00000001/config.json");
    for (const char *line :
         {"\"model_type\":\t\"gpt2\"", "[\"GPT2LMHeadModel\"]", "\"vocab_size\":\t257", "\"n_positions\":\t16",
          "\"n_embd\":\t8", "\"n_layer\":\t2", "\"n_head\":\t2", "\"activation_function\":\t\"gelu_new\"",
          "\"layer_norm_epsilon\":\t1e-05", "\"resid_pdrop\":\t0.0", "\"tie_word_embeddings\":\ttrue",
          "\"bos_token_id\":\t256", "\"eos_token_id\":\t256"})
        EXPECT_NE(config.find(line), std::string::npos) << line << " is not in " << config;

    const loom_training_state state = state_of(2);
    CheckpointModel large(device, {{1, 1, 2, 4, 50257}}), odd(device, {{1, 1, 2, 4, 300}});
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &large.tensors, &state, false, nullptr, &error)) << error.message;
    EXPECT_NE(read_file(checkpoints / "latest/config.json").find("\"eos_token_id\":\t50256"), std::string::npos);
    ASSERT_TRUE(loom_checkpoint_save(run.c_str(), &odd.tensors, &state, false, nullptr, &error)) << error.message;
    EXPECT_NE(read_file(checkpoints / "latest/config.json").find("\"eos_token_id\":\tnull"), std::string::npos);
}

TEST_F(CheckpointTest, TokenizerMapsEachByteToItself) {
    ASSERT_TRUE(save(1));
    const fs::path path = checkpoints / "latest/tokenizer.json";
    cJSON *json = cJSON_Parse(read_file(path).c_str());
    const cJSON *vocabulary = cJSON_GetObjectItem(cJSON_GetObjectItem(json, "model"), "vocab");
    EXPECT_EQ(cJSON_GetArraySize(vocabulary), 256);
    const std::pair<const char *, int> expected[] = {{"!", 33},  {"A", 65},  {"\"", 34}, {"\\", 92}, {"~", 126},
                                                     {"Ā", 0},   {"Ċ", 10},  {"Ġ", 32},  {"ġ", 127}, {"ł", 160},
                                                     {"¡", 161}, {"Ń", 173}, {"®", 174}, {"ÿ", 255}};
    for (const auto &[character, id] : expected)
        EXPECT_EQ(cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(vocabulary, character)), id) << character;
    cJSON_Delete(json);

    bool bytes = false;
    EXPECT_TRUE(loom_tokenizer_is_bytes(path.c_str(), &bytes, &error));
    EXPECT_TRUE(bytes);
    const std::string whole = read_file(path);
    replace_in_file(path, "\"A\":\t65", "\"A\":\t66");
    EXPECT_TRUE(loom_tokenizer_is_bytes(path.c_str(), &bytes, &error));
    EXPECT_FALSE(bytes);
    write_file(path, whole);
    replace_in_file(path, "\"merges\":\t[]", "\"merges\":\t[\"t h\"]");
    EXPECT_TRUE(loom_tokenizer_is_bytes(path.c_str(), &bytes, &error));
    EXPECT_FALSE(bytes);
    write_file(path, whole.substr(0, whole.size() / 2));
    EXPECT_FALSE(loom_tokenizer_is_bytes(path.c_str(), &bytes, &error));
    EXPECT_TRUE(says({path, "not valid JSON"}));
}

/* ---------------------------------------------------------------------------------------- the checkpoints directory */

TEST_F(CheckpointTest, LatestIsARelativeLinkAndKeepDeletesTheOldest) {
    for (int64_t step = 1; step <= 3; step++) ASSERT_TRUE(save(step)) << error.message;
    EXPECT_EQ(names_in(checkpoints),
              (std::set<std::string>{"latest", "step-00000001", "step-00000002", "step-00000003"}));
    EXPECT_EQ(fs::read_symlink(checkpoints / "latest"), "step-00000003");
    fs::create_directory(checkpoints / "step-7");
    fs::create_directory(checkpoints / "notes");
    ASSERT_TRUE(save(4, 2)) << error.message;
    EXPECT_EQ(names_in(checkpoints),
              (std::set<std::string>{"latest", "notes", "step-00000003", "step-00000004", "step-7"}));
    EXPECT_EQ(fs::read_symlink(checkpoints / "latest"), "step-00000004");
}

TEST_F(CheckpointTest, KeepNeverDeletesWhatWasJustWritten) {
    for (int64_t step = 5; step <= 7; step++) ASSERT_TRUE(save(step)) << error.message;
    ASSERT_TRUE(save(2, 2)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000002", "step-00000007"}));
    EXPECT_EQ(fs::read_symlink(checkpoints / "latest"), "step-00000002");
    ASSERT_TRUE(save(1, 1)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000001"}));
}

TEST_F(CheckpointTest, SavingAStepAgainReplacesIt) {
    ASSERT_TRUE(save(4));
    write_file(checkpoints / "step-00000004/mark", "of the first");
    model.fill(99);
    ASSERT_TRUE(save(4)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000004"}));
    EXPECT_FALSE(fs::exists(checkpoints / "step-00000004/mark"));
    CheckpointModel loaded(device);
    ASSERT_TRUE(open(run) && loom_checkpoint_load(&info, &loaded.tensors, &error)) << error.message;
    EXPECT_EQ(loaded.difference(model), "");
}

TEST_F(CheckpointTest, DirectoriesChangeNamesWithOrWithoutTheFileSystemsHelp) {
    const fs::path a = directory / "a", b = directory / "b", spare = directory / "spare";
    fs::create_directory(a), fs::create_directory(b);
    write_file(a / "first", ""), write_file(b / "second", "");
    ASSERT_TRUE(loom_exchange_by_renames(a.c_str(), b.c_str(), spare.c_str(), &error)) << error.message;
    EXPECT_TRUE(fs::exists(b / "first") && fs::exists(a / "second") && !fs::exists(spare));
    ASSERT_TRUE(loom_exchange_directories(a.c_str(), b.c_str(), spare.c_str(), &error)) << error.message;
    EXPECT_TRUE(fs::exists(a / "first") && fs::exists(b / "second") && !fs::exists(spare));

    const fs::path missing = directory / "missing";
    EXPECT_FALSE(loom_exchange_by_renames(missing.c_str(), b.c_str(), spare.c_str(), &error));
    EXPECT_TRUE(says({missing}));
    EXPECT_TRUE(fs::exists(b / "second") && !fs::exists(spare));
    EXPECT_FALSE(loom_exchange_directories(missing.c_str(), b.c_str(), spare.c_str(), &error));
    EXPECT_TRUE(fs::exists(b / "second") && !fs::exists(spare));
}

/* Killed between two renames, where the file system cannot exchange names. */
TEST_F(CheckpointTest, WhatWasBeingReplacedGetsItsNameBack) {
    ASSERT_TRUE(save(4));
    fs::rename(checkpoints / "step-00000004", checkpoints / ".tmp-replaced-step-00000004");
    fs::create_directory(checkpoints / ".tmp-0123abcd-step-00000004");
    ASSERT_TRUE(loom_checkpoint_prepare(checkpoints.c_str(), &error)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000004"}));
    ASSERT_TRUE(open(run)) << error.message;
    fs::copy(checkpoints / "step-00000004", checkpoints / ".tmp-replaced-step-00000004");
    ASSERT_TRUE(loom_checkpoint_prepare(checkpoints.c_str(), &error)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000004"}));
}

TEST_F(CheckpointTest, WhatACrashLeftIsRemovedByTheNextSave) {
    ASSERT_TRUE(save(1));
    fs::create_directories(checkpoints / ".tmp-step-00000002/deep");
    write_file(checkpoints / ".tmp-step-00000002/deep/half", "written");
    fs::create_directory(checkpoints / ".tmp-old-step-00000000");
    fs::create_symlink("step-00000002", checkpoints / ".tmp-latest");
    ASSERT_TRUE(open(run)) << error.message;
    ASSERT_TRUE(save(2)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000001", "step-00000002"}));
}

TEST_F(CheckpointTest, EveryWayToNameACheckpointOpensIt) {
    ASSERT_TRUE(save(1) && save(2));
    const fs::path newest = checkpoints / "step-00000002";
    for (const fs::path &path : {run, run / "", checkpoints, checkpoints / "latest", checkpoints / "latest/", newest}) {
        ASSERT_TRUE(open(path)) << path << ": " << error.message;
        EXPECT_EQ(newest, info.directory) << path;
        EXPECT_EQ(info.state.step, 2);
    }
    ASSERT_TRUE(open(checkpoints / "step-00000001"));
    EXPECT_EQ(info.state.step, 1);

    fs::create_symlink("run/checkpoints/latest", directory / "best"); /* a link to a link */
    ASSERT_TRUE(open(directory / "best")) << error.message;
    EXPECT_EQ(newest, info.directory);

    fs::remove(checkpoints / "latest");
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(newest, info.directory);
    ASSERT_TRUE(open(checkpoints)) << error.message;
    fs::create_symlink("step-00000009", checkpoints / "latest");
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(newest, info.directory);
    fs::remove(checkpoints / "latest");
    fs::create_symlink(fs::canonical(checkpoints) / "step-00000001", checkpoints / "latest");
    ASSERT_TRUE(open(run)) << error.message;
    EXPECT_EQ(info.state.step, 1);
}

TEST_F(CheckpointTest, NamesWithoutACheckpointAreRefused) {
    EXPECT_FALSE(open(directory / "nothing"));
    EXPECT_TRUE(says({directory / "nothing", "No such file"}));
    EXPECT_FALSE(open(directory));
    EXPECT_TRUE(says({directory, "holds no checkpoint"}));
    write_file(directory / "file", "text");
    EXPECT_FALSE(open(directory / "file"));
    EXPECT_TRUE(says({directory / "file", "is no directory"}));
    EXPECT_FALSE(open(directory / "file/below"));
    EXPECT_TRUE(says({directory / "file/below", "Not a directory"}));
    fs::create_symlink("loop", directory / "loop");
    EXPECT_FALSE(open(directory / "loop"));
    EXPECT_TRUE(says({directory / "loop"}));
    EXPECT_FALSE(open(std::string(5000, 'x')));
    EXPECT_TRUE(says({"xxxx"}));
    fs::create_directories(checkpoints);
    EXPECT_FALSE(open(run));
    EXPECT_TRUE(says({checkpoints, "no checkpoint in it"}));
}

/* A run that trains beside a reader deletes it between its being found and its being read. Moments belong to the state
 * that was found with them. */
TEST_F(CheckpointTest, WhatIsGoneSinceItWasOpenedIsLookedForAnew) {
    CheckpointModel loaded(device);
    loaded.tensors.moments = false;
    ASSERT_TRUE(save(1) && open(run));
    const uint64_t first = info.identity;
    model.fill(2);
    ASSERT_TRUE(save(2, 1));
    ASSERT_TRUE(loom_checkpoint_load(&info, &loaded.tensors, &error)) << error.message;
    EXPECT_EQ(loaded.difference(model), "");
    EXPECT_EQ(info.state.step, 2);
    EXPECT_NE(info.identity, first);

    ASSERT_TRUE(save(3, 1));
    loaded.tensors.moments = true;
    EXPECT_FALSE(loom_checkpoint_load(&info, &loaded.tensors, &error));
    EXPECT_TRUE(says({checkpoints / "step-00000002"}));
    loaded.tensors.moments = false;
    fs::remove_all(checkpoints);
    EXPECT_FALSE(loom_checkpoint_load(&info, &loaded.tensors, &error));
    EXPECT_TRUE(says({run, "no checkpoint"}));
}

TEST_F(CheckpointTest, AnErrorMayBeNull) {
    EXPECT_FALSE(loom_checkpoint_open((directory / "nothing").c_str(), &info, nullptr));
    ASSERT_TRUE(save(1) && save(2));
    write_file(checkpoints / "step-00000002/config.json", "");
    EXPECT_FALSE(loom_checkpoint_open(run.c_str(), &info, nullptr));
}

/* ----------------------------------------------------------------------------------------------------- failed saves */

TEST_F(CheckpointTest, AFullDiskLeavesEverythingAsItWas) {
    ASSERT_TRUE(save(1) && save(2));
    const std::string before = fingerprint(checkpoints);
    std::set<uintmax_t> sizes;
    for (const auto &entry : fs::directory_iterator(checkpoints / "step-00000002")) sizes.insert(entry.file_size());
    model.fill(7);
    for (const uintmax_t size : sizes) { /* each time another file is the first that does not fit */
        bool saved, saved_again;
        {
            const FullDisk full(size - 1);
            saved = save(3, 1);
            saved_again = save(2, 1);
        }
        EXPECT_FALSE(saved) << size;
        EXPECT_FALSE(saved_again) << size;
        EXPECT_TRUE(says({(checkpoints / ".tmp-").string(), "-step-00000002/", "cannot be written", "File too large"}));
        EXPECT_EQ(fingerprint(checkpoints), before) << size;
    }
    {
        const FullDisk nearly(*sizes.rbegin());
        EXPECT_TRUE(save(3)) << error.message;
    }
    EXPECT_TRUE(open(run)) << error.message;
}

/* Or ranks that do not share a disk could take what an earlier save left on theirs for this one's. */
TEST_F(CheckpointTest, NoTwoSavesUseTheSameTemporaryName) {
    std::set<std::string> messages;
    for (int i = 0; i < 3; i++) {
        {
            const FullDisk full(8);
            save(1);
        }
        messages.insert(error.message);
    }
    EXPECT_EQ(messages.size(), 3u) << *messages.begin();
}

/* Runs as another user than root while it lives, because root may read and write everything. */
class OtherUser {
  public:
    OtherUser() : was_root_(geteuid() == 0) {
        if (was_root_) {
            EXPECT_EQ(seteuid(65534), 0);
        }
    }
    ~OtherUser() {
        if (was_root_) {
            EXPECT_EQ(seteuid(0), 0);
        }
    }

  private:
    bool was_root_;
};

TEST_F(CheckpointTest, AnythingInTheWayLeavesEverythingAsItWas) {
    write_file(directory / "file", "text");
    run = directory / "file";
    EXPECT_FALSE(save(1));
    EXPECT_TRUE(says({run}));

    run = directory / "run";
    fs::create_directories(checkpoints);
    write_file(checkpoints / "step-00000001", "a file");
    fs::permissions(checkpoints, fs::perms(0555));
    const std::string before = fingerprint(checkpoints);
    {
        const OtherUser other;
        EXPECT_FALSE(save(1));
    }
    EXPECT_EQ(fingerprint(checkpoints), before);
}

/* What was written whole stays, whatever is with `latest`. */
TEST_F(CheckpointTest, ADirectoryInLatestsPlaceLeavesTheNewCheckpoint) {
    fs::create_directories(checkpoints / "latest/full");
    EXPECT_FALSE(save(1));
    EXPECT_TRUE(says({checkpoints / "latest", "cannot be renamed", "step-00000001 is whole and stays"}));
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000001"}));
    EXPECT_TRUE(open(checkpoints / "step-00000001"));
}

TEST_F(CheckpointTest, AFailingDeviceLeavesEverythingAsItWas) {
    ASSERT_TRUE(save(1));
    const std::string before = fingerprint(checkpoints);
    FakeDevice remote(true);
    CheckpointModel failing(remote);
    const loom_training_state state = state_of(2);
    for (const int successes : {0, 1, 40}) {
        remote.synchronizations_until_failure = successes;
        EXPECT_FALSE(loom_checkpoint_save(run.c_str(), &failing.tensors, &state, true, nullptr, &error));
        EXPECT_TRUE(says({"fell off the bus"}));
        EXPECT_EQ(fingerprint(checkpoints), before);
    }
    ASSERT_TRUE(open(run));
    remote.synchronizations_until_failure = 0;
    EXPECT_FALSE(loom_checkpoint_load(&info, &failing.tensors, &error));
    EXPECT_TRUE(says({"fell off the bus"}));
    EXPECT_EQ(remote.pending(), 0u);
}

TEST_F(CheckpointTest, DevicesOfAnotherPrecisionAreRefused) {
    ASSERT_TRUE(save(1) && open(run));
    device.get()->storage = LOOM_F64;
    EXPECT_FALSE(save(2));
    EXPECT_TRUE(says({"fp64", "fp32"}));
    EXPECT_FALSE(loom_checkpoint_load(&info, &model.tensors, &error));
    EXPECT_TRUE(says({"fp64", "fp32"}));
}

TEST_F(CheckpointTest, PathsWithoutPermissionAreNamed) {
    ASSERT_TRUE(save(1));
    const fs::path weights = checkpoints / "step-00000001/model.safetensors";
    const auto forbid = [&](const fs::path &path, fs::perms perms, const std::function<bool()> &action) {
        const fs::perms before = fs::status(path).permissions();
        fs::permissions(path, perms);
        bool done;
        {
            const OtherUser other;
            done = action();
        }
        fs::permissions(path, before);
        return done;
    };
    EXPECT_FALSE(forbid(weights, fs::perms(0), [&] { return open(run); }));
    EXPECT_TRUE(says({weights, "Permission denied"}));
    EXPECT_FALSE(forbid(run, fs::perms(0), [&] { return open(run); }));
    EXPECT_TRUE(says({run, "Permission denied"}));
    EXPECT_FALSE(forbid(checkpoints, fs::perms(0555), [&] { return save(2); }));
    EXPECT_TRUE(says({checkpoints, "Permission denied"}));
    EXPECT_TRUE(open(run)) << error.message;
    EXPECT_EQ(info.state.step, 1);
}

/* Saving again and again, the same steps among them, until it is killed: there is always a whole one to open. */
TEST_F(CheckpointTest, AKillAtAnyInstantLeavesAWholeCheckpoint) {
    ASSERT_TRUE(save(1));
    for (int kills = 0; kills < 12; kills++) {
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            for (int64_t i = 0;; i++) save(1 + i / 3 % 4, 1);
        }
        usleep(static_cast<useconds_t>(5000 + 9700 * kills));
        ASSERT_EQ(kill(child, SIGKILL), 0);
        ASSERT_EQ(waitpid(child, nullptr, 0), child);
        CheckpointModel loaded(device);
        ASSERT_TRUE(open(run) && loom_checkpoint_load(&info, &loaded.tensors, &error)) << error.message;
        EXPECT_EQ(loaded.difference(model), "");
    }
    ASSERT_TRUE(save(9, 1)) << error.message;
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000009"}));
}

/* In a sticky directory one user cannot replace another's link: the last of all renames fails. */
TEST_F(CheckpointTest, ALatestThatCannotMoveLeavesTheNewCheckpoint) {
    if (geteuid() != 0) GTEST_SKIP() << "needs two users: run it as root";
    ASSERT_TRUE(save(1));
    fs::permissions(checkpoints, fs::perms(01777));
    {
        const OtherUser other;
        EXPECT_FALSE(save(2, 1));
    }
    EXPECT_TRUE(says({checkpoints / "latest", "cannot be renamed", "step-00000002 is whole and stays"}));
    EXPECT_EQ(names_in(checkpoints), (std::set<std::string>{"latest", "step-00000001", "step-00000002"}));
    EXPECT_EQ(fs::read_symlink(checkpoints / "latest"), "step-00000001");
    EXPECT_TRUE(open(checkpoints / "step-00000002")) << error.message;
}

/* A file system without links has a text file for `latest`, and an unpacked archive may have one. */
TEST_F(CheckpointTest, LatestMayBeATextFile) {
    ASSERT_TRUE(save(1) && save(2) && save(3));
    const fs::path latest = checkpoints / "latest";
    for (const char *text : {"step-00000002\n", "step-00000002", "step-00000002\r\n"}) {
        fs::remove(latest);
        write_file(latest, text);
        for (const fs::path &path : {run, checkpoints, latest}) {
            ASSERT_TRUE(open(path)) << error.message;
            EXPECT_EQ(info.state.step, 2) << path;
            EXPECT_EQ(info.directory, (checkpoints / "step-00000002").string());
        }
        EXPECT_EQ(loom_checkpoint_newest(run.c_str()), 2);
    }
    for (const char *text : {"", "step-00000009\n", "../../etc\n", "step-2\n"}) {
        write_file(latest, text);
        ASSERT_TRUE(open(run)) << error.message;
        EXPECT_EQ(info.state.step, 3) << text;
    }
    ASSERT_TRUE(save(4)) << error.message;
    EXPECT_EQ(fs::read_symlink(latest), "step-00000004");
}

TEST_F(CheckpointTest, PreparingRepairsACopiedLatest) {
    const auto prepare = [&] { return loom_checkpoint_prepare(checkpoints.c_str(), &error); };
    const fs::path latest = checkpoints / "latest", second = checkpoints / "step-00000002";
    EXPECT_TRUE(prepare()) << "there is nothing yet";
    ASSERT_TRUE(save(1) && save(2));
    const std::string whole = fingerprint(checkpoints);
    EXPECT_TRUE(prepare());
    EXPECT_EQ(fingerprint(checkpoints), whole);

    const auto copy = [&] { /* as cp -rL does */
                            fs::remove_all(latest);
                            fs::copy(second, latest, fs::copy_options::recursive);
    };
    copy();
    EXPECT_TRUE(prepare()) << error.message;
    EXPECT_EQ(fingerprint(checkpoints), whole);

    copy();
    fs::remove_all(second);
    EXPECT_TRUE(prepare()) << error.message;
    EXPECT_EQ(fingerprint(checkpoints), whole);

    copy();
    model.fill(5);
    fs::remove_all(second);
    fs::create_directory(checkpoints / ".tmp-step-00000007");
    fs::rename(latest, checkpoints / "kept");
    ASSERT_TRUE(save(2));
    fs::remove(latest);
    fs::rename(checkpoints / "kept", latest);
    EXPECT_FALSE(prepare());
    EXPECT_TRUE(says({latest, "directory", "not the same as step-00000002", "elsewhere"}));
    EXPECT_TRUE(open(second) && open(latest)) << "both are left";

    fs::remove_all(latest);
    fs::create_directory(latest);
    write_file(latest / "notes", "text");
    EXPECT_FALSE(prepare());
    EXPECT_TRUE(says({latest, "no checkpoint itself", "elsewhere"}));
    EXPECT_TRUE(fs::exists(latest / "notes"));
}

/* Going back to an older one is offered only with one that is whole. */
TEST_F(CheckpointTest, TheNewestWholeOneBeforeADamagedOneIsNamed) {
    ASSERT_TRUE(save(1) && save(2) && save(3) && save(4));
    for (const char *step : {"step-00000004", "step-00000003"})
        fs::resize_file(checkpoints / step / "model.safetensors", 100);
    EXPECT_FALSE(open(run));
    EXPECT_TRUE(says({"step-00000004/model.safetensors", "damaged", "newest whole checkpoint before it is ",
                      checkpoints / "step-00000002"}));
    EXPECT_EQ(info.older_step, 2);
    for (const char *step : {"step-00000002", "step-00000001"}) fs::remove(checkpoints / step / "config.json");
    EXPECT_FALSE(open(run));
    EXPECT_EQ(std::string(error.message).find("before it"), std::string::npos) << error.message;
    EXPECT_EQ(info.older_step, -1);
}

/* A run that keeps one checkpoint deletes it while it is read, again and again. */
TEST_F(CheckpointTest, ReadersBesideAWriterAlwaysFindOne) {
    ASSERT_TRUE(save(1));
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        for (int64_t step = 2;; step++) save(step, 1);
    }
    for (int i = 0; i < 300; i++) EXPECT_TRUE(open(run)) << error.message;
    ASSERT_EQ(kill(child, SIGKILL), 0);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
}

/* cJSON's memory runs out at the n-th allocation, for many n: an error or a whole result, never a crash or a leak. */
int allocations_left;
void *scarce_malloc(size_t bytes) {
    return allocations_left-- > 0 ? malloc(bytes) : nullptr;
}

TEST_F(CheckpointTest, RunningOutOfMemoryIsAnError) {
    ASSERT_TRUE(save(1));
    cJSON_Hooks scarce = {scarce_malloc, free};
    bool saved = false, opened = false;
    int refused = 0;
    for (int n = 0; n < 100000 && !(saved && opened); n += 1 + n / 4) {
        cJSON_InitHooks(&scarce);
        allocations_left = n;
        saved = save(2);
        const bool save_explained = saved || says({"memory"});
        allocations_left = n;
        opened = open(checkpoints / "step-00000001");
        cJSON_InitHooks(nullptr);
        refused += !saved;
        EXPECT_TRUE(save_explained) << n;
        EXPECT_TRUE(opened || says({"step-00000001"})) << n;
        EXPECT_EQ(fs::exists(checkpoints / "step-00000002"), saved) << n;
    }
    EXPECT_TRUE(saved && opened);
    EXPECT_GT(refused, 10);
}

} // namespace
