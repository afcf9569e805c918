/* One rank that trains, again and again: test_ranks starts several of these, as starting them takes longer than what
 * they train.
 *
 *     train_rank self|mpi FOLDER TRAININGS
 *
 * A line of TRAININGS is a name and options as `gptloom train` has them, without dashes: "first device=cpu steps=3".
 * Those that begin with @ are for this program:
 *
 *     @steps=N           do so many (2)
 *     @validate, @sample after the last step; 20 tokens
 *     @save              a checkpoint, into `out`
 *     @values            write the state as numbers too, to FOLDER/NAME.values
 *     @make-tuning=FILE  write the device's tuning cache
 *
 * Rank 0 writes what a training has come to into FOLDER/NAME: the losses and norms of its steps as bits, and of every
 * tensor of weights and moments a hash. None of it hangs on how ranks hold it. What ranks should all have, but have
 * not, is an error, and status 1. */
#include "gptloom/gptloom.h"

extern "C" {
#include "engine/trainer.h"
}

#include "base/half.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <xxhash.h>

namespace {

loom_comm *comm;
int wrong;

/* What an error does in a program. */
void require(const std::function<bool(loom_error *)> &run) {
    loom_error error = {""};
    if (run(&error)) return;
    if (comm) loom_comm_abort(comm, &error, 2);
    fprintf(stderr, "train_rank: %s\n", error.message);
    exit(2);
}

std::string hash(const std::string &bytes) {
    char text[20];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)XXH3_64bits(bytes.data(), bytes.size()));
    return text;
}

std::string bits(float value) {
    char text[40];
    uint32_t raw;
    memcpy(&raw, &value, sizeof raw);
    snprintf(text, sizeof text, "%08x %.9g", raw, (double)value);
    return text;
}

/* Whether all ranks have the same bytes. */
void expect_same(const std::string &bytes, const std::string &what) {
    const uint64_t mine = XXH3_64bits(bytes.data(), bytes.size());
    std::vector<uint64_t> all((size_t)comm->size);
    require([&](loom_error *error) { return loom_comm_host_gather(comm, all.data(), &mine, sizeof mine, error); });
    for (const uint64_t other : all)
        if (other != all[0] && comm->rank == 0) {
            fprintf(stderr, "train_rank: %s: ranks have different bits\n", what.c_str());
            wrong = 1;
            return;
        }
}

/* ---------------------------------------------------------------------------------------------------- what is trained */

struct Training {
    std::string name;
    int steps = 2;
    bool validate = false, sample = false, save = false, values = false;
    std::string tuning;
    std::vector<std::pair<std::string, std::string>> options;
};

Training read_training(const std::string &line) {
    Training t;
    std::istringstream words(line);
    words >> t.name;
    for (std::string word; words >> word;) {
        const size_t at = word.find('=');
        const std::string key = word.substr(0, at), value = at == std::string::npos ? "true" : word.substr(at + 1);
        if (key == "@steps")
            t.steps = atoi(value.c_str());
        else if (key == "@validate")
            t.validate = true;
        else if (key == "@sample")
            t.sample = true;
        else if (key == "@save")
            t.save = true;
        else if (key == "@values")
            t.values = true;
        else if (key == "@make-tuning")
            t.tuning = value;
        else
            t.options.push_back({key, value});
    }
    return t;
}

/* -------------------------------------------------------------------------------------------------- what it has come to */

std::string read(loom_trainer *t, const void *from, size_t bytes) {
    std::string raw(bytes, 0);
    t->device->copy(t->device, NULL, raw.data(), from, bytes, LOOM_DEVICE_TO_HOST);
    require([&](loom_error *error) { return t->device->synchronize(t->device, NULL, error); });
    return raw;
}

/* A bucket of which each rank has its shard, at `mine`: all of it. */
std::string whole(loom_trainer *t, const void *mine, int bucket, loom_dtype dtype, const std::string &what) {
    const loom_shard *shard = loom_gpt_get_shard(t->gpt, bucket);
    const std::string own = read(t, mine, (size_t)shard->elements * loom_dtype_size(dtype));
    if (shard->elements == loom_gpt_get_layout(t->gpt)->bucket[bucket].elements) {
        expect_same(own, what);
        return own;
    }
    std::string all(own.size() * (size_t)comm->size, 0);
    require([&](loom_error *error) { return loom_comm_host_gather(comm, all.data(), own.data(), own.size(), error); });
    return all;
}

/* Bytes of all buckets, in the layout. */
struct State {
    std::string parameters, moment1, moment2;
};

State state_of(loom_trainer *t) {
    const loom_layout *layout = loom_gpt_get_layout(t->gpt);
    const loom_dtype master = t->precision.master, moment = t->precision.moment;
    const int zero = loom_gpt_get_sharding(t->gpt)->zero;
    State state;
    for (int b = 0; b < layout->n_buckets; b++) {
        const size_t at = (size_t)loom_optimizer_moments_at(&t->optimizer, b) * loom_dtype_size(moment);
        const std::string name = "bucket " + std::to_string(b);
        state.parameters += whole(t, loom_gpt_get_shard(t->gpt, b)->master, b, master, name + " of weights");
        state.moment1 += whole(t, (char *)t->optimizer.moment1 + at, b, moment, name + " of first moments");
        state.moment2 += whole(t, (char *)t->optimizer.moment2 + at, b, moment, name + " of second moments");
        if (zero < 3 || loom_gpt_bucket_slot(t->gpt, b) < 2)
            expect_same(read(t, loom_gpt_bucket_parameters(t->gpt, b),
                             (size_t)layout->bucket[b].elements * loom_dtype_size(t->precision.storage)),
                        name + " of weights as they are read");
    }
    return state;
}

