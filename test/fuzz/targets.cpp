#include "fuzz/fuzz.h"

#include "base/flag.h"
#include "base/file.h"
#include "base/nearest.h"
#include "base/printable.h"
#include "checkpoint/directory.h"
#include "checkpoint/documents.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensors.h"
#include "comm/handshake.h"
#include "command_cases.h"
#include "command_line.h"
#include "cuda/choices.h"
#include "gptloom/gptloom.h"
#include "options.h"
#include "plot/curves.h"
#include "plot/plot.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <sys/stat.h>
#include <unistd.h>

extern "C" {
#include "run_directory.h"
#include "trainer.h"
}

namespace fuzz {

namespace {

std::string folder;
std::map<std::string, int> files;          /* on the disk, kept open: only what they hold changes */
std::map<std::string, std::string> memory; /* files that the program finds here: see below */

/* A promise that holds whatever was read. */
void require(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "does not hold: %s\n", what);
    abort();
}
#define REQUIRE(condition) require(condition, #condition)

std::string text(const void *data, size_t size) {
    return std::string((const char *)data, size);
}

/* A file with these bytes in it. */
std::string file(const std::string &name, const void *data, size_t size) {
    const std::string path = folder + "/" + name;
    memory[path].assign((const char *)data, size);
    return path;
}

/* The same on the disk, for what is read in other ways. */
std::string disk_file(const std::string &name, const void *data, size_t size) {
    const std::string path = folder + "/" + name;
    int &descriptor = files.try_emplace(path, -1).first->second;
    if (descriptor < 0) descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    require(ftruncate(descriptor, 0) == 0 && pwrite(descriptor, data, size, 0) == (ssize_t)size, "a file is written");
    return path;
}

/* An error is one line that says something, and nothing in it steers a terminal. */
void check_error(const loom_error &error) {
    REQUIRE(error.message[0]);
    REQUIRE(memchr(error.message, 0, sizeof error.message));
    REQUIRE(loom_is_printable(error.message));
}

loom_gpt_config tiny_shape() {
    return {1, 1, 4, 4, 8, LOOM_GPT_GELU};
}

/* ------------------------------------------------------------------------------------------------------- checkpoints */

void safetensors(const uint8_t *data, size_t size) {
    const std::string path = disk_file("model.safetensors", data, size);
    loom_error error;
    loom_safetensors read;
    const loom_gpt_config shape = tiny_shape();
    if (!loom_weights_agree(path.c_str(), &shape, &error)) check_error(error);
    if (!loom_safetensors_open(&read, path.c_str(), &error)) return check_error(error);
    for (int i = 0; i < read.n_tensors; i++) {
        const loom_safetensor *tensor = &read.tensor[i];
        REQUIRE(tensor->rank >= 0 && tensor->rank <= 4);
        REQUIRE(tensor->place + tensor->bytes <= size);
        REQUIRE(loom_safetensors_find(&read, tensor->name) == tensor);
        std::vector<char> bytes(tensor->bytes);
        REQUIRE(loom_safetensors_read(&read, tensor, 0, bytes.data(), bytes.size(), &error));
    }
    loom_safetensors_close(&read);
}

void config(const uint8_t *data, size_t size) {
    loom_error error;
    loom_gpt_config read;
    loom_text_ends ends;
    if (!loom_config_read(file("config.json", data, size).c_str(), &read, &ends, &error)) return check_error(error);
    REQUIRE(read.n_layer > 0 && read.n_head > 0 && read.n_embd % read.n_head == 0 && read.vocab_size > 0);
}

void state(const uint8_t *data, size_t size) {
    loom_error error;
    loom_training_state read;
    if (!loom_state_read(file("training_state.json", data, size).c_str(), &read, &error)) return check_error(error);
    REQUIRE(read.step >= 0 && read.tokens >= 0 && read.batch > 0 && read.seq_len > 0);
    REQUIRE(memchr(read.settings.device, 0, sizeof read.settings.device));
}

void tokenizer(const uint8_t *data, size_t size) {
    loom_error error;
    bool bytes;
    if (!loom_tokenizer_is_bytes(file("tokenizer.json", data, size).c_str(), &bytes, &error)) check_error(error);
}

void manifest(const uint8_t *data, size_t size) {
    loom_error error;
    disk_file("config.json", "{}", 2);
    file("manifest.json", data, size);
    if (!loom_manifest_verify(folder.c_str(), &error)) check_error(error);
}

/* A whole directory; the first three bytes say how long its files are. */
void checkpoint(const uint8_t *data, size_t size) {
    static loom_checkpoint_info info;
    static const char *const names[] = {"config.json", "training_state.json", "tokenizer.json"};
    loom_error error;
    mkdir((folder + "/checkpoint").c_str(), 0700);
    if (size < 3) return;
    const uint8_t *next = data + 3, *end = data + size;
    for (size_t i = 0; i < 3; i++) {
        const size_t length = std::min((size_t)data[i] * 16, (size_t)(end - next));
        disk_file(std::string("checkpoint/") + names[i], next, length);
        next += length;
    }
    disk_file("checkpoint/model.safetensors", next, (size_t)(end - next));
    if (!loom_checkpoint_open((folder + "/checkpoint").c_str(), &info, &error)) check_error(error);
}

/* ----------------------------------------------------------------------------------------------------------- options */

/* What was read can be written, and is read back as the same. */
void check_options(loom_train_options *options) {
    loom_error error;
    char *written = nullptr, *again = nullptr;
    size_t length, same;
    if (!loom_train_options_text(options, &written, &length, &error)) return check_error(error);
    loom_train_options read = loom_train_options_defaults();
    if (loom_train_options_read(&read, file("written.ini", written, length).c_str(), &error)) {
        REQUIRE(loom_train_options_text(&read, &again, &same, &error));
        REQUIRE(length == same && !memcmp(written, again, length));
    } else {
        fprintf(stderr, "%s\n%s\n", error.message, written);
        REQUIRE(!"what was written can be read");
    }
    loom_train_options_free(&read);
    free(written), free(again);
    if (!loom_train_options_resolve(options, &error)) check_error(error);
}

void ini(const uint8_t *data, size_t size) {
    loom_error error;
    loom_train_options options = loom_train_options_defaults();
    if (loom_train_options_read(&options, file("config.ini", data, size).c_str(), &error))
        check_options(&options);
    else
        check_error(error);
    loom_train_options_free(&options);
}

/* A command line of `train`, a word a line. */
void flags(const uint8_t *data, size_t size) {
    std::string all = text(data, size), command = "train";
    std::vector<char *> argv = {command.data()};
    for (char *word = all.data(); word && argv.size() < 64;) {
        argv.push_back(word);
        word = (char *)memchr(word, '\n', (size_t)(all.data() + all.size() - word));
        if (word) *word++ = 0;
    }
    argv.push_back(nullptr);
    loom_error error;
    loom_train_options options = loom_train_options_defaults();
    loom_flag_table table = {};
    table.target = &options;
    table.flags = loom_train_option_table(&table.n);
    loom_command_line line = {};
    line.command = "train";
    line.tables = &table;
    line.n_tables = 1;
    bool help;
    if (!loom_command_line_parse(&line, (int)argv.size() - 1, argv.data(), &help, &error))
        check_error(error);
    else if (!help)
        check_options(&options);
    loom_train_options_free(&options);
}

void choices(const uint8_t *data, size_t size) {
    const std::string given = text(data, size);
    loom_error error;
    loom_choices read = {}, again = {};
    char *written = nullptr;
    if (loom_choices_read(&read, "here", given.c_str(), &error)) {
        REQUIRE(loom_choices_write(&read, "here", &written, &error));
        REQUIRE(loom_choices_read(&again, "here", written, &error));
        REQUIRE(again.count == read.count);
    } else {
        check_error(error);
    }
    free(written);
    loom_choices_clear(&read);
    loom_choices_clear(&again);
}

/* ----------------------------------------------------------------------------------------------------------- network */

/* A code that bytes made up can bear: of what is signed, only a byte counts. */
unsigned char *easy_code(const void *, const void *, int, const unsigned char *data, size_t, unsigned char *code,
                         unsigned *bytes) {
    memset(code, data[0], LOOM_SECRET_CODE);
    *bytes = LOOM_SECRET_CODE;
    return code;
}
const void *no_hash() {
    return "";
}

/* One connection: the first byte says which side this is, and whether it has a secret; then come pieces, each behind a
 * byte that says how long it is. */
void handshake(const uint8_t *data, size_t size) {
    if (!size) return;
    const int rank = data[0] & 1;
    unsigned char nonce[LOOM_HANDSHAKE_NONCE] = {1}, payload[128] = {2};
    const bool has_come[] = {true, false, true, false};
    const bool has_secret = data[0] & 2;
    loom_handshake_party party = {};
    party.rank = rank;
    party.size = 4;
    party.payload = payload;
    party.bytes = sizeof payload;
    party.has_come = has_come;
    if (has_secret) party.secret = {"key", 3, no_hash, easy_code, memcmp};
    loom_handshake shaken;
    loom_handshake_begin(&shaken, &party, nonce);
    loom_handshake_result result = LOOM_HANDSHAKE_GOES_ON;
    for (size_t at = 1; at < size && result == LOOM_HANDSHAKE_GOES_ON;) {
        const size_t piece = std::min((size_t)data[at] + 1, size - at - 1);
        result = loom_handshake_take(&shaken, data + at + 1, piece);
        REQUIRE(shaken.bytes <= sizeof shaken.message && shaken.answer_bytes <= sizeof shaken.answer);
        REQUIRE(memchr(shaken.why, 0, sizeof shaken.why));
        REQUIRE(shaken.peer >= -1 && shaken.peer < party.size);
        at += piece + 1;
    }
}

/* -------------------------------------------------------------------------------------------------------------- data */

void dataset(const std::string &path) {
    const char *paths[] = {path.c_str()};
    loom_error error;
    loom_dataset *opened;
    if (!loom_dataset_open(&opened, paths, 1, &error)) return check_error(error);
    const int64_t n = loom_dataset_tokens(opened), first = n > 100 ? n - 100 : 0;
    const int64_t vocabulary = loom_dataset_is_bytes(opened) ? LOOM_BYTE_VOCABULARY : LOOM_GPT2_VOCABULARY;
    int32_t tokens[100];
    REQUIRE(n > 0);
    if (!loom_dataset_check_ids(opened, vocabulary, &error)) check_error(error);
    if (loom_dataset_read(opened, first, n - first, vocabulary, tokens, &error))
        for (int64_t i = 0; i < n - first; i++) REQUIRE(tokens[i] >= 0 && tokens[i] < vocabulary);
    else
        check_error(error);
    loom_dataset_close(opened);
}

void shard(const uint8_t *data, size_t size) {
    dataset(disk_file("shard.bin", data, size));
}

void plain_text(const uint8_t *data, size_t size) {
    dataset(disk_file("text.txt", data, size));
}

/* -------------------------------------------------------------------------------------------------------------- runs */

/* What a run's data.json says of its data, against a file of them. */
void data_record(const uint8_t *data, size_t size) {
    static loom_comm alone; /* rank 0 */
    static loom_trainer trainer;
    loom_error error;
    const std::string path = disk_file("data.txt", "some text", 9);
    const char *paths[] = {path.c_str()};
    if (!files.count(file("data.json", data, size))) disk_file("data.json", "", 0); /* it looks whether it is there */
    trainer.comm = &alone;
    trainer.options.resume = true;
    trainer.options.out = folder.data();
    REQUIRE(loom_dataset_open(&trainer.data, paths, 1, &error));
    if (!loom_trainer_check_data(&trainer, &error)) check_error(error);
    loom_dataset_close(trainer.data);
}

/* `latest`, where links cannot be. */
void latest(const uint8_t *data, size_t size) {
    char found[4096];
    loom_error error;
    const std::string checkpoints = folder + "/checkpoints", real = checkpoints + "/step-00000002";
    mkdir(checkpoints.c_str(), 0700), mkdir(real.c_str(), 0700);
    disk_file("checkpoints/step-00000002/config.json", "{}", 2);
    file("checkpoints/latest", data, size);
    disk_file("checkpoints/latest", data, size);
    REQUIRE(loom_checkpoint_find(folder.c_str(), found, sizeof found, &error));
    REQUIRE(found == real); /* it or, where `latest` is no name, the newest */
}

void bench(const uint8_t *data, size_t size) {
    loom_error error;
    cJSON *saved = nullptr;
    if (!loom_bench_read(file("bench.json", data, size).c_str(), &saved, &error)) check_error(error);
    cJSON_Delete(saved);
}

void metrics(const uint8_t *data, size_t size) {
    loom_error error;
    loom_curves curves = {};
    loom_svg svg = {};
    const loom_plot_options options = {};
    if (!files.count(file("metrics.jsonl", data, size)))
        disk_file("metrics.jsonl", "", 0); /* it looks whether it is there */
    if (loom_curves_read(&curves, folder.c_str(), &error)) {
        REQUIRE(curves.n > 0);
        loom_run_last_step(folder.c_str());
        for (int64_t i = 1; i < curves.n; i++)
            REQUIRE(curves.column[LOOM_CURVE_STEP][i] > curves.column[LOOM_CURVE_STEP][i - 1]);
        if (!loom_plot_draw(&svg, &curves, 1, &options, &error)) check_error(error);
    } else {
        check_error(error);
    }
    loom_svg_free(&svg);
    loom_curves_free(&curves);
}

void rank_log(const uint8_t *data, size_t size) {
    mkdir((folder + "/logs").c_str(), 0700);
    disk_file("logs/rank-0000.log", data, size);
    loom_run_logged_step(folder.c_str(), 0);
}

/* -------------------------------------------------------------------------------------------------------------- text */

/* What is printed is UTF-8 without control characters. */
void printable(const uint8_t *data, size_t size) {
    char *printed = nullptr;
    size_t length;
    FILE *out = open_memstream(&printed, &length);
    loom_printable given = {};
    for (size_t i = 0; i < size; i++) loom_printable_byte(&given, data[i], out);
    loom_printable_end(&given, out);
    fclose(out);
    for (const char *c = printed; *c; c++) {
        const int bytes = *c == '\n' || *c == '\t' ? 1 : loom_printable_length(c);
        REQUIRE(bytes > 0);
        c += bytes - 1;
    }
    REQUIRE(strlen(printed) == length);
    free(printed);

    /* In one line, whole or cut; and as a shell reads it back. */
    const std::string whole = text(data, size);
    char line[64], word[4 * 64 + 8];
    REQUIRE(loom_is_printable(loom_printable_text(line, sizeof line, whole.c_str())));
    REQUIRE(loom_is_printable(loom_printable_ends(line, sizeof line, whole.c_str())));
    REQUIRE(loom_is_printable(loom_shell_word(word, sizeof word, whole.substr(0, 60).c_str())));
}

/* A name that nothing bears, among those of flags. */
void nearest(const uint8_t *data, size_t size) {
    static const char *const names[] = {"data", "val-data", "checkpoint-every", "n-layer", "x", nullptr};
    const std::string name = text(data, size);
    loom_error error;
    loom_nearest_name(name.c_str(), names);
    loom_fail(&error, "%s", name.c_str());
    if (*name.c_str()) check_error(error);
}

} // namespace

