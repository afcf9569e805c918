#include "fuzz/fuzz.h"

#include "base/flag.h"
#include "base/file.h"
#include "base/lock_holder.h"
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
#include "cuda/tuning.h"
#include "gptloom/gptloom.h"
#include "engine/options.h"
#include "plot/curves.h"
#include "plot/plot.h"
#include "token_ids.h"

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

extern "C" {
#include "engine/run_directory.h"
#include "engine/trainer.h"
}

namespace fuzz {

namespace {

std::string folder;
struct OnDisk {
    int descriptor = -1; /* kept open: only what the file holds changes */
    std::string content;
};
std::map<std::string, OnDisk> files;
std::map<std::string, std::string> memory; /* files that the program finds here: see below */
std::set<std::string> directories;
loom_dataset *some_data; /* of a file in the folder */

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
    OnDisk &is = files[path];
    if (is.descriptor < 0) is.descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    require(is.descriptor >= 0, "a file is made");
    if (is.content.size() == size && !memcmp(is.content.data(), data, size)) return path;
    require(size >= is.content.size() || ftruncate(is.descriptor, (off_t)size) == 0, "a file is cut");
    require(pwrite(is.descriptor, data, size, 0) == (ssize_t)size, "a file is written");
    is.content.assign((const char *)data, size);
    return path;
}

/* A directory in the folder. */
std::string directory(const std::string &name) {
    const std::string path = folder + "/" + name;
    if (directories.insert(path).second) mkdir(path.c_str(), 0700);
    return path;
}

/* Whether a path is one that targets make or leave out, so that the disk need not be asked; then whether it is there.
 * */
bool is_known(const std::string &path, bool *exists) {
    const size_t slash = path.rfind('/');
    const std::string parent = path.substr(0, slash == path.npos ? 0 : slash), name = path.substr(parent.size());
    if (name == "/" || name == "/." || name == "/..") return false;
    if (folder.empty() || (parent != folder && !directories.count(parent))) return false;
    *exists = memory.count(path) || files.count(path) || directories.count(path);
    return true;
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
    const std::string path = file("model.safetensors", data, size);
    loom_error error;
    loom_safetensors read;
    const loom_gpt_config shape = tiny_shape();
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
    if (!loom_weights_agree(path.c_str(), &shape, &error)) check_error(error);
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
    const std::string there = directory("checkpoint");
    if (size < 3) return;
    const uint8_t *next = data + 3, *end = data + size;
    for (size_t i = 0; i < 3; i++) {
        const size_t length = std::min((size_t)data[i] * 16, (size_t)(end - next));
        file(std::string("checkpoint/") + names[i], next, length);
        next += length;
    }
    file("checkpoint/model.safetensors", next, (size_t)(end - next));
    if (!loom_checkpoint_open(there.c_str(), &info, &error)) check_error(error);
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
    const auto read = size % 2 ? loom_train_options_read : loom_train_options_read_all;
    if (read(&options, file("config.ini", data, size).c_str(), &error))
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

void tuning(const uint8_t *data, size_t size) {
    const std::string given = text(data, size);
    loom_error error;
    loom_tuning read = {}, again = {};
    char *written = nullptr;
    if (loom_tuning_read(&read, "here", given.c_str(), &error)) {
        REQUIRE(loom_tuning_write(&read, "here", &written, &error));
        REQUIRE(loom_tuning_read(&again, "here", written, &error));
        REQUIRE(again.count == read.count);
    } else {
        check_error(error);
    }
    free(written);
    loom_tuning_clear(&read);
    loom_tuning_clear(&again);
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

/* What a run's data.json says of its data, against a file of them; where the length is odd, of its validation's too. */
void data_record(const uint8_t *data, size_t size) {
    static loom_comm alone; /* rank 0 */
    static loom_trainer trainer;
    loom_error error;
    const std::string path = disk_file("data.txt", "some text", 9), name = "data.txt";
    const char *paths[] = {path.c_str()};
    if (!some_data) REQUIRE(loom_dataset_open(&some_data, paths, 1, &error));
    std::string record = text(data, size);
    for (size_t at = 0; (at = record.find(name, at)) != record.npos; at += path.size())
        record.replace(at, name.size(), path);
    file("data.json", record.data(), record.size());
    trainer.comm = &alone;
    trainer.options.resume = true;
    trainer.options.out = folder.data();
    trainer.data = some_data;
    trainer.val_data = size % 2 ? some_data : nullptr;
    if (!loom_trainer_check_data(&trainer, &error)) check_error(error);
}

/* Two checkpoints, of steps 2 and 10, and where they lie. */
std::string two_checkpoints() {
    const std::string checkpoints = directory("checkpoints");
    for (const char *step : {"step-00000002", "step-00000010"}) {
        directory(std::string("checkpoints/") + step);
        disk_file(std::string("checkpoints/") + step + "/config.json", "{}", 2);
    }
    return checkpoints;
}

/* `latest`, where links cannot be. */
void latest(const uint8_t *data, size_t size) {
    char found[PATH_MAX];
    loom_error error;
    const std::string checkpoints = two_checkpoints(), path = file("checkpoints/latest", data, size);
    disk_file("checkpoints/latest", "", 0); /* it looks what kind of file it is */
    REQUIRE(loom_checkpoint_find(folder.c_str(), found, sizeof found, &error));
    std::string says = text(data, size).c_str();
    says.resize(strcspn(says.c_str(), "\r\n"));
    const bool older = says == "step-00000002";
    REQUIRE(found == checkpoints + (older ? "/step-00000002" : "/step-00000010")); /* what it says or else the newest */
    if (size % 2)
        REQUIRE(loom_checkpoint_newest(folder.c_str()) == (older ? 2 : 10));
    else if (loom_checkpoint_find(path.c_str(), found, sizeof found, &error))
        REQUIRE(older || says == "step-00000010");
    else
        check_error(error);
}

/* What lies in a run's directory may have any name. */
void names(const uint8_t *data, size_t size) {
    char older[PATH_MAX];
    loom_error error;
    const std::string checkpoints = two_checkpoints();
    std::string name = text(data, size);
    std::replace(name.begin(), name.end(), '/', '_');
    loom_is_temporary(name.c_str());
    if (loom_checkpoint_older((checkpoints + "/" + name).c_str(), older, sizeof older))
        REQUIRE(older == checkpoints + "/step-00000002" || older == checkpoints + "/step-00000010");
    if (loom_checkpoint_find((checkpoints + "/" + name).c_str(), older, sizeof older, &error))
        REQUIRE(!strncmp(older, folder.c_str(), folder.size()));
    else
        check_error(error);
}

/* The lock of a run: who has it. */
void lock(const uint8_t *data, size_t size) {
    static const loom_lock_holder own = {"here", "a-boot", "pid:[1]", 77, 5, 1700000000};
    loom_lock_holder holder, again;
    char line[LOOM_LOCK_LINE];
    loom_error error;
    const std::string given = text(data, size);
    if (!loom_lock_holder_read(&holder, given.data(), given.size())) return;
    for (const char *word : {holder.host, holder.boot, holder.space}) {
        REQUIRE(strlen(word) > 0 && strlen(word) < LOOM_LOCK_WORD);
        for (const char *c = word; *c; c++) REQUIRE(*c > ' ' && *c <= '~');
    }
    const int length = loom_lock_holder_write(&holder, line);
    REQUIRE(length > 0 && length < LOOM_LOCK_LINE);
    REQUIRE(loom_lock_holder_read(&again, line, (size_t)length));
    REQUIRE(loom_lock_same_holder(&holder, &again) && holder.beat == again.beat);
    REQUIRE(loom_lock_silence(&holder, own.beat) >= 0);
    REQUIRE(!loom_lock_same_space(&holder, &own) || loom_lock_same_system(&holder, &own));
    loom_fail(&error, "process %ld on %s", holder.process, holder.host);
    check_error(error);
}

/* Samples and metrics of a run that goes on after step 3. */
std::string cut_to;
bool was_cut;
void check_cut(const std::string &path, const std::string &before,
               bool (*cut)(const char *path, int64_t step, loom_error *error)) {
    loom_error error;
    was_cut = false;
    REQUIRE(cut(path.c_str(), 3, &error));
    const std::string once = was_cut ? cut_to : before;
    file(path.substr(folder.size() + 1), once.data(), once.size());
    was_cut = false;
    REQUIRE(cut(path.c_str(), 3, &error));
    REQUIRE(!was_cut || cut_to == once);
}

void samples(const uint8_t *data, size_t size) {
    const std::string given = text(data, size);
    check_cut(file("samples.txt", data, size), given, loom_run_cut_samples);
    check_cut(file("metrics.jsonl", data, size), given, loom_run_cut_metrics);
    REQUIRE(loom_run_last_step(folder.c_str()) <= 3);
}

void bench(const uint8_t *data, size_t size) {
    loom_error error;
    cJSON *saved = nullptr;
    if (!loom_bench_read(file("bench.json", data, size).c_str(), &saved, &error)) check_error(error);
    cJSON_Delete(saved);
}

/* What a plot reads; where the length is odd it is drawn, which takes most of the time. */
void metrics(const uint8_t *data, size_t size) {
    loom_error error;
    loom_curves curves = {};
    loom_svg svg = {};
    const loom_plot_options options = {};
    file("metrics.jsonl", data, size);
    if (loom_curves_read(&curves, folder.c_str(), &error)) {
        REQUIRE(curves.n > 0);
        loom_run_last_step(folder.c_str());
        for (int64_t i = 1; i < curves.n; i++)
            REQUIRE(curves.column[LOOM_CURVE_STEP][i] > curves.column[LOOM_CURVE_STEP][i - 1]);
        if (size % 2 && !loom_plot_draw(&svg, &curves, 1, &options, &error)) check_error(error);
    } else {
        check_error(error);
    }
    loom_svg_free(&svg);
    loom_curves_free(&curves);
}

void rank_log(const uint8_t *data, size_t size) {
    file("logs/rank-0000.log", data, size);
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

/* A prompt of token ids, for a vocabulary of up to 65536 tokens. */
void prompt(const uint8_t *data, size_t size) {
    if (size < 2) return;
    loom_error error;
    const int64_t vocabulary = 1 + data[0] + 256 * data[1];
    const std::string ids = text(data + 2, size - 2);
    const size_t most = strlen(ids.c_str());
    std::vector<int32_t> tokens(most + 1, -1);
    int64_t n = 0;
    if (!loom_token_ids_read(ids.c_str(), vocabulary, tokens.data(), &n, &error)) return check_error(error);
    REQUIRE(n > 0 && n <= (int64_t)most);
    for (int64_t i = 0; i < n; i++) REQUIRE(tokens[(size_t)i] >= 0 && tokens[(size_t)i] < vocabulary);
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

/* The linker puts these in the place of csrc/base/file.c's, for its callers: reading is then as fast as it can be, and
 * a sanitizer knows where a file ends to the byte. What is cut or replaced here is kept, to be looked at. */
extern "C" {
bool __real_loom_path_exists(const char *path);
bool __real_loom_is_directory(const char *path);
bool __real_loom_reader_open(loom_reader *reader, const char *path, loom_error *error);
bool __real_loom_reader_read(const loom_reader *reader, uint64_t place, void *to, size_t bytes, loom_error *error);
void __real_loom_reader_close(loom_reader *reader);
bool __real_loom_file_map(const char *path, loom_mapping *mapping, loom_error *error);
void __real_loom_file_unmap(loom_mapping *mapping);
char *__real_loom_file_read_text(const char *path, size_t limit, loom_error *error);
FILE *__real_loom_file_open(const char *path, loom_error *error);
bool __real_loom_file_cut(const char *path, uint64_t size, loom_error *error);
bool __real_loom_file_replace(const char *path, const void *data, size_t bytes, loom_error *error);
bool __wrap_loom_path_exists(const char *path);
bool __wrap_loom_is_directory(const char *path);
bool __wrap_loom_reader_open(loom_reader *reader, const char *path, loom_error *error);
bool __wrap_loom_reader_read(const loom_reader *reader, uint64_t place, void *to, size_t bytes, loom_error *error);
void __wrap_loom_reader_close(loom_reader *reader);
bool __wrap_loom_file_map(const char *path, loom_mapping *mapping, loom_error *error);
void __wrap_loom_file_unmap(loom_mapping *mapping);
char *__wrap_loom_file_read_text(const char *path, size_t limit, loom_error *error);
FILE *__wrap_loom_file_open(const char *path, loom_error *error);
bool __wrap_loom_file_cut(const char *path, uint64_t size, loom_error *error);
bool __wrap_loom_file_replace(const char *path, const void *data, size_t bytes, loom_error *error);
}

bool __wrap_loom_path_exists(const char *path) {
    bool exists;
    return is_known(path, &exists) ? exists : __real_loom_path_exists(path);
}

bool __wrap_loom_is_directory(const char *path) {
    bool exists;
    return is_known(path, &exists) ? directories.count(path) > 0 : __real_loom_is_directory(path);
}

bool __wrap_loom_reader_open(loom_reader *reader, const char *path, loom_error *error) {
    const auto found = memory.find(path);
    if (found == memory.end()) return __real_loom_reader_open(reader, path, error);
    reader->descriptor = -1;
    reader->size = found->second.size();
    snprintf(reader->path, sizeof reader->path, "%s", path);
    return true;
}

bool __wrap_loom_reader_read(const loom_reader *reader, uint64_t place, void *to, size_t bytes, loom_error *error) {
    if (reader->descriptor >= 0) return __real_loom_reader_read(reader, place, to, bytes, error);
    const std::string &content = memory.at(reader->path);
    if (place > content.size() || bytes > content.size() - place) return loom_fail(error, "%s: ends", reader->path);
    memcpy(to, content.data() + place, bytes);
    return true;
}

void __wrap_loom_reader_close(loom_reader *reader) {
    if (*reader->path && reader->descriptor >= 0) return __real_loom_reader_close(reader);
    *reader->path = 0;
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

bool __wrap_loom_file_cut(const char *path, uint64_t size, loom_error *error) {
    const auto found = memory.find(path);
    if (found == memory.end()) return __real_loom_file_cut(path, size, error);
    was_cut = true;
    cut_to = found->second.substr(0, size);
    return true;
}

bool __wrap_loom_file_replace(const char *path, const void *data, size_t bytes, loom_error *error) {
    if (!memory.count(path)) return __real_loom_file_replace(path, data, bytes, error);
    was_cut = true;
    cut_to.assign((const char *)data, bytes);
    return true;
}

const std::vector<Target> &targets() {
    static const std::vector<Target> all = {
        {"safetensors", safetensors, 4096},
        {"config", config, 2048},
        {"state", state, 2048},
        {"tokenizer", tokenizer, 2048},
        {"manifest", manifest, 2048},
        {"checkpoint", checkpoint, 4096},
        {"ini", ini, 1024},
        {"flags", flags, 512},
        {"tuning", tuning, 1024},
        {"handshake", handshake, 1024},
        {"shard", shard, 4096},
        {"text", plain_text, 4096},
        {"metrics", metrics, 1024},
        {"rank_log", rank_log, 2048},
        {"data_record", data_record, 1024},
        {"latest", latest, 256},
        {"bench", bench, 2048},
        {"printable", printable, 1024},
        {"nearest", nearest, 128},
        {"names", names, 128},
        {"lock", lock, 600},
        {"samples", samples, 1024},
        {"prompt", prompt, 512},
    };
    return all;
}

void set_folder(const std::string &there) {
    for (const auto &[path, file] : files) close(file.descriptor);
    loom_dataset_close(some_data);
    some_data = nullptr;
    files.clear();
    directories.clear();
    memory.clear();
    folder = there;
}

} // namespace fuzz