double number(const char *from, loom_dtype dtype) {
    float f;
    double d;
    uint16_t h;
    if (dtype == LOOM_F64) return memcpy(&d, from, sizeof d), d;
    if (dtype == LOOM_F32) return memcpy(&f, from, sizeof f), (double)f;
    return memcpy(&h, from, sizeof h), (double)(dtype == LOOM_BF16 ? bf16_to_float(h) : fp16_to_float(h));
}

/* The tensors of what is laid out, one after another: a line with each one's name and hash, or its numbers. */
void write_tensors(loom_trainer *t, const std::string &all, loom_dtype dtype, const char *what, std::ostream &lines,
                   std::vector<double> &numbers) {
    const loom_layout *layout = loom_gpt_get_layout(t->gpt);
    const size_t size = loom_dtype_size(dtype);
    for (int i = 0; i < layout->n_parameters; i++) {
        const loom_parameter &p = layout->parameter[i];
        const std::string tensor = all.substr((size_t)p.offset * size, (size_t)(p.rows * p.columns) * size);
        lines << what << " " << p.name << " " << p.rows * p.columns << " " << hash(tensor) << "\n";
        for (size_t at = 0; at < tensor.size(); at += size) numbers.push_back(number(&tensor[at], dtype));
    }
}

bool take_token(void *user, int32_t token) {
    *(std::string *)user += " " + std::to_string(token);
    return true;
}

void write_tuning(loom_trainer *t, const std::string &path) {
    char *text = NULL;
    require([&](loom_error *error) { return t->device->tuning_get(t->device, &text, error); });
    if (text) std::ofstream(path) << text;
    free(text);
}

/* -------------------------------------------------------------------------------------------------------------- running */

void run(const Training &training, const loom_comm_options &how, const std::string &folder) {
    loom_train_options options = loom_train_options_defaults();
    loom_trainer *t;
    std::ostringstream lines;
    std::vector<double> numbers;
    for (const auto &[key, value] : training.options)
        require([&, k = key, v = value](loom_error *error) {
            return loom_train_options_set(&options, k.c_str(), v.c_str(), error);
        });
    require([&](loom_error *error) { return loom_comm_open(&comm, &how, error); });
    require([&](loom_error *error) { return loom_trainer_open(&t, &options, comm, NULL, error); });
    if (!training.tuning.empty()) write_tuning(t, training.tuning);
    for (int i = 0; i < training.steps; i++) {
        loom_step_report report;
        require([&](loom_error *error) { return loom_trainer_step(t, &report, error); });
        lines << "step " << report.step << ": loss " << bits(report.loss) << ", norm " << bits(report.grad_norm)
              << (report.skipped ? ", left out" : "") << "\n";
    }
    if (training.validate) {
        loom_validation result;
        require([&](loom_error *error) { return loom_trainer_validate(t, 0, &result, error); });
        const double loss = result.loss;
        lines << "validation " << hash(std::string((const char *)&loss, sizeof loss)) << " " << loss << "\n";
    }
    if (training.sample) {
        std::string tokens;
        require([&](loom_error *error) { return loom_trainer_sample(t, 20, take_token, &tokens, NULL, error); });
        lines << "sample" << tokens << "\n";
    }
    if (training.save) require([&](loom_error *error) { return loom_trainer_save(t, options.out, error); });
    expect_same(lines.str(), "what is said of " + training.name);
    const State state = state_of(t);
    write_tensors(t, state.parameters, t->precision.master, "weights", lines, numbers);
    write_tensors(t, state.moment1, t->precision.moment, "first-moments", lines, numbers);
    write_tensors(t, state.moment2, t->precision.moment, "second-moments", lines, numbers);
    if (comm->rank == 0) {
        std::ofstream(folder + "/" + training.name) << lines.str();
        if (training.values)
            std::ofstream(folder + "/" + training.name + ".values", std::ios::binary)
                .write((const char *)numbers.data(), (std::streamsize)(numbers.size() * sizeof(double)));
    }
    loom_trainer_close(t);
    comm = NULL;
    loom_train_options_free(&options);
}

/* What MPI is to be told when the process ends, which mpi_lasting keeps from it until then. */
void end_mpi(const char *library) {
    void *lasting = dlopen(library, RTLD_NOW);
    void (*end)();
    void *const address = lasting ? dlsym(lasting, "mpi_lasting_end") : NULL;
    if (!address) return;
    memcpy(&end, &address, sizeof end);
    end();
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "usage: train_rank self|mpi FOLDER TRAININGS\n"), 2;
    std::ifstream trainings(argv[3]);
    const char *lasting = getenv("LOOM_TEST_MPI");
    loom_comm_options how = {};
    how.backend = argv[1];
    how.timeout = 60;
    how.mpi_library = lasting;
    for (std::string line; std::getline(trainings, line);) {
        const Training training = read_training(line);
        try {
            run(training, how, argv[2]);
        } catch (const std::exception &e) {
            fprintf(stderr, "train_rank: %s: %s\n", training.name.c_str(), e.what());
            return 2;
        }
        if (wrong) fprintf(stderr, "train_rank: so in '%s'\n", line.c_str());
        if (wrong) break;
    }
    if (lasting && !wrong) end_mpi(lasting);
    return wrong;
}