/* The linker puts these in the place of csrc/base/file.c's, for its callers: reading is then as fast as it can be, and a
 * sanitizer knows where a file ends to the byte. */
extern "C" {
bool __real_loom_file_map(const char *path, loom_mapping *mapping, loom_error *error);
void __real_loom_file_unmap(loom_mapping *mapping);
char *__real_loom_file_read_text(const char *path, size_t limit, loom_error *error);
FILE *__real_loom_file_open(const char *path, loom_error *error);
bool __wrap_loom_file_map(const char *path, loom_mapping *mapping, loom_error *error);
void __wrap_loom_file_unmap(loom_mapping *mapping);
char *__wrap_loom_file_read_text(const char *path, size_t limit, loom_error *error);
FILE *__wrap_loom_file_open(const char *path, loom_error *error);
}

static std::map<const void *, size_t> mapped;

bool __wrap_loom_file_map(const char *path, loom_mapping *mapping, loom_error *error) {
    const auto found = memory.find(path);
    if (found == memory.end()) return __real_loom_file_map(path, mapping, error);
    *mapping = {};
    if (found->second.empty()) return true;
    void *copy = malloc(found->second.size());
    memcpy(copy, found->second.data(), found->second.size());
    *mapping = {copy, found->second.size()};
    mapped[copy] = mapping->size;
    return true;
}

