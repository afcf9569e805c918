/* Training options: the one table of them, values from text, config files, derived defaults and conflicts; and the
 * table type itself (base/flag.h), which the program's other flags use too. */
#include "gptloom/train.h"

#include "base/file.h"
#include "base/flag.h"
#include "base/random.h"

extern "C" {
#include "engine/options.h"
}

#include <gtest/gtest.h>

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <unistd.h>

namespace {

class Options : public ::testing::Test {
  protected:
    loom_train_options options = loom_train_options_defaults();
    loom_error error = {""};
    std::string folder;

    void SetUp() override {
        std::string name = std::filesystem::temp_directory_path() / "gptloom-options-XXXXXX";
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        folder = name;
    }

    void TearDown() override {
        loom_train_options_free(&options);
        EXPECT_TRUE(loom_remove_tree(folder.c_str(), nullptr));
    }

    bool set(const char *key, const char *value) {
        return loom_train_options_set(&options, key, value, &error);
    }

    /* Refused, with these words in the message, and with no newline in it. */
    void refused(const char *key, const std::string &value, const std::vector<std::string> &words) {
        EXPECT_FALSE(loom_train_options_set(&options, key, value.c_str(), &error)) << key << " = " << value;
        expect_words(words);
    }

    void expect_words(const std::vector<std::string> &words) {
        for (const std::string &word : words)
            EXPECT_NE(std::string(error.message).find(word), std::string::npos)
                << "'" << error.message << "' lacks '" << word << "'";
        EXPECT_EQ(std::strchr(error.message, '\n'), nullptr);
        error.message[0] = 0;
    }

    std::string write(const char *name, const std::string &text) {
        const std::string path = folder + "/" + name;
        std::ofstream(path, std::ios::binary) << text;
        return path;
    }

    bool read(const std::string &text) {
        return loom_train_options_read(&options, write("run.ini", text).c_str(), &error);
    }

    bool resolve() {
        return loom_train_options_resolve(&options, &error);
    }