void __wrap_loom_file_unmap(loom_mapping *mapping) {
    if (!mapping->data || !mapped.erase(mapping->data)) return __real_loom_file_unmap(mapping);
    free((void *)mapping->data);
    *mapping = {};
}

char *__wrap_loom_file_read_text(const char *path, size_t limit, loom_error *error) {
    const auto found = memory.find(path);
    if (found == memory.end() || found->second.size() > limit) return __real_loom_file_read_text(path, limit, error);
    char *copy = (char *)malloc(found->second.size() + 1);
    memcpy(copy, found->second.c_str(), found->second.size() + 1);
    return copy;
}

FILE *__wrap_loom_file_open(const char *path, loom_error *error) {
    const auto found = memory.find(path);
    if (found == memory.end() || found->second.empty()) return __real_loom_file_open(path, error);
    return fmemopen(found->second.data(), found->second.size(), "r");
}

const std::vector<Target> &targets() {
    static const std::vector<Target> all = {
        {"safetensors", safetensors},
        {"config", config},
        {"state", state},
        {"tokenizer", tokenizer},
        {"manifest", manifest},
        {"checkpoint", checkpoint},
        {"ini", ini},
        {"flags", flags},
        {"choices", choices},
        {"handshake", handshake},
        {"shard", shard},
        {"text", plain_text},
        {"metrics", metrics},
        {"rank_log", rank_log},
        {"data_record", data_record},
        {"latest", latest},
        {"bench", bench},
        {"printable", printable},
        {"nearest", nearest},
    };
    return all;
}

void set_folder(const std::string &there) {
    for (const auto &[path, descriptor] : files) close(descriptor);
    files.clear();
    memory.clear();
    folder = there;
}

} // namespace fuzz