    void set_all(const std::vector<std::pair<const char *, const char *>> &pairs) {
        for (const auto &pair : pairs) ASSERT_TRUE(set(pair.first, pair.second)) << error.message;
    }
};

/* ---------------------------------------------------------------------------------------------------- single values */

TEST_F(Options, Defaults) {
    EXPECT_EQ(options.n_data, 0);
    EXPECT_EQ(options.out, nullptr);
    EXPECT_EQ(options.batch, 8);
    EXPECT_EQ(options.micro_batch, 0);
    EXPECT_DOUBLE_EQ(options.lr, 6e-4);
    EXPECT_DOUBLE_EQ(options.beta1, 0.9);
    EXPECT_DOUBLE_EQ(options.beta2, 0.95);
    EXPECT_DOUBLE_EQ(options.weight_decay, 0.1);
    EXPECT_DOUBLE_EQ(options.clip, 1);
    EXPECT_EQ(options.val_fraction, -1); /* a tenth, if the data are long enough */
    EXPECT_EQ(options.schedule, LOOM_SCHEDULE_COSINE);
    EXPECT_EQ(options.keep, 3);
    EXPECT_STREQ(options.device, "auto");
    EXPECT_TRUE(options.deterministic);
    EXPECT_FALSE(options.resume);
    EXPECT_EQ(options.dtype, LOOM_F32);
    EXPECT_EQ(options.master_weights, LOOM_ON);
    EXPECT_EQ(options.optimizer_dtype, LOOM_F32);
    EXPECT_EQ(options.grad_dtype, LOOM_F32);
    EXPECT_FALSE(options.tf32);
    EXPECT_EQ(options.attention, LOOM_ATTENTION_OWN);
    EXPECT_EQ(options.cuda_graph, LOOM_ON);
    EXPECT_FALSE(options.retune);
}

TEST_F(Options, SetsEveryKindOfValue) {
    set_all({{"n-layer", "5"},
             {"n_head", "3"}, /* underscores are dashes */
             {"lr", "1e-3"},
             {"schedule", "wsd"},
             {"deterministic", "no"},
             {"memory", "1.5GiB"},
             {"out", "some where"},
             {"seed", "9223372036854775807"},
             {"data", "a"},
             {"data", "b"}});
    EXPECT_EQ(options.n_layer, 5);
    EXPECT_EQ(options.n_head, 3);
    EXPECT_DOUBLE_EQ(options.lr, 1e-3);
    EXPECT_EQ(options.schedule, LOOM_SCHEDULE_WSD);
    EXPECT_FALSE(options.deterministic);
    EXPECT_EQ(options.memory, 1.5 * 1024 * 1024 * 1024);
    EXPECT_STREQ(options.out, "some where");
    EXPECT_EQ(options.seed, uint64_t{9223372036854775807u});
    ASSERT_EQ(options.n_data, 2);
    EXPECT_STREQ(options.data[0], "a");
    EXPECT_STREQ(options.data[1], "b");
}

TEST_F(Options, EveryScheduleIsNamed) {
    const struct {
        const char *name;
        loom_schedule_kind kind;
    } rows[] = {{"cosine", LOOM_SCHEDULE_COSINE},
                {"linear", LOOM_SCHEDULE_LINEAR},
                {"wsd", LOOM_SCHEDULE_WSD},
                {"constant", LOOM_SCHEDULE_CONSTANT}};
    for (const auto &row : rows) {
        ASSERT_TRUE(set("schedule", row.name));
        EXPECT_EQ(options.schedule, row.kind) << row.name;
    }
}

TEST_F(Options, Sizes) {
    const struct {
        const char *text;
        double bytes;
    } rows[] = {{"2097152", 2097152}, {"3MiB", 3 << 20}, {"800M", 800.0 * (1 << 20)},
                {"2048KiB", 2 << 20}, {"1TiB", 0x1p40},  {"2.5G", 0x5p29},
                {"5000000B", 5e6}};
    for (const auto &row : rows) {
        ASSERT_TRUE(set("memory", row.text)) << error.message;
        EXPECT_EQ(options.memory, row.bytes) << row.text;
    }
    for (const char *text : {"2GB", "many", "2 GiB", "1KiB", "-3MiB", "nan", "1e300GiB", "GiB", ""})
        refused("memory", text, {"--memory: "});
}

TEST_F(Options, NumbersAreParsedStrictly) {
    const double before = options.lr;
    for (const char *text : {"abc", "1e-3x", " 1e-3", "1e-3 ", "+1", "nan", "-nan", "inf", "-inf", "0x1p-3", "1,5",
                             "--1", "1 2", "e5", ".", "-"})
        refused("lr", text, {"--lr: '" + std::string(text) + "' is not a number"});
    for (const char *text : {"1.5", "1e3", "ten", "0x10", " 7", "7 ", "+7", "7,000", "-", "--7"})
        refused("n-layer", text, {"--n-layer: '" + std::string(text) + "' is not a whole number"});
    EXPECT_EQ(options.lr, before); /* an error changes nothing */
    EXPECT_EQ(options.n_layer, 0);
}

TEST_F(Options, NumbersHaveRanges) {
    refused("lr", "1e9", {"--lr: 1e9 is above the largest allowed, 100"});
    refused("lr", "-1e-3", {"--lr: -1e-3 is below 0"});
    refused("lr", "1e999", {"--lr: 1e999 is above the largest allowed"});
    refused("n-layer", "-3", {"--n-layer: -3 is below 1"});
    refused("n-layer", "0", {"--n-layer: 0 is below 1"});
    refused("n-layer", "1001", {"above the largest allowed, 1000"});
    refused("n-embd", "99999999999999999999999", {"--n-embd: ", "above the largest allowed, 131072"});
    refused("n-embd", "-99999999999999999999999", {"--n-embd: ", "is below 1"});
    refused("block-size", "1048577", {"1048576"});
    refused("vocab-size", "4194305", {"4194304"});
    refused("beta2", "1", {"--beta2: 1 is above"});
    refused("eps", "0", {"--eps: 0 is below"});
    refused("val-fraction", "1", {"--val-fraction: 1 is above"});
    refused("seed", "-1", {"--seed: -1 is below 0"});
    refused("seed", "18446744073709551616", {"--seed: "});
    refused("threads", "-2", {"--threads: -2 is below 0"});
    refused("steps", "0", {"--steps: 0 is below 1"});
    refused("epochs", "0", {"--epochs: 0 is below"});
}

TEST_F(Options, ChoicesAndWordsSuggest) {
    refused("schedule", "cosin",
            {"--schedule: 'cosin' is none of cosine, linear, wsd, constant", "did you mean 'cosine'?"});
    refused("device", "cpuu", {"--device: 'cpuu'", "did you mean 'cpu'?"});
    refused("dtype", "bf61", {"--dtype: 'bf61' is none of fp32, bf16, fp16", "did you mean 'bf16'?"});
    refused("master-weights", "maybe", {"--master-weights: 'maybe' is none of off, on"});
    refused("optimizer-dtype", "fp16", {"--optimizer-dtype: 'fp16' is none of fp32, bf16"});
    refused("grad-dtype", "fp64", {"--grad-dtype: 'fp64' is none of fp32, bf16"});
    refused("attention", "cudn", {"--attention: 'cudn'", "did you mean 'cudnn'?"});
    refused("dtyp", "bf16", {"did you mean 'dtype'?"});
    refused("deterministic", "maybe", {"--deterministic: 'maybe' is neither true nor false"});
    refused("out", "", {"--out: is empty"});
    refused("n-layers", "3", {"--n-layers: there is no such option", "did you mean 'n-layer'?"});
    refused("val_token", "3", {"did you mean 'val-tokens'?"});
    refused("qwertyuiop", "3", {"--qwertyuiop: ", "gptloom train --help"});
}

TEST_F(Options, ListsHaveNoEnd) {
    for (int i = 0; i < 1000; i++) ASSERT_TRUE(set("data", ("x" + std::to_string(i)).c_str()));
    ASSERT_EQ(options.n_data, 1000);
    for (int i = 0; i < 1000; i++) EXPECT_EQ("x" + std::to_string(i), options.data[i]);
    loom_train_options back = loom_train_options_defaults();
    const std::string path = folder + "/run.ini";
    ASSERT_TRUE(loom_train_options_write(&options, path.c_str(), &error)) << error.message;
    ASSERT_TRUE(loom_train_options_read(&back, path.c_str(), &error)) << error.message;
    EXPECT_EQ(back.n_data, 1000);
    EXPECT_STREQ(back.data[999], "x999");
    loom_train_options_free(&back);
}

TEST_F(Options, LongValuesDoNotFillTheMessage) {
    refused("lr", std::string(5000, 'x'), {"is not a number"});
    refused(std::string(5000, 'y').c_str(), "1", {"there is no such option"});
}

/* Text typed at random: what begins as a number does, and what does not. */
std::string typed_at_random(uint64_t i) {
    static const char *const pieces[] = {
        "0",    "1", "7",   "42",  "999", "-", "+",    ".",    "e",  "E",     "e9",
        "e-30", "x", "0x1", "inf", "nan", " ", "\t",   ",",    "_",  "K",     "MiB",
        "T",    "%", "--",  "/",   "=",   "'", "\x1b", "\xff", "\n", "1e308", "18446744073709551616"};
    const loom_random4 random = loom_random(20, LOOM_RANDOM_TEST, 0, i);
    std::string text;
    for (uint32_t word = random.word[0] >> 2, n = random.word[0] % 4;; word = word * 2654435761u + random.word[1]) {
        text += pieces[word / 7 % (sizeof pieces / sizeof *pieces)];
        if (n-- == 0) return text;
    }
}

TEST_F(Options, TextTypedAtRandomIsANumberInRangeOrOneLine) {
    int n, taken = 0, refused_ones = 0;
    const loom_flag *table = loom_train_option_table(&n);
    for (int f = 0; f < n; f++) {
        const loom_flag &flag = table[f];
        if (flag.type != LOOM_FLAG_INT && flag.type != LOOM_FLAG_DOUBLE && flag.type != LOOM_FLAG_SIZE) continue;
        for (uint64_t i = 0; i < 300; i++) {
            const std::string text = typed_at_random(300 * (uint64_t)f + i);
            if (!set(flag.name, text.c_str())) {
                const std::string said = error.message;
                EXPECT_EQ(said.rfind(std::string("--") + flag.name + ": ", 0), 0u) << said;
                EXPECT_EQ(said.find_first_of("\n\r"), std::string::npos) << said;
                EXPECT_GT(said.size(), std::strlen(flag.name) + 8);
                refused_ones++;
                continue;
            }
            char shown[64], again[64];
            ASSERT_TRUE(loom_flag_text(&flag, &options, 0, shown, sizeof shown)) << text;
            EXPECT_TRUE(loom_flag_check(&flag, &options, "--", &error)) << flag.name << " " << text;
            ASSERT_TRUE(set(flag.name, shown)) << flag.name << " '" << text << "' is " << shown;
            ASSERT_TRUE(loom_flag_text(&flag, &options, 0, again, sizeof again));
            EXPECT_STREQ(shown, again);
            taken++;
        }
    }
    EXPECT_GT(taken, 300);
    EXPECT_GT(refused_ones, 5000);
}

/* ------------------------------------------------------------------------------------------------------------ files */

TEST_F(Options, ReadsAFile) {
    ASSERT_TRUE(read("; a comment\n# another\n\n[data]\ndata = one.txt\ndata = two.txt\n[optimizer]\nlr=1e-3\n"
                     "min_lr : 1e-4 ; the end\n  \nmodel = gpt2\r\ndeterministic = off"))
        << error.message;
    ASSERT_EQ(options.n_data, 2);
    EXPECT_STREQ(options.data[1], "two.txt");
    EXPECT_DOUBLE_EQ(options.lr, 1e-3);
    EXPECT_DOUBLE_EQ(options.min_lr, 1e-4);
    EXPECT_STREQ(options.model, "gpt2");
    EXPECT_FALSE(options.deterministic);
}

TEST_F(Options, FilesOfOtherEditorsAndOfOlderRunsAreRead) {
    ASSERT_TRUE(read("\xef\xbb\xbf; a run of gptloom 0.1.0\r\n\r\n;; \r\n data\t=\tmy file.txt  ; here\r\nlr=1e-3\r\n"
                     "out = a;b ;c\nmin-lr = 1e-4\nval-data = x=y:z"))
        << error.message;
    EXPECT_STREQ(options.data[0], "my file.txt");
    EXPECT_STREQ(options.out, "a;b");
    EXPECT_STREQ(options.val_data[0], "x=y:z");
    EXPECT_DOUBLE_EQ(options.min_lr, 1e-4);
}

TEST_F(Options, FilesHaveAVersionOfTheirFormat) {
    char *text = nullptr;
    size_t size = 0;
    ASSERT_TRUE(loom_train_options_text(&options, &text, &size, &error)) << error.message;
    const std::string written(text, size);
    free(text);
    EXPECT_NE(written.find("\nformat-version = 1\n"), std::string::npos) << written.substr(0, 200);
    EXPECT_TRUE(read(written)) << error.message;
    EXPECT_TRUE(read("format-version = 1\nlr = 1e-3\n")) << error.message;
    EXPECT_TRUE(read("format_version = 1\nlr = 1e-3\n")) << error.message;
    for (const char *line : {"format-version = 2", "format-version = 99999999999999999999"}) {
        EXPECT_FALSE(read(std::string("lr = 1e-3\n") + line));
        EXPECT_NE(std::string(error.message).find(":2: was written by a newer gptloom"), std::string::npos)
            << error.message;
    }
    for (const char *line : {"format-version = 0", "format-version = x", "format-version =", "format-version = 1.5"})
        EXPECT_FALSE(read(line)) << line;
}

/* What only followed from other options is a record, and no option. */
TEST_F(Options, WhatFollowsIsKeptApart) {
    set_all({{"data", "a"}, {"lr", "1e-2"}, {"steps", "100"}});
    loom_train_options given = options;
    ASSERT_TRUE(resolve()) << error.message;
    const std::string path = folder + "/config.ini";
    ASSERT_TRUE(loom_train_options_write_run(&given, &options, nullptr, path.c_str(), &error)) << error.message;

    loom_train_options back = loom_train_options_defaults();
    ASSERT_TRUE(loom_train_options_read(&back, path.c_str(), &error)) << error.message;
    EXPECT_EQ(back.steps, 100);
    EXPECT_EQ(back.warmup, -1);
    EXPECT_EQ(back.min_lr, -1);
    EXPECT_EQ(back.n_layer, options.n_layer); /* settled when the run began */
    EXPECT_EQ(back.val_fraction, 0.1);
    loom_train_options_free(&back);

    back = loom_train_options_defaults();
    ASSERT_TRUE(loom_train_options_read_all(&back, path.c_str(), &error)) << error.message;
    EXPECT_EQ(back.warmup, 5);
    EXPECT_EQ(back.min_lr, 1e-3);
    loom_train_options_free(&back);
}

TEST_F(Options, PathsAreThoseOfTheDirectoryInWhichARunBegan) {
    char here[PATH_MAX];
    ASSERT_NE(getcwd(here, sizeof here), nullptr);
    write("there.txt", "text");
    write("part-1.bin", "");
    for (const char *word : {"there.txt", "part-*.bin", "/somewhere/else"}) ASSERT_TRUE(set("data", word));
    ASSERT_TRUE(set("val-data", "gone.txt"));
    const std::string path = folder + "/config.ini";
    ASSERT_EQ(chdir(folder.c_str()), 0);
    const bool written = loom_train_options_write_run(&options, &options, nullptr, path.c_str(), &error);
    for (int other = 0; other < 2; other++) {
        ASSERT_EQ(chdir(other ? "/" : folder.c_str()), 0);
        loom_train_options back = loom_train_options_defaults();
        ASSERT_TRUE(written && loom_train_options_read_run(&back, path.c_str(), &error)) << error.message;
        ASSERT_EQ(back.n_data, 3);
        const std::string base = other ? folder + "/" : "";
        EXPECT_EQ(back.data[0], base + "there.txt");
        EXPECT_EQ(back.data[1], base + "part-*.bin");
        EXPECT_STREQ(back.data[2], "/somewhere/else");
        EXPECT_STREQ(loom_train_options_missing_data(&back), "/somewhere/else");
        EXPECT_EQ(back.val_data[0], folder + "/gone.txt");
        loom_train_options_free(&back);
    }
    EXPECT_EQ(chdir(here), 0);
}

TEST_F(Options, AnEmptyFileSaysNothing) {
    ASSERT_TRUE(read(""));
    EXPECT_EQ(options.batch, 8);
}

TEST_F(Options, DamagedFilesAreRefusedWithTheirLine) {
    const struct {
        std::string text;
        std::vector<std::string> words;
    } rows[] = {
        {"lr = 1e-3\nwhat is this\n", {"run.ini:2: is not of the form 'key = value'"}},
        {"[open\nlr = 1\n", {"run.ini:1: "}},
        {"\n\nlr = abc\n", {"run.ini:3: lr: 'abc' is not a number"}},
        {"lr = abc\nbroken\n", {"run.ini:1: lr: 'abc'"}},
        {"broken\nlr = abc\n", {"run.ini:1: is not of the form"}},
        {"learning = 3\n", {"run.ini:1: learning: there is no such option"}},
        {"n_layr = 3\n", {"did you mean 'n-layer'?"}},
        {"lr = 1\nlr = 2\n", {"run.ini:2: lr: is given twice"}},
        {"out =\n", {"run.ini:1: out: is empty"}},
        {"seed = 1\nout : \n", {"run.ini:2: out: is empty"}},
        {"= 3\n", {"run.ini:1: is not of the form"}},
        {std::string(5000, 'x') + "\n", {"run.ini:1: is not of the form"}},
        {std::string(5000, 'x') + " = 1\n", {"run.ini:1: xxx", "there is no such option"}},
        {std::string("lr = 1\0\nseed = 2\n", 17), {"run.ini: is no config file"}},
        {std::string("\x7f\x45\x4c\x46\x02\x01\x01\0\0\0", 10), {"run.ini: is no config file"}},
    };
    for (const auto &row : rows) {
        EXPECT_FALSE(read(row.text)) << row.text;
        expect_words(row.words);
    }
}

TEST_F(Options, FilesThatCannotBeRead) {
    const std::string missing = folder + "/none.ini";
    EXPECT_FALSE(loom_train_options_read(&options, missing.c_str(), &error));
    expect_words({"none.ini"});
    EXPECT_FALSE(loom_train_options_read(&options, folder.c_str(), &error));
    expect_words({folder});
    const std::string huge = write("huge.ini", std::string((16 << 20) + 1, '\n'));
    EXPECT_FALSE(loom_train_options_read(&options, huge.c_str(), &error));
    expect_words({"huge.ini: is no config file"});
}

TEST_F(Options, WhatIsWrittenReadsBackTheSame) {
    set_all({{"data", "a b.txt"},
             {"data", "c#d.txt"},
             {"val-data", "v=1.txt"},
             {"out", "runs/x"},
             {"model", "gpt2"},
             {"lr", "0.00012345678901234567"},
             {"min-lr", "1e-17"},
             {"beta2", "0.999"},
             {"eps", "3e-9"},
             {"schedule", "linear"},
             {"seed", "9007199254740993"},
             {"epochs", "0.1"},
             {"memory", "3GiB"},
             {"deterministic", "false"},
             {"dtype", "bf16"},
             {"master-weights", "off"},
             {"optimizer-dtype", "bf16"},
             {"grad-dtype", "bf16"},
             {"tf32", "true"},
             {"attention", "cudnn"},
             {"cuda-graph", "off"},
             {"warmup", "0"},
             {"stop-after", "7"}});
    ASSERT_TRUE(resolve()) << error.message;
    const std::string path = folder + "/config.ini";
    ASSERT_TRUE(loom_train_options_write(&options, path.c_str(), &error)) << error.message;

    loom_train_options back = loom_train_options_defaults();
    ASSERT_TRUE(loom_train_options_read(&back, path.c_str(), &error)) << error.message;
    EXPECT_EQ(back.stop_after, 0); /* of one session only */
    ASSERT_TRUE(loom_train_options_resolve(&back, &error)) << error.message;
    ASSERT_EQ(back.n_data, 2);
    EXPECT_STREQ(back.data[0], "a b.txt");
    EXPECT_STREQ(back.data[1], "c#d.txt");
    ASSERT_EQ(back.n_val_data, 1);
    EXPECT_STREQ(back.val_data[0], "v=1.txt");
    EXPECT_STREQ(back.out, "runs/x");
    EXPECT_EQ(back.n_layer, 12);
    EXPECT_EQ(back.lr, options.lr);
    EXPECT_EQ(back.min_lr, options.min_lr);
    EXPECT_EQ(back.beta2, options.beta2);
    EXPECT_EQ(back.eps, options.eps);
    EXPECT_EQ(back.schedule, LOOM_SCHEDULE_LINEAR);
    EXPECT_EQ(back.seed, uint64_t{9007199254740993u});
    EXPECT_EQ(back.epochs, 0.1);
    EXPECT_EQ(back.memory, options.memory);
    EXPECT_FALSE(back.deterministic);
    EXPECT_EQ(back.dtype, LOOM_BF16);
    EXPECT_EQ(back.master_weights, LOOM_OFF);
    EXPECT_EQ(back.optimizer_dtype, LOOM_BF16);
    EXPECT_EQ(back.grad_dtype, LOOM_BF16);
    EXPECT_TRUE(back.tf32);
    EXPECT_EQ(back.attention, LOOM_ATTENTION_CUDNN);
    EXPECT_EQ(back.cuda_graph, LOOM_OFF);
    EXPECT_EQ(back.warmup, 0);
    EXPECT_EQ(back.val_fraction, 0); /* --val-data was given */

    /* Written once more, it is the same file: nothing is lost or rounded on the way. */
    const std::string again = folder + "/again.ini";
    ASSERT_TRUE(loom_train_options_write(&back, again.c_str(), &error)) << error.message;
    std::stringstream first, second;
    first << std::ifstream(path).rdbuf();
    second << std::ifstream(again).rdbuf();
    EXPECT_EQ(first.str(), second.str());
    EXPECT_NE(first.str().find("gptloom"), std::string::npos);
    loom_train_options_free(&back);
}

TEST_F(Options, ASecondFileWinsAndItsListsReplace) {
    ASSERT_TRUE(read("data = a\ndata = b\nlr = 1\nbatch = 4\nmodel = gpt2\nn-layer = 3\nsteps = 10\n"));
    ASSERT_TRUE(read("data = c\nlr = 2\nmodel = nano\nepochs = 2\n"));
    ASSERT_EQ(options.n_data, 1);
    EXPECT_STREQ(options.data[0], "c");
    EXPECT_EQ(options.lr, 2);
    EXPECT_EQ(options.batch, 4);
    EXPECT_EQ(options.n_layer, 0); /* was a change to the other model */
    EXPECT_EQ(options.steps, 0);   /* epochs stand in its place */
    ASSERT_TRUE(resolve()) << error.message;
}

TEST_F(Options, StringsThatAFileCannotHoldAreRefusedBeforeTheRun) {
    for (const std::string &path : {std::string("a ;b"), std::string("a\nb"), std::string(" a"), std::string("a "),
                                    std::string(";a"), std::string("a\x1b[2J"), std::string(4097, 'x')}) {
        loom_train_options_free(&options);
        options = loom_train_options_defaults();
        ASSERT_TRUE(set("data", path.c_str()));
        EXPECT_FALSE(resolve()) << path;
        expect_words({"--data: "});
        EXPECT_FALSE(loom_train_options_write(&options, (folder + "/config.ini").c_str(), &error));
        EXPECT_FALSE(loom_path_exists((folder + "/config.ini").c_str()));
    }
}

TEST_F(Options, TheLongestStringIsKept) {
    const std::string longest(4096, 'x');
    set_all({{"data", longest.c_str()}, {"val-data", longest.c_str()}});
    ASSERT_TRUE(resolve()) << error.message;
    const std::string path = folder + "/config.ini";
    ASSERT_TRUE(loom_train_options_write(&options, path.c_str(), &error));
    loom_train_options_free(&options);
    options = loom_train_options_defaults();
    ASSERT_TRUE(loom_train_options_read(&options, path.c_str(), &error)) << error.message;
    ASSERT_EQ(options.n_val_data, 1);
    EXPECT_EQ(options.val_data[0], longest);
}

/* Keys of earlier versions. */
TEST_F(Options, FilesMayHaveTheEarlierNamesOfOptions) {
    ASSERT_TRUE(read("choices = a/choices.txt\nfresh-choices = true\n")) << error.message;
    EXPECT_STREQ(options.tuning, "a/choices.txt");
    EXPECT_TRUE(options.retune);
    ASSERT_TRUE(read("tuning = b\nfresh_choices = no\n")) << error.message;
    EXPECT_STREQ(options.tuning, "b");
    EXPECT_FALSE(options.retune);
    EXPECT_FALSE(read("choices = a\ntuning = b\n"));
    expect_words({"run.ini:2: tuning: is given twice"});
    EXPECT_FALSE(read("fresh-choices = perhaps\n"));
    expect_words({"run.ini:1: retune: 'perhaps' is neither true nor false"});
    refused("choices", "a", {"--choices: there is no such option", "here it is 'tuning'"});
    refused("fresh-choices", "true", {"--fresh-choices: ", "here it is 'retune'"});
}

TEST_F(Options, AFullOrMissingPlaceIsReported) {
    set_all({{"data", "a"}});
    EXPECT_FALSE(loom_train_options_write(&options, (folder + "/none/config.ini").c_str(), &error));
    expect_words({"none/config.ini"});
}

/* -------------------------------------------------------------------------------------------------------- resolving */

TEST_F(Options, ANamedModelGivesTheShape) {
    set_all({{"data", "a"}, {"model", "gpt2"}, {"n-layer", "3"}, {"steps", "1000"}});
    ASSERT_TRUE(resolve()) << error.message;
    EXPECT_EQ(options.n_layer, 3); /* said beside the name */
    EXPECT_EQ(options.n_head, 12);
    EXPECT_EQ(options.n_embd, 768);
    EXPECT_EQ(options.block_size, 1024);
    EXPECT_EQ(options.seq_len, 1024);
    EXPECT_EQ(options.vocab_size, 0); /* the data's */
    EXPECT_DOUBLE_EQ(options.min_lr, 6e-5);
    EXPECT_EQ(options.warmup, 50);
}

TEST_F(Options, LongContextsTrainOn1024Tokens) {
    set_all({{"data", "a"}, {"model", "gpt3-125m"}});
    ASSERT_TRUE(resolve()) << error.message;
    EXPECT_EQ(options.block_size, 2048);
    EXPECT_EQ(options.seq_len, 1024);
}

TEST_F(Options, AShapeOfOnesOwn) {
    set_all({{"data", "a"}, {"n-layer", "2"}, {"n-head", "2"}, {"n-embd", "32"}, {"seq-len", "48"}});
    ASSERT_TRUE(resolve()) << error.message;
    EXPECT_EQ(options.block_size, 48);
    EXPECT_EQ(options.model, nullptr);
    EXPECT_EQ(options.epochs, 1);
    EXPECT_EQ(options.warmup, -1); /* until the epoch has become steps */
}

TEST_F(Options, NoShapeAtAllIsASmallOne) {
    set_all({{"data", "a"}});
    ASSERT_TRUE(resolve()) << error.message;
    loom_gpt_named mini;
    ASSERT_TRUE(loom_gpt_config_by_name("mini", &mini, &error));
    EXPECT_EQ(options.n_layer, mini.config.n_layer);
    EXPECT_EQ(options.n_embd, mini.config.n_embd);
}

TEST_F(Options, ResolvingTwiceChangesNothing) {
    set_all({{"data", "a"}, {"steps", "100"}, {"val-data", "b"}});
    ASSERT_TRUE(resolve());
    const loom_train_options once = options;
    ASSERT_TRUE(resolve()) << error.message;
    EXPECT_EQ(std::memcmp(&once, &options, sizeof once), 0);
}

TEST_F(Options, WarmupGrowsWithTheSteps) {
    EXPECT_EQ(loom_train_default_warmup(10), 0);
    EXPECT_EQ(loom_train_default_warmup(2000), 100);
    EXPECT_EQ(loom_train_default_warmup(600000), 2000);
}

TEST_F(Options, WhatDoesNotGoTogetherIsRefused) {
    const struct {
        std::vector<std::pair<const char *, const char *>> pairs;
        std::vector<std::string> words;
    } rows[] = {
        {{}, {"--data: is missing"}},
        {{{"data", "a"}, {"steps", "5"}, {"epochs", "1"}}, {"--epochs", "--steps"}},
        {{{"data", "a"}, {"resume", "true"}}, {"--resume", "--out"}},
        {{{"data", "a"}, {"out", "x"}, {"resume", "true"}, {"init", "y"}}, {"--init", "--resume"}},
        {{{"data", "a"}, {"n-layer", "2"}, {"n-embd", "8"}}, {"--n-head: is missing"}},
        {{{"data", "a"}, {"model", "gpt22"}}, {"gpt22", "gpt2"}},
        {{{"data", "a"}, {"model", "mini"}, {"n-head", "5"}}, {"--n-embd", "--n-head 5"}},
        {{{"data", "a"}, {"model", "mini"}, {"seq-len", "65"}}, {"--seq-len: 65", "--block-size, 64"}},
        {{{"data", "a"}, {"batch", "8"}, {"micro-batch", "3"}}, {"--micro-batch: 3 does not divide --batch, 8"}},
        {{{"data", "a"}, {"batch", "4"}, {"micro-batch", "8"}}, {"--micro-batch: 8 does not divide --batch, 4"}},
        {{{"data", "a"}, {"lr", "1e-3"}, {"min-lr", "2e-3"}}, {"--min-lr: 0.002 is above --lr, 0.001"}},
        {{{"data", "a"}, {"dtype", "fp16"}, {"master-weights", "off"}}, {"--master-weights: off", "bf16", "fp16"}},
        {{{"data", "a"}, {"master-weights", "off"}}, {"--master-weights: off", "bf16", "fp32"}},
        {{{"data", "a"}, {"grad-dtype", "bf16"}}, {"--grad-dtype: bf16", "--dtype bf16", "fp32"}},
        {{{"data", "a"}, {"dtype", "fp16"}, {"grad-dtype", "bf16"}}, {"--grad-dtype: bf16", "--dtype bf16", "fp16"}},
        {{{"data", "a"}, {"retune", "true"}}, {"--retune", "--resume"}},
    };
    for (const auto &row : rows) {
        loom_train_options_free(&options);
        options = loom_train_options_defaults();
        set_all(row.pairs);
        EXPECT_FALSE(resolve());
        expect_words(row.words);
    }
}

TEST_F(Options, FieldsSetByHandAreCheckedToo) {
    set_all({{"data", "a"}});
    options.batch = -5;
    EXPECT_FALSE(resolve());
    expect_words({"--batch: -5 is below 1"});
    options.batch = 8;
    options.lr = std::nan("");
    EXPECT_FALSE(resolve());
    expect_words({"--lr: "});
    options.lr = 1e-3;
    options.beta1 = 2;
    EXPECT_FALSE(resolve());
    expect_words({"--beta1: 2 is above"});
}

/* ------------------------------------------------------------------------------------------------------ flag tables */

struct Row {
    int64_t whole;
    double number;
    bool yes;
    char *word;
    char **words;
    int n_words;
};

const loom_flag rows[] = {
    {"whole",
     0,
     LOOM_FLAG_INT,
     offsetof(Row, whole),
     0,
     0,
     nullptr,
     "7",
     0,
     nullptr,
     "N",
     "All",
     "a whole number",
     0,
     false,
     {"number"}},
    {"number",
     0,
     LOOM_FLAG_DOUBLE,
     offsetof(Row, number),
     0,
     0,
     nullptr,
     nullptr,
     -1,
     "seven",
     "X",
     "All",
     "a number",
     0,
     false,
     {}},
    {"yes",
     0,
     LOOM_FLAG_BOOL,
     offsetof(Row, yes),
     0,
     0,
     nullptr,
     nullptr,
     0,
     nullptr,
     nullptr,
     "All",
     "a switch",
     0,
     false,
     {}},
    {"word",
     0,
     LOOM_FLAG_STRING,
     offsetof(Row, word),
     0,
     0,
     nullptr,
     "start",
     0,
     nullptr,
     "W",
     "All",
     "a word",
     0,
     false,
     {}},
    {"words",
     0,
     LOOM_FLAG_STRINGS,
     offsetof(Row, words),
     0,
     0,
     nullptr,
     nullptr,
     0,
     nullptr,
     "W...",
     "All",
     "words",
     offsetof(Row, n_words),
     false,
     {"word"}},
};

class Flags : public ::testing::Test {
  protected:
    Row row;
    loom_error error = {""};
    void SetUp() override {
        loom_flags_defaults(rows, 5, &row);
    }
    void TearDown() override {
        loom_flags_free(rows, 5, &row);
    }
    std::string text(const char *name, int index = 0) {
        char buffer[64];
        EXPECT_TRUE(loom_flag_text(loom_flag_find(rows, 5, name), &row, index, buffer, sizeof buffer));
        return buffer;
    }
};

TEST_F(Flags, DefaultsAndUnset) {
    EXPECT_EQ(row.whole, 7);
    EXPECT_EQ(row.number, -1);
    EXPECT_STREQ(row.word, "start");
    EXPECT_EQ(row.n_words, 0);
    EXPECT_TRUE(loom_flag_is_unset(&rows[1], &row));
    EXPECT_FALSE(loom_flag_is_unset(&rows[0], &row));
    EXPECT_FALSE(loom_flag_is_unset(&rows[3], &row));
    EXPECT_TRUE(loom_flag_is_unset(&rows[4], &row));
    EXPECT_EQ(loom_flag_find(rows, 5, "none"), nullptr);
}

TEST_F(Flags, WithoutARangeAnyNumberIsTaken) {
    ASSERT_TRUE(loom_flag_set(&rows[0], &row, "-9223372036854775808", "--", &error));
    EXPECT_EQ(row.whole, INT64_MIN);
    EXPECT_FALSE(loom_flag_set(&rows[0], &row, "9223372036854775808", "--", &error));
    ASSERT_TRUE(loom_flag_set(&rows[1], &row, "-1.5e300", "--", &error));
    EXPECT_EQ(row.number, -1.5e300);
    EXPECT_FALSE(loom_flag_set(&rows[1], &row, "1e999", "--", &error));
}

TEST_F(Flags, NumbersPrintShortAndExact) {
    for (const char *shown : {"0.1", "6e-04", "1e-17", "123456.789", "0.30000000000000004"}) {
        ASSERT_TRUE(loom_flag_set(&rows[1], &row, shown, "--", &error));
        EXPECT_EQ(std::strtod(text("number").c_str(), nullptr), row.number);
        EXPECT_LE(text("number").size(), std::strlen(shown) + 1);
    }
}

TEST_F(Flags, ASourceDisplacesWhatEarlierOnesSaid) {
    loom_flag_table first = {rows, 5, &row, {false}}, second = {rows, 5, &row, {false}};
    ASSERT_TRUE(loom_flag_give(&first, &rows[1], "2.5", "--", &error));
    ASSERT_TRUE(loom_flag_give(&first, &rows[0], "1", "--", &error));
    EXPECT_EQ(row.number, 2.5); /* the same source gave both */
    ASSERT_TRUE(loom_flag_give(&first, &rows[4], "a", "--", &error));
    ASSERT_TRUE(loom_flag_give(&first, &rows[4], "b", "--", &error));
    EXPECT_EQ(row.n_words, 2);
    EXPECT_TRUE(loom_flag_given(&first, "words"));
    EXPECT_FALSE(loom_flag_given(&first, "word"));

    ASSERT_TRUE(loom_flag_give(&second, &rows[3], "mine", "--", &error));
    ASSERT_TRUE(loom_flag_give(&second, &rows[0], "2", "--", &error));
    EXPECT_EQ(row.number, -1); /* back to unset */
    ASSERT_TRUE(loom_flag_give(&second, &rows[4], "c", "--", &error));
    ASSERT_EQ(row.n_words, 1);
    EXPECT_EQ(text("words"), "c");
    EXPECT_STREQ(row.word, "mine");
}

TEST_F(Flags, TextThatDoesNotFit) {
    char small[4];
    EXPECT_FALSE(loom_flag_text(&rows[3], &row, 0, small, sizeof small));
    EXPECT_TRUE(loom_flag_text(&rows[0], &row, 0, small, sizeof small));
}

} // namespace
